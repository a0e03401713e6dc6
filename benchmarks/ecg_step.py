"""One whole pre-training step of ECG-JEPA: masks, forward, backward, AdamW and the average.

The paper's ViT-XS and ViT-S on signals of 12 x 5000 in memory, float32. The baseline is the
published algorithm in plain PyTorch: every patch embedded and then gathered, softmax written out,
every row through every block, one tensor at a time in the average, default AdamW, masks record by
record. The check compares loss, every gradient and the weights after a step in float64 at a reduced
size, on the same masks, then loss and gradients in float32. Timed steps cycle through four numbers
of visible tokens. Share of peak: the operations a contender does (backward counted as two forwards)
over products of the step's own shapes. Memory: a first step with its gradients and optimiser state,
beyond the weights. Where MKL leaves vector units of the CPU unused our products go to oneDNN; a row
without tells the two apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Contender, Gemm, Row, compare, equal_outputs, main
from benchmarks.memory import peak_memory
from jepa_core.layers import linear as maps
from jepa_core.layers import sincos_1d
from jepa_core.masking.span import RunSampler
from jepa_core.optim import adamw, decay_groups
from jepa_core.training.device import bfloat16_is_native
from jepa_ecg.masking import sample_mask
from jepa_ecg.model import ECGJEPA
from jepa_ecg.presets import PRETRAIN, ModelConfig, PretrainConfig

Masks = tuple[Tensor, Tensor]
VISIBLE = (0.155, 0.18, 0.205, 0.23)  # shares of the tokens; 31, 36, 41 and 46 of 200
MOMENTUM = 0.998
TWIN, FUSED, OURS = "plain PyTorch", "the same, fused attention", "jepa_ecg"
MKL, LOW = "jepa_ecg, products by MKL", "jepa_ecg, bfloat16"


def run(quick: bool = False) -> list[Row]:
    if quick:
        return _rows("vit-xs", 1, quick=True)
    return _rows("vit-xs", 16) + _rows("vit-s", 8)


def _rows(preset: str, batch: int, *, quick: bool = False) -> list[Row]:
    recipe = PRETRAIN[preset]
    onednn = maps.onednn_is_faster()
    names = [TWIN, FUSED] + [MKL] * onednn + [OURS] + [LOW] * bfloat16_is_native("cpu")
    done = {
        name: _flops(recipe.model, batch, exact=name in (OURS, MKL))
        for name in names
        if name != LOW
    }
    kept = f"{done[OURS] / done[TWIN]:.3f} of the operations"
    notes = {
        OURS: f"{kept}; products by oneDNN" if onednn else kept,
        MKL: kept,
        LOW: "different arithmetic: products in bfloat16, by oneDNN",
    }
    targets = {OURS: 1.4, MKL: 1.1} if onednn else {OURS: 1.1}
    return compare(
        f"{preset}, batch of {batch}, {done[TWIN] / 1e9:.1f} GFLOP",
        {name: prepare(name, preset, batch) for name in names},
        TWIN,
        check=_check,
        flops=done,
        peak=_products(recipe.model, batch),
        target=None if quick else targets,
        memory=None
        if quick
        else {name: peak_memory(prepare, name, preset, batch) for name in names},
        notes={name: note for name, note in notes.items() if name in names},
    )


# --- the contenders


def prepare(name: str, preset: str, batch: int) -> Contender:
    """Steps of a contender on one fixed batch of noise."""
    torch.manual_seed(0)
    recipe = PRETRAIN[preset]
    model = recipe.model
    signal = torch.randn(batch, len(model.leads), model.samples)
    step = _step(name, recipe)
    number = count()
    generator = np.random.RandomState(0)
    samplers = [RunSampler(model.tokens, (share, share), recipe.min_block) for share in VISIBLE]

    def one_by_one(i: int) -> Masks:
        visible = _visible(model)[i % len(VISIBLE)]
        masks = [
            sample_mask(generator, visible, model.tokens, recipe.min_block) for _ in range(batch)
        ]
        return (
            torch.from_numpy(np.stack([np.flatnonzero(mask) for mask in masks])),
            torch.from_numpy(np.stack([np.flatnonzero(~mask) for mask in masks])),
        )

    def at_once(i: int) -> Masks:
        sampler = samplers[i % len(VISIBLE)]
        context, hidden = sampler(np.arange(batch), 0, step=i, seed=0)
        return context.indices.long(), hidden.indices.long()

    masks = one_by_one if name in (TWIN, FUSED) else at_once

    def call() -> Tensor:
        i = next(number)
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=name == LOW),
            patch.object(maps, "SMALL", math.inf if name == MKL else maps.SMALL),
        ):
            return step(signal, masks(i))

    return call


@dataclass
class Trained:
    """Online encoder, predictor and target encoder, and one step of them."""

    module: nn.Module
    loss: Callable[[Tensor, Masks], Tensor]
    optimizer: torch.optim.Optimizer
    average: Callable[[], None]

    def __call__(self, signal: Tensor, masks: Masks) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.loss(signal, masks)
        # Autocast must not reach into the backward.
        with torch.autocast("cpu", enabled=False):
            loss.backward()
            self.optimizer.step()
            self.average()
        return loss.detach()


def _step(name: str, recipe: PretrainConfig) -> Trained:
    ours = ECGJEPA(recipe)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    if name not in (TWIN, FUSED):
        optimizer = adamw(decay_groups(ours), learning_rate=1e-4, betas=recipe.betas, eps=1e-6)
        return Trained(
            ours,
            lambda signal, masks: ours({"signal": signal, "context": masks[0], "target": masks[1]})[
                "loss"
            ],
            optimizer,
            lambda: ours.ema.update(MOMENTUM),
        )
    twin = Twin(recipe.model, fused=name == FUSED)
    twin.load_state_dict(ours.state_dict())
    plain = torch.optim.AdamW(decay_groups(twin), lr=1e-4, betas=recipe.betas, eps=1e-6)
    return Trained(twin, twin, plain, twin.average)


def _check() -> None:
    names = (TWIN, FUSED, OURS)
    equal_outputs({name: _outcome(name, torch.float64) for name in names}, atol=1e-12)()
    # oneDNN's products are there in float32 only.
    with patch.object(maps, "SMALL", 1):
        equal_outputs({name: _outcome(name, torch.float32) for name in names}, atol=1e-6)()


def _outcome(name: str, dtype: torch.dtype) -> Contender:
    """Loss and gradients of one step at a reduced size; in float64 also the weights after it."""
    recipe = PRETRAIN["vit-xs"]
    small = replace(
        recipe.model, samples=1000, dim=48, depth=3, predictor_dim=24, predictor_depth=3
    )

    def call() -> dict[str, Tensor]:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            torch.manual_seed(1)
            signal = torch.randn(4, len(small.leads), small.samples)
            step = _step(name, replace(recipe, model=small))
            sampler = RunSampler(small.tokens, recipe.keep, recipe.min_block)
            context, hidden = sampler(np.arange(4), 0, step=0, seed=0)
            loss = step(signal, (context.indices.long(), hidden.indices.long()))
        finally:
            torch.set_default_dtype(before)
        parameters = dict(step.module.named_parameters())
        found = {f"gradient {n}": p.grad for n, p in parameters.items() if p.grad is not None}
        if dtype == torch.float64:
            found |= {f"weight {n}": p for n, p in parameters.items()}
        return {"loss": loss, **found}

    return call


# --- what is counted


def _visible(model: ModelConfig) -> list[int]:
    return [math.ceil(share * model.tokens - 1e-9) for share in VISIBLE]


def _flops(model: ModelConfig, batch: int, *, exact: bool) -> float:
    """Floating-point operations of a step, mean over the numbers of visible tokens.

    With `exact`, of what is left when nothing is computed that nobody reads.
    """
    n, w, p, registers = model.tokens, model.dim, model.predictor_dim, model.registers
    patch = len(model.leads) * model.patch * w
    macs = 0.0
    for kept in _visible(model):
        hidden = n - kept
        cut = hidden if exact else None
        target = n * patch
        target += (model.depth - 1) * _block(n + registers, w) + _block(n + registers, w, cut)
        context = (kept if exact else n) * patch
        context += (model.depth - 1) * _block(kept + registers, w)
        context += _block(kept + registers, w, kept if exact else None)
        predictor = n * w * p  # both maps between the widths
        predictor += (model.predictor_depth - 1) * _block(n, p) + _block(n, p, cut)
        macs += batch * (target + 3 * (context + predictor)) / len(VISIBLE)
    return 2 * macs


def _block(n: int, w: int, rows: int | None = None) -> int:
    """Products of a block of width w over n tokens, `rows` of them with an output."""
    rows = n if rows is None else rows
    return (2 * n + 10 * rows) * w * w + 2 * n * rows * w


class Products(Gemm):
    """Products by the fastest of torch's libraries."""

    def build(self) -> tuple[Contender, float]:
        pairs = [(torch.ones(m, k), torch.ones(n, k)) for m, k, n in self.shapes]
        work = float(sum(2 * m * k * n for m, k, n in self.shapes))
        return lambda: [maps.linear(a, b) for a, b in pairs], work


