"""Layers against the original program's numbers, and every exact saving against its slow twin."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jepa_core.errors import ConfigError, DataError
from jepa_core.layers import (
    Block,
    LayerScale,
    PatchEmbed1d,
    PatchEmbed2d,
    Predictor,
    ViT,
    init_weights,
    take_rows,
)
from jepa_core.tokens import IndexSet

# The recorded model without, and with, biases, more registers and the encoder's LayerScale.
VARIANTS = {
    "official": {
        "encoder": {"dim": 24, "depth": 2, "heads": 2, "registers": 1},
        "predictor": {"dim": 24, "width": 16, "depth": 3, "heads": 4},
        "shared": {"bias": False, "qkv_bias": False},
    },
    "full": {
        "encoder": {"dim": 16, "depth": 1, "heads": 4, "registers": 3, "layer_scale": 0.1},
        "predictor": {"dim": 16, "width": 8, "depth": 1, "heads": 2},
        "shared": {"bias": True, "qkv_bias": True},
    },
}


class Encoder(ViT):
    """An encoder as a domain would build it: patches, positions, blocks."""

    positions: Tensor

    def __init__(self, positions: Tensor, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.patch_embed = PatchEmbed1d(12, 5, positions.shape[1], bias=bool(kwargs["bias"]))
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, x: Tensor, keep: Tensor | None = None, **kwargs: object) -> Tensor:
        tokens = self.patch_embed(x, keep)
        places = torch.arange(tokens.shape[1]).expand(len(x), -1) if keep is None else keep
        return super().forward(tokens + self.positions[places], **kwargs)


class Recorded:
    """One variant of the recorded model with its inputs, in float64."""

    def __init__(self, path: Path, variant: str) -> None:
        arrays = np.load(path)
        self.arrays = {
            name.removeprefix(f"{variant}/"): torch.from_numpy(arrays[name])
            for name in arrays.files
            if name.startswith(f"{variant}/") and arrays[name].dtype.kind in "fi"
        }
        settings = VARIANTS[variant]
        table = self.arrays["pos_table_encoder"]
        model = nn.ModuleDict(
            {
                "encoder": Encoder(table, **settings["encoder"], **settings["shared"]),
                "target_encoder": Encoder(table, **settings["encoder"], **settings["shared"]),
                "predictor": Predictor(
                    **settings["predictor"],
                    **settings["shared"],
                    positions=self.arrays["pos_table_predictor"],
                ),
            }
        ).double()
        state = {
            name.removeprefix("state/"): value.double()
            for name, value in self.arrays.items()
            if name.startswith("state/")
        }
        model.load_state_dict(state)  # strict: names and shapes are the original's
        self.encoder, self.target_encoder = model["encoder"], model["target_encoder"]
        self.predictor = model["predictor"]
        self.model = model

    def __getitem__(self, name: str) -> Tensor:
        value = self.arrays[name]
        return value.double() if value.is_floating_point() else value


@pytest.fixture(params=list(VARIANTS))
def recorded(request: pytest.FixtureRequest, data: Callable[[str], Path]) -> Recorded:
    return Recorded(data("ecg") / "golden_tiny_jepa.npz", request.param)


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def test_patches_encoder_and_predictor_reproduce_the_original(recorded: Recorded) -> None:
    x, context, targets = recorded["x"], recorded["mask_encoder"], recorded["mask_predictor"]
    encoder, target_encoder = recorded.encoder, recorded.target_encoder
    close(encoder.patch_embed(x), recorded["patch_embed"], 1e-9)
    close(encoder(x, keep_registers=True), recorded["encoder_full_with_registers"], 1e-9)
    full = target_encoder(x)
    close(full, recorded["h_target_full"], 1e-9)
    z = encoder(x, context)
    close(z, recorded["z_context"], 1e-9)
    prediction = recorded.predictor(z, context, targets)
    close(prediction, recorded["pred"], 1e-9)
    loss = (prediction - take_rows(full, targets)).abs().mean()
    close(loss, recorded["loss_no_ema"], 1e-9)


def test_gradients_of_the_first_training_step_reproduce_the_original(
    data: Callable[[str], Path],
) -> None:
    recorded = Recorded(data("ecg") / "golden_tiny_jepa.npz", "official")
    x, context, targets = recorded["x"], recorded["mask_encoder"], recorded["mask_predictor"]
    online = dict(recorded.encoder.named_parameters())
    with torch.no_grad():  # the original updates the target before its forward, here with m = 0.9
        for name, parameter in recorded.target_encoder.named_parameters():
            parameter.lerp_(online[name], 0.1)
        h = take_rows(recorded.target_encoder(x), targets)
    loss = (recorded.predictor(recorded.encoder(x, context), context, targets) - h).abs().mean()
    loss.backward()
    compared = 0
    for name, parameter in recorded.model.named_parameters():
        if not name.startswith("target_encoder"):
            close(parameter.grad, recorded[f"grad0/{name}"], 1e-9)
            compared += 1
    assert compared == 37


def random_model(seed: int, module: nn.Module) -> nn.Module:
    """`module` in float64 with all parameters, norms and biases too, away from their start."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).double())
    return module


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def indices(seed: int, batch: int, n: int, k: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, n, generator=generator).argsort(1)[:, :k].sort(1).values


