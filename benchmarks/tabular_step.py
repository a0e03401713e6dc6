"""Pre-training steps of T-JEPA: batches, masks, forward, backward, AdamW and the average.

Rows with the shapes of jannis (54 numerical columns) and adult (6 numerical, 8 categorical) in
memory, float32, four target masks a row. The official recipe repeats the program's equal masks, of
which ours computes one; sound masks are four different ones. The baseline is a straightforward
port: rows stacked and masks shuffled one by one, codes by a one-hot encoding a batch, torch's own
transformer layers, context and targets of every mask through all of the predictor, default AdamW,
one tensor at a time in the average, the loss read every step; a second form of it takes our
batches. The check compares loss, every gradient and the weights after a step in float64 at a
reduced size, on the same masks and without dropout. A call is a step at each of four sizes of
masks, spread over those that the recipe draws. Share of peak: the operations a contender does
(backward counted as two forwards) over products of the step's own shapes. Memory: a first call with
gradients and optimiser state, beyond the weights; ours with oneDNN's code for every shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.harness import Contender, Gemm, Row, compare, equal_outputs, main
from benchmarks.memory import peak_memory
from benchmarks.tabular_batches import TABLES, RowByRow, noise, sizes
from benchmarks.tabular_twin import Masked, Twin, as_twin
from jepa_core.optim import adamw
from jepa_core.training.sampler import Epochs
from jepa_tabular.presets import PRETRAIN, ModelConfig, PretrainConfig, TableShape
from jepa_tabular.pretrain import decay_groups, untrained
from jepa_tabular.source import TableSource

STEPS, DRAWN = 4, 64  # in one call, out of so many
MOMENTUM = 0.996
TWIN, FED, OURS = "plain PyTorch", "the same, our batches", "jepa_tabular"
# Recipe, table, rows of a batch, least ratio.
CASES = (
    ("official-jannis", "jannis", 64, 3.0),
    ("official-adult", "adult", 64, 3.0),
    ("small", "jannis", 256, 1.5),
    ("small", "adult", 256, 1.5),
)


def run(quick: bool = False) -> list[Row]:
    rows = []
    for preset, table, batch, target in CASES[-1:] if quick else CASES:
        rows += _rows(preset, table, 8 if quick else batch, None if quick else target)
    return rows


def _rows(preset: str, table: str, batch: int, target: float | None) -> list[Row]:
    config, shape = PRETRAIN[preset], TABLES[table]
    counted = _sizes(config, shape)
    done = {
        name: _flops(config, shape, counted, batch, exact=name == OURS)
        for name in (TWIN, FED, OURS)
    }
    if config.compat == "official":
        done[FED] = _flops(config, shape, counted, batch, exact=False, masks=1)
    rows = compare(
        f"{preset} on {table}, {STEPS} batches of {batch}, {done[TWIN] / 1e9:.2f} GFLOP",
        {name: prepare(name, preset, table, batch) for name in done},
        TWIN,
        check=lambda: _check(config, table),
        flops=done,
        peak=_products(config.model, batch * (shape.columns + config.model.registers)),
        target=None if target is None else {OURS: target},
        memory=None
        if target is None
        else {name: peak_memory(prepare, name, preset, table, batch) for name in done},
        notes={name: f"{done[name] / done[TWIN]:.3f} of the operations" for name in (FED, OURS)},
    )
    speed = [f"{STEPS * batch / row.seconds:.0f} rows/s" for row in rows]
    return [
        replace(row, note="; ".join(filter(None, (words, row.note))))
        for row, words in zip(rows, speed, strict=True)
    ]


# --- the contenders


def prepare(name: str, preset: str, table: str, batch: int) -> Contender:
    """Steps of a contender on rows of noise."""
    config, shape = PRETRAIN[preset], TABLES[table]
    x = noise(shape, STEPS * batch)
    source, epochs = TableSource(x, config, shape, seed=0), Epochs(len(x), batch, seed=0)
    one_by_one = RowByRow(x, config, shape)
    counted = _sizes(config, shape)
    train = _step(name, config, shape)

    def fetch(number: int) -> Masked:
        step, n_context, n_target = counted[number]
        draw = replace(epochs.draw(number), step=step)
        if name == TWIN:
            return Masked(*one_by_one(draw.ids.tolist(), n_context, n_target))
        return Masked(**source.batch(draw))

    return lambda: [train(fetch(number)) for number in range(STEPS)]


@dataclass
class Trained:
    """A module and one step of it."""

    module: nn.Module
    loss: Callable[[Masked], Tensor]
    optimizer: torch.optim.Optimizer
    clipped: tuple[nn.Module, ...]
    average: Callable[[], None]
    read: bool

    def __call__(self, batch: Masked) -> Tensor | float:
        loss = self.loss(batch)
        loss.backward()
        for part in self.clipped:
            nn.utils.clip_grad_norm_(part.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average()
        return loss.item() if self.read else loss.detach()


def _step(name: str, config: PretrainConfig, shape: TableShape) -> Trained:
    ours = untrained(config, shape, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in ours.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter), alpha=0.02)
    sound = config.compat != "official"
    if name == OURS:
        return Trained(
            ours.train(),
            lambda batch: ours.loss(batch.x, batch.context, batch.target),
            adamw(decay_groups(ours)),
            (ours.encoder, ours.predictor) if sound else (),
            lambda: ours.ema.update(MOMENTUM),
            read=False,
        )
    twin = Twin(config, shape).to(next(ours.parameters()).dtype)
    twin.load_state_dict(as_twin(ours.state_dict(), shape))
    return Trained(
        twin.train(),
        twin,
        torch.optim.AdamW(decay_groups(twin)),
        (twin.encoder, twin.predictor) if sound else (),
        lambda: twin.average(MOMENTUM),
        read=True,
    )


def _check(config: PretrainConfig, table: str) -> None:
    """Loss, gradients and weights after one step at a reduced size, in float64."""
    model = replace(config.model, dim=16, depth=2, hidden=24, dropout=0.0)
    model = replace(model, predictor_dim=8, predictor_depth=2, predictor_hidden=20)
    model = replace(model, predictor_dropout=0.0)
    small, shape = replace(config, model=model), TABLES[table]

    def outcome(name: str) -> Contender:
        def call() -> dict[str, Tensor]:
            before = torch.get_default_dtype()
            torch.set_default_dtype(torch.float64)
            try:
                step = _step(name, small, shape)
                source = TableSource(noise(shape, 6), small, shape, seed=0)
                batch = Masked(**source.batch(Epochs(6, 6, seed=0).draw(0)))
                repeat = config.targets if name == TWIN and config.compat == "official" else 1
                target = batch.target.repeat(repeat, 1, 1)
                gradients: dict[str, Tensor] = {}
                for at, parameter in step.module.named_parameters():
                    if parameter.requires_grad:
                        parameter.register_post_accumulate_grad_hook(
                            lambda p, at=at: gradients.update({at: p.grad.clone()})
                        )
                loss = step(Masked(batch.x.double(), batch.context, target))
            finally:
                torch.set_default_dtype(before)
            found = {f"gradient {at}": gradient for at, gradient in gradients.items()}
            found |= {f"weight {at}": weight for at, weight in step.module.named_parameters()}
            if name == OURS:
                found = as_twin(found, shape)
            return {"loss": torch.as_tensor(loss, dtype=torch.float64), **found}

        return call

    equal_outputs({name: outcome(name) for name in (TWIN, FED, OURS)}, atol=1e-11)()


# --- what is counted


def _sizes(config: PretrainConfig, shape: TableShape) -> list[tuple[int, int, int]]:
    """Steps, and the columns in their contexts and targets: at the octiles of a step's tokens."""
    source = TableSource(noise(shape, 1), config, shape, seed=0)
    drawn = [(step, *sizes(source, step)) for step in range(DRAWN)]
    drawn.sort(key=lambda step: step[1] + step[2])
    return drawn[DRAWN // STEPS // 2 :: DRAWN // STEPS]


def _flops(
    config: PretrainConfig,
    shape: TableShape,
    counted: list[tuple[int, int, int]],
    batch: int,
    *,
    exact: bool,
    masks: int = 0,
) -> float:
    """Floating-point operations of a call.

    With `exact`, of what is left when nothing is computed that nobody reads.
    """
    model = config.model
    official = config.compat == "official"
    masks = masks or (1 if exact and official else config.targets)
    tokens = shape.columns + model.registers
    macs = 0.0
    for _, n_context, n_target in counted:
        kept = n_context + (0 if official else model.registers)
        every = kept + n_target
        last = n_target if exact else every
        width = model.predictor_dim
        hidden = model.predictor_hidden
        predictor = (model.predictor_depth - 1) * _block(every, every, width, hidden)
        predictor += _block(every, last, width, hidden)
        predictor += last * width * width * official + n_target * width * model.dim
        context = _encoder(kept, model) + kept * model.dim * width
        macs += batch * (_encoder(tokens, model) + 3 * (context + masks * predictor))
    return 2 * macs


def _encoder(n: int, model: ModelConfig) -> int:
    return model.depth * _block(n, n, model.dim, model.hidden) + n * model.dim**2


def _block(n: int, rows: int, width: int, hidden: int) -> int:
    """Products of a block over n tokens, `rows` of them with an output."""
    return 2 * (n + rows) * width**2 + 2 * rows * width * hidden + 2 * n * rows * width


def _products(model: ModelConfig, rows: int) -> Gemm:
    """The maps of the target encoder and the predictor, forward and the weights' gradient."""
    shapes = []
    for width, hidden in ((model.dim, model.hidden), (model.predictor_dim, model.predictor_hidden)):
        for inner, outer in ((width, 3 * width), (width, hidden), (hidden, width)):
            shapes += [(rows, inner, outer), (inner, rows, outer)]
    return Gemm(tuple(shapes))


if __name__ == "__main__":
    main(run, packages=("scikit-learn",))
