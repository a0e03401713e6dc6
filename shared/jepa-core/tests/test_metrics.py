"""Metrics equal stored values and their definitions, and name what is undefined."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_core.errors import DataError
from jepa_core.evaluation.metrics import (
    auc_statistic,
    average_precision,
    hits_at,
    macro_auc,
    mean_iou,
    mean_reciprocal_rank,
    mean_statistic,
    one_hot,
    r2,
    ranks,
    squared_correlation,
)


def _slow_auc(y: np.ndarray, score: np.ndarray) -> float:
    """Mann-Whitney by its definition: every pair of a positive and a negative."""
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in score[y == 1] for b in score[y == 0]]
    return float(np.mean(wins)) if wins else math.nan


def test_auc_of_published_predictions_is_reproduced(data: Callable[[str], Path]) -> None:
    golden = np.load(data("ecg") / "golden_auc_val.npz")
    y = np.unpackbits(golden["y_packed"], axis=1)[:, : int(golden["n_classes"])]
    auc = macro_auc(y, golden["pred"])
    assert auc.macro == pytest.approx(0.9280807631416982, abs=1e-12)
    np.testing.assert_allclose(auc.per_class, golden["per_class_auc"], rtol=0, atol=1e-12)
    assert auc.records == 2193
    assert auc.positives.sum() == 6113


def test_stored_auc_and_ap_are_reproduced(data: Callable[[str], Path]) -> None:
    golden = np.load(data("core") / "golden_metrics.npz")
    y, score = golden["auc/y"], golden["auc/score"]
    auc = macro_auc(y, score)
    np.testing.assert_allclose(auc.per_class, golden["auc/per_class"], atol=1e-9)
    assert auc.macro == pytest.approx(float(golden["auc/macro_skip"]), abs=1e-9)
    assert len(auc.skipped) == golden["auc/n_skipped"]
    np.testing.assert_allclose(average_precision(y, score), golden["ap/per_class"], atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_auc_and_ap_equal_pairs_and_thresholds(n: int, c: int, levels: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    y, score = draw.integers(0, 2, (n, c)), draw.integers(0, levels, (n, c)) / 3
    per_class = auc_statistic(y, score)(np.ones((1, n), int))[0]
    np.testing.assert_allclose(per_class, [_slow_auc(y[:, i], score[:, i]) for i in range(c)])
    for i, value in enumerate(average_precision(y, score)):
        total, recall = 0.0, 0.0
        for threshold in sorted(set(score[:, i]), reverse=True):
            taken = score[:, i] >= threshold
            now = (taken & (y[:, i] == 1)).sum() / max(1, y[:, i].sum())
            total += (now - recall) * y[taken, i].mean()
            recall = now
        assert value == pytest.approx(total if y[:, i].any() else math.nan, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_auc_by_counts_equals_the_auc_of_the_repeated_records(n: int, c: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    y, score = draw.integers(0, 2, (n, c)), draw.integers(0, 5, (n, c)).astype(float)
    counts = draw.integers(0, 4, (3, n))
    got = auc_statistic(y, score)(counts)
    for row, count in zip(got, counts, strict=True):
        rows = np.repeat(np.arange(n), count)
        np.testing.assert_allclose(row, [_slow_auc(y[rows, i], score[rows, i]) for i in range(c)])


def test_auc_and_ap_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    draw = np.random.default_rng(0)
    y, score = draw.integers(0, 2, (200, 6)), draw.normal(size=(200, 6)).round(1)
    assert macro_auc(y, score).macro == pytest.approx(roc_auc_score(y, score), abs=1e-14)
    np.testing.assert_allclose(
        average_precision(y, score), average_precision_score(y, score, average=None), atol=1e-14
    )


def test_a_class_without_both_labels_is_skipped_and_named() -> None:
    y = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1]])
    score = np.arange(9.0).reshape(3, 3)
    auc = macro_auc(y, score, classes=["a", "none", "all"])
    assert auc.skipped == ("none", "all")
    assert auc.macro == 0.5
    assert str(auc) == "0.5000 over 1 of 3 classes"
    assert math.isnan(macro_auc(y, score, undefined="nan").macro)
    with pytest.raises(DataError, match="no AUC for none, all"):
        macro_auc(y, score, undefined="error", classes=["a", "none", "all"])


def test_no_class_with_both_labels_is_an_error() -> None:
    with pytest.raises(DataError, match="positives and negatives"):
        macro_auc(np.ones((4, 1)), np.zeros((4, 1)))


@pytest.mark.parametrize(
    ("y", "score", "message"),
    [
        (np.zeros((3, 2)), np.zeros((3, 3)), "alike"),
        (np.full((3, 2), 2), np.zeros((3, 2)), "0 or 1"),
        (np.eye(3), np.full((3, 3), np.nan), "class 0"),
    ],
)
def test_labels_and_scores_that_make_no_sense_are_errors(
    y: np.ndarray, score: np.ndarray, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        macro_auc(y, score)


def test_infinite_scores_are_the_extremes() -> None:
    y = np.array([[1], [0], [0]])
    assert macro_auc(y, np.array([[np.inf], [1.0], [-np.inf]])).macro == 1


def test_the_mean_by_counts_is_the_mean_of_the_repeated_records() -> None:
    hit = np.array([1.0, 0.0, 1.0])
    got = mean_statistic(hit)(np.array([[1, 1, 1], [0, 3, 0], [2, 1, 0]]))
    np.testing.assert_allclose(got[:, 0], [2 / 3, 0, 2 / 3])


def test_stored_intersections_over_unions_are_reproduced(data: Callable[[str], Path]) -> None:
    golden = np.load(data("core") / "golden_metrics.npz")
    iou = mean_iou(golden["miou/true"], golden["miou/pred"], classes=6)
    np.testing.assert_allclose(iou.per_class, golden["miou/iou"], atol=1e-9)
    assert iou.mean_present_or_predicted == pytest.approx(
        float(golden["miou/mean_present_or_predicted"])
    )
    assert iou.mean_present_in_truth == pytest.approx(float(golden["miou/mean_present_in_truth"]))


def test_ignored_labels_count_on_neither_side() -> None:
    true, predicted = np.array([0, 0, 255, 1]), np.array([0, 255, 1, 0])
    iou = mean_iou(true, predicted, classes=3)
    np.testing.assert_array_equal(iou.per_class, [0.5, 0, np.nan])
    everything = mean_iou(np.full(3, 255), np.zeros(3, int), classes=2)
    assert math.isnan(everything.mean_present_in_truth)


def test_a_label_beyond_the_classes_is_an_error() -> None:
    with pytest.raises(DataError, match="predictions go from 0 to 3"):
        mean_iou(np.zeros(2, int), np.array([0, 3]), classes=3)


def test_stored_r2_are_reproduced(data: Callable[[str], Path]) -> None:
    golden = np.load(data("core") / "golden_metrics.npz")
    true, predicted = golden["r2/true"], golden["r2/pred"]
    got = r2(true, predicted)
    assert got.mean_over_outputs == pytest.approx(float(golden["r2/mean_over_outputs"]), abs=1e-9)
    assert got.pooled == pytest.approx(float(golden["r2/pooled"]), abs=1e-9)
    np.testing.assert_allclose(got.per_output, golden["r2/per_output"], atol=1e-9)
    correlation = squared_correlation(true, predicted)
    np.testing.assert_allclose(correlation, golden["r2/sq_corr"], atol=1e-9)


def test_r2_of_a_constant_truth_is_undefined() -> None:
    true = np.column_stack([np.full(3, 0.1), [1.0, 2.0, 3.0]])
    got = r2(true, true)
    assert math.isnan(got.per_output[0])
    assert got.mean_over_outputs == got.per_output[1] == got.pooled == 1
    constant = r2(true[:, :1], true[:, 1:])
    assert math.isnan(constant.pooled)
    assert math.isnan(constant.mean_over_outputs)
    assert math.isnan(squared_correlation(true, true)[0])


@pytest.mark.parametrize("ties", ["average", "optimistic", "pessimistic"])
def test_stored_ranks_are_reproduced(data: Callable[[str], Path], ties: str) -> None:
    golden = np.load(data("core") / "golden_metrics.npz")
    got = ranks(golden["rank/scores"], golden["rank/target"], ties)  # type: ignore[arg-type]
    np.testing.assert_array_equal(got, golden[f"rank/{ties}"])
    assert mean_reciprocal_rank(got) == pytest.approx(float(golden[f"rank/mrr_{ties}"]), abs=1e-9)
    for k in (1, 3):
        assert hits_at(got, k) == pytest.approx(float(golden[f"rank/hits{k}_{ties}"]), abs=1e-9)


def test_a_scorer_that_says_the_same_of_all_does_not_win() -> None:
    got = ranks(np.zeros((2, 5)), np.array([0, 4]))
    np.testing.assert_array_equal(got, 3)


def test_a_target_without_a_score_comes_last() -> None:
    scores = np.array([[np.nan, 1.0, np.nan], [0.5, np.nan, 1.0]])
    assert ranks(scores, np.array([0, 0])).tolist() == [3, 2]


def test_one_hot_refuses_a_class_that_is_not_there() -> None:
    assert one_hot(np.array([1, 0]), 2).tolist() == [[0, 1], [1, 0]]
    with pytest.raises(DataError, match="classes go from -1"):
        one_hot(np.array([-1, 0]), 2)
