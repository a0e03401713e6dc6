"""The simulated heart: findings, beats, and the waves of a beat seen from eight electrodes.

Each beat is a sum of Gaussian waves (McSharry, Clifford, Tarassenko, Smith, "A dynamical model for
generating synthetic electrocardiogram signals", IEEE Trans. Biomed. Eng. 50, 2003) whose lead
amplitudes come from an axis in the frontal plane for I and II and from a profile across the chest
for V1..V6. Findings carry the SCP codes of PTB-XL and act on rhythm, conduction, voltage, ST
segment and T wave with a drawn severity; rate, axis, electrode position, voltage and T wave vary in
every heart, so that mild findings overlap with normal variation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int

from jepa_core import rng

RHYTHMS = ("AFIB", "SARRH", "SBRAD", "SR", "STACH")
DIAGNOSES = ("1AVB", "ASMI", "CLBBB", "CRBBB", "IMI", "ISC_", "LAFB", "LVH", "NDT", "NORM")
FORMS = ("INVT", "LVOLT", "PAC", "PVC", "STE_")  # NDT is a form as well
CODES = tuple(sorted(RHYTHMS + DIAGNOSES + FORMS))

# Shares before the exclusions of `_findings`; rates decide SR, STACH and SBRAD.
_PREVALENCE = {
    "AFIB": 0.12,
    "SARRH": 0.10,
    "1AVB": 0.09,
    "ASMI": 0.10,
    "CLBBB": 0.07,
    "CRBBB": 0.09,
    "IMI": 0.10,
    "ISC_": 0.10,
    "LAFB": 0.09,
    "LVH": 0.12,
    "NDT": 0.09,
    "INVT": 0.06,
    "LVOLT": 0.08,
    "PAC": 0.08,
    "PVC": 0.10,
    "STE_": 0.06,
}
# A left bundle branch block repolarises abnormally, so these cannot be read beside it.
_HIDDEN_BY_CLBBB = ("ASMI", "CRBBB", "IMI", "INVT", "ISC_", "LAFB", "LVH", "NDT", "STE_")

_RR_FLOOR = 0.4  # s


@dataclass(frozen=True)
class Draws:
    """Random numbers of a batch of records: a function of (seed, purpose, record id) each."""

    seed: int
    ids: Int[np.ndarray, " batch"]

    def uniform(self, purpose: str, n: int) -> Float64[np.ndarray, "batch {n}"]:
        """`n` numbers in [0, 1) for each record."""
        return rng.uniform64(rng.words(self.seed, f"simulate.{purpose}", self.ids, 0, 2 * n))

    def normal(self, purpose: str, n: int) -> Float64[np.ndarray, "batch {n}"]:
        """`n` standard normal numbers for each record."""
        even = n + n % 2
        words = rng.words(self.seed, f"simulate.{purpose}", self.ids, 0, 2 * even)
        return rng.normal(words)[:, :n]


@dataclass(frozen=True)
class _Wave:
    """One deflection: amplitude on I, II, V1..V6 (mV) and a Gaussian of time since the R peak."""

    amplitude: Float64[np.ndarray, "batch 8"]
    centre: Float64[np.ndarray, " batch"]
    before: Float64[np.ndarray, " batch"]  # standard deviation on the rising side, s
    after: Float64[np.ndarray, " batch"]


def _frontal(
    size: Float64[np.ndarray, " batch"], degrees: Float64[np.ndarray, " batch"]
) -> Float64[np.ndarray, "batch 2"]:
    """A frontal vector on the axes of I (0 degrees) and II (60 degrees)."""
    angle = np.radians(degrees)
    return np.stack([size * np.cos(angle), size * np.cos(angle - np.pi / 3)], axis=1)


class Hearts:
    """The hearts of a batch of records: what ails them and what eight electrodes see of them.

    Parameters
    ----------
    draws
        Their random numbers.
    severity
        Scale of the morphological findings.

    Attributes
    ----------
    findings
        For every code of `CODES`, which records carry it.
    rate
        Beats per minute.
    """

    def __init__(self, draws: Draws, severity: float) -> None:
        self.draws = draws
        self.rate = self._heart_rate()
        self.severity = severity
        self.strength = {
            code: severity * np.clip(np.exp(0.5 * z), 0.3, 2.2)
            for code, z in zip(CODES, draws.normal("severity", len(CODES)).T, strict=True)
        }
        self.findings = self._findings()

    def _heart_rate(self) -> Float64[np.ndarray, " batch"]:
        """Beats per minute: slow, ordinary and fast hearts whose ranges touch."""
        kind, place = self.draws.uniform("rate", 2).T
        slow, fast = kind < 0.12, kind > 0.86
        ordinary = 62 + 36 * place
        return np.select([slow, fast], [43 + 19 * place, 96 + 50 * place], ordinary)

    def _findings(self) -> dict[str, Bool[np.ndarray, " batch"]]:
        draws = self.draws.uniform("findings", len(_PREVALENCE)).T
        found = {
            code: draw < share
            for (code, share), draw in zip(_PREVALENCE.items(), draws, strict=True)
        }
        for code in _HIDDEN_BY_CLBBB:
            found[code] &= ~found["CLBBB"]
        for code in ("1AVB", "PAC", "SARRH"):
            found[code] &= ~found["AFIB"]
        # Two opposite or two like changes of one T wave would cancel or be one finding.
        found["NDT"] &= ~(found["ISC_"] | found["INVT"])
        found["LVOLT"] &= ~found["LVH"]
        self.acute = found["ASMI"] & (self.strength["STE_"] > self.severity)
        found["STE_"] |= self.acute
        found["INVT"] |= found["ISC_"] & (self.strength["ISC_"] > 0.7 * self.severity)

        diagnoses = [found[code] for code in DIAGNOSES if code != "NORM"]
        found["NORM"] = ~np.any(diagnoses, axis=0)
        # The reader counts a strip by eye: near the limits the call goes either way.
        read = self.rate + 3.0 * self.draws.normal("reader", 1)[:, 0]
        other = found["AFIB"] | found["SARRH"]
        found["STACH"] = (read > 100) & ~other
        found["SBRAD"] = (read < 60) & ~other
        found["SR"] = ~(other | found["STACH"] | found["SBRAD"])
        return found

    def _effect(self, code: str) -> Float64[np.ndarray, " batch"]:
        """Severity of a finding, 0 where it is absent."""
        return np.where(self.findings[code], self.strength[code], 0.0)

    def ecg(self, time: Float64[np.ndarray, " time"]) -> Float64[np.ndarray, "batch 8 time"]:
        """I, II, V1..V6 in mV at ascending times from 0 on, in s; without any artefact."""
        return self._sum_of_waves(time) + self._fibrillation(time)

    def _sum_of_waves(
        self, time: Float64[np.ndarray, " time"]
    ) -> Float64[np.ndarray, "batch 8 time"]:
        beats, ectopic = self._beats(time[-1])
        atrial, conducted, ventricular = self._waves()
        size = 1 + 0.04 * np.sin(self._breath(beats))
        sinus = size * ~(ectopic | self.findings["AFIB"][:, None])
        groups = ((atrial, sinus), (conducted, size * ~ectopic), (ventricular, size * ectopic))

        # For each sample the last beat not after it. A wave is over two beats on, so three beats
        # are all that a sample hears of.
        rows = np.arange(len(beats))[:, None]
        passed = np.zeros((len(beats), len(time) + 1), np.int64)
        np.add.at(passed, (rows, np.searchsorted(time, beats)), 1)
        last = np.cumsum(passed[:, :-1], axis=1) - 1
        signal = np.zeros((len(beats), 8, len(time)))
        for waves, weight in groups:
            shapes = np.zeros((len(beats), len(waves), len(time)))
            for beat in (last - 1, last, last + 1):
                since = time - beats[rows, beat]
                of_beat = weight[rows, beat]
                for i, wave in enumerate(waves):
                    x = since - wave.centre[:, None]
                    x /= np.where(x < 0, wave.before[:, None], wave.after[:, None])
                    shapes[:, i] += of_beat * np.exp(-0.5 * x * x)
            amplitude = np.stack([wave.amplitude for wave in waves], axis=2)
            signal += amplitude @ shapes
        return signal

    def _breath(self, time: Float64[np.ndarray, "batch n"]) -> Float64[np.ndarray, "batch n"]:
        """Phase of respiration, 12 to 20 breaths a minute."""
        phase, rate = self.draws.uniform("breath", 2).T[:, :, None]
        return 2 * np.pi * (phase + (0.2 + 0.13 * rate) * time)

    def _beats(
        self, seconds: float
    ) -> tuple[Float64[np.ndarray, "batch beats"], Bool[np.ndarray, "batch beats"]]:
        """R-peak times in s, two of them at or before 0, and which are ventricular ectopics."""
        n = math.ceil(seconds / _RR_FLOOR) + 5
        interval = (60 / self.rate)[:, None]
        z = self.draws.normal("interval", n)
        swing, scatter, offset = self.draws.uniform("irregularity", 3).T[:, :, None]
        fibrillating = self.findings["AFIB"][:, None]
        arrhythmic = self.findings["SARRH"][:, None]
        breathing = np.where(arrhythmic, 0.09 + 0.12 * swing, 0.05 * swing)
        jitter = np.where(fibrillating, 0.11 + 0.16 * scatter, 0.01 + 0.025 * scatter)
        phase = self._breath(interval * np.arange(n))
        rr = interval * np.exp(jitter * z + ~fibrillating * breathing * np.sin(phase))

        premature = {code: self._premature(code, interval, seconds, n) for code in ("PAC", "PVC")}
        early = premature["PAC"] | premature["PVC"]
        rr *= np.where(early, 0.62, 1.0)
        # A ventricular ectopic leaves the sinus clock alone: the pause makes up for it.
        rr[:, 1:] *= np.where(premature["PVC"], 1.38, np.where(early, 1.12, 1.0))[:, :-1]
        rr = np.maximum(rr, _RR_FLOOR)
        beats = np.cumsum(rr, axis=1)
        beats -= beats[:, 1:2] + offset * rr[:, 2:3]
        return beats, premature["PVC"]

    def _premature(
        self, code: str, interval: Float64[np.ndarray, "batch 1"], seconds: float, n: int
    ) -> Bool[np.ndarray, "batch {n}"]:
        """One to three premature beats, never two in a row, where the record has the finding."""
        u = self.draws.uniform(code, 6)
        wanted = self.findings[code][:, None] & (u[:, 3:] < (1.0, 0.5, 0.3))
        share = (np.arange(3) + 0.2 + 0.6 * u[:, :3]) / 3
        beat = 2 + np.floor(share * seconds / interval).astype(np.int64)
        out = np.zeros((len(u), n), bool)
        out[np.arange(len(u))[:, None], np.minimum(beat, n - 1)] |= wanted
        # The places of three draws differ by construction unless the heart is very slow.
        out[:, 1:] &= ~out[:, :-1]
        return out

    def _waves(self) -> tuple[list[_Wave], list[_Wave], list[_Wave]]:
        """Atrial waves, those of a conducted beat, and those of a ventricular ectopic."""
        found, effect = self.findings, self._effect
        asmi, imi, ischaemia = 0.6 * effect("ASMI"), 0.75 * effect("IMI"), effect("ISC_")
        lvh, lafb = 0.8 * effect("LVH"), effect("LAFB")
        z = iter(self.draws.normal("anatomy", 26).T)
        # Incomplete and doubtful blocks are common in hearts that are read as normal.
        lbbb = np.where(found["CLBBB"], 0.15 + 0.7 * effect("CLBBB"), 0.09 * np.abs(next(z)))
        rbbb = np.where(found["CRBBB"], 0.1 + 0.6 * effect("CRBBB"), 0.14 * np.abs(next(z)))
        none = np.zeros(len(self.rate))

        # Nuisance: what differs between healthy people and between two electrode placements.
        voltage = np.exp(0.28 * next(z)) * np.where(found["LVOLT"], 0.5, 1.0)
        axis = np.clip(38 + 32 * next(z), -50, 105)
        rotation = 0.7 * next(z) - 0.35 * np.tanh(lafb)
        chest_gain = np.exp(0.2 * np.stack([next(z) for _ in range(6)], axis=1))
        width = np.exp(0.14 * next(z)) * (1 + 0.6 * np.tanh(lbbb) + 0.12 * np.tanh(lafb))
        t_size = np.exp(0.35 * next(z)) * (1 - np.minimum(effect("NDT"), 1.05))
        t_axis = axis + np.clip(20 * next(z), -45, 45)
        p_size = np.exp(0.25 * next(z))
        scale = np.sqrt(60 / self.rate / 0.8)  # Bazett; 1 at 75 beats per minute
        # Conduction speeds up with the heart, but hardly slows below its resting pace.
        pr = np.clip(0.155 + 0.016 * next(z), 0.12, 0.19) + 0.07 * effect("1AVB")
        pr *= np.minimum(scale, 1.05)
        j_point = np.exp(0.6 * next(z))
        t_chest = 0.05 * next(z)[:, None] * np.ones(6)
        qt = scale * np.exp(0.05 * next(z))
        r_chest, s_chest = np.exp(0.3 * next(z)), np.exp(0.3 * next(z))

        def chest(
            profile: tuple[float, ...], size: Float64[np.ndarray, " batch"] | float = 1.0
        ) -> Float64[np.ndarray, "batch 6"]:
            """A profile over V1..V6 seen from electrodes that sit `rotation` places off."""
            place = np.clip(np.arange(6) + rotation[:, None], 0, 5)
            return np.interp(place, np.arange(6), profile) * np.reshape(size, (-1, 1))

        def wave(
            limb: Float64[np.ndarray, "batch 2"],
            precordial: Float64[np.ndarray, "batch 6"],
            centre: Float64[np.ndarray, " batch"] | float,
            before: Float64[np.ndarray, " batch"] | float,
            after: Float64[np.ndarray, " batch"] | float,
        ) -> _Wave:
            amplitude = np.concatenate([limb, precordial * chest_gain], axis=1) * voltage[:, None]
            return _Wave(amplitude, none + centre, none + before, none + after)

        # LAFB turns the axis up and left; its first forces point down, hence small r in II, III.
        turned = np.maximum(np.minimum(axis, 20) - 45 * np.tanh(lafb) - 12, -80)
        axis = np.where(found["LAFB"], turned, axis)
        septal_axis = np.where(found["LAFB"], 115, axis + 112)
        lost = np.clip(asmi, 0, 1)  # share of the anteroseptal forces an infarct has silenced
        kept = np.stack([1 - lost * loss for loss in (0.95, 0.9, 0.75, 0.35, 0.0, 0.0)], axis=1)
        blocked = np.tanh(lbbb)
        normal_path = 1 - 0.8 * blocked

        p = wave(
            _frontal(0.11 * p_size, none + 55),
            chest((0.045, 0.07, 0.068, 0.066, 0.064, 0.06), p_size),
            -pr,
            0.023,
            0.023,
        )
        septal = wave(
            _frontal(0.09 * (1 - blocked), septal_axis),
            chest((0.13, 0.16, 0.08, 0.0, -0.06, -0.08), 1 - blocked) * kept,
            -0.025 * width,
            0.008,
            0.009,
        )
        necrosis = wave(
            _frontal(0.3 * imi, none - 88),
            chest((-0.14, -0.2, -0.18, -0.1, 0.0, 0.0), asmi),
            -0.026,
            0.012,
            0.015,
        )
        r = wave(
            _frontal(0.85 * (1 + 0.45 * lvh) * (1 - 0.15 * blocked), axis),
            chest((0.12, 0.35, 0.7, 1.15, 1.15, 0.9), r_chest * normal_path) * kept
            - chest((0.3, 0.42, 0.28, 0.06, 0.0, 0.0), asmi)
            + chest((0.0, 0.0, 0.0, 0.15, 0.65, 0.65), lvh),
            none,
            0.0105 * width,
            0.0115 * width,
        )
        s = wave(
            _frontal(none + 0.16, axis - 165),
            chest((-0.75, -1.05, -0.7, -0.4, -0.16, -0.06), s_chest * (1 - 0.55 * np.tanh(rbbb)))
            + chest((-0.45, -0.6, -0.35, 0.0, 0.0, 0.0), lvh),
            0.031 * width,
            0.011 * width,
            0.012 * width,
        )
        # The ventricle reached last: rightward and forward in RBBB, leftward and back in LBBB.
        late = wave(
            _frontal(0.26 * rbbb, none + 178) + _frontal(0.5 * blocked, axis - 12),
            chest((0.55, 0.36, 0.06, -0.1, -0.22, -0.26), rbbb)
            + chest((-0.55, -0.85, -0.7, -0.1, 0.6, 0.65), blocked),
            np.where(found["CLBBB"], 0.052, 0.064),
            np.where(found["CLBBB"], 0.022, 0.016),
            0.02,
        )
        strain = 0.12 * lvh  # a thick wall repolarises late and the wrong way round
        st = wave(
            _frontal(0.02 * j_point + 0.05 * imi * (imi > 1) - 0.045 * ischaemia, none + 55)
            + _frontal(0.05 * blocked, axis + 180),
            chest((0.02, 0.045, 0.045, 0.03, 0.015, 0.005), j_point)
            + chest((0.1, 0.17, 0.16, 0.1, 0.0, 0.0), effect("STE_"))
            + chest((0.0, 0.0, -0.02, -0.07, -0.09, -0.08), ischaemia + strain)
            + chest((0.1, 0.16, 0.12, 0.02, -0.06, -0.07), blocked),
            0.115,
            0.032,
            0.05,
        )
        inverted = 0.9 * effect("INVT") + 0.5 * ischaemia
        t_upright = t_size * (1 - 0.5 * blocked)
        t = wave(
            _frontal(0.24 * t_upright * (1 - 0.35 * inverted), t_axis)
            + _frontal(0.22 * blocked + strain, axis + 180)
            + _frontal(0.14 * imi, none - 75),
            t_size[:, None] * t_chest
            + chest((0.02, 0.32, 0.4, 0.38, 0.28, 0.2), t_upright)
            + chest((0.0, 0.0, -0.05, -0.42, -0.46, -0.36), inverted * np.minimum(t_size, 1.2))
            + chest((-0.05, -0.25, -0.3, -0.2, -0.05, 0.0), np.where(self.acute, 0.0, asmi))
            + chest((0.0, 0.0, 0.0, -1.0, -3.0, -3.0), strain)
            + chest((-0.12, -0.2, -0.08, 0.0, 0.0, 0.0), rbbb)
            + chest((0.3, 0.4, 0.25, 0.0, -0.25, -0.25), blocked),
            0.275 * qt,
            0.055 * qt,
            0.034 * qt,
        )

        # An ectopic starts in one ventricle and crosses muscle: wide, and T against the QRS.
        side = np.where(next(z) > 0, 1.0, -1.0)
        direction = 90 + 60 * side + 25 * next(z)
        ectopic_qrs = wave(
            _frontal(none + 1.1, direction),
            chest((0.9, 1.3, 1.1, 0.5, -0.5, -0.9), -side),
            0.01,
            0.028,
            0.036,
        )
        ectopic_t = wave(
            _frontal(none + 0.4, direction + 180),
            chest((-0.35, -0.55, -0.45, -0.2, 0.25, 0.35), -side),
            0.3,
            0.075,
            0.05,
        )
        return [p], [septal, necrosis, r, s, late, st, t], [ectopic_qrs, ectopic_t]

    def _fibrillation(
        self, time: Float64[np.ndarray, " time"]
    ) -> Float64[np.ndarray, "batch 8 time"]:
        """The fibrillatory baseline: 4.5 to 8 Hz, unsteady, largest in V1."""
        u = self.draws.uniform("fibrillation", 8).T[:, :, None]
        size = 0.03 + 0.06 * u[0]
        frequency = 4.5 + 3.5 * u[1]
        out = np.zeros((len(u[0]), 8, len(time)))
        projections = (
            (0.25, 0.6, 1.0, 0.55, 0.3, 0.2, 0.2, 0.2),
            (0.2, -0.4, 0.5, 0.4, -0.2, 0.15, 0.1, 0.1),
        )
        for k, projection in enumerate(projections):
            slow = 2 * np.pi * ((0.25 + 0.3 * u[2 + k]) * time + u[4 + k])
            phase = 2 * np.pi * ((1 + 0.13 * k) * frequency * time + u[6 + k]) + 2.2 * np.sin(slow)
            tooth = np.sin(phase) + 0.35 * np.sin(2 * phase + 0.6)
            swell = size * (0.75 + 0.25 * np.cos(1.7 * slow)) * self.findings["AFIB"][:, None]
            out += np.reshape(projection, (8, 1)) * (swell * tooth)[:, None]
        return out
