"""Runs whose fate is known: healthy recipes, and failures planted at a known step.

Trains what `benchmarks.health` judges; a run is kept as the series of its health and its probes.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor, nn

from jepa_core.evaluation.linear import ridge
from jepa_core.evaluation.metrics import accuracy, macro_auc, one_hot
from jepa_core.health.quantities import Observation, linear_cka, quantities
from jepa_core.losses import l1, mse
from jepa_core.optim import adamw, decay_groups, set_hyperparameters
from jepa_core.schedules import linear
from jepa_ecg.model import ECGJEPA
from jepa_ecg.presets import NANO, ModelConfig, PretrainConfig
from jepa_ecg.pretrain import mixture, schedules, untrained
from jepa_ecg.source import ArraySignals, ECGSource

ROOT = Path(__file__).resolve().parents[1]
LOOKS = 50  # health evaluations in a run, beside the one at step 0
PROBES = 5  # probes in a run, beside the one at step 0


# --- what is trained, and how it is broken


@dataclass(frozen=True)
class Plan:
    """One run; `failure` is the letter of what breaks at the share `onset` of the run."""

    study: str
    recipe: str
    seed: int
    config: PretrainConfig
    loss: Callable[..., Tensor]
    failure: str = ""
    onset: float = 0.0
    end: float = 1.0
    """Share of the run after which nothing is left to see."""

    def broken(self, step: int) -> str:
        """The failure in force at `step`, if any."""
        return self.failure if step >= self.onset * self.config.steps else ""


FAILURES = {
    "A": "no stop-gradient, no EMA, no predictor (the mean of the context stands for it)",
    "A2": "no stop-gradient, no EMA",
    "B": "no EMA, learning rate x 100",
    "C": "constant data",
    "C2": "the reader breaks: the same record again and again",
    "D": "weight decay 20",
    "E": "the stop-gradient is lost, the target is the online encoder",
    "F": "learning rate x 100",
}
ONSETS = {"D": 0.38, "C2": 0.42, "E": 0.46, "F": 0.5}  # the others are broken from the start

ECG = replace(NANO, steps=500, warmup_steps=50)
DIGITS = PretrainConfig(
    model=ModelConfig(
        leads=("image",),
        fs=1.0,
        samples=64,
        patch=4,
        dim=32,
        depth=2,
        heads=4,
        predictor_dim=32,
        predictor_depth=2,
        predictor_heads=4,
        registers=0,
        bias=True,
        qkv_bias=True,
        patch_init="fan-in",
        target_norm=True,
    ),
    keep=(0.4, 0.6),
    min_block=1,
    circular=True,
    steps=500,
    batch_size=32,
    learning_rate=3e-3,
    final_learning_rate=0.0,
    warmup_steps=50,
    momentum=0.95,
    final_momentum=0.995,
)


def plans(study: str, seed: int, quick: bool = False) -> list[Plan]:
    """Healthy recipes and planted failures of one seed."""
    base, loss, other_loss = {"ecg": (ECG, l1, mse), "digits": (DIGITS, mse, l1)}[study]
    if quick:
        base = replace(base, steps=20, warmup_steps=2)
    init: Literal["fixed", "fan-in"] = "fan-in" if base.model.patch_init == "fixed" else "fixed"
    low, high = base.keep
    long = base.steps * 5 // 2
    healthy = {
        "default": base,
        "learning rate x 3": replace(base, learning_rate=3 * base.learning_rate),
        f"loss {other_loss.__name__}": base,
        "EMA 0.9": replace(base, momentum=0.9, final_momentum=0.9),
        "narrow context": replace(base, keep=(low / 2, high / 2)),
        "wide context": replace(base, keep=(low + 0.2, high + 0.2)),
        f"patch map {init}": replace(base, model=replace(base.model, patch_init=init)),
        "half the batch": replace(base, batch_size=base.batch_size // 2),
        "weight decay x 10": replace(base, weight_decay=0.1, final_weight_decay=1.0),
        "short": replace(base, steps=base.steps * 3 // 5, warmup_steps=base.warmup_steps * 3 // 5),
        "long": replace(base, steps=long, warmup_steps=base.warmup_steps * 5 // 2),
    }
    found = [
        Plan(study, name, seed, config, other_loss if name.startswith("loss") else loss)
        for name, config in healthy.items()
    ]
    if study == "ecg":
        crops = replace(base, model=replace(base.model, samples=1000), batch_size=64, min_block=2)
        crops = replace(crops, keep=(0.15, 0.25), steps=300, warmup_steps=30)
        found.append(Plan(study, "10 s crops, to 40 %", seed, crops, loss, end=0.4))
    for letter in FAILURES:
        onset = ONSETS.get(letter, 0.0)
        end = 1.0 if onset else 0.5
        found.append(Plan(study, letter, seed, base, loss, failure=letter, onset=onset, end=end))
    return found


def data_folder(domain: str) -> Path:
    return Path(os.environ.get("JEPA_DATA", ROOT.parent / "shared" / "data")) / domain


@dataclass(frozen=True)
class Data:
    """Normalised signals, which of them train, and what probes are judged by."""

    signals: Float32[np.ndarray, "records leads samples"]
    train: Bool[np.ndarray, " records"]
    labels: Int64[np.ndarray, "records classes"]
    labelled: Bool[np.ndarray, " records"]
    score: Callable[[np.ndarray, np.ndarray], float]


@cache
def ecg() -> Data:
    """500 records of PTB-XL; folds 1-8 train, 9 and 10 test; superclasses."""
    folder = data_folder("ecg")
    stored = np.load(folder / "ptbxl500_lr.npz")
    truth = np.load(folder / "golden_ptbxl_labels.npz")
    signals = np.cumsum(stored["delta"], axis=-1, dtype=np.int16) / float(stored["gain"])
    train = truth["all/fold"] <= 8
    mean = signals[train].mean(axis=(0, 2), keepdims=True)
    std = signals[train].std(axis=(0, 2), keepdims=True)
    y = truth["superdiagnostic/y"]
    labels = np.zeros((len(signals), y.shape[1]), np.int64)
    rows = np.searchsorted(stored["ecg_id"], truth["superdiagnostic/ecg_id"])
    labels[rows] = y
    labelled = np.isin(np.arange(len(signals)), rows)
    scaled = ((signals - mean) / std).clip(-5, 5).astype(np.float32)
    return Data(scaled, train, labels, labelled, lambda y, s: macro_auc(y, s).macro)


@cache
def digits() -> Data:
    """1,797 digits as 16 patches of 2x2 pixels in raster order; the first 1,200 train."""
    from sklearn.datasets import load_digits

    images, y = load_digits(return_X_y=True)
    pixels = (images - images.mean()) / images.std()
    patches = pixels.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 1, 64)
    return Data(
        patches.astype(np.float32),
        np.arange(len(y)) < 1200,
        one_hot(y, 10).astype(np.int64),
        np.ones(len(y), np.bool_),
        lambda y, s: accuracy(y.argmax(1), s),
    )


DATA = {"ecg": ecg, "digits": digits}


# --- one run and its series


@dataclass
class Trial:
    """A run under way; a deep copy of it goes on as another run would."""

    module: ECGJEPA
    optimizer: torch.optim.Optimizer
    step: int = 0
    series: dict[str, list[float]] = field(default_factory=dict)
    pooled: Tensor | None = None
    since: list[tuple[float, float]] = field(default_factory=list)


class Study:
    """The data of a study and its batches under one plan."""

    def __init__(self, plan: Plan) -> None:
        self.data = DATA[plan.study]()
        signals = ArraySignals(self.data.signals[self.data.train])
        self.source = ECGSource(signals, plan.config, seed=plan.seed)
        self.sampler = mixture(plan.config, {"all": len(signals)}, seed=plan.seed)
        self.health = self.source.health_batch(samples=128, views=4)
        self.stuck = self.health["signal"][:1]
        if plan.failure == "C":
            self.health["signal"] = self.stuck.expand_as(self.health["signal"])

    def batch(self, step: int, broken: str) -> dict[str, Tensor]:
        batch = self.source.batch(self.sampler.draw(step))
        if broken in ("C", "C2"):
            batch["signal"] = self.stuck.expand_as(batch["signal"])
        return batch

    @torch.no_grad()
    def probe(self, module: ECGJEPA) -> float:
        """Ridge on pooled features of the target encoder, trained on labelled training records."""
        size = module.config.model.samples
        whole = self.data.signals.shape[2] // size * size
        halves = torch.from_numpy(self.data.signals[:, :, :whole]).unflatten(2, (-1, size))
        crops = halves.transpose(1, 2).flatten(0, 1)
        features = torch.cat([module.targets(part).mean(1) for part in crops.split(128)]).double()
        rows = features.unflatten(0, (-1, halves.shape[2])).mean(1).numpy()
        if not np.isfinite(rows).all():
            return math.nan
        train, test = (self.data.labelled & part for part in (self.data.train, ~self.data.train))
        scores = ridge(rows[train], self.data.labels[train].astype(np.float64)).scores(rows[test])
        return self.data.score(self.data.labels[test], scores)


def begin(plan: Plan) -> Trial:
    module = untrained(plan.config, plan.seed)
    config = plan.config
    return Trial(module, adamw(decay_groups(module), betas=config.betas, eps=config.eps))


def advance(trial: Trial, plan: Plan, study: Study, share: float) -> Trial:
    """Train on, with a look at every fiftieth of the run, to the given share of it."""
    config, module = plan.config, trial.module
    learning_rate, weight_decay = schedules(config)
    looks = {round(i * config.steps / LOOKS): i for i in range(LOOKS + 1)}
    last = round(share * config.steps)
    if not trial.series:
        look(trial, study, 0)
    while trial.step < last:
        step, broken = trial.step, plan.broken(trial.step)
        rate = learning_rate(step) * (100 if broken in ("B", "F") else 1)
        set_hyperparameters(trial.optimizer, rate, 20.0 if broken == "D" else weight_decay(step))
        loss = losses(module, study.batch(step, broken), plan.loss, broken)
        loss.backward()
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        trial.since.append((loss.item(), nn.utils.get_total_norm(gradients).item()))
        trial.optimizer.step()
        trial.optimizer.zero_grad()
        momentum = linear(step, config.steps, config.momentum, config.final_momentum)
        module.ema.update(0.0 if broken in ("A", "A2", "B", "E") else float(momentum))
        trial.step += 1
        if trial.step in looks:
            look(trial, study, looks[trial.step], broken)
            if not math.isfinite(trial.series["unexplained"][-1]):
                break
    return trial


def losses(
    module: ECGJEPA, batch: Mapping[str, Tensor], loss: Callable[..., Tensor], broken: str
) -> Tensor:
    signal, hidden = batch["signal"], batch["target"]
    if broken in ("A", "A2", "E"):
        target = module.encoder(signal, rows=hidden)
        target = nn.functional.layer_norm(target, target.shape[-1:], eps=1e-6)
    else:
        target = module.targets(signal, hidden)
    return loss(predict(module, batch, broken), target)


def predict(module: ECGJEPA, batch: Mapping[str, Tensor], broken: str) -> Tensor:
    if broken != "A":
        return module.predict(batch["signal"], batch["context"], batch["target"])
    pooled = module.encoder(batch["signal"], batch["context"]).mean(1, keepdim=True)
    return pooled.expand(-1, batch["target"].shape[1], -1)


@torch.no_grad()
def look(trial: Trial, study: Study, index: int, broken: str = "") -> None:
    """Append every quantity of one health evaluation to the series of the run."""
    module, batch = trial.module, study.health
    signal, hidden = batch["signal"], batch["target"]
    tokens = module.targets(signal)
    views = [module.encoder(signal[: len(v)], v).mean(1) for v in batch["views"].unbind(1)]
    values = quantities(
        Observation(
            tokens=tokens,
            prediction=predict(module, batch, broken),
            target=tokens.gather(1, hidden[..., None].expand(-1, -1, tokens.shape[-1])),
            positions=hidden,
            views=torch.stack(views, 1),
        )
    )
    online = module.encoder(signal[:64])
    online = nn.functional.layer_norm(online, online.shape[-1:], eps=1e-6)
    spread = (tokens[:64] - tokens[:64].mean(0)).square().sum().clamp_min(1e-12)
    values["gap"] = ((online - tokens[:64]).square().sum() / spread).item()
    pooled = tokens.mean(1)
    values["drift"] = math.nan if trial.pooled is None else 1 - linear_cka(trial.pooled, pooled)
    trial.pooled = pooled
    matrices = [p for p in module.encoder.parameters() if p.ndim > 1]
    values["weights"] = nn.utils.get_total_norm(matrices).item()
    means = np.mean(trial.since, axis=0) if trial.since else (math.nan, math.nan)
    values["loss"], values["gradient"] = float(means[0]), float(means[1])
    trial.since = []
    values["step"] = trial.step
    values["probe"] = study.probe(module) if index % (LOOKS // PROBES) == 0 else math.nan
    for name, value in values.items():
        trial.series.setdefault(name, []).append(value)


def record(plan: Plan, trial: Trial) -> dict[str, Any]:
    """What is kept of a run."""
    return {
        **{"study": plan.study, "recipe": plan.recipe, "seed": plan.seed},
        **{"failure": plan.failure, "total": plan.config.steps},
        "onset": round(plan.onset * plan.config.steps) if plan.failure else -1,
        "series": trial.series,
    }


def run(group: Sequence[Plan]) -> list[dict[str, Any]]:
    """The runs of a group, which are one run up to the first onset."""
    torch.set_num_threads(1)
    group = sorted(group, key=lambda plan: plan.onset if plan.failure else 1.0)
    trial, found = begin(group[0]), []
    for plan in group:
        study = Study(plan)
        if plan.failure:
            trial = advance(trial, replace(plan, failure=""), study, plan.onset)
        branch = copy.deepcopy(trial)
        found.append(record(plan, advance(branch, plan, study, plan.end)))
    return found


def groups(study: str, seed: int, quick: bool) -> Iterator[list[Plan]]:
    """The plans of a seed; late failures go with the healthy run that they were until then."""
    everything = plans(study, seed, quick)
    yield [plan for plan in everything if plan.onset or plan.recipe == "default"]
    yield from ([plan] for plan in everything if not plan.onset and plan.recipe != "default")
