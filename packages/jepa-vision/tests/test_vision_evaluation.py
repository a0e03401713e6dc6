"""Probes of image features: what they choose, what they score, and what is said of it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from jepa_core.errors import DataError
from jepa_core.evaluation.intervals import Interval
from jepa_core.evaluation.linear import PENALTIES, logistic
from jepa_vision.evaluation import (
    RAW,
    TRAINED,
    TWIN,
    Features,
    Pooled,
    Result,
    held_out,
    knn_probe,
    linear_probe,
    principal_components,
    raw_pixels,
    side_by_side,
)
from jepa_vision.logistic import choose_penalty, fit_logistic
from jepa_vision.results import compare, verdict


def clusters(n: int, classes: int = 4, dim: int = 12, spread: float = 1.0, seed: int = 0):
    """Correlated features around one centre a class."""
    g = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    y = np.arange(n) % classes
    mix = np.random.default_rng(98).normal(size=(dim, dim))
    return (centres[y] + spread * g.normal(size=(n, dim))) @ mix, y


@pytest.mark.parametrize("C", [1e-3, 0.1, 10.0])
def test_the_preconditioned_fit_finds_the_minimum_of_scikit_learn(C):
    x, y = clusters(200)
    found = fit_logistic(x, y, classes=4, C=C)
    z = (x - x.mean(0)) / x.std(0)
    slow = LogisticRegression(C=C, max_iter=10_000, tol=1e-8).fit(z, y)
    np.testing.assert_allclose(found.weight, slow.coef_.T, atol=2e-3 * np.abs(slow.coef_).max())
    scores = found.scores(x)
    expected = slow.decision_function(z)
    gap = scores - scores.mean(1, keepdims=True) - (expected - expected.mean(1, keepdims=True))
    assert np.abs(gap).max() < 5e-3 * np.abs(expected).max()
    assert found.notes == ()


def test_the_fit_does_not_mind_features_that_say_the_same():
    """Neighbouring pixels: plain gradient methods need hundreds of times as many steps."""
    x, y = clusters(150, dim=6)
    x = np.concatenate((x, x + 1e-6 * np.random.default_rng(0).normal(size=x.shape)), 1)
    found = fit_logistic(x, y, classes=4, C=1.0)
    assert found.notes == ()
    same = logistic(x, y, classes=4, C=1.0, max_iter=20_000)
    np.testing.assert_allclose(
        _probabilities(found.scores(x)), _probabilities(same.scores(x)), atol=5e-3
    )


def test_a_class_that_does_not_occur_is_never_the_answer():
    x, y = clusters(80, classes=3)
    found = fit_logistic(x, np.where(y == 2, 3, y), classes=5, C=1.0)
    assert found.weight.shape == (12, 5)
    assert set(found.scores(x).argmax(1)) == {0, 1, 3}
    only = fit_logistic(x, np.full(80, 2), classes=5, C=1.0)
    assert set(only.scores(x).argmax(1)) == {2}


def test_a_constant_feature_is_harmless_and_a_nan_is_an_error():
    x, y = clusters(60)
    x[:, 3] = 7.0
    assert np.isfinite(fit_logistic(x, y, classes=4, C=1.0).weight).all()
    x[5, 2] = np.nan
    with pytest.raises(DataError, match="not all finite"):
        fit_logistic(x, y, classes=4, C=1.0)


def test_the_penalty_is_the_first_dip_of_the_held_out_loss():
    x, y = clusters(160, spread=2.5, seed=3)
    outside = held_out(y, 0)
    losses = []
    for C in PENALTIES:
        scores = logistic(x[~outside], y[~outside], classes=4, C=C, max_iter=5000).scores(
            x[outside]
        )
        p = _probabilities(scores)
        losses.append(-np.log(p[np.arange(outside.sum()), y[outside]]).mean())
    rises = np.flatnonzero(np.diff(losses) > 0)
    assert len(rises)  # else the case shows nothing
    assert choose_penalty(x, y, outside, classes=4) == PENALTIES[rises[0]]


def test_the_penalty_does_not_see_the_test_images():
    x, y = clusters(120)
    test, truth = clusters(40, seed=5)
    once = linear_probe(x, y, test, truth, seed=0)
    half = linear_probe(x, y, test[:20], truth[:20], seed=0)
    np.testing.assert_array_equal(once.scores[:20], half.scores)


def test_a_fifth_of_every_class_is_held_out_and_depends_on_the_seed_alone():
    y = np.repeat([0, 1, 2], [50, 10, 1])
    found = held_out(y, 1)
    assert [int(found[y == k].sum()) for k in range(3)] == [10, 2, 0]
    np.testing.assert_array_equal(found, held_out(y, 1))
    assert not np.array_equal(found, held_out(y, 2))


def test_features_may_be_scaled_and_shifted():
    x, y = clusters(120)
    test, truth = clusters(60, seed=1)
    scale, shift = np.geomspace(1e-3, 1e3, 12), np.arange(12.0)
    one = linear_probe(x, y, test, truth)
    other = linear_probe(x * scale + shift, y, test * scale + shift, truth)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-3)
    assert one.top1 > 0.5


def test_balanced_accuracy_weighs_every_class_alike():
    y = np.array([0] * 8 + [1] * 2)
    scores = np.zeros((10, 3))
    scores[:, 0] = 1
    found = Result(scores, y)
    assert (found.top1, found.balanced_accuracy) == (0.8, 0.5)
    g = np.random.default_rng(0)
    y, scores = g.integers(0, 4, 60), g.random((60, 4))
    found = Result(scores, y)
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(y, scores.argmax(1)))
    counts = g.integers(0, 4, (1, 60))
    drawn = np.repeat(np.arange(60), counts[0])
    assert found.top1_statistic(counts)[0, 0] == pytest.approx(found.hits[drawn].mean())
    expected = balanced_accuracy_score(y[drawn], scores.argmax(1)[drawn])
    assert np.nanmean(found.balanced_statistic(counts)) == pytest.approx(expected)


def test_neighbours_vote_by_cosine_with_a_temperature_of_007():
    x, y = clusters(50, dim=3)
    test, truth = clusters(20, dim=3, seed=2)
    found = knn_probe(x, y, test, truth)
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (x, test)]
    cosine = unit[1] @ unit[0].T
    for i in range(20):
        nearest = np.argsort(-cosine[i])[:20]
        votes = [np.exp(cosine[i, nearest[y[nearest] == k]] / 0.07).sum() for k in range(4)]
        np.testing.assert_allclose(found.scores[i], votes)


def test_with_few_images_all_of_them_vote():
    x, y = clusters(8)
    assert knn_probe(x, y, x, y).scores.shape == (8, 4)


def test_raw_pixels_are_averaged_down_to_64():
    images = np.arange(2 * 130 * 100 * 3).reshape(2, 130, 100, 3).astype(np.float32)
    found = raw_pixels(images)
    assert found.shape == (2, (130 // 3) * (100 // 3) * 3)
    assert found[1, 0] == pytest.approx(images[1, :3, :3, 0].mean())
    small = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 1), np.uint8)
    np.testing.assert_array_equal(raw_pixels(small), small.reshape(3, 64))


def test_components_are_those_of_the_training_part():
    x, _ = clusters(40, dim=12)
    train, test = principal_components(x[:30], x[30:], 5)
    assert (train.shape, test.shape) == ((30, 5), (10, 5))
    centred = x[:30] - x[:30].mean(0)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:5]
    expected = (x[30:] - x[:30].mean(0)) @ directions.T
    np.testing.assert_allclose(np.abs(test), np.abs(expected), rtol=1e-5, atol=1e-8)


def made(trained: float, twin: float, raw: float):
    """Features whose clusters are narrow (0) or hopeless (9)."""
    found = []
    for name, spread in ((TRAINED, trained), (TWIN, twin), (RAW, raw)):
        x, y = clusters(120, spread=spread, seed=1)
        test, truth = clusters(80, spread=spread, seed=2)
        found.append(Features(name, x, test, "" if name == TWIN else TWIN))
    return found, y, truth


@pytest.mark.parametrize(
    ("spreads", "says"),
    [
        ((0.1, 9.0, 9.0), "pre-training pays here"),
        ((0.1, 0.1, 9.0), "the gain over raw pixels is the untrained network's"),
        ((0.1, 0.1, 0.1), "pre-training has not helped here."),
        ((9.0, 0.1, 0.1), "pre-training has done harm here, and raw pixels serve better"),
        ((0.1, 9.0, 0.1), "pre-training helps the network, but raw pixels serve as well"),
    ],
)
def test_the_sentence_says_what_came_out(spreads, says):
    features, y, truth = made(*spreads)
    table = compare("linear probe", features, y, truth, linear_probe).table
    assert says in table.notes[0]
    assert "top-1 on 80 test images" in table.notes[0]


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.01, 0.2, "beats"), (-0.01, 0.2, "is level with"), (-0.2, -0.01, "loses to")],
)
def test_a_difference_whose_interval_holds_0_shows_nothing(low, high, word):
    gained = Interval((low + high) / 2, low, high, 0.95, 1000, 1, 0, 0, 1)
    values = {TRAINED: 0.5, TWIN: 0.4, RAW: 0.3}
    said = verdict("top-1", values, gained, gained)
    assert f"Training {word} its twin" in said
    assert f"and {word} raw pixels" in said


def test_the_table_has_a_row_for_every_feature_with_an_interval():
    features, y, truth = made(0.5, 1.0, 2.0)
    table = compare("nearest", features, y, truth, partial(knn_probe, k=5)).table
    assert [row[0] for row in table.rows] == [TRAINED, TWIN, RAW]
    assert table.rows[1][3] is None
    assert str(table.rows[0][3]).count("[") == 1
    result = knn_probe(features[0].train, y, features[0].test, truth, k=5)
    assert str(table.rows[0][2]).startswith(f"{result.top1:.3f} [")
    assert str(table.rows[0][4]).startswith(f"{result.balanced_accuracy:.3f} [")


def test_nothing_stands_without_its_twin_and_raw_pixels():
    features, y, truth = made(0.5, 1.0, 2.0)
    for missing in (TWIN, RAW):
        kept = [one for one in features if one.name != missing]
        with pytest.raises(DataError, match=f"nothing named '{missing}'"):
            compare("linear probe", kept, y, truth, linear_probe)
    with pytest.raises(DataError, match=r"features 'trained' are of 120 \+ 80 images"):
        compare("linear probe", features, y[1:], truth, linear_probe)


def test_each_kind_of_features_is_compared_with_its_own_twin():
    g = np.random.default_rng(0)
    train, test = np.arange(30), np.arange(30, 40)

    def one(seed):
        return Pooled(*(g.normal(size=(40, dim)).astype(np.float32) for dim in (4, 16, 4)))

    raw = g.random((40, 50)).astype(np.float32)
    found = side_by_side(one(0), one(1), raw, train, test)
    assert [(features.name, features.twin) for features in found] == [
        ("trained", "untrained twin"),
        ("untrained twin", ""),
        ("trained, last four layers", "untrained twin, last four layers"),
        ("untrained twin, last four layers", ""),
        ("trained, with head", "untrained twin, with head"),
        ("untrained twin, with head", ""),
        ("raw pixels", "untrained twin"),
    ]
    assert [features.train.shape for features in found] == [
        *[(30, 4)] * 2,
        *[(30, 16)] * 2,
        *[(30, 4)] * 2,
        (30, 29),
    ]
    plain = side_by_side(Pooled(one(0).last), Pooled(one(1).last), raw, train, test)
    assert [features.name for features in plain] == [TRAINED, TWIN, RAW]


def test_raw_pixels_of_caltech_are_a_strong_rival(data):
    """PCA and logistic regression on 600 photographs of ten classes: about one half is right."""
    from jepa_vision.data.folders import ImageFolder
    from jepa_vision.data.transforms import centres

    x, y = [], []
    for part in ("train", "test"):
        images = ImageFolder(data("vision") / "caltech10" / part)
        x.append(raw_pixels(centres(images, np.arange(len(images)), (64, 64))))
        y.append(images.labels)
    components = principal_components(*x)
    found = linear_probe(components[0], y[0], components[1], y[1])
    assert 0.42 < found.top1 < 0.58
    assert found.balanced_accuracy == pytest.approx(found.top1)  # 20 of each


def _probabilities(scores: np.ndarray) -> np.ndarray:
    p = np.exp(scores - scores.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)
