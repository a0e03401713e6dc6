"""Masks of images: a batch at once against one image after the other.

I-JEPA's multi-block masks at the released setting on 14 x 14 patches: one context, four targets.
The baseline is the official sampler written out as published, a few torch calls a block. In its
official form ours returns the same tensors, index for index, and leaves the generator in the same
state. The sound form draws other numbers, and keeps contexts of every length; the lean loop works
on the same random words as `MultiBlockSampler`, whose masks it must equal index for index.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from benchmarks.harness import Row, compare, equal_outputs, main
from jepa_core import rng
from jepa_core.masking.multiblock import MultiBlockSampler
from jepa_core.tokens import IndexSet
from jepa_vision.masks import MultiBlockMasks
from jepa_vision.presets import MaskConfig

Masks = tuple[list[Tensor], list[Tensor]]
GRID = (14, 14)
TARGETS = {256: 50.0, 8: 10.0}  # of the official form
LOOP = "image by image"
CHECKED = 12  # steps, which meet every size of the targets


def run(quick: bool = False) -> list[Row]:
    rows = []
    for batch in (4,) if quick else TARGETS:
        rows += _official(batch) + _sound(batch)
    return rows


def _official(batch: int) -> list[Row]:
    masks = MultiBlockMasks(GRID, MaskConfig(compat="official"))
    theirs, ours = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    # Each call is another step, so that every contender meets every block size.
    their_steps, our_steps = count(), count()
    return compare(
        f"official masks of a batch of {batch}",
        {
            LOOP: lambda: official_loop(masks, batch, next(their_steps), theirs),
            "MultiBlockMasks": lambda: masks.sample(batch, next(our_steps), ours),
        },
        LOOP,
        check=equal_outputs(
            {
                LOOP: lambda: _steps(partial(official_loop, masks, batch)),
                "MultiBlockMasks": lambda: _steps(partial(masks.sample, batch)),
            }
        ),
        target={"MultiBlockMasks": TARGETS[batch]} if batch in TARGETS else None,
    )


def _steps(masks: Callable[[int, torch.Generator], Masks]) -> tuple[list[Masks], Tensor]:
    """Masks of consecutive steps, and the state the generator is left in."""
    generator = torch.Generator().manual_seed(1)
    return [masks(step, generator) for step in range(CHECKED)], generator.get_state()


def official_loop(
    masks: MultiBlockMasks, batch: int, step: int, generator: torch.Generator
) -> Masks:
    """The official masks as published: each block of each image by itself."""
    config = masks.config
    target, context = masks.block_sizes(step)

    def block(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        top = torch.randint(0, GRID[0] - size[0], (1,), generator=generator)
        left = torch.randint(0, GRID[1] - size[1], (1,), generator=generator)
        inside = torch.zeros(GRID, dtype=torch.int32)
        inside[top : top + size[0], left : left + size[1]] = 1
        outside = torch.ones(GRID, dtype=torch.int32)
        outside[top : top + size[0], left : left + size[1]] = 0
        return inside, outside

    contexts: list[list[Tensor]] = []
    targets: list[list[Tensor]] = []
    for _ in range(batch):
        blocks, free = [], []
        for _ in range(config.targets):
            inside, outside = block(target)
            blocks.append(inside.flatten().nonzero().squeeze(1))
            free.append(outside)
        kept = []
        for _ in range(config.contexts):
            failures = 0
            while True:
                inside, _ = block(context)
                for outside in free[: max(config.targets - failures // 20, 0)]:
                    inside *= outside
                patches = inside.flatten().nonzero().squeeze(1)
                if len(patches) > config.min_keep:
                    break
                failures += 1
            kept.append(patches)
        targets.append(blocks)
        contexts.append(kept)
    shortest = min(len(patches) for kept in contexts for patches in kept)
    return (
        default_collate([[patches[:shortest] for patches in kept] for kept in contexts]),
        default_collate(targets),
    )


def _sound(batch: int) -> list[Row]:
    masks = MultiBlockMasks(GRID, MaskConfig(compat="official"))
    sampler, samples = masks.sampler, np.arange(batch)
    generator = torch.Generator().manual_seed(0)
    their_steps, lean_steps, our_steps = count(), count(), count()
    return compare(
        f"sound masks of a batch of {batch}",
        {
            LOOP: lambda: official_loop(masks, batch, next(their_steps), generator),
            "lean loop": lambda: lean_loop(sampler, samples, next(lean_steps)),
            "MultiBlockSampler": lambda: sampler(samples, 0, step=next(our_steps), seed=0),
        },
        LOOP,
        check=equal_outputs(
            {
                "lean loop": lambda: [
                    _tensors(lean_loop(sampler, samples, step)) for step in range(CHECKED)
                ],
                "MultiBlockSampler": lambda: [
                    _tensors(sampler(samples, 0, step=step, seed=0)) for step in range(CHECKED)
                ],
            }
        ),
        notes={LOOP: "the official form: other random numbers, other distribution"},
    )


def _tensors(masks: tuple[list[IndexSet], Tensor]) -> list[Tensor]:
    contexts, targets = masks
    return [tensor for each in contexts for tensor in (each.indices, each.lengths)] + [targets]


def lean_loop(
    sampler: MultiBlockSampler, samples: np.ndarray, step: int
) -> tuple[list[IndexSet], Tensor]:
    """The masks of `sampler(samples, 0, step=step, seed=0)`, one image after the other.

    For settings at which no image draws twice: otherwise the check fails.
    """
    (height, width), context = sampler.sizes(step=step, seed=0)
    sizes = [(height, width)] * sampler.targets + [context] * sampler.contexts
    words = rng.words(0, "mask", samples, 0, 2 * len(sizes)).tolist()
    targets = torch.empty((sampler.targets, len(samples), height * width), dtype=torch.int64)
    visible = torch.empty((sampler.contexts, len(samples), GRID[0] * GRID[1]), dtype=torch.bool)
    for image, draw in enumerate(words):
        hidden = np.zeros(GRID, bool)
        for number, (rows, columns) in enumerate(sizes):
            top = draw[2 * number] * (GRID[0] - rows + 1) >> 32
            left = draw[2 * number + 1] * (GRID[1] - columns + 1) >> 32
            mask = np.zeros(GRID, bool)
            mask[top : top + rows, left : left + columns] = True
            if number < sampler.targets:
                targets[number, image] = torch.from_numpy(np.flatnonzero(mask))
                hidden |= mask
            else:
                mask &= ~hidden
                visible[number - sampler.targets, image] = torch.from_numpy(mask.ravel())
    return [IndexSet.from_mask(mask) for mask in visible], targets


if __name__ == "__main__":
    main(run)
