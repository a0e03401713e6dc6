"""What a run's features look like, without labels: one number per question.

Everything is computed in float64 on the CPU from a fixed set of unlabelled samples, so a value
means the same at every step and on every device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Denominators of ratios of variances: below this a variance is rounding, not signal.
TINY = 1e-12


@dataclass(frozen=True)
class Observation:
    """What the health of a JEPA is judged by, on a fixed set of n samples with fixed masks.

    Parameters
    ----------
    tokens
        Target encoder's tokens as the loss sees them, i.e. after any target normalisation.
    prediction, target
        Predictor's output and its target at the hidden positions.
    positions
        Index into `tokens` of each of the hidden positions.
    views
        Pooled features of the online encoder on q >= 2 random contexts of each sample.
    """

    tokens: Float[Tensor, "n tokens dim"]
    prediction: Float[Tensor, "n hidden dim"]
    target: Float[Tensor, "n hidden dim"]
    positions: Int[Tensor, "n hidden"]
    views: Float[Tensor, "n q dim"] | None = None


def quantities(observation: Observation) -> dict[str, float]:
    """Every label-free quantity of one health evaluation.

    `signal`, `unexplained` and `rank` are what the alarm reads; the rest is for people. Features
    that are not finite give NaN, never an exception: the alarm is to see them.

    Returns
    -------
    dict
        What `variance_shares` and `spectrum` (of the mean over tokens) give, unexplained and
        token_rank; with views also what `view_scores` gives.
    """
    tokens = _double(observation.tokens)
    values = {
        "unexplained": unexplained(
            observation.prediction, observation.target, observation.positions, tokens
        )
    }
    values |= variance_shares(tokens)
    values |= spectrum(tokens.mean(dim=1))
    values["token_rank"] = token_rank(tokens)
    if observation.views is not None:
        values |= view_scores(observation.views)
    return values


def variance_shares(tokens: Float[Tensor, "n tokens dim"]) -> dict[str, float]:
    """How much of the variance belongs to the position, to the sample, to neither alone.

    Two-way analysis of variance around the grand mean. `signal` is the variance per dimension that
    depends on the sample at all; a collapsed run loses it, whatever its loss says. Use n >= 64.
    """
    h = _double(tokens)
    h = h - h[:1, :1]  # a constant set becomes exactly zero
    h -= h.mean(dim=(0, 1))
    total = torch.linalg.vector_norm(h).item() ** 2 / (h.shape[0] * h.shape[1])
    position = h.mean(dim=0).square().sum(-1).mean().item()
    sample = h.mean(dim=1).square().sum(-1).mean().item()
    if total == 0:
        position_share, sample_share, interaction_share = 1.0, 0.0, 0.0
    else:
        # At most all of it: rounding can say 1 + 1e-16, and a signal below zero. NaN stays NaN.
        position_share, sample_share = min(position / total, 1.0), sample / total
        interaction_share = 1 - position_share - sample_share
    return {
        "signal": total * (1 - position_share) / h.shape[-1],
        "share_total": total,
        "share_position": position_share,
        "share_sample": sample_share,
        "share_interaction": interaction_share,
    }


def unexplained(
    prediction: Float[Tensor, "n hidden dim"],
    target: Float[Tensor, "n hidden dim"],
    positions: Int[Tensor, "n hidden"],
    tokens: Float[Tensor, "n tokens dim"],
) -> float:
    """Fraction of the target's variance that the predictor leaves unexplained.

    The squared error over the squared error of the best predictor that knows the position only
    (the mean of `tokens` over samples). Below 1: something of the sample is predicted; an
    untrained predictor gives 2 to 8.
    """
    prediction, target, tokens = _double(prediction), _double(target), _double(tokens)
    by_position = tokens.mean(dim=0)[positions.to("cpu", torch.int64)]
    error = (prediction - target).square().sum().item()
    return error / _at_least_tiny((target - by_position).square().sum().item())


def spectrum(Z: Float[Tensor, "n dim"]) -> dict[str, float]:
    """Scores of the singular values of pooled features.

    - `rank`, `rankme`: exp of the entropy of p = sigma / sum(sigma) + 1e-7, with and without
      centring (Garrido et al. 2023; theirs is not centred, and an offset of the mean alone drives
      it to 1). Use n >= 4 dim.
    - `effective_rank_sv`, `effective_rank_ev`: the same, centred and without the 1e-7, on singular
      values and on their squares (Roy & Vetterli 2007).
    - `participation`, `stable_rank`: (sum l)^2 / sum l^2 and sum l / max l with l = sigma^2.
    - `alpha`: minus the slope of ln l_k against ln k, k = 1..30 (Agrawal et al. 2022); NaN with
      fewer than three eigenvalues above 1e-12 of the first.
    - `std`: mean over dimensions of the standard deviation over samples. It falls three- to sixfold
      in healthy runs.
    - `dead_dims`: share of dimensions whose standard deviation is below 1e-6.
    - `uniformity`: ln of the mean of exp(-2 d^2) over pairs of centred rows on the sphere, of the
      first 512 rows (Wang & Isola 2020, who do not centre).
    """
    Z = _double(Z)
    if not Z.isfinite().all():
        return dict.fromkeys(_SPECTRUM, math.nan)
    centred = _centre(Z)
    sigma = torch.linalg.svdvals(centred)
    eigenvalues = sigma.square()
    std = centred.square().sum(0).div(max(1, len(Z) - 1)).sqrt()
    total, largest = eigenvalues.sum().item(), eigenvalues[0].item()
    return {
        "rank": _entropy_rank(sigma, 1e-7),
        "rankme": _entropy_rank(torch.linalg.svdvals(Z), 1e-7),
        "effective_rank_sv": _entropy_rank(sigma),
        "effective_rank_ev": _entropy_rank(eigenvalues),
        "participation": total**2 / eigenvalues.square().sum().item() if largest else 1.0,
        "stable_rank": total / largest if largest else 1.0,
        "alpha": _decay_exponent(eigenvalues),
        "std": std.mean().item(),
        "dead_dims": (std < 1e-6).double().mean().item(),
        "uniformity": _uniformity(centred[:512]),
    }


_SPECTRUM = (
    *("rank", "rankme", "effective_rank_sv", "effective_rank_ev", "participation"),
    *("stable_rank", "alpha", "std", "dead_dims", "uniformity"),
)


def token_rank(tokens: Float[Tensor, "n tokens dim"]) -> float:
    """Effective rank (of singular values, centred) over the tokens of the first samples.

    As many whole samples as make 16 dim tokens, and their dim x dim covariance: a decomposition of
    all rows would cost more than the forward passes. Singular values below 1e-7 of the largest
    count as zero.
    """
    samples = math.ceil(16 * tokens.shape[2] / tokens.shape[1])
    h = _double(tokens[:samples]).flatten(0, 1)
    if not h.isfinite().all():
        return math.nan
    h = _centre(h)
    eigenvalues = torch.linalg.eigvalsh(h.T @ h)
    eigenvalues = torch.where(eigenvalues > 1e-14 * eigenvalues[-1], eigenvalues, 0.0)
    return _entropy_rank(eigenvalues.sqrt())


def view_scores(views: Float[Tensor, "n q dim"]) -> dict[str, float]:
    """Do several views of one sample agree more than views of different samples?

    - `lidar`: effective rank of the between-sample covariance whitened by the within-sample one,
      which gets 1e-4 on its diagonal (Thilak et al. 2023). Blind to scale and to collapse: show it,
      do not choose by it. `lidar_relative` scales the 1e-4 by the mean within variance.
    - `lidar_trace`: the sum of those eigenvalues.
    - `snr`: between-sample variance over within-sample variance.
    - `alignment`: mean squared distance of a sample's first two views (Wang & Isola 2020);
      `alignment_relative` is that over twice the variance, 1 for views that share nothing.

    Raises
    ------
    ValueError
        With fewer than two samples or views.
    """
    views = _double(views)
    n, q, dim = views.shape
    if n < 2 or q < 2:
        raise ValueError(f"views need two samples and two views at least, not {tuple(views.shape)}")
    if not views.isfinite().all():
        return dict.fromkeys(_VIEW_SCORES, math.nan)
    centres = views.mean(dim=1)
    between_rows = _centre(centres)
    within_rows = (views - centres[:, None]).flatten(0, 1)
    between = between_rows.T @ between_rows / (n - 1)
    within = within_rows.T @ within_rows / (n * (q - 1))
    between_trace, within_trace = between.trace().item(), within.trace().item()
    ratios = _whitened(between, within, 1e-4)
    relative = _whitened(between, within, 1e-4 * _at_least_tiny(within_trace / dim))
    pair = views[:, :2]
    variance = pair.flatten(0, 1).var(dim=0).sum().item()
    distance = (pair[:, 0] - pair[:, 1]).square().sum(-1).mean().item()
    return {
        "lidar": _entropy_rank(ratios + 1e-8),
        "lidar_relative": _entropy_rank(relative + 1e-8),
        "lidar_trace": ratios.sum().item(),
        "snr": between_trace / _at_least_tiny(within_trace),
        "alignment": distance,
        "alignment_relative": distance / _at_least_tiny(2 * variance),
    }


_VIEW_SCORES = ("lidar", "lidar_relative", "lidar_trace", "snr", "alignment", "alignment_relative")


def linear_cka(A: Float[Tensor, "n dim_a"], B: Float[Tensor, "n dim_b"]) -> float:
    """Similarity of two representations of the same samples, 0 to 1 (Kornblith et al. 2019)."""
    A, B = _centre(_double(A)), _centre(_double(B))
    norms = (A.T @ A).norm() * (B.T @ B).norm()
    return ((A.T @ B).square().sum() / norms.clamp_min(TINY)).item()


def _double(x: Tensor) -> Tensor:
    return x.detach().to("cpu").to(torch.float64)


def _at_least_tiny(denominator: float) -> float:
    """`denominator`, not below `TINY`; NaN stays NaN (`max` would hide it)."""
    return TINY if denominator < TINY else denominator


def _centre(Z: Tensor) -> Tensor:
    return Z - Z.mean(dim=0)


def _entropy_rank(values: Tensor, floor: float = 0.0) -> float:
    """exp(entropy) of values / sum + floor; 1, the least there is, when all values are zero."""
    total = values.sum()
    if total == 0:
        return 1.0
    p = values / total + floor
    return torch.special.entr(p).sum().exp().item()


def _decay_exponent(eigenvalues: Tensor, limit: int = 30) -> float:
    kept = eigenvalues[eigenvalues > 1e-12 * eigenvalues[0]][:limit]
    if len(kept) < 3:
        return math.nan
    x = torch.arange(1, len(kept) + 1, dtype=torch.float64).log()
    x = x - x.mean()
    y = kept.log()
    return -(x @ (y - y.mean()) / (x @ x)).item()


def _uniformity(centred: Tensor) -> float:
    rows = torch.nn.functional.normalize(centred, dim=-1, eps=1e-300)
    if len(rows) < 2:
        return 0.0
    return torch.pdist(rows).square().mul(-2).exp().mean().log().item()


def _whitened(between: Tensor, within: Tensor, delta: float) -> Tensor:
    """Eigenvalues of (within + delta)^-1/2 between (within + delta)^-1/2, none negative."""
    shifted = within + delta * torch.eye(len(within), dtype=within.dtype)
    lower = torch.linalg.cholesky(shifted)
    half = torch.linalg.solve_triangular(lower, between, upper=False)
    both = torch.linalg.solve_triangular(lower, half.T, upper=False)
    return torch.linalg.eigvalsh((both + both.T) / 2).clamp_min(0)
