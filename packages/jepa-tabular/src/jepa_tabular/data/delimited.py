"""CSV and TSV: every line is counted before it is parsed, so that a wrong one has a number.

Quotes are those of RFC 4180: a field that begins with `"` ends at the next single one, and may hold
separators and line ends. Lines may end in `\\n` or `\\r\\n`; blank ones mean nothing.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow
import pyarrow.csv
from jaxtyping import Int64

from jepa_core.errors import DataError

# Bytes: a longer line is no line of a table.
_LONGEST = 1 << 23

# What stands for a missing value. "None" and "?" do not: they are categories of public tables.
_MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "#N/A")


class Skipped(NamedTuple):
    """A row that is left out: its line in the file, and why."""

    line: int
    reason: str


class Lines(NamedTuple):
    """Some rows as they stand in the file, each with the right number of fields.

    Attributes
    ----------
    text
        The rows, one after the other.
    numbers
        The line that each begins at, from 1.
    multiline
        Whether a row spans several lines.
    skipped
        Lines in between that have another number of fields.
    position
        Bytes of the file read so far (packed ones where it is packed).
    """

    text: bytes
    numbers: Int64[np.ndarray, " rows"]
    multiline: bool
    skipped: list[Skipped]
    position: int


class Delimited:
    """A CSV or TSV file, plain or gzipped.

    Parameters
    ----------
    path
        The file.
    separator
        Between fields.

    Attributes
    ----------
    columns
        Names in the first line.

    Raises
    ------
    DataError
        The file is empty or no text, or its first line names no columns: names are missing, occur
        twice or are numbers.
    """

    def __init__(self, path: str | Path, separator: str) -> None:
        self.path = Path(path)
        self.separator = separator
        with self._open() as (read, _):
            self.columns = self._names(read())

    def blocks(self, rows: int | None = None) -> Iterator[Lines]:
        """Blocks of `rows` rows (all when None), wrong ones included; the last may be shorter.

        Raises
        ------
        DataError
            The file breaks off: a packed one is damaged, or a quote is not closed.
        """
        separator, wanted = self.separator.encode(), len(self.columns)
        with self._open() as (read, position):
            read()
            number = 1
            texts: list[bytes] = []
            numbers: list[int] = []
            skipped: list[Skipped] = []
            multiline = False
            while line := read():
                number += 1
                if not line.strip(b" \t\r\n") and b"\t" not in line:
                    continue
                first, fields = number, line.count(separator) + 1
                if b'"' in line:
                    record = self._quoted(line, read, number)
                    fields, number = record.fields, number + record.more
                    line = record.text
                    multiline |= record.more > 0
                if fields == wanted:
                    texts.append(line if line.endswith(b"\n") else line + b"\n")
                    numbers.append(first)
                else:
                    skipped.append(Skipped(first, f"{fields} fields, expected {wanted}"))
                if len(texts) + len(skipped) == rows:
                    where = np.array(numbers, np.int64)
                    yield Lines(b"".join(texts), where, multiline, skipped, position())
                    texts, numbers, skipped, multiline = [], [], [], False
            if texts or skipped:
                where = np.array(numbers, np.int64)
                yield Lines(b"".join(texts), where, multiline, skipped, position())

    def parse(
        self, lines: Lines, types: Mapping[str, pyarrow.DataType] | None = None
    ) -> pyarrow.Table:
        """The rows as an Arrow table: of these types, or of those that their text suggests.

        Raises
        ------
        DataError
            Not UTF-8.
        pyarrow.ArrowInvalid
            A text is not of its column's type.
        """
        if not lines.text:
            schema = {name: (types or {}).get(name, pyarrow.null()) for name in self.columns}
            return pyarrow.schema(list(schema.items())).empty_table()
        try:
            table = pyarrow.csv.read_csv(
                pyarrow.BufferReader(lines.text),
                read_options=pyarrow.csv.ReadOptions(
                    column_names=self.columns, block_size=2 * _LONGEST
                ),
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=self.separator,
                    newlines_in_values=lines.multiline,
                    ignore_empty_lines=False,
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=types, null_values=_MISSING, strings_can_be_null=True
                ),
            )
        except pyarrow.ArrowInvalid:
            self._check_encoding(lines)
            raise
        if any(map(pyarrow.types.is_binary, table.schema.types)):
            self._check_encoding(lines)
        return table

    def _check_encoding(self, lines: Lines) -> None:
        try:
            lines.text.decode("utf-8")
        except UnicodeDecodeError as error:
            where = f"{self.path}"
            if not lines.multiline:
                row = lines.text.count(b"\n", 0, error.start)
                where += f", line {lines.numbers[row]}"
            what = f"the byte 0x{lines.text[error.start]:02x} is not UTF-8"
            raise DataError(what, where=where, remedy="save it as UTF-8") from None

    def _names(self, line: bytes) -> list[str]:
        if not line.strip(b" \t\r\n"):
            what = "the first line is blank" if line else "the file is empty"
            raise DataError(what, where=self.path, remedy="the first line names the columns")
        if line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line:
            raise DataError("is no UTF-8 text", where=self.path, remedy="save it as UTF-8")
        where = f"{self.path}, line 1"
        try:
            text = line.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise DataError("is not UTF-8 text", where=where, remedy="save it as UTF-8") from None
        names = [name.strip() for name in next(csv.reader([text], delimiter=self.separator))]
        for i, name in enumerate(names):
            if not name:
                remedy = "name it; pandas writes such a column unless index=False"
                raise DataError(f"column {i + 1} has no name", where=where, remedy=remedy)
            if name in names[:i]:
                raise DataError(f"two columns are called {name!r}", where=where)
        if len(names) == 1:
            others = [mark for mark in (",", ";", "\t", "|") if mark in names[0]]
            if others:
                what = f"one column, {names[0][:40]!r}; the separator looks like {others[0]!r}"
                remedy = f"{self.separator!r} is what separates the columns of such a file"
                raise DataError(what, where=where, remedy=remedy)
        if all(map(_is_number, names)) and names != [str(i) for i in range(len(names))]:
            remedy = "put a line with their names above"
            raise DataError("numbers where the columns' names belong", where=where, remedy=remedy)
        return names

    def _quoted(self, line: bytes, read: Callable[[], bytes], number: int) -> _Record:
        """The whole of a row with quotes in it, which may take more lines."""
        taken = [line]
        ended = False

        def text() -> Iterator[str]:
            nonlocal ended
            yield line.decode("latin-1")
            while following := read():
                taken.append(following)
                yield following.decode("latin-1")
            ended = True

        try:
            fields = len(next(csv.reader(text(), delimiter=self.separator)))
        except csv.Error as error:
            where, what = f"{self.path}, line {number}", "a quote that is not closed"
            raise DataError(f"{what}, or {error}", where=where) from None
        if ended:  # the reader asked for more lines than there are
            where, what = f"{self.path}, line {number}", "a quote that is not closed"
            raise DataError(what, where=where)
        return _Record(b"".join(taken), fields, len(taken) - 1)

    @contextmanager
    def _open(self) -> Iterator[tuple[Callable[[], bytes], Callable[[], int]]]:
        """Functions that give the next line, and the bytes read so far."""
        with open(self.path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            source: BinaryIO | gzip.GzipFile = gzip.GzipFile(fileobj=file) if packed else file
            number = 0

            def read() -> bytes:
                nonlocal number
                try:
                    line = source.readline(_LONGEST + 1)
                except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                    what = f"the packed file is damaged after line {number} ({error})"
                    raise DataError(what, where=self.path, remedy="get it again") from None
                number += 1
                if len(line) > _LONGEST:
                    what = f"is longer than {_LONGEST >> 20} MiB"
                    raise DataError(what, where=f"{self.path}, line {number}")
                return line

            yield read, file.tell


class _Record(NamedTuple):
    text: bytes
    fields: int
    more: int


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
