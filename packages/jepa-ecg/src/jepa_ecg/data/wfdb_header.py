"""WFDB headers (`.hea`): the text file that says where a record's samples lie and what they mean.

Format: the WFDB Applications Guide, header(5); the deviations accepted here are those of files
that people really have (Challenge 2020/2021, PTB-XL+, MIMIC-IV-ECG).
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from jepa_ecg.data.errors import ECGFormatError, refuse_lfs_pointer

DEFAULT_FS = 250.0
DEFAULT_GAIN = 200.0
NO_DATA = "~"

_FORMAT = re.compile(r"(\d{1,9})(?:x(\d{1,9}))?(?::(\d{1,18}))?(?:\+(\d{1,18}))?", re.ASCII)
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_GAIN = re.compile(rf"({_NUMBER})(?:\(([+-]?\d{{1,18}})\))?(?:/(.+))?", re.ASCII)
_RATE = re.compile(rf"({_NUMBER})(?:/({_NUMBER})(?:\(({_NUMBER})\))?)?", re.ASCII)
_COUNT = re.compile(r"\d{1,18}", re.ASCII)
_TIME = re.compile(r"\d{1,2}:\d{1,2}(?::\d{1,2})?(?:\.\d+)?", re.ASCII)
_DATE = re.compile(r"\d{1,2}/\d{1,2}/\d{4}", re.ASCII)
_INTEGER_FIELDS = ("ADC resolution", "ADC zero", "initial value", "checksum", "block size")


class Signal(NamedTuple):
    """One signal line: where its samples lie in which file, and what a unit of them means."""

    file: str
    fmt: int
    samples_per_frame: int
    skew: int
    offset: int
    gain: float
    baseline: int
    units: str
    adc_resolution: int
    adc_zero: int
    init: int
    checksum: int | None
    block: int
    name: str


class Header(NamedTuple):
    """A parsed header.

    Attributes
    ----------
    path
        The `.hea` file.
    name
        Record name as written.
    fs
        Frames per second, in Hz.
    n_samples
        Samples per signal and frame rate; None when the header does not say.
    signals
        The signal lines; of a multi-segment record, none.
    segments
        (name, length in samples) of a multi-segment record, else empty.
    n_signals
        Signals announced by the record line.
    base_time, base_date
        As written, empty where absent or unusable.
    comments
        Comment lines in order, without `#`.
    warnings
        What was accepted although it is not as it should be.
    """

    path: str
    name: str
    fs: float
    n_samples: int | None
    n_signals: int
    signals: tuple[Signal, ...]
    segments: tuple[tuple[str, int], ...]
    counter_fs: float | None
    base_counter: float
    base_time: str
    base_date: str
    comments: tuple[str, ...]
    warnings: tuple[str, ...]


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read a WFDB header.

    Parameters
    ----------
    path
        The record, with or without `.hea`.

    Raises
    ------
    ECGFormatError
        The file is missing, empty or malformed; names file, line and field.
    """
    name = os.fspath(path)
    if not name.endswith(".hea"):
        name += ".hea"
    try:
        with io.FileIO(name) as file:
            data = file.readall()
    except FileNotFoundError:
        raise ECGFormatError(
            "there is no such header", file=name, remedy="name a record with or without .hea"
        ) from None
    except (OSError, ValueError) as error:
        raise ECGFormatError(f"cannot be read: {error}", file=name) from None
    refuse_lfs_pointer(name, data)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("latin-1")  # every byte is a character: a stray unit costs no record
    return parse_header(text, name)


def parse_header(text: str, path: str = "") -> Header:
    """Parse the text of a header; `path` is where it came from. Raises as `read_header`."""
    comments: list[str] = []
    body: list[tuple[int, str]] = []
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        line = raw.strip()
        if not line:
            continue
        if line[0] == "#":
            comments.append(line[1:].strip())
        else:
            body.append((number, line))
    if not body:
        what = "holds nothing but comments" if comments else "is empty"
        raise ECGFormatError(f"the header {what}", file=path)
    warnings: list[str] = []
    number, line = body[0]
    record = _record_line(line, number, path, warnings)
    signals: tuple[Signal, ...] = ()
    segments: tuple[tuple[str, int], ...] = ()
    if record.n_segments is None:
        lines = _announced(body, record.n_signals, "signal", path, warnings)
        signals = tuple([_signal_line(*item, path, warnings) for item in lines])
    else:
        lines = _announced(body, record.n_segments, "segment", path, warnings)
        segments = tuple([_segment_line(*item, path) for item in lines])
    return Header(
        path,
        record.name,
        record.fs,
        record.n_samples,
        record.n_signals,
        signals,
        segments,
        record.counter_fs,
        record.base_counter,
        record.base_time,
        record.base_date,
        tuple(comments),
        tuple(warnings),
    )


class _RecordLine(NamedTuple):
    name: str
    n_segments: int | None
    n_signals: int
    fs: float
    counter_fs: float | None
    base_counter: float
    n_samples: int | None
    base_time: str
    base_date: str


