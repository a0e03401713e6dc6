"""`jepa ecg reproduce`: the paper's claim on real records, with its controls.

The claim, at a size that fits: pre-training on unlabelled records makes a frozen encoder better
than the same encoder untrained, and latent prediction at least as good as reconstruction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jepa_core import files
from jepa_core.config import to_dict
from jepa_core.evaluation.intervals import paired
from jepa_core.report import pictures
from jepa_core.report.figures import embedding_map
from jepa_core.report.table import interval
from jepa_core.run import Run, run_record
from jepa_ecg.baselines import log_band_powers, raw_statistics, rhythm_features
from jepa_ecg.data.corpus import Corpus
from jepa_ecg.data.ptbxl import ptbxl_labels, read_ptbxl500
from jepa_ecg.data.transforms import normalise
from jepa_ecg.evaluation import TRAIN_FOLDS
from jepa_ecg.experiments.comparison import (
    JEPA,
    MAE,
    SCALED,
    TWIN,
    Records,
    Scores,
    comparison_figure,
    comparison_table,
    gain_over,
    probe,
    probe_arms,
    run_seeds,
)
from jepa_ecg.inference import Pool
from jepa_ecg.presets import REPRODUCE, PretrainConfig
from jepa_ecg.report import save_mask_figure, write_report

# Pairs of folds that cross-validation leaves out; 9 and 10 test.
_GROUPS = {fold: (fold - 1) // 2 for fold in TRAIN_FOLDS}
_METHOD = (
    "Ridge on frozen features. Cross-validated: out-of-fold scores of folds 1-8, whose signals "
    "(not labels) pre-training saw. Test: folds 9 and 10. ± is the standard deviation over seeds; "
    "gains are paired, with 95 % t intervals and the sign of each seed."
)


@dataclass(frozen=True)
class Reproduce:
    """Pre-train on 353 real PTB-XL records and compare on 488 labelled ones, three seeds.

    Beside the encoder stand its untrained twin, a better-scaled untrained twin, a masked
    autoencoder of equal size, and raw features. Hyper-parameters were chosen by cross-validation
    inside folds 1-8; folds 9 and 10 test. With --corpus, the same on a whole PTB-XL at 100 Hz.
    """

    out: Path = Path("runs/ecg-reproduce")
    """The run folder to write."""
    data: Path | None = None
    """Folder of ptbxl500_lr.npz and ptbxl/; by default ecg/ in $JEPA_DATA."""
    corpus: Path | None = None
    """A corpus of PTB-XL at 100 Hz, from `jepa ecg data build`, in place of the 500 records."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each trains every arm."""
    resume: bool = False
    """Continue the run in the folder."""
    overwrite: bool = False
    """Replace the run in the folder."""
    config: PretrainConfig = REPRODUCE
    """The recipe."""

    def __call__(self) -> None:
        run = Run.create(
            self.out,
            run_record("ecg", "reproduce", to_dict(self)),
            resume=self.resume,
            overwrite=self.overwrite,
        )
        if self.corpus is not None:
            records, millivolts = corpus_records(self.corpus)
        else:
            records, millivolts = ptbxl500_records(self.data or data_folder())
        found = run_seeds(
            records,
            self.config,
            self.seeds,
            run=run,
            arms=(TWIN, SCALED, MAE, JEPA),
            resume=self.resume,
        )
        trained = probe_arms(found, records)
        raw = raw_scores(records, millivolts[records.labelled], self.config.model.fs)
        table = comparison_table(
            f"superdiagnostic macro-AUC, {len(records.y)} records, "
            f"{len(self.seeds)} seeds, {self.config.steps} steps",
            trained,
            raw,
            notes=[
                verdict(trained, raw, records),
                f"Pre-trained without labels on {len(records.unlabelled)} records. {_METHOD}",
            ],
        )
        table.print()
        run.save_table("comparison", table)
        (run.path / "comparison.md").write_text(table.to_markdown(), encoding="utf-8")
        pictures.save(
            comparison_figure(trained, raw),
            run.figures / "comparison.svg",
            "Macro-AUC on the test folds.",
        )
        save_mask_figure(
            run,
            millivolts[0][:, : self.config.model.samples],
            self.config,
            seed=self.seeds[0],
        )
        one = found[0].features[JEPA]["mean"]
        single = records.y.sum(1) == 1
        labels = [records.classes[i] for i in records.y[single].argmax(1)]
        pictures.save(
            embedding_map(one[single], labels),
            run.figures / "embedding.svg",
            "Embeddings of the records with exactly one superclass, first seed.",
        )
        print(f"report: {write_report(run)}")


