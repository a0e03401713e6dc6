"""The folder of a corpus: what a domain makes of its users' files once, and reads ever after.

corpus.json      numbers, settings, statistics; written last: with it the corpus is complete
index.parquet    a row a record
*.npy            the values, memory-mapped by readers
skipped.csv      what was left out, and why
building.json    what the build was asked for: a resumed one must ask for the same
parts/           what a build has finished so far; gone with its end
"""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from jepa_core.config import read_json
from jepa_core.errors import DataError, Interrupted, RunError
from jepa_core.output import NpyWriter
from jepa_core.run import fsync, must_equal, write_json

_OLD = ("index.parquet", "skipped.csv")


def is_corpus(path: str | os.PathLike[str]) -> bool:
    """Whether a complete corpus lies there."""
    return (Path(path) / "corpus.json").exists() and (Path(path) / "index.parquet").exists()


def read_info(path: Path, domain: str, version: int) -> dict[str, Any]:
    """What corpus.json says.

    Parameters
    ----------
    path
        The folder.
    domain
        Whose corpus it should be.
    version
        The format that its readers know.

    Raises
    ------
    DataError
        No complete corpus lies there, or one of another format.
    """
    if not is_corpus(path):
        begun = (path / "building.json").exists()
        what = "the building of this corpus has not come to its end" if begun else "is no corpus"
        build = f"`jepa {domain} data build`"
        remedy = f"{build} with --resume goes on" if begun else f"{build} makes one"
        raise DataError(what, where=path, remedy=remedy)
    info: dict[str, Any] = read_json(path / "corpus.json")
    if info.get("format") != version:
        what = f"this corpus has the format {info.get('format')!r}, not {version}"
        raise DataError(what, where=path, remedy="build it again")
    return info


def mapped(path: Path) -> np.ndarray:
    """An array of a corpus, memory-mapped.

    Raises
    ------
    DataError
        It is not there, cut off, or no array.
    """
    try:
        # Without the memmap class, whose bookkeeping costs more than a small read itself.
        return np.asarray(np.load(path, mmap_mode="r"))
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"cannot be read: {error}", where=path, remedy="build the corpus again"
        ) from None


def read_column(path: Path, name: str) -> np.ndarray:
    """One column of the index, a value a record."""
    return pyarrow.parquet.read_table(path / "index.parquet", columns=[name])[name].to_numpy()


def prepare(
    folder: Path,
    asked: Mapping[str, Any],
    values: Sequence[str],
    *,
    resume: bool,
    overwrite: bool,
) -> bool:
    """Make a folder ready for a build.

    Parameters
    ----------
    folder
        Must not exist, or be empty, unless resumed or overwritten.
    asked
        Format, settings and sources, JSON-able.
    values
        Patterns of the files, besides the common ones, that a build writes: they and nothing else
        are deleted with an old corpus.

    Returns
    -------
    Whether the corpus in it is already complete.

    Raises
    ------
    RunError
        The folder is in use, is no corpus, or was begun with other settings.
    OSError
        It cannot be written.
    """
    begun, parts = folder / "building.json", folder / "parts"
    if folder.exists() and any(folder.iterdir()):
        if not (begun.exists() or is_corpus(folder)):
            raise RunError("the folder is not empty and no corpus", where=folder)
        if resume and begun.exists():
            must_equal(read_json(begun), asked, where=begun)
            if is_corpus(folder):
                return True
            parts.mkdir(exist_ok=True)
            return False
        if not overwrite:
            remedy = "add --resume or --overwrite"
            raise RunError("there is a corpus already", where=folder, remedy=remedy)
        # What an interrupted deletion leaves is neither complete nor, but for the parts, finished;
        # building.json, which says that all this is ours, is there until it is replaced.
        (folder / "corpus.json").unlink(missing_ok=True)
        if parts.exists():
            shutil.rmtree(parts)
        for pattern in (*_OLD, *values):
            for path in folder.glob(pattern):
                path.unlink()
    parts.mkdir(parents=True, exist_ok=True)
    write_json(begun, asked)
    return False


def part_path(folder: Path, number: int, suffix: str = ".json") -> Path:
    """File of a part: what a step of a build has finished."""
    return folder / "parts" / f"{number:06d}{suffix}"


def read_part(folder: Path, number: int) -> dict[str, Any] | None:
    """A part; None while that step is not finished."""
    try:
        part: dict[str, Any] = json.loads(part_path(folder, number).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return part


@contextmanager
def values_file(path: Path, dtype: str) -> Iterator[NpyWriter]:
    """An .npy of one axis, written beside its place and renamed when the block ends.

    There is none if it has no value.
    """
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        values = NpyWriter(file, dtype)
        yield values
        values.finish()
        os.fsync(file.fileno())
    if values.rows:
        os.replace(partial, path)
    else:
        partial.unlink()
    fsync(path.parent)


class IndexWriter:
    """The rows of index.parquet and the lines of skipped.csv."""

    def __init__(self, rows: pyarrow.parquet.ParquetWriter, lines: Any) -> None:
        self._rows, self._lines = rows, lines

    def rows(self, table: pyarrow.Table) -> None:
        """Records that are kept."""
        self._rows.write_table(table)

    def skipped(self, lines: Sequence[Sequence[object]]) -> None:
        """What was left out, with reasons."""
        self._lines.writerows(lines)


@contextmanager
def index_files(
    folder: Path, schema: pyarrow.Schema, skipped: Sequence[str]
) -> Iterator[IndexWriter]:
    """index.parquet and skipped.csv, written beside their places and renamed when the block ends.

    Parameters
    ----------
    folder
        The corpus.
    schema
        Of the index.
    skipped
        Names of the columns of skipped.csv.
    """
    places = folder / "index.parquet", folder / "skipped.csv"
    beside = [path.with_name(path.name + ".partial") for path in places]
    with (
        pyarrow.parquet.ParquetWriter(beside[0], schema) as rows,
        open(beside[1], "w", newline="", encoding="utf-8") as file,
    ):
        lines = csv.writer(file)
        lines.writerow(skipped)
        yield IndexWriter(rows, lines)
    for path, place in zip(beside, places, strict=True):
        os.replace(path, place)


def finish(folder: Path, info: Mapping[str, Any]) -> None:
    """Say that the corpus is complete, and clear up."""
    fsync(folder)
    write_json(folder / "corpus.json", info)
    shutil.rmtree(folder / "parts", ignore_errors=True)


@contextmanager
def building(folder: Path) -> Iterator[None]:
    """Turn what the disk raises during a build, and Ctrl-C, into one line.

    Raises
    ------
    RunError
        The disk is full, or the folder cannot be written.
    Interrupted
        Ctrl-C; what is finished stays.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what, remedy = "the disk is full", "free some space and add --resume"
        else:
            what = f"cannot be written: {error.strerror or error}"
            remedy = "check free space and permissions, then add --resume"
        raise RunError(what, where=error.filename or folder, remedy=remedy) from error
    except KeyboardInterrupt:
        remedy = "the same command with --resume goes on"
        raise Interrupted("interrupted", where=folder, remedy=remedy) from None
