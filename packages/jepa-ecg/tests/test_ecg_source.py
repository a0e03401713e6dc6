"""What pre-training sees: crops, masks, who is drawn, and the recipe's schedules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from jepa_core.errors import ConfigError, DataError
from jepa_core.training.sampler import Draw
from jepa_ecg.presets import NANO, ModelConfig
from jepa_ecg.pretrain import mixture, schedules, untrained
from jepa_ecg.source import ArraySignals, ECGSource, Subset

MODEL = ModelConfig(
    fs=100, samples=40, patch=4, dim=8, depth=1, heads=2, predictor_dim=8, predictor_heads=2
)
CONFIG = replace(NANO, model=MODEL, batch_size=6, steps=50, warmup_steps=5)


def ramps(records: int = 9, length: int = 100) -> ArraySignals:
    """Sample t of record r is 1000 r + t, in every lead."""
    values = 1000 * np.arange(records)[:, None, None] + np.arange(length)
    return ArraySignals(np.repeat(values.astype(np.float32), 12, axis=1))


def draw(ids, counters=0, step: int = 0) -> Draw:
    ids = np.asarray(ids, np.int64)
    return Draw(step, ids, ids, np.broadcast_to(np.asarray(counters, np.int64), ids.shape))


def test_a_batch_holds_crops_of_the_drawn_records():
    batch = ECGSource(ramps(), CONFIG, seed=0).batch(draw([4, 0, 7]))
    signal = batch["signal"]
    assert signal.shape == (3, 12, 40)
    assert signal.dtype == torch.float32
    assert (signal.diff(dim=-1) == 1).all()
    assert (signal[:, 0, 0] // 1000).tolist() == [4, 0, 7]


def test_context_and_target_share_out_the_tokens():
    batch = ECGSource(ramps(), CONFIG, seed=0).batch(draw([1, 2, 3]))
    for context, target in zip(batch["context"], batch["target"], strict=True):
        assert sorted([*context.tolist(), *target.tolist()]) == list(range(10))


def test_a_batch_is_a_function_of_the_draw_and_the_seed():
    one, other = (ECGSource(ramps(), CONFIG, seed=3) for _ in range(2))
    other.batch(draw([8, 8], counters=5, step=9))
    here, there = one.batch(draw([1, 5])), other.batch(draw([1, 5]))
    for name in here:
        assert torch.equal(here[name], there[name])
    changed = ECGSource(ramps(), CONFIG, seed=4).batch(draw([1, 5]))
    assert not torch.equal(changed["signal"], here["signal"])


def test_a_record_is_cropped_and_masked_alike_whatever_stands_beside_it():
    source = ECGSource(ramps(), CONFIG, seed=0)
    together, alone = source.batch(draw([2, 6, 3])), source.batch(draw([6]))
    for name in together:
        assert torch.equal(together[name][1:2], alone[name])


def test_crops_start_everywhere_alike():
    source = ECGSource(ramps(1), CONFIG, seed=0)
    visits = 6100
    signal = source.batch(draw(np.zeros(visits), np.arange(visits)))["signal"]
    counts = np.bincount(signal[:, 0, 0].int().numpy(), minlength=61)
    assert len(counts) == 61  # starts 0..60 fit a crop of 40 into 100 samples
    assert counts.min() > 60  # 100 expected, standard deviation 10
    assert counts.max() < 140


def test_a_subset_is_numbered_anew():
    subset = Subset(ramps(), np.array([3, 8]))
    signal = ECGSource(subset, CONFIG, seed=0).batch(draw([0, 1]))["signal"]
    assert (signal[:, 0, 0] // 1000).tolist() == [3, 8]


@pytest.mark.parametrize(
    ("signals", "says"),
    [(ramps(0), "no record"), (ramps(4, 39), "4 of 4 records are shorter than a crop of 40")],
)
def test_records_that_give_no_crop_are_an_error(signals, says):
    with pytest.raises(DataError, match=says):
        ECGSource(signals, CONFIG, seed=0)


def test_the_health_batch_is_spread_over_the_records_and_fixed():
    source = ECGSource(ramps(), CONFIG, seed=0)
    batch = source.health_batch(samples=5, views=3)
    assert (batch["signal"][:, 0, 0] // 1000).tolist() == [0, 2, 4, 6, 8]
    assert batch["views"].shape[:2] == (5, 3)
    again = ECGSource(ramps(), CONFIG, seed=0).health_batch(samples=5, views=3)
    assert all(torch.equal(batch[name], again[name]) for name in batch)


def test_a_recipe_without_weights_draws_records_uniformly():
    drawn = mixture(CONFIG, {"a": 30, "b": 10}, seed=0)
    ids = np.concatenate([drawn.draw(step).ids for step in range(1000)])
    assert np.mean(ids >= 30) == pytest.approx(0.25, abs=0.03)


def test_weights_draw_the_source_first():
    config = replace(CONFIG, databases={"b": 3.0, "a": 1.0})
    drawn = mixture(config, {"a": 30, "b": 10}, seed=0)
    ids = np.concatenate([drawn.draw(step).ids for step in range(1000)])
    assert np.mean(ids >= 30) == pytest.approx(0.75, abs=0.03)


def test_a_source_that_the_corpus_lacks_is_named():
    config = replace(CONFIG, databases={"a": 0.5, "mimic": 0.5})
    with pytest.raises(ConfigError, match="mimic, which the corpus lacks; it holds a"):
        mixture(config, {"a": 30}, seed=0)
    with pytest.raises(ConfigError, match="gives no source of the corpus a weight"):
        mixture(replace(CONFIG, databases={"mimic": 0.0}), {"a": 30}, seed=0)


def test_the_schedules_start_peak_and_end_where_the_recipe_says():
    learning_rate, weight_decay = schedules(CONFIG)
    assert learning_rate(0) == CONFIG.initial_learning_rate
    assert learning_rate(CONFIG.warmup_steps) == CONFIG.learning_rate
    assert learning_rate(CONFIG.steps - 1) == pytest.approx(CONFIG.final_learning_rate, abs=1e-12)
    assert weight_decay(0) == pytest.approx(CONFIG.weight_decay)
    assert weight_decay(CONFIG.steps - 1) == pytest.approx(CONFIG.final_weight_decay)


def test_initial_weights_are_a_function_of_the_seed_and_touch_no_other_draw():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    one = untrained(CONFIG, 7).state_dict()
    assert torch.equal(torch.rand(1), expected)
    other, changed = untrained(CONFIG, 7).state_dict(), untrained(CONFIG, 8).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    name = "encoder.patch_embed.proj.weight"
    assert not torch.equal(one[name], changed[name])
