from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from jepa_core.errors import ConfigError
from jepa_core.masking.span import RunSampler
from jepa_ecg.masking import sample_mask, sample_masks


@pytest.fixture(scope="module")
def golden(data: Callable[[str], Path]) -> dict[str, np.ndarray]:
    with np.load(data("ecg") / "golden_masks.npz") as file:
        return dict(file)


def legacy(seed: int) -> np.random.RandomState:
    return np.random.RandomState(seed)


def test_masks_are_the_official_ones_bit_for_bit(golden: dict[str, np.ndarray]) -> None:
    generator = legacy(1234)
    masks = [sample_mask(generator, int(k), 200, 10) for k in golden["exact_seed1234_keep"]]
    np.testing.assert_array_equal(np.packbits(masks, axis=1), golden["exact_seed1234_masks"])


def test_a_collated_batch_is_the_official_one(golden: dict[str, np.ndarray]) -> None:
    context, targets = sample_masks(legacy(7), 8, (0.15, 0.25), 200, 10)
    context.validate(200)
    targets.validate(200)
    np.testing.assert_array_equal(context.indices, golden["collate_seed7_encoder"])
    np.testing.assert_array_equal(targets.indices, golden["collate_seed7_predictor"])


def test_fewer_hidden_tokens_than_a_block_are_one_block_at_a_uniform_place() -> None:
    generator = legacy(0)
    masks = np.stack([sample_mask(generator, 9, 12, 10) for _ in range(3000)])
    assert (masks.sum(1) == 9).all()
    assert (np.abs(np.diff(masks.astype(int), axis=1)).sum(1) <= 2).all()
    places = np.bincount((~masks).argmax(1), minlength=10) / 3000
    # Five standard errors.
    assert np.abs(places - 0.1).max() < 0.028


@pytest.mark.parametrize("keep", [1, 199])
def test_one_visible_and_one_hidden_token_are_legal(keep: int) -> None:
    generator = legacy(0)
    for _ in range(50):
        assert sample_mask(generator, keep, 200, 10).sum() == keep
    context, targets = sample_masks(generator, 3, (keep / 200, keep / 200), 200, 10)
    assert context.indices.shape == (3, keep)
    assert targets.indices.shape == (3, 200 - keep)


@pytest.mark.parametrize("keep", [-1, 0, 200, 201])
def test_a_keep_count_that_leaves_one_side_empty_is_refused(keep: int) -> None:
    with pytest.raises(ConfigError, match="of 200 tokens"):
        sample_mask(legacy(0), keep, 200, 10)


@pytest.mark.parametrize(("tokens", "keep", "min_block"), [(50, 10, 3), (36, 10, 3), (40, 8, 2)])
def test_the_batched_sampler_has_the_official_distribution(
    tokens: int, keep: int, min_block: int
) -> None:
    generator = legacy(3)
    theirs = np.stack([sample_mask(generator, keep, tokens, min_block) for _ in range(6000)])
    sampler = RunSampler(tokens, (keep / tokens, keep / tokens), min_block)
    context, _ = sampler(torch.arange(20_000), 0, step=0, seed=3)
    ours = context.to_mask(tokens).numpy()
    # A share of 6,000 masks has a standard error of at most 0.0065.
    assert np.abs(ours.mean(0) - theirs.mean(0)).max() < 0.03
    starts = [(~m[:, 1:] & m[:, :-1]).sum(1).mean() + (~m[:, 0]).mean() for m in (ours, theirs)]
    assert abs(starts[0] - starts[1]) < 0.06
