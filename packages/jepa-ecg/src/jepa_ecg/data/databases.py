"""The ten public databases of the paper: sampling rate, lead order, statistics, weights.

Numbers of Weimann & Conrad, "Self-Supervised Pre-Training with Joint-Embedding Predictive
Architecture Boosts ECG Classification Performance", arXiv 2410.13867, as used by their program.
Everything is in millivolt and in the lead order of the database's own files. Imports nothing
heavy: presets read the weights from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")

Values = tuple[float, ...]


@dataclass(frozen=True)
class Database:
    """What is known of a database as a whole.

    Attributes
    ----------
    fs
        Sampling rate in Hz.
    seconds
        Duration of a record, None where it varies.
    leads
        Names in file order.
    mean, std
        Per lead in mV, as used in pre-training (after the high-pass where `highpass`).
    weight
        Share of the draws in the paper's mixture of all databases; they sum to 1.
    highpass
        The paper removes the baseline wander of this database (0.5 Hz) before anything else.
    raw_mean, raw_std
        Statistics without that high-pass; only where `highpass`.
    official
        Name of the database whose statistics the authors' program uses instead, where it does.
    """

    fs: float
    seconds: float | None
    leads: tuple[str, ...]
    mean: Values
    std: Values
    weight: float
    highpass: bool = False
    raw_mean: Values | None = None
    raw_std: Values | None = None
    official: str | None = None

    def statistics(
        self, leads: Sequence[str] = LEADS, *, highpass: bool | None = None
    ) -> tuple[Values, Values] | None:
        """Mean and std per lead, in mV, in the order of `leads` (names regardless of case).

        Parameters
        ----------
        leads
            Wanted order.
        highpass
            Whether baseline wander is removed from the records before use; None = as in the paper.

        Returns
        -------
        None where nothing is known: a lead outside the twelve, or filtering that the published
        numbers do not cover.
        """
        mean, std = self.mean, self.std
        if highpass not in (None, self.highpass):
            if self.raw_mean is None or self.raw_std is None:
                return None
            mean, std = self.raw_mean, self.raw_std
        at = {lead.casefold(): i for i, lead in enumerate(self.leads)}
        if any(lead.casefold() not in at for lead in leads):
            return None
        rows = [at[lead.casefold()] for lead in leads]
        return tuple([mean[i] for i in rows]), tuple([std[i] for i in rows])


_AUGMENTED_UPPER = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")
_AVF_FIRST = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")
_ZERO = (0.0,) * 12

DATABASES: dict[str, Database] = {
    "mimic-iv-ecg": Database(
        fs=500,
        seconds=10,
        leads=_AVF_FIRST,
        mean=(
            0.023,
            0.015,
            -0.007,
            -0.019,
            0.004,
            0.014,
            -0.018,
            -0.004,
            0.002,
            0.017,
            0.022,
            0.022,
        ),
        std=(0.155, 0.158, 0.166, 0.133, 0.143, 0.141, 0.207, 0.282, 0.284, 0.253, 0.222, 0.197),
        weight=0.7,
    ),
    "code-15": Database(
        fs=400,
        seconds=10.24,
        leads=_AUGMENTED_UPPER,
        mean=_ZERO,
        std=(0.488, 0.45, 0.437, 0.416, 0.405, 0.37, 0.548, 0.639, 0.719, 0.695, 0.676, 0.639),
        weight=0.1,
        highpass=True,
        raw_mean=(
            0.053,
            -0.189,
            -0.242,
            0.068,
            0.148,
            -0.215,
            -0.255,
            -0.266,
            -0.226,
            -0.233,
            -0.219,
            -0.288,
        ),
        raw_std=(1.528, 2.657, 2.645, 1.718, 1.704, 2.538, 2.06, 2.116, 2.055, 1.968, 2.053, 2.315),
    ),
    "ptb-xl": Database(
        fs=500,
        seconds=10,
        leads=_AUGMENTED_UPPER,
        mean=(
            -0.002,
            -0.002,
            0.0,
            0.002,
            -0.001,
            -0.001,
            0.0,
            -0.001,
            -0.002,
            -0.001,
            -0.001,
            -0.001,
        ),
        std=(0.191, 0.166, 0.173, 0.142, 0.149, 0.147, 0.235, 0.338, 0.335, 0.299, 0.294, 0.242),
        weight=0.05,
    ),
    "chapman-shaoxing": Database(
        fs=500,
        seconds=10,
        leads=LEADS,
        mean=(0.002, 0.005, 0.003, -0.002, -0.002, 0.003, 0.0, 0.003, 0.004, 0.004, 0.003, -0.001),
        std=(0.14, 0.171, 0.145, 0.138, 0.114, 0.143, 0.218, 0.355, 0.366, 0.365, 0.332, 0.299),
        weight=0.009375,
    ),
    "ningbo": Database(
        fs=500,
        seconds=10,
        leads=LEADS,
        mean=(0.002, 0.004, 0.002, -0.001, -0.001, 0.002, 0.0, 0.003, 0.003, 0.004, 0.003, 0.0),
        std=(0.145, 0.179, 0.159, 0.142, 0.123, 0.153, 0.228, 0.368, 0.377, 0.394, 0.405, 0.444),
        weight=0.028125,
    ),
    "georgia": Database(
        fs=500,
        seconds=10,
        leads=LEADS,
        mean=(
            -0.003,
            -0.002,
            0.001,
            0.003,
            -0.002,
            -0.001,
            -0.004,
            -0.004,
            -0.003,
            -0.003,
            -0.003,
            -0.003,
        ),
        std=(0.157, 0.178, 0.164, 0.147, 0.134, 0.153, 0.213, 0.285, 0.272, 0.245, 0.224, 0.209),
        weight=0.0375,
    ),
    "cpsc": Database(
        fs=500,
        seconds=None,
        leads=LEADS,
        mean=_ZERO,
        std=(0.214, 0.236, 0.221, 0.209, 0.196, 0.214, 0.336, 0.417, 0.449, 0.483, 0.523, 0.561),
        weight=0.025,
    ),
    "cpsc-extra": Database(
        fs=500,
        seconds=None,
        leads=LEADS,
        mean=_ZERO,
        std=(0.182, 0.183, 0.184, 0.163, 0.164, 0.165, 0.288, 0.37, 0.371, 0.38, 0.375, 0.392),
        weight=0.0125,
        official="cpsc",
    ),
    "ptb": Database(
        fs=1000,
        seconds=None,
        leads=LEADS,
        mean=_ZERO,
        std=(0.642, 0.975, 0.953, 0.674, 0.651, 0.909, 0.643, 0.658, 0.668, 0.688, 0.648, 0.622),
        weight=0.01875,
    ),
    "st-petersburg": Database(
        fs=257,
        seconds=1800,
        leads=LEADS,
        mean=_ZERO,
        std=(0.132, 0.37, 0.353, 0.215, 0.191, 0.356, 0.234, 0.32, 0.328, 0.29, 0.317, 0.337),
        weight=0.01875,
        highpass=True,
        raw_mean=(
            -0.018,
            -0.041,
            0.004,
            -0.247,
            -0.337,
            -0.269,
            0.622,
            0.563,
            0.011,
            -1.321,
            -0.379,
            0.028,
        ),
        raw_std=(
            2.576,
            3.293,
            3.464,
            2.418,
            2.396,
            3.142,
            2.195,
            2.454,
            4.468,
            5.193,
            3.089,
            3.837,
        ),
    ),
}
