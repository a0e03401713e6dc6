"""Training a network on labels, its predictions, and what they are worth."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64, Shaped
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    log_loss,
    precision_recall_fscore_support,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from jepa_core.errors import DataError, RunError
from jepa_core.evaluation import FinetuneConfig
from jepa_core.evaluation.finetune import Finetuned, Validation, finetune
from jepa_core.training.device import find_device
from jepa_core.training.sampler import Draw
from jepa_tabular.downstream import Task, TrainingConfig

# Rows of a forward pass that keeps no gradients; what fits any network here.
_BLOCK = 1024
# Standard deviations; the tail of one feature must not decide a prediction.
_FARTHEST = 6.0

Rows = Float[np.ndarray, "n *row"]
Labels = Shaped[np.ndarray, "n"]


@dataclass(frozen=True)
class FittedHead:
    """A trained network.

    Parameters
    ----------
    net
        In evaluation mode.
    result
        How training went.
    centre, scale
        Mean and standard deviation of the training targets of a regression, in its units.
    """

    net: nn.Module
    task: Task
    result: Finetuned
    centre: float = 0.0
    scale: float = 1.0

    def outputs(self, z: Rows) -> Float64[np.ndarray, "n outputs"]:
        """Logits, or standardised values.

        Computed in float64, so that a row's prediction does not depend on the rows beside it.
        """
        device = next(self.net.parameters()).device
        where = "cpu" if device.type == "mps" else device  # which knows no float64
        net = copy.deepcopy(self.net).to(where, torch.float64).eval()
        blocks = []
        with torch.no_grad():
            for first in range(0, len(z), _BLOCK):
                block = np.asarray(z[first : first + _BLOCK], np.float64)
                blocks.append(net(torch.from_numpy(block).to(where)).cpu().numpy())
        return np.concatenate(blocks)

    def scores(self, z: Rows) -> Float64[np.ndarray, "n *classes"]:
        """Probabilities [n, classes], or values [n] in the target's units."""
        raw = torch.from_numpy(self.outputs(z))
        if self.task == "regression":
            return self.centre + self.scale * raw[:, 0].numpy()
        if self.task == "binary":
            return torch.cat([-raw, raw], 1).sigmoid().numpy()
        return raw.softmax(1).numpy()

    def predict(self, z: Rows) -> Shaped[np.ndarray, "n"]:
        """Class numbers, or values in the target's units."""
        return decide(self.task, self.scores(z))


def fit_head(
    net: nn.Module,
    z: Rows,
    y: Labels,
    task: Task,
    config: TrainingConfig = TrainingConfig(),
    *,
    validation: tuple[Rows, Labels] | None = None,
    label: str = "head",
) -> FittedHead:
    """Train `net` in place with AdamW on a cosine, and keep the best validated epoch.

    On a CPU the outcome is a pure function of the arguments. Test rows are no business of this
    function: the official program validates on them, and who repeats that says so by passing them.

    Parameters
    ----------
    net
        [batch, *row] to [batch, outputs]: 1 output for two classes or a value.
    z
        Representations, raw columns, or whatever `net` reads; float32 or float64.
    y
        Classes 0, 1, ..., or values; values are standardised with the mean and the standard
        deviation of all of them.
    validation
        Rows and labels that choose the epoch; without, a share of the rows given is held out,
        stratified where every class has enough of them.
    label
        Stands before the progress bar.

    Raises
    ------
    DataError
        Rows and labels that do not fit each other, the task or the network; fewer than 3 rows, or
        2 with `validation`.
    RunError
        Training diverged before the first validation.
    """
    _check(z, y, task)
    centre, scale = 0.0, 1.0
    if task == "regression":
        centre, scale = float(np.mean(y)), float(np.std(y)) or 1.0
    if validation is None:
        train, held = hold_out(y, task, config.validation, config.seed)
        validation = z[held], y[held]
        z, y = z[train], y[train]
    _check(*validation, task)
    if len(z) < 2:
        raise DataError(f"n_samples={len(z)}: no network can be trained on that")

    source = _Source(z, (y - centre) / scale if task == "regression" else y)
    judge = _Source(
        validation[0],
        (validation[1] - centre) / scale if task == "regression" else validation[1],
    )
    module = _WithLoss(net, task)
    device = find_device(config.device)
    # Layers draw their dropout from torch's own generator, which belongs to the caller.
    cuda = [torch.cuda.current_device()] if device == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        train_it = _finetune if config.compat == "none" else _as_official
        result = train_it(module, source, judge, config, label)
    return FittedHead(net, task, result, centre, scale)


