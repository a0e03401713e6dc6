"""Tables from files: every format gives the same rows, every mistake one line that names it."""

from __future__ import annotations

import gzip
import io
import re
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepa_core.errors import DataError
from jepa_tabular.data import delimited
from jepa_tabular.data.delimited import Delimited
from jepa_tabular.data.files import load_table

TEXT = 'age,job,since,sure\n25,clerk,2020-01-31,true\n-1.5e2,,2021-06-30,false\n,"a, b",,true\n'


def put(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def table(tmp_path):
    return load_table(put(tmp_path / "t.csv", TEXT))


def test_numbers_texts_dates_and_booleans_have_their_types(table):
    np.testing.assert_array_equal(table["age"], [25, -150, np.nan])
    assert table["job"].fillna("-").tolist() == ["clerk", "-", "a, b"]
    assert table["since"].dtype.kind == "M"
    assert table["since"].isna().tolist() == [False, False, True]
    assert table["sure"].tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", TEXT.replace("\n", "\r\n")),
        ("t.csv", "\ufeff" + TEXT),
        ("t.csv", TEXT.rstrip("\n")),
        ("t.csv", TEXT.replace("\n25", "\n\n25") + "\n  \n"),
        ("T.CSV.GZ", gzip.compress(TEXT.encode())),
        ("packed.csv", gzip.compress(TEXT.encode())),
        ("t.tsv", TEXT.replace(",", "\t").replace("a\t b", "a, b")),
        ("t.tsv.gz", gzip.compress(TEXT.replace(",", "\t").replace("a\t b", "a, b").encode())),
    ],
)
def test_the_same_rows_in_another_guise_are_the_same_table(tmp_path, table, name, content):
    pd.testing.assert_frame_equal(load_table(put(tmp_path / name, content)), table)


def test_parquet_gives_the_same_table(tmp_path, table):
    table.to_parquet(tmp_path / "t.parquet")
    read = load_table(tmp_path / "t.parquet").astype({"since": table["since"].dtype})
    pd.testing.assert_frame_equal(read, table)


def test_arff_gives_the_same_numbers_and_categories(tmp_path, table):
    text = "@attribute age numeric\n@attribute job {clerk,'a, b'}\n@data\n"
    text += "25,clerk\n-1.5e2,?\n?,'a, b'\n"
    for path in (
        put(tmp_path / "t.arff", text),
        put(tmp_path / "t.arff.gz", gzip.compress(text.encode())),
    ):
        frame = load_table(path)
        pd.testing.assert_series_equal(frame["age"], table["age"])
        assert frame["job"].astype("str").equals(table["job"].astype("str"))


def test_quotes_hold_separators_quotes_and_line_ends(tmp_path):
    text = 'a,b\n"1","x ""y"", z\r\n2,3"\n4,5" pipe\n'
    frame = load_table(put(tmp_path / "t.csv", text))
    assert frame["a"].tolist() == [1, 4]
    assert frame["b"].tolist() == ['x "y", z\r\n2,3', '5" pipe']


def test_words_for_missing_values_are_missing_and_others_are_categories(tmp_path):
    frame = load_table(put(tmp_path / "t.csv", "x,c\n1,None\nNA,?\nnan,n/a\n"))
    assert frame["x"].isna().tolist() == [False, True, True]
    assert frame["c"].fillna("-").tolist() == ["None", "?", "-"]


def test_a_column_without_any_value_is_one_of_missing_numbers(tmp_path):
    frame = load_table(put(tmp_path / "t.csv", "a,b\n1,\n2,\n"))
    assert frame["b"].dtype == np.float64


@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=False, allow_infinity=False),
            st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")) | st.just("\n")),
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 4),
)
def test_what_pandas_writes_is_read_row_by_row(tmp_path_factory, rows, size):
    path = tmp_path_factory.mktemp("round") / "t.csv"
    # A letter before each text keeps it one: neither missing, nor a number, nor a date.
    frame = pd.DataFrame([(x, f"t{text}") for x, text in rows], columns=["x", "text"])
    frame.to_csv(path, index=False)
    file = Delimited(path, ",")
    types = {"x": pa.float64(), "text": pa.string()}
    blocks = list(file.blocks(size))
    read = pd.concat([file.parse(block, types).to_pandas() for block in blocks])
    assert read["x"].tolist() == frame["x"].tolist()
    assert read["text"].tolist() == frame["text"].tolist()
    written = path.read_bytes().split(b"\n")
    for line in np.concatenate([block.numbers for block in blocks]):
        assert b"," in written[line - 1]
    assert all(len(block.numbers) == size for block in blocks[:-1])


