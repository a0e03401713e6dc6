"""Masks: the official ones index for index, and what the sound ones promise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jepa_core.errors import ConfigError
from jepa_tabular.masks import MaskSampler, count_bounds, official_masks, official_sizes

Data = Callable[[str], Path]
PRESETS = ("jannis", "default_D14", "tight_D8", "default_D28")


@pytest.fixture
def golden(data: Data) -> dict[str, np.ndarray]:
    with np.load(data("tabular") / "golden_mask_sampler.npz") as file:
        return dict(file.items())


def settings(golden: dict[str, np.ndarray], preset: str) -> tuple[int, tuple, tuple, int]:
    columns, low, high, t_low, t_high, targets, *_ = golden[f"{preset}/cfg"].tolist()
    return int(columns), (low, high), (t_low, t_high), int(targets)


@pytest.mark.parametrize("preset", PRESETS)
def test_sizes_are_the_official_ones_for_ten_thousand_steps(
    golden: dict[str, np.ndarray], preset: str
) -> None:
    columns, context, target, _ = settings(golden, preset)
    bounds = count_bounds(columns, context, target)
    assert list(bounds) == golden[f"{preset}/bounds"].tolist()
    sizes = [official_sizes(step, bounds, columns) for step in range(10_000)]
    np.testing.assert_array_equal(sizes, golden[f"{preset}/sizes"])
    mean_std = [*np.mean(sizes, 0), *np.std(sizes, 0)]
    np.testing.assert_allclose(mean_std, golden[f"{preset}/stats"][:4], rtol=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_official_stream_gives_the_official_indices(
    golden: dict[str, np.ndarray], preset: str
) -> None:
    columns, context, target, targets = settings(golden, preset)
    sampler = MaskSampler(columns, context, target, targets, compat="official", seed=123)
    for step in range(16):
        ours = sampler.sample(1, step)
        np.testing.assert_array_equal(ours[0][0, 0], golden[f"{preset}/idx_np123/{step}/ctx"])
        np.testing.assert_array_equal(ours[1][:, 0], golden[f"{preset}/idx_np123/{step}/trg"])


def test_the_official_stream_goes_on_from_row_to_row(golden: dict[str, np.ndarray]) -> None:
    sampler = MaskSampler(14, (0.2, 0.4), (0.2, 0.4), 4, compat="official", seed=7)
    for step in range(3):
        context, target = sampler.sample(5, step)
        np.testing.assert_array_equal(context[0], golden[f"batch_D14_np7/{step}/ctx"])
        np.testing.assert_array_equal(target, golden[f"batch_D14_np7/{step}/trg"])


def test_several_official_contexts_follow_each_other(golden: dict[str, np.ndarray]) -> None:
    columns, low, high, t_low, t_high, targets, *_ = golden["encs2_D20_np7/cfg"].tolist()
    encoders = 2
    bounds = count_bounds(int(columns), (low, high), (t_low, t_high))
    sizes = official_sizes(0, bounds, int(columns), encoders)
    context, target = official_masks(
        np.random.RandomState(7), 3, int(columns), *sizes, int(targets), encoders
    )
    np.testing.assert_array_equal(context, golden["encs2_D20_np7/ctx"])
    np.testing.assert_array_equal(target, golden["encs2_D20_np7/trg"])


@pytest.mark.parametrize("preset", PRESETS)
def test_official_target_masks_are_equal_and_apart_from_the_context(
    golden: dict[str, np.ndarray], preset: str
) -> None:
    columns, context, target, targets = settings(golden, preset)
    sampler = MaskSampler(columns, context, target, targets, compat="official", seed=1)
    seen = np.zeros(columns)
    for step in range(200):
        (chosen,), wanted = sampler.sample(20, step)
        assert (wanted == wanted[:1]).all()
        for row in range(20):
            assert not set(chosen[row]) & set(wanted[0, row])
        seen += np.bincount(chosen.ravel(), minlength=columns) / chosen.size
    # Every token alike: 4,000 rows put each share within 4 standard deviations.
    assert np.abs(seen / 200 * columns - 1).max() < 4 * np.sqrt(columns / 4000)


def test_registers_are_always_context_and_never_target() -> None:
    sampler = MaskSampler(9, (0.3, 0.6), (0.2, 0.4), targets=4, registers=3, seed=2)
    for step in range(50):
        (context,), targets = sampler.sample(32, step)
        assert (context[:, :3] == [0, 1, 2]).all()
        assert context[:, 3:].min() >= 3
        assert targets.min() >= 3
        assert max(context.max(), targets.max()) < 12
        for row in range(32):
            for mask in targets[:, row]:
                assert not set(context[row]) & set(mask)
                assert len(set(mask)) == len(mask)


def test_sound_target_masks_are_drawn_independently() -> None:
    sampler = MaskSampler(20, (0.2, 0.2), (0.3, 0.3), targets=2, registers=1)
    (_,), targets = sampler.sample(4000, 0)
    shared = [len(set(a) & set(b)) for a, b in zip(*targets.tolist(), strict=True)]
    # Two subsets of 6 of the same 16 share 6 * 6 / 16 on average; variance of a hypergeometric.
    mean, variance = 36 / 16, 6 * (6 / 16) * (10 / 16) * (10 / 15)
    assert abs(np.mean(shared) - mean) < 4 * np.sqrt(variance / 4000)


def test_the_last_columns_are_predicted_too() -> None:
    (_,), targets = MaskSampler(6, (0.3, 0.5), (0.3, 0.5), registers=2).sample(500, 0)
    assert set(targets.ravel()) == set(range(2, 8))


def test_sizes_follow_the_seed() -> None:
    def sizes(seed: int) -> list[int]:
        sampler = MaskSampler(54, (0.1, 0.4), (0.1, 0.6), seed=seed)
        return [sampler.sample(1, step)[0].shape[-1] for step in range(20)]

    assert sizes(0) == sizes(0) != sizes(1)


@pytest.mark.parametrize(
    ("context", "target", "named"),
    [
        ((0.01, 0.4), (0.2, 0.4), "0 to 4 tokens"),
        ((0.5, 0.3), (0.2, 0.4), "5 to 3 tokens"),
        ((0.6, 0.8), (0.6, 0.8), "exceed the 10 tokens"),
    ],
)
@pytest.mark.parametrize("compat", ["none", "official"])
def test_shares_that_make_no_mask_are_refused_with_their_numbers(
    context: tuple[float, float], target: tuple[float, float], named: str, compat: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        MaskSampler(10, context, target, compat=compat)  # type: ignore[arg-type]


def test_official_sizes_that_never_fit_do_not_hang() -> None:
    with pytest.raises(ConfigError, match="of 8 columns"):
        official_sizes(0, (5, 7, 4, 6), 8)
