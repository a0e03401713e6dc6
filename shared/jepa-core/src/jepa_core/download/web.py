"""One file from a web server: asked for again where that may help, resumed, verified."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pooch
import requests

from jepa_core.download.files import CHUNK
from jepa_core.errors import ConfigError, DataError
from jepa_core.progress import Progress

T = TypeVar("T")

TIMEOUT = (15, 30)  # s to connect, and without a byte
_PAUSES = (1.0, 4.0)  # s before the second and the third attempt
_PASSING = (429, 500, 502, 503, 504)  # HTTP answers that another attempt may mend


def must_be_address(url: str) -> None:
    """Refuse what is no web address.

    Raises
    ------
    ConfigError
        Naming it.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{url!r} is no address that starts with http:// or https://")


def persist(attempt: Callable[[], T], pause: Callable[[float], object] = time.sleep) -> T:
    """What `attempt` returns; after failures that may pass it is called again, three times in all.

    Raises
    ------
    requests.RequestException
        That of the last attempt.
    """
    for seconds in (*_PAUSES, None):
        try:
            return attempt()
        except requests.RequestException as error:
            answer = error.response
            if seconds is None or (answer is not None and answer.status_code not in _PASSING):
                raise
            pause(seconds)
    raise AssertionError


@contextmanager
def ask(url: str, headers: Mapping[str, str] | None = None) -> Iterator[requests.Response]:
    """What a server sends for an address, not yet read.

    Raises
    ------
    DataError
        No connection, or the server refuses.
    """

    def attempt() -> requests.Response:
        # Checksums are of files as stored: no compression on the way.
        told = {"Accept-Encoding": "identity", **(headers or {})}
        response = requests.get(url, headers=told, stream=True, timeout=TIMEOUT)
        if not response.ok:
            response.close()
        response.raise_for_status()
        return response

    try:
        response = persist(attempt)
    except requests.RequestException as error:
        if error.response is not None:
            what = f"the server answers {error.response.status_code} {error.response.reason}"
            raise DataError(what, where=url) from None
        what = f"no connection ({type(error).__name__})"
        raise DataError(what, where=url, remedy="run the same command again") from None
    with response:
        yield response


def fetch_file(
    url: str, path: Path, *, md5: str, label: str = "downloading", progress: bool = True
) -> int:
    """Download one file whose MD5 is published, or go on with a download that was stopped.

    Parameters
    ----------
    url
        Its address.
    path
        Where to put it: a name of its own until it is whole, since a part of it stays there. A
        part is gone on with where the server serves ranges, and begun again where it does not; a
        whole file is kept.
    md5
        32 hexadecimal digits in lower case.
    label
        What the progress bar says.
    progress
        Show rate and time left on stderr when it takes longer than two seconds.

    Returns
    -------
    Bytes received now.

    Raises
    ------
    DataError
        The server does not answer, refuses, breaks off, or its file is not the published one.
    """
    received, there = 0, path.stat().st_size if path.exists() else 0
    if there and pooch.file_hash(str(path), alg="md5") == md5:
        return 0
    with ask(url, {"Range": f"bytes={there}-"} if there else None) as response:
        if response.status_code != requests.codes.partial_content:
            there = 0  # the server sends it from the beginning
        total = there + int(response.headers.get("Content-Length") or 0)
        with (
            Progress(f"{label} (MB)", max(total >> 20, 1), quiet=not progress) as bar,
            open(path, "ab" if there else "wb") as file,
        ):
            try:
                for chunk in response.iter_content(CHUNK):
                    file.write(chunk)
                    received += len(chunk)
                    bar.update((there + received) >> 20)
            except requests.RequestException as error:
                what = f"the connection broke off ({type(error).__name__})"
                raise DataError(what, where=url, remedy="the same command goes on") from None
    if pooch.file_hash(str(path), alg="md5") != md5:
        path.unlink()
        what = "its MD5 is not the published one: damaged on the way, or changed"
        raise DataError(what, where=url, remedy="run the same command again")
    return received
