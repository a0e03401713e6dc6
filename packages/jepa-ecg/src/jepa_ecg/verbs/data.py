"""`jepa ecg data check|build|fetch`: from files to a corpus."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jepa_core.config import Range, check
from jepa_core.errors import ConfigError, JepaError
from jepa_core.progress import Progress
from jepa_core.report.table import Cell, Table
from jepa_ecg.data.build import CorpusConfig, build_corpus
from jepa_ecg.data.databases import LEADS
from jepa_ecg.data.errors import ECGFormatError
from jepa_ecg.data.fetch import fetch
from jepa_ecg.data.source import ReadOptions, Source, open_source

# Problems of one kind are shown this often; the count says how many there are.
_SHOWN = 20


@dataclass(frozen=True)
class Arrays:
    """What .npy and .npz files do not say of themselves."""

    array_leads: tuple[str, ...] = LEADS
    """Names of the leads in arrays, in their order."""
    layout: Literal["NTC", "NCT"] = "NTC"
    """Axes of a .npy of records: (records, time, leads) or (records, leads, time)."""
    gain: Annotated[float, Range(gt=0)] | None = None
    """Units of one mV in arrays of integers."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Check:
    """Read every record as a build would and say what is wrong; nothing is written.

    Exits with 2 when a record cannot be read.
    """

    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders or files: PTB-XL, MIMIC-IV-ECG, CODE-15, any folder of WFDB records, a single record
    (.hea), .npy or .npz arrays, .csv or .parquet lists of files."""
    fs: Annotated[float, Range(gt=0)] | None = None
    """Sampling rate of arrays (Hz); of PTB-XL, 100 or 500."""
    leads: tuple[str, ...] = LEADS
    """Leads that every record must have."""
    derive: bool = False
    """Compute missing III, aVR, aVL, aVF from I and II."""
    arrays: Arrays = Arrays()
    """Arrays."""

    def __post_init__(self) -> None:
        check(self)

    def __call__(self) -> None:
        options = ReadOptions(self.leads, self.derive)
        counts: Counter[str] = Counter()
        rates: Counter[str] = Counter()
        labels: Counter[str] = Counter()
        patients: set[tuple[str, str]] = set()
        seconds = 0.0
        problems: list[list[Cell]] = []
        for source in open_sources(self.inputs, self.fs, self.arrays):
            entries = list(source.entries())
            with Progress(f"reading {source.name}", len(entries)) as progress:
                for number, entry in enumerate(entries, 1):
                    progress.update(number)
                    try:
                        record, found = source.read(entry, options)
                    except (JepaError, OSError) as error:
                        counts["unreadable"] += 1
                        problems.append([source.name, entry.id, "unreadable", _reason(error)])
                        continue
                    counts["readable"] += 1
                    counts["missing samples"] += int(record.missing.sum())
                    seconds += len(record.signal) / record.fs
                    rates[f"{record.fs:g} Hz"] += 1
                    labels.update(f"labelled, {task}" for task, names in found.items() if names)
                    if entry.patient:
                        patients.add((source.name, entry.patient))
                    problems += [
                        [source.name, entry.id, "warning", warning] for warning in record.warnings
                    ]
        rows: list[list[Cell]] = [
            ["readable", counts["readable"]],
            ["unreadable", counts["unreadable"]],
            ["patients", len(patients) or None],
            ["hours", f"{seconds / 3600:.2f}"],
            ["missing samples", counts["missing samples"]],
        ]
        rows += [[name, count] for name, count in (rates.most_common() + sorted(labels.items()))]
        Table("records", ("what", "count"), rows).print()
        if problems:
            more = len(problems) - _SHOWN
            notes = (f"{more} more are not shown.",) if more > 0 else ()
            Table(
                "what was found", ("source", "record", "kind", "text"), problems[:_SHOWN], notes
            ).print()
        if not counts["readable"] + counts["unreadable"]:
            raise ECGFormatError("there is no record", file=", ".join(map(str, self.inputs)))
        if counts["unreadable"]:
            raise ECGFormatError(
                f"{counts['unreadable']} of {counts['readable'] + counts['unreadable']} records "
                "cannot be read",
                remedy="download or mend them, or build with --on-error skip, which lists them",
            )


@dataclass(frozen=True)
class Build:
    """Build a corpus: one sampling rate, one lead order, memory-mapped; resumable.

    Bad and missing records are errors, or are left out and listed in skipped.csv (--on-error skip).
    A build that was stopped goes on with the same command and --resume.
    """

    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders or files, one source each; see `jepa ecg data check --help`."""
    out: Path
    """The corpus folder."""
    names: tuple[str, ...] = ()
    """Names of the sources, in order; by default those of the data set or the folder."""
    source_fs: Annotated[float, Range(gt=0)] | None = None
    """Sampling rate of arrays (Hz); of PTB-XL, which of its two rates."""
    jobs: Annotated[int, Range(ge=1)] = 1
    """Processes; the corpus does not depend on their number."""
    resume: bool = False
    """Go on with a build that was stopped."""
    overwrite: bool = False
    """Replace the corpus in the folder."""
    arrays: Arrays = Arrays()
    """Arrays."""
    config: CorpusConfig = CorpusConfig()
    """What the corpus is made of."""

    def __post_init__(self) -> None:
        check(self)

    def __call__(self) -> None:
        sources = open_sources(self.inputs, self.source_fs, self.arrays, self.names)
        total = sum(sum(1 for _ in source.entries()) for source in sources)
        done = 0
        with Progress("building", total) as progress:

            def advance(records: int) -> None:
                nonlocal done
                done += records
                progress.update(done)

            report = build_corpus(
                sources,
                self.out,
                self.config,
                n_jobs=self.jobs,
                resume=self.resume,
                overwrite=self.overwrite,
                progress=advance,
            )
        print(f"{self.out}: {report.kept} records at {self.config.fs:g} Hz")
        if report.skipped:
            print(f"{report.skipped} records left out, see {self.out / 'skipped.csv'}")


