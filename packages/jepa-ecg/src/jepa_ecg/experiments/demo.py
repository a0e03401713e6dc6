"""`jepa ecg demo`: the whole job on generated records, without a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from jepa_core.config import to_dict
from jepa_core.evaluation.intervals import paired
from jepa_core.report import pictures
from jepa_core.report.figures import embedding_map
from jepa_core.run import Run, next_free, run_record
from jepa_ecg import inference
from jepa_ecg.baselines import log_band_powers, raw_statistics, rhythm_features
from jepa_ecg.experiments.comparison import (
    JEPA,
    SCALED,
    TWIN,
    Records,
    Scores,
    comparison_figure,
    comparison_table,
    probe,
    probe_arms,
    run_seeds,
)
from jepa_ecg.heart import CODES
from jepa_ecg.inference import Pool
from jepa_ecg.presets import DEMO, PretrainConfig
from jepa_ecg.report import save_mask_figure, write_report
from jepa_ecg.simulate import SimulationConfig, simulate

UNLABELLED, TRAINING, TEST = 1500, 200, 600
_FOLDS = 4
_METHOD = (
    f"Generated records: {UNLABELLED} without labels for pre-training, {TRAINING} to train the "
    f"probe (cross-validated in {_FOLDS} folds), {TEST} to test it. ± is the standard deviation "
    "over seeds; gains are paired, with 95 % t intervals and the sign of each seed."
)


@dataclass(frozen=True)
class Demo:
    """Generate records, pre-train without labels, evaluate beside controls, write a report.

    1,500 generated records are for pre-training, 200 labelled ones for training a probe and 600 for
    testing it. Takes under two minutes on two cores.
    """

    out: Path | None = None
    """The run folder to write; by default the next free runs/ecg-demo."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of encoder and training; the records stay the same."""
    overwrite: bool = False
    """Replace the run in the folder."""
    config: PretrainConfig = DEMO
    """The recipe."""

    def __call__(self) -> None:
        out = self.out or next_free(Path("runs/ecg-demo"))
        run = Run.create(out, run_record("ecg", "demo", to_dict(self)), overwrite=self.overwrite)
        print(f"generating {UNLABELLED + TRAINING + TEST} records")
        records, millivolts, mean, std = generated()
        print(f"pre-training {len(self.seeds)} seeds of {self.config.steps} steps")
        found = run_seeds(records, self.config, self.seeds, run=run, arms=(TWIN, SCALED, JEPA))
        trained = probe_arms(found, records)
        raw = classical_scores(records, millivolts[records.labelled], self.config.model.fs)
        table = comparison_table(
            f"macro-AUC over {len(records.classes)} findings, {TEST} test records, "
            f"{len(self.seeds)} seeds",
            trained,
            raw,
            notes=[verdict(trained, raw), _METHOD],
        )
        table.print()
        run.save_table("comparison", table)
        pictures.save(
            comparison_figure(trained, raw),
            run.figures / "comparison.svg",
            "Macro-AUC on the test records.",
        )
        save_mask_figure(
            run, millivolts[0][:, : self.config.model.samples], self.config, seed=self.seeds[0]
        )
        model = inference.PretrainedECG(
            found[0].encoder, torch.from_numpy(mean), torch.from_numpy(std)
        )
        inference.save(run.encoder, model)
        pictures.save(
            embedding_map(found[0].features[JEPA]["mean"], rarest_finding(records)),
            run.figures / "embedding.svg",
            "Embeddings of the labelled records, coloured by their rarest finding, first seed.",
        )
        print(f"report: {write_report(run)}")


def generated(
    config: SimulationConfig | None = None,
) -> tuple[Records, np.ndarray, np.ndarray, np.ndarray]:
    """Generated records, the same in mV, and the statistics of the unlabelled ones."""
    total = UNLABELLED + TRAINING + TEST
    signal, y = simulate(np.arange(total), config or SimulationConfig())
    unlabelled = signal[:UNLABELLED].astype(np.float64)
    mean, std = unlabelled.mean((0, 2)), unlabelled.std((0, 2))
    normalised = np.clip((signal - mean[:, None]) / std[:, None], -5, 5).astype(np.float32)
    labelled = np.arange(UNLABELLED, total)
    folds = np.where(np.arange(TRAINING + TEST) < TRAINING, np.arange(TRAINING + TEST) % _FOLDS, -1)
    kept = [
        i
        for i in range(y.shape[1])
        if min(y[labelled][folds >= 0, i].sum(), (1 - y[labelled][folds >= 0, i]).sum()) >= 8
    ]
    records = Records(
        normalised,
        np.arange(UNLABELLED),
        labelled,
        y[labelled][:, kept],
        tuple(CODES[i] for i in kept),
        folds,
        labelled,
    )
    return records, signal, mean.astype(np.float32), std.astype(np.float32)


def classical_scores(records: Records, millivolts: np.ndarray, fs: float) -> dict[str, Scores]:
    """The probe on what needs no training: samples, spectrum, and a cardiologist's measurements."""
    x = records.signal[records.labelled]
    return {
        "raw statistics": probe(raw_statistics(x), records),
        "raw log band powers": probe(log_band_powers(x, fs), records),
        "rhythm and amplitude features": probe(rhythm_features(millivolts, fs), records),
    }


def verdict(trained: Mapping[tuple[str, Pool], Sequence[Scores]], raw: Mapping[str, Scores]) -> str:
    """What the numbers say, in words, whatever the sign."""
    sentences = []
    for pool in [pool for arm, pool in trained if arm == JEPA]:
        jepa = [one.tested for one in trained[JEPA, pool]]
        gains = [
            f"{paired(jepa, [one.tested for one in trained[name, pool]])} over the {name}"
            for name in (TWIN, SCALED)
        ]
        sentences.append(f"Pooled by {pool}, the JEPA gains " + " and ".join(gains))
    best = max(raw, key=lambda name: raw[name].tested)
    sentences.append(f"{best.capitalize()} alone reach {raw[best].tested:.3f}")
    return ". ".join(sentences) + "."


def rarest_finding(records: Records) -> list[str]:
    """One word a labelled record for the map: its rarest finding."""
    order = np.argsort(records.y.sum(0))
    names = []
    for row in records.y:
        present = [records.classes[i] for i in order if row[i]]
        names.append(present[0] if present else "none")
    return names
