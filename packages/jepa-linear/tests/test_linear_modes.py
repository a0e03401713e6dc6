"""Modal parameters: golden covariances, bases, symmetries, and what cannot be a covariance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import jepa_linear as jl
from jepa_core.errors import ConfigError, DataError


def _rotation(d, seed=0):
    return jl.random_rotation(d, np.random.default_rng(seed))


def _pair(d=5, seed=0):
    rng = np.random.default_rng(seed)
    joint = rng.standard_normal((2 * d, 4 * d))
    joint = joint @ joint.T / (4 * d)
    return joint[:d, :d], joint[d:, :d], joint[d:, d:]


@pytest.mark.parametrize("case", range(5))
def test_golden_modes(data, case):
    with np.load(data("linear") / "golden_modes.npz") as stored:
        golden = {k[4:]: stored[k] for k in stored.files if k.startswith(f"c{case:02d}_")}
    found = jl.modes(golden["Sxx"], golden["Syx"])
    for name in ("rho", "lam", "sigma2", "directions", "direction_condition"):
        np.testing.assert_allclose(getattr(found, name), golden[name], rtol=1e-9, err_msg=name)
    for name in ("asymmetry", "commutator"):
        np.testing.assert_allclose(getattr(found, name), golden[name], rtol=1e-9, atol=1e-15)
    assert found.rank == len(golden["rho"])
    assert found.off_diagonal == pytest.approx(0, abs=1e-14)
    if golden["mode"] != "asymmetric":
        eigenvalues = jl.regression_eigenvalues(golden["Sxx"], golden["Syx"])
        np.testing.assert_allclose(eigenvalues, golden["rho"], rtol=1e-9)


@pytest.mark.parametrize("case", range(4))
def test_golden_images(data, case):
    with np.load(data("linear") / "golden_images.npz") as stored:
        golden = {k[4:]: stored[k] for k in stored.files if k.startswith(f"c{case:02d}_")}
    if "Sxx" in golden:
        Sxx, Syx, rtol = golden["Sxx"], golden["Syx"], 1e-6
    else:
        x, y = _patches(*(golden[k].item() for k in ("image", "patch", "shift", "stride")))
        assert len(x) == golden["n"]
        (Sxx, Syx, _), rtol = jl.covariances(x, y), 1e-3
    assert np.trace(Sxx) == pytest.approx(golden["trace_Sxx"], rel=rtol)
    assert np.trace(Syx) == pytest.approx(golden["trace_Syx"], rel=rtol)
    found = jl.modes(Sxx, Syx)
    np.testing.assert_allclose(found.rho, golden["rho"], rtol=rtol, atol=1e-3 * rtol)
    np.testing.assert_allclose(found.lam, golden["lam"], rtol=rtol, atol=1e-3 * rtol)
    for name in ("asymmetry", "commutator", "direction_condition"):
        np.testing.assert_allclose(getattr(found, name), golden[name], rtol=rtol)
    assert (found.rho > 0).sum() == (golden["rho"] > 0).sum()
    for L in (2, 4):
        for objective in ("jepa", "mae"):
            setting = {"layer_scale": 0.1, "objective": objective}
            grows = jl.status(found.lam, found.rho, L, **setting) == jl.Status.GROWS
            time = jl.critical_time(found.lam, found.rho, L, **setting)
            expected = golden[f"t_{objective}_L{L}"]
            np.testing.assert_allclose(time[grows], expected[grows], rtol=3 * rtol)
            assert np.isinf(expected[~grows & (found.lam > 0)]).all()


def _patches(image, patch, shift, stride):
    datasets = pytest.importorskip("sklearn.datasets")
    grey = datasets.load_sample_image(image).mean(axis=2) / 255
    windows = np.lib.stride_tricks.sliding_window_view(grey, (patch, patch))[::stride]
    last = windows.shape[1] - shift
    left, right = windows[:, 0:last:stride], windows[:, shift : last + shift : stride]
    return left.reshape(-1, patch * patch), right.reshape(-1, patch * patch)


def test_commuting_covariances_give_their_common_eigenvectors():
    turn = _rotation(4)
    sigma2, lam = np.array([2.0, 1.0, 0.5, 3.0]), np.array([0.4, 0.9, -0.1, 1.5])
    found = jl.modes(turn * sigma2 @ turn.T, turn * lam @ turn.T)
    order = np.argsort(-lam / sigma2)
    np.testing.assert_allclose(found.rho, (lam / sigma2)[order], rtol=1e-12)
    np.testing.assert_allclose(found.sigma2, sigma2[order], rtol=1e-12)
    np.testing.assert_allclose(abs(found.directions.T @ turn[:, order]), np.eye(4), atol=1e-12)
    assert found.commutator == pytest.approx(0, abs=1e-14)
    assert found.asymmetry == pytest.approx(0, abs=1e-14)
    assert found.direction_condition == pytest.approx(1, abs=1e-12)


def test_directions_solve_the_generalised_eigenproblem():
    Sxx, Syx, Syy = _pair()
    found = jl.modes(Sxx, Syx, Syy=Syy)
    S = (Syx + Syx.T) / 2
    np.testing.assert_allclose(S @ found.directions, Sxx @ found.directions * found.rho, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(found.directions, axis=0), 1, rtol=1e-14)
    largest = np.abs(found.directions).argmax(0)
    assert np.all(found.directions[largest, range(5)] > 0)
    np.testing.assert_allclose(found.lam, found.rho * found.sigma2, rtol=1e-12)
    assert np.all(np.diff(found.rho) < 0)


@given(seed=st.integers(0, 1000), d=st.integers(1, 7), scale=st.floats(0.01, 100))
def test_rotations_turn_the_directions_and_units_scale_lambda_only(seed, d, scale):
    Sxx, Syx, _ = _pair(d, seed)
    turn = _rotation(d, seed + 1)
    plain = jl.modes(Sxx, Syx)
    turned = jl.modes(scale * turn @ Sxx @ turn.T, scale * turn @ Syx @ turn.T)
    np.testing.assert_allclose(turned.rho, plain.rho, atol=1e-9)
    np.testing.assert_allclose(turned.lam, scale * plain.lam, atol=1e-7 * scale)
    for name in ("asymmetry", "commutator", "direction_condition"):
        np.testing.assert_allclose(
            getattr(turned, name), getattr(plain, name), rtol=1e-6, atol=1e-9
        )


def test_other_bases_say_what_they_leave_out():
    Sxx, Syx, _ = _pair()
    S = (Syx + Syx.T) / 2
    values, vectors = np.linalg.eigh(Sxx)
    pca = jl.modes(Sxx, Syx, basis="pca")
    np.testing.assert_allclose(np.sort(pca.sigma2), values, rtol=1e-12)
    turned = vectors.T @ S @ vectors
    left = np.linalg.norm(turned - np.diag(np.diag(turned))) / np.linalg.norm(S)
    assert pca.off_diagonal == pytest.approx(left, rel=1e-12)
    features = jl.modes(Sxx, Syx, basis="features")
    np.testing.assert_allclose(np.sort(features.sigma2), np.sort(np.diag(Sxx)), rtol=1e-14)
    order = np.argsort(-np.diag(S) / np.diag(Sxx))
    np.testing.assert_array_equal(features.directions, np.eye(5)[:, order])
    np.testing.assert_allclose(features.lam, np.diag(S)[order], rtol=1e-14)
    assert features.off_diagonal > 0.1


def test_a_rank_deficient_covariance_is_projected_on_its_range():
    Sxx, Syx, _ = _pair(3)
    embed = _rotation(6)[:, :3]
    found = jl.modes(embed @ Sxx @ embed.T, embed @ Syx @ embed.T)
    inner = jl.modes(Sxx, Syx)
    assert found.rank == 3
    np.testing.assert_allclose(found.rho[:3], inner.rho, rtol=1e-10)
    np.testing.assert_allclose(found.lam[:3], inner.lam, rtol=1e-10)
    assert np.isnan(found.rho[3:]).all()
    assert (found.sigma2[3:] == 0).all()
    assert (found.lam[3:] == 0).all()
    np.testing.assert_allclose(embed.T @ found.directions[:, 3:], 0, atol=1e-12)
    assert found.direction_condition == pytest.approx(inner.direction_condition, rel=1e-10)
    status = jl.status(found.lam, found.rho, 2, layer_scale=1e-3)
    assert (status[3:] == jl.Status.ABSENT).all()
    loaded = jl.modes(embed @ Sxx @ embed.T, embed @ Syx @ embed.T, ridge=0.1)
    assert loaded.rank == 6
    # Both features bases name the column without variance.
    constant = np.diag([1.0, 0.0, 2.0])
    for basis in ("features", "pca", "generalised"):
        assert jl.modes(constant, 0.5 * constant, basis=basis).rank == 2


def test_degenerate_modes_are_reported_as_one_cluster():
    sigma2, rho = np.array([1.0, 2.0, 3.0, 1.0]), np.array([0.9, 0.5, 0.5, 0.5 - 1e-3])
    turn = _rotation(4)
    found = jl.modes(turn * sigma2 @ turn.T, turn * (sigma2 * rho) @ turn.T)
    assert found.clusters.tolist() == [0, 1, 1, 2]
    # The directions inside are arbitrary, the plane they span is not.
    plane = found.directions[:, 1:3]
    projector = plane @ np.linalg.pinv(plane)
    np.testing.assert_allclose(projector, turn[:, 1:3] @ turn[:, 1:3].T, atol=1e-9)


def test_batches_and_tensors():
    pairs = [_pair(4, seed) for seed in range(6)]
    Sxx, Syx = (np.stack([p[k] for p in pairs]).reshape(2, 3, 4, 4) for k in (0, 1))
    found = jl.modes(Sxx, Syx)
    assert found.directions.shape == (2, 3, 4, 4)
    assert found.commutator.shape == found.rank.shape == (2, 3)
    one = jl.modes(Sxx[1, 2], Syx[1, 2])
    for name in ("rho", "lam", "sigma2", "directions", "asymmetry", "commutator"):
        np.testing.assert_allclose(getattr(found, name)[1, 2], getattr(one, name), atol=1e-12)
    tensors = jl.modes(torch.from_numpy(Sxx), torch.from_numpy(Syx))
    assert isinstance(tensors.rho, torch.Tensor)
    np.testing.assert_array_equal(tensors.directions.numpy(), found.directions)


def test_rotating_data_have_complex_regression_eigenvalues():
    rotation = np.array([[0.6, -0.5], [0.5, 0.6]])
    found = jl.modes(np.eye(2), rotation)
    np.testing.assert_allclose(found.rho, 0.6)  # of the symmetric part alone
    assert found.asymmetry == pytest.approx(0.5 / 0.6)
    np.testing.assert_allclose(
        np.sort_complex(jl.regression_eigenvalues(np.eye(2), rotation)), [0.6 - 0.5j, 0.6 + 0.5j]
    )
    with pytest.raises(DataError, match="singular"):
        jl.regression_eigenvalues(np.diag([1.0, 0.0]), rotation)


def _bad(name, value):
    Sxx, Syx, Syy = _pair(3)
    return {**{"Sxx": Sxx, "Syx": Syx, "Syy": Syy}, name: value}


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("Sxx", np.ones((3, 2)), "square"),
        ("Sxx", np.zeros((3, 3)), "nothing varies"),
        ("Sxx", np.diag([1.0, np.nan, 1.0]), "not finite"),
        ("Sxx", np.eye(3) + np.triu(np.full((3, 3), 1e-6), 1), "not symmetric"),
        ("Sxx", np.diag([1.0, 1.0, -1e-8]), "negative variance"),
        ("Sxx", np.eye(3) * 1j, "complex"),
        ("Sxx", np.full((3, 3), "a"), "expected real numbers"),
        ("Syx", np.ones((4, 4)), "one encoder"),
        ("Syx", np.full((3, 3), np.inf), "not finite"),
        ("Syy", np.eye(4), "but Sxx has"),
        ("Syy", -np.eye(3), "negative variance"),
    ],
)
def test_what_is_no_covariance_is_named(place, value, words):
    with pytest.raises(DataError, match=words) as error:
        jl.modes(**_bad(place, value))
    assert error.value.where == place or words in ("complex", "expected real numbers")


def test_a_correlation_above_one_is_refused_with_its_feature():
    Sxx, Syx = np.diag([1.0, 4.0, 9.0]), np.diag([0.5, 4.1, 3.0])
    with pytest.raises(DataError, match=r"1\.02.* feature 1"):
        jl.modes(Sxx, Syx, Syy=Sxx)
    exact = np.diag([1.0, 4.0, 9.0])
    assert jl.modes(Sxx, exact, Syy=Sxx).rank == 3  # y = x correlates by exactly 1
    assert jl.modes(Sxx, Syx).rank == 3  # without Syy it cannot be known


def test_a_tiny_asymmetry_of_rounding_is_accepted():
    Sxx, Syx, _ = _pair()
    noisy = Sxx * (1 + 1e-10 * np.triu(np.ones((5, 5)), 1))
    np.testing.assert_allclose(jl.modes(noisy, Syx).rho, jl.modes(Sxx, Syx).rho, atol=1e-8)


def test_settings_of_the_modes_are_checked():
    Sxx, Syx, _ = _pair(3)
    with pytest.raises(ConfigError):
        jl.modes(Sxx, Syx, basis="ica")
    with pytest.raises(ConfigError):
        jl.modes(Sxx, Syx, ridge=-1.0)


def test_badly_scaled_features_keep_their_digits():
    # Ages and incomes: variances eight decades apart, correlated.
    Sxx, Syx, _ = _pair(4)
    units = np.array([1.0, 1e-2, 1e2, 1e-2])
    plain = jl.regression_eigenvalues(Sxx, (Syx + Syx.T) / 2).real
    scaled = jl.modes(units * Sxx * units[:, None], units * Syx * units[:, None])
    np.testing.assert_allclose(scaled.rho, plain, rtol=1e-12)
