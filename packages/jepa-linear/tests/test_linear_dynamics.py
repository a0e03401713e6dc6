"""Learning curves against 50-digit times, an integrator, and each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

import jepa_linear as jl
from jepa_core.errors import ConfigError

OBJECTIVES = ("jepa", "mae")


@pytest.fixture(scope="module")
def golden(data):
    with np.load(data("linear") / "golden_trajectories.npz") as stored:
        return dict(stored)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_mode_reaches_each_fraction_of_its_plateau_at_the_exact_time(golden, objective):
    depth, lam, rho, a0 = golden["sets"].T
    exact, fractions = golden[f"t_{objective}"], golden["fractions"]
    times = jl.critical_time(
        lam[:, None], rho[:, None], depth[:, None], layer_scale=a0[:, None], p=fractions,
        objective=objective,
    )  # fmt: skip
    np.testing.assert_allclose(times, exact, rtol=1e-11)
    w = jl.trajectory(lam, rho, depth, layer_scale=a0, times=exact, objective=objective)
    share = w / jl.fixed_point(rho, depth, objective)[:, None]
    np.testing.assert_allclose(share[exact > 0], (fractions + 0 * exact)[exact > 0], rtol=1e-11)


def test_a_mode_that_starts_above_its_plateau_decays_to_it(golden):
    depth, lam, rho, a0 = golden["decay_sets"].T
    w = jl.trajectory(lam, rho, depth, layer_scale=a0, times=golden["decay_t"])
    np.testing.assert_allclose(w, golden["decay_w_jepa"], rtol=1e-9)
    assert np.all(np.diff(w) < 0)
    late = jl.trajectory(lam, rho, depth, layer_scale=a0, times=np.array([0.0, 1e5]))
    np.testing.assert_allclose(late[:, 1], jl.fixed_point(rho, depth), rtol=1e-9)


modes = st.fixed_dictionaries(
    {
        "L": st.integers(1, 6),
        "lam": st.floats(0.1, 10),
        "rho": st.floats(0.1, 2),
        "start": st.floats(0.05, 4).filter(lambda s: abs(s - 1) > 0.01),  # a0 over the plateau
    }
)
signs = st.sampled_from((1, -1))


def _scale(mode, objective):
    limit = mode["rho"] if objective == "jepa" else mode["rho"] ** (1 / (mode["L"] + 1))
    return mode["start"] * limit


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=25)
@given(mode=modes.filter(lambda mode: mode["start"] > 0.2 and mode["L"] < 5), sign=signs)
def test_curves_solve_the_modal_equation(objective, mode, sign):
    L, lam, rho = mode["L"], sign * mode["lam"], sign * mode["rho"]
    a0 = _scale(mode, objective)
    power = 2 * L - 1 if objective == "jepa" else L - 1
    unit = L / (mode["lam"] * a0**power)  # time in which the start would change by its own size
    times = np.concatenate([[0.0], np.geomspace(0.1, 5, 12)]) * unit
    found = jl.trajectory(lam, rho, L, layer_scale=a0, times=times, objective=objective)

    def slope(t, u):
        w = np.exp(u)
        return unit * jl.rate(w, lam, rho, L, objective) / w

    expected = solve_ivp(
        slope, (0, times[-1] / unit), [L * math.log(a0)], "DOP853", times / unit,
        rtol=1e-11, atol=1e-12,
    )  # fmt: skip
    np.testing.assert_allclose(found, np.exp(expected.y[0]), rtol=1e-7)


@pytest.mark.parametrize("objective", OBJECTIVES)
@given(mode=modes.filter(lambda mode: mode["start"] < 1))
def test_the_explicit_curve_and_its_inverse_agree(objective, mode):
    setting = {"layer_scale": _scale(mode, objective), "objective": objective}
    times, w = jl.curve(mode["lam"], mode["rho"], mode["L"], **setting)
    assert times[0] == 0
    assert w[0] == pytest.approx(setting["layer_scale"] ** mode["L"], rel=1e-13)
    assert np.all(np.diff(times) > 0)
    inverse = jl.trajectory(mode["lam"], mode["rho"], mode["L"], times=times, **setting)
    # The rounding of t moves w by its slope: no inverse can do better.
    slope = np.abs(jl.rate(w, mode["lam"], mode["rho"], mode["L"], objective))
    slack = 1e-12 * w + 1e-15 * times * slope
    assert np.all(np.abs(inverse - w) <= 4 * slack)


def test_times_from_the_critical_one_show_the_same_curve():
    lam, rho = np.array([1.0, 0.5, 2.0]), np.array([0.9, 0.4, 1.3])
    for objective in OBJECTIVES:
        setting = {"layer_scale": 0.2, "objective": objective}
        star = jl.critical_time(lam, rho, 3, p=0.3, **setting)
        times = star[:, None] * np.linspace(0, 2, 41)
        plain = jl.trajectory(lam, rho, 3, times=times, **setting)
        shifted = jl.trajectory(
            lam, rho, 3, times=times - star[:, None], origin="critical", p=0.3, **setting
        )
        np.testing.assert_allclose(shifted, plain, rtol=1e-10)
        np.testing.assert_allclose(shifted[:, 20], 0.3 * jl.fixed_point(rho, 3, objective))
        before = jl.trajectory(
            lam, rho, 3, times=-2 * star[:, None], origin="critical", p=0.3, **setting
        )
        np.testing.assert_allclose(before, 0.2**3, rtol=1e-13)


def test_depths_and_times_broadcast():
    lam, rho = np.array([1.0, 2.0]), np.array([0.9, 0.4])
    times = np.linspace(0, 100, 7)
    w = jl.trajectory(lam, rho, np.array([[1], [2], [4]]), layer_scale=0.3, times=times)
    assert w.shape == (3, 2, 7)
    np.testing.assert_allclose(
        w[2, 1], jl.trajectory(2.0, 0.4, 4, layer_scale=0.3, times=times), rtol=1e-14
    )
    points, strengths = jl.curve(lam, rho, np.array([[1], [2], [4]]), layer_scale=0.3, points=50)
    assert points.shape == strengths.shape == (3, 2, 50)


def test_dead_and_absent_modes_have_curves_too():
    lam, rho = np.array([0.0, 0.0, -1.0]), np.array([0.0, np.nan, -0.5])
    times = np.array([0.0, 1.0, 10.0])
    w = jl.trajectory(lam, rho, 1, layer_scale=0.3, times=times, sigma2=np.array([2.0, 0.0, 2.0]))
    # lambda = 0: da/dt = -sigma^2 a^3 at L = 1.
    np.testing.assert_allclose(w[0], (0.3**-2 + 4 * times) ** -0.5, rtol=1e-9)
    assert np.isnan(w[1]).all()
    assert np.all(np.diff(w[2]) < 0)
    assert np.isnan(jl.trajectory(0.0, 0.0, 1, layer_scale=0.3, times=times)).all()
    # MAE with L = 1 decays exponentially once a is small: da/dt = lambda.. w at rate |lambda|.
    far = jl.trajectory(-1.0, -0.5, 1, layer_scale=1e-4, times=times, objective="mae")
    np.testing.assert_allclose(far, 1e-4 * np.exp(-times), rtol=1e-6)


def test_a_flipped_predictor_learns_a_negative_mode():
    times = np.linspace(0, 2000, 9)
    found = jl.trajectory(-1.0, -0.6, 2, layer_scale=0.1, times=times, predictor_sign=-1)
    np.testing.assert_array_equal(found, jl.trajectory(1.0, 0.6, 2, layer_scale=0.1, times=times))


def test_torch_equals_numpy():
    lam, rho = np.array([1.0, 0.5, 2.0, -1.0]), np.array([0.9, 0.4, 0.1, -0.3])
    times = np.linspace(0, 300, 60)
    for objective in OBJECTIVES:
        expected = jl.trajectory(lam, rho, 2, layer_scale=0.2, times=times, objective=objective)
        found = jl.trajectory(
            torch.from_numpy(lam), torch.from_numpy(rho), 2, layer_scale=0.2,
            times=torch.from_numpy(times), objective=objective,
        )  # fmt: skip
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)
        pair = jl.curve(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.75]), 2, layer_scale=0.25)
        twin = jl.curve(np.array([1.0, 2.0]), np.array([0.5, 0.75]), 2, layer_scale=0.25)
        for tensor, array in zip(pair, twin, strict=True):
            np.testing.assert_allclose(tensor.numpy(), array, rtol=1e-12)


@pytest.mark.parametrize(
    "times", [[-1.0, 0.0], [1.0, 0.5], [0.0, math.nan], 3.0], ids=["negative", "down", "nan", "one"]
)
def test_times_that_no_flow_has_are_refused(times):
    with pytest.raises(ConfigError) as error:
        jl.trajectory(1.0, 0.5, 2, layer_scale=0.1, times=times)
    assert error.value.where == "times"


def test_the_explicit_curve_refuses_what_decays():
    for lam, rho, a0 in ((1.0, 0.1, 0.2), (-1.0, -0.5, 0.2)):
        with pytest.raises(ConfigError, match="does not grow"):
            jl.curve(lam, rho, 2, layer_scale=a0)
