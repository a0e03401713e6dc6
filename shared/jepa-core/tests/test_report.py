"""The report: what is on the page, and what can never be on it."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from jepa_core.errors import DataError
from jepa_core.health import AlarmState, quantities, update, verdict
from jepa_core.health.quantities import Observation
from jepa_core.report import Table, figures, pictures, write_noted_report, write_report
from jepa_core.report.quantities import HEALTH
from jepa_core.run import Run

VOID = {"meta", "img", "br", "hr", "link", "input"}
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)> {{ 7*7 }} $\\frac{$ ]]> </style>'


class Page(HTMLParser):
    """A strict reader: every tag is closed in its place; keeps tags, attributes and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(self.source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if not self._open or self._open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def new_run(path: Path, **changes) -> Run:
    record = {
        "domain": "ecg",
        "verb": "demo",
        "version": "0.1.0",
        "command": "jepa ecg demo --out runs/x",
        "config": {"preset": "nano", "steps": 40},
    }
    return Run.create(path, {**record, **changes})


def health_file(run: Run, **changes) -> None:
    run.save_health(
        {
            "steps": 40,
            "done": 40,
            "chosen_step": 36,
            "latest_step": 40,
            "step_by_snr": 36,
            "alarm_step": -1,
            "reason": "",
            "warning_step": -1,
            "note": "",
            "advice": "",
            "checkpoints": [],
            **changes,
        }
    )


def train(run: Run, steps: int = 40) -> None:
    for step in range(1, steps + 1):
        run.append_metrics({"step": step, "loss": 1 / step, "learning_rate": 1e-3})
        if step % 4 == 0:
            run.append_metrics({"step": step, "health/unexplained": 2 / step, "health/signal": 0.5})


@pytest.fixture
def full(tmp_path: Path) -> Run:
    run = new_run(tmp_path / "run")
    train(run)
    health_file(run)
    run.save_table("probe", Table("Probe", ("features", "AUC"), [["trained", 0.9]], ("A note.",)))
    figures.curves({"a": ([0, 1], [1, 2])}).savefig(run.figures / "one_mask.png")
    pictures.save(figures.curves({"a": ([0, 1], [1, 2])}), run.figures / "b.svg", "Drawn later.")
    return run


def a_map() -> Figure:
    rng = np.random.default_rng(0)
    return figures.embedding_map(rng.normal(size=(40, 5)), [["x", "y"][i % 2] for i in range(40)])


def test_the_page_tells_the_whole_run(full):
    path = write_report(
        full, title="A title", summary="First.\n\nSecond.", figures=[("A map.", a_map())]
    )
    page = Page(path)
    assert path == full.path / "report.html"
    for words in (
        "A title First. Second.",
        "No sign of collapse.",
        "the predictor explains 95 % of what tells samples apart",
        "(unexplained 0.5 at the start, 0.05 at the end)",
        "step 36, where the least was unexplained; the latest is step 40.",
        "features AUC trained 0.900 A note.",
        "A map.",
        "one mask",
        "Drawn later.",
        "learning rate",
        HEALTH["unexplained"].meaning,
        "jepa ecg demo --out runs/x",
        '"preset": "nano"',
        "jepa-core",
        "torch",
    ):
        assert words in page.text, words
    assert len(page.named("svg")) == 1 + 4
    assert len(page.named("img")) == 2


def test_the_page_needs_nothing_from_elsewhere(full):
    page = Page(write_report(full, title="t", summary="s", figures=[("map", a_map())]))
    assert "://" not in page.source
    assert "@import" not in page.source
    assert "xmlns" not in page.source
    assert set(re.findall(r"url\((.)", page.source)) <= {"#"}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("href", "src", "xlink:href", "srcset", "action", "data"):
                assert value is not None
                assert value.startswith(("#", "data:image/"))
    (policy,) = [m for m in page.named("meta") if m.get("http-equiv")]
    assert str(policy["content"]).startswith("default-src 'none';")


def test_what_is_referred_to_inside_the_page_is_there(full):
    page = Page(write_report(full, title="t", summary="s", figures=[("map", a_map())]))
    there = {attributes.get("id") for _, attributes in page.tags} - {None}
    used = {
        name
        for _, attributes in page.tags
        for value in attributes.values()
        if value
        for name in re.findall(r"url\(#([^)]*)\)|^#(.+)", value)
        for name in name
        if name
    }
    assert used <= there


def test_hostile_words_stay_words(tmp_path):
    run = new_run(tmp_path / "run", config={"name": HOSTILE, HOSTILE: [HOSTILE]}, command=HOSTILE)
    run.append_metrics({"step": 1, HOSTILE: 1.0, f"health/{HOSTILE}": 2.0})
    health_file(run, note=HOSTILE, advice=HOSTILE)
    run.save_table("t", Table(HOSTILE, (HOSTILE,), [[HOSTILE]], (HOSTILE,)))
    svg = f'<svg xmlns="s"><script>alert(1)</script><text>{HOSTILE}</text></svg>'
    (run.figures / "bad.svg").write_text(svg)
    (run.figures / "bad.txt").write_text(HOSTILE)
    labels = [HOSTILE, "_hidden", "plain"] * 5
    drawn = [
        (HOSTILE, figures.embedding_map(np.eye(15), labels, title=HOSTILE)),
        (HOSTILE, figures.bars_with_intervals([HOSTILE], [0.5], xlabel=HOSTILE)),
        (HOSTILE, figures.curves({HOSTILE: ([0, 1], [0, 1]), "b": ([0, 1], [1, 0])})),
    ]
    page = Page(write_report(run, title=HOSTILE, summary=HOSTILE, figures=drawn))
    assert page.named("script") == []
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert [str(img["src"])[:26] for img in page.named("img")] == ["data:image/svg+xml;base64,"]
    assert len(page.named("style")) == 1
    assert page.source.count("{{ 7*7 }}") > 10
    assert " ".join(HOSTILE.split()) in page.text


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    page = Page(write_report(new_run(tmp_path / "run"), title="Begun", summary=""))
    assert "Begun" in page.text
    for heading in ("Results", "Pictures", "Training", "Health", "collapse"):
        assert heading not in page.text


def test_missing_folders_are_no_error(tmp_path):
    run = new_run(tmp_path / "run")
    run.results.rmdir()
    run.figures.rmdir()
    write_report(run, title="t", summary="s")


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"alarm_step": 20, "reason": "const"}, "alarm", "Alarm at step 20. The features stopped"),
        ({"alarm_step": 20, "reason": "lost"}, "alarm", "The predictions are worse than the mean"),
        ({"warning_step": 20}, "warning", "Warning at step 20."),
        ({"note": "not learning yet"}, "note", "Not learning yet."),
        ({"alarm_step": 1200, "reason": "nonfinite", "warning_step": 8}, "alarm", "step 1,200"),
        ({"advice": "look at the data"}, "good", "What to try: look at the data."),
        ({"done": 30}, "good", "The run ended after 30 of 40 steps."),
        ({"chosen_step": 12, "step_by_snr": 8}, "good", "signal to noise would take 8."),
        (
            {"chosen_step": 40, "step_by_snr": None},
            "good",
            "Checkpoint taken: step 40, the latest.",
        ),
    ],
)
def test_the_verdict_is_said_in_words(tmp_path, changes, level, words):
    run = new_run(tmp_path / "run")
    train(run)
    health_file(run, **changes)
    page = Page(write_report(run, title="t", summary="s"))
    assert words in page.text
    assert f"verdict {level}" in [attributes.get("class") for attributes in page.named("section")]
    assert "-1" not in page.text


