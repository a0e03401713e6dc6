"""Boosted trees: categories as categories, classes that are absent, libraries that are absent."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from jepa_core.errors import ConfigError, DataError, MissingExtra
from jepa_tabular.downstream.trees import gbdt
from jepa_tabular.presets import TableShape


def installed(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        importlib.util.find_spec(kind) is None,
        reason=f'{kind} is not installed; it comes with pip install "jepa-tabular[gbdt]"',
    )


KINDS = [
    "hist",
    pytest.param("xgboost", marks=installed("xgboost")),
    pytest.param("catboost", marks=installed("catboost")),
]
# Columns: a number with gaps, a category of 8 whose parity is the label, noise, an id.
SHAPE = TableShape(columns=4, categorical=(1, 3), cardinalities=(9, 401))


def table(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    columns = [
        draw.normal(size=n),
        draw.integers(8, size=n),
        draw.normal(size=n),
        draw.integers(400, size=n),
    ]
    x = np.stack(columns, 1).astype(np.float32)
    x[::17, 0] = np.nan
    return x, (x[:, 1] % 2).astype(np.int64)


@pytest.mark.parametrize("kind", KINDS)
def test_trees_read_categories_and_gaps(kind, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (x, y), (test, truth) = table(), table(seed=1)
    trees = gbdt(kind, "binary", 0, shape=SHAPE).fit(x, y)
    scores = trees.predict_proba(test)
    assert scores.shape == (400, 2)
    assert (trees.predict(test) == truth).mean() > 0.98
    np.testing.assert_array_equal(
        scores, gbdt(kind, "binary", 0, shape=SHAPE).fit(x, y).predict_proba(test)
    )
    assert not list(tmp_path.iterdir())  # no library leaves files where the program runs


@pytest.mark.parametrize("kind", KINDS)
def test_a_code_that_training_did_not_see_is_scored(kind) -> None:
    x, y = table()
    trees = gbdt(kind, "binary", 0, shape=SHAPE).fit(x, y)
    x[:, 1], x[:, 3] = 8, 400
    assert np.isfinite(trees.predict_proba(x)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_that_training_did_not_see_gets_no_chance(kind) -> None:
    (x, y), (test, truth) = table(), table(seed=1)
    trees = gbdt(kind, "multiclass", 0, shape=SHAPE, classes=6).fit(x, 3 * y + 1)
    scores = trees.predict_proba(test)
    assert scores.shape == (400, 6)
    assert (scores[:, [0, 2, 3, 5]] == 0).all()
    assert trees.score(test, 3 * truth + 1) > 0.98


@pytest.mark.parametrize("kind", KINDS)
def test_values_come_in_the_targets_units(kind) -> None:
    (x, y), (test, truth) = table(), table(seed=1)
    trees = gbdt(kind, "regression", 0, shape=SHAPE).fit(x, 2e5 + 1e5 * y)
    predicted = trees.predict(test)
    assert predicted.dtype == np.float64
    assert np.abs(predicted - (2e5 + 1e5 * truth)).mean() < 5e3
    assert trees.score(test, 2e5 + 1e5 * truth) > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_shape_all_columns_are_numbers(kind) -> None:
    x, y = table()
    trees = gbdt(kind, "multiclass", 0).fit(x, y + (x[:, 2] > 1))
    scores = trees.predict_proba(x)
    assert scores.shape == (400, 3)
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-12)
    assert trees.score(x, y + (x[:, 2] > 1)) > 0.9


def test_histograms_are_scikit_learns_with_categories_and_the_seed_set() -> None:
    x, y = table()
    ours = gbdt("hist", "binary", 3, shape=SHAPE).fit(x, y).trees_
    twin = HistGradientBoostingClassifier(categorical_features=[1], random_state=3).fit(x, y)
    np.testing.assert_allclose(ours.predict_proba(x), twin.predict_proba(x), atol=1e-12)
    # The id has more categories than histograms have bins and is read as a number.
    assert ours.is_categorical_.tolist() == [False, True, False, False]

    ours = gbdt("hist", "regression", 3).fit(x, x[:, 2]).trees_
    twin = HistGradientBoostingRegressor(random_state=3).fit(x, x[:, 2])
    np.testing.assert_array_equal(ours.predict(x), twin.predict(x))
    assert ours.is_categorical_ is None


@installed("xgboost")
def test_xgboost_has_the_published_settings() -> None:
    x, y = table()
    trees = gbdt("xgboost", "binary", 7, shape=SHAPE).fit(x, y).trees_
    settings = trees.get_params()
    assert settings["n_estimators"] == 1000
    assert settings["max_depth"] == 5
    assert settings["learning_rate"] == 0.1
    assert settings["random_state"] == 7
    assert trees.get_booster().feature_types == ["q", "c", "q", "c"]


@pytest.mark.parametrize("kind", ["xgboost", "catboost"])
@pytest.mark.parametrize("task", ["binary", "regression"])
def test_a_library_that_is_absent_is_named_with_its_extra(kind, task, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, kind, None)  # what makes `import` fail, installed or not
    with pytest.raises(MissingExtra) as caught:
        gbdt(kind, task, 0)
    assert str(caught.value) == (
        f'this needs {kind}, which is not installed; pip install "jepa-tabular[gbdt]"'
    )


def test_other_trees_and_one_class_are_refused() -> None:
    with pytest.raises(ConfigError, match="no trees 'lightgbm'"):
        gbdt("lightgbm", "binary", 0)
    x, y = table()
    with pytest.raises(DataError, match="of one class"):
        gbdt("hist", "binary", 0).fit(x, 0 * y)


def test_trees_are_scikit_learns_citizens() -> None:
    x, y = table()
    trees = gbdt("hist", "multiclass", 5, shape=SHAPE, classes=4)
    twin = clone(trees)
    assert twin.get_params() == trees.get_params()
    np.testing.assert_array_equal(twin.fit(x, y).predict_proba(x), trees.fit(x, y).predict_proba(x))
    assert trees.classes_.tolist() == [0, 1, 2, 3]
