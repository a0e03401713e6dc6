"""Pre-trained encoders on new rows: frames or arrays in, representations out."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float32, Float64, Shaped
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import _num_samples
from torch import Tensor

from jepa_core import hub
from jepa_core.config import from_dict, to_dict
from jepa_core.errors import ConfigError, DataError
from jepa_core.progress import Progress
from jepa_core.run import refuse_unfinished
from jepa_core.training.device import find_device
from jepa_tabular.model import TabularEncoder
from jepa_tabular.preprocess import TablePreprocessor
from jepa_tabular.presets import ModelConfig, TableShape

PACKAGE = "jepa-tabular"
FORMAT = 1

Output = Literal["flatten", "blocks", "reg", "mean"]

# Rows computed at once. Fixed, since the rounding of a matrix product depends on its size: the
# last rows of a table are padded, and a row's result is the same in every company.
BLOCK = {"cpu": 256, "mps": 4096, "cuda": 16384}

# Rows preprocessed at once: whole blocks.
_PART = 1 << 14


class Rows(Protocol):
    """Encoded rows that can be sliced: an array, or one in a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice) -> Float32[np.ndarray, "block columns"]: ...


class PretrainedTable:
    """An encoder with the preprocessing it was trained under; call it with rows.

    Parameters
    ----------
    encoder
        The encoder; stays where it is.
    preprocessor
        Fitted; frames and arrays like those it was fitted on become encoded rows.
    config
        The contents of the folder's config.json.
    head
        Arrays of an estimator's head, empty for an encoder alone.
    device
        Where to compute: "auto", "cpu", "cuda" or "mps".

    Attributes
    ----------
    low_precision
        Compute under autocast to bfloat16; False at first.
    """

    low_precision: bool = False

    def __init__(
        self,
        encoder: TabularEncoder,
        preprocessor: TablePreprocessor,
        *,
        config: Mapping[str, Any] | None = None,
        head: Mapping[str, np.ndarray] | None = None,
        device: str = "auto",
    ) -> None:
        self.encoder, self.preprocessor = encoder.eval(), preprocessor
        self.config, self.head = dict(config or {}), dict(head or {})
        self.device = device

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tokens."""
        return token_names(self.encoder, self.preprocessor.names_)

    def __call__(
        self, X: Any, *, output: Output | Literal["tokens"] = "tokens", progress: str = ""
    ) -> Float32[np.ndarray, "rows *features"]:
        """Representations of rows, in bounded memory beside the result.

        Parameters
        ----------
        X
            Frame or array like the one the preprocessor was fitted on.
        output
            As in `encode`: by default [rows, tokens, dim], tokens in the order of `names`.
        progress
            Words before a progress bar; none without.

        Raises
        ------
        DataError
            Columns or values that the preprocessing refuses.
        """
        rows = _num_samples(X)
        out: np.ndarray | None = None
        with Progress(progress, rows, quiet=not progress) as bar:
            for first, part in parts(X):
                z = self.encode(self.encoded(part, again=first > 0), output=output)
                if len(z) == rows:
                    return z
                if out is None:
                    out = np.empty((rows, *z.shape[1:]), np.float32)
                out[first : first + len(z)] = z
                bar.update(first + len(z))
        assert out is not None
        return out

    def encoded(self, X: Any, *, again: bool = False) -> Float32[np.ndarray, "rows columns"]:
        """Encoded rows, each of the rows given.

        Parameters
        ----------
        again
            Another part of a table: what there is to warn of has been said.

        Raises
        ------
        DataError
            The preprocessing refuses columns or values, or would leave rows out.
        """
        with _heard(again):
            x = self.preprocessor.transform(X)
        if missing := _num_samples(X) - len(x):
            raise DataError(
                f"{missing} of {_num_samples(X)} rows hold missing numbers (NaN)",
                remedy="missing='drop' leaves rows out of training alone; train with 'indicator', "
                "'mean' or 'median'",
            )
        return x

    def raw(self, X: Any) -> Float64[np.ndarray, "rows features"]:
        """The columns themselves as features, of rows that `encoded` has seen."""
        with _heard(True):
            return self.preprocessor.raw_features(X)

    def encode(
        self,
        x: Rows,
        *,
        output: Output | Literal["tokens"] = "tokens",
        progress: str = "",
        out: Float32[np.ndarray, "rows *features"] | None = None,
    ) -> Float32[np.ndarray, "rows *features"]:
        """Representations of encoded rows; see the function `encode`."""
        return encode(
            self.encoder,
            x,
            output=output,
            device=self.device,
            low_precision=self.low_precision,
            progress=progress,
            out=out,
        )


@contextlib.contextmanager
def _heard(again: bool) -> Iterator[None]:
    """No warnings of the preprocessing the second time."""
    with warnings.catch_warnings():
        if again:
            warnings.simplefilter("ignore", UserWarning)
        yield


def parts(X: Any) -> Iterator[tuple[int, Any]]:
    """A table cut into parts of rows, each with the number of its first row."""
    rows = _num_samples(X)
    if rows <= _PART:
        yield 0, X
        return
    for first in range(0, rows, _PART):
        yield first, _safe_indexing(X, slice(first, first + _PART))


def token_names(encoder: TabularEncoder, columns: tuple[str, ...]) -> tuple[str, ...]:
    """Names of an encoder's tokens, given those of the table's columns."""
    registers = tuple(f"[REG]{number}" for number in range(encoder.config.registers))
    return registers + tuple(columns[column] for column in encoder.shape.order)


def representation_layer(
    encoder: TabularEncoder, output: Output | Literal["tokens"] = "tokens"
) -> Literal["block", "blocks", "head"]:
    """Where features are taken: after the last block or all of them, officially after the head.

    The head ends in a normalisation that is there for the loss; probes read more before it.
    """
    if output == "blocks":
        return "blocks"
    return "head" if encoder.config.official else "block"


def encode(
    encoder: TabularEncoder,
    x: Rows,
    *,
    output: Output | Literal["tokens"] = "tokens",
    batch: int = 0,
    device: str = "auto",
    layer: str = "",
    low_precision: bool = False,
    progress: str = "",
    out: Float32[np.ndarray, "rows *features"] | None = None,
) -> Float32[np.ndarray, "rows *features"]:
    """Representations of encoded rows, a block at a time: memory holds the result and one block.

    Parameters
    ----------
    x
        float32 [rows, columns], columns as in the table; may lie in a file.
    output
        "tokens" [rows, tokens, dim], "flatten" [rows, tokens * dim], "blocks" [rows, tokens * depth
        * dim] the tokens after every block, "reg" the [REG] tokens side by side, "mean" the mean of
        all tokens.
    batch
        Rows in a block; 0 takes the device's. A row's result depends on it by rounding alone, and
        on the other rows not at all.
    layer
        "block" or "head"; by default that of `representation_layer`. Not with "blocks".
    progress
        Words before a progress bar; none without.
    out
        Where to write, a memory-mapped array for instance.

    Raises
    ------
    ConfigError
        "reg" of an encoder without [REG] tokens, or a device that is not there.
    """
    rows = x.shape[0]
    layer = layer or representation_layer(encoder, output)
    if out is None:
        out = np.empty((rows, *output_shape(encoder, output)), np.float32)
    with Progress(progress, rows, quiet=not progress) as bar:
        for first, block in _blocks(
            encoder, x, batch=batch, device=device, layer=layer, low_precision=low_precision
        ):
            last = first + len(block)
            out[first:last] = pooled(encoder, block, output)
            bar.update(last)
    return out


def output_shape(encoder: TabularEncoder, output: Output | Literal["tokens"]) -> tuple[int, ...]:
    """Shape of one row's representation."""
    dim = encoder.config.dim
    if output == "tokens":
        return encoder.tokens, dim
    if output == "reg" and not encoder.config.registers:
        raise ConfigError(
            "output is 'reg', but the encoder has no [REG] token",
            remedy="take 'flatten' or 'mean', or train with registers",
        )
    tokens = {
        "flatten": encoder.tokens,
        "blocks": encoder.tokens * len(encoder.blocks),
        "reg": encoder.config.registers,
        "mean": 1,
    }
    if output not in tokens:
        raise ConfigError(f"output is {output!r}", remedy=f"allowed: {', '.join(tokens)}")
    return (tokens[output] * dim,)


