"""How a table becomes the encoded table: both forms, all kinds of columns, and their state."""

from __future__ import annotations

import datetime
import json
import pickle
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, QuantileTransformer, StandardScaler
from sklearn.utils.estimator_checks import (
    check_estimator,
    check_set_output_transform_pandas,
    check_transformer_get_feature_names_out,
    check_transformer_get_feature_names_out_pandas,
)

from jepa_core.errors import ConfigError, DataError
from jepa_tabular import preprocess
from jepa_tabular.columns import kinds, kinds_besides
from jepa_tabular.levels import Levels
from jepa_tabular.preprocess import TablePreprocessor
from jepa_tabular.presets import ColumnsConfig

GOLDEN = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(scope="module")
def golden(data):
    return np.load(data("tabular") / "golden_preprocessing.npz")


@pytest.fixture
def mixed():
    """60 rows of every kind of column."""
    rng = np.random.default_rng(0)
    n = 60
    return pd.DataFrame(
        {
            "length": rng.lognormal(size=n),
            "colour": rng.choice(["red", "green", "blue"], n),
            "count": rng.integers(0, 9, n),
            "flag": rng.random(n) < 0.5,
            "day": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 900, n), unit="D"),
            "size": pd.Categorical(rng.choice(["s", "m", "l"], n)),
        }
    )


def encode(X, config=None, **options):
    return TablePreprocessor(config, **options).fit(X).transform(X)


# ---- the official form ----


def test_the_official_form_of_adult_equals_the_golden_rows(data, golden):
    table = pd.read_csv(data("tabular") / "adult.csv.gz").drop(columns="income")
    fitted = TablePreprocessor(compat=True).fit(table)
    encoded = fitted.transform(table)
    assert list(fitted.names_) == golden["adult/columns"].tolist()
    assert fitted.shape_.categorical == (1, 3, 5, 6, 7, 8, 9, 13)
    assert fitted.shape_.cardinalities == (9, 16, 7, 15, 6, 5, 2, 42)
    for slot, levels in zip(fitted.shape_.categorical, fitted.levels_, strict=True):
        assert list(levels.categories) == golden[f"adult/classes/{fitted.names_[slot]}"].tolist()
    np.testing.assert_allclose(encoded[:8], golden["adult/first8"], **GOLDEN)
    np.testing.assert_allclose(encoded[-4:], golden["adult/last4"], **GOLDEN)
    np.testing.assert_allclose(encoded.mean(0, np.float64), golden["adult/colmean"], **GOLDEN)
    numeric = list(fitted.shape_.numeric)
    np.testing.assert_array_equal(fitted.statistics_.minimum, golden["adult/min"][numeric])
    np.testing.assert_array_equal(fitted.statistics_.maximum, golden["adult/max"][numeric])


def test_the_official_form_of_california_equals_the_golden_rows(data, golden):
    table = pd.read_csv(data("tabular") / "housing.csv.gz")
    table = table.drop(columns=["ocean_proximity", "median_house_value"])
    config = ColumnsConfig(numeric="minmax", clip=0.0, unknown="error", missing="drop")
    fitted = TablePreprocessor(config, compat=True).fit(table)
    encoded = fitted.transform(table)
    assert (~fitted.kept_).sum() == golden["california/n_nan_rows"]
    assert len(encoded) == 20_433
    np.testing.assert_allclose(encoded[:8], golden["california/first8"], **GOLDEN)
    np.testing.assert_allclose(encoded.mean(0, np.float64), golden["california/colmean"], **GOLDEN)
    np.testing.assert_allclose(fitted.statistics_.minimum, golden["california/min"], **GOLDEN)
    np.testing.assert_allclose(fitted.statistics_.maximum, golden["california/max"], **GOLDEN)


def test_the_official_form_of_jannis_equals_the_golden_rows(data, golden):
    table = np.load(data("tabular") / "jannis_28145.npz")["X_val"]
    fitted = TablePreprocessor(compat=True).fit(table)
    np.testing.assert_allclose(fitted.transform(table[:4]), golden["jannis_val/first4"], **GOLDEN)
    np.testing.assert_allclose(fitted.statistics_.minimum, golden["jannis_val/min"], **GOLDEN)
    np.testing.assert_allclose(fitted.statistics_.maximum, golden["jannis_val/max"], **GOLDEN)