def assert_same_output_and_gradients(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    fast: Callable[..., Tensor],
    twin: Callable[..., Tensor],
) -> None:
    """`fast` and `twin` agree to 1e-12 in output and in every gradient."""
    results = []
    for function in (fast, twin):
        leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
        module.zero_grad()
        out = function(*leaves)
        (out * normal(99, *out.shape)).sum().backward()
        gradients = {f"input {i}": x.grad for i, x in enumerate(leaves)}
        gradients |= {name: p.grad for name, p in module.named_parameters()}
        results.append(
            (out.detach(), {k: g.clone() for k, g in gradients.items() if g is not None})
        )
    (out, gradients), (expected, expected_gradients) = results
    close(out, expected, 1e-12)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        close(gradient, expected_gradients[name], 1e-12)


BLOCK_VARIANTS = [
    pytest.param({"bias": False, "qkv_bias": False}, id="no bias"),
    pytest.param({"bias": True, "qkv_bias": True, "layer_scale": 0.1}, id="biases and LayerScale"),
]


@pytest.mark.parametrize("settings", BLOCK_VARIANTS)
@pytest.mark.parametrize("rows", [slice(4, None), indices(3, 3, 11, 5)], ids=["slice", "indices"])
def test_a_block_cut_to_some_rows_equals_the_whole_block(
    settings: dict[str, object], rows: slice | Tensor
) -> None:
    block = random_model(1, Block(12, 3, **settings))
    lengths = torch.tensor([11, 7, 1])
    for key_lengths in (None, lengths):
        assert_same_output_and_gradients(
            block,
            (normal(2, 3, 11, 12),),
            lambda x, kl=key_lengths: block(x, rows=rows, key_lengths=kl),
            lambda x, kl=key_lengths: take_rows(block(x, key_lengths=kl), rows),
        )


@pytest.mark.parametrize("keep_registers", [False, True])
@pytest.mark.parametrize("registers", [0, 2])
def test_an_encoder_cut_to_some_tokens_equals_the_whole_encoder(
    registers: int, keep_registers: bool
) -> None:
    vit = random_model(4, ViT(12, 2, 3, registers=registers))
    rows = indices(5, 3, 9, 4)
    shown = registers if keep_registers else 0

    def whole(x: Tensor) -> Tensor:
        out = vit(x, keep_registers=keep_registers)
        return torch.cat((out[:, :shown], take_rows(out[:, shown:], rows)), 1)

    assert_same_output_and_gradients(
        vit,
        (normal(6, 3, 9, 12),),
        lambda x: vit(x, rows=rows, keep_registers=keep_registers),
        whole,
    )


