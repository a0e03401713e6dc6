"""PTB-XL: the seven label tasks on real rows, the record source, the 500 records."""

from __future__ import annotations

import numpy as np
import pytest

from jepa_ecg.data.ptbxl import PTBXL, TASKS, label_matrix, ptbxl_labels, read_ptbxl500
from jepa_ecg.data.source import ReadOptions, open_source, refuse_missing
from jepa_ecg.data.wfdb_record import read_record

# Records, classes and labels of the 500 shipped rows.
COUNTS = {
    "all": (500, 57, 1228),
    "diagnostic": (488, 36, 627),
    "subdiagnostic": (488, 22, 620),
    "superdiagnostic": (488, 5, 584),
    "form": (126, 17, 188),
    "rhythm": (471, 8, 475),
    "ST-MEM": (415, 5, 415),
}


@pytest.fixture(scope="module")
def root(data):
    return data("ecg") / "ptbxl"


def _labels(root, task):
    return ptbxl_labels(root / "ptbxl_database.csv", root / "scp_statements.csv", task)


@pytest.mark.parametrize("task", TASKS)
def test_labels_equal_the_golden_ones(task, root, data):
    labels = _labels(root, task)
    with np.load(data("ecg") / "golden_ptbxl_labels.npz") as golden:
        for field in labels._fields:
            if f"{task}/{field}" in golden:
                np.testing.assert_array_equal(getattr(labels, field), golden[f"{task}/{field}"])
    assert (*labels.y.shape, labels.y.sum()) == COUNTS[task]
    assert labels.y.any(1).all()


def test_superclasses_are_counted_as_published(root):
    labels = _labels(root, "superdiagnostic")
    assert labels.classes.tolist() == ["CD", "HYP", "MI", "NORM", "STTC"]
    assert labels.y.sum(0).tolist() == [78, 40, 73, 297, 96]
    assert labels.y[labels.fold == 9].sum(0).tolist() == [10, 8, 16, 36, 21]
    assert labels.y[labels.fold == 10].sum(0).tolist() == [11, 7, 8, 36, 16]
    single = _labels(root, "ST-MEM")
    assert single.classes.tolist() == labels.classes.tolist()
    assert single.y.sum(0).tolist() == [37, 6, 31, 290, 51]
    assert (single.y.sum(1) == 1).all()


def test_folds_are_those_of_the_rows(root):
    fold = _labels(root, "all").fold
    assert np.bincount(fold)[1:].tolist() == [58, 51, 34, 42, 47, 33, 44, 44, 81, 66]


def test_a_code_counts_even_with_likelihood_zero(root):
    labels = _labels(root, "all")
    first = labels.classes[labels.y[labels.ecg_id == 1][0].astype(bool)]
    assert first.tolist() == ["LVOLT", "NORM", "SR"]  # two of them have likelihood 0


def test_classes_are_sorted_by_code_point():
    y, classes = label_matrix([["_AVB", "WPW"], ["1AVB"], []])
    assert classes.tolist() == ["1AVB", "WPW", "_AVB"]
    assert y.tolist() == [[0, 1, 1], [1, 0, 0], [0, 0, 0]]


def test_an_unknown_task_lists_the_known_ones(root):
    with pytest.raises(ValueError, match="there are all, diagnostic"):
        _labels(root, "severity")


@pytest.mark.parametrize("fs", [100, 500])
def test_the_folder_is_a_source_of_its_records(fs, root):
    source = PTBXL(str(root), fs=fs)
    with pytest.raises(ValueError, match="480 listed records do not exist"):
        refuse_missing(source)
    entries = list(source.entries())
    assert [entry.id for entry in entries] == [str(i) for i in range(1, 501)]
    first = entries[0]
    assert (first.patient, first.fold) == ("15709", 3)
    assert first.labels["superdiagnostic"] == ["NORM"]
    assert first.labels["form"] == ["LVOLT"]
    record, labels = source.read(first, ReadOptions(leads=("V1", "aVR")))
    assert record.signal.shape == (10 * fs, 2)
    assert labels is first.labels
    assert isinstance(open_source(root, fs=fs), PTBXL)


def test_the_500_records_equal_the_original_files(data):
    ecg_id, signal, fs, leads = read_ptbxl500(data("ecg") / "ptbxl500_lr.npz")
    assert ecg_id.tolist() == list(range(1, 501))
    assert (signal.shape, signal.dtype, fs) == ((500, 1000, 12), np.float32, 100)
    assert np.abs(signal).max() == pytest.approx(11.144)
    for i in range(20):
        name = f"ptbxl/records100/00000/{i + 1:05d}_lr"
        record = read_record(data("ecg") / name)
        np.testing.assert_array_equal(signal[i], record.signal)
        assert record.leads == leads
