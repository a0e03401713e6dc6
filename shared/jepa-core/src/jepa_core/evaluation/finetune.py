"""Training on labels: the best validated step is kept, and training stops when none comes.

The test part is no business of this room: select here, test once, elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from jepa_core import rng
from jepa_core.config import to_dict
from jepa_core.errors import DataError, Interrupted, RunError
from jepa_core.evaluation import FinetuneConfig
from jepa_core.evaluation.metrics import macro_auc, one_hot
from jepa_core.optim import adamw, decay_groups, set_hyperparameters
from jepa_core.progress import Progress
from jepa_core.run import must_equal
from jepa_core.schedules import cosine_to_last
from jepa_core.training import checkpoint
from jepa_core.training.device import autocast_to_bfloat16, find_device
from jepa_core.training.interrupt import StopSignals
from jepa_core.training.loader import Loader, Source, to_device
from jepa_core.training.sampler import Epochs

Stop = Literal["steps", "patience", "nonfinite"]


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
    stopped: Stop
    history: tuple[Validation, ...]


def finetune(
    module: nn.Module,
    source: Source,
    validate: Callable[[], float],
    config: FinetuneConfig,
    *,
    label: str = "fine-tuning",
    folder: Path | None = None,
    resume: bool = False,
) -> Finetuned:
    """Train `module` in place and leave it at its best validated step, in evaluation mode.

    On a CPU the outcome is a pure function of the arguments: a training that was killed and resumed
    ends with the same bits. What needs no gradient is frozen: such parts (an encoder under a probe)
    stay in evaluation mode throughout.

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
    folder
        Where each validation leaves a checkpoint, without what is frozen: the last one stays, and
        that of the best step. None keeps nothing.
    resume
        Continue from the last checkpoint, where there is one; `module` is to be as it was at the
        beginning. A training that had ended gives what it gave.

    Raises
    ------
    RunError
        No validation gave a finite score, or the loss stopped being finite before the first. The
        folder cannot be written, or holds checkpoints that are not to be resumed or are of other
        settings, initial weights or numbers of records.
    Interrupted
        After Ctrl-C or SIGTERM, with the last step saved. A second Ctrl-C stops at once.
    """
    device = torch.device(find_device(config.device))
    low, why_not = autocast_to_bfloat16(config.precision, device.type)
    settings = to_dict(config)
    if folder is not None:
        begin = checkpoint.state_hash(module.state_dict())
        settings |= {"records": len(source), "hash of the initial weights": begin}
    module.to(device)
    optimizer = adamw(decay_groups(module), betas=config.betas, eps=config.eps)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    keeper = _Keeper(folder, module, optimizer, settings)
    course, best_state = keeper.begin(resume)
    sampler = Epochs(len(source), min(config.batch, len(source)), config.seed, drop_last=True)
    last = course.step if course.stopped else config.steps
    loader = Loader(source, sampler, first=course.step, last=last, workers=config.workers)

    _to_training_mode(module)
    with (
        loader,
        Progress(label, config.steps, course.step) as progress,
        StopSignals() as signals,
    ):
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
            course.add(loss)
            progress.update(course.step)

            if course.step % config.validate_every == 0 or course.step == config.steps:
                if math.isfinite(course.mean_loss):
                    now = course.validated(_score(module, validate), config)
                    progress.update(now.step, f"loss {now.loss:.4g}, validation {now.score:.4f}")
                    if now is course.best:
                        best_state = _copy_of_what_changes(module)
                else:
                    course.stopped = "nonfinite"
            elif not signals.received:
                continue
            keeper.save(course)
            if signals.received:
                raise Interrupted(
                    f"{label} stopped after step {course.step} of {config.steps}",
                    remedy="nothing of it is kept" if folder is None else "--resume continues",
                )
            if course.stopped:
                break
    if not best_state:
        raise RunError(
            f"{label} gave no finite validation score in {config.steps} steps",
            remedy="lower the learning rate, look for missing values in data and labels",
        )
    module.load_state_dict(best_state, strict=False)
    module.eval()
    assert course.stopped is not None
    return Finetuned(course.best.step, course.best.score, course.stopped, tuple(course.history))


@dataclass
class _Course:
    """How far a training is: what its checkpoint holds beside the weights."""

    step: int = 0
    total: Tensor | float = 0.0
    """Sum of the losses since the last validation, in float32 on the device."""
    history: list[Validation] = field(default_factory=list)
    stopped: Stop | None = None

    @property
    def best(self) -> Validation:
        best = Validation(0, math.nan, -math.inf)
        for one in self.history:
            if one.score > best.score:
                best = one
        return best

    @property
    def mean_loss(self) -> float:
        since = self.history[-1].step if self.history else 0
        return float(self.total) / (self.step - since)

    def add(self, loss: Tensor) -> None:
        self.total = self.total + loss.detach().float()
        self.step += 1

    def validated(self, score: float, config: FinetuneConfig) -> Validation:
        now = Validation(self.step, self.mean_loss, score)
        self.history.append(now)
        self.total = 0.0
        if self.step - self.best.step >= config.patience:
            self.stopped = "patience"
        elif self.step == config.steps:
            self.stopped = "steps"
        return now


class _Keeper:
    """Saves and restores a training; without a folder it does nothing."""

    def __init__(
        self,
        folder: Path | None,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: Mapping[str, Any],
    ) -> None:
        self._folder, self._module, self._optimizer = folder, module, optimizer
        self._settings, self._skip = settings, _frozen(module)

    def begin(self, resume: bool) -> tuple[_Course, dict[str, Tensor]]:
        """Restore the last checkpoint; gives how far it was, and the state of its best step."""
        folder = self._folder
        if folder is None:
            return _Course(), {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot be written: {error.strerror}", where=folder) from error
        checkpoint.clean(folder)
        checkpoint.require_space(folder, self._module, keep=1, skip=self._skip)
        step = checkpoint.latest(folder)
        if step is None:
            return _Course(), {}
        if not resume:
            raise RunError(
                "holds checkpoints already", where=folder, remedy="give --resume or --overwrite"
            )
        state = checkpoint.read_state(folder, step)
        must_equal(state["config"], self._settings, where=checkpoint.where(folder, step))
        checkpoint.load(folder, step, self._module, self._optimizer, self._skip)
        history = [Validation(**one) for one in state["history"]]
        course = _Course(step, state["total"], history, state["stopped"])
        best = course.best.step
        return course, checkpoint.read_weights(folder, best) if best else {}

    def save(self, course: _Course) -> None:
        """Write a checkpoint and keep that of the best step beside it."""
        if self._folder is None:
            return
        state = {
            "config": self._settings,
            "total": float(course.total),
            "history": [asdict(one) for one in course.history],
            "stopped": course.stopped,
        }
        shot = checkpoint.snapshot(self._module, self._optimizer, self._skip)
        checkpoint.write(self._folder, course.step, shot, state)
        checkpoint.prune(self._folder, {course.step, course.best.step})


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


@torch.no_grad()
def _score(module: nn.Module, validate: Callable[[], float]) -> float:
    module.eval()
    score = float(validate())
    _to_training_mode(module)
    return score


def _to_training_mode(module: nn.Module) -> None:
    """Training mode for what is trained; frozen statistics and dropout must not move features."""
    module.train()
    for part in module.modules():
        parameters = list(part.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            part.eval()


def _frozen(module: nn.Module) -> set[str]:
    """Names of the parameters that never change."""
    return {name for name, parameter in module.named_parameters() if not parameter.requires_grad}


def _copy_of_what_changes(module: nn.Module) -> dict[str, Tensor]:
    """Trained parameters and all buffers; a frozen encoder is not copied."""
    frozen = _frozen(module)
    state = module.state_dict()
    return {name: value.clone() for name, value in state.items() if name not in frozen}
