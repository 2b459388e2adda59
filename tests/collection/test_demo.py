"""The demo: real requests to its server, and its page in a real browser where there is one."""

import base64
import http.client
import io
import json
import os
import re
import signal
import socket
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import Browser, find_chromium
from hydra.core.global_hydra import GlobalHydra
from miniatures import EDITS, jpeg, save, scene

from rdcd import cli, provenance
from rdcd.collection import index as commands
from rdcd.collection.demo import demo, listen, make_server
from rdcd.collection.finder import Finder
from rdcd.collection.search import search
from rdcd.data.images import EXTENSIONS
from rdcd.errors import BadImage, UserError
from rdcd.models.student import Student
from rdcd.models.weights import save_student

MOST = 200_000  # bytes of a file


def encoded(picture, **how) -> bytes:
    file = io.BytesIO()
    picture.save(file, **{"format": "JPEG", "quality": 90} | how)
    return file.getvalue()


def huge_png() -> bytes:
    """A small file that says it holds 2.5 thousand million pixels."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(5_000_000), 9)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0))
            + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny student, calibrated as it were, an album of 16 pictures, and its index."""
    folder = tmp_path_factory.mktemp("demo")
    torch.manual_seed(0)
    rows = [{"codec": "Flat", "score_norm": None, "precision": precision, "threshold": threshold,
             "benchmark": "drawn pictures"} for precision, threshold in ((0.5, 0.9), (0.95, 0.999))]
    save_student(folder / "student.safetensors", Student(trunk="test_efficientnet", dim=16, kd_dim=10), size=32,
                 card={"calibration": rows})
    for i in range(16):
        save(scene(i), folder / "album" / ("<b> & \u202e.jpg" if i == 3 else f"p{i:02d}.jpg"))
    (folder / "album" / "secret.txt").write_text("not for the page")
    commands.build(index=folder / "index", images=folder / "album", model=folder / "student.safetensors", workers=0,
                   device="cpu")
    return folder


