"""The corpus: images resized to a short side, one after the other in memory-mapped files.

A corpus folder (written by `build.build`) holds

    corpus.json         format, settings, channels, type, classes, statistics; written last
    index.parquet       a row an image: name, split, label (-1 = none), shard, start (of its values
                        in the shard), height, width, and those of the file, notes
    pixels-00000.npy    uint8 (of arrays float32), the images of shard 0 one after the other, each
                        as (height, width, channels)
    skipped.csv         name and reason of every file that was left out
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from jaxtyping import Float64, Int32, Int64

from jepa_core.corpus import mapped, read_column, read_info
from jepa_core.errors import ConfigError, DataError
from jepa_vision.data.images import Pixels
from jepa_vision.data.listing import SPLITS

FORMAT = 1


class ImageCorpus:
    """Read a corpus.

    Parameters
    ----------
    path
        The folder.
    split
        train, val or test, where the images have splits; all of them by default.

    Attributes
    ----------
    sizes
        (n, 2) height and width as stored.
    channels
        Of every image.
    labels
        (n,) index into `classes`, or None.
    classes
        Names of the classes.
    mean, std
        Per channel over all pixels of the corpus, in 0..1 for uint8.

    Raises
    ------
    DataError
        No complete corpus lies there.
    ConfigError
        There is no such split.
    """

    def __init__(self, path: str | os.PathLike[str], *, split: str = "") -> None:
        self.path = Path(path)
        info = read_info(self.path, "vision", FORMAT)
        self.channels: int = info["channels"]
        self.classes: tuple[str, ...] = tuple(info["classes"])
        self.mean: Float64[np.ndarray, " channels"] = np.array(info["mean"])
        self.std: Float64[np.ndarray, " channels"] = np.array(info["std"])
        columns = ["split", "label", "shard", "start", "height", "width"]
        table = pyarrow.parquet.read_table(self.path / "index.parquet", columns=columns)
        if len(table) != info["images"]:
            raise DataError(
                f"the index has {len(table)} images, corpus.json {info['images']}",
                where=self.path,
                remedy="build the corpus again",
            )
        self.rows = self._rows_of(split, table["split"].to_pylist())
        self._shard: Int32[np.ndarray, " images"] = table["shard"].to_numpy()[self.rows]
        self._start: Int64[np.ndarray, " images"] = table["start"].to_numpy()[self.rows]
        sizes = (table[name].to_numpy()[self.rows] for name in ("height", "width"))
        self.sizes: Int32[np.ndarray, "images 2"] = np.stack(tuple(sizes), 1)
        labels = table["label"].to_numpy()[self.rows].astype(np.int64)
        labelled = bool(self.classes) and bool((labels >= 0).all())
        self.labels: Int64[np.ndarray, " images"] | None = labels if labelled else None
        self._maps: dict[int, Pixels] = {}

    def _rows_of(self, split: str, splits: Sequence[str]) -> Int64[np.ndarray, " images"]:
        if not split:
            return np.arange(len(splits))
        wanted = SPLITS.get(split.lower(), split)
        rows = np.array([i for i, name in enumerate(splits) if name == wanted], np.int64)
        if not len(rows):
            there = ", ".join(sorted(set(splits) - {""})) or "none"
            raise ConfigError(
                f"there is no split {split!r}", where=self.path, remedy=f"there are: {there}"
            )
        return rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # every process maps the files itself

    @cached_property
    def names(self) -> Sequence[str]:
        """What each image is called: the path of its file."""
        return self.column("name").tolist()

    def column(self, name: str) -> np.ndarray:
        """One column of the index, a value an image."""
        return read_column(self.path, name)[self.rows]

    def read(self, i: int, at_least: int | None = None) -> Pixels:
        """Image `i`, [height, width, channels]: a view of the file, not to be written to.

        `at_least` changes nothing: the image is stored as it is.
        """
        height, width = self.sizes[i].tolist()
        start = int(self._start[i])
        flat = self._map(int(self._shard[i]))[start : start + height * width * self.channels]
        return flat.reshape(height, width, self.channels)

    def _map(self, shard: int) -> Pixels:
        if shard not in self._maps:
            self._maps[shard] = mapped(self.path / shard_name(shard))
        return self._maps[shard]


def shard_name(shard: int) -> str:
    """File of a shard."""
    return f"pixels-{shard:05d}.npy"
