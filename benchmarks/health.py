"""How early, and how often for nothing, do the health rules speak? Runs whose fate is known.

    uv run python -m benchmarks.health                     # everything, writes HEALTH.md
    uv run python -m benchmarks.health --series runs.jsonl # keep finished runs there, go on from it
    uv run python -m benchmarks.health --quick             # does it still run: nothing is written

Two studies, each with healthy recipes and with failures planted at a known step: the small ECG
recipe on 500 records of PTB-XL, and the same architecture on the 8x8 digits of scikit-learn.
Thresholds are chosen on some seeds and judged on others, and on the recorded toy runs.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import joblib
import numpy as np

from benchmarks.health_rules import (
    CANDIDATES,
    CHOOSING,
    RULES,
    Rule,
    Run,
    alarm,
    either,
    first_above,
    harmed,
    looks,
    sound,
    spoilt,
    threshold,
)
from benchmarks.health_runs import DATA, FAILURES, ROOT, data_folder, groups
from benchmarks.health_runs import run as trained
from benchmarks.machine import machine
from jepa_core.health import Candidate, choose_checkpoint, regret

# --- tables


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def spoken(runs: Sequence[Run], rule: Rule) -> str:
    """In how many of the runs the rule speaks."""
    steps = [rule(run) for run in runs]
    if None in steps or not runs:
        return ""
    return f"{sum(step >= 0 for step in steps if step is not None)}/{len(runs)}"


def found(runs: Sequence[Run], rule: Rule) -> str:
    """Failures found, the median delay in % of the run, and how often it spoke too early."""
    pairs = [(rule(run), run) for run in runs]
    if not runs or any(step is None for step, _ in pairs):
        return ""
    late = [
        (step - run["onset"]) / run["total"]
        for step, run in pairs
        if step is not None and step > run["onset"]
    ]
    early = len([step for step, run in pairs if step is not None and 0 <= step <= run["onset"]])
    words = f"{len(late)}/{len(runs)}" + (f", {100 * np.median(late):.0f} %" if late else "")
    return words + (f", {early} early" if early else "")


JUDGED = ("sound", "harmed", *FAILURES)


def judged(runs: Sequence[Run], rules: Mapping[str, Rule]) -> list[list[str]]:
    """One row a rule, one column a kind of run."""
    return [
        [name, spoken([r for r in runs if sound(r)], rule)]
        + [spoken([r for r in runs if spoilt(r)], rule)]
        + [found([r for r in runs if r["failure"] == failure], rule) for failure in FAILURES]
        for name, rule in rules.items()
    ]


def recipes(runs: Sequence[Run]) -> list[list[str]]:
    """One row a recipe: medians over its seeds, and in how many runs which rule speaks."""
    rows = []
    for recipe in dict.fromkeys(run["recipe"] for run in runs):
        group = [run for run in runs if run["recipe"] == recipe]
        start, least, most, end = np.transpose(
            [[_extremes(run, name) for name in EXTREMES] for run in group], (2, 1, 0)
        )
        start, least, most, end = (np.median(x, axis=1) for x in (start, least, most, end))
        probe, q, signal, rank, weights = range(len(EXTREMES))
        rows.append(
            [
                f"{recipe} ({len(group)})",
                " ".join(f"{x[probe]:.2f}" for x in (start, most, end)),
                " ".join(number(x[q]) for x in (start, least, end)),
                *(
                    " ".join(number(_ratio(x[name], start[name])) for x in (least, end))
                    for name in (signal, rank, weights)
                ),
                str(sum(harmed(run) for run in group)),
                *(spoken(group, rule).partition("/")[0] for rule in list(RULES.values())[:5]),
            ]
        )
    return rows


EXTREMES = ("probe", "unexplained", "signal", "rank", "weights")
RECIPES = (
    *("recipe (runs)", "probe: start, best, end", "`unexplained`: start, least, end"),
    *(f"`{name}` / start: least, end" for name in EXTREMES[2:]),
    *("harmed", *list(RULES)[:5]),
)


def _extremes(run: Run, name: str) -> list[float]:
    """Start, lowest, highest, end; NaN where it was not recorded."""
    x = run["series"].get(name, np.empty(0))
    x = x[~np.isnan(x)]
    return [x[0], x.min(), x.max(), x[-1]] if len(x) else [math.nan] * 4


def _ratio(x: float, start: float) -> float:
    """x / start; NaN where the start is rounding."""
    return x / start if start > 1e-12 else math.nan


def number(x: float) -> str:
    return "" if math.isnan(x) else f"{x:.2f}" if abs(x) < 100 else f"{x:.0e}"


HEEDED: dict[str, Callable[[Run], tuple[int, int]]] = {
    "alarm and rank warning": lambda run: (alarm(run).alarm_step, alarm(run).warning_step),
    "alarm alone": lambda run: (alarm(run).alarm_step, -1),
    "alarm, rank warning and notices": lambda run: (either(run), alarm(run).warning_step),
    "nothing (the lowest `unexplained`)": lambda run: (-1, -1),
}


def choices(runs: Sequence[Run]) -> list[list[str]]:
    """What the choice of a checkpoint costs the probe, heeding this or that: mean, largest."""
    kinds = (sound, spoilt, lambda run: bool(run["failure"]))
    groups = [[run for run in runs if kind(run)] for kind in kinds]
    rows = [[name, *(_regret(g, heeded) for g in groups)] for name, heeded in HEEDED.items()]
    return [*rows, ["the last checkpoint", *(_regret(group, None) for group in groups)]]


def _regret(runs: Sequence[Run], heeded: Callable[[Run], tuple[int, int]] | None) -> str:
    costs = []
    for run in runs:
        names = ("unexplained", "snr", "probe")
        probed = [look for look in looks(run, *names) if not math.isnan(look[-1])]
        candidates = [Candidate(int(step), q, snr) for step, q, snr, _ in probed]
        choice = choose_checkpoint(candidates, run["total"], *(heeded(run) if heeded else ()))
        scores = {int(step): probe for step, *_, probe in probed}
        costs.append(regret(choice.step if heeded else choice.latest, scores))
    return f"{np.mean(costs):.3f}, {np.max(costs):.3f}" if costs else ""


# --- everything


def toy_runs() -> list[Run]:
    """The 52 recorded runs on digits that the alarm is tested against; an MLP, long ago."""
    stored = np.load(data_folder("core") / "golden_alarm.npz")
    same = {"A3": "A2", "B2": "B", "E2": "E"}  # the same failure in another setting
    runs = []
    for name in stored["names"].tolist():
        recipe, seed = name.split("/")
        onset, kind = int(stored[f"{name}/onset"]), recipe.partition("_")[0]
        series = {
            key.removeprefix(f"{name}/"): stored[key].astype(np.float64)
            for key in stored.files
            if key.startswith(f"{name}/") and stored[key].ndim
        }
        runs.append(
            {
                **{"study": "toy", "recipe": recipe, "seed": int(seed), "series": series},
                **{"failure": same.get(kind, kind) if onset >= 0 else "", "onset": onset},
                "total": int(series["step"][-1]),
            }
        )
    return runs


def report(runs: Sequence[Run], toys: Sequence[Run]) -> str:
    """HEALTH.md."""
    described = {k: v for k, v in machine(("scikit-learn",)).items() if k != "load"}
    where = "; ".join([time.strftime("%Y-%m-%d"), *described.values(), "one thread a run."])
    lines = [
        "# The health rules on runs whose fate is known",
        "",
        f"*Written by `uv run python -m benchmarks.health`, never by hand. {where}*",
        "",
        *METHOD.strip().splitlines(),
        "",
        *(f"- {letter}: {words}" for letter, words in FAILURES.items()),
        "",
        *READING.strip().splitlines(),
        "",
    ]
    studies = {name: [run for run in runs if run["study"] == name] for name in DATA}
    for name, chosen in {**studies, "toy": list(toys)}.items():
        lines += [f"## Rules: {name}, {len(chosen)} runs", ""]
        lines += table(("rule", *JUDGED), judged(chosen, RULES))
    choosing = [run for run in runs if run["seed"] in CHOOSING]
    judging = [run for run in runs if run["seed"] not in CHOOSING]
    bounds = {name: threshold(choosing, name) for name in CANDIDATES}
    rules: dict[str, Rule] = {
        f"{name}: x {math.exp(bound):.3g}": partial(first_above, candidate=name, bound=bound)
        for name, bound in bounds.items()
    }
    lines += ["## Candidates", "", *CANDIDATE_WORDS.strip().splitlines(), ""]
    for name, chosen in {"Judged on the other seeds": judging, "Judged on toy": list(toys)}.items():
        rows = [row for row in judged(chosen, rules) if any(row[1:])]
        lines += [f"### {name}", "", *table(("candidate: bound", *JUDGED), rows)]
    for name, chosen in studies.items():
        lines += [f"## Recipes: {name}", "", *table(RECIPES, recipes(chosen))]
    lines += ["## Which checkpoint", "", *CHOICE_WORDS.strip().splitlines(), ""]
    for name, chosen in {**studies, "toy": list(toys)}.items():
        head = (f"{name}: heeding", "sound", "harmed", "planted")
        lines += table(head, choices(chosen))
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="20 steps, one seed, nothing written")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--series", type=Path, help="finished runs as JSON lines, added to")
    given = parser.parse_args(arguments)
    runs: list[Run] = []
    if given.series and given.series.exists():
        runs = [json.loads(line) for line in given.series.read_text().splitlines()]
    names = {(run["study"], run["recipe"], run["seed"]) for run in runs}
    todo = [
        group
        for seed in range(1 if given.quick else given.seeds)
        for study in DATA
        for group in groups(study, seed, given.quick)
        if any((plan.study, plan.recipe, plan.seed) not in names for plan in group)
    ]
    results = joblib.Parallel(n_jobs=given.jobs, return_as="generator")(
        joblib.delayed(trained)(group) for group in todo
    )
    for i, some in enumerate(results, start=1):
        words = ", ".join(f"{one['study']} {one['recipe']} {one['seed']}" for one in some)
        print(f"[{i}/{len(todo)}] {words}", flush=True)
        runs += some
        if given.series:
            with given.series.open("a") as stream:
                stream.writelines(json.dumps(one) + "\n" for one in some)
    for one in runs:
        one["series"] = {name: np.array(x, np.float64) for name, x in one["series"].items()}
    text = report(runs, toy_runs())
    print(text)
    if not given.quick:
        (ROOT / "benchmarks" / "HEALTH.md").write_text(text, encoding="utf-8")


METHOD = """
## What was run

