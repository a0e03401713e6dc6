"""The simulated population: its records, its findings, and the PTB-XL folder it fills."""

from __future__ import annotations

import ast
import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import wfdb
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from jepa_core.config import from_dict, to_dict
from jepa_core.errors import ConfigError, DataError
from jepa_ecg.baselines import RHYTHM_FEATURES, log_band_powers, raw_statistics, rhythm_features
from jepa_ecg.data.ptbxl import ptbxl_labels
from jepa_ecg.data.wfdb_record import read_record
from jepa_ecg.heart import CODES, DIAGNOSES, RHYTHMS, Draws, Hearts
from jepa_ecg.simulate import LEADS, SimulationConfig, simulate, write_ptbxl

QUIET = SimulationConfig(noise=0.0, wander=0.0)
N = 40  # records of the written folder


def has(labels: np.ndarray, code: str) -> np.ndarray:
    return labels[:, CODES.index(code)] == 1


@pytest.fixture(scope="module")
def population() -> tuple[np.ndarray, np.ndarray]:
    return simulate(np.arange(1, 1501), SimulationConfig())


@pytest.fixture(scope="module")
def features(population: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    table = rhythm_features(population[0], 100)
    return dict(zip(RHYTHM_FEATURES, table.T, strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("simulated") / "ptbxl"
    write_ptbxl(root, N, SimulationConfig(seed=3))
    return root


def test_a_record_does_not_depend_on_its_batch() -> None:
    config = SimulationConfig(seed=5)
    ids = np.arange(100)
    signal, labels = simulate(ids, config)
    alone, its_labels = simulate(np.array([77, 3]), config)
    np.testing.assert_array_equal(alone, signal[[77, 3]])
    np.testing.assert_array_equal(its_labels, labels[[77, 3]])
    assert signal.shape == (100, 12, 1000)
    assert signal.dtype == np.float32
    assert labels.shape == (100, len(CODES))
    assert labels.dtype == np.uint8


def test_another_seed_is_another_population() -> None:
    one, _ = simulate(np.arange(8), SimulationConfig(seed=0))
    two, _ = simulate(np.arange(8), SimulationConfig(seed=1))
    assert np.abs(one - two).max(axis=(1, 2)).min() > 0.1


def test_limb_leads_obey_einthoven_and_goldberger() -> None:
    signal, _ = simulate(np.arange(20), SimulationConfig(sampling_rate=500))
    lead = dict(zip(LEADS, np.moveaxis(signal, 1, 0), strict=True))
    half = np.float32(0.5)
    np.testing.assert_array_equal(lead["III"], lead["II"] - lead["I"])
    np.testing.assert_array_equal(lead["aVR"], -(lead["I"] + lead["II"]) * half)
    np.testing.assert_array_equal(lead["aVL"], lead["I"] - lead["II"] * half)
    np.testing.assert_array_equal(lead["aVF"], lead["II"] - lead["I"] * half)


def test_the_sampling_rate_samples_one_and_the_same_heart() -> None:
    draws = Draws(0, np.arange(1, 40))
    seconds = np.arange(10) + 0.5
    fine, coarse = np.arange(5000) / 500, np.arange(1000) / 100
    at_500 = Hearts(draws, 1.0).ecg(fine[fine <= coarse[-1]])[..., ::5]
    np.testing.assert_allclose(at_500, Hearts(draws, 1.0).ecg(coarse), atol=1e-9)
    assert np.isfinite(Hearts(draws, 1.0).ecg(seconds)).all()


def test_three_beats_are_all_that_a_sample_hears_of() -> None:
    """The slow twin adds every wave of every beat to every sample."""
    time = np.arange(0, 10, 0.01)
    hearts = Hearts(Draws(0, np.arange(60)), 1.0)
    beats, ectopic = hearts._beats(time[-1])
    size = 1 + 0.04 * np.sin(hearts._breath(beats))
    no_p = ectopic | hearts.findings["AFIB"][:, None]
    expected = hearts._fibrillation(time)
    for waves, silent in zip(hearts._waves(), (no_p, ectopic, ~ectopic), strict=True):
        for wave in waves:
            for beat in range(beats.shape[1]):
                x = time - beats[:, beat, None] - wave.centre[:, None]
                x = x / np.where(x < 0, wave.before[:, None], wave.after[:, None])
                shape = (size * ~silent)[:, beat, None] * np.exp(-0.5 * x**2)
                expected += wave.amplitude[:, :, None] * shape[:, None]
    np.testing.assert_allclose(hearts.ecg(time), expected, atol=1e-4)


def test_every_record_has_one_rhythm_and_a_diagnosis(population) -> None:
    _, labels = population
    rhythms = sum(has(labels, code).astype(int) for code in RHYTHMS)
    others = sum(has(labels, code).astype(int) for code in DIAGNOSES if code != "NORM")
    assert (rhythms == 1).all()
    np.testing.assert_array_equal(has(labels, "NORM"), others == 0)


def test_every_code_is_neither_rare_nor_the_rule() -> None:
    _, labels = simulate(np.arange(4000), SimulationConfig(seconds=1.0))
    shares = dict(zip(CODES, labels.mean(axis=0), strict=True))
    assert min(shares.values()) > 0.05
    assert 0.35 < shares["NORM"] < 0.5
    assert 0.5 < shares["SR"] < 0.7
    assert max(share for code, share in shares.items() if code not in ("NORM", "SR")) < 0.16


def test_a_fast_rate_is_called_tachycardia_and_a_slow_one_bradycardia(features, population) -> None:
    _, labels = population
    rate = features["rate"]
    regular = ~(has(labels, "PVC") | has(labels, "PAC"))
    assert np.median(rate[has(labels, "STACH")]) > 105
    assert np.median(rate[has(labels, "SBRAD")]) < 58
    within = (rate > 55) & (rate < 105)
    assert within[has(labels, "SR") & regular].mean() > 0.97


def test_no_interval_of_a_heart_is_shorter_than_the_floor() -> None:
    beats, _ = Hearts(Draws(0, np.arange(500)), 1.0)._beats(10.0)
    assert np.diff(beats).min() > 0.4 - 1e-9
    assert (beats[:, 1] <= 0).all()
    assert (beats[:, -1] > 10.0).all()


def test_fibrillation_is_irregular_and_has_no_p_wave(features, population) -> None:
    _, labels = population
    still = ~(has(labels, "PVC") | has(labels, "PAC") | has(labels, "SARRH"))
    fibrillating, sinus = has(labels, "AFIB") & still, has(labels, "SR") & still
    irregularity = features["rr_irregularity"]
    assert (
        roc_auc_score(fibrillating[fibrillating | sinus], irregularity[fibrillating | sinus]) > 0.97
    )
    assert np.median(features["p_size"][fibrillating]) < 0.5 * np.median(features["p_size"][sinus])


@pytest.mark.parametrize(
    ("code", "feature", "sign"),
    [
        ("CLBBB", "qrs_width", 1),
        ("CRBBB", "qrs_area_V1", 1),
        ("LAFB", "axis_sin", -1),
        ("1AVB", "pr", 1),
        ("LVH", "r_V5", 1),
        ("LVOLT", "r_V5", -1),
        ("ASMI", "r_V2", -1),
        ("IMI", "q_aVF", -1),
        ("STE_", "st_V2", 1),
        ("ISC_", "st_V5", -1),
        ("INVT", "t_V5", -1),
        ("PVC", "beat_spread", 1),
        ("PAC", "rr_shortest", -1),
        ("SARRH", "rr_std", 1),
    ],
)
def test_a_finding_is_where_a_cardiologist_looks_for_it(
    code: str, feature: str, sign: int, features, population
) -> None:
    _, labels = population
    if code in ("1AVB", "SARRH"):
        population_of = ~(has(labels, "AFIB") | has(labels, "PVC") | has(labels, "PAC"))
    elif code == "PAC":
        population_of = ~(has(labels, "AFIB") | has(labels, "PVC"))
    else:
        population_of = ~(has(labels, "CLBBB") & (code != "CLBBB"))
    y, x = has(labels, code)[population_of], sign * features[feature][population_of]
    assert roc_auc_score(y, x) > 0.7


def test_no_severity_leaves_no_infarct() -> None:
    ids = np.arange(400)
    still = SimulationConfig(severity=0.0, noise=0.0, wander=0.0)
    signal, labels = simulate(ids, still)
    _, usual = simulate(ids, QUIET)
    np.testing.assert_array_equal(has(labels, "IMI"), has(usual, "IMI"))
    infarct = has(labels, "IMI") | has(labels, "ASMI")
    q = rhythm_features(signal, 100)[:, RHYTHM_FEATURES.index("q_aVF")]
    assert abs(roc_auc_score(infarct, -q) - 0.5) < 0.1


def test_simple_features_neither_fail_nor_saturate(population) -> None:
    """What makes the population a test of an encoder: raw features leave something to win."""
    signal, labels = population
    train, test = slice(0, 1000), slice(1000, 1500)
    scale = signal[train].std(axis=(0, 2), keepdims=True)
    raw = [raw_statistics(signal), log_band_powers(np.clip(signal / scale, -5, 5), 100)]
    x = StandardScaler().fit(np.hstack(raw)[train]).transform(np.hstack(raw))
    groups = {
        "CD": ("1AVB", "CLBBB", "CRBBB", "LAFB"),
        "HYP": ("LVH",),
        "MI": ("ASMI", "IMI"),
        "NORM": ("NORM",),
        "STTC": ("ISC_", "NDT"),
    }
    scores = []
    for codes in groups.values():
        y = np.any([has(labels, code) for code in codes], axis=0)
        model = LogisticRegression(C=0.01, max_iter=2000).fit(x[train], y[train])
        scores.append(roc_auc_score(y[test], model.decision_function(x[test])))
    assert 0.8 < np.mean(scores) < 0.93
    assert max(scores) < 0.97


def test_the_folder_has_the_layout_of_ptbxl(folder: Path, data) -> None:
    real = data("ecg") / "ptbxl"
    for name in ("ptbxl_database.csv", "scp_statements.csv"):
        with open(folder / name, newline="") as ours, open(real / name, newline="") as theirs:
            assert next(csv.reader(ours)) == next(csv.reader(theirs))
    assert (folder / "records100/00000/00001_lr.dat").stat().st_size == 24_000
    assert (folder / "records500/00000/00040_hr.dat").stat().st_size == 120_000
    ours_lines = (folder / "records500/00000/00009_hr.hea").read_text().splitlines()
    theirs_lines = (real / "records500/00000/00009_hr.hea").read_text().splitlines()
    assert ours_lines[0] == theirs_lines[0]
    for ours, theirs in zip(ours_lines[1:], theirs_lines[1:], strict=True):
        changing = (5, 6)  # first value, checksum
        assert [w for i, w in enumerate(ours.split()) if i not in changing] == [
            w for i, w in enumerate(theirs.split()) if i not in changing
        ]


def test_codes_mean_what_they_mean_in_ptbxl(folder: Path, data) -> None:
    def meaning(path: Path) -> dict[str, tuple[str, ...]]:
        columns = ("diagnostic", "form", "rhythm", "diagnostic_class", "diagnostic_subclass")
        with open(path, newline="") as file:
            return {row[""]: tuple(row[c] for c in columns) for row in csv.DictReader(file)}

    ours = meaning(folder / "scp_statements.csv")
    theirs = meaning(data("ecg") / "ptbxl" / "scp_statements.csv")
    assert set(ours) == set(CODES)
    assert ours == {code: theirs[code] for code in CODES}


@pytest.mark.parametrize("index", [0, 17, N - 1])
def test_wfdb_and_our_reader_give_the_samples_back(folder: Path, index: int) -> None:
    config = SimulationConfig(seed=3, sampling_rate=500)
    signal, _ = simulate(np.array([index + 1]), config)
    digital = np.rint(signal[0].T * 1000).astype(np.int64)
    path = folder / f"records500/00000/{index + 1:05d}_hr"

    theirs = wfdb.rdrecord(str(path), physical=False)
    np.testing.assert_array_equal(theirs.d_signal, digital)
    assert [c % 65536 for c in theirs.calc_checksum()] == [c % 65536 for c in theirs.checksum]
    assert theirs.init_value == digital[0].tolist()
    assert (theirs.fs, theirs.sig_len, theirs.adc_gain) == (500, 5000, [1000.0] * 12)
    assert [name.casefold() for name in theirs.sig_name] == [name.casefold() for name in LEADS]

    ours = read_record(path, verify="error")
    np.testing.assert_array_equal(ours.digital, digital)
    assert ours.warnings == ()


def test_the_100_hz_files_are_the_500_hz_ones_decimated(folder: Path) -> None:
    low = wfdb.rdrecord(str(folder / "records100/00000/00007_lr")).p_signal
    high = wfdb.rdrecord(str(folder / "records500/00000/00007_hr")).p_signal
    assert low.shape == (1000, 12)
    for lead in range(12):
        assert np.corrcoef(low[:, lead], high[::5, lead])[0, 1] > 0.95


def test_labels_of_the_folder_are_those_of_the_records(folder: Path) -> None:
    _, labels = simulate(np.arange(1, N + 1), SimulationConfig(seed=3, seconds=1.0))
    with open(folder / "ptbxl_database.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["ecg_id"]) for row in rows] == list(range(1, N + 1))
    for row, label in zip(rows, labels, strict=True):
        codes = ast.literal_eval(row["scp_codes"])
        assert set(codes) == {code for code, found in zip(CODES, label, strict=True) if found}
        assert all((codes[code] > 0) == (code in DIAGNOSES) for code in codes)

    super_ = ptbxl_labels(
        folder / "ptbxl_database.csv", folder / "scp_statements.csv", "superdiagnostic"
    )
    assert list(super_.classes) == ["CD", "HYP", "MI", "NORM", "STTC"]
    np.testing.assert_array_equal(super_.y[:, 3], has(labels, "NORM"))
    rhythm = ptbxl_labels(folder / "ptbxl_database.csv", folder / "scp_statements.csv", "rhythm")
    assert set(rhythm.classes) <= set(RHYTHMS)
    assert (rhythm.y.sum(axis=1) == 1).all()


def test_folds_hold_whole_patients(tmp_path: Path) -> None:
    write_ptbxl(tmp_path / "many", 150, SimulationConfig(seconds=1.0))
    folds = defaultdict(set)
    sizes = defaultdict(int)
    with open(tmp_path / "many" / "ptbxl_database.csv", newline="") as file:
        for row in csv.DictReader(file):
            folds[row["patient_id"]].add(int(row["strat_fold"]))
            sizes[int(row["strat_fold"])] += 1
    assert len(folds) < 150
    assert all(len(fold) == 1 for fold in folds.values())
    assert set(sizes) == set(range(1, 11))
    assert max(sizes.values()) < 2 * min(sizes.values())


def test_a_larger_folder_begins_with_the_same_records(folder: Path, tmp_path: Path) -> None:
    write_ptbxl(tmp_path / "few", 5, SimulationConfig(seed=3))
    name = "records100/00000/00005_lr.dat"
    assert (tmp_path / "few" / name).read_bytes() == (folder / name).read_bytes()
    few = (tmp_path / "few" / "ptbxl_database.csv").read_text()
    assert (folder / "ptbxl_database.csv").read_text().startswith(few)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="not an empty folder"):
        write_ptbxl(tmp_path, 2, SimulationConfig())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_config_travels_as_json_and_knows_its_ranges() -> None:
    config = SimulationConfig(seed=4, severity=0.5)
    assert from_dict(SimulationConfig, to_dict(config)) == config
    with pytest.raises(ConfigError, match="severity"):
        SimulationConfig(severity=-1.0)