def test_the_official_form_of_higgs_codes_numbers_by_their_first_appearance(data, golden):
    table = pd.read_csv(data("tabular") / "higgs_7000.csv.gz").iloc[:, 1:]
    categorical = [8, 12, 16, 20]
    fitted = TablePreprocessor(compat=True, categorical_features=categorical).fit(table)
    for slot, levels in zip(categorical, fitted.levels_, strict=True):
        assert list(levels.categories) == golden[f"higgs/levels_{slot}"].tolist()
    np.testing.assert_allclose(fitted.transform(table)[:8], golden["higgs/first8"], **GOLDEN)


def test_the_official_form_equals_a_loop_over_values(mixed):
    table = mixed[["length", "colour", "count", "size"]]
    expected = np.empty(table.shape)
    for j, name in enumerate(table):
        column = table[name].tolist()
        if isinstance(column[0], str):
            order = sorted(set(column))
            expected[:, j] = [order.index(value) for value in column]
        else:
            low, high = min(column), max(column)
            expected[:, j] = [(value - low) / (high - low) for value in column]
    np.testing.assert_allclose(encode(table, compat=True), expected, rtol=0, atol=1e-7)


# ---- the sound form ----


def test_numbers_become_normal_scores_by_rank_as_scikit_learn_gives_them(mixed):
    training, rest = mixed[["length", "count"]][:40], mixed[["length", "count"]][40:]
    twin = QuantileTransformer(n_quantiles=40, subsample=None, output_distribution="normal")
    twin.fit(training.to_numpy(np.float64))
    fitted = TablePreprocessor().fit(training)
    for rows in (training, rest):
        expected = np.clip(twin.transform(rows.to_numpy(np.float64)), -3, 3).astype(np.float32)
        np.testing.assert_array_equal(fitted.transform(rows), expected)


def test_quantiles_of_many_rows_come_from_a_sample_and_scores_stay_normal():
    X = np.random.default_rng(0).exponential(size=(150_000, 2))
    encoded = encode(X)
    assert abs(encoded.mean()) < 0.02
    assert abs(encoded.std() - 0.99) < 0.02  # clipped at 3


def test_standard_scaling_has_zero_mean_and_unit_variance_and_is_clipped():
    X = np.random.default_rng(0).normal(5, 2, (500, 2))
    X[0] = 1e6
    plain = encode(X, ColumnsConfig(numeric="standard", clip=0.0))
    np.testing.assert_allclose(plain, StandardScaler().fit_transform(X), rtol=1e-5)
    assert encode(X, ColumnsConfig(numeric="standard", clip=2.0)).max() == 2.0


def test_statistics_come_from_the_rows_of_fit_alone(mixed):
    fitted = TablePreprocessor(ColumnsConfig(numeric="minmax")).fit(mixed[:40])
    beyond = mixed[40:].assign(length=2 * mixed["length"].max())
    assert (fitted.transform(beyond)[:, 0] > 1.5).all()


def test_code_0_is_kept_for_categories_that_training_did_not_see(mixed):
    fitted = TablePreprocessor().fit(mixed)
    assert fitted.shape_.cardinalities == (4, 3, 4)
    assert fitted.transform(mixed)[:, 1].min() == 1
    assert (fitted.transform(mixed.assign(colour="pink"))[:, 1] == 0).all()


def test_without_a_reserved_code_codes_start_at_0(mixed):
    fitted = TablePreprocessor(ColumnsConfig(unknown="error")).fit(mixed)
    assert fitted.shape_.cardinalities == (3, 2, 3)
    assert fitted.transform(mixed)[:, 1].min() == 0


def test_a_missing_category_that_training_did_not_see_is_unknown(mixed):
    fitted = TablePreprocessor().fit(mixed)
    assert (fitted.transform(mixed.assign(colour=None))[:, 1] == 0).all()


# ---- missing numbers ----


def with_gaps():
    X = np.arange(24.0).reshape(12, 2) ** 2
    X[[1, 5], 0] = np.nan
    return X


def test_indicated_missing_numbers_stay_nan_for_the_model_to_replace():
    fitted = TablePreprocessor(ColumnsConfig(missing="indicator")).fit(with_gaps())
    assert fitted.shape_.missing
    np.testing.assert_array_equal(np.isnan(fitted.transform(with_gaps())), np.isnan(with_gaps()))


@pytest.mark.parametrize("policy", ["mean", "median"])
def test_replaced_missing_numbers_are_encoded_as_the_mean_or_median(policy):
    X = with_gaps()
    config = ColumnsConfig(missing=policy)
    filled = X.copy()
    filled[np.isnan(X)] = getattr(np, f"nan{policy}")(X[:, 0])
    fitted = TablePreprocessor(config).fit(X)
    np.testing.assert_array_equal(fitted.transform(X), fitted.transform(filled))
    assert not fitted.shape_.missing


