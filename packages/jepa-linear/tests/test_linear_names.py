"""The public names: all there, none hidden by a module, and cheap to import."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import types

import jepa_linear


def test_every_public_name_is_there_whatever_has_been_imported():
    # Importing a submodule sets an attribute of its name on the package, over any function's.
    for module in pkgutil.iter_modules(jepa_linear.__path__):
        importlib.import_module(f"jepa_linear.{module.name}")
    assert {"modes", "critical_time", "flow", "descend"} <= set(dir(jepa_linear))
    for name in jepa_linear.__all__:
        assert not isinstance(getattr(jepa_linear, name), types.ModuleType), name


def test_importing_the_package_imports_nothing_heavy():
    heavy = "{'torch', 'numpy', 'scipy', 'pandas', 'matplotlib', 'jaxtyping'}"
    code = f"import sys, jepa_linear; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_theory_needs_no_torch():
    code = (
        "import sys, numpy as np, jepa_linear as jl; "
        "jl.critical_time(1.0, 0.5, 2, layer_scale=0.1); jl.modes(np.eye(2), 0.5 * np.eye(2)); "
        "jl.phase_diagram([1.0], [0.5], (2,), (0.1,)); "
        "jl.trajectory(1.0, 0.5, 2, layer_scale=0.1, times=[0.0]); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
