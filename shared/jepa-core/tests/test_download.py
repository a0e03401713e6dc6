"""Downloading by a checksum list and unpacking, against a server on the loopback interface."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import stat
import tarfile
import threading
import zipfile
from collections import Counter, namedtuple
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jepa_core.download import archive, dataset, fetch, read_checksums, unpack
from jepa_core.errors import ConfigError, DataError, Interrupted, JepaError

FILES = {
    "RECORDS": b"a/1\na/2\n",
    "a/1.dat": bytes(range(256)) * 2000,
    "a/2.dat": b"second" * 50_000,
    "a/empty": b"",
    "b/with space#.csv": b"id,label\n1,NORM\n",
}


class Server(ThreadingHTTPServer):
    """Serves `files` and a checksum list of them; remembers who asked for what."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(FILES)
        self.sums = {path: hashlib.sha256(body).hexdigest() for path, body in FILES.items()}
        self.breaks: Counter[str] = Counter()  # how often a transfer of the path still breaks off
        self.busy: Counter[str] = Counter()  # how often the path still answers 503
        self.asked: list[str] = []
        self.connections: set[tuple[str, int]] = set()
        self.gate: threading.Event | None = None  # the second half of a body waits for it
        self.halfway = threading.Event()

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is no error."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/set/1.0/"

    def body(self, path: str) -> bytes | None:
        if path == "SHA256SUMS.txt":
            return "".join(f"{sum_} {path}\n" for path, sum_ in self.sums.items()).encode()
        return self.files.get(path)

    def asked_for(self) -> list[str]:
        return sorted(path for path in self.asked if path != "SHA256SUMS.txt")


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a small answer takes 40 ms

    def do_GET(self) -> None:
        server = self.server
        path = unquote(self.path).removeprefix("/set/1.0/")
        server.asked.append(path)
        server.connections.add(self.client_address)
        body = server.body(path)
        if body is None or server.busy[path] > 0:
            server.busy[path] -= 1
            self.send_error(404 if body is None else 503)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        half = len(body) // 2
        self.wfile.write(body[:half])
        if server.breaks[path] > 0:
            server.breaks[path] -= 1
            self.close_connection = True
            return
        if server.gate is not None and path != "SHA256SUMS.txt":
            self.wfile.flush()
            server.halfway.set()
            server.gate.wait(30)
        try:
            self.wfile.write(body[half:])
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("jepa_core.download.web._PAUSES", (0.0, 0.0))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield serving
        finally:
            serving.shutdown()
            thread.join()


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def data_files(folder: Path) -> dict[str, bytes]:
    return {path: body for path, body in tree(folder).items() if path != "SHA256SUMS.txt"}


def test_every_listed_file_arrives_under_its_path(server: Server, tmp_path: Path) -> None:
    report = fetch(server.url, tmp_path / "out")
    assert data_files(tmp_path / "out") == FILES
    assert (report.fetched, report.kept) == (len(FILES), 0)
    assert report.received == sum(map(len, FILES.values()))
    assert (tmp_path / "out" / "SHA256SUMS.txt").read_bytes() == server.body("SHA256SUMS.txt")


def test_a_second_run_fetches_nothing(server: Server, tmp_path: Path) -> None:
    fetch(server.url, tmp_path)
    server.asked.clear()
    report = fetch(server.url, tmp_path)
    assert server.asked_for() == []
    assert (report.fetched, report.kept, report.received) == (0, len(FILES), 0)


def test_a_resumed_run_fetches_only_what_is_missing_or_damaged(
    server: Server, tmp_path: Path
) -> None:
    fetch(server.url, tmp_path)
    (tmp_path / "a/1.dat").unlink()
    (tmp_path / "a/2.dat").write_bytes(b"second")
    server.asked.clear()
    report = fetch(server.url, tmp_path)
    assert server.asked_for() == ["a/1.dat", "a/2.dat"]
    assert (report.fetched, report.kept) == (2, 3)
    assert data_files(tmp_path) == FILES


