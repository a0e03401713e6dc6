"""`jepa vision reproduce`: the paper's claim on real images, with its controls.

The claim, at a size that fits: targets made of a patch's most similar neighbours (DMT-JEPA) give
patch features that segment better than I-JEPA's. Beside both stand what shows whether anything was
learned (the untrained twin, raw pixels) and whether it was the neighbours (their mean, random ones,
the official program's pairing of images).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from matplotlib.figure import Figure

from jepa_core import files
from jepa_core.config import Range, check, to_dict
from jepa_core.jobs import run_jobs
from jepa_core.report import pictures
from jepa_core.report.figures import curves
from jepa_core.report.readme import fill_readme, typed
from jepa_core.run import Run, run_record
from jepa_core.training.interrupt import saying
from jepa_vision.experiments import showing
from jepa_vision.experiments.comparison import (
    DMT,
    IJEPA,
    MEAN,
    PAIRED,
    RANDOM,
    RAW,
    SOUND,
    TWIN,
    Material,
    arm_recipe,
    probe_pixels,
    read_material,
    train_arm,
)
from jepa_vision.experiments.findings import (
    Results,
    gain,
    gains_table,
    scores_figure,
    scores_table,
    series,
    standing,
    targets_table,
)
from jepa_vision.inference import PretrainedImage, load
from jepa_vision.presets import REPRODUCE, PretrainConfig
from jepa_vision.pretrain import untrained
from jepa_vision.report import write_report

Control = Literal["own-query", "official-pairing", "mean-neighbours", "random-neighbours"]
CONTROLS: dict[Control, str] = {
    "own-query": SOUND,
    "official-pairing": PAIRED,
    "mean-neighbours": MEAN,
    "random-neighbours": RANDOM,
}
ARMS = (IJEPA, DMT, *CONTROLS.values())
_SHOWN = (IJEPA, DMT, SOUND)
_PAIRS = (
    (DMT, IJEPA),
    (SOUND, IJEPA),
    (SOUND, DMT),
    (DMT, PAIRED),
    (DMT, MEAN),
    (DMT, RANDOM),
    *((arm, TWIN) for arm in ARMS),
    (SOUND, RAW),
)


@dataclass(frozen=True)
class Reproduce:
    """Pre-train on real photographs and street scenes and compare with all controls.

    I-JEPA, DMT-JEPA in four forms and pooled neighbours, from the same initial weights and on the
    same crops, each seed: probed on photographs of ten classes and on street scenes with a class
    for every pixel. A stopped run goes on with --resume.
    """

    out: Path = Path("runs/vision-reproduce")
    """The run folder to write."""
    data: Path | None = None
    """Folder of caltech10/, caltech_unlabelled.zip and camvid/; by default vision/ in
    $JEPA_DATA."""
    seeds: tuple[Annotated[int, Range(ge=0)], ...] = (0, 1, 2)
    """Seeds; each trains every arm."""
    controls: tuple[Control, ...] = tuple(CONTROLS)
    """Arms beside I-JEPA, DMT-JEPA and the untrained twin; --resume adds others later."""
    jobs: Annotated[int, Range(ge=0)] = 0
    """Processes; 0 is one a core."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where every process trains; on a GPU ask for more: --device cuda --seeds 0 1 2 3 4
    --steps 10000."""
    readme: Path | None = None
    """A Markdown file that gets the tables, between its lines `<!-- reproduce:begin -->` and
    `<!-- reproduce:end -->`, and beside it reproduce.svg and some pictures."""
    resume: bool = False
    """Continue the run in the folder."""
    overwrite: bool = False
    """Replace the run in the folder."""
    config: PretrainConfig = REPRODUCE
    """The recipe of every arm but for the targets."""

    def __call__(self) -> None:
        check(self)
        material = read_material(self.data or data_folder())
        if self.readme is not None:
            fill_readme(self.readme, "")  # refuses before the work, not after it
        settings = {
            k: v
            for k, v in to_dict(self).items()
            if k not in ("jobs", "readme", "data", "controls")
        }
        record = run_record("vision", "reproduce", settings)
        run = Run.create(self.out, record, resume=self.resume, overwrite=self.overwrite)
        with saying("--resume continues"):
            found = self._results(run, material)
        self._save(run, material, found)
        print(f"report: {write_report(run)}")

    def _results(self, run: Run, material: Material) -> dict[str, list[dict[str, Any]]]:
        jobs: list[tuple[dict[str, Any], tuple[Any, ...]]] = []
        # The longest first, so that no process waits for another at the end.
        for arm in (IJEPA, DMT, *(CONTROLS[name] for name in self.controls), TWIN):
            recipe = self.config if arm == TWIN else arm_recipe(self.config, arm)
            for seed in self.seeds:
                key = {"arm": arm, "seed": seed, "recipe": to_dict(recipe)}
                keep = run.path / "arms" / f"{_folder(arm)}-{seed}" if arm != TWIN else None
                jobs.append((key, (train_arm, material, recipe, arm, seed, keep, self.device)))
        jobs.append(({"arm": RAW}, (probe_pixels, material, self.config)))
        results = run_jobs(
            _call, jobs, keep=run.results / "seeds.jsonl", processes=self.jobs, label="arms"
        )
        found: dict[str, list[dict[str, Any]]] = {RAW: [], TWIN: []}
        for (key, _), result in zip(jobs, results, strict=True):
            found.setdefault(str(key["arm"]), []).append(result)
        return found

    def _save(self, run: Run, material: Material, found: Results) -> None:
        images, seen = len(material.images), len(material.train)
        method = (
            f"{images:,} unlabelled images of {self.config.model.image[0]} pixels, "
            f"{self.config.steps:,} steps of {self.config.batch_size}; the target encoder is "
            f"probed. Photographs: {seen} with labels, {len(material.test)} scored, features "
            f"averaged over patches. Street scenes: {len(material.train_scenes)} frames with "
            f"labels, {len(material.test_scenes)} scored, one linear classifier of patches. "
            f"± is the standard deviation over {len(self.seeds)} seeds. Last column: share of a "
            "patch's four chosen, and of all, neighbours that have its class."
        )
        local = (
            "Between patches: share of the targets' variance that lies between the patches of an "
            "image; at 0 the target says nothing of the place. Unexplained: what the predictor "
            "leaves of the targets' variance around their mean at each position. Rank: effective "
            "rank of the targets."
        )
        tables = {
            "0-scores": scores_table(
                "Photographs and street scenes", found, (verdict(found), method)
            ),
            "1-gains": gains_table(found, _PAIRS),
            "2-targets": targets_table(found, (local,)),
        }
        for name, table in tables.items():
            table.print()
            run.save_table(name, table)
        figure = scores_figure(found)
        caption = "Every seed of every arm, and means (bars); the line is the untrained twin's."
        pictures.save(figure, run.figures / "scores.svg", caption)
        shares = {
            arm: ([step for step, _ in pairs], [1 - share for _, share in pairs])
            for arm in _trained(found)
            if (pairs := list(zip(*series(found[arm][0], "health/share_sample"), strict=True)))
        }
        pictures.save(
            curves(shares),
            run.figures / "local.svg",
            "Share of the targets' variance between the patches of an image, first seed.",
        )
        shown = self._pictures(run, material, found)
        for name, (drawn, words) in shown.items():
            pictures.save(drawn, run.figures / f"{name}.png", words)
        if self.readme is not None:
            seconds = sum(one["seconds"] for several in found.values() for one in several)
            text = [
                f"Written by `{typed()}` ({seconds / 60:.0f} minutes of one core).",
                *(table.to_markdown() for table in tables.values()),
                f"![{caption}](reproduce.svg)",
                *(f"![{words}]({name}.png)" for name, (_, words) in shown.items()),
            ]
            fill_readme(self.readme, "\n\n".join(part.strip() for part in text))
            figure.savefig(self.readme.with_name("reproduce.svg"), facecolor="white")
            for name, (drawn, _) in shown.items():
                drawn.savefig(self.readme.with_name(f"{name}.png"), facecolor="white", dpi=110)

    def _pictures(
        self, run: Run, material: Material, found: Results
    ) -> dict[str, tuple[Figure, str]]:
        """What the first seed's encoders make of some test images."""
        seed = self.seeds[0]
        shown = [arm for arm in _SHOWN if arm in found]
        models = {arm: load(run.path / "arms" / f"{_folder(arm)}-{seed}") for arm in shown}
        twin = untrained(arm_recipe(self.config, IJEPA), seed).target_encoder
        encoders = {TWIN: PretrainedImage(twin, models[IJEPA].config), **models}
        scene = material.test_scenes[0]
        rows, cols = (side // self.config.model.patch for side in scene.shape[:2])
        # A patch of the road, of a façade and of the sky, more or less.
        places = (
            (3 * rows // 4, 2 * cols // 5),
            (2 * rows // 5, cols // 8),
            (rows // 6, cols // 2),
        )
        patches = [row * cols + col for row, col in places]
        frames = material.test_scenes
        some = range(0, len(frames), max(1, len(frames) // 3))[:3]
        return {
            "neighbours": showing.neighbours(models.get(SOUND, models[DMT]), scene, patches),
            "similarity": showing.similarities(models, scene, patches),
            "tokens": showing.components(encoders, frames[some]),
            "segmentation": showing.segmentations(encoders, material, some, seed),
        }


def verdict(found: Results) -> str:
    """What came of the claims, in words, whatever the sign."""
    arms = _trained(found)
    claim = gain(found, DMT, IJEPA, "miou")
    came = {
        "ahead of": "reproduced",
        "in every seed ahead of": "seen in every seed, though the interval holds 0",
    }
    sentences = [
        "The paper's sign, DMT-JEPA ahead of I-JEPA in mIoU, is "
        + came.get(standing(claim), "not reproduced")
        + f": {claim}",
    ]
    if SOUND in found:
        local = gain(found, SOUND, DMT, "miou")
        dense, whole = (standing(gain(found, SOUND, IJEPA, score)) for score in ("miou", "top1"))
        sentences.append(
            f"with the patch's own query DMT-JEPA is {standing(local)} the papers' form in mIoU, "
            f"{local}, {dense} I-JEPA in mIoU and {whole} it in top-1"
        )
    for score, name in (("miou", "mIoU"), ("top1", "top-1")):
        places: dict[str, list[str]] = {}
        for arm in arms:
            places.setdefault(standing(gain(found, arm, TWIN, score)), []).append(arm)
        parts = [f"{word} the untrained twin: {', '.join(arms)}" for word, arms in places.items()]
        sentences.append(f"in {name}, " + "; ".join(parts))
    ahead = {
        arm
        for arm in arms
        for score in ("miou", "top1")
        if standing(gain(found, arm, TWIN, score)).endswith("ahead of")
    }
    if not ahead:
        sentences.append(
            "no arm is ahead of its untrained twin: at this length this counts as a failure to "
            "learn"
        )
    over = [arm for arm in arms if standing(gain(found, arm, RAW, "top1")).endswith("behind")]
    if over:
        sentences.append(f"raw pixels classify photographs better than {', '.join(over)}")
    return " ".join(f"{one[0].upper()}{one[1:]}." for one in sentences)


def data_folder() -> Path:
    """Folder of the images: `vision` in $JEPA_DATA, else beside the working folder.

    Raises
    ------
    DataError
        There is none.
    """
    return files.data_folder(
        "vision", "caltech10", "the images (caltech10, caltech_unlabelled.zip, camvid)"
    )


def _trained(found: Results) -> list[str]:
    return [arm for arm in ARMS if arm in found]


def _folder(arm: str) -> str:
    return arm.casefold().replace(",", "").replace(" ", "-")


def _call(work: Any, *arguments: Any) -> dict[str, Any]:
    result: dict[str, Any] = work(*arguments)
    return result
