"""Does a representation still tell images, and patches of one image, apart?

Every quantity comes from `tokens` [images, patches, dim] of a set of images on one grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jepa_core.errors import DataError
from jepa_core.health.quantities import TINY, variance_shares
from jepa_core.report.table import Cell, Table

WARN, FAIL = 0.2, 0.05  # of the untrained twin's variance

_NAMES = {
    "std_tokens": "std of a feature over tokens",
    "std_images": "std of a feature over images",
    "total_variance": "variance of a feature",
    "between_patches": "share between patches of an image",
    "between_images": "share between images",
    "position_share": "share of the position alone",
    "patch_cosine": "cosine of two patches of an image",
    "effective_rank": "effective rank of tokens",
    "dead_features": "share of dead features",
}


def collapse_report(tokens: Float[np.ndarray, "images patches dim"]) -> dict[str, Any]:
    """How alive a representation is, in float64.

    Returns
    -------
    dict
        - `feature_std`, `image_std`: lists over features of the standard deviation over all tokens,
          and over the images' means. `std_tokens`, `std_images`: their means.
        - `total_variance`: variance over all tokens, mean over features.
        - `between_patches`, `between_images`: the shares of it within and between images; they sum
          to 1. Features that say the same of every patch have no share between patches.
        - `position_share`: R2 of a regression of the features on which patch it is.
        - `patch_cosine`: mean cosine of two different patches of an image; 1 says all are alike.
        - `effective_rank`: exp of the entropy of the centred tokens' normalised singular values
          (Roy & Vetterli 2007).
        - `dead_features`: share of features with a standard deviation below 1e-6.

    Raises
    ------
    DataError
        Not two images and two patches at least, or values that are not finite.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 3 or min(tokens.shape[:2]) < 2:
        raise DataError(
            f"tokens are {tokens.shape}",
            remedy="give [images, patches, dim] of two images and two patches at least",
        )
    if not np.isfinite(tokens).all():
        raise DataError("tokens are not all finite", remedy="look for NaN in the encoder's input")
    h = torch.from_numpy(tokens.astype(np.float64))
    feature_std = h.flatten(0, 1).std(0, correction=0)
    image_std = h.mean(1).std(0, correction=0)
    shares = target_shares(h)
    return {
        "feature_std": feature_std.tolist(),
        "image_std": image_std.tolist(),
        "std_tokens": feature_std.mean().item(),
        "std_images": image_std.mean().item(),
        "total_variance": shares["total_variance"].item(),
        "between_patches": shares["between_patches"].item(),
        "between_images": shares["between_images"].item(),
        "position_share": variance_shares(h)["share_position"],
        "patch_cosine": _patch_cosine(h),
        "effective_rank": _effective_rank(h.flatten(0, 1)),
        "dead_features": (feature_std < 1e-6).double().mean().item(),
    }


def target_shares(targets: Float[Tensor, "images patches dim"]) -> dict[str, Float[Tensor, ""]]:
    """Where the variance of a batch's targets lies; 0-dim tensors on their device.

    Locality of the targets: an aggregation head starts from targets that hardly differ between the
    patches of an image, and has to learn to tell them apart.

    Returns
    -------
    dict
        `between_patches` and `between_images`, shares of the variance within and between images,
        and `total_variance`, the mean over features. Constant targets have shares 0 and 1.
    """
    h = targets.detach()
    h = h.float() if h.dtype in (torch.float16, torch.bfloat16) else h
    means = h.mean(1, keepdim=True)
    within = (h - means).square().mean()
    between = (means - means.mean(0)).square().mean()
    total = within + between
    share = within / total.clamp_min(TINY)
    return {"between_patches": share, "between_images": 1 - share, "total_variance": total}


def collapse_table(reports: Mapping[str, Mapping[str, Any]], *, title: str = "") -> Table:
    """Reports side by side, and in words whether the last one collapsed.

    Parameters
    ----------
    reports
        Name to what `collapse_report` gave; the first is the reference (the untrained twin), the
        last the one that is judged.
    """
    rows: list[list[Cell]] = [
        [label, *(_digits(report[key]) for report in reports.values())]
        for key, label in _NAMES.items()
    ]
    names = list(reports)
    notes: tuple[str, ...] = ()
    if len(names) > 1:
        notes = (collapse_sentence(reports[names[0]], reports[names[-1]]),)
    return Table(title or "collapse", ("quantity", *names), rows, notes)


def collapse_sentence(untrained: Mapping[str, Any], trained: Mapping[str, Any]) -> str:
    """What has become of the variance that depends on the image, and of the patches' cosine."""
    before, after = (_signal(report) for report in (untrained, trained))
    share = after / before if before > 0 else math.nan
    state = "no collapse"
    if share < FAIL:
        state = "the representation collapsed"
    elif share < WARN:
        state = "close to collapse"
    return (
        f"Variance that depends on the image {before:.2g} untrained, {after:.2g} trained "
        f"({share:.0%}): {state}; effective rank {untrained['effective_rank']:.1f}, then "
        f"{trained['effective_rank']:.1f}; share between patches "
        f"{untrained['between_patches']:.2f}, then {trained['between_patches']:.2f}."
    )


def _signal(report: Mapping[str, Any]) -> float:
    return float(report["total_variance"] * (1 - report["position_share"]))


def _patch_cosine(h: Tensor) -> float:
    unit = torch.nn.functional.normalize(h, dim=-1, eps=1e-300)
    patches = h.shape[1]
    # The squared norm of the sum holds every ordered pair, and each patch with itself.
    pairs = unit.sum(1).square().sum(-1) - unit.square().sum((1, 2))
    return (pairs / (patches * (patches - 1))).mean().item()


def _effective_rank(rows: Tensor) -> float:
    centred = rows - rows.mean(0)
    # The dim x dim covariance costs far less than singular values of every token; squaring loses
    # those below 1e-7 of the largest.
    eigenvalues = torch.linalg.eigvalsh(centred.T @ centred)
    sigma = torch.where(eigenvalues > 1e-14 * eigenvalues[-1], eigenvalues, 0.0).sqrt()
    if not sigma.sum():
        return 1.0
    return torch.special.entr(sigma / sigma.sum()).sum().exp().item()


def _digits(value: float) -> str | None:
    return f"{value:.3g}" if math.isfinite(value) else None
