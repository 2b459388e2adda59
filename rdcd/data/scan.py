"""Look through folders of a million pictures: names and sizes in one pass, nothing decoded."""

import heapq
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
from rich.console import Console

from rdcd.data.images import EXTENSIONS
from rdcd.data.official import Ids
from rdcd.errors import UserError

FEW = 5  # of each kind of trouble, so many are remembered by name


@dataclass
class Trouble:
    """How often something was met, and the first few times by name."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, what: str) -> None:
        """Note one more; it may name a file of any bytes."""
        self.count += 1
        if len(self.first) < FEW:
            self.first.append(printable(what))

    def __str__(self) -> str:
        return ", ".join(self.first) + (", …" if self.count > len(self.first) else "")


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
        sample: pictures drawn by a hash of seed and path, whatever the order they lie in.
    """

    counts: Counter = field(default_factory=Counter)
    seen: np.ndarray | None = None
    strays: Trouble = field(default_factory=Trouble)
    twins: Trouble = field(default_factory=Trouble)
    unusable: Trouble = field(default_factory=Trouble)
    absent: set[str] = field(default_factory=set)
    others: Counter = field(default_factory=Counter)
    sample: list[Path] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of pictures."""
        return self.counts.total()


def scan(folders: Mapping[str, Path], *, ids: Ids | None = None, wanted: Collection[str] = (), samples: int = 200,
         seed: int = 0, label: str = "scan") -> Scan:
    """Look through folders, by the rules of `rdcd.data.images.find_images`.

    Names are those of `Manifest`: file names without extension of a folder labelled "", else `label/path`. One name a
    picture is kept while it runs, and none after.

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
            for top, files in _walk(folder):
                below = "" if top == str(folder) else Path(top).relative_to(folder).as_posix() + "/"
                for file in files:
                    advance()
                    stem, suffix = os.path.splitext(file)
                    if suffix.lower() not in EXTENSIONS:
                        found.others[printable(suffix.lower()) or "without suffix"] += 1
                        continue
                    name = f"{mark}/{below}{stem}" if mark else stem
                    found.counts[mark] += 1
                    if name in homes:
                        found.twins.add(f"{name} in {homes[name]} and {top}")
                    homes.setdefault(name, top)
                    found.absent.discard(name)
                    place = ids and ids.place(name)
                    if place is not None:
                        found.seen[place] = True
                    elif ids is not None:
                        found.strays.add(name)
                    path = os.path.join(top, file)
                    if problem := _problem(path):
                        found.unusable.add(f"{path} ({problem})")
                    if samples:
                        item = (-_hash(f"{seed}:{mark}/{below}{file}"), path)
                        (heapq.heappush if len(drawn) < samples else heapq.heappushpop)(drawn, item)
    found.sample = sorted(Path(path) for _, path in drawn)
    return found


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield folders and the files in them that are not hidden, linked folders included, each once."""
    seen = set()

    def unreadable(error: OSError) -> None:
        raise UserError(f"cannot look into {error.filename} ({error.strerror}): make it readable") from error

    for top, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(top)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield top, sorted(file for file in files if not file.startswith("."))


def _problem(path: str) -> str | None:
    """Say what shows without decoding."""
    if not path.isprintable() and printable(path) != path:
        return "its name is not UTF-8"
    try:
        return None if os.stat(path).st_size else "empty"
    except OSError as error:
        return error.strerror


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(os.fsencode(text), digest_size=8).digest(), "big")


def printable(text: str) -> str:
    """Return a path as text that can be written anywhere, though a file name may be any bytes."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


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
