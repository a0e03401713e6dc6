"""lightly's I-JEPA with timm's modules, trained by its documented loop.

Without its class token and with the papers' position tables it does the same work as the twin, and
computes the same numbers.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.vision_twin import Masked, Twin

try:
    from lightly.models import utils
    from lightly.models.modules import MaskedVisionTransformerTIMM
    from lightly.models.modules.ijepa_timm import IJEPAPredictorTIMM
    from timm.models.vision_transformer import VisionTransformer

    INSTALLED = True
except ImportError:
    INSTALLED = False


class LightlyJEPA(nn.Module):
    """Encoder, predictor and target encoder, with the weights of a twin."""

    def __init__(self, twin: Twin) -> None:
        super().__init__()
        model = twin.config.model
        vit = VisionTransformer(
            img_size=model.image,
            patch_size=model.patch,
            in_chans=model.channels,
            num_classes=0,
            global_pool="",
            embed_dim=model.dim,
            depth=model.depth,
            num_heads=model.heads,
            class_token=False,
        )
        self.encoder = MaskedVisionTransformerTIMM(vit, pos_embed_initialization="skip")
        self.predictor = IJEPAPredictorTIMM(
            num_patches=math.prod(model.grid),
            depth=model.predictor_depth,
            mlp_dim=model.dim,
            predictor_embed_dim=model.predictor_dim,
            num_heads=model.heads,
        )
        self.encoder.mask_token.requires_grad_(False)  # other methods' token
        for table, positions in (
            (vit.pos_embed, twin.encoder.positions),
            (self.predictor.decoder.pos_embed, twin.predictor.positions),
        ):
            table.requires_grad_(False).copy_(positions[None])
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        known, own = twin.state_dict(), self.state_dict()
        theirs = {name: known[as_twin(name)] for name in own if as_twin(name) in known}
        self.load_state_dict({**own, **theirs})

    def forward(self, batch: Masked) -> Tensor:
        contexts = [batch.context]
        with torch.no_grad():
            h = self.target_encoder.encode(batch.image)
            h = F.layer_norm(h, (h.size(-1),))
            count = len(h)
            h = utils.apply_masks(h, batch.targets)
            h = utils.repeat_interleave_batch(h, count, repeat=len(contexts))
        z = self.encoder.encode(batch.image, idx_keep=batch.context)
        return F.smooth_l1_loss(self.predictor(z, contexts, batch.targets), h)

    @torch.no_grad()
    def average(self, momentum: float) -> None:
        pairs = zip(self.encoder.parameters(), self.target_encoder.parameters(), strict=True)
        for online, target in pairs:
            target.data.mul_(momentum).add_((1.0 - momentum) * online.detach().data)


def as_twin(name: str) -> str:
    """The twin's name of a weight of lightly's."""
    for theirs, ours in (
        ("encoder.vit.", "encoder."),
        ("predictor.predictor_", "predictor."),
        ("predictor.decoder.", "predictor."),
    ):
        name = name.replace(theirs, ours)
    return name
