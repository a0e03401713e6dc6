"""Finite samples: the delta method against simulation, the bootstrap, held-out directions."""

from __future__ import annotations

import math

import numpy as np
import pytest

import jepa_linear as jl
from jepa_core.errors import ConfigError, DataError

LAM, RHO = np.array([1.0, 1.0]), np.array([0.8, 0.5])

# L, a0; pairs for 95 %; P(order right) at 50, 200, 800, 3200 pairs by formula.
ORDERS = [
    (2, 0.1, 1755, (0.609, 0.711, 0.867, 0.987)),
    (4, 0.1, 2211, (0.598, 0.690, 0.839, 0.976)),
    (4, 0.25, 316, (0.744, 0.905, 0.996, None)),
    (8, 0.25, 396, (0.720, 0.879, 0.990, None)),
]


@pytest.mark.parametrize(("L", "a0", "needed", "probabilities"), ORDERS)
def test_reference_probabilities_of_the_right_order(L, a0, needed, probabilities):
    found = jl.samples_needed(LAM, RHO, L, layer_scale=a0)
    assert found[0, 1] == pytest.approx(needed, abs=0.6)
    assert found[0, 1] == found[1, 0]
    assert math.isinf(found[0, 0])
    for n, expected in zip((50, 200, 800, 3200), probabilities, strict=True):
        matrix = jl.order_probability(LAM, RHO, n, L, layer_scale=a0)
        assert matrix[0, 0] == 0.5
        assert matrix[0, 1] + matrix[1, 0] == pytest.approx(1)
        if expected is not None:
            assert matrix[0, 1] == pytest.approx(expected, abs=6e-4)
    at_needed = jl.order_probability(LAM, RHO, found[0, 1], L, layer_scale=a0)
    assert at_needed[0, 1] == pytest.approx(0.95, abs=1e-12)


def _simulated(n, repetitions, seed=0):
    """lambda and rho of two Gaussian modes with Syy = sigma^2, estimated from n pairs."""
    rng = np.random.default_rng(seed)
    sigma2 = LAM / RHO
    x = rng.standard_normal((repetitions, n, 2))
    y = RHO * x + np.sqrt(1 - RHO**2) * rng.standard_normal(x.shape)
    s2 = sigma2 * (x * x).mean(1)
    lam = sigma2 * (x * y).mean(1)
    return lam, lam / s2


@pytest.mark.parametrize(("L", "a0", "needed", "probabilities"), ORDERS)
@pytest.mark.parametrize("n", [200, 800])
def test_simulated_orders_are_as_often_right_as_the_formula_says(L, a0, needed, probabilities, n):
    lam, rho = _simulated(n, 1500)
    place = jl.ranks(lam, rho, L, layer_scale=a0)
    right = (place[:, 0] < place[:, 1]).mean()
    expected = jl.order_probability(LAM, RHO, n, L, layer_scale=a0)[0, 1]
    # First order in 1/n, plus three standard errors of the simulation.
    assert right == pytest.approx(expected, abs=0.04 + 3 * math.sqrt(0.25 / 1500))


def test_the_variance_of_ln_t_is_that_of_simulated_estimates():
    n = 2000
    lam, rho = _simulated(n, 2000)
    for objective in ("jepa", "mae"):
        setting = {"layer_scale": 0.1, "objective": objective}
        spread = jl.critical_time(lam, rho, 3, log=True, **setting).var(0)
        eta = jl.sensitivity(LAM, RHO, 3, **setting)
        formula = jl.log_time_variance(eta, RHO**2, n)
        np.testing.assert_allclose(spread, formula, rtol=0.12)


def test_a_mode_that_does_not_grow_has_no_probability():
    found = jl.order_probability(
        np.array([1.0, 1.0, -1.0]), np.array([0.8, 0.05, -0.5]), 100, 2, layer_scale=0.1
    )
    assert np.isnan(found[0, 1:]).all()
    assert found[0, 0] == 0.5


