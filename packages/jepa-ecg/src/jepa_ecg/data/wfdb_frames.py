"""The files of a WFDB record segment as one array of digital samples.

Every size that a header announces is compared with the size of the file before anything is
allocated, and no name in a header leads out of the header's folder.
"""

from __future__ import annotations

import os
from itertools import groupby
from operator import attrgetter
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int64, Integer

from jepa_ecg.data.errors import ECGFormatError, refuse_lfs_pointer
from jepa_ecg.data.wfdb_formats import FORMATS, byte_count, decode, sample_count, sample_format
from jepa_ecg.data.wfdb_header import NO_DATA, Header, Signal

# What a header may announce without bytes behind it (gaps, padding): 1 GiB as float32.
_MAX_UNBACKED = 2**28

Truncated = Literal["error", "pad"]
Verify = Literal["warn", "error", "off"]


class Frames(NamedTuple):
    """The samples of one segment.

    Attributes
    ----------
    digital
        (time, signals), int16 or int32; a missing sample is `missing_code` of its signal.
    means
        By column: exact means (NaN = missing) where a frame holds several samples, of which
        `digital` has the rounded value.
    rate
        Rows per frame: 1 unless expanded.
    warnings
        What was accepted although it is not as it should be.
    """

    digital: Integer[np.ndarray, "time signals"]
    means: dict[int, Float[np.ndarray, " time"]]
    rate: int
    warnings: tuple[str, ...]


class _Group(NamedTuple):
    """Consecutive signals that share a file; `width` samples per frame in all."""

    signals: list[Signal]
    width: int
    plain: bool  # one sample per frame, no skew, no differences: reshaping is all there is to do


class _Part(NamedTuple):
    """Samples of one file in file order, as many as there are, and the frames it should hold."""

    samples: Integer[np.ndarray, " samples"]
    n_frames: int


def missing_code(signal: Signal) -> int:
    """The digital value of that signal which stands for a missing sample."""
    return FORMATS[signal.fmt if signal.fmt in FORMATS else 16].missing


def read_frames(header: Header, truncated: Truncated, verify: Verify, expand: bool) -> Frames:
    """Read the files of a header that has signals. Options and errors as `read_record`."""
    groups = [
        _group(header, list(signals)) for _, signals in groupby(header.signals, attrgetter("file"))
    ]
    files = [group.signals[0].file for group in groups if group.signals[0].file != NO_DATA]
    if len(set(files)) < len(files):
        raise ECGFormatError(
            "the signals of one file must be on consecutive lines", file=header.path
        )
    warnings: list[str] = []
    parts: list[_Part | None] = []
    n_frames = header.n_samples
    for group in groups:
        part = None
        if group.signals[0].file != NO_DATA:
            part = _read_file(header, group, n_frames, truncated, warnings)
            n_frames = part.n_frames
        parts.append(part)
    if n_frames is None:
        raise ECGFormatError(
            "neither header nor files say how long the record is", file=header.path
        )
    if verify != "off":
        _verify(header, groups, parts, verify, warnings)
    if len(groups) == 1 and groups[0].plain and (part := parts[0]) is not None:
        shape = (n_frames, groups[0].width)
        if part.samples.size == n_frames * groups[0].width:
            return Frames(part.samples.reshape(shape), {}, 1, tuple(warnings))
    rate = max(signal.samples_per_frame for signal in header.signals) if expand else 1
    width = max(sum(group.width for group in groups), rate * len(header.signals))
    held = sum(part.samples.size for part in parts if part)
    refuse_unbacked(n_frames * width - held, header.path)
    return _assemble(header, groups, parts, n_frames, rate, expand, warnings)


def _group(header: Header, signals: list[Signal]) -> _Group:
    first = signals[0]
    layout = first[1:5]  # fmt, samples per frame, skew, offset
    if all(signal[1:5] == layout for signal in signals):
        plain = first.samples_per_frame == 1 and first.skew == 0 and first.fmt != 8
        return _Group(signals, len(signals) * first.samples_per_frame, plain)
    for field, values in (
        ("signal format", {signal.fmt for signal in signals}),
        ("byte offset", {signal.offset for signal in signals} - {0}),
    ):
        if len(values) > 1:
            raise ECGFormatError(
                f"the signals in {first.file} differ: {', '.join(map(str, sorted(values)))}",
                file=header.path,
                field=field,
            )
    return _Group(signals, sum(signal.samples_per_frame for signal in signals), False)


