"""What studies of a recipe share: images that choices are made on, and runs that are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jepa_core.config import to_dict
from jepa_core.jobs import run_jobs
from jepa_vision.experiments.comparison import Material, train_arm
from jepa_vision.presets import PretrainConfig


def train_recipes(
    material: Material,
    recipes: Mapping[str, PretrainConfig],
    seeds: Sequence[int],
    *,
    keep: Path,
    jobs: int = 0,
    label: str = "runs",
) -> dict[str, list[dict[str, Any]]]:
    """Results of `train_arm` of each recipe with each seed, the untrained twin's among them.

    Parameters
    ----------
    keep
        A file that gets results as they come; those in it are not computed again.
    """
    work: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
        ({"arm": arm, "seed": seed, "recipe": to_dict(recipe)}, (material, recipe, arm, seed))
        for arm, recipe in recipes.items()
        for seed in seeds
    ]
    results = run_jobs(train_arm, work, keep=keep, processes=jobs, label=label)
    found: dict[str, list[dict[str, Any]]] = {}
    for (key, _), result in zip(work, results, strict=True):
        found.setdefault(str(key["arm"]), []).append(result)
    return found


def for_choices(material: Material) -> Material:
    """Training parts alone: every third photograph of a class and every third frame is scored."""
    place = np.zeros(len(material.y), np.int64)
    for label in np.unique(material.y):
        members = np.flatnonzero(material.y == label)
        place[members] = np.arange(len(members))
    photographs = place % 3 == 2
    frames = np.arange(len(material.train_scenes)) % 3 == 2
    return replace(
        material,
        train=material.train[~photographs],
        y=material.y[~photographs],
        test=material.train[photographs],
        truth=material.y[photographs],
        train_scenes=material.train_scenes[~frames],
        train_maps=material.train_maps[~frames],
        test_scenes=material.train_scenes[frames],
        test_maps=material.train_maps[frames],
    )