def test_rows_with_missing_numbers_are_dropped_and_named_by_kept():
    fitted = TablePreprocessor(ColumnsConfig(missing="drop")).fit(with_gaps())
    encoded = fitted.transform(with_gaps())
    assert np.flatnonzero(~fitted.kept_).tolist() == [1, 5]
    np.testing.assert_array_equal(encoded, encode(np.delete(with_gaps(), [1, 5], 0)))
    assert len(fitted.raw_features(with_gaps())) == 10


# ---- kinds of columns and forms of tables ----


def test_kinds_follow_the_types_of_the_columns(mixed):
    assert kinds(mixed) == (
        "numerical",
        "categorical",
        "numerical",
        "categorical",
        "datetime",
        "categorical",
    )


@pytest.mark.parametrize(
    "choice",
    [
        ["count", "colour", "flag", "size"],
        [1, 2, 3, 5],
        np.array([False, True, True, True, False, True]),
        lambda frame: frame.columns.isin(["count", "colour", "flag", "size"]),
    ],
)
def test_categorical_columns_may_be_named_numbered_masked_or_computed(choice, mixed):
    fitted = TablePreprocessor(categorical_features=choice).fit(mixed)
    assert fitted.shape_.categorical == (1, 2, 3, 5)


def test_columns_named_besides_the_others_leave_these_their_kinds(mixed):
    assert kinds_besides(mixed, ()) == kinds(mixed)
    found = kinds_besides(mixed, ["count", "colour"])
    assert found == ("numerical", *["categorical"] * 3, "datetime", "categorical")
    zips = pd.DataFrame({"zip": ["01234", "1,000", "77"], "size": [1.0, 2.0, 3.0]})
    assert kinds_besides(zips, ["zip"]) == ("categorical", "numerical")
    with pytest.raises(DataError, match="numbers as text"):
        kinds_besides(zips, ["size"])
    with pytest.raises(ConfigError, match="names 'age', which is no column"):
        kinds_besides(mixed, ["age"])


def test_a_bool_column_left_out_of_an_explicit_choice_is_a_number(mixed):
    fitted = TablePreprocessor(categorical_features=["colour", "size"]).fit(mixed)
    assert fitted.kinds_[3] == "numerical"


@pytest.mark.parametrize(
    ("plain", "other"),
    [
        ([1, 2, 3, 4], pd.array([1, 2, 3, 4], dtype="Int64")),
        ([1, 2, 3, 4], pd.array([1, 2, 3, 4], dtype="Float32")),
        ([1, 2, 3, 4], pd.Series([1, 2, 3, 4], dtype="int64[pyarrow]")),
        ([1, 2, 3, 4], pd.Series([1, 2.0, np.int8(3), 4], dtype=object)),
        ([True, False, True, True], pd.array([True, False, True, True], dtype="boolean")),
        ([True, False, True, True], pd.Series([True, False, True, True], dtype="bool[pyarrow]")),
        ([True, False, True, True], pd.Series([True, False, True, True], dtype=object)),
        (["a", "b", "c", "a"], pd.array(["a", "b", "c", "a"], dtype="string[pyarrow]")),
        (["a", "b", "c", "a"], pd.Series(["a", "b", "c", "a"], dtype=object)),
        (["a", "b", "c", "a"], pd.Categorical(["a", "b", "c", "a"])),
        (["a", "b", "c", "a"], pd.Series(["a", "b", "c", "a"], dtype=pd.ArrowDtype(pa.string()))),
    ],
)
@pytest.mark.filterwarnings("ignore:.*looks like an id")
def test_the_same_values_of_another_dtype_are_encoded_alike(plain, other):
    column = pd.Series(plain)
    second = pd.Series([0.1, 0.2, 0.3, 0.4])
    fitted = TablePreprocessor().fit(pd.DataFrame({"a": column, "b": second}))
    frame = pd.DataFrame({"a": other, "b": second})
    assert kinds(frame)[0] == fitted.kinds_[0]
    np.testing.assert_array_equal(
        fitted.transform(frame), fitted.transform(pd.DataFrame({"a": column, "b": second}))
    )
    np.testing.assert_array_equal(encode(frame), fitted.transform(frame))


