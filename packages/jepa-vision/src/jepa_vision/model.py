"""The encoder, the predictor and the module that trains them.

I-JEPA (arXiv 2301.08243): a vision transformer sees one large block of an image's patches, and a
narrow one predicts what the target encoder, an exponential moving average that sees the whole
image, says of four other blocks. DMT-JEPA (arXiv 2405.17995) predicts, for each patch, an
aggregate of its most similar neighbours instead.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from jepa_core.ema import EMA
from jepa_core.errors import ConfigError
from jepa_core.health.quantities import Observation
from jepa_core.layers import init_weights
from jepa_core.layers.block import Block, packed_rows, pays_to_pack, take_rows
from jepa_core.layers.patches import PatchEmbed2d
from jepa_core.layers.positions import sincos_2d
from jepa_core.layers.predictor import Predictor
from jepa_core.layers.vit import ViT
from jepa_core.schedules import linear
from jepa_vision.head import AggregationHead, PaperHead
from jepa_vision.presets import ModelConfig, PretrainConfig
from jepa_vision.targets import aggregate, neighbour_table, select_neighbours


class ImageEncoder(ViT):
    """Images to patch features: a vision transformer without class token.

    Parameters
    ----------
    config
        Shapes; images of other sizes than `config.image` are welcome.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.dim, config.depth, config.heads, mlp_ratio=config.mlp_ratio)
        self.config = config
        self.patch_embed = PatchEmbed2d(config.channels, config.patch, config.dim)
        _init(self, config)

    def forward(  # type: ignore[override]
        self,
        image: Float[Tensor, "batch channels height width"],
        keep: Int64[Tensor, "batch kept"] | None = None,
        *,
        lengths: Int[Tensor, " batch"] | None = None,
        rows: Int64[Tensor, "batch rows"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Encode normalised images.

        Parameters
        ----------
        image
            Sides are multiples of the patch. On another grid than the trained one, patches have the
            position of their centre's place in the image.
        keep
            The only patches to look at, by row-major index; the rest is dropped before the patch
            map.
        lengths
            How many of each row of `keep` are meant; what is behind them is padding.
        rows
            The only tokens whose features are wanted; all are still attended to.
        """
        return super().forward(self._tokens(image, keep), rows=rows, key_lengths=lengths)

    def features(
        self, image: Float[Tensor, "batch channels height width"], layers: Sequence[int]
    ) -> tuple[Float[Tensor, "batch tokens dim"], ...]:
        """Outputs of the blocks with these numbers, counted from 1, each after the final norm.

        Raises
        ------
        ConfigError
            There is no such block.
        """
        wrong = [number for number in layers if not 1 <= number <= len(self.blocks)]
        if wrong:
            raise ConfigError(
                f"there is no block {wrong[0]}", remedy=f"the encoder has 1 to {len(self.blocks)}"
            )
        x, seen = self._tokens(image, None), {}
        for number, block in enumerate(self.blocks[: max(layers)], start=1):
            x = block(x)
            if number in layers:
                seen[number] = self.norm(x)
        return tuple(seen[number] for number in layers)

    def _tokens(
        self,
        image: Float[Tensor, "batch channels height width"],
        keep: Int64[Tensor, "batch kept"] | None,
    ) -> Float[Tensor, "batch tokens dim"]:
        patch, dim = self.config.patch, self.config.dim
        tokens = self.patch_embed(image, keep)
        grid = image.shape[-2] // patch, image.shape[-1] // patch
        table = _positions(grid, dim, self.config.grid, tokens.dtype, tokens.device)
        return tokens + (table if keep is None else table[keep])


class ImagePredictor(Predictor):
    """Context features to features of the target blocks, each block apart from the others."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(
            dim=config.dim,
            width=config.predictor_dim,
            depth=config.predictor_depth,
            heads=config.heads,
            positions=sincos_2d(*config.grid, config.predictor_dim),
        )
        _init(self, config)

    def forward(
        self,
        z: Float[Tensor, "contexts*batch k dim"],
        context: Int64[Tensor, "contexts batch k"],
        target: Int64[Tensor, "targets batch m"],
        lengths: Int[Tensor, "contexts batch"] | None = None,
        *,
        joint: bool = False,
    ) -> Float[Tensor, "targets*contexts*batch m dim"]:
        """Predictions of every target block from every context block.

        Rows are target-major, then context, then image: the order of the official programs.

        Parameters
        ----------
        z
            Encoded contexts, context-major.
        lengths
            How many tokens of each context are meant.
        joint
            One pass for all target blocks of an image, which then see each other.
        """
        contexts, batch, _ = context.shape
        targets, _, m = target.shape
        known = self.embed(z) + self.positions[context].flatten(0, 1)
        asked = self.mask_token + self.positions[target]  # [targets, batch, m, width]
        if joint:
            asked = asked.transpose(0, 1).flatten(1, 2)[None]  # [1, batch, targets*m, width]
        passes, _, each, _ = asked.shape
        x = torch.cat(
            (
                asked[:, None].expand(-1, contexts, -1, -1, -1),
                known.unflatten(0, (contexts, batch)).expand(passes, -1, -1, -1, -1),
            ),
            3,
        ).flatten(0, 2)
        lengths_ = None if lengths is None else lengths.flatten().repeat(passes) + each
        x = self.proj(self.norm(self._blocks(x, each, lengths_)))
        if joint:
            apart = x.unflatten(0, (contexts, batch)).unflatten(2, (targets, m))
            x = apart.permute(2, 0, 1, 3, 4).flatten(0, 2)
        return x

    def _blocks(
        self,
        x: Float[Tensor, "rows n width"],
        m: int,
        lengths: Int[Tensor, " rows"] | None,
    ) -> Float[Tensor, "rows m width"]:
        """Mask tokens after all blocks: the first m, so that padding comes last."""
        if lengths is None or not pays_to_pack(x, lengths):
            for block in self.blocks[:-1]:
                x = block(x, key_lengths=lengths)
            # What the last block would write into the context's rows is never read.
            return self.blocks[-1](x, rows=slice(0, m), key_lengths=lengths)
        rows, longest, _ = x.shape
        index, ends, order = packed_rows(lengths, longest)
        x = x.flatten(0, 1).index_select(0, index)
        wanted = (ends[:rows, None] + torch.arange(m)).flatten()
        # What fills up the rows is asked nothing.
        places = torch.arange(len(ends)).clamp(max=rows) * m
        for number, block in enumerate(self.blocks, start=1):
            assert isinstance(block, Block)
            last = number == len(self.blocks)
            x = block.packed(x, ends, (wanted, places) if last else None)
        return x.unflatten(0, (rows, m)).index_select(0, order.argsort())


class ImageJEPA(nn.Module):
    """Encoder, predictor, target encoder and, for DMT-JEPA, the head and its average.

    A batch holds `image` float [batch, channels, height, width], normalised; `context` int64
    [contexts, batch, k], the patches the encoder sees, with `context_lengths` int32 [contexts,
    batch] where they differ; `target` int64 [targets, batch, m], the patches to be predicted. For
    targets of random neighbours also `noise` float [batch, patches, candidates].
    """

    done: Tensor

    def __init__(self, config: PretrainConfig, steps: int) -> None:
        """Of a run of so many optimiser steps, over which momentum and warm-up go."""
        super().__init__()
        self.config, self.steps = config, steps
        self.encoder = ImageEncoder(config.model)
        self.predictor = ImagePredictor(config.model)
        self.head = build_head(config)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.target_head = copy.deepcopy(self.head)
        target, online = nn.ModuleList([self.target_encoder]), nn.ModuleList([self.encoder])
        if self.head is not None and self.target_head is not None:
            target.append(self.target_head.requires_grad_(False))
            online.append(self.head)
        self.ema = EMA(target, online)
        if config.method == "dmt-jepa" and config.dmt.warmup:
            # A tensor of the state, so that a resumed run goes on counting.
            self.register_buffer("done", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Distance of predicted and target tokens, and how far predictions spread."""
        prediction = self.predict(batch)
        target = self._block_targets(batch)
        if prediction.dtype != torch.float64:
            prediction, target = prediction.float(), target.float()
        if self.config.loss == "l2":
            loss = F.mse_loss(prediction, target)
        else:
            loss = F.smooth_l1_loss(prediction, target)
        output = {"prediction_std": prediction.detach().std()}
        if self._dmt and self.config.dmt.variance_floor and self.head is not None:
            floor = self._between_patches(batch)
            output["floor"] = floor
            loss = loss + self.config.dmt.variance_floor * floor
        return {"loss": loss, **output}

    def predict(self, batch: dict[str, Tensor]) -> Float[Tensor, "targets*contexts*batch m dim"]:
        """What the predictor says of the target blocks; order as `ImagePredictor.forward`."""
        context, lengths = batch["context"], batch.get("context_lengths")
        contexts = len(context)
        flat = None if lengths is None else lengths.flatten()
        image = batch["image"] if contexts == 1 else batch["image"].repeat(contexts, 1, 1, 1)
        z = self.encoder(image, context.flatten(0, 1), lengths=flat)
        if isinstance(self.head, AggregationHead):
            z = self.head(z, flat, form=self.config.dmt.context)
        elif self.head is not None:
            z = self.head(z, flat)
        return self.predictor(z, context, batch["target"], lengths, joint=self.config.joint)

    @torch.no_grad()
    def targets(
        self,
        image: Float[Tensor, "batch channels height width"],
        positions: Int64[Tensor, "batch n"] | None = None,
        noise: Float[Tensor, "batch patches candidates"] | None = None,
    ) -> Float[Tensor, "batch n dim"]:
        """Target tokens of the patches at `positions` (all by default), as the loss sees them."""
        if not self._dmt:
            return _normalised(self.target_encoder(image, rows=positions))
        h = _normalised(self.target_encoder(image))
        aggregated = self._aggregate(self.target_head, h, positions, noise, image)
        share = self._warmed_up()
        if share is None:
            return aggregated
        patches = h if positions is None else take_rows(h, positions)
        return torch.lerp(patches, aggregated, share.to(patches))

    def neighbours(
        self,
        h: Float[Tensor, "batch patches dim"],
        grid: tuple[int, int],
        positions: Int64[Tensor, "batch n"] | None = None,
        noise: Float[Tensor, "batch patches candidates"] | None = None,
    ) -> Int64[Tensor, "batch n k"]:
        """The patches that make each target, -1 = none; the patch itself last, if it is one."""
        dmt = self.config.dmt
        table = neighbour_table(*grid, dmt.window, dmt.border)
        index, _ = select_neighbours(h, table, dmt.neighbours, positions, noise)
        if dmt.include_self:
            every = torch.arange(h.shape[1], device=h.device).expand(len(h), -1)
            own = every if positions is None else positions
            index = torch.cat((index, own[..., None]), -1)
        return index

    def after_step(self, step: int) -> None:
        """Average the targets after the optimiser's step number `step`, from 0."""
        config = self.config
        total = self.steps * config.schedule_stretch
        self.ema.update(float(linear(step, total, config.momentum, config.final_momentum)))
        if self._dmt and config.dmt.warmup:
            self.done += 1

    @torch.no_grad()
    def observe(self, batch: dict[str, Tensor]) -> Observation:
        """What the health of a run is read from; `batch` has `views` int64 [seen, q, k] too."""
        contexts, count = batch["context"].shape[:2]
        tokens = self.targets(batch["image"], noise=batch.get("noise"))
        # The first context's predictions, all target blocks of an image one after the other.
        prediction = self.predict(batch).unflatten(0, (-1, contexts, count))[:, 0]
        positions = batch["target"].transpose(0, 1).flatten(1)
        views = [
            self.encoder(batch["image"][: len(view)], view).mean(1)
            for view in batch["views"].unbind(1)
        ]
        return Observation(
            tokens=tokens,
            prediction=prediction.transpose(0, 1).flatten(1, 2),
            target=take_rows(tokens, positions),
            positions=positions,
            views=torch.stack(views, 1),
        )

    @property
    def _dmt(self) -> bool:
        return self.config.method == "dmt-jepa"

    def _block_targets(
        self, batch: dict[str, Tensor]
    ) -> Float[Tensor, "targets*contexts*batch m dim"]:
        target, contexts = batch["target"], len(batch["context"])
        # Which patches are in any block, and where each block's are among them, comes with the
        # batch: found here, it would have to be read from the device.
        union, place = batch.get("union"), batch.get("place", target)
        wanted = self.targets(batch["image"], union, batch.get("noise"))
        blocks = take_rows(wanted, place.transpose(0, 1).flatten(1)).unflatten(1, place[:, 0].shape)
        each = blocks.transpose(0, 1)[:, None].expand(-1, contexts, -1, -1, -1)
        return each.flatten(0, 2)

    def _aggregate(
        self,
        head: AggregationHead | PaperHead | None,
        h: Float[Tensor, "batch patches dim"],
        positions: Int64[Tensor, "batch n"] | None,
        noise: Float[Tensor, "batch patches candidates"] | None,
        image: Tensor,
    ) -> Float[Tensor, "batch n dim"]:
        dmt, patch = self.config.dmt, self.config.model.patch
        grid = image.shape[-2] // patch, image.shape[-1] // patch
        return aggregate(
            head,
            h,
            self.neighbours(h, grid, positions, noise),
            positions,
            query=dmt.query,
            pairing=dmt.pairing,
            pool="max" if dmt.aggregator == "max" else "mean",
        )

    def _between_patches(self, batch: dict[str, Tensor]) -> Float[Tensor, ""]:
        """How far the head's targets fall short of a standard deviation of one half in an image.

        The gradient reaches the head alone; its average, which makes the targets, follows.
        """
        with torch.no_grad():
            h = _normalised(self.target_encoder(batch["image"]))
        y = self._aggregate(self.head, h, batch.get("union"), batch.get("noise"), batch["image"])
        deviation = (y.var(1) + 1e-4).sqrt()
        return F.relu(0.5 - deviation).mean()

    def _warmed_up(self) -> Tensor | None:
        """Share of the aggregate in the targets, from 0 to 1; None = 1 throughout."""
        if not self.config.dmt.warmup:
            return None
        return (self.done / (self.config.dmt.warmup * self.steps)).clamp(max=1)


def build_head(config: PretrainConfig) -> AggregationHead | PaperHead | None:
    """The head of a recipe at its initial weights; None where targets have none."""
    if config.method == "i-jepa" or config.dmt.aggregator in ("mean", "max"):
        return None
    model = config.model
    if config.dmt.aggregator == "paper":
        return PaperHead(model.dim, model.heads)
    return AggregationHead(model.dim, model.heads)


def _init(module: ImageEncoder | ImagePredictor, config: ModelConfig) -> None:
    """Normal weights of std 0.02; what ends the branches of block l divided by sqrt(2 l)."""
    init_weights(module)
    if config.residual_scale == "none":
        return
    for number, block in enumerate(module.blocks, start=1):
        assert isinstance(block, Block)
        with torch.no_grad():
            block.attn.proj.weight.div_(math.sqrt(2 * number))
            block.mlp.fc2.weight.div_(math.sqrt(2 * number))


def _normalised(h: Float[Tensor, "batch n dim"]) -> Float[Tensor, "batch n dim"]:
    """Each token to mean 0 and variance 1, in float32 at least."""
    with torch.autocast(h.device.type, enabled=False):
        return F.layer_norm(h if h.dtype == torch.float64 else h.float(), h.shape[-1:], eps=1e-5)


@functools.lru_cache(maxsize=16)
def _positions(
    grid: tuple[int, int],
    dim: int,
    trained: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> Float[Tensor, "patches dim"]:
    return sincos_2d(*grid, dim, dtype=dtype, like=trained).to(device)
