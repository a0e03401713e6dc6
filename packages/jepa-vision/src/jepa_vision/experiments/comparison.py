"""What demo, reproduction and study of targets share: arms, and how each is trained and probed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from jepa_core.domain import Machine
from jepa_vision import dense
from jepa_vision.collapse import collapse_report, target_shares
from jepa_vision.data.folders import ImageFolder, find_scenes
from jepa_vision.data.images import Images
from jepa_vision.data.layouts import SceneFolder
from jepa_vision.data.transforms import centre, normalise
from jepa_vision.evaluation import (
    knn_probe,
    linear_probe,
    principal_components,
    raw_pixels,
)
from jepa_vision.given import SomeImages
from jepa_vision.inference import PretrainedImage, save
from jepa_vision.model import ImageJEPA
from jepa_vision.presets import DMTConfig, PretrainConfig, official
from jepa_vision.pretrain import pretrain, untrained
from jepa_vision.targets import neighbour_table, select_neighbours

RAW, TWIN = "raw pixels", "untrained twin"
IJEPA, DMT, SOUND = "I-JEPA", "DMT-JEPA", "DMT-JEPA, own query"
PAIRED, MEAN, RANDOM = "DMT-JEPA, official pairing", "mean of neighbours", "random neighbours"

# The frames' labels are at 240 x 180 pixels; at this size a patch covers about what it covers in a
# training crop.
SCENE = (96, 128)

_LOGGED = (
    "step",
    "loss",
    "health/unexplained",
    "health/signal",
    "health/share_sample",
    "health/share_total",
    "health/token_rank",
)


def arm_recipe(config: PretrainConfig, arm: str) -> PretrainConfig:
    """The recipe of an arm; everything but the targets is the same."""
    papers = replace(config, method="dmt-jepa", dmt=DMTConfig(query="mean"))
    if arm == IJEPA:
        return replace(config, method="i-jepa")
    if arm == DMT:
        return papers
    if arm == SOUND:
        return replace(papers, dmt=DMTConfig(query="patch"))
    if arm == PAIRED:
        return replace(papers, dmt=official(papers).dmt)
    if arm == MEAN:
        return replace(papers, dmt=replace(papers.dmt, aggregator="mean"))
    if arm == RANDOM:
        return replace(papers, dmt=replace(papers.dmt, choice="random"))
    raise ValueError(arm)


@dataclass(frozen=True)
class Material:
    """Real images, small enough to be sent to another process.

    Parameters
    ----------
    images
        To pre-train on, of any sizes.
    train, test
        uint8 photographs [n, height, width, 3] with labels `y`, `truth`.
    train_scenes, test_scenes
        uint8 frames [n, height, width, 3] with class maps.
    """

    images: list[UInt8[np.ndarray, "height width 3"]]
    train: UInt8[np.ndarray, "n height width 3"]
    y: Int64[np.ndarray, " n"]
    test: UInt8[np.ndarray, "m height width 3"]
    truth: Int64[np.ndarray, " m"]
    classes: tuple[str, ...]
    train_scenes: UInt8[np.ndarray, "k height width 3"]
    train_maps: Int64[np.ndarray, "k height width"]
    test_scenes: UInt8[np.ndarray, "l height width 3"]
    test_maps: Int64[np.ndarray, "l height width"]
    scene_classes: tuple[str, ...]
    ignore: int


def read_material(folder: Path) -> Material:
    """Caltech-101's ten classes and unlabelled images, and CamVid, as they lie in the folder."""
    train, test = (ImageFolder(folder / "caltech10" / part) for part in ("train", "test"))
    unlabelled = ImageFolder(folder / "caltech_unlabelled.zip")
    seen, scored = (find_scenes(folder / "camvid", split=part) for part in ("train", "test"))
    frames = [seen.image(i) for i in range(len(seen))]
    assert train.labels is not None
    assert test.labels is not None
    return Material(
        [
            *(train.read(i) for i in range(len(train))),
            *(unlabelled.read(i) for i in range(len(unlabelled))),
            *frames,
        ],
        _stacked(train),
        train.labels,
        _stacked(test),
        test.labels,
        train.classes,
        *_scenes(seen),
        *_scenes(scored),
        seen.classes,
        seen.ignore_index,
    )