def pooled(
    encoder: TabularEncoder,
    tokens: Float32[np.ndarray, "rows tokens dim"],
    output: Output | Literal["tokens"],
) -> Float32[np.ndarray, "rows *features"]:
    """Tokens as `output` has them."""
    if output == "tokens":
        return tokens
    if output == "mean":
        return tokens.mean(1)
    if output == "reg":
        tokens = tokens[:, : encoder.config.registers]
    return tokens.reshape(len(tokens), -1)


def _blocks(
    encoder: TabularEncoder,
    x: Rows,
    *,
    batch: int,
    device: str,
    layer: str,
    low_precision: bool,
) -> Iterator[tuple[int, Float32[np.ndarray, "block tokens dim"]]]:
    """First row and tokens of every block."""
    kind = find_device(device)
    batch = batch or BLOCK[kind]
    if next(encoder.parameters()).device.type != kind:
        encoder = copy.deepcopy(encoder).to(kind)
    encoder.eval()
    buffer = np.zeros((batch, encoder.shape.columns), np.float32)
    # A generator must not leave inference mode on between two blocks.
    for first in range(0, x.shape[0], batch):
        part = x[first : first + batch]
        buffer[: len(part)], buffer[len(part) :] = part, 0
        with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=low_precision):
            tokens = encoder(torch.from_numpy(buffer).to(kind), layer=layer)
        yield first, tokens[: len(part)].float().cpu().numpy()


