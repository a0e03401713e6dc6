"""What a person gets for files that are not as they should be: one test a case, named by it."""

from __future__ import annotations

import os
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest

from jepa_core.errors import DataError
from jepa_ecg.data.arrays import Dump, FileList
from jepa_ecg.data.errors import ECGFormatError
from jepa_ecg.data.ptbxl import PTBXL, ptbxl_labels
from jepa_ecg.data.source import ReadOptions, Source, open_source, refuse_missing
from jepa_ecg.data.transforms import interpolate_nans, strided_crops
from jepa_ecg.data.wfdb_header import read_header
from jepa_ecg.data.wfdb_record import read_record

N = 40
SAMPLES = np.arange(N * 2).reshape(N, 2) - 30
RECORD_LINE = f"x 2 100 {N}"
SIGNAL_LINES = ("x.dat 16 1000/mV 16 0 -30 0 0 I", "x.dat 16 1000/mV 16 0 -29 0 0 II")


@pytest.fixture
def record(tmp_path):
    """`record(header lines, samples)` writes a record of leads I and II and gives its path."""

    def write(*lines: str, samples: np.ndarray = SAMPLES, raw: bytes | None = None):
        text = "\n".join(lines or (RECORD_LINE, *SIGNAL_LINES))
        (tmp_path / "x.hea").write_text(text, encoding="utf-8")
        data = samples.astype("<i2").tobytes() if raw is None else raw
        (tmp_path / "x.dat").write_bytes(data)
        return tmp_path / "x"

    return write


@pytest.mark.parametrize("lines", [("",), ("# a", "# b"), ("\n\n",)])
def test_case_1_a_header_without_content_names_its_path(lines, record):
    with pytest.raises(ECGFormatError, match=r"x\.hea: the header"):
        read_header(record(*lines))


def test_case_1_a_missing_header_names_its_path(tmp_path):
    with pytest.raises(ECGFormatError, match=r"gone\.hea: there is no such header"):
        read_header(tmp_path / "gone")


@pytest.mark.parametrize("line", ["x", "x two 100 40"])
def test_case_2_a_record_line_without_a_number_of_signals(line, record):
    with pytest.raises(ECGFormatError, match=f"{line if line == 'x' else 'two'}") as caught:
        read_record(record(line, *SIGNAL_LINES))
    assert caught.value.line == 1


def test_case_3_fewer_signal_lines_than_announced(record):
    with pytest.raises(ECGFormatError, match="12 signals announced, 2 described"):
        read_record(record("x 12 100 40", *SIGNAL_LINES))


def test_case_3_more_signal_lines_than_announced_are_ignored_with_a_warning(record):
    got = read_record(record("x 2 100 40", *SIGNAL_LINES, "y.dat 16 1000/mV 0 0 0 0 0 V1"))
    assert got.leads == ("I", "II")
    assert any("2 signals announced, 3 lines" in note for note in got.warnings)


@pytest.mark.parametrize(("fmt", "said"), [(17, "format 17 is unknown"), (516, "FLAC.*516")])
def test_case_4_an_unreadable_format_is_named(fmt, said, record):
    with pytest.raises(ECGFormatError, match=said):
        read_record(record("x 1 100 40", f"x.dat {fmt} 1000/mV 0 0 0 0 0 I"))


def test_case_5_a_missing_data_file_is_named(record, tmp_path):
    path = record()
    (tmp_path / "x.dat").unlink()
    with pytest.raises(ECGFormatError, match=r"x\.dat is missing"):
        read_record(path)


def test_case_6_a_short_data_file_gives_both_byte_counts(record):
    with pytest.raises(ECGFormatError, match="160 bytes are announced, the file has 100"):
        read_record(record(samples=SAMPLES[:25]))


def test_case_6_a_short_data_file_can_be_padded_with_missing_samples(record):
    got = read_record(record(samples=SAMPLES[:25]), truncated="pad")
    np.testing.assert_allclose(got.signal[:25], SAMPLES[:25] / 1000, rtol=1e-6)
    assert np.isnan(got.signal[25:]).all()
    assert got.missing.tolist() == [15, 15]
    assert any("the file has 100" in note for note in got.warnings)


def test_case_7_a_long_data_file_is_read_as_announced_with_a_warning(record):
    got = read_record(record(f"x 2 100 {N - 10}", *SIGNAL_LINES))
    assert got.signal.shape == (30, 2)
    assert any("160 bytes, 120 are announced" in note for note in got.warnings)


