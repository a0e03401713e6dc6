"""Pre-trained encoders on new records: any sampling rate, length, lead order, missing samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from jepa_core import hub
from jepa_core.config import from_dict, to_dict
from jepa_core.errors import DataError
from jepa_core.run import refuse_unfinished
from jepa_ecg.classifier import ECGClassifier
from jepa_ecg.data.transforms import interpolate_nans, resample
from jepa_ecg.data.wfdb_record import Record
from jepa_ecg.model import ECGEncoder
from jepa_ecg.presets import ModelConfig

PACKAGE = "jepa-ecg"
FORMAT = 1
CLIP = 5.0  # standard deviations, as in pre-training

Pool = Literal["mean", "mean+std", "mean+std+change"]


class PretrainedECG(nn.Module):
    """An encoder with the normalisation it was trained under.

    Parameters
    ----------
    encoder
        The encoder.
    mean, std
        float32 [leads], mV; per lead, in the order of `encoder.config.leads`.

    Attributes
    ----------
    low_precision
        Compute under autocast to bfloat16; False at first.
    """

    mean: Tensor
    std: Tensor
    low_precision: bool = False

    def __init__(self, encoder: ECGEncoder, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32))
        self.eval()

    @property
    def config(self) -> ModelConfig:
        """Shapes, sampling rate and lead order of the input."""
        return self.encoder.config

    def normalise(
        self, signal: Float[Tensor, "batch leads samples"]
    ) -> Float[Tensor, "batch leads samples"]:
        """Millivolt to standard deviations of the training records, clipped at 5."""
        mean, std = self.mean[:, None], self.std[:, None]
        return ((signal - mean) / std).clamp(-CLIP, CLIP)

    def forward(
        self, signal: Float[Tensor, "batch leads samples"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Token features of a signal in mV, at `config.fs` Hz, leads as in `config.leads`.

        Longer than `config.samples` is an error: `embed` cuts a record into windows.
        """
        with self.autocast():
            return self.encoder(self.normalise(signal))

    def autocast(self) -> torch.autocast:
        """The precision the model computes in, as a context."""
        return torch.autocast(self.mean.device.type, torch.bfloat16, enabled=self.low_precision)


@dataclass(frozen=True)
class Quality:
    """What was wrong with a record and was mended.

    Parameters
    ----------
    valid
        Share of samples that were not missing.
    flat
        Leads without any variation.
    warnings
        What the reader accepted although it is not as it should be.
    """

    valid: float
    flat: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        notes = [f"{100 * (1 - self.valid):.2g} % missing"] if self.valid < 1 else []
        notes += [f"flat {', '.join(self.flat)}"] if self.flat else []
        return "; ".join([*notes, *self.warnings]) or "good"


def save(folder: str | Path, model: PretrainedECG, *, extra: dict[str, Any] | None = None) -> Path:
    """Write an encoder with its normalisation as safetensors and JSON."""
    config = {
        "package": PACKAGE,
        "format": FORMAT,
        "model": to_dict(model.config),
        "mean": model.mean.tolist(),
        "std": model.std.tolist(),
        **(extra or {}),
    }
    return hub.save_encoder(folder, model.encoder.state_dict(), config)


def load(path_or_id: str | Path) -> PretrainedECG:
    """A pre-trained encoder, ready for signals in mV.

    Parameters
    ----------
    path_or_id
        A run folder, an encoder folder, a hub id, or an official checkpoint (`.pt`).

    A run of `jepa ecg finetune` gives the fine-tuned encoder.

    Raises
    ------
    DataError
        There is no encoder of this package, or its file is damaged.
    """
    if (Path(path_or_id) / "classifier").is_dir():
        return load_classifier(path_or_id).pretrained()
    if str(path_or_id).endswith((".pt", ".pth", ".ckpt")):
        from jepa_ecg.checkpoints import load_official_checkpoint
        from jepa_ecg.data.databases import DATABASES

        official = load_official_checkpoint(path_or_id)
        ptbxl = DATABASES["ptb-xl"]
        mean = torch.tensor(ptbxl.mean) if official.mean is None else official.mean
        std = torch.tensor(ptbxl.std) if official.std is None else official.std
        return PretrainedECG(official.encoder, mean, std)
    refuse_unfinished(Path(path_or_id), "encoder", "ecg")
    config, state = hub.load_encoder(path_or_id, PACKAGE)
    encoder = ECGEncoder(_model_config(config, path_or_id))
    _fill(encoder, state, path_or_id)
    return PretrainedECG(encoder, torch.tensor(config["mean"]), torch.tensor(config["std"]))


