"""Attention of packed sequences of unequal lengths."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from jepa_core.attention.reference import attention_reference
from jepa_core.attention.torch_backend import attention_torch
from jepa_core.errors import ConfigError

# Sequences whose lengths agree after rounding up to this many tokens share one padded call. Smaller
# means more calls, larger more padding: 16 tokens are little beside the sequences that cost
# anything, and all shorter sequences together cost one call.
_ROUND = 16


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
    lengths_q, lengths_k = np.diff(ends_q), np.diff(ends_k)
    if backend == "reference":
        groups = [np.array([b]) for b in range(len(lengths_q))]
    else:
        groups = _groups(lengths_q, lengths_k)

    outputs, place, computed = [], np.empty(len(q), dtype=np.int64), 0
    for group in groups:
        rows_q, valid_q = _rows(ends_q[group], lengths_q[group])
        rows_k, valid_k = _rows(ends_k[group], lengths_k[group])
        mask = None if valid_k.all() else torch.from_numpy(valid_k).to(q.device)[:, None, None]
        fused = backend == "torch" and rows_q.size and rows_k.size
        out = (attention_torch if fused else attention_reference)(
            _take(q, rows_q),
            _take(k, rows_k),
            _take(v, rows_k),
            mask=mask,
            scale=scale,
            dropout=dropout,
        )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
        place[rows_q[valid_q]] = computed + np.flatnonzero(valid_q)
        computed += rows_q.size
    if not outputs:
        return q
    return torch.cat(outputs).index_select(0, torch.from_numpy(place).to(q.device))


def _groups(lengths_q: np.ndarray, lengths_k: np.ndarray) -> list[np.ndarray]:
    """Sequences of nearly equal lengths together; empty ones never with others."""
    rounded = -(-np.stack((lengths_q, lengths_k)) // _ROUND)
    kinds, kind = np.unique(rounded, axis=1, return_inverse=True)
    return [np.flatnonzero(kind == i) for i in range(kinds.shape[1])]


def _rows(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Packed rows [group, longest] of some sequences, and which of them are no padding."""
    step = np.arange(lengths.max())
    valid = step < lengths[:, None]
    return np.where(valid, starts[:, None] + step, starts[:, None]), valid


def _take(x: Float[Tensor, "total heads dim"], rows: np.ndarray) -> Float[Tensor, "b heads n dim"]:
    index = torch.from_numpy(rows).to(x.device)
    return x.index_select(0, index.flatten()).unflatten(0, rows.shape).transpose(1, 2)
