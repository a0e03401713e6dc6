"""The paper's protocols on a corpus: splits, features, windows, scores with intervals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64, Shaped, UInt8
from torch import Tensor, nn

from jepa_core import rng
from jepa_core.errors import DataError
from jepa_core.evaluation.compare import Probe
from jepa_core.evaluation.intervals import Interval, bootstrap
from jepa_core.evaluation.linear import logistic
from jepa_core.evaluation.metrics import auc_statistic, average_precision, macro_auc
from jepa_core.report.table import Table, interval
from jepa_core.training.sampler import Draw
from jepa_ecg.baselines import log_band_powers, raw_statistics
from jepa_ecg.data.corpus import Corpus, CorpusLabels
from jepa_ecg.data.transforms import crop_starts
from jepa_ecg.inference import Pool, PretrainedECG, embed_signals

TRAIN_FOLDS = (1, 2, 3, 4, 5, 6, 7, 8)
VALIDATION_FOLD = 9
TEST_FOLD = 10


@dataclass(frozen=True)
class Task:
    """A label task on a corpus, split.

    Parameters
    ----------
    name
        As the corpus calls it.
    classes
        Names of the columns of `y`.
    rows
        Record numbers in the corpus.
    y
        0 or 1.
    patients
        What the bootstrap resamples: the patient, or the record where none is known.
    train, validation, test
        Places in `rows`.
    """

    name: str
    classes: tuple[str, ...]
    rows: Int64[np.ndarray, " records"]
    y: UInt8[np.ndarray, "records classes"]
    patients: Shaped[np.ndarray, " records"]
    train: Int64[np.ndarray, " train"]
    validation: Int64[np.ndarray, " validation"]
    test: Int64[np.ndarray, " test"]

    @property
    def single(self) -> bool:
        """One class a record, trained with a softmax."""
        return self.name == "ST-MEM"


def split_task(corpus: Corpus, name: str, *, seed: int = 0) -> Task:
    """Records with labels in training (folds 1-8), validation (9) and test (10) part.

    Records without a fold get one by patient, 1 to 10 with equal probability, from the seed.

    Raises
    ------
    DataError
        The corpus has no such task, or a part would be empty.
    """
    found: CorpusLabels = corpus.labels(name)
    patients = np.array(
        [
            f"{source} patient {patient}" if patient else f"{source} record {record}"
            for source, patient, record in zip(
                corpus.source[found.rows],
                corpus.patients[found.rows],
                corpus.ids[found.rows],
                strict=True,
            )
        ]
    )
    fold = found.fold.astype(np.int64)
    if (fold == 0).any():
        names, member = np.unique(patients, return_inverse=True)
        hashes = np.array([rng.fnv1a32(patient) for patient in names.tolist()], np.int64)
        drawn = 1 + rng.bounded(rng.words(seed, "folds", hashes, 0, 1), 10)[:, 0]
        fold = np.where(fold == 0, drawn[member], fold)
    parts = [
        np.flatnonzero(np.isin(fold, folds))
        for folds in (TRAIN_FOLDS, (VALIDATION_FOLD,), (TEST_FOLD,))
    ]
    for part, what in zip(parts, ("training", "validation", "test"), strict=True):
        if not len(part):
            raise DataError(
                f"no record of task {name} is in the {what} folds",
                where=corpus.path,
                remedy="folds 1-8 train, 9 validates, 10 tests; use more records",
            )
    classes = tuple(str(label) for label in found.classes)
    return Task(name, classes, found.rows, found.y, patients, *parts)


def embeddings(
    model: PretrainedECG,
    corpus: Corpus,
    rows: Int64[np.ndarray, " records"],
    *,
    pool: Pool = "mean",
    batch_size: int = 64,
) -> Float32[np.ndarray, "records dim"]:
    """What `jepa ecg embed` would give for these records of the corpus."""
    return np.stack(
        list(embed_signals(model, _records(corpus, rows), pool=pool, batch_size=batch_size))
    )


def raw_features(
    model: PretrainedECG, corpus: Corpus, rows: Int64[np.ndarray, " records"]
) -> Float32[np.ndarray, "records columns"]:
    """Statistics and log band powers of the normalised signal: what an encoder has to beat."""
    found = []
    for signal in _records(corpus, rows):
        x = model.normalise(torch.from_numpy(signal[None])).numpy()
        found.append(np.concatenate((raw_statistics(x), log_band_powers(x, corpus.fs)), 1)[0])
    return np.stack(found).astype(np.float32)


def linear_probe(groups: Shaped[np.ndarray, " train"], *, seed: int = 0) -> Probe:
    """A probe for `compare`: one logistic regression a class, C chosen inside the training part."""

    def probe(
        train: Float[np.ndarray, "n dim"],
        y: UInt8[np.ndarray, "n classes"],
        test: Float[np.ndarray, "m dim"],
    ) -> Float64[np.ndarray, "m classes"]:
        return logistic(train, y, groups=groups, seed=seed).scores(test)

    return probe


def bootstrap_auc(
    y: UInt8[np.ndarray, "records classes"],
    score: Float[np.ndarray, "records classes"],
    *,
    groups: Shaped[np.ndarray, " records"] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Macro-AUC with a percentile interval over records, or over groups such as patients.

    A resample that lost a class is drawn again; after 20 tries it averages over the classes left.
    """
    statistic = auc_statistic(y, score)
    return bootstrap(statistic, len(y), groups=groups, resamples=resamples, seed=seed)