def data_folder() -> Path:
    """Folder of the ECG files: `ecg` in $JEPA_DATA, else beside the working folder.

    Raises
    ------
    DataError
        There is none.
    """
    return files.data_folder(
        "ecg",
        "ptbxl500_lr.npz",
        "the 500 PTB-XL records (ptbxl500_lr.npz)",
        "give --data, or give --corpus",
    )


def ptbxl500_records(folder: Path) -> tuple[Records, np.ndarray]:
    """The 500 records, normalised with the statistics of folds 1-8, and the same in mV."""
    whole = read_ptbxl500(folder / "ptbxl500_lr.npz")
    database = folder / "ptbxl" / "ptbxl_database.csv"
    statements = folder / "ptbxl" / "scp_statements.csv"
    ids, y, classes, fold = ptbxl_labels(database, statements, "superdiagnostic")
    everything = ptbxl_labels(database, statements, "all")
    train = np.isin(everything.fold, TRAIN_FOLDS)
    training = whole.signal[train].astype(np.float64)
    mean, std = training.mean((0, 1)), training.std((0, 1))
    signal = normalise(whole.signal, mean, std).transpose(0, 2, 1)
    place = {record: i for i, record in enumerate(whole.ecg_id.tolist())}
    records = Records(
        np.ascontiguousarray(signal, np.float32),
        np.flatnonzero(train),
        np.array([place[record] for record in ids.tolist()]),
        y,
        tuple(map(str, classes)),
        np.array([_GROUPS.get(int(one), -1) for one in fold]),
        _patients(database, ids),
    )
    return records, whole.signal.transpose(0, 2, 1)


def corpus_records(path: Path) -> tuple[Records, np.ndarray]:
    """A corpus of PTB-XL in memory; folds 1-8 train, 9 and 10 test."""
    corpus = Corpus(path)
    found = corpus.labels("superdiagnostic")
    train = np.flatnonzero(np.isin(corpus.fold, TRAIN_FOLDS))
    size = int(corpus.lengths.min())
    everything = np.arange(len(corpus))
    millivolts = corpus.millivolts(everything, np.zeros(len(corpus), np.int64), size)
    mean, std = corpus.measure(train)
    signal = corpus.with_statistics(mean, std).crops(
        everything, np.zeros(len(corpus), np.int64), size
    )
    patients = np.unique(corpus.patients[found.rows], return_inverse=True)[1]
    records = Records(
        signal,
        train,
        found.rows,
        found.y,
        tuple(map(str, found.classes)),
        np.array([_GROUPS.get(int(one), -1) for one in found.fold]),
        patients,
    )
    return records, millivolts


def raw_scores(records: Records, millivolts: np.ndarray, fs: float) -> dict[str, Scores]:
    """The probe on raw features: samples, spectrum, both, and a cardiologist's measurements."""
    statistics = raw_statistics(millivolts)
    bands = log_band_powers(records.signal[records.labelled], fs)
    return {
        "raw statistics": probe(statistics, records),
        "raw log band powers": probe(bands, records),
        "raw, both": probe(np.concatenate((statistics, bands), 1), records),
        "rhythm and beat measurements": probe(rhythm_features(millivolts, fs), records),
    }


def verdict(
    trained: Mapping[tuple[str, Pool], Sequence[Scores]],
    raw: Mapping[str, Scores],
    records: Records,
) -> str:
    """What the numbers say, in words, whatever the sign."""
    sentences = []
    for pool in [pool for arm, pool in trained if arm == JEPA]:
        jepa = trained[JEPA, pool]
        parts = []
        for name in (TWIN, SCALED, MAE):
            gain = paired([one.tested for one in jepa], [one.tested for one in trained[name, pool]])
            parts.append(f"{gain} over the {name}")
        sentences.append(f"Pooled by {pool}, the JEPA gains on the test part " + ", ".join(parts))
    best_pool = max(
        (pool for arm, pool in trained if arm == JEPA),
        key=lambda pool: np.mean([one.cross_validated for one in trained[JEPA, pool]]),
    )
    jepa = trained[JEPA, best_pool]
    mean = float(np.mean([one.cross_validated for one in jepa]))
    for name, one in raw.items():
        estimate, low, high = gain_over(jepa, [one], records)
        sentences.append(
            f"Pooled by {best_pool} it stands against {name} at {mean - one.cross_validated:+.3f} "
            f"cross-validated and {interval(estimate, low, high)} on the test part (95 % over "
            "patients)"
        )
    return ". ".join(sentences) + "."


def _patients(database: Path, ids: np.ndarray) -> np.ndarray:
    import pandas as pd

    table = pd.read_csv(database, index_col="ecg_id", usecols=["ecg_id", "patient_id"])
    return np.unique(table.loc[ids, "patient_id"].to_numpy(), return_inverse=True)[1]
