"""Phase diagrams against one pair of modes at a time; torch against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import jepa_linear as jl
from jepa_core.errors import ConfigError, DataError
from jepa_linear import Phase, Status


def _slow(lam_a, rho_a, lam_b, rho_b, depth, **setting):
    """The phase of one pair, from the order of two modes."""
    lam, rho = np.array([lam_a, lam_b]), np.array([rho_a, rho_b])
    status = jl.status(lam, rho, depth, **setting)
    if (status >= Status.SUPPRESSED).any():
        return Phase.JEPA_LACKS_ONE
    first = [
        int(jl.order(lam, rho, depth, objective=objective, **setting)[0])
        for objective in ("jepa", "mae")
    ]
    return {
        (0, 0): Phase.BOTH_A,
        (1, 1): Phase.BOTH_B,
        (1, 0): Phase.JEPA_B_MAE_A,
        (0, 1): Phase.JEPA_A_MAE_B,
    }[tuple(first)]


@pytest.mark.parametrize("fix", ["layer_scale", "eps"])
def test_every_cell_is_what_two_modes_say(fix):
    lam, rho = np.geomspace(0.2, 5, 9), np.linspace(0.05, 1.5, 11)
    depths, scales = (1, 2, 5), ((0.1, 0.3) if fix == "layer_scale" else (1e-4, 1e-2))
    found = jl.phase_diagram(lam, rho, depths, scales, rho_a=0.6, lam_a=1.3, fix=fix, p=0.4)
    assert found.phases.shape == (2, 3, 11, 9)
    for index in np.ndindex(found.phases.shape):
        s, k, i, j = index
        setting = {fix: scales[s], "p": 0.4}
        pair = (1.3, 0.6, lam[j], rho[i], depths[k])
        assert found.phases[index] == _slow(*pair, **setting), pair
        for objective in ("jepa", "mae"):
            gap = getattr(found, objective)[index]
            status = jl.status([1.3, lam[j]], [0.6, rho[i]], depths[k], objective=objective,
                               **setting)  # fmt: skip
            if (status == Status.GROWS).all():
                both = jl.critical_time(
                    np.array([1.3, lam[j]]), np.array([0.6, rho[i]]), depths[k], log=True,
                    objective=objective, **setting,
                )  # fmt: skip
                assert gap == pytest.approx(both[1] - both[0], abs=1e-11)
            else:
                assert np.isnan(gap)
    assert set(np.unique(found.phases)) == set(range(5))


def test_the_boundary_of_the_diagram_is_that_of_inversion():
    lam = np.linspace(0.3, 1.2, 2001)
    found = jl.phase_diagram(lam, np.array([0.9]), (3,), (0.2,), rho_a=0.4)
    boundary = jl.inversion_boundary(0.4, 0.9, 3, layer_scale=0.2)
    inside = np.isin(found.phases[0, 0, 0], (Phase.BOTH_B, Phase.JEPA_B_MAE_A))
    assert lam[inside].min() == pytest.approx(boundary, abs=1e-3)


def test_torch_diagrams_equal_numpy():
    lam, rho = np.geomspace(0.1, 4, 40), np.linspace(0.05, 1.4, 50)
    expected = jl.phase_diagram(lam, rho, (1, 3, 8), (0.1, 0.25))
    found = jl.phase_diagram(torch.from_numpy(lam), torch.from_numpy(rho), (1, 3, 8), (0.1, 0.25))
    assert found.phases.dtype == torch.int8
    np.testing.assert_array_equal(found.phases.numpy(), expected.phases)
    np.testing.assert_allclose(found.jepa.numpy(), expected.jepa, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.mae.numpy(), expected.mae, rtol=1e-12, atol=1e-12)


@given(
    seed=st.integers(0, 10_000),
    depth=st.integers(1, 12),
    objective=st.sampled_from(("jepa", "mae")),
)
def test_large_sweeps_in_torch_equal_numpy_to_rounding(seed, depth, objective):
    rng = np.random.default_rng(seed)
    size = 20_000 if seed % 50 == 0 else 200  # more than one chunk now and then
    lam, rho = rng.uniform(0.1, 5, size), rng.uniform(0.02, 2, size)
    p, a0 = rng.uniform(0.05, 0.95, size), rng.uniform(0.01, 0.4, size)
    setting = {"objective": objective}
    expected = jl.critical_time(lam, rho, depth, layer_scale=a0, p=p, **setting)
    tensors = [torch.from_numpy(value) for value in (lam, rho, a0, p)]
    found = jl.critical_time(
        tensors[0], tensors[1], depth, layer_scale=tensors[2], p=tensors[3], **setting
    ).numpy()
    np.testing.assert_array_equal(np.isinf(found), np.isinf(expected))
    # Near the start t* is the small difference of the two scales: rounding moves it.
    near = 1e-14 * depth / lam * a0 ** (1 - 2 * depth if objective == "jepa" else 1 - depth)
    finite = np.isfinite(expected)
    difference = np.abs(found[finite] - expected[finite])
    assert np.all(difference <= 1e-12 * expected[finite] + near[finite])


@pytest.mark.gpu
def test_a_gpu_gives_the_same_times():
    rng = np.random.default_rng(0)
    lam, rho = rng.uniform(0.5, 5, 10_000), rng.uniform(0.3, 2, 10_000)
    expected = jl.critical_time(lam, rho, 6, layer_scale=0.1)
    tensors = [torch.from_numpy(value).cuda() for value in (lam, rho)]
    found = jl.critical_time(*tensors, 6, layer_scale=0.1)
    assert found.is_cuda
    np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=1e-12)


def test_axes_and_conventions_are_checked():
    with pytest.raises(DataError):
        jl.phase_diagram([0.0, 1.0], [0.5], (2,), (0.1,))
    with pytest.raises(DataError):
        jl.phase_diagram([1.0], [-0.5], (2,), (0.1,))
    with pytest.raises(ConfigError):
        jl.phase_diagram([1.0], [0.5], (2,), (0.1,), fix="scale")
    with pytest.raises(ConfigError):
        jl.phase_diagram([1.0], [0.5], (0,), (0.1,))
