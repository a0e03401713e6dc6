"""What follows the backward pass: the optimiser's step and the target encoder's average.

ViT-S/16 shapes in float32. Both are bound by memory: the share of peak of the average is its bytes
(two tensors read, one written) per second over those of a plain copy, whose hidden read of the
destination lets an update in place exceed 1. The allocator keeps freed memory: inside a training
step the loop's temporaries cost no page faults, and in a process that does nothing else they do or
do not by chance, which moves the ratio between 1.8 and 2.7. Both are a few per cent of a step.
"""

from __future__ import annotations

import copy
import ctypes
import resource
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.harness import Contender, Copy, Row, compare, equal_outputs, main
from jepa_core.ema import EMA
from jepa_core.layers import PatchEmbed2d, ViT
from jepa_core.optim import adamw, decay_groups

MOMENTUM = 0.996


def run(quick: bool = False) -> list[Row]:
    torch.manual_seed(0)
    _keep_freed_memory()
    width, depth = (96, 2) if quick else (384, 12)
    model = nn.ModuleList((PatchEmbed2d(3, 16, width), ViT(width, depth, 6, registers=1)))
    size = sum(p.numel() for p in model.parameters())
    return [*_average(model, size), *_optimiser(model, size)]


def _average(model: nn.Module, size: int) -> list[Row]:
    work = dict.fromkeys(("loop of lerp_", "jepa_core EMA"), 12.0 * size)
    contenders = _averages(model)
    rows = compare(
        f"EMA of {size / 1e6:.1f} M parameters",
        contenders,
        "loop, multiply then add",
        check=equal_outputs(contenders, atol=1e-6),
        work=work,
        peak=Copy(),
        target={"jepa_core EMA": 2.1},
    )
    rows = [_with_faults(row, contenders[row.contender]) for row in rows]
    contenders = {
        name: contender
        for name, contender in _averages(model).items()
        if name in ("AveragedModel, multi", "jepa_core EMA")
    }
    return rows + compare(
        f"EMA of {size / 1e6:.1f} M parameters, against torch's own",
        contenders,
        "AveragedModel, multi",
        check=equal_outputs(contenders, atol=1e-6),
        target=1.05,
    )


def _keep_freed_memory() -> None:
    """glibc's allocator returns nothing to the system and takes nothing from it one by one."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for threshold in (-1, -3):  # of trimming, of mapping
            library.mallopt(threshold, 2**30)


def _with_faults(row: Row, contender: Contender) -> Row:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    contender()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return replace(row, note=f"{faults} page faults in a call")


def _averages(model: nn.Module) -> dict[str, Contender]:
    """One update by each contender, all from the same target and online weights."""
    online = copy.deepcopy(model)
    peer = AveragedModel(online, multi_avg_fn=get_ema_multi_avg_fn(MOMENTUM))
    peer.update_parameters(online)  # the first update copies
    targets = [copy.deepcopy(online) for _ in range(3)]
    with torch.no_grad():
        for parameter in online.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    ema = EMA(targets[2], online)

    @torch.no_grad()
    def multiply_add() -> list[Tensor]:
        for t, o in zip(targets[0].parameters(), online.parameters(), strict=True):
            t.mul_(MOMENTUM).add_((1 - MOMENTUM) * o)
        return list(targets[0].parameters())

    @torch.no_grad()
    def lerp() -> list[Tensor]:
        for t, o in zip(targets[1].parameters(), online.parameters(), strict=True):
            t.lerp_(o, 1 - MOMENTUM)
        return list(targets[1].parameters())

    def averaged_model() -> list[Tensor]:
        peer.update_parameters(online)
        return list(peer.module.parameters())

    def fused() -> list[Tensor]:
        ema.update(MOMENTUM)
        return list(targets[2].parameters())

    return {
        "loop, multiply then add": multiply_add,
        "loop of lerp_": lerp,
        "AveragedModel, multi": averaged_model,
        "jepa_core EMA": fused,
    }


def _optimiser(model: nn.Module, size: int) -> list[Row]:
    """One step of AdamW with weight decay on matrices only, from the same weights and gradients."""
    gradients = [torch.randn_like(p) for p in model.parameters()]

    def contender(
        build: Callable[[list[dict[str, object]]], torch.optim.Optimizer],
    ) -> Callable[[], list[Tensor]]:
        own = copy.deepcopy(model)
        for parameter, gradient in zip(own.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer = build(decay_groups(own))

        def step() -> list[Tensor]:
            optimizer.step()
            return list(own.parameters())

        return step

    contenders: dict[str, Contender] = {
        "AdamW": contender(lambda groups: torch.optim.AdamW(groups, weight_decay=0.04)),
        "AdamW(foreach=True)": contender(
            lambda groups: torch.optim.AdamW(groups, weight_decay=0.04, foreach=True)
        ),
        "jepa_core adamw": contender(lambda groups: adamw(groups, weight_decay=0.04)),
    }
    return compare(
        f"AdamW step of {size / 1e6:.1f} M parameters",
        contenders,
        "AdamW",
        check=equal_outputs(contenders, atol=1e-6),
        target={"jepa_core adamw": 3.0},
    )


if __name__ == "__main__":
    main(run)
