"""Look through folders of a million pictures: names and sizes in one pass, nothing decoded."""

import heapq
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console

from rdcd.data.found import EXTENSIONS, LeftOut, Trouble, printable, walk
from rdcd.data.official import Ids
from rdcd.data.parallel import Map, Result
from rdcd.files import composed

BLOCK = 100_000  # paths handed to the processes at a time


@dataclass
class Scan:
    """What was found.

    Args:
        counts: label → number of pictures.
        seen: of the official names, which are there; None: there are no official names.
        strays: names that are not official.
        twins: names that two files have.
        unusable: empty files, links that lead nowhere, paths that are not UTF-8.
        absent: wanted names that are not there.
        others: suffix → number of files that are no pictures.
        left: what looks like pictures and is left out.
        sample: pictures drawn by a hash of seed and path, whatever the order they lie in.
    """

    counts: Counter = field(default_factory=Counter)
    seen: np.ndarray | None = None
    strays: Trouble = field(default_factory=Trouble)
    twins: Trouble = field(default_factory=Trouble)
    unusable: Trouble = field(default_factory=Trouble)
    absent: set[str] = field(default_factory=set)
    others: Counter = field(default_factory=Counter)
    left: LeftOut = field(default_factory=LeftOut)
    sample: list[Path] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of pictures."""
        return self.counts.total()


def scan(folders: Mapping[str, Path], *, ids: Ids | None = None, wanted: Collection[str] = (), samples: int = 200,
         seed: int = 0, label: str = "scan") -> Scan:
    """Look through folders, by the rules of `rdcd.data.found.find_images`.

    Names are those of `Manifest`: file names without extension of a folder labelled "", else `label/path`; not the
    longer ones of twins. One name a picture is kept while it runs, and none after.

    Args:
        folders: label → folder.
        ids: the official names.
        wanted: names to look for.
        samples: how many pictures to draw.
        seed: of the draw.
        label: of the progress line.
    """
    found = Scan(absent=set(wanted), seen=None if ids is None else np.zeros(ids.count, dtype=bool))
    homes: dict[str, str] = {}
    drawn: list[tuple[int, str]] = []  # a heap, the largest hash first
    with counting(label) as advance:
        for mark, folder in folders.items():
            for top, below, file in walk(folder, found.left):
                advance()
                stem, suffix = os.path.splitext(file)
                if suffix.lower() not in EXTENSIONS:
                    found.others[printable(suffix.lower()) or "without suffix"] += 1
                    continue
                name = composed(f"{mark}/{below}{stem}" if mark else stem)
                found.counts[mark] += 1
                path = os.path.join(top, file)
                if name in homes:
                    found.twins.add(f"{name} in {homes[name]} and {path}")
                homes.setdefault(name, top)
                found.absent.discard(name)
                place = ids and ids.place(name)
                if place is not None:
                    found.seen[place] = True
                elif ids is not None:
                    found.strays.add(name)
                if problem := _problem(path):
                    found.unusable.add(f"{path} ({problem})")
                if samples:
                    item = (-name_hash(f"{seed}:{mark}/{below}{file}"), path)
                    (heapq.heappush if len(drawn) < samples else heapq.heappushpop)(drawn, item)
    found.sample = sorted(Path(path) for _, path in drawn)
    return found


def pictures(folder: Path) -> Iterator[str]:
    """Yield the paths of all pictures below a folder, sorted by their bytes."""
    return (below + file for _, below, file in walk(folder) if os.path.splitext(file)[1].lower() in EXTENSIONS)


def in_blocks(run: Map, function: Callable[[str], Result], paths: Iterable[str],
              label: str) -> Iterator[tuple[str, Result]]:
    """Yield (path, result) in the order of the paths, few of which are held at a time.

    Args:
        run: see `rdcd.data.parallel.process_map`.
        function: what is done with a path.
        label: of the progress.
    """
    paths, done = iter(paths), 0
    while block := list(islice(paths, BLOCK)):
        yield from zip(block, run(function, block, f"{label}, {done:,} done" if done else label))
        done += len(block)


def _problem(path: str) -> str | None:
    """Say what shows without decoding."""
    if not path.isprintable() and printable(path) != path:
        return "its name is not UTF-8"
    try:
        return None if os.stat(path).st_size else "empty"
    except OSError as error:
        return error.strerror


def name_hash(text: str) -> int:
    """Return 64 bits that depend on a path, of any bytes, alone."""
    return int.from_bytes(blake2b(os.fsencode(text), digest_size=8).digest(), "big")


@contextmanager
def counting(label: str, *, every: float = 5.0) -> Iterator[Callable[[], None]]:
    """Yield `advance()`; show how many there were, on a terminal in place, elsewhere a line every few seconds.

    Args:
        label: what is counted.
        every: seconds between lines.
    """
    console = Console()
    count, said = 0, time.monotonic()

    def advance() -> None:
        nonlocal count, said
        count += 1
        now = time.monotonic()
        if now - said > (0.2 if console.is_terminal else every):
            said = now
            text = f"{label}: {count:,} files"
            status.update(text) if console.is_terminal else print(text, flush=True)

    with console.status(label) as status:
        yield advance
