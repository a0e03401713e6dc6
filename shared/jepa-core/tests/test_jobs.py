"""Results of many calls in order, on any backend; of many runs kept, never computed twice."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import pytest
from joblib.parallel import ThreadingBackend

from jepa_core.errors import DataError, RunError
from jepa_core.jobs import in_order, run_jobs


class ListsOnly(ThreadingBackend):
    """As the backends of Ray and of `multiprocessing` are."""

    supports_return_generator = False


BACKENDS = pytest.mark.parametrize("backend", ["threading", ListsOnly()], ids=["usual", "lists"])


def slow_first(number: int) -> int:
    time.sleep(0.2 if number == 0 else 0)
    return number


def delayed(taken: list[int], n: int, work: Any = slow_first) -> Iterator[Any]:
    for number in range(n):
        taken.append(number)
        yield joblib.delayed(work)(number)


def test_the_backend_of_these_tests_refuses_generators() -> None:
    with (
        joblib.parallel_config(backend=ListsOnly()),
        pytest.raises(ValueError, match="does not support return_as"),
    ):
        joblib.Parallel(n_jobs=2, return_as="generator")


@BACKENDS
@pytest.mark.parametrize(("told", "given"), [({}, 1), ({}, 2), ({"n_jobs": 2}, None)])
def test_results_come_in_the_order_of_the_calls(
    backend: Any, told: dict[str, int], given: int | None
) -> None:
    with joblib.parallel_config(backend=backend, **told):
        assert list(in_order(delayed([], 9), given)) == list(range(9))
        assert list(in_order(iter(()), given)) == []


@pytest.mark.parametrize(("told", "given"), [({}, 2), ({"n_jobs": 2}, None)])
def test_a_backend_of_lists_gets_one_call_a_process_at_a_time(
    told: dict[str, int], given: int | None
) -> None:
    """So memory does not grow with the number of calls."""
    taken: list[int] = []
    with joblib.parallel_config(backend=ListsOnly(), **told):
        ahead = [len(taken) - number for number in in_order(delayed(taken, 9), given)]
    assert max(ahead) == 2


@BACKENDS
@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("kind", [DataError, OSError, ZeroDivisionError])
def test_what_taking_a_call_raises_comes_after_the_calls_before_it(
    backend: Any, n_jobs: int, kind: type[Exception]
) -> None:
    def calls() -> Iterator[Any]:
        yield from delayed([], 3)
        raise kind("no further")

    with joblib.parallel_config(backend=backend):
        results = in_order(calls(), n_jobs)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(kind, match="no further"):
            next(results)


def refuse(number: int) -> int:
    if number == 3:
        raise DataError("the fourth", where="here")
    return number


@BACKENDS
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_what_a_call_raises_ends_the_work(backend: Any, n_jobs: int) -> None:
    taken: list[int] = []
    with joblib.parallel_config(backend=backend), pytest.raises(DataError, match="here: the four"):
        list(in_order(delayed(taken, 1000, refuse), n_jobs))
    assert len(taken) < 1000


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
