"""Tables and JSON of an analysis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jepa_core.config import to_dict
from jepa_core.report import Table
from jepa_core.report.table import interval
from jepa_linear.analysis import Analysis
from jepa_linear.orders import Order, Side
from jepa_linear.simulate import Simulation
from jepa_linear.times import Status
from jepa_linear.verdict import advice, preparation

Row = list[str | float | int | None]

_READING = (
    "JEPA, MAE: place in the order. P: probability that a direction comes before the next one of "
    "that order."
)
_SIMULATION = (
    "Directions are those of all rows; layers start at a0 times the identity. Arrive: at their "
    "share p of the plateau, of those expected before the simulation ends."
)


def summary_table(found: Analysis) -> Table:
    """One row a depth: what grows, how the two orders compare."""
    rows: list[Row] = []
    for one in found.orders:
        moved = "–"
        if one.moved >= 0:
            ranks = (one.jepa.rank[one.moved], one.mae.rank[one.moved])
            moved = f"{found.names[one.moved]}: {ranks[0]:g} | {ranks[1]:g}"
        rows.append(
            [
                one.depth,
                f"{one.layer_scale:.3g}",
                _both(one, Status.GROWS),
                _both(one, Status.STARTS_PAST),
                _both(one, Status.SUPPRESSED),
                _both(one, Status.DEAD),
                _number(one.tau, ".3f"),
                _number(one.plateau_tau, ".3f"),
                moved,
            ]
        )
    beside = (
        f"; beside it by a share {found.config.p:g} of each direction's own plateau"
        if found.config.level == "absolute"
        else ""
    )
    reading = (
        f"tau: Kendall's tau-b over directions that grow under both, by {_level(found)}{beside}. "
        f"Scales: {found.config.fixed}."
    )
    return Table(
        "Orders of the two objectives, JEPA | MAE",
        (
            "L",
            "a0",
            "grow",
            "start past",
            "suppressed",
            "dead",
            "tau",
            "tau, own plateau",
            "moves most, rank",
        ),
        rows,
        notes=(reading,),
    )


def order_table(
    found: Analysis, one: Order, most: int | None = None, lr: float | None = None
) -> Table:
    """Directions in the JEPA's order at one depth, with the times of both objectives.

    Parameters
    ----------
    most
        At most this many rows.
    lr
        Learning rate: times then are steps of gradient descent.
    """
    unit = 1.0 if lr is None else 1 / (one.depth * lr)
    shown = one.jepa.order if most is None else one.jepa.order[:most]
    rows: list[Row] = [
        [
            *(_number(side.rank[i], "g") for side in one.sides()),
            found.names[i],
            _number(found.rho[i], ".3f"),
            _number(found.lam[i], ".3g"),
            *(_time(side, i, unit) for side in one.sides()),
            *(_number(side.next_probability[i], ".2f") for side in one.sides()),
        ]
        for i in map(int, shown)
    ]
    what = "time" if lr is None else "steps"
    left = len(one.jepa.order) - len(rows)
    more = [f"{left} more directions are in analysis.json."] if left else []
    return Table(
        f"L = {one.depth}, a0 = {one.layer_scale:.3g}: what comes first",
        (
            "JEPA",
            "MAE",
            "direction",
            "rho",
            "lambda",
            f"JEPA {what}",
            f"MAE {what}",
            "JEPA P",
            "MAE P",
        ),
        rows,
        notes=(_READING, *more),
    )


def details_table(found: Analysis, one: Order, most: int | None = None) -> Table:
    """What else is known of each direction at one depth, in the JEPA's order."""
    shown = one.jepa.order if most is None else one.jepa.order[:most]
    rows: list[Row] = [
        [
            found.names[i],
            *(Status(int(side.status[i])).label for side in one.sides()),
            *(_number(side.plateau_rank[i], "g") for side in one.sides()),
            *(_number(side.plateau_time[i], ".4g") for side in one.sides()),
            *(_number(side.eta[i], "+.2f") for side in one.sides()),
            *(_span(side, i) for side in one.sides()),
        ]
        for i in map(int, shown)
    ]
    reading = (
        f"Status, place and time: when each direction is judged by a share {found.config.p:g} of "
        "its own plateau. eta: d ln time / d ln rho. 95 %: interval of the time one table above."
    )
    return Table(
        f"L = {one.depth}: by each direction's own plateau, sensitivity, intervals",
        (
            "direction",
            "JEPA",
            "MAE",
            "JEPA place",
            "MAE place",
            "JEPA time",
            "MAE time",
            "JEPA eta",
            "MAE eta",
            "JEPA 95 %",
            "MAE 95 %",
        ),
        rows,
        notes=(reading,),
    )


def _span(side: Side, i: int) -> str | None:
    if np.isnan(side.low[i]):
        return None
    high = f"{side.high[i]:.3g}" if np.isfinite(side.high[i]) else "never"
    return f"{side.low[i]:.3g} to {high}"


