"""PTB-XL: metadata, the label tasks, records.

Wagner et al., "PTB-XL, a large publicly available electrocardiography dataset", Scientific Data 7,
154 (2020); tasks as in Strodthoff et al., "Deep Learning for ECG Analysis" (2020).
"""

from __future__ import annotations

import ast
import csv
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float32, Int8, Int32, UInt8

from jepa_ecg.data.errors import ECGFormatError, refuse_lfs_pointer
from jepa_ecg.data.source import (
    Entry,
    Labels,
    ReadOptions,
    fold_number,
    read_wfdb,
)
from jepa_ecg.data.wfdb_record import Record

Task = Literal["all", "diagnostic", "subdiagnostic", "superdiagnostic", "form", "rhythm", "ST-MEM"]
TASKS: tuple[Task, ...] = get_args(Task)


class LabelMatrix(NamedTuple):
    """Labels of the records that have some.

    Attributes
    ----------
    ecg_id
        Records, in file order.
    y
        0 or 1.
    classes
        Sorted by code point; only those that occur.
    fold
        1..10.
    """

    ecg_id: Int32[np.ndarray, " records"]
    y: UInt8[np.ndarray, "records classes"]
    classes: np.ndarray
    fold: Int8[np.ndarray, " records"]


@dataclass(frozen=True)
class Statements:
    """`scp_statements.csv`: code -> label, per task that does not use the codes as they are."""

    by_task: Mapping[str, Mapping[str, str]]
    codes: frozenset[str]

    def labels(self, codes: Iterable[str], task: str) -> list[str]:
        """Labels of a record with these codes, sorted; their likelihood is not asked for."""
        if task == "all":
            return sorted(set(codes))
        table = self.by_task["superdiagnostic" if task == "ST-MEM" else task]
        found = sorted({table[code] for code in codes if code in table})
        return found if task != "ST-MEM" or len(found) == 1 else []


def read_statements(path: str | os.PathLike[str]) -> Statements:
    """Read `scp_statements.csv`.

    Raises
    ------
    ECGFormatError
        The file or a column is missing.
    """
    tables: dict[str, dict[str, str]] = {task: {} for task in TASKS[1:-1]}
    codes = set()
    for row in _rows(path, ("", "diagnostic", "form", "rhythm", "diagnostic_class")):
        code = row[""]
        codes.add(code)
        for task in ("diagnostic", "form", "rhythm"):
            if _is_one(row[task]):
                tables[task][code] = code
        if _is_one(row["diagnostic"]):
            tables["superdiagnostic"][code] = row["diagnostic_class"]
            tables["subdiagnostic"][code] = row["diagnostic_subclass"]
    return Statements(tables, frozenset(codes))


def ptbxl_labels(
    database_csv: str | os.PathLike[str], statements_csv: str | os.PathLike[str], task: Task
) -> LabelMatrix:
    """Labels of one task. A code counts when it is there, whatever its likelihood.

    Parameters
    ----------
    database_csv, statements_csv
        `ptbxl_database.csv` and `scp_statements.csv`.
    task
        "all" codes, the "diagnostic", "form" or "rhythm" ones, their diagnostic sub- or
        superclass, or "ST-MEM": superclass of the records that have exactly one.

    Raises
    ------
    ECGFormatError
        A column is missing, `scp_codes` is no literal, a fold is none.
    """
    if task not in TASKS:
        raise ECGFormatError(f"{task!r} is no task of PTB-XL; there are {', '.join(TASKS)}")
    statements = read_statements(statements_csv)
    records, labels, folds = [], [], []
    unknown: set[str] = set()
    for row in _rows(database_csv, ("ecg_id", "scp_codes", "strat_fold")):
        codes = _codes(row, database_csv)
        unknown.update(codes.keys() - statements.codes)
        found = statements.labels(codes, task)
        if found:
            records.append(_ecg_id(row, database_csv))
            labels.append(found)
            folds.append(fold_number(row["strat_fold"], file=database_csv, record=row["ecg_id"]))
    _warn_unknown(unknown)
    y, classes = label_matrix(labels)
    return LabelMatrix(np.array(records, np.int32), y, classes, np.array(folds, np.int8))


def label_matrix(
    labels: Iterable[Iterable[str]],
) -> tuple[UInt8[np.ndarray, "records classes"], np.ndarray]:
    """0/1 matrix and the classes, sorted by code point."""
    sets = [set(found) for found in labels]
    classes = sorted(set().union(*sets))
    column = {name: i for i, name in enumerate(classes)}
    y = np.zeros((len(sets), len(classes)), np.uint8)
    for i, found in enumerate(sets):
        y[i, [column[name] for name in found]] = 1
    return y, np.array(classes, dtype=str)


