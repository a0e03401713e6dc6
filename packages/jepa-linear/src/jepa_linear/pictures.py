"""The pictures of an analysis, each saved with its arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jepa_core.run import Run
from jepa_linear.analysis import Analysis
from jepa_linear.dynamics import trajectory
from jepa_linear.figures import (
    curves_figure,
    ladder_figure,
    plane_figure,
    probability_figure,
    rank_figure,
    save,
    simulation_figure,
)
from jepa_linear.orders import Order, Side
from jepa_linear.sampling import order_probability
from jepa_linear.simulate import Simulation
from jepa_linear.times import critical_time, fixed_point

# Learning curves drawn, and directions whose decay is followed for the effective rank.
_CURVES, _FOLLOWED = 8, 96
_FIRST = 5


def save_pictures(
    run: Run, found: Analysis, simulations: Sequence[Simulation] = (), *, prefix: str = ""
) -> None:
    """Draw what an analysis found, at the depth at which the two orders differ most."""
    one = main_order(found)
    save_plane(run, found, one, prefix)
    save_ladder(run, found, one, prefix)
    save_curves(run, found, one, prefix)
    save_probability(run, found, one, prefix)
    if simulations:
        save_simulation(run, simulations, prefix)


def main_order(found: Analysis) -> Order:
    """The depth to draw: the one with the smallest tau, by either level."""
    taus = [np.nan_to_num([one.tau, one.plateau_tau], nan=np.inf).min() for one in found.orders]
    return found.orders[int(np.argmin(taus))]


def save_plane(run: Run, found: Analysis, one: Order, prefix: str) -> None:
    """Directions in the plane of rho and lambda, with lines of equal time."""
    known = found.rho[found.lam > 0]
    if not known.size:
        return
    grid = np.linspace(min(0.02, known.min()), 1.05 * known.max(), 300)
    unit = {}
    for side, name in zip(one.sides(), ("JEPA", "MAE"), strict=True):
        unit[name] = critical_time(1.0, grid, one.depth, **level_setting(side, one, found))  # type: ignore[arg-type]
    save(
        run,
        f"{prefix}1-plane",
        plane_figure(
            found.rho,
            found.lam,
            found.share,
            {"JEPA": one.jepa.grows, "MAE": one.mae.grows},
            grid,
            unit,
        ),
        f"Every direction at L = {one.depth}, a0 = {one.layer_scale:.3g}: how well x predicts y "
        "along it against what both views share. Size: share of the variance. Hollow: never "
        "learned. Directions on one grey line are learned at the same time; higher lines earlier.",
        rho=found.rho,
        lam=found.lam,
        share=found.share,
        grid=grid,
        unit_time_jepa=unit["JEPA"],
        unit_time_mae=unit["MAE"],
    )


def level_setting(side: Side, one: Order, found: Analysis) -> dict[str, object]:
    """What `critical_time` needs to know of one side of an order."""
    setting: dict[str, object] = {"layer_scale": one.layer_scale, "objective": side.objective}
    if np.isnan(side.reached):
        return setting | {"p": found.config.p}
    return setting | {"level": "absolute", "w1": side.reached**one.depth}


def save_ladder(run: Run, found: Analysis, one: Order, prefix: str) -> None:
    """Ranks of directions under both objectives."""
    ranks = [np.where(side.grows, side.rank, np.nan) for side in one.sides()]
    if not (np.isfinite(ranks[0]) | np.isfinite(ranks[1])).any():
        return
    save(
        run,
        f"{prefix}2-ladder",
        ladder_figure(ranks[0], ranks[1], found.names),
        f"Place of each direction in the order of both objectives at L = {one.depth}, "
        f"a0 = {one.layer_scale:.3g}. Amber: moved by two places or more. Pink: learned by one "
        "objective only.",
        rank_jepa=ranks[0],
        rank_mae=ranks[1],
    )


def save_curves(run: Run, found: Analysis, one: Order, prefix: str) -> None:
    """Learning curves of the first directions, and the effective rank over time."""
    times: dict[str, np.ndarray] = {}
    strength: dict[str, np.ndarray] = {}
    rank: dict[str, np.ndarray] = {}
    first = [int(i) for i in one.jepa.order if one.jepa.grows[i] and one.mae.grows[i]][:_CURVES]
    if not first:
        return
    for side, name in zip(one.sides(), ("JEPA", "MAE"), strict=True):
        arrivals = side.time[side.grows]
        steps = np.geomspace(arrivals.min() / 30, 3 * arrivals.max(), 300)
        w = _trajectories(found, one, side, steps)
        times[name] = steps
        strength[name] = (
            w[first] / fixed_point(found.rho[first], one.depth, side.objective)[:, None]
        )
        rank[name] = effective_rank(w, found.sigma2)
    save(
        run,
        f"{prefix}3-curves",
        curves_figure(times, strength, [found.names[i] for i in first], xlabel="paper time"),
        f"Predicted learning curves of the first {len(first)} directions at L = {one.depth}, "
        f"a0 = {one.layer_scale:.3g}.",
        **{f"times_{name}": values for name, values in times.items()},
        **{f"share_{name}": values for name, values in strength.items()},
    )
    save(
        run,
        f"{prefix}4-rank",
        rank_figure(times, rank, xlabel="paper time"),
        f"Predicted effective rank of the representation at L = {one.depth}.",
        **{f"times_{name}": values for name, values in times.items()},
        **{f"rank_{name}": values for name, values in rank.items()},
    )


def _trajectories(
    found: Analysis, one: Order, side: Side, times: Float[np.ndarray, " steps"]
) -> Float[np.ndarray, "modes steps"]:
    """w of every direction; of a wide table's directions that decay, none."""
    w = np.zeros((len(found.lam), len(times)))
    positive = (found.lam > 0) & (found.sigma2 > 0)
    grows = positive & (
        one.layer_scale**one.depth < fixed_point(found.rho, one.depth, side.objective)
    )
    followed = (found.sigma2 > 0) & (grows | (len(found.lam) <= _FOLLOWED))
    w[followed] = trajectory(
        found.lam[followed],
        found.rho[followed],
        one.depth,
        layer_scale=one.layer_scale,
        objective=side.objective,
        times=times,
        sigma2=found.sigma2[followed],
    )
    return w


