"""The alarm is a pure function of the health series, and it finds the planted collapses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jepa_core.health import (
    AlarmState,
    Candidate,
    choose_checkpoint,
    regret,
    update,
    verdict,
)


def _watch(
    signal: list[float],
    unexplained: list[float],
    rank: list[float] | None = None,
    state: AlarmState | None = None,
    first: int = 0,
    total: int = 100,
) -> AlarmState:
    """One evaluation every two steps."""
    state = state or AlarmState()
    ranks = rank or [10.0] * len(signal)
    for i, values in enumerate(zip(signal, unexplained, ranks, strict=True), start=first):
        state = update(state, 2 * i, total, *values)
    return state


def test_all_recorded_runs_get_their_alarm_reason_and_warning(
    data: Callable[[str], Path],
) -> None:
    golden = np.load(data("core") / "golden_alarm.npz")
    assert len(golden["names"]) == 52
    for name in golden["names"]:
        run = {
            key: golden[f"{name}/{key}"]
            for key in ("step", "signal", "unexplained", "rank", "alarm_step", "reason")
        }
        state = AlarmState()
        for i, step in enumerate(run["step"].tolist()):
            series = (float(run[key][i]) for key in ("signal", "unexplained", "rank"))
            state = update(state, step, int(run["step"][-1]), *series)
            # What a checkpoint stores must lose nothing, wherever the run is interrupted.
            state = AlarmState.from_dict(json.loads(json.dumps(state.to_dict(), allow_nan=False)))
        found = verdict(state)
        assert found.alarm_step == run["alarm_step"], name
        assert found.reason == run["reason"], name
        assert found.warning_step == golden[f"{name}/warning_step"], name


def test_the_rule_takes_checkpoints_that_lose_little_on_recorded_runs(
    data: Callable[[str], Path],
) -> None:
    golden = np.load(data("core") / "golden_alarm.npz")
    losses = {"chosen": [], "last": []}  # type: dict[str, list[float]]
    for name in golden["names"]:
        probe, step = golden[f"{name}/probe"], golden[f"{name}/step"]
        probes = {int(s): float(p) for s, p in zip(step, probe, strict=True) if np.isfinite(p)}
        candidates = [
            Candidate(int(s), float(q), float(r))
            for s, q, r in zip(
                step, golden[f"{name}/unexplained"], golden[f"{name}/snr"], strict=True
            )
            if int(s) in probes
        ]
        choice = choose_checkpoint(
            candidates,
            int(step[-1]),
            int(golden[f"{name}/alarm_step"]),
            int(golden[f"{name}/warning_step"]),
        )
        losses["chosen"].append(regret(choice.step, probes))
        losses["last"].append(regret(choice.latest, probes))
    assert np.mean(losses["chosen"]) < 0.5 * np.mean(losses["last"])


def test_one_bad_evaluation_raises_no_alarm() -> None:
    state = _watch([1.0, 1e-12, 1.0, 1.0], [2.0, 0.9, 0.9, 0.9])
    assert verdict(state).alarm_step == -1


def test_the_alarm_is_raised_at_the_second_constant_evaluation_and_stays() -> None:
    state = _watch([1.0, 0.5, 1e-4, 1e-4, 1.0], [2.0, 0.5, 0.5, 0.5, 0.5])
    found = verdict(state)
    assert (found.alarm_step, found.reason) == (6, "const")
    assert "does not" not in found.advice


def test_two_different_complaints_in_a_row_are_no_alarm() -> None:
    # constant, then lost: patience counts evaluations of the same kind
    state = _watch([1.0, 1.0, 1e-4, 1.0], [2.0, 0.5, 0.5, 1.5])
    assert verdict(state).alarm_step == -1


@pytest.mark.parametrize("signal", [math.nan, math.inf])
def test_a_value_that_is_not_finite_alarms_at_once(signal: float) -> None:
    found = verdict(_watch([1.0, signal], [2.0, 1.0]))
    assert (found.alarm_step, found.reason) == (2, "nonfinite")
    assert verdict(_watch([1.0], [signal])).reason == "nonfinite"


def test_a_signal_of_one_per_cent_is_healthy_while_something_is_explained() -> None:
    assert verdict(_watch([1.0, 5e-3, 5e-3], [2.0, 0.5, 0.5])).reason == ""
    assert verdict(_watch([1.0, 5e-3, 5e-3], [2.0, 0.7, 0.7])).reason == "const"


def test_a_signal_of_a_thousandth_is_dead_whatever_is_explained() -> None:
    assert verdict(_watch([1.0, 1.1e-3, 1.1e-3], [2.0, 0.1, 0.1])).reason == ""
    assert verdict(_watch([1.0, 0.9e-3, 0.9e-3], [2.0, 0.1, 0.1])).reason == "const"


def test_the_untrained_predictor_sets_no_record() -> None:
    # were evaluation 0 to count, 0.5 would be the best and every later value above 1 a loss
    assert verdict(_watch([1.0] * 4, [0.5, 1.5, 1.5, 1.5])).reason == ""
    assert verdict(_watch([1.0] * 4, [2.0, 0.5, 1.5, 1.5])).reason == "lost"


def test_an_error_above_three_is_forgiven_in_the_first_tenth() -> None:
    risen = [2.0, 2.0, 5.0, 5.0, 5.0, 5.0, 5.0]
    assert verdict(_watch([1.0] * 5, risen[:5])).reason == ""
    found = verdict(_watch([1.0] * 7, risen))
    assert (found.reason, found.alarm_step) == ("lost", 12)


def test_a_falling_rank_warns_at_the_third_evaluation() -> None:
    calm = [1.0] * 6
    falling = _watch(calm, [2.0, *[0.5] * 5], [5.0, 10.0, 5.9, 5.9, 5.9, 5.9])
    assert verdict(falling).warning_step == 8
    assert "weight decay" in verdict(falling).advice
    steady = _watch(calm, [2.0, *[0.5] * 5], [5.0, 10.0, 5.9, 6.1, 5.9, 5.9])
    assert verdict(steady).warning_step == -1


def test_a_run_that_explains_nothing_is_not_learning_after_a_quarter() -> None:
    early = _watch([1.0] * 12, [1.1] * 12)
    late = _watch([1.0] * 2, [1.1] * 2, state=early, first=12)
    assert (verdict(early).note, verdict(late).note) == ("", "not learning yet")
    learned = _watch([1.0], [0.9], state=late, first=14)
    assert verdict(learned).note == ""


def test_advice_for_a_constant_run_depends_on_when_it_died() -> None:
    early = _watch([1.0, 1e-5, 1e-5], [1.0, 0.5, 0.5])
    late = _watch([1.0] * 20 + [1e-5] * 2, [0.5] * 22)
    assert "data" in verdict(early).advice
    assert "EMA" in verdict(late).advice


def test_update_leaves_its_argument_alone() -> None:
    state = AlarmState()
    update(state, 0, 10, 1.0, 2.0, 3.0)
    assert state == AlarmState()


def test_the_choice_keeps_five_per_cent_away_from_the_alarm() -> None:
    run = [Candidate(step, q) for step, q in ((0, 0.1), (50, 0.4), (90, 0.38), (95, 0.2))]
    assert choose_checkpoint(run, 100).step == 95
    assert choose_checkpoint(run, 100, alarm_step=95).step == 90
    assert choose_checkpoint(run, 100, alarm_step=94).step == 50
    assert choose_checkpoint(run, 100, alarm_step=99, warning_step=94).step == 50
    assert choose_checkpoint(run, 100, alarm_step=95).latest == 95


def test_step_zero_is_taken_only_when_nothing_else_is_left() -> None:
    run = [Candidate(0, 0.1), Candidate(50, 0.4)]
    assert choose_checkpoint(run, 100).step == 50
    assert choose_checkpoint(run, 100, alarm_step=20).step == 0
    assert choose_checkpoint(run[1:], 100, alarm_step=20).step == 50


def test_the_choice_by_snr_ignores_what_was_not_measured() -> None:
    run = [Candidate(10, 0.5, 3.0), Candidate(20, 0.4, math.nan), Candidate(30, math.nan, 2.0)]
    choice = choose_checkpoint(run, 100)
    assert (choice.step, choice.by_snr, choice.latest) == (20, 10, 30)


def test_choosing_from_no_checkpoint_is_an_error() -> None:
    with pytest.raises(ValueError, match="no checkpoint"):
        choose_checkpoint([], 100)


def test_regret_is_the_distance_to_the_best_measured_probe() -> None:
    assert regret(2, {1: 0.9, 2: 0.7, 3: math.nan}) == pytest.approx(0.2)


def test_a_slow_start_is_no_alarm_while_it_comes_down() -> None:
    state = AlarmState()
    for step, value in enumerate([9.0, 8.0, 7.0, 6.0, 5.0, 4.5, 4.0, 3.5, 3.2, 3.1]):
        state = update(state, 10 * step, 90, 0.2, value, 20.0)
    assert verdict(state).reason == ""
    for step in (100, 110):
        state = update(state, step, 200, 0.2, 7.0, 20.0)
    assert verdict(state).reason == "lost"


def test_a_rank_warning_holds_the_choice_back_unless_more_is_explained_later() -> None:
    early, little_better = Candidate(100, 0.9), Candidate(500, 0.85)
    assert choose_checkpoint([early, little_better], 500, warning_step=200).step == 100
    better = Candidate(500, 0.7)
    assert choose_checkpoint([early, better], 500, warning_step=200).step == 500
    assert choose_checkpoint([early, better], 500, alarm_step=200).step == 100


def noticed(unexplained: list[float], weights: list[float] | None = None) -> AlarmState:
    """One evaluation a step of a run whose features live."""
    state = AlarmState()
    for step, value in enumerate(unexplained):
        norm = weights[step] if weights else math.nan
        state = update(state, step, 1000, 1.0, value, 10.0, norm)
    return state


def test_a_relapse_is_noticed_at_the_second_evaluation_and_kept() -> None:
    assert noticed([5.0, 1.0, 0.5, 0.61]).relapse_step == -1
    assert noticed([5.0, 1.0, 0.5, 0.61, 0.5, 0.61]).relapse_step == -1
    assert noticed([5.0, 1.0, 0.5, 0.61, 0.61, 0.4]).relapse_step == 4
    assert noticed([5.0, 1.0, 0.5, 0.59, 0.59, 0.59]).relapse_step == -1


def test_the_untrained_predictor_is_no_mark_to_fall_back_from() -> None:
    assert noticed([0.1, 1.0, 1.0, 1.0]).relapse_step == -1


def test_shrinking_weights_are_noticed_where_they_are_measured() -> None:
    flat = [1.0] * 5
    assert noticed(flat, [10.0, 12.0, 9.5, 9.5, 9.5]).erosion_step == 3
    assert noticed(flat, [10.0, 12.0, 9.7, 9.7, 9.7]).erosion_step == -1
    assert noticed(flat).erosion_step == -1


def test_weights_that_are_not_finite_leave_the_record_alone() -> None:
    state = noticed([5.0, 1.0, 0.9, 0.9], [2.0, math.nan, math.inf, 2.0])
    assert (state.largest_weights, state.erosion_step) == (2.0, -1)


def test_tokens_that_are_alike_are_noticed_at_the_second_evaluation() -> None:
    def seen(shares: list[float]) -> AlarmState:
        state = AlarmState()
        for step, share in enumerate(shares):
            state = update(state, step, 1000, 1.0, 0.9, 10.0, share_sample=share)
        return state

    assert seen([0.997, 0.5, 0.997, 0.5]).alike_step == -1
    assert seen([0.997, 0.998, 0.4]).alike_step == 1
    assert seen([0.985] * 5).alike_step == -1
    assert "tokens apart" in verdict(seen([0.997, 0.998])).advice
    assert not verdict(seen([0.997, 0.998])).reason


def test_notices_survive_json_and_go_on_from_there() -> None:
    state = noticed([5.0, 1.0, 2.0], [3.0, 2.0, 2.0])
    again = AlarmState.from_dict(json.loads(json.dumps(state.to_dict(), allow_nan=False)))
    assert again == state
    assert verdict(update(again, 3, 1000, 1.0, 2.0, 10.0, 2.0)).relapse_step == 3
