"""A pre-trained encoder on records as they come."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import jepa_ecg
from jepa_core.errors import DataError
from jepa_ecg.data.databases import LEADS
from jepa_ecg.data.transforms import interpolate_nans, resample
from jepa_ecg.data.wfdb_record import Record
from jepa_ecg.inference import (
    PretrainedECG,
    embed,
    embed_signals,
    load,
    load_classifier,
    pooled,
    prepare,
    save,
    windows,
)
from jepa_ecg.model import ECGEncoder
from jepa_ecg.presets import ModelConfig

MODEL = ModelConfig(
    fs=100, samples=200, patch=20, dim=16, depth=2, heads=2, predictor_dim=8, predictor_heads=2
)


@pytest.fixture(scope="module")
def model() -> PretrainedECG:
    torch.manual_seed(0)
    encoder = ECGEncoder(MODEL)
    for parameter in encoder.parameters():  # far from the nearly linear start
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return PretrainedECG(encoder, 0.1 * torch.randn(12), 0.5 + torch.rand(12))


def record(samples: int = 430, fs: float = 100, seed: int = 0) -> Record:
    signal = np.random.default_rng(seed).normal(size=(samples, 12)).astype(np.float32)
    return Record(signal, fs, LEADS, None, np.zeros(12, np.int64))


def signals(count: int = 7) -> list[np.ndarray]:
    return [record(60 + 70 * i, seed=i).signal.T.copy() for i in range(count)]


def test_every_public_name_can_be_had():
    for name in jepa_ecg.__all__:
        assert getattr(jepa_ecg, name) is not None


def test_three_lines_give_tokens_from_a_run(run):
    encoder = jepa_ecg.load(run)
    tokens = encoder(torch.randn(2, 12, 500))
    assert tokens.shape == (2, 20, 16)
    assert tokens.isfinite().all()
    assert not encoder.training


def test_a_record_from_a_file_gets_an_embedding(run, simulated):
    encoder = jepa_ecg.load(run)
    one = jepa_ecg.read_record(simulated / "records500/00000/00003_hr")
    assert jepa_ecg.embed(encoder, one).shape == (16,)
    assert jepa_ecg.embed(encoder, [one, one], pool="mean+std+change").shape == (2, 48)


def test_an_embedding_is_the_mean_over_the_tokens_of_consecutive_windows(model):
    one = record(430)
    x = torch.from_numpy(one.signal.T.copy())
    x = ((x - model.mean[:, None]) / model.std[:, None]).clamp(-5, 5)
    with torch.no_grad():
        cut = [x[:, 0:200], x[:, 200:400], x[:, 230:430]]  # the last one ends with the record
        tokens = torch.cat([model.encoder(window[None])[0] for window in cut])
    np.testing.assert_allclose(embed(model, one), tokens.mean(0), atol=1e-6)


def test_normalisation_is_part_of_the_model(model):
    x = 20 * torch.randn(2, 12, 40)
    with torch.no_grad():
        by_hand = ((x - model.mean[:, None]) / model.std[:, None]).clamp(-5, 5)
        torch.testing.assert_close(model(x), model.encoder(by_hand))


@pytest.mark.parametrize("pool", ["mean", "mean+std", "mean+std+change"])
def test_embeddings_do_not_depend_on_the_batch_size(model, pool):
    one, three, all_at_once = (
        np.stack(list(embed_signals(model, signals(), pool=pool, batch_size=size)))
        for size in (1, 3, 64)
    )
    np.testing.assert_allclose(one, all_at_once, atol=1e-5)
    np.testing.assert_allclose(three, all_at_once, atol=1e-5)


def test_embeddings_do_not_depend_on_the_other_records_nor_on_their_order(model):
    given_order = list(embed_signals(model, signals()))
    turned = list(embed_signals(model, signals()[::-1]))[::-1]
    np.testing.assert_allclose(given_order, turned, atol=1e-5)
    alone = list(embed_signals(model, signals()[3:4]))
    np.testing.assert_allclose(given_order[3], alone[0], atol=1e-5)


def test_neither_the_order_nor_the_case_of_leads_matters(model):
    one = record()
    order = np.random.default_rng(1).permutation(12)
    names = tuple(LEADS[i].upper() for i in order)
    shuffled = one._replace(signal=one.signal[:, order], leads=names)
    np.testing.assert_array_equal(embed(model, shuffled), embed(model, one))


def test_another_sampling_rate_is_resampled(model):
    one = record(1000, fs=250)
    resampled = one._replace(signal=resample(one.signal, 250, 100), fs=100.0)
    np.testing.assert_array_equal(embed(model, one), embed(model, resampled))


def test_missing_samples_are_interpolated_and_counted(model):
    one = record()
    one.signal[3:10, 2] = np.nan
    signal, quality = prepare(one, MODEL)
    np.testing.assert_array_equal(signal, interpolate_nans(one.signal).T)
    assert quality.valid == pytest.approx(1 - 7 / one.signal.size)
    assert "missing" in str(quality)
    assert str(prepare(record(), MODEL)[1]) == "good"


def test_a_flat_lead_is_reported_and_allowed(model):
    one = record()
    one.signal[:, 4] = 0.25
    assert prepare(one, MODEL)[1].flat == (LEADS[4],)
    assert np.isfinite(embed(model, one)).all()


def empty_lead(one: Record) -> Record:
    one.signal[:, 7] = np.nan
    return one


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda one: one._replace(signal=one.signal[:, 1:], leads=one.leads[1:]), "no lead I;"),
        (empty_lead, f"lead {LEADS[7]} has no valid sample"),
        (lambda one: one._replace(signal=one.signal[:19]), "the record has 19 samples at 100 Hz"),
        (lambda one: one._replace(signal=one.signal[:0]), "the record has 0 samples"),
        (lambda one: one._replace(signal=one.signal[:60], fs=400.0), "15 samples at 100 Hz"),
    ],
)
def test_a_record_that_cannot_be_used_is_an_error_that_says_why(model, spoil, says):
    with pytest.raises(DataError, match=says):
        embed(model, spoil(record()))


@given(st.integers(20, 2000), st.integers(1, 12), st.integers(1, 20))
def test_windows_cover_a_record_but_for_less_than_a_patch(length, tokens, patch):
    if length < patch:
        return
    starts, size = windows(length, tokens * patch, patch)
    assert 0 < size <= min(length, tokens * patch)
    assert size % patch == 0
    assert starts[0] == 0
    assert (np.diff(starts) > 0).all()
    assert (np.diff(starts) <= size).all()
    assert (np.diff(starts)[:-1] == size).all()
    assert length - patch < starts[-1] + size <= length


def test_pooling_equals_its_definition():
    tokens = torch.randn(3, 9, 4, dtype=torch.float64)
    mean, std, change = pooled(tokens, "mean+std+change").split(4, -1)
    x = tokens.numpy()
    np.testing.assert_allclose(mean, x.mean(1))
    np.testing.assert_allclose(std, x.std(1))
    np.testing.assert_allclose(change, np.abs(x[:, 1:] - x[:, :-1]).mean(1))


def test_a_single_token_does_not_change():
    assert (pooled(torch.randn(1, 4), "mean+std+change")[4:] == 0).all()


def test_an_encoder_survives_saving_bit_for_bit(model, tmp_path):
    again = load(save(tmp_path / "encoder", model))
    assert again.config == MODEL
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)


def test_an_encoder_of_another_format_is_refused(model, tmp_path):
    folder = save(tmp_path / "encoder", model)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"format": 99}))
    with pytest.raises(DataError, match="format 99"):
        load(folder)


def test_weights_that_do_not_fit_name_the_folder(model, tmp_path):
    folder = save(tmp_path / "encoder", model)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["depth"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"encoder.*missing: blocks\.2"):
        load(folder)


def test_a_classifier_gives_its_encoder_and_its_classes(attentive):
    classifier = load_classifier(attentive)
    assert classifier.softmax
    assert len(classifier.thresholds) == len(classifier.classes)
    encoder = load(attentive)
    torch.testing.assert_close(encoder.mean, classifier.mean)
    assert encoder(torch.randn(1, 12, 250)).shape == (1, 10, 16)


def test_an_encoder_is_no_classifier(run):
    with pytest.raises(DataError, match="without a classifier"):
        load_classifier(run)


def test_a_run_that_has_not_ended_says_so(run, attentive, tmp_path):
    shutil.copytree(run, tmp_path / "begun", ignore=shutil.ignore_patterns("encoder"))
    with pytest.raises(DataError, match="has no encoder yet"):
        load(tmp_path / "begun")
    shutil.copytree(attentive, tmp_path / "stopped", ignore=shutil.ignore_patterns("classifier"))
    with pytest.raises(DataError, match="has no classifier yet"):
        load_classifier(tmp_path / "stopped")


def test_low_precision_is_close(model):
    x = torch.randn(2, 12, 200)
    with torch.no_grad():
        exact = model(x)
        model.low_precision = True
        try:
            rough = model(x).float()
        finally:
            model.low_precision = False
    assert 0 < (rough - exact).abs().max() < 0.3
