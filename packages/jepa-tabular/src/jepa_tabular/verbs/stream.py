"""Rows in, results out, a part at a time: what `embed` and `predict` share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
from jaxtyping import Float32

from jepa_core.config import check
from jepa_core.corpus import is_corpus
from jepa_core.errors import DataError, RunError
from jepa_core.output import NpyWriter, list_skipped, refuse_existing, whole_file
from jepa_core.progress import Progress
from jepa_tabular.data.chunks import read_chunks, read_types
from jepa_tabular.data.corpus import TableCorpus
from jepa_tabular.data.delimited import Skipped
from jepa_tabular.data.files import require_columns, suffix
from jepa_tabular.preprocess import TablePreprocessor

# Rows read, computed and written at a time; bounds memory.
_CHUNK = 1 << 14
# Rows that decide on the types of a file's columns.
_FIRST = 100_000


@dataclass(frozen=True)
class Input:
    """Rows to work on, and where results go."""

    input: Path
    """A table (CSV, TSV, ARFF, Parquet, NPZ, NPY) with the columns of the training rows; columns
    that training did not have are ignored. `embed` also takes a corpus of `jepa tabular data
    build`."""
    out: Path
    """The file to write."""
    id: str = ""
    """Column that names the rows; by default they are called by line (CSV, TSV) or row, from 1."""
    overwrite: bool = False
    """Replace the file."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Part:
    """Some rows, ready for an encoder.

    Parameters
    ----------
    first
        Number of the first one among all rows that could be used, from 0.
    ids
        Names.
    quality
        Share of the columns that are neither missing nor a category that training did not see.
    x
        Encoded.
    frame
        As read; None of a corpus.
    """

    first: int
    ids: list[str]
    quality: Float32[np.ndarray, " rows"]
    x: Float32[np.ndarray, "rows columns"]
    frame: pd.DataFrame | None


class _Writer(Protocol):
    def write(self, table: pa.Table) -> None: ...

    def close(self) -> None: ...


def write_results(
    io: Input, preprocessor: TablePreprocessor, score: Callable[[Part], pa.Table]
) -> None:
    """Stream rows through `score` into a file, named by its suffix: .parquet, .csv or .npy.

    Columns id and quality come before those of `score`; an .npy holds the first of its columns
    alone. The file appears under its name when it is complete; rows left out are listed beside it.

    Raises
    ------
    RunError
        The file exists, or cannot be written.
    DataError
        Rows that the preprocessing refuses, or none that it can use.
    """
    refuse_existing(io.out, io.overwrite)
    kind = io.out.suffix
    if kind not in _WRITERS:
        raise RunError(
            "is no file that can be written", where=io.out, remedy=f"allowed: {', '.join(_WRITERS)}"
        )
    source = _Corpus(io, preprocessor) if is_corpus(io.input) else _File(io, preprocessor)
    rows = 0
    with whole_file(io.out, overwrite=io.overwrite) as beside, ExitStack() as stack:
        writer: _Writer | None = None
        progress = stack.enter_context(Progress("bytes", source.size))
        for part in source.parts():
            columns = {
                "id": pa.array(part.ids, pa.string()),
                "quality": pa.array(part.quality, pa.float32()),
            }
            found = score(part)
            table = pa.table(columns | dict(zip(found.column_names, found.columns, strict=True)))
            if writer is None:
                writer = stack.enter_context(closing(_WRITERS[kind](beside, table.schema)))
            writer.write(table)
            rows += len(part.ids)
            progress.update(source.position, f"{rows:,} rows")
        listing = list_skipped(io.out, ("line", "reason"), source.skipped)
    if not rows:
        raise DataError("no row could be used", where=listing, remedy="it says why")
    if source.skipped:
        print(f"{len(source.skipped):,} rows left out, see {listing}")
    print(f"{io.out}: {rows:,} rows")


def quality(
    preprocessor: TablePreprocessor,
    x: Float32[np.ndarray, "rows columns"],
    frame: pd.DataFrame | None,
) -> Float32[np.ndarray, " rows"]:
    """Share of a row's columns that are neither missing nor of an unknown category.

    Encoded rows alone do not show numbers that were filled in.
    """
    good = ~np.isnan(x)
    if frame is not None:
        good &= ~frame.isna().to_numpy()
    for column, levels in zip(preprocessor.shape_.categorical, preprocessor.levels_, strict=True):
        codes = x[:, column]
        good[:, column] &= codes >= levels.first
        if levels.missing:
            good[:, column] &= codes < levels.first + len(levels.categories)
    return good.mean(1, dtype=np.float32)


