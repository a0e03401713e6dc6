"""The theory against whole matrices: descent, generated views, leakage, collapse."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from jepa_core.run import Run
from jepa_linear.dynamics import trajectory
from jepa_linear.experiments.theory import LAYER_SCALE, NAMES, OBJECTIVES
from jepa_linear.figures import save
from jepa_linear.flows import descend
from jepa_linear.generative import leakage_path, temporal_model
from jepa_linear.panels import (
    collapse_figure,
    descent_figure,
    leakage_figure,
    phase_figure,
    views_figure,
)
from jepa_linear.starts import initial_weights, modal_amplitudes, random_rotation
from jepa_linear.sweep import phase_diagram
from jepa_linear.times import critical_time
from jepa_linear.variants import crossing_time, modal_flow

_VIEWS_DEPTH = 3


def save_descent(run: Run, *, d: int = 6, depth: int = 2, seed: int = 0) -> dict[str, float]:
    """Draw one gradient descent of rotated matrices over the formula; the largest differences.

    The difference is relative to the plateau, over all modes and steps.
    """
    rng = np.random.default_rng(seed)
    lam, rho = np.linspace(1.0, 0.5, d), np.linspace(0.9, 0.6, d)
    U = random_rotation(d, rng)
    Sxx, Syx = (U * (lam / rho)) @ U.T, (U * lam) @ U.T
    lr, scale, steps, every = 0.02, 0.3, 7200, 12
    predicted, measured, largest = {}, {}, {}
    times = np.zeros(0)
    for objective in OBJECTIVES:
        W0, V0 = initial_weights(d, depth, layer_scale=scale, objective=objective, seed=rng)
        path = descend(
            W0, V0, Sxx, Syx, lr=lr, steps=steps, objective=objective, record_every=every
        )
        name = f"{NAMES[objective]}, L = {depth}"
        times = path.times
        w = modal_amplitudes(np.asarray(path.Wbar), np.asarray(path.Wbar[0]), U).T
        exact = trajectory(
            lam, rho, depth, layer_scale=scale, objective=objective, times=times * lr * depth
        )
        predicted[name], measured[name] = exact, w
        largest[name] = float(np.abs(w - exact).max() / exact.max())
    shown = slice(0, len(times) // 2)
    save(
        run,
        "5-descent",
        descent_figure(
            times[shown],
            {name: curve[:, shown] for name, curve in predicted.items()},
            {name: dots[:, shown] for name, dots in measured.items()},
            [f"lambda {a:.1f}, rho {b:.2f}" for a, b in zip(lam, rho, strict=True)],
        ),
        f"Gradient descent of whole matrices (dots; d = {d}, rotated layers, a0 = {scale:g}, "
        f"learning rate {lr:g}) on the exact solution of each mode (lines).",
        steps=times,
        predicted=np.stack(list(predicted.values())),
        measured=np.stack(list(measured.values())),
    )
    return largest


def save_views(run: Run, points: int = 80) -> None:
    """Draw critical times against what makes the views: memory, noise, share of features kept."""
    L = _VIEWS_DEPTH
    memory = np.linspace(0.05, 0.995, points)
    noise = np.geomspace(0.01, 8, points)
    keep = np.linspace(0.05, 1.0, points)
    slow = temporal_model(memory[:, None], np.ones(1), np.full(1, 0.1))
    noisy = temporal_model(np.full(1, 0.95), np.ones(1), noise[:, None])
    ring = _ring_modes(keep)
    sweeps = []
    arrays: dict[str, np.ndarray] = {}
    for title, label, values, lam, rho in (
        ("a series: memory", "g, autocorrelation", memory, slow.lam[:, 0], slow.rho[:, 0]),
        ("a series: noise", "N, variance of the noise", noise, noisy.lam[:, 0], noisy.rho[:, 0]),
        ("random masks: top mode", "q, share kept", keep, *ring),
    ):
        lines = {}
        for objective in OBJECTIVES:
            time = critical_time(lam, rho, L, layer_scale=LAYER_SCALE, objective=objective)
            lines[NAMES[objective]] = np.where(time > 0, time, np.nan)
        sweeps.append((title, label, values, lines))
        key = label[0].lower()
        arrays |= {f"{key}": values} | {f"{key}_{n}".lower(): t for n, t in lines.items()}
    save(
        run,
        "6-views",
        views_figure(sweeps),
        f"Critical time of one mode at L = {L}, a0 = {LAYER_SCALE:g} against what makes the views: "
        "autocorrelation and noise of a series with lag 1 (signal variance 1), and the share of "
        "features that a random mask keeps (16 features on a ring, target: the whole row).",
        **arrays,
    )


def _ring_modes(keep: Float[np.ndarray, " points"], d: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """lambda and rho of the strongest mode of a ring of features, spectrum 1 / (1 + k)^2."""
    frequency = np.minimum(np.arange(d), d - np.arange(d))
    spectrum = 1 / (1.0 + frequency) ** 2
    top = spectrum.max() / spectrum.mean()
    # All features have variance 1, so masks commute with the covariance.
    return keep * top, top / (keep * top + (1 - keep))


def save_leakage(run: Run, depths: tuple[int, ...] = (1, 2, 3)) -> dict[int, float]:
    """Draw the leakage between modes against what does not commute; its slope in delta by depth."""
    lam, rho, scale = np.array([1.0, 0.9, 0.8]), np.array([0.9, 0.7, 0.5]), 0.3
    mixing = (np.ones((3, 3)) - np.eye(3)) / np.sqrt(6)
    delta = np.geomspace(1e-4, 3e-2, 6)
    found, slope = {}, {}
    for L in depths:
        arrival = critical_time(lam, rho, L, layer_scale=scale)
        last = arrival[np.isfinite(arrival)].max() / L
        times = np.linspace(0, 1.5 * last + 1, 300)
        found[f"L = {L}"] = np.array(
            [
                leakage_path(lam, rho, size * mixing, L, layer_scale=scale, times=times).max()
                for size in delta
            ]
        )
        slope[L] = float(found[f"L = {L}"][0] / delta[0])
    save(
        run,
        "7-leakage",
        leakage_figure(delta, found),
        "Largest share of the encoder that mixes modes, against the size of a symmetric part of "
        "Syx that does not commute with Sxx. It is proportional to delta, more so with depth.",
        delta=delta,
        **{name.replace(" = ", ""): values for name, values in found.items()},
    )
    return slope


def save_collapse(run: Run) -> dict[float, float]:
    """Draw the collapse without StopGrad and the delay by an EMA target; the delay by kappa."""
    times = np.geomspace(0.1, 3e3, 160)
    collapse = {}
    for L in (1, 2, 3):
        # y is as variable as x and not perfectly predictable.
        path = modal_flow(1.0, 0.8, L, layer_scale=0.5, times=times, target="none", syy=1.25)
        w = path.w / 0.5**L
        collapse[f"L = {L}"] = (times, np.where(w > 1e-4, w, np.nan))
    kappa = np.geomspace(0.01, 100, 9)
    plain = crossing_time(1.0, 0.8, 2, layer_scale=0.2)
    delay = np.array([crossing_time(1.0, 0.8, 2, layer_scale=0.2, kappa=k) for k in kappa]) / plain
    save(
        run,
        "8-collapse",
        collapse_figure(collapse, kappa, delay),
        "Left: without StopGrad the encoder shrinks to nothing (lambda 1, rho 0.8, a0 0.5; y is "
        "not perfectly predictable). Right: an EMA target ends at the same plateau, later.",
        times=times,
        kappa=kappa,
        delay=delay,
        **{f"w_{name[-1]}": values for name, (_, values) in collapse.items()},
    )
    return dict(zip(kappa.tolist(), delay.tolist(), strict=True))


def save_phases(run: Run, size: int = 160) -> None:
    """Draw who is first over a grid of modes."""
    lam, rho, rho_a = np.geomspace(0.25, 4.0, size), np.linspace(0.1, 2.0, size), 0.5
    depths, scales = (1, 2, 4, 8), (0.1, 0.2)
    found = phase_diagram(lam, rho_a * rho, depths, scales, rho_a=rho_a)
    save(
        run,
        "4-phases",
        phase_figure(
            lam,
            rho,
            np.asarray(found.phases),
            depths,
            [f"a0 = {scale:g}" for scale in scales],
            labels=("lambda_B / lambda_A", "rho_B / rho_A"),
        ),
        "Which of two modes is learned first; mode A has lambda 1 and rho 0.5. Blue and orange: "
        "the two objectives disagree. jepa linear phase draws this at any size.",
        lam=lam,
        rho=rho,
        phases=np.asarray(found.phases),
    )
