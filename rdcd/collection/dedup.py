"""`rdcd dedup`: copies inside a collection, or of one in another. It suggests; it never touches a file."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from rdcd.collection.gallery import Card, Page, Tile, write_gallery
from rdcd.collection.index import Images, index_embedder, make_index
from rdcd.collection.matching import (
    ALIKE,
    IDENTICAL,
    Block,
    Case,
    Pairs,
    blocks_of,
    find_matches,
    find_pairs,
    groups_of,
)
from rdcd.collection.outputs import choose_out, rows_written
from rdcd.collection.pictures import Embedder, list_pictures, places, settle_bad
from rdcd.collection.scoring import AUTO, Scoring, check_asked, choose_scoring
from rdcd.collection.search import case_page, query_blocks, write_cases
from rdcd.data.images import reads_images
from rdcd.errors import BadImage, UserError, check_number
from rdcd.provenance import provenance
from rdcd.retrieval.index import FLAT, Index

PAIR_COLUMNS = ("first", "second", "score", "confidence", "kind", "group")
ACTION_COLUMNS = ("path", "action", "of", "score", "confidence", "reason", "group", "width", "height", "bytes")
SURE = 0.99  # expected precision from which a picture that looks alike is called a duplicate


@reads_images
def dedup(*, images: Images, against: Images = None, model: str | None = None, out: str | Path | None = None,
          k: int = 20, threshold: float | None = None, precision: float | None = None, score_norm: str | None = AUTO,
          background: Images = None, codec: str | None = None, gallery: int = 1000, batch_size: int = 64,
          workers: int | None = None, device: str | None = None, allow_torchscript: bool = False) -> Path:
    """Find copies inside a collection, or which of its pictures another has already: the `rdcd dedup` command.

    Nothing is deleted or moved: actions.csv suggests what could be.

    Args:
        images: folders and picture files, or the folder of an index.
        against: the other collection, given likewise; None: `images` itself.
        model: see `Embedder.load`; None: that of the index that is given.
        out: folder for the results; None: a new one under `runs/`.
        k: copies of a picture that are looked for, at most.
        threshold, precision, score_norm: see `choose_scoring`.
        background, codec: see `rdcd index build`; an index has its own.
        gallery: groups, or pictures with their matches, shown on the page, at most; 0: no page.
        batch_size, workers, device, allow_torchscript: see `Embedder.load`.

    Returns:
        the folder.

    Raises:
        UserError: nothing to compare, or settings that cannot work.
    """
    check_number("k", k, 1)
    check_number("gallery", gallery, 0)
    check_asked(threshold, precision)
    there = {key: _index_at(value, key) for key, value in (("images", images), ("against", against))}
    given = there["images" if against is None else "against"]
    if given is not None and background is not None:
        raise UserError(f"background={background}: {given.folder} is an index and has its background; leave it out")
    settings = {"batch_size": batch_size, "workers": workers, "device": device, "allow_torchscript": allow_torchscript}
    embedder, bad = _embedder(there, model, codec, settings), []
    folder = choose_out(out, "dedup")
    with ExitStack() as stack:
        if given is None:
            work = stack.enter_context(tempfile.TemporaryDirectory(prefix=".work-", dir=folder))
            key, value = ("images", images) if against is None else ("against", against)
            given = make_index(Path(work) / "index", list_pictures(value, key=key), embedder, bad, codec=codec or FLAT,
                               background=background)
        scoring = choose_scoring(given, embedder.card, score_norm=score_norm, threshold=threshold, precision=precision)
        print(f"threshold {scoring.threshold:.4f}, {scoring.said}", flush=True)
        record = {"k": k, "model": given.about["model"], "provenance": provenance(device=device)}
        if against is None:
            page = _within(folder, given, scoring, k=k, gallery=gallery, record=record)
        else:
            page = _between(folder, there["images"], images, given, embedder, scoring, bad, k=k, gallery=gallery,
                            record=record)
        settle_bad(folder / "bad_files.csv", bad)
        if gallery:
            write_gallery(folder, page)
    return folder


def _index_at(images: Images, key: str) -> Index | None:
    """Return the index that a setting names, or None for pictures."""
    named = [place for place in places(images, key=key) if (place / "index.json").is_file()]
    if named and len(places(images, key=key)) > 1:
        raise UserError(f"{key}: {named[0]} is an index; expected it alone, or pictures")
    return Index.open(named[0]) if named else None


def _embedder(there: dict[str, Index | None], model: str | None, codec: str | None, settings: dict) -> Embedder:
    indexes = [index for index in there.values() if index is not None]
    if not indexes:
        if model is None:
            raise UserError("model=null: expected a model, since neither images nor against is an index; such as "
                            "model=RUN/student.safetensors")
        return Embedder.load(model, **settings)
    embedder = index_embedder(indexes[-1], model=model, codec=codec, **settings)
    for index in indexes[:-1]:
        embedder.check_same(index.about["model"], where=str(index.folder))
    if there["images"] is not None and len(indexes) > 1 and {i.about["codec"]["text"] for i in indexes} != {FLAT}:
        raise UserError("two indexes can be compared where both have the codec Flat: give images as a folder of "
                        "pictures")
    return embedder


def _within(folder: Path, index: Index, scoring: Scoring, *, k: int, gallery: int, record: dict) -> Page:
    pairs = find_pairs(index, scoring, k=k)
    groups = groups_of(pairs)
    number = {row: i + 1 for i, group in enumerate(groups) for row in group}
    kinds: list[str] = []
    confidences = scoring.confidence(pairs.scores)
    with rows_written(folder / "pairs", PAIR_COLUMNS, name="pairs") as rows:
        for first, second, score, sure in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.scores.tolist(),
                                              confidences):
            kinds.append(IDENTICAL if index.digest(first) == index.digest(second) else ALIKE)
            rows.add({"first": index.path(first), "second": index.path(second), "score": round(score, 6),
                      "confidence": sure, "kind": kinds[-1], "group": number[first]})
        rows.finish(record | scoring.record() | {"pictures": len(index), "groups": len(groups)})
    links = _Links(pairs, confidences, kinds)
    with rows_written(folder / "actions", ACTION_COLUMNS, name="actions") as rows:
        cards = []
        for i, group in enumerate(groups):
            actions = list(_group_actions(index, group, links, i + 1))
            for action in actions:
                rows.add(action)
            if i < gallery:
                cards.append(_group_card(actions))
        rows.finish(record | scoring.record())
    extra = sum(map(len, groups)) - len(groups)
    said = f"{len(pairs.scores):,} pairs, {len(groups):,} groups, among {len(index):,} pictures"
    print(f"{said}; {extra:,} pictures beside one of each group: {folder / 'actions.csv'}; no file was touched")
    return Page(title="Duplicates", lead=f"{said}. Nothing was deleted: actions.csv holds these suggestions.",
                cards=cards, total=len(groups), threshold=scoring.threshold, how=scoring.said,
                score_norm=scoring.score_norm, noun="groups")


class _Links:
    """The best pair of two rows, by the rows."""

    def __init__(self, pairs: Pairs, confidences: Sequence[float | None], kinds: Sequence[str]) -> None:
        self._rows: dict[int, dict[int, tuple[float, float | None, str]]] = {}
        for first, second, *rest in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.scores.tolist(),
                                        confidences, kinds):
            self._rows.setdefault(first, {})[second] = tuple(rest)
            self._rows.setdefault(second, {})[first] = tuple(rest)

    def of(self, row: int, keeper: int) -> tuple[int, float, float | None, str]:
        """Return (other, score, confidence, kind) of a row's pair with the keeper, or else its best one."""
        others = self._rows[row]
        other = keeper if keeper in others else max(others, key=lambda o: (others[o][0], -o))
        return other, *others[other]


