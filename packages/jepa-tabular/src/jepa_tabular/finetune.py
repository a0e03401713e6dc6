"""Fine-tuning: an encoder and a linear head on it, trained together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Shaped
from torch import Tensor, nn

from jepa_core.evaluation import FinetuneConfig
from jepa_core.evaluation.finetune import finetune, label_loss
from jepa_core.losses import mse
from jepa_core.training.sampler import Draw
from jepa_tabular.heads import CLIP, LinearHead, held_out, log_loss
from jepa_tabular.inference import encode, representation_layer
from jepa_tabular.model import TabularEncoder
from jepa_tabular.presets import PretrainConfig

# Share of the epochs without improvement that ends training.
_PATIENCE = 0.2

Fit = Callable[[Float[np.ndarray, "rows features"], Shaped[np.ndarray, " rows"]], LinearHead]


@dataclass(frozen=True)
class Labelled:
    """Labelled rows.

    Parameters
    ----------
    x
        Encoded rows.
    raw
        Raw features that stand beside the representation, or no columns.
    y
        Class numbers, or values in standard deviations around their mean.
    """

    x: Float32[np.ndarray, "rows columns"]
    raw: Float64[np.ndarray, "rows raw"]
    y: Shaped[np.ndarray, " rows"]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: np.ndarray) -> Labelled:
        """Some of the rows."""
        return Labelled(self.x[rows], self.raw[rows], self.y[rows])

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """x, raw and y of a draw."""
        part = self.take(draw.ids)
        y = part.y if part.y.dtype == np.int64 else part.y.astype(np.float32)
        return {
            "x": torch.from_numpy(part.x),
            "raw": torch.from_numpy(part.raw.astype(np.float32)),
            "y": torch.from_numpy(y),
        }


class TunedTable(nn.Module):
    """An encoder under a linear head, as one module; `forward(batch)` gives the loss."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: TabularEncoder, head: LinearHead) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.layer = representation_layer(encoder)
        self.register_buffer("mean", torch.from_numpy(head.mean).float())
        self.register_buffer("std", torch.from_numpy(head.std).float())
        self.weight = nn.Parameter(torch.from_numpy(head.weight).float())
        self.intercept = nn.Parameter(torch.from_numpy(head.intercept).float())

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scores, y = self.scores(batch["x"], batch["raw"]), batch["y"]
        if y.is_floating_point():
            return {"loss": mse(scores, y[:, None])}
        return {"loss": label_loss(scores, y)}

    def scores(
        self, x: Float[Tensor, "batch columns"], raw: Float[Tensor, "batch raw"]
    ) -> Float[Tensor, "batch outputs"]:
        """Log-odds, or values."""
        z = torch.cat((self.encoder(x, layer=self.layer).flatten(1), raw), 1)
        return ((z - self.mean) / self.std).clamp(-CLIP, CLIP) @ self.weight + self.intercept

    def head(self) -> LinearHead:
        """The head as it is now."""
        parts = (self.mean, self.std, self.weight, self.intercept)
        return LinearHead(*(part.detach().cpu().double().numpy() for part in parts))


def fit_frozen(
    encoder: TabularEncoder, fit: Fit, rows: Labelled, *, device: str = "auto"
) -> LinearHead:
    """A head on the encoder as it is."""
    return fit(features(encoder, rows, device), rows.y)


def tune(
    encoder: TabularEncoder,
    fit: Fit,
    rows: Labelled,
    recipe: PretrainConfig,
    *,
    epochs: int,
    outputs: int,
    seed: int,
    device: str = "auto",
) -> tuple[TabularEncoder, LinearHead]:
    """Train an encoder and its head on labels.

    A fifth of the rows, which training does not see, chooses the epoch and says whether it beats a
    head on the frozen encoder: where it does not, the encoder comes back as it was, under such a
    head fitted on all rows.

    Parameters
    ----------
    fit
        (features, labels) to a head on the frozen encoder.
    recipe
        Gives batch size, learning rate and weight decay.
    epochs
        At most; a fifth of them without improvement ends it.
    outputs
        Classes, or 1.
    """
    inside, outside = held_out(len(rows), seed)
    train, validation = rows.take(inside), rows.take(outside)
    batch = min(recipe.batch_size, len(train))
    an_epoch = max(1, len(train) // batch)
    steps = epochs * an_epoch
    config = FinetuneConfig(
        steps=steps,
        batch=batch,
        learning_rate=recipe.learning_rate,
        final_learning_rate=0.0,
        warmup=steps // 10,
        weight_decay=recipe.weight_decay,
        validate_every=an_epoch,
        patience=max(1, round(_PATIENCE * epochs)) * an_epoch,
        seed=seed,
        device=device,  # type: ignore[arg-type]
    )
    seen = features(encoder, train, device)
    frozen = _score(encoder, fit(seen, train.y), validation, device)
    module = TunedTable(encoder, _blank(seen, outputs))
    with torch.random.fork_rng(devices=[]):
        done = finetune(
            module, train, lambda: _score(module.encoder, module.head(), validation, device), config
        )
    if done.best_score <= frozen:
        return encoder, fit_frozen(encoder, fit, rows, device=device)
    return module.encoder.cpu(), module.head()


def _blank(seen: Float[np.ndarray, "rows dim"], outputs: int) -> LinearHead:
    """A head that says nothing yet. Features are centred and not scaled: on scaled ones, and from
    weights fitted to the frozen encoder, what cancels out keeps the encoder from moving.
    """
    dim = seen.shape[1]
    centre = seen.mean(0, dtype=np.float64)
    return LinearHead(centre, np.ones(dim), np.zeros((dim, outputs)), np.zeros(outputs))


def features(
    encoder: TabularEncoder, rows: Labelled, device: str
) -> Float[np.ndarray, "rows features"]:
    """What a linear head reads: the representation, and raw columns beside it."""
    return np.concatenate((encode(encoder, rows.x, output="flatten", device=device), rows.raw), 1)


def _score(encoder: TabularEncoder, head: LinearHead, rows: Labelled, device: str) -> float:
    """Minus the log loss, or minus the mean squared error; higher is better."""
    scores = head.scores(features(encoder, rows, device))
    if rows.y.dtype == np.int64:
        return -log_loss(scores, rows.y)
    return -float(np.square(scores[:, 0] - rows.y).mean())
