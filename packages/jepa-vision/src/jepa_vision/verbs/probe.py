"""`jepa vision probe`: what an encoder is worth, beside its untrained twin and raw pixels."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from jaxtyping import Float32, Int64

from jepa_core.config import Range, check, from_dict
from jepa_core.domain import Machine
from jepa_core.errors import ConfigError, DataError, RunError
from jepa_core.health.alarm import regret
from jepa_core.progress import Progress
from jepa_core.report.table import Table
from jepa_core.run import Run
from jepa_core.training import checkpoint
from jepa_core.training.device import find_device, one_process
from jepa_core.training.interrupt import saying
from jepa_vision.collapse import collapse_report, collapse_table
from jepa_vision.data.folders import find_scenes
from jepa_vision.data.images import Images, Pixels
from jepa_vision.decoder import DecoderConfig
from jepa_vision.dense import raw_patches, token_map
from jepa_vision.evaluation import (
    RAW,
    TRAINED,
    TWIN,
    knn_probe,
    linear_probe,
    raw_pixels,
    side_by_side,
)
from jepa_vision.finetune import divide
from jepa_vision.inference import PretrainedImage, encode, load
from jepa_vision.pretrain import checkpoint_parts
from jepa_vision.propagation import find_videos, score_videos
from jepa_vision.readouts import Some, cropped, pooled, targets_of, twin_of
from jepa_vision.report import save_segmentation_figure, save_token_figures, write_report
from jepa_vision.results import COPY, compare, propagation_table
from jepa_vision.scenes import SceneConfig, sample, scene_parts, segment
from jepa_vision.verbs.embed import prepared
from jepa_vision.verbs.pretrain import Reading, splits_of

_LOOKED_AT = 256  # images whose tokens are looked at
_DRAWN = 4  # images in figures
_CLOSER = 1.5  # short side of a scene over that of a training crop

Task = Literal["auto", "classes", "segmentation", "video"]


@dataclass(frozen=True)
class Probe:
    """Evaluate an encoder on labelled images, scenes or videos, whichever the data are.

    Images in folders of their classes: a linear and a nearest-neighbour probe. Scenes with a class
    for every pixel (CamVid, ADE20K, VOC, Oxford Pet, pairs of pictures): a linear probe of patches
    and a light decoder. Videos in the layout of DAVIS: labels of the first frame carried along.
    Everything stands beside the untrained twin (same recipe, same seed) and raw pixels. The data's
    test part is scored, or its validation part, or a part that is drawn.
    """

    run: tyro.conf.Positional[str]
    """A run, an encoder folder, a hub id or an official checkpoint."""
    data: Path
    """Labelled data: images in folders of their classes, pictures with label pictures, or videos
    in the layout of DAVIS."""
    task: Task = "auto"
    """What to ask of the data; auto looks at the folders."""
    test_share: Annotated[float, Range(gt=0, lt=1)] = 0.2
    """Share of images or scenes that is tested, where the data have no such split."""
    max_images: Annotated[int, Range(ge=20)] = 10_000
    """Images used, drawn at random."""
    max_scenes: Annotated[int, Range(ge=4)] = 500
    """Scenes used, drawn at random."""
    side: Annotated[int, Range(ge=0)] = 0
    """Short side (pixels) that scenes are resized to; 0 takes one and a half that of training.
    Frames of videos: 0 takes 480, as the protocol does."""
    tile: bool = False
    """Encode scenes in half-overlapping windows of the training size, not in one piece."""
    classes: Annotated[int, Range(ge=1)] | None = None
    """Number of classes of label pictures of your own."""
    ignore_index: int | None = None
    """Their label of pixels that have none; 255 by default."""
    masks: Path | None = None
    """Folder for the encoder's answers to videos, as PNG files in the layout of DAVIS."""
    reading: Reading = Reading()
    """How images are read."""
    machine: Machine = Machine()
    """Seed, device, precision, threads. The seed is that of draws and decoders."""
    decoder: DecoderConfig = DecoderConfig()
    """The light decoder."""

    def __post_init__(self) -> None:
        check(self)

    def __call__(self) -> None:
        one_process("jepa vision probe")
        with saying("tables come at the end: give the same command again"):
            self._evaluate()

    def _evaluate(self) -> None:
        run = _run(self.run)
        model = prepared(load(self.run, device=self.machine.device), self.machine)
        twin = prepared(twin_of(model, _run_seed(run)), self.machine)
        pair = {TRAINED: model, TWIN: twin}
        task = self.task if self.task != "auto" else kind_of(self.data)
        evaluate = {
            "classes": self._classes,
            "segmentation": self._segmentation,
            "video": self._video,
        }[task]
        tables = evaluate(run, pair)
        place = re.sub(r"[^\w.-]+", "-", self.data.resolve().stem)
        for name, table in tables.items():
            table.print()
            if run is not None:
                run.save_table(f"probe-{place}-{name}", table)
        if run is not None:
            print(f"report: {write_report(run)}")

    # ---- classes of images

    def _classes(self, run: Run | None, pair: dict[str, PretrainedImage]) -> dict[str, Table]:
        images, y, train, test = self._labelled()
        seed = self.machine.seed
        raw = raw_pixels(cropped(pair[TRAINED], images))
        found = {
            name: pooled(model, images, progress=f"images, {name}") for name, model in pair.items()
        }
        features = side_by_side(found[TRAINED], found[TWIN], raw, train, test, seed=seed)
        tables = {}
        for name, title, probe in (
            ("linear", "linear probe", partial(linear_probe, seed=seed)),
            ("knn", f"{min(20, len(train))} nearest images", knn_probe),
        ):
            tables[name] = compare(title, features, y[train], y[test], probe, seed=seed).table
        places = test if len(test) > 1 else train
        shown = places[np.unique(np.linspace(0, len(places) - 1, _LOOKED_AT).astype(int))]
        crops = cropped(pair[TRAINED], Some(images, shown))
        tokens = {name: model.read(crops) for name, model in pair.items()}
        reports = {name: collapse_report(tokens[name]) for name in (TWIN, TRAINED)}
        tables["collapse"] = collapse_table(reports, title="patch tokens")
        if run is not None:
            tables |= self._regret(run, pair[TRAINED], images, y, train, test)
            self._draw(run, pair, crops, tokens)
        return tables

    def _labelled(self) -> tuple[Images, Int64[np.ndarray, " n"], _Rows, _Rows]:
        """The images that are used, their classes, and the rows of both parts."""
        images = self.reading.open(self.data)
        try:
            parts = divide(
                images.labels,
                splits_of(images),
                validation_share=0.2,
                test_share=self.test_share,
                seed=self.machine.seed,
            )
        except DataError as error:
            raise DataError(error.what, where=self.data, remedy=error.remedy) from None
        assert images.labels is not None
        # Probes choose their settings inside the training part, so validation images train too.
        train = np.sort(np.concatenate((parts.train, parts.validation)))
        total = len(train) + len(parts.test)
        share = min(1.0, self.max_images / total)
        train, test = (sample(rows, share, seed=self.machine.seed) for rows in (train, parts.test))
        if share < 1:
            print(f"{len(train) + len(test):,} of {total:,} images are used")
        used = np.concatenate((train, test))
        cut = len(train)
        places = np.arange(cut), np.arange(cut, len(used))
        return Some(images, used), images.labels[used], *places

    def _regret(
        self,
        run: Run,
        model: PretrainedImage,
        images: Images,
        y: Int64[np.ndarray, " n"],
        train: _Rows,
        test: _Rows,
    ) -> dict[str, Table]:
        """The linear probe of every kept checkpoint, and what the choice without labels cost."""
        steps = checkpoint.steps(run.checkpoints) if run.record["verb"] == "pretrain" else []
        if len(steps) < 2:
            return {}
        chosen, scores = int(model.details.get("step", -1)), {}
        for step in steps:
            encoder, _ = checkpoint_parts(model.config, run, step)
            one = prepared(
                PretrainedImage(encoder, model.config, device=self.machine.device), self.machine
            )
            z = encode(one, images, pool=True, progress=f"images, step {step}")
            found = linear_probe(z[train], y[train], z[test], y[test], seed=self.machine.seed)
            scores[step] = found.top1
        cost = regret(chosen, scores) if chosen in scores else math.nan
        table = Table(
            "linear probe of the kept checkpoints",
            ("step", "top-1", ""),
            [
                [step, score, "chosen without labels" if step == chosen else ""]
                for step, score in scores.items()
            ],
            (f"Regret of the choice: {cost:.3f} top-1 over {len(scores)} kept checkpoints.",),
        )
        return {"regret": table}

    def _draw(
        self,
        run: Run,
        pair: dict[str, PretrainedImage],
        crops: Pixels,
        tokens: dict[str, Float32[np.ndarray, "images patches dim"]],
    ) -> None:
        rows = np.unique(np.linspace(0, len(crops) - 1, _DRAWN).astype(int))
        shown = {name: values[rows] for name, values in tokens.items()}
        shown[RAW] = raw_patches(pair[TRAINED].model.patch)(crops[rows])
        targets = {name: targets_of(model, crops[rows]) for name, model in pair.items()}
        save_token_figures(run, crops[rows], shown, targets, pair[TRAINED].config)

    # ---- classes of pixels

    def _segmentation(self, run: Run | None, pair: dict[str, PretrainedImage]) -> dict[str, Table]:
        scenes = find_scenes(
            self.data,
            split=self.reading.split,
            classes=self.classes,
            ignore_index=self.ignore_index,
        )
        seed, model = self.machine.seed, pair[TRAINED].model
        if model.channels != 3:
            raise DataError(
                f"scenes have 3 channels, and the encoder takes {model.channels}", where=self.data
            )
        try:
            train, test = scene_parts(
                scenes, most=self.max_scenes, test_share=self.test_share, seed=seed
            )
        except DataError as error:
            raise DataError(error.what, where=self.data, remedy=error.remedy) from None
        if len(train) + len(test) < len(scenes):
            print(f"{len(train) + len(test):,} of {len(scenes):,} scenes are used")
        side = self.side or round(_CLOSER * min(model.image))
        show = np.unique(np.linspace(0, len(test) - 1, 3).astype(int)).tolist()
        found = segment(
            {name: one.read for name, one in pair.items()} | {RAW: raw_patches(model.patch)},
            scenes,
            train,
            test,
            SceneConfig(side, model.patch, model.image if self.tile else None),
            self.decoder,
            show=show,
            seed=seed,
            device=find_device(self.machine.device),
        )
        if run is not None:
            rows = test[show].tolist()
            save_segmentation_figure(
                run,
                "segmentation",
                [scenes.image(row) for row in rows],
                [scenes.label(row) for row in rows],
                found.predicted,
                scenes.classes,
                scenes.ignore_index,
            )
        return found.tables(seed=seed)

    # ---- objects in videos

    def _video(self, run: Run | None, pair: dict[str, PretrainedImage]) -> dict[str, Table]:
        videos = find_videos(self.data, self.reading.split or "val")
        patch = pair[TRAINED].model.patch
        features: dict[str, Any] = {
            name: partial(token_map, one.read, patch=patch) for name, one in pair.items()
        }
        features |= {RAW: partial(token_map, raw_patches(patch), patch=patch)}
        scores = {}
        for name, one in (features | {COPY: None}).items():
            with Progress(f"sequences, {name}", len(videos)) as bar:
                scores[name] = score_videos(
                    videos,
                    one,
                    patch,
                    short=self.side or 480,
                    save=self.masks if name == TRAINED else None,
                    progress=bar.update,
                )
        return {"video": propagation_table(scores, seed=self.machine.seed)}


_Rows = Int64[np.ndarray, " rows"]


def kind_of(data: Path) -> Literal["classes", "segmentation", "video"]:
    """What the folders of a data set are for."""
    frames = data / "JPEGImages"
    if frames.is_dir() and any(path.is_dir() for path in frames.iterdir()):
        return "video"
    if data.is_dir() or data.suffix == ".zip":
        try:
            find_scenes(data)
        except ConfigError:  # scenes whose classes are to be told
            return "segmentation"
        except DataError:
            return "classes"
        return "segmentation"
    return "classes"


def _run(place: str) -> Run | None:
    try:
        return Run.open(place)
    except RunError:
        return None


def _run_seed(run: Run | None) -> int:
    """The seed a run was trained with; 0 for an encoder from elsewhere."""
    if run is None or "machine" not in run.config:
        return 0
    return from_dict(Machine, run.config["machine"], where=run.path / "config.json").seed
