"""Ridge and logistic probes: closed forms, choices made inside the training part, odd columns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jepa_core.errors import DataError
from jepa_core.evaluation.linear import (
    ALPHAS,
    PENALTIES,
    _decompose,
    _folds,
    _generalised_errors,
    logistic,
    ridge,
)
from jepa_core.evaluation.metrics import accuracy, macro_auc, one_hot


def _task(n: int = 120, dim: int = 8, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    hidden = draw.normal(size=(n, dim))
    y = hidden @ draw.normal(size=(dim, 3)) + noise * draw.normal(size=(n, 3))
    return hidden * np.geomspace(0.01, 100, dim) + 5, y


def _solved(x: np.ndarray, y: np.ndarray, test: np.ndarray, alpha: float) -> np.ndarray:
    mean, std = x.mean(0), x.std(0)
    z = (x - mean) / std
    weight = np.linalg.solve(z.T @ z + alpha * np.eye(x.shape[1]), z.T @ (y - y.mean(0)))
    return (test - mean) / std @ weight + y.mean(0)


@pytest.mark.parametrize(("alpha", "right"), [(1, 0.86), (100, 0.93)])
def test_digits_get_the_stored_ridge_scores(
    data: Callable[[str], Path], alpha: int, right: float
) -> None:
    golden = np.load(data("core") / "golden_metrics.npz")
    train, y, test = (golden[f"knn/{name}"] for name in ("train_x", "train_y", "test_x"))
    scores = ridge(train, one_hot(y, 10), alpha=alpha).scores(test)
    np.testing.assert_allclose(scores, golden[f"ridge/a{alpha}_scores"], atol=1e-9)
    assert accuracy(golden["knn/test_y"], scores) == pytest.approx(right)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_ridge_equals_the_normal_equations(alpha: float) -> None:
    x, y = _task()
    got = ridge(x[:80], y[:80], alpha=alpha).scores(x[80:])
    np.testing.assert_allclose(got, _solved(x[:80], y[:80], x[80:], alpha), rtol=1e-8, atol=1e-8)


def test_gcv_equals_its_definition_by_the_hat_matrix() -> None:
    x, y = _task(n=12, noise=4.0)
    slow = []
    for alpha in ALPHAS:
        z = (x - x.mean(0)) / x.std(0)
        hat = z @ np.linalg.solve(z.T @ z + alpha * np.eye(8), z.T) + 1 / len(x)
        slow.append(np.square(y - hat @ y).sum() / (len(x) - np.trace(hat)) ** 2)
    np.testing.assert_allclose(
        _generalised_errors(_decompose(x, y, standardise=True), len(x)), slow, rtol=1e-9
    )
    assert ridge(x, y).strength == ALPHAS[int(np.argmin(slow))]


def test_noise_asks_for_more_shrinkage_than_a_clean_target() -> None:
    clean, noisy = ridge(*_task(noise=0.01)).strength, ridge(*_task(noise=30.0)).strength
    assert clean < noisy


def test_with_groups_alpha_is_chosen_across_groups() -> None:
    # Each person's records are copies: across records they predict each other without shrinkage,
    # across persons nothing is predicted at all.
    draw = np.random.default_rng(3)
    person = np.repeat(np.arange(20), 6)
    x = draw.normal(size=(20, 15))[person] + 0.01 * draw.normal(size=(120, 15))
    y = draw.normal(size=(20, 1))[person]
    assert ridge(x, y).strength < 1
    assert ridge(x, y, groups=person).strength >= 10


def test_more_features_than_records_is_solved_as_well() -> None:
    draw = np.random.default_rng(4)
    x, y = draw.normal(size=(20, 50)), draw.normal(size=(20, 2))
    np.testing.assert_allclose(ridge(x, y, alpha=3.0).scores(x), _solved(x, y, x, 3.0), rtol=1e-8)
    assert np.isfinite(ridge(x, y).scores(x)).all()


def test_a_constant_feature_changes_nothing() -> None:
    x, y = _task()
    wider = np.column_stack([x, np.full(len(x), 0.1)])
    np.testing.assert_allclose(
        ridge(wider, y, alpha=1.0).scores(wider), ridge(x, y, alpha=1.0).scores(x), rtol=1e-9
    )


def test_standardised_ridge_is_blind_to_a_collapse_of_scale_and_the_plain_one_is_not() -> None:
    x, y = _task(noise=0.1)
    x = (x - x.mean(0)) / x.std(0)
    for standardise, survives in ((True, True), (False, False)):
        probe = ridge(1e-4 * x, y, alpha=1.0, standardise=standardise)
        error = np.square(probe.scores(1e-4 * x) - y).mean() / y.var()
        assert bool(error < 0.1) is survives


@pytest.mark.parametrize("groups", [None, np.repeat(np.arange(13), 4)])
def test_folds_cover_every_record_once_and_split_no_group(groups: np.ndarray | None) -> None:
    seen = []
    for inside, outside in _folds(52, groups, seed=1):
        assert not set(inside) & set(outside)
        assert len(inside) + len(outside) == 52
        if groups is not None:
            assert not set(groups[inside]) & set(groups[outside])
        seen += outside.tolist()
    assert sorted(seen) == list(range(52))


def test_folds_depend_on_the_seed_alone() -> None:
    def first(seed: int) -> list[int]:
        return next(iter(_folds(40, None, seed)))[1].tolist()

    assert first(0) == first(0)
    assert first(0) != first(1)


def test_logistic_reads_digits(data: Callable[[str], Path]) -> None:
    golden = np.load(data("core") / "golden_metrics.npz")
    train, y, test = (golden[f"knn/{name}"] for name in ("train_x", "train_y", "test_x"))
    probe = logistic(train, y, C=0.1)
    assert accuracy(golden["knn/test_y"], probe.scores(test)) >= 0.92
    assert probe.notes == ()


def test_logistic_scores_are_those_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = _task()
    label = y.argmax(1)
    z = (x - x.mean(0)) / x.std(0)
    model = LogisticRegression(C=0.5, max_iter=1000).fit(z, label)
    got = logistic(x, label, C=0.5).scores(x)
    np.testing.assert_allclose(got, model.decision_function(z), rtol=1e-6, atol=1e-9)


def test_two_classes_get_two_columns_of_scores() -> None:
    x, y = _task()
    label = (y[:, 0] > y[:, 0].mean()).astype(int)
    scores = logistic(x, label, C=1.0).scores(x)
    assert scores.shape == (120, 2)
    # the log-odds are those of the one-column form
    odds = logistic(x, label[:, None], C=1.0).scores(x)
    np.testing.assert_allclose(scores[:, 1] - scores[:, 0], odds[:, 0], rtol=1e-6, atol=1e-9)


def test_a_class_that_the_training_part_lacks_is_never_the_answer() -> None:
    x, y = _task()
    label = 2 * (y[:, 0] > y[:, 0].mean()).astype(int)  # classes 0 and 2
    assert 1 not in logistic(x, label, classes=3, C=1.0).scores(x).argmax(1)


def test_columns_are_fitted_one_by_one_and_one_without_both_labels_gets_its_prior() -> None:
    x, y = _task()
    columns = (y > y.mean(0)).astype(int)
    alone = logistic(x, columns[:, :1], C=1.0).scores(x)
    together = logistic(x, np.column_stack([columns[:, 0], np.zeros(120)]), C=1.0).scores(x)
    np.testing.assert_allclose(together[:, 0], alone[:, 0])
    np.testing.assert_allclose(together[:, 1], np.log(0.5 / 120.5))


def test_the_penalty_is_chosen_from_the_grid_and_helps_on_noise() -> None:
    draw = np.random.default_rng(5)
    x = draw.normal(size=(80, 30))
    columns = (x[:, :2] + 3 * draw.normal(size=(80, 2)) > 0).astype(int)
    probe = logistic(x, columns)
    assert probe.strength in PENALTIES
    assert probe.strength <= 0.1
    fresh = draw.normal(size=(2000, 30))
    truth = (fresh[:, :2] > 0).astype(int)
    weak = logistic(x, columns, C=100.0)
    assert macro_auc(truth, probe.scores(fresh)).macro > macro_auc(truth, weak.scores(fresh)).macro


def test_a_fit_that_stops_early_says_so() -> None:
    x, y = _task()
    probe = logistic(x, (y > y.mean(0)).astype(int), C=100.0, max_iter=1)
    assert probe.notes == ("3 fits stopped at max_iter 1",)


def test_features_that_are_not_finite_are_an_error() -> None:
    x, y = _task()
    x[3, 2] = np.nan
    with pytest.raises(DataError, match="finite"):
        ridge(x, y, alpha=1.0)


def test_labels_of_another_length_are_an_error() -> None:
    x, y = _task()
    with pytest.raises(DataError, match="120 rows of features and 119"):
        ridge(x, y[1:], alpha=1.0)


def test_cross_validation_over_one_group_is_an_error() -> None:
    x, y = _task()
    with pytest.raises(DataError, match="two groups"):
        ridge(x, y, groups=np.zeros(120))


@pytest.mark.parametrize(("n", "dim"), [(60, 12), (30, 30), (20, 45)])
def test_ridge_is_that_of_the_singular_values(n: int, dim: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, dim)) * np.logspace(0, -3, dim)
    x[:, 1] = x[:, 0] + x[:, 2]  # of less than full rank
    y = rng.normal(size=(n, 2)) + x[:, :2]
    z = (x - x.mean(0)) / x.std(0)
    left, s, right = np.linalg.svd(z, full_matrices=False)
    for alpha in (1e-3, 1.0, 1e4):
        probe = ridge(x, y, alpha=alpha)
        weight = right.T @ ((s / (s**2 + alpha))[:, None] * (left.T @ (y - y.mean(0))))
        np.testing.assert_allclose(probe.weight, weight, atol=1e-8 * np.abs(weight).max())
