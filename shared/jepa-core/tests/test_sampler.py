"""Who sees which sample when, and how it is fetched."""

from __future__ import annotations

import collections
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepa_core import rng
from jepa_core.errors import ConfigError, DataError, RunError
from jepa_core.training.loader import Loader
from jepa_core.training.sampler import Draw, Epochs, Mixture

SAMPLERS = (
    Epochs(size=50, batch=24, seed=1),
    Epochs(size=50, batch=24, seed=1, drop_last=True),
    Mixture(sizes=(30, 0, 20), weights=(0.5, 0.0, 0.5), batch=24, seed=1),
)


def parts(sampler, step: int, world: int, accumulation: int) -> list[Draw]:
    return [
        sampler.draw(step, rank, world, micro, accumulation)
        for rank in range(world)
        for micro in range(accumulation)
    ]


def slow_epochs(size: int, batch: int, seed: int, drop_last: bool, steps: int):
    """The same, one record at a time, from the words themselves."""

    def order(epoch: int) -> list[int]:
        words = [int(w) for w in rng.words(seed, "order", np.array([0]), epoch, 2 * size)[0]]
        keys = [words[2 * i] * 2**32 + words[2 * i + 1] for i in range(size)]
        return sorted(range(size), key=lambda i: (keys[i], i))

    def stream():
        for epoch in itertools.count():
            whole = order(epoch)
            for record in whole[: size // batch * batch] if drop_last else whole:
                yield record, epoch

    records = stream()
    return [[next(records) for _ in range(batch)] for _ in range(steps)]


@given(
    size=st.integers(1, 20),
    batch=st.integers(1, 45),
    seed=st.integers(0, 2**64 - 1),
    drop_last=st.booleans(),
)
def test_epochs_equal_the_order_written_out_record_by_record(size, batch, seed, drop_last):
    if drop_last and batch > size:
        return
    sampler = Epochs(size, batch, seed, drop_last)
    for step, expected in enumerate(slow_epochs(size, batch, seed, drop_last, 5)):
        draw = sampler.draw(step)
        assert list(zip(draw.ids.tolist(), draw.counters.tolist(), strict=True)) == expected
        assert draw.step == step
        assert draw.keys.tolist() == draw.ids.tolist()


def test_an_epoch_shows_every_record_once_and_the_next_in_another_order():
    sampler = Epochs(size=60, batch=20, seed=5)
    epochs = [np.concatenate([sampler.draw(3 * e + i).ids for i in range(3)]) for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(60))
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[0] != Epochs(size=60, batch=20, seed=6).draw(0).ids[0]).any()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("world", "accumulation"), [(1, 3), (2, 1), (2, 3), (4, 2)])
def test_processes_and_parts_divide_the_batch_of_one_process_in_order(sampler, world, accumulation):
    for step in (0, 1, 2, 7, 1000):
        whole = sampler.draw(step)
        divided = parts(sampler, step, world, accumulation)
        for field in ("ids", "keys", "counters"):
            joined = np.concatenate([getattr(part, field) for part in divided])
            np.testing.assert_array_equal(joined, getattr(whole, field))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_step_is_drawn_alike_whatever_was_drawn_before(sampler):
    fresh = replace(sampler)
    for step in (9, 3):
        sampler.draw(step)
    np.testing.assert_array_equal(sampler.draw(4).ids, fresh.draw(4).ids)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_key_and_counter_come_twice(sampler):
    seen = [
        pair
        for step in range(30)
        for pair in zip(
            *(getattr(sampler.draw(step), f) for f in ("keys", "counters")), strict=True
        )
    ]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_batch_that_cannot_be_divided_is_an_error_that_says_by_what(sampler):
    with pytest.raises(ConfigError, match=r"batch is 24.*multiple of 5 processes times 2"):
        sampler.draw(0, world=5, accumulation=2)


def test_a_mixture_draws_sources_by_weight_and_records_evenly():
    sampler = Mixture(sizes=(10, 40, 25), weights=(0.6, 0.1, 0.3), batch=1000, seed=0)
    ids = np.concatenate([sampler.draw(step).ids for step in range(100)])
    counts = np.bincount(ids, minlength=75)
    shares = [counts[:10].sum(), counts[10:50].sum(), counts[50:].sum()]
    # 100,000 draws: five standard errors of a share are below 0.008.
    np.testing.assert_allclose(np.array(shares) / 1e5, (0.6, 0.1, 0.3), atol=0.008)
    assert np.abs(counts[:10] / 6000 - 1).max() < 5 / np.sqrt(6000)
    assert np.abs(counts[10:50] / 250 - 1).max() < 5 / np.sqrt(250)


def test_a_source_of_weight_0_is_never_drawn():
    sampler = Mixture(sizes=(3, 4, 5), weights=(1.0, 0.0, 0.0), batch=500, seed=0)
    assert max(sampler.draw(0).ids) < 3


