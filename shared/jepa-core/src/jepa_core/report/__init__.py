"""One HTML file that says what a run did: tables, curves, pictures, and how to get them again."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jepa_core.report.table import Table

if TYPE_CHECKING:
    from jepa_core.report.page import write_noted_report, write_report

__all__ = ["Table", "write_noted_report", "write_report"]


def __getattr__(name: str) -> Any:
    # matplotlib is for those who draw: a command that prints a table does not wait for it.
    if name in ("write_noted_report", "write_report"):
        return getattr(importlib.import_module("jepa_core.report.page"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
