"""The paper's attentive probe on a frozen encoder, from the signals to the test records' scores.

A ViT-XS for signals at 100 Hz with its initial weights, on generated records of 10 s: 2.5 s crops
train the pooling, seven overlapping windows a record validate it. As in the paper, the windows of
a validation are 1.2 times the crops trained on since the last one; there are 15 validations (50 in
the paper, where 2.1 times fewer crops are encoded). The baseline encodes the windows again at every
validation and writes the pooling out: keys and values of every token, one query a record, default
AdamW. Both train on the same crops from the same weights; validation scores and the test logits of
the best step must agree.
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Row, compare, equal_outputs, main
from jepa_core.evaluation.attentive import AttentivePool
from jepa_core.evaluation.metrics import macro_auc
from jepa_core.optim import decay_groups
from jepa_core.training.sampler import Epochs
from jepa_ecg.data.arrays import Dump
from jepa_ecg.data.build import build_corpus
from jepa_ecg.data.corpus import Corpus
from jepa_ecg.data.shard import CorpusConfig
from jepa_ecg.evaluation import CropSource, Task, crop_logits
from jepa_ecg.finetune import crop_size, train_classifier
from jepa_ecg.heart import CODES
from jepa_ecg.model import ECGEncoder
from jepa_ecg.presets import DOWNSTREAM, NANO, XS, DownstreamConfig, ModelConfig
from jepa_ecg.simulate import SimulationConfig, simulate

TRAIN, VALIDATION, TEST, WINDOWS = 200, 44, 25, 7
BATCH, BETWEEN = 64, 4  # crops a step, steps between validations
PLAIN, OURS = "windows encoded at every validation", "jepa_ecg train_classifier"


def run(quick: bool = False) -> list[Row]:
    model = NANO.model if quick else replace(XS, fs=100.0, samples=1000)
    validations = 2 if quick else 15
    settings = replace(
        DOWNSTREAM["attentive"].training,
        steps=BETWEEN * validations,
        batch=BATCH,
        validate_every=BETWEEN,
        device="cpu",
    )
    config = replace(DOWNSTREAM["attentive"], training=settings)
    trained = BATCH * BETWEEN * validations + WINDOWS * TEST
    again, once = (trained + WINDOWS * VALIDATION * n for n in (validations, 1))
    with tempfile.TemporaryDirectory() as folder:
        corpus, task = _task(Path(folder))
        encoder = _encoder(model)

        def ours() -> dict[str, object]:
            with tempfile.TemporaryDirectory() as cache:
                done = train_classifier(encoder, corpus, task, config, cache=Path(cache))
            scores = [validation.score for validation in done.result.history]
            return {"logits": done.test, "scores": scores}

        contenders = {PLAIN: lambda: written_out(encoder, corpus, task, config), OURS: ours}
        return compare(
            f"probe of {settings.steps} steps, {validations} validations",
            contenders,
            PLAIN,
            rounds=5,
            check=equal_outputs(contenders, atol=1e-4),
            target=None if quick else {OURS: 1.8},
            notes={PLAIN: f"{again} crops encoded", OURS: f"{once} crops encoded"},
        )


def _task(folder: Path) -> tuple[Corpus, Task]:
    """Generated records at 100 Hz with their findings."""
    rows = np.arange(TRAIN + VALIDATION + TEST)
    signal, y = simulate(rows, SimulationConfig())
    np.save(folder / "records.npy", signal)
    source = Dump(str(folder / "records.npy"), fs=100, name="generated", layout="NCT")
    build_corpus([source], folder / "corpus", CorpusConfig(fs=100))
    train, validation, test = np.split(rows, (TRAIN, TRAIN + VALIDATION))
    task = Task("findings", CODES, rows, y, rows.astype(str), train, validation, test)
    return Corpus(folder / "corpus"), task


def _encoder(model: ModelConfig) -> ECGEncoder:
    torch.manual_seed(0)
    return ECGEncoder(model).requires_grad_(False).eval()


# --- the protocol, written plainly


class WrittenOut(nn.Module):
    """Cross-attention of one learned query; weights as in `AttentivePool`."""

    def __init__(self, width: int, heads: int, classes: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_token = nn.Parameter(torch.empty(1, 1, width))
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.proj = nn.Linear(width, classes, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, _, width = tokens.shape
        query = self.q(self.query_token.expand(batch, -1, -1))
        keys, values = self.kv(tokens).chunk(2, -1)
        q, k, v = (
            x.reshape(batch, -1, self.heads, width // self.heads).transpose(1, 2)
            for x in (query, keys, values)
        )
        weights = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, width))


class WrittenOutProbe(nn.Module):
    def __init__(self, encoder: ECGEncoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, signal: Tensor) -> Tensor:
        return self.head(self.encoder(signal, keep_registers=True))


def written_out(
    encoder: ECGEncoder, corpus: Corpus, task: Task, config: DownstreamConfig
) -> dict[str, object]:
    """Test logits at the best validated step, and all validation scores."""
    settings = config.training
    size = crop_size(encoder, config.crop_seconds)
    shape = encoder.config.dim, encoder.config.heads, len(task.classes)
    head = WrittenOut(*shape)
    head.load_state_dict(AttentivePool(*shape, seed=settings.seed).state_dict())
    model = WrittenOutProbe(encoder, head)
    optimizer = torch.optim.AdamW(
        decay_groups(head),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        betas=settings.betas,
        eps=settings.eps,
    )
    source = CropSource(corpus, task.rows[task.train], task.y[task.train], size, seed=settings.seed)
    order = Epochs(len(source), settings.batch, settings.seed, drop_last=True)
    scores: list[float] = []
    best = -np.inf
    for step in range(settings.steps):
        batch = source.batch(order.draw(step))
        loss = F.binary_cross_entropy_with_logits(model(batch["signal"]), batch["y"].float())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), settings.clip_norm or np.inf)
        optimizer.step()
        if (step + 1) % settings.validate_every == 0:
            logits = crop_logits(model, corpus, task.rows[task.validation], size)
            scores.append(macro_auc(task.y[task.validation], logits).macro)
            if scores[-1] > best:
                best, state = scores[-1], copy.deepcopy(head.state_dict())
    head.load_state_dict(state)
    return {"logits": crop_logits(model, corpus, task.rows[task.test], size), "scores": scores}


if __name__ == "__main__":
    main(run)
