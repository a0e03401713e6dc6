"""`jepa tabular demo`: the whole job on three small tables, without a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64
from matplotlib.figure import Figure

from jepa_core.config import to_dict
from jepa_core.evaluation.linear import ridge
from jepa_core.evaluation.metrics import r2
from jepa_core.jobs import run_jobs
from jepa_core.report import pictures
from jepa_core.report.figures import bars_with_intervals, curves, embedding_map
from jepa_core.report.table import Cell, Table
from jepa_core.run import Run, next_free, run_record
from jepa_core.training.interrupt import saying
from jepa_tabular import inference
from jepa_tabular import readouts as read
from jepa_tabular.analysis import collapse_report
from jepa_tabular.evaluation import Representation, compare_features, controls
from jepa_tabular.experiments.comparison import (
    Arm,
    LabelledTable,
    Parts,
    evaluation,
    scores_to_json,
    trained,
)
from jepa_tabular.experiments.findings import (
    health_warnings,
    history_series,
    last_health,
    standings_sentence,
)
from jepa_tabular.presets import DEMO, PretrainConfig
from jepa_tabular.readouts import Budget
from jepa_tabular.report import save_mask_figure, write_report
from jepa_tabular.results import PCA, RAW, RAW_TJEPA, TJEPA, TWIN, Evaluation, mean_and_spread
from jepa_tabular.simulate import simulate

ROWS, SHARE = 3000, 0.1  # of the generated table, and how much of its training part has a label

# What the demo compares; `evaluate` has more.
_INPUTS = (RAW, TWIN, TJEPA, RAW_TJEPA, PCA)
_LABELS: dict[str, tuple[Budget, ...]] = {
    "breast cancer": ("all", 50),
    "digits": ("all", 100),
    "generated": ("all",),
}
_METHOD = (
    "A linear readout of frozen features. Pre-training sees four fifths of the rows and no label; "
    "the last fifth is scored. ± is the standard deviation over seeds, each with its own test rows."
)


@dataclass(frozen=True)
class Demo:
    """Pre-train on three small tables without labels, evaluate beside controls, write a report.

    The tables are breast cancer and digits, which come with scikit-learn, and a generated one of
    numbers and categories where one training row in ten has a label. Takes under two minutes on
    two cores.
    """

    out: Path | None = None
    """The run folder to write; by default the next free runs/tabular-demo."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of rows, encoder and training."""
    jobs: int = 0
    """Processes; 0 is one a core."""
    overwrite: bool = False
    """Replace the run in the folder."""
    config: PretrainConfig = DEMO
    """The recipe."""

    def __call__(self) -> None:
        out = self.out or next_free(Path("runs/tabular-demo"))
        run = Run.create(
            out, run_record("tabular", "demo", to_dict(self)), overwrite=self.overwrite
        )
        with saying("nothing is kept: give the same command again"):
            self._compare(run)

    def _compare(self, run: Run) -> None:
        tables = [generated(), breast_cancer(), digits()]
        print(f"{len(tables)} tables, {len(self.seeds)} seeds of {self.config.steps} steps each")
        # Longest first, so that no process waits for another at the end.
        jobs = [
            (
                {"table": table.name, "seed": seed},
                (table, parts(table, seed), self.config, seed, None if number else run),
            )
            for table in tables
            for number, seed in enumerate(self.seeds)
        ]
        found = run_jobs(compare, jobs, processes=self.jobs)
        results = {
            table.name: found[i * len(self.seeds) : (i + 1) * len(self.seeds)]
            for i, table in enumerate(tables)
        }
        evaluations = {
            table.name: evaluation(
                table.target, results[table.name], parts(table, self.seeds[0]).sizes
            )
            for table in tables
        }
        warned = [line for name, one in results.items() for line in health_warnings(name, one)]
        self._save(run, evaluations, results, warned)
        print(f"report: {write_report(run)}")

    def _save(
        self,
        run: Run,
        evaluations: Mapping[str, Evaluation],
        results: Mapping[str, Sequence[Mapping[str, Any]]],
        warned: Sequence[str],
    ) -> None:
        tables = {"0-summary": summary(evaluations, results, warned)}
        for number, (name, one) in enumerate(evaluations.items(), 1):
            tables[f"{number}-{name}"] = scores_table(name, one)
        tables["latent"] = latent_table(results["generated"])
        for name, table in tables.items():
            if name != "0-summary":
                table.print()
            run.save_table(name.replace(" ", "-"), table)
        tables["0-summary"].print()
        figures = {
            "losses": (
                curves({table: history_series(one[0], "loss") for table, one in results.items()}),
                "Loss on each table, first seed. It says little: see the row variance.",
            ),
            "variance": (
                curves(
                    {
                        table: history_series(one[0], "health/signal")
                        for table, one in results.items()
                    }
                ),
                "Row variance of the target encoder on each table, first seed.",
            ),
            "rank": (
                curves(
                    {
                        table: history_series(one[0], "health/effective_rank_ev")
                        for table, one in results.items()
                    }
                ),
                "Effective rank of the target encoder on each table, first seed.",
            ),
            "scores": (
                scores_figure(evaluations["generated"]),
                "Accuracy on the generated table; lines span the seeds.",
            ),
        }
        for name, (figure, caption) in figures.items():
            pictures.save(figure, run.figures / f"{name}.png", caption)


