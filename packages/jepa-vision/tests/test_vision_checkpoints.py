"""Official and transformers' weights come in and go out with every bit, and nothing is executed."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from jepa_core.errors import ConfigError, DataError, RunError
from jepa_core.layers.positions import sincos_2d
from jepa_vision.checkpoints import (
    from_transformers,
    load_official,
    save_official,
    save_transformers,
    to_transformers,
)
from jepa_vision.head import AggregationHead
from jepa_vision.model import ImageEncoder, ImageJEPA
from jepa_vision.presets import NANO, SIZES, ModelConfig, PretrainConfig
from jepa_vision.weights import shapes

SMALL = replace(
    NANO,
    model=ModelConfig(
        image=(32, 32),
        patch=8,
        dim=32,
        depth=2,
        heads=4,
        predictor_dim=24,
        predictor_depth=2,
        residual_scale="none",
    ),
    masks=replace(NANO.masks, min_keep=0),
)


def perturbed(config: PretrainConfig = SMALL, seed: int = 0) -> ImageJEPA:
    """A module with no two parts alike and nothing at zero."""
    torch.manual_seed(seed)
    jepa = ImageJEPA(config, 1)
    for tensor in jepa.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.1 * torch.randn_like(tensor))
    return jepa.eval()


def same(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    one, two = left.state_dict(), right.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def rewritten(path: Path, change) -> None:
    """The file with its content changed in place."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


@pytest.mark.parametrize("method", ["i-jepa", "dmt-jepa"])
def test_every_part_comes_back_with_the_same_bits(tmp_path, method):
    jepa = perturbed(replace(SMALL, method=method))
    save_official(tmp_path / "x.pth.tar", jepa, epoch=7)
    found = load_official(tmp_path / "x.pth.tar", heads=4)
    assert found.epoch == 7
    assert found.model == SMALL.model
    for part in ("encoder", "predictor", "target_encoder", "head", "target_head"):
        ours, theirs = getattr(jepa, part), getattr(found, part)
        assert (ours is None) == (theirs is None) == (method == "i-jepa" and "head" in part)
        assert ours is None or same(ours, theirs)
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(found.target_encoder(image), jepa.target_encoder(image))
    context, target = torch.arange(4).expand(1, 2, 4), torch.arange(5, 9).expand(1, 2, 4)
    z = torch.rand(2, 4, 32)
    predicted = found.predictor(z, context, target)
    assert torch.equal(predicted, jepa.predictor(z, context, target))


def test_the_file_has_the_official_names_and_no_other(tmp_path):
    shallow = replace(SMALL.model, depth=1, predictor_depth=1)
    save_official(tmp_path / "x.pth.tar", perturbed(replace(SMALL, model=shallow)))
    content = torch.load(tmp_path / "x.pth.tar", weights_only=True)
    ends = ("weight", "bias")
    block = [
        f"blocks.0.{part}.{end}"
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for end in ends
    ]
    encoder = {
        "pos_embed",
        *block,
        *(f"{p}.{e}" for p in ("patch_embed.proj", "norm") for e in ends),
    }
    predictor = {"mask_token", "predictor_pos_embed", *(f"predictor_{name}" for name in block)}
    predictor |= {f"predictor_{p}.{e}" for p in ("embed", "norm", "proj") for e in ends}
    attention = ("attn.q", "attn.k", "attn.v", "attn.proj")
    head = {f"norm.{e}" for e in ends} | {
        f"cls_blocks.{i}.{part}.{end}"
        for i in (0, 1)
        for part in ("norm1", *attention, "norm2", "mlp.fc1", "mlp.fc2")
        for end in ends
    }
    wanted = {"encoder": encoder, "target_encoder": encoder, "predictor": predictor}
    wanted |= {"head": head, "target_head": head}
    for part, names in wanted.items():
        assert set(content[part]) == {f"module.{name}" for name in names}, part
    assert content["encoder"]["module.pos_embed"].shape == (1, 16, 32)
    assert set(content) - set(wanted) == {"epoch", "batch_size", "world_size"}


