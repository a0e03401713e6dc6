"""Pictures for reports: the mask over a row's columns, and what a representation looks like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from jepa_core.report.figures import GRID, INK, MUTED, PALETTE, style
from jepa_tabular.analysis import Relevance

_MOST_BARS = 30
_SEEN, _ASKED = PALETTE[0], PALETTE[1]


def mask_figure(
    columns: Sequence[str],
    values: Sequence[str],
    context: Int[np.ndarray, " kept"],
    target: Int[np.ndarray, "masks hidden"],
    *,
    registers: int = 0,
) -> Figure:
    """One row's columns: those the encoder sees, and those each target mask asks for.

    Parameters
    ----------
    columns, values
        Names and contents, in the order of the tokens.
    context, target
        Token indices, [REG] tokens first.
    registers
        How many [REG] tokens there are.
    """
    names = [f"[REG] {i}" if registers > 1 else "[REG]" for i in range(registers)] + list(columns)
    texts = [""] * registers + list(values)
    marks = [("seen", context, _SEEN)]
    marks += [
        (f"asked, mask {i + 1}" if len(target) > 1 else "asked", mask, _ASKED)
        for i, mask in enumerate(target)
    ]
    with style():
        figure = Figure(figsize=(0.9 + 0.24 * len(names), 1.5 + 0.24 * len(marks)))
        axes = figure.add_subplot()
        for row, (_, tokens, colour) in enumerate(marks):
            for token in range(len(names)):
                hit = token in tokens
                axes.add_patch(
                    Rectangle(
                        (token, row),
                        0.92,
                        0.86,
                        facecolor=colour if hit else "none",
                        edgecolor=colour if hit else GRID,
                        alpha=0.85 if hit else 1,
                        linewidth=0.6,
                    )
                )
        labels = [
            f"{_short(name, 16)} = {_short(text, 8)}" if text else _short(name, 16)
            for name, text in zip(names, texts, strict=True)
        ]
        axes.set(xlim=(0, len(names)), ylim=(len(marks), 0))
        axes.set_xticks(np.arange(len(names)) + 0.46, labels, rotation=90, fontsize=7)
        axes.set_yticks(np.arange(len(marks)) + 0.43, [name for name, _, _ in marks])
        _bare(axes)
    return figure


def collapse_figure(metrics: Iterable[Mapping[str, Any]]) -> Figure:
    """Row variance, effective rank and uniformity over the steps of a run."""
    lines = list(metrics)
    panels = (
        ("row variance", ("health/signal", "row_variance"), True),
        ("effective rank", ("health/effective_rank_ev",), False),
        ("uniformity", ("health/uniformity",), False),
    )
    with style():
        figure = Figure(figsize=(7.6, 2.0))
        for place, (title, keys, log) in enumerate(panels, 1):
            axes = figure.add_subplot(1, 3, place)
            axes.set(title=title, xlabel="step")
            found = next((s for key in keys if (s := _series(lines, key))[0]), ([], []))
            axes.plot(*found, color=PALETTE[0], marker="o" if len(found[0]) == 1 else "")
            if log and found[1] and min(found[1]) > 0:
                _log(axes)
    return figure


def _series(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    found = [(line["step"], line[key]) for line in lines if isinstance(line.get(key), (int, float))]
    return [step for step, _ in found], [value for _, value in found]


def relevance_figure(relevance: Relevance) -> Figure:
    """Bars of each column's worth to the probe of the tokens and to the boosted trees.

    The 30 columns that matter most to the trees, the first on top.
    """
    order = np.argsort(-relevance.trees, kind="stable")[:_MOST_BARS]
    names = [_short(relevance.columns[i], 24) for i in order]
    sides = (
        ("probe: drop without the token", relevance.probe[order], _SEEN),
        ("trees: drop when shuffled", relevance.trees[order], _ASKED),
    )
    with style():
        figure = Figure(figsize=(6.4, 0.9 + 0.2 * len(names)))
        first: Axes | None = None
        for place, (title, values, colour) in enumerate(sides, 1):
            axes = figure.add_subplot(1, 2, place, sharey=first)
            first = first or axes
            axes.barh(range(len(names)), values, height=0.6, color=colour, alpha=0.85)
            axes.set(title=title, ylim=(len(names) - 0.5, -0.5))
            axes.set_yticks(range(len(names)), names)
            axes.tick_params(axis="y", labelcolor=INK, labelleft=place == 1)
            axes.grid(visible=False, axis="y")
            axes.axvline(0, color=MUTED, linewidth=0.6)
    return figure


def similarity_figure(names: Sequence[str], similarity: Float[np.ndarray, "k k"]) -> Figure:
    """Linear CKA of every two representations: 1 where they are the same up to a rotation."""
    with style():
        figure = Figure(figsize=(1.6 + 0.75 * len(names), 1.1 + 0.6 * len(names)))
        axes = figure.add_subplot()
        axes.imshow(similarity, vmin=0, vmax=1, cmap="cividis")
        for i, row in enumerate(similarity):
            for j, value in enumerate(row):
                colour = "white" if value < 0.55 else "black"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour)
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks(range(len(names)), names)
        axes.grid(visible=False)
        _bare(axes)
    return figure


def token_variance_figure(tokens: Sequence[str], variance: Mapping[str, Sequence[float]]) -> Figure:
    """Variance over rows of every token, for each encoder: a token near 0 says nothing."""
    with style():
        figure = Figure(figsize=(max(3.6, 1.4 + 0.16 * len(tokens)), 2.4))
        axes = figure.add_subplot()
        for (name, values), marker, colour in zip(
            variance.items(), ("o", "s", "^"), PALETTE, strict=False
        ):
            axes.plot(range(len(tokens)), values, marker, color=colour, label=name, markersize=4)
        if all(min(values) > 0 for values in variance.values()):
            _log(axes)
        axes.set_xticks(
            range(len(tokens)), [_short(name, 16) for name in tokens], rotation=90, fontsize=7
        )
        axes.set(ylabel="row variance")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _log(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _bare(axes: Axes) -> None:
    axes.grid(visible=False)
    axes.tick_params(length=0, labelcolor=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
