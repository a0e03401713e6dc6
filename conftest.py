"""What every package's tests share: one thread, the data folder, the skip reasons."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# Before torch or a BLAS is imported by any test: several tests at once must not fight for cores.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

# The same examples everywhere, and none that fails because the machine is busy.
settings.register_profile(
    "jepa", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("jepa")

ROOT = Path(__file__).parent


def _data_root() -> Path:
    """Folder of the real files and golden arrays: $JEPA_DATA, else ../shared/data."""
    return Path(os.environ.get("JEPA_DATA", ROOT.parent / "shared" / "data")).resolve()


@pytest.fixture(scope="session")
def data() -> Callable[[str], Path]:
    """`data("ecg")` is that domain's folder of real files and golden arrays."""

    def folder(domain: str) -> Path:
        path = _data_root() / domain
        if not path.is_dir():
            reason = f"no test data at {path}; set JEPA_DATA to the folder that holds '{domain}'"
            if os.environ.get("JEPA_REQUIRE_DATA") == "1":
                pytest.fail(reason)
            pytest.skip(reason)
        return path

    return folder


class Said(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def jepa(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """In a domain's tests `jepa("info", "--json")` runs `jepa DOMAIN info --json`."""
    package = request.path.relative_to(ROOT / "packages").parts[0]

    def run(*words: object) -> Said:
        from jepa_core import cli

        capsys.readouterr()
        code = cli.main([package.removeprefix("jepa-"), *map(str, words)])
        return Said(code, *capsys.readouterr())

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu = [item for item in items if "gpu" in item.keywords]
    if not gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))