def test_only_selected_files_are_fetched(server: Server, tmp_path: Path) -> None:
    fetch(server.url, tmp_path, select=lambda path: path.startswith("b/"))
    assert list(data_files(tmp_path)) == ["b/with space#.csv"]
    with pytest.raises(DataError, match="none of its 5 files is selected"):
        fetch(server.url, tmp_path, select=lambda path: False)


@pytest.mark.parametrize("jobs", [1, 3])
def test_no_more_connections_are_opened_than_asked_for(
    server: Server, tmp_path: Path, jobs: int
) -> None:
    server.files = {f"{n}.dat": bytes([n]) for n in range(40)}
    server.sums = {path: hashlib.sha256(body).hexdigest() for path, body in server.files.items()}
    fetch(server.url, tmp_path, jobs=jobs)
    assert data_files(tmp_path) == server.files
    # One more for the list itself.
    assert len(server.connections) <= jobs + 1


def test_a_transfer_that_breaks_off_is_tried_again(server: Server, tmp_path: Path) -> None:
    server.breaks["a/1.dat"] = 2
    server.busy["a/2.dat"] = 2
    fetch(server.url, tmp_path)
    assert data_files(tmp_path) == FILES
    assert server.asked_for().count("a/1.dat") == 3
    assert server.asked_for().count("a/2.dat") == 3


def test_a_transfer_that_keeps_breaking_leaves_no_part_of_the_file(
    server: Server, tmp_path: Path
) -> None:
    server.breaks["a/1.dat"] = 100
    with pytest.raises(DataError, match=r"a/1\.dat: .*broke off.*finished files are kept"):
        fetch(server.url, tmp_path, jobs=1)
    left = data_files(tmp_path)
    assert "a/1.dat" not in left
    assert left.items() <= FILES.items()
    assert left
    server.breaks.clear()
    server.asked.clear()
    fetch(server.url, tmp_path)
    assert set(server.asked_for()) == FILES.keys() - left.keys()
    assert data_files(tmp_path) == FILES


def test_a_missing_file_is_named_and_the_others_arrive(server: Server, tmp_path: Path) -> None:
    del server.files["a/1.dat"]
    with pytest.raises(DataError) as caught:
        fetch(server.url, tmp_path)
    assert str(caught.value).startswith(f"{server.url}a/1.dat: the server answers 404 Not Found;")
    assert data_files(tmp_path) == server.files
    assert server.asked_for().count("a/1.dat") == 1


def test_a_wrong_checksum_is_named_and_the_file_is_not_kept(server: Server, tmp_path: Path) -> None:
    server.files["a/2.dat"] = server.files["b/with space#.csv"] = b"something else"
    with pytest.raises(DataError) as caught:
        fetch(server.url, tmp_path)
    said = str(caught.value)
    assert re.search(r"/(a/2\.dat|b/with space#\.csv): its SHA-256 is not the published one", said)
    assert "1 more of 5 files failed" in said
    assert "\n" not in said
    assert data_files(tmp_path).keys() == {"RECORDS", "a/1.dat", "a/empty"}


def test_a_file_on_disk_stays_until_its_successor_is_verified(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.dat").write_bytes(b"mine")
    server.files["a/1.dat"] = b"damaged"
    with pytest.raises(DataError):
        fetch(server.url, tmp_path)
    assert (tmp_path / "a/1.dat").read_bytes() == b"mine"


def test_files_have_the_permissions_of_any_new_file(server: Server, tmp_path: Path) -> None:
    fetch(server.url, tmp_path)
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "plain").stat().st_mode}


def test_what_a_killed_run_left_goes_and_what_a_running_one_has_stays(
    server: Server, tmp_path: Path
) -> None:
    for name, age in (("old", 2 * 86_400), ("new", 60)):
        folder = tmp_path / f".partial-{name}"
        folder.mkdir()
        (folder / "1").write_bytes(b"part")
        then = folder.stat().st_mtime - age
        os.utime(folder, (then, then))
    fetch(server.url, tmp_path)
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".partial-new"]


