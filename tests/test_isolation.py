"""One domain installed alone, from its wheel, into an empty environment: nothing else comes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parent.parent
PROJECTS = {path.parent.name: path.parent for path in sorted(ROOT.glob("*/*/pyproject.toml"))}
DOMAINS = [name for name in PROJECTS if name != "jepa-core"]

# What is heavy or rare, and the domains that may bring it.
RARE: dict[str, set[str]] = {
    "catboost": set(),
    "gymnasium": set(),
    "h5py": {"jepa-ecg"},
    "ray": set(),
    "rtdl-revisiting-models": {"jepa-tabular"},
    "spconv-cu120": set(),
    "torchvision": set(),
    "transformers": set(),
    "wfdb": {"jepa-ecg"},
    "xgboost": set(),
}

# Top-level modules that a package's files import, other than where a failure is expected.
IMPORTS = """
import ast, importlib.util, pathlib, sys

def optional(node):
    caught = [h.type for h in getattr(node, "handlers", [])]
    return any(isinstance(t, ast.Name) and t.id == "ImportError" for t in caught)

def walk(node):
    if optional(node):
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield node.module
    for child in ast.iter_child_nodes(node):
        yield from walk(child)

for package in sys.argv[1:]:
    (folder,) = importlib.util.find_spec(package).submodule_search_locations
    for path in pathlib.Path(folder).rglob("*.py"):
        for name in {name.partition(".")[0] for name in walk(ast.parse(path.read_bytes()))}:
            if importlib.util.find_spec(name) is None:
                print(f"{path.relative_to(folder)} imports {name}")
"""


def uv(*words: object) -> str:
    """Run uv on what its cache holds, and only if that is not enough on an index."""
    program = shutil.which("uv")
    if program is None:
        cannot("uv is not installed")
    for offline in (["--offline"], []):
        command = [program, *map(str, words), *offline]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
    said = " ".join(done.stderr.split())
    if any(sign in said for sign in ("Failed to fetch", "error sending request", "dns error")):
        cannot(f"no index can be reached: {said}")
    pytest.fail(f"uv {' '.join(map(str, words))}: {said}")


def cannot(reason: str) -> NoReturn:
    if os.environ.get("JEPA_REQUIRE_DATA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of every project of the workspace."""
    built = {}
    for name in PROJECTS:
        out = tmp_path_factory.mktemp(name)
        uv("build", "--wheel", "--package", name, "--out-dir", out)
        (built[name],) = out.glob("*.whl")
    return built


@dataclass(frozen=True)
class Installed:
    """A domain alone in an environment."""

    name: str
    folder: Path
    packages: set[str]

    @property
    def module(self) -> str:
        return self.name.replace("-", "_")

    def run(self, program: str, *words: str) -> str:
        done = subprocess.run(
            [self.folder / "bin" / program, *words],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module", params=DOMAINS)
def alone(
    request: pytest.FixtureRequest,
    wheels: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Installed]:
    """An environment with the domain, the core and, at the locked versions, what they ask for."""
    name = request.param
    folder = tmp_path_factory.mktemp("alone") / "venv"
    locked = folder.with_name("requirements.txt")
    what = ("--package", name, "--no-dev", "--no-emit-workspace", "--no-hashes")
    locked.write_text(uv("export", "--frozen", *what))
    uv("venv", "--python", sys.executable, folder)
    # Gigabytes are linked to uv's cache, not copied; across disks that takes symbolic links.
    cache = Path(uv("cache", "dir").strip())
    links = "hardlink" if cache.stat().st_dev == folder.stat().st_dev else "symlink"
    install = ("pip", "install", "--python", folder, "--link-mode", links, "--no-deps")
    uv(*install, "-r", locked, wheels["jepa-core"], wheels[name])
    listed = json.loads(uv("pip", "list", "--format", "json", "--python", folder))
    yield Installed(name, folder, {package["name"] for package in listed})
    shutil.rmtree(folder)


def test_a_domain_asks_for_all_it_needs(alone: Installed) -> None:
    uv("pip", "check", "--python", alone.folder)
    missing = alone.run("python", "-I", "-c", IMPORTS, alone.module, "jepa_core")
    assert missing == ""


def test_a_domain_brings_no_other_domain_and_nothing_of_theirs(alone: Installed) -> None:
    assert "torch" in alone.packages
    assert alone.packages & PROJECTS.keys() == {"jepa-core", alone.name}
    foreign = {name for name, domains in RARE.items() if alone.name not in domains}
    assert not alone.packages & foreign
    assert "pytest" not in alone.packages


def test_a_domain_alone_can_be_imported_and_imports_no_other(alone: Installed) -> None:
    program = (
        f"import sys, {alone.module}, {alone.module}.domain\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules if 'jepa' in name}))\n"
        f"print({alone.module}.__file__)"
    )
    modules, file = alone.run("python", "-I", "-c", program).splitlines()
    assert set(modules.split()) == {"jepa_core", alone.module}
    assert Path(file).is_relative_to(alone.folder)


def test_jepa_lists_exactly_the_domain_that_is_installed(alone: Installed) -> None:
    after = alone.run("jepa").partition("installed domains:\n")[2]
    listed = after.partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in listed] == [alone.name.removeprefix("jepa-")]


@pytest.mark.parametrize("name", PROJECTS)
def test_a_wheel_holds_every_file_of_its_package_and_no_other(
    name: str, wheels: dict[str, Path]
) -> None:
    source = PROJECTS[name] / "src"
    files = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheels[name]) as wheel:
        packed = {path for path in wheel.namelist() if ".dist-info/" not in path}
    assert packed == files
    assert f"{name.replace('-', '_')}/py.typed" in packed
    assert not [path for path in packed if "test" in path.rpartition("/")[2]]


@pytest.mark.parametrize("name", PROJECTS)
def test_a_wheel_says_what_it_is_and_under_which_licence(
    name: str, wheels: dict[str, Path]
) -> None:
    with zipfile.ZipFile(wheels[name]) as wheel:
        (path,) = [path for path in wheel.namelist() if path.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(wheel.read(path))
    assert metadata["Name"] == name
    assert metadata["Summary"]
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    readme = metadata.get_payload(decode=True)
    assert readme == (PROJECTS[name] / "README.md").read_bytes()