def test_a_run_nobody_looked_at_is_not_called_healthy(tmp_path):
    run = new_run(tmp_path / "run")
    run.append_metrics({"step": 1, "loss": 1.0})
    health_file(run, step_by_snr=None)
    page = Page(write_report(run, title="t", summary="s"))
    assert "No sign of collapse" not in page.text
    assert "were not looked at" in page.text


def test_alarm_warning_and_checkpoint_are_marked_in_every_curve(tmp_path):
    run = new_run(tmp_path / "run")
    train(run)
    health_file(run, alarm_step=30, reason="const", warning_step=28, chosen_step=24)
    page = Page(write_report(run, title="t", summary="s"))
    panels = page.source.count('<figure class="panel">')
    assert panels == 4
    for words in ("warning (step 28)", "alarm (step 30)", "checkpoint taken (step 24)"):
        assert page.text.count(words) == 2
    for dashes in ("stroke-dasharray: 5.2,2.6", "stroke-dasharray: 1.3,1.95"):
        assert page.source.count(dashes) == panels


def test_values_that_are_not_finite_are_counted_and_leave_a_gap(tmp_path):
    run = new_run(tmp_path / "run")
    for step, loss in enumerate((1.0, float("nan"), float("inf"), 0.5)):
        run.append_metrics({"step": step, "loss": loss, "never": float("nan"), "word": "x"})
    page = Page(write_report(run, title="t", summary="s"))
    assert "2 values are not finite." in page.text
    assert "loss 1 → 0.5" in page.text
    assert "never" not in page.text


