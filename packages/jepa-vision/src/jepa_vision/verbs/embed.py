"""`jepa vision embed`: images in, Parquet out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
import tyro
from jaxtyping import Float32

from jepa_core import rng
from jepa_core.config import Range, check
from jepa_core.domain import Machine
from jepa_core.errors import ConfigError, DataError, JepaError
from jepa_core.output import NpyWriter, list_skipped, refuse_existing, whole_file
from jepa_core.progress import Progress
from jepa_core.training.device import autocast_to_bfloat16, find_device
from jepa_vision.data.folders import ImageFolder
from jepa_vision.data.images import Images, Pixels, ReadOptions
from jepa_vision.data.transforms import crop_boxes, resized_crop
from jepa_vision.inference import PretrainedImage, Readout, load, read_ahead
from jepa_vision.verbs.pretrain import open_images

# Images read, computed and written at a time; bounds memory.
_CHUNK = 128


@dataclass(frozen=True)
class Input:
    """Images to work on, and where results go."""

    input: Path
    """Images: a folder, a zip archive, a text file that lists them, one image, a .npy of images, or
    a corpus."""
    out: Path
    """The Parquet file to write."""
    overwrite: bool = False
    """Replace the file."""
    split: str = ""
    """train, val or test, where there are splits; all of them by default."""
    stretch: Literal["none", "minmax", "percentile"] = "none"
    """Map values of more than 8 bits to the whole range: from each image's least and largest value,
    or from its 1st and 99th percentile."""
    value_range: tuple[float, float] | None = None
    """Map values of more than 8 bits from this range, and cut what lies outside."""
    on_error: Literal["skip", "raise"] = "skip"
    """An image that cannot be used is left out and listed beside the output, or is an error."""
    jobs: Annotated[int, Range(ge=1)] = 1
    """Threads that read."""

    def __post_init__(self) -> None:
        check(self)

    def open(self) -> Images:
        """The images."""
        options = ReadOptions(stretch=self.stretch, value_range=self.value_range)
        return open_images(self.input, self.split, options)


@dataclass(frozen=True)
class Embed:
    """Turn images into embeddings, streamed: any files, sizes and formats.

    Writes columns id, quality (1, or the image's side over the crop's where it is smaller),
    warnings and embedding, the mean of the patch tokens of a centre crop. An image's embedding does
    not depend on the others.
    """

    model: tyro.conf.Positional[str]
    """A run folder, an encoder folder, a hub id, or an official checkpoint (.pth.tar)."""
    io: Input
    """Images and output."""
    size: tuple[int, int] | None = None
    """Height and width of the crop (pixels), multiples of the patch; by default those of training.
    """
    layers: tuple[Annotated[int, Range(ge=1)], ...] = ()
    """Blocks, counted from 1, whose outputs stand side by side; by default the last."""
    with_head: bool = False
    """Through DMT-JEPA's head."""
    views: Annotated[int, Range(ge=0)] = 0
    """Also embed this many random crops of each image, cut as in training: view_0, view_1, ..."""
    patch_tokens: Path | None = None
    """Also write the tokens of each row, float32 [rows, tokens, dim], to this .npy."""
    machine: Machine = Machine()
    """Seed (of the views), device, precision, threads."""

    def __post_init__(self) -> None:
        check(self)
        if self.patch_tokens is not None and self.patch_tokens.suffix != ".npy":
            raise ConfigError(f"patch_tokens is {self.patch_tokens}", remedy="allowed: a .npy file")

    def __call__(self) -> None:
        if self.patch_tokens is not None:
            refuse_existing(self.patch_tokens, self.io.overwrite)
        model = prepared(load(self.model, device=self.machine.device), self.machine)
        size = model.crop_size(self.size)
        readout = Readout(self.layers, pool=self.patch_tokens is None, with_head=self.with_head)
        wide = model.width(readout)
        places = (size[0] // model.model.patch) * (size[1] // model.model.patch)
        tokens: NpyWriter | None = None
        only_mean = Readout(self.layers, pool=True, with_head=self.with_head)

        def views(name: str, pixels: Pixels) -> list[Pixels]:
            boxes = view_boxes(model, name, pixels, self.views, seed=self.machine.seed)
            return [resized_crop(pixels, box, size) for box in boxes]

        def score(rows: Sequence[Prepared]) -> pa.Table:
            found = model.read(np.stack([row.crop for row in rows]), readout)
            if tokens is not None:
                tokens.append(found)
                found = found.mean(1)
            columns = {"embedding": vectors(found)}
            for view in range(self.views):
                crops = np.stack([row.views[view] for row in rows])
                columns[f"view_{view}"] = vectors(model.read(crops, only_mean))
            return pa.table(columns)

        with ExitStack() as stack:
            if self.patch_tokens is not None:
                place = whole_file(self.patch_tokens, overwrite=self.io.overwrite)
                file = stack.enter_context(stack.enter_context(place).open("wb"))
                tokens = NpyWriter(file, "<f4", (places, wide))
            write_scores(self.io, model, size, score, views)
            if tokens is not None:
                tokens.finish()
                print(f"{self.patch_tokens}: {tokens.rows} x {places} tokens")


def prepared(model: PretrainedImage, machine: Machine) -> PretrainedImage:
    """The model in its precision, with the threads asked for."""
    if machine.threads:
        torch.set_num_threads(machine.threads)
    low, why_not = autocast_to_bfloat16(machine.precision, find_device(machine.device))
    model.low_precision = low
    if why_not:
        print(why_not, file=sys.stderr)
    return model


def view_boxes(
    model: PretrainedImage, name: str, pixels: Pixels, views: int, *, seed: int
) -> np.ndarray:
    """Crops of one image, int64 [views, 4], a function of (seed, name, view) alone."""
    augment = model.config.augment
    return crop_boxes(
        np.tile(pixels.shape[:2], (views, 1)),
        np.full(views, rng.fnv1a32(name), np.int64),
        np.arange(views),
        seed=seed,
        scale=augment.crop_scale,
        ratio=augment.crop_ratio,
    )


def vectors(values: Float32[np.ndarray, "rows dim"]) -> pa.Array:
    """Rows as a column of fixed-size lists."""
    flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


@dataclass(frozen=True)
class Prepared:
    """One image, ready for the encoder.

    Parameters
    ----------
    name
        What it is called.
    crop
        Its middle.
    views
        Other crops of it.
    quality
        1, or the side of the image over that of the crop where it is smaller.
    warnings
        What the reader has to say.
    """

    name: str
    crop: Pixels
    views: Sequence[Pixels]
    quality: float
    warnings: str


@dataclass(frozen=True)
class Refused:
    """An image that cannot be used, and why."""

    name: str
    error: JepaError


Score = Callable[[Sequence[Prepared]], pa.Table]
Views = Callable[[str, Pixels], Sequence[Pixels]]


def write_scores(
    io: Input,
    model: PretrainedImage,
    size: tuple[int, int],
    score: Score,
    views: Views = lambda name, pixels: (),
) -> None:
    """Stream images through `score` into a Parquet file, after columns id, quality and warnings.

    The file appears under its name when it is complete; images left out are listed beside it.

    Raises
    ------
    RunError
        The file exists, or cannot be written.
    DataError
        No image could be used.
    """
    refuse_existing(io.out, io.overwrite)
    images = io.open()
    names, total = images.names, len(images)
    skipped: list[Refused] = []
    kept = done = 0

    def read(i: int) -> Prepared | Refused:
        try:
            pixels, notes = _pixels(images, i)
            crop = model.prepare(pixels, size)
            sides = zip(pixels.shape[:2], size, strict=True)
            quality = min(1.0, *(there / wanted for there, wanted in sides))
            return Prepared(names[i], crop, views(names[i], pixels), quality, "; ".join(notes))
        except JepaError as error:
            return Refused(names[i], error)

    with whole_file(io.out, overwrite=io.overwrite) as beside, ExitStack() as stack:
        writer: pyarrow.parquet.ParquetWriter | None = None
        progress = stack.enter_context(Progress("images", total))
        for chunk in read_ahead(read, total, _CHUNK, io.jobs):
            bad = [one for one in chunk if isinstance(one, Refused)]
            if bad and io.on_error == "raise":
                raise _placed(bad[0])
            skipped += bad
            good = [one for one in chunk if isinstance(one, Prepared)]
            if good:
                table = _table(good, score(good))
                if writer is None:
                    new = pyarrow.parquet.ParquetWriter(beside, table.schema)
                    writer = stack.enter_context(new)
                writer.write_table(table)
                kept += len(good)
            progress.update(done := done + len(chunk))
        reasons = [(one.name, one.error.what) for one in skipped]
        listing = list_skipped(io.out, ("id", "reason"), reasons)
    if not kept:
        raise DataError(
            f"none of {total} images could be used", where=listing, remedy="it says why"
        )
    if skipped:
        print(f"{len(skipped)} of {total} images left out, see {listing}")
    print(f"{io.out}: {kept} images")


def _pixels(images: Images, i: int) -> tuple[Pixels, Sequence[str]]:
    """An image, and what there is to say of it.

    Of files each may have channels of its own: a bad first one must not spoil the others.
    """
    if isinstance(images, ImageFolder):
        reading = images.listing.read(i, images.options)
        return reading.pixels, reading.notes
    return images.read(i), ()


def _placed(refused: Refused) -> JepaError:
    error = refused.error
    return error if error.where else DataError(error.what, where=refused.name, remedy=error.remedy)


def _table(rows: Sequence[Prepared], scored: pa.Table) -> pa.Table:
    columns = {
        "id": pa.array([row.name for row in rows], pa.string()),
        "quality": pa.array([row.quality for row in rows], pa.float32()),
        "warnings": pa.array([row.warnings for row in rows], pa.string()),
    }
    return pa.table(columns | dict(zip(scored.column_names, scored.columns, strict=True)))
