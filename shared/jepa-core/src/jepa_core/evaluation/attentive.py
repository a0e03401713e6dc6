"""The attentive probe: one learned query pools a frozen encoder's tokens.

It trains 3 dim^2 weights, so it is no linear probe: judge it against the untrained twin. The
encoder never changes, so its tokens are computed once and memory-mapped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from jepa_core import rng
from jepa_core.errors import DataError, RunError
from jepa_core.evaluation import FinetuneConfig
from jepa_core.evaluation.finetune import Finetuned, finetune, label_loss, selection_score
from jepa_core.training.sampler import Draw


class AttentivePool(nn.Module):
    """Logits from tokens: cross-attention of one learned query, no norm, no residual, no MLP.

    The query is the same for every record, so it is multiplied into the key map, and tokens are
    pooled before the value map: dim * heads products a token and not 2 dim^2, with equal outputs
    and gradients.

    Parameters
    ----------
    dim, heads
        Width of the tokens and number of attention heads, which divides it.
    classes
        Number of outputs.
    bias
        Give all maps a bias. That of the keys has no effect: it moves all scores of a head alike.
    seed
        Of the initial weights: normal, standard deviation 0.02, biases zero.
    """

    def __init__(
        self, dim: int, heads: int, classes: int, *, bias: bool = False, seed: int = 0
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide a width of {dim}")
        self.heads = heads
        self.query_token = nn.Parameter(torch.empty(1, 1, dim))
        self.q = nn.Linear(dim, dim, bias=bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=bias)  # rows [keys | values]
        self.proj = nn.Linear(dim, classes, bias=bias)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.ndim == 1:
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=0.02, generator=generator)

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch classes"]:
        weights = self._weights(tokens)
        pooled = weights.transpose(1, 2) @ tokens  # [batch, heads, dim]
        value_map = self.kv.weight.chunk(2)[1].unflatten(0, (self.heads, -1))
        values = torch.einsum("bhd,hed->bhe", pooled, value_map).flatten(1)
        if self.kv.bias is not None:
            values = values + self.kv.bias.chunk(2)[1]
        return self.proj(values)

    @torch.no_grad()
    def weights(
        self, tokens: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch heads tokens"]:
        """Where each head looks; sums to 1 over the tokens."""
        return self._weights(tokens).transpose(1, 2)

    def _weights(self, tokens: Tensor) -> Float[Tensor, "batch tokens heads"]:
        query = self.q(self.query_token).flatten().unflatten(0, (self.heads, -1))
        key_map = self.kv.weight.chunk(2)[0].unflatten(0, (self.heads, -1))
        scale = query.shape[-1] ** -0.5
        return (tokens @ torch.einsum("he,hed->dh", query * scale, key_map)).softmax(dim=1)


@dataclass(frozen=True)
class TokenSet:
    """Cached tokens and labels: what a head is trained or judged on.

    Parameters
    ----------
    tokens
        Each record's views (crops, say); an array or a memory map.
    y
        Class numbers [n], or 0/1 columns [n, classes].

    Raises
    ------
    DataError
        Differing numbers of records, or none.
    """

    tokens: Float[np.ndarray, "n views tokens dim"]
    y: Shaped[np.ndarray, "n *classes"]

    def __post_init__(self) -> None:
        if self.tokens.ndim != 4 or self.y.ndim not in (1, 2):
            raise DataError(
                f"tokens are {self.tokens.shape} and labels {self.y.shape}, not [records, views, "
                "tokens, dim] and [records] or [records, classes]"
            )
        if len(self.tokens) != len(self.y) or len(self.y) == 0:
            raise DataError(f"tokens of {len(self.tokens)} records, labels of {len(self.y)}")


def fit_head(
    head: nn.Module,
    train: TokenSet,
    validation: TokenSet,
    config: FinetuneConfig,
    *,
    label: str = "attentive probe",
) -> Finetuned:
    """Train a head on cached tokens; it ends at the step with the best validation macro-AUC.

    A record gives one of its views an epoch, drawn from stream "view" by its number and the epoch;
    a validation averages the logits of all its views.

    Parameters
    ----------
    head
        Tokens [batch, tokens, dim] to logits [batch, classes].
    """

    def validate() -> float:
        return selection_score(validation.y, predict(head, validation.tokens))

    return finetune(_WithLoss(head), _Views(train, config.seed), validate, config, label=label)


@torch.no_grad()
def predict(
    head: nn.Module, tokens: Float[np.ndarray, "n views tokens dim"], batch: int = 256
) -> Float[np.ndarray, "n classes"]:
    """Logits of each record: the mean over its views; `batch` changes nothing but rounding."""
    device = next(head.parameters()).device
    views = tokens.shape[1]
    rows = max(1, batch // views)
    logits = []
    for first in range(0, len(tokens), rows):
        part = _float32(tokens[first : first + rows]).to(device).flatten(0, 1)
        logits.append(head(part).float().unflatten(0, (-1, views)).mean(dim=1).cpu())
    return torch.cat(logits).numpy()


class _WithLoss(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits = self.head(batch["tokens"])
        return {"loss": label_loss(logits, batch["y"]), "logits": logits}


class _Views:
    """One view of each drawn record."""

    def __init__(self, data: TokenSet, seed: int) -> None:
        self.data, self.seed = data, seed

    def __len__(self) -> int:
        return len(self.data.y)

    def batch(self, draw: Draw) -> dict[str, Any]:
        words = rng.words(self.seed, "view", draw.keys, draw.counters, 1)
        view = rng.bounded(words, self.data.tokens.shape[1])[:, 0]
        return {
            "tokens": _float32(self.data.tokens[draw.ids, view]),
            "y": torch.from_numpy(np.asarray(self.data.y[draw.ids])),
        }


@dataclass(frozen=True)
class CacheKey:
    """What cached tokens are a function of.

    Parameters
    ----------
    encoder
        `jepa_core.training.checkpoint.state_hash` of the encoder.
    data
        Whatever names the records and their order: a hash of the corpus and of the ids.
    crop
        Which part of a record becomes which view.
    """

    encoder: str
    data: str
    crop: str


def cached_tokens(
    folder: str | Path,
    key: CacheKey,
    shape: tuple[int, int, int, int],
    encode: Callable[[int, int], Float[Tensor, "rows views tokens dim"]],
    *,
    dtype: Literal["float32", "float16"] = "float32",
    rows: int = 64,
) -> Float[np.ndarray, "n views tokens dim"]:
    """Tokens from the cache, read-only and memory-mapped, computed now if they are not in it.

    Parameters
    ----------
    folder
        Of the cache; one file a key, which may be deleted at any time.
    shape
        Records, views, tokens, width.
    encode
        Tokens of the records [first, last).
    dtype
        Of the file; float16 halves it.
    rows
        Records encoded at once.

    Raises
    ------
    DataError
        `encode` gave another shape, or values that are not finite (too large for float16, too).
    RunError
        The folder cannot be written.
    """
    named = json.dumps({**asdict(key), "shape": shape, "dtype": dtype}, sort_keys=True)
    path = Path(folder) / f"tokens-{hashlib.sha256(named.encode()).hexdigest()[:24]}.npy"
    if path.exists():
        return np.load(path, mmap_mode="r")
    beside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tokens = np.lib.format.open_memmap(beside, mode="w+", dtype=dtype, shape=shape)
        for first in range(0, shape[0], rows):
            last = min(first + rows, shape[0])
            part = encode(first, last).detach().float().cpu().numpy()
            if part.shape != (last - first, *shape[1:]):
                raise DataError(f"tokens of records {first}..{last} are {part.shape}, not {shape}")
            with np.errstate(over="ignore"):
                tokens[first:last] = part
            if not np.isfinite(tokens[first:last]).all():
                raise DataError(f"tokens of records {first}..{last} are not finite in {dtype}")
        tokens.flush()
        os.replace(beside, path)
    except OSError as error:
        raise RunError(
            f"the token cache cannot be written: {error.strerror or error}",
            where=error.filename or folder,
            remedy="free space, or name another folder",
        ) from error
    finally:
        if beside.exists():
            beside.unlink()
    return np.load(path, mmap_mode="r")


def _float32(tokens: np.ndarray) -> Tensor:
    # A copy: torch warns of arrays it could write to and must not.
    return torch.from_numpy(np.array(tokens, dtype=np.float32))
