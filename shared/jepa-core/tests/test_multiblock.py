"""Multi-block masks: a loop over images, what every mask promises, and exact probabilities."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from jepa_core import rng
from jepa_core.errors import ConfigError
from jepa_core.masking.blocks import block_size, block_sizes
from jepa_core.masking.multiblock import (
    MultiBlockSampler,
    rectangle_cells,
    rectangles,
)
from jepa_core.tokens import IndexSet

SMALL = MultiBlockSampler((14, 14))
Masks = tuple[list[IndexSet], torch.Tensor]


@st.composite
def samplers(draw: st.DrawFn) -> MultiBlockSampler:
    """Any grid, blocks from single patches to most of it: many images draw again, often."""
    grid = draw(st.tuples(st.integers(2, 9), st.integers(2, 9)))
    settings: dict[str, Any] = {
        "contexts": draw(st.integers(1, 2)),
        "targets": draw(st.integers(1, 4)),
        "context_scale": draw(st.sampled_from(((0.85, 1.0), (0.5, 0.6)))),
        "target_scale": draw(st.sampled_from(((0.15, 0.2), (0.3, 0.5)))),
        "overlap": draw(st.booleans()),
    }
    try:
        MultiBlockSampler(grid, min_keep=10**6, **settings)
    except ConfigError as error:
        assume("up to" in str(error))
        most = int(str(error).rpartition("up to ")[2])
    return MultiBlockSampler(grid, min_keep=draw(st.integers(0, most)), **settings)


def contexts_and_targets(
    sampler: MultiBlockSampler, sample: int, counter: int, step: int, seed: int
) -> tuple[list[list[int]], list[list[int]]]:
    """One image's masks, cell by cell."""
    target, context = sampler.sizes(step=step, seed=seed)
    sizes = [target] * sampler.targets + [context] * sampler.contexts
    rows, columns = sampler.grid
    for attempt in range(10_000):
        draw = iter(
            rng.words(
                seed, "mask", np.array([sample]), counter, 2 * len(sizes), 2 * len(sizes) * attempt
            )[0].tolist()
        )
        blocks = []
        for height, width in sizes:
            top = next(draw) * (rows - height + 1) >> 32
            left = next(draw) * (columns - width + 1) >> 32
            blocks.append(
                [
                    row * columns + column
                    for row in range(top, top + height)
                    for column in range(left, left + width)
                ]
            )
        targets = blocks[: sampler.targets]
        kept_out = 0 if sampler.overlap else max(sampler.targets - attempt // 20, 0)
        hidden = {cell for block in targets[:kept_out] for cell in block}
        contexts = [
            [cell for cell in block if cell not in hidden] for block in blocks[sampler.targets :]
        ]
        if all(len(cells) > sampler.min_keep for cells in contexts):
            return contexts, targets
    raise AssertionError


def row(masks: Masks, number: int) -> tuple[list[list[int]], list[list[int]]]:
    contexts, targets = masks
    return (
        [c.indices[number, : int(c.lengths[number])].tolist() for c in contexts],
        targets[:, number].tolist(),
    )


@given(sampler=samplers(), seed=st.integers(0, 2**32), step=st.integers(0, 10**6))
def test_a_batch_is_what_a_loop_over_images_draws(
    sampler: MultiBlockSampler, seed: int, step: int
) -> None:
    samples, counters = np.array([5, 2**40, 0, 7]), np.array([0, 3, 1, 0])
    contexts, targets = masks = sampler(samples, counters, step=step, seed=seed)
    assert targets.dtype == torch.int64
    assert len(contexts) == sampler.contexts
    for context in contexts:
        context.validate(sampler.grid[0] * sampler.grid[1])
    for number, (sample, counter) in enumerate(zip(samples, counters, strict=True)):
        wanted = contexts_and_targets(sampler, int(sample), int(counter), step, seed)
        assert row(masks, number) == wanted


@given(sampler=samplers(), seed=st.integers(0, 2**32))
def test_every_block_holds_more_than_min_keep(sampler: MultiBlockSampler, seed: int) -> None:
    contexts, targets = sampler(np.arange(6), 0, step=1, seed=seed)
    assert targets.shape[2] > sampler.min_keep
    assert all(int(context.lengths.min()) > sampler.min_keep for context in contexts)


@pytest.mark.parametrize(("grid", "min_keep"), [((14, 14), 10), ((8, 8), 4), ((6, 20), 4)])
def test_no_context_overlaps_a_target(grid: tuple[int, int], min_keep: int) -> None:
    sampler = MultiBlockSampler(grid, contexts=2, min_keep=min_keep)
    contexts, targets = sampler(np.arange(500), 0, step=3, seed=0)
    cells = grid[0] * grid[1]
    hidden = torch.zeros((500, cells), dtype=torch.bool)
    for block in targets:
        hidden.scatter_(1, block, True)
    assert not any(bool((context.to_mask(cells) & hidden).any()) for context in contexts)


def test_an_image_that_targets_fill_keeps_its_context_after_all() -> None:
    full = MultiBlockSampler((4, 4), target_scale=(1.0, 1.0), target_aspect=(1.0, 1.0))
    (context,), targets = full(np.arange(3), 0, step=0, seed=0)
    assert (targets == torch.arange(16)).all()
    assert context.lengths.tolist() == [
        len(contexts_and_targets(full, sample, 0, 0, 0)[0][0]) for sample in range(3)
    ]
    assert int(context.lengths.min()) > 10


def test_targets_stay_in_the_context_where_overlap_is_allowed() -> None:
    sampler = replace(SMALL, overlap=True, context_scale=(1.0, 1.0))
    (context,), targets = sampler(np.arange(5), 0, step=0, seed=0)
    assert targets.shape[:2] == (4, 5)
    assert (context.indices == torch.arange(196)).all()


def test_masks_do_not_depend_on_the_batch_they_are_drawn_in() -> None:
    # Blocks this large leave too little of two images in three: those draw again.
    sampler = MultiBlockSampler((6, 6), target_scale=(0.45, 0.45), contexts=2, min_keep=8)
    samples = np.random.default_rng(0).permutation(200)
    together = sampler(samples, samples % 3, step=4, seed=9)
    for part in (samples[:1], samples[50:90], samples[::-1]):
        masks = sampler(torch.from_numpy(part.copy()), part % 3, step=4, seed=9)
        for number, sample in enumerate(part):
            assert row(masks, number) == row(together, int(np.flatnonzero(samples == sample)[0]))


def test_another_visit_sample_or_seed_is_another_mask() -> None:
    size = SMALL.sizes(step=0, seed=0)
    drawn = [
        SMALL.draw(np.array([sample]), counter, *size, seed=seed)[1]
        for sample, counter, seed in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    assert not any(torch.equal(drawn[0], other) for other in drawn[1:])


def test_an_empty_batch_has_empty_masks() -> None:
    contexts, targets = SMALL(np.arange(0), 0, step=0, seed=0)
    assert contexts[0].indices.shape == (0, 0)
    assert targets.shape[:2] == (4, 0)


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    data=st.data(),
)
def test_rectangles_are_their_cells(rows: int, columns: int, data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, rows)), data.draw(st.integers(1, columns))
    top, left = data.draw(st.integers(0, rows - height)), data.draw(st.integers(0, columns - width))
    picture = np.zeros((rows, columns), bool)
    picture[top : top + height, left : left + width] = True
    first = np.array([[top * columns + left]])
    mask = rectangles(first, (height, width), (rows, columns))
    cells = rectangle_cells(first, (height, width), (rows, columns))
    assert (mask[0, 0] == picture.ravel()).all()
    assert cells[0, 0].tolist() == np.flatnonzero(picture).tolist()


