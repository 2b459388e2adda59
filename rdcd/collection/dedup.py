"""`rdcd dedup`: copies inside a collection, or of one in another. It suggests; it never touches a file."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from rdcd.collection.gallery import Card, Page, Tile, write_gallery
from rdcd.collection.index import Images, index_embedder, make_index
from rdcd.collection.keep import PIXELS, Rule, parse_keep
from rdcd.collection.matching import ALIKE, IDENTICAL, SAME, Block, Case, blocks_of, find_matches, find_pairs
from rdcd.collection.outputs import choose_out, rows_written
from rdcd.collection.pictures import Embedder, list_pictures, places, settle_bad
from rdcd.collection.rejected import Rejected, read_rejected
from rdcd.collection.scoring import AUTO, Scoring, check_asked, choose_scoring
from rdcd.collection.search import case_page, query_blocks, write_cases
from rdcd.collection.suggest import COLUMNS, Links, Suggestions
from rdcd.data.images import reads_images
from rdcd.errors import BadImage, UserError, check_number
from rdcd.provenance import provenance
from rdcd.retrieval.index import FLAT, Index

PAIR_COLUMNS = ("first", "second", "score", "confidence", "kind", "group")


@reads_images
def dedup(*, images: Images, against: Images = None, model: str | None = None, out: str | Path | None = None,
          k: int = 20, threshold: float | None = None, precision: float | None = None, score_norm: str | None = AUTO,
          background: Images = None, codec: str | None = None, keep: str | Sequence[str] = PIXELS,
          not_duplicates: str | Path | None = None, gallery: int = 1000, batch_size: int = 64,
          workers: int | None = None, device: str | None = None, allow_torchscript: bool = False) -> Path:
    """Find copies inside a collection, or which of its pictures another has already: the `rdcd dedup` command.

    Nothing is deleted or moved: actions.csv suggests what could be, see `rdcd.collection.suggest`. `images` and
    `against` may overlap.

    Args:
        images: folders and picture files, or the folder of an index.
        against: the other collection, given likewise; None: `images` itself.
        model: see `Embedder.load`; None: that of the index that is given.
        out: folder for the results; None: a new one under `runs/`.
        k: copies of a picture that are looked for, at most.
        threshold, precision, score_norm: see `choose_scoring`.
        background, codec: see `rdcd index build`; an index has its own.
        keep: which picture of a group is kept, see `parse_keep`.
        not_duplicates: table of pairs that do not count, see `read_rejected`.
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
    rules = parse_keep(keep)
    rejected, known = read_rejected(not_duplicates)
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
        record = {"k": k, "keep": [rule.text for rule in rules], "not_duplicates": known,
                  "model": given.about["model"], "provenance": provenance(device=device)}
        if against is None:
            page = _within(folder, given, scoring, rules, rejected, k=k, gallery=gallery, record=record)
        else:
            page = _between(folder, there["images"], images, given, embedder, scoring, rules, rejected, bad, k=k,
                            gallery=gallery, record=record)
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


def _within(folder: Path, index: Index, scoring: Scoring, rules: Sequence[Rule], rejected: Rejected, *, k: int,
            gallery: int, record: dict) -> Page:
    pairs, links = find_pairs(index, scoring, k=k, rejected=rejected), Links()
    found = list(zip(pairs.first.tolist(), pairs.second.tolist(), pairs.scores.tolist(),
                     scoring.confidence(pairs.scores)))
    for first, second, score, confidence in found:
        links.add(index.path(first), index.digest(first), index.path(second), index.digest(second), score, confidence)
    made = Suggestions(links, rules, rejected)
    with rows_written(folder / "pairs", PAIR_COLUMNS, name="pairs") as rows:
        for first, second, score, confidence in found:
            (one, other), equal = map(index.path, (first, second)), index.digest(first) == index.digest(second)
            group = made.groups.get(one)
            rows.add({"first": one, "second": other, "score": round(score, 6), "confidence": confidence,
                      "kind": SAME if made.same(one, other) else IDENTICAL if equal else ALIKE,
                      "group": group if group == made.groups.get(other) else None})
        groups = max(made.groups.values(), default=0)
        rows.finish(record | scoring.record() | {"pictures": len(index), "groups": groups})
    shown: list[list[dict]] = []
    with rows_written(folder / "actions", COLUMNS, name="actions") as rows:
        for row in made.rows():
            rows.add(row)
            if row["group"] is not None and row["group"] <= gallery:
                if row["group"] > len(shown):
                    shown.append([])
                shown[-1].append(row)
        rows.finish(record | scoring.record() | {"stale": made.stale})
    said = f"{len(found):,} pairs, {groups:,} groups, among {len(index):,} pictures"
    print(f"{said}; {len(made.groups) - groups:,} pictures beside one of each group: {folder / 'actions.csv'}; no file "
          f"was touched")
    _say_stale(made)
    return Page(title="Duplicates", lead=f"{said}. Nothing was deleted: actions.csv holds these suggestions.",
                cards=[_group_card(group) for group in shown], total=groups, threshold=scoring.threshold,
                how=scoring.said, score_norm=scoring.score_norm, noun="groups")


def _say_stale(made: Suggestions) -> None:
    if made.stale:
        subject = "1 picture has changed or gone since it was" if made.stale == 1 else (
            f"{made.stale:,} pictures have changed or gone since they were")
        print(f"{subject} indexed: left for review; `rdcd index add` and `rdcd index remove missing=true` bring an "
              f"index up to date")


def _group_card(actions: Sequence[dict]) -> Card:
    return Card([Tile(row["path"], row["action"], row["score"], row["confidence"],
                      f"{row['width']} × {row['height']}, {row['bytes'] / 1e3:,.0f} kB"
                      + (f", {row['reason']}" if row["of"] else ""), row["sha256"]) for row in actions])


def _between(folder: Path, own: Index | None, images: Images, index: Index, embedder: Embedder, scoring: Scoring,
             rules: Sequence[Rule], rejected: Rejected, bad: list[BadImage], *, k: int, gallery: int,
             record: dict) -> Page:
    paths = [] if own is not None else list_pictures(images)
    blocks: Iterator[Block] = blocks_of(own) if own is not None else query_blocks(embedder, paths, index, bad)
    total, links = len(paths) if own is None else len(own), Links()

    def linked(cases: Iterator[Case]) -> Iterator[Case]:
        for case in cases:
            for match in case.matches:
                links.add(case.query, case.digest, match.path, index.digest(index.find(match.path)), match.score,
                          match.confidence)
            yield case

    cases = linked(find_matches(blocks, index, scoring, k=k, rejected=rejected))
    shown, count, found = write_cases(folder, cases, scoring, gallery=gallery,
                                      record=record | {"pictures": len(index), "queries": total})
    made = Suggestions(links, rules, rejected,
                       mine=set(paths).__contains__ if own is None else lambda path: own.find(path) is not None,
                       theirs=lambda path: index.find(path) is not None)
    with rows_written(folder / "actions", COLUMNS, name="actions") as rows:
        for row in made.rows():
            rows.add(row)
        rows.finish(record | scoring.record() | {"stale": made.stale})
    said = f"{found:,} of {total:,} pictures have matches among {len(index):,} others"
    print(f"{said}: {folder / 'actions.csv'}; no file was touched")
    _say_stale(made)
    return case_page(shown, scoring, title="Copies of another collection", total=found,
                     lead=f"{said}; {count:,} pairs. Nothing was deleted: actions.csv holds suggestions.")
