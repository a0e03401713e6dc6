"""Hand-made features against slow twins, known signals, and known figures on real records."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from jepa_ecg.baselines import (
    BAND_EDGES,
    QUANTILES,
    RHYTHM_FEATURES,
    log_band_powers,
    r_peaks,
    raw_statistics,
    rhythm_features,
)
from jepa_ecg.data.ptbxl import read_ptbxl500
from jepa_ecg.heart import Draws, Hearts
from jepa_ecg.simulate import SimulationConfig, simulate


def beats_at(
    times: np.ndarray, rate: int, *, axis: float = 50.0, width: float = 0.011, seconds: float = 10.0
) -> np.ndarray:
    """One record whose only waves are Gaussian QRS complexes of 1 mV on a frontal axis."""
    t = np.arange(round(seconds * rate)) / rate
    wave = np.exp(-0.5 * ((t - times[:, None]) / width) ** 2).sum(axis=0)
    one, two = np.cos(np.radians(axis)) * wave, np.cos(np.radians(axis - 60)) * wave
    limb = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    return np.stack([*limb, *[gain * wave for gain in (-0.6, -0.3, 0.4, 1.1, 1.2, 0.9)]])


def column(x: np.ndarray, rate: float, name: str) -> np.ndarray:
    return rhythm_features(x, rate)[:, RHYTHM_FEATURES.index(name)]


def test_statistics_equal_their_definition_lead_by_lead() -> None:
    x = np.random.default_rng(0).normal(size=(3, 12, 200))
    rows = raw_statistics(x)
    assert rows.shape == (3, 108)
    for record in range(3):
        for lead in range(12):
            samples = x[record, lead]
            expected = [samples.mean(), samples.std(), *np.quantile(samples, QUANTILES)]
            np.testing.assert_allclose(rows[record, 9 * lead : 9 * lead + 9], expected, rtol=1e-12)


@pytest.mark.parametrize(("rate", "time"), [(100, 1000), (500, 2500), (100, 997)])
def test_band_powers_equal_a_sum_over_frequencies(rate: int, time: int) -> None:
    x = np.random.default_rng(1).normal(size=(2, 12, time))
    rows = log_band_powers(x, rate).reshape(2, 12, 24)
    frequency = np.arange(time // 2 + 1) * rate / time
    spectrum = np.abs(np.fft.rfft(x)) ** 2 / time
    for band, (low, high) in enumerate(pairwise(BAND_EDGES)):
        inside = (frequency > low - 1e-9) & (frequency < high - 1e-9)
        expected = np.log(spectrum[..., inside].mean(axis=-1) + 1e-8)
        np.testing.assert_allclose(rows[..., band], expected, atol=1e-10)


def test_a_sine_is_in_the_band_of_its_frequency() -> None:
    t = np.arange(1000) / 100
    x = np.broadcast_to(np.sin(2 * np.pi * 10.0 * t), (1, 12, 1000))
    loudest = log_band_powers(x, 100).reshape(12, 24).argmax(axis=1)
    assert (loudest == int(10.0 / 1.6)).all()


def test_a_flat_lead_has_finite_power() -> None:
    assert np.isfinite(log_band_powers(np.zeros((1, 12, 1000)), 100)).all()


@pytest.mark.parametrize(("rate", "time"), [(60, 600), (100, 40)])
def test_bands_that_cannot_be_resolved_are_refused(rate: int, time: int) -> None:
    with pytest.raises(ValueError, match="do not resolve"):
        log_band_powers(np.zeros((1, 12, time)), rate)


@pytest.mark.parametrize("rate", [100, 250, 500])
@pytest.mark.parametrize("heart_rate", [40.0, 61.0, 75.0, 110.0, 148.0])
def test_the_rate_of_regular_beats_is_found(rate: int, heart_rate: float) -> None:
    x = beats_at(np.arange(0.3, 10, 60 / heart_rate), rate)[None]
    assert abs(column(x, rate, "rate")[0] - heart_rate) < 2
    assert column(x, rate, "rmssd")[0] < 2 / rate


def test_every_beat_is_found_once_and_near_its_r_peak() -> None:
    times = np.array([0.52, 1.31, 1.80, 2.95, 3.61, 4.47, 5.20, 6.33, 7.02, 7.41, 8.60, 9.37])
    noise = 0.03 * np.random.default_rng(2).normal(size=(12, 5000))
    found = np.flatnonzero(r_peaks((beats_at(times, 500) + noise)[None], 500)[0]) / 500
    np.testing.assert_allclose(found, times, atol=0.02)


def test_r_peaks_do_not_depend_on_polarity_or_gain() -> None:
    x, _ = simulate(np.arange(20), SimulationConfig())
    expected = r_peaks(x, 100)
    np.testing.assert_array_equal(r_peaks(-x, 100), expected)
    np.testing.assert_array_equal(r_peaks(x * 4, 100), expected)


def test_the_rate_of_simulated_hearts_is_found_within_two_beats() -> None:
    ids = np.arange(1, 401)
    x, _ = simulate(ids, SimulationConfig())
    beats, _ = Hearts(Draws(0, ids), 1.0)._beats(9.99)
    true = [60 / np.diff(row[(row >= 0) & (row < 9.99)]).mean() for row in beats]
    error = np.abs(column(x, 100, "rate") - true)
    assert np.median(error) < 0.1
    assert (error < 2).mean() > 0.97


@pytest.mark.parametrize("axis", [-60.0, 0.0, 45.0, 90.0, 150.0])
def test_the_frontal_axis_is_found(axis: float) -> None:
    x = beats_at(np.arange(0.5, 10, 0.8), 500, axis=axis)[None]
    found = np.degrees(np.arctan2(column(x, 500, "axis_sin"), column(x, 500, "axis_cos")))
    assert abs(found[0] - axis) < 2


def test_a_wider_qrs_measures_wider() -> None:
    times = np.arange(0.5, 10, 0.8)
    widths = [
        column(beats_at(times, 500, width=w)[None], 500, "qrs_width")[0] for w in (0.01, 0.02)
    ]
    assert 0.03 < widths[0] < 0.09
    assert widths[1] > 1.5 * widths[0]


def test_amplitudes_of_the_beat_are_in_millivolts() -> None:
    x = beats_at(np.arange(0.5, 10, 0.8), 500)[None]
    assert column(x, 500, "r_V5")[0] == pytest.approx(1.2, abs=0.06)
    assert min(column(x, 500, "q_V1")[0], column(x, 500, "s_V1")[0]) == pytest.approx(
        -0.6, abs=0.06
    )
    assert abs(column(x, 500, "st_V5")[0]) < 0.05


def test_irregular_beats_have_a_larger_rmssd_and_paced_breathing_a_smooth_one() -> None:
    draws = np.random.default_rng(3)
    regular = np.arange(0.5, 10, 0.8)
    irregular = np.cumsum(0.8 * np.exp(0.2 * draws.normal(size=12)))
    breathing = np.cumsum(0.8 + 0.12 * np.sin(2 * np.pi * 0.15 * regular))
    x = np.stack([beats_at(times, 100) for times in (regular, irregular, breathing)])
    rmssd, smooth = column(x, 100, "rmssd"), column(x, 100, "rr_smoothness")
    assert rmssd[0] < 0.02 < 0.08 < rmssd[1]
    assert smooth[2] > 0.5 > smooth[1]


def test_a_flat_record_and_a_lone_beat_have_no_rhythm() -> None:
    lone = beats_at(np.array([5.0]), 100)
    rows = rhythm_features(np.stack([np.zeros((12, 1000)), lone]), 100)
    np.testing.assert_array_equal(rows, 0.0)


def test_features_do_not_depend_on_the_batch() -> None:
    x, _ = simulate(np.arange(300), SimulationConfig())
    alone = rhythm_features(x[[280, 4]], 100)
    np.testing.assert_allclose(alone, rhythm_features(x, 100)[[280, 4]], rtol=1e-12, atol=1e-12)
    assert alone.shape == (2, len(RHYTHM_FEATURES))
    assert rhythm_features(x[:0], 100).shape == (0, len(RHYTHM_FEATURES))


def test_a_record_too_short_for_a_rhythm_is_refused() -> None:
    with pytest.raises(ValueError, match="less than 2 s"):
        rhythm_features(np.zeros((1, 12, 150)), 100)


@pytest.fixture(scope="module")
def real(data) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(mV, normalised, labels, fold) of the PTB-XL records with a superclass."""
    records = read_ptbxl500(data("ecg") / "ptbxl500_lr.npz")
    golden = np.load(data("ecg") / "golden_ptbxl_labels.npz")
    ids, fold = golden["superdiagnostic/ecg_id"], golden["superdiagnostic/fold"]
    x = np.moveaxis(records.signal, 1, 2)[np.searchsorted(records.ecg_id, ids)]
    statistics = np.load(data("ecg") / "golden_transforms.npz")
    mean, std = statistics["subset_lr_train_mean"], statistics["subset_lr_train_std"]
    normalised = np.clip((x - mean[:, None]) / std[:, None], -5, 5)
    return x, normalised, golden["superdiagnostic/y"], fold


