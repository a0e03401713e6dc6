"""`jepa doctor` names what this machine computes with."""

from __future__ import annotations

import pytest
import torch

from jepa_core.doctor import findings
from jepa_core.layers import linear


@pytest.mark.parametrize(
    ("faster", "build", "says"),
    [
        (True, "BLAS_INFO=mkl, ", "oneDNN in Linear layers (MKL would leave AVX-512 unused)"),
        (
            False,
            "Build settings: BLAS_INFO=mkl, BUILD_TYPE=Release",
            "MKL in Linear layers, as torch has it",
        ),
        (False, "BLAS_INFO=open, ", "OpenBLAS in Linear layers, as torch has it"),
        (False, "BLAS_INFO=accelerate, ", "Accelerate in Linear layers, as torch has it"),
        (False, "BLAS_INFO=nvpl, ", "nvpl in Linear layers, as torch has it"),
        (False, "PyTorch built with: GCC", "a library unknown in Linear layers, as torch has it"),
    ],
)
def test_the_library_of_float32_products_is_named(
    monkeypatch: pytest.MonkeyPatch, faster: bool, build: str, says: str
) -> None:
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: faster)
    monkeypatch.setattr(torch.__config__, "show", lambda: build)
    assert findings()["cpu float32"] == says
