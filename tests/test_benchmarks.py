"""The benchmark harness: its logic, never its times."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.harness")


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.memory")


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.run")


@pytest.fixture
def clockwork(harness: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """CPU time that only moves when a contender says so."""
    now = [0.0]
    monkeypatch.setattr(harness.time, "process_time", lambda: now[0])
    monkeypatch.setattr(harness.time, "perf_counter", lambda: 10 * now[0])
    return now


def test_contenders_are_interleaved_and_the_order_turns_every_other_round(harness, clockwork):
    calls = []

    def contender(name):
        def work():
            calls.append(name)
            clockwork[0] += 1.0

        return work

    contenders = {name: contender(name) for name in "abc"}
    harness.compare("order", contenders, "a", rounds=4)
    warm = 3 * harness.WARM_UP
    assert harness.WARM_UP >= 2
    assert "".join(calls[:warm]) == "abcabc"
    assert "".join(calls[warm:]) == "abc" + "cba" + "abc" + "cba"


def test_the_ratio_is_the_median_of_the_per_round_ratios_not_the_ratio_of_medians(
    harness, clockwork
):
    base = iter([1, 1, 1.0, 10.0, 2.0, 20.0, 4.0])
    other = iter([1, 1, 2.0, 1.0, 1.0, 10.0, 4.0])

    def take(durations):
        return lambda: clockwork.__setitem__(0, clockwork[0] + next(durations))

    rows = harness.compare("x", {"base": take(base), "other": take(other)}, "base", rounds=5)
    ratios = np.array([0.5, 10, 2, 2, 1])
    assert rows[1].ratio == pytest.approx(2.0)
    assert rows[1].low == pytest.approx(np.percentile(ratios, 10))
    assert rows[1].high == pytest.approx(np.percentile(ratios, 90))
    assert rows[1].seconds == pytest.approx(2.0)
    assert rows[1].wall == pytest.approx(20.0)
    assert (rows[0].ratio, rows[0].low, rows[0].high) == (1, 1, 1)


@pytest.mark.parametrize(("seconds", "rounds"), [(0.001, 15), (0.1, 15), (0.5, 7)])
def test_short_samples_get_more_rounds_and_short_calls_are_repeated(
    harness, clockwork, seconds, rounds
):
    calls = []

    def work():
        calls.append(1)
        clockwork[0] += seconds

    (row,) = harness.compare("x", {"one": work}, "one")
    repeats = max(1, round(harness.SAMPLE / seconds))
    assert row.rounds == rounds
    assert row.seconds == pytest.approx(seconds)
    assert len(calls) == harness.WARM_UP + rounds * repeats


def test_the_share_of_peak_is_counted_work_over_the_peak_of_the_same_rounds(
    harness, clockwork, monkeypatch
):
    def spend(seconds):
        return lambda: clockwork.__setitem__(0, clockwork[0] + seconds)

    monkeypatch.setattr(harness.Gemm, "build", lambda self: (spend(2.0), 200.0))
    rows = harness.compare(
        "x", {"a": spend(1.0), "b": spend(4.0)}, "a", flops={"a": 50.0, "b": 50.0}
    )
    assert [row.contender for row in rows] == ["a", "b"]
    assert rows[0].share_of_peak == pytest.approx(0.5)
    assert rows[1].share_of_peak == pytest.approx(0.125)


def test_unequal_contenders_are_not_timed(harness):
    calls = []
    contenders = {"one": lambda: calls.append("one"), "two": lambda: calls.append("two")}
    with pytest.raises(harness.UnequalError):
        harness.compare("x", contenders, "one", check=lambda: False)
    with pytest.raises(ZeroDivisionError):
        harness.compare("x", contenders, "one", check=lambda: 1 // 0)
    assert calls == []


def test_a_row_says_whether_the_outputs_were_compared(harness, clockwork):
    contenders = {"one": lambda: clockwork.__setitem__(0, clockwork[0] + 1)}
    assert not harness.compare("x", contenders, "one")[0].checked
    assert harness.compare("x", contenders, "one", check=lambda: None)[0].checked


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        (np.ones(3), np.array([1.0, 1.0, 1.0 + 1e-3])),
        (np.ones(3), np.ones((3, 1))),
        (torch.ones(2), torch.zeros(2)),
        ((np.ones(2), {"loss": 1.0}), (np.ones(2), {"loss": 2.0})),
        ([np.ones(2)], [np.ones(2), np.ones(2)]),
        (np.array([1, 2]), np.array([1, 3])),
        (torch.ones(2, dtype=torch.bfloat16), 2 * torch.ones(2, dtype=torch.bfloat16)),
        (np.array([np.nan]), np.array([0.0])),
    ],
)
def test_equal_outputs_finds_the_difference(harness, expected, found):
    same = {"a": lambda: expected, "b": lambda: expected}
    harness.equal_outputs(same)()
    with pytest.raises(harness.UnequalError, match="b "):
        harness.equal_outputs({"a": lambda: expected, "b": lambda: found}, atol=1e-4)()


def test_equal_outputs_allows_only_the_stated_tolerance(harness):
    contenders = {"a": lambda: np.zeros(1), "b": lambda: np.full(1, 1e-6)}
    harness.equal_outputs(contenders, atol=1e-5)()
    with pytest.raises(harness.UnequalError, match="1e-06"):
        harness.equal_outputs(contenders)()


def test_names_that_are_no_contenders_are_refused(harness):
    one = {"one": lambda: None}
    for wrong in (
        {"flops": {"two": 1.0}},
        {"target": {"two": 1.0}},
        {"notes": {"two": ""}},
        {"memory": {"two": 1}},
        {"work": {"two": 1.0}, "peak": harness.Copy()},
    ):
        with pytest.raises(ValueError, match="two"):
            harness.compare("x", one, "one", **wrong)
    with pytest.raises(ValueError, match="baseline 'two'"):
        harness.compare("x", one, "two")
    with pytest.raises(ValueError, match="peak"):
        harness.compare("x", one, "one", work={"one": 1.0})


def test_a_target_is_met_on_the_median_and_the_baseline_has_none(harness, clockwork):
    def spend(seconds):
        return lambda: clockwork.__setitem__(0, clockwork[0] + seconds)

    contenders = {"base": spend(3.0), "twice": spend(1.5), "same": spend(3.0)}
    rows = {row.contender: row for row in harness.compare("x", contenders, "base", target=1.5)}
    assert (rows["base"].met, rows["twice"].met, rows["same"].met) == (None, True, False)
    rows = {r.contender: r for r in harness.compare("x", contenders, "base", target={"same": 1})}
    assert (rows["base"].met, rows["twice"].met, rows["same"].met) == (None, None, True)


def test_the_threads_of_torch_are_set_while_timing_and_restored(harness, clockwork):
    before = torch.get_num_threads()
    seen = set()

    def work():
        seen.add(torch.get_num_threads())
        clockwork[0] += 1

    try:
        torch.set_num_threads(2)
        harness.compare("x", {"one": work}, "one", check=work)
        assert seen == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_peaks_count_the_work_they_do(harness):
    work, flops = harness.Gemm(shapes=((2, 3, 4), (5, 6, 7))).build()
    assert [tuple(x.shape) for x in work()] == [(2, 4), (5, 7)]
    assert flops == 2 * (2 * 3 * 4 + 5 * 6 * 7)
    work, moved = harness.Copy(size=64).build()
    assert work().sum() == 64
    assert moved == 128


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is reset on Linux only")
def test_peak_memory_is_what_the_call_needs_beyond_its_inputs(memory, tmp_path, monkeypatch):
    (tmp_path / "hungry.py").write_text(
        "def prepare(mebibytes):\n"
        "    held = b'x' * 2**26\n"
        "    return lambda: len(held) + len(b'y' * (mebibytes * 2**20))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    prepare = importlib.import_module("hungry").prepare
    assert memory.peak_memory(prepare, 50) == pytest.approx(50 * 2**20, rel=0.05)
    with pytest.raises(RuntimeError, match="TypeError"):
        memory.peak_memory(prepare, "fifty")


def test_the_machine_is_described_without_its_name(harness):
    import platform

    described = harness.machine(("jinja2", "no-such-package"))
    text = json.dumps(described)
    assert {"cpu", "memory", "versions", "load"} <= set(described)
    assert "no-such-package not installed" in described["versions"]
    assert f"torch {torch.__version__.split('+')[0]}" in described["versions"]
    assert platform.node() not in text
    assert str(Path.home()) not in text


SUBJECT = '''"""A trial | subject."""
from benchmarks.harness import compare, main


def run(quick=False):
    {extra}
    return compare("x", {{"a": lambda: 1, "b": lambda: 1}}, "a", rounds=2, target={target})


if __name__ == "__main__":
    main(run)
'''


@pytest.fixture
def folder(tmp_path, runner, monkeypatch):
    """A benchmarks folder of its own, with the real harness beside the trial subjects."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for name in ("harness.py", "machine.py", "run.py"):
        (folder / name).write_text((ROOT / "benchmarks" / name).read_text())
    monkeypatch.setattr(runner, "FOLDER", folder)
    return folder


