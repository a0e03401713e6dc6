"""What jepa-ecg plugs into the `jepa` command."""

from __future__ import annotations

from jepa_core.domain import Domain, Verb

_PRESETS = "jepa_ecg.presets:PRETRAIN"
_DOWNSTREAM = "jepa_ecg.presets:DOWNSTREAM"

DOMAIN = Domain(
    name="ecg",
    summary="Pre-train on unlabelled 12-lead ECGs, then probe, fine-tune, embed and predict.",
    verbs=(
        Verb(
            "demo",
            "the whole job on generated records: pre-train, evaluate, report",
            "jepa_ecg.experiments.demo:Demo",
        ),
        Verb("data check", "read every record and say what is wrong", "jepa_ecg.verbs.data:Check"),
        Verb("data build", "build a corpus from your files", "jepa_ecg.verbs.data:Build"),
        Verb("data fetch", "download a public data set", "jepa_ecg.verbs.data:Fetch"),
        Verb("info", "a preset's sizes and numbers", "jepa_ecg.verbs.info:Info", _PRESETS),
        Verb(
            "pretrain",
            "train an encoder without labels",
            "jepa_ecg.verbs.pretrain:Pretrain",
            _PRESETS,
        ),
        Verb("probe", "evaluate a frozen encoder", "jepa_ecg.verbs.probe:Probe"),
        Verb(
            "finetune",
            "train a classifier on an encoder",
            "jepa_ecg.verbs.finetune:Finetune",
            _DOWNSTREAM,
        ),
        Verb("embed", "turn records into embeddings (Parquet)", "jepa_ecg.verbs.embed:Embed"),
        Verb("predict", "score records with a classifier", "jepa_ecg.verbs.predict:Predict"),
        Verb(
            "reproduce",
            "the paper's claim on real records, with controls",
            "jepa_ecg.experiments.reproduce:Reproduce",
        ),
        Verb("report", "write a run's report again", "jepa_ecg.verbs.report:Report"),
    ),
)
