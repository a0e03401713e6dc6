"""The pictures that people look at, of some arms and some images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from matplotlib.figure import Figure

from jepa_vision import dense
from jepa_vision.data.transforms import normalise
from jepa_vision.experiments.comparison import Material, encoded_scenes
from jepa_vision.figures import (
    mask_figure,
    neighbour_figure,
    segmentation_figure,
    similarity_figure,
    token_figure,
)
from jepa_vision.inference import PretrainedImage
from jepa_vision.model import ImageJEPA
from jepa_vision.presets import PretrainConfig
from jepa_vision.source import mask_sampler
from jepa_vision.targets import neighbour_table, select_neighbours

Pictures = UInt8[np.ndarray, "n height width channels"]


def masks(pictures: Pictures, config: PretrainConfig, seed: int = 0) -> tuple[Figure, str]:
    """What the encoder sees of some crops, and what it is asked about."""
    sampler = mask_sampler(config)
    places = np.arange(len(pictures))
    contexts, targets = sampler(places, 0, step=0, seed=seed)
    kept = [contexts[0].indices[i, : contexts[0].lengths[i]].numpy() for i in places]
    blocks = [targets[:, i].numpy() for i in places]
    figure = mask_figure(list(pictures), kept, blocks, config.model.grid)
    return figure, "Crops, what the encoder sees of them, and the blocks that are predicted."


def neighbours(
    model: PretrainedImage,
    picture: UInt8[np.ndarray, "height width channels"],
    patches: Sequence[int],
) -> tuple[Figure, str]:
    """The neighbours that make the targets of some patches."""
    jepa, config = as_jepa(model), model.config
    grid = _grid(picture, config)
    with torch.no_grad():
        h = torch.nn.functional.layer_norm(
            jepa.target_encoder(_normalised(picture[None], config)), (config.model.dim,)
        )
    table = neighbour_table(*grid, config.dmt.window, config.dmt.border)
    chosen, _ = select_neighbours(h, table, config.dmt.neighbours)
    figure = neighbour_figure(picture, grid, patches, table.numpy(), chosen[0].numpy())
    return figure, (
        f"Some patches and the {config.dmt.neighbours} most similar of their neighbours, "
        "which make their targets."
    )


def similarities(
    models: Mapping[str, PretrainedImage],
    picture: UInt8[np.ndarray, "height width channels"],
    patches: Sequence[int],
) -> tuple[Figure, str]:
    """How alike the target of a patch and those of all others are, arm by arm."""
    shown = {name: targets(model, picture[None])[0] for name, model in models.items()}
    grid = _grid(picture, next(iter(models.values())).config)
    figure = similarity_figure(picture, grid, patches, shown)
    return figure, "Cosine of a patch's target with the targets of all patches."


def components(models: Mapping[str, PretrainedImage], pictures: Pictures) -> tuple[Figure, str]:
    """Tokens of some pictures by their principal components, arm by arm."""
    shown = {name: model.read(pictures) for name, model in models.items()}
    grid = _grid(pictures[0], next(iter(models.values())).config)
    figure = token_figure(list(pictures), grid, shown)
    return figure, "First three principal components of the encoders' tokens as colours."


def segmentations(
    models: Mapping[str, PretrainedImage], material: Material, chosen: Sequence[int], seed: int = 0
) -> tuple[Figure, str]:
    """Street scenes, their labels, and what a linear classifier of patches makes of them."""
    classes, ignore = len(material.scene_classes), material.ignore
    predicted: dict[str, list[np.ndarray]] = {}
    for name, model in models.items():
        train, test = encoded_scenes(model.read, material, model.model.patch)
        probe = dense.patch_probe(train, classes, ignore=ignore, seed=seed)
        predicted[name] = [probe(test[i].tokens, test[i].label.shape).argmax(-1) for i in chosen]
    figure = segmentation_figure(
        [material.test_scenes[i] for i in chosen],
        [material.test_maps[i] for i in chosen],
        predicted,
        material.scene_classes,
        ignore=ignore,
    )
    return figure, "Test scenes, their labels, and a linear classifier of each encoder's patches."


def targets(model: PretrainedImage, pictures: Pictures) -> Float32[np.ndarray, "n patches dim"]:
    """What a predictor would be asked for."""
    return as_jepa(model).targets(_normalised(pictures, model.config)).numpy()


def as_jepa(model: PretrainedImage) -> ImageJEPA:
    """A module whose target encoder and head are those of the model."""
    jepa = ImageJEPA(model.config, 1).eval()
    jepa.target_encoder.load_state_dict(model.encoder.state_dict())
    if jepa.target_head is not None and model.head is not None:
        jepa.target_head.load_state_dict(model.head.state_dict())
    return jepa


def _normalised(pictures: Pictures, config: PretrainConfig) -> torch.Tensor:
    return torch.from_numpy(normalise(pictures, config.augment.mean, config.augment.std))


def _grid(picture: np.ndarray, config: PretrainConfig) -> tuple[int, int]:
    return picture.shape[0] // config.model.patch, picture.shape[1] // config.model.patch
