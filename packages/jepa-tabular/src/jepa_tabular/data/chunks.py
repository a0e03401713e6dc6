"""A table that need not fit in memory, some rows at a time, each column of one type throughout.

The first rows decide on the types. A row in which a text stands among numbers is left out and
reported, never a reason to turn a column of millions of numbers into text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow
from jaxtyping import Bool, Int64

from jepa_core.errors import DataError
from jepa_tabular.columns import Kind
from jepa_tabular.data.delimited import Delimited, Lines, Skipped
from jepa_tabular.data.files import (
    array_frame,
    load_table,
    open_delimited,
    open_npy,
    open_parquet,
    suffix,
    to_frame,
)

_LARGEST = float(np.finfo(np.float32).max)

# A text column is one of numbers if at least this share of its first values are.
_MOSTLY = 0.9


class Chunk(NamedTuple):
    """Consecutive rows of a file.

    Attributes
    ----------
    frame
        The rows that can be read.
    numbers
        Where each is: lines of CSV and TSV, elsewhere rows, both from 1.
    skipped
        The others, with the reason.
    position
        Bytes of the file up to here, for a progress bar; an estimate where it is packed.
    """

    frame: pd.DataFrame
    numbers: Int64[np.ndarray, " rows"]
    skipped: list[Skipped]
    position: int


def read_types(path: Path, rows: int) -> dict[str, pyarrow.DataType] | None:
    """Types of the columns as the first `rows` rows have them; None where no type must be told.

    Raises
    ------
    DataError
        As `load_table`.
    """
    kind = suffix(path)
    if kind in (".csv", ".tsv"):
        file = open_delimited(path)
        lines = next((lines for lines in file.blocks(rows) if len(lines.numbers)), None)
        if lines is None:
            raise DataError("the file names columns and has no rows", where=path)
        table = _inferred(file, lines)
        return {name: _settled(table[name]) for name in table.column_names}
    if kind in (".parquet", ".pq"):
        with open_parquet(path) as table:
            types = table.schema_arrow
        return {field.name: _values(field.type) for field in types}
    return None


def read_chunks(
    path: Path, rows: int, types: dict[str, pyarrow.DataType] | None, first: int = 0
) -> Iterator[Chunk]:
    """The rows of a file, `rows` at a time, from chunk `first` on; columns as in `types`.

    Raises
    ------
    DataError
        As `load_table`, or the file has not the columns of `types`.
    """
    kind, size = suffix(path), path.stat().st_size
    if kind in (".csv", ".tsv"):
        file = open_delimited(path)
        wanted = _as_listed(types, file.columns, path)
        for lines in islice(file.blocks(rows), first, None):
            yield _typed(file, lines, wanted)
    elif kind in (".parquet", ".pq"):
        yield from islice(_parquet(path, rows, types, size), first, None)
    elif kind == ".npy":
        array = open_npy(path)
        for start in range(first * rows, len(array), rows):
            part = array[start : start + rows]
            yield _whole(array_frame(part, path), start, size * (start + len(part)) // len(array))
    else:
        frame = load_table(path)
        for start in range(first * rows, len(frame), rows):
            some = frame.iloc[start : start + rows]
            yield _whole(some, start, size * (start + len(some)) // len(frame))


def sound(
    chunk: Chunk,
    path: Path,
    kinds: Mapping[str, Kind],
    *,
    missing: str,
    on_error: Literal["stop", "skip"],
) -> Chunk:
    """The rows of a chunk that can be encoded; the others are listed, or stop everything.

    Parameters
    ----------
    kinds
        Kind of each feature column.
    missing
        Policy for missing numbers: under "error" they are errors, under "drop" such rows are left
        out whatever `on_error` says.

    Raises
    ------
    DataError
        Naming the first line that cannot be used, if `on_error` is "stop".
    """
    frame, skipped = chunk.frame, list(chunk.skipped)
    dropped: list[Skipped] = []
    bad: Bool[np.ndarray, " rows"] = np.zeros(len(frame), bool)
    for name, kind in kinds.items():
        if kind == "categorical":
            continue
        series = frame[name]
        if missing in ("error", "drop"):
            absent = series.isna().to_numpy() & ~bad
            reasons = [Skipped(n, f"{name!r} is missing") for n in chunk.numbers[absent].tolist()]
            (dropped if missing == "drop" else skipped).extend(reasons)
            bad |= absent
        if kind == "numerical" and series.dtype.kind == "f":
            values = series.to_numpy()
            large = (np.abs(values) > _LARGEST) & ~bad
            for row in np.flatnonzero(large):
                reason = f"{name!r} is {values[row]:g}, too large for float32"
                skipped.append(Skipped(int(chunk.numbers[row]), reason))
            bad |= large
    if skipped and on_error == "stop":
        line, reason = min(skipped)
        remedy = "--on-error skip leaves such rows out and lists them"
        if reason.endswith("is missing"):
            remedy = f"--missing indicator, mean or median keeps such rows, {remedy}"
        raise DataError(reason, where=f"{path}, line {line}", remedy=remedy)
    kept = frame if not bad.any() else frame[~bad].reset_index(drop=True)
    return Chunk(kept, chunk.numbers[~bad], sorted(skipped + dropped), chunk.position)


def _parquet(
    path: Path, rows: int, types: dict[str, pyarrow.DataType] | None, size: int
) -> Iterator[Chunk]:
    with open_parquet(path) as file:
        wanted = _as_listed(types, file.schema_arrow.names, path)
        schema = pyarrow.schema(list(wanted.items()))
        start = 0
        try:
            for batch in file.iter_batches(rows, columns=list(wanted)):
                table = pyarrow.Table.from_batches([batch]).select(list(wanted))
                frame = to_frame(table.cast(schema, safe=False), path)
                done = start + len(frame)
                yield _whole(frame, start, size * done // max(file.metadata.num_rows, 1))
                start = done
        except (pyarrow.ArrowException, OSError) as error:
            what = f"cannot be read after row {start} ({' '.join(str(error).split())[:200]})"
            raise DataError(what, where=path) from None


def _whole(frame: pd.DataFrame, start: int, position: int) -> Chunk:
    return Chunk(frame, np.arange(start + 1, start + 1 + len(frame)), [], position)


def _as_listed(
    types: dict[str, pyarrow.DataType] | None, columns: list[str], path: Path
) -> dict[str, pyarrow.DataType]:
    assert types is not None, "the first file of this format was read for its types"
    if sorted(types) != sorted(columns):
        other = sorted(set(types) ^ set(columns))
        what = f"has not the columns of the first file: {', '.join(map(repr, other[:5]))}"
        raise DataError(what, where=path)
    return {name: types[name] for name in columns}


def _inferred(file: Delimited, lines: Lines) -> pyarrow.Table:
    try:
        return file.parse(lines)
    except pyarrow.ArrowInvalid as error:
        what = f"cannot be parsed: {' '.join(str(error).split())[:200]}"
        raise DataError(what, where=file.path) from None


def _settled(column: pyarrow.ChunkedArray) -> pyarrow.DataType:
    """One of int64, double, timestamp, bool and string."""
    kind, types = column.type, pyarrow.types
    if types.is_integer(kind):
        return kind
    if types.is_floating(kind) or types.is_null(kind):
        return pyarrow.float64()
    if types.is_timestamp(kind) or types.is_date(kind):
        return pyarrow.timestamp("us")
    if types.is_boolean(kind):
        return pyarrow.bool_()
    texts = column.drop_null().to_pandas()
    if len(texts) and pd.to_numeric(texts, errors="coerce").notna().mean() >= _MOSTLY:
        return pyarrow.float64()
    return pyarrow.string()


def _values(kind: pyarrow.DataType) -> pyarrow.DataType:
    # The dictionary of one batch is not that of the next.
    return kind.value_type if pyarrow.types.is_dictionary(kind) else kind


def _typed(file: Delimited, lines: Lines, types: dict[str, pyarrow.DataType]) -> Chunk:
    try:
        frame = to_frame(file.parse(lines, types), file.path)
        return Chunk(frame, lines.numbers, lines.skipped, lines.position)
    except pyarrow.ArrowInvalid:
        pass
    # Some value is not of its type: find out which rows, in the slow way.
    texts = file.parse(lines, dict.fromkeys(types, pyarrow.string())).to_pandas()
    bad: Bool[np.ndarray, " rows"] = np.zeros(len(texts), bool)
    skipped = list(lines.skipped)
    columns: dict[str, pd.Series] = {}
    for name, kind in types.items():
        columns[name], what = _converted(texts[name], kind)
        odd = texts[name].notna() & columns[name].isna()
        for row in np.flatnonzero(odd & ~bad):
            value = texts[name].iloc[row]
            skipped.append(Skipped(int(lines.numbers[row]), f"{name!r} is {value!r}, not {what}"))
        bad |= odd.to_numpy()
    frame = pd.DataFrame(columns)[~bad].reset_index(drop=True)
    return Chunk(frame, lines.numbers[~bad], sorted(skipped), lines.position)


def _converted(texts: pd.Series, kind: pyarrow.DataType) -> tuple[pd.Series, str]:
    """Texts as values of a type, missing where they are none, and the type's name."""
    if pyarrow.types.is_floating(kind) or pyarrow.types.is_integer(kind):
        return pd.to_numeric(texts, errors="coerce").astype(np.float64), "a number"
    if pyarrow.types.is_timestamp(kind):
        times = pd.to_datetime(texts, errors="coerce", format="ISO8601")
        return times.astype("datetime64[us]"), "a date"
    if pyarrow.types.is_boolean(kind):
        known = {"true": True, "false": False, "1": True, "0": False}
        return texts.str.strip().str.lower().map(known), "true or false"
    return texts, "text"
