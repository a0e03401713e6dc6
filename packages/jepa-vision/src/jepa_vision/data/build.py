"""Build a corpus: stream images, shard by shard, resumable, with a list of what was left out.

Shards are independent of each other, so a corpus depends neither on the number of processes nor on
where an earlier build stopped.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import pyarrow

from jepa_core.config import read_json, to_dict
from jepa_core.corpus import building, finish, index_files, prepare, read_part
from jepa_core.errors import DataError, RunError
from jepa_core.jobs import in_order
from jepa_vision.data.corpus import FORMAT, shard_name
from jepa_vision.data.folders import Skipped
from jepa_vision.data.images import ImageReadError
from jepa_vision.data.listing import Listing
from jepa_vision.data.shard import Block, CorpusConfig, Form, digest, write_shard
from jepa_vision.data.transforms import Sums

__all__ = ["BuildReport", "CorpusConfig", "build"]

_SCHEMA = pyarrow.schema(
    [
        ("name", pyarrow.string()),
        ("split", pyarrow.string()),
        ("label", pyarrow.int32()),
        ("shard", pyarrow.int32()),
        ("start", pyarrow.int64()),
        ("height", pyarrow.int32()),
        ("width", pyarrow.int32()),
        ("file_height", pyarrow.int32()),
        ("file_width", pyarrow.int32()),
        ("notes", pyarrow.string()),
    ]
)


class BuildReport(NamedTuple):
    """What a build did.

    Attributes
    ----------
    kept, skipped
        Images in the corpus, and left out.
    resumed_shards
        Taken from before.
    notes
        How many images something is to be said of, by phrase.
    """

    kept: int
    skipped: int
    resumed_shards: int
    notes: dict[str, int]


def build(
    listing: Listing,
    folder: str | os.PathLike[str],
    config: CorpusConfig | None = None,
    *,
    jobs: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> BuildReport:
    """Build a corpus.

    Parameters
    ----------
    listing
        The images, in the order they will have.
    folder
        Must not exist, or be empty, unless resumed or overwritten.
    config
        What it is made of.
    jobs
        Processes, as joblib counts them: None is what `joblib.parallel_config` says, else 1. Any
        backend of joblib serves; the corpus depends on neither.
    resume
        Go on with a build that was stopped, at the shard where it stopped.
    overwrite
        Replace a corpus, or the beginning of one.
    progress
        Called with a number of images whenever they are done.

    Raises
    ------
    ImageReadError
        An image cannot be read, and `on_error` is "raise".
    DataError
        None of them can be.
    RunError
        The folder is in use, is no corpus, cannot be written, or was begun with other settings.
    Interrupted
        Ctrl-C; finished shards stay.
    """
    config, out = config or CorpusConfig(), Path(folder)
    asked = {
        "format": FORMAT,
        "settings": to_dict(config),
        "source": Path(listing.files.where("")).name,
    }
    with building(out):
        if prepare(out, asked, ["pixels-*.npy*"], resume=resume, overwrite=overwrite):
            info = read_json(out / "corpus.json")
            return BuildReport(info["images"], info["skipped"], 0, info["notes"])
        return _build(listing, out, config, jobs, progress)


def _build(
    listing: Listing,
    out: Path,
    config: CorpusConfig,
    jobs: int | None,
    progress: Callable[[int], None] | None,
) -> BuildReport:
    form = _form(listing, config)
    resumed = n_shards = 0

    def open_blocks() -> Iterator[Block]:
        nonlocal resumed, n_shards
        for block in _blocks(listing, config.shard_images):
            n_shards += 1
            part = read_part(out, block.shard)
            if part is not None and part["digest"] == digest(block, form):
                resumed += 1
                if progress:
                    progress(len(block.rows))
            else:
                yield block

    work = (
        joblib.delayed(write_shard)(out, listing.files, block, config, form)
        for block in open_blocks()
    )
    for n in in_order(work, jobs):
        if progress:
            progress(n)
    return _finish(out, listing, config, form, n_shards, resumed)


def _form(listing: Listing, config: CorpusConfig) -> Form:
    """Channels and type of the first image that can be read."""
    first: ImageReadError | None = None
    for i in range(len(listing)):
        try:
            pixels = listing.read(i, config.read).pixels
        except ImageReadError as error:
            first = first or error
            if config.on_error == "raise":
                raise
        else:
            return Form(pixels.shape[2], str(pixels.dtype))
    raise DataError(
        f"none of {len(listing)} images can be read"
        + (f", the first: {first.reason}" if first else ""),
        where=listing.files.where(""),
    )


def _blocks(listing: Listing, size: int) -> Iterator[Block]:
    labels = [-1] * len(listing) if listing.labels is None else listing.labels.tolist()
    rows = zip(listing.names, listing.splits, labels, strict=True)
    shard = 0
    while some := list(islice(rows, size)):
        yield Block(shard, some)
        shard += 1


def _finish(
    folder: Path, listing: Listing, config: CorpusConfig, form: Form, n_shards: int, resumed: int
) -> BuildReport:
    """Join the parts: index, list of failures, statistics; then say that the corpus is complete."""
    sums, kept, skipped = Sums(form.channels), 0, 0
    notes: Counter[str] = Counter()
    shards: set[str] = set()
    with index_files(folder, _SCHEMA, Skipped._fields) as index:
        for shard in range(n_shards):
            part = read_part(folder, shard)
            if part is None:
                raise RunError(
                    f"the part of shard {shard} is missing", where=folder, remedy="add --resume"
                )
            if part["rows"]:
                shards.add(shard_name(shard))
                index.rows(pyarrow.Table.from_pylist(part["rows"], schema=_SCHEMA))
            index.skipped(part["skipped"])
            kept += len(part["rows"])
            skipped += len(part["skipped"])
            notes.update(n for row in part["rows"] for n in row["notes"].split("; ") if n)
            sums.pixels += part["pixels"]
            sums.total += np.array(part["total"])
            sums.square += np.array(part["square"])
    for path in folder.glob("pixels-*.npy*"):  # of an earlier start, with other images
        if path.name not in shards:
            path.unlink()
    mean, std = sums.statistics()
    finish(
        folder,
        {
            "format": FORMAT,
            "images": kept,
            "skipped": skipped,
            "channels": form.channels,
            "dtype": form.dtype,
            "classes": listing.classes,
            "mean": mean.tolist(),
            "std": std.tolist(),
            "notes": dict(notes),
            "settings": to_dict(config),
        },
    )
    return BuildReport(kept, skipped, resumed, dict(notes))
