"""Folders and files in the layouts of the public databases, as sources."""

from __future__ import annotations

import csv

import h5py
import numpy as np
import pandas as pd
import pytest

from jepa_ecg.data.arrays import Dump, FileList
from jepa_ecg.data.build import CorpusConfig, build_corpus
from jepa_ecg.data.challenge import WFDBFolder, diagnoses
from jepa_ecg.data.code15 import CODE15
from jepa_ecg.data.corpus import Corpus
from jepa_ecg.data.databases import LEADS
from jepa_ecg.data.errors import ECGFormatError
from jepa_ecg.data.mimic import MIMIC
from jepa_ecg.data.source import ReadOptions, open_source
from jepa_ecg.data.wfdb_record import read_record

ALL = ReadOptions(leads=LEADS)


def _write(path, leads, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name
    path.with_suffix(".dat").write_bytes(samples.astype("<i2").tobytes())
    lines = [f"{name} {len(leads)} 500 {len(samples)}"]
    lines += [f"{name}.dat 16 200(0)/mV 16 0 0 0 0 {lead}" for lead in leads]
    path.with_suffix(".hea").write_text("\n".join(lines))


def test_mimic_records_are_listed_and_their_leads_put_in_order(tmp_path):
    leads = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")
    samples = np.arange(50 * 12).reshape(50, 12)
    _write(tmp_path / "files/p1000/p10000032/s40689238/40689238", leads, samples)
    (tmp_path / "record_list.csv").write_text(
        "subject_id,study_id,file_name,ecg_time,path\n"
        "10000032,40689238,40689238,2180-07-23,files/p1000/p10000032/s40689238/40689238\n"
        "10000033,40689239,40689239,2180-07-23,files/p1000/p10000033/s40689239/40689239\n"
    )
    source = open_source(tmp_path)
    assert source == MIMIC(str(tmp_path))
    first, second = source.entries()
    assert (first.id, first.patient) == ("40689238", "10000032")
    record, labels = source.read(first, ALL)
    assert labels == {}
    np.testing.assert_allclose(record.signal[:, 4], samples[:, 5] / 200)
    np.testing.assert_allclose(record.signal[:, 5], samples[:, 4] / 200)
    with pytest.raises(ECGFormatError, match="no such header"):
        source.read(second, ALL)


def test_a_record_list_without_its_columns_is_refused(tmp_path):
    (tmp_path / "record_list.csv").write_text("subject_id,path\n1,2\n")
    with pytest.raises(ECGFormatError, match="there is no column study_id"):
        next(open_source(tmp_path).entries())


@pytest.fixture
def code15(tmp_path):
    tracings = np.random.default_rng(0).normal(size=(5, 64, 12)).astype(np.float32)
    tracings[1, :8] = 0  # padded in front
    tracings[2, -1, 3] = 0  # one lead ends in a zero
    with h5py.File(tmp_path / "exams_part0.hdf5", "w") as file:
        file["exam_id"] = np.array([11, 12, 13, 14, 0])
        file["tracings"] = tracings
    (tmp_path / "exams.csv").write_text(
        "exam_id,age,is_male,1dAVb,RBBB,LBBB,SB,ST,AF,patient_id,trace_file\n"
        "11,60,True,True,False,False,False,False,True,901,exams_part0.hdf5\n"
        "12,60,True,False,False,False,False,False,False,902,exams_part0.hdf5\n"
        "13,60,True,False,False,False,False,False,False,902,exams_part0.hdf5\n"
        "14,60,True,False,True,False,False,False,False,903,exams_part0.hdf5\n"
    )
    return tmp_path, tracings


def test_code15_records_have_labels_and_padded_ones_are_refused(code15):
    folder, tracings = code15
    source = open_source(folder)
    assert isinstance(source, CODE15)
    entries = list(source.entries())
    assert [entry.id for entry in entries] == ["11", "12", "13", "14"]
    record, labels = source.read(entries[0], ReadOptions(leads=("V1", "aVR")))
    np.testing.assert_array_equal(record.signal, tracings[0][:, [6, 3]])
    assert (record.fs, record.leads) == (400, ("V1", "aVR"))
    assert (entries[0].patient, labels) == ("901", {"code-15": ("1dAVb", "AF")})
    assert source.read(entries[3], ALL)[1] == {"code-15": ("RBBB",)}
    for padded in entries[1:3]:
        with pytest.raises(ECGFormatError, match="padded with zeros"):
            source.read(padded, ALL)


def test_a_broken_hdf5_file_is_named(code15):
    folder, _ = code15
    (folder / "exams_part1.hdf5").write_bytes(b"not HDF5")
    with pytest.raises(ECGFormatError, match=r"exams_part1\.hdf5: is no HDF5 file"):
        list(open_source(folder).entries())


def test_challenge_records_carry_their_diagnoses(data):
    source = open_source(data("ecg") / "cinc2021", name="georgia")
    assert isinstance(source, WFDBFolder)
    entries = list(source.entries())
    assert [entry.id for entry in entries] == sorted(entry.id for entry in entries)
    assert len(entries) == 8
    record, labels = source.read(entries[0], ALL)
    assert labels == {"dx": ("426177001", "67741000119109")}
    assert record.signal.shape == (5000, 12)
    for entry in entries:
        assert source.read(entry, ALL)[0].warnings == ()


def test_a_folder_of_any_depth_is_walked_in_order(tmp_path):
    for name in ("b/2", "a/9", "a/1", "0"):
        _write(tmp_path / name, ("I", "II"), np.arange(20).reshape(10, 2))
    entries = list(open_source(tmp_path).entries())
    assert [entry.id for entry in entries] == ["0", "a/1", "a/9", "b/2"]
    assert open_source(tmp_path).name == tmp_path.name


@pytest.mark.parametrize("name", ["JS20000.hea", "JS20000"])
def test_a_single_record_is_a_source_by_its_header_or_its_name(name, data):
    folder = data("ecg") / "cinc2021"
    source = open_source(folder / name)
    (entry,) = source.entries()
    assert (source.name, entry.id) == ("JS20000", "JS20000")
    record, labels = source.read(entry, ALL)
    np.testing.assert_array_equal(record.signal, read_record(folder / "JS20000").signal)
    assert labels == {"dx": diagnoses(record.comments)}
    assert open_source(folder / name, name="ningbo").name == "ningbo"


def test_a_folder_is_taken_before_a_record_of_its_name(tmp_path):
    for name in ("r", "r/1", "r/2"):
        _write(tmp_path / name, ("I", "II"), np.arange(20).reshape(10, 2))
    assert [entry.id for entry in open_source(tmp_path / "r").entries()] == ["1", "2"]
    assert [entry.id for entry in open_source(tmp_path / "r.hea").entries()] == ["r"]


def test_diagnoses_are_none_or_a_sorted_set():
    assert diagnoses(("Age: 3", "Dx: 20,10, 20,")) == ("10", "20")
    assert diagnoses(("Dx:",)) == ()
    assert diagnoses(("Age: 3",)) is None


def test_a_table_of_files_is_a_source(tmp_path, data):
    _write(tmp_path / "some/r1", ("I", "II"), np.arange(20).reshape(10, 2))
    np.save(tmp_path / "r2.npy", np.ones((10, 2)))
    table = pd.DataFrame(
        {
            "path": ["some/r1", "r2.npy"],
            "id": ["one", "two"],
            "patient": [7, 8],
            "fold": [3, 4],
            "labels": ["b;a", None],
        }
    )
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        source = FileList(str(tmp_path / name), "own", fs=50, leads=("I", "II"))
        one, two = source.entries()
        assert (one.id, one.patient, one.fold) == ("one", "7", 3)
        assert one.labels == {"labels": ["a", "b"]}
        assert two.labels == {"labels": []}
        assert source.read(one, ReadOptions())[0].fs == 500
        record, _ = source.read(two, ReadOptions())
        assert (record.fs, record.signal.shape) == (50, (10, 2))
    with pytest.raises(ECGFormatError, match="give it in Hz with --fs"):
        FileList(str(tmp_path / "t.csv"), "own").read(two, ReadOptions())


def test_a_dump_is_half_precision_millivolts(tmp_path, data):
    record = read_record(data("ecg") / "ptbxl/records100/00000/00001_lr")
    np.save(tmp_path / "d.npy", record.signal[None].astype(np.float16))
    source = open_source(tmp_path / "d.npy", fs=100)
    got, _ = source.read(next(source.entries()), ALL)
    np.testing.assert_allclose(got.signal, record.signal, atol=1e-3)
    assert got.signal.dtype == np.float32


def test_a_dump_of_records_of_any_length_is_cut_by_their_sizes(tmp_path):
    data = np.arange(7 * 12, dtype=np.float32).reshape(7, 12) / 9
    np.savez(tmp_path / "d.npz", data=data, sizes=[3, 4])
    source = Dump(str(tmp_path / "d.npz"), fs=100, name="own")
    first, second = source.entries()
    np.testing.assert_array_equal(source.read(second, ALL)[0].signal, data[3:])
    np.savez(tmp_path / "d.npz", data=data, sizes=[3, 5])
    with pytest.raises(ECGFormatError, match="sizes sum to 8, data has 7"):
        source.read(first, ALL)


def test_what_nothing_reads_is_named(tmp_path):
    with pytest.raises(ECGFormatError, match="no PTB-XL"):
        open_source(tmp_path)
    with pytest.raises(ECGFormatError, match="no such file or folder"):
        open_source(tmp_path / "gone")
    (tmp_path / "a.pdf").write_text("")
    with pytest.raises(ECGFormatError, match=r"\.pdf is nothing to read; name a folder, a \.hea"):
        open_source(tmp_path / "a.pdf")
    np.save(tmp_path / "a.npy", np.zeros((1, 2, 12)))
    with pytest.raises(ECGFormatError, match="give it in Hz with --fs"):
        open_source(tmp_path / "a.npy")


ROWS = range(9)
THERE = (1, 7)


def _ptbxl(folder):
    rows = [f"{i},1,{{'NORM': 1}},1,r{i},r{i}" for i in ROWS]
    header = "ecg_id,patient_id,scp_codes,strat_fold,filename_lr,filename_hr"
    (folder / "ptbxl_database.csv").write_text("\n".join([header, *rows]))
    (folder / "scp_statements.csv").write_text(
        ",diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass\nNORM,1.0,,,NORM,NORM\n"
    )
    return folder


def _mimic(folder):
    rows = [f"1,{i},r{i}" for i in ROWS]
    (folder / "record_list.csv").write_text("\n".join(["subject_id,study_id,path", *rows]))
    return folder


def _list(suffix):
    def write(folder):
        table = pd.DataFrame({"path": [f"r{i}" for i in ROWS], "id": [str(i) for i in ROWS]})
        if suffix == ".csv":
            table.to_csv(folder / "list.csv", index=False)
        else:
            table.to_parquet(folder / "list.parquet")
        return folder / f"list{suffix}"

    return write


@pytest.mark.parametrize(
    "write", [_ptbxl, _mimic, _list(".csv"), _list(".parquet")], ids=["ptbxl", "mimic", "csv", "pq"]
)
def test_missing_records_stop_a_build_before_it_begins_or_are_listed_each(write, tmp_path):
    """The same for every source that lists its records."""
    data = tmp_path / "data"
    data.mkdir()
    for i in THERE:
        _write(data / f"r{i}", LEADS, np.arange(50 * 12).reshape(50, 12))
    source = open_source(write(data), name="own")
    first = ", ".join(str(data / f"r{i}") for i in (0, 2, 3, 4, 5))
    with pytest.raises(ECGFormatError) as caught:
        build_corpus([source], tmp_path / "corpus")
    assert str(caught.value) == (
        f"own: 7 listed records do not exist: {first}, ...; "
        "download them, or leave them out with --on-error skip"
    )
    assert not (tmp_path / "corpus").exists()
    config = CorpusConfig(on_error="skip", shard_records=2)
    assert build_corpus([source], tmp_path / "corpus", config) == (2, 7, 0)
    assert Corpus(tmp_path / "corpus").ids.tolist() == ["1", "7"]
    with open(tmp_path / "corpus" / "skipped.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [str(i) for i in ROWS if i not in THERE]
    for row in rows:
        assert (row["source"], row["path"]) == ("own", str(data / f"r{row['id']}"))
        assert row["reason"].startswith(f"{row['path']}.hea: there is no such header")