@pytest.mark.parametrize(
    "missing",
    [
        pd.array([1, None, 3, 4], dtype="Int64"),
        pd.Series([1.0, pd.NA, 3, 4], dtype=object),
        pd.Series([1, None, 3, 4], dtype="int64[pyarrow]"),
        [1.0, None, 3.0, 4.0],
    ],
)
def test_every_spelling_of_a_missing_number_is_nan(missing):
    frame = pd.DataFrame({"a": missing, "b": [0.1, 0.2, 0.3, 0.4]})
    encoded = encode(frame, ColumnsConfig(missing="indicator"))
    assert np.isnan(encoded[:, 0]).tolist() == [False, True, False, False]


def test_dates_are_scaled_as_seconds_in_any_unit_and_time_zone():
    days = pd.to_datetime(["2020-01-01", "2020-01-03", "2020-01-02"])
    seconds = np.array([0.0, 172_800.0, 86_400.0]) + 1_577_836_800
    expected = encode(pd.DataFrame({"t": seconds, "x": [1.0, 2.0, 3.0]}))
    zoned = days.tz_localize("UTC").tz_convert("Asia/Tokyo")
    plain = pd.Series([datetime.date(2020, 1, d) for d in (1, 3, 2)], dtype=object)
    for t in (days, days.astype("datetime64[s]"), zoned, plain, days - days[0]):
        frame = pd.DataFrame({"t": t, "x": [1.0, 2.0, 3.0]})
        assert kinds(frame)[0] == "datetime"
        np.testing.assert_array_equal(encode(frame), expected)
    frame = pd.DataFrame({"t": days.where([True, False, True]), "x": [1.0, 2.0, 3.0]})
    assert np.isnan(encode(frame, ColumnsConfig(missing="indicator"))[1, 0])


def test_a_table_is_the_same_as_frame_array_list_and_arrow(mixed):
    numeric = mixed[["length", "count"]].astype(np.float64)
    expected = encode(numeric)
    array = numeric.to_numpy()

    class Interchange:
        def __dataframe__(self, *args, **kwargs):
            return pa.table(numeric).__dataframe__(*args, **kwargs)

    others = [
        array,
        np.asfortranarray(array),
        array.astype(object),
        array.tolist(),
        tuple(map(tuple, array)),
        pa.table(numeric),
        Interchange(),
    ]
    for other in others:
        np.testing.assert_array_equal(encode(other), expected)


def test_a_mixed_table_is_the_same_through_arrow(mixed):
    np.testing.assert_array_equal(encode(pa.table(mixed)), encode(mixed))


def test_a_list_of_rows_may_mix_numbers_and_text():
    fitted = TablePreprocessor().fit([[1.5, "a"], [2.5, "b"], [3.5, "a"], [4.5, "b"]])
    assert fitted.kinds_ == ("numerical", "categorical")
    assert fitted.names_ == ("x0", "x1")


def test_columns_in_another_order_are_put_in_order(mixed):
    fitted = TablePreprocessor().fit(mixed)
    np.testing.assert_array_equal(fitted.transform(mixed.iloc[:, ::-1]), fitted.transform(mixed))
    np.testing.assert_array_equal(
        fitted.raw_features(mixed.iloc[:, ::-1]), fitted.raw_features(mixed)
    )


def test_a_row_is_encoded_alike_alone_and_among_others(mixed):
    fitted = TablePreprocessor().fit(mixed)
    whole = fitted.transform(mixed)
    alone = np.concatenate([fitted.transform(mixed.iloc[[i]]) for i in range(len(mixed))])
    np.testing.assert_array_equal(alone, whole)


def test_pieces_of_a_large_table_are_encoded_as_the_whole(mixed, monkeypatch):
    gaps = mixed.assign(length=mixed["length"].where(mixed["count"] > 2))
    for policy in ("indicator", "drop"):
        fitted = TablePreprocessor(ColumnsConfig(missing=policy)).fit(gaps)
        whole, raw = fitted.transform(gaps), fitted.raw_features(gaps)
        with monkeypatch.context() as patch:
            patch.setattr(preprocess, "_CHUNK", 7)
            np.testing.assert_array_equal(fitted.transform(gaps), whole)
            np.testing.assert_array_equal(fitted.raw_features(gaps), raw)


def test_the_input_is_not_changed(mixed):
    before = mixed.copy(deep=True)
    encode(mixed)
    pd.testing.assert_frame_equal(mixed, before)


def test_a_large_array_is_not_copied_to_be_read():
    from jepa_tabular.columns import as_frame

    X = np.zeros((10, 3))
    assert np.shares_memory(as_frame(X).to_numpy(), X)
    frame = pd.DataFrame(X)
    assert as_frame(frame) is frame


