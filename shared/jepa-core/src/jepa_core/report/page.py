"""The report of a run: one HTML file that needs nothing else and is small enough to mail.

Everything that comes out of a run is data: it is escaped, and the page forbids itself to run or to
fetch anything.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from jepa_core.errors import DataError
from jepa_core.report import pictures
from jepa_core.report.figures import curves, to_svg
from jepa_core.report.quantities import HEALTH, ORDER, TRAINING, Quantity
from jepa_core.report.table import Table, environment
from jepa_core.report.verdict import read_verdict
from jepa_core.run import Run, write_text

MAILABLE = 1_400_000  # bytes; pictures beyond it stay in the folder
CURVES = 24  # of one section; more are rather looked at with a tracker


def write_report(
    run: Run,
    *,
    title: str,
    summary: str,
    figures: Sequence[tuple[str, Path | str | Figure]] = (),
) -> Path:
    """Write report.html into a run folder.

    Shown is what is there: the verdict of health.json, every table of results/, `figures`, then
    every picture of figures/, curves of metrics.jsonl, command, config and versions.

    Parameters
    ----------
    run
        The run.
    title
        Heading of the page.
    summary
        What came out, in plain words; a blank line begins a paragraph.
    figures
        (caption, matplotlib figure or path of a PNG, JPEG or SVG).

    Returns
    -------
    Path
        The file.

    Raises
    ------
    DataError
        If a file of the run is not what it should be, naming it.
    """
    record = run.record
    metrics = _metrics(run)
    seen = read_verdict(run.health_path, metrics)
    training, health = _curves(metrics, seen.marks if seen else ())
    tables = [Markup(table.to_html()) for table in _tables(run.results)]
    taken = sum(map(len, [*tables, *(curve.svg for curve in training + health)]))
    shown, left_out = pictures.embed(
        [*figures, *pictures.in_folder(run.figures, figures)], MAILABLE - taken
    )
    now = datetime.now().astimezone()
    page = environment().get_template("page.html")
    text = page.render(
        title=title,
        paragraphs=[" ".join(part.split()) for part in summary.split("\n\n") if part.strip()],
        kicker=" ".join(str(record[key]) for key in ("domain", "verb") if record.get(key)),
        written=f"{now.day} {now:%B %Y, %H:%M}",
        folder=run.path.resolve().name,
        verdict=seen,
        tables=tables,
        figures=shown,
        left_out=left_out,
        training=training,
        health=health,
        command=_command(record.get("command")),
        config=json.dumps(run.config, indent=2, ensure_ascii=False),
        versions=_versions(record),
    )
    write_text(run.report, text)
    return run.report


def write_noted_report(run: Run, what: Mapping[str, str]) -> Path:
    """`write_report` of a run whose tables say in their first notes what came out.

    Parameters
    ----------
    run
        The run.
    what
        Verb to what such a run is, in a few words.
    """
    domain, verb = run.record["domain"], run.record["verb"]
    noted = [table for table in _tables(run.results) if table.notes]
    notes = [table.notes[0] for table in noted]
    if len(noted) > 1:
        notes = [f"{table.title}. {note}" for table, note in zip(noted, notes, strict=True)]
    return write_report(
        run,
        title=f"jepa {domain} {verb}: {run.path.name}",
        summary="\n\n".join([f"{what.get(verb, verb)}, in {run.path.name}.", *notes]),
    )


@dataclass(frozen=True)
class Curve:
    """One small panel: what it is, where it ended, its picture."""

    quantity: Quantity
    first: str
    last: str
    missing: int  # values that are not finite
    svg: Markup


def _metrics(run: Run) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl that belong to a step."""
    try:
        lines = list(run.metrics())
    except ValueError as error:
        raise DataError(f"is no JSON: {error}", where=run.metrics_path) from error
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get("step"), int)]


def _curves(
    metrics: Iterable[Mapping[str, Any]], marks: Sequence[tuple[float, str]]
) -> tuple[list[Curve], list[Curve]]:
    """Panels of training and of health, those a reader looks for first in front."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for line in metrics:
        for name, value in line.items():
            if name != "step" and (value is None or type(value) in (int, float)):
                steps, values = series.setdefault(name, ([], []))
                steps.append(line["step"])
                values.append(float("nan") if value is None else value)
    ranked = sorted(series, key=lambda name: (ORDER.get(name, len(ORDER)), name))
    health = [name for name in ranked if name.startswith("health/")][:CURVES]
    training = [name for name in ranked if not name.startswith("health/")][:CURVES]
    return (
        [curve for name in training if (curve := _curve(name, *series[name], marks))],
        [curve for name in health if (curve := _curve(name, *series[name], marks))],
    )


def _curve(
    name: str, steps: list[float], values: list[float], marks: Sequence[tuple[float, str]]
) -> Curve | None:
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    if not finite:
        return None
    short = name.removeprefix("health/")
    known = HEALTH if name.startswith("health/") else TRAINING
    quantity = known.get(short) or Quantity(short.replace("_", " "), "")
    first, last = f"{finite[0]:.3g}", f"{finite[-1]:.3g}"
    label = f"{quantity.label}: {first} at the first step, {last} at the last"
    figure = curves({name: (steps, values)}, marks=marks, reference=quantity.reference)
    return Curve(quantity, first, last, len(values) - len(finite), Markup(to_svg(figure, label)))


def _tables(folder: Path) -> list[Table]:
    tables = []
    for path in sorted(folder.glob("*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"is no JSON: {error}", where=path) from error
        tables.append(Table.from_dict(data, where=path))
    return tables


def _command(command: Any) -> str:
    return " ".join(map(str, command)) if isinstance(command, list) else str(command or "")


def _versions(record: Mapping[str, Any]) -> dict[str, str]:
    """What wrote the run, and what wrote the page."""
    found = {"run": f"jepa {record.get('domain', '')} {record.get('version', '')}"}
    packages = ("jepa-core", f"jepa-{record.get('domain', '')}", "torch", "numpy", "scikit-learn")
    found["python"] = platform.python_version()
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return found
