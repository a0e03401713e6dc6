"""The recipes, digit by digit, and the sizes of what they describe."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from jepa_core import cli
from jepa_vision.presets import PRETRAIN, SIZES, official
from jepa_vision.verbs.info import macs, mask_sizes, parameters, shapes

# Width, depth, heads, width of the MLP; parameters of the encoder at patch 16, without and with its
# position table.
ENCODERS = {
    "tiny": (192, 12, 3, 768, 5_486_400, 5_524_032),
    "small": (384, 12, 6, 1536, 21_589_632, 21_664_896),
    "base": (768, 12, 12, 3072, 85_646_592, 85_797_120),
    "large": (1024, 24, 16, 4096, 303_098_880, 303_299_584),
    "huge": (1280, 32, 16, 5120, 630_434_560, 630_762_240),
    "giant": (1408, 40, 16, 6144, 1_011_092_608, 1_011_368_576),
}
# Depth and parameters of the predictor; parameters of the head.
PREDICTORS = {
    "tiny": (6, 10_795_968),
    "small": (6, 10_943_616),
    "base": (6, 11_238_912),
    "large": (12, 22_082_560),
    "huge": (12, 22_279_424),
    "giant": (16, 29_475_712),
}
HEADS = {
    "tiny": 890_112,
    "small": 3_549_696,
    "base": 14_177_280,
    "large": 25_194_496,
    "huge": 39_357_440,
    "giant": 47_618_560,
}
# Method, size, patch, crop, epochs, warm-up, depth of the predictor.
RELEASED = {
    "ijepa-in1k-vith14-ep300": ("i-jepa", "huge", 14, 224, 300, 40, 12),
    "ijepa-in1k-vith16-448-ep300": ("i-jepa", "huge", 16, 448, 300, 40, 12),
    "ijepa-in22k-vith14-ep66": ("i-jepa", "huge", 14, 224, 66, 3, 12),
    "ijepa-in22k-vitg16-ep44": ("i-jepa", "giant", 16, 224, 44, 3, 16),
    "dmt-in1k-vitb16-ep600": ("dmt-jepa", "base", 16, 224, 600, 40, 6),
    "dmt-in1k-vitl16-ep600": ("dmt-jepa", "large", 16, 224, 600, 40, 12),
    "dmt-in1k-vith14-ep300": ("dmt-jepa", "huge", 14, 224, 300, 40, 12),
}


@pytest.mark.parametrize("name", list(SIZES))
def test_a_size_has_the_parameters_of_the_published_one(name):
    dim, depth, heads, mlp, encoder, with_table = ENCODERS[name]
    model = SIZES[name]
    assert (model.dim, model.depth, model.heads) == (dim, depth, heads)
    assert int(model.dim * model.mlp_ratio) == mlp
    assert model.patch == (14 if name == "huge" else 16)
    assert model.predictor_dim == 384
    counted = parameters(PRETRAIN[f"dmt-{name}"])
    assert counted["encoder"] == encoder
    assert counted["encoder, with its position table"] == with_table
    assert (model.predictor_depth, counted["predictor"]) == PREDICTORS[name]
    assert counted["head"] == HEADS[name]
    assert counted["trained"] == encoder + PREDICTORS[name][1] + HEADS[name]
    for part in ("encoder", "predictor"):
        of = [n for key, n in counted.items() if key.startswith(f"{part}: ")]
        assert sum(of) == counted[part]


def test_the_huge_size_at_448_pixels_has_patches_of_16():
    counted = parameters(PRETRAIN["ijepa-in1k-vith16-448-ep300"])
    assert counted["encoder"] == 630_664_960
    assert counted["encoder, with its position table"] == 631_668_480
    assert "head" not in counted


def test_a_block_of_the_predictor_has_the_published_parameters():
    counted = parameters(PRETRAIN["ijepa-base"])
    assert counted["predictor: blocks"] == 6 * 1_774_464


@pytest.mark.parametrize("name", list(RELEASED))
def test_a_released_recipe_has_every_published_number(name):
    method, size, patch, crop, epochs, warmup, depth = RELEASED[name]
    recipe = PRETRAIN[name]
    model, masks, augment = recipe.model, recipe.masks, recipe.augment
    assert recipe.method == method
    assert (model.dim, model.depth, model.heads) == ENCODERS[size][:3]
    assert (model.patch, model.image, model.predictor_depth) == (patch, (crop, crop), depth)
    assert (model.predictor_dim, model.channels) == (384, 3)
    assert (recipe.epochs, recipe.steps, recipe.warmup_epochs) == (epochs, 0, warmup)
    assert recipe.batch_size == 2048
    assert recipe.learning_rate == 1e-3
    assert (recipe.initial_learning_rate, recipe.final_learning_rate) == (2e-4, 1e-6)
    assert (recipe.weight_decay, recipe.final_weight_decay) == (0.04, 0.4)
    assert (recipe.momentum, recipe.final_momentum) == (0.996, 1.0)
    assert (recipe.betas, recipe.eps, recipe.clip_norm) == ((0.9, 0.999), 1e-8, 0.0)
    assert recipe.schedule_stretch == 1.0
    assert recipe.loss == "smooth-l1"
    assert not recipe.joint
    assert (masks.contexts, masks.targets, masks.min_keep, masks.overlap) == (1, 4, 10, False)
    assert masks.context_scale == (0.85, 1.0)
    assert (masks.target_scale, masks.target_aspect) == ((0.15, 0.2), (0.75, 1.5))
    assert augment.crop_scale == (0.3, 1.0)
    assert augment.crop_ratio == (3 / 4, 4 / 3)
    assert (augment.flip, augment.jitter, augment.blur) == (0, 0, 0)
    assert augment.mean == (0.485, 0.456, 0.406)
    assert augment.std == (0.229, 0.224, 0.225)
    if method == "dmt-jepa":
        dmt = recipe.dmt
        assert (dmt.neighbours, dmt.window, dmt.context) == (4, 3, "cross")
        assert (dmt.choice, dmt.aggregator) == ("similar", "head")


@pytest.mark.parametrize("name", list(RELEASED))
def test_an_official_recipe_repeats_the_program_with_its_mistakes(name):
    recipe = PRETRAIN[f"official-{name}"]
    assert recipe == official(PRETRAIN[name])
    assert recipe.model.residual_scale == "none"
    assert recipe.masks.compat == "official"
    dmt = recipe.dmt
    assert (dmt.border, dmt.pairing, dmt.query) == ("wrap", "official", "mean")
    assert (dmt.include_self, dmt.warmup, dmt.variance_floor) == (False, 0, 0)


def test_a_run_is_as_long_as_its_passes():
    recipe = PRETRAIN["dmt-in1k-vitb16-ep600"]
    assert recipe.length(1_281_167) == (375_000, 25_000)


# ---- shapes and work


def test_work_is_that_of_the_formulas():
    base = macs(PRETRAIN["official-dmt-in1k-vitb16-ep600"])
    assert base["target encoder"] / 1e9 == pytest.approx(17.5, abs=0.1)
    sizes = mask_sizes(PRETRAIN["official-dmt-in1k-vitb16-ep600"])
    patches, dim, width = 196, 768, 384
    union = sizes.union
    assert base["target head"] == round((4 * patches + 3 + 21 * union) * dim**2)
    # The published measurement, 87 patches in any of four targets.
    assert union == pytest.approx(87.3, rel=0.03)
    assert base["target head"] / dim**2 == pytest.approx(2614, rel=0.03)
    tokens = sizes.context + sizes.target
    block = 12 * tokens * width**2 + 2 * tokens**2 * width
    assert base["predictor"] == pytest.approx(4 * (6 * block + 2 * tokens * dim * width))
    assert base["context head"] == pytest.approx(20 * sizes.context * dim**2)


def test_masks_have_the_published_mean_sizes():
    found = mask_sizes(PRETRAIN["official-ijepa-in22k-vitg16-ep44"])  # a grid of 14 x 14
    assert found.context == pytest.approx(53.64, rel=0.05)  # batches of 64, cut to the shortest
    assert found.target == pytest.approx(33.25, rel=0.05)
    sound = mask_sizes(PRETRAIN["ijepa-base"])
    assert sound.context > found.context


def test_one_pass_for_all_blocks_is_less_work_and_one_sequence():
    apart = PRETRAIN["ijepa-small"]
    joint = replace(apart, joint=True)
    assert macs(joint)["predictor"] < macs(apart)["predictor"]
    rows, tokens, width = shapes(joint)["tokens in a predictor block"]
    assert (rows, width) == (4, 384)
    apart_rows, apart_tokens, _ = shapes(apart)["tokens in a predictor block"]
    assert apart_rows == 16
    assert tokens > apart_tokens


def test_shapes_are_those_of_a_rectangle(capsys):
    words = ["vision", "info", "--preset", "nano", "--image", "48", "80", "--json"]
    assert cli.main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["shapes"]["image"] == [4, 3, 48, 80]
    assert found["shapes"]["features of an image"] == [60, 96]
    assert found["config"]["model"]["image"] == [48, 80]
    assert found["parameters"]["encoder"] == parameters(PRETRAIN["nano"])["encoder"]


def test_tables_name_every_number_of_the_recipe(capsys):
    assert cli.main(["vision", "info"]) == 0
    said = capsys.readouterr().out
    for word in ("encoder: blocks", "model.dim", "dmt.neighbours", "masks.min_keep", "final_mom"):
        assert word in said
