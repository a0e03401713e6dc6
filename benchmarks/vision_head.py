"""DMT-JEPA's targets out of the target encoder's tokens: choice of neighbours and aggregation.

The head at ViT-S width (384, 6 heads) on 14 x 14 patches, a batch of 8, with the official masks,
and for a model of 64 pixels; float32, without gradient, as in a step. The baseline is the official
form: the neighbours' features gathered for the similarities and again as keys and values, the head
on every patch, softmax written out, then the four target blocks gathered. Ours computes keys and
values once a patch, and only patches that are in some block. The check compares targets, and the
gradients of all weights and of the tokens, in float64 at a reduced size, at four sizes of masks.
Timed calls go through four sizes. Memory: what a call needs beyond its tokens and weights.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import count
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ecg_step import Products
from benchmarks.harness import Contender, Row, compare, equal_outputs, main
from benchmarks.memory import peak_memory
from benchmarks.vision_step import MODELS, recipe, target_head_macs
from benchmarks.vision_twin import TwinHead, batches, perturb, select, take
from jepa_core.layers import linear as maps
from jepa_core.layers.block import take_rows
from jepa_vision.head import AggregationHead
from jepa_vision.presets import ModelConfig
from jepa_vision.targets import aggregate, neighbour_table, select_neighbours

TWIN, OURS = "official form", "jepa_vision"
EVERY, MKL = "jepa_vision, every patch", "jepa_vision, products by MKL"
NEIGHBOURS = 4
# Model, batch, least ratio.
CASES = (("ViT-S/16", 8, 3.0), ("64 pixels", 48, None))


def run(quick: bool = False) -> list[Row]:
    if quick:
        return _rows("64 pixels", 2, None)
    return [row for case in CASES for row in _rows(*case)]


def _rows(model: str, batch: int, target: float | None) -> list[Row]:
    names = [TWIN, EVERY, OURS] + [MKL] * maps.onednn_is_faster()
    config = recipe(MODELS[model], "dmt-jepa", "official")
    made, patches = batches(config, batch), math.prod(config.model.grid)
    union = sum(each["union"].shape[1] for each in made) / len(made)
    done = {
        name: 2.0
        * batch
        * target_head_macs(
            config, patches if name in (TWIN, EVERY) else round(union), exact=name != TWIN
        )
        for name in names
    }
    width = config.model.dim
    shapes = tuple(
        (batch * patches, inner, outer)
        for inner, outer in ((width, width), (width, 4 * width), (4 * width, width))
    )
    return compare(
        f"{model}, batch of {batch}, {done[TWIN] / 1e9:.3g} GFLOP",
        {name: prepare(name, model, batch) for name in names},
        TWIN,
        check=_check,
        flops=done,
        peak=Products(shapes),
        target=None if target is None else {x: target for x in names if x in (OURS, MKL)},
        memory={name: peak_memory(prepare, name, model, batch) for name in names},
        notes={
            name: f"{done[name] / done[TWIN]:.3f} of the operations"
            for name in names
            if name != TWIN
        },
    )


def prepare(name: str, model: str, batch: int) -> Contender:
    """Targets of one batch after the other, whose masks have several sizes."""
    made = batches(recipe(MODELS[model], "dmt-jepa", "official"), batch)
    h, head = _built(name, MODELS[model], batch)
    number = count()

    def call() -> Tensor:
        with (
            torch.no_grad(),
            patch.object(maps, "SMALL", math.inf if name == MKL else maps.SMALL),
        ):
            return _targets(name, head, h, MODELS[model], made[next(number) % len(made)])

    return call


def _built(name: str, model: ModelConfig, batch: int) -> tuple[Tensor, AggregationHead | TwinHead]:
    torch.manual_seed(0)
    h = F.layer_norm(torch.randn(batch, math.prod(model.grid), model.dim), (model.dim,))
    ours = AggregationHead(model.dim, model.heads)
    perturb(ours)
    if name != TWIN:
        return h, ours
    twin = TwinHead(model.dim, model.heads)
    twin.load_state_dict(ours.state_dict())
    return h, twin


def _targets(
    name: str,
    head: AggregationHead | TwinHead,
    h: Tensor,
    model: ModelConfig,
    batch: dict[str, Tensor],
) -> Tensor:
    """Targets of the four blocks, block-major."""
    table = neighbour_table(*model.grid, 3, "wrap")
    if isinstance(head, TwinHead):
        every = head.aggregate(h, select(h, table, NEIGHBOURS))
        return torch.cat([take(every, block) for block in batch["target"]])
    if name == EVERY:
        positions, place = None, batch["target"]
    else:
        positions, place = batch["union"], batch["place"]
    neighbours, _ = select_neighbours(h, table, NEIGHBOURS, positions)
    some = aggregate(head, h, neighbours, positions)
    return torch.cat([take_rows(some, index) for index in place])


def _check() -> None:
    """Targets and gradients at a reduced size, in float64 and by oneDNN in float32."""
    model = ModelConfig(image=(48, 48), patch=8, dim=32, heads=4)
    made = batches(recipe(model, "dmt-jepa", "official"), 3)

    def outcome(name: str, dtype: torch.dtype) -> list[Tensor]:
        found = []
        for batch in made:
            h, head = _built(name, model, 3)
            h, head = h.to(dtype).requires_grad_(), head.to(dtype)
            targets = _targets(name, head, h, model, batch)
            weight = torch.linspace(-1, 1, targets.numel(), dtype=dtype).view_as(targets)
            (targets * weight).sum().backward()
            gradients = {at: p.grad for at, p in head.named_parameters() if p.grad is not None}
            found += [targets, h.grad, *(gradients[at] for at in sorted(gradients))]
        return [x for x in found if x is not None]

    names = (TWIN, EVERY, OURS)
    equal_outputs({x: partial(outcome, x, torch.float64) for x in names}, atol=1e-10)()
    with patch.object(maps, "SMALL", 1):
        equal_outputs({x: partial(outcome, x, torch.float32) for x in names}, atol=2e-4)()


if __name__ == "__main__":
    main(run)
