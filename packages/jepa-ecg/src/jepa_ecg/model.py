"""The encoder, the predictor and the module that trains them (arXiv 2410.13867).

A signal of 12 leads is cut into patches of 50 ms over all leads; the context encoder sees a fifth
of them, and the predictor regresses what the target encoder, an exponential moving average, says
of the hidden rest.
"""

from __future__ import annotations

import copy
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepa_core.ema import EMA
from jepa_core.errors import DataError
from jepa_core.health.quantities import Observation
from jepa_core.layers import init_weights
from jepa_core.layers.patches import PatchEmbed1d
from jepa_core.layers.positions import sincos_1d
from jepa_core.layers.predictor import Predictor
from jepa_core.layers.vit import ViT
from jepa_core.losses import l1
from jepa_core.schedules import linear
from jepa_ecg.presets import ModelConfig, PretrainConfig


class ECGEncoder(ViT):
    """Signal to token features.

    Parameters
    ----------
    config
        Shapes; `config.samples` bounds the input's length.
    """

    positions: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(
            dim=config.dim,
            depth=config.depth,
            heads=config.heads,
            mlp_ratio=config.mlp_ratio,
            registers=config.registers,
            bias=config.bias,
            qkv_bias=config.qkv_bias,
            norm_eps=config.norm_eps,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            layer_scale=config.layer_scale,
        )
        self.config = config
        self.patch_embed = PatchEmbed1d(
            len(config.leads), config.patch, config.dim, bias=config.bias
        )
        # Computed, not learned, and absent from checkpoints.
        self.register_buffer("positions", sincos_1d(config.tokens, config.dim), persistent=False)
        init_weights(self, residual_depth=config.depth)
        if config.patch_init == "fan-in":
            fan_in = len(config.leads) * config.patch
            nn.init.trunc_normal_(self.patch_embed.proj.weight, std=1 / math.sqrt(fan_in))

    def forward(  # type: ignore[override]
        self,
        signal: Float[Tensor, "batch leads samples"],
        keep: Int[Tensor, "batch kept"] | None = None,
        *,
        rows: Int[Tensor, "batch rows"] | None = None,
        keep_registers: bool = False,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Encode a normalised signal.

        Parameters
        ----------
        signal
            Normalised leads in the order of `config.leads`, at `config.fs` Hz. The length is a
            multiple of the patch and at most `config.samples`; positions start at 0 whatever the
            length.
        keep
            The only tokens to look at, by index; the rest is dropped before the patch map.
        rows
            The only tokens whose features are wanted; all are still attended to.
        keep_registers
            Return the registers, first, as well.
        """
        samples = signal.shape[-1]
        if samples % self.config.patch or not 0 < samples <= self.config.samples:
            raise DataError(
                f"a signal of {samples} samples",
                remedy=f"allowed: a multiple of {self.config.patch} up to {self.config.samples}",
            )
        tokens = self.patch_embed(signal, keep)
        if keep is None:
            tokens = tokens + self.positions[: tokens.shape[1]]
        else:
            tokens = tokens + self.positions[keep]
        return super().forward(tokens, rows=rows, keep_registers=keep_registers)


class ECGPredictor(Predictor):
    """Context features to features at hidden positions; never with LayerScale."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(
            dim=config.dim,
            width=config.predictor_dim,
            depth=config.predictor_depth,
            heads=config.predictor_heads,
            positions=sincos_1d(config.tokens, config.predictor_dim),
            mlp_ratio=config.mlp_ratio,
            bias=config.bias,
            qkv_bias=config.qkv_bias,
            norm_eps=config.norm_eps,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
        )
        # The official program scales with the encoder's depth here too; the presets' depths agree.
        official = config.compat == "official"
        init_weights(self, residual_depth=config.depth if official else config.predictor_depth)


class ECGJEPA(nn.Module):
    """Encoder, predictor and target encoder; `forward` returns the loss of a batch.

    A batch holds `signal` float [batch, leads, samples], normalised; `context` int64 [batch, kept],
    the tokens the encoder sees; `target` int64 [batch, hidden], those to be predicted, ascending.
    """

    forwards: Tensor

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ECGEncoder(config.model)
        self.predictor = ECGPredictor(config.model)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.ema = EMA(self.target_encoder, self.encoder)
        self.official = config.model.compat == "official"
        if self.official:
            # The program averages inside each forward, also of the parts of a batch, and its
            # momentum follows that count; a tensor, so that a resumed run goes on counting.
            self.register_buffer("forwards", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean absolute error of the predicted features at the hidden tokens."""
        if self.official and self.training:
            self.ema.update(self._official_momentum())
        context, hidden = batch["context"], batch["target"]
        prediction = self.predict(batch["signal"], context, hidden)
        target = self.targets(batch["signal"], hidden)
        return {
            "loss": l1(prediction.float(), target.float())
            if prediction.dtype != torch.float64
            else l1(prediction, target),
            "prediction_std": prediction.detach().std(),
        }

    def predict(
        self,
        signal: Float[Tensor, "batch leads samples"],
        context: Int[Tensor, "batch kept"],
        hidden: Int[Tensor, "batch hidden"],
    ) -> Float[Tensor, "batch hidden dim"]:
        """What the predictor says of the hidden tokens, given the context."""
        return self.predictor(self.encoder(signal, context), context, hidden)

    @torch.no_grad()
    def targets(
        self,
        signal: Float[Tensor, "batch leads samples"],
        rows: Int[Tensor, "batch rows"] | None = None,
    ) -> Float[Tensor, "batch rows dim"]:
        """The target encoder's features, of `rows` or of every token, as the loss sees them."""
        target = self.target_encoder(signal, rows=rows)
        if self.config.model.target_norm:
            target = nn.functional.layer_norm(target, target.shape[-1:], eps=1e-6)
        return target

    def after_step(self, step: int) -> None:
        """Average the target encoder after the optimiser's step number `step`, from 0."""
        if not self.official:
            config = self.config
            self.ema.update(
                float(linear(step, config.steps, config.momentum, config.final_momentum))
            )

    @torch.no_grad()
    def observe(self, batch: dict[str, Tensor]) -> Observation:
        """What the health of a run is read from; `batch` has `views` int64 [seen, q, kept] too."""
        signal, hidden = batch["signal"], batch["target"]
        tokens = self.targets(signal)
        index = hidden[..., None].expand(-1, -1, tokens.shape[-1])
        views = [
            self.encoder(signal[: len(view)], view).mean(1) for view in batch["views"].unbind(1)
        ]
        return Observation(
            tokens=tokens,
            prediction=self.predict(signal, batch["context"], hidden),
            target=tokens.gather(1, index),
            positions=hidden,
            views=torch.stack(views, 1),
        )

    def _official_momentum(self) -> Tensor:
        config = self.config
        share = (self.forwards.double() / config.steps).clamp(max=1)
        self.forwards += 1
        return config.momentum + (config.final_momentum - config.momentum) * share