def test_less_correlated_views_need_more_pairs():
    same = jl.samples_needed(LAM, RHO, 3, layer_scale=0.2)
    noisy = jl.samples_needed(LAM, RHO, 3, layer_scale=0.2, syy=4 * LAM / RHO)
    assert noisy[0, 1] > 1.5 * same[0, 1]


def test_serial_correlation_costs_samples():
    assert jl.effective_samples(1000, 0.0) == 1000
    assert jl.effective_samples(1000, 0.9) == pytest.approx(1000 * 0.19 / 1.81)


def test_the_order_of_the_temporal_example_is_found_from_2000_pairs():
    g, S, N = np.array([0.95, 0.5, 0.95]), np.array([1, 1.9, 1]), np.array([0.1, 0, 4])
    right = 0
    for seed in range(40):
        x, y = jl.temporal_pairs(g, S, N, 2000, seed=seed)
        found = jl.modes(*jl.covariances(x, y)[:2])
        order = jl.order(found.lam, found.rho, 4, layer_scale=0.1)
        # Slow and clean, fast, slow and noisy: along features 0, 1, 2.
        right += np.abs(found.directions).argmax(0)[order].tolist() == [0, 1, 2]
    assert right >= 36


# --- bootstrap


def _sample(n, d=3, seed=0):
    g = np.linspace(0.9, 0.4, d)
    return jl.temporal_pairs(g, np.linspace(1, 2, d), np.full(d, 0.2), n, seed=seed)


def test_the_bootstrap_agrees_with_the_delta_method_on_gaussian_pairs():
    n = 1000
    x, y = _sample(n)
    found = jl.modes(*jl.covariances(x, y)[:2], basis="features")
    drawn = jl.bootstrap(x, y, found.directions, draws=600)
    setting = {"layer_scale": 0.1}
    spread = drawn.log_times(3, **setting).std(0)
    eta = jl.sensitivity(found.lam, found.rho, 3, **setting)
    syy = np.diag(found.directions.T @ jl.covariances(x, y)[2] @ found.directions)
    expected = np.sqrt(jl.log_time_variance(eta, found.lam * found.rho / syy, n))
    np.testing.assert_allclose(spread, expected, rtol=0.15)
    low, high = drawn.interval(3, **setting)
    star = jl.critical_time(found.lam, found.rho, 3, **setting)
    assert np.all((low < star) & (star < high))
    np.testing.assert_allclose(np.log(high / low), 2 * 1.96 * expected, rtol=0.2)


def test_bootstrap_resamples_equal_covariances_of_repeated_rows():
    x, y = _sample(40)
    v = jl.random_rotation(3, np.random.default_rng(0))
    drawn = jl.bootstrap(x, y, v, draws=5, seed=7)
    weights = np.random.default_rng(7).multinomial(40, np.full(40, 1 / 40), size=5)
    for one, lam, rho in zip(weights, drawn.lam, drawn.rho, strict=True):
        rows = np.repeat(np.arange(40), one)
        Sxx, Syx, _ = jl.covariances(x[rows], y[rows])
        np.testing.assert_allclose(lam, np.diag(v.T @ Syx @ v), rtol=1e-10)
        np.testing.assert_allclose(rho, lam / np.diag(v.T @ Sxx @ v), rtol=1e-10)


def test_order_probabilities_of_the_bootstrap_count_statuses_and_ties():
    lam = np.array([[1.0, 1.0, -1.0, 0.0], [1.0, 2.0, -1.0, 0.0], [1.0, 1.0, -1.0, 0.0]])
    rho = np.array([[0.8, 0.5, -0.5, np.nan], [0.8, 0.5, -0.5, np.nan], [0.8, 0.8, -0.5, np.nan]])
    found = jl.Resamples(lam, rho).order_probability(4, layer_scale=0.1)
    assert found[0, 1] == pytest.approx(1.5 / 3)  # right, wrong, tie
    assert found[0, 2] == 1
    assert np.isnan(found[3]).all()
    assert np.isnan(found[:, 3]).all()