def _record_line(line: str, number: int, path: str, warnings: list[str]) -> _RecordLine:
    tokens = line.split()
    if len(tokens) < 2:
        raise ECGFormatError(
            f"the record line {line!r} has {len(tokens)} field, at least a name and the number of "
            "signals are needed",
            file=path,
            line=number,
        )
    name, n_segments = _record_name(tokens[0], path, number)
    n_signals = _count(tokens[1], "number of signals", path, number)
    fs, counter_fs, base_counter = DEFAULT_FS, None, 0.0
    if len(tokens) > 2:
        match = _RATE.fullmatch(tokens[2])
        fs = float(match[1]) if match else 0.0
        if match is None or not (0 < fs < math.inf):
            raise ECGFormatError(
                f"{tokens[2]!r} is no sampling rate",
                file=path,
                line=number,
                field="sampling frequency",
            )
        counter_fs = float(match[2]) if match[2] else None
        base_counter = float(match[3]) if match[3] else 0.0
    n_samples = None
    if len(tokens) > 3:
        n_samples = _count(tokens[3], "number of samples", path, number)
        if n_segments is None:
            n_samples = n_samples or None
    time = date = ""
    for token in tokens[4:]:
        if not time and _TIME.fullmatch(token):
            time = token
        elif time and not date and _DATE.fullmatch(token):
            date = token
        else:
            warnings.append(f"line {number}: {token!r} is no date where one belongs; ignored")
    return _RecordLine(
        name, n_segments, n_signals, fs, counter_fs, base_counter, n_samples, time, date
    )


def _record_name(token: str, path: str, number: int) -> tuple[str, int | None]:
    name, slash, last = token.rpartition("/")
    if not slash or not _COUNT.fullmatch(last):
        return token, None
    # `folder/00001` in a file 00001.hea is a name with a folder, not a record of 1 segment.
    stem = os.path.basename(path).removesuffix(".hea")
    if stem == last and stem != name:
        return token, None
    if int(last) == 0:
        raise ECGFormatError("a record of 0 segments", file=path, line=number, field="segments")
    return name, int(last)


def _announced(
    body: Sequence[tuple[int, str]], n: int, what: str, path: str, warnings: list[str]
) -> Sequence[tuple[int, str]]:
    lines = body[1:]
    if len(lines) < n:
        raise ECGFormatError(f"{n} {what}s announced, {len(lines)} described", file=path)
    if len(lines) > n:
        warnings.append(f"{n} {what}s announced, {len(lines)} lines; the last are ignored")
    return lines[:n]


def _segment_line(number: int, line: str, path: str) -> tuple[str, int]:
    tokens = line.split()
    if len(tokens) < 2:
        raise ECGFormatError(
            f"{line!r} should be a segment's name and length", file=path, line=number
        )
    return tokens[0], _count(tokens[1], "segment length", path, number)


def _signal_line(number: int, line: str, path: str, warnings: list[str]) -> Signal:
    fields = line.split(None, 8)
    n = len(fields)
    if n < 2:
        raise ECGFormatError(
            f"{line!r} names no format", file=path, line=number, field="signal format"
        )
    layout = _format(fields[1])
    if layout is None:
        raise ECGFormatError(
            f"{fields[1]!r} is no signal format", file=path, line=number, field="signal format"
        )
    fmt, per_frame, skew, offset = layout
    gain, baseline, units = 0.0, None, "mV"
    if n > 2:
        calibration = _gain(fields[2])
        if calibration is None:
            raise ECGFormatError(f"{fields[2]!r} is no gain", file=path, line=number, field="gain")
        gain, baseline, units = calibration
    if not gain:
        written = "is 0" if n > 2 else "is missing"
        warnings.append(f"line {number}: the gain {written}; {DEFAULT_GAIN:g} is assumed")
        gain = DEFAULT_GAIN
    try:
        resolution = int(fields[3]) if n > 3 else 0
        zero = int(fields[4]) if n > 4 else 0
        init = int(fields[5]) if n > 5 else zero
        checksum = int(fields[6]) if n > 6 else None
        block = int(fields[7]) if n > 7 else 0
    except ValueError:
        raise _not_an_integer(fields, number, path) from None
    return Signal(
        fields[0],
        fmt,
        per_frame,
        skew,
        offset,
        gain,
        zero if baseline is None else baseline,
        units,
        resolution,
        zero,
        init,
        checksum,
        block,
        fields[8] if n > 8 else "",
    )


def _not_an_integer(fields: list[str], number: int, path: str) -> ECGFormatError:
    for field, value in zip(_INTEGER_FIELDS, fields[3:8], strict=False):
        try:
            int(value)
        except ValueError:
            shown = value if len(value) < 40 else value[:36] + "..."
            return ECGFormatError(
                f"{shown!r} is no whole number", file=path, line=number, field=field
            )
    raise AssertionError("every field is a whole number")


# Records of one device repeat the same few words thousands of times.
@lru_cache(maxsize=1024)
def _format(token: str) -> tuple[int, int, int, int] | None:
    match = _FORMAT.fullmatch(token)
    if match is None:
        return None
    fmt, per_frame, skew, offset = match.groups()
    if per_frame is not None and int(per_frame) == 0:
        return None
    return int(fmt), int(per_frame or 1), int(skew or 0), int(offset or 0)


@lru_cache(maxsize=1024)
def _gain(token: str) -> tuple[float, int | None, str] | None:
    match = _GAIN.fullmatch(token)
    if match is None:
        return None
    gain = float(match[1])
    if not math.isfinite(gain):
        return None
    return gain, None if match[2] is None else int(match[2]), match[3] or "mV"


def _count(token: str, field: str, path: str, number: int) -> int:
    if not _COUNT.fullmatch(token):
        raise ECGFormatError(f"{token!r} is no count", file=path, line=number, field=field)
    return int(token)