Two studies, 5 seeds each. **ecg**: the `nano` recipe shortened to 500 steps (20 tokens, dim 64, 3
blocks, batch 32, L1) on 500 records of PTB-XL at 100 Hz, folds 1-8 for training. **digits**: the
same code on scikit-learn's digits (16 patches of 2x2 pixels, dim 32, 2 blocks, batch 32, MSE, 500
steps), 1,200 images for training. In each, healthy recipes that differ from the default in one
thing, and failures planted in the default: A, A2, B and C from the start (watched for half the
run), D at 38 %, C2 at 42 %, E at 46 %, F at 50 %; up to there they are the default run of their
seed, to the bit. 51 looks a run (128 samples, 4 views of 64 of them) and 6 probes: ridge on
mean-pooled tokens of the target encoder, penalty by generalised cross-validation; macro-AUC of
five superclasses on folds 9 and 10 (136 records, error about .02), or accuracy on 597 images.
**toy**: the 52 recorded runs of a small MLP on digits that the alarm is tested against; norms of
weights and some other quantities were not recorded there.

A run without a plant is *harmed* when its probe ends more than .03 below the untrained encoder's,
else *sound*. A rule that speaks in a sound run is a false alarm; in a harmed one it may be right.
In the tables: runs in which the rule speaks, of all; for failures those found, the median delay
after the onset in % of the run (a look is 2 %), and how often it spoke too early. The failures:
"""

READING = """
## Reading

