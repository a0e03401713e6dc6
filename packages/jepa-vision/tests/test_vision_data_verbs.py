"""`jepa vision data check|build|fetch`, as a person calls them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jepa_core.errors import ConfigError, DataError
from jepa_vision.data.corpus import ImageCorpus
from jepa_vision.data.images import ReadOptions
from jepa_vision.data.shard import CorpusConfig
from jepa_vision.verbs.data import Build, Check, Fetch

Data = Callable[[str], Path]
Output = pytest.CaptureFixture[str]


def said(capsys: Output) -> str:
    """What was printed, in one line."""
    return " ".join(capsys.readouterr().out.split())


def test_check_counts_classes_splits_sizes_and_kinds(data: Data, capsys: Output) -> None:
    Check(data("vision") / "caltech10")()
    text = said(capsys)
    for words in ("readable 800", "unreadable 0", "classes 10", "split train 600", "JPEG RGB 800"):
        assert words in text
    assert "bonsai 20 60" in text
    assert "height 72 72 72 72 72" in text


def test_check_counts_one_split(data: Data, capsys: Output) -> None:
    Check(data("vision") / "cifar10_subset.zip", split="test", crop=32)()
    text = said(capsys)
    assert "readable 500" in text
    assert "airplane 50" in text
    assert "enlarges" not in text


def test_check_names_odd_files_and_says_what_to_do(data: Data, capsys: Output) -> None:
    with pytest.raises(DataError, match="5 files cannot be read; mend them, or build with"):
        Check(data("vision") / "odd")()
    text = said(capsys)
    for words in (
        "readable 27",
        "TIFF I;16 3",
        "other files, .json 1",
        "truncated_jpeg.jpg damaged (image file is truncated",
        "- 7 files have several frames, of which the first is taken.",
        "- 4 files have 16 bits, scaled by 1/257.",
        "--stretch percentile",
        "- No classes: fit for pre-training and embedding, not for a probe.",
        "- 4 images have a short side below 56",
    ):
        assert words in text


def test_check_reads_label_pictures_and_their_shares(data: Data, capsys: Output) -> None:
    Check(data("vision") / "camvid", split="test")()
    text = said(capsys)
    assert "labels of 30 pictures (camvid)" in text
    assert "building 0.2640" in text
    assert "none 0.0411" in text
    assert "No classes" not in text


def test_check_names_label_pictures_that_are_wrong(
    data: Data, tmp_path: Path, capsys: Output
) -> None:
    shutil.copytree(data("vision") / "camvid/test", tmp_path / "camvid")
    path = sorted((tmp_path / "camvid/labels").iterdir())[3]
    Image.new("L", (240, 180), 77).save(path)
    with pytest.raises(DataError, match="1 files cannot be read"):
        Check(tmp_path / "camvid")()
    assert "values 77 are neither classes" in said(capsys)


def test_check_asks_for_the_classes_of_ones_own_labels(tmp_path: Path, capsys: Output) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 6), 1).save(tmp_path / name / "1.png")
    Check(tmp_path)()
    assert "the classes of these labels are not known" in said(capsys)
    Check(tmp_path, classes=2)()
    assert "1 1.0000" in said(capsys)


def test_check_measures_channels_of_arrays(tmp_path: Path, capsys: Output) -> None:
    values = np.random.default_rng(0).random((3, 40, 40, 5)).astype(np.float32)
    for i, value in enumerate(values):
        np.save(tmp_path / f"{i}.npy", value)
    Check(tmp_path, crop=32)()
    text = said(capsys)
    assert "NPY float32 3" in text
    assert "- 5 channels: pre-training measures" in text
    mean, std = values[..., 4].mean(dtype=np.float64), values[..., 4].std(dtype=np.float64)
    assert f" 4 {mean:.4g} {std:.4g}" in text


def test_check_suggests_a_corpus_for_large_images(tmp_path: Path, capsys: Output) -> None:
    Image.new("RGB", (400, 300)).save(tmp_path / "1.jpg")
    Check(tmp_path, crop=64)()
    assert "jepa vision data build --short-side 73" in said(capsys)


def test_build_writes_a_corpus_and_says_what_it_left_out(
    data: Data, tmp_path: Path, capsys: Output
) -> None:
    out = tmp_path / "corpus"
    Build(data("vision") / "odd", out, config=CorpusConfig(on_error="skip"))()
    text = said(capsys)
    assert f"{out}: 27 images" in text
    assert f"5 files left out, see {out / 'skipped.csv'}" in text
    assert "7 files have several frames" in text
    assert len(ImageCorpus(out)) == 27


def test_build_takes_one_split_and_a_subset(data: Data, tmp_path: Path) -> None:
    source = data("vision") / "cifar10_subset.zip"
    subset = tmp_path / "some.txt"
    subset.write_text("train/cat/0001.jpg\ntest/dog/0002.jpg\n")
    Build(source, tmp_path / "one", subset=subset)()
    corpus = ImageCorpus(tmp_path / "one")
    assert list(corpus.names) == ["train/cat/0001.jpg", "test/dog/0002.jpg"]
    assert corpus.labels is not None
    assert [corpus.classes[i] for i in corpus.labels] == ["cat", "dog"]
    Build(source, tmp_path / "two", subset=subset, split="test")()
    assert len(ImageCorpus(tmp_path / "two")) == 1


def test_settings_out_of_range_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        Build(tmp_path, tmp_path / "x", jobs=0)
    with pytest.raises(ConfigError):
        Check(tmp_path, crop=0)
    with pytest.raises(ConfigError):
        Check(tmp_path, read=ReadOptions(value_range=(2.0, 1.0)))


def test_fetch_lists_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean caltech101"):
        Fetch("caltech-101", tmp_path)()
