"""Parameter groups, and AdamW in its fastest form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from jepa_core.errors import ConfigError

# Learned tokens are vectors that happen to be stored with leading dimensions of 1.
LEARNED_TOKENS = ("*registers", "*mask_token", "*query_token")


def partition(
    module: nn.Module, rules: Mapping[str, Callable[[str, nn.Parameter], bool]]
) -> list[dict[str, Any]]:
    """Split the trainable parameters into groups, each of them into exactly one.

    Parameters
    ----------
    rules
        Group name -> whether a parameter, given with its name, belongs to it.

    Returns
    -------
    list
        One dict a rule that has parameters: `name`, `params`, and `names` of the parameters in the
        same order. Tied parameters occur once.

    Raises
    ------
    ConfigError
        A parameter in no group or in several, named.
    """
    groups: dict[str, dict[str, Any]] = {
        rule: {"name": rule, "params": [], "names": []} for rule in rules
    }
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        claims = [rule for rule, belongs in rules.items() if belongs(name, parameter)]
        if len(claims) != 1:
            where = f"groups {' and '.join(claims)}" if claims else "no group"
            raise ConfigError(
                f"parameter {name} is in {where}",
                remedy="every trainable parameter belongs to exactly one group",
            )
        groups[claims[0]]["params"].append(parameter)
        groups[claims[0]]["names"].append(name)
    return [group for group in groups.values() if group["params"]]


def decay_groups(module: nn.Module, no_decay: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Two groups, `decay` and `no_decay`: matrices with weight decay, all else without.

    Without are one-dimensional parameters (biases, norms, LayerScale), learned tokens (registers,
    mask and query token) and those whose name matches a pattern of `no_decay`.

    Returns
    -------
    list
        As `partition`, with `decay` (bool) in each group and `weight_decay` 0 in the second.

    Raises
    ------
    ConfigError
        A pattern matches no trainable parameter.
    """
    trainable = [name for name, p in module.named_parameters() if p.requires_grad]
    for pattern in no_decay:
        if not any(fnmatchcase(name, pattern) for name in trainable):
            raise ConfigError(f"no trainable parameter is named {pattern!r}", where="no_decay")

    def exempt(name: str, parameter: nn.Parameter) -> bool:
        patterns = (*LEARNED_TOKENS, *no_decay)
        return parameter.ndim <= 1 or any(fnmatchcase(name, pattern) for pattern in patterns)

    return exempt_groups(module, exempt)


def exempt_groups(
    module: nn.Module, exempt: Callable[[str, nn.Parameter], bool]
) -> list[dict[str, Any]]:
    """As `decay_groups`, with a rule of one's own: whether a named parameter does not decay."""
    groups = partition(
        module, {"decay": lambda n, p: not exempt(n, p), "no_decay": lambda n, p: exempt(n, p)}
    )
    for group in groups:
        group["decay"] = group["name"] == "decay"
        if not group["decay"]:
            group["weight_decay"] = 0.0
    return groups


def adamw(
    groups: Sequence[dict[str, Any]],
    *,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) over `groups`, fused where torch can.

    A group's own `weight_decay` wins over the argument. `set_hyperparameters` writes the scheduled
    values of a step.
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    # Left to itself torch loops over tensors on a CPU (its multi-tensor default holds on CUDA only,
    # and forced on a CPU it is slower still); one pass over memory is about 3 times as fast.
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return torch.optim.AdamW(
        list(groups), lr=learning_rate, weight_decay=weight_decay, betas=betas, eps=eps, fused=fused
    )


def set_hyperparameters(
    optimizer: torch.optim.Optimizer, learning_rate: float, weight_decay: float
) -> None:
    """Set a step's scheduled values; weight decay in the groups that have any."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        if group.get("decay", True):
            group["weight_decay"] = weight_decay