def test_a_predictor_that_skips_the_contexts_last_rows_equals_one_that_does_not() -> None:
    predictor = random_model(7, Predictor(12, 8, 3, 2, positions=normal(8, 20, 8)))
    order = indices(9, 3, 20, 20)
    context, targets = order[:, :6], order[:, 6:]

    def whole(z: Tensor) -> Tensor:
        asked = (predictor.mask_token + predictor.positions[targets]).expand(3, -1, -1)
        x = torch.cat((predictor.embed(z) + predictor.positions[context], asked), 1)
        for block in predictor.blocks:
            x = block(x)
        return predictor.proj(predictor.norm(x))[:, 6:]

    assert_same_output_and_gradients(
        predictor, (normal(10, 3, 6, 12),), lambda z: predictor(z, context, targets), whole
    )


def test_gathering_patches_first_equals_embedding_all_signals_patches() -> None:
    embed = random_model(11, PatchEmbed1d(3, 4, 6))
    keep = indices(12, 2, 10, 3)
    twin = lambda x: take_rows(embed.proj(x).transpose(1, 2), keep)  # noqa: E731
    assert_same_output_and_gradients(embed, (normal(13, 2, 3, 40),), lambda x: embed(x, keep), twin)
    ragged = IndexSet(keep.int(), torch.tensor([3, 3], dtype=torch.int32))
    close(embed(normal(13, 2, 3, 40), ragged), twin(normal(13, 2, 3, 40)), 1e-12)


def test_gathering_patches_first_equals_embedding_all_image_patches() -> None:
    embed = random_model(14, PatchEmbed2d(3, 4, 6))
    keep = indices(15, 2, 15, 4)
    twin = lambda x: take_rows(embed.proj(x).flatten(2).transpose(1, 2), keep)  # noqa: E731
    x = normal(16, 2, 3, 12, 20)
    assert_same_output_and_gradients(embed, (x,), lambda x: embed(x, keep), twin)
    every = torch.arange(15).expand(2, -1)
    close(embed(x), embed(x, every), 1e-12)


def test_padding_behind_a_short_sample_does_not_change_its_tokens() -> None:
    vit = random_model(17, ViT(12, 2, 3, registers=2))
    x = normal(18, 2, 9, 12)
    padded = vit(x, key_lengths=torch.tensor([9, 5]))
    close(padded[1, :5], vit(x[1:, :5])[0], 1e-12)
    close(padded[0], vit(x[:1])[0], 1e-12)


def test_packed_samples_equal_each_sample_alone() -> None:
    torch.manual_seed(0)
    block = Block(16, 4, layer_scale=0.5).double()
    lengths = [5, 1, 9, 0, 4]
    cu = torch.tensor([0, 5, 6, 15, 15, 19])
    x = torch.randn(19, 16, dtype=torch.float64)
    parts = x.split(lengths)
    alone = [block(part[None])[0] if len(part) else part for part in parts]
    packed = block.packed(x, cu)
    torch.testing.assert_close(packed, torch.cat(alone), rtol=0, atol=1e-13)
    # Only the first two rows of those that have them.
    rows = torch.tensor([0, 1, 5, 6, 7, 15, 16])
    some = block.packed(x, cu, (rows, torch.tensor([0, 2, 3, 5, 5, 7])))
    torch.testing.assert_close(some, packed[rows], rtol=0, atol=1e-13)


