"""Signals between file and model: golden arrays, slow twins, edges."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
from hypothesis import given
from hypothesis import strategies as st

from jepa_ecg.data.databases import DATABASES
from jepa_ecg.data.ptbxl import ptbxl_labels, read_ptbxl500
from jepa_ecg.data.transforms import (
    crop_starts,
    highpass,
    highpass_sections,
    interpolate_nans,
    normalise,
    resample,
    strided_crops,
)
from jepa_ecg.data.wfdb_record import read_record


@pytest.fixture(scope="module")
def golden(data):
    with np.load(data("ecg") / "golden_transforms.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def record(data):
    """PTB-XL record 1 at 500 Hz, float64 mV."""
    return read_record(data("ecg") / "ptbxl/records500/00000/00001_hr").digital / 1000.0


def test_highpass_equals_the_golden_one(golden, record):
    np.testing.assert_allclose(record[::10], golden["highpass500_in_f64"], rtol=0, atol=1e-12)
    filtered = highpass(record, 500)
    np.testing.assert_allclose(filtered[::10], golden["highpass500_out_f64"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("fs", [100, 500])
def test_filter_sections_are_the_golden_coefficients(fs, golden):
    b, a = scipy.signal.sos2tf(highpass_sections(fs))
    np.testing.assert_allclose(b, golden[f"butter_b_{fs}"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(a, golden[f"butter_a_{fs}"], rtol=0, atol=1e-10)


def test_highpass_of_float32_is_that_of_float64(record):
    single = highpass(record.astype(np.float32), 500)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, highpass(record, 500), rtol=0, atol=1e-6)


def test_highpass_needs_more_samples_than_its_padding():
    with pytest.raises(ValueError, match="15 samples are too few"):
        highpass(np.zeros((15, 1)), 500)
    assert highpass(np.zeros((16, 1)), 500).shape == (16, 1)
    with pytest.raises(ValueError, match=r"a cut-off at 0\.5 Hz"):
        highpass(np.zeros((16, 1)), 1)


def test_resampling_equals_the_golden_one(golden, record):
    down = golden["resample_5000_to_1000_f64"]
    up = golden["resample_4096_to_5120_f64_every10"]
    np.testing.assert_allclose(resample(record, 500, 100), down, rtol=0, atol=1e-9)
    np.testing.assert_allclose(resample(record[:4096], 400, 500)[::10], up, rtol=0, atol=1e-9)
    single = resample(record.astype(np.float32), 500, 100)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, down, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("n", "fs", "to", "wanted"),
    [(462600, 257, 500, 900000), (38400, 1000, 500, 19200), (4096, 400, 500, 5120), (7, 3, 2, 4)],
)
def test_resampling_gives_the_whole_samples_that_fit(n, fs, to, wanted, golden):
    assert wanted != 900000 or wanted == golden["st_petersburg_len"][0]
    assert len(resample(np.zeros((n, 1), np.float32), fs, to)) == wanted


def test_resampling_a_slow_wave_keeps_it():
    """Exact for whole periods below both Nyquist rates."""
    old, new = np.arange(400) / 400, np.arange(500) / 500
    wave = np.sin(2 * np.pi * 7 * old)[:, None]
    np.testing.assert_allclose(
        resample(wave, 400, 500)[:, 0], np.sin(2 * np.pi * 7 * new), atol=1e-12
    )


def test_resampling_refuses_rates_that_are_none():
    for fs, to in ((0, 500), (500, -1), (np.inf, 500), (500, np.nan)):
        with pytest.raises(ValueError, match="cannot resample"):
            resample(np.zeros((10, 1)), fs, to)
    with pytest.raises(ValueError, match="are none at"):
        resample(np.zeros((3, 1)), 500, 100)


def test_resampled_files_are_not_the_shipped_ones(data):
    """PTB-XL made its 100 Hz files otherwise: correlation 0.987 on record 1."""
    high = read_record(data("ecg") / "ptbxl/records500/00000/00001_hr").signal
    low = read_record(data("ecg") / "ptbxl/records100/00000/00001_lr").signal
    rms = np.sqrt(np.mean((resample(high, 500, 100) - low) ** 2))
    assert rms == pytest.approx(0.017, abs=0.003)


def test_interpolation_equals_the_golden_one(golden):
    out = interpolate_nans(golden["nan_in"])
    np.testing.assert_allclose(out, golden["nan_out"], rtol=0, atol=1e-12)


@given(st.lists(st.one_of(st.none(), st.floats(-100, 100)), min_size=1, max_size=30))
def test_interpolation_is_a_line_between_valid_neighbours(values):
    x = np.array([np.nan if value is None else value for value in values])[:, None]
    valid = np.flatnonzero(~np.isnan(x[:, 0]))
    if len(valid) == 0:
        with pytest.raises(ValueError, match="no valid sample"):
            interpolate_nans(x)
        return
    out = interpolate_nans(x)[:, 0]
    for t, value in enumerate(out):
        before, after = valid[valid <= t], valid[valid >= t]
        i = before[-1] if len(before) else after[0]
        j = after[0] if len(after) else i
        share = (t - i) / (j - i) if i != j else 0
        assert value == pytest.approx(x[i, 0] + share * (x[j, 0] - x[i, 0]), abs=1e-9)


def test_a_signal_without_gaps_is_not_copied():
    x = np.zeros((5, 2), np.float32)
    assert interpolate_nans(x) is x


def test_normalisation_equals_the_golden_one(golden, record):
    mean, std = golden["ptbxl_mean"], golden["ptbxl_std"]
    out = normalise(record, mean, std)[::10]
    np.testing.assert_allclose(out, golden["pretrain_norm_f64"], rtol=0, atol=1e-9)
    half = golden["pretrain_norm_f16"].astype(np.float64)
    np.testing.assert_allclose(out, half, rtol=0, atol=3e-3)


def test_the_golden_statistics_are_those_of_the_database_in_half_precision(golden):
    database = DATABASES["ptb-xl"]
    np.testing.assert_array_equal(golden["ptbxl_mean"], np.float16(database.mean))
    np.testing.assert_array_equal(golden["ptbxl_std"], np.float16(database.std))


def test_normalisation_clips_after_scaling():
    x = np.array([[10.0], [-10.0], [0.9]])
    assert normalise(x, [0.0], [0.1]).tolist() == [[5.0], [-5.0], [5.0]]
    assert normalise(x, [0.0], [0.5], np.inf)[:, 0] == pytest.approx([20.0, -20.0, 1.8])
    assert x.tolist() == [[10.0], [-10.0], [0.9]]
    with pytest.raises(ValueError, match="not positive"):
        normalise(x, [0.0], [0.0])


def test_the_statistics_of_the_training_folds_are_the_golden_ones(data, golden):
    folder = data("ecg") / "ptbxl"
    labels = ptbxl_labels(folder / "ptbxl_database.csv", folder / "scp_statements.csv", "all")
    records = read_ptbxl500(data("ecg") / "ptbxl500_lr.npz")
    assert labels.ecg_id.tolist() == records.ecg_id.tolist()
    train = records.signal[labels.fold <= 8].astype(np.float64)
    assert len(train) == 353
    # float32 holds 0.001 mV units to 1e-7 of their value.
    mean, std = train.mean((0, 1)), train.std((0, 1))
    np.testing.assert_allclose(mean, golden["subset_lr_train_mean"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(std, golden["subset_lr_train_std"], rtol=0, atol=1e-9)


def test_crops_start_where_the_golden_ones_do(golden, record):
    assert crop_starts(5000, 1250, 625).tolist() == golden["crop_starts_500"].tolist()
    crops = strided_crops(record, 1250, 625)
    assert crops.shape == (7, 12, 1250)
    for crop, start in zip(crops, golden["crop_starts_500"], strict=True):
        np.testing.assert_array_equal(crop, record[start : start + 1250].T)


def test_a_tail_shorter_than_a_window_is_dropped():
    x = np.arange(11.0)[:, None]
    assert strided_crops(x, 4, 3)[:, 0].tolist() == [
        [0, 1, 2, 3],
        [3, 4, 5, 6],
        [6, 7, 8, 9],
    ]
    for size, stride in ((0, 1), (4, 0)):
        with pytest.raises(ValueError, match="must be positive"):
            strided_crops(x, size, stride)
