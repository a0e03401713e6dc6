"""The paper's recipes, digit by digit, and those that learn on two cores.

Source: Thimonier et al., "T-JEPA: Augmentation-Free Self-Supervised Learning for Tabular Data"
(arXiv 2410.05016), and its official program. Only builtin types and no heavy import: the command's
help reads these classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from jepa_core.config import Range, check
from jepa_core.errors import ConfigError

Share = Annotated[float, Range(gt=0, lt=1)]
Fraction = Annotated[float, Range(ge=0, le=1)]
Positive = Annotated[float, Range(gt=0)]
AtLeastZero = Annotated[float, Range(ge=0)]
Count = Annotated[int, Range(ge=1)]


@dataclass(frozen=True)
class ColumnsConfig:
    """How columns become numbers; everything is learned from the training rows."""

    numeric: Literal["quantile", "standard", "minmax"] = "quantile"
    """Scaling of numerical columns: to normal scores by rank, to zero mean and unit variance, or
    to [0, 1]."""
    clip: AtLeastZero = 3.0
    """Largest absolute value after quantile or standard scaling; 0 does not clip."""
    missing: Literal["error", "indicator", "mean", "median", "drop"] = "error"
    """Missing numbers: refused, a learned token of the column, replaced by the mean or median of
    the training rows, or the row left out."""
    unknown: Literal["reserve", "error"] = "reserve"
    """Categories that training did not see: a code of their own, or refused."""
    drop_constant: bool = False
    """Leave constant columns out."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class TableShape:
    """What the model must know of a table."""

    columns: Count
    """Feature columns D."""
    categorical: tuple[Annotated[int, Range(ge=0)], ...] = ()
    """Positions of the categorical columns in the table, ascending."""
    cardinalities: tuple[Count, ...] = ()
    """Number of codes of each categorical column, a reserved one included."""
    missing: bool = False
    """Whether numerical columns may hold NaN, which becomes a learned token."""

    def __post_init__(self) -> None:
        check(self)
        if len(self.categorical) != len(self.cardinalities):
            raise ConfigError(
                f"cardinalities has {len(self.cardinalities)} numbers",
                remedy=f"allowed: one for each of {len(self.categorical)} categorical columns",
            )
        if list(self.categorical) != sorted(set(self.categorical)) or any(
            column >= self.columns for column in self.categorical
        ):
            raise ConfigError(
                f"categorical is {list(self.categorical)}",
                remedy=f"allowed: ascending positions below {self.columns}",
            )

    @property
    def numeric(self) -> tuple[int, ...]:
        """Positions of the numerical columns in the table."""
        return tuple(sorted(set(range(self.columns)) - set(self.categorical)))

    @property
    def order(self) -> tuple[int, ...]:
        """Positions in the table of the columns in the order of their tokens: numerical first."""
        return self.numeric + self.categorical


@dataclass(frozen=True)
class ModelConfig:
    """Shapes of tokenizer, encoder and predictor."""

    dim: Count = 32
    """Width of the encoder."""
    depth: Count = 2
    """Layers of the encoder."""
    heads: Count = 4
    """Attention heads of the encoder."""
    hidden: Count = 64
    """Hidden width of the encoder's feed-forward maps."""
    activation: Literal["relu", "gelu"] = "relu"
    """Between the feed-forward maps of the encoder."""
    dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0
    """Dropout in the encoder."""
    predictor_dim: Count = 32
    """Width of the predictor."""
    predictor_depth: Count = 2
    """Layers of the predictor."""
    predictor_heads: Count = 4
    """Attention heads of the predictor."""
    predictor_hidden: Count = 64
    """Hidden width of the predictor's feed-forward maps."""
    predictor_activation: Literal["relu", "gelu"] = "relu"
    """Between the feed-forward maps of the predictor."""
    predictor_dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0
    """Dropout in the predictor."""
    registers: Annotated[int, Range(ge=0)] = 1
    """Learned [REG] tokens beside the columns' tokens."""
    position_scale: AtLeastZero = 0.05
    """Factor on the encoder's table of positions; at 1 positions drown the data."""
    type_embedding: bool = False
    """Add a learned vector a kind of column; only where a table has both kinds."""
    init: Literal["xavier", "normal", "torch"] = "xavier"
    """Start of the linear maps: Xavier-uniform, N(0, 0.02), or torch's own."""
    target_scale: Literal["standardised", "plain"] = "standardised"
    """Targets as they are, or standardised over the batch at each token and dimension."""
    official: bool = False
    """Repeat the official program's equal layers, order of types and predictor."""

    def __post_init__(self) -> None:
        check(self)
        for name in ("", "predictor_"):
            dim, heads = getattr(self, f"{name}dim"), getattr(self, f"{name}heads")
            if dim % heads:
                raise ConfigError(
                    f"{name}dim is {dim}", remedy=f"allowed: a multiple of {name}heads ({heads})"
                )
            if dim % 2:
                raise ConfigError(f"{name}dim is {dim}", remedy="allowed: an even number")


