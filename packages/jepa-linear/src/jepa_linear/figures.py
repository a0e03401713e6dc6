"""Pictures of an analysis: where directions lie, in which order they come, how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from jepa_core.report import pictures
from jepa_core.report.figures import GRID, INK, MARKERS, MUTED, PALETTE, style
from jepa_core.run import Run

JEPA, MAE = PALETTE[0], PALETTE[1]


def save(run: Run, name: str, figure: Figure, caption: str, **arrays: Any) -> Path:
    """Keep a figure in a run with its caption, and the arrays it was drawn from beside it."""
    path = run.figures / f"{name}.svg"
    pictures.save(figure, path, caption)
    if arrays:
        plain: dict[str, Any] = {key: np.asarray(value) for key, value in arrays.items()}
        np.savez(path.with_suffix(".npz"), **plain)
    return path


def panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """A figure with a grid of axes in the report's look; to be used inside `style()`."""
    figure = Figure(figsize=size)
    grid: np.ndarray = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.spines["left"].set_visible(False)
    return figure, grid


def plane_figure(
    rho: Float[np.ndarray, " modes"],
    lam: Float[np.ndarray, " modes"],
    share: Float[np.ndarray, " modes"],
    grows: dict[str, Bool[np.ndarray, " modes"]],
    grid: Float[np.ndarray, " points"],
    unit_times: dict[str, Float[np.ndarray, " points"]],
    *,
    title: str = "",
) -> Figure:
    """Directions in the plane of rho and lambda over lines of equal critical time.

    Parameters
    ----------
    share
        Of the variance: the area of the dots.
    grows
        Of each objective, which directions grow; the others are hollow.
    grid, unit_times
        Values of rho and, of each objective, the time at which lambda = 1 is learned there.
    """
    positive = lam > 0
    with style():
        figure, axes_grid = panels(1, len(grows), (3.4 * len(grows), 3.1))
        for axes, (name, growing) in zip(axes_grid[0], grows.items(), strict=True):
            colour = JEPA if name == "JEPA" else MAE
            times = unit_times[name]
            known = np.isfinite(times) & (times > 0)
            if positive.any():
                low, high = lam[positive].min() / 1.6, lam[positive].max() * 1.6
                typical = float(np.median(rho[positive]))
                middle = (
                    float(np.interp(typical, grid[known], times[known])) if known.any() else 1.0
                )
                for level in np.geomspace(low, high, 6):
                    # Time is proportional to 1 / lambda: one curve gives them all.
                    line = level * times / middle
                    axes.plot(grid[known], line[known], color=GRID, linewidth=1.2, zorder=0.5)
                axes.set_ylim(low, high)
            area = 12 + 240 * np.sqrt(np.maximum(share, 0))
            for chosen, filled in ((growing & positive, True), (~growing & positive, False)):
                axes.scatter(
                    rho[chosen],
                    lam[chosen],
                    s=area[chosen],
                    facecolors=colour if filled else "none",
                    edgecolors=colour,
                    linewidths=1.0,
                    alpha=0.75,
                )
            dead = int((~positive).sum())
            axes.set_yscale("log")
            plain_log(axes.yaxis)
            axes.set_xlabel("rho, how well x predicts y")
            axes.set_title(
                name if not dead else f"{name} ({dead} with lambda <= 0 not shown)", loc="left"
            )
            axes.grid(visible=False)
        axes_grid[0, 0].set_ylabel("lambda, shared covariance")
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    return figure


def ladder_figure(
    jepa: Float[np.ndarray, " modes"],
    mae: Float[np.ndarray, " modes"],
    labels: Sequence[str],
    *,
    most: int = 16,
    title: str = "",
) -> Figure:
    """Ranks of directions under both objectives; a line that crosses another is an inversion.

    Parameters
    ----------
    jepa, mae
        Rank of each direction, 1 first; directions that never come are NaN.
    most
        Of each side, this many of the first are drawn.
    """
    chosen = np.flatnonzero((jepa <= most) | (mae <= most))
    top = float(np.nanmax(np.concatenate((jepa[chosen], mae[chosen], [1.0]))))
    below = top + 1.2
    with style():
        figure, grid = panels(1, 1, (4.6, 0.9 + 0.2 * top))
        axes = grid[0, 0]
        for i in chosen.tolist():
            a, b = jepa[i], mae[i]
            never = np.isnan(a) or np.isnan(b)
            moved = 0 if never else abs(a - b)
            colour = PALETTE[3] if never else PALETTE[4] if moved >= 2 else MUTED
            ends = [below if np.isnan(rank) else rank for rank in (a, b)]
            axes.plot((0, 1), ends, color=colour, linewidth=0.9 + 0.25 * min(moved, 4), alpha=0.9)
            if not np.isnan(a):
                axes.annotate(
                    f"{labels[i]}  {a:g}",
                    (0, a),
                    xytext=(-5, 0),
                    textcoords="offset points",
                    ha="right",
                    va="center",
                    color=INK,
                )
            if not np.isnan(b):
                axes.annotate(
                    f"{b:g}  {labels[i]}",
                    (1, b),
                    xytext=(5, 0),
                    textcoords="offset points",
                    ha="left",
                    va="center",
                    color=INK,
                )
        for x, side, ranks in ((-0.04, "right", jepa), (1.04, "left", mae)):
            if np.isnan(ranks[chosen]).any():
                axes.text(x, below, "never", ha=side, va="center", color=MUTED)
        axes.set(xlim=(-0.9, 1.9), ylim=(below + 0.5, 0.2), xticks=[0, 1], yticks=[])
        axes.set_xticklabels(["JEPA", "MAE"])
        axes.tick_params(axis="x", labelcolor=INK, length=0, labeltop=True, labelbottom=False)
        axes.spines["bottom"].set_visible(False)
        axes.grid(visible=False)
        if title:
            axes.set_title(title, loc="left")
    return figure


