"""ARFF: what goes in comes out, by the fast way and the slow one, and every mistake has a line."""

from __future__ import annotations

import io
import math

import numpy as np
import pandas as pd
import pytest
import scipy.io.arff
from hypothesis import given
from hypothesis import strategies as st

from jepa_core.errors import DataError
from jepa_tabular.data import arff
from jepa_tabular.data.arff import read_arff

SMALL = b"""% a comment
@RELATION 'two words'

@attribute 'a b' REAL [0,1]
@Attribute c {red, 'dark blue',"it's", x}
@attribute\tn integer % another
@DATA
1, red, 2
% a comment among the rows
?,'dark blue',-3

1e3 , ?,+4
.5,"it's",5
2,'x' ,?
"""


def read(text: bytes) -> pd.DataFrame:
    return read_arff(io.BytesIO(text), path="table.arff")


def test_numbers_categories_quotes_comments_and_missing_values_are_read():
    frame = read(SMALL)
    assert list(frame.columns) == ["a b", "c", "n"]
    np.testing.assert_array_equal(frame["a b"], [1, np.nan, 1000, 0.5, 2])
    np.testing.assert_array_equal(frame["n"], [2, -3, 4, 5, np.nan])
    assert frame["c"].cat.categories.tolist() == ["red", "dark blue", "it's", "x"]
    assert frame["c"].cat.codes.tolist() == [0, 1, -1, 2, 3]


def test_line_ends_of_windows_and_a_byte_order_mark_change_nothing():
    other = b"\xef\xbb\xbf" + SMALL.replace(b"\n", b"\r\n")
    pd.testing.assert_frame_equal(read(other), read(SMALL))


def test_a_quoted_question_mark_is_a_category_and_a_bare_one_is_missing():
    frame = read(b"@attribute a {'?', b}\n@attribute z numeric\n@data\n'?',1\n?,2\nb,3\n")
    assert frame["a"].cat.codes.tolist() == [0, -1, 1]


def test_escapes_within_quotes_are_resolved():
    frame = read(b"@attribute 'it\\'s' {'a\\nb', \"c\\\\d\"}\n@data\n'a\\nb'\n\"c\\\\d\"\n")
    assert frame.columns[0] == "it's"
    assert frame["it's"].tolist() == ["a\nb", "c\\d"]


def test_a_single_column_is_read():
    assert read(b"@attribute a numeric\n@data\n1\n\n?\n3").iloc[:, 0].dropna().tolist() == [1, 3]


@pytest.mark.parametrize("block", [1, 2, 3, 1000])
def test_the_rows_do_not_depend_on_the_blocks_they_are_read_in(monkeypatch, block):
    whole = read(SMALL)
    monkeypatch.setattr(arff, "_BLOCK", block)
    pd.testing.assert_frame_equal(read(SMALL), whole)


def test_scipy_reads_the_same():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 6)) * 10.0 ** rng.integers(-30, 30, (500, 6))
    codes = rng.integers(0, 3, 500)
    names = ["red", "blue", "green"]
    text = "@relation r\n" + "".join(f"@attribute a{i} numeric\n" for i in range(6))
    text += f"@attribute c {{{','.join(names)}}}\n@data\n"
    text += "\n".join(
        f"{','.join(map(repr, row.tolist()))},{names[code]}"
        for row, code in zip(x, codes, strict=True)
    )
    theirs, _ = scipy.io.arff.loadarff(io.StringIO(text))
    ours = read(text.encode())
    for i in range(6):
        np.testing.assert_array_equal(ours[f"a{i}"], theirs[f"a{i}"])
        np.testing.assert_array_equal(ours[f"a{i}"], x[:, i])
    assert ours["c"].tolist() == [value.decode() for value in theirs["c"]]


words = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"))
    | st.sampled_from("\n\t'\"\\,%{? "),
    max_size=5,
)
numbers = st.none() | st.floats(allow_nan=False) | st.integers(-(10**6), 10**6)


def quoted(text: str, mark: str) -> str:
    for plain, escaped in (("\\", "\\\\"), ("\n", "\\n"), ("\r", "\\r"), (mark, f"\\{mark}")):
        text = text.replace(plain, escaped)
    return f"{mark}{text}{mark}"


def bare(text: str) -> bool:
    return text.isalnum() and text.isascii()