def test_one_subject_can_be_run_again_alone(folder, runner):
    (folder / "first.py").write_text(SUBJECT.format(extra="", target=None))
    (folder / "second.py").write_text(SUBJECT.format(extra="", target=None))
    assert runner.main([], folder) == 0
    kept = runner.read(folder / "results.json")["first"]
    (folder / "second.py").write_text(SUBJECT.format(extra="", target=0.0001))
    assert runner.main(["second"], folder) == 0
    records = runner.read(folder / "results.json")
    assert records["first"] == kept
    assert [row["target"] for row in records["second"]["rows"]] == [None, 0.0001]
    page = (folder / "RESULTS.md").read_text()
    assert page.index("## first") < page.index("## second")
    assert "A trial | subject." in page


def test_a_failing_script_or_a_missed_target_is_an_exit_code(folder, runner, capsys):
    (folder / "good.py").write_text(SUBJECT.format(extra="", target=None))
    (folder / "broken.py").write_text(SUBJECT.format(extra="1 // 0", target=None))
    (folder / "slow.py").write_text(SUBJECT.format(extra="", target=1e9))
    assert runner.main([], folder) == 1
    assert set(runner.read(folder / "results.json")) == {"good", "slow"}
    said = capsys.readouterr().err
    assert "failed: broken" in said
    assert "missed its target: slow: x: b" in said
    assert runner.main(["good"], folder) == 0
    with pytest.raises(SystemExit):
        runner.main(["nonsense"], folder)