CSV = {
    "few fields": ("a,b,c\n1,2,3\n\n4,5\n6,7,8\n", r"line 4: 2 fields, expected 3"),
    "many fields": ("a,b\n1,2\n3,4,5\n", r"line 3: 3 fields, expected 2"),
    "all too long": ("a,b\n1,2,3\n4,5,6\n", r"line 2: 3 fields, expected 2"),
    "after a long row": ('a,b\n1,"x\ny\nz"\n2\n', r"line 5: 1 fields, expected 2"),
    "quoted too long": ('a,b\n"1,2",3\n"4","5","6"\n', r"line 3: 3 fields, expected 2"),
    "open quote": ('a,b\n1,2\n3,"4\n5,6\n', r"line 3: a quote that is not closed"),
    "empty": ("", r"the file is empty"),
    "blank": ("\n1,2\n", r"the first line is blank"),
    "header only": ("a,b\n", r"the file names columns and has no rows"),
    "name twice": ("a,b,a\n1,2,3\n", r"line 1: two columns are called 'a'"),
    "no name": (",a\n0,1\n", r"line 1: column 1 has no name; .*index=False"),
    "no header": ("1.5,2\n3,4\n", r"line 1: numbers where the columns' names belong"),
    "semicolons": ("a;b\n1;2\n", r"line 1: one column, 'a;b'; the separator looks like ';'"),
    "not UTF-8": (b"a,b\n1,x\n2,\xe9t\xe9\n", r"line 3: the byte 0xe9 is not UTF-8"),
    "name not UTF-8": (b"\xe9,b\n1,x\n", r"line 1: is not UTF-8"),
    "UTF-16": ("a,b\n1,2\n".encode("utf-16"), r"is no UTF-8 text"),
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid x\n",
        r"Git LFS pointer.*git lfs pull",
    ),
    "cut off": (gzip.compress(TEXT.encode() * 99)[:-20], r"the packed file is damaged"),
}


@pytest.mark.parametrize("name", CSV)
def test_a_malformed_csv_is_one_line_that_names_the_line(tmp_path, name):
    content, said = CSV[name]
    path = put(tmp_path / "t.csv", content)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}.*{said}") as caught:
        load_table(path)
    assert "\n" not in str(caught.value)


def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "_LONGEST", 1000)
    path = put(tmp_path / "t.csv", "a,b\n1,2\n" + "x" * 5000)
    with pytest.raises(DataError, match="line 3: is longer"):
        load_table(path)


