"""The report of a run, and the part of a README that a command writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jepa_core import report
from jepa_core.errors import RunError
from jepa_core.run import Run, write_text

_WHAT = {
    "analyse": "What latent prediction and reconstruction would learn first on this data",
    "demo": "The theory in pictures, and one analysis checked by simulation",
    "phase": "Who is first, over a grid of modes",
    "reproduce": "The paper's claims, on formulas and on real data",
}
_SUMMARY = "summary.txt"
_BEGIN, _END = "<!-- reproduce:begin -->", "<!-- reproduce:end -->"


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


def fill_readme(readme: Path, text: str) -> None:
    """Put text between the markers of a README, in place of what stands there.

    Raises
    ------
    RunError
        The file has not exactly one pair of markers.
    """
    try:
        page = readme.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot be read: {error.strerror}", where=readme) from error
    if page.count(_BEGIN) != 1 or page.count(_END) != 1 or page.index(_BEGIN) > page.index(_END):
        raise RunError(
            f"has not one {_BEGIN} and one {_END} after it", where=readme, remedy="put them in"
        )
    before, rest = page.split(_BEGIN)
    after = rest.split(_END)[1]
    write_text(readme, f"{before}{_BEGIN}\n\n{text.strip()}\n\n{_END}{after}")