def directions_table(found: Analysis, most: int | None = None) -> Table:
    """The directions themselves: what they are made of, and their parameters."""
    rows: list[Row] = []
    count = len(found.lam) if most is None else min(most, len(found.lam))
    for i in range(count):
        rho = _number(found.rho[i], ".3f")
        if np.isfinite(found.rho_low[i]):
            rho = interval(found.rho[i], found.rho_low[i], found.rho_high[i])
        rows.append(
            [
                f"#{i + 1}",
                ", ".join(found.loadings(i)),
                rho,
                _number(found.modes.rho[i], ".3f"),
                _number(found.lam[i], ".3g"),
                _number(found.sigma2[i], ".3g"),
                _number(100 * found.share[i], ".2f"),
                _number(found.correlation[i], ".3f"),
            ]
        )
    measured = "held out" if found.held_out else "all rows"
    return Table(
        "Directions, by the rho of the rows they were found on",
        (
            "direction",
            "made of",
            f"rho, {measured}",
            "rho, fitted",
            "lambda",
            "variance",
            "% of variance",
            "correlation",
        ),
        rows,
    )


def simulation_table(found: Sequence[Simulation]) -> Table:
    """Predicted against simulated arrivals."""
    rows: list[Row] = [
        [
            one.depth,
            one.objective.upper(),
            f"{one.layer_scale:.3g}",
            f"{int(np.isfinite(one.measured).sum())} of {one.expected}",
            _number(one.tau, ".2f"),
            _number(100 * one.error, ".1f"),
        ]
        for one in found
    ]
    return Table(
        "Simulation: gradient flow of whole matrices on these covariances",
        ("L", "objective", "a0", "arrive", "tau", "% off, median"),
        rows,
        notes=(_SIMULATION,),
    )


def to_json(found: Analysis, simulations: Sequence[Simulation] = ()) -> dict[str, Any]:
    """Everything that was found, JSON-able; what is not finite is null."""
    m = found.modes
    return {
        "verdict": found.verdict,
        "trust": found.trust,
        "advice": advice(found),
        "preparation": preparation(found),
        "warnings": list(found.warnings),
        "config": to_dict(found.config),
        "features": list(found.views.names),
        "n": found.views.n,
        "held_out": found.held_out,
        "dropped": found.views.dropped,
        "constant": list(found.views.constant),
        "scaling": found.views.scaling,
        "measures": {
            "asymmetry": float(m.asymmetry),
            "commutator": float(m.commutator),
            "direction_condition": float(m.direction_condition),
            "off_diagonal": float(m.off_diagonal),
            "rank": int(m.rank),
        },
        "directions": {
            "vectors": _list(m.directions.T),
            "names": list(found.names),
            "rho": _list(found.rho),
            "rho_low": _list(found.rho_low),
            "rho_high": _list(found.rho_high),
            "rho_fitted": _list(m.rho),
            "lambda": _list(found.lam),
            "sigma2": _list(found.sigma2),
            "share": _list(found.share),
            "correlation": _list(found.correlation),
            "cluster": _list(m.clusters),
        },
        "orders": [
            {
                "depth": one.depth,
                "layer_scale": one.layer_scale,
                "tau": _finite(one.tau),
                "plateau_tau": _finite(one.plateau_tau),
                "inversions": [
                    {"first": p.first, "second": p.second, "probability": _finite(p.probability)}
                    for p in one.inversions
                ],
                **{side.objective: _side(side) for side in one.sides()},
            }
            for one in found.orders
        ],
        "simulations": [
            {
                "depth": one.depth,
                "objective": one.objective,
                "layer_scale": one.layer_scale,
                "end": one.end,
                "tau": _finite(one.tau),
                "error": _finite(one.error),
                "predicted": _list(one.predicted),
                "measured": _list(one.measured),
            }
            for one in simulations
        ],
    }


def _side(side: Side) -> dict[str, Any]:
    return {
        "reached": _finite(side.reached),
        "status": [Status(code).label for code in side.status],
        "time": _list(side.time),
        "low": _list(side.low),
        "high": _list(side.high),
        "never": _list(side.never),
        "rank": _list(side.rank),
        "plateau_time": _list(side.plateau_time),
        "plateau_rank": _list(side.plateau_rank),
        "eta": _list(side.eta),
        "order": _list(side.order),
        "next_probability": _list(side.next_probability),
        "needed": _finite(side.needed),
    }


def _list(values: Float[np.ndarray, "..."]) -> Any:
    if values.ndim > 1:
        return [_list(row) for row in values]
    return [_finite(value) for value in values.tolist()]


def _finite(value: Any) -> Any:
    return value if not isinstance(value, float) or math.isfinite(value) else None


def _number(value: float, form: str) -> str | None:
    return format(float(value), form) if np.isfinite(value) else None


def _time(side: Side, i: int, unit: float) -> str:
    if side.grows[i]:
        return f"{side.time[i] * unit:.4g}"
    code = Status(int(side.status[i]))
    if code in (Status.GROWS, Status.STARTS_PAST) and np.isinf(side.time[i]):
        return "stays below"
    return code.label


def _both(one: Order, code: Status) -> str:
    return f"{one.jepa.count(code)} | {one.mae.count(code)}"


def _level(found: Analysis) -> str:
    if found.config.level == "plateau":
        return f"a share {found.config.p:g} of each direction's own plateau"
    if found.config.reached is not None:
        return f"the time at which every layer reaches {found.config.reached:g} on a direction"
    return "the time at which a layer reaches half of the largest plateau on a direction"