def effective_rank(
    w: Float[np.ndarray, "modes steps"], sigma2: Float[np.ndarray, " modes"]
) -> Float[np.ndarray, " steps"]:
    """exp of the entropy of the shares of variance w^2 sigma^2, directions as if orthogonal."""
    power = w**2 * sigma2[:, None]
    share = power / np.maximum(power.sum(axis=0), 1e-300)
    logs = np.log(np.where(share > 0, share, 1.0))
    return np.exp(-(share * logs).sum(axis=0))


def save_probability(run: Run, found: Analysis, one: Order, prefix: str) -> None:
    """How sure the first steps of the JEPA's order are against the number of pairs."""
    row = [int(i) for i in one.jepa.order if one.jepa.grows[i]][:_FIRST]
    if len(row) < 2:
        return
    lam, rho = found.lam[row], found.rho[row]
    V, views = found.modes.directions[:, row], found.views
    syy = None if views.Syy is None else np.einsum("ik,ik->k", V, views.Syy @ V)
    n = np.geomspace(20, max(1e5, 4 * (views.n or 0)), 120)
    setting = level_setting(one.jepa, one, found)
    curves = {}
    table = np.stack(
        [order_probability(lam, rho, size, one.depth, syy=syy, **setting) for size in n]
    )
    for k in range(len(row) - 1):
        curves[f"#{row[k] + 1} before #{row[k + 1] + 1}"] = table[:, k, k + 1]
    save(
        run,
        f"{prefix}5-probability",
        probability_figure(n, curves, found.held_out or views.n),
        f"Probability that a sample shows these directions in the right order under the JEPA at "
        f"L = {one.depth}, by the formula for independent Gaussian pairs.",
        n=n,
        probability=table,
        directions=np.array(row) + 1,
    )


def save_simulation(run: Run, simulations: Sequence[Simulation], prefix: str) -> None:
    """Simulated against predicted times."""
    names = [f"{one.objective.upper()}, L = {one.depth}" for one in simulations]
    save(
        run,
        f"{prefix}6-simulation",
        simulation_figure(
            {name: one.predicted for name, one in zip(names, simulations, strict=True)},
            {name: one.measured for name, one in zip(names, simulations, strict=True)},
            xlabel="predicted flow time",
            ylabel="simulated flow time",
        ),
        "Arrival of each direction in a simulation of whole matrices against the prediction for "
        "each direction alone.",
        **{f"predicted_{i}": one.predicted for i, one in enumerate(simulations)},
        **{f"measured_{i}": one.measured for i, one in enumerate(simulations)},
    )
