"""What a representation looks like: collapse, spread, similarity, relevance of columns."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from jepa_core.errors import DataError
from jepa_tabular.analysis import (
    collapse_report,
    collapse_sentence,
    collapse_table,
    column_relevance,
    compare_relevance,
    official_divergence,
    sample_rows,
    similarity,
    token_relevance,
)
from jepa_tabular.figures import (
    collapse_figure,
    mask_figure,
    relevance_figure,
    similarity_figure,
    token_variance_figure,
)


@pytest.fixture(name="X")
def correlated() -> np.ndarray:
    """30 rows of 4 tokens and 3 dimensions, correlated."""
    g = np.random.default_rng(0)
    return (g.normal(size=(30, 2)) @ g.normal(size=(2, 12))).reshape(30, 4, 3) + 0.3


def test_the_official_quantities_are_the_golden_ones(data):
    with np.load(data("tabular") / "golden_collapse.npz") as golden:
        X, pairs = golden["X"], golden["pairs"]
        for i, pair in enumerate(pairs):
            found = collapse_report(X, pairs=pair[None])
            assert found["KL"] == pytest.approx(golden["KL"][i], abs=1e-6)
            assert found["euclidean"] == pytest.approx(golden["euclidean"][i], abs=1e-5)
        for key in ("intra_feature_variance", "inter_feature_variance"):
            assert found[key] == pytest.approx(float(golden[key]), abs=1e-6)
        whole = collapse_report(X, pairs=pairs)
        assert whole["KL"] == pytest.approx(golden["KL"].mean(), abs=1e-6)
        assert whole["euclidean"] == pytest.approx(golden["euclidean"].mean(), abs=1e-5)


def test_the_density_of_a_row_is_the_golden_one(data):
    from jepa_tabular.analysis import _density

    with np.load(data("tabular") / "golden_collapse.npz") as golden:
        found = _density(golden["X"][0].ravel())
        np.testing.assert_allclose(found, golden["dist_row0"], atol=1e-9)


def test_a_row_has_no_divergence_from_itself_and_a_constant_one_none_at_all(X):
    assert official_divergence(X[0].ravel(), X[0].ravel()) == 0
    assert math.isnan(official_divergence(X[0].ravel(), np.ones(12)))


def test_row_variance_is_that_over_rows_mean_over_tokens(X):
    found = collapse_report(X)
    slow = [X[:, t].var(axis=0).mean() for t in range(4)]
    np.testing.assert_allclose(found["token_row_variance"], slow)
    assert found["intra_feature_variance"] == pytest.approx(np.mean(slow))


def test_the_effective_rank_is_that_of_the_correlations(X):
    g = np.random.default_rng(1)
    X = X + 0.1 * g.normal(size=X.shape)
    p = np.linalg.eigvalsh(np.corrcoef(X.reshape(30, -1).T)) / 12
    slow = np.exp(-(p * np.log(p)).sum())
    assert collapse_report(X)["effective_rank"] == pytest.approx(slow, rel=1e-9)
    few = X[:5]  # fewer rows than dimensions
    p = np.linalg.eigvalsh(np.corrcoef(few.reshape(5, -1).T)) / 12
    p = p[p > 1e-10]
    slow = np.exp(-(p * np.log(p)).sum())
    assert collapse_report(few)["effective_rank"] == pytest.approx(slow, rel=1e-9)


def test_the_effective_rank_does_not_see_the_scale_of_a_dimension(X):
    scale = np.linspace(1, 100, 12).reshape(4, 3)
    one, other = collapse_report(X), collapse_report(X * scale)
    assert other["effective_rank"] == pytest.approx(one["effective_rank"])
    assert one["effective_rank"] < 2.1  # two directions made it
    assert other["intra_feature_variance"] > 100 * one["intra_feature_variance"]


def test_uniformity_is_over_pairs_of_normalised_rows(X):
    u = X.reshape(30, -1) / np.linalg.norm(X.reshape(30, -1), axis=1)[:, None]
    pairs = [np.exp(-2 * ((u[i] - u[j]) ** 2).sum()) for i in range(30) for j in range(i)]
    assert collapse_report(X)["uniformity"] == pytest.approx(np.log(np.mean(pairs)))


def test_a_collapsed_representation_looks_collapsed():
    X = np.broadcast_to(np.arange(12.0).reshape(4, 3), (20, 4, 3))
    found = collapse_report(X)
    assert found["intra_feature_variance"] == 0
    assert found["effective_rank"] == 1
    assert found["dead_dims"] == 1
    assert found["uniformity"] == pytest.approx(0, abs=1e-12)
    assert found["euclidean"] == 0


def test_dead_dimensions_are_counted_and_not_blown_up(X):
    Z = X.copy()
    Z[:, 1] = 1e-6 * np.random.default_rng(0).normal(size=(30, 3))
    found = collapse_report(Z)
    assert found["dead_dims"] == pytest.approx(0.25)
    assert found["effective_rank"] < 2.1


def test_alignment_is_of_normalised_views(X):
    view = X.mean(axis=1)
    same = collapse_report(X, views=np.stack((view, 3 * view), 1))
    assert same["alignment"] == pytest.approx(0, abs=1e-12)
    opposite = collapse_report(X, views=np.stack((view, -view), 1))
    assert opposite["alignment"] == pytest.approx(4)
    assert "alignment" not in collapse_report(X)


def test_the_pairs_are_a_function_of_the_seed(X):
    one, again, other = (collapse_report(X, seed=s)["euclidean"] for s in (0, 0, 1))
    assert one == again != other


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (np.ones((5, 3)), r"tokens are \(5, 3\)"),
        (np.ones((1, 3, 2)), r"tokens are \(1, 3, 2\)"),
        (np.full((5, 3, 2), np.nan), "not all finite"),
    ],
)
def test_what_is_no_representation_is_refused(bad, says):
    with pytest.raises(DataError, match=says):
        collapse_report(bad)


@pytest.mark.parametrize(
    ("share", "says"),
    [(1.5, "no collapse"), (0.21, "no collapse"), (0.1, "close to"), (0.04, "collapsed")],
)
def test_the_sentence_says_what_is_left_of_the_row_variance(X, share, says):
    before = collapse_report(X)
    after = collapse_report(X * math.sqrt(share))
    sentence = collapse_sentence(before, after)
    assert says in sentence
    assert f"({share:.0%})" in sentence


def test_the_collapse_table_ends_with_that_sentence(X):
    table = collapse_table({"untrained": collapse_report(X), "trained": collapse_report(2 * X)})
    assert table.columns == ("quantity", "untrained", "trained")
    assert "(400%): no collapse" in table.notes[0]
    assert "alignment of two views" not in [row[0] for row in table.rows]


def test_similarity_is_one_up_to_a_rotation_and_symmetric():
    g = np.random.default_rng(0)
    Z = g.normal(size=(200, 4))
    turn, _ = np.linalg.qr(g.normal(size=(4, 4)))
    found = similarity({"a": Z, "b": 3 * Z @ turn + 1, "c": g.normal(size=(200, 3))})
    assert found[0, 1] == pytest.approx(1)
    assert found[0, 2] < 0.1
    np.testing.assert_array_equal(found, found.T)


def test_only_the_token_that_is_read_is_missed(X):
    y = X[:, 2, 1]
    mean = X.mean(axis=0)
    drops = token_relevance(lambda Z: -float(((Z[:, 2, 1] - y) ** 2).mean()), X, mean)
    assert drops[2] == pytest.approx(y.var())
    assert (drops[[0, 1, 3]] == 0).all()
    assert X[0, 2, 1] != mean[2, 1]  # the tokens themselves were not touched


def test_relevance_of_tokens_comes_back_in_the_order_of_the_table():
    # Columns 0 and 2 are numerical, so their tokens stand first, behind the two registers.
    drops = np.array([9.0, 9.0, 0.1, 0.3, 0.2])
    np.testing.assert_array_equal(column_relevance(drops, (0, 2, 1), 2), [0.1, 0.2, 0.3])


def test_two_measures_of_relevance_are_compared_by_rank():
    probe, trees = np.array([0.1, 0.2, 0.9]), np.array([1.0, 2.0, 3.0])
    found = compare_relevance(["a", "b", "c"], probe, trees)
    assert found.spearman == pytest.approx(1)
    assert [row[0] for row in found.table().rows] == ["c", "b", "a"]
    assert compare_relevance(["a", "b", "c"], probe[::-1], trees).spearman == pytest.approx(-1)
    flat = compare_relevance(["a", "b", "c"], np.zeros(3), trees)
    assert math.isnan(flat.spearman)
    assert "Too little varies" in flat.table().notes[0]


def test_a_sample_of_rows_is_drawn_from_the_seed_and_ascends():
    rows = np.arange(100, 300)
    one, again, other = (sample_rows(rows, 50, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    assert set(one) < set(rows)
    assert (np.diff(one) > 0).all()
    np.testing.assert_array_equal(sample_rows(rows, 200), rows)


def test_the_mask_figure_marks_what_is_seen_and_what_is_asked():
    figure = mask_figure(
        ["age", "city"],
        ["31", "Lyon"],
        np.array([0, 2]),
        np.array([[1]]),
        registers=1,
    )
    [axes] = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["seen", "asked"]
    assert [text.get_text() for text in axes.get_xticklabels()] == [
        "[REG]",
        "age = 31",
        "city = Lyon",
    ]
    filled = {patch.get_xy() for patch in axes.patches if patch.get_facecolor()[3] > 0}
    assert filled == {(0, 0), (2, 0), (1, 1)}


def test_the_relevance_figure_starts_with_what_the_trees_need_most():
    figure = relevance_figure(
        compare_relevance([f"c{i}" for i in range(40)], np.zeros(40), np.arange(40.0))
    )
    first, second = figure.axes
    assert first.get_yticklabels()[0].get_text() == "c39"
    assert len(second.patches) == 30


@pytest.mark.parametrize(
    "make",
    [
        lambda: collapse_figure([{"step": 0, "health/signal": 0.1}, {"step": 1, "loss": 1.0}]),
        lambda: collapse_figure([]),
        lambda: similarity_figure(["a", "b"], np.array([[1, 0.2], [0.2, 1]])),
        lambda: token_variance_figure(["[REG]", "a"], {"untrained": [0.1, 0.0], "x": [1.0, 2.0]}),
    ],
)
def test_figures_are_drawn_of_little(make, tmp_path):
    figure = make()
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "figure.png")
    labels = [text.get_text() for axes in figure.axes for text in axes.get_yticklabels()]
    assert not any("mathdefault" in label for label in labels)
