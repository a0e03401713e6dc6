"""The model is the paper's: sizes, names, numbers and training steps of the official program."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jepa_core.optim import decay_groups
from jepa_core.schedules import cosine_to_last, linear
from jepa_ecg.checkpoints import config_from_official
from jepa_ecg.classifier import ECGClassifier
from jepa_ecg.model import ECGJEPA, ECGEncoder
from jepa_ecg.presets import DOWNSTREAM, NANO, PRETRAIN, ModelConfig, PretrainConfig

Golden = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def golden(data: Callable[[str], Path]) -> Golden:
    with np.load(data("ecg") / "golden_tiny_jepa.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def heads(data: Callable[[str], Path]) -> Golden:
    with np.load(data("ecg") / "golden_tiny_classifier.npz") as file:
        return dict(file)


def tiny(golden: Golden, case: str, *, stored_table: bool = True) -> ECGJEPA:
    """The tiny model of the golden file in float64."""
    config = config_from_official(json.loads(str(golden["official/config"])))
    if case == "full":
        model = replace(
            config.model,
            dim=16,
            heads=4,
            depth=1,
            predictor_dim=8,
            predictor_heads=2,
            predictor_depth=1,
            registers=3,
            bias=True,
            qkv_bias=True,
            layer_scale=0.1,
        )
        config = replace(config, model=model)
    jepa = ECGJEPA(config).double()
    state = {
        name.removeprefix(f"{case}/state/"): torch.from_numpy(value).double()
        for name, value in golden.items()
        if name.startswith(f"{case}/state/")
    }
    jepa.load_state_dict(state | {"forwards": torch.tensor(0)})
    if stored_table:
        for encoder in (jepa.encoder, jepa.target_encoder):
            encoder.positions = torch.from_numpy(golden[f"{case}/pos_table_encoder"]).double()
        jepa.predictor.positions = torch.from_numpy(golden[f"{case}/pos_table_predictor"]).double()
    return jepa


def batch(golden: Golden, case: str) -> dict[str, Tensor]:
    return {
        "signal": torch.from_numpy(golden[f"{case}/x"]).double(),
        "context": torch.from_numpy(golden[f"{case}/mask_encoder"]),
        "target": torch.from_numpy(golden[f"{case}/mask_predictor"]),
    }


def near(value: Tensor, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(value.detach().numpy(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "encoder", "predictor", "decayed", "rest", "keys"),
    [
        ("vit-xs", 3_600_000, 923_328, (67, 4_518_144), (36, 5_184), 154),
        ("vit-s", 14_277_888, 3_689_856, (67, 17_957_376), (36, 10_368), 154),
        ("vit-b", 85_185_024, 21_833_472, (99, 106_988_544), (52, 29_952), 226),
    ],
)
def test_sizes_are_the_papers(
    name: str,
    encoder: int,
    predictor: int,
    decayed: tuple[int, int],
    rest: tuple[int, int],
    keys: int,
) -> None:
    with torch.device("meta"):
        jepa = ECGJEPA(PRETRAIN[name])
    assert sum(p.numel() for p in jepa.encoder.parameters()) == encoder
    assert sum(p.numel() for p in jepa.predictor.parameters()) == predictor
    assert len(jepa.state_dict()) == keys
    groups = decay_groups(jepa)
    sizes = [(len(g["params"]), sum(p.numel() for p in g["params"])) for g in groups]
    assert sizes == [decayed, rest]


@pytest.mark.parametrize("case", ["official", "full"])
def test_every_intermediate_equals_the_official_program(golden: Golden, case: str) -> None:
    jepa, given = tiny(golden, case).eval(), batch(golden, case)
    signal, context, hidden = given["signal"], given["context"], given["target"]
    near(jepa.encoder.patch_embed(signal), golden[f"{case}/patch_embed"], 1e-9)
    near(jepa.encoder(signal, context), golden[f"{case}/z_context"], 1e-9)
    near(jepa.predict(signal, context, hidden), golden[f"{case}/pred"], 1e-9)
    near(jepa.targets(signal), golden[f"{case}/h_target_full"], 1e-9)
    near(
        jepa.encoder(signal, keep_registers=True),
        golden[f"{case}/encoder_full_with_registers"],
        1e-9,
    )
    near(jepa(given)["loss"], golden[f"{case}/loss_no_ema"], 1e-9)


def test_our_own_position_table_is_the_official_one(golden: Golden) -> None:
    jepa = tiny(golden, "official", stored_table=False).eval()
    near(jepa(batch(golden, "official"))["loss"], golden["official/loss_no_ema"], 5e-6)


def test_float32_agrees_with_float64(golden: Golden) -> None:
    jepa = tiny(golden, "official").eval().float()
    given = {
        k: v.float() if v.is_floating_point() else v for k, v in batch(golden, "official").items()
    }
    near(jepa(given)["loss"], golden["official/loss_no_ema"], 1e-5)


def test_four_training_steps_equal_the_official_program(golden: Golden) -> None:
    jepa, given = tiny(golden, "official").train(), batch(golden, "official")
    config = jepa.config
    groups = decay_groups(jepa)
    assert set(groups[0]["names"]) == set(golden["official/decay_names"])
    assert set(groups[1]["names"]) == set(golden["official/nodecay_names"])
    optimiser = torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps)
    losses = []
    for step in range(4):
        rate = cosine_to_last(
            step,
            config.steps,
            config.warmup_steps,
            config.initial_learning_rate,
            config.learning_rate,
            config.final_learning_rate,
        )
        decay = cosine_to_last(
            step, config.steps, 0, 0.0, config.weight_decay, config.final_weight_decay
        )
        assert rate == pytest.approx(golden["official/train_lr"][step], rel=1e-6)
        assert decay == pytest.approx(golden["official/train_wd"][step], rel=1e-4)
        for group, weight in zip(optimiser.param_groups, (decay, 0.0), strict=True):
            group["lr"], group["weight_decay"] = rate, weight
        optimiser.zero_grad()
        loss = jepa(given)["loss"]
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            for name, parameter in jepa.named_parameters():
                if parameter.requires_grad:
                    assert parameter.grad is not None, name
                    near(parameter.grad, golden[f"official/grad0/{name}"], 1e-9)
        optimiser.step()
        jepa.after_step(step)
    np.testing.assert_allclose(losses, golden["official/train_loss"], atol=1e-5)
    state = jepa.state_dict()
    for name, value in golden.items():
        if name.startswith("official/after4/"):
            near(state[name.removeprefix("official/after4/")], value, 1e-5)


@pytest.mark.parametrize(
    ("case", "pooling", "register"),
    [
        ("attn_register", True, True),
        ("attn_noregister", True, False),
        ("register_linear", False, True),
        ("gap_linear", False, False),
    ],
)
def test_every_head_equals_the_official_program(
    golden: Golden, heads: Golden, case: str, pooling: bool, register: bool
) -> None:
    config = config_from_official(json.loads(str(golden["official/config"])))
    classifier = ECGClassifier(
        ECGEncoder(config.model), 7, attention_pooling=pooling, use_register=register
    ).double()
    prefix = f"{case}/state/"
    classifier.load_state_dict(
        {
            name.removeprefix(prefix).replace("cross_attention_block.", ""): torch.from_numpy(
                value
            ).double()
            for name, value in heads.items()
            if name.startswith(prefix)
        }
    )
    classifier.encoder.positions = torch.from_numpy(heads["pos_table_encoder"]).double()
    logits = classifier(torch.from_numpy(heads["x"]).double())
    near(logits, heads[f"{case}/logits"], 1e-9)
    loss = nn.functional.binary_cross_entropy_with_logits(
        logits, torch.from_numpy(heads[f"{case}/y"]).double()
    )
    near(loss, heads[f"{case}/bce"], 1e-9)
    if pooling:
        classifier.encoder.requires_grad_(False)
    loss.backward()
    trained = [p for p in classifier.parameters() if p.requires_grad]
    norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
    near(norm, heads[f"{case}/grad_norm"], 1e-9)
    groups = decay_groups(classifier)
    numel = [sum(p.numel() for p in group["params"]) for group in groups]
    assert numel == list(heads[f"{case}/decay_numel"])


@pytest.mark.parametrize(
    ("model", "parameters"),
    [("vit-xs", 124_416), ("vit-s", 470_016), ("vit-b", 1_824_768)],
)
def test_the_attention_pool_has_the_papers_size(model: str, parameters: int) -> None:
    with torch.device("meta"):
        classifier = ECGClassifier(ECGEncoder(PRETRAIN[model].model), 71)
    assert classifier.attn_pool is not None
    assert sum(p.numel() for p in classifier.attn_pool.parameters()) == parameters


def test_an_encoder_without_register_gets_one_for_the_head() -> None:
    encoder = ECGEncoder(replace(NANO.model, registers=0))
    classifier = ECGClassifier(encoder, 5, attention_pooling=False, use_register=True)
    assert classifier(torch.zeros(2, 12, 500)).shape == (2, 5)
    assert encoder.config.registers == 1


@pytest.mark.parametrize("name", ["vit-xs", "vit-s"])
def test_the_loss_at_initialisation_is_that_of_the_official_program(name: str) -> None:
    torch.manual_seed(0)
    jepa = ECGJEPA(PRETRAIN[name])
    keep = torch.arange(41).repeat(4, 1)
    given = {
        "signal": torch.randn(4, 12, 5000),
        "context": keep,
        "target": torch.arange(41, 200).repeat(4, 1),
    }
    with torch.no_grad():
        assert 0.80 < jepa(given)["loss"].item() < 0.88
        target = jepa.targets(given["signal"])
    assert target.shape == (4, 200, PRETRAIN[name].model.dim)
    assert abs(target.std().item() - 1) < 0.002


def test_position_rows_equal_the_official_tables(data: Callable[[str], Path]) -> None:
    with np.load(data("ecg") / "golden_pos_embed.npz") as table:
        for width, model in ((192, PRETRAIN["vit-xs"].model), (96, None)):
            config = model or replace(PRETRAIN["vit-xs"].model, dim=96)
            rows = ECGEncoder(replace(config, depth=1)).positions[table["rows"]]
            near(rows, table[f"dim{width}"], 1e-5)


def test_schedules_equal_the_official_program(data: Callable[[str], Path]) -> None:
    recipe = PRETRAIN["vit-s"]
    with np.load(data("ecg") / "golden_schedules.npz") as golden:
        step = golden["step"]
        rate = cosine_to_last(step, recipe.steps, recipe.warmup_steps, 1e-6, 1e-3, 1e-6)
        decay = cosine_to_last(step, recipe.steps, 0, 0.0, 0.01, 0.1)
        momentum = linear(step, recipe.steps, 0.998, 0.9995)
        # The official formula turns back one step behind the last (by 3e-7); ours stays at its end.
        trained = step < recipe.steps
        for ours, name in ((rate, "lr"), (decay, "wd"), (momentum, "momentum")):
            np.testing.assert_allclose(ours[trained], golden[name][trained], rtol=1e-12)
            np.testing.assert_allclose(ours, golden[name], rtol=1e-6)
        for name, preset in (
            ("finetune", "finetune"),
            ("finetune_after_linear", "finetune-after-attentive"),
            ("linear", "attentive"),
        ):
            head = DOWNSTREAM[preset].training
            rate = cosine_to_last(
                golden[f"{name}_step"],
                head.steps,
                head.warmup,
                head.warmup_learning_rate,
                head.learning_rate,
                head.final_learning_rate,
            )
            inside = golden[f"{name}_step"] < head.steps
            np.testing.assert_allclose(rate[inside], golden[f"{name}_lr"][inside], rtol=1e-12)


def test_only_the_asked_rows_are_returned_and_they_are_the_same() -> None:
    torch.manual_seed(0)
    encoder = ECGEncoder(NANO.model).double().eval()
    signal = torch.randn(2, 12, 500, dtype=torch.float64)
    rows = torch.tensor([[1, 5, 19], [0, 2, 3]])
    whole = encoder(signal).gather(1, rows[..., None].expand(-1, -1, 64))
    near(encoder(signal, rows=rows), whole.detach().numpy(), 1e-12)


def test_dropped_tokens_do_not_change_what_is_seen() -> None:
    torch.manual_seed(0)
    encoder = ECGEncoder(NANO.model).double().eval()
    signal = torch.randn(1, 12, 500, dtype=torch.float64)
    keep = torch.tensor([[0, 3, 7]])
    other = signal.clone()
    other[..., 25:75] = 9.0
    near(encoder(signal, keep), encoder(other, keep).detach().numpy(), 0)


def test_the_target_moves_after_the_step_by_the_schedules_momentum() -> None:
    torch.manual_seed(0)
    jepa = ECGJEPA(NANO)
    before = jepa.target_encoder.norm.weight.clone()
    with torch.no_grad():
        jepa.encoder.norm.weight += 1.0
    jepa.after_step(1500)
    momentum = 0.99 + (0.999 - 0.99) * 1500 / 3000
    expected = momentum * before + (1 - momentum) * (before + 1)
    torch.testing.assert_close(jepa.target_encoder.norm.weight, expected)


def test_no_gradient_reaches_the_target_encoder() -> None:
    torch.manual_seed(0)
    jepa = ECGJEPA(NANO)
    keep = torch.arange(8).repeat(2, 1)
    given = {
        "signal": torch.randn(2, 12, 500),
        "context": keep,
        "target": torch.arange(8, 20).repeat(2, 1),
    }
    jepa(given)["loss"].backward()
    assert all(p.grad is None for p in jepa.target_encoder.parameters())
    assert all(p.grad is not None for p in jepa.encoder.parameters())
    assert all(p.grad is not None for p in jepa.predictor.parameters())


def test_settings_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="samples is 4990"):
        ModelConfig(samples=4990)
    with pytest.raises(ValueError, match="dim is 100"):
        ModelConfig(dim=100)
    with pytest.raises(ValueError, match="keep is"):
        PretrainConfig(keep=(0.5, 1.0))
    with pytest.raises(ValueError, match="accumulation is 3"):
        PretrainConfig(accumulation=3)
