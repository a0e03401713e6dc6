"""Checkpoints of the official program (kweimann/ECG-JEPA): import and export.

Three kinds of torch file exist: a training state (`model`, `optimizer`, `config`, `step`), the same
stripped to the target encoder, and a fine-tuned classifier (`model`, `config`, `eval_config`,
`preprocess`, `task`). Files are read with weights-only unpickling: nothing in them is executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa_core import hub
from jepa_core.config import from_dict
from jepa_core.errors import DataError
from jepa_ecg.classifier import ECGClassifier
from jepa_ecg.model import ECGJEPA, ECGEncoder
from jepa_ecg.presets import PretrainConfig

# The official program nests the parts of its attention pooling one deeper.
_OFFICIAL_POOL = r"^attn_pool\.cross_attention_block\."

# Official setting -> ours; those of the model first.
_MODEL = {
    "channels": "leads",
    "sampling_frequency": "fs",
    "channel_size": "samples",
    "patch_size": "patch",
    "dim": "dim",
    "depth": "depth",
    "num_heads": "heads",
    "pred_dim": "predictor_dim",
    "pred_depth": "predictor_depth",
    "pred_num_heads": "predictor_heads",
    "mlp_ratio": "mlp_ratio",
    "num_registers": "registers",
    "bias": "bias",
    "qkv_bias": "qkv_bias",
    "norm_eps": "norm_eps",
    "dropout": "dropout",
    "attn_dropout": "attention_dropout",
    "layer_scale_eps": "layer_scale",
}
_TRAINING = {
    "datasets": "databases",
    "min_block_size": "min_block",
    "steps": "steps",
    "batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulation",
    "learning_rate": "learning_rate",
    "final_learning_rate": "final_learning_rate",
    "learning_rate_warmup_steps": "warmup_steps",
    "weight_decay": "weight_decay",
    "final_weight_decay": "final_weight_decay",
    "encoder_momentum": "momentum",
    "final_encoder_momentum": "final_momentum",
    "opt_betas": "betas",
    "opt_eps": "eps",
    "gradient_clip": "clip_norm",
    "checkpoint_interval": "checkpoint_every",
}


@dataclass(frozen=True)
class OfficialCheckpoint:
    """What an official file holds.

    Parameters
    ----------
    config
        The recipe, with `model.compat` "official".
    encoder
        The target encoder, or the fine-tuned one.
    jepa
        The whole module, of a training state.
    classifier
        Encoder and head, of a fine-tuned file.
    step
        Optimiser steps done, where the file says so.
    mean, std
        Normalisation per lead in mV, float32 [leads], where the file says so.
    task
        Label task of a classifier, as the file calls it.
    """

    config: PretrainConfig
    encoder: ECGEncoder
    jepa: ECGJEPA | None = None
    classifier: ECGClassifier | None = None
    step: int | None = None
    mean: Tensor | None = None
    std: Tensor | None = None
    task: str = ""


def config_from_official(settings: Mapping[str, Any], *, where: object = "") -> PretrainConfig:
    """The recipe that an official config describes.

    The program multiplies `batch_size` by the accumulation; ours counts whole batches.

    Raises
    ------
    ConfigError
        A setting is of the wrong type or out of range.
    DataError
        A setting of the model is missing.
    """
    missing = [name for name in _MODEL if name not in settings]
    if missing:
        raise DataError(f"the config lacks {', '.join(missing)}", where=where)
    model = {ours: settings[name] for name, ours in _MODEL.items()} | {"compat": "official"}
    recipe = {ours: settings[name] for name, ours in _TRAINING.items() if name in settings}
    if "min_keep_ratio" in settings and "max_keep_ratio" in settings:
        recipe["keep"] = [settings["min_keep_ratio"], settings["max_keep_ratio"]]
    if "batch_size" in recipe and "accumulation" in recipe:
        recipe["batch_size"] *= recipe["accumulation"]
    model["fs"] = float(model["fs"])
    return from_dict(PretrainConfig, {**recipe, "model": model}, where=where)


def config_to_official(config: PretrainConfig) -> dict[str, Any]:
    """The official program's config of a recipe, plain builtins."""
    settings = {name: getattr(config.model, ours) for name, ours in _MODEL.items()}
    settings |= {name: getattr(config, ours) for name, ours in _TRAINING.items()}
    settings["min_keep_ratio"], settings["max_keep_ratio"] = config.keep
    settings["batch_size"] = config.batch_size // config.accumulation
    settings["sampling_frequency"] = int(config.model.fs)
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()
    }


