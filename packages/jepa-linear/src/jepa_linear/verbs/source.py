"""Flags that say what is analysed, and the record of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from jepa_core.config import Range, check
from jepa_core.errors import ConfigError
from jepa_linear.data.inputs import Choice, read
from jepa_linear.data.views import Masks, Scale, Target, Views


@dataclass(frozen=True)
class Reading:
    """How files become two views.

    Two files are x and y. One .npz holds x and y, or Sxx and Syx, or lam and rho. A Parquet file of
    embeddings holds two columns of vectors. Any other file is one table: give --lag or --keep.
    """

    view_columns: tuple[str, str] | None = None
    """Two columns of vectors in a Parquet file; by default view_0 and view_1."""
    columns: tuple[str, ...] = ()
    """Features of a table; by default every column but group and order."""
    group: str | None = None
    """Column of what rows belong to: series are not joined across it, and it is drawn whole."""
    order: str | None = None
    """Column of the time of a row, to check that rows are in order."""
    lag: Annotated[int, Range(ge=0)] = 0
    """Rows from x to y in one table."""
    keep: float | None = None
    """Probability that a random mask keeps a feature of x."""
    noise: float = 0.0
    """Variance of the noise of each feature, before masking."""
    target: Target = "full"
    """What masks leave to predict: the whole row, what x lacks, or another mask's row."""
    scale: Scale = "none"
    """std divides features by their standard deviation, which can change the order; global divides
    all by one number, which changes only the unit of time."""
    ddof: Annotated[int, Range(ge=0, le=1)] = 0
    """Covariances are divided by n less this."""

    def __post_init__(self) -> None:
        check(self)

    def read(self, paths: tuple[Path, ...]) -> Views:
        """Two views from these files."""
        if self.keep is None and (self.noise or self.target != "full"):
            raise ConfigError(
                "noise and target belong to random masks", where="--noise", remedy="give --keep too"
            )
        masks = None if self.keep is None else Masks(self.keep, self.noise, self.target)
        return read(
            *paths,
            choice=Choice(
                self.view_columns,
                self.columns,
                self.group,
                self.order,
                self.lag,
                masks,
                self.scale,
                self.ddof,
            ),
        )
