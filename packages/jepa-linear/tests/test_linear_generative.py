"""Views with known covariances, and what happens where they do not commute."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import jepa_linear as jl
from jepa_core.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def golden(data):
    with np.load(data("linear") / "golden_generative.npz") as stored:
        return dict(stored)


@pytest.mark.parametrize("lag", [1, 3])
def test_golden_temporal_model(golden, lag):
    found = jl.temporal_model(
        golden["gamma"], golden["signal_var"], golden["noise_var"], lag, basis=golden["basis"]
    )
    for name in ("lam", "sigma2", "rho", "Sxx", "Syx"):
        expected = golden[f"temporal_lag{lag}_{name}"]
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-13, atol=1e-15)
    np.testing.assert_array_equal(found.Syy, found.Sxx)


@pytest.mark.parametrize("target", ["full", "complement", "independent"])
def test_golden_masking_model(golden, target):
    keep, noise = float(golden["mask_keep"]), float(golden["mask_noise"])
    found = jl.masking_model(golden["mask_C"], keep, noise=noise, target=target)
    np.testing.assert_allclose(found.Sxx, golden["mask_Sxx"], rtol=1e-13)
    np.testing.assert_allclose(found.Syx, golden[f"mask_Syx_{target}"], rtol=1e-13, atol=1e-16)
    np.testing.assert_allclose(found.Syy, golden[f"mask_Syy_{target}"], rtol=1e-13)
    jl.modes(found.Sxx, found.Syx, Syy=found.Syy)  # a covariance together


@pytest.mark.parametrize("target", ["full", "complement", "independent"])
def test_masked_pairs_have_the_covariances_of_the_model(target):
    rng = np.random.default_rng(0)
    half = rng.standard_normal((4, 4))
    C = half @ half.T
    model = jl.masking_model(C, 0.4, noise=0.3, target=target)
    x, y = jl.masked_pairs(C, 0.4, 200_000, noise=0.3, target=target, seed=1)
    for found, expected in zip(
        jl.covariances(x, y), (model.Sxx, model.Syx, model.Syy), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(C).max())


@pytest.mark.parametrize("lag", [1, 3])
def test_pairs_and_series_have_the_covariances_of_the_model(lag):
    g, S, N = np.array([0.9, 0.5, -0.6]), np.array([1.0, 2.0, 1.0]), np.array([0.1, 0.5, 0.0])
    turn = jl.random_rotation(3, np.random.default_rng(2))
    model = jl.temporal_model(g, S, N, lag, basis=turn)
    pairs = jl.temporal_pairs(g, S, N, 200_000, lag, basis=turn, seed=3)
    series = jl.temporal_series(g, S, N, 200_000, basis=turn, seed=3)
    for x, y in (pairs, (series[:-lag], series[lag:])):
        for found, expected in zip(
            jl.covariances(x, y), (model.Sxx, model.Syx, model.Syy), strict=True
        ):
            np.testing.assert_allclose(found, expected, atol=0.03)


def test_masked_modes_of_constant_variance_in_closed_form():
    # A ring of 16: all commute, eigenvalue C_k, diagonal 1.
    d = 16
    spectrum = 1 / (1 + np.minimum(np.arange(d), d - np.arange(d))) ** 2
    spectrum /= spectrum.mean()
    fourier = np.fft.fft(np.eye(d)) / math.sqrt(d)
    C = (fourier.conj().T * spectrum @ fourier).real
    for noise, top in (
        (0.0, (2.882679, 1.771166, 1.278282)),
        (1.0, (2.100404, 1.441340, 1.097094)),
    ):
        for q, expected in zip((0.25, 0.5, 0.75), top, strict=True):
            model = jl.masking_model(C, q, noise=noise)
            found = jl.modes(model.Sxx, model.Syx)
            assert found.commutator < 1e-12
            assert found.rho[0] == pytest.approx(expected, abs=5.1e-7)
            assert found.rho[0] < 1 / q
            np.testing.assert_allclose(
                found.rho, np.sort(spectrum / (q * spectrum + 1 - q + noise))[::-1], rtol=1e-9
            )
            masked = jl.masking_model(C, q, noise=noise, target="complement")
            found = jl.modes(masked.Sxx, masked.Syx)
            expected_rho = (1 - q) * (spectrum - 1) / (q * spectrum + 1 - q + noise)
            np.testing.assert_allclose(found.rho, np.sort(expected_rho)[::-1], atol=1e-12)
            status = jl.status(found.lam, found.rho, 2, layer_scale=1e-3)
            assert (status == jl.Status.DEAD).sum() == 13


def test_models_take_tensors_and_batches():
    found = jl.temporal_model(torch.tensor([[0.5], [0.9]]), torch.ones(3), torch.tensor([0.0]))
    assert found.lam.shape == (2, 3)
    assert found.Sxx.shape == (2, 3, 3)
    assert found.Sxx.dtype == torch.float64
    C = torch.stack([torch.eye(3), 2 * torch.eye(3)])
    assert jl.masking_model(C, 0.5).Syx.shape == (2, 3, 3)
    assert np.isnan(jl.temporal_model([0.5], [0.0], [0.0]).rho).all()


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: jl.temporal_model([1.1], [1.0], [0.0]), DataError),
        (lambda: jl.temporal_model([0.5], [-1.0], [0.0]), DataError),
        (lambda: jl.temporal_model([0.5], [1.0], [-0.1]), DataError),
        (lambda: jl.temporal_model([0.5], [1.0], [0.1], 0), ConfigError),
        (lambda: jl.temporal_model([0.5], [1.0], [0.1], 1.5), ConfigError),
        (lambda: jl.masking_model(np.eye(2), 0.0), ConfigError),
        (lambda: jl.masking_model(np.eye(2), 1.1), ConfigError),
        (lambda: jl.masking_model(np.eye(2), 0.5, noise=-1.0), ConfigError),
        (lambda: jl.masking_model(np.eye(2), 0.5, target="half"), ConfigError),
        (lambda: jl.masking_model(np.ones((2, 3)), 0.5), DataError),
    ],
)
def test_parameters_out_of_range_are_refused(call, error):
    with pytest.raises(error):
        call()


# --- outside the assumption


def _largest_leak(mixing, L):
    lam, rho = np.array([1.0, 0.9, 0.8]), np.array([0.9, 0.7, 0.5])
    slowest = jl.critical_time(lam, rho, L, layer_scale=0.3).max()
    times = np.linspace(0, 1.5 * slowest / L + 1, 400)
    return jl.leakage_path(lam, rho, mixing, L, layer_scale=0.3, times=times).max()


# Largest leakage / delta at L = 1, 2, 3, for one mixing of each kind, known to two digits.
@pytest.mark.parametrize(("sign", "known"), [(1, (0.62, 1.29, 1.75)), (-1, (0.49, 1.24, 1.92))])
def test_leakage_is_linear_in_what_does_not_commute_and_grows_with_depth(sign, known):
    draw = np.triu(np.random.default_rng(0).standard_normal((3, 3)), 1)
    mixing = (draw + sign * draw.T) / np.linalg.norm(draw + sign * draw.T)
    deltas = np.array([1e-4, 1e-3, 1e-2])
    coefficients = []
    for L, coefficient in zip((1, 2, 3), known, strict=True):
        leaks = np.array([_largest_leak(delta * mixing, L) for delta in deltas])
        slope = np.polyfit(np.log(deltas), np.log(leaks), 1)[0]
        assert slope == pytest.approx(1, abs=0.003)
        coefficients.append(leaks[0] / deltas[0])
        # The two-digit coefficients are of another mixing: between those of single pairs of modes.
        pairs = []
        for i, j in ((0, 1), (0, 2), (1, 2)):
            pair = np.zeros((3, 3))
            pair[i, j], pair[j, i] = math.sqrt(0.5), sign * math.sqrt(0.5)
            pairs.append(_largest_leak(1e-4 * pair, L) / 1e-4)
        assert min(pairs) < coefficients[-1] < max(pairs)
        assert min(pairs) < coefficient < max(pairs)
    assert np.all(np.diff(coefficients) > 0.1)


def test_leakage_is_zero_on_the_diagonal_and_one_off_it():
    assert jl.leakage(np.diag([1.0, 2.0])) == 0
    assert jl.leakage(np.array([[0.0, 1.0], [2.0, 0.0]])) == 1
    assert jl.leakage(np.ones((3, 2, 2))) == pytest.approx(np.full(3, math.sqrt(0.5)))


def test_the_aligned_manifold_repels_so_exact_diagonality_is_lost():
    lam, rho = np.array([1.0, 0.9, 0.8]), np.array([0.9, 0.7, 0.5])
    rng = np.random.default_rng(0)
    grown = []
    for L in (1, 2, 3):
        W0, V0 = jl.initial_weights(3, L, layer_scale=0.3, rotate=False)
        kicked = W0 + 1e-6 * 0.3 * rng.standard_normal(W0.shape) / 3
        end = 2 * jl.critical_time(lam, rho, L, layer_scale=0.3).max() / L
        path = jl.flow(kicked, V0, np.diag(lam / rho), np.diag(lam), np.linspace(0, end, 100))
        grown.append(jl.leakage(path.Wbar).max() / jl.leakage(path.Wbar[0]))
    assert min(grown) > 1
    assert max(grown) < 100
    assert grown[1] > grown[0]
