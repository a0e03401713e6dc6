"""Protocols: parts, windows, thresholds, tables, and training on labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from jepa_core.errors import ConfigError, DataError
from jepa_ecg.data.corpus import Corpus, CorpusLabels
from jepa_ecg.evaluation import (
    Task,
    bootstrap_auc,
    class_table,
    crop_logits,
    crop_windows,
    embeddings,
    fraction,
    probabilities,
    raw_features,
    split_task,
    thresholds,
)
from jepa_ecg.finetune import crop_size, train_classifier
from jepa_ecg.inference import embed_signals, load
from jepa_ecg.model import ECGEncoder
from jepa_ecg.presets import DOWNSTREAM


@pytest.fixture(scope="module")
def built(corpus) -> Corpus:
    return Corpus(corpus)


@pytest.fixture(scope="module")
def task(built) -> Task:
    return split_task(built, "superdiagnostic")


def labelled(fold, patients, *, source=None) -> SimpleNamespace:
    """What `split_task` asks of a corpus."""
    n = len(fold)
    y = np.ones((n, 1), np.uint8)
    found = CorpusLabels(np.arange(n), y, np.array(["A"]), np.asarray(fold, np.int8))
    return SimpleNamespace(
        path=Path("corpus"),
        labels=lambda name: found,
        patients=np.asarray(patients),
        ids=np.arange(n),
        source=np.zeros(n, int) if source is None else np.asarray(source),
    )


def test_folds_1_to_8_train_9_validates_and_10_tests(built, task):
    fold = built.fold[task.rows]
    assert set(fold[task.train]) <= set(range(1, 9))
    assert set(fold[task.validation]) == {9}
    assert set(fold[task.test]) == {10}
    assert len(task.train) + len(task.validation) + len(task.test) == len(task.rows)


def test_records_without_a_fold_get_one_by_patient_from_the_seed():
    patients = [f"p{i // 3}" for i in range(900)]
    split = split_task(labelled([0] * 900, patients), "all", seed=1)
    parts = [split.train, split.validation, split.test]
    assert sorted(np.concatenate(parts)) == list(range(900))
    owners = [{patients[i] for i in part} for part in parts]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 300
    assert len(split.train) == pytest.approx(720, abs=75)
    again, other = (split_task(labelled([0] * 900, patients), "all", seed=s) for s in (1, 2))
    np.testing.assert_array_equal(again.test, split.test)
    assert not np.array_equal(other.test, split.test)


def test_a_patient_number_means_another_person_in_another_source():
    folds, patients = [1, 9, 10, 10], ["7", "7", "7", "7"]
    split = split_task(labelled(folds, patients, source=[0, 0, 0, 1]), "all")
    assert len(set(split.patients)) == 2


def test_records_of_unknown_patients_are_their_own_groups():
    split = split_task(labelled([1, 9, 10], ["", "", ""]), "all")
    assert len(set(split.patients)) == 3


def test_an_empty_part_is_an_error_that_names_it():
    with pytest.raises(DataError, match="no record of task all is in the validation folds"):
        split_task(labelled([1, 2, 10], ["a", "b", "c"]), "all")


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1, max_size=12),
)
def test_a_threshold_has_the_best_f1_of_all(pairs):
    y = np.array([[label] for label, _ in pairs], np.uint8)
    score = np.array([[value] for _, value in pairs], np.float64)
    found = thresholds(y, score)[0]
    if not y.any():
        assert found == np.inf
        return

    def f1(cut: float) -> float:
        called = score[:, 0] >= cut
        return 2 * (called & (y[:, 0] == 1)).sum() / (called.sum() + y.sum())

    best = max(f1(cut) for cut in score[:, 0])
    assert f1(found) == pytest.approx(best)
    assert found == min(cut for cut in score[:, 0] if f1(cut) == pytest.approx(best))


def test_the_class_table_counts_what_the_threshold_calls():
    y = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [1, 0], [0, 1], [0, 0], [1, 0]], np.uint8)
    one = Task(
        "made",
        ("A", "B"),
        np.arange(8),
        y,
        np.arange(8).astype(str),
        *np.split(np.arange(8), [2, 4]),
    )
    one = replace(one, validation=np.array([0, 2]), test=np.array([4, 5, 6, 7]))
    table = class_table(
        one,
        np.array([[0.6, 0.1], [0.2, 0.3]]),
        np.array([[0.7, 0.2], [0.1, 0.4], [0.8, 0.3], [0.5, 0.1]]),
    )
    a = dict(zip(table.columns, table.rows[0], strict=True))
    assert (a["class"], a["pos."], a["cut"]) == ("A", 2, 0.6)
    assert a["sens."] == 0.5  # 0.7 is called, 0.5 is not
    assert a["spec."] == 0.5  # 0.8 is called and should not be
    assert a["PPV"] == 0.5
    assert str(a["AUC"]).startswith("0.500 [")


def test_a_class_without_an_auc_is_named_and_not_averaged():
    y = np.array([[1, 0], [0, 0], [1, 0], [0, 0]], np.uint8)
    one = Task("made", ("A", "B"), np.arange(4), y, np.arange(4).astype(str), *[np.arange(4)] * 3)
    score = np.array([[0.9, 0.5], [0.1, 0.5], [0.8, 0.1], [0.2, 0.1]])
    table = class_table(one, score, score)
    assert table.rows[1][1:5] == [0, "–", None, None]
    assert any("No AUC" in note and note.endswith(": B.") for note in table.notes)
    assert any("macro-AUC 1.0000 over 1 of 2 classes" in note for note in table.notes)


def test_the_interval_of_an_auc_resamples_patients():
    generator = np.random.default_rng(0)
    y = np.repeat(generator.integers(0, 2, (20, 1)), 5, axis=0)
    score = np.repeat(generator.normal(size=(20, 1)), 5, axis=0) + 0.5 * y
    records = bootstrap_auc(y, score, resamples=300)
    patients = bootstrap_auc(y, score, groups=np.repeat(np.arange(20), 5), resamples=300)
    assert patients.estimate == records.estimate
    assert patients.high - patients.low > 1.5 * (records.high - records.low)


def test_fractions_of_the_training_records_are_nested(task):
    parts = [set(fraction(task, share, seed=0)) for share in (0.1, 0.5, 1.0)]
    assert parts[0] < parts[1] < parts[2] == set(task.train)
    assert len(parts[1]) == round(0.5 * len(task.train))
    assert set(fraction(task, 0.5, seed=1)) != parts[1]


def test_a_fraction_of_one_record_is_an_error(task):
    with pytest.raises(DataError, match="training records is 1; take a larger fraction"):
        fraction(task, 1.2 / len(task.train), seed=0)


class Linear(nn.Module):
    """Logits that depend on where a window lies."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.map = nn.Parameter(0.3 * torch.randn(12 * 250, 3, generator=generator))

    def forward(self, signal):
        return signal.flatten(1) @ self.map


