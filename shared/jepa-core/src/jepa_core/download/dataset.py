"""Data sets that publish a list of checksums: several connections, verified, resumable."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import pooch
import requests

from jepa_core.download.files import AGAIN, CHUNK, disk_errors, inside, staging
from jepa_core.download.web import TIMEOUT, must_be_address, persist
from jepa_core.errors import DataError, Interrupted, JepaError
from jepa_core.progress import Progress

T = TypeVar("T")

_REMEDIES = {
    401: "this data set asks for an account: download it by hand",
    403: "this data set asks for an account: download it by hand",
    404: "check the address and the version",
}


@dataclass(frozen=True)
class Report:
    """What `fetch` did.

    Attributes
    ----------
    folder
        Where the files are.
    fetched, kept
        Number of files downloaded now, and of those that were already there and right.
    received
        Bytes received for the files.
    """

    folder: Path
    fetched: int
    kept: int
    received: int


def fetch(
    base_url: str,
    folder: str | Path,
    *,
    checksums: str = "SHA256SUMS.txt",
    select: Callable[[str], bool] | None = None,
    jobs: int = 4,
    progress: bool = True,
) -> Report:
    """Download a data set that publishes a list of SHA-256 checksums, as PhysioNet's do.

    Files that are there and have the right checksum are kept, so that a second run fetches what is
    missing. A failure of one file does not keep the others from being fetched.

    Parameters
    ----------
    base_url
        Address of the folder that holds the list; the list's paths are relative to it.
    folder
        Where to put the files, under the list's paths; made if it is not there.
    checksums
        Name of the list: lines of 64 hexadecimal digits, white space and a path.
    select
        Called with each path; files for which it returns False are left out.
    jobs
        Connections at a time.
    progress
        Show rate and time left on stderr when it takes longer than two seconds.

    Raises
    ------
    ConfigError
        `base_url` is no web address.
    DataError
        The list cannot be read or leaves the folder, a file cannot be had or is not what the list
        says, or the folder cannot be written.
    Interrupted
        Ctrl-C; finished files stay.
    """
    must_be_address(base_url)
    base, root = base_url.rstrip("/") + "/", Path(folder).expanduser()
    with staging(root) as unfinished, _Downloads(unfinished) as downloads:
        with _one_line(root, base + checksums):
            listed = downloads.get(base + checksums, None)
            sums = read_checksums(listed.read_bytes(), where=base + checksums)
            os.replace(listed, root / checksums)
        wanted = [path for path in sums if select is None or select(path)]
        if not wanted:
            raise DataError(f"none of its {len(sums)} files is selected", where=base + checksums)
        downloads.received = 0
        right: set[str] = set()
        failed: list[JepaError] = []

        def check(path: str) -> None:
            with disk_errors(root):
                if pooch.file_hash(str(root / path), alg="sha256") == sums[path]:
                    right.add(path)

        def download(path: str) -> None:
            try:
                with _one_line(root, base + path):
                    file = downloads.get(base + quote(path), sums[path])
                    (root / path).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(file, root / path)
            except _OneFileError as error:
                failed.append(error)

        try:
            there = [path for path in wanted if (root / path).is_file()]
            with Progress("checking", len(there), quiet=not progress) as bar:
                _spread(check, there, jobs, downloads.stop, bar.update)
            missing = [path for path in wanted if path not in right]
            with Progress("downloading", len(missing), quiet=not progress) as bar:

                def tell(done: int) -> None:
                    bar.update(done, f"{downloads.received / 1e6:.1f} MB")

                _spread(download, missing, jobs, downloads.stop, tell)
        except KeyboardInterrupt:
            raise Interrupted("interrupted", where=root, remedy=AGAIN) from None
    if failed:
        first, others = failed[0], len(failed) - 1
        more = f" ({others} more of {len(missing)} files failed)" if others else ""
        raise DataError(first.what + more, where=first.where, remedy=first.remedy)
    return Report(root, len(missing), len(right), downloads.received)


def read_checksums(text: bytes, *, where: object = "") -> dict[str, str]:
    """Paths and their SHA-256 in lower-case hexadecimal, in the list's order.

    Raises
    ------
    DataError
        A line is no checksum and path, a path comes twice with different checksums, or a path
        would leave the folder (absolute, `..`, backslash, drive letter).
    """
    sums: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        at = f"{where}:{number}"
        try:
            digest, _, name = line.decode("utf-8").strip().partition(" ")
        except UnicodeDecodeError:
            raise DataError("not UTF-8 text", where=at) from None
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdefABCDEF") or not name:
            raise DataError("not a SHA-256 checksum and a path", where=at)
        # The second of two separators is a star where the sum was taken in binary mode.
        path = inside(name.lstrip(" ").removeprefix("*"), at)
        if sums.setdefault(path, digest.lower()) != digest.lower():
            raise DataError(f"{path} is listed twice, with different checksums", where=at)
    if not sums:
        raise DataError("an empty list of checksums", where=where)
    return sums


class _OneFileError(DataError):
    """A failure that says nothing of the other files."""


class _StoppedError(Exception):
    """Another thread failed, or Ctrl-C."""


class _Downloads:
    """Downloads of several threads, each over one connection that is kept open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stop = threading.Event()
        self.received = 0
        self._files = 0
        self._lock = threading.Lock()
        self._thread = threading.local()
        self._sessions = ExitStack()

    def __enter__(self) -> _Downloads:
        self._level = pooch.get_logger().level
        pooch.get_logger().setLevel("WARNING")  # a line a file is too much
        return self

    def __exit__(self, *_: object) -> None:
        pooch.get_logger().setLevel(self._level)
        self._sessions.close()

    def get(self, url: str, sha256: str | None) -> Path:
        """Download to a new file in `folder`, verified; passing failures are tried again."""
        with self._lock:
            self._files += 1
            name = str(self._files)
        known = sha256 and f"sha256:{sha256}"

        def transfer() -> Path:
            return Path(pooch.retrieve(url, known, name, self.folder, downloader=self))

        return persist(transfer, self.stop.wait)

    def __call__(self, url: str, output_file: str, _: Any) -> None:
        """What pooch calls to transfer a file."""
        if not hasattr(self._thread, "session"):
            with self._lock:
                self._thread.session = self._sessions.enter_context(requests.Session())
            # The checksums are of the files as stored: no compression on the way.
            self._thread.session.headers["Accept-Encoding"] = "identity"
        session: requests.Session = self._thread.session
        # pooch makes the file readable by its owner only; a new one follows the user's umask.
        os.unlink(output_file)
        with (
            session.get(url, stream=True, timeout=TIMEOUT) as response,
            open(output_file, "wb") as file,
        ):
            response.raise_for_status()
            for chunk in response.iter_content(CHUNK):
                if self.stop.is_set():
                    raise _StoppedError
                file.write(chunk)
                with self._lock:
                    self.received += len(chunk)


