"""`jepa linear ...` as a user runs it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from jepa_core.run import Run
from jepa_linear.verbs.phase import Phase


def test_help_of_every_verb_answers_and_flags_have_no_prefix(jepa):
    for verb in ("analyse", "demo", "curves", "phase", "info", "reproduce", "report", "data check"):
        said = jepa(*verb.split(), "--help")
        assert said.code == 0
        assert not re.search(r"--[a-z-]+\.[a-z]", said.out)


def test_analyse_writes_a_report_that_needs_nothing_else(jepa, tmp_path, pairs):
    np.savez(tmp_path / "v.npz", x=pairs[0], y=pairs[1])
    out = tmp_path / "run"
    said = jepa("analyse", tmp_path / "v.npz", "--depth", 1, 2, "--simulate", "--out", out)
    assert said.code == 0
    for words in ("Trust:", "Sample size:", "scaling: none", "Simulated with whole matrices"):
        assert words in said.out
    page = (out / "report.html").read_text(encoding="utf-8")
    for words in ("Trust:", "Sample size:", "<h2>Pictures</h2>", "what comes first"):
        assert words in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    found = json.loads((out / "analysis.json").read_text(encoding="utf-8"))
    assert [one["depth"] for one in found["orders"]] == [1, 2]
    assert len(found["simulations"]) == 4
    assert found["directions"]["vectors"]
    run = Run.open(out)
    names = {path.name for path in run.figures.glob("*.npz")}
    assert names == {f"{path.stem}.npz" for path in run.figures.glob("*.svg")}
    with np.load(run.figures / "1-plane.npz") as arrays:
        np.testing.assert_allclose(arrays["rho"], found["directions"]["rho"])


def test_a_run_is_not_overwritten_unless_asked_and_is_the_same_again(jepa, tmp_path, pairs):
    np.savez(tmp_path / "v.npz", x=pairs[0], y=pairs[1])
    out = tmp_path / "run"
    words = ("analyse", tmp_path / "v.npz", "--depth", 2, "--scale", "std", "--out", out)
    said = jepa(*words)
    assert said.code == 0
    assert "divided by its standard deviation" in said.out
    found = (out / "analysis.json").read_bytes()
    assert "already exists" in jepa(*words).err
    assert jepa(*words, "--overwrite").code == 0
    assert (out / "analysis.json").read_bytes() == found
    page = (out / "report.html").read_text(encoding="utf-8")
    (out / "report.html").unlink()
    assert jepa("report", out).code == 0
    again = (out / "report.html").read_text(encoding="utf-8")
    assert re.sub(r"written [^<]*", "", again) == re.sub(r"written [^<]*", "", page)
    assert "divided by its standard deviation" in again


def test_times_may_be_steps(jepa, tmp_path):
    np.savez(tmp_path / "m.npz", lam=[1.0, 1.0], rho=[0.9, 0.5])
    out = tmp_path / "run"
    said = jepa(
        "analyse",
        tmp_path / "m.npz",
        "--depth",
        2,
        "--level",
        "plateau",
        "--lr",
        0.01,
        "--out",
        out,
    )
    assert said.code == 0
    assert "JEPA steps" in (out / "report.html").read_text(encoding="utf-8")


def test_modes_and_masks_and_lags_are_analysed(jepa, tmp_path, pairs):
    np.save(tmp_path / "t.npy", pairs[0])
    np.savez(tmp_path / "m.npz", lam=[1.0, 1.0, 2.0], rho=[0.9, 0.5, 0.2])
    for number, words in enumerate(
        (["t.npy", "--lag", 2], ["t.npy", "--keep", 0.5, "--target", "complement"], ["m.npz"])
    ):
        out = tmp_path / f"run{number}"
        said = jepa("analyse", tmp_path / words[0], *words[1:], "--depth", 2, "--out", out)
        assert said.code == 0, said.err
        assert (out / "report.html").exists()


def test_curves_end_at_the_plateau(jepa):
    said = jepa(
        "curves", "--lam", 1, 1, "--rho", 0.8, 0.5, "--depth", 2, "--times", 0, 1e5,
        "--layer-scale", 0.1,
    )  # fmt: skip
    assert said.code == 0
    last = next(line for line in said.out.splitlines() if line.strip().startswith("100000"))
    assert [float(word) for word in last.split()[1:]] == pytest.approx([0.64, 0.25])
    assert "929.237" in said.out


def test_info_knows_the_reference_times(jepa):
    said = json.loads(jepa("info", "--depth", 2, "--layer-scale", 0.1, "--json").out)
    times = {(one["lambda"], one["rho"]): one["jepa"] for one in said["times"]}
    assert times[1, 1] == pytest.approx(786.109817787, rel=1e-10)
    assert times[1, 0.5] == pytest.approx(929.236992174, rel=1e-10)
    paper = json.loads(jepa("info", "--preset", "paper", "--json").out)
    assert paper["config"]["eps"] == 1e-3
    assert paper["config"]["depth"] == [1, 2, 3, 4, 5]


def test_a_phase_diagram_is_one_command(jepa, tmp_path):
    out = tmp_path / "phase"
    said = jepa("phase", "--size", 24, "--depth", 2, 5, "--scale", 0.1, 0.2, "--out", out)
    assert said.code == 0
    with np.load(out / "phases.npz") as arrays:
        assert arrays["phases"].shape == (2, 2, 24, 24)
        lam, rho = arrays["lam"], arrays["rho"]
        # The clean mode B with less covariance: the JEPA takes it first, reconstruction A.
        column, row = np.searchsorted(lam, 0.87), np.searchsorted(rho, 0.9)
        assert arrays["phases"][0, 0, row, column] == 2
    assert (out / "report.html").exists()


def test_a_gpu_that_is_not_there_is_said(jepa, tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = jepa("phase", "--size", 4, "--device", "cuda", "--out", tmp_path / "p")
    assert said.code == 2
    assert not (tmp_path / "p").exists()


@pytest.mark.gpu
def test_a_gpu_draws_the_same_phases(tmp_path):
    found = []
    for device in ("cpu", "cuda"):
        Phase(size=64, device=device, out=tmp_path / device)()  # type: ignore[arg-type]
        with np.load(tmp_path / device / "phases.npz") as arrays:
            found.append(arrays["phases"])
    # Two devices may differ where two times are equal to rounding.
    assert (found[0] == found[1]).mean() > 0.999


def test_data_check_says_what_it_found(jepa, tmp_path, pairs):
    x = pairs[0].copy()
    x[:5, 0] = np.nan
    x[:, 2] = 7.0
    np.savez(tmp_path / "v.npz", x=x, y=pairs[1])
    said = jepa("data", "check", tmp_path / "v.npz")
    assert said.code == 0
    for words in ("595", "paired views", "x2", "Trust:"):
        assert words in said.out
