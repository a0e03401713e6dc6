"""Corpora: built shard by shard, stopped and resumed, read from memory-mapped files."""

from __future__ import annotations

import errno
import pickle
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jepa_core.errors import ConfigError, DataError, Interrupted, RunError
from jepa_vision.data import build as module
from jepa_vision.data.build import BuildReport, CorpusConfig, build
from jepa_vision.data.corpus import ImageCorpus
from jepa_vision.data.folders import ImageFolder, find_images
from jepa_vision.data.images import ImageReadError, ReadOptions
from jepa_vision.data.shard import shrink
from jepa_vision.data.transforms import crop_boxes, crops, measure_statistics

Data = Callable[[str], Path]
CONFIG = CorpusConfig(short_side=16, shard_images=4)
SIZES = [(20, 30), (16, 16), (8, 12), (40, 24), (17, 33), (100, 20), (16, 64), (31, 31), (9, 9)]


def images(root: Path, sizes: Sequence[tuple[int, int]] = SIZES) -> Path:
    """PNG files in two splits and two classes."""
    rng = np.random.default_rng(0)
    for i, size in enumerate(sizes):
        path = root / ("train", "test")[i % 2] / ("cat", "dog")[i // 2 % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(path)
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return images(tmp_path / "images")


def contents(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(path.iterdir())}


def test_a_corpus_holds_the_images_of_the_folder_shrunk(folder: Path, tmp_path: Path) -> None:
    report = build(find_images(folder), tmp_path / "corpus", CONFIG)
    assert report == BuildReport(9, 0, 0, {})
    corpus, files = ImageCorpus(tmp_path / "corpus"), ImageFolder(folder)
    assert list(corpus.names) == list(files.names)
    assert (len(corpus), corpus.channels, corpus.classes) == (9, 3, ("cat", "dog"))
    assert corpus.labels is not None
    assert files.labels is not None
    assert corpus.labels.tolist() == files.labels.tolist()
    for i in range(9):
        image = files.read(i)
        stored = corpus.read(i)
        assert stored.shape[:2] == tuple(corpus.sizes[i])
        np.testing.assert_array_equal(stored, shrink(image, 16))
    np.testing.assert_array_equal(corpus.column("file_height"), files.sizes[:, 0])


@pytest.mark.parametrize(
    ("size", "shrunk"), [((20, 30), (16, 24)), ((40, 24), (27, 16)), ((8, 12), (8, 12))]
)
def test_images_are_shrunk_to_their_short_side_and_never_enlarged(
    size: tuple[int, int], shrunk: tuple[int, int]
) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    out = shrink(image, 16)
    assert out.shape == (*shrunk, 3)
    assert shrink(image, 0) is image
    resized = Image.fromarray(image).resize(shrunk[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(out, np.asarray(resized))


def test_a_split_of_a_corpus_is_a_collection(folder: Path, tmp_path: Path) -> None:
    build(find_images(folder), tmp_path / "corpus", CONFIG)
    whole = ImageCorpus(tmp_path / "corpus")
    test = ImageCorpus(tmp_path / "corpus", split="test")
    assert all(name.startswith("test/") for name in test.names)
    assert len(test) == 4
    for i, name in enumerate(test.names):
        np.testing.assert_array_equal(test.read(i), whole.read(list(whole.names).index(name)))
    with pytest.raises(ConfigError, match="no split 'val'; there are: test, train"):
        ImageCorpus(tmp_path / "corpus", split="val")


def test_crops_of_a_corpus_are_those_of_its_images(folder: Path, tmp_path: Path) -> None:
    build(find_images(folder), tmp_path / "corpus", CorpusConfig(short_side=0, shard_images=2))
    corpus, files = ImageCorpus(tmp_path / "corpus"), ImageFolder(folder)
    ids = np.array([5, 0, 8, 5])
    boxes = crop_boxes(corpus.sizes[ids], ids, np.arange(4), seed=0)
    for exact in (True, False):
        np.testing.assert_array_equal(
            crops(corpus, ids, boxes, (12, 12), exact=exact),
            crops(files, ids, boxes, (12, 12), exact=exact),
        )


def test_statistics_are_those_of_what_is_stored(folder: Path, tmp_path: Path) -> None:
    build(find_images(folder), tmp_path / "corpus", CONFIG)
    corpus = ImageCorpus(tmp_path / "corpus")
    mean, std = measure_statistics(corpus)
    np.testing.assert_allclose(corpus.mean, mean, atol=1e-12)
    np.testing.assert_allclose(corpus.std, std, atol=1e-12)


def test_unlabelled_images_have_no_labels(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (5, 5)).save(tmp_path / "images/1.png")
    build(find_images(tmp_path / "images"), tmp_path / "corpus", CONFIG)
    corpus = ImageCorpus(tmp_path / "corpus")
    assert (corpus.labels, corpus.classes) == (None, ())


def test_floating_point_channels_are_stored_as_they_are(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((3, 20, 24, 5)).astype(np.float32) * 1e4
    (tmp_path / "images").mkdir()
    for i, value in enumerate(values):
        np.save(tmp_path / f"images/{i}.npy", value)
    build(find_images(tmp_path / "images"), tmp_path / "corpus", CorpusConfig(short_side=0))
    corpus = ImageCorpus(tmp_path / "corpus")
    assert corpus.channels == 5
    for i in range(3):
        np.testing.assert_array_equal(corpus.read(i), values[i])
    np.testing.assert_allclose(corpus.mean, values.mean((0, 1, 2)), rtol=1e-5)


def test_a_corpus_is_not_to_be_written_to(folder: Path, tmp_path: Path) -> None:
    build(find_images(folder), tmp_path / "corpus", CONFIG)
    with pytest.raises(ValueError, match="read-only"):
        ImageCorpus(tmp_path / "corpus").read(0)[:] = 0


def test_a_corpus_travels_to_another_process(folder: Path, tmp_path: Path) -> None:
    build(find_images(folder), tmp_path / "corpus", CONFIG)
    corpus = ImageCorpus(tmp_path / "corpus")
    first = corpus.read(0)
    raw = pickle.dumps(corpus)
    assert len(raw) < 10_000
    np.testing.assert_array_equal(pickle.loads(raw).read(0), first)


def test_two_processes_build_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    build(find_images(folder), tmp_path / "one", CONFIG)
    seen: list[int] = []
    build(find_images(folder), tmp_path / "two", CONFIG, jobs=2, progress=seen.append)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert sum(seen) == 9


KILLED = """
    import os, signal, sys
    from jepa_vision.data import shard
    from jepa_vision.data.build import CorpusConfig, build
    from jepa_vision.data.folders import find_images

    def dying(pixels, short_side, _shrink=shard.shrink, _n=[0]):
        _n[0] += 1
        if _n[0] == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return _shrink(pixels, short_side)

    shard.shrink = dying
    config = CorpusConfig(short_side=16, shard_images=4)
    build(find_images(sys.argv[1]), sys.argv[2], config)
"""


def test_a_build_killed_in_the_middle_resumes_to_the_same_bytes(
    folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "corpus"
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(folder), str(path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert (path / "pixels-00001.npy.partial").exists()
    with pytest.raises(DataError, match=r"has not come to its end.*--resume"):
        ImageCorpus(path)
    with pytest.raises(RunError, match="--resume or --overwrite"):
        build(find_images(folder), path, CONFIG)
    seen: list[int] = []
    report = build(find_images(folder), path, CONFIG, resume=True, progress=seen.append)
    assert report == BuildReport(9, 0, 1, {})
    assert sum(seen) == 9
    build(find_images(folder), tmp_path / "whole", CONFIG)
    assert contents(path) == contents(tmp_path / "whole")
    assert build(find_images(folder), path, CONFIG, resume=True) == BuildReport(9, 0, 0, {})


def test_ctrl_c_says_how_to_go_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_shard", stop)
        with pytest.raises(Interrupted, match="--resume goes on"):
            build(find_images(folder), tmp_path / "corpus", CONFIG)
    assert build(find_images(folder), tmp_path / "corpus", CONFIG, resume=True).kept == 9


def test_a_full_disk_is_one_line_and_the_build_goes_on_later(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = module.write_shard, []

    def full(*arguments: Any) -> int:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_shard", full)
        with pytest.raises(RunError, match="the disk is full; free some space and add --resume"):
            build(find_images(folder), tmp_path / "corpus", CONFIG)
    report = build(find_images(folder), tmp_path / "corpus", CONFIG, resume=True)
    assert (report.kept, report.resumed_shards) == (9, 1)


def test_resuming_with_other_settings_names_the_first_that_differs(
    folder: Path, tmp_path: Path
) -> None:
    build(find_images(folder), tmp_path / "corpus", CONFIG)
    other = CorpusConfig(short_side=32, shard_images=4)
    with pytest.raises(RunError, match="short_side was 16 and is now 32"):
        build(find_images(folder), tmp_path / "corpus", other, resume=True)


def test_resuming_builds_a_shard_again_when_its_files_changed(folder: Path, tmp_path: Path) -> None:
    bad = folder / "train/dog/99.png"
    bad.write_bytes(b"broken")
    path = tmp_path / "corpus"
    with pytest.raises(ImageReadError, match=r"99\.png: no image"):
        build(find_images(folder), path, CONFIG)
    bad.unlink()
    report = build(find_images(folder), path, CONFIG, resume=True)
    assert (report.kept, report.resumed_shards) == (9, 2)
    build(find_images(folder), tmp_path / "whole", CONFIG)
    assert contents(path) == contents(tmp_path / "whole")


def test_only_a_corpus_is_ever_overwritten(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("precious")
    with pytest.raises(RunError, match="not empty and no corpus"):
        build(find_images(folder), tmp_path / "mine", CONFIG, overwrite=True)
    assert (tmp_path / "mine/thesis.tex").exists()
    path = tmp_path / "corpus"
    build(find_images(folder), path, CorpusConfig(short_side=16, shard_images=1))
    build(find_images(folder), path, CONFIG, overwrite=True)
    assert len(ImageCorpus(path)) == 9
    assert not (path / "pixels-00005.npy").exists()


def test_a_place_that_cannot_be_written_is_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        build(find_images(folder), tmp_path / "file/corpus", CONFIG)


@pytest.mark.parametrize("jobs", [1, 2])
def test_files_that_cannot_be_read_stop_the_build_or_are_listed(
    data: Data, tmp_path: Path, jobs: int
) -> None:
    listing = find_images(data("vision") / "odd")
    with pytest.raises(ImageReadError, match=r"odd.[a-z_]+\.(png|gif|jpg): "):
        build(listing, tmp_path / "a", CorpusConfig(shard_images=10), jobs=jobs)
    config = CorpusConfig(shard_images=10, on_error="skip")
    report = build(listing, tmp_path / "b", config, jobs=jobs)
    assert report.kept == 27
    assert report.notes == {
        "have several frames, of which the first is taken": 7,
        "have 16 bits, scaled by 1/257": 4,
    }
    lines = (tmp_path / "b/skipped.csv").read_text().splitlines()
    assert len(lines) == 1 + report.skipped == 6
    assert lines[1] == "broken.png,no image of a known format"
    corpus = ImageCorpus(tmp_path / "b")
    assert [corpus.read(i).shape for i in range(27)] == [(*size, 3) for size in corpus.sizes]


def test_a_corpus_of_nothing_but_failures_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.png").write_bytes(b"x")
    with pytest.raises(DataError, match="none of 1 images can be read, the first: no image"):
        build(find_images(tmp_path / "images"), tmp_path / "c", CorpusConfig(on_error="skip"))


def test_images_of_another_kind_are_left_out_with_their_reason(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    np.save(tmp_path / "images/a.npy", np.zeros((20, 20, 3), np.uint8))
    np.save(tmp_path / "images/b.npy", np.zeros((20, 20, 3), np.float32))
    Image.new("RGB", (5, 5)).save(tmp_path / "images/c.png")
    listing = find_images(tmp_path / "images")
    reason = "3 channels of float32, the first image has 3 of uint8"
    with pytest.raises(ImageReadError, match=reason):
        build(listing, tmp_path / "corpus", CONFIG)
    config = CorpusConfig(short_side=16, on_error="skip")
    assert build(listing, tmp_path / "corpus", config, overwrite=True).kept == 2
    assert reason in (tmp_path / "corpus/skipped.csv").read_text()


def test_how_files_are_read_is_part_of_the_corpus(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(np.arange(100, dtype=np.uint16).reshape(10, 10)).save(tmp_path / "images/1.png")
    listing = find_images(tmp_path / "images")
    config = CorpusConfig(read=ReadOptions(stretch="minmax"))
    build(listing, tmp_path / "corpus", config)
    assert ImageCorpus(tmp_path / "corpus").read(0).max() == 255
    with pytest.raises(RunError, match="stretch was 'minmax' and is now 'none'"):
        build(listing, tmp_path / "corpus", CorpusConfig(), resume=True)


def test_memory_stays_flat_while_the_corpus_grows_twentyfold(tmp_path: Path) -> None:
    peaks = []
    for name, n in (("warm", 8), ("small", 20), ("large", 400)):
        images(tmp_path / name, [(64, 64)] * n)
        listing = find_images(tmp_path / name)
        tracemalloc.start()
        build(listing, tmp_path / f"{name}-corpus", CorpusConfig(shard_images=8))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + 400_000
    assert peaks[2] < 400 * 64 * 64 * 3 / 4


def test_what_is_no_corpus_says_how_to_make_one(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no corpus; `jepa vision data build` makes one"):
        ImageCorpus(tmp_path)
    build(find_images(folder), tmp_path / "corpus", CONFIG)
    info = tmp_path / "corpus/corpus.json"
    info.write_text(info.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(DataError, match="has the format 99, not 1; build it again"):
        ImageCorpus(tmp_path / "corpus")


def test_a_shard_that_is_missing_or_damaged_is_named(folder: Path, tmp_path: Path) -> None:
    build(find_images(folder), tmp_path / "corpus", CONFIG)
    (tmp_path / "corpus/pixels-00000.npy").write_bytes(b"x")
    (tmp_path / "corpus/pixels-00001.npy").unlink()
    corpus = ImageCorpus(tmp_path / "corpus")
    for i, shard in ((0, "00000"), (4, "00001")):
        with pytest.raises(DataError, match=rf"pixels-{shard}\.npy: cannot be read"):
            corpus.read(i)


def test_settings_out_of_range_are_errors() -> None:
    for wrong in ({"short_side": -1}, {"shard_images": 0}, {"on_error": "ignore"}):
        with pytest.raises(ConfigError):
            CorpusConfig(**wrong)  # type: ignore[arg-type]
