"""The papers' recipes, digit by digit, and `nano`.

Sources: Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive
Architecture" (arXiv 2301.08243, I-JEPA), Mo and Yun, "DMT-JEPA: Discriminative Masked Targets for
Joint-Embedding Predictive Architecture" (arXiv 2405.17995), and the configurations of their
official programs. Only builtin types and no heavy import: the command's help reads these classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from jepa_core.config import Range, check
from jepa_core.errors import ConfigError
from jepa_core.masking.blocks import block_area, block_size, block_sizes

Fraction = Annotated[float, Range(ge=0, le=1)]
Positive = Annotated[float, Range(gt=0)]
AtLeastZero = Annotated[float, Range(ge=0)]
Count = Annotated[int, Range(ge=1)]


@dataclass(frozen=True)
class ModelConfig:
    """Shapes of encoder and predictor."""

    image: Annotated[tuple[int, int], Range(ge=1)] = (224, 224)
    """Height and width of a training crop (pixels)."""
    patch: Count = 16
    """Side of a square patch (pixels)."""
    channels: Count = 3
    """Channels of the input."""
    dim: Count = 384
    """Width of the encoder."""
    depth: Count = 12
    """Blocks of the encoder."""
    heads: Count = 6
    """Attention heads of the encoder, of the predictor and of the aggregation head."""
    mlp_ratio: Positive = 4.0
    """Hidden width of the encoder's MLPs over its width."""
    predictor_dim: Count = 384
    """Width of the predictor."""
    predictor_depth: Count = 6
    """Blocks of the predictor."""
    residual_scale: Literal["depth", "none"] = "depth"
    """depth divides the initial weights that end block l's branches by sqrt(2 l); none does not,
    as the official program ends up doing."""

    def __post_init__(self) -> None:
        check(self)
        for side in self.image:
            if side % self.patch:
                raise ConfigError(
                    f"image is {list(self.image)}",
                    remedy=f"allowed: multiples of patch ({self.patch})",
                )
        for name, dim in (("dim", self.dim), ("predictor_dim", self.predictor_dim)):
            if dim % 4:
                raise ConfigError(
                    f"{name} is {dim}",
                    remedy="allowed: a multiple of 4, which its position table needs",
                )
            if dim % self.heads:
                raise ConfigError(
                    f"{name} is {dim}", remedy=f"allowed: a multiple of heads ({self.heads})"
                )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of a training crop."""
        return self.image[0] // self.patch, self.image[1] // self.patch


@dataclass(frozen=True)
class MaskConfig:
    """Multi-block masks (I-JEPA, section 3, and the released configurations)."""

    contexts: Count = 1
    """Context blocks of an image."""
    targets: Count = 4
    """Target blocks of an image."""
    context_scale: Annotated[tuple[float, float], Range(gt=0, le=1)] = (0.85, 1.0)
    """Least and largest area of the context block, as a share of the grid."""
    target_scale: Annotated[tuple[float, float], Range(gt=0, le=1)] = (0.15, 0.2)
    """Least and largest area of a target block."""
    target_aspect: Annotated[tuple[float, float], Range(gt=0)] = (0.75, 1.5)
    """Least and largest height over width of a target block."""
    min_keep: Annotated[int, Range(ge=0)] = 10
    """A block must hold more patches than this."""
    overlap: bool = False
    """Leave the targets in the context."""
    compat: Literal["none", "official"] = "none"
    """official repeats the program's sampler, which never reaches the last row and column and cuts
    every context to the batch's shortest; none reaches every patch and cuts nothing."""

    def __post_init__(self) -> None:
        check(self)
        for name in ("context_scale", "target_scale", "target_aspect"):
            low, high = getattr(self, name)
            if low > high:
                raise ConfigError(
                    f"{name} is {[low, high]}", remedy="allowed: the smaller value first"
                )


