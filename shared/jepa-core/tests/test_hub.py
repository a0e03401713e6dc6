"""Encoders that travel, and foreign weights that come in."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepa_core.errors import DataError, RunError
from jepa_core.hub import (
    load_encoder,
    push,
    read_safetensors,
    read_torch_weights,
    refuse_taken,
    rename_keys,
    save_encoder,
)

CONFIG = {"package": "jepa-ecg", "model": {"dim": 4}, "mean": [0.1, 0.2]}
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345678\n"
)


def state() -> dict[str, torch.Tensor]:
    weight = torch.arange(12, dtype=torch.float64).reshape(3, 4)
    return {"a.weight": weight, "a.turned": weight.T, "same": weight, "n": torch.tensor(7)}


def assert_equal(one: dict, two: dict) -> None:
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(one[name].dtype == two[name].dtype for name in one)


def test_an_encoder_comes_back_as_it_was_saved(tmp_path):
    folder = save_encoder(tmp_path / "encoder", state(), CONFIG)
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    config, loaded = load_encoder(folder, "jepa-ecg")
    assert config == CONFIG
    assert_equal(loaded, state())


def test_saving_again_replaces_and_leaves_nothing_beside(tmp_path):
    save_encoder(tmp_path / "encoder", state(), CONFIG)
    save_encoder(tmp_path / "encoder", {"b": torch.ones(2)}, CONFIG)
    assert load_encoder(tmp_path / "encoder", "jepa-ecg")[1].keys() == {"b"}
    assert os.listdir(tmp_path) == ["encoder"]


def written_by(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def something_else(folder: Path, kind: str) -> None:
    """What is no encoder of ours, though some of it looks like one."""
    if kind == "a file":
        folder.write_text("precious")
        return
    folder.mkdir()
    (folder / "precious.txt").touch()
    if kind in ("weights alone", "another program's model"):
        (folder / "model.safetensors").touch()
    if kind in ("a run", "another program's model"):
        (folder / "config.json").write_text('{"model_type": "llama"}')
    if kind == "broken":
        (folder / "model.safetensors").touch()
        (folder / "config.json").write_text('{"package"')


@pytest.mark.parametrize(
    "kind",
    ["a file", "a folder", "weights alone", "a run", "another program's model", "broken"],
)
def test_only_an_encoder_is_replaced(tmp_path, kind):
    place = tmp_path / "home"
    something_else(place, kind)
    before = written_by(place) if place.is_dir() else place.read_bytes()
    for overwrite in (True, False):
        with pytest.raises(RunError, match="home: is no folder of an encoder; give another place"):
            refuse_taken(place, overwrite=overwrite)
    with pytest.raises(RunError, match="home: is no folder of an encoder"):
        save_encoder(place, state(), CONFIG)
    assert (written_by(place) if place.is_dir() else place.read_bytes()) == before
    assert os.listdir(tmp_path) == ["home"]


def test_an_encoder_is_replaced_only_where_that_is_asked_for(tmp_path):
    place = tmp_path / "encoder"
    refuse_taken(place, overwrite=False)
    place.mkdir()
    refuse_taken(place, overwrite=False)
    save_encoder(place, state(), CONFIG)
    with pytest.raises(RunError, match="encoder: already exists; give --overwrite or another"):
        refuse_taken(place, overwrite=False)
    refuse_taken(place, overwrite=True)


def test_what_lies_beside_an_encoder_stays(tmp_path):
    place = save_encoder(tmp_path / "encoder", state(), CONFIG, {"more.json": [1]})
    (place / "README.md").write_text("my notes")
    (place / "figures").mkdir()
    (place / "figures" / "a.svg").touch()
    save_encoder(place, {"b": torch.ones(2)}, CONFIG, {"more.json": [2]})
    assert load_encoder(place, "jepa-ecg")[1].keys() == {"b"}
    assert json.loads((place / "more.json").read_text()) == [2]
    assert (place / "README.md").read_text() == "my notes"
    assert (place / "figures" / "a.svg").exists()
    assert os.listdir(tmp_path) == ["encoder"]


@pytest.mark.parametrize("failing", ["save_file", "fsync", "second rename"])
def test_an_encoder_stays_until_its_successor_is_whole(tmp_path, monkeypatch, failing):
    place = save_encoder(tmp_path / "encoder", state(), CONFIG)
    (place / "README.md").write_text("my notes")
    before, rename = written_by(place), Path.rename

    def full(*_: object) -> None:
        assert written_by(place) == before
        raise OSError(28, "No space left on device")

    def stuck(self: Path, target: Path) -> Path:
        if ".tmp-" in self.name:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    if failing == "second rename":
        monkeypatch.setattr(Path, "rename", stuck)
    else:
        monkeypatch.setattr(f"jepa_core.hub.{failing}", full)
    with pytest.raises(RunError, match="the encoder cannot be written"):
        save_encoder(place, {"b": torch.ones(2)}, CONFIG)
    assert written_by(place) == before
    assert os.listdir(tmp_path) == ["encoder"]


def test_a_link_to_an_encoder_still_is_one_after_it_was_replaced(tmp_path):
    place = save_encoder(tmp_path / "encoder", state(), CONFIG)
    (tmp_path / "link").symlink_to(place)
    save_encoder(tmp_path / "link", {"b": torch.ones(2)}, CONFIG)
    assert (tmp_path / "link").is_symlink()
    assert load_encoder(place, "jepa-ecg")[1].keys() == {"b"}


def test_a_run_folder_stands_for_its_encoder(tmp_path):
    save_encoder(tmp_path / "encoder", state(), CONFIG)
    (tmp_path / "config.json").write_text("{}")
    assert_equal(load_encoder(str(tmp_path), "jepa-ecg")[1], state())


def test_an_encoder_of_another_package_is_refused_by_name(tmp_path):
    save_encoder(tmp_path / "encoder", state(), CONFIG)
    with pytest.raises(
        DataError, match="belongs to jepa-ecg, not to jepa-sar; load it with jepa-e"
    ):
        load_encoder(tmp_path / "encoder", "jepa-sar")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere", "is no folder"),
        ("/nowhere/at/all", "is no folder"),
        ("a b/c", "is no folder"),
        ("../x/y", "is no folder"),
    ],
)
def test_what_is_neither_a_folder_nor_an_id_is_refused_without_asking_the_hub(place, message):
    with pytest.raises(DataError, match=message):
        load_encoder(place, "jepa-ecg")


def test_a_folder_without_an_encoder_says_what_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"holds no config\.json"):
        load_encoder(tmp_path, "jepa-ecg")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(DataError, match=r"model\.safetensors: no such file"):
        load_encoder(tmp_path, "jepa-ecg")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        load_encoder(tmp_path, "jepa-ecg")


def test_an_encoder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        save_encoder(tmp_path / "file" / "encoder", state(), CONFIG)


@given(content=st.binary(max_size=200))
def test_no_bytes_crash_the_readers(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "weights"
    path.write_bytes(content)
    for read in (read_safetensors, read_torch_weights):
        with contextlib.suppress(DataError):
            read(path)


class Server(http.server.BaseHTTPRequestHandler):
    """As much of a hub as a download asks for."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    commit = "0123456789abcdef0123456789abcdef01234567"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if match := re.fullmatch(rf"/o/name/resolve/{self.commit}/(.+)", path):
            content = self.files[match[1]]
            headers = {"ETag": f'"{match[1]}-1"', "X-Repo-Commit": self.commit}
        elif re.match(r"/api/models/o/name(/revision/\w+)?$", path):
            siblings = [{"rfilename": name} for name in self.files]
            content = json.dumps(
                {"id": "o/name", "sha": self.commit, "siblings": siblings}
            ).encode()
            headers = {"Content-Type": "application/json"}
        elif path.startswith(f"/api/models/o/name/tree/{self.commit}"):
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": "1"}
                for name, content in self.files.items()
            ]
            content, headers = json.dumps(tree).encode(), {"Content-Type": "application/json"}
        else:
            content, headers = b"{}", {"X-Error-Code": "RepoNotFound"}
        self.send_response(404 if "X-Error-Code" in headers else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    folder = save_encoder(tmp_path / "source", state(), CONFIG)
    Server.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    Server.files["training.pickle"] = b"must not be fetched"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    server.shutdown()
    server.server_close()


LOAD = """
import json
from jepa_core.errors import DataError
from jepa_core.hub import load_encoder
config, state = load_encoder("o/name@main", "jepa-ecg")
print(json.dumps([config, {k: v.tolist() for k, v in state.items()}]))
try:
    load_encoder("o/other", "jepa-ecg")
except DataError as error:
    print(error)
"""


def test_a_hub_id_is_downloaded_and_nothing_but_weights_and_config_comes(hub, tmp_path):
    command = [sys.executable, "-c", LOAD]
    done = subprocess.run(command, capture_output=True, text=True, env=hub)
    assert done.returncode == 0, done.stderr
    found, refused = done.stdout.splitlines()
    config, loaded = json.loads(found)
    assert config == CONFIG
    assert loaded == {name: tensor.tolist() for name, tensor in state().items()}
    fetched = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_symlink()}
    assert fetched == {"config.json", "model.safetensors"}
    assert refused.startswith("o/other: is neither a folder nor to be had from the Hub")


