"""The page: whole, escaped, and usable by keyboard in a real browser where there is one."""

import csv
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
from browser import Browser, find_chromium
from miniatures import save, scene
from PIL import Image

from rdcd.collection import gallery
from rdcd.collection.gallery import Card, Page, Tile, write_gallery
from rdcd.collection.rejected import read_rejected

VOID = {"meta", "img", "input"}


class Parsed(HTMLParser):
    """A page's elements; fails on what is unclosed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open, self.found, self.said = [], [], ""
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said += data

    def all(self, tag: str, **wanted: str) -> list[dict]:
        """Attributes of the elements of a kind that have these."""
        return [attributes for found, attributes in self.found if found == tag and wanted.items() <= attributes.items()]


def page(cards: list[Card], **more) -> Page:
    return Page(**{"title": "Search", "lead": "lead", "cards": cards, "total": len(cards), "threshold": 0.25,
                   "how": "given", "score_norm": None, "noun": "pictures with matches"} | more)


def pictures(folder: Path, count: int) -> list[str]:
    for i in range(count):
        save(scene(i), folder / f"p{i:04d}.jpg")
    return [str(folder / f"p{i:04d}.jpg") for i in range(count)]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium: `apt-get install chromium`, or its path in CHROMIUM")
    opened = Browser(program, tmp_path / "profile")
    yield opened
    opened.close()


def test_searched_pictures_are_shown_with_their_matches(album: Path, copies: Path, tmp_path: Path, build, find) -> None:
    build(index=tmp_path / "index", images=album)
    out = find(index=tmp_path / "index", images=[copies, album / "2023"], out=tmp_path / "out", threshold=0.02)
    text = (out / "gallery.html").read_text(encoding="utf-8")
    shown = Parsed(out / "gallery.html")
    links = {unquote(urlparse(a["href"]).path) for a in shown.all("a")}
    assert all(Path(link).is_file() for link in links) and {a["title"] for a in shown.all("a")} == links
    assert any("&amp; 'quoted' \"twice\"" in link for link in links) and "<b>&amp;" not in text
    assert len(shown.all("article")) > 3
    assert all(a["src"].startswith("data:image/jpeg;base64,") for a in shown.all("img"))
    assert "http" not in re.sub(r'http-equiv', "", text) and "no calibration" in shown.said


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    names = ['"><script>alert(1)</script>.jpg', "' onerror='x.jpg", "a\nb\x1b[31m.jpg", "\u202egpj.exe.jpg",
             "${x} $y.jpg"]
    cards = [Card([Tile(f"/nowhere/{name}", "query"), Tile(f"/nowhere/{name}", "alike", 0.5, 0.9)]) for name in names]
    written = write_gallery(tmp_path, page(cards))
    shown = Parsed(written[0])
    assert len(shown.all("script")) == 1 and len(shown.all("a")) == 10 and not shown.all("img")
    assert {key for a in shown.all("a") for key in a} == {"href", "title", "target", "rel"}
    assert "expected precision 0.9" in shown.said and "\x1b" not in shown.said and "\u202e" not in shown.said


def test_many_pictures_make_several_pages_and_long_groups_are_cut(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(gallery, "_TILES", 20)
    monkeypatch.setattr(gallery, "_SHOWN", 6)
    paths = pictures(tmp_path / "p", 9)
    cards = [Card([Tile(path, "keep"), *(Tile(p, "review", 0.5) for p in paths)]) for path in paths]
    (tmp_path / "gallery-9.html").write_text("of before")
    written = write_gallery(tmp_path, page(cards, total=50, noun="groups"))
    assert [path.name for path in written] == ["gallery.html", "gallery-2.html", "gallery-3.html"]
    assert not (tmp_path / "gallery-9.html").exists()
    parsed = [Parsed(path) for path in written]
    assert [len(one.all("article")) for one in parsed] == [4, 4, 1]
    assert [a["id"] for one in parsed for a in one.all("article")] == [f"c{i}" for i in range(1, 10)]
    assert [[a["href"] for a in one.all("a", rel="next")] for one in parsed] == [
        ["gallery-2.html"], ["gallery-3.html"], []]
    assert "and 4 more, in the tables" in parsed[0].said and "The first 9 of 50 groups" in parsed[0].said
    assert "page 2 of 3" in parsed[1].said


def test_nothing_found_is_said(tmp_path: Path) -> None:
    (written,) = write_gallery(tmp_path, page([], noun="groups"))
    assert "No groups: nothing scores 0.2500 or more." in Parsed(written).said


def showing(browser: Browser) -> list[str]:
    return browser.run("cards.filter((c) => !c.node.hidden).map((c) => c.node.id)")


def focused(browser: Browser) -> str:
    return browser.run("document.activeElement.id || document.activeElement.title || document.activeElement.tagName")


def test_keys_and_filters_in_a_browser(tmp_path: Path, browser: Browser) -> None:
    paths = pictures(tmp_path / "été #1", 8)
    cards = [Card([Tile(path, "query"), Tile(paths[7], "alike", 0.9 - 0.1 * i, None), Tile(paths[6], "alike", 0.3)])
             for i, path in enumerate(paths[:5])]
    (written,) = write_gallery(tmp_path, page(cards))
    browser.open(written.as_uri())
    count = "document.getElementById('count').textContent"
    assert browser.run(count) == "5 of 5 pictures with matches"
    for key, wanted in [("j", "c1"), ("j", "c2"), ("ArrowDown", "c3"), ("k", "c2"), ("ArrowUp", "c1"), ("k", "c1"),
                        ("ArrowRight", paths[0]), ("ArrowRight", paths[7]), ("ArrowLeft", paths[0]), ("j", "c2"),
                        ("/", "filter")]:
        browser.press(key)
        assert focused(browser) == wanted, key
    for key in "p0003":
        browser.press(key)
    assert showing(browser) == ["c4"] and browser.run(count) == "1 of 5 pictures with matches"
    browser.press("Escape")
    browser.press("j")
    assert focused(browser) == "c4"
    browser.run("filter.value = ''; least.value = 0.65; least.dispatchEvent(new Event('input'))")
    assert showing(browser) == ["c1", "c2", "c3"]
    assert browser.run("document.querySelectorAll('#c1 li:not([hidden])').length") == 2
    assert browser.run("document.getElementById('least-shown').textContent") == "0.6500"
    browser.run("least.value = least.min; least.dispatchEvent(new Event('input'))")
    assert len(showing(browser)) == 5 and browser.run("document.querySelectorAll('li[hidden]').length") == 0
    assert browser.run("[...document.images].slice(0, 3).every((i) => i.complete && i.naturalWidth > 20)")
    assert browser.problems() == []  # no script error, no blocked or fetched address


def test_rejected_pairs_are_listed_as_rows_to_save(tmp_path: Path, browser: Browser) -> None:
    paths = pictures(tmp_path / 'a, "b" #é', 3)
    hashes = [c * 64 for c in "abc"]
    cards = [Card([Tile(paths[0], "keep", sha256=hashes[0]),
                   *(Tile(paths[i], "review", 0.5, sha256=hashes[i]) for i in (1, 2))]),
             Card([Tile(paths[1], "query"), Tile(paths[2], "alike", 0.4)])]
    (written,) = write_gallery(tmp_path, page(cards))
    browser.open(written.as_uri())
    assert browser.run("rejected.hidden && document.querySelectorAll('.pair button').length") == 3
    browser.run("document.querySelectorAll('#c1 button')[1].click()")
    for key in ("j", "ArrowRight", "ArrowRight", "n"):
        browser.press(key)
    browser.run("document.querySelector('#c2 button').click()")
    (tmp_path / "no.csv").write_text(browser.run("document.querySelector('textarea').value"), encoding="utf-8")
    assert browser.run("rejected.hidden") is False
    with open(tmp_path / "no.csv", newline="", encoding="utf-8") as file:
        found = [tuple(row.values()) for row in csv.DictReader(file)]
    one = (paths[1], paths[0], hashes[1], hashes[0])
    assert found == [one, (paths[2], paths[0], hashes[2], hashes[0]), (paths[2], paths[1], "", "")]
    rejected, _ = read_rejected(tmp_path / "no.csv")
    assert rejected.pair(paths[2], bytes(32), paths[1], bytes(32))
    assert rejected.pair("elsewhere", bytes.fromhex(hashes[0]), "moved", bytes.fromhex(hashes[2]))
    browser.run("document.querySelectorAll('.rejected button').forEach((button) => button.click())")
    assert browser.run("rejected.hidden") is True and browser.problems() == []


def test_enter_opens_the_picture_itself(tmp_path: Path, browser: Browser) -> None:
    path = pictures(tmp_path / "a ?#%", 1)[0]
    (written,) = write_gallery(tmp_path, page([Card([Tile(path, "query"), Tile(path, "alike", 0.5)])]))
    browser.open(written.as_uri())
    browser.run("document.querySelector('#c1 a').target = '_self'")  # the window this test looks at
    browser.press("j")
    browser.press("Enter")
    for _ in range(100):
        if (address := browser.run("location.href")) != written.as_uri():
            break
    assert unquote(urlparse(address).path) == path and browser.run("document.images[0].naturalWidth") == 60


def test_a_full_page_opens_and_every_card_can_be_reached(tmp_path: Path, browser: Browser) -> None:
    for i in range(40):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (160, 160, 3), np.uint8)).save(tmp_path / f"{i}.jpg")
    tiles = [Tile(str(tmp_path / f"{i % 40}.jpg"), "alike", 1 - i / 4000) for i in range(gallery._TILES)]
    cards = [Card([Tile(tiles[i].path, "query"), tiles[i]]) for i in range(0, gallery._TILES, 2)]
    (written,) = write_gallery(tmp_path, page(cards[:gallery._TILES // 2]))
    assert written.stat().st_size > 8_000_000
    browser.open(written.as_uri())
    last = f"c{len(cards)}"
    browser.run(f"document.getElementById('{last}').focus()")
    browser.press("k")
    assert focused(browser) == f"c{len(cards) - 1}"
    box = browser.run("(({top, bottom}) => [top, bottom, innerHeight])(document.activeElement.getBoundingClientRect())")
    assert 0 <= box[0] < box[1] <= box[2]
    assert browser.problems() == [] and browser.shows()[:4] == b"\x89PNG"