@dataclass(frozen=True)
class PTBXL:
    """A PTB-XL folder as a source; both versions (21,837 and 21,799 records) are alike.

    Attributes
    ----------
    root
        Folder of `ptbxl_database.csv`.
    fs
        500 or 100: which of the two files of a record.
    """

    root: str
    fs: float = 500
    name: str = "ptb-xl"

    def entries(self) -> Iterator[Entry]:
        """Rows of the database, with the labels of every task."""
        root = Path(self.root)
        database = root / "ptbxl_database.csv"
        if self.fs not in (100, 500):
            raise ECGFormatError(
                f"PTB-XL has records of 100 and 500 Hz, not {self.fs:g}", file=database, field="fs"
            )
        column = "filename_lr" if self.fs == 100 else "filename_hr"
        statements = read_statements(root / "scp_statements.csv")
        unknown: set[str] = set()
        for row in _rows(database, ("ecg_id", "patient_id", "scp_codes", "strat_fold", column)):
            codes = _codes(row, database)
            unknown.update(codes.keys() - statements.codes)
            yield Entry(
                id=str(_ecg_id(row, database)),
                path=str(root / row[column]),
                patient=row["patient_id"].removesuffix(".0"),
                fold=fold_number(row["strat_fold"], file=database, record=row["ecg_id"]),
                labels={task: statements.labels(codes, task) for task in TASKS if task != "ST-MEM"},
            )
        _warn_unknown(unknown)

    def read(self, entry: Entry, options: ReadOptions) -> tuple[Record, Labels]:
        """One record."""
        return read_wfdb(entry, options)


class PTBXL500(NamedTuple):
    """PTB-XL records 1..500 at 100 Hz."""

    ecg_id: Int32[np.ndarray, " records"]
    signal: Float32[np.ndarray, "records time leads"]
    fs: float
    leads: tuple[str, ...]


def read_ptbxl500(path: str | os.PathLike[str]) -> PTBXL500:
    """Read the lossless `.npz` of 500 PTB-XL records (int16 first differences along time).

    Parameters
    ----------
    path
        Arrays `delta` int16 (records, leads, time), `ecg_id`, `fs`, `gain` (per mV), `baseline`,
        `leads`.

    Returns
    -------
    Signals in mV, with the sampling rate in Hz and the lead names.
    """
    refuse_lfs_pointer(path)
    try:
        with np.load(path) as file:
            digital = np.cumsum(file["delta"], axis=-1, dtype=np.int16)
            signal = digital.transpose(0, 2, 1).astype(np.float32)
            signal -= np.float32(file["baseline"])
            signal /= np.float32(file["gain"])
            return PTBXL500(
                file["ecg_id"], signal, float(file["fs"]), tuple(file["leads"].tolist())
            )
    except (OSError, KeyError, ValueError) as error:
        raise ECGFormatError(f"is not the 500-record file: {error}", file=path) from None


def _rows(path: str | os.PathLike[str], columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    refuse_lfs_pointer(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            absent = [column for column in columns if column not in (reader.fieldnames or ())]
            if absent:
                raise ECGFormatError(
                    f"there is no column {', '.join(map(repr, absent))}", file=path
                )
            yield from reader
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ECGFormatError(f"cannot be read: {error}", file=path) from None


def _codes(row: Mapping[str, str], path: object) -> dict[str, float]:
    try:
        codes = ast.literal_eval(row["scp_codes"])
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        codes = None
    if not isinstance(codes, dict) or not all(isinstance(code, str) for code in codes):
        raise ECGFormatError(
            f"the codes of record {row['ecg_id']} are not {{code: likelihood}}: "
            f"{str(row['scp_codes'])[:60]!r}",
            file=path,
            field="scp_codes",
        )
    return codes


def _ecg_id(row: Mapping[str, str], path: object) -> int:
    try:
        return int(float(row["ecg_id"]))
    except (ValueError, OverflowError):
        raise ECGFormatError(f"{row['ecg_id']!r} is no number", file=path, field="ecg_id") from None


def _is_one(value: str) -> bool:
    return value in ("1", "1.0")


def _warn_unknown(codes: set[str]) -> None:
    if codes:
        warnings.warn(
            f"not in scp_statements.csv, so only in the task 'all': {', '.join(sorted(codes))}",
            stacklevel=3,
        )