def macro_auc(
    features: np.ndarray, y: np.ndarray, fold: np.ndarray, groups: list[tuple[int, ...]]
) -> float:
    """Logistic regression per class, scored out of fold over `groups` and pooled."""
    scores = np.full(y.shape, np.nan)
    for group in groups:
        test = np.isin(fold, group)
        scaler = StandardScaler().fit(features[~test])
        train, held_out = scaler.transform(features[~test]), scaler.transform(features[test])
        for c in range(y.shape[1]):
            model = LogisticRegression(C=0.01, max_iter=2000).fit(train, y[~test, c])
            scores[test, c] = model.decision_function(held_out)
    scored = np.isfinite(scores[:, 0])
    return float(roc_auc_score(y[scored], scores[scored]))


@pytest.mark.parametrize(
    ("family", "cross_validated", "held_out"),
    [
        ("statistics", 0.805, 0.833),
        ("bands", 0.834, 0.828),
        ("both", 0.839, 0.852),
        ("rhythm", 0.868, 0.886),
    ],
)
def test_superclasses_of_500_real_records(family, cross_validated, held_out, real) -> None:
    """Statistics of mV, powers of the normalised signal; the last row is our own measurement."""
    x, normalised, y, fold = real
    statistics = raw_statistics(x)
    bands = log_band_powers(normalised, 100)
    features = {
        "statistics": statistics,
        "bands": bands,
        "both": np.hstack([statistics, bands]),
        "rhythm": rhythm_features(x, 100),
    }[family]
    six_folds = [(1, 2), (3, 4), (5, 6), (7, 8), (9,), (10,)]
    assert macro_auc(features, y, fold, six_folds) == pytest.approx(cross_validated, abs=0.005)
    assert macro_auc(features, y, fold, [(9, 10)]) == pytest.approx(held_out, abs=0.005)
