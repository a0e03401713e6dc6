"""Pictures inside a page: SVG as text, pixels as compressed data, all within a budget."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from jepa_core.errors import DataError
from jepa_core.report.figures import follows_page, to_svg

_LARGEST_SVG = 250_000  # bytes; above it pixels are smaller
_LARGEST_PNG = 250_000  # bytes; above it 256 colours are enough
_WIDEST = 1600  # pixels, twice the page's column
_TYPES = {".png", ".jpg", ".jpeg", ".svg"}

Source = tuple[str, Path | str | Figure]


@dataclass(frozen=True)
class Picture:
    """A caption and the element that shows its picture."""

    caption: str
    html: Markup
    paper: bool  # whether it needs white paper under it


def save(figure: Figure, path: Path, caption: str) -> None:
    """Keep a figure in a run's figures/ with its caption beside it, for this and later reports.

    `path` ends in .svg or .png; the caption goes into the .txt of the same name.
    """
    figure.savefig(path, dpi=160)
    path.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")


def in_folder(folder: Path, given: Sequence[Source] = ()) -> list[Source]:
    """The pictures of a folder by name, without those already given by their path.

    The caption is the text of the .txt beside a picture, else its name.
    """
    taken = {Path(source).resolve() for _, source in given if not isinstance(source, Figure)}
    found: list[Source] = []
    for path in sorted(folder.glob("*")):
        if path.suffix.lower() in _TYPES and path.resolve() not in taken:
            words = path.with_suffix(".txt")
            caption = words.read_text(encoding="utf-8").strip() if words.exists() else ""
            found.append((caption or path.stem.replace("-", " ").replace("_", " "), path))
    return found


def embed(sources: Sequence[Source], budget: int) -> tuple[list[Picture], list[str]]:
    """The pictures that fit into `budget` bytes, and the captions of those that do not.

    Raises
    ------
    DataError
        If a file is no picture.
    """
    shown, left_out = [], []
    for caption, source in sources:
        picture = _picture(caption, source)
        if len(picture.html) > budget:
            name = "" if isinstance(source, Figure) else f" ({Path(source).name})"
            left_out.append(f"{caption}{name}")
            continue
        budget -= len(picture.html)
        shown.append(picture)
    return shown, left_out


def _picture(caption: str, source: Path | str | Figure) -> Picture:
    if isinstance(source, Figure):
        svg = to_svg(source, caption)
        if len(svg) <= _LARGEST_SVG:
            return Picture(caption, Markup(svg), paper=not follows_page(source))
        pixels = io.BytesIO()
        colour = "white" if follows_page(source) else "auto"
        source.savefig(pixels, format="png", dpi=160, facecolor=colour)
        return _pixels(caption, pixels.getvalue())
    path = Path(source)
    try:
        data = path.read_bytes()
        if path.suffix.lower() == ".svg":
            # As an image, so that nothing inside it is run or reaches into the page.
            return _image(caption, data, "image/svg+xml")
        return _pixels(caption, data)
    except OSError as error:
        raise DataError(f"is no picture: {error}", where=path) from error


def _pixels(caption: str, data: bytes) -> Picture:
    """PNG of at most `_WIDEST` pixels; JPEG stays JPEG."""
    with Image.open(io.BytesIO(data)) as image:
        kind = image.format
        image.load()
        if kind == "JPEG" and image.width <= _WIDEST:
            return _image(caption, data, "image/jpeg")
        image.thumbnail((_WIDEST, 4 * _WIDEST))
        encoded = io.BytesIO()
        if kind == "JPEG":
            image.save(encoded, "JPEG", quality=85)
            return _image(caption, encoded.getvalue(), "image/jpeg")
        image.save(encoded, "PNG", optimize=True)
        if len(encoded.getvalue()) > _LARGEST_PNG:
            encoded = io.BytesIO()
            image.convert("RGBA").quantize(256).save(encoded, "PNG", optimize=True)
    return _image(caption, encoded.getvalue(), "image/png")


def _image(caption: str, data: bytes, kind: str) -> Picture:
    text = base64.b64encode(data).decode()
    html = f'<img alt="{escape(caption)}" src="data:{kind};base64,{text}">'
    return Picture(caption, Markup(html), paper=True)
