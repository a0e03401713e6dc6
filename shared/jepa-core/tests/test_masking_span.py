from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_core import rng
from jepa_core.errors import ConfigError
from jepa_core.masking.span import RunSampler


def visible_one_by_one(
    tokens: int, keep: int, min_block: int, sample: int, counter: int, seed: int
) -> list[bool]:
    """The sampler for one record, a run at a time, in Python's integers: the slow twin."""
    visible = [True] * tokens
    runs = [(0, tokens)]
    rest = tokens - keep
    block = 0
    while rest > 0:
        words = rng.words(seed, "mask", np.array([sample]), counter, 4, 4 * block)[0]
        token_word, size_word, place_word, coin_word = (int(word) for word in words)
        block += 1

        token = token_word * sum(end - start for start, end in runs) >> 32
        picked = 0
        while token >= runs[picked][1] - runs[picked][0]:
            token -= runs[picked][1] - runs[picked][0]
            picked += 1
        start, end = runs[picked]

        size = min_block + (size_word * (rest - min_block + 1) >> 32) if rest >= min_block else rest
        if end - start <= size:
            place, size = start, end - start
        elif rest >= min_block or (start == 0 and end == tokens):
            place = start + (place_word * (end - start - size + 1) >> 32)
        elif start == 0:
            place = end - size
        elif end == tokens:
            place = start
        else:
            place = end - size if coin_word >= 1 << 31 else start
        visible[place : place + size] = [False] * size
        rest -= size
        runs[picked] = (start, place)
        runs.append((place + size, end))
    return visible


