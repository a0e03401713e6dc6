"""The target encoder: an exponential moving average of the online one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from jepa_core.errors import ConfigError
from jepa_core.sharded import own_part

# Where a tensor lives: looked up at each update, because moving or sharding a module replaces it.
_Slot = tuple[nn.Module, str]
_Pair = tuple[_Slot, _Slot]


class EMA:
    """target <- m target + (1 - m) online, one fused call per device and dtype.

    Call `update` after the optimiser's step (the target then averages the states after each step)
    or before the forward (it lags by one step, and the first call changes nothing). Create the
    target before wrapping or compiling the online module, and keep it in float32: in half precision
    the small steps of an average round to nothing.

    Parameters
    ----------
    target, online
        Modules with the same parameter names and shapes; several at once as `nn.ModuleList`s or
        `nn.ModuleDict`s. A tied parameter is averaged once; one that is frozen online never.
    skip
        Patterns of names to leave out on both sides (`head.*`), for parts one of them lacks and
        for fixed tables.
    buffers
        What happens to the target's buffers, as in BatchNorm's statistics: `keep` its own, `copy`
        the online ones, or `average` those of floating type and copy the others.

    Raises
    ------
    ConfigError
        Names or shapes that do not match, all listed; or a pattern of `skip` that matches nothing.
    """

    def __init__(
        self,
        target: nn.Module,
        online: nn.Module,
        *,
        skip: Sequence[str] = (),
        buffers: Literal["keep", "copy", "average"] = "keep",
    ) -> None:
        if buffers not in ("keep", "copy", "average"):
            raise ConfigError(
                f"buffers cannot be {buffers!r}", remedy="choose keep, copy or average"
            )
        frozen = {name for name, p in online.named_parameters() if not p.requires_grad}
        sides = [
            {n: s for n, s in _slots(m, "_parameters").items() if n not in frozen}
            for m in (target, online)
        ]
        self._parameters = _match("parameters", *_skip(sides, skip))
        self._buffers: list[_Pair] = []
        self._average_buffers = buffers == "average"
        if buffers != "keep":
            sides = [_slots(module, "_buffers") for module in (target, online)]
            self._buffers = _match("buffers", *_skip(sides, skip))
        names = {
            n for m in (target, online) for n, _ in (*m.named_parameters(), *m.named_buffers())
        }
        for pattern in skip:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigError(f"nothing to skip is named {pattern!r}")

    @torch.no_grad()
    def update(self, momentum: float | Tensor) -> None:
        """Move the target by 1 - momentum towards the online state.

        Parameters
        ----------
        momentum
            In [0, 1]: 1 freezes the target, 0 copies. A 0-dim tensor, best float64, on the
            parameters' device is used there without waiting for it, and without a range check.

        Raises
        ------
        ConfigError
            A number outside [0, 1], or a target in half precision.
        """
        averaged = self._parameters
        if self._average_buffers:
            floating, other = _by_type(self._buffers)
            averaged = averaged + floating
            _copy(other)
        else:
            _copy(self._buffers)
        weight = _weight(momentum)
        for (device, dtype), (targets, onlines) in _grouped(averaged).items():
            if dtype in (torch.float16, torch.bfloat16):
                raise ConfigError(
                    f"a target in {str(dtype).removeprefix('torch.')} does not move at a momentum "
                    "near 1",
                    remedy="keep it in float32 and cast for the forward",
                )
            if isinstance(weight, Tensor):
                local = weight.to(device=device, dtype=dtype)
                torch._foreach_lerp_(targets, onlines, [local] * len(targets))
            else:
                torch._foreach_lerp_(targets, onlines, weight)


def _weight(momentum: float | Tensor) -> float | Tensor:
    on_device = isinstance(momentum, Tensor) and momentum.device.type != "cpu"
    if not on_device and not 0.0 <= float(momentum) <= 1.0:
        raise ConfigError(f"an EMA momentum of {float(momentum)} is not in [0, 1]")
    # In float32, 1 - 0.999996 is already wrong in its third digit: subtract in float64, then round.
    return 1.0 - (momentum.double() if isinstance(momentum, Tensor) else momentum)


def _slots(module: nn.Module, kind: Literal["_parameters", "_buffers"]) -> dict[str, _Slot]:
    """Every parameter or buffer once, under its first name."""
    slots: dict[str, _Slot] = {}
    seen: set[int] = set()
    for prefix, part in module.named_modules():
        for leaf, tensor in getattr(part, kind).items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                slots[f"{prefix}.{leaf}" if prefix else leaf] = (part, leaf)
    return slots


def _skip(sides: list[dict[str, _Slot]], skip: Sequence[str]) -> list[dict[str, _Slot]]:
    return [
        {n: slot for n, slot in side.items() if not any(fnmatchcase(n, p) for p in skip)}
        for side in sides
    ]


def _match(kind: str, target: dict[str, _Slot], online: dict[str, _Slot]) -> list[_Pair]:
    wrong = [f"{name} only in the target" for name in target if name not in online]
    wrong += [f"{name} only online" for name in online if name not in target]
    for name in target.keys() & online.keys():
        shapes = [tuple(_tensor(side[name]).shape) for side in (target, online)]
        if shapes[0] != shapes[1]:
            wrong.append(f"{name} {shapes[0]} in the target, {shapes[1]} online")
    if wrong:
        raise ConfigError(
            f"{kind} of target and online module do not match: " + ", ".join(sorted(wrong)),
            remedy="copy the online module, or name what to skip",
        )
    return [(target[name], online[name]) for name in target]


def _tensor(slot: _Slot) -> Tensor:
    tensor: Tensor = getattr(*slot)
    # Of a sharded parameter this process averages its own part.
    return own_part(tensor)


def _grouped(
    pairs: list[_Pair],
) -> dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]]:
    groups: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]]
    groups = defaultdict(lambda: ([], []))
    for target_slot, online_slot in pairs:
        target = _tensor(target_slot)
        targets, onlines = groups[target.device, target.dtype]
        targets.append(target)
        onlines.append(_tensor(online_slot).to(target.dtype))
    return groups


def _by_type(pairs: list[_Pair]) -> tuple[list[_Pair], list[_Pair]]:
    floating = [pair for pair in pairs if _tensor(pair[0]).is_floating_point()]
    return floating, [pair for pair in pairs if not _tensor(pair[0]).is_floating_point()]


def _copy(pairs: list[_Pair]) -> None:
    for target, online in pairs:
        _tensor(target).copy_(_tensor(online))