def test_every_quantity_of_the_health_is_explained():
    import torch

    rng = torch.Generator().manual_seed(0)
    tokens = torch.randn(8, 4, 3, generator=rng)
    views = torch.randn(8, 2, 3, generator=rng)
    seen = Observation(tokens, tokens[:, :2], tokens[:, :2], torch.arange(2).expand(8, 2), views)
    assert set(quantities(seen)) == set(HEALTH)


def test_the_reasons_of_the_alarm_all_have_words(tmp_path):
    state = AlarmState()
    for step in range(4):
        state = update(state, step, 10, 0.0, 1.0, 1.0)
    now = verdict(state)
    run = new_run(tmp_path / "run")
    health_file(run, alarm_step=now.alarm_step, reason=now.reason, advice=now.advice)
    text = Page(write_report(run, title="t", summary="s")).text
    assert "went wrong" not in text
    assert now.advice in text


def test_the_page_can_be_mailed_however_much_there_is(tmp_path):
    run = new_run(tmp_path / "run")
    rng = np.random.default_rng(0)
    lines = [
        json.dumps(
            {"step": step, **{f"{kind}{i}": x for kind in ("m", "health/h") for i in range(30)}}
        )
        for step, x in enumerate(rng.lognormal(size=3000).tolist())
    ]
    run.metrics_path.write_text("\n".join(lines) + "\n")
    for index in range(3):
        noise = rng.integers(0, 256, (600, 1600, 3), dtype=np.uint8)
        Image.fromarray(noise).save(run.figures / f"noise-{index}.png")
    page = Page(write_report(run, title="t", summary="s"))
    assert len(page.source.encode()) < 1_500_000
    assert page.source.count('<figure class="panel">') == 48
    assert "Too large for this file" in page.text
    assert "(noise-2.png)" in page.text


def test_a_long_curve_is_drawn_as_a_band(tmp_path):
    x = np.arange(100_000)
    svg = figures.to_svg(figures.curves({"a": (x, np.sin(x / 1e4))}), "a")
    assert len(svg) < 40_000
    steps, middle, low, high = figures._thin(x.astype(float), np.where(x % 100, 1.0, 50.0))
    assert len(steps) == 200
    assert (np.diff(steps) > 0).all()
    assert (middle == 1).all()
    assert ((low <= middle) & (middle <= high)).all()


def test_pictures_shrink_to_the_page_and_keep_their_kind(tmp_path):
    Image.new("RGB", (4000, 1000), "red").save(tmp_path / "a.png")
    Image.new("RGB", (4000, 1000), "red").save(tmp_path / "b.jpg")
    shown, left_out = pictures.embed(pictures.in_folder(tmp_path), 10**6)
    assert left_out == []
    for picture, kind in zip(shown, ("png", "jpeg"), strict=True):
        head, data = re.findall(r'src="data:image/(\w+);base64,([^"]+)"', picture.html)[0]
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert head == kind
        assert image.size == (1600, 400)


def test_a_file_that_is_no_picture_is_named(tmp_path):
    run = new_run(tmp_path / "run")
    (run.figures / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.png"):
        write_report(run, title="t", summary="s")


@pytest.mark.parametrize("name", ["results/t.json", "health.json", "metrics.jsonl"])
def test_a_broken_file_of_the_run_is_named(tmp_path, name):
    run = new_run(tmp_path / "run")
    (run.path / name).write_text("{not json\n")
    with pytest.raises(DataError, match=re.escape(Path(name).name)):
        write_report(run, title="t", summary="s")


def test_a_picture_given_by_path_is_not_shown_twice(full):
    given = [("Given.", full.figures / "one_mask.png")]
    page = Page(write_report(full, title="t", summary="s", figures=given))
    assert "Given." in page.text
    assert "one mask" not in page.text


def test_a_figure_of_the_report_takes_the_colours_of_the_page():
    svg = figures.to_svg(figures.bars_with_intervals(["a"], [0.5], [(0.4, 0.6)]), "bars")
    assert "var(--series-1)" in svg
    assert "#0072b2" not in svg
    assert "font-family" not in svg
    own = Figure()
    own.add_subplot().plot([0, 1], color="#0072b2")
    assert "#0072b2" in figures.to_svg(own, "own")
    (picture,) = pictures.embed([("own", own)], 10**6)[0]
    assert picture.paper


def test_equal_figures_give_equal_bytes():
    assert figures.to_svg(a_map(), "a") == figures.to_svg(a_map(), "a")


def test_the_style_is_left_behind():
    import matplotlib

    before = dict(matplotlib.rcParams)
    a_map()
    assert dict(matplotlib.rcParams) == before


def legend(figure: Figure) -> list[str]:
    found = figure.axes[0].get_legend()
    return [] if found is None else [text.get_text() for text in found.get_texts()]


def test_rare_classes_of_a_map_are_drawn_as_other():
    labels = [str(i) for i in range(8) for _ in range(10 - i)]
    drawn = figures.embedding_map(np.random.default_rng(0).normal(size=(len(labels), 3)), labels)
    assert sorted(legend(drawn)) == ["0", "1", "2", "3", "4", "other"]
    few = figures.embedding_map(np.eye(6), list("abcdef"))
    assert legend(few) == list("abcdef")


def test_a_map_shows_the_directions_of_most_variance():
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(200, 6)) * np.array([1, 1, 9, 1, 5, 1]) + 100
    drawn = figures.embedding_map(Z)
    (dots,) = drawn.axes[0].collections
    plane = np.asarray(dots.get_offsets())
    assert abs(np.corrcoef(plane[:, 0], Z[:, 2])[0, 1]) > 0.98
    assert abs(np.corrcoef(plane[:, 1], Z[:, 4])[0, 1]) > 0.95
    share = np.linalg.eigvalsh(np.cov(Z.T))[::-1]
    assert drawn.axes[0].get_xlabel() == f"PC 1 ({share[0] / share.sum():.0%})"


