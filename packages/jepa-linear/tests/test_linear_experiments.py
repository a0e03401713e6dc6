"""The demo and the reproduction: honest words, tables from the numbers, markers in a README."""

from __future__ import annotations

import numpy as np
import pytest

from jepa_core.config import read_json
from jepa_core.errors import ConfigError
from jepa_core.report.table import Table
from jepa_core.run import Run
from jepa_linear.experiments import demo, digits, matrices, natural, reproduce, theory
from jepa_linear.experiments.digits import Setting
from jepa_linear.figures import save


@pytest.fixture
def run(tmp_path):
    record = {"domain": "linear", "verb": "demo", "version": "0", "command": "x", "config": {}}
    return Run.create(tmp_path / "run", record)


def test_the_demo_predicts_and_simulates_slow_and_clean_first(tmp_path, capsys):
    out = tmp_path / "demo"
    demo.Demo(out=out, pairs=20_000)()
    table = Table.from_dict(read_json(out / "results" / "0-order.json"))
    by = {(row[0], row[1]): row for row in table.rows}
    jepa = "slow and clean, fast, slow and noisy"
    assert by[2, "JEPA"][2] == by[2, "JEPA"][3] == jepa
    assert by[4, "JEPA"][2] == jepa
    assert by[2, "MAE"][2] == by[2, "MAE"][3]
    assert by[2, "MAE"][2] != jepa
    names = {path.stem for path in (out / "figures").glob("*.svg")}
    for number, name in enumerate(
        ("learning-curves", "critical-times", "depth", "phases", "descent", "views", "leakage",
         "collapse"), 1
    ):  # fmt: skip
        assert f"{number}-{name}" in names
    assert {"9-1-plane", "9-2-ladder", "9-5-probability", "9-6-simulation"} <= names
    assert all((out / "figures" / f"{name}.npz").exists() for name in names)
    assert "slow and clean first" in (out / "report.html").read_text(encoding="utf-8")
    assert "report:" in capsys.readouterr().out


def test_the_reference_table_is_the_formula():
    table = theory.reference_table()
    row = next(row for row in table.rows if row[:3] == [3, "1", "0.5"])
    assert row[3:] == ["80559.9", "148.175", "0.125", "0.5946"]


def test_the_delays_of_the_depth_sweep():
    panels = theory.ratios()
    scales = panels["fixed layer scale a0"]
    depth = theory.SWEPT_DEPTHS.index
    assert scales["JEPA, a0 = 0.05"][depth(1)] == pytest.approx(0.97374053, rel=1e-7)
    assert scales["JEPA, a0 = 0.3"][depth(6)] == pytest.approx(1.9897085, rel=1e-7)
    assert np.isnan(scales["JEPA, a0 = 0.3"][depth(1)])
    eps = panels["fixed encoder scale eps"]["JEPA, eps = 0.0001"]
    assert eps[depth(12)] == pytest.approx(2.5454741, rel=1e-7)
    assert np.isnan(eps[depth(16)])
    note = theory.depth_sweep_table().notes[0]
    for words in (
        "With one layer a JEPA has no such preference",
        "depends on what is held",
        "13.3",
    ):
        assert words in note


def test_between_the_boundaries_the_orders_are_inverted():
    rows = {(row[0], row[1]): row[2:] for row in theory.inversion_table().rows}
    assert rows[2, "0.1"] == ["0.802478", "1.043263"]
    assert rows[8, "0.3"] == ["0.320807", "0.999794"]


def test_descent_follows_the_formula_and_leakage_grows_with_depth(run):
    assert max(matrices.save_descent(run, d=3).values()) < 0.02
    slope = matrices.save_leakage(run, depths=(1, 2))
    assert slope[2] > slope[1] > 0
    delay = matrices.save_collapse(run)
    assert delay[0.01] > 5
    assert delay[max(delay)] == pytest.approx(1, abs=1e-3)


def test_the_nuisance_of_the_digits_is_where_it_should_be():
    task = digits.make_task(0)
    part = task.x @ task.nuisance
    other = task.y @ task.nuisance
    np.testing.assert_allclose((part**2).mean(0), 1.0, atol=0.15)
    shared = (part * other).mean(0)
    np.testing.assert_allclose(shared, digits.SHARED, atol=0.1)
    assert abs(shared.mean() - digits.SHARED) < 0.02
    assert task.x.shape == (1200, 96)
    assert not set(map(tuple, task.x[:, :3])) & set(map(tuple, task.x_test[:, :3]))


def test_the_share_of_nuisance_is_that_of_the_energy():
    task = digits.make_task(1)
    only = task.nuisance @ task.nuisance.T
    assert digits.measure(only, task)[1] == pytest.approx(1)
    assert digits.measure(np.eye(96) - only, task)[1] == pytest.approx(0, abs=1e-12)


def test_a_jepa_of_two_layers_keeps_the_nuisance_out():
    task = digits.make_task(0)
    setting = Setting(2, 0.25, 1500)
    jepa, mae = (digits.train(task, setting, one) for one in ("jepa", "mae"))
    assert jepa.nuisance[-1] < mae.nuisance[-1] / 3
    assert jepa.accuracy[-1] > 0.93
    assert mae.accuracy[0] > jepa.accuracy[0], "reconstruction is ahead early"
    assert jepa.steps[-1] == 1500


def test_without_stopgrad_the_encoder_shrinks():
    task = digits.make_task(0)
    curve = digits.train(task, Setting(2, 0.25, 200), control=digits.CONTROLS[1])
    assert (np.diff(curve.size) < 0).all()


def test_the_reproduction_writes_its_tables_into_a_readme(tmp_path, monkeypatch, capsys):
    settings = (Setting(1, 0.1, 3), Setting(2, 0.25, 3))
    monkeypatch.setattr(digits, "SETTINGS", settings)
    monkeypatch.setattr(natural, "_STEPS", 1500)
    readme = tmp_path / "README.md"
    readme.write_text("# a\n<!-- reproduce:begin -->\nstale words\n<!-- reproduce:end -->\nb\n")
    out = tmp_path / "run"
    reproduce.Reproduce(out=out, seeds=(0, 1, 2), readme=readme)()
    page = readme.read_text(encoding="utf-8")
    assert page.startswith("# a\n<!-- reproduce:begin -->")
    assert page.endswith("<!-- reproduce:end -->\nb\n")
    assert "stale words" not in page
    for words in ("Digits beside a nuisance", "no such preference", "hardly changes", "0.9879"):
        assert words in page
    for name in ("learning.svg", "depth.svg", "digits.svg"):
        assert f"]({name})" in page
        assert (tmp_path / name).read_text(encoding="utf-8").lstrip().startswith("<?xml")
    table = Table.from_dict(read_json(out / "results" / "1-digits.json"))
    arms = [row[0] for row in table.rows]
    for name in (
        "raw features",
        "random projection (untrained)",
        *(f"JEPA, {s}" for s in settings),
    ):
        assert name in arms
    assert len(arms) == len(set(arms))
    said = capsys.readouterr().out
    assert "Seeds in which" in said
    assert "designed" in said


def test_fewer_than_three_seeds_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="three or more"):
        reproduce.Reproduce(out=tmp_path / "r", seeds=(0, 1))()


def test_a_picture_keeps_its_arrays(run):
    from matplotlib.figure import Figure

    save(run, "one", Figure(), "what it shows", a=[1, 2])
    with np.load(run.figures / "one.npz") as arrays:
        np.testing.assert_array_equal(arrays["a"], [1, 2])
    assert (run.figures / "one.txt").read_text() == "what it shows\n"