def test_groups_are_drawn_whole():
    x, y = _sample(60)
    groups = np.repeat(np.arange(6), 10)
    # Within a group all rows are alike: only between groups is there anything to learn.
    x, y = (np.repeat(z[::10], 10, axis=0) for z in (x, y))
    rows = jl.bootstrap(x, y, np.eye(3), draws=300)
    whole = jl.bootstrap(x, y, np.eye(3), draws=300, groups=groups)
    assert np.all(whole.rho.std(0) > 1.8 * rows.rho.std(0))
    named = jl.bootstrap(x, y, np.eye(3), draws=300, groups=np.array([f"g{g}" for g in groups]))
    np.testing.assert_array_equal(named.lam, whole.lam)


def test_blocks_see_the_serial_correlation_that_rows_hide():
    g = np.array([0.95])
    series = jl.temporal_series(g, np.array([1.0]), np.array([0.5]), 3000, seed=1)
    x, y = series[:-1], series[1:]
    rows = jl.bootstrap(x, y, np.eye(1), draws=300)
    blocks = jl.bootstrap(x, y, np.eye(1), draws=300, block=100)
    ratio = blocks.lam.std() / rows.lam.std()
    assert 2 < ratio < 6  # n (1 - g^2) / (1 + g^2): sqrt(19.5) = 4.4 for the signal alone


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"draws": 1}, ConfigError),
        ({"block": 0}, ConfigError),
        ({"block": 5, "groups": np.zeros(30)}, ConfigError),
        ({"groups": np.zeros(29)}, DataError),
    ],
)
def test_settings_of_the_bootstrap_are_checked(change, error):
    x, y = _sample(30)
    with pytest.raises(error):
        jl.bootstrap(x, y, np.eye(3), **change)


# --- held-out directions


def test_held_out_rows_are_not_those_of_the_fit():
    x, y = _sample(100)
    found = jl.held_out(x, y, holdout=0.3)
    assert len(found.held_out) == 30
    assert sorted([*found.training, *found.held_out]) == list(range(100))
    Sxx, Syx, _ = jl.covariances(x[found.held_out], y[found.held_out])
    v = found.modes.directions
    np.testing.assert_allclose(found.lam, np.diag(v.T @ Syx @ v), rtol=1e-10)
    np.testing.assert_allclose(found.rho, found.lam / np.diag(v.T @ Sxx @ v), rtol=1e-10)
    last = jl.held_out(x, y, holdout=0.3, ordered=True)
    assert last.held_out.tolist() == list(range(70, 100))
    groups = np.repeat(np.arange(20), 5)
    grouped = jl.held_out(x, y, holdout=0.25, groups=groups)
    assert len(set(groups[grouped.held_out]) & set(groups[grouped.training])) == 0


def test_directions_without_variance_stay_absent():
    x, y = _sample(60)
    x, y = (np.concatenate([z, np.zeros((60, 1))], 1) for z in (x, y))
    found = jl.held_out(x, y)
    assert np.isnan(found.rho).tolist() == [False] * 3 + [True]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"holdout": 0.0}, ConfigError),
        ({"holdout": 1.0}, ConfigError),
        ({"holdout": 0.01}, DataError),
        ({"groups": np.zeros(30)}, DataError),
        ({"groups": np.zeros(29)}, DataError),
    ],
)
def test_settings_of_the_split_are_checked(change, error):
    x, y = _sample(30)
    with pytest.raises(error):
        jl.held_out(x, y, **change)


@pytest.mark.parametrize("call", [
    lambda: jl.order_probability(LAM, RHO, 0, 2, layer_scale=0.1),
    lambda: jl.samples_needed(LAM, RHO, 2, layer_scale=0.1, confidence=0.5),
])  # fmt: skip
def test_settings_of_the_delta_method_are_checked(call):
    with pytest.raises(ConfigError):
        call()
