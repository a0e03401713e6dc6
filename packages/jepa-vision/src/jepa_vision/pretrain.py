"""Pre-training: a recipe and images in, an encoder out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jepa_core.domain import Machine
from jepa_core.optim import exempt_groups
from jepa_core.run import Run
from jepa_core.schedules import cosine_past_end, wd_cosine
from jepa_core.training import FitConfig, checkpoint
from jepa_core.training.fit import FitResult, fit
from jepa_core.training.sampler import Epochs
from jepa_vision.data.images import Images
from jepa_vision.head import AggregationHead, PaperHead
from jepa_vision.model import ImageEncoder, ImageJEPA, build_head
from jepa_vision.presets import PretrainConfig
from jepa_vision.source import ImageSource

Head = AggregationHead | PaperHead


@dataclass(frozen=True)
class Pretrained:
    """What pre-training gives.

    Parameters
    ----------
    encoder, head
        Target encoder of the checkpoint chosen without labels, and the target head (None for
        I-JEPA and for pooled targets).
    module
        The whole module as the last step left it.
    result
        How the run went.
    """

    encoder: ImageEncoder
    head: Head | None
    module: nn.Module
    result: FitResult


def schedules(
    config: PretrainConfig, steps: int, warmup: int
) -> tuple[Callable[[int], float], Callable[[int], float]]:
    """Learning rate and weight decay of each step, from 0; the official programs count from 1."""

    def learning_rate(step: int) -> float:
        return cosine_past_end(
            step + 1,
            steps,
            warmup,
            config.initial_learning_rate,
            config.learning_rate,
            config.final_learning_rate,
            config.schedule_stretch,
        )

    def weight_decay(step: int) -> float:
        total = steps * config.schedule_stretch
        return wd_cosine(step + 1, total, config.weight_decay, config.final_weight_decay)

    return learning_rate, weight_decay


def groups(module: nn.Module) -> list[dict[str, Any]]:
    """The official programs' two groups: biases and one-dimensional parameters do not decay.

    The mask token, stored with three dimensions, does.
    """

    def exempt(name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim == 1 or "bias" in name

    return exempt_groups(module, exempt)


def pretrain(
    images: Images,
    config: PretrainConfig,
    *,
    machine: Machine = Machine(),
    run: Run | None = None,
    resume: bool = False,
    workers: int = 0,
    trackers: tuple[str, ...] = (),
    module: nn.Module | None = None,
    health_every: int = 0,
) -> Pretrained:
    """Train an encoder without labels.

    Parameters
    ----------
    images
        What to learn from.
    config
        The recipe.
    machine
        Seed, device, precision, threads. The seed fixes initial weights, crops, masks and order.
    run
        Where checkpoints, metrics and health go; None keeps nothing.
    module
        What to train instead of `ImageJEPA`: a rival with an `encoder` and the same batches.
    health_every
        Steps between two looks at the health of the run; 0 spaces 50 equally.

    Raises
    ------
    ConfigError
        Fewer images than a batch.
    """
    steps, warmup = config.length(len(images))
    if module is None:
        module = untrained(config, machine.seed, steps)
    source = ImageSource(images, config, seed=machine.seed)
    learning_rate, weight_decay = schedules(config, steps, warmup)
    result = fit(
        module,
        source,
        Epochs(len(images), config.batch_size, machine.seed, drop_last=True),
        FitConfig(
            steps=steps,
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
            health_every=health_every,
            trackers=trackers,  # type: ignore[arg-type]
        ),
        run,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        groups=groups(module),
        health_batch=source.health_batch(),
        resume=resume,
    )
    state = (
        {name: value.detach().cpu() for name, value in module.state_dict().items()}
        if run is None
        else checkpoint.read_weights(run.checkpoints, result.chosen_step)
    )
    return Pretrained(*read_parts(config, state), module, result)


def untrained(config: PretrainConfig, seed: int, steps: int = 1) -> ImageJEPA:
    """The module at its initial weights, a pure function of recipe and seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ImageJEPA(config, steps)


def checkpoint_parts(
    config: PretrainConfig, run: Run, step: int
) -> tuple[ImageEncoder, Head | None]:
    """Target encoder and target head of one checkpoint of a run."""
    return read_parts(config, checkpoint.read_weights(run.checkpoints, step))


def read_parts(
    config: PretrainConfig, state: Mapping[str, Tensor]
) -> tuple[ImageEncoder, Head | None]:
    """Target encoder and head of a module's state (encoder and head, of a rival without them)."""
    average = any(name.startswith("target_encoder.") for name in state)
    encoder = ImageEncoder(config.model)
    encoder.load_state_dict(_below("target_encoder." if average else "encoder.", state))
    head = build_head(config)
    if head is not None:
        head.load_state_dict(_below("target_head." if average else "head.", state))
        head.eval()
    return encoder.eval(), head


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
