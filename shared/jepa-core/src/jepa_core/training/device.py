"""Where a run computes and in what precision."""

from __future__ import annotations

import atexit
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from jepa_core.errors import ConfigError, require
from jepa_core.training import FitConfig

# CPU flags of units that multiply bfloat16; without one, bfloat16 runs at a tenth of float32.
_BFLOAT16_UNITS = frozenset({"avx512_bf16", "amx_bf16"})


def start(config: FitConfig, folder: Path | None = None) -> Accelerator:
    """The processes, the device and the trackers of a run, through accelerate.

    Works as it is under `torchrun` and `accelerate launch`. The process group lives until the
    interpreter ends, so that one program may train several times.

    Parameters
    ----------
    config
        Its device, threads and trackers are read.
    folder
        Where trackers that write files may do so.

    Raises
    ------
    ConfigError
        The device is not there, the launcher's processes are not, or sharding was asked for where
        there is none.
    MissingExtra
        A tracker is not installed.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    device = find_device(config.device)
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if sharded and device == "cpu":
        raise ConfigError(
            "sharding (FSDP) needs GPUs: on CPUs accelerate would silently train without it",
            remedy="launch without --use_fsdp",
        )
    if config.trackers and folder is None:
        raise ConfigError("trackers need a run folder", remedy="give --out, or no trackers")
    for name in config.trackers:
        require(name, package="jepa-core", extra="trackers")
    if not torch.distributed.is_initialized():
        # accelerate keeps its first device for the life of the process; a later run may want
        # another one.
        AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        cpu=device == "cpu",
        # Precision is ours: accelerate would patch the module's forward for good.
        mixed_precision="no",
        log_with=list(config.trackers) or None,
        project_dir=folder,
    )
    if accelerator.device.type != device:
        raise ConfigError(
            f"device is {config.device}, but this process already trains on {accelerator.device}",
            remedy="use one kind of device in a program of several processes",
        )
    if accelerator.num_processes > 1:
        atexit.register(_leave)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != world:
        raise ConfigError(
            f"{world} processes were launched, but {accelerator.num_processes} found each other",
            remedy="launch with torchrun or accelerate launch",
        )
    if sharded and not getattr(accelerator, "is_fsdp2", False):
        raise ConfigError(
            "sharding was asked for and is not to be had", remedy="launch with --fsdp_version 2"
        )
    return accelerator


def one_process(what: str) -> None:
    """Refuse to run `what` under a launcher of several processes.

    Raises
    ------
    ConfigError
        There are several.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        raise ConfigError(
            f"{world} processes were launched, and {what} runs in one",
            remedy="start it without torchrun or accelerate launch",
        )


def _leave() -> None:
    # Left to torch, it is sometimes torn down in an order that aborts the process.
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def find_device(wanted: str) -> str:
    """The kind of device for a setting: what `auto` means here, or an error.

    Raises
    ------
    ConfigError
        This machine, or this build of torch, has no such device.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return next((device for device, is_there in there.items() if is_there), "cpu")
    if wanted != "cpu" and not there[wanted]:
        raise ConfigError(
            f"device is {wanted}, and this machine offers none",
            remedy="use auto or cpu; jepa doctor says what there is",
        )
    return wanted


def autocast_to_bfloat16(precision: str, device: str) -> tuple[bool, str]:
    """Whether to compute in bfloat16, and what to tell the user where that is not as asked."""
    if precision != "bfloat16":
        return False, ""
    if bfloat16_is_native(device):
        return True, ""
    return False, (
        f"this {device} has no units for bfloat16, where it would be several times slower: "
        "computing in float32"
    )


def bfloat16_is_native(device: str, flags: frozenset[str] | None = None) -> bool:
    """Whether `device` multiplies bfloat16 in hardware.

    Parameters
    ----------
    device
        "cpu", "cuda" or "mps".
    flags
        CPU flags instead of this machine's.
    """
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        return not _BFLOAT16_UNITS.isdisjoint(cpu_flags() if flags is None else flags)
    return False


def cpu_flags(cpuinfo: str = "/proc/cpuinfo") -> frozenset[str]:
    """The CPU's flags as Linux lists them; empty where there is no such list."""
    try:
        lines = Path(cpuinfo).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = (line.partition(":")[2] for line in lines if line.startswith("flags"))
    return frozenset(next(flags, "").split())
