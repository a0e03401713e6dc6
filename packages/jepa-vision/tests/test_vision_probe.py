"""`jepa vision probe` and `report` as a user runs them, on a tiny run and made-up data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jepa_core import cli
from jepa_core.run import Run
from jepa_vision.data.folders import ImageFolder
from jepa_vision.data.images import ArrayImages
from jepa_vision.evaluation import TRAINED, TWIN, linear_probe
from jepa_vision.inference import load, save
from jepa_vision.readouts import Some, pooled, targets_of, twin_of
from jepa_vision.verbs.probe import kind_of

TINY = "--image 48 48 --patch 8 --dim 16 --depth 4 --heads 2 --predictor-dim 8".split()  # noqa: SIM905
TINY += "--predictor-depth 1 --min-keep 2 --batch-size 8 --steps 6 --checkpoint-every 2".split()  # noqa: SIM905


def picture(g: np.random.Generator, label: int) -> np.ndarray:
    """Stripes whose direction is the class."""
    i, j = np.mgrid[:56, :52]
    wave = np.sin((i if label == 0 else j if label == 1 else i + j) / 3 + g.uniform(0, 6))
    noise = g.normal(0, 20, (56, 52, 3))
    return (127 + 90 * wave[..., None] + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Three classes, 14 training and 8 test images each."""
    root, g = tmp_path_factory.mktemp("vision") / "photos", np.random.default_rng(0)
    for part, count in (("train", 14), ("test", 8)):
        for label, name in enumerate(("rows", "columns", "slopes")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(picture(g, label)).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(photos: Path) -> Path:
    """A run of DMT-JEPA with three checkpoints."""
    out = photos.parent / "run"
    words = ["pretrain", "--preset", "nano", "--data", photos / "train", "--out", out, *TINY]
    assert cli.main(["vision", *map(str, [*words, "--seed", 5])]) == 0
    return out


@pytest.fixture(scope="module")
def scenes(photos: Path) -> Path:
    """Pictures with label pictures: two halves, and a border without labels."""
    root, g = photos.parent / "streets", np.random.default_rng(1)
    for part, count in (("train", 8), ("test", 4)):
        for kind in ("images", "labels"):
            (root / part / kind).mkdir(parents=True)
        for i in range(count):
            label = np.zeros((60, 80), np.uint8)
            label[:, g.integers(20, 60) :] = 1
            image = np.where(label[..., None] == 1, (200, 60, 40), (30, 90, 190))
            image = (image + g.normal(0, 15, image.shape)).clip(0, 255).astype(np.uint8)
            label[:3] = 255
            Image.fromarray(image).save(root / part / "images" / f"{i}.png")
            Image.fromarray(label).save(root / part / "labels" / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def videos(photos: Path) -> Path:
    """One square that moves over grey, in the layout of DAVIS."""
    root = photos.parent / "davis"
    pictures, labels = (root / kind / "480p/square" for kind in ("JPEGImages", "Annotations"))
    pictures.mkdir(parents=True)
    labels.mkdir(parents=True)
    for frame in range(4):
        truth = np.zeros((48, 64), np.uint8)
        truth[16:32, 8 + 8 * frame : 24 + 8 * frame] = 1
        image = np.where(truth[..., None] == 1, (220, 40, 40), (120, 120, 120)).astype(np.uint8)
        Image.fromarray(image).save(pictures / f"{frame:05d}.jpg", quality=95)
        Image.fromarray(truth).save(labels / f"{frame:05d}.png")
    return root


def table(run: Path, name: str) -> dict:
    return json.loads((run / f"results/{name}.json").read_text())


@pytest.fixture(scope="module")
def probed(run: Path, photos: Path) -> Path:
    assert cli.main(["vision", "probe", str(run), "--data", str(photos)]) == 0
    return run


def test_classes_are_probed_beside_twin_and_raw_pixels(probed):
    saved = {path.stem for path in (probed / "results").glob("probe-photos-*.json")}
    kinds = ("linear", "knn", "collapse", "regret")
    assert saved == {f"probe-photos-{kind}" for kind in kinds}
    rows = [row[0] for row in table(probed, "probe-photos-linear")["rows"]]
    assert rows == [
        "trained",
        "untrained twin",
        "trained, last four layers",
        "untrained twin, last four layers",
        "trained, with head",
        "untrained twin, with head",
        "raw pixels",
    ]
    assert "24 test images" in table(probed, "probe-photos-linear")["notes"][0]
    assert "42 training and 24 test" in table(probed, "probe-photos-linear")["notes"][1]


def test_the_table_says_what_the_library_says(probed, photos):
    model = load(probed, device="cpu")
    z, y = [], []
    for part in ("train", "test"):
        images = ImageFolder(photos / part)
        z.append(model([images.read(i) for i in range(len(images))], pool=True))
        y.append(images.labels)
    found = linear_probe(z[0], y[0], z[1], y[1])
    row = table(probed, "probe-photos-linear")["rows"][0]
    assert row[2].startswith(f"{found.top1:.3f} [")
    assert row[4].startswith(f"{found.balanced_accuracy:.3f} [")


def test_every_kept_checkpoint_is_probed(probed):
    found = table(probed, "probe-photos-regret")
    assert sum(row[2] == "chosen without labels" for row in found["rows"]) == 1
    assert found["notes"][0].startswith("Regret of the choice: ")
    assert len(found["rows"]) > 1


def test_what_features_look_like_is_in_the_report(probed):
    for name in ("mask", "tokens", "similarity", "neighbours", "locality"):
        assert (probed / f"figures/{name}.png").exists()
        assert (probed / f"figures/{name}.txt").read_text().strip()
    page = (probed / "report.html").read_text()
    for words in ("top-1 on 24 test images", "no collapse", "Regret of the choice"):
        assert words in page


def test_scenes_are_segmented(jepa, run, scenes):
    words = ["--classes", 2, "--steps", 12, "--validate-every", 4, "--width", 8]
    said = jepa("probe", run, "--data", scenes, *words, "--max-scenes", 12)
    assert said.code == 0, said.err
    found = table(run, "probe-streets-patches")
    assert [row[0] for row in found["rows"]] == [
        "trained",
        "untrained twin",
        "raw pixels",
        "commonest class",
    ]
    raw = float(found["rows"][2][1].split()[0])
    assert raw > 0.8  # the halves differ in colour
    assert float(found["rows"][3][1].split()[0]) < 0.5
    assert "8 training and 4 test scenes" in found["notes"][1]
    assert len(table(run, "probe-streets-decoder-classes")["rows"]) == 2
    assert (run / "figures/segmentation.png").exists()


def test_scenes_can_be_encoded_in_windows(jepa, run, scenes):
    words = ["--classes", 2, "--steps", 1, "--side", 96, "--tile", "--max-scenes", 4]
    said = jepa("probe", run, "--data", scenes, *words, "--task", "segmentation")
    assert said.code == 0, said.err
    assert "3 of 12 scenes are used" in said.out


def test_objects_in_videos_are_followed(jepa, run, videos, tmp_path):
    said = jepa("probe", run, "--data", videos, "--side", 48, "--masks", tmp_path / "masks")
    assert said.code == 0, said.err
    found = table(run, "probe-davis-video")
    rows = {row[0]: row for row in found["rows"]}
    assert set(rows) == {"trained", "untrained twin", "raw pixels", "first mask, repeated"}
    assert rows["raw pixels"][3] > rows["first mask, repeated"][3]
    assert "J&F of 1 objects in 1 sequences" in found["notes"][0]
    assert len(list((tmp_path / "masks/square").glob("*.png"))) == 4


def test_an_encoder_without_a_run_is_probed_too(jepa, run, photos, tmp_path):
    model = load(run, device="cpu")
    save(tmp_path / "encoder", model.encoder, model.config)
    said = jepa("probe", tmp_path / "encoder", "--data", photos, "--max-images", 40)
    assert said.code == 0, said.err
    assert "39 of 66 images are used" in said.out
    assert "with head" not in said.out
    assert "report" not in said.out


def test_images_without_a_split_are_divided(jepa, run, photos):
    said = jepa("probe", run, "--data", photos / "train", "--test-share", 0.5)
    assert said.code == 0, said.err
    assert "21 training and 21 test images" in table(run, "probe-train-linear")["notes"][1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--data", "gone"], "gone: no such file or folder"),
        (["--data", "flat"], "flat: "),
        (["--data", "flat", "--task", "segmentation"], "no picture with labels"),
        (["--data", "flat", "--task", "video"], "JPEGImages/480p: there is no such folder"),
        (["--data", "flat", "--test-share", "1.5"], "test_share is 1.5; allowed: > 0 and < 1"),
        (["--data", "pairs"], "classes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_probe_that_cannot_be_is_one_line(jepa, run, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    for name in ("flat", "pairs/images", "pairs/labels"):
        Path(name).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (50, 50)).save(Path(name) / f"{i}.png")
    said = jepa("probe", run, *words)
    assert (said.code, said.err.count("\n")) == (2, 1), said.err
    assert says in said.err


def test_what_the_folders_are_for_is_seen(photos, scenes, videos, data):
    assert kind_of(photos) == "classes"
    assert kind_of(scenes) == "segmentation"
    assert kind_of(videos) == "video"
    assert kind_of(data("vision") / "caltech10") == "classes"
    assert kind_of(data("vision") / "cifar10_subset.zip") == "classes"
    assert kind_of(data("vision") / "camvid") == "segmentation"


def test_the_twin_is_the_encoder_before_training(run):
    model = load(run, device="cpu")
    twin = twin_of(model, 5)
    assert twin.head is not None
    from jepa_vision.pretrain import untrained

    start = untrained(model.config, 5).state_dict()
    for name, value in twin.encoder.state_dict().items():
        assert value.equal(start[f"encoder.{name}"])
    one, other = (m.encoder.blocks[0].mlp.fc1.weight for m in (model, twin))
    assert (one - other).abs().max() > 0


def test_one_pass_gives_the_last_layer_and_the_last_four(run):
    model = load(run, device="cpu")
    images = ArrayImages(np.stack([picture(np.random.default_rng(i), 0) for i in range(3)]))
    found = pooled(model, images)
    np.testing.assert_allclose(found.last, model(images, pool=True), atol=1e-5)
    second = model(images, layers=[2], pool=True)
    np.testing.assert_allclose(found.last_four[:, 16:32], second, atol=1e-5)
    np.testing.assert_allclose(found.head, model(images, with_head=True, pool=True), atol=1e-5)


def test_targets_are_those_of_training(run):
    import torch

    from jepa_vision.data.transforms import normalise
    from jepa_vision.pretrain import untrained

    model = load(run, device="cpu")
    crops = np.stack([picture(np.random.default_rng(i), 0)[:48, :48] for i in range(2)])
    module = untrained(model.config, 5).eval()
    twin = twin_of(model, 5)
    x = torch.from_numpy(normalise(crops, model.config.augment.mean, model.config.augment.std))
    np.testing.assert_allclose(targets_of(twin, crops), module.targets(x), atol=1e-6)
    assert np.abs(targets_of(model, crops) - module.targets(x).numpy()).max() > 1e-4


def test_some_images_are_those_rows(photos):
    images = ImageFolder(photos / "test")
    rows = np.array([20, 3, 11])
    some = Some(images, rows)
    assert (len(some), some.channels, some.classes) == (3, 3, images.classes)
    assert list(some.names) == [images.names[i] for i in rows]
    np.testing.assert_array_equal(some.labels, images.labels[rows])
    np.testing.assert_array_equal(some.sizes, images.sizes[rows])
    np.testing.assert_array_equal(some.read(1), images.read(3))


def test_report_writes_the_page_again(jepa, probed):
    page = probed / "report.html"
    page.unlink()
    said = jepa("report", probed)
    assert (said.code, said.out) == (0, f"{page}\n")
    assert TRAINED in page.read_text()
    assert TWIN in page.read_text()
    assert Run.open(probed).record["verb"] == "pretrain"


def test_report_wants_a_run(jepa, tmp_path):
    said = jepa("report", tmp_path)
    assert said.code == 2
    assert "is not a run folder" in said.err
