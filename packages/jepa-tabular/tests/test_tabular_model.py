"""Tokenizer, encoder, predictor, loss and three steps of training against the official program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jepa_core.optim import adamw, set_hyperparameters
from jepa_tabular import official
from jepa_tabular.model import TJEPA, position_table, predictor_position_table
from jepa_tabular.presets import NANO, PRETRAIN, ModelConfig, TableShape
from jepa_tabular.pretrain import decay_groups, schedules, untrained

Data = Callable[[str], Path]
FILES = ("num", "mixed_fte", "num_reg3_distinct")
FORWARD = {"atol": 1e-5, "rtol": 1e-4}


class Golden:
    """Arrays of one file, and the module that they describe."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            self.arrays = dict(file.items())

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.arrays[name]))

    def state(self, prefix: str) -> dict[str, torch.Tensor]:
        start = f"{prefix}/"
        return {n.removeprefix(start): self[n] for n in self.arrays if n.startswith(start)}

    def module(self) -> TJEPA:
        arrays = self.arrays
        parts = ("context_encoder", "ctx0"), ("target_encoder", "tgt0"), ("predictor", "pred0")
        return official.load_state(
            {part: self.state(prefix) for part, prefix in parts},
            num_idx=arrays["cfg_num_idx"].tolist(),
            cardinalities=arrays["cfg_cardinalities"].tolist(),
            heads=int(arrays["cfg_H"]),
            pred_heads=int(arrays["cfg_pH"]),
            act=str(arrays.get("cfg_act", "relu")),  # type: ignore[arg-type]
            pred_act=str(arrays.get("cfg_pact", "relu")),  # type: ignore[arg-type]
            n_reg=int(arrays["cfg_ncls"]),
        ).train()

    @property
    def batch(self) -> dict[str, torch.Tensor]:
        return {"x": self["x"], "context": self["mask_ctx"][0], "target": self["mask_trg"]}


@pytest.fixture(params=FILES)
def golden(request: pytest.FixtureRequest, data: Data) -> Golden:
    return Golden(data("tabular") / f"golden_tjepa_{request.param}.npz")


