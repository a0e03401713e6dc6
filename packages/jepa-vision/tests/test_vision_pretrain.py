"""Batches are pure functions of the draw; a recipe trains, says what it does, and refuses early."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from jepa_core.domain import Machine
from jepa_core.errors import ConfigError, DataError
from jepa_core.training.sampler import Draw, Epochs
from jepa_vision.data.images import ArrayImages
from jepa_vision.model import ImageJEPA
from jepa_vision.presets import (
    NANO,
    PRETRAIN,
    DMTConfig,
    MaskConfig,
    ModelConfig,
    PretrainConfig,
    official,
)
from jepa_vision.pretrain import groups, pretrain, untrained
from jepa_vision.source import ImageSource

TINY = replace(
    NANO,
    model=ModelConfig(
        image=(48, 48), patch=8, dim=16, depth=1, heads=2, predictor_dim=16, predictor_depth=1
    ),
    masks=MaskConfig(min_keep=3),
    batch_size=8,
    steps=6,
    checkpoint_every=6,
)


@pytest.fixture(scope="module")
def images() -> ArrayImages:
    return ArrayImages(np.random.default_rng(0).integers(0, 256, (20, 56, 60, 3), dtype=np.uint8))


def draw(rows: list[int], step: int = 3) -> Draw:
    ids = np.array(rows)
    return Draw(step, ids, ids, ids // 7)


def test_an_images_crop_and_masks_do_not_depend_on_its_neighbours(images: ArrayImages) -> None:
    source = ImageSource(images, TINY, seed=5)
    together, alone = source.batch(draw([4, 9, 17])), source.batch(draw([9]))
    assert torch.equal(together["image"][1], alone["image"][0])
    assert torch.equal(together["target"][:, 1], alone["target"][:, 0])
    length = alone["context"].shape[2]
    assert together["context_lengths"][0, 1] == length
    assert torch.equal(together["context"][0, 1, :length], alone["context"][0, 0])


def test_seed_and_visit_change_crops_and_masks(images: ArrayImages) -> None:
    source = ImageSource(images, TINY, seed=5)
    first = source.batch(draw([9]))
    for other in (
        ImageSource(images, TINY, seed=6).batch(draw([9])),
        source.batch(Draw(3, np.array([9]), np.array([9]), np.array([2]))),
    ):
        assert not torch.equal(first["image"], other["image"])
    again = source.batch(draw([9]))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("config", [TINY, official(TINY)], ids=["sound", "official"])
def test_the_union_holds_every_target_once_and_says_where(
    images: ArrayImages, config: PretrainConfig
) -> None:
    batch = ImageSource(images, config, seed=1).batch(draw(list(range(12))))
    for b in range(12):
        wanted = sorted(set(batch["target"][:, b].flatten().tolist()))
        union = batch["union"][b].tolist()
        assert union[: len(wanted)] == wanted
        assert set(union[len(wanted) :]) <= {0}
        for t, place in enumerate(batch["place"][:, b]):
            assert torch.equal(batch["union"][b][place], batch["target"][t, b])


def test_official_masks_are_one_stream_that_depends_on_the_step(images: ArrayImages) -> None:
    source = ImageSource(images, official(TINY), seed=1)
    one, again = source.batch(draw([1, 2, 3])), source.batch(draw([1, 2, 3]))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert "context_lengths" not in one
    other = source.batch(draw([1, 2, 3], step=4))
    assert not torch.equal(one["target"], other["target"])


def test_random_neighbours_come_with_the_batch(images: ArrayImages) -> None:
    config = replace(TINY, dmt=DMTConfig(choice="random"))
    batch = ImageSource(images, config, seed=1).batch(draw([1, 2]))
    assert batch["noise"].shape == (2, 36, 8)
    assert 0 <= float(batch["noise"].min()) < 0.05 < 0.95 < float(batch["noise"].max()) < 1


def test_images_of_other_channels_are_refused(images: ArrayImages) -> None:
    grey = ArrayImages(np.zeros((3, 56, 60, 1), np.uint8))
    with pytest.raises(DataError, match="1 channels"):
        ImageSource(grey, TINY, seed=0)
    with pytest.raises(DataError, match="no image"):
        ImageSource(ArrayImages(np.zeros((0, 56, 60, 3), np.uint8)), TINY, seed=0)


@pytest.mark.parametrize(
    "config",
    [
        replace(TINY, method="i-jepa"),
        TINY,
        replace(TINY, joint=True, loss="l2"),
        replace(TINY, masks=replace(TINY.masks, contexts=2)),
        replace(TINY, dmt=DMTConfig(warmup=0.5, variance_floor=1.0, include_self=True)),
        replace(TINY, dmt=DMTConfig(choice="random", aggregator="max")),
        replace(TINY, dmt=DMTConfig(aggregator="paper", context="self")),
        official(TINY),
    ],
    ids=["i-jepa", "dmt", "joint", "contexts", "extended", "pooled", "paper", "official"],
)
def test_every_form_of_the_recipe_trains_and_moves_what_it_should(
    images: ArrayImages, config: PretrainConfig
) -> None:
    machine = Machine(seed=3, device="cpu", threads=1)
    found = pretrain(images, config, machine=machine, health_every=3)
    before = untrained(config, 3, 6)
    module = found.module
    assert isinstance(module, ImageJEPA)
    assert found.result.step == 6
    for part in ("encoder", "predictor", "target_encoder", "head", "target_head"):
        after = getattr(module, part)
        if after is None:
            continue
        old = getattr(before, part)
        pairs = zip(after.parameters(), old.parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs), part
    looks = [line for line in found.result.history if "health/share_sample" in line]
    assert [line["step"] for line in looks] == [0, 3, 6]
    assert all(np.isfinite(line["health/unexplained"]) for line in looks)
    assert (found.head is None) == (module.target_head is None)


def test_two_runs_end_with_the_same_bits(images: ArrayImages) -> None:
    machine = Machine(seed=3, device="cpu", threads=1)
    one, two = (pretrain(images, TINY, machine=machine).module.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_arms_of_one_seed_start_from_the_same_encoder() -> None:
    one, two = (untrained(replace(TINY, method=method), 7) for method in ("i-jepa", "dmt-jepa"))  # type: ignore[arg-type]
    for a, b in zip(one.encoder.parameters(), two.encoder.parameters(), strict=True):
        assert torch.equal(a, b)


def test_decay_leaves_out_biases_and_norms_and_takes_the_mask_token() -> None:
    parts = {part["name"]: part for part in groups(untrained(TINY, 0))}
    assert "predictor.mask_token" in parts["decay"]["names"]
    assert all("bias" in n or "norm" in n for n in parts["no_decay"]["names"])
    assert parts["no_decay"]["weight_decay"] == 0


def test_fewer_images_than_a_batch_are_refused_before_training(images: ArrayImages) -> None:
    with pytest.raises(ConfigError, match="there are 20 images"):
        pretrain(images, replace(TINY, batch_size=32))
    assert replace(TINY, steps=0, epochs=3.0, warmup_epochs=1.5).length(20) == (6, 3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": {"image": (50, 48)}}, "multiples of patch"),
        ({"model": {"dim": 18, "heads": 2}}, "multiple of 4"),
        ({"model": {"dim": 16, "heads": 3}}, "multiple of heads"),
        ({"model": {"predictor_dim": 20, "heads": 8}}, "multiple of heads"),
        ({"masks": {"min_keep": 10}}, "min_keep"),
        ({"dmt": {"window": 4}}, "odd"),
        ({"dmt": {"neighbours": 9}}, "up to 8"),
        ({"dmt": {"pairing": "official"}}, "pairing"),
        ({"warmup_epochs": 1000.0}, "up to epochs"),
        ({"batch_size": 9, "accumulation": 2}, "divisor"),
        ({"model": {"channels": 4}}, "for each of 4 channels"),
    ],
)
def test_impossible_recipes_say_what_is_allowed(change: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        replace(
            TINY,
            **{
                name: replace(getattr(TINY, name), **value) if isinstance(value, dict) else value
                for name, value in change.items()
            },  # type: ignore[arg-type]
        )


def test_a_crop_of_two_patches_a_side_is_refused_not_redrawn_for_ever() -> None:
    with pytest.raises(ConfigError, match="2 x 2 patches"):
        PretrainConfig(model=ModelConfig(image=(32, 32), patch=16))


def test_every_preset_is_legal_and_official_ones_repeat_the_programs() -> None:
    for name, recipe in PRETRAIN.items():
        assert recipe.length(1_281_167)[0] > 0
        assert (recipe.masks.compat == "official") == name.startswith("official-")
    assert PRETRAIN["dmt-in1k-vitb16-ep600"].length(1_281_167) == (600 * 625, 25_000)
    assert PRETRAIN["ijepa-in1k-vith14-ep300"].length(1_281_167) == (300 * 625, 25_000)
    one = Epochs(1_281_167, 2048, 0, drop_last=True)
    assert len(one.draw(0).ids) == 2048
