"""The corpus: the rows that the preprocessor would give, however the build was cut up, and in
little memory."""

from __future__ import annotations

import csv
import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_core.errors import ConfigError, DataError, Interrupted, RunError
from jepa_tabular.data import build as module
from jepa_tabular.data.build import CorpusConfig, build_corpus
from jepa_tabular.data.corpus import TableCorpus
from jepa_tabular.data.survey import Survey
from jepa_tabular.preprocess import TablePreprocessor
from jepa_tabular.presets import ColumnsConfig

FEATURES = ["income", "city", "since", "heavy", "sure"]
CONFIG = CorpusConfig(label="y", id="name", chunk_rows=64)


def table(rows: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "name": [f"n{i}" for i in range(rows)],
            "income": rng.normal(size=rows).round(6),
            "city": rng.choice(["Bern", "Rome", "Oslo, N", None], rows, p=[0.5, 0.3, 0.15, 0.05]),
            "since": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 9**6, rows), "s"),
            "y": rng.choice(["no", "yes"], rows),
            "heavy": np.exp(3 * rng.normal(size=rows)).round(6),
            "sure": rng.random(rows) < 0.5,
        }
    )


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A CSV file of 1,000 rows."""
    path = tmp_path_factory.mktemp("source") / "people.csv"
    table(1000).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def built(source):
    out = source.parent / "corpus"
    assert build_corpus([source], out, CONFIG) == (1000, 0, 0)
    return out


def test_the_rows_are_those_of_the_preprocessor_fitted_in_memory(built):
    corpus, frame = TableCorpus(built), table(1000)
    preprocessor = TablePreprocessor().fit(frame[FEATURES])
    np.testing.assert_array_equal(corpus.x, preprocessor.transform(frame[FEATURES]))
    assert corpus.shape == (1000, 5)
    assert len(corpus) == 1000
    assert corpus.table_shape == preprocessor.shape_
    assert corpus.preprocessor.names_ == tuple(FEATURES)
    ids = np.array([7, 7, 0, 999])
    np.testing.assert_array_equal(corpus[ids], np.asarray(corpus.x)[ids])
    np.testing.assert_array_equal(corpus.preprocessor.transform(frame[FEATURES]), corpus.x)


def test_labels_and_ids_are_kept_apart(built):
    corpus, frame = TableCorpus(built), table(1000)
    assert (corpus.label, corpus.classes, corpus.task) == ("y", ("no", "yes"), "binary")
    assert corpus.y.dtype == np.int32
    assert [corpus.classes[code] for code in corpus.y] == frame["y"].tolist()
    assert corpus.ids.tolist() == frame["name"].tolist()
    assert corpus.column("line").tolist() == list(range(2, 1002))
    assert set(corpus.column("file")) == {"people.csv"}


def test_rows_that_are_not_there_are_refused(built):
    for ids in ([1000], [-1]):
        with pytest.raises(DataError, match="there are rows 0 to 999"):
            TableCorpus(built).rows(np.array(ids))


def test_a_corpus_travels_to_another_process_without_its_rows(built):
    corpus = TableCorpus(built)
    ids = np.arange(9)
    before = corpus.rows(ids)
    assert corpus.y is not None
    assert corpus.preprocessor is not None
    text = pickle.dumps(corpus)
    assert len(text) < 3000
    np.testing.assert_array_equal(pickle.loads(text).rows(ids), before)


@pytest.mark.parametrize("kind", ["tsv", "parquet", "two files", "arff", "npy", "npz"])
def test_every_format_gives_the_same_rows(built, tmp_path, kind):
    frame = table(1000)
    config = CONFIG
    if kind == "tsv":
        paths = [tmp_path / "t.tsv"]
        frame.to_csv(paths[0], sep="\t", index=False)
    elif kind == "parquet":
        paths = [tmp_path / "t.parquet"]
        frame.assign(city=frame["city"].astype("category")).to_parquet(paths[0])
    elif kind == "two files":
        paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
        frame[:300].to_csv(paths[0], index=False)
        frame[300:][[*reversed(frame.columns)]].to_csv(paths[1], index=False)
    elif kind == "arff":
        paths = [tmp_path / "t.arff"]
        head = "@attribute income numeric\n@attribute city {Bern, Rome, 'Oslo, N'}\n"
        head += "@attribute heavy numeric\n@attribute y {yes, no}\n@data\n"
        rows = frame[["income", "city", "heavy", "y"]].astype(object).fillna("?")
        quoted = [[v if v != "Oslo, N" else "'Oslo, N'" for v in row] for row in rows.to_numpy()]
        paths[0].write_text(head + "\n".join(",".join(map(str, row)) for row in quoted))
        config = CorpusConfig(label="y", chunk_rows=64)
    else:
        paths = [tmp_path / f"t.{kind}"]
        x = frame[["income", "heavy"]].to_numpy()
        if kind == "npy":
            np.save(paths[0], x)
        else:
            np.savez(paths[0], X=x, y=np.arange(1000) % 3)
        config = CorpusConfig(label="y" if kind == "npz" else None, chunk_rows=64)
    build_corpus(paths, tmp_path / "corpus", config)
    corpus, whole = TableCorpus(tmp_path / "corpus"), TableCorpus(built)
    here = {"arff": [0, 1, 3], "npy": [0, 3], "npz": [0, 3]}.get(kind, range(5))
    order = [FEATURES.index(name) for name in corpus.preprocessor.names_ if name in FEATURES]
    np.testing.assert_array_equal(corpus.x, np.asarray(whole.x)[:, order or here])
    if kind not in ("npy", "npz"):
        np.testing.assert_array_equal(corpus.y, whole.y)
    if kind == "npz":
        assert corpus.classes == ("0", "1", "2")
        assert corpus.task == "multiclass"


@pytest.mark.parametrize("chunk", [13, 999, 1000, 5000])
def test_the_rows_do_not_depend_on_the_chunks(source, built, tmp_path, chunk):
    config = CorpusConfig(label="y", id="name", chunk_rows=chunk)
    build_corpus([source], tmp_path / "corpus", config)
    for name in ("x.npy", "y.npy", "columns.json"):
        assert (tmp_path / "corpus" / name).read_bytes() == (built / name).read_bytes()


# --- The survey of a table larger than its sample ---


def survey(frame: pd.DataFrame, sample: int, chunk: int) -> Survey:
    found = Survey(
        {
            "income": "numerical",
            "city": "categorical",
            "since": "datetime",
            "heavy": "numerical",
            "sure": "categorical",
        },
        sample,
        seed=0,
    )
    for start in range(0, len(frame), chunk):
        found.add(frame[FEATURES].iloc[start : start + chunk])
    return found


@settings(max_examples=25)
@given(st.integers(30, 200), st.integers(2, 90), st.floats(0, 0.6))
def test_all_but_the_quantiles_is_exact_however_small_the_sample(rows, chunk, missing):
    frame = table(rows)
    frame.loc[np.random.default_rng(1).random(rows) < missing, "heavy"] = np.nan
    frame.loc[3, "city"] = "Ulm"  # hardly ever in the sample
    frame.loc[5, "income"] = -1e6
    config = ColumnsConfig(missing="indicator")
    exact = TablePreprocessor(config).fit(frame[FEATURES])
    ours = survey(frame, 10, chunk).fit(config)
    assert ours.levels_ == exact.levels_
    assert ours.shape_ == exact.shape_
    for name in ("minimum", "maximum", "mean", "std", "absent"):
        np.testing.assert_allclose(
            getattr(ours.statistics_, name), getattr(exact.statistics_, name), rtol=1e-9, atol=1e-12
        )


def test_quantiles_come_from_a_uniform_sample():
    frame = table(20_000).sort_values("heavy")
    config = ColumnsConfig()
    exact = TablePreprocessor(config).fit(frame[FEATURES]).transform(frame[FEATURES])
    ours = survey(frame, 4000, 999).fit(config).transform(frame[FEATURES])
    # A rank among 4,000 is known to about 0.8 %, which at the median is 0.02 deviations.
    middle = np.abs(exact[:, 3]) < 1
    assert np.abs(ours[middle, 3] - exact[middle, 3]).max() < 0.06
    assert np.abs(ours[:, 3] - exact[:, 3]).mean() < 0.03


def test_the_sample_does_not_depend_on_the_chunks():
    frame = table(500)
    states = [survey(frame, 50, chunk).fit(ColumnsConfig()).statistics_ for chunk in (3, 77, 500)]
    for state in states[1:]:
        np.testing.assert_array_equal(state.quantiles, states[0].quantiles)
        np.testing.assert_array_equal(state.median, states[0].median)


def test_a_sample_as_large_as_the_table_is_the_table():
    frame = table(300)
    ours, exact = survey(frame, 300, 41).fit(ColumnsConfig()), TablePreprocessor()
    exact.fit(frame[FEATURES])
    assert ours.to_state()[0]["levels"] == exact.to_state()[0]["levels"]
    for name, array in exact.to_state()[1].items():
        np.testing.assert_array_equal(ours.to_state()[1][name], array)


# --- Rows that cannot be used ---

BAD = """a,b,c
1,2,x
oops,3,y
4,5
6,inf,x
7,8,y
9,,x
10,11,y
12,1e39,y
"""


def bad(folder, extra: int = 30):
    path = folder / "bad.csv"
    path.write_text(BAD + "".join(f"{i},{2 * i},x\n" for i in range(extra)))
    return path


def test_rows_that_cannot_be_used_are_listed_with_their_line_and_reason(tmp_path):
    config = CorpusConfig(on_error="skip", chunk_rows=64)
    assert build_corpus([bad(tmp_path)], tmp_path / "corpus", config) == (33, 5, 0)
    with open(tmp_path / "corpus" / "skipped.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["line"]) for row in rows] == [("bad.csv", n) for n in "34579"]
    assert [row["reason"] for row in rows] == [
        "'a' is 'oops', not a number",
        "2 fields, expected 3",
        "'b' is inf, too large for float32",
        "'b' is missing",
        "'b' is 1e+39, too large for float32",
    ]
    corpus = TableCorpus(tmp_path / "corpus")
    assert corpus.column("line").tolist() == [2, 6, 8, *range(10, 40)]
    assert corpus.ids[:2].tolist() == ["2", "6"]
    assert (corpus.label, corpus.task, corpus.classes) == (None, None, ())
    with pytest.raises(DataError, match="no labels; build it with --label"):
        corpus.y  # noqa: B018


def test_the_first_such_row_stops_a_build_that_is_not_told_to_skip(tmp_path):
    with pytest.raises(DataError, match=r"bad\.csv, line 3: 'a' is 'oops', not a number; --on-err"):
        build_corpus([bad(tmp_path)], tmp_path / "corpus")


def test_missing_numbers_follow_the_policy(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "".join(f"{i},{i % 7 if i % 5 else ''}\n" for i in range(50)))
    with pytest.raises(DataError, match=r"line 2: 'b' is missing; --missing indicator, mean or"):
        build_corpus([path], tmp_path / "error")
    kept = {"indicator": 50, "mean": 50, "median": 50, "drop": 40}
    for missing, rows in kept.items():
        columns = ColumnsConfig(missing=missing)
        config = CorpusConfig(columns=columns, chunk_rows=8)
        assert build_corpus([path], tmp_path / missing, config) == (rows, 50 - rows, 0)
        corpus = TableCorpus(tmp_path / missing)
        frame = pd.read_csv(path)
        exact = TablePreprocessor(columns)
        np.testing.assert_array_equal(corpus.x, exact.fit_transform(frame))
        assert corpus.table_shape.missing == (missing == "indicator")


def test_a_table_of_nothing_but_failures_says_so(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,inf\n,4\n")
    config = CorpusConfig(on_error="skip", drop=())
    (tmp_path / "t.csv").write_text("a,b\n1,inf\n3,inf\n")
    with pytest.raises(DataError, match=r"none of the 2 rows can be used.*data check"):
        build_corpus([tmp_path / "t.csv"], tmp_path / "corpus", config)


def test_the_first_rows_decide_that_a_column_holds_numbers(tmp_path):
    """Whole numbers may go on as fractions; text among them is a row left out."""
    path = tmp_path / "t.csv"
    rows = [f"{i},{i}" for i in range(40)]
    path.write_text("\n".join(["a,b", *rows, "0.5,1e3", "1,none", "2,7", "3,"]))
    config = CorpusConfig(on_error="skip", chunk_rows=10)
    assert build_corpus([path], tmp_path / "corpus", config) == (42, 2, 0)
    corpus = TableCorpus(tmp_path / "corpus")
    assert corpus.preprocessor.kinds_ == ("numerical", "numerical")
    assert corpus.preprocessor.statistics_.maximum.tolist() == [39, 1000]


def test_columns_of_numbers_are_categories_when_named_and_columns_can_be_dropped(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,c\n" + "".join(f"{i},{i % 3},{i}\n" for i in range(30)))
    config = CorpusConfig(categorical=("b",), drop=("c",), chunk_rows=7)
    build_corpus([path], tmp_path / "corpus", config)
    shape = TableCorpus(tmp_path / "corpus").table_shape
    assert (shape.columns, shape.categorical, shape.cardinalities) == (2, (1,), (4,))
    with pytest.raises(DataError, match="no column is called 'd'; allowed: a, b, c"):
        build_corpus([path], tmp_path / "other", CorpusConfig(drop=("d",)))


@pytest.mark.parametrize(
    ("values", "task", "classes", "y"),
    [
        ("0.5 1 2 1", "auto", None, [0.5, 1, 2, 1]),
        ("2 10 2 1", "auto", ("1", "2", "10"), [1, 2, 1, 0]),
        ("2 10 _ 1", "auto", ("1", "2", "10"), [1, 2, -1, 0]),
        ("b a _ a", "auto", ("a", "b"), [1, 0, -1, 0]),
        ("true false true true", "auto", ("false", "true"), [1, 0, 1, 1]),
        ("2 10 _ 1", "numbers", None, [2, 10, np.nan, 1]),
        ("0.5 1.0 0.5 _", "classes", ("0.5", "1.0"), [0, 1, 0, -1]),
    ],
)
def test_labels_are_classes_or_numbers(tmp_path, values, task, classes, y):
    path = tmp_path / "t.csv"
    lines = [f"{i},{i * i},{v.strip('_')}" for i, v in enumerate(values.split())]
    path.write_text("\n".join(["a,b,y", *lines]))
    build_corpus([path], tmp_path / "corpus", CorpusConfig(label="y", task=task, chunk_rows=2))
    corpus = TableCorpus(tmp_path / "corpus")
    assert corpus.classes == (classes or ())
    assert corpus.task == ("regression" if not classes else corpus.task)
    np.testing.assert_array_equal(corpus.y, y)
    assert corpus.shape == (4, 2)


def test_one_class_is_no_label(tmp_path):
    (tmp_path / "t.csv").write_text("a,b,y\n1,2,x\n3,4,x\n")
    with pytest.raises(DataError, match="label 'y': has one class only, 'x'"):
        build_corpus([tmp_path / "t.csv"], tmp_path / "corpus", CorpusConfig(label="y"))


def test_files_with_other_columns_do_not_make_one_corpus(source, tmp_path):
    table(9).drop(columns="city").to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(DataError, match=r"b\.csv: has not the columns of the first file: 'city'"):
        build_corpus([source, tmp_path / "b.csv"], tmp_path / "corpus", CONFIG)


# --- Stopping and going on ---

KILLED = """
    import os, signal, sys
    from pathlib import Path
    from jepa_tabular.data import build
    from jepa_tabular.data.build import CorpusConfig, build_corpus

    write, parts = build._Build._write_part, []
    def dies(self, *args):
        parts.append(1)
        if len(parts) == 6:
            args[0].write(b"half a chunk"); args[0].flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return write(self, *args)
    build._Build._write_part = dies
    build_corpus(
        [Path(sys.argv[1])], Path(sys.argv[2]), CorpusConfig(label="y", id="name", chunk_rows=64)
    )
