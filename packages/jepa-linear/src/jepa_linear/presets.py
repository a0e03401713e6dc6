"""What is asked of an analysis, and the scales that are usually asked about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from jepa_core.config import Range, check
from jepa_core.errors import ConfigError

Level = Literal["absolute", "plateau"]
Basis = Literal["generalised", "pca", "features"]

_SAME = 1e-8


@dataclass(frozen=True)
class AnalysisConfig:
    """Depths, initial scale, and what counts as learned.

    Give the scale of a layer or of the whole encoder: at a fixed one, depths are compared
    differently than at the other.
    """

    depth: tuple[Annotated[int, Range(ge=1)], ...] = (1, 2, 4)
    """Numbers of encoder layers L."""
    layer_scale: Annotated[float, Range(gt=0)] | None = None
    """Initial scale a0 of every layer and of the predictor; 0.1 if neither scale is given."""
    eps: Annotated[float, Range(gt=0)] | None = None
    """Initial scale a0^L of the whole encoder, the paper's convention."""
    p: Annotated[float, Range(gt=0, lt=1)] = 0.5
    """A direction counts as learned at this share of its own plateau."""
    level: Level = "absolute"
    """What the order is by: an absolute strength of the encoder, the same for all directions, or
    the paper's share p of each direction's own plateau. Both are printed."""
    reached: Annotated[float, Range(gt=0)] | None = None
    """The absolute strength, as the scale a layer reaches; by default half of the largest plateau,
    and 1.05 a0 at least."""
    basis: Basis = "generalised"
    """Directions: those that predict best, the principal components of x, or the features."""
    ridge: Annotated[float, Range(ge=0)] = 0.0
    """Added to the variances of x when directions are computed, as a share of their mean."""

    def __post_init__(self) -> None:
        check(self)
        if not self.depth:
            raise ConfigError("no depth is given", where="depth", remedy="give one or more")
        if self.layer_scale is not None and self.eps is not None:
            for depth in self.depth:
                if abs(self.layer_scale**depth - self.eps) > _SAME * self.eps:
                    raise ConfigError(
                        f"layer_scale {self.layer_scale:g} to the power {depth} is "
                        f"{self.layer_scale**depth:g}, not eps {self.eps:g}",
                        where="eps",
                        remedy="give one of the two",
                    )

    def scale(self, depth: int) -> float:
        """The layer scale a0 at a depth."""
        if self.layer_scale is not None:
            return self.layer_scale
        if self.eps is not None:
            return float(self.eps ** (1 / depth))
        return 0.1

    @property
    def fixed(self) -> str:
        """Which scale is the same at every depth, in words."""
        if self.layer_scale is None and self.eps is not None:
            return f"encoder scale eps = {self.eps:g} at every depth"
        return f"layer scale a0 = {self.scale(1):g} at every depth"


ANALYSIS = {
    "deep": AnalysisConfig(depth=(1, 2, 4, 8)),
    "paper": AnalysisConfig(depth=(1, 2, 3, 4, 5), eps=1e-3, level="plateau"),
    "nano": AnalysisConfig(depth=(1, 2), layer_scale=0.3),
}
