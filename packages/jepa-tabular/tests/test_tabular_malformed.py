"""What a person gets for tables that are not as they should be: one test a case, named by it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.exceptions import DataConversionWarning, NotFittedError

from jepa_core.errors import ConfigError, DataError, JepaError
from jepa_tabular import levels
from jepa_tabular.errors import TableTypeError
from jepa_tabular.preprocess import TablePreprocessor
from jepa_tabular.presets import ColumnsConfig
from jepa_tabular.targets import check_y, warn_leaks

N = 30


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {"age": rng.normal(size=N), "income": rng.normal(size=N), "job": rng.choice(list("ab"), N)}
    )


def fit(X, config=None, **options):
    return TablePreprocessor(config, **options).fit(X)


def refusal(call, error=DataError, match=None):
    """The one line that a person reads."""
    with pytest.raises(error, match=match) as caught:
        call()
    assert isinstance(caught.value, JepaError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_case_1_missing_numbers_are_refused_with_columns_and_counts(frame):
    frame.loc[[2, 3], "age"] = np.nan
    frame.loc[[5], "income"] = None
    expected = r"NaN.*column 'age' \(2 rows\), column 'income' \(1 rows\); fill them"
    refusal(lambda: fit(frame), match=expected)
    clean = fit(frame.fillna({"age": 0.0, "income": 0.0}))
    refusal(lambda: clean.transform(frame), match=expected)
    refusal(lambda: clean.raw_features(frame), match=expected)


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_case_1_every_spelling_of_missing_is_refused_in_an_object_column(missing):
    X = pd.DataFrame({"a": pd.Series([1, missing, 3], dtype=object), "b": [1.0, 2.0, 4.0]})
    refusal(lambda: fit(X), match=r"column 'a' \(1 rows\)")


@pytest.mark.filterwarnings("ignore:column 'age'. constant")
@pytest.mark.parametrize("missing", ["indicator", "mean", "median"])
def test_case_1_a_column_without_any_value_is_named(missing, frame):
    frame["age"] = np.nan
    config = ColumnsConfig(missing=missing)
    refusal(lambda: fit(frame, config), match="column 'age': no value in any row; drop")
    assert fit(frame, replace(config, drop_constant=True)).names_ == ("income", "job")


def test_case_1_a_table_without_a_complete_row_is_refused(frame):
    frame["age"] = np.nan
    refusal(lambda: fit(frame, ColumnsConfig(missing="drop")), match="n_samples=0")


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_case_2_a_missing_category_is_a_category(missing, frame):
    frame["job"] = frame["job"].astype(object)
    frame.loc[4, "job"] = missing
    fitted = fit(frame)
    assert fitted.shape_.cardinalities == (4,)
    codes = fitted.transform(frame)[:, 2]
    assert codes[4] == 3
    assert (np.delete(codes, 4) < 3).all()


def test_case_3_an_unseen_category_is_unknown_or_refused_with_column_and_value(frame):
    other = frame.assign(job=["a"] * 7 + ["clown"] * (N - 7))
    assert (fit(frame).transform(other)[7:, 2] == 0).all()
    strict = fit(frame, ColumnsConfig(unknown="error"))
    refusal(
        lambda: strict.transform(other), match=r"column 'job': 'clown' in row 7 .* unknown to res"
    )
    refusal(lambda: strict.transform(frame.assign(job=None)), match="a missing value in row 0")


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float64, object])
def test_case_4_infinity_is_refused_with_its_column(value, dtype, frame):
    clean = fit(frame)
    frame["income"] = frame["income"].astype(dtype)
    frame.loc[6, "income"] = value
    for call in (lambda: fit(frame), lambda: clean.transform(frame)):
        refusal(call, match=r"column 'income': 1 infinite values \(inf\), first in row 6")


def test_case_4_infinity_is_no_category(frame):
    frame["job"] = np.where(frame["job"] == "a", np.inf, 1.5)
    refusal(lambda: fit(frame, categorical_features=["job"]), match="column 'job': infinite")


@pytest.mark.parametrize("numeric", ["quantile", "standard", "minmax"])
def test_case_5_a_constant_column_is_warned_of_and_becomes_0(numeric, frame):
    frame["age"] = 0.1
    with pytest.warns(UserWarning, match="column 'age': constant"):
        fitted = fit(frame, ColumnsConfig(numeric=numeric))
    np.testing.assert_array_equal(fitted.transform(frame)[:, 0], 0)
    np.testing.assert_array_equal(fitted.transform(frame.assign(age=7.0))[:, 0], 0)
    np.testing.assert_array_equal(fitted.raw_features(frame)[:, [0, 2]], 0)


def test_case_5_constant_columns_are_dropped_on_request(frame):
    frame["job"] = "a"
    frame.insert(0, "zero", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = fit(frame, ColumnsConfig(drop_constant=True))
    assert fitted.names_ == ("age", "income")
    assert fitted.n_features_in_ == 4
    assert fitted.shape_.columns == 2
    assert fitted.transform(frame).shape == (N, 2)
    assert fitted.get_feature_names_out().tolist() == ["age", "income"]


def test_case_5_a_constant_that_is_sometimes_missing_tells_something(frame):
    frame["age"] = 1.0
    frame.loc[3, "age"] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = fit(frame, ColumnsConfig(missing="indicator", drop_constant=True))
    column = fitted.transform(frame)[:, 0]
    assert np.isnan(column[3])
    np.testing.assert_array_equal(np.delete(column, 3), 0)


def test_case_6_one_column_is_too_few(frame):
    refusal(lambda: fit(frame[["age"]]), match=r"1 feature\(s\)")
    refusal(lambda: fit(np.empty((12, 0))), match=r"0 feature\(s\) \(shape=\(12, 0\)\) while a min")


def test_case_6_one_column_left_is_too_few(frame):
    constant = frame.assign(age=1.0, job="a")
    refusal(lambda: fit(constant, ColumnsConfig(drop_constant=True)), match=r"1 feature\(s\)")


def test_case_7_one_row_is_too_few(frame):
    refusal(lambda: fit(frame[:1]), match="n_samples=1")


def test_case_8_an_empty_table_is_refused(frame):
    refusal(lambda: fit(frame[:0]), match="n_samples=0")
    refusal(lambda: fit([]), match="n_samples=0")
    refusal(lambda: fit(frame).transform(frame[:0]), match=r"0 sample\(s\)")


@pytest.mark.parametrize(
    ("X", "match"),
    [
        (np.zeros((3, 3, 3)), "dim 3"),
        ([[[1.0, 2.0]], [[3.0, 4.0]]], "dim 3"),
        (np.zeros(3), "Reshape your data"),
        ([1.0, 2.0], "Reshape your data"),
        (pd.Series([1.0, 2.0]), "Reshape your data"),
        (np.float64(3), "Expected 2D array, got 0D"),
    ],
)
def test_case_8_what_is_not_two_dimensional_is_refused(X, match):
    refusal(lambda: fit(X), match=match)


def test_case_8_rows_of_different_lengths_are_refused_with_the_row():
    refusal(
        lambda: fit([[1.0, 2.0], [3.0, 4.0], [5.0]]), match="row 2 is 1 values long, row 0 is 2"
    )
    refusal(lambda: fit([[1.0, 2.0], 3.0]), match="row 1 is no list")


def test_case_8_complex_numbers_are_refused():
    refusal(lambda: fit(np.zeros((3, 2), complex)), match="Complex data not supported")
    refusal(
        lambda: fit(pd.DataFrame({"a": [1j, 2], "b": [1, 2]})),
        match="column 'a': Complex data not supported",
    )
    refusal(
        lambda: fit(pd.DataFrame({"a": pd.Series([1.0, 2j], dtype=object), "b": [1, 2]})),
        match="column 'a': Complex data not supported",
    )


@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.coo_array])
def test_case_8_sparse_tables_are_refused_with_the_remedy(make):
    refusal(lambda: fit(make(np.eye(4))), TableTypeError, r"sparse.*X\.toarray\(\)")


def test_case_8_a_sparse_column_is_refused_by_name(frame):
    frame["age"] = pd.arrays.SparseArray([0.0] * N)
    refusal(lambda: fit(frame), TableTypeError, "column 'age': sparse")


@pytest.mark.parametrize("value", [{"foo": "bar"}, [1, 2], object()])
def test_case_8_a_value_that_is_neither_text_nor_number_is_refused(value):
    X = np.random.default_rng(0).normal(size=(5, 3)).astype(object)
    X[3, 1] = value
    refusal(
        lambda: fit(X),
        TableTypeError,
        "column 'x1': argument must be a string or a real number, not '.*', in row 3",
    )
    with pytest.raises(TypeError):
        fit(X, categorical_features=[1])


def test_case_8_a_column_of_text_and_numbers_is_refused():
    X = pd.DataFrame({"a": pd.Series([1, 2, "b"], dtype=object), "b": [1.0, 2.0, 3.0]})
    refusal(lambda: fit(X), match="column 'a': 'b' in row 2 is text where a number is expected")
    refusal(
        lambda: fit(X, categorical_features=["a"]),
        TableTypeError,
        r"column 'a': values of several types \(int, str\); make them all text",
    )


@pytest.mark.parametrize(
    "X", ["table.csv", {"a": [1, 2]}, None, [{"a": 1}], np.array([[b"a", b"b"]] * 3)]
)
def test_case_8_what_has_no_rows_and_columns_is_refused(X):
    refusal(lambda: fit(X), TableTypeError)


def test_case_9_other_names_are_refused_and_named(frame):
    fitted = fit(frame)
    renamed = frame.rename(columns={"age": "years"})
    refusal(
        lambda: fitted.transform(renamed),
        match="feature names should match .*'years' is new, 'age' is missing",
    )
    refusal(lambda: fitted.transform(frame[["age", "job"]]), match="'income' is missing")
    refusal(lambda: fitted.transform(frame.assign(y=1)), match="'y' is new")


def test_case_9_another_number_of_columns_is_refused():
    fitted = fit(np.random.default_rng(0).normal(size=(9, 4)))
    refusal(
        lambda: fitted.transform(np.zeros((3, 1))),
        match="X has 1 features, but TablePreprocessor is expecting 4 features as input",
    )


def test_case_9_another_kind_of_column_is_refused(frame):
    frame["day"] = pd.date_range("2020", periods=N)
    fitted = fit(frame)
    refusal(
        lambda: fitted.transform(frame.assign(day="monday")),
        match="column 'day': dates when fitted, string now",
    )
    refusal(
        lambda: fitted.transform(frame.assign(age=frame["day"])),
        match="column 'age': .* in row 0 is a date where a number is expected",
    )
    refusal(lambda: fitted.transform(frame.assign(age="old")), match="'old' in row 0 is text where")


def test_case_10_duplicate_names_are_refused(frame):
    frame.columns = ["age", "age", "job"]
    refusal(lambda: fit(frame), match="column 'age' occurs more than once")


def test_case_10_names_of_several_types_are_refused(frame):
    frame.columns = ["age", 1, "job"]
    refusal(lambda: fit(frame), TableTypeError, r"column name 1 is no string.*astype\(str\)")


def test_case_11_a_column_that_is_the_label_is_warned_of(frame):
    y = (frame["age"] > 0).to_numpy()
    shouted = np.where(y, "YES", "no")
    X = frame.assign(same=y, code=y.astype(int) * 4 - 1, text=shouted)
    with pytest.warns(UserWarning, match="a copy of the label") as caught:
        assert warn_leaks(X, y) == ("same", "code", "text")
    assert [str(warning.message).split("'")[1] for warning in caught] == ["same", "code", "text"]


def test_case_11_a_rescaled_or_recoded_label_is_warned_of(frame):
    with pytest.warns(UserWarning, match="column 'age'"):
        assert warn_leaks(frame, 3 - 2 * frame["age"]) == ("age",)
    y = np.resize(["x", "y", "z"], N)
    codes = np.resize([5, 1, 9], N)
    with pytest.warns(UserWarning, match="column 'code'"):
        assert warn_leaks(frame.assign(code=codes), y) == ("code",)


def test_case_11_an_ordinary_column_and_an_id_are_not_the_label(frame):
    noisy = frame["age"] + 0.1 * frame["income"]
    X = frame.assign(id=[f"r{i}" for i in range(N)], one=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert warn_leaks(X, noisy) == ()
        assert warn_leaks(X, np.resize(["x", "y"], N)) == ()


def test_case_12_an_id_is_warned_of(frame):
    frame["id"] = [f"r{i}" for i in range(N)]
    with pytest.warns(UserWarning, match="column 'id': 30 categories in 30 rows.*drop.*hash"):
        fit(frame)


def test_case_12_more_than_1000_categories_are_warned_of():
    n = 2500
    X = pd.DataFrame({"a": np.arange(n), "zip": [f"z{i % 1001}" for i in range(n)]})
    with pytest.warns(UserWarning, match="column 'zip': 1001 categories"):
        fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(X.assign(zip=[f"z{i % 1000}" for i in range(n)]))


@pytest.mark.parametrize(
    ("values", "first"),
    [(["1,234", "5", "7"], "1,234"), (["12 ", "13", "14"], "12 "), ([" 1e3", "2", "2"], " 1e3")],
)
def test_case_13_numbers_as_text_are_refused_with_the_first_and_its_row(values, first):
    X = pd.DataFrame({"price": [None, *values], "b": [1.0, 2.0, 3.0, 4.0]})
    refusal(
        lambda: fit(X),
        match=rf"column 'price': numbers as text, first '{first}' in row 1; .*pandas\.to_numeric",
    )


def test_case_13_a_placeholder_among_numbers_as_text_is_named():
    values = [str(i / 7) for i in range(40)]
    values[17] = "n/a"
    X = pd.DataFrame({"price": values, "b": np.arange(40)})
    refusal(lambda: fit(X), match="column 'price': numbers as text, but 'n/a' in row 17")


def test_case_13_text_among_numbers_is_refused_where_it_is():
    X = pd.DataFrame({"price": pd.Series([1, 2.5, "1,234"], dtype=object), "b": [1.0, 2, 3]})
    refusal(lambda: fit(X), match="column 'price': '1,234' in row 2 is text where a number")


def test_case_13_numbers_as_text_are_categories_when_declared():
    X = pd.DataFrame({"zip": ["01234", "1234", "01234", "1234"], "b": [1.0, 2.0, 3.0, 4.0]})
    for declared in (fit(X, categorical_features=["zip"]), fit(X.astype({"zip": "category"}))):
        assert declared.levels_[0].categories == ("01234", "1234")


def test_case_13_an_undeclared_text_column_is_refused_under_an_explicit_choice(frame):
    refusal(
        lambda: fit(frame, categorical_features=[]),
        match=r"column 'job': '[ab]' in row 0 is text where a number is expected",
    )


@pytest.mark.parametrize(
    ("choice", "match"),
    [
        ("job", "categorical_features is 'job'"),
        (None, "categorical_features is None"),
        (["work"], "names 'work', which is no column"),
        ([3], r"\[3\]; allowed: positions from 0 to 2"),
        ([-1], "allowed: positions"),
        ([True, False], r"shape \(2,\) for 3 columns"),
        (lambda frame: ["work"], "names 'work'"),
    ],
)
def test_a_choice_that_names_no_column_is_refused(choice, match, frame):
    refusal(lambda: fit(frame, categorical_features=choice), ConfigError, match)


def test_a_choice_by_name_needs_names():
    refusal(
        lambda: fit(np.zeros((3, 2)), categorical_features=["a"]), ConfigError, "names 'a', which"
    )


def test_case_17_numbers_beyond_float32_are_refused(frame):
    frame.loc[2, "age"] = -1e39
    refusal(lambda: fit(frame), match="column 'age': -1e\\+39, which float32 cannot hold, .* row 2")


@pytest.mark.parametrize("value", [10**400, 10**39, Decimal("1e39")])
def test_case_17_exact_numbers_beyond_float32_are_refused(value):
    X = pd.DataFrame({"a": pd.Series([1, value], dtype=object), "b": [1.0, 2.0]})
    refusal(lambda: fit(X), match="column 'a': .*float32 cannot hold")


def test_case_17_the_largest_float32_is_accepted():
    X = np.array([[3.4e38, 1.0], [-3.4e38, 2.0], [0.0, 3.0]])
    for numeric in ("quantile", "standard", "minmax"):
        assert np.isfinite(fit(X, ColumnsConfig(numeric=numeric)).transform(X)).all()


def test_case_17_integer_categories_beyond_64_bits_are_refused():
    X = pd.DataFrame({"a": pd.Series([1, 10**30], dtype=object), "b": [1.0, 2.0]})
    refusal(
        lambda: fit(X, categorical_features=["a"]),
        match="column 'a': an integer beyond 64 bits; pass it as text",
    )


def test_case_17_more_codes_than_float32_counts_are_refused(monkeypatch, frame):
    assert levels.MAX_CODES == 2**24
    assert np.float32(levels.MAX_CODES) + np.float32(1) == np.float32(levels.MAX_CODES)
    monkeypatch.setattr(levels, "MAX_CODES", 3)
    refusal(lambda: fit(frame), match="column 'job': 2 categories overflow the 3 codes")


def test_case_18_missing_labels_are_refused():
    refusal(lambda: check_y([1.0, np.nan, 2.0], "regression"), match="NaN: 1 labels .* row 1")
    refusal(lambda: check_y(["a", None, "b"], "binary"), match="NaN: 1 labels .* row 1")
    refusal(lambda: check_y(pd.array([1, None, 0], dtype="Int64"), "binary"), match="NaN: 1 labels")
    refusal(lambda: check_y([1.0, np.inf], "regression"), match="infinity")
    refusal(lambda: check_y(None, "regression"), match="requires y to be passed")


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_case_18_a_single_class_is_refused(task):
    refusal(lambda: check_y(["a", "a"], task), match=r"one class, \['a'\]")


@pytest.mark.parametrize(
    ("y", "task", "match"),
    [
        ([0, 1, 2], "binary", "3 classes where two are expected"),
        ([0.5, 1.5, 2.5], "multiclass", "Unknown label type: continuous"),
        (["1", "b"], "regression", "'b' in row 1 is no number"),
        ([[1, 2], [3, 4]], "multiclass", "1d array"),
        (np.array([1j, 2]), "regression", "Complex data"),
        (np.array(["a", 1, "b"], dtype=object), "multiclass", "text and numbers mixed"),
    ],
)
def test_case_18_labels_of_another_task_are_refused(y, task, match):
    refusal(lambda: check_y(y, task), match=match)


def test_labels_that_are_right_come_back_as_they_are():
    assert check_y(["b", "a"], "binary").tolist() == ["b", "a"]
    assert check_y(pd.Series([1, 2, 3]), "regression").dtype == np.float64
    with pytest.warns(DataConversionWarning):
        assert check_y(np.array([[0], [1]]), "binary").shape == (2,)


def test_transform_before_fit_is_refused(frame):
    with pytest.raises(NotFittedError):
        TablePreprocessor().transform(frame)
