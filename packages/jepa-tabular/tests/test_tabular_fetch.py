"""Fetching public tables, from a miniature of OpenML served on the loopback interface."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from jepa_core.errors import ConfigError, DataError
from jepa_tabular.data import tables
from jepa_tabular.data.fetch import PUBLIC, fetch


class OpenML:
    """What the server sends, and what it was asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.address = ""

    def put(self, name: str, text: str, *, target: str = "class", **told: str) -> None:
        path, content = f"/data/v1/download/1/{name}.arff", text.encode()
        self.files[path] = content
        description = {
            "id": str(PUBLIC[name].data_id),
            "format": "ARFF",
            "url": f"https://www.openml.org{path}",
            "md5_checksum": hashlib.md5(content).hexdigest(),
            "default_target_attribute": target,
            **told,
        }
        text = json.dumps({"data_set_description": description})
        self.files[f"/api/v1/json/data/{PUBLIC[name].data_id}"] = text.encode()

    def downloads(self) -> list[str]:
        return [asked for path, asked in self.asked if path.startswith("/data/")]


@pytest.fixture
def openml(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenML]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    site = OpenML()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            site.asked.append((self.path, wanted))
            if self.path not in site.files:
                self.send_error(404)
                return
            content, status = site.files[self.path], 200
            if wanted:
                content, status = content[int(wanted[6:-1]) :], 206
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        site.address = f"http://127.0.0.1:{server.server_port}"
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()


def small(monkeypatch: pytest.MonkeyPatch, name: str, rows: int) -> None:
    """Pretend that the whole table has that many rows."""
    import dataclasses

    layout = dataclasses.replace(tables.LAYOUTS[name], rows=rows)
    monkeypatch.setitem(tables.LAYOUTS, name, layout)


def adult_as_openml_has_it(folder: Path, rows: int) -> str:
    """OpenML's names, blanks behind commas, and missing values for the category "?"."""
    with gzip.open(folder / "adult.csv.gz", "rt") as file:
        head, *lines = [next(file).rstrip("\n").split(",") for _ in range(rows + 1)]
    names = {"educational-num": "education-num", "gender": "sex", "income": "class"}
    text = "@relation adult\n\n"
    for i, name in enumerate(head):
        values = sorted({line[i] for line in lines} - {"?"})
        kind = "numeric" if values[0].isdigit() else "{ " + ", ".join(values) + " }"
        text += f"@attribute {names.get(name, name)} {kind}\n"
    return text + "\n@data\n" + "\n".join(", ".join(line) for line in lines) + "\n"


def test_adult_arrives_as_the_official_file(openml, monkeypatch, data, tmp_path):
    small(monkeypatch, "adult", 300)
    openml.put("adult", adult_as_openml_has_it(data("tabular"), 300))
    report = fetch("adult", tmp_path, base_url=openml.address)
    assert (report.path, report.fetched) == (tmp_path / "adult.csv", True)
    with gzip.open(data("tabular") / "adult.csv.gz", "rt") as file:
        official = [next(file) for _ in range(301)]
    assert report.path.read_text() == "".join(official)
    assert {path.name for path in tmp_path.iterdir()} == {"adult.csv", "adult.source.json"}


def numbers_as_arff(x: np.ndarray, names: list[str], label: str, y: np.ndarray) -> str:
    """A table with its label in the middle."""
    at = len(names) // 2
    text = "@relation r\n"
    kinds = [f"@attribute {name} numeric\n" for name in names]
    classes = "{" + ",".join(map(str, sorted(set(y.tolist())))) + "}"
    kinds.insert(at, f"@attribute {label} {classes}\n")
    text += "".join(kinds) + "@data\n"
    for row, c in zip(x.tolist(), y.tolist(), strict=True):
        fields = ["?" if v != v else repr(v) for v in row]
        text += ",".join([*fields[:at], str(c), *fields[at:]]) + "\n"
    return text


@pytest.mark.parametrize(
    ("name", "first"), [("helena", None), ("jannis", None), ("higgs", True), ("aloi", False)]
)
def test_numbers_arrive_with_the_label_where_the_program_expects_it(
    openml, monkeypatch, tmp_path, name, first
):
    rng = np.random.default_rng(0)
    width = tables.LAYOUTS[name].columns
    x, y = rng.normal(size=(40, width)), np.arange(40) % 2
    x[:, tables.LAYOUTS[name].categorical] = rng.integers(0, 3, (40, 1))
    small(monkeypatch, name, 40)
    openml.put(name, numbers_as_arff(x, [f"V{i}" for i in range(width)], "class", y))
    report = fetch(name, tmp_path, base_url=openml.address)
    if first is not None:
        head = report.path.read_text().splitlines()[0].split(",")
        assert head.index("class") == (0 if first else width)
    table = tables.read(name, tmp_path)
    np.testing.assert_array_equal(table.frame.astype(np.float64), x)
    np.testing.assert_array_equal(table.y, y)


