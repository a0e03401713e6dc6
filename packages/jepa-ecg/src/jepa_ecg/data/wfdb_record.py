"""WFDB records as millivolt: gains, units, leads in the order asked for, several segments."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int64, Integer

from jepa_ecg.data.errors import ECGFormatError
from jepa_ecg.data.leads import Fill, LeadPlan, millivolts, plan_leads
from jepa_ecg.data.wfdb_frames import (
    Frames,
    Truncated,
    Verify,
    inside,
    missing_code,
    read_frames,
    refuse_unbacked,
)
from jepa_ecg.data.wfdb_header import NO_DATA, Header, Signal, read_header

IMPLAUSIBLE_MV = 50.0


class Record(NamedTuple):
    """One electrocardiogram.

    Attributes
    ----------
    signal
        (time, leads), mV, NaN where a sample is missing.
    fs
        Samples per second and lead, in Hz.
    leads
        Names of the columns of `signal`.
    digital
        (time, signals of the record in file order): the samples as stored; where a frame holds
        several samples of a signal, their rounded mean. None for sources that store none.
    missing
        (leads,) number of missing samples per lead.
    comments, warnings
        Comment lines of the header; what was accepted although it is not as it should be.
    """

    signal: Float32[np.ndarray, "time leads"]
    fs: float
    leads: tuple[str, ...]
    digital: Integer[np.ndarray, "time signals"] | None
    missing: Int64[np.ndarray, " leads"]
    comments: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class _Options(NamedTuple):
    leads: Sequence[str] | None
    derive: bool
    fill: Fill
    truncated: Truncated
    verify: Verify
    expand: bool


def read_record(
    path: str | os.PathLike[str],
    *,
    leads: Sequence[str] | None = None,
    derive: bool = False,
    fill: Fill = None,
    truncated: Truncated = "error",
    verify: Verify = "warn",
    expand: bool = False,
) -> Record:
    """Read a WFDB record.

    Parameters
    ----------
    path
        The record, with or without `.hea`.
    leads
        Names wanted, in this order, regardless of case; None = all signals in file order.
    derive
        Compute missing III, aVR, aVL, aVF from I and II.
    fill
        "zero" fills a lead that is absent or has no valid sample with zeros; else that is an error.
    truncated
        A file shorter than announced is an "error", or is followed by NaN ("pad").
    verify
        What a checksum that disagrees is: a warning, an error, or not computed. Files cut out of
        longer records keep the checksum of the whole.
    expand
        Signals with several samples per frame are averaged per frame; True keeps the highest rate
        (slower signals repeat their samples).

    Raises
    ------
    ECGFormatError
        The record is malformed or incomplete; names file, line and field.
    """
    header = read_header(path)
    read = _read_segments if header.segments else _read_segment
    whole = read(header, _Options(leads, derive, fill, truncated, verify, expand))
    signal, missing, notes = finish(whole.columns, whole.plan, fill=fill, file=header.path)
    return Record(
        signal,
        header.fs * whole.rate,
        whole.plan.leads,
        whole.digital,
        missing,
        header.comments,
        header.warnings + whole.warnings + whole.plan.warnings + notes,
    )


def finish(
    columns: Float[np.ndarray, "time columns"],
    plan: LeadPlan,
    *,
    fill: Fill = None,
    file: object = "",
) -> tuple[Float32[np.ndarray, "time leads"], Int64[np.ndarray, " leads"], tuple[str, ...]]:
    """Leads in order, missing samples counted, and what looks wrong said.

    Parameters
    ----------
    columns
        All columns of the record, mV, NaN = missing.
    plan, fill, file
        Leads wanted, what to do about a lead without samples, and the place for errors.

    Returns
    -------
    signal, missing samples per lead, warnings

    Raises
    ------
    ECGFormatError
        A lead has no valid sample (unless filled), or there are no samples at all.
    """
    signal = plan.apply(columns)
    n, n_leads = signal.shape
    if n == 0:
        raise ECGFormatError("the record has no samples", file=file)
    missing = np.zeros(n_leads, np.int64)
    notes: list[str] = []
    low, high = float(signal.min()), float(signal.max())
    if low != low:
        missing = np.isnan(signal).sum(0)
        notes += [
            f"lead {plan.leads[lead]}: {missing[lead]} of {n} samples are missing"
            for lead in np.flatnonzero(missing)
        ]
        for lead in np.flatnonzero(missing == n):
            if fill != "zero":
                raise ECGFormatError(
                    f"lead {plan.leads[lead]} has no valid sample",
                    file=file,
                    remedy="leave the lead out, or give --fill zero",
                )
            signal = signal if signal.flags.writeable else signal.copy()
            signal[:, lead] = 0
        low, high = float(np.nanmin(signal)), float(np.nanmax(signal))
    flat = [plan.leads[lead] for lead in flat_leads(signal)]
    if flat:
        notes.append(f"flat: {', '.join(flat)}")
    if max(-low, high) > IMPLAUSIBLE_MV:
        notes.append(f"values up to {max(-low, high):.4g} mV: units look wrong")
    return signal, missing, tuple(notes)


def flat_leads(signal: Float32[np.ndarray, "time leads"]) -> list[int]:
    """Leads whose samples are all alike, missing ones aside."""
    first, middle, last = signal[0], signal[len(signal) // 2], signal[-1]
    # Few leads are alike at three times, so few are looked at as a whole.
    differ = (first != middle) | (first != last)
    maybe = np.flatnonzero(~differ | np.isnan(first + middle + last)).tolist()
    return [i for i in maybe if np.nanmin(signal[:, i]) == np.nanmax(signal[:, i])]


class _Whole(NamedTuple):
    """All signals of a record before leads are chosen; `columns` in mV, NaN = missing."""

    columns: Float[np.ndarray, "time signals"]
    digital: Integer[np.ndarray, "time signals"]
    plan: LeadPlan
    rate: int
    warnings: tuple[str, ...]


def _read_segment(header: Header, options: _Options) -> _Whole:
    signals = header.signals
    if not signals:
        raise ECGFormatError("the record has no signals", file=header.path)
    names = [signal.name or f"signal {i}" for i, signal in enumerate(signals)]
    plan = plan_leads(
        names, options.leads, derive=options.derive, fill=options.fill, file=header.path
    )
    gains = [signal.gain for signal in signals]
    for column in plan.columns:
        factor = millivolts(signals[column].units)
        if factor is None:
            raise ECGFormatError(
                f"lead {names[column]} is in {signals[column].units!r}, which is no voltage",
                file=header.path,
                field="units",
                remedy="name the leads you want",
            )
        gains[column] /= factor
    frames = read_frames(header, options.truncated, options.verify, options.expand)
    columns = _to_millivolts(frames, signals, gains)
    return _Whole(columns, frames.digital, plan, frames.rate, frames.warnings)


def _to_millivolts(
    frames: Frames, signals: Sequence[Signal], gains: Sequence[float]
) -> Float[np.ndarray, "time signals"]:
    """(digital - baseline) / gain, NaN for missing samples.

    16-bit samples less a baseline are exact in float32, so their quotient by a gain that is exact
    too is the correctly rounded one; all else takes the way through float64.
    """
    digital = frames.digital
    gain, baseline, code = gains[0], signals[0].baseline, missing_code(signals[0])
    uniform = all(
        g == gain and s.baseline == baseline and s.fmt == signals[0].fmt
        for g, s in zip(gains, signals, strict=True)
    )
    exact = float(np.float32(gain)) == gain and abs(baseline) < 2**22
    physical: Float[np.ndarray, "time signals"]
    if uniform and exact and digital.itemsize == 2 and not frames.means:
        physical = digital.astype(np.float32)
        if baseline:
            physical -= np.float32(baseline)
        physical /= np.float32(gain)
        if digital.size and digital.min() == code:
            physical[digital == code] = np.nan
        return physical
    physical = digital.astype(np.float64)
    for column, signal in enumerate(signals):
        mean = frames.means.get(column)
        if mean is not None:
            physical[:, column] = mean
        else:
            physical[digital[:, column] == missing_code(signal), column] = np.nan
    physical -= np.array([signal.baseline for signal in signals], np.float64)
    physical /= np.array(gains)
    return physical


def _read_segments(header: Header, options: _Options) -> _Whole:
    """A record in several files that all hold the same signals (fixed layout)."""
    names = [name for name, _ in header.segments if name != NO_DATA]
    if header.segments[0][1] == 0:
        raise ECGFormatError(
            "a multi-segment record with variable layout is not supported",
            file=header.path,
            remedy="read its segments one by one",
        )
    if not names or len(set(names)) < len(names):
        what = "a segment is named twice" if names else "no segment holds data"
        raise ECGFormatError(what, file=header.path, field="segment")
    gaps = sum(length for name, length in header.segments if name == NO_DATA)
    refuse_unbacked(gaps * header.n_signals, header.path)
    warnings: list[str] = []
    read: dict[int, _Whole] = {}
    first: Header | None = None
    for i, (name, length) in enumerate(header.segments):
        if name != NO_DATA:
            segment = read_header(inside(header.path, name, "segment"))
            first = first or segment
            _check_segment(header, segment, first, length)
            read[i] = _read_segment(segment, options)
            warnings += [f"{name}: {note}" for note in segment.warnings + read[i].warnings]
    total = sum(length for _, length in header.segments)
    if header.n_samples is not None and header.n_samples != total:
        warnings.append(f"{header.n_samples} samples announced, the segments have {total}")
    assert first is not None
    one = next(iter(read.values()))
    codes = [missing_code(signal) for signal in first.signals]
    columns, digital = [], []
    for i, (_, length) in enumerate(header.segments):
        shape = (length * one.rate, len(codes))
        columns.append(read[i].columns if i in read else np.full(shape, np.nan, np.float32))
        digital.append(read[i].digital if i in read else np.full(shape, codes, one.digital.dtype))
    return _Whole(
        np.concatenate(columns), np.concatenate(digital), one.plan, one.rate, tuple(warnings)
    )


def _check_segment(header: Header, segment: Header, first: Header, length: int) -> None:
    what = ""
    if segment.segments:
        what = "is itself a multi-segment record"
    elif segment.n_samples not in (None, length):
        what = f"has {segment.n_samples} samples, {length} are announced"
    elif segment.fs != header.fs:
        what = f"has {segment.fs:g} samples per second, the record {header.fs:g}"
    elif len(segment.signals) != header.n_signals:
        what = f"has {len(segment.signals)} signals, the record {header.n_signals}"
    elif any(
        (a.name, a.samples_per_frame) != (b.name, b.samples_per_frame)
        for a, b in zip(segment.signals, first.signals, strict=True)
    ):
        what = f"holds other signals than {first.name}"
    if what:
        raise ECGFormatError(f"the segment {segment.name} {what}", file=header.path)
