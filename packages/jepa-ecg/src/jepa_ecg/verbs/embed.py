"""`jepa ecg embed`: records in, Parquet out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import joblib
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
import tyro
from jaxtyping import Float32

from jepa_core import rng
from jepa_core.config import Range, check
from jepa_core.domain import Machine
from jepa_core.errors import DataError, JepaError
from jepa_core.output import list_skipped, refuse_existing, whole_file
from jepa_core.progress import Progress
from jepa_core.training.device import autocast_to_bfloat16, find_device
from jepa_ecg.data.source import Entry, ReadOptions, Source, refuse_missing
from jepa_ecg.inference import (
    Pool,
    PretrainedECG,
    Quality,
    embed_signals,
    load,
    pooled,
    prepare,
)
from jepa_ecg.presets import ModelConfig
from jepa_ecg.verbs.data import Arrays, open_sources

# Records read, embedded and written at a time; bounds memory.
_CHUNK = 256


@dataclass(frozen=True)
class Input:
    """Records to score, and how to read them."""

    input: Path
    """A folder of WFDB records (or of a known database), a single record (.hea), a .csv or .parquet
    list of files, or a .npy or .npz of signals."""
    out: Path
    """The Parquet file to write."""
    overwrite: bool = False
    """Replace the file."""
    fs: Annotated[float, Range(gt=0)] | None = None
    """Sampling rate of arrays (Hz); of PTB-XL, 100 or 500."""
    derive: bool = False
    """Compute missing III, aVR, aVL, aVF from I and II."""
    fill: Literal["no", "zero"] = "no"
    """zero: leads that are absent or hold no valid sample become zeros."""
    truncated: Literal["error", "pad"] = "error"
    """Files shorter than announced: an error, or missing samples."""
    on_error: Literal["skip", "raise"] = "skip"
    """A record that cannot be used is left out and listed beside the output, or is an error."""
    jobs: Annotated[int, Range(ge=1)] = 1
    """Processes that read."""
    arrays: Arrays = Arrays()
    """Arrays."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Embed:
    """Turn records into embeddings: any sampling rate, length, lead order, missing samples.

    Writes columns id, quality (share of valid samples), warnings and embedding. The result does
    not depend on the batch size beyond rounding.
    """

    model: tyro.conf.Positional[str]
    """A run folder, an encoder folder, a hub id, or an official checkpoint (.pt)."""
    io: Input
    """Records and output."""
    pool: Pool = "mean"
    """What is taken over the tokens of a record: mean, standard deviation, mean change from one
    token to the next."""
    views: Annotated[int, Range(ge=0)] = 0
    """Also embed this many random half-length crops of each record, as view_0, view_1, ..."""
    batch_size: Annotated[int, Range(ge=1)] = 64
    """Windows computed at once."""
    machine: Machine = Machine()
    """Seed (of the views), device, precision, threads."""

    def __post_init__(self) -> None:
        check(self)

    def __call__(self) -> None:
        model = prepared_model(load(self.model), self.machine)

        def score(ids: list[str], signals: list[Float32[np.ndarray, "leads samples"]]) -> pa.Table:
            columns = {
                "embedding": np.stack(
                    list(embed_signals(model, signals, pool=self.pool, batch_size=self.batch_size))
                )
            }
            for view in range(self.views):
                columns[f"view_{view}"] = embed_views(
                    model, ids, signals, view, pool=self.pool, seed=self.machine.seed
                )
            return pa.table({name: vectors(values) for name, values in columns.items()})

        write_scores(self.io, model.config, score)


def prepared_model(model: PretrainedECG, machine: Machine) -> PretrainedECG:
    """The model on its device and in its precision, with the threads asked for."""
    if machine.threads:
        torch.set_num_threads(machine.threads)
    device = find_device(machine.device)
    model.low_precision, why_not = autocast_to_bfloat16(machine.precision, device)
    if why_not:
        print(why_not, file=sys.stderr)
    return model.to(device)