@given(st.data())
def test_what_is_written_is_read(draw):
    mark = st.sampled_from("'\"")
    kinds = draw.draw(
        st.lists(st.none() | st.lists(words, min_size=1, max_size=4, unique=True), min_size=1)
    )
    names = [f"{draw.draw(words)}{i}" for i in range(len(kinds))]

    def put(text: str) -> str:
        if bare(text) and draw.draw(st.booleans()):
            return text
        return quoted(text, draw.draw(mark))

    lines = ["@relation r"]
    for name, categories in zip(names, kinds, strict=True):
        kind = "numeric" if categories is None else "{" + ",".join(map(put, categories)) + "}"
        lines.append(f"@attribute {quoted(name, draw.draw(mark))} {kind}")
    lines.append("@data")
    rows = []
    for _ in range(draw.draw(st.integers(1, 5))):
        row = [
            draw.draw(numbers if categories is None else st.none() | st.sampled_from(categories))
            for categories in kinds
        ]
        rows.append(row)
        blank = draw.draw(st.sampled_from(["", " ", "\t"]))
        fields = [
            "?" if value is None else put(value) if isinstance(value, str) else repr(value)
            for value in row
        ]
        lines.append(f"{blank},{blank}".join(fields))
    frame = read("\n".join(lines).encode())
    assert frame.columns.tolist() == names
    for i, categories in enumerate(kinds):
        column = frame.iloc[:, i]
        if categories is not None:
            assert column.cat.categories.tolist() == categories
        for value, (row,) in zip(column, ([row[i]] for row in rows), strict=True):
            assert (row is None and pd.isna(value)) or value == row


@given(st.lists(st.tuples(st.floats(allow_infinity=False), st.sampled_from("abc")), min_size=1))
def test_the_fast_way_and_the_slow_one_agree(rows):
    fields = [["?" if math.isnan(x) else repr(x), c] for x, c in rows]
    head = "@attribute x numeric\n@attribute c {a,b,c}\n@data\n"
    fast = read((head + "\n".join(f"{x},{c}" for x, c in fields)).encode())
    slow = read((head + "\n".join(f"{x},'{c}'" for x, c in fields)).encode())
    pd.testing.assert_frame_equal(fast, slow)


HEAD = b"@relation r\n@attribute a numeric\n@attribute c {x, y}\n@data\n"

MALFORMED = {
    "unknown keyword": (b"@relation r\n@atribute a numeric\n", r"line 2: the keyword '@atribute'"),
    "unknown type": (
        b"@attribute a number\n@data\n1\n",
        r"line 1: 'a' is of type 'number'.*numeric",
    ),
    "text": (
        b"@attribute a string\n@data\nx\n",
        r"line 1: 'a' is of type 'string', which is not read",
    ),
    "date": (b"\n@attribute a date 'yyyy'\n", r"line 2: 'a' is of type .*which is not read"),
    "no type": (b"@attribute a\n@data\n", r"line 1: an attribute needs a name and a type"),
    "twice": (
        b"@attribute a real\n@attribute a real\n@data\n1,2\n",
        r"line 3: there are two .*'a'",
    ),
    "category twice": (
        b"@attribute a {x,y,x}\n@data\n",
        r"line 1: 'a' lists the category 'x' twice",
    ),
    "no attribute": (b"@relation r\n@data\n1\n", r"line 2: no @attribute stands before @data"),
    "row too early": (b"@relation r\n1,2\n", r"line 2: '1,2' stands before @data"),
    "no data": (b"@relation r\n@attribute a real\n", r"there is no @data up to line 2"),
    "nothing": (b"% only a comment\n", r"there is no @data"),
    "no rows": (HEAD + b"% none\n\n", r"there are no rows after @data"),
    "few fields": (HEAD + b"1,x\n%\n2\n", r"line 7: 1 fields, expected 2"),
    "many fields": (HEAD + b"1,x\n2,y,3\n", r"line 6: 3 fields, expected 2"),
    "no number": (HEAD + b"1,x\n2,x\nabc,y\n", r"line 7: 'a' is 'abc', not a number"),
    "empty number": (HEAD + b",x\n", r"line 5: 'a' is '', not a number"),
    "not listed": (HEAD + b"1,x\n1,z\n", r"line 6: 'c' is 'z', which it does not list"),
    "sparse": (HEAD + b"1,x\n{0 3, 1 y}\n", r"line 6: the row is sparse"),
    "open quote": (HEAD + b"1,'x\n", r"line 5: a quote does not fit at \"'x\""),
    "quote and more": (HEAD + b"1,'x'y\n", r"line 5: a quote does not fit"),
    "not UTF-8": (HEAD + b"1,x\n2,\xff\n", r"line 6: is not UTF-8"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_one_line_that_names_the_line(name):
    text, said = MALFORMED[name]
    with pytest.raises(DataError, match=rf"^table\.arff.*{said}") as caught:
        read(text)
    assert "\n" not in str(caught.value)
