"""Segmentation of scenes with frozen tokens: several encoders side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64
from PIL import Image

from jepa_core import rng
from jepa_core.errors import DataError
from jepa_core.progress import Progress
from jepa_core.report.table import Table
from jepa_vision.data.images import Pixels
from jepa_vision.data.layouts import SceneFolder
from jepa_vision.decoder import DecoderConfig, train_decoder
from jepa_vision.dense import (
    Encode,
    EncodedScene,
    confusions,
    constant,
    patch_probe,
    token_map,
)
from jepa_vision.evaluation import held_out
from jepa_vision.results import COMMONEST, class_table, segmentation_table

Rows = Int64[np.ndarray, " rows"]
Confusions = Int64[np.ndarray, "scenes classes classes"]

LINEAR, DECODER = "linear probe of patches", "light decoder"


@dataclass(frozen=True)
class SceneConfig:
    """How scenes are encoded."""

    side: int
    """Short side in pixels that they are resized to."""
    patch: int
    """Side of a patch; both sides of a resized scene are multiples of it."""
    tile: tuple[int, int] | None = None
    """Windows that scenes are encoded in, half overlapping; None encodes them in one piece."""

    def encoded(self, encode: Encode, scenes: SceneFolder, row: int) -> EncodedScene:
        """One scene; its label map stays as it is."""
        image = resized(scenes.image(row), self.side, self.patch)
        tokens = token_map(encode, image, self.patch, tile=self.tile)
        return EncodedScene(tokens, scenes.label(row))


@dataclass(frozen=True)
class SceneScores:
    """What the probes of several encoders make of the same test scenes.

    Parameters
    ----------
    classes
        Their names.
    train
        Training scenes.
    confusions
        By probe, then by encoder.
    predicted
        By probe, label maps that the first encoder's probes give the test scenes to be shown.
    """

    classes: Sequence[str]
    train: int
    confusions: Mapping[str, dict[str, Confusions]] = field(
        default_factory=lambda: {LINEAR: {}, DECODER: {}}
    )
    predicted: dict[str, list[Int64[np.ndarray, "height width"]]] = field(default_factory=dict)

    def tables(self, *, seed: int = 0) -> dict[str, Table]:
        """Scores of each probe, and of each class."""
        found = {}
        for name, probe in (("patches", LINEAR), ("decoder", DECODER)):
            matrices = self.confusions[probe]
            found[name] = segmentation_table(probe, matrices, train=self.train, seed=seed)
            found[f"{name}-classes"] = class_table(probe, matrices, self.classes)
        return found


def segment(
    encoders: Mapping[str, Encode],
    scenes: SceneFolder,
    train: Rows,
    test: Rows,
    config: SceneConfig,
    decoder: DecoderConfig = DecoderConfig(),
    *,
    show: Sequence[int] = (),
    seed: int = 0,
    device: str = "cpu",
) -> SceneScores:
    """A linear probe of patches and a light decoder on each encoder's tokens.

    One encoder's tokens are in memory at a time.

    Parameters
    ----------
    encoders
        By name; the trained one first.
    train, test
        Rows of the scenes of both parts.
    show
        Places in `test` of scenes whose predicted maps are kept.
    """
    count, ignore = len(scenes.classes), scenes.ignore_index
    found = SceneScores(scenes.classes, len(train))
    for name, encode in encoders.items():
        seen = _encoded(encode, scenes, train, config, f"training scenes, {name}")
        asked = _encoded(encode, scenes, test, config, f"test scenes, {name}")
        linear = patch_probe(seen, count, ignore=ignore, seed=seed)
        with Progress(f"decoder, {name}", decoder.steps) as bar:
            trained = train_decoder(
                seen,
                count,
                decoder,
                ignore=ignore,
                seed=seed,
                device=device,
                progress=bar.update,
            )
        for probe, segmenter in ((LINEAR, linear), (DECODER, trained)):
            found.confusions[probe][name] = confusions(segmenter, asked, count, ignore=ignore)
            if probe not in found.predicted:
                found.predicted[probe] = [
                    segmenter(asked[i].tokens, asked[i].label.shape).argmax(-1) for i in show
                ]
    pixels = sum(np.bincount(one.label[one.label != ignore], minlength=count) for one in seen)
    commonest = constant(int(np.argmax(pixels)), count)
    found.confusions[LINEAR][COMMONEST] = confusions(commonest, asked, count, ignore=ignore)
    return found


def _encoded(
    encode: Encode, scenes: SceneFolder, rows: Rows, config: SceneConfig, words: str
) -> list[EncodedScene]:
    found: list[EncodedScene] = []
    with Progress(words, len(rows)) as bar:
        for row in rows.tolist():
            found.append(config.encoded(encode, scenes, row))
            bar.update(len(found))
    return found


def scene_parts(
    scenes: SceneFolder, *, most: int, test_share: float = 0.2, seed: int = 0
) -> tuple[Rows, Rows]:
    """Training and test scenes: the data's own splits, else a draw; of many, some.

    Of data with a validation and no test part the validation part is tested.

    Raises
    ------
    DataError
        Fewer than two scenes to train on, or none to test.
    """
    splits = np.array(scenes.pictures.splits)
    test = splits == ("test" if (splits == "test").any() else "val")
    if not test.any() or test.all():
        test = held_out(np.zeros(len(scenes), np.int64), seed, test_share)
    share = min(1.0, most / len(scenes))
    train, tested = (sample(np.flatnonzero(part), share, seed=seed) for part in (~test, test))
    if len(train) < 2 or not len(tested):
        raise DataError(
            f"{len(train)} training and {len(tested)} test scenes",
            remedy="two to train on and one to test are the least",
        )
    return train, tested


def sample(rows: Rows, share: float, *, seed: int) -> Rows:
    """A random share of some rows, rounded down, in their order; one at least."""
    order = np.argsort(rng.words(seed, "sample", rows, 0, 1)[:, 0], kind="stable")
    return np.sort(rows[order[: max(1, math.floor(share * len(rows) + 1e-9))]])


def resized(image: Pixels, side: int, patch: int) -> Pixels:
    """An image with both sides multiples of the patch, the short one about `side`."""
    scale = side / min(image.shape[:2])
    height, width = (max(1, round(length * scale / patch)) * patch for length in image.shape[:2])
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture)
