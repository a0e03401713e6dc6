"""The run folder while it trains: what it begins with, what is kept, how it ends."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from jepa_core.config import to_dict
from jepa_core.errors import RunError
from jepa_core.run import Run, must_equal
from jepa_core.training import FitConfig, checkpoint
from jepa_core.training.watch import Watch


class Keeper:
    """Saves and restores a run; without a folder it does nothing.

    With several processes every method is to be called by all of them; the first one writes.
    """

    def __init__(
        self,
        run: Run | None,
        accelerator: Accelerator,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        watch: Watch,
        config: FitConfig,
    ) -> None:
        self._run, self._accelerator, self._config = run, accelerator, config
        self._module, self._optimizer, self._watch = module, optimizer, watch
        self._sharded = bool(getattr(accelerator, "is_fsdp2", False))

    def begin(self, resume: bool) -> int:
        """Make the folder ready and restore its last checkpoint; gives the steps done.

        Raises
        ------
        RunError
            Too little space, another config, or checkpoints in a folder that is not resumed.
        """
        if self._run is None:
            return 0
        folder = self._run.checkpoints
        if self._accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            checkpoint.clean(folder)
            checkpoint.require_space(folder, self._module, self._config.keep)
        self._accelerator.wait_for_everyone()
        step = checkpoint.latest(folder)
        if step is not None and not resume:
            raise RunError(
                "holds checkpoints already", where=folder, remedy="give --resume or --overwrite"
            )
        if step is not None:
            state = checkpoint.read_state(folder, step)
            place = checkpoint.where(folder, step)
            must_equal(state["config"], to_dict(self._config), where=place)
            checkpoint.load(folder, step, self._module, self._optimizer)
            self._watch.load(state["health"])
        if self._accelerator.is_main_process:
            self._run.rewind_metrics(-1 if step is None else step)
        return step or 0

    def save(self, step: int, *, due: bool = True) -> None:
        """Write a checkpoint and delete those that are needed no more.

        Parameters
        ----------
        due
            Whether an uninterrupted run has one here too; no other may be chosen in the end.
        """
        if self._run is None:
            return
        if due:
            self._watch.saved(step)
        folder, main = self._run.checkpoints, self._accelerator.is_main_process
        if main or self._sharded:
            shot = checkpoint.snapshot(self._module, self._optimizer)
        if main:
            state = {
                "seed": self._config.seed,
                "world": self._accelerator.num_processes,
                "config": to_dict(self._config),
                "health": self._watch.to_dict(),
            }
            checkpoint.write(folder, step, shot, state)
            saved = checkpoint.steps(folder)
            checkpoint.prune(folder, self._watch.keep(saved, self._config.keep))
        self._accelerator.wait_for_everyone()

    def conclude(self, step: int, *, broken: bool) -> int:
        """Choose a checkpoint, write health.json; gives the chosen step.

        Raises
        ------
        RunError
            The run broke before there was anything to choose from.
        """
        saved = checkpoint.steps(self._run.checkpoints) if self._run else []
        now = self._watch.verdict
        if broken and not saved:
            raise RunError(
                f"the loss was not finite at step {step}, and no checkpoint was kept before",
                where=self._run.path if self._run else "",
                remedy="lower the learning rate, clip the gradient, or look for missing values",
            )
        if self._run is None:
            return step
        choice = self._watch.choice(saved)
        chosen = choice.step if choice else saved[-1]
        if self._accelerator.is_main_process:
            verdict: dict[str, Any] = {
                "steps": self._config.steps,
                "done": step,
                "chosen_step": chosen,
                "latest_step": saved[-1],
                "step_by_snr": choice.by_snr if choice else None,
                **asdict(now),
            }
            self._run.save_health(verdict | {"checkpoints": self._watch.to_dict()["candidates"]})
        self._accelerator.wait_for_everyone()
        return chosen
