"""Build a corpus: two passes over files that need not fit in memory, resumable, with a list of
the rows left out.

The first pass learns the preprocessor and the classes, the second one encodes and writes, some
rows at a time. A build that was stopped in the second goes on after the last rows written.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet

from jepa_core.config import Range, check, read_json, to_dict
from jepa_core.corpus import building, finish, index_files, part_path, prepare, read_part
from jepa_core.errors import DataError, RunError
from jepa_core.progress import Progress
from jepa_core.run import fsync, write_json
from jepa_tabular.columns import Kind, kinds_besides
from jepa_tabular.data.chunks import Chunk, read_chunks, read_types, sound
from jepa_tabular.data.corpus import FORMAT
from jepa_tabular.data.files import require_columns
from jepa_tabular.data.labels import Labels
from jepa_tabular.data.survey import Survey
from jepa_tabular.preprocess import TablePreprocessor
from jepa_tabular.presets import ColumnsConfig

__all__ = ["BuildReport", "CorpusConfig", "build_corpus"]

_OWN_FILES = (
    "x.npy",
    "y.npy",
    "columns.json",
    "columns.npz",
    "surveyed.json",
)
_INDEX = pyarrow.schema(
    [("id", pyarrow.string()), ("file", pyarrow.string()), ("line", pyarrow.int64())]
)


@dataclass(frozen=True)
class CorpusConfig:
    """What a corpus is made of.

    Attributes
    ----------
    columns
        Scaling and policies of the columns.
    categorical
        Columns of numbers that are categories, in addition to texts, booleans and dictionaries.
    label
        Column of the labels: kept apart, never among the features.
    task
        What labels are: "classes", "numbers", or ("auto") classes where they are text, true or
        false, or whole numbers without a point.
    id
        Column that names the rows; never among the features.
    drop
        Columns to leave out.
    on_error
        A row that cannot be read stops the build ("stop") or is left out and listed ("skip").
    chunk_rows
        Rows in memory at a time.
    quantile_rows
        Rows that quantiles and medians are taken from, where there are more.
    seed
        Decides which rows those are.
    """

    columns: ColumnsConfig = ColumnsConfig()
    categorical: tuple[str, ...] = ()
    label: str | None = None
    task: Literal["auto", "classes", "numbers"] = "auto"
    id: str | None = None
    drop: tuple[str, ...] = ()
    on_error: Literal["stop", "skip"] = "stop"
    chunk_rows: Annotated[int, Range(ge=2)] = 65_536
    quantile_rows: Annotated[int, Range(ge=2)] = 100_000
    seed: Annotated[int, Range(ge=0)] = 0

    def __post_init__(self) -> None:
        check(self)


class BuildReport(NamedTuple):
    """What a build did: rows in the corpus, rows left out, rows taken from before."""

    kept: int
    skipped: int
    resumed: int


def build_corpus(
    inputs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    config: CorpusConfig | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> BuildReport:
    """Build a corpus from files with the same columns.

    Parameters
    ----------
    inputs
        Files that `load_table` reads, in the order that their rows will have. CSV, TSV, Parquet
        and NPY are read some rows at a time, ARFF and NPZ whole.
    out
        Folder; must not exist, or be empty, unless resumed or overwritten.
    config
        What it is made of.
    resume
        Go on with a build that was stopped.
    overwrite
        Replace a corpus, or the beginning of one.
    progress
        Show rate and time left on stderr when it takes longer than two seconds.

    Raises
    ------
    DataError
        A file cannot be read, or a row of it and `on_error` is "stop"; no row is left; or the
        columns cannot be encoded, as `TablePreprocessor.fit` says.
    RunError
        The folder is in use, is no corpus, cannot be written, has too little space, or was begun
        with other settings.
    Interrupted
        Ctrl-C; rows written stay.
    """
    config = config or CorpusConfig()
    folder, paths = Path(out), [Path(path) for path in inputs]
    if not paths:
        raise DataError("no file is given", remedy="name files")
    build = _Build(paths, folder, config, progress)
    inputs = [f"{path.name} ({path.stat().st_size} bytes)" for path in paths]
    asked = {"format": FORMAT, "settings": to_dict(config), "inputs": inputs}
    with building(folder):
        if prepare(folder, asked, _OWN_FILES, resume=resume, overwrite=overwrite):
            info = read_json(folder / "corpus.json")
            return BuildReport(info["rows"], info["skipped"], info["rows"])
        surveyed = folder / "surveyed.json"
        if not surveyed.exists():
            build.survey()
        return build.write(read_json(surveyed))


class _Build:
    """The two passes."""

    def __init__(
        self, paths: list[Path], folder: Path, config: CorpusConfig, progress: bool
    ) -> None:
        self.paths, self.folder, self.config, self.progress = paths, folder, config, progress
        self.types = read_types(paths[0], config.chunk_rows)
        first = next(read_chunks(paths[0], config.chunk_rows, self.types)).frame
        names = [str(name) for name in first.columns]
        extra = [config.label, config.id]
        named = [*(name for name in extra if name is not None), *config.drop, *config.categorical]
        require_columns(named, names, paths[0])
        self.features = [name for name in names if name not in extra and name not in config.drop]
        found = self._kinds(first[self.features])
        self.kinds: dict[str, Kind] = dict(zip(self.features, found, strict=True))
        self.labels: Labels | None = None
        if config.label is not None:
            whole = self.types is not None and pyarrow.types.is_integer(self.types[config.label])
            self.labels = Labels(first[config.label], config.task, whole=whole)
        if self.types is not None:
            self.types = self._storage(self.types)

    def _kinds(self, frame: pd.DataFrame) -> Sequence[Kind]:
        try:
            named = [name for name in self.config.categorical if name in frame.columns]
            return kinds_besides(frame, named)
        except DataError as error:
            where = f"{self.paths[0]}, {error.where}"
            remedy = f"{error.remedy}; or name it with --categorical or --drop"
            raise DataError(error.what, where=where, remedy=remedy) from None

    def _storage(self, types: dict[str, pyarrow.DataType]) -> dict[str, pyarrow.DataType]:
        """Types that hold for all rows: the first ones may be whole numbers by chance."""
        out = {}
        for name, kind in types.items():
            whole = pyarrow.types.is_integer(kind)
            if name == self.config.id:
                out[name] = pyarrow.string()
            elif name == self.config.label and self.labels is not None:
                out[name] = self.labels.storage
            else:
                out[name] = pyarrow.float64() if whole else kind
        return out

    def survey(self) -> None:
        """The first pass: what the second needs is written to `surveyed.json` and `columns.*`."""
        survey = Survey(self.kinds, self.config.quantile_rows, self.config.seed)
        classes = self.labels
        n_skipped = 0
        with self._progress("reading") as tell:
            for file in range(len(self.paths)):
                for chunk in self._chunks(file):
                    survey.add(chunk.frame[self.features])
                    if classes is not None:
                        classes.learn(chunk.frame[self.config.label])
                    n_skipped += len(chunk.skipped)
                    tell(file, chunk.position, survey.rows)
        if not survey.rows:
            what = f"none of the {n_skipped} rows can be used"
            remedy = "see what is wrong with `jepa tabular data check`"
            raise DataError(what, where=self.paths[0], remedy=remedy)
        preprocessor = survey.fit(self.config.columns)
        state, arrays = preprocessor.to_state()
        with open(self.folder / "columns.npz", "wb") as npz:
            np.savez(npz, **arrays)  # type: ignore[arg-type]
            npz.flush()
            os.fsync(npz.fileno())
        write_json(self.folder / "columns.json", state)
        info = {
            "rows": survey.rows,
            "columns": preprocessor.shape_.columns,
            "skipped": n_skipped,
            "classes": classes.names() if classes is not None else None,
        }
        write_json(self.folder / "surveyed.json", info)

    def write(self, info: dict[str, Any]) -> BuildReport:
        """The second pass, and the end."""
        folder = self.folder
        rows, columns = info["rows"], info["columns"]
        with np.load(folder / "columns.npz") as arrays:
            found = {name: arrays[name] for name in arrays.files}
        preprocessor = TablePreprocessor.from_state(read_json(folder / "columns.json"), found)
        if self.labels is not None:
            self.labels.classes = info["classes"]
        done = _parts(folder)
        resumed = sum(part["rows"] for part in done)
        with _appended(folder / "x.npy", (rows, columns), "<f4", resumed) as x:
            self._check_space((rows - resumed) * columns * 4)
            with self._progress("writing", resumed) as tell:
                begun = done[-1]["file"] if done else 0
                for file in range(begun, len(self.paths)):
                    for chunk in self._chunks(file, sum(part["file"] == file for part in done)):
                        self._write_part(x, chunk, file, len(done), preprocessor)
                        part = {"file": file, "rows": len(chunk.frame), "skipped": chunk.skipped}
                        write_json(part_path(folder, len(done)), part)
                        done.append(part)
                        tell(file, chunk.position, sum(part["rows"] for part in done))
        if sum(part["rows"] for part in done) != rows:
            what, remedy = "the files changed during the build", "add --overwrite to begin again"
            raise RunError(what, where=folder, remedy=remedy)
        self._finish(info, done)
        return BuildReport(rows, info["skipped"], resumed)

    def _write_part(
        self, x: BinaryIO, chunk: Chunk, file: int, number: int, preprocessor: TablePreprocessor
    ) -> None:
        config, frame = self.config, chunk.frame
        if len(frame):
            x.write(np.ascontiguousarray(preprocessor.transform(frame[self.features])).tobytes())
        x.flush()
        os.fsync(x.fileno())
        ids = frame[config.id] if config.id is not None else pd.Series(chunk.numbers)
        columns: dict[str, Any] = {
            "id": ids.astype(object).where(ids.notna(), "").astype(str).to_numpy(dtype=object),
            "file": np.full(len(frame), self.paths[file].name, object),
            "line": chunk.numbers,
        }
        schema = _INDEX
        if self.labels is not None:
            columns["y"] = self.labels.encode(frame[config.label])
            schema = schema.append(pyarrow.field("y", pyarrow.from_numpy_dtype(columns["y"].dtype)))
        path = part_path(self.folder, number, ".parquet")
        pyarrow.parquet.write_table(pyarrow.table(columns, schema), path)
        fsync(path)

    def _chunks(self, file: int, first: int = 0) -> Iterator[Chunk]:
        path, config = self.paths[file], self.config
        for chunk in read_chunks(path, config.chunk_rows, self.types, first):
            missing, on_error = config.columns.missing, config.on_error
            yield sound(chunk, path, self.kinds, missing=missing, on_error=on_error)

    def _check_space(self, wanted: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if wanted > free:
            what = f"x.npy takes {wanted / 1e9:.2f} GB more and {free / 1e9:.2f} GB are free"
            remedy = "free some space and add --resume"
            raise RunError(what, where=self.folder, remedy=remedy)

    @contextmanager
    def _progress(self, label: str, done: int = 0) -> Iterator[Any]:
        """Tell a bar in MB of the input how far the job is."""
        sizes = [path.stat().st_size for path in self.paths]
        total = max(sum(sizes) >> 20, 1)
        with Progress(f"{label} (MB)", total, quiet=not self.progress) as bar:

            def tell(file: int, position: int, rows: int) -> None:
                bar.update(min((sum(sizes[:file]) + position) >> 20, total), f"{rows} rows")

            yield tell

    def _finish(self, info: dict[str, Any], done: list[dict[str, Any]]) -> None:
        """Join the parts, then say that the corpus is complete."""
        folder = self.folder
        skipped = ("file", "line", "reason")
        with index_files(folder, _INDEX, skipped) as index, ExitStack() as stack:
            y: BinaryIO | None = None
            for number, part in enumerate(done):
                table = pyarrow.parquet.read_table(part_path(folder, number, ".parquet"))
                if self.labels is not None:
                    values = table["y"].to_numpy()
                    if y is None:
                        new = _appended(folder / "y.npy", (info["rows"],), values.dtype.str, 0)
                        y = stack.enter_context(new)
                    y.write(values.tobytes())
                index.rows(table.select(_INDEX.names))
                name = self.paths[part["file"]].name
                index.skipped([[name, line, reason] for line, reason in part["skipped"]])
        finish(
            folder,
            {
                "format": FORMAT,
                **info,
                "label": self.config.label,
                "settings": to_dict(self.config),
                "inputs": [path.name for path in self.paths],
            },
        )
        (folder / "surveyed.json").unlink()


def _parts(folder: Path) -> list[dict[str, Any]]:
    """The parts that are finished."""
    parts: list[dict[str, Any]] = []
    while (part := read_part(folder, len(parts))) is not None:
        parts.append(part)
    return parts


@contextmanager
def _appended(path: Path, shape: tuple[int, ...], dtype: str, rows: int) -> Iterator[BinaryIO]:
    """An .npy of that shape, at the end of its first rows; what was behind them is cut off."""
    with open(path, "r+b" if path.exists() else "w+b") as file:
        header = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        end = file.tell() + rows * math.prod(shape[1:]) * np.dtype(dtype).itemsize
        if file.seek(0, os.SEEK_END) < end:  # truncate would make it longer, with zeros
            what = f"is shorter than the {rows} rows that were written to it"
            raise RunError(what, where=path, remedy="add --overwrite to begin again")
        file.truncate(end)
        file.seek(end)
        yield file
