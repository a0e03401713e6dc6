"""Segmentation: scores, labels of patches, tokens of large images, probes, decoder, backbone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepa_core.errors import ConfigError, DataError
from jepa_core.evaluation.metrics import mean_iou as core_mean_iou
from jepa_vision import dense
from jepa_vision.decoder import (
    Backbone,
    Decoder,
    DecoderConfig,
    pyramid_layers,
    train_decoder,
)
from jepa_vision.dense import (
    NO_LABEL,
    Confusion,
    EncodedScene,
    confusions,
    constant,
    mean_iou,
    mean_iou_statistic,
    patch_labels,
    patch_probe,
    raw_patches,
    segmentation,
    token_map,
    upsample,
)
from jepa_vision.model import ImageEncoder
from jepa_vision.presets import ModelConfig
from jepa_vision.results import class_table, segmentation_table
from jepa_vision.scenes import SceneConfig, resized, sample, scene_parts, segment

# ---- scores


@pytest.fixture(scope="module")
def golden(data):
    return np.load(data("vision") / "golden/golden_miou.npz")


def test_scores_equal_the_published_numbers(golden):
    confusion = Confusion(11)
    for label, predicted in zip(golden["label"], golden["pred"], strict=True):
        confusion.add(label, predicted)
    np.testing.assert_array_equal(confusion.matrix, golden["confusion"])
    found = confusion.scores
    np.testing.assert_allclose(found.iou, golden["iou"], atol=1e-6)
    assert found.mean_iou == pytest.approx(float(golden["miou"]), abs=1e-6)
    assert found.mean_iou == pytest.approx(0.45314709, abs=1e-6)
    assert found.pixel_accuracy == pytest.approx(float(golden["pixel_acc"]), abs=1e-6)
    assert found.class_accuracy == pytest.approx(float(golden["mean_acc"]), abs=1e-6)
    whole = mean_iou(golden["pred"], golden["label"], 11)
    assert whole.mean_iou == found.mean_iou


def test_an_absent_class_is_left_out_and_one_that_is_only_predicted_counts_0():
    label = np.array([[0, 0, 1, 255]])
    found = mean_iou(np.array([[0, 2, 1, 1]]), label, 4)
    np.testing.assert_array_equal(found.iou, [0.5, 1.0, 0.0, np.nan])
    assert found.mean_iou == 0.5
    assert found.pixel_accuracy == pytest.approx(2 / 3)
    assert found.class_accuracy == pytest.approx(3 / 4)


def test_without_a_labelled_pixel_everything_is_undefined():
    found = mean_iou(np.zeros((2, 2), int), np.full((2, 2), 255), 3)
    assert math.isnan(found.mean_iou)
    assert math.isnan(found.pixel_accuracy)
    assert math.isnan(found.class_accuracy)


@given(st.integers(0, 999), st.integers(1, 5), st.integers(1, 40))
def test_streamed_scores_equal_those_of_all_pixels(seed, classes, n):
    g = np.random.default_rng(seed)
    label = g.choice([*range(classes), 255], n)
    predicted = g.integers(0, classes, n)
    confusion = Confusion(classes)
    for part in np.array_split(np.arange(n), 3):
        confusion.add(label[part], predicted[part])
    other = core_mean_iou(label, predicted, classes)
    np.testing.assert_allclose(confusion.scores.iou, other.per_class)
    np.testing.assert_allclose(confusion.scores.mean_iou, other.mean_present_or_predicted)


def test_what_lies_outside_of_the_classes_is_an_error_at_labelled_pixels_only():
    confusion = Confusion(3)
    confusion.add(np.array([255, 0]), np.array([77, 0]))
    with pytest.raises(DataError, match=r"predictions go from 0 to 3, not 0\.\.2"):
        confusion.add(np.array([0, 1]), np.array([0, 3]))
    with pytest.raises(DataError, match="predictions go from 255 to 255"):
        confusion.add(np.array([0]), np.array([255]))
    with pytest.raises(DataError, match="labels go from 4"):
        confusion.add(np.array([4]), np.array([0]))
    with pytest.raises(DataError, match="labels are"):
        confusion.add(np.array([0, 1]), np.array([0]))


def test_the_resampled_score_is_that_of_the_scenes_drawn():
    g = np.random.default_rng(0)
    each = g.integers(0, 9, (6, 4, 4))
    each[:, 3] = each[:, :, 3] = 0  # a class that does not occur
    counts = g.integers(0, 3, (5, 6))
    found = mean_iou_statistic(each)(counts)
    for row, drawn in zip(found, counts, strict=True):
        summed = sum(n * one for n, one in zip(drawn, each, strict=True))
        assert row[0] == pytest.approx(segmentation(summed).mean_iou)


# ---- patches


def slow_patch_labels(label, patch, ignore):
    rows, cols = label.shape[0] // patch, label.shape[1] // patch
    out = np.full((rows, cols), NO_LABEL)
    for i in range(rows):
        for j in range(cols):
            inside = label[i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            found = [int(v) for v in inside.ravel() if v != ignore]
            if found:
                out[i, j] = max(sorted(set(found)), key=found.count)
    return out


@given(st.integers(0, 999), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_a_patch_has_its_commonest_class_and_the_lower_of_two(seed, patch, rows, cols):
    g = np.random.default_rng(seed)
    label = g.choice([0, 1, 2, 255], (2, rows * patch, cols * patch))
    found = patch_labels(label, patch)
    for one, expected in zip(found, label, strict=True):
        np.testing.assert_array_equal(one, slow_patch_labels(expected, patch, 255))


def test_ties_go_to_the_lower_class_and_unlabelled_patches_have_none():
    label = np.array([[5, 2, 11, 11], [2, 5, 11, 11]])
    np.testing.assert_array_equal(patch_labels(label, 2, ignore=11), [[2, NO_LABEL]])
    with pytest.raises(DataError, match="no whole patches of 3"):
        patch_labels(label, 3)


def test_labels_of_another_size_are_read_where_the_patches_lie():
    label = np.repeat(np.repeat([[0, 1], [2, 3]], 30, 0), 50, 1)
    scene = EncodedScene(np.zeros((4, 6, 1), np.float32), label)
    found = scene.patch_labels()
    np.testing.assert_array_equal(found[[0, 0, 3, 3], [0, 5, 0, 5]], [0, 1, 2, 3])
    same = EncodedScene(np.zeros((6, 10, 1), np.float32), label)
    np.testing.assert_array_equal(same.patch_labels(), patch_labels(label, 10))


def test_upsampling_is_bilinear_between_the_centres_of_patches():
    logits = np.array([[[0.0], [4.0]]], np.float32)
    np.testing.assert_allclose(upsample(logits, (1, 4))[0, :, 0], [0, 1, 3, 4])
    np.testing.assert_allclose(upsample(logits, (2, 4), "nearest")[1, :, 0], [0, 0, 4, 4])


def test_raw_patches_are_the_pixels_of_each_patch():
    image = np.random.default_rng(0).integers(0, 255, (2, 8, 12, 3), np.uint8)
    found = raw_patches(4)(image)
    assert found.shape == (2, 6, 48)
    np.testing.assert_allclose(found[1, 4], image[1, 4:8, 4:8].ravel() / 255, atol=1e-7)


def mean_and_place(images):
    """Tokens that know their patch's mean and nothing of their window."""
    return raw_patches(4)(images).mean(-1, keepdims=True)


