"""The corpus: all records of all sources at one sampling rate and lead order, memory-mapped.

A corpus folder (written by `build.build_corpus`) holds

    corpus.json         format, settings, per source its records and statistics; written last
    index.parquet       a row a record: id, source, shard, start (of its values in the shard),
                        length (samples), fs (of the file), scale (mV per unit), n_missing (samples
                        interpolated), flat (leads), warnings, patient, fold (0 = none), labels
                        (JSON: task -> labels)
    signals-00000.npy   int16, the records of shard 0 one after the other, each as (leads, samples)
    skipped.csv         source, id, path and reason of every record that was left out

The unit is 1 uV, so files of 1 uV or whole multiples are kept without loss and all else to 0.5 uV;
a record that exceeds 32.767 mV has a coarser unit of its own, peak / 32767.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet
from jaxtyping import Bool, Float32, Float64, Int8, Int16, Int64, UInt8

from jepa_core.corpus import mapped, read_column, read_info
from jepa_core.errors import DataError
from jepa_ecg.data.databases import DATABASES
from jepa_ecg.data.ptbxl import label_matrix
from jepa_ecg.data.transforms import CLIP

FORMAT = 1


class CorpusLabels(NamedTuple):
    """Labels of the records of a corpus that have some.

    Attributes
    ----------
    rows
        Record numbers in the corpus, ascending.
    y
        0 or 1.
    classes
        Sorted by code point; only those that occur.
    fold
        1..10, 0 where the source has none.
    """

    rows: Int64[np.ndarray, " records"]
    y: UInt8[np.ndarray, "records classes"]
    classes: np.ndarray
    fold: Int8[np.ndarray, " records"]


@dataclass(frozen=True)
class CorpusSource:
    """One source in a corpus: its name, records, and statistics per lead in mV.

    `statistics` says where they come from: "published" (`DATABASES`) or "measured" in the build.
    """

    name: str
    records: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    statistics: str


class Corpus:
    """Read a corpus.

    Parameters
    ----------
    path
        The folder.

    Attributes
    ----------
    leads, fs
        Names of the leads in order; sampling rate in Hz.
    sources
        In the order of their records.
    source
        (records,) index into `sources`.
    lengths
        (records,) samples.
    fold
        (records,) 1..10, 0 = none.
    mean, std
        (sources, leads) mV: what `crops` normalises with.

    Raises
    ------
    DataError
        No complete corpus lies there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        info = read_info(self.path, "ecg", FORMAT)
        self.leads: tuple[str, ...] = tuple(info["leads"])
        self.fs = float(info["fs"])
        self.sources = tuple([CorpusSource(**source) for source in info["sources"]])
        columns = ["shard", "start", "length", "scale", "fold"]
        table = pyarrow.parquet.read_table(self.path / "index.parquet", columns=columns)
        self._shard: Int64[np.ndarray, " records"] = table["shard"].to_numpy().astype(np.int64)
        self._start: Int64[np.ndarray, " records"] = table["start"].to_numpy()
        self._scale: Float32[np.ndarray, " records"] = table["scale"].to_numpy()
        self.lengths: Int64[np.ndarray, " records"] = table["length"].to_numpy()
        self.fold: Int8[np.ndarray, " records"] = table["fold"].to_numpy()
        if self.sizes and sum(self.sizes) != len(self.lengths):
            raise DataError(
                f"the index has {len(self.lengths)} records, corpus.json {sum(self.sizes)}",
                where=self.path,
                remedy="build the corpus again",
            )
        self.source = np.repeat(np.arange(len(self.sources)), self.sizes)
        shape = (len(self.sources), len(self.leads))
        self.mean = np.array([s.mean for s in self.sources], np.float32).reshape(shape)
        self.std = np.array([s.std for s in self.sources], np.float32).reshape(shape)
        self._maps: dict[int, Int16[np.ndarray, " values"]] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # every process maps the files itself

    @property
    def sizes(self) -> tuple[int, ...]:
        """Records of each source; its records follow those of the source before."""
        return tuple(source.records for source in self.sources)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """Weights of the paper's mixture, normalised to these sources; None for unknown ones."""
        if not all(source.name in DATABASES for source in self.sources):
            return None
        weights = [DATABASES[source.name].weight for source in self.sources]
        return tuple([weight / sum(weights) for weight in weights])

    @cached_property
    def ids(self) -> np.ndarray:
        """Ids of the records, as their source names them."""
        return self.column("id")

    @cached_property
    def patients(self) -> np.ndarray:
        """Patient of every record, empty where the source does not say."""
        return self.column("patient")

    def column(self, name: str) -> np.ndarray:
        """One column of the index, a value a record."""
        return read_column(self.path, name)

    def crops(
        self,
        ids: Int64[np.ndarray, " batch"],
        starts: Int64[np.ndarray, " batch"],
        size: int,
        *,
        clip: float = CLIP,
    ) -> Float32[np.ndarray, "batch leads size"]:
        """Crops of `size` samples, normalised with the statistics of their source and clipped.

        One gather per shard that the batch touches, none per sample.

        Parameters
        ----------
        ids
            Record numbers, 0 to len - 1.
        starts
            First samples.
        size
            Samples.
        clip
            In standard deviations.

        Raises
        ------
        DataError
            A record number, or a crop that is not inside its record.
        """
        source = self.source[self._checked(ids, starts, size)]
        gain = self._scale[ids, None] / self.std[source]
        offset = self.mean[source] / self.std[source]
        out = self._gather(ids, starts, size)
        out *= gain[:, :, None]
        out -= offset[:, :, None]
        return np.clip(out, -clip, clip, out=out)

    def millivolts(
        self,
        ids: Int64[np.ndarray, " batch"],
        starts: Int64[np.ndarray, " batch"],
        size: int,
    ) -> Float32[np.ndarray, "batch leads size"]:
        """As `crops`, in mV."""
        self._checked(ids, starts, size)
        out = self._gather(ids, starts, size)
        out *= self._scale[ids, None, None]
        return out

    def record(self, row: int) -> Float32[np.ndarray, "leads time"]:
        """One whole record in mV."""
        one = np.array([row])
        self._checked(one, np.zeros(1, np.int64), 0)
        return self.millivolts(one, np.zeros(1, np.int64), int(self.lengths[row]))[0]

    def measure(
        self, rows: Int64[np.ndarray, " records"]
    ) -> tuple[Float64[np.ndarray, " leads"], Float64[np.ndarray, " leads"]]:
        """Mean and standard deviation per lead over all samples of some records, in mV."""
        n, total, square = 0, np.zeros(len(self.leads)), np.zeros(len(self.leads))
        for row in np.asarray(rows).tolist():
            signal = self.record(row).astype(np.float64)
            n += signal.shape[1]
            total += signal.sum(1)
            square += (signal**2).sum(1)
        if n == 0:
            raise DataError("no records to measure", where=self.path)
        mean = total / n
        return mean, np.sqrt(np.maximum(square / n - mean**2, 0))

    def with_statistics(
        self, mean: Float64[np.ndarray, " leads"], std: Float64[np.ndarray, " leads"]
    ) -> Corpus:
        """The same corpus, all of it normalised with these (mV, per lead)."""
        if not (np.asarray(std) > 0).all():
            raise DataError("a standard deviation is not positive", where=self.path)
        other = object.__new__(Corpus)
        other.__dict__.update(self.__dict__)
        other.mean = np.tile(np.asarray(mean, np.float32), (len(self.sources), 1))
        other.std = np.tile(np.asarray(std, np.float32), (len(self.sources), 1))
        return other

    def labels(self, task: str) -> CorpusLabels:
        """Labels of the records that have some in this task.

        Parameters
        ----------
        task
            As the sources name it: those of PTB-XL, "dx" (Challenge), "code-15", "labels" (lists).
            "ST-MEM" is the superclass of the records that have exactly one.

        Raises
        ------
        DataError
            No record of the corpus has that task.
        """
        single = task == "ST-MEM"
        key = "superdiagnostic" if single else task
        rows, labels = [], []
        tasks: set[str] = set()
        for row, text in enumerate(self.column("labels")):
            known = json.loads(text) if text else {}
            tasks |= known.keys()
            found = known.get(key) or ()
            if found and (len(found) == 1 or not single):
                rows.append(row)
                labels.append(found)
        if not rows:
            raise DataError(
                f"no record has labels of {task!r}",
                where=self.path,
                remedy=f"there are {', '.join(sorted(tasks)) or 'none at all'}",
            )
        y, classes = label_matrix(labels)
        return CorpusLabels(np.array(rows, np.int64), y, classes, self.fold[rows])

    def _checked(
        self,
        ids: Int64[np.ndarray, " batch"],
        starts: Int64[np.ndarray, " batch"],
        size: int,
    ) -> Int64[np.ndarray, " batch"]:
        if len(ids) and not (ids.min() >= 0 and ids.max() < len(self)):
            raise DataError(f"there are records 0 to {len(self) - 1}", where=self.path)
        outside: Bool[np.ndarray, " batch"] = (starts < 0) | (starts + size > self.lengths[ids])
        if size < 0 or outside.any():
            first = int(np.argmax(outside))
            raise DataError(
                f"record {ids[first]} has {self.lengths[ids[first]]} samples, a crop of {size} at "
                f"{starts[first]} is not inside",
                where=self.path,
            )
        return ids

    def _gather(
        self,
        ids: Int64[np.ndarray, " batch"],
        starts: Int64[np.ndarray, " batch"],
        size: int,
    ) -> Float32[np.ndarray, "batch leads size"]:
        if size == 0:
            return np.empty((len(ids), len(self.leads), 0), np.float32)
        shards = self._shard[ids]
        rows = (self._start[ids] + starts)[:, None]
        rows = rows + np.arange(len(self.leads)) * self.lengths[ids][:, None]
        touched = np.unique(shards).tolist()
        if len(touched) == 1:
            windows = np.lib.stride_tricks.sliding_window_view(self._map(touched[0]), size)
            return windows[rows].astype(np.float32)
        out = np.empty((len(ids), len(self.leads), size), np.float32)
        for shard in touched:
            here = np.flatnonzero(shards == shard)
            windows = np.lib.stride_tricks.sliding_window_view(self._map(shard), size)
            out[here] = windows[rows[here]]
        return out

    def _map(self, shard: int) -> Int16[np.ndarray, " values"]:
        if shard not in self._maps:
            self._maps[shard] = mapped(self.path / shard_name(shard))
        return self._maps[shard]


def shard_name(shard: int) -> str:
    """File of a shard."""
    return f"signals-{shard:05d}.npy"
