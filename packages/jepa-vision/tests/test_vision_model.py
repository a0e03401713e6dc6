"""Encoder, predictor, head and losses against the official modules' outputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from jepa_core.errors import ConfigError
from jepa_core.optim import adamw, set_hyperparameters
from jepa_vision.model import ImageEncoder, ImageJEPA, ImagePredictor, build_head
from jepa_vision.presets import SIZES, DMTConfig, MaskConfig, ModelConfig, PretrainConfig
from jepa_vision.pretrain import groups, schedules
from jepa_vision.targets import aggregate, neighbour_table, select_neighbours

Data = Callable[[str], Path]
TINY = ModelConfig(
    image=(48, 48),
    patch=8,
    dim=32,
    depth=2,
    heads=4,
    predictor_dim=24,
    predictor_depth=2,
    residual_scale="none",
)
CONFIG = PretrainConfig(
    method="i-jepa",
    model=TINY,
    masks=MaskConfig(min_keep=2),
    dmt=DMTConfig(border="wrap", query="mean"),
    epochs=4.0,
    warmup_epochs=1.0,
    schedule_stretch=1.25,
)
DMT = replace(CONFIG, method="dmt-jepa")
OFFICIAL = replace(DMT, dmt=replace(DMT.dmt, pairing="official"))
NAMES = {
    "predictor_embed": "embed",
    "predictor_blocks": "blocks",
    "predictor_norm": "norm",
    "predictor_proj": "proj",
    "cls_blocks": "blocks",
    "attn.q.": "q.",
    "attn.k.": "k.",
    "attn.v.": "v.",
}


def ours(part: str, name: str) -> str:
    """The name of an official parameter in our module."""
    for official, own in NAMES.items():
        name = name.replace(official, own)
    if "head" in part:
        name = name.replace("attn.proj", "proj")
    return f"{part}.{name}"


def loaded(config: PretrainConfig, golden: np.lib.npyio.NpzFile, prefix: str = "w/") -> ImageJEPA:
    module = ImageJEPA(config, steps=8)
    state = {}
    for key in golden.files:
        if key.startswith(prefix):
            part, name = key.removeprefix(prefix).split("/")
            if not name.endswith("pos_embed"):
                state[ours(part, name)] = torch.from_numpy(golden[key])
    for part in ("encoder", "head"):
        if not any(name.startswith(f"target_{part}") for name in state):
            copies = {n: v for n, v in state.items() if n.startswith(f"{part}.")}
            state |= {f"target_{name}": value for name, value in copies.items()}
    if module.head is None:
        state = {name: value for name, value in state.items() if "head" not in name}
    module.load_state_dict(state)
    return module


@pytest.fixture
def tiny(data: Data) -> np.lib.npyio.NpzFile:
    return np.load(data("vision") / "golden" / "golden_model_tiny.npz")


def batch_of(golden: np.lib.npyio.NpzFile, step: str = "") -> dict[str, Tensor]:
    return {
        "image": torch.from_numpy(golden[f"x{step}"]),
        "context": torch.from_numpy(golden[f"masks_enc{step}"].astype(np.int64)),
        "target": torch.from_numpy(golden[f"masks_pred{step}"].astype(np.int64)),
    }


def with_union(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with what a source adds so that only what is needed is computed."""
    rows = [torch.unique(batch["target"][:, b]) for b in range(batch["target"].shape[1])]
    union = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    place = torch.stack(
        [
            torch.stack([torch.searchsorted(row, block[b]) for b, row in enumerate(rows)])
            for block in batch["target"]
        ]
    )
    return batch | {"union": union, "place": place}


