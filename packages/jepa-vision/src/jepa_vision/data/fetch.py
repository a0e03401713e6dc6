"""Public data sets by name: what `jepa vision data fetch` downloads.

Each is one or two archives whose MD5 is published; they are verified, unpacked and removed.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from jepa_core.config import read_json
from jepa_core.download import fetch_file, must_be_address, unpack
from jepa_core.download.files import disk_errors
from jepa_core.errors import ConfigError, DataError, Interrupted
from jepa_core.progress import Progress
from jepa_core.run import write_json


@dataclass(frozen=True)
class PublicImages:
    """A data set that anyone may download.

    Attributes
    ----------
    archives
        Address and MD5 of each.
    summary
        One line for a list of data sets.
    cite
        What a user of the data set cites.
    arrange
        Called with the folder when all is unpacked there.
    """

    archives: tuple[tuple[str, str], ...]
    summary: str
    cite: str
    arrange: Callable[[Path], None] = lambda _: None


class Report(NamedTuple):
    """What `fetch` did: where the files are, whether they had to be downloaded, bytes received."""

    folder: Path
    fetched: bool
    received: int


def _unpack_inner(root: Path) -> None:
    """Caltech-101 is a zip archive of tar archives."""
    for name in ("101_ObjectCategories.tar.gz", "Annotations.tar"):
        inner = root / "caltech-101" / name
        unpack(inner, inner.parent)
        inner.unlink()


def _unbin(root: Path) -> None:
    """CIFAR-10's binary form, as files in folders of their classes: `train/<class>/NNNNN.png`."""
    source = root / "cifar-10-batches-bin"
    try:
        classes = (source / "batches.meta.txt").read_text("utf-8").split()
        batches = sorted(source.glob("data_batch_*.bin")), [source / "test_batch.bin"]
        for split, files in zip(("train", "test"), batches, strict=True):
            records = np.concatenate([_records(path) for path in files])
            with Progress(f"writing {split}", len(records)) as bar:
                for name in classes:
                    (root / split / name).mkdir(parents=True, exist_ok=True)
                for number, record in enumerate(records):
                    pixels = record[1:].reshape(3, 32, 32).transpose(1, 2, 0)
                    path = root / split / classes[record[0]] / f"{number:05d}.png"
                    Image.fromarray(np.ascontiguousarray(pixels)).save(path, compress_level=1)
                    bar.update(number + 1)
    except (FileNotFoundError, ValueError, IndexError) as error:
        raise DataError(f"is not CIFAR-10's binary form ({error})", where=source) from None
    shutil.rmtree(source)


def _records(path: Path) -> np.ndarray:
    return np.fromfile(path, np.uint8).reshape(-1, 1 + 3 * 32 * 32)


PUBLIC: dict[str, PublicImages] = {
    "caltech101": PublicImages(
        (
            (
                "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
                "3138e1922a9193bfa496528edbbc45d0",
            ),
        ),
        "8,677 photographs of 101 kinds of objects, and clutter; 132 MB",
        "Fei-Fei, Fergus, Perona, CVPR Workshops (2004)",
        _unpack_inner,
    ),
    "oxford-pet": PublicImages(
        (
            (
                "https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz",
                "5c4f3ee8e5d25df40f4fd59a7f44e54c",
            ),
            (
                "https://www.robots.ox.ac.uk/~vgg/data/pets/data/annotations.tar.gz",
                "95a8c909bbe2e81eed6a22bccdf3f68f",
            ),
        ),
        "7,349 photographs of 37 breeds of cats and dogs, with a label for every pixel; 811 MB",
        "Parkhi, Vedaldi, Zisserman, Jawahar, CVPR (2012)",
    ),
    "imagenette": PublicImages(
        (
            (
                "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
                "3df6f0d01a2c9592104656642f5e78a3",
            ),
        ),
        "13,394 photographs of 10 classes of ImageNet, short side 320; 341 MB",
        "Howard, imagenette (2019), and Russakovsky et al., IJCV 115, 211 (2015)",
    ),
    "cifar10": PublicImages(
        (
            (
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                "c32a1d4ab5d03f1284b67883e8d87530",
            ),
        ),
        "60,000 pictures of 32x32 pixels in 10 classes; 170 MB",
        "Krizhevsky, Learning multiple layers of features from tiny images (2009)",
        _unbin,
    ),
}
"""Name to data set; all are open to anyone, without an account."""


def fetch(
    name: str, folder: str | Path, *, base_url: str | None = None, progress: bool = True
) -> Report:
    """Download a public data set and unpack it.

    One that is there is kept, and a download that was stopped goes on.

    Parameters
    ----------
    name
        A key of `PUBLIC`.
    folder
        Where to put the files; made if it is not there.
    base_url
        A mirror to take instead: a folder that holds the archives under their own names.
    progress
        Show rate and time left on stderr when it takes longer than two seconds.

    Raises
    ------
    ConfigError
        No such data set, or an address that is none.
    DataError
        The server does not answer, an archive is not what its checksum says or is damaged, or the
        folder cannot be written.
    Interrupted
        Ctrl-C; what was received stays.
    """
    if name not in PUBLIC:
        close = difflib.get_close_matches(name, PUBLIC, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        remedy = f"{hint}allowed: {', '.join(PUBLIC)}"
        raise ConfigError(f"no public data set called {name}", remedy=remedy)
    if base_url is not None:
        must_be_address(base_url)
    public, root = PUBLIC[name], Path(folder).expanduser()
    done = root / f"{name}.source.json"
    wanted = {"archives": [md5 for _, md5 in public.archives]}
    received = 0
    try:
        with disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            if done.exists() and read_json(done) == wanted:
                return Report(root, False, 0)
            for url, md5 in public.archives:
                file = url.rpartition("/")[2]
                where = f"{base_url.rstrip('/')}/{file}" if base_url else url
                archive = root / f".{file}.partial"
                received += fetch_file(where, archive, md5=md5, progress=progress)
                unpack(archive, root, progress=progress)
                archive.unlink()
            public.arrange(root)
            write_json(done, wanted)
    except KeyboardInterrupt:
        raise Interrupted("interrupted", where=root, remedy="the same command goes on") from None
    return Report(root, True, received)
