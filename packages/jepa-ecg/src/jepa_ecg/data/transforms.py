"""What is done to a signal between its file and the model.

Order of the paper's program: gaps interpolated, resampled, (two databases) high-passed,
normalised with the statistics of the whole database, clipped, cropped. Signals are
(time, leads); dtype float64 stays float64, all else becomes float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float64, Int64

from jepa_ecg.data.errors import ECGFormatError

CLIP = 5.0  # of the paper's program, in standard deviations


def interpolate_nans(
    signal: Float[np.ndarray, "time leads"],
    *,
    leads: Sequence[str] | None = None,
    file: object = "",
) -> Float[np.ndarray, "time leads"]:
    """Replace missing samples by straight lines between their neighbours in time.

    Gaps at an end hold the nearest sample. Without gaps the signal itself is returned.

    Parameters
    ----------
    signal
        mV, NaN = missing.
    leads, file
        Names for the error.

    Raises
    ------
    ECGFormatError
        A lead has no valid sample.
    """
    signal = _floating(signal)
    missing = np.isnan(signal)
    if not missing.any():
        return signal
    out = signal.copy()
    times = np.arange(len(signal))
    for lead in np.flatnonzero(missing.any(0)).tolist():
        gaps = missing[:, lead]
        if gaps.all():
            name = leads[lead] if leads is not None else str(lead)
            raise ECGFormatError(
                f"lead {name} has no valid sample",
                file=file,
                remedy="leave the lead out, or give --fill zero",
            )
        out[gaps, lead] = np.interp(times[gaps], times[~gaps], signal[~gaps, lead])
    return out


def resample(
    signal: Float[np.ndarray, "time leads"], fs: float, to: float
) -> Float[np.ndarray, "new_time leads"]:
    """Fourier resampling along time to floor(time * to / fs) samples.

    The signal is taken as periodic, so both ends ring a little where they differ. Resampling
    PTB-XL from 500 to 100 Hz does not give the 100 Hz files that PTB-XL ships.

    Parameters
    ----------
    signal
        mV, no gaps.
    fs, to
        Sampling rates in Hz.

    Raises
    ------
    ECGFormatError
        A rate is not positive, or nothing would be left.
    """
    signal = _floating(signal)
    if fs == to:
        return signal
    if not (0 < fs < math.inf and 0 < to < math.inf):
        raise ECGFormatError(f"cannot resample from {fs} to {to} Hz", field="sampling frequency")
    n = math.floor(len(signal) * to / fs)
    if n < 1:
        raise ECGFormatError(f"{len(signal)} samples at {fs:g} Hz are none at {to:g} Hz")
    import scipy.signal

    resampled: Float[np.ndarray, "new_time leads"] = scipy.signal.resample(signal, n, axis=0)
    return resampled.astype(signal.dtype, copy=False)


@lru_cache(maxsize=16)
def highpass_sections(
    fs: float, cutoff: float = 0.5, order: int = 4
) -> Float64[np.ndarray, "sections 6"]:
    """Second-order sections of the Butterworth high-pass."""
    import scipy.signal

    if not 0 < cutoff < fs / 2:
        raise ECGFormatError(f"a cut-off at {cutoff:g} Hz needs more than {2 * cutoff:g} Hz")
    sections: Float64[np.ndarray, "sections 6"] = scipy.signal.butter(
        order, cutoff, "highpass", fs=fs, output="sos"
    )
    return sections


def highpass(
    signal: Float[np.ndarray, "time leads"], fs: float, cutoff: float = 0.5, order: int = 4
) -> Float[np.ndarray, "time leads"]:
    """Remove baseline wander: Butterworth high-pass, forward and backward (zero phase).

    Computed in float64 on second-order sections; the transfer-function form of the paper's program
    agrees to 1e-6 mV and would lose its digits in float32.

    Parameters
    ----------
    signal
        mV, no gaps.
    fs
        Sampling rate in Hz.
    cutoff
        Hz at which one pass has -3 dB.
    order
        Of one pass.

    Raises
    ------
    ECGFormatError
        The record is too short for the padding of the filter.
    """
    import scipy.signal

    signal = _floating(signal)
    padding = 3 * (order + 1)
    if len(signal) <= padding:
        raise ECGFormatError(f"{len(signal)} samples are too few for a filter of order {order}")
    filtered: Float64[np.ndarray, "time leads"] = scipy.signal.sosfiltfilt(
        highpass_sections(fs, cutoff, order), signal.astype(np.float64), axis=0, padlen=padding
    )
    return filtered.astype(signal.dtype, copy=False)


def normalise(
    signal: Float[np.ndarray, "*batch leads"],
    mean: Float[np.ndarray, " leads"] | Sequence[float],
    std: Float[np.ndarray, " leads"] | Sequence[float],
    clip: float = CLIP,
) -> Float[np.ndarray, "*batch leads"]:
    """(signal - mean) / std per lead, clipped to [-clip, clip].

    Parameters
    ----------
    signal
        mV, leads last.
    mean, std
        Of the whole database, in mV.
    clip
        In standard deviations; infinity for none.

    Raises
    ------
    ECGFormatError
        A standard deviation is not positive.
    """
    signal = _floating(signal)
    centre, scale = np.asarray(mean, signal.dtype), np.asarray(std, signal.dtype)
    if not (scale > 0).all():
        raise ECGFormatError(f"a standard deviation is not positive: {scale.tolist()}")
    out = signal - centre
    out /= scale
    return np.clip(out, -clip, clip, out=out)


def crop_starts(time: int, size: int, stride: int) -> Int64[np.ndarray, " crops"]:
    """0, stride, 2 stride, ... as long as a window of `size` fits into `time` samples."""
    return np.arange(0, time - size + 1, stride, dtype=np.int64)


def strided_crops(
    signal: Float[np.ndarray, "time leads"],
    size: int,
    stride: int,
    *,
    patch: int = 1,
    allow_short: bool = False,
) -> Float[np.ndarray, "crops leads size"]:
    """Windows of `size` samples, one every `stride`; a tail shorter than a window is dropped.

    Parameters
    ----------
    signal
        (time, leads).
    size, stride
        In samples.
    patch
        Samples of a token: a short record is cut to whole tokens.
    allow_short
        Give a record that is shorter than a window as one shorter window.

    Returns
    -------
    View of the signal, laid out as the encoder takes it.

    Raises
    ------
    ECGFormatError
        The record is shorter than a window (or than one patch).
    """
    if size < 1 or stride < 1 or patch < 1:
        raise ECGFormatError(f"size {size}, stride {stride} and patch {patch} must be positive")
    time = len(signal)
    if time < patch:
        raise ECGFormatError(f"{time} samples are shorter than one patch of {patch}")
    if time < size:
        if not allow_short:
            raise ECGFormatError(
                f"{time} samples are shorter than a crop of {size}",
                remedy="allow_short=True takes what there is",
            )
        size = time // patch * patch
    windows = np.lib.stride_tricks.sliding_window_view(signal, size, axis=0)
    return windows[::stride]


def _floating(signal: np.ndarray) -> Float[np.ndarray, ...]:
    return signal if signal.dtype == np.float64 else np.asarray(signal, np.float32)
