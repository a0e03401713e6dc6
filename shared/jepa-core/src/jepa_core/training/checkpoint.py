"""Checkpoints: whole or not there, loaded without pickle, resumed bit for bit.

    step-XXXXXXXX/
        model.safetensors       every parameter and persistent buffer, target and predictor too
        optimizer.safetensors   "<parameter>/exp_avg", "<parameter>/exp_avg_sq", "<parameter>/step"
        state.json              step, settings of the optimiser's groups by name, health, config
        DONE                    written last

A checkpoint is written beside its place, forced to the disk and renamed; it is renamed away before
it is deleted. No state of a random generator is stored: there is none.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jepa_core.errors import RunError
from jepa_core.run import fsync
from jepa_core.sharded import own_part, sharded_as, whole

FORMAT = 1
MODEL, OPTIMIZER, STATE, DONE = "model.safetensors", "optimizer.safetensors", "state.json", "DONE"

# How a group is computed, which is the resuming machine's own choice.
_IMPLEMENTATION = frozenset({"params", "foreach", "fused", "capturable", "differentiable"})
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Snapshot:
    """A module and its optimiser as tensors by name."""

    model: dict[str, Tensor]
    aliases: dict[str, str]
    """Name to the name under which the same memory is in `model`."""
    optimizer: dict[str, Tensor]
    groups: list[dict[str, Any]]
    """Settings of each group, with "names" of its parameters in order."""


def snapshot(
    module: nn.Module, optimizer: torch.optim.Optimizer, skip: Container[str] = ()
) -> Snapshot:
    """Gather what a checkpoint holds. With sharded parameters every process must call this.

    Parameters
    ----------
    skip
        Names that are not to be kept, because they never change; `load` must get the same.
    """
    model: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in _kept(module, skip).items():
        place = _place(tensor)
        if place in first:
            aliases[name] = first[place]
        else:
            first[place] = name
            model[name] = _whole(tensor)
    state = optimizer.state_dict()
    names = _names(module, optimizer)
    tensors = {
        f"{name}/{key}": _whole(value)
        for group, members in zip(state["param_groups"], names, strict=True)
        for index, name in zip(group["params"], members, strict=True)
        for key, value in state["state"].get(index, {}).items()
    }
    groups = [
        {k: v for k, v in group.items() if k not in _IMPLEMENTATION} | {"names": members}
        for group, members in zip(state["param_groups"], names, strict=True)
    ]
    return Snapshot(model, aliases, tensors, groups)


def write(folder: Path, step: int, shot: Snapshot, state: dict[str, Any]) -> Path:
    """Write the checkpoint of `step` under `folder`, atomically.

    Raises
    ------
    RunError
        It cannot be written; what was there before is untouched.
    """
    place = where(folder, step)
    beside = place.with_name(f"{place.name}.tmp-{os.getpid()}")
    record = {
        "format": FORMAT,
        "step": step,
        "groups": shot.groups,
        "aliases": shot.aliases,
        **state,
    }
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        save_file(shot.model, beside / MODEL)
        save_file(shot.optimizer, beside / OPTIMIZER)
        (beside / STATE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        for name in (MODEL, OPTIMIZER, STATE):
            fsync(beside / name)
        (beside / DONE).touch()
        fsync(beside / DONE)
        fsync(beside)
        if place.exists():  # only ever one without DONE, or the same step before a resume
            _remove(place)
        beside.rename(place)
        fsync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        last = latest(folder)
        kept = "no checkpoint is there yet" if last is None else f"step {last} is the last good one"
        raise RunError(
            f"the checkpoint cannot be written: {_reason(error)}; {kept}",
            where=place,
            remedy="free some space and give --resume",
        ) from error
    return place


def load(
    folder: Path,
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    skip: Container[str] = (),
) -> dict[str, Any]:
    """Put a checkpoint into a module and its optimiser; gives state.json.

    The optimiser may have been built with other settings: the checkpoint's replace them.

    Raises
    ------
    RunError
        It cannot be read, or holds another model (naming what differs).
    """
    place = where(folder, step)
    state = read_state(folder, step)
    tensors = read_weights(folder, step)
    here = _kept(module, skip)
    if differing := _differences(here, tensors):
        raise RunError(f"is of another model: {differing}", where=place, remedy=_SAME_SETTINGS)
    # Not strict for the sake of `skip`; the names were compared above.
    module.load_state_dict(
        {name: sharded_as(tensors[name], here[name]) for name in here}, strict=False
    )

    names = _names(module, optimizer)
    saved = [group["names"] for group in state["groups"]]
    if names != saved:
        odd = {name for group in names for name in group} ^ {n for group in saved for n in group}
        raise RunError(
            "the optimiser's groups are others"
            + (f" (such as {sorted(odd)[0]})" if odd else ", or in another order"),
            where=place,
            remedy=_SAME_SETTINGS,
        )
    moments = _read(place / OPTIMIZER)
    mine = optimizer.state_dict()
    parameters = dict(module.named_parameters())
    of: dict[str, dict[str, Tensor]] = {}
    for key, tensor in moments.items():
        name, _, kind = key.rpartition("/")
        of.setdefault(name, {})[kind] = (
            sharded_as(tensor, parameters[name]) if tensor.ndim else tensor
        )
    for group, settings in zip(mine["param_groups"], state["groups"], strict=True):
        for key, value in settings.items():
            if key != "names":
                group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
        for index, name in zip(group["params"], settings["names"], strict=True):
            if name in of:
                mine["state"][index] = of[name]
    optimizer.load_state_dict(mine)
    return state


def read_state(folder: Path, step: int) -> dict[str, Any]:
    """state.json of a checkpoint."""
    path = where(folder, step) / STATE
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot be read: {error}", where=path, remedy=_DELETE) from error
    if state.get("format") != FORMAT:
        raise RunError(
            f"format is {state.get('format')}, this program reads {FORMAT}",
            where=path,
            remedy="use the version that wrote it",
        )
    return state


def read_weights(folder: Path, step: int) -> dict[str, Tensor]:
    """Every parameter and buffer of a checkpoint by name, on the CPU.

    Raises
    ------
    RunError
        There is no such checkpoint, or it is damaged.
    """
    if step not in steps(folder):
        raise RunError(f"holds no checkpoint of step {step}", where=folder)
    tensors = _read(where(folder, step) / MODEL)
    for name, original in read_state(folder, step)["aliases"].items():
        tensors[name] = tensors[original]
    return tensors


def where(folder: Path, step: int) -> Path:
    """The place of the checkpoint of `step`."""
    return folder / f"step-{step:08d}"


def steps(folder: Path) -> list[int]:
    """Steps of the whole checkpoints, ascending."""
    found = (
        _NAME.fullmatch(path.name) for path in folder.glob("step-*") if (path / DONE).is_file()
    )
    return sorted(int(match[1]) for match in found if match)


def latest(folder: Path) -> int | None:
    """The highest step with a whole checkpoint."""
    return max(steps(folder), default=None)


def clean(folder: Path) -> None:
    """Delete what a crash left half written or half deleted."""
    for path in folder.glob("step-*"):
        if not _NAME.fullmatch(path.name) or not (path / DONE).is_file():
            shutil.rmtree(path, ignore_errors=True)


def prune(folder: Path, keep: Container[int]) -> None:
    """Delete the checkpoints of all other steps."""
    for step in steps(folder):
        if step not in keep:
            _remove(where(folder, step))


def require_space(folder: Path, module: nn.Module, keep: int, skip: Container[str] = ()) -> None:
    """Raise unless `keep` + 2 checkpoints of `module` under Adam fit on the disk.

    Those that are there already count as room, as they will be deleted.

    Raises
    ------
    RunError
        Saying how much is needed and how much is free.
    """
    one = sum(tensor.nbytes for tensor in _kept(module, skip).values())
    one += 2 * sum(p.nbytes for p in module.parameters() if p.requires_grad)
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise RunError(f"cannot be written: {error.strerror}", where=folder) from error
    free += sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if (keep + 2) * one > free:
        raise RunError(
            f"{keep + 2} checkpoints need {(keep + 2) * one / 1e9:.3g} GB and {free / 1e9:.3g} GB "
            "are free",
            where=folder,
            remedy="free some space, keep fewer checkpoints or give another --out",
        )


def state_hash(state: Mapping[str, Tensor]) -> str:
    """Hash of a state dict: names, shapes, dtypes and bits, in any order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