Of the tables below as of November 2026.

1. **In its first form the alarm's clause "`unexplained` above 3 after a tenth of the run" was
   wrong for short runs and for small initial weights.** All 14 alarms in runs without a plant
   come from it: in ecg 4 of 5 runs with 10 s crops and 300 steps (close to the recipe in which
   one was first seen) and 5 of 5 with EMA 0.9, in digits 5 of 5 with a patch map of std 0.02.
   There `unexplained` starts at 5, or at 300-500; it is high because it is still falling. Asking
   besides that it is above **twice its lowest since the second look**, as the alarm now does,
   removes all 14, loses no find in any study (A2 in ecg: 12 -> 14 %) and gives the 52 recorded
   runs the very same verdicts. The factor was set after seeing all seeds: 1.2 is enough on seeds
   0-2, but 2 of 5 runs with the small patch map rise by 1.3-1.4 over two looks at the end of the
   warm-up. Dropping the clause would leave D in digits later (26 -> 40 %) and in ecg unfound.
   What it gives up: a predictor stuck at 5 raises no alarm, only the note *not learning yet*.
2. **E, a lost stop-gradient, is seen after 4-6 % of the run** (the alarm: 6-10 %, in toy 20 %) by
   `unexplained` above 1.2 times its own lowest, twice in a row (*relapse*): 14 of 14 in three
   studies. As soon as the target moves with the predictor, what the predictor knew is worth less;
   the variance dies later. The bound that seeds 0-2 give is 1.16. It speaks in 0 of 38 sound runs
   of ecg, 2 of 47 of digits (the two of point 1), 1 of 30 of toy (weight decay 5: a mild D), and
   in none of 30 harmed ones.
