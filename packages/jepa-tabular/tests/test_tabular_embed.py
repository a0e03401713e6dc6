"""The verbs embed, predict, finetune and import: files in, files out."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch

from jepa_core.config import read_json
from jepa_core.errors import ConfigError, DataError, RunError
from jepa_tabular import TJEPAClassifier, TJEPARegressor, TJEPATransformer, inference
from jepa_tabular.data.build import CorpusConfig, build_corpus
from jepa_tabular.data.corpus import TableCorpus
from jepa_tabular.data.tables import read
from jepa_tabular.inference import load
from jepa_tabular.verbs import stream
from jepa_tabular.verbs.embed import Embed, Predict, embed_views
from jepa_tabular.verbs.finetune import Finetune
from jepa_tabular.verbs.official import Import
from jepa_tabular.verbs.pretrain import test_rows as rows_set_aside
from jepa_tabular.verbs.stream import Input

TINY = {"dim": 8, "depth": 1, "max_epochs": 2, "random_state": 0, "device": "cpu"}
ROWS = 230


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "name": [f"row {i}" for i in range(ROWS)],
            "age": rng.normal(40, 10, ROWS).round(2),
            "city": rng.choice(["Oslo", "Rome", "Lima"], ROWS),
            "hours": rng.integers(10, 60, ROWS),
        }
    )
    score = frame["age"] + 15 * (frame["city"] == "Rome")
    frame["rich"] = np.where(score > 42, "yes", "no")
    return frame


@pytest.fixture(scope="module")
def places(table, tmp_path_factory) -> Path:
    """A folder with the table as files, a corpus of it, an encoder and a classifier."""
    folder = tmp_path_factory.mktemp("tabular")
    table.to_csv(folder / "table.csv", index=False)
    table.to_parquet(folder / "table.parquet")
    features = table[["age", "city", "hours"]]
    TJEPATransformer(**TINY).fit(features).save_pretrained(folder / "encoder")
    TJEPAClassifier(**TINY).fit(features, table["rich"]).save_pretrained(folder / "classifier")
    TJEPARegressor(**TINY).fit(features[["age", "city"]], table["hours"]).save_pretrained(
        folder / "regressor"
    )
    return folder


def embedding(path: Path, column: str = "embedding") -> np.ndarray:
    values = pyarrow.parquet.read_table(path)[column].combine_chunks()
    return values.flatten().to_numpy().reshape(len(values), -1)


@pytest.mark.parametrize("file", ["table.csv", "table.parquet"])
def test_embeddings_are_what_the_transformer_gives(places, table, tmp_path, file):
    out = tmp_path / "out.parquet"
    Embed(str(places / "encoder"), Input(places / file, out, id="name"))()
    found = pyarrow.parquet.read_table(out)
    assert found.column_names == ["id", "quality", "embedding"]
    assert found["id"].to_pylist() == table["name"].tolist()
    assert found["quality"].to_pylist() == [1.0] * ROWS
    model = TJEPATransformer.from_pretrained(places / "encoder")
    expected = model.transform(table[["age", "city", "hours"]])
    np.testing.assert_array_equal(embedding(out), expected)
    assert list(tmp_path.iterdir()) == [out]


def test_rows_without_a_name_are_called_by_their_line(places, tmp_path):
    for file, first in (("table.csv", "2"), ("table.parquet", "1")):
        out = tmp_path / f"{file}.parquet"
        Embed(str(places / "encoder"), Input(places / file, out))()
        assert pyarrow.parquet.read_table(out)["id"][0].as_py() == first


def test_an_npy_can_be_mapped(places, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "_CHUNK", 100)
    model = str(places / "encoder")
    Embed(model, Input(places / "table.parquet", tmp_path / "a.npy"))()
    Embed(model, Input(places / "table.parquet", tmp_path / "a.parquet"))()
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert mapped.shape == (ROWS, 4 * 8)
    np.testing.assert_array_equal(mapped, embedding(tmp_path / "a.parquet"))


@pytest.mark.parametrize("output", ["flatten", "blocks", "mean", "reg"])
def test_results_do_not_depend_on_the_parts_they_are_computed_in(
    places, tmp_path, monkeypatch, output
):
    model = str(places / "encoder")
    for name, size in (("a", 1 << 14), ("b", 70)):
        monkeypatch.setattr(stream, "_CHUNK", size)
        io = Input(places / "table.csv", tmp_path / f"{name}.parquet")
        Embed(model, io, output=output, views=2)()
    for column in ("embedding", "view_0", "view_1"):
        np.testing.assert_array_equal(
            embedding(tmp_path / "a.parquet", column), embedding(tmp_path / "b.parquet", column)
        )


def test_a_model_of_nameless_columns_takes_them_by_place(table, tmp_path, recwarn):
    x = table[["age", "hours"]].to_numpy()
    TJEPATransformer(**TINY).fit(x).save_pretrained(tmp_path / "encoder")
    np.save(tmp_path / "x.npy", x)
    out = tmp_path / "out.parquet"
    Embed(str(tmp_path / "encoder"), Input(tmp_path / "x.npy", out))()
    expected = TJEPATransformer.from_pretrained(tmp_path / "encoder").transform(x)
    np.testing.assert_array_equal(embedding(out), expected)
    assert not [warning for warning in recwarn if "feature names" in str(warning.message)]


def test_views_are_different_contexts_of_one_row(places, table):
    model = load(places / "encoder", device="cpu")
    x = model.preprocessor.transform(table[["age", "city", "hours"]])
    keys = np.arange(ROWS)
    views = [
        embed_views(model, x, keys, view, output="flatten", seed=0).reshape(ROWS, 4, 8)
        for view in range(2)
    ]
    seen = [(np.abs(view).sum(-1) > 0) for view in views]
    for part in seen:
        assert part[:, 0].all()  # the [REG] token is in every context
        assert (part[:, 1:].sum(1) == 2).all()  # and 60 % of three columns
    assert (seen[0] != seen[1]).any()
    row = int(np.flatnonzero(seen[0][:, 1] & seen[0][:, 3])[0])
    with torch.no_grad():
        context = torch.tensor([[0, 1, 3]])
        alone = model.encoder(torch.from_numpy(x[row : row + 1]), context, layer="block")[0]
    np.testing.assert_allclose(views[0][row, [0, 1, 3]], alone.numpy(), atol=1e-5)
    depth = len(model.encoder.blocks)
    blocks = embed_views(model, x, keys, 0, output="blocks", seed=0).reshape(ROWS, 4, depth, 8)
    np.testing.assert_array_equal(blocks[:, :, -1], views[0])


def test_quality_is_the_share_of_columns_that_say_something(tmp_path):
    frame = pd.DataFrame(
        {"a": [1.0, 2.0, 3.0, 4.0], "b": ["x", "y", "x", "y"], "c": ["p", None, "q", "p"]}
    )
    model = TJEPATransformer(**TINY, missing="mean").fit(frame)
    model.save_pretrained(tmp_path / "encoder")
    new = pd.DataFrame({"a": [1.0, None, 1.0], "b": ["x", "z", "x"], "c": ["p", None, None]})
    new.to_csv(tmp_path / "new.csv", index=False)
    Embed(str(tmp_path / "encoder"), Input(tmp_path / "new.csv", tmp_path / "out.parquet"))()
    found = pyarrow.parquet.read_table(tmp_path / "out.parquet")["quality"].to_numpy()
    np.testing.assert_allclose(found, [1, 0, 2 / 3], atol=1e-6)


def test_a_corpus_is_embedded_as_its_table(places, table, tmp_path):
    features = table[["name", "age", "city", "hours"]]
    features.to_csv(tmp_path / "rows.csv", index=False)
    build_corpus([tmp_path / "rows.csv"], tmp_path / "corpus", CorpusConfig(id="name"))
    corpus = TableCorpus(tmp_path / "corpus")
    encoder = load(places / "encoder").encoder
    inference.save(tmp_path / "encoder", encoder, corpus.preprocessor)
    model = str(tmp_path / "encoder")
    Embed(model, Input(tmp_path / "corpus", tmp_path / "a.parquet"))()
    Embed(model, Input(tmp_path / "rows.csv", tmp_path / "b.parquet", id="name"))()
    a, b = (pyarrow.parquet.read_table(tmp_path / f"{name}.parquet") for name in "ab")
    assert a.equals(b)


def test_a_corpus_of_other_scales_is_refused(places, table, tmp_path):
    table[["age", "city", "hours"]].iloc[:100].to_csv(tmp_path / "rows.csv", index=False)
    build_corpus([tmp_path / "rows.csv"], tmp_path / "corpus", CorpusConfig())
    with pytest.raises(DataError, match="scales other than the model's"):
        Embed(str(places / "encoder"), Input(tmp_path / "corpus", tmp_path / "a.parquet"))()


def test_rows_that_cannot_be_used_are_listed(table, tmp_path, capsys):
    features = table[["age", "city", "hours"]].copy()
    TJEPATransformer(**TINY, missing="drop").fit(features).save_pretrained(tmp_path / "encoder")
    features.loc[[3, 5], "age"] = np.nan
    features.to_csv(tmp_path / "rows.csv", index=False)
    out = tmp_path / "out.parquet"
    Embed(str(tmp_path / "encoder"), Input(tmp_path / "rows.csv", out))()
    listed = pd.read_csv(tmp_path / "out.parquet.skipped.csv")
    assert listed["line"].tolist() == [5, 7]
    assert pyarrow.parquet.read_metadata(out).num_rows == ROWS - 2
    assert "2 rows left out" in capsys.readouterr().out


def test_missing_numbers_stop_with_the_column(places, table, tmp_path):
    table.assign(age=np.nan).to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(DataError, match="'age'"):
        Embed(str(places / "encoder"), Input(tmp_path / "rows.csv", tmp_path / "out.parquet"))()
    assert not (tmp_path / "out.parquet").exists()
    assert not (tmp_path / "out.parquet.partial").exists()


def test_a_column_that_is_not_there_is_named(places, table, tmp_path):
    table.drop(columns="city").to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(DataError, match="no column is called 'city'"):
        Embed(str(places / "encoder"), Input(tmp_path / "rows.csv", tmp_path / "out.parquet"))()


def test_a_result_is_not_overwritten_unasked(places, tmp_path):
    io = Input(places / "table.csv", tmp_path / "out.parquet")
    io.out.write_text("mine")
    with pytest.raises(RunError, match="already exists"):
        Embed(str(places / "encoder"), io)()
    assert io.out.read_text() == "mine"
    Embed(str(places / "encoder"), replace(io, overwrite=True))()
    assert pyarrow.parquet.read_metadata(io.out).num_rows == ROWS


@pytest.mark.parametrize(
    ("verb", "name", "views"),
    [(Embed, "a.csv", 0), (Embed, "a.npy", 2), (Predict, "a.npy", None)],
)
def test_what_a_format_cannot_hold_is_refused_at_once(verb, name, views, tmp_path):
    more = {} if views is None else {"views": views}
    with pytest.raises(ConfigError, match="allowed"):
        verb("model", Input(tmp_path / "t.csv", tmp_path / name), **more)


def test_another_format_is_refused(places, tmp_path):
    with pytest.raises(RunError, match=r"allowed: \.parquet, \.csv, \.npy"):
        Embed(str(places / "encoder"), Input(places / "table.csv", tmp_path / "a.txt"))()


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_predictions_are_what_the_classifier_says(places, table, tmp_path, monkeypatch, name):
    monkeypatch.setattr(stream, "_CHUNK", 100)
    Predict(str(places / "classifier"), Input(places / "table.csv", tmp_path / name, id="name"))()
    if name.endswith("csv"):
        found = pd.read_csv(tmp_path / name)
    else:
        found = pd.read_parquet(tmp_path / name)
    assert list(found.columns) == ["id", "quality", "prediction", "p_no", "p_yes"]
    model = TJEPAClassifier.from_pretrained(places / "classifier")
    features = table[["age", "city", "hours"]]
    assert found["id"].tolist() == table["name"].tolist()
    assert found["prediction"].tolist() == model.predict(features).tolist()
    np.testing.assert_allclose(
        found[["p_no", "p_yes"]], model.predict_proba(features), rtol=1e-5, atol=1e-9
    )


def test_predictions_are_what_the_regressor_says(places, table, tmp_path):
    out = tmp_path / "out.parquet"
    Predict(str(places / "regressor"), Input(places / "table.parquet", out))()
    model = TJEPARegressor.from_pretrained(places / "regressor")
    found = pd.read_parquet(out)["prediction"]
    np.testing.assert_allclose(found, model.predict(table[["age", "city"]]))


def test_an_encoder_alone_predicts_nothing(places, tmp_path):
    io = Input(places / "table.csv", tmp_path / "out.csv")
    with pytest.raises(DataError, match="jepa tabular finetune"):
        Predict(str(places / "encoder"), io)()


@pytest.mark.parametrize(
    ("label", "parameters"),
    [
        ("rich", {"epochs": 2}),
        ("rich", {"head": "mlp", "freeze": True, "twin": False}),
        ("hours", {"freeze": True}),
    ],
)
def test_finetune_leaves_a_model_a_table_and_a_report(
    label, parameters, places, table, tmp_path, capsys
):
    if label == "hours":
        encoder = tmp_path / "two columns"
        TJEPATransformer(**TINY).fit(table[["age", "city"]]).save_pretrained(encoder)
    else:
        encoder = places / "encoder"
    labelled = table.copy()
    labelled[label] = labelled[label].astype(object)
    labelled.loc[:9, label] = None
    labelled.to_csv(tmp_path / "labelled.csv", index=False)
    run = tmp_path / "run"
    Finetune(str(encoder), tmp_path / "labelled.csv", label, run, **parameters)()
    assert "10 rows without a label are left out" in capsys.readouterr().out
    assert (run / "report.html").exists()
    kind = "r2" if label == "hours" else "accuracy"
    result = read_json(run / "results" / f"finetune-{label}-{kind}.json")
    names = [row[0] for row in result["rows"]]
    assert names[0] == "pre-trained"
    assert ("untrained twin" in names) == parameters.get("twin", True)
    assert "on test rows" in result["notes"][0]
    Predict(str(run), Input(places / "table.csv", tmp_path / "predicted.csv"))()
    assert len(pd.read_csv(tmp_path / "predicted.csv")) == ROWS


def test_finetune_tests_on_the_rows_that_pretraining_set_aside(places, table, tmp_path):
    model = load(places / "encoder")
    rows = {"table": ROWS, "test": 0, "test_share": 0.5, "seed": 3, "transductive": False}
    inference.save(tmp_path / "encoder", model.encoder, model.preprocessor, {"rows": rows})
    verb = Finetune(str(tmp_path / "encoder"), places / "table.csv", "rich", tmp_path / "run")
    frame = table[["age", "city", "hours"]].iloc[20:]
    found = verb._test_rows(load(tmp_path / "encoder"), frame)
    np.testing.assert_array_equal(found, rows_set_aside(ROWS, 0.5, 3)[20:])


def test_networks_need_a_frozen_encoder(tmp_path):
    with pytest.raises(ConfigError, match="--freeze"):
        Finetune("encoder", tmp_path / "t.csv", "y", tmp_path / "run", head="mlp")


def official_checkpoint(golden, path: Path) -> Path:
    parts = {"context_encoder": "ctx0/", "target_encoder": "tgt0/", "predictor": "pred0/"}
    state = {
        part: {
            name.removeprefix(prefix): torch.from_numpy(golden[name])
            for name in golden.files
            if name.startswith(prefix)
        }
        for part, prefix in parts.items()
    }
    torch.save({"epoch": 1, **state}, path)
    return path


def test_an_official_checkpoint_becomes_an_encoder(data, tmp_path):
    golden = np.load(data("tabular") / "golden_tjepa_num.npz")
    file = official_checkpoint(golden, tmp_path / "epoch_1.pth")
    # Rows of zeros and ones make the official scaling of the golden rows the identity.
    x = golden["x"]
    whole = np.concatenate((x, np.zeros_like(x[:1]), np.ones_like(x[:1])))
    np.savez(tmp_path / "table.npz", X=whole)
    verb = Import(file, tmp_path / "table.npz", tmp_path / "encoder", heads=2, predictor_heads=2)
    verb()
    model = load(tmp_path / "encoder", device="cpu")
    frame = pd.DataFrame(whole, columns=model.preprocessor.names_)
    np.testing.assert_allclose(
        model(frame)[: len(x)], golden["tgt_full_repr"], atol=1e-5, rtol=1e-4
    )
    with pytest.raises(RunError, match="already exists"):
        verb()
    before = (tmp_path / "encoder" / "model.safetensors").read_bytes()
    replace(verb, overwrite=True)()
    assert (tmp_path / "encoder" / "model.safetensors").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["encoder", "epoch_1.pth", "table.npz"]


def test_an_import_overwrites_nothing_but_an_encoder(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "precious.jpg").touch()
    verb = Import(tmp_path / "a.pth", tmp_path / "b.csv", tmp_path / "photos", overwrite=True)
    # Said before anything is read: neither file is there.
    with pytest.raises(RunError, match="photos: is no folder of an encoder"):
        verb()
    assert os.listdir(tmp_path / "photos") == ["precious.jpg"]


def test_a_checkpoint_of_another_table_is_refused(data, tmp_path):
    golden = np.load(data("tabular") / "golden_tjepa_num.npz")
    file = official_checkpoint(golden, tmp_path / "epoch_1.pth")
    np.savez(tmp_path / "table.npz", X=np.random.default_rng(0).random((9, 5)))
    with pytest.raises(DataError, match="tokenizer"):
        Import(file, tmp_path / "table.npz", tmp_path / "out", heads=2, predictor_heads=2)()
    assert not (tmp_path / "out").exists()


def test_a_known_table_needs_no_label(tmp_path):
    with pytest.raises(ConfigError, match="--label"):
        Import(
            tmp_path / "a.pth", tmp_path / "b.csv", tmp_path / "c", table="adult", label="income"
        )


def test_columns_of_a_known_table_are_coded_as_officially(data, tmp_path):
    file = data("tabular") / "adult.csv.gz"
    golden = np.load(data("tabular") / "golden_preprocessing.npz")
    verb = Import(tmp_path / "epoch_1.pth", file, tmp_path / "out", table="adult")
    columns = verb._preprocessor()
    sizes = [(1, 9), (3, 16), (5, 7), (6, 15), (7, 6), (8, 5), (9, 2), (13, 42)]
    shape = columns.shape_
    assert list(zip(shape.categorical, shape.cardinalities, strict=True)) == sizes
    first = columns.transform(read("adult", file).frame.iloc[:8])
    np.testing.assert_allclose(first, golden["adult/first8"], atol=1e-6)
