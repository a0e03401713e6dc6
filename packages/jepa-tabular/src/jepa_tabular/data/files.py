"""Tables from files: CSV, TSV, ARFF, Parquet, NPZ and NPY, by their name, as a DataFrame.

What an `.npz` must hold: either one array; or features `X` [rows, columns] with or without labels
`y` [rows]; or several such pairs with a common ending, `X_train` and `y_train`, `X_val` and
`y_val`, `X_test` and `y_test`, whose rows are put one after the other, in that order. Upper and
lower case are the same. Columns of arrays are called x0, x1, ..., labels `y`.
"""

from __future__ import annotations

import difflib
import gzip
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
from jaxtyping import Shaped

from jepa_core.errors import DataError
from jepa_core.files import must_be_content, npy_header
from jepa_tabular.data.arff import read_arff
from jepa_tabular.data.delimited import Delimited

SUFFIXES = (".csv", ".tsv", ".arff", ".parquet", ".pq", ".npz", ".npy")
_PACKED = (".csv", ".tsv", ".arff")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
# Pairs of arrays are put in this order; others follow in that of the file.
_PARTS = ("", "_train", "_val", "_valid", "_validation", "_test")


def load_table(path: str | os.PathLike[str], *, label: str | None = None) -> pd.DataFrame:
    """Read a table.

    Parameters
    ----------
    path
        `.csv`, `.tsv`, `.arff` (these also as `.gz`), `.parquet`, `.pq`, `.npz` or `.npy`.
    label
        A column that must be there; it stays among the others.

    Returns
    -------
    Its rows in the file's order. Numbers are numbers, ISO dates and times are datetimes, nominal
    attributes are categories, everything else is text; missing values are NaN, NaT or None.
    `attrs["parts"]` of an `.npz` with several pairs has the number of rows of each.

    Raises
    ------
    DataError
        The file is not there, is empty, is a Git LFS pointer, is of another format than its name
        says or malformed (naming the line where there are lines), holds pickled objects, or has no
        such label.
    """
    file = Path(path)
    kind = suffix(file)
    try:
        if kind in _SEPARATORS:
            frame = _delimited(file, _SEPARATORS[kind])
        elif kind == ".arff":
            with _opened(file) as source:
                frame = read_arff(source, path=file)
        elif kind == ".npz":
            frame = _npz(file)
        elif kind == ".npy":
            frame = array_frame(open_npy(file), file)
        else:
            with open_parquet(file) as table:
                frame = to_frame(table.read(), file)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=file) from None
    if frame.empty:
        raise DataError("there are no rows", where=file)
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise DataError(f"two columns are called {twice[0]!r}", where=file)
    if label is not None:
        require_columns([label], list(frame.columns), file)
    return frame


def suffix(path: Path) -> str:
    """Which of `SUFFIXES` a file has, once it is clear that the file is there and whole.

    Raises
    ------
    DataError
        It is not there, a folder, empty, a Git LFS pointer, or of no format that is read.
    """
    names = [end.lower() for end in path.suffixes[-2:]]
    packed = bool(names) and names[-1] == ".gz"
    kind = names[0] if packed and len(names) == 2 else names[-1] if names else ""
    if kind not in SUFFIXES or (packed and kind not in _PACKED):
        allowed = ", ".join([*SUFFIXES, *(f"{end}.gz" for end in _PACKED)])
        raise DataError("is no table by its name", where=path, remedy=f"allowed: {allowed}")
    must_be_content(path)
    return kind


def open_delimited(path: Path) -> Delimited:
    """A CSV or TSV file, by its name."""
    return Delimited(path, _SEPARATORS[suffix(path)])


def require_columns(names: Sequence[str], columns: Sequence[str], where: object) -> None:
    """Refuse names that are no columns.

    Raises
    ------
    DataError
        Naming the first one, and the columns.
    """
    for name in names:
        if name not in columns:
            close = difflib.get_close_matches(name, [str(column) for column in columns], n=1)
            listed = [str(column) for column in columns]
            listed = listed if len(listed) <= 12 else [*listed[:10], "...", listed[-1]]
            hint = f"did you mean {close[0]}? " if close else ""
            remedy = f"{hint}allowed: {', '.join(listed)}"
            raise DataError(f"no column is called {name!r}", where=where, remedy=remedy)


def to_frame(table: pyarrow.Table, path: Path) -> pd.DataFrame:
    """An Arrow table as a DataFrame of numbers, texts, categories, booleans and datetimes.

    Raises
    ------
    DataError
        A column holds lists, structures or bytes.
    """
    fields = [_plain(field, path) for field in table.schema]
    table = table.cast(pyarrow.schema(fields, metadata=table.schema.metadata))
    frame: pd.DataFrame = table.to_pandas(split_blocks=True, self_destruct=True)
    return frame


