"""Pictures for reports: what is drawn where."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from jepa_core.report.figures import PALETTE, follows_page
from jepa_vision.figures import (
    class_colours,
    component_colours,
    displayed,
    locality_figure,
    mask_figure,
    neighbour_figure,
    segmentation_figure,
    similarity_figure,
    token_figure,
)
from jepa_vision.targets import neighbour_table

GRID = (4, 6)


def image(seed: int = 0, height: int = 32, width: int = 48, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, channels), np.uint8)


def drawn(figure: Figure) -> np.ndarray:
    """The figure as pixels, on white; drawing must not fail."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=60, facecolor="white")
    return np.asarray(Image.open(file).convert("RGB"))


def overlays(axes) -> list[np.ndarray]:
    """The semi-transparent layers over an image, [rows, cols, rgba]."""
    return [found.get_array() for found in axes.get_images() if found.get_array().shape[-1] == 4]


def frames(axes) -> list[tuple[float, ...]]:
    """Left, top, width, height of every outline."""
    return [(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in axes.patches]


def test_masks_cover_what_is_not_seen_and_frame_what_is_asked():
    context = np.array([0, 1, 6, 7])
    targets = np.array([[14, 15, 20, 21], [10, 11, 16, 17]])
    figure = mask_figure([image(0), image(1)], [context, context], [targets, targets], GRID)
    assert len(figure.axes) == 6
    assert [axes.get_title() for axes in figure.axes[:3]] == ["image", "seen", "asked for"]
    (cover,) = overlays(figure.axes[1])
    hidden = cover[..., 3] > 0
    assert not hidden.ravel()[context].any()
    assert hidden.sum() == 24 - 4
    first, second = overlays(figure.axes[5])
    assert set(np.flatnonzero(first[..., 3])) == set(targets[0])
    assert set(np.flatnonzero(second[..., 3])) == set(targets[1])
    assert frames(figure.axes[5]) == [(2, 2, 2, 2), (4, 1, 2, 2)]
    assert drawn(figure).std() > 0
    assert follows_page(figure)


def test_neighbours_are_outlined_and_the_chosen_are_coloured():
    table = neighbour_table(*GRID).numpy()
    chosen = table[:, :2].copy()
    figure = neighbour_figure(image(), GRID, [9, 0], table, chosen)
    assert len(figure.axes) == 3
    (cover,) = overlays(figure.axes[1])
    assert set(np.flatnonzero(cover[..., 3])) == set(chosen[9])
    assert frames(figure.axes[0]) == [(3, 1, 1, 1), (0, 0, 1, 1)]
    # 8 candidates, 2 chosen of them, and the patch; at the corner 3, 2 and the patch.
    assert [len(axes.patches) for axes in figure.axes[1:]] == [11, 6]
    assert (0, 0, 1, 1) in frames(figure.axes[2])
    drawn(figure)


def test_a_neighbour_that_is_not_there_is_not_drawn():
    table = neighbour_table(*GRID).numpy()
    chosen = np.full((24, 4), -1)
    chosen[0, :2] = (1, 6)
    figure = neighbour_figure(image(), GRID, [0], table, chosen)
    (cover,) = overlays(figure.axes[1])
    assert set(np.flatnonzero(cover[..., 3])) == {1, 6}


def test_similarities_are_cosines_with_the_framed_patch():
    targets = np.random.default_rng(0).normal(size=(24, 5))
    figure = similarity_figure(image(), GRID, [9, 20], {"tokens": targets, "same": 3 * targets})
    maps = [axes.get_images()[0].get_array() for axes in figure.axes if axes.get_images()]
    found = np.asarray(maps[1]).ravel()
    expected = targets @ targets[9] / np.linalg.norm(targets, axis=1) / np.linalg.norm(targets[9])
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(np.asarray(maps[4]).ravel(), expected)  # scale does not count
    assert figure.axes[0].get_ylabel() == "tokens"
    drawn(figure)


def test_targets_that_are_all_alike_are_drawn_alike():
    figure = similarity_figure(image(), GRID, [9], {"targets": np.ones((24, 5))})
    shown = figure.axes[1].get_images()[0]
    assert shown.norm.vmin == 0.99  # rounding is not blown up to a pattern
    drawn(figure)


def test_components_are_those_of_the_covariance_and_lie_between_0_and_1():
    g = np.random.default_rng(0)
    tokens = g.normal(size=(400, 6)) * np.array([9, 5, 2, 0.1, 0.1, 0.1])
    found = component_colours(tokens)
    assert (found.min(), found.max()) == (0.0, 1.0)
    for column in range(3):
        inside = (found[:, column] > 0) & (found[:, column] < 1)
        correlation = np.corrcoef(found[inside, column], tokens[inside, column])[0, 1]
        assert abs(correlation) > 0.99


@pytest.mark.parametrize("dim", [1, 2, 8])
def test_components_that_do_not_vary_are_grey(dim):
    found = component_colours(np.ones((10, dim)))
    np.testing.assert_array_equal(found, np.full((10, 3), 0.5))


def test_tokens_stand_beside_their_images():
    tokens = np.random.default_rng(0).normal(size=(3, 24, 8))
    figure = token_figure([image(i) for i in range(3)], GRID, {"trained": tokens, "twin": tokens})
    assert len(figure.axes) == 9
    picture = figure.axes[4].get_images()[0].get_array()
    expected = component_colours(tokens.reshape(-1, 8)).reshape(3, *GRID, 3)
    np.testing.assert_allclose(picture, expected[1])
    drawn(figure)


def test_label_maps_have_a_colour_a_class_and_none_where_unlabelled():
    labels = np.array([[0, 1], [255, 17]])
    found = class_colours(labels)
    assert found[1, 0, 3] == 0
    assert (found[[0, 0, 1], [0, 1, 1], 3] == 1).all()
    np.testing.assert_array_equal(found[0, 1], found[1, 1])  # 16 colours, then again
    assert not np.array_equal(found[0, 0], found[0, 1])


def test_segmentations_stand_beside_the_truth_with_their_classes_named():
    truth = [np.zeros((32, 48), int), np.full((32, 48), 255)]
    truth[0][:, 20:] = 2
    predicted = {"linear probe": [truth[0], truth[0]]}
    figure = segmentation_figure([image(0), image(1)], truth, predicted, ("sky", "never", "$road$"))
    assert len(figure.axes) == 6
    assert [axes.get_title() for axes in figure.axes[:3]] == ["image", "truth", "linear probe"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["sky", "$road$"]
    drawn(figure)


def test_many_classes_are_cut_to_the_most_frequent():
    truth = np.arange(32 * 48).reshape(32, 48) % 150
    truth[truth == 7] = 3
    figure = segmentation_figure([image()], [truth], {}, [str(i) for i in range(150)])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(names) == 16
    assert "3" in names
    assert "7" not in names


@pytest.mark.parametrize("lines", [0, 1, 5])
def test_shares_of_the_targets_are_stacked(lines):
    metrics = [{"step": 1, "loss": 0.3}] + [
        {
            "step": 10 * i,
            "health/share_total": 1.0 - 0.1 * i,
            "health/share_interaction": 0.5,
            "health/share_position": 0.2,
            "health/share_sample": 0.3,
        }
        for i in range(lines)
    ]
    figure = locality_figure(metrics)
    assert len(figure.axes) == 2
    drawn(figure)
    if lines == 5:
        bands = figure.axes[0].collections
        assert [tuple(band.get_facecolor()[0][:3]) for band in bands] == [
            to_rgb(PALETTE[0]),
            to_rgb(PALETTE[4]),
            to_rgb(PALETTE[2]),
        ]
        np.testing.assert_allclose(bands[1].get_paths()[0].vertices[:, 1].max(), 0.7)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels_can_be_shown(channels):
    found = displayed(image(channels=channels))
    assert found.shape == (32, 48, 3)
    assert 0 <= found.min() < found.max() <= 1
    first = image(channels=channels)[..., 0] / 255
    np.testing.assert_allclose(found[..., 0], first)
    if channels < 3:
        np.testing.assert_allclose(found[..., 2], first)


def test_values_of_other_kinds_are_stretched():
    found = displayed(np.linspace(-3, 5, 12, dtype=np.float32).reshape(2, 2, 3))
    assert (found.min(), found.max()) == (0, 1)
    assert (displayed(np.ones((2, 2, 1), np.float32)) == 0.5).all()
