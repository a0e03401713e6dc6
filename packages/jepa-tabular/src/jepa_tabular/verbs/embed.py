"""`jepa tabular embed` and `predict`: rows in, embeddings or predictions out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import torch
import tyro
from jaxtyping import Float32, Int64

from jepa_core import rng
from jepa_core.config import Range, check
from jepa_core.domain import Machine
from jepa_core.errors import ConfigError, DataError
from jepa_core.training.device import autocast_to_bfloat16, find_device
from jepa_tabular.estimators import TJEPAClassifier, TJEPARegressor
from jepa_tabular.inference import (
    BLOCK,
    Output,
    PretrainedTable,
    load,
    pooled,
    representation_layer,
)
from jepa_tabular.presets import NANO
from jepa_tabular.verbs.stream import Input, Part, write_results


@dataclass(frozen=True)
class Embed:
    """Turn rows into embeddings, streamed: a table need not fit in memory.

    Writes columns id, quality (share of the columns that are neither missing nor of an unknown
    category) and embedding to .parquet; to .npy the embeddings alone, which numpy can memory-map.
    A row's embedding does not depend on the others.
    """

    model: tyro.conf.Positional[str]
    """A run folder, an encoder folder, or a hub id."""
    io: Input
    """Rows and output: .parquet or .npy."""
    output: Output = "flatten"
    """All tokens side by side, all tokens after every block, the [REG] tokens, or the mean of all
    tokens."""
    views: Annotated[int, Range(ge=0)] = 0
    """Also embed each row this many times from random contexts, as view_0, view_1, ...; under
    flatten and blocks the tokens that are not in a context are zeros."""
    machine: Machine = Machine()
    """Seed (of the views), device, precision, threads."""

    def __post_init__(self) -> None:
        check(self)
        if self.io.out.suffix == ".csv":
            raise ConfigError(f"out is {self.io.out}", remedy="allowed: a .parquet or .npy file")
        if self.views and self.io.out.suffix == ".npy":
            raise ConfigError(f"views is {self.views}", remedy="allowed with .npy: 0")

    def __call__(self) -> None:
        model = prepared(load(self.model, device=self.machine.device), self.machine)

        def score(part: Part) -> pa.Table:
            columns = {"embedding": model.encode(part.x, output=self.output)}
            keys = np.arange(part.first, part.first + len(part.x))
            for view in range(self.views):
                columns[f"view_{view}"] = embed_views(
                    model, part.x, keys, view, output=self.output, seed=self.machine.seed
                )
            return pa.table({name: vectors(values) for name, values in columns.items()})

        write_results(self.io, model.preprocessor, score)


@dataclass(frozen=True)
class Predict:
    """Predict rows with a fine-tuned model, streamed: a table need not fit in memory.

    Writes columns id, quality (share of the columns that are neither missing nor of an unknown
    category) and prediction, for classes also p_CLASS for each, to .parquet or .csv.
    """

    model: tyro.conf.Positional[str]
    """A run folder of `jepa tabular finetune`, or a folder of an estimator's save_pretrained."""
    io: Input
    """Rows and output: .parquet or .csv."""
    machine: Machine = Machine()
    """Device, threads."""

    def __post_init__(self) -> None:
        check(self)
        if self.io.out.suffix == ".npy":
            raise ConfigError(f"out is {self.io.out}", remedy="allowed: a .parquet or .csv file")
        if self.machine.precision != "float32":
            raise ConfigError("precision is bfloat16", remedy="allowed: float32")

    def __call__(self) -> None:
        model = load_predictor(self.model, self.machine)

        def score(part: Part) -> pa.Table:
            if part.frame is None:
                raise DataError(
                    "is a corpus, whose rows are encoded already",
                    where=self.io.input,
                    remedy="give the table it was built from",
                )
            if isinstance(model, TJEPARegressor):
                return pa.table({"prediction": model.predict(part.frame)})
            shares = model.predict_proba(part.frame)
            called = model.classes_[shares.argmax(1)]
            columns: dict[str, Any] = {"prediction": pa.array(called.tolist())}
            for name, share in zip(model.classes_.tolist(), shares.T, strict=True):
                columns[f"p_{name}"] = pa.array(share.astype(np.float32))
            return pa.table(columns)

        write_results(self.io, model.transformer_.preprocessor_, score)


def prepared(model: PretrainedTable, machine: Machine) -> PretrainedTable:
    """The model in the precision and with the threads asked for."""
    if machine.threads:
        torch.set_num_threads(machine.threads)
    device = find_device(machine.device)
    model.low_precision, why_not = autocast_to_bfloat16(machine.precision, device)
    if why_not:
        print(why_not, file=sys.stderr)
    model.encoder.to(device)
    return model


def load_predictor(path: str, machine: Machine) -> TJEPAClassifier | TJEPARegressor:
    """A classifier or regressor, whichever lies there.

    Raises
    ------
    DataError
        Neither does.
    """
    if machine.threads:
        torch.set_num_threads(machine.threads)
    kinds = {kind.__name__: kind for kind in (TJEPAClassifier, TJEPARegressor)}
    saved = load(path).config.get("estimator", {}).get("class")
    if saved not in kinds:
        raise DataError(
            "holds an encoder and nothing that predicts",
            where=path,
            remedy="train it with jepa tabular finetune",
        )
    return kinds[saved].from_pretrained(path, device=machine.device)


@torch.inference_mode()
def embed_views(
    model: PretrainedTable,
    x: Float32[np.ndarray, "rows columns"],
    keys: Int64[np.ndarray, " rows"],
    view: int,
    *,
    output: Output,
    seed: int,
) -> Float32[np.ndarray, "rows features"]:
    """Embeddings of each row from a random context, a function of (seed, key, view) alone.

    A context has the mean size of those in training.
    """
    encoder = model.encoder
    registers = encoder.config.registers
    size = _context_size(model)
    words = rng.words(seed, "view", keys, view, encoder.shape.columns)
    columns = rng.subset(words, size) + registers
    kept = np.broadcast_to(np.arange(registers), (len(x), registers))
    context = np.concatenate((kept, columns), 1)
    device = find_device(model.device)
    encoder.to(device)
    block = BLOCK[device]
    # As in `encode`, blocks have one size, so that a row's result is its own.
    rows = np.zeros((block, x.shape[1]), np.float32)
    places = np.zeros((block, context.shape[1]), np.int64)
    found = []
    for first in range(0, len(x), block):
        count = min(block, len(x) - first)
        rows[:count], rows[count:] = x[first : first + count], 0
        places[:count] = context[first : first + count]
        with torch.autocast(device, torch.bfloat16, enabled=model.low_precision):
            tokens = encoder(
                torch.from_numpy(rows).to(device),
                torch.from_numpy(places).to(device),
                layer=representation_layer(encoder, output),
            )
        seen = tokens[:count].float().cpu().numpy()
        if output in ("flatten", "blocks"):
            whole = np.zeros((count, encoder.tokens, seen.shape[2]), np.float32)
            np.put_along_axis(whole, places[:count, :, None], seen, 1)
            seen = whole
        found.append(pooled(encoder, seen, output))
    return np.concatenate(found)


def vectors(values: Float32[np.ndarray, "rows dim"]) -> pa.Array:
    """Rows as a column of fixed-size lists."""
    flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _context_size(model: PretrainedTable) -> int:
    low, high = model.config.get("recipe", {}).get("context", NANO.context)
    columns = model.encoder.shape.columns
    return min(columns, max(1, round(columns * (low + high) / 2)))
