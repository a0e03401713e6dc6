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
    """Write report.html of a run folder from what lies in it."""
    return report.write_noted_report(run, _WHAT)


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
