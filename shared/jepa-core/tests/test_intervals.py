"""Intervals: never NaN, the same at any time, and as wide as they should be."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jepa_core import rng
from jepa_core.errors import DataError
from jepa_core.evaluation.intervals import bootstrap, paired, wilson
from jepa_core.evaluation.metrics import auc_statistic, macro_auc, mean_statistic


def _rare_classes(n: int = 150, classes: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Class i has i + 1 positives, so that most resamples lose one."""
    draw = np.random.default_rng(0)
    y = np.zeros((n, classes), int)
    for i in range(classes):
        y[draw.choice(n, i + 1, replace=False), i] = 1
    return y, draw.normal(size=y.shape) + 2 * y


def _naive(y: np.ndarray, score: np.ndarray, resamples: int) -> tuple[float, float]:
    """What scripts do: resample, average whatever comes, take percentiles."""
    from sklearn.metrics import roc_auc_score

    draw, values = np.random.default_rng(0), []
    for _ in range(resamples):
        rows = draw.integers(0, len(y), len(y))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values.append(roc_auc_score(y[rows], score[rows]))
    return float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5))


def test_the_naive_interval_of_rare_classes_is_nan_and_ours_is_not() -> None:
    y, score = _rare_classes()
    assert all(math.isnan(bound) for bound in _naive(y, score, resamples=30))
    got = bootstrap(auc_statistic(y, score), len(y), resamples=200)
    assert 0.5 < got.low < got.estimate < got.high < 1
    assert got.redrawn > 0
    assert (got.resamples, got.parts) == (200, 12)


def test_what_stays_incomplete_after_the_last_try_is_counted() -> None:
    y, score = _rare_classes()
    once = bootstrap(auc_statistic(y, score), len(y), resamples=200, redraws=0)
    assert once.redrawn == 0
    assert once.partial > 100
    assert once.fewest < 12
    often = bootstrap(auc_statistic(y, score), len(y), resamples=200, redraws=20)
    assert often.partial < once.partial


def test_a_class_that_is_undefined_from_the_start_asks_for_no_redraw() -> None:
    y, score = np.array([[1, 0], [0, 0]] * 40), np.random.default_rng(0).normal(size=(80, 2))
    got = bootstrap(auc_statistic(y, score), 80, resamples=50)
    assert (got.parts, got.redrawn, got.partial) == (1, 0, 0)
    assert got.estimate == pytest.approx(macro_auc(y, score).macro)


def test_the_interval_equals_that_of_resampled_records() -> None:
    draw = np.random.default_rng(1)
    y = draw.integers(0, 2, (60, 3))
    score = draw.normal(size=(60, 3)) + y
    means = []
    for number in range(100):
        words = rng.words(7, "bootstrap", np.array([number]), 0, 60)
        rows = rng.bounded(words, 60)[0]
        means.append(macro_auc(y[rows], score[rows]).macro)
    got = bootstrap(auc_statistic(y, score), 60, resamples=100, seed=7)
    assert got.redrawn == 0
    assert (got.low, got.high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=1e-12)


def test_the_same_seed_gives_the_same_interval_and_another_does_not() -> None:
    statistic = mean_statistic(np.random.default_rng(0).normal(size=100))
    first, again = (bootstrap(statistic, 100, resamples=100) for _ in range(2))
    assert first == again
    assert bootstrap(statistic, 100, resamples=100, seed=1) != first


def test_the_interval_of_a_mean_has_the_width_of_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=400)
    got = bootstrap(mean_statistic(values), 400)
    assert got.high - got.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_records_of_one_group_are_drawn_together() -> None:
    # ten records of each of 40 persons, all ten alike: 40 observations, not 400
    values = np.repeat(np.random.default_rng(0).normal(size=40), 10)
    person = np.repeat([f"p{i}" for i in range(40)], 10)
    alone = bootstrap(mean_statistic(values), 400)
    grouped = bootstrap(mean_statistic(values), 400, groups=person)
    assert grouped.high - grouped.low == pytest.approx(
        math.sqrt(10) * (alone.high - alone.low), rel=0.15
    )


def test_one_group_always_gives_the_estimate() -> None:
    got = bootstrap(mean_statistic(np.arange(5.0)), 5, groups=np.zeros(5), resamples=20)
    assert got.low == got.high == got.estimate == 2


def test_more_records_than_16_bits_can_number_are_drawn_evenly() -> None:
    n = (1 << 16) + 1000
    late = np.arange(n) >= n // 2
    got = bootstrap(mean_statistic(late.astype(float)), n, resamples=20)
    assert got.low < 0.5 < got.high
    assert got.high - got.low < 0.02


def test_the_difference_of_two_scores_on_the_same_records_is_bootstrapped_as_one() -> None:
    draw = np.random.default_rng(0)
    y = draw.integers(0, 2, (200, 1))
    good = draw.normal(size=(200, 1)) + y
    a, b = auc_statistic(y, good), auc_statistic(y, good + 0.1 * draw.normal(size=(200, 1)))
    gain = bootstrap(lambda counts: a(counts) - b(counts), 200, resamples=200)
    alone = bootstrap(a, 200, resamples=200)
    assert gain.high - gain.low < 0.5 * (alone.high - alone.low)
    assert bootstrap(lambda counts: a(counts) - a(counts), 200, resamples=50).high == 0


def test_a_score_that_is_undefined_on_the_whole_sample_is_an_error() -> None:
    statistic = auc_statistic(np.ones((5, 1)), np.arange(5.0)[:, None])
    with pytest.raises(DataError, match="whole sample"):
        bootstrap(statistic, 5)


def test_two_records_are_enough_for_a_finite_interval() -> None:
    statistic = auc_statistic(np.array([[1], [0]]), np.array([[1.0], [0.0]]))
    got = bootstrap(statistic, 2, resamples=200, redraws=0)
    assert got.low == got.high == 1
    assert got.resamples < 200  # what had no class at all is left out and not counted


def test_group_labels_of_another_length_are_an_error() -> None:
    with pytest.raises(DataError, match="4 group labels for 5"):
        bootstrap(mean_statistic(np.arange(5.0)), 5, groups=np.zeros(4))


def test_stored_wilson_intervals_are_reproduced(data: Callable[[str], Path]) -> None:
    golden = np.load(data("core") / "golden_metrics.npz")
    for (k, n), interval in zip(golden["wilson/k_n"], golden["wilson/interval95"], strict=True):
        assert wilson(int(k), int(n)) == pytest.approx(tuple(interval), abs=1e-9)


def test_wilson_knows_its_edges() -> None:
    assert wilson(0, 0) == (0, 1)
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == 1
    with pytest.raises(DataError, match="11 successes"):
        wilson(11, 10)


def test_stored_paired_differences_are_reproduced(data: Callable[[str], Path]) -> None:
    golden = np.load(data("core") / "golden_metrics.npz")
    got = paired(golden["paired/a"], golden["paired/b"])
    stored = tuple(golden["paired/mean_lo_hi"])
    assert (got.mean, got.low, got.high) == pytest.approx(stored, abs=1e-9)
    assert got.same_sign is bool(golden["paired/all_same_sign"])


def test_two_seeds_give_no_interval() -> None:
    got = paired([0.8, 0.9], [0.7, 0.95])
    assert got.low is None
    assert got.high is None
    assert not got.same_sign
    assert str(got) == "+0.0250 (+-)"


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0]), ([math.nan], [0.0])])
def test_scores_that_cannot_be_paired_are_an_error(a: list[float], b: list[float]) -> None:
    with pytest.raises(DataError):
        paired(a, b)
