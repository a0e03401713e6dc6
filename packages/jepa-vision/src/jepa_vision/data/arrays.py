"""Images in .npy and .npz files, of any number of channels; nothing is ever unpickled."""

from __future__ import annotations

import io
import zipfile
from typing import BinaryIO, Literal, NamedTuple

import numpy as np

_LARGEST = 1 << 30  # bytes of one array: Pillow's limit of pixels, in three channels of 16 bits
_PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # methods that unpack in bounded steps
_FEW = 16  # channels: a first axis as short as this beside two longer ones is theirs


class ArrayError(ValueError):
    """What is wrong with an array, as a phrase."""


class _Shape(NamedTuple):
    height: int
    width: int
    channels: int
    dtype: np.dtype


def read_shape(file: BinaryIO, form: Literal["NPY", "NPZ"]) -> _Shape:
    """Height, width, channels and dtype of an image in an array file, from its header."""
    if form == "NPZ":
        with zipfile.ZipFile(file) as packed, packed.open(_member(packed)) as member:
            return _read_header(member)[0]  # type: ignore[arg-type]
    return _read_header(file)[0]


def read_array(file: BinaryIO, form: Literal["NPY", "NPZ"]) -> np.ndarray:
    """The array as [height, width, channels]: uint8, uint16 or floating point.

    Raises
    ------
    ArrayError
        It is of another type or shape, or not whole.
    """
    if form == "NPZ":
        with zipfile.ZipFile(file) as packed:
            info = _member(packed)
            if info.file_size > _LARGEST:
                raise ArrayError(f"{info.filename} takes {info.file_size / 1e9:.1f} GB")
            with packed.open(info) as member:
                # No more is unpacked than the archive's table says.
                file = io.BytesIO(member.read(info.file_size))
    shape, order, begin = _read_header(file)
    n = shape.height * shape.width * shape.channels
    wanted = n * shape.dtype.itemsize
    held = file.seek(0, io.SEEK_END) - begin
    if held < wanted:
        raise ArrayError(f"truncated: {held} bytes of {wanted}")
    if wanted > _LARGEST:
        raise ArrayError(f"too large: {wanted / 1e9:.1f} GB")
    file.seek(begin)
    values = np.frombuffer(file.read(wanted), shape.dtype)
    return values.reshape(shape[:3], order=order)


def refuse_unfinite(values: np.ndarray) -> None:
    """Raise where values are NaN or infinite, with their number."""
    n = int(values.size - np.count_nonzero(np.isfinite(values)))
    if n:
        raise ArrayError(f"{n} of {values.size} values are NaN or infinite")


def _member(packed: zipfile.ZipFile) -> zipfile.ZipInfo:
    found = [info for info in packed.infolist() if info.filename.endswith(".npy")]
    named = [info for info in found if info.filename == "image.npy"]
    if len(named or found) != 1:
        names = ", ".join(info.filename.removesuffix(".npy") for info in found)
        raise ArrayError(f"one array is needed, or one called image; there are {names or 'none'}")
    info = (named or found)[0]
    if info.compress_type not in _PLAIN:
        raise ArrayError(f"{info.filename} is packed with another method than deflate")
    return info


def _read_header(file: BinaryIO) -> tuple[_Shape, Literal["C", "F"], int]:
    """Shape, order, and where the values begin."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    if len(shape) == 2:
        shape = (*shape, 1)
    if dtype not in (np.uint8, np.uint16) and dtype.kind != "f":
        raise ArrayError(f"an array of {dtype}; images are uint8, uint16 or floating point")
    if len(shape) != 3 or 0 in shape:
        raise ArrayError(
            f"an array with the shape {list(shape)}; images are [height, width, channels]"
        )
    if shape[0] <= _FEW < min(shape[1:]):
        raise ArrayError(
            f"an array with the shape {list(shape)} looks as if its channels came first; "
            "images are [height, width, channels]"
        )
    return _Shape(*shape, dtype), "F" if fortran else "C", file.tell()