"""


def test_a_build_killed_in_the_middle_resumes_to_the_same_bytes(source, built, tmp_path):
    out = tmp_path / "corpus"
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(source), str(out)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    with pytest.raises(DataError, match=r"has not come to its end.*--resume"):
        TableCorpus(out)
    with pytest.raises(RunError, match="--resume or --overwrite"):
        build_corpus([source], out, CONFIG)
    assert build_corpus([source], out, CONFIG, resume=True) == (1000, 0, 5 * 64)
    assert files(out) == files(built)
    assert build_corpus([source], out, CONFIG, resume=True) == (1000, 0, 1000)


@pytest.mark.parametrize("after", [0, 3, 14])
def test_ctrl_c_keeps_what_is_written(source, built, tmp_path, monkeypatch, after):
    frame = table(1000)
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    frame[:300].to_csv(paths[0], index=False)
    frame[300:].to_csv(paths[1], index=False)
    whole = tmp_path / "whole"
    build_corpus(paths, whole, CONFIG)
    write, parts = module._Build._write_part, []

    def stops(self, *arguments):
        if len(parts) == after:
            raise KeyboardInterrupt
        parts.append(write(self, *arguments))

    monkeypatch.setattr(module._Build, "_write_part", stops)
    with pytest.raises(Interrupted, match="--resume goes on"):
        build_corpus(paths, tmp_path / "corpus", CONFIG)
    monkeypatch.undo()
    report = build_corpus(paths, tmp_path / "corpus", CONFIG, resume=True)
    assert report.resumed == min(after, 4) * 64 + max(after - 5, 0) * 64 + (44 if after > 4 else 0)
    assert files(tmp_path / "corpus") == files(whole)
    np.testing.assert_array_equal(TableCorpus(whole).x, TableCorpus(built).x)


def test_a_build_stopped_at_its_very_end_resumes_to_the_same_bytes(
    source, built, tmp_path, monkeypatch
):
    def stops(folder, info):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "finish", stops)
    with pytest.raises(Interrupted, match="--resume goes on"):
        build_corpus([source], tmp_path / "corpus", CONFIG)
    monkeypatch.undo()
    assert build_corpus([source], tmp_path / "corpus", CONFIG, resume=True) == (1000, 0, 1000)
    assert files(tmp_path / "corpus") == files(built)


@pytest.mark.parametrize("left", [0, 500])
def test_values_that_were_lost_since_a_build_stopped_are_missed(
    source, tmp_path, monkeypatch, left
):
    write, parts = module._Build._write_part, []

    def stops(self, *arguments):
        if len(parts) == 3:
            raise KeyboardInterrupt
        parts.append(write(self, *arguments))

    monkeypatch.setattr(module._Build, "_write_part", stops)
    with pytest.raises(Interrupted):
        build_corpus([source], tmp_path / "corpus", CONFIG)
    monkeypatch.undo()
    values = tmp_path / "corpus" / "x.npy"
    values.write_bytes(values.read_bytes()[:left])
    with pytest.raises(RunError, match=r"x\.npy: is shorter than the 192 rows .* --overwrite"):
        build_corpus([source], tmp_path / "corpus", CONFIG, resume=True)


def test_a_build_stopped_while_it_learns_begins_again(source, built, tmp_path, monkeypatch):
    def stops(self, config):
        raise KeyboardInterrupt

    monkeypatch.setattr(Survey, "fit", stops)
    with pytest.raises(Interrupted):
        build_corpus([source], tmp_path / "corpus", CONFIG)
    monkeypatch.undo()
    assert build_corpus([source], tmp_path / "corpus", CONFIG, resume=True) == (1000, 0, 0)
    assert files(tmp_path / "corpus") == files(built)


def test_resuming_with_other_settings_names_the_first_that_differs(built, source):
    other = CorpusConfig(label="y", id="name", chunk_rows=65)
    with pytest.raises(RunError, match="chunk_rows was 64 and is now 65"):
        build_corpus([source], built, other, resume=True)


def test_a_file_that_changed_between_the_passes_is_found_out(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "".join(f"{i},{i}\n" for i in range(20)))
    to_state = TablePreprocessor.to_state

    def changes(self):
        path.write_text("a,b\n" + "".join(f"{i},{i}\n" for i in range(19)))
        return to_state(self)

    monkeypatch.setattr(TablePreprocessor, "to_state", changes)
    with pytest.raises(RunError, match="the files changed during the build"):
        build_corpus([path], tmp_path / "corpus")


def test_only_a_corpus_is_ever_overwritten(source, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match="not empty and no corpus"):
        build_corpus([source], tmp_path / "mine", CONFIG, overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").exists()
    build_corpus([source], tmp_path / "corpus", CONFIG)
    build_corpus([source], tmp_path / "corpus", CorpusConfig(drop=("name", "y")), overwrite=True)
    assert not (tmp_path / "corpus" / "y.npy").exists()


def test_a_full_disk_is_one_line_before_and_while_writing(source, tmp_path, monkeypatch):
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(
        RunError, match=r"x.npy takes .* GB are free; free some space and add --res"
    ):
        build_corpus([source], tmp_path / "corpus", CONFIG)
    monkeypatch.undo()

    def full(self, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module._Build, "_write_part", full)
    with pytest.raises(RunError, match="the disk is full; free some space and add --resume"):
        build_corpus([source], tmp_path / "corpus", CONFIG, resume=True)
    monkeypatch.undo()
    assert build_corpus([source], tmp_path / "corpus", CONFIG, resume=True).kept == 1000


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_memory_stays_flat_while_the_table_grows_twentyfold(tmp_path, suffix):
    config = CorpusConfig(label="y", id="name", chunk_rows=400, quantile_rows=400)
    peaks = []
    for name, n in (("warm", 1_200), ("small", 1_200), ("large", 24_000)):
        path = tmp_path / f"{name}.{suffix}"
        if suffix == "csv":
            table(n).to_csv(path, index=False)
        else:
            table(n).to_parquet(path, row_group_size=500)
        arrow = pa.default_memory_pool()
        before = arrow.bytes_allocated()
        tracemalloc.start()
        # A bar that comes up on a slow machine would import what draws it.
        build_corpus([path], tmp_path / f"{name}-corpus", config, progress=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert arrow.bytes_allocated() - before < 1_000_000
    assert peaks[2] < peaks[1] + 400_000
    assert peaks[2] < (tmp_path / "large-corpus" / "x.npy").stat().st_size * 4


def test_what_is_no_corpus_and_what_is_damaged_say_how_to_make_one(built, tmp_path):
    with pytest.raises(DataError, match="is no corpus; `jepa tabular data build` makes one"):
        TableCorpus(tmp_path)
    for path in built.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "x.npy").write_bytes((built / "x.npy").read_bytes()[:-8])
    with pytest.raises(DataError, match=r"x\.npy: cannot be read.*build the corpus again"):
        TableCorpus(tmp_path).x  # noqa: B018
    info = json.loads((built / "corpus.json").read_text())
    (tmp_path / "corpus.json").write_text(json.dumps({**info, "format": 99}))
    with pytest.raises(DataError, match="format 99"):
        TableCorpus(tmp_path)


def test_settings_out_of_range_are_errors():
    with pytest.raises(ConfigError, match="chunk_rows"):
        CorpusConfig(chunk_rows=1)


def test_a_parquet_file_with_another_type_of_column_is_refused(tmp_path):
    pq.write_table(pa.table({"a": [1, 2], "b": [1, 2]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"a": ["x", "y"], "b": [1, 2]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: cannot be read after row 0"):
        build_corpus([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "corpus")


# --- The commands ---


@pytest.fixture
def jepa(jepa):
    """`jepa("check", path)` runs `jepa tabular data check path`."""
    return partial(jepa, "data")


def test_check_shows_kinds_missing_values_and_a_leak(jepa, tmp_path):
    frame = table(60).assign(copy=lambda t: (t["y"] == "yes") * 2.0, same=1.0)
    frame.to_csv(tmp_path / "t.csv", index=False)
    code, out, _ = jepa("check", tmp_path / "t.csv", "--label", "y", "--id", "name")
    assert code == 0
    text = " ".join(out.split())
    assert "60 rows, 7 features" in text
    assert "city categorical" in text
    assert "since datetime 0 60" in text
    assert "same warning constant" in text
    assert "copy warning a copy of the label" in text
    assert "y label 2 different values, 0 missing" in text


def test_check_counts_the_rows_that_cannot_be_used_and_exits_with_2(jepa, tmp_path):
    code, out, err = jepa("check", bad(tmp_path))
    assert code == 2
    text = " ".join(out.split())
    assert "line 3 error 'a' is 'oops', not a number" in text
    assert "line 4 error 2 fields, expected 3" in text
    assert err.count("\n") == 1
    assert "5 problems" in err
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "".join(f"{i},{i % 7 if i % 5 else ''}\n" for i in range(50)))
    _, out, _ = jepa("check", path)
    assert "'b' is missing (10 rows, this is the first)" in " ".join(out.split())
    assert jepa("check", path, "--missing", "indicator")[0] == 0


def test_check_names_a_column_of_numbers_as_text(jepa, tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f'{i},"{i},000"\n' for i in range(9)))
    code, out, _ = jepa("check", tmp_path / "t.csv")
    assert code == 2
    assert "b error numbers as text, first '0,000'" in " ".join(out.split())
    assert jepa("check", tmp_path / "t.csv", "--categorical", "b")[0] == 0


def test_build_says_what_it_did_and_how_to_go_on(jepa, source, tmp_path):
    words = ["build", source, "--out", tmp_path / "corpus", "--label", "y", "--id", "name"]
    code, out, _ = jepa(*words)
    assert (code, out) == (0, f"{tmp_path / 'corpus'}: 1000 rows\n")
    code, _, err = jepa(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert "--resume or --overwrite" in err
    assert jepa(*words, "--resume")[0] == 0
    code, out, _ = jepa("build", bad(tmp_path), "--out", tmp_path / "b", "--on-error", "skip")
    assert (code, "5 rows left out, see" in out) == (0, True)


def test_flags_have_no_prefix(jepa):
    for verb in ("check", "build", "fetch"):
        code, out, _ = jepa(verb, "--help")
        assert code == 0
        assert "--config." not in out
        assert "--columns." not in out