def test_push_creates_the_repository_and_uploads_the_encoder_alone(tmp_path, monkeypatch):
    folder = save_encoder(tmp_path / "encoder", state(), CONFIG)
    calls = []
    monkeypatch.setattr(
        "huggingface_hub.HfApi.create_repo",
        lambda self, repo_id, **k: calls.append((repo_id, k)) or f"https://hub/{repo_id}",
    )
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda self, **k: calls.append(k))
    assert push(folder, "o/name", private=True) == "https://hub/o/name"
    assert calls[0] == ("o/name", {"private": True, "exist_ok": True})
    assert calls[1]["repo_id"] == "o/name"
    assert Path(calls[1]["folder_path"]) == folder
    assert set(calls[1]["allow_patterns"]) == {"model.safetensors", "config.json", "README.md"}


def test_push_of_a_folder_without_an_encoder_asks_nobody(tmp_path):
    with pytest.raises(DataError, match=r"holds no model\.safetensors"):
        push(tmp_path, "o/name")


def test_a_hub_that_refuses_is_one_line(tmp_path, monkeypatch):
    folder = save_encoder(tmp_path / "encoder", state(), CONFIG)

    def refuse(self, repo_id, **_):
        raise OSError("401 Client Error\nmany\nlines")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    with pytest.raises(DataError, match=r"^o/name: the Hub refuses: 401 Client Error; check"):
        push(folder, "o/name")


