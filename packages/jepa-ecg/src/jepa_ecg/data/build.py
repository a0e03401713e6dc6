"""Build a corpus: stream records from sources, shard by shard, resumable, with a list of failures.

Shards are independent of each other, so a corpus depends neither on the number of processes nor on
where an earlier build stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import pyarrow
from jaxtyping import Float64

from jepa_core.config import read_json, to_dict
from jepa_core.corpus import building, finish, index_files, prepare, read_part
from jepa_core.errors import DataError, RunError
from jepa_core.jobs import in_order
from jepa_ecg.data.corpus import FORMAT, CorpusSource, shard_name
from jepa_ecg.data.databases import DATABASES
from jepa_ecg.data.shard import Block, CorpusConfig, digest, write_shard
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
    asked = {"format": FORMAT, "settings": to_dict(config), "sources": names}
    with building(folder):
        if prepare(folder, asked, ["signals-*.npy*"], resume=resume, overwrite=overwrite):
            info = read_json(folder / "corpus.json")
            return BuildReport(sum(s["records"] for s in info["sources"]), info["skipped"], 0)
        return _build(sources, folder, config, n_jobs, progress)


def _build(
    sources: Sequence[Source],
    folder: Path,
    config: CorpusConfig,
    n_jobs: int | None,
    progress: Callable[[int], None] | None,
) -> BuildReport:
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
    for n in in_order(work, n_jobs):
        if progress:
            progress(n)
    kept, skipped = _finish(folder, sources, config, n_shards)
    return BuildReport(kept, skipped, resumed)


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
    with index_files(folder, _SCHEMA, ("source", "id", "path", "reason")) as index:
        for shard in range(n_shards):
            part = read_part(folder, shard)
            if part is None:
                raise RunError(
                    f"the part of shard {shard} is missing", where=folder, remedy="add --resume"
                )
            if part["rows"]:
                shards.add(shard_name(shard))
                index.rows(pyarrow.Table.from_pylist(part["rows"], schema=_SCHEMA))
            number = part["source"]
            index.skipped([[sources[number].name, *failure] for failure in part["skipped"]])
            records[number] += len(part["rows"])
            skipped += len(part["skipped"])
            samples[number] += part["samples"]
            total[number] += part["total"]
            square[number] += part["square"]
    for path in folder.glob("signals-*.npy*"):  # of an earlier start, with other entries
        if path.name not in shards:
            path.unlink()
    described = [
        asdict(_describe(sources[i].name, config, records[i], samples[i], total[i], square[i]))
        for i in range(len(sources))
    ]
    finish(
        folder,
        {
            "format": FORMAT,
            "fs": config.fs,
            "leads": config.leads,
            "settings": to_dict(config),
            "skipped": skipped,
            "sources": described,
        },
    )
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
