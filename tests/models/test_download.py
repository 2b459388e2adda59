import http.server
import json
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from rdcd.errors import UserError
from rdcd.models.download import _Redirects, cache_folder, check_download, fetch

CONTENT = np.random.default_rng(0).bytes(1_000_000)
OTHER = np.random.default_rng(1).bytes(1_000_000)
DIGEST, OTHER_DIGEST = sha256(CONTENT).hexdigest(), sha256(OTHER).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` at /file; how badly, its attributes say.

    Args:
        cuts: of the next answers, after how many bytes of the body the connection breaks.
        statuses: of the next answers, errors to answer with.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content, self.headers = CONTENT, {"ETag": '"one"'}
        self.ranges, self.says_length = True, True
        self.cuts: list[int] = []
        self.statuses: list[int] = []
        self.gate: threading.Event | None = None  # bodies wait for it
        self.requests: list[dict[str, str]] = []
        self.sent = 0  # bytes of bodies

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file"


class Answer(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        server.requests.append(dict(self.headers))
        if server.statuses:
            return self.send_error(server.statuses.pop(0))
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            return self.end_headers()
        start = 0
        if server.ranges and "Range" in self.headers and self.headers["If-Range"] in server.headers.values():
            start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
        if start >= len(server.content):
            return self.send_error(416)
        body = server.content[start:]
        self.send_response(206 if start else 200)
        for name, value in server.headers.items():
            self.send_header(name, value)
        if server.says_length:
            self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.end_headers()
        if server.gate:
            server.gate.wait()
        body = body[:server.cuts.pop(0)] if server.cuts else body
        server.sent += len(body)
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        if made.gate:
            made.gate.set()
        made.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "weights.pt"


def names(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def ranges(server: Server) -> list[str | None]:
    return [request.get("Range") for request in server.requests]


def get(server: Server, target: Path, **options) -> Path:
    return fetch(server.url, target, **{"pause": 0.0} | options)


def test_a_file_comes_whole_once_and_is_recorded(server: Server, target: Path, capsys) -> None:
    assert get(server, target) == target and target.read_bytes() == CONTENT
    assert names(target) == [".weights.pt.lock", "weights.pt", "weights.pt.json"]
    record = json.loads((target.parent / "weights.pt.json").read_text())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record.pop("recorded"))
    assert record == {"url": server.url, "size": 1_000_000, "sha256": DIGEST}
    assert "fetching weights.pt, 1.0 MB" in capsys.readouterr().out
    get(server, target)
    assert len(server.requests) == 1 and capsys.readouterr().out == ""


@pytest.mark.parametrize("headers", [{"ETag": '"one"'}, {"Last-Modified": "Wed, 01 Jan 2020 00:00:00 GMT"},
                                     {"ETag": 'W/"one"', "Last-Modified": "Wed, 01 Jan 2020 00:00:00 GMT"}])
def test_a_broken_connection_is_taken_up_where_it_broke(server: Server, target: Path, headers: dict, capsys) -> None:
    server.headers, server.cuts = headers, [300_000, 400_000]
    get(server, target)
    assert target.read_bytes() == CONTENT and server.sent == 1_000_000
    assert ranges(server) == [None, "bytes=300000-", "bytes=700000-"]
    said = capsys.readouterr().out
    assert "the connection broke after 300,000 of 1,000,000 bytes; trying again" in said and "from 0.7 MB on" in said


def test_a_later_process_goes_on_with_what_came(server: Server, target: Path) -> None:
    server.cuts = [300_000, 0]
    with pytest.raises(UserError, match=f"cannot fetch {server.url} .*the connection broke.*, 2 times.*put it at"):
        get(server, target, tries=2)
    assert names(target) == [".weights.pt.lock", "weights.pt.part", "weights.pt.part.json"]
    get(server, target)
    assert target.read_bytes() == CONTENT and server.sent == 1_000_000
    assert names(target) == [".weights.pt.lock", "weights.pt", "weights.pt.json"]


@pytest.mark.parametrize("change", ["ranges", "validator"])
def test_a_server_that_cannot_go_on_is_asked_from_the_start(server: Server, target: Path, change: str) -> None:
    if change == "ranges":
        server.ranges = False
    else:
        server.headers = {}  # nothing tells whether the rest would be of the same file
    server.cuts = [300_000]
    get(server, target)
    assert target.read_bytes() == CONTENT and server.sent == 1_300_000
    assert ranges(server) == [None, "bytes=300000-" if change == "ranges" else None]


@pytest.mark.parametrize("heeds", [True, False])
def test_parts_of_two_versions_are_never_joined(server: Server, target: Path, heeds: bool) -> None:
    server.cuts = [300_000]
    with pytest.raises(UserError):
        get(server, target, tries=1)
    server.content, server.headers = OTHER, {"ETag": '"two"'}
    if not heeds:  # it answers with a part although If-Range names another version
        server.headers["X-Also"] = '"one"'
    get(server, target)
    assert target.read_bytes() == OTHER
    assert ranges(server) == [None, "bytes=300000-"] + [None] * (not heeds)


def test_a_part_of_another_address_is_not_used(server: Server, target: Path) -> None:
    server.cuts = [300_000]
    with pytest.raises(UserError):
        fetch(f"{server.url}?old", target, tries=1)
    get(server, target)
    assert target.read_bytes() == CONTENT and ranges(server) == [None, None]


def leave_part(server: Server, target: Path, content: bytes, size: int | None) -> None:
    """Leave what an interrupted process would."""
    target.parent.mkdir()
    (target.parent / "weights.pt.part").write_bytes(content)
    (target.parent / "weights.pt.part.json").write_text(
        json.dumps({"url": server.url, "validator": '"one"', "size": size}))


@pytest.mark.parametrize("known", [{}, {"sha256": DIGEST}])
def test_a_part_that_is_whole_needs_no_network(server: Server, target: Path, known: dict) -> None:
    leave_part(server, target, CONTENT, 1_000_000)
    assert get(server, target, **known).read_bytes() == CONTENT and server.requests == []


def test_a_damaged_part_does_not_become_the_file(server: Server, target: Path) -> None:
    leave_part(server, target, OTHER[:300_000], 1_000_000)
    with pytest.raises(UserError, match=f"expected {DIGEST}. What came was removed; try again"):
        get(server, target, sha256=DIGEST)
    assert ranges(server) == ["bytes=300000-"] and names(target) == [".weights.pt.lock"]
    assert get(server, target, sha256=DIGEST).read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_dropped(server: Server, target: Path) -> None:
    leave_part(server, target, CONTENT + b"more", None)
    get(server, target)
    assert target.read_bytes() == CONTENT and ranges(server) == ["bytes=1000004-", None]


def test_a_file_of_unknown_length_is_fetched(server: Server, target: Path, capsys) -> None:
    server.says_length = False
    get(server, target, sha256=DIGEST, size=1_000_000)
    assert target.read_bytes() == CONTENT and "unknown size" in capsys.readouterr().out
    assert names(target) == [".weights.pt.lock", "weights.pt"]  # a record is of use only where nothing is known


@pytest.mark.parametrize(("known", "said"), [
    ({"sha256": OTHER_DIGEST}, f"SHA-256 {DIGEST}, expected {OTHER_DIGEST}"),
    ({"size": 999}, "bytes 1000000, expected 999"),
])
def test_a_file_other_than_known_is_removed(server: Server, target: Path, known: dict, said: str) -> None:
    with pytest.raises(UserError, match=f"{server.url} did not give the file it should: {said}.*removed; try again"):
        get(server, target, **known)
    assert names(target) == [".weights.pt.lock"]


def test_a_file_that_changed_since_is_said(server: Server, target: Path) -> None:
    get(server, target)
    target.write_bytes(OTHER)
    for check in (lambda: get(server, target), lambda: check_download(target, url=server.url)):
        with pytest.raises(UserError) as error:
            check()
        said = str(error.value)
        assert f"{target} is not the file it should be: SHA-256 {OTHER_DIGEST}, expected {DIGEST}" in said
        assert f"delete it to fetch it again; delete {target}.json too if you mean another version" in said
    assert target.read_bytes() == OTHER and len(server.requests) == 1
    target.unlink()
    get(server, target)
    assert target.read_bytes() == CONTENT


def test_a_file_fetched_anew_is_held_to_the_first_ones_record(server: Server, target: Path) -> None:
    get(server, target)
    target.unlink()
    server.content = OTHER
    with pytest.raises(UserError, match=f"SHA-256 {OTHER_DIGEST}, expected {DIGEST}.*or delete {target}.json"):
        get(server, target)
    assert names(target) == [".weights.pt.lock", "weights.pt.json"]
    (target.parent / "weights.pt.json").unlink()
    assert get(server, target).read_bytes() == OTHER


def test_a_known_hash_is_stronger_than_a_record(server: Server, target: Path) -> None:
    get(server, target)
    (target.parent / "weights.pt.json").write_text(json.dumps({"sha256": OTHER_DIGEST}))
    get(server, target, sha256=DIGEST)
    with pytest.raises(UserError, match=f"SHA-256 {DIGEST}, expected {OTHER_DIGEST}"):
        get(server, target, sha256=OTHER_DIGEST)


def test_a_file_put_there_by_hand_is_recorded_and_needs_no_network(target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(CONTENT)
    fetch("http://127.0.0.1:9/file", target)
    assert json.loads((target.parent / "weights.pt.json").read_text())["sha256"] == DIGEST


def test_a_record_that_cannot_be_read_or_written(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target.parent.mkdir()
    target.write_bytes(CONTENT)
    with monkeypatch.context() as frozen:
        frozen.setattr("rdcd.models.download.write_json", lambda *args: (_ for _ in ()).throw(PermissionError))
        fetch("http://127.0.0.1:9/file", target)  # a cache that is not ours
    assert names(target) == ["weights.pt"]
    for text in ("{", "[1]"):
        (target.parent / "weights.pt.json").write_text(text)
        with pytest.raises(UserError, match="weights.pt.json is not readable .*: delete it"):
            fetch("http://127.0.0.1:9/file", target)


def test_offline_the_address_and_the_place_are_said(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("who is offline need not wait"))
    with pytest.raises(UserError, match=rf"cannot fetch http://127.0.0.1:9/file \(.*refused.*\): fetch it on any "
                                        rf"machine that has a network, and put it at {target} or give teacher.path="):
        fetch("http://127.0.0.1:9/file", target, instead="teacher.path=FILE")
    assert not target.exists()


def test_errors_of_the_server(server: Server, target: Path) -> None:
    server.statuses = [404]
    with pytest.raises(UserError, match=rf"cannot fetch {server.url} \(HTTP 404 Not Found\)"):
        get(server, target)
    assert len(server.requests) == 1
    server.statuses = [503, 429]  # these pass
    assert get(server, target).read_bytes() == CONTENT and len(server.requests) == 4
    server.statuses = [416]  # to a question for the whole file
    assert get(server, target.with_name("odd.pt")).read_bytes() == CONTENT
    server.statuses = [500] * 3
    with pytest.raises(UserError, match="HTTP 500 Internal Server Error, 3 times"):
        get(server, target.with_name("other.pt"), tries=3)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/file", "data:,hello", "/etc/hostname"])
def test_only_http_is_spoken(url: str, target: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"{url}: expected an address that starts with https://")):
        fetch(url, target)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/file", "data:,hello"])
def test_redirects_lead_to_http_only(url: str, server: Server, target: Path) -> None:
    with pytest.raises(UserError, match=rf"cannot fetch {server.url.removesuffix('file')}to/"):
        fetch(server.url.replace("/file", f"/to/{url}"), target, tries=1)
    assert len(server.requests) == 1 and not target.exists()


def test_redirects_never_leave_https() -> None:
    def ask(old: str, new: str) -> urllib.request.Request:
        return _Redirects().redirect_request(urllib.request.Request(old), None, 302, "Found", {}, new)

    assert ask("https://one/file", "https://two/file").full_url == "https://two/file"
    assert ask("http://one/file", "https://two/file").full_url == "https://two/file"
    with pytest.raises(OSError, match="it redirects to http://two/file, which is not https"):
        ask("https://one/file", "http://two/file")


def test_redirects_are_followed(server: Server, target: Path) -> None:
    assert fetch(server.url.replace("/file", f"/to/{server.url}"), target).read_bytes() == CONTENT


def test_a_place_that_cannot_be_written_is_said_before(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file, no folder"):
        get(server, tmp_path / "file" / "weights.pt")
    assert server.requests == []


def test_a_full_disk_is_said_and_not_tried_again(server: Server, target: Path, monkeypatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rdcd.models.download.write_json", full)
    with pytest.raises(UserError, match="no room left for .*weights.pt.part .*make room"):
        get(server, target)
    assert len(server.requests) == 1


def test_two_processes_fetch_once(server: Server, target: Path) -> None:
    server.gate = threading.Event()
    code = f"from rdcd.models.download import fetch; fetch({server.url!r}, {str(target)!r})"
    both = [subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines: list[str] = []
    waiting = threading.Event()

    def read(process: subprocess.Popen) -> None:
        for line in process.stdout:
            lines.append(line)
            if "waiting" in line:
                waiting.set()

    readers = [threading.Thread(target=read, args=(process,)) for process in both]
    for reader in readers:
        reader.start()
    assert waiting.wait(60), lines
    server.gate.set()
    assert [process.wait(60) for process in both] == [0, 0]
    for reader in readers:
        reader.join()
    assert target.read_bytes() == CONTENT and len(server.requests) == 1
    assert sum("fetching weights.pt, 1.0 MB" in line for line in lines) == 1
    assert "weights.pt: another process is fetching it; waiting\n" in lines


def test_the_lock_of_a_killed_process_holds_nobody_up(server: Server, target: Path) -> None:
    server.gate = threading.Event()
    code = f"from rdcd.models.download import fetch; fetch({server.url!r}, {str(target)!r})"
    with subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert "fetching" in process.stdout.readline()
        process.kill()
    server.gate.set()
    assert get(server, target).read_bytes() == CONTENT


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RDCD_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "rdcd"
    monkeypatch.setenv("RDCD_CACHE", "/elsewhere")
    assert cache_folder() == Path("/elsewhere") and cache_folder("~/mine") == tmp_path / "mine"