def hold_out(
    y: Labels, task: Task, share: float, seed: int
) -> tuple[Int64[np.ndarray, "train"], Int64[np.ndarray, "held"]]:
    """Row numbers to train on and to validate on; stratified where classes allow it.

    Raises
    ------
    DataError
        Fewer than 3 rows.
    """
    n = len(y)
    if n < 3:
        raise DataError(
            f"n_samples={n}: nothing can be held out for validation",
            remedy="give more rows, or validation rows",
        )
    held = min(max(1, round(share * n)), n - 2)
    strata = None
    if task != "regression":
        counts = np.unique(y, return_counts=True)[1]
        if counts.min() >= 2 and len(counts) <= min(held, n - held):
            strata = y
    train, validation = train_test_split(
        np.arange(n), test_size=held, random_state=seed, stratify=strata
    )
    return train, validation


def decide(task: Task, scores: Float[np.ndarray, "n *classes"]) -> Shaped[np.ndarray, "n"]:
    """The likeliest class of each row (the first of equals); values are their own decision."""
    return scores if task == "regression" else scores.argmax(1)


def metrics(
    task: Task,
    y: Labels,
    scores: Float[np.ndarray, "n *classes"],
    *,
    scale: float = math.nan,
) -> dict[str, float]:
    """What predictions are worth, over all of them at once.

    Classification: accuracy, balanced_accuracy; precision, recall and f1 weighted by class size;
    roc_auc (of several classes each against the rest, unweighted mean), NaN with a warning where
    the labels lack a class; log_loss in nats. Regression: rmse in the target's units,
    rmse_standardised, r2 (NaN with a warning for fewer than 2 rows).

    Parameters
    ----------
    scores
        Probabilities [n, classes], or values [n].
    scale
        Standard deviation of the training targets of a regression.
    """
    if task == "regression":
        rmse = float(root_mean_squared_error(y, scores))
        return {
            "rmse": rmse,
            "rmse_standardised": rmse / float(scale),
            "r2": float(r2_score(y, scores)),
        }
    decided, classes = decide(task, scores), np.arange(scores.shape[1])
    with warnings.catch_warnings():
        # A class that is predicted and not there counts as the wrong answer it is.
        warnings.filterwarnings("ignore", message="y_pred contains classes not in y_true")
        balanced = balanced_accuracy_score(y, decided)
    precision, recall, f1, _ = precision_recall_fscore_support(
        y, decided, average="weighted", zero_division=0
    )
    return {
        "accuracy": float(accuracy_score(y, decided)),
        "balanced_accuracy": float(balanced),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "roc_auc": _roc_auc(y, scores),
        "log_loss": float(log_loss(y, scores, labels=classes)),
    }


def _roc_auc(y: Labels, scores: Float[np.ndarray, "n classes"]) -> float:
    there, classes = len(np.unique(y)), scores.shape[1]
    if there < classes:
        warnings.warn(
            f"the labels have {there} of {classes} classes: ROC-AUC is not defined",
            UndefinedMetricWarning,
            stacklevel=3,
        )
        return math.nan
    if classes == 2:
        return float(roc_auc_score(y, scores[:, 1]))
    return float(roc_auc_score(y, scores, multi_class="ovr"))


def mlp_probe(
    train: Float[np.ndarray, "n dim"],
    y: Labels,
    test: Float[np.ndarray, "m dim"],
    task: Task,
    seed: int,
    *,
    classes: int | None = None,
) -> Float64[np.ndarray, "m *classes"]:
    """Scores of test rows by a small, well-regularised MLP (128, 64) with early stopping.

    The same everywhere, so that two inputs can be compared: features are standardised with the
    training rows and clipped at 6 standard deviations; a sixth of those rows chooses the epoch.

    Parameters
    ----------
    classes
        Number of classes; by default as many as `y` has, counted from 0.

    Returns
    -------
    ndarray
        Probabilities [m, classes], or values [m] in the target's units.
    """
    outputs = 1
    if task == "multiclass":
        outputs = int(y.max()) + 1 if classes is None else classes
    mean, std = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    std[std < 1e-6] = 1.0

    def standardised(x: Float[np.ndarray, "k dim"]) -> Float[np.ndarray, "k dim"]:
        return ((x - mean) / std).clip(-_FARTHEST, _FARTHEST).astype(np.float32)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(train.shape[1], 128),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(64, outputs),
        )
    config = TrainingConfig(
        learning_rate=2e-3, weight_decay=0.1, batch=256, validation=1 / 6, seed=seed, device="cpu"
    )
    return fit_head(net, standardised(train), y, task, config, label="MLP").scores(
        standardised(test)
    )


