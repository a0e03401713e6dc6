"""`jepa vision embed|predict|import|export` as a user runs them."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from jepa_core import cli
from jepa_core.run import Run
from jepa_vision.checkpoints import load_official, save_official, save_transformers
from jepa_vision.classifier import ImageClassifier, TrainedClassifier, save_classifier
from jepa_vision.inference import PretrainedImage, load, save
from jepa_vision.presets import NANO, ModelConfig
from jepa_vision.pretrain import untrained

RECIPE = replace(
    NANO,
    model=ModelConfig(
        image=(32, 32), patch=8, dim=16, depth=2, heads=2, predictor_dim=8, predictor_depth=1
    ),
    masks=replace(NANO.masks, min_keep=0),
)


@pytest.fixture
def jepa(jepa):
    """`jepa("embed", x)` runs `jepa vision embed x --device cpu`."""

    def run(*words):
        device = ["--device", "cpu"] if words[0] in ("embed", "predict") else []
        return jepa(*words, *device)

    return run


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    jepa = untrained(RECIPE, 0)
    return save(tmp_path_factory.mktemp("encoder") / "e", jepa.encoder, RECIPE, jepa.head)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Nine good images of two classes in several sizes and formats, and two bad files."""
    root = tmp_path_factory.mktemp("images") / "set"
    g = np.random.default_rng(0)
    for i in range(9):
        place = root / ("a b" if i % 2 else "ü")
        place.mkdir(parents=True, exist_ok=True)
        pixels = g.integers(0, 256, (20 + 7 * i, 60 - 4 * i, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{i}.{'JPG' if i % 3 == 0 else 'png'}")
    (root / "ü" / "0bad.png").write_bytes(b"no image")
    (root / "a b" / "empty.jpg").write_bytes(b"")
    return root


def table(path: Path, column: str = "embedding") -> tuple[list[str], np.ndarray]:
    """Ids and one column of vectors."""
    read = pq.read_table(path)
    return read["id"].to_pylist(), np.array(read[column].to_pylist(), np.float32)


def test_embed_gives_what_the_library_gives_and_lists_what_it_left_out(
    jepa, encoder, folder, tmp_path
):
    out = tmp_path / "new" / "e.parquet"
    said = jepa("embed", encoder, "--input", folder, "--out", out)
    assert said.code == 0, said.err
    listing = f"{out}.skipped.csv"
    assert said.out == f"2 of 11 images left out, see {listing}\n{out}: 9 images\n"
    ids, rows = table(out)
    assert ids == sorted(ids)
    assert "ü/0.JPG" in ids
    model = load(encoder, device="cpu")
    np.testing.assert_array_equal(rows, model([folder / name for name in ids], pool=True))
    lines = Path(listing).read_text(encoding="utf-8").splitlines()
    assert lines == [
        "id,reason",
        "a b/empty.jpg,the file is empty",
        "ü/0bad.png,no image of a known format",
    ]
    quality = pq.read_table(out)["quality"].to_pylist()
    short = [min(Image.open(folder / name).size) for name in ids]
    assert quality == pytest.approx([min(1, side / 32) for side in short])


def test_a_second_time_nothing_old_stays(jepa, encoder, folder, tmp_path):
    out = tmp_path / "e.parquet"
    assert jepa("embed", encoder, "--input", folder, "--out", out).code == 0
    said = jepa("embed", encoder, "--input", folder / "ü" / "0.JPG", "--out", out)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "already exists; give --overwrite" in said.err
    said = jepa("embed", encoder, "--input", folder / "ü" / "0.JPG", "--out", out, "--overwrite")
    assert said.code == 0
    assert table(out)[0] == ["0.JPG"]
    assert [path.name for path in tmp_path.iterdir()] == ["e.parquet"]


def test_the_first_bad_image_ends_a_strict_run_and_leaves_nothing(jepa, encoder, folder, tmp_path):
    words = ["--input", folder, "--out", tmp_path / "e.parquet", "--on-error", "raise"]
    said = jepa("embed", encoder, *words, "--patch-tokens", tmp_path / "t.npy")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "empty.jpg: the file is empty" in said.err
    assert not list(tmp_path.iterdir())


def test_an_image_has_the_same_row_in_any_company(jepa, encoder, folder, tmp_path):
    whole, single = tmp_path / "whole.parquet", tmp_path / "single.parquet"
    jepa("embed", encoder, "--input", folder, "--out", whole, "--views", 2, "--jobs", 3)
    (folder / "some.txt").write_text("ü/4.png\na b/1.png\n", encoding="utf-8")
    words = ["--input", folder / "some.txt", "--out", single, "--views", 3]
    said = jepa("embed", encoder, *words)
    (folder / "some.txt").unlink()
    assert said.code == 0, said.err
    ids, _ = table(whole)
    rows = [ids.index("ü/4.png"), ids.index("a b/1.png")]
    for column in ("embedding", "view_0", "view_1"):
        np.testing.assert_array_equal(table(single, column)[1], table(whole, column)[1][rows])
    views = [table(single, f"view_{view}")[1] for view in range(3)]
    assert np.abs(views[0] - views[1]).max() > 1e-4


def test_views_depend_on_the_seed(jepa, encoder, folder, tmp_path):
    found = []
    for seed in (0, 1):
        out = tmp_path / f"{seed}.parquet"
        words = ["--input", folder, "--out", out, "--views", 1, "--seed", seed]
        assert jepa("embed", encoder, *words).code == 0
        found.append(out)
    assert np.abs(table(found[0], "view_0")[1] - table(found[1], "view_0")[1]).max() > 1e-4
    np.testing.assert_array_equal(table(found[0])[1], table(found[1])[1])


def test_tokens_go_into_an_array_row_for_row(jepa, encoder, folder, tmp_path):
    out, tokens = tmp_path / "e.parquet", tmp_path / "deep" / "t.npy"
    words = ["--input", folder, "--out", out, "--patch-tokens", tokens, "--size", 48, 32]
    said = jepa("embed", encoder, *words)
    assert said.code == 0, said.err
    assert said.out.endswith(f"{tokens}: 9 x 24 tokens\n")
    ids, rows = table(out)
    found = np.load(tokens, mmap_mode="r")
    assert (found.shape, found.dtype) == ((9, 24, 16), np.float32)
    model = load(encoder, device="cpu")
    np.testing.assert_array_equal(found, model([folder / name for name in ids], size=(48, 32)))
    np.testing.assert_allclose(rows, found.mean(1), atol=1e-6)


def test_layers_and_head_are_those_of_the_library(jepa, encoder, folder, tmp_path):
    model = load(encoder, device="cpu")
    for words, told in (
        (["--layers", 1, 2], {"layers": (1, 2)}),
        (["--with-head"], {"with_head": True}),
    ):
        out = tmp_path / f"{words[0]}.parquet"
        assert jepa("embed", encoder, "--input", folder, "--out", out, *words).code == 0
        ids, rows = table(out)
        expected = model([folder / name for name in ids], pool=True, **told)
        np.testing.assert_array_equal(rows, expected)


def test_archives_arrays_and_corpora_are_inputs_too(jepa, encoder, folder, tmp_path):
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in folder.rglob("*.png"):
            packed.write(path, path.relative_to(folder).as_posix())
    pixels = np.random.default_rng(1).integers(0, 256, (5, 40, 40, 3), np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    words = ["data", "build", folder, "--out", tmp_path / "corpus", "--short-side", 40]
    assert jepa(*words, "--on-error", "skip").code == 0
    counts = {}
    for source in (archive, tmp_path / "x.npy", tmp_path / "corpus"):
        out = tmp_path / f"{source.name}.parquet"
        said = jepa("embed", encoder, "--input", source, "--out", out)
        assert said.code == 0, said.err
        counts[source.name] = len(table(out)[0])
    assert counts == {"set.zip": 6, "x.npy": 5, "corpus": 9}
    model = load(encoder, device="cpu")
    np.testing.assert_array_equal(table(tmp_path / "x.npy.parquet")[1], model(pixels, pool=True))


def test_what_the_reader_changes_is_said(jepa, encoder, tmp_path):
    values = np.linspace(0, 65535, 40 * 40).reshape(40, 40).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    out = tmp_path / "e.parquet"
    assert jepa("embed", encoder, "--input", tmp_path / "deep.png", "--out", out).code == 0
    assert pq.read_table(out)["warnings"].to_pylist() == ["have 16 bits, scaled by 1/257"]
    plain = table(out)[1]
    words = ["--input", tmp_path / "deep.png", "--out", out, "--overwrite"]
    assert jepa("embed", encoder, *words, "--value-range", 0, 1000).code == 0
    assert "mapped from 0..1000" in pq.read_table(out)["warnings"].to_pylist()[0]
    assert np.abs(table(out)[1] - plain).max() > 1e-3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--input", "gone", "--out", "x.parquet"], "gone: no such file or folder"),
        (["--input", "x.npy", "--out", "there/x"], "cannot be written: "),
        (["--input", "x.npy", "--out", "y", "--size", "30", "32"], "size is 30 x 32; allowed: mul"),
        (["--input", "x.npy", "--out", "y", "--layers", "3"], "there is no layer 3; allowed: 1 to"),
        (["--input", "x.npy", "--out", "y", "--patch-tokens", "t.bin"], "allowed: a .npy file"),
        (["--input", "x.npy", "--out", "y", "--patch-tokens", "there"], "allowed: a .npy file"),
        (["--input", "grey.npy", "--out", "y"], "none of 2 images could be used"),
        (["--input", "bad.npy", "--out", "y"], "bad.npy: cannot be read"),
        (["--input", "text.npy", "--out", "y"], "text.npy: an array of int64"),
        (
            ["--input", "x.npy", "--out", "y", "--split", "train"],
            "an array has no splits; drop --split",
        ),
        (["--input", "x.npy", "--out", "y", "--views", "-1"], "views is -1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_images_that_cannot_be_embedded_are_one_line(
    jepa, encoder, tmp_path, monkeypatch, words, says
):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros((2, 32, 32, 3), np.uint8))
    np.save("grey.npy", np.zeros((2, 32, 32, 1), np.uint8))
    np.save("text.npy", np.zeros((2, 32, 32, 3), np.int64))
    Path("bad.npy").write_bytes(b"nothing")
    Path("there").touch()
    said = jepa("embed", encoder, *words)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert says in said.err
    assert not list(tmp_path.rglob("*.partial"))


# ---- predict


def test_predict_gives_classes_and_probabilities(jepa, encoder, folder, tmp_path):
    model = load(encoder, device="cpu")
    classifier = ImageClassifier(model.encoder, 3, seed=1)
    classifier.fc.bias.data = torch.tensor([0.0, 1.0, 0.5])
    trained = TrainedClassifier(classifier, RECIPE, ("x", "y z", "w"), "cpu")
    save_classifier(tmp_path / "run" / "classifier", trained)
    out = tmp_path / "p.parquet"
    said = jepa("predict", tmp_path / "run", "--input", folder, "--out", out)
    assert said.code == 0, said.err
    read = pq.read_table(out)
    names = ["id", "quality", "warnings", "prediction", "p_x", "p_y z", "p_w"]
    assert read.column_names == names
    shares = np.stack([read[f"p_{name}"].to_numpy() for name in trained.classes], 1)
    pooled = model([folder / name for name in read["id"].to_pylist()], pool=True)
    expected = torch.from_numpy(trained.logits(pooled)).softmax(1).numpy()
    np.testing.assert_allclose(shares, expected, atol=1e-6)
    called = [trained.classes[i] for i in shares.argmax(1)]
    assert read["prediction"].to_pylist() == called
    said = jepa("predict", encoder, "--input", folder, "--out", tmp_path / "q.parquet")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "an encoder without a classifier; train one with jepa vision finetune" in said.err


# ---- import and export


def test_an_official_checkpoint_becomes_an_encoder_folder(jepa, tmp_path, folder):
    module = untrained(RECIPE, 5)
    save_official(tmp_path / "x.pth.tar", module)
    out = tmp_path / "e"
    said = jepa("import", tmp_path / "x.pth.tar", "--heads", 2, "--out", out)
    assert said.code == 0, said.err
    assert said.out == f"{out}: 2 blocks of width 16, patches of 8, with a head\n"
    images = sorted(folder.rglob("*.png"))[1:3]
    trained = PretrainedImage(module.target_encoder, RECIPE, head=module.target_head, device="cpu")
    found = load(out, device="cpu")
    np.testing.assert_array_equal(found(images), trained(images))
    np.testing.assert_array_equal(found(images, with_head=True), trained(images, with_head=True))


def test_an_encoder_goes_to_transformers_and_comes_back(jepa, encoder, tmp_path):
    there, back = tmp_path / "hf", tmp_path / "back"
    assert jepa("export", encoder, "--out", there).code == 0
    said = jepa("import", there, "--out", back, "--mean", *[0.5] * 3, "--std", *[0.25] * 3)
    assert said.code == 0, said.err
    one, two = load(encoder, device="cpu"), load(back, device="cpu")
    for name, value in one.encoder.state_dict().items():
        assert torch.equal(value, two.encoder.state_dict()[name])
    assert two.config.augment.mean == (0.5, 0.5, 0.5)
    assert two.head is None


def test_a_hub_id_is_downloaded(jepa, tmp_path, monkeypatch):
    import huggingface_hub

    there = save_transformers(tmp_path / "hf", untrained(RECIPE, 0).encoder, (0.5,), (0.5,))
    asked = []

    def download(name, **settings):
        asked.append((name, settings["revision"]))
        return str(there)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert jepa("import", "somebody/ijepa@main", "--out", tmp_path / "e").code == 0
    assert asked == [("somebody/ijepa", "main")]


def test_a_run_goes_out_whole(jepa, tmp_path):
    run, _ = trained_run(tmp_path)
    out = tmp_path / "deep" / "x.pth.tar"
    said = jepa("export", run, "--format", "official", "--out", out)
    assert said.code == 0, said.err
    found = load_official(out, heads=2)
    assert found.epoch == 2  # 8 steps of 8 in 24 images: 3 steps an epoch
    one = load(run, device="cpu")
    for name, value in one.encoder.state_dict().items():
        assert torch.equal(value, found.target_encoder.state_dict()[name])
    assert found.predictor is not None
    assert found.head is not None


def trained_run(tmp_path: Path) -> tuple[Path, Path]:
    """A run of eight steps on 24 images, and its images."""
    images = tmp_path / "x.npy"
    np.save(images, np.random.default_rng(0).integers(0, 256, (24, 40, 40, 3), np.uint8))
    words = ["vision", "pretrain", "--data", images, "--out", tmp_path / "run", "--device", "cpu"]
    words += ["--image", 32, 32, "--dim", 16, "--depth", 1, "--heads", 2, "--predictor-dim", 8]
    words += ["--predictor-depth", 1, "--min-keep", 0, "--batch-size", 8, "--steps", 8]
    words += ["--checkpoint-every", 4]
    assert cli.main(list(map(str, words))) == 0
    return tmp_path / "run", images


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["import", "gone.pth.tar", "--out", "o"], "gone.pth.tar: no such file"),
        (["import", "gone", "--out", "o"], "gone: there is no such file or folder"),
        (["import", "folder", "--out", "o"], "folder: holds no .safetensors file"),
        (["import", "x.pth.tar", "--out", "o"], "weights do not show heads; give the number of"),
        (["import", "five.pth.tar", "--heads", "2", "--out", "o"], "give --mean and --std"),
        (["import", "x.pth.tar", "--heads", "2", "--out", "e"], "e: already exists"),
        (
            ["import", "x.pth.tar", "--heads", "2", "--out", "folder", "--overwrite"],
            "folder: is no folder of an encoder; give another place",
        ),
        (["export", "e", "--format", "official", "--out", "o"], "an encoder alone has no predict"),
        (["export", "e", "--out", "folder", "--overwrite"], "folder: is no folder of an encoder"),
        (["export", "e", "--out", "e"], "e: already exists"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_go_in_or_out_is_one_line(jepa, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("folder/precious.txt").touch()
    module = untrained(RECIPE, 0)
    save_official("x.pth.tar", module)
    five = replace(
        RECIPE,
        model=replace(RECIPE.model, channels=5),
        augment=replace(RECIPE.augment, mean=(0.5,) * 5, std=(0.5,) * 5),
    )
    save_official("five.pth.tar", untrained(five, 0))
    save(Path("e"), module.encoder, RECIPE)
    said = jepa(*words)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert says in said.err
    assert os.listdir("folder") == ["precious.txt"]
    assert not Path("o").exists()


def test_weights_may_be_replaced_where_they_are(jepa, encoder, tmp_path):
    out = tmp_path / "hf"
    assert jepa("export", encoder, "--out", out).code == 0
    before = json.loads((out / "config.json").read_text())
    assert jepa("export", encoder, "--out", out, "--overwrite").code == 0
    assert json.loads((out / "config.json").read_text()) == before
    assert before["model_type"] == "ijepa"


def test_only_a_run_of_pretraining_has_a_predictor(jepa, encoder, tmp_path):
    record = {"domain": "vision", "verb": "finetune", "version": "0", "command": "", "config": {}}
    Run.create(tmp_path / "run", record)
    (tmp_path / "run" / "encoder").mkdir()
    out = tmp_path / "x.pth.tar"
    said = jepa("export", tmp_path / "run", "--format", "official", "--out", out)
    assert said.code == 2
    assert "is a run of vision finetune; give a run of jepa vision pretrain" in said.err