def _read_file(
    header: Header,
    group: _Group,
    announced: int | None,
    truncated: Truncated,
    warnings: list[str],
) -> _Part:
    first, width = group.signals[0], group.width
    fmt = first.fmt
    unit = sample_format(fmt, file=header.path).size
    path = inside(header.path, first.file, "file name")
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise ECGFormatError(
            f"the data file {first.file} is missing",
            file=header.path,
            field="file name",
            remedy="download it",
        ) from None
    except (OSError, ValueError) as error:
        raise ECGFormatError(f"cannot be read: {error}", file=path) from None
    try:
        size = os.fstat(file).st_size
        held = max(0, size - first.offset)
        n_frames = announced
        if n_frames is None:
            n_frames = sample_count(fmt, held) // width
            if held - byte_count(fmt, n_frames * width) >= unit:
                n_frames += 1  # the last frame is incomplete
        need = byte_count(fmt, n_frames * width)
        raw = _read_bytes(file, min(first.offset, size), min(need, held))
    except (OSError, MemoryError) as error:
        raise ECGFormatError(f"cannot be read: {error}", file=path) from None
    finally:
        os.close(file)
    n_samples = n_frames * width
    if len(raw) < need:
        refuse_lfs_pointer(path)
        if announced is None:
            what = f"{held:,} bytes are no whole number of frames, {need:,} would be"
        else:
            what = f"{need + first.offset:,} bytes are announced, the file has {size:,}"
        if truncated == "error":
            raise ECGFormatError(
                what, file=path, remedy="download it again, or give --truncated pad"
            )
        n_samples = min(n_samples, sample_count(fmt, len(raw)))
        warnings.append(f"{first.file}: {what}; the rest is missing")
    elif held - need >= unit:
        warnings.append(
            f"{first.file}: the file has {size:,} bytes, {need + first.offset:,} are announced; "
            "the rest is ignored"
        )
    return _Part(decode(raw, fmt, n_samples), n_frames)


def _read_bytes(file: int, offset: int, n: int) -> bytes:
    if offset:
        os.lseek(file, offset, os.SEEK_SET)
    raw = os.read(file, n)
    if len(raw) < n:  # one call returns 2 GiB at most
        parts = [raw]
        while (missing := n - sum(map(len, parts))) and (more := os.read(file, missing)):
            parts.append(more)
        raw = b"".join(parts)
    return raw


def inside(header_path: str, name: str, field: str) -> str:
    """Path of a file named in a header.

    Raises
    ------
    ECGFormatError
        The name leads out of the header's folder.
    """
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or ":" in parts[0] or "\0" in name:
        raise ECGFormatError(
            f"{name!r} leads out of the record's folder", file=header_path, field=field
        )
    folder, slash, _ = header_path.rpartition("/")
    return f"{folder}{slash}{'/'.join(parts)}"


def refuse_unbacked(n: int, path: str) -> None:
    """Refuse a header that announces far more samples than its files hold."""
    if n > _MAX_UNBACKED:
        raise ECGFormatError(
            f"{n:,} samples are announced that no file holds, more than {_MAX_UNBACKED:,}",
            file=path,
            field="number of samples",
        )


