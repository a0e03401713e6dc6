"""Training of downstream networks against slow twins, metrics against their definitions."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.exceptions import UndefinedMetricWarning
from torch import nn

from jepa_core.errors import DataError, RunError
from jepa_tabular.downstream import (
    AutoIntConfig,
    DCNv2Config,
    FTTransformerConfig,
    LinearConfig,
    MLPConfig,
    NetConfig,
    ResNetConfig,
    TrainingConfig,
)
from jepa_tabular.downstream.nets import build
from jepa_tabular.downstream.train import cosine_wave, fit_head, hold_out, metrics, mlp_probe

FTT = FTTransformerConfig(blocks=2, dim=8, heads=2, hidden=6)
NETS: tuple[NetConfig, ...] = (
    LinearConfig(),
    MLPConfig(),
    ResNetConfig(),
    DCNv2Config(width=32),
    DCNv2Config(width=32, stacked=False),
    AutoIntConfig(dim=8),
    FTT,
)
QUICK = TrainingConfig(learning_rate=1e-2, batch=32, epochs=30, device="cpu")


def blobs(n: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows [n, 5, 3] with a token a class, far from 0 in the rows of that class."""
    draw = np.random.default_rng(seed)
    y = draw.integers(classes, size=n)
    z = draw.normal(size=(n, 5, 3))
    z[np.arange(n), y] += 4
    return z.astype(np.float32), y