@pytest.mark.parametrize("announced", ["", f" {N}"])
def test_case_8_a_partial_frame_is_an_error_or_padded(announced, record):
    path = record(f"x 2 100{announced}", *SIGNAL_LINES, raw=SAMPLES.astype("<i2").tobytes()[:-2])
    with pytest.raises(ECGFormatError, match="158"):
        read_record(path)
    got = read_record(path, truncated="pad")
    assert got.signal.shape == (N, 2)
    assert got.missing.tolist() == [0, 1]


@pytest.mark.parametrize("gain", ["0/mV", ""])
def test_case_9_no_gain_is_200_with_a_warning(gain, record):
    got = read_record(record("x 1 100 80", f"x.dat 16 {gain}"))
    assert got.signal[0, 0] == pytest.approx(-30 / 200)
    assert any("200 is assumed" in note for note in got.warnings)


def test_case_10_doubled_lead_names_are_listed(record):
    lines = [line.replace(" II", " i") for line in SIGNAL_LINES]
    with pytest.raises(ECGFormatError, match="several signals are named i"):
        read_record(record(RECORD_LINE, *lines))


def test_case_11_a_missing_lead_lists_what_is_there(record):
    with pytest.raises(ECGFormatError, match="there is no lead V3, aVR; there are I, II"):
        read_record(record(), leads=("I", "V3", "aVR"))


def test_case_11_limb_leads_are_derived_from_two(record):
    got = read_record(record(), leads=("III", "aVR", "AVL", "aVF", "i"), derive=True)
    one, two = SAMPLES[:, 0] / 1000, SAMPLES[:, 1] / 1000
    wanted = np.stack([two - one, -(one + two) / 2, one - two / 2, two - one / 2, one], 1)
    np.testing.assert_allclose(got.signal, wanted, atol=1e-7)
    assert sum("computed from I and II" in note for note in got.warnings) == 4


def test_case_11_derived_leads_hold_to_two_units_in_real_records(data):
    limb = ("III", "aVR", "aVL", "aVF")
    for path in sorted((data("ecg") / "ptbxl/records500/00000").glob("*.hea")):
        stored = read_record(path, leads=limb).signal
        two = read_record(path, leads=("I", "II")).signal
        one, two = two[:, 0], two[:, 1]
        derived = np.stack([two - one, -(one + two) / 2, one - two / 2, two - one / 2], 1)
        assert np.abs(stored - derived).max() < 2.001e-3


def test_case_11_a_missing_chest_lead_can_be_zeros(record):
    got = read_record(record(), leads=("I", "V3"), fill="zero")
    assert not got.signal[:, 1].any()
    assert any("V3 is not in the record; filled with zeros" in note for note in got.warnings)


def test_case_12_a_used_lead_that_is_no_voltage(record):
    lines = (SIGNAL_LINES[0], "x.dat 16 20/mmHg 0 0 0 0 0 ABP")
    with pytest.raises(ECGFormatError, match="lead ABP is in 'mmHg', which is no voltage"):
        read_record(record(RECORD_LINE, *lines))
    assert read_record(record(RECORD_LINE, *lines), leads=("I",)).leads == ("I",)


def test_case_13_a_lead_without_a_valid_sample(record):
    samples = SAMPLES.copy()
    samples[:, 1] = -32768
    path = record(samples=samples)
    with pytest.raises(ECGFormatError, match="lead II has no valid sample"):
        read_record(path)
    got = read_record(path, fill="zero")
    assert not got.signal[:, 1].any()
    with pytest.raises(ECGFormatError, match="lead II has no valid sample"):
        interpolate_nans(np.full((5, 2), [0.0, np.nan]), leads=("I", "II"))


def test_case_14_some_missing_samples_are_counted_and_can_be_interpolated(record):
    samples = SAMPLES.copy()
    samples[3:6, 0] = -32768
    got = read_record(record(samples=samples))
    assert got.missing.tolist() == [3, 0]
    assert any("lead I: 3 of 40 samples are missing" in note for note in got.warnings)
    np.testing.assert_allclose(interpolate_nans(got.signal)[:, 0], SAMPLES[:, 0] / 1000, atol=1e-6)


