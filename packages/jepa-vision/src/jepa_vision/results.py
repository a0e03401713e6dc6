"""Probes of several features side by side: tables, and one sentence that says whether it helped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from jepa_core.errors import DataError
from jepa_core.evaluation.intervals import Interval, bootstrap
from jepa_core.evaluation.metrics import Statistic, mean_statistic
from jepa_core.report.table import Cell, Table, interval
from jepa_vision.dense import mean_iou_statistic, segmentation
from jepa_vision.evaluation import RAW, TRAINED, TWIN, Features, Result
from jepa_vision.propagation import ObjectScore

COPY, COMMONEST = "first mask, repeated", "commonest class"

_CONCLUSION = {
    ("beats", "beats"): "pre-training pays here",
    ("beats", "is level with"): "pre-training helps the network, but raw pixels serve as well",
    ("beats", "loses to"): "pre-training helps the network, but raw pixels serve better",
    ("is level with", "beats"): "the gain over raw pixels is the untrained network's",
    ("is level with", "is level with"): "pre-training has not helped here",
    ("is level with", "loses to"): "pre-training has not helped here, and raw pixels serve better",
    ("loses to", "beats"): "pre-training has done harm, though raw pixels serve worse",
    ("loses to", "is level with"): "pre-training has done harm here",
    ("loses to", "loses to"): "pre-training has done harm here, and raw pixels serve better",
}


def verdict(what: str, values: Mapping[str, float], over_twin: Interval, over_raw: Interval) -> str:
    """Whether training helped, in two sentences.

    Parameters
    ----------
    what
        The score, and on how much: "top-1 on 200 test images".
    values
        Score of the trained encoder, its twin and raw pixels.
    over_twin, over_raw
        Paired differences; one whose interval holds 0 shows nothing.
    """
    twin, raw = _standing(over_twin), _standing(over_raw)
    shown = ", ".join(f"{values[name]:.3f} {name}" for name in (TRAINED, TWIN, RAW))
    return (
        f"{what}: {shown}. Training {twin} its twin ({_signed(over_twin)}) and {raw} raw pixels "
        f"({_signed(over_raw)}): {_CONCLUSION[twin, raw]}."
    )


def _standing(gained: Interval) -> str:
    if gained.low > 0:
        return "beats"
    return "loses to" if gained.high < 0 else "is level with"


def _signed(gained: Interval) -> str:
    return f"{gained.estimate:+.3f} [{gained.low:+.3f}, {gained.high:+.3f}]"


def _shown(found: Interval) -> str:
    return interval(found.estimate, found.low, found.high)


def _minus(one: Statistic, other: Statistic) -> Statistic:
    return lambda counts: one(counts) - other(counts)


def _intervals(units: str) -> str:
    return f"95 % bootstrap intervals resample {units} and know nothing of other seeds of training."


def _must_hold(given: Mapping[str, object] | Sequence[str]) -> None:
    if missing := [name for name in (TRAINED, TWIN, RAW) if name not in given]:
        raise DataError(f"nothing named {missing[0]!r} among {', '.join(given)}")


# ---- classes of images


@dataclass(frozen=True)
class Comparison:
    """What one probe makes of several features of the same images.

    Parameters
    ----------
    probe
        Its name.
    results
        By the features' names.
    features
        As they were given.
    seed
        Of the bootstrap.
    """

    probe: str
    results: Mapping[str, Result]
    features: Sequence[Features]
    seed: int = 0

    def gain(self, name: str, other: str) -> Interval:
        """Top-1 of one minus that of another, with an interval over the same test images."""
        one, two = (self.results[key] for key in (name, other))
        difference = _minus(one.top1_statistic, two.top1_statistic)
        return bootstrap(difference, len(one.y), seed=self.seed)

    @property
    def verdict(self) -> str:
        """Whether training helped."""
        return verdict(
            f"{self.probe}, top-1 on {len(self.results[TRAINED].y)} test images",
            {name: result.top1 for name, result in self.results.items()},
            self.gain(TRAINED, TWIN),
            self.gain(TRAINED, RAW),
        )

    @property
    def table(self) -> Table:
        """Top-1 and balanced accuracy with intervals, and the gain over the twin of the same kind;
        the verdict below."""
        rows: list[list[Cell]] = []
        n = len(self.results[TRAINED].y)
        for one in self.features:
            result = self.results[one.name]
            top1 = bootstrap(result.top1_statistic, n, seed=self.seed)
            balanced = bootstrap(result.balanced_statistic, n, seed=self.seed)
            gain = _shown(self.gain(one.name, one.twin)) if one.twin else None
            rows.append([one.name, one.train.shape[1], _shown(top1), gain, _shown(balanced)])
        notes = (
            self.verdict,
            f"{len(self.features[0].train)} training and {n} test images. {_intervals('images')}",
        )
        columns = ("features", "dim", "top-1", "gain over the twin", "balanced accuracy")
        return Table(self.probe, columns, rows, notes)


def compare(
    name: str,
    features: Sequence[Features],
    y: Int[np.ndarray, " n"],
    truth: Int[np.ndarray, " m"],
    probe: Callable[..., Result],
    *,
    seed: int = 0,
) -> Comparison:
    """Run one probe on several features, the untrained twin and raw pixels always among them.

    Parameters
    ----------
    probe
        `linear_probe` or `knn_probe`, with everything set but the data.

    Raises
    ------
    DataError
        `TRAINED`, `TWIN` or `RAW` is missing, or features and labels differ in number.
    """
    _must_hold([one.name for one in features])
    results = {}
    for one in features:
        if len(one.train) != len(y) or len(one.test) != len(truth):
            raise DataError(
                f"features {one.name!r} are of {len(one.train)} + {len(one.test)} images, labels "
                f"of {len(y)} + {len(truth)}"
            )
        results[one.name] = probe(one.train, y, one.test, truth)
    return Comparison(name, results, features, seed)


# ---- classes of pixels


def segmentation_table(
    probe: str,
    confusions: Mapping[str, Int[np.ndarray, "scenes classes classes"]],
    *,
    train: int,
    seed: int = 0,
) -> Table:
    """Mean IoU with intervals that resample scenes, gains over the twin, and pixel accuracies.

    Parameters
    ----------
    probe
        Its name.
    confusions
        By the name of the features: confusion matrices of the same test scenes.
    train
        Scenes it was trained on.

    Raises
    ------
    DataError
        `TRAINED`, `TWIN` or `RAW` is missing.
    """
    _must_hold(confusions)
    statistics = {name: mean_iou_statistic(found) for name, found in confusions.items()}
    scores = {name: segmentation(found.sum(0)) for name, found in confusions.items()}
    n = len(confusions[TRAINED])
    gains = {
        name: bootstrap(_minus(statistics[TRAINED], statistics[name]), n, seed=seed)
        for name in (TWIN, RAW)
    }
    rows: list[list[Cell]] = []
    for name, score in scores.items():
        found = bootstrap(statistics[name], n, seed=seed)
        gain = _shown(gains[TWIN]) if name == TRAINED else None
        if name not in (TRAINED, TWIN):
            over = _minus(statistics[name], statistics[TWIN])
            gain = _shown(bootstrap(over, n, seed=seed))
        rows.append([name, _shown(found), gain, score.pixel_accuracy, score.class_accuracy])
    notes = (
        verdict(
            f"{probe}, mean IoU on {n} test scenes",
            {name: score.mean_iou for name, score in scores.items()},
            gains[TWIN],
            gains[RAW],
        ),
        f"{train} training and {n} test scenes. {_intervals('scenes')}",
    )
    columns = ("features", "mean IoU", "gain over the twin", "pixel accuracy", "class accuracy")
    return Table(probe, columns, rows, notes)


def class_table(
    probe: str,
    confusions: Mapping[str, Int[np.ndarray, "scenes classes classes"]],
    classes: Sequence[str],
) -> Table:
    """Intersection over union of every class, and its share of the labelled pixels."""
    scores = {name: segmentation(found.sum(0)).iou for name, found in confusions.items()}
    truth = next(iter(confusions.values())).sum((0, 2))
    shares = truth / max(1, truth.sum())
    rows: list[list[Cell]] = [
        [label, round(float(shares[i]), 3), *(round(float(iou[i]), 3) for iou in scores.values())]
        for i, label in enumerate(classes)
    ]
    return Table(f"{probe}: IoU of each class", ("class", "share of pixels", *scores), rows)


# ---- objects in videos


def propagation_table(
    scores: Mapping[str, Sequence[ObjectScore]], *, title: str = "", seed: int = 0
) -> Table:
    """J, F and their mean over objects, with intervals that resample sequences.

    Parameters
    ----------
    scores
        By the name of the features: the same objects in the same order.

    Raises
    ------
    DataError
        `TRAINED`, `TWIN` or `RAW` is missing, or there is no object.
    """
    _must_hold(scores)
    objects = scores[TRAINED]
    if not objects:
        raise DataError("no sequence has an object", remedy="look at the first label maps")
    groups = np.array([one.sequence for one in objects])
    statistics = {
        name: mean_statistic(np.array([one.jf for one in found])) for name, found in scores.items()
    }

    def interval_of(statistic: Statistic) -> Interval:
        return bootstrap(statistic, len(objects), groups=groups, seed=seed)

    gains = {
        name: interval_of(_minus(statistics[TRAINED], statistics[name])) for name in (TWIN, RAW)
    }
    rows: list[list[Cell]] = []
    for name, found in scores.items():
        gain = None
        if name != TWIN:
            gain = _shown(interval_of(_minus(statistics[name], statistics[TWIN])))
        j, f = (float(np.mean([getattr(one, key) for one in found])) for key in ("j", "f"))
        rows.append([name, _shown(interval_of(statistics[name])), gain, j, f])
    sequences = len(np.unique(groups))
    notes = [
        verdict(
            f"Label propagation, J&F of {len(objects)} objects in {sequences} sequences",
            {name: float(np.mean([one.jf for one in found])) for name, found in scores.items()},
            gains[TWIN],
            gains[RAW],
        ),
        _intervals("sequences"),
    ]
    if sequences < 3:
        notes.append(f"{sequences} sequences are too few for an interval to mean much.")
    columns = ("features", "J&F", "gain over the twin", "J", "F")
    return Table(title or "label propagation", columns, rows, tuple(notes))
