"""`jepa tabular reproduce`: the paper's claim on real tables, with its controls.

The claim, at a size that fits: a network on T-JEPA's representation is better than the same network
on the columns. Beside it stands what shows whether anything was learned: the untrained twin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from jepa_core import files
from jepa_core.config import Range, check, to_dict
from jepa_core.jobs import run_jobs
from jepa_core.report import pictures
from jepa_core.report.figures import curves
from jepa_core.report.readme import fill_readme, typed
from jepa_core.report.table import Cell, Table
from jepa_core.run import Run, run_record
from jepa_core.training.interrupt import saying
from jepa_tabular import readouts as read
from jepa_tabular.analysis import collapse_report
from jepa_tabular.data import tables as published
from jepa_tabular.evaluation import Input, compare_features, controls
from jepa_tabular.experiments.comparison import (
    OFFICIAL,
    LabelledTable,
    Parts,
    evaluation,
    official_recipe,
    reproduction_parts,
    scores_to_json,
    trained,
)
from jepa_tabular.experiments.findings import (
    health_warnings,
    history_series,
    labels_figure,
    last_health,
    standings,
    standings_sentence,
)
from jepa_tabular.presets import REPRODUCE, PretrainConfig
from jepa_tabular.readouts import Budget, draws_of
from jepa_tabular.report import write_report
from jepa_tabular.results import RAW, RAW_TJEPA, RAW_TWIN, TJEPA, TREES, TWIN, Evaluation

TableName = Literal["jannis", "adult", "california"]
LABELS: tuple[Budget, ...] = ("all", 1000, 100)

# What one step costs, in steps on california: adult has twice as many tokens. Jannis has six times
# as many, and learns late: with fewer than 800 steps half of its seeds have hardly begun.
COST = {"jannis": 3, "adult": 2, "california": 1}

# Read out by a network too; for the others a linear readout says enough.
_NETWORK = (RAW, TWIN, TJEPA, RAW_TJEPA, OFFICIAL)
_GAINS = (
    (TJEPA, RAW, "mlp"),
    (TJEPA, TWIN, "mlp"),
    (TJEPA, TWIN, "linear"),
    (TJEPA, RAW, "linear"),
    (RAW_TJEPA, RAW, "linear"),
    (RAW_TJEPA, RAW_TWIN, "linear"),
    (TJEPA, OFFICIAL, "linear"),
    (TJEPA, OFFICIAL, "mlp"),
)


@dataclass(frozen=True)
class Reproduce:
    """Pre-train on three real tables and compare with all controls, three seeds.

    California housing, adult and a part of jannis. Each seed scores rows of its own, which neither
    pre-training nor any choice of the recipe's numbers has used the labels of. A stopped run goes
    on with --resume.
    """

    out: Path = Path("runs/tabular-reproduce")
    """The run folder to write."""
    data: Path | None = None
    """Folder of housing.csv, adult.csv (each also as .gz) and jannis_28145.npz or jannis.arff; by
    default tabular/ in $JEPA_DATA."""
    tables: tuple[TableName, ...] = ("jannis", "adult", "california")
    """Which of them."""
    seeds: tuple[Annotated[int, Range(ge=0)], ...] = (0, 1, 2)
    """Seeds; each trains every arm."""
    jobs: Annotated[int, Range(ge=0)] = 0
    """Processes; 0 is one a core."""
    readme: Path | None = None
    """A Markdown file that gets the tables, between its lines `<!-- reproduce:begin -->` and
    `<!-- reproduce:end -->`, and beside it the figure reproduce.svg."""
    resume: bool = False
    """Continue the run in the folder."""
    overwrite: bool = False
    """Replace the run in the folder."""
    config: PretrainConfig = REPRODUCE
    """The recipe; its steps are those on california, adult gets a half and jannis a third."""

    def __call__(self) -> None:
        check(self)
        folder = self.data or data_folder()
        if self.readme is not None:
            fill_readme(self.readme, "")  # refuses before the work, not after it
        tables = [read_table(name, folder) for name in sorted(set(self.tables), key=_costliest)]
        record = to_dict(self)
        settings = {k: v for k, v in record.items() if k not in ("jobs", "readme", "data")}
        run = Run.create(
            self.out,
            run_record("tabular", "reproduce", settings),
            resume=self.resume,
            overwrite=self.overwrite,
        )
        with saying("--resume continues"):
            results = self._results(run, tables)
        self._save(run, tables, results)
        print(f"report: {write_report(run)}")

    def _results(
        self, run: Run, tables: Sequence[LabelledTable]
    ) -> dict[str, list[dict[str, Any]]]:
        """Of each table a result a seed, and last that of the encoder without [REG] tokens."""
        jobs = []
        # The longest first, so that no process waits for another at the end.
        for table in tables:
            config = recipe(self.config, table.name)
            places = [reproduction_parts(table.target, seed) for seed in self.seeds]
            bare = replace(config, model=replace(config.model, registers=0))
            key = {"table": table.name, "rows": len(table.frame), "recipe": to_dict(config)}
            jobs += [
                ({**key, "seed": seed}, (compare, table, parts, config, seed))
                for seed, parts in zip(self.seeds, places, strict=True)
            ]
            first = (without_registers, table, places[0], bare, self.seeds[0])
            jobs.append(({**key, "seed": self.seeds[0], "registers": 0}, first))
        found = run_jobs(
            _call, jobs, keep=run.results / "seeds.jsonl", processes=self.jobs, label="runs"
        )
        each = len(self.seeds) + 1
        return {table.name: found[i * each : (i + 1) * each] for i, table in enumerate(tables)}

    def _save(
        self,
        run: Run,
        tables: Sequence[LabelledTable],
        results: Mapping[str, Sequence[Mapping[str, Any]]],
    ) -> None:
        found = {
            table.name: evaluation(
                table.target,
                results[table.name][:-1],
                reproduction_parts(table.target, self.seeds[0]).sizes,
            )
            for table in reversed(tables)
        }
        steps = {name: recipe(self.config, name).steps for name in found}
        shown = {
            "0-signs": gains_table(found, results),
            "1-collapse": state_table(found, results, steps),
            **{f"2-{name}": scores_table(name, one) for name, one in found.items()},
        }
        for name, table in shown.items():
            table.print()
            run.save_table(name, table)
        figure = labels_figure(found, (RAW, TWIN, TJEPA, RAW_TJEPA, TREES))
        caption = "R2 over the number of labels, linear readout; bands span the seeds."
        pictures.save(figure, run.figures / "labels.svg", caption)
        for name, title in (("health/signal", "Row variance"), ("loss", "Loss")):
            series = {table: history_series(one[0], name) for table, one in results.items()}
            path = run.figures / f"{name.rpartition('/')[2]}.svg"
            pictures.save(curves(series), path, f"{title} while training, first seed.")
        if self.readme is not None:
            seconds = sum(one["seconds"] for several in results.values() for one in several)
            text = [
                f"Written by `{typed()}` ({seconds / 60:.0f} minutes of one core).",
                *(table.to_markdown() for table in shown.values()),
                f"![{caption}](reproduce.svg)",
            ]
            fill_readme(self.readme, "\n\n".join(part.strip() for part in text))
            figure.savefig(self.readme.with_name("reproduce.svg"), facecolor="white")


def data_folder() -> Path:
    """Folder of the tables: `tabular` in $JEPA_DATA, else beside the working folder.

    Raises
    ------
    DataError
        There is none.
    """
    return files.data_folder(
        "tabular", "housing.csv.gz", "the tables (housing.csv.gz, adult.csv.gz, jannis_28145.npz)"
    )


def read_table(name: str, folder: Path) -> LabelledTable:
    """One of the paper's tables, in its published form."""
    found = published.read(name, folder)
    names = found.classes
    labels = np.array(names)[found.y] if names else found.y
    return LabelledTable(name, found.frame, read.as_target(labels, found.task))


