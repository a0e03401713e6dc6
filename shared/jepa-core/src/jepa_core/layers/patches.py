"""Patch embeddings that only embed the patches somebody asked for."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from jepa_core.errors import DataError
from jepa_core.layers.block import init_weights, take_rows
from jepa_core.layers.linear import linear
from jepa_core.tokens import IndexSet

Keep = IndexSet | Int[Tensor, "batch kept"]


class PatchEmbed1d(nn.Module):
    """Signals to tokens: one linear map of each patch of `patch` samples over all channels.

    The map is stored as the convolution it equals (`proj`: weight [dim, channels, patch]).
    """

    def __init__(self, channels: int, patch: int, dim: int, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Conv1d(channels, dim, patch, stride=patch, bias=bias)
        init_weights(self)

    def forward(
        self, x: Float[Tensor, "batch channels time"], keep: Keep | None = None
    ) -> Float[Tensor, "batch kept dim"]:
        """Tokens in time order, or those of `keep` in its order.

        Parameters
        ----------
        keep
            Patch indices of each sample; the others are never multiplied. Rows at an `IndexSet`'s
            padding hold patch 0.

        Raises
        ------
        DataError
            The signal is not a whole number of patches long.
        """
        (patch,) = self.proj.kernel_size
        _check_whole("samples", x.shape[-1], patch)
        if keep is None:
            return self.proj(x).transpose(1, 2)
        return _embed_some(self.proj, x.unflatten(-1, (-1, patch)).transpose(1, 2), keep)


class PatchEmbed2d(nn.Module):
    """Images to tokens: one linear map of each square patch, stored as a convolution (`proj`)."""

    def __init__(self, channels: int, patch: int, dim: int, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, stride=patch, bias=bias)
        init_weights(self)

    def forward(
        self, x: Float[Tensor, "batch channels height width"], keep: Keep | None = None
    ) -> Float[Tensor, "batch kept dim"]:
        """Tokens in row-major order, or those of `keep`; otherwise as `PatchEmbed1d`."""
        patch = self.proj.kernel_size[0]
        for size in x.shape[-2:]:
            _check_whole("pixels", size, patch)
        if keep is None:
            return self.proj(x).flatten(2).transpose(1, 2)
        grid = x.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))
        return _embed_some(self.proj, grid.permute(0, 2, 4, 1, 3, 5).flatten(1, 2), keep)


def _embed_some(
    proj: nn.Conv1d | nn.Conv2d, patches: Float[Tensor, "batch n *patch"], keep: Keep
) -> Float[Tensor, "batch kept dim"]:
    kept = take_rows(patches, keep.indices if isinstance(keep, IndexSet) else keep)
    return linear(kept.flatten(2), proj.weight.flatten(1), proj.bias)


def _check_whole(unit: str, size: int, patch: int) -> None:
    if size == 0 or size % patch:
        raise DataError(
            f"{size} {unit} are not a whole number of patches of {patch}",
            remedy=f"crop or pad to a multiple of {patch}",
        )
