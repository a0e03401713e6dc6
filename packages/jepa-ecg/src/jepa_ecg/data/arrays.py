"""Arrays of signals (`.npy`, `.npz`) and lists of files (`.csv`, `.parquet`) as sources."""

from __future__ import annotations

import csv
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int64, Shaped

from jepa_core.files import npy_header
from jepa_ecg.data.databases import LEADS
from jepa_ecg.data.errors import ECGFormatError, refuse_lfs_pointer
from jepa_ecg.data.leads import plan_leads
from jepa_ecg.data.source import GIVE_FS, Entry, Labels, ReadOptions, fold_number, read_wfdb
from jepa_ecg.data.wfdb_record import Record, finish

Layout = Literal["NTC", "NCT"]


@dataclass(frozen=True)
class Dump:
    """Many records in one array file, as a source.

    Attributes
    ----------
    path
        `.npy` of (records, time, leads), memory-mapped; or `.npz` with `data` (all samples, leads)
        and `sizes` (records,), which is read as a whole. Floating point, mV, NaN = missing.
    fs
        Sampling rate in Hz.
    leads
        Names of the leads in their order.
    layout
        "NCT": the `.npy` is (records, leads, time).
    gain
        Integers are refused unless this says how many of them are one mV.
    """

    path: str
    fs: float
    name: str
    leads: tuple[str, ...] = LEADS
    layout: Layout = "NTC"
    gain: float | None = None

    def entries(self) -> Iterator[Entry]:
        """Records by their index."""
        for row in range(len(self._open().sizes)):
            yield Entry(str(row), self.path, row)

    def read(self, entry: Entry, options: ReadOptions) -> tuple[Record, Labels]:
        """One record."""
        data, starts, sizes = self._open()
        if data.ndim == 2:
            raw = data[starts[entry.row] : starts[entry.row] + sizes[entry.row]]
        else:
            raw = data[entry.row].T if self.layout == "NCT" else data[entry.row]
        where = f"{self.path}, record {entry.id}"
        return array_record(raw, self.fs, self.leads, options, gain=self.gain, file=where), {}

    def _open(self) -> _Arrays:
        arrays = _load(self.path, _changed(self.path))
        shape, n = arrays.data.shape, len(self.leads)
        axis = 1 if self.layout == "NCT" or len(shape) == 2 else 2
        if shape[axis] != n:
            like = [i for i, size in enumerate(shape) if i and size == n]
            raise ECGFormatError(
                f"the shape is {shape}, where axis {axis} should be {n} leads; "
                + (f"axis {like[0]} looks like leads" if like else f"no axis has {n}"),
                file=self.path,
                remedy="--layout NCT is (records, leads, time)" if like else "give --array-leads",
            )
        _refuse_integers(arrays.data, self.gain, self.path)
        return arrays


class _Arrays(NamedTuple):
    """`data` is (records, ...), or (samples, leads) cut by `starts` and `sizes`."""

    data: Shaped[np.ndarray, ...]
    starts: Int64[np.ndarray, " records"]
    sizes: Int64[np.ndarray, " records"]


