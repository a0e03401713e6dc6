"""Critical times: against 50-digit arithmetic, quadrature, integration, and the paper's limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad, solve_ivp

import jepa_linear as jl
from jepa_core.errors import ConfigError, DataError
from jepa_linear import Status
from jepa_linear.brackets import scaled_bracket

OBJECTIVES = ("jepa", "mae")

# L, lambda, rho, t* JEPA, t* MAE, plateau JEPA, plateau MAE at a0 = 0.1, p = 0.5.
REFERENCE = [
    (1, 1, 1, 10.1972245773, 1.74825378073, 1, 1),
    (1, 1, 0.5, 8.77258872224, 1.39660400472, 0.5, 0.7071067812),
    (1, 0.5, 0.9, 20.1765367593, 3.39002408106, 0.9, 0.9486832981),
    (1, 2, 1.5, 5.21301910987, 0.976333504319, 1.5, 1.224744871),
    (1, 3, 0.25, 1.20728681081, 0.34657359028, 0.25, 0.5),
    (2, 1, 1, 786.109817787, 17.753504689, 1, 1),
    (2, 1, 0.5, 929.236992174, 17.1621815025, 0.25, 0.6299605249),
    (2, 0.5, 0.9, 1602.76429369, 35.3449022323, 0.81, 0.9321697518),
    (2, 2, 1.5, 371.159528389, 9.01978821908, 2.25, 1.310370697),
    (2, 3, 0.25, 373.894375446, 5.46990906123, 0.0625, 0.396850263),
    (3, 1, 1, 68678.6781782, 148.715923962, 1, 1),
    (3, 1, 0.5, 80559.852402, 148.175254162, 0.125, 0.5946035575),
    (3, 0.5, 0.9, 139633.100744, 297.291219283, 0.729, 0.9240210865),
    (3, 3, 0.25, 38807.3897999, 49.1339469739, 0.015625, 0.3535533906),
    (5, 1, 1, 626146209.84, 12499.9745241, 1, 1),
    (5, 1, 0.5, 717941578.059, 12499.9492445, 0.03125, 0.5612310242),
    (8, 1, 1, 5.97378432403e14, 11428573.0422, 1, 1),
    (8, 1, 0.5, 6.7906091913e14, 11428574.1837, 0.00390625, 0.5400298694),
]

# L; t*(rho = .5) / t*(rho = 1) for JEPA, MAE at a0 = .05, .1, .3, and for JEPA at eps = 1e-4.
# None: the JEPA mode starts past half its plateau.
DEPTH_RATIOS = [
    (1, 0.97374053, 0.85774909, 0.8602918, 0.79885656, None, 0.34380857, 1.000582),
    (2, 1.0891208, 0.9845393, 1.1820702, 0.96669259, 0.70085987, 0.84459137, 1.0156875),
    (3, 1.0727582, 0.99911576, 1.1729965, 0.99636441, 1.4614575, 0.95663972, 1.0667468),
    (4, 1.0664965, 0.99997061, 1.1552263, 0.99975355, 1.848667, 0.98994287, 1.1552263),
    (6, 1.0619306, 1.0000001, 1.1418465, 1.0000028, 1.9897085, 1.0001872, 1.4641079),
    (8, 1.0600624, 1.0, 1.1367349, 1.0000001, 1.9343933, 1.0001572, 2.0928931),
    (12, 1.0583992, 1.0, 1.1323202, 1.0, 1.8544437, 1.000004, 2.5454741),
    (16, 1.0576331, 1.0, 1.1303223, 1.0, 1.8216517, 1.0000001, None),
]


@pytest.fixture(scope="module")
def golden(data):
    with np.load(data("linear") / "golden_critical_times.npz") as stored:
        return dict(stored)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_times_and_statuses_equal_50_digit_arithmetic(golden, objective):
    lam, rho, depth = golden["lam"], golden["rho"], golden["L"]
    setting = {"p": golden["p"], "objective": objective}
    status = jl.status(lam, rho, depth, layer_scale=golden["layer_scale"], **setting)
    np.testing.assert_array_equal(status, golden[f"status_{objective}"])
    time = jl.critical_time(lam, rho, depth, layer_scale=golden["layer_scale"], **setting)
    np.testing.assert_allclose(time, golden[f"t_{objective}"], rtol=1e-12)
    # eps^(1/L) rounds: a mode that starts exactly at its plateau may fall on either side.
    clear = golden["layer_scale"] != rho
    time = jl.critical_time(lam, rho, depth, eps=golden["eps"], **setting)
    np.testing.assert_allclose(time[clear], golden[f"t_{objective}"][clear], rtol=1e-12)
    log_time = jl.critical_time(
        lam, rho, depth, layer_scale=golden["layer_scale"], log=True, **setting
    )
    grows = status == Status.GROWS
    np.testing.assert_allclose(log_time[grows], golden[f"log_t_{objective}"][grows], rtol=1e-13)
    plateau = jl.fixed_point(rho, depth, objective)
    np.testing.assert_allclose(plateau, golden[f"w_inf_{objective}"], rtol=1e-13)


def test_approximate_forms_equal_the_sum_of_the_theorem_and_the_leading_term(golden):
    lam, rho, depth, a0 = (golden[k] for k in ("lam", "rho", "L", "layer_scale"))
    power = jl.critical_time(lam, rho, depth, layer_scale=a0, form="power")
    np.testing.assert_allclose(power, golden["t_jepa_power_sum"], rtol=1e-12)
    for form in ("power", "leading"):
        mae = jl.critical_time(lam, rho, depth, layer_scale=a0, form=form, objective="mae")
        np.testing.assert_allclose(mae, golden["t_mae_leading"], rtol=1e-12)
    leading = jl.critical_time(lam, rho, depth, layer_scale=a0, form="leading")
    expected = depth / lam * a0 ** -(2 * depth - 1) / (2 * depth - 1)
    np.testing.assert_allclose(leading, expected, rtol=1e-12)
    np.testing.assert_allclose(
        jl.critical_time(lam, rho, depth, layer_scale=a0, form="power", log=True),
        np.log(power),
        rtol=1e-12,
    )


@pytest.mark.parametrize(("L", "lam", "rho", "jepa", "mae", "end_jepa", "end_mae"), REFERENCE)
def test_reference_table(L, lam, rho, jepa, mae, end_jepa, end_mae):
    assert jl.critical_time(lam, rho, L, layer_scale=0.1) == pytest.approx(jepa, rel=5e-12)
    assert jl.critical_time(lam, rho, L, eps=0.1**L, objective="mae") == pytest.approx(
        mae, rel=1e-11
    )
    assert jl.fixed_point(rho, L) == pytest.approx(end_jepa, rel=1e-9)
    assert jl.fixed_point(rho, L, "mae") == pytest.approx(end_mae, rel=1e-9)


@pytest.mark.parametrize("row", DEPTH_RATIOS, ids=lambda row: f"L={row[0]}")
def test_depth_at_fixed_layer_scale_and_at_fixed_eps_are_different_pictures(row):
    L, *values, at_eps = row

    def ratio(objective, **scale):
        strong, weak = jl.critical_time(
            np.ones(2), np.array([1.0, 0.5]), L, objective=objective, **scale
        )
        return weak / strong

    for scale, jepa, mae in zip((0.05, 0.1, 0.3), values[::2], values[1::2], strict=True):
        assert ratio("mae", layer_scale=scale) == pytest.approx(mae, rel=1e-7)
        if jepa is None:
            assert jl.status(1, 0.5, L, layer_scale=scale) == Status.STARTS_PAST
        else:
            assert ratio("jepa", layer_scale=scale) == pytest.approx(jepa, rel=1e-7)
    if at_eps is None:
        assert jl.status(1, 0.5, L, eps=1e-4) == Status.SUPPRESSED
    else:
        assert ratio("jepa", eps=1e-4) == pytest.approx(at_eps, rel=5e-7)


@pytest.mark.parametrize(
    ("L", "a0", "jepa", "mae"),
    [
        (2, 0.1, 0.802478, 1.043263),
        (3, 0.1, 0.792787, 1.004662),
        (3, 0.2, 0.619186, 1.021287),
        (5, 0.2, 0.575213, 1.000178),
        (5, 0.3, 0.432571, 1.002036),
        (8, 0.3, 0.320807, 0.999794),
    ],
)
def test_between_the_two_boundaries_the_orders_are_inverted(L, a0, jepa, mae):
    boundary = {
        o: jl.inversion_boundary(0.4, 0.9, L, objective=o, layer_scale=a0) for o in OBJECTIVES
    }
    assert boundary["jepa"] == pytest.approx(jepa, abs=5.1e-7)
    assert boundary["mae"] == pytest.approx(mae, abs=5.1e-7)
    # Mode 1 has the smaller lambda, between the boundaries, and the larger rho.
    lam, rho = np.array([1.0, (jepa + mae) / 2]), np.array([0.4, 0.9])
    assert jl.order(lam, rho, L, layer_scale=a0).tolist() == [1, 0]
    assert jl.order(lam, rho, L, layer_scale=a0, objective="mae").tolist() == [0, 1]


@pytest.mark.parametrize(
    ("L", "jepa", "mae"),
    [
        (2, [850.416793, 978.144202, 1046.745743], [18.568334, 18.065454, 16.902064]),
        (
            4,
            [6959893.682, 7870768.136, 15067356.166],
            [1402.796938, 1402.512416, 1401.692701],
        ),
    ],
)
def test_temporal_example_slow_and_clean_first_for_jepa_last_for_mae(L, jepa, mae):
    model = jl.temporal_model([0.95, 0.5, 0.95], [1, 1.9, 1], [0.1, 0, 4])
    np.testing.assert_allclose(model.lam, 0.95, rtol=1e-14)
    np.testing.assert_allclose(model.rho, [0.863636, 0.5, 0.19], atol=5e-7)
    times = {
        o: jl.critical_time(model.lam, model.rho, L, layer_scale=0.1, objective=o)
        for o in OBJECTIVES
    }
    np.testing.assert_allclose(times["jepa"], jepa, rtol=1e-9)
    np.testing.assert_allclose(times["mae"], mae, rtol=5e-8)


@pytest.mark.parametrize(
    ("L", "rho", "a0", "jepa", "mae"),
    [
        (1, 0.8, 0.05, 0.02146369, 0.21496150),
        (2, 0.8, 0.1, -0.21542109, 0.04639667),
        (2, 0.5, 0.1, -0.30962067, 0.05589613),
        (4, 0.5, 0.25, -1.08768465, 0.00943494),
        (8, 0.5, 0.25, -1.19409093, -0.00009105),
    ],
)
@pytest.mark.parametrize("level", [{}, {"level": "absolute", "w1": None}])
def test_sensitivity_to_rho_is_the_slope_of_ln_t(L, rho, a0, jepa, mae, level):
    for objective, expected in (("jepa", jepa), ("mae", mae)):
        setting = {"layer_scale": a0, "objective": objective, **level}
        if level:
            setting["w1"] = 0.3 * float(jl.fixed_point(rho, L, objective)) + 0.7 * a0**L
        found = jl.sensitivity(1.7, rho, L, **setting)
        if not level:
            assert found == pytest.approx(expected, abs=5.1e-9)
        step = 1e-5
        ends = [rho * math.exp(-step), rho * math.exp(step)]
        low, high = jl.critical_time(1.7, np.array(ends), L, log=True, **setting)
        assert found == pytest.approx((high - low) / (2 * step), abs=1e-8)


def test_an_absolute_level_is_the_same_for_all_modes():
    setting = {"layer_scale": 0.1, "level": "absolute", "w1": 0.3}
    assert jl.critical_time(1, 0.8, 2, **setting) == pytest.approx(819.6168431165, rel=1e-12)
    # The same w as the plateau's fraction p = .3 / .64.
    assert jl.critical_time(1, 0.8, 2, layer_scale=0.1, p=0.3 / 0.64) == pytest.approx(
        819.6168431165, rel=1e-12
    )
    # rho^2 = .25 is below the level: never reached, though the mode grows.
    assert jl.critical_time(1, 0.5, 2, **setting) == math.inf
    assert jl.status(1, 0.5, 2, **setting) == Status.GROWS
    lam, rho = np.array([5.0, 0.1, 1.0, 9.0]), np.array([0.5, 0.8, 0.9, 0.05])
    # After those that arrive, before those that decay.
    assert jl.order(lam, rho, 2, **setting).tolist() == [2, 1, 0, 3]


def test_the_default_level_is_half_the_largest_plateau_and_above_the_start():
    rho = np.array([0.8, 0.3, -0.4])
    assert jl.default_level(rho, 2, layer_scale=0.1) == pytest.approx(0.4**2)
    assert jl.default_level(rho, 2, layer_scale=0.1, objective="mae") == pytest.approx(
        (0.8 ** (1 / 3) / 2) ** 2
    )
    assert jl.default_level(rho, 2, layer_scale=0.5) == pytest.approx((1.05 * 0.5) ** 2)


modes = st.fixed_dictionaries(
    {
        "L": st.integers(1, 7),
        "lam": st.floats(0.05, 20),
        "rho": st.floats(0.05, 3),
        "start": st.floats(0.02, 0.9),  # a0 over the plateau
        "p": st.floats(0.01, 0.99),
    }
)


def _setting(mode, objective):
    limit = mode["rho"] if objective == "jepa" else mode["rho"] ** (1 / (mode["L"] + 1))
    return {"layer_scale": mode["start"] * limit, "p": mode["p"], "objective": objective}


@pytest.mark.parametrize("objective", OBJECTIVES)
@given(mode=modes)
def test_the_critical_time_is_the_integral_of_the_modal_equation(objective, mode):
    L, lam, rho = mode["L"], mode["lam"], mode["rho"]
    setting = _setting(mode, objective)
    time = jl.critical_time(lam, rho, L, **setting)
    end = mode["p"] ** (1 / L) * setting["layer_scale"] / mode["start"]
    if end <= setting["layer_scale"]:
        assert time == 0
        return

    def slowness(u):  # d tau / d ln a
        a = math.exp(u)
        if objective == "jepa":
            return L / (lam * a ** (2 * L - 1) * (1 - a / rho))
        return L / (lam * a ** (L - 1) * (1 - a ** (L + 1) / rho))

    expected, _ = quad(
        slowness, math.log(setting["layer_scale"]), math.log(end), epsabs=0, epsrel=1e-12, limit=200
    )
    assert time == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=25)
@given(mode=modes, start=st.floats(0.2, 0.9), L=st.integers(1, 4))
def test_the_critical_time_is_where_the_integrator_crosses(objective, mode, start, L):
    # Deeper or from lower an explicit integrator is lost: t cannot resolve the rise.
    mode = {**mode, "start": start, "L": L}
    lam, rho = mode["lam"], mode["rho"]
    setting = _setting(mode, objective)
    time = jl.critical_time(lam, rho, L, **setting)
    if not 0 < time < math.inf:
        return
    plateau = jl.fixed_point(rho, L, objective)

    def slope(t, u):  # of ln w, over time / t*
        w = math.exp(u[0])
        return [time * float(jl.rate(w, lam, rho, L, objective)) / w]

    found = solve_ivp(
        slope, (0, 1), [L * math.log(setting["layer_scale"])], "DOP853", rtol=1e-10, atol=1e-12
    )
    # At t* the integrator is as far along as its tolerance lets it be.
    arrived = math.exp(found.y[0, -1]) / plateau
    assert jl.critical_time(
        lam, rho, L, **{**setting, "p": min(arrived, 1 - 1e-12)}
    ) == pytest.approx(time, rel=1e-6)


@given(mode=modes, factor=st.floats(0.01, 100))
def test_the_critical_time_is_inversely_proportional_to_lambda(mode, factor):
    for objective in OBJECTIVES:
        setting = _setting(mode, objective)
        one = jl.critical_time(mode["lam"], mode["rho"], mode["L"], **setting)
        other = jl.critical_time(factor * mode["lam"], mode["rho"], mode["L"], **setting)
        assert other * factor == pytest.approx(one, rel=1e-13)


@given(mode=modes, p=st.floats(0.01, 0.99))
def test_the_critical_time_increases_with_the_fraction(mode, p):
    for objective in OBJECTIVES:
        setting = _setting(mode, objective)
        early, late = jl.critical_time(
            mode["lam"], mode["rho"], mode["L"], **{**setting, "p": np.sort([p, mode["p"]])}
        )
        assert early <= late
        if early > 0 and abs(p - mode["p"]) > 1e-6:
            assert early < late


@given(mode=modes)
def test_the_logarithm_is_that_of_the_plain_form(mode):
    for objective in OBJECTIVES:
        setting = _setting(mode, objective)
        time = jl.critical_time(mode["lam"], mode["rho"], mode["L"], **setting)
        log_time = jl.critical_time(mode["lam"], mode["rho"], mode["L"], log=True, **setting)
        assert log_time == (pytest.approx(math.log(time), abs=1e-12) if time else -math.inf)


def test_the_logarithm_is_finite_where_the_time_is_beyond_float64():
    deep = {"layer_scale": 1e-3, "objective": "jepa"}
    assert jl.critical_time(1, 0.5, 60, **deep) == math.inf
    log_time = jl.critical_time(1, 0.5, 60, log=True, **deep)
    leading = math.log(60) + 119 * math.log(1e3) - math.log(119)
    assert leading < log_time < leading + 0.01


def test_a_bracket_over_a_short_stretch_keeps_its_digits():
    # F(s1) - F(s0) by subtraction would lose twelve digits here.
    s0, step = 0.3, 1e-12
    s1 = s0 + step
    for objective, power, rate in (("jepa", 5, 1 / (s0**6 * (1 - s0))), ("mae", 2, None)):
        rate = rate or 1 / (s0**3 * (1 - s0**4))
        found = scaled_bracket(3, objective, np.array(s0), np.array(s1), np.array(1 - s1))
        assert found == pytest.approx(s0**power * rate * (s1 - s0), rel=1e-9)


# --- what becomes of a mode


@pytest.mark.parametrize(
    ("lam", "rho", "a0", "objective", "status", "time"),
    [
        (1.0, 0.8, 0.1, "jepa", Status.GROWS, None),
        (1.0, 0.5, 0.4, "jepa", Status.STARTS_PAST, 0.0),
        (1.0, 0.5, 0.5, "jepa", Status.SUPPRESSED, math.inf),
        (1e6, 0.1, 0.11, "jepa", Status.SUPPRESSED, math.inf),
        (1e6, 0.1, 0.11, "mae", Status.GROWS, None),
        (1.0, 0.001, 0.11, "mae", Status.SUPPRESSED, math.inf),
        (-1.0, -0.5, 0.1, "jepa", Status.DEAD, math.inf),
        (-1.0, -0.5, 0.1, "mae", Status.DEAD, math.inf),
        (0.0, math.nan, 0.1, "jepa", Status.ABSENT, math.nan),
        (0.0, 0.0, 0.1, "jepa", Status.ABSENT, math.nan),
        (1.0, 1.5, 0.1, "jepa", Status.GROWS, None),
    ],
)
def test_every_status(lam, rho, a0, objective, status, time):
    assert jl.status(lam, rho, 2, layer_scale=a0, objective=objective) == status
    found = jl.critical_time(lam, rho, 2, layer_scale=a0, objective=objective)
    if time is None:
        assert 0 < found < math.inf
    else:
        np.testing.assert_equal(float(found), time)


def test_a_mode_without_covariance_but_with_variance_is_dead():
    assert jl.status(0.0, 0.0, 2, layer_scale=0.1, sigma2=1.0) == Status.DEAD
    assert jl.critical_time(0.0, 0.0, 2, layer_scale=0.1, sigma2=1.0) == math.inf
    assert jl.status(0.0, 0.0, 2, layer_scale=0.1, sigma2=0.0) == Status.ABSENT


def test_the_order_puts_what_grows_first_and_what_is_not_there_last():
    #              absent   dead  suppressed  past  suppressed  slow  fast
    lam = np.array([0.0, -1.0, 9.0, 3.0, 5.0, 0.1, 1.0])
    rho = np.array([np.nan, -0.5, 0.1, 0.25, 0.15, 0.6, 0.6])
    setting = {"layer_scale": 0.2}
    assert jl.status(lam, rho, 2, **setting).tolist() == [4, 3, 2, 1, 2, 0, 0]
    assert jl.order(lam, rho, 2, **setting).tolist() == [6, 5, 3, 4, 2, 1, 0]
    ranks = jl.ranks(lam, rho, 2, **setting)
    np.testing.assert_array_equal(ranks, [np.nan, 6, 5, 3, 4, 2, 1])


def test_ties_share_their_average_rank():
    rho = np.array([0.6, 0.6, 0.8, 0.6])
    lam = np.array([1.0, 1.0 + 1e-12, 1.0, 1.0 + 1e-6])
    np.testing.assert_array_equal(jl.ranks(lam, rho, 3, layer_scale=0.1), [3.5, 3.5, 1, 2])
    batch = jl.ranks(np.stack([lam, lam[::-1]]), np.stack([rho, rho[::-1]]), 3, layer_scale=0.1)
    np.testing.assert_array_equal(batch, [[3.5, 3.5, 1, 2], [2, 1, 3.5, 3.5]])
    dead = jl.ranks(np.array([-1.0, -2.0, 1.0]), np.array([-0.5, -0.5, 0.5]), 2, layer_scale=0.1)
    np.testing.assert_array_equal(dead, [2.5, 2.5, 1])


def test_a_predictor_of_the_other_sign_learns_the_mirror_image():
    lam, rho = np.array([1.0, -0.7]), np.array([0.8, -0.6])
    plain = jl.critical_time(abs(lam), abs(rho), 3, layer_scale=0.1)
    flipped = jl.critical_time(lam, rho, 3, layer_scale=0.1, predictor_sign=-1)
    np.testing.assert_array_equal(flipped, [np.inf, plain[1]])
    oracle = jl.critical_time(lam, rho, 3, layer_scale=0.1, predictor_sign="oracle")
    np.testing.assert_array_equal(oracle, plain)
    assert jl.status(lam, rho, 3, layer_scale=0.1, predictor_sign=-1).tolist() == [3, 0]


# --- limits


def test_depth_at_fixed_layer_scale_saturates_from_above():
    for a0, limit in ((0.05, 1.0556), (0.1, 1.125), (0.3, 1.75)):
        assert jl.deep_ratio(1.0, 0.5, a0) == pytest.approx(limit, abs=5e-5)
        log_times = jl.critical_time(
            1.0, np.array([[1.0], [0.5]]), np.arange(20, 3000, 300), layer_scale=a0, log=True
        )
        ratio = np.exp(log_times[1] - log_times[0])
        assert np.all(np.diff(ratio) < 0)
        assert ratio[-1] == pytest.approx(jl.deep_ratio(1.0, 0.5, a0), rel=1e-3)
        mae = jl.critical_time(
            1.0, np.array([1.0, 0.5]), 400, layer_scale=a0, log=True, objective="mae"
        )
        assert mae[1] == pytest.approx(mae[0], abs=1e-12)


def test_depth_at_fixed_eps_suppresses_the_weaker_mode():
    assert jl.suppression_depth(0.5, 1e-4) == pytest.approx(13.29, abs=5e-3)
    depth = np.arange(1, 20)
    status = jl.status(1.0, 0.5, depth, eps=1e-4)
    np.testing.assert_array_equal(status == Status.SUPPRESSED, depth > 13.29)
    assert jl.suppression_depth(np.array([1.0, 1.2]), 1e-4).tolist() == [math.inf] * 2


def test_the_bias_vanishes_relatively_with_the_scale():
    for L in (2, 3, 5):
        for eps in (1e-9**L, 1e-12**L):
            log_times = jl.critical_time(1.0, np.array([1.0, 0.5]), L, eps=eps, log=True)
            gap = math.expm1(log_times[1] - log_times[0])
            assert gap == pytest.approx(jl.small_scale_gap(1.0, 0.5, L, eps), rel=1e-4)


def test_no_rho_is_in_the_leading_term_of_a_masked_autoencoder():
    rho = np.array([0.2, 0.5, 1.0, 2.0])
    spread = []
    for a0 in (1e-2, 1e-3, 1e-4):
        exact = jl.critical_time(1.0, rho, 4, layer_scale=a0, objective="mae")
        leading = jl.critical_time(1.0, rho, 4, layer_scale=a0, objective="mae", form="leading")
        assert len(set(leading.tolist())) == 1
        spread.append(np.abs(exact - leading).max())
    assert max(spread) < 10  # while the times themselves grow a thousandfold at each step


# --- shapes, kinds, errors


def test_all_arguments_broadcast_with_depth_as_an_axis():
    lam, rho = np.linspace(0.5, 2, 3), np.linspace(0.3, 0.9, 4)[:, None]
    depth, a0 = np.array([1, 2, 5, 3])[:, None, None], np.full((2, 1, 1, 1), 0.1)
    times = jl.critical_time(lam, rho, depth, layer_scale=a0)
    assert times.shape == (2, 4, 4, 3)
    one = jl.critical_time(float(lam[1]), float(rho[2, 0]), 5, layer_scale=0.1)
    assert times[1, 2, 2, 1] == one
    assert isinstance(one, float)
    assert jl.critical_time(np.zeros((0, 3)), np.zeros((0, 3)), 2, layer_scale=0.1).shape == (0, 3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_torch_equals_numpy(golden, objective):
    names = ("lam", "rho", "L", "layer_scale", "p")
    arrays = {name: golden[name] for name in names}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    for function in (jl.critical_time, jl.status, jl.sensitivity):
        found, expected = (
            function(
                v["lam"], v["rho"], v["L"], layer_scale=v["layer_scale"], p=v["p"],
                objective=objective,
            )
            for v in (tensors, arrays)
        )  # fmt: skip
        assert isinstance(found, torch.Tensor)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-14)
    ranked = jl.ranks(tensors["lam"], tensors["rho"], 3, layer_scale=0.1)
    np.testing.assert_array_equal(
        ranked.numpy(), jl.ranks(arrays["lam"], arrays["rho"], 3, layer_scale=0.1)
    )
    assert torch.equal(
        jl.order(tensors["lam"], tensors["rho"], 3, layer_scale=0.1),
        torch.from_numpy(jl.order(arrays["lam"], arrays["rho"], 3, layer_scale=0.1)),
    )


def test_single_precision_is_computed_in_double():
    found = jl.critical_time(torch.tensor(0.5), torch.tensor(0.5), 2, layer_scale=0.125)
    assert found.dtype == torch.float64
    assert float(found) == jl.critical_time(0.5, 0.5, 2, layer_scale=0.125)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"depth": 0}, "depth"),
        ({"depth": 1.5}, "depth"),
        ({"depth": "two"}, "depth"),
        ({"layer_scale": None}, "layer_scale"),
        ({"layer_scale": 0.0}, "layer_scale"),
        ({"layer_scale": -0.1}, "layer_scale"),
        ({"layer_scale": math.nan}, "layer_scale"),
        ({"layer_scale": None, "eps": 0.0}, "eps"),
        ({"eps": 0.02}, "eps"),
        ({"p": 0.0}, "p"),
        ({"p": 1.0}, "p"),
        ({"p": math.nan}, "p"),
        ({"objective": "byol"}, "objective"),
        ({"form": "rough"}, "form"),
        ({"level": "half"}, "level"),
        ({"level": "absolute"}, "w1"),
        ({"w1": 0.2}, "w1"),
        ({"predictor_sign": 2}, "predictor_sign"),
    ],
)
def test_settings_out_of_range_are_named(change, place):
    setting = {"depth": 2, "layer_scale": 0.1, **change}
    with pytest.raises(ConfigError) as error:
        jl.critical_time(1.0, 0.5, **setting)
    assert error.value.where == place


@pytest.mark.parametrize(
    ("lam", "rho", "sigma2"),
    [
        (1.0, -0.5, None),
        (-1.0, 0.5, None),
        (1.0, 0.0, None),
        (0.0, 0.5, None),
        (1.0, math.nan, None),
        (math.nan, 0.5, None),
        (math.inf, 0.5, None),
        (1.0, math.inf, None),
        (1.0, 0.5, 2.1),
        (1.0, 0.5, -2.0),
        (1j, 0.5, None),
        ("one", 0.5, None),
    ],
)
def test_modes_that_cannot_be_are_refused(lam, rho, sigma2):
    with pytest.raises(DataError):
        jl.critical_time(lam, rho, 2, layer_scale=0.1, sigma2=sigma2)


def test_both_scales_may_be_given_where_they_agree():
    assert jl.critical_time(1, 0.5, 2, layer_scale=0.1, eps=0.01) == jl.critical_time(
        1, 0.5, 2, layer_scale=0.1
    )