def save(
    folder: str | Path,
    encoder: TabularEncoder,
    preprocessor: TablePreprocessor,
    extra: Mapping[str, Any] | None = None,
    *,
    head: Mapping[str, Shaped[np.ndarray, "..."]] | None = None,
) -> Path:
    """Write an encoder with its preprocessing as safetensors and JSON.

    Parameters
    ----------
    extra
        More to be kept in config.json.
    head
        More arrays: what an estimator puts on the encoder.
    """
    columns, arrays = preprocessor.to_state()
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    for prefix, found in (("columns", arrays), ("head", head or {})):
        state |= {f"{prefix}.{name}": _tensor(value) for name, value in found.items()}
    config = {
        "package": PACKAGE,
        "format": FORMAT,
        "model": to_dict(encoder.config),
        "shape": to_dict(encoder.shape),
        "columns": columns,
        **(extra or {}),
    }
    return hub.save_encoder(folder, state, config)


def load(path_or_id: str | Path, *, device: str = "auto") -> PretrainedTable:
    """A pre-trained encoder, ready for rows.

    Parameters
    ----------
    path_or_id
        A run folder, an encoder folder, a folder written by an estimator's `save_pretrained`, or a
        hub id.
    device
        Where to compute.

    Raises
    ------
    DataError
        There is no encoder of this package, or its file is damaged.
    """
    path = Path(path_or_id)
    if path.suffix in (".pt", ".pth", ".ckpt"):
        raise DataError(
            "an official checkpoint does not say how its columns were encoded",
            where=path,
            remedy="turn it into an encoder with jepa tabular import",
        )
    refuse_unfinished(path, "encoder", "tabular")
    config, state = hub.load_encoder(path_or_id, PACKAGE)
    if config.get("format") != FORMAT:
        raise DataError(
            f"the encoder has format {config.get('format')}",
            where=path_or_id,
            remedy=f"this version of {PACKAGE} reads format {FORMAT}",
        )
    if missing := [key for key in ("model", "shape", "columns") if key not in config]:
        raise DataError(f"config.json lacks {', '.join(missing)}", where=path_or_id)
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "columns": {}, "head": {}}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = value
    encoder = TabularEncoder(
        from_dict(ModelConfig, config["model"], where=path_or_id),
        from_dict(TableShape, config["shape"], where=path_or_id),
    )
    shapes = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    try:
        encoder.load_state_dict(hub.rename_keys(parts["encoder"], {}, shapes))
    except DataError as error:
        raise DataError(error.what, where=path_or_id, remedy=error.remedy) from None
    arrays = {name: value.numpy() for name, value in parts["columns"].items()}
    preprocessor = TablePreprocessor.from_state(config["columns"], arrays)
    if preprocessor.shape_ != encoder.shape:
        raise DataError("encoder and columns are of different tables", where=path_or_id)
    head = {name: value.numpy() for name, value in parts["head"].items()}
    return PretrainedTable(encoder, preprocessor, config=config, head=head, device=device)


def _tensor(array: Shaped[np.ndarray, "..."]) -> Tensor:
    return torch.from_numpy(np.array(array))