# ---- raw features ----


def test_raw_features_are_standardised_ranked_flagged_and_one_hot(mixed):
    gaps = mixed.assign(length=mixed["length"].where(mixed["count"] > 2))
    fitted = TablePreprocessor(ColumnsConfig(missing="indicator")).fit(gaps)
    raw = fitted.raw_features(gaps)
    assert raw.dtype == np.float64
    assert raw.shape == (60, 3 + 3 + 1 + 3 + 2 + 3)
    present = gaps["length"].notna().to_numpy()
    np.testing.assert_allclose(raw[present, :3].mean(0)[0], 0, atol=1e-12)
    np.testing.assert_allclose(raw[:, 1:3].std(0), 1)
    assert np.abs(raw[:, 3:6]).max() <= 3
    np.testing.assert_array_equal(raw[~present][:, [0, 3]], 0)
    np.testing.assert_array_equal(raw[:, 6], ~present)
    expected = pd.get_dummies(gaps[["colour", "flag", "size"]].astype(str)).to_numpy(np.float64)
    np.testing.assert_array_equal(raw[:, 7:], expected)


def test_an_unknown_category_has_no_one_hot_column(mixed):
    fitted = TablePreprocessor().fit(mixed)
    raw = fitted.raw_features(mixed.assign(colour="pink"))
    assert raw[:, 6:9].sum() == 0
    assert (raw[:, 9:].sum(1) == 2).all()


def test_raw_features_do_not_depend_on_the_scaling_of_the_model(mixed):
    by_rank = TablePreprocessor().fit(mixed).raw_features(mixed)
    other = TablePreprocessor(ColumnsConfig(numeric="minmax", unknown="error")).fit(mixed)
    np.testing.assert_array_equal(by_rank, other.raw_features(mixed))


# ---- categories ----

texts = st.lists(st.one_of(st.none(), st.text(max_size=4)), min_size=1, max_size=30)
integers = st.integers(-(2**63), 2**63 - 1)
fractions = st.floats(allow_nan=False, allow_infinity=False)


@given(texts, st.integers(0, 1))
def test_a_code_leads_back_to_its_text(values, first):
    series = pd.Series(values, dtype=object)
    levels = Levels.learn(series, "a", first=first)
    names = [*levels.categories, None]
    codes = levels.codes(series, "a")
    assert [names[code - first] for code in codes] == values
    assert codes.max() == levels.cardinality - 1


@given(st.one_of(st.lists(integers, min_size=1), st.lists(fractions, min_size=1)), st.booleans())
def test_a_code_leads_back_to_its_number(values, by_appearance):
    series = pd.Series(values)
    levels = Levels.learn(series, "a", first=1, by_appearance=by_appearance)
    assert [levels.categories[code - 1] for code in levels.codes(series, "a")] == values
    assert sorted(set(values)) == sorted(levels.categories)


@given(st.lists(st.integers(-(2**31), 2**31), min_size=1))
def test_a_whole_number_is_one_category_as_int_float_and_text(values):
    series = pd.Series(values)
    levels = Levels.learn(series, "a")
    expected = levels.codes(series, "a")
    for other in (series.astype(float), series.astype(str), series.astype(object)):
        np.testing.assert_array_equal(levels.codes(other, "a"), expected)
    as_text = Levels.learn(series.astype(str), "a")
    np.testing.assert_array_equal(
        as_text.codes(series.astype(float), "a"), as_text.codes(series.astype(str), "a")
    )


def test_a_fraction_keeps_its_category_through_float32():
    series = pd.Series([0.0, 2.173, 1.087])
    levels = Levels.learn(series, "a")
    np.testing.assert_array_equal(levels.codes(series.astype(np.float32), "a"), [0, 2, 1])
    single = Levels.learn(series.astype(np.float32), "a")
    np.testing.assert_array_equal(single.codes(series, "a"), [0, 2, 1])


def test_fractions_that_float32_confuses_stay_apart():
    series = pd.Series([0.3, 0.1 + 0.2])
    assert Levels.learn(series, "a").codes(series, "a").tolist() == [0, 1]


def test_only_categories_that_occur_get_a_code():
    series = pd.Series(pd.Categorical(["b", "c"], categories=["a", "b", "c", "d"]))
    assert Levels.learn(series, "a").categories == ("b", "c")


# ---- state ----

columns = st.sampled_from(["float", "int", "text", "bool", "date"])


