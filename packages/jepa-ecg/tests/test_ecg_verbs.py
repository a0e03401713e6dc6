"""`jepa ecg ...` as a user runs it: what it writes, and one line for every mistake."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jepa_core.run import Run
from jepa_ecg.data.corpus import Corpus
from jepa_ecg.data.wfdb_record import read_record
from jepa_ecg.evaluation import crop_logits, probabilities, split_task
from jepa_ecg.inference import embed, load, load_classifier


def table(path: Path, column: str = "embedding") -> tuple[list[str], np.ndarray]:
    """Ids and one column of vectors."""
    read = pq.read_table(path)
    return read["id"].to_pylist(), np.array(read[column].to_pylist())


def test_info_counts_the_parameters_of_the_paper(jepa):
    said = json.loads(jepa("info", "--preset", "vit-s", "--json").out)
    assert said["parameters"]["encoder"] == 14_277_888
    assert said["parameters"]["predictor"] == 3_689_856
    assert said["shapes"]["prediction and target"] == [[4, 170, 384], [4, 150, 384]]
    assert said["config"]["steps"] == 100_000


def test_info_shows_what_a_flag_overrides(jepa):
    said = jepa("info", "--preset", "nano", "--dim", 32)
    assert said.code == 0
    assert "model.dim" in said.out


@pytest.mark.parametrize("verb", ["embed", "predict", "probe", "finetune", "data build"])
def test_flags_have_no_prefix(jepa, verb):
    said = jepa(*verb.split(), "--help")
    assert said.code == 0
    assert re.findall(r"--[a-z-]+", said.out)
    assert not re.search(r"--[a-z-]+\.[a-z]", said.out)


def test_check_counts_what_it_finds(jepa, simulated):
    said = jepa("data", "check", simulated, "--fs", 100)
    assert said.code == 0
    assert "labelled, superdiagnostic" in said.out
    assert "100 Hz" in said.out


def test_check_names_the_record_that_cannot_be_read(jepa, simulated, tmp_path):
    for suffix in ("hea", "dat"):
        for number in (1, 2):
            name = f"0000{number}_hr.{suffix}"
            shutil.copy(simulated / "records500/00000" / name, tmp_path / name)
    (tmp_path / "00002_hr.dat").write_bytes(b"short")
    said = jepa("data", "check", tmp_path)
    assert said.code == 2
    assert "00002_hr" in said.out
    assert said.err.startswith("error: 1 of 2 records cannot be read; ")


def test_build_leaves_out_what_is_listed_and_absent_only_when_asked(jepa, simulated, tmp_path):
    root = tmp_path / "ptb-xl"
    shutil.copytree(simulated, root)
    for path in (root / "records100/00000").glob("0000[3-9]*"):
        path.unlink()
    words = ["data", "build", root, "--out", tmp_path / "corpus", "--fs", 100, "--source-fs", 100]
    said = jepa(*words)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "7 listed records do not exist" in said.err
    assert "00003_lr" in said.err
    said = jepa(*words, "--on-error", "skip")
    assert said.code == 0
    assert f"{tmp_path / 'corpus'}: 73 records at 100 Hz" in said.out
    assert f"7 records left out, see {tmp_path / 'corpus' / 'skipped.csv'}" in said.out
    said = jepa("data", "check", root, "--fs", 100)
    assert said.code == 2
    assert "00003_lr" not in said.err
    assert said.err.startswith("error: 7 of 80 records cannot be read; download or mend them")


def test_fetch_downloads_the_parts_asked_for(jepa, tmp_path):
    site = tmp_path / "site"
    files = {"ptbxl_database.csv": b"a", "records100/x.dat": b"b", "records500/x.dat": b"c"}
    for name, content in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_bytes(content)
    (site / "SHA256SUMS.txt").write_text(
        "".join(f"{hashlib.sha256(c).hexdigest()} {name}\n" for name, c in files.items())
    )

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        words = ["data", "fetch", "ptb-xl", "--out", tmp_path / "got", "--base-url", address]
        said = jepa(*words, "--select", "records100")
        server.shutdown()
    assert said.code == 0
    assert "2 files downloaded" in said.out
    assert (tmp_path / "got/records100/x.dat").read_bytes() == b"b"
    assert not (tmp_path / "got/records500").exists()
    said = jepa("data", "fetch", "ptbxl", "--out", tmp_path / "got")
    assert said.code == 2
    assert "did you mean ptb-xl?" in said.err


def test_a_run_folder_holds_what_was_asked_and_what_came(run):
    for name in ("config.json", "metrics.jsonl", "encoder/model.safetensors", "report.html"):
        assert (run / name).stat().st_size > 0
    record = json.loads((run / "config.json").read_text())
    assert record["config"]["config"]["model"]["dim"] == 16
    assert record["config"]["preset"] == "nano"
    assert (
        json.loads((run / "encoder/config.json").read_text())["sources"]["ptb-xl"]["records"] == 80
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--preset", "vit-s"], "the corpus has 100 Hz and the model 500; build one with"),
        (["--leads", "I", "II"], "the model I II; build one with jepa ecg data build --leads I II"),
        (["--folds", "11"], "folds[0] is 11; allowed: >= 0 and <= 10"),
        (["--samples", "5000"], "none of 80 records is in folds 0, 1, 2"),
        (["--databases", "mimic-iv-ecg", "1"], "mimic-iv-ecg, which the corpus lacks; it holds"),
        (["--keep", "0.5", "0.2"], "keep is [0.5, 0.2]"),
        (["--patch", "7"], "samples is 500; allowed: a multiple of patch (7)"),
        (["--seed", "-1"], "seed is -1"),
        (["--resume", "--overwrite"], "choose one"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_recipe_that_cannot_run_is_one_line_and_leaves_no_folder(
    jepa, corpus, tmp_path, words, says
):
    out = tmp_path / "run"
    said = jepa("pretrain", "--preset", "nano", "--data", corpus, "--out", out, *words)
    assert said.code == 2
    assert said.err.count("\n") == 1
    assert says in said.err
    assert not out.exists()


def test_a_run_is_not_written_over(jepa, corpus, run, tiny):
    words = ["pretrain", "--preset", "nano", "--data", corpus, "--out", run, *tiny]
    said = jepa(*words)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "already exists; give --resume or --overwrite" in said.err
    said = jepa(*words, "--steps", 12, "--resume")
    assert said.code == 2
    assert "config.checkpoint_every was 4 and is now 300; resume with the settings" in said.err


@pytest.fixture(scope="module")
def probed(run, corpus, tmp_path_factory) -> Path:
    """A copy of the run, to probe."""
    place = tmp_path_factory.mktemp("probed") / "run"
    shutil.copytree(run, place)
    return place


def test_probe_stands_beside_twin_and_raw_features_and_tells_the_regret(jepa, corpus, probed):
    said = jepa("probe", probed, "--data", corpus, "--fractions", 1, 0.5)
    assert said.code == 0
    for word in ("trained", "untrained twin", "raw features", "Regret of the choice:", "nearest"):
        assert word in said.out
    saved = {path.stem for path in (probed / "results").glob("probe-superdiagnostic-*.json")}
    assert {name.removeprefix("probe-superdiagnostic-") for name in saved} == {
        "linear-1",
        "linear-0.5",
        "classes",
        "regret",
        "knn",
    }
    regret = json.loads((probed / "results/probe-superdiagnostic-regret.json").read_text())
    assert sum(row[2] == "chosen without labels" for row in regret["rows"]) == 1


def test_the_attentive_probe_trains_a_head_on_both_twins(jepa, corpus, probed):
    words = ["--methods", "attentive", "--steps", 4, "--validate-every", 2, "--task", "ST-MEM"]
    said = jepa("probe", probed, "--data", corpus, *words)
    assert said.code == 0
    saved = json.loads((probed / "results/probe-ST-MEM-attentive.json").read_text())
    assert [row[0] for row in saved["rows"]] == ["trained", "untrained twin"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--task", "heart"], "no record has labels of 'heart'; there are all, diagnostic"),
        (["--fractions", "0.001"], "take a larger fraction"),
        (["--fractions", "2"], "fractions[0] is 2.0; allowed: > 0 and <= 1"),
        (["--methods", "attentive", "--crop-seconds", "0.01"], "crop_seconds is 0.01; allowed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_probe_that_cannot_be_is_one_line(jepa, corpus, run, words, says):
    said = jepa("probe", run, "--data", corpus, *words)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert says in said.err


def test_embed_gives_what_the_library_gives(jepa, run, simulated, tmp_path):
    out = tmp_path / "e.parquet"
    said = jepa("embed", run, "--input", simulated, "--out", out)  # 500 Hz files, 100 Hz encoder
    assert said.code == 0
    assert said.out == f"{out}: 80 records\n"
    ids, rows = table(out)
    assert ids == [str(i) for i in range(1, 81)]
    assert pq.read_table(out)["quality"].to_pylist() == [1.0] * 80
    one = read_record(simulated / "records500/00000/00009_hr")
    np.testing.assert_allclose(rows[8], embed(load(run), one), atol=1e-5)


@pytest.fixture(scope="module")
def arrays() -> np.ndarray:
    """Six records of 3 s at 250 Hz, mV; one has a gap, one an empty lead."""
    signal = np.random.default_rng(0).normal(size=(6, 750, 12)).astype(np.float32)
    signal[1, 10:85, 3] = np.nan
    signal[4, :, 5] = np.nan
    return signal


def test_embed_leaves_out_bad_records_lists_them_and_tells_the_quality(jepa, run, arrays, tmp_path):
    np.save(tmp_path / "a.npy", arrays)
    out = tmp_path / "new" / "e.parquet"
    words = ["embed", run, "--input", tmp_path / "a.npy", "--fs", 250, "--out", out]
    said = jepa(*words)
    assert said.code == 0
    assert "1 of 6 records left out" in said.out
    assert table(out)[0] == ["0", "1", "2", "3", "5"]
    quality = pq.read_table(out)["quality"].to_pylist()
    assert quality == pytest.approx([1, 1 - 75 / 9000, 1, 1, 1])
    listing = (tmp_path / "new/e.parquet.skipped.csv").read_text()
    assert "lead aVF has no valid sample" in listing
    said = jepa(*words, "--overwrite", "--fill", "zero")
    assert said.code == 0
    assert len(table(out)[0]) == 6
    assert not (tmp_path / "new/e.parquet.skipped.csv").exists()


def test_what_an_array_does_not_say_is_a_flag(jepa, run, arrays, tmp_path):
    good = arrays[[0, 2]]
    turned = np.random.default_rng(1).permutation(12)
    names = np.array("I II III aVR aVL aVF V1 V2 V3 V4 V5 V6".split())  # noqa: SIM905
    files = {
        "plain": (good, []),
        "layout": (good.transpose(0, 2, 1), ["--layout", "NCT"]),
        "leads": (good[:, :, turned], ["--array-leads", *names[turned]]),
        "gain": ((good * 1e4).round().astype(np.int32), ["--gain", 10000]),
    }
    rows = {}
    for name, (signal, words) in files.items():
        np.save(tmp_path / f"{name}.npy", signal)
        out = tmp_path / f"{name}.parquet"
        said = jepa(
            *("embed", run, "--input", tmp_path / f"{name}.npy", "--fs", 250, "--out", out), *words
        )
        assert said.code == 0, said.err
        rows[name] = table(out)[1]
    for name in ("layout", "leads"):
        np.testing.assert_allclose(rows[name], rows["plain"], atol=1e-6)
    np.testing.assert_allclose(rows["gain"], rows["plain"], atol=1e-3)


def test_a_list_of_files_mixes_formats_and_knows_its_ids(jepa, run, arrays, simulated, tmp_path):
    np.save(tmp_path / "one.npy", arrays[0])
    file = simulated / "records500/00000/00001_hr"
    (tmp_path / "list.csv").write_text(f"path,id\none.npy,mine\n{file},theirs\ngone,lost\n")
    out = tmp_path / "e.parquet"
    words = ["embed", run, "--input", tmp_path / "list.csv", "--fs", 250, "--out", out]
    said = jepa(*words)
    assert said.code == 0
    assert "1 of 3 records left out" in said.out
    assert table(out)[0] == ["mine", "theirs"]
    _, lost = (tmp_path / "e.parquet.skipped.csv").read_text().splitlines()
    assert lost.startswith(f"lost,{tmp_path / 'gone'}.hea: there is no such header")
    said = jepa(*words, "--overwrite", "--on-error", "raise")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert f"list: 1 listed records do not exist: {tmp_path / 'gone'}; download" in said.err


def test_views_depend_on_seed_record_and_view_alone(jepa, run, simulated, tmp_path):
    folder = simulated / "records500/00000"
    (tmp_path / "some.csv").write_text(f"path,id\n{folder}/00007_hr,7\n{folder}/00003_hr,3\n")
    several, few, other = (tmp_path / f"{name}.parquet" for name in ("several", "few", "other"))
    jepa("embed", run, "--input", simulated, "--views", 2, "--out", several)
    jepa("embed", run, "--input", tmp_path / "some.csv", "--views", 3, "--out", few)
    jepa("embed", run, "--input", tmp_path / "some.csv", "--views", 1, "--seed", 1, "--out", other)
    for view in ("view_0", "view_1"):
        rows = table(several, view)[1]
        np.testing.assert_array_equal(table(few, view)[1], rows[[6, 2]])
    assert np.abs(table(few, "view_0")[1] - table(few, "view_1")[1]).max() > 1e-4
    assert np.abs(table(few, "view_0")[1] - table(other, "view_0")[1]).max() > 1e-4


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--input", "a.npy", "--out", "x.parquet"], "arrays do not say their sampling rate"),
        (["--input", "gone", "--out", "x.parquet"], "gone: there is no such file or folder"),
        (["--input", "a.npy", "--fs", "-1", "--out", "x.parquet"], "fs is -1.0; allowed: > 0"),
        (["--input", "a.npy", "--fs", "1", "--out", "there"], "there: already exists; give --over"),
        (["--input", "a.npy", "--fs", "1", "--out", "there/x"], "cannot be written: "),
        (["--input", "a.npy", "--fs", "999", "--out", "y"], "none of 6 records could be used"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_records_that_cannot_be_embedded_are_one_line(
    jepa, run, arrays, tmp_path, monkeypatch, words, says
):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", arrays[:, :20])
    Path("there").touch()
    said = jepa("embed", run, *words)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert says in said.err
    assert not list(tmp_path.glob("*.partial"))


def test_predict_scores_files_as_fine_tuning_scored_the_corpus(
    jepa, attentive, corpus, simulated, tmp_path
):
    out = tmp_path / "p.parquet"
    said = jepa("predict", attentive, "--input", simulated, "--fs", 100, "--out", out)
    assert said.code == 0
    read = pq.read_table(out)
    classifier = load_classifier(attentive)
    found = np.stack([read[f"p_{name}"].to_numpy() for name in classifier.classes], 1)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    called = read["positive"].to_pylist()
    assert called == [[classifier.classes[i]] for i in found.argmax(1)]

    built = Corpus(corpus)
    task = split_task(built, "ST-MEM")
    rows = task.rows[task.test]
    normalised = built.with_statistics(classifier.mean.numpy(), classifier.std.numpy())
    logits = crop_logits(classifier.model, normalised, rows, classifier.crop)
    np.testing.assert_allclose(found[rows], probabilities(logits, single=True), atol=1e-5)


def test_predict_wants_a_classifier(jepa, run, simulated, tmp_path):
    said = jepa("predict", run, "--input", simulated, "--out", tmp_path / "p.parquet")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "an encoder without a classifier; train one with jepa ecg finetune" in said.err


def test_fine_tuning_goes_on_from_a_probe_and_only_from_one(jepa, attentive, run, corpus, tmp_path):
    out = tmp_path / "run"
    words = ["finetune", "--preset", "finetune-after-attentive", "--data", corpus, "--out", out]
    words += ["--task", "ST-MEM", "--steps", 2, "--warmup", 0, "--validate-every", 1, "--batch", 8]
    said = jepa(*words, "--encoder", run)
    assert said.code == 2
    assert "no attention pooling to start from; give a run of jepa ecg finetune" in said.err
    assert not out.exists()
    said = jepa(*words, "--encoder", attentive)
    assert said.code == 0, said.err
    assert "from scratch" in said.out
    assert (out / "figures/attention.png").exists()


def test_report_writes_the_page_again(jepa, attentive):
    page = attentive / "report.html"
    page.unlink()
    said = jepa("report", attentive)
    assert (said.code, said.out) == (0, f"{page}\n")
    assert "macro-AUC" in page.read_text()
    assert Run.open(attentive).record["verb"] == "finetune"


def test_report_wants_a_run(jepa, tmp_path):
    said = jepa("report", tmp_path)
    assert said.code == 2
    assert "is not a run folder" in said.err