def _plain(field: pyarrow.Field, path: Path) -> pyarrow.Field:
    kind, types = field.type, pyarrow.types
    if types.is_null(kind) or types.is_decimal(kind) or types.is_float16(kind):
        return pyarrow.field(field.name, pyarrow.float64())
    if types.is_time(kind):
        return pyarrow.field(field.name, pyarrow.string())
    if types.is_date(kind):
        return pyarrow.field(field.name, pyarrow.timestamp("s"))
    if types.is_timestamp(kind):
        return pyarrow.field(field.name, pyarrow.timestamp(kind.unit))
    values = kind.value_type if types.is_dictionary(kind) else kind
    known = (types.is_string, types.is_large_string, types.is_boolean)
    if not (types.is_integer(values) or types.is_floating(values) or any(t(values) for t in known)):
        what = f"column {field.name!r} is of type {kind}, not of numbers, text or times"
        raise DataError(what, where=path, remedy="leave it out, or turn it into columns of its own")
    return field


def open_parquet(path: Path) -> pyarrow.parquet.ParquetFile:
    """A Parquet file.

    Raises
    ------
    DataError
        It is none, or damaged.
    """
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        what = f"is no Parquet file that can be read ({_line(error)})"
        raise DataError(what, where=path) from None


def open_npy(path: Path) -> Shaped[np.ndarray, "rows columns"]:
    """A `.npy`, memory-mapped.

    Raises
    ------
    DataError
        It is none, damaged, cut off, holds objects, or is not two-dimensional.
    """
    try:
        with open(path, "rb") as file:
            _check_array(file, os.path.getsize(path), path)
        array = np.asarray(np.load(path, mmap_mode="r"))
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        what = f"is no NumPy array that can be read ({_line(error)})"
        raise DataError(what, where=path) from None
    return _matrix(array, path)


def array_frame(
    x: Shaped[np.ndarray, "rows columns"],
    path: Path,
    y: Shaped[np.ndarray, " rows"] | None = None,
) -> pd.DataFrame:
    """Features and labels as columns x0, x1, ... and y."""
    columns: dict[str, Any] = {f"x{i}": x[:, i] for i in range(x.shape[1])}
    if y is not None:
        columns["y"] = y
    return pd.DataFrame(columns)


def _opened(path: Path) -> IO[bytes]:
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else open(path, "rb")  # type: ignore[return-value]


def _delimited(path: Path, separator: str) -> pd.DataFrame:
    file = Delimited(path, separator)
    for lines in file.blocks():
        if lines.skipped:
            line, reason = lines.skipped[0]
            raise DataError(reason, where=f"{path}, line {line}")
        try:
            return to_frame(file.parse(lines), path)
        except pyarrow.ArrowInvalid as error:
            raise DataError(f"cannot be parsed: {_line(error)}", where=path) from None
    raise DataError("the file names columns and has no rows", where=path)


def _npz(path: Path) -> pd.DataFrame:
    try:
        with zipfile.ZipFile(path) as packed:
            for info in packed.infolist():
                if not info.filename.endswith(".npy"):
                    raise DataError(f"{info.filename!r} in it is no array", where=path)
                with packed.open(info) as file:
                    _check_array(file, info.file_size, f"{path}, array {info.filename[:-4]}")
        with np.load(path) as arrays:
            return _pairs({name: arrays[name] for name in arrays.files}, path)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        what = f"is no NumPy archive that can be read ({_line(error)})"
        raise DataError(what, where=path) from None


def _pairs(arrays: Mapping[str, Shaped[np.ndarray, "..."]], path: Path) -> pd.DataFrame:
    names = {name.lower(): name for name in arrays}
    parts = [name[1:] for name in names if name == "x" or name.startswith("x_")]
    if len(arrays) == 1 and not parts:
        return array_frame(_matrix(next(iter(arrays.values())), path), path)
    if not parts:
        raise DataError(
            f"holds {', '.join(arrays)}",
            where=path,
            remedy="allowed: one array, X with or without y, or pairs such as X_train and y_train",
        )
    parts.sort(key=lambda part: _PARTS.index(part) if part in _PARTS else len(_PARTS))
    labelled = [part for part in parts if f"y{part}" in names]
    if labelled and labelled != parts:
        missing = next(part for part in parts if part not in labelled)
        raise DataError(f"X{missing} is there and y{missing} is not", where=path)
    frames = []
    for part in parts:
        x = _matrix(arrays[names[f"x{part}"]], path)
        y = arrays[names[f"y{part}"]] if labelled else None
        if y is not None and y.shape != (len(x),):
            what = f"X{part} has {len(x)} rows, y{part} is {y.shape}"
            raise DataError(what, where=path)
        frames.append(array_frame(x, path, y))
    widths = {frame.shape[1] for frame in frames}
    if len(widths) > 1:
        raise DataError("its parts have not the same number of columns", where=path)
    if len(frames) == 1:
        return frames[0]
    whole = pd.concat(frames, ignore_index=True)
    whole.attrs["parts"] = {
        part.removeprefix("_"): len(frame) for part, frame in zip(parts, frames, strict=True)
    }
    return whole


def _matrix(array: Shaped[np.ndarray, "..."], path: Path) -> Shaped[np.ndarray, "rows columns"]:
    if array.ndim != 2:
        what = f"an array of shape {array.shape}, where rows and columns are needed"
        raise DataError(what, where=path)
    return array


def _check_array(file: IO[bytes], size: int, where: object) -> None:
    """Refuse an array whose header promises what is not there, or what is not read."""
    _, dtype = npy_header(file, size, where)
    if dtype.kind not in "biufUM":
        raise DataError(f"an array of {dtype}, not of numbers or text", where=where)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
