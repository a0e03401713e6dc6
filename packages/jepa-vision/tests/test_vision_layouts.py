"""What folders say: classes, splits, lists, data sets with layouts of their own, label pictures."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jepa_core.errors import ConfigError, DataError
from jepa_vision.data.folders import ImageFolder, Skipped, find_images, find_scenes, write_skipped
from jepa_vision.data.images import ImageReadError
from jepa_vision.data.listing import Listing, tree

Data = Callable[[str], Path]


def touch(root: Path, names: Iterable[str]) -> Path:
    """Pictures of 6x8 pixels whose value is their number."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".jpg", ".png", ".jpeg"):
            with open(path, "wb") as file:
                kind = "png" if path.suffix.lower() == ".png" else "jpeg"
                Image.fromarray(np.full((6, 8, 3), number, np.uint8)).save(file, kind)
        else:
            path.write_text("")
    return root


def labelled(listing: Listing) -> list[tuple[str, str]]:
    assert listing.labels is not None
    return [(n, listing.classes[i]) for n, i in zip(listing.names, listing.labels, strict=True)]


# --- trees -----------------------------------------------------------------------------------


def test_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    listing = find_images(touch(tmp_path, ["b/2.jpg", "a/1.jpg", "b/10.jpg", "a/readme.md"]))
    assert labelled(listing) == [("a/1.jpg", "a"), ("b/10.jpg", "b"), ("b/2.jpg", "b")]
    assert listing.ignored == ((".md", 1),)


def test_splits_have_their_classes_in_common(tmp_path: Path) -> None:
    touch(tmp_path, ["Train/a/1.jpg", "Train/b/2.jpg", "validation/b/3.jpg", "test/c/4.jpg"])
    whole = find_images(tmp_path)
    assert whole.classes == ("a", "b", "c")
    assert sorted(whole.splits) == ["test", "train", "train", "val"]
    val = find_images(tmp_path, split="val")
    assert labelled(val) == [("validation/b/3.jpg", "b")]
    assert val.classes == ("a", "b", "c")
    with pytest.raises(ConfigError, match=r"no split 'dev'; there are: test, train, val"):
        find_images(tmp_path, split="dev")


def test_the_official_tree_is_read(data: Data) -> None:
    train = find_images(data("vision") / "caltech10", split="train")
    test = find_images(data("vision") / "caltech10", split="test")
    assert (len(train), len(test), len(train.classes)) == (600, 200, 10)
    assert train.classes == test.classes
    assert train.labels is not None
    assert np.bincount(train.labels).tolist() == [60] * 10


def test_a_flat_folder_has_no_classes(tmp_path: Path) -> None:
    listing = find_images(touch(tmp_path, ["2.jpg", "1.jpg"]))
    assert (list(listing.names), listing.labels, listing.classes) == (["1.jpg", "2.jpg"], None, ())


def test_images_beside_class_folders_take_the_classes_away(tmp_path: Path) -> None:
    assert find_images(touch(tmp_path, ["a/1.jpg", "b/2.jpg", "3.jpg"])).labels is None


def test_one_class_is_a_class(tmp_path: Path) -> None:
    assert find_images(touch(tmp_path, ["a/1.jpg", "a/2.jpg"])).classes == ("a",)


@pytest.mark.parametrize("name", ["unlabelled", "Unlabeled"])
def test_a_folder_called_unlabelled_is_no_class(tmp_path: Path, name: str) -> None:
    assert find_images(touch(tmp_path, [f"{name}/1.jpg"])).labels is None


def test_images_deep_in_a_class_belong_to_it(tmp_path: Path) -> None:
    listing = find_images(touch(tmp_path, ["a/x/1.jpg", "a/2.jpg", "b/y/z/3.jpg"]))
    assert labelled(listing) == [("a/2.jpg", "a"), ("a/x/1.jpg", "a"), ("b/y/z/3.jpg", "b")]


def test_one_class_is_not_looked_through_for_its_folders(tmp_path: Path) -> None:
    listing = find_images(touch(tmp_path, ["a/x/1.jpg", "a/2.jpg"]))
    assert listing.classes == ("a",)


def test_folders_that_hold_one_folder_are_looked_through(tmp_path: Path) -> None:
    listing = find_images(touch(tmp_path, ["set/v1/a/1.jpg", "set/v1/b/2.jpg", "set/note.txt"]))
    assert listing.classes == ("a", "b")
    deep = find_images(touch(tmp_path / "other", ["set/train/a/1.jpg", "set/test/a/2.jpg"]))
    assert (deep.classes, sorted(deep.splits)) == (("a",), ["test", "train"])


