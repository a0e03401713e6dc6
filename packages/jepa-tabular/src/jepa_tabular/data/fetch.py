"""Public tables by name: what `jepa tabular data fetch` downloads.

They come from OpenML, whose description of a data set (JSON, by its id) names the file and its MD5
checksum, and are then put into the layout that the official program reads.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import pandas as pd
import pooch

from jepa_core.config import read_json
from jepa_core.download import ask, fetch_file, must_be_address
from jepa_core.download.files import disk_errors
from jepa_core.errors import ConfigError, DataError, Interrupted
from jepa_core.run import write_json
from jepa_tabular.data import tables
from jepa_tabular.data.arff import read_arff

OPENML = "https://www.openml.org"


@dataclass(frozen=True)
class PublicTable:
    """A table that anyone may download.

    Attributes
    ----------
    data_id
        Its number at OpenML.
    summary
        One line for a list of tables.
    renamed
        Names of the official layout for those of OpenML.
    """

    data_id: int
    summary: str
    renamed: tuple[tuple[str, str], ...] = ()


PUBLIC: dict[str, PublicTable] = {
    "adult": PublicTable(
        1590,
        "48,842 people, 14 columns: does one earn more than 50,000 dollars a year?",
        (("education-num", "educational-num"), ("sex", "gender"), ("class", "income")),
    ),
    "helena": PublicTable(41169, "65,196 rows, 27 columns of numbers, 100 classes"),
    "jannis": PublicTable(41168, "83,733 rows, 54 columns of numbers, 4 classes"),
    "aloi": PublicTable(42396, "108,000 images of objects as 128 numbers, 1,000 classes"),
    "california": PublicTable(43939, "20,640 districts, 8 columns: median value of a house"),
    "higgs": PublicTable(23512, "98,050 collisions, 28 columns: signal or background"),
}
"""Name to table."""


class Report(NamedTuple):
    """What `fetch` did: where the table is, whether it had to be downloaded, bytes received."""

    path: Path
    fetched: bool
    received: int


def fetch(
    name: str, folder: str | Path, *, base_url: str | None = None, progress: bool = True
) -> Report:
    """Download a public table and put it into its official layout.

    A table that is there as it was left is kept, and a download that was stopped goes on.

    Parameters
    ----------
    name
        A key of `PUBLIC`.
    folder
        Where to put the file; made if it is not there.
    base_url
        A mirror of OpenML to take instead.
    progress
        Show rate and time left on stderr when it takes longer than two seconds.

    Raises
    ------
    ConfigError
        No such table, or an address that is none.
    DataError
        The server does not answer, its file is not what its checksum says or not that table, or
        the folder cannot be written.
    Interrupted
        Ctrl-C; what was received stays.
    """
    if name not in PUBLIC:
        close = difflib.get_close_matches(name, PUBLIC, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        remedy = f"{hint}allowed: {', '.join(PUBLIC)}"
        raise ConfigError(f"no public table called {name}", remedy=remedy)
    base = (base_url or OPENML).rstrip("/")
    must_be_address(base)
    public, root = PUBLIC[name], Path(folder).expanduser()
    final = root / tables.LAYOUTS[name].files[0]
    source = root / f"{name}.source.json"
    with disk_errors(root), _stopped(root):
        root.mkdir(parents=True, exist_ok=True)
        told = _describe(f"{base}/api/v1/json/data/{public.data_id}")
        if final.exists() and source.exists() and read_json(source) == _source(told, final):
            return Report(final, False, 0)
        url = told["url"] if base_url is None else base + urlparse(told["url"]).path
        partial = root / f".partial-{told['md5_checksum']}"
        received = fetch_file(
            url,
            partial,
            md5=told["md5_checksum"],
            label=f"downloading {name}",
            progress=progress,
        )
        try:
            _convert(name, partial, told["default_target_attribute"], final)
            _check(name, final)
        except DataError as error:
            final.unlink(missing_ok=True)
            what = f"the file is not that table: {error.what} ({error.where})"
            raise DataError(what, where=url) from None
        finally:
            partial.unlink(missing_ok=True)
        write_json(source, _source(told, final))
    return Report(final, True, received)


def _source(told: dict[str, Any], path: Path) -> dict[str, str]:
    """Where a file came from, and what it was when it had been written."""
    digest = pooch.file_hash(str(path), alg="sha256")
    return {"url": told["url"], "md5": told["md5_checksum"], "sha256": digest}


def _describe(url: str) -> dict[str, Any]:
    """OpenML's description of a data set.

    Raises
    ------
    DataError
        It cannot be had, or does not say what is needed.
    """
    with ask(url) as response:
        try:
            told = response.json()["data_set_description"]
            needed = {key: str(told[key]) for key in ("url", "md5_checksum", "format")}
            needed["default_target_attribute"] = str(told.get("default_target_attribute", ""))
        except (ValueError, KeyError, TypeError):
            raise DataError("the answer is no description of a data set", where=url) from None
    md5 = needed["md5_checksum"].lower()
    if len(md5) != 32 or not set(md5) <= set("0123456789abcdef"):
        raise DataError(f"md5_checksum is {md5!r}", where=url)
    if needed["format"].lower() != "arff":
        raise DataError(f"the file is {needed['format']}, not ARFF", where=url)
    if not needed["url"].startswith(("http://", "https://")):
        raise DataError(f"url is {needed['url']!r}", where=url)
    return {**needed, "md5_checksum": md5}


def _convert(name: str, arff: Path, target: str, final: Path) -> None:
    """Write the official layout beside its place, then rename."""
    beside = final.with_name(f"{final.name}.partial")
    if final.suffix == ".arff":
        os.replace(arff, final)
        return
    with open(arff, "rb") as file:
        frame = read_arff(file, path=name)
    layout = tables.LAYOUTS[name]
    if isinstance(layout.label, int):
        if target not in frame.columns:
            raise DataError(f"there is no column {target!r}", where=name)
        label = frame.pop(target)
        frame.insert(0 if layout.label == 0 else frame.shape[1], target, label)
    frame = frame.rename(columns=dict(PUBLIC[name].renamed))
    for column, values in frame.items():
        if isinstance(values.dtype, pd.CategoricalDtype):
            if name == "adult":  # OpenML reads as missing what the official file has as a category
                frame[column] = values.astype("str").fillna("?")
        elif values.notna().all() and (values % 1 == 0).all():
            frame[column] = values.astype("int64")
    try:
        frame.to_csv(beside, index=False)
        os.replace(beside, final)
    finally:
        beside.unlink(missing_ok=True)


def _check(name: str, path: Path) -> None:
    table = tables.read(name, path)
    wanted, n = tables.LAYOUTS[name].rows, len(table.frame)
    # One row of higgs is published with missing numbers, and is left out.
    if not wanted - 1 <= n <= wanted:
        raise DataError(f"{n} rows; {name} has {wanted}", where=path.name)


@contextmanager
def _stopped(root: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        remedy = "the same command goes on"
        raise Interrupted("interrupted", where=root, remedy=remedy) from None