@pytest.mark.parametrize("Z", [np.ones((5, 3)), np.ones((5, 1)), np.eye(3)])
def test_a_map_of_degenerate_embeddings_is_still_a_map(Z):
    figures.to_svg(figures.embedding_map(Z, np.linspace(0, 1, len(Z))), "map")


def test_a_map_by_tsne_is_the_same_twice():
    Z = np.random.default_rng(0).normal(size=(40, 5))
    first, second = (
        np.asarray(figures.embedding_map(Z, method="tsne").axes[0].collections[0].get_offsets())
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


def test_the_summary_of_a_noted_report_is_what_its_tables_say_first(tmp_path):
    run = new_run(tmp_path / "run")
    run.save_table("1-late", Table("Late", ("a",), [[1]], ("It holds.", "Over five seeds.")))
    said = Page(write_noted_report(run, {"demo": "The whole job"})).text
    assert "The whole job, in run. It holds." in said
    run.save_table("0-early", Table("Early", ("a",), [[1]], ("It learned.",)))
    run.save_table("2-silent", Table("silent", ("a",), [[1]]))
    text = Page(write_noted_report(run, {"demo": "The whole job"})).text
    assert "jepa ecg demo: run" in text
    assert "The whole job, in run. Early. It learned. Late. It holds." in text
    assert "demo, in run." in Page(write_noted_report(run, {})).text


def test_labels_must_be_as_many_as_embeddings():
    with pytest.raises(ValueError, match="2 labels for 5"):
        figures.embedding_map(np.eye(5), ["a", "b"])
    with pytest.raises(ValueError, match="three"):
        figures.embedding_map(np.eye(2))


def test_an_undefined_bar_says_so():
    drawn = figures.bars_with_intervals(["a", "b"], [np.nan, 0.7], [(np.nan, np.nan), (0.6, 0.8)])
    assert len(drawn.axes[0].patches) == 1
    assert "undefined" in figures.to_svg(drawn, "bars")


def test_the_scale_of_a_curve_follows_its_range():
    def scale(values, **options):
        return figures.curves({"a": (range(len(values)), values)}, **options).axes[0].get_yscale()

    assert scale([1, 100]) == "log"
    assert scale([1, 2]) == "linear"
    assert scale([0, 100]) == "linear"
    assert scale([1, 100], log=False) == "linear"
    assert scale([float("nan")]) == "linear"


def test_a_choice_for_want_of_an_earlier_one_is_not_said_to_be_before_the_warning(
    tmp_path: Path,
) -> None:
    run = new_run(tmp_path / "run")
    train(run)
    looked = [{"step": 20, "unexplained": 0.9}, {"step": 40, "unexplained": 0.85}]
    health_file(run, chosen_step=20, warning_step=16, checkpoints=looked)
    page = write_report(run, title="t", summary="s").read_text(encoding="utf-8")
    assert "step 20, the earliest, because none was well before the alarm or warning" in page


def test_a_choice_held_back_by_a_warning_is_not_called_the_least_unexplained(
    tmp_path: Path,
) -> None:
    run = new_run(tmp_path / "run")
    train(run)
    looked = [{"step": 20, "unexplained": 0.9}, {"step": 40, "unexplained": 0.85}]
    health_file(run, chosen_step=20, warning_step=30, checkpoints=looked)
    page = write_report(run, title="t", summary="s").read_text(encoding="utf-8")
    assert "step 20, where the least was unexplained well before the alarm or warning" in page
    health_file(run, chosen_step=40, checkpoints=looked)
    page = write_report(run, title="t", summary="s").read_text(encoding="utf-8")
    assert "well before" not in page