def test_spaces_unicode_and_capital_suffixes_are_fine(tmp_path: Path) -> None:
    names = ["Großer Bär/Foto 1.JPG", "Großer Bär/фото.JpEg", "猫/ 写真 .PNG"]
    listing = find_images(touch(tmp_path, names))
    assert sorted(listing.names) == sorted(names)
    assert listing.classes == ("Großer Bär", "猫")
    assert ImageFolder(listing).read(0).shape == (6, 8, 3)


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    touch(tmp_path, ["a/1.jpg", "a/._1.jpg", ".cache/2.jpg", "b/2.jpg"])
    assert list(find_images(tmp_path).names) == ["a/1.jpg", "b/2.jpg"]


def test_an_empty_folder_says_so_and_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no image; known suffixes: avif, bmp"):
        find_images(tmp_path)
    touch(tmp_path, ["1.heic", "2.heic", "3.dcm", "none"])
    with pytest.raises(DataError, match=r"no image \(there are 2 \.heic, 1 \.dcm, 1 no suffix\)"):
        find_images(tmp_path)


def test_a_place_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        find_images(tmp_path / "x")
    (tmp_path / "x.tar").write_text("")
    with pytest.raises(DataError, match="neither a folder nor a zip archive"):
        find_images(tmp_path / "x.tar")


def test_one_image_is_a_listing_of_one(tmp_path: Path) -> None:
    touch(tmp_path, ["a/1.jpg", "a/2.jpg"])
    listing = find_images(tmp_path / "a/2.jpg")
    assert (list(listing.names), listing.labels) == (["2.jpg"], None)


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", "train", "test"]), max_size=4).map(tuple),
        min_size=1,
        max_size=12,
    )
)
def test_every_image_of_any_tree_is_listed_once(folders: list[tuple[str, ...]]) -> None:
    names = sorted("/".join([*folder, f"{i}.png"]) for i, folder in enumerate(folders))
    listing = tree(None, names)  # type: ignore[arg-type]
    assert list(listing.names) == names
    assert len(listing.splits) == len(names)
    if listing.labels is not None:
        assert sorted(set(listing.labels)) == list(range(len(listing.classes)))
        assert all(c in n.split("/") for n, c in labelled(listing))


# --- lists -----------------------------------------------------------------------------------


def test_a_list_names_files_and_classes(tmp_path: Path) -> None:
    touch(tmp_path, ["x/1.jpg", "x/my photo 2.jpg", "3.jpg"])
    (tmp_path / "list.txt").write_text("3.jpg cat\n\n./x/1.jpg\tdog\nx/my photo 2.jpg cat\n")
    listing = find_images(tmp_path / "list.txt")
    assert labelled(listing) == [
        ("3.jpg", "cat"),
        ("x/1.jpg", "dog"),
        ("x/my photo 2.jpg", "cat"),
    ]


def test_a_list_without_classes_has_none(tmp_path: Path) -> None:
    touch(tmp_path, ["a b/1.jpg", "2.jpg"])
    (tmp_path / "list.txt").write_text("a b/1.jpg\n2.jpg\n", encoding="utf-8-sig")
    listing = find_images(tmp_path / "list.txt")
    assert (list(listing.names), listing.labels) == (["a b/1.jpg", "2.jpg"], None)


def test_a_subset_of_imagenet_is_found_by_its_names(tmp_path: Path) -> None:
    touch(tmp_path, [f"train/n0{c}/n0{c}_{i}.JPEG" for c in range(3) for i in range(3)])
    subset = tmp_path / "1percent.txt"
    subset.write_text("n02_1.JPEG\nn00_2.JPEG\n")
    listing = find_images(tmp_path, subset=subset)
    assert labelled(listing) == [
        ("train/n02/n02_1.JPEG", "n02"),
        ("train/n00/n00_2.JPEG", "n00"),
    ]


def test_a_subset_keeps_the_classes_of_the_folders(tmp_path: Path) -> None:
    touch(tmp_path, ["train/a/1.jpg", "train/b/2.jpg", "test/b/3.jpg"])
    (tmp_path / "some.txt").write_text("test/b/3.jpg\ntrain/a/1.jpg\n")
    listing = find_images(tmp_path, subset=tmp_path / "some.txt")
    assert labelled(listing) == [("test/b/3.jpg", "b"), ("train/a/1.jpg", "a")]
    assert listing.splits == ["test", "train"]