def test_leaving_padding_out_of_the_work_changes_no_output_and_no_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jepa_core.layers.block.PACKING", 0)
    torch.manual_seed(0)
    vit = ViT(16, 3, 4).double()
    tokens, lengths = torch.randn(3, 7, 16, dtype=torch.float64), torch.tensor([7, 2, 5])
    valid = torch.arange(7) < lengths[:, None]

    def outcome(encode: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        out = encode()[valid]
        return out, *torch.autograd.grad(out.square().sum(), list(vit.parameters()))

    def padded() -> Tensor:
        x = tokens
        for block in vit.blocks:
            x = block(x, key_lengths=lengths)
        return vit.norm(x)

    for a, b in zip(
        outcome(lambda: vit(tokens, key_lengths=lengths)), outcome(padded), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_dropout_acts_in_training_only() -> None:
    vit = ViT(12, 2, 3, dropout=0.5)
    attention_only = ViT(12, 2, 3, attention_dropout=0.5)
    x = torch.randn(2, 9, 12)
    for module in (vit, attention_only):
        assert not torch.equal(module(x), module(x))
        module.eval()
        assert torch.equal(module(x), module(x))
        plain = ViT(12, 2, 3)
        plain.load_state_dict(module.state_dict())
        assert torch.equal(module(x), plain(x))


def test_weights_start_at_the_stated_scales() -> None:
    torch.manual_seed(0)
    vit = ViT(96, 8, 4, registers=64, layer_scale=0.1)
    for name, parameter in vit.state_dict().items():
        if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
            assert math.isclose(parameter.std(), 0.02 / math.sqrt(16), rel_tol=0.05), name
        elif name.endswith(("qkv.weight", "fc1.weight", "registers")):
            assert math.isclose(parameter.std(), 0.02, rel_tol=0.05), name
        elif "_ls." in name:
            assert (parameter == 0.1).all(), name
        else:
            assert (parameter == (0 if name.endswith("bias") else 1)).all(), name
    first, second = vit.blocks[0].mlp.fc1.weight, vit.blocks[1].mlp.fc1.weight
    assert not torch.equal(first, second)


def test_initialisation_takes_another_depth_and_touches_biases_and_norms() -> None:
    torch.manual_seed(0)
    block = random_model(19, Block(96, 4))
    init_weights(block, std=0.1, residual_depth=2)
    assert math.isclose(block.mlp.fc2.weight.detach().std(), 0.05, rel_tol=0.05)
    assert math.isclose(block.mlp.fc1.weight.detach().std(), 0.1, rel_tol=0.05)
    assert (block.mlp.fc1.bias == 0).all()
    assert (block.norm1.weight == 1).all()
    init_weights(block, std=0.1)
    assert math.isclose(block.mlp.fc2.weight.detach().std(), 0.1, rel_tol=0.05)


def test_the_cut_of_the_initial_normal_is_absolute() -> None:
    wide = nn.Linear(100, 100)
    init_weights(wide, std=3.0)
    assert wide.weight.abs().max() <= 2


def test_position_tables_are_not_stored_with_the_weights() -> None:
    assert "positions" not in Predictor(12, 8, 1, 2, positions=torch.zeros(5, 8)).state_dict()


def test_a_layer_scale_multiplies_features() -> None:
    scale = LayerScale(3, 0.5)
    assert torch.equal(scale(torch.ones(2, 3)), torch.full((2, 3), 0.5))


@pytest.mark.parametrize("length", [0, 13])
def test_a_signal_of_broken_patches_is_refused(length: int) -> None:
    with pytest.raises(DataError, match=r"patches of 5"):
        PatchEmbed1d(1, 5, 4)(torch.zeros(1, 1, length))


def test_an_image_of_broken_patches_is_refused() -> None:
    with pytest.raises(DataError, match=r"13 pixels"):
        PatchEmbed2d(1, 5, 4)(torch.zeros(1, 1, 10, 13))


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match="heads"):
        Block(10, 3)
    with pytest.raises(ConfigError, match="depth 0"):
        ViT(12, 0, 3)
    with pytest.raises(ConfigError, match="depth 0"):
        Predictor(12, 8, 0, 2, positions=torch.zeros(5, 8))
    with pytest.raises(ConfigError, match="width 8"):
        Predictor(12, 8, 1, 2, positions=torch.zeros(5, 6))