def _spread(
    work: Callable[[T], None],
    items: Sequence[T],
    jobs: int,
    stop: threading.Event,
    tell: Callable[[int], None],
) -> None:
    """Call `work` on every item in `jobs` threads; the first exception or Ctrl-C stops all."""
    waiting: queue.SimpleQueue[T] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)

    def run() -> None:
        while not stop.is_set():
            try:
                work(waiting.get_nowait())
            except (queue.Empty, _StoppedError):
                return

    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(run) for _ in range(min(jobs, len(items)))}
        try:
            while running:
                done, running = wait(running, timeout=0.2, return_when=FIRST_EXCEPTION)
                tell(len(items) - waiting.qsize() - len(running))
                for finished in done:
                    finished.result()
        except BaseException:
            stop.set()
            raise


@contextmanager
def _one_line(root: Path, url: str) -> Iterator[None]:
    """Turn what the network, pooch and the disk raise into one line."""
    try:
        with disk_errors(root):
            try:
                yield
            except requests.RequestException as error:  # an OSError too, but not the disk's
                raise _no_answer(error, url) from None
    except JepaError:
        raise
    except ValueError:  # pooch's, when the checksum differs
        what = "its SHA-256 is not the published one: damaged on the way, or changed"
        raise _OneFileError(what, where=url, remedy=AGAIN) from None


def _no_answer(error: requests.RequestException, url: str) -> DataError:
    if error.response is None:
        what = f"no connection, or one that broke off ({type(error).__name__})"
        return DataError(what, where=url, remedy=AGAIN)
    status = error.response.status_code
    what = f"the server answers {status} {error.response.reason}"
    return _OneFileError(what, where=url, remedy=_REMEDIES.get(status, ""))