def noise(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Rows that say nothing of their labels: every network overfits."""
    draw = np.random.default_rng(3)
    return draw.normal(size=(n, 6)).astype(np.float32), draw.integers(2, size=n)


def loss_of(net: nn.Module, z: np.ndarray, y: np.ndarray) -> float:
    with torch.no_grad():
        logits = net.eval()(torch.from_numpy(z))[:, 0]
        return nn.functional.binary_cross_entropy_with_logits(
            logits, torch.from_numpy(y).float()
        ).item()


@pytest.mark.parametrize("config", NETS, ids=lambda config: config.kind)
@pytest.mark.parametrize(("task", "classes"), [("binary", 2), ("multiclass", 4)])
def test_every_network_learns_to_tell_classes_apart(config, task, classes: int) -> None:
    z, y = blobs(400, classes)
    net = build(config, z.shape[1:], 1 if task == "binary" else classes, seed=1)
    fitted = fit_head(net, z[:300], y[:300], task, QUICK)
    scores = fitted.scores(z[300:])
    assert scores.shape == (100, classes)
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-12)
    assert metrics(task, y[300:], scores)["accuracy"] > 0.9
    assert (fitted.predict(z[300:]) == scores.argmax(1)).all()


@pytest.mark.parametrize("compat", ["none", "official"])
def test_a_regression_is_told_in_the_targets_units(compat) -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(500, 4)).astype(np.float32)
    y = 2e5 + 1e5 * (x[:, 0] - x[:, 1])
    fitted = fit_head(
        build(LinearConfig(), (4,), 1),
        x[:400],
        y[:400],
        "regression",
        replace(QUICK, learning_rate=3e-2, compat=compat),
    )
    assert fitted.centre == pytest.approx(y[:400].mean())
    assert fitted.scale == pytest.approx(y[:400].std())
    found = metrics("regression", y[400:], fitted.scores(x[400:]), scale=fitted.scale)
    assert found["rmse"] < 5e3
    assert found["rmse_standardised"] == pytest.approx(found["rmse"] / fitted.scale)
    assert found["r2"] > 0.99
    assert 0 < -fitted.result.history[-1].score < 0.01  # in standard deviations, too


def test_the_best_validated_weights_are_kept() -> None:
    z, y = noise()
    held = tuple(part[60:] for part in noise(1400))
    config = replace(QUICK, epochs=60, patience=60)
    fitted = fit_head(build(MLPConfig(width=64), (6,), 1), z, y, "binary", config, validation=held)
    history = fitted.result.history
    best = max(history, key=lambda at: at.score)
    assert fitted.result.best_step == best.step < history[-1].step
    assert loss_of(fitted.net, *held) == pytest.approx(-best.score, rel=1e-5)


def test_the_official_loop_keeps_the_last_weights() -> None:
    z, y = noise()
    held = tuple(part[60:] for part in noise(1400))
    config = replace(QUICK, epochs=60, patience=5, compat="official")
    fitted = fit_head(build(MLPConfig(width=64), (6,), 1), z, y, "binary", config, validation=held)
    history = fitted.result.history
    assert fitted.result.stopped == "patience"
    assert fitted.result.best_step == history[-1].step
    assert loss_of(fitted.net, *held) == pytest.approx(-history[-1].score, rel=1e-5)
    best = int(np.argmax([at.score for at in history]))
    assert len(history) == best + 1 + 5


@pytest.mark.parametrize("half_cosine", [0, 10])
@pytest.mark.parametrize("n", [40, 33])
def test_the_official_loop_equals_a_plain_one(n: int, half_cosine: int) -> None:
    z, y = blobs(n, 2)
    config = replace(QUICK, epochs=3, batch=16, compat="official", half_cosine=half_cosine, seed=4)
    net = build(MLPConfig(dropout=0.5, width=8), (5, 3), 1)
    twin = copy.deepcopy(net)
    fitted = fit_head(net, z, y, "binary", config, validation=(z, y))

    starts = [0, 16, 32] if n == 40 else [0, 16]  # a batch of one row has no statistics
    optimizer = torch.optim.AdamW(
        twin.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, half_cosine or 3 * len(starts))
    order = torch.Generator().manual_seed(4)
    torch.manual_seed(4)
    for _ in range(3):
        rows = torch.randperm(n, generator=order)
        for start in starts:
            batch = rows[start : start + 16]
            logits = twin(torch.from_numpy(z)[batch])[:, 0]
            target = torch.from_numpy(y)[batch].float()
            loss = nn.functional.binary_cross_entropy_with_logits(logits, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    assert fitted.result.best_step == 3 * len(starts)
    for name, value in fitted.net.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], atol=1e-5, rtol=1e-5)


def test_the_cosine_swings_back_as_torchs_does() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for step in range(45):
        assert cosine_wave(step, 10, 0.3) == pytest.approx(
            optimizer.param_groups[0]["lr"], abs=1e-9
        )
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("compat", ["none", "official"])
def test_patience_counts_epochs(compat) -> None:
    z, y = noise(50)
    config = TrainingConfig(
        learning_rate=0, weight_decay=0, batch=10, patience=4, device="cpu", compat=compat
    )
    result = fit_head(
        build(LinearConfig(), (6,), 1), z, y, "binary", config, validation=(z, y)
    ).result
    assert [at.step for at in result.history] == [5, 10, 15, 20, 25]
    assert result.stopped == "patience"


@pytest.mark.parametrize("compat", ["none", "official"])
def test_training_is_a_function_of_the_seed_alone(compat) -> None:
    z, y = blobs(80, 2)

    def trained(seed: int) -> np.ndarray:
        config = replace(QUICK, epochs=3, seed=seed, compat=compat)
        net = build(MLPConfig(), (5, 3), 1, seed=0)
        return fit_head(net, z, y, "binary", config).outputs(z)

    torch.manual_seed(1)
    first, before = trained(0), torch.random.get_rng_state()
    again = trained(0)
    assert torch.equal(torch.random.get_rng_state(), before)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, trained(1))


@pytest.mark.parametrize("compat", ["none", "official"])
def test_rows_held_out_are_never_trained_on(compat) -> None:
    z, y = blobs(100, 2)
    config = replace(QUICK, epochs=1, compat=compat)
    train, held = hold_out(y, "binary", config.validation, config.seed)
    changed = z.copy()
    changed[held] += 1000
    outputs = [
        fit_head(build(MLPConfig(), (5, 3), 1), rows, y, "binary", config).outputs(z)
        for rows in (z, changed)
    ]
    np.testing.assert_array_equal(*outputs)
    changed[train[0]] += 1
    assert not np.array_equal(
        outputs[0],
        fit_head(build(MLPConfig(), (5, 3), 1), changed, y, "binary", config).outputs(z),
    )


def test_held_out_rows_have_every_class_where_there_are_enough() -> None:
    y = np.array([0] * 80 + [1] * 12 + [2] * 8)
    train, held = hold_out(y, "multiclass", 0.25, 0)
    assert sorted([*train, *held]) == list(range(100))
    assert np.bincount(y[held]).tolist() == [20, 3, 2]
    assert not np.array_equal(held, hold_out(y, "multiclass", 0.25, 1)[1])


@pytest.mark.parametrize(
    ("y", "share", "sizes"),
    [([0, 0, 1], 0.5, (2, 1)), ([0, 1, 2, 3], 0.1, (3, 1)), ([0] * 9 + [1], 0.2, (8, 2))],
)
def test_few_rows_are_held_out_as_they_come(y, share: float, sizes: tuple[int, int]) -> None:
    train, held = hold_out(np.array(y), "multiclass", share, 0)
    assert (len(train), len(held)) == sizes


def test_a_prediction_does_not_depend_on_the_rows_beside_it() -> None:
    z, y = blobs(1500, 3)
    config = replace(QUICK, epochs=1)
    fitted = fit_head(build(FTT, (5, 3), 3), z[:200], y[:200], "multiclass", config)
    scores = fitted.scores(z)
    order = np.random.default_rng(0).permutation(len(z))
    np.testing.assert_allclose(fitted.scores(z[order]), scores[order], atol=1e-12)
    np.testing.assert_allclose(fitted.scores(z[7:8]), scores[7:8], atol=1e-12)
    assert next(fitted.net.parameters()).dtype == torch.float32


def test_a_memory_map_and_float64_rows_are_read_as_they_are(tmp_path: Path) -> None:
    z, y = blobs(60, 2)
    np.save(tmp_path / "z.npy", z)
    config = replace(QUICK, epochs=2)
    outputs = [
        fit_head(build(MLPConfig(), (5, 3), 1), rows, y, "binary", config).outputs(rows)
        for rows in (z, np.load(tmp_path / "z.npy", mmap_mode="r"), z.astype(np.float64))
    ]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[0], outputs[2])


def test_a_frozen_part_stays_as_it_is() -> None:
    z, y = blobs(60, 2)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(15, 8)).requires_grad_(False)
    before = copy.deepcopy(encoder.state_dict())
    net = nn.Sequential(encoder, build(LinearConfig(), (8,), 1))
    fit_head(net, z, y, "binary", replace(QUICK, epochs=2))
    assert all(torch.equal(encoder.state_dict()[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("task", "rows", "y", "what"),
    [
        ("binary", 5, [0, 1, 0], "5 rows have 3 labels"),
        ("binary", 0, [], "n_samples=0"),
        ("binary", 2, [0, 1], "n_samples=2"),
        ("regression", 4, [0.0, 1.0, math.nan, math.inf], "2 labels are not numbers"),
        ("multiclass", 4, [0, 1, 2.5, 1], "labels are no class numbers"),
        ("multiclass", 4, [0, 1, -1, 1], "labels are no class numbers"),
        ("binary", 4, [0, 1, 2, 1], "a label is 2"),
    ],
)
def test_labels_that_do_not_fit_are_refused(task, rows: int, y: list, what: str) -> None:
    net = build(LinearConfig(), (6,), 3 if task == "multiclass" else 1)
    with pytest.raises(DataError, match=what):
        fit_head(net, np.zeros((rows, 6), np.float32), np.array(y), task, QUICK)


@pytest.mark.parametrize("compat", ["none", "official"])
def test_a_run_that_diverges_says_so(compat) -> None:
    z, y = blobs(60, 2)
    z[3] = np.inf
    with pytest.raises(RunError, match=r"diverged|no finite validation score"):
        fit_head(build(LinearConfig(), (5, 3), 1), z, y, "binary", replace(QUICK, compat=compat))


# -- metrics -----------------------------------------------------------------------------------


def test_classification_metrics_equal_their_definitions() -> None:
    draw = np.random.default_rng(0)
    y = draw.integers(3, size=200)
    scores = draw.dirichlet(np.ones(3), size=200)
    scores[np.arange(200), y] += 0.3
    scores /= scores.sum(1, keepdims=True)
    decided = scores.argmax(1)
    precision, recall, f1, auc = [], [], [], []
    for c in range(3):
        right = ((decided == c) & (y == c)).sum()
        precision.append(right / (decided == c).sum())
        recall.append(right / (y == c).sum())
        f1.append(2 * precision[c] * recall[c] / (precision[c] + recall[c]))
        positive, negative = scores[y == c, c], scores[y != c, c]
        auc.append((positive[:, None] > negative).mean())
    share = np.bincount(y) / len(y)
    expected = {
        "accuracy": (decided == y).mean(),
        "balanced_accuracy": np.mean(recall),
        "precision": share @ precision,
        "recall": share @ recall,
        "f1": share @ f1,
        "roc_auc": np.mean(auc),
        "log_loss": -np.log(scores[np.arange(200), y]).mean(),
    }
    assert metrics("multiclass", y, scores) == pytest.approx(expected, abs=1e-12)


def test_a_binary_auc_is_of_the_second_class_and_a_tie_says_the_first() -> None:
    y = np.array([0, 0, 1, 1])
    second = np.array([0.1, 0.6, 0.5, 0.9])
    found = metrics("binary", y, np.stack([1 - second, second], 1))
    assert found["roc_auc"] == pytest.approx(0.75)
    assert found["accuracy"] == pytest.approx(0.5)


@pytest.mark.parametrize(("y", "classes"), [([1, 1, 1], 2), ([0, 1, 0], 3)])
def test_an_auc_without_one_of_the_classes_is_nan_with_a_warning(y, classes: int) -> None:
    scores = np.full((3, classes), 1 / classes)
    with pytest.warns(UndefinedMetricWarning, match=f"of {classes} classes"):
        found = metrics("multiclass" if classes > 2 else "binary", np.array(y), scores)
    assert math.isnan(found.pop("roc_auc"))
    assert all(math.isfinite(value) for value in found.values())


def test_only_an_undefined_metric_warns() -> None:
    scores = np.array([[0.2, 0.8, 0.0], [0.6, 0.4, 0.0], [0.0, 0.1, 0.9]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics("multiclass", np.array([1, 0, 2]), scores)
        metrics("multiclass", np.array([2, 0, 1]), scores)


def test_regression_metrics_are_over_all_predictions_at_once() -> None:
    y, scores = np.array([1.0, 2.0, 4.0, 9.0]), np.array([1.5, 2.0, 3.0, 9.0])
    found = metrics("regression", y, scores, scale=2.0)
    rmse = math.sqrt((0.25 + 0 + 1 + 0) / 4)
    r2 = 1 - 1.25 / ((y - 4) ** 2).sum()
    assert found == pytest.approx({"rmse": rmse, "rmse_standardised": rmse / 2, "r2": r2})


# -- the probe ---------------------------------------------------------------------------------


def squares(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two columns whose signs must be multiplied, one constant, one with a wild scale."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, 4)) * [1, 1, 0, 1e6] + [0, 0, 3, 1e7]
    return x, (x[:, 0] * x[:, 1] > 0).astype(np.int64)


def test_the_probe_finds_what_no_line_can() -> None:
    (x, y), (test, truth) = squares(600, 0), squares(300, 1)
    scores = mlp_probe(x, y, test, "binary", 0)
    assert scores.shape == (300, 2)
    assert (scores.argmax(1) == truth).mean() > 0.9
    np.testing.assert_array_equal(scores, mlp_probe(x, y, test, "binary", 0))
    assert not np.array_equal(scores, mlp_probe(x, y, test, "binary", 1))


def test_the_probe_gives_values_in_units_and_every_class_a_column() -> None:
    x, y = squares(300, 0)
    values = mlp_probe(x, 1e4 * x[:, 0] - 5e4, x[:50], "regression", 0)
    assert values.shape == (50,)
    assert np.corrcoef(values, x[:50, 0])[0, 1] > 0.95
    assert abs(values.mean() + 5e4) < 5e3
    assert mlp_probe(x, y, x[:5], "multiclass", 0).shape == (5, 2)
    assert mlp_probe(x, y, x[:5], "multiclass", 0, classes=7).shape == (5, 7)


def test_an_outlier_in_a_test_row_is_no_farther_than_six_deviations() -> None:
    x, y = squares(300, 0)
    mean, std = x.mean(0), x.std(0)
    far, farther = mean + 6 * std, mean + np.array([1e9, 1e9, 0, 1e12])
    scores = mlp_probe(x, y, np.stack([far, farther]), "binary", 0)
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)