def test_a_file_of_the_official_program_gives_the_golden_outputs(data, tmp_path):
    import numpy as np

    golden = np.load(data("vision") / "golden" / "golden_model_tiny.npz")
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name in golden.files:
        if name.startswith("w/"):
            _, part, key = name.split("/", 2)
            parts.setdefault(part, {})[f"module.{key}"] = torch.from_numpy(golden[name])
    torch.save(parts | {"epoch": 3, "opt": {}, "scaler": None}, tmp_path / "tiny.pth.tar")
    found = load_official(tmp_path / "tiny.pth.tar", heads=4)
    assert found.head is not None
    x = torch.from_numpy(golden["x"])
    tokens = found.encoder(x).detach().numpy()
    np.testing.assert_allclose(tokens, golden["encoder_full"], atol=2e-5)
    average = found.target_encoder(x).detach().numpy()
    np.testing.assert_allclose(average, golden["target_raw"], atol=2e-5)
    context = torch.from_numpy(golden["masks_enc"]).reshape(1, len(x), -1)
    z = found.encoder(x, context[0])
    np.testing.assert_allclose(found.head(z).detach().numpy(), golden["dmt_ctx"], atol=2e-5)


def test_heads_come_from_the_published_sizes_or_must_be_told(tmp_path):
    tiny = ModelConfig(image=(64, 64), dim=192, heads=3, depth=1, predictor_depth=1)
    recipe = replace(SMALL, model=tiny)
    save_official(tmp_path / "tiny.pth.tar", ImageJEPA(recipe, 1))
    assert load_official(tmp_path / "tiny.pth.tar").model.heads == 3
    save_official(tmp_path / "x.pth.tar", perturbed())
    with pytest.raises(ConfigError, match=r"width 32 is of no published size.*number of heads"):
        load_official(tmp_path / "x.pth.tar")


@pytest.mark.parametrize("name", list(SIZES))
def test_the_shapes_of_every_published_size_are_found_in_its_weights(name):
    model = replace(SIZES[name], residual_scale="none")
    with torch.device("meta"):
        encoder = ImageEncoder(model).state_dict()
        table = torch.empty(1, model.grid[0] * model.grid[1], model.dim)
        blocks = [f"predictor_blocks.{i}.norm1.weight" for i in range(model.predictor_depth)]
        predictor = dict.fromkeys(blocks, table)
        predictor["predictor_embed.weight"] = torch.empty(model.predictor_dim, model.dim)
    found = shapes(encoder | {"pos_embed": table}, predictor)
    assert replace(found, mlp_ratio=model.mlp_ratio) == model
    assert int(model.dim * found.mlp_ratio) == int(model.dim * model.mlp_ratio)


def test_a_file_without_predictor_or_average_gives_the_encoder(tmp_path):
    jepa = perturbed()
    save_official(tmp_path / "x.pth.tar", jepa)

    def strip(content):
        for part in ("target_encoder", "predictor", "head", "target_head"):
            del content[part]

    rewritten(tmp_path / "x.pth.tar", strip)
    found = load_official(tmp_path / "x.pth.tar", heads=4)
    assert found.predictor is None
    assert found.head is None
    assert same(found.target_encoder, jepa.encoder)


def test_heads_under_any_name_are_found(tmp_path):
    jepa = perturbed()
    save_official(tmp_path / "x.pth.tar", jepa)

    def rename(content):
        content["local_agg_head"] = content.pop("head")
        content["target_local_agg_head"] = content.pop("target_head")

    rewritten(tmp_path / "x.pth.tar", rename)
    found = load_official(tmp_path / "x.pth.tar", heads=4)
    assert same(found.head, jepa.head)
    assert same(found.target_head, jepa.target_head)


def test_missing_and_unexpected_tensors_are_listed(tmp_path):
    save_official(tmp_path / "x.pth.tar", perturbed())

    def spoil(content):
        part = content["target_encoder"]
        part["module.extra.weight"] = part.pop("module.norm.weight")
        part["module.norm.bias"] = torch.zeros(5)

    rewritten(tmp_path / "x.pth.tar", spoil)
    with pytest.raises(DataError) as caught:
        load_official(tmp_path / "x.pth.tar", heads=4)
    said = str(caught.value)
    assert "x.pth.tar" in said
    assert "missing: norm.weight" in said
    assert "unexpected: extra.weight" in said
    assert "norm.bias (5,), not (32,)" in said


