from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jepa_core.errors import DataError
from jepa_core.tokens import IndexSet, Packed

DIM = 3


@st.composite
def masks(draw: st.DrawFn) -> Tensor:
    batch, tokens = draw(st.integers(0, 5)), draw(st.integers(0, 7))
    bits = draw(st.lists(st.booleans(), min_size=batch * tokens, max_size=batch * tokens))
    return torch.tensor(bits, dtype=torch.bool).reshape(batch, tokens)


def values_for(mask: Tensor) -> Tensor:
    batch, tokens = mask.shape
    return torch.arange(1.0, batch * tokens * DIM + 1, dtype=torch.float64).reshape(
        batch, tokens, DIM
    )


@settings(deadline=None)
@given(mask=masks())
def test_a_mask_survives_the_round_trip(mask: Tensor) -> None:
    index = IndexSet.from_mask(mask)
    index.validate(mask.shape[1])
    assert torch.equal(index.to_mask(mask.shape[1]), mask)
    assert index.indices.dtype == index.lengths.dtype == torch.int32
    for b in range(len(mask)):
        expected = [t for t in range(mask.shape[1]) if mask[b, t]]
        assert index.indices[b, : index.lengths[b]].tolist() == expected


@settings(deadline=None)
@given(mask=masks())
def test_the_complement_is_the_rest_and_its_complement_the_set(mask: Tensor) -> None:
    tokens = mask.shape[1]
    index = IndexSet.from_mask(mask)
    rest = index.complement(tokens)
    rest.validate(tokens)
    assert torch.equal(rest.to_mask(tokens), ~mask)
    back = rest.complement(tokens)
    assert torch.equal(back.indices, index.indices)
    assert torch.equal(back.lengths, index.lengths)


@settings(deadline=None)
@given(mask=masks())
def test_scatter_undoes_gather_and_zeroes_the_rest(mask: Tensor) -> None:
    x = values_for(mask)
    index = IndexSet.from_mask(mask)
    gathered = index.gather(x)
    for b in range(len(mask)):
        assert torch.equal(gathered[b, : index.lengths[b]], x[b, mask[b]])
    back = index.scatter(gathered, mask.shape[1])
    assert torch.equal(back, torch.where(mask[:, :, None], x, 0.0))


@settings(deadline=None)
@given(mask=masks(), spare=st.integers(0, 2))
def test_unpack_undoes_pack_and_zeroes_the_padding(mask: Tensor, spare: int) -> None:
    x = values_for(mask)
    index = IndexSet.from_mask(mask)
    gathered = index.gather(x)
    packed = index.pack(gathered)
    packed.validate()
    assert torch.equal(packed.values, x[mask])
    assert torch.equal(packed.lengths, index.lengths)
    longest = index.indices.shape[1]
    back = packed.unpack(longest + spare)
    assert torch.equal(
        back[:, :longest], torch.where(index.key_padding()[:, :, None], gathered, 0.0)
    )
    assert not back[:, longest:].any()
    again = index.pack(back[:, :longest], total=int(mask.sum()))
    assert torch.equal(again.values, packed.values)
    assert torch.equal(again.cu_seqlens, packed.cu_seqlens)


def test_key_padding_is_true_at_entries() -> None:
    index = IndexSet.from_mask(torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]]).bool())
    assert index.indices.tolist() == [[0, 2], [0, 0], [1, 0]]
    assert index.key_padding().tolist() == [[True, True], [False, False], [True, False]]


def test_padding_never_overwrites_token_0() -> None:
    index = IndexSet.from_mask(torch.tensor([[1, 1, 1], [1, 0, 0]]).bool())
    values = torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [99.0], [99.0]]])
    assert index.scatter(values, 3)[:, :, 0].tolist() == [[1, 2, 3], [4, 0, 0]]


def test_targets_expand_target_major() -> None:
    index = IndexSet.from_mask(torch.tensor([[1, 1, 0], [0, 0, 1]]).bool())
    expanded = index.expand_targets(3)
    expanded.validate(3)
    for p in range(3):
        for b in range(2):
            assert torch.equal(expanded.indices[p * 2 + b], index.indices[b])
            assert expanded.lengths[p * 2 + b] == index.lengths[b]


