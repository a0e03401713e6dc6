"""Whole matrices on real covariances: are the predicted times what training does?

The prediction is exact where Sxx and Syx commute. Elsewhere directions leak into each other; this
follows the gradient flow of all layers and measures when each direction arrives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import kendalltau

from jepa_core.errors import ConfigError
from jepa_linear.flows import flow
from jepa_linear.modal import Modes
from jepa_linear.parameters import Objective
from jepa_linear.starts import initial_weights, modal_amplitudes
from jepa_linear.times import Status, critical_time, fixed_point, status

# Times between which the weights are looked at.
_LOOKS = 400
# Multiplications a second that are counted on: a slow core.
_RATE = 4e9


@dataclass(frozen=True)
class Simulation:
    """Predicted and measured flow times (paper time / L), one a direction.

    Attributes
    ----------
    predicted, measured
        NaN for directions that are not predicted to grow; measured also where the simulation ended
        before.
    expected
        Directions predicted to grow before the simulation ends.
    tau
        Kendall's tau-b of the two orders over directions with both; NaN below three of them.
    error
        Median relative error of the prediction over the same.
    """

    objective: Objective
    depth: int
    layer_scale: float
    end: float
    predicted: Float[np.ndarray, " modes"]
    measured: Float[np.ndarray, " modes"]
    expected: int
    tau: float
    error: float


def simulate(
    Sxx: Float[np.ndarray, "d d"],
    Syx: Float[np.ndarray, "d d"],
    found: Modes,
    depth: int,
    *,
    layer_scale: float,
    p: float = 0.5,
    objective: Objective = "jepa",
    seconds: float = 30.0,
) -> Simulation:
    """Gradient flow of whole matrices: when each direction reaches p of its plateau.

    Layers start at a0 times the identity. The encoder's strength on direction i is u_i' Wbar v_i,
    where the u are the dual basis of the v.

    Parameters
    ----------
    found
        Modes of these covariances.
    seconds
        Roughly what it may take; slower directions than that allows are left out.

    Raises
    ------
    ConfigError
        Not even the first direction arrives in that time.
    """
    scale = {"layer_scale": layer_scale, "objective": objective}
    code = status(found.lam, found.rho, depth, p=p, sigma2=found.sigma2, **scale)  # type: ignore[arg-type]
    grows = np.asarray(code) == Status.GROWS
    time = critical_time(found.lam, found.rho, depth, p=p, sigma2=found.sigma2, **scale)  # type: ignore[arg-type]
    predicted = np.where(grows, time / depth, np.nan)
    end = _affordable(found, depth, objective, predicted, seconds, len(Sxx))
    if not (predicted <= end).any():
        first = float(np.nanmin(predicted)) if grows.any() else float("inf")
        raise ConfigError(
            f"at depth {depth} and layer scale {layer_scale:g} the first direction comes at flow "
            f"time {first:.3g}, too late to simulate",
            where="--simulate",
            remedy="give a larger --layer-scale (0.3, say) or a smaller --depth",
        )
    W0, V0 = initial_weights(
        len(Sxx), depth, layer_scale=layer_scale, objective=objective, rotate=False
    )
    earliest = float(np.nanmin(predicted))
    times = np.concatenate(([0.0], np.geomspace(earliest / 20, end, _LOOKS)))
    path = flow(W0, V0, Sxx, Syx, times, objective=objective, rtol=1e-8)
    present = found.sigma2 > 0
    strength = np.full((len(times), len(found.lam)), np.nan)
    strength[:, present] = modal_amplitudes(
        np.asarray(path.Wbar), np.asarray(path.Wbar[0]), found.directions[:, present]
    )
    level = p * fixed_point(found.rho, depth, objective)
    measured = np.array(
        [
            _crossing(times, strength[:, i], float(level[i])) if grows[i] else np.nan
            for i in range(len(level))
        ]
    )
    both = grows & np.isfinite(measured)
    tau = kendalltau(predicted[both], measured[both]).statistic if both.sum() > 2 else np.nan
    off = np.abs(predicted[both] / measured[both] - 1)
    return Simulation(
        objective,
        depth,
        layer_scale,
        end,
        predicted,
        measured,
        int((predicted <= end).sum()),
        float(tau),
        float(np.median(off)) if both.any() else float("nan"),
    )


def _affordable(
    found: Modes,
    depth: int,
    objective: Objective,
    predicted: Float[np.ndarray, " modes"],
    seconds: float,
    d: int,
) -> float:
    """Flow time until which the integrator needs about that many seconds."""
    grown = np.isfinite(predicted)
    if not grown.any():
        return 0.0
    rho = np.where(grown, found.rho, 1.0)
    end = rho if objective == "jepa" else rho ** (1 / (depth + 1))
    power = 2 * depth if objective == "jepa" else 2 * depth - 2
    # Curvature at the plateau, where an explicit step is bounded by about 3 / curvature.
    bend = found.sigma2 * end**power * (1 if objective == "jepa" else depth + 1)
    steepest = float(np.where(grown, bend, 0.0).max())
    one = 12 * ((4 * depth + 4) * 2 * d**3 / _RATE + 1e-4)
    steps = max(seconds / one, 200.0)
    return min(1.5 * float(np.nanmax(predicted)), 3 * steps / steepest)


def _crossing(
    times: Float[np.ndarray, " steps"], values: Float[np.ndarray, " steps"], level: float
) -> float:
    above = np.flatnonzero(values >= level)
    if not above.size or above[0] == 0:
        return float("nan")
    i = int(above[0])
    share = (level - values[i - 1]) / (values[i] - values[i - 1])
    return float(times[i - 1] + share * (times[i] - times[i - 1]))
