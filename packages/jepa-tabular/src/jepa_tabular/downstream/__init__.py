"""Supervised models on representations or on raw columns: heads, their training, boosted trees.

Only configs live here, so that a preset can hold one without importing torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from jepa_core.config import Range, check
from jepa_core.errors import ConfigError

Task = Literal["binary", "multiclass", "regression"]
Squeeze = Literal["linear_flatten", "linear_per_feature", "mean_pool", "max_pool", "conv"]
Count = Annotated[int, Range(ge=1)]
Dropout = Annotated[float, Range(ge=0, lt=1)]
AtLeastZero = Annotated[float, Range(ge=0)]


@dataclass(frozen=True)
class LinearConfig:
    """One linear map of all numbers of a row."""

    kind: Literal["linear"] = "linear"

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class MLPConfig:
    """Multilayer perceptron with batch normalisation."""

    kind: Literal["mlp"] = "mlp"
    squeeze: Squeeze = "linear_per_feature"
    """How the tokens of a row become one number each; raw columns skip it."""
    layers: Count = 3
    """Hidden layers; the first is linear."""
    width: Count = 128
    """Width of the hidden layers."""
    dropout: Dropout = 0.1
    """Dropout after each activation."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class ResNetConfig:
    """ResNet for tables (Gorishniy et al. 2021, section 3.2)."""

    kind: Literal["resnet"] = "resnet"
    squeeze: Squeeze = "linear_per_feature"
    """How the tokens of a row become one number each; raw columns skip it."""
    blocks: Count = 2
    """Residual blocks."""
    width: Count = 128
    """Width between the blocks."""
    hidden: Count = 256
    """Width inside a block."""
    hidden_dropout: Dropout = 0.1
    """Dropout inside a block."""
    residual_dropout: Dropout = 0.0
    """Dropout of what a block adds."""
    out: Count = 128
    """Width before the last linear map."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class DCNv2Config:
    """Deep and cross network (Wang et al. 2021)."""

    kind: Literal["dcnv2"] = "dcnv2"
    squeeze: Squeeze = "linear_per_feature"
    """How the tokens of a row become one number each; raw columns skip it."""
    width: Count = 128
    """Width of all layers."""
    cross: Count = 2
    """Cross layers."""
    deep: Count = 2
    """Layers of the deep network."""
    cross_dropout: Dropout = 0.1
    """Dropout of what a cross layer adds."""
    hidden_dropout: Dropout = 0.1
    """Dropout in the deep network."""
    stacked: bool = True
    """The deep network reads the cross layers; otherwise both read the input, side by side."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class AutoIntConfig:
    """Attention between columns (Song et al. 2019)."""

    kind: Literal["autoint"] = "autoint"
    squeeze: Squeeze = "linear_per_feature"
    """How the tokens of a row become one number each; raw columns skip it."""
    layers: Count = 2
    """Attention layers."""
    dim: Count = 32
    """Width of a column's token."""
    heads: Count = 2
    """Attention heads."""
    attention_dropout: Dropout = 0.1
    """Dropout of the attention weights."""
    residual_dropout: Dropout = 0.0
    """Dropout of what attention gives."""

    def __post_init__(self) -> None:
        check(self)
        _check_heads(self.dim, self.heads)


@dataclass(frozen=True)
class FTTransformerConfig:
    """FT-Transformer (Gorishniy et al. 2021, section 3.3)."""

    kind: Literal["fttransformer"] = "fttransformer"
    squeeze: Squeeze = "linear_per_feature"
    """How the tokens of a row become one number each; raw columns skip it."""
    blocks: Count = 2
    """Transformer blocks."""
    dim: Count = 32
    """Width of a column's token."""
    heads: Count = 4
    """Attention heads."""
    hidden: Count = 64
    """Width inside the feed-forward maps."""
    attention_dropout: Dropout = 0.1
    """Dropout of the attention weights."""
    hidden_dropout: Dropout = 0.1
    """Dropout inside the feed-forward maps."""
    residual_dropout: Dropout = 0.0
    """Dropout of what attention and feed-forward maps add."""

    def __post_init__(self) -> None:
        check(self)
        _check_heads(self.dim, self.heads)


NetConfig = (
    LinearConfig | MLPConfig | ResNetConfig | DCNv2Config | AutoIntConfig | FTTransformerConfig
)


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained on labels."""

    learning_rate: AtLeastZero = 1e-3
    """AdamW's at the start; half a cosine leads to 0 at the last step."""
    weight_decay: AtLeastZero = 1e-2
    """AdamW's, of all but biases, norms and other 1-d parameters; under compat official of all."""
    batch: Annotated[int, Range(ge=2)] = 512
    """Rows in a step; all of them where there are fewer."""
    epochs: Count = 200
    """Passes over the training rows, at most."""
    patience: Count = 16
    """Epochs without a smaller validation loss after which training stops."""
    validation: Annotated[float, Range(gt=0, lt=1)] = 0.1
    """Share of the training rows held out for validation where none are given."""
    half_cosine: Annotated[int, Range(ge=0)] = 0
    """Steps after which the learning rate is 0 and turns; 0: all steps. Compat official only."""
    seed: Annotated[int, Range(ge=0)] = 0
    """Seed of the order of rows, of dropout and of the rows held out."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto takes the accelerator if there is one."""
    compat: Literal["none", "official"] = "none"
    """official keeps the last weights instead of the best validated ones."""

    def __post_init__(self) -> None:
        check(self)
        if self.half_cosine and self.compat == "none":
            raise ConfigError(
                f"half_cosine is {self.half_cosine}", remedy="allowed: 0 without compat official"
            )


@dataclass(frozen=True)
class HeadConfig:
    """A network and how it is trained."""

    net: NetConfig = LinearConfig()
    training: TrainingConfig = TrainingConfig()

    def __post_init__(self) -> None:
        check(self)


def _check_heads(dim: int, heads: int) -> None:
    if dim % heads:
        raise ConfigError(f"dim is {dim}", remedy=f"allowed: a multiple of heads ({heads})")
