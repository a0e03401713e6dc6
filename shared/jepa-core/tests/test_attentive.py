"""The attentive probe: exact savings, honest selection, a cache that knows what it holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from jepa_core.errors import DataError, RunError
from jepa_core.evaluation import FinetuneConfig
from jepa_core.evaluation.attentive import (
    AttentivePool,
    CacheKey,
    TokenSet,
    cached_tokens,
    fit_head,
    predict,
)
from jepa_core.training.checkpoint import state_hash


def _slow(pool: AttentivePool, tokens: Tensor) -> Tensor:
    """Cross-attention as it is written down: keys and values of every token."""
    dim = tokens.shape[-1] // pool.heads
    logits = []
    for row in tokens:
        query = pool.q(pool.query_token[0, 0])
        keys, values = pool.kv(row).chunk(2, dim=-1)
        heads = []
        for head in range(pool.heads):
            part = slice(head * dim, (head + 1) * dim)
            weight = torch.softmax(keys[:, part] @ query[part] / dim**0.5, dim=0)
            heads.append(weight @ values[:, part])
        logits.append(pool.proj(torch.cat(heads)))
    return torch.stack(logits)


def _pool(bias: bool) -> AttentivePool:
    pool = AttentivePool(12, 3, 5, bias=bias).double()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in pool.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return pool


def _data(n: int, seed: int, views: int = 2) -> TokenSet:
    """Label 0: one token (anywhere) points along axis 0; label 1: along axis 1."""
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 2, (n, 2))
    tokens = draw.normal(size=(n, views, 6, 8)).astype(np.float32)
    for record in range(n):
        for label in np.flatnonzero(y[record]):
            for view in range(views):
                tokens[record, view, draw.integers(6), label] += 6
    return TokenSet(tokens, y)


def _config(**changes: object) -> FinetuneConfig:
    settings = {"steps": 60, "batch": 32, "learning_rate": 1e-2, "final_learning_rate": 1e-2}
    return FinetuneConfig(**{**settings, "validate_every": 20, "device": "cpu", **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", [False, True])
def test_pooling_before_the_value_map_changes_no_output_and_no_gradient(bias: bool) -> None:
    pool = _pool(bias)
    draw = torch.Generator().manual_seed(2)
    tokens = torch.randn(4, 7, 12, generator=draw, dtype=torch.float64)
    upstream = torch.randn(4, 5, generator=draw, dtype=torch.float64)
    gradients = []
    for run in (pool, lambda t: _slow(pool, t)):
        leaf = tokens.clone().requires_grad_()
        pool.zero_grad()
        out = run(leaf)
        out.backward(upstream)
        gradients.append([out.detach(), leaf.grad, *(p.grad for p in pool.parameters())])
    for fast, slow in zip(*gradients, strict=True):
        # The bias of the keys has no effect at all: its gradient is rounding in the slow form.
        fast = torch.zeros_like(slow) if fast is None else fast
        torch.testing.assert_close(fast, slow, rtol=1e-11, atol=1e-11)


def test_the_weights_sum_to_one_and_find_the_token_that_is_asked_for() -> None:
    pool = _pool(bias=False)
    tokens = 0.01 * torch.randn(2, 7, 12, dtype=torch.float64)
    key_of = pool.kv.weight.chunk(2)[0][:4]  # first head
    tokens[0, 3] += 100 * torch.linalg.pinv(key_of) @ pool.q(pool.query_token)[0, 0, :4]
    weights = pool.weights(tokens)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, dtype=torch.float64))
    assert weights[0, 0].argmax() == 3


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="5 heads do not divide a width of 12"):
        AttentivePool(12, 5, 2)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = state_hash(AttentivePool(8, 2, 3).state_dict())
    torch.manual_seed(2)
    assert state_hash(AttentivePool(8, 2, 3).state_dict()) == first
    assert state_hash(AttentivePool(8, 2, 3, seed=1).state_dict()) != first


@pytest.mark.parametrize("single", [False, True])
def test_a_head_learns_which_tokens_matter_and_ends_at_its_best_step(single: bool) -> None:
    parts = [_data(300, 0), _data(120, 1)]
    if single:
        # one class a record: how many labels it carries
        parts = [TokenSet(part.tokens, part.y.sum(1)) for part in parts]
    head = AttentivePool(8, 2, 3 if single else 2)
    done = fit_head(head, *parts, _config(steps=150, validate_every=50))
    assert done.best_score > 0.9
    assert done.best_score == max(validation.score for validation in done.history)
    from jepa_core.evaluation.finetune import selection_score

    logits = predict(head, parts[1].tokens)
    assert selection_score(parts[1].y, logits) == done.best_score


def test_training_twice_gives_the_same_bits() -> None:
    hashes = set()
    for noise in (1, 2):
        torch.manual_seed(noise)
        head = AttentivePool(8, 2, 2)
        fit_head(head, _data(100, 0), _data(60, 1), _config())
        hashes.add(state_hash(head.state_dict()))
    assert len(hashes) == 1


def test_predictions_average_the_logits_of_all_views() -> None:
    head = AttentivePool(8, 2, 2)
    tokens = _data(10, 0, views=3).tokens
    with torch.no_grad():
        apart = [head(torch.from_numpy(tokens[:, view])) for view in range(3)]
    expected = torch.stack(apart).mean(0).numpy()
    np.testing.assert_allclose(predict(head, tokens), expected, atol=1e-6)
    np.testing.assert_allclose(predict(head, tokens, batch=1), expected, atol=1e-6)


def test_tokens_and_labels_of_different_records_are_an_error() -> None:
    with pytest.raises(DataError, match="tokens of 3 records, labels of 4"):
        TokenSet(np.zeros((3, 1, 2, 2)), np.zeros(4, int))
    with pytest.raises(DataError, match="views"):
        TokenSet(np.zeros((4, 2, 2)), np.zeros(4, int))


class _Encoder:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, first: int, last: int) -> Tensor:
        self.calls.append((first, last))
        rows = torch.arange(first, last, dtype=torch.float32)
        return rows[:, None, None, None].expand(-1, 2, 3, 4) / 3


def test_tokens_are_computed_once_for_a_key(tmp_path: Path) -> None:
    encode, key = _Encoder(), CacheKey("encoder", "data", "crop")
    first = cached_tokens(tmp_path, key, (5, 2, 3, 4), encode, rows=2)
    again = cached_tokens(tmp_path, key, (5, 2, 3, 4), encode, rows=2)
    assert encode.calls == [(0, 2), (2, 4), (4, 5)]
    assert isinstance(again, np.memmap)
    assert not again.flags.writeable
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(again[:, 1, 2, 3], np.arange(5) / 3, rtol=1e-6)


@pytest.mark.parametrize(
    "other",
    [
        CacheKey("x", "data", "crop"),
        CacheKey("encoder", "x", "crop"),
        CacheKey("encoder", "data", "x"),
    ],
)
def test_another_encoder_data_or_crop_is_another_entry(tmp_path: Path, other: CacheKey) -> None:
    encode = _Encoder()
    for key in (CacheKey("encoder", "data", "crop"), other):
        cached_tokens(tmp_path, key, (2, 2, 3, 4), encode)
    assert len(encode.calls) == 2


def test_half_precision_is_kept_apart_and_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    key = CacheKey("encoder", "data", "crop")
    half = cached_tokens(tmp_path, key, (2, 2, 3, 4), _Encoder(), dtype="float16")
    assert half.dtype == np.float16
    assert cached_tokens(tmp_path, key, (2, 2, 3, 4), _Encoder()).dtype == np.float32
    large: Callable[[int, int], Tensor] = lambda a, b: torch.full((b - a, 1, 1, 1), 1e5)  # noqa: E731
    with pytest.raises(DataError, match="float16"):
        cached_tokens(tmp_path, key, (2, 1, 1, 1), large, dtype="float16")


def test_an_encoder_that_fails_halfway_leaves_nothing_behind(tmp_path: Path) -> None:
    def failing(first: int, last: int) -> Tensor:
        if first:
            raise KeyboardInterrupt
        return torch.zeros(last - first, 2, 3, 4)

    key = CacheKey("encoder", "data", "crop")
    with pytest.raises(KeyboardInterrupt):
        cached_tokens(tmp_path, key, (4, 2, 3, 4), failing, rows=2)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="not"):
        cached_tokens(tmp_path, key, (4, 2, 3, 5), _Encoder())


def test_a_cache_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="file"):
        cached_tokens(tmp_path / "file", CacheKey("a", "b", "c"), (1, 2, 3, 4), _Encoder())


def test_the_hash_of_a_state_sees_names_shapes_and_bits() -> None:
    a = {"w": torch.zeros(2, 3), "b": torch.ones(2)}
    hashes = {
        state_hash(a),
        state_hash({"w": torch.zeros(3, 2), "b": torch.ones(2)}),
        state_hash({"v": torch.zeros(2, 3), "b": torch.ones(2)}),
        state_hash({"w": torch.zeros(2, 3), "b": torch.tensor([1.0, 1.0000001])}),
        state_hash({"w": torch.zeros(2, 3).bfloat16(), "b": torch.ones(2)}),
    }
    assert len(hashes) == 5
    assert state_hash(dict(reversed(a.items()))) == state_hash(a)