def test_a_checkpoint_stays_until_its_successor_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "new" / "x.pth.tar"
    save_official(path, perturbed())
    before = path.read_bytes()

    def full(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match="cannot be written"):
        save_official(path, perturbed(seed=1))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["x.pth.tar"]


@pytest.mark.parametrize(
    ("part", "name"), [("encoder", "pos_embed"), ("predictor", "predictor_pos_embed")]
)
def test_another_position_table_is_refused_and_a_drifted_one_is_not(tmp_path, part, name):
    path = tmp_path / "x.pth.tar"
    save_official(path, perturbed())
    rewritten(path, lambda content: content[part][f"module.{name}"].mul_(1 - 1e-4))
    load_official(path, heads=4)

    def swap(content):
        table = content[part][f"module.{name}"]
        content[part][f"module.{name}"] = table.unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)

    rewritten(path, swap)
    with pytest.raises(DataError, match=rf"{name} is another table than sines and cosines"):
        load_official(path, heads=4)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_file_is_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "pwned",))

    (tmp_path / "evil.pth.tar").write_bytes(pickle.dumps({"encoder": Evil()}))
    with pytest.raises(DataError):
        load_official(tmp_path / "evil.pth.tar")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("content", [{}, {"encoder": {}}, {"encoder": 3}, [1, 2]])
def test_another_file_is_no_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / "x.pth.tar")
    with pytest.raises(DataError, match=r"x\.pth\.tar: is no official I-JEPA checkpoint"):
        load_official(tmp_path / "x.pth.tar")


def test_what_the_official_programs_cannot_hold_is_not_written(tmp_path):
    wide = replace(SMALL, model=replace(SMALL.model, image=(32, 64)))
    with pytest.raises(ConfigError, match="squares only"):
        save_official(tmp_path / "x.pth.tar", ImageJEPA(wide, 1))
    paper = replace(SMALL, dmt=replace(SMALL.dmt, aggregator="paper"))
    with pytest.raises(ConfigError, match="no official form"):
        save_official(tmp_path / "x.pth.tar", ImageJEPA(paper, 1))
    assert not list(tmp_path.iterdir())


# ---- transformers


def theirs(encoder: ImageEncoder):
    """transformers' model with our weights, every key matched."""
    from transformers import IJepaConfig, IJepaModel

    config, state = to_transformers(encoder)
    model = IJepaModel(IJepaConfig(**config))
    model.load_state_dict(state, strict=True)
    return model.eval()


@pytest.mark.parametrize("image", [(32, 32), (32, 64)], ids=["square", "rectangle"])
def test_transformers_computes_what_our_encoder_computes(image):
    model = replace(SMALL.model, image=image)
    encoder = perturbed(replace(SMALL, model=model)).encoder
    x = torch.rand(3, 3, *image)
    with torch.no_grad():
        out = theirs(encoder)(x).last_hidden_state
        assert (out - encoder(x)).abs().max() < 1e-5