@dataclass(frozen=True)
class TrainedClassifier:
    """A fine-tuned classifier with everything needed to score a record.

    Parameters
    ----------
    model
        Encoder and head.
    mean, std
        float32 [leads], mV, of the training records.
    classes
        Names of the outputs.
    thresholds
        Per class, chosen on the validation fold; a probability at or above it is a positive.
    crop
        Samples of a window; windows overlap by half, and their logits are averaged.
    softmax
        One class a record, rather than any number.
    """

    model: ECGClassifier
    mean: Tensor
    std: Tensor
    classes: tuple[str, ...]
    thresholds: tuple[float, ...]
    crop: int
    softmax: bool = False

    def pretrained(self) -> PretrainedECG:
        """The encoder with this classifier's normalisation."""
        return PretrainedECG(self.model.encoder, self.mean, self.std)


def save_classifier(folder: str | Path, classifier: TrainedClassifier) -> Path:
    """Write a classifier as safetensors and JSON."""
    config = {
        "package": PACKAGE,
        "format": FORMAT,
        "model": to_dict(classifier.model.encoder.config),
        "mean": classifier.mean.tolist(),
        "std": classifier.std.tolist(),
        "classes": list(classifier.classes),
        "thresholds": list(classifier.thresholds),
        "crop": classifier.crop,
        "softmax": classifier.softmax,
        "attention_pooling": classifier.model.attn_pool is not None,
        "use_register": classifier.model.use_register,
    }
    return hub.save_encoder(folder, classifier.model.state_dict(), config)


def load_classifier(path: str | Path) -> TrainedClassifier:
    """A classifier written by `save_classifier`, or by a run of `jepa ecg finetune`.

    Raises
    ------
    DataError
        There is no classifier.
    """
    inner = Path(path) / "classifier"
    if not (Path(path) / "encoder").is_dir():
        refuse_unfinished(Path(path), "classifier", "ecg")
    config, state = hub.load_encoder(inner if inner.is_dir() else path, PACKAGE)
    if "classes" not in config:
        raise DataError(
            "holds an encoder without a classifier",
            where=path,
            remedy="train one with jepa ecg finetune",
        )
    model = ECGClassifier(
        ECGEncoder(_model_config(config, path)),
        len(config["classes"]),
        attention_pooling=config["attention_pooling"],
        use_register=config["use_register"],
    )
    _fill(model, state, path)
    return TrainedClassifier(
        model.eval(),
        torch.tensor(config["mean"]),
        torch.tensor(config["std"]),
        tuple(config["classes"]),
        tuple(config["thresholds"]),
        int(config["crop"]),
        bool(config["softmax"]),
    )


def prepare(
    record: Record, model: ModelConfig
) -> tuple[Float32[np.ndarray, "leads samples"], Quality]:
    """A record as the encoder wants it, in mV: gaps filled, resampled, leads in order.

    Raises
    ------
    DataError
        A lead of the model is not in the record, has no valid sample, or the record is shorter
        than one patch.
    """
    at = {name.casefold(): column for column, name in enumerate(record.leads)}
    missing = [lead for lead in model.leads if lead.casefold() not in at]
    if missing:
        raise DataError(
            f"there is no lead {', '.join(missing)}; there are {', '.join(record.leads)}",
            remedy="read the record with derive=True (limb leads) or fill='zero'",
        )
    order = [at[lead.casefold()] for lead in model.leads]
    signal = record.signal[:, order]
    length = math.floor(len(signal) * model.fs / record.fs)
    if length < model.patch:
        raise DataError(
            f"the record has {length} samples at {model.fs:g} Hz",
            remedy=f"one token needs {model.patch}",
        )
    valid = 1 - float(np.isnan(signal).mean())
    signal = interpolate_nans(signal, leads=model.leads)
    signal = resample(signal, record.fs, model.fs)
    flat = tuple(
        lead for lead, std in zip(model.leads, signal.std(axis=0), strict=True) if std == 0
    )
    quality = Quality(valid, flat, tuple(record.warnings))
    return np.ascontiguousarray(signal.T, dtype=np.float32), quality


