"""WFDB sample formats: how many bytes hold n samples, and the samples of these bytes.

Format: the WFDB Applications Guide, signal(5). FLAC (508, 516, 524) is refused.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8

from jepa_ecg.data.errors import ECGFormatError

_FLAC = (508, 516, 524)


class SampleFormat(NamedTuple):
    """Samples are packed in groups of `samples` in `size` bytes; `partial[r]` bytes hold r < group.

    `missing` is the value that stands for no sample. Format 8 stores differences and has none;
    once summed up its samples are 32 bits wide, so the lowest 32-bit number is free.
    """

    samples: int
    size: int
    partial: tuple[int, ...]
    missing: int
    dtype: str


FORMATS = {
    8: SampleFormat(1, 1, (0,), -(2**31), "<i4"),
    16: SampleFormat(1, 2, (0,), -(2**15), "<i2"),
    24: SampleFormat(1, 3, (0,), -(2**23), "<i4"),
    32: SampleFormat(1, 4, (0,), -(2**31), "<i4"),
    61: SampleFormat(1, 2, (0,), -(2**15), "<i2"),
    80: SampleFormat(1, 1, (0,), -(2**7), "<i2"),
    160: SampleFormat(1, 2, (0,), -(2**15), "<i2"),
    212: SampleFormat(2, 3, (0, 2), -(2**11), "<i2"),
    310: SampleFormat(3, 4, (0, 2, 4), -(2**9), "<i2"),
    311: SampleFormat(3, 4, (0, 2, 3), -(2**9), "<i2"),
}


def sample_format(fmt: int, *, file: object = "") -> SampleFormat:
    """The format of that number.

    Raises
    ------
    ECGFormatError
        Unknown, or FLAC.
    """
    if fmt in _FLAC:
        raise ECGFormatError(
            f"FLAC-compressed WFDB (format {fmt}) is not supported",
            file=file,
            field="signal format",
            remedy="convert it with WFDB's xform to format 16",
        )
    if fmt not in FORMATS:
        raise ECGFormatError(
            f"the WFDB format {fmt} is unknown; known are {', '.join(map(str, FORMATS))}",
            file=file,
            field="signal format",
        )
    return FORMATS[fmt]


def byte_count(fmt: int, n: int) -> int:
    """Bytes that `n` samples need."""
    samples, size, partial, *_ = FORMATS[fmt]
    groups, rest = divmod(n, samples)
    return groups * size + partial[rest]


def sample_count(fmt: int, n_bytes: int) -> int:
    """Whole samples in `n_bytes` bytes."""
    samples, size, partial, *_ = FORMATS[fmt]
    groups, rest = divmod(n_bytes, size)
    return groups * samples + max(r for r, need in enumerate(partial) if need <= rest)


def decode(raw: bytes, fmt: int, n: int) -> Integer[np.ndarray, " n"]:
    """The first `n` samples of `raw`, int16 or int32; of format 8 the differences, int8.

    `raw` must hold at least `byte_count(fmt, n)` bytes.
    """
    match fmt:
        case 16:
            return np.frombuffer(raw, "<i2", n)
        case 61:
            return np.frombuffer(raw, ">i2", n).astype("<i2")
        case 160:
            return (np.frombuffer(raw, "<u2", n) ^ 0x8000).view("<i2")
        case 80:
            return np.frombuffer(raw, np.uint8, n).astype("<i2") - np.int16(128)
        case 8:
            return np.frombuffer(raw, np.int8, n)
        case 32:
            return np.frombuffer(raw, "<i4", n)
        case 24:
            wide = np.empty((n, 4), np.uint8)
            wide[:, 1:] = np.frombuffer(raw, np.uint8, 3 * n).reshape(n, 3)
            return (
                wide.view("<i4")[:, 0] >> 8
            )  # arithmetic, so the garbage byte goes and signs stay
        case 212:
            b = _groups(raw, fmt, n).astype("<i2")
            high = np.stack([b[:, 1] << 12, (b[:, 1] & 0xF0) << 8], 1)
            return _flat((high >> 4) | b[:, 0::2], n)
        case 310:
            w = np.ascontiguousarray(_groups(raw, fmt, n)).view("<u2")
            third = (w[:, 0] >> 11) | ((w[:, 1] >> 11) << 5)
            return _flat(_ten_bits(np.stack([w[:, 0] >> 1, w[:, 1] >> 1, third], 1)), n)
        case 311:
            w = np.ascontiguousarray(_groups(raw, fmt, n)).view("<u4")
            shifts = np.array([0, 10, 20], np.uint32)
            return _flat(_ten_bits((w >> shifts).astype(np.uint16)), n)
    raise AssertionError(f"format {fmt}")


def _groups(raw: bytes, fmt: int, n: int) -> UInt8[np.ndarray, "groups size"]:
    """The packed groups of `n` samples; a last partial one is completed with zeros."""
    samples, size, *_ = FORMATS[fmt]
    groups = -(-n // samples)
    bytes_ = np.frombuffer(raw, np.uint8, byte_count(fmt, n))
    if len(bytes_) < groups * size:
        bytes_ = np.concatenate([bytes_, np.zeros(groups * size - len(bytes_), np.uint8)])
    return bytes_.reshape(groups, size)


def _ten_bits(words: Integer[np.ndarray, ...]) -> Integer[np.ndarray, ...]:
    """The low ten bits as a two's complement number."""
    return (words << 6).astype(np.uint16).view(np.int16) >> 6


def _flat(samples: Integer[np.ndarray, "groups samples"], n: int) -> Integer[np.ndarray, " n"]:
    return samples.astype("<i2", copy=False).reshape(-1)[:n]