def curves_figure(
    times: dict[str, Float[np.ndarray, " steps"]],
    strength: dict[str, Float[np.ndarray, "modes steps"]],
    labels: Sequence[str],
    *,
    xlabel: str = "time",
) -> Figure:
    """Share of its plateau that the encoder has on each direction, over time (logarithmic)."""
    with style():
        figure, grid = panels(1, len(times), (3.7 * len(times), 2.7))
        for axes, name in zip(grid[0], times, strict=True):
            for i, curve in enumerate(strength[name]):
                axes.plot(
                    times[name],
                    curve,
                    color=PALETTE[i % len(PALETTE)],
                    linestyle=("solid", (0, (4, 1.5)))[i // len(PALETTE) % 2],
                    label=labels[i],
                )
            axes.set_xscale("log")
            axes.set(xlabel=xlabel, ylim=(-0.03, 1.06))
            axes.set_title(name, loc="left")
        grid[0, 0].set_ylabel("share of its plateau")
        grid[0, -1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), title="direction")
    return figure


def probability_figure(
    n: Float[np.ndarray, " sizes"],
    probability: dict[str, Float[np.ndarray, " sizes"]],
    here: int | None,
    *,
    target: float = 0.95,
) -> Figure:
    """How sure the order of pairs of directions is against the number of samples."""
    with style():
        figure, grid = panels(1, 1, (5.0, 2.7))
        axes = grid[0, 0]
        for i, (name, curve) in enumerate(probability.items()):
            axes.plot(n, curve, color=PALETTE[i % len(PALETTE)], label=name)
        axes.axhline(target, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        if here is not None:
            axes.axvline(here, color=INK, linewidth=1.0)
            axes.annotate(
                f"n = {here:,}", (here, 0.5), xytext=(4, 3), textcoords="offset points", color=INK
            )
        axes.set_xscale("log")
        axes.set(xlabel="samples", ylabel="probability of the order", ylim=(0.48, 1.02))
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02))
    return figure


def rank_figure(
    times: dict[str, Float[np.ndarray, " steps"]],
    rank: dict[str, Float[np.ndarray, " steps"]],
    *,
    xlabel: str = "time",
) -> Figure:
    """Predicted effective rank of the representation over time."""
    with style():
        figure, grid = panels(1, 1, (4.6, 2.4))
        axes = grid[0, 0]
        for name, steps in times.items():
            axes.plot(steps, rank[name], color=JEPA if name == "JEPA" else MAE, label=name)
        axes.set_xscale("log")
        axes.set(xlabel=xlabel, ylabel="effective rank")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.legend()
    return figure


def simulation_figure(
    predicted: dict[str, Float[np.ndarray, " modes"]],
    measured: dict[str, Float[np.ndarray, " modes"]],
    *,
    xlabel: str = "predicted time",
    ylabel: str = "simulated time",
) -> Figure:
    """Critical times of whole matrices against the prediction for each direction on its own."""
    with style():
        figure, grid = panels(1, 1, (3.6, 3.1))
        axes = grid[0, 0]
        ends: list[float] = []
        for i, (name, times) in enumerate(predicted.items()):
            both = np.isfinite(times) & np.isfinite(measured[name])
            both &= (times > 0) & (measured[name] > 0)
            colour = PALETTE[i % len(PALETTE)]
            axes.scatter(
                times[both],
                measured[name][both],
                s=22,
                color=colour,
                marker=MARKERS[i % len(MARKERS)],
                alpha=0.85,
                linewidths=0,
                label=name,
            )
            ends += [*times[both], *measured[name][both]]
        if ends:
            line = (min(ends) / 1.15, max(ends) * 1.15)
            axes.plot(line, line, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0.5)
        _log_both(axes)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if len(predicted) > 1:
            axes.legend()
    return figure


def plain_log(axis: Axis) -> None:
    """Logarithmic ticks at 1, 2, 5 times a power of ten, written as plain numbers."""
    low, high = axis.get_view_interval()
    few = MaxNLocator(4, steps=[1, 2, 5, 10])
    wide = LogLocator(subs=(1.0, 2.0, 5.0), numticks=12)
    axis.set_major_locator(wide if high > 6 * low else few)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _log_both(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