def size_probabilities(sampler: MultiBlockSampler, points: int) -> Counter[tuple[int, int]]:
    """Share of each target size, by the midpoints of a fine grid over area and aspect."""
    share, aspect = sampler.target_scale, sampler.target_aspect
    midpoints = (np.arange(points) + 0.5) / points
    cells = sampler.grid[0] * sampler.grid[1]
    sizes: Counter[tuple[int, int]] = Counter()
    for u in midpoints:
        area = math.floor(cells * (share[0] + u * (share[1] - share[0])))
        for v in midpoints:
            ratio = aspect[0] + v * (aspect[1] - aspect[0])
            sizes[round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))] += 1
    return sizes


def test_area_and_aspect_of_targets_are_independent() -> None:
    steps, points = 4000, 400
    drawn = Counter(SMALL.sizes(step=step, seed=0)[0] for step in range(steps))
    wanted = size_probabilities(SMALL, points)
    assert set(drawn) <= set(wanted)
    for size, count in wanted.items():
        p = count / points**2
        # Five standard errors, and what a grid of so many points may miss at the edges.
        assert abs(drawn[size] / steps - p) < 5 * math.sqrt(p / steps) + 2 / points
    # Wide and tall ones of one area, which a single number for both never gives.
    assert {(5, 6), (6, 5), (5, 7), (7, 5)} <= set(drawn)


def test_contexts_have_the_grid_s_shape_and_area() -> None:
    squares = {SMALL.sizes(step=step, seed=0)[1] for step in range(500)}
    assert squares == {(13, 13), (14, 14)}
    wide = MultiBlockSampler((8, 32), min_keep=5)
    for step in range(200):
        height, width = wide.sizes(step=step, seed=0)[1]
        assert 0.75 < height * width / 256 <= 1.0
        assert height / width == pytest.approx(1 / 4, rel=0.1)


def test_sizes_change_with_step_and_seed() -> None:
    assert len({SMALL.sizes(step=step, seed=0) for step in range(50)}) > 5
    assert len({SMALL.sizes(step=0, seed=seed) for seed in range(50)}) > 5