def recipe(config: PretrainConfig, table: str) -> PretrainConfig:
    """The recipe with the steps that a table gets of the time."""
    steps = max(1, config.steps // COST[table])
    return replace(
        config,
        steps=steps,
        warmup_steps=min(steps - 1, config.warmup_steps // COST[table]),
        checkpoint_every=steps,
    )


def compare(
    table: LabelledTable, parts: Parts, config: PretrainConfig, seed: int
) -> dict[str, Any]:
    """Pre-train by our recipe and by the official one, and read everything out."""
    seen = table.frame.iloc[parts.seen]
    rows, train, scored = parts.labelled()
    frame, target = table.frame.iloc[rows], table.target.take(rows)
    target = target.standardised(train)
    arm = trained(seen, config, seed)
    found = arm.represented(frame, seed=seed)
    official = trained(seen, official_recipe(config, table.name), seed)
    other = official.represented(frame, seed=seed)
    inputs = controls(found, train, seed=seed)
    inputs.append(Input(OFFICIAL, other.trained.reshape(len(rows), -1)))
    scores = []
    for one in inputs:
        readouts: tuple[Any, ...] = ("linear", "mlp") if one.name in _NETWORK else ("linear",)
        scores += compare_features(
            [one], target, train, scored, readouts=readouts, labels=LABELS, seed=seed
        )
    return {
        "scores": scores_to_json(scores),
        "collapse": [collapse_report(x[scored]) for x in (found.untrained, found.trained)],
        "official": [collapse_report(x[scored]) for x in (other.untrained, other.trained)],
        "history": arm.history,
    }


def without_registers(
    table: LabelledTable, parts: Parts, config: PretrainConfig, seed: int
) -> dict[str, Any]:
    """What becomes of the row variance of an encoder without [REG] tokens."""
    arm = trained(table.frame.iloc[parts.seen], config, seed)
    found = arm.represented(table.frame.iloc[parts.scored], seed=seed)
    return {"collapse": [collapse_report(x) for x in (found.untrained, found.trained)]}


def scores_table(name: str, found: Evaluation) -> Table:
    """Scores of one table, its verdict below."""
    train, more, scored = found.sizes
    table = found.table
    rows = (
        f"{train:,} rows with labels, {more:,} more to pre-train on, {scored:,} scored; mean ± "
        f"standard deviation over {len(found.seeds)} seeds."
    )
    units = ["RMSE is in standard deviations of the label."] if found.metric == "rmse" else []
    return Table(f"{name}, {found.task}", table.columns, table.rows, (found.verdict, rows, *units))


def gains_table(
    found: Mapping[str, Evaluation], results: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Table:
    """Paired gains in R2, and in words whether the signs of the paper came out."""
    rows: list[list[Cell]] = []
    for name, other, readout in _GAINS:
        cells = [one.gain(name, other, readout) for one in found.values()]
        title = {"mlp": "network", "linear": "linear"}[readout]
        rows.append([f"{name} − {other}", title, *(str(one) if one else None for one in cells)])
    method = (
        "Mean over the numbers of labels (the network: all labels alone), over seeds, with 95 % t "
        "intervals and the sign of each seed. The linear readout is ridge regression; the network "
        "has 128 and 64 hidden units and stops early. The official recipe has the size, steps, "
        "rates and averaging of ours, its own masks, columns, positions, targets and start, and is "
        "read after its head. Scores with 1,000 labels are means over "
        f"{draws_of(1000)} draws of labels, those with 100 over {draws_of(100)}."
    )
    return Table(
        "Gains in R2", ("difference", "readout", *found), rows, (signs(found, results), method)
    )


def signs(
    found: Mapping[str, Evaluation], results: Mapping[str, Sequence[Mapping[str, Any]]]
) -> str:
    """What came of the claims, in words, whatever the sign."""
    ahead = standings(found, TJEPA, RAW, "mlp")["ahead of"]
    claim = "is reproduced" if len(ahead) == len(found) else "is not reproduced"
    if 0 < len(ahead) < len(found):
        claim = f"is reproduced on {len(ahead)} of {len(found)} tables"
    learned = standings(found, TJEPA, TWIN, "linear")["ahead of"]
    sentences = [
        *[line for name, one in results.items() for line in health_warnings(name, one[:-1])],
        f"The paper's sign, a network on T-JEPA ahead of one on the columns, {claim}: "
        + standings_sentence(found, TJEPA, RAW, "mlp"),
        standings_sentence(found, TJEPA, TWIN, "linear"),
        standings_sentence(found, TJEPA, TWIN, "mlp"),
        standings_sentence(found, TJEPA, OFFICIAL, "linear"),
        standings_sentence(found, RAW_TJEPA, RAW, "linear"),
    ]
    if 2 * len(learned) <= len(found):
        sentences.append(
            f"this is a failure to learn by the honest test: ahead of the untrained twin on "
            f"{len(learned)} of {len(found)} tables only"
        )
    return " ".join(f"{one[0].upper()}{one[1:]}." for one in sentences)


def state_table(
    found: Mapping[str, Evaluation],
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    steps: Mapping[str, int],
) -> Table:
    """Row variance and rank of every arm, and what the predictor explains."""
    key = "intra_feature_variance"
    rows: list[list[Cell]] = []
    shares: dict[str, list[float]] = {"[REG]": [], "none": []}
    for table in found:
        *seeds, bare = results[table]
        ours = [one["collapse"] for one in seeds]
        arms = {TJEPA: ours, OFFICIAL: [one["official"] for one in seeds]}
        arms["T-JEPA without [REG]"] = [bare["collapse"]]
        for arm, pairs in arms.items():
            kept = [after[key] / before[key] for before, after in pairs]
            ranks = np.mean([[one["effective_rank"] for one in pair] for pair in pairs], axis=0)
            left = [last_health(one["history"])["health/unexplained"] for one in seeds]
            rows.append(
                [
                    table,
                    arm,
                    steps[table],
                    f"{pairs[0][0][key]:.2g}, {pairs[0][1][key]:.2g}",
                    f"{np.mean(kept):.0%}",
                    f"{ranks[0]:.1f}, {ranks[1]:.1f}",
                    f"{np.mean(left):.0%}" if arm == TJEPA else None,
                ]
            )
        first_before, first_after = ours[0]
        shares["[REG]"].append(first_after[key] / first_before[key])
        shares["none"].append(bare["collapse"][1][key] / bare["collapse"][0][key])
    listing = ", ".join(
        f"{table} {none:.0%} against {share:.0%}"
        for table, none, share in zip(found, shares["none"], shares["[REG]"], strict=True)
    )
    fallen = sum(none < 0.2 for none in shares["none"])
    note = (
        f"Without [REG] tokens the encoder keeps of its twin's row variance: {listing} with one. "
        f"The paper's collapse without them shows on {fallen} of {len(found)} tables."
    )
    columns = (
        "table",
        "encoder",
        "steps",
        "row variance before, after",
        "kept",
        "rank before, after",
        "unexplained",
    )
    return Table("What pre-training does to the representation", columns, rows, (note,))


def _call(work: Any, *arguments: Any) -> dict[str, Any]:
    result: dict[str, Any] = work(*arguments)
    return result


def _costliest(table: str) -> int:
    return -COST[table]
