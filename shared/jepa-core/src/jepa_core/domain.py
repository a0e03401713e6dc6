"""What a domain package plugs into the `jepa` command.

A package declares an entry point in the group `jepa.domains` whose value is a `Domain`. The module
that holds it imports nothing but this one, so that `jepa --help` costs next to nothing: each verb
names the function that does the work as text, and that module is imported when the verb runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from jepa_core.config import Range, check


@dataclass(frozen=True)
class Verb:
    """One verb of a domain.

    Parameters
    ----------
    name
        The word a user types; `data build` is a verb of two words.
    summary
        One line for the list of verbs.
    target
        `module:Class` of a frozen dataclass whose fields are the flags and whose `__call__` does
        the work; its docstring is the help text.
    presets
        `module:NAME` of a mapping from names to values of the verb's field `config`, or empty.
        The flag `--preset NAME` (the verb's field `preset`) then sets the defaults of that field.
    """

    name: str
    summary: str
    target: str
    presets: str = ""


@dataclass(frozen=True)
class Domain:
    """A domain: its name on the command line, what it is for, and its verbs in the order shown."""

    name: str
    summary: str
    verbs: tuple[Verb, ...]


@dataclass(frozen=True)
class Machine:
    """Flags that mean the same in every verb of every domain."""

    seed: Annotated[int, Range(ge=0, lt=2**63)] = 0
    """Seed of every draw."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes the best there is."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 is autocast; weights and optimiser state stay float32."""
    threads: Annotated[int, Range(ge=0)] = 0
    """Compute threads; 0 leaves it to the libraries."""

    def __post_init__(self) -> None:
        check(self)