def hidden_runs(visible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of hidden runs in each row, and the length of every hidden run."""
    hidden = np.pad(~visible, ((0, 0), (1, 1))).astype(np.int8)
    edges = np.diff(hidden, axis=1)
    row, start = np.nonzero(edges == 1)
    end = np.nonzero(edges == -1)[1]
    return np.bincount(row, minlength=len(visible)), end - start


def visible_mask(
    sampler: RunSampler, samples: np.ndarray, counters: int | np.ndarray = 0, **draw: int
) -> np.ndarray:
    context, targets = sampler(samples, counters, **({"step": 0, "seed": 0} | draw))
    context.validate(sampler.tokens)
    targets.validate(sampler.tokens)
    visible = context.to_mask(sampler.tokens)
    assert torch.equal(targets.to_mask(sampler.tokens), ~visible)
    return visible.numpy()


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(2, 60),
    share=st.floats(0.01, 0.99),
    min_block=st.integers(1, 70),
    samples=st.lists(st.integers(0, 2**63 - 1), max_size=9),
    counter=st.integers(0, 2**32 - 1),
    seed=st.integers(0, 2**64 - 1),
)
def test_the_batch_equals_the_loop_over_records(
    tokens: int, share: float, min_block: int, samples: list[int], counter: int, seed: int
) -> None:
    keep = max(1, math.ceil(share * tokens))
    if keep >= tokens:
        keep = tokens - 1
    sampler = RunSampler(tokens, (keep / tokens, keep / tokens), min_block)
    visible = visible_mask(sampler, np.array(samples, np.int64), counter, seed=seed)
    assert visible.shape == (len(samples), tokens)
    for row, sample in zip(visible, samples, strict=True):
        assert row.tolist() == visible_one_by_one(tokens, keep, min_block, sample, counter, seed)


def test_a_paper_sized_batch_equals_the_loop_over_records() -> None:
    sampler = RunSampler(200, (0.15, 0.25), 10)
    samples = np.arange(256) * 7919
    visible = visible_mask(sampler, samples, 3, step=11, seed=5)
    keep = sampler.keep_count(step=11, seed=5)
    expected = [visible_one_by_one(200, keep, 10, int(sample), 3, 5) for sample in samples]
    np.testing.assert_array_equal(visible, expected)


@pytest.mark.parametrize("keep", [30, 40, 50])
def test_the_statistics_are_those_of_the_official_sampler(
    data: Callable[[str], Path], keep: int
) -> None:
    golden = np.load(data("ecg") / "golden_masks.npz")
    visible = visible_mask(RunSampler(200, (keep / 200, keep / 200), 10), np.arange(20_000))
    runs, lengths = hidden_runs(visible)
    assert (visible.sum(1) == keep).all()
    assert lengths.min() >= 10

    np.testing.assert_allclose(visible.mean(0), golden[f"pkeep_{keep}"], rtol=0, atol=0.02)
    shares = np.bincount(runs, minlength=20) / len(runs)
    np.testing.assert_allclose(shares, golden[f"nruns_hist_{keep}"], rtol=0, atol=0.015)
    mean = (np.arange(20) * golden[f"nruns_hist_{keep}"]).sum()
    assert abs(runs.mean() - mean) < 0.04
    # Shares of the run lengths, in bins of 20 tokens: no tolerance is published for these.
    ours = np.bincount(lengths, minlength=201) / len(lengths)
    bins = np.arange(0, 201, 20)
    np.testing.assert_allclose(
        np.add.reduceat(ours, bins),
        np.add.reduceat(golden[f"runlen_hist_{keep}"], bins),
        rtol=0,
        atol=0.015,
    )


def test_the_keep_count_is_shared_by_a_batch_and_uniform_over_steps() -> None:
    sampler = RunSampler(200, (0.15, 0.25), 10)
    counts = np.array([sampler.keep_count(step=step, seed=0) for step in range(4000)])
    values, times = np.unique(counts, return_counts=True)
    assert values.tolist() == list(range(31, 51))
    # The standard error of each share is 0.0034.
    assert np.abs(times / len(counts) - 1 / 20).max() < 0.015
    for step in range(5):
        context, targets = sampler(np.arange(6), 0, step=step, seed=0)
        assert context.indices.shape == (6, counts[step])
        assert targets.indices.shape == (6, 200 - counts[step])


def test_a_share_that_names_a_whole_number_of_tokens_keeps_that_number() -> None:
    assert 0.07 * 100 > 7
    assert RunSampler(100, (0.07, 0.07), 5).keep_count(step=0, seed=0) == 7


@pytest.mark.parametrize("circular", [False, True])
def test_a_mask_does_not_depend_on_its_neighbours(circular: bool) -> None:
    sampler = RunSampler(120, (0.2, 0.3), 6, circular)
    samples = np.array([5, 2**40, 17, 3, 99, 1000])
    counters = np.array([0, 1, 2, 0, 7, 2**32 - 1])
    together = visible_mask(sampler, samples, counters, step=4, seed=9)
    order = np.array([4, 0, 5, 2])
    np.testing.assert_array_equal(
        visible_mask(sampler, samples[order], counters[order], step=4, seed=9), together[order]
    )
    for i in range(len(samples)):
        alone = visible_mask(sampler, samples[i : i + 1], int(counters[i]), step=4, seed=9)
        np.testing.assert_array_equal(alone[0], together[i])


def test_sample_visit_step_and_seed_each_change_the_mask() -> None:
    sampler = RunSampler(200, (0.15, 0.25), 10)

    def draw(sample: int = 1, counter: int = 0, step: int = 0, seed: int = 0) -> bytes:
        return visible_mask(sampler, np.array([sample]), counter, step=step, seed=seed).tobytes()

    assert draw() == draw()
    assert len({draw(), draw(sample=2), draw(counter=1), draw(step=1), draw(seed=1)}) == 5


def test_tensors_and_arrays_of_ids_give_the_same_masks() -> None:
    sampler = RunSampler(50, (0.2, 0.3), 3)
    ids = torch.tensor([3, 1, 4])
    counters = torch.tensor([1, 5, 9])
    by_tensor, _ = sampler(ids, counters, step=0, seed=0)
    by_array, _ = sampler(ids.numpy(), counters.numpy(), step=0, seed=0)
    assert torch.equal(by_tensor.indices, by_array.indices)


@pytest.mark.parametrize("keep", [1, 6, 11])
def test_a_block_shorter_than_the_minimum_lies_at_a_uniform_place(keep: int) -> None:
    hide = 12 - keep
    sampler = RunSampler(12, (keep / 12, keep / 12), 20)
    visible = visible_mask(sampler, np.arange(6000))
    runs, lengths = hidden_runs(visible)
    assert (runs == 1).all()
    assert (lengths == hide).all()
    places = np.bincount((~visible).argmax(1), minlength=keep + 1)
    # Five standard errors.
    share = 1 / (keep + 1)
    assert np.abs(places / 6000 - share).max() < 5 * math.sqrt(share * (1 - share) / 6000)


@pytest.mark.parametrize("keep", [1, 199])
def test_one_visible_token_and_one_hidden_token_are_legal(keep: int) -> None:
    visible = visible_mask(RunSampler(200, (keep / 200, keep / 200), 10), np.arange(500))
    assert (visible.sum(1) == keep).all()


def test_no_hidden_run_is_shorter_than_the_minimum() -> None:
    for tokens, keep, min_block in ((50, 10, 3), (36, 10, 3), (200, 20, 10), (30, 15, 15)):
        sampler = RunSampler(tokens, (keep / tokens, keep / tokens), min_block)
        _, lengths = hidden_runs(visible_mask(sampler, np.arange(3000)))
        assert lengths.min() == min_block


def test_circular_masks_are_the_plain_ones_rotated_uniformly() -> None:
    plain = RunSampler(60, (0.2, 0.2), 4)
    circular = RunSampler(60, (0.2, 0.2), 4, circular=True)
    samples = np.arange(20_000)
    straight, turned = visible_mask(plain, samples), visible_mask(circular, samples)
    # The standard error of a position's share is 0.0028; plain shares run from 0.08 to 0.78.
    assert np.abs(turned.mean(0) - 0.2).max() < 0.015
    assert np.abs(straight.mean(0) - 0.2).max() > 0.3
    for before, after in zip(straight[:50], turned[:50], strict=True):
        assert any(np.array_equal(np.roll(before, shift), after) for shift in range(60))


def test_an_empty_batch_gives_empty_sets() -> None:
    context, targets = RunSampler(200, (0.2, 0.2), 10)(np.arange(0), 0, step=0, seed=0)
    assert context.indices.shape == (0, 40)
    assert targets.indices.shape == (0, 160)


@pytest.mark.parametrize(
    ("tokens", "keep", "min_block", "field"),
    [
        (1, (0.5, 0.5), 1, "tokens"),
        (2**16 + 1, (0.5, 0.5), 1, "tokens"),
        (20, (0.5, 0.5), 0, "min_block"),
        (20, (0.0, 0.5), 2, "keep"),
        (20, (0.6, 0.5), 2, "keep"),
        (20, (0.5, 1.0), 2, "keep"),
        (20, (0.5, 0.96), 2, "keep"),
    ],
)
def test_a_setting_out_of_range_is_named(
    tokens: int, keep: tuple[float, float], min_block: int, field: str
) -> None:
    with pytest.raises(ConfigError, match=field):
        RunSampler(tokens, keep, min_block)
