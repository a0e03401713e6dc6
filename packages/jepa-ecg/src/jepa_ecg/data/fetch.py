"""Public data sets by name: what `jepa ecg data fetch` downloads."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from jepa_core.download import Report
from jepa_core.download import fetch as fetch_files
from jepa_core.errors import ConfigError


@dataclass(frozen=True)
class PublicSet:
    """A data set that anyone may download.

    Attributes
    ----------
    base_url
        The folder that holds SHA256SUMS.txt.
    summary
        One line for a list of data sets.
    cite
        What a user of the data set cites.
    parts
        Folders that can be had alone, by name. The files beside them always come along, other
        folders never.
    """

    base_url: str
    summary: str
    cite: str
    parts: dict[str, str]


_CHALLENGE_SOURCES = (
    "chapman_shaoxing",
    "cpsc_2018",
    "cpsc_2018_extra",
    "georgia",
    "ningbo",
    "ptb",
    "ptb-xl",
    "st_petersburg_incart",
)

PUBLIC: dict[str, PublicSet] = {
    "ptb-xl": PublicSet(
        base_url="https://physionet.org/files/ptb-xl/1.0.3/",
        summary="21,799 records of 10 s with 71 labels, at 100 Hz and 500 Hz",
        cite="Wagner et al., Scientific Data 7, 154 (2020); doi:10.13026/kfzx-aw45",
        parts={name: f"{name}/" for name in ("records100", "records500")},
    ),
    "challenge-2021": PublicSet(
        base_url="https://physionet.org/files/challenge-2021/1.0.3/",
        summary="the PhysioNet/Computing in Cardiology Challenge 2021: eight sources",
        cite="Reyna et al., Computing in Cardiology 48 (2021); doi:10.13026/34va-7q14",
        parts={name: f"training/{name}/" for name in _CHALLENGE_SOURCES},
    ),
    "mimic-iv-ecg": PublicSet(
        base_url="https://physionet.org/files/mimic-iv-ecg/1.0/",
        summary="800,035 records of 10 s at 500 Hz; its parts are groups of patients",
        cite="Gow et al., PhysioNet (2023); doi:10.13026/4nqg-sb35",
        parts={f"p{group}": f"files/p{group}/" for group in range(1000, 2000)},
    ),
}
"""Name to data set; all are open to anyone, without an account."""


def fetch(
    name: str,
    folder: str | Path,
    *,
    select: tuple[str, ...] = (),
    base_url: str | None = None,
    jobs: int = 4,
    progress: bool = True,
) -> Report:
    """Download a public data set, or go on with a download that was stopped.

    Parameters
    ----------
    name
        A key of `PUBLIC`.
    folder
        Where to put the files, in the data set's own layout.
    select
        Parts to download; all of them when empty.
    base_url
        A mirror to take instead of the data set's own address.
    jobs, progress
        As in `jepa_core.download.fetch`.

    Raises
    ------
    ConfigError
        No such data set, or no such part of it.
    DataError, Interrupted
        As `jepa_core.download.fetch` does.
    """
    if name not in PUBLIC:
        raise ConfigError(f"no public data set called {name}", remedy=_allowed(name, PUBLIC))
    public = PUBLIC[name]
    for part in select:
        if part not in public.parts:
            remedy = _allowed(part, public.parts)
            raise ConfigError(f"{name} has no part called {part}", where="--select", remedy=remedy)
    wanted = tuple(public.parts[part] for part in select or public.parts)
    return fetch_files(
        base_url or public.base_url,
        folder,
        select=lambda path: "/" not in path or path.startswith(wanted),
        jobs=jobs,
        progress=progress,
    )


def _allowed(word: str, known: dict[str, PublicSet] | dict[str, str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    names = list(known)
    listed = names if len(names) <= 10 else [*names[:2], "...", names[-1]]
    return (f"did you mean {close[0]}? " if close else "") + f"allowed: {', '.join(listed)}"
