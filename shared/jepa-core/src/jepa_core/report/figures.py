"""Figures for reports: small, readable without colour vision, and light or dark as the page is.

A `matplotlib.figure.Figure` made inside `style()` takes the page's colours; any other keeps its own
on white paper. Nothing here touches `pyplot`'s global state.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any, Literal

import matplotlib
import numpy as np
from cycler import cycler
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

# After Okabe & Ito (2008): told apart with any colour vision. The page gives each a second value
# for dark paper, by these exact digits.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, MUTED, GRID = "#1f2428", "#646d76", "#dfe3e8"
MARKERS = ("o", "s", "^", "D", "v", "P")

# Blue to amber: dark to light for any colour vision, and neither lost on light or dark paper.
_SCALE = LinearSegmentedColormap.from_list("report", [PALETTE[0], "#a3a3a3", PALETTE[4]])

# What a vertical line in a curve means: colour and dashes.
MARKS: dict[str, tuple[str, Any]] = {
    "alarm": (PALETTE[1], "solid"),
    "warning": (PALETTE[4], (0, (4, 2))),
    "checkpoint": (PALETTE[2], (0, (1, 1.5))),
}

# Distances of ticks that a reader can divide.
_STEPS = (1, 2, 5, 10)

_STYLE: Any = {
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.03,
    "figure.constrained_layout.h_pad": 0.03,
    "axes.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "axes.titlecolor": INK,
    "axes.prop_cycle": cycler(color=PALETTE),
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 2.5,
    "ytick.major.size": 0,
    "xtick.major.width": 0.6,
    "font.size": 8,
    "font.family": "sans-serif",
    "text.color": INK,
    # A label out of somebody's data may hold a dollar sign; it is no formula.
    "text.parse_math": False,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "lines.linewidth": 1.4,
    "savefig.facecolor": "auto",
    "svg.fonttype": "none",
    # Equal figures give equal bytes.
    "svg.hashsalt": "jepa",
}


@contextmanager
def style() -> Iterator[None]:
    """The report's look for every figure made inside."""
    with matplotlib.rc_context(_STYLE):
        yield


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    marks: Sequence[tuple[float, str]] = (),
    reference: float | None = None,
    log: bool | None = None,
    size: tuple[float, float] = (3.3, 1.75),
) -> Figure:
    """Lines over the step.

    Long series are drawn as the median of 200 pieces with a band from their 10th to their 90th
    percentile. Values that are not finite leave gaps.

    Parameters
    ----------
    series
        Name to (steps, values). One series alone has no legend.
    marks
        (step, what) of vertical lines; `what` is a key of `MARKS`.
    reference
        A horizontal line, such as what chance gives.
    log
        Logarithmic values; None decides by their range.
    size
        Width and height in inches.
    """
    with style():
        figure = Figure(figsize=size)
        axes = figure.add_subplot()
        drawn = []
        for index, (name, (x, y)) in enumerate(series.items()):
            steps, middle, low, high = _thin(np.asarray(x, float), np.asarray(y, float))
            colour = PALETTE[index % len(PALETTE)]
            if len(steps) < len(x):
                axes.fill_between(steps, low, high, color=colour, alpha=0.22, linewidth=0)
            lonely = np.isfinite(middle).sum() == 1
            axes.plot(
                steps,
                middle,
                color=colour,
                label=_shorten(name),
                marker="o" if lonely else "",
                markersize=3,
            )
            drawn.append(middle[np.isfinite(middle)])
        values = np.concatenate(drawn) if drawn else np.empty(0)
        if log is None:
            log = bool(len(values)) and values.min() > 0 and values.max() > 30 * values.min()
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(_log_ticks(values))
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4, steps=_STEPS))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=_STEPS, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _compact(value)))
        axes.grid(visible=False, axis="x")
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.01)
        if reference is not None:
            axes.axhline(reference, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        for step, what in marks:
            colour, dashes = MARKS[what]
            axes.axvline(step, color=colour, linestyle=dashes, linewidth=1.3)
        if len(series) > 1:
            axes.legend()
    return figure


def _thin(
    x: np.ndarray, y: np.ndarray, pieces: int = 200
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps, median, 10th and 90th percentile of at most `pieces` pieces of a series."""
    y = np.where(np.isfinite(y), y, np.nan)
    if len(x) <= 2 * pieces:
        return x, y, y, y
    parts = [part[np.isfinite(part)] for part in np.array_split(y, pieces)]
    bands = np.array(
        [np.percentile(p, (50, 10, 90)) if len(p) else (np.nan,) * 3 for p in parts], float
    )
    return np.array([part.mean() for part in np.array_split(x, pieces)]), *bands.T


def _log_ticks(values: np.ndarray) -> LogLocator:
    decades = math.log10(values.max() / values.min()) if len(values) and values.min() > 0 else 1
    return LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2 else (1.0,), numticks=5)


def _shorten(name: str) -> str:
    """A name out of somebody's data must leave room for the picture."""
    return name if len(name) <= 32 else f"{name[:31]}…"


def _compact(step: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(step) >= size:
            return f"{step / size:g}{letter}"
    return f"{step:g}"


def embedding_map(
    Z: Float[np.ndarray, "n dim"],
    labels: Sequence[Any] | np.ndarray | None = None,
    *,
    method: Literal["pca", "tsne"] = "pca",
    title: str = "",
    points: int = 1000,
) -> Figure:
    """Embeddings in the plane, coloured by label.

    Parameters
    ----------
    Z
        Embeddings.
    labels
        One a row. Floating-point numbers get a colour scale; anything else is a class, of which
        the five most frequent are drawn by name and the rest as "other".
    method
        "pca", whose axes say what share of the variance they show, or "tsne" (scikit-learn,
        PCA start, fixed seed), whose distances between groups mean nothing.
    points
        At most this many rows, equally spaced, are drawn.

    Raises
    ------
    ValueError
        With fewer than three rows, or as many labels as there are not rows.
    """
    Z = np.asarray(Z, dtype=np.float64)
    if len(Z) < 3:
        raise ValueError(f"a map needs three embeddings at least, not {len(Z)}")
    if labels is not None and len(labels) != len(Z):
        raise ValueError(f"{len(labels)} labels for {len(Z)} embeddings")
    rows = np.unique(np.linspace(0, len(Z) - 1, min(points, len(Z))).round().astype(int))
    plane, names = _plane(Z, rows, method)
    with style():
        figure = Figure(figsize=(4.6, 3.7))
        axes = figure.add_subplot()
        axes.set(xlabel=names[0], ylabel=names[1], xticks=[], yticks=[], title=title)
        for spine in axes.spines.values():
            spine.set_color(GRID)
        look: dict[str, Any] = {
            "s": 11,
            "alpha": 0.75,
            "linewidths": 0,
            "rasterized": len(rows) > 1000,
        }
        if labels is None:
            axes.scatter(*plane.T, color=PALETTE[0], **look)
        elif np.issubdtype(np.asarray(labels).dtype, np.floating):
            values = np.asarray(labels)[rows]
            dots = axes.scatter(plane[:, 0], plane[:, 1], c=values, cmap=_SCALE, **look)
            bar = figure.colorbar(dots, ax=axes, shrink=0.7, pad=0.02)
            bar.outline.set_visible(False)
        else:
            _classes(axes, plane, [str(labels[row]) for row in rows], look)
    return figure


def _plane(
    Z: np.ndarray, rows: np.ndarray, method: Literal["pca", "tsne"]
) -> tuple[np.ndarray, tuple[str, str]]:
    centred = Z - Z.mean(axis=0)
    if method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(rows) - 1) / 3)
        model = TSNE(perplexity=perplexity, init="pca", random_state=0)
        return model.fit_transform(centred[rows]), ("t-SNE 1", "t-SNE 2")
    _, sigma, directions = np.linalg.svd(centred, full_matrices=False)
    share = sigma**2 / max(float((sigma**2).sum()), 1e-300)
    plane = np.zeros((len(rows), 2))
    found = min(2, len(directions))
    plane[:, :found] = centred[rows] @ directions[:found].T
    shares = [*share[:2], 0.0]
    return plane, (f"PC 1 ({shares[0]:.0%})", f"PC 2 ({shares[1]:.0%})")


def _classes(axes: Axes, plane: np.ndarray, labels: list[str], look: dict[str, Any]) -> None:
    names, counts = np.unique(labels, return_counts=True)
    order = names[np.argsort(-counts, kind="stable")]
    # One colour is kept for "other" where there are more classes than colours.
    shown = sorted(order if len(order) <= len(PALETTE) else order[: len(PALETTE) - 1])
    found = np.array(labels)
    rest = ~np.isin(found, shown)
    if rest.any():
        axes.scatter(*plane[rest].T, color=MUTED, marker=".", label="other", **look)
    for name, colour, marker in zip(shown, PALETTE, MARKERS, strict=False):
        axes.scatter(
            *plane[found == name].T, color=colour, marker=marker, label=_shorten(name), **look
        )
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=1.5)


