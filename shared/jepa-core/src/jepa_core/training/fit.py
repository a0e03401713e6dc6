"""The training loop."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jepa_core import rng
from jepa_core.errors import Interrupted
from jepa_core.health import Verdict
from jepa_core.optim import adamw, decay_groups, set_hyperparameters
from jepa_core.run import Run
from jepa_core.sharded import whole
from jepa_core.training import FitConfig
from jepa_core.training.device import autocast_to_bfloat16, bfloat16_is_native, start
from jepa_core.training.interrupt import StopSignals
from jepa_core.training.keeper import Keeper
from jepa_core.training.loader import Batch, Loader, Source, to_device
from jepa_core.training.log import Journal
from jepa_core.training.sampler import Sampler
from jepa_core.training.watch import Watch

__all__ = ["FitConfig", "FitResult", "bfloat16_is_native", "fit"]


@dataclass(frozen=True)
class FitResult:
    """What a run came to."""

    step: int
    """Optimiser steps done; fewer than asked for when the loss stopped being finite."""
    chosen_step: int
    """The checkpoint to take, chosen without labels; `step` where there is no run folder."""
    alarm: Verdict
    """Alarm, warning, note and advice; without a health batch it knows of non-finite losses."""
    history: list[dict[str, Any]]
    """The lines of metrics.jsonl."""
    main: bool
    """Whether this is the first of the processes, the one that may write into the run folder."""


def fit(
    module: nn.Module,
    source: Source,
    sampler: Sampler,
    config: FitConfig,
    run: Run | None = None,
    *,
    learning_rate: Callable[[int], float],
    weight_decay: Callable[[int], float],
    groups: Sequence[dict[str, Any]] | None = None,
    clip_apart: Sequence[nn.Module] = (),
    health_batch: Batch | None = None,
    resume: bool = False,
) -> FitResult:
    """Train a JEPA.

    On a CPU the outcome is a pure function of the arguments: a run that was killed and resumed
    ends with the same bits. Several processes (`torchrun`, `accelerate launch`) end where one
    process with the whole batch does, up to rounding: losses are normalised by the terms of all
    processes and accumulated parts. Layers that draw (dropout) do so from (seed, step, process).

    Parameters
    ----------
    module
        `forward(batch)` gives a dict with the scalar "loss", a mean over the terms of its batch,
        and named 0-dim diagnostics. Optional: `after_step(step)`, called after the optimiser with
        the 0-based step (EMA), and `observe(batch)`, which gives an `Observation` of the health.
    source, sampler
        What there is to see, and who sees what when; `sampler.batch` is the global batch.
    config
        How to run.
    run
        Where checkpoints and metrics go; None keeps nothing.
    learning_rate, weight_decay
        Functions of the 0-based step.
    groups
        The optimiser's; by default those of `decay_groups`.
    clip_apart
        Parts of `module` whose gradients are clipped each by its own norm; by default the whole is
        clipped by one.
    health_batch
        A fixed batch for `observe`, the same in every process; None watches the loss alone.
    resume
        Continue from the last checkpoint, where there is one.

    Raises
    ------
    ConfigError
        A device, a tracker's folder or a division of the batch that is not to be had.
    RunError
        The folder cannot be written, was begun with another config, or the loss stopped being
        finite before there was anything to keep.
    Interrupted
        After Ctrl-C or SIGTERM, with the last step saved. A second Ctrl-C stops at once.
    """
    accelerator = start(config, run.path / "trackers" if run else None)
    device, rank = accelerator.device, accelerator.process_index
    low, why_not = autocast_to_bfloat16(config.precision, device.type)
    module = module.to(device).train()
    optimizer: torch.optim.Optimizer = adamw(
        groups or decay_groups(module), betas=config.betas, eps=config.eps
    )
    model, optimizer = _wrap(accelerator, module, optimizer)
    watched = to_device(health_batch, device) if health_batch is not None else None
    watch = Watch(module, watched, config.steps, config.health_every)
    keeper = Keeper(run, accelerator, module, optimizer, watch, config)
    first = keeper.begin(resume)
    loader = Loader(
        source,
        sampler,
        first=first,
        last=config.steps,
        rank=rank,
        world=accelerator.num_processes,
        accumulation=config.accumulation,
        workers=config.workers,
        pin=device.type == "cuda",
    )
    after_step = getattr(module, "after_step", None)
    done, broken = first, False

    with (
        loader,
        Journal(run, accelerator, config, first) as journal,
        StopSignals() as signals,
    ):
        if why_not:
            journal.say(why_not)
        if first == 0:
            _look(watch, journal, 0)
        for step, parts in loader:
            rate, decay = float(learning_rate(step)), float(weight_decay(step))
            set_hyperparameters(optimizer, rate, decay)
            _seed_layers(config.seed, step, rank)

            done = step + 1
            saving = done % config.checkpoint_every == 0 or done == config.steps
            logging = saving or done % config.log_every == 0
            totals: dict[str, Tensor] = {}
            for part, share, is_last in _weighed(accelerator, parts):
                with contextlib.nullcontext() if is_last else accelerator.no_sync(model):
                    with torch.autocast(device.type, torch.bfloat16, enabled=low):
                        output = model(to_device(part, device))
                    (output["loss"] * share).backward()
                if logging:
                    _add(totals, output, share)
            norm = None
            if config.clip_norm or logging:
                norm = _clip(clip_apart or (module,), config.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            if after_step is not None:
                after_step(step)

            stopping = signals.received and accelerator.num_processes == 1
            if norm is not None and logging:
                values, stopping = _read(accelerator, totals, norm, signals.received)
                values |= {"learning_rate": rate, "weight_decay": decay} | loader.lap()
                journal.metrics(done, values)
                broken = not math.isfinite(values["loss"])
            if broken or saving or watch.due(done):
                broken = _look(watch, journal, done, lost=broken)
            journal.progress.update(done, f"loss {values['loss']:.4g}" if logging else "")
            if broken:
                journal.say(f"stopped at step {done}: weights that are not finite cannot recover")
                break
            if saving or stopping:
                keeper.save(done, due=saving)
            if stopping:
                raise Interrupted(
                    f"stopped after step {done} of {config.steps}",
                    remedy="--resume continues" if run else "without --out nothing is kept",
                )

    chosen = keeper.conclude(done, broken=broken)
    return FitResult(done, chosen, watch.verdict, journal.history, accelerator.is_main_process)


def _wrap(
    accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The module as the processes share it, and the optimiser of its parameters."""
    if getattr(accelerator, "is_fsdp2", False):
        # Sharding replaces the parameters, so the optimiser must come along.
        model, wrapped = accelerator.prepare(module, optimizer)
        return model, wrapped.optimizer
    model = accelerator.prepare(module)
    if isinstance(model, DistributedDataParallel):
        # The target encoder may keep statistics of its own in buffers. Set here, because accelerate
        # passes on the name that later versions of torch (2.15) warn of.
        later = hasattr(model, "forward_sync_buffers")
        setattr(model, "forward_sync_buffers" if later else "broadcast_buffers", False)
    return model, optimizer