@dataclass(frozen=True)
class DMTConfig:
    """How DMT-JEPA turns target tokens into discriminative local targets (section 3.2)."""

    neighbours: Count = 4
    """Most similar neighbours of a patch that its target is made of."""
    window: Count = 3
    """Side of the square of candidates around a patch; odd."""
    border: Literal["clip", "wrap"] = "clip"
    """Candidates end at the image's border, or go on at the other side as in the official
    program."""
    choice: Literal["similar", "random"] = "similar"
    """Take the most similar candidates, or any (an ablation)."""
    include_self: bool = False
    """Let the patch itself be among what its target is made of."""
    query: Literal["patch", "mean"] = "patch"
    """What asks the neighbours: the patch's own token, or the papers' mean token of the image, with
    which targets start as constants of the image."""
    aggregator: Literal["head", "paper", "mean", "max"] = "head"
    """The official program's cross-attention blocks, the paper's single attention without maps of
    the values, or the mean or maximum of the neighbours (ablations; no head then)."""
    context: Literal["cross", "self"] = "cross"
    """What the head does to context tokens: one mean token asks them all, or each asks all."""
    pairing: Literal["image", "official"] = "image"
    """image asks with the mean token of the same image; official repeats the program, which asks
    with that of another image of the batch."""
    warmup: Fraction = 0.0
    """Share of the run over which targets turn from patch tokens into aggregates."""
    variance_floor: AtLeastZero = 0.0
    """Weight of a hinge that keeps the standard deviation between the tokens that leave the head in
    an image above one half."""

    def __post_init__(self) -> None:
        check(self)
        if self.window % 2 == 0 or self.window < 3:
            raise ConfigError(
                f"window is {self.window}", remedy="allowed: an odd number, 3 or more"
            )
        if self.neighbours > self.window**2 - 1:
            raise ConfigError(
                f"neighbours is {self.neighbours}",
                remedy=f"allowed: up to {self.window**2 - 1} in a window of {self.window}",
            )
        if self.pairing == "official" and (
            self.query != "mean" or self.aggregator not in ("head", "paper")
        ):
            raise ConfigError(
                "pairing is official without a mean token that asks",
                remedy="set query to mean and aggregator to head, or pairing to image",
            )


@dataclass(frozen=True)
class AugmentConfig:
    """What happens to an image before it is cut into patches; the papers only crop."""

    crop_scale: Annotated[tuple[float, float], Range(gt=0, le=1)] = (0.3, 1.0)
    """Least and largest area of a crop, as a share of the image."""
    crop_ratio: Annotated[tuple[float, float], Range(gt=0)] = (3 / 4, 4 / 3)
    """Least and largest width over height of a crop."""
    flip: Fraction = 0.0
    """Probability of a horizontal flip."""
    jitter: Fraction = 0.0
    """Strength s of colour jitter: brightness, contrast and saturation by up to 0.8 s, hue by up
    to 0.2 s, with probability 0.8; then grey with probability 0.2. 0 = off."""
    blur: Fraction = 0.0
    """Probability of a Gaussian blur of radius 0.1 to 2 pixels."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean of each channel (0..1) that is subtracted."""
    std: Annotated[tuple[float, ...], Range(gt=0)] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel that is divided by."""

    def __post_init__(self) -> None:
        check(self)
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ConfigError(
                    f"{name} is {[low, high]}", remedy="allowed: the smaller value first"
                )
        if len(self.mean) != len(self.std):
            raise ConfigError(
                f"mean has {len(self.mean)} channels and std {len(self.std)}",
                remedy="give one of each a channel",
            )


@dataclass(frozen=True)
class PretrainConfig:
    """One pre-training recipe."""

    method: Literal["i-jepa", "dmt-jepa"] = "dmt-jepa"
    """Predict the target encoder's tokens, or aggregates of their neighbours."""
    model: ModelConfig = ModelConfig()
    masks: MaskConfig = MaskConfig()
    dmt: DMTConfig = DMTConfig()
    augment: AugmentConfig = AugmentConfig()
    loss: Literal["smooth-l1", "l2"] = "smooth-l1"
    """Distance of predicted and target tokens: the programs' or the papers'."""
    joint: bool = False
    """One pass of the predictor for all target blocks, which then see each other: faster, and not
    the papers' objective."""
    epochs: Positive = 300.0
    """Passes over the images."""
    steps: Annotated[int, Range(ge=0)] = 0
    """Optimiser steps; 0 = what `epochs` come to."""
    warmup_epochs: AtLeastZero = 40.0
    """Passes of linear warm-up; with `steps` set, scaled along with `epochs`."""
    batch_size: Count = 2048
    """Images in an optimiser step, over all processes and accumulated parts."""
    accumulation: Count = 1
    """Parts a batch is computed in."""
    learning_rate: Positive = 1e-3
    """Peak learning rate."""
    initial_learning_rate: AtLeastZero = 2e-4
    """Learning rate at the start of the warm-up."""
    final_learning_rate: AtLeastZero = 1e-6
    """Learning rate at the end."""
    weight_decay: AtLeastZero = 0.04
    """Weight decay at the start; it follows a cosine."""
    final_weight_decay: AtLeastZero = 0.4
    """Weight decay at the end."""
    momentum: Fraction = 0.996
    """EMA momentum at the start; it rises linearly."""
    final_momentum: Fraction = 1.0
    """EMA momentum at the end."""
    schedule_stretch: Annotated[float, Range(ge=1)] = 1.0
    """Schedules are laid out for this many times the run, which ends on their way."""
    betas: Annotated[tuple[float, float], Range(ge=0, lt=1)] = (0.9, 0.999)
    """AdamW's betas."""
    eps: Positive = 1e-8
    """AdamW's epsilon."""
    clip_norm: AtLeastZero = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    checkpoint_every: Count = 10_000
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        check(self)
        if self.warmup_epochs > self.epochs:
            raise ConfigError(
                f"warmup_epochs is {self.warmup_epochs:g}",
                remedy=f"allowed: up to epochs ({self.epochs:g})",
            )
        if self.batch_size % self.accumulation:
            raise ConfigError(
                f"accumulation is {self.accumulation}",
                remedy=f"allowed: a divisor of batch_size ({self.batch_size})",
            )
        if len(self.augment.mean) != self.model.channels:
            raise ConfigError(
                f"augment.mean has {len(self.augment.mean)} values",
                remedy=f"give one for each of {self.model.channels} channels, and of augment.std",
            )
        if self.model.channels != 3 and (self.augment.jitter or self.augment.blur):
            raise ConfigError(
                "augment.jitter and augment.blur are for three channels", remedy="set both to 0"
            )
        check_blocks(self.masks, self.model.grid)

    def length(self, images: int) -> tuple[int, int]:
        """Optimiser steps and warm-up steps of this recipe on so many images.

        Raises
        ------
        ConfigError
            Fewer images than a batch, which make no step.
        """
        epoch = images // self.batch_size
        if not epoch:
            raise ConfigError(
                f"batch_size is {self.batch_size}, and there are {images} images",
                remedy="take a smaller batch, or more images",
            )
        steps = self.steps or max(1, math.floor(self.epochs * epoch))
        return steps, round(steps * self.warmup_epochs / self.epochs)


