"""The run folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jepa_core.errors import ConfigError, DataError, RunError
from jepa_core.run import Run, refuse_unfinished, write_json


def record(**config) -> dict:
    config = {"steps": 10, "model": {"dim": 8, "heads": [1, 2]}} | config
    return {"domain": "ecg", "verb": "pretrain", "version": "1", "command": "x", "config": config}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "a"


def test_a_run_is_made_with_its_folders_and_read_back(path):
    run = Run.create(path, record())
    assert json.loads((path / "config.json").read_text()) == record()
    assert run.checkpoints.is_dir()
    assert run.results.is_dir()
    assert run.figures.is_dir()
    assert Run.open(path).record == record()
    assert Run.open(path).config["model"]["dim"] == 8


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        (("resume", "overwrite"), "give --resume or --overwrite, or another --out"),
        (("overwrite",), "give --overwrite, or another --out"),
        ((), "give another --out"),
    ],
)
def test_an_existing_run_is_not_touched_and_only_flags_of_the_command_are_named(
    path, flags, remedy
):
    Run.create(path, record())
    with pytest.raises(RunError) as caught:
        Run.create(path, record(steps=20), **dict.fromkeys(flags, False))
    assert str(caught.value) == f"{path}: already exists; {remedy}"
    assert Run.open(path).config["steps"] == 10


def test_an_empty_folder_is_taken(path):
    path.mkdir(parents=True)
    Run.create(path, record())


def test_resume_continues_a_run_and_starts_where_there_is_none(path):
    Run.create(path, record(), resume=True).append_metrics({"step": 1})
    again = Run.create(path, record() | {"command": "y", "version": "2"}, resume=True)
    assert list(again.metrics()) == [{"step": 1}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 11}, r"steps was 10 and is now 11"),
        ({"model": {"dim": 9, "heads": [1, 2]}}, r"model\.dim was 8 and is now 9"),
        ({"model": {"dim": 8, "heads": [1, 3]}}, r"model\.heads was \[1, 2\]"),
        ({"model": {"dim": 8}}, r"model\.heads was \[1, 2\] and is now not there"),
        ({"more": True}, r"more was not there and is now True"),
    ],
)
def test_resuming_with_another_config_names_the_key_that_differs(path, change, message):
    Run.create(path, record())
    with pytest.raises(RunError, match=message):
        Run.create(path, record(**change), resume=True)


def test_where_and_how_fast_may_change_on_resume(path):
    Run.create(path, record(device="cuda", fit={"workers": 4, "threads": 2}))
    Run.create(path, record(device="cpu", fit={"workers": 0, "threads": 1}), resume=True)


@pytest.mark.parametrize("key", ["domain", "verb"])
def test_a_run_of_another_command_is_not_resumed(path, key):
    Run.create(path, record())
    with pytest.raises(RunError, match="is a run of ecg pretrain"):
        Run.create(path, record() | {key: "other"}, resume=True)


def test_overwrite_deletes_what_a_run_writes_and_nothing_else(path):
    run = Run.create(path, record())
    run.append_metrics({"step": 1})
    (run.checkpoints / "step-00000001").mkdir()
    for product in ("encoder", "classifier", "tokens"):
        (path / product).mkdir()
        (path / product / "old").touch()
    (path / "notes.txt").write_text("mine")
    fresh = Run.create(path, record(steps=3), overwrite=True)
    assert fresh.config["steps"] == 3
    assert not fresh.metrics_path.exists()
    assert {file.name for file in path.rglob("*") if file.is_file()} == {"config.json", "notes.txt"}
    assert (path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("content", [None, "{}", "not json", '{"domain": 1}'])
@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_a_folder_that_is_no_run_is_never_overwritten_or_resumed(path, content, how):
    path.mkdir(parents=True)
    (path / "thesis.tex").write_text("years of work")
    if content is not None:
        (path / "config.json").write_text(content)
    with pytest.raises(RunError, match="is not a run folder"):
        Run.create(path, record(), **{how: True})
    assert (path / "thesis.tex").read_text() == "years of work"


def test_resume_and_overwrite_together_are_refused(path):
    with pytest.raises(ConfigError, match="both --resume and --overwrite"):
        Run.create(path, record(), resume=True, overwrite=True)


@pytest.mark.parametrize("below", ["file", "file/deeper"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file"):
        Run.create(tmp_path / below, record())


def test_a_read_only_folder_is_one_line(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    # In a process of its own without root's right to write everywhere.
    program = (
        "import os\n"
        "from jepa_core.run import Run\n"
        "os.getuid() or os.setuid(65534)\n"
        f"Run.create('run', {record()!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=closed
    )
    assert "RunError: run: cannot be written: Permission denied; check free space" in done.stderr


def test_only_the_first_of_several_processes_touches_the_disk(path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    run = Run.create(path, record())
    assert run.config["steps"] == 10
    assert not path.exists()
    monkeypatch.setenv("RANK", "0")
    Run.create(path, record())
    assert path.exists()


def test_metrics_that_are_not_finite_are_null_in_the_file(path):
    run = Run.create(path, record())
    run.append_metrics({"step": 1, "loss": float("nan"), "norm": float("inf"), "rank": 0.1})
    assert run.metrics_path.read_text() == '{"step": 1, "loss": null, "norm": null, "rank": 0.1}\n'


def test_rewinding_drops_later_lines_and_one_that_a_crash_cut_short(path):
    run = Run.create(path, record())
    for step in range(5):
        run.append_metrics({"step": step, "loss": 0.1 * step})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 5, "lo')
    assert [line["step"] for line in run.metrics()] == [0, 1, 2, 3, 4]
    run.rewind_metrics(3)
    assert run.metrics_path.read_text().count("\n") == 4
    assert [line["loss"] for line in run.metrics()] == [0.0, 0.1, 0.2, 0.1 * 3]
    run.rewind_metrics(-1)
    assert list(run.metrics()) == []


def test_tables_and_health_are_json(path):
    class Table:
        def to_dict(self):
            return {"title": "t", "rows": [[1, None]]}

    run = Run.create(path, record())
    assert json.loads(run.save_table("probe", Table()).read_text())["rows"] == [[1, None]]
    assert run.results / "probe.json" == run.save_table("probe", Table())
    assert json.loads(run.save_health({"chosen_step": 3}).read_text()) == {"chosen_step": 3}


def test_a_json_file_is_whole_or_the_old_one_when_writing_fails(tmp_path):
    place = tmp_path / "a.json"
    write_json(place, {"old": 1})
    with pytest.raises(TypeError):
        write_json(place, {"new": object()})
    assert json.loads(place.read_text()) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("product", "verb"), [("encoder", "tea pretrain"), ("classifier", "tea finetune")]
)
def test_a_run_without_its_product_says_what_makes_it(path, product, verb):
    run = Run.create(path, record())
    for kept in ("checkpoints", "results"):  # of a finished training the checkpoints are gone
        with pytest.raises(DataError, match=f"this run has no {product} yet.*jepa {verb} --resume"):
            refuse_unfinished(run.path, product, "tea")
        (run.path / kept).rmdir()
    refuse_unfinished(run.path, product, "tea")  # no run: another error's business


def test_a_run_with_its_product_is_not_refused(path):
    run = Run.create(path, record())
    run.encoder.mkdir()
    refuse_unfinished(run.path, "encoder", "tea")
