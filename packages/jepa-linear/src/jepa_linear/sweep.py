"""Phase diagrams: which of two modes is learned first, over large grids, on the CPU or a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, get_args

from jaxtyping import Float, Int8

from jepa_core.errors import DataError
from jepa_linear.arrays import Array, together
from jepa_linear.parameters import Objective, choice
from jepa_linear.times import Status, critical_time, status

Fixed = Literal["layer_scale", "eps"]


class Phase(IntEnum):
    """Who learns which of the modes A and B first."""

    BOTH_A = 0
    BOTH_B = 1
    JEPA_B_MAE_A = 2
    JEPA_A_MAE_B = 3
    JEPA_LACKS_ONE = 4
    """One of them is suppressed or dead for the JEPA."""


@dataclass(frozen=True)
class PhaseDiagram:
    """Modes B on a grid beside one mode A.

    Parameters
    ----------
    phases
        `Phase`, [scale, depth, rho, lambda].
    jepa, mae
        ln t*_B - ln t*_A; nan where either does not grow.
    """

    phases: Int8[Array, "scales depths rho lam"]
    jepa: Float[Array, "scales depths rho lam"]
    mae: Float[Array, "scales depths rho lam"]


def phase_diagram(
    lam: Float[Array, "columns"],
    rho: Float[Array, "rows"],
    depths: Sequence[int],
    scales: Sequence[float],
    *,
    lam_a: float = 1.0,
    rho_a: float = 0.5,
    p: float = 0.5,
    fix: Fixed = "layer_scale",
) -> PhaseDiagram:
    """Order of each mode B = (lam, rho) against A = (lam_a, rho_a), by both objectives.

    t* is exactly proportional to 1 / lambda, so every row is one critical time and an addition.
    Modes compare as in `order`: those that grow by t*, then those that start past the level, and so
    on.

    Parameters
    ----------
    lam, rho
        Values of the two axes, positive. torch tensors give tensors on their device.
    scales
        What `fix` names: the layer scale a0, or the encoder's eps = a0^L, the same at all depths.
        The two conventions give different pictures.

    Raises
    ------
    ConfigError, DataError
        For values outside their range.
    """
    choice(fix, get_args(Fixed), "fix")
    xp, (lam_, rho_) = together(lam=lam, rho=rho)
    if not bool((lam_ > 0).all()) or not bool((rho_ > 0).all()):
        raise DataError("an axis is not positive", where="lam, rho")
    log_lam = xp.log(lam_ / lam_a)
    slabs = []
    for scale in scales:
        for depth in depths:
            setting: dict[str, Any] = {fix: scale, "p": p}
            found = {
                objective: _compare(xp, lam_a, rho_a, rho_, log_lam, depth, objective, setting)
                for objective in get_args(Objective)
            }
            slabs.append(_phases(xp, found["jepa"], found["mae"]))
    shape = (len(scales), len(depths), rho_.shape[0], lam_.shape[0])
    return PhaseDiagram(*(xp.stack(part).reshape(shape) for part in zip(*slabs, strict=True)))


def _compare(
    xp: Any,
    lam_a: float,
    rho_a: float,
    rho: Array,
    log_lam: Array,
    depth: int,
    objective: Objective,
    setting: dict[str, Any],
) -> tuple[Array, Array, Array]:
    """(B before A, ln t_B - ln t_A, both arrive) on the grid of one depth and scale."""
    # A and the rows of B in one call, all at lambda of A.
    both = xp.concatenate([xp.full_like(rho[:1], rho_a), rho])
    same = xp.full_like(both, lam_a)
    log_t = critical_time(same, both, depth, objective=objective, log=True, **setting)
    code = status(same, both, depth, objective=objective, **setting)
    grow = (code[1:] == Status.GROWS) & (code[:1] == Status.GROWS)
    apart = xp.where(grow, xp.where(grow, log_t[1:], 0.0) - log_t[:1], float("nan"))
    gap = apart[:, None] - log_lam
    # Where A and B have one status and no times, the larger rho goes first, as in `order`.
    earlier = (code[1:] < code[:1]) | ((code[1:] == code[:1]) & (both[1:] > both[:1]))
    arrive = (code[1:] < Status.SUPPRESSED) & (code[:1] < Status.SUPPRESSED)
    first = xp.where(grow[:, None], gap < 0, earlier[:, None] & (log_lam == log_lam))
    return first, gap, arrive[:, None] & (log_lam == log_lam)


def _phases(
    xp: Any, jepa: tuple[Array, Array, Array], mae: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    first_jepa, gap_jepa, arrive = jepa
    first_mae, gap_mae, _ = mae
    apart = xp.where(first_jepa, int(Phase.JEPA_B_MAE_A), int(Phase.JEPA_A_MAE_B))
    code = xp.where(first_jepa == first_mae, xp.where(first_jepa, 1, 0), apart)
    code = xp.where(arrive, code, int(Phase.JEPA_LACKS_ONE))
    return code.astype("int8") if hasattr(code, "astype") else code.to(xp.int8), gap_jepa, gap_mae
