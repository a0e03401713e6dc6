"""`jepa vision pretrain|finetune` as a user runs them: what is written, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jepa_core import cli
from jepa_core.errors import ConfigError
from jepa_core.training import checkpoint
from jepa_vision.checkpoints import save_official
from jepa_vision.data.corpus import ImageCorpus
from jepa_vision.data.folders import ImageFolder
from jepa_vision.data.images import ArrayImages
from jepa_vision.data.transforms import measure_statistics
from jepa_vision.inference import load, save
from jepa_vision.presets import NANO, ModelConfig
from jepa_vision.pretrain import untrained
from jepa_vision.start import started
from jepa_vision.verbs.pretrain import open_images, splits_of

TINY = "--image 32 32 --patch 8 --dim 16 --depth 1 --heads 2 --predictor-dim 8".split()  # noqa: SIM905
TINY += "--predictor-depth 1 --min-keep 0 --batch-size 8 --device cpu".split()  # noqa: SIM905
STEPS = ["--steps", "6", "--checkpoint-every", "3"]
RECIPE = replace(
    NANO,
    model=ModelConfig(
        image=(32, 32), patch=8, dim=16, depth=1, heads=2, predictor_dim=8, predictor_depth=1
    ),
    masks=replace(NANO.masks, min_keep=0),
    batch_size=8,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """36 images of three classes, red, green and blue, in splits; and a broken one."""
    root = tmp_path_factory.mktemp("set") / "images"
    g = np.random.default_rng(0)
    for i in range(36):
        pixels = g.integers(0, 120, (40, 44, 3))
        pixels[..., i % 3] += 130
        place = root / ("test" if i >= 30 else "train") / ("red", "green", "blue")[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i:02}.png")
    (root / "train/red/broken.png").write_bytes((root / "train/red/00.png").read_bytes()[:900])
    return root


@pytest.fixture(scope="module")
def run(folder) -> Path:
    out = folder.parent / "run"
    words = ["vision", "pretrain", "--data", folder, "--split", "train", "--out", out]
    assert cli.main([*map(str, words), *TINY, *STEPS]) == 0
    return out


@pytest.mark.parametrize("verb", ["pretrain", "finetune", "embed", "predict", "import", "export"])
def test_flags_have_no_prefix_and_every_one_is_explained(jepa, verb):
    said = jepa(verb, "--help")
    assert said.code == 0
    assert re.findall(r"--[a-z-]+", said.out)
    assert not re.search(r"--[a-z-]+\.[a-z]", said.out)


def test_a_run_holds_its_encoder_its_record_and_a_report(run, folder):
    for name in ("config.json", "metrics.jsonl", "report.html", "figures/mask.png"):
        assert (run / name).stat().st_size > 0
    record = json.loads((run / "config.json").read_text())
    assert (record["domain"], record["verb"]) == ("vision", "pretrain")
    assert record["config"]["config"]["model"]["dim"] == 16
    assert record["config"]["images"] == 30
    model = load(run, device="cpu")
    assert model.details["step"] in (3, 6)
    assert model.config.model.image == (32, 32)
    state = checkpoint.read_weights(run / "checkpoints", model.details["step"])
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, state[f"target_encoder.{name}"])
    for name, value in model.head.state_dict().items():
        assert torch.equal(value, state[f"target_head.{name}"])


def test_a_broken_file_is_left_out_and_listed(run):
    table = json.loads((run / "results/left-out.json").read_text())
    assert table["rows"][0][0] == "train/red/broken.png"
    assert table["notes"][0].startswith("1 of 31 files could not be read")


def test_a_broken_file_is_an_error_where_that_is_asked_for(jepa, folder, tmp_path):
    words = ["--data", folder, "--split", "train", "--out", tmp_path / "run", *TINY, *STEPS]
    said = jepa("pretrain", *words, "--on-error", "raise")
    assert (said.code, said.err.strip().count("\n")) == (2, 0)
    assert "broken.png" in said.err


def test_the_end_says_where_the_encoder_is_and_how_long_data_kept_it(jepa, folder, tmp_path):
    words = ["--data", folder, "--split", "test", "--out", tmp_path / "run", *TINY]
    said = jepa("pretrain", *words, "--batch-size", 6, "--steps", 1)
    assert said.code == 0, said.err
    assert f"encoder: {tmp_path / 'run' / 'encoder'}, of step 1" in said.out
    assert re.search(r"waiting for data: \d+ % of the time", said.out)
    assert f"report: {tmp_path / 'run' / 'report.html'}" in said.out


def test_a_run_is_not_written_over(jepa, run, folder):
    words = ["--data", folder, "--split", "train", "--out", run, *TINY]
    said = jepa("pretrain", *words, *STEPS)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "already exists; give --resume or --overwrite" in said.err
    said = jepa("pretrain", *words, "--steps", 9, "--checkpoint-every", 3, "--resume")
    assert said.code == 2
    assert "config.steps was 6 and is now 9; resume with the settings" in said.err


def test_a_run_of_other_images_is_not_resumed(jepa, run, folder, tmp_path):
    more = folder / "train" / "red" / "more.png"
    more.write_bytes((folder / "train/red/00.png").read_bytes())
    words = ["--data", folder, "--split", "train", "--out", run, *TINY, *STEPS, "--resume"]
    said = jepa("pretrain", *words)
    more.unlink()
    assert said.code == 2
    assert "images was 30 and is now 31" in said.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--data", "gone"], "gone: no such file or folder"),
        (["--patch", "7"], "image is [32, 32]; allowed: multiples of patch (7)"),
        (["--dim", "18"], "dim is 18; allowed: a multiple of 4"),
        (["--heads", "3"], "allowed: a multiple of heads (3)"),
        (["--neighbours", "9"], "neighbours is 9; allowed: up to 8"),
        (["--window", "4"], "window is 4; allowed: an odd number"),
        (["--patch", "16"], "masks.min_keep is 0, and a"),
        (["--min-keep", "9"], "set masks.min_keep to"),
        (["--warmup-epochs", "99"], "warmup_epochs is 99; allowed: up to epochs"),
        (["--batch-size", "64"], "batch_size is 64, and there are 30 images"),
        (["--batch-size", "8", "--accumulation", "3"], "allowed: a divisor of batch_size (8)"),
        (["--split", "val"], "there is no split 'val'"),
        (["--seed", "-1"], "seed is -1"),
        (["--resume", "--overwrite"], "choose one"),
        (["--start", "gone"], "gone: is no folder"),
        (["--value-range", "9", "1"], "value_range is [9.0, 1.0]; allowed: the smaller value"),
        (["--preset", "nan"], "no preset called nan; did you mean nano?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_recipe_that_cannot_run_is_one_line_and_leaves_no_folder(
    jepa, folder, tmp_path, words, says
):
    out = tmp_path / "run"
    given = ["--data", folder, "--split", "train", "--out", out, *TINY, *STEPS, *words]
    said = jepa("pretrain", *given)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert says in said.err
    assert not out.exists()


def test_a_batch_that_processes_cannot_share_is_refused_before_the_work(
    jepa, folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("WORLD_SIZE", "3")
    words = ["--data", folder, "--split", "train", "--out", tmp_path / "run", *TINY, *STEPS]
    said = jepa("pretrain", *words)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "a multiple of 3 processes" in said.err
    assert not (tmp_path / "run").exists()


def test_what_there_is_to_know_of_the_files_is_said(jepa, tmp_path):
    frames = [Image.new("L", (12, 12), value) for value in (0, 255)]
    for i in range(8):
        frames[0].save(tmp_path / f"{i}.gif", save_all=True, append_images=frames[1:])
    words = ["--data", tmp_path, "--out", tmp_path / "run", *TINY, "--image", 64, 64, "--steps", 1]
    said = jepa("pretrain", *words)
    assert said.code == 0, said.err
    assert "note: 8 of 8 files have several frames, of which the first is taken" in said.out
    assert "note: 8 of 8 images have a short side of less than a quarter of the crop" in said.out


# ---- channels


def test_channels_and_their_statistics_are_measured(jepa, tmp_path):
    bands = np.random.default_rng(0).random((16, 40, 40, 5), np.float32) * np.arange(1, 6)
    np.save(tmp_path / "x.npy", bands.astype(np.float32))
    words = ["--data", tmp_path / "x.npy", "--out", tmp_path / "run", *TINY, "--steps", 2]
    said = jepa("pretrain", *words)
    assert said.code == 0, said.err
    assert "5 channels, measured: mean 0.4998" in said.out
    config = load(tmp_path / "run", device="cpu").config
    mean, std = measure_statistics(ArrayImages(bands.astype(np.float32)))
    assert config.model.channels == 5
    assert config.augment.mean == tuple(mean.tolist())
    assert config.augment.std == tuple(std.tolist())
    assert load(tmp_path / "run", device="cpu")(bands[:2].astype(np.float32)).shape == (2, 16, 16)


def test_channels_that_the_recipe_names_are_not_measured(jepa, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((16, 40, 40, 2), np.uint8))
    words = ["--data", tmp_path / "x.npy", "--out", tmp_path / "run", *TINY, "--steps", 1]
    words += ["--channels", 2, "--mean", 0.1, 0.2, "--std", 1, 2]
    said = jepa("pretrain", *words)
    assert said.code == 0, said.err
    assert "measured" not in said.out
    assert load(tmp_path / "run", device="cpu").config.augment.mean == (0.1, 0.2)
    said = jepa("pretrain", *words, "--channels", 4, "--overwrite")
    assert said.code == 2
    assert "augment.mean has 2 values; give one for each of 4 channels" in said.err


# ---- what images are


def test_every_kind_of_place_is_opened(jepa, folder, tmp_path):
    assert isinstance(open_images(folder), ImageFolder)
    np.save(tmp_path / "many.npy", np.zeros((3, 9, 9, 3), np.uint8))
    np.save(tmp_path / "one.npy", np.zeros((9, 9, 3), np.uint8))
    many = open_images(tmp_path / "many.npy")
    assert isinstance(many, ArrayImages)
    assert isinstance(many.array, np.memmap)
    assert len(open_images(tmp_path / "one.npy")) == 1
    words = ["data", "build", folder, "--out", tmp_path / "corpus", "--on-error", "skip"]
    assert jepa(*words).code == 0
    corpus = open_images(tmp_path / "corpus", "test")
    assert isinstance(corpus, ImageCorpus)
    assert len(corpus) == 6
    assert set(splits_of(corpus)) == {"test"}
    assert set(splits_of(open_images(folder))) == {"train", "test"}
    assert splits_of(many) == ["", "", ""]


def test_the_shards_of_an_unfinished_corpus_are_no_images(tmp_path):
    np.save(tmp_path / "pixels-00000.npy", np.zeros(99, np.uint8))
    (tmp_path / "building.json").write_text("{}")
    with pytest.raises(Exception, match="has not come to its end"):
        open_images(tmp_path)


# ---- weights to begin with


def test_a_run_begins_with_the_weights_it_is_given(tmp_path):
    before = untrained(RECIPE, 7)
    save(tmp_path / "e", before.target_encoder, RECIPE, before.target_head)
    save_official(tmp_path / "x.pth.tar", before)
    fresh = untrained(RECIPE, 0)
    for place in ("e", "x.pth.tar"):
        module = started(str(tmp_path / place), RECIPE, seed=0, steps=5)
        assert module.steps == 5
        for part in ("encoder", "target_encoder", "head", "target_head"):
            ours, theirs = (getattr(one, part).state_dict() for one in (module, before))
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs), part
        source = before if place == "x.pth.tar" else fresh
        ours, theirs = (one.predictor.state_dict() for one in (module, source))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_parts_that_are_not_there_begin_untrained(tmp_path):
    plain = replace(RECIPE, method="i-jepa")
    save(tmp_path / "e", untrained(plain, 7).encoder, plain)
    module = started(str(tmp_path / "e"), RECIPE, seed=3, steps=5)
    fresh = untrained(RECIPE, 3)
    ours, theirs = module.head.state_dict(), fresh.head.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_another_shape_is_refused_and_the_flag_named(tmp_path):
    save(tmp_path / "e", untrained(RECIPE, 0).encoder, RECIPE)
    wide = replace(RECIPE, model=replace(RECIPE.model, depth=2))
    with pytest.raises(ConfigError, match="depth is 1 there and 2 in the recipe; set --depth 1"):
        started(str(tmp_path / "e"), wide, seed=0, steps=5)


def test_other_image_sizes_may_go_on_from_the_same_weights(tmp_path):
    save(tmp_path / "e", untrained(RECIPE, 7).encoder, RECIPE)
    large = replace(RECIPE, model=replace(RECIPE.model, image=(48, 64)))
    module = started(str(tmp_path / "e"), large, seed=0, steps=5)
    assert module.encoder.config.image == (48, 64)


def test_the_command_begins_where_another_run_ended(jepa, run, folder, tmp_path):
    words = ["--data", folder, "--split", "train", "--out", tmp_path / "run", *TINY]
    words += ["--steps", 1, "--learning-rate", 1e-12, "--initial-learning-rate", 0]
    words += ["--final-learning-rate", 0, "--start", run]
    said = jepa("pretrain", *words)
    assert said.code == 0, said.err
    one, two = (load(place, device="cpu").encoder.state_dict() for place in (run, tmp_path / "run"))
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)


# ---- fine-tuning


FEW = ["--steps", "4", "--validate-every", "2", "--batch", "8", "--warmup", "0", "--device", "cpu"]


def test_fine_tuning_stands_beside_its_twin_and_predicts(jepa, run, folder, tmp_path):
    out = tmp_path / "run"
    said = jepa("finetune", "--encoder", run, "--data", folder, "--out", out, *FEW)
    assert said.code == 0, said.err
    for word in ("pre-trained", "from scratch", "recognised", "Top-1 on 6 test images"):
        assert word in said.out
    for name in ("classifier/model.safetensors", "results/test.json", "report.html"):
        assert (out / name).exists()
    assert not (out / "checkpoints").exists()
    said = jepa(
        *("predict", out, "--input", folder, "--split", "test", "--device", "cpu"),
        *("--out", tmp_path / "p.parquet"),
    )
    assert said.code == 0, said.err
    assert said.out == f"{tmp_path / 'p.parquet'}: 6 images\n"


def test_a_frozen_encoder_stays_as_it_is(jepa, run, folder, tmp_path):
    out = tmp_path / "run"
    words = ["--preset", "frozen", "--encoder", run, "--data", folder, "--out", out, *FEW]
    said = jepa("finetune", *words)
    assert said.code == 0, said.err
    assert "untrained twin" in said.out
    one, two = (load(place, device="cpu").encoder.state_dict() for place in (run, out))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--encoder", "gone"], "gone: is no folder"),
        (["--split", "val"], "there is no split 'val'"),
        (["--warmup", "9"], "warmup is 9; allowed: <= steps, 4"),
        (["--crop-scale", "1", "0.5"], "allowed: the smaller value first"),
        (["--test-share", "0"], "test_share is 0.0"),
        (["--resume", "--overwrite"], "choose one"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_fine_tuning_that_cannot_be_is_one_line_and_leaves_no_folder(
    jepa, run, folder, tmp_path, words, says
):
    out = tmp_path / "run"
    said = jepa("finetune", "--encoder", run, "--data", folder, "--out", out, *FEW, *words)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert says in said.err
    assert not out.exists()


def test_images_without_classes_cannot_fine_tune(jepa, run, folder, tmp_path):
    words = ["--encoder", run, "--data", folder / "test" / "red", "--out", tmp_path / "run", *FEW]
    said = jepa("finetune", *words)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "the images have no labels; put those of each class in a folder" in said.err


def test_several_processes_are_refused_in_one_line(jepa, run, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ["--encoder", run, "--data", folder, "--out", tmp_path / "run", *FEW]
    said = jepa("finetune", *words)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "2 processes were launched, and jepa vision finetune runs in one" in said.err
