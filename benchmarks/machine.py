"""What a benchmark ran on, in general terms: nothing that names the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path


def machine(packages: Sequence[str] = ()) -> dict[str, str]:
    """This machine in general terms, and the versions of what was timed.

    `packages` are distributions to name beside torch and numpy: the subject's peers.
    """
    found = {"cpu": _cpu(), "memory": _memory(), "system": f"{platform.system()}"}
    if torch := sys.modules.get("torch"):
        if torch.cuda.is_available():
            found["gpu"] = torch.cuda.get_device_name(0)
        found["blas"] = _blas(torch.__config__.show())
    found["versions"] = ", ".join(
        [f"Python {platform.python_version()}"]
        + [f"{name} {_version(name)}" for name in ("torch", "numpy", *packages)]
    )
    found["load"] = f"{os.getloadavg()[0]:.1f} other jobs at the start (1-minute average)"
    return found


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    name, flags = platform.machine(), set[str]()
    if info.exists():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        entries = {key.strip(): value.strip() for key, _, value in lines}
        name = entries.get("model name", name)
        flags = set(entries.get("flags", "").split())
    units = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX"}
    have = [label for flag, label in units.items() if flag in flags]
    lack = [label for flag, label in units.items() if flag not in flags] if flags else []
    words = f"{name}, {os.cpu_count()} cores"
    words += f", {', '.join(have)}" if have else ""
    return words + (f" (no {', '.join(lack)})" if lack else "")


def _memory() -> str:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"{total / 2**30:.0f} GiB"


def _blas(build: str) -> str:
    """The libraries of matrix products, out of torch's description of its build."""
    known = {"Math Kernel Library": "MKL", "MKL-DNN": "oneDNN", "OpenBLAS": "OpenBLAS"}
    found = []
    for line in build.splitlines():
        for text, name in known.items():
            if text in line:
                words = line.replace("-Product", " ").split()
                version = [w.strip("v") for w in words if w.strip("v")[:1].isdigit()]
                found.append(f"{name} {version[0]}" if version else name)
    return ", ".join(found) or "unknown"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
