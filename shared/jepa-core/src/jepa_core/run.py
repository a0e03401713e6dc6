"""The run folder: everything one command writes, and nothing in it needs pickle to be read.

config.json      what was asked for: {"domain", "verb", "version", "command", "config"}
metrics.jsonl    one JSON object a line, each with "step"
health.json      the verdict on the run and the checkpoint to take
checkpoints/     step-XXXXXXXX/; while labels are trained on, those of each training in a folder
encoder/         the product: safetensors and config
classifier/      the product of training on labels
tokens/          what a frozen encoder says of records, kept to be read again; may be deleted
results/         tables as JSON
figures/         pictures for the report
report.html
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from jepa_core.config import leaves
from jepa_core.errors import ConfigError, DataError, RunError

# Where and how fast, not what: a run may be resumed with other values of these settings.
MAY_CHANGE = frozenset({"device", "threads", "workers", "trackers"})

_RECORD = ("domain", "verb", "version", "command", "config")
_OWN_FILES = ("config.json", "metrics.jsonl", "health.json", "report.html")
_OWN_FOLDERS = (
    "checkpoints",
    "encoder",
    "classifier",
    "tokens",
    "results",
    "figures",
    "trackers",
)


class _Table(Protocol):
    def to_dict(self) -> dict[str, Any]: ...


class Run:
    """A run folder. `Run.create` makes or resumes one, `Run.open` reads one.

    Attributes
    ----------
    path
        The folder.
    record
        Contents of config.json.
    """

    def __init__(self, path: str | Path, record: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.record = dict(record)

    @property
    def config(self) -> dict[str, Any]:
        """The settings alone: the record's "config"."""
        config: dict[str, Any] = self.record["config"]
        return config

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def health_path(self) -> Path:
        return self.path / "health.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def encoder(self) -> Path:
        return self.path / "encoder"

    @property
    def results(self) -> Path:
        return self.path / "results"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @classmethod
    def create(
        cls,
        path: str | Path,
        record: Mapping[str, Any],
        *,
        resume: bool | None = None,
        overwrite: bool | None = None,
    ) -> Run:
        """Make the folder and write config.json, or continue what is there.

        Under several processes only the first one touches the disk.

        Parameters
        ----------
        path
            The folder.
        record
            "domain", "verb", "version", "command" and "config", JSON-able. On resume, domain, verb
            and config must be those of the folder, but for the settings in `MAY_CHANGE`.
        resume
            Continue the run in the folder; start it where there is none.
        overwrite
            Delete the run in the folder first. A folder that holds anything else is refused.
            None, here and for `resume`: the command has no such flag, and no error speaks of it.

        Raises
        ------
        RunError
            The folder holds something, is no run, is a run of another config (naming the key), or
            cannot be written.
        """
        if missing := [key for key in _RECORD if key not in record]:
            raise ConfigError(f"the record of a run lacks {', '.join(missing)}")
        if resume and overwrite:
            raise ConfigError("both --resume and --overwrite are given", remedy="choose one")
        run = cls(path, json.loads(json.dumps(record)))
        if int(os.environ.get("RANK", "0")) > 0:
            return run
        try:
            taken = run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir()))
            if taken and resume:
                run._must_continue(cls.open(path))
            elif taken and not overwrite:
                flags = {"--resume": resume, "--overwrite": overwrite}
                had = " or ".join(flag for flag, value in flags.items() if value is not None)
                remedy = f"give {had}, or another --out" if had else "give another --out"
                raise RunError("already exists", where=path, remedy=remedy)
            elif taken:
                cls.open(path)._delete()
            run.path.mkdir(parents=True, exist_ok=True)
            for folder in (run.checkpoints, run.results, run.figures):
                folder.mkdir(exist_ok=True)
            write_json(run.path / "config.json", run.record)
        except OSError as error:
            raise _unwritable(error, path) from error
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Read an existing run.

        Raises
        ------
        RunError
            There is no run at `path`.
        """
        try:
            record = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            record = None
        if not isinstance(record, dict) or any(key not in record for key in _RECORD):
            raise RunError(
                "is not a run folder (no config.json of a run in it)",
                where=path,
                remedy="give the folder that a command wrote with --out",
            )
        return cls(path, record)

    def append_metrics(self, values: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl; what is not a finite number becomes null."""
        line = json.dumps({key: _finite(value) for key, value in values.items()})
        try:
            with self.metrics_path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise _unwritable(error, self.metrics_path) from error

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line that a crash cut short is left out."""
        if not self.metrics_path.exists():
            return
        with self.metrics_path.open(encoding="utf-8") as file:
            for line in file:
                if not line.endswith("\n"):
                    return
                yield json.loads(line)

    def rewind_metrics(self, step: int) -> None:
        """Drop the lines beyond `step`, so that a resumed run has each step once."""
        lines = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
        try:
            write_text(self.metrics_path, "".join(lines))
        except OSError as error:
            raise _unwritable(error, self.metrics_path) from error

    def save_table(self, name: str, table: _Table) -> Path:
        """Write results/<name>.json for the report."""
        return self._save(self.results / f"{name}.json", table.to_dict())

    def save_health(self, verdict: Mapping[str, Any]) -> Path:
        """Write health.json."""
        return self._save(self.health_path, verdict)

    def _save(self, path: Path, data: Any) -> Path:
        try:
            path.parent.mkdir(exist_ok=True)
            write_json(path, data)
        except OSError as error:
            raise _unwritable(error, path) from error
        return path

    def _must_continue(self, old: Run) -> None:
        """Raise unless the record asks for the same as the folder's."""
        for key in ("domain", "verb"):
            if old.record[key] != self.record[key]:
                raise RunError(
                    f"is a run of {old.record['domain']} {old.record['verb']}",
                    where=self.path,
                    remedy="give another --out",
                )
        must_equal(old.config, self.config, where=self.path)

    def _delete(self) -> None:
        """Delete what a run writes, and nothing that somebody put beside it."""
        for name in _OWN_FOLDERS:
            if (self.path / name).exists():
                shutil.rmtree(self.path / name)
        # config.json last: without it an interrupted deletion could not be repeated.
        for name in reversed(_OWN_FILES):
            (self.path / name).unlink(missing_ok=True)


