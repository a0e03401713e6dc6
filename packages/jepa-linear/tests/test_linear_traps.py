"""Mistakes that are easy to make with this theory, and what they would have said."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

import jepa_linear as jl
from jepa_linear import Status


@pytest.mark.parametrize("L", [1, 2, 3])
def test_the_plateau_is_rho_to_the_depth_for_jepa_and_a_root_for_mae(L):
    # Training reconstruction and calling it JEPA gives rho^(1/2) at L = 1, read as rho^(1/L).
    rho = np.array([0.9, 0.7, 0.5])
    Sxx, Syx = np.diag(1 / rho), np.eye(3)
    ends = {}
    for objective in ("jepa", "mae"):
        W0, V0 = jl.initial_weights(3, L, layer_scale=0.3, objective=objective, rotate=False)
        path = jl.flow(W0, V0, Sxx, Syx, np.array([1e4]), objective=objective)
        ends[objective] = np.diag(path.Wbar[0])
        np.testing.assert_allclose(ends[objective], jl.fixed_point(rho, L, objective), rtol=1e-9)
    np.testing.assert_allclose(ends["jepa"], rho**L, rtol=1e-9)
    np.testing.assert_allclose(ends["mae"], rho ** (L / (L + 1)), rtol=1e-9)
    assert np.abs(ends["jepa"] - rho ** (1 / L)).max() > 0.1 or L == 1
    assert np.abs(ends["mae"] - ends["jepa"]).max() > 0.1


def test_steps_are_paper_time_over_depth_times_rate():
    L, lr = 3, 0.01
    star = jl.critical_time(1.0, 0.8, L, layer_scale=0.3)
    W0, V0 = jl.initial_weights(1, L, layer_scale=0.3, rotate=False)
    path = jl.descend(W0, V0, np.array([[1.25]]), np.array([[1.0]]), lr=lr, steps=int(star / lr))
    crossing = int(np.argmax(path.Wbar[:, 0, 0] >= 0.5 * 0.8**3))
    assert crossing == pytest.approx(star / (L * lr), rel=1e-3)
    assert crossing < 0.4 * star / lr  # without the factor L


def test_an_error_averaged_over_dimensions_is_slower_by_their_number():
    torch.manual_seed(0)
    x, y = torch.randn(2, 40, 5, dtype=torch.float64)
    W, V = torch.randn(2, 5, 5, dtype=torch.float64)
    V.requires_grad_()
    averaged = torch.nn.functional.mse_loss(x @ W.T @ V.T, y @ W.T)
    (gradient,) = torch.autograd.grad(averaged, V)
    _, dV = jl.gradients([W], V.detach(), x.T @ x / 40, y.T @ x / 40)
    np.testing.assert_allclose(gradient.numpy(), 2 / 5 * dV.numpy(), rtol=1e-12)


def test_depths_at_one_eps_and_at_one_layer_scale_are_different_questions():
    depth = np.array([1, 2, 4, 8, 16])
    at_scale = jl.status(1.0, 0.5, depth, layer_scale=0.1)
    at_eps = jl.status(1.0, 0.5, depth, eps=1e-4)
    assert (at_scale == Status.GROWS).all()
    assert at_eps.tolist() == [0, 0, 0, 0, 2]

    def ratio(**scale):
        strong, weak = (jl.critical_time(1.0, r, depth[1:4], **scale) for r in (1.0, 0.5))
        return weak / strong

    assert np.all(np.diff(ratio(layer_scale=0.1)) < 0)
    assert np.all(np.diff(ratio(eps=1e-4)) > 0)


def test_absolute_time_cannot_resolve_a_deep_jump():
    lam, rho, L = 2.0, 1.5, 8
    star = jl.critical_time(lam, rho, L, layer_scale=0.1)
    start, end = (jl.critical_time(lam, rho, L, layer_scale=0.1, p=p) for p in (0.4, 0.6))
    offsets = np.linspace(-0.02, 0.02, 9)
    assert np.spacing(star) > 0.01
    assert end - start <= np.spacing(star)  # the whole jump lies between two doubles
    assert len(np.unique(star + offsets)) < 5
    w = jl.trajectory(lam, rho, L, layer_scale=0.1, times=offsets, origin="critical")
    assert np.all(np.diff(w) > 0)
    assert w[4] == pytest.approx(0.5 * 1.5**8, rel=1e-12)
    steepest = float(jl.rate(w[4], lam, rho, L))
    assert (w[5] - w[3]) / (offsets[5] - offsets[3]) == pytest.approx(steepest, rel=0.1)


def test_modes_above_their_plateau_are_not_learned_first():
    lam = np.array([1.0, 0.9, 0.5, 0.5])
    rho = np.array([0.9, 0.8, 0.05, 0.14])  # two of signal, then noise: suppressed, starts past
    setting = {"layer_scale": 0.1}
    status = jl.status(lam, rho, 2, **setting)
    assert status.tolist() == [Status.GROWS, Status.GROWS, Status.SUPPRESSED, Status.STARTS_PAST]
    times = jl.critical_time(lam, rho, 2, **setting)
    naive = np.argsort(np.where(0.5**0.5 * rho <= 0.1, 0.0, times))
    assert set(naive[:2].tolist()) == {2, 3}
    assert jl.order(lam, rho, 2, **setting).tolist() == [0, 1, 3, 2]


def test_one_layer_has_no_bias_to_influence_at_usable_scales():
    # Equal lambda, rho 1 and 0.5: the noisier mode comes first at L = 1, last from L = 2.
    lam, rho = np.ones(2), np.array([1.0, 0.5])
    assert jl.order(lam, rho, 1, layer_scale=0.1).tolist() == [1, 0]
    assert jl.order(lam, rho, 2, layer_scale=0.1).tolist() == [0, 1]
    assert jl.sensitivity(1.0, 0.8, 1, layer_scale=0.05) > 0


def test_a_bare_qr_decomposition_fixes_the_determinant():
    for d in (2, 3, 4, 5):
        rng = np.random.default_rng(0)
        bare = {round(np.linalg.det(np.linalg.qr(rng.standard_normal((d, d)))[0]))
                for _ in range(30)}  # fmt: skip
        fair = {round(np.linalg.det(jl.random_rotation(d, rng))) for _ in range(30)}
        assert bare == {(-1) ** (d - 1)}
        assert fair == {-1, 1}
    draws = np.array([jl.random_rotation(3, rng)[0, 0] for _ in range(4000)])
    assert draws.mean() == pytest.approx(0, abs=0.03)  # the sphere's first coordinate: uniform
    assert draws.std() == pytest.approx(3**-0.5, abs=0.01)


def test_standardising_makes_the_two_orders_equal():
    g, S, N = np.array([0.95, 0.5, 0.95]), np.array([1, 1.9, 1]), np.array([0.1, 0, 4])
    model = jl.temporal_model(g, S, N)

    def orders(lam, rho):
        return [
            jl.order(lam, rho, 4, layer_scale=0.1, objective=o).tolist() for o in ("jepa", "mae")
        ]

    raw = orders(model.lam, model.rho)
    assert raw[0] != raw[1]
    scored = orders(model.lam / model.sigma2, model.rho)  # unit variances: lambda = rho
    assert scored[0] == scored[1]


def test_in_sample_influence_of_noise_is_large_and_held_out_rows_say_so():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 150, 40))  # nothing to predict at all
    found = jl.held_out(x, y, holdout=0.4)
    assert found.modes.rho.max() > 0.8
    assert (found.modes.rho > 0).sum() == pytest.approx(20, abs=4)
    best = found.modes.rho > 0.3
    assert best.sum() > 8
    assert np.mean(found.rho[best]) == pytest.approx(0, abs=0.1)
    # Many of them would be "learned first" at a0 = 0.1, ahead of true modes of rho = 0.3.
    true_mode = jl.critical_time(0.3, 0.3, 3, layer_scale=0.1)
    star = jl.critical_time(found.modes.lam, found.modes.rho, 3, layer_scale=0.1)
    assert (star < true_mode).sum() > 5


def test_exchanging_the_views_matters_only_where_the_data_rotate():
    turn = np.array([[0.7, -0.4], [0.4, 0.7]])
    symmetric = np.array([[0.7, 0.2], [0.2, 0.5]])
    Sxx = np.diag([1.0, 1.3])
    W0, V0 = jl.initial_weights(2, 2, layer_scale=0.4, rotate=False)

    def trained(Syx):
        return jl.flow(W0, V0, Sxx, Syx, np.array([300.0])).V[0]

    np.testing.assert_array_equal(trained(symmetric), trained(symmetric.T))
    assert np.abs(trained(turn) - trained(turn.T)).max() > 0.3
    # The symmetric part cannot tell: the measure of asymmetry says that it is not the whole.
    plain, exchanged = jl.modes(Sxx, turn), jl.modes(Sxx, turn.T)
    np.testing.assert_allclose(plain.rho, exchanged.rho)
    assert plain.asymmetry == pytest.approx(0.4 / 0.7)
    assert np.abs(jl.regression_eigenvalues(Sxx, turn).imag).max() > 0.3


def test_with_an_ema_target_the_closed_form_is_late_news():
    star = jl.critical_time(1.0, 0.8, 2, layer_scale=0.2) / 2
    assert jl.crossing_time(1.0, 0.8, 2, layer_scale=0.2, kappa=0.1) > 1.4 * star


def test_the_power_sum_alone_is_not_accurate():
    exact = jl.critical_time(1.0, 0.5, 2, layer_scale=0.1)
    power = jl.critical_time(1.0, 0.5, 2, layer_scale=0.1, form="power")
    leading = jl.critical_time(1.0, 0.5, 2, layer_scale=0.1, form="leading")
    assert exact == pytest.approx(929.236992174, rel=1e-11)
    assert abs(power / exact - 1) > 0.005
    assert abs(leading / exact - 1) > 0.25
    one_layer = [jl.critical_time(1.0, 0.5, 1, layer_scale=0.1, form=f) for f in ("exact", "power")]
    assert abs(one_layer[1] / one_layer[0] - 1) > 0.1


@pytest.mark.parametrize("objective", ["jepa", "mae"])
def test_balanced_is_not_aligned(objective):
    lam, rho = np.array([1.0, 0.8, 0.6]), np.array([0.9, 0.8, 0.7])
    star = jl.critical_time(lam, rho, 2, layer_scale=0.3, objective=objective) / 2
    times = np.linspace(0, 2 * star.max(), 600)
    gaps = {}
    for init in ("aligned", "orthogonal"):
        W0, V0 = jl.initial_weights(3, 2, layer_scale=0.3, objective=objective, init=init, seed=1)
        for kept in jl.balancedness(list(W0), V0):
            np.testing.assert_allclose(kept, 0, atol=1e-15)
        path = jl.flow(W0, V0, np.diag(lam / rho), np.diag(lam), times, objective=objective)
        w = np.abs(jl.modal_amplitudes(path.Wbar, path.Wbar[0], np.eye(3)))
        exact = jl.trajectory(lam, rho, 2, layer_scale=0.3, times=2 * times, objective=objective)
        gaps[init] = np.abs(w.T / exact - 1).max()
    assert gaps["aligned"] < 1e-5
    assert gaps["orthogonal"] > 0.2


def test_the_loss_of_a_jepa_is_no_measure_of_progress():
    lam, rho = np.array([1.0, 0.8]), np.array([0.7, 0.6])
    Sxx = np.diag(lam / rho)
    losses = {}
    for objective in ("jepa", "mae"):
        W0, V0 = jl.initial_weights(2, 2, layer_scale=0.2, objective=objective, rotate=False)
        path = jl.flow(W0, V0, Sxx, np.diag(lam), np.linspace(0, 200, 100), objective=objective)
        losses[objective] = jl.loss(path.Wbar, path.V, Sxx, np.diag(lam), Sxx, objective=objective)
    assert np.all(np.diff(losses["mae"]) < 1e-12)
    assert losses["jepa"][-1] > 10 * losses["jepa"][0]  # it learns, and the loss goes up


# Grey 4 x 4 patches of a photograph and the patch to the right, mean variance 1, a0 = 0.3:
# the modal prediction against the flow of whole matrices.
@pytest.mark.parametrize(
    ("case", "objective", "L", "agreement", "error"),
    [
        (0, "jepa", 1, 1.0, 0.10),
        (0, "jepa", 2, 1.0, 0.10),
        (0, "mae", 1, 0.85, 0.16),
        (0, "mae", 2, 0.9, 0.31),
        (1, "jepa", 2, 1.0, 0.25),
        (1, "mae", 1, 1.0, 0.25),
        (1, "mae", 2, 1.0, 0.20),
    ],
)
def test_photographs_are_predicted_as_well_as_their_directions_are_conditioned(
    data, case, objective, L, agreement, error
):
    with np.load(data("linear") / "golden_images.npz") as stored:
        Sxx, Syx = stored[f"c{case:02d}_Sxx"], stored[f"c{case:02d}_Syx"]
    unit = 16 / np.trace(Sxx)
    Sxx, Syx = unit * Sxx, unit * Syx
    found = jl.modes(Sxx, Syx)
    assert found.direction_condition < (2, 3)[case]
    setting = {"layer_scale": 0.3, "objective": objective}
    star = jl.critical_time(found.lam, found.rho, L, **setting)
    grows = jl.status(found.lam, found.rho, L, **setting) == Status.GROWS
    W0, V0 = jl.initial_weights(16, L, layer_scale=0.3, objective=objective, rotate=False)
    times = np.geomspace(star[grows].min() / 30, 3 * star[grows].max(), 3000) / L
    path = jl.flow(W0, V0, Sxx, Syx, times, objective=objective, rtol=1e-7)
    w = jl.modal_amplitudes(path.Wbar, W0[0] if L == 1 else W0[1] @ W0[0], found.directions)
    above = w >= 0.5 * jl.fixed_point(found.rho, L, objective)
    arrived = grows & above.any(0)
    measured = L * times[above.argmax(0)]
    tau = kendalltau(star[arrived], measured[arrived]).statistic
    assert tau >= agreement - 1e-12
    assert np.median(np.abs(measured[arrived] / star[arrived] - 1)) < error
    assert not math.isnan(tau)
