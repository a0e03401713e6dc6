"""Pictures of the theory: learning curves, depth, phases, views, leakage, collapse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from jepa_core.report.figures import GRID, INK, MUTED, PALETTE, style
from jepa_linear.figures import JEPA, MAE, panels, plain_log

Curve = tuple[Float[np.ndarray, " steps"], Float[np.ndarray, "modes steps"]]
_DASHES = (0, (4, 1.5))

# Who is first, as the sweep writes it, with the word for the legend and a colour.
PHASES = (
    ("both learn A first", "#d7dbe0"),
    ("both learn B first", "#8d96a0"),
    ("JEPA learns B first, MAE A", PALETTE[0]),
    ("JEPA learns A first, MAE B", PALETTE[1]),
    ("JEPA never learns one of them", "#ffffff"),
)


def learning_figure(
    columns: Sequence[tuple[str, Sequence[str]]],
    rows: Mapping[str, Sequence[Curve]],
) -> Figure:
    """Learning curves w / w_inf, a row an objective and depth, a column a family of modes.

    Parameters
    ----------
    columns
        Heading of each column and the names of its modes.
    rows
        Heading of each row and, of each column, times (1 is the first arrival) and curves.
    """
    with style():
        figure, grid = panels(len(rows), len(columns), (9.4, 0.5 + 1.15 * len(rows)))
        last = len(rows) - 1
        for number, (row, curves) in enumerate(rows.items()):
            axes_row = grid[number]
            dashes = "solid" if row.startswith("JEPA") else _DASHES
            for axes, (times, strength), (title, names) in zip(
                axes_row, curves, columns, strict=True
            ):
                for i, name in enumerate(names):
                    axes.plot(times, strength[i], color=PALETTE[i], linestyle=dashes, label=name)
                axes.set(ylim=(-0.05, 1.1), xlim=(times[0], times[-1]), yticks=[0, 0.5, 1])
                axes.tick_params(labelbottom=number == last)
                if number == 0:
                    axes.set_title(title, loc="left")
                if number == last:
                    axes.legend(fontsize=7, loc="center left", labelspacing=0.25)
            axes_row[0].set_ylabel(row)
        for axes in grid[-1]:
            axes.set_xlabel("time / first arrival")
    return figure


def depth_figure(
    rho: Float[np.ndarray, " points"],
    times: dict[str, dict[int, Float[np.ndarray, " points"]]],
    leading: dict[str, dict[int, float]],
) -> Figure:
    """Critical time against rho at equal lambda, as a multiple of its leading term.

    Parameters
    ----------
    times, leading
        By objective, by depth; the leading term has no rho in it.
    """
    with style():
        figure, grid = panels(1, len(times), (8.6, 3.0))
        for axes, (name, by_depth) in zip(grid[0], times.items(), strict=True):
            for i, (depth, values) in enumerate(by_depth.items()):
                first = leading[name][depth]
                axes.plot(
                    rho,
                    np.where(values > 0, values / first, np.nan),
                    color=PALETTE[i % len(PALETTE)],
                    linestyle="solid" if i < len(PALETTE) else _DASHES,
                    label=f"L = {depth}  ({first:.2g})",
                )
            axes.axhline(1.0, color=INK, linewidth=0.8)
            axes.set_yscale("log")
            axes.set_yticks([0.3, 0.5, 1, 2], ["0.3", "0.5", "1", "2"])
            axes.set_yticks([], minor=True)
            axes.set(xlabel="rho", xlim=(rho[0], rho[-1]), ylim=(0.25, 2.6))
            axes.set_title(name, loc="left")
            axes.legend(fontsize=7, loc="lower right" if name == "JEPA" else "upper right")
        grid[0, 0].set_ylabel("critical time / leading term")
    return figure


def ratio_figure(
    depths: Int[np.ndarray, " depths"],
    ratios: dict[str, dict[str, Float[np.ndarray, " depths"]]],
    *,
    ylabel: str,
) -> Figure:
    """Delay of the noisier of two modes of equal lambda against depth: 1 is no preference.

    Parameters
    ----------
    ratios
        By the heading of a panel, by the name of a line.
    """
    with style():
        figure, grid = panels(1, len(ratios), (8.6, 2.9))
        for axes, (title, lines) in zip(grid[0], ratios.items(), strict=True):
            for i, (name, values) in enumerate(lines.items()):
                colour = PALETTE[(i // 2) % len(PALETTE)]
                dashes = _DASHES if name.startswith("MAE") else "solid"
                axes.plot(
                    depths,
                    values,
                    color=colour,
                    linestyle=dashes,
                    marker="o",
                    markersize=2.5,
                    label=name,
                )
            axes.axhline(1.0, color=MUTED, linewidth=0.8)
            axes.set(xlabel="layers L")
            axes.set_title(title, loc="left")
            axes.legend(fontsize=6.5, loc="center right", bbox_to_anchor=(1.0, 0.67))
        grid[0, 0].set_ylabel(ylabel)
    return figure


def phase_figure(
    lam: Float[np.ndarray, " columns"],
    rho: Float[np.ndarray, " rows"],
    phases: Int[np.ndarray, "scales depths rows columns"],
    depths: Sequence[int],
    scales: Sequence[str],
    *,
    labels: tuple[str, str],
) -> Figure:
    """Who is first over a grid of modes B beside a fixed mode A.

    Parameters
    ----------
    lam, rho
        Values along the two axes.
    phases
        Index into `PHASES`.
    scales
        Heading of each row of panels.
    labels
        Of the two axes.
    """
    colours = ListedColormap([colour for _, colour in PHASES])
    with style():
        figure, grid = panels(
            len(scales), len(depths), (0.9 + 2.0 * len(depths), 0.9 + 1.75 * len(scales))
        )
        for i, axes_row in enumerate(grid):
            for j, axes in enumerate(axes_row):
                axes.pcolormesh(
                    lam,
                    rho,
                    phases[i, j],
                    cmap=colours,
                    vmin=-0.5,
                    vmax=len(PHASES) - 0.5,
                    rasterized=True,
                    shading="nearest",
                )
                axes.axvline(1.0, color=INK, linewidth=0.5)
                axes.axhline(1.0, color=INK, linewidth=0.5)
                axes.grid(visible=False)
                axes.set_xscale("log")
                plain_log(axes.xaxis)
                if i == 0:
                    axes.set_title(f"L = {depths[j]}", loc="left")
                axes.tick_params(labelbottom=i == len(scales) - 1, labelleft=j == 0)
            axes_row[0].set_ylabel(f"{scales[i]}\n{labels[1]}")
        for axes in grid[-1]:
            axes.set_xlabel(labels[0])
        seen = set(np.unique(phases).tolist())
        handles = [
            Patch(facecolor=colour, edgecolor=MUTED, linewidth=0.5, label=words)
            for k, (words, colour) in enumerate(PHASES)
            if k in seen
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def views_figure(
    sweeps: Sequence[tuple[str, str, Float[np.ndarray, " points"], dict[str, np.ndarray]]],
) -> Figure:
    """Critical times against what makes the views: correlation time, noise, share kept.

    Parameters
    ----------
    sweeps
        Title, label of the axis, its values, and the times of "JEPA ..." and "MAE ..." lines.
    """
    with style():
        figure, grid = panels(1, len(sweeps), (9.4, 2.8))
        for axes, (title, label, values, lines) in zip(grid[0], sweeps, strict=True):
            for name, times in lines.items():
                axes.plot(values, times, color=JEPA if name.startswith("JEPA") else MAE, label=name)
            axes.set_yscale("log")
            axes.set(xlabel=label)
            axes.set_title(title, loc="left")
            axes.legend(fontsize=7)
        grid[0, 0].set_ylabel("critical time")
    return figure


def leakage_figure(
    delta: Float[np.ndarray, " points"], leakage: dict[str, Float[np.ndarray, " points"]]
) -> Figure:
    """Largest share of the encoder outside the modes against the distance from the assumption."""
    with style():
        figure, grid = panels(1, 1, (4.2, 2.8))
        axes = grid[0, 0]
        for i, (name, values) in enumerate(leakage.items()):
            axes.plot(delta, values, color=PALETTE[i], marker="o", markersize=3, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set(xlabel="delta, what does not commute", ylabel="largest off-diagonal share")
        axes.legend()
    return figure


def collapse_figure(
    collapse: dict[str, tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " steps"]]],
    kappa: Float[np.ndarray, " rates"],
    delay: Float[np.ndarray, " rates"],
) -> Figure:
    """Without StopGrad the encoder shrinks; an EMA target only delays."""
    with style():
        figure, grid = panels(1, 2, (8.2, 2.8))
        left, right = grid[0]
        for i, (name, (times, strength)) in enumerate(collapse.items()):
            left.plot(times, strength, color=PALETTE[i], label=name)
        left.set_yscale("log")
        left.set_xscale("log")
        left.set(xlabel="flow time", ylabel="encoder strength w / w(0)")
        left.set_title("without StopGrad", loc="left")
        left.legend()
        right.plot(kappa, delay, color=PALETTE[0], marker="o", markersize=3)
        right.axhline(1.0, color=MUTED, linewidth=0.8)
        right.set_xscale("log")
        right.set_yscale("log")
        plain_log(right.yaxis)
        right.set(xlabel="kappa, (1 - momentum) / learning rate", ylabel="delay of the arrival")
        right.set_title("with an EMA target", loc="left")
        for axes in grid[0]:
            axes.grid(color=GRID)
    return figure


def descent_figure(
    steps: Float[np.ndarray, " points"],
    predicted: dict[str, Float[np.ndarray, "modes points"]],
    measured: dict[str, Float[np.ndarray, "modes points"]],
    labels: Sequence[str],
) -> Figure:
    """Strength of the encoder on each mode: the formula as a line, gradient descent as dots."""
    with style():
        figure, grid = panels(1, len(predicted), (8.6, 2.8))
        for axes, (name, curves) in zip(grid[0], predicted.items(), strict=True):
            for i, (curve, dots) in enumerate(zip(curves, measured[name], strict=True)):
                axes.plot(steps, curve, color=PALETTE[i], label=labels[i])
                axes.plot(
                    steps[::12],
                    dots[::12],
                    color=PALETTE[i],
                    linestyle="",
                    marker="o",
                    markersize=3,
                )
            axes.set(xlabel="step")
            axes.set_title(name, loc="left")
        grid[0, 0].set_ylabel("strength w")
        grid[0, -1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.02))
    return figure


def digits_figure(
    curves: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]],
    ceiling: float,
    raw: float,
) -> Figure:
    """Accuracy and nuisance of digits over training, JEPA beside MAE.

    Parameters
    ----------
    curves
        By setting ("L = 2, a0 = 0.25"), by objective: steps, accuracy and share of nuisance, means
        over seeds.
    ceiling, raw
        Accuracy of clean digits and of the raw features.
    """
    with style():
        figure, grid = panels(2, len(curves), (9.4, 4.2))
        for j, (title, arms) in enumerate(curves.items()):
            upper, lower = grid[0, j], grid[1, j]
            for name, (steps, accuracy, nuisance) in arms.items():
                colour = JEPA if name == "JEPA" else MAE
                upper.plot(steps, accuracy, color=colour, label=name)
                lower.plot(steps, np.maximum(nuisance, 1e-4), color=colour)
            for level in (ceiling, raw):
                upper.axhline(level, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
            upper.set(ylim=(0.0, 1.03))
            lower.set_yscale("log")
            lower.set(ylim=(0.005, 1.2), xlabel="step")
            for axes in (upper, lower):
                axes.set_xscale("log")
            upper.tick_params(labelbottom=False, labelleft=j == 0)
            lower.tick_params(labelleft=j == 0)
            upper.set_title(title, loc="left")
        grid[0, 0].set_ylabel("5-NN accuracy")
        grid[1, 0].set_ylabel("share of nuisance")
        grid[0, 0].legend(loc="lower right")
    return figure