def covering(length: int, side: int) -> np.ndarray:
    """Probability of each place of a line to lie in a block at a uniform place that fits."""
    starts = np.arange(length - side + 1)
    place = np.arange(length)[:, None]
    return ((place >= starts) & (place < starts + side)).mean(axis=1)


def test_every_patch_is_target_and_context_as_often_as_places_say() -> None:
    images = 20_000
    target, context = (6, 5), (13, 13)
    (drawn,), targets = SMALL.draw(np.arange(images), 0, target, context, seed=3)
    in_target = np.outer(covering(14, 6), covering(14, 5))
    in_context = np.outer(covering(14, 13), covering(14, 13)) * (1 - in_target) ** 4
    assert in_target.min() > 0.01
    assert in_context.min() > 0.05
    counted = np.bincount(targets.numpy().ravel(), minlength=196).reshape(14, 14) / (4 * images)
    assert (np.abs(counted - in_target) < 5 * np.sqrt(in_target / (4 * images))).all()
    visible = drawn.to_mask(196).float().mean(0).reshape(14, 14).numpy()
    assert (np.abs(visible - in_context) < 5 * np.sqrt(in_context / images)).all()
    # Some target holds the centre 18 times as often as a corner.
    in_any = 1 - (1 - in_target) ** 4
    assert in_any.max() / in_any.min() == pytest.approx(18, rel=0.05)


def test_contexts_of_an_image_are_placed_apart() -> None:
    sampler = replace(SMALL, contexts=2, overlap=True)
    images = 8000
    (one, other), _ = sampler.draw(np.arange(images), 0, (6, 6), (13, 13), seed=1)
    same = float((one.indices == other.indices).all(1).float().mean())
    assert abs(same - 1 / 4) < 5 * math.sqrt(3 / 16 / images)


def test_a_context_loses_nothing_to_a_shorter_one_beside_it() -> None:
    (context,), targets = SMALL.draw(np.arange(2000), 0, (6, 6), (14, 14), seed=0)
    union = torch.zeros((2000, 196), dtype=torch.bool)
    for block in targets:
        union.scatter_(1, block, True)
    assert torch.equal(context.lengths, 196 - union.sum(1, dtype=torch.int32))
    assert len(set(context.lengths.tolist())) > 50


@pytest.mark.parametrize(
    "settings",
    [
        {"grid": (0, 14)},
        {"grid": (14, 1 << 16)},
        {"contexts": 0},
        {"targets": 0},
        {"min_keep": -1},
        {"context_scale": (0.0, 1.0)},
        {"context_scale": (1.0, 0.9)},
        {"target_scale": (0.2, 1.1)},
        {"target_aspect": (-1.0, 1.5)},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        MultiBlockSampler(**({"grid": (14, 14)} | settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("grid", [(2, 2), (1, 9), (6, 6), (3, 40)])
def test_blocks_that_min_keep_never_lets_pass_are_refused(grid: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="as small as"):
        MultiBlockSampler(grid)


def test_the_refusal_names_the_largest_legal_min_keep() -> None:
    with pytest.raises(ConfigError, match=r"up to 3$"):
        MultiBlockSampler((6, 6), min_keep=4)
    MultiBlockSampler((6, 6), min_keep=3)


def test_a_small_context_is_refused_like_a_small_target() -> None:
    with pytest.raises(ConfigError, match="as small as 9"):
        MultiBlockSampler((14, 14), context_scale=(0.05, 1.0))


def every_size(
    area: int, aspects: tuple[float, float], limits: tuple[int, int]
) -> set[tuple[int, int]]:
    """All values of `block_size` on a fine grid of aspects: neither side changes its direction."""

    def at(k: int) -> tuple[int, int]:
        return block_size(area, aspects[0] + k / 2**40 * (aspects[1] - aspects[0]), (999, 999))

    found = {at(0), at(2**40)}
    stack = [(0, 2**40)]
    while stack:
        low, high = stack.pop()
        if high - low > 1 and at(low) != at(high):
            middle = (low + high) // 2
            found.add(at(middle))
            stack += [(low, middle), (middle, high)]
    return {(min(height, limits[0]), min(width, limits[1])) for height, width in found}


@given(
    area=st.integers(0, 500),
    aspects=st.lists(
        st.sampled_from((0.25, 0.3, 0.75, 1.0, 1.5, 3.0, 4.0)), min_size=2, max_size=2
    ),
    limits=st.tuples(st.integers(1, 30), st.integers(1, 30)),
)
def test_block_sizes_are_all_that_can_be_drawn(
    area: int, aspects: list[float], limits: tuple[int, int]
) -> None:
    low, high = sorted(aspects)
    assert block_sizes(area, (low, high), limits) == every_size(area, (low, high), limits)
