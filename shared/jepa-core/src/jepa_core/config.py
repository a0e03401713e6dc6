"""Frozen dataclasses to JSON and back, strictly.

A setting is a field of a frozen dataclass with a builtin type. `Literal` lists choices and
`Annotated[float, Range(ge=0, lt=1)]` a range; unknown keys, wrong types and values out of range are
errors that name the key and what is allowed. Nothing heavy is imported here: the command's help
reads these classes.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from jepa_core.errors import ConfigError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a numeric setting; `None` leaves a side open."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        signs = ((">=", self.ge), (">", self.gt), ("<=", self.le), ("<", self.lt))
        return " and ".join(f"{sign} {bound:g}" for sign, bound in signs if bound is not None)


def check(config: Any, *, where: object = "") -> None:
    """Raise `ConfigError` unless every field has its declared type and lies in its range.

    Config classes call this in `__post_init__`, so that no instance exists with a bad value.
    """
    for name, hint in _hints(type(config)).items():  # type: ignore[arg-type]
        _parse(getattr(config, name), hint, name, where)


def to_dict(config: Any) -> dict[str, Any]:
    """The config as JSON-able builtins; tuples become lists."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a config in plain types, its name dotted; lists stay whole."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        yield path, list(value)
    else:
        yield path, value


def from_dict(cls: type[T], data: Any, *, where: object = "") -> T:
    """Build `cls` from what JSON gave.

    Parameters
    ----------
    cls
        A frozen dataclass.
    data
        A mapping of field names to JSON values. Missing keys take the field's default.
    where
        The file it came from, for the error's text.

    Raises
    ------
    ConfigError
        Naming the key and what is allowed.
    """
    return _dataclass(cls, data, "", where)


def read(cls: type[T], path: str | Path) -> T:
    """Read `cls` from a JSON file; errors name the file and the key."""
    return from_dict(cls, read_json(path), where=path)


def write(config: Any, path: str | Path) -> None:
    """Write a config as JSON that `read` gives back equal."""
    Path(path).write_text(json.dumps(to_dict(config), indent=2) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """JSON from a file, with a one-line error for a missing or malformed one."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("no such file", where=path, remedy="check the path") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 text ({error.reason})", where=path) from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"not valid JSON: {error}", where=path) from None


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    return value


def _dataclass(cls: type[T], data: Any, key: str, where: object) -> T:
    if not isinstance(data, dict):
        raise ConfigError(
            f"{key or cls.__name__} must be a mapping of settings, not {_kind(data)}", where=where
        )
    hints = _hints(cls)  # type: ignore[arg-type]
    prefix = f"{key}." if key else ""
    for name in data:
        if name not in hints:
            close = difflib.get_close_matches(str(name), hints, n=1)
            remedy = f"did you mean {prefix}{close[0]}? " if close else ""
            raise ConfigError(
                f"unknown key {prefix}{name}",
                where=where,
                remedy=f"{remedy}allowed: {', '.join(sorted(hints))}",
            )
    values = {name: _parse(data[name], hints[name], prefix + name, where) for name in data}
    missing = [
        field.name
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if field.name not in data
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"missing key {prefix}{missing[0]}", where=where)
    try:
        return cls(**values)
    except ConfigError as error:
        # __post_init__ knows the keys of its own class only: say where in the file they stand.
        what = prefix + error.what if prefix else error.what
        raise ConfigError(what, where=error.where or where, remedy=error.remedy) from None


def _parse(value: Any, hint: Any, key: str, where: object) -> Any:
    """`value` as `hint` wants it, or a ConfigError that names `key`."""
    origin, arguments = get_origin(hint), get_args(hint)

    def wrong(allowed: str) -> ConfigError:
        return ConfigError(f"{key} is {value!r}", where=where, remedy=f"allowed: {allowed}")

    if origin is Annotated:
        parsed = _parse(value, arguments[0], key, where)
        for note in arguments[1:]:
            if isinstance(note, Range):
                items = parsed if isinstance(parsed, tuple) else (parsed,)
                if any(item is not None and item not in note for item in items):
                    raise wrong(str(note))
        return parsed
    if origin is Literal:
        if value not in arguments or isinstance(value, bool) not in {
            isinstance(choice, bool) for choice in arguments
        }:
            raise wrong(", ".join(map(str, arguments)))
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        choices = [choice for choice in arguments if choice is not type(None)]
        for choice in choices[:-1]:
            try:
                return _parse(value, choice, key, where)
            except ConfigError:
                continue
        return _parse(value, choices[-1], key, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise wrong(f"a list, not {_kind(value)}")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            kinds = (arguments[0],) * len(value)
        else:
            kinds = arguments
        if len(kinds) != len(value):
            raise wrong(f"{len(kinds)} values")
        return tuple(
            _parse(item, kind, f"{key}[{i}]", where)
            for i, (item, kind) in enumerate(zip(value, kinds, strict=True))
        )
    if origin is dict:
        if not isinstance(value, dict):
            raise wrong(f"a mapping, not {_kind(value)}")
        return {
            _parse(k, arguments[0], f"{key} (a key of it)", where): _parse(
                v, arguments[1], f"{key}.{k}", where
            )
            for k, v in value.items()
        }
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        return _dataclass(hint, value, key, where)  # type: ignore[arg-type]
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise wrong(f"a number, not {_kind(value)}")
        if not math.isfinite(value):
            raise wrong("a finite number")
        return float(value)
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong(f"a whole number, not {_kind(value)}")
        return value
    if hint is Path:
        if not isinstance(value, (str, Path)):
            raise wrong(f"a path, not {_kind(value)}")
        return Path(value)
    if not isinstance(value, hint):
        raise wrong(f"{_KINDS.get(hint, hint.__name__)}, not {_kind(value)}")
    return value


_KINDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    return _KINDS.get(type(value), type(value).__name__)
