"""Numbers from files: NPY, NPZ, CSV and Parquet, by their name.

Sizes are checked against the file and against memory before anything is allocated, and nothing is
ever unpickled.
"""

from __future__ import annotations

import csv
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from jaxtyping import Num, Shaped

from jepa_core.errors import DataError
from jepa_core.files import must_be_content, npy_header

SUFFIXES = (".npy", ".npz", ".csv", ".tsv", ".parquet", ".pq")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_WRITTEN_AS_MISSING = ["", "NA", "N/A", "NaN", "nan", "NULL", "null", "None"]


@dataclass(frozen=True)
class Table:
    """Named columns of numbers, and columns beside them that are no features.

    Parameters
    ----------
    values
        float [rows, columns].
    beside
        Group and order columns, of any type.
    """

    names: tuple[str, ...]
    values: Num[np.ndarray, "rows columns"]
    beside: dict[str, Shaped[np.ndarray, " rows"]]


def suffix(path: Path) -> str:
    """Which of `SUFFIXES` a file has, once it is clear that the file is there and whole.

    Raises
    ------
    DataError
        It is not there, a folder, empty, a Git LFS pointer, or of no format that is read.
    """
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise DataError(
            "is of no format that is read", where=path, remedy=f"allowed: {', '.join(SUFFIXES)}"
        )
    must_be_content(path)
    return kind


def available_memory() -> int:
    """Bytes that can be allocated without swapping, as far as the system says."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):
        return 2**32


def must_fit(wanted: int, where: object) -> None:
    """Refuse what memory cannot hold.

    Raises
    ------
    DataError
        More than half of what is free is wanted: an analysis needs room beside its data.
    """
    free = available_memory()
    if wanted > free // 2:
        raise DataError(
            f"holds {wanted / 2**30:.3g} GiB of numbers, {free / 2**30:.3g} GiB of memory are free",
            where=where,
            remedy="give fewer rows or columns, or covariances (.npz with Sxx, Syx and n)",
        )


def numbers(array: Shaped[np.ndarray, "..."], where: object) -> Num[np.ndarray, "..."]:
    """The array, if it holds real numbers.

    Raises
    ------
    DataError
        It holds complex numbers, text or objects.
    """
    if array.dtype.kind == "c":
        raise DataError(
            "holds complex numbers",
            where=where,
            remedy="give real and imaginary parts as columns of their own",
        )
    if array.dtype.kind not in "biuf":
        raise DataError(f"holds {array.dtype}, not numbers", where=where, remedy="give numbers")
    return array


def read_npy(path: Path) -> Num[np.ndarray, "rows columns"]:
    """A matrix from a `.npy`, memory-mapped.

    Raises
    ------
    DataError
        It is none, is cut off, holds objects or complex numbers, or is no matrix.
    """
    try:
        with open(path, "rb") as file:
            _check_array(file, os.path.getsize(path), path)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise _unreadable("no NumPy array", error, path) from None
    return matrix(array, path)


def read_npz(path: Path) -> dict[str, Num[np.ndarray, "..."]]:
    """All arrays of an `.npz`, each checked before it is unpacked.

    Raises
    ------
    DataError
        It is none, is damaged, promises more than it has, or holds objects or complex numbers.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            must_fit(sum(member.file_size for member in members), path)
            for member in members:
                name = member.filename.removesuffix(".npy")
                where = f"{path}, array {name}"
                if name == member.filename:
                    raise DataError(f"{name!r} in it is no array", where=path, remedy="take it out")
                if name in arrays:
                    raise DataError("is there twice", where=where, remedy="keep one of them")
                with archive.open(member) as file:
                    _check_array(file, member.file_size, where)
                with archive.open(member) as file:
                    arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
    except (
        zipfile.BadZipFile,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        zlib.error,
    ) as error:
        raise _unreadable("no NumPy archive", error, path) from None
    return arrays


