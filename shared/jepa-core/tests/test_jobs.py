"""Results of many runs: in order, kept as they come, never computed twice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from jepa_core.errors import RunError
from jepa_core.jobs import run_jobs


def double(number: int) -> dict[str, Any]:
    with Path(os.environ["CALLS"]).open("a") as calls:
        calls.write(f"{number}\n")
    return {"twice": 2 * number}


def test_results_that_are_there_are_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, keep = tmp_path / "calls", tmp_path / "runs" / "keep.jsonl"
    monkeypatch.setenv("CALLS", str(calls))

    def run(numbers: list[int], step: int = 0) -> list[int]:
        jobs = [({"number": n, "recipe": {"step": step}}, (n,)) for n in numbers]
        found = run_jobs(double, jobs, keep=keep, processes=1)
        assert all(one["seconds"] >= 0 for one in found)
        return [one["twice"] for one in found]

    assert run([3, 1]) == [6, 2]
    assert run([1, 2, 3]) == [2, 4, 6]
    assert calls.read_text().split() == ["3", "1", "2"]
    # Another recipe is another result.
    assert run([1], step=1) == [2]
    assert calls.read_text().split()[-1] == "1"
    # A line that a crash cut short is computed again, and leaves the file whole.
    whole = keep.read_text()
    keep.write_text(whole[:-9])
    assert run([1], step=1) == [2]
    assert len(calls.read_text().split()) == 5
    assert len([json.loads(line) for line in keep.read_text().splitlines()]) == 4


def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        run_jobs(double, [({"n": 1}, (1,))], keep=tmp_path / "file" / "keep.jsonl", processes=1)
