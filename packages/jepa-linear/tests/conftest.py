"""What several of these tests share: the command as a user runs it, and generated views."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(scope="session")
def pairs() -> tuple[np.ndarray, np.ndarray]:
    """600 pairs of 4 features with known lambda and rho along the axes, float64."""
    from jepa_linear.generative import temporal_pairs

    g, S, N = np.array([0.9, 0.8, 0.6, 0.4]), np.array([1.0, 1.2, 2.0, 3.0]), np.full(4, 0.2)
    return temporal_pairs(g, S, N, 600, seed=3)
