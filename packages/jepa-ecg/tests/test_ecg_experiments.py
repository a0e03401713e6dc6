"""The demo and the reproduction: every arm through the same probe, words that fit the numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import jepa_ecg
from jepa_core.config import read_json
from jepa_core.evaluation.linear import LinearProbe, ridge
from jepa_core.evaluation.metrics import macro_auc
from jepa_core.report.table import Table
from jepa_core.run import Run
from jepa_ecg.experiments import comparison, demo, reproduce
from jepa_ecg.experiments.comparison import JEPA, MAE, SCALED, TWIN, Records, Scores
from jepa_ecg.presets import DEMO, REPRODUCE

TINY = {"dim": 16, "depth": 1, "heads": 2, "predictor_dim": 8, "predictor_depth": 1}


def small(recipe: object, steps: int = 4) -> object:
    config = replace(recipe, steps=steps, warmup_steps=1, batch_size=4, checkpoint_every=2)  # type: ignore[type-var]
    return replace(config, model=replace(config.model, **TINY, predictor_heads=2))


def some_records(n: int = 60, classes: int = 2) -> Records:
    rng = np.random.default_rng(0)
    y = (rng.random((n, classes)) < 0.5).astype(np.uint8)
    folds = np.where(np.arange(n) < 40, np.arange(n) % 4, -1)
    signal = rng.standard_normal((n, 12, 600)).astype(np.float32)
    return Records(signal, np.arange(n), np.arange(n), y, ("a", "b"), folds, np.arange(n))


def test_the_probe_never_sees_what_it_scores() -> None:
    records = some_records()
    features = np.random.default_rng(1).standard_normal((60, 5))

    def fitted(x: np.ndarray, y: np.ndarray, part: np.ndarray) -> LinearProbe:
        return ridge(x, y.astype(float), groups=records.patients[part])

    found = comparison.probe(features, records)
    inside = records.folds >= 0
    for fold in range(4):
        out = records.folds == fold
        train = inside & ~out
        by_hand = fitted(features[train], records.y[train], train).scores(features[out])
        np.testing.assert_allclose(found.scores[out], by_hand)
    test = fitted(features[inside], records.y[inside], inside).scores(features[~inside])
    np.testing.assert_allclose(found.scores[~inside], test)
    assert found.tested == macro_auc(records.y[~inside], test).macro


def test_the_gain_is_the_mean_over_seeds_minus_the_other() -> None:
    records = some_records()
    rng = np.random.default_rng(2)
    seeds = [comparison.probe(rng.standard_normal((60, 4)), records) for _ in range(3)]
    other = comparison.probe(rng.standard_normal((60, 4)), records)
    estimate, low, high = comparison.gain_over(seeds, [other], records)
    assert estimate == pytest.approx(np.mean([one.tested for one in seeds]) - other.tested)
    assert low < estimate < high


def test_the_table_pairs_seeds_with_their_own_twins() -> None:
    def scores(value: float) -> Scores:
        return Scores(np.zeros((1, 1)), value, value)

    table = comparison.comparison_table(
        "t",
        {
            (TWIN, "mean"): [scores(0.5), scores(0.6), scores(0.7)],
            (JEPA, "mean"): [scores(0.6), scores(0.7), scores(0.6)],
        },
        {"raw": scores(0.9)},
    )
    assert table.rows[0][:4] == [TWIN, "mean", "0.600 ± 0.100", "0.600 ± 0.100"]
    assert table.rows[0][4] is None
    assert str(table.rows[1][5]).endswith("(++-)")
    assert table.rows[2][2] == "0.900"


def test_the_demo_leaves_a_report_and_an_encoder_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "UNLABELLED", 40)
    monkeypatch.setattr(demo, "TRAINING", 120)
    monkeypatch.setattr(demo, "TEST", 80)
    out = tmp_path / "demo"
    demo.Demo(out=out, seeds=(0,), config=small(DEMO))()  # type: ignore[arg-type]
    run = Run.open(out)
    table = Table.from_dict(read_json(run.results / "comparison.json"))
    arms = {row[0] for row in table.rows}
    assert {TWIN, SCALED, JEPA, "rhythm and amplitude features"} <= arms
    page = (out / "report.html").read_text(encoding="utf-8")
    for caption in ("shaded tokens are hidden", "coloured by their rarest finding"):
        assert caption in page
    assert "report:" in capsys.readouterr().out
    model = jepa_ecg.load(out)
    embedding = jepa_ecg.embed(
        model,
        jepa_ecg.Record(
            np.zeros((1000, 12), np.float32), 100.0, model.config.leads, None, np.zeros(12, int)
        ),
    )
    assert embedding.shape == (16,)


def test_the_reproduction_compares_every_arm_on_the_real_records(
    data: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JEPA_DATA", str(data("ecg").parent))
    out = tmp_path / "run"
    reproduce.Reproduce(out=out, seeds=(0,), config=small(REPRODUCE))()  # type: ignore[arg-type]
    table = Table.from_dict(read_json(out / "results" / "comparison.json"))
    by_arm = {(row[0], row[1]): row for row in table.rows}
    for arm in (TWIN, SCALED, MAE, JEPA):
        for pool in comparison.POOLS:
            assert (arm, pool) in by_arm
    # The raw features' figures depend on no training: probes and splits are right when they hold.
    assert float(by_arm["raw log band powers", "–"][3]) == pytest.approx(0.832, abs=0.005)  # type: ignore[arg-type]
    assert "over the masked autoencoder" in table.notes[0]


def test_the_500_records_split_by_fold_and_no_patient_is_on_both_sides(
    data: Callable[[str], Path],
) -> None:
    records, _ = reproduce.ptbxl500_records(data("ecg"))
    assert (len(records.unlabelled), len(records.y), int(records.test.sum())) == (353, 488, 136)
    train, test = records.patients[~records.test], records.patients[records.test]
    assert not set(train) & set(test)
    assert abs(records.signal[records.unlabelled].mean()) < 0.01


def test_without_the_data_the_reproduction_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JEPA_DATA", raising=False)
    with pytest.raises(ValueError, match="set JEPA_DATA"):
        reproduce.data_folder()
