"""ARFF, the dense subset that tables come in: numeric and nominal attributes, comma-separated rows.

Rows without quotes or escapes go through Arrow's CSV reader a block at a time, the others through
a reader of their own; a row that either refuses is read again by the latter, which names its line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.csv
from jaxtyping import Float64, Int64

from jepa_core.errors import DataError

# Rows handed to Arrow at a time; bounds the memory that is needed beside the result.
_BLOCK = 1 << 14

_BLANKS = " \t\r\n"
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
_QUOTED = r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)\""""
# A field is quoted, with backslash escapes, or goes up to the next comma.
_FIELD = re.compile(rf"""[ \t]*+(?:(?:{_QUOTED})[ \t]*|((?!['"])[^,]*))(,|$)""")
_NAME = re.compile(rf"""[ \t]*(?:{_QUOTED}|([^ \t{{'"][^ \t{{]*))[ \t]*(.*)""")
_NUMERIC = ("numeric", "real", "integer")
_REFUSED = ("string", "date", "relational")


class Attribute(NamedTuple):
    """One column: its name, and its categories in the order of the file unless it is numeric."""

    name: str
    categories: tuple[str, ...] | None


def read_arff(file: IO[bytes], *, path: str | Path) -> pd.DataFrame:
    """Read an ARFF file.

    Parameters
    ----------
    file
        The bytes, at their beginning.
    path
        For errors.

    Returns
    -------
    Numeric attributes as float64 (NaN = missing), nominal ones as categories in the order of their
    declaration.

    Raises
    ------
    DataError
        Naming the line: a keyword, type or value that is not known, a wrong number of fields, a
        sparse row, a name that occurs twice; or there is no @data, or no row.
    """
    lines = _decoded(file, path)
    attributes = _header(lines, path)
    parts = [_columns(block, attributes, path) for block in _blocks(lines)]
    if not parts:
        raise DataError("there are no rows after @data", where=path)
    columns: dict[str, object] = {}
    for i, attribute in enumerate(attributes):
        values = np.concatenate([part[i] for part in parts])
        for part in parts:
            part[i] = values[:0]
        if attribute.categories is None:
            columns[attribute.name] = values
        else:
            columns[attribute.name] = pd.Categorical.from_codes(
                values.astype(np.int64), categories=pd.Index(attribute.categories, dtype="str")
            )
    return pd.DataFrame(columns)


class _Row(NamedTuple):
    line: int
    text: str


def _decoded(file: IO[bytes], path: str | Path) -> Iterator[_Row]:
    """Lines that are neither empty nor comments."""
    for number, raw in enumerate(file, 1):
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip(_BLANKS)
        except UnicodeDecodeError:
            raise _wrong("is not UTF-8 text", path, number) from None
        if text and not text.startswith("%"):
            yield _Row(number, text)


def _header(lines: Iterator[_Row], path: str | Path) -> list[Attribute]:
    attributes: list[Attribute] = []
    number = 0
    for number, text in lines:
        keyword = re.split(r"[ \t]", text, maxsplit=1)[0]
        rest = text[len(keyword) :]
        match keyword.lower():
            case "@relation":
                continue
            case "@attribute":
                attributes.append(_attribute(rest, path, number))
            case "@data":
                names = [attribute.name for attribute in attributes]
                twice = [name for name in names if names.count(name) > 1]
                if twice:
                    raise _wrong(f"there are two attributes called {twice[0]!r}", path, number)
                if not attributes:
                    raise _wrong("no @attribute stands before @data", path, number)
                return attributes
            case _ if keyword.startswith("@"):
                allowed = "allowed: @relation, @attribute, @data"
                raise _wrong(f"the keyword {keyword!r} is not known", path, number, allowed)
            case _:
                raise _wrong(f"{_short(text)} stands before @data", path, number)
    raise DataError(
        "there is no @data" + (f" up to line {number}, the last" if number else ""),
        where=path,
        remedy="the file is cut off, or no ARFF",
    )


def _attribute(text: str, path: str | Path, line: int) -> Attribute:
    found = _NAME.fullmatch(text)
    if found is None or not found[4]:
        remedy = "as in: @attribute age numeric"
        raise _wrong("an attribute needs a name and a type", path, line, remedy)
    name = _unquoted(found[1], found[2], found[3])
    kind = found[4].strip(_BLANKS)
    # Behind the word may stand a range, as in real [0, 1], or a comment.
    word = re.split(r"[ \t\[%(]", kind, maxsplit=1)[0].lower()
    if word in _NUMERIC:
        return Attribute(name, None)
    if kind.startswith("{") and kind.endswith("}"):
        categories = [value for value, _ in _fields(kind[1:-1], path, line)]
        twice = [value for value in categories if categories.count(value) > 1]
        if twice:
            raise _wrong(f"{name!r} lists the category {twice[0]!r} twice", path, line)
        return Attribute(name, tuple(categories))
    what = f"{name!r} is of type {_short(kind)}"
    if word in _REFUSED:
        what += ", which is not read"
    raise _wrong(what, path, line, "allowed: numeric, real, integer, {categories}")


def _blocks(lines: Iterator[_Row]) -> Iterator[list[_Row]]:
    block: list[_Row] = []
    for row in lines:
        block.append(row)
        if len(block) == _BLOCK:
            yield block
            block = []
    if block:
        yield block


