"""The report of a run on images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int, Shaped
from matplotlib.figure import Figure

from jepa_core import report
from jepa_core.report import pictures
from jepa_core.run import Run
from jepa_core.training.sampler import Draw
from jepa_vision.data.images import Images
from jepa_vision.figures import (
    locality_figure,
    mask_figure,
    neighbour_figure,
    segmentation_figure,
    similarity_figure,
    token_figure,
)
from jepa_vision.presets import PretrainConfig
from jepa_vision.source import ImageSource
from jepa_vision.targets import neighbour_table, select_neighbours

_WHAT = {
    "pretrain": "An encoder trained without labels",
    "finetune": "A classifier trained on an encoder",
    "demo": "The whole job on built-in images",
    "reproduce": "The paper's claim on real images",
}

_MASKED = 3  # images under their masks

Crops = Shaped[np.ndarray, "images height width channels"]


def write_report(run: Run) -> Path:
    """Write report.html of a run folder from what lies in it."""
    if any("health/share_total" in line for line in run.metrics()):
        save_locality_figure(run)
    return report.write_noted_report(run, _WHAT)


def save_mask_figure(run: Run, images: Images, config: PretrainConfig, *, seed: int) -> Path:
    """Draw the crops and masks of the run's first step over some images."""
    source = ImageSource(images, config, seed=seed)
    # Spread over the set: its first images are often of one class.
    ids = np.unique(np.linspace(0, len(images) - 1, _MASKED).astype(np.int64))
    batch = source.batch(Draw(0, ids, ids, np.zeros(len(ids), np.int64)))
    mean, std = (torch.tensor(values)[:, None, None] for values in _statistics(config))
    shown = (batch["image"] * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    longest = batch["context"].shape[-1]
    lengths = batch.get("context_lengths", torch.full((1, len(ids)), longest))[0]
    figure = mask_figure(
        list((shown * 255).round().astype(np.uint8)),
        [context[:n].numpy() for context, n in zip(batch["context"][0], lengths, strict=True)],
        list(batch["target"].transpose(0, 1).numpy()),
        config.model.grid,
    )
    caption = (
        "Crops of three images, the patches that the encoder sees of them, and the blocks whose "
        "features are predicted."
    )
    return _save(run, "mask", figure, caption)


def save_locality_figure(run: Run) -> Path:
    """Draw where the variance of the targets lay over the run."""
    caption = (
        "Where the variance of the targets lies. Targets that differ between images but not "
        "between the places of one image are not local."
    )
    return _save(run, "locality", locality_figure(run.metrics()), caption)


def save_token_figures(
    run: Run,
    crops: Crops,
    tokens: Mapping[str, Float32[np.ndarray, "images patches dim"]],
    targets: Mapping[str, Float32[np.ndarray, "images patches dim"]],
    config: PretrainConfig,
) -> None:
    """Draw what features look like over their images.

    Parameters
    ----------
    crops
        Images as they are encoded; three or four of them.
    tokens
        Of the trained encoder first, then of its twin.
    targets
        What the loss asks for of the first image's patches, by encoder; tokens will do.
    """
    patch = config.model.patch
    grid = crops.shape[1] // patch, crops.shape[2] // patch
    figure = token_figure(list(crops), grid, tokens)
    caption = "Three principal components of the patch tokens as red, green and blue."
    _save(run, "tokens", figure, caption)
    asked = spread_patches(grid)
    figure = similarity_figure(
        crops[0], grid, asked, {name: values[0] for name, values in targets.items()}
    )
    caption = "Cosine of the targets of three patches (framed) with those of all other patches."
    _save(run, "similarity", figure, caption)
    if config.method != "dmt-jepa":
        return
    first = torch.from_numpy(next(iter(tokens.values()))[:1]).float()
    table = neighbour_table(*grid, config.dmt.window, config.dmt.border)
    chosen, _ = select_neighbours(
        F.layer_norm(first, first.shape[-1:]), table, config.dmt.neighbours
    )
    figure = neighbour_figure(crops[0], grid, asked, table.numpy(), chosen[0].numpy())
    caption = "Three patches, their candidates (white) and the most similar ones (orange) of them."
    _save(run, "neighbours", figure, caption)


def save_segmentation_figure(
    run: Run,
    name: str,
    images: Sequence[Shaped[np.ndarray, "height width channels"]],
    truth: Sequence[Int[np.ndarray, "height width"]],
    predicted: Mapping[str, Sequence[Int[np.ndarray, "height width"]]],
    classes: Sequence[str],
    ignore: int,
) -> Path:
    """Draw test scenes beside their label maps and what probes make of them."""
    figure = segmentation_figure(images, truth, predicted, classes, ignore=ignore)
    return _save(run, name, figure, "Test scenes, their labels and what each probe sees in them.")


def spread_patches(grid: tuple[int, int]) -> list[int]:
    """Three patches of a grid that lie apart: left of, at and right of its middle."""
    rows, cols = grid
    places = ((0.3, 0.25), (0.5, 0.5), (0.7, 0.75))
    return [int(r * rows) * cols + int(c * cols) for r, c in places]


def _statistics(config: PretrainConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return config.augment.mean, config.augment.std


def _save(run: Run, name: str, figure: Figure, caption: str) -> Path:
    path = run.figures / f"{name}.png"
    pictures.save(figure, path, caption)
    return path
