"""What an error of the readers proposes is a flag of the verb, and it helps."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jepa_ecg.data.corpus import Corpus
from jepa_ecg.data.databases import LEADS

NAMES = " ".join(LEADS)


def wfdb(folder: Path, leads: tuple[str, ...] = LEADS, frames: int = 400) -> Path:
    """A WFDB record of 400 announced frames at 100 Hz."""
    samples = np.random.default_rng(0).integers(-500, 500, (frames, len(leads)))
    (folder / "r.dat").write_bytes(samples.astype("<i2").tobytes())
    lines = [f"r {len(leads)} 100 400"]
    lines += [f"r.dat 16 1000/mV 16 0 0 0 0 {lead}" for lead in leads]
    (folder / "r.hea").write_text("\n".join(lines))
    return folder / "r.hea"


def array(folder: Path, spoil: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> Path:
    """Two records in an array."""
    np.save(folder / "a.npy", spoil(np.random.default_rng(0).normal(size=(2, 400, 12))))
    return folder / "a.npy"


def empty_lead(x: np.ndarray) -> np.ndarray:
    x[:, :, 4] = np.nan
    return x


def list_of_one(folder: Path) -> Path:
    wfdb(folder)
    (folder / "list.csv").write_text("path\nr\ngone\n")
    return folder / "list.csv"


FS = ("--fs 100", "--source-fs 100")
NO_RATE = ("", "")

# What is wrong, how, the flags of `embed` and of `data build` that say the rate, the remedy.
CASES = [
    ("a lead is not there", lambda f: wfdb(f, LEADS[:-1]), NO_RATE, ("--fill zero",) * 2),
    (
        "a limb lead is not there",
        lambda f: wfdb(f, (*LEADS[:2], *LEADS[3:])),
        NO_RATE,
        ("--derive",) * 2,
    ),
    ("a lead is empty", lambda f: array(f, empty_lead), FS, ("--fill zero",) * 2),
    ("a file is short", lambda f: wfdb(f, frames=300), NO_RATE, ("--truncated pad",) * 2),
    ("a rate is not known", array, NO_RATE, FS),
    ("leads lie before time", lambda f: array(f, lambda x: x.mT), FS, ("--layout NCT",) * 2),
    (
        "leads have no names",
        lambda f: array(f, lambda x: np.concatenate([x, x[..., :1]], -1)),
        FS,
        (f"--array-leads {NAMES} X",) * 2,
    ),
    (
        "samples are integers",
        lambda f: array(f, lambda x: (x * 1000).astype(np.int16)),
        FS,
        ("--gain 1000",) * 2,
    ),
    ("a listed file is missing", list_of_one, NO_RATE, ("--on-error skip",) * 2),
]


@pytest.mark.parametrize("verb", ["embed", "build"])
@pytest.mark.parametrize(
    ("write", "rate", "remedy"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_the_flag_that_an_error_names_mends_it(jepa, run, tmp_path, verb, write, rate, remedy):
    place = write(tmp_path)
    if verb == "embed":
        words = ["embed", run, "--input", place, "--out", tmp_path / "out", *rate[0].split()]
        said = jepa(*words, "--on-error", "raise")
        mend = remedy[0].split()
    else:
        words = ["data", "build", place, "--out", tmp_path / "out", "--fs", 100, *rate[1].split()]
        said = jepa(*words)
        mend = remedy[1].split()
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert mend[0] in said.err
    assert not re.search(r"\w=", said.err)  # no Python
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    said = jepa(*words, *mend)
    assert said.code == 0, said.err


@pytest.mark.parametrize("name", ["r.hea", "r"])
def test_one_record_is_an_input_of_every_verb(jepa, run, attentive, tmp_path, name):
    wfdb(tmp_path)
    out = tmp_path / "corpus"
    assert jepa("data", "check", tmp_path / name).code == 0
    said = jepa("data", "build", tmp_path / name, "--fs", 100, "--out", out)
    assert said.code == 0, said.err
    assert Corpus(out).ids.tolist() == ["r"]
    for verb, model in (("embed", run), ("predict", attentive)):
        file = tmp_path / f"{verb}.parquet"
        said = jepa(verb, model, "--input", tmp_path / name, "--out", file)
        assert said.code == 0, said.err
        assert pq.read_table(file)["id"].to_pylist() == ["r"]