def test_an_image_in_windows_is_the_image_in_one_piece_if_patches_do_not_mind():
    image = np.random.default_rng(0).integers(0, 255, (28, 44, 3), np.uint8)
    whole = token_map(mean_and_place, image, 4)
    assert whole.shape == (7, 11, 1)
    for tile in ((8, 8), (16, 12), (28, 8), (64, 64)):
        for overlap in (0.0, 0.5, 0.75):
            found = token_map(mean_and_place, image, 4, tile=tile, overlap=overlap, batch=3)
            np.testing.assert_allclose(found, whole, atol=1e-6)


def test_windows_have_the_size_asked_for_and_overlap():
    seen = []

    def encode(images):
        seen.extend(image.shape for image in images)
        return np.full((len(images), 16, 1), float(len(seen)))

    image = np.zeros((16, 40, 3), np.uint8)
    token_map(encode, image, 4, tile=(16, 16))
    assert seen == [(16, 16, 3)] * 4  # left at 0, 8, 16, 24
    with pytest.raises(DataError, match="no whole patches"):
        token_map(encode, np.zeros((15, 40, 3), np.uint8), 4)


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 0.9))
def test_windows_cover_every_cell_and_stay_inside(length, window, overlap):
    window = min(window, length)
    starts = dense._starts(length, window, overlap)
    covered = {cell for first in starts for cell in range(first, first + window)}
    assert covered == set(range(length))


