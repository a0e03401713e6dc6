"""Training a classifier on an encoder: labelled images in, a classifier and its logits out."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64
from torch import Tensor, nn

from jepa_core.errors import ConfigError, DataError
from jepa_core.evaluation.finetune import Finetuned, finetune, label_loss
from jepa_core.evaluation.metrics import accuracy
from jepa_core.training.device import autocast_to_bfloat16, find_device
from jepa_core.training.sampler import Draw
from jepa_vision.classifier import ImageClassifier, TrainedClassifier
from jepa_vision.data.augment import augment
from jepa_vision.data.images import Images, Pixels
from jepa_vision.data.transforms import crop_boxes, crops, normalise
from jepa_vision.downstream import DownstreamConfig
from jepa_vision.evaluation import held_out
from jepa_vision.inference import PretrainedImage, encode
from jepa_vision.presets import PretrainConfig

Rows = Int64[np.ndarray, " rows"]
Logits = Float32[np.ndarray, "images classes"]


@dataclass(frozen=True)
class Parts:
    """Rows of the images that train, that choose the step, and that are tested once."""

    train: Rows
    validation: Rows
    test: Rows


def divide(
    labels: Int64[np.ndarray, " images"] | None,
    splits: Sequence[str],
    *,
    validation_share: float,
    test_share: float = 0.2,
    seed: int = 0,
) -> Parts:
    """Training, validation and test images: the data's own splits, else a draw class by class.

    Parameters
    ----------
    splits
        "train", "val", "test" or "" of each image. Of data with train and val alone val is tested.

    Raises
    ------
    DataError
        There are no labels, fewer than two classes, or too few images.
    """
    if labels is None:
        raise DataError("the images have no labels", remedy="put those of each class in a folder")
    name = np.array(splits)
    kinds = {kind: np.flatnonzero(name == kind) for kind in ("train", "val", "test")}
    if not len(kinds["test"]) and len(kinds["train"]):
        kinds["test"], kinds["val"] = kinds["val"], kinds["test"]
    if not len(kinds["test"]):
        tested = held_out(labels, seed, test_share)
        kinds["test"], kinds["train"] = np.flatnonzero(tested), np.flatnonzero(~tested)
    if not len(kinds["val"]):
        chosen = held_out(labels[kinds["train"]], seed + 1, validation_share)
        kinds["val"], kinds["train"] = kinds["train"][chosen], kinds["train"][~chosen]
    parts = Parts(kinds["train"], kinds["val"], kinds["test"])
    few = {"test": parts.test, "validation": parts.validation, "training": parts.train}
    for what, rows in few.items():
        if not len(rows):
            raise DataError(f"there are no {what} images", remedy="give more labelled images")
    if len(np.unique(labels[parts.train])) < 2:
        raise DataError("the training images have one class", remedy="give images of two or more")
    return parts


@dataclass(frozen=True)
class TrainedOnLabels:
    """What training on labels gives.

    Parameters
    ----------
    classifier
        At the best validated step.
    result
        How training went.
    test
        Logits of the test images.
    """

    classifier: ImageClassifier
    result: Finetuned
    test: Logits


def train_classifier(
    model: PretrainedImage,
    images: Images,
    parts: Parts,
    config: DownstreamConfig,
    *,
    label: str = "fine-tuning",
    checkpoints: Path | None = None,
    resume: bool = False,
) -> TrainedOnLabels:
    """Train encoder and output map, or the map alone: random crops train, centre crops judge.

    Parameters
    ----------
    model
        Its encoder is left as it is; a copy is trained.
    images
        With labels.
    checkpoints
        Folder of this training's checkpoints; None keeps none.
    resume
        Continue from the last of them.

    Raises
    ------
    DataError, RunError, Interrupted
        As `jepa_core.evaluation.finetune.finetune`.
    """
    assert images.labels is not None
    y, seed = images.labels, config.training.seed
    encoder = copy.deepcopy(model.encoder).cpu().requires_grad_(not config.freeze)
    classifier = ImageClassifier(encoder, len(images.classes), seed=seed).eval()
    source = LabelledCrops(images, parts.train, model.config, config)
    judge = _Judge(classifier, model.config, images, parts, config)

    def validate() -> float:
        return accuracy(y[parts.validation], judge("validation"))

    result = finetune(
        _WithLoss(classifier),
        source,
        validate,
        config.training,
        label=label,
        folder=checkpoints,
        resume=resume,
    )
    return TrainedOnLabels(classifier, result, judge("test"))


class LabelledCrops:
    """Random crops of labelled images, a pure function of the draw.

    Parameters
    ----------
    rows
        Those of the images that are drawn from.
    recipe
        The encoder's: size of a crop, channel statistics.

    Raises
    ------
    ConfigError
        The encoder takes another number of channels.
    """

    def __init__(
        self, images: Images, rows: Rows, recipe: PretrainConfig, config: DownstreamConfig
    ) -> None:
        if images.channels != recipe.model.channels:
            raise ConfigError(
                f"the images have {images.channels} channels, the encoder {recipe.model.channels}",
                remedy="give images like those it was trained on",
            )
        assert images.labels is not None
        self.images, self.rows, self.recipe = images, rows, recipe
        self.y = torch.from_numpy(np.asarray(images.labels, np.int64))
        self.seed, self.scale = config.training.seed, config.crop_scale
        self.augment = replace(recipe.augment, flip=config.flip, jitter=0.0, blur=0.0)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """`image` float32 [batch, channels, height, width], normalised, and class `y`."""
        ids = self.rows[draw.ids]
        boxes = crop_boxes(
            self.images.sizes[ids],
            draw.keys,
            draw.counters,
            seed=self.seed,
            scale=self.scale,
            ratio=self.augment.crop_ratio,
        )
        cut = crops(self.images, ids, boxes, self.recipe.model.image)
        cut = augment(cut, draw.keys, draw.counters, self.augment, seed=self.seed)
        image = normalise(cut, self.augment.mean, self.augment.std)
        return {"image": torch.from_numpy(image), "y": self.y[torch.from_numpy(ids)]}


class _Judge:
    """Logits of a part by a classifier as it is; what a frozen encoder says of it is kept."""

    def __init__(
        self,
        classifier: ImageClassifier,
        recipe: PretrainConfig,
        images: Images,
        parts: Parts,
        config: DownstreamConfig,
    ) -> None:
        self._classifier, self._recipe, self._config = classifier, recipe, config
        self._images = {
            "validation": Subset(images, parts.validation),
            "test": Subset(images, parts.test),
        }
        self._kept: dict[str, Float32[np.ndarray, "images dim"]] = {}

    def __call__(self, part: str) -> Logits:
        training = self._config.training
        kind = find_device(training.device)
        model = PretrainedImage(self._classifier.encoder, self._recipe, device=kind)
        model.low_precision, _ = autocast_to_bfloat16(training.precision, kind)
        pooled = self._kept.get(part)
        if pooled is None:
            pooled = encode(model, self._images[part], pool=True)
            if self._config.freeze:
                self._kept[part] = pooled
        return TrainedClassifier(self._classifier, self._recipe, ()).logits(pooled)


class Subset:
    """Some of the images of a collection."""

    def __init__(self, images: Images, rows: Rows) -> None:
        self.images, self.rows = images, rows
        self.channels, self.classes = images.channels, images.classes

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sizes(self) -> Int32[np.ndarray, "images 2"]:
        return self.images.sizes[self.rows]

    @property
    def names(self) -> Sequence[str]:
        return [self.images.names[i] for i in self.rows.tolist()]

    @property
    def labels(self) -> Int64[np.ndarray, " images"] | None:
        return None if self.images.labels is None else self.images.labels[self.rows]

    def read(self, i: int, at_least: int | None = None) -> Pixels:
        return self.images.read(int(self.rows[i]), at_least)


class _WithLoss(nn.Module):
    def __init__(self, classifier: ImageClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": label_loss(self.classifier(batch["image"]), batch["y"])}
