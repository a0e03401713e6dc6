"""A table of results: kept as JSON, shown on a terminal, in Markdown and in the report."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jepa_core.errors import DataError

if TYPE_CHECKING:
    import jinja2
    import rich.table
    from rich.console import Console

Cell = str | float | int | None

# A number, or one with an interval or a deviation behind it: 0.83, -2 %, 0.83 [0.81, 0.85].
_NUMBER = re.compile(r"[<>~]?\s?[-+\u2212]?\d[\d.,e+-]*(\s?%)?(\s*([\[(±].*))?")


@dataclass(frozen=True)
class Table:
    """Rows under named columns.

    Parameters
    ----------
    title
        What the table shows, in a few words.
    columns
        Names of the columns.
    rows
        Cells: text, a number, or None for what does not exist. NumPy's numbers are converted.
    notes
        What a reader must know to read the numbers: one sentence each.

    Raises
    ------
    DataError
        If a row has not one cell a column, or a cell is of another type.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[list[Cell]]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("columns", "notes"):
            words = getattr(self, name)
            if isinstance(words, str) or not all(isinstance(word, str) for word in words):
                raise DataError(f"{name} of a table must be texts, not {words!r}")
            object.__setattr__(self, name, tuple(words))
        if not isinstance(self.title, str):
            raise DataError(f"title of a table must be a text, not {self.title!r}")
        rows = []
        for index, row in enumerate(self.rows):
            if isinstance(row, str) or not isinstance(row, Sequence):
                raise DataError(f"row {index} of table {self.title!r} is no list: {row!r}")
            if len(row) != len(self.columns):
                raise DataError(
                    f"row {index} of table {self.title!r} has {len(row)} cells, "
                    f"there are {len(self.columns)} columns"
                )
            rows.append([self._cell(cell, index) for cell in row])
        object.__setattr__(self, "rows", rows)

    def _cell(self, cell: Any, row: int) -> Cell:
        if cell is None or isinstance(cell, str):
            return cell
        if isinstance(cell, numbers.Integral) and not isinstance(cell, bool):
            return int(cell)
        if isinstance(cell, numbers.Real) and not isinstance(cell, bool):
            return float(cell)
        raise DataError(
            f"row {row} of table {self.title!r} holds {cell!r}; allowed are text, numbers, None"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; a number that is not finite becomes None (JSON has none)."""
        rows = [
            [None if isinstance(c, float) and not math.isfinite(c) else c for c in row]
            for row in self.rows
        ]
        return {
            "title": self.title,
            "columns": list(self.columns),
            "rows": rows,
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, data: Any, *, where: object = "") -> Table:
        """The table that `to_dict` wrote.

        Raises
        ------
        DataError
            Naming `where` and the key that is unknown, missing or of the wrong type.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(data, Mapping):
            raise DataError(f"a table must be an object, not {type(data).__name__}", where=where)
        for key in [*sorted(set(data) - set(names), key=str), *names]:
            if key not in names:
                raise DataError(f"{key!r} is no part of a table", where=where, remedy=f"{names}")
            if key not in data:
                raise DataError(f"a table lacks {key!r}", where=where)
            if key != "title" and not isinstance(data[key], list):
                raise DataError(f"{key!r} of a table must be a list", where=where)
        try:
            return cls(**data)
        except DataError as error:
            raise DataError(error.what, where=where) from None

    def texts(self) -> list[list[str]]:
        """The cells as shown; numbers of a column share their decimals."""
        columns = [_column([row[i] for row in self.rows]) for i in range(len(self.columns))]
        return [[column[i] for column in columns] for i in range(len(self.rows))]

    def numeric(self) -> list[bool]:
        """For each column whether it holds numbers only, which are set flush right."""
        shown = self.texts()
        return [
            any(row[i] != _NONE for row in shown)
            and all(row[i] == _NONE or _NUMBER.fullmatch(row[i]) for row in shown)
            for i in range(len(self.columns))
        ]

    def to_markdown(self) -> str:
        """A GitHub table under its title in bold, notes below."""

        def line(cells: Sequence[str]) -> str:
            clean = (" ".join(c.split()).replace("\\", "\\\\").replace("|", "\\|") for c in cells)
            return f"| {' | '.join(clean)} |"

        rule = "|" + "".join(" ---: |" if right else " --- |" for right in self.numeric())
        lines = [f"**{self.title}**", "", line(self.columns), rule]
        lines += [line(row) for row in self.texts()]
        for note in self.notes:
            lines += ["", note]
        return "\n".join(lines) + "\n"

    def to_html(self) -> str:
        """A `<figure>` with the table, everything in it escaped."""
        return environment().get_template("table.html").render(table=self)

    def __rich__(self) -> rich.table.Table:
        """What `rich` prints; control characters of the cells never reach the terminal."""
        import rich.box
        import rich.table
        from rich.text import Text

        def text(words: str) -> Text:
            return Text("".join(c if c.isprintable() else " " for c in words))

        drawn = rich.table.Table(
            title=text(self.title),
            title_justify="left",
            title_style="bold",
            caption=text("  ".join(self.notes)) if self.notes else None,
            caption_justify="left",
            box=rich.box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for name, right in zip(self.columns, self.numeric(), strict=True):
            drawn.add_column(text(name), justify="right" if right else "left")
        for row in self.texts():
            drawn.add_row(*map(text, row))
        return drawn

    def print(self, console: Console | None = None) -> None:
        """Show the table on the terminal."""
        from rich.console import Console

        (console or Console()).print(self)


def interval(value: float, low: float, high: float, digits: int = 3) -> str:
    """A cell that shows a value with its interval: `0.832 [0.810, 0.851]`."""
    if math.isnan(value):
        return _NONE
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


_NONE = "–"


def _column(cells: Sequence[Cell]) -> list[str]:
    sizes = [abs(c) for c in cells if isinstance(c, float) and math.isfinite(c) and c]
    largest, smallest = max(sizes, default=0.0), min(sizes, default=1.0)
    decimals = 3 if largest < 1 else max(0, 3 - math.floor(math.log10(largest)))
    # Numbers of very different size share no decimals: each keeps its own leading digits.
    form = ".3g" if largest >= 1e6 or smallest < 0.5 * 10**-decimals else f".{decimals}f"
    return [_text(cell, form) for cell in cells]


def _text(cell: Cell, form: str) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return _NONE
    return format(cell, form) if isinstance(cell, float) else str(cell)


@cache
def environment() -> jinja2.Environment:
    """The templates of this folder, with everything escaped that is put into them."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
