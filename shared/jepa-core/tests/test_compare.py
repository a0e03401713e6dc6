"""Feature sets side by side, with what they gain over the untrained twin."""

from __future__ import annotations

import numpy as np
import pytest

from jepa_core.errors import DataError
from jepa_core.evaluation.compare import Features, Labels, compare
from jepa_core.evaluation.linear import ridge
from jepa_core.evaluation.metrics import auc_statistic, macro_auc


def _probe(train: np.ndarray, y: np.ndarray, test: np.ndarray) -> np.ndarray:
    return ridge(train, y, alpha=1.0).scores(test)


def _sets() -> tuple[dict[str, Features], Labels]:
    draw = np.random.default_rng(0)
    y = draw.integers(0, 2, (300, 2))

    def features(noise: float, dim: int) -> Features:
        x = y @ draw.normal(size=(2, dim)) + noise * draw.normal(size=(300, dim))
        return Features(x[:150], x[150:])

    sets = {"trained": features(1, 6), "untrained twin": features(4, 6), "raw": features(4, 9)}
    return sets, Labels(y[:150], y[150:])


def test_each_row_is_the_probe_on_that_feature_set_and_its_gain() -> None:
    sets, labels = _sets()
    table = compare(sets, labels, _probe, auc_statistic, title="probe", resamples=100)
    assert [row[0] for row in table.rows] == list(sets)
    assert [row[1] for row in table.rows] == [6, 6, 9]
    scores = {}
    for row in table.rows:
        name = str(row[0])
        own = sets[name]
        scores[name] = macro_auc(labels.test, _probe(own.train, labels.train, own.test)).macro
        assert str(row[2]).startswith(f"{scores[name]:.3f} [")
    gain = scores["trained"] - scores["untrained twin"]
    assert str(table.rows[0][3]).startswith(f"{gain:.3f} [")
    assert table.rows[1][3] is None
    assert "150 test records" in table.notes[0]


def test_a_class_that_is_not_scored_is_said_below_the_table() -> None:
    sets, labels = _sets()
    test = labels.test.copy()
    test[:, 1] = 0
    table = compare(
        sets, Labels(labels.train, test), _probe, auc_statistic, title="probe", resamples=20
    )
    assert "Means over 1 of 2 classes." in table.notes


def test_no_table_without_the_reference() -> None:
    sets, labels = _sets()
    del sets["untrained twin"]
    with pytest.raises(DataError, match="untrained twin"):
        compare(sets, labels, _probe, auc_statistic, title="probe")


def test_features_of_other_records_are_named() -> None:
    sets, labels = _sets()
    sets["raw"] = Features(sets["raw"].train[1:], sets["raw"].test)
    with pytest.raises(DataError, match="'raw' are of 149"):
        compare(sets, labels, _probe, auc_statistic, title="probe")
