"""What the results of demo, reproduction and study of levers say: numbers, words and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jepa_core.report.figures import MARKERS, PALETTE, style
from jepa_tabular.analysis import FAIL, WARN
from jepa_tabular.results import TJEPA, TREES, Evaluation, standing

# A predictor that leaves more than this of its targets' variance has learned next to nothing.
UNEXPLAINED = 0.9


def standings(
    evaluations: Mapping[str, Evaluation], name: str, other: str, readout: str
) -> dict[str, list[str]]:
    """Tables where an input is ahead of another, level with it and behind it, with the mean gain
    in R2."""
    found: dict[str, list[str]] = {"ahead of": [], "level with": [], "behind": []}
    for table, one in evaluations.items():
        difference = one.gain(name, other, readout)
        if difference is not None:
            found[standing(difference)].append(f"{table} ({difference.mean:+.3f})")
    return found


def standings_sentence(
    evaluations: Mapping[str, Evaluation], name: str, other: str, readout: str
) -> str:
    """Where one input is ahead of another, level and behind, without a capital and a stop."""
    found = standings(evaluations, name, other, readout)
    whole = other if other.startswith(TJEPA) else f"the {other}"
    parts = [
        f"{word} {whole if number == 0 else 'them' if other.endswith('s') else 'it'} on "
        + listed(tables)
        for number, (word, tables) in enumerate(
            (word, tables) for word, tables in found.items() if tables
        )
    ]
    kind = {"linear": "a linear readout", "mlp": "a network"}[readout]
    return f"under {kind} {name} is {', '.join(parts)}"


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def health_warnings(name: str, results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What went wrong in pre-training, in words; nothing where all is well.

    Judged by the worst seed: the share of its twin's row variance that the target encoder kept, and
    what the predictor leaves unexplained of the targets' variance around their mean at each
    position.
    """
    key, found = "intra_feature_variance", []
    kept = min(after[key] / before[key] for before, after in (one["collapse"] for one in results))
    if kept < WARN:
        word = "failed: the representation collapsed to" if kept < FAIL else "warning: only"
        found.append(
            f"{name}, {word} {kept:.0%} of the untrained twin's row variance"
            + ("" if kept < FAIL else " is left")
        )
    # NaN where a loss stopped being finite: NumPy's maximum keeps it.
    left = np.max([last_health(one["history"])["health/unexplained"] for one in results])
    if not left <= UNEXPLAINED:
        found.append(
            f"{name}, failed: the predictor leaves {left:.0%} of what the mean at each position "
            f"leaves, which is no {1 - UNEXPLAINED:.0%} better"
        )
    return found


def last_health(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The last line of a history that has the health of the run."""
    return next(line for line in reversed(history) if line.get("health/unexplained") is not None)


def history_series(result: Mapping[str, Any], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one logged quantity."""
    lines = [line for line in result["history"] if line.get(name) is not None]
    return [line["step"] for line in lines], [line[name] for line in lines]


def labels_figure(evaluations: Mapping[str, Evaluation], inputs: Sequence[str]) -> Figure:
    """R2 of a linear readout over the number of labels, a panel a table; bands span the seeds."""
    with style():
        figure = Figure(figsize=(2.7 * len(evaluations) + 1.4, 2.7))
        for place, (table, found) in enumerate(evaluations.items(), 1):
            axes = figure.add_subplot(1, len(evaluations), place)
            for name, colour, marker in zip(inputs, PALETTE, MARKERS, strict=False):
                readout = "trees" if name == TREES else "linear"
                points = [
                    (found.sizes[0] if n == "all" else n, found.values(name, readout, n))
                    for n in found.labels
                ]
                points = sorted(point for point in points if point[1])
                x = [labels for labels, _ in points]
                axes.plot(
                    x,
                    [float(np.mean(values)) for _, values in points],
                    marker=marker,
                    markersize=3.5,
                    color=colour,
                    label=name,
                )
                low, high = ([side(values) for _, values in points] for side in (min, max))
                axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.set(title=table, xscale="log", xlabel="labels")
            counts = [found.sizes[0] if n == "all" else n for n in found.labels]
            axes.set_xticks(counts, [f"{n:,}" for n in counts])
            axes.minorticks_off()
            if place == 1:
                axes.set_ylabel("R2")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