def target_sizes(masks: MaskConfig, grid: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Every height and width (patches) that a target of the recipe can have, ascending."""
    official = masks.compat == "official"
    limits = (grid[0] - 1, grid[1] - 1) if official else grid
    (least, most), (low, high) = masks.target_scale, masks.target_aspect
    draws = 2**24 if official else 2**53  # uniform numbers k / draws, in float32 there
    most_area = block_area(grid, least + (draws - 1) / draws * (most - least))
    sizes: set[tuple[int, int]] = set()
    for area in range(block_area(grid, least), most_area + 1):
        begin, end = 0.0, 1.0
        if official and least < most:  # one number draws both: an area has the aspects beside it
            shares = area / (grid[0] * grid[1]), (area + 1) / (grid[0] * grid[1])
            begin, end = ((share - least) / (most - least) for share in shares)
        first = math.ceil(max(begin, 0.0) * draws) / draws
        last = (math.ceil(min(end, 1.0) * draws) - 1) / draws
        aspects = low + first * (high - low), low + last * (high - low)
        sizes |= block_sizes(area, aspects, limits)
    return tuple(sorted(sizes))


def check_blocks(masks: MaskConfig, grid: tuple[int, int]) -> None:
    """Refuse blocks that could not be drawn: too small ones would be redrawn for ever.

    Raises
    ------
    ConfigError
        A target or context block can have no more than `min_keep` patches; names the largest
        `min_keep` that is legal.
    """
    official = masks.compat == "official"
    context = block_size(
        block_area(grid, masks.context_scale[0]),
        1.0 if official else grid[0] / grid[1],
        (grid[0] - 1, grid[1] - 1) if official else grid,
    )
    targets = target_sizes(masks, grid)
    smallest = {
        "target": min(height * width for height, width in targets),
        "context": context[0] * context[1],
    }
    block, least = min(smallest.items(), key=lambda item: item[1])
    if least <= masks.min_keep:
        legal = (
            f"set masks.min_keep to {least - 1} or less, or take smaller patches or larger crops"
            if least
            else "take smaller patches or larger crops"
        )
        raise ConfigError(
            f"masks.min_keep is {masks.min_keep}, and a {block} block on a grid of "
            f"{grid[0]} x {grid[1]} patches can be as small as {least}",
            remedy=legal,
        )


# Widths, depths and heads of the encoders; the giant's MLP is 6144 wide.
TINY = ModelConfig(dim=192, heads=3)
SMALL = ModelConfig()
BASE = ModelConfig(dim=768, heads=12)
LARGE = ModelConfig(dim=1024, depth=24, heads=16, predictor_depth=12)
HUGE = ModelConfig(dim=1280, depth=32, heads=16, patch=14, predictor_depth=12)
GIANT = ModelConfig(dim=1408, depth=40, heads=16, mlp_ratio=48 / 11, predictor_depth=16)

SIZES: dict[str, ModelConfig] = {
    "tiny": TINY,
    "small": SMALL,
    "base": BASE,
    "large": LARGE,
    "huge": HUGE,
    "giant": GIANT,
}

_IJEPA = PretrainConfig(method="i-jepa")
_DMT = PretrainConfig(method="dmt-jepa", epochs=600.0, batch_size=2048)

# The released configurations, by the names of their files. Where the number of processes is not
# given, the batch is the 2048 that the authors say all experiments used.
_RELEASED = {
    "ijepa-in1k-vith14-ep300": replace(_IJEPA, model=HUGE),
    "ijepa-in1k-vith16-448-ep300": replace(_IJEPA, model=replace(HUGE, patch=16, image=(448, 448))),
    "ijepa-in22k-vith14-ep66": replace(_IJEPA, model=HUGE, epochs=66.0, warmup_epochs=3.0),
    "ijepa-in22k-vitg16-ep44": replace(_IJEPA, model=GIANT, epochs=44.0, warmup_epochs=3.0),
    "dmt-in1k-vitb16-ep600": replace(_DMT, model=BASE),
    "dmt-in1k-vitl16-ep600": replace(_DMT, model=LARGE),
    "dmt-in1k-vith14-ep300": replace(_DMT, model=HUGE, epochs=300.0),
}


def official(config: PretrainConfig) -> PretrainConfig:
    """The recipe with everything that the official programs do, mistakes included."""
    return replace(
        config,
        model=replace(config.model, residual_scale="none"),
        masks=replace(config.masks, compat="official"),
        dmt=replace(
            config.dmt,
            border="wrap",
            pairing="official",
            query="mean",
            warmup=0.0,
            include_self=False,
            variance_floor=0.0,
        ),
    )


# Small enough for two cores and a thousand images of 64 pixels: fewer steps leave encoders where
# their untrained twins are. The weight decay is constant; the papers' tenfold rise made no
# difference beyond noise (LEVERS.md).
NANO = PretrainConfig(
    model=ModelConfig(
        image=(64, 64), patch=8, dim=96, depth=4, heads=4, predictor_dim=48, predictor_depth=2
    ),
    masks=MaskConfig(min_keep=4),
    epochs=60.0,
    steps=5000,
    warmup_epochs=6.0,
    batch_size=48,
    final_weight_decay=0.04,
    momentum=0.99,
    checkpoint_every=500,
)

# Three seeds of six arms in a quarter of an hour on two cores.
REPRODUCE = replace(
    NANO, model=replace(NANO.model, dim=64, predictor_dim=32), steps=600, checkpoint_every=600
)
# Three arms in under two minutes.
DEMO = replace(REPRODUCE, model=replace(REPRODUCE.model, depth=3), steps=150, checkpoint_every=150)

PRETRAIN: dict[str, PretrainConfig] = {
    "nano": NANO,
    **{f"ijepa-{name}": replace(_IJEPA, model=size) for name, size in SIZES.items()},
    **{f"dmt-{name}": replace(_DMT, model=size) for name, size in SIZES.items()},
    **_RELEASED,
    **{f"official-{name}": official(recipe) for name, recipe in _RELEASED.items()},
}