def test_logits_are_averaged_over_half_overlapping_windows_before_the_sigmoid(built):
    model, rows = Linear(), np.array([5, 0, 17])
    found = crop_logits(model, built, rows, 250)
    shares = probabilities(found, single=False)
    for row, logits, share in zip(rows, found, shares, strict=True):
        starts = np.arange(0, 1000 - 250 + 1, 125)
        signal = torch.from_numpy(built.crops(np.full(7, row), starts, 250))
        each = model(signal).detach().double()
        np.testing.assert_allclose(logits, each.mean(0), atol=1e-4)
        np.testing.assert_allclose(share, each.mean(0).sigmoid(), atol=1e-4)
        assert (each.sigmoid().mean(0) - each.mean(0).sigmoid()).abs().max() > 0.01


def test_a_softmax_sums_to_one_and_a_sigmoid_does_not():
    logits = np.array([[2.0, -1.0, 0.5]])
    assert probabilities(logits, single=True).sum() == pytest.approx(1)
    np.testing.assert_allclose(probabilities(logits, single=False), 1 / (1 + np.exp(-logits)))


def test_a_record_shorter_than_a_window_is_named(built):
    with pytest.raises(DataError, match=r"3 labelled records are shorter.*such as 1; .*crop-sec"):
        crop_windows(built, np.arange(3), 1001)


def test_a_crop_is_whole_patches_and_at_most_what_the_encoder_takes(run):
    encoder = load(run).encoder  # 100 Hz, patches of 25, up to 500 samples
    assert crop_size(encoder, 2.6) == 250
    assert crop_size(encoder, 60) == 500
    with pytest.raises(ConfigError, match=r"allowed: >= 0\.25"):
        crop_size(encoder, 0.2)


