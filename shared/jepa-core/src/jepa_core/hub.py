"""Encoders that travel: a folder of safetensors and JSON, here or on the Hugging Face Hub.

Also how foreign weights come in: torch files without running what they pickle, and other names.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from jepa_core.errors import DataError, RunError
from jepa_core.files import must_be_content
from jepa_core.run import fsync

WEIGHTS = "model.safetensors"
CONFIG = "config.json"

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
# Of a long list of names an error shows this many.
_SHOWN = 8


def save_encoder(
    folder: str | Path,
    state: Mapping[str, Tensor],
    config: dict[str, Any],
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Write an encoder: model.safetensors and config.json.

    The folder is written beside its place, forced to the disk and renamed, so that it is whole or
    not there; an encoder that was there is deleted after that, and other files beside it stay.

    Parameters
    ----------
    folder
        Where to: a new or empty folder, or that of an encoder, which is replaced.
    state
        Name to tensor. Tensors that share memory are each written in full.
    config
        JSON-able. "package" names the package that can load it, such as "jepa-ecg".
    more
        More JSON files: name to content.

    Raises
    ------
    RunError
        The folder holds no encoder but something else, or it cannot be written.
    """
    if "package" not in config:
        raise ValueError("the encoder's config lacks 'package'")
    _must_be_replaceable(Path(folder))
    # A link stays one, and "." has a name.
    place = Path(os.path.realpath(folder))
    beside = place.with_name(f"{place.name}.tmp-{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        save_file(
            {k: v.detach().cpu().clone().contiguous() for k, v in state.items()}, beside / WEIGHTS
        )
        for name, content in {CONFIG: config, **(more or {})}.items():
            (beside / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for path in (*beside.iterdir(), beside):
            fsync(path)
        _put(beside, place)
        fsync(place.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise RunError(
            f"the encoder cannot be written: {error}",
            where=folder,
            remedy="check free space and permissions",
        ) from error
    return Path(folder)


def refuse_taken(folder: Path, *, overwrite: bool) -> None:
    """Raise where `save_encoder` would refuse, or would replace an encoder that is to stay.

    For a command to ask before its work.

    Raises
    ------
    RunError
        Saying which.
    """
    _must_be_replaceable(folder)
    if not overwrite and _taken(folder):
        raise RunError("already exists", where=folder, remedy="give --overwrite or another --out")


def load_encoder(path_or_id: str | Path, package: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read an encoder.

    Parameters
    ----------
    path_or_id
        An encoder's folder, a run folder that holds `encoder/`, or a Hub id such as
        "organisation/name" (optionally "organisation/name@revision"). What exists on disk wins.
    package
        The package that asks, such as "jepa-ecg".

    Returns
    -------
    config, state
        As saved; tensors on the CPU.

    Raises
    ------
    DataError
        Nothing is there, it cannot be read, or it was saved by another package.
    """
    folder = _find(path_or_id)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"holds no {CONFIG}",
            where=folder,
            remedy="give an encoder's folder, or a run that ended",
        ) from None
    except ValueError as error:
        raise DataError(f"not valid JSON: {error}", where=folder / CONFIG) from None
    saved_by = config.get("package") if isinstance(config, dict) else None
    if saved_by != package:
        raise DataError(
            f"this encoder belongs to {saved_by or 'no package of ours'}, not to {package}",
            where=folder,
            remedy=f"load it with {saved_by}" if saved_by else "import it with its own importer",
        )
    return config, read_safetensors(folder / WEIGHTS)


def push(folder: str | Path, repo_id: str, *, private: bool = False) -> str:
    """Upload an encoder's folder to the Hub; creates the repository. Gives its address.

    Raises
    ------
    DataError
        The folder holds no encoder, or the Hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    folder = Path(folder)
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise DataError(f"holds no {name}", where=folder, remedy="give an encoder's folder")
    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id, folder_path=folder, allow_patterns=[WEIGHTS, CONFIG, "README.md"]
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise DataError(
            f"the Hub refuses: {_first_line(error)}",
            where=repo_id,
            remedy="check the name, and your login (hf auth login)",
        ) from error
    return str(url)


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU.

    Raises
    ------
    DataError
        No such file, a Git LFS pointer in its place, or a damaged file.
    """
    must_be_content(Path(path))
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"cannot be read: {error}", where=path, remedy="fetch it again") from error
    return tensors


def read_torch_weights(path: str | Path) -> Any:
    """What a `.pt` or `.pth` file holds, read without running anything in it.

    Tensors, numbers, strings and plain containers of them are let through; tensors on the CPU.

    Raises
    ------
    DataError
        No such file, a Git LFS pointer in its place, a damaged file, or one that holds more.
    """
    must_be_content(Path(path))
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of bytes from anywhere the unpickler raises anything
        found = re.search(r"(?:GLOBAL|class) ([\w.]+\.\w+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and found:
            raise DataError(
                f"refused: it holds more than weights ({found[1]})",
                where=path,
                remedy="save its state dict alone, in a place where you trust it",
            ) from None
        raise DataError(
            f"is not a file of torch weights, or is damaged: {_first_line(error)}",
            where=path,
            remedy="fetch it again",
        ) from error


def rename_keys(
    state: Mapping[str, Tensor],
    table: Mapping[str, str],
    expected: Mapping[str, Iterable[int]],
    ignore: Iterable[str] = (),
) -> dict[str, Tensor]:
    r"""Foreign weights under our names, checked to be whole.

    Parameters
    ----------
    state
        Foreign name to tensor.
    table
        Regular expression to replacement, each applied in order to every name with `re.sub`:
        ``{r"^module\.": "", r"\.mlp\.0\.": ".mlp.fc1."}``.
    expected
        Our name to shape, every one of which must come.
    ignore
        Regular expressions; foreign names that one of them finds are dropped (dead keys of the
        original programs).

    Raises
    ------
    DataError
        Listing the missing, the unexpected, the wrongly shaped and the doubly named.
    """
    dead = [re.compile(pattern) for pattern in ignore]
    rules = [(re.compile(pattern), replacement) for pattern, replacement in table.items()]
    renamed: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    twice = []
    for key, tensor in state.items():
        if any(pattern.search(key) for pattern in dead):
            continue
        name = key
        for pattern, replacement in rules:
            name = pattern.sub(replacement, name)
        if name in renamed:
            twice.append(f"{name} (from {origin[name]} and {key})")
        renamed[name], origin[name] = tensor, key
    shapes = {name: tuple(shape) for name, shape in expected.items()}
    complaints = {
        "missing": [name for name in shapes if name not in renamed],
        "unexpected": [
            name if origin[name] == name else f"{name} (from {origin[name]})"
            for name in renamed
            if name not in shapes
        ],
        "of another shape": [
            f"{name} {tuple(renamed[name].shape)}, not {shape}"
            for name, shape in shapes.items()
            if name in renamed and tuple(renamed[name].shape) != shape
        ],
        "named twice": twice,
    }
    if any(complaints.values()):
        raise DataError(
            "the weights do not fit: "
            + "; ".join(f"{what}: {_some(names)}" for what, names in complaints.items() if names),
            remedy="check that the weights and the config are of the same model",
        )
    return {name: renamed[name] for name in shapes}


def _taken(folder: Path) -> bool:
    return folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))


def _must_be_replaceable(folder: Path) -> None:
    """Raise unless nothing is there, or what `save_encoder` wrote."""
    try:
        if not _taken(folder):
            return
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if not (isinstance(config, dict) and "package" in config and (folder / WEIGHTS).is_file()):
        raise RunError("is no folder of an encoder", where=folder, remedy="give another place")


def _put(beside: Path, place: Path) -> None:
    """Rename a folder to where there may be one: that is renamed away before it is deleted."""
    if not place.exists():
        beside.rename(place)
        return
    old = place.with_name(f"{place.name}.old-{os.getpid()}")
    place.rename(old)
    try:
        beside.rename(place)
    except OSError:
        old.rename(place)
        raise
    for path in old.iterdir():
        if not (place / path.name).exists():
            path.rename(place / path.name)
    shutil.rmtree(old, ignore_errors=True)


def _find(path_or_id: str | Path) -> Path:
    """The encoder's folder for a folder, a run folder or a Hub id."""
    path = Path(path_or_id)
    if path.is_dir():
        inner = path / "encoder"
        return inner if inner.is_dir() and not (path / WEIGHTS).is_file() else path
    repository, _, revision = str(path_or_id).partition("@")
    if path.exists() or not _REPOSITORY.fullmatch(repository):
        raise DataError(
            "is no folder", where=path_or_id, remedy="give an encoder's folder, a run or a Hub id"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            repository, revision=revision or None, allow_patterns=[WEIGHTS, CONFIG]
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise DataError(
            f"is neither a folder nor to be had from the Hub: {_first_line(error)}",
            where=path_or_id,
            remedy="check the name, the connection, and your login for a private one",
        ) from error
    return Path(found)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