@dataclass(frozen=True)
class _Facts:
    """What decides which picture of a group is kept."""

    width: int
    height: int
    size: int
    changed: float

    @classmethod
    def of(cls, path: str) -> "_Facts":
        try:
            about = os.stat(path)
            with Image.open(path) as picture:
                return cls(*picture.size, about.st_size, about.st_mtime)
        except Exception:  # gone since, or replaced by anything: the last to be kept
            return cls(0, 0, 0, np.inf)


def _group_actions(index: Index, group: Sequence[int], links: _Links, number: int) -> Iterator[dict[str, object]]:
    """Yield a row of actions.csv for the picture to keep, then for the others."""
    facts = {row: _Facts.of(index.path(row)) for row in group}
    order = sorted(group, key=lambda row: (-facts[row].width * facts[row].height, -facts[row].size, facts[row].changed,
                                           index.path(row)))
    for row in order:
        own = {"path": index.path(row), "group": number, "width": facts[row].width, "height": facts[row].height,
               "bytes": facts[row].size}
        if row == order[0]:
            yield own | {"action": "keep", "of": None, "score": None, "confidence": None,
                         "reason": "most pixels of the group, then most bytes, then oldest"}
            continue
        other, score, sure, kind = links.of(row, order[0])
        reason = kind if other == order[0] else f"{kind} to another of the group only"
        yield own | {"action": _action(kind, sure if other == order[0] else None), "of": index.path(other),
                     "score": round(score, 6), "confidence": sure, "reason": reason}


def _action(kind: str, confidence: float | None) -> str:
    return "duplicate" if kind == IDENTICAL or confidence is not None and confidence >= SURE else "review"


def _group_card(actions: Sequence[dict]) -> Card:
    return Card([Tile(row["path"], row["action"], row["score"], row["confidence"],
                      f"{row['width']} × {row['height']}, {row['bytes'] / 1e3:,.0f} kB"
                      + (f", {row['reason']}" if row["of"] else "")) for row in actions])


def _between(folder: Path, own: Index | None, images: Images, index: Index, embedder: Embedder, scoring: Scoring,
             bad: list[BadImage], *, k: int, gallery: int, record: dict) -> Page:
    paths = [] if own is not None else list_pictures(images)
    blocks: Iterator[Block] = blocks_of(own) if own is not None else query_blocks(embedder, paths, index, bad)
    total = len(paths) if own is None else len(own)
    with rows_written(folder / "actions", ACTION_COLUMNS, name="actions") as rows:
        def acted(cases: Iterator[Case]) -> Iterator[Case]:
            for case in cases:
                if case.matches:
                    best, facts = case.matches[0], _Facts.of(case.query)
                    rows.add({"path": case.query, "action": _action(best.kind, best.confidence), "of": best.path,
                              "score": round(best.score, 6), "confidence": best.confidence, "reason": best.kind,
                              "group": None, "width": facts.width, "height": facts.height, "bytes": facts.size})
                yield case

        cases = acted(find_matches(blocks, index, scoring, k=k))
        shown, count, found = write_cases(folder, cases, scoring, gallery=gallery,
                                          record=record | {"pictures": len(index), "queries": total})
        rows.finish(record | scoring.record())
    said = f"{found:,} of {total:,} pictures have matches among {len(index):,} others"
    print(f"{said}: {folder / 'actions.csv'}; no file was touched")
    return case_page(list(islice(shown, gallery)), scoring, title="Copies of another collection", total=found,
                     lead=f"{said}; {count:,} pairs. Nothing was deleted: actions.csv holds suggestions.")
