"""Which form of DMT-JEPA's targets says something of the patch, not of the image alone?

    python -m jepa_vision.experiments.locality --out locality.jsonl --markdown TARGETS.md

At initialisation the paper's targets are constants of the image: every patch is asked about with
the same mean token, which the residual connection passes on. Each form below is trained from the
same weights on the same crops and probed on photographs and street scenes that only choices are
made on: a third of the training parts of `jepa vision reproduce`, whose test images are not looked
at.
Results are kept in the file of --out as they come; a second call computes what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from jepa_core.run import write_text
from jepa_vision.experiments.choices import for_choices, train_recipes
from jepa_vision.experiments.comparison import IJEPA, TWIN, arm_recipe, read_material
from jepa_vision.experiments.findings import (
    Results,
    gain,
    gains_table,
    scores_table,
    standing,
    targets_table,
)
from jepa_vision.experiments.reproduce import data_folder
from jepa_vision.presets import REPRODUCE, DMTConfig, PretrainConfig

PAPER = "paper's form"
FORMS: dict[str, DMTConfig] = {
    PAPER: DMTConfig(query="mean"),
    "the patch among its keys": DMTConfig(query="mean", include_self=True),
    "own query": DMTConfig(query="patch"),
    "own query, the patch among its keys": DMTConfig(query="patch", include_self=True),
    "warm-up over half of the run": DMTConfig(query="mean", warmup=0.5),
    "variance floor": DMTConfig(query="mean", variance_floor=1.0),
    "one attention, raw values": DMTConfig(query="mean", aggregator="paper"),
}


@dataclass(frozen=True)
class Locality:
    """Train every form of the targets with every seed, and write the tables."""

    out: Path = Path("locality.jsonl")
    """Where results are kept."""
    markdown: Path | None = None
    """A file for the tables."""
    data: Path | None = None
    """As in `jepa vision reproduce`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each trains every form."""
    jobs: int = 0
    """Processes; 0 is one a core."""
    config: PretrainConfig = REPRODUCE
    """The recipe but for the targets."""

    def __call__(self) -> None:
        material = for_choices(read_material(self.data or data_folder()))
        recipes = {
            IJEPA: arm_recipe(self.config, IJEPA),
            **{
                name: replace(self.config, method="dmt-jepa", dmt=form)
                for name, form in FORMS.items()
            },
            TWIN: self.config,
        }
        found = train_recipes(
            material, recipes, self.seeds, keep=self.out, jobs=self.jobs, label="forms"
        )
        found = {TWIN: found.pop(TWIN), **found}
        forms = [name for name in FORMS if name != PAPER]
        pairs = [(name, other) for other in (PAPER, IJEPA, TWIN) for name in forms]
        tables = [
            targets_table(found),
            scores_table("Probes on images for choices", found),
            gains_table(found, [*pairs, (PAPER, IJEPA), (PAPER, TWIN), (IJEPA, TWIN)]),
        ]
        for table in tables:
            table.print()
        if self.markdown is not None:
            seconds = sum(one["seconds"] for several in found.values() for one in several)
            head = (
                "# Which targets are local?\n\nWritten by `python -m "
                f"jepa_vision.experiments.locality --markdown {self.markdown.name}` "
                f"({seconds / 60:.0f} minutes of one core): {self.config.steps} steps of "
                f"{self.config.batch_size} images of {self.config.model.image[0]} pixels, "
                f"{len(self.seeds)} seeds. {summary(found)}\n"
            )
            text = "\n".join(part.to_markdown() for part in tables)
            write_text(self.markdown, f"{head}\n{text}")


def summary(found: Results) -> str:
    """Where each form's targets end up, and whether that told in the probes, in words."""

    def between(name: str) -> float:
        return float(np.mean([one["targets"][1]["between_patches"] for one in found[name]]))

    def least(name: str) -> float:
        losses = (
            [line["loss"] for line in one["history"] if "loss" in line] for one in found[name]
        )
        return float(np.mean([min(each) for each in losses]))

    told = [
        f"{name} is {words} the paper's form in {label}"
        for name in FORMS
        if name != PAPER
        for score, label in (("top1", "top-1"), ("miou", "mIoU"))
        if (words := standing(gain(found, name, PAPER, score))) in ("ahead of", "behind")
    ]
    local = ", ".join(f"{name} {between(name):.2f} ({least(name):.3f})" for name in FORMS)
    return (
        "Share of the targets' variance between the patches of an image at the end, and the least "
        f"loss on the way, of which little is left where targets are constants: {local}; I-JEPA "
        f"{between(IJEPA):.2f} ({least(IJEPA):.3f}). By intervals over seeds, "
        + (", ".join(told) if told else "no form is ahead of or behind the paper's")
        + "; no other interval leaves 0 out."
    )


if __name__ == "__main__":
    tyro.cli(Locality)()
