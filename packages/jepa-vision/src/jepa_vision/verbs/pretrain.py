"""`jepa vision pretrain`: train an encoder without labels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from jepa_core.config import Range, check, to_dict
from jepa_core.domain import Machine
from jepa_core.errors import ConfigError, DataError
from jepa_core.files import must_be_content
from jepa_core.report.table import Table
from jepa_core.run import Run, run_record
from jepa_core.training.device import find_device
from jepa_core.training.sampler import Epochs
from jepa_vision import inference
from jepa_vision.data.corpus import ImageCorpus
from jepa_vision.data.folders import ImageFolder, Skipped
from jepa_vision.data.images import ArrayImages, Images, ReadOptions
from jepa_vision.data.transforms import measure_statistics
from jepa_vision.model import ImageJEPA
from jepa_vision.presets import PretrainConfig
from jepa_vision.pretrain import pretrain
from jepa_vision.report import save_mask_figure, write_report
from jepa_vision.source import ImageSource
from jepa_vision.start import started

_SHOWN = 100  # files that were left out, in the report


@dataclass(frozen=True)
class Reading:
    """How images are read."""

    split: str = ""
    """train, val or test, where there are splits; all of them by default."""
    stretch: Literal["none", "minmax", "percentile"] = "none"
    """Map values of more than 8 bits to the whole range: from each image's least and largest value,
    or from its 1st and 99th percentile."""
    value_range: tuple[float, float] | None = None
    """Map values of more than 8 bits from this range, and cut what lies outside."""
    on_error: Literal["skip", "raise"] = "skip"
    """skip: every file is read once in the beginning, and one that cannot be is left out and
    listed. raise: such a file is an error when it is met. A corpus holds none."""

    def open(self, data: Path, *, jobs: int = 1) -> Images:
        """The images; `jobs` processes read them in the beginning.

        Raises
        ------
        DataError
            There are none.
        """
        options = ReadOptions(stretch=self.stretch, value_range=self.value_range)
        return open_images(data, self.split, options, on_error=self.on_error, jobs=jobs)


def open_images(
    path: Path,
    split: str = "",
    options: ReadOptions = ReadOptions(),
    *,
    on_error: Literal["skip", "raise"] = "raise",
    jobs: int = 1,
) -> Images:
    """A corpus, an array of images, or images in files; arguments as those of `ImageFolder`."""
    # Of a corpus that is not complete the shards would pass for images.
    if any((path / name).exists() for name in ("corpus.json", "building.json")):
        return ImageCorpus(path, split=split)
    if path.suffix == ".npy" and (found := _array(path)) is not None:
        if split:
            raise ConfigError(
                f"split is {split}, and an array has no splits", where=path, remedy="drop --split"
            )
        return found
    return ImageFolder(path, split=split, options=options, on_error=on_error, jobs=jobs)


def _array(path: Path) -> ArrayImages | None:
    """Images in one array, mapped from its file; None where it holds one image or less."""
    must_be_content(path)
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", where=path) from None
    if array.ndim != 4:
        return None
    try:
        return ArrayImages(array)
    except DataError as error:
        raise DataError(error.what, where=path, remedy=error.remedy) from None


def splits_of(images: Images) -> Sequence[str]:
    """ "train", "val", "test" or "" of each image."""
    if isinstance(images, ImageFolder):
        return images.listing.splits
    if isinstance(images, ImageCorpus):
        return [str(split) for split in images.column("split")]
    return [""] * len(images)


@dataclass(frozen=True)
class Pretrain:
    """Train an encoder without labels, and write it with its checkpoints, metrics and a report.

    The product is `encoder/` in the run folder: the target encoder of the checkpoint that the
    health of the run speaks for. Continue a stopped run with the same command and --resume.
    Of images with other than three channels, the channels and their statistics are measured.
    """

    data: Path
    """A corpus of `jepa vision data build`; a folder or zip archive of images, in folders of their
    own or not; a text file that lists images; or a .npy of images [n, height, width, channels]."""
    out: Path
    """The run folder to write."""
    preset: str = "nano"
    """Recipe whose numbers the other flags override; `jepa vision info` shows them."""
    start: str = ""
    """Weights to begin with, of the recipe's shapes: a run, an encoder folder, a hub id or an
    official checkpoint (.pth.tar)."""
    workers: Annotated[int, Range(ge=0)] = 0
    """Processes that fetch batches ahead."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Where metrics go besides metrics.jsonl."""
    resume: bool = False
    """Continue the run in the folder."""
    overwrite: bool = False
    """Replace the run in the folder."""
    reading: Reading = Reading()
    """How images are read."""
    machine: Machine = Machine()
    """Seed, device, precision, threads."""
    config: PretrainConfig = PretrainConfig()
    """The recipe."""

    def __call__(self) -> None:
        check(self)
        with noting():
            images = self.reading.open(self.data, jobs=max(1, self.workers))
            config = with_channels(self.config, images)
            ImageSource(images, config, seed=self.machine.seed)
        seed = self.machine.seed
        # What cannot run must not leave a folder behind.
        steps, _ = config.length(len(images))
        world = int(os.environ.get("WORLD_SIZE", "1"))
        sampler = Epochs(len(images), config.batch_size, seed, drop_last=True)
        sampler.draw(0, world=world, accumulation=config.accumulation)
        find_device(self.machine.device)
        module = None
        if self.start:
            module = started(self.start, config, seed=seed, steps=steps)
        record = to_dict(replace(self, config=config)) | {"images": len(images)}
        run = Run.create(
            self.out,
            run_record("vision", "pretrain", record),
            resume=self.resume,
            overwrite=self.overwrite,
        )
        with warnings.catch_warnings():
            # What there is to warn of in the images has been said.
            warnings.filterwarnings("ignore", category=UserWarning, module=r"jepa_vision\.")
            self._train(images, config, run, module)

    def _train(
        self, images: Images, config: PretrainConfig, run: Run, module: ImageJEPA | None
    ) -> None:
        done = pretrain(
            images,
            config,
            machine=self.machine,
            run=run,
            resume=self.resume,
            workers=self.workers,
            trackers=self.trackers,
            module=module,
        )
        if not done.result.main:
            return
        extra = {"step": done.result.chosen_step, "images": len(images)}
        inference.save(run.encoder, done.encoder, config, done.head, extra)
        if isinstance(images, ImageFolder) and images.skipped:
            table = skipped_table(images.skipped, len(images))
            run.save_table("left-out", table)
            print(table.notes[0])
        save_mask_figure(run, images, config, seed=self.machine.seed)
        print(f"encoder: {run.encoder}, of step {done.result.chosen_step}")
        waits = [line["data_wait"] for line in done.result.history if "data_wait" in line]
        if waits:
            print(f"waiting for data: {100 * sum(waits) / len(waits):.0f} % of the time")
        print(f"report: {write_report(run)}")


@contextmanager
def noting() -> Iterator[None]:
    """Prints what is warned of inside as notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        _say(f"note: {warning.message}")


def with_channels(config: PretrainConfig, images: Images) -> PretrainConfig:
    """The recipe for images of other than three channels: theirs, with statistics of all pixels.

    A recipe that names the channels itself stays as it is.
    """
    if images.channels == 3 or config.model.channels != 3:
        return config
    mean, std = measure_statistics(images)
    _say(f"{images.channels} channels, measured: mean {_text(mean)}, std {_text(std)}")
    return replace(
        config,
        model=replace(config.model, channels=images.channels),
        augment=replace(config.augment, mean=tuple(mean.tolist()), std=tuple(std.tolist())),
    )


def skipped_table(skipped: Sequence[Skipped], kept: int) -> Table:
    """Files that could not be read, for the report."""
    return Table(
        "files left out",
        ("file", "reason"),
        [[one.name, one.reason] for one in skipped[:_SHOWN]],
        (f"{len(skipped)} of {len(skipped) + kept} files could not be read and are left out.",),
    )


def _say(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(line)


def _text(values: np.ndarray) -> str:
    return " ".join(f"{value:.4g}" for value in values)
