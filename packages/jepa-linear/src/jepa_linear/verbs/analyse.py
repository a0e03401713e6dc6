"""`jepa linear analyse`: what each objective would learn first on your data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jepa_core.config import Range, check, to_dict
from jepa_core.errors import ConfigError
from jepa_core.run import Run, next_free, run_record, write_json
from jepa_linear.analysis import Analysis, analyse
from jepa_linear.modal import modes
from jepa_linear.pictures import main_order, save_pictures
from jepa_linear.presets import AnalysisConfig
from jepa_linear.report import write_report, write_summary
from jepa_linear.simulate import Simulation, simulate
from jepa_linear.tables import (
    details_table,
    directions_table,
    order_table,
    simulation_table,
    summary_table,
    to_json,
)
from jepa_linear.verbs.source import Reading
from jepa_linear.verdict import summary

_ON_SCREEN, _IN_REPORT = 12, 40


@dataclass(frozen=True)
class Analyse:
    """Which directions of your data latent prediction learns first, and which reconstruction does.

    Two files are two views of the same rows; one file is read by what it holds. Writes a run folder
    with report.html, analysis.json, the tables and the pictures with their arrays.
    """

    data: tyro.conf.Positional[tuple[Path, ...]]
    """One file, or two with x and y."""
    reading: Reading = Reading()
    """Reading."""
    preset: str = "deep"
    """Depths and scale whose values the other flags override; `jepa linear info` shows them."""
    config: AnalysisConfig = AnalysisConfig()
    """What is asked."""
    holdout: Annotated[float, Range(ge=0, lt=1)] = 0.3
    """Share of the rows on which directions are measured after the others served to find them."""
    resamples: Annotated[int, Range(ge=0)] = 200
    """Bootstrap draws for intervals and probabilities; 0 for none."""
    lr: Annotated[float, Range(gt=0)] | None = None
    """Learning rate: times are then printed as steps of gradient descent."""
    simulate: bool = False
    """Also train whole matrices on the covariances, and compare."""
    seconds: Annotated[float, Range(gt=0)] = 30.0
    """Roughly what one simulation may take."""
    seed: Annotated[int, Range(ge=0)] = 0
    """Seed of what is held out and drawn."""
    out: Path | None = None
    """The run folder to write; by default the next free runs/linear-analyse."""
    overwrite: bool = False
    """Replace the run in the folder."""

    def __call__(self) -> None:
        check(self)
        if not self.data:
            raise ConfigError("no data", where="jepa linear analyse", remedy="name a file")
        views = self.reading.read(self.data)
        found = analyse(
            views,
            self.config,
            holdout=self.holdout,
            resamples=self.resamples,
            seed=self.seed,
        )
        simulations = simulated(found, self.seconds) if self.simulate else []
        out = self.out or next_free(Path("runs/linear-analyse"))
        run = Run.create(
            out, run_record("linear", "analyse", to_dict(self)), overwrite=self.overwrite
        )
        show(found, simulations, self.lr)
        save(run, found, simulations, self.lr)
        write_summary(run, summary(found, simulations))
        print(f"report: {write_report(run)}")


def simulated(found: Analysis, seconds: float) -> list[Simulation]:
    """A simulation of every depth and objective that is fast enough; says which are not.

    Raises
    ------
    ConfigError
        None is.
    """
    views, config = found.views, found.config
    ridge = config.ridge * float(views.Sxx.trace()) / len(views.Sxx)
    whole = modes(views.Sxx, views.Syx, basis=config.basis, ridge=ridge)
    done: list[Simulation] = []
    failed: list[ConfigError] = []
    for one in found.orders:
        for side in one.sides():
            try:
                done.append(
                    simulate(
                        views.Sxx,
                        views.Syx,
                        whole,
                        one.depth,
                        layer_scale=one.layer_scale,
                        p=config.p,
                        objective=side.objective,
                        seconds=seconds,
                    )
                )
            except ConfigError as error:
                failed.append(error)
    if not done:
        raise failed[0]
    for one_error in failed:
        print(f"not simulated: {one_error}")
    return done


def show(found: Analysis, simulations: list[Simulation], lr: float | None) -> None:
    """Print the verdict and the first rows of the order at the depth where it matters most."""
    for paragraph in summary(found, simulations):
        print(f"{paragraph}\n")
    summary_table(found).print()
    order_table(found, main_order(found), _ON_SCREEN, lr).print()
    if simulations:
        simulation_table(simulations).print()


def save(
    run: Run, found: Analysis, simulations: list[Simulation], lr: float | None, prefix: str = ""
) -> None:
    """Write tables, pictures and analysis.json into a run."""
    run.save_table(f"{prefix}1-summary", summary_table(found))
    for number, one in enumerate(found.orders):
        name = f"{prefix}2-order-{number:02d}"
        run.save_table(f"{name}-a", order_table(found, one, _IN_REPORT, lr))
        run.save_table(f"{name}-b", details_table(found, one, _IN_REPORT))
    run.save_table(f"{prefix}3-directions", directions_table(found, _IN_REPORT))
    if simulations:
        run.save_table(f"{prefix}4-simulation", simulation_table(simulations))
    write_json(run.path / "analysis.json", to_json(found, simulations))
    save_pictures(run, found, simulations, prefix=prefix)
