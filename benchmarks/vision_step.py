"""One whole pre-training step of I-JEPA and DMT-JEPA: forward, backward, AdamW and the average.

ViT-S/16 at 224 pixels, and a model of 64 pixels for a demonstration; float32, on batches in memory
with the official masks, and with the sound ones, whose contexts have unequal lengths. The baseline
is plain PyTorch from the papers: every patch embedded and then gathered, torch's fused attention,
the context repeated for every target block, every row through every block, unequal contexts padded
and masked, DMT-JEPA's head as published, default AdamW, one tensor at a time in the average. The
peer is lightly with timm's modules and its documented loop, where both can be imported:

    uv run --with lightly --with timm python benchmarks/run.py vision_step

The check compares loss, every gradient and the weights after a step in float64 at a reduced size,
at four sizes of masks, then loss and gradients in float32. Timed steps go through four sizes of
masks. Share of peak: the operations a contender does (backward counted as two forwards) over
products of the step's own shapes by the fastest of torch's libraries. Where MKL leaves vector units
of the CPU unused ours go to oneDNN; rows apart are by MKL alone, over the peak of MKL. Memory: a
first step with its gradients and optimiser state, beyond the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks import vision_peer
from benchmarks.ecg_step import Products
from benchmarks.harness import Contender, Gemm, Row, compare, equal_outputs, main
from benchmarks.memory import peak_memory
from benchmarks.vision_twin import Masked, Twin, batches, perturb
from jepa_core.layers import block
from jepa_core.layers import linear as maps
from jepa_core.optim import adamw
from jepa_core.training.device import bfloat16_is_native
from jepa_vision.presets import DMTConfig, MaskConfig, ModelConfig, PretrainConfig
from jepa_vision.pretrain import groups, untrained

Shape = tuple[int, int, int]
MOMENTUM = 0.996
TWIN, OURS, JOINT = "plain PyTorch", "jepa_vision", "jepa_vision, joint predictor"
MKL, LOW, PEER = "jepa_vision, products by MKL", "jepa_vision, bfloat16", "lightly"
SMALL = "ViT-S/16"
MODELS = {
    SMALL: ModelConfig(),
    "64 pixels": ModelConfig(
        image=(64, 64), patch=8, dim=64, depth=4, heads=4, predictor_dim=32, predictor_depth=2
    ),
}


class Case(NamedTuple):
    """What is trained, and how many steps a call makes."""

    model: str
    method: str
    masks: str
    batch: int
    steps: int

    def config(self) -> PretrainConfig:
        return recipe(MODELS[self.model], self.method, self.masks)


# Least ratios to the twin.
CASES = {
    Case(model, method, masks, batch, steps): target
    for model, batch, steps, target in (
        (SMALL, 8, 1, 1.10),
        ("64 pixels", 8, 4, 1.20),
        ("64 pixels", 48, 4, 1.15),
    )
    for method, masks in (("i-jepa", "official"), ("dmt-jepa", "official"), ("i-jepa", "sound"))
}
PEER_TARGET = 1.08


def recipe(model: ModelConfig, method: str, masks: str) -> PretrainConfig:
    """DMT-JEPA as published, except that an image asks with its own mean token."""
    return PretrainConfig(
        method=method,  # type: ignore[arg-type]
        model=model,
        masks=MaskConfig(
            compat="official" if masks == "official" else "none",
            min_keep=10 if min(model.grid) >= 14 else min(4, model.grid[0] // 2),
        ),
        dmt=DMTConfig(
            border="wrap", include_self=False, query="mean", warmup=0.0, variance_floor=0.0
        ),
    )


def run(quick: bool = False) -> list[Row]:
    if quick:
        return [
            row
            for method in ("i-jepa", "dmt-jepa")
            for row in _rows(Case("64 pixels", method, "sound", 2, 1), None)
        ]
    return [row for case, target in CASES.items() for row in _rows(case, target)]


def _rows(case: Case, target: float | None) -> list[Row]:
    onednn = maps.onednn_is_faster()
    full = case.method == "i-jepa" and case.masks == "official"
    names = [TWIN, OURS] + [JOINT] * full
    names += [LOW] * (full and case.model == SMALL and bfloat16_is_native("cpu"))
    rows = _compared(case, "", names, target)
    if onednn and case.model == SMALL:
        rows += _compared(case, ", products by MKL", [TWIN, MKL], target)
    if full and vision_peer.INSTALLED:
        rows += _compared(case, ", against a peer", [PEER, OURS] + [MKL] * onednn, PEER_TARGET)
    return rows


def _compared(case: Case, words: str, names: list[str], target: float | None) -> list[Row]:
    """`names` against the first of them."""
    first, *others = names
    made = batches(case.config(), case.batch)
    done = {name: _flops(case.config(), made, name) / len(made) for name in names if name != LOW}
    notes = {name: f"{done[name] / done[first]:.3f} of the operations" for name in done}
    notes |= {first: "", LOW: "different arithmetic: products in bfloat16"}
    if JOINT in names:
        notes[JOINT] = f"different work, another objective: {notes[JOINT]}"
    by_mkl = OURS not in names
    if case.model == SMALL and (by_mkl or not maps.onednn_is_faster()):
        notes[others[0]] += "; 0.87 of peak wanted"
    shapes = _shapes(case.config(), made)
    return compare(
        f"{case.method}, {case.model}, batch of {case.batch}, {case.masks} masks, "
        f"{done[first] / 1e9:.3g} GFLOP{words}",
        {name: prepare(name, *case) for name in names},
        first,
        check=lambda: _check(case, names),
        flops={name: work * case.steps for name, work in done.items()},
        peak=Gemm(shapes) if by_mkl else Products(shapes),
        target=None if target is None else {MKL if by_mkl else OURS: target},
        memory={name: peak_memory(prepare, name, *case) for name in names}
        if case.model == SMALL
        else None,
        notes={name: notes[name] for name in names},
    )


# --- the contenders


def prepare(name: str, model: str, method: str, masks: str, batch: int, steps: int) -> Contender:
    """Steps of a contender on batches of noise with masks of several sizes, one after the other."""
    config = recipe(MODELS[model], method, masks)
    made = batches(config, batch)
    train = _step(name, config)
    number = count()

    def call() -> list[Tensor]:
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=name == LOW),
            patch.object(maps, "SMALL", math.inf if name == MKL else maps.SMALL),
        ):
            return [train(made[next(number) % len(made)]) for _ in range(steps)]

    return call


@dataclass
class Trained:
    """A module and one step of it."""

    module: nn.Module
    loss: Callable[[dict[str, Tensor]], Tensor]
    optimizer: torch.optim.Optimizer
    average: Callable[[], None]

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        # Autocast must not reach into the backward.
        with torch.autocast("cpu", enabled=False):
            loss.backward()
            self.optimizer.step()
            self.average()
        return loss.detach()


def _step(name: str, config: PretrainConfig) -> Trained:
    config = replace(config, joint=name == JOINT)
    ours = untrained(config, seed=0)
    perturb(ours)
    rate: dict[str, Any] = {"lr": 1e-4, "betas": config.betas, "eps": config.eps}
    if name not in (TWIN, PEER):
        optimizer = adamw(groups(ours), learning_rate=1e-4, betas=config.betas, eps=config.eps)
        return Trained(
            ours,
            lambda batch: ours(batch)["loss"],
            optimizer,
            lambda: ours.ema.update(MOMENTUM),
        )
    twin = Twin(config)
    twin.load_state_dict(ours.state_dict())
    module = vision_peer.LightlyJEPA(twin) if name == PEER else twin
    return Trained(
        module,
        lambda batch: module(Masked.of(batch)),
        torch.optim.AdamW(groups(module), **rate),
        lambda: module.average(MOMENTUM),
    )


def _check(case: Case, names: list[str]) -> None:
    """Loss and gradients of steps at a reduced size; in float64 also the weights behind them."""
    same = [name for name in names if name not in (JOINT, LOW)]
    small = ModelConfig(
        image=(48, 48), patch=8, dim=32, depth=3, heads=4, predictor_dim=24, predictor_depth=3
    )
    config = recipe(small, case.method, case.masks)

    def outcome(name: str, dtype: torch.dtype) -> Contender:
        def call() -> list[dict[str, Tensor]]:
            before = torch.get_default_dtype()
            torch.set_default_dtype(dtype)
            try:
                return [
                    _outcome(_step(name, config), {**batch, "image": batch["image"].to(dtype)})
                    for batch in batches(config, 4)
                ]
            finally:
                torch.set_default_dtype(before)

        return call

    double = {name: outcome(name, torch.float64) for name in same}
    with patch.object(block, "PACKING", 0):  # as at full size
        equal_outputs(double, atol=1e-11)()
    # oneDNN's products are there in float32 only.
    single = {name: outcome(name, torch.float32) for name in same}
    with patch.object(maps, "SMALL", 1):
        equal_outputs(single, atol=1e-5)()


def _outcome(step: Trained, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    loss = step(batch)
    found = {"loss": loss}
    for name, parameter in step.module.named_parameters():
        place = vision_peer.as_twin(name)
        if parameter.grad is not None:
            found[f"gradient {place}"] = parameter.grad
        if loss.dtype == torch.float64 and not place.endswith(("pos_embed", "encoder.mask_token")):
            found[f"weight {place}"] = parameter
    return found


# --- what is counted


def _flops(config: PretrainConfig, made: list[dict[str, Tensor]], name: str) -> float:
    """Floating-point operations of a step at each size of masks.

    Ours computes what somebody reads, and no padding.
    """
    exact = name not in (TWIN, PEER)
    model = config.model
    patches, width, narrow = math.prod(model.grid), model.dim, model.predictor_dim
    embed = model.channels * model.patch**2 * width
    dmt = config.method == "dmt-jepa"
    macs = 0.0
    for batch in made:
        _, images, longest = batch["context"].shape
        targets, _, m = batch["target"].shape
        passes, asked = (1, targets * m) if name == JOINT else (targets, m)
        kept, known = [longest] * images, [longest] * images
        if exact and "context_lengths" in batch:
            (lengths,) = batch["context_lengths"]
            kept = computed(lengths, longest, width)
            known = computed(lengths.repeat(passes), longest, narrow)[:images]
        union = batch["union"].shape[1]
        last = union if exact and not dmt else patches
        macs += images * (
            patches * embed
            + (model.depth - 1) * block_macs(patches, patches, width)
            + block_macs(patches, last, width)
        )
        if dmt:
            macs += images * target_head_macs(config, union if exact else patches, exact=exact)
        online = 0.0
        for k, in_predictor in zip(kept, known, strict=True):
            online += (k if exact else patches) * embed + model.depth * block_macs(k, k, width)
            if dmt:
                online += 2 * ((10 * k + 4) * width**2 + 2 * (k + 1) * width)
            every = in_predictor + asked
            blocks = (model.predictor_depth - 1) * block_macs(every, every, narrow)
            blocks += block_macs(every, asked if exact else every, narrow)
            online += k * width * narrow + passes * (blocks + asked * narrow * width)
        macs += 3 * online
    return 2 * macs


def computed(lengths: Tensor, longest: int, width: int) -> list[int]:
    """Rows that ours computes of samples of these lengths, which may be padded to the longest."""
    packs = block.pays_to_pack(torch.empty(len(lengths), longest, width), lengths)
    return lengths.tolist() if packs else [longest] * len(lengths)


def block_macs(n: int, rows: int, width: int) -> int:
    """Products of a block over n tokens, `rows` of them with an output."""
    return (2 * n + 10 * rows) * width**2 + 2 * n * rows * width


def target_head_macs(config: PretrainConfig, rows: int, *, exact: bool) -> int:
    """Products for the targets of `rows` patches of an image, and for the choice of neighbours."""
    patches, width, k = math.prod(config.model.grid), config.model.dim, config.dmt.neighbours
    attended = 2 * 2 * rows * (k + 1) * width
    if not exact:
        return 2 * (2 * k + 12) * rows * width**2 + attended + 8 * rows * width
    maps_ = (2 * 2 * patches + 3 + 3 * rows + 2 * 9 * rows) * width**2
    return maps_ + attended + rows * patches * width


def _shapes(config: PretrainConfig, made: list[dict[str, Tensor]]) -> tuple[Shape, ...]:
    """The maps of the target encoder and the predictor, forward and the weights' gradient."""
    model = config.model
    rows = made[0]["image"].shape[0] * math.prod(model.grid)
    tokens = sum(batch["context"][0].numel() + batch["target"][0].numel() for batch in made)
    shapes: list[Shape] = []
    for n, w in ((rows, model.dim), (4 * tokens // len(made), model.predictor_dim)):
        for inner, outer in ((w, 3 * w), (w, 4 * w), (4 * w, w)):
            shapes += [(n, inner, outer), (inner, n, outer)]
    return tuple(shapes)


if __name__ == "__main__":
    main(run, packages=("lightly", "timm"))
