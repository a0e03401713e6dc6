"""I-JEPA and DMT-JEPA in plain PyTorch: the straightforward port the package is measured against.

Written from the papers and the official programs' behaviour, except that DMT-JEPA's query is the
mean token of the same image. Names of weights as in `jepa_vision`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_core.layers.positions import sincos_2d
from jepa_core.training.sampler import Epochs
from jepa_vision.data.images import ArrayImages
from jepa_vision.presets import ModelConfig, PretrainConfig
from jepa_vision.source import ImageSource
from jepa_vision.targets import neighbour_table

SIZES, DRAWN = 4, 32  # mask sizes that are timed, out of those of so many batches


def batches(config: PretrainConfig, batch: int) -> list[dict[str, Tensor]]:
    """Batches of noise as `ImageJEPA` takes them, at the octiles of the tokens in the predictor."""
    height, width = config.model.image
    noise = np.random.RandomState(0).randint(
        0, 256, (batch, height, width, config.model.channels), np.uint8
    )
    source = ImageSource(ArrayImages(noise), config, seed=0)
    drawn = [source.batch(Epochs(batch, batch, seed=0).draw(step)) for step in range(DRAWN)]
    drawn.sort(
        key=lambda each: each["context"].numel() + each["target"].numel() // config.masks.targets
    )
    return drawn[DRAWN // SIZES // 2 :: DRAWN // SIZES]


def perturb(module: nn.Module) -> None:
    """Move every weight off its start, where some are 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter), alpha=0.02)


@dataclass(frozen=True)
class Masked:
    """A batch with masks as a collator gives them, one tensor a block.

    image [batch, channels, height, width]; context [batch, kept]; targets, each [batch, hidden].
    `lengths` [batch]: how many of a row of the context are meant; None = all.
    """

    image: Tensor
    context: Tensor
    targets: list[Tensor]
    lengths: Tensor | None = None

    @classmethod
    def of(cls, batch: Mapping[str, Tensor]) -> Masked:
        """A batch of `ImageJEPA` with one context."""
        lengths = batch.get("context_lengths")
        return cls(
            batch["image"],
            batch["context"][0],
            list(batch["target"]),
            None if lengths is None else lengths[0],
        )


class TwinAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, width))


class TwinMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class TwinBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = TwinAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = TwinMlp(width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class TwinEncoder(nn.Module):
    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        proj = nn.Conv2d(model.channels, model.dim, model.patch, stride=model.patch)
        self.patch_embed = nn.ModuleDict({"proj": proj})
        self.blocks = nn.ModuleList(TwinBlock(model.dim, model.heads) for _ in range(model.depth))
        self.norm = nn.LayerNorm(model.dim, eps=1e-6)
        self.positions = sincos_2d(*model.grid, model.dim, dtype=torch.get_default_dtype())

    def forward(
        self, image: Tensor, keep: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        x = self.patch_embed["proj"](image).flatten(2).transpose(1, 2) + self.positions
        if keep is not None:
            x = take(x, keep)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)


class TwinPredictor(nn.Module):
    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        width = model.predictor_dim
        self.embed = nn.Linear(model.dim, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList(
            TwinBlock(width, model.heads) for _ in range(model.predictor_depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.proj = nn.Linear(width, model.dim)
        self.positions = sincos_2d(*model.grid, width)

    def forward(self, z: Tensor, batch: Masked) -> Tensor:
        count, kept = batch.context.shape
        every = self.positions.repeat(count, 1, 1)
        known = self.embed(z) + take(every, batch.context)
        asked = torch.cat([take(every, target) for target in batch.targets])
        asked = self.mask_token.repeat(*asked.shape[:2], 1) + asked
        x = torch.cat((known.repeat(len(batch.targets), 1, 1), asked), 1)
        mask = None
        if batch.lengths is not None:
            valid = key_mask(batch.lengths, kept).repeat(len(batch.targets), 1, 1, 1)
            mask = F.pad(valid, (0, asked.shape[1]), value=True)
        for block in self.blocks:
            x = block(x, mask)
        return self.proj(self.norm(x)[:, kept:])


class TwinHeadBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = TwinMlp(width)

    def forward(
        self, x: Tensor, asking: Tensor, others: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """x with what one token [batch, 1, width] gets from itself and others [batch, n, width]."""
        u = self.norm1(torch.cat((asking, others), 1))
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q(u[:, :1]), self.k(u), self.v(u))
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        x = x + self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class TwinHead(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TwinHeadBlock(width, heads) for _ in range(2))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, z: Tensor, lengths: Tensor | None) -> Tensor:
        """Context tokens, each with what their mean gets from them."""
        valid = None if lengths is None else key_mask(lengths, z.shape[1])
        mask = None if valid is None else F.pad(valid, (1, 0), value=True)
        for block in self.blocks:
            if valid is None or lengths is None:
                mean = z.mean(1, keepdim=True)
            else:
                mean = (z * valid[:, 0, 0, :, None]).sum(1, keepdim=True) / lengths[:, None, None]
            z = block(z, mean, z, mask)
        return self.norm(z)

    def aggregate(self, h: Tensor, neighbours: Tensor) -> Tensor:
        """Targets of all patches [batch, patches, width], neighbours [batch, patches, k]."""
        batch, patches, width = h.shape
        y = h.mean(1, keepdim=True).expand(-1, patches, -1).reshape(-1, 1, width)
        around = gather_neighbours(h, neighbours).flatten(0, 1)
        for block in self.blocks:
            y = block(y, y, around)
        return self.norm(y).reshape(batch, patches, width)


class Twin(nn.Module):
    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        model = config.model
        self.config = config
        self.encoder = TwinEncoder(model)
        self.predictor = TwinPredictor(model)
        self.target_encoder = TwinEncoder(model).requires_grad_(False)
        if config.method == "dmt-jepa":
            self.head = TwinHead(model.dim, model.heads)
            self.target_head = TwinHead(model.dim, model.heads).requires_grad_(False)
            self.table = neighbour_table(*model.grid, config.dmt.window, "wrap")

    def forward(self, batch: Masked) -> Tensor:
        context, lengths = batch.context, batch.lengths
        mask = None if lengths is None else key_mask(lengths, context.shape[1])
        z = self.encoder(batch.image, context, mask)
        if self.config.method == "dmt-jepa":
            z = self.head(z, lengths)
        prediction = self.predictor(z, batch)
        with torch.no_grad():
            h = self.target_encoder(batch.image)
            h = F.layer_norm(h, h.shape[-1:])
            if self.config.method == "dmt-jepa":
                neighbours = select(h, self.table, self.config.dmt.neighbours)
                h = self.target_head.aggregate(h, neighbours)
            target = torch.cat([take(h, block) for block in batch.targets])
        return F.smooth_l1_loss(prediction, target)

    @torch.no_grad()
    def average(self, momentum: float) -> None:
        online = [*self.encoder.parameters()]
        target = [*self.target_encoder.parameters()]
        if self.config.method == "dmt-jepa":
            online += self.head.parameters()
            target += self.target_head.parameters()
        for average, current in zip(target, online, strict=True):
            average.mul_(momentum).add_((1 - momentum) * current)


def select(h: Tensor, table: Tensor, k: int) -> Tensor:
    """The k neighbours most like each patch [batch, patches, k]."""
    around = gather_neighbours(h, table.expand(len(h), -1, -1))
    similarity = F.cosine_similarity(h[:, :, None], around, dim=-1, eps=1e-12)
    place = similarity.topk(k, dim=-1).indices
    return table.expand(len(h), -1, -1).gather(2, place)


def gather_neighbours(h: Tensor, neighbours: Tensor) -> Tensor:
    """Tokens of neighbours [batch, patches, k]: [batch, patches, k, width]."""
    return take(h, neighbours.flatten(1)).unflatten(1, neighbours.shape[1:])


def key_mask(lengths: Tensor, longest: int) -> Tensor:
    """True at the first lengths[b] of row b: [batch, 1, 1, longest]."""
    return (torch.arange(longest) < lengths[:, None])[:, None, None]


def take(x: Tensor, index: Tensor) -> Tensor:
    """The tokens `index` [batch, n] of x [batch, tokens, width]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
