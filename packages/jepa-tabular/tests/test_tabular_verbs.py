"""`jepa tabular info|pretrain|probe|report` as a user runs them."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jepa_core import cli
from jepa_core.evaluation.intervals import bootstrap
from jepa_core.run import Run
from jepa_tabular.data.corpus import TableCorpus
from jepa_tabular.evaluation import represented
from jepa_tabular.inference import load
from jepa_tabular.presets import PRETRAIN, TableShape
from jepa_tabular.readouts import Target, score
from jepa_tabular.verbs.info import parameters, shapes
from jepa_tabular.verbs.pretrain import Rows, rows_table, test_rows
from jepa_tabular.verbs.probe import Probe, r2_statistic

test_rows.__test__ = False  # a function of the package, not a test

TINY = "--dim 8 --depth 1 --heads 2 --hidden 8 --predictor-dim 8 --predictor-depth 1".split()  # noqa: SIM905
TINY += "--predictor-heads 2 --predictor-hidden 8 --batch-size 32 --warmup-steps 2".split()  # noqa: SIM905
STEPS = ["--steps", "12", "--checkpoint-every", "4"]

# Of the published recipes: columns, cardinalities, tokenizer, encoder, predictor.
LAUNCH = {
    "jannis": (54, (), 6_976, 440_064, 166_016),
    "adult": (14, (9, 16, 7, 15, 6, 5, 2, 42), 7_872, 440_960, 166_016),
    "helena": (27, (), 3_520, 436_608, 166_016),
    "aloi": (128, (), 16_448, 449_536, 166_016),
    "california": (8, (), 1_088, 434_176, 166_016),
    "higgs": (28, (4, 4, 4, 4), 4_416, 437_504, 166_016),
}
CLI = {
    "jannis": 261_312,
    "adult": 262_208,
    "helena": 257_856,
    "aloi": 270_784,
    "california": 255_424,
    "higgs": 258_752,
}


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """300 rows: four numbers, a category, an id, and a label that depends on them."""
    g = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "id": [f"r{i}" for i in range(300)],
            "a": g.normal(size=300),
            "city": g.choice(["Lyon", "Oslo", "Rome"], 300),
            "b": g.normal(size=300),
            "c": g.normal(size=300),
            "d": g.normal(size=300),
        }
    )
    score = frame["a"] + (frame["city"] == "Oslo") + 0.1 * g.normal(size=300)
    frame["bought"] = np.where(score > 0.3, "yes", "no")
    frame.loc[:9, "bought"] = None
    path = tmp_path_factory.mktemp("table") / "table.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def run(table) -> Path:
    """A pre-training run with three checkpoints."""
    out = table.parent / "run"
    words = ["pretrain", "--data", table, "--label", "bought", "--ignore", "id", "--out", out]
    assert cli.main(["tabular", *map(str, words), *TINY, *STEPS]) == 0
    return out


@pytest.fixture(scope="module")
def probed(run, table) -> Path:
    """A copy of the run, probed."""
    out = table.parent / "probed"
    shutil.copytree(run, out)
    words = ["probe", out, "--data", table, "--label", "bought", "--labels", 0, 50]
    assert cli.main(["tabular", *map(str, words)]) == 0
    return out


def table_shape(columns: int, cardinalities: tuple[int, ...]) -> TableShape:
    first = columns - len(cardinalities)
    return TableShape(columns, tuple(range(first, columns)), cardinalities)


@pytest.mark.parametrize("name", LAUNCH)
def test_the_launch_recipe_has_the_published_parameters(name):
    columns, cardinalities, tokenizer, encoder, predictor = LAUNCH[name]
    shape = table_shape(columns, cardinalities)
    found = parameters(PRETRAIN["official-jannis"], shape)
    assert found["encoder: tokenizer"] == tokenizer
    assert found["official encoder, with its unused layer"] == encoder
    assert encoder - found["encoder"] == 25_216
    assert found["official predictor, with its unused layer and norm"] == predictor
    assert predictor - found["predictor"] == 9_616 + 32
    assert found["target encoder (not trained)"] == found["encoder"]


@pytest.mark.parametrize("name", CLI)
def test_the_recipe_of_the_command_line_has_the_published_parameters(name):
    from dataclasses import replace

    columns, cardinalities, tokenizer, *_ = LAUNCH[name]
    recipe = PRETRAIN["official-cli"]
    # The published counts are without the embedding of the kinds of columns.
    recipe = replace(recipe, model=replace(recipe.model, type_embedding=False))
    found = parameters(recipe, table_shape(columns, cardinalities))
    assert found["encoder: tokenizer"] == tokenizer
    assert found["official encoder, with its unused layer"] == CLI[name]
    assert CLI[name] - found["encoder"] == 49_984
    assert found["official predictor, with its unused layer and norm"] == 163_008


def test_the_sound_recipe_has_nothing_unused():
    found = parameters(PRETRAIN["nano"], TableShape(8))
    assert not any("unused" in name for name in found)
    parts = [n for name, n in found.items() if name.startswith("encoder: ")]
    assert sum(parts) == found["encoder"]
    assert found["trained"] == found["encoder"] + found["predictor"]


def test_shapes_are_those_of_a_forward_pass():
    found = shapes(PRETRAIN["small"], TableShape(20), batch=4)
    # 15 to 40 % of 20 columns and a register; 15 to 60 % asked for by each of four masks.
    assert found["tokens, context encoder"] == [[4, 4, 32], [4, 9, 32]]
    assert found["prediction and target"] == [[4, 4, 3, 32], [4, 4, 12, 32]]
    assert found["tokens in the predictor"] == [[16, 7, 16], [16, 21, 16]]
    assert found["representation of the rows"][0] == [4, 21 * 32]
    official = shapes(PRETRAIN["official-jannis"], TableShape(54))
    assert official["tokens, context encoder"] == [[4, 7, 64], [4, 20, 64]]


def test_info_takes_a_shape_or_a_table(jepa, table):
    said = json.loads(
        jepa(
            "info",
            "--preset",
            "official-jannis",
            "--columns",
            14,
            "--cardinalities",
            3,
            4,
            "--json",
        ).out
    )
    assert said["table"]["categorical"] == [12, 13]
    assert said["config"]["steps"] == 49_200
    said = json.loads(
        jepa("info", "--data", table, "--label", "bought", "--ignore", "id", "--json").out
    )
    assert said["table"]["columns"] == 5
    assert said["table"]["categorical"] == [1]
    assert said["table"]["cardinalities"] == [4]


def test_columns_named_categorical_are_so_besides_those_of_text(jepa, tmp_path, table):
    """In every verb: `data check` and `data build` as `info` and `pretrain`."""
    path = tmp_path / "t.csv"
    frame = pd.read_csv(table)
    frame["zip"] = np.arange(len(frame)) % 7
    frame.to_csv(path, index=False)
    named = ["--label", "bought", "--categorical", "zip"]
    said = json.loads(jepa("info", "--data", path, *named, "--ignore", "id", "--json").out)
    assert said["table"]["categorical"] == [1, 5]
    said = " ".join(jepa("data", "check", path, *named, "--drop", "id").out.split())
    for line in ("city categorical", "zip categorical", "d numerical"):
        assert line in said
    build = ["data", "build", path, *named, "--drop", "id", "--out", tmp_path / "corpus"]
    assert jepa(*build).code == 0
    assert TableCorpus(tmp_path / "corpus").table_shape.categorical == (1, 5)
    run = ["pretrain", "--data", path, *named, "--ignore", "id", "--out", tmp_path / "run"]
    assert jepa(*run, *TINY, *STEPS).code == 0
    assert load(tmp_path / "run").preprocessor.shape_.categorical == (1, 5)


def test_info_shows_every_number(jepa):
    said = jepa("info", "--dim", 64, "--columns", 10)
    assert said.code == 0
    for word in ("model.dim", "columns.numeric", "encoder: tokenizer", "10 numerical"):
        assert word in said.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--columns", 1, "--cardinalities", 3, 4], "cardinalities has 2 numbers"),
        (["--columns", 3], "target [0.15, 0.4] of 3 tokens rounds to 0 to 1 tokens"),
    ],
)
def test_info_refuses_a_table_that_cannot_be(jepa, words, says):
    said = jepa("info", *words)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert says in said.err


def test_a_run_folder_holds_what_was_asked_and_what_came(run):
    for name in ("config.json", "metrics.jsonl", "encoder/model.safetensors", "report.html"):
        assert (run / name).stat().st_size > 0
    for name in ("mask", "collapse"):
        assert (run / f"figures/{name}.png").stat().st_size > 0
    assert Run.open(run).config["config"]["model"]["dim"] == 8
    kept = json.loads((run / "encoder/config.json").read_text())
    assert kept["label"] == "bought"
    assert kept["recipe"]["steps"] == 12
    page = (run / "report.html").read_text()
    assert "were seen neither in scaling nor in pre-training" in page


def test_what_looks_wrong_is_a_line_and_no_error(jepa, table, run, tmp_path):
    frame = pd.read_csv(table)
    frame["paid"] = (frame["bought"] == "yes").astype(int)
    frame.to_csv(tmp_path / "leak.csv", index=False)
    out = tmp_path / "run"
    words = ["pretrain", "--data", tmp_path / "leak.csv", "--label", "bought", "--out", out]
    said = jepa(*words, *TINY, *STEPS)
    assert said.code == 0
    assert "note: column 'id': 2" in said.out
    said = jepa("probe", out, "--data", tmp_path / "leak.csv", "--label", "bought", "--labels", 0)
    assert said.code == 0
    assert "note: column 'paid': a copy of the label" in said.out


def test_label_and_ignored_columns_are_no_features(run):
    assert load(run).preprocessor.names_ == ("a", "city", "b", "c", "d")


def test_the_test_rows_are_not_learned_from(jepa, table, run, tmp_path):
    """Whatever stands in them, the encoder and its scaling are the same."""
    frame = pd.read_csv(table)
    test = test_rows(len(frame), 0.2, 0)
    assert 30 < test.sum() < 90
    frame.loc[test, "a"] *= 1000
    frame.to_csv(tmp_path / "other.csv", index=False)
    words = ["pretrain", "--data", tmp_path / "other.csv", "--label", "bought", "--ignore", "id"]
    assert jepa(*words, "--out", tmp_path / "run", *TINY, *STEPS).code == 0
    one, other = load(run), load(tmp_path / "run")
    new = frame.iloc[:9][["a", "city", "b", "c", "d"]]
    np.testing.assert_array_equal(one(new), other(new))


def test_a_transductive_run_learns_from_them_and_says_so(jepa, table, run, tmp_path):
    words = ["pretrain", "--data", table, "--label", "bought", "--ignore", "id", "--transductive"]
    assert jepa(*words, "--out", tmp_path / "run", *TINY, *STEPS).code == 0
    assert "Transductive: the" in (tmp_path / "run/report.html").read_text()
    new = pd.read_csv(table).iloc[:9][["a", "city", "b", "c", "d"]]
    assert not np.array_equal(load(run)(new), load(tmp_path / "run")(new))
    said = jepa("probe", tmp_path / "run", "--data", table, "--label", "bought", "--labels", 0)
    assert said.code == 0
    assert "Pre-training has seen the test rows" in " ".join(said.out.split())


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (Rows(table=10), "No rows were set aside"),
        (Rows(table=10, test=2, transductive=True), "Transductive: the 2 test rows"),
        (Rows(table=10, test=2, scaled_on_all=True), "scaling was learned from all rows"),
        (Rows(table=10, test=2), "neither in scaling nor in pre-training"),
    ],
)
def test_the_report_says_which_rows_were_seen(rows, says):
    assert says in rows_table(rows, TableShape(3)).notes[0]


def test_which_rows_are_for_testing_depends_on_number_and_seed_alone():
    short, long = test_rows(100, 0.3, 5), test_rows(10_000, 0.3, 5)
    np.testing.assert_array_equal(short, long[:100])
    assert long.mean() == pytest.approx(0.3, abs=0.02)
    assert not np.array_equal(test_rows(100, 0.3, 6), short)
    assert not test_rows(100, 0.0, 5).any()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--label", "sold"], "no column is called 'sold'"),
        (["--ignore", "sold"], "no column is called 'sold'"),
        (["--categorical", "sold"], "names 'sold', which is no column"),
        (["--ignore", "id", "a", "b", "c", "d", "city", "bought"], "no column is left"),
        (["--test-share", "0.999"], "rows are left to train on; set --test-share lower"),
        (["--context", "0.8", "0.2"], "context is [0.8, 0.2]"),
        (["--dim", "9"], "dim is 9; allowed: a multiple of heads"),
        (["--steps", "0"], "steps is 0"),
        (["--resume", "--overwrite"], "choose one"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_trained_is_one_line_and_leaves_no_folder(
    jepa, table, tmp_path, words, says
):
    out = tmp_path / "run"
    said = jepa("pretrain", "--data", table, "--out", out, *words)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert says in said.err
    assert not out.exists()


def test_a_run_is_not_written_over_and_goes_on_only_as_it_began(jepa, table, run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    words = ["pretrain", "--data", table, "--label", "bought", "--ignore", "id", "--out", out]
    said = jepa(*words, *TINY, *STEPS)
    assert said.code == 2
    assert "already exists; give --resume or --overwrite" in said.err
    said = jepa(*words, *TINY, *STEPS, "--targets", 2, "--resume")
    assert said.code == 2
    assert "config.targets was 1 and is now 2" in said.err
    before = (out / "encoder/model.safetensors").read_bytes()
    assert jepa(*words, *TINY, *STEPS, "--resume").code == 0
    assert (out / "encoder/model.safetensors").read_bytes() == before


def test_a_corpus_trains_as_its_table_does(jepa, table, tmp_path):
    from jepa_tabular.data.build import CorpusConfig, build_corpus

    corpus = tmp_path / "corpus"
    build_corpus([table], corpus, CorpusConfig(label="bought", id="id"), progress=False)
    out = tmp_path / "run"
    said = jepa("pretrain", "--data", corpus, "--label", "bought", "--out", out, *TINY, *STEPS)
    assert said.code == 0, said.err
    assert load(out).preprocessor.names_ == ("a", "city", "b", "c", "d")
    assert "scaling was learned from all rows" in (out / "report.html").read_text()
    rows = json.loads((out / "encoder/config.json").read_text())["rows"]
    assert rows["trained_on"] == rows["table"] - rows["test"]
    said = jepa("pretrain", "--data", corpus, "--ignore", "a", "--out", tmp_path / "other")
    assert said.code == 2
    assert "the columns of a corpus are settled" in said.err


def test_probe_stands_beside_all_controls_and_tells_the_regret(probed):
    run = Run.open(probed)
    saved = {path.stem.removeprefix("probe-bought-") for path in run.results.glob("probe-*.json")}
    assert saved == {"scores", "gains", "collapse", "relevance", "regret"}
    scores = json.loads((run.results / "probe-bought-scores.json").read_text())
    assert [row[0] for row in scores["rows"]] == [
        "raw columns",
        "untrained twin",
        "T-JEPA",
        "raw + T-JEPA",
        "raw + untrained twin",
        "PCA",
        "random features",
        "boosted trees",
    ]
    assert "T-JEPA" in scores["notes"][0]
    regret = json.loads((run.results / "probe-bought-regret.json").read_text())
    assert sum(row[2] == "chosen without labels" for row in regret["rows"]) == 1
    assert regret["notes"][0].startswith("Regret of the choice: 0.")
    for name in ("variance", "similarity", "map", "relevance"):
        assert (run.figures / f"{name}.png").exists()
    page = (probed / "report.html").read_text()
    assert scores["notes"][0].split(":")[0] in page
    relevance = json.loads((run.results / "probe-bought-relevance.json").read_text())
    assert {row[0] for row in relevance["rows"]} == {"a", "b", "c", "d", "city"}
    assert {row[0] for row in relevance["rows"][:2]} == {"a", "city"}


def test_probe_tests_on_the_rows_set_aside(probed, table):
    scores = json.loads((probed / "results/probe-bought-scores.json").read_text())
    test = test_rows(300, 0.2, 0)
    labelled = np.arange(300) >= 10
    assert f"{(test & labelled).sum()} test rows" in scores["notes"][1]


def test_rows_keep_their_numbers_whatever_rows_are_left_out(table):
    rows = np.array([3, 7, *range(100, 300)])
    frame = pd.DataFrame({"a": rows}, index=rows)
    split = Probe(table, table, "bought")._split(frame, Rows(table=300, test_share=0.3, seed=4))
    np.testing.assert_array_equal(test_rows(300, 0.3, 4)[rows].nonzero()[0], split.test)
    assert sorted(np.concatenate(split)) == list(range(len(rows)))


def test_probe_takes_an_encoder_alone_and_other_columns_beside(jepa, run, table, tmp_path):
    encoder = tmp_path / "encoder"
    shutil.copytree(run / "encoder", encoder)
    frame = pd.read_csv(table).dropna()
    frame = frame[["d", "bought", "b", "a", "city", "c"]].assign(more=1.0)
    path = tmp_path / "again.csv.gz"
    path.write_bytes(gzip.compress(frame.to_csv(index=False).encode()))
    words = [
        "probe",
        encoder,
        "--data",
        path,
        "--label",
        "bought",
        "--labels",
        0,
        "--max-rows",
        200,
    ]
    said = jepa(*words, "--readouts", "linear", "mlp")
    assert said.code == 0, said.err
    assert "Regret" not in said.out
    assert "mlp" in said.out
    assert not list(tmp_path.glob("**/report.html"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--label", "sold"], "no column is called 'sold'"),
        (["--label", "a", "--task", "multiclass", "--labels", "-1"], "labels[0] is -1"),
        (["--label", "id", "--task", "regression"], "labels are no numbers"),
        (["--label", "city"], "no column is called 'city'"),
        (["--label", "bought", "--max-rows", "3"], "max_rows is 3"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_probe_that_cannot_be_is_one_line(jepa, run, table, words, says):
    said = jepa("probe", run, "--data", table, *words)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert says in said.err


def test_probe_wants_an_encoder(jepa, table, tmp_path):
    said = jepa("probe", tmp_path, "--data", table, "--label", "bought")
    assert (said.code, said.err.count("\n")) == (2, 1)


def test_report_writes_the_page_again(jepa, probed):
    page = probed / "report.html"
    page.unlink()
    said = jepa("report", probed)
    assert (said.code, said.out) == (0, f"{page}\n")
    text = page.read_text()
    assert "Regret of the choice" in text
    assert "feature relevance" in text


def test_the_interval_of_r2_is_of_the_score_itself():
    g = np.random.default_rng(0)
    y = Target("multiclass", g.integers(0, 3, 100), ("a", "b", "c"))
    scores = y.columns() + g.normal(size=(100, 3))
    found = bootstrap(r2_statistic(y, scores), 100, resamples=50)
    assert found.estimate == pytest.approx(score(y, scores)["r2"])
    counts = g.integers(0, 3, (4, 100))
    for drawn, value in zip(counts, r2_statistic(y, scores)(counts)[:, 0], strict=True):
        rows = np.repeat(np.arange(100), drawn)
        assert value == pytest.approx(score(y.take(rows), scores[rows])["r2"])


def test_rows_that_the_preprocessing_leaves_out_are_refused(run, table):
    from dataclasses import replace

    from jepa_core.errors import DataError

    model = load(run)
    model.preprocessor.config = replace(model.preprocessor.config, missing="drop")
    frame = pd.read_csv(table).iloc[:2][["a", "city", "b", "c", "d"]]
    frame.loc[1, "a"] = np.nan
    with pytest.raises(DataError, match="1 of 2 rows have missing numbers"):
        represented(model.encoder, model.preprocessor, frame, seed=0)
