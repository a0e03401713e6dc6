"""The published numbers of the ten databases."""

from __future__ import annotations

import json

import pytest

from jepa_ecg.data.databases import DATABASES, LEADS


@pytest.fixture(scope="module")
def published(data):
    return json.loads((data("ecg") / "databases.json").read_text())


def test_every_number_is_the_published_one(published):
    assert DATABASES.keys() == published.keys()
    for name, row in published.items():
        database = DATABASES[name]
        assert database.fs == row["fs"]
        assert database.seconds == row["seconds"]
        assert list(database.leads) == row["leads"]
        assert list(database.mean) == row["mean"]
        assert list(database.std) == row["std"]
        assert database.weight == row["weight_all"]
        assert database.highpass == row["highpass_before_dump"]
        assert database.raw_mean == (tuple(row["mean_raw"]) if "mean_raw" in row else None)
        assert database.raw_std == (tuple(row["std_raw"]) if "std_raw" in row else None)
        assert database.official == row.get("official_registry_uses")


def test_the_weights_of_the_mixture_sum_to_one():
    assert sum(database.weight for database in DATABASES.values()) == pytest.approx(1, abs=1e-12)


def test_statistics_follow_the_names_of_the_leads():
    """MIMIC-IV-ECG stores aVF before aVL."""
    mimic = DATABASES["mimic-iv-ecg"]
    assert mimic.leads[4:6] == ("aVF", "aVL")
    mean, std = mimic.statistics(LEADS)
    assert (mean[4], mean[5]) == (0.014, 0.004)
    assert (std[4], std[5]) == (0.141, 0.143)
    assert mimic.statistics(("v6", "AVF")) == ((0.022, 0.004), (0.197, 0.143))


def test_unfiltered_statistics_are_known_only_where_they_were_published():
    code = DATABASES["code-15"]
    assert code.statistics(highpass=False) == (code.raw_mean, code.raw_std)
    assert DATABASES["ptb-xl"].statistics(highpass=False) is not None
    assert DATABASES["ptb-xl"].statistics(highpass=True) is None
    assert DATABASES["ptb-xl"].statistics(("I", "V7"), highpass=False) is None
