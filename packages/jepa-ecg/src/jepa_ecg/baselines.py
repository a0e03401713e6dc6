"""Hand-made features: what an encoder has to beat.

Three families, each a fixed number of columns per record and no trained part: quantiles of the
samples, log power in frequency bands, and the measurements a cardiologist takes (rate, rhythm,
axis, intervals and amplitudes of the median beat). All work on whole batches; a record's features
do not depend on what else is in the batch.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float64
from scipy import ndimage, signal

from jepa_ecg.data.databases import LEADS

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
BAND_EDGES = tuple(1.6 * k for k in range(25))  # Hz
"""24 bands of equal width up to 38.4 Hz."""

_BEFORE, _AFTER = 0.3, 0.46  # s of the beat kept around the R peak
_REFRACTORY = 0.2  # s; no two R peaks are closer
_POWER_FLOOR = 1e-8  # keeps the logarithm of a flat lead finite
_CHUNK = 256  # records whose beats are cut out at once: bounds the memory, not the result

_RHYTHM = (
    "rate",
    "rr_mean",
    "rr_std",
    "rmssd",
    "rr_irregularity",
    "rr_smoothness",
    "rr_shortest",
    "rr_longest",
)
_BEAT = ("pr", "qrs_width", "axis_cos", "axis_sin", "p_size", "atrial_noise", "beat_spread")
_PER_LEAD = ("q", "r", "s", "st", "t", "p", "qrs_area")

RHYTHM_FEATURES = (
    *_RHYTHM,
    *_BEAT,
    *(f"{name}_{lead}" for name in _PER_LEAD for lead in LEADS),
)
"""Column names of `rhythm_features`."""


def raw_statistics(
    x: Float[np.ndarray, "batch leads time"],
) -> Float64[np.ndarray, "batch columns"]:
    """Mean, standard deviation and the quantiles 1, 5, 25, 50, 75, 95, 99 % of each lead.

    Returns
    -------
    9 columns per lead, lead-major, in the unit of `x`: 108 for 12 leads.
    """
    x = np.asarray(x, np.float64)
    moments = np.stack([x.mean(axis=-1), x.std(axis=-1)])
    rows = np.concatenate([moments, np.quantile(x, QUANTILES, axis=-1)])
    return np.moveaxis(rows, 0, -1).reshape(len(x), -1)


def log_band_powers(
    x: Float[np.ndarray, "batch leads time"],
    sampling_rate: float,
    edges: tuple[float, ...] = BAND_EDGES,
) -> Float64[np.ndarray, "batch columns"]:
    """Natural logarithm of the mean spectral power of each lead in each frequency band.

    Parameters
    ----------
    x
        Normalised signal.
    sampling_rate
        Hz.
    edges
        Ascending band limits in Hz; a band holds its lower limit and not its upper one.

    Returns
    -------
    One column per lead and band, lead-major: 288 for 12 leads and the default bands.

    Raises
    ------
    ValueError
        A band that holds no frequency of the discrete spectrum, or lies above half the sampling
        rate.
    """
    x = np.asarray(x, np.float64)
    time = x.shape[-1]
    # Bin k is k * rate / time Hz; the small shift keeps 1.6 Hz * 3 from becoming bin 49 of 0.1 Hz.
    bins = np.ceil(np.asarray(edges) * time / sampling_rate - 1e-9).astype(np.int64)
    if (np.diff(bins) < 1).any() or bins[-1] > time // 2 + 1:
        raise ValueError(
            f"{time} samples at {sampling_rate:g} Hz do not resolve the bands {edges} Hz"
        )
    power = np.abs(np.fft.rfft(x, axis=-1)[..., bins[0] : bins[-1]]) ** 2 / time
    total = np.add.reduceat(power, bins[:-1] - bins[0], axis=-1)
    return np.log(total / np.diff(bins) + _POWER_FLOOR).reshape(len(x), -1)


def r_peaks(
    x: Float[np.ndarray, "batch leads time"], sampling_rate: float
) -> Bool[np.ndarray, "batch time"]:
    """Where the R peaks (of normal and ectopic beats) are.

    The slope of all leads together between 5 and 20 Hz is squared and smoothed over 100 ms (after
    Pan and Tompkins, IEEE Trans. Biomed. Eng. 32, 1985); a peak is the largest value within the
    refractory 200 ms on both sides and above 8 % of the record's own level: slow ectopic beats have
    little slope, T waves still less.

    Parameters
    ----------
    x
        Signal in any unit.
    sampling_rate
        Hz, at least 50.
    """
    band = signal.butter(2, (5, 20), "bandpass", fs=sampling_rate, output="sos")
    slope = np.diff(signal.sosfiltfilt(band, x, axis=-1), axis=-1, append=0.0)
    slope[..., -1] = 0.0
    energy = (slope**2).sum(axis=1)
    width = max(1, round(0.1 * sampling_rate))
    energy = ndimage.gaussian_filter1d(energy, width / 4, axis=-1)
    reach = round(_REFRACTORY * sampling_rate)
    largest = ndimage.maximum_filter1d(energy, 2 * reach + 1, axis=-1)
    # The median over seconds of each second's largest value: an artefact moves it by little.
    second = round(sampling_rate)
    whole = energy[:, : energy.shape[1] // second * second]
    level = np.median(whole.reshape(len(x), -1, second).max(axis=-1), axis=-1)
    # Where most seconds have no beat, the median is an echo of the filters.
    level = np.maximum(level, 0.05 * energy.max(axis=-1, initial=0.0))
    # Of two equal neighbours only the first rises above what came before it.
    rising = np.diff(energy, axis=-1, prepend=0.0) > 0
    return (energy == largest) & rising & (energy > 0.08 * level[:, None])


def rhythm_features(
    x: Float[np.ndarray, "batch 12 time"], sampling_rate: float
) -> Float64[np.ndarray, "batch columns"]:
    """Rate, rhythm, intervals, axis and amplitudes of the median beat.

    Parameters
    ----------
    x
        mV, leads I, II, III, aVR, aVL, aVF, V1..V6.
    sampling_rate
        Hz.

    Returns
    -------
    Columns as in `RHYTHM_FEATURES`. Rates per minute, intervals in s, amplitudes in mV, areas in
    mV s. A record without two R peaks has 0 in every column.

    Raises
    ------
    ValueError
        The records are shorter than 2 s.
    """
    if x.shape[-1] < 2 * sampling_rate:
        raise ValueError(f"{x.shape[-1]} samples at {sampling_rate:g} Hz are less than 2 s")
    chunks = [x[start : start + _CHUNK] for start in range(0, len(x), _CHUNK)]
    rows = [_rhythm_features(np.asarray(chunk, np.float64), sampling_rate) for chunk in chunks]
    return np.concatenate(rows) if rows else np.zeros((0, len(RHYTHM_FEATURES)))


def _rhythm_features(
    x: Float64[np.ndarray, "batch 12 time"], sampling_rate: float
) -> Float64[np.ndarray, "batch columns"]:
    high = signal.butter(2, 0.5, "highpass", fs=sampling_rate, output="sos")
    x = signal.sosfiltfilt(high, x, axis=-1)
    peaks = r_peaks(x, sampling_rate)
    rhythm = _rhythm(peaks, sampling_rate)
    beat, spread = _typical_beat(x, peaks, sampling_rate)
    beat_columns = _measurements(beat, spread, sampling_rate)
    readable = peaks.sum(axis=1, keepdims=True) >= 2
    return np.where(readable, np.concatenate([rhythm, beat_columns], axis=1), 0.0)


def _rhythm(
    peaks: Bool[np.ndarray, "batch time"], sampling_rate: float
) -> Float64[np.ndarray, "batch 8"]:
    record, sample = np.nonzero(peaks)
    batch, same = len(peaks), record[1:] == record[:-1]
    rr, owner = (np.diff(sample) / sampling_rate)[same], record[1:][same]
    count = np.maximum(np.bincount(owner, minlength=batch), 1)
    mean = np.bincount(owner, rr, batch) / count
    variance = np.bincount(owner, (rr - mean[owner]) ** 2, batch) / count
    together = owner[1:] == owner[:-1]
    step, step_owner = np.diff(rr)[together], owner[1:][together]
    steps = np.maximum(np.bincount(step_owner, minlength=batch), 1)
    rmssd = np.sqrt(np.bincount(step_owner, step**2, batch) / steps)
    shortest, longest = np.full(batch, np.inf), np.zeros(batch)
    np.minimum.at(shortest, owner, rr)
    np.maximum.at(longest, owner, rr)
    safe = np.where(mean > 0, mean, 1.0)
    # The lag-1 autocorrelation of the intervals: near 0 in fibrillation, high when breathing paces.
    smoothness = np.where(variance > 0, 1 - rmssd**2 / np.maximum(2 * variance, 1e-12), 0.0)
    columns = (60 / safe, mean, np.sqrt(variance), rmssd, rmssd / safe, smoothness)
    return np.stack([*columns, np.minimum(shortest, safe) / safe, longest / safe], axis=1)


def _typical_beat(
    x: Float64[np.ndarray, "batch 12 time"],
    peaks: Bool[np.ndarray, "batch time"],
    sampling_rate: float,
) -> tuple[Float64[np.ndarray, "batch 12 window"], Float64[np.ndarray, " batch"]]:
    """Median over the beats that lie whole in the record, and how far beats are from it (mV)."""
    before, after = round(_BEFORE * sampling_rate), round(_AFTER * sampling_rate)
    inside = peaks.copy()
    inside[:, :before] = False
    inside[:, peaks.shape[1] - after :] = False
    # A record with no whole beat: any window will do, its columns are of no use.
    inside[~inside.any(axis=1), min(before, peaks.shape[1] - after - 1)] = True
    record, sample = np.nonzero(inside)
    beats = inside.sum(axis=1)
    rank = np.arange(len(record)) - (np.cumsum(beats) - beats)[record]
    window = sample[:, None] + np.arange(-before, after)
    table = np.full((len(x), beats.max(), x.shape[1], before + after), np.nan)
    table[record, rank] = np.moveaxis(x[record[:, None], :, window], 1, 2)
    typical = np.nanmedian(table, axis=1)
    spread = np.nanmean(np.abs(table - typical[:, None]), axis=(1, 2, 3))
    return typical, spread


def _measurements(
    beat: Float64[np.ndarray, "batch 12 window"],
    spread: Float64[np.ndarray, " batch"],
    sampling_rate: float,
) -> Float64[np.ndarray, "batch columns"]:
    def part(start: float, stop: float) -> slice:
        return slice(*(round((_BEFORE + s) * sampling_rate) for s in (start, stop)))

    # More than half of this stretch is at rest, so its median is the zero line.
    beat = beat - np.median(beat[..., part(-0.3, 0.36)], axis=-1, keepdims=True)
    qrs = beat[..., part(-0.08, 0.1)]
    top = np.argmax(np.abs(qrs).max(axis=1), axis=-1)
    r = qrs.max(axis=-1)
    s = qrs[..., qrs.shape[-1] // 2 :].min(axis=-1)
    q = qrs[..., : qrs.shape[-1] // 2].min(axis=-1)
    st = beat[..., part(0.09, 0.13)].mean(axis=-1)
    late = beat[..., part(0.14, 0.44)]
    peak = np.argmax(np.abs(late), axis=-1)
    t = np.take_along_axis(late, peak[..., None], axis=-1)[..., 0]
    atrial = beat[..., part(-0.28, -0.07)]
    p = atrial.max(axis=-1) - np.median(atrial, axis=-1)
    area = qrs.sum(axis=-1) / sampling_rate

    # Leads I, II and V2 carry P best; its place is the top of their smoothed sum.
    shape = ndimage.uniform_filter1d(atrial[:, (0, 1, 7)].sum(axis=1), 3, axis=-1)
    pr = (-0.08 + top / sampling_rate) - (-0.28 + np.argmax(shape, axis=-1) / sampling_rate)
    p_size = shape.max(axis=-1) - np.median(shape, axis=-1)
    atrial_noise = np.abs(np.diff(atrial[:, 6], axis=-1)).mean(axis=-1)

    # QRS lasts while the slope of all leads together is above 15 % of its top.
    slope = np.sqrt((np.diff(beat[..., part(-0.14, 0.18)], axis=-1) ** 2).sum(axis=1))
    slope = ndimage.uniform_filter1d(slope, max(1, round(0.02 * sampling_rate)), axis=-1)
    steep = slope > 0.15 * slope.max(axis=-1, keepdims=True)
    width = steep.sum(axis=-1) / sampling_rate

    frontal = area[:, 0] + 2j * area[:, 5] / np.sqrt(3)
    frontal = frontal / np.maximum(np.abs(frontal), 1e-12)
    scalars = (pr, width, frontal.real, frontal.imag, p_size, atrial_noise, spread)
    return np.concatenate([np.stack(scalars, axis=1), q, r, s, st, t, p, area], axis=1)