def test_case_15_a_flat_lead_is_allowed_with_a_warning(record):
    samples = SAMPLES.copy()
    samples[:, 0] = 7
    assert "flat: I" in read_record(record(samples=samples)).warnings
    samples[0, 0] = -32768
    assert "flat: I" in read_record(record(samples=samples)).warnings
    samples[6, 0] = 8
    assert "flat: I" not in read_record(record(samples=samples)).warnings


def test_case_16_implausible_voltages_are_warned_of(record):
    lines = [line.replace("1000/mV", "1/mV") for line in SIGNAL_LINES]
    samples = SAMPLES.clip(-50, 50)
    assert not any("look wrong" in n for n in read_record(record(samples=samples)).warnings)
    samples[0, 0] = -51
    got = read_record(record(RECORD_LINE, *lines, samples=samples))
    assert any("values up to 51 mV: units look wrong" in note for note in got.warnings)


def test_case_17_a_short_record_is_an_error_unless_allowed():
    signal = np.zeros((60, 2), np.float32)
    with pytest.raises(ECGFormatError, match="60 samples are shorter than a crop of 100"):
        strided_crops(signal, 100, 50)
    assert strided_crops(signal, 100, 50, patch=25, allow_short=True).shape == (1, 2, 50)
    with pytest.raises(ECGFormatError, match="shorter than one patch of 100"):
        strided_crops(signal, 100, 50, patch=100, allow_short=True)


def test_case_18_a_checksum_that_disagrees_is_a_warning_by_default(record):
    lines = (RECORD_LINE, SIGNAL_LINES[0].replace(" 0 0 I", " 1 0 I"), SIGNAL_LINES[1])
    path = record(*lines)
    assert any("checksum disagrees: I" in note for note in read_record(path).warnings)
    assert read_record(path, verify="off").warnings == ()
    with pytest.raises(ECGFormatError, match="checksum disagrees: I, II"):
        read_record(path, verify="error")


def test_case_18_checksums_are_compared_modulo_65536(record):
    sums = SAMPLES.sum(0)
    lines = [
        f"x.dat 16 1000/mV 16 0 0 {total + shift} 0 {name}"
        for total, shift, name in zip(sums, (65536, -131072), ("I", "II"), strict=True)
    ]
    assert read_record(record(RECORD_LINE, *lines), verify="error").warnings == ()


def test_case_19_an_initial_value_that_disagrees_is_ignored(record):
    lines = [line.replace(" -30 ", " 999 ") for line in SIGNAL_LINES]
    got = read_record(record(RECORD_LINE, *lines), verify="off")
    assert got.warnings == ()
    assert got.signal[0, 0] == pytest.approx(-0.03)


@pytest.mark.parametrize("date", ["2006", "05-02-2020 11:39:16", "02/05/2020 11:39:16"])
def test_case_20_an_odd_date_is_dropped_and_the_record_kept(date, record):
    got = read_record(record(f"{RECORD_LINE} {date}", *SIGNAL_LINES), verify="off")
    assert got.signal.shape == (N, 2)
    assert any("no date" in note for note in got.warnings)


def test_case_21_a_record_name_with_a_folder_is_accepted(record):
    got = read_record(record(f"median/beats/x 2 100 {N}", *SIGNAL_LINES), verify="off")
    assert got.signal.shape == (N, 2)


DATABASE = "ecg_id,patient_id,scp_codes,strat_fold,filename_lr,filename_hr\n"
STATEMENTS = (
    ",diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass\n"
    "NORM,1.0,,,NORM,NORM\nSR,,,1.0,,\n"
)


@pytest.fixture
def ptbxl(tmp_path):
    def write(*rows: str):
        (tmp_path / "ptbxl_database.csv").write_text(DATABASE + "\n".join(rows) + "\n")
        (tmp_path / "scp_statements.csv").write_text(STATEMENTS)
        return tmp_path / "ptbxl_database.csv", tmp_path / "scp_statements.csv"

    return write


@pytest.mark.parametrize("codes", ["{'NORM': 100", "['NORM']", "{1: 2}", "__import__('os')", ""])
def test_case_22_unreadable_codes_name_the_record(codes, ptbxl):
    with pytest.raises(ECGFormatError, match="codes of record 17 are not") as caught:
        ptbxl_labels(*ptbxl(f'17,1,"{codes}",3,a,b'), "all")
    assert caught.value.field == "scp_codes"


