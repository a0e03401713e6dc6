"""What a JEPA is compared with: the same encoder, trained to reconstruct the hidden signal."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepa_core.health.quantities import Observation
from jepa_core.layers import init_weights
from jepa_core.layers.linear import Linear
from jepa_core.layers.positions import sincos_1d
from jepa_core.layers.predictor import Predictor
from jepa_core.losses import mse
from jepa_ecg.model import ECGEncoder
from jepa_ecg.presets import PretrainConfig


class MaskedAutoencoder(nn.Module):
    """Reconstruct hidden patches, each normalised by itself (He et al. 2022, section 4.1).

    Encoder, masks and predictor are those of `ECGJEPA`; only the predictor's output map differs:
    it gives samples instead of features. Takes the batches of `ECGSource`.
    """

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        model = config.model
        self.config = config
        self.encoder = ECGEncoder(model)
        self.predictor = Predictor(
            dim=model.dim,
            width=model.predictor_dim,
            depth=model.predictor_depth,
            heads=model.predictor_heads,
            positions=sincos_1d(model.tokens, model.predictor_dim),
            mlp_ratio=model.mlp_ratio,
            bias=model.bias,
            qkv_bias=model.qkv_bias,
            norm_eps=model.norm_eps,
        )
        self.predictor.proj = Linear(
            model.predictor_dim, len(model.leads) * model.patch, bias=model.bias
        )
        init_weights(self.predictor, residual_depth=model.predictor_depth)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean squared error of the hidden patches."""
        hidden = batch["target"]
        z = self.encoder(batch["signal"], batch["context"])
        prediction = self.predictor(z, batch["context"], hidden)
        return {"loss": mse(prediction, self._at(self.patches(batch["signal"]), hidden))}

    def patches(
        self, signal: Float[Tensor, "batch leads samples"]
    ) -> Float[Tensor, "batch tokens leads*patch"]:
        """Each patch with mean 0 and variance 1."""
        cut = signal.unflatten(-1, (-1, self.config.model.patch)).transpose(1, 2).flatten(2)
        return nn.functional.layer_norm(cut, cut.shape[-1:], eps=1e-6)

    @torch.no_grad()
    def observe(self, batch: dict[str, Tensor]) -> Observation:
        """As `ECGJEPA.observe`, with patches in place of target features."""
        signal, hidden = batch["signal"], batch["target"]
        patches = self.patches(signal)
        z = self.encoder(signal, batch["context"])
        views = [
            self.encoder(signal[: len(view)], view).mean(1) for view in batch["views"].unbind(1)
        ]
        return Observation(
            tokens=patches,
            prediction=self.predictor(z, batch["context"], hidden),
            target=self._at(patches, hidden),
            positions=hidden,
            views=torch.stack(views, 1),
        )

    @staticmethod
    def _at(tokens: Tensor, index: Tensor) -> Tensor:
        return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))
