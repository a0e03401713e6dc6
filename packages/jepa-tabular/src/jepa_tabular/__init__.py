"""T-JEPA for tables: representations of rows without labels and without augmentations.

    from jepa_tabular import TJEPATransformer

    Z = TJEPATransformer().fit(X).transform(X)  # X: DataFrame or array; Z: [rows, features]

Names are imported when they are first used, so that `import jepa_tabular` costs no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

# Public name -> module that defines it.
_WHERE = {
    "ColumnsConfig": "jepa_tabular.presets",
    "MaskSampler": "jepa_tabular.masks",
    "ModelConfig": "jepa_tabular.presets",
    "PretrainConfig": "jepa_tabular.presets",
    "TJEPA": "jepa_tabular.model",
    "TJEPAClassifier": "jepa_tabular.estimators",
    "TJEPARegressor": "jepa_tabular.estimators",
    "TJEPATransformer": "jepa_tabular.estimators",
    "TablePreprocessor": "jepa_tabular.preprocess",
    "TableShape": "jepa_tabular.presets",
    "TabularEncoder": "jepa_tabular.model",
    "collapse_report": "jepa_tabular.analysis",
    "evaluate": "jepa_tabular.evaluation",
    "load": "jepa_tabular.inference",
    "load_table": "jepa_tabular.data.files",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module jepa_tabular has no attribute {name}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
