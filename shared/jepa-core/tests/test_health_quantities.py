"""The label-free quantities, against stored values and against slow twins."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from jepa_core.health import Observation, linear_cka, quantities
from jepa_core.health.quantities import (
    spectrum,
    token_rank,
    unexplained,
    variance_shares,
    view_scores,
)

CASES = ("isotropic", "decaying", "offset", "rank1", "constant", "one_dead")


def _observation(n: int = 40, tokens: int = 6, dim: int = 5, seed: int = 0) -> Observation:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    h = normal(n, tokens, dim) + normal(n, 1, dim) + 2 * normal(1, tokens, dim)
    positions = torch.stack([torch.randperm(tokens, generator=draw)[:3] for _ in range(n)])
    target = h[torch.arange(n)[:, None], positions]
    return Observation(h, target + normal(n, 3, dim), target, positions, normal(n, 4, dim))


@pytest.mark.parametrize("case", CASES)
def test_every_stored_scalar_is_reproduced(data: Callable[[str], Path], case: str) -> None:
    golden = np.load(data("core") / "golden_health.npz")
    got = spectrum(torch.from_numpy(golden[f"{case}/Z"]))
    got |= variance_shares(torch.from_numpy(golden[f"{case}/tokens"]))
    got |= view_scores(torch.from_numpy(golden[f"{case}/views"]))
    stored = {
        name.partition("/")[2]: float(golden[name])
        for name in golden.files
        if name.startswith(f"{case}/") and golden[name].ndim == 0
    }
    assert len(stored) == 16
    # Where the spectrum is rounding noise, only the absolute value means something.
    close = {"abs": 1e-6, "rel": 0} if case in ("rank1", "constant") else {"rel": 1e-6, "abs": 0}
    for name, value in stored.items():
        assert got[name] == pytest.approx(value, nan_ok=True, **close), name


def test_linear_cka_is_reproduced_and_is_one_with_itself(data: Callable[[str], Path]) -> None:
    golden = np.load(data("core") / "golden_health.npz")
    A, B = (torch.from_numpy(golden[f"cka/{name}"]) for name in "AB")
    assert linear_cka(A, B) == pytest.approx(float(golden["cka/value"]), rel=1e-6)
    assert linear_cka(A, A) == pytest.approx(1, rel=1e-12)
    assert linear_cka(A, 3 * A + 7) == pytest.approx(1, rel=1e-12)


def test_unexplained_equals_a_loop_over_samples_and_positions() -> None:
    observed = _observation()
    error = spread = 0.0
    for b in range(len(observed.tokens)):
        for m, position in enumerate(observed.positions[b].tolist()):
            mean = torch.stack([h[position] for h in observed.tokens]).mean(0)
            error += (observed.prediction[b, m] - observed.target[b, m]).square().sum().item()
            spread += (observed.target[b, m] - mean).square().sum().item()
    assert quantities(observed)["unexplained"] == pytest.approx(error / spread, rel=1e-12)


def test_the_mean_at_each_position_leaves_everything_unexplained() -> None:
    observed = _observation()
    predictor = observed.tokens.mean(0)[observed.positions]
    value = unexplained(predictor, observed.target, observed.positions, observed.tokens)
    assert value == pytest.approx(1, rel=1e-12)


def test_shares_add_up_and_equal_a_loop() -> None:
    h = _observation().tokens
    grand = h.mean((0, 1))
    total = sum((token - grand).square().sum() for row in h for token in row) / (40 * 6)
    position = sum((h[:, t].mean(0) - grand).square().sum() for t in range(6)) / 6
    sample = sum((row.mean(0) - grand).square().sum() for row in h) / 40
    shares = variance_shares(h)
    assert shares["share_total"] == pytest.approx(float(total), rel=1e-12)
    assert shares["share_position"] == pytest.approx(float(position / total), rel=1e-12)
    assert shares["share_sample"] == pytest.approx(float(sample / total), rel=1e-12)
    assert shares["share_interaction"] == pytest.approx(float(1 - (position + sample) / total))
    assert shares["signal"] == pytest.approx(float((total - position) / 5), rel=1e-12)


def test_tokens_that_depend_on_the_position_only_carry_no_signal() -> None:
    h = torch.randn(1, 6, 5, dtype=torch.float64).expand(40, -1, -1)
    shares = variance_shares(h)
    assert shares["signal"] == pytest.approx(0, abs=1e-15)
    assert shares["share_position"] == pytest.approx(1)


@pytest.mark.parametrize("seed", range(20))
def test_rounding_makes_no_signal_negative(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    h = torch.randn(1, 6, 5, dtype=torch.float64, generator=draw).expand(40, -1, -1)
    shares = variance_shares(h)
    assert shares["signal"] >= 0
    assert shares["share_position"] <= 1


def test_constant_tokens_count_as_position_and_give_finite_scores() -> None:
    h = torch.full((40, 6, 5), 0.1)
    observed = Observation(h, h[:, :3], h[:, :3], torch.arange(3).expand(40, 3), h[:, :2])
    values = quantities(observed)
    assert values["share_position"] == 1
    assert values["signal"] == 0
    assert values["rank"] == values["token_rank"] == 1
    assert {name for name, value in values.items() if not math.isfinite(value)} == {"alpha"}


def test_token_rank_equals_the_one_by_singular_values() -> None:
    h = _observation().tokens
    used = h[:14]  # 16 dim = 80 tokens, 6 a sample
    sigma = torch.linalg.svdvals(used.flatten(0, 1) - used.mean((0, 1)))
    p = sigma / sigma.sum()
    assert token_rank(h) == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-10)


def test_lidar_equals_the_one_by_an_explicit_inverse_root() -> None:
    views = _observation().views
    assert views is not None
    n, q, dim = views.shape
    between = torch.cov(views.mean(1).T)
    within = sum(torch.cov(sample.T) for sample in views) / n
    values, vectors = torch.linalg.eigh(within + 1e-4 * torch.eye(dim, dtype=torch.float64))
    root = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    ratios = torch.linalg.eigvalsh(root @ between @ root)
    got = view_scores(views)
    p = (ratios + 1e-8) / (ratios + 1e-8).sum()
    assert got["lidar"] == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-10)
    assert got["lidar_trace"] == pytest.approx(float(ratios.sum()), rel=1e-10)
    assert got["snr"] == pytest.approx(float(between.trace() / within.trace()), rel=1e-10)
    assert q == 4


def test_float32_features_on_a_large_offset_keep_their_rank() -> None:
    Z = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    moved = spectrum(Z + 1000)
    assert moved["rank"] == pytest.approx(spectrum(Z)["rank"], rel=1e-5)
    assert moved["rankme"] < 1.1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite_give_nan_and_no_exception(bad: float) -> None:
    observed = _observation()
    observed.tokens[3, 2, 1] = bad
    observed.prediction[0, 0, 0] = bad
    assert observed.views is not None
    observed.views[0, 0, 0] = bad
    values = quantities(observed)
    for name in ("signal", "rank", "token_rank", "rankme", "uniformity", "lidar", "snr"):
        assert math.isnan(values[name]), name
    assert not math.isfinite(values["unexplained"])


def test_half_precision_observations_are_judged_in_float64() -> None:
    observed = _observation()
    assert observed.views is not None
    coarse = Observation(
        *(x.bfloat16() for x in (observed.tokens, observed.prediction, observed.target)),
        observed.positions,
        observed.views.bfloat16(),
    )
    fine, rough = quantities(observed), quantities(coarse)
    assert rough.keys() == fine.keys()
    assert rough["signal"] == pytest.approx(fine["signal"], rel=0.01)


def test_one_view_is_an_error() -> None:
    with pytest.raises(ValueError, match="two views"):
        view_scores(torch.zeros(10, 1, 4))