def test_a_listed_file_that_is_not_there_is_named_with_its_line(tmp_path: Path) -> None:
    touch(tmp_path, ["1.jpg"])
    (tmp_path / "list.txt").write_text("1.jpg\n\n2.jpg\n")
    with pytest.raises(ImageReadError, match=r"list\.txt:3: '2\.jpg' is not there"):
        find_images(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(DataError, match="an empty list"):
        find_images(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\n")
    with pytest.raises(DataError, match="not UTF-8"):
        find_images(tmp_path / "list.txt")


# --- collections -----------------------------------------------------------------------------


def test_unreadable_files_are_errors_or_left_out_and_listed(data: Data, tmp_path: Path) -> None:
    odd = data("vision") / "odd"
    with pytest.raises(ImageReadError, match=r"broken\.png"):
        _ = ImageFolder(odd).sizes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        images = ImageFolder(odd, on_error="skip")
        assert (len(images), images.sizes.shape, len(images.skipped)) == (27, (27, 2), 5)
        for i in range(len(images)):
            assert images.read(i).shape == (*images.sizes[i], 3)
    write_skipped(tmp_path / "skipped.csv", images.skipped)
    lines = (tmp_path / "skipped.csv").read_text().splitlines()
    assert lines[0] == "name,reason"
    assert [line.partition(",")[0] for line in lines[1:]] == [
        "broken.png",
        "broken_data_stream.png",
        "decompression_bomb.gif",
        "truncated_image.png",
        "truncated_jpeg.jpg",
    ]


def test_several_frames_are_warned_of_once_with_their_number(data: Data) -> None:
    images = ImageFolder(data("vision") / "odd", on_error="skip")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _ = images.sizes
        _ = images.sizes
    messages = [str(w.message) for w in caught]
    assert "7 of 27 files have several frames, of which the first is taken" in messages
    assert len(messages) == len(set(messages)) == 2


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="none of 1 images can be read, the first: no image"):
        ImageFolder(tmp_path, on_error="skip")


def test_images_of_one_collection_have_the_same_channels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((20, 20, 4), np.uint8))
    np.save(tmp_path / "b.npy", np.zeros((20, 20, 5), np.uint8))
    images = ImageFolder(tmp_path)
    assert (images.channels, images.read(0).shape) == (4, (20, 20, 4))
    with pytest.raises(ImageReadError, match=r"b\.npy: 5 channels, the first image has 4"):
        images.read(1)
    left = ImageFolder(tmp_path, on_error="skip")
    assert left.skipped == [Skipped("b.npy", "5 channels, the first image has 4")]
    assert len(left) == 1


def test_an_image_that_vanished_is_named(tmp_path: Path) -> None:
    images = ImageFolder(touch(tmp_path, ["a.jpg"]))
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(ImageReadError, match=r"a\.jpg: cannot be opened"):
        images.read(0)


# --- data sets -------------------------------------------------------------------------------


def test_caltech_101_has_no_class_of_clutter(tmp_path: Path) -> None:
    top = "caltech-101/101_ObjectCategories"
    names = [f"{top}/{c}/image_000{i}.jpg" for c in ("ant", "BACKGROUND_Google", "yin_yang")
             for i in (1, 2)]  # fmt: skip
    touch(tmp_path, [*names, "caltech-101/Annotations/ant/annotation_0001.mat"])
    assert find_images(tmp_path).classes == ("ant", "yin_yang")
    assert find_images(tmp_path / "caltech-101").classes == ("ant", "yin_yang")
    assert len(find_images(tmp_path)) == 4


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    stems = ["Abyssinian_1", "Abyssinian_2", "american_bulldog_7", "american_bulldog_9"]
    touch(tmp_path, [f"images/{stem}.jpg" for stem in stems])
    (tmp_path / "annotations/trimaps").mkdir(parents=True)
    (tmp_path / "images/Abyssinian_1.mat").write_text("")
    for stem in stems:
        trimap = np.full((6, 8), 2, np.uint8)
        trimap[1:5, 1:5], trimap[2:4, 2:4] = 3, 1
        Image.fromarray(trimap).save(tmp_path / f"annotations/trimaps/{stem}.png")
        (tmp_path / f"annotations/trimaps/._{stem}.png").write_text("")
    rows = ["Abyssinian_1 1 1 1", "Abyssinian_2 1 1 1"]
    rows += ["american_bulldog_7 2 2 1", "american_bulldog_9 2 2 1"]
    (tmp_path / "annotations/list.txt").write_text(
        "#Image CLASS-ID SPECIES BREED ID\n#ID: 1:37\n" + "\n".join(rows) + "\n"
    )
    (tmp_path / "annotations/trainval.txt").write_text(f"{rows[0]}\n{rows[2]}\n")
    (tmp_path / "annotations/test.txt").write_text(f"{rows[1]}\n{rows[3]}\n")
    return tmp_path


