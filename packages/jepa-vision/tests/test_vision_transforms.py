"""Crops, resizing, normalisation, statistics and augmentation."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as F

from jepa_core import rng
from jepa_core.errors import ConfigError, DataError
from jepa_vision.data import augment as aug
from jepa_vision.data.folders import ImageFolder
from jepa_vision.data.images import ArrayImages, load_image
from jepa_vision.data.transforms import (
    RATIO,
    SCALE,
    centre,
    centres,
    crop_boxes,
    crops,
    measure_statistics,
    normalise,
    official_boxes,
    resized_crop,
    warn_tiny,
)
from jepa_vision.presets import AugmentConfig

Data = Callable[[str], Path]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    random = np.random.default_rng(0)
    if dtype == np.uint8:
        return random.integers(0, 256, shape, np.uint8)
    return random.random(shape).astype(np.float32)


# --- boxes -----------------------------------------------------------------------------------


def test_official_boxes_and_crops_are_those_of_the_program(data: Data) -> None:
    golden = np.load(data("vision") / "golden/golden_transform.npz")
    image = golden["image"]
    torch.manual_seed(0)
    boxes = official_boxes(image.shape[:2], 4)
    np.testing.assert_array_equal(boxes, golden["boxes_ijhw"])
    cut = np.stack([resized_crop(image, box, (64, 64)) for box in boxes])
    np.testing.assert_allclose(normalise(cut, MEAN, STD), golden["outputs"], atol=1e-6)


def test_the_goldfish_is_decoded_as_the_program_decoded_it(data: Data) -> None:
    golden = np.load(data("vision") / "golden/golden_transform.npz")
    image = load_image(data("vision") / "imagenet_samples/n01443537_goldfish.JPEG")
    assert np.abs(image.astype(int) - golden["image"]).max() <= 2


@pytest.mark.parametrize("size", [(263, 376), (8, 300), (300, 8), (1, 1), (2, 1)])
def test_official_boxes_are_those_of_torchvision(size: tuple[int, int]) -> None:
    image = torch.zeros(1, *size)
    torch.manual_seed(3)
    theirs = [list(RandomResizedCrop.get_params(image, SCALE, RATIO)) for _ in range(200)]
    torch.manual_seed(3)
    np.testing.assert_array_equal(official_boxes(size, 200), theirs)


def one_box(
    size: tuple[int, int], key: int, counter: int, seed: int, scale: tuple, ratio: tuple
) -> list[int]:
    """`crop_boxes` for one image, one try after the other."""
    height, width = size
    words = rng.words(seed, "crop", np.array([key]), counter, 44)[0]
    u = rng.uniform64(words[None])[0]
    for turn in range(10):
        area = height * width * (scale[0] + u[2 + 2 * turn] * (scale[1] - scale[0]))
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + u[3 + 2 * turn] * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return [int(u[0] * (height - h + 1)), int(u[1] * (width - w + 1)), h, w]
    if width / height < ratio[0]:
        h, w = max(round(width / ratio[0]), 1), width
    elif width / height > ratio[1]:
        h, w = height, max(round(height * ratio[1]), 1)
    else:
        h, w = height, width
    return [(height - h) // 2, (width - w) // 2, h, w]


def test_a_batch_of_boxes_is_that_of_one_image_after_the_other() -> None:
    random = np.random.default_rng(0)
    sizes = np.exp(random.uniform(0, 7, (300, 2))).astype(np.int32)
    keys, counters = random.integers(0, 1 << 40, 300), random.integers(0, 99, 300)
    boxes = crop_boxes(sizes, keys, counters, seed=5)
    for i in range(300):
        expected = one_box(sizes[i].tolist(), keys[i], int(counters[i]), 5, SCALE, RATIO)
        assert boxes[i].tolist() == expected


def test_a_box_depends_on_seed_image_and_visit_and_not_on_the_batch() -> None:
    sizes = np.full((8, 2), 500, np.int32)
    keys = np.arange(8)
    boxes = crop_boxes(sizes, keys, 0, seed=1)
    np.testing.assert_array_equal(crop_boxes(sizes[:3], keys[[5, 1, 7]], 0, seed=1),
                                  boxes[[5, 1, 7]])  # fmt: skip
    assert (crop_boxes(sizes, keys, 1, seed=1) != boxes).any(1).all()
    assert (crop_boxes(sizes, keys, 0, seed=2) != boxes).any(1).all()


@given(
    sizes=st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), min_size=1, max_size=30),
    low=st.floats(0.01, 1),
    ratio=st.tuples(st.floats(0.2, 1), st.floats(1, 5)),
)
def test_a_box_lies_in_its_image(
    sizes: list[tuple[int, int]], low: float, ratio: tuple[float, float]
) -> None:
    shape = np.array(sizes, np.int32)
    boxes = crop_boxes(shape, np.arange(len(sizes)), 0, seed=0, scale=(low, 1.0), ratio=ratio)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= shape).all()


def test_areas_aspects_and_places_are_distributed_as_the_official_ones(data: Data) -> None:
    golden = np.load(data("vision") / "golden/golden_transform.npz")
    n, size = 20_000, golden["image"].shape[:2]
    boxes = crop_boxes(np.tile(size, (n, 1)), np.arange(n), 0, seed=0).astype(float)
    area = boxes[:, 2] * boxes[:, 3] / (size[0] * size[1])
    mean, std, least, largest = golden["area_stats"]
    assert area.mean() == pytest.approx(mean, rel=0.02)
    assert area.std() == pytest.approx(std, rel=0.02)
    assert area.min() == pytest.approx(least, rel=0.02)
    assert area.max() == pytest.approx(largest, rel=0.03)
    log_ratio = np.log(boxes[:, 3] / boxes[:, 2])
    # Its standard error at 20,000 draws is 0.0011.
    assert log_ratio.mean() == pytest.approx(float(golden["log_ratio_mean"]), abs=0.004)
    for axis in (0, 1):
        room = size[axis] - boxes[:, 2 + axis]
        place = (boxes[:, axis] + 0.5) / (room + 1)
        assert place.mean() == pytest.approx(0.5, abs=0.01)
        assert place.var() == pytest.approx(1 / 12, abs=0.003)
    assert boxes[:, 0].min() == 0
    assert (boxes[:, 0] + boxes[:, 2]).max() == size[0]


# --- resizing --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (20, 90), (300, 200)])
def test_a_resized_crop_is_pillows(size: tuple[int, int]) -> None:
    image = noise(120, 150, 3)
    box = (11, 7, 80, 101)
    theirs = F.resized_crop(Image.fromarray(image), *box, size, InterpolationMode.BILINEAR)
    np.testing.assert_array_equal(resized_crop(image, box, size), np.asarray(theirs))


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_channels_are_resized_apart(channels: int) -> None:
    image = noise(50, 60, channels)
    out = resized_crop(image, (5, 3, 40, 50), (32, 24))
    assert out.shape == (32, 24, channels)
    for c in range(channels):
        three = np.repeat(image[..., c : c + 1], 3, 2)
        np.testing.assert_array_equal(
            out[..., c], resized_crop(three, (5, 3, 40, 50), (32, 24))[..., 0]
        )


def test_floating_point_keeps_its_range() -> None:
    image = noise(50, 60, 5, dtype=np.float32) * 1000 - 500
    out = resized_crop(image, (0, 0, 50, 60), (25, 30))
    twin = torch.nn.functional.interpolate(
        torch.from_numpy(image).double().permute(2, 0, 1)[None],
        (25, 30), mode="bilinear", antialias=True,
    )[0].permute(1, 2, 0).numpy()  # fmt: skip
    np.testing.assert_allclose(out, twin, atol=1e-3)


def test_a_crop_of_the_right_size_is_copied() -> None:
    image = noise(30, 30, 3)
    out = resized_crop(image, (2, 3, 10, 12), (10, 12))
    np.testing.assert_array_equal(out, image[2:12, 3:15])
    out[:] = 0
    assert image[2:12, 3:15].any()


def test_exact_crops_of_a_batch_are_those_of_each_image() -> None:
    images = ArrayImages(noise(6, 90, 110, 3))
    ids = np.array([4, 0, 4])
    boxes = crop_boxes(images.sizes[ids], ids, 0, seed=0)
    out = crops(images, ids, boxes, (48, 32), exact=True)
    for slot, i in enumerate(ids):
        np.testing.assert_array_equal(
            out[slot], resized_crop(images.read(i), boxes[slot], (48, 32))
        )


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("size", [(224, 224), (24, 40)])
def test_fast_crops_are_at_most_one_of_255_away(channels: int, size: tuple[int, int]) -> None:
    images = ArrayImages(noise(6, 90, 110, channels))
    ids = np.arange(6)
    boxes = crop_boxes(images.sizes, ids, 0, seed=0)
    exact = crops(images, ids, boxes, size, exact=True).astype(int)
    fast = crops(images, ids, boxes, size).astype(int)
    assert np.abs(fast - exact).max() <= 1
    assert (fast != exact).mean() < 0.05


def test_fast_crops_of_floating_point_are_exact_up_to_rounding() -> None:
    images = ArrayImages(noise(3, 90, 110, 2, dtype=np.float32))
    ids = np.arange(3)
    boxes = crop_boxes(images.sizes, ids, 0, seed=0)
    fast, exact = (crops(images, ids, boxes, (32, 32), exact=flag) for flag in (False, True))
    np.testing.assert_allclose(fast, exact, atol=1e-5)


def smooth(height: int, width: int) -> Image.Image:
    small = noise(height // 64, width // 64, 3)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def test_crops_of_files_decoded_small_show_the_same(tmp_path: Path) -> None:
    for i, size in enumerate([(400, 640), (640, 400), (333, 517)]):
        smooth(*size).save(tmp_path / f"{i}.jpg", quality=95)
    images = ImageFolder(tmp_path)
    ids = np.arange(3)
    boxes = crop_boxes(images.sizes, ids, 0, seed=0, scale=(0.6, 1.0))
    exact = crops(images, ids, boxes, (64, 64), exact=True).astype(int)
    fast = crops(images, ids, boxes, (64, 64)).astype(int)
    assert (fast != exact).any()
    assert np.abs(fast - exact).mean() < 3


def test_crops_of_nothing_have_the_right_shape() -> None:
    images = ArrayImages(noise(2, 8, 8, 3))
    none = np.zeros(0, np.int64)
    assert crops(images, none, np.zeros((0, 4), np.int64), (4, 5)).shape == (0, 4, 5, 3)
    assert centres(images, none, (4, 5)).shape == (0, 4, 5, 3)


@pytest.mark.parametrize("shape", [(500, 375), (375, 500), (256, 256), (72, 72), (40, 300)])
def test_the_middle_of_an_image_is_torchvisions(shape: tuple[int, int]) -> None:
    image = noise(*shape, 3)
    theirs = F.center_crop(F.resize(Image.fromarray(image), 256), [224, 224])
    np.testing.assert_array_equal(centre(image, (224, 224)), np.asarray(theirs))


@given(
    shape=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    size=st.tuples(st.integers(1, 80), st.integers(1, 80)),
)
def test_a_middle_fits_any_image_and_any_size(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    assert centre(noise(*shape, 1), size).shape == (*size, 1)


def test_middles_of_a_batch_are_those_of_each_image(tmp_path: Path) -> None:
    for i, size in enumerate([(400, 640), (320, 480)]):
        smooth(*size).save(tmp_path / f"{i}.jpg", quality=95)
    images = ImageFolder(tmp_path)
    ids = np.array([1, 0])
    exact = centres(images, ids, (64, 48))
    for slot, i in enumerate(ids):
        np.testing.assert_array_equal(exact[slot], centre(images.read(i), (64, 48)))
    fast = centres(images, ids, (64, 48), exact=False)
    assert 0 < np.abs(fast.astype(int) - exact).mean() < 3


# --- values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_normalising_is_subtracting_and_dividing(channels: int) -> None:
    random = np.random.default_rng(1)
    mean, std = random.random(channels), random.uniform(0.1, 1, channels)
    x = noise(2, 16, 17, channels)
    twin = ((x.astype(np.float64) / 255 - mean) / std).transpose(0, 3, 1, 2)
    out = normalise(x, mean, std)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, twin, atol=1e-6)
    same = normalise((x / 255).astype(np.float32), mean, std)
    np.testing.assert_allclose(same, twin, atol=2e-6)


def test_every_8_bit_value_normalises_as_the_official_way() -> None:
    x = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    pixels = torch.from_numpy(x.transpose(0, 3, 1, 2)).float().div(255)
    theirs = F.normalize(pixels, MEAN, STD).numpy()
    np.testing.assert_allclose(normalise(x, MEAN, STD), theirs, atol=1e-6)


def test_statistics_of_another_number_of_channels_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 channels for images of 4"):
        normalise(noise(1, 2, 2, 4), MEAN, STD)


def test_the_statistics_of_the_training_images_are_the_published_ones(data: Data) -> None:
    images = ImageFolder(data("vision") / "caltech10", split="train")
    mean, std = measure_statistics(images)
    np.testing.assert_allclose(mean, (0.551, 0.532, 0.481), atol=2e-3)
    np.testing.assert_allclose(std, (0.306, 0.300, 0.320), atol=6e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_statistics_are_those_of_all_pixels(dtype: type) -> None:
    array = noise(5, 7, 9, 4, dtype=dtype)
    array[..., 3] = 3
    mean, std = measure_statistics(ArrayImages(array), np.array([0, 2]))
    values = array[[0, 2]].astype(np.float64) / (255 if dtype == np.uint8 else 1)
    np.testing.assert_allclose(mean, values.mean((0, 1, 2)), atol=1e-12)
    np.testing.assert_allclose(std[:3], values.std((0, 1, 2))[:3], atol=1e-9)
    assert std[3] == 1


def test_statistics_of_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="no images"):
        measure_statistics(ArrayImages(noise(0, 2, 2, 3)))


def test_tiny_images_are_counted_and_warned_of_once() -> None:
    sizes = np.array([[55, 900], [56, 56], [900, 12]], np.int32)
    with pytest.warns(UserWarning, match="2 of 3 images") as caught:
        assert warn_tiny(sizes, (224, 224)) == 2
    assert len(caught) == 1


@pytest.mark.filterwarnings("error")
def test_images_that_are_large_enough_cause_no_warning() -> None:
    assert warn_tiny(np.array([[56, 56]], np.int32), (224, 224)) == 0
    assert warn_tiny(np.zeros((0, 2), np.int32), (224, 224)) == 0


# --- augmentation ----------------------------------------------------------------------------


def as_torch(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def colours() -> np.ndarray:
    """Random colours, greys, black, white and ties between channels."""
    x = noise(4, 12, 10, 3, dtype=np.float32)
    x[0, 0] = x[0, 0, :, :1]
    x[1, 0], x[1, 1] = 0, 1
    x[2, 0, :, 1] = x[2, 0, :, 0]
    x[3, 0, :, 2] = x[3, 0, :, 1]
    return x


@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (aug.brightness, F.adjust_brightness, (0.0, 0.4, 1.0, 1.8)),
        (aug.contrast, F.adjust_contrast, (0.0, 0.4, 1.0, 1.8)),
        (aug.saturation, F.adjust_saturation, (0.0, 0.4, 1.0, 1.8)),
        (aug.hue, F.adjust_hue, (-0.2, 0.0, 0.07, 0.5)),
    ],
)
def test_colours_change_as_torchvision_defines(
    ours: Callable, theirs: Callable, factors: tuple[float, ...]
) -> None:
    x = colours()
    out = ours(x, np.array(factors, np.float32))
    assert out.dtype == np.float32
    expected = torch.stack([theirs(x_, f) for x_, f in zip(as_torch(x), factors, strict=True)])
    np.testing.assert_allclose(out, expected.numpy().transpose(0, 2, 3, 1), atol=2e-6)


def test_grey_is_torchvisions() -> None:
    x = colours()
    expected = F.rgb_to_grayscale(as_torch(x), 3).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(aug.greyscale(x), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(20, 30), (8, 8)])
def test_blur_is_torchvisions(shape: tuple[int, int]) -> None:
    x = noise(3, *shape, 3, dtype=np.float32)
    sigma = np.array([0.1, 0.9, 2.0], np.float32)
    out = aug.blur(x, sigma)
    for i in range(3):
        expected = F.gaussian_blur(as_torch(x[i : i + 1]), [13, 13], [float(sigma[i])] * 2)
        np.testing.assert_allclose(out[i], expected[0].permute(1, 2, 0), atol=1e-5)


def test_the_order_of_jitter_is_followed() -> None:
    x = noise(2, 6, 6, 3, dtype=np.float32)
    factors = np.array([[0.5, 1.5, 0.3, 0.1], [1.2, 0.4, 1.6, -0.1]], np.float32)
    order = np.array([[3, 1, 0, 2], [0, 2, 3, 1]])
    out = aug.jitter(x, factors, order)
    steps = (aug.brightness, aug.contrast, aug.saturation, aug.hue)
    for i in range(2):
        one = x[i : i + 1]
        for which in order[i]:
            one = steps[which](one, factors[i : i + 1, which])
        np.testing.assert_allclose(out[i], one[0], atol=1e-6)


def test_without_augmentation_nothing_changes() -> None:
    x = noise(3, 8, 8, 3)
    assert aug.augment(x, np.arange(3), 0, AugmentConfig(), seed=0) is x


def test_half_the_images_are_mirrored_and_the_others_stay() -> None:
    x = noise(400, 4, 6, 2)
    out = aug.augment(x, np.arange(400), 0, AugmentConfig(flip=0.5), seed=0)
    assert out.dtype == np.uint8
    same = (out == x).all((1, 2, 3))
    mirrored = (out == x[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_colours_change_in_four_fifths_and_one_fifth_turns_grey() -> None:
    x = noise(1, 8, 8, 3).repeat(1000, 0)
    out = aug.augment(x, np.arange(1000), 0, AugmentConfig(jitter=0.5), seed=0)
    same = np.isclose(out, x / 255, atol=1e-6).all((1, 2, 3))
    grey = (out[..., 0] == out[..., 1]).all((1, 2)) & (out[..., 1] == out[..., 2]).all((1, 2))
    assert same.mean() == pytest.approx(0.2 * 0.8, abs=0.04)
    assert grey.mean() == pytest.approx(0.2, abs=0.04)
    assert out.dtype == np.float32
    assert (out.min(), out.max()) == (pytest.approx(0, abs=0.01), pytest.approx(1, abs=0.01))


def test_the_reach_of_jitter_is_its_strength() -> None:
    words = rng.words(0, "jitter", np.arange(4000), 0, 4)
    factors = aug._factors(words, 0.5)
    np.testing.assert_allclose(factors.min(0), (0.6, 0.6, 0.6, -0.1), atol=2e-3)
    np.testing.assert_allclose(factors.max(0), (1.4, 1.4, 1.4, 0.1), atol=2e-3)
    assert aug._factors(words, 1.0)[:, 0].min() >= 0.2 - 1e-6


def test_half_the_images_are_blurred() -> None:
    x = noise(300, 8, 8, 3)
    out = aug.augment(x, np.arange(300), 0, AugmentConfig(blur=0.5), seed=0)
    # A radius below 0.2 pixels changes nothing that can be seen.
    changed = ~np.isclose(out, x / 255, atol=1e-6).all((1, 2, 3))
    assert changed.mean() == pytest.approx(0.5, abs=0.1)


def test_an_image_is_augmented_alike_in_every_batch() -> None:
    x = noise(16, 16, 16, 3)
    config = AugmentConfig(flip=0.5, jitter=0.5, blur=0.5)
    keys = np.arange(16)
    whole = aug.augment(x, keys, 3, config, seed=1)
    some = np.array([9, 2, 11])
    np.testing.assert_array_equal(aug.augment(x[some], keys[some], 3, config, seed=1), whole[some])
    assert (aug.augment(x, keys, 4, config, seed=1) != whole).any()


def test_floating_point_input_is_left_as_it_is() -> None:
    x = noise(4, 8, 8, 3, dtype=np.float32)
    before = x.copy()
    aug.augment(x, np.arange(4), 0, AugmentConfig(jitter=1.0, blur=1.0), seed=0)
    np.testing.assert_array_equal(x, before)