def _seed_layers(seed: int, step: int, rank: int) -> None:
    """Make what layers draw in this step (dropout) a function of (seed, step, process)."""
    low, high = rng.words(seed, "layers", np.array([step]), rank, 2)[0].tolist()
    torch.manual_seed(high << 32 | low)


def _weighed(
    accelerator: Accelerator, parts: Sequence[Batch]
) -> Iterator[tuple[Batch, Tensor | float, bool]]:
    """Each part, its share of the step's loss, and whether it is the last.

    A loss is a mean over the terms of its own part. Times their count, over the count in all parts
    of all processes, the parts sum to the mean over the global batch. The number of processes
    comes in because gradients are averaged over them.
    """
    counts = [int(part["count"]) for part in parts if "count" in part]
    shares: list[Tensor | float] = [1 / len(parts)] * len(parts)
    if counts:
        total = torch.tensor(sum(counts), dtype=_precise(accelerator)).to(
            accelerator.device, non_blocking=True
        )
        total = accelerator.reduce(total, "sum").clamp(min=1)
        shares = [count * accelerator.num_processes / total for count in counts]
    for i, (part, share) in enumerate(zip(parts, shares, strict=True)):
        yield part, share, i == len(parts) - 1


def _add(totals: dict[str, Tensor], output: Mapping[str, Tensor], share: Tensor | float) -> None:
    """Add a part's loss and diagnostics to the step's; stays on the device."""
    for name, value in output.items():
        if value.ndim == 0:
            weighed = value.detach() * share
            totals[name] = totals[name] + weighed if name in totals else weighed


def _clip(parts: Sequence[nn.Module], largest: float | None) -> Float[Tensor, ""]:
    """The norm of the gradient; that of each part is at most `largest` afterwards."""
    norms = []
    for part in parts:
        parameters = [p for p in part.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if largest is not None:
            nn.utils.clip_grads_with_norm_(parameters, largest, norm)
        norms.append(whole(norm))
    return torch.linalg.vector_norm(torch.stack(norms))


def _read(
    accelerator: Accelerator, totals: Mapping[str, Tensor], norm: Tensor, stop: bool
) -> tuple[dict[str, float], bool]:
    """The step's means over all processes, and whether any of them is to stop: one host read."""
    named = {**totals, "grad_norm": norm, "stop": torch.tensor(float(stop)).to(norm.device)}
    stacked = torch.stack([value.to(_precise(accelerator)) for value in named.values()])
    values = dict(zip(named, accelerator.reduce(stacked, "mean").tolist(), strict=True))
    return values, values.pop("stop") > 0


def _precise(accelerator: Accelerator) -> torch.dtype:
    return torch.float32 if accelerator.device.type == "mps" else torch.float64


def _look(watch: Watch, journal: Journal, step: int, *, lost: bool = False) -> bool:
    """Look at the health, write it down and say what is new; whether the run is beyond help."""
    before = watch.verdict
    values = {} if lost else watch.look(step)
    if lost:
        watch.lost(step)
    if values:
        journal.metrics(step, {f"health/{name}": value for name, value in values.items()})
    for line in watch.news(before):
        journal.say(line)
    return lost or not all(math.isfinite(values.get(name, 0)) for name in ("signal", "unexplained"))
