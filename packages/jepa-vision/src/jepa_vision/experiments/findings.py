"""Tables and words of what several arms and seeds came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jepa_core.evaluation.intervals import Paired, paired
from jepa_core.report.figures import PALETTE, style
from jepa_core.report.table import Cell, Table
from jepa_vision.experiments.comparison import RAW, TWIN

Results = Mapping[str, Sequence[Mapping[str, Any]]]
"""Of each arm a result a seed, in the order of the seeds; raw pixels have one."""

_SCORES = (
    ("top1", "linear top-1"),
    ("knn", "kNN top-1"),
    ("miou", "mIoU"),
    ("pixels", "pixel accuracy"),
)


def scores_table(title: str, found: Results, notes: Sequence[str] = ()) -> Table:
    """Mean and standard deviation over seeds of every score of every arm."""
    rows: list[list[Cell]] = []
    for arm, results in found.items():
        agreement = np.mean([one["agreement"] for one in results], axis=0)
        rows.append(
            [
                arm,
                *(spread([one[name] for one in results]) for name, _ in _SCORES),
                f"{agreement[0]:.3f} / {agreement[1]:.3f}",
            ]
        )
    columns = ("arm", *(label for _, label in _SCORES), "same class, chosen / all")
    return Table(title, columns, rows, tuple(notes))


def gains_table(found: Results, pairs: Sequence[tuple[str, str]]) -> Table:
    """Differences of arms, paired over seeds."""
    rows: list[list[Cell]] = [
        [f"{name} − {other}", *(str(gain(found, name, other, score)) for score, _ in _SCORES)]
        for name, other in pairs
        if name in found and other in found
    ]
    columns = ("difference", *(label for _, label in _SCORES))
    title = "Paired differences: mean over seeds, 95 % t interval, sign of each seed"
    return Table(title, columns, rows)


def targets_table(found: Results, notes: Sequence[str] = ()) -> Table:
    """What the targets were and became: are they local, are they alive, were they learned?"""
    rows: list[list[Cell]] = []
    for arm, results in found.items():
        if arm in (RAW, TWIN):
            continue
        begin, end = ([one["targets"][place] for one in results] for place in (0, 1))
        losses = [series(one, "loss")[1] for one in results]
        ranks = [series(one, "health/token_rank")[1] for one in results]
        rows.append(
            [
                arm,
                spread([one["between_patches"] for one in begin]),
                spread([one["between_patches"] for one in end]),
                _row(
                    [np.mean([one["total_variance"] for one in each]) for each in (begin, end)], 2
                ),
                spread([last(one, "health/unexplained") for one in results], 2),
                _course(ranks, 1),
                _course(losses, 3),
                f"{sum(one['alike'] >= 0 for one in results)} of {len(results)}",
            ]
        )
    columns = (
        "arm",
        "between patches, start",
        "end",
        "variance start, end",
        "unexplained",
        "rank first, least, last",
        "loss first, least, last",
        "alarm: alike",
    )
    return Table("The targets", columns, rows, tuple(notes))


def gain(found: Results, name: str, other: str, score: str) -> Paired:
    """One arm's score minus another's, seed by seed; one result stands for every seed."""
    one, two = ([result[score] for result in found[arm]] for arm in (name, other))
    seeds = max(len(one), len(two))
    return paired(one * (seeds // len(one)), two * (seeds // len(two)))


def standing(difference: Paired) -> str:
    """In words: ahead, behind, or level, by whether the interval holds 0.

    Where it does and all seeds agree, the words say that: three seeds make wide intervals.
    """
    if difference.low is not None and difference.high is not None:
        if difference.low > 0:
            return "ahead of"
        if difference.high < 0:
            return "behind"
        if not difference.same_sign or not difference.mean:
            return "level with"
        return "in every seed ahead of" if difference.mean > 0 else "in every seed behind"
    return "ahead of" if difference.mean > 0 else "behind"


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard deviation over seeds."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def _course(each: Sequence[Sequence[float]], digits: int) -> str:
    """First, least and last value, averaged over seeds."""
    return _row(np.mean([(one[0], min(one), one[-1]) for one in each], axis=0).tolist(), digits)


def _row(values: Sequence[float], digits: int) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


def last(result: Mapping[str, Any], name: str) -> float:
    """The last logged value of a quantity."""
    return next(line[name] for line in reversed(result["history"]) if name in line)


def series(result: Mapping[str, Any], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of a logged quantity."""
    lines = [line for line in result["history"] if name in line]
    return [line["step"] for line in lines], [line[name] for line in lines]


def scores_figure(found: Results) -> Figure:
    """Every seed of every arm, and their means: photographs on the left, frames on the right."""
    arms = list(found)[::-1]
    with style():
        figure = Figure(figsize=(7.6, 0.32 * len(arms) + 0.9))
        for place, (score, label) in enumerate((("top1", "linear top-1"), ("miou", "mIoU")), 1):
            axes = figure.add_subplot(1, 2, place)
            for row, arm in enumerate(arms):
                values = [one[score] for one in found[arm]]
                colour = PALETTE[2] if arm in (RAW, TWIN) else PALETTE[0]
                axes.plot(values, [row] * len(values), "o", markersize=3.5, color=colour, alpha=0.6)
                axes.plot([np.mean(values)], [row], "|", markersize=13, color=colour)
            axes.set(xlabel=label, yticks=range(len(arms)))
            axes.set_yticklabels(arms if place == 1 else [])
            axes.axvline(np.mean([one[score] for one in found[TWIN]]), linewidth=0.7, color="0.6")
            axes.grid(axis="x", alpha=0.3)
    return figure
