"""The corpus: what goes in comes out, however the build was cut up, and in little memory."""

from __future__ import annotations

import csv
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import tracemalloc

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from jepa_core.errors import ConfigError, DataError, RunError
from jepa_ecg.data.arrays import Dump, FileList
from jepa_ecg.data.build import build_corpus
from jepa_ecg.data.corpus import Corpus
from jepa_ecg.data.databases import DATABASES, LEADS
from jepa_ecg.data.errors import ECGFormatError
from jepa_ecg.data.ptbxl import PTBXL, ptbxl_labels
from jepa_ecg.data.shard import CorpusConfig, quantise
from jepa_ecg.data.transforms import highpass, normalise, resample
from jepa_ecg.data.wfdb_record import read_record

N, TIME = 23, 300
CONFIG = CorpusConfig(fs=100, shard_records=4)


def _signals(n: int = N, time: int = TIME) -> np.ndarray:
    """Random walks of some mV, whole microvolts, no two alike."""
    steps = np.random.default_rng(n).normal(0, 0.02, (n, time, 12))
    return (np.rint(np.cumsum(steps, 1) * 1000) / 1000).astype(np.float32)


def _dump(folder, array, name="own", fs=100.0, **options) -> Dump:
    path = folder / f"{name}.npy"
    np.save(path, array)
    return Dump(str(path), fs=fs, name=name, **options)


