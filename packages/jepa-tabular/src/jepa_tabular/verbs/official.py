"""`jepa tabular import`: a checkpoint of the official program becomes an encoder folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jepa_core.config import Range, check
from jepa_core.errors import ConfigError, DataError
from jepa_core.hub import refuse_taken
from jepa_tabular import inference
from jepa_tabular.data.files import load_table, require_columns
from jepa_tabular.data.tables import LAYOUTS, read
from jepa_tabular.official import read_checkpoint
from jepa_tabular.preprocess import TablePreprocessor
from jepa_tabular.verbs.pretrain import categories


@dataclass(frozen=True)
class Import:
    """Turn a checkpoint of the official program (epoch_N.pth) into an encoder folder.

    The file holds weights alone. How columns are scaled and coded is learned from the table that
    it was trained on, as the program does (over all rows); heads and activations must be told.
    The encoder is the target encoder.
    """

    checkpoint: tyro.conf.Positional[Path]
    """The .pth file; nothing in it is run."""
    data: Path
    """The whole table that it was trained on."""
    out: Path
    """The encoder folder to write."""
    table: Literal["", "adult", "helena", "jannis", "aloi", "california", "higgs"] = ""
    """Which of the paper's tables that is, in its published form; empty is another."""
    label: str = ""
    """Label column of another table."""
    categorical: tuple[str, ...] = ()
    """Columns of numbers that are categories, in addition to texts, booleans and dictionaries."""
    heads: Annotated[int, Range(ge=1)] = 2
    """Attention heads of the encoder (model_num_heads)."""
    predictor_heads: Annotated[int, Range(ge=1)] = 4
    """Attention heads of the predictor (pred_num_heads)."""
    activation: Literal["relu", "gelu"] = "relu"
    """Of the encoder."""
    predictor_activation: Literal["relu", "gelu"] = "relu"
    """Of the predictor."""
    registers: Annotated[int, Range(ge=0)] = 1
    """[REG] tokens (n_cls_tokens)."""
    overwrite: bool = False
    """Replace the encoder in the folder."""

    def __post_init__(self) -> None:
        check(self)
        if self.table and (self.label or self.categorical):
            raise ConfigError(
                f"label and categorical columns of {self.table} are known",
                remedy="drop --label and --categorical, or --table",
            )

    def __call__(self) -> None:
        refuse_taken(self.out, overwrite=self.overwrite)
        preprocessor = self._preprocessor()
        shape = preprocessor.shape_
        try:
            module = read_checkpoint(
                self.checkpoint,
                num_idx=shape.numeric,
                cardinalities=tuple(zip(shape.categorical, shape.cardinalities, strict=True)),
                heads=self.heads,
                pred_heads=self.predictor_heads,
                act=self.activation,
                pred_act=self.predictor_activation,
                n_reg=self.registers,
            )
        except DataError as error:
            raise DataError(
                error.what,
                where=error.where or self.checkpoint,
                remedy=error.remedy or "check --data, --heads, --predictor-heads and --registers",
            ) from None
        extra = {"imported": {"checkpoint": self.checkpoint.name, "data": self.data.name}}
        folder = inference.save(self.out, module.target_encoder, preprocessor, extra)
        numeric, categorical = len(shape.numeric), len(shape.categorical)
        print(f"{folder}: {numeric} numerical and {categorical} categorical columns")

    def _preprocessor(self) -> TablePreprocessor:
        """The official one, fitted on all rows."""
        if self.table:
            frame = read(self.table, self.data).frame
            choice: list[int] | str = list(LAYOUTS[self.table].categorical)
        else:
            frame = load_table(self.data, label=self.label or None)
            require_columns(self.categorical, list(frame.columns), self.data)
            frame = frame.drop(columns=[self.label]) if self.label else frame
            choice = categories(frame, self.categorical)
        return TablePreprocessor(categorical_features=choice, compat=True).fit(frame)
