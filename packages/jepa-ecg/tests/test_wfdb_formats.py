"""Every sample format: what is written by the definition is read back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepa_ecg.data.wfdb_formats import FORMATS, byte_count, decode, sample_count
from jepa_ecg.data.wfdb_record import read_record

BITS = {8: 8, 16: 16, 24: 24, 32: 32, 61: 16, 80: 8, 160: 16, 212: 12, 310: 10, 311: 10}


def encode(samples: list[int], fmt: int) -> bytes:
    """Samples as bytes, one after the other, as signal(5) defines them."""
    width = BITS[fmt]
    unsigned = [sample % 2**width for sample in samples]
    if fmt in (8, 16, 24, 32):
        return b"".join(value.to_bytes(width // 8, "little") for value in unsigned)
    if fmt == 61:
        return b"".join(value.to_bytes(2, "big") for value in unsigned)
    if fmt in (80, 160):
        return b"".join(
            (sample + 2 ** (width - 1)).to_bytes(width // 8, "little") for sample in samples
        )
    out = bytearray()
    group = FORMATS[fmt].samples
    for start in range(0, len(unsigned), group):
        some = unsigned[start : start + group]
        a, b, c = [*some, 0, 0][:3]
        if fmt == 212:
            packed = bytes([a & 255, (a >> 8) | ((b >> 8) << 4), b & 255])
        elif fmt == 310:
            low = (a << 1) | ((c & 31) << 11)
            high = (b << 1) | ((c >> 5) << 11)
            packed = low.to_bytes(2, "little") + high.to_bytes(2, "little")
        else:
            packed = (a | (b << 10) | (c << 20)).to_bytes(4, "little")
        out += packed[: byte_count(fmt, len(some))]
    return bytes(out)


def samples_of(fmt: int, **size: int) -> st.SearchStrategy[list[int]]:
    half = 2 ** (BITS[fmt] - 1)
    return st.lists(st.integers(-half, half - 1) | st.just(-half), **size)


@pytest.mark.parametrize("fmt", FORMATS)
@given(draw=st.data())
def test_any_samples_come_back(fmt, draw):
    samples = draw.draw(samples_of(fmt, max_size=40))
    raw = encode(samples, fmt)
    assert len(raw) == byte_count(fmt, len(samples))
    assert decode(raw, fmt, len(samples)).tolist() == samples


@pytest.mark.parametrize("fmt", FORMATS)
@given(n_bytes=st.integers(0, 10**15))
def test_the_samples_in_some_bytes_are_as_many_as_fit(fmt, n_bytes):
    n = sample_count(fmt, n_bytes)
    assert byte_count(fmt, n) <= n_bytes < byte_count(fmt, n + 1)


@pytest.mark.parametrize("fmt", FORMATS)
@given(draw=st.data())
def test_a_record_of_any_shape_is_its_samples_in_place(fmt, draw, tmp_path_factory):
    """Interleaved frames with an offset, a skew, and differences where the format stores them."""
    n_signals, n = draw.draw(st.integers(1, 4)), draw.draw(st.integers(4, 20))
    offset, skew = draw.draw(st.integers(0, 30)), draw.draw(st.integers(0, 3))
    total = n_signals * n
    samples = np.array(draw.draw(samples_of(fmt, min_size=total, max_size=total)))
    stored = samples.reshape(n, n_signals)
    init = list(range(5, 5 + n_signals))
    folder = tmp_path_factory.mktemp("record")
    folder.joinpath("x.dat").write_bytes(b"?" * offset + encode(samples.tolist(), fmt))
    lines = [f"x {n_signals} 500 {n}"]
    for i in range(n_signals):
        late = f":{skew}" if i == 0 and skew else ""
        lines.append(f"x.dat {fmt}{late}+{offset} 100(7)/mV 0 0 {init[i]} 0 0 lead {i}")
    folder.joinpath("x.hea").write_text("\n".join(lines))

    digital = np.cumsum(stored, 0) + init if fmt == 8 else stored
    missing = np.zeros(digital.shape, bool) if fmt == 8 else digital == -(2 ** (BITS[fmt] - 1))
    millivolts = np.where(missing, np.nan, (digital - 7) / 100)
    if skew:
        millivolts[:, 0] = np.concatenate([millivolts[skew:, 0], np.full(skew, np.nan)])
    if np.isnan(millivolts).all(0).any():
        with pytest.raises(ValueError, match="no valid sample"):
            read_record(folder / "x", verify="off")
        return
    record = read_record(folder / "x", verify="off")
    np.testing.assert_allclose(record.signal, millivolts, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(record.missing, np.isnan(millivolts).sum(0))


def test_differences_begin_at_the_initial_value(tmp_path):
    (tmp_path / "x.dat").write_bytes(encode([3, -1, 5], 8))
    (tmp_path / "x.hea").write_text("x 1 100 3\nx.dat 8 1/mV 0 0 100 0 0 I")
    assert read_record(tmp_path / "x").digital[:, 0].tolist() == [103, 102, 107]


def _two_rates(folder):
    """Two frames of 1 + 2 samples."""
    (folder / "x.dat").write_bytes(encode([10, 1, 4, 20, -3, 8], 16))
    (folder / "x.hea").write_text(
        "x 2 100 2\nx.dat 16 1/mV 0 0 0 0 0 I\nx.dat 16x2 2/mV 0 0 0 0 0 II"
    )
    return folder / "x"


def test_samples_of_a_frame_are_averaged_in_millivolt(tmp_path):
    record = read_record(_two_rates(tmp_path))
    assert record.signal.tolist() == [[10.0, 1.25], [20.0, 1.25]]
    assert record.digital.tolist() == [[10, 2], [20, 2]]
    assert record.fs == 100


def test_expanding_keeps_every_sample_of_the_fastest_signal(tmp_path):
    record = read_record(_two_rates(tmp_path), expand=True)
    assert record.signal.tolist() == [[10.0, 0.5], [10.0, 2.0], [20.0, -1.5], [20.0, 4.0]]
    assert record.fs == 200


def test_a_frame_with_a_missing_sample_is_missing(tmp_path):
    (tmp_path / "x.dat").write_bytes(encode([1, 3, -32768, 3], 16))
    (tmp_path / "x.hea").write_text("x 1 100 2\nx.dat 16x2 1/mV 0 0 0 0 0 I")
    record = read_record(tmp_path / "x")
    assert record.signal[0] == 2
    assert np.isnan(record.signal[1])


@pytest.mark.parametrize("units", ["mV", "mv", "uV", "µV", "μV", "V", "nV"])
def test_every_voltage_becomes_millivolt(units, tmp_path):
    (tmp_path / "x.dat").write_bytes(encode([6, -4], 16))
    (tmp_path / "x.hea").write_text(f"x 1 100 2\nx.dat 16 2/{units} 0 0 0 0 0 I", encoding="utf-8")
    factor = {"m": 1.0, "V": 1e3, "n": 1e-6}.get(units[0], 1e-3)
    assert read_record(tmp_path / "x").signal[:, 0] == pytest.approx([3 * factor, -2 * factor])


def test_segments_with_a_gap_are_joined_and_the_gap_is_missing(tmp_path):
    for name, value in (("a", 1), ("b", 2)):
        (tmp_path / f"{name}.dat").write_bytes(encode([value] * 2 + [9], 16))
        (tmp_path / f"{name}.hea").write_text(f"{name} 1 100 3\n{name}.dat 16 1/mV 0 0 0 0 0 I")
    (tmp_path / "x.hea").write_text("x/3 1 100 8\na 3\n~ 2\nb 3\n# whole")
    record = read_record(tmp_path / "x", verify="off")
    np.testing.assert_array_equal(record.signal[:, 0], [1, 1, 9, np.nan, np.nan, 2, 2, 9])
    assert record.digital[3, 0] == -32768
    assert record.missing.tolist() == [2]
    assert record.comments == ("whole",)
