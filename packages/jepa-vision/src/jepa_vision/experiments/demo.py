"""`jepa vision demo`: the whole job on two photographs and handwritten digits, without a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image

from jepa_core.config import to_dict
from jepa_core.jobs import run_jobs
from jepa_core.report import pictures
from jepa_core.report.figures import curves
from jepa_core.report.table import Cell, Table
from jepa_core.run import Run, next_free, run_record
from jepa_vision.collapse import collapse_report, collapse_table
from jepa_vision.data.transforms import centre
from jepa_vision.evaluation import knn_probe
from jepa_vision.experiments import showing
from jepa_vision.experiments.comparison import DMT, IJEPA, RAW, SOUND, TWIN, arm_recipe, train
from jepa_vision.experiments.findings import series
from jepa_vision.given import SomeImages
from jepa_vision.inference import PretrainedImage, load, save
from jepa_vision.presets import DEMO, PretrainConfig
from jepa_vision.pretrain import untrained
from jepa_vision.report import write_report

ARMS = (IJEPA, DMT, SOUND)
_LABELLED, _SCORED = 400, 600
_SIDE = 32  # pixels of an enlarged digit, half of a training crop's


@dataclass(frozen=True)
class Demo:
    """Pre-train on windows of two photographs and on digits, evaluate beside controls, report.

    I-JEPA and DMT-JEPA start from the same weights and see the same crops. Takes under two minutes
    on two cores; it shows that everything works, not which method is better.
    """

    out: Path | None = None
    """The run folder to write; by default the next free runs/vision-demo."""
    seed: int = 0
    """Seed of weights, crops and masks."""
    jobs: int = 0
    """Processes; 0 is one a core."""
    overwrite: bool = False
    """Replace the run in the folder."""
    config: PretrainConfig = DEMO
    """The recipe but for the targets."""

    def __call__(self) -> None:
        out = self.out or next_free(Path("runs/vision-demo"))
        settings = {k: v for k, v in to_dict(self).items() if k != "jobs"}
        run = Run.create(out, run_record("vision", "demo", settings), overwrite=self.overwrite)
        photographs, digits, y = photographs_and_digits()
        images = [*windows(photographs), *digits[_LABELLED + _SCORED :]]
        print(f"pre-training {len(ARMS)} arms on {len(images)} images, {self.config.steps} steps")
        folders = {arm: run.path / "arms" / str(number) for number, arm in enumerate(ARMS)}
        jobs: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
            ({"arm": arm}, (images, arm_recipe(self.config, arm), self.seed, folder))
            for arm, folder in folders.items()
        ]
        found = dict(
            zip(ARMS, run_jobs(_train, jobs, processes=self.jobs, label="arms"), strict=True)
        )
        models = {arm: load(folder) for arm, folder in folders.items()}
        start = untrained(arm_recipe(self.config, IJEPA), self.seed).target_encoder
        models = {TWIN: PretrainedImage(start, models[IJEPA].config), **models}
        self._save(run, models, found, photographs, digits, y)
        sound = models[SOUND]
        save(run.encoder, sound.encoder, sound.config, sound.head)
        print(f"report: {write_report(run)}")

    def _save(
        self,
        run: Run,
        models: Mapping[str, PretrainedImage],
        found: Mapping[str, Mapping[str, Any]],
        photographs: UInt8[np.ndarray, "2 height width 3"],
        digits: UInt8[np.ndarray, "n side side 3"],
        y: Int64[np.ndarray, " n"],
    ) -> None:
        table = scores_table(models, found, digits, y)
        table.print()
        run.save_table("0-digits", table)
        patch = self.config.model.patch
        views = np.stack([centre(x, (12 * patch, 16 * patch)) for x in photographs])
        reports = {
            name: collapse_report(model.read(digits[:200])) for name, model in models.items()
        }
        collapse = collapse_table(reports, title="Tokens of 200 digits")
        collapse.print()
        run.save_table("1-tokens", collapse)
        rows, cols = views.shape[1] // patch, views.shape[2] // patch
        patches = [
            row * cols + col
            for row, col in ((rows // 4, cols // 2), (rows // 2, cols // 3), (rows - 2, 4))
        ]
        trained = {name: model for name, model in models.items() if name != TWIN}
        crops = np.stack([photographs[i, j : j + 64, 200:264] for i in (0, 1) for j in (100, 220)])
        shown = {
            "masks": showing.masks(crops, self.config, self.seed),
            "neighbours": showing.neighbours(models[SOUND], views[0], patches),
            "similarity": showing.similarities(trained, views[0], patches),
            "tokens": showing.components(models, views),
        }
        for name, (figure, caption) in shown.items():
            pictures.save(figure, run.figures / f"{name}.png", caption)
        for name, caption in (
            ("loss", "Loss; the arms predict different targets, so it does not compare them."),
            ("health/unexplained", "What the predictor leaves of the targets' variance."),
        ):
            path = run.figures / f"{name.rpartition('/')[2]}.svg"
            pictures.save(
                curves({arm: series(one, name) for arm, one in found.items()}), path, caption
            )


def scores_table(
    models: Mapping[str, PretrainedImage],
    found: Mapping[str, Mapping[str, Any]],
    digits: UInt8[np.ndarray, "n side side 3"],
    y: Int64[np.ndarray, " n"],
) -> Table:
    """Nearest neighbours on digits that no arm has seen, and the state of the targets."""
    train, test = slice(0, _LABELLED), slice(_LABELLED, _LABELLED + _SCORED)
    features = {name: model.read(digits[: test.stop]).mean(1) for name, model in models.items()}
    raw = digits[: test.stop, ..., 0].reshape(test.stop, -1).astype(np.float32)
    features = {RAW: raw, **features}
    rows: list[list[Cell]] = []
    top1 = {
        name: knn_probe(x[train], y[train], x[test], y[test]).top1 for name, x in features.items()
    }
    for name, score in top1.items():
        cells: list[Cell] = [None, None, None]
        if name in found:
            begin, end = (one["between_patches"] for one in found[name]["targets"])
            loss = [line["loss"] for line in found[name]["history"] if "loss" in line]
            cells = [f"{begin:.3f}, {end:.3f}", f"{loss[0]:.3f}, {loss[-1]:.3f}"]
            cells.append(f"{series(found[name], 'health/unexplained')[1][-1]:.2f}")
        rows.append([name, f"{score:.3f}", *cells])
    best = max((name for name in top1 if name not in (RAW, TWIN)), key=top1.__getitem__)
    said = (
        f"{best} reaches {top1[best]:.3f}, its untrained twin {top1[TWIN]:.3f} and raw pixels "
        f"{top1[RAW]:.3f}: one seed of a small network says nothing about the methods."
    )
    method = (
        f"20 nearest of {_LABELLED} digits by cosine, {_SCORED} scored, none of them seen in "
        "pre-training."
    )
    columns = ("features", "kNN top-1", "targets between patches", "loss", "unexplained")
    return Table("Handwritten digits", columns, rows, (said, method))


def photographs_and_digits() -> tuple[
    UInt8[np.ndarray, "2 height width 3"],
    UInt8[np.ndarray, "n side side 3"],
    Int64[np.ndarray, " n"],
]:
    """Two photographs and enlarged digits that come with scikit-learn, in a fixed random order."""
    from sklearn.datasets import load_digits, load_sample_images

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    small = (found.images[order] * (255 / 16)).round().astype(np.uint8)
    large = [
        np.asarray(Image.fromarray(x).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))
        for x in small
    ]
    digits = np.repeat(np.stack(large)[..., None], 3, axis=-1)
    return np.stack(load_sample_images().images), digits, found.target[order].astype(np.int64)


def windows(
    photographs: UInt8[np.ndarray, "2 height width 3"], side: int = 96, step: int = 24
) -> list[UInt8[np.ndarray, "side side 3"]]:
    """Windows of the photographs, which overlap."""
    _, height, width, _ = photographs.shape
    return [
        picture[top : top + side, left : left + side]
        for picture in photographs
        for top in range(0, height - side + 1, step)
        for left in range(0, width - side + 1, step)
    ]


def _train(
    images: list[np.ndarray], config: PretrainConfig, seed: int, folder: Path
) -> dict[str, Any]:
    torch.set_num_threads(1)
    _, result = train(SomeImages(images), config, seed, images[:64], folder)
    return result