def _products(model: ModelConfig, batch: int) -> Products:
    """The maps of the target encoder and the predictor, forward and the weights' gradient."""
    shapes = []
    for w in (model.dim, model.predictor_dim):
        rows = batch * model.tokens
        for inner, outer in ((w, 3 * w), (w, 4 * w), (4 * w, w)):
            shapes += [(rows, inner, outer), (inner, rows, outer)]
    return Products(tuple(shapes))


# --- the published algorithm, written plainly; names of weights as in `jepa_ecg`


class TwinAttention(nn.Module):
    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if self.fused:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, width))


class TwinMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width, bias=False)
        self.fc2 = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class TwinBlock(nn.Module):
    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, bias=False)
        self.attn = TwinAttention(width, heads, fused)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, bias=False)
        self.mlp = TwinMlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TwinEncoder(nn.Module):
    def __init__(self, model: ModelConfig, fused: bool) -> None:
        super().__init__()
        proj = nn.Conv1d(len(model.leads), model.dim, model.patch, stride=model.patch, bias=False)
        self.patch_embed = nn.ModuleDict({"proj": proj})
        self.registers = nn.Parameter(torch.empty(1, model.registers, model.dim))
        self.blocks = nn.ModuleList(
            TwinBlock(model.dim, model.heads, fused) for _ in range(model.depth)
        )
        self.norm = nn.LayerNorm(model.dim, eps=1e-6, bias=False)
        self.positions = sincos_1d(model.tokens, model.dim)

    def forward(self, signal: Tensor, keep: Tensor | None = None) -> Tensor:
        x = self.patch_embed["proj"](signal).transpose(1, 2) + self.positions
        if keep is not None:
            x = take(x, keep)
        x = torch.cat((self.registers.expand(len(x), -1, -1), x), 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, self.registers.shape[1] :]