def _columns(
    block: list[_Row], attributes: Sequence[Attribute], path: str | Path
) -> list[np.ndarray]:
    """A block's columns: float64 values, or codes of categories (-1 = missing)."""
    wanted = len(attributes)
    plain: list[int] = []
    others: list[int] = []
    for i, (_, text) in enumerate(block):
        quoted = "'" in text or '"' in text or "\\" in text
        # A row of one column cannot be told from an empty line by the fast reader.
        if quoted or text[0] == "{" or text.count(",") != wanted - 1 or wanted == 1:
            others.append(i)
        else:
            plain.append(i)
    fast = _fast([block[i].text for i in plain], attributes) if plain else None
    if fast is None:
        plain, others = [], list(range(len(block)))
    slow = _slow([block[i] for i in others], attributes, path) if others else None
    if not others:
        assert fast is not None
        return fast
    out: list[np.ndarray] = []
    for j, attribute in enumerate(attributes):
        column = np.empty(len(block), np.float64 if attribute.categories is None else np.int64)
        if fast is not None:
            column[plain] = fast[j]
        assert slow is not None
        column[others] = slow[j]
        out.append(column)
    return out


def _fast(texts: list[str], attributes: Sequence[Attribute]) -> list[np.ndarray] | None:
    """Columns of rows without quotes; None when something in them is not as it should be."""
    text = "\n".join(texts)
    if " " in text or "\t" in text:
        text = re.sub(r"[ \t]*,[ \t]*", ",", text)
    names = [str(i) for i in range(len(attributes))]
    nominal = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    kinds = [pyarrow.float64() if a.categories is None else nominal for a in attributes]
    try:
        table = pyarrow.csv.read_csv(
            pyarrow.BufferReader(text.encode()),
            read_options=pyarrow.csv.ReadOptions(column_names=names, block_size=1 << 23),
            parse_options=pyarrow.csv.ParseOptions(quote_char=False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict(zip(names, kinds, strict=True)),
                null_values=["?"],
                strings_can_be_null=True,
            ),
        )
    except pyarrow.ArrowInvalid:
        return None
    if table.num_rows != len(texts):
        return None
    out: list[np.ndarray] = []
    for name, attribute in zip(names, attributes, strict=True):
        column = table[name]
        if attribute.categories is None:
            out.append(column.to_numpy())
            continue
        codes = _codes(column, attribute.categories)
        if codes is None:
            return None
        out.append(codes)
    return out


def _codes(
    column: pyarrow.ChunkedArray, categories: tuple[str, ...]
) -> Int64[np.ndarray, " rows"] | None:
    """Positions among the categories, -1 = missing; None when a value is none of them."""
    known = {category: code for code, category in enumerate(categories)}
    parts = []
    for chunk in column.chunks:
        found = chunk.dictionary.to_pylist()
        if not all(value in known for value in found):
            return None
        # The last entry answers for a missing value, whose index is filled with -1.
        table = np.array([*(known[value] for value in found), -1], np.int64)
        parts.append(table[chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False)])
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _slow(
    rows: list[_Row], attributes: Sequence[Attribute], path: str | Path
) -> list[Float64[np.ndarray, " rows"] | Int64[np.ndarray, " rows"]]:
    """The same columns, field by field; refuses what is not as it should be, naming the line."""
    known = [
        None if a.categories is None else {category: i for i, category in enumerate(a.categories)}
        for a in attributes
    ]
    out: list[list[float]] = [[] for _ in attributes]
    for line, text in rows:
        if text.startswith("{"):
            remedy = "write it dense: a value for every attribute"
            raise _wrong("the row is sparse, which is not read", path, line, remedy)
        fields = _fields(text, path, line)
        if len(fields) != len(attributes):
            raise _wrong(f"{len(fields)} fields, expected {len(attributes)}", path, line)
        for attribute, codes, (value, quoted), values in zip(
            attributes, known, fields, out, strict=True
        ):
            if value == "?" and not quoted:
                values.append(np.nan if codes is None else -1)
            elif codes is None:
                values.append(_number(value, attribute.name, path, line))
            elif value in codes:
                values.append(codes[value])
            else:
                raise _wrong(
                    f"{attribute.name!r} is {_short(value)}, which it does not list", path, line
                )
    return [
        np.array(values, np.float64 if codes is None else np.int64)
        for values, codes in zip(out, known, strict=True)
    ]


def _number(text: str, name: str, path: str | Path, line: int) -> float:
    try:
        if "_" in text:
            raise ValueError
        return float(text)
    except ValueError:
        what = f"{name!r} is {_short(text)}, not a number"
        raise _wrong(what, path, line, "a missing one is written ?") from None


def _fields(text: str, path: str | Path, line: int) -> list[tuple[str, bool]]:
    """Values between commas, and whether they were quoted."""
    fields: list[tuple[str, bool]] = []
    at, more = 0, True
    while more:
        found = _FIELD.match(text, at)
        if found is None:
            raise _wrong(f"a quote does not fit at {_short(text[at:])}", path, line)
        bare = found[3]
        fields.append((_unquoted(found[1], found[2], bare), bare is None))
        at, more = found.end(), found[4] == ","
    return fields


def _unquoted(single: str | None, double: str | None, bare: str | None) -> str:
    text = single if single is not None else double
    if text is None:
        return (bare or "").strip(_BLANKS)
    return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), text, flags=re.DOTALL)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def _wrong(what: str, path: str | Path, line: int, remedy: str = "") -> DataError:
    return DataError(what, where=f"{path}, line {line}", remedy=remedy)
