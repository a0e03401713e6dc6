"""Fetching public data sets, from miniatures of them served on the loopback interface."""

from __future__ import annotations

import functools
import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jepa_core.errors import ConfigError, DataError
from jepa_vision.data.fetch import PUBLIC, fetch
from jepa_vision.data.folders import ImageFolder, find_images, find_scenes


def jpeg(value: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 6), (value, value, value)).save(out, "jpeg")
    return out.getvalue()


def png(value: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("L", (8, 6), value).save(out, "png")
    return out.getvalue()


def tar(members: dict[str, bytes], mode: str = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as packed:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    return out.getvalue()


def caltech() -> bytes:
    out = io.BytesIO()
    images = {f"101_ObjectCategories/{c}/image_0001.jpg": jpeg() for c in ("ant", "crab")}
    with zipfile.ZipFile(out, "w") as packed:
        packed.writestr("caltech-101/101_ObjectCategories.tar.gz", tar(images))
        packed.writestr("caltech-101/Annotations.tar", tar({"Annotations/ant/1.mat": b""}, "w"))
    return out.getvalue()


CIFAR = np.random.default_rng(0).integers(0, 256, (6, 2, 3, 32, 32), np.uint8)


def cifar() -> bytes:
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    members = {
        f"cifar-10-batches-bin/{name}": b"".join(
            bytes([label]) + CIFAR[i, label].tobytes() for label in range(2)
        )
        for i, name in enumerate(names)
    }
    members["cifar-10-batches-bin/batches.meta.txt"] = b"airplane\nautomobile\n\n"
    return tar(members)


PETS = {
    "images.tar.gz": tar({"images/Abyssinian_1.jpg": jpeg()}),
    "annotations.tar.gz": tar(
        {
            "annotations/list.txt": b"Abyssinian_1 1 1 1\n",
            "annotations/trainval.txt": b"Abyssinian_1 1 1 1\n",
            "annotations/test.txt": b"",
            "annotations/trimaps/Abyssinian_1.png": png(2),
        }
    ),
}


class Mirror:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch, self.address = folder, monkeypatch, ""

    def put(self, name: str, files: dict[str, bytes]) -> None:
        """Serve files as the archives of a data set, with their own checksums."""
        for file, content in files.items():
            (self.folder / file).write_bytes(content)
        archives = [
            (url, hashlib.md5(files[url.rpartition("/")[2]]).hexdigest())
            for url, _ in PUBLIC[name].archives
        ]
        public = replace(PUBLIC[name], archives=tuple(archives))
        self.monkeypatch.setitem(PUBLIC, name, public)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    site = Mirror(folder, monkeypatch)
    handler = functools.partial(Quiet, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        site.address = f"http://127.0.0.1:{server.server_port}/"
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()


def test_caltech_is_unpacked_twice_and_found(mirror: Mirror, tmp_path: Path) -> None:
    mirror.put("caltech101", {"caltech-101.zip": caltech()})
    report = fetch("caltech101", tmp_path / "out", base_url=mirror.address)
    assert report.fetched
    assert report.received == len(caltech())
    assert find_images(tmp_path / "out").classes == ("ant", "crab")
    left = [p.suffix for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert sorted(left) == [".jpg", ".jpg", ".json", ".mat"]


def test_a_data_set_that_is_there_is_kept(mirror: Mirror, tmp_path: Path) -> None:
    mirror.put("oxford-pet", PETS)
    fetch("oxford-pet", tmp_path / "out", base_url=mirror.address)
    report = fetch("oxford-pet", tmp_path / "out", base_url=mirror.address)
    assert (report.fetched, report.received) == (False, 0)
    scenes = find_scenes(tmp_path / "out", split="train")
    assert (scenes.label(0) == 1).all()
    assert find_images(tmp_path / "out").classes == ("Abyssinian",)


def test_cifar_becomes_folders_of_classes(mirror: Mirror, tmp_path: Path) -> None:
    mirror.put("cifar10", {"cifar-10-binary.tar.gz": cifar()})
    fetch("cifar10", tmp_path / "out", base_url=mirror.address)
    train = ImageFolder(tmp_path / "out", split="train")
    assert (len(train), train.classes) == (10, ("airplane", "automobile"))
    assert train.labels is not None
    assert train.labels.tolist() == [0] * 5 + [1] * 5
    np.testing.assert_array_equal(train.read(6), CIFAR[1, 1].transpose(1, 2, 0))
    test = ImageFolder(tmp_path / "out", split="test")
    np.testing.assert_array_equal(test.read(0), CIFAR[5, 0].transpose(1, 2, 0))
    assert not (tmp_path / "out/cifar-10-batches-bin").exists()


def test_a_tree_with_splits_needs_no_arranging(mirror: Mirror, tmp_path: Path) -> None:
    files = {f"imagenette2-320/{s}/n0{c}/{i}.JPEG": jpeg() for s in ("train", "val")
             for c in (1, 2) for i in range(2)}  # fmt: skip
    mirror.put("imagenette", {"imagenette2-320.tgz": tar(files)})
    fetch("imagenette", tmp_path / "out", base_url=mirror.address)
    listing = find_images(tmp_path / "out", split="val")
    assert (len(listing), listing.classes) == (4, ("n01", "n02"))


def test_an_archive_that_had_arrived_is_not_downloaded_again(
    mirror: Mirror, tmp_path: Path
) -> None:
    mirror.put("oxford-pet", PETS)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.images.tar.gz.partial").write_bytes(PETS["images.tar.gz"])
    report = fetch("oxford-pet", tmp_path / "out", base_url=mirror.address)
    assert report.received == len(PETS["annotations.tar.gz"])


def test_another_archive_than_the_published_one_is_refused(mirror: Mirror, tmp_path: Path) -> None:
    mirror.put("oxford-pet", PETS)
    (mirror.folder / "images.tar.gz").write_bytes(b"changed")
    with pytest.raises(DataError, match=r"images\.tar\.gz: its MD5 is not the published one"):
        fetch("oxford-pet", tmp_path / "out", base_url=mirror.address)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_server_without_the_file_is_named(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"caltech-101\.zip: the server answers 404"):
        fetch("caltech101", tmp_path / "out", base_url=mirror.address)


def test_names_and_addresses_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean cifar10.*allowed: caltech101, oxford-pet"):
        fetch("cifar", tmp_path)
    with pytest.raises(ConfigError, match="no address"):
        fetch("cifar10", tmp_path, base_url="ftp://example")


def test_every_archive_has_an_address_and_a_checksum() -> None:
    for public in PUBLIC.values():
        for url, md5 in public.archives:
            assert url.startswith("https://")
            assert len(bytes.fromhex(md5)) == 16
