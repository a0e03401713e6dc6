"""An encoder from a folder, called with images of any kind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import jepa_vision
from jepa_core.errors import ConfigError, DataError
from jepa_vision.checkpoints import save_official
from jepa_vision.classifier import (
    ImageClassifier,
    TrainedClassifier,
    load_classifier,
    save_classifier,
)
from jepa_vision.data.images import ArrayImages, ImageReadError
from jepa_vision.data.transforms import centre, normalise
from jepa_vision.inference import PretrainedImage, Readout, encode, load, read_ahead, save
from jepa_vision.presets import NANO, ModelConfig, PretrainConfig
from jepa_vision.pretrain import untrained

RECIPE = replace(
    NANO,
    model=ModelConfig(
        image=(32, 32), patch=8, dim=32, depth=3, heads=4, predictor_dim=16, predictor_depth=1
    ),
    masks=replace(NANO.masks, min_keep=0),
)
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 40, 48, 3), np.uint8)


@pytest.fixture(scope="module")
def model() -> PretrainedImage:
    jepa = untrained(RECIPE, 0)
    return PretrainedImage(jepa.encoder, RECIPE, head=jepa.head, device="cpu")


def slow(model: PretrainedImage, pixels: np.ndarray, size=(32, 32)) -> torch.Tensor:
    """What the encoder says of one image, step by step, in float64."""
    x = centre(pixels, size)[None] / 255.0
    mean, std = (np.array(v) for v in (model.config.augment.mean, model.config.augment.std))
    x = torch.from_numpy((x - mean) / std).permute(0, 3, 1, 2)
    encoder = load_double(model)
    with torch.no_grad():
        return encoder(x)[0]


def load_double(model: PretrainedImage):
    import copy

    return copy.deepcopy(model.encoder).double()


def test_tokens_are_those_of_a_normalised_centre_crop(model):
    found = model(PIXELS[:3])
    assert found.shape == (3, 16, 32)
    assert found.dtype == np.float32
    for i in range(3):
        np.testing.assert_allclose(found[i], slow(model, PIXELS[i]), atol=2e-5)


def test_pooling_is_the_mean_of_the_tokens(model):
    tokens, pooled = model(PIXELS), model(PIXELS, pool=True)
    np.testing.assert_allclose(pooled, tokens.mean(1), atol=1e-6)


def test_an_images_features_do_not_depend_on_the_others(model):
    all_of_them = model(PIXELS)
    for rows in (slice(0, 1), slice(3, 20), slice(19, 20), slice(0, 13)):
        np.testing.assert_array_equal(model(PIXELS[rows]), all_of_them[rows])
    turned = model(PIXELS[::-1])
    np.testing.assert_array_equal(turned[::-1], all_of_them)


def test_another_block_size_changes_rounding_alone(model):
    one = encode(model, ArrayImages(PIXELS), batch=1)
    np.testing.assert_allclose(one, model(PIXELS), atol=1e-5)


def test_paths_pillow_images_and_arrays_are_the_same_images(model, tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(PIXELS[0]).save(path)
    turned = Image.fromarray(np.rot90(PIXELS[0]))
    exif = Image.Exif()
    exif[274] = 6  # shown turned clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    given = [path, str(path), Image.open(path), PIXELS[0], Image.open(tmp_path / "turned.png")]
    given.append(tmp_path / "turned.png")
    found = model(given)
    for one in found:
        np.testing.assert_array_equal(one, model(PIXELS[:1])[0])


def test_images_of_different_sizes_stand_in_one_list(model):
    found = model([PIXELS[0], PIXELS[1][:17, :33], PIXELS[2][:, :9]])
    assert found.shape == (3, 16, 32)
    np.testing.assert_array_equal(found[1], model([PIXELS[1][:17, :33]])[0])


@pytest.mark.parametrize("size", [64, (64, 40), (16, 48)])
def test_other_sizes_have_other_grids(model, size):
    found = model(PIXELS[:2], size=size)
    height, width = (size, size) if isinstance(size, int) else size
    assert found.shape == (2, height * width // 64, 32)
    np.testing.assert_allclose(found[0], slow(model, PIXELS[0], (height, width)), atol=2e-5)


def test_layers_stand_side_by_side(model):
    found = model(PIXELS[:2], layers=(1, 3))
    assert found.shape == (2, 16, 64)
    np.testing.assert_allclose(found[..., 32:], model(PIXELS[:2]), atol=1e-5)
    np.testing.assert_array_equal(found[..., :32], model(PIXELS[:2], layers=[1]))
    x = torch.from_numpy(normalise(np.stack([centre(p, (32, 32)) for p in PIXELS[:2]]), *stats()))
    with torch.no_grad():
        first = model.encoder.features(x, [1])[0].numpy()
    np.testing.assert_allclose(found[..., :32], first, atol=1e-5)


def stats():
    return RECIPE.augment.mean, RECIPE.augment.std


def test_the_head_does_what_it_does_to_the_context(model):
    tokens = torch.from_numpy(model(PIXELS[:2]))
    with torch.no_grad():
        through = model.head(tokens).numpy()
    np.testing.assert_allclose(model(PIXELS[:2], with_head=True), through, atol=1e-5)
    assert np.abs(through - tokens.numpy()).max() > 0.01


def test_reading_is_in_order_whatever_the_number_of_threads(model, tmp_path):
    paths = []
    for i, pixels in enumerate(PIXELS):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(pixels).save(paths[-1])
    listed = jepa_vision.inference.as_images(paths)
    for jobs in (1, 4):
        np.testing.assert_array_equal(
            encode(model, listed, batch=3, jobs=jobs), encode(model, ArrayImages(PIXELS), batch=3)
        )


def test_features_go_into_a_file_that_is_given(model, tmp_path):
    out = np.lib.format.open_memmap(tmp_path / "z.npy", "w+", np.float32, (20, 32))
    encode(model, ArrayImages(PIXELS), pool=True, out=out)
    out.flush()
    np.testing.assert_array_equal(np.load(tmp_path / "z.npy"), model(PIXELS, pool=True))


def test_no_images_give_no_features(model):
    assert model(PIXELS[:0]).shape == (0, 16, 32)
    assert model([], pool=True).shape == (0, 32)


def test_reading_ahead_stops_at_an_error_and_begins_no_more():
    seen = []

    def read(i: int) -> int:
        seen.append(i)
        if i == 5:
            raise DataError("broken")
        return i

    ahead = read_ahead(read, 100, 2)
    assert [next(ahead), next(ahead)] == [[0, 1], [2, 3]]
    with pytest.raises(DataError, match="broken"):
        next(ahead)
    assert max(seen) < 10


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: m(PIXELS, size=30), "size is 30 x 30; allowed: multiples of patch"),
        (lambda m: m(PIXELS, layers=[0]), "there is no layer 0; allowed: 1 to 3"),
        (lambda m: m(PIXELS, layers=[4]), "there is no layer 4"),
        (lambda m: m(PIXELS, layers=[1], with_head=True), "layers and with_head are both given"),
        (lambda m: m(PIXELS[0]), r"shape \(40, 48, 3\)"),
        (lambda m: m("x.png"), "one image is given; give a list"),
        (lambda m: m(Image.new("RGB", (9, 9))), "one image is given"),
        (lambda m: m([PIXELS[0][..., 0]]), r"image 0 is an array of uint8 with the shape"),
        (lambda m: m([PIXELS[0].astype(int)]), "image 0 is an array of int64"),
        (lambda m: m([PIXELS[0][..., :2]]), r"the encoder takes \[height, width, 3\]"),
        (lambda m: m([Image.new("I;16", (9, 9))]), "does not say its range"),
    ],
)
def test_what_cannot_be_encoded_is_an_error_that_says_so(model, call, says):
    with pytest.raises((ConfigError, DataError), match=says):
        call(model)


def test_a_file_that_cannot_be_read_is_named(model, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    with pytest.raises(ImageReadError, match=r"bad\.jpg"):
        model([PIXELS[0], tmp_path / "bad.jpg"])


def test_an_encoder_without_a_head_has_none():
    recipe = replace(RECIPE, method="i-jepa")
    plain = PretrainedImage(untrained(recipe, 0).encoder, recipe, device="cpu")
    with pytest.raises(ConfigError, match="the encoder has no head"):
        plain(PIXELS[:1], with_head=True)


# ---- folders


@pytest.mark.parametrize(
    "change",
    [
        {"method": "i-jepa"},
        {"method": "dmt-jepa"},
        {"dmt": replace(RECIPE.dmt, context="self")},
        {"dmt": replace(RECIPE.dmt, aggregator="paper")},
        {"dmt": replace(RECIPE.dmt, aggregator="mean")},
    ],
    ids=str,
)
def test_a_folder_gives_back_the_same_bits(tmp_path, change):
    recipe = replace(RECIPE, **change)
    jepa = untrained(recipe, 3)
    before = PretrainedImage(jepa.encoder, recipe, head=jepa.head, device="cpu")
    save(tmp_path / "encoder", jepa.encoder, recipe, jepa.head, {"step": 7})
    after = load(tmp_path / "encoder", device="cpu")
    assert after.config == recipe
    assert after.details["step"] == 7
    np.testing.assert_array_equal(after(PIXELS), before(PIXELS))
    assert (after.head is None) == (jepa.head is None)
    if jepa.head is not None:
        np.testing.assert_array_equal(after(PIXELS, with_head=True), before(PIXELS, with_head=True))


def test_the_public_names_are_there():
    for name in jepa_vision.__all__:
        assert getattr(jepa_vision, name) is not None
    with pytest.raises(AttributeError, match="no attribute nonsense"):
        _ = jepa_vision.nonsense
    assert set(jepa_vision.__all__) <= set(dir(jepa_vision))


def test_an_official_checkpoint_is_loaded_as_it_is(tmp_path):
    jepa = untrained(RECIPE, 1)
    save_official(tmp_path / "x.pth.tar", jepa)
    found = jepa_vision.load(tmp_path / "x.pth.tar", heads=4, device="cpu")
    trained = PretrainedImage(jepa.target_encoder, RECIPE, head=jepa.target_head, device="cpu")
    np.testing.assert_array_equal(found(PIXELS), trained(PIXELS))
    np.testing.assert_array_equal(found(PIXELS, with_head=True), trained(PIXELS, with_head=True))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda c: c.update(format=9), "has format 9"),
        (lambda c: c.pop("recipe"), "lacks recipe"),
        (lambda c: c.update(package="jepa-ecg"), "belongs to jepa-ecg"),
        (lambda c: c["recipe"]["model"].update(depth=2), r"unexpected: blocks\.2"),
        (lambda c: c["recipe"]["model"].update(dim=64), "of another shape"),
        (lambda c: c["recipe"].update(method="i-jepa"), "the recipe has no head"),
        (lambda c: c["recipe"].update(method="other"), "method is 'other'"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_in_one_line(tmp_path, spoil, says):
    import json

    jepa = untrained(RECIPE, 0)
    save(tmp_path / "encoder", jepa.encoder, RECIPE, jepa.head)
    path = tmp_path / "encoder" / "config.json"
    config = json.loads(path.read_text())
    spoil(config)
    path.write_text(json.dumps(config))
    with pytest.raises((DataError, ConfigError), match=says) as caught:
        load(tmp_path / "encoder")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_that_has_not_ended_says_how_to_go_on(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no encoder yet.*pretrain --resume goes on"):
        load(tmp_path / "run")
    with pytest.raises(DataError, match=r"no classifier yet.*finetune --resume goes on"):
        load_classifier(tmp_path / "run")


def test_a_classifier_comes_back_and_its_encoder_too(tmp_path):
    classifier = ImageClassifier(untrained(RECIPE, 2).encoder, 5, seed=1).eval()
    trained = TrainedClassifier(classifier, RECIPE, tuple("abcde"), "cpu")
    save_classifier(tmp_path / "run" / "classifier", trained)
    found = load_classifier(tmp_path / "run", device="cpu")
    assert found.classes == tuple("abcde")
    pooled = trained.pretrained()(PIXELS, pool=True)
    np.testing.assert_array_equal(load(tmp_path / "run", device="cpu")(PIXELS, pool=True), pooled)
    x = torch.from_numpy(normalise(np.stack([centre(p, (32, 32)) for p in PIXELS]), *stats()))
    with torch.no_grad():
        logits = classifier(x).numpy()
    np.testing.assert_allclose(found.logits(pooled), logits, atol=1e-5)
    save(tmp_path / "plain", classifier.encoder, RECIPE)
    with pytest.raises(DataError, match="an encoder without a classifier"):
        load_classifier(tmp_path / "plain")


def test_other_channels_are_normalised_with_statistics_of_their_own():
    recipe = PretrainConfig(
        method="i-jepa",
        model=replace(RECIPE.model, channels=5),
        masks=RECIPE.masks,
        augment=replace(RECIPE.augment, mean=(0.1,) * 5, std=(0.5,) * 5),
    )
    model = PretrainedImage(untrained(recipe, 0).encoder, recipe, device="cpu")
    bands = np.random.default_rng(1).random((3, 40, 40, 5), np.float32)
    crops = np.stack([centre(b, (32, 32)) for b in bands])
    x = torch.from_numpy((crops - 0.1) / 0.5).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        tokens = model.encoder(x).numpy()
    np.testing.assert_allclose(model(bands), tokens, atol=1e-5)
    np.testing.assert_array_equal(model.read(crops, Readout()), model(bands))
