"""The folder of a corpus: complete or not, replaced or resumed, and what a full disk says."""

from __future__ import annotations

import csv
import errno
import json
import os
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from jepa_core import corpus
from jepa_core.errors import DataError, Interrupted, RunError

SCHEMA = pyarrow.schema([("id", pyarrow.string()), ("n", pyarrow.int32())])
ASKED = {"format": 3, "settings": {"rate": 2}}


def build(folder: Path, asked: dict | None = None, **flags: bool) -> bool:
    """A corpus of two records in one part; True when it was there before."""
    flags = {"resume": False, "overwrite": False} | flags
    with corpus.building(folder):
        if corpus.prepare(folder, asked or ASKED, ["values-*.npy*"], **flags):
            return True
        with corpus.values_file(folder / "values-0.npy", "<i2") as values:
            values.append(np.arange(6, dtype="<i2"))
            values.append(np.arange(4, dtype="<i2")[::-1])
        corpus.part_path(folder, 0).write_text(json.dumps({"rows": 2}))
        with corpus.index_files(folder, SCHEMA, ("id", "reason")) as index:
            rows = [{"id": "a", "n": 6}, {"id": "b", "n": 4}]
            index.rows(pyarrow.Table.from_pylist(rows, schema=SCHEMA))
            index.skipped([("c", "is no picture")])
        corpus.finish(folder, {"format": 3, "records": 2})
    return False


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build(tmp_path / "corpus")
    return tmp_path / "corpus"


def test_a_corpus_is_what_was_written(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "building.json",
        "corpus.json",
        "index.parquet",
        "skipped.csv",
        "values-0.npy",
    ]
    assert corpus.read_info(folder, "tea", 3)["records"] == 2
    assert corpus.read_column(folder, "id").tolist() == ["a", "b"]
    values = corpus.mapped(folder / "values-0.npy")
    assert values.dtype == np.int16
    assert values.tolist() == [0, 1, 2, 3, 4, 5, 3, 2, 1, 0]
    with open(folder / "skipped.csv", newline="") as file:
        assert list(csv.reader(file)) == [["id", "reason"], ["c", "is no picture"]]


def test_what_is_no_complete_corpus_says_how_to_make_one(folder, tmp_path):
    with pytest.raises(DataError, match=r"is no corpus; `jepa tea data build` makes one"):
        corpus.read_info(tmp_path, "tea", 3)
    with pytest.raises(DataError, match="has the format 3, not 4; build it again"):
        corpus.read_info(folder, "tea", 4)
    (folder / "corpus.json").unlink()
    assert not corpus.is_corpus(folder)
    with pytest.raises(DataError, match=r"has not come to its end; .* with --resume goes on"):
        corpus.read_info(folder, "tea", 3)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"text", None])
def test_values_that_cannot_be_read_name_their_file(folder, content):
    path = folder / "values-0.npy"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"values-0\.npy: cannot be read.*build the corpus again"):
        corpus.mapped(path)


def test_a_pickled_array_is_never_read(folder):
    path = folder / "values-0.npy"
    np.save(path, np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        corpus.mapped(path)


def test_a_complete_corpus_is_neither_built_nor_touched_again(folder):
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}
    with pytest.raises(RunError, match="there is a corpus already; add --resume or --overwrite"):
        build(folder)
    assert build(folder, resume=True)
    assert before == {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}


def test_a_resumed_build_asks_for_the_same(folder):
    (folder / "corpus.json").unlink()
    with pytest.raises(RunError, match=r"settings\.rate was 2 and is now 3"):
        build(folder, {"format": 3, "settings": {"rate": 3}}, resume=True)
    assert not build(folder, resume=True)
    assert corpus.is_corpus(folder)


def test_overwriting_deletes_what_a_build_writes_and_nothing_else(folder):
    (folder / "values-1.npy").write_bytes(b"old")
    (folder / "notes.txt").write_text("mine")
    assert not build(folder, {"format": 3, "settings": {"rate": 3}}, overwrite=True)
    assert not (folder / "values-1.npy").exists()
    assert (folder / "notes.txt").read_text() == "mine"
    assert json.loads((folder / "building.json").read_text())["settings"] == {"rate": 3}


def test_a_folder_that_is_no_corpus_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(RunError, match="not empty and no corpus"):
            build(tmp_path, **flags)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("deletion", range(4))
def test_an_overwriting_that_stopped_anywhere_can_be_repeated(folder, monkeypatch, deletion):
    corpus.part_path(folder, 0).parent.mkdir()
    corpus.part_path(folder, 0).write_text("{}")
    unlink, rmtree, done = Path.unlink, corpus.shutil.rmtree, []

    def stops(delete, *arguments, **keywords):
        if len(done) == deletion:
            raise KeyboardInterrupt
        done.append(arguments)
        return delete(*arguments, **keywords)

    monkeypatch.setattr(Path, "unlink", lambda *a, **k: stops(unlink, *a, **k))
    monkeypatch.setattr(corpus.shutil, "rmtree", lambda *a, **k: stops(rmtree, *a, **k))
    with pytest.raises(Interrupted):
        build(folder, overwrite=True)
    monkeypatch.undo()
    assert corpus.is_corpus(folder) == (deletion == 0)
    # Either way on: what is left says that it is ours, and claims no part whose values are gone.
    assert (folder / "values-0.npy").exists() or corpus.read_part(folder, 0) is None
    assert not build(folder, overwrite=True)
    assert corpus.read_info(folder, "tea", 3)["records"] == 2


def test_an_array_of_nothing_is_no_file(tmp_path):
    with corpus.values_file(tmp_path / "values-0.npy", "|u1"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_values_that_were_not_finished_do_not_take_the_place_of_others(tmp_path):
    path = tmp_path / "values-0.npy"
    np.save(path, np.arange(3))
    with pytest.raises(TypeError), corpus.values_file(path, "<i8") as values:
        values.append(np.zeros(9))
    assert np.load(path).tolist() == [0, 1, 2]


def test_a_part_that_was_cut_short_is_not_finished(tmp_path):
    assert corpus.read_part(tmp_path, 0) is None
    corpus.part_path(tmp_path, 0).parent.mkdir()
    corpus.part_path(tmp_path, 0).write_text('{"rows": [')
    assert corpus.read_part(tmp_path, 0) is None


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk is full; free some space and add --resume"),
        (errno.EDQUOT, "the disk is full; free some space and add --resume"),
        (errno.EROFS, r"cannot be written: Read-only file system; check free space"),
    ],
)
def test_what_the_disk_says_is_one_line_with_a_remedy(tmp_path, number, said):
    with pytest.raises(RunError, match=f"corpus: {said}"), corpus.building(tmp_path / "corpus"):
        raise OSError(number, os.strerror(number))


def test_ctrl_c_says_how_to_go_on(tmp_path):
    with (
        pytest.raises(Interrupted, match=r"corpus: interrupted; .*--resume goes on"),
        corpus.building(tmp_path / "corpus"),
    ):
        raise KeyboardInterrupt