def test_the_row_of_higgs_without_all_its_numbers_is_no_error(openml, monkeypatch, tmp_path):
    x, y = np.random.default_rng(0).normal(size=(40, 28)), np.arange(40) % 2
    x[-1, 25] = np.nan
    small(monkeypatch, "higgs", 40)
    openml.put("higgs", numbers_as_arff(x, [f"V{i}" for i in range(28)], "class", y))
    fetch("higgs", tmp_path, base_url=openml.address)
    assert tables.read("higgs", tmp_path).dropped == 1


def helena(rows: int = 30) -> str:
    x = np.random.default_rng(0).normal(size=(rows, 27))
    return numbers_as_arff(x, [f"V{i}" for i in range(27)], "class", np.arange(rows) % 3)


def test_a_second_fetch_downloads_nothing_unless_the_file_was_changed(
    openml, monkeypatch, tmp_path
):
    small(monkeypatch, "helena", 30)
    openml.put("helena", helena())
    fetch("helena", tmp_path, base_url=openml.address)
    assert not fetch("helena", tmp_path, base_url=openml.address).fetched
    (tmp_path / "helena.arff").write_text("changed")
    assert fetch("helena", tmp_path, base_url=openml.address).fetched
    assert (tmp_path / "helena.arff").read_text() == helena()


def test_a_download_that_was_stopped_goes_on(openml, monkeypatch, tmp_path):
    small(monkeypatch, "helena", 30)
    openml.put("helena", helena())
    whole = helena().encode()
    (tmp_path / f".partial-{hashlib.md5(whole).hexdigest()}").write_bytes(whole[:1000])
    report = fetch("helena", tmp_path, base_url=openml.address)
    assert report.received == len(whole) - 1000
    assert openml.downloads() == ["bytes=1000-"]
    assert report.path.read_bytes() == whole


def test_a_download_that_was_stopped_at_its_very_end_is_not_asked_for_again(
    openml, monkeypatch, tmp_path
):
    small(monkeypatch, "helena", 30)
    openml.put("helena", helena())
    whole = helena().encode()
    (tmp_path / f".partial-{hashlib.md5(whole).hexdigest()}").write_bytes(whole)
    assert fetch("helena", tmp_path, base_url=openml.address).path.read_bytes() == whole
    assert openml.downloads() == []


def test_a_damaged_file_is_refused_and_leaves_nothing(openml, tmp_path):
    openml.put("helena", helena(), md5_checksum="0" * 32)
    with pytest.raises(DataError, match=r"its MD5 is not the published one"):
        fetch("helena", tmp_path, base_url=openml.address)
    assert not list(tmp_path.iterdir())


def test_another_table_under_that_number_is_refused_and_leaves_nothing(openml, tmp_path):
    openml.put("helena", helena())
    with pytest.raises(DataError, match="not that table: 30 rows; helena has 65196"):
        fetch("helena", tmp_path, base_url=openml.address)
    openml.put("aloi", helena())
    with pytest.raises(DataError, match="not that table: 27 feature columns; aloi has 128"):
        fetch("aloi", tmp_path, base_url=openml.address)
    openml.put("higgs", helena(), target="label")
    with pytest.raises(DataError, match="not that table: there is no column 'label'"):
        fetch("higgs", tmp_path, base_url=openml.address)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"format": "Sparse_ARFF"}, "the file is Sparse_ARFF, not ARFF"),
        ({"md5_checksum": "x"}, "md5_checksum is 'x'"),
        ({"url": "file:///etc/passwd"}, "url is 'file:///etc/passwd'"),
    ],
)
def test_a_description_that_is_not_usable_says_why(openml, tmp_path, told, said):
    openml.put("helena", helena(), **told)
    with pytest.raises(DataError, match=said):
        fetch("helena", tmp_path, base_url=openml.address)


def test_an_answer_that_is_no_description_is_one_line(openml, tmp_path):
    openml.files[f"/api/v1/json/data/{PUBLIC['helena'].data_id}"] = b"<html>"
    with pytest.raises(DataError, match="no description of a data set"):
        fetch("helena", tmp_path, base_url=openml.address)
    with pytest.raises(DataError, match="the server answers 404"):
        fetch("jannis", tmp_path, base_url=openml.address)
    with pytest.raises(ConfigError, match="is no address"):
        fetch("jannis", tmp_path, base_url="ftp://example.org")


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match="did you mean adult") as caught:
        fetch("adlut", tmp_path)
    assert all(name in str(caught.value) for name in PUBLIC)


def test_every_public_table_has_its_official_layout():
    assert PUBLIC.keys() == tables.LAYOUTS.keys()
