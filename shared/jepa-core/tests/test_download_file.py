"""One file with a published checksum, from a server on the loopback interface."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from jepa_core.download import ask, fetch_file, must_be_address
from jepa_core.errors import ConfigError, DataError

BODY = bytes(range(256)) * 2000
MD5 = hashlib.md5(BODY).hexdigest()


class Site:
    """What the server sends, and what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.body = BODY
        self.asked: list[str] = []  # the ranges
        self.answers: list[int] = []  # status codes sent before anything else
        self.ranges = True
        self.breaks = False  # after half of what is asked for


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("jepa_core.download.web._PAUSES", (0.0, 0.0))
    told = Site()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            told.asked.append(wanted)
            assert self.headers["Accept-Encoding"] == "identity"
            if told.answers:
                self.send_error(told.answers.pop(0))
                return
            content, status = told.body, 200
            if wanted and told.ranges:
                content, status = content[int(wanted[6:-1]) :], 206
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if told.breaks else content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        told.url = f"http://127.0.0.1:{server.server_port}/set.zip"
        try:
            yield told
        finally:
            server.shutdown()
            thread.join()


def test_a_file_arrives_and_a_whole_one_is_not_asked_for(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "part"
    assert fetch_file(site.url, path, md5=MD5) == len(BODY)
    assert path.read_bytes() == BODY
    assert fetch_file(site.url, path, md5=MD5) == 0
    assert site.asked == [""]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_part_is_gone_on_with_or_begun_again_where_ranges_are_not_served(
    site: Site, tmp_path: Path, ranges: bool
) -> None:
    site.ranges = ranges
    path = tmp_path / "part"
    path.write_bytes(BODY[:1000])
    assert fetch_file(site.url, path, md5=MD5) == len(BODY) - (1000 if ranges else 0)
    assert site.asked == ["bytes=1000-"]
    assert path.read_bytes() == BODY


def test_a_connection_that_breaks_off_leaves_a_part_to_go_on_with(
    site: Site, tmp_path: Path
) -> None:
    path, site.breaks = tmp_path / "part", True
    with pytest.raises(DataError, match=r"set\.zip: the connection broke off.*goes on$"):
        fetch_file(site.url, path, md5=MD5)
    there = path.stat().st_size
    assert path.read_bytes() == BODY[:there]
    site.breaks = False
    assert fetch_file(site.url, path, md5=MD5) == len(BODY) - there < len(BODY)
    assert path.read_bytes() == BODY


def test_passing_failures_are_tried_again_three_times_in_all(site: Site, tmp_path: Path) -> None:
    site.answers = [503, 429]
    fetch_file(site.url, tmp_path / "part", md5=MD5)
    assert len(site.asked) == 3
    site.answers = [502, 503, 504]
    with pytest.raises(DataError, match="the server answers 504 Gateway Timeout"):
        fetch_file(site.url, tmp_path / "other", md5=MD5)
    assert len(site.asked) == 6
    assert not (tmp_path / "other").exists()


def test_a_refusal_is_not_tried_again_and_leaves_a_part_as_it_is(
    site: Site, tmp_path: Path
) -> None:
    path, site.answers = tmp_path / "part", [404]
    path.write_bytes(BODY[:1000])
    with pytest.raises(DataError, match=r"set\.zip: the server answers 404 Not Found"):
        fetch_file(site.url, path, md5=MD5)
    assert len(site.asked) == 1
    assert path.read_bytes() == BODY[:1000]


@pytest.mark.parametrize("there", [b"", b"another beginning"])
def test_another_file_than_the_published_one_is_refused_and_does_not_stay(
    site: Site, tmp_path: Path, there: bytes
) -> None:
    path, site.body = tmp_path / "part", BODY if there else b"changed"
    path.write_bytes(there)
    with pytest.raises(DataError, match=r"set\.zip: its MD5 is not the published one.*again$"):
        fetch_file(site.url, path, md5=MD5)
    assert not path.exists()


def test_no_server_and_no_address_are_one_line(site: Site) -> None:
    nowhere = "http://127.0.0.1:1/"
    with (
        pytest.raises(DataError, match=r"no connection .*run the same command again$"),
        ask(nowhere),
    ):
        pass
    must_be_address(nowhere)
    with pytest.raises(ConfigError, match="'ftp://example' is no address"):
        must_be_address("ftp://example")
