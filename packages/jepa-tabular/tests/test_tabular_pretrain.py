"""Batches and pre-training: pure functions of seed and step, resumable, with the recipe's steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jepa_core.domain import Machine
from jepa_core.errors import ConfigError, DataError, Interrupted
from jepa_core.run import Run
from jepa_core.training.sampler import Epochs
from jepa_tabular.presets import NANO, PRETRAIN, PretrainConfig, TableShape
from jepa_tabular.pretrain import pretrain, schedules
from jepa_tabular.source import FileOrder, TableSource

SHAPE = TableShape(6, (1, 4), (4, 3))
TINY = replace(NANO, steps=8, batch_size=16, warmup_steps=2, checkpoint_every=4)


def rows(n: int = 40, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)).astype(np.float32)
    x[:, 1], x[:, 4] = rng.integers(1, 4, n), rng.integers(1, 3, n)
    return x


def weights(module: torch.nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in module.state_dict().values()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_batch_is_a_function_of_its_draw() -> None:
    x = rows()
    source = TableSource(x, TINY, SHAPE, seed=3)
    draw = Epochs(40, 16, 3).draw(5)
    first, again = source.batch(draw), TableSource(x, TINY, SHAPE, seed=3).batch(draw)
    for name, value in first.items():
        assert torch.equal(value, again[name])
    assert first["context"].dtype == first["target"].dtype == torch.int64
    assert first["target"].shape[:2] == (1, 16)


def test_unknown_categories_are_met_while_training_and_numbers_stay() -> None:
    config = replace(TINY, unknown_rate=0.3, batch_size=40)
    x = rows()
    source = TableSource(x, config, SHAPE, seed=0)
    seen = torch.cat([source.batch(Epochs(40, 40, 0).draw(step))["x"] for step in range(50)])
    order = np.concatenate([Epochs(40, 40, 0).draw(step).ids for step in range(50)])
    for column in (0, 2, 3, 5):
        assert torch.equal(seen[:, column], torch.from_numpy(x[order, column]))
    forgotten = (seen[:, [1, 4]] == 0).float().mean().item()
    assert forgotten == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / 4000))
    assert (x[:, [1, 4]] > 0).all()  # the table itself is left as it is


def test_official_batches_come_in_file_order_with_a_smaller_last_one() -> None:
    order = FileOrder(40, 16)
    assert [order.draw(step).ids.tolist() for step in range(4)] == [
        list(range(16)),
        list(range(16, 32)),
        list(range(32, 40)),
        list(range(16)),
    ]
    with pytest.raises(ConfigError, match="one process"):
        order.draw(0, 0, 2)


def test_official_batches_hold_each_equal_target_once() -> None:
    config = replace(PRETRAIN["official-cli"], batch_size=16)
    shape = TableShape(14)
    batch = TableSource(np.zeros((16, 14), np.float32), config, shape, seed=0).batch(
        FileOrder(16, 16).draw(0)
    )
    assert batch["target"].shape[0] == 1
    # Officially the indices are those of columns: token 0 may be hidden, token 14 never is.
    assert max(batch["target"].max(), batch["context"].max()) <= 13


def test_the_first_update_is_on_the_schedule_and_officially_is_not() -> None:
    rate, decay = schedules(NANO)
    assert rate(0) == pytest.approx(NANO.learning_rate / NANO.warmup_steps)
    assert rate(NANO.warmup_steps - 1) == pytest.approx(NANO.learning_rate)
    assert decay(0) == NANO.weight_decay
    rate, decay = schedules(PRETRAIN["official-jannis"])
    assert (rate(0), decay(0)) == (1e-3, 0.01)


def test_the_same_seed_gives_the_same_weights_for_any_number_of_workers() -> None:
    runs = [
        pretrain(rows(), TINY, SHAPE, machine=Machine(seed=1, threads=1), workers=workers)
        for workers in (0, 2)
    ]
    assert equal(*(weights(run.module) for run in runs))
    other = pretrain(rows(), TINY, SHAPE, machine=Machine(seed=2, threads=1))
    assert not equal(weights(runs[0].module), weights(other.module))


@pytest.mark.parametrize("preset", ["sound", "official"])
def test_a_stopped_run_resumes_to_the_same_bits(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TINY
    if preset == "official":
        small = replace(PRETRAIN["official-cli"].model, dim=16, hidden=16, depth=1)
        config = replace(
            PRETRAIN["official-cli"],
            model=replace(small, predictor_dim=16, predictor_depth=1, predictor_hidden=16),
            context=(0.2, 0.5),
            steps=8,
            warmup_steps=2,
            batch_size=16,
            checkpoint_every=4,
        )
    machine = Machine(seed=0, threads=1)
    whole = pretrain(rows(), config, SHAPE, machine=machine)
    record = {"domain": "tabular", "verb": "pretrain", "version": "", "command": "", "config": {}}
    run = Run.create(tmp_path / "run", record)
    batch = TableSource.batch

    def stop(self: TableSource, draw: object) -> dict[str, torch.Tensor]:
        if draw.step == 6:  # type: ignore[attr-defined]
            raise Interrupted("stopped")
        return batch(self, draw)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(TableSource, "batch", stop)
        with pytest.raises(Interrupted):
            pretrain(rows(), config, SHAPE, machine=machine, run=run)
    run = Run.create(tmp_path / "run", record, resume=True)
    resumed = pretrain(rows(), config, SHAPE, machine=machine, run=run, resume=True)
    assert equal(weights(whole.module), weights(resumed.module))


def test_the_gradients_of_encoder_and_predictor_are_clipped_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[float]] = []
    step = torch.optim.AdamW.step

    def look(self: torch.optim.AdamW, *arguments: object) -> object:
        norms = {True: 0.0, False: 0.0}
        for group in self.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                norms[name.startswith("encoder")] += float(parameter.grad.square().sum())
        seen.append([norms[True] ** 0.5, norms[False] ** 0.5])
        return step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim.AdamW, "step", look)
    machine = Machine(threads=1)
    pretrain(rows(), replace(TINY, steps=1, clip_norm=0.0), SHAPE, machine=machine)
    free = seen.pop()
    largest = min(free) / 2
    pretrain(rows(), replace(TINY, steps=1, clip_norm=largest), SHAPE, machine=machine)
    assert seen[0] == pytest.approx([largest, largest], rel=1e-4)


def test_training_explains_what_columns_share() -> None:
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(600, 2))
    x = (latent @ rng.normal(size=(2, 8)) + 0.1 * rng.normal(size=(600, 8))).astype(np.float32)
    config = replace(NANO, steps=150, warmup_steps=15, batch_size=128)
    done = pretrain(x, config, TableShape(8), machine=Machine(threads=1))
    values = [line["health/unexplained"] for line in done.result.history if "health/rank" in line]
    assert values[0] > 1
    assert values[-1] < 0.6
    assert not done.result.alarm.reason


def test_tables_that_leave_nothing_to_predict_are_refused() -> None:
    one = np.zeros((5, 1), np.float32)
    with pytest.raises(ConfigError, match=r"1 feature\(s\)"):
        TableSource(one, TINY, TableShape(1), seed=0)
    with pytest.raises(DataError, match="no row"):
        TableSource(np.zeros((0, 6), np.float32), TINY, SHAPE, seed=0)
    with pytest.raises(DataError, match="rows of 5 numbers"):
        TableSource(np.zeros((3, 5), np.float32), TINY, SHAPE, seed=0)


def test_presets_are_the_published_ones() -> None:
    config: PretrainConfig = PRETRAIN["official-jannis"]
    assert (config.steps, config.warmup_steps, config.batch_size) == (49_200, 1640, 512)
    assert PRETRAIN["jannis"].context == config.context
    assert PRETRAIN["jannis"].compat == "none"
    for table in ("adult", "helena", "aloi", "california", "higgs"):
        assert PRETRAIN[f"official-{table}"].model.dim == 16
