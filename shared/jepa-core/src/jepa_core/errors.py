"""Errors a person can act on: one line that names the place, what is wrong and the remedy.

The `jepa` command prints a `JepaError` as that one line and exits 2; every other exception is a
bug of ours and keeps its traceback.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class JepaError(Exception):
    """Anything a user can cause.

    Parameters
    ----------
    what
        What is wrong, with the offending value.
    where
        File, and field or line where there is one.
    remedy
        What to do about it.
    """

    def __init__(self, what: str, *, where: object = "", remedy: str = "") -> None:
        self.what = what
        self.where = str(where)
        self.remedy = remedy
        line = f"{self.where}: {what}" if self.where else what
        super().__init__(f"{line}; {remedy}" if remedy else line)

    def __reduce__(self) -> tuple[object, ...]:
        # Loader workers send exceptions between processes; the default would call __init__ with
        # the joined line only and lose the parts.
        return (_rebuild, (type(self), self.what, self.where, self.remedy))


def _rebuild(cls: type[JepaError], what: str, where: str, remedy: str) -> JepaError:
    return cls(what, where=where, remedy=remedy)


class ConfigError(JepaError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(JepaError, ValueError):
    """A file or an array is not what it should be."""


class RunError(JepaError):
    """A run folder cannot be created, resumed or written."""


class MissingExtra(JepaError, ImportError):
    """An optional dependency is not installed."""


class Interrupted(JepaError):
    """Ctrl-C or SIGTERM: the last step is saved, the command exits 130."""


def require(module: str, *, package: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it.

    Raises
    ------
    MissingExtra
        Naming `pip install "<package>[<extra>]"`.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"this needs {module.partition('.')[0]}, which is not installed",
            remedy=f'pip install "{package}[{extra}]"',
        ) from error