def _check(z: Rows, y: Labels, task: Task) -> None:
    if len(z) != len(y):
        raise DataError(f"{len(z)} rows have {len(y)} labels")
    if not len(z):
        raise DataError("n_samples=0: there are no rows")
    if not np.isfinite(y).all():
        raise DataError(f"{int((~np.isfinite(y)).sum())} labels are not numbers")
    if task == "regression":
        return
    if (y != np.floor(y)).any() or y.min() < 0:
        raise DataError("labels are no class numbers", remedy="number the classes from 0")
    if task == "binary" and y.max() > 1:
        raise DataError(f"a label is {y.max():g}", remedy="two classes are numbered 0 and 1")


class _Source:
    """Rows and labels as a `jepa_core.training.loader.Source`."""

    def __init__(self, z: Rows, y: Labels) -> None:
        self.z, self.y = z, y

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        return self.rows(draw.ids)

    def rows(self, ids: Int64[np.ndarray, " batch"] | slice) -> dict[str, Tensor]:
        z = np.ascontiguousarray(self.z[ids], np.float32)
        y = np.ascontiguousarray(self.y[ids], np.float32)
        return {"z": torch.from_numpy(z), "y": torch.from_numpy(y)}


class _WithLoss(nn.Module):
    def __init__(self, net: nn.Module, task: Task) -> None:
        super().__init__()
        self.net, self.task = net, task

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        out, y = self.net(batch["z"]).float(), batch["y"]
        if self.task == "multiclass":
            return {"loss": F.cross_entropy(out, y.long())}
        if self.task == "binary":
            return {"loss": F.binary_cross_entropy_with_logits(out[:, 0], y)}
        return {"loss": F.mse_loss(out[:, 0], y)}


@torch.no_grad()
def _mean_loss(module: nn.Module, source: _Source) -> float:
    """Over all rows, in evaluation mode."""
    device = next(module.parameters()).device
    total = 0.0
    for first in range(0, len(source), _BLOCK):
        batch = source.rows(slice(first, first + _BLOCK))
        batch = {name: value.to(device) for name, value in batch.items()}
        total += module(batch)["loss"].item() * len(batch["y"])
    return total / len(source)


def _finetune(
    module: nn.Module, source: _Source, judge: _Source, config: TrainingConfig, label: str
) -> Finetuned:
    epoch = max(1, len(source) // config.batch)
    recipe = FinetuneConfig(
        steps=config.epochs * epoch,
        batch=config.batch,
        learning_rate=config.learning_rate,
        final_learning_rate=0.0,
        weight_decay=config.weight_decay,
        clip_norm=None,
        validate_every=epoch,
        patience=config.patience * epoch,
        seed=config.seed,
        device=config.device,
    )
    return finetune(module, source, lambda: -_mean_loss(module, judge), recipe, label=label)


def _as_official(
    module: nn.Module, source: _Source, judge: _Source, config: TrainingConfig, label: str
) -> Finetuned:
    """The official loop: decay on everything, incomplete batches kept, the last weights kept."""
    device = torch.device(find_device(config.device))
    module.to(device)
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    starts = range(0, len(source), config.batch)
    if len(source) - starts[-1] == 1 and len(starts) > 1:
        starts = starts[:-1]  # a batch of one row has no batch statistics: the program crashes
    half = config.half_cosine or config.epochs * len(starts)
    order = torch.Generator().manual_seed(config.seed)
    torch.manual_seed(config.seed)
    best, history = Validation(0, math.nan, -math.inf), list[Validation]()
    step = 0
    for _ in range(config.epochs):
        module.train()
        ids = torch.randperm(len(source), generator=order).numpy()
        losses = []
        for start in starts:
            optimizer.param_groups[0]["lr"] = cosine_wave(step, half, config.learning_rate)
            batch = source.rows(ids[start : start + config.batch])
            loss = module({name: value.to(device) for name, value in batch.items()})["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            step += 1
        module.eval()
        now = Validation(step, torch.stack(losses).mean().item(), -_mean_loss(module, judge))
        history.append(now)
        if not math.isfinite(now.score):
            raise RunError(f"{label} diverged at step {step}", remedy="lower the learning rate")
        if now.score > best.score:
            best = now
        elif step - best.step >= config.patience * len(starts):
            return Finetuned(step, now.score, "patience", tuple(history))
    return Finetuned(step, now.score, "steps", tuple(history))


def cosine_wave(step: int, half: int, peak: float) -> float:
    """`peak` at step 0, 0 at step `half`, `peak` again at twice that, and so on."""
    return peak * (1 + math.cos(math.pi * step / half)) / 2