def test_embeddings_of_a_corpus_are_those_of_its_records(built, run):
    model, rows = load(run), np.array([7, 2])
    alone = np.stack(list(embed_signals(model, [built.record(row) for row in rows])))
    np.testing.assert_allclose(embeddings(model, built, rows, batch_size=2), alone, atol=1e-5)


def test_raw_features_are_finite_and_one_row_a_record(built, run):
    found = raw_features(load(run), built, np.arange(3))
    assert found.shape[0] == 3
    assert np.isfinite(found).all()
    assert found.shape[1] > 12


def few(preset: str, **changes):
    config = DOWNSTREAM[preset]
    few_steps = {"steps": 6, "batch": 16, "warmup": 0, "validate_every": 2} | changes
    return replace(config, training=replace(config.training, **few_steps))


def test_a_frozen_encoder_sees_the_windows_of_validation_and_test_once(
    built, task, run, tmp_path, monkeypatch
):
    seen = []
    forward = ECGEncoder.forward

    def counted(self, signal, *args, **kwargs):
        seen.append(len(signal))
        return forward(self, signal, *args, **kwargs)

    monkeypatch.setattr(ECGEncoder, "forward", counted)
    config = few("attentive", validate_every=1)
    train_classifier(load(run).encoder, built, task, config, cache=tmp_path)
    windows = 7 * (len(task.validation) + len(task.test))
    assert sum(seen) == windows + 6 * 16
    seen.clear()
    train_classifier(load(run).encoder, built, task, config, cache=tmp_path)
    assert sum(seen) == 6 * 16  # the cache holds the windows


def test_kept_tokens_give_the_logits_of_the_whole_classifier(built, task, run, tmp_path):
    done = train_classifier(load(run).encoder, built, task, few("attentive"), cache=tmp_path)
    whole = crop_logits(done.classifier, built, task.rows[task.test], done.crop)
    np.testing.assert_allclose(done.test, whole, atol=1e-5)


def test_a_frozen_encoder_does_not_move_and_the_head_does(built, task, run, tmp_path):
    encoder = load(run).encoder
    done = train_classifier(encoder, built, task, few("attentive"), cache=tmp_path)
    for name, value in encoder.state_dict().items():
        assert torch.equal(done.classifier.encoder.state_dict()[name], value)
    other = train_classifier(
        encoder, built, task, few("attentive", learning_rate=1e-9), cache=tmp_path
    )
    assert (
        other.classifier.attn_pool.q.weight - done.classifier.attn_pool.q.weight
    ).abs().max() > 0


def test_fine_tuning_trains_a_copy_with_dropout(built, task, run, tmp_path):
    encoder = load(run).encoder
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    done = train_classifier(encoder, built, task, few("finetune"), cache=tmp_path)
    assert done.classifier.encoder.config.dropout == 0.05
    assert done.classifier.attn_pool is None
    for name, value in encoder.state_dict().items():
        assert torch.equal(before[name], value)
    moved = done.classifier.encoder.state_dict()["blocks.0.attn.qkv.weight"]
    assert not torch.equal(moved, before["blocks.0.attn.qkv.weight"])


def test_fine_tuning_is_a_function_of_the_seed(built, task, run, tmp_path):
    one, other = (
        train_classifier(load(run).encoder, built, task, few("finetune"), cache=tmp_path)
        for _ in range(2)
    )
    np.testing.assert_array_equal(one.test, other.test)


def test_fine_tuning_after_the_probe_starts_from_its_head(built, task, run, tmp_path):
    encoder = load(run).encoder
    probe = train_classifier(encoder, built, task, few("attentive"), cache=tmp_path)
    head = {name: value.clone() for name, value in probe.classifier.attn_pool.state_dict().items()}
    still = few("finetune-after-attentive", learning_rate=0.0, final_learning_rate=0.0)
    done = train_classifier(encoder, built, task, still, cache=tmp_path, head=head)
    np.testing.assert_allclose(done.test, probe.test, atol=1e-5)
    fewer = replace(task, classes=task.classes[:-1], y=task.y[:, :-1])
    with pytest.raises(ConfigError, match="the classifier to start from has"):
        train_classifier(encoder, built, fewer, still, cache=tmp_path, head=head)