def generated() -> LabelledTable:
    """The generated table of numbers and categories."""
    found = simulate(np.arange(ROWS))
    return LabelledTable("generated", found.frame, read.as_target(found.label))


def breast_cancer() -> LabelledTable:
    """569 tumours, 30 measurements of cell nuclei each, benign or malignant."""
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer(as_frame=True)
    return LabelledTable("breast cancer", found.data, read.as_target(found.target))


def digits() -> LabelledTable:
    """1,797 handwritten digits; the 64 pixels are summed in fours to 16 columns."""
    from sklearn.datasets import load_digits

    images = load_digits().images
    coarse = images.reshape(-1, 4, 2, 4, 2).sum(axis=(2, 4)).reshape(len(images), 16)
    names = [f"row{i}_column{j}" for i in range(4) for j in range(4)]
    target = read.as_target(load_digits().target)
    return LabelledTable("digits", pd.DataFrame(coarse, columns=names), target)


def parts(table: LabelledTable, seed: int) -> Parts:
    """Four fifths to see, of which three are for readouts, and one to score.

    Of the generated table one training row in ten has a label.
    """
    split = list(read.splits(table.target, seed % 5 + 1, seed=seed // 5))[-1]
    seen = np.sort(np.concatenate((split.train, split.validation)))
    train = split.train
    if table.name == "generated":
        train = read.label_draws(seen, round(SHARE * len(seen)), seed=seed)[0]
    return Parts(seen, np.sort(train), split.test)


def compare(
    table: LabelledTable, parts: Parts, config: PretrainConfig, seed: int, run: Run | None
) -> dict[str, Any]:
    """Pre-train on one table with one seed, and read everything out.

    Parameters
    ----------
    run
        Where checkpoints, encoder and pictures of the generated table go; None keeps nothing.
    """
    if table.name != "generated":
        run = None
    arm = trained(table.frame.iloc[parts.seen], config, seed, run=run)
    rows, train, scored = parts.labelled()
    found = arm.represented(table.frame.iloc[rows], seed=seed)
    target = table.target.take(rows)
    inputs = [one for one in controls(found, train, seed=seed) if one.name in _INPUTS]
    scores = compare_features(inputs, target, train, scored, labels=_LABELS[table.name], seed=seed)
    result: dict[str, Any] = {
        "scores": scores_to_json(scores),
        "collapse": [collapse_report(x[scored]) for x in (found.untrained, found.trained)],
        "history": arm.history,
    }
    if table.name == "generated":
        latent = simulate(rows).latent
        result["latent"] = {
            one.name: recovered(one.x[train], latent[train], one.x[scored], latent[scored])
            for one in inputs
        }
    if run is not None:
        _keep(run, arm, table, found, rows, config, seed)
    return result


def recovered(
    x: Float64[np.ndarray, "n dim"],
    latent: Float64[np.ndarray, "n causes"],
    test: Float64[np.ndarray, "m dim"],
    truth: Float64[np.ndarray, "m causes"],
) -> float:
    """R2 of the causes behind the generated table under a linear readout."""
    return r2(truth, ridge(np.asarray(x, np.float64), latent).scores(test)).pooled


def _keep(
    run: Run,
    arm: Arm,
    table: LabelledTable,
    found: Representation,
    rows: np.ndarray,
    config: PretrainConfig,
    seed: int,
) -> None:
    """The encoder and pictures of one run."""
    extra = {"step": config.steps, "recipe": to_dict(config)}
    inference.save(run.encoder, arm.encoder, arm.preprocessor, extra)
    first = table.frame.iloc[0].tolist()
    save_mask_figure(run, config, found.shape, arm.preprocessor.names_, first, seed=seed)
    labels = np.array(table.target.classes)[table.target.y[rows]]
    pictures.save(
        embedding_map(found.trained.reshape(len(rows), -1), labels),
        run.figures / "embedding.png",
        "Rows of the generated table under the encoder, coloured by their label, first seed.",
    )


def scores_table(name: str, found: Evaluation) -> Table:
    """Scores of one table, its verdict below."""
    train, more, scored = found.sizes
    rows = (
        f"{train:,} rows with labels, {more:,} more to pre-train on, {scored:,} scored, "
        f"{len(found.seeds)} seeds."
    )
    table = found.table
    return Table(f"{name}: {table.title}", table.columns, table.rows, (found.verdict, rows))


def summary(
    evaluations: Mapping[str, Evaluation],
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    warned: Sequence[str],
) -> Table:
    """Row variance, rank, what the predictor explains and gains, table by table."""
    rows: list[list[Cell]] = []
    for name, found in evaluations.items():
        key = "intra_feature_variance"
        pairs = [one["collapse"] for one in results[name]]
        kept = np.mean([after[key] / before[key] for before, after in pairs])
        ranks = np.mean([[one["effective_rank"] for one in pair] for pair in pairs], axis=0)
        left = [last_health(one["history"])["health/unexplained"] for one in results[name]]
        rows.append(
            [
                name,
                *(gain_cell(found, TJEPA, other) for other in (TWIN, RAW)),
                f"{kept:.0%}",
                f"{ranks[0]:.0f}, {ranks[1]:.0f}",
                f"{np.mean(left):.0%}",
            ]
        )
    columns = (
        "table",
        "R2 over twin",
        "R2 over raw",
        "row variance",
        "rank",
        "unexplained",
    )
    notes = (verdict(evaluations, warned), _METHOD)
    return Table("T-JEPA on three small tables", columns, rows, notes)


def gain_cell(found: Evaluation, name: str, other: str) -> str:
    """Mean gain under a linear readout, over all numbers of labels, and how many seeds agree."""
    one = found.gain(name, other, "linear")
    assert one is not None
    ahead = sum(difference > 0 for difference in one.differences)
    return f"{one.mean:+.3f} ({ahead} of {len(one.differences)})"


def verdict(evaluations: Mapping[str, Evaluation], warned: Sequence[str]) -> str:
    """What the numbers say, whatever the sign; what went wrong comes first."""
    sentences = [
        *warned,
        standings_sentence(evaluations, TJEPA, TWIN, "linear"),
        standings_sentence(evaluations, TJEPA, RAW, "linear"),
        standings_sentence(evaluations, RAW_TJEPA, RAW, "linear"),
    ]
    if not warned:
        sentences.append("no representation collapsed, and every predictor learned")
    return " ".join(f"{one[0].upper()}{one[1:]}." for one in sentences)


def latent_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """How much of the causes behind the generated table each input shows a linear readout."""
    names = list(results[0]["latent"])
    rows: list[list[Cell]] = [
        [name, mean_and_spread([one["latent"][name] for one in results])] for name in names
    ]
    best = max(names, key=lambda name: float(np.mean([one["latent"][name] for one in results])))
    note = f"The four causes behind the generated table are read best from {best}."
    return Table("generated: R2 of its four causes, linear readout", ("input", "R2"), rows, (note,))


def scores_figure(found: Evaluation) -> Figure:
    """The metric of every input, mean over seeds with their range."""
    names = [name for name in _INPUTS if found.values(name, "linear", "all")]
    values = [found.values(name, "linear", "all", found.metric) for name in names]
    return bars_with_intervals(
        names,
        [float(np.mean(one)) for one in values],
        [(min(one), max(one)) for one in values],
        start=0.5,  # what chance gives: both classes are as frequent
        xlabel=found.metric,
    )
