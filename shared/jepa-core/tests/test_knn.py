"""Nearest-neighbour votes equal stored ones and a loop over rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jepa_core.errors import DataError
from jepa_core.evaluation.knn import knn_shares, knn_votes, neighbours
from jepa_core.evaluation.metrics import accuracy, one_hot


def _slow_votes(
    train: np.ndarray, y: np.ndarray, test: np.ndarray, classes: int, k: int
) -> np.ndarray:
    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        norm = np.sqrt((a @ a) * (b @ b))
        return float(a @ b / norm) if norm > 0 else 0.0

    votes = np.zeros((len(test), classes))
    for i, row in enumerate(test):
        similar = [(-cosine(row, other), j) for j, other in enumerate(train)]
        for minus, j in sorted(similar)[:k]:
            votes[i, y[j]] += np.exp(-minus / 0.07)
    return votes


@pytest.mark.parametrize(("k", "right"), [(5, 0.96), (20, 0.94)])
def test_digits_get_the_stored_votes(data: Callable[[str], Path], k: int, right: float) -> None:
    golden = np.load(data("core") / "golden_metrics.npz")
    train, y, test = (golden[f"knn/{name}"] for name in ("train_x", "train_y", "test_x"))
    votes = knn_votes(train, y, test, classes=10, k=k)
    np.testing.assert_allclose(votes, golden[f"knn/k{k}_votes"], rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(votes.argmax(1), golden[f"knn/k{k}_pred"])
    assert accuracy(golden["knn/test_y"], votes) == pytest.approx(right)


def test_votes_equal_a_loop_over_rows_whatever_the_chunk() -> None:
    draw = np.random.default_rng(0)
    train, test = draw.normal(size=(50, 6)), draw.normal(size=(23, 6))
    y = draw.integers(0, 4, 50)
    slow = _slow_votes(train, y, test, 4, k=7)
    np.testing.assert_allclose(knn_votes(train, y, test, classes=4, k=7), slow, rtol=1e-9)
    index, _ = neighbours(train, test, 7)
    np.testing.assert_array_equal(neighbours(train, test, 7, chunk=5)[0], index)


def test_equally_near_rows_come_in_the_order_of_the_training_set() -> None:
    train = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    index, weight = neighbours(train, np.array([[5.0, 0.0]]), k=2)
    assert index.tolist() == [[0, 1]]
    np.testing.assert_allclose(weight, np.exp(1 / 0.07))


def test_a_row_of_zeros_is_as_near_to_everything() -> None:
    index, weight = neighbours(np.eye(3), np.zeros((1, 3)), k=3)
    assert index.tolist() == [[0, 1, 2]]
    np.testing.assert_array_equal(weight, 1)


def test_ties_go_to_the_lowest_class() -> None:
    votes = knn_votes(np.eye(2), np.array([1, 0]), np.ones((1, 2)), classes=2, k=2)
    assert votes.argmax(1).tolist() == [0]


def test_shares_of_single_labels_are_votes_over_their_sum() -> None:
    draw = np.random.default_rng(1)
    train, test, y = draw.normal(size=(30, 4)), draw.normal(size=(9, 4)), draw.integers(0, 3, 30)
    votes = knn_votes(train, y, test, classes=3, k=5)
    shares = knn_shares(train, one_hot(y, 3), test, k=5)
    np.testing.assert_allclose(shares, votes / votes.sum(1, keepdims=True))


def test_a_label_that_every_neighbour_carries_has_share_one() -> None:
    draw = np.random.default_rng(2)
    y = np.stack([np.ones(20), draw.integers(0, 2, 20)], axis=1)
    shares = knn_shares(draw.normal(size=(20, 4)), y, draw.normal(size=(5, 4)), k=3)
    np.testing.assert_allclose(shares[:, 0], 1)
    assert ((shares[:, 1] >= 0) & (shares[:, 1] <= 1 + 1e-12)).all()


@pytest.mark.parametrize("k", [0, 4])
def test_more_neighbours_than_rows_is_an_error(k: int) -> None:
    with pytest.raises(DataError, match="3 training rows"):
        neighbours(np.eye(3), np.eye(3), k=k)


def test_a_class_beyond_the_last_is_an_error() -> None:
    with pytest.raises(DataError, match=r"0\.\.1"):
        knn_votes(np.eye(3), np.array([0, 1, 2]), np.eye(3), classes=2, k=1)
