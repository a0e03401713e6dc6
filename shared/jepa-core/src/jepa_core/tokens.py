"""Ragged sets of tokens: which tokens of each sample, padded or packed.

Nothing is cut to the batch's shortest row, and empty rows are legal everywhere. All operations on
values are differentiable in the values. Those marked "sync" read a size back from the device, which
a training step on a GPU must not do; the others never wait for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int32, Int64, Shaped
from torch import Tensor

from jepa_core.errors import DataError


@dataclass(frozen=True, eq=False)
class IndexSet:
    """A set of token indices for each sample of a batch.

    Parameters
    ----------
    indices
        int32 [batch, longest]; row b holds its set, ascending, in [0, lengths[b]). The padding
        behind it is 0: a legal index, so a gather never faults.
    lengths
        int32 [batch]; `longest` is their maximum and may be 0.
    """

    indices: Int32[Tensor, "batch longest"]
    lengths: Int32[Tensor, "batch"]

    @classmethod
    def from_mask(cls, mask: Bool[Tensor, "batch tokens"]) -> IndexSet:
        """The positions where `mask` is true (sync)."""
        lengths = mask.sum(1, dtype=torch.int32)
        longest = int(lengths.max()) if len(lengths) else 0
        row, token = mask.nonzero(as_tuple=True)
        indices = mask.new_zeros((len(mask), longest), dtype=torch.int32)
        indices[row, torch.arange(len(row), device=row.device) - _starts(lengths)[row]] = (
            token.int()
        )
        return cls(indices, lengths)

    def to_mask(self, tokens: int) -> Bool[Tensor, "batch tokens"]:
        """True where a token of [0, tokens) is in the set."""
        mask = self.indices.new_zeros((len(self.lengths), tokens + 1), dtype=torch.bool)
        return mask.scatter_(1, self._or_spare(tokens), True)[:, :tokens]

    def complement(self, tokens: int) -> IndexSet:
        """The tokens of [0, tokens) that are not in the set (sync)."""
        return IndexSet.from_mask(~self.to_mask(tokens))

    def key_padding(self) -> Bool[Tensor, "batch longest"]:
        """True at entries, false at padding: as in every attention mask, true = may attend."""
        place = torch.arange(self.indices.shape[1], device=self.indices.device)
        return place < self.lengths[:, None]

    def gather(self, x: Shaped[Tensor, "batch tokens dim"]) -> Shaped[Tensor, "batch longest dim"]:
        """The set's rows of `x`; at padding the row of token 0, to be masked by `key_padding`."""
        index = self.indices.long()[:, :, None].expand(-1, -1, x.shape[2])
        return x.gather(1, index)

    def scatter(
        self, values: Shaped[Tensor, "batch longest dim"], tokens: int
    ) -> Shaped[Tensor, "batch tokens dim"]:
        """Put row j of `values` at token indices[:, j]; zero elsewhere. Padding is dropped."""
        batch, _, dim = values.shape
        index = self._or_spare(tokens)[:, :, None].expand(-1, -1, dim)
        return values.new_zeros((batch, tokens + 1, dim)).scatter(1, index, values)[:, :tokens]

    def pack(self, values: Shaped[Tensor, "batch longest dim"], total: int | None = None) -> Packed:
        """The rows of `values` that are no padding, one sample after the other.

        Parameters
        ----------
        total
            The sum of the lengths where the host knows it; left out, it is read back (sync).
        """
        total = int(self.lengths.sum()) if total is None else total
        cu_seqlens = torch.cat((self.lengths.new_zeros(1), self.lengths.cumsum(0).int()))
        sample, place = _places(cu_seqlens, total)
        return Packed(values[sample, place], cu_seqlens)

    def expand_targets(self, targets: int) -> IndexSet:
        """Repeat for `targets` target blocks, target-major: row p * batch + b (I-JEPA's order)."""
        return IndexSet(self.indices.repeat(targets, 1), self.lengths.repeat(targets))

    def to(self, device: torch.device | str) -> IndexSet:
        return IndexSet(self.indices.to(device), self.lengths.to(device))

    def validate(self, tokens: int) -> None:
        """Check everything this class promises (sync: for tests and debugging).

        Raises
        ------
        DataError
            Naming the first promise that is broken.
        """
        batch, longest = self.indices.shape
        if self.indices.dtype != torch.int32 or self.lengths.dtype != torch.int32:
            raise DataError("indices and lengths must be int32", where="IndexSet")
        if self.lengths.shape != (batch,):
            raise DataError("lengths do not match the rows of indices", where="IndexSet")
        if batch and (int(self.lengths.min()) < 0 or int(self.lengths.max()) != longest):
            raise DataError("the padded length is not the longest length", where="IndexSet")
        valid = self.key_padding()
        entries = self.indices[valid]
        if bool(((entries < 0) | (entries >= tokens)).any()):
            raise DataError(f"an index is not in [0, {tokens})", where="IndexSet")
        if bool((valid[:, 1:] & (self.indices.diff(dim=1) <= 0)).any()):
            raise DataError("indices do not ascend", where="IndexSet")
        if bool((self.indices[~valid] != 0).any()):
            raise DataError("padding is not 0", where="IndexSet")

    def _or_spare(self, tokens: int) -> Int64[Tensor, "batch longest"]:
        """Indices with padding sent to one spare token behind the last, cut off by the caller."""
        return torch.where(self.key_padding(), self.indices, tokens).long()


