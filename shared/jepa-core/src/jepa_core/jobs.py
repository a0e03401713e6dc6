"""Work on all cores: calls by the million in their order, and long runs kept as they come."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import joblib

from jepa_core.errors import RunError
from jepa_core.progress import Progress
from jepa_core.run import write_text

Key = Mapping[str, Any]
Work = Callable[..., dict[str, Any]]


def run_jobs(
    work: Work,
    jobs: Sequence[tuple[Key, tuple[Any, ...]]],
    *,
    keep: Path | None = None,
    processes: int = 0,
    label: str = "runs",
) -> list[dict[str, Any]]:
    """Results of the jobs, in their order, computed in several processes of one thread each.

    Parameters
    ----------
    work
        Called with a job's arguments; its result can be written as JSON and gets "seconds", of one
        core.
    jobs
        For each what its result depends on, JSON-able, and the arguments.
    keep
        A file of JSON lines: results are added as they come, and those already there are not
        computed again. None keeps nothing.
    processes
        0 is one a core.

    Raises
    ------
    RunError
        `keep` cannot be written.
    """
    names = [json.dumps(key, sort_keys=True) for key, _ in jobs]
    known = _read(keep) if keep is not None else {}
    todo = [
        (name, arguments)
        for name, (_, arguments) in zip(names, jobs, strict=True)
        if name not in known
    ]
    count = min(processes or os.cpu_count() or 1, max(1, len(todo)))
    parallel = joblib.Parallel(n_jobs=count, return_as="generator_unordered")
    calls = (joblib.delayed(_timed)(work, name, arguments) for name, arguments in todo)
    with Progress(label, len(jobs), len(jobs) - len(todo)) as bar:
        for name, result in parallel(calls):
            known[name] = result
            if keep is not None:
                _append(keep, {"key": json.loads(name), "result": result})
            bar.update(bar.done + 1)
    return [known[name] for name in names]


def in_order(calls: Iterable[Any], n_jobs: int | None = None) -> Iterator[Any]:
    """Results of `joblib.delayed` calls in their order, with few calls ahead of them.

    Parameters
    ----------
    calls
        Taken as processes become free, so there may be more than memory holds. What taking one
        raises is raised here, once the calls before it are done.
    n_jobs
        Processes, as joblib counts them: None is what `joblib.parallel_config` says, else 1. Any
        backend of joblib serves; those that give nothing but lists (Ray's among them) get one call
        a process at a time.
    """
    failure: Exception | None = None

    def taken() -> Iterator[Any]:
        nonlocal failure
        try:
            yield from calls
        except Exception as error:  # joblib takes calls in a thread that would swallow it
            failure = error

    todo = taken()
    try:
        parallel = joblib.Parallel(n_jobs=n_jobs, return_as="generator")
    except ValueError:
        width = joblib.effective_n_jobs(n_jobs)
        with joblib.Parallel(n_jobs=n_jobs) as parallel:
            while some := list(islice(todo, width)):
                yield from parallel(some)
    else:
        yield from parallel(todo)
    if failure is not None:
        raise failure


def _timed(work: Work, name: str, arguments: tuple[Any, ...]) -> tuple[str, dict[str, Any]]:
    begin = time.process_time()
    result = work(*arguments)
    return name, {**result, "seconds": round(time.process_time() - begin, 1)}


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Results by what they depend on; a last line that was cut short is taken away."""
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(path, whole)
    entries = [json.loads(line) for line in whole.splitlines()]
    return {json.dumps(entry["key"], sort_keys=True): entry["result"] for entry in entries}


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
    except OSError as error:
        raise RunError(
            f"cannot be written: {error.strerror or error}",
            where=path,
            remedy="check free space and permissions",
        ) from error
