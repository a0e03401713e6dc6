"""Pre-training: a recipe and records in, an encoder out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jepa_core.domain import Machine
from jepa_core.errors import ConfigError
from jepa_core.run import Run
from jepa_core.schedules import cosine_to_last
from jepa_core.training import FitConfig, checkpoint
from jepa_core.training.fit import FitResult, fit
from jepa_core.training.sampler import Mixture
from jepa_ecg.model import ECGJEPA, ECGEncoder
from jepa_ecg.presets import PretrainConfig
from jepa_ecg.source import ECGSource, Signals


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

    encoder: ECGEncoder
    module: nn.Module
    result: FitResult


def schedules(
    config: PretrainConfig,
) -> tuple[Callable[[int], float], Callable[[int], float]]:
    """Learning rate and weight decay of each step, from 0."""

    def learning_rate(step: int) -> float:
        return cosine_to_last(
            step,
            config.steps,
            config.warmup_steps,
            config.initial_learning_rate,
            config.learning_rate,
            config.final_learning_rate,
        )

    def weight_decay(step: int) -> float:
        return cosine_to_last(
            step, config.steps, 0, 0.0, config.weight_decay, config.final_weight_decay
        )

    return learning_rate, weight_decay


def mixture(config: PretrainConfig, sizes: Mapping[str, int], *, seed: int) -> Mixture:
    """Who is drawn: a source by its weight, then one of its records, with replacement.

    Parameters
    ----------
    sizes
        Records of each source, in the order in which the signals are numbered.

    Raises
    ------
    ConfigError
        The recipe names a source that the corpus lacks, or gives none of its sources a weight.
    """
    if not config.databases:
        return Mixture((sum(sizes.values()),), (1.0,), config.batch_size, seed)
    absent = [name for name, weight in config.databases.items() if weight and name not in sizes]
    if absent:
        raise ConfigError(
            f"databases names {', '.join(absent)}, which the corpus lacks",
            remedy=f"it holds {', '.join(sizes)}; set --databases or take a preset without weights",
        )
    weights = [config.databases.get(name, 0.0) for name in sizes]
    total = sum(weights)
    if total <= 0:
        raise ConfigError(
            "databases gives no source of the corpus a weight",
            remedy=f"set --databases for some of {', '.join(sizes)}",
        )
    shares = tuple(weight / total for weight in weights)
    return Mixture(tuple(sizes.values()), shares, config.batch_size, seed)


def pretrain(
    signals: Signals,
    config: PretrainConfig,
    *,
    machine: Machine = Machine(),
    run: Run | None = None,
    sizes: Mapping[str, int] | None = None,
    resume: bool = False,
    workers: int = 0,
    trackers: tuple[str, ...] = (),
    module: nn.Module | None = None,
) -> Pretrained:
    """Train an encoder without labels.

    Parameters
    ----------
    signals
        Normalised records, numbered source by source.
    config
        The recipe.
    machine
        Seed, device, precision, threads. The seed fixes initial weights, crops, masks and order.
    run
        Where checkpoints, metrics and health go; None keeps nothing.
    sizes
        Records of each source; None means one source.
    module
        What to train instead of `ECGJEPA(config)`: a rival with an `encoder` and the same batches.
    """
    if module is None:
        module = untrained(config, machine.seed)
    source = ECGSource(signals, config, seed=machine.seed)
    learning_rate, weight_decay = schedules(config)
    result = fit(
        module,
        source,
        mixture(config, sizes or {"all": len(signals)}, seed=machine.seed),
        FitConfig(
            steps=config.steps,
            accumulation=config.accumulation,
            seed=machine.seed,
            device=machine.device,
            precision=machine.precision,
            threads=machine.threads,
            workers=workers,
            clip_norm=config.clip_norm or None,
            betas=config.betas,
            eps=config.eps,
            checkpoint_every=config.checkpoint_every,
            trackers=trackers,  # type: ignore[arg-type]
        ),
        run,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        health_batch=source.health_batch(),
        resume=resume,
    )
    return Pretrained(_chosen(module, config, run, result), module, result)


def untrained(config: PretrainConfig, seed: int) -> ECGJEPA:
    """The module at its initial weights, a pure function of recipe and seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ECGJEPA(config)


def checkpoint_encoder(config: PretrainConfig, run: Run, step: int) -> ECGEncoder:
    """The target encoder of one checkpoint of a run (the encoder, for a rival without one)."""
    return _encoder(config, checkpoint.read_weights(run.checkpoints, step))


def final_encoder(module: nn.Module, config: PretrainConfig) -> ECGEncoder:
    """The target encoder as the last step left it (the encoder, for a rival without one)."""
    state = {name: value.detach().cpu() for name, value in module.state_dict().items()}
    return _encoder(config, state)


def _chosen(
    module: nn.Module, config: PretrainConfig, run: Run | None, result: FitResult
) -> ECGEncoder:
    if run is None:
        return final_encoder(module, config)
    return checkpoint_encoder(config, run, result.chosen_step)


def _encoder(config: PretrainConfig, state: Mapping[str, Tensor]) -> ECGEncoder:
    has_target = any(name.startswith("target_encoder.") for name in state)
    prefix = "target_encoder." if has_target else "encoder."
    encoder = ECGEncoder(config.model)
    encoder.load_state_dict(
        {
            name.removeprefix(prefix): value
            for name, value in state.items()
            if name.startswith(prefix)
        }
    )
    return encoder.eval()
