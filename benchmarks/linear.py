"""The exact dynamics of deep linear JEPAs: curves, critical times, flows of whole matrices.

Curves against SciPy's integrator, one mode at a time, as one would write it; its tolerance lets it
differ by up to 1e-3 of the plateau at the jump, where the closed form is exact. Critical times
against the formulas as written, one power and one complex logarithm at a time; their share of peak
is the bytes they cannot do without (lambda and rho read, t* written) per second over those of a
plain copy. A step of gradient descent against autograd through the samples, and its cost against
width and depth as slopes of ln time: 3 would be matrix products alone, 1 one product more a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp

from benchmarks.harness import Contender, Copy, Gemm, Row, compare, equal_outputs, main
from jepa_linear import (
    covariances,
    critical_time,
    curve,
    descend,
    fixed_point,
    gradients,
    initial_weights,
    trajectory,
)

SCALE = 0.1


def run(quick: bool = False) -> list[Row]:
    return [
        *_curves(8 if quick else 200),
        *_times(10_000 if quick else 1_000_000, (2,) if quick else (2, 3, 5, 8)),
        *_steps(quick),
        *_slopes(quick),
    ]


def _modes(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.uniform(0.2, 4.0, count), rng.uniform(0.2, 1.5, count)


def _curves(count: int) -> list[Row]:
    """w of many modes at 200 times around their own jump."""
    rows = []
    lam, rho = _modes(count)
    depth = 3
    for objective in ("jepa", "mae"):
        setting: dict[str, Any] = {"layer_scale": SCALE, "objective": objective}
        star = critical_time(lam, rho, depth, **setting)
        times = star[:, None] * np.linspace(0.0, 1.5, 200)
        contenders: dict[str, Contender] = {
            "solve_ivp LSODA, rtol 1e-8": _integrated(lam, rho, times, depth, objective),
            "jepa_linear trajectory": _inverted(lam, rho, times, depth, setting),
        }
        rows += compare(
            f"{count} {objective.upper()} modes at 200 given times, L = {depth}",
            contenders,
            "solve_ivp LSODA, rtol 1e-8",
            check=equal_outputs(contenders, atol=2e-3),
            target=100.0,
        )
    contenders = {
        "solve_ivp LSODA, rtol 1e-8": _integrated(lam, rho, times, depth, "mae"),
        "jepa_linear curve": lambda: curve(
            lam, rho, depth, layer_scale=SCALE, objective="mae", points=400
        ),
    }
    note = {"jepa_linear curve": "400 exact points where the curve bends, not 200 given times"}
    return rows + compare(
        f"{count} MAE modes, a curve each, L = {depth}",
        contenders,
        "solve_ivp LSODA, rtol 1e-8",
        target=100.0,
        notes=note,
    )


def _inverted(
    lam: np.ndarray, rho: np.ndarray, times: np.ndarray, depth: int, setting: dict[str, Any]
) -> Contender:
    plateau = fixed_point(rho, depth, setting["objective"])[:, None]
    return lambda: trajectory(lam, rho, depth, times=times, **setting) / plateau


def _integrated(
    lam: np.ndarray, rho: np.ndarray, times: np.ndarray, depth: int, objective: str
) -> Contender:
    """w / w_inf of every mode from the equation for w, in a loop."""
    power = (3.0 if objective == "jepa" else 2.0) - 1.0 / depth
    end = depth if objective == "jepa" else depth / (depth + 1)

    def slope(_: float, w: np.ndarray, lam: float, rho: float) -> np.ndarray:
        return lam * (w**power - w**3 / rho)

    def solve() -> np.ndarray:
        found = np.empty(times.shape)
        for index, (one_lam, one_rho, moments) in enumerate(zip(lam, rho, times, strict=True)):
            solution: Any = solve_ivp(
                slope,
                (0.0, moments[-1]),
                [SCALE**depth],
                "LSODA",
                moments,
                args=(one_lam, one_rho),
                rtol=1e-8,
                atol=1e-12,
            )
            found[index] = solution.y[0] / one_rho**end
        return found

    return solve


def _times(count: int, depths: tuple[int, ...]) -> list[Row]:
    rows = []
    lam, rho = _modes(count)
    tensors = torch.from_numpy(lam), torch.from_numpy(rho)
    for objective in ("jepa", "mae"):
        for depth in depths:
            setting: dict[str, Any] = {"layer_scale": SCALE, "objective": objective}
            contenders = _solvers(lam, rho, tensors, depth, setting)
            rows += compare(
                f"critical times of {count:,} {objective.upper()} modes, L = {depth}",
                contenders,
                "formula as written",
                check=equal_outputs(contenders, rtol=1e-9),
                work=dict.fromkeys(contenders, 24.0 * count),
                peak=Copy(),
                notes={"formula as written": "neither checks nor statuses"},
            )
    return rows


def _solvers(
    lam: np.ndarray,
    rho: np.ndarray,
    tensors: tuple[torch.Tensor, torch.Tensor],
    depth: int,
    setting: dict[str, Any],
) -> dict[str, Contender]:
    written = _jepa_formula if setting["objective"] == "jepa" else _mae_formula
    return {
        "formula as written": lambda: written(lam, rho, depth),
        "jepa_linear": lambda: critical_time(lam, rho, depth, **setting),
        "jepa_linear, tensors": lambda: critical_time(*tensors, depth, **setting),
    }


def _jepa_formula(lam: np.ndarray, rho: np.ndarray, depth: int) -> np.ndarray:
    s0, s1 = SCALE / rho, 0.5 ** (1 / depth)
    total = np.log(s1 / (1 - s1)) - np.log(s0 / (1 - s0))
    for n in range(1, 2 * depth):
        total = total + (s0**-n - s1**-n) / n
    return depth / lam * rho ** -(2.0 * depth - 1.0) * total


def _mae_formula(lam: np.ndarray, rho: np.ndarray, depth: int) -> np.ndarray:
    limit = rho ** (1 / (depth + 1))
    s0, s1 = SCALE / limit, np.full_like(rho, 0.5 ** (1 / depth))
    roots = 2 * np.pi * np.arange(depth + 1) / (depth + 1)

    def g(s: np.ndarray) -> np.ndarray:
        terms = [np.exp(2j * angle) * np.log(1 - s * np.exp(-1j * angle)) for angle in roots]
        return -np.real(sum(terms)) / (depth + 1)

    if depth == 1:
        total = np.log(s1 / s0) + g(s1) - g(s0)
    else:
        power = 1.0 - depth
        total = (s0**power - s1**power) / (depth - 1) + g(s1) - g(s0)
    return depth / lam * limit ** (1.0 - depth) * total


def _steps(quick: bool) -> list[Row]:
    """One gradient by the covariances against autograd through the samples; batches in one call."""
    n, d, depth = (200, 8, 2) if quick else (10_000, 64, 3)
    torch.manual_seed(0)
    x, y = torch.randn(2, n, d, dtype=torch.float64)
    layers = [torch.randn(d, d, dtype=torch.float64) / d**0.5 for _ in range(depth)]
    V = torch.randn(d, d, dtype=torch.float64) / d**0.5
    x, y = x - x.mean(0), y - y.mean(0)
    Sxx, Syx, _ = covariances(x, y)

    def autograd() -> list[torch.Tensor]:
        leaves = [w.clone().requires_grad_() for w in (*layers, V)]
        out, aim = x, y
        for w in leaves[:-1]:
            out = out @ w.T
            aim = aim @ w.detach().T
        loss = 0.5 * (out @ leaves[-1].T - aim).square().sum(1).mean()
        return list(torch.autograd.grad(loss, leaves))

    def exact() -> list[torch.Tensor]:
        dW, dV = gradients(layers, V, Sxx, Syx)
        return [*dW, dV]

    contenders: dict[str, Contender] = {
        "autograd through the samples": autograd,
        "gradients, from covariances": exact,
    }
    rows = compare(
        f"gradient of a JEPA, {n:,} samples, d = {d}, L = {depth}",
        contenders,
        "autograd through the samples",
        check=equal_outputs(contenders, atol=1e-10),
    )
    batch, width, steps = (4, 4, 10) if quick else (128, 16, 50)
    problems = [initial_weights(width, 2, layer_scale=0.3, seed=seed) for seed in range(batch)]
    W0, V0 = (np.stack(part) for part in zip(*problems, strict=True))
    Sxx_, Syx_ = np.stack([np.eye(width)] * batch), np.stack([0.8 * np.eye(width)] * batch)
    tensors = [torch.from_numpy(value) for value in (W0, V0, Sxx_, Syx_)]
    setting: dict[str, Any] = {"lr": 0.05, "steps": steps, "record_every": steps}
    contenders = {
        "one problem at a time": lambda: np.stack(
            [
                descend(w, v, sxx, syx, **setting).Wbar[-1]
                for w, v, sxx, syx in zip(W0, V0, Sxx_, Syx_, strict=True)
            ]
        ),
        "a batch, NumPy": lambda: descend(W0, V0, Sxx_, Syx_, **setting).Wbar[-1],
        "a batch, torch": lambda: descend(*tensors, **setting).Wbar[-1],
    }
    return rows + compare(
        f"{steps} steps of descent, {batch} problems, d = {width}, L = 2",
        contenders,
        "one problem at a time",
        check=equal_outputs(contenders, atol=1e-14),
    )


def _slopes(quick: bool) -> list[Row]:
    """Cost of a step of the flow against width and depth."""
    widths = (8, 16) if quick else (64, 128, 256, 512)
    depths = (1, 2) if quick else (1, 2, 4, 8, 16)
    by_width = {f"d = {d}": _gradient(d, 3) for d in widths}
    # Products of one step: L - 1 forwards, 3 for V and the miss, 1 for dWbar, 2 (L - 1) backwards.
    flops = {f"d = {d}": 2.0 * d**3 * (3 * 2 + 5) for d in widths}
    peak = Gemm(shapes=((widths[-1],) * 3,), dtype="float64")
    rows = _with_slope(
        compare("a step of the flow, L = 3", by_width, f"d = {widths[-1]}", flops=flops, peak=peak),
        [math.log(d) for d in widths],
    )
    d = widths[1]
    by_depth = {f"L = {L}": _gradient(d, L) for L in depths}
    deep = compare(f"a step of the flow, d = {d}", by_depth, f"L = {depths[-1]}")
    naive: dict[str, Contender] = {
        "products of all layers for each": _naive(d, depths[-1]),
        "prefixes and suffixes": _gradient(d, depths[-1]),
    }
    return [
        *rows,
        *_with_slope(deep, [math.log(L) for L in depths]),
        *compare(
            f"a step of the flow, d = {d}, L = {depths[-1]}",
            naive,
            "products of all layers for each",
            check=equal_outputs(naive, atol=1e-12),
        ),
    ]


def _with_slope(rows: list[Row], sizes: list[float]) -> list[Row]:
    """The slope of ln time between neighbouring sizes, as a note on the larger."""
    found = [rows[0]]
    for before, after, small, large in zip(rows, rows[1:], sizes, sizes[1:], strict=False):
        slope = math.log(after.seconds / before.seconds) / (large - small)
        found.append(replace(after, note=f"slope {slope:.2f} from the size before"))
    return found


def _problem(d: int, depth: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    W0, V0 = initial_weights(d, depth, layer_scale=0.9, seed=rng)
    Sxx = np.eye(d) + 0.1 * np.ones((d, d))
    return list(W0), V0, Sxx, rng.standard_normal((d, d)) / d**0.5


def _gradient(d: int, depth: int) -> Contender:
    layers, V, Sxx, Syx = _problem(d, depth)

    def step() -> list[np.ndarray]:
        dW, dV = gradients(layers, V, Sxx, Syx)
        return [*dW, dV]

    return step


def _naive(d: int, depth: int) -> Callable[[], list[np.ndarray]]:
    layers, V, Sxx, Syx = _problem(d, depth)

    def product(parts: list[np.ndarray]) -> np.ndarray:
        found = np.eye(d)
        for w in parts:
            found = w @ found
        return found

    def step() -> list[np.ndarray]:
        Wbar = product(layers)
        miss = V @ Wbar @ Sxx - Wbar @ Syx
        back = V.T @ miss
        found = [
            product(layers[layer + 1 :]).T @ back @ product(layers[:layer]).T
            for layer in range(depth)
        ]
        return [*found, miss @ Wbar.T]

    return step


if __name__ == "__main__":
    main(run, packages=("scipy",))
