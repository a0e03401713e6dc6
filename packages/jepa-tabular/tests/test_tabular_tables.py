"""The six published tables: columns, codes, targets and splits as the official program has them."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepa_core.errors import ConfigError, DataError
from jepa_tabular.data.tables import LAYOUTS, Table, official_split, read, split, standardised


@pytest.fixture(scope="module")
def golden(data):
    with np.load(data("tabular") / "golden_preprocessing.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def encoded(table: Table) -> np.ndarray:
    """The official matrix, the obvious way: codes, and numbers scaled by all rows to [0, 1]."""
    columns = []
    for name, column in table.frame.items():
        if name in table.categories:
            columns.append(column.cat.codes.to_numpy(np.float64))
        else:
            x = column.to_numpy(np.float64)
            columns.append((x - x.min()) / (x.max() - x.min()))
    return np.stack(columns, 1).astype(np.float32)


def test_adult_has_the_official_columns_codes_and_classes(data, golden):
    table = read("adult", data("tabular"))
    assert table.frame.shape == (48_842, 14)
    assert list(table.frame.columns) == golden["adult/columns"].tolist()
    assert [table.frame.columns.get_loc(name) for name in table.categories] == list(
        LAYOUTS["adult"].categorical
    )
    for name, categories in table.categories.items():
        assert list(categories) == golden[f"adult/classes/{name}"].tolist()
    assert (table.task, table.classes, table.dropped) == ("binary", ("<=50K", ">50K"), 0)
    np.testing.assert_array_equal(table.y[:20], golden["adult/y_first20"])
    assert table.y.mean() == pytest.approx(golden["adult/y_mean"], abs=1e-8)
    x = encoded(table)
    np.testing.assert_allclose(x[:8], golden["adult/first8"], atol=1e-6)
    np.testing.assert_allclose(x[-4:], golden["adult/last4"], atol=1e-6)
    np.testing.assert_allclose(x.mean(0, np.float64), golden["adult/colmean"], atol=1e-6)


def test_california_leaves_out_rows_with_missing_numbers_and_standardises_its_target(data, golden):
    table = read("california", data("tabular"))
    assert table.frame.shape == (20_433, 8)
    assert table.dropped == golden["california/n_nan_rows"]
    assert (table.task, table.classes, table.categories) == ("regression", (), {})
    np.testing.assert_allclose(table.frame.min(), golden["california/min"])
    np.testing.assert_allclose(table.frame.max(), golden["california/max"])
    x = encoded(table)
    np.testing.assert_allclose(x[:8], golden["california/first8"], atol=1e-6)
    np.testing.assert_allclose(x.mean(0, np.float64), golden["california/colmean"], atol=1e-6)
    y, mean, deviation = standardised(table.y)
    assert mean == pytest.approx(golden["california/y_mean"], abs=1e-6)
    assert deviation == pytest.approx(golden["california/y_std_pop"], abs=1e-6)
    np.testing.assert_allclose(y[:8], golden["california/y_scaled_first8"], atol=1e-6)


def test_a_target_standardised_on_training_rows_knows_nothing_of_the_others():
    y, mean, deviation = standardised(np.array([1.0, 3.0, 1e9]), np.array([0, 1]))
    assert (mean, deviation) == (2, 1)
    np.testing.assert_array_equal(y[:2], [-1, 1])


def test_jannis_comes_as_the_archive_of_its_parts(data, golden):
    table = read("jannis", data("tabular"))
    assert table.frame.shape == (28_145, 54)
    assert np.bincount(table.y[:13_398]).tolist() == [270, 4607, 2357, 6164]
    assert np.bincount(table.y[13_398:]).tolist() == [302, 5052, 2587, 6806]
    assert (table.task, table.classes) == ("multiclass", ("0", "1", "2", "3"))
    part = table.frame.iloc[:13_398]
    np.testing.assert_allclose(part.min(), golden["jannis_val/min"], rtol=1e-6)
    np.testing.assert_allclose(part.max(), golden["jannis_val/max"], rtol=1e-6)
    x = encoded(table._replace(frame=part))
    np.testing.assert_allclose(x[:4], golden["jannis_val/first4"], atol=1e-6)


def test_higgs_codes_its_categories_by_their_first_rows(data, golden):
    table = read("higgs", data("tabular"))
    assert table.frame.shape == (7_000, 28)
    assert table.y.mean() == pytest.approx(0.531, abs=5e-4)
    for position, levels in zip(
        LAYOUTS["higgs"].categorical, table.categories.values(), strict=True
    ):
        np.testing.assert_array_equal(levels, golden[f"higgs/levels_{position}"])
    np.testing.assert_allclose(encoded(table)[:8], golden["higgs/first8"], atol=1e-6)


def write_arff(path, names, x, y, classes):
    lines = ["@relation r", f"@attribute class {{{','.join(map(str, range(classes)))}}}"]
    lines += [f"@attribute {name} numeric" for name in names]
    rows = [",".join(map(repr, [int(c), *row])) for c, row in zip(y, x.tolist(), strict=True)]
    path.write_text("\n".join([*lines, "@data", *rows]))


@pytest.mark.parametrize(("name", "classes"), [("helena", 100), ("jannis", 4)])
def test_arff_tables_have_their_class_first(tmp_path, name, classes):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, LAYOUTS[name].columns))
    y = rng.permutation(np.arange(200) % classes)
    write_arff(tmp_path / f"{name}.arff", [f"V{i}" for i in range(x.shape[1])], x, y, classes)
    table = read(name, tmp_path)
    np.testing.assert_array_equal(table.frame, x)
    np.testing.assert_array_equal(table.y, y)
    assert table.classes == tuple(map(str, range(classes)))
    assert table.task == "multiclass"


def test_aloi_has_its_label_last(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.random((30, 128)), rng.permutation(30) % 11
    lines = [",".join([*(f"a{i}" for i in range(128)), "target"])]
    lines += [",".join([*map(repr, row), str(c)]) for row, c in zip(x.tolist(), y, strict=True)]
    (tmp_path / "aloi.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    table = read("aloi", tmp_path)
    np.testing.assert_array_equal(table.frame, x)
    assert [table.classes[code] for code in table.y] == [str(c) for c in y]


def test_another_table_is_not_taken_for_one_of_them(data, tmp_path):
    folder = data("tabular")
    with pytest.raises(ConfigError, match="no table called 'adlut'; allowed: adult, helena"):
        read("adlut", folder)
    with pytest.raises(DataError, match=r"none of its files is there: helena\.arff"):
        read("helena", tmp_path)
    with pytest.raises(DataError, match="there is no column 'income'"):
        read("adult", folder / "housing.csv.gz")
    with pytest.raises(DataError, match="28 feature columns; aloi has 128"):
        read("aloi", folder / "higgs_7000.csv.gz")
    (tmp_path / "adult.csv").write_text(
        ",".join([*(f"c{i}" for i in range(14)), "income"]) + "\n" + ",".join(["x"] * 15) + "\n"
    )
    with pytest.raises(DataError, match="the column 'c0' is text; that of adult holds numbers"):
        read("adult", tmp_path)


def test_a_class_that_is_not_known_is_named(data, tmp_path):
    with gzip.open(data("tabular") / "adult.csv.gz", "rt") as file:
        lines = [next(file) for _ in range(4)]
    (tmp_path / "adult.csv").write_text("".join(lines).replace("<=50K", "<=50K.", 1))
    with pytest.raises(DataError, match=r"'income' is '<=50K\.'; allowed: <=50K, >50K"):
        read("adult", tmp_path)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_official_split_is_that_of_the_program(golden, name):
    n, n_train, n_test = golden[f"split/{name}/n"].tolist()
    assert n == LAYOUTS[name].rows
    parts = official_split(n)
    assert (len(parts.train), len(parts.test)) == (n_train, n_test)
    np.testing.assert_array_equal(parts.train[:20], golden[f"split/{name}/train_first20"])
    np.testing.assert_array_equal(parts.test[:20], golden[f"split/{name}/test_first20"])
    assert parts.test.sum() == golden[f"split/{name}/test_sum"]
    np.testing.assert_array_equal(parts.validation, parts.test)
    own = official_split(n, val_ratio=0.1)
    np.testing.assert_array_equal(own.validation[:20], golden[f"split/{name}/val_first20"])
    np.testing.assert_array_equal(own.test, parts.test)
    assert not np.intersect1d(own.validation, own.train).size


@given(st.integers(10, 400), st.integers(0, 2**31 - 1), st.booleans())
def test_a_split_gives_every_row_one_part(n, seed, labelled):
    rows = np.zeros(n, np.int64) if labelled else n
    parts = split(rows, seed=seed, validation=0.2, test=0.1)
    assert [len(part) for part in parts[1:]] == [round(n * 0.2), round(n * 0.1)]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    again = split(rows, seed=seed, validation=0.2, test=0.1)
    assert all(map(np.array_equal, parts, again))


def test_seeds_give_other_splits():
    assert not np.array_equal(split(100, seed=0).test, split(100, seed=1).test)


def test_a_stratified_split_keeps_the_shares_of_the_classes():
    y = np.repeat([0, 1, 2], [1000, 300, 20])
    parts = split(y, seed=3, validation=132, test=0.25, stratify=True)
    assert (len(parts.validation), len(parts.test)) == (132, 330)
    for part in parts:
        assert np.bincount(y[part]) == pytest.approx(np.bincount(y) * len(part) / 1320, abs=1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"rows": 10, "test": 0.01}, "test is 0.01: no row of 10"),
        ({"rows": 10, "validation": 5, "test": 5}, "validation and test take 10 of 10 rows"),
        ({"rows": 10, "stratify": True}, "needs the labels"),
        ({"rows": np.array([0] * 20 + [1]), "stratify": True}, "no stratified split"),
    ],
)
def test_a_split_that_cannot_be_is_refused(arguments, said):
    with pytest.raises(ConfigError, match=said):
        split(seed=0, **arguments)
