"""Random subsets: what they promise, and their statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepa_core import rng
from jepa_core.errors import ConfigError
from jepa_core.masking.subset import SubsetSampler

SHARES = (0.14, 0.37), (0.16, 0.62)


def rows(indices: torch.Tensor) -> list[set[int]]:
    return [set(row) for row in indices.tolist()]


@given(
    tokens=st.integers(4, 60),
    targets=st.integers(1, 4),
    kept=st.integers(0, 3),
    seed=st.integers(0, 2**32),
)
def test_context_and_targets_are_disjoint_sets_of_one_size(
    tokens: int, targets: int, kept: int, seed: int
) -> None:
    sampler = SubsetSampler(tokens, (0.3, 0.6), (0.2, 0.4), targets, kept)
    context, target = sampler(np.arange(7), 3, step=5, seed=seed)
    context.validate(kept + tokens)
    target.validate(kept + tokens)
    n_context, n_target = sampler.sizes(step=5, seed=seed)
    assert context.indices.shape == (7, kept + n_context)
    assert target.indices.shape == (7 * targets, n_target)
    seen = rows(context.indices)
    for number, wanted in enumerate(rows(target.indices)):
        assert not seen[number % 7] & wanted
        assert min(wanted) >= kept
        assert set(range(kept)) <= seen[number % 7]


def test_a_mask_depends_on_its_own_sample_and_visit_alone() -> None:
    sampler = SubsetSampler(30, *SHARES, targets=3, kept=1)
    together = sampler(np.arange(10), np.arange(10), step=2, seed=0)
    alone = sampler(np.array([4]), np.array([4]), step=2, seed=0)
    assert torch.equal(together[0].indices[4], alone[0].indices[0])
    assert torch.equal(together[1].indices.reshape(3, 10, -1)[:, 4], alone[1].indices)


def test_sizes_have_half_the_weight_at_their_ends() -> None:
    sampler = SubsetSampler(54, *SHARES)
    least, most, *_ = sampler.bounds
    steps = 4000
    sizes = np.array([sampler.sizes(step=step, seed=0)[0] for step in range(steps)])
    counts = np.bincount(sizes, minlength=most + 1)[least:] / steps
    gaps = most - least
    wanted = np.full(gaps + 1, 1 / gaps)
    wanted[[0, -1]] /= 2
    # Contexts and targets of these shares always fit: nothing is drawn again but one pair.
    assert np.abs(counts - wanted).max() < 4 * np.sqrt(wanted.max() / steps)


def test_every_token_is_drawn_alike() -> None:
    sampler = SubsetSampler(12, (0.5, 0.5), (0.25, 0.25), targets=2)
    context, target = sampler(np.arange(4000), 0, step=0, seed=1)
    for indices, draws, share in ((context.indices, 4000, 0.5), (target.indices, 8000, 0.25)):
        counts = np.bincount(indices.numpy().ravel(), minlength=12) / draws
        assert np.abs(counts - share).max() < 4.5 * np.sqrt(share / draws)


def test_buckets_leave_few_shapes_and_both_ends() -> None:
    sampler = SubsetSampler(54, *SHARES, buckets=3)
    sizes = {sampler.sizes(step=step, seed=0) for step in range(400)}
    least, most, target_least, target_most = sampler.bounds
    assert len(sizes) <= 9
    assert {n for n, _ in sizes} >= {least, most}
    assert {n for _, n in sizes} >= {target_least, target_most}


def test_sizes_that_rarely_fit_are_drawn_until_they_do() -> None:
    sampler = SubsetSampler(8, (0.13, 0.9), (0.13, 0.9))
    for step in range(200):
        assert sum(sampler.sizes(step=step, seed=0)) <= 8


@pytest.mark.parametrize(
    "settings",
    [
        {"tokens": 1},
        {"context": (0.0, 0.3)},
        {"context": (0.5, 0.3)},
        {"target": (0.01, 0.3)},
        {"context": (0.7, 0.8), "target": (0.5, 0.6)},
        {"targets": 0},
        {"kept": -1},
    ],
)
def test_settings_that_make_no_mask_are_refused(settings: dict[str, object]) -> None:
    usual = {"tokens": 10, "context": (0.3, 0.5), "target": (0.2, 0.4)}
    with pytest.raises(ConfigError):
        SubsetSampler(**(usual | settings))  # type: ignore[arg-type]


def test_orders_are_the_stable_argsort_also_of_equal_words() -> None:
    words = rng.words(0, "mask", np.arange(50), 0, 40)
    words[:, 10:20] = words[:, :1]
    assert (rng.permutation(words) == np.argsort(words, axis=-1, kind="stable")).all()
