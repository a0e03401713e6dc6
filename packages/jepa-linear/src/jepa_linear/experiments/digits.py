"""Handwritten digits beside a nuisance: do whole matrices keep it out as the theory says?

Two views of a digit share the digit and a nuisance of 32 dimensions that says nothing about it; a
rotation hides which is which. The nuisance's covariance lies inside the range of the leading digit
directions, and private noise makes it hard to predict: rho is small there. Deep linear networks are
trained by plain gradient descent; measured are 5-nearest-neighbour accuracy on the encoder's output
and the share of the output's energy that is nuisance.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import joblib
import numpy as np
from jaxtyping import Float, Int
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from jepa_core.progress import Progress
from jepa_linear.flows import covariances, descend
from jepa_linear.modal import modes
from jepa_linear.parameters import Objective
from jepa_linear.starts import initial_weights, modal_amplitudes, random_rotation
from jepa_linear.times import fixed_point

TRAIN = 1200
NUISANCE = 32
SHARED = 0.2  # lambda of the nuisance
VIEW_NOISE = 0.02
RATE = 0.2
LOOKS = 24
LEADING = 10


@dataclass(frozen=True)
class Setting:
    """Depth, initial scale and steps of a training."""

    depth: int
    layer_scale: float
    steps: int

    def __str__(self) -> str:
        """As in tables."""
        return f"L = {self.depth}, a0 = {self.layer_scale:g}"


# All that were tried.
SETTINGS = (
    Setting(1, 0.1, 400),
    Setting(2, 0.25, 1500),
    Setting(3, 0.4, 2000),
    Setting(2, 0.1, 4000),
    Setting(3, 0.25, 6000),
)
# How predictable the nuisance is, at equal covariance.
PREDICTABLE = (0.1, 0.3, 0.5, 0.7)
CONTROLS = ("JEPA, predictor fixed", "JEPA, no StopGrad", "JEPA, EMA target 0.99")


@dataclass(frozen=True)
class Task:
    """Two views of digits, split into training and test rows, centred on the training rows."""

    x: Float[np.ndarray, "train d"]
    y: Float[np.ndarray, "train d"]
    x_test: Float[np.ndarray, "test d"]
    labels: Int[np.ndarray, " train"]
    labels_test: Int[np.ndarray, " test"]
    nuisance: Float[np.ndarray, "d k"]


@dataclass(frozen=True)
class Curve:
    """Measures along a training.

    Parameters
    ----------
    nuisance
        Share of the energy of Wbar x on test rows that comes from the nuisance.
    fraction
        Share of their plateaus that the ten leading directions of the digits have reached.
    size
        Norm of Wbar.
    """

    steps: Int[np.ndarray, " looks"]
    accuracy: Float[np.ndarray, " looks"]
    nuisance: Float[np.ndarray, " looks"]
    fraction: Float[np.ndarray, " looks"]
    size: Float[np.ndarray, " looks"]


@dataclass(frozen=True)
class Seed:
    """What one draw of noise, nuisance, rotation and split gave."""

    fixed: dict[str, tuple[float, float]]
    trained: dict[tuple[Setting, str], Curve]
    swept: dict[tuple[float, str], Curve]
    controls: dict[str, Curve]


def make_task(seed: int, predictable: float = SHARED) -> Task:
    """The two views for one seed.

    Parameters
    ----------
    predictable
        rho of the nuisance: its private noise has variance SHARED / rho - SHARED.
    """
    rng = np.random.default_rng(seed)
    pixels, labels = load_digits(return_X_y=True)
    clean = pixels / 16 - (pixels / 16).mean(0)
    n = len(clean)
    shared = np.sqrt(SHARED) * rng.standard_normal((n, NUISANCE))
    private = np.sqrt(SHARED / predictable - SHARED)
    turn = random_rotation(clean.shape[1] + NUISANCE, rng)

    def view() -> np.ndarray:
        noisy = clean + np.sqrt(VIEW_NOISE) * rng.standard_normal(clean.shape)
        blurred = shared + private * rng.standard_normal(shared.shape)
        return np.concatenate((noisy, blurred), axis=1) @ turn.T

    x, y = view(), view()
    rows = rng.permutation(n)
    train, test = rows[:TRAIN], rows[TRAIN:]
    x, y = x - x[train].mean(0), y - y[train].mean(0)
    return Task(x[train], y[train], x[test], labels[train], labels[test], turn[:, clean.shape[1] :])


def neighbours(
    train: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    test: Float[np.ndarray, "m d"],
    labels_test: Int[np.ndarray, " m"],
) -> float:
    """Accuracy of 5 nearest neighbours: unlike a linear probe, they see scales."""
    model = KNeighborsClassifier(5).fit(train, labels)
    return float(model.score(test, labels_test))


def measure(Wbar: Float[np.ndarray, "k d"], task: Task) -> tuple[float, float]:
    """Accuracy on Wbar x, and the share of nuisance in its energy."""
    accuracy = neighbours(task.x @ Wbar.T, task.labels, task.x_test @ Wbar.T, task.labels_test)
    whole = ((task.x_test @ Wbar.T) ** 2).sum()
    part = ((task.x_test @ task.nuisance @ (Wbar @ task.nuisance).T) ** 2).sum()
    return accuracy, float(part / whole)


def train(task: Task, setting: Setting, objective: Objective = "jepa", control: str = "") -> Curve:
    """Full-batch gradient descent from identities, measured along the way."""
    Sxx, Syx, Syy = covariances(task.x, task.y)
    W0, V0 = initial_weights(
        len(Sxx),
        setting.depth,
        layer_scale=setting.layer_scale,
        objective=objective,
        rotate=False,
    )
    every = max(1, setting.steps // 100)
    more: dict[str, object] = {}
    if control == CONTROLS[0]:
        V0, more = np.eye(len(Sxx)), {"predictor": "fixed"}
    elif control == CONTROLS[1]:
        more = {"target": "none", "Syy": Syy}
    elif control == CONTROLS[2]:
        more = {"target": "ema", "momentum": 0.99}
    path = descend(
        W0,
        V0,
        Sxx,
        Syx,
        lr=RATE,
        steps=setting.steps,
        objective=objective,
        record_every=every,
        **more,  # type: ignore[arg-type]
    )
    last = len(path.times) - 1
    looks = np.unique(np.geomspace(1, last, LOOKS).round().astype(int))
    found = [measure(path.Wbar[i], task) for i in looks]
    m = modes(Sxx, Syx)
    # Of the digits: the nuisance predicts itself badly.
    top = np.argsort(np.where(m.rho > 0.5, -m.lam, 0.0))[:LEADING]
    w = modal_amplitudes(np.asarray(path.Wbar)[looks], np.asarray(path.Wbar[0]), m.directions)
    plateau = fixed_point(m.rho[top], setting.depth, objective)
    return Curve(
        path.times[looks].astype(np.int64),
        np.array([accuracy for accuracy, _ in found]),
        np.array([nuisance for _, nuisance in found]),
        (w[:, top] / plateau).mean(axis=1),
        np.array([float(np.linalg.norm(path.Wbar[i])) for i in looks]),
    )


def fixed_features(task: Task, seed: int) -> dict[str, tuple[float, float]]:
    """What needs no training: raw features, a random projection, principal components."""
    d = task.x.shape[1]
    rng = np.random.default_rng((seed, 1))
    components = PCA(10).fit(task.x).components_
    return {
        "raw features": measure(np.eye(d), task),
        "random projection (untrained)": measure(rng.standard_normal((d, d)) / d**0.5, task),
        "PCA, 10 components": measure(components, task),
        "clean digits with view noise (ceiling)": (_ceiling(task), 0.0),
    }


def _ceiling(task: Task) -> float:
    # Everything but the nuisance: an orthonormal basis of the rest.
    basis = np.linalg.svd(task.nuisance, full_matrices=True)[0][:, NUISANCE:]
    return neighbours(task.x @ basis, task.labels, task.x_test @ basis, task.labels_test)


def run_seed(seed: int, settings: Sequence[Setting]) -> Seed:
    """Every arm for one seed; the nuisance is swept and controls are trained at setting two."""
    task = make_task(seed)
    arms: tuple[tuple[str, Objective], ...] = (("JEPA", "jepa"), ("MAE", "mae"))
    trained = {
        (setting, name): train(task, setting, objective)
        for setting in settings
        for name, objective in arms
    }
    swept: dict[tuple[float, str], Curve] = {}
    for rho in PREDICTABLE:
        other = make_task(seed, rho)
        for name, objective in arms:
            swept[rho, name] = train(other, settings[1], objective)
    controls = {name: train(task, settings[1], control=name) for name in CONTROLS}
    return Seed(fixed_features(task, seed), trained, swept, controls)


def run(seeds: Sequence[int], settings: Sequence[Setting]) -> list[Seed]:
    """Every seed, a process a core with one thread each."""
    jobs = min(len(seeds), os.cpu_count() or 1)
    found: list[Seed] = []
    with Progress("digits, seeds", len(seeds)) as progress:
        parallel = joblib.Parallel(n_jobs=jobs, return_as="generator")
        for one in parallel(joblib.delayed(run_seed)(seed, settings) for seed in seeds):
            found.append(one)
            progress.update(len(found))
    return found
