"""A file for the user: whole or not at all, and over another only if asked."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from jepa_core.errors import RunError
from jepa_core.output import NpyWriter, list_skipped, whole_file


def test_a_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "out.csv"
    with whole_file(path) as beside:
        beside.write_text("1\n")
        assert not path.exists()
    assert path.read_text() == "1\n"
    assert [file.name for file in path.parent.iterdir()] == ["out.csv"]


def test_a_file_that_is_there_is_replaced_only_if_asked(tmp_path):
    path = tmp_path / "out.csv"
    path.write_text("old")
    with pytest.raises(RunError, match=r"out\.csv: already exists; give --overwrite"):
        whole_file(path).__enter__()
    assert path.read_text() == "old"
    with whole_file(path, overwrite=True) as beside:
        beside.write_text("new")
    assert path.read_text() == "new"


def stop_half_way(path: Path, error: BaseException) -> None:
    with whole_file(path, overwrite=True) as beside:
        beside.write_text("half")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_block_that_fails_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "out.csv"
    path.write_text("old")
    with pytest.raises(error):
        stop_half_way(path, error())
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("out.csv", "old")]


def test_what_a_killed_command_left_is_never_a_result(tmp_path):
    (tmp_path / "out.csv.partial").write_text("half")
    with whole_file(tmp_path / "out.csv"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_writes_nothing_leaves_nothing(tmp_path):
    with whole_file(tmp_path / "out.csv"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line(tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(RunError, match=r"out\.csv: cannot be written: No space left on device; "):
        stop_half_way(tmp_path / "out.csv", full)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_found_out_before_the_block(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        whole_file(tmp_path / "file" / "out.csv").__enter__()


def test_what_was_left_out_is_listed_beside_and_the_list_of_an_earlier_time_goes(tmp_path):
    out = tmp_path / "out.parquet"
    listing = list_skipped(out, ("id", "reason"), [("a", "is short, and flat"), ("b", "is cut")])
    assert listing == tmp_path / "out.parquet.skipped.csv"
    assert listing.read_text() == 'id,reason\na,"is short, and flat"\nb,is cut\n'
    assert list_skipped(out, ("id", "reason"), []) == listing
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
@pytest.mark.parametrize("counts", [(), (0,), (4, 0, 1000)])
def test_rows_come_back_however_they_were_appended(tmp_path, shape, counts):
    rows = [np.random.default_rng(n).normal(size=(n, *shape)).astype("<f4") for n in counts]
    with open(tmp_path / "x.npy", "wb") as file:
        writer = NpyWriter(file, "<f4", shape)
        for some in rows:
            writer.append(some[::-1])
        writer.finish()
    whole = np.load(tmp_path / "x.npy", mmap_mode="r") if sum(counts) else np.load(Path(file.name))
    assert whole.shape == (sum(counts), *shape) == (writer.rows, *shape)
    np.testing.assert_array_equal(
        whole, np.concatenate([np.zeros((0, *shape), "<f4"), *(some[::-1] for some in rows)])
    )


@pytest.mark.parametrize("rows", [np.zeros((2, 3)), np.zeros((2, 4), "<f4"), np.zeros(3, "<f4")])
def test_rows_of_another_type_or_shape_are_a_mistake(tmp_path, rows):
    with open(tmp_path / "x.npy", "wb") as file:
        writer = NpyWriter(file, "<f4", (3,))
        with pytest.raises(TypeError, match="for an array of float32"):
            writer.append(rows)
