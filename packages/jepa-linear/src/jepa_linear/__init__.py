"""What a JEPA and what a masked autoencoder learn first, exactly, in the deep linear case.

    import jepa_linear as jl

    m = jl.modes(Sxx, Syx)                                # directions, lambda, rho
    t = jl.critical_time(m.lam, m.rho, depth=4, layer_scale=0.1, objective="jepa")

After Littwin et al., "How JEPA Avoids Noisy Features: The Implicit Bias of Deep Linear Self
Distillation Networks" (NeurIPS 2024, arXiv 2407.03475). Names are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import Any

# Public name -> module that defines it.
_WHERE = {
    "Analysis": "jepa_linear.analysis",
    "AnalysisConfig": "jepa_linear.presets",
    "Covariances": "jepa_linear.modal",
    "HeldOut": "jepa_linear.sampling",
    "Masks": "jepa_linear.data.views",
    "MatrixPath": "jepa_linear.flows",
    "ModalFlow": "jepa_linear.variants",
    "Modes": "jepa_linear.modal",
    "Phase": "jepa_linear.sweep",
    "PhaseDiagram": "jepa_linear.sweep",
    "Resamples": "jepa_linear.sampling",
    "Status": "jepa_linear.times",
    "Temporal": "jepa_linear.generative",
    "Views": "jepa_linear.data.views",
    "analyse": "jepa_linear.analysis",
    "balancedness": "jepa_linear.starts",
    "bootstrap": "jepa_linear.sampling",
    "collapse_end": "jepa_linear.variants",
    "collapse_invariant": "jepa_linear.variants",
    "covariances": "jepa_linear.flows",
    "critical_time": "jepa_linear.times",
    "crossing_time": "jepa_linear.variants",
    "curve": "jepa_linear.dynamics",
    "deep_ratio": "jepa_linear.limits",
    "default_level": "jepa_linear.times",
    "descend": "jepa_linear.flows",
    "effective_samples": "jepa_linear.sampling",
    "ema_jacobian": "jepa_linear.variants",
    "fixed_point": "jepa_linear.times",
    "flow": "jepa_linear.flows",
    "from_covariances": "jepa_linear.data.known",
    "from_modes": "jepa_linear.data.known",
    "frozen_target_plateau": "jepa_linear.variants",
    "gradients": "jepa_linear.flows",
    "held_out": "jepa_linear.sampling",
    "initial_weights": "jepa_linear.starts",
    "inversion_boundary": "jepa_linear.limits",
    "lagged": "jepa_linear.data.views",
    "leakage": "jepa_linear.generative",
    "leakage_path": "jepa_linear.generative",
    "log_time_variance": "jepa_linear.sampling",
    "loss": "jepa_linear.flows",
    "masked": "jepa_linear.data.views",
    "masked_pairs": "jepa_linear.generative",
    "masking_model": "jepa_linear.generative",
    "modal_amplitudes": "jepa_linear.starts",
    "modal_flow": "jepa_linear.variants",
    "modes": "jepa_linear.modal",
    "order": "jepa_linear.times",
    "order_probability": "jepa_linear.sampling",
    "paired": "jepa_linear.data.views",
    "phase_diagram": "jepa_linear.sweep",
    "random_rotation": "jepa_linear.starts",
    "ranks": "jepa_linear.times",
    "rate": "jepa_linear.dynamics",
    "read": "jepa_linear.data.inputs",
    "regression_eigenvalues": "jepa_linear.modal",
    "samples_needed": "jepa_linear.sampling",
    "sensitivity": "jepa_linear.times",
    "small_scale_gap": "jepa_linear.limits",
    "stable_rate": "jepa_linear.flows",
    "status": "jepa_linear.times",
    "suppression_depth": "jepa_linear.limits",
    "temporal_model": "jepa_linear.generative",
    "temporal_pairs": "jepa_linear.generative",
    "temporal_series": "jepa_linear.generative",
    "trajectory": "jepa_linear.dynamics",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module jepa_linear has no attribute {name}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
