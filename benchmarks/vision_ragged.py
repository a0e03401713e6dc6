"""Encoders on contexts of unequal lengths: packed rows against padding and a mask over the keys.

The sound masks keep every context at its own length; ours packs them where that saves more than it
costs, which a handful of small contexts is too few for. The whole context encoder, forward and
backward, of ViT-S/16 at 224 pixels and of a model of 64 pixels; float32. The baseline is our
encoder with padding, so that nothing but the packing differs; plain PyTorch's with padding stands
beside it. The check compares the features and every gradient in float64 at a reduced size, at four
sizes of masks, then in float32. Timed calls go through four sizes. Share of peak: operations on
rows that are no padding, or that are, for those who compute it (backward counted as two forwards).
"""

from __future__ import annotations

import math
from functools import partial
from itertools import count
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.ecg_step import Products
from benchmarks.harness import Contender, Row, compare, equal_outputs, main
from benchmarks.memory import peak_memory
from benchmarks.vision_step import MODELS, block_macs, computed, recipe
from benchmarks.vision_twin import TwinEncoder, batches, key_mask, perturb
from jepa_core.layers import block
from jepa_core.layers import linear as maps
from jepa_vision.model import ImageEncoder
from jepa_vision.presets import ModelConfig

PADDED, OURS = "padding and key mask", "jepa_vision"
TWIN = "plain PyTorch, padding and key mask"
# Model, images, least ratio.
CASES = (
    ("ViT-S/16", 8, 1.2),
    ("ViT-S/16", 32, 1.2),
    ("64 pixels", 8, None),
    ("64 pixels", 48, None),
    ("64 pixels", 256, None),
)


def run(quick: bool = False) -> list[Row]:
    if quick:
        return _rows("64 pixels", 2, None)
    return [row for case in CASES for row in _rows(*case)]


def _rows(model: str, batch: int, target: float | None) -> list[Row]:
    config = recipe(MODELS[model], "i-jepa", "sound")
    made, shape = batches(config, batch), config.model
    patch_map = shape.channels * shape.patch**2 * shape.dim
    done = dict.fromkeys((PADDED, OURS, TWIN), 0.0)
    for each in made:
        longest = each["context"].shape[2]
        for name in done:
            lengths = [longest] * batch
            if name == OURS:
                lengths = computed(_lengths(each), longest, shape.dim)
            embedded = math.prod(shape.grid) if name == TWIN else longest
            macs = sum(shape.depth * block_macs(n, n, shape.dim) for n in lengths)
            done[name] += 3 * 2 * (macs + batch * embedded * patch_map) / len(made)
    rows = sum(int(_lengths(each).sum()) for each in made) // len(made)
    width = shape.dim
    shapes = []
    for inner, outer in ((width, 3 * width), (width, 4 * width), (4 * width, width)):
        shapes += [(rows, inner, outer), (inner, rows, outer)]
    return compare(
        f"{model}, {batch} contexts, {done[PADDED] / 1e9:.3g} GFLOP",
        {name: prepare(name, model, batch) for name in done},
        PADDED,
        check=_check,
        flops=done,
        peak=Products(tuple(shapes)),
        target=None if target is None else {OURS: target},
        memory={name: peak_memory(prepare, name, model, batch) for name in done},
        notes={OURS: f"{done[OURS] / done[PADDED]:.3f} of the operations"},
    )


def prepare(name: str, model: str, batch: int) -> Contender:
    """Forward and backward on contexts of one batch after the other."""
    made = batches(recipe(MODELS[model], "i-jepa", "sound"), batch)
    encoder = _built(name, MODELS[model])
    number = count()

    def call() -> None:
        encoder.zero_grad()
        _features(name, encoder, made[next(number) % len(made)]).sum().backward()

    return call


def _built(name: str, model: ModelConfig) -> nn.Module:
    torch.manual_seed(0)
    ours = ImageEncoder(model)
    perturb(ours)
    if name != TWIN:
        return ours
    twin = TwinEncoder(model)
    twin.load_state_dict(ours.state_dict())
    return twin


def _features(name: str, encoder: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Features [batch, longest, dim], zero at padding."""
    context, lengths = batch["context"][0], _lengths(batch)
    valid = key_mask(lengths, context.shape[1])
    if name == TWIN:
        z = encoder(batch["image"], context, valid)
    else:
        with patch.object(block, "PACKING", math.inf if name == PADDED else block.PACKING):
            z = encoder(batch["image"], context, lengths=lengths)
    return z if name == OURS else z * valid[:, 0, 0, :, None]


def _lengths(batch: dict[str, Tensor]) -> Tensor:
    return batch["context_lengths"][0]


def _check() -> None:
    """Features and gradients at a reduced size, in float64 and by oneDNN in float32."""
    model = ModelConfig(image=(48, 48), patch=8, dim=32, depth=3, heads=4)
    made = batches(recipe(model, "i-jepa", "sound"), 4)

    def outcome(name: str, dtype: torch.dtype) -> list[Tensor | None]:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            found: list[Tensor | None] = []
            for batch in made:
                batch = {**batch, "image": batch["image"].to(dtype).requires_grad_()}
                encoder = _built(name, model)
                z = _features(name, encoder, batch)
                weight = torch.linspace(-1, 1, z.numel()).view_as(z)
                (z * weight).sum().backward()
                found += [z, batch["image"].grad]
                found += [p.grad for _, p in sorted(encoder.named_parameters())]
        finally:
            torch.set_default_dtype(before)
        return found

    names = (PADDED, OURS, TWIN)
    with patch.object(block, "PACKING", 0):
        equal_outputs({x: partial(outcome, x, torch.float64) for x in names}, atol=1e-10)()
    with patch.object(maps, "SMALL", 1), patch.object(block, "PACKING", 0):
        equal_outputs({x: partial(outcome, x, torch.float32) for x in names}, atol=2e-4)()


if __name__ == "__main__":
    main(run)