def close(value: Tensor, golden: np.ndarray, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(value.detach().numpy(), golden, rtol=0, atol=tolerance)


def test_the_encoder_equals_the_official_one(tiny: np.lib.npyio.NpzFile) -> None:
    module, batch = loaded(CONFIG, tiny), batch_of(tiny)
    close(module.encoder.patch_embed(batch["image"]), tiny["patch_embed"])
    close(module.encoder(batch["image"]), tiny["encoder_full"])
    close(module.encoder(batch["image"], batch["context"][0]), tiny["encoder_ctx"])
    close(module.target_encoder(batch["image"]), tiny["target_raw"])
    close(module.targets(batch["image"]), tiny["target_ln"])
    (_, last) = module.encoder.features(batch["image"], (1, 2))
    close(last, tiny["encoder_full"])
    x = module.encoder.blocks[0](module.encoder._tokens(batch["image"], None))
    close(x, tiny["block0"])


def test_i_jepa_loss_and_gradients_equal_the_official_ones(tiny: np.lib.npyio.NpzFile) -> None:
    module, batch = loaded(CONFIG, tiny), with_union(batch_of(tiny))
    close(module.predict(batch), tiny["ijepa_pred"])
    close(module._block_targets(batch), tiny["ijepa_targets"])
    output = module(batch)
    assert output["loss"].item() == pytest.approx(float(tiny["ijepa_loss"]), abs=1e-6)
    output["loss"].backward()
    _check_gradients(module, tiny, "grad_ijepa/")


def test_dmt_selects_the_official_neighbours(tiny: np.lib.npyio.NpzFile) -> None:
    module, batch = loaded(DMT, tiny), batch_of(tiny)
    h = torch.from_numpy(tiny["target_ln"])
    table = neighbour_table(6, 6, border="wrap")
    np.testing.assert_array_equal(table.numpy(), tiny["dmt_neighbours"])
    index, similarity = select_neighbours(h, table, 4)
    close(similarity, tiny["dmt_sim"])
    np.testing.assert_array_equal(np.sort(index.numpy()), np.sort(tiny["dmt_top_patch"]))
    np.testing.assert_array_equal(
        np.sort(module.neighbours(h, (6, 6)).numpy()), np.sort(tiny["dmt_top_patch"])
    )
    some, _ = select_neighbours(h, table, 4, batch["target"][0])
    for b in range(3):
        np.testing.assert_array_equal(some[b], index[b, batch["target"][0, b]])


@pytest.mark.parametrize("pairing", ["image", "official"])
def test_dmt_targets_equal_the_official_ones(tiny: np.lib.npyio.NpzFile, pairing: str) -> None:
    module, batch = loaded(DMT if pairing == "image" else OFFICIAL, tiny), batch_of(tiny)
    name = "fixed" if pairing == "image" else "official"
    close(module.targets(batch["image"]), tiny[f"dmt_targets_all_{name}"])
    close(module._block_targets(with_union(batch)), tiny[f"dmt_targets_{name}"])
    # The program's other kind of attention gives the same targets.
    if pairing == "image":
        close(module.targets(batch["image"]), tiny["dmt_targets_all_selfattn_fixed"])


def test_dmt_context_and_predictions_equal_the_official_ones(tiny: np.lib.npyio.NpzFile) -> None:
    module, batch = loaded(DMT, tiny), batch_of(tiny)
    z = torch.from_numpy(tiny["encoder_ctx"])
    assert module.head is not None
    close(module.head(z), tiny["dmt_ctx"])
    close(module.head(z, form="self"), tiny["dmt_ctx_selfattn"])
    close(module.predict(batch), tiny["dmt_pred"])


@pytest.mark.parametrize("name", ["fixed", "official"])
def test_dmt_loss_and_gradients_equal_the_official_ones(
    tiny: np.lib.npyio.NpzFile, name: str
) -> None:
    module = loaded(DMT if name == "fixed" else OFFICIAL, tiny)
    output = module(with_union(batch_of(tiny)))
    assert output["loss"].item() == pytest.approx(float(tiny[f"dmt_loss_{name}"]), abs=1e-6)
    if name == "fixed":
        output["loss"].backward()
        _check_gradients(module, tiny, "grad_dmt_fixed/")


def test_the_paired_query_is_the_official_one_of_a_single_image(
    tiny: np.lib.npyio.NpzFile,
) -> None:
    module = loaded(DMT, tiny)
    h = torch.from_numpy(tiny["target_ln"])
    index = module.neighbours(h, (6, 6))
    together = aggregate(module.target_head, h, index)
    apart = [
        aggregate(module.target_head, h[b : b + 1], index[b : b + 1], pairing="official")
        for b in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(apart), rtol=0, atol=1e-5)


def test_several_contexts_keep_the_official_order(data: Data) -> None:
    golden = np.load(data("vision") / "golden" / "golden_model_nenc2.npz")
    config = replace(CONFIG, masks=replace(CONFIG.masks, contexts=2, targets=3))
    module, batch = loaded(config, golden), batch_of(golden)
    close(module.predict(batch), golden["pred"])
    close(module._block_targets(with_union(batch)), golden["targets"])
    assert module(batch)["loss"].item() == pytest.approx(float(golden["loss"]), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "config"), [("ijepa", CONFIG), ("dmt_fixed", DMT), ("dmt_official", OFFICIAL)]
)
def test_four_steps_of_training_equal_the_official_ones(
    data: Data, name: str, config: PretrainConfig
) -> None:
    golden = np.load(data("vision") / "golden" / f"golden_train_{name}.npz")
    module = loaded(config, golden, "w0/")
    rate, decay = schedules(config, steps=8, warmup=2)
    optimizer = adamw(groups(module), betas=config.betas, eps=config.eps)
    for step in range(4):
        assert rate(step) == pytest.approx(golden["lr"][step], rel=1e-9)
        assert decay(step) == pytest.approx(golden["wd"][step], rel=1e-9)
        set_hyperparameters(optimizer, rate(step), decay(step))
        loss = module(with_union(batch_of(golden, str(step))))["loss"]
        assert loss.item() == pytest.approx(golden["loss"][step], abs=1e-5)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        module.after_step(step)
    state = module.state_dict()
    for key in golden.files:
        if key.startswith("wend/"):
            part, official = key.removeprefix("wend/").split("/")
            value, expected = state[ours(part, official)], golden[key]
            if "qkv" in key:
                # A softmax is blind to the bias of keys, and what is left of it is rounding; the
                # weights are compared whole.
                assert "bias" not in key
            close(value, expected)


