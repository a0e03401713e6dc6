"""What an analysis says, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from jepa_linear.modal import Modes

if TYPE_CHECKING:
    from jepa_linear.analysis import Analysis
    from jepa_linear.orders import Inversion, Order
    from jepa_linear.simulate import Simulation

AGREES = 0.9
SURE = 0.95
_NAMED = 2  # inversions named in a sentence

_SAME = "on this data the choice of objective hardly changes what is learned first"
_ONE_LAYER = (
    "With one layer a JEPA does not prefer predictable directions at usable scales: that takes two."
)


def summary(found: Analysis, simulations: Sequence[Simulation] = ()) -> list[str]:
    """Paragraphs for the screen and the head of the report."""
    paragraphs = [verdict(found), *(f"Note: {words}" for words in found.warnings)]
    paragraphs.append(" ".join([trust(found.modes), *simulated(simulations)]))
    return [*paragraphs, advice(found), preparation(found)]


def verdict(found: Analysis) -> str:
    """Whether the two orders differ, and where, at every depth."""
    orders = found.orders
    if len(orders) > 1 and all(_agree(one) and not sure(one) for one in orders):
        taus = ", ".join(f"{one.tau:.2f} at L = {one.depth}" for one in orders)
        text = f"Order agrees (tau {taus}): {_SAME}."
    else:
        said: dict[str, list[int]] = {}
        for one in orders:
            said.setdefault(of_depth(found, one), []).append(one.depth)
        text = " ".join(
            f"L = {', '.join(map(str, depths))}: {words}." for words, depths in said.items()
        )
    return f"{text} {_ONE_LAYER}" if any(one.depth == 1 for one in orders) else text


def of_depth(found: Analysis, one: Order) -> str:
    """The verdict at one depth, without its full stop."""
    both = int((one.jepa.grows & one.mae.grows).sum())
    early = left_out(one)
    if early.size:
        first = int(early[np.argmin(one.mae.rank[early])])
        among = "is one" if early.size == 1 else f"are {early.size}"
        chance = one.jepa.never[first]
        likely = "" if np.isnan(chance) else f", P {chance:.2f}"
        text = (
            f"what comes first differs: among the first {_early(one)} of reconstruction {among} "
            f"that the JEPA {_never(found)} ({_name(found, first)} at place "
            f"{one.mae.rank[first]:g}{likely})"
        )
        if not np.isnan(one.tau):
            text += f"; the {both} that both learn have tau {one.tau:.2f}"
    elif np.isnan(one.tau):
        learned = "1 direction is" if both == 1 else f"{both or 'no'} directions are"
        text = f"{learned} learned by both objectives, too few to compare orders"
    elif _agree(one):
        text = f"order agrees (tau {one.tau:.2f}): {_SAME}"
    else:
        text = f"order differs (tau {one.tau:.2f})"
    return text + _inverted(found, one.inversions)


def sure(one: Order) -> list[Inversion]:
    """Inverted pairs that chance does not explain."""
    return [pair for pair in one.inversions if pair.probability > SURE]


def left_out(one: Order) -> Int[np.ndarray, " some"]:
    """Directions among the first of reconstruction that the JEPA never learns.

    The first: as many as both learn, and five at least.
    """
    never = np.isinf(one.jepa.time) & one.mae.grows & (one.mae.rank <= _early(one))
    return np.flatnonzero(never)


def _early(one: Order) -> int:
    return max(5, int((one.jepa.grows & one.mae.grows).sum()))


def _agree(one: Order) -> bool:
    return one.tau >= AGREES and not left_out(one).size


def _never(found: Analysis) -> str:
    return "never grows" if found.config.level == "plateau" else "never lifts to the same strength"


def _inverted(found: Analysis, pairs: Sequence[Inversion]) -> str:
    certain = [pair for pair in pairs if pair.probability > SURE]
    if certain:
        named = [
            f"the JEPA learns {_name(found, pair.first)} before {_name(found, pair.second)}, "
            f"reconstruction the reverse (P {pair.probability:.2f})"
            for pair in certain[:_NAMED]
        ]
        more = f"; {len(certain) - _NAMED} more such pairs" if len(certain) > _NAMED else ""
        return f". Inverted beyond chance: {'; '.join(named)}{more}"
    if not pairs:
        return ""
    count = "1 pair is" if len(pairs) == 1 else f"{len(pairs)} pairs are"
    if np.isnan(pairs[0].probability):
        return f"; {count} inverted, how surely is not known"
    return f"; {count} inverted, none with probability above {SURE:g}"


def trust(found: Modes) -> str:
    """How far the modal prediction can be believed: the condition of the directions tells."""
    condition = float(found.direction_condition)
    measures = (
        f"direction condition {condition:.2f}, commutator {float(found.commutator):.2g}, "
        f"asymmetry {float(found.asymmetry):.2g}"
    )
    if condition < 2:
        words = "predictions are good to about 10 %"
    elif condition <= 4:
        words = "the order is fair, the times are rough"
    else:
        words = "do not trust the predicted order without --simulate"
    if float(found.asymmetry) > 0.1:
        words += "; a good part of Syx is antisymmetric, which the prediction leaves out"
    return f"Trust: {words} ({measures})."


def simulated(found: Sequence[Simulation]) -> list[str]:
    """A sentence on how well the simulations met the prediction; none without simulations."""
    if not found:
        return []
    known = [one for one in found if not np.isnan(one.tau)]
    if not known:
        return ["Simulated: fewer than three directions arrive."]
    worst = min(known, key=lambda one: one.tau)
    off = 100 * max(one.error for one in known)
    text = (
        f"Simulated with whole matrices, {len(found)} runs: the order is the predicted one to tau "
        f"{worst.tau:.2f} or better (worst: {worst.objective.upper()}, L = {worst.depth}); times "
        f"are off by up to {off:.1f} % in the median."
    )
    return [text]


def advice(found: Analysis) -> str:
    """Whether the sample is large enough to believe the order of what comes first."""
    n = found.views.n
    used = found.held_out or n
    parts = []
    for name, words in (("jepa", "the JEPA"), ("mae", "reconstruction")):
        sides = [(one.depth, getattr(one, name).needed) for one in found.orders]
        known = [(needed, depth) for depth, needed in sides if np.isfinite(needed)]
        if known:
            needed, depth = max(known)
            verb = "enough" if used is not None and needed <= used else "not enough"
            parts.append(f"{_round(needed)} for {words} (L = {depth}; {verb})")
    if n is None or not parts:
        return f"Sample size: {found.chance}."
    held = f", {used:,} of them held out to measure on" if found.held_out else ""
    return (
        f"Sample size: there are {n:,} pairs{held}. To be 95 % sure of each step in the order of "
        f"the first five directions takes about {' and '.join(parts)}; steps of less than 1 % in "
        f"time are not counted. Probabilities by {found.chance}."
    )


def preparation(found: Analysis) -> str:
    """What was read, left out and scaled."""
    views = found.views
    parts = [f"Data: {views.kind}, {len(views.names)} features"]
    if views.n is not None:
        parts[0] += f", {views.n:,} pairs"
    if views.dropped:
        parts.append(f"{views.dropped} rows with missing or infinite values left out")
    if views.constant:
        listed = ", ".join(views.constant[:5]) + (", ..." if len(views.constant) > 5 else "")
        parts.append(f"left out for no variance: {listed}")
    parts.append(f"scaling: {views.scaling}")
    return f"{'; '.join(parts)}."


def _name(found: Analysis, mode: int) -> str:
    return found.names[mode]


def _round(n: float) -> str:
    if n < 10:
        return "10"
    size = 10 ** (len(str(int(n))) - 2)
    rounded = int(np.ceil(n / size) * size)
    return f"{rounded:,}" if rounded < 1e9 else f"{rounded:.1e}"
