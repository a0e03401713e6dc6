"""What a call needs beyond its inputs, measured in a process of its own."""

from __future__ import annotations

import gc
import importlib
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Contender

ROOT = Path(__file__).resolve().parents[1]


def peak_memory(prepare: Callable[..., Contender], *arguments: str | int | float) -> int:
    """Bytes a call needs at its peak beyond what its inputs held, in a fresh process.

    `prepare(*arguments)` is a function at the top level of a script; it builds the inputs and
    returns the function to measure. Linux: the kernel's high-water mark, reset before the call
    (`ru_maxrss` cannot be reset, and a child inherits its parent's); elsewhere `ru_maxrss`.
    """
    module = prepare.__module__
    if module == "__main__":
        spec = sys.modules["__main__"].__spec__
        if spec is None:
            raise ValueError("start the script as a module: python -m benchmarks.<subject>")
        module = spec.name
    job = json.dumps([module, prepare.__qualname__, list(arguments)])
    done = subprocess.run(
        [sys.executable, "-c", "from benchmarks.memory import _measure; _measure()", job],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{module}.{prepare.__qualname__}{arguments}: {done.stderr[-2000:]}")
    return int(done.stdout.splitlines()[-1])


def _measure() -> None:
    module, function, arguments = json.loads(sys.argv[1])
    work = getattr(importlib.import_module(module), function)(*arguments)
    gc.collect()
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")
    before = _high_water()
    work()
    print(_high_water() - before)


def _high_water() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [x for x in status.read_text().splitlines() if x.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
