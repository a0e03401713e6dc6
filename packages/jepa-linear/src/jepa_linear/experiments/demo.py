"""`jepa linear demo`: the theory in pictures, one analysis of generated data, without a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from jepa_core.config import Range, check, to_dict
from jepa_core.report import Table
from jepa_core.run import Run, next_free, run_record
from jepa_linear.analysis import Analysis, analyse
from jepa_linear.data.views import paired
from jepa_linear.experiments import matrices, theory
from jepa_linear.generative import temporal_pairs
from jepa_linear.presets import AnalysisConfig
from jepa_linear.report import write_report, write_summary
from jepa_linear.simulate import Simulation
from jepa_linear.verbs.analyse import save, simulated
from jepa_linear.verdict import advice, trust

# Three latent signals of equal covariance: memory, variance of the signal, variance of the noise.
SIGNALS = ("slow and clean", "fast", "slow and noisy")
MEMORY = np.array([0.95, 0.5, 0.95])
SIGNAL = np.array([1.0, 1.9, 1.0])
NOISE = np.array([0.1, 0.0, 4.0])

_SIGNALS = (
    "All three signals have the same covariance between the views (lambda 0.95); rho is 0.86, 0.50 "
    "and 0.19. Layer scale a0 = 0.1, half of each direction's own plateau."
)
CONFIG = AnalysisConfig(depth=(2, 4), layer_scale=0.1, level="plateau")


@dataclass(frozen=True)
class Demo:
    """Draw the theory, then analyse pairs of a generated series and check the order by simulation.

    The series has three hidden signals of equal covariance between the views: one slow and clean,
    one fast, one slow and noisy. Takes under a minute.
    """

    out: Path | None = None
    """The run folder to write; by default the next free runs/linear-demo."""
    pairs: Annotated[int, Range(ge=100)] = 20_000
    """Pairs of the series that are analysed."""
    seed: Annotated[int, Range(ge=0)] = 0
    """Seed of the series."""
    overwrite: bool = False
    """Replace the run in the folder."""

    def __call__(self) -> None:
        check(self)
        out = self.out or next_free(Path("runs/linear-demo"))
        run = Run.create(out, run_record("linear", "demo", to_dict(self)), overwrite=self.overwrite)
        x, y = temporal_pairs(MEMORY, SIGNAL, NOISE, self.pairs, seed=self.seed)
        found = analyse(paired(x, y, names=SIGNALS), CONFIG, holdout=0, seed=self.seed)
        simulations = simulated(found, seconds=8.0)
        order = order_table(found, simulations)
        order.print()
        run.save_table("0-order", order)
        save(run, found, simulations, None, prefix="9-")
        theory.save_learning(run)
        theory.save_depth(run)
        matrices.save_phases(run)
        largest = matrices.save_descent(run)
        matrices.save_views(run)
        slope = matrices.save_leakage(run)
        matrices.save_collapse(run)
        for name, table in (
            ("1-reference", theory.reference_table()),
            ("2-depth", theory.depth_sweep_table()),
            ("3-inversion", theory.inversion_table()),
        ):
            run.save_table(name, table)
        words = ", ".join(f"{100 * off:.1f} % ({name})" for name, off in largest.items())
        leak = ", ".join(f"{value:.2f} at L = {depth}" for depth, value in slope.items())
        matrix = (
            f"Gradient descent of whole matrices stays within {words} of the formula, relative to "
            f"the largest plateau. Where the assumption fails by delta, leakage is delta times "
            f"{leak}."
        )
        paragraphs = [in_words(found), f"{trust(found.modes)} {advice(found)}", matrix]
        for paragraph in paragraphs:
            print(f"\n{paragraph}")
        write_summary(run, paragraphs)
        print(f"\nreport: {write_report(run)}")


def named(found: Analysis, order: np.ndarray) -> list[str]:
    """Names of the signals in this order: the feature that weighs most in each direction."""
    return [found.loadings(int(i), 1, signed=False)[0] for i in order]


def order_table(found: Analysis, simulations: list[Simulation]) -> Table:
    """The predicted order of both objectives, and the simulated one where there is one."""
    rows: list[list[str | float | int | None]] = []
    for one in found.orders:
        for side in one.sides():
            run = next(
                (s for s in simulations if s.depth == one.depth and s.objective == side.objective),
                None,
            )
            measured = "not simulated: too slow"
            if run is not None:
                arrived = np.flatnonzero(np.isfinite(run.measured))
                measured = ", ".join(named(found, arrived[np.argsort(run.measured[arrived])]))
            probability = side.next_probability[np.isfinite(side.next_probability)]
            rows.append(
                [
                    one.depth,
                    side.objective.upper(),
                    ", ".join(named(found, side.order)),
                    measured,
                    ", ".join(f"{p:.2f}" for p in probability),
                ]
            )
    return Table(
        "What is learned first: predicted from samples, and simulated",
        ("L", "objective", "predicted order", "simulated order", "P of each step"),
        rows,
        notes=(_SIGNALS,),
    )


def in_words(found: Analysis) -> str:
    """What came out of the analysis of the generated series."""
    last = found.orders[-1]
    jepa, mae = (named(found, side.order) for side in last.sides())
    gaps = {side.objective: np.sort(side.time) for side in last.sides()}
    return (
        f"Of three hidden signals with equal covariance between the views, the JEPA of L = "
        f"{last.depth} learns {jepa[0]} first, then {jepa[1]}, then {jepa[2]}: the second comes "
        f"{_later(gaps['jepa'], 1)} after the first, the third {_later(gaps['jepa'], 2)} after "
        f"the second. Reconstruction learns {mae[0]}, {mae[1]}, {mae[2]}, but hardly tells "
        f"them apart: {_later(gaps['mae'], 1)} and {_later(gaps['mae'], 2)}."
    )


def _later(times: np.ndarray, i: int) -> str:
    share = 100 * (times[i] / times[i - 1] - 1)
    return f"{share:.0f} %" if share >= 10 else f"{share:.1f} %"