@dataclass(frozen=True)
class PretrainConfig:
    """One pre-training recipe."""

    model: ModelConfig = ModelConfig()
    columns: ColumnsConfig = ColumnsConfig()
    context: tuple[Share, Share] = (0.4, 0.8)
    """Smallest and largest share of the columns that the encoder sees, drawn once a batch."""
    target: tuple[Share, Share] = (0.15, 0.4)
    """Smallest and largest share of the columns in a target mask, drawn once a batch."""
    targets: Count = 1
    """Target masks a row."""
    unknown_rate: Annotated[float, Range(ge=0, lt=1)] = 0.01
    """Share of the codes replaced by the reserved one while training, so that it learns too."""
    steps: Count = 2000
    """Optimiser steps."""
    batch_size: Count = 256
    """Rows in an optimiser step, over all processes and accumulated parts."""
    accumulation: Count = 1
    """Parts a batch is computed in; targets are standardised over each."""
    learning_rate: Positive = 1e-3
    """Peak learning rate."""
    initial_learning_rate: AtLeastZero = 0.0
    """Learning rate that warm-up starts from."""
    final_learning_rate: AtLeastZero = 0.0
    """Learning rate at the end."""
    warmup_steps: Annotated[int, Range(ge=0)] = 200
    """Steps of linear warm-up."""
    weight_decay: AtLeastZero = 0.01
    """Weight decay at the start; it follows a cosine."""
    final_weight_decay: AtLeastZero = 0.01
    """Weight decay at the end."""
    momentum: Fraction = 0.98
    """EMA momentum at the start; it rises linearly."""
    final_momentum: Fraction = 1.0
    """EMA momentum at the end."""
    betas: Annotated[tuple[float, float], Range(ge=0, lt=1)] = (0.9, 0.999)
    """AdamW's betas."""
    eps: Positive = 1e-8
    """AdamW's epsilon."""
    clip_norm: AtLeastZero = 1.0
    """Largest norm of the encoder's and of the predictor's gradient; 0 does not clip. Under compat
    official the largest element of the encoder's."""
    checkpoint_every: Count = 500
    """Steps between checkpoints."""
    compat: Literal["none", "official"] = "none"
    """official repeats the program's masks, order of rows, first step and clamped gradients."""

    def __post_init__(self) -> None:
        check(self)
        if self.batch_size % self.accumulation:
            raise ConfigError(
                f"accumulation is {self.accumulation}",
                remedy=f"allowed: a divisor of batch_size ({self.batch_size})",
            )
        for name in ("context", "target"):
            low, high = getattr(self, name)
            if low > high:
                raise ConfigError(
                    f"{name} is {[low, high]}", remedy="allowed: a smaller share, then a larger one"
                )


# Found on unlabelled rows of three public tables: columns to normal scores, weak positions, wide
# contexts and standardised targets are what made a small encoder learn at all.
NANO = PretrainConfig()

