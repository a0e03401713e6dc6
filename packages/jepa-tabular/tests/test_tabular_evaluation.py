"""Splits, budgets of labels, readouts, and the sentence that says whether pre-training helped."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from jepa_core.errors import ConfigError, DataError
from jepa_core.evaluation.linear import ridge
from jepa_tabular import readouts as read
from jepa_tabular.evaluation import (
    Input,
    Representation,
    compare_features,
    controls,
    evaluate,
    relevance_of,
    twin,
)
from jepa_tabular.presets import ModelConfig, PretrainConfig, TableShape
from jepa_tabular.pretrain import untrained
from jepa_tabular.readouts import Target, as_target, label_draws, score, splits
from jepa_tabular.results import (
    PCA,
    RANDOM,
    RAW,
    RAW_TJEPA,
    RAW_TWIN,
    TJEPA,
    TREES,
    TWIN,
    Evaluation,
    Score,
)
from jepa_tabular.verbs.probe import r2_statistic

SHAPE = TableShape(3)


@pytest.fixture
def g() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("y", "task"),
    [
        (["a", "b", "a"], "binary"),
        (["a", "b", "c"], "multiclass"),
        ([True, False, True], "binary"),
        ([0, 1, 1], "binary"),
        ([0.0, 1.0, 2.0], "multiclass"),
        ([0.5, 1.0, 2.0], "regression"),
        (np.arange(21), "regression"),
        (np.repeat(np.arange(100), 50), "multiclass"),
        (np.repeat(np.arange(100), 20), "regression"),
        (pd.Categorical(["x", "y", "x"]), "binary"),
    ],
    ids=repr,
)
def test_what_labels_are_is_seen_from_them(y, task):
    found = as_target(y)
    assert found.task == task
    assert len(found) == len(y)


def test_classes_are_numbered_in_their_order():
    found = as_target(["b", "a", "c", "a"])
    assert found.classes == ("a", "b", "c")
    assert found.y.tolist() == [1, 0, 2, 0]
    assert as_target([10, 9, 10]).classes == ("9", "10")
    assert as_target([1, 2, 3], "multiclass").classes == ("1", "2", "3")
    assert as_target([0, 1, 1], "regression").task == "regression"


@pytest.mark.parametrize(
    ("y", "task", "says"),
    [
        ([1.0, math.nan, 2.0], "auto", "1 of 3 labels are missing"),
        (["a", None, "b"], "auto", "1 of 3 labels are missing"),
        (["a", "a"], "auto", "all 2 rows have one label"),
        (["a", "b"], "regression", "labels are no numbers"),
        ([1.0, math.inf, 2.5], "auto", "not all finite"),
        (["a", "b", "c"], "binary", "task is binary with 3 classes"),
        ([0, 1], "ranking", "task is 'ranking'"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(y, task, says):
    with pytest.raises((DataError, ConfigError), match=says):
        as_target(y, task)


def test_quantities_are_standardised_by_the_training_rows_alone():
    target = as_target([0.5, 2.5, 4.5, 100.0])
    found = target.standardised(np.arange(3))
    np.testing.assert_allclose(found.y[:3].mean(), 0, atol=1e-12)
    np.testing.assert_allclose(found.y[:3].std(), 1)
    with pytest.raises(DataError, match="constant"):
        as_target([1.5, 1.5, 2.0]).standardised(np.arange(2))
    classes = as_target(["a", "b"])
    assert classes.standardised(np.arange(1)) is classes


@given(st.integers(10, 200), st.integers(1, 7), st.integers(0, 3))
def test_every_split_deals_all_rows_and_five_share_no_test_row(rows, count, seed):
    target = Target("regression", np.arange(rows, dtype=float))
    found = list(splits(target, count, seed=seed))
    for split in found:
        assert sorted(np.concatenate(split)) == list(range(rows))
        assert len(split.test) == pytest.approx(0.2 * rows, abs=1)
        assert len(split.validation) == pytest.approx(0.2 * rows, abs=1)
    tested = np.concatenate([split.test for split in found[:5]])
    assert len(set(tested)) == len(tested)


def test_each_part_gets_its_share_of_every_class():
    target = Target("multiclass", np.repeat([0, 1, 2], (200, 50, 10)), ("a", "b", "c"))
    for split in splits(target, 6):
        counts = np.bincount(target.y[split.test], minlength=3)
        np.testing.assert_allclose(counts, [40, 10, 2], atol=1)


def test_rows_are_dealt_anew_after_five_splits_and_by_the_seed():
    target = Target("regression", np.arange(50.0))
    found = [set(split.test) for split in splits(target, 10)]
    assert len({frozenset(test) for test in found}) == 10
    other = next(splits(target, 1, seed=1))
    assert set(other.test) != found[0]
    with pytest.raises(DataError, match="9 labelled rows"):
        next(splits(Target("regression", np.arange(9.0)), 1))


def test_a_draw_of_labels_is_part_of_a_larger_one_and_of_the_training_rows():
    rows = np.arange(1000, 3000)
    small, large = label_draws(rows, 100, seed=3), label_draws(rows, 1000, seed=3)
    assert (len(small), len(large)) == (12, 4)
    assert [len(set(draw)) for draw in small] == [100] * 12
    assert set(small[0]) < set(large[0]) < set(rows)
    assert set(small[0]) != set(small[1])
    [whole] = label_draws(rows, "all", seed=3)
    np.testing.assert_array_equal(whole, rows)
    [whole] = label_draws(rows, 2000, seed=3)
    np.testing.assert_array_equal(whole, rows)


def test_the_linear_readout_is_ridge_on_features_cut_at_six_deviations(g):
    x, test = g.normal(size=(200, 5)), g.normal(size=(20, 5))
    x[3, 2] = test[4, 1] = 1e6
    y = Target("regression", x[:, 0] + g.normal(size=200))
    mean, std = x.mean(0), x.std(0)
    cut, cut_test = (((z - mean) / std).clip(-6, 6) for z in (x, test))
    slow = ridge(cut, y.y[:, None]).scores(cut_test).clip(y.y.min(), y.y.max())
    found = read.linear(x, y, test)
    np.testing.assert_allclose(found, slow, atol=1e-12)


@pytest.mark.parametrize(
    "readout",
    [
        read.linear,
        read.linear_as_it_is,
        lambda x, y, test: read.linear_probe(x, y)(test),
    ],
    ids=["linear", "as it is", "probe"],
)
def test_a_few_outlying_rows_do_not_throw_a_linear_readout_of_quantities_off(g, readout):
    """Two features that differ by little, but not on a few rows that have no label."""
    signal, shared = g.normal(size=(2, 500))
    x = np.stack((shared + 0.01 * signal, shared), 1)
    x[498:, 1] *= -1
    y = Target("regression", signal)
    found = readout(x[:400], y.take(np.arange(400)), x[400:])
    assert found.min() >= signal[:400].min()
    assert found.max() <= signal[:400].max()
    rest = y.take(np.arange(400, 498))
    assert score(rest, found[:98])["r2"] > 0.99
    assert score(y.take(np.arange(400, 500)), found)["r2"] > 0.6


def test_scores_of_a_class_beyond_0_and_1_count_as_these_in_r2_and_keep_their_order(g):
    y = Target("binary", np.array([0, 0, 1, 1]), ("no", "yes"))
    shares = np.array([1.5, 0.8, -0.2, 2.0])
    scores = np.stack((1 - shares, shares), 1)
    found = score(y, scores)
    assert found["r2"] == pytest.approx(score(y, scores.clip(0, 1))["r2"])
    assert found["auc"] == pytest.approx(0.5)
    resampled = r2_statistic(y, scores)(np.ones((1, 4), np.int64))
    assert resampled[0, 0] == pytest.approx(found["r2"])


def test_a_feature_that_differs_by_rounding_alone_is_not_read(g):
    x = g.normal(size=(100, 2)).astype(np.float32)
    noise = 1 + 1e-8 * g.normal(size=(100, 1))
    y = Target("regression", noise[:, 0] * 1e8)
    with_noise = read.linear(np.hstack((x, noise)), y, np.hstack((x, noise)))
    np.testing.assert_allclose(with_noise, read.linear(x, y, x), atol=1e-5)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("name", ["linear", "logistic", "mlp", "trees"])
def test_every_readout_finds_what_is_there(g, name, task):
    x = g.normal(size=(400, 3))
    if task == "regression":
        y = Target(task, x[:, 0])
    else:
        classes = 2 if task == "binary" else 3
        code = np.digitize(x[:, 0], np.linspace(-0.5, 0.5, classes - 1))
        y = Target(task, code.astype(np.int64), tuple("abc"[:classes]))
    made = {
        "linear": read.linear,
        "logistic": read.logistic_regression(),
        "mlp": read.multilayer(),
        "trees": read.boosted_trees(SHAPE),
    }[name]
    inside, outside = np.arange(300), np.arange(300, 400)
    scores = made(x[inside], y.take(inside), x[outside])
    assert scores.shape == y.take(outside).columns().shape
    assert score(y.take(outside), scores)["r2"] > 0.3
    if task != "regression" and name in read.PROBABILITIES:
        np.testing.assert_allclose(scores.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("make", [read.multilayer(), read.boosted_trees(SHAPE)])
def test_classes_that_no_label_names_have_no_chance(g, make):
    x = g.normal(size=(60, 3))
    y = Target("multiclass", np.where(x[:, 0] > 0, 3, 1), ("a", "b", "c", "d"))
    scores = make(x, y, x)
    assert (scores[:, [0, 2]] == 0).all()
    one = Target("multiclass", np.full(60, 2), ("a", "b", "c", "d"))
    np.testing.assert_array_equal(make(x, one, x), np.eye(4)[one.y])


def test_scores_are_those_of_scikit_learn(g):
    y = Target("multiclass", g.integers(0, 3, 200), ("a", "b", "c"))
    p = g.dirichlet(np.ones(3), 200)
    found = score(y, p, probabilities=True)
    called = p.argmax(1)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(y.y, called))
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(y.y, called))
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(y.y, p, multi_class="ovr"))
    assert found["log_loss"] == pytest.approx(metrics.log_loss(y.y, p))
    columns = np.eye(3)[y.y]
    error, spread = ((columns - p) ** 2).sum(), ((columns - columns.mean(0)) ** 2).sum()
    assert found["r2"] == pytest.approx(1 - error / spread)
    assert "log_loss" not in score(y, p)

    number = Target("regression", g.normal(size=200))
    guess = number.y + g.normal(size=200)
    found = score(number, guess[:, None])
    assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(number.y, guess))
    assert found["r2"] == pytest.approx(metrics.r2_score(number.y, guess))


def test_an_auc_without_both_labels_is_undefined():
    y = Target("binary", np.zeros(5, np.int64), ("a", "b"))
    assert math.isnan(score(y, np.full((5, 2), 0.5))["auc"])


def test_a_readout_sees_training_rows_and_no_label_of_the_scored_ones(g):
    seen = []

    def readout(x, y, test):
        seen.append((x[:, 0].tolist(), y.y.tolist(), test[:, 0].tolist()))
        return np.zeros((len(test), 1))

    x = np.arange(40.0)[:, None]
    target = Target("regression", np.arange(40) + 0.5)
    train, scored = np.arange(30), np.arange(30, 40)
    found = compare_features(
        [Input("planted", x, {"linear": readout})], target, train, scored, labels=("all", 10, 99)
    )
    assert [one.labels for one in found] == ["all", 10]  # 99 labels there are not
    assert len(seen) == 1 + 12
    for rows, labels, test in seen:
        assert set(rows) <= set(train)
        assert [row + 0.5 for row in rows] == labels
        assert test == scored.tolist()


def test_networks_are_fitted_with_all_labels_only(g):
    x = g.normal(size=(80, 2))
    target = Target("regression", x[:, 0])
    found = compare_features(
        [Input("x", x)],
        target,
        np.arange(60),
        np.arange(60, 80),
        readouts=("linear", "mlp"),
        labels=("all", 20),
    )
    assert [(one.readout, one.labels) for one in found] == [
        ("linear", "all"),
        ("linear", 20),
        ("mlp", "all"),
    ]


def tokens(x: np.ndarray) -> np.ndarray:
    """Features as one token."""
    return x[:, None].astype(np.float32)


def planted(g, rows: int, *, trained: float, untrained: float) -> tuple[Representation, np.ndarray]:
    """Noisy squares of a column, which its linear readout cannot see, and the label."""
    raw = g.normal(size=(rows, 3))
    y = raw[:, 0] ** 2 + 0.3 * raw[:, 1]
    both = [
        tokens(np.stack((y + noise * g.normal(size=rows), raw[:, 1], raw[:, 2]), 1))
        for noise in (untrained, trained)
    ]
    return Representation(raw, raw.astype(np.float32), SHAPE, *both), y


@pytest.mark.parametrize(
    ("trained", "untrained_noise", "word", "conclusion"),
    [
        (0.5, 2.0, "beats its untrained twin", "pre-training pays here"),
        (2.0, 0.5, "loses to its untrained twin", "takes some of it away"),
        (1.0, 1.0, "is level with its untrained twin", "gains as much over the columns"),
    ],
)
def test_the_verdict_follows_the_numbers(g, trained, untrained_noise, word, conclusion):
    found, y = planted(g, 3000, trained=trained, untrained=untrained_noise)
    if trained == untrained_noise:
        found = replace(found, trained=found.untrained)
    result = evaluate(found.raw, y, seeds=3, labels=("all", 100), represent=lambda *_: found)
    assert "beats the raw columns" in result.verdict
    assert word in result.verdict
    assert conclusion in result.verdict
    assert result.verdict.count(".  ") == 0
    assert result.verdict.endswith(".")
    assert result.table.notes[0] == result.verdict
    assert "chance" not in result.verdict


def test_an_evaluation_holds_every_control_and_is_json(g):
    found, y = planted(g, 200, trained=0.5, untrained=1.0)
    result = evaluate(
        pd.DataFrame(found.raw, columns=list("abc")),
        y > 0.5,
        seeds=2,
        labels=("all", 50),
        readouts=("linear", "logistic"),
        represent=lambda *_: found,
    )
    names = {RAW, TWIN, TJEPA, RAW_TWIN, RAW_TJEPA, PCA, RANDOM, TREES}
    assert {row[0] for row in result.table.rows} == names
    assert result.metric == "accuracy"
    assert result.table.columns[3:] == (
        "accuracy, 120 labels",
        "accuracy, 50 labels",
        "R2, 120 labels",
        "R2, 50 labels",
    )
    widths = {score.input: score.width for score in result.scores}
    assert widths[RANDOM] == widths[TJEPA] == 3
    assert widths[RAW_TJEPA] == 6
    said = json.dumps(result.to_dict(), allow_nan=False)
    assert json.loads(said)["verdict"] == result.verdict
    gains = {(row[0], row[1]): row[2:] for row in result.gains.rows}
    assert gains[f"{TJEPA} − {TWIN}", "linear"][0].startswith("+")
    assert gains[f"{TJEPA} − {TWIN}", "logistic"][1] is None
    assert gains[f"{TJEPA} − {TREES}", "linear"][1] is not None
    assert "row variance" in result.collapse_table.rows[0][0]
    assert "fewer than three seeds" in result.verdict


def test_pretraining_never_sees_test_rows(g):
    found, y = planted(g, 100, trained=0.5, untrained=1.0)
    frame = pd.DataFrame({"row": np.arange(100.0), "a": found.raw[:, 0]})
    for part in ("test", "validation"):
        given = []

        def represent(fit_rows, rows, seed, given=given):
            given.append((set(fit_rows["row"]), rows["row"].tolist(), seed))
            return found

        evaluate(frame, y, seeds=5, labels=("all",), part=part, represent=represent)
        for (seen, rows, _), split in zip(given, splits(as_target(y), 5), strict=True):
            assert rows == list(range(100))
            assert seen == set(split.train) | set(split.validation)
            assert not seen & set(split.test)
        assert [seed for *_, seed in given] == [0, 1, 2, 3, 4]


def test_settings_can_be_chosen_without_a_look_at_the_test_rows(g):
    found, y = planted(g, 100, trained=0.5, untrained=1.0)
    split = next(splits(as_target(y), 1))
    found.trained[split.test] = math.nan
    result = evaluate(
        found.raw, y, seeds=1, labels=("all",), part="validation", represent=lambda *_: found
    )
    assert result.part == "validation"
    with pytest.raises(DataError, match="finite"):
        evaluate(found.raw, y, seeds=1, labels=("all",), represent=lambda *_: found)


def test_what_is_not_labelled_is_pretrained_on(g):
    found, y = planted(g, 60, trained=0.5, untrained=1.0)
    frame = pd.DataFrame({"row": np.arange(100.0)})
    y = np.append(y, g.normal(size=40))
    counts = []

    def represent(fit_rows, rows, seed):
        counts.append((len(fit_rows), len(rows), fit_rows["row"].nunique()))
        return found

    more = pd.DataFrame({"row": np.arange(100.0, 130)})
    evaluate(frame, y, seeds=1, max_rows=60, unlabelled=more, represent=represent)
    assert counts == [(48 + 40 + 30, 60, 118)]


def test_a_column_that_is_the_label_is_warned_of(g):
    found, y = planted(g, 60, trained=0.5, untrained=1.0)
    frame = pd.DataFrame({"a": found.raw[:, 0], "b": 3 * y + 1})
    with pytest.warns(UserWarning, match="column 'b': a copy of the label"):
        evaluate(frame, y, seeds=1, labels=("all",), represent=lambda *_: found)


def test_labels_and_rows_must_agree(g):
    with pytest.raises(DataError, match="20 rows and 19 labels"):
        evaluate(np.ones((20, 2)), np.arange(19) % 2)
    with pytest.raises(ConfigError, match="no readout 'forest'"):
        evaluate(np.ones((20, 2)), np.arange(20) % 2, readouts=("forest",))
    with pytest.raises(ConfigError, match="seeds is 0"):
        evaluate(np.ones((20, 2)), np.arange(20) % 2, seeds=0)


def test_pca_and_random_features_are_fitted_on_training_rows_alone(g):
    found, _ = planted(g, 120, trained=0.5, untrained=1.0)
    train = np.arange(80)
    one = {x.name: x.x for x in controls(found, train)}
    raw = found.raw.copy()
    raw[80:] *= 100
    other = {x.name: x.x for x in controls(replace(found, raw=raw), train)}
    for name in (PCA, RANDOM):
        np.testing.assert_allclose(other[name][train], one[name][train], atol=1e-9)
    assert [x.name for x in controls(found, train)][:3] == [RAW, TWIN, TJEPA]


def test_pca_keeps_no_more_directions_than_there_are(g):
    raw = np.repeat(g.normal(size=(50, 2)), 3, axis=1)
    found, _ = planted(g, 50, trained=0.5, untrained=1.0)
    inputs = {x.name: x.x for x in controls(replace(found, raw=raw), np.arange(40))}
    assert inputs[PCA].shape == (50, 2)


def made(differences: dict[tuple[str, object], list[float]], **more) -> Evaluation:
    """An evaluation in which R2 of T-JEPA is 0.5 and the others differ by as much."""
    scores = []
    budgets = list(dict.fromkeys(budget for _, budget in differences))
    for (name, budget), values in differences.items():
        readout = "trees" if name == TREES else "linear"
        for seed, value in enumerate(values):
            scores.append(Score(name, readout, 3, budget, seed, {"r2": 0.5 - value, "rmse": 1.0}))
    seeds = range(len(next(iter(differences.values()))))
    scores += [
        Score(TJEPA, "linear", 3, budget, seed, {"r2": 0.5, "rmse": 1.0})
        for budget in budgets
        for seed in seeds
    ]
    still = {"intra_feature_variance": 1.0, "effective_rank": 2.0}
    return Evaluation(
        "regression",
        tuple(scores),
        tuple((still, {**still, "intra_feature_variance": more.get("left", 1.0)}) for _ in seeds),
        (60, 20, 20),
    )


AHEAD, BEHIND, LEVEL = [0.02, 0.03, 0.01], [-0.02, -0.03, -0.01], [0.01, -0.01, 0.001]


@pytest.mark.parametrize(
    ("raw", "other", "says"),
    [
        (AHEAD, AHEAD, "and beats its untrained twin (R2 +0.020, ahead with 3 of 3 seeds)"),
        (AHEAD, BEHIND, "but loses to its untrained twin (R2 -0.020, ahead with 0 of 3 seeds)"),
        (AHEAD, LEVEL, "the untrained network gains as much over the columns"),
        (LEVEL, LEVEL, "pre-training does not pay here"),
        (LEVEL, BEHIND, "pre-training does not pay here"),
        (LEVEL, AHEAD, "but the columns serve as well"),
        (BEHIND, AHEAD, "but the columns serve better"),
        (BEHIND, LEVEL, "the columns serve better"),
        (BEHIND, BEHIND, "the columns serve better"),
        ([0.001, 0.001, 0.001], LEVEL, "is level with the raw columns"),  # too little to count
    ],
)
def test_every_outcome_has_its_words(raw, other, says):
    found = made({(RAW, "all"): raw, (TWIN, "all"): other})
    assert says in found.verdict


def test_the_verdict_tells_budgets_apart_and_names_the_trees():
    found = made(
        {
            (RAW, "all"): AHEAD,
            (TWIN, "all"): BEHIND,
            (TREES, "all"): BEHIND,
            (RAW, 100): AHEAD,
            (TWIN, 100): AHEAD,
            (TREES, 100): AHEAD,
        }
    )
    assert "it beats the twin with 100 labels only" in found.verdict
    assert "boosted trees on the columns are ahead with all labels" in found.verdict
    found = made({(RAW, "all"): AHEAD, (TWIN, "all"): AHEAD, (TREES, "all"): LEVEL})
    assert "boosted trees on the columns are ahead nowhere" in found.verdict


def test_the_verdict_counts_seeds_and_names_where_the_columns_are_ahead():
    """Numbers of labels share their rows: nine pairs of three seeds are not nine chances."""
    worse = [value - 0.016 for value in BEHIND]
    found = made(
        {(RAW, "all"): [0.1] * 3, (TWIN, "all"): AHEAD, (RAW, 100): BEHIND, (TWIN, 100): worse}
    )
    assert "beats the raw columns (R2 +0.040, ahead with 3 of 3 seeds)" in found.verdict
    assert "; the columns are ahead with 100 labels" in found.verdict
    assert "loses to its untrained twin (R2 -0.008, ahead with 0 of 3 seeds)" in found.verdict
    assert "it beats the twin with all labels only" in found.verdict


def test_the_verdict_names_a_collapse():
    found = made({(RAW, "all"): BEHIND, (TWIN, "all"): BEHIND}, left=0.04)
    assert found.collapsed
    assert "the representation collapsed" in found.verdict
    assert not made({(RAW, "all"): BEHIND, (TWIN, "all"): BEHIND}, left=0.06).collapsed


def test_a_score_that_is_not_finite_is_shown_as_absent():
    found = made({(RAW, "all"): AHEAD, (TWIN, "all"): AHEAD})
    broken = replace(
        found, scores=(*found.scores, Score(PCA, "linear", 3, "all", 0, {"r2": math.nan}))
    )
    row = next(row for row in broken.table.rows if row[0] == PCA)
    assert row[3:] == [None, None]
    json.dumps(broken.to_dict(), allow_nan=False)


def test_relevance_finds_the_only_column_that_matters(g):
    x = g.normal(size=(400, 3)).astype(np.float32)
    order = TableShape(3, (0,), (5,))
    x[:, 0] = g.integers(0, 5, 400)
    target = Target("regression", x[:, 2].astype(np.float64)).standardised(np.arange(400))
    # Tokens: one register, then columns 1, 2 and 0.
    trained = np.stack((np.zeros(400), x[:, 1], x[:, 2], x[:, 0]), 1)[:, :, None]
    found = Representation(x.astype(float), x, order, trained, trained.astype(np.float32))
    relevance = relevance_of(
        found,
        target,
        np.arange(300),
        np.arange(300, 400),
        names=("code", "noise", "signal"),
        registers=1,
    )
    assert relevance.probe.argmax() == relevance.trees.argmax() == 2
    assert relevance.probe[2] == pytest.approx(1, abs=0.1)
    np.testing.assert_allclose(relevance.probe[:2], 0, atol=0.02)


def test_the_twin_is_what_pretraining_started_from():
    config = PretrainConfig(model=ModelConfig(dim=8, depth=1, heads=2, hidden=8))
    shape = TableShape(5, (1, 4), (3, 4))
    start = untrained(config, shape, 7)
    found = twin(start.target_encoder, 7)
    for name, value in start.target_encoder.state_dict().items():
        np.testing.assert_array_equal(found.state_dict()[name], value)
    assert not found.training
    other = twin(start.target_encoder, 8).state_dict()["tokenizer.weight"]
    assert not np.array_equal(other, found.state_dict()["tokenizer.weight"])


def test_a_frame_of_mixed_kinds_is_evaluated_from_end_to_end(g):
    from jepa_tabular.transformer import TJEPATransformer

    rows = 200
    frame = pd.DataFrame(
        {
            "a": g.normal(size=rows),
            "b": g.normal(size=rows),
            "city": g.choice(["Lyon", "Oslo", "Rome"], rows),
        }
    )
    y = np.where(frame["a"] + (frame["city"] == "Oslo") > 0, "yes", "no")
    estimator = TJEPATransformer(dim=8, depth=1, heads=2, max_steps=4)
    found = evaluate(frame, y, estimator, seeds=2, labels=("all", 30))
    assert found.task == "binary"
    assert np.mean(found.values(TJEPA, "linear", "all", "accuracy")) > 0.7
    assert "T-JEPA" in found.verdict
    assert not hasattr(estimator, "encoder_")
    again = evaluate(frame, y, estimator, seeds=2, labels=("all", 30))
    assert again.to_dict() == found.to_dict()
