"""Pre-trained encoders on new rows: every row by itself, in bounded memory, saved and loaded."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepa_core import hub
from jepa_core.errors import ConfigError, DataError
from jepa_tabular import inference
from jepa_tabular.inference import PretrainedTable, encode, load, save
from jepa_tabular.model import TabularEncoder
from jepa_tabular.preprocess import TablePreprocessor
from jepa_tabular.presets import ColumnsConfig, ModelConfig, TableShape

SHAPE = TableShape(columns=5, categorical=(1, 4), cardinalities=(4, 3), missing=True)
ROWS = 300


def made(**parameters) -> TabularEncoder:
    torch.manual_seed(0)
    return TabularEncoder(ModelConfig(**{"dim": 16, **parameters}), SHAPE).eval()


def rows_of(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 5)).astype(np.float32)
    x[:, 1], x[:, 4] = rng.integers(0, 4, count), rng.integers(0, 3, count)
    x[rng.random(count) < 0.2, 2] = np.nan
    return x


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "a": rng.normal(size=ROWS),
            "b": rng.choice(["x", "y"], ROWS),
            "c": np.where(rng.random(ROWS) < 0.2, np.nan, rng.normal(size=ROWS)),
        }
    )


@pytest.fixture(scope="module")
def model(table) -> PretrainedTable:
    columns = TablePreprocessor(ColumnsConfig(missing="indicator")).fit(table)
    torch.manual_seed(0)
    encoder = TabularEncoder(ModelConfig(dim=16), columns.shape_)
    return PretrainedTable(encoder, columns, device="cpu")


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_row_has_the_same_bits_in_every_company(activation):
    encoder, x = made(activation=activation), rows_of(600)
    whole = encode(encoder, x, device="cpu")

    @given(st.lists(st.integers(0, len(x) - 1), min_size=1, max_size=300))
    def check(chosen):
        np.testing.assert_array_equal(encode(encoder, x[chosen], device="cpu"), whole[chosen])

    check()


@pytest.mark.parametrize("layer", ["block", "head"])
def test_blocks_say_what_one_pass_in_double_precision_says(layer):
    encoder, x = made(), rows_of(700)
    found = encode(encoder, x, batch=64, device="cpu", layer=layer)
    with torch.no_grad():
        expected = encoder.double()(torch.from_numpy(x).double(), layer=layer).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_features_are_taken_before_the_head_and_officially_after_it():
    x = rows_of(10)
    for official, layer in ((False, "block"), (True, "head")):
        encoder = made(official=official)
        np.testing.assert_array_equal(
            encode(encoder, x, device="cpu"), encode(encoder, x, device="cpu", layer=layer)
        )


def test_other_outputs_are_made_of_tokens():
    encoder, x = made(registers=2), rows_of(40)
    tokens = encode(encoder, x, device="cpu")
    assert tokens.shape == (40, 7, 16)
    for output, expected in (
        ("flatten", tokens.reshape(40, -1)),
        ("reg", tokens[:, :2].reshape(40, -1)),
        ("mean", tokens.mean(1)),
    ):
        np.testing.assert_array_equal(encode(encoder, x, output=output, device="cpu"), expected)


def test_without_reg_tokens_there_is_no_reg_output():
    with pytest.raises(ConfigError, match=r"no \[REG\] token"):
        encode(made(registers=0), rows_of(3), output="reg", device="cpu")


def test_features_can_be_written_into_a_file(tmp_path):
    encoder, x = made(), rows_of(500)
    np.save(tmp_path / "x.npy", x)
    out = np.lib.format.open_memmap(
        tmp_path / "z.npy", mode="w+", dtype=np.float32, shape=(500, 6 * 16)
    )
    encode(encoder, np.load(tmp_path / "x.npy", mmap_mode="r"), output="flatten", out=out)
    out.flush()
    np.testing.assert_array_equal(np.load(tmp_path / "z.npy"), encode(encoder, x, output="flatten"))


def test_no_rows_have_no_features():
    assert encode(made(), rows_of(0), device="cpu").shape == (0, 6, 16)


def test_a_long_table_is_taken_in_parts(model, table, monkeypatch):
    whole = model(table)
    monkeypatch.setattr(inference, "_PART", 256)
    seen = []
    monkeypatch.setattr(
        model.preprocessor,
        "transform",
        lambda part: (
            seen.append(len(part)) or TablePreprocessor.transform(model.preprocessor, part)
        ),
    )
    np.testing.assert_array_equal(model(table), whole)
    assert seen == [256, ROWS - 256]


def test_a_warning_is_given_once_and_not_for_every_part(model, table, monkeypatch):
    monkeypatch.setattr(inference, "_PART", 64)
    nameless = table.set_axis(range(3), axis=1)
    with pytest.warns(UserWarning, match="valid feature names") as heard:
        model(nameless)
    assert len(heard) == 1


def test_memory_holds_the_result_and_little_else(model, table):
    many = pd.concat([table] * 400, ignore_index=True)
    model(table)
    tracemalloc.start()
    found = model(many, output="mean")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    tokens = found.nbytes * model.encoder.tokens
    assert found.shape == (120_000, 16)
    assert peak < 0.6 * tokens


def test_progress_is_shown_where_it_is_asked_for(model, table, capfd, monkeypatch):
    ticks = iter(range(0, 10**6, 10))
    monkeypatch.setattr(inference, "_PART", 64)
    monkeypatch.setattr(
        inference, "Progress", lambda *a, **k: _Progress(*a, **k, clock=lambda: next(ticks))
    )
    model(table)
    assert capfd.readouterr().err == ""
    model(table, progress="rows")
    assert f"rows {ROWS}/{ROWS}" in capfd.readouterr().err


_Progress = inference.Progress


def test_rows_with_missing_numbers_are_never_left_out_silently(table):
    columns = TablePreprocessor(ColumnsConfig(missing="drop")).fit(table)
    model = PretrainedTable(TabularEncoder(ModelConfig(), columns.shape_), columns, device="cpu")
    missing = int(table["c"].isna().sum())
    with pytest.raises(DataError, match=f"{missing} of {ROWS} rows hold missing numbers"):
        model(table)


def test_what_is_saved_says_the_same(model, table, tmp_path):
    folder = save(tmp_path / "encoder", model.encoder, model.preprocessor, {"step": 7})
    again = load(folder, device="cpu")
    np.testing.assert_array_equal(again(table), model(table))
    assert again.names == model.names == ("[REG]0", "a", "c", "b")
    assert again.config["step"] == 7
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_an_encoder_is_found_in_its_run(model, table, tmp_path):
    save(tmp_path / "run" / "encoder", model.encoder, model.preprocessor)
    np.testing.assert_array_equal(load(tmp_path / "run", device="cpu")(table), model(table))


def test_arrays_of_a_head_come_along(model, tmp_path):
    head = {"weight": np.arange(6.0).reshape(2, 3), "count": np.array(3)}
    again = load(save(tmp_path / "m", model.encoder, model.preprocessor, head=head), device="cpu")
    assert set(again.head) == {"weight", "count"}
    np.testing.assert_array_equal(again.head["weight"], head["weight"])
    assert again.head["weight"].dtype == np.float64


def _changed(folder: Path, **changes) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"package": "jepa-ecg"}, "belongs to jepa-ecg"),
        ({"format": 99}, "has format 99"),
        ({"model": {"dim": 8}}, "of another shape"),
        ({"shape": {"columns": 4}}, "do not fit"),
        ({"columns": {}}, "absent"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(changes, message, model, tmp_path):
    folder = save(tmp_path / "encoder", model.encoder, model.preprocessor)
    with pytest.raises(DataError, match=message):
        load(_changed(folder, **changes))


def test_columns_of_another_table_are_refused(model, table, tmp_path):
    other = TablePreprocessor(ColumnsConfig(missing="indicator")).fit(table.assign(d=1.5 * table.a))
    folder = save(tmp_path / "encoder", model.encoder, other)
    with pytest.raises(DataError, match="of different tables"):
        load(folder)


def test_an_official_checkpoint_must_be_imported(tmp_path):
    with pytest.raises(DataError, match="jepa tabular import"):
        load(tmp_path / "epoch_1.pth")


def test_a_run_that_has_not_ended_says_so(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(DataError, match="no encoder yet"):
        load(tmp_path / "run")


def test_weights_that_are_not_there_are_named(model, tmp_path):
    folder = save(tmp_path / "encoder", model.encoder, model.preprocessor)
    config, state = hub.load_encoder(folder, inference.PACKAGE)
    del state["encoder.head.fc.weight"]
    hub.save_encoder(folder, state, config)
    with pytest.raises(DataError, match=r"missing: head\.fc\.weight"):
        load(folder)