# ---- probe and decoder


def made_scenes(n: int, seed: int, *, noise: float = 0.3) -> list[EncodedScene]:
    """Blobs of three classes; tokens are their codes with noise, labels are four times finer."""
    g = np.random.default_rng(seed)
    codes = np.random.default_rng(7).normal(size=(3, 6))
    found = []
    for _ in range(n):
        coarse = np.kron(g.integers(0, 3, (2, 3)), np.ones((3, 3), int))
        tokens = codes[coarse] + noise * g.normal(size=(6, 9, 6))
        label = np.kron(coarse, np.ones((4, 4), int))
        label[:2] = 255
        found.append(EncodedScene(tokens.astype(np.float32), label))
    return found


def test_a_linear_probe_of_patches_finds_linear_classes():
    probe = patch_probe(made_scenes(8, 0), 3)
    test = made_scenes(4, 1)
    each = confusions(probe, test, 3)
    assert each.shape == (4, 3, 3)
    assert each.sum() == sum((scene.label != 255).sum() for scene in test)
    assert segmentation(each.sum(0)).mean_iou > 0.8
    nearest = replace(probe, mode="nearest")
    assert segmentation(confusions(nearest, test, 3).sum(0)).mean_iou > 0.95


def test_patches_without_a_label_do_not_train():
    scenes = made_scenes(6, 0)
    spoilt = [
        EncodedScene(
            np.concatenate((scene.tokens, np.full((1, 9, 6), 1e3, np.float32))),
            np.concatenate((scene.label, np.full((4, 36), 255))),
        )
        for scene in scenes
    ]
    one, other = (patch_probe(some, 3).probe for some in (scenes, spoilt))
    np.testing.assert_allclose(one.mean, other.mean)
    blank = [EncodedScene(scenes[0].tokens, np.full((24, 36), 255))]
    with pytest.raises(DataError, match="no patch of the training scenes has a label"):
        patch_probe(blank, 3)


