"""`jepa tabular data check|build|fetch`: from files to a corpus."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

from jepa_core.config import check
from jepa_core.errors import DataError, JepaError
from jepa_core.report.table import Cell, Table
from jepa_tabular.columns import Kind, kinds
from jepa_tabular.data.build import CorpusConfig, build_corpus
from jepa_tabular.data.chunks import read_chunks, read_types, sound
from jepa_tabular.data.delimited import Skipped
from jepa_tabular.data.fetch import fetch
from jepa_tabular.data.files import require_columns
from jepa_tabular.preprocess import TablePreprocessor
from jepa_tabular.presets import ColumnsConfig
from jepa_tabular.targets import warn_leaks

# Columns and problems are shown this often; a note says how many there are.
_SHOWN = 200
_CHUNK = 65_536


@dataclass(frozen=True)
class Check:
    """Read a table as a build would and say what is wrong; nothing is written.

    Exits with 2 when the table cannot be encoded as it is.
    """

    input: tyro.conf.Positional[Path]
    """A table: .csv, .tsv, .arff (these also as .gz), .parquet, .npz or .npy."""
    label: str | None = None
    """Column of the labels."""
    id: str | None = None
    """Column that names the rows."""
    categorical: tuple[str, ...] = ()
    """Columns of numbers that are categories, in addition to texts, booleans and dictionaries."""
    drop: tuple[str, ...] = ()
    """Columns to leave out."""
    columns: ColumnsConfig = ColumnsConfig()
    """How columns become numbers."""

    def __post_init__(self) -> None:
        check(self)

    def __call__(self) -> None:
        types = read_types(self.input, _CHUNK)
        chunks = list(read_chunks(self.input, _CHUNK, types))
        names = [str(name) for name in chunks[0].frame.columns]
        extra = [name for name in (self.label, self.id) if name is not None]
        require_columns([*extra, *self.categorical, *self.drop], names, self.input)
        features = [name for name in names if name not in extra and name not in self.drop]
        found = _Findings()
        frame = pd.concat([chunk.frame for chunk in chunks], ignore_index=True)
        known = {name: self._kind(frame[name], found) for name in features}
        _columns_table(frame, known).print()
        # The fit speaks of whole columns: it sees the rows that are left.
        missing = self.columns.missing
        read = [sound(c, self.input, known, missing=missing, on_error="skip") for c in chunks]
        good = pd.concat([chunk.frame for chunk in read], ignore_index=True)
        for reason, lines in _grouped(chunk.skipped for chunk in read).items():
            dropped = missing == "drop" and reason.endswith("is missing")
            more = f" ({len(lines)} rows, this is the first)" if len(lines) > 1 else ""
            found.add(f"line {lines[0]}", "left out" if dropped else "error", reason + more)
        if len(good):
            self._fit(good, known, found)
        if self.label is not None:
            self._label(good, features, found)
        if found.lines:
            found.table().print()
        if found.errors:
            raise DataError(
                f"{found.errors} problem{'s' if found.errors > 1 else ''}",
                where=self.input,
                remedy="mend them, or build with --on-error skip, --missing, --categorical, --drop",
            )

    def _kind(self, series: pd.Series, found: _Findings) -> Kind:
        if series.name in self.categorical:
            return "categorical"
        try:
            return kinds(series.to_frame())[0]
        except JepaError as error:
            found.error(error)
            return "categorical"

    def _fit(self, frame: pd.DataFrame, known: dict[str, Kind], found: _Findings) -> None:
        categorical = [name for name, kind in known.items() if kind == "categorical"]
        preprocessor = TablePreprocessor(self.columns, categorical_features=categorical)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            try:
                preprocessor.fit(frame[list(known)])
            except JepaError as error:
                found.error(error)
        found.warn(caught)

    def _label(self, frame: pd.DataFrame, features: list[str], found: _Findings) -> None:
        labels = frame[self.label]
        missing, distinct = int(labels.isna().sum()), labels.nunique()
        found.add(str(self.label), "label", f"{distinct} different values, {missing} missing")
        if distinct < 2:
            found.add(str(self.label), "error", "a label of one value predicts nothing")
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            there = labels.notna()
            warn_leaks(frame.loc[there, features], labels[there])
        found.warn(caught)


@dataclass
class _Findings:
    """What is wrong, and where."""

    lines: list[list[Cell]] = field(default_factory=list)
    errors: int = 0

    def add(self, where: str, kind: str, text: str) -> None:
        self.lines.append([where, kind, text])
        self.errors += kind == "error"

    def error(self, error: JepaError) -> None:
        remedy = f"; {error.remedy}" if error.remedy else ""
        self.add(_column(error.where), "error", f"{error.what}{remedy}")

    def warn(self, caught: list[warnings.WarningMessage]) -> None:
        for each in caught:
            where, _, text = str(each.message).partition(": ")
            self.add(_column(where), "warning", text)

    def table(self) -> Table:
        more = len(self.lines) - _SHOWN
        notes = (f"{more} more are not shown.",) if more > 0 else ()
        return Table("what was found", ("where", "kind", "text"), self.lines[:_SHOWN], notes)


def _grouped(skipped: Iterable[list[Skipped]]) -> dict[str, list[int]]:
    """Lines of each reason, in the order of the first."""
    lines: dict[str, list[int]] = {}
    for line, reason in itertools.chain.from_iterable(skipped):
        lines.setdefault(reason, []).append(line)
    return lines


def _column(where: str) -> str:
    return where.removeprefix("column ").strip("'")


def _columns_table(frame: pd.DataFrame, known: dict[str, Kind]) -> Table:
    rows: list[list[Cell]] = []
    for name, kind in list(known.items())[:_SHOWN]:
        series = frame[name]
        missing, distinct = int(series.isna().sum()), int(series.nunique())
        if kind == "categorical":
            common = series.mode()
            text = f"most often {str(common.iloc[0])[:30]}" if len(common) else ""
        elif kind == "datetime":
            text = f"{series.min()} to {series.max()}"
        else:
            values = series.to_numpy(np.float64, na_value=np.nan)
            text = f"{np.nanmin(values):g} to {np.nanmax(values):g}" if distinct else ""
        rows.append([name, kind, missing, distinct, text])
    more = len(known) - _SHOWN
    notes = (f"{more} more columns are not shown.",) if more > 0 else ()
    columns = ("column", "kind", "missing", "different", "values")
    return Table(f"{len(frame)} rows, {len(known)} features", columns, rows, notes)


@dataclass(frozen=True)
class Build:
    """Build a corpus: encoded rows, memory-mapped, from files that need not fit in memory.

    Scaling and categories are learned from all rows in a first pass. Rows that cannot be read stop
    the build, or are left out and listed in skipped.csv (--on-error skip). A build that was stopped
    goes on with the same command and --resume.
    """

    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Files with the same columns; see `jepa tabular data check --help`."""
    out: Path
    """The corpus folder."""
    resume: bool = False
    """Go on with a build that was stopped."""
    overwrite: bool = False
    """Replace the corpus in the folder."""
    config: CorpusConfig = CorpusConfig()
    """What the corpus is made of."""

    def __post_init__(self) -> None:
        check(self)

    def __call__(self) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            report = build_corpus(
                self.inputs,
                self.out,
                self.config,
                resume=self.resume,
                overwrite=self.overwrite,
            )
        for each in caught:
            print(f"warning: {each.message}")
        print(f"{self.out}: {report.kept} rows")
        if report.skipped:
            print(f"{report.skipped} rows left out, see {self.out / 'skipped.csv'}")


@dataclass(frozen=True)
class Fetch:
    """Download a public table: adult, helena, jannis, aloi, california or higgs.

    It comes from OpenML and is put into the layout of the official program. A table that is there
    is kept, and a download that was stopped goes on. Cite the table.
    """

    name: tyro.conf.Positional[str]
    """Which table."""
    out: Path
    """Folder to put the file into."""
    base_url: str | None = None
    """A mirror of OpenML."""

    def __post_init__(self) -> None:
        check(self)

    def __call__(self) -> None:
        report = fetch(self.name, self.out, base_url=self.base_url)
        how = f"{report.received / 1e6:,.1f} MB downloaded" if report.fetched else "was there"
        print(f"{report.path}: {how}")
