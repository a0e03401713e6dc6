"""The analysis: orders, what is left out of them, how sure they are, and the words for it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jepa_core.errors import ConfigError, DataError
from jepa_linear.analysis import analyse
from jepa_linear.data.known import from_covariances, from_modes
from jepa_linear.data.views import Masks, lagged, masked, paired
from jepa_linear.experiments.natural import patch_pairs
from jepa_linear.generative import temporal_model, temporal_pairs, temporal_series
from jepa_linear.modal import modes
from jepa_linear.presets import AnalysisConfig
from jepa_linear.sampling import order_probability
from jepa_linear.simulate import simulate
from jepa_linear.starts import random_rotation
from jepa_linear.tables import directions_table, order_table, summary_table, to_json
from jepa_linear.times import Status
from jepa_linear.uncertainty import held_out_rows
from jepa_linear.verdict import advice, left_out, summary, verdict

PLATEAU = AnalysisConfig(depth=(2, 4), layer_scale=0.1, level="plateau")
# Slow and clean, fast, slow and noisy: equal covariance, rho 0.86, 0.5 and 0.19.
SIGNALS = (np.array([0.95, 0.5, 0.95]), np.array([1.0, 1.9, 1.0]), np.array([0.1, 0.0, 4.0]))


def exact() -> object:
    model = temporal_model(*SIGNALS)
    return from_covariances(model.Sxx, model.Syx, model.Syy, n=20_000)


def test_a_jepa_learns_slow_and_clean_first_and_reconstruction_the_reverse():
    found = analyse(exact(), PLATEAU)
    two, four = found.orders
    np.testing.assert_allclose(four.jepa.time, [6959893.682, 7870768.136, 15067356.166], rtol=1e-9)
    np.testing.assert_allclose(two.mae.time, [18.568334, 18.065454, 16.902064], rtol=1e-6)
    for one in found.orders:
        assert one.jepa.order.tolist() == [0, 1, 2]
        assert one.mae.order.tolist() == [2, 1, 0]
        assert one.tau == -1


def test_samples_give_the_order_of_the_model():
    x, y = temporal_pairs(*SIGNALS, 20_000, seed=5)
    found = analyse(paired(x, y), PLATEAU)
    assert found.held_out == 6000
    assert found.orders[1].jepa.order.tolist() == [0, 1, 2]
    assert (found.orders[1].jepa.next_probability[:2] > 0.95).all()
    assert (found.rho_low < [0.864, 0.5, 0.19]).all()
    assert (found.rho_high > [0.864, 0.5, 0.19]).all()


@pytest.mark.parametrize(("name", "case"), [("china", "c02"), ("flower", "c03")])
def test_photographs_are_as_the_golden_arrays_say(data, name, case):
    golden = np.load(data("linear") / "golden_images.npz")
    found = analyse(paired(*patch_pairs(name)), PLATEAU, holdout=0, resamples=0)
    assert found.views.n == golden[f"{case}_n"]
    # JPEG decoders differ by a grey level.
    np.testing.assert_allclose(found.rho, golden[f"{case}_rho"], rtol=1e-3, atol=1e-4)
    for measure in ("asymmetry", "commutator", "direction_condition"):
        assert getattr(found.modes, measure) == pytest.approx(
            float(golden[f"{case}_{measure}"]), rel=1e-2
        )
    taus = {"c02": (0.9879, 0.9919), "c03": (0.9798, 0.9597)}[case]
    assert [one.tau for one in found.orders] == pytest.approx(taus, abs=2e-3)
    assert int((found.lam > 0).sum()) == 32
    assert "hardly changes what is learned first" in found.verdict
    assert "do not trust" in found.trust


def test_suppressed_and_dead_directions_come_last_and_starting_past_after_growing():
    views = from_modes([1.0, 5.0, 0.2, -1.0, 3.0], [0.9, 0.05, 0.5, -0.4, 0.12])
    found = analyse(views, AnalysisConfig(depth=(2,), layer_scale=0.1, level="plateau"))
    (one,) = found.orders
    by_rho = {round(float(r), 2): i for i, r in enumerate(found.rho)}
    order = [by_rho[r] for r in (0.9, 0.5, 0.12, 0.05, -0.4)]
    assert one.jepa.order.tolist() == order
    assert one.jepa.status[order].tolist() == [
        Status.GROWS, Status.GROWS, Status.STARTS_PAST, Status.SUPPRESSED, Status.DEAD
    ]  # fmt: skip
    assert not one.jepa.grows[order[2:]].any()


def test_what_a_jepa_never_learns_is_said_where_reconstruction_begins_with_it():
    views = from_modes([1.0, 0.9, 0.8, 5.0], [0.9, 0.8, 0.7, 0.05], n=10_000)
    found = analyse(views, AnalysisConfig(depth=(2,), layer_scale=0.1, level="plateau"))
    (one,) = found.orders
    assert left_out(one).tolist() == [3]
    assert "of reconstruction is one that the JEPA never grows" in found.verdict
    assert one.jepa.never[3] > 0.9
    assert "tau 1.00" in found.verdict


def test_the_default_level_is_half_of_the_largest_plateau():
    views = from_modes([1.0, 1.0, 1.0], [0.9, 0.5, 0.3])
    found = analyse(views, AnalysisConfig(depth=(2,), layer_scale=0.1))
    (one,) = found.orders
    assert one.jepa.reached == pytest.approx(0.45)
    assert np.isinf(one.jepa.time[2])
    assert one.jepa.order.tolist() == [0, 1, 2]
    given = analyse(views, AnalysisConfig(depth=(2,), layer_scale=0.1, reached=0.25)).orders[0]
    assert np.isfinite(given.jepa.time).all()
    low = analyse(from_modes([1.0], [0.12]), AnalysisConfig(depth=(2,), layer_scale=0.1))
    assert low.orders[0].jepa.reached == pytest.approx(0.105)


def test_directions_of_noise_look_predictable_only_on_the_rows_they_were_fitted_to():
    rng = np.random.default_rng(0)
    n, d = 120, 30
    shared = rng.standard_normal((n, 1)) * 0.8
    x, y = rng.standard_normal((2, n, d))
    x[:, :1] += shared
    y[:, :1] += shared
    found = analyse(paired(x, y), PLATEAU)
    assert found.modes.rho[1] > 0.25
    assert np.abs(found.rho[1:6]).mean() < 0.2
    assert any("chance" in words for words in found.warnings)


def test_standardising_uncorrelated_features_erases_the_difference():
    model = temporal_model(*SIGNALS)
    plain = analyse(from_covariances(model.Sxx, model.Syx, model.Syy), PLATEAU)
    same = analyse(from_covariances(model.Sxx, model.Syx, model.Syy, scale="std"), PLATEAU)
    assert [one.tau for one in plain.orders] == [-1, -1]
    assert [one.tau for one in same.orders] == [1, 1]


def test_one_factor_for_everything_changes_no_order(pairs):
    plain, scaled = (analyse(paired(*pairs, scale=scale), PLATEAU) for scale in ("none", "global"))
    for one, other in zip(plain.orders, scaled.orders, strict=True):
        for a, b in zip(one.sides(), other.sides(), strict=True):
            np.testing.assert_array_equal(a.order, b.order)
            ratio = a.time[a.grows] / b.time[a.grows]
            np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)


def test_a_rotation_of_both_views_changes_nothing(pairs):
    x, y = pairs
    turn = random_rotation(4, np.random.default_rng(1))
    plain, turned = (
        analyse(paired(a, b), PLATEAU, resamples=0) for a, b in ((x, y), (x @ turn, y @ turn))
    )
    np.testing.assert_allclose(turned.rho, plain.rho, rtol=1e-9)
    np.testing.assert_allclose(turned.orders[0].jepa.time, plain.orders[0].jepa.time, rtol=1e-8)


def test_resamples_agree_with_the_formula_for_gaussian_pairs():
    lam, rho, n = np.array([1.0, 1.0]), np.array([0.8, 0.5]), 800
    sigma2 = lam / rho
    views = from_covariances(np.diag(sigma2), np.diag(lam), np.diag(sigma2), n=n)
    config = AnalysisConfig(depth=(2,), layer_scale=0.1, level="plateau")
    expected = order_probability(lam, rho, n, 2, layer_scale=0.1)[0, 1]
    by_formula = analyse(views, config, resamples=2000).orders[0].jepa.next_probability[0]
    assert by_formula == pytest.approx(expected, abs=0.04)
    rng = np.random.default_rng(0)
    found = []
    for seed in range(12):
        z, e = rng.standard_normal((2, n, 2))
        x = np.sqrt(sigma2) * z
        y = rho * x + np.sqrt(sigma2 * (1 - rho**2)) * e
        one = analyse(paired(x, y), config, holdout=0, seed=seed).orders[0].jepa
        found.append(one.next_probability[one.order[0]] if one.order[0] == 0 else 0)
    assert 0.5 < np.mean(found) <= 1


def test_groups_are_held_out_and_drawn_whole():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 30)
    x = rng.standard_normal((600, 2)) + 3 * rng.standard_normal((20, 2))[groups]
    y = x + rng.standard_normal(x.shape)
    alone = analyse(paired(x, y), PLATEAU, holdout=0)
    together = analyse(paired(x, y, groups=groups), PLATEAU, holdout=0)
    assert "groups" in together.chance
    width = [(f.rho_high - f.rho_low).max() for f in (alone, together)]
    assert width[1] > width[0]
    views = paired(x, y, groups=groups)
    assert views.rows is not None
    out = held_out_rows(views.rows, 0.3, seed=0)
    assert out.sum() == 6 * 30
    assert not set(groups[out]) & set(groups[~out])


def test_a_series_is_resampled_in_blocks_and_its_end_held_out():
    found = analyse(lagged(temporal_series(*SIGNALS, 3000), 1), PLATEAU)
    assert "blocks of" in found.chance
    assert found.held_out == 900


def test_resamples_of_masked_rows_follow_the_model():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((400, 3)) * [2.0, 1.0, 0.5]
    for target in ("full", "complement", "independent"):
        views = masked(x, Masks(0.5, 0.1, target))
        found = analyse(views, PLATEAU, holdout=0, resamples=100)
        assert ((found.rho_low <= found.rho + 1e-12) & (found.rho <= found.rho_high + 1e-12)).all()


def test_nothing_is_said_about_chance_without_n():
    found = analyse(from_modes([1.0, 1.0, 1.0], [0.9, 0.6, 0.4]), PLATEAU)
    assert np.isnan(found.orders[0].jepa.next_probability).all()
    assert "nothing is known about chance" in advice(found)
    assert "how surely is not known" in verdict(found)


def test_inversions_name_their_probability():
    found = analyse(exact(), PLATEAU)
    one = found.orders[1]
    pair = {(p.first, p.second): p.probability for p in one.inversions}
    assert set(pair) == {(0, 1), (0, 2), (1, 2)}
    assert all(0 <= p <= 1 for p in pair.values())
    x, y = temporal_pairs(*SIGNALS, 200_000, seed=2)
    sure = analyse(paired(x, y), AnalysisConfig(depth=(2,), layer_scale=0.1, level="plateau"))
    assert "inverted beyond chance" in sure.verdict.lower()


def test_more_pairs_are_asked_for_where_the_order_is_unsure():
    few = analyse(paired(*temporal_pairs(*SIGNALS, 300, seed=1)), PLATEAU)
    many = analyse(paired(*temporal_pairs(*SIGNALS, 50_000, seed=1)), PLATEAU)
    assert "not enough" in advice(few)
    assert many.orders[1].jepa.needed < 50_000
    assert "for the JEPA (L = 2; enough)" in advice(many)


def test_one_layer_is_said_to_have_no_preference():
    assert "With one layer" in analyse(exact(), AnalysisConfig(depth=(1, 2))).verdict


def test_the_trust_rule_follows_the_condition_of_the_directions():
    def words(angle: float) -> str:
        V = np.array([[1.0, np.cos(angle)], [0.0, np.sin(angle)]])
        inverse = np.linalg.inv(V)
        Sxx = inverse.T @ np.diag([1.0, 1.0]) @ inverse
        return analyse(from_covariances(Sxx, inverse.T @ np.diag([0.9, 0.4]) @ inverse)).trust

    assert "good to about 10 %" in words(np.pi / 2)
    assert "order is fair" in words(np.pi / 4)
    assert "do not trust" in words(np.pi / 10)


def test_a_simulation_of_commuting_views_meets_the_prediction():
    model = temporal_model(*SIGNALS)
    found = modes(model.Sxx, model.Syx)
    for objective in ("jepa", "mae"):
        one = simulate(model.Sxx, model.Syx, found, 2, layer_scale=0.1, objective=objective)
        assert one.expected == 3
        assert one.tau == pytest.approx(1)
        assert one.error < 0.01


def test_a_simulation_of_photographs_is_as_rough_as_the_trust_rule_says(data):
    golden = np.load(data("linear") / "golden_images.npz")
    views = from_covariances(golden["c00_Sxx"], golden["c00_Syx"], scale="global")
    found = modes(views.Sxx, views.Syx)
    for depth, objective, tau, error in (
        (1, "jepa", 1.0, 0.09),
        (2, "jepa", 1.0, 0.08),
        (1, "mae", 0.9, 0.16),
        (2, "mae", 0.93, 0.35),
    ):
        one = simulate(views.Sxx, views.Syx, found, depth, layer_scale=0.3, objective=objective)
        assert one.tau == pytest.approx(tau, abs=0.06)
        assert one.error == pytest.approx(error, abs=0.03)


def test_what_takes_too_long_to_simulate_is_said():
    model = temporal_model(*SIGNALS)
    with pytest.raises(ConfigError, match="larger --layer-scale"):
        simulate(model.Sxx, model.Syx, modes(model.Sxx, model.Syx), 8, layer_scale=0.05, seconds=1)


def test_too_few_rows_to_hold_some_out():
    x, y = np.random.default_rng(0).standard_normal((2, 3, 2))
    with pytest.raises(DataError, match="too few to hold out"):
        analyse(paired(x, y))


def test_everything_found_is_json_and_fits_its_tables(pairs):
    for views in (
        paired(*pairs),
        from_modes([1.0, 1.0, -0.2, 3.0], [0.9, 0.5, -0.1, 0.05]),
        from_covariances(np.eye(2), np.zeros((2, 2))),
    ):
        found = analyse(views, AnalysisConfig(depth=(1, 2)))
        json.dumps(to_json(found), allow_nan=False)
        assert len(summary_table(found).rows) == 2
        assert len(directions_table(found).rows) == len(found.lam)
        table = order_table(found, found.orders[0])
        assert len(table.rows) == len(found.lam)
        steps = order_table(found, found.orders[1], lr=0.01)
        first = int(found.orders[1].jepa.order[0])
        if found.orders[1].jepa.grows[first]:
            time = found.orders[1].jepa.time[first]
            assert float(str(steps.rows[0][5])) == pytest.approx(time / (2 * 0.01), rel=1e-3)
        assert all(summary(found))
