"""What jepa-tabular plugs into the `jepa` command."""

from __future__ import annotations

from jepa_core.domain import Domain, Verb

_PRESETS = "jepa_tabular.presets:PRETRAIN"

DOMAIN = Domain(
    name="tabular",
    summary="Pre-train on unlabelled tables, then probe, fine-tune, embed and predict.",
    verbs=(
        Verb(
            "demo",
            "the whole job on built-in and generated tables: pre-train, evaluate, report",
            "jepa_tabular.experiments.demo:Demo",
        ),
        Verb("data check", "read a table and say what is wrong", "jepa_tabular.verbs.data:Check"),
        Verb("data build", "turn a table into a corpus on disk", "jepa_tabular.verbs.data:Build"),
        Verb("data fetch", "download a public table", "jepa_tabular.verbs.data:Fetch"),
        Verb("info", "a preset's sizes and numbers", "jepa_tabular.verbs.info:Info", _PRESETS),
        Verb(
            "pretrain",
            "train an encoder without labels",
            "jepa_tabular.verbs.pretrain:Pretrain",
            _PRESETS,
        ),
        Verb(
            "probe",
            "evaluate an encoder beside raw columns, its untrained twin and boosted trees",
            "jepa_tabular.verbs.probe:Probe",
        ),
        Verb(
            "finetune",
            "train a classifier or regressor on an encoder",
            "jepa_tabular.verbs.finetune:Finetune",
        ),
        Verb("embed", "turn rows into embeddings (Parquet)", "jepa_tabular.verbs.embed:Embed"),
        Verb("predict", "predict with a fine-tuned model", "jepa_tabular.verbs.embed:Predict"),
        Verb(
            "import",
            "turn an official checkpoint into an encoder folder",
            "jepa_tabular.verbs.official:Import",
        ),
        Verb(
            "reproduce",
            "the paper's claim on real tables, with controls",
            "jepa_tabular.experiments.reproduce:Reproduce",
        ),
        Verb("report", "write a run's report again", "jepa_tabular.verbs.report:Report"),
    ),
)