def _bytes(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A corpus of two sources over eight shards, and its signals in mV."""
    folder = tmp_path_factory.mktemp("built")
    first, second = _signals(), _signals(9, 450)
    sources = [_dump(folder, first), _dump(folder, second, "ptb-xl")]
    report = build_corpus(sources, folder / "corpus", CONFIG)
    assert report == (N + 9, 0, 0)
    return folder / "corpus", [*first, *second]


def test_every_record_comes_back_to_the_microvolt(built):
    path, signals = built
    corpus = Corpus(path)
    assert len(corpus) == len(signals)
    assert corpus.sizes == (N, 9)
    assert corpus.lengths.tolist() == [len(x) for x in signals]
    assert corpus.ids.tolist() == [str(i) for i in [*range(N), *range(9)]]
    assert (corpus.fs, corpus.leads) == (100, LEADS)
    for row, wanted in enumerate(signals):
        np.testing.assert_allclose(corpus.record(row), wanted.T, rtol=1e-6, atol=1e-9)


@given(st.data())
def test_crops_equal_the_slow_way(built, draw):
    path, signals = built
    corpus = Corpus(path)
    size = draw.draw(st.integers(1, TIME))
    ids = np.array(draw.draw(st.lists(st.integers(0, len(corpus) - 1), max_size=8)), np.int64)
    starts = np.array(
        [draw.draw(st.integers(0, int(corpus.lengths[i]) - size)) for i in ids], np.int64
    )
    got = corpus.crops(ids, starts, size)
    assert got.shape == (len(ids), 12, size)
    assert got.dtype == np.float32
    for crop, i, start in zip(got, ids, starts, strict=True):
        window = signals[i][start : start + size].astype(np.float64)
        source = int(i >= N)
        wanted = normalise(window, corpus.mean[source], corpus.std[source])
        np.testing.assert_allclose(crop, wanted.T, rtol=0, atol=2e-6)


def test_a_crop_outside_its_record_is_refused(built):
    corpus = Corpus(built[0])
    one = np.ones(1, np.int64)
    for ids, starts, size in ((one, -one, 5), (one, one, TIME), (one * 99, one, 5), (-one, one, 5)):
        with pytest.raises(DataError):
            corpus.crops(ids, starts, size)
    with pytest.raises(DataError, match="record 1 has 300 samples, a crop of 300 at 1"):
        corpus.crops(one, one, TIME)


def test_unknown_sources_are_measured_and_known_ones_have_published_statistics(built):
    path, signals = built
    corpus = Corpus(path)
    own = np.concatenate(signals[:N]).astype(np.float64)
    np.testing.assert_allclose(corpus.mean[0], own.mean(0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(corpus.std[0], own.std(0), rtol=1e-5)
    assert corpus.sources[0].statistics == "measured"
    mean, std = DATABASES["ptb-xl"].statistics()
    assert (corpus.sources[1].mean, corpus.sources[1].std) == (list(mean), list(std))
    assert corpus.sources[1].statistics == "published"
    assert corpus.weights is None


def test_other_statistics_leave_the_corpus_as_it_is(built):
    corpus = Corpus(built[0])
    rows = np.arange(3)
    mean, std = corpus.measure(rows)
    wanted = np.concatenate(built[1][:3]).astype(np.float64)
    np.testing.assert_allclose(mean, wanted.mean(0), atol=1e-7)
    np.testing.assert_allclose(std, wanted.std(0), rtol=1e-6)
    other = corpus.with_statistics(mean, std)
    starts = np.zeros(3, np.int64)
    unclipped = other.crops(rows, starts, TIME, clip=np.inf)
    np.testing.assert_allclose(unclipped.mean((0, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(unclipped.std((0, 2)), 1, atol=1e-4)
    assert not np.allclose(corpus.crops(rows, starts, 9), other.crops(rows, starts, 9))


def test_a_corpus_travels_to_another_process(built):
    corpus = Corpus(built[0])
    ids, starts = np.arange(len(corpus)), np.zeros(len(corpus), np.int64)
    before = corpus.crops(ids, starts, 10)
    text = pickle.dumps(corpus)
    assert len(text) < 20_000  # no signal travels
    np.testing.assert_array_equal(pickle.loads(text).crops(ids, starts, 10), before)


def test_two_processes_build_the_same_bytes(built, tmp_path):
    path, signals = built
    sources = [
        _dump(tmp_path, np.stack(signals[:N])),
        _dump(tmp_path, np.stack(signals[N:]), "ptb-xl"),
    ]
    build_corpus(sources, tmp_path / "corpus", CONFIG, n_jobs=2)
    assert _bytes(tmp_path / "corpus") == _bytes(path)


KILLED = """
    import os, signal, sys
    from dataclasses import dataclass
    from pathlib import Path
    from jepa_ecg.data.arrays import Dump, FileList
    from jepa_ecg.data.build import build_corpus
    from jepa_ecg.data.shard import CorpusConfig

    @dataclass(frozen=True)
    class Dies:
        dump: Dump
        name: str = "own"
        def entries(self):
            return self.dump.entries()
        def read(self, entry, options):
            if entry.row == 10:
                os.kill(os.getpid(), signal.SIGKILL)
            return self.dump.read(entry, options)

    folder = Path(sys.argv[1])
    dump = Dump(str(folder / "own.npy"), fs=100.0, name="own")
    build_corpus([Dies(dump)], folder / "corpus", CorpusConfig(fs=100, shard_records=4))
"""


def test_a_build_killed_in_the_middle_resumes_to_the_same_bytes(tmp_path):
    source = _dump(tmp_path, _signals())
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    path = tmp_path / "corpus"
    assert (path / "signals-00002.npy.partial").exists()
    with pytest.raises(DataError, match=r"has not come to its end.*--resume"):
        Corpus(path)
    with pytest.raises(RunError, match="--resume or --overwrite"):
        build_corpus([source], path, CONFIG)
    seen: list[int] = []
    report = build_corpus([source], path, CONFIG, resume=True, progress=seen.append)
    assert report == (N, 0, 2)
    assert sum(seen) == N
    build_corpus([source], tmp_path / "whole", CONFIG)
    assert _bytes(path) == _bytes(tmp_path / "whole")
    assert build_corpus([source], path, CONFIG, resume=True) == (N, 0, 0)


def test_resuming_with_other_settings_names_the_first_that_differs(tmp_path):
    source = _dump(tmp_path, _signals(3))
    build_corpus([source], tmp_path / "corpus", CONFIG)
    other = CorpusConfig(fs=50, shard_records=4)
    with pytest.raises(RunError, match=r"fs was 100 and is now 50"):
        build_corpus([source], tmp_path / "corpus", other, resume=True)


def test_resuming_builds_a_shard_again_when_its_entries_changed(tmp_path):
    for i, signal_ in enumerate(_signals(11)):
        np.save(tmp_path / f"{i}.npy", signal_)
    (tmp_path / "10.npy").write_bytes(b"broken")

    def source(labels: str, n: int) -> FileList:
        rows = [f"{i}.npy,{labels if i == 1 else 'a'}" for i in range(n)]
        (tmp_path / "list.csv").write_text("\n".join(["path,labels", *rows]))
        return FileList(str(tmp_path / "list.csv"), "own", fs=100)

    path = tmp_path / "corpus"
    with pytest.raises(ECGFormatError, match=r"10\.npy: cannot be read"):
        build_corpus([source("a", 11)], path, CONFIG)
    report = build_corpus([source("b", 8)], path, CONFIG, resume=True)
    assert report == (8, 0, 1)  # the second shard is as it was
    assert Corpus(path).labels("labels").y[1].tolist() == [0, 1]
    build_corpus([source("b", 8)], tmp_path / "whole", CONFIG)
    assert _bytes(path) == _bytes(tmp_path / "whole")


def test_only_a_corpus_is_ever_overwritten(tmp_path):
    source = _dump(tmp_path, _signals(3))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match="not empty and no corpus"):
        build_corpus([source], tmp_path / "mine", CONFIG, overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").exists()
    build_corpus([source], tmp_path / "corpus", CorpusConfig(fs=100, shard_records=1))
    build_corpus([source], tmp_path / "corpus", CONFIG, overwrite=True)
    assert len(Corpus(tmp_path / "corpus")) == 3
    assert not (tmp_path / "corpus" / "signals-00001.npy").exists()


def test_records_that_cannot_be_read_are_listed_with_their_reason(tmp_path):
    array = _signals(9)
    array[2, :, 7] = np.nan
    array[5, 0, 0] = np.inf
    array[6, 10:14, 1] = np.nan
    array[7, :, 4] = 0.25
    source = _dump(tmp_path, array)
    with pytest.raises(ECGFormatError, match="lead V2 has no valid sample"):
        build_corpus([source], tmp_path / "raised", CONFIG)
    config = CorpusConfig(fs=100, shard_records=4, on_error="skip")
    assert build_corpus([source], tmp_path / "corpus", config) == (7, 2, 0)
    with open(tmp_path / "corpus" / "skipped.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["source"], row["id"]) for row in rows] == [("own", "2"), ("own", "5")]
    assert "lead V2 has no valid sample" in rows[0]["reason"]
    assert "lead I is infinite at sample 0" in rows[1]["reason"]
    index = pyarrow.parquet.read_table(tmp_path / "corpus" / "index.parquet").to_pydict()
    assert index["id"] == ["0", "1", "3", "4", "6", "7", "8"]
    assert index["n_missing"] == [0, 0, 0, 0, 4, 0, 0]
    assert index["flat"] == ["", "", "", "", "", "aVL", ""]
    assert "lead II: 4 of 300 samples are missing" in index["warnings"][4]
    corpus = Corpus(tmp_path / "corpus")
    line = corpus.record(4)[1, 9:15]
    np.testing.assert_allclose(line, np.linspace(line[0], line[-1], 6), atol=1.1e-3)


def test_a_corpus_of_nothing_but_failures_is_empty_and_says_so(tmp_path):
    config = CorpusConfig(fs=100, on_error="skip")
    source = _dump(tmp_path, np.full((5, 40, 12), np.nan, np.float32))
    assert build_corpus([source], tmp_path / "corpus", config) == (0, 5, 0)
    corpus = Corpus(tmp_path / "corpus")
    assert len(corpus) == 0
    nothing = np.zeros(0, np.int64)
    assert corpus.crops(nothing, nothing, 10).shape == (0, 12, 10)


def test_short_records_are_left_out_without_being_errors(tmp_path):
    np.savez(tmp_path / "a.npz", data=np.concatenate(_signals(3)), sizes=[500, 100, 300])
    source = Dump(str(tmp_path / "a.npz"), fs=100, name="own")
    config = CorpusConfig(fs=100, min_seconds=3)
    assert build_corpus([source], tmp_path / "corpus", config) == (2, 1, 0)
    assert Corpus(tmp_path / "corpus").lengths.tolist() == [500, 300]


def test_records_are_filtered_then_resampled_as_the_paper_does(tmp_path):
    """CODE-15 loses its baseline wander at its own rate; a source of another name does not."""
    array = _signals(2, 800)
    sources = [_dump(tmp_path, array, name, 400) for name in ("code-15", "own")]
    build_corpus(sources, tmp_path / "corpus", CorpusConfig())
    corpus = Corpus(tmp_path / "corpus")
    filtered = resample(highpass(array[0].astype(np.float64), 400), 400, 500)
    plain = resample(array[0].astype(np.float64), 400, 500)
    np.testing.assert_allclose(corpus.record(0), filtered.T, rtol=0, atol=5.1e-4)
    np.testing.assert_allclose(corpus.record(2), plain.T, rtol=0, atol=5.1e-4)
    assert corpus.lengths.tolist() == [1000] * 4
    assert [source.statistics for source in corpus.sources] == ["published", "measured"]


def test_leads_come_in_the_order_of_the_corpus(tmp_path):
    array = _signals(2)
    shuffled = tuple(lead.upper() for lead in reversed(LEADS))
    source = _dump(tmp_path, array, leads=shuffled)
    build_corpus([source], tmp_path / "corpus", CorpusConfig(fs=100, leads=("II", "V1")))
    got = Corpus(tmp_path / "corpus").record(1)
    np.testing.assert_allclose(got, array[1][:, [10, 5]].T, rtol=1e-6, atol=1e-9)


@given(
    npst.arrays(
        np.float32,
        npst.array_shapes(min_dims=2, max_dims=2, max_side=9),
        elements=st.floats(-1e4, 1e4, width=32),
    )
)
def test_quantisation_errs_by_at_most_half_a_unit(x):
    digital, scale = quantise(x)
    assert scale == np.float32(max(1e-3, float(np.abs(x).max()) / 32767))
    back = digital.astype(np.float64) * float(scale)
    assert np.abs(back - x).max() <= 0.5001 * scale
    if np.abs(x).max() < 32:
        assert scale == np.float32(1e-3)


def test_a_corpus_of_real_records_has_their_labels_folds_and_samples(data, tmp_path):
    root = data("ecg") / "ptbxl"
    config = CorpusConfig(fs=100, shard_records=8, on_error="skip")
    report = build_corpus([PTBXL(str(root), fs=100)], tmp_path / "corpus", config)
    assert report == (20, 480, 0)
    corpus = Corpus(tmp_path / "corpus")
    assert corpus.patients[0] == "15709"
    for i in range(20):
        record = read_record(root / f"records100/00000/{i + 1:05d}_lr")
        np.testing.assert_array_equal(np.rint(corpus.record(i).T * 1000), record.digital)
    for task in ("all", "superdiagnostic", "rhythm", "form", "ST-MEM"):
        whole = ptbxl_labels(root / "ptbxl_database.csv", root / "scp_statements.csv", task)
        kept = whole.ecg_id <= 20
        ours = corpus.labels(task)
        assert (ours.rows + 1).tolist() == whole.ecg_id[kept].tolist()
        assert ours.fold.tolist() == whole.fold[kept].tolist()
        present = whole.y[kept].any(0)
        assert ours.classes.tolist() == whole.classes[present].tolist()
        np.testing.assert_array_equal(ours.y, whole.y[kept][:, present])
    with pytest.raises(DataError, match="no record has labels of 'dx'; there are all, diagnostic"):
        corpus.labels("dx")


def test_memory_stays_flat_while_the_corpus_grows_twentyfold(tmp_path):
    peaks = []
    for name, n in (("warm", 8), ("small", 40), ("large", 800)):
        source = _dump(tmp_path, _signals(n, 500), name)
        config = CorpusConfig(fs=100, shard_records=16)
        tracemalloc.start()
        build_corpus([source], tmp_path / f"{name}-corpus", config)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    large = (tmp_path / "large.npy").stat().st_size
    assert peaks[2] < peaks[1] + 200_000
    assert peaks[2] < large / 10


def test_what_is_no_corpus_says_how_to_make_one(tmp_path):
    with pytest.raises(DataError, match="jepa ecg data build"):
        Corpus(tmp_path)


def test_a_corpus_of_another_format_is_refused(built, tmp_path):
    for path in built[0].iterdir():
        os.link(path, tmp_path / path.name)
    info = json.loads((tmp_path / "corpus.json").read_text())
    (tmp_path / "corpus.json").unlink()
    (tmp_path / "corpus.json").write_text(json.dumps({**info, "format": 99}))
    with pytest.raises(DataError, match="format 99"):
        Corpus(tmp_path)


def test_settings_out_of_range_are_errors():
    with pytest.raises(ConfigError, match="fs"):
        CorpusConfig(fs=0)
    with pytest.raises(ConfigError, match="shard_records"):
        CorpusConfig(shard_records=0)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_an_unreadable_listing_stops_the_build(n_jobs, tmp_path):
    """Also one that is found while processes are at work."""
    rows = "\n".join(f"a{i}" for i in range(30))
    (tmp_path / "list.csv").write_text(f"path\n{rows}\n,\n")
    np.save(tmp_path / "x.npy", _signals(1)[0])
    for i in range(30):
        os.link(tmp_path / "x.npy", tmp_path / f"a{i}")
    source = FileList(str(tmp_path / "list.csv"), "own")
    config = CorpusConfig(shard_records=2, on_error="skip")
    with pytest.raises(ECGFormatError, match="row 31 has no path"):
        build_corpus([source], tmp_path / "corpus", config, n_jobs=n_jobs)
