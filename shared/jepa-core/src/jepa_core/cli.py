"""The `jepa` command: `jepa`, `jepa doctor`, `jepa <domain>`, `jepa <domain> <verb> ...`.

Nothing heavy is imported before a verb runs: domains are listed from package metadata, a domain's
help from its `domain.py`, and only the verb asked for is imported.

Exit codes: 0; 2 with one line for anything a user can cause; 130 after Ctrl-C; 1 is a bug of ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import io
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import Any

from jepa_core.domain import Domain, Verb
from jepa_core.errors import ConfigError, Interrupted, JepaError

GROUP = "jepa.domains"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    if debug:
        words.remove("--debug")
    try:
        _dispatch(words)
        # Flushed here, so that a closed pipe (`jepa | head`) is met inside this try.
        sys.stdout.flush()
        return 0
    except SystemExit as stop:  # tyro's, after --help
        return stop.code if isinstance(stop.code, int) else 0
    except (KeyboardInterrupt, Interrupted) as stop:
        _say(str(stop) or "interrupted")
        return 130
    except JepaError as error:
        return _fail(error, debug)
    except BrokenPipeError:
        # The reader has gone: the interpreter's last flush goes nowhere, quietly.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None and not error.strerror:
            raise
        place = error.filename if error.filename is not None else ""
        return _fail(JepaError(error.strerror or str(error), where=place), debug)


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return
    if words[0] == "--version":
        print(f"jepa {version('jepa-core')}")
        return
    if words[0] == "doctor":
        from jepa_core.doctor import doctor

        doctor(words[1:])
        return
    points = _entry_points()
    if words[0] not in points:
        raise ConfigError(
            f"no domain called {words[0]}",
            remedy=_suggest(words[0], [*points, "doctor"]) or "run jepa for the list",
        )
    domain: Domain = points[words[0]].load()
    rest = words[1:]
    if not rest or rest[0] in ("-h", "--help"):
        print(_domain_help(domain))
        return
    group = tuple(verb for verb in domain.verbs if verb.name.startswith(f"{rest[0]} "))
    if group and rest[1:] in (["-h"], ["--help"]):
        print(_domain_help(dataclasses.replace(domain, verbs=group)))
        return
    verb, rest = _find_verb(domain, rest)
    command = f"jepa {domain.name} {verb.name}"
    _parse(verb, rest, command)()


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda p: p.name)}


def _overview() -> str:
    lines = ["usage: jepa <domain> <verb> [flags]", "       jepa doctor", ""]
    points = _entry_points()
    if points:
        lines.append("installed domains:")
        for name, point in points.items():
            lines.append(f"  {name:<10} {_summary(point)}")
    else:
        lines.append("no domain is installed; for example: pip install jepa-ecg")
    lines += ["", "jepa <domain> lists its verbs; jepa doctor says what this machine offers."]
    return "\n".join(lines)


def _summary(point: EntryPoint) -> str:
    """The package's one line, read from its metadata: nothing of the domain is imported."""
    try:
        return str(point.dist.metadata["Summary"]) if point.dist else ""
    except (PackageNotFoundError, KeyError):
        return ""


def _domain_help(domain: Domain) -> str:
    width = max(len(verb.name) for verb in domain.verbs)
    verbs = "\n".join(f"  {verb.name:<{width}}  {verb.summary}" for verb in domain.verbs)
    return (
        f"usage: jepa {domain.name} <verb> [flags]\n\n{domain.summary}\n\nverbs:\n{verbs}\n\n"
        f"jepa {domain.name} <verb> --help lists a verb's flags."
    )


def _find_verb(domain: Domain, words: list[str]) -> tuple[Verb, list[str]]:
    """The verb that the first words name (`data build` is two) and the words after it."""
    for verb in sorted(domain.verbs, key=lambda verb: -len(verb.name.split())):
        parts = verb.name.split()
        if words[: len(parts)] == parts:
            return verb, words[len(parts) :]
    names = [verb.name for verb in domain.verbs]
    under = [name for name in names if name.startswith(f"{words[0]} ")]
    if under:
        raise ConfigError(
            f"jepa {domain.name} {words[0]} needs one more word", remedy=" or ".join(under)
        )
    raise ConfigError(
        f"jepa {domain.name} has no verb {words[0]}",
        remedy=_suggest(words[0], names) or f"run jepa {domain.name} for the list",
    )


def _suggest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else ""


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _parse(verb: Verb, words: list[str], command: str) -> Any:
    """The verb's dataclass, filled from the flags over the preset's values."""
    import tyro

    cls = _load(verb.target)
    default = None
    if verb.presets:
        default = _with_preset(cls, _load(verb.presets), words)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                cls,
                args=words,
                prog=command,
                default=default,
                # Flags are written as fields are, without the path of nested classes.
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(
            _one_line(said.getvalue()), where=command, remedy=f"see {command} --help"
        ) from None


def _with_preset(cls: type, presets: Mapping[str, Any], words: list[str]) -> Any:
    """An instance of `cls` whose field `config` is the preset's; required fields stay required."""
    import tyro

    fields = {field.name: field for field in dataclasses.fields(cls)}
    name = str(fields["preset"].default)
    for i, word in enumerate(words):
        if word == "--preset" and i + 1 < len(words):
            name = words[i + 1]
        elif word.startswith("--preset="):
            name = word.partition("=")[2]
    if name not in presets:
        raise ConfigError(
            f"no preset called {name}",
            where="--preset",
            remedy=_suggest(name, list(presets)) or f"allowed: {', '.join(presets)}",
        )
    values = {}
    for key, field in fields.items():
        if field.default is not dataclasses.MISSING:
            values[key] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            values[key] = field.default_factory()
        else:
            values[key] = tyro.MISSING
    return cls(**(values | {"config": presets[name], "preset": name}))


def _one_line(boxed: str) -> str:
    """What the flag parser says in a box of several lines, as one line."""
    lines = []
    for line in boxed.splitlines():
        text = line.strip("│╭╮╰╯─ \t")
        if line.startswith("│") and set(line.strip("│ ")) == {"─"}:
            break  # below the rule stands help on the flag
        if line.startswith("│") and text:
            lines.append(text)
    return " ".join(lines) or " ".join(boxed.split()) or "bad flags"


def _fail(error: JepaError, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    _say(f"error: {error}")
    return 2


def _say(line: str) -> None:
    # One line whatever the message holds: a hostile file name must not write a second.
    print(" ".join(line.split()), file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
