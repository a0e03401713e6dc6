"""The report of a run on tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped

from jepa_core import report
from jepa_core.report import pictures
from jepa_core.report.figures import embedding_map
from jepa_core.run import Run
from jepa_tabular.analysis import Relevance
from jepa_tabular.figures import (
    collapse_figure,
    mask_figure,
    relevance_figure,
    similarity_figure,
    token_variance_figure,
)
from jepa_tabular.masks import MaskSampler
from jepa_tabular.presets import PretrainConfig, TableShape

_WHAT = {
    "pretrain": "An encoder trained without labels",
    "finetune": "A model trained on an encoder",
    "demo": "The whole job on built-in and generated tables",
    "reproduce": "The paper's claim on real tables",
}


def write_report(run: Run) -> Path:
    """Write report.html of a run folder from what lies in it."""
    return report.write_noted_report(run, _WHAT)


def save_mask_figure(
    run: Run,
    config: PretrainConfig,
    shape: TableShape,
    names: Sequence[str],
    values: Sequence[Any],
    *,
    seed: int,
) -> Path:
    """Draw a first mask over one row.

    Parameters
    ----------
    names, values
        Of the columns, in the order of the table.
    """
    registers = config.model.registers
    sampler = MaskSampler(
        shape.columns,
        config.context,
        config.target,
        targets=config.targets,
        registers=registers,
        compat=config.compat,
        seed=seed,
    )
    context, target = sampler.sample(1, 0)
    figure = mask_figure(
        [names[column] for column in shape.order],
        [_text(values[column]) for column in shape.order],
        context[0, 0],
        target[:, 0],
        registers=registers,
    )
    path = run.figures / "mask.png"
    caption = "One row under a mask: the columns the encoder sees, and those that are asked for."
    pictures.save(figure, path, caption)
    return path


def save_training_figure(run: Run) -> Path:
    """Draw row variance, effective rank and uniformity over the run."""
    path = run.figures / "collapse.png"
    caption = "Row variance, effective rank and uniformity of the target encoder while training."
    pictures.save(collapse_figure(run.metrics()), path, caption)
    return path


def save_analysis(
    run: Run,
    *,
    tokens: Sequence[str],
    variance: dict[str, list[float]],
    similarity: tuple[Sequence[str], Float32[np.ndarray, "k k"]],
    relevance: Relevance | None,
    rows: Float32[np.ndarray, "rows dim"],
    labels: Shaped[np.ndarray, " rows"],
) -> None:
    """Draw what a representation looks like, into the run's figures.

    Parameters
    ----------
    tokens
        Names of the tokens.
    variance
        Of each encoder, the row variance of every token.
    similarity
        Names of representations and their linear CKA.
    relevance
        What the columns are worth; None draws nothing.
    rows, labels
        For the map.
    """
    figures = {
        "variance": (token_variance_figure(tokens, variance), "Row variance of every token."),
        "similarity": (similarity_figure(*similarity), "Linear CKA of the representations."),
        "map": (
            embedding_map(rows, labels),
            "Test rows in the plane of their two first principal components, coloured by label.",
        ),
    }
    if relevance is not None:
        figures["relevance"] = (
            relevance_figure(relevance),
            "What each column is worth to a linear probe of the tokens, and to boosted trees.",
        )
    for name, (figure, caption) in figures.items():
        pictures.save(figure, run.figures / f"{name}.png", caption)


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, (float, np.floating)) else str(value)
