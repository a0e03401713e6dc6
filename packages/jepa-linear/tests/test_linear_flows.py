"""Gradient flow and descent of whole matrices: golden runs, gradients, symmetries, invariants."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import jepa_linear as jl
from jepa_core.errors import ConfigError, DataError, RunError


def _case(stored, case):
    return {k[4:]: stored[k] for k in stored.files if k.startswith(f"c{case:02d}_")}


def _kind(golden, Syy, rate, name):
    kind = str(golden["kind"])
    setting = {"objective": "mae" if kind == "mae" else "jepa"}
    if kind == "nosg":
        setting |= {"target": "none", "Syy": Syy}
    if not math.isnan(rate):
        setting |= {"target": "ema", name: float(rate)}
    return setting


def _commuting(d=4, seed=0, low=0.5, high=1.0):
    """Sxx, Syx and the modes behind them."""
    rng = np.random.default_rng(seed)
    lam, rho = rng.uniform(low, high, (2, d))
    turn = jl.random_rotation(d, rng)
    return turn * (lam / rho) @ turn.T, turn * lam @ turn.T, lam, rho, turn


def _general(d=4, seed=0):
    rng = np.random.default_rng(seed)
    joint = rng.standard_normal((2 * d, 6 * d))
    joint = joint @ joint.T / (6 * d)
    Sxx, Syy = joint[:d, :d], joint[d:, d:]
    return Sxx, joint[d:, :d] + 0.5 * Sxx, Syy + Sxx


@pytest.mark.parametrize("case", range(11))
def test_golden_flows(data, case):
    with np.load(data("linear") / "golden_matrix_flow.npz") as stored:
        golden = _case(stored, case)
    setting = _kind(golden, golden["Syy"], golden["kappa"], "kappa")
    path = jl.flow(
        golden["W0"], golden["V0"], golden["Sxx"], golden["Syx"], golden["tau"], **setting
    )
    np.testing.assert_allclose(path.Wbar, golden["Wbar"], atol=1e-7)
    np.testing.assert_allclose(path.V, golden["V"], atol=1e-7)


@pytest.mark.parametrize("case", range(6))
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_golden_descents(data, case, kind):
    with np.load(data("linear") / "golden_gd.npz") as stored:
        golden = _case(stored, case)
    Sxx, Syx, Syy = jl.covariances(golden["X"], golden["Y"])
    setting = _kind(golden, Syy, golden["m"], "momentum")
    W0, V0 = jl.initial_weights(
        5, int(golden["L"]), layer_scale=float(golden["layer_scale"]), rotate=False
    )
    arrays = [W0, V0, Sxx, Syx]
    if kind == "torch":
        arrays = [torch.from_numpy(a) for a in arrays]
        setting = {k: torch.from_numpy(v) if k == "Syy" else v for k, v in setting.items()}
    every = int(golden["record_every"])
    path = jl.descend(*arrays, lr=float(golden["lr"]), steps=400, record_every=every, **setting)
    np.testing.assert_allclose(np.asarray(path.Wbar), golden["Wbar"], atol=1e-11)
    np.testing.assert_allclose(np.asarray(path.V), golden["V"], atol=1e-11)
    assert path.times.tolist() == list(range(0, 401, every))


@pytest.mark.parametrize("L", [1, 2, 3])
@pytest.mark.parametrize("kind", ["jepa", "mae", "none", "ema"])
@pytest.mark.parametrize("width", [4, 3])
def test_gradients_equal_autograd_through_the_samples(L, kind, width):
    torch.manual_seed(0)
    x, y = torch.randn(2, 50, 4, dtype=torch.float64)
    y = y + 0.5 * x
    sizes = [4] + [width] * L
    layers = [torch.randn(sizes[i + 1], sizes[i], dtype=torch.float64) for i in range(L)]
    target = [torch.randn_like(w) for w in layers]
    V = torch.randn(4 if kind == "mae" else width, width, dtype=torch.float64)
    leaves = [w.requires_grad_() for w in (*layers, V)]

    def encode(z, weights):
        for w in weights:
            z = z @ w.T
        return z

    aim = {
        "jepa": lambda: encode(y, layers).detach(),
        "mae": lambda: y,
        "none": lambda: encode(y, layers),
        "ema": lambda: encode(y, target),
    }[kind]()
    loss = 0.5 * ((encode(x, layers) @ V.T - aim) ** 2).sum(1).mean()
    expected = torch.autograd.grad(loss, leaves)
    moments = [a.T @ b / 50 for a, b in ((x, x), (y, x), (y, y))]
    dW, dV = jl.gradients(
        [w.detach() for w in layers],
        V.detach(),
        *moments[:2],
        objective="mae" if kind == "mae" else "jepa",
        target=kind if kind in ("none", "ema") else "stopgrad",
        Syy=moments[2],
        target_layers=target if kind == "ema" else None,
    )
    for found, one in zip((*dW, dV), expected, strict=True):
        scale = float(one.abs().max())
        np.testing.assert_allclose(found.numpy() / scale, one.numpy() / scale, atol=1e-14)
    product = encode(torch.eye(4, dtype=torch.float64), layers).T.detach()
    found = jl.loss(
        product,
        V.detach(),
        *moments,
        objective="mae" if kind == "mae" else "jepa",
        target=encode(torch.eye(4, dtype=torch.float64), target).T if kind == "ema" else None,
    )
    assert float(found) == pytest.approx(loss.item(), rel=1e-12)


@pytest.mark.parametrize("objective", ["jepa", "mae"])
@pytest.mark.parametrize("L", [1, 2, 3])
def test_an_aligned_start_follows_the_closed_forms_whatever_its_rotations(objective, L):
    Sxx, Syx, lam, rho, turn = _commuting(3, seed=L)
    a0 = 0.3
    W0, V0 = jl.initial_weights(3, L, layer_scale=a0, objective=objective, seed=L)
    star = jl.critical_time(lam, rho, L, layer_scale=a0, objective=objective)
    times = np.linspace(0, 0.999 * star.min() / L, 30)
    path = jl.flow(W0, V0, Sxx, Syx, times, objective=objective)
    w = jl.modal_amplitudes(path.Wbar, path.Wbar[0], turn)
    exact = jl.trajectory(lam, rho, L, layer_scale=a0, times=times * L, objective=objective)
    np.testing.assert_allclose(w.T, exact, rtol=1e-6)
    # Each mode crosses half its plateau at its critical time ...
    crossings = jl.flow(W0, V0, Sxx, Syx, np.sort(star) / L, objective=objective)
    w = jl.modal_amplitudes(crossings.Wbar, path.Wbar[0], turn)
    at_star = np.diagonal(w[:, np.argsort(star)])
    half = 0.5 * jl.fixed_point(rho, L, objective)[np.argsort(star)]
    np.testing.assert_allclose(at_star, half, rtol=1e-4)
    # ... and ends on the plateau.
    rate = L * lam * (rho if objective == "jepa" else rho ** (1 / (L + 1))) ** (2 * L - 1)
    end = star.max() / L + 200 / rate.min()
    late = jl.flow(W0, V0, Sxx, Syx, np.array([end]), objective=objective)
    final = jl.modal_amplitudes(late.Wbar, path.Wbar[0], turn)[0]
    np.testing.assert_allclose(final, jl.fixed_point(rho, L, objective), rtol=1e-8)


@pytest.mark.parametrize("L", [1, 2, 3])
@pytest.mark.parametrize("delta", [0.0, 0.1])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_trained_predictor_has_the_regressions_eigenvalues(L, delta, sign):
    mixing = np.array([[0, 1, -1], [0, 0, 1.0], [0, 0, 0]]) / math.sqrt(6)
    mixing = mixing + sign * mixing.T
    Sxx = np.diag([1.0, 0.9 / 0.7, 0.8 / 0.5])
    Syx = np.diag([1.0, 0.9, 0.8]) + delta * mixing
    W0, V0 = jl.initial_weights(3, L, layer_scale=0.3, rotate=False)
    path = jl.flow(W0, V0, Sxx, Syx, np.array([3e3]))
    np.testing.assert_allclose(
        np.sort_complex(np.linalg.eigvals(path.V[0]) + 0j),
        np.sort_complex(jl.regression_eigenvalues(Sxx, Syx)),
        atol=1e-7,
    )


@pytest.mark.parametrize("kind", ["jepa", "mae", "ema"])
def test_balancedness_is_kept_by_the_flow(kind):
    Sxx, Syx, _ = _general()
    rng = np.random.default_rng(1)
    layers, V0 = 0.5 * rng.standard_normal((3, 4, 4)), 0.5 * rng.standard_normal((4, 4))
    setting = {"target": "ema", "kappa": 0.5} if kind == "ema" else {}
    objective = "mae" if kind == "mae" else "jepa"
    path = jl.flow(layers, V0, Sxx, Syx, np.linspace(0, 5, 6), objective=objective, **setting)
    moved = max(np.abs(w[-1] - w[0]).max() for w in path.layers)
    assert moved > 0.1
    for kept in jl.balancedness(path.layers, path.V):
        np.testing.assert_allclose(kept, np.broadcast_to(kept[0], kept.shape), atol=1e-8)


def test_balancedness_with_the_predictor_is_lost_without_stopgrad():
    Sxx, Syx, Syy = _general()
    rng = np.random.default_rng(1)
    layers, V0 = 0.5 * rng.standard_normal((3, 4, 4)), 0.5 * rng.standard_normal((4, 4))
    path = jl.flow(layers, V0, Sxx, Syx, np.linspace(0, 5, 6), target="none", Syy=Syy)
    *inner, last = jl.balancedness(path.layers, path.V)
    for kept in inner:
        np.testing.assert_allclose(kept, np.broadcast_to(kept[0], kept.shape), atol=1e-8)
    assert np.abs(last[-1] - last[0]).max() > 0.01


def test_descent_drifts_from_balance_by_the_square_of_the_rate():
    Sxx, Syx, _ = _general()
    layers, V0 = jl.initial_weights(4, 2, layer_scale=0.5, seed=1)
    drifts = []
    for lr in (1e-2, 1e-3):
        path = jl.descend(layers, V0, Sxx, Syx, lr=lr, steps=1)
        drifts.append(max(np.abs(b[1] - b[0]).max() for b in jl.balancedness(path.layers, path.V)))
    assert drifts[0] / drifts[1] == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize("objective", ["jepa", "mae"])
def test_rotating_the_features_rotates_the_flow(objective):
    Sxx, Syx, _ = _general()
    turn = jl.random_rotation(4, np.random.default_rng(5))
    W0, V0 = jl.initial_weights(4, 2, layer_scale=0.4, objective=objective, seed=2)
    times = np.linspace(0, 20, 5)
    plain = jl.flow(W0, V0, Sxx, Syx, times, objective=objective)
    # x -> Q x: the first layer reads through Q', the decoder writes through Q.
    W1 = np.stack([W0[0] @ turn.T, W0[1]])
    V1 = turn @ V0 if objective == "mae" else V0
    turned = jl.flow(W1, V1, turn @ Sxx @ turn.T, turn @ Syx @ turn.T, times, objective=objective)
    np.testing.assert_allclose(turned.Wbar, plain.Wbar @ turn.T, atol=1e-8)
    # Not so under general linear maps.
    warp = np.diag([2.0, 1.0, 1.0, 0.5])
    W2 = np.stack([W0[0] @ np.linalg.inv(warp), W0[1]])
    warped = jl.flow(W2, V0, warp @ Sxx @ warp, warp @ Syx @ warp, times, objective="jepa")
    plain = jl.flow(W0, V0, Sxx, Syx, times, objective="jepa")
    assert np.abs(warped.Wbar @ warp - plain.Wbar)[-1].max() > 0.01


@pytest.mark.parametrize("L", [1, 2])
def test_determinants_keep_their_sign_so_half_of_free_draws_lose_a_mode(L):
    Sxx, Syx, _, _, _ = _commuting(3, seed=3, low=0.7)
    learned = {1.0: 0, -1.0: 0}
    for seed in range(6):
        W0, V0 = jl.initial_weights(3, L, layer_scale=0.5, init="orthogonal", det="free", seed=seed)
        path = jl.flow(W0, V0, Sxx, Syx, np.array([0.0, 1e3]))
        sign = float(np.sign(np.linalg.det(V0)))
        assert np.sign(np.linalg.det(path.V[-1])) == sign
        sizes = np.linalg.svd(path.Wbar[-1], compute_uv=False)
        learned[sign] = max(learned[sign], int((sizes > 0.1).sum()))
    assert learned == {1.0: 3, -1.0: 2}


@pytest.mark.parametrize("init", ["orthogonal", "aligned"])
@pytest.mark.parametrize("objective", ["jepa", "mae"])
def test_balanced_starts_are_balanced_and_their_scale_is_eps(init, objective):
    for seed in range(4):
        W0, V0 = jl.initial_weights(
            4, 3, layer_scale=0.3, init=init, objective=objective, seed=seed
        )
        for kept in jl.balancedness(list(W0), V0):
            np.testing.assert_allclose(kept, 0, atol=1e-15)
        product = W0[2] @ W0[1] @ W0[0]
        np.testing.assert_allclose(product @ product.T, 0.3**6 * np.eye(4), atol=1e-15)
        if init == "orthogonal":
            assert np.linalg.det(product) > 0
            assert np.linalg.det(V0) > 0
        elif objective == "jepa":
            np.testing.assert_array_equal(V0, 0.3 * np.eye(4))
        else:
            np.testing.assert_allclose(V0 @ product, 0.3**4 * np.eye(4), atol=1e-15)


def test_a_gaussian_start_is_the_unbalanced_control():
    W0, V0 = jl.initial_weights(60, 2, layer_scale=0.3, init="gaussian")
    assert np.std(W0) == pytest.approx(0.3 / math.sqrt(60), rel=0.03)
    assert np.abs(jl.balancedness(list(W0), V0)[0]).max() > 0.01


@pytest.mark.parametrize(
    ("objective", "L", "lr", "ratio"),
    [
        ("jepa", 2, 0.05, 1.001288),
        ("jepa", 2, 0.005, 1.000129),
        ("jepa", 3, 0.05, 1.000154),
        ("mae", 2, 0.05, 1.012844),
        ("mae", 2, 0.005, 1.001293),
        ("mae", 3, 0.05, 1.007177),
        ("mae", 3, 0.005, 1.000721),
    ],
)
def test_descent_lags_the_flow_by_the_first_order_of_its_rate(objective, L, lr, ratio):
    setting = {"layer_scale": 0.2, "objective": objective}
    star = jl.critical_time(1.0, 0.8, L, **setting) / L
    W0, V0 = jl.initial_weights(1, L, layer_scale=0.2, rotate=False, objective=objective)
    steps = int(1.05 * star / lr) + 5
    path = jl.descend(
        W0, V0, np.array([[1 / 0.8]]), np.array([[1.0]]), lr=lr, steps=steps, objective=objective
    )
    w = path.Wbar[:, 0, 0]
    level = 0.5 * jl.fixed_point(0.8, L, objective)
    after = int(np.argmax(w >= level))
    crossing = after - 1 + (level - w[after - 1]) / (w[after] - w[after - 1])
    assert crossing * lr / star == pytest.approx(ratio, abs=3e-6 + 0.5 * lr / star)
    assert crossing * lr / star > 1


def test_the_lag_of_descent_is_proportional_to_the_rate():
    lags = []
    for lr in (0.02, 0.002):
        W0, V0 = jl.initial_weights(1, 2, layer_scale=0.3, rotate=False)
        star = jl.critical_time(1.0, 0.8, 2, layer_scale=0.3) / 2
        path = jl.descend(
            W0, V0, np.array([[1.25]]), np.array([[1.0]]), lr=lr, steps=int(1.1 * star / lr)
        )
        crossing = np.interp(0.5 * 0.8**2, path.Wbar[:, 0, 0], path.times)
        lags.append(crossing * lr / star - 1)
    assert lags[0] / lags[1] == pytest.approx(10, rel=0.02)


@pytest.mark.parametrize("target", ["stopgrad", "none"])
def test_batches_of_descents_equal_one_at_a_time_in_numpy_and_torch(target):
    problems = [_general(4, seed) for seed in range(6)]
    Sxx, Syx, Syy = (np.stack([p[k] for p in problems]).reshape(2, 3, 4, 4) for k in range(3))
    starts = [jl.initial_weights(4, 2, layer_scale=0.4, seed=s) for s in range(6)]
    W0 = np.stack([w for w, _ in starts]).reshape(2, 3, 2, 4, 4)
    V0 = np.stack([v for _, v in starts]).reshape(2, 3, 4, 4)
    setting = {"lr": 0.02, "steps": 50, "record_every": 25, "target": target}
    found = jl.descend(W0, V0, Sxx, Syx, Syy=Syy, **setting)
    assert found.Wbar.shape == (3, 2, 3, 4, 4)
    assert len(found.layers) == 2
    one = jl.descend(W0[1, 2], V0[1, 2], Sxx[1, 2], Syx[1, 2], Syy=Syy[1, 2], **setting)
    np.testing.assert_allclose(found.Wbar[:, 1, 2], one.Wbar, atol=1e-15)
    tensors = [torch.from_numpy(a) for a in (W0, V0, Sxx, Syx)]
    twin = jl.descend(*tensors, Syy=torch.from_numpy(Syy), **setting)
    np.testing.assert_allclose(twin.Wbar.numpy(), found.Wbar, atol=1e-15)
    np.testing.assert_allclose(twin.V.numpy(), found.V, atol=1e-15)


@pytest.mark.parametrize("objective", ["jepa", "mae"])
def test_a_narrow_encoder_flows_as_it_descends(objective):
    Sxx, Syx, _ = _general(5)
    rng = np.random.default_rng(0)
    layers = [0.4 * rng.standard_normal((3, 5)), 0.4 * rng.standard_normal((3, 3))]
    V0 = 0.4 * rng.standard_normal((5 if objective == "mae" else 3, 3))
    path = jl.flow(layers, V0, Sxx, Syx, np.array([0.0, 1.0]), objective=objective)
    assert path.Wbar.shape == (2, 3, 5)
    steps = jl.descend(
        layers, V0, Sxx, Syx, lr=1e-4, steps=10_000, record_every=10_000, objective=objective
    )
    np.testing.assert_allclose(path.Wbar[-1], steps.Wbar[-1], atol=1e-3)


def test_a_frozen_predictor_stays():
    Sxx, Syx, lam, rho, turn = _commuting(3, low=0.6, high=0.9)
    W0, _ = jl.initial_weights(3, 2, layer_scale=0.5, rotate=False)
    setting = {"predictor": "fixed"}
    path = jl.flow(W0, np.eye(3), Sxx, Syx, np.linspace(0, 3, 4), **setting)
    steps = jl.descend(W0, np.eye(3), Sxx, Syx, lr=0.001, steps=3000, record_every=1000, **setting)
    np.testing.assert_array_equal(path.V[-1], np.eye(3))
    np.testing.assert_array_equal(steps.V[-1], np.eye(3))
    np.testing.assert_allclose(path.Wbar, steps.Wbar, atol=1e-3)
    modal = jl.modal_flow(lam, rho, 2, layer_scale=0.5, times=path.times, predictor="fixed")
    amplitudes = jl.modal_amplitudes(path.Wbar, path.Wbar[0], turn)
    np.testing.assert_allclose(amplitudes, modal.w.T, atol=1e-8)


def test_an_ema_target_is_returned_and_lags():
    Sxx, Syx, _ = _general()
    W0, V0 = jl.initial_weights(4, 2, layer_scale=0.4)
    path = jl.descend(W0, V0, Sxx, Syx, lr=0.05, steps=20, target="ema", momentum=0.9)
    frozen = jl.descend(W0, V0, Sxx, Syx, lr=0.05, steps=20, target="ema", momentum=1.0)
    plain = jl.descend(W0, V0, Sxx, Syx, lr=0.05, steps=20, target="ema", momentum=0.0)
    none = jl.descend(W0, V0, Sxx, Syx, lr=0.05, steps=20)
    np.testing.assert_array_equal(frozen.target, np.broadcast_to(W0[1] @ W0[0], (21, 4, 4)))
    np.testing.assert_allclose(plain.Wbar, none.Wbar, atol=1e-15)
    moved = np.linalg.norm(path.Wbar - path.Wbar[0], axis=(1, 2))
    behind = np.linalg.norm(path.target - path.Wbar[0], axis=(1, 2))
    assert np.all(behind[1:] < moved[1:])


def test_divergence_is_an_error_that_names_the_rate():
    Sxx, Syx, _ = _general()
    W0, V0 = jl.initial_weights(4, 2, layer_scale=0.5)
    with (
        np.errstate(over="ignore", invalid="ignore"),
        pytest.raises(RunError, match=r"not finite at step 100.*learning rate"),
    ):
        jl.descend(W0, V0, Sxx, Syx, lr=50.0, steps=1000, objective="mae")
    path = jl.descend(W0, V0, Sxx, Syx, lr=jl.stable_rate(Sxx), steps=3000, record_every=3000)
    assert np.isfinite(path.Wbar).all()


def test_covariances_are_centred_and_divided_by_the_number_of_rows():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 30, 3)) + 5
    Sxx, Syx, Syy = jl.covariances(x, y)
    joint = np.cov(x.T, y.T, ddof=0)
    np.testing.assert_allclose(Sxx, joint[:3, :3], atol=1e-14)
    np.testing.assert_allclose(Syx, joint[3:, :3], atol=1e-14)
    np.testing.assert_allclose(Syy, joint[3:, 3:], atol=1e-14)
    unbiased = jl.covariances(x, y, ddof=1)
    np.testing.assert_allclose(unbiased[0], Sxx * 30 / 29, atol=1e-14)
    with pytest.raises(DataError, match="one encoder"):
        jl.covariances(x, y[:, :2])
    with pytest.raises(DataError, match="1 rows"):
        jl.covariances(x[:1], y[:1])


@pytest.mark.parametrize(
    "change",
    [
        {"objective": "vae"},
        {"target": "momentum"},
        {"predictor": "none"},
        {"objective": "mae", "target": "none"},
        {"target": "none"},
        {"target": "ema"},
        {"kappa": 1.0},
        {"times": [1.0, 0.5]},
        {"times": [-1.0]},
        {"times": []},
        {"W0": np.eye(3)},
    ],
)
def test_settings_of_the_flow_are_checked(change):
    Sxx, Syx, _ = _general(3)
    W0, V0 = jl.initial_weights(3, 2, layer_scale=0.5)
    given = {"W0": W0, "V0": V0, "Sxx": Sxx, "Syx": Syx, "times": np.array([1.0]), **change}
    with pytest.raises(ConfigError):
        jl.flow(**given)


@pytest.mark.parametrize(
    "change", [{"lr": 0.0}, {"steps": -1}, {"record_every": 0}, {"momentum": 0.9}]
)
def test_settings_of_the_descent_are_checked(change):
    Sxx, Syx, _ = _general(3)
    W0, V0 = jl.initial_weights(3, 2, layer_scale=0.5)
    with pytest.raises(ConfigError):
        jl.descend(W0, V0, Sxx, Syx, **{"lr": 0.1, "steps": 1, **change})


def test_shapes_that_do_not_chain_are_refused():
    Sxx, Syx, _ = _general(3)
    W0, V0 = jl.initial_weights(4, 2, layer_scale=0.5)
    with pytest.raises(DataError, match="do not chain"):
        jl.flow(W0, V0, Sxx, Syx, np.array([1.0]))
    with pytest.raises(DataError, match="differ"):
        jl.flow(W0, V0, np.eye(4), Syx, np.array([1.0]))
    with pytest.raises(ConfigError):
        jl.initial_weights(3, 0, layer_scale=0.5)
    with pytest.raises(ConfigError):
        jl.initial_weights(3, 2, layer_scale=0.5, init="xavier")
