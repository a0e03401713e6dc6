"""`jepa linear phase`: who is first over a grid of modes, depths and scales."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from jepa_core.config import Range, check, to_dict
from jepa_core.report import Table
from jepa_core.run import Run, next_free, run_record
from jepa_linear.figures import save
from jepa_linear.panels import PHASES, phase_figure
from jepa_linear.report import write_report, write_summary
from jepa_linear.sweep import phase_diagram


@dataclass(frozen=True)
class Phase:
    """Which of two modes each objective learns first: mode A fixed, mode B over a grid.

    Writes phases.npz, a picture and a table. Axes are the ratios of lambda and of rho of B to A.
    """

    size: Annotated[int, Range(ge=2, le=8192)] = 512
    """Points along each axis."""
    depth: tuple[Annotated[int, Range(ge=1)], ...] = (1, 2, 4, 8)
    """Numbers of layers."""
    scale: tuple[Annotated[float, Range(gt=0)], ...] = (0.05, 0.1, 0.2)
    """Initial scales."""
    fix: Literal["layer_scale", "eps"] = "layer_scale"
    """What the scales are of: a layer (a0) or the whole encoder (eps = a0^L)."""
    lam: tuple[float, float] = (0.25, 4.0)
    """Range of lambda_B / lambda_A, logarithmic."""
    rho: tuple[float, float] = (0.1, 2.0)
    """Range of rho_B / rho_A."""
    rho_a: Annotated[float, Range(gt=0)] = 0.5
    """rho of mode A."""
    p: Annotated[float, Range(gt=0, lt=1)] = 0.5
    """A mode counts as learned at this share of its own plateau."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU for more than ten million points, where there is one."""
    out: Path | None = None
    """The run folder to write; by default the next free runs/linear-phase."""
    overwrite: bool = False
    """Replace the run in the folder."""

    def __call__(self) -> None:
        check(self)
        lam = np.geomspace(*self.lam, self.size)
        rho = self.rho_a * np.linspace(*self.rho, self.size)
        points = self.size**2 * len(self.depth) * len(self.scale)
        (columns, rows), device = _on(self.device, points, lam, rho)
        found = phase_diagram(
            columns, rows, self.depth, self.scale, rho_a=self.rho_a, p=self.p, fix=self.fix
        )
        phases = np.asarray(found.phases.cpu() if hasattr(found.phases, "cpu") else found.phases)
        out = self.out or next_free(Path("runs/linear-phase"))
        run = Run.create(
            out, run_record("linear", "phase", to_dict(self)), overwrite=self.overwrite
        )
        np.savez_compressed(
            run.path / "phases.npz",
            phases=phases,
            lam=lam,
            rho=rho,
            depth=np.array(self.depth),
            scale=np.array(self.scale),
        )
        table = phase_table(phases, self.depth, self.scale, self.fix)
        table.print()
        run.save_table("phases", table)
        symbol = "a0" if self.fix == "layer_scale" else "eps"
        step = max(1, self.size // 256)
        save(
            run,
            "phases",
            phase_figure(
                lam[::step],
                rho[::step] / self.rho_a,
                phases[:, :, ::step, ::step],
                self.depth,
                [f"{symbol} = {scale:g}" for scale in self.scale],
                labels=("lambda_B / lambda_A", "rho_B / rho_A"),
            ),
            f"Which of two modes is learned first. Mode A has lambda 1 and rho {self.rho_a:g}. In "
            "the bands at the bottom mode B starts close to its plateau or above it.",
        )
        text = (
            f"{phases.size:,} comparisons on {device}, {self.size} by {self.size} modes B beside "
            f"mode A (lambda 1, rho {self.rho_a:g}). The two objectives disagree on "
            f"{100 * np.isin(phases, (2, 3)).mean():.1f} % of them."
        )
        write_summary(run, [text])
        print(f"report: {write_report(run)}")


def phase_table(
    phases: np.ndarray, depths: tuple[int, ...], scales: tuple[float, ...], fix: str
) -> Table:
    """Share of the grid in each phase."""
    rows: list[list[str | float | int | None]] = []
    for i, scale in enumerate(scales):
        for j, depth in enumerate(depths):
            shares = np.bincount(phases[i, j].reshape(-1), minlength=len(PHASES))
            rows.append(
                [f"{scale:g}", depth, *(f"{100 * s / phases[i, j].size:.1f}" for s in shares)]
            )
    return Table(
        "Share of the grid, %",
        ("a0" if fix == "layer_scale" else "eps", "L", *(words for words, _ in PHASES)),
        rows,
    )


def _on(device: str, points: int, *arrays: np.ndarray) -> tuple[list[Any], str]:
    """The arrays where they are to be computed, and the name of that place."""
    if device == "cpu" or (device == "auto" and points < 10_000_000):
        return list(arrays), "the CPU"
    import torch

    from jepa_core.training.device import find_device

    place = torch.device(find_device("cuda" if device == "cuda" else "auto"))
    if place.type != "cuda":
        return list(arrays), "the CPU"
    return [torch.from_numpy(a).to(place) for a in arrays], torch.cuda.get_device_name(place)
