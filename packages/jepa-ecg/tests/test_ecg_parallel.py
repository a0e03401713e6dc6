"""Corpora and embeddings on any backend of joblib, also on those that give nothing but lists."""

from __future__ import annotations

import joblib
import numpy as np
import pyarrow.parquet as pq
import pytest
from joblib.parallel import ThreadingBackend

from jepa_ecg.data.arrays import Dump
from jepa_ecg.data.build import build_corpus
from jepa_ecg.data.errors import ECGFormatError
from jepa_ecg.data.shard import CorpusConfig

N, SHARD = 23, 4
CONFIG = CorpusConfig(fs=100, shard_records=SHARD)


class ListsOnly(ThreadingBackend):
    """As the backends of Ray and of `multiprocessing` are."""

    supports_return_generator = False


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(N, 300, 12)).astype(np.float32)


@pytest.fixture
def dump(array, tmp_path) -> Dump:
    np.save(tmp_path / "own.npy", array)
    return Dump(str(tmp_path / "own.npy"), fs=100, name="own")


def _bytes(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_corpus_does_not_depend_on_the_backend(dump, tmp_path):
    build_corpus([dump], tmp_path / "plain", CONFIG)
    seen: list[int] = []
    with joblib.parallel_config(backend=ListsOnly(), n_jobs=2):
        report = build_corpus([dump], tmp_path / "lists", CONFIG, progress=seen.append)
    assert report == (N, 0, 0)
    assert (sum(seen), len(seen)) == (N, -(-N // SHARD))
    assert _bytes(tmp_path / "lists") == _bytes(tmp_path / "plain")


def test_a_bad_record_stops_a_build_on_a_backend_of_lists(dump, array, tmp_path):
    array[10, :, 3] = np.nan
    np.save(tmp_path / "own.npy", array)
    with (
        joblib.parallel_config(backend=ListsOnly()),
        pytest.raises(ECGFormatError, match="record 10: lead aVR has no valid sample"),
    ):
        build_corpus([dump], tmp_path / "corpus", CONFIG, n_jobs=2)
    assert build_corpus([dump], tmp_path / "skipping", CorpusConfig(on_error="skip")).skipped == 1


def test_embeddings_do_not_depend_on_the_backend(jepa, run, dump, tmp_path):
    words = ["embed", run, "--input", dump.path, "--fs", 100]
    assert jepa(*words, "--out", tmp_path / "plain.parquet").code == 0
    with joblib.parallel_config(backend=ListsOnly()):
        assert jepa(*words, "--jobs", 2, "--out", tmp_path / "lists.parquet").code == 0
    plain, lists = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("plain", "lists"))
    assert lists.num_rows == N
    assert lists.equals(plain)
