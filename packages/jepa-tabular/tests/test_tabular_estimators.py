"""The estimators: scikit-learn's own checks, and what a user of pipelines relies on."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

from jepa_core.errors import ConfigError, DataError
from jepa_tabular import TJEPAClassifier, TJEPARegressor, TJEPATransformer
from jepa_tabular import transformer as transformer_module

TINY = {"dim": 8, "depth": 1, "max_epochs": 1, "random_state": 0, "device": "cpu"}
ESTIMATORS = (TJEPATransformer, TJEPAClassifier, TJEPARegressor)


def small(kind, **parameters):
    return kind(**{**TINY, **parameters})


@pytest.fixture(scope="module")
def people() -> pd.DataFrame:
    """120 rows of every kind of column, with missing values."""
    rng = np.random.default_rng(0)
    n = 120
    frame = pd.DataFrame(
        {
            "age": rng.normal(40, 10, n).round(1),
            "city": rng.choice(["Oslo", "Rome", "Lima"], n),
            "since": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 900, n), "D"),
            "member": rng.random(n) < 0.5,
            "hours": rng.integers(10, 60, n),
            "grade": pd.Categorical(rng.choice(["a", "b"], n)),
        },
        index=np.arange(n) * 3,
    )
    frame.loc[frame.index[::7], "age"] = np.nan
    frame.loc[frame.index[::11], "city"] = None
    return frame


@pytest.fixture(scope="module")
def answers(people: pd.DataFrame) -> np.ndarray:
    """What depends on two of the columns."""
    score = people["hours"] + 20 * (people["city"] == "Rome")
    return np.where(score > score.median(), "much", "little")


@parametrize_with_checks([small(kind, random_state=None) for kind in ESTIMATORS])
def test_scikit_learn_accepts(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator",
    [
        *(kind() for kind in ESTIMATORS),
        small(TJEPATransformer, missing="indicator", output="mean"),
        small(TJEPAClassifier, freeze=False),
        small(TJEPARegressor, freeze=False, raw=False, max_epochs=20),
        small(TJEPARegressor, missing="indicator"),
        small(TJEPAClassifier, head="mlp"),
    ],
    ids=[
        "transformer",
        "classifier",
        "regressor",
        "transformer-indicator-mean",
        "classifier-tuned",
        "regressor-tuned",
        "regressor-indicator",
        "classifier-mlp",
    ],
)
def test_scikit_learn_accepts_the_defaults_and_every_way_to_train(estimator):
    check_estimator(estimator)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_a_second_fit_has_the_same_bits(kind, people, answers):
    y = answers if kind is TJEPAClassifier else people["hours"] + people.index
    method = "transform" if kind is TJEPATransformer else "predict"
    model = small(kind, missing="mean")
    first, second = (
        getattr(clone(model).fit(people, y), method)(people).tolist() for _ in range(2)
    )
    assert first == second


def test_other_seeds_give_other_features(people):
    def features(random_state):
        model = small(TJEPATransformer, missing="mean", random_state=random_state)
        return model.fit(people).transform(people)

    np.testing.assert_array_equal(
        features(np.random.RandomState(5)), features(np.random.RandomState(5))
    )
    assert not np.array_equal(features(0), features(1))
    assert not np.array_equal(features(None), features(None))


def test_features_are_named_after_tokens_and_keep_the_index(people):
    model = small(TJEPATransformer, missing="indicator").set_output(transform="pandas")
    found = model.fit(people).transform(people)
    assert model.token_names_ == ("[REG]0", "age", "since", "hours", "city", "member", "grade")
    assert found.columns[0] == "tjepa_[REG]0_0"
    assert found.columns[-1] == "tjepa_grade_7"
    assert found.shape == (120, 7 * 8)
    assert found.index.equals(people.index)
    assert (found.dtypes == np.float32).all()


@pytest.mark.parametrize(("output", "width", "name"), [("reg", 8, "[REG]0"), ("mean", 8, "mean")])
def test_features_can_be_pooled(people, output, width, name):
    model = small(TJEPATransformer, missing="mean", output=output).fit(people)
    tokens, found = model.encode(people), model.transform(people)
    assert found.shape == (120, width)
    assert list(model.get_feature_names_out()) == [f"tjepa_{name}_{k}" for k in range(8)]
    expected = tokens[:, 0] if output == "reg" else tokens.mean(1)
    np.testing.assert_array_equal(found, expected)


def test_features_can_be_those_of_every_block(people):
    model = small(TJEPATransformer, missing="mean", output="blocks", depth=3).fit(people)
    tokens, found = model.encode(people), model.transform(people)
    names = list(model.get_feature_names_out())
    assert found.shape == (120, 7 * 3 * 8) == (120, len(names))
    assert names[:2] == ["tjepa_[REG]0_block1_0", "tjepa_[REG]0_block1_1"]
    last = [place for place, name in enumerate(names) if "_block3_" in name]
    np.testing.assert_array_equal(found[:, last].reshape(120, 7, 8), tokens)
    assert not np.array_equal(found[:, :8], found[:, 16:24])


def test_an_unknown_output_is_refused_by_name(people):
    model = small(TJEPATransformer, missing="mean").fit(people)
    with pytest.raises(ConfigError, match="'median'; allowed: flatten, blocks, reg, mean"):
        model.set_params(output="median").transform(people)


def test_flattened_tokens_are_in_the_order_of_their_names(people):
    model = small(TJEPATransformer, missing="mean").fit(people)
    at = list(model.get_feature_names_out()).index("tjepa_hours_0")
    hours = model.encode(people)[:, model.token_names_.index("hours")]
    np.testing.assert_array_equal(model.transform(people)[:, at : at + 8], hours)


def test_works_in_a_pipeline_beside_other_transformers(people, answers):
    mixed = ColumnTransformer(
        [("jepa", small(TJEPATransformer, missing="mean"), ["age", "city", "hours"])],
        remainder="drop",
    )
    model = make_pipeline(mixed, LogisticRegression(max_iter=500)).fit(people, answers)
    assert model.score(people, answers) > 0.7
    assert "jepa__tjepa_city_0" in mixed.fit(people).get_feature_names_out()


def test_parameters_can_be_searched(people, answers):
    grid = GridSearchCV(
        small(TJEPAClassifier, missing="mean"), {"dim": [4, 8], "raw": [True]}, cv=2
    ).fit(people, answers)
    assert grid.best_params_["dim"] in (4, 8)
    assert np.isfinite(grid.cv_results_["mean_test_score"]).all()
    drawn = RandomizedSearchCV(
        small(TJEPARegressor, missing="mean"),
        {"learning_rate": [1e-3, 1e-2], "targets": [1, 2]},
        n_iter=2,
        cv=2,
        random_state=0,
    ).fit(people, people["hours"] + people.index)
    assert drawn.predict(people).shape == (120,)


def test_several_threads_may_fit_at_once(people, answers):
    search = GridSearchCV(
        small(TJEPAClassifier, missing="mean"), {"dim": [4, 8]}, cv=2, n_jobs=2, error_score="raise"
    )
    from joblib import parallel_backend

    with parallel_backend("threading"):
        search.fit(people, answers)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_unlabelled_rows_teach_the_encoder_and_the_columns(people, answers):
    few, rest = people.iloc[:40], people.iloc[40:].assign(city="Kyiv")
    alone = small(TJEPAClassifier, missing="mean").fit(few, answers[:40])
    model = small(TJEPAClassifier, missing="mean").fit(few, answers[:40], unlabelled=rest)
    levels = model.transformer_.preprocessor_.levels_[0].categories
    assert "Kyiv" in levels
    assert "Kyiv" not in alone.transformer_.preprocessor_.levels_[0].categories
    assert model.predict(few).shape == (40,)


def test_unlabelled_rows_may_have_their_columns_in_another_order(people, answers):
    rest = people.iloc[40:]
    models = [
        small(TJEPAClassifier, missing="mean").fit(people.iloc[:40], answers[:40], unlabelled=more)
        for more in (rest, rest[rest.columns[::-1]])
    ]
    first, second = (model.predict_proba(people) for model in models)
    np.testing.assert_array_equal(first, second)


def test_unlabelled_rows_of_another_table_are_refused(people, answers):
    with pytest.raises(DataError, match="give both the same columns"):
        small(TJEPAClassifier, missing="mean").fit(people, answers, people.drop(columns="age"))


def test_minus_one_is_a_class_like_any_other():
    X = np.random.default_rng(0).normal(size=(60, 3))
    y = np.where(X[:, 0] > 0, 1, -1)
    model = small(TJEPAClassifier).fit(X, y)
    assert model.classes_.tolist() == [-1, 1]
    assert (model.predict(X) == y).mean() > 0.9


def test_a_missing_label_is_refused():
    X = np.random.default_rng(0).normal(size=(20, 3))
    y = np.where(X[:, 0] > 0, 1.0, np.nan)
    with pytest.raises(DataError, match="labels are missing"):
        small(TJEPARegressor).fit(X, y)


def test_a_column_that_is_the_label_is_told_of(people):
    with pytest.warns(UserWarning, match="column 'hours': a copy of the label"):
        small(TJEPARegressor, missing="mean").fit(people, people["hours"])


def test_rows_with_missing_numbers_can_be_left_out_of_training_alone(people, answers):
    whole = people["age"].notna().to_numpy()
    model = small(TJEPAClassifier, missing="drop").fit(people, answers)
    other = small(TJEPAClassifier, missing="drop").fit(people[whole], answers[whole])
    np.testing.assert_array_equal(
        model.predict_proba(people[whole]), other.predict_proba(people[whole])
    )
    with pytest.raises(DataError, match="18 of 120 rows hold missing numbers"):
        model.predict(people)


def test_more_rows_train_the_same_encoder_on(people):
    first, more = people.iloc[:60], people.iloc[60:]
    model = small(TJEPATransformer, missing="mean", max_epochs=10).fit(first)
    state, before = model.preprocessor_.to_state(), model.transform(more)
    columns = model.preprocessor_
    model.partial_fit(more)
    assert model.preprocessor_ is columns
    assert str(model.preprocessor_.to_state()) == str(state)
    after = model.transform(more)
    other = small(TJEPATransformer, missing="mean", random_state=9).fit(first).transform(more)
    moved = np.abs(after - before).max()
    assert 0 < moved < 0.5 * np.abs(other - before).max()


def test_the_first_rows_of_partial_fit_are_fitted(people):
    found = [
        getattr(small(TJEPATransformer, missing="mean"), method)(people).transform(people)
        for method in ("fit", "partial_fit")
    ]
    np.testing.assert_array_equal(*found)


def test_a_saved_transformer_can_be_trained_on(people, tmp_path):
    model = small(TJEPATransformer, missing="mean").fit(people)
    model.save_pretrained(tmp_path / "model")
    again = TJEPATransformer.from_pretrained(tmp_path / "model", max_epochs=5)
    before = again.transform(people)
    after = again.partial_fit(people).transform(people)
    moved = np.abs(after - before).max()
    assert 0 < moved < 0.5


SAVED = [
    (TJEPATransformer, {}),
    (TJEPAClassifier, {}),
    (TJEPAClassifier, {"freeze": False, "raw": False}),
    (TJEPAClassifier, {"head": "mlp"}),
    (TJEPARegressor, {}),
    (TJEPARegressor, {"head": "resnet"}),
]


@pytest.mark.parametrize(("kind", "parameters"), SAVED)
def test_what_is_saved_comes_back_without_pickle(kind, parameters, people, answers, tmp_path):
    y = answers if kind is TJEPAClassifier else people["hours"] * 1.5
    features = people.drop(columns="hours")
    model = small(kind, missing="indicator", **parameters).fit(features, y)
    folder = model.save_pretrained(tmp_path / "model")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    again = kind.from_pretrained(folder)
    assert again.get_params() == model.get_params()
    method = "transform" if kind is TJEPATransformer else "predict"
    np.testing.assert_array_equal(
        getattr(again, method)(features), getattr(model, method)(features)
    )
    if kind is TJEPAClassifier:
        np.testing.assert_array_equal(again.predict_proba(features), model.predict_proba(features))


def test_parameters_from_a_search_can_be_saved(people, tmp_path):
    model = small(
        TJEPATransformer, missing="mean", targets=np.int64(2), context=(np.float64(0.5), 0.75)
    )
    folder = model.fit(people).save_pretrained(tmp_path / "model")
    again = TJEPATransformer.from_pretrained(folder)
    assert (again.targets, again.context) == (2, (0.5, 0.75))


@pytest.mark.parametrize(
    "labels", [[False, True], [3, 7], ["x", "yy"], np.array(["x", "yy"], object), [0.5, 1.5]]
)
def test_classes_of_any_kind_come_back(labels, tmp_path):
    X = np.random.default_rng(0).normal(size=(30, 2))
    y = np.asarray(labels)[(X[:, 0] > 0).astype(int)]
    if y.dtype.kind == "f":
        y = y.astype(str)
    model = small(TJEPAClassifier).fit(X, y)
    again = TJEPAClassifier.from_pretrained(model.save_pretrained(tmp_path / "model"))
    assert again.classes_.dtype == model.classes_.dtype
    np.testing.assert_array_equal(again.predict(X), model.predict(X))


def test_a_model_of_another_kind_is_refused(people, tmp_path):
    folder = small(TJEPATransformer, missing="mean").fit(people).save_pretrained(tmp_path / "a")
    with pytest.raises(DataError, match="holds TJEPATransformer and no TJEPAClassifier"):
        TJEPAClassifier.from_pretrained(folder)


def test_a_head_can_be_put_on_a_saved_encoder(people, answers, tmp_path):
    encoder = small(TJEPATransformer, missing="mean").fit(people)
    folder = str(encoder.save_pretrained(tmp_path / "encoder"))
    model = small(TJEPAClassifier, pretrained=folder, dim=4).fit(people.iloc[:50], answers[:50])
    for name, value in encoder.encoder_.state_dict().items():
        torch.testing.assert_close(model.transformer_.encoder_.state_dict()[name], value)
    assert model.score(people, answers) > 0.6


def test_fine_tuning_changes_the_encoder_only_if_held_out_rows_like_it(people, tmp_path):
    encoder = small(TJEPATransformer, missing="mean").fit(people)
    folder = str(encoder.save_pretrained(tmp_path / "encoder"))
    age, hours = people["age"].fillna(people["age"].mean()), people["hours"]
    total = 2 * age + hours  # a linear map of the columns has nothing left to learn
    product = (age - 40) * (hours - 35)  # and here it knows nothing

    def tuned(y):
        return small(
            TJEPARegressor,
            pretrained=folder,
            freeze=False,
            tune_epochs=30,
            batch_size=16,
            learning_rate=1e-2,
        ).fit(people, y)

    before = encoder.encoder_.tokenizer.weight
    assert torch.equal(tuned(total).transformer_.encoder_.tokenizer.weight, before)
    model = tuned(product)
    assert not torch.equal(model.transformer_.encoder_.tokenizer.weight, before)
    frozen = small(TJEPARegressor, pretrained=folder).fit(people, product)
    assert model.score(people, product) > frozen.score(people, product)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"preset": "huge"}, "preset is 'huge'; allowed: nano"),
        ({"dim": 7}, "dim is 7"),
        ({"dim": 10}, "multiple of heads"),
        ({"max_epochs": 0}, "max_epochs is 0"),
        ({"context": (0.01, 0.02)}, "context"),
        ({"numeric": "log"}, "numeric"),
        ({"head": "forest"}, "head is 'forest'; allowed: linear, mlp"),
        ({"head": "mlp", "freeze": False}, "freeze=False with head 'mlp'"),
    ],
)
def test_parameters_that_cannot_be_are_named(parameters, message):
    X = np.random.default_rng(0).normal(size=(20, 3))
    with pytest.raises(ConfigError, match=message):
        small(TJEPAClassifier, **parameters).fit(X, X[:, 0] > 0)


def test_a_pretrained_encoder_and_unlabelled_rows_exclude_each_other():
    X = np.random.default_rng(0).normal(size=(20, 3))
    with pytest.raises(ConfigError, match="leave one of them out"):
        small(TJEPAClassifier, pretrained="somewhere").fit(X, X[:, 0] > 0, unlabelled=X)


@pytest.mark.parametrize(
    ("rows", "steps", "momentum", "batch"),
    [
        (20, 100, 0.92, 20),
        (300, 200, 0.96, 256),
        (10_240, 2000, 0.98, 256),
        (10**6, 2000, 0.98, 256),
    ],
)
def test_the_length_of_training_follows_the_table(rows, steps, momentum, batch):
    recipe = TJEPATransformer()._recipe(rows, 5)
    assert (recipe.steps, recipe.batch_size) == (steps, batch)
    assert recipe.warmup_steps == steps // 10
    assert recipe.momentum == pytest.approx(momentum)


def test_shares_of_a_narrow_table_leave_a_column_to_predict():
    recipe = TJEPATransformer()._recipe(100, 2)
    assert all(round(2 * share) == 1 for share in (recipe.context[0], *recipe.target))
    wide = TJEPATransformer()._recipe(100, 50)
    assert (wide.context, wide.target) == ((0.4, 0.8), (0.15, 0.4))


def test_a_wider_encoder_has_wider_maps():
    model = TJEPATransformer(dim=64)._recipe(100, 5).model
    assert (model.dim, model.hidden, model.predictor_dim) == (64, 128, 32)


def test_fitting_leaves_the_program_as_it_was(people, capfd):
    state = torch.get_rng_state()
    legacy = np.random.get_state()[1].copy()  # noqa: NPY002
    small(TJEPATransformer, missing="mean").fit(people).transform(people)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002
    said = capfd.readouterr()
    assert said.out == said.err == ""


def test_threads_are_set_for_the_time_of_a_call_alone(people, monkeypatch):
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    model = small(TJEPATransformer, missing="mean", n_jobs=3).fit(people)
    assert seen == [3, before]
    model.transform(people)
    assert seen == [3, before] * 2


def test_the_table_is_left_as_it_was(people, answers):
    before = people.copy(deep=True)
    small(TJEPAClassifier, missing="indicator").fit(people, answers).predict(people)
    pd.testing.assert_frame_equal(people, before)


def test_training_that_went_wrong_is_told_of(people, monkeypatch):
    from dataclasses import replace

    def broken(*args, **kwargs):
        done = transformer_module_pretrain(*args, **kwargs)
        alarm = replace(done.result.alarm, reason="const", alarm_step=3, advice="train less")
        return replace(done, result=replace(done.result, alarm=alarm))

    transformer_module_pretrain = transformer_module.pretrain
    monkeypatch.setattr(transformer_module, "pretrain", broken)
    with pytest.warns(ConvergenceWarning, match="by step 3 of 1 .*train less"):
        small(TJEPATransformer, missing="mean").fit(people)


def test_a_fitted_model_can_be_pickled(people, answers):
    model = small(TJEPAClassifier, missing="mean").fit(people, answers)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(people), model.predict_proba(people))


def test_probabilities_of_one_network_head_agree_with_its_classes(people):
    y = people["hours"] // 20
    model = small(TJEPAClassifier, missing="mean", head="mlp").fit(people, y)
    shares = model.predict_proba(people)
    np.testing.assert_allclose(shares.sum(1), 1)
    np.testing.assert_array_equal(model.classes_[shares.argmax(1)], model.predict(people))


def test_raw_columns_beside_the_features_are_read(answers):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 3))
    y = 3 * X[:, 0] - X[:, 1]
    with_raw, without = (
        small(TJEPARegressor, dim=4, raw=raw).fit(X[:200], y[:200]).score(X[200:], y[200:])
        for raw in (True, False)
    )
    assert with_raw > max(0.95, without)


def test_saved_folders_are_plain(people, tmp_path: Path):
    folder = small(TJEPATransformer, missing="mean").fit(people).save_pretrained(tmp_path / "m")
    head = (folder / "model.safetensors").read_bytes()[:8]
    assert int.from_bytes(head, "little") < 1 << 20  # a safetensors header, no pickle


def test_a_head_sees_the_labelled_rows_alone() -> None:
    X = np.random.default_rng(0).normal(size=(200, 4))
    few = TJEPARegressor(max_epochs=1, random_state=0)
    few.fit(X[:20], X[:20].sum(1), unlabelled=X[20:])
    z = few.transformer_.transform(X[:20])
    np.testing.assert_allclose(few.head_.mean[: z.shape[1]], z.mean(0), atol=1e-5)