def test_pets_have_breeds_and_splits(pets: Path) -> None:
    listing = find_images(pets, split="test")
    assert listing.classes == ("Abyssinian", "american_bulldog")
    assert labelled(listing) == [
        ("images/Abyssinian_2.jpg", "Abyssinian"),
        ("images/american_bulldog_9.jpg", "american_bulldog"),
    ]
    assert len(find_images(pets)) == 4


def test_a_pet_that_is_missing_is_named_with_its_line(pets: Path) -> None:
    (pets / "images/Abyssinian_2.jpg").unlink()
    with pytest.raises(ImageReadError, match=r"list\.txt:4: images/Abyssinian_2\.jpg is not there"):
        find_images(pets)
    (pets / "annotations/list.txt").write_text("Abyssinian_1 one\n")
    with pytest.raises(DataError, match=r"list\.txt:1: not an image and the number"):
        find_images(pets)


def test_a_trimap_is_pet_background_and_none(pets: Path) -> None:
    scenes = find_scenes(pets, split="train")
    assert (scenes.layout, len(scenes), scenes.classes) == ("oxford-pet", 2, ("pet", "background"))
    label = scenes.label(1)
    assert label.dtype == np.int64
    assert (label[0, 0], label[1, 1], label[2, 2]) == (1, scenes.ignore_index, 0)


# --- label pictures --------------------------------------------------------------------------


def test_camvid_is_read_with_its_published_shares(data: Data) -> None:
    scenes = find_scenes(data("vision") / "camvid", split="test")
    assert (len(scenes), scenes.ignore_index, scenes.classes[10]) == (30, 11, "bicyclist")
    counts = sum(np.bincount(scenes.label(i).ravel(), minlength=12) for i in range(30))
    published = (0.165, 0.264, 0.012, 0.250, 0.093, 0.104, 0.009, 0.012, 0.043, 0.0056, 0.0006,
                 0.041)  # fmt: skip
    np.testing.assert_allclose(counts / counts.sum(), published, atol=6e-4)
    assert scenes.image(0).shape == (180, 240, 3)
    assert len(find_scenes(data("vision") / "camvid")) == 90


def test_pictures_beside_labels_are_images_without_classes(data: Data) -> None:
    listing = find_images(data("vision") / "camvid", split="train")
    assert (len(listing), listing.labels) == (60, None)
    assert all("/images/" in name for name in listing.names)


