"""Labels carried through videos: weights, windows, measures, and folders in the layout of DAVIS."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import binary_dilation

from jepa_core.errors import DataError
from jepa_vision.dense import raw_patches, token_map
from jepa_vision.propagation import (
    VOID,
    ObjectScore,
    boundary,
    davis_f,
    davis_j,
    find_videos,
    frame_size,
    propagate_labels,
    score_videos,
    sequence_scores,
    stretch,
    track,
)
from jepa_vision.results import COPY, propagation_table


@pytest.fixture(scope="module")
def propagation(data):
    return np.load(data("vision") / "golden/golden_label_propagation.npz")


@pytest.mark.parametrize(("radius", "name"), [(2, "out_radius2"), (None, "out_radius0")])
def test_propagation_equals_that_of_the_published_programs(propagation, radius, name):
    found = propagate_labels(
        torch.from_numpy(propagation["source_features"]),
        torch.from_numpy(propagation["source_segs"]),
        torch.from_numpy(propagation["target_features"]),
        radius=radius,
        topk=int(propagation["topk"]),
        temperature=float(propagation["temperature"]),
    )
    np.testing.assert_allclose(found, propagation[name][0], atol=1e-6)


def test_stretching_equals_that_of_the_published_programs(propagation):
    found = stretch(torch.from_numpy(propagation["out_radius2"][0]))
    np.testing.assert_allclose(found, propagation["norm_mask_of_out_radius2"], atol=1e-6)


def test_stretching_leaves_what_is_never_above_0_and_makes_a_constant_0():
    labels = torch.stack([torch.full((2, 2), v) for v in (0.0, -1.0, 0.7)])
    assert stretch(labels)[:, 0, 0].tolist() == [0.0, -1.0, 0.0]


def slow_propagation(source, labels, target, *, radius, topk, temperature):
    """Every cell against every other, one by one, in float64."""
    frames, classes, rows, cols = labels.shape
    source, target, labels = source.double(), target.double(), labels.double()
    out = torch.zeros(classes, rows, cols, dtype=torch.float64)
    for i in range(rows):
        for j in range(cols):
            weights, values = [], []
            q = target[i * cols + j]
            for f in range(frames):
                for a in range(rows):
                    for b in range(cols):
                        if radius is not None and max(abs(a - i), abs(b - j)) > radius:
                            continue
                        k = source[f, a * cols + b]
                        weights.append(((q @ k) / (q.norm() * k.norm()) / temperature).exp())
                        values.append(labels[f, :, a, b])
            w, v = torch.stack(weights), torch.stack(values)
            best = w.argsort(descending=True)[:topk]
            out[:, i, j] = (w[best] / w[best].sum()) @ v[best]
    return out


@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 6),
    st.sampled_from([None, 0, 1, 2]),
    st.integers(1, 6),
)
def test_the_tiled_propagation_equals_one_cell_at_a_time(frames, rows, cols, radius, topk):
    g = torch.Generator().manual_seed(frames + 7 * rows + 50 * cols)
    source = torch.randn(frames, rows * cols, 4, generator=g, dtype=torch.float64)
    target = torch.randn(rows * cols, 4, generator=g, dtype=torch.float64)
    labels = torch.rand(frames, 2, rows, cols, generator=g, dtype=torch.float64)
    args = {"radius": radius, "topk": topk, "temperature": 0.2}
    np.testing.assert_allclose(
        propagate_labels(source, labels, target, **args),
        slow_propagation(source, labels, target, **args),
        atol=1e-12,
    )


def test_a_grid_of_several_tiles_equals_a_masked_affinity_of_all_cells():
    rows, cols, radius, frames = 21, 37, 6, 2
    g = torch.Generator().manual_seed(0)
    source = torch.randn(frames, rows * cols, 8, generator=g, dtype=torch.float64)
    target = torch.randn(rows * cols, 8, generator=g, dtype=torch.float64)
    labels = torch.rand(frames, 3, rows, cols, generator=g, dtype=torch.float64)
    unit = torch.nn.functional.normalize
    affinity = (unit(target, dim=-1) @ unit(source.flatten(0, 1), dim=-1).T / 0.1).exp()
    i, j = np.divmod(np.arange(rows * cols), cols)
    near = np.maximum(abs(i[:, None] - i), abs(j[:, None] - j)) <= radius
    affinity = torch.where(torch.from_numpy(np.tile(near, (1, frames))), affinity, 0)
    kept = affinity >= affinity.topk(5).values[:, -1:]
    weight = torch.where(kept, affinity, 0)
    weight = weight / weight.sum(1, keepdim=True)
    slow = weight @ labels.permute(0, 2, 3, 1).reshape(-1, 3)
    found = propagate_labels(source, labels, target, radius=radius)
    np.testing.assert_allclose(found.flatten(1).T, slow, atol=1e-12)


def test_equally_similar_cells_all_count():
    source = torch.ones(1, 9, 4)
    labels = torch.eye(9).reshape(1, 9, 3, 3)
    found = propagate_labels(source, labels, torch.ones(9, 4), radius=None, topk=2)
    np.testing.assert_allclose(found, np.full((9, 3, 3), 1 / 9), atol=1e-6)


def test_labels_of_another_grid_are_an_error():
    with pytest.raises(DataError, match="features are of"):
        propagate_labels(torch.ones(1, 8, 4), torch.ones(1, 2, 3, 3), torch.ones(9, 4))


@pytest.fixture(scope="module")
def measures(data):
    return np.load(data("vision") / "golden/golden_davis_jf.npz")


def test_j_and_f_equal_those_of_the_official_program(measures):
    for i, (truth, predicted) in enumerate(zip(measures["gt"], measures["pred"], strict=True)):
        assert davis_j(truth, predicted) == pytest.approx(measures["J"][i], abs=1e-6)
        assert davis_f(truth, predicted) == pytest.approx(measures["F_th0008"][i], abs=1e-6)
        assert davis_f(truth, predicted, 3) == pytest.approx(measures["F_th3px"][i], abs=1e-6)


def test_boundaries_equal_those_of_the_official_program(measures):
    for truth, edge in zip(measures["gt"], measures["boundary_first3"], strict=False):
        np.testing.assert_array_equal(boundary(truth), edge)


def slow_f(truth: np.ndarray, predicted: np.ndarray, radius: int) -> float:
    """Boundaries pixel by pixel, widened by a disk."""

    def edge(mask):
        out = np.zeros_like(mask)
        h, w = mask.shape
        for i in range(h):
            for j in range(w):
                below, right = min(i + 1, h - 1), min(j + 1, w - 1)
                others = mask[i, right], mask[below, j], mask[below, right]
                out[i, j] = any(mask[i, j] != other for other in others)
        return out

    one, other = edge(truth), edge(predicted)
    if not one.any() and not other.any():
        return 1.0
    if not one.any() or not other.any():
        return 0.0
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disk = x**2 + y**2 <= radius**2
    precision = binary_dilation(one, disk)[other].mean()
    recall = binary_dilation(other, disk)[one].mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@given(st.integers(0, 10_000), st.integers(2, 14), st.integers(2, 14), st.integers(1, 4))
def test_f_by_distances_equals_f_by_widening(seed, height, width, radius):
    g = np.random.default_rng(seed)
    cells = -(-height // 2), -(-width // 2)
    truth, predicted = (
        np.kron(g.random(cells) < p, np.ones((2, 2), bool))[:height, :width] for p in (0.3, 0.4)
    )
    assert davis_f(truth, predicted, radius) == pytest.approx(slow_f(truth, predicted, radius))


@pytest.mark.parametrize(
    ("size", "patch", "expected"),
    [
        ((480, 854), 16, (480, 832)),
        ((854, 480), 8, (832, 480)),
        ((480, 910), 16, (480, 896)),
        ((1080, 1920), 14, (476, 448)),
        ((60, 60), 8, (480, 448)),
    ],
)
def test_frames_get_a_short_side_of_480_and_a_long_one_of_64s(size, patch, expected):
    assert frame_size(*size, patch) == expected
    assert all(side % patch == 0 for side in expected)


def test_scores_leave_out_the_first_and_the_last_frame_and_void_pixels():
    truth = [np.zeros((8, 8), np.uint8) for _ in range(4)]
    predicted = [frame.copy() for frame in truth]
    for frame in truth:
        frame[2:6, 2:6] = 1
        frame[2, :] = VOID
    predicted[1][2:6, 2:6] = 1  # row 2 is void and counts for nobody
    predicted[2][3:6, 2:4] = 1
    (found,) = sequence_scores("made", truth, predicted)
    assert (found.number, found.j) == (1, pytest.approx((1 + 0.5) / 2))
    (again,) = sequence_scores("made", truth, [predicted[2], *predicted[1:3], predicted[2]])
    assert again == found
    assert found.jf == (found.j + found.f) / 2


def test_an_object_nobody_predicts_scores_0():
    truth = [np.full((6, 6), 0, np.uint8) for _ in range(3)]
    for frame in truth:
        frame[1:3, 1:3] = 2
    (found,) = sequence_scores("made", truth, [np.zeros((6, 6), np.uint8)] * 3)
    assert (found.number, found.j, found.f) == (2, 0.0, 0.0)


@pytest.mark.parametrize(("frames", "size"), [(2, 6), (3, 7)])
def test_frames_that_do_not_fit_are_an_error(frames, size):
    with pytest.raises(DataError, match="made: "):
        sequence_scores("made", [np.zeros((6, 6))] * 3, [np.zeros((size, size))] * frames)


FRAMES, HEIGHT, WIDTH = 6, 48, 64


def write_davis(root, *, listed=True) -> None:
    """Two sequences of two coloured squares that move over noise, with palettes."""
    g = np.random.default_rng(0)
    for number, name in enumerate(("left", "right", "unlisted")):
        pictures, labels = (root / kind / "480p" / name for kind in ("JPEGImages", "Annotations"))
        pictures.mkdir(parents=True)
        labels.mkdir(parents=True)
        noise = g.integers(90, 110, (HEIGHT, WIDTH, 3), np.uint8)
        for frame in range(FRAMES):
            image, truth = noise.copy(), np.zeros((HEIGHT, WIDTH), np.uint8)
            shift = 4 * frame if number else 40 - 4 * frame
            for i, (top, colour) in enumerate(((4, (220, 30, 30)), (28, (30, 40, 220))), 1):
                where = np.s_[top : top + 16, 4 + shift : 20 + shift]
                image[where], truth[where] = colour, i
            Image.fromarray(image).save(pictures / f"{frame:05d}.jpg", quality=95)
            picture = Image.fromarray(truth)
            picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
            picture.save(labels / f"{frame:05d}.png")
    if listed:
        (root / "ImageSets/2017").mkdir(parents=True)
        (root / "ImageSets/2017/val.txt").write_text("right\nleft\n")


def tokens(image):
    return token_map(raw_patches(4), image, 4)


def test_a_folder_in_the_layout_of_davis_is_scored(tmp_path):
    write_davis(tmp_path)
    videos = find_videos(tmp_path)
    assert [video.name for video in videos] == ["right", "left"]
    scores = {
        "trained": score_videos(videos, tokens, 4, short=HEIGHT, save=tmp_path / "answers"),
        "untrained twin": score_videos(videos, tokens, 4, short=HEIGHT),
        "raw pixels": score_videos(videos, tokens, 4, short=HEIGHT),
        COPY: score_videos(videos, None, 4),
    }
    assert [(one.sequence, one.number) for one in scores["trained"]] == [
        ("right", 1),
        ("right", 2),
        ("left", 1),
        ("left", 2),
    ]
    assert all(one.j > 0.6 for one in scores["trained"])
    assert all(one.j < 0.45 for one in scores[COPY])
    table = propagation_table(scores)
    assert [row[0] for row in table.rows] == list(scores)
    assert "4 objects in 2 sequences" in table.notes[0]
    assert "2 sequences are too few" in table.notes[-1]
    with Image.open(tmp_path / "answers/right/00003.png") as answer:
        assert answer.mode == "P"
        assert answer.getpalette()[3:6] == [128, 0, 0]
        assert set(np.unique(np.asarray(answer))) == {0, 1, 2}


def test_the_first_frame_is_given_and_void_in_it_is_background():
    g = np.random.default_rng(0)
    frames = [g.integers(0, 255, (48, 64, 3), np.uint8)] * 3
    first = np.zeros((48, 64), np.uint8)
    first[8:24, 8:24] = 1
    first[30:, :] = VOID
    found = list(track(frames, first, tokens, 4, short=48))
    expected = (first == 1).astype(np.uint8)
    np.testing.assert_array_equal(found[0], expected)
    # The picture stands still, so each cell is its own best match; borders are bilinear.
    for answer in found[1:]:
        np.testing.assert_array_equal(answer[1::4, 1::4], expected[1::4, 1::4])


def test_labels_come_from_the_first_frame_and_the_last_seven(monkeypatch):
    seen = []

    def counted(source, labels, target, **settings):
        seen.append(source[:, 0, 0].tolist())
        return labels[0]

    monkeypatch.setattr("jepa_vision.propagation.propagate_labels", counted)
    frames = [np.full((8, 8, 3), i, np.uint8) for i in range(11)]
    features = lambda image: np.full((2, 16, 1), float(image[0, 0, 0]))  # noqa: E731
    list(track(frames, np.eye(8, dtype=np.uint8), features, 4, short=8))
    assert seen[0] == [0.0]
    assert seen[3] == [0.0, 1.0, 2.0, 3.0]
    assert seen[-1] == [0.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]


def test_without_a_list_every_sequence_is_taken(tmp_path):
    write_davis(tmp_path, listed=False)
    assert [video.name for video in find_videos(tmp_path)] == ["left", "right", "unlisted"]


def test_a_list_of_frames_names_its_sequences(tmp_path):
    write_davis(tmp_path)
    words = "/JPEGImages/480p/left/00000.jpg /Annotations/480p/left/00000.png\n"
    (tmp_path / "ImageSets/2017/val.txt").write_text(words * 3)
    assert [video.name for video in find_videos(tmp_path)] == ["left"]


def test_what_is_wrong_with_a_folder_is_said(tmp_path):
    with pytest.raises(DataError, match="JPEGImages/480p: there is no such folder; give the root"):
        find_videos(tmp_path)
    write_davis(tmp_path)
    (tmp_path / "ImageSets/2017/val.txt").write_text("gone\n")
    with pytest.raises(DataError, match="gone: there is no frame"):
        find_videos(tmp_path)
    (tmp_path / "ImageSets/2017/val.txt").write_text("left\n")
    labels = tmp_path / "Annotations/480p/left"
    (labels / "00003.png").unlink()
    with pytest.raises(DataError, match="6 frames and 5 label maps"):
        score_videos(find_videos(tmp_path), None, 4)
    Image.new("RGB", (WIDTH, HEIGHT)).save(labels / "00003.png")
    with pytest.raises(DataError, match=r"00003.png: holds colours \(RGB\)"):
        find_videos(tmp_path)[0].truth()
    (labels / "00003.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"00003.png: is no image that can be read"):
        find_videos(tmp_path)[0].truth()


def test_the_table_says_when_training_has_done_harm():
    def scores(value):
        return [ObjectScore(f"s{i}", 1, value + i / 100, value) for i in range(5)]

    found = propagation_table(
        {"trained": scores(0.3), "untrained twin": scores(0.5), "raw pixels": scores(0.2)}
    )
    assert "Training loses to its twin" in found.notes[0]
    assert "beats raw pixels" in found.notes[0]
    assert "harm" in found.notes[0]
    with pytest.raises(DataError, match="nothing named 'raw pixels'"):
        propagation_table({"trained": scores(0.3), "untrained twin": scores(0.5)})
