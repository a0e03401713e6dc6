"""Attention: recorded outputs and gradients, and what a row without keys must do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend

from jepa_core.attention import (
    Backend,
    attention,
    attention_ragged,
    attention_reference,
    choose_backend,
    contextual_bias,
)
from jepa_core.attention.reference import attention_weights
from jepa_core.attention.torch_backend import choose_kernels
from jepa_core.errors import ConfigError

BACKENDS: tuple[Backend, ...] = ("reference", "torch")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}


@pytest.fixture(scope="module")
def golden(data: Callable[[str], Path]) -> Mapping[str, np.ndarray]:
    return np.load(data("core") / "golden_attention.npz")


def close(actual: Tensor, expected: Tensor | np.ndarray, tolerance: float) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


class Inputs:
    """Recorded queries, keys and values that collect gradients."""

    def __init__(self, golden: Mapping[str, np.ndarray], dtype: torch.dtype) -> None:
        self.golden = golden
        self.tolerance = TOLERANCE[dtype]
        self.q, self.k, self.v = (
            torch.tensor(golden[name], dtype=dtype, requires_grad=True) for name in "qkv"
        )
        self.grad_out = torch.tensor(golden["grad_out"], dtype=dtype)

    def check(self, case: str, out: Tensor) -> None:
        out.backward(self.grad_out)
        close(out.detach(), self.golden[f"{case}_out"], self.tolerance)
        for name, leaf in (("dq", self.q), ("dk", self.k), ("dv", self.v)):
            close(leaf.grad, self.golden[f"{case}_{name}"], self.tolerance)


@pytest.fixture(params=TOLERANCE, ids=str)
def inputs(request: pytest.FixtureRequest, golden: Mapping[str, np.ndarray]) -> Inputs:
    return Inputs(golden, request.param)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["dense", "causal", "key_padding", "masked"])
def test_every_backend_reproduces_the_recorded_outputs_and_gradients(
    golden: Mapping[str, np.ndarray], inputs: Inputs, case: str, backend: Backend
) -> None:
    options = {
        "dense": {},
        "causal": {"causal": True},
        "key_padding": {"key_lengths": torch.from_numpy(golden["lengths"])},
        "masked": {"mask": torch.from_numpy(golden["mask"])},
    }[case]
    inputs.check(case, attention(inputs.q, inputs.k, inputs.v, backend=backend, **options))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bias_gets_the_recorded_gradient(inputs: Inputs, backend: Backend) -> None:
    bias = torch.tensor(inputs.golden["bias"], dtype=inputs.q.dtype, requires_grad=True)
    inputs.check("bias", attention(inputs.q, inputs.k, inputs.v, bias=bias, backend=backend))
    close(bias.grad, inputs.golden["bias_dbias"], inputs.tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_contextual_bias_gets_the_recorded_gradients(inputs: Inputs, backend: Backend) -> None:
    table = torch.tensor(inputs.golden["ctx_table"], dtype=inputs.q.dtype, requires_grad=True)
    bias = contextual_bias(inputs.q, table, torch.from_numpy(inputs.golden["ctx_bucket"]))
    inputs.check("ctx", attention(inputs.q, inputs.k, inputs.v, bias=bias, backend=backend))
    close(table.grad, inputs.golden["ctx_dtable"], inputs.tolerance)


def test_a_contextual_bias_may_have_one_table_per_head() -> None:
    q, table = normal(0, 2, 3, 5, 4), normal(1, 3, 4, 6)
    bucket = torch.randint(6, (5, 7), generator=torch.Generator().manual_seed(2))
    bias = contextual_bias(q, table, bucket, scale=0.3)
    for head in range(3):
        shared = contextual_bias(q[:, head : head + 1], table[head], bucket, scale=0.3)
        close(bias[:, head : head + 1], shared, 1e-14)
    close(bias[1, 2, 3, 4], 0.3 * q[1, 2, 3] @ table[2, :, bucket[3, 4]], 1e-14)


def test_the_weights_reproduce_the_recorded_ones(golden: Mapping[str, np.ndarray]) -> None:
    q, k = torch.from_numpy(golden["q"]), torch.from_numpy(golden["k"])
    weights = attention_weights(q, k)
    close(weights, golden["dense_weights"], 1e-12)
    normaliser = q @ k.transpose(-2, -1) / 8**0.5 - weights.log()
    close(normaliser, torch.from_numpy(golden["dense_lse"])[..., None].expand_as(weights), 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_sequences_reproduce_the_recorded_output(
    golden: Mapping[str, np.ndarray], backend: Backend
) -> None:
    q, k, v, cu_q, cu_k = (
        torch.from_numpy(golden[f"ragged_{name}"]) for name in ("q", "k", "v", "cu_q", "cu_k")
    )
    close(attention_ragged(q, k, v, cu_q, cu_k, backend=backend), golden["ragged_out"], 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", ["mask", "key_lengths", "bias", "mask and bias"])
def test_an_empty_row_attends_to_nothing(backend: Backend, dtype: torch.dtype, how: str) -> None:
    leaves = [normal(i, 2, 3, 5, 4, dtype=dtype).requires_grad_() for i in range(3)]
    mask = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(3)) < 0.7
    mask[1] = False
    minus_infinity = torch.zeros(2, 1, 5, 5, dtype=dtype).masked_fill(~mask, -float("inf"))
    options = {
        "mask": {"mask": mask},
        "key_lengths": {"key_lengths": torch.tensor([4, 0])},
        "bias": {"bias": minus_infinity},
        "mask and bias": {"mask": mask, "bias": normal(4, 3, 5, 5, dtype=dtype)},
    }[how]
    out = attention(*leaves, backend=backend, **options)
    out.sum().backward()
    assert (out[1] == 0).all()
    assert (out[0] != 0).any()
    for leaf in leaves:
        assert (leaf.grad[1] == 0).all()
        assert leaf.grad.isfinite().all()
    assert (leaves[2].grad[0] != 0).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_single_empty_row_adds_nothing_to_the_gradients_of_its_keys(backend: Backend) -> None:
    q, k, v = (normal(i, 1, 2, 4, 4).requires_grad_() for i in range(3))
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    mask[..., 2, :] = False
    weights = normal(5, 1, 2, 4, 4)
    (attention(q, k, v, mask=mask, backend=backend) * weights).sum().backward()
    others = torch.tensor([0, 1, 3])
    q2, k2, v2 = (x.detach().clone().requires_grad_() for x in (q, k, v))
    out = attention(q2[:, :, others], k2, v2, backend=backend)
    (out * weights[:, :, others]).sum().backward()
    for leaf, expected in ((q, q2), (k, k2), (v, v2)):
        close(leaf.grad, expected.grad, 1e-12)


@pytest.mark.parametrize(("queries", "keys"), [(3, 0), (0, 3), (0, 0)])
def test_no_keys_give_zeros_and_no_queries_nothing(queries: int, keys: int) -> None:
    q, k, v = (normal(i, 2, 3, n, 4).requires_grad_() for i, n in enumerate((queries, keys, keys)))
    for options in ({}, {"key_lengths": torch.tensor([keys, 0])}):
        out = attention(q, k, v, **options)
        assert out.shape == (2, 3, queries, 4)
        assert (out == 0).all()
        out.sum().backward()
        assert q.grad.shape == q.shape
        assert (q.grad == 0).all()
        assert (k.grad == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_mask_lengths_and_causality_all_must_allow_a_pair(backend: Backend) -> None:
    q, k, v = (normal(i, 2, 3, 6, 4) for i in range(3))
    mask = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(3)) < 0.7
    lengths = torch.tensor([6, 3])
    out = attention(q, k, v, mask=mask, key_lengths=lengths, causal=True, backend=backend)
    allowed = mask.clone()
    for b in range(2):
        for i in range(6):
            for j in range(6):
                allowed[b, 0, i, j] &= j < lengths[b] and j <= i
    close(out, attention_reference(q, k, v, mask=allowed), 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_scale_replaces_the_default(backend: Backend) -> None:
    q, k, v = (normal(i, 2, 3, 6, 4) for i in range(3))
    scores = (0.1 * q @ k.transpose(-2, -1)).exp()
    expected = scores / scores.sum(-1, keepdim=True) @ v
    close(attention(q, k, v, scale=0.1, backend=backend), expected, 1e-12)


def test_causal_attention_of_unequal_lengths_is_refused() -> None:
    q, k = torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 4, 2)
    with pytest.raises(ConfigError, match="3 queries and 4 keys"):
        attention(q, k, k, causal=True)


def test_an_unknown_backend_is_refused() -> None:
    q = torch.zeros(1, 1, 3, 2)
    with pytest.raises(ConfigError, match="'fast'"):
        attention(q, q, q, backend="fast")


def test_the_fused_kernel_is_chosen_unless_there_is_nothing_to_fuse() -> None:
    q, none = torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 0, 2)
    assert choose_backend(q, q) == "torch"
    assert choose_backend(q, none) == "reference"
    assert choose_backend(none, q) == "reference"


def test_half_precision_training_on_a_cpu_takes_the_plain_products() -> None:
    half = torch.zeros(1, 1, 3, 2, dtype=torch.bfloat16)
    learned = half.clone().requires_grad_()
    assert choose_kernels(learned, half, half) == SDPBackend.MATH
    assert choose_kernels(half, half, half) is None
    assert choose_kernels(learned.float(), half.float(), half.float()) is None
    with torch.no_grad():
        assert choose_kernels(learned, half, half) is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_keeps_the_expectation(backend: Backend) -> None:
    torch.manual_seed(0)
    q, k, v = (normal(i, 1, 1, 6, 4) for i in range(3))
    draws = torch.stack([attention(q, k, v, dropout=0.5, backend=backend) for _ in range(2000)])
    assert draws.std(0).min() > 0
    error = (draws.mean(0) - attention(q, k, v)).abs() / (draws.std(0) / 2000**0.5)
    assert error.max() < 5


lengths = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=0, max_size=8)


@settings(deadline=None, max_examples=40)
@given(lengths=lengths, seed=st.integers(0, 2**31))
def test_packed_sequences_attend_each_to_itself(lengths: list[tuple[int, int]], seed: int) -> None:
    cu_q, cu_k = (
        torch.tensor([0, *np.cumsum([pair[i] for pair in lengths])], dtype=torch.int32)
        for i in (0, 1)
    )
    q = normal(seed, int(cu_q[-1]), 2, 3).requires_grad_()
    k, v = (normal(seed + i, int(cu_k[-1]), 2, 3).requires_grad_() for i in (1, 2))
    weights = normal(seed + 3, *q.shape)
    out = attention_ragged(q, k, v, cu_q, cu_k)
    expected = []
    for b in range(len(lengths)):
        one_q = q[cu_q[b] : cu_q[b + 1]].transpose(0, 1)[None]
        one_k, one_v = (x[cu_k[b] : cu_k[b + 1]].transpose(0, 1)[None] for x in (k, v))
        expected.append(attention_reference(one_q, one_k, one_v)[0].transpose(0, 1))
    twin = torch.cat(expected) if expected else q
    close(out, twin, 1e-12)
    if lengths:
        gradients = torch.autograd.grad((out * weights).sum(), (q, k, v))
        for gradient, truth in zip(
            gradients, torch.autograd.grad((twin * weights).sum(), (q, k, v)), strict=True
        ):
            close(gradient, truth, 1e-12)
    close(attention_ragged(q, k, v, cu_q, cu_k, backend="reference"), twin, 1e-12)


@pytest.mark.parametrize("cost_of_a_call", [0, 2**62], ids=["by runs", "by groups"])
def test_equal_sequences_in_a_row_share_a_call_and_still_attend_each_to_itself(
    cost_of_a_call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jepa_core.attention.ragged._CALL", cost_of_a_call)
    queries, keys = [2, 2, 2, 0, 0, 3, 3, 1], [4, 4, 5, 3, 3, 0, 0, 20]
    cu_q, cu_k = (torch.tensor([0, *np.cumsum(each)]) for each in (queries, keys))
    q = normal(0, int(cu_q[-1]), 2, 3).requires_grad_()
    k, v = (normal(i, int(cu_k[-1]), 2, 3).requires_grad_() for i in (1, 2))
    out, twin = (
        attention_ragged(q, k, v, cu_q, cu_k, backend=backend) for backend in ("torch", "reference")
    )
    close(out, twin, 1e-12)
    weights = normal(3, *q.shape)
    for gradient, truth in zip(
        torch.autograd.grad((out * weights).sum(), (q, k, v)),
        torch.autograd.grad((twin * weights).sum(), (q, k, v)),
        strict=True,
    ):
        close(gradient, truth, 1e-12)


def test_offsets_that_do_not_fit_the_rows_are_refused() -> None:
    x = torch.zeros(5, 2, 3)
    with pytest.raises(ConfigError, match="5 queries"):
        attention_ragged(x, x, x, torch.tensor([0, 4]), torch.tensor([0, 5]))
    with pytest.raises(ConfigError, match="2 key sequences"):
        attention_ragged(x, x, x, torch.tensor([0, 5]), torch.tensor([0, 2, 5]))
