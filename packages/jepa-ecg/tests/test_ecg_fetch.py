"""Fetching public ECG data sets, from a miniature of PTB-XL served on the loopback interface."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from jepa_core.errors import ConfigError
from jepa_ecg.data.fetch import PUBLIC, fetch

PTB_XL = (
    "LICENSE.txt",
    "RECORDS",
    "ptbxl_database.csv",
    "scp_statements.csv",
    "records100/00000/00001_lr.dat",
    "records100/00000/00001_lr.hea",
    "records100/21000/21837_lr.dat",
    "records500/00000/00001_hr.dat",
    "records500/00000/00001_hr.hea",
)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a server that has the files of `PTB_XL`, each holding its own path."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    served = tmp_path / "served"
    lines = []
    for path in PTB_XL:
        (served / path).parent.mkdir(parents=True, exist_ok=True)
        (served / path).write_text(path)
        lines.append(f"{hashlib.sha256(path.encode()).hexdigest()} {path}\n")
    (served / "SHA256SUMS.txt").write_text("".join(lines))
    handler = functools.partial(Quiet, directory=served)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def paths(folder: Path) -> set[str]:
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return found - {"SHA256SUMS.txt"}


def test_ptb_xl_arrives_in_its_own_layout(mirror: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = fetch("ptb-xl", out, base_url=mirror)
    assert paths(out) == set(PTB_XL)
    assert all((out / path).read_text() == path for path in PTB_XL)
    assert report.fetched == len(PTB_XL)


@pytest.mark.parametrize("part", ["records100", "records500"])
def test_one_sampling_rate_comes_with_the_tables_and_without_the_other(
    mirror: str, tmp_path: Path, part: str
) -> None:
    out = tmp_path / "out"
    fetch("ptb-xl", out, select=(part,), base_url=mirror)
    assert paths(out) == {p for p in PTB_XL if not p.startswith("records") or p.startswith(part)}


def test_a_second_part_adds_to_the_first(mirror: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fetch("ptb-xl", out, select=("records100",), base_url=mirror)
    report = fetch("ptb-xl", out, base_url=mirror)
    assert (report.fetched, report.kept) == (2, 7)
    assert paths(out) == set(PTB_XL)


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        fetch("ptbxl", tmp_path)
    assert "did you mean ptb-xl?" in str(caught.value)
    assert all(name in str(caught.value) for name in PUBLIC)


def test_an_unknown_part_lists_the_known_ones_briefly(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no part called records250.*records100, records500"):
        fetch("ptb-xl", tmp_path, select=("records250",))
    with pytest.raises(ConfigError, match=r"allowed: p1000, p1001, \.\.\., p1999$"):
        fetch("mimic-iv-ecg", tmp_path, select=("x",))


def test_a_folder_that_is_no_part_stays_where_it_is(mirror: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fetch("challenge-2021", out, base_url=mirror)
    assert paths(out) == {path for path in PTB_XL if "/" not in path}


def test_every_address_is_a_folder_of_one_fixed_version() -> None:
    for public in PUBLIC.values():
        assert public.base_url.startswith("https://")
        assert public.base_url.endswith("/")
        assert public.base_url.rstrip("/").rpartition("/")[2][0].isdigit()
