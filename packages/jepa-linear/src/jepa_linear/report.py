"""The report of a run, and the part of a README that a command writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jepa_core import report
from jepa_core.run import Run, write_text

_WHAT = {
    "analyse": "What latent prediction and reconstruction would learn first on this data",
    "demo": "The theory in pictures, and one analysis checked by simulation",
    "phase": "Who is first, over a grid of modes",
    "reproduce": "The paper's claims, on formulas and on real data",
}
_SUMMARY = "summary.txt"


def write_summary(run: Run, paragraphs: Sequence[str]) -> None:
    """Keep what came out, in plain words, for this and later reports."""
    write_text(run.path / _SUMMARY, "\n\n".join(paragraphs) + "\n")


def write_report(run: Run) -> Path:
    """Write report.html of a run folder from what lies in it."""
    record = run.record
    place = run.path / _SUMMARY
    said = place.read_text(encoding="utf-8") if place.exists() else ""
    return report.write_report(
        run,
        title=_WHAT.get(record["verb"], f"jepa linear {record['verb']}"),
        summary=said,
    )