def test_a_file_of_no_known_kind_a_folder_and_nothing_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"is no table by its name; allowed: \.csv"):
        load_table(put(tmp_path / "t.xlsx", "x"))
    with pytest.raises(DataError, match="is no table by its name"):
        load_table(put(tmp_path / "t.parquet.gz", "x"))
    with pytest.raises(DataError, match="no such file"):
        load_table(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        load_table(tmp_path / "folder.csv")


def test_a_label_that_is_not_there_is_named_with_the_columns(tmp_path):
    path = put(tmp_path / "t.csv", TEXT)
    assert list(load_table(path, label="job").columns) == ["age", "job", "since", "sure"]
    with pytest.raises(DataError, match=r"no column is called 'jobs'; did you mean job\? allowed"):
        load_table(path, label="jobs")


# --- Parquet ---


def test_every_plain_type_of_parquet_becomes_a_number_text_or_time(tmp_path):
    table = pa.table(
        {
            "decimal": pa.array(["1.50", None]).cast(pa.decimal128(9, 2)),
            "half": pa.array(np.array([1, 2], np.float16)),
            "word": pa.array(["a", "b"]).dictionary_encode(),
            "day": pa.array([0, 1], pa.date32()),
            "at": pa.array([0, 1], pa.timestamp("ns", "UTC")),
            "clock": pa.array([0, 1], pa.time64("us")),
            "nothing": pa.nulls(2),
            "big": pa.array([2**62, None]),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    frame = load_table(tmp_path / "t.parquet")
    kinds = [str(dtype) for dtype in frame.dtypes]
    assert kinds[:2] == ["float64", "float64"]
    assert kinds[2] == "category"
    assert frame["day"].dtype.kind == frame["at"].dtype.kind == "M"
    assert frame["clock"].tolist() == ["00:00:00.000000", "00:00:00.000001"]
    assert kinds[6:] == ["float64", "float64"]


def test_lists_in_parquet_are_refused_by_name(tmp_path):
    pq.write_table(pa.table({"a": [1], "b": [[1, 2]]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="column 'b' is of type list"):
        load_table(tmp_path / "t.parquet")


def test_a_damaged_parquet_is_one_line(tmp_path):
    pq.write_table(pa.table({"a": list(range(1000))}), tmp_path / "t.parquet")
    whole = (tmp_path / "t.parquet").read_bytes()
    for content in (whole[:-10], b"PAR1" + whole[50:], b"nonsense"):
        with pytest.raises(DataError, match=r"no Parquet file|cannot be read"):
            load_table(put(tmp_path / "bad.parquet", content))
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), tmp_path / "none.parquet")
    with pytest.raises(DataError, match="there are no rows"):
        load_table(tmp_path / "none.parquet")


# --- NumPy ---


def test_an_array_has_columns_by_number(tmp_path):
    np.save(tmp_path / "t.npy", np.arange(6, dtype=np.float32).reshape(3, 2))
    frame = load_table(tmp_path / "t.npy")
    assert list(frame.columns) == ["x0", "x1"]
    assert frame["x1"].tolist() == [1, 3, 5]
    np.savez(tmp_path / "t.npz", anything=frame.to_numpy())
    pd.testing.assert_frame_equal(load_table(tmp_path / "t.npz"), frame)


def test_features_and_labels_of_an_archive_stand_side_by_side(tmp_path):
    np.savez(tmp_path / "t.npz", X=np.eye(3), y=[5, 6, 7], other=np.zeros(2))
    frame = load_table(tmp_path / "t.npz", label="y")
    assert list(frame.columns) == ["x0", "x1", "x2", "y"]
    assert frame["y"].tolist() == [5, 6, 7]


def test_parts_of_an_archive_follow_each_other_train_first(tmp_path):
    x = np.arange(12).reshape(6, 2)
    np.savez(
        tmp_path / "t.npz",
        x_test=x[4:], y_test=[4, 5], X_train=x[:3], y_train=[0, 1, 2], X_val=x[3:4], y_val=[3],
    )  # fmt: skip
    frame = load_table(tmp_path / "t.npz")
    assert frame["y"].tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(frame[["x0", "x1"]], x)
    assert frame.attrs["parts"] == {"train": 3, "val": 1, "test": 2}


def test_the_real_archive_keeps_its_values(data):
    path = data("tabular") / "jannis_28145.npz"
    frame = load_table(path)
    with np.load(path) as arrays:
        np.testing.assert_array_equal(frame.iloc[:13_398, :54], arrays["X_val"])
        np.testing.assert_array_equal(frame["y"].iloc[13_398:], arrays["y_test"])


ARCHIVES = {
    "no pair": ({"A": np.eye(2), "B": np.eye(2)}, r"holds A, B; allowed: one array, X with"),
    "half a pair": ({"X_a": np.eye(2), "X_b": np.eye(2), "y_a": [0, 1]}, r"X_b is there and y_b"),
    "labels too short": ({"X": np.eye(3), "y": [1, 2]}, r"X has 3 rows, y is \(2,\)"),
    "labels too deep": ({"X": np.eye(3), "y": np.eye(3)}, r"X has 3 rows, y is \(3, 3\)"),
    "other widths": ({"X_a": np.eye(2), "X_b": np.eye(3)}, r"not the same number of columns"),
    "three axes": ({"X": np.zeros((2, 2, 2))}, r"shape \(2, 2, 2\), where rows and columns"),
    "complex": ({"X": np.eye(2) * 1j}, r"array X: an array of complex128, not of numbers"),
    "objects": ({"X": np.array([[1, "a"]], object)}, r"array X: holds pickled objects"),
    "no rows": ({"X": np.zeros((0, 3))}, r"there are no rows"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_is_no_table_says_why(tmp_path, name):
    arrays, said = ARCHIVES[name]
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(DataError, match=said):
        load_table(tmp_path / "t.npz")


def header(shape, dtype="<f8"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


@pytest.mark.parametrize("shape", [(10**12, 10**6), (3, 2), (-1, 2), (2**62, 2**62)])
def test_a_header_that_promises_more_than_there_is_allocates_nothing(tmp_path, shape):
    content = header(shape) + b"\0" * 40
    with pytest.raises(DataError, match=r"cut off|can be read"):
        load_table(put(tmp_path / "t.npy", content))
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as packed:
        packed.writestr("X.npy", content)
    with pytest.raises(DataError, match=r"cut off|can be read"):
        load_table(tmp_path / "t.npz")


def test_pickled_objects_are_never_loaded(tmp_path):
    np.save(tmp_path / "t.npy", np.array([[object()]], object), allow_pickle=True)
    with pytest.raises(DataError, match="holds pickled objects"):
        load_table(tmp_path / "t.npy")


@pytest.mark.parametrize("name", ["t.npy", "t.npz"])
@pytest.mark.parametrize(
    "content", [b"nonsense", b"PK\3\4nonsense", b"\x93NUMPY\x09\0", b"\x93NUMPY"]
)
def test_what_is_no_array_is_one_line(tmp_path, name, content):
    with pytest.raises(DataError) as caught:
        load_table(put(tmp_path / name, content))
    assert "\n" not in str(caught.value)
