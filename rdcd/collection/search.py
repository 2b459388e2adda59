"""`rdcd search`: which pictures of an index are copies of these."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rdcd.collection.gallery import Card, Page, Tile, write_gallery
from rdcd.collection.index import Images, index_embedder
from rdcd.collection.matching import Block, Case, find_matches
from rdcd.collection.outputs import choose_out, rows_written
from rdcd.collection.pictures import Embedder, list_pictures, settle_bad
from rdcd.collection.rejected import read_rejected
from rdcd.collection.scoring import AUTO, Scoring, check_asked, choose_scoring
from rdcd.data.images import reads_images
from rdcd.errors import BadImage, check_number, check_path
from rdcd.provenance import provenance
from rdcd.retrieval.index import Index

COLUMNS = ("query", "match", "score", "confidence", "kind")


@reads_images
def search(*, index: str | Path, images: Images, out: str | Path | None = None, k: int = 10,
           threshold: float | None = None, precision: float | None = None, score_norm: str | None = AUTO,
           itself: bool = False, not_duplicates: str | Path | None = None, gallery: int = 1000,
           model: str | None = None, batch_size: int = 64, workers: int | None = None, device: str | None = None,
           allow_torchscript: bool = False) -> Path:
    """Find the copies of pictures in an index: the `rdcd search` command.

    Args:
        index: its folder.
        images: folders and picture files.
        out: folder for matches.csv, matches.json and gallery.html; None: a new one under `runs/`.
        k: matches of a picture, at most.
        threshold, precision, score_norm: see `choose_scoring`.
        itself: report a picture's own entry in the index, too.
        not_duplicates: table of pairs that are not reported, see `read_rejected`.
        gallery: pictures shown on the page with their matches, at most; 0: no page.
        model, batch_size, workers, device, allow_torchscript: see `rdcd index add`.

    Returns:
        the folder.

    Raises:
        UserError: no index, no pictures, or another model.
    """
    check_path("index", index)
    check_number("k", k, 1)
    check_number("gallery", gallery, 0)
    check_asked(threshold, precision)
    rejected, said = read_rejected(not_duplicates)
    opened = Index.open(index)
    paths, bad = list_pictures(images), []
    embedder = index_embedder(opened, model=model, batch_size=batch_size, workers=workers, device=device,
                              allow_torchscript=allow_torchscript)
    scoring = choose_scoring(opened, embedder.card, score_norm=score_norm, threshold=threshold, precision=precision)
    folder = choose_out(out, "search")
    print(f"{len(paths):,} pictures in {opened.folder}, of {len(opened):,}; threshold {scoring.threshold:.4f}, "
          f"{scoring.said}", flush=True)
    cases = find_matches(query_blocks(embedder, paths, opened, bad), opened, scoring, k=k, itself=itself,
                         rejected=rejected)
    shown, count, found = write_cases(folder, cases, scoring, gallery=gallery, record={
        "index": str(opened.folder.resolve()), "pictures": len(opened), "queries": len(paths), "k": k,
        "not_duplicates": said,
        "model": opened.about["model"], "provenance": provenance(device=device)})
    settle_bad(folder / "bad_files.csv", bad)
    print(f"{count:,} matches of {found:,} pictures: {folder / 'matches.csv'}")
    if gallery:
        write_gallery(folder, case_page(shown, scoring, title="Search", total=found,
                                        lead=f"{len(paths):,} pictures were looked for among the {len(opened):,} of "
                                             f"{opened.folder}; {found:,} have matches."))
    return folder


def query_blocks(embedder: Embedder, paths: Sequence[str], index: Index, bad: list[BadImage]) -> Iterator[Block]:
    """Yield pictures as an index takes them."""
    for shard in embedder.shards(paths, bad, label="search"):
        yield Block(shard.paths, shard.digests, index.encode(shard.vectors))


def write_cases(folder: Path, cases: Iterator[Case], scoring: Scoring, *, gallery: int,
                record: dict[str, object]) -> tuple[list[Case], int, int]:
    """Write matches.csv and matches.json as matches come.

    Returns:
        the `gallery` best cases by their best score, the number of matches, and the number of queries with any.
    """
    best: list[tuple[float, int, Case]] = []
    found = 0
    with rows_written(folder / "matches", COLUMNS, name="matches") as rows:
        for number, case in enumerate(cases):
            for match in case.matches:
                values = asdict(match) | {"score": round(match.score, 6)}
                rows.add({"query": case.query, "match": values.pop("path"), **values})
            if case.matches:
                found += 1
                (heapq.heappush if len(best) < gallery else heapq.heappushpop)(
                    best, (case.matches[0].score, -number, case))
        rows.finish(record | scoring.record() | {"queries_with_matches": found})
    return [case for *_, case in sorted(best, reverse=True)], rows.count, found


def case_page(cases: Sequence[Case], scoring: Scoring, *, title: str, lead: str, total: int) -> Page:
    """Return the page that shows queries with their matches."""
    cards = [Card([Tile(case.query, "query"), *(Tile(match.path, match.kind, match.score, match.confidence)
                                                for match in case.matches)]) for case in cases]
    return Page(title=title, lead=lead, cards=cards, total=total, threshold=scoring.threshold, how=scoring.said,
                score_norm=scoring.score_norm, noun="pictures with matches")
