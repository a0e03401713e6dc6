"""The lock is committed without the address of any index."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("lock", ROOT / "scripts" / "lock.py")
assert _spec is not None
assert _spec.loader is not None
lock = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(lock)

FULL = """version = 1

[[package]]
name = "member"
version = "0.1.0"
source = { editable = "packages/member" }
dependencies = [
    { name = "thing" },
]

[package.optional-dependencies]
more = [
    { name = "thing" },
]

[package.metadata]
requires-dist = [{ name = "thing", specifier = ">=1" }]
provides-extras = ["more"]

[package.metadata.requires-dev]
dev = [{ name = "pytest", specifier = ">=8" }]

[[package]]
name = "thing"
version = "1.0"
source = { registry = "https://registry.example/simple" }
sdist = { url = "https://files.example/thing-1.0.tar.gz", hash = "sha256:00" }
wheels = [
    { url = "https://files.example/thing-1.0-py3-none-any.whl", hash = "sha256:00" },
]
"""

NEUTRAL = """version = 1

[[package]]
name = "member"
version = "0.1.0"
source = { editable = "packages/member" }
dependencies = [
    { name = "thing" },
]

[package.optional-dependencies]
more = [
    { name = "thing" },
]

[[package]]
name = "thing"
version = "1.0"
source = { registry = "https://index.invalid/simple" }
"""


def test_addresses_and_member_metadata_go_and_everything_else_stays() -> None:
    assert lock.neutral(FULL) == NEUTRAL


def test_the_neutral_form_is_a_fixed_point() -> None:
    assert lock.neutral(NEUTRAL) == NEUTRAL


def test_every_foreign_address_is_found() -> None:
    assert lock.foreign_addresses(FULL) == [
        "https://files.example/thing-1.0-py3-none-any.whl",
        "https://files.example/thing-1.0.tar.gz",
        "https://registry.example/simple",
    ]
    assert lock.foreign_addresses(NEUTRAL) == []


def test_the_committed_lock_is_neutral() -> None:
    shown = subprocess.run(
        ["git", "show", "HEAD:uv.lock"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if shown.returncode != 0:
        pytest.skip("not a git checkout: " + shown.stderr.strip())
    assert lock.foreign_addresses(shown.stdout) == []
    assert lock.neutral(shown.stdout) == shown.stdout
