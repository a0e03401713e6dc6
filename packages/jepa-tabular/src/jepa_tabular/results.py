"""What an evaluation found: scores, tables, and one sentence that says whether it helped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jepa_core.evaluation.intervals import Paired, paired
from jepa_core.report.table import Cell, Table
from jepa_tabular.analysis import FAIL, collapse_table
from jepa_tabular.downstream import Task
from jepa_tabular.readouts import Budget, draws_of

RAW, TWIN, TJEPA = "raw columns", "untrained twin", "T-JEPA"
RAW_TWIN, RAW_TJEPA = f"raw + {TWIN}", f"raw + {TJEPA}"
PCA, RANDOM, TREES = "PCA", "random features", "boosted trees"

COMPARISONS = (
    (TJEPA, TWIN),
    (TJEPA, RAW),
    (RAW_TJEPA, RAW),
    (RAW_TJEPA, RAW_TWIN),
    (TJEPA, RANDOM),
    (TJEPA, TREES),
    (RAW_TJEPA, TREES),
)
_TITLES = {"rmse": "RMSE", "accuracy": "accuracy", "r2": "R2"}

# A difference counts when at least this share of the seeds agree and the mean is no smaller.
_AGREE, _LEAST = 0.75, 0.002


@dataclass(frozen=True)
class Score:
    """What one readout of one input scored on one seed's split; means over the draws of labels.

    Parameters
    ----------
    width
        Features.
    labels
        How many were asked for, "all" for every training row.
    values
        As `jepa_tabular.readouts.score` names them.
    """

    input: str
    readout: str
    width: int
    labels: Budget
    seed: int
    values: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """Scores of every input, readout, number of labels and seed, and what they say.

    Parameters
    ----------
    task
        What the labels are.
    scores
        One a combination.
    collapse
        Of each seed, what `collapse_report` says of the untrained twin and of T-JEPA.
    sizes
        Rows of the training, validation and test parts.
    part
        The part that was scored.
    """

    task: Task
    scores: tuple[Score, ...]
    collapse: tuple[tuple[dict[str, Any], dict[str, Any]], ...]
    sizes: tuple[int, int, int]
    part: str = "test"

    @property
    def metric(self) -> str:
        """The score that people read: rmse or accuracy. The verdict takes the finer r2."""
        return "rmse" if self.task == "regression" else "accuracy"

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(dict.fromkeys(score.seed for score in self.scores))

    @property
    def labels(self) -> tuple[Budget, ...]:
        """Numbers of labels."""
        return tuple(dict.fromkeys(score.labels for score in self.scores))

    @property
    def readouts(self) -> tuple[str, ...]:
        """Readouts of T-JEPA."""
        return tuple(dict.fromkeys(s.readout for s in self.scores if s.input == TJEPA))

    def values(self, name: str, readout: str, labels: Budget, metric: str = "r2") -> list[float]:
        """A score of an input under a readout, seed by seed; empty where there is none."""
        return [
            score.values[metric]
            for score in self.scores
            if (score.input, score.readout, score.labels) == (name, readout, labels)
            and metric in score.values
        ]

    def difference(
        self, name: str, other: str, readout: str, labels: Budget, metric: str = "r2"
    ) -> Paired | None:
        """One input minus another on the same splits; None where one of them was not scored."""
        first = self.values(name, readout, labels, metric)
        second = self.values(other, "trees" if other == TREES else readout, labels, metric)
        if not first or not second or not np.isfinite([*first, *second]).all():
            return None
        return paired(first, second)

    def gain(
        self,
        name: str,
        other: str,
        readout: str,
        labels: Iterable[Budget] | None = None,
        metric: str = "r2",
    ) -> Paired | None:
        """`difference`, the mean over these numbers of labels or all, seed by seed."""
        counts = self.labels if labels is None else labels
        pairs = [self.difference(name, other, readout, n, metric) for n in counts]
        found = [pair.differences for pair in pairs if pair]
        return paired(np.mean(found, axis=0), np.zeros(len(found[0]))) if found else None

    @property
    def collapsed(self) -> bool:
        """Whether a seed kept less than 5 % of its twin's row variance."""
        key = "intra_feature_variance"
        return any(after[key] < FAIL * before[key] for before, after in self.collapse)

    @property
    def verdict(self) -> str:
        """One sentence: whether T-JEPA beats its untrained twin and the raw columns."""
        return _verdict(self)

    @property
    def table(self) -> Table:
        """Mean and standard deviation over seeds of the metric and of R2; the verdict below."""
        columns = ["input", "readout", "width"]
        for metric in (self.metric, "r2"):
            columns += [f"{_TITLES[metric]}, {count}" for count in self._counts()]
        rows: list[list[Cell]] = []
        for name, readout in dict.fromkeys((s.input, s.readout) for s in self.scores):
            widths = {s.width for s in self.scores if (s.input, s.readout) == (name, readout)}
            row: list[Cell] = [name, readout, "–".join(map(str, sorted(widths)))]
            for metric in (self.metric, "r2"):
                row += [mean_and_spread(self.values(name, readout, n, metric)) for n in self.labels]
            rows.append(row)
        return Table(f"{self.task}, {self.part} rows", tuple(columns), rows, self._notes())

    @property
    def gains(self) -> Table:
        """Paired differences in R2: mean, 95 % interval over seeds, and every seed's sign."""
        rows: list[list[Cell]] = []
        for readout in self.readouts:
            for name, other in COMPARISONS:
                found = [self.difference(name, other, readout, n) for n in self.labels]
                if any(found):
                    cells = [str(one) if one else None for one in found]
                    rows.append([f"{name} − {other}", readout, *cells])
        title = "paired differences in R2"
        return Table(title, ("difference", "readout", *self._counts()), rows)

    @property
    def collapse_table(self) -> Table:
        """Row variance, effective rank and the like of both encoders, means over seeds."""
        both = zip(*self.collapse, strict=True)
        means = {name: _means(found) for name, found in zip((TWIN, TJEPA), both, strict=True)}
        return collapse_table(means, title="representation of the rows")

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-able; numbers that are not finite become None."""
        return {
            "task": self.task,
            "part": self.part,
            "sizes": list(self.sizes),
            "verdict": self.verdict,
            "scores": [_finite(asdict(score)) for score in self.scores],
            "collapse": [[_finite(one) for one in pair] for pair in self.collapse],
        }

    def _counts(self) -> list[str]:
        return [_count(n, self.sizes[0]) for n in self.labels]

    def _notes(self) -> tuple[str, ...]:
        train, validation, test = self.sizes
        seeds = len(self.seeds)
        spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
        notes = [
            self.verdict,
            f"{train:,} training, {validation:,} validation and {test:,} test rows; {spread}.",
        ]
        if self.metric == "rmse":
            notes.append("RMSE is in standard deviations of the label.")
        drawn = [f"{n:,}: {draws_of(n)}" for n in self.labels if n != "all"]
        if drawn:
            notes.append(f"Draws of labels that a score is the mean of: {', '.join(drawn)}.")
        return tuple(notes)


def mean_and_spread(values: Sequence[float]) -> str | None:
    """`0.853 ± 0.003`, without the spread of a single value; None without any."""
    if not values or not np.isfinite(values).all():
        return None
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def standing(found: Paired | None) -> str:
    """ahead of, behind or level with: three quarters of the seeds agree on a mean that counts."""
    if found is None or abs(found.mean) < _LEAST:
        return "level with"
    ahead = float(np.mean(np.array(found.differences) > 0))
    return "ahead of" if ahead >= _AGREE else "behind" if ahead <= 1 - _AGREE else "level with"


_VERBS = {"ahead of": "beats", "behind": "loses to", "level with": "is level with"}
_CONCLUSION = {
    ("ahead of", "ahead of"): "pre-training pays here",
    ("ahead of", "level with"): "the untrained network gains as much over the columns",
    (
        "ahead of",
        "behind",
    ): "the gain over the columns is the untrained network's, and pre-training "
    "takes some of it away",
    ("level with", "ahead of"): "pre-training helps the network, but the columns serve as well",
    ("behind", "ahead of"): "pre-training helps the network, but the columns serve better",
    ("level with", "level with"): "pre-training does not pay here",
    ("level with", "behind"): "pre-training does not pay here",
    ("behind", "level with"): "the columns serve better",
    ("behind", "behind"): "the columns serve better",
}


def _verdict(found: Evaluation) -> str:
    readout = "linear" if "linear" in found.readouts else found.readouts[0]
    gains = [found.gain(TJEPA, other, readout) for other in (RAW, TWIN)]
    raw, twin = map(standing, gains)
    over_raw, over_twin = map(_seeds, gains)
    link = "and" if raw == twin else "but"
    main = (
        f"Under a {readout} readout T-JEPA {_VERBS[raw]} the raw columns{over_raw} {link} "
        f"{_VERBS[twin]} its untrained twin{over_twin}: {_CONCLUSION[raw, twin]}"
    )
    parts = [main]
    if len(found.labels) > 1:
        alone = {
            other: {n: standing(found.gain(TJEPA, other, readout, [n])) for n in found.labels}
            for other in (RAW, TWIN)
        }
        where = [n for n, word in alone[TWIN].items() if word == "ahead of"]
        if where and twin != "ahead of":
            parts.append(f"it beats the twin with {_listed(where)} only")
        where = [n for n, word in alone[RAW].items() if word == "behind"]
        if where and raw != "behind":
            parts.append(f"the columns are ahead with {_listed(where)}")
    parts += _against_trees(found, readout)
    if found.collapsed:
        parts.append("the representation collapsed: less than 5 % of the row variance is left")
    if len(found.seeds) < 3:
        parts.append("fewer than three seeds, so chance may decide")
    return "; ".join(parts) + "."


def _seeds(found: Paired | None) -> str:
    if found is None:
        return ""
    ahead = sum(one > 0 for one in found.differences)
    return f" (R2 {found.mean:+.3f}, ahead with {ahead} of {len(found.differences)} seeds)"


def _against_trees(found: Evaluation, readout: str) -> list[str]:
    scored = [n for n in found.labels if found.difference(TJEPA, TREES, readout, n)]
    if not scored:
        return []
    better = [
        n
        for n in scored
        if all(
            standing(found.gain(name, TREES, readout, [n])) == "behind"
            for name in (TJEPA, RAW_TJEPA)
            if found.difference(name, TREES, readout, n)
        )
    ]
    if not better:
        return ["boosted trees on the columns are ahead nowhere"]
    where = "everywhere" if better == scored else f"with {_listed(better)}"
    return [f"boosted trees on the columns are ahead {where}"]


def _listed(labels: Sequence[Budget]) -> str:
    words = ["all labels" if n == "all" else f"{n:,}" for n in labels]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words) + (
        "" if labels[-1] == "all" else " labels"
    )


def _count(labels: Budget, rows: int) -> str:
    return f"{rows if labels == 'all' else labels:,} labels"


def _means(reports: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    numbers = [key for key, value in reports[0].items() if isinstance(value, float)]
    return {key: float(np.mean([report[key] for report in reports])) for key in numbers}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
