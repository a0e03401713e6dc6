"""What DMT-JEPA has the predictor predict: a patch by its most similar neighbours.

Mo and Yun (arXiv 2405.17995), section 3.2: masked semantic neighbouring, then a local aggregation.
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from jepa_core.errors import ConfigError
from jepa_core.layers.block import take_rows
from jepa_vision.head import AggregationHead, PaperHead


@functools.lru_cache(maxsize=16)
def neighbour_table(
    rows: int, cols: int, window: int = 3, border: Literal["clip", "wrap"] = "clip"
) -> Int64[Tensor, "patches candidates"]:
    """The patches around each patch of a grid, by flat index, ascending, without the patch itself.

    Parameters
    ----------
    window
        Side of the square around the patch. An even side counts as the next odd one, as in the
        official program.
    border
        `clip`: patches beyond the border are no candidates, and a row with fewer than the others
        ends in -1. `wrap`: the grid goes on at its other side; a patch that a wide window reaches
        twice counts once.

    Raises
    ------
    ConfigError
        A window that holds no neighbour.
    """
    radius = window // 2
    if radius < 1 or rows * cols < 2:
        raise ConfigError(f"a window of {window} on a grid of {rows} x {cols} holds no neighbour")
    row, col = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    step = torch.arange(-radius, radius + 1)
    r = row.flatten()[:, None, None] + step[:, None]
    c = col.flatten()[:, None, None] + step[None, :]
    r, c = torch.broadcast_tensors(r, c)
    if border == "wrap":
        index = (r % rows) * cols + c % cols
    else:
        outside = (r < 0) | (r >= rows) | (c < 0) | (c >= cols)
        index = torch.where(outside, -1, r * cols + c)
    index = index.flatten(1)
    index = torch.where(index == torch.arange(rows * cols)[:, None], -1, index)
    # Sorted with the missing ones last, each patch once.
    index = torch.where(index < 0, rows * cols, index).sort(1).values
    twice = torch.zeros_like(index, dtype=torch.bool)
    twice[:, 1:] = index[:, 1:] == index[:, :-1]
    index = torch.where(twice, rows * cols, index).sort(1).values
    index = torch.where(index == rows * cols, -1, index)
    return index[:, : int((index >= 0).sum(1).max())]


def select_neighbours(
    h: Float[Tensor, "batch patches dim"],
    table: Int64[Tensor, "patches candidates"],
    k: int,
    positions: Int64[Tensor, "batch n"] | None = None,
    noise: Float[Tensor, "batch patches candidates"] | None = None,
) -> tuple[Int64[Tensor, "batch n k"], Float[Tensor, "batch n candidates"]]:
    """The k most similar candidates of each patch, and the cosines with all of them.

    Parameters
    ----------
    h
        Target encoder's tokens after the LayerNorm without scale.
    table
        Candidates of each patch, -1 = none.
    positions
        The patches asked about; all by default.
    noise
        Values that choose in place of the similarities.

    Returns
    -------
    index
        Patches, the most similar first; of equal ones the candidate first in the table. -1 where
        there are fewer than k candidates.
    similarity
        Computed in float32 at least, because the choice is discrete; -inf where there is no
        candidate.

    Raises
    ------
    ConfigError
        k exceeds the candidates.
    """
    if k > table.shape[1]:
        raise ConfigError(
            f"{k} neighbours of {table.shape[1]} candidates", remedy="take fewer, or a wider window"
        )
    table = table.to(h.device)
    with torch.autocast(h.device.type, enabled=False):
        h = h if h.dtype == torch.float64 else h.float()
        unit = F.normalize(h, dim=-1, eps=1e-12)
        asked = unit if positions is None else take_rows(unit, positions)
        candidates = table.expand(len(h), -1, -1) if positions is None else table[positions]
        # One product of all pairs is cheaper than gathering every candidate's features.
        similarity = (asked @ unit.transpose(1, 2)).gather(2, candidates.clamp(min=0))
    similarity = similarity.masked_fill(candidates < 0, -torch.inf)
    order = similarity
    if noise is not None:
        chosen = noise if positions is None else take_rows(noise, positions)
        order = chosen.to(similarity).masked_fill(candidates < 0, -torch.inf)
    # A stable sort, because topk leaves the order of equal values open.
    place = order.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return candidates.gather(-1, place), similarity


def aggregate(
    head: AggregationHead | PaperHead | None,
    h: Float[Tensor, "batch patches dim"],
    neighbours: Int64[Tensor, "batch n k"],
    positions: Int64[Tensor, "batch n"] | None = None,
    *,
    query: Literal["mean", "patch"] = "mean",
    pairing: Literal["image", "official"] = "image",
    pool: Literal["mean", "max"] = "mean",
) -> Float[Tensor, "batch n dim"]:
    """Targets of the patches at `positions` (all by default), from their neighbours.

    Parameters
    ----------
    head
        What aggregates; None pools the neighbours by `pool`.
    h
        Target encoder's tokens after the LayerNorm without scale.
    neighbours
        Of each patch asked about; -1 = none.
    query
        `mean`: the image's mean token asks for every patch. `patch`: each asks for itself.
    pairing
        `official` repeats the official program: row b * patches + n, the patch n of image b, is
        asked about with the mean token of image (b * patches + n) modulo batch.
    """
    if head is None:
        return _pool(h, neighbours, pool)
    if query == "patch":
        asked = h if positions is None else take_rows(h, positions)
    else:
        asked = h.mean(1, keepdim=True)
        if pairing == "official":
            batch, patches, _ = h.shape
            place = torch.arange(patches, device=h.device).expand(batch, -1)
            place = place if positions is None else positions
            row = torch.arange(batch, device=h.device)[:, None] * patches + place
            asked = asked[:, 0][row % batch]
    return head.aggregate(h, neighbours, asked)


def _pool(
    h: Float[Tensor, "batch patches dim"],
    neighbours: Int64[Tensor, "batch n k"],
    pool: Literal["mean", "max"],
) -> Float[Tensor, "batch n dim"]:
    there = (neighbours >= 0)[..., None]
    values = take_rows(h, neighbours.clamp(min=0).flatten(1)).unflatten(1, neighbours.shape[1:])
    if pool == "max":
        return values.masked_fill(~there, -torch.inf).amax(2)
    return values.masked_fill(~there, 0).sum(2) / there.sum(2)
