"""One probe on several feature sets, side by side, with intervals over the same resamples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from jepa_core.errors import DataError
from jepa_core.evaluation.intervals import bootstrap
from jepa_core.evaluation.metrics import Counts, Parts, Statistic
from jepa_core.report.table import Table, interval


@dataclass(frozen=True)
class Labels:
    """Labels of the training and of the test part: [n] numbers or [n, classes] columns."""

    train: Shaped[np.ndarray, "n *classes"]
    test: Shaped[np.ndarray, "m *classes"]


@dataclass(frozen=True)
class Features:
    """Features of the training and of the test part, records in the labels' order."""

    train: Float[np.ndarray, "n dim"]
    test: Float[np.ndarray, "m dim"]


Probe = Callable[
    [Float[np.ndarray, "n dim"], Shaped[np.ndarray, "n *classes"], Float[np.ndarray, "m dim"]],
    Float[np.ndarray, "m classes"],
]
Metric = Callable[[Shaped[np.ndarray, "m *classes"], Float[np.ndarray, "m classes"]], Statistic]


def compare(
    features: Mapping[str, Features],
    labels: Labels,
    probe: Probe,
    metric: Metric,
    *,
    title: str,
    reference: str = "untrained twin",
    groups: Shaped[np.ndarray, "m"] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Table:
    """A table of scores, and of what each feature set gains over the reference.

    Nothing is worth reporting without its untrained twin and the raw features beside it.

    Parameters
    ----------
    features
        By the name to show; usually trained, untrained twin, raw.
    probe
        (training features, training labels, test features) to test scores.
    metric
        (test labels, test scores) to a statistic of `jepa_core.evaluation.metrics`, for example
        `auc_statistic`.
    reference
        The name others are compared with; its gain is left empty.
    groups
        Of the test records, for the bootstrap.

    Raises
    ------
    DataError
        `reference` is not among the features, or a feature set has another number of records.
    """
    if reference not in features:
        raise DataError(f"no features named {reference!r} among {', '.join(features)}")
    scores = {}
    for name, parts in features.items():
        if len(parts.train) != len(labels.train) or len(parts.test) != len(labels.test):
            raise DataError(
                f"features {name!r} are of {len(parts.train)} + {len(parts.test)} records, "
                f"labels of {len(labels.train)} + {len(labels.test)}"
            )
        scores[name] = probe(parts.train, labels.train, parts.test)
    table = compare_scores(
        scores,
        labels.test,
        metric,
        title=title,
        reference=reference,
        groups=groups,
        resamples=resamples,
        seed=seed,
    )
    widths = [parts.train.shape[1] for parts in features.values()]
    rows = [[row[0], width, *row[1:]] for row, width in zip(table.rows, widths, strict=True)]
    return Table(title, ("features", "dim", *table.columns[1:]), rows, table.notes)


def compare_scores(
    scores: Mapping[str, Float[np.ndarray, "m classes"]],
    labels: Shaped[np.ndarray, "m *classes"],
    metric: Metric,
    *,
    title: str,
    reference: str = "untrained twin",
    groups: Shaped[np.ndarray, "m"] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Table:
    """`compare` of scores that are there already, those of trained heads, say.

    Raises
    ------
    DataError
        `reference` is not among the scores.
    """
    if reference not in scores:
        raise DataError(f"no scores named {reference!r} among {', '.join(scores)}")
    statistics = {name: metric(labels, score) for name, score in scores.items()}
    n = len(labels)
    rows: list[list[str | float | int | None]] = []
    for name, statistic in statistics.items():
        score = bootstrap(statistic, n, groups=groups, resamples=resamples, seed=seed)
        gain = None
        if name != reference:
            both = _difference(statistic, statistics[reference])
            gained = bootstrap(both, n, groups=groups, resamples=resamples, seed=seed)
            gain = interval(gained.estimate, gained.low, gained.high)
        rows.append([name, interval(score.estimate, score.low, score.high), gain])
    units = "records" if groups is None else "groups"
    notes = [
        f"{n} test records; 95 % bootstrap intervals, {resamples} resamples of {units}.",
    ]
    full = next(iter(statistics.values()))(np.ones((1, n), np.int64))[0]
    if missing := int(np.isnan(full).sum()):
        notes.append(f"Means over {len(full) - missing} of {len(full)} classes.")
    if score.partial:
        notes.append(
            f"{score.partial} resamples lacked a class after 20 tries and average "
            f"{score.fewest} classes at least."
        )
    return Table(title, ("features", "score", f"gain over {reference}"), rows, tuple(notes))


def _difference(a: Statistic, b: Statistic) -> Statistic:
    def statistic(counts: Counts) -> Parts:
        return a(counts) - b(counts)

    return statistic
