"""Pictures for reports: masks, neighbours, targets, tokens and segmentations over their images.

Images are drawn in units of patches: patch i of a grid covers one unit square.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from jepa_core.report.figures import GRID, INK, PALETTE, style

_CHOSEN, _ASKING = PALETTE[1], PALETTE[0]
_SIDE = 1.45  # inches of a panel
_MOST_CLASSES = 16

# Set apart in lightness as well as in hue; beyond them the colours repeat.
_CLASS_COLOURS = (
    *("#56b4e9", "#8c6d46", "#f0e442", "#6b6b6b", "#cc79a7", "#009e73", "#d55e00", "#b0b0b0"),
    *("#0072b2", "#e69f00", "#7b3fa0", "#a6d96a", "#5a2a27", "#1b4f5c", "#f4a6c0", "#303030"),
)

Grid = tuple[int, int]
Picture = Shaped[np.ndarray, "height width channels"]


def mask_figure(
    images: Sequence[Picture],
    contexts: Sequence[Int[np.ndarray, " kept"]],
    targets: Sequence[Int[np.ndarray, "blocks m"]],
    grid: Grid,
) -> Figure:
    """Images, what the encoder sees of them, and the blocks that are asked for.

    Parameters
    ----------
    contexts, targets
        Of each image, patches by flat index.
    grid
        Rows and columns of patches.
    """
    rows, cols = grid
    with style():
        figure, axes = _panels(len(images), 3, grid)
        for row, (image, context, blocks) in enumerate(zip(images, contexts, targets, strict=True)):
            for place in axes[row]:
                _show(place, image, grid)
            hidden = np.ones(rows * cols, bool)
            hidden[context] = False
            _cover(axes[row][1], hidden, grid, "#8f969d", 0.93)
            for number, block in enumerate(blocks):
                asked = np.zeros(rows * cols, bool)
                asked[block] = True
                colour = PALETTE[number % len(PALETTE)]
                _cover(axes[row][2], asked, grid, colour, 0.3)
                _frame(axes[row][2], block, grid, colour)
        for place, title in zip(axes[0], ("image", "seen", "asked for"), strict=True):
            place.set_title(title)
    return figure


def neighbour_figure(
    image: Picture,
    grid: Grid,
    patches: Sequence[int],
    candidates: Int[np.ndarray, "patches candidates"],
    chosen: Int[np.ndarray, "patches k"],
) -> Figure:
    """Some patches of an image with the neighbours that make their targets.

    Parameters
    ----------
    patches
        Those to show, by flat index.
    candidates, chosen
        Of every patch of the image; -1 = none.
    """
    with style():
        figure, axes = _panels(1, 1 + len(patches), grid)
        for place in axes[0]:
            _show(place, image, grid)
        axes[0][0].set_title("image")
        for place, patch in zip(axes[0][1:], patches, strict=True):
            row, col = divmod(patch, grid[1])
            _outline(axes[0][0], (row, col), _ASKING)
            for one in candidates[patch][candidates[patch] >= 0]:
                _outline(place, divmod(int(one), grid[1]), "white", width=0.8)
            picked = np.zeros(grid[0] * grid[1], bool)
            picked[chosen[patch][chosen[patch] >= 0]] = True
            _cover(place, picked, grid, _CHOSEN, 0.25)
            for one in np.flatnonzero(picked):
                _outline(place, divmod(int(one), grid[1]), _CHOSEN)
            _outline(place, (row, col), _ASKING)
            # Close enough to see what the neighbours hold, and no further than the image.
            reach = 1 + max(
                max(abs(int(one) // grid[1] - row), abs(int(one) % grid[1] - col))
                for one in [patch, *candidates[patch][candidates[patch] >= 0]]
            )
            if reach < max(grid) // 2:
                _zoom(place, (row, col), reach, grid)
            place.set_title(f"row {row}, column {col}")
    return figure


def similarity_figure(
    image: Picture,
    grid: Grid,
    patches: Sequence[int],
    representations: Mapping[str, Float[np.ndarray, "patches dim"]],
) -> Figure:
    """Cosine of the target of some patches with the targets of all others, as heat maps.

    Parameters
    ----------
    patches
        Those to compare with, by flat index.
    representations
        By name, targets (or tokens) of every patch: a row of panels each, with its own scale.
    """
    with style():
        figure, axes = _panels(len(representations), 1 + len(patches), grid, right=0.55)
        for row, (name, targets) in enumerate(representations.items()):
            unit = targets / np.maximum(np.linalg.norm(targets, axis=1, keepdims=True), 1e-12)
            cosine = unit[list(patches)] @ unit.T
            low = min(0.99, float(cosine.min()))
            _show(axes[row][0], image, grid)
            axes[row][0].set_ylabel(name, color=INK)
            for place, patch, values in zip(axes[row][1:], patches, cosine, strict=True):
                drawn = place.imshow(
                    values.reshape(grid),
                    vmin=low,
                    vmax=1,
                    cmap="cividis",
                    extent=(0, grid[1], grid[0], 0),
                )
                _bare(place, grid)
                for panel in (place, axes[row][0]):
                    _outline(panel, divmod(patch, grid[1]), _CHOSEN)
            bar = figure.colorbar(drawn, ax=list(axes[row]), shrink=0.85, pad=0.01, aspect=14)
            bar.outline.set_visible(False)
            bar.set_label("cosine")
        axes[0][0].set_title("image")
    return figure


def token_figure(
    images: Sequence[Picture],
    grid: Grid,
    representations: Mapping[str, Float[np.ndarray, "images patches dim"]],
) -> Figure:
    """Three principal components of the tokens as red, green and blue, beside their images.

    Components and their range are those of all images shown; where colours follow things, patches
    of one thing are alike.
    """
    with style():
        figure, axes = _panels(len(images), 1 + len(representations), grid)
        for row, image in enumerate(images):
            _show(axes[row][0], image, grid)
        for column, (name, tokens) in enumerate(representations.items(), 1):
            colours = component_colours(tokens.reshape(-1, tokens.shape[-1]))
            for row, picture in enumerate(colours.reshape(len(images), *grid, 3)):
                place = axes[row][column]
                place.imshow(picture, extent=(0, grid[1], grid[0], 0))
                _bare(place, grid)
            axes[0][column].set_title(name)
        axes[0][0].set_title("image")
    return figure


def component_colours(tokens: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n 3"]:
    """The first three principal components between their 2nd and 98th percentile, 0..1.

    A component is turned so that its larger part is bright; one that does not vary is grey.
    """
    centred = np.asarray(tokens, np.float64) - tokens.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    found = centred @ axes[:, ::-1][:, :3]
    found *= np.where((found**3).sum(0) < 0, -1, 1)
    found = np.pad(found, ((0, 0), (0, 3 - found.shape[1])))
    low, high = np.percentile(found, (2, 98), axis=0)
    varies = high - low > 1e-9 * max(1e-300, float((high - low).max()))
    return np.where(varies, (found - low) / np.where(varies, high - low, 1), 0.5).clip(0, 1)


def segmentation_figure(
    images: Sequence[Picture],
    truth: Sequence[Int[np.ndarray, "height width"]],
    predicted: Mapping[str, Sequence[Int[np.ndarray, "height width"]]],
    classes: Sequence[str],
    *,
    ignore: int = 255,
) -> Figure:
    """Images, their label maps and what segmenters make of them; unlabelled pixels stay empty.

    Parameters
    ----------
    truth
        Class of each pixel.
    predicted
        By the name of the segmenter.
    """
    columns = {"truth": truth, **predicted}
    size = (images[0].shape[0], images[0].shape[1])
    with style():
        figure, axes = _panels(len(images), 1 + len(columns), size, bottom=0.5)
        for row, image in enumerate(images):
            _show(axes[row][0], image, size)
        for column, (name, maps) in enumerate(columns.items(), 1):
            for row, labels in enumerate(maps):
                place = axes[row][column]
                place.imshow(
                    class_colours(labels, ignore),
                    extent=(0, size[1], size[0], 0),
                    interpolation="nearest",
                )
                _bare(place, size)
            axes[0][column].set_title(name)
        axes[0][0].set_title("image")
        shown = _frequent([*truth, *(one for maps in predicted.values() for one in maps)], ignore)
        handles = [
            Patch(color=_CLASS_COLOURS[number % len(_CLASS_COLOURS)], label=classes[number])
            for number in shown
        ]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=6, handlelength=1, fontsize=7
        )
    return figure


def class_colours(
    labels: Int[np.ndarray, "height width"], ignore: int = 255
) -> Float[np.ndarray, "height width 4"]:
    """A label map as RGBA; unlabelled pixels are transparent."""
    colours = np.array([(*to_rgb(colour), 1.0) for colour in _CLASS_COLOURS])
    picture = colours[np.where(labels == ignore, 0, labels) % len(colours)]
    picture[labels == ignore] = 0
    return picture


def locality_figure(metrics: Iterable[Mapping[str, Any]]) -> Figure:
    """Where the variance of the targets lies while training: between images, places, or both.

    What lies between the patches of an image is the share of the position and what is left.
    """
    lines = [line for line in metrics if isinstance(line.get("health/share_total"), (int, float))]
    steps = [line["step"] for line in lines]
    shares = {
        "image and place: local content": "health/share_interaction",
        "place alone": "health/share_position",
        "image alone": "health/share_sample",
    }
    with style():
        figure = Figure(figsize=(7.6, 2.3))
        left, right = figure.subplots(1, 2)
        values = np.array([[line[key] for line in lines] for key in shares.values()], float)
        values = values.reshape(len(shares), len(lines))
        colours = (PALETTE[0], PALETTE[4], PALETTE[2])
        if lines:
            left.stackplot(steps, values, labels=list(shares), colors=colours, alpha=0.75)
        left.set(title="share of the targets' variance", xlabel="step", ylim=(0, 1))
        right.plot(
            steps,
            [line["health/share_total"] for line in lines],
            color=PALETTE[0],
            marker="o" if len(lines) == 1 else "",
        )
        right.set(title="variance of the targets", xlabel="step")
        right.set_ylim(bottom=0)
        if lines:
            figure.legend(loc="outside lower center", ncols=3)
    return figure


def displayed(image: Picture) -> Float[np.ndarray, "height width 3"]:
    """An image of any number of channels as RGB, 0..1.

    One channel is grey; of other than three the first is, or the first three; values other than
    8-bit ones are stretched to their range.
    """
    shown = image if image.shape[2] >= 3 else image[..., :1]
    shown = np.broadcast_to(shown[..., :3], (*image.shape[:2], 3))
    if image.dtype == np.uint8:
        return shown / 255.0
    low, high = float(shown.min()), float(shown.max())
    return (shown - low) / (high - low) if high > low else np.full(shown.shape, 0.5)


# ---- drawing


def _panels(
    rows: int, columns: int, grid: Grid, *, right: float = 0.0, bottom: float = 0.0
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of panels in the shape of an image; `right` and `bottom` inches for a legend."""
    height = _SIDE * grid[0] / grid[1] if grid[0] < grid[1] else _SIDE
    width = _SIDE * grid[1] / grid[0] if grid[1] < grid[0] else _SIDE
    figure = Figure(
        figsize=(columns * (width + 0.08) + right + 0.1, rows * (height + 0.08) + 0.25 + bottom)
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, [list(row) for row in axes]


def _show(axes: Axes, image: Picture, grid: Grid) -> None:
    axes.imshow(displayed(image), extent=(0, grid[1], grid[0], 0), interpolation="antialiased")
    _bare(axes, grid)


def _bare(axes: Axes, grid: Grid) -> None:
    axes.set(xlim=(0, grid[1]), ylim=(grid[0], 0), xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=GRID)


def _cover(axes: Axes, patches: np.ndarray, grid: Grid, colour: str, alpha: float) -> None:
    cover = np.zeros((*grid, 4))
    cover[..., :3] = to_rgb(colour)
    cover[..., 3] = alpha * patches.reshape(grid)
    axes.imshow(cover, extent=(0, grid[1], grid[0], 0), interpolation="nearest")


def _frame(axes: Axes, block: np.ndarray, grid: Grid, colour: str) -> None:
    """The smallest rectangle around a block of patches."""
    row, col = np.divmod(block, grid[1])
    corner = (float(col.min()), float(row.min()))
    size = (float(np.ptp(col)) + 1, float(np.ptp(row)) + 1)
    axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=1.6))


def _outline(axes: Axes, cell: tuple[int, int], colour: str, width: float = 1.5) -> None:
    row, col = cell
    found = Rectangle((col, row), 1, 1, fill=False, edgecolor=colour, linewidth=width)
    if colour == "white":  # on white ground too
        found.set_path_effects([withStroke(linewidth=width + 1, foreground=INK, alpha=0.5)])
    axes.add_patch(found)


def _zoom(axes: Axes, cell: tuple[int, int], reach: int, grid: Grid) -> None:
    span = 2 * reach + 1
    top = min(max(0, cell[0] - reach), max(0, grid[0] - span))
    left = min(max(0, cell[1] - reach), max(0, grid[1] - span))
    axes.set(xlim=(left, left + span), ylim=(top + span, top))


def _frequent(maps: Sequence[np.ndarray], ignore: int) -> list[int]:
    """Classes that cover the most pixels, in the order of their numbers."""
    found, counts = np.unique(np.concatenate([one.ravel() for one in maps]), return_counts=True)
    found, counts = found[found != ignore], counts[found != ignore]
    most = found[np.argsort(-counts, kind="stable")[:_MOST_CLASSES]]
    return sorted(int(number) for number in most)
