"""What a representation of rows looks like: collapse, spread, and which columns it serves.

Every quantity is computed in float64 from `X` [rows, tokens, dim], the tokens of a set of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64

from jepa_core import rng
from jepa_core.errors import DataError
from jepa_core.health.quantities import linear_cka
from jepa_core.report.table import Cell, Table

PAIRS = 20  # of rows, as the official program draws them
DEAD = 1e-4  # standard deviation below which a dimension says nothing
WARN, FAIL = 0.2, 0.05  # of the untrained twin's row variance

Scorer = Callable[[Float[np.ndarray, "n tokens dim"]], float]

_NAMES = {
    "intra_feature_variance": "row variance (mean over tokens and dimensions)",
    "inter_feature_variance": "variance of token means",
    "effective_rank": "effective rank",
    "dead_dims": "share of dead dimensions",
    "uniformity": "uniformity",
    "alignment": "alignment of two views",
    "euclidean": "distance of two rows",
    "KL": "official KL",
}


def collapse_report(
    X: Float[np.ndarray, "rows tokens dim"],
    *,
    pairs: Int[np.ndarray, "pairs 2"] | None = None,
    views: Float[np.ndarray, "rows 2 dim"] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Is a representation collapsing, and how much of its width does it use?

    Parameters
    ----------
    X
        Tokens of a set of rows.
    pairs
        Rows to compare for `KL` and `euclidean`; None draws 20 from the seed, which may coincide.
    views
        Two representations of each row seen through different contexts, for `alignment`.

    Returns
    -------
    dict
        - `intra_feature_variance`: variance over rows, mean over tokens and dimensions. It falls to
          0 in a collapse and is the one to watch. `token_row_variance` is its list over tokens.
        - `inter_feature_variance`: variance of all entries of the rows' token means.
        - `KL`: the official program's divergence of two rows' values, each on its own grid (see
          `official_divergence`); not a distance in any strict sense.
        - `euclidean`: distance of two flattened rows, mean over the pairs.
        - `effective_rank`: exp of the entropy of the eigenvalues of the flattened features'
          correlations (Roy & Vetterli 2007), dead dimensions left out.
        - `dead_dims`: share of flattened dimensions with a standard deviation below 1e-4.
        - `uniformity`: ln of the mean over pairs of rows of exp(-2 ||u - v||^2), rows normalised
          (Wang & Isola 2020); 0 when all rows point one way.
        - `alignment`: mean squared distance of a row's two normalised views; only with `views`.

    Raises
    ------
    DataError
        Fewer than two rows, or values that are not finite.
    """
    X = _checked(X)
    rows = len(X)
    if pairs is None:
        pairs = rng.bounded_large(rng.words(seed, "pairs", np.arange(PAIRS), 0, 4), rows)
    flat = X.reshape(rows, -1)
    by_token = X.var(axis=0).mean(axis=1)
    std = flat.std(axis=0)
    found: dict[str, Any] = {
        "intra_feature_variance": float(by_token.mean()),
        "inter_feature_variance": float(X.mean(axis=1).var()),
        "KL": float(np.mean([official_divergence(flat[a], flat[b]) for a, b in pairs])),
        "euclidean": float(np.mean([np.linalg.norm(flat[a] - flat[b]) for a, b in pairs])),
        "effective_rank": _effective_rank(flat, std),
        "dead_dims": float((std < DEAD).mean()),
        "uniformity": _uniformity(flat),
        "token_row_variance": by_token.tolist(),
    }
    if views is not None:
        first, second = np.moveaxis(_unit(np.asarray(views, np.float64)), 1, 0)
        found["alignment"] = float(np.square(first - second).sum(axis=1).mean())
    return found


def official_divergence(
    first: Float[np.ndarray, " values"], second: Float[np.ndarray, " values"]
) -> float:
    """The official program's KL of two rows' values.

    Gaussian kernel densities (Scott's width), each at 100 points between its own smallest and
    largest value and normalised to sum 1: the two grids differ, so this is no real divergence.
    Identical values have no density and give NaN.
    """
    p, q = _density(first), _density(second)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.sum(p * np.log(p / q)))


def _density(values: np.ndarray, points: int = 100) -> np.ndarray:
    from scipy.stats import gaussian_kde

    values = np.asarray(values).ravel()
    if len(values) < 2 or values.max() == values.min():
        return np.full(points, np.nan)
    grid = np.linspace(values.min(), values.max(), points)
    density = gaussian_kde(values)(grid)
    return density / density.sum()


def _effective_rank(flat: np.ndarray, std: np.ndarray) -> float:
    alive = std >= DEAD
    if not alive.any():
        return 1.0
    Z = (flat[:, alive] - flat[:, alive].mean(axis=0)) / std[alive]
    # The smaller of the two Gram matrices has all eigenvalues that are not 0.
    gram = Z.T @ Z if Z.shape[0] > Z.shape[1] else Z @ Z.T
    p = np.linalg.eigvalsh(gram).clip(0)
    p = p[p > 1e-12 * p.sum()] / p.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


def _uniformity(flat: np.ndarray, most: int = 2000) -> float:
    unit = _unit(flat[:most])
    squared = (2 - 2 * unit @ unit.T).clip(0)
    above = np.triu_indices(len(unit), 1)
    return float(np.log(np.exp(-2 * squared[above]).mean()))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-300)


