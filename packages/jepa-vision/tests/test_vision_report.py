"""What a run's report shows, and from where."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jepa_core.report.table import Table
from jepa_core.run import Run
from jepa_core.training.sampler import Epochs
from jepa_vision import report
from jepa_vision.data.images import ArrayImages
from jepa_vision.figures import mask_figure
from jepa_vision.presets import NANO, DMTConfig, PretrainConfig
from jepa_vision.report import save_mask_figure, save_token_figures, spread_patches, write_report
from jepa_vision.source import ImageSource

CONFIG = replace(
    NANO,
    method="dmt-jepa",
    model=replace(NANO.model, image=(48, 64), dim=16, heads=2, predictor_dim=8),
    masks=replace(NANO.masks, min_keep=2),
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    record = {
        "domain": "vision",
        "verb": "pretrain",
        "version": "0",
        "command": "jepa vision pretrain",
        "config": {},
    }
    return Run.create(tmp_path / "a run", record)


def images(n: int = 5, channels: int = 3) -> ArrayImages:
    g = np.random.default_rng(0)
    return ArrayImages(g.integers(0, 255, (n, 70, 90, channels), np.uint8))


def test_the_summary_is_the_first_note_of_every_table(run):
    run.save_table("b", Table("second", ("a",), [[1]], ("Second <said>.", "small print")))
    run.save_table("a", Table("first", ("a",), [[1]], ("First said.",)))
    run.save_table("c", Table("third", ("a",), [[1]]))
    page = write_report(run).read_text()
    assert "An encoder trained without labels, in a run." in page
    assert page.index("First said.") < page.index("Second &lt;said&gt;.")
    assert "jepa vision pretrain: a run" in page


def test_locality_is_drawn_where_the_run_has_measured_it(run):
    write_report(run)
    assert not (run.figures / "locality.png").exists()
    shares = {"share_total": 0.5, "share_interaction": 0.6, "share_position": 0.1}
    line = {f"health/{name}": value for name, value in (shares | {"share_sample": 0.3}).items()}
    run.append_metrics({"step": 0, **line})
    page = write_report(run).read_text()
    assert (run.figures / "locality.png").exists()
    assert "Where the variance of the targets lies." in page


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_masks_are_those_of_the_runs_first_step(run, channels, monkeypatch):
    seen = {}

    def watched(*given):
        seen["given"] = given
        return mask_figure(*given)

    monkeypatch.setattr(report, "mask_figure", watched)
    statistics = {"mean": (0.4,) * channels, "std": (0.3,) * channels}
    config = replace(
        CONFIG,
        model=replace(CONFIG.model, channels=channels),
        augment=replace(CONFIG.augment, **statistics),
        batch_size=5,
    )
    some = images(channels=channels)
    path = save_mask_figure(run, some, config, seed=3)
    with Image.open(path) as picture:
        assert min(picture.size) > 100
    assert path.with_suffix(".txt").read_text().startswith("Crops of three images")
    shown, contexts, targets, grid = seen["given"]
    assert grid == (6, 8)
    assert [one.shape for one in shown] == [(48, 64, channels)] * 3
    draw = Epochs(5, 5, 3).draw(0)
    batch = ImageSource(some, config, seed=3).batch(draw)
    for place, image in enumerate((0, 2, 4)):
        slot = int(np.flatnonzero(draw.ids == image)[0])
        np.testing.assert_array_equal(targets[place], batch["target"][:, slot])
        hidden = np.setdiff1d(np.arange(48), contexts[place])
        assert set(targets[place].ravel()) <= set(hidden)
        pixels = batch["image"][slot].permute(1, 2, 0).numpy() * 0.3 + 0.4
        np.testing.assert_allclose(shown[place] / 255, pixels, atol=0.003)


@pytest.mark.parametrize(
    ("config", "drawn"),
    [
        (CONFIG, {"tokens", "similarity", "neighbours"}),
        (replace(CONFIG, dmt=DMTConfig(border="wrap", window=5)), {"neighbours"}),
        (replace(CONFIG, method="i-jepa"), {"tokens", "similarity"}),
    ],
    ids=["dmt", "wide window", "i-jepa"],
)
def test_tokens_and_neighbours_are_drawn(run, config: PretrainConfig, drawn):
    g = np.random.default_rng(0)
    crops = g.integers(0, 255, (2, 48, 64, 3), np.uint8)
    tokens = {name: g.normal(size=(2, 48, 16)).astype(np.float32) for name in ("a", "b")}
    save_token_figures(run, crops, tokens, tokens, config)
    found = {path.stem for path in run.figures.glob("*.png")}
    assert drawn <= found
    assert ("neighbours" in found) == (config.method == "dmt-jepa")


@pytest.mark.parametrize("grid", [(2, 2), (8, 8), (3, 20)])
def test_the_patches_shown_lie_in_the_grid_apart(grid):
    found = spread_patches(grid)
    assert all(0 <= patch < grid[0] * grid[1] for patch in found)
    assert len(set(found)) >= 2