def _check_array(file: IO[bytes], size: int, where: object) -> None:
    """Refuse an array whose header promises what is not there, or what is not read."""
    _, dtype = npy_header(file, size, where)
    numbers(np.empty(0, dtype), where)


def matrix(array: Num[np.ndarray, "..."], where: object) -> Num[np.ndarray, "rows columns"]:
    """The array, if it has rows and columns.

    Raises
    ------
    DataError
        It has another number of axes, or no column.
    """
    if array.ndim != 2 or not array.shape[1]:
        raise DataError(
            f"has the shape {array.shape}",
            where=where,
            remedy="give a matrix: rows are samples, columns features",
        )
    return array


def column_names(path: Path) -> list[str]:
    """Columns of a CSV, TSV or Parquet file.

    Raises
    ------
    DataError
        Two have the same name, or one has none.
    """
    kind = path.suffix.lower()
    if kind in _SEPARATORS:
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                names = next(csv.reader(file, delimiter=_SEPARATORS[kind]), [])
        except (UnicodeDecodeError, csv.Error) as error:
            raise _unreadable("no text table", error, path) from None
    else:
        with _parquet(path) as file:
            names = list(file.schema_arrow.names)
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(
                f"two columns are called {name!r}", where=path, remedy="rename or drop one of them"
            )
        seen.add(name)
    if not names or "" in seen:
        raise DataError("a column has no name", where=path, remedy="name every column in line 1")
    return names


def read_table(
    path: Path, columns: Sequence[str] | None = None, beside: Sequence[str] = ()
) -> Table:
    """Columns of numbers from a CSV, TSV or Parquet file.

    Parameters
    ----------
    columns
        The features; None takes every column that is not in `beside`.
    beside
        Columns to read as they are: group, order.

    Raises
    ------
    DataError
        A column is missing, named twice or holds no numbers, or the file is damaged or too large.
    """
    names = column_names(path)
    for name in (*beside, *(columns or ())):
        require_column(name, names, path)
    chosen = list(columns) if columns else [name for name in names if name not in beside]
    for name in chosen:
        if chosen.count(name) > 1:
            raise DataError(f"column {name!r} is named twice", where=path, remedy="name it once")
        if name in beside:
            raise DataError(
                f"column {name!r} is a feature and a group or an order",
                where=path,
                remedy="leave it out of --columns",
            )
    wanted = [*chosen, *(name for name in beside if name not in chosen)]
    if path.suffix.lower() in _SEPARATORS:
        table = _read_text(path, wanted)
    else:
        with _parquet(path) as file:
            must_fit(8 * file.metadata.num_rows * len(wanted), path)
            table = _arrow(lambda: file.read(columns=wanted), path)
    values = np.empty((table.num_rows, len(chosen)))
    for i, name in enumerate(chosen):
        values[:, i] = _number_column(table.column(name), name, path)
    return Table(
        tuple(chosen),
        values,
        {name: table.column(name).to_pandas().to_numpy() for name in beside},
    )


def require_column(name: str, names: Sequence[str], where: object) -> None:
    """Refuse a name that is no column.

    Raises
    ------
    DataError
        Naming it and the columns there are.
    """
    if name not in names:
        listed = [*names] if len(names) <= 12 else [*names[:10], "...", names[-1]]
        raise DataError(
            f"no column is called {name!r}", where=where, remedy=f"there are: {', '.join(listed)}"
        )


def vector_columns(path: Path) -> list[str]:
    """Columns of a Parquet file whose cells are vectors: `view_0` of an embeddings file."""
    with _parquet(path) as file:
        return [field.name for field in file.schema_arrow if _is_vector(field.type)]


def vectors_size(path: Path, names: Sequence[str]) -> int:
    """Bytes that vector columns take as float64, from the file's metadata."""
    with _parquet(path) as file:
        meta = file.metadata
        total = 0
        for i in range(meta.num_columns):
            if meta.schema.column(i).path.split(".")[0] in names:
                total += sum(
                    meta.row_group(g).column(i).num_values for g in range(meta.num_row_groups)
                )
        return 8 * total