class TwinPredictor(nn.Module):
    def __init__(self, model: ModelConfig, fused: bool) -> None:
        super().__init__()
        width = model.predictor_dim
        self.embed = nn.Linear(model.dim, width, bias=False)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList(
            TwinBlock(width, model.predictor_heads, fused) for _ in range(model.predictor_depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6, bias=False)
        self.proj = nn.Linear(width, model.dim, bias=False)
        self.positions = sincos_1d(model.tokens, width)

    def forward(self, z: Tensor, context: Tensor, hidden: Tensor) -> Tensor:
        known = self.embed(z) + self.positions[context]
        x = torch.cat((known, self.mask_token + self.positions[hidden]), 1)
        for block in self.blocks:
            x = block(x)
        return self.proj(self.norm(x)[:, context.shape[1] :])


class Twin(nn.Module):
    def __init__(self, model: ModelConfig, *, fused: bool) -> None:
        super().__init__()
        self.encoder = TwinEncoder(model, fused)
        self.predictor = TwinPredictor(model, fused)
        self.target_encoder = TwinEncoder(model, fused).requires_grad_(False)

    def forward(self, signal: Tensor, masks: Masks) -> Tensor:
        context, hidden = masks
        prediction = self.predictor(self.encoder(signal, context), context, hidden)
        with torch.no_grad():
            target = take(self.target_encoder(signal), hidden)
        return F.l1_loss(prediction, target)

    @torch.no_grad()
    def average(self) -> None:
        pairs = zip(self.target_encoder.parameters(), self.encoder.parameters(), strict=True)
        for target, online in pairs:
            target.mul_(MOMENTUM).add_((1 - MOMENTUM) * online)


def take(x: Tensor, index: Tensor) -> Tensor:
    """The tokens `index` [batch, n] of x [batch, tokens, width]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


if __name__ == "__main__":
    main(run)