def _changed(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError as error:
        raise ECGFormatError(f"cannot be read: {error}", file=path) from None


@lru_cache(maxsize=2)
def _load(path: str, changed: int) -> _Arrays:
    """`changed` makes a rewritten file another one."""
    refuse_lfs_pointer(path)
    try:
        if path.endswith(".npz"):
            with np.load(path) as file:
                for member in ("data.npy", "sizes.npy"):
                    size = file.zip.getinfo(member).file_size
                    with file.zip.open(member) as head:
                        npy_header(head, size, member)
                data, sizes = file["data"], file["sizes"].astype(np.int64)
            if data.ndim != 2 or sizes.ndim != 1 or sizes.min(initial=0) < 0:
                raise ValueError(f"data is {data.shape}, sizes {sizes.shape}")
            if sizes.sum() != len(data):
                raise ValueError(f"sizes sum to {sizes.sum()}, data has {len(data)} samples")
            return _Arrays(data, np.cumsum(sizes) - sizes, sizes)
        data = np.load(path, mmap_mode="r")
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ECGFormatError(f"cannot be read: {error}", file=path) from None
    if data.ndim != 3:
        like = [i for i, size in enumerate(data.shape) if size == len(LEADS)]
        hint = f"; axis {like[0]} looks like leads" if like else ""
        raise ECGFormatError(
            f"{data.ndim} axes {data.shape}, 3 are needed: records, time, leads{hint}", file=path
        )
    return _Arrays(data, np.zeros(len(data), np.int64), np.full(len(data), data.shape[1]))


def _refuse_integers(data: Shaped[np.ndarray, ...], gain: float | None, file: object) -> None:
    if data.dtype.kind not in "fiu":
        raise ECGFormatError(f"the array is of {data.dtype}, not of numbers", file=file)
    if data.dtype.kind in "iu" and gain is None:
        raise ECGFormatError(
            f"these are integers ({data.dtype}), not mV",
            file=file,
            field="gain",
            remedy="give --gain: how many units are one mV",
        )


def array_record(
    raw: Shaped[np.ndarray, "time leads"],
    fs: float,
    names: Sequence[str],
    options: ReadOptions,
    *,
    gain: float | None = None,
    file: object = "",
) -> Record:
    """Samples in memory as a record.

    Parameters
    ----------
    raw
        mV, NaN = missing; integers only with `gain`, the units of one mV.
    fs
        Sampling rate in Hz.
    names
        Of the columns.
    options
        Leads wanted, and what may be derived or filled.
    file
        For the error.

    Raises
    ------
    ECGFormatError
        It holds an infinity, integers without a gain, or leads are missing.
    """
    if raw.ndim != 2 or raw.shape[1] != len(names):
        raise ECGFormatError(f"the shape is {raw.shape}, not (time, {len(names)})", file=file)
    _refuse_integers(raw, gain, file)
    signal = raw if gain is None else raw / np.float64(gain)
    if np.isinf(signal).any():
        time, lead = np.argwhere(np.isinf(signal))[0]
        raise ECGFormatError(f"lead {names[lead]} is infinite at sample {time}", file=file)
    plan = plan_leads(names, options.leads, derive=options.derive, fill=options.fill, file=file)
    leads, missing, notes = finish(signal, plan, fill=options.fill, file=file)
    return Record(leads, fs, plan.leads, None, missing, warnings=plan.warnings + notes)


@dataclass(frozen=True)
class FileList:
    """A table of files as a source.

    Attributes
    ----------
    path
        `.csv` or `.parquet`. Column `path`: a WFDB record, or a `.npy` of (time, leads) in mV;
        relative ones start at the table. Optional columns: `id`, `patient`, `fold` (1..10) and
        `labels` (separated by `;`, the task "labels").
    fs, leads
        Sampling rate in Hz and lead names of the `.npy` files.
    """

    path: str
    name: str
    fs: float | None = None
    leads: tuple[str, ...] = LEADS

    def entries(self) -> Iterator[Entry]:
        """Rows of the table."""
        for number, row in enumerate(self._rows()):
            own = row.get("id") or row["path"]
            labels: Labels = {}
            if "labels" in row:
                found = {label.strip() for label in (row["labels"] or "").split(";")}
                labels = {"labels": sorted(found - {""})}
            fold = row.get("fold")
            yield Entry(
                own,
                os.path.join(os.path.dirname(self.path), row["path"]),
                number,
                row.get("patient") or "",
                fold_number(fold, file=self.path, record=own) if fold else 0,
                labels,
            )

    def read(self, entry: Entry, options: ReadOptions) -> tuple[Record, Labels]:
        """One record."""
        if not entry.path.endswith(".npy"):
            return read_wfdb(entry, options)
        if self.fs is None:
            raise ECGFormatError(
                "a .npy does not say its sampling rate", file=entry.path, remedy=GIVE_FS
            )
        refuse_lfs_pointer(entry.path)
        try:
            raw = np.load(entry.path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise ECGFormatError(f"cannot be read: {error}", file=entry.path) from None
        record = array_record(raw, self.fs, self.leads, options, file=entry.path)
        return record, entry.labels or {}

    def _rows(self) -> Iterator[Mapping[str, str]]:
        refuse_lfs_pointer(self.path)
        rows = _parquet_rows if self.path.endswith(".parquet") else _csv_rows
        try:
            for number, row in enumerate(rows(self.path), 1):
                if not row.get("path"):
                    raise ECGFormatError(f"row {number} has no path", file=self.path, field="path")
                yield row
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ECGFormatError(f"cannot be read: {error}", file=self.path) from None


def _csv_rows(path: str) -> Iterator[dict[str, str]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        yield from csv.DictReader(file)


def _parquet_rows(path: str) -> Iterator[dict[str, str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield {name: _text(value) for name, value in row.items()}
    except pyarrow.ArrowInvalid as error:
        raise ECGFormatError(f"is no Parquet file: {error}", file=path) from None


def _text(value: Any) -> str:
    return "" if value is None else str(value)
