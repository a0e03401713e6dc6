"""The changes of the recipe that are studied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from jepa_tabular.experiments.comparison import official_recipe
from jepa_tabular.presets import PretrainConfig

BASE = "base"

Change = Callable[[PretrainConfig], PretrainConfig]


@dataclass(frozen=True)
class Lever:
    """One change of the base recipe.

    Parameters
    ----------
    words
        What is changed.
    change
        The recipe with it.
    costly
        Left out on jannis unless it is asked for by name.
    """

    words: str
    change: Change
    costly: bool = True


def _recipe(words: str, *, costly: bool = True, **numbers: Any) -> Lever:
    return Lever(words, lambda config: replace(config, **numbers), costly)


def _model(words: str, *, costly: bool = True, **numbers: Any) -> Lever:
    return Lever(
        words, lambda config: replace(config, model=replace(config.model, **numbers)), costly
    )


def _columns(words: str, **numbers: Any) -> Lever:
    return Lever(words, lambda config: replace(config, columns=replace(config.columns, **numbers)))


def _steps(factor: float, *, costly: bool = True) -> Lever:
    def change(config: PretrainConfig) -> PretrainConfig:
        steps = max(1, round(config.steps * factor))
        warmup = min(steps - 1, round(config.warmup_steps * factor))
        return replace(config, steps=steps, warmup_steps=warmup)

    return Lever(f"{factor:g} times the steps", change, costly)


# Changes that need a training of their own.
LEVERS: dict[str, Lever] = {
    BASE: Lever("the recipe as it is", lambda config: config, costly=False),
    "steps-quarter": _steps(0.25, costly=False),
    "steps-double": _steps(2, costly=False),
    "steps-fourfold": _steps(4),
    "width-16": _model("width 16", dim=16, hidden=32),
    "width-64": _model("width 64", dim=64, hidden=128),
    "depth-1": _model("one layer", depth=1),
    "depth-4": _model("four layers", depth=4),
    "heads-1": _model("one attention head", heads=1),
    "heads-8": _model("eight attention heads", heads=8),
    "predictor-shallow": _model("a predictor of one layer", predictor_depth=1),
    "predictor-deep": _model("a predictor of four layers", predictor_depth=4),
    "registers-0": _model("no [REG] token", registers=0),
    "registers-4": _model("four [REG] tokens", registers=4),
    "targets-4": _recipe("four target masks a row", costly=False, targets=4),
    "target-plain": _model("targets as they are", costly=False, target_scale="plain"),
    "target-narrow": _recipe("targets of .1 to .2 of the columns", target=(0.1, 0.2)),
    "context-narrow": _recipe(
        "contexts of .15 to .4 of the columns", costly=False, context=(0.15, 0.4)
    ),
    "positions-strong": _model("positions as strong as officially", position_scale=1.0),
    "positions-none": _model("no positions", position_scale=0.0),
    "columns-minmax": _columns("columns scaled to [0, 1]", numeric="minmax", clip=0.0),
    "columns-standard": _columns("columns to unit variance", numeric="standard"),
    "init-normal": _model("maps start as N(0, .02)", init="normal"),
    "momentum-0.9": _recipe("EMA from .9", momentum=0.9),
    "momentum-0.996": _recipe("EMA from .996", momentum=0.996),
    "target-frozen": _recipe("a target encoder that never moves", momentum=1.0),
    "rate-low": _recipe("learning rate 3e-4", learning_rate=3e-4),
    "rate-high": _recipe("learning rate 3e-3", learning_rate=3e-3),
    "batch-64": _recipe("64 rows a step", batch_size=64),
    "rows-labelled": Lever("pre-training on the labelled rows alone", lambda config: config),
    "official": Lever("the official recipe", official_recipe),
}

# Other ways to read the base recipe's encoders out.
REPRESENTATIONS = {
    "after-head": "after the head that the loss looks at",
    "first-block": "the first block's output",
    "all-blocks": "all blocks side by side",
    "mean-blocks": "mean of the blocks",
    "reg": "the [REG] tokens alone",
    "mean-tokens": "mean of the tokens",
    "online": "the online encoder in place of its average",
    "raw": "raw columns beside it",
    "finetuned": "trained end to end on the labels",
}
# Those that the untrained twin is read out by as well: what that is kept and called as.
TWINS = {
    "all-blocks": ("all-blocks of twin", "all blocks of the untrained twin side by side"),
    "raw": ("raw of twin", "raw columns beside the untrained twin"),
    "finetuned": ("finetuned twin", "untrained twin, trained end to end"),
}
