"""Joint-embedding predictive pre-training for 12-lead electrocardiograms.

    import jepa_ecg

    encoder = jepa_ecg.load("runs/ecg")  # a run folder, or a hub id
    tokens = encoder(signal)             # [batch, tokens, dim]

Names are imported when they are first used, so that `import jepa_ecg` costs no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

# Public name -> module that defines it.
_WHERE = {
    "ECGClassifier": "jepa_ecg.classifier",
    "ECGEncoder": "jepa_ecg.model",
    "ECGFormatError": "jepa_ecg.data.errors",
    "ECGJEPA": "jepa_ecg.model",
    "ECGPredictor": "jepa_ecg.model",
    "ModelConfig": "jepa_ecg.presets",
    "PretrainConfig": "jepa_ecg.presets",
    "Record": "jepa_ecg.data.wfdb_record",
    "bootstrap_auc": "jepa_ecg.evaluation",
    "embed": "jepa_ecg.inference",
    "highpass": "jepa_ecg.data.transforms",
    "interpolate_nans": "jepa_ecg.data.transforms",
    "load": "jepa_ecg.inference",
    "load_official_checkpoint": "jepa_ecg.checkpoints",
    "macro_auc": "jepa_core.evaluation.metrics",
    "normalise": "jepa_ecg.data.transforms",
    "ptbxl_labels": "jepa_ecg.data.ptbxl",
    "read_header": "jepa_ecg.data.wfdb_header",
    "read_record": "jepa_ecg.data.wfdb_record",
    "resample": "jepa_ecg.data.transforms",
    "sample_mask": "jepa_ecg.masking",
    "strided_crops": "jepa_ecg.data.transforms",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module jepa_ecg has no attribute {name}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