def test_a_wrong_address_is_one_line(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"SHA256SUMS\.txt: the server answers 404.*check the ad"):
        fetch(server.url + "nowhere", tmp_path)
    with pytest.raises(ConfigError, match="http://"):
        fetch("ftp://127.0.0.1/set", tmp_path)
    port = server.server_port
    server.server_close()
    with pytest.raises(DataError, match="no connection, or one that broke off"):
        fetch(f"http://127.0.0.1:{port}/", tmp_path)


def test_ctrl_c_keeps_finished_files_and_no_parts(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(server.url, tmp_path, select=lambda path: path == "RECORDS")
    gate = server.gate = threading.Event()
    timer = threading.Timer(0.1, gate.set)
    real = dataset.wait

    def ctrl_c_halfway(running: object, **options: object) -> object:
        if server.halfway.is_set():
            timer.start()  # the other half of the files comes after the interrupt
            raise KeyboardInterrupt
        return real(running, **options)

    monkeypatch.setattr(dataset, "CHUNK", 1024)
    monkeypatch.setattr(dataset, "wait", ctrl_c_halfway)
    with pytest.raises(Interrupted, match="finished files are kept"):
        fetch(server.url, tmp_path)
    left = data_files(tmp_path)
    assert left.items() <= FILES.items()
    assert "RECORDS" in left
    assert not left.keys() & {"a/1.dat", "a/2.dat"}


def test_a_full_disk_is_one_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if target.suffix == ".dat":
            raise OSError(errno.ENOSPC, "No space left on device", str(source))
        real(source, target)

    monkeypatch.setattr(dataset.os, "replace", replace)
    with pytest.raises(DataError) as caught:
        fetch(server.url, tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: the disk is full; free some space")


def test_a_folder_that_cannot_be_written_is_one_line(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written: Not a directory; choose another"):
        fetch(server.url, tmp_path / "file" / "out")
    assert server.asked == []


def test_what_is_quick_says_nothing(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(server.url, tmp_path / "quick")
    assert capsys.readouterr() == ("", "")


SUM = "0" * 64
ESCAPES = [
    "",
    "/outside",
    "../outside",
    "a/../../outside",
    "a\\..\\..\\outside",
    "\\\\host\\share",
    "C:\\outside",
    "c:outside",
    "a//b",
    "a/./b",
    "..",
    ".",
    "a/",
    "a/\x00b",
    "a\x1bb",
    ".partial-x/1",
    "./../outside",
    "././/outside",
]


@pytest.mark.parametrize("path", ESCAPES)
def test_a_list_that_leaves_its_folder_is_refused(path: str) -> None:
    with pytest.raises(DataError, match=r"^list:2: .*(is not one inside|not a SHA)") as caught:
        read_checksums(f"{SUM}  fine\n{SUM}  {path}\n".encode(), where="list")
    assert "\n" not in str(caught.value)


def test_an_escape_in_the_list_downloads_nothing(server: Server, tmp_path: Path) -> None:
    server.sums = {"a/1.dat": server.sums["a/1.dat"], "../../escape": SUM}
    with pytest.raises(DataError, match=r"SHA256SUMS\.txt:2"):
        fetch(server.url, tmp_path / "deep" / "out")
    assert server.asked_for() == []
    assert tree(tmp_path) == {}


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1))
def test_a_path_is_refused_or_lies_inside(path: str) -> None:
    try:
        sums = read_checksums(f"{SUM}  {path}".encode())
    except DataError:
        return
    root = os.path.normpath("/srv/folder")
    for name in sums:
        joined = os.path.normpath(os.path.join(root, name))
        assert joined == os.path.join(root, name)
        assert joined.startswith(root + "/")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_list_or_one_line_of_error(text: bytes) -> None:
    said = ""
    try:
        assert read_checksums(text)
    except DataError as error:
        said = str(error)
    assert "\n" not in said


@pytest.mark.parametrize("form", ["{} {}", "{}  {}", "{} *{}", "{}  ./{}\r", "{}  {}\n\n"])
def test_the_usual_forms_of_a_list_are_read(form: str) -> None:
    text = form.format("AB" * 32, "a/with space.dat")
    assert read_checksums(text.encode()) == {"a/with space.dat": "ab" * 32}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"<html>not found</html>", "not a SHA-256 checksum"),
        (b"\n", "an empty list"),
        (SUM.encode(), "not a SHA-256 checksum"),
        (b"0" * 32 + b"  md5", "not a SHA-256 checksum"),
        (f"{SUM} a\n{'1' * 64} a".encode(), "listed twice"),
        (SUM.encode() + b" \xff", "not UTF-8"),
    ],
)
def test_what_is_no_list_is_refused(text: bytes, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_checksums(text)


def a_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, body in members.items():
            packed.writestr(zipfile.ZipInfo(name), body)
    return path


def a_tar(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tape:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tape.addfile(info, io.BytesIO(body))
    return path


@pytest.mark.parametrize("kind", ["zip", "w", "w:gz", "w:bz2", "w:xz"])
def test_an_archive_unpacks_to_its_files(tmp_path: Path, kind: str) -> None:
    # A zip inside a tar has a zip's end at the tar's end: the kind is told from the beginning.
    inner = a_zip(tmp_path / "inner.zip", {"x": b"y"}).read_bytes()
    members = {**FILES, "PK/z.zip": inner}
    if kind == "zip":
        packed = a_zip(tmp_path / "archive", members)
    else:
        packed = a_tar(tmp_path / "archive", members, kind)
    out = tmp_path / "out"
    assert unpack(packed, out) == [out / name for name in members]
    assert tree(out) == members


def test_folders_are_allowed_and_files_are_replaced(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t", "w") as tape:
        for name, kind in (("./", tarfile.DIRTYPE), ("./a", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            tape.addfile(info)
        tape.addfile(tarfile.TarInfo("./a/b"))
    (tmp_path / "out/a").mkdir(parents=True)
    (tmp_path / "out/a/b").write_text("old")
    assert unpack(tmp_path / "t", tmp_path / "out") == [tmp_path / "out/a/b"]
    assert tree(tmp_path / "out") == {"a/b": b""}
    packed = a_zip(tmp_path / "z", {"a/": b"", "a/b": b"new"})
    unpack(packed, tmp_path / "out")
    assert tree(tmp_path / "out") == {"a/b": b"new"}


# A name ends at a NUL in both formats, and in a zip one with a slash at its end is a folder.
@pytest.mark.parametrize("path", [path for path in ESCAPES if path not in ("a/\x00b", "a/")])
@pytest.mark.parametrize("pack", [a_zip, a_tar])
def test_an_archive_that_leaves_its_folder_writes_nothing(tmp_path: Path, pack, path: str) -> None:
    if path.startswith("/"):
        path = f"{tmp_path}{path}"  # were the check broken, nothing else would be overwritten
    packed = pack(tmp_path / "archive", {"fine": b"fine", path: b"outside"})
    with pytest.raises(DataError, match=r"is not one inside its folder|cannot be read"):
        unpack(packed, tmp_path / "deep" / "out")
    assert tree(tmp_path).keys() == {"archive"}


def test_a_folder_outside_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("../up")
    info.type = tarfile.DIRTYPE
    with tarfile.open(tmp_path / "t", "w") as tape:
        tape.addfile(info)
    a_zip(tmp_path / "z", {"../up/": b""})
    for name in "tz":
        with pytest.raises(DataError, match="is not one inside its folder"):
            unpack(tmp_path / name, tmp_path / "deep" / "out")


def test_a_negative_size_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a")
    info.size = -512
    (tmp_path / "t").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DataError, match="a has a negative size"):
        unpack(tmp_path / "t", tmp_path / "out")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, 99])
def test_a_zip_of_another_method_than_it_says_is_one_line(tmp_path: Path, method: int) -> None:
    packed = tmp_path / "z"
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("a", b"\xff" * 50)
    body = bytearray(packed.read_bytes())
    body[8] = body[body.index(b"PK\1\2") + 10] = method
    packed.write_bytes(body)
    with pytest.raises(DataError, match="no archive that can be read"):
        unpack(packed, tmp_path / "out")


@pytest.mark.parametrize("kind", ["w:gz", "w:bz2", "w:xz"])
def test_a_stream_damaged_in_the_middle_is_one_line(tmp_path: Path, kind: str) -> None:
    noise = b"".join(hashlib.sha256(bytes([n % 256, n // 256])).digest() for n in range(20_000))
    packed = a_tar(tmp_path / "t", {"a": noise}, kind)
    body = bytearray(packed.read_bytes())
    middle = len(body) // 2
    body[middle : middle + 100] = bytes(100)
    packed.write_bytes(body)
    with pytest.raises(DataError, match="no archive that can be read"):
        unpack(packed, tmp_path / "out")
    assert tree(tmp_path).keys() == {"t"}


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
    ],
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "t", "w") as tape:
        tape.addfile(tarfile.TarInfo("fine"))
        info = tarfile.TarInfo("odd")
        info.type, info.linkname = kind, "fine"
        tape.addfile(info)
    with pytest.raises(DataError, match="'odd' is a link or a device"):
        unpack(tmp_path / "t", tmp_path / "out")
    assert tree(tmp_path).keys() == {"t"}


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_in_a_zip_are_refused(tmp_path: Path, kind: int) -> None:
    info = zipfile.ZipInfo("odd")
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "z", "w") as packed:
        packed.writestr(info, "elsewhere")
    with pytest.raises(DataError, match="'odd' is a link or a device"):
        unpack(tmp_path / "z", tmp_path / "out")
    assert tree(tmp_path).keys() == {"z"}


@pytest.mark.parametrize("pack", [a_zip, a_tar])
def test_more_than_the_disk_holds_is_refused_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack
) -> None:
    packed = pack(tmp_path / "bomb", {"zeros": bytes(1_000_000)})
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda _: usage(0, 0, 999_999))
    with pytest.raises(DataError, match=r"unpacked it takes 0\.0 GB and 0\.0 GB are free"):
        unpack(packed, tmp_path / "out")
    assert tree(tmp_path).keys() == {"bomb"}


def test_a_name_that_comes_twice_or_as_file_and_folder_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z", "w") as packed:
        packed.writestr("a", "1")
        with pytest.warns(UserWarning, match="Duplicate"):
            packed.writestr("a", "2")
    with pytest.raises(DataError, match="a is there twice"):
        unpack(tmp_path / "z", tmp_path / "out")
    with pytest.raises(DataError, match="cannot be written"):
        unpack(a_tar(tmp_path / "t", {"a": b"1", "a/b": b"2"}), tmp_path / "out")
    assert tree(tmp_path / "out") == {}


def test_what_is_no_archive_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "none").write_bytes(b"")
    for name in ("text", "none"):
        with pytest.raises(DataError, match=f"{name}: no archive that can be read"):
            unpack(tmp_path / name, tmp_path / "out")
    with pytest.raises(DataError, match="absent: no such file"):
        unpack(tmp_path / "absent", tmp_path / "out")


