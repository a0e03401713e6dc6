"""Official checkpoints come in and go out with every tensor, and nothing in them is executed."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import jepa_ecg
from jepa_core.errors import ConfigError, DataError
from jepa_ecg.checkpoints import (
    config_from_official,
    config_to_official,
    load_official_checkpoint,
    save_official_checkpoint,
)
from jepa_ecg.classifier import ECGClassifier
from jepa_ecg.model import ECGJEPA, ECGEncoder
from jepa_ecg.presets import NANO, PRETRAIN, PretrainConfig

SMALL = replace(
    NANO, model=replace(NANO.model, compat="official", target_norm=False), accumulation=2
)


def same(left: torch.nn.Module, right: torch.nn.Module) -> None:
    for (name, a), (other, b) in zip(
        left.state_dict().items(), right.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(a, b), name


@pytest.mark.parametrize("name", list(PRETRAIN))
def test_a_recipe_survives_the_official_form(name: str) -> None:
    recipe = replace(PRETRAIN[name], databases={"ptb-xl": 1.0})
    official = replace(recipe, model=replace(recipe.model, compat="official", target_norm=False))
    assert config_from_official(config_to_official(official)) == official


def test_a_training_state_comes_back_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    jepa = ECGJEPA(SMALL)
    save_official_checkpoint(tmp_path / "chkpt_7.pt", jepa, step=7)
    found = load_official_checkpoint(tmp_path / "chkpt_7.pt")
    assert found.jepa is not None
    assert found.step == 7
    assert int(found.jepa.forwards) == 14  # the momentum's place: two parts a step
    for part in ("encoder", "predictor", "target_encoder"):
        same(getattr(found.jepa, part), getattr(jepa, part))
    same(found.encoder, jepa.target_encoder)


def test_the_export_has_the_official_keys_and_no_other(tmp_path: Path) -> None:
    recipe = PRETRAIN["vit-xs"]
    shallow = replace(
        recipe, model=replace(recipe.model, depth=1, predictor_depth=1, compat="official")
    )
    save_official_checkpoint(tmp_path / "x.pt", ECGJEPA(shallow), step=0)
    state = torch.load(tmp_path / "x.pt", weights_only=True)["model"]
    block = ("norm1.weight", "attn.qkv.weight", "attn.proj.weight", "norm2.weight")
    block += ("mlp.fc1.weight", "mlp.fc2.weight")
    encoder = ("registers", "patch_embed.proj.weight", "norm.weight")
    encoder += tuple(f"blocks.0.{name}" for name in block)
    predictor = ("mask_token", "embed.weight", "norm.weight", "proj.weight")
    predictor += tuple(f"blocks.0.{name}" for name in block)
    assert set(state) == {
        *(f"encoder.{name}" for name in encoder),
        *(f"target_encoder.{name}" for name in encoder),
        *(f"predictor.{name}" for name in predictor),
    }


def test_a_stripped_file_gives_the_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    jepa = ECGJEPA(SMALL)
    state = {f"target_encoder.{k}": v for k, v in jepa.target_encoder.state_dict().items()}
    torch.save({"model": state, "config": config_to_official(SMALL)}, tmp_path / "stripped.pt")
    same(load_official_checkpoint(tmp_path / "stripped.pt").encoder, jepa.target_encoder)
    tokens = jepa_ecg.load(tmp_path / "stripped.pt")(torch.zeros(1, 12, 500))
    assert tokens.shape == (1, 20, 64)


def test_a_fine_tuned_file_gives_classifier_and_statistics(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = ECGClassifier(ECGEncoder(SMALL.model), 5)
    state = {
        k.replace("attn_pool.q.", "attn_pool.cross_attention_block.q.")
        .replace("attn_pool.kv.", "attn_pool.cross_attention_block.kv.")
        .replace("attn_pool.proj.", "attn_pool.cross_attention_block.proj."): v
        for k, v in classifier.state_dict().items()
    }
    content = {
        "model": state,
        "config": config_to_official(SMALL),
        "eval_config": {"use_register": True, "attn_pooling": True},
        "preprocess": {"mean": torch.arange(12.0), "std": torch.ones(12)},
        "task": "superdiagnostic",
    }
    torch.save(content, tmp_path / "tuned.pt")
    found = load_official_checkpoint(tmp_path / "tuned.pt")
    assert found.classifier is not None
    same(found.classifier, classifier)
    assert found.task == "superdiagnostic"
    assert found.mean is not None
    assert found.mean[3] == 3


def test_missing_and_unexpected_tensors_are_named(tmp_path: Path) -> None:
    jepa = ECGJEPA(SMALL)
    state = {k: v for k, v in jepa.state_dict().items() if k != "forwards"}
    state["encoder.extra"] = state.pop("encoder.norm.weight")
    torch.save({"model": state, "config": config_to_official(SMALL)}, tmp_path / "x.pt")
    with pytest.raises(DataError, match=r"encoder\.norm\.weight") as caught:
        load_official_checkpoint(tmp_path / "x.pt")
    assert "encoder.extra" in str(caught.value)
    assert "x.pt" in str(caught.value)


def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "pwned",))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"model": Evil()}))
    with pytest.raises(DataError):
        load_official_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "pwned").exists()


def test_a_bad_setting_names_file_and_key(tmp_path: Path) -> None:
    settings = config_to_official(SMALL) | {"depth": 0}
    torch.save({"model": {}, "config": settings}, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match=r"x\.pt.*depth"):
        load_official_checkpoint(tmp_path / "x.pt")


def test_the_default_recipe_is_one_of_ours() -> None:
    assert PretrainConfig() == PRETRAIN["vit-s"]
