"""What an image encoder is worth: probes of its features beside its untrained twin and raw pixels.

The features come from the target encoder, its patch tokens averaged (Assran et al. 2023, appendix).
Everything here takes arrays, so that raw pixels and the twin go through the same code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int, Int64, Shaped

from jepa_core import rng
from jepa_core.evaluation.knn import knn_votes
from jepa_core.evaluation.metrics import Counts, Parts, Statistic, mean_statistic
from jepa_vision.logistic import choose_penalty, fit_logistic

TRAINED, TWIN, RAW = "trained", "untrained twin", "raw pixels"
LAST_FOUR, WITH_HEAD = "last four layers", "with head"

RAW_COMPONENTS = 96  # of raw pixels that the classifier sees
_RAW_SIDE = 64  # raw pixels beyond it are averaged

Scores = Float[np.ndarray, "m classes"]


@dataclass(frozen=True)
class Result:
    """What a probe says of the test images, and how often that is right.

    Parameters
    ----------
    scores
        One a class; the highest is the answer.
    y
        The truth.
    """

    scores: Scores
    y: Int[np.ndarray, " m"]

    @property
    def hits(self) -> Float[np.ndarray, " m"]:
        """1 where the answer is right, else 0."""
        return (self.scores.argmax(1) == self.y).astype(np.float64)

    @property
    def top1(self) -> float:
        """Share of images with the right answer."""
        return float(self.hits.mean())

    @property
    def balanced_accuracy(self) -> float:
        """Mean over the classes that occur of the share of their images with the right answer."""
        return float(np.nanmean(self.balanced_statistic(np.ones((1, len(self.y)), np.int64))))

    @property
    def top1_statistic(self) -> Statistic:
        """`top1` for the bootstrap."""
        return mean_statistic(self.hits)

    @property
    def balanced_statistic(self) -> Statistic:
        """`balanced_accuracy` for the bootstrap: one part a class."""
        names, member = np.unique(self.y, return_inverse=True)
        columns = np.eye(len(names))[member]
        right = columns * self.hits[:, None]

        def statistic(counts: Counts) -> Parts:
            drawn = counts @ columns
            found = np.full(drawn.shape, np.nan)
            np.divide(counts @ right, drawn, out=found, where=drawn > 0)
            return found

        return statistic


def linear_probe(
    train: Float[np.ndarray, "n dim"],
    y: Int[np.ndarray, " n"],
    test: Float[np.ndarray, "m dim"],
    truth: Int[np.ndarray, " m"],
    *,
    classes: int | None = None,
    seed: int = 0,
) -> Result:
    """Multinomial logistic regression on standardised features.

    The L2 strength is the one with the least log loss on a fifth of the training images, drawn
    class by class; the probe is then fitted on all of them.

    Parameters
    ----------
    y, truth
        Class numbers of the training and the test images.
    classes
        How many there are; None takes those that occur.
    seed
        Of the fifth.
    """
    count = _classes(y, truth, classes)
    C = choose_penalty(train, y, held_out(y, seed), classes=count)
    probe = fit_logistic(train, y, classes=count, C=C)
    return Result(probe.scores(test), np.asarray(truth))


def knn_probe(
    train: Float[np.ndarray, "n dim"],
    y: Int[np.ndarray, " n"],
    test: Float[np.ndarray, "m dim"],
    truth: Int[np.ndarray, " m"],
    *,
    classes: int | None = None,
    k: int = 20,
    temperature: float = 0.07,
) -> Result:
    """Votes of the k nearest training images by cosine, weighted exp(cosine / temperature).

    With fewer than k training images all of them vote.
    """
    votes = knn_votes(
        train,
        y,
        test,
        classes=_classes(y, truth, classes),
        k=min(k, len(train)),
        temperature=temperature,
    )
    return Result(votes, np.asarray(truth))


def held_out(y: Int[np.ndarray, " n"], seed: int, share: float = 0.2) -> Shaped[np.ndarray, " n"]:
    """A random share of every class: bool [n]. Classes of one image stay in."""
    y = np.asarray(y)
    order = rng.words(seed, "held out", np.arange(len(y)), 0, 1)[:, 0]
    found = np.zeros(len(y), bool)
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        count = max(1, round(share * len(members))) if len(members) > 1 else 0
        found[members[np.argsort(order[members], kind="stable")[:count]]] = True
    return found


def raw_pixels(
    images: Shaped[np.ndarray, "n height width channels"], side: int = _RAW_SIDE
) -> Float32[np.ndarray, "n values"]:
    """Pixels as features, averaged over squares so that no side is much longer than `side`."""
    n, height, width, channels = images.shape
    step = max(1, math.ceil(max(height, width) / side))
    rows, cols = height // step, width // step
    cut = images[:, : rows * step, : cols * step].astype(np.float32)
    small = cut.reshape(n, rows, step, cols, step, channels).mean((2, 4))
    return small.reshape(n, -1)


def principal_components(
    train: Float[np.ndarray, "n dim"],
    test: Float[np.ndarray, "m dim"],
    components: int = RAW_COMPONENTS,
    *,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, "m k"]]:
    """Both parts on the leading principal components of the training part."""
    from sklearn.decomposition import PCA

    most = min(components, train.shape[1], len(train) - 1)
    found = PCA(most, svd_solver="randomized", random_state=seed).fit(train)
    return found.transform(train), found.transform(test)


def _classes(y: np.ndarray, truth: np.ndarray, classes: int | None) -> int:
    return int(max(np.max(y), np.max(truth))) + 1 if classes is None else classes


# ---- several encoders side by side


@dataclass(frozen=True)
class Features:
    """One kind of features of the training and the test images.

    Parameters
    ----------
    name
        What the table calls them.
    train, test
        One row an image.
    twin
        Name of the features they are compared with; "" for a twin itself.
    """

    name: str
    train: Float[np.ndarray, "n dim"]
    test: Float[np.ndarray, "m dim"]
    twin: str = TWIN


@dataclass(frozen=True)
class Pooled:
    """One encoder's features of all images, tokens averaged.

    Parameters
    ----------
    last
        Of the last layer.
    last_four
        Of the last four layers, side by side; None where there are not as many.
    head
        Of the last layer through the aggregation head; None where there is none.
    """

    last: Float32[np.ndarray, "n dim"]
    last_four: Float32[np.ndarray, "n wide"] | None = None
    head: Float32[np.ndarray, "n dim"] | None = None


def side_by_side(
    trained: Pooled,
    twin: Pooled,
    raw: Float32[np.ndarray, "n values"],
    train: Int64[np.ndarray, " train"],
    test: Int64[np.ndarray, " test"],
    *,
    seed: int = 0,
) -> list[Features]:
    """Everything that belongs in one table: each kind of features trained and untrained, and the
    principal components of raw pixels.

    Parameters
    ----------
    train, test
        Rows of the images of both parts.
    """
    found = []
    for kind in ("last", "last_four", "head"):
        both = getattr(trained, kind), getattr(twin, kind)
        if both[0] is None or both[1] is None:
            continue
        words = {"last": "", "last_four": f", {LAST_FOUR}", "head": f", {WITH_HEAD}"}[kind]
        for name, x in zip((TRAINED, TWIN), both, strict=True):
            of = f"{TWIN}{words}" if name == TRAINED else ""
            found.append(Features(name + words, x[train], x[test], of))
    components = principal_components(raw[train], raw[test], seed=seed)
    return [*found, Features(RAW, *components)]
