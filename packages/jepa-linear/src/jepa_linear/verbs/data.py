"""`jepa linear data check`: what a file holds, before it is analysed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from jepa_core.config import check
from jepa_core.errors import ConfigError
from jepa_core.report import Table
from jepa_linear.data.views import Views
from jepa_linear.modal import modes
from jepa_linear.verbs.source import Reading
from jepa_linear.verdict import trust


@dataclass(frozen=True)
class Check:
    """Read two views and say what is in them: sizes, what is left out, units, how far to trust."""

    data: tyro.conf.Positional[tuple[Path, ...]]
    """One file, or two with x and y."""
    reading: Reading = Reading()
    """Reading."""

    def __call__(self) -> None:
        check(self)
        if not self.data:
            raise ConfigError("no data", where="jepa linear data check", remedy="name a file")
        check_table(self.reading.read(self.data)).print()


def check_table(views: Views) -> Table:
    """What there is to know of two views before an analysis."""
    found = modes(views.Sxx, views.Syx)
    variance = np.diag(views.Sxx)
    known = found.rho[np.isfinite(found.rho)]
    rows: list[list[str | float | int | None]] = [
        ["read as", views.kind],
        ["pairs", "not known" if views.n is None else f"{views.n:,}"],
        ["rows left out, not finite", f"{views.dropped:,}"],
        ["features", f"{len(views.names):,}: {_few(views.names)}"],
        ["without variance, left out", _few(views.constant) or "none"],
        ["scaling", views.scaling],
        ["variance of a feature", f"{variance.min():.3g} to {variance.max():.3g}"],
        ["directions with variance", f"{int(found.rank)}"],
        ["rho of directions", f"{known.min():.3f} to {known.max():.3f}"],
        ["directions with lambda > 0", f"{int((found.lam > 0).sum())}"],
    ]
    if views.rows is not None and views.rows.groups is not None:
        rows.append(["groups", f"{len(np.unique(views.rows.groups)):,}"])
    elif views.rows is not None and views.rows.block > 1:
        rows.append(["correlation, rows drawn together", f"{views.rows.block}"])
    return Table("Data", ("", "found"), rows, notes=(trust(found),))


def _few(names: tuple[str, ...], most: int = 6) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