def close(ours: torch.Tensor, theirs: torch.Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(ours.detach(), theirs, **(tolerance or FORWARD))


def test_tokens_are_the_official_ones(golden: Golden) -> None:
    encoder = golden.module().encoder
    tokens = encoder.embed(golden["x"])
    close(tokens, golden["tokens_full"])
    context = golden["mask_ctx"][0]
    close(tokens.gather(1, context[..., None].expand(-1, -1, 8)), golden["tokens_ctx"])


def test_both_encoders_say_what_the_official_ones_say(golden: Golden) -> None:
    module = golden.module()
    close(module.encoder(golden["x"]), golden["ctx_full_repr"])
    close(module.targets(golden["x"]), golden["tgt_full_repr"])
    close(module.encoder(golden["x"], golden["mask_ctx"][0]), golden["z_ctx"])


def test_predictions_targets_and_loss_are_the_official_ones(golden: Golden) -> None:
    module, batch = golden.module(), golden.batch
    predicted = module.predict(batch["x"], batch["context"], batch["target"])
    close(predicted.flatten(0, 1), golden["z_pred"])
    close(module.loss(**batch), golden["loss0"])


def test_gradients_are_the_official_ones(golden: Golden) -> None:
    module = golden.module()
    module.loss(**golden.batch).backward()
    theirs = golden.state("grad0_ctx") | golden.state("grad0_pred")
    # Gradients travel as weights do: written into the module, they get the official names.
    for part in (module.encoder, module.predictor):
        for parameter in part.parameters():
            assert parameter.grad is not None
            parameter.data = parameter.grad
    dumped = official.dump_state(module)
    ours = dumped["context_encoder"] | dumped["predictor"]
    for name, wanted in theirs.items():
        largest = wanted.abs().max().item()
        close(ours[name], wanted, atol=1e-3 * largest + 1e-9, rtol=0)


def test_three_steps_end_at_the_official_weights(golden: Golden) -> None:
    module, arrays = golden.module(), golden.arrays
    optimizer = adamw(decay_groups(module))  # type: ignore[arg-type]
    rates = [1e-3, float(arrays["lr_after_0"]), float(arrays["lr_after_1"])]
    decays = [0.01, float(arrays["wd_after_0"][0]), float(arrays["wd_after_1"][0])]
    losses = []
    for rate, decay, momentum in zip(rates, decays, arrays["ema_used"].tolist(), strict=True):
        set_hyperparameters(optimizer, rate, decay)
        loss = module.loss(**golden.batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        module.ema.update(momentum)
        losses.append(loss.item())
    np.testing.assert_allclose(losses, arrays["losses"], atol=1e-5)
    dumped = official.dump_state(module)
    for part, prefix in (
        ("context_encoder", "ctx3"),
        ("target_encoder", "tgt3"),
        ("predictor", "pred3"),
    ):
        dead = ("transformer_layers.", "layer_norm.")
        for name, wanted in golden.state(prefix).items():
            if not any(part in name for part in dead):
                close(dumped[part][name], wanted, atol=5e-5, rtol=0)
    close(module.targets(golden["x"]), golden["tgt3_full_repr"], atol=5e-5, rtol=0)


def test_equal_target_masks_cost_nothing_to_leave_out(data: Data) -> None:
    golden = Golden(data("tabular") / "golden_tjepa_num.npz")
    gradients = []
    for masks in (4, 1):
        module = golden.module()
        batch = golden.batch
        module.loss(batch["x"], batch["context"], batch["target"][:masks]).backward()
        gradients.append([p.grad for p in module.parameters() if p.requires_grad])
    for four, one in zip(*gradients, strict=True):
        close(one, four, atol=1e-7, rtol=1e-5)


def test_position_tables_are_the_official_ones(data: Data) -> None:
    with np.load(data("tabular") / "golden_positions.npz") as golden:
        for dim in (8, 64):
            wanted = golden[f"encoder_pe_h{dim}_first64"]
            np.testing.assert_array_equal(position_table(dim, 64), wanted)
        for dim, rows in ((4, 14), (16, 54)):
            wanted = golden[f"predictor_pe_d{dim}_D{rows}"]
            np.testing.assert_allclose(predictor_position_table(dim, rows), wanted, atol=1e-6)


def test_schedules_are_the_official_ones(data: Data) -> None:
    with np.load(data("tabular") / "golden_schedules.npz") as golden:
        rate, decay = schedules(PRETRAIN["official-jannis"])
        steps = golden["jannis_steps"].tolist()
        np.testing.assert_allclose([rate(s) for s in steps], golden["jannis_lr"], atol=1e-12)
        np.testing.assert_allclose([decay(s) for s in steps], golden["jannis_wd"], atol=1e-12)
        twenty = replace(PRETRAIN["official-cli"], steps=2000, warmup_steps=100)
        rate, decay = schedules(twenty)
        np.testing.assert_allclose(
            [rate(s) for s in range(2001)], golden["cli_default_ipe20_lr"], atol=1e-12
        )
        np.testing.assert_allclose(
            [decay(s) for s in range(2001)], golden["cli_default_ipe20_wd"], atol=1e-12
        )


def test_the_momentum_is_the_official_one(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    config = PRETRAIN["official-jannis"]
    module = TJEPA(replace(config, model=replace(config.model, depth=1)), TableShape(4))
    monkeypatch.setattr(module.ema, "update", seen.append)
    with np.load(data("tabular") / "golden_schedules.npz") as golden:
        for step in golden["jannis_steps"].tolist():
            module.after_step(step)
        np.testing.assert_allclose(seen, golden["jannis_ema"], atol=1e-12)


CARDINALITIES = {"adult": (9, 16, 7, 15, 6, 5, 2, 42), "higgs": (4, 4, 4, 4)}
CATEGORICAL = {"adult": (1, 3, 5, 6, 7, 8, 9, 13), "higgs": (8, 12, 16, 20)}
COLUMNS = {"adult": 14, "helena": 27, "jannis": 54, "aloi": 128, "california": 8, "higgs": 28}
# Encoder and predictor at the launch script's width, with the parameters that are never used.
LAUNCH = {
    "jannis": 440_064,
    "adult": 440_960,
    "helena": 436_608,
    "aloi": 449_536,
    "california": 434_176,
    "higgs": 437_504,
}
CLI = {
    "jannis": 261_312,
    "adult": 262_208,
    "helena": 257_856,
    "aloi": 270_784,
    "california": 255_424,
    "higgs": 258_752,
}


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("table", COLUMNS)
@pytest.mark.parametrize(
    ("preset", "encoders", "predictor"),
    [("official-jannis", LAUNCH, 166_016), ("official-cli", CLI, 163_008)],
)
def test_parameters_count_as_officially(
    table: str, preset: str, encoders: dict[str, int], predictor: int
) -> None:
    config = PRETRAIN[preset]
    config = replace(config, model=replace(config.model, type_embedding=False))
    shape = TableShape(COLUMNS[table], CATEGORICAL.get(table, ()), CARDINALITIES.get(table, ()))
    module = TJEPA(config, shape)
    layer = sum(p.numel() for p in module.encoder.blocks[0].parameters())
    assert parameters(module.encoder) + layer == encoders[table]
    # Unused in the predictor: one layer, and a norm.
    layer = sum(p.numel() for p in module.predictor.blocks[0].parameters())
    norm = 2 * config.model.predictor_dim
    assert parameters(module.predictor) + layer + norm == predictor


def test_an_official_state_has_213_entries() -> None:
    module = TJEPA(PRETRAIN["official-jannis"], TableShape(54))
    assert len(official.dump_state(module)["context_encoder"]) == 213


def test_official_layers_start_equal_and_ours_do_not() -> None:
    for preset, equal in (("official-adult", True), ("adult", False)):
        module = untrained(PRETRAIN[preset], TableShape(4, (3,), (3,)), 0)
        for stack in (module.encoder.blocks, module.predictor.blocks):
            first, second = (dict(stack[i].named_parameters()) for i in (0, 1))
            assert torch.equal(first["mlp.fc1.weight"], second["mlp.fc1.weight"]) == equal


def test_types_are_added_to_the_tokens_they_belong_to() -> None:
    shape = TableShape(4, (0, 2), (3, 3))
    for as_official, order in ((False, [0, 0, 1, 1]), (True, [1, 0, 1, 0])):
        config = ModelConfig(type_embedding=True, official=as_official)
        module = TJEPA(replace(NANO, model=config), shape)
        assert module.encoder.types.tolist() == order


def test_the_initial_loss_of_the_launch_recipe_is_one() -> None:
    config = PRETRAIN["official-jannis"]
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.uniform(size=(64, 54)).astype(np.float32))
    context = torch.from_numpy(np.stack([rng.permutation(54)[:13] for _ in range(64)]))
    target = torch.from_numpy(np.stack([rng.permutation(54)[:21] for _ in range(64)]))[None]
    losses = []
    for seed in range(8):
        module = untrained(config, TableShape(54), seed)
        with torch.no_grad():
            predicted = module.predict(x, context, target)
            losses.append(module.loss(x, context, target).item())
        assert 0.06 < predicted.std().item() < 0.1
    # Targets have unit variance; that of predictions adds .006, and a draw's luck up to .02.
    assert np.mean(losses) == pytest.approx(1.006, abs=0.012)


def test_a_missing_number_is_a_learned_token() -> None:
    shape = TableShape(3, (1,), (4,), missing=True)
    module = untrained(NANO, shape, 0)
    row = torch.tensor([[0.5, 2.0, float("nan")]])
    tokens = module.encoder.tokenizer(row)
    tokenizer = module.encoder.tokenizer
    assert tokenizer.missing is not None
    close(tokens[0, 2], tokenizer.missing[1] + tokenizer.bias[1])
    assert tokens.isfinite().all()
    tokens.sum().backward()
    for parameter in tokenizer.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


def test_what_is_hidden_does_not_reach_the_prediction() -> None:
    module = untrained(NANO, TableShape(6), 0).eval()
    x = torch.randn(3, 6)
    context = torch.tensor([[0, 1, 2, 4]] * 3)
    target = torch.tensor([[[3, 5]] * 3])
    changed = x.clone()
    changed[:, [2, 4, 5]] += 1  # tokens 3, 5 and 6
    before, after = (module.predict(rows, context, target) for rows in (x, changed))
    close(before, after, atol=0, rtol=0)


def test_standardised_targets_have_unit_variance_wherever_rows_differ() -> None:
    config = replace(NANO, model=replace(NANO.model, registers=0))
    module = untrained(config, TableShape(5), 0).double().eval()
    x = torch.randn(64, 5, dtype=torch.float64)
    every = torch.arange(5).expand(1, 64, 5)
    seen: list[torch.Tensor] = []

    def keep(self: Any, *_: Any) -> torch.Tensor:
        seen.append(torch.zeros(1, 64, 5, 32, dtype=torch.float64))
        return seen[-1]

    module.predict = keep.__get__(module)  # type: ignore[method-assign]
    # Of predictions that are zero, the loss is the mean square of the targets.
    loss = module.loss(x, every[0], every)
    assert loss.item() == pytest.approx(1.0, abs=0.01)


def test_targets_are_without_dropout_and_officially_with() -> None:
    for compat, training in (("none", False), ("official", True)):
        config = replace(NANO, compat=compat)  # type: ignore[arg-type]
        module = TJEPA(config, TableShape(4)).train()
        assert module.encoder.training
        assert module.target_encoder.training == training