def test_case_22_an_unknown_code_counts_only_in_the_task_of_all_codes(ptbxl):
    rows = ("1,1,\"{'NORM': 0.0, 'NEW': 0.0}\",3,a,b", "2,1,{'NEW': 1},4,a,b")
    with pytest.warns(UserWarning, match="NEW") as caught:
        labels = ptbxl_labels(*ptbxl(*rows), "all")
    assert len(caught) == 1
    assert labels.classes.tolist() == ["NEW", "NORM"]
    with pytest.warns(UserWarning, match="NEW"):
        labels = ptbxl_labels(*ptbxl(*rows), "diagnostic")
    assert labels.classes.tolist() == ["NORM"]
    assert labels.ecg_id.tolist() == [1]


@pytest.mark.parametrize("fold", ["", "0", "11", "2.5", "first", "nan"])
def test_case_23_a_fold_that_is_none(fold, ptbxl):
    with pytest.raises(ECGFormatError, match="record 5 has the fold"):
        ptbxl_labels(*ptbxl(f"5,1,{{'NORM': 1}},{fold},a,b"), "all")


def test_case_24_listed_records_that_do_not_exist(ptbxl, tmp_path):
    ptbxl(*[f"{i},1,{{'NORM': 1}},1,lr{i},hr{i}" for i in range(1, 9)])
    (tmp_path / "hr3.hea").write_text("")
    with pytest.raises(ECGFormatError, match=r"7 listed records do not exist: .*hr6, \.\.\.;"):
        refuse_missing(PTBXL(str(tmp_path)))
    (tmp_path / "list.csv").write_text("path\nhr3\nhr4\n")
    with pytest.raises(ECGFormatError, match=r"1 listed records do not exist: .*hr4;"):
        refuse_missing(FileList(str(tmp_path / "list.csv"), "own"))


def _dump(folder, array, **options):
    np.save(folder / "a.npy", array)
    source = Dump(str(folder / "a.npy"), fs=100, name="own", **options)
    return source.read(next(source.entries()), ReadOptions())[0]


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((50, 12), "2 axes .*axis 1 looks like leads"),
        ((3, 12, 50), "axis 2 should be 12 leads; axis 1 looks like leads"),
        ((3, 50, 8), "no axis has 12"),
    ],
)
def test_case_25_a_dump_of_another_shape_says_which_axis_looks_like_leads(shape, said, tmp_path):
    with pytest.raises(ECGFormatError, match=said):
        _dump(tmp_path, np.zeros(shape, np.float32))


def test_case_25_leads_before_time_only_on_request(tmp_path):
    array = np.random.default_rng(0).normal(size=(2, 12, 30)).astype(np.float32)
    got = _dump(tmp_path, array, layout="NCT")
    np.testing.assert_array_equal(got.signal, array[0].T)


def test_case_26_integers_need_a_gain(tmp_path):
    array = np.arange(2 * 5 * 12, dtype=np.int16).reshape(2, 5, 12)
    with pytest.raises(ECGFormatError, match=r"integers \(int16\), not mV; give --gain"):
        _dump(tmp_path, array)
    np.testing.assert_allclose(_dump(tmp_path, array, gain=200).signal, array[0] / 200, rtol=1e-6)


def test_case_27_a_dump_with_an_infinity(tmp_path):
    array = np.zeros((2, 5, 12), np.float16)
    array[0, 3, 7] = np.inf
    with pytest.raises(ECGFormatError, match="record 0: lead V2 is infinite at sample 3"):
        _dump(tmp_path, array)


