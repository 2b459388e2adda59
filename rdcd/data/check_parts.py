"""Checks of the pictures of one part of a dataset, beside what the published dataset has of it."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rdcd.data.images import open_image
from rdcd.data.official import SHARD, Ids, Page
from rdcd.data.parallel import Map
from rdcd.data.scan import Scan, Trouble, in_blocks, pictures, printable, scan
from rdcd.errors import BadImage

OTHER_SIZE = "another size than the published dataset's: results compare with each other, not with published ones"


@dataclass(frozen=True)
class Check:
    """One line of the table: `verdict` is ok, note or FAILED.

    Unless it is ok, `advice` says what to do, and `page` is the address, or several with spaces between, of the page
    that grants access to the published files, where there are any.
    """

    check: str
    expected: str
    found: str
    verdict: str
    advice: str = ""
    page: str = ""


@dataclass(frozen=True)
class Part:
    """Pictures of one role.

    Args:
        name: of the role.
        names: what its folder may be called.
        folders: label → folder, see `scan`; empty: there is none.
        ids: names of the published dataset.
        size: number of pictures of the published dataset; None: that of `ids`, if there are any.
        sizes: other sizes that are published, of the first so many ids.
        page: where the published dataset is to be had; None: it is the user's own.
        optional: what cannot be done without this part; empty: nothing can.
        unique: whether names must differ.
        tells: whether its size tells the published dataset from own data.
        any_size: whether another size than the published one will do, even so.
    """

    name: str
    names: Sequence[str]
    folders: Mapping[str, Path]
    ids: Ids | None = None
    size: int | None = None
    sizes: tuple[int, ...] = ()
    page: Page | None = None
    optional: str = ""
    unique: bool = True
    tells: bool = True
    any_size: bool = False

    @property
    def published(self) -> int | None:
        """Number of pictures of the published dataset."""
        return self.ids.count if self.size is None and self.ids else self.size

    def looks_published(self, found: Scan) -> bool:
        """Tell by the number of pictures, of those names, whether this is the published dataset, perhaps incomplete."""
        if self.published is None or not self.tells:
            return False
        count = found.count if found.seen is None else found.seen.sum()
        return count >= min(SHARD, min((self.published, *self.sizes)) // 2)


@dataclass
class Findings:
    """The checks of one root, as they are made.

    Args:
        root: dataset root.
        samples: pictures to decode of every part; None: all.
        seed: of their choice.
        run: what decodes them, see `rdcd.data.parallel.process_map`.
    """

    root: Path
    samples: int | None
    seed: int
    run: Map
    checks: list[Check] = field(default_factory=list)
    counts: dict[str, Counter] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    places: list[Path] = field(default_factory=list)  # folders of pictures, and tables
    pages: list[Page] = field(default_factory=list)

    @property
    def own(self) -> bool:
        """Whether make-benchmark made it."""
        return (self.root / "benchmark.json").is_file()

    def add(self, check: str, expected: str, found: str, *, ok: bool = False, fatal: bool = True, advice: str = "",
            pages: Iterable[Page | None] = ()) -> None:
        """Add a check; one that is not ok is FAILED if `fatal`, else a note."""
        verdict = "ok" if ok else "FAILED" if fatal else "note"
        pages = [] if ok else list(dict.fromkeys(page for page in pages if page))
        if pages and self.own:
            advice, pages = f"{advice}; or make it again, as benchmark.json says", []
        elif pages:
            advice += f"; source: {' and '.join(map(str, pages))}"
        texts = (check, expected, found, verdict, "" if ok else advice, " ".join(page.url for page in pages))
        self.checks.append(Check(*map(printable, texts)))  # folders and what messages name may be of any bytes

    def trouble(self, check: str, expected: str, found: Trouble, *, advice: str,
                pages: Iterable[Page | None] = (), fatal: bool = True) -> None:
        """Add a check that nothing of a kind was met."""
        text = f"{found.count:,} not so: {found}" if found.count else "yes"
        self.add(check, expected, text, ok=not found.count, fatal=fatal, advice=advice, pages=pages)

    def look(self, parts: Sequence[Part], pairs: Sequence[tuple[str, str]], *, page: Page | None = None) -> bool:
        """Check all parts, and that the ids of `pairs` are pictures; return whether this is the published dataset.

        Args:
            page: where `pairs` are to be had.
        """
        self.pages += [part.page for part in parts if part.page]
        self.places += [place for part in parts for place in part.folders.values()]
        columns = {"queries": {query for query, _ in pairs}, "references": {reference for _, reference in pairs}}
        scans = {part.name: scan(part.folders, ids=part.ids, wanted=columns.get(part.name, ()),
                                 samples=self.samples or 0, seed=self.seed, label=part.name) for part in parts}
        self.counts = {name: found.counts for name, found in scans.items()}
        whole = not self.own and any(part.looks_published(scans[part.name]) for part in parts)
        for part in parts:
            self._part(part, scans[part.name], whole)
            if (ids := columns.get(part.name)) and scans[part.name].count:
                absent = sorted(scans[part.name].absent)
                found = f"{len(absent):,} are none: {', '.join(absent[:3])}" if absent else f"all {len(ids):,} are"
                self.add(f"ground truth: {part.name}", "ids of pictures", found, ok=not absent,
                         advice="add the pictures, or take the ground truth that belongs to these",
                         pages=(page, part.page))
        return whole

    def _part(self, part: Part, found: Scan, whole: bool) -> None:
        run, size = part.ids, part.published
        if run is not None and whole:  # the smallest published part that holds all of these
            size = min((n for n in part.sizes if found.seen.any() and not found.seen[n:].any()), default=run.count)
            run = run.part(size)
        places = ", ".join(sorted({self._short(place) for place in part.folders.values()})[:2])
        if len(part.folders) > 2:
            places += ", …"
        if not part.folders:
            self.add(f"{part.name}: pictures", f"a folder {' or '.join(part.names[:2])}", "none",
                     fatal=not part.optional, advice=part.optional or "put the pictures there", pages=[part.page])
            return
        self.sizes[part.name] = size or found.count
        text = f"{found.count:,} in {places}"
        if found.others and found.count != size:
            text += " beside " + ", ".join(f"{n:,} {suffix}" for suffix, n in found.others.most_common(3))
        fatal = not found.count or (whole and not part.any_size)
        self.add(f"{part.name}: pictures", f"{size:,}" if size else "at least 1", text,
                 ok=bool(found.count) and size in (None, found.count), fatal=fatal,
                 advice="get them whole, and unpack every archive" if fatal else OTHER_SIZE,
                 pages=[part.page] if fatal else [])
        if found.left.count:
            self.add(f"{part.name}: left out", "no other images", str(found.left), fatal=False,
                     advice="hidden files and other formats are no part of it: convert or move them if they should be")
        if not found.count:
            return
        if run is not None:
            self._ids(part, found, run, whole)
        if part.unique:
            self.trouble(f"{part.name}: names", "each once", found.twins, pages=[part.page],
                         fatal=whole or part.name not in ("train", "folder"),
                         advice="a picture is known by its name, twins by it with extension or path: rename or remove "
                                "one of the two")
        self.trouble(f"{part.name}: files", "none empty or unreachable", found.unusable, pages=[part.page],
                     advice="copy or unpack them again, or rename or remove them")
        self._decoding(part, found)

    def _ids(self, part: Part, found: Scan, run: Ids, whole: bool) -> None:
        missing = np.flatnonzero(~found.seen[:run.count]) if whole else np.empty(0, dtype=int)
        said = []
        if len(missing):
            said.append(f"{len(missing):,} missing: {run.names(missing)}{_by_shard(missing, run)}")
        if found.strays.count:
            said.append(f"{found.strays.count:,} of another form: {found.strays}")
        self.add(f"{part.name}: ids", str(run), "; ".join(said) or ("all" if whole else "of this form"), ok=not said,
                 fatal=whole, advice="get what is missing, and move other files away" if whole else "own names will do",
                 pages=[part.page] if whole else [])

    def _decoding(self, part: Part, found: Scan) -> None:
        if self.samples == 0:
            return
        if self.samples is None:
            count, paths = found.count, (os.path.join(folder, name) for folder in part.folders.values()
                                         for name in pictures(folder))
        else:
            count, paths = len(found.sample), map(str, found.sample)
        bad = Trouble()
        for path, problem in in_blocks(self.run, _problem, paths, f"{part.name}: decoding {count:,}"):
            if problem:
                bad.add(f"{path} ({problem})")
        expected = f"all {count:,} decode" if self.samples is None else f"{count:,} sampled decode"
        self.trouble(f"{part.name}: decoding", expected, bad, pages=[part.page],
                     advice="copy or unpack them again: training replaces such pictures, evaluation counts them as not "
                            "found")

    def _short(self, place: Path) -> str:
        below = place != self.root and place.is_relative_to(self.root)
        return str(place.relative_to(self.root)) if below else str(place)


def _problem(path: str) -> str | None:
    """Say why a picture does not decode, if it does not."""
    try:
        open_image(path)
    except BadImage as error:
        return error.reason
    return None


def _by_shard(missing: np.ndarray, run: Ids) -> str:
    """Say which shards of the published archives lack how many."""
    if run.count <= SHARD:
        return ""
    counts = np.bincount(missing // SHARD)
    shards = [f"{shard} ({run.name(shard * SHARD)} on): {'all' if n == SHARD else f'{n:,}'}"
              for shard, n in enumerate(counts.tolist()) if n]
    return "; by shard " + ", ".join(shards[:6]) + (f" and {len(shards) - 6} more" if len(shards) > 6 else "")