@dataclass(frozen=True)
class Fetch:
    """Download a public data set: ptb-xl, challenge-2021 or mimic-iv-ecg.

    Files that are there and have the right checksum are kept, so the same command goes on after a
    stop. Mind the terms of the data set, and cite it.
    """

    name: tyro.conf.Positional[str]
    """Which data set."""
    out: Path
    """Folder to put the files into, in the data set's own layout."""
    select: tuple[str, ...] = ()
    """Parts to download, such as records100 of ptb-xl; all by default."""
    base_url: str | None = None
    """A mirror to take instead of PhysioNet."""
    jobs: Annotated[int, Range(ge=1)] = 4
    """Connections at a time."""

    def __post_init__(self) -> None:
        check(self)

    def __call__(self) -> None:
        report = fetch(
            self.name, self.out, select=self.select, base_url=self.base_url, jobs=self.jobs
        )
        size = report.received / 1e6
        print(
            f"{report.folder}: {report.fetched} files downloaded ({size:,.1f} MB), "
            f"{report.kept} were there"
        )


def open_sources(
    inputs: Sequence[Path],
    fs: float | None,
    arrays: Arrays = Arrays(),
    names: Sequence[str] = (),
) -> list[Source]:
    """The sources at these places.

    Raises
    ------
    ConfigError
        Not as many names as inputs, or no input.
    ECGFormatError
        Nothing that can be read lies at one of them.
    """
    if not inputs:
        raise ConfigError("no input is given", remedy="name folders or files")
    if names and len(names) != len(inputs):
        raise ConfigError(f"{len(names)} names for {len(inputs)} inputs", where="--names")
    told = {"leads": arrays.array_leads, "layout": arrays.layout, "gain": arrays.gain}
    sources: list[Source] = []
    for path, name in zip(inputs, names or ("",) * len(inputs), strict=True):
        source: Any = open_source(path, name=name, fs=fs)
        own = {field.name for field in dataclasses.fields(source)}
        told_here = {key: value for key, value in told.items() if key in own}
        sources.append(dataclasses.replace(source, **told_here))
    return sources


def _reason(error: JepaError | OSError) -> str:
    """An error's text for a table that names the record already."""
    if not isinstance(error, ECGFormatError):
        return str(error)
    line = f"line {error.line}: " if error.line else ""
    return f"{line}{error.what}"