def test_torch_files_of_weights_and_plain_containers_are_read(tmp_path):
    content = {"model": state(), "config": {"dim": 4, "name": "x"}, "step": 3}
    torch.save(content, tmp_path / "a.pt")
    torch.save(content, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    for name in "ab":
        read = read_torch_weights(tmp_path / f"{name}.pt")
        assert_equal(read["model"], state())
        assert read["config"] == content["config"]


class Malicious:
    def __reduce__(self):
        return (os.system, ("touch harmed",))


@pytest.mark.parametrize("new", [True, False])
def test_a_malicious_torch_file_is_refused_in_one_line_and_does_nothing(tmp_path, monkeypatch, new):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": Malicious()}, "evil.pt", _use_new_zipfile_serialization=new)
    with pytest.raises(
        DataError, match=r"^evil\.pt: refused: it holds more than weights"
    ) as caught:
        read_torch_weights("evil.pt")
    assert "system" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.listdir() == ["evil.pt"]


def test_a_plain_malicious_pickle_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("evil.pth").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(DataError):
        read_torch_weights("evil.pth")
    assert os.listdir() == ["evil.pth"]


@pytest.mark.parametrize("read", [read_safetensors, read_torch_weights])
def test_a_git_lfs_pointer_is_named_with_the_size_of_what_it_stands_for(tmp_path, read):
    (tmp_path / "w.pth").write_text(POINTER)
    with pytest.raises(DataError, match=r"Git LFS pointer to a file of 12,345,678 bytes.*git lfs"):
        read(tmp_path / "w.pth")


@pytest.mark.parametrize("read", [read_safetensors, read_torch_weights])
def test_a_damaged_or_missing_file_is_one_line(tmp_path, read):
    torch.save(state(), tmp_path / "whole.pt")
    save_encoder(tmp_path / "e", state(), CONFIG)
    whole = tmp_path / ("whole.pt" if read is read_torch_weights else "e/model.safetensors")
    for content in (b"", b"<html>", whole.read_bytes()[:-40], whole.read_bytes()[:100]):
        (tmp_path / "cut").write_bytes(content)
        with pytest.raises(DataError, match="fetch it again") as caught:
            read(tmp_path / "cut")
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "missing")


TABLE = {r"^module\.": "", r"\.mlp\.0\.": ".mlp.fc1."}


def test_keys_are_renamed_rule_after_rule_into_our_order():
    foreign = {
        "module.b.mlp.0.weight": torch.ones(2, 3),
        "module.a": torch.zeros(1),
        "module.dead.table": torch.zeros(9),
    }
    expected = {"a": (1,), "b.mlp.fc1.weight": torch.Size((2, 3))}
    renamed = rename_keys(foreign, TABLE, expected, ignore=[r"^module\.dead\."])
    assert list(renamed) == list(expected)
    assert renamed["b.mlp.fc1.weight"] is foreign["module.b.mlp.0.weight"]


def test_everything_that_does_not_fit_is_listed_at_once():
    foreign = {
        "module.a": torch.zeros(1),
        "module.extra": torch.zeros(1),
        "a": torch.zeros(1),
        "b": torch.zeros(2, 3),
    }
    with pytest.raises(DataError) as caught:
        rename_keys(foreign, TABLE, {"a": (1,), "b": (3, 2), "c": (1,)})
    assert str(caught.value) == (
        "the weights do not fit: missing: c; unexpected: extra (from module.extra); "
        "of another shape: b (2, 3), not (3, 2); named twice: a (from module.a and a); "
        "check that the weights and the config are of the same model"
    )


def test_a_long_list_of_names_is_cut_and_counted():
    with pytest.raises(DataError, match=r"w7 and 12 more;"):
        rename_keys({}, {}, {f"w{i}": (1,) for i in range(20)})
