"""Zip archives that are read in place, as if they came from an enemy."""

from __future__ import annotations

import io
import pickle
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jepa_core.errors import DataError
from jepa_vision.data.archives import FolderFiles, ZipFiles
from jepa_vision.data.folders import ImageFolder, find_images
from jepa_vision.data.images import ImageReadError

Data = Callable[[str], Path]


def png(value: int = 7) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(out, "png")
    return out.getvalue()


def pack(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return path


def test_an_archive_of_classes_is_read_without_being_unpacked(tmp_path: Path) -> None:
    path = pack(
        tmp_path / "x.zip",
        {
            "set/train/cat/b.png": png(1),
            "set/train/cat/a.PNG": png(2),
            "set/train/dog/ü é.png": png(3),
            "set/val/dog/d.png": png(4),
            "set/readme.txt": b"",
            "__MACOSX/set/train/cat/._a.png": b"",
            "set/train/.hidden.png": b"",
        },
    )
    images = ImageFolder(path)
    assert images.classes == ("cat", "dog")
    assert list(images.names) == [
        "set/train/cat/a.PNG",
        "set/train/cat/b.png",
        "set/train/dog/ü é.png",
        "set/val/dog/d.png",
    ]
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert [int(images.read(i)[0, 0, 0]) for i in range(4)] == [2, 1, 3, 4]
    assert images.sizes.tolist() == [[4, 5]] * 4
    assert len(ImageFolder(path, split="val")) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.zip"]


def test_an_archive_and_its_folder_are_read_alike(data: Data, tmp_path: Path) -> None:
    path = data("vision") / "cifar10_subset.zip"
    with zipfile.ZipFile(path) as packed:
        for name in packed.namelist()[::100]:
            packed.extract(name, tmp_path)
    folder, archive = ImageFolder(tmp_path), ImageFolder(path)
    assert (len(archive), len(folder)) == (2000, 20)
    place = {name: i for i, name in enumerate(archive.names)}
    for i, name in enumerate(folder.names):
        np.testing.assert_array_equal(folder.read(i), archive.read(place[name]))


def test_an_archive_goes_to_another_process(tmp_path: Path) -> None:
    files = ZipFiles(pack(tmp_path / "x.zip", {"a.png": png()}))
    assert files.names() == ["a.png"]
    again = pickle.loads(pickle.dumps(files))
    assert again.open("a.png").read() == png()


def test_several_processes_look_at_one_archive(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", {f"{i:03}.png": png(i % 256) for i in range(300)})
    images = ImageFolder(path, jobs=2, on_error="skip")
    assert (len(images), images.sizes.shape) == (300, (300, 2))


@pytest.mark.parametrize(
    "name",
    ["../x.png", "/x.png", "a/../../x.png", "C:/x.png", "a\\..\\x.png", "a//x.png", "a\n.png"],
)
def test_a_name_that_leaves_the_archive_is_refused(tmp_path: Path, name: str) -> None:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as packed:
        info = zipfile.ZipInfo("a.png")
        info.filename = name
        packed.writestr(info, png())
    (tmp_path / "x.zip").write_bytes(raw.getvalue())
    with pytest.raises(DataError, match="is not one inside its folder"):
        find_images(tmp_path / "x.zip")


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        info = zipfile.ZipInfo("a.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match=r"'a\.png' is a link"):
        find_images(tmp_path / "x.zip")


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        packed.writestr("a.png", png(1))
        with pytest.warns(UserWarning, match="Duplicate"):
            packed.writestr("a.png", png(2))
    with pytest.raises(DataError, match=r"a\.png is there twice"):
        find_images(tmp_path / "x.zip")


def test_an_encrypted_member_is_refused_with_a_remedy(tmp_path: Path) -> None:
    raw = bytearray(pack(tmp_path / "x.zip", {"a.png": png()}, zipfile.ZIP_STORED).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(signature) + offset] |= 1
    (tmp_path / "x.zip").write_bytes(raw)
    with pytest.raises(DataError, match=r"'a\.png' is encrypted; unpack it with its password"):
        find_images(tmp_path / "x.zip")


def declare(path: Path, size: int, packed: int | None = None) -> None:
    """Change the size in the archive's table (and the packed one), of its first member."""
    raw = bytearray(path.read_bytes())
    table = raw.index(b"PK\x01\x02")
    struct.pack_into("<I", raw, table + 24, size)
    if packed is not None:
        struct.pack_into("<I", raw, table + 20, packed)
    path.write_bytes(raw)


@pytest.mark.parametrize("size", [(1 << 30) + 1, 1 << 27])
def test_a_zip_bomb_is_refused_before_anything_is_unpacked(tmp_path: Path, size: int) -> None:
    path = pack(tmp_path / "x.zip", {"a.png": png()})
    declare(path, size)
    with pytest.raises(DataError, match="as a zip bomb does; if you trust it, unpack it"):
        find_images(path)


def test_a_member_that_is_larger_than_declared_is_damaged(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", {"a.npy": bytes(1 << 20)})
    declare(path, 1000)
    with pytest.raises(ImageReadError, match=r"x\.zip!a\.npy: damaged"):
        ImageFolder(path).read(0)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_unpack_without_bounds_are_refused(tmp_path: Path, method: int) -> None:
    path = pack(tmp_path / "x.zip", {"a.png": png()}, method)
    with pytest.raises(DataError, match="another method than deflate"):
        find_images(path)


def test_a_damaged_member_is_named_and_can_be_left_out(tmp_path: Path) -> None:
    path = pack(
        tmp_path / "x.zip", {"a.png": png(1), "b.png": png(2), "c.png": png(3)}, zipfile.ZIP_STORED
    )
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"b.png") + 40] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(ImageReadError, match=r"x\.zip!b\.png: damaged \(Bad CRC-32"):
        ImageFolder(path).read(1)
    images = ImageFolder(path, on_error="skip")
    assert list(images.names) == ["a.png", "c.png"]
    assert [s.name for s in images.skipped] == ["b.png"]


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06 no", b"hello"])
def test_what_is_no_archive_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.zip: no zip archive that can be read"):
        find_images(tmp_path / "x.zip")


def test_an_archive_without_images_says_what_it_holds(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", {"a.csv": b"", "b.csv": b""})
    with pytest.raises(DataError, match=r"no image \(there are 2 \.csv\)"):
        find_images(path)
    with pytest.raises(DataError, match="no image;"):
        find_images(pack(tmp_path / "y.zip", {}))


def test_a_member_that_is_not_there_is_named(tmp_path: Path) -> None:
    files = ZipFiles(pack(tmp_path / "x.zip", {"a.png": png()}))
    with pytest.raises(ImageReadError, match="no such member"):
        files.open("b.png")
    assert (files.has("a.png"), files.has("b.png")) == (True, False)


def test_a_folder_that_links_to_itself_is_walked_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.png").write_bytes(png())
    (tmp_path / "a/again").symlink_to(tmp_path, target_is_directory=True)
    assert FolderFiles(tmp_path).names() == ["a/x.png"]


def test_linked_classes_are_followed(tmp_path: Path) -> None:
    (tmp_path / "store/cat").mkdir(parents=True)
    (tmp_path / "store/cat/x.png").write_bytes(png())
    (tmp_path / "set").mkdir()
    (tmp_path / "set/cat").symlink_to(tmp_path / "store/cat", target_is_directory=True)
    assert find_images(tmp_path / "set").classes == ("cat",)
