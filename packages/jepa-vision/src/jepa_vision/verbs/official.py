"""`jepa vision import` and `export`: encoders of, and for, other programs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jepa_core.config import Range, check, from_dict
from jepa_core.errors import ConfigError, DataError, RunError
from jepa_core.hub import refuse_taken
from jepa_core.output import refuse_existing
from jepa_core.run import Run, refuse_unfinished
from jepa_core.training import checkpoint
from jepa_vision import inference
from jepa_vision.checkpoints import (
    from_transformers,
    load_official,
    save_official,
    save_transformers,
)
from jepa_vision.presets import PretrainConfig
from jepa_vision.pretrain import untrained
from jepa_vision.weights import foreign_recipe

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Import:
    """Turn other programs' weights into an encoder folder.

    Takes a checkpoint of the official I-JEPA or DMT-JEPA program (.pth.tar), of which the target
    encoder (and a head) are kept, or transformers' I-JEPA: a folder, a .safetensors file or a hub
    id. Nothing in the files is run.
    """

    checkpoint: tyro.conf.Positional[str]
    """The file, folder or hub id."""
    out: Path
    """The encoder folder to write."""
    heads: Annotated[int, Range(ge=1)] | None = None
    """Attention heads, which weights do not show; needed where the width is of no published size
    and no config.json tells."""
    mean: tuple[float, ...] = ()
    """Mean of each channel (0..1) that was subtracted; by default ImageNet's."""
    std: tuple[Annotated[float, Range(gt=0)], ...] = ()
    """Standard deviation of each channel that was divided by; by default ImageNet's."""
    overwrite: bool = False
    """Replace the encoder in the folder."""

    def __post_init__(self) -> None:
        check(self)

    def __call__(self) -> None:
        refuse_taken(self.out, overwrite=self.overwrite)
        head, name = None, Path(self.checkpoint).name
        if self.checkpoint.endswith(inference.OFFICIAL):
            official = load_official(self.checkpoint, heads=self.heads)
            encoder, head, recipe = official.target_encoder, official.target_head, official.recipe
        else:
            encoder = from_transformers(_local(self.checkpoint), heads=self.heads)
            recipe = foreign_recipe(encoder.config, dmt=False)
        recipe = self._with_statistics(recipe)
        folder = inference.save(self.out, encoder, recipe, head, {"imported": name})
        model = recipe.model
        print(
            f"{folder}: {model.depth} blocks of width {model.dim}, patches of {model.patch}, "
            f"{'with' if head is not None else 'without'} a head"
        )

    def _with_statistics(self, recipe: PretrainConfig) -> PretrainConfig:
        channels = recipe.model.channels
        if channels != 3 and not (self.mean and self.std):
            raise ConfigError(
                f"the encoder takes {channels} channels, and ImageNet has 3",
                remedy="give --mean and --std",
            )
        return replace(
            recipe,
            augment=replace(
                recipe.augment,
                mean=self.mean or recipe.augment.mean,
                std=self.std or recipe.augment.std,
            ),
        )


@dataclass(frozen=True)
class Export:
    """Write an encoder for other programs.

    official: a .pth.tar with encoder, predictor, target encoder (and heads) of a run, which the
    official programs can evaluate. transformers: a folder for IJepaModel.from_pretrained, of any
    encoder.
    """

    model: tyro.conf.Positional[str]
    """A run folder; for transformers also an encoder folder, a hub id or an official checkpoint."""
    out: Path
    """The file or folder to write."""
    format: Literal["official", "transformers"] = "transformers"
    """For which program."""
    overwrite: bool = False
    """Replace the file, or the encoder in the folder."""

    def __post_init__(self) -> None:
        check(self)

    def __call__(self) -> None:
        if self.format == "official":
            refuse_existing(self.out, self.overwrite)
            _export_official(Path(self.model), self.out)
        else:
            refuse_taken(self.out, overwrite=self.overwrite)
            found = inference.load(self.model, device="cpu")
            augment = found.config.augment
            save_transformers(self.out, found.encoder, augment.mean, augment.std)
        print(f"{self.out}: written for {self.format}")


def _export_official(path: Path, out: Path) -> None:
    """The checkpoint that a run's encoder is of, with predictor and both encoders."""
    refuse_unfinished(path, "encoder", "vision")
    try:
        run = Run.open(path)
    except RunError as error:
        raise RunError(
            error.what, where=path, remedy="an encoder alone has no predictor: give its run"
        ) from None
    if (run.record["domain"], run.record["verb"]) != ("vision", "pretrain"):
        raise RunError(
            f"is a run of {run.record['domain']} {run.record['verb']}",
            where=path,
            remedy="give a run of jepa vision pretrain",
        )
    config = from_dict(PretrainConfig, run.config["config"], where=path / "config.json")
    details = inference.load(path, device="cpu").details
    step, images = int(details["step"]), int(details["images"])
    jepa = untrained(config, 0)
    jepa.load_state_dict(checkpoint.read_weights(run.checkpoints, step))
    save_official(out, jepa, epoch=step // max(1, images // config.batch_size))


def _local(place: str) -> Path:
    """The folder or file; of a hub id what was downloaded."""
    path = Path(place)
    repository, _, revision = place.partition("@")
    if path.exists():
        return path
    if not _REPOSITORY.fullmatch(repository):
        raise DataError(
            "there is no such file or folder", where=place, remedy="check the path or the hub id"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        patterns: Sequence[str] = ("*.safetensors", "config.json")
        return Path(
            snapshot_download(repository, revision=revision or None, allow_patterns=list(patterns))
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"is neither a folder nor to be had from the Hub: {line}",
            where=place,
            remedy="check the name, the connection, and your login for a private one",
        ) from error
