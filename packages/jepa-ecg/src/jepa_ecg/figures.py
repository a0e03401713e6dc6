"""Pictures for reports: the mask over a record, and where a classifier looks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

# Light pink paper with 1 mV and 0.2 s squares, as cardiologists read it.
_GRID = "#f3c9c9"
_TRACE = "#1d2733"
_HIDDEN = "#0072b2"

# A sheet shows limb leads, then chest leads, in two columns of six.
_COLUMNS = 2
_SPACING = 2.5  # mV between the baselines of neighbouring leads


def mask_figure(
    signal: Float[np.ndarray, "leads samples"],
    context: Int[np.ndarray, " kept"],
    *,
    fs: float,
    leads: Sequence[str],
    patch: int,
) -> Figure:
    """A record in mV with the hidden tokens shaded: what the encoder sees and what it does not."""
    tokens = signal.shape[1] // patch
    hidden = np.ones(tokens, bool)
    hidden[context] = False
    figure, axes = _sheet(signal, fs, leads)
    edges = np.diff(np.concatenate(([0], hidden.astype(np.int8), [0])))
    runs = list(zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True))
    for axis in axes:
        for first, last in runs:
            axis.axvspan(first * patch / fs, last * patch / fs, color=_HIDDEN, alpha=0.18, lw=0)
    axes[0].set_title(
        f"shaded: {int(hidden.sum())} of {tokens} tokens hidden, in {len(runs)} runs",
        loc="left",
        fontsize=9,
    )
    return figure


def attention_figure(
    signal: Float[np.ndarray, "leads samples"],
    weights: Float[np.ndarray, " tokens"],
    *,
    fs: float,
    leads: Sequence[str],
    title: str = "",
) -> Figure:
    """A record in mV, each stretch coloured by how much the classifier attends to its token.

    Parameters
    ----------
    weights
        One per token of the record, in time order.
    """
    figure, axes = _sheet(signal, fs, leads, trace=False)
    time = np.arange(signal.shape[1]) / fs
    share = np.repeat(weights / max(float(weights.max()), 1e-12), signal.shape[1] // len(weights))
    share = np.pad(share, (0, signal.shape[1] - len(share)), mode="edge")
    half = (len(leads) + 1) // _COLUMNS
    for i, trace in enumerate(signal):
        points = np.stack((time, trace - _SPACING * (i % half)), 1)
        lines = LineCollection(
            np.stack((points[:-1], points[1:]), 1).tolist(), cmap="viridis_r", linewidths=1.0
        )
        lines.set_array(share[:-1])
        lines.set_clim(0, 1)
        axes[i // half].add_collection(lines)
    if title:
        axes[0].set_title(title, loc="left", fontsize=9)
    return figure


def _sheet(
    signal: Float[np.ndarray, "leads samples"],
    fs: float,
    leads: Sequence[str],
    *,
    trace: bool = True,
) -> tuple[Figure, list[Axes]]:
    half = (len(leads) + 1) // _COLUMNS
    seconds = signal.shape[1] / fs
    figure = Figure(figsize=(10, 0.9 + 0.62 * half), layout="constrained")
    grid = figure.subplots(1, _COLUMNS, sharex=True, sharey=True, squeeze=False)
    axes: list[Axes] = list(grid[0])
    for axis in axes:
        axis.set_xlim(0, seconds)
        axis.set_ylim(-_SPACING * (half - 0.4), 0.8 * _SPACING)
        axis.set_xticks(np.arange(0, seconds + 0.01, 1.0))
        axis.set_xticks(np.arange(0, seconds + 0.01, 0.2), minor=True)
        axis.set_yticks(np.arange(-_SPACING * half, _SPACING, 0.5), minor=True)
        axis.set_yticks([])
        axis.grid(which="both", color=_GRID, linewidth=0.5)
        axis.set_axisbelow(True)
        axis.tick_params(which="both", length=0, labelsize=7)
        axis.set_xlabel("seconds", fontsize=8)
        for spine in axis.spines.values():
            spine.set_visible(False)
    time = np.arange(signal.shape[1]) / fs
    for i, (lead, values) in enumerate(zip(leads, signal, strict=True)):
        axis, base = axes[i // half], -_SPACING * (i % half)
        if trace:
            axis.plot(time, values + base, color=_TRACE, linewidth=0.7)
        axis.text(0.01 * seconds, base + 0.45, lead, fontsize=8, fontweight="bold")
    return figure, axes
