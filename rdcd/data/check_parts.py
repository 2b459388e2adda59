"""Checks of the pictures of one part of a dataset, beside what the published dataset has of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rdcd.data.images import open_image
from rdcd.data.official import SHARD, Ids
from rdcd.data.progress import track
from rdcd.data.scan import Scan, Trouble, printable, scan
from rdcd.errors import BadImage

OTHER_SIZE = "another size than the published dataset's: results compare with each other, not with published ones"


@dataclass(frozen=True)
class Check:
    """One line of the table; `verdict` is ok, note or FAILED, and `advice` what to do unless it is ok."""

    check: str
    expected: str
    found: str
    verdict: str
    advice: str = ""


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
        page: where the published dataset is to be had.
        optional: whether one can do without.
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
    page: str = "where it came from"
    optional: bool = False
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
        samples: pictures to decode of every part.
        seed: of their choice.
    """

    root: Path
    samples: int
    seed: int
    checks: list[Check] = field(default_factory=list)
    counts: dict[str, Counter] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def add(self, check: str, expected: str, found: str, *, ok: bool = False, fatal: bool = True,
            advice: str = "") -> None:
        """Add a check; one that is not ok is FAILED if `fatal`, else a note."""
        verdict = "ok" if ok else "FAILED" if fatal else "note"
        texts = (check, expected, found, verdict, "" if ok else advice)
        self.checks.append(Check(*map(printable, texts)))  # folders and what messages name may be of any bytes

    def look(self, parts: Sequence[Part], pairs: Sequence[tuple[str, str]]) -> bool:
        """Check all parts, and that the ids of `pairs` are pictures; return whether this is the published dataset."""
        columns = {"queries": {query for query, _ in pairs}, "references": {reference for _, reference in pairs}}
        scans = {part.name: scan(part.folders, ids=part.ids, wanted=columns.get(part.name, ()), samples=self.samples,
                                 seed=self.seed, label=part.name) for part in parts}
        self.counts = {name: found.counts for name, found in scans.items()}
        own = (self.root / "benchmark.json").is_file()  # make-benchmark wrote it
        whole = not own and any(part.looks_published(scans[part.name]) for part in parts)
        for part in parts:
            self._part(part, scans[part.name], whole)
        for role, ids in columns.items():
            if ids and self.counts[role]:
                absent = sorted(scans[role].absent)
                found = f"{len(absent):,} are none: {', '.join(absent[:3])}" if absent else f"all {len(ids):,} are"
                self.add(f"ground truth: {role}", "ids of pictures", found, ok=not absent,
                         advice="add the pictures, or take the ground truth that belongs to these")
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
                     fatal=not part.optional, advice=f"get it from {part.page}")
            return
        self.sizes[part.name] = size or found.count
        text = f"{found.count:,} in {places}"
        if found.others and found.count != size:
            text += " beside " + ", ".join(f"{n:,} {suffix}" for suffix, n in found.others.most_common(3))
        fatal = not found.count or (whole and not part.any_size)
        self.add(f"{part.name}: pictures", f"{size:,}" if size else "at least 1", text,
                 ok=bool(found.count) and size in (None, found.count), fatal=fatal,
                 advice=f"get them whole from {part.page}, and unpack every archive" if fatal else
                 OTHER_SIZE)
        if not found.count:
            return
        if run is not None:
            self._ids(part, found, run, whole)
        if part.unique:
            self._trouble(part, "names", "each once", found.twins,
                          "a picture is known by its name: rename or remove one of the two")
        self._trouble(part, "files", "none empty or unreachable", found.unusable,
                      f"copy or unpack them again, from {part.page}, or rename or remove them")
        if self.samples:
            bad = self._decode(part.name, found.sample)
            self._trouble(part, "decoding", f"{len(found.sample)} sampled decode", bad,
                          f"copy or unpack them again, from {part.page}: training replaces such pictures, evaluation "
                          f"counts them as not found")

    def _ids(self, part: Part, found: Scan, run: Ids, whole: bool) -> None:
        missing = np.flatnonzero(~found.seen[:run.count]) if whole else np.empty(0, dtype=int)
        said = []
        if len(missing):
            said.append(f"{len(missing):,} missing: {run.names(missing)}{_by_shard(missing, run)}")
        if found.strays.count:
            said.append(f"{found.strays.count:,} of another form: {found.strays}")
        self.add(f"{part.name}: ids", str(run), "; ".join(said) or ("all" if whole else "of this form"), ok=not said,
                 fatal=whole, advice=f"get what is missing from {part.page}, and move other files away" if whole else
                 "own names will do")

    def _trouble(self, part: Part, what: str, expected: str, trouble: Trouble, advice: str) -> None:
        found = f"{trouble.count:,} not so: {trouble}" if trouble.count else "yes"
        self.add(f"{part.name}: {what}", expected, found, ok=not trouble.count, advice=advice)

    def _decode(self, name: str, sample: Sequence[Path]) -> Trouble:
        bad = Trouble()
        with track(len(sample), f"{name}: decoding") as advance:
            for path in sample:
                try:
                    open_image(path)
                except BadImage as error:
                    bad.add(f"{path} ({error.reason})")
                advance(1)
        return bad

    def _short(self, place: Path) -> str:
        below = place != self.root and place.is_relative_to(self.root)
        return str(place.relative_to(self.root)) if below else str(place)


def _by_shard(missing: np.ndarray, run: Ids) -> str:
    """Say which shards of the published archives lack how many."""
    if run.count <= SHARD:
        return ""
    counts = np.bincount(missing // SHARD)
    shards = [f"{shard} ({run.name(shard * SHARD)} on): {'all' if n == SHARD else f'{n:,}'}"
              for shard, n in enumerate(counts.tolist()) if n]
    return "; by shard " + ", ".join(shards[:6]) + (f" and {len(shards) - 6} more" if len(shards) > 6 else "")