@torch.no_grad()
def embed_views(
    model: PretrainedECG,
    ids: list[str],
    signals: list[Float32[np.ndarray, "leads samples"]],
    view: int,
    *,
    pool: Pool,
    seed: int,
) -> Float32[np.ndarray, "records dim"]:
    """Embeddings of one random crop of each record, a function of (seed, id, view) alone.

    A crop has half the length the encoder was trained on, or half the record where that is less.
    """
    patch = model.config.patch
    keys = np.array([rng.fnv1a32(name) for name in ids], np.int64)
    draws = rng.uniform64(rng.words(seed, "view", keys, view, 2))[:, 0]
    rows = []
    for signal, draw in zip(signals, draws.tolist(), strict=True):
        size = max(patch, min(model.config.samples, signal.shape[1]) // 2 // patch * patch)
        start = int(draw * (signal.shape[1] - size + 1))
        crop = torch.from_numpy(signal[None, :, start : start + size].copy())
        tokens = model(crop.to(next(model.parameters()).device)).float().cpu()
        rows.append(pooled(tokens[0], pool).numpy())
    return np.stack(rows)


def vectors(values: Float32[np.ndarray, "records dim"]) -> pa.Array:
    """Rows as a column of fixed-size lists."""
    flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


Score = Callable[[list[str], list[Float32[np.ndarray, "leads samples"]]], pa.Table]


def write_scores(io: Input, model: ModelConfig, score: Score) -> None:
    """Stream records through `score` into a Parquet file, with a quality column.

    The file appears under its name when it is complete; records left out are listed beside it.

    Raises
    ------
    RunError
        The file exists, or cannot be written.
    DataError
        No record could be used.
    """
    refuse_existing(io.out, io.overwrite)
    (source,) = open_sources([io.input], io.fs, io.arrays)
    skipped: list[tuple[str, str]] = []
    if io.on_error == "raise":
        refuse_missing(source)
    total = sum(1 for _ in source.entries())
    if not total:
        raise DataError("there is no record", where=io.input)
    kept = done = 0
    with whole_file(io.out, overwrite=io.overwrite) as beside, ExitStack() as stack:
        writer: pyarrow.parquet.ParquetWriter | None = None
        progress = stack.enter_context(Progress("records", total))
        for chunk in _chunks(source, io, model):
            good = [(name, item) for name, item in chunk if not isinstance(item, str)]
            skipped += [(name, item) for name, item in chunk if isinstance(item, str)]
            done += len(chunk)
            if good:
                table = _table(good, score)
                if writer is None:
                    new = pyarrow.parquet.ParquetWriter(beside, table.schema)
                    writer = stack.enter_context(new)
                writer.write_table(table)
                kept += len(good)
            progress.update(done)
        listing = list_skipped(io.out, ("id", "reason"), skipped)
    if not kept:
        raise DataError(
            f"none of {total} records could be used", where=listing, remedy="it says why"
        )
    if unusable := done - kept:
        print(f"{unusable} of {total} records left out, see {listing}")
    print(f"{io.out}: {kept} records")


_Prepared = tuple[Float32[np.ndarray, "leads samples"], Quality]


def _table(chunk: list[tuple[str, _Prepared]], score: Score) -> pa.Table:
    ids = [name for name, _ in chunk]
    scored = score(ids, [signal for _, (signal, _) in chunk])
    quality = [quality for _, (_, quality) in chunk]
    columns = {
        "id": pa.array(ids, pa.string()),
        "quality": pa.array([q.valid for q in quality], pa.float32()),
        "warnings": pa.array(["" if str(q) == "good" else str(q) for q in quality], pa.string()),
    }
    return pa.table(columns | dict(zip(scored.column_names, scored.columns, strict=True)))


def _chunks(
    source: Source, io: Input, model: ModelConfig
) -> Iterator[list[tuple[str, _Prepared | str]]]:
    fill: Literal["zero"] | None = "zero" if io.fill == "zero" else None
    options = ReadOptions(model.leads, io.derive, fill, io.truncated)
    entries = source.entries()
    # A chunk at a time, since joblib would read ahead of the model without bound.
    with joblib.Parallel(n_jobs=io.jobs) as parallel:
        while block := list(islice(entries, _CHUNK)):
            yield parallel(
                joblib.delayed(_read)(source, entry, options, model, io.on_error) for entry in block
            )


def _read(
    source: Source, entry: Entry, options: ReadOptions, model: ModelConfig, on_error: str
) -> tuple[str, _Prepared | str]:
    try:
        record, _ = source.read(entry, options)
        return entry.id, prepare(record, model)
    except (JepaError, OSError) as error:
        if on_error == "raise":
            if isinstance(error, JepaError) and error.where:
                raise
            raise DataError(str(error), where=entry.path) from error
        return entry.id, str(error)
