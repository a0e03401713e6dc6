"""What jepa-vision plugs into the `jepa` command."""

from __future__ import annotations

from jepa_core.domain import Domain, Verb

_PRESETS = "jepa_vision.presets:PRETRAIN"
_DOWNSTREAM = "jepa_vision.downstream:DOWNSTREAM"

DOMAIN = Domain(
    name="vision",
    summary="Pre-train on unlabelled images, then probe, segment, fine-tune, embed and predict.",
    verbs=(
        Verb(
            "demo",
            "the whole job on built-in images: pre-train, evaluate, report",
            "jepa_vision.experiments.demo:Demo",
        ),
        Verb(
            "data check", "read every image and say what is wrong", "jepa_vision.verbs.data:Check"
        ),
        Verb("data build", "build a corpus from your images", "jepa_vision.verbs.data:Build"),
        Verb("data fetch", "download a public data set", "jepa_vision.verbs.data:Fetch"),
        Verb("info", "a preset's sizes and numbers", "jepa_vision.verbs.info:Info", _PRESETS),
        Verb(
            "pretrain",
            "train an encoder without labels",
            "jepa_vision.verbs.pretrain:Pretrain",
            _PRESETS,
        ),
        Verb(
            "probe",
            "evaluate an encoder beside its untrained twin and raw pixels",
            "jepa_vision.verbs.probe:Probe",
        ),
        Verb(
            "finetune",
            "train a classifier on an encoder",
            "jepa_vision.verbs.finetune:Finetune",
            _DOWNSTREAM,
        ),
        Verb("embed", "turn images into embeddings (Parquet)", "jepa_vision.verbs.embed:Embed"),
        Verb("predict", "classify images", "jepa_vision.verbs.predict:Predict"),
        Verb(
            "import",
            "turn an official or a transformers checkpoint into an encoder folder",
            "jepa_vision.verbs.official:Import",
        ),
        Verb(
            "export",
            "write an encoder for the official programs or for transformers",
            "jepa_vision.verbs.official:Export",
        ),
        Verb(
            "reproduce",
            "the paper's claim on real images, with controls",
            "jepa_vision.experiments.reproduce:Reproduce",
        ),
        Verb("report", "write a run's report again", "jepa_vision.verbs.report:Report"),
    ),
)