# Three seeds of three tables in a quarter of an hour on two cores.
REPRODUCE = replace(NANO, steps=2400, warmup_steps=240, checkpoint_every=600)
# Three seeds of three small tables in under two minutes.
DEMO = replace(
    NANO,
    steps=300,
    warmup_steps=30,
    batch_size=128,
    learning_rate=2e-3,
    checkpoint_every=100,
)

SMALL = PretrainConfig(
    model=ModelConfig(depth=3, predictor_dim=16),
    context=(0.15, 0.4),
    target=(0.15, 0.6),
    targets=4,
)

# The one complete recipe that was published, tuned for jannis.
_LAUNCH = PretrainConfig(
    model=ModelConfig(
        dim=64,
        depth=16,
        heads=2,
        hidden=64,
        dropout=0.0018542257314766695,
        predictor_dim=16,
        predictor_depth=16,
        predictor_heads=4,
        predictor_hidden=256,
        predictor_dropout=0.0019307456645321797,
        position_scale=1.0,
        init="normal",
        target_scale="plain",
        official=True,
    ),
    columns=ColumnsConfig(numeric="minmax", clip=0.0, unknown="error"),
    context=(0.13628349248854785, 0.36819012681604135),
    target=(0.1556321308543076, 0.6222278244105446),
    targets=4,
    unknown_rate=0.0,
    batch_size=512,
    learning_rate=3.658682841082736e-4,
    weight_decay=0.0,
    final_weight_decay=0.0,
    momentum=0.996,
    clip_norm=1.0,
    compat="official",
)

# Rows of each table; its recipe runs 300 epochs with 10 of warm-up.
ROWS = {
    "adult": 48_842,
    "helena": 65_196,
    "jannis": 83_733,
    "aloi": 108_000,
    "california": 20_433,
    "higgs": 98_050,
}


def _launch(table: str) -> PretrainConfig:
    an_epoch = math.ceil(ROWS[table] / _LAUNCH.batch_size)
    model = _LAUNCH.model
    if table != "jannis":
        # Of the other tables only the width is documented.
        model = replace(model, dim=16)
    return replace(
        _LAUNCH,
        model=replace(model, type_embedding=table == "adult"),
        steps=300 * an_epoch,
        warmup_steps=10 * an_epoch,
        checkpoint_every=20 * an_epoch,
    )


# The defaults of the program's command line, for jannis.
_CLI_EPOCH = math.ceil(ROWS["jannis"] / 64)
CLI = PretrainConfig(
    model=ModelConfig(
        dim=64,
        depth=4,
        heads=8,
        hidden=256,
        dropout=0.1,
        predictor_dim=64,
        predictor_depth=2,
        predictor_heads=4,
        predictor_hidden=256,
        predictor_dropout=0.1,
        position_scale=1.0,
        type_embedding=True,
        init="torch",
        target_scale="plain",
        official=True,
    ),
    columns=_LAUNCH.columns,
    context=(0.2, 0.4),
    target=(0.2, 0.4),
    targets=4,
    unknown_rate=0.0,
    steps=100 * _CLI_EPOCH,
    batch_size=64,
    learning_rate=1e-4,
    initial_learning_rate=1e-3,
    warmup_steps=5 * _CLI_EPOCH,
    weight_decay=1e-5,
    final_weight_decay=1e-2,
    momentum=0.996,
    checkpoint_every=10 * _CLI_EPOCH,
    compat="official",
)


def _sound(recipe: PretrainConfig) -> PretrainConfig:
    """The same sizes, rates and shares without what keeps the official program from learning."""
    sound = ModelConfig()
    model = replace(
        recipe.model,
        position_scale=sound.position_scale,
        init=sound.init,
        target_scale=sound.target_scale,
        official=False,
    )
    return replace(
        recipe,
        model=model,
        columns=ColumnsConfig(),
        unknown_rate=NANO.unknown_rate,
        compat="none",
    )


PRETRAIN: dict[str, PretrainConfig] = {
    "nano": NANO,
    "small": SMALL,
    **{table: _sound(_launch(table)) for table in ROWS},
    **{f"official-{table}": _launch(table) for table in ROWS},
    "official-cli": CLI,
}