3. **D, erosion by weight decay, is seen after 4-6 %** by the norm of the encoder's matrices below
   0.8 of its largest (*erosion*): 10 of 10, and in none of 115 runs without a plant, ten times
   the weight decay included (lowest .91). Relapse sees 9 of those 10 and 2 of 2 in toy. The alarm
   sees 3 of 5 in ecg at 34 %, 5 of 5 in digits at 26 %, none in toy. Over 10^5 steps norms may
   halve in a healthy run: not tried.
4. **Alarm or a notice**: of 80 planted failures in ecg and digits 75 are found, 55 by the alarm
   alone. The 5 missed are C2 in ecg, where nothing has happened yet that a fixed batch could
   show: the encoder ends as the default does. A reader that repeats itself is to be caught in the
   batch (variance over its samples), not here.
5. **The rank warning does not carry over to ecg**: 16 of 38 sound runs and 14 of 22 harmed ones
   are warned, since the rank falls to .6 of its start in the default itself. It is the first to
   see B (8 %) and F (6 %). Heeding it in the choice of a checkpoint costs sound ecg runs .005 on
   average and wins .014 in planted digits runs: weak evidence. In the choice a checkpoint that
   leaves a tenth less unexplained overrules it; without that, full-length healthy runs on ECGs
   were held back to their first checkpoint.
6. **Nothing else came close**, each at the bound that keeps it silent on sound runs of seeds 0-2:
   snr, falling signal, ranks, share of the position and training loss are late or see some
   failures only; drift between looks (CKA) and the gradient's norm are too uneven in healthy
   runs. The distance of online from target encoder is exactly 0 from the first look after E, by
   the way E is planted; it would also speak of every recipe without EMA.
7. **Weak points.** 500 steps are too few for ecg: in 3 of 5 seeds the default is harmed (1,250
   steps: above the untrained encoder in 4 of 5). "Sound" means that nothing broke, not that it
   learned. In digits A and E even *raise* the probe while 99.9 % of the variance goes: a
   standardised linear probe does not mind the scale. Not tried: long runs, dim above 64, other
   data, fewer looks.

## What became of it

The alarm has the new clause, and two notices stand beside it. They change neither the alarm nor the
choice of a checkpoint (heeding them there wins next to nothing, last section): they tell the person
who watches where to look, 2 to 28 % of the run before the alarm does.
"""

CANDIDATE_WORDS = """
One number a look, from what was seen so far, larger is worse; it speaks when two looks in a row
are above the bound. The bound is a tenth (of the logarithm) above what sound runs of seeds 0-2 of
both studies reach, so that all have the same footing: no false alarm on those seeds. *Usual*: the
median of the five looks before.
"""

CHOICE_WORDS = """
Best probe of the run minus the probe of the chosen checkpoint, of six a run: mean, largest.
"""


if __name__ == "__main__":
    main()
