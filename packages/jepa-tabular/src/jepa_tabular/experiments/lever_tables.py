"""What the study of levers found, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jepa_core.evaluation.intervals import Paired, paired
from jepa_core.report.table import Cell, Table
from jepa_tabular.experiments.findings import listed
from jepa_tabular.experiments.lever_list import BASE, LEVERS, REPRESENTATIONS, TWINS
from jepa_tabular.experiments.reproduce import LABELS
from jepa_tabular.presets import PretrainConfig
from jepa_tabular.results import standing


def levers_table(
    name: str, results: Mapping[str, Sequence[Mapping[str, Any]]], sizes: tuple[int, int, int]
) -> Table:
    """Each lever's effect on one table."""
    base = results[BASE]
    rows = [
        _row("untrained twin", base, "twin", base),
        _row("raw columns", base, "raw columns", base),
    ]
    for lever, several in results.items():
        rows.append(_row(LEVERS[lever].words, several, BASE, base))
    for kind, words in REPRESENTATIONS.items():
        rows.append(_row(words, base, kind, base))
    for kind, words in TWINS.values():
        rows.append(_row(words, base, kind, base))
    train, more, scored = sizes
    columns = (
        "change",
        *(f"{train if n == 'all' else n:,} labels" for n in LABELS),
        "over base",
        "over its twin",
        "unexplained",
        "row variance",
        "rank",
        "s",
    )
    note = (
        f"R2 of a linear readout, mean over {len(base)} seeds; {train:,} rows with labels, "
        f"{more:,} more to pre-train on, {scored:,} validation rows scored."
    )
    return Table(f"{name}: what each change does", columns, rows, (note,))


def _row(
    words: str,
    several: Sequence[Mapping[str, Any]],
    kind: str,
    base: Sequence[Mapping[str, Any]],
) -> list[Cell]:
    own = [one["r2"][kind] for one in several]
    means: list[Cell] = [
        float(np.mean([one[str(n)] for one in own])) if str(n) in own[0] else None for n in LABELS
    ]
    over = None if several is base and kind == BASE else _over(several, kind, base, BASE)
    row: list[Cell] = [words, *means, str(over) if over else None]
    if kind != BASE:
        other = TWINS[kind][0] if kind in TWINS else None
        over_twin = str(_over(several, kind, several, other)) if other else None
        return [*row, over_twin, None, None, None, None]
    pairs, key = [one["collapse"] for one in several], "intra_feature_variance"
    return [
        *row,
        str(_over(several, BASE, several, "twin")),
        f"{np.mean([one['unexplained'] for one in several]):.2f}",
        f"{np.mean([after[key] / before[key] for before, after in pairs]):.0%}",
        f"{np.mean([after['effective_rank'] for _, after in pairs]):.1f}",
        f"{np.mean([one['seconds'] for one in several]):.0f}",
    ]


def _over(
    several: Sequence[Mapping[str, Any]],
    kind: str,
    others: Sequence[Mapping[str, Any]],
    other: str,
) -> Paired:
    """Mean gain in R2 over the numbers of labels, seed by seed."""
    shared = several[0]["r2"][kind].keys() & others[0]["r2"][other].keys()
    return paired(
        [float(np.mean([one["r2"][kind][n] for n in shared])) for one in several],
        [float(np.mean([one["r2"][other][n] for n in shared])) for one in others],
    )


def page(
    tables: Sequence[Table],
    results: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    config: PretrainConfig,
    typed: str,
) -> str:
    """The Markdown page; `typed` are the flags that it was asked for with."""
    method = (
        f"Written by `python -m jepa_tabular.experiments.levers {typed}`. Each row is one change "
        f"of the base recipe (`REPRODUCE` in presets.py: {config.steps} steps on california, a "
        "half and a third of them on adult and jannis), on rows that the reproduction never "
        "scores. *Over base* and *over its twin* are paired over seeds: mean over the numbers of "
        "labels, 95 % t interval, the sign of each seed. *Row variance* is the share of the "
        "untrained twin's that the encoder keeps, *rank* its effective rank, *s* the seconds of "
        "one core. Differences below .005 are noise."
    )
    text = [
        "# What each number of the recipe does",
        method,
        sentence(results),
        *(table.to_markdown() for table in tables),
    ]
    return "\n\n".join(part.strip() for part in text) + "\n"


def sentence(results: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> str:
    """Which changes help or hurt on every table they were tried on, and the base over its twin."""
    words: dict[str, list[str]] = {"ahead of": [], "behind": []}
    levers = dict.fromkeys(lever for one in results.values() for lever in one if lever != BASE)
    for lever in levers:
        found = {
            standing(_over(one[lever], BASE, one[BASE], BASE))
            for one in results.values()
            if lever in one
        }
        if len(found) == 1 and (word := found.pop()) in words:
            words[word].append(LEVERS[lever].words)
    base = [f"{name} {_over(one[BASE], BASE, one[BASE], 'twin')}" for name, one in results.items()]
    parts = [f"The base recipe over its untrained twin: {'; '.join(base)}"]
    for word, kind in (("ahead of", "Better"), ("behind", "Worse")):
        some = listed(words[word]) if words[word] else "nothing"
        parts.append(f"{kind} than the base wherever it was tried: {some}")
    return ". ".join(parts) + "."
