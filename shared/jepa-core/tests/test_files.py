"""What people's files can be instead of what they should be, each said in one line."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepa_core.errors import DataError
from jepa_core.files import HEAD, data_folder, lfs_pointer, must_be_content, npy_header

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345678\n"


def test_a_pointer_says_how_large_the_file_is_that_it_stands_for() -> None:
    assert "a Git LFS pointer to a file of 12,345,678 bytes, not" in lfs_pointer(POINTER)
    assert "a Git LFS pointer, not the file itself" in lfs_pointer(POINTER[:43])
    assert lfs_pointer(b"") == lfs_pointer(b"a" + POINTER) == lfs_pointer(POINTER[:15]) == ""
    assert len(POINTER) < HEAD


def test_a_file_with_content_is_let_through(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    must_be_content(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none", r"none: no such file; check the path$"),
        ("empty/none", r"no such file"),
        ("folder", r"folder: is a folder; name one file in it$"),
        ("empty", r"empty: the file is empty; fetch it again$"),
        ("pointer", r"12,345,678 bytes, not the file itself; run `git lfs pull`"),
    ],
)
def test_a_file_without_content_is_one_line(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "pointer").write_bytes(POINTER)
    with pytest.raises(DataError, match=said):
        must_be_content(tmp_path / name)


def saved(array: np.ndarray, **how: object) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, **how)  # type: ignore[arg-type]
    return out.getvalue()


def promised(shape: object, dtype: str = "<f8") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4)])
def test_a_whole_array_has_its_shape_and_type(shape: tuple[int, ...], version) -> None:
    content = saved(np.zeros(shape, "<i2"), version=version)
    file = io.BytesIO(content)
    assert npy_header(file, len(content), "x") == (shape, np.dtype("<i2"))
    assert len(content) - file.tell() == 2 * int(np.prod(shape))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            promised("(1000000000000, 3)"),
            r"x: is cut off: .*24000000000000 bytes, the file has 128",
        ),
        (promised(f"({2**62}, 4)"), "is cut off"),  # in 64 bits that is no byte at all
        (promised("(-1, 3)"), "is cut off"),
        (
            saved(np.array([{}]), allow_pickle=True),
            "x: holds pickled objects, which are never read",
        ),
        (saved(np.zeros(3), version=(3, 0)), r"x: is an array of format \(3, 0\); save it again"),
    ],
)
def test_what_an_array_cannot_hold_is_refused_before_it_is_allocated(
    content: bytes, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        npy_header(io.BytesIO(content), len(content), "x")


@given(st.data())
def test_a_damaged_header_is_an_error_or_fits_the_file(data: st.DataObject) -> None:
    content = bytearray(saved(np.zeros((2, 3))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 127))] = data.draw(st.integers(0, 255))
    said = ""
    try:
        shape, dtype = npy_header(io.BytesIO(content), len(content), "x")
        assert int(np.prod(shape, dtype=object)) * dtype.itemsize <= len(content)
    except DataError as error:
        said = str(error)
    assert "\n" not in said


def test_real_data_are_looked_for_in_the_named_folder_and_then_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for root in ("named", "shared/data"):
        (tmp_path / root / "ecg").mkdir(parents=True)
        (tmp_path / root / "ecg" / "records").touch()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("JEPA_DATA", str(tmp_path / "named"))
    assert data_folder("ecg", "records", "records") == tmp_path / "named" / "ecg"
    monkeypatch.delenv("JEPA_DATA")
    assert data_folder("ecg", "records", "records") == Path("../shared/data/ecg")
    with pytest.raises(DataError, match=r"^images are not here; set JEPA_DATA .* vision/, or give"):
        data_folder("vision", "photos", "images")
