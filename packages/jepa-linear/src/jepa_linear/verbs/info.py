"""`jepa linear info`: a preset's numbers and its critical times."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from jepa_core.config import check, to_dict
from jepa_core.report import Table
from jepa_linear.presets import AnalysisConfig
from jepa_linear.times import Status, critical_time, status

# lambda and rho of modes that show what a preset does.
_MODES = ((1.0, 1.0), (1.0, 0.5), (1.0, 0.2), (1.5, 0.5))


@dataclass(frozen=True)
class Info:
    """What a preset asks, and when it has four modes learned at half of their plateau."""

    preset: str = "deep"
    """Which."""
    config: AnalysisConfig = AnalysisConfig()
    """What is asked."""
    json: bool = False
    """Print JSON."""

    def __call__(self) -> None:
        check(self)
        times: list[dict[str, Any]] = [
            {
                "depth": depth,
                "layer_scale": self.config.scale(depth),
                "lambda": lam,
                "rho": rho,
                "jepa": _time(self.config, depth, lam, rho, "jepa"),
                "mae": _time(self.config, depth, lam, rho, "mae"),
            }
            for depth in self.config.depth
            for lam, rho in _MODES
        ]
        if self.json:
            print(json.dumps({"config": to_dict(self.config), "times": times}, indent=2))
            return
        settings = Table(
            f"preset {self.preset}",
            ("setting", "value"),
            [[key, _text(value)] for key, value in to_dict(self.config).items()],
            notes=(f"Scales: {self.config.fixed}.",),
        )
        settings.print()
        rows: list[list[str | float | int | None]] = [
            [
                one["depth"],
                f"{one['layer_scale']:.4g}",
                f"{one['lambda']:g}",
                f"{one['rho']:g}",
                *(t if isinstance(t := one[name], str) else f"{t:.6g}" for name in ("jepa", "mae")),
            ]
            for one in times
        ]
        Table(
            f"critical times at p = {self.config.p:g} of each mode's own plateau",
            ("L", "a0", "lambda", "rho", "JEPA", "MAE"),
            rows,
            notes=("Paper time: divided by L and the learning rate it is steps.",),
        ).print()


def _time(config: AnalysisConfig, depth: int, lam: float, rho: float, name: str) -> float | str:
    setting = {"layer_scale": config.scale(depth), "p": config.p, "objective": name}
    code = Status(int(status(lam, rho, depth, **setting)))  # type: ignore[arg-type]
    if code != Status.GROWS:
        return code.label
    return float(critical_time(lam, rho, depth, **setting))  # type: ignore[arg-type]


def _text(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "–" if value is None else str(value)
