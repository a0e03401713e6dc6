"""Signs of collapse: each quantity where it is known by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jepa_core.errors import DataError
from jepa_vision.collapse import collapse_report, collapse_table, target_shares


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_features_of_the_image_alone_have_no_share_between_patches():
    tokens = np.repeat(noise(30, 1, 8), 9, axis=1)
    found = collapse_report(tokens)
    assert found["between_patches"] == pytest.approx(0, abs=1e-12)
    assert found["between_images"] == pytest.approx(1)
    assert found["patch_cosine"] == pytest.approx(1)
    assert found["position_share"] == pytest.approx(0, abs=1e-12)
    assert found["std_images"] == pytest.approx(found["std_tokens"])


def test_features_of_the_position_alone_are_told_by_it():
    found = collapse_report(np.repeat(noise(1, 9, 8), 30, axis=0))
    assert found["position_share"] == pytest.approx(1)
    assert found["between_patches"] == pytest.approx(1)
    assert found["std_images"] == pytest.approx(0, abs=1e-12)


def test_independent_features_are_local_and_of_full_rank():
    found = collapse_report(noise(200, 16, 8))
    assert found["between_patches"] > 0.9
    assert found["effective_rank"] == pytest.approx(8, abs=0.05)
    assert found["patch_cosine"] == pytest.approx(0, abs=0.02)
    assert found["total_variance"] == pytest.approx(1, abs=0.05)
    assert found["dead_features"] == 0


def test_the_quantities_equal_their_definitions():
    tokens = noise(6, 5, 4) @ noise(4, 4, seed=1) + noise(4, seed=2)
    tokens += noise(6, 1, 4, seed=3) + noise(1, 5, 4, seed=4)
    found = collapse_report(tokens)
    flat = tokens.reshape(-1, 4)
    np.testing.assert_allclose(found["feature_std"], flat.std(0))
    np.testing.assert_allclose(found["image_std"], tokens.mean(1).std(0))
    assert found["total_variance"] == pytest.approx(flat.var(0).mean())
    within = np.mean([image.var(0).mean() for image in tokens])
    assert found["between_patches"] == pytest.approx(within / flat.var(0).mean())
    # R2 of a regression on one column a position.
    design = np.tile(np.eye(5), (6, 1))
    fit = design @ np.linalg.lstsq(design, flat, rcond=None)[0]
    residual = ((flat - fit) ** 2).sum() / ((flat - flat.mean(0)) ** 2).sum()
    assert found["position_share"] == pytest.approx(1 - residual)
    cosines = []
    for image in tokens:
        for a in range(5):
            for b in range(5):
                if a != b:
                    norms = np.linalg.norm(image[a]) * np.linalg.norm(image[b])
                    cosines.append(image[a] @ image[b] / norms)
    assert found["patch_cosine"] == pytest.approx(np.mean(cosines))
    sigma = np.linalg.svd(flat - flat.mean(0), compute_uv=False)
    p = sigma / sigma.sum()
    assert found["effective_rank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))


def test_dead_features_are_counted_and_a_constant_has_rank_1():
    tokens = noise(10, 4, 8)
    tokens[..., 5:] = 3.0
    assert collapse_report(tokens)["dead_features"] == 3 / 8
    found = collapse_report(np.ones((3, 4, 8)))
    assert (found["effective_rank"], found["total_variance"]) == (1.0, 0.0)
    assert found["between_patches"] == 0.0


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (np.ones((4, 8)), r"tokens are \(4, 8\); give \[images"),
        (np.ones((1, 4, 8)), "two images"),
        (np.full((2, 4, 8), np.nan), "not all finite"),
    ],
    ids=["flat", "one image", "nan"],
)
def test_tokens_that_say_nothing_are_an_error(tokens, says):
    with pytest.raises(DataError, match=says):
        collapse_report(tokens)


def test_shares_of_targets_sum_to_one_on_the_tensors_own_device():
    found = target_shares(torch.from_numpy(noise(8, 6, 5)).bfloat16())
    assert found["between_patches"] + found["between_images"] == pytest.approx(1)
    assert all(value.ndim == 0 and value.dtype == torch.float32 for value in found.values())


def test_the_head_of_untrained_dmt_makes_targets_that_hardly_differ_in_an_image(data):
    """The danger that is special to DMT-JEPA, on real images."""
    from dataclasses import replace

    from jepa_vision.data.folders import ImageFolder
    from jepa_vision.data.transforms import centres, normalise
    from jepa_vision.presets import NANO
    from jepa_vision.pretrain import untrained

    images = ImageFolder(data("vision") / "caltech10/test")
    crops = centres(images, np.arange(0, 200, 10), (64, 64))
    x = torch.from_numpy(normalise(crops, NANO.augment.mean, NANO.augment.std))
    shares = {}
    for method in ("i-jepa", "dmt-jepa"):
        config = replace(NANO, method=method, dmt=replace(NANO.dmt, query="mean"))
        shares[method] = target_shares(untrained(config, 0).targets(x))
    assert shares["i-jepa"]["between_patches"] > 0.6
    assert shares["dmt-jepa"]["between_patches"] < 0.05


def test_the_table_names_a_collapse():
    alive = collapse_report(noise(20, 9, 8))
    table = collapse_table({"untrained twin": alive, "trained": alive})
    assert "(100%): no collapse" in table.notes[0]
    dying = collapse_report(0.3 * noise(20, 9, 8))
    assert "close to collapse" in collapse_table({"a": alive, "b": dying}).notes[0]
    # All that is left depends on the position alone.
    dead = collapse_report(np.repeat(noise(1, 9, 8), 20, axis=0) + 0.01 * noise(20, 9, 8))
    table = collapse_table({"untrained twin": alive, "trained": dead})
    assert "the representation collapsed" in table.notes[0]
    assert [row[0] for row in table.rows][:2] == [
        "std of a feature over tokens",
        "std of a feature over images",
    ]