def test_a_probe_of_some_patches_is_a_function_of_the_seed():
    scenes = made_scenes(8, 0)
    one, same, other = (
        patch_probe(scenes, 3, most=60, seed=seed).probe.weight for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_the_commonest_class_is_a_segmenter():
    found = confusions(constant(2, 3), made_scenes(2, 0), 3).sum(0)
    assert found[:, :2].sum() == 0
    assert found[:, 2].sum() > 0


SHORT = DecoderConfig(width=16, steps=60, validate_every=10)


def test_a_decoder_sees_what_single_patches_do_not_tell():
    """Two classes of patches that only their neighbours tell apart."""
    g = np.random.default_rng(0)

    def scenes(n):
        found = []
        for _ in range(n):
            marks = np.zeros((6, 8, 2), np.float32)
            side = g.integers(0, 2)  # a mark in one corner says what the middle is
            marks[2:4, 1 if side else 6, 0] = 3
            marks[..., 1] = 0.1 * g.normal(size=(6, 8))
            label = np.full((24, 32), 2)
            label[8:16, 8:24] = side
            found.append(EncodedScene(marks, label))
        return found

    train, test = scenes(24), scenes(12)
    linear = segmentation(confusions(patch_probe(train, 3), test, 3).sum(0))
    decoder = train_decoder(train, 3, replace(SHORT, steps=150), seed=0)
    found = segmentation(confusions(decoder, test, 3).sum(0))
    assert found.mean_iou > linear.mean_iou + 0.1


def test_the_best_validation_is_what_is_kept(monkeypatch):
    states = {}
    forward = Decoder.forward

    def watched(self, tokens, size):
        if not torch.is_grad_enabled():
            states[len(states)] = {k: v.clone() for k, v in self.state_dict().items()}
        return forward(self, tokens, size)

    monkeypatch.setattr(Decoder, "forward", watched)
    noise, g = made_scenes(6, 0), np.random.default_rng(0)
    for scene in noise:
        scene.label[:] = g.integers(0, 3, scene.label.shape)
    done = train_decoder(noise, 3, replace(SHORT, validate_every=5, learning_rate=0.03))
    steps, losses = zip(*done.losses, strict=True)
    assert done.step < steps[-1]  # else the case shows nothing
    best = int(np.argmin(losses))
    assert done.step == steps[best]
    for name, value in done.decoder.state_dict().items():
        assert torch.equal(value, states[best][name])


def test_training_stops_when_validation_no_longer_gets_better():
    noise = made_scenes(6, 0)
    g = np.random.default_rng(0)
    for scene in noise:
        scene.label[:] = g.integers(0, 3, scene.label.shape)
    config = replace(SHORT, steps=400, validate_every=5, patience=2, learning_rate=0.03)
    done = train_decoder(noise, 3, config)
    assert done.losses[-1][0] < 400
    assert done.losses[-1][0] - done.step == 10


def test_a_decoder_is_a_function_of_the_seed_and_leaves_torchs_alone():
    scenes = made_scenes(5, 0)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    config = replace(SHORT, steps=5)
    one = train_decoder(scenes, 3, config, seed=1).decoder.state_dict()
    assert torch.equal(torch.rand(1), expected)
    same = train_decoder(scenes, 3, config, seed=1).decoder.state_dict()
    other = train_decoder(scenes, 3, config, seed=2).decoder.state_dict()
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not torch.equal(one["project.weight"], other["project.weight"])


def test_scenes_of_several_sizes_train_together():
    scenes = made_scenes(6, 0)
    scenes[0] = EncodedScene(scenes[0].tokens[:4], scenes[0].label[:16])
    done = train_decoder(scenes, 3, replace(SHORT, steps=8))
    assert done(scenes[0].tokens, (16, 36)).shape == (16, 36, 3)
    assert np.isfinite([loss for _, loss in done.losses]).all()


def test_a_scene_without_labels_and_a_single_scene():
    scenes = [EncodedScene(one.tokens, np.full_like(one.label, 255)) for one in made_scenes(3, 0)]
    done = train_decoder(scenes, 3, replace(SHORT, steps=3))
    assert all(torch.isfinite(value).all() for value in done.decoder.state_dict().values())
    with pytest.raises(DataError, match="1 training scenes; a decoder needs two"):
        train_decoder(scenes[:1], 3)
    with pytest.raises(ConfigError, match="width is 12; allowed: a multiple of 8"):
        DecoderConfig(width=12)


# ---- tables


def test_tables_hold_every_encoder_and_class():
    scenes = made_scenes(5, 0)
    probe = patch_probe(scenes, 3)
    test = made_scenes(6, 1)
    found = {
        "trained": confusions(probe, test, 3),
        "untrained twin": confusions(probe, test, 3),
        "raw pixels": confusions(constant(0, 3), test, 3),
    }
    table = segmentation_table("linear probe", found, train=5)
    assert [row[0] for row in table.rows] == list(found)
    assert table.rows[0][2] == "0.000 [0.000, 0.000]"
    assert "the gain over raw pixels is the untrained network's" in table.notes[0]
    classes = class_table("linear probe", found, ("a", "b", "c"))
    assert [row[0] for row in classes.rows] == ["a", "b", "c"]
    assert sum(row[1] for row in classes.rows) == pytest.approx(1, abs=2e-3)
    with pytest.raises(DataError, match="nothing named 'raw pixels'"):
        segmentation_table("x", {name: found[name] for name in list(found)[:2]}, train=5)


# ---- folders of scenes


def test_scenes_keep_their_aspect_in_whole_patches():
    image = np.zeros((180, 240, 3), np.uint8)
    assert resized(image, 96, 8).shape == (96, 128, 3)
    assert resized(image, 100, 16).shape == (96, 128, 3)
    assert resized(image, 4, 8).shape == (8, 8, 3)


def test_a_share_of_the_rows_is_drawn_and_kept_in_order():
    rows = np.arange(100, 200)
    found = sample(rows, 0.25, seed=0)
    assert len(found) == 25
    assert set(found) < set(rows)
    assert (np.diff(found) > 0).all()
    assert not np.array_equal(found, sample(rows, 0.25, seed=1))


def test_every_encoder_goes_through_the_same_probes(data):
    from jepa_vision.data.folders import find_scenes

    scenes = find_scenes(data("vision") / "camvid")
    train, test = scene_parts(scenes, most=14)
    splits = np.array(scenes.pictures.splits)
    assert set(splits[train]) == {"train"}
    assert set(splits[test]) == {"test"}
    encoders = {
        "trained": lambda images: raw_patches(16)(images)[..., :30],
        "untrained twin": lambda images: raw_patches(16)(images)[..., :6],
        "raw pixels": raw_patches(16),
    }
    found = segment(
        encoders, scenes, train, test, SceneConfig(96, 16), replace(SHORT, steps=20), show=[0, 2]
    )
    tables = found.tables()
    assert list(tables) == ["patches", "patches-classes", "decoder", "decoder-classes"]
    assert [row[0] for row in tables["patches"].rows] == [*encoders, "commonest class"]
    for maps in found.predicted.values():
        assert [one.shape for one in maps] == [(180, 240)] * 2
    with pytest.raises(DataError, match="two to train on"):
        scene_parts(find_scenes(data("vision") / "camvid", split="train"), most=1)


# ---- backbone

MODEL = ModelConfig(
    image=(32, 48), patch=8, dim=16, depth=6, heads=2, predictor_dim=8, predictor_depth=1
)


def test_a_backbone_gives_maps_of_three_strides():
    torch.manual_seed(0)
    encoder = ImageEncoder(MODEL)
    image = torch.randn(2, 3, 32, 48)
    maps = Backbone(encoder)(image)
    assert {name: tuple(x.shape) for name, x in maps.items()} == {
        "0": (2, 16, 8, 12),
        "1": (2, 16, 4, 6),
        "2": (2, 16, 2, 3),
    }
    middle = encoder.features(image, (4,))[0]
    np.testing.assert_allclose(
        maps["1"].detach().flatten(2).transpose(1, 2), middle.detach(), atol=1e-6
    )
    sum(x.sum() for x in maps.values()).backward()
    assert encoder.patch_embed.proj.weight.grad.abs().max() > 0


def test_a_backbone_pads_what_is_no_whole_patch():
    maps = Backbone(ImageEncoder(MODEL), levels=1)(torch.randn(1, 3, 33, 41))
    assert maps["0"].shape == (1, 16, 5, 6)


def test_levels_end_equal_parts_of_the_encoder():
    assert pyramid_layers(12) == (4, 8, 12)
    assert pyramid_layers(4) == (1, 3, 4)
    assert pyramid_layers(32, 4) == (8, 16, 24, 32)
    with pytest.raises(ConfigError, match="5 levels of an encoder of 4 blocks"):
        pyramid_layers(4, 5)


def test_a_detector_takes_the_backbone():
    detection = pytest.importorskip("torchvision.models.detection")
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    torch.manual_seed(0)
    model = detection.FasterRCNN(
        Backbone(ImageEncoder(MODEL)),
        num_classes=2,
        rpn_anchor_generator=AnchorGenerator(((16,), (32,), (64,)), ((1.0,),) * 3),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], 2, 2),
        min_size=64,
        max_size=96,
        box_detections_per_img=5,
    )
    boxes = {"boxes": torch.tensor([[4.0, 4.0, 30.0, 30.0]]), "labels": torch.tensor([1])}
    losses = model([torch.rand(3, 64, 96)], [boxes])
    sum(losses.values()).backward()
    assert model.backbone.encoder.blocks[0].attn.qkv.weight.grad is not None
