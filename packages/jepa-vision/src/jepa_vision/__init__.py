"""DMT-JEPA and I-JEPA for images: encoders whose patch features are good, without labels.

    import jepa_vision

    encoder = jepa_vision.load("runs/x")   # a run folder, or a hub id
    tokens = encoder(images)               # uint8 [n, H, W, 3] to float32 [n, tokens, dim]

Names are imported when they are first used, so that `import jepa_vision` costs no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

# Public name -> module that defines it.
_WHERE = {
    "AggregationHead": "jepa_vision.head",
    "ArrayImages": "jepa_vision.data.images",
    "ImageClassifier": "jepa_vision.classifier",
    "ImageEncoder": "jepa_vision.model",
    "ImageFolder": "jepa_vision.data.folders",
    "ImageJEPA": "jepa_vision.model",
    "ImagePredictor": "jepa_vision.model",
    "ImageReadError": "jepa_vision.data.images",
    "ModelConfig": "jepa_vision.presets",
    "MultiBlockMasks": "jepa_vision.masks",
    "PretrainConfig": "jepa_vision.presets",
    "PretrainedImage": "jepa_vision.inference",
    "aggregate": "jepa_vision.targets",
    "collapse_report": "jepa_vision.collapse",
    "encode": "jepa_vision.inference",
    "from_transformers": "jepa_vision.checkpoints",
    "load": "jepa_vision.inference",
    "load_classifier": "jepa_vision.classifier",
    "load_image": "jepa_vision.data.images",
    "load_official": "jepa_vision.checkpoints",
    "neighbour_table": "jepa_vision.targets",
    "save_official": "jepa_vision.checkpoints",
    "select_neighbours": "jepa_vision.targets",
    "to_transformers": "jepa_vision.checkpoints",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module jepa_vision has no attribute {name}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
