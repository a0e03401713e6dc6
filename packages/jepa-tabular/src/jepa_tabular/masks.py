"""Which columns the encoder sees and which are predicted (arXiv 2410.05016, section 3).

Masks hold token indices: with R [REG] tokens, column i of the tokenizer's order is token R + i.
The official program leaves the R out, so that there [REG] tokens are masked like columns and the
last R columns never are; and its masks of a row are views of one array, so that all are the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64

from jepa_core.errors import ConfigError
from jepa_core.masking.subset import SubsetSampler, rounded

Bounds = tuple[int, int, int, int]


def count_bounds(columns: int, context: tuple[float, float], target: tuple[float, float]) -> Bounds:
    """Least and most tokens of the context, then of a target; halves round to even."""
    least, most, target_least, target_most = (
        rounded(columns, share) for share in (*context, *target)
    )
    return least, most, target_least, target_most


def official_sizes(step: int, bounds: Bounds, columns: int, num_encs: int = 1) -> tuple[int, int]:
    """Context and target size of a step: whatever the seed, torch's generator starts at `step`.

    Raises
    ------
    ConfigError
        Bounds that never fit, which the official program draws from for ever.
    """
    least, most, target_least, target_most = bounds
    if least * num_encs + target_least > columns or not (0 < least < most and target_least > 0):
        raise ConfigError(
            f"contexts of {least} to {most} and targets of {target_least} to {target_most} of "
            f"{columns} columns",
            remedy="allowed: 0 < smaller < larger; the smaller ones together within the columns",
        )
    generator = torch.Generator().manual_seed(step)
    while True:
        u, v = torch.rand(2, generator=generator).tolist()
        n_context = least + round((most - least) * u)
        n_target = target_least + round((target_most - target_least) * v)
        if n_context * num_encs + n_target <= columns:
            return n_context, n_target


def official_masks(
    rng: np.random.RandomState,
    n_rows: int,
    columns: int,
    n_context: int,
    n_target: int,
    num_preds: int,
    num_encs: int = 1,
) -> tuple[
    Int64[np.ndarray, "num_encs n_rows n_context"], Int64[np.ndarray, "num_preds n_rows n_target"]
]:
    """Masks of one batch, index for index those of the official program.

    Parameters
    ----------
    rng
        The stream, which row after row takes its shuffles from.
    """
    context = np.empty((num_encs, n_rows, n_context), np.int64)
    target = np.empty((num_preds, n_rows, n_target), np.int64)
    for row in range(n_rows):
        rest = np.arange(columns)
        for mask in range(num_encs):
            rng.shuffle(rest)
            context[mask, row] = rest[:n_context]
            rest = np.sort(rest[n_context:])
        for _ in range(num_preds):
            rng.shuffle(rest)
        target[:, row] = rest[:n_target]
    return context, target


@dataclass(frozen=True)
class MaskSampler:
    """Masks of a batch of rows, by step.

    Parameters
    ----------
    columns
        Feature columns D.
    context, target
        Smallest and largest share of the columns.
    targets
        Target masks P a row.
    registers
        [REG] tokens R: part of every context and never a target.
    compat
        "official": its sizes and shuffles, equal target masks, and no regard to [REG] tokens. Call
        it for step 0, 1, 2, ... then: like the program it has one stream.
    """

    columns: int
    context: tuple[float, float]
    target: tuple[float, float]
    targets: int = 1
    registers: int = 1
    compat: Literal["none", "official"] = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        self._subsets()
        stream = np.random.RandomState(self.seed % 2**32) if self.compat == "official" else None
        object.__setattr__(self, "_stream", stream)

    def sample(
        self, n_rows: int, step: int
    ) -> tuple[
        Int64[np.ndarray, "1 n_rows n_context"], Int64[np.ndarray, "targets n_rows n_target"]
    ]:
        """Token indices of context and targets."""
        if self.compat == "official":
            sizes = official_sizes(step, self._subsets().bounds, self.columns)
            return official_masks(
                self._stream,  # type: ignore[attr-defined]
                n_rows,
                self.columns,
                *sizes,
                self.targets,
            )
        rows = step * n_rows + np.arange(n_rows)
        context, target = self._subsets()(rows, 0, step=step, seed=self.seed)
        return (
            context.indices.numpy().astype(np.int64)[None],
            target.indices.numpy().astype(np.int64).reshape(self.targets, n_rows, -1),
        )

    def _subsets(self) -> SubsetSampler:
        return SubsetSampler(self.columns, self.context, self.target, self.targets, self.registers)
