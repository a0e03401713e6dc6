"""Build a corpus: stream records from sources, shard by shard, resumable, with a list of failures.

Shards are independent of each other, so a corpus depends neither on the number of processes nor on
where an earlier build stopped.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import pyarrow
import pyarrow.parquet
from jaxtyping import Float64

from jepa_core.config import read_json, to_dict
from jepa_core.errors import DataError, RunError
from jepa_core.jobs import in_order
from jepa_core.run import must_equal, write_json
from jepa_ecg.data.corpus import FORMAT, CorpusSource, is_corpus, shard_name
from jepa_ecg.data.databases import DATABASES
from jepa_ecg.data.shard import Block, CorpusConfig, digest, read_part, write_shard
from jepa_ecg.data.source import Source, refuse_missing

__all__ = ["BuildReport", "CorpusConfig", "build_corpus"]

_SCHEMA = pyarrow.schema(
    [
        ("id", pyarrow.string()),
        ("source", pyarrow.string()),
        ("shard", pyarrow.int32()),
        ("start", pyarrow.int64()),
        ("length", pyarrow.int64()),
        ("fs", pyarrow.float64()),
        ("scale", pyarrow.float32()),
        ("n_missing", pyarrow.int64()),
        ("flat", pyarrow.string()),
        ("warnings", pyarrow.string()),
        ("patient", pyarrow.string()),
        ("fold", pyarrow.int8()),
        ("labels", pyarrow.string()),
    ]
)


class BuildReport(NamedTuple):
    """What a build did: records in the corpus, records left out, shards taken from before."""

    kept: int
    skipped: int
    resumed_shards: int


def build_corpus(
    sources: Sequence[Source],
    out: str | os.PathLike[str],
    config: CorpusConfig | None = None,
    *,
    n_jobs: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> BuildReport:
    """Build a corpus from sources.

    Parameters
    ----------
    sources
        Data sets, in the order their records will have.
    out
        Folder; must not exist, or be empty, unless resumed or overwritten.
    config
        What it is made of.
    n_jobs
        Processes, as joblib counts them: None is what `joblib.parallel_config` says, else 1. Any
        backend of joblib serves; the corpus depends on neither.
    resume
        Go on with a build that was stopped, at the shard where it stopped.
    overwrite
        Replace a corpus, or the beginning of one.
    progress
        Called with a number of entries whenever they are done.

    Raises
    ------
    ECGFormatError
        `on_error` is "raise", and files are missing (found out before anything is written) or a
        record cannot be read.
    RunError
        The folder is in use, is no corpus, cannot be written, or was begun with other settings.
    """
    config = config or CorpusConfig()
    folder = Path(out)
    names = [source.name for source in sources]
    if not names or len(set(names)) < len(names):
        raise DataError(f"sources need names of their own, these are {names}")
    if config.on_error == "raise":
        for source in sources:
            refuse_missing(source)
    if _prepare(folder, config, names, resume=resume, overwrite=overwrite):
        kept = sum(source["records"] for source in read_json(folder / "corpus.json")["sources"])
        return BuildReport(kept, _skipped_before(folder), 0)
    resumed = n_shards = 0

    def open_blocks() -> Iterator[Block]:
        nonlocal resumed, n_shards
        for block in _blocks(sources, config.shard_records):
            n_shards += 1
            part = read_part(folder, block.shard)
            if part is not None and part["digest"] == digest(block):
                resumed += 1
                if progress:
                    progress(len(block.entries))
            else:
                yield block

    work = (
        joblib.delayed(write_shard)(folder, sources[block.source], block, config)
        for block in open_blocks()
    )
    try:
        for n in in_order(work, n_jobs):
            if progress:
                progress(n)
        kept, skipped = _finish(folder, sources, config, n_shards)
    except OSError as error:
        raise RunError(
            f"cannot be written: {error}", where=folder, remedy="check free space and permissions"
        ) from error
    return BuildReport(kept, skipped, resumed)


def _prepare(
    folder: Path, config: CorpusConfig, names: list[str], *, resume: bool, overwrite: bool
) -> bool:
    """Make the folder ready; True when the corpus in it is already complete."""
    begun = folder / "building.json"
    settings = {"format": FORMAT, "settings": to_dict(config), "sources": names}
    if folder.exists() and any(folder.iterdir()):
        ours = begun.exists() or is_corpus(folder)
        if not ours:
            raise RunError("the folder is not empty and no corpus", where=folder)
        if resume and begun.exists():
            must_equal(read_json(begun), settings, where=begun)
            (folder / "parts").mkdir(exist_ok=True)
            return is_corpus(folder)
        if not overwrite:
            raise RunError(
                "there is a corpus already", where=folder, remedy="add --resume or --overwrite"
            )
        for path in [*map(folder.joinpath, _OWN_FILES), *folder.glob("signals-*.npy*")]:
            path.unlink(missing_ok=True)
        shutil.rmtree(folder / "parts", ignore_errors=True)
    try:
        (folder / "parts").mkdir(parents=True, exist_ok=True)
        write_json(begun, settings)
    except OSError as error:
        raise RunError(f"cannot be written: {error}", where=folder) from error
    return False


_OWN_FILES = ("corpus.json", "index.parquet", "skipped.csv", "building.json")


def _blocks(sources: Sequence[Source], size: int) -> Iterator[Block]:
    shard = 0
    for number, source in enumerate(sources):
        entries = source.entries()
        while block := list(islice(entries, size)):
            yield Block(shard, number, block)
            shard += 1


def _finish(
    folder: Path, sources: Sequence[Source], config: CorpusConfig, n_shards: int
) -> tuple[int, int]:
    """Join the parts: index, list of failures, statistics; then say that the corpus is complete."""
    n_leads = len(config.leads)
    records = [0] * len(sources)
    skipped = 0
    shards: set[str] = set()
    samples = np.zeros(len(sources))
    total, square = np.zeros((len(sources), n_leads)), np.zeros((len(sources), n_leads))
    index, failures = folder / "index.parquet", folder / "skipped.csv"
    beside = [path.with_name(path.name + ".partial") for path in (index, failures)]
    with (
        pyarrow.parquet.ParquetWriter(beside[0], _SCHEMA) as table,
        open(beside[1], "w", newline="", encoding="utf-8") as file,
    ):
        lines = csv.writer(file)
        lines.writerow(["source", "id", "path", "reason"])
        for shard in range(n_shards):
            part = read_part(folder, shard)
            if part is None:
                raise RunError(
                    f"the part of shard {shard} is missing", where=folder, remedy="add --resume"
                )
            if part["rows"]:
                shards.add(shard_name(shard))
                table.write_table(pyarrow.Table.from_pylist(part["rows"], schema=_SCHEMA))
            number = part["source"]
            lines.writerows([sources[number].name, *failure] for failure in part["skipped"])
            records[number] += len(part["rows"])
            skipped += len(part["skipped"])
            samples[number] += part["samples"]
            total[number] += part["total"]
            square[number] += part["square"]
    for path, final in zip(beside, (index, failures), strict=True):
        os.replace(path, final)
    for path in folder.glob("signals-*.npy*"):  # of an earlier start, with other entries
        if path.name not in shards:
            path.unlink()
    described = [
        asdict(_describe(sources[i].name, config, records[i], samples[i], total[i], square[i]))
        for i in range(len(sources))
    ]
    write_json(
        folder / "corpus.json",
        {
            "format": FORMAT,
            "fs": config.fs,
            "leads": config.leads,
            "settings": to_dict(config),
            "skipped": skipped,
            "sources": described,
        },
    )
    shutil.rmtree(folder / "parts", ignore_errors=True)
    return sum(records), skipped


def _describe(
    name: str,
    config: CorpusConfig,
    records: int,
    samples: float,
    total: Float64[np.ndarray, " leads"],
    square: Float64[np.ndarray, " leads"],
) -> CorpusSource:
    known = None
    if config.statistics == "published" and name in DATABASES:
        known = DATABASES[name].statistics(config.leads, highpass=config.filters(name))
    if known is not None:
        return CorpusSource(name, records, *known, "published")
    mean = total / max(samples, 1)
    std = np.sqrt(np.maximum(square / max(samples, 1) - mean**2, 0))
    # A lead that is flat throughout (filled with zeros) has nothing to scale.
    std = np.where(std > 0, std, 1.0)
    return CorpusSource(name, records, tuple(mean.tolist()), tuple(std.tolist()), "measured")


def _skipped_before(folder: Path) -> int:
    return int(read_json(folder / "corpus.json")["skipped"])