def windows(length: int, size: int, patch: int) -> tuple[Int64[np.ndarray, " windows"], int]:
    """Starts and size of the windows a record of `length` samples is cut into.

    Windows follow each other without gap; the last one is moved back to end with the record.
    A record shorter than `size` is one window of whole patches.
    """
    size = min(size, length // patch * patch)
    starts = np.arange(0, length - size + 1, size)
    # What is left behind the last whole window counts when it is at least one patch.
    if length - (starts[-1] + size) >= patch:
        starts = np.append(starts, length - size)
    return starts.astype(np.int64), size


def embed(
    model: PretrainedECG, record: Record | Sequence[Record], *, pool: Pool = "mean"
) -> Float32[np.ndarray, "*records dim"]:
    """The embedding of one record, or of several.

    Parameters
    ----------
    model
        From `load`.
    record
        From `read_record`; any sampling rate, length and lead order.
    pool
        What is taken over all tokens of the record; see `pooled`.

    Returns
    -------
    float32 [dim], or [records, dim]; as many times wider as `pool` has parts.
    """
    records = [record] if isinstance(record, Record) else list(record)
    prepared = (prepare(one, model.config)[0] for one in records)
    rows = np.stack(list(embed_signals(model, prepared, pool=pool)))
    return rows[0] if isinstance(record, Record) else rows


@torch.no_grad()
def embed_signals(
    model: PretrainedECG,
    signals: Iterable[Float32[np.ndarray, "leads samples"]],
    *,
    pool: Pool = "mean",
    batch_size: int = 64,
) -> Iterator[Float32[np.ndarray, " dim"]]:
    """Embeddings of prepared signals, in their order, computed in batches of equal windows.

    Signals may differ in length; memory holds one batch.
    """
    for cut in _batches(model.config, signals, batch_size):
        device = next(model.parameters()).device
        tokens: dict[int, list[Tensor]] = {}
        for size in {window.shape[1] for _, window in cut}:
            same = [(i, window) for i, window in cut if window.shape[1] == size]
            stacked = torch.from_numpy(np.stack([window for _, window in same])).to(device)
            for (i, _), features in zip(same, model(stacked).float().cpu(), strict=True):
                tokens.setdefault(i, []).append(features)
        for i in sorted(tokens):
            yield pooled(torch.cat(tokens[i]), pool).numpy()


def pooled(tokens: Float[Tensor, "*batch tokens dim"], pool: Pool) -> Float[Tensor, "*batch out"]:
    """Tokens to one vector.

    `change` is the mean absolute difference of neighbouring tokens: what happens from beat to beat,
    which a mean loses.
    """
    parts = [tokens.mean(-2)]
    if pool != "mean":
        parts.append(tokens.std(-2, correction=0))
    if pool == "mean+std+change":
        # A single token has no neighbour and does not change.
        parts.append(tokens.diff(dim=-2).abs().sum(-2) / max(1, tokens.shape[-2] - 1))
    return torch.cat(parts, -1)


def _batches(
    model: ModelConfig,
    signals: Iterable[Float32[np.ndarray, "leads samples"]],
    batch_size: int,
) -> Iterator[list[tuple[int, Float32[np.ndarray, "leads samples"]]]]:
    """Windows of whole records, about `batch_size` at a time, each with its record's number."""
    batch: list[tuple[int, Float32[np.ndarray, "leads samples"]]] = []
    for i, signal in enumerate(signals):
        starts, size = windows(signal.shape[1], model.samples, model.patch)
        batch += [(i, signal[:, start : start + size]) for start in starts]
        if len(batch) >= batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _fill(module: nn.Module, state: Mapping[str, Tensor], where: object) -> None:
    """Load weights that must fit."""
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    try:
        module.load_state_dict(hub.rename_keys(state, {}, shapes))
    except DataError as error:
        raise DataError(error.what, where=where, remedy=error.remedy) from None


def _model_config(config: dict[str, Any], where: object) -> ModelConfig:
    if config.get("format") != FORMAT:
        raise DataError(
            f"the encoder has format {config.get('format')}",
            where=where,
            remedy=f"this version of {PACKAGE} reads format {FORMAT}",
        )
    leads = len(config["model"].get("leads", ()))
    if not leads == len(config.get("mean", ())) == len(config.get("std", ())):
        raise DataError("mean and std must have one value a lead", where=where)
    return from_dict(ModelConfig, config["model"], where=where)
