"""Tables of results."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from jepa_core.errors import DataError
from jepa_core.report import Table
from jepa_core.report.table import interval

cells = st.one_of(
    st.none(), st.text(max_size=8), st.integers(), st.floats(allow_nan=False, allow_infinity=False)
)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    width = draw(st.integers(0, 4))
    row = st.lists(cells, min_size=width, max_size=width)
    return Table(
        draw(st.text(max_size=8)),
        tuple(draw(st.lists(st.text(max_size=5), min_size=width, max_size=width))),
        draw(st.lists(row, max_size=4)),
        tuple(draw(st.lists(st.text(max_size=5), max_size=2))),
    )


PROBE = Table(
    "Probe",
    ("features", "AUC", "records"),
    [["trained", 0.91234, 2000], ["untrained", 0.7, 2000], ["raw", None, 12]],
    ("One seed.",),
)


@given(tables())
def test_a_table_survives_json(table):
    assert Table.from_dict(json.loads(json.dumps(table.to_dict()))) == table


@given(tables())
def test_every_table_can_be_shown_everywhere(table):
    table.to_html()
    assert len(table.to_markdown().splitlines()) >= 3
    Console(file=io.StringIO(), width=80).print(table)
    assert [len(row) for row in table.texts()] == [len(table.columns)] * len(table.rows)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.sampled_from(["title", "columns", "rows", "notes"]), st.text(max_size=3)),
            inner,
            max_size=5,
        ),
    ),
    max_leaves=12,
)


@given(
    st.one_of(
        json_values,
        st.fixed_dictionaries(
            {
                "title": json_values,
                "columns": json_values,
                "rows": json_values,
                "notes": json_values,
            }
        ),
    )
)
def test_anything_else_is_a_data_error_that_names_the_file(data):
    where = "a.json"
    try:
        Table.from_dict(data, where=where)
    except DataError as error:
        where = error.where
    assert where == "a.json"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colour": 1}, "'colour'"),
        ({"rows": None}, "'rows'"),
        ({"columns": "ab"}, "'columns'"),
        ({"title": 3}, "title"),
        ({"rows": [["a"]]}, "1 cells"),
        ({"rows": ["abc"]}, "no list"),
        ({"rows": [["a", True, 1]]}, "True"),
        ({"rows": [["a", [1], 1]]}, r"\[1\]"),
        ({"notes": [1]}, "notes"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(change, said):
    with pytest.raises(DataError, match=said):
        Table.from_dict({**PROBE.to_dict(), **change})


def test_a_missing_key_is_named():
    data = PROBE.to_dict()
    del data["notes"]
    with pytest.raises(DataError, match="'notes'"):
        Table.from_dict(data)


def test_numpy_numbers_become_plain_ones():
    table = Table("t", ("a", "b"), [[np.float32(0.5), np.int64(3)]])
    assert table.rows == [[0.5, 3]]
    assert [type(cell) for cell in table.rows[0]] == [float, int]
    json.dumps(table.to_dict())


def test_a_number_that_is_not_finite_is_null_in_json_and_a_dash_on_the_page():
    table = Table("t", ("a",), [[math.nan], [math.inf]])
    assert table.to_dict()["rows"] == [[None], [None]]
    assert table.texts() == [["–"], ["inf"]]


def test_numbers_of_a_column_share_their_decimals():
    assert [row[1] for row in PROBE.texts()] == ["0.912", "0.700", "–"]
    mixed = Table("t", ("a", "b", "c"), [[12.3456, 1e-4, 1e7], [1.0, 0.9, 2.0]])
    assert mixed.texts() == [["12.35", "0.0001", "1e+07"], ["1.00", "0.9", "2"]]


def test_columns_of_numbers_are_set_flush_right():
    assert PROBE.numeric() == [False, True, True]
    table = Table(
        "t",
        ("interval", "share", "name", "empty", "version"),
        [[interval(0.5, 0.4, 0.6), "-2 %", "3 leads", None, "<0.001"]],
    )
    assert table.numeric() == [True, True, False, False, True]
    assert "| ---: | ---: | --- | --- | ---: |" in table.to_markdown()


def test_an_interval_reads_as_value_and_bounds():
    assert interval(0.83249, 0.81, 0.85) == "0.832 [0.810, 0.850]"
    assert interval(math.nan, 0, 1) == "–"


def test_markdown_keeps_its_columns_whatever_the_cells_hold():
    table = Table("t", ("a|b", "c"), [["x\ny | z", "back\\slash"]], ("A note.",))
    lines = table.to_markdown().splitlines()
    assert lines[2:5] == ["| a\\|b | c |", "| --- | --- |", "| x y \\| z | back\\\\slash |"]
    assert lines[-1] == "A note."


def test_html_shows_cells_as_they_are_written():
    html = Table("<i>", ("<b>",), [["<script>alert(1)</script>"]], ("a & b",)).to_html()
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert html.count("&lt;i&gt;") == 2
    assert "a &amp; b" in html


def test_control_characters_and_markup_never_reach_the_terminal():
    out = io.StringIO()
    table = Table("\x1b[2J[bold]t", ("a\x07",), [["[red]x[/red]\x1b]0;title\x07"]])
    table.print(Console(file=out, width=80))
    assert "\x1b" not in out.getvalue()
    assert "\x07" not in out.getvalue()
    assert "[red]x[/red]" in out.getvalue()


def test_a_table_costs_no_matplotlib_and_no_torch():
    code = (
        "import sys; from jepa_core.report import Table; Table('t', ('a',), [[1]]).to_html();"
        "print([m for m in ('matplotlib', 'torch', 'pandas', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
