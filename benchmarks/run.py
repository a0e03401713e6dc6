"""Run benchmark subjects, each in a fresh process, and write RESULTS.md.

uv run python benchmarks/run.py             # every subject
uv run python benchmarks/run.py ema masks   # these; the others keep their last results
uv run python benchmarks/run.py --quick     # does every script still run: nothing is written
uv run python benchmarks/run.py --render    # RESULTS.md again, out of results.json
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
if __package__ in (None, ""):  # started by its path rather than with -m
    sys.path.insert(0, str(FOLDER.parent))

from benchmarks.harness import Row, duration, row_from_dict  # noqa: E402

NOT_SUBJECTS = {
    *("harness", "health", "health_rules", "health_runs", "machine", "memory", "run"),
    *("tabular_twin", "vision_peer", "vision_twin"),
}
FORMAT = 1
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def subjects(folder: Path = FOLDER) -> list[str]:
    """Names of the subject scripts in the folder."""
    return sorted(path.stem for path in folder.glob("*.py") if path.stem not in NOT_SUBJECTS)


def measure(subject: str, *, quick: bool) -> dict[str, Any]:
    """Run one script in a fresh process and return its record for results.json.

    Raises
    ------
    subprocess.CalledProcessError
        If the script fails; its output has been shown.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "rows.json"
        command = [sys.executable, "-m", f"benchmarks.{subject}", "--json", str(answer)]
        subprocess.run(
            command + ["--quick"] * quick,
            cwd=FOLDER.parent,
            env={**os.environ, **dict.fromkeys(ONE_THREAD, "1")},
            check=True,
        )
        record: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    for row in record["rows"]:
        row_from_dict(row)
    return {"date": date.today().isoformat(), "about": about(FOLDER / f"{subject}.py"), **record}


def about(script: Path) -> str:
    """The script's docstring, which introduces its table."""
    return ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""


def read(path: Path) -> dict[str, Any]:
    """The records by subject; empty if the file does not exist."""
    if not path.exists():
        return {}
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored.get("format") != FORMAT:
        raise SystemExit(f"{path.name}: format {stored.get('format')!r}, expected {FORMAT}")
    return dict(stored["subjects"])


def write(path: Path, records: Mapping[str, Any]) -> None:
    """Replace the file as a whole: an interrupted run must not lose the other subjects."""
    beside = path.with_suffix(".tmp")
    beside.write_text(
        json.dumps({"format": FORMAT, "subjects": dict(sorted(records.items()))}, indent=1) + "\n",
        encoding="utf-8",
    )
    beside.replace(path)


def render(records: Mapping[str, Mapping[str, Any]]) -> str:
    """RESULTS.md out of the records by subject."""
    machines = _machines(records.values())
    lines = [
        "# Benchmark results",
        "",
        "Written by `benchmarks/run.py`; how it measures is in [README.md](README.md).",
        "Ratios are baseline time / contender time, above 1 is faster: the median of the",
        "per-round ratios with their 10th and 90th percentile, on CPU time of one thread unless",
        "the subject says otherwise. Differences below 3 % mean nothing. A part's ratio is not a",
        "gain of the whole step.",
        "",
        "## Machines",
        "",
    ]
    for letter, described in machines.items():
        lines.append(f"- **{letter}**: {'; '.join(f'{k}: {v}' for k, v in described.items())}")
    for subject, record in sorted(records.items()):
        load = record["machine"].get("load", "load unknown")
        letter = next(x for x, y in machines.items() if y == _without_load(record["machine"]))
        rows = [row_from_dict(row) for row in record["rows"]]
        lines += ["", f"## {subject}", "", record["about"], ""]
        lines += [f"*{record['date']}, machine {letter}, {load}.*", ""]
        lines += _table(rows)
    return "\n".join(lines) + "\n"


def _without_load(described: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in described.items() if key != "load"}


def _machines(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Each distinct machine (with its versions) under a letter, in the order met."""
    found: list[dict[str, str]] = []
    for record in records:
        described = _without_load(record["machine"])
        if described not in found:
            found.append(described)
    return {chr(ord("A") + index): described for index, described in enumerate(found)}


def _table(rows: Sequence[Row]) -> list[str]:
    """A Markdown table; columns that no row uses are left out."""
    columns = {
        "what": [row.what for row in rows],
        "contender": [
            f"{row.contender} (baseline)" if row.contender == row.baseline else row.contender
            for row in rows
        ],
        "ratio": [_ratio(row) for row in rows],
        "target": [
            "" if row.target is None else f"{row.target:g} {'met' if row.met else '**missed**'}"
            for row in rows
        ],
        "time": [duration(row.seconds) for row in rows],
        "of peak": [
            "" if row.share_of_peak is None else f"{row.share_of_peak:.2f}" for row in rows
        ],
        "memory": ["" if row.memory is None else f"{row.memory / 2**20:.1f} MiB" for row in rows],
        "rounds": [str(row.rounds) for row in rows],
        "note": ["; ".join(_remarks(row)) for row in rows],
    }
    used = {name: cells for name, cells in columns.items() if any(cells)}
    # The same heading on neighbouring rows reads as one group.
    used["what"] = [
        cell if index == 0 or cell != columns["what"][index - 1] else ""
        for index, cell in enumerate(columns["what"])
    ]
    head = "| " + " | ".join(used) + " |"
    rule = "|" + " --- |" * len(used)
    body = [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        for cells in zip(*used.values(), strict=True)
    ]
    return [head, rule, *body]


def _ratio(row: Row) -> str:
    if row.contender == row.baseline:
        return "1"
    return f"**{row.ratio:.3g}** [{row.low:.3g}, {row.high:.3g}]"


def _remarks(row: Row) -> list[str]:
    remarks = [row.note] if row.note else []
    return remarks if row.checked else [*remarks, "outputs not compared"]


def main(arguments: Sequence[str] | None = None, folder: Path = FOLDER) -> int:
    """Exit code 0, or 1 where a script failed or a target was missed."""
    known = subjects(folder)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("subject", nargs="*", help=f"default: all of {', '.join(known)}")
    parser.add_argument("--quick", action="store_true", help="small sizes; nothing is written")
    parser.add_argument("--render", action="store_true", help="only write RESULTS.md")
    given = parser.parse_args(arguments)
    if unknown := set(given.subject) - set(known):
        parser.error(f"no such subject: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    stored = folder / "results.json"
    failed, missed = [], []
    for subject in [] if given.render else given.subject or known:
        print(f"\n== {subject}", flush=True)
        try:
            record = measure(subject, quick=given.quick)
        except subprocess.CalledProcessError:
            failed.append(subject)
            continue
        if given.quick:
            continue
        records = read(stored)
        records[subject] = record
        write(stored, records)
        rows = [row_from_dict(row) for row in record["rows"]]
        missed += [f"{subject}: {row.what}: {row.contender}" for row in rows if row.met is False]
    if not given.quick:
        (folder / "RESULTS.md").write_text(render(read(stored)), encoding="utf-8")
    for label, names in (("failed", failed), ("missed its target", missed)):
        for name in names:
            print(f"{label}: {name}", file=sys.stderr)
    return 1 if failed or missed else 0


if __name__ == "__main__":
    sys.exit(main())