def test_weights_are_normalised_when_they_nearly_sum_to_1():
    rounded = Mixture(sizes=(5, 5, 5), weights=(0.33, 0.33, 0.33), batch=50, seed=0)
    assert collections.Counter(rounded.draw(0).ids // 5).keys() == {0, 1, 2}
    exact = replace(rounded, weights=(1 / 3, 1 / 3, 1 / 3))
    np.testing.assert_array_equal(rounded.draw(0).ids, exact.draw(0).ids)


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ((5, 5), (1.0,), "1 weights for 2 sources"),
        ((), (), "0 weights for 0 sources"),
        ((5, 5), (1.5, -0.5), "weights are"),
        ((5, 5), (0.5, float("nan")), "weights are"),
        ((5, 5), (0.5, 0.3), "sum to 0.8"),
        ((5, 0), (0.5, 0.5), "source 1 has weight 0.5 and 0 records"),
    ],
)
def test_a_mixture_that_cannot_be_drawn_is_an_error(sizes, weights, message):
    with pytest.raises(ConfigError, match=message):
        Mixture(sizes, weights, batch=4, seed=0)


@pytest.mark.parametrize(
    ("size", "batch", "message"), [(0, 4, "no record"), (5, 0, "batch is 0"), (5, 6, "more than")]
)
def test_epochs_that_cannot_be_drawn_are_an_error(size, batch, message):
    with pytest.raises(ConfigError, match=message):
        Epochs(size, batch, seed=0, drop_last=True)


class Squares:
    """A source that shows what it was asked for."""

    def __len__(self) -> int:
        return 50

    def batch(self, draw: Draw) -> dict[str, torch.Tensor]:
        if draw.step == 90:
            raise DataError("record 7 is empty", where="records.csv", remedy="leave it out")
        if draw.step == 91:
            raise KeyError("a bug")
        noise = rng.uniform32(rng.words(0, "noise", draw.keys, draw.counters, 3))
        return {"ids": torch.from_numpy(draw.ids.copy()), "noise": torch.from_numpy(noise)}


def fetch(workers: int, first: int = 0, last: int = 12, **settings):
    with Loader(Squares(), SAMPLERS[0], first=first, last=last, workers=workers, **settings) as it:
        return list(it)


def test_batches_are_bit_equal_and_in_order_for_any_number_of_workers():
    alone = fetch(0, accumulation=2)
    assert [step for step, _ in alone] == list(range(12))
    for workers in (1, 3):
        for (step, mine), (other, theirs) in zip(
            alone, fetch(workers, accumulation=2), strict=True
        ):
            assert step == other
            assert len(mine) == len(theirs) == 2
            for one, two in zip(mine, theirs, strict=True):
                assert one.keys() == two.keys()
                assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_loader_that_starts_later_gives_what_an_earlier_one_would_have():
    for (_, mine), (_, theirs) in zip(fetch(0)[5:], fetch(2, first=5), strict=True):
        assert torch.equal(mine[0]["noise"], theirs[0]["noise"])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_data_reaches_the_user_as_the_one_line_it_was(workers):
    with pytest.raises(
        DataError, match=r"^records.csv: record 7 is empty; leave it out$"
    ) as caught:
        fetch(workers, first=88, last=91)
    assert caught.value.remedy == "leave it out"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_in_a_source_keeps_its_traceback(workers):
    with pytest.raises(KeyError, match="a bug"):
        fetch(workers, first=91, last=92)


class Dying(Squares):
    def batch(self, draw: Draw) -> dict[str, torch.Tensor]:
        if draw.step == 2:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(draw)


def test_a_worker_that_dies_is_one_line_with_a_remedy():
    loader = Loader(Dying(), SAMPLERS[0], first=0, last=5, workers=1)
    with pytest.raises(RunError, match=r"died.*fewer workers"), loader:
        list(loader)


def test_leaving_the_loader_ends_its_workers():
    with Loader(Squares(), SAMPLERS[0], first=0, last=1000, workers=2) as loader:
        next(iter(loader))
        workers = loader._fetched._workers
        assert all(worker.is_alive() for worker in workers)
    assert not any(worker.is_alive() for worker in workers)


def test_the_lap_says_what_share_of_the_time_went_into_waiting(monkeypatch):
    now = 0.0
    monkeypatch.setattr("jepa_core.training.loader.time.perf_counter", lambda: now)

    class Slow(Squares):
        def batch(self, draw: Draw) -> dict[str, torch.Tensor]:
            nonlocal now
            now += 3.0
            return super().batch(draw)

    loader = Loader(Slow(), SAMPLERS[0], first=0, last=4)
    for step, _ in loader:
        now += 1.0
        if step == 1:
            assert loader.lap() == {"steps_per_second": 0.25, "data_wait": 0.75}
            now += 8.0
    assert loader.lap() == pytest.approx({"steps_per_second": 2 / 16, "data_wait": 6 / 16})
