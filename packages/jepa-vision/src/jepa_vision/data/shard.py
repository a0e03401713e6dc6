"""One shard of a corpus: a fixed run of files, read, resized and written.

What it holds depends on nothing but those files. It is finished when its part (JSON) exists; that
is written after its pixels, by renaming.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from jepa_core.config import Range, check
from jepa_core.corpus import part_path, values_file
from jepa_core.run import write_json
from jepa_vision.data.archives import Files
from jepa_vision.data.corpus import shard_name
from jepa_vision.data.images import ImageReadError, Pixels, ReadOptions
from jepa_vision.data.listing import read_member
from jepa_vision.data.transforms import Sums, resized_crop


@dataclass(frozen=True)
class CorpusConfig:
    """What a corpus is made of."""

    short_side: Annotated[int, Range(ge=0)] = 256
    """Images are shrunk to this short side (pixels), never enlarged; 0 keeps their size."""
    read: ReadOptions = ReadOptions()
    """How files become pixels."""
    on_error: Literal["raise", "skip"] = "raise"
    """A file that cannot be read stops the build, or is left out and listed in skipped.csv."""
    shard_images: Annotated[int, Range(ge=1)] = 1024
    """Images of a shard, which is what one process does at a time."""

    def __post_init__(self) -> None:
        check(self)


class Form(NamedTuple):
    """What all images of a corpus have in common."""

    channels: int
    dtype: str


class Block(NamedTuple):
    """The images of one shard: a row each of name, split and label."""

    shard: int
    rows: Sequence[tuple[str, str, int]]


def digest(block: Block, form: Form) -> str:
    """What a shard depends on, but for the content of the files."""
    text = json.dumps([list(form), *block.rows])
    return hashlib.sha256(text.encode()).hexdigest()


def write_shard(folder: Path, files: Files, block: Block, config: CorpusConfig, form: Form) -> int:
    """Read the images of a block and write its shard and part, one image in memory at a time."""
    rows: list[dict[str, Any]] = []
    skipped: list[tuple[str, str]] = []
    sums = Sums(form.channels)
    with values_file(folder / shard_name(block.shard), form.dtype) as values:
        for name, split, label in block.rows:
            try:
                pixels, size, notes = _read(files, name, config, form)
            except ImageReadError as error:
                if config.on_error == "raise":
                    raise
                skipped.append((name, error.reason))
                continue
            start = values.rows
            values.append(pixels.ravel())
            sums.add(pixels)
            rows.append(
                {
                    "name": name,
                    "split": split,
                    "label": label,
                    "shard": block.shard,
                    "start": start,
                    "height": pixels.shape[0],
                    "width": pixels.shape[1],
                    "file_height": size[0],
                    "file_width": size[1],
                    "notes": "; ".join(notes),
                }
            )
    write_json(
        part_path(folder, block.shard),
        {
            "digest": digest(block, form),
            "pixels": sums.pixels,
            "total": sums.total.tolist(),
            "square": sums.square.tolist(),
            "rows": rows,
            "skipped": skipped,
        },
    )
    return len(block.rows)


def _read(
    files: Files, name: str, config: CorpusConfig, form: Form
) -> tuple[Pixels, tuple[int, int], tuple[str, ...]]:
    """An image as it is stored, its size as it was, and what there is to say of it."""
    pixels, _, notes = read_member(files, name, config.read)
    found = Form(pixels.shape[2], str(pixels.dtype))
    if found != form:
        raise ImageReadError(
            f"{found.channels} channels of {found.dtype}, the first image has {form.channels} "
            f"of {form.dtype}",
            file=files.where(name),
            remedy="build a corpus of each kind, or leave it out (on_error: skip)",
        )
    height, width = pixels.shape[:2]
    return shrink(pixels, config.short_side), (height, width), notes


def shrink(pixels: Pixels, short_side: int) -> Pixels:
    """Shrink an image to a short side; as it is where that is not shorter, or 0."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    if not short_side or short <= short_side:
        return pixels
    scale = short_side / short
    size = (max(math.floor(height * scale + 0.5), 1), max(math.floor(width * scale + 0.5), 1))
    return resized_crop(pixels, (0, 0, height, width), size)
