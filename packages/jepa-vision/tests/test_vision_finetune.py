"""Training a classifier: which images train, what is kept, and that it learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from jepa_core.errors import ConfigError, DataError
from jepa_core.evaluation import FinetuneConfig
from jepa_core.training import checkpoint
from jepa_core.training.sampler import Draw
from jepa_vision.classifier import ImageClassifier
from jepa_vision.data.images import ArrayImages
from jepa_vision.downstream import DOWNSTREAM, DownstreamConfig
from jepa_vision.finetune import LabelledCrops, Subset, divide, train_classifier
from jepa_vision.inference import PretrainedImage
from jepa_vision.presets import NANO, ModelConfig
from jepa_vision.pretrain import untrained

RECIPE = replace(
    NANO,
    method="i-jepa",
    model=ModelConfig(
        image=(16, 16), patch=8, dim=16, depth=1, heads=2, predictor_dim=8, predictor_depth=1
    ),
    masks=replace(NANO.masks, min_keep=0, target_scale=(0.5, 0.5)),
)
CONFIG = DownstreamConfig(
    training=FinetuneConfig(
        steps=60,
        batch=16,
        learning_rate=1e-2,
        final_learning_rate=1e-3,
        validate_every=20,
        device="cpu",
    )
)


@pytest.fixture(scope="module")
def images() -> ArrayImages:
    """60 images of three colours."""
    g = np.random.default_rng(0)
    y = np.arange(60) % 3
    pixels = g.integers(0, 100, (60, 20, 20, 3))
    pixels[np.arange(60), :, :, y] += 150
    return ArrayImages(pixels.astype(np.uint8), y, ("red", "green", "blue"))


@pytest.fixture
def model() -> PretrainedImage:
    return PretrainedImage(untrained(RECIPE, 0).encoder, RECIPE, device="cpu")


# ---- parts


def of(names: list[str], labels: list[int], **shares) -> dict[str, set[int]]:
    shares = {"validation_share": 0.25, **shares}
    parts = divide(np.array(labels), names, **shares)
    return {k: set(getattr(parts, k).tolist()) for k in ("train", "validation", "test")}


def test_without_splits_every_class_is_drawn_from():
    labels = np.repeat(np.arange(4), 20).tolist()
    found = of([""] * 80, labels, test_share=0.25)
    assert sum(map(len, found.values())) == 80
    assert set().union(*found.values()) == set(range(80))
    for part, count in (("test", 5), ("validation", 4), ("train", 11)):
        assert np.bincount(np.array(labels)[sorted(found[part])]).tolist() == [count] * 4, part
    assert of([""] * 80, labels, test_share=0.25) == found
    assert of([""] * 80, labels, test_share=0.25, seed=1) != found


def test_the_datas_own_splits_hold():
    names = ["train"] * 8 + ["val"] * 4 + ["test"] * 4
    found = of(names, [0, 1] * 8)
    assert found == {
        "train": set(range(8)),
        "validation": set(range(8, 12)),
        "test": set(range(12, 16)),
    }


def test_a_validation_split_alone_is_tested_and_training_images_choose():
    found = of(["train"] * 8 + ["val"] * 4, [0, 1] * 6)
    assert found["test"] == set(range(8, 12))
    assert len(found["validation"]) == 2
    assert found["train"] | found["validation"] == set(range(8))


@pytest.mark.parametrize(
    ("labels", "names", "says"),
    [
        (None, [""] * 4, "the images have no labels"),
        ([0] * 10, [""] * 10, "the training images have one class"),
        ([0, 1, 2], [""] * 3, "there are no test images"),
        ([0, 1, 0, 1], ["train"] * 2 + ["test"] * 2, "there are no validation images"),
    ],
)
def test_data_that_cannot_be_divided_are_refused(labels, names, says):
    given = None if labels is None else np.array(labels)
    with pytest.raises(DataError, match=says):
        divide(given, names, validation_share=0.2)


# ---- batches


def test_a_batch_is_a_function_of_the_draw(images):
    source = LabelledCrops(images, np.arange(10, 40), RECIPE, CONFIG)
    assert len(source) == 30
    ids = np.array([0, 29, 7])
    one, again = (source.batch(Draw(3, ids, ids, np.full(3, 2))) for _ in range(2))
    assert torch.equal(one["image"], again["image"])
    assert one["image"].shape == (3, 3, 16, 16)
    assert one["y"].tolist() == [(10 + i) % 3 for i in ids]
    turned = source.batch(Draw(9, ids[::-1], ids[::-1], np.full(3, 2)))
    assert torch.equal(turned["image"].flip(0), one["image"])
    other = source.batch(Draw(3, ids, ids, np.full(3, 4)))
    assert not torch.equal(other["image"], one["image"])


def test_other_channels_than_the_encoders_are_refused():
    grey = ArrayImages(np.zeros((4, 20, 20, 1), np.uint8), np.array([0, 1, 0, 1]))
    with pytest.raises(ConfigError, match="the images have 1 channels, the encoder 3"):
        LabelledCrops(grey, np.arange(4), RECIPE, CONFIG)


def test_a_subset_is_its_images(images):
    rows = np.array([5, 2])
    some = Subset(images, rows)
    assert len(some) == 2
    assert some.names == ["5", "2"]
    assert some.labels.tolist() == [2, 2]
    assert some.sizes.tolist() == [[20, 20]] * 2
    assert np.array_equal(some.read(1), images.array[2])


# ---- training


@pytest.mark.parametrize("freeze", [False, True], ids=["whole", "frozen"])
def test_training_learns_and_leaves_the_encoder_it_was_given(images, model, freeze):
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    parts = divide(images.labels, [""] * 60, validation_share=0.2)
    done = train_classifier(model, images, parts, replace(CONFIG, freeze=freeze))
    top1 = (done.test.argmax(1) == images.labels[parts.test]).mean()
    assert top1 > 0.8
    after = model.encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    trained = done.classifier.encoder.state_dict()
    moved = any(not torch.equal(before[name], trained[name]) for name in before)
    assert moved is not freeze
    assert [one.step for one in done.result.history] == [20, 40, 60]


def test_test_logits_are_those_of_centre_crops(images, model):
    parts = divide(images.labels, [""] * 60, validation_share=0.2)
    done = train_classifier(model, images, parts, replace(CONFIG, freeze=True))
    pooled = PretrainedImage(done.classifier.encoder, RECIPE, device="cpu")(
        images.array[parts.test], pool=True
    )
    with torch.no_grad():
        logits = done.classifier.fc(torch.from_numpy(pooled)).numpy()
    np.testing.assert_allclose(done.test, logits, atol=1e-6)


def test_checkpoints_of_a_frozen_encoder_hold_the_map_alone_and_give_the_same_again(
    images, model, tmp_path
):
    parts = divide(images.labels, [""] * 60, validation_share=0.2)
    config = replace(CONFIG, freeze=True)
    done = train_classifier(model, images, parts, config, checkpoints=tmp_path / "kept")
    saved = load_file(checkpoint.where(tmp_path / "kept", 60) / "model.safetensors")
    assert set(saved) == {"classifier.fc.weight", "classifier.fc.bias"}
    again = train_classifier(
        model, images, parts, config, checkpoints=tmp_path / "kept", resume=True
    )
    assert again.result == done.result
    np.testing.assert_array_equal(again.test, done.test)


def test_the_output_map_begins_by_its_seed():
    encoder = untrained(RECIPE, 0).encoder
    one, two, other = (ImageClassifier(encoder, 3, seed=seed).fc.weight for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_the_ways_of_training_can_be_chosen():
    assert set(DOWNSTREAM) == {"finetune", "frozen"}
    assert DOWNSTREAM["frozen"].freeze
    assert not DOWNSTREAM["finetune"].freeze
    with pytest.raises(ConfigError, match="the smaller value first"):
        DownstreamConfig(crop_scale=(1.0, 0.5))
