"""The part of a README that a command writes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection
from pathlib import Path

from jepa_core.errors import DataError
from jepa_core.run import write_text

_BEGIN, _END = "<!-- reproduce:begin -->", "<!-- reproduce:end -->"


def fill_readme(path: Path, text: str) -> None:
    """Put a text between the lines `<!-- reproduce:begin -->` and `<!-- reproduce:end -->`.

    Parameters
    ----------
    text
        Markdown; an empty one changes nothing and only looks whether the file can take one.

    Raises
    ------
    DataError
        The file cannot be read, or has not exactly one pair of these lines.
    """
    try:
        page = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=path) from error
    if page.count(_BEGIN) != 1 or page.count(_END) != 1 or page.index(_BEGIN) > page.index(_END):
        raise DataError(
            f"has not one line {_BEGIN} and one {_END} after it", where=path, remedy="put them in"
        )
    if text:
        before, rest = page.split(_BEGIN)
        after = rest.split(_END)[1]
        write_text(path, f"{before}{_BEGIN}\n\n{text.strip()}\n\n{_END}{after}")


def typed(
    places: Collection[str] = ("--out", "--data", "--readme"),
    switches: Collection[str] = ("--resume", "--overwrite"),
) -> str:
    """What was typed, without the flags that say where things lie and how to begin."""
    words, kept = iter(sys.argv[1:]), []
    for word in words:
        if word in places:
            next(words, None)
        elif word not in switches and not word.startswith(tuple(f"{place}=" for place in places)):
            kept.append(word)
    return shlex.join(["jepa", *kept])
