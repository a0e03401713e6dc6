"""The header parser: what is written is read, defaults, and the liberties of real files."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jepa_ecg.data.errors import ECGFormatError
from jepa_ecg.data.wfdb_header import Signal, parse_header

names = st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True)
small, whole = st.integers(0, 10**6), st.integers(-(10**6), 10**6)
words = st.from_regex(r"[!-~]{1,8}( [!-~]{1,8}){0,2}", fullmatch=True)

signals = st.builds(
    Signal,
    file=st.from_regex(r"[a-z]{1,8}\.dat", fullmatch=True),
    fmt=st.sampled_from([8, 16, 24, 32, 61, 80, 160, 212, 310, 311]),
    samples_per_frame=st.integers(1, 999),
    skew=small,
    offset=small,
    gain=st.floats(1e-12, 1e12) | st.floats(-1e6, -1e-3),
    baseline=whole,
    units=st.from_regex(r"[A-Za-zµ%]{1,6}", fullmatch=True),
    adc_resolution=small,
    adc_zero=whole,
    init=whole,
    checksum=whole,
    block=small,
    name=words,
)


def _line(s: Signal) -> str:
    return (
        f"{s.file} {s.fmt}x{s.samples_per_frame}:{s.skew}+{s.offset} "
        f"{s.gain!r}({s.baseline})/{s.units} {s.adc_resolution} {s.adc_zero} {s.init} "
        f"{s.checksum} {s.block} {s.name}"
    )


@given(
    name=names,
    fs=st.floats(1e-3, 1e6),
    n=st.integers(1, 10**15),
    lines=st.lists(signals, min_size=1, max_size=5),
    comments=st.lists(words, max_size=3),
    end=st.sampled_from(["\n", "\r\n", " \n", "\n\n"]),
)
def test_what_is_written_is_read(name, fs, n, lines, comments, end):
    text = end.join(
        [
            "# before",
            f"{name} {len(lines)} {fs!r} {n} 12:30:05.5 01/02/2003",
            *map(_line, lines),
            *[f"# {comment}" for comment in comments],
        ]
    )
    header = parse_header(text, f"{name}.hea")
    assert (header.name, header.fs, header.n_samples) == (name, fs, n)
    assert header.signals == tuple(lines)
    assert header.comments == ("before", *comments)
    assert (header.base_time, header.base_date) == ("12:30:05.5", "01/02/2003")
    assert header.warnings == ()


def _complaint(text: str) -> str:
    try:
        parse_header(text, "some.hea")
    except ECGFormatError as error:
        return str(error)
    return ""


@given(st.text())
@example("x 1\nx 16 nan")
@example("x 1 inf 10\nx.dat 16")
@example("x/0 1 500")
@example("x 1\nx.dat 16 1 9 9 " + "9" * 5000)
@example("x 1\nx.dat " + "9" * 5000)
@example("x 1 500 ١٠\nx.dat 16")
def test_any_text_is_a_header_or_an_error_with_its_file(text):
    assert "some.hea" in (_complaint(text) or "some.hea")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_an_error_with_its_file(raw):
    text = "x 2 500 10\n" + raw.decode("latin-1")
    assert "some.hea" in (_complaint(text) or "some.hea")


def test_fields_left_out_from_the_right_have_their_defaults():
    signal = parse_header("x 1\nx.dat 16").signals[0]
    assert signal == Signal("x.dat", 16, 1, 0, 0, 200.0, 0, "mV", 0, 0, 0, None, 0, "")
    header = parse_header("x 1\nx.dat 16 50 12 1024")
    assert header.fs == 250
    assert header.n_samples is None
    assert header.signals[0].baseline == 1024
    assert header.signals[0].init == 1024


def test_a_gain_may_be_negative_or_have_an_exponent():
    text = "x 2\na 16 -1.052e+04(-3)/uV\na 16 2.4011e-11/nV"
    first, second = parse_header(text).signals
    assert (first.gain, first.baseline, first.units) == (-10520.0, -3, "uV")
    assert (second.gain, second.units) == (2.4011e-11, "nV")


def test_a_description_keeps_its_commas_and_inner_blanks():
    assert (
        parse_header("x 1\na 16 1 0 0 0 0 0  sig 0,  fmt 8 \t").signals[0].name == "sig 0,  fmt 8"
    )


def test_no_samples_announced_means_ask_the_file():
    assert parse_header("x 1 500 0\nx.dat 16").n_samples is None


@pytest.mark.parametrize("rest", ["2006", "05-Feb-2020", "05-Feb-2020 11:39:16", "11:39:16 2006"])
def test_a_date_in_the_wrong_form_is_dropped_with_a_warning(rest):
    header = parse_header(f"E1 1 500 5000 {rest}\nE1.mat 16")
    assert header.base_date == ""
    assert len(header.warnings) == 2  # the date, and the gain that is not there
    assert "no date" in header.warnings[0]
    assert header.base_time == ("11:39:16" if ":" in rest else "")


def test_a_record_name_may_hold_a_folder():
    header = parse_header("median/00001_medians 1 500 600\nx.dat 16", "a/00001_medians.hea")
    assert header.name == "median/00001_medians"
    assert parse_header("records/00001 1\nx.dat 16", "a/00001.hea").segments == ()
    assert parse_header("041s/2 1\na 5\nb 5", "a/041s.hea").segments == (("a", 5), ("b", 5))


def test_a_counter_frequency_is_not_the_sampling_rate():
    header = parse_header("x 1 250/24000(5) 10\nx.dat 16")
    assert (header.fs, header.counter_fs, header.base_counter) == (250, 24000, 5)


@pytest.mark.parametrize(
    ("text", "line", "field"),
    [
        ("x two", 1, "number of signals"),
        ("# c\nx 1 fast", 2, "sampling frequency"),
        ("x 1 0", 1, "sampling frequency"),
        ("x 1 500 many", 1, "number of samples"),
        ("x 1\nx.dat sixteen", 2, "signal format"),
        ("x 1\nx.dat 16x0", 2, "signal format"),
        ("x 1\nx.dat", 2, "signal format"),
        ("x 1\nx.dat 16 high", 2, "gain"),
        ("x 1\nx.dat 16 1e999", 2, "gain"),
        ("x 1\n\nx.dat 16 1 16 0 zero", 3, "initial value"),
        ("x 1\nx.dat 16 1 16 0 0 1.5", 2, "checksum"),
        ("x/1 1\na long", 2, "segment length"),
    ],
)
def test_an_error_names_line_and_field(text, line, field):
    with pytest.raises(ECGFormatError) as caught:
        parse_header(text, "x.hea")
    assert (caught.value.file, caught.value.line, caught.value.field) == ("x.hea", line, field)
    assert f"x.hea, line {line}, field {field}: " in str(caught.value)
