"""Attention of packed sequences of unequal lengths."""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from jepa_core.attention.reference import attention_reference
from jepa_core.attention.torch_backend import attention_torch
from jepa_core.errors import ConfigError

# Sequences whose lengths agree after rounding up to this many tokens share one padded call. Smaller
# means more calls, larger more padding: 16 tokens are little beside the sequences that cost
# anything, and all shorter sequences together cost one call.
_ROUND = 16
# Multiplications of queries with keys that cost as much as a call by itself.
_CALL = 1 << 17


def attention_ragged(
    q: Float[Tensor, "total_q heads dim"],
    k: Float[Tensor, "total_k heads dim"],
    v: Float[Tensor, "total_k heads dim"],
    cu_q: Int[Tensor, " batch_plus_1"],
    cu_k: Int[Tensor, " batch_plus_1"],
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: Literal["reference", "torch"] = "torch",
) -> Float[Tensor, "total_q heads dim"]:
    """Attention within each sequence of a packed batch.

    Reads the lengths back to the host: keep `cu_q` and `cu_k` on the CPU where that must not wait
    for the device.

    Parameters
    ----------
    cu_q, cu_k
        Sequence b holds rows cu[b] to cu[b + 1]. Empty sequences are legal: queries without keys
        give zeros.
    scale, dropout
        As in `attention`.
    backend
        `reference` calls the definition once a sequence.

    Raises
    ------
    ConfigError
        `cu_q` and `cu_k` describe different numbers of sequences, or other totals than the rows.
    """
    ends_q, ends_k = cu_q.cpu().numpy().astype(np.int64), cu_k.cpu().numpy().astype(np.int64)
    if len(ends_q) != len(ends_k) or ends_q[-1] != len(q) or ends_k[-1] != len(k):
        raise ConfigError(
            f"{len(ends_q) - 1} query sequences of {ends_q[-1]} rows and {len(ends_k) - 1} key "
            f"sequences of {ends_k[-1]} rows do not describe {len(q)} queries and {len(k)} keys"
        )
    lengths = np.stack((np.diff(ends_q), np.diff(ends_k)), 1)
    if backend == "reference":
        return _by_runs(q, k, v, [(1, *pair) for pair in lengths.tolist()], backend, scale, dropout)
    runs = _runs(lengths)
    weights = int(lengths.prod(1).sum()) * q.shape[1]
    if len(runs) * _CALL <= weights * q.shape[2]:
        return _by_runs(q, k, v, runs, backend, scale, dropout)

    groups, place = _groups(lengths.tobytes())
    outputs = []
    for rows_q, rows_k, mask in groups:
        attend = attention_torch if rows_q.numel() and rows_k.numel() else attention_reference
        out = attend(
            _take(q, rows_q),
            _take(k, rows_k),
            _take(v, rows_k),
            mask=None if mask is None else mask.to(q.device),
            scale=scale,
            dropout=dropout,
        )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, place.to(q.device)) if outputs else q


def _by_runs(
    q: Float[Tensor, "total_q heads dim"],
    k: Float[Tensor, "total_k heads dim"],
    v: Float[Tensor, "total_k heads dim"],
    runs: list[tuple[int, int, int]],
    backend: Literal["reference", "torch"],
    scale: float | None,
    dropout: float,
) -> Float[Tensor, "total_q heads dim"]:
    """Sequences of equal lengths that follow each other, in one call: nothing is moved for it."""
    if not runs:
        return q
    sizes_q, sizes_k = ([count * each[i] for count, *each in runs] for i in (0, 1))
    outputs = []
    for (count, queries, keys), *parts in zip(
        runs, q.split(sizes_q), k.split(sizes_k), v.split(sizes_k), strict=True
    ):
        fused = backend == "torch" and queries and keys
        out = (attention_torch if fused else attention_reference)(
            *(
                part.unflatten(0, (count, n)).transpose(1, 2)
                for part, n in zip(parts, (queries, keys, keys), strict=True)
            ),
            scale=scale,
            dropout=dropout,
        )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def _runs(lengths: Int64[np.ndarray, "sequences 2"]) -> list[tuple[int, int, int]]:
    """How many sequences of the same two lengths follow each other, and those lengths."""
    first = np.flatnonzero(np.any(np.diff(lengths, axis=0, prepend=-1), axis=1))
    counts = np.diff(first, append=len(lengths))
    return [(n, *pair) for n, pair in zip(counts.tolist(), lengths[first].tolist(), strict=True)]


@functools.lru_cache(maxsize=64)
def _groups(
    lengths: bytes,
) -> tuple[list[tuple[Tensor, Tensor, Tensor | None]], Int64[Tensor, " total_q"]]:
    """Sequences of nearly equal lengths together; empty ones never with others.

    Of each group the packed rows of queries and keys [group, longest], and a mask where some are
    padding; and where in what the groups give each query is. The blocks of a model ask for the
    same again.
    """
    pairs = np.frombuffer(lengths, np.int64).reshape(-1, 2)
    starts = np.cumsum(pairs, 0) - pairs
    kinds, kind = np.unique(-(-pairs // _ROUND), axis=0, return_inverse=True)
    groups, place, computed = [], np.empty(pairs[:, 0].sum(), np.int64), 0
    for i in range(len(kinds)):
        group = np.flatnonzero(kind.ravel() == i)
        (rows_q, valid_q), (rows_k, valid_k) = (
            _rows(starts[group, side], pairs[group, side]) for side in (0, 1)
        )
        mask = None if valid_k.all() else torch.from_numpy(valid_k)[:, None, None]
        groups.append((torch.from_numpy(rows_q), torch.from_numpy(rows_k), mask))
        place[rows_q[valid_q]] = computed + np.flatnonzero(valid_q)
        computed += rows_q.size
    return groups, torch.from_numpy(place)


def _rows(
    starts: Int64[np.ndarray, " group"], lengths: Int64[np.ndarray, " group"]
) -> tuple[Int64[np.ndarray, "group longest"], Bool[np.ndarray, "group longest"]]:
    """Packed rows of some sequences, and which of them are no padding."""
    step = np.arange(lengths.max())
    valid = step < lengths[:, None]
    return np.where(valid, starts[:, None] + step, starts[:, None]), valid


def _take(
    x: Float[Tensor, "total heads dim"], rows: Int64[Tensor, "b n"]
) -> Float[Tensor, "b heads n dim"]:
    index = rows.flatten().to(x.device)
    return x.index_select(0, index).unflatten(0, rows.shape).transpose(1, 2)
