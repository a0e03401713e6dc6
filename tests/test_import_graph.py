"""Who may import whom: domains never meet, the core knows none, no room imports one above it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ROOT / "shared" / "jepa-core" / "src" / "jepa_core"
DOMAINS = {
    path.name: path for path in sorted(ROOT.glob("packages/*/src/*")) if path.name != "__pycache__"
}

# The floors of the core, from the ground up. A room may import rooms on lower floors only.
FLOORS = (
    ("errors",),
    ("config", "files", "progress", "rng", "sharded"),
    ("tokens", "attention", "losses", "ema", "schedules", "optim", "domain"),
    ("masking", "layers"),
    ("run", "download"),
    ("output",),
    ("corpus", "jobs", "hub"),
    ("health",),
    ("training",),
    ("report",),
    ("evaluation",),
    ("doctor",),
    ("cli",),
)
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def imported(path: Path) -> set[str]:
    """Full names of every module a file imports, wherever in the file it does so."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def room_of(path: Path) -> str:
    return path.relative_to(CORE).parts[0].removesuffix(".py")


CORE_FILES = sorted(p for p in CORE.rglob("*.py") if p != CORE / "__init__.py")


def test_every_room_of_the_core_has_a_floor() -> None:
    assert {room_of(path) for path in CORE_FILES} == set(FLOOR)


@pytest.mark.parametrize("path", CORE_FILES, ids=lambda p: str(p.relative_to(CORE)))
def test_a_room_of_the_core_imports_only_rooms_below_it(path: Path) -> None:
    own = room_of(path)
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "jepa_core" or len(parts) < 2 or parts[1] == own:
            continue
        assert FLOOR[parts[1]] < FLOOR[own], f"{own} imports {parts[1]}, which stands above it"


def test_the_core_knows_no_domain() -> None:
    for path in CORE.rglob("*.py"):
        met = {name.partition(".")[0] for name in imported(path)} & DOMAINS.keys()
        assert not met, f"{path} imports {met}"


@pytest.mark.parametrize("domain", DOMAINS)
def test_domains_never_import_each_other(domain: str) -> None:
    others = DOMAINS.keys() - {domain}
    for path in DOMAINS[domain].rglob("*.py"):
        met = {name.partition(".")[0] for name in imported(path)} & others
        assert not met, f"{path} imports {met}"
