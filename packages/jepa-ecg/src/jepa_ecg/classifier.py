"""A classifier on an encoder: attention pooling, the register, or the mean of the tokens."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepa_core.evaluation.attentive import AttentivePool
from jepa_ecg.model import ECGEncoder


class ECGClassifier(nn.Module):
    """Encoder and head; `forward` gives logits.

    Parameters
    ----------
    encoder
        A pre-trained encoder, used in place.
    classes
        Number of outputs.
    seed
        Of the head's initial weights.
    attention_pooling
        Pool with one learned query; otherwise read the first register (`use_register`) or the
        mean of the patch tokens.
    use_register
        Give the head the registers too. An encoder without any gets a new one.
    """

    def __init__(
        self,
        encoder: ECGEncoder,
        classes: int,
        *,
        attention_pooling: bool = True,
        use_register: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        dim, heads = encoder.config.dim, encoder.config.heads
        if use_register and not encoder.config.registers:
            encoder.registers = nn.Parameter(torch.empty(1, 1, dim))
            nn.init.trunc_normal_(encoder.registers, std=0.02)
            encoder.config = replace(encoder.config, registers=1)
        self.encoder = encoder
        self.use_register = use_register
        self.attn_pool = (
            AttentivePool(dim, heads, classes, seed=seed) if attention_pooling else None
        )
        # As in the official program: a bias on the mean of the tokens, none on the register.
        self.fc = None if attention_pooling else nn.Linear(dim, classes, bias=not use_register)
        if self.fc is not None:
            generator = torch.Generator().manual_seed(seed)
            nn.init.normal_(self.fc.weight, std=0.02, generator=generator)
            if self.fc.bias is not None:
                nn.init.zeros_(self.fc.bias)

    def forward(
        self, signal: Float[Tensor, "batch leads samples"]
    ) -> Float[Tensor, "batch classes"]:
        """Logits of a normalised signal."""
        return self.head(self.encoder(signal, keep_registers=self.use_register))

    def head(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch classes"]:
        """Logits from the encoder's tokens, registers first where the head uses them."""
        if self.attn_pool is not None:
            return self.attn_pool(tokens)
        assert self.fc is not None
        return self.fc(tokens[:, 0] if self.use_register else tokens.mean(1))
