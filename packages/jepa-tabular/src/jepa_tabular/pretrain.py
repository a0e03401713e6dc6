"""Pre-training: a recipe and encoded rows in, an encoder out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from jepa_core.domain import Machine
from jepa_core.optim import exempt_groups
from jepa_core.run import Run
from jepa_core.schedules import cosine_past_end, wd_cosine
from jepa_core.training import FitConfig, checkpoint
from jepa_core.training.fit import FitResult, fit
from jepa_core.training.sampler import Epochs, Sampler
from jepa_tabular.model import TJEPA, TabularEncoder, decayed
from jepa_tabular.presets import PretrainConfig, TableShape
from jepa_tabular.source import FileOrder, Rows, TableSource


@dataclass(frozen=True)
class Pretrained:
    """What pre-training gives.

    Parameters
    ----------
    encoder
        The target encoder of the checkpoint chosen without labels.
    module
        The whole module as the last step left it.
    result
        How the run went.
    """

    encoder: TabularEncoder
    module: TJEPA
    result: FitResult


def schedules(
    config: PretrainConfig,
) -> tuple[Callable[[int], float], Callable[[int], float]]:
    """Learning rate and weight decay of each step, from 0.

    Officially the first update has AdamW's defaults, and each later one the values of its step:
    the program sets them after the step before.
    """

    official = config.compat == "official"

    def learning_rate(step: int) -> float:
        if official and step == 0:
            return 1e-3
        return cosine_past_end(
            # One step on, so that neither the first update nor the last is by a rate of 0.
            step if official else step + 1,
            config.steps if official else config.steps + 1,
            config.warmup_steps,
            config.initial_learning_rate,
            config.learning_rate,
            config.final_learning_rate,
        )

    def weight_decay(step: int) -> float:
        if official and step == 0:
            return 0.01
        return wd_cosine(step, config.steps, config.weight_decay, config.final_weight_decay)

    return learning_rate, weight_decay


def pretrain(
    x: Rows,
    config: PretrainConfig,
    shape: TableShape,
    *,
    machine: Machine = Machine(),
    run: Run | None = None,
    resume: bool = False,
    workers: int = 0,
    trackers: tuple[str, ...] = (),
    module: TJEPA | None = None,
    health_every: int = 0,
) -> Pretrained:
    """Train an encoder without labels.

    Parameters
    ----------
    x
        Encoded rows [rows, columns] of the table `shape`.
    config
        The recipe; a batch larger than the table is the whole table.
    machine
        Seed, device, precision, threads. The seed fixes initial weights, masks and order.
    run
        Where checkpoints, metrics and health go; None keeps nothing.
    module
        Where to start instead of at `untrained(...)`.
    health_every
        Steps between two looks at the health; 0 spaces 50 equally.
    """
    if module is None:
        module = untrained(config, shape, machine.seed)
    source = TableSource(x, config, shape, seed=machine.seed)
    sampler: Sampler
    if config.compat == "official":
        sampler = FileOrder(len(source), config.batch_size)
    else:
        sampler = Epochs(len(source), min(config.batch_size, len(source)), machine.seed)
    learning_rate, weight_decay = schedules(config)
    clip = config.clip_norm if config.clip_norm and config.compat != "official" else None
    result = fit(
        module,
        source,
        sampler,
        FitConfig(
            steps=config.steps,
            accumulation=config.accumulation,
            seed=machine.seed,
            device=machine.device,
            precision=machine.precision,
            threads=machine.threads,
            workers=workers,
            clip_norm=clip,
            betas=config.betas,
            eps=config.eps,
            checkpoint_every=config.checkpoint_every,
            health_every=health_every,
            trackers=trackers,  # type: ignore[arg-type]
        ),
        run,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        groups=decay_groups(module),
        # Their gradients differ a hundredfold: together the predictor's alone would set the norm.
        clip_apart=(module.encoder, module.predictor),
        health_batch=source.health_batch(),
        resume=resume,
    )
    return Pretrained(_chosen(module, config, run, result), module, result)


def untrained(config: PretrainConfig, shape: TableShape, seed: int) -> TJEPA:
    """The module at its initial weights, a pure function of recipe, table and seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TJEPA(config, shape)


def decay_groups(module: nn.Module) -> list[dict[str, object]]:
    """Matrices with weight decay, mask token and category tables included; all else without."""
    return exempt_groups(module, lambda name, parameter: not decayed(name, parameter))


def _chosen(
    module: TJEPA, config: PretrainConfig, run: Run | None, result: FitResult
) -> TabularEncoder:
    """The target encoder of the checkpoint that the health of the run speaks for."""
    if run is None:
        return final_encoder(module)
    return checkpoint_encoder(config, module.shape, run, result.chosen_step)


def checkpoint_encoder(
    config: PretrainConfig, shape: TableShape, run: Run, step: int
) -> TabularEncoder:
    """The target encoder of one checkpoint of a run."""
    prefix = "target_encoder."
    state = checkpoint.read_weights(run.checkpoints, step)
    encoder = TabularEncoder(config.model, shape)
    encoder.load_state_dict(
        {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
    )
    return encoder.eval()


def final_encoder(module: TJEPA) -> TabularEncoder:
    """A copy of the target encoder as the last step left it, on the CPU."""
    encoder = TabularEncoder(module.config.model, module.shape)
    encoder.load_state_dict(module.target_encoder.state_dict())
    return encoder.eval()
