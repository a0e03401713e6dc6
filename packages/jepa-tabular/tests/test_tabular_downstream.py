"""Downstream networks against the original's outputs, configurations against the published."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jepa_core.config import from_dict, to_dict
from jepa_core.errors import ConfigError
from jepa_core.hub import rename_keys
from jepa_tabular.downstream import (
    AutoIntConfig,
    DCNv2Config,
    FTTransformerConfig,
    HeadConfig,
    LinearConfig,
    MLPConfig,
    NetConfig,
    ResNetConfig,
    TrainingConfig,
)
from jepa_tabular.downstream.nets import build, squeeze
from jepa_tabular.downstream.tuned import TUNED, as_it_ran

Data = Callable[[str], Path]

FTT = FTTransformerConfig(blocks=2, dim=8, heads=2, hidden=6)
AUTOINT = AutoIntConfig(layers=2, dim=8, heads=2)
DCNV2 = DCNv2Config(width=10, cross=2, deep=2)
GOLDEN: dict[str, tuple[NetConfig, int]] = {
    "mlp": (MLPConfig(layers=3, width=12), 685),
    "resnet": (ResNetConfig(blocks=2, width=8, hidden=16, out=10), 975),
    "dcnv2_stacked": (DCNV2, 847),
    "dcnv2_parallel": (replace(DCNV2, stacked=False), 947),
    "autoint": (AUTOINT, 1437),
    "fttransformer": (FTT, 1381),
    "linear_probe": (LinearConfig(), 580),
}
# Names of the original program to ours; a map of its own for every token is one tensor here.
RENAMED = {
    r"^encoder\.0\.": "squeeze.",
    r"^encoder\.1\.(dcnv2|autoint)\.": "body.",
    r"^encoder\.1\.fftransformer\.": "body.transformer.",
    r"^body\.(first|last)_linear\.": r"body.\1.",
    r"^body\.deep_layers\.": "body.deep.",
    r"^body\.cross_layers\.(\d+)\.linear\.": r"body.cross.\1.",
    r"^body\.tokenizer\.weight": "body.tokens",
    r"^body\.head\.": "body.last.",
    r"\.attention\.W_([qkv])\.(?=weight|bias)": r".\1.",
    r"\.norm0\.": ".norm.",
}
LIBRARY = {r"^encoder\.0\.": "squeeze.", r"^encoder\.1\.": "body."}
OF_THE_MLP = {
    r"^encoder\.0\.": "squeeze.",
    r"^encoder\.(\d+)\.": lambda found: f"body.{int(found[1]) - 1}.",
}


def golden(folder: Path, prefix: str) -> tuple[dict[str, Tensor], Tensor]:
    """Weights, with those of the tokens' own maps stacked, and outputs."""
    with np.load(folder / "golden_downstream.npz") as file:
        start = f"{prefix}/w/"
        state = {
            name.removeprefix(start): torch.from_numpy(file[name])
            for name in file.files
            if name.startswith(start)
        }
        out = torch.from_numpy(file[f"{prefix}/out"])
    for kind in ("weight", "bias"):
        parts = [name for name in state if re.search(rf"feature_embs\.\d+\.{kind}$", name)]
        if parts:
            parts.sort(key=lambda name: int(name.split(".")[-2]))
            joined = parts[0].replace("feature_embs.0.", "")
            state[joined] = torch.cat([state.pop(name) for name in parts])
    return state, out


def representation(folder: Path) -> Tensor:
    with np.load(folder / "golden_downstream.npz") as file:
        return torch.from_numpy(file["repr"])


def load(module: nn.Module, state: dict[str, Tensor], table: dict) -> None:
    expected = {name: value.shape for name, value in module.state_dict().items()}
    module.load_state_dict(rename_keys(state, table, expected, ignore=[r"\.category_"]))


@pytest.mark.parametrize(
    "kind", ["linear_flatten", "linear_per_feature", "mean_pool", "max_pool", "conv"]
)
def test_a_squeeze_equals_the_original(kind, data: Data) -> None:
    module = squeeze(kind, 9, 16)
    state, out = golden(data("tabular"), f"squeeze_{kind}")
    load(module, state, {r"^encode\.": "1."})
    torch.testing.assert_close(module(representation(data("tabular"))), out, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", list(GOLDEN))
def test_a_network_equals_the_original_in_outputs_and_size(name: str, data: Data) -> None:
    config, parameters = GOLDEN[name]
    net = build(config, (9, 16), 4).eval()
    state, out = golden(data("tabular"), name)
    table = {"mlp": OF_THE_MLP, "resnet": LIBRARY}.get(name, RENAMED)
    if name == "fttransformer":
        table = {key: RENAMED[key] for key in list(RENAMED)[:3]}
    load(net, state, table)
    with torch.no_grad():
        torch.testing.assert_close(net(representation(data("tabular"))), out, atol=1e-5, rtol=1e-4)
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_the_convolving_squeeze_equals_loops_over_pixels() -> None:
    module = squeeze("conv", 14, 16).double().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-1, 1)
            part.running_var.uniform_(0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.uniform_(part.bias, -1, 1)
    z = torch.randn(2, 14, 16, dtype=torch.float64)
    for row, got in zip(z.numpy(), module(z).detach().numpy(), strict=True):
        image = row[None]
        for conv, norm in ((module[1], module[3]), (module[5], module[7])):
            image = pooled(normed(convolved(image, conv), norm))
        last = module[-1]
        expected = last.weight.detach().numpy() @ image.ravel() + last.bias.detach().numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-10)