def bars_with_intervals(
    names: Sequence[str],
    values: Sequence[float],
    intervals: Sequence[tuple[float, float]] | None = None,
    *,
    start: float = 0.0,
    reference: float | None = None,
    xlabel: str = "",
) -> Figure:
    """Horizontal bars, the first on top, with an interval and the value each.

    Parameters
    ----------
    names, values
        One a bar. NaN draws no bar and says "undefined".
    intervals
        (low, high) of each.
    start
        Where bars begin: what knows nothing scores (0.5 for an AUC).
    reference
        A vertical line.
    """
    values = [float(value) for value in values]
    rows = range(len(names))
    with style():
        figure = Figure(figsize=(5.4, 0.62 + 0.3 * len(names)))
        axes = figure.add_subplot()
        known = [row for row in rows if not math.isnan(values[row])]
        axes.barh(
            known,
            [values[row] - start for row in known],
            left=start,
            height=0.58,
            color=PALETTE[0],
            alpha=0.85,
        )
        for row in rows:
            low, high = intervals[row] if intervals else (values[row], values[row])
            if row not in known:
                axes.text(start, row, " undefined", va="center", color=MUTED)
                continue
            if intervals:
                axes.plot((low, high), (row, row), color=INK, linewidth=1.3, solid_capstyle="butt")
            axes.annotate(
                f"{values[row]:.3g}",
                (max(values[row], high, start), row),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                color=INK,
            )
        axes.set_yticks(rows, [_shorten(name) for name in names])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set(xlabel=xlabel, ylim=(len(names) - 0.5, -0.5))
        axes.margins(x=0.1)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        if reference is not None:
            axes.axvline(reference, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
    return figure


def follows_page(figure: Figure) -> bool:
    """Whether the figure was made inside `style()`: it has no paper of its own."""
    face: Any = figure.get_facecolor()
    return bool(face[3] == 0)


def to_svg(figure: Figure, label: str) -> str:
    """An `<svg>` element for a page, without addresses, metadata and names nobody refers to.

    The colours of `style()` become the page's variables; text stays text in the page's font.

    Parameters
    ----------
    label
        What the picture shows, for those who do not see it.
    """
    buffer = io.StringIO()
    nobody = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with style():
        figure.savefig(buffer, format="svg", metadata=nobody)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    head, _, body = text.partition(">")
    width, height = _points(head, "width"), _points(head, "height")
    head = (
        f'<svg role="img" aria-label="{escape(label)}" '
        f'viewBox="0 0 {width:g} {height:g}" style="--width: {width * 4 / 3:.0f}px"'
    )
    # Its style sheet would reach into the whole page, which has those two lines itself.
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", body)
    # A hundredth of a point is finer than any screen; matplotlib writes millionths.
    body = re.sub(r' (?:d|x|y)="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), body)
    variables = _VARIABLES if follows_page(figure) else {}
    body = re.sub(r' style="([^"]*)"', lambda m: _style_of_page(m[1], variables), body)
    return f"{head}>{body}".strip()


def _style_of_page(declarations: str, variables: Mapping[str, str]) -> str:
    """A style attribute in the page's colours, without font family: that is the page's too."""
    declarations = re.sub(r"font-family: [^;]*(; )?", "", declarations)
    for colour, variable in variables.items():
        declarations = declarations.replace(colour, f"var({variable})")
    return f' style="{declarations}"'


_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid"} | {
    colour: f"--series-{index}" for index, colour in enumerate(PALETTE, 1)
}


def _points(head: str, name: str) -> float:
    found = re.search(rf'\b{name}="([\d.]+)pt"', head)
    if found is None:
        raise ValueError(f"matplotlib's SVG has no {name}")
    return float(found[1])
