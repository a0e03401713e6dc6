"""What jepa-linear plugs into the `jepa` command."""

from __future__ import annotations

from jepa_core.domain import Domain, Verb

_PRESETS = "jepa_linear.presets:ANALYSIS"

DOMAIN = Domain(
    name="linear",
    summary="What latent prediction learns first, what reconstruction does, and what never.",
    verbs=(
        Verb(
            "demo",
            "the theory in pictures, and one analysis of generated data checked by simulation",
            "jepa_linear.experiments.demo:Demo",
        ),
        Verb("data check", "read a file and say what is in it", "jepa_linear.verbs.data:Check"),
        Verb(
            "analyse",
            "what each objective would learn first on your data",
            "jepa_linear.verbs.analyse:Analyse",
            _PRESETS,
        ),
        Verb(
            "curves",
            "learning curves of modes at given times",
            "jepa_linear.verbs.curves:Curves",
        ),
        Verb(
            "phase",
            "who is first over a grid of modes, depths and scales",
            "jepa_linear.verbs.phase:Phase",
        ),
        Verb(
            "info",
            "a preset's numbers and its critical times",
            "jepa_linear.verbs.info:Info",
            _PRESETS,
        ),
        Verb(
            "reproduce",
            "the paper's claims, on formulas and on real data",
            "jepa_linear.experiments.reproduce:Reproduce",
        ),
        Verb("report", "write a run's report again", "jepa_linear.verbs.report:Report"),
    ),
)
