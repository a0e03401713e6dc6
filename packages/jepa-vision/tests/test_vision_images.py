"""One image file at a time: pixels, or an error that names it."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from jepa_core.errors import ConfigError, DataError
from jepa_vision.data.images import (
    FRAMES,
    ArrayImages,
    ImageReadError,
    ReadOptions,
    load_image,
    read_header,
    read_image,
)

Data = Callable[[str], Path]

ODD = (
    "16_bit_noise.tif",
    "16bit.cropped.tif",
    "16bit.r.tif",
    "apng_delay.png",
    "apng_mode_16bit.png",
    "apng_mode_grayscale_alpha.png",
    "apng_mode_palette_alpha.png",
    "broken.png",
    "broken_data_stream.png",
    "broken_exif_dpi.jpg",
    "decompression_bomb.gif",
    "dispose_bgnd.gif",
    "exif-dpi-zerodivision.jpg",
    "hopper.bmp",
    "hopper.gif",
    "hopper.webp",
    "hopper_16bit.pgm",
    "hopper_1bit.pbm",
    "hopper_bw_500.png",
    "hopper_orientation_3.jpg",
    "hopper_orientation_6.jpg",
    "hopper_orientation_8.webp",
    "invalid-exif.jpg",
    "l_trns.png",
    "multipage.tiff",
    "no_palette.gif",
    "orientation_rectangle.jpg",
    "palette_negative.png",
    "pil123rgba.png",
    "pil_sample_cmyk.jpg",
    "truncated_image.png",
    "truncated_jpeg.jpg",
)


def expectations(folder: Path) -> dict[str, dict[str, Any]]:
    return {e["file"]: e for e in json.loads((folder / "expected.json").read_text())}


def test_the_list_of_odd_files_is_whole(data: Data) -> None:
    assert sorted(expectations(data("vision") / "odd")) == sorted(ODD)


@pytest.mark.parametrize("compat", ["none", "official"])
@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_reads_as_published(data: Data, name: str, compat: Any) -> None:
    folder = data("vision") / "odd"
    expected = expectations(folder)[name]
    if expected["result"] == "reject":
        with pytest.raises(ImageReadError) as caught:
            load_image(folder / name, compat=compat)
        assert caught.value.file == str(folder / name)
        assert caught.value.reason
        assert caught.value.remedy
        return
    prefix = "official_loader_" if compat == "official" else ""
    pixels = load_image(folder / name, compat=compat)
    assert pixels.dtype == np.uint8
    assert [pixels.shape[1], pixels.shape[0]] == expected[f"{prefix}size"]
    lossy = expected["format"] in ("JPEG", "WEBP")
    np.testing.assert_allclose(
        pixels.mean((0, 1)), expected[f"{prefix}mean_rgb"], atol=1.5 if lossy else 0.05
    )


@pytest.mark.parametrize("name", ODD)
def test_a_header_tells_size_frames_and_mode(data: Data, name: str) -> None:
    folder = data("vision") / "odd"
    expected = expectations(folder)[name]
    with open(folder / name, "rb") as file:
        if "format" not in expected:
            with pytest.raises(ImageReadError):
                read_header(file, name)
            return
        header = read_header(file, name)
    size = expected["size"] if expected["result"] == "ok" else expected["stored_size"]
    assert [header.width, header.height] == size
    assert header.kind == f"{expected['format']} {expected['mode']}"
    assert header.notes == ((FRAMES,) if expected["frames"] > 1 else ())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "jpg"])
def test_every_orientation_is_turned_as_pillow_turns_it(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 16, 3)).repeat(8, 0).repeat(8, 1)
    image = Image.fromarray(pixels.astype(np.uint8))
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"x.{suffix}"
    image.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    with Image.open(path) as stored:
        upright = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    np.testing.assert_array_equal(load_image(path), upright)
    with open(path, "rb") as file:
        assert read_header(file, path)[:2] == upright.shape[:2]
    assert upright.shape[:2] == ((64, 128) if orientation < 5 else (128, 64))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_16_bits_are_scaled_by_257(tmp_path: Path, mode: str) -> None:
    values = np.array([[0, 128, 129, 257 * 100, 65535]], np.uint16)
    path = tmp_path / "x.tif"
    if mode == "I":
        Image.fromarray(values.astype(np.int32)).save(path)
    else:
        order = ">u2" if mode == "I;16B" else "<u2"
        Image.frombytes(mode, (5, 1), values.astype(order).tobytes()).save(path)
    reading = read_image(io.BytesIO(path.read_bytes()), path)
    np.testing.assert_array_equal(reading.pixels[0, :, 1], [0, 0, 1, 100, 255])
    assert reading.notes == ("have 16 bits, scaled by 1/257",)


def test_a_stretch_maps_least_and_largest_to_black_and_white(tmp_path: Path) -> None:
    values = np.arange(1000, 1103, 2).astype(np.uint16)[None]
    Image.fromarray(values).save(tmp_path / "x.png")
    grey = load_image(tmp_path / "x.png", stretch="minmax")[0, :, 0]
    np.testing.assert_array_equal(grey, np.arange(0, 256, 5))
    cut = load_image(tmp_path / "x.png", stretch="percentile")[0, :, 0]
    assert (cut[0], cut[-1]) == (0, 255)
    assert (cut[1:-1] != grey[1:-1]).any()
    limits = np.percentile(values, (1, 99))
    wanted = np.clip((values[0] - limits[0]) / (limits[1] - limits[0]), 0, 1) * 255
    np.testing.assert_array_equal(cut, np.rint(wanted))
    mapped = load_image(tmp_path / "x.png", value_range=(1051.0, 1102.0))[0, :, 0]
    np.testing.assert_array_equal(mapped, np.clip((values[0] - 1051.0) * 5, 0, 255))


def test_what_was_applied_is_said(tmp_path: Path) -> None:
    Image.fromarray(np.arange(100, dtype=np.uint16).reshape(10, 10)).save(tmp_path / "x.png")
    raw = (tmp_path / "x.png").read_bytes()
    for options, words in (
        (ReadOptions(stretch="minmax"), "least and largest"),
        (ReadOptions(stretch="percentile"), "1st and 99th percentile"),
        (ReadOptions(value_range=(0.0, 50.0)), "mapped from 0..50"),
    ):
        (note,) = read_image(io.BytesIO(raw), "x", options).notes
        assert words in note


def test_an_image_of_one_value_stretches_to_black(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 900, np.uint16)).save(tmp_path / "x.png")
    assert not load_image(tmp_path / "x.png", stretch="minmax").any()


def test_8_bits_are_not_stretched(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 9, np.uint8)).save(tmp_path / "x.png")
    assert (load_image(tmp_path / "x.png", stretch="minmax") == 9).all()


def test_values_beyond_16_bits_need_a_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 70_000]], np.int32)).save(tmp_path / "x.tif")
    with pytest.raises(ImageReadError, match=r"values from 0 to 70000.*value_range"):
        load_image(tmp_path / "x.tif")
    assert load_image(tmp_path / "x.tif", value_range=(0.0, 70_000.0))[0, 1, 0] == 255


def test_floating_point_needs_a_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-1.0, 0.0, 1.0]], np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(ImageReadError, match=r"x\.tif: floating-point values; give a value_range"):
        load_image(tmp_path / "x.tif")
    mapped = load_image(tmp_path / "x.tif", value_range=(-1.0, 1.0))
    np.testing.assert_array_equal(mapped[0, :, 0], [0, 128, 255])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_unfinite_values_are_refused_with_their_number(tmp_path: Path, bad: float) -> None:
    values = np.zeros((5, 4), np.float32)
    values[1, 1:] = bad
    Image.fromarray(values).save(tmp_path / "x.tif")
    np.save(tmp_path / "x.npy", values)
    for name in ("x.tif", "x.npy"):
        with pytest.raises(ImageReadError, match="3 of 20 values are NaN or infinite"):
            load_image(tmp_path / name, value_range=(0.0, 1.0))


def test_options_that_contradict_are_refused() -> None:
    with pytest.raises(ConfigError, match="give one of the two"):
        ReadOptions(stretch="minmax", value_range=(0.0, 1.0))
    with pytest.raises(ConfigError, match="smaller value first"):
        ReadOptions(value_range=(1.0, 1.0))
    with pytest.raises(ConfigError):
        ReadOptions(stretch="log")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_three_channels_of_8_bits(tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (9, 7, 3), np.uint8)).convert(mode)
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    image.save(tmp_path / f"x.{suffix}")
    pixels = load_image(tmp_path / f"x.{suffix}")
    assert (pixels.shape, pixels.dtype) == ((9, 7, 3), np.dtype(np.uint8))


def test_alpha_is_dropped_and_not_blended(tmp_path: Path) -> None:
    values = np.full((4, 4, 4), 200, np.uint8)
    values[..., 3] = 0
    Image.fromarray(values).save(tmp_path / "x.png")
    assert (load_image(tmp_path / "x.png") == 200).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("form", ["npy", "npz", "fortran"])
def test_an_array_of_any_number_of_channels_is_an_image(
    tmp_path: Path, dtype: str, form: str
) -> None:
    values = (np.random.default_rng(0).random((24, 20, 5)) * 200).astype(dtype)
    path = tmp_path / ("x.npz" if form == "npz" else "x.npy")
    if form == "npz":
        np.savez_compressed(path, anything=values)
    else:
        np.save(path, np.asfortranarray(values) if form == "fortran" else values)
    pixels = load_image(path)
    wanted = values if dtype == "uint8" else values.astype(np.float32)
    if dtype == "uint16":
        wanted = wanted / np.float32(65535)
    np.testing.assert_array_equal(pixels, wanted)
    assert pixels.dtype == (np.uint8 if dtype == "uint8" else np.float32)
    with open(path, "rb") as file:
        assert read_header(file, path)[:3] == (24, 20, 5)


def test_a_flat_array_has_one_channel(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((5, 6), np.uint8))
    assert load_image(tmp_path / "x.npy").shape == (5, 6, 1)


def test_the_bands_of_an_array_are_stretched_apart(tmp_path: Path) -> None:
    values = np.stack((np.arange(400), np.arange(400) * 100), 1).astype(np.uint16)
    np.save(tmp_path / "x.npy", values.reshape(20, 20, 2))
    mapped = load_image(tmp_path / "x.npy", stretch="minmax").reshape(400, 2)
    np.testing.assert_allclose(mapped[:, 0], np.arange(400) / 399, atol=1e-6)
    np.testing.assert_allclose(mapped[:, 1], mapped[:, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros((4, 64, 64), np.uint8), "channels came first"),
        (np.zeros((2, 3, 4, 5), np.uint8), r"the shape \[2, 3, 4, 5\]"),
        (np.zeros(7, np.uint8), r"the shape \[7\]"),
        (np.zeros((0, 5, 3), np.uint8), r"the shape \[0, 5, 3\]"),
        (np.zeros((5, 5), np.int32), "an array of int32"),
        (np.zeros((5, 5), bool), "an array of bool"),
        (np.zeros((5, 5), np.complex64), "an array of complex64"),
        (np.zeros(5, [("a", "u1")]), "an array of"),
    ],
)
def test_an_array_that_is_no_image_is_refused(
    tmp_path: Path, values: np.ndarray, reason: str
) -> None:
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(ImageReadError, match=reason):
        load_image(tmp_path / "x.npy")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    np.save(tmp_path / "x.npy", np.array([[Trap()]], object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", np.array([[Trap()]], object))
    for name in ("x.npy", "x.npz"):
        with pytest.raises(ImageReadError, match="an array of object"):
            load_image(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_a_header_that_promises_more_than_the_file_allocates_nothing(tmp_path: Path) -> None:
    with open(tmp_path / "x.npy", "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (1 << 20, 1 << 20, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(b"\0" * 10)
    with pytest.raises(ImageReadError, match="truncated: 10 bytes of"):
        load_image(tmp_path / "x.npy")


def test_several_arrays_in_one_file_need_one_called_image(tmp_path: Path) -> None:
    one, two = np.zeros((3, 3), np.uint8), np.ones((4, 4), np.uint8)
    np.savez(tmp_path / "x.npz", one=one, two=two)
    with pytest.raises(ImageReadError, match="there are one, two"):
        load_image(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", one=one, image=two)
    assert load_image(tmp_path / "x.npz").shape == (4, 4, 1)


def test_an_npz_in_a_method_without_bounds_is_refused(tmp_path: Path) -> None:
    raw = io.BytesIO()
    np.save(raw, np.zeros((3, 3), np.uint8))
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_LZMA) as packed:
        packed.writestr("image.npy", raw.getvalue())
    with pytest.raises(ImageReadError, match="another method than deflate"):
        load_image(tmp_path / "x.npz")


def test_the_official_loader_reads_no_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((5, 5, 3), np.uint8))
    with pytest.raises(ImageReadError, match="reads no arrays"):
        load_image(tmp_path / "x.npy", compat="official")


@pytest.mark.parametrize(
    ("content", "reason", "remedy"),
    [
        (b"", "the file is empty", "replace it"),
        (b"hello", "no image of a known format", "replace it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS", "git lfs pull"),
        (b"\x93NUMPY\x01\x00", "damaged", "replace it"),
        (b"PK\x03\x04 no archive", "damaged", "replace it"),
        (b"\xff\xd8\xff\xe0 no jpeg", "damaged", "replace it"),
    ],
)
def test_what_is_no_image_is_named(
    tmp_path: Path, content: bytes, reason: str, remedy: str
) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(ImageReadError) as caught:
        load_image(tmp_path / "x.jpg")
    assert reason in caught.value.reason
    assert remedy in caught.value.remedy
    assert str(caught.value).startswith(str(tmp_path / "x.jpg"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match=r"x\.jpg: cannot be opened \(No such file"):
        load_image(tmp_path / "x.jpg")
    with pytest.raises(ImageReadError, match="cannot be opened"):
        load_image(tmp_path)


def test_a_bomb_is_named_with_its_size(data: Data) -> None:
    with pytest.raises(ImageReadError, match=r"too large \(Image size \(4364696535 pixels\)"):
        load_image(data("vision") / "odd/decompression_bomb.gif")


def test_the_error_survives_the_way_between_processes() -> None:
    error = ImageReadError("damaged", file=Path("a b.jpg"))
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.file, again.reason) == (str(error), "a b.jpg", "damaged")
    assert isinstance(again, DataError)


def encoded(kind: str) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    if kind == "npy":
        np.save(out, pixels)
    elif kind == "npz":
        np.savez_compressed(out, image=pixels)
    else:
        Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


WHOLE = {
    kind: encoded(kind) for kind in ("jpeg", "png", "gif", "tiff", "webp", "bmp", "npy", "npz")
}


@pytest.mark.parametrize("kind", WHOLE)
@given(
    cut=st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6),
)
@pytest.mark.filterwarnings("ignore")
def test_damage_gives_pixels_or_our_error(
    kind: str, cut: float, changes: list[tuple[float, int]]
) -> None:
    content = bytearray(WHOLE[kind])
    for place, value in changes:
        content[int(place * len(content))] = value
    content = content[: int(cut * len(content)) + 1]
    try:
        reading = read_image(io.BytesIO(bytes(content)), "x")
    except ImageReadError:
        return
    assert reading.pixels.ndim == 3


def photograph(size: tuple[int, int]) -> Image.Image:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (size[1] // 16, size[0] // 16, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("at_least", "size"), [(None, 400), (400, 400), (201, 400), (200, 200), (101, 200), (40, 50)]
)
def test_a_jpeg_is_decoded_small_enough_and_not_smaller(
    tmp_path: Path, at_least: int | None, size: int
) -> None:
    photograph((640, 400)).save(tmp_path / "x.jpg", quality=95)
    pixels = load_image(tmp_path / "x.jpg", at_least=at_least)
    assert pixels.shape == (size, size * 640 // 400, 3)
    whole = load_image(tmp_path / "x.jpg")
    step = 400 // size
    mean = whole.reshape(size, step, size * 640 // 400, step, 3).mean((1, 3))
    assert np.abs(mean - pixels).mean() < 2


def test_what_is_no_jpeg_and_what_is_official_are_decoded_whole(tmp_path: Path) -> None:
    photograph((640, 400)).save(tmp_path / "x.png")
    photograph((640, 400)).save(tmp_path / "x.jpg")
    assert load_image(tmp_path / "x.png", at_least=10).shape[:2] == (400, 640)
    assert load_image(tmp_path / "x.jpg", compat="official", at_least=10).shape[:2] == (400, 640)


def test_what_is_read_may_be_written_to(tmp_path: Path) -> None:
    photograph((64, 64)).save(tmp_path / "x.jpg")
    load_image(tmp_path / "x.jpg")[:] = 0


def test_an_array_of_images_is_a_collection() -> None:
    array = np.random.default_rng(0).integers(0, 255, (4, 6, 5, 2), np.uint8)
    images = ArrayImages(array, np.array([0, 2, 1, 0]))
    assert (len(images), images.channels, images.classes) == (4, 2, ("0", "1", "2"))
    assert images.sizes.tolist() == [[6, 5]] * 4
    np.testing.assert_array_equal(images.read(2), array[2])


@pytest.mark.parametrize("shape", [(4, 6, 5), (4,)])
def test_an_array_of_another_shape_is_no_collection(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="images, height, width, channels"):
        ArrayImages(np.zeros(shape, np.uint8))
    with pytest.raises(DataError, match="float64"):
        ArrayImages(np.zeros((1, 2, 2, 3)))
    with pytest.raises(DataError, match="3 labels for 1 images"):
        ArrayImages(np.zeros((1, 2, 2, 3), np.uint8), np.zeros(3, np.int64))