def test_momentum_and_decay_follow_the_official_schedules(data: Data) -> None:
    golden = np.load(data("vision") / "golden" / "golden_schedules.npz")["ipe125_small"]
    config = replace(CONFIG, epochs=20.0, warmup_epochs=2.0)
    rate, decay = schedules(config, steps=200, warmup=20)
    columns = np.array([[rate(step), decay(step)] for step in range(200)])
    np.testing.assert_allclose(columns, golden[:, :2], rtol=1e-9)
    from jepa_core.schedules import linear

    momentum = [linear(step, 250.0, 0.996, 1.0) for step in range(200)]
    np.testing.assert_allclose(momentum, golden[:, 2], rtol=1e-9)


def test_initial_weights_are_scaled_by_depth_or_not() -> None:
    for scale in ("depth", "none"):
        torch.manual_seed(0)
        model = ModelConfig(image=(32, 32), dim=192, heads=3, depth=12, residual_scale=scale)  # type: ignore[arg-type]
        encoder = ImageEncoder(model)
        for number in (1, 6, 12):
            for weight in (
                encoder.blocks[number - 1].attn.proj.weight,
                encoder.blocks[number - 1].mlp.fc2.weight,
            ):
                expected = 0.02 / math.sqrt(2 * number) if scale == "depth" else 0.02
                assert weight.std().item() == pytest.approx(expected, rel=0.03)
        assert encoder.patch_embed.proj.weight.std().item() == pytest.approx(0.02, rel=0.03)


@pytest.mark.parametrize(
    ("size", "patch", "image", "count"),
    [
        ("tiny", 16, 224, 5_486_400),
        ("small", 16, 224, 21_589_632),
        ("base", 16, 224, 85_646_592),
        ("large", 16, 224, 303_098_880),
        ("huge", 14, 224, 630_434_560),
        ("huge", 16, 448, 630_664_960),
        ("giant", 16, 224, 1_011_092_608),
    ],
)
def test_encoders_have_the_published_number_of_parameters(
    size: str, patch: int, image: int, count: int
) -> None:
    with torch.device("meta"):
        model = replace(SIZES[size], patch=patch, image=(image, image))
        assert sum(p.numel() for p in ImageEncoder(model).parameters()) == count


@pytest.mark.parametrize(
    ("size", "predictor", "head"),
    [
        ("tiny", 10_795_968, 890_112),
        ("small", 10_943_616, 3_549_696),
        ("base", 11_238_912, 14_177_280),
        ("large", 22_082_560, 25_194_496),
        ("huge", 22_279_424, 39_357_440),
        ("giant", 29_475_712, 47_618_560),
    ],
)
def test_predictors_and_heads_have_the_published_number_of_parameters(
    size: str, predictor: int, head: int
) -> None:
    with torch.device("meta"):
        model = SIZES[size]
        assert sum(p.numel() for p in ImagePredictor(model).parameters()) == predictor
        built = build_head(PretrainConfig(model=model))
        assert built is not None
        assert sum(p.numel() for p in built.parameters()) == head


