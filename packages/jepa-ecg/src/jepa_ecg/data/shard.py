"""One shard of a corpus: a fixed run of a source's entries, read, prepared and written.

What it holds depends on nothing but those entries. It is finished when its part (JSON) exists; that
is written after its signals, by renaming.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int16

from jepa_core.config import Range, check
from jepa_core.corpus import part_path, values_file
from jepa_core.errors import JepaError
from jepa_core.run import write_json
from jepa_ecg.data.corpus import shard_name
from jepa_ecg.data.databases import DATABASES, LEADS
from jepa_ecg.data.errors import ECGFormatError
from jepa_ecg.data.source import Entry, ReadOptions, Source
from jepa_ecg.data.transforms import highpass, interpolate_nans, resample
from jepa_ecg.data.wfdb_record import Record, flat_leads

UNIT = 1e-3  # mV
_LARGEST = 32767


@dataclass(frozen=True)
class CorpusConfig:
    """What a corpus is made of.

    Attributes
    ----------
    fs
        Sampling rate in Hz; records of another rate are resampled.
    leads
        Names in order.
    derive
        Compute missing III, aVR, aVL, aVF from I and II.
    fill
        "zero": leads that are missing or have no valid sample become zeros.
    truncated
        Files shorter than announced are an "error" or end in missing samples ("pad").
    highpass
        Baseline wander is removed (0.5 Hz) from the databases of which the paper does it
        ("paper"), from "all" sources or from "none".
    statistics
        "published" ones where they are known, else measured on the corpus; or always "measured".
    min_seconds
        Shorter records are left out.
    on_error
        A record that cannot be read stops the build ("raise") or is left out ("skip").
    shard_records
        Entries of a shard, which is what one process does at a time.
    """

    fs: Annotated[float, Range(gt=0)] = 500.0
    leads: tuple[str, ...] = LEADS
    derive: bool = False
    fill: Literal["no", "zero"] = "no"
    truncated: Literal["error", "pad"] = "error"
    highpass: Literal["paper", "all", "none"] = "paper"
    statistics: Literal["published", "measured"] = "published"
    min_seconds: Annotated[float, Range(ge=0)] = 0.0
    on_error: Literal["raise", "skip"] = "raise"
    shard_records: Annotated[int, Range(ge=1)] = 4096

    def __post_init__(self) -> None:
        check(self)

    @property
    def options(self) -> ReadOptions:
        """How records are read."""
        fill: Literal["zero"] | None = "zero" if self.fill == "zero" else None
        return ReadOptions(self.leads, self.derive, fill, self.truncated)

    def filters(self, source: str) -> bool:
        """Whether the records of that source are high-passed."""
        if self.highpass == "paper":
            return source in DATABASES and DATABASES[source].highpass
        return self.highpass == "all"


class Block(NamedTuple):
    """Entries of one shard."""

    shard: int
    source: int
    entries: list[Entry]


def digest(block: Block) -> str:
    """What a shard depends on, but for the content of the files."""
    text = json.dumps([[block.source], *[e._replace(path="") for e in block.entries]])
    return hashlib.sha256(text.encode()).hexdigest()


def write_shard(folder: Path, source: Source, block: Block, config: CorpusConfig) -> int:
    """Read the entries of a block and write its shard and part, one record in memory at a time."""
    rows: list[dict[str, Any]] = []
    skipped: list[tuple[str, str, str]] = []
    n, total, square = 0, np.zeros(len(config.leads)), np.zeros(len(config.leads))
    with values_file(folder / shard_name(block.shard), "<i2") as values:
        for entry in block.entries:
            try:
                record, labels = source.read(entry, config.options)
                signal = prepare(record, config, source.name, file=entry.path)
            except OSError as error:
                if config.on_error == "raise":
                    raise ECGFormatError(f"cannot be read: {error}", file=entry.path) from error
                skipped.append((entry.id, entry.path, f"cannot be read: {error}"))
                continue
            except JepaError as error:
                if config.on_error == "raise" and not isinstance(error, _TooShortError):
                    raise
                skipped.append((entry.id, entry.path, str(error)))
                continue
            digital, scale = quantise(signal)
            start = values.rows
            values.append(digital.T.ravel())
            exact = digital.astype(np.float64) * float(scale)
            total += exact.sum(0)
            square += (exact**2).sum(0)
            rows.append(
                {
                    "id": entry.id,
                    "source": source.name,
                    "shard": block.shard,
                    "start": start,
                    "length": len(digital),
                    "fs": float(record.fs),
                    "scale": float(scale),
                    "n_missing": int(record.missing.sum()),
                    "flat": ",".join(record.leads[i] for i in flat_leads(record.signal)),
                    "warnings": "; ".join(record.warnings),
                    "patient": entry.patient,
                    "fold": entry.fold,
                    "labels": json.dumps({t: list(found) for t, found in labels.items()})
                    if labels
                    else "",
                }
            )
            n += len(digital)
    write_json(
        part_path(folder, block.shard),
        {
            "digest": digest(block),
            "source": block.source,
            "samples": n,
            "total": total.tolist(),
            "square": square.tolist(),
            "rows": rows,
            "skipped": skipped,
        },
    )
    return len(block.entries)


class _TooShortError(ECGFormatError):
    """Left out by a setting, not for a fault."""


def prepare(
    record: Record, config: CorpusConfig, source: str, *, file: object = ""
) -> Float32[np.ndarray, "time leads"]:
    """A record as it is stored: gaps interpolated, high-passed where asked for, resampled; mV.

    Raises
    ------
    ECGFormatError
        It is too short.
    """
    signal = interpolate_nans(record.signal, leads=record.leads, file=file)
    seconds = len(signal) / record.fs
    if seconds < config.min_seconds:
        raise _TooShortError(
            f"{seconds:.3g} s are shorter than {config.min_seconds:g} s", file=file
        )
    if config.filters(source):
        signal = highpass(signal, record.fs)
    signal = resample(signal, record.fs, config.fs)
    if not np.isfinite(signal).all():
        raise ECGFormatError("not finite after filtering", file=file)
    return signal


def quantise(
    signal: Float32[np.ndarray, "time leads"],
) -> tuple[Int16[np.ndarray, "time leads"], np.float32]:
    """int16 samples and the mV of one unit: 1 uV, or coarser above 32.767 mV.

    The error is at most half a unit.
    """
    peak = float(np.abs(signal).max(initial=0.0))
    scale = np.float32(max(UNIT, peak / _LARGEST))
    digital = np.rint(signal / np.float64(scale))
    return np.clip(digital, -_LARGEST, _LARGEST).astype("<i2"), scale
