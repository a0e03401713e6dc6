"""`jepa doctor`: what this machine offers."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from jepa_core.errors import ConfigError

# Optional dependencies by the extra that brings them: (package, extra, modules).
EXTRAS = (("jepa-core", "trackers", ("tensorboard", "wandb", "mlflow")),)


def doctor(arguments: Sequence[str] = ()) -> None:
    """Print devices, precision, kernels, extras, the data folder and free space."""
    if arguments and arguments[0] in ("-h", "--help"):
        print("usage: jepa doctor\n\nSays what this machine offers.")
        return
    if arguments:
        raise ConfigError(f"jepa doctor takes no flags, got {arguments[0]}")
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in findings().items():
        table.add_row(Text(name), Text(value))
    Console().print(table)


def findings() -> dict[str, str]:
    """Each thing looked at and what was found, in the order printed."""
    import torch

    from jepa_core.layers.linear import onednn_is_faster
    from jepa_core.training.device import bfloat16_is_native

    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        "cuda": _cuda(),
        "mps": "yes" if torch.backends.mps.is_available() else "no",
        "bfloat16": "; ".join(
            f"{device}: {'yes' if bfloat16_is_native(device) else 'no (would be slower: off)'}"
            for device in (["cuda"] if torch.cuda.is_available() else []) + ["cpu"]
        ),
        "cpu float32": (
            "oneDNN in Linear layers (MKL would leave AVX-512 unused)"
            if onednn_is_faster()
            else f"{_blas(torch.__config__.show())} in Linear layers, as torch has it"
        ),
        "attention": "fused (torch scaled_dot_product_attention), reference in float64",
    }
    for package, extra, modules in EXTRAS:
        absent = [name for name in modules if importlib.util.find_spec(name) is None]
        found[f"{package}[{extra}]"] = (
            f'missing {", ".join(absent)}: pip install "{package}[{extra}]"' if absent else "yes"
        )
    for point in sorted(importlib.metadata.entry_points(group="jepa.domains"), key=str):
        found[f"domain {point.name}"] = point.dist.version if point.dist else "?"
    data = os.environ.get("JEPA_DATA", "")
    if data:
        found["data folder"] = (
            data if Path(data).is_dir() else f"{data} (JEPA_DATA): no such folder"
        )
    else:
        found["data folder"] = "JEPA_DATA is not set"
    found["free space here"] = f"{shutil.disk_usage('.').free / 1e9:.1f} GB"
    return found


def _blas(build: str) -> str:
    """The library that torch was built to multiply matrices with."""
    name = re.search(r"BLAS_INFO=(\w+)", build)
    known = {"mkl": "MKL", "open": "OpenBLAS", "accelerate": "Accelerate"}
    return known.get(name[1], name[1]) if name else "a library unknown"


def _cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        return "no"
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{p.name} ({p.total_memory / 2**30:.0f} GiB)" for p in names)