def convolved(image: np.ndarray, conv: nn.Conv2d) -> np.ndarray:
    weight, bias = conv.weight.detach().numpy(), conv.bias.detach().numpy()
    out = np.zeros((len(weight), image.shape[1] - 2, image.shape[2] - 2))
    for c in range(out.shape[0]):
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                seen = (weight[c] * image[:, i : i + 3, j : j + 3]).sum() + bias[c]
                out[c, i, j] = max(0.0, seen)
    return out


def normed(image: np.ndarray, norm: nn.BatchNorm2d) -> np.ndarray:
    mean, var, weight, bias = (
        part.detach().numpy()[:, None, None]
        for part in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (image - mean) / np.sqrt(var + norm.eps) * weight + bias


def pooled(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[1] // 2, image.shape[2] // 2
    out = np.zeros((len(image), height, width))
    for i in range(height):
        for j in range(width):
            out[:, i, j] = image[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((1, 2))
    return out


@pytest.mark.parametrize(
    ("shape", "convolves"), [((9, 16), False), ((10, 10), True), ((10, 9), False), ((1, 1), False)]
)
def test_convolutions_give_way_where_they_leave_no_pixel(shape, convolves: bool) -> None:
    module = squeeze("conv", *shape)
    assert any(isinstance(part, nn.Conv2d) for part in module) is convolves
    assert module.eval()(torch.randn(2, *shape)).shape == (2, shape[0])


@pytest.mark.parametrize("name", list(GOLDEN))
@pytest.mark.parametrize("shape", [(12, 6), (7,)])
def test_any_number_of_tokens_and_raw_columns_fit(name: str, shape: tuple[int, ...]) -> None:
    net = build(GOLDEN[name][0], shape, 3).eval()
    assert net(torch.randn(5, *shape)).shape == (5, 3)


@pytest.mark.parametrize("name", [name for name in GOLDEN if name != "linear_probe"])
def test_raw_columns_go_where_squeezed_tokens_would(name: str) -> None:
    config = GOLDEN[name][0]
    with_tokens = build(config, (9, 16), 4).eval()
    raw = build(config, (9,), 4).eval()
    raw.load_state_dict(
        {k: v for k, v in with_tokens.state_dict().items() if not k.startswith("squeeze.")}
    )
    z = torch.randn(5, 9, 16)
    torch.testing.assert_close(raw(with_tokens.squeeze(z)), with_tokens(z))


@pytest.mark.parametrize("name", ["dcnv2_stacked", "autoint", "fttransformer"])
def test_dropout_acts_in_training_alone(name: str) -> None:
    net = build(GOLDEN[name][0], (6,), 2)
    x = torch.randn(64, 6)
    assert torch.equal(net.eval()(x), net(x))
    net.train()
    assert not torch.equal(net(x), net(x))


def test_a_seed_makes_a_network_and_the_callers_generator_does_not_move() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, same, other = (build(FTT, (9, 16), 4, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["squeeze.weight"], other["squeeze.weight"])


@pytest.mark.parametrize("shape", [(), (2, 3, 4), (0,), (5, 0)])
def test_a_row_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="a row has shape"):
        build(LinearConfig(), shape, 2)


# -- the tuned configurations ------------------------------------------------------------------

PUBLISHED = """
mlp|lpf 13x162 .2311 1.347e-4 6.426e-4|lf 4x512 .5177 8.438e-2 7.972e-4|lpf 13x498 .4923 7.307e-4 2.094e-6|lf 4x313 .2331 4.871e-4 1.381e-4|lf 3x246 .0310 1.191e-5 1.963e-5|lpf 9x320 .4203 1.835e-5 7.477e-4
resnet|lpf 5x440 x4 .0417/.1367 8.903e-4 7.961e-5|lf 10x256 128 .2687/.1091 2.334e-4 5.392e-4|lpf 7x355 x1 .1367/.0049 4.603e-5 2.963e-6|lf 8x476 x4 .0437/.0486 1.322e-5 1.322e-6|lf 4x465 x3 .3134/.0018 5.257e-5 1.028e-5|lpf 2x506 x1 .2341/.0307 2.245e-5 2.948e-6
dcnv2|lpf 524 9/3 .1476/.0431 1.937e-5 1.404e-6|lf 768 3/3 .0808/.2926 8.811e-5 9.33e-4|lpf 704 1/1 .2578/.1111 4.914e-5 1.112e-5|lf 386 7/2 .0702/.0862 8.791e-5 1.209e-7|lf 488 1/5 .0346/.0880 5.532e-4 3.637e-4|lpf 428 1/3 .1393/.2976 4.688e-5 1.211e-4
autoint|lpf 1x200 .0910/.0603 1.717e-3 1.782e-7|mp 6x128 .0629/.0553 5.193e-5 7.59e-4|lpf 6x244 .0011/.1089 9.681e-4 6.086e-5|mp 3x228 .0702/.0115 2.28e-3 4.667e-4|lf 8x238 .0901/.0710 2.141e-4 1.892e-6|lpf 7x56 .0729/.0431 6.508e-4 5.395e-5
fttransformer|lf 8x128 16 32 .3426/.1027/.0847 1.348e-4 3.589e-5|lpf 2x32 16 128 .0184/.1682/.1168 4.259e-3 4.819e-4|lf 2x64 16 256 .0934/.0614/.0971 1.326e-4 1.113e-5|lf 10x256 8 64 .3246/.3277/.1151 8.269e-4 1.059e-7|lf 16x128 8 512 .0745/.1749/.0474 1.172e-3 1.403e-5|lf 12x128 4 64 .3334/.4813/.1465 2.251e-4 6.937e-5
"""  # noqa: E501
TABLES = ("adult", "helena", "jannis", "aloi", "california", "higgs")
SHORT = {"lpf": "linear_per_feature", "lf": "linear_flatten", "mp": "mean_pool"}
ALL = [(table, name) for table in TABLES for name in TUNED[table]]


def in_short(config: HeadConfig) -> list[str | float]:
    """The fields in the order in which the table was published."""
    net, training = config.net, config.training
    end = [training.learning_rate, training.weight_decay]
    if isinstance(net, MLPConfig):
        return [net.squeeze, net.layers, net.width, net.dropout, *end]
    if isinstance(net, ResNetConfig):
        dropouts = (net.hidden_dropout, net.residual_dropout)
        return [net.squeeze, net.blocks, net.width, net.hidden, *dropouts, *end]
    if isinstance(net, DCNv2Config):
        dropouts = (net.cross_dropout, net.hidden_dropout)
        return [net.squeeze, net.width, net.cross, net.deep, *dropouts, *end]
    if isinstance(net, AutoIntConfig):
        assert net.heads == 2
        dropouts = (net.attention_dropout, net.residual_dropout)
        return [net.squeeze, net.layers, net.dim, *dropouts, *end]
    assert isinstance(net, FTTransformerConfig)
    drops = (net.attention_dropout, net.hidden_dropout, net.residual_dropout)
    return [net.squeeze, net.blocks, net.dim, net.heads, net.hidden, *drops, *end]


def test_the_tuned_configurations_are_the_published_ones() -> None:
    seen = 0
    for line in PUBLISHED.strip().splitlines():
        name, *cells = line.split("|")
        for table, cell in zip(TABLES, cells, strict=True):
            short, *numbers = re.split(r" x|[ x/]", cell)
            expected = [SHORT[short], *map(float, numbers)]
            if name == "resnet" and " x" in cell:
                expected[3] *= expected[2]
            assert in_short(TUNED[table][name]) == expected, (table, name)
            seen += 1
    assert seen == len(ALL) == 30
    parallel = [pair for pair in ALL if not getattr(TUNED[pair[0]][pair[1]].net, "stacked", True)]
    assert parallel == [("adult", "dcnv2"), ("higgs", "dcnv2")]


@pytest.mark.parametrize(("table", "name"), ALL)
def test_every_tuned_configuration_builds_and_survives_json(table: str, name: str) -> None:
    config = TUNED[table][name]
    assert config.net.kind == name
    assert from_dict(HeadConfig, to_dict(config)) == config
    with torch.device("meta"):
        net = build(config.net, (9, 16), 4).eval()
        assert net(torch.empty(3, 9, 16)).shape == (3, 4)


def test_what_ran_keeps_last_weights_and_the_slips_of_the_program() -> None:
    ran = {pair: as_it_ran(TUNED[pair[0]][pair[1]]) for pair in ALL}
    assert all(config.training.compat == "official" for config in ran.values())
    assert {name: ran["jannis", name].training.half_cosine for name in TUNED["jannis"]} == {
        "mlp": 0,
        "resnet": 10,
        "dcnv2": 0,
        "autoint": 0,
        "fttransformer": 0,
    }
    assert all(getattr(config.net, "stacked", True) for config in ran.values())


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: AutoIntConfig(dim=7, heads=2), "dim is 7"),
        (lambda: FTTransformerConfig(dim=8, heads=3), "dim is 8"),
        (lambda: TrainingConfig(half_cosine=10), "half_cosine is 10"),
        (lambda: MLPConfig(dropout=1.0), "dropout is 1.0"),
        (lambda: TrainingConfig(batch=1), "batch is 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(make: Callable[[], object], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        make()
