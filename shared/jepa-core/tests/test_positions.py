"""Position tables against the original's rows and the formulae written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from jepa_core.errors import ConfigError
from jepa_core.layers.positions import sincos_1d, sincos_2d


@pytest.mark.parametrize("dim", [192, 96])
def test_rows_of_the_1d_table_reproduce_the_original(data: Callable[[str], Path], dim: int) -> None:
    golden = np.load(data("ecg") / "golden_pos_embed.npz")
    table = sincos_1d(200, dim).numpy()
    assert table.dtype == np.float32
    np.testing.assert_allclose(table[golden["rows"]], golden[f"dim{dim}"], rtol=0, atol=1e-5)


def test_the_1d_tables_have_the_published_sums() -> None:
    assert float(sincos_1d(200, 192, dtype=torch.float64).sum()) == pytest.approx(
        12198.621, abs=2e-3
    )
    assert float(sincos_1d(200, 96, dtype=torch.float64).sum()) == pytest.approx(6032.155, abs=2e-3)


def test_1d_sines_and_cosines_interleave() -> None:
    table = sincos_1d(5, 6, base=100.0, dtype=torch.float64)
    for n in range(5):
        for i in range(3):
            angle = n * 100.0 ** (-2 * i / 6)
            assert float(table[n, 2 * i]) == pytest.approx(math.sin(angle), abs=1e-14)
            assert float(table[n, 2 * i + 1]) == pytest.approx(math.cos(angle), abs=1e-14)


def test_2d_quarters_are_column_then_row_sine_then_cosine() -> None:
    rows, columns, dim = 2, 3, 8
    table = sincos_2d(rows, columns, dim, dtype=torch.float64)
    assert table.shape == (6, 8)
    for r in range(rows):
        for c in range(columns):
            token = table[r * columns + c]
            for i in range(2):
                frequency = 10_000.0 ** (-i / 2)
                expected = [math.sin(c * frequency), math.cos(c * frequency)]
                expected += [math.sin(r * frequency), math.cos(r * frequency)]
                assert token[i::2].tolist() == pytest.approx(expected, abs=1e-14)


def test_widths_that_cannot_be_filled_are_refused() -> None:
    with pytest.raises(ConfigError, match="width 7"):
        sincos_1d(4, 7)
    with pytest.raises(ConfigError, match="width 10"):
        sincos_2d(2, 2, 10)
    with pytest.raises(ConfigError, match="width 7"):
        sincos_2d(2, 2, 7)


def test_a_grid_like_another_has_its_coordinates_at_the_centres_of_its_cells() -> None:
    """Four times as many cells over the same image: -1/4, 1/4, 3/4, ... in the coarse grid's."""
    fine = sincos_2d(4, 6, 8, dtype=torch.float64, like=(2, 3)).unflatten(0, (4, 6))
    for row in range(4):
        for column in range(6):
            y, x = (row + 0.5) / 2 - 0.5, (column + 0.5) / 2 - 0.5
            expected = [f(c * w) for c in (x, y) for f in (math.sin, math.cos) for w in (1, 0.01)]
            assert fine[row, column].tolist() == pytest.approx(expected, abs=1e-15)
    assert torch.equal(sincos_2d(3, 5, 16, like=(3, 5)), sincos_2d(3, 5, 16))