_SAME_SETTINGS = "resume with the settings the run was begun with"
_DELETE = "delete this checkpoint and resume from the one before"


def _names(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    name_of = {id(parameter): name for name, parameter in module.named_parameters()}
    return [[name_of[id(p)] for p in group["params"]] for group in optimizer.param_groups]


def _kept(module: nn.Module, skip: Container[str]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in module.state_dict().items() if name not in skip}


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """What two names of the same memory agree in."""
    local = own_part(tensor)
    return (local.device, local.data_ptr(), local.dtype, tuple(local.shape), local.stride())


def _whole(tensor: Tensor) -> Tensor:
    """A copy on the CPU, alone in its memory."""
    return whole(tensor).detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _differences(here: dict[str, Tensor], there: dict[str, Tensor]) -> str:
    for name in sorted(here.keys() | there.keys()):
        if name not in there:
            return f"it lacks {name}"
        if name not in here:
            return f"it has {name}"
        if here[name].shape != there[name].shape:
            return f"its {name} is {tuple(there[name].shape)}, not {tuple(here[name].shape)}"
    return ""


def _read(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot be read: {error}", where=path, remedy=_DELETE) from error
    return tensors


def _remove(place: Path) -> None:
    # Renamed first: a half deleted folder must never look whole.
    gone = place.with_name(f"{place.name}.tmp-{os.getpid()}-old")
    place.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
