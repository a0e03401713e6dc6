"""Arms, tables and words of demo, reproduction and study of targets; small runs of each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jepa_core.errors import ConfigError, DataError
from jepa_vision.experiments import choices, comparison, demo, levers, locality, reproduce
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
)
from jepa_vision.experiments.findings import gains_table, scores_table, standing, targets_table
from jepa_vision.presets import DEMO, REPRODUCE, ModelConfig

TINY = replace(
    REPRODUCE,
    model=ModelConfig(
        image=(64, 64), patch=16, dim=16, depth=1, heads=2, predictor_dim=16, predictor_depth=1
    ),
    masks=replace(REPRODUCE.masks, min_keep=0),
    batch_size=8,
    steps=3,
)


def material(seed: int = 0) -> Material:
    generator = np.random.default_rng(seed)

    def pictures(n: int, height: int, width: int) -> np.ndarray:
        return generator.integers(0, 256, (n, height, width, 3), dtype=np.uint8)

    def maps(n: int) -> np.ndarray:
        return generator.integers(0, 4, (n, 12, 16)).repeat(15, 1).repeat(15, 2)

    return Material(
        [*pictures(10, 72, 72), *pictures(2, 180, 240)],
        pictures(18, 72, 72),
        np.arange(18) % 3,
        pictures(9, 72, 72),
        np.arange(9) % 3,
        ("a", "b", "c"),
        pictures(6, 96, 128),
        maps(6),
        pictures(3, 96, 128),
        maps(3),
        ("sky", "road", "car"),
        3,
    )


def result(top1: float, miou: float, between: float = 0.5) -> dict[str, Any]:
    history = [
        {"step": 0, "health/unexplained": 3.0, "health/token_rank": 28.0}
        | {"health/share_sample": 1 - between},
        {"step": 15, "health/token_rank": 9.0},
        {"step": 10, "loss": 0.4},
        {"step": 20, "loss": 0.2},
        {"step": 30, "loss": 0.3, "health/unexplained": 0.7, "health/token_rank": 20.0},
    ]
    share = {"between_patches": between, "between_images": 1 - between, "total_variance": 0.5}
    return {
        "top1": top1,
        "knn": top1,
        "miou": miou,
        "pixels": 0.5,
        "agreement": [0.8, 0.7],
        "targets": [share, share],
        "alike": 0 if between < 0.01 else -1,
        "history": history,
        "seconds": 60.0,
    }


def found(**miou: list[float]) -> dict[str, list[dict[str, Any]]]:
    """Results of three seeds; those arms that are not named are as their twin."""
    arms = {RAW: [0.1], TWIN: [0.2, 0.21, 0.22]}
    arms |= {arm: [0.2, 0.21, 0.22] for arm in reproduce.ARMS}
    named = {"ijepa": IJEPA, "dmt": DMT, "sound": SOUND}
    arms |= {named[name]: values for name, values in miou.items()}
    return {arm: [result(0.3, value) for value in values] for arm, values in arms.items()}


def test_arms_differ_in_their_targets_alone() -> None:
    recipes = {arm: arm_recipe(REPRODUCE, arm) for arm in reproduce.ARMS}
    assert len({repr(recipe) for recipe in recipes.values()}) == len(recipes)
    for recipe in recipes.values():
        assert replace(recipe, method="dmt-jepa", dmt=REPRODUCE.dmt) == replace(
            REPRODUCE, method="dmt-jepa"
        )
    assert recipes[PAIRED].dmt.pairing == "official"
    assert recipes[MEAN].dmt.aggregator == "mean"
    assert recipes[RANDOM].dmt.choice == "random"


def test_the_papers_sign_is_said_to_be_what_it_is() -> None:
    ahead = reproduce.verdict(found(ijepa=[0.2, 0.2, 0.2], dmt=[0.25, 0.26, 0.255]))
    assert "is reproduced: +0.0550" in ahead
    assert "ahead of the untrained twin: DMT-JEPA" in ahead
    wide = reproduce.verdict(found(ijepa=[0.2, 0.2, 0.2], dmt=[0.21, 0.26, 0.3]))
    assert "is seen in every seed, though the interval holds 0: +0.0567" in wide
    behind = reproduce.verdict(found(ijepa=[0.25, 0.26, 0.255], dmt=[0.2, 0.2, 0.2]))
    assert "is not reproduced: -0.0550" in behind
    assert "not reproduced" in reproduce.verdict(found(ijepa=[0.2, 0.3, 0.1], dmt=[0.21, 0.2, 0.3]))


def test_the_own_query_is_held_against_the_papers_form_and_i_jepa() -> None:
    said = reproduce.verdict(
        found(ijepa=[0.24, 0.25, 0.26], dmt=[0.20, 0.21, 0.22], sound=[0.22, 0.23, 0.241])
    )
    assert "own query DMT-JEPA is ahead of the papers' form in mIoU, +0.0203 [" in said
    assert "(+++), behind I-JEPA in mIoU and level with it in top-1" in said


def test_gains_are_paired_by_seed_and_one_baseline_stands_for_all() -> None:
    results = found(dmt=[0.21, 0.22, 0.23])
    table = gains_table(results, [(DMT, TWIN), (DMT, RAW), ("absent", TWIN)])
    assert [row[0] for row in table.rows] == [f"{DMT} − {TWIN}", f"{DMT} − {RAW}"]
    assert str(table.rows[0][3]).startswith("+0.0100")
    assert "(+++)" in str(table.rows[1][3])


def test_tables_hold_every_arm_and_count_alarms() -> None:
    results = found() | {DMT: [result(0.3, 0.2, 0.002)] * 3}
    assert [row[0] for row in scores_table("x", results).rows] == list(results)
    rows = {row[0]: row for row in targets_table(results).rows}
    assert set(rows) == set(reproduce.ARMS)
    assert rows[DMT][1] == "0.002 ± 0.000"
    assert rows[DMT][-1] == "3 of 3"
    assert rows[IJEPA][-1] == "0 of 3"
    assert rows[IJEPA][-2] == "0.400, 0.200, 0.300"
    assert rows[IJEPA][-3] == "28.0, 9.0, 20.0"


def test_standing_is_by_the_interval() -> None:
    from jepa_core.evaluation.intervals import paired

    assert standing(paired([2, 2.1, 2.2], [1, 1, 1])) == "ahead of"
    assert standing(paired([1, 1, 1], [2, 2.1, 2.2])) == "behind"
    assert standing(paired([1, 2, 3], [2, 2, 2])) == "level with"
    assert standing(paired([1.1, 2, 3], [1, 1, 1])) == "in every seed ahead of"
    assert standing(paired([1, 1, 1], [1.1, 2, 3])) == "in every seed behind"
    assert standing(paired([1, 1, 1], [1, 1, 1])) == "level with"


def test_neighbours_of_one_class_agree() -> None:
    from jepa_vision.dense import EncodedScene

    label = np.zeros((8, 8), int)
    label[:, 4:] = 1
    # Left and right patches differ in their features as in their class.
    tokens = np.zeros((4, 4, 4), np.float32)
    tokens[:, :2, 0], tokens[:, 2:, 1] = 1, 1
    chosen, every = comparison.agreement([EncodedScene(tokens, label)], 255, k=2)
    assert chosen == 1.0
    assert every < 0.8


def test_choices_are_made_on_training_images_alone() -> None:
    whole = material()
    part = choices.for_choices(whole)
    assert len(part.train) == 12
    assert len(part.test) == 6
    assert np.bincount(part.truth).tolist() == [2, 2, 2]
    seen = {x.tobytes() for x in whole.train}
    assert {x.tobytes() for x in [*part.train, *part.test]} == seen
    assert len(part.train_scenes) + len(part.test_scenes) == 6
    assert {x.tobytes() for x in part.test_scenes} <= {x.tobytes() for x in whole.train_scenes}


@pytest.mark.parametrize("arm", [TWIN, IJEPA, SOUND, RANDOM])
def test_an_arm_is_trained_and_probed(arm: str, tmp_path: Path) -> None:
    recipe = TINY if arm == TWIN else arm_recipe(TINY, arm)
    one = comparison.train_arm(material(), recipe, arm, 0, tmp_path / "kept")
    json.dumps(one, allow_nan=False)
    for score in ("top1", "knn", "miou", "pixels"):
        assert 0 <= one[score] <= 1
    assert len(one["hits"]) == 9
    if arm != TWIN:
        assert one["history"][0]["step"] == 0
        assert (tmp_path / "kept").is_dir()
        assert set(one["targets"][0]) == {"between_patches", "between_images", "total_variance"}


def test_raw_pixels_are_probed_alike() -> None:
    one = comparison.probe_pixels(material(), TINY)
    json.dumps(one, allow_nan=False)
    assert set(one) >= {"top1", "knn", "miou", "pixels", "agreement", "hits"}


def test_reproduction_goes_from_images_to_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "read_material", lambda folder: material())
    readme = tmp_path / "README.md"
    readme.write_text("<!-- reproduce:begin -->\n<!-- reproduce:end -->\n")
    run = reproduce.Reproduce(
        out=tmp_path / "run", data=tmp_path, seeds=(0, 1, 2), jobs=1, readme=readme, config=TINY
    )
    run()
    text = readme.read_text()
    for words in ("Photographs and street scenes", "Paired differences", "The targets", SOUND):
        assert words in text
    for name in ("reproduce.svg", "tokens.png", "segmentation.png", "similarity.png"):
        assert (tmp_path / name).stat().st_size > 1000
    assert "street scenes" in (tmp_path / "run" / "report.html").read_text()
    # Nothing is trained again, and the text is the same.
    replace(run, resume=True)()
    assert readme.read_text() == text


def test_a_run_without_controls_can_get_them_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "read_material", lambda folder: material())
    run = reproduce.Reproduce(
        out=tmp_path / "run", data=tmp_path, seeds=(0, 1), jobs=1, controls=(), config=TINY
    )
    run()
    kept = tmp_path / "run" / "results" / "seeds.jsonl"
    first = kept.read_text()
    assert f'"{RANDOM}"' not in first
    replace(run, controls=("random-neighbours",), resume=True)()
    assert kept.read_text().startswith(first)
    assert f'"{RANDOM}"' in kept.read_text()


def test_missing_images_and_a_readme_without_markers_are_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JEPA_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="set JEPA_DATA"):
        reproduce.Reproduce(out=tmp_path / "run")()
    monkeypatch.setattr(reproduce, "read_material", lambda folder: material())
    (tmp_path / "README.md").write_text("")
    with pytest.raises(DataError, match="has not one line"):
        reproduce.Reproduce(data=tmp_path, out=tmp_path / "run", readme=tmp_path / "README.md")()
    assert not (tmp_path / "run").exists()


def test_the_study_writes_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locality, "read_material", lambda folder: material())
    monkeypatch.setattr(locality, "FORMS", dict(list(locality.FORMS.items())[:3]))
    study = locality.Locality(
        out=tmp_path / "kept.jsonl",
        markdown=tmp_path / "TARGETS.md",
        data=tmp_path,
        seeds=(0, 1),
        jobs=1,
        config=TINY,
    )
    study()
    text = (tmp_path / "TARGETS.md").read_text()
    assert "own query" in text
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 10


def test_levers_are_compared_with_the_twin_and_with_the_recipe_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(levers, "read_material", lambda folder: material())
    longer = "4 times the steps"
    study = levers.Levers(
        levers=(longer,),
        out=tmp_path / "kept.jsonl",
        markdown=tmp_path / "LEVERS.md",
        data=tmp_path,
        seeds=(0, 1),
        jobs=1,
        config=TINY,
    )
    study()
    kept = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    steps = {one["key"]["arm"]: one["key"]["recipe"]["steps"] for one in kept}
    assert steps == {TWIN: TINY.steps, IJEPA: TINY.steps, longer: 4 * TINY.steps}
    text = (tmp_path / "LEVERS.md").read_text()
    assert f"{longer} − {TWIN}" in text
    assert f"{longer} − {IJEPA}" in text
    with pytest.raises(ConfigError, match="no lever wings"):
        replace(study, levers=("wings",))()


def test_the_demo_needs_no_file_and_leaves_an_encoder_and_a_report(tmp_path: Path) -> None:
    from jepa_vision import load

    small = replace(DEMO, model=replace(TINY.model, patch=8), masks=DEMO.masks, steps=2)
    demo.Demo(out=tmp_path / "run", jobs=1, config=replace(small, batch_size=8))()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Handwritten digits" in page
    assert "says nothing about the methods" in page
    assert load(tmp_path / "run")(np.zeros((1, 70, 70, 3), np.uint8)).shape == (1, 64, 16)


def test_windows_cover_the_photographs() -> None:
    pictures = np.zeros((2, 427, 640, 3), np.uint8)
    cut = demo.windows(pictures)
    assert {x.shape for x in cut} == {(96, 96, 3)}
    assert len(cut) == 2 * 14 * 23
