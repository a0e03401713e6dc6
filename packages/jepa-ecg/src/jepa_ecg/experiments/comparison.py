"""A pre-trained encoder against its controls on one set of records, seed by seed.

Arms: the untrained twin (same recipe, same seed), a better-scaled untrained twin, the JEPA, and a
masked autoencoder of equal size. Their features go through one probe, chosen inside the training
part; raw features stand beside them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import joblib
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from matplotlib.figure import Figure

from jepa_core.domain import Machine
from jepa_core.evaluation.intervals import bootstrap, paired
from jepa_core.evaluation.linear import ridge
from jepa_core.evaluation.metrics import Counts, Parts, auc_statistic, macro_auc
from jepa_core.report.figures import bars_with_intervals
from jepa_core.report.table import Table
from jepa_core.run import Run
from jepa_ecg.inference import Pool, PretrainedECG, embed_signals
from jepa_ecg.model import ECGEncoder
from jepa_ecg.presets import PretrainConfig
from jepa_ecg.pretrain import Pretrained, final_encoder, pretrain, untrained
from jepa_ecg.rivals import MaskedAutoencoder
from jepa_ecg.source import ArraySignals

JEPA, TWIN, SCALED, MAE = "JEPA", "untrained twin", "untrained, scaled", "masked autoencoder"
POOLS: tuple[Pool, ...] = ("mean", "mean+std+change")


@dataclass(frozen=True)
class Records:
    """Normalised records with labels and their parts.

    Parameters
    ----------
    signal
        float32 [records, leads, samples], normalised.
    unlabelled
        Records the encoder is trained on.
    labelled
        Records with labels, in the order of `y`.
    folds
        Cross-validation group of each labelled record: 0, 1, ... inside the training part, and -1
        for the test part, which no choice ever sees.
    patients
        What the bootstrap resamples.
    """

    signal: Float32[np.ndarray, "records leads samples"]
    unlabelled: Int64[np.ndarray, " unlabelled"]
    labelled: Int64[np.ndarray, " labelled"]
    y: UInt8[np.ndarray, "labelled classes"]
    classes: tuple[str, ...]
    folds: Int64[np.ndarray, " labelled"]
    patients: Int64[np.ndarray, " labelled"]

    @property
    def test(self) -> Bool[np.ndarray, " labelled"]:
        """Labelled records of the test part."""
        return self.folds < 0


@dataclass(frozen=True)
class Scores:
    """Probe scores of one feature set: out-of-fold inside the training part, and of the test part.

    Parameters
    ----------
    scores
        float64 [labelled, classes].
    cross_validated, tested
        Macro-AUC of the two parts.
    """

    scores: Float[np.ndarray, "labelled classes"]
    cross_validated: float
    tested: float


Features = dict[Pool, Float32[np.ndarray, "labelled dim"]]


@dataclass(frozen=True)
class Seed:
    """What one seed gave: features of every arm, and the run of the JEPA."""

    features: dict[str, Features]
    encoder: ECGEncoder
    unexplained: float


def run_seeds(
    records: Records,
    config: PretrainConfig,
    seeds: Sequence[int],
    *,
    run: Run,
    arms: Sequence[str],
    pools: Sequence[Pool] = POOLS,
    resume: bool = False,
) -> list[Seed]:
    """Train every arm for every seed, a process a core, one thread each.

    The first seed's JEPA keeps its checkpoints and metrics in `run`.
    """
    jobs = min(len(seeds), os.cpu_count() or 1)
    parallel = joblib.Parallel(n_jobs=jobs)
    return list(
        parallel(
            joblib.delayed(_one_seed)(
                records, config, seed, run if seed == seeds[0] else None, arms, pools, resume
            )
            for seed in seeds
        )
    )


def probe(features: Float[np.ndarray, "labelled dim"], records: Records) -> Scores:
    """Ridge, its strength chosen by cross-validation by patient inside each training part."""
    y = records.y.astype(np.float64)
    patients = records.patients
    scores = np.full(y.shape, np.nan)
    inside = np.flatnonzero(~records.test)
    for fold in np.unique(records.folds[inside]):
        out = records.folds == fold
        train = ~records.test & ~out
        model = ridge(features[train], y[train], groups=patients[train])
        scores[out] = model.scores(features[out])
    if records.test.any():
        model = ridge(features[inside], y[inside], groups=patients[inside])
        scores[records.test] = model.scores(features[records.test])
    parts = [
        macro_auc(records.y[part], scores[part], classes=records.classes).macro
        for part in (~records.test, records.test)
    ]
    return Scores(scores, *parts)


def probe_arms(seeds: Sequence[Seed], records: Records) -> dict[tuple[str, Pool], list[Scores]]:
    """The probe on every arm under every pooling: scores seed by seed."""
    return {
        (arm, pool): [probe(seed.features[arm][pool], records) for seed in seeds]
        for arm, pools in seeds[0].features.items()
        for pool in pools
    }


def comparison_table(
    title: str,
    trained: Mapping[tuple[str, Pool], Sequence[Scores]],
    raw: Mapping[str, Scores],
    *,
    notes: Sequence[str] = (),
) -> Table:
    """Mean and spread over seeds of every arm, its paired gain over the twin, and raw rows."""
    rows: list[list[str | float | int | None]] = []
    for (arm, pool), seeds in trained.items():
        row: list[str | float | int | None] = [arm, pool]
        for part in ("cross_validated", "tested"):
            values = [getattr(one, part) for one in seeds]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            row.append(f"{np.mean(values):.3f}{spread}")
        for part in ("cross_validated", "tested"):
            twin = trained[TWIN, pool]
            row.append(
                None
                if arm == TWIN
                else str(
                    paired(
                        [getattr(one, part) for one in seeds],
                        [getattr(one, part) for one in twin],
                    )
                )
            )
        rows.append(row)
    for name, one in raw.items():
        rows.append([name, "–", f"{one.cross_validated:.3f}", f"{one.tested:.3f}", None, None])
    columns = (
        "features",
        "pooling",
        "cross-validated",
        "test",
        "gain over the twin, cross-validated",
        "gain over the twin, test",
    )
    return Table(title, columns, rows, tuple(notes))


def gain_over(
    seeds: Sequence[Scores], other: Sequence[Scores], records: Records
) -> tuple[float, float, float]:
    """Test macro-AUC, mean over seeds, minus that of `other`: estimate and 95 % interval over
    patients."""
    y, test = records.y[records.test], records.test

    def mean(group: Sequence[Scores], counts: Counts) -> Parts:
        return np.mean([auc_statistic(y, one.scores[test])(counts) for one in group], axis=0)

    found = bootstrap(
        lambda counts: mean(seeds, counts) - mean(other, counts),
        len(y),
        groups=records.patients[test],
        resamples=300,
    )
    return found.estimate, found.low, found.high


def comparison_figure(
    trained: Mapping[tuple[str, Pool], Sequence[Scores]], raw: Mapping[str, Scores]
) -> Figure:
    """Test macro-AUC of every arm: mean over seeds with their range, and raw features."""
    names, values, spans = [], [], []
    for (arm, pool), seeds in trained.items():
        tested = [one.tested for one in seeds]
        names.append(f"{arm}, {pool}")
        values.append(float(np.mean(tested)))
        spans.append((min(tested), max(tested)))
    for name, one in raw.items():
        names.append(name)
        values.append(one.tested)
        spans.append((one.tested, one.tested))
    return bars_with_intervals(
        names, values, spans, start=0.5, xlabel="macro-AUC, test part; lines span the seeds"
    )


def arm_features(
    encoder: ECGEncoder,
    signal: Float32[np.ndarray, "records leads samples"],
    pools: Sequence[Pool],
) -> Features:
    """Embeddings of normalised records under each pooling."""
    # The records are normalised already.
    leads = signal.shape[1]
    model = PretrainedECG(encoder, torch.zeros(leads), torch.ones(leads))
    return {pool: np.stack(list(embed_signals(model, signal, pool=pool))) for pool in pools}


def _one_seed(
    records: Records,
    config: PretrainConfig,
    seed: int,
    run: Run | None,
    arms: Sequence[str],
    pools: Sequence[Pool],
    resume: bool,
) -> Seed:
    # Two seeds at once on a terminal: each writes plain lines, not a bar over the other's.
    os.environ["TTY_COMPATIBLE"] = "0"
    machine = Machine(seed=seed, device="cpu", threads=1)
    torch.set_num_threads(1)
    signals = ArraySignals(records.signal[records.unlabelled])
    labelled = records.signal[records.labelled]
    encoders: dict[str, ECGEncoder] = {}
    done: Pretrained | None = None
    if TWIN in arms:
        encoders[TWIN] = untrained(config, seed).encoder
    if SCALED in arms:
        scaled = replace(config, model=replace(config.model, patch_init="fan-in"))
        encoders[SCALED] = untrained(scaled, seed).encoder
    if MAE in arms:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            rival = MaskedAutoencoder(config)
        encoders[MAE] = pretrain(signals, config, machine=machine, module=rival).encoder
    done = pretrain(signals, config, machine=machine, run=run, resume=resume)
    # Every arm is taken as its last step left it: the rival has no choice of checkpoint.
    encoders[JEPA] = last = final_encoder(done.module, config)
    looked = [line["health/unexplained"] for line in done.result.history if _looked(line)]
    return Seed(
        {arm: arm_features(encoders[arm].eval(), labelled, pools) for arm in arms},
        last,
        float(looked[-1]),
    )


def _looked(line: Mapping[str, object]) -> bool:
    return line.get("health/unexplained") is not None
