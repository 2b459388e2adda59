"""The page to look at: queries with their matches, or groups of duplicates; self-contained, opened from disk."""

import base64
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from string import Template

from rdcd.data.parallel import available_cores
from rdcd.data.progress import track
from rdcd.evaluation.report_gallery import thumbnail_uri
from rdcd.evaluation.report_page import STYLE, empty, text
from rdcd.files import write_text

_TILES = 1500  # pictures on a page: some 10 MB
_SHOWN = 24  # pictures of a card
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Tile:
    """A picture on the page: what it is there as, its score and expected precision, a line of detail, and the hash of
    its file, which goes into the rows for `not_duplicates`."""

    path: str
    role: str
    score: float | None = None
    confidence: float | None = None
    detail: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Card:
    """Pictures shown side by side; the first is what the others are compared with."""

    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Page:
    """What a gallery shows.

    Args:
        title, lead: heading, and the sentence below it.
        cards: what is shown, of `total` there are.
        threshold: lowest score shown.
        how: where it comes from.
        score_norm: normalization of the scores.
        noun: what cards are.
    """

    title: str
    lead: str
    cards: Sequence[Card]
    total: int
    threshold: float
    how: str
    score_norm: str | None
    noun: str


def write_gallery(folder: Path, page: Page) -> list[Path]:
    """Write gallery.html, and gallery-2.html and so on where there are too many pictures for one; return them.

    Pages need no network and no other file; pictures' links lead to the originals.
    """
    for old in folder.glob("gallery-*.html"):
        old.unlink()
    parts = list(_parts(page.cards))
    names = ["gallery.html" if i == 0 else f"gallery-{i + 1}.html" for i in range(len(parts))]
    script = (_HERE / "gallery.js").read_text(encoding="utf-8")
    template = Template((_HERE / "gallery.html").read_text(encoding="utf-8"))
    folders = {str(Path(tile.path).parent) for card in page.cards for tile in card.tiles}
    one = folders and len({os.path.isabs(folder) for folder in folders}) == 1  # a damaged index has both kinds
    root = (os.path.commonpath(folders) if one else "").rstrip("/")  # below / alone, whole paths are clearer
    number = 0
    with track(sum(min(len(card.tiles), _SHOWN) for card in page.cards), "gallery") as advance, \
            ThreadPoolExecutor(min(available_cores(), 8)) as pool:
        for name, cards in zip(names, parts):
            tiles = [tile for card in cards for tile in card.tiles[:_SHOWN]]
            thumbnails = {}
            for tile, thumbnail in zip(tiles, pool.map(lambda tile: thumbnail_uri(tile.path), tiles)):
                thumbnails[tile.path] = thumbnail
                advance(1)
            shown = "\n".join(_card(card, number + i + 1, root, thumbnails) for i, card in enumerate(cards))
            number += len(cards)
            scores = [tile.score for card in cards for tile in card.tiles if tile.score is not None]
            write_text(folder / name, template.substitute(
                title=text(page.title), style=STYLE + (_HERE / "gallery.css").read_text(encoding="utf-8"),
                script=script, script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
                lead=text(page.lead), facts=_facts(page, root), pages=_links(names, name), noun=text(page.noun),
                lowest=f"{min(scores, default=0.0):.4f}", highest=f"{max(scores, default=1.0):.4f}",
                cards=shown or empty(f"No {text(page.noun)}: nothing scores {page.threshold:.4f} or more.")))
    return [folder / name for name in names]


def _parts(cards: Sequence[Card]) -> Iterator[Sequence[Card]]:
    """Divide cards into pages, each of about as many pictures; without cards there is one page."""
    start = held = 0
    for i, card in enumerate(cards):
        held += min(len(card.tiles), _SHOWN)
        if held >= _TILES and i + 1 < len(cards):
            yield cards[start:i + 1]
            start, held = i + 1, 0
    yield cards[start:]


def _facts(page: Page, root: str) -> str:
    norm = "not normalized" if page.score_norm is None else f"normalized, {text(page.score_norm)}"
    said = f"Threshold <b>{page.threshold:.4f}</b>, {text(page.how)}. Scores are {norm}."
    if len(page.cards) < page.total:
        said += f" The first {len(page.cards):,} of {page.total:,} {text(page.noun)} are shown, the tables have all."
    return said + (f' Folders are below <span class="name">{text(root)}</span>.' if root else "")


def _links(names: Sequence[str], current: str) -> str:
    if len(names) == 1:
        return ""
    here = names.index(current)
    near = [f'<a href="{names[here + step]}" rel="{rel}">{word}</a>' for step, rel, word in
            ((-1, "prev", "← previous page"), (1, "next", "next page →")) if 0 <= here + step < len(names)]
    return f'<span class="pages">page {here + 1} of {len(names)} · {" · ".join(near)}</span>'


def _card(card: Card, number: int, root: str, thumbnails: dict[str, tuple[str | None, str]]) -> str:
    tiles = "".join(_tile(tile, root, thumbnails[tile.path]) for tile in card.tiles[:_SHOWN])
    more = len(card.tiles) - _SHOWN
    rest = f'<p class="more">and {more:,} more, in the tables</p>' if more > 0 else ""
    kind = "pair two" if len(card.tiles) == 2 else "pair"
    return f'<article class="{kind}" tabindex="-1" id="c{number}"><h2>{number}</h2><ul>{tiles}</ul>{rest}</article>'


def _tile(tile: Tile, root: str, thumbnail: tuple[str | None, str]) -> str:
    source, reason = thumbnail
    path = Path(tile.path)
    folder = path.parent.relative_to(root) if root else path.parent
    shown = (f'<img src="{source}" alt="" loading="lazy" decoding="async">' if source else
             f'<span class="missing">{text(reason)}</span>')
    marks = f'<span class="role {text(tile.role.split()[0])}">{text(tile.role)}</span>'
    if tile.score is not None:
        sure = "" if tile.confidence is None else f'<span class="sure">expected precision {tile.confidence:.3g}</span>'
        marks += f'<b class="score">{tile.score:.4f}</b>{sure}'
    data = "" if tile.score is None else f' data-score="{tile.score:.6f}"'
    data += f' data-sha256="{tile.sha256}"' if tile.sha256 else ""
    detail = f'<span class="detail">{text(tile.detail)}</span>' if tile.detail else ""
    return (f'<li{data}><a href="{text(path.as_uri())}" title="{text(tile.path)}" target="_blank" rel="noopener">'
            f'{shown}<span class="marks">{marks}</span><span class="file">{text(path.name)}</span>'
            f'<span class="folder">{text(folder)}</span>{detail}</a></li>')