class Served:
    """The server in a thread."""

    def __init__(self, finder: Finder) -> None:
        self.socket, self.finder = listen(0), finder
        self.port = self.socket.getsockname()[1]
        self._server = make_server(finder, max_bytes=MOST)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self.socket]})
        self._thread.start()

    def ask(self, body: object = None, *, path: str = "/find", method: str = "POST",
            **headers: str) -> tuple[int, dict | str, dict]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            said = answer.read().decode()
            isjson = "json" in answer.headers.get("content-type", "")
            return answer.status, json.loads(said) if isjson else said, dict(answer.headers)
        finally:
            connection.close()

    def end(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self.socket.close()


@pytest.fixture(scope="module")
def served(place: Path) -> Iterator[Served]:
    one = Served(Finder(place / "index", device="cpu", score_norm=None, k=5))
    yield one
    one.end()


def test_a_file_of_the_same_bytes_is_a_match_whatever_its_score(place: Path) -> None:
    one = Served(Finder(place / "index", device="cpu", score_norm=None, threshold=5))
    try:
        _, said, _ = one.ask((place / "album" / "p07.jpg").read_bytes())
    finally:
        one.end()
    assert [(match["name"], match["kind"]) for match in said["matches"] if match["match"]] == [
        ("p07.jpg", "identical file")]


def test_what_nobody_expected_is_told_and_it_goes_on(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Finder, picture: bytes) -> None:
        raise KeyError("nobody expected this")

    with monkeypatch.context() as patched:
        patched.setattr(Finder, "find", broken)
        status, said, _ = served.ask(encoded(scene(1)))
    assert status == 500 and "KeyError" in said["error"] and "nobody" not in said["error"]
    assert served.ask(encoded(scene(2)))[0] == 200


def test_matches_are_those_of_search(place: Path, served: Served, tmp_path: Path, rows: Callable) -> None:
    query = tmp_path / "query.jpg"
    save(jpeg(scene(4), 60), query)
    status, said, _ = served.ask(query.read_bytes())
    assert status == 200 and said["pictures"] == 16 and said["calibrated"]
    found = rows(search(index=place / "index", images=query, out=tmp_path / "out", k=5, score_norm=None, gallery=0,
                        workers=0, device="cpu") / "matches.csv")
    shown = [match for match in said["matches"] if match["match"]]
    assert [(m["path"], round(m["score"], 6), m["confidence"], m["kind"]) for m in shown] == [
        (row["match"], float(row["score"]), float(row["confidence"]), row["kind"]) for row in found]
    assert shown[0]["name"] == "p04.jpg" and len(said["matches"]) == 5
    assert all(m["thumbnail"].startswith("data:image/jpeg;base64,") for m in said["matches"])
    status, said, _ = served.ask((place / "album" / "p07.jpg").read_bytes())
    assert (said["matches"][0]["kind"], said["matches"][0]["confidence"]) == ("identical file", 0.95)


@pytest.mark.parametrize(("body", "status", "reason"), [
    (encoded(scene(1))[:-300], 422, "truncated"),
    (huge_png(), 422, "more than max_pixels=100000000 allows"),
    (b"just text", 422, "no sound file of the formats JPEG"),
    (b"", 422, "the file is empty"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "no sound file"),
    (bytes(MOST + 1), 413, "larger than 0.2 MB"),
], ids=("truncated", "bomb", "text", "empty", "svg", "large"))
def test_bad_uploads_are_refused_with_a_reason(served: Served, body: bytes, status: int, reason: str) -> None:
    found, said, _ = served.ask(body)
    assert found == status and reason in said["error"]
    assert served.ask(encoded(scene(2)))[0] == 200  # and it goes on


def test_a_file_whose_length_is_not_said_is_cut_off(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
        connection.sendall(b"POST /find HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        part = b"8000\r\n" + bytes(0x8000) + b"\r\n"
        for _ in range(MOST // 0x8000 + 1):  # and no end: it does not wait for one
            connection.sendall(part)
        assert b" 413 " in connection.recv(1000).split(b"\r\n")[0]


def test_questions_asked_at_once_get_their_own_answers(served: Served) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda i: served.ask(encoded(jpeg(scene(i), 70))), (i for i in range(16) if i != 3)))
    assert [said["matches"][0]["name"] for _, said, _ in answers] == [f"p{i:02d}.jpg" for i in range(16) if i != 3]


def test_only_this_machine_and_its_own_page_are_answered(served: Served) -> None:
    good = encoded(scene(2))
    assert served.socket.getsockname()[0] == "127.0.0.1"
    for host in ("evil.example", f"evil.example:{served.port}", "127.0.0.1.evil.example", ""):
        for path, method in (("/", "GET"), ("/find", "POST")):
            assert served.ask(good, path=path, method=method, Host=host)[0] == 400
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{served.port + 1}", "https://localhost"):
        assert served.ask(good, Origin=origin)[0] == 403
    for host in ("127.0.0.1", "localhost"):
        name = f"{host}:{served.port}"
        assert served.ask(good, Host=name, Origin=f"http://{name}")[0] == 200


def test_every_format_that_is_read_may_be_chosen(served: Served) -> None:
    accepted = re.search(r'accept="([^"]*)"', served.ask(path="/", method="GET")[1])[1].split(",")
    assert set(EXTENSIONS) <= set(accepted) and "image/*" in accepted


def test_no_address_leads_to_a_file(served: Served) -> None:
    for path in ("/secret.txt", "/album/p00.jpg", "/../album/secret.txt", "/find", "/docs", "/%2e%2e/index.json"):
        assert served.ask(path=path, method="GET")[0] in (404, 405)
    status, page, headers = served.ask(path="/", method="GET")
    assert status == 200 and "16 pictures" in page and "$" not in page
    assert "default-src 'none'" in headers["content-security-policy"] and headers["cache-control"] == "no-store"


def test_a_picture_that_has_gone_and_an_index_that_has_grown(place: Path, tmp_path: Path) -> None:
    for i in range(3):
        save(scene(i), tmp_path / "album" / f"p{i}.jpg")
    commands.build(index=tmp_path / "index", images=tmp_path / "album", model=place / "student.safetensors",
                   workers=0, device="cpu")
    one = Served(Finder(tmp_path / "index", device="cpu", score_norm=None))
    try:
        gone = (tmp_path / "album" / "p1.jpg").read_bytes()
        (tmp_path / "album" / "p1.jpg").unlink()
        best = one.ask(gone)[1]["matches"][0]
        assert (best["name"], best["thumbnail"]) == ("p1.jpg", None) and "No such file" in best["missing"]
        save(scene(9), tmp_path / "more" / "p9.jpg")
        commands.add(index=tmp_path / "index", images=tmp_path / "more", workers=0, device="cpu")
        said = one.ask((tmp_path / "more" / "p9.jpg").read_bytes())[1]
        assert said["pictures"] == 4 and said["matches"][0]["name"] == "p9.jpg"
        (tmp_path / "index" / "index.json").unlink()
        status, said, _ = one.ask(gone)
        assert status == 409 and "no index in" in said["error"]
    finally:
        one.end()


def test_pictures_are_described_as_the_index_was(place: Path) -> None:
    finder = Finder(place / "index", device="cpu")
    for row, path in enumerate(finder._index.segments[0].paths()):
        vector = finder._embedder.embed(Path(path).read_bytes())
        assert np.array_equal(vector, finder._index.vectors(np.array([row])))
    with pytest.raises(BadImage):
        finder._embedder.embed(b"no picture")


def test_an_index_that_knows_no_precision_says_so(tmp_path: Path) -> None:
    commands.build(index=tmp_path / "index", images=None, model="thumbnail", device="cpu", workers=0)
    one = Served(Finder(tmp_path / "index", device="cpu"))
    try:
        said = one.ask(encoded(scene(2)))[1]
        assert (said["pictures"], said["matches"], said["calibrated"]) == (0, [], False)
    finally:
        one.end()


def test_settings_that_cannot_work(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listen(0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port={port} cannot be had"):
            demo(index=place / "index", port=port)
    with pytest.raises(UserError, match="port=70000: expected a whole number"):
        demo(index=place / "index", port=70_000)
    with pytest.raises(UserError, match="no index in"):
        demo(index=place / "nowhere", port=0)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match="pip install starlette uvicorn"):
        demo(index=place / "index", port=0)


def test_the_command_says_where_it_is_and_ends_at_an_interrupt(place: Path, monkeypatch: pytest.MonkeyPatch,
                                                               capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["rdcd"])
    monkeypatch.setattr(provenance, "_run", {"command": None, "config": None})
    with listen(0) as free:
        port = free.getsockname()[1]
    seen, failed = [], threading.Event()

    def visit() -> None:
        while not failed.wait(0.02):
            with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")  # and stays open
                seen.append(connection.recv(1000))
                return os.kill(os.getpid(), signal.SIGINT)

    visitor = threading.Thread(target=visit)
    visitor.start()
    try:
        assert cli.main(["demo", f"index={place / 'index'}", f"port={port}", "device=cpu"]) == 0
    finally:
        failed.set()
        visitor.join()
        GlobalHydra.instance().clear()
    said = capsys.readouterr().out
    assert seen[0].startswith(b"HTTP/1.1 200") and "16 pictures in" in said and said.endswith("ended\n")
    assert f"http://127.0.0.1:{port} shows the page" in said


def test_the_page_in_a_browser(place: Path, served: Served, tmp_path: Path) -> None:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium: `apt-get install chromium`, or its path in CHROMIUM")
    save(jpeg(scene(3), 60), tmp_path / "query.jpg")
    (tmp_path / "notes.jpg").write_text("no picture")
    (tmp_path / "large.jpg").write_bytes(bytes(MOST + 1))
    browser = Browser(program, tmp_path / "profile")
    try:
        address = f"http://127.0.0.1:{served.port}"
        browser.open(f"{address}/")
        browser.choose("#file", tmp_path / "query.jpg")
        browser.wait("document.querySelector('#matches li img')")
        shown = browser.run("document.querySelector('#matches').innerText")
        assert "<b> & \ufffd.jpg" in shown and "expected precision" in shown
        assert browser.run("document.querySelector('#matches .score').textContent").startswith(("0.9", "1.0"))
        assert "measured on drawn pictures" in browser.run("document.getElementById('how').textContent")
        assert browser.run("document.querySelectorAll('.found li').length") == 5
        assert browser.run("[...document.images].every((i) => i.complete && i.naturalWidth > 20)")
        assert browser.problems(address, "blob:") == []  # no script error, nothing blocked, nothing fetched elsewhere

        for name, reason in (("notes.jpg", "This picture cannot be read"), ("large.jpg", "larger than 0.2 MB")):
            browser.choose("#file", tmp_path / name)
            browser.wait(f"document.getElementById('status').textContent.includes({reason!r})")
            assert browser.run("document.getElementById('answer').hidden")

        data = base64.b64encode(encoded(EDITS[0](scene(5)))).decode()
        for event, holder in (("DragEvent('drop'", "dataTransfer"), ("ClipboardEvent('paste'", "clipboardData")):
            browser.run(f"""(() => {{
                const held = new DataTransfer();
                const bytes = Uint8Array.from(atob('{data}'), (c) => c.charCodeAt(0));
                held.items.add(new File([bytes], '{holder}.jpg'));
                document.getElementById('drop').dispatchEvent(
                    new {event}, {{ {holder}: held, bubbles: true, cancelable: true }}));
            }})()""")
            browser.wait("!document.getElementById('answer').hidden && "
                         f"document.getElementById('name').textContent === '{holder}.jpg'")
            assert "p05.jpg" in browser.run("document.querySelector('.found li .file').textContent")
    finally:
        browser.close()