class CropSource:
    """Random crops of labelled records for `jepa_core.evaluation.finetune`.

    Parameters
    ----------
    corpus
        Normalised by `crops`.
    rows
        Record numbers.
    y
        0/1 columns, or class numbers for a softmax.
    size
        Samples of a crop.

    Raises
    ------
    DataError
        A record is shorter than a crop.
    """

    def __init__(
        self,
        corpus: Corpus,
        rows: Int64[np.ndarray, " records"],
        y: Shaped[np.ndarray, "records ..."],
        size: int,
        *,
        seed: int,
    ) -> None:
        _refuse_short(corpus, rows, size)
        self.corpus, self.rows, self.y, self.size, self.seed = corpus, rows, y, size, seed

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Signal [batch, leads, size] and labels."""
        rows = self.rows[draw.ids]
        room = self.corpus.lengths[rows] - self.size + 1
        words = rng.words(self.seed, "crop", draw.keys, draw.counters, 2)
        starts = np.floor(rng.uniform64(words)[:, 0] * room).astype(np.int64)
        return {
            "signal": torch.from_numpy(self.corpus.crops(rows, starts, self.size)),
            "y": torch.from_numpy(self.y[draw.ids]),
        }


def crop_windows(
    corpus: Corpus, rows: Int64[np.ndarray, " records"], size: int
) -> tuple[Int64[np.ndarray, " windows"], Int64[np.ndarray, " windows"]]:
    """Windows of every record, half overlapping: its record's place in `rows`, and its start.

    A tail shorter than a window is dropped, as in the paper.

    Raises
    ------
    DataError
        A record is shorter than a window.
    """
    _refuse_short(corpus, rows, size)
    starts = [crop_starts(n, size, max(1, size // 2)) for n in corpus.lengths[rows].tolist()]
    place = np.repeat(np.arange(len(rows)), [len(first) for first in starts])
    return place, np.concatenate(starts)


def window_batches(
    corpus: Corpus,
    rows: Int64[np.ndarray, " windows"],
    starts: Int64[np.ndarray, " windows"],
    size: int,
    *,
    batch_size: int = 256,
) -> Iterator[Float32[Tensor, "batch leads size"]]:
    """Normalised windows in batches: sample `starts[i]` on of record `rows[i]`."""
    for i in range(0, len(rows), batch_size):
        part = slice(i, i + batch_size)
        yield torch.from_numpy(corpus.crops(rows[part], starts[part], size))


@torch.no_grad()
def crop_logits(
    model: nn.Module, corpus: Corpus, rows: Int64[np.ndarray, " records"], size: int
) -> Float32[np.ndarray, "records classes"]:
    """Logits of each record, averaged over its windows before any sigmoid or softmax."""
    device = next(model.parameters()).device
    place, start = crop_windows(corpus, rows, size)
    batches = window_batches(corpus, rows[place], start, size)
    logits = torch.cat([model(signal.to(device)).float().cpu() for signal in batches])
    return record_means(logits.numpy(), place, len(rows))


def record_means(
    values: Float32[np.ndarray, "windows classes"],
    place: Int64[np.ndarray, " windows"],
    records: int,
) -> Float32[np.ndarray, "records classes"]:
    """Mean over the windows of each record."""
    total = np.zeros((records, values.shape[1]))
    np.add.at(total, place, values)
    return (total / np.bincount(place, minlength=records)[:, None]).astype(np.float32)


def probabilities(
    logits: Float[np.ndarray, "records classes"], *, single: bool
) -> Float64[np.ndarray, "records classes"]:
    """Sigmoid of each class, or a softmax over classes where a record has exactly one."""
    x = torch.from_numpy(np.asarray(logits, np.float64))
    return (x.softmax(1) if single else x.sigmoid()).numpy()


def thresholds(
    y: UInt8[np.ndarray, "records classes"], score: Float[np.ndarray, "records classes"]
) -> Float64[np.ndarray, " classes"]:
    """Per class the score at or above which a positive is called: the best F1 on these records.

    Of thresholds that are as good, the lowest; a class without positives gets infinity.
    """
    best = np.full(y.shape[1], np.inf)
    for i, (label, value) in enumerate(zip(y.T.astype(bool), score.T, strict=True)):
        if not label.any():
            continue
        order = np.argsort(-value, kind="stable")
        hits = np.cumsum(label[order])
        f1 = 2 * hits / (np.arange(1, len(order) + 1) + label.sum())
        # A cut between equal scores is none.
        last = np.append(value[order][1:] != value[order][:-1], True)
        f1 = np.where(last, f1, -1)
        best[i] = value[order][len(f1) - 1 - np.argmax(f1[::-1])]
    return best


def class_table(
    task: Task,
    validation: Float[np.ndarray, "validation classes"],
    test: Float[np.ndarray, "test classes"],
    *,
    seed: int = 0,
) -> Table:
    """Per class of the test part: positives, AUC with interval, average precision, and sensitivity,
    specificity and precision at the threshold chosen on the validation part."""
    y, patients = task.y[task.test], task.patients[task.test]
    cuts = thresholds(task.y[task.validation], validation)
    auc = macro_auc(y, test, classes=task.classes)
    precision = average_precision(y, test)
    called = test >= cuts
    rows: list[list[str | float | int | None]] = []
    for i, name in enumerate(task.classes):
        label = y[:, i].astype(bool)
        shown = "–"
        if 0 < label.sum() < len(label):
            one = bootstrap_auc(y[:, [i]], test[:, [i]], groups=patients, seed=seed)
            shown = interval(one.estimate, one.low, one.high)
        hit = int((called[:, i] & label).sum())
        rows.append(
            [
                name,
                int(label.sum()),
                shown,
                float(precision[i]) if label.any() else None,
                hit / label.sum() if label.any() else None,
                float((~called[:, i] & ~label).sum() / (~label).sum()) if (~label).any() else None,
                hit / called[:, i].sum() if called[:, i].any() else None,
                float(cuts[i]) if np.isfinite(cuts[i]) else None,
            ]
        )
    notes = [
        f"{len(y)} test records of {len(np.unique(patients))} patients; macro-AUC {auc}.",
        "Intervals resample patients; AP is average precision, PPV positive predictive value.",
        "A score at or above the cut is a positive: the best F1 on the validation fold.",
    ]
    if auc.skipped:
        notes.append(f"No AUC, for want of positives or negatives: {', '.join(auc.skipped)}.")
    columns = ("class", "pos.", "AUC", "AP", "sens.", "spec.", "PPV", "cut")
    return Table(f"{task.name}: per class, test fold", columns, rows, tuple(notes))


def fraction(task: Task, share: float, *, seed: int) -> Int64[np.ndarray, " chosen"]:
    """A random part of the training records, in places of `task.rows`; nested over shares.

    Raises
    ------
    DataError
        Fewer than two records would be left.
    """
    count = round(share * len(task.train))
    if count < 2:
        raise DataError(
            f"{share:g} of {len(task.train)} training records is {count}",
            remedy="take a larger fraction",
        )
    words = rng.words(seed, "fraction", task.rows[task.train], 0, 1)[:, 0]
    return np.sort(task.train[np.argsort(words, kind="stable")[:count]])


def _refuse_short(corpus: Corpus, rows: Int64[np.ndarray, " records"], size: int) -> None:
    short = rows[corpus.lengths[rows] < size]
    if len(short):
        raise DataError(
            f"{len(short)} labelled records are shorter than a crop of {size} samples, "
            f"such as {corpus.ids[short[0]]}",
            where=corpus.path,
            remedy="set --crop-seconds lower, or build the corpus with --min-seconds",
        )


def _records(
    corpus: Corpus, rows: Int64[np.ndarray, " records"]
) -> Iterator[Float32[np.ndarray, "leads samples"]]:
    return (corpus.record(int(row)) for row in rows)