def write_labels(path: Path, values: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette:
        image = Image.fromarray(values, "L").convert("P")
        image.putdata(values.ravel().tolist())
        image.putpalette(list(range(255, 255 - 64 * 3, -1)))
    image.save(path)


def test_a_palette_is_read_as_indices(tmp_path: Path) -> None:
    touch(tmp_path, ["JPEGImages/2007_1.jpg", "JPEGImages/2007_2.jpg", "JPEGImages/2007_3.jpg"])
    values = np.zeros((6, 8), np.uint8)
    values[0, :3] = 5, 20, 255
    for stem in ("2007_1", "2007_3"):
        write_labels(tmp_path / f"SegmentationClass/{stem}.png", values, palette=True)
    with Image.open(tmp_path / "SegmentationClass/2007_1.png") as stored:
        assert stored.mode == "P"
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_1\n")
    (lists / "val.txt").write_text("2007_3\n")
    scenes = find_scenes(tmp_path)
    assert (scenes.layout, len(scenes), len(scenes.classes), scenes.unpaired) == ("voc", 2, 21, 1)
    np.testing.assert_array_equal(scenes.label(0), values)
    assert find_scenes(tmp_path, split="val").names == ["JPEGImages/2007_3.jpg"]


def test_ade20k_counts_from_one_and_zero_is_none(tmp_path: Path) -> None:
    touch(tmp_path, ["images/training/a.jpg", "images/validation/b.jpg"])
    values = np.zeros((6, 8), np.uint8)
    values[0, :2] = 1, 150
    write_labels(tmp_path / "annotations/training/a.png", values)
    write_labels(tmp_path / "annotations/validation/b.png", values)
    scenes = find_scenes(tmp_path, split="val")
    assert (scenes.layout, len(scenes), len(scenes.classes)) == ("ade20k", 1, 150)
    assert scenes.label(0)[0, :3].tolist() == [0, 149, scenes.ignore_index]
    rows = [f"{i}\t0.1\t1\t1\tthing {i}, also" for i in range(1, 151)]
    (tmp_path / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + "\n".join(rows))
    assert find_scenes(tmp_path).classes[149] == "thing 150"


def test_camvid_as_it_is_published_elsewhere(tmp_path: Path) -> None:
    touch(tmp_path, ["train/1.png", "test/2.png"])
    for name in ("trainannot/1.png", "testannot/2.png"):
        write_labels(tmp_path / name, np.full((6, 8), 11, np.uint8))
    scenes = find_scenes(tmp_path, split="test")
    assert (scenes.layout, scenes.names) == ("camvid", ["test/2.png"])
    assert (scenes.label(0) == 11).all()
    assert list(find_images(tmp_path).names) == ["test/2.png", "train/1.png"]


def test_pairs_of_ones_own_need_their_classes(tmp_path: Path) -> None:
    touch(tmp_path, ["images/1.jpg"])
    write_labels(tmp_path / "masks/1.png", np.full((6, 8), 2, np.uint8))
    with pytest.raises(ConfigError, match=r"the classes .* are not known; give their number"):
        find_scenes(tmp_path)
    assert find_scenes(tmp_path, classes=3).classes == ("0", "1", "2")
    assert (find_scenes(tmp_path, classes=2, ignore_index=2).label(0) == 2).all()
    (tmp_path / "classes.txt").write_text("sky\n\nsea\nland\n")
    assert find_scenes(tmp_path).classes == ("sky", "sea", "land")


@pytest.mark.parametrize("values", [np.uint16, np.int32, bool])
def test_labels_of_other_widths_are_read(tmp_path: Path, values: type) -> None:
    touch(tmp_path, ["images/1.jpg"])
    stored = np.zeros((6, 8), values)
    stored[2, 3] = 1 if values is bool else 300
    suffix = "tif" if values is np.int32 else "png"
    write_labels(tmp_path / f"labels/1.{suffix}", stored)
    label = find_scenes(tmp_path, classes=301).label(0)
    np.testing.assert_array_equal(label, stored.astype(np.int64))


def test_values_that_are_no_classes_are_named_with_their_file(tmp_path: Path) -> None:
    touch(tmp_path, ["images/1.jpg"])
    values = np.zeros((6, 8), np.uint8)
    values[0, :4] = 3, 7, 200, 255
    write_labels(tmp_path / "labels/1.png", values)
    with pytest.raises(
        ImageReadError,
        match=r"labels.1\.png: values 3, 7, 200 are neither classes \(0 to 2\) nor ignored \(255\)",
    ):
        find_scenes(tmp_path, classes=3).label(0)
    write_labels(tmp_path / "labels/1.png", np.arange(48, dtype=np.uint8).reshape(6, 8))
    with pytest.raises(ImageReadError, match=r"values 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, \.\.\. are"):
        find_scenes(tmp_path, classes=3).label(0)


def test_labels_of_another_size_than_the_picture_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, ["images/1.jpg"])
    write_labels(tmp_path / "labels/1.png", np.zeros((8, 6), np.uint8))
    with pytest.raises(ImageReadError, match="labels of 6x8 pixels for a picture of 8x6"):
        find_scenes(tmp_path, classes=3).label(0)


def test_labels_in_colours_and_in_jpeg_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, ["images/1.jpg", "labels/1.png"])
    with pytest.raises(ImageReadError, match="labels of mode RGB; one channel"):
        find_scenes(tmp_path, classes=3).label(0)
    (tmp_path / "labels/1.png").unlink()
    touch(tmp_path, ["labels/1.jpg"])
    with pytest.raises(ImageReadError, match="labels in a JPEG, which changes values"):
        find_scenes(tmp_path, classes=3).label(0)


def test_a_folder_without_labels_says_where_they_belong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no picture with labels; put them into images/"):
        find_scenes(touch(tmp_path, ["a/1.jpg"]))


def test_pictures_without_labels_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, ["images/1.jpg", "images/2.jpg"])
    write_labels(tmp_path / "labels/2.png", np.zeros((6, 8), np.uint8))
    scenes = find_scenes(tmp_path, classes=1)
    assert (scenes.names, scenes.unpaired) == (["images/2.jpg"], 1)
    assert list(scenes.pictures.names) == ["images/2.jpg"]
