"""Fixed position tables: computed, never stored with the weights."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_core.errors import ConfigError


def sincos_1d(
    n: int, dim: int, base: float = 10_000.0, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "n dim"]:
    """Interleaved sine and cosine of positions 0 .. n-1 (Vaswani et al. 2017, section 3.5).

    Column 2i is sin(position * base^(-2i/dim)), column 2i+1 the cosine. Computed in float64,
    returned as `dtype`.

    Raises
    ------
    ConfigError
        `dim` is odd.
    """
    _check_width(dim, 2)
    return _angles(torch.arange(n), dim, base).flatten(1).to(dtype)


def sincos_2d(
    rows: int,
    columns: int,
    dim: int,
    base: float = 10_000.0,
    dtype: torch.dtype = torch.float32,
    *,
    like: tuple[int, int] | None = None,
) -> Float[Tensor, "rows*columns dim"]:
    """Concatenated sine and cosine on a grid, row-major (MAE and I-JEPA's table).

    Quarters of the width, in order: sine and cosine of the column number, sine and cosine of the
    row number; frequencies base^(-i / (dim/4)). Computed in float64, returned as `dtype`.

    Parameters
    ----------
    like
        Rows and columns of another grid over the same image: the centres of the cells then have
        the coordinates that they have there. A model trained on that grid can so be shown images
        of other sizes.

    Raises
    ------
    ConfigError
        `dim` is not a multiple of 4.
    """
    _check_width(dim, 4)
    sides = [
        torch.arange(n)
        if there in (None, n)
        else (torch.arange(n).double() + 0.5) * there / n - 0.5
        for n, there in zip((rows, columns), like or (None, None), strict=True)
    ]
    row, column = torch.meshgrid(*(side.double() for side in sides), indexing="ij")
    halves = [
        _angles(axis.flatten(), dim // 2, base).transpose(1, 2).flatten(1) for axis in (column, row)
    ]
    return torch.cat(halves, 1).to(dtype)


def _angles(positions: Tensor, dim: int, base: float) -> Float[Tensor, "n dim/2 2"]:
    """(sin, cos) of position * base^(-2i/dim) for i < dim/2."""
    frequency = base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = positions.double()[:, None] * frequency
    return torch.stack((angle.sin(), angle.cos()), -1)


def _check_width(dim: int, factor: int) -> None:
    if dim % factor:
        raise ConfigError(
            f"this sine and cosine table cannot have width {dim}",
            remedy=f"take a multiple of {factor}",
        )
