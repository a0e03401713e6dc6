"""Mask samplers: a batch at once against a loop over records.

ECG-JEPA's block sampler at the paper's setting: 200 tokens, 15-25 % kept, blocks of at least 10.
The baseline is the published algorithm on numpy's legacy generator, bit for bit the official
program's draws. The lean loop works on plain integers and on the same random words as the batched
sampler, whose masks it must equal index for index.
"""

from __future__ import annotations

from itertools import count

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Contender, Row, compare, equal_outputs, main
from jepa_core import rng
from jepa_core.masking.span import RunSampler
from jepa_core.tokens import IndexSet
from jepa_ecg.masking import sample_masks

TOKENS, KEEP, MIN_BLOCK = 200, (0.15, 0.25), 10
ROUNDS = 24  # of one mask at most: words drawn in one call for the lean loop


def run(quick: bool = False) -> list[Row]:
    rows = []
    for batch, target in ((4, None),) if quick else ((256, 8.0), (8, None)):
        rows += _rows(batch, target)
    return rows


def _rows(batch: int, target: float | None) -> list[Row]:
    samples = np.arange(batch)
    sampler = RunSampler(TOKENS, KEEP, MIN_BLOCK)
    generator = np.random.RandomState(0)
    # Each call is another step, so that every contender meets every keep count.
    lean_steps, batched_steps = count(), count()
    contenders: dict[str, Contender] = {
        "loop over records": lambda: sample_masks(generator, batch, KEEP, TOKENS, MIN_BLOCK),
        "lean loop": lambda: lean_loop(sampler, samples, next(lean_steps)),
        "RunSampler": lambda: sampler(samples, 0, step=next(batched_steps), seed=0),
    }
    return compare(
        f"masks of a batch of {batch}",
        contenders,
        "loop over records",
        check=equal_outputs(
            {
                "lean loop": lambda: _arrays(lean_loop(sampler, samples, 0)),
                "RunSampler": lambda: _arrays(sampler(samples, 0, step=0, seed=0)),
            }
        ),
        target=None if target is None else {"RunSampler": target},
        notes={"loop over records": "other random numbers, same distribution"},
    )


def _arrays(sets: tuple[IndexSet, IndexSet]) -> list[Tensor]:
    return [tensor for index in sets for tensor in (index.indices, index.lengths)]


def lean_loop(sampler: RunSampler, samples: np.ndarray, step: int) -> tuple[IndexSet, IndexSet]:
    """The masks of `sampler(samples, 0, step=step, seed=0)`, one record after the other."""
    keep = sampler.keep_count(step=step, seed=0)
    words = rng.words(0, "mask", samples, 0, 4 * ROUNDS).tolist()
    visible = np.array([_visible(keep, row) for row in words])
    mask = torch.from_numpy(visible)
    return IndexSet.from_mask(mask), IndexSet.from_mask(~mask)


def _visible(keep: int, words: list[int]) -> list[bool]:
    visible = [True] * TOKENS
    runs = [(0, TOKENS)]
    rest = TOKENS - keep
    draw = iter(words)
    while rest:
        token = next(draw) * (keep + rest) >> 32
        size_word, place_word, coin_word = next(draw), next(draw), next(draw)
        for picked, (start, end) in enumerate(runs):  # noqa: B007
            if token < end - start:
                break
            token -= end - start
        long = rest >= MIN_BLOCK
        size = MIN_BLOCK + (size_word * (rest - MIN_BLOCK + 1) >> 32) if long else rest
        size = min(size, end - start)
        room = end - start - size
        if long:
            place = start + (place_word * (room + 1) >> 32)
        elif start == 0 or (end < TOKENS and coin_word >> 31):
            place = start + room
        else:
            place = start
        visible[place : place + size] = [False] * size
        rest -= size
        runs[picked] = (start, place)
        runs.append((place + size, end))
    return visible


if __name__ == "__main__":
    main(run)
