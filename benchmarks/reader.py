"""Reading electrocardiograms: WFDB records from files, crops of a corpus.

Records: 20 of 12 leads and 10 s in format 16, as PTB-XL stores them, headers included;
`wfdb.rdsamp` is the baseline. The default compares every lead's checksum, which wfdb does not.
Crops: 64 random ones of a memory-mapped int16 corpus, normalised and clipped, as float32. The
baseline is a dataset that returns one crop, and torch's default collate.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
import wfdb
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from benchmarks.harness import Contender, Row, compare, equal_outputs, main
from jepa_ecg.data.arrays import Dump
from jepa_ecg.data.build import build_corpus
from jepa_ecg.data.corpus import Corpus
from jepa_ecg.data.databases import LEADS
from jepa_ecg.data.shard import CorpusConfig
from jepa_ecg.data.wfdb_record import read_record

SECONDS, RECORDS, BATCH = 10, 20, 64


def run(quick: bool = False) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for fs, least in ((100, 40.0), (500, 25.0)):
            rows += _records(place, fs, None if quick else least)
        for fs, seconds in ((100, 2.5), (100, 10), (500, 10)):
            rows += _crops(place, fs, seconds, 4.0 if seconds < 10 and not quick else None)
    return rows


def _signals(n: int, fs: int) -> np.ndarray:
    """int16 [n, time, leads], 1 uV a unit: random walks of a few millivolts."""
    steps = np.random.default_rng(fs).normal(0, 30, (n, SECONDS * fs, len(LEADS)))
    return np.cumsum(steps, 1).round().clip(-30_000, 30_000).astype("<i2")


def _records(folder: Path, fs: int, target: float | None) -> list[Row]:
    paths = []
    for i, signal in enumerate(_signals(RECORDS, fs)):
        name = f"{i:05d}_{fs}"
        lines = [f"{name} {len(LEADS)} {fs} {len(signal)}"]
        for lead, values in zip(LEADS, signal.T, strict=True):
            checksum = int(values.astype(np.int64).sum()) % 65536
            lines.append(f"{name}.dat 16 1000.0(0)/mV 16 0 {values[0]} {checksum} 0 {lead}")
        (folder / f"{name}.hea").write_text("\n".join(lines) + "\n")
        (folder / f"{name}.dat").write_bytes(signal.tobytes())
        paths.append(str(folder / name))
    contenders: dict[str, Contender] = {
        "wfdb.rdsamp": lambda: [wfdb.rdsamp(path)[0] for path in paths],
        "wfdb.rdrecord": lambda: [wfdb.rdrecord(path).p_signal for path in paths],
        "read_record": lambda: [read_record(path).signal for path in paths],
        "read_record, no checksums": lambda: [
            read_record(path, verify="off").signal for path in paths
        ],
    }
    return compare(
        f"{RECORDS} records at {fs} Hz",
        contenders,
        "wfdb.rdsamp",
        check=equal_outputs(contenders, rtol=1e-6, atol=3e-7),
        target=None if target is None else {"read_record, no checksums": target},
        notes={"read_record": "and the checksums"},
    )


class OneByOne(Dataset[Tensor]):
    """A crop a call, out of the same corpus."""

    def __init__(self, corpus: Corpus, size: int) -> None:
        self.signals = np.load(corpus.path / "signals-00000.npy", mmap_mode="r")
        self.scale = corpus.column("scale")
        self.start = corpus.column("start")
        self.mean, self.std = corpus.mean[0][:, None], corpus.std[0][:, None]
        self.corpus, self.size = corpus, size

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        row, first = key
        start, length = self.start[row], self.corpus.lengths[row]
        leads = self.signals[start : start + len(LEADS) * length].reshape(len(LEADS), length)
        crop = leads[:, first : first + self.size].astype(np.float32) * self.scale[row]
        return torch.from_numpy(((crop - self.mean) / self.std).clip(-5, 5))


def _crops(folder: Path, fs: int, seconds: float, target: float | None) -> list[Row]:
    size, n = int(seconds * fs), 256
    place = folder / f"corpus-{fs}-{seconds}"
    np.save(folder / "dump.npy", _signals(n, fs))
    source = Dump(str(folder / "dump.npy"), fs=fs, name="generated", gain=1000)
    build_corpus([source], place, CorpusConfig(fs=fs))
    corpus = Corpus(place)
    single = OneByOne(corpus, size)
    draws = np.random.default_rng(0)
    ids = draws.integers(0, n, BATCH)
    starts = draws.integers(0, SECONDS * fs - size + 1, BATCH)
    keys = list(zip(ids.tolist(), starts.tolist(), strict=True))
    contenders: dict[str, Contender] = {
        "one by one": lambda: default_collate([single[key] for key in keys]),
        "Corpus.crops": lambda: torch.from_numpy(corpus.crops(ids, starts, size)),
    }
    return compare(
        f"{BATCH} crops of {len(LEADS)} x {size}",
        contenders,
        "one by one",
        check=equal_outputs(contenders, atol=1e-5),
        target=None if target is None else {"Corpus.crops": target},
    )


if __name__ == "__main__":
    main(run, packages=("wfdb",))
