"""The report of an ECG run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jepa_core import report
from jepa_core.masking.span import RunSampler
from jepa_core.report import pictures
from jepa_core.run import Run
from jepa_ecg.figures import mask_figure
from jepa_ecg.presets import PretrainConfig

_WHAT = {
    "pretrain": "An encoder trained without labels",
    "finetune": "A classifier trained on an encoder",
    "demo": "The whole job on generated records",
    "reproduce": "The paper's claim on 500 real records",
}


def write_report(run: Run) -> Path:
    """Write report.html of a run folder from what lies in it.

    The summary is the first note of every table, in the order of their names: each experiment
    writes there what its numbers say.
    """
    record = run.record
    lines = [f"{_WHAT.get(record['verb'], record['verb'])}, in {run.path.name}."]
    lines += [
        table.notes[0]
        for path in sorted(run.results.glob("*.json"))
        if (table := _table(path)).notes
    ]
    return report.write_report(
        run,
        title=f"jepa ecg {record['verb']}: {run.path.name}",
        summary="\n\n".join(lines),
    )


def save_mask_figure(run: Run, signal: np.ndarray, config: PretrainConfig, *, seed: int) -> Path:
    """Draw the first mask of the run over one crop in mV, float [leads, samples]."""
    masks = RunSampler(config.model.tokens, config.keep, config.min_block, circular=config.circular)
    context, _ = masks(np.zeros(1, np.int64), 0, step=0, seed=seed)
    figure = mask_figure(
        signal,
        context.indices[0].numpy(),
        fs=config.model.fs,
        leads=config.model.leads,
        patch=config.model.patch,
    )
    path = run.figures / "mask.png"
    caption = "What the encoder sees of one crop: the shaded tokens are hidden and predicted."
    pictures.save(figure, path, caption)
    return path


def _table(path: Path) -> report.Table:
    from jepa_core.config import read_json

    return report.Table.from_dict(read_json(path), where=path)
