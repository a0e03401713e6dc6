"""Demo, reproduction and study of levers: who sees which rows, and words that fit the numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jepa_tabular
from jepa_core.config import read_json
from jepa_core.errors import ConfigError, DataError
from jepa_core.report.table import Table
from jepa_core.run import Run
from jepa_tabular.experiments import comparison, demo, findings, levers, reproduce
from jepa_tabular.experiments.comparison import OFFICIAL, LabelledTable
from jepa_tabular.experiments.lever_list import BASE, LEVERS, REPRESENTATIONS, TWINS
from jepa_tabular.inference import encode
from jepa_tabular.presets import DEMO, PRETRAIN, REPRODUCE, PretrainConfig
from jepa_tabular.readouts import Target, as_target
from jepa_tabular.results import (
    PCA,
    RAW,
    RAW_TJEPA,
    TJEPA,
    TREES,
    TWIN,
    Evaluation,
    Score,
    standing,
)
from jepa_tabular.simulate import LABEL, SimulationConfig, simulate, write_csv


def tiny(recipe: PretrainConfig, steps: int = 2) -> PretrainConfig:
    config = replace(recipe, steps=steps, warmup_steps=1, batch_size=32, checkpoint_every=steps)
    model = replace(config.model, dim=8, depth=2, heads=2, hidden=8, predictor_dim=8)
    return replace(config, model=replace(model, predictor_depth=1, predictor_heads=2))


def some_table(rows: int = 120, name: str = "some") -> LabelledTable:
    found = simulate(np.arange(rows))
    return LabelledTable(name, found.frame, as_target(found.label))


# --- the generated table ---


def test_a_generated_row_does_not_depend_on_the_others() -> None:
    whole, some = simulate(np.arange(50)), simulate(np.array([7, 3]))
    pd.testing.assert_frame_equal(whole.frame.iloc[[7, 3]].reset_index(drop=True), some.frame)
    assert whole.label.iloc[[7, 3]].tolist() == some.label.tolist()
    np.testing.assert_array_equal(whole.latent[[7, 3]], some.latent)
    other = simulate(np.arange(50), SimulationConfig(seed=1))
    assert not np.allclose(other.latent, whole.latent)


def test_the_generated_table_has_twelve_numbers_and_six_categories_of_four_causes() -> None:
    found = simulate(np.arange(2000))
    kinds = [pd.api.types.is_numeric_dtype(dtype) for dtype in found.frame.dtypes]
    assert kinds == [True] * 12 + [False] * 6
    assert found.latent.shape == (2000, 4)
    np.testing.assert_allclose(np.cov(found.latent.T), np.eye(4), atol=0.1)
    assert found.label.value_counts(normalize=True).min() > 0.45


def test_without_noise_the_columns_are_functions_of_the_causes() -> None:
    config = SimulationConfig(noise=0, temperature=1e-9)
    found = simulate(np.arange(500), config)
    log = np.log(found.frame["n1"])
    design = np.column_stack((found.latent, np.ones(500)))
    for column in (found.frame["n0"], log):
        _, residual, *_ = np.linalg.lstsq(design, column, rcond=None)
        assert residual < 1e-12 * 500
    # A level is called in one region of the causes: a row's neighbour has the same.
    near = simulate(np.arange(500), replace(config, temperature=1e-6))
    assert (near.frame["c5"] == found.frame["c5"]).mean() > 0.99


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(-1, 40), st.sampled_from([0.0, 0.3]))
def test_a_written_table_is_read_back(rows: int, labels: int, missing: float) -> None:
    config = SimulationConfig(missing=missing)
    found = simulate(np.arange(rows), config)
    with_folder(lambda folder: _reads_back(folder, found, rows, labels, config))


def with_folder(use: Callable[[Path], None]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        use(Path(folder))


def _reads_back(folder: Path, found: Any, rows: int, labels: int, config: SimulationConfig) -> None:
    path = write_csv(folder / "new" / "table.csv", rows, config, labels=labels)
    read = jepa_tabular.load_table(path, label=LABEL)
    known = rows if labels < 0 else min(labels, rows)
    assert read[LABEL].notna().sum() == known
    assert read[LABEL][:known].tolist() == found.label[:known].tolist()
    for name in found.frame:
        if name.startswith("n"):
            np.testing.assert_allclose(read[name], found.frame[name], rtol=1e-8)
        else:
            assert read[name].tolist() == found.frame[name].tolist()


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rows is 0"):
        write_csv(tmp_path / "table.csv", 0)


# --- who sees which rows ---


@settings(max_examples=25)
@given(st.integers(60, 400), st.sampled_from(["regression", "binary"]))
def test_what_is_scored_is_neither_seen_nor_trained_on(rows: int, task: str) -> None:
    y = np.arange(rows) % 2 if task == "binary" else np.arange(rows, dtype=float)
    target = Target(task, y, ("a", "b") if task == "binary" else ())  # type: ignore[arg-type]
    for seed in range(4):
        for draw in (comparison.reproduction_parts, comparison.study_parts):
            parts = draw(target, seed, train=20, scored=15)
            assert not set(parts.scored) & set(parts.seen)
            assert set(parts.train) <= set(parts.seen)
            assert parts.sizes == (len(parts.train), len(parts.seen) - len(parts.train), 15) or (
                len(parts.scored) < 15
            )


def test_the_levers_are_chosen_by_labels_that_the_reproduction_never_scores() -> None:
    target = Target("regression", np.arange(1000, dtype=float))
    scored = [set(comparison.reproduction_parts(target, seed).scored) for seed in range(3)]
    assert not scored[0] & scored[1] | scored[0] & scored[2] | scored[1] & scored[2]
    for seed in range(3):
        parts = comparison.study_parts(target, seed)
        labels = set(parts.train) | set(parts.scored)
        assert not any(labels & one for one in scored)
    thirds = [set(comparison.study_parts(target, seed).scored) for seed in range(3)]
    assert sum(map(len, thirds)) == len(set.union(*thirds)) == 400


def test_only_one_generated_row_in_ten_has_a_label_in_the_demo() -> None:
    parts = demo.parts(some_table(500, "generated"), 0)
    assert (len(parts.train), len(parts.seen), len(parts.scored)) == (40, 400, 100)
    assert set(parts.train) <= set(parts.seen)
    tests = [set(demo.parts(some_table(500), seed).scored) for seed in range(3)]
    assert not tests[0] & tests[1] | tests[1] & tests[2]


# --- encoders ---


def test_scaling_and_categories_come_from_the_seen_rows_alone() -> None:
    table = some_table()
    frame = table.frame.copy()
    frame.loc[100:, "n0"] = 1e6
    frame.loc[100:, "c0"] = "never seen"
    arm = comparison.trained(frame.iloc[:100], tiny(REPRODUCE), 0)
    again = comparison.trained(table.frame.iloc[:100], tiny(REPRODUCE), 0)
    for one, other in zip(arm.encoder.parameters(), again.encoder.parameters(), strict=True):
        np.testing.assert_array_equal(one.detach(), other.detach())
    assert "never seen" not in arm.preprocessor.levels_[0].categories


def test_an_arm_is_the_target_encoder_of_the_last_step() -> None:
    table = some_table()
    arm = comparison.trained(table.frame, tiny(REPRODUCE, 3), 0)
    target = arm.module.target_encoder.state_dict()
    for name, value in arm.encoder.state_dict().items():
        np.testing.assert_array_equal(value, target[name])
    steps = [line["step"] for line in arm.history]
    assert steps[0] == 0
    assert steps[-1] == 3
    assert findings.last_health(arm.history)["health/unexplained"] > 0


def test_the_official_recipe_keeps_size_steps_and_rates() -> None:
    ours = replace(REPRODUCE, steps=77, learning_rate=0.5)
    official = comparison.official_recipe(ours, "adult")
    assert (official.steps, official.learning_rate, official.momentum) == (77, 0.5, ours.momentum)
    assert (official.model.dim, official.model.depth) == (ours.model.dim, ours.model.depth)
    assert official.compat == "official"
    assert official.model.position_scale == 1
    assert official.model.type_embedding
    assert official.columns.numeric == "minmax"
    launch = PRETRAIN["official-adult"]
    assert (official.context, official.target) == (launch.context, launch.target)
    # What the published program would have to know of the test rows.
    assert official.columns.unknown == "reserve"


# --- results that are kept ---


# --- words ---


def results_of(name: str, r2: dict[str, list[float]], readout: str = "linear") -> Evaluation:
    scores = [
        Score(one, readout, 1, "all", seed, {"r2": value, "rmse": 1.0})
        for one, values in r2.items()
        for seed, value in enumerate(values)
    ]
    same = {"intra_feature_variance": 1.0, "effective_rank": 2.0}
    return Evaluation("regression", tuple(scores), ((same, same),) * 3, (6000, 10, 4000))


def result(before: float, after: float, unexplained: float) -> dict[str, Any]:
    sides = [{"intra_feature_variance": x, "effective_rank": 2.0} for x in (before, after)]
    history = [{"step": 0, "health/unexplained": 3.0}, {"step": 9, "loss": 0.1}]
    history.insert(1, {"step": 8, "health/unexplained": unexplained})
    return {"collapse": sides, "official": sides, "history": history, "seconds": 1.0}


@pytest.mark.parametrize(
    ("after", "unexplained", "says"),
    [
        (1.0, 0.5, ()),
        (0.25, 0.89, ()),
        (0.19, 0.5, ("warning: only 19%",)),
        (0.04, 0.5, ("failed: the representation collapsed to 4%",)),
        (1.0, 0.91, ("failed: the predictor leaves 91%",)),
        (1.0, float("nan"), ("failed: the predictor leaves nan%",)),
        (0.04, 2.0, ("failed: the representation", "failed: the predictor")),
    ],
)
def test_what_went_wrong_is_said_of_the_worst_seed(
    after: float, unexplained: float, says: tuple[str, ...]
) -> None:
    results = [result(1.0, 1.2, 0.3), result(1.0, after, unexplained)]
    found = findings.health_warnings("adult", results)
    assert len(found) == len(says)
    for line, words in zip(found, says, strict=True):
        assert line.startswith(f"adult, {words}")


@pytest.mark.parametrize(
    ("differences", "word"),
    [
        ((0.01, 0.02, 0.01), "ahead of"),
        ((0.01, 0.02, -0.01), "level with"),
        ((0.001, 0.001, 0.002), "level with"),
        ((-0.01, -0.02, -0.01), "behind"),
        ((-0.1, 0.01, 0.01), "level with"),
    ],
)
def test_three_of_three_seeds_make_a_standing(differences: tuple[float, ...], word: str) -> None:
    evaluation = results_of("t", {TJEPA: [0.5 + d for d in differences], TWIN: [0.5] * 3})
    found = evaluation.gain(TJEPA, TWIN, "linear")
    assert found is not None
    np.testing.assert_allclose(found.differences, differences)
    assert standing(found) == word


def test_a_gain_of_what_was_not_read_out_is_none() -> None:
    evaluation = results_of("t", {TJEPA: [0.5] * 3})
    assert evaluation.gain(TJEPA, TWIN, "linear") is None
    assert evaluation.gain(TJEPA, RAW, "mlp") is None


def test_the_sentence_names_every_table_where_it_stands() -> None:
    better = results_of("x", {TJEPA: [0.6] * 3, RAW: [0.5] * 3})
    worse = results_of("y", {TJEPA: [0.4] * 3, RAW: [0.5] * 3})
    found = findings.standings_sentence(
        {"x": better, "z": better, "y": worse}, TJEPA, RAW, "linear"
    )
    assert found == (
        "under a linear readout T-JEPA is ahead of the raw columns on x (+0.100) and z (+0.100), "
        "behind them on y (-0.100)"
    )


def evaluations(twin: float, network: float) -> dict[str, Evaluation]:
    """Three tables; T-JEPA has 0.5 under both readouts."""
    linear = {TJEPA: [0.5] * 3, RAW: [0.4] * 3, TWIN: [twin] * 3, RAW_TJEPA: [0.5] * 3}
    linear[OFFICIAL] = [0.3] * 3
    both = (
        results_of("", linear),
        results_of("", {**linear, RAW: [network] * 3}, "mlp"),
    )
    whole = replace(both[0], scores=both[0].scores + both[1].scores)
    return dict.fromkeys(("california", "adult", "jannis"), whole)


def test_the_reproduction_says_which_signs_came_out() -> None:
    results = {name: [result(1, 1, 0.5)] * 4 for name in ("california", "adult", "jannis")}
    good = reproduce.signs(evaluations(twin=0.4, network=0.4), results)
    assert "ahead of one on the columns, is reproduced: under a network T-JEPA is ahead" in good
    assert "failure" not in good
    bad = reproduce.signs(evaluations(twin=0.6, network=0.6), results)
    assert "is not reproduced: under a network T-JEPA is behind the raw columns" in bad
    assert "failure to learn by the honest test: ahead of the untrained twin on 0 of 3" in bad
    collapsed = {**results, "adult": [result(1, 0.01, 0.5)] * 4}
    assert "Adult, failed: the representation collapsed to 1%" in reproduce.signs(
        evaluations(0.4, 0.4), collapsed
    )


# --- the commands ---


def test_the_demo_leaves_a_report_and_an_encoder_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "ROWS", 150)
    monkeypatch.setattr(demo, "breast_cancer", lambda: some_table(100, "breast cancer"))
    monkeypatch.setattr(demo, "digits", lambda: some_table(130, "digits"))
    out = tmp_path / "demo"
    demo.Demo(out=out, seeds=(0,), jobs=1, config=tiny(DEMO))()
    run = Run.open(out)
    tables = {
        path.stem: Table.from_dict(read_json(path)) for path in sorted(run.results.glob("*.json"))
    }
    assert list(tables) == ["0-summary", "1-generated", "2-breast-cancer", "3-digits", "latent"]
    inputs = [row[0] for row in tables["1-generated"].rows]
    assert inputs == [RAW, TWIN, TJEPA, RAW_TJEPA, PCA]
    assert [row[0] for row in tables["0-summary"].rows] == ["generated", "breast cancer", "digits"]
    # Two steps teach nothing, and the demo says so.
    assert "failed: the predictor leaves" in tables["0-summary"].notes[0]
    page = (out / "report.html").read_text(encoding="utf-8")
    for caption in ("Row variance of the target encoder", "One row under a mask", "by their label"):
        assert caption in page
    assert "report:" in capsys.readouterr().out
    model = jepa_tabular.load(out)
    assert model(simulate(np.arange(5)).frame).shape == (5, 19, 8)


def test_the_demos_tables_are_those_of_scikit_learn() -> None:
    cancer, digits = demo.breast_cancer(), demo.digits()
    assert (cancer.frame.shape, cancer.target.task) == ((569, 30), "binary")
    assert (digits.frame.shape, len(digits.target.classes)) == ((1797, 16), 10)
    from sklearn.datasets import load_digits

    first = load_digits().images[0]
    assert digits.frame.loc[0, "row1_column2"] == first[2:4, 4:6].sum()


@pytest.fixture
def tables(data: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The real tables, a few rows of each."""
    monkeypatch.setenv("JEPA_DATA", str(data("tabular").parent))
    whole = reproduce.read_table

    def few(name: str, folder: Path) -> LabelledTable:
        table = whole(name, folder)
        rows = np.arange(0, len(table.frame), len(table.frame) // 200)
        return LabelledTable(name, table.frame.iloc[rows], table.target.take(rows))

    monkeypatch.setattr(reproduce, "read_table", few)
    monkeypatch.setattr(levers, "read_table", few)
    for module in (reproduce, levers):
        monkeypatch.setattr(module, "LABELS", ("all",))
    monkeypatch.setattr(levers, "_EPOCHS", 1)


@pytest.mark.usefixtures("tables")
def test_the_reproduction_writes_every_arm_into_report_and_readme(tmp_path: Path) -> None:
    readme, out = tmp_path / "README.md", tmp_path / "run"
    readme.write_text(
        "before\n<!-- reproduce:begin -->\nof an earlier run\n<!-- reproduce:end -->\nafter\n"
    )
    one = reproduce.Reproduce(
        out=out,
        tables=("california", "adult"),
        seeds=(0,),
        jobs=1,
        readme=readme,
        config=tiny(REPRODUCE),
    )
    one()
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- reproduce:begin -->\n\nWritten by `jepa")
    assert text.endswith("\n\n<!-- reproduce:end -->\nafter\n")
    assert "of an earlier run" not in text
    assert (tmp_path / "reproduce.svg").exists()
    table = Table.from_dict(read_json(out / "results" / "2-adult.json"))
    read = {(row[0], row[1]) for row in table.rows}
    networks = {(name, "mlp") for name in (RAW, TWIN, TJEPA, RAW_TJEPA, OFFICIAL)}
    assert networks | {(name, "linear") for name, _ in networks} <= read
    assert {(PCA, "linear"), ("random features", "linear"), (TREES, "trees")} <= read
    for words in ("without [REG]", "The paper's sign", "**adult, binary**", "reproduce.svg"):
        assert words in text
    # A second time nothing is computed: the lines are there.
    lines = (out / "results" / "seeds.jsonl").read_text()
    replace(one, resume=True, readme=None)()
    assert (out / "results" / "seeds.jsonl").read_text() == lines


def test_the_real_tables_have_the_sizes_of_the_paper(data: Callable[[str], Path]) -> None:
    folder = data("tabular")
    shapes = {name: reproduce.read_table(name, folder) for name in reproduce.COST}
    found = {name: (*table.frame.shape, table.target.task) for name, table in shapes.items()}
    assert found == {
        "california": (20_433, 8, "regression"),
        "adult": (48_842, 14, "binary"),
        "jannis": (28_145, 54, "multiclass"),
    }
    assert shapes["adult"].target.y.mean() == pytest.approx(0.23928177)
    sizes = {name: comparison.reproduction_parts(t.target, 0).sizes for name, t in shapes.items()}
    assert {size[0] for size in sizes.values()} == {6000}
    assert {size[2] for size in sizes.values()} == {4000}


def test_a_table_gets_fewer_steps_the_more_they_cost() -> None:
    for name, cost in reproduce.COST.items():
        found = reproduce.recipe(REPRODUCE, name)
        assert found.steps == REPRODUCE.steps // cost
        assert found.warmup_steps == REPRODUCE.warmup_steps // cost
    one = reproduce.recipe(replace(REPRODUCE, steps=3, warmup_steps=2), "jannis")
    assert (one.steps, one.warmup_steps) == (1, 0)


def test_without_the_data_the_reproduction_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JEPA_DATA", raising=False)
    with pytest.raises(DataError, match="set JEPA_DATA"):
        reproduce.Reproduce(out=tmp_path / "run")()
    assert not (tmp_path / "run").exists()


def test_a_readme_without_markers_is_refused_before_the_work(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("<!-- reproduce:begin -->\n")
    with pytest.raises(DataError, match="has not one line"):
        reproduce.Reproduce(data=tmp_path, out=tmp_path / "run", readme=path)()
    assert path.read_text() == "<!-- reproduce:begin -->\n"
    assert not (tmp_path / "run").exists()


# --- levers ---


def test_every_lever_is_a_recipe_and_another_one() -> None:
    config = reproduce.recipe(REPRODUCE, "california")
    changed = {name: lever.change(config) for name, lever in LEVERS.items()}
    same = {name for name, one in changed.items() if one == config}
    assert same == {BASE, "rows-labelled"}
    others = [one for name, one in changed.items() if name not in same]
    assert all(others.count(one) == 1 for one in others)
    assert changed["steps-double"].steps == 2 * config.steps
    assert changed["width-64"].model.dim == 64


@pytest.mark.usefixtures("tables")
def test_the_study_keeps_its_runs_and_writes_a_page(tmp_path: Path) -> None:
    out, page = tmp_path / "levers.jsonl", tmp_path / "LEVERS.md"
    study = levers.Levers(
        levers=("depth-1", "rows-labelled"),
        tables=("california",),
        seeds=(0,),
        out=out,
        markdown=page,
        jobs=1,
        config=tiny(REPRODUCE, 3),
    )
    study()
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(kept) == 3
    recipes = {one["key"]["lever"]: one["key"]["recipe"]["model"]["depth"] for one in kept}
    assert recipes == {BASE: 2, "depth-1": 1, "rows-labelled": 2}
    further = {one["key"]["lever"]: one["key"]["rows"][2] for one in kept}
    assert further["rows-labelled"] == 0 < further[BASE]
    base = next(one["result"] for one in kept if one["key"]["lever"] == BASE)
    assert set(REPRESENTATIONS) | {kind for kind, _ in TWINS.values()} <= set(base["r2"])
    text = page.read_text(encoding="utf-8")
    assert "**california: what each change does**" in text
    flags = "--tables california --levers depth-1 rows-labelled --seeds 0 --markdown LEVERS.md"
    assert f"Written by `python -m jepa_tabular.experiments.levers {flags}`" in text
    names = [LEVERS["depth-1"].words, "raw columns", *REPRESENTATIONS.values()]
    for words in names + [words for _, words in TWINS.values()]:
        assert f"| {words} |" in text
    row = next(line for line in text.splitlines() if f"| {REPRESENTATIONS['all-blocks']} |" in line)
    gain = np.mean(list(base["r2"]["all-blocks"].values()))
    gain -= np.mean(list(base["r2"]["all-blocks of twin"].values()))
    assert row.split(" | ")[5].startswith(f"{gain:+.4f}")
    before = out.read_text()
    replace(study, levers=("depth-1",))()
    assert out.read_text() == before


def test_an_unknown_lever_is_refused() -> None:
    with pytest.raises(ConfigError, match="no lever breadth"):
        levers.Levers(levers=("breadth",))()


def test_on_jannis_only_the_levers_that_say_most_run() -> None:
    study = levers.Levers()
    assert set(study._levers("adult")) == set(LEVERS)
    assert BASE in study._levers("jannis")
    assert "steps-fourfold" not in study._levers("jannis")
    assert levers.Levers(levers=("width-64",))._levers("jannis") == [BASE, "width-64"]


def test_the_outputs_of_the_blocks_end_in_the_representation() -> None:
    arm = comparison.trained(some_table().frame, tiny(REPRODUCE), 0)
    x = arm.preprocessor.transform(some_table().frame)
    blocks = levers.block_outputs(arm.encoder, x, batch=50)
    assert len(blocks) == 2
    np.testing.assert_allclose(
        blocks[-1], encode(arm.encoder, x, device="cpu"), rtol=1e-5, atol=1e-6
    )
    side_by_side = encode(arm.encoder, x, output="blocks", device="cpu")
    np.testing.assert_allclose(
        side_by_side.reshape(120, 19, 16), np.concatenate(blocks, -1), rtol=1e-5, atol=1e-6
    )
    found = levers.representations(arm, x)
    assert found["all-blocks"].shape == (120, 19, 16)
    assert found["reg"].shape == (120, 1, 8)
    mean = (blocks[0] + blocks[1]) / 2
    np.testing.assert_allclose(found["mean-blocks"], mean, rtol=1e-5, atol=1e-6)
    # After training the online encoder is ahead of its average.
    assert not np.allclose(found["online"], blocks[-1], atol=1e-6)
