"""Modes with an EMA target, without StopGrad, with a fixed predictor, and from unequal scales."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

import jepa_linear as jl
from jepa_core.errors import ConfigError, DataError


def test_balanced_modes_follow_the_closed_form():
    times = np.linspace(0, 60, 13)
    for objective in ("jepa", "mae"):
        found = jl.modal_flow(
            [1.0, 0.7], [0.8, 0.9], 2, layer_scale=0.2, times=times, objective=objective
        )
        exact = jl.trajectory(
            np.array([1.0, 0.7]), np.array([0.8, 0.9]), 2, layer_scale=0.2, times=2 * times,
            objective=objective,
        )  # fmt: skip
        np.testing.assert_allclose(found.w, exact, rtol=1e-7)
        np.testing.assert_allclose(found.v, found.a, rtol=1e-9)


# Flow time to half the plateau; L = 2, lambda = 1, rho = 0.8, a0 = 0.2.
@pytest.mark.parametrize(
    ("kappa", "expected"),
    [
        (None, 62.414642),
        (100, 62.454202),
        (10, 62.806997),
        (1, 66.100040),
        (0.1, 92.665775),
        (0.01, 325.576531),
    ],
)
def test_an_ema_target_only_delays(kappa, expected):
    found = jl.crossing_time(1.0, 0.8, 2, layer_scale=0.2, kappa=kappa)
    assert found == pytest.approx(expected, rel=3e-8)


def test_the_delay_vanishes_as_the_target_follows_faster():
    plain = jl.crossing_time(1.0, 0.8, 2, layer_scale=0.2)
    delays = [jl.crossing_time(1.0, 0.8, 2, layer_scale=0.2, kappa=k) / plain - 1 for k in
              (1e2, 1e3, 1e4, 1e5)]  # fmt: skip
    assert np.all(np.diff(delays) < 0)
    np.testing.assert_allclose(np.array(delays[:-1]) / delays[1:], 10, rtol=0.05)


def test_an_ema_target_ends_where_stopgrad_does():
    found = jl.modal_flow(
        1.0, 0.8, 2, layer_scale=0.2, times=np.array([0.0, 1500.0]), target="ema", kappa=0.1
    )
    for value in (found.a, found.v, found.b):
        assert value[-1] == pytest.approx(0.8, rel=1e-6)


@given(
    lam=st.floats(0.01, 10),
    rho=st.floats(0.05, 2),
    depth=st.integers(1, 8),
    kappa=st.floats(1e-6, 1e6),
)
def test_the_plateau_is_stable_for_every_rate_of_the_target(lam, rho, depth, kappa):
    jacobian = jl.ema_jacobian(lam, rho, depth, kappa)
    rate = lam * rho ** (2 * depth - 1)
    assert np.trace(jacobian) < 0
    determinant = jacobian[0, 0] * jacobian[1, 1] - jacobian[0, 1] * jacobian[1, 0]
    assert determinant == pytest.approx(kappa * rate, rel=1e-9)


def test_the_jacobian_is_that_of_the_flow():
    lam, rho, L, kappa, step = 1.3, 0.7, 3, 0.4, 1e-6

    def rates(a, b):  # v stays balanced with a
        w = a**L
        return np.array([-w * (a * w * lam / rho - b**L * lam), kappa * (a - b)])

    columns = [
        (rates(rho + da, rho + db) - rates(rho - da, rho - db)) / (2 * step)
        for da, db in ((step, 0), (0, step))
    ]
    np.testing.assert_allclose(jl.ema_jacobian(lam, rho, L, kappa), np.array(columns).T, rtol=1e-6)


def test_a_frozen_target_leads_nowhere():
    found = jl.modal_flow(
        1.0, 0.8, 2, layer_scale=0.2, times=np.array([0.0, 5e3]), target="ema", kappa=0.0
    )
    assert found.b[-1] == 0.2
    plateau = jl.frozen_target_plateau(0.8, 2, 0.2)
    assert plateau == pytest.approx((0.8 * 0.04) ** (1 / 3))
    assert found.a[-1] == pytest.approx(plateau, rel=1e-6)


# --- without StopGrad


@settings(max_examples=20)
@given(
    lam=st.floats(0.2, 2),
    rho=st.floats(0.2, 1.5),
    excess=st.floats(0.05, 2),
    a0=st.floats(0.1, 1),
    v0=st.floats(0.1, 1.5),
    depth=st.integers(1, 3),
)
def test_a_mode_without_stopgrad_keeps_its_invariant_and_collapses(lam, rho, excess, a0, v0, depth):
    if abs(v0 - rho) < 0.02:
        return
    syy = lam * rho + excess
    end = jl.collapse_end(lam, rho, syy, layer_scale=a0, predictor_scale=v0)
    found = jl.modal_flow(
        lam, rho, depth, layer_scale=a0, predictor_scale=v0, times=np.geomspace(0.01, 200, 9),
        target="none", syy=syy,
    )  # fmt: skip
    invariant = jl.collapse_invariant(found.a, found.v, lam, rho, syy)
    start = jl.collapse_invariant(a0, v0, lam, rho, syy)
    np.testing.assert_allclose(invariant, start, rtol=1e-8, atol=1e-8)
    assert np.all(np.diff(found.w) < 1e-25)
    # The predictor stops at the root of the invariant with a = 0.
    assert end[0] == 0
    assert jl.collapse_invariant(0.0, end[1], lam, rho, syy) == pytest.approx(start, abs=1e-8)


def test_the_worked_example_of_collapse():
    # lambda = 1, rho = .8, a0 = v0 = .5; c = .45 and c = 0.
    a, v = jl.collapse_end(1.0, 0.8, 0.8 + 0.45, layer_scale=0.5, predictor_scale=0.5)
    assert (a, v) == (0.0, pytest.approx(0.575960, abs=5e-6))
    late = jl.modal_flow(
        1.0, 0.8, 1, layer_scale=0.5, times=np.array([0.0, 60.0]), target="none", syy=1.25
    )
    assert late.v[-1] == pytest.approx(v, rel=1e-9)
    a, v = jl.collapse_end(1.0, 0.8, 0.8, layer_scale=0.5, predictor_scale=0.5)
    assert (a, v) == (pytest.approx(0.4), 0.8)
    late = jl.modal_flow(
        1.0, 0.8, 1, layer_scale=0.5, times=np.array([0.0, 200.0]), target="none", syy=0.8
    )
    assert late.a[-1] == pytest.approx(0.4, rel=1e-9)
    # Too small an encoder collapses even where y is perfectly predictable.
    a, v = jl.collapse_end(1.0, 0.8, 0.8, layer_scale=0.2, predictor_scale=0.5)
    assert a == 0
    assert v == pytest.approx(0.8 - math.sqrt(0.09 - 0.04))
    assert jl.collapse_end(1.0, 0.8, 1.25, layer_scale=0.5, predictor_scale=0.8) == (0.0, 0.8)


def test_collapse_is_exponential_with_one_layer_and_a_power_law_with_more():
    times = np.geomspace(1, 1e5, 41)
    lam, rho, syy = 1.0, 0.8, 1.25

    def rate(v):
        return v**2 * lam / rho - 2 * v * lam + syy

    one = jl.modal_flow(lam, rho, 1, layer_scale=0.5, times=np.array([50.0, 60.0]), target="none",
                        syy=syy)  # fmt: skip
    slope = np.diff(np.log(one.a**2))[0] / 10
    assert slope == pytest.approx(-2 * rate(one.v[-1]), rel=1e-6)
    for L, power in ((2, -1.0), (3, -0.75)):
        found = jl.modal_flow(lam, rho, L, layer_scale=0.5, times=times, target="none", syy=syy)
        fitted = np.polyfit(np.log(times[-10:]), np.log(found.w[-10:]), 1)[0]
        assert fitted == pytest.approx(power, abs=2e-3)
        tail = (2 * (L - 1) * rate(found.v[-1]) * times[-1]) ** (-1 / (2 * (L - 1)))
        assert found.a[-1] == pytest.approx(tail, rel=1e-2)


# --- fixed predictor, unequal scales, negative modes


@pytest.mark.parametrize("L", [1, 2])
def test_a_fixed_predictor_shrinks_below_rho_one_and_explodes_above(L):
    times = np.linspace(0, 1.5, 5)
    below = jl.modal_flow(1.0, 0.8, L, layer_scale=0.5, times=times, predictor="fixed")
    assert np.all(np.diff(below.a) < 0)
    above = jl.modal_flow(1.0, 1.25, L, layer_scale=0.5, times=times, predictor="fixed")
    assert np.all(np.diff(above.a) > 0)
    rate = 1 - 1 / 1.25
    if L == 1:  # exponential
        np.testing.assert_allclose(above.a, 0.5 * np.exp(rate * times), rtol=1e-8)
    else:  # da/dtau = a^3 (lambda - sigma^2): infinite at 1 / (2 rate a0^2)
        np.testing.assert_allclose(above.a, (0.5**-2 - 2 * rate * times) ** -0.5, rtol=1e-8)
        with pytest.raises(DataError, match="without bound"), np.errstate(all="ignore"):
            jl.modal_flow(
                1.0, 1.25, L, layer_scale=0.5, times=np.array([0.0, 11.0]), predictor="fixed"
            )


def test_a_negative_predictor_learns_a_negative_mode_to_a_negative_rho():
    times = np.linspace(0, 100, 11)
    mirrored = jl.modal_flow(-1.0, -0.8, 2, layer_scale=0.2, predictor_scale=-0.2, times=times)
    plain = jl.modal_flow(1.0, 0.8, 2, layer_scale=0.2, times=times)
    np.testing.assert_allclose(mirrored.a, plain.a, rtol=1e-9)
    np.testing.assert_allclose(mirrored.v, -plain.v, rtol=1e-9)
    assert mirrored.v[-1] == pytest.approx(-0.8, rel=1e-3)


def test_unequal_scales_follow_the_equations():
    lam, rho, L, a0, v0, kappa = 1.2, 0.7, 3, 0.4, 0.9, 0.3
    s2 = lam / rho
    times = np.linspace(0, 15, 6)

    def stopgrad(t, y):
        a, v, _ = y
        return [-(a ** (L - 1)) * v * (v * s2 - lam) * a**L, -(a ** (2 * L)) * (v * s2 - lam), 0]

    def ema(t, y):
        a, v, b = y
        miss = v * a**L * s2 - b**L * lam
        return [-(a ** (L - 1)) * v * miss, -(a**L) * miss, kappa * (a - b)]

    def mae(t, y):
        a, v, _ = y
        miss = v * a**L * s2 - lam
        return [-(a ** (L - 1)) * v * miss, -(a**L) * miss, 0]

    for slope, setting in (
        (stopgrad, {}),
        (ema, {"target": "ema", "kappa": kappa}),
        (mae, {"objective": "mae"}),
    ):
        found = jl.modal_flow(
            lam, rho, L, layer_scale=a0, predictor_scale=v0, times=times, **setting
        )
        expected = solve_ivp(slope, (0, 15), [a0, v0, a0], "LSODA", times, rtol=1e-10, atol=1e-12).y
        np.testing.assert_allclose(found.a, expected[0], rtol=1e-6)
        np.testing.assert_allclose(found.v, expected[1], rtol=1e-6)


def test_modes_are_batched():
    found = jl.modal_flow(
        np.full((2, 1), 1.0), [0.8, 0.6, 0.5], 2, layer_scale=0.2, times=np.array([0.0, 1.0])
    )
    assert found.w.shape == (2, 3, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"target": "ema"},
        {"kappa": 0.1},
        {"target": "ema", "kappa": -1.0},
        {"target": "none"},
        {"syy": 1.0},
        {"objective": "mae", "target": "ema", "kappa": 1.0},
        {"target": "byol"},
        {"predictor": "identity"},
        {"times": np.array([1.0, 0.0])},
        {"layer_scale": 0.0},
    ],
)
def test_settings_are_checked(change):
    given = {"layer_scale": 0.2, "times": np.array([0.0, 1.0]), **change}
    with pytest.raises(ConfigError):
        jl.modal_flow(1.0, 0.8, 2, **given)


def test_a_mode_that_does_not_grow_never_crosses():
    with pytest.raises(ConfigError):
        jl.crossing_time(1.0, 0.1, 2, layer_scale=0.2)
    with pytest.raises(ConfigError):
        jl.crossing_time(1.0, 0.8, 2, layer_scale=0.2, kappa=0.0)
    with pytest.raises(DataError, match="more than 1"):
        jl.collapse_end(1.0, 0.8, 0.5, layer_scale=0.5, predictor_scale=0.5)