def _assemble(
    header: Header,
    groups: list[_Group],
    parts: list[_Part | None],
    n_frames: int,
    rate: int,
    expand: bool,
    warnings: list[str],
) -> Frames:
    """Unpack frames of any shape."""
    formats = [FORMATS.get(signal.fmt, FORMATS[16]) for signal in header.signals]
    dtype = "<i4" if any(format_.dtype == "<i4" for format_ in formats) else "<i2"
    digital = np.empty((n_frames * rate, len(header.signals)), dtype)
    means: dict[int, Float[np.ndarray, " time"]] = {}
    column = 0
    for group, part in zip(groups, parts, strict=True):
        at = 0
        for signal in group.signals:
            per_frame, code = signal.samples_per_frame, missing_code(signal)
            block = np.full((n_frames, per_frame), code, dtype)
            if part is not None:
                stored = _samples_of(signal, part.samples, group.width, at)
                block.reshape(-1)[: len(stored)] = stored
            if skew := min(signal.skew, n_frames):
                block[: n_frames - skew] = block[skew:].copy()
                block[n_frames - skew :] = code
            if expand:
                if rate % per_frame:
                    raise ECGFormatError(
                        f"{per_frame} samples per frame do not divide {rate}",
                        file=header.path,
                        field="samples per frame",
                    )
                digital[:, column] = block.repeat(rate // per_frame, 1).reshape(-1)
            elif per_frame == 1:
                digital[:, column] = block[:, 0]
            else:
                mean = block.mean(1, dtype=np.float64)
                mean[(block == code).any(1)] = np.nan
                means[column] = mean
                digital[:, column] = np.where(np.isnan(mean), code, np.rint(mean))
            column += 1
            at += per_frame
    return Frames(digital, means, rate, tuple(warnings))


def _samples_of(
    signal: Signal, samples: Integer[np.ndarray, " samples"], width: int, at: int
) -> Integer[np.ndarray, " own"]:
    """One signal out of interleaved frames, of which the last may be incomplete."""
    whole = len(samples) // width * width
    own = slice(at, at + signal.samples_per_frame)
    stored = samples[:whole].reshape(-1, width)[:, own].reshape(-1)
    if whole < len(samples):
        stored = np.concatenate([stored, samples[whole:][own]])
    if signal.fmt == 8:
        return (np.cumsum(stored, dtype=np.int64) + signal.init).astype(np.int32)
    return stored


def _verify(
    header: Header,
    groups: list[_Group],
    parts: list[_Part | None],
    verify: Verify,
    warnings: list[str],
) -> None:
    """Compare each signal's checksum: the sum of its samples as stored, modulo 65536."""
    disagree = []
    for group, part in zip(groups, parts, strict=True):
        if part is None or len(part.samples) < part.n_frames * group.width:
            continue
        for signal, total in zip(group.signals, _sums(group, part), strict=True):
            if signal.checksum is not None and (total - signal.checksum) % 65536:
                disagree.append(signal.name or signal.file)
    if disagree:
        what = f"the checksum disagrees: {', '.join(disagree)}"
        if verify == "error":
            raise ECGFormatError(what, file=header.path, field="checksum")
        warnings.append(what)


def _sums(group: _Group, part: _Part) -> list[int]:
    if group.plain:
        return _column_sums(part.samples.reshape(-1, group.width)).tolist()
    starts = np.cumsum([0] + [signal.samples_per_frame for signal in group.signals[:-1]])
    if group.signals[0].fmt == 8:
        return [
            int(_samples_of(signal, part.samples, group.width, at).sum(dtype=np.int64))
            for at, signal in zip(starts.tolist(), group.signals, strict=True)
        ]
    return np.add.reduceat(_column_sums(part.samples.reshape(-1, group.width)), starts).tolist()


def _column_sums(x: Integer[np.ndarray, "time columns"]) -> Int64[np.ndarray, " columns"]:
    """Sums along time, modulo 2**16 or more.

    A dozen columns are summed a dozen numbers at a time; folded into rows of about sqrt(time)
    samples the same sum runs at the speed of memory.
    """
    unsigned = x.view(f"u{x.dtype.itemsize}")
    fold = 1 << (len(x).bit_length() // 2)
    whole = len(x) // fold * fold
    rows = unsigned[:whole].reshape(-1, fold * x.shape[1])
    total = np.add.reduce(rows, 0, dtype=rows.dtype).reshape(fold, -1).sum(0, dtype=np.int64)
    if whole < len(x):
        total += unsigned[whole:].sum(0, dtype=np.int64)
    return total