def test_an_encrypted_zip_is_named(tmp_path: Path) -> None:
    packed = a_zip(tmp_path / "z", {"a": b"1"})
    body = bytearray(packed.read_bytes())
    body[6] |= 1
    body[body.index(b"PK\1\2") + 8] |= 1
    packed.write_bytes(body)
    with pytest.raises(DataError, match="'a' is encrypted"):
        unpack(packed, tmp_path / "out")


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("archives")
    members = {"a": b"one" * 300, "b/c": b"two", "b/d": b""}
    kinds = ("w", "w:gz", "w:bz2", "w:xz")
    made = [a_tar(folder / "archive", members, kind).read_bytes() for kind in kinds]
    return [a_zip(folder / "archive", members).read_bytes(), *made]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_a_damaged_archive_never_escapes_and_fails_in_one_line(
    archives: list[bytes], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    body = bytearray(data.draw(st.sampled_from(archives)))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    if data.draw(st.booleans()):
        del body[cut:]
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "archive").write_bytes(body)
    said = ""
    try:
        unpack(folder / "archive", folder / "deep/out")
    except JepaError as error:
        said = str(error)
    assert "\n" not in said
    assert not said or tree(folder).keys() == {"archive"}
    assert all(name == "archive" or name.startswith("deep/out/") for name in tree(folder))