@dataclass(frozen=True, eq=False)
class Packed:
    """Ragged rows without padding.

    Parameters
    ----------
    values
        [total, dim], one sample after the other.
    cu_seqlens
        int32 [batch + 1]: sample b holds rows cu_seqlens[b] to cu_seqlens[b + 1].
    """

    values: Shaped[Tensor, "total dim"]
    cu_seqlens: Int32[Tensor, "batch_plus_1"]

    @property
    def lengths(self) -> Int32[Tensor, "batch"]:
        return self.cu_seqlens.diff()

    def unpack(self, longest: int) -> Shaped[Tensor, "batch longest dim"]:
        """Rows padded with zeros to `longest`, which must be at least the longest length."""
        total, dim = self.values.shape
        sample, place = _places(self.cu_seqlens, total)
        padded = self.values.new_zeros((len(self.cu_seqlens) - 1, longest, dim))
        return padded.index_put((sample, place), self.values)

    def to(self, device: torch.device | str) -> Packed:
        return Packed(self.values.to(device), self.cu_seqlens.to(device))

    def validate(self) -> None:
        """Check that `cu_seqlens` partitions the rows (sync: for tests and debugging).

        Raises
        ------
        DataError
            Naming the first promise that is broken.
        """
        if self.cu_seqlens.dtype != torch.int32 or len(self.cu_seqlens) == 0:
            raise DataError("cu_seqlens must be int32 [batch + 1]", where="Packed")
        if int(self.cu_seqlens[0]) != 0 or int(self.cu_seqlens[-1]) != len(self.values):
            raise DataError("cu_seqlens must run from 0 to the number of rows", where="Packed")
        if bool((self.cu_seqlens.diff() < 0).any()):
            raise DataError("cu_seqlens decreases", where="Packed")


def _starts(lengths: Int32[Tensor, "batch"]) -> Int64[Tensor, "batch"]:
    return lengths.cumsum(0) - lengths


def _places(
    cu_seqlens: Int32[Tensor, "batch_plus_1"], total: int
) -> tuple[Int64[Tensor, "total"], Int64[Tensor, "total"]]:
    """Sample, and place within it, of each packed row."""
    batch = torch.arange(len(cu_seqlens) - 1, device=cu_seqlens.device)
    sample = batch.repeat_interleave(cu_seqlens.diff(), output_size=total)
    place = torch.arange(total, device=cu_seqlens.device) - cu_seqlens[sample]
    return sample, place