def test_every_operation_is_differentiable_in_the_values() -> None:
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()
    index = IndexSet.from_mask(mask)
    x = values_for(mask).requires_grad_()
    rows = values_for(index.key_padding()).requires_grad_()
    packed_rows = values_for(torch.ones(1, 4).bool())[0].requires_grad_()
    cu_seqlens = index.pack(rows).cu_seqlens
    assert torch.autograd.gradcheck(index.gather, x)
    assert torch.autograd.gradcheck(lambda v: index.scatter(v, 4), rows)
    assert torch.autograd.gradcheck(lambda v: index.pack(v).values, rows)
    assert torch.autograd.gradcheck(lambda v: Packed(v, cu_seqlens).unpack(3), packed_rows)


def test_padding_receives_no_gradient_through_pack_or_scatter() -> None:
    index = IndexSet.from_mask(torch.tensor([[1, 1], [0, 1]]).bool())
    for operation in (lambda v: index.pack(v).values, lambda v: index.scatter(v, 2)):
        rows = torch.ones(2, 2, DIM, requires_grad=True)
        operation(rows).sum().backward()
        assert rows.grad is not None
        assert rows.grad[:, :, 0].tolist() == [[1, 1], [1, 0]]


def test_an_empty_batch_and_an_empty_row_are_legal() -> None:
    for shape in ((0, 5), (3, 0), (3, 5)):
        index = IndexSet.from_mask(torch.zeros(shape, dtype=torch.bool))
        index.validate(shape[1])
        assert index.indices.shape == (shape[0], 0)
        x = torch.ones(*shape, DIM)
        assert index.gather(x).shape == (shape[0], 0, DIM)
        assert torch.equal(index.scatter(index.gather(x), shape[1]), 0 * x)
        packed = index.pack(index.gather(x))
        packed.validate()
        assert packed.values.shape == (0, DIM)
        assert packed.unpack(0).shape == (shape[0], 0, DIM)
        assert index.expand_targets(2).indices.shape == (2 * shape[0], 0)


def test_moving_keeps_both_tensors() -> None:
    index = IndexSet.from_mask(torch.ones(2, 3).bool())
    moved = index.to("meta")
    assert moved.indices.device.type == moved.lengths.device.type == "meta"
    packed = index.pack(torch.ones(2, 3, DIM)).to("meta")
    assert packed.values.device.type == packed.cu_seqlens.device.type == "meta"


def test_only_the_marked_operations_read_the_device() -> None:
    """Meta tensors have no data: whatever would read a number back fails on them."""
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()
    index = IndexSet.from_mask(mask)
    total = int(mask.sum())
    meta = index.to("meta")
    x = torch.empty(3, 4, DIM, device="meta", requires_grad=True)
    rows = meta.gather(x)
    packed = meta.pack(rows, total)
    unpacked = packed.unpack(3)
    assert unpacked.shape == rows.shape
    meta.scatter(unpacked, 4).sum().backward()
    assert meta.expand_targets(2).to_mask(4).shape == (6, 4)
    assert meta.key_padding().shape == (3, 3)
    with pytest.raises((NotImplementedError, RuntimeError)):
        meta.pack(rows)


def int32(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("indices", "lengths", "message"),
    [
        (torch.zeros(1, 1), int32([1]), "int32"),
        (int32([[0]]), torch.tensor([1]), "int32"),
        (int32([[0], [0]]), int32([1]), "rows"),
        (int32([[0, 1]]), int32([1]), "padded length"),
        (int32([[0], [0]]), int32([1, -1]), "padded length"),
        (int32([[4]]), int32([1]), r"\[0, 4\)"),
        (int32([[-1]]), int32([1]), r"\[0, 4\)"),
        (int32([[1, 1]]), int32([2]), "ascend"),
        (int32([[2, 1]]), int32([2]), "ascend"),
        (int32([[0, 1], [1, 3]]), int32([2, 1]), "padding"),
    ],
)
def test_a_broken_index_set_is_named(indices: Tensor, lengths: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        IndexSet(indices, lengths).validate(4)


@pytest.mark.parametrize(
    ("cu_seqlens", "message"),
    [
        (torch.tensor([0, 2]), "int32"),
        (int32([]), "int32"),
        (int32([1, 2]), "0 to the number"),
        (int32([0, 1]), "0 to the number"),
        (int32([0, 2, 1, 2]), "decreases"),
    ],
)
def test_a_broken_packed_is_named(cu_seqlens: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Packed(torch.zeros(2, DIM), cu_seqlens).validate()
