"""Training on labels: the best validated step is kept, and training stops when none comes.

The test part is no business of this room: select here, test once, elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from jepa_core import rng
from jepa_core.errors import DataError, RunError
from jepa_core.evaluation import FinetuneConfig
from jepa_core.evaluation.metrics import macro_auc, one_hot
from jepa_core.optim import adamw, decay_groups, set_hyperparameters
from jepa_core.progress import Progress
from jepa_core.schedules import cosine_to_last
from jepa_core.training.device import autocast_to_bfloat16, find_device
from jepa_core.training.loader import Loader, Source, to_device
from jepa_core.training.sampler import Epochs


@dataclass(frozen=True)
class Validation:
    """One validation: steps done, mean training loss since the last one, score."""

    step: int
    loss: float
    score: float


@dataclass(frozen=True)
class Finetuned:
    """What came of it; the module holds the weights of `best_step`."""

    best_step: int
    best_score: float
    stopped: Literal["steps", "patience", "nonfinite"]
    history: tuple[Validation, ...]


def finetune(
    module: nn.Module,
    source: Source,
    validate: Callable[[], float],
    config: FinetuneConfig,
    *,
    label: str = "fine-tuning",
) -> Finetuned:
    """Train `module` in place and leave it at its best validated step, in evaluation mode.

    On a CPU the outcome is a pure function of the arguments. What needs no gradient is frozen:
    such parts (an encoder under a probe) stay in evaluation mode throughout.

    Parameters
    ----------
    module
        `forward(batch)` gives a dict with the scalar "loss".
    source
        Training records; each comes once an epoch and an incomplete last batch is dropped.
    validate
        Score of the module as it is, higher is better; called in evaluation mode without
        gradients. Ties keep the earlier step.
    label
        Stands before the progress bar.

    Raises
    ------
    RunError
        No validation gave a finite score, or the loss stopped being finite before the first.
    """
    device = torch.device(find_device(config.device))
    low, why_not = autocast_to_bfloat16(config.precision, device.type)
    module.to(device)
    optimizer = adamw(decay_groups(module), betas=config.betas, eps=config.eps)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    sampler = Epochs(len(source), min(config.batch, len(source)), config.seed, drop_last=True)
    loader = Loader(source, sampler, first=0, last=config.steps, workers=config.workers)
    best, best_state = Validation(0, math.nan, -math.inf), dict[str, Tensor]()
    history: list[Validation] = []
    stopped: Literal["steps", "patience", "nonfinite"] = "steps"
    total, summed = torch.zeros((), device=device), 0

    _to_training_mode(module)
    with Progress(label, config.steps) as progress:
        if why_not:
            progress.say(why_not)
        for step, (batch,) in loader:
            set_hyperparameters(optimizer, _learning_rate(config, step), config.weight_decay)
            _seed_layers(config.seed, step)
            with torch.autocast(device.type, torch.bfloat16, enabled=low):
                loss = module(to_device(batch, device))["loss"]
            loss.backward()
            if config.clip_norm is not None:
                nn.utils.clip_grad_norm_(trained, config.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            total, summed = total + loss.detach(), summed + 1

            done = step + 1
            progress.update(done)
            if done % config.validate_every and done != config.steps:
                continue
            mean = (total / summed).item()
            total, summed = torch.zeros_like(total), 0
            if not math.isfinite(mean):
                stopped = "nonfinite"
                break
            module.eval()
            with torch.no_grad():
                now = Validation(done, mean, float(validate()))
            _to_training_mode(module)
            history.append(now)
            progress.update(done, f"loss {now.loss:.4g}, validation {now.score:.4f}")
            if now.score > best.score:
                best, best_state = now, _copy_of_what_changes(module)
            elif done - best.step >= config.patience:
                stopped = "patience"
                break
    if not best_state:
        raise RunError(
            f"{label} gave no finite validation score in {config.steps} steps",
            remedy="lower the learning rate, look for missing values in data and labels",
        )
    module.load_state_dict(best_state, strict=False)
    module.eval()
    return Finetuned(best.step, best.score, stopped, tuple(history))


def label_loss(
    logits: Float[Tensor, "batch classes"], y: Shaped[Tensor, "batch *classes"]
) -> Float[Tensor, ""]:
    """Cross-entropy for class numbers [batch]; binary cross-entropy, mean over batch and classes,
    for 0/1 columns [batch, classes].
    """
    if y.ndim == 1:
        return F.cross_entropy(logits.float(), y.long())
    return F.binary_cross_entropy_with_logits(logits.float(), y.float())


def selection_score(
    y: Shaped[np.ndarray, "n *classes"], logits: Float[np.ndarray, "n classes"]
) -> float:
    """Macro-AUC over the classes that have one; of single labels, one against the rest.

    Raises
    ------
    DataError
        No class has both labels.
    """
    if y.ndim == 2:
        return macro_auc(y, logits).macro
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares = shifted / shifted.sum(axis=1, keepdims=True)
    if np.isnan(shares).any():
        raise DataError("logits are not numbers")
    return macro_auc(one_hot(y, logits.shape[1]), shares).macro


def _learning_rate(config: FinetuneConfig, step: int) -> float:
    return cosine_to_last(
        step,
        config.steps,
        config.warmup,
        config.warmup_learning_rate,
        config.learning_rate,
        config.final_learning_rate,
    )


def _seed_layers(seed: int, step: int) -> None:
    """Make what layers draw in this step (dropout) a function of (seed, step)."""
    low, high = rng.words(seed, "layers", np.array([step]), 0, 2)[0].tolist()
    torch.manual_seed(high << 32 | low)


def _to_training_mode(module: nn.Module) -> None:
    """Training mode for what is trained; frozen statistics and dropout must not move features."""
    module.train()
    for part in module.modules():
        parameters = list(part.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            part.eval()


def _copy_of_what_changes(module: nn.Module) -> dict[str, Tensor]:
    """Trained parameters and all buffers; a frozen encoder is not copied."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    state = module.state_dict()
    return {name: value.clone() for name, value in state.items() if name not in frozen}