def _perturbed(config: PretrainConfig) -> ImageJEPA:
    torch.manual_seed(1)
    module = ImageJEPA(config, steps=10).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def _random_batch(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(3, 36, generator=generator).argsort(1)
    return {
        "image": torch.randn(3, 3, 48, 48, generator=generator, dtype=torch.float64),
        "context": order[None, :, :12].sort(-1).values,
        "target": torch.stack([order[:, 12 + 6 * t : 18 + 6 * t].sort(1).values for t in range(4)]),
    }


@pytest.mark.parametrize("packing", [0, 2**62], ids=["packed", "padded"])
@pytest.mark.parametrize("config", [CONFIG, DMT], ids=["i-jepa", "dmt-jepa"])
def test_contexts_of_unequal_lengths_are_what_each_image_gives_alone(
    config: PretrainConfig, packing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jepa_core.layers.block.PACKING", packing)
    module, batch = _perturbed(config), _random_batch()
    lengths = torch.tensor([[12, 5, 9]], dtype=torch.int32)
    ragged = batch | {"context_lengths": lengths, "context": batch["context"].clone()}
    for b, length in enumerate(lengths[0].tolist()):
        ragged["context"][0, b, length:] = 0
    together = module.predict(ragged).unflatten(0, (4, 3))
    for b, length in enumerate(lengths[0].tolist()):
        alone = module.predict(
            {
                "image": batch["image"][b : b + 1],
                "context": batch["context"][:, b : b + 1, :length],
                "target": batch["target"][:, b : b + 1],
            }
        )
        torch.testing.assert_close(together[:, b], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("packing", [0, 2**62], ids=["packed", "padded"])
def test_padding_gets_no_gradient_and_gives_none(
    packing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jepa_core.layers.block.PACKING", packing)
    module, batch = _perturbed(DMT), _random_batch()
    batch |= {"context_lengths": torch.tensor([[12, 5, 9]], dtype=torch.int32)}
    other = batch | {"context": batch["context"].clone()}
    other["context"][0, 1, 5:] = 35
    first, second = (
        torch.autograd.grad(module(each)["loss"], list(module.encoder.parameters()))
        for each in (batch, other)
    )
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


@pytest.mark.parametrize("config", [CONFIG, DMT], ids=["i-jepa", "dmt-jepa"])
def test_targets_of_some_patches_are_those_of_all(config: PretrainConfig) -> None:
    module, batch = _perturbed(config), _random_batch()
    with_all = module(batch)["loss"]
    with_some = module(with_union(batch))["loss"]
    torch.testing.assert_close(with_all, with_some, rtol=0, atol=1e-13)


def test_a_joint_predictor_is_another_objective() -> None:
    batch = _random_batch()
    apart, joint = _perturbed(CONFIG), _perturbed(replace(CONFIG, joint=True))
    joint.load_state_dict(apart.state_dict())
    assert apart.predict(batch).shape == joint.predict(batch).shape
    assert (apart.predict(batch) - joint.predict(batch)).abs().max() > 1e-3
    # With one block there is nothing else to see.
    batch["target"] = batch["target"][:1]
    torch.testing.assert_close(apart.predict(batch), joint.predict(batch), rtol=0, atol=1e-12)


def test_an_encoder_takes_other_sizes_and_knows_where_patches_are() -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder(TINY)
    for height, width in ((72, 72), (32, 32), (128, 128), (64, 80)):
        tokens = encoder(torch.randn(1, 3, height, width))
        assert tokens.shape == (1, height * width // 64, 32)
    from jepa_core.layers.positions import sincos_2d

    native, doubled = sincos_2d(6, 6, 32), sincos_2d(12, 12, 32, like=(6, 6)).unflatten(0, (12, 12))
    # The middle of four small patches is the middle of the large one that they make.
    middle = doubled.unflatten(0, (6, 2)).unflatten(2, (6, 2)).mean((1, 3)).flatten(0, 1)
    assert (middle - native).abs().max() < 0.04
    with pytest.raises(ConfigError, match="no block 3"):
        encoder.features(torch.randn(1, 3, 48, 48), (3,))


def test_every_head_parameter_learns_and_no_target_does(tiny: np.lib.npyio.NpzFile) -> None:
    module = loaded(DMT, tiny)
    module(batch_of(tiny))["loss"].backward()
    assert module.head is not None
    assert module.target_head is not None
    assert all(p.grad is not None for p in module.head.parameters())
    assert all(p.grad is None for p in module.target_head.parameters())
    assert all(p.grad is None for p in module.target_encoder.parameters())


def _check_gradients(module: ImageJEPA, golden: np.lib.npyio.NpzFile, prefix: str) -> None:
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    checked = 0
    for key in golden.files:
        if key.startswith(prefix):
            part, official = key.removeprefix(prefix).split("/")
            np.testing.assert_allclose(
                gradients[ours(part, official)].numpy(), golden[key], rtol=1e-4, atol=1e-6
            )
            checked += 1
    assert checked