def generated(names, rows, seed):
    rng = np.random.default_rng(seed)
    make = {
        "float": lambda: np.where(rng.random(rows) < 0.1, np.nan, rng.standard_cauchy(rows)),
        "int": lambda: rng.integers(-5, 5, rows),
        "text": lambda: pd.Series(rng.choice(["ä", "b", "", "c d"], rows)).where(
            rng.random(rows) < 0.9
        ),
        "bool": lambda: rng.random(rows) < 0.5,
        "date": lambda: pd.Timestamp(0) + pd.to_timedelta(rng.integers(0, 10**9, rows), unit="s"),
    }
    return pd.DataFrame({f"{i} {name}": make[name]() for i, name in enumerate(names)})


@given(
    st.lists(columns, min_size=2, max_size=6),
    st.sampled_from(["indicator", "mean", "median", "drop"]),
    st.sampled_from(["quantile", "standard", "minmax"]),
    st.sampled_from(["reserve", "error"]),
    st.integers(0, 99),
)
def test_a_state_through_json_encodes_bit_for_bit(names, missing, numeric, unknown, seed):
    X = generated(names, 40, seed)
    config = ColumnsConfig(missing=missing, numeric=numeric, unknown=unknown)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = TablePreprocessor(config).fit(X)
    state, arrays = fitted.to_state()
    again = TablePreprocessor.from_state(json.loads(json.dumps(state, allow_nan=False)), arrays)
    np.testing.assert_array_equal(again.transform(X), fitted.transform(X))
    np.testing.assert_array_equal(again.raw_features(X), fitted.raw_features(X))
    assert again.shape_ == fitted.shape_
    assert again.names_ == fitted.names_
    assert again.kinds_ == fitted.kinds_
    assert again.get_feature_names_out().tolist() == fitted.get_feature_names_out().tolist()


def test_a_restored_preprocessor_can_be_fitted_again(mixed):
    fitted = TablePreprocessor().fit(mixed)
    again = TablePreprocessor.from_state(*fitted.to_state())
    np.testing.assert_array_equal(again.fit(mixed).transform(mixed), fitted.transform(mixed))


@pytest.mark.parametrize("damage", ["levels", "quantiles", "shape"])
def test_a_damaged_state_is_refused(damage, mixed):
    state, arrays = TablePreprocessor().fit(mixed).to_state()
    if damage == "shape":
        arrays["mean"] = arrays["mean"][1:]
    else:
        state.pop(damage, None)
        arrays.pop(damage, None)
    with pytest.raises(DataError, match="preprocessor"):
        TablePreprocessor.from_state(state, arrays)


def test_it_pickles_for_workers(mixed):
    fitted = TablePreprocessor().fit(mixed)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.transform(mixed), fitted.transform(mixed))


# ---- scikit-learn ----


def test_scikit_learn_checks_pass():
    results = check_estimator(TablePreprocessor(), on_fail="raise", on_skip=None)
    assert {result["status"] for result in results} <= {"passed", "skipped"}
    skipped = {result["check_name"] for result in results if result["status"] == "skipped"}
    assert skipped <= {"check_array_api_input"}


@pytest.mark.parametrize(
    "check",
    [
        check_transformer_get_feature_names_out,
        check_transformer_get_feature_names_out_pandas,
        check_set_output_transform_pandas,
    ],
)
@pytest.mark.filterwarnings("ignore:X .* feature names")
def test_scikit_learn_checks_of_names_pass(check):
    check("TablePreprocessor", TablePreprocessor())


def test_it_works_in_a_pipeline_and_clones(mixed):
    pipeline = make_pipeline(TablePreprocessor(ColumnsConfig(clip=2.0)), FunctionTransformer())
    twin = clone(pipeline)
    np.testing.assert_array_equal(pipeline.fit_transform(mixed), twin.fit_transform(mixed))
    frame = twin.set_output(transform="pandas").transform(mixed)
    assert list(frame.columns) == list(mixed.columns)


def test_names_are_kept_where_they_are_strings(mixed):
    fitted = TablePreprocessor().fit(mixed)
    assert fitted.feature_names_in_.tolist() == list(mixed.columns)
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        fitted.transform(mixed.to_numpy(dtype=object))
    fitted.fit(mixed[["length", "count"]].to_numpy())
    assert not hasattr(fitted, "feature_names_in_")
    with pytest.warns(UserWarning, match="was fitted without feature names"):
        fitted.transform(mixed[["length", "count"]])