def train_arm(
    material: Material,
    config: PretrainConfig,
    arm: str,
    seed: int,
    keep: Path | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
) -> dict[str, Any]:
    """Pre-train one arm with one seed and probe it.

    Parameters
    ----------
    config
        The recipe of `arm_recipe`.
    keep
        A folder that gets the encoder.
    """
    torch.set_num_threads(1)
    images = SomeImages(material.images)
    if arm == TWIN:
        start = untrained(replace(config, method="i-jepa"), seed).eval()
        twin = PretrainedImage(start.target_encoder, config, device=device)
        return probe_encoder(twin, material, seed)
    found, result = train(images, config, seed, list(material.test), keep, device)
    return {**result, **probe_encoder(found, material, seed)}


def train(
    images: Images,
    config: PretrainConfig,
    seed: int,
    pictures: Sequence[UInt8[np.ndarray, "height width 3"]],
    keep: Path | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
) -> tuple[PretrainedImage, dict[str, Any]]:
    """Pre-train with one seed on one thread; the encoder, and how it went (JSON-able).

    Parameters
    ----------
    pictures
        What the targets' shares are measured on.
    keep
        A folder that gets the encoder.
    """
    steps, _ = config.length(len(images))
    config = replace(config, checkpoint_every=steps)
    before = untrained(config, seed, steps).eval()
    machine = Machine(seed=seed, device=device, threads=1)
    # A look costs about as much as five steps.
    found = pretrain(images, config, machine=machine, health_every=max(1, steps // 12))
    after = found.module.cpu().eval()
    assert isinstance(after, ImageJEPA)
    x = _normalised(pictures, config)
    noise = _noise(config, x, seed)
    shares = [target_shares(module.targets(x, noise=noise)) for module in (before, after)]
    if keep is not None:
        save(keep, found.encoder, config, found.head)
    history = [
        {name: line[name] for name in _LOGGED if name in line} for line in found.result.history
    ]
    model = PretrainedImage(found.encoder, config, head=found.head, device=device)
    return model, {
        "targets": [{name: float(value) for name, value in one.items()} for one in shares],
        "alike": found.result.alarm.alike_step,
        "alarm": found.result.alarm.reason,
        "history": history,
    }


def probe_encoder(model: PretrainedImage, material: Material, seed: int) -> dict[str, Any]:
    """Everything that is asked of a frozen encoder; JSON-able."""
    patch, size = model.model.patch, model.model.image
    train, test = (
        model.read(np.stack([centre(x, size) for x in images]))
        for images in (material.train, material.test)
    )
    scenes = encoded_scenes(model.read, material, patch)
    return {
        **_classified(train.mean(1), test.mean(1), material, seed),
        **_segmented(*scenes, material, seed),
        "collapse": {
            name: value for name, value in collapse_report(test).items() if isinstance(value, float)
        },
    }


def probe_pixels(material: Material, config: PretrainConfig, seed: int = 0) -> dict[str, Any]:
    """The same of the pixels themselves."""
    size, patch = config.model.image, config.model.patch
    train, test = (
        raw_pixels(np.stack([centre(x, size) for x in images]))
        for images in (material.train, material.test)
    )
    components = principal_components(train, test, seed=seed)
    scenes = encoded_scenes(dense.raw_patches(patch), material, patch)
    return {
        **_classified(*components, material, seed),
        **_segmented(*scenes, material, seed),
    }


def encoded_scenes(
    encode: Callable[[np.ndarray], np.ndarray], material: Material, patch: int
) -> tuple[list[dense.EncodedScene], list[dense.EncodedScene]]:
    """Street scenes for training and for testing as tokens."""
    train, test = (
        [
            dense.EncodedScene(_grid(encode(frame[None])[0], frame.shape[:2], patch), label)
            for frame, label in zip(frames, maps, strict=True)
        ]
        for frames, maps in (
            (material.train_scenes, material.train_maps),
            (material.test_scenes, material.test_maps),
        )
    )
    return train, test


def agreement(scenes: Sequence[dense.EncodedScene], ignore: int, k: int = 4) -> tuple[float, float]:
    """Share of a patch's k most similar neighbours, and of all its neighbours, of its own class.

    Over patches and neighbours that have a class.
    """
    tokens = np.stack([scene.tokens for scene in scenes])
    labels = np.stack([scene.patch_labels(ignore).ravel() for scene in scenes])
    count, rows, cols, dim = tokens.shape
    h = functional.layer_norm(torch.from_numpy(tokens).reshape(count, rows * cols, dim), (dim,))
    table = neighbour_table(rows, cols)
    chosen, _ = select_neighbours(h, table, k)
    shares = []
    for index in (chosen, table.expand(count, -1, -1)):
        own, there = labels[..., None], index.numpy() >= 0
        other = np.take_along_axis(labels[:, None], index.clamp(min=0).numpy(), axis=-1)
        valid = there & (own != dense.NO_LABEL) & (other != dense.NO_LABEL)
        shares.append(float((own == other)[valid].mean()))
    return shares[0], shares[1]


def _classified(
    train: Float[np.ndarray, "n dim"],
    test: Float[np.ndarray, "m dim"],
    material: Material,
    seed: int,
) -> dict[str, Any]:
    linear = linear_probe(train, material.y, test, material.truth, seed=seed)
    nearest = knn_probe(train, material.y, test, material.truth)
    return {
        "top1": linear.top1,
        "knn": nearest.top1,
        "hits": np.asarray(linear.hits).astype(int).tolist(),
    }


def _segmented(
    train: Sequence[dense.EncodedScene],
    test: Sequence[dense.EncodedScene],
    material: Material,
    seed: int,
) -> dict[str, Any]:
    classes, ignore = len(material.scene_classes), material.ignore
    probe = dense.patch_probe(train, classes, ignore=ignore, seed=seed)
    found = dense.segmentation(dense.confusions(probe, test, classes, ignore=ignore).sum(0))
    return {
        "miou": found.mean_iou,
        "pixels": found.pixel_accuracy,
        "iou": [None if np.isnan(x) else float(x) for x in found.iou],
        "agreement": agreement(test, ignore),
    }


def _noise(config: PretrainConfig, pictures: Tensor, seed: int) -> Tensor | None:
    """What chooses random neighbours, as a source draws it."""
    if config.method != "dmt-jepa" or config.dmt.choice != "random":
        return None
    table = neighbour_table(*config.model.grid, config.dmt.window, config.dmt.border)
    return torch.rand(len(pictures), *table.shape, generator=torch.Generator().manual_seed(seed))


def _normalised(
    pictures: Sequence[UInt8[np.ndarray, "height width 3"]], config: PretrainConfig
) -> Tensor:
    crops = np.stack([centre(x, config.model.image) for x in pictures])
    return torch.from_numpy(normalise(crops, config.augment.mean, config.augment.std))


def _grid(
    tokens: Float[np.ndarray, "n dim"], size: tuple[int, ...], patch: int
) -> Float[np.ndarray, "rows cols dim"]:
    return tokens.reshape(size[0] // patch, size[1] // patch, -1)


def _stacked(images: ImageFolder) -> UInt8[np.ndarray, "n height width 3"]:
    return np.stack([images.read(i) for i in range(len(images))])


def _scenes(
    scenes: SceneFolder,
) -> tuple[UInt8[np.ndarray, "n height width 3"], Int64[np.ndarray, "n rows cols"]]:
    """Frames at the size they are encoded at, and class maps as they are."""
    height, width = SCENE
    frames = [
        np.asarray(
            Image.fromarray(scenes.image(i)).resize((width, height), Image.Resampling.BILINEAR)
        )
        for i in range(len(scenes))
    ]
    return np.stack(frames), np.stack([scenes.label(i) for i in range(len(scenes))])