def feature_frame(
    frame: pd.DataFrame, preprocessor: TablePreprocessor, where: object
) -> pd.DataFrame:
    """The columns of the training rows, in their order; of training rows without names, all.

    Raises
    ------
    DataError
        One of them is not there.
    """
    names = list(getattr(preprocessor, "feature_names_in_", ()))
    require_columns(names, list(frame.columns), where)
    if names:
        return frame[names]
    return frame.set_axis(range(frame.shape[1]), axis=1)


class _File:
    """Rows of a table in a file."""

    def __init__(self, io: Input, preprocessor: TablePreprocessor) -> None:
        self._io, self._preprocessor = io, preprocessor
        suffix(io.input)
        self.size, self.position = io.input.stat().st_size, 0
        self.skipped: list[Skipped] = []

    def parts(self) -> Iterator[Part]:
        io, preprocessor = self._io, self._preprocessor
        first = 0
        for chunk in read_chunks(io.input, _CHUNK, read_types(io.input, _FIRST)):
            self.position = chunk.position
            self.skipped += chunk.skipped
            if not len(chunk.frame):
                continue
            if io.id:
                require_columns([io.id], list(chunk.frame.columns), io.input)
            ids = chunk.frame[io.id] if io.id else pd.Series(chunk.numbers)
            without = chunk.frame.drop(columns=[io.id]) if io.id else chunk.frame
            frame = feature_frame(without, preprocessor, io.input)
            x = preprocessor.transform(frame)
            kept = np.arange(len(frame))
            if preprocessor.kept_ is not None:
                left = np.flatnonzero(~preprocessor.kept_)
                self.skipped += [
                    Skipped(int(n), "a number is missing") for n in chunk.numbers[left]
                ]
                kept = np.flatnonzero(preprocessor.kept_)
            if not len(kept):
                continue
            frame = frame.iloc[kept]
            shown = frame.iloc[:, list(preprocessor.positions_)]
            names = ids.iloc[kept].astype(str).tolist()
            yield Part(first, names, quality(preprocessor, x, shown), x, frame)
            first += len(kept)


class _Corpus:
    """Rows of a corpus."""

    def __init__(self, io: Input, preprocessor: TablePreprocessor) -> None:
        self._corpus = TableCorpus(io.input)
        if not _equal(self._corpus.preprocessor, preprocessor):
            raise DataError(
                "the corpus was encoded with columns, categories or scales other than the model's",
                where=io.input,
                remedy="give the table it was built from",
            )
        if io.id:
            raise DataError("a corpus has ids of its own", where=io.input, remedy="drop --id")
        self._preprocessor = preprocessor
        self.size, self.position = self._corpus.x.nbytes, 0
        self.skipped: list[Skipped] = []

    def parts(self) -> Iterator[Part]:
        corpus = self._corpus
        for first in range(0, len(corpus), _CHUNK):
            x = np.array(corpus.x[first : first + _CHUNK])
            ids = [str(name) for name in corpus.ids[first : first + len(x)]]
            self.position += x.nbytes
            yield Part(first, ids, quality(self._preprocessor, x, None), x, None)


def _equal(one: TablePreprocessor, other: TablePreprocessor) -> bool:
    (own, arrays), (others, other_arrays) = one.to_state(), other.to_state()
    return own == others and all(
        np.array_equal(value, other_arrays[name], equal_nan=True) for name, value in arrays.items()
    )


class _CSV:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        self._header = True

    def write(self, table: pa.Table) -> None:
        table.to_pandas().to_csv(self._file, index=False, header=self._header)
        self._header = False

    def close(self) -> None:
        self._file.close()


class _Npy:
    """The first column of results alone."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = path.open("wb")
        self._rows = NpyWriter(self._file, "<f4", (schema.field(2).type.list_size,))

    def write(self, table: pa.Table) -> None:
        for chunk in table.column(2).chunks:
            self._rows.append(chunk.flatten().to_numpy().reshape(len(chunk), -1))

    def close(self) -> None:
        self._rows.finish()
        self._file.close()


_WRITERS: dict[str, Callable[[Path, pa.Schema], _Writer]] = {
    ".parquet": pyarrow.parquet.ParquetWriter,
    ".csv": _CSV,
    ".npy": _Npy,
}