def run_record(domain: str, verb: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json of a run holds: who wrote it, what was typed, and every setting.

    Settings that only say where things lie or how to begin are left out.
    """
    places = {"out", "resume", "overwrite", "readme"}
    return {
        "domain": domain,
        "verb": verb,
        "version": version(f"jepa-{domain}"),
        "command": shlex.join(["jepa", *sys.argv[1:]]),
        "config": {key: value for key, value in config.items() if key not in places},
    }


def next_free(path: Path) -> Path:
    """The path, or the first of path-2, path-3, ... that does not exist."""
    number, place = 1, path
    while place.exists():
        number += 1
        place = path.with_name(f"{path.name}-{number}")
    return place


def refuse_unfinished(path: Path, product: str, domain: str) -> None:
    """Say of a run that lacks the folder of a product what is the matter with it.

    Raises
    ------
    DataError
        `path` is a run, and `product` ("encoder", "classifier") is not in it.
    """
    # Of a finished training on labels the checkpoints are gone.
    is_run = any((path / folder).is_dir() for folder in ("checkpoints", "results"))
    if is_run and not (path / product).is_dir():
        verb = "finetune" if product == "classifier" else "pretrain"
        raise DataError(
            f"this run has no {product} yet",
            where=path,
            remedy=f"train it to the end (jepa {domain} {verb} --resume goes on)",
        )


def must_equal(old: Mapping[str, Any], new: Mapping[str, Any], *, where: object) -> None:
    """Raise unless two configs agree on all but `MAY_CHANGE`.

    Raises
    ------
    RunError
        Naming the first key that differs and both its values.
    """
    before, now = dict(leaves(old)), dict(leaves(new))
    for key in sorted(before.keys() | now.keys()):
        if key.rpartition(".")[2] in MAY_CHANGE:
            continue
        if before.get(key, _ABSENT) != now.get(key, _ABSENT):
            raise RunError(
                f"{key} was {before.get(key, _ABSENT)!r} and is now {now.get(key, _ABSENT)!r}",
                where=where,
                remedy="resume with the settings the run was begun with, or begin another run",
            )


class _Absent:
    def __repr__(self) -> str:
        return "not there"


_ABSENT = _Absent()


def write_json(path: Path, data: Any) -> None:
    """Write JSON so that the file is at any moment the old one or the new one."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write beside the place, then rename."""
    beside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def fsync(path: Path) -> None:
    """Force a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _unwritable(error: OSError, path: object) -> RunError:
    return RunError(
        f"cannot be written: {error.strerror or error}",
        where=error.filename or path,
        remedy="check free space and permissions, or give another --out",
    )