@pytest.mark.parametrize("image", [(32, 32), (64, 32)], ids=["square", "rectangle"])
def test_our_encoder_computes_what_random_weights_of_transformers_compute(image, tmp_path):
    from transformers import IJepaConfig, IJepaModel

    torch.manual_seed(1)
    config = IJepaConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=48,
        layer_norm_eps=1e-6,
        image_size=list(image),
        patch_size=8,
        num_channels=5,
    )
    model = IJepaModel(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    table = sincos_2d(image[0] // 8, image[1] // 8, 32)[None]
    model.embeddings.position_embeddings.data.copy_(table)
    model.save_pretrained(tmp_path / "theirs")
    x = torch.rand(2, 5, *image)
    with torch.no_grad():
        out = model(x).last_hidden_state
        for source in (tmp_path / "theirs", model.state_dict()):
            told = {} if isinstance(source, Path) else {"heads": 2, "image": image}
            encoder = from_transformers(source, **told)
            assert (encoder(x) - out).abs().max() < 1e-5
            assert encoder.config.image == image


def test_a_written_folder_is_one_of_transformers(tmp_path):
    from transformers import AutoImageProcessor, IJepaModel

    encoder = perturbed().encoder
    folder = save_transformers(tmp_path / "out", encoder, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    model, report = IJepaModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.layer_norm_eps == 1e-6
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert (model.eval()(x).last_hidden_state - encoder(x)).abs().max() < 1e-5
    processor = AutoImageProcessor.from_pretrained(folder)
    assert list(processor.image_mean) == [0.5, 0.4, 0.3]
    assert (processor.size["height"], processor.size["width"]) == (32, 32)
    back = from_transformers(folder)
    assert same(back, encoder)


OLD = {
    "layers.": "encoder.layer.",
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


@pytest.mark.parametrize("prefix", ["", "ijepa."])
@pytest.mark.parametrize("old", [False, True], ids=["new names", "old names"])
def test_both_generations_of_names_and_a_classifiers_prefix_are_read(tmp_path, prefix, old):
    encoder = perturbed().encoder
    _, state = to_transformers(encoder)
    if old:
        for new, other in OLD.items():
            state = {name.replace(new, other): value for name, value in state.items()}
    state = {prefix + name: value for name, value in state.items()}
    state["classifier.weight"] = torch.zeros(10, 32)
    state[f"{prefix}pooler.dense.weight"] = torch.zeros(32, 32)
    assert same(from_transformers(state, heads=4), encoder)
    save_file(state, tmp_path / "x.safetensors")
    assert same(from_transformers(tmp_path / "x.safetensors", heads=4), encoder)


def test_queries_keys_and_values_may_be_one_map():
    encoder = perturbed().encoder
    _, state = to_transformers(encoder)
    for i in range(2):
        for end in ("weight", "bias"):
            three = [state.pop(f"layers.{i}.attention.{x}_proj.{end}") for x in "qkv"]
            state[f"layers.{i}.attention.qkv.{end}"] = torch.cat(three)
    assert same(from_transformers(state, heads=4), encoder)


def test_a_sharded_folder_is_read_whole(tmp_path):
    encoder = perturbed().encoder
    config, state = to_transformers(encoder)
    names = sorted(state)
    for shard, part in enumerate((names[:9], names[9:]), 1):
        save_file({n: state[n] for n in part}, tmp_path / f"model-{shard:05d}-of-00002.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert same(from_transformers(tmp_path), encoder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("layers.1.attention.k_proj.bias"), r"missing: blocks\.1\.attn\.k\.bias"),
        (lambda s: s.update({"layers.0.lambda": torch.zeros(1)}), "unexpected: blocks.0.lambda"),
        (lambda s: s["embeddings.position_embeddings"].neg_(), "pos_embed is another table"),
        (lambda s: s.pop("embeddings.patch_embeddings.projection.weight"), "missing: patch_embed"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, says):
    _, state = to_transformers(perturbed().encoder)
    change(state)
    with pytest.raises(DataError, match=says):
        from_transformers(state, heads=4)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "vit"}, "is not of an I-JEPA model"),
        ({"hidden_act": "relu"}, "hidden_act is relu"),
    ],
)
def test_a_folder_of_another_model_is_refused(tmp_path, config, says):
    ours, state = to_transformers(perturbed().encoder)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(ours | config))
    with pytest.raises(DataError, match=says):
        from_transformers(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no \.safetensors file"):
        from_transformers(tmp_path)


def test_half_precision_files_become_float32(tmp_path):
    encoder = perturbed().encoder
    _, state = to_transformers(encoder)
    half = {name: value.to(torch.bfloat16) for name, value in state.items()}
    found = from_transformers(half, heads=4)
    assert {value.dtype for value in found.state_dict().values()} == {torch.float32}


def test_an_imported_head_is_one_of_ours(tmp_path):
    save_official(tmp_path / "x.pth.tar", perturbed())
    found = load_official(tmp_path / "x.pth.tar", heads=4)
    assert isinstance(found.target_head, AggregationHead)
    assert found.recipe.method == "dmt-jepa"
    assert found.recipe.model == SMALL.model