def _checked(X: np.ndarray) -> np.ndarray:
    X = np.asarray(X, np.float64)
    if X.ndim != 3 or len(X) < 2:
        raise DataError(
            f"tokens are {X.shape}", remedy="give [rows, tokens, dim] of two rows at least"
        )
    if not np.isfinite(X).all():
        raise DataError("tokens are not all finite", remedy="look for NaN in the encoder's input")
    return X


def collapse_table(reports: Mapping[str, Mapping[str, Any]], *, title: str = "") -> Table:
    """Reports of several representations side by side, and in words whether the last collapsed.

    Parameters
    ----------
    reports
        Name to what `collapse_report` gave; the first is the reference (the untrained twin), the
        last the one that is judged.
    """
    keys = [key for key in _NAMES if any(key in report for report in reports.values())]
    rows: list[list[Cell]] = [
        [_NAMES[key], *(_digits(report.get(key)) for report in reports.values())] for key in keys
    ]
    names = list(reports)
    notes: tuple[str, ...] = ()
    if len(names) > 1:
        notes = (collapse_sentence(reports[names[0]], reports[names[-1]]),)
    return Table(title or "collapse", ("quantity", *names), rows, notes)


def collapse_sentence(untrained: Mapping[str, Any], trained: Mapping[str, Any]) -> str:
    """What has become of the row variance and the effective rank of the untrained twin."""
    before, after = untrained["intra_feature_variance"], trained["intra_feature_variance"]
    share = after / before if before > 0 else math.nan
    state = "no collapse"
    if share < FAIL:
        state = "the representation collapsed"
    elif share < WARN:
        state = "close to collapse"
    return (
        f"Row variance {before:.2g} untrained, {after:.2g} trained ({share:.0%}): {state}; "
        f"effective rank {untrained['effective_rank']:.1f}, then {trained['effective_rank']:.1f}."
    )


def _digits(value: object) -> str | None:
    return f"{value:.3g}" if isinstance(value, float) and math.isfinite(value) else None


def similarity(features: Mapping[str, Float[np.ndarray, "rows _"]]) -> Float64[np.ndarray, "k k"]:
    """Linear CKA (Kornblith et al. 2019) of every two representations of the same rows."""
    tensors = [torch.from_numpy(np.asarray(x, np.float64)) for x in features.values()]
    found = np.eye(len(tensors))
    for i, first in enumerate(tensors):
        for j in range(i):
            found[i, j] = found[j, i] = linear_cka(first, tensors[j])
    return found


@dataclass(frozen=True)
class Relevance:
    """What each column is worth to a probe of the tokens, and to boosted trees on the columns.

    Parameters
    ----------
    columns
        Names, in the order of the table.
    probe
        Drop of the probe's score when the column's token is replaced by its mean.
    trees
        Permutation importance of the column for the trees.
    spearman
        Rank correlation of the two; NaN where one of them is constant.
    """

    columns: tuple[str, ...]
    probe: Float64[np.ndarray, " columns"]
    trees: Float64[np.ndarray, " columns"]
    spearman: float

    def table(self) -> Table:
        """Columns, those that matter most to the trees first."""
        order = np.argsort(-self.trees, kind="stable")
        note = (
            "Too little varies to compare the probe with the trees."
            if math.isnan(self.spearman)
            else f"The probe of the tokens and the boosted trees rank the columns alike to a "
            f"Spearman correlation of {self.spearman:+.2f}."
        )
        return Table(
            "feature relevance",
            ("column", "probe: drop without the token", "trees: drop when shuffled"),
            [[self.columns[i], float(self.probe[i]), float(self.trees[i])] for i in order],
            (note,),
        )


def compare_relevance(
    columns: Sequence[str],
    probe: Float[np.ndarray, " columns"],
    trees: Float[np.ndarray, " columns"],
) -> Relevance:
    """Relevance of the columns by two measures, both in the order of the table."""
    from scipy.stats import spearmanr

    rho = math.nan
    if np.ptp(probe) > 0 and np.ptp(trees) > 0:
        rho = float(spearmanr(probe, trees).statistic)
    return Relevance(tuple(columns), np.asarray(probe), np.asarray(trees), rho)


def token_relevance(
    score: Scorer,
    X: Float[np.ndarray, "n tokens dim"],
    mean: Float[np.ndarray, "tokens dim"],
) -> Float64[np.ndarray, " tokens"]:
    """Drop of a score when one token at a time says the same of all rows.

    Parameters
    ----------
    score
        Tokens of rows that the probe was not fitted on to its score, higher is better.
    X
        Those tokens.
    mean
        What replaces a token: its mean over the rows of the fit.
    """
    whole = score(X)
    drops = np.empty(X.shape[1])
    for token in range(X.shape[1]):
        ablated = X.copy()
        ablated[:, token] = mean[token]
        drops[token] = whole - score(ablated)
    return drops


def column_relevance(
    drops: Float[np.ndarray, " tokens"], order: Sequence[int], registers: int
) -> Float64[np.ndarray, " columns"]:
    """Drops of the columns' tokens in the order of the table; [REG] tokens are left out.

    Parameters
    ----------
    order
        Place in the table of each column's token, `TableShape.order`.
    """
    found = np.empty(len(order))
    found[list(order)] = drops[registers:]
    return found


def sample_rows(
    rows: Int64[np.ndarray, " rows"], most: int, *, seed: int = 0
) -> Int64[np.ndarray, " chosen"]:
    """At most `most` of the rows, drawn from the seed, ascending."""
    if len(rows) <= most:
        return rows
    words = rng.words(seed, "sample", rows, 0, 1)[:, 0]
    return np.sort(rows[np.argsort(words, kind="stable")[:most]])
