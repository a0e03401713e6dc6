"""What do length and the papers' weight decay do to I-JEPA at this size?

    python -m jepa_vision.experiments.levers --out levers.jsonl --markdown LEVERS.md

Each change of the recipe of `jepa vision reproduce` is trained from the same weights and probed on
images that only choices are made on: a third of the training parts. Results are kept in the file of
--out as they come; a second call computes what is missing.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from jepa_core.config import check
from jepa_core.errors import ConfigError, JepaError
from jepa_core.report.table import Cell, Table
from jepa_core.run import write_text
from jepa_core.training.interrupt import saying
from jepa_vision.experiments.choices import for_choices, train_recipes
from jepa_vision.experiments.comparison import IJEPA, TWIN, arm_recipe, read_material
from jepa_vision.experiments.findings import Results, gain, gains_table, last, spread, standing
from jepa_vision.experiments.reproduce import data_folder
from jepa_vision.presets import REPRODUCE, PretrainConfig

LEVERS: dict[str, Callable[[PretrainConfig], PretrainConfig]] = {
    "weight decay rising to .4": lambda config: replace(config, final_weight_decay=0.4),
    "4 times the steps": lambda config: replace(config, steps=4 * config.steps),
}


@dataclass(frozen=True)
class Levers:
    """Train the recipe and each change of it with every seed, and write what came of it."""

    levers: tuple[str, ...] = ()
    """Which; none is all. The recipe as it is always runs."""
    out: Path = Path("levers.jsonl")
    """Where results are kept."""
    markdown: Path | None = None
    """A file for the tables."""
    data: Path | None = None
    """As in `jepa vision reproduce`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each trains every change."""
    jobs: int = 0
    """Processes; 0 is one a core."""
    config: PretrainConfig = REPRODUCE
    """The recipe that is changed."""

    def __call__(self) -> None:
        check(self)
        for name in self.levers:
            if name not in LEVERS:
                raise ConfigError(f"no lever {name}", remedy=f"allowed: {'; '.join(LEVERS)}")
        base = arm_recipe(self.config, IJEPA)
        changed = {name: LEVERS[name](base) for name in self.levers or LEVERS}
        recipes = {TWIN: self.config, IJEPA: base, **changed}
        material = for_choices(read_material(self.data or data_folder()))
        with saying("the same command goes on"):
            found = train_recipes(material, recipes, self.seeds, keep=self.out, jobs=self.jobs)
        pairs = [(name, TWIN) for name in (IJEPA, *changed)]
        pairs += [(name, IJEPA) for name in changed]
        tables = [levers_table(found), gains_table(found, pairs)]
        for table in tables:
            table.print()
        if self.markdown is not None:
            seconds = sum(one["seconds"] for several in found.values() for one in several)
            flags = ["--levers", *self.levers] if self.levers else []
            typed = shlex.join([*flags, "--markdown", self.markdown.name])
            head = (
                "# What length and recipe do\n\n"
                f"Written by `python -m jepa_vision.experiments.levers {typed}` "
                f"({seconds / 60:.0f} minutes of one core), on images that only choices are made "
                f"on. The recipe as it is: {self.config.steps} steps of {self.config.batch_size} "
                f"images of {self.config.model.image[0]} pixels; {len(self.seeds)} seeds. "
                f"{summary(found)}\n"
            )
            text = "\n".join(table.to_markdown() for table in tables)
            write_text(self.markdown, f"{head}\n{text}")


def levers_table(found: Results) -> Table:
    """Scores, how much was left to predict, rank of the features, and what it cost."""
    rows: list[list[Cell]] = []
    for name, results in found.items():
        trained = name != TWIN
        rows.append(
            [
                name,
                *(spread([one[score] for one in results]) for score in ("top1", "knn", "miou")),
                spread([last(one, "health/unexplained") for one in results], 2) if trained else "–",
                spread([one["collapse"]["effective_rank"] for one in results], 1),
                round(float(np.mean([one["seconds"] for one in results]))),
            ]
        )
    columns = ("change", "linear top-1", "kNN top-1", "mIoU", "unexplained", "rank", "s")
    return Table(
        "Probes on images for choices",
        columns,
        rows,
        ("Rank: effective rank of the tokens; s: seconds of one core.",),
    )


def summary(found: Results) -> str:
    """Which changes beat the untrained twin, in words."""
    parts = []
    for score, label in (("miou", "mIoU"), ("top1", "top-1")):
        ahead = [
            f"{name} ({difference.mean:+.3f})"
            for name in found
            if name != TWIN
            and standing(difference := gain(found, name, TWIN, score)).endswith("ahead of")
        ]
        parts.append(f"in {label} " + (", ".join(ahead) if ahead else "none"))
    return f"Ahead of the untrained twin in every seed: {'; '.join(parts)}."


if __name__ == "__main__":
    try:
        tyro.cli(Levers, config=(tyro.conf.OmitArgPrefixes,))()
    except JepaError as error:
        raise SystemExit(f"error: {error}") from None