def load_official_checkpoint(path: str | Path) -> OfficialCheckpoint:
    """Read any of the three kinds of official file.

    Raises
    ------
    DataError
        The file is no checkpoint of this program; unexpected, missing or misshapen tensors are
        listed.
    """
    content = hub.read_torch_weights(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise DataError(
            "no official ECG-JEPA checkpoint",
            where=path,
            remedy="expected a dict with 'model' and 'config'",
        )
    if not isinstance(content.get("config"), dict):
        raise DataError("the file has no 'config'", where=path)
    config = config_from_official(content["config"], where=path)
    state: dict[str, Tensor] = content["model"]
    step = content.get("step")
    if "eval_config" in content:
        return _classifier(content, config, state, path)
    if any(name.startswith("predictor.") for name in state):
        jepa = ECGJEPA(config)
        expected = {k: v for k, v in jepa.state_dict().items() if k != "forwards"}
        _load(jepa, {**_checked(state, expected, path), "forwards": _forwards(step, config)})
        return OfficialCheckpoint(config, jepa.target_encoder, jepa=jepa, step=step)
    encoder = ECGEncoder(config.model)
    renamed = {name.removeprefix("target_encoder."): value for name, value in state.items()}
    _load(encoder, _checked(renamed, encoder.state_dict(), path))
    return OfficialCheckpoint(config, encoder, step=step)


def save_official_checkpoint(path: str | Path, jepa: ECGJEPA, *, step: int) -> None:
    """Write a training state that the official program can evaluate (no optimiser state)."""
    state = {name: value for name, value in jepa.state_dict().items() if name != "forwards"}
    torch.save(
        {"model": state, "config": config_to_official(jepa.config), "step": step}, Path(path)
    )


def _classifier(
    content: dict[str, Any], config: PretrainConfig, state: dict[str, Tensor], path: str | Path
) -> OfficialCheckpoint:
    settings = content["eval_config"]
    pooled = "attn_pool.query_token" in state
    output = "attn_pool.cross_attention_block.proj.weight" if pooled else "fc.weight"
    if output not in state:
        raise DataError(f"the classifier has no {output}", where=path)
    classifier = ECGClassifier(
        ECGEncoder(config.model),
        state[output].shape[0],
        attention_pooling=pooled,
        use_register=bool(settings.get("use_register", False)),
    )
    _load(classifier, _checked(state, classifier.state_dict(), path))
    preprocess = content.get("preprocess") or {}
    return OfficialCheckpoint(
        config,
        classifier.encoder,
        classifier=classifier,
        mean=preprocess.get("mean"),
        std=preprocess.get("std"),
        task=str(content.get("task", "")),
    )


def _checked(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: str | Path
) -> dict[str, Tensor]:
    shapes = {name: tuple(value.shape) for name, value in expected.items()}
    try:
        return hub.rename_keys(state, {_OFFICIAL_POOL: "attn_pool."}, shapes)
    except DataError as error:
        raise DataError(error.what, where=path, remedy=error.remedy) from None


def _load(module: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    module.load_state_dict(
        {name: value.float() for name, value in state.items()}
        | {name: value for name, value in state.items() if not value.is_floating_point()}
    )
    module.eval()


def _forwards(step: Any, config: PretrainConfig) -> Tensor:
    return torch.tensor(int(step or 0) * config.accumulation)