def vector_chunks(
    path: Path, names: Sequence[str], rows: int = 65_536
) -> Iterator[tuple[Num[np.ndarray, "rows dim"], ...]]:
    """Vector columns of a Parquet file as matrices, some rows at a time; missing is NaN.

    Raises
    ------
    DataError
        A column holds no vectors, vectors of different lengths, or the file is damaged.
    """
    all_names = column_names(path)
    with _parquet(path) as file:
        for name in names:
            require_column(name, all_names, path)
            kind = file.schema_arrow.field(name).type
            if not _is_vector(kind):
                raise DataError(
                    f"column {name!r} holds {kind}, not vectors of numbers",
                    where=path,
                    remedy="name two columns of vectors with --view-columns, "
                    "or a table's features with --columns",
                )
        widths: dict[str, int] = {}
        batches = file.iter_batches(batch_size=rows, columns=list(names))
        while True:
            batch = _arrow(lambda: next(batches, None), path)
            if batch is None:
                return
            yield tuple(_vectors(batch.column(name), name, widths, path) for name in names)


def _vectors(
    column: Any, name: str, widths: dict[str, int], path: Path
) -> Num[np.ndarray, "rows dim"]:
    missing = np.asarray(column.is_null())
    lengths = (
        np.full(len(column), column.type.list_size)
        if pa.types.is_fixed_size_list(column.type)
        else np.asarray(column.value_lengths().fill_null(0))
    )
    width = widths.setdefault(name, int(lengths[~missing][0]) if (~missing).any() else 0)
    if (lengths[~missing] != width).any() or not width:
        raise DataError(
            f"vectors of column {name!r} differ in length or have none",
            where=path,
            remedy="write vectors of one length",
        )
    flat = column.drop_null().flatten()
    values = np.full((len(column), width), np.nan)
    values[~missing] = flat.cast(pa.float64()).to_numpy(zero_copy_only=False).reshape(-1, width)
    return values


def _is_vector(kind: Any) -> bool:
    lists = (pa.types.is_fixed_size_list, pa.types.is_list, pa.types.is_large_list)
    return any(check(kind) for check in lists) and (
        pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)
    )


def _read_text(path: Path, columns: Sequence[str]) -> Any:
    # A number and its separator are two characters at least, and eight bytes in memory.
    must_fit(4 * os.path.getsize(path), path)
    import pyarrow.csv as text

    separator = _SEPARATORS[path.suffix.lower()]
    convert = text.ConvertOptions(
        include_columns=list(columns), null_values=_WRITTEN_AS_MISSING, strings_can_be_null=True
    )
    parse = text.ParseOptions(delimiter=separator)
    return _arrow(lambda: text.read_csv(path, parse_options=parse, convert_options=convert), path)


def _number_column(column: Any, name: str, path: Path) -> Num[np.ndarray, " rows"]:
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    real = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    if not any(check(kind) for check in real):
        raise DataError(
            f"column {name!r} holds {kind}, not numbers",
            where=path,
            remedy="name the features with --columns, or the column with --group or --order",
        )
    if pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    values: np.ndarray = column.cast(pa.float64()).to_numpy()
    return values


def _parquet(path: Path) -> Any:
    return _arrow(lambda: pyarrow.parquet.ParquetFile(path), path)


def _arrow(read: Any, path: Path) -> Any:
    try:
        return read()
    except (pa.ArrowException, OSError) as error:
        raise _unreadable("no table", error, path) from None


def _unreadable(what: str, error: Exception, path: Path) -> DataError:
    if isinstance(error, DataError):
        return error
    said = " ".join(str(error).split())[:200]
    return DataError(
        f"is {what} that can be read ({said})", where=path, remedy="get or write the file again"
    )