@pytest.mark.parametrize("n", [10**6, 10**12, 10**18 - 1])
@pytest.mark.parametrize("truncated", ["error", "pad"])
def test_a_header_that_announces_a_terabyte_allocates_nothing(n, truncated, record):
    path = record(f"x 2 100 {n}", *SIGNAL_LINES)
    if truncated == "pad" and n == 10**6:
        assert read_record(path, truncated="pad").signal.shape == (10**6, 2)
        return
    tracemalloc.start()
    try:
        with pytest.raises(ECGFormatError, match="announced"):
            read_record(path, truncated=truncated)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "lines",
    [
        ("x 1 100", "~ 16x999999999 1/mV 0 0 0 0 0 I"),
        ("x 1 100 999999999999", "~ 16 1/mV 0 0 0 0 0 I"),
        ("x 1 100 40", "x.dat 16x999999999 1/mV 0 0 0 0 0 I"),
        ("x 1 100 40", "x.dat 16+999999999999999999 1/mV 0 0 0 0 0 I"),
        ("x 999999999 100 40", *SIGNAL_LINES),
        ("x/999999999 1 100", "a 5"),
        ("x/2 1 100", "~ 999999999999", "a 5"),
    ],
)
@pytest.mark.parametrize("truncated", ["error", "pad"])
def test_no_announcement_allocates_what_no_file_holds(lines, truncated, record):
    path = record(*lines)
    tracemalloc.start()
    try:
        with pytest.raises(ECGFormatError):
            read_record(path, truncated=truncated)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "name", ["../x.dat", "/etc/hostname", "a/../../x.dat", "..\\x.dat", "C:\\x.dat", "a\0b"]
)
def test_a_file_name_that_leads_out_of_the_folder_is_refused(name, record, tmp_path):
    (tmp_path.parent / "x.dat").write_bytes(SAMPLES.astype("<i2").tobytes())
    with pytest.raises(ECGFormatError, match="leads out of the record's folder"):
        read_record(record(RECORD_LINE, *[line.replace("x.dat", name) for line in SIGNAL_LINES]))
    with pytest.raises(ECGFormatError, match="leads out of the record's folder"):
        read_record(record("x/1 2 100 40", f"{name} 40"))


def test_a_data_file_in_a_folder_below_is_read(record, tmp_path):
    path = record(RECORD_LINE, *[line.replace("x.dat", "sub/x.dat") for line in SIGNAL_LINES])
    (tmp_path / "sub").mkdir()
    os.replace(tmp_path / "x.dat", tmp_path / "sub" / "x.dat")
    assert read_record(path, verify="off").signal.shape == (N, 2)


def test_a_record_that_is_its_own_segment_is_refused(record):
    with pytest.raises(ECGFormatError, match="is itself a multi-segment record"):
        read_record(record("x/1 2 100 40", "x 40"))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"


def test_a_git_lfs_pointer_is_named_as_what_it_is(record, tmp_path):
    with pytest.raises(ECGFormatError, match=r"Git LFS pointer.*git lfs pull"):
        read_record(record(raw=POINTER))
    with pytest.raises(ECGFormatError, match="Git LFS pointer"):
        read_record(record(raw=POINTER), truncated="pad")
    for name in ("p.npy", "p.npz", "p.csv", "p.parquet"):
        (tmp_path / name).write_bytes(POINTER)
        with pytest.raises(ECGFormatError, match="Git LFS pointer"):
            next(open_source(tmp_path / name, fs=100).entries())
    (tmp_path / "p.hea").write_bytes(POINTER)
    with pytest.raises(ECGFormatError, match="Git LFS pointer"):
        read_record(tmp_path / "p")


def one_of(source: Source) -> object:
    return source.read(next(iter(source.entries())), ReadOptions())


def test_an_array_that_promises_more_than_its_file_has_is_refused_before_allocation(tmp_path):
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 3), }".ljust(117)
    content = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + f"{header}\n".encode()
    (tmp_path / "a.npy").write_bytes(content)
    (tmp_path / "list.csv").write_text("path\na.npy\n")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as packed:
        packed.writestr("data.npy", content)
        packed.writestr("sizes.npy", content)
    for name in ("a.npy", "a.npz", "list.csv"):
        with pytest.raises(ECGFormatError, match=r"a\.np[yz]: cannot be read: .*file"):
            one_of(open_source(tmp_path / name, fs=100))
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-30])
    with pytest.raises(ECGFormatError, match=r"a\.npz: cannot be read: "):
        one_of(open_source(tmp_path / "a.npz", fs=100))


def test_signals_of_one_file_must_agree(record):
    other = SIGNAL_LINES[1].replace(" 16 ", " 212 ", 1)
    with pytest.raises(ECGFormatError, match="differ: 16, 212"):
        read_record(record(RECORD_LINE, SIGNAL_LINES[0], other))
    with pytest.raises(ECGFormatError, match="consecutive lines"):
        read_record(record("x 3 100 40", SIGNAL_LINES[0], "~ 16 1/mV 0 0 0 0 0 V", SIGNAL_LINES[1]))


def test_an_error_is_a_value_error_that_survives_a_process_boundary(record):
    with pytest.raises(ValueError, match="announced") as caught:
        read_record(record("x 12 100 40"))
    assert isinstance(caught.value, DataError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert (again.file, again.line, again.field) == (caught.value.file, 0, "")
