"""`jepa linear curves`: learning curves of modes at given times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from jepa_core.config import Range, check
from jepa_core.errors import ConfigError
from jepa_core.report import Table
from jepa_linear.data.known import from_modes
from jepa_linear.dynamics import trajectory
from jepa_linear.times import Status, critical_time, fixed_point, status


@dataclass(frozen=True)
class Curves:
    """How strong the encoder is on modes at given times, from the exact solution."""

    lam: tuple[float, ...]
    """lambda of each mode: covariance of the two views along it."""
    rho: tuple[float, ...]
    """rho of each mode: lambda over the variance of x."""
    times: tuple[float, ...] = ()
    """Paper times (steps times L times the learning rate), ascending."""
    depth: Annotated[int, Range(ge=1)] = 2
    """Encoder layers L."""
    layer_scale: Annotated[float, Range(gt=0)] = 0.1
    """Initial scale of every layer and of the predictor."""
    objective: Literal["jepa", "mae"] = "jepa"
    """Latent prediction, or reconstruction."""
    p: Annotated[float, Range(gt=0, lt=1)] = 0.5
    """A mode counts as learned at this share of its plateau."""

    def __call__(self) -> None:
        check(self)
        from_modes(self.lam, self.rho, where="--lam, --rho")
        lam, rho = np.array(self.lam), np.array(self.rho)
        if not lam.size:
            raise ConfigError("no mode is given", where="--lam", remedy="give one number or more")
        scale = {"layer_scale": self.layer_scale, "objective": self.objective}
        arrival = critical_time(lam, rho, self.depth, p=self.p, **scale)  # type: ignore[arg-type]
        code = status(lam, rho, self.depth, p=self.p, **scale)  # type: ignore[arg-type]
        known = arrival[np.isfinite(arrival) & (arrival > 0)]
        if self.times:
            times = np.array(self.times)
        elif known.size:
            times = np.linspace(0, 1.5 * known.max(), 13)
        else:
            times = np.linspace(0, 100, 11)
        w = trajectory(lam, rho, self.depth, times=times, **scale)  # type: ignore[arg-type]
        plateau = fixed_point(rho, self.depth, self.objective)
        rows: list[list[str | float | int | None]] = [
            [f"{time:.6g}", *(f"{value:.6g}" for value in w[:, i])] for i, time in enumerate(times)
        ]
        words = [
            f"{time:.6g}" if one == Status.GROWS else Status(int(one)).label
            for time, one in zip(arrival, code, strict=True)
        ]
        rows.append(["plateau", *(f"{value:.6g}" for value in plateau)])
        rows.append([f"time of {self.p:g} of it", *words])
        Table(
            f"Strength w of the encoder, {self.objective.upper()}, L = {self.depth}, "
            f"a0 = {self.layer_scale:g}",
            ("paper time", *(f"lambda {a:g}, rho {b:g}" for a, b in zip(lam, rho, strict=True))),
            rows,
        ).print()
