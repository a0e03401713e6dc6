"""Masks of images: the official ones index for index, and what the sound ones promise."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from jepa_core.errors import ConfigError
from jepa_vision.masks import MultiBlockMasks
from jepa_vision.presets import MaskConfig, check_blocks, target_sizes

Data = Callable[[str], Path]
OFFICIAL = MaskConfig(compat="official")

EXACT = {
    "g14_b4": (0, 14, 4, OFFICIAL),
    "g16_b4": (1, 16, 4, OFFICIAL),
    "g6_b8": (2, 6, 8, replace(OFFICIAL, min_keep=2)),
    "g8_b8": (3, 8, 8, replace(OFFICIAL, min_keep=4)),
    "g14_b3_overlap": (4, 14, 3, replace(OFFICIAL, overlap=True)),
    "g14_b3_nenc2": (5, 14, 3, replace(OFFICIAL, contexts=2)),
}
STATISTICS = {
    "g14_b1": OFFICIAL,
    "g14_b16": OFFICIAL,
    "g14_b64": OFFICIAL,
    "g14_b128": OFFICIAL,
    "g14_b256": OFFICIAL,
    "g16_b64": OFFICIAL,
    "g28_b16": OFFICIAL,
    "g8_b64_mk4": replace(OFFICIAL, min_keep=4),
}


@pytest.fixture(scope="module")
def golden(data: Data) -> Path:
    return data("vision") / "golden"


# The official form.


@pytest.mark.parametrize("side", [6, 8, 14, 16, 28])
def test_official_sizes_of_two_thousand_steps(golden: Path, side: int) -> None:
    masks = MultiBlockMasks((side, side), replace(OFFICIAL, min_keep=3))
    sizes = np.array([masks.block_sizes(step) for step in range(2000)])
    with np.load(golden / "golden_mask_block_sizes.npz") as file:
        np.testing.assert_array_equal(sizes[:, 0], file[f"g{side}_pred_hw"])
        np.testing.assert_array_equal(sizes[:, 1], file[f"g{side}_enc_hw"])


@pytest.mark.parametrize("case", EXACT)
def test_official_masks_of_three_consecutive_batches(golden: Path, case: str) -> None:
    seed, side, batch, config = EXACT[case]
    masks = MultiBlockMasks((side, side), config)
    torch.manual_seed(seed)
    with np.load(golden / "golden_mask_exact.npz") as file:
        for step in range(3):
            contexts, targets = masks.sample(batch, step)
            assert len(contexts) == config.contexts
            assert len(targets) == config.targets
            assert {tensor.dtype for tensor in (*contexts, *targets)} == {torch.int64}
            np.testing.assert_array_equal(torch.stack(contexts), file[f"{case}_it{step}_enc"])
            np.testing.assert_array_equal(torch.stack(targets), file[f"{case}_it{step}_pred"])


@pytest.mark.parametrize("case", STATISTICS)
def test_official_statistics_of_ten_thousand_images(golden: Path, case: str) -> None:
    wanted = json.loads((golden / "golden_mask_stats.json").read_text())[case]
    side, batch, images = wanted["grid"], wanted["batch"], wanted["samples"]
    masks = MultiBlockMasks((side, side), STATISTICS[case])
    generator = torch.Generator().manual_seed(0)
    # The shortest of a batch varies: one pass alone is up to 3 % off in large batches.
    passes = 1 if batch == 1 else 4
    kept, areas, unions = [], [], []
    in_context, in_target = np.zeros(side**2), np.zeros(side**2)
    for step in [*range(images // batch)] * passes:
        (context,), targets = masks.sample(batch, step, generator)
        kept.append(context.shape[1])
        areas.append(targets[0].shape[1])
        in_context += np.bincount(context.numpy().ravel(), minlength=side**2)
        union = np.zeros((batch, side**2), bool)
        for target in targets:
            in_target += np.bincount(target.numpy().ravel(), minlength=side**2)
            np.put_along_axis(union, target.numpy(), True, axis=1)
        unions.append(union.sum(1).mean())
    # The same steps have the same sizes; places are drawn anew.
    assert np.mean(areas) == pytest.approx(wanted["pred_len_mean"], rel=1e-9)
    assert (min(areas), max(areas)) == (wanted["pred_len_min"], wanted["pred_len_max"])
    assert np.mean(kept) == pytest.approx(wanted["enc_post_mean"], rel=0.02)
    assert np.mean(unions) == pytest.approx(wanted["pred_union_mean"], rel=0.02)
    with np.load(golden / "golden_mask_stats.npz") as file:
        for counts, draws, name in (
            (in_context, images, "enc_post"),
            (in_target, 4 * images, "pred"),
        ):
            share, theirs = (counts / draws / passes).reshape(side, side), file[f"{case}_{name}"]
            assert share.sum() == pytest.approx(theirs.sum(), rel=0.02)
            # The last row and column are never seen, in either.
            np.testing.assert_array_equal(share == 0, theirs == 0)
            assert not share[-1].any()
            assert not share[:, -1].any()
            if batch == 1:  # two samples of one distribution: five standard errors
                error = np.sqrt(2 * theirs * (1 - theirs) / draws)
                assert (np.abs(share - theirs) <= 5 * error).all()


def one_image_at_a_time(
    batch: int, grid: tuple[int, int], config: MaskConfig, sizes: tuple[tuple[int, int], ...]
) -> tuple[list[list[list[int]]], list[list[list[int]]]]:
    """The official sampler without any batch, on torch's global generator."""
    rows, columns = grid
    target, context = sizes

    def place(size: tuple[int, int]) -> set[int]:
        top = int(torch.randint(0, rows - size[0], (1,)))
        left = int(torch.randint(0, columns - size[1], (1,)))
        return {
            row * columns + column
            for row in range(top, top + size[0])
            for column in range(left, left + size[1])
        }

    contexts: list[list[list[int]]] = [[] for _ in range(config.contexts)]
    targets: list[list[list[int]]] = [[] for _ in range(config.targets)]
    for _ in range(batch):
        blocks = [place(target) for _ in range(config.targets)]
        for into, block in zip(targets, blocks, strict=True):
            into.append(sorted(block))
        for kept in contexts:
            failures = 0
            while True:
                cells = place(context)
                if not config.overlap:
                    cells = cells.difference(*blocks[: max(config.targets - failures // 20, 0)])
                if len(cells) > config.min_keep:
                    break
                failures += 1
            kept.append(sorted(cells))
    shortest = min(len(cells) for kept in contexts for cells in kept)
    return [[cells[:shortest] for cells in kept] for kept in contexts], targets


@st.composite
def official_masks(draw: st.DrawFn) -> MultiBlockMasks:
    """Any grid, with contexts that are drawn again often, some until targets stay in them."""
    grid = draw(st.tuples(st.integers(2, 9), st.integers(2, 9)))
    config = MaskConfig(
        contexts=draw(st.integers(1, 2)),
        targets=draw(st.integers(1, 4)),
        context_scale=draw(st.sampled_from(((0.85, 1.0), (0.4, 0.6)))),
        target_scale=draw(st.sampled_from(((0.15, 0.2), (0.3, 0.6)))),
        overlap=draw(st.sampled_from((False, False, True))),
        min_keep=0,
        compat="official",
    )
    least = min(height * width for height, width in target_sizes(config, grid))
    side = round(math.sqrt(int(grid[0] * grid[1] * config.context_scale[0])))
    least = min(least, min(side, grid[0] - 1) * min(side, grid[1] - 1))
    assume(least > 0)
    return MultiBlockMasks(grid, replace(config, min_keep=draw(st.integers(0, least - 1))))


@given(masks=official_masks(), batch=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_a_batch_is_the_official_program_s_image_for_image(
    masks: MultiBlockMasks, batch: int, seed: int
) -> None:
    torch.manual_seed(seed)
    expected = one_image_at_a_time(batch, masks.grid, masks.config, masks.block_sizes(7))
    after = torch.get_rng_state()
    torch.manual_seed(seed)
    contexts, targets = masks.sample(batch, 7)
    assert [context.tolist() for context in contexts] == expected[0]
    assert [target.tolist() for target in targets] == expected[1]
    assert torch.equal(torch.get_rng_state(), after)


def test_contexts_that_are_drawn_again_are_among_those_compared() -> None:
    # Three quarters of the grid hidden, four times over: what is left rarely suffices.
    config = replace(OFFICIAL, target_scale=(0.5, 0.5), min_keep=8)
    masks = MultiBlockMasks((6, 6), config)
    torch.manual_seed(0)
    expected = one_image_at_a_time(64, masks.grid, config, masks.block_sizes(0))
    drawn = torch.get_rng_state()
    torch.manual_seed(0)
    contexts, targets = masks.sample(64, 0)
    assert contexts[0].tolist() == expected[0][0]
    assert [target.tolist() for target in targets] == expected[1]
    torch.manual_seed(0)
    torch.randint(0, 2, (64 * 10,))
    assert not torch.equal(torch.get_rng_state(), drawn)


def test_a_generator_of_one_s_own_leaves_the_global_one_alone() -> None:
    for config in (OFFICIAL, MaskConfig()):
        masks = MultiBlockMasks((14, 14), config)
        torch.manual_seed(3)
        before = torch.get_rng_state()
        own = masks.sample(5, 0, torch.Generator().manual_seed(3))
        assert torch.equal(torch.get_rng_state(), before)
        shared = masks.sample(5, 0)
        for ours, theirs in zip((*own[0], *own[1]), (*shared[0], *shared[1]), strict=True):
            assert torch.equal(ours, theirs)


# The sound form.


@given(
    grid=st.tuples(st.integers(6, 16), st.integers(6, 16)),
    step=st.integers(0, 99),
    batch=st.integers(1, 6),
)
def test_sound_masks_stack_and_no_context_overlaps_a_target(
    grid: tuple[int, int], step: int, batch: int
) -> None:
    # Two targets of a fifth leave more than two patches wherever they are.
    masks = MultiBlockMasks(grid, MaskConfig(contexts=2, targets=2, min_keep=2))
    contexts, targets = masks.sample(batch, step, torch.Generator().manual_seed(step))
    (height, width), block = masks.block_sizes(step)
    assert {tuple(target.shape) for target in targets} == {(batch, height * width)}
    assert len({tuple(context.shape) for context in contexts}) == 1
    assert 2 < contexts[0].shape[1] <= block[0] * block[1]
    patches = set(range(grid[0] * grid[1]))
    for image in range(batch):
        hidden = {patch for target in targets for patch in target[image].tolist()}
        assert hidden <= patches
        for context in contexts:
            visible = context[image].tolist()
            assert visible == sorted(set(visible))
            assert set(visible) <= patches - hidden


def test_every_patch_is_seen_and_predicted() -> None:
    masks = MultiBlockMasks((14, 14))
    seen, predicted = np.zeros(196), np.zeros(196)
    generator = torch.Generator().manual_seed(0)
    for step in range(20):
        (context,), targets = masks.sample(256, step, generator)
        seen += np.bincount(context.numpy().ravel(), minlength=196)
        predicted += np.bincount(torch.stack(targets).numpy().ravel(), minlength=196)
    assert seen.min() > 0
    assert predicted.min() > 0


def test_a_sound_context_is_cut_anywhere_and_not_at_the_bottom() -> None:
    config = MaskConfig(context_scale=(1.0, 1.0), min_keep=4)
    masks = MultiBlockMasks((8, 8), config)
    (context,), targets = masks.sample(4000, 0, torch.Generator().manual_seed(0))
    hidden = torch.zeros((4000, 64), dtype=torch.bool)
    for target in targets:
        hidden.scatter_(1, target, True)
    visible = ~hidden
    share = context.shape[1] / visible.sum(1)
    assert share.max() == 1.0
    assert share.mean() < 0.9
    # Each visible patch is kept with its image's share: top and bottom alike.
    kept = torch.zeros((4000, 64)).scatter_(1, context, 1.0)
    excess = (kept - visible * share[:, None]).sum(0)
    spread = (visible * (share * (1 - share))[:, None]).sum(0).sqrt()
    assert bool((excess.abs() < 5 * spread).all())


def test_sound_sizes_are_the_same_for_every_generator() -> None:
    masks = MultiBlockMasks((14, 14))
    for seed in range(3):
        _, targets = masks.sample(2, 11, torch.Generator().manual_seed(seed))
        height, width = masks.block_sizes(11)[0]
        assert targets[0].shape[1] == height * width


def test_the_sound_sampler_cuts_no_context() -> None:
    masks = MultiBlockMasks((14, 14), MaskConfig(contexts=2))
    contexts, targets = masks.sampler(np.arange(64), 0, step=0, seed=0)
    assert len(contexts) == 2
    assert targets.shape[:2] == (4, 64)
    assert len(set(contexts[0].lengths.tolist())) > 10


# What a recipe may ask for.


def values(function: Callable[[int], tuple[int, int, int]], last: int) -> set[tuple[int, int, int]]:
    """Every value on 0 .. last of a function of which the first part rises, and the others each
    only rise or only fall while the first stays."""
    found = {function(0), function(last)}
    stack = [(0, last)]
    while stack:
        low, high = stack.pop()
        if high - low > 1 and function(low) != function(high):
            middle = (low + high) // 2
            found.add(function(middle))
            stack += [(low, middle), (middle, high)]
    return found


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    scale=st.lists(st.sampled_from((0.05, 0.1, 0.13, 0.15, 0.2, 0.25)), min_size=2, max_size=2),
    aspect=st.lists(st.sampled_from((0.3, 0.75, 1.0, 1.3, 1.5, 3.0)), min_size=2, max_size=2),
)
def test_official_target_sizes_are_all_that_a_32_bit_uniform_number_gives(
    rows: int, columns: int, scale: list[float], aspect: list[float]
) -> None:
    (least, most), (low, high) = sorted(scale), sorted(aspect)

    def size(k: int) -> tuple[int, int, int]:
        u = k / 2**24
        area = int(rows * columns * (least + u * (most - least)))
        ratio = low + u * (high - low)
        return area, round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))

    wanted = {
        (min(height, rows - 1), min(width, columns - 1))
        for _, height, width in values(size, 2**24 - 1)
    }
    config = replace(OFFICIAL, target_scale=(least, most), target_aspect=(low, high))
    assert target_sizes(config, (rows, columns)) == tuple(sorted(wanted))


@pytest.mark.parametrize("grid", [(14, 14), (8, 8), (5, 11)])
def test_sound_target_sizes_are_those_that_are_drawn(grid: tuple[int, int]) -> None:
    config = MaskConfig(min_keep=2)
    possible = set(target_sizes(config, grid))
    masks = MultiBlockMasks(grid, config)
    drawn = {masks.block_sizes(step)[0] for step in range(3000)}
    assert drawn <= possible
    # Midpoints of a fine grid over both numbers: what they miss has hardly any probability.
    fine = set()
    for u in (np.arange(200) + 0.5) / 200:
        area = math.floor(grid[0] * grid[1] * (0.15 + u * 0.05))
        for v in (np.arange(2000) + 0.5) / 2000:
            ratio = 0.75 + v * 0.75
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            fine.add((min(height, grid[0]), min(width, grid[1])))
    assert fine == possible


@pytest.mark.parametrize("compat", ["none", "official"])
def test_a_grid_too_small_for_any_block_is_refused(compat: str) -> None:
    config = MaskConfig(min_keep=0, compat=compat)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="as small as 0; take smaller patches"):
        MultiBlockMasks((2, 2), config)


@pytest.mark.parametrize("compat", ["none", "official"])
@pytest.mark.parametrize("grid", [(6, 6), (7, 7), (5, 9), (10, 4)])
def test_the_refusal_names_the_largest_legal_min_keep(compat: str, grid: tuple[int, int]) -> None:
    config = MaskConfig(compat=compat)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"set masks\.min_keep to ") as caught:
        check_blocks(config, grid)
    legal = int(str(caught.value).partition("masks.min_keep to ")[2].split()[0])
    with pytest.raises(ConfigError):
        check_blocks(replace(config, min_keep=legal + 1), grid)
    masks = MultiBlockMasks(grid, replace(config, min_keep=legal))
    for step in range(50):
        contexts, targets = masks.sample(3, step)
        assert min(tensor.shape[1] for tensor in (*contexts, *targets)) > legal


@pytest.mark.parametrize("compat", ["none", "official"])
def test_a_context_block_too_small_is_refused(compat: str) -> None:
    config = MaskConfig(context_scale=(0.05, 1.0), compat=compat)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"a context block on a grid of 14 x 14 .* small as 9"):
        check_blocks(config, (14, 14))
