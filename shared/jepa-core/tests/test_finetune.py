"""Fine-tuning keeps the best validated step, stops in time and leaves frozen parts alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_core.errors import ConfigError, DataError, RunError
from jepa_core.evaluation import FinetuneConfig
from jepa_core.evaluation.finetune import finetune, label_loss, selection_score
from jepa_core.training.sampler import Draw


class _Model(nn.Module):
    """An encoder with statistics and dropout, and a head; regression on the batch."""

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.head = nn.Linear(8, 1)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.encoder.requires_grad_(not frozen)
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        self.modes.append((self.encoder[1].training, self.head.training))
        return {"loss": F.mse_loss(self.head(self.encoder(batch["x"]))[:, 0], batch["y"])}


class _Records:
    def __init__(self, n: int = 64) -> None:
        draw = np.random.default_rng(0)
        self.x = torch.from_numpy(draw.normal(size=(n, 4))).float()
        self.y = self.x.sum(1)
        self.seen: list[int] = []

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, draw: Draw) -> dict[str, Any]:
        self.seen += draw.ids.tolist()
        return {"x": self.x[draw.ids], "y": self.y[draw.ids]}


def _config(**changes: Any) -> FinetuneConfig:
    settings: dict[str, Any] = {"steps": 20, "batch": 16, "validate_every": 5, "device": "cpu"}
    return FinetuneConfig(**settings | changes)


def _scores(*values: float) -> Any:
    left = list(values)
    return lambda: left.pop(0)


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_module_ends_with_the_weights_of_the_best_validation() -> None:
    model, snapshots, scores = _Model(), [], _scores(0.1, 0.9, 0.9, 0.3)

    def validate() -> float:
        snapshots.append(_weights(model).clone())
        return scores()

    done = finetune(model, _Records(), validate, _config())
    assert (done.best_step, done.best_score, done.stopped) == (10, 0.9, "steps")
    torch.testing.assert_close(_weights(model), snapshots[1], rtol=0, atol=0)
    assert not torch.equal(snapshots[1], snapshots[3])
    assert not model.training
    assert [v.step for v in done.history] == [5, 10, 15, 20]


def test_training_stops_when_no_better_validation_comes_within_the_patience() -> None:
    done = finetune(_Model(), _Records(), _scores(0.5, 0.4, 0.4, 0.9), _config(patience=10))
    assert (done.stopped, done.best_step, len(done.history)) == ("patience", 5, 3)


def test_the_last_step_is_validated_even_out_of_turn() -> None:
    done = finetune(_Model(), _Records(), _scores(0.1, 0.2), _config(steps=7))
    assert [v.step for v in done.history] == [5, 7]


def test_what_is_frozen_stays_in_evaluation_mode_and_keeps_its_statistics() -> None:
    model = _Model(frozen=True)
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    finetune(model, _Records(), lambda: 0.5, _config())
    assert set(model.modes) == {(False, True)}
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    trained = _Model()
    finetune(trained, _Records(), lambda: 0.5, _config())
    assert set(trained.modes) == {(True, True)}


def test_validation_is_in_evaluation_mode_without_gradients() -> None:
    model, seen = _Model(), []

    def validate() -> float:
        seen.append((model.training, torch.is_grad_enabled()))
        return 0.5

    finetune(model, _Records(), validate, _config())
    assert set(seen) == {(False, False)}


def test_dropout_draws_depend_on_the_seed_alone() -> None:
    weights = []
    for noise, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(noise)
        model = _Model()
        # the last step wins, so that its weights are compared
        finetune(model, _Records(), _scores(0.1, 0.2, 0.3, 0.4), _config(seed=seed))
        weights.append(_weights(model))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_every_record_comes_once_an_epoch_and_few_records_make_one_batch() -> None:
    records = _Records(48)
    finetune(_Model(), records, lambda: 0.5, _config(steps=3))
    assert sorted(records.seen) == list(range(48))
    few = _Records(10)
    finetune(_Model(), few, lambda: 0.5, _config(steps=1, batch=128))
    assert sorted(few.seen) == list(range(10))


def test_the_first_step_uses_the_rate_of_its_own_index() -> None:
    model = _Model()
    before = _weights(model)
    changes = {"steps": 1, "weight_decay": 0.0, "warmup": 1, "warmup_learning_rate": 0.0}
    finetune(model, _Records(), lambda: 0.5, _config(**changes))
    assert torch.equal(_weights(model), before)


def test_a_loss_that_stops_being_finite_ends_the_run_at_its_best_step() -> None:
    records, model = _Records(), _Model()

    def validate() -> float:
        records.y[:] = math.inf
        return 0.7

    done = finetune(model, records, validate, _config())
    assert (done.stopped, done.best_step) == ("nonfinite", 5)
    assert _weights(model).isfinite().all()


@pytest.mark.parametrize("broken", ["loss", "score"])
def test_a_run_without_any_finite_validation_is_an_error(broken: str) -> None:
    records = _Records()
    if broken == "loss":
        records.y[:] = math.nan
    score = math.nan if broken == "score" else 0.5
    with pytest.raises(RunError, match="no finite validation score"):
        finetune(_Model(), records, lambda: score, _config())


def test_more_warm_up_than_steps_is_an_error() -> None:
    with pytest.raises(ConfigError, match="warmup is 30"):
        _config(warmup=30)


def test_label_loss_is_the_mean_over_batch_and_classes() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.0]], dtype=torch.float64)
    y = torch.tensor([[1, 0], [0, 1]])
    p = torch.sigmoid(logits)
    expected = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    assert label_loss(logits, y).item() == pytest.approx(expected.item(), rel=1e-6)
    cross = -logits.log_softmax(1)[torch.arange(2), torch.tensor([0, 1])].mean()
    assert label_loss(logits, torch.tensor([0, 1])).item() == pytest.approx(cross.item(), rel=1e-6)


def test_single_labels_are_selected_by_probability_and_not_by_logit() -> None:
    # a constant added to all logits of a record means nothing
    draw = np.random.default_rng(0)
    logits, y = draw.normal(size=(50, 3)), draw.integers(0, 3, 50)
    moved = logits + 100 * draw.normal(size=(50, 1))
    assert selection_score(y, moved) == pytest.approx(selection_score(y, logits))


def test_logits_that_are_not_numbers_are_an_error() -> None:
    with pytest.raises(DataError, match="not numbers"):
        selection_score(np.array([0, 1]), np.full((2, 2), np.nan))
