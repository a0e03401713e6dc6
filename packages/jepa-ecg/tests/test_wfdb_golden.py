"""Real records against wfdb: arrays it computed once, and itself, live."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import wfdb

from jepa_ecg.data.wfdb_frames import read_frames
from jepa_ecg.data.wfdb_header import read_header
from jepa_ecg.data.wfdb_record import read_record

EXACT = {
    "binformats": "wfdb/binformats",
    "100_3chan": "wfdb/100_3chan",
    "3000003_0003": "wfdb/3000003_0003",
    "310derive": "wfdb/310derive",
    "311derive": "wfdb/311derive",
    "test01_00s": "wfdb/test01_00s",
    "test01_00s_skew": "wfdb/test01_00s_skew",
    "s0010_re": "wfdb/s0010_re",
    "p000878_0001": "wfdb/p000878/3269321_0001",
    "p000878_0002": "wfdb/p000878/3269321_0002",
    "E07500": "cinc2021/E07500",
    "HR06000": "cinc2021/HR06000",
    "JS20000": "cinc2021/JS20000",
}
# wfdb truncates the average of a frame to a whole number; ours rounds.
AVERAGED = {"041s01": "wfdb/041s/041s01", "test01_00s_frame": "wfdb/test01_00s_frame"}


@pytest.fixture(scope="module")
def golden(data):
    with np.load(data("ecg") / "golden_wfdb.npz") as file:
        return {name: file[name] for name in file.files}


def _physical(frames, header):
    """(digital - baseline) / gain in float64 and in the units of the file; NaN = missing."""
    digital = frames.digital.astype(np.float64)
    for column, mean in frames.means.items():
        digital[:, column] = mean
    for column, signal in enumerate(header.signals):
        codes = {8: None, 80: -128, 310: -512, 311: -512, 212: -2048, 24: -(2**23), 32: -(2**31)}
        digital[digital[:, column] == codes.get(signal.fmt, -32768), column] = np.nan
    gain = np.array([signal.gain for signal in header.signals])
    return (digital - [signal.baseline for signal in header.signals]) / gain


@pytest.mark.parametrize("name", [*EXACT, *AVERAGED])
def test_samples_equal_the_golden_ones(name, golden, data):
    header = read_header(data("ecg") / (EXACT | AVERAGED)[name])
    frames = read_frames(header, "error", "off", False)
    lsb = 0 if name in EXACT else 1
    assert frames.digital.shape == tuple(golden[f"{name}/shape"])
    np.testing.assert_allclose(frames.digital[:8], golden[f"{name}/digital_head"], rtol=0, atol=lsb)
    np.testing.assert_allclose(frames.digital[-8:], golden[f"{name}/digital_tail"], 0, atol=lsb)
    if name in EXACT:
        sums = frames.digital.astype(np.int64).sum(0) % 65536
        np.testing.assert_array_equal(sums, golden[f"{name}/sum_mod65536"])

    physical = _physical(frames, header)
    gain = np.array([signal.gain for signal in header.signals])
    atol = 1e-9 + lsb / gain
    for rows, part in ((slice(8), "head"), (slice(-8, None), "tail")):
        wanted = golden[f"{name}/physical_{part}"]
        np.testing.assert_array_equal(np.isnan(physical[rows]), np.isnan(wanted))
        assert (np.nan_to_num(np.abs(physical[rows] - wanted)) <= atol).all()
    np.testing.assert_array_equal(np.isnan(physical).sum(0), golden[f"{name}/nan_count"])


@pytest.mark.parametrize("name", [*EXACT, *AVERAGED])
def test_headers_equal_the_golden_ones(name, golden, data):
    header = read_header(data("ecg") / (EXACT | AVERAGED)[name])
    meta = json.loads(str(golden[f"{name}/meta"]))
    signals = header.signals
    assert header.fs == meta["fs"]
    assert list(header.comments) == meta["comments"]
    assert [str(signal.fmt) for signal in signals] == meta["fmt"]
    assert [signal.gain for signal in signals] == meta["gain"]
    assert [signal.baseline for signal in signals] == meta["baseline"]
    assert [signal.units for signal in signals] == meta["units"]
    assert [signal.adc_zero for signal in signals] == meta["adc_zero"]
    assert [signal.init for signal in signals] == meta["init"]
    assert [signal.block for signal in signals] == meta["block"]
    assert [signal.name for signal in signals] == meta["names"]
    assert [signal.skew or None for signal in signals] == meta["skew"]
    assert [signal.samples_per_frame for signal in signals] == meta["spf"]
    assert [signal.offset or None for signal in signals] == meta["offset"]
    checksums = [signal.checksum % 65536 for signal in signals]
    assert checksums == golden[f"{name}/header_checksum_mod65536"].tolist()


def test_two_segments_are_one_record(golden, data):
    """Only the leads that are voltages; frame averages to one unit of the file."""
    record = read_record(data("ecg") / "wfdb/041s/041s", leads=("III", "I", "V"))
    assert record.digital.shape == tuple(golden["041s/shape"])
    assert golden["041s/names"][:3].tolist() == list(record.leads)
    rows = {"head": slice(8), "seam": slice(996, 1004)}
    for part, where in rows.items():
        wanted = golden[f"041s/physical_{part}"][:, :3]
        np.testing.assert_allclose(record.signal[where], wanted, rtol=0, atol=1 / 2000 + 1e-7)


def test_flac_is_refused_by_name(data):
    with pytest.raises(ValueError, match=r"FLAC-compressed WFDB \(format 508\) is not supported"):
        read_record(data("ecg") / "wfdb/flacformats")


def test_variable_layout_is_refused(data):
    with pytest.raises(ValueError, match="variable layout is not supported"):
        read_record(data("ecg") / "wfdb/headers/p000878-2137-10-26-16-57")


def _records(root: Path) -> list[Path]:
    found = [
        *sorted(root.glob("ptbxl/records*/*/*.hea")),
        *sorted(root.glob("cinc2021/*.hea")),
        *(root / f"{path}.hea" for path in EXACT.values()),
    ]
    return [path.with_suffix("") for path in found]


def test_every_record_equals_wfdb_digitally_and_to_float32(data):
    seen = 0
    for path in _records(data("ecg")):
        theirs = wfdb.rdrecord(str(path), physical=False)
        header = read_header(path)
        frames = read_frames(header, "error", "off", False)
        np.testing.assert_array_equal(frames.digital, theirs.d_signal, err_msg=str(path))
        if {signal.units for signal in header.signals} <= {"mV", "mv"}:
            record = read_record(path)
            physical = wfdb.rdrecord(str(path)).p_signal
            np.testing.assert_array_equal(np.isnan(record.signal), np.isnan(physical))
            np.testing.assert_allclose(record.signal, physical, rtol=1e-7, atol=1e-9)
            assert record.fs == theirs.fs
            assert list(record.leads) == theirs.sig_name
        seen += 1
    assert seen == 40 + 8 + len(EXACT)


def test_shipped_records_agree_with_their_own_checksums(data):
    for path in sorted((data("ecg") / "ptbxl").rglob("*.hea")):
        assert read_record(path, verify="error").warnings == ()


def test_every_header_equals_what_wfdb_reads(data):
    """The header-only cases: fractional rates, counters, skew, exponents, other units."""
    for path in sorted((data("ecg") / "wfdb/headers").glob("*.hea")):
        theirs, ours = wfdb.rdheader(str(path.with_suffix(""))), read_header(path)
        assert (ours.fs, ours.counter_fs) == (theirs.fs, theirs.counter_freq)
        if isinstance(theirs, wfdb.MultiRecord):
            assert [name for name, _ in ours.segments] == theirs.seg_name
            assert [length for _, length in ours.segments] == theirs.seg_len
            continue
        signals = ours.signals
        assert ours.n_samples == theirs.sig_len
        assert [signal.file for signal in signals] == theirs.file_name
        assert [signal.gain for signal in signals] == theirs.adc_gain
        assert [signal.baseline for signal in signals] == theirs.baseline
        assert [signal.adc_resolution for signal in signals] == [x or 0 for x in theirs.adc_res]
        assert [signal.init for signal in signals] == [x or 0 for x in theirs.init_value]
        assert [signal.checksum for signal in signals] == theirs.checksum
        assert [signal.name or None for signal in signals] == theirs.sig_name
        if path.name != "test_generator_2.hea":  # wfdb drops its non-ASCII unit, we keep it
            assert [signal.units for signal in signals] == theirs.units


def test_a_non_ascii_unit_costs_no_record(data):
    header = read_header(data("ecg") / "wfdb/headers/test_generator_2")
    assert header.signals[8].units == "°"
    assert header.base_date == "10/12/2009"
