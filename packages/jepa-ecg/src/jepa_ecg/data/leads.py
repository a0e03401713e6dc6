"""Lead names, voltage units, and putting the leads of a record in the order that is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32

from jepa_ecg.data.errors import ECGFormatError

Fill = Literal["zero"] | None

# Millivolts per unit; names are casefolded, which also makes one letter of the two micro signs.
_MILLIVOLTS = {"mv": 1.0, "uv": 1e-3, "μv": 1e-3, "v": 1e3, "nv": 1e-6}

# The limb leads as combinations of I and II (Einthoven, Goldberger).
_DERIVED = {
    "iii": (("i", -1.0), ("ii", 1.0)),
    "avr": (("i", -0.5), ("ii", -0.5)),
    "avl": (("i", 1.0), ("ii", -0.5)),
    "avf": (("i", -0.5), ("ii", 1.0)),
}


@lru_cache(maxsize=64)
def millivolts(units: str) -> float | None:
    """Millivolts in one `units`; None when it is no voltage."""
    return _MILLIVOLTS.get(units.casefold())


@dataclass(frozen=True)
class LeadPlan:
    """Which columns make up the leads asked for.

    Attributes
    ----------
    leads
        Names as asked for.
    terms
        For every lead the (column, factor) pairs it is the sum of; none = filled with zeros.
    """

    leads: tuple[str, ...]
    terms: tuple[tuple[tuple[int, float], ...], ...]

    @cached_property
    def columns(self) -> tuple[int, ...]:
        """Columns of the record that are used, ascending."""
        return tuple(sorted({column for term in self.terms for column, _ in term}))

    @cached_property
    def order(self) -> list[int] | None:
        """The column of every lead; None when some are computed or filled."""
        if any(len(term) != 1 for term in self.terms):
            return None
        return [term[0][0] for term in self.terms]

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """One line for every lead that is not in the record."""
        notes = []
        for lead, term in zip(self.leads, self.terms, strict=True):
            if not term:
                notes.append(f"lead {lead} is not in the record; filled with zeros")
            elif len(term) > 1:
                notes.append(f"lead {lead} is not in the record; computed from I and II")
        return tuple(notes)

    def apply(self, signal: Float[np.ndarray, "time columns"]) -> Float32[np.ndarray, "time leads"]:
        """The leads, from all columns of the record in mV."""
        if self.order is not None:
            if self.order == list(range(signal.shape[1])):
                return np.asarray(signal, np.float32)
            return signal[:, self.order].astype(np.float32, order="C", copy=False)
        out = np.zeros((len(signal), len(self.leads)), np.float32)
        for lead, term in enumerate(self.terms):
            for column, factor in term:
                out[:, lead] += np.float32(factor) * signal[:, column]
        return out


def plan_leads(
    names: Sequence[str],
    leads: Sequence[str] | None,
    *,
    derive: bool = False,
    fill: Fill = None,
    file: object = "",
) -> LeadPlan:
    """Find the leads asked for among the names of a record, ignoring case.

    Parameters
    ----------
    names
        Of the record's columns.
    leads
        Wanted, in this order; None = all columns as they are.
    derive
        Compute missing III, aVR, aVL, aVF from I and II.
    fill
        "zero" fills a lead that is not there with zeros.
    file
        For the error.

    Raises
    ------
    ECGFormatError
        A lead is not there, or a name is not unique.
    """
    plan, doubled, missing = _plan(tuple(names), None if leads is None else tuple(leads), derive)
    if doubled:
        raise ECGFormatError(
            f"several signals are named {', '.join(doubled)}", file=file, field="description"
        )
    if missing and fill != "zero":
        raise ECGFormatError(
            f"there is no lead {', '.join(missing)}; there are {', '.join(names)}",
            file=file,
            remedy="leave the lead out, or give --derive (limb leads) or --fill zero",
        )
    return plan


# All records of a database ask the same question.
@lru_cache(maxsize=64)
def _plan(
    names: tuple[str, ...], leads: tuple[str, ...] | None, derive: bool
) -> tuple[LeadPlan, list[str], list[str]]:
    folded = [name.casefold() for name in names]
    wanted = names if leads is None else leads
    used = {lead.casefold() for lead in wanted}
    doubled = [name for name, n in Counter(folded).items() if n > 1 and name in used]
    if leads is None:
        plan = LeadPlan(names, tuple([((column, 1.0),) for column in range(len(names))]))
        return plan, doubled, []
    at = {name: column for column, name in enumerate(folded)}
    terms: list[tuple[tuple[int, float], ...]] = []
    missing = []
    for lead in wanted:
        name = lead.casefold()
        parts = _DERIVED.get(name, ()) if derive else ()
        if name in at:
            terms.append(((at[name], 1.0),))
        elif parts and all(part in at for part, _ in parts):
            terms.append(tuple([(at[part], factor) for part, factor in parts]))
        else:
            terms.append(())
            missing.append(lead)
    return LeadPlan(wanted, tuple(terms)), doubled, missing