def test_a_quick_run_writes_nothing(folder, runner):
    (folder / "first.py").write_text(SUBJECT.format(extra="assert quick", target=None))
    before = {path.name for path in folder.iterdir() if path.is_file()}
    assert runner.main(["--quick"], folder) == 0
    assert {path.name for path in folder.iterdir() if path.is_file()} == before


def test_results_of_another_format_are_refused(folder, runner):
    (folder / "results.json").write_text('{"format": 99, "subjects": {}}')
    with pytest.raises(SystemExit, match="99"):
        runner.read(folder / "results.json")


def record(harness, **changes):
    row = harness.Row("a | b", "new", "old", 2.34567, 2.1, 2.5, 0.0012, 0.002, 15, **changes)
    base = harness.Row("a | b", "old", "old", 1, 1, 1, 0.0024, 0.004, 15, checked=True)
    return {
        "date": "2000-01-02",
        "about": "About it.",
        "machine": {"cpu": "some", "load": "0.0 other jobs"},
        "rows": [dataclasses.asdict(base), dataclasses.asdict(row)],
    }


def test_the_page_shows_ratios_targets_and_what_was_not_compared(harness, runner):
    page = runner.render({"s": record(harness, target=3.0, note="other work")})
    (line,) = [x for x in page.splitlines() if "new" in x]
    assert line.split(" | ")[1:] == [
        "new",
        "**2.35** [2.1, 2.5]",
        "3 **missed**",
        "1.2 ms",
        "15",
        "other work; outputs not compared |",
    ]
    assert "| a \\| b | old (baseline) | 1 |" in page
    assert "of peak" not in page.split("## s")[1]
    assert "2000-01-02, machine A" in page


def test_equal_machines_share_a_letter(harness, runner):
    other = record(harness)
    other["machine"] = {"cpu": "another", "load": "9"}
    page = runner.render({"s": record(harness), "t": record(harness), "u": other})
    assert page.count("**A**") == page.count("**B**") == 1
    assert page.count("machine A") == 2
    assert page.count("machine B") == 1


def test_a_row_survives_json_and_an_unknown_field_is_refused(harness):
    for row in record(harness)["rows"]:
        assert dataclasses.asdict(harness.row_from_dict(json.loads(json.dumps(row)))) == row
    with pytest.raises(ValueError, match="colour"):
        harness.row_from_dict({**row, "colour": 1})


def test_every_subject_has_a_docstring_and_a_run_function(runner):
    for subject in runner.subjects(ROOT / "benchmarks"):
        script = ROOT / "benchmarks" / f"{subject}.py"
        assert runner.about(script), f"{subject}.py needs a docstring: it introduces its table"
        assert "def run(" in script.read_text()
