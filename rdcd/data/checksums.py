"""Lists of checksums in the format of `sha256sum`: made of a dataset, and held against a copy of it."""

import heapq
import os
import posixpath
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import tee
from pathlib import Path

import numpy as np

from rdcd.data.parallel import Map
from rdcd.data.scan import Trouble, in_blocks, name_hash, pictures
from rdcd.errors import UserError
from rdcd.files import atomic_path, composed, existing, sha256

_LINE = re.compile(rb"(\\?)([0-9a-fA-F]{64}) [ *]([^\0]+)")
_ESCAPES = {b"\\": rb"\\", b"\n": rb"\n", b"\r": rb"\r"}  # of names in a line that begins with a backslash
_PLAIN = {escape: byte for byte, escape in _ESCAPES.items()}
_LONGEST = 16_384  # bytes of a line; a path has at most 4,096


class Checksums:
    """A list of `<64 hex digits>  path` or `<64 hex digits> *path`, a file a line, as `sha256sum` writes it.

    Blank lines and those that begin with # are passed over. Of every file 8 bytes are held.

    Args:
        path: the list; the paths in it begin at the dataset root, and may be of any bytes. They are compared in NFC.

    Raises:
        UserError: no such file, a line of another form, a path that leads out of the dataset, or nothing listed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._keys = np.fromiter((name_hash(composed(name)) for name, _ in self), dtype=np.uint64)
        self._keys.sort()
        if not len(self):
            raise UserError(f"checksums={path} lists no file: expected lines of `<64 hex digits>  path`, as sha256sum "
                            f"or write_checksums=FILE writes them")

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, name: str) -> bool:
        key = np.uint64(name_hash(composed(name)))
        place = np.searchsorted(self._keys, key)
        return place < len(self._keys) and bool(self._keys[place] == key)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield (path below the root, digest), line by line."""
        try:
            with open(self.path, "rb") as file:
                for number, line in enumerate(iter(lambda: file.readline(_LONGEST), b""), 1):
                    line = line.rstrip(b"\r\n")
                    if line.strip() and not line.startswith(b"#"):
                        yield self._entry(line, number)
        except OSError as error:
            raise UserError(f"checksums={self.path} cannot be read ({error.strerror}): expected a list as sha256sum "
                            f"writes it (relative paths start at {Path.cwd()})") from error

    def _entry(self, line: bytes, number: int) -> tuple[str, str]:
        place = f"checksums={self.path}, line {number}"
        match = _LINE.fullmatch(line)
        escaped, digest, name = match.groups() if match else (b"", b"", b"")
        if escaped:
            name = re.sub(rb"\\.?", lambda found: _PLAIN.get(found[0], b"\0"), name)
        if not name or b"\0" in name:
            raise UserError(f"{place}: {ascii(line[:80])[1:]}: expected `<64 hex digits>  path`, as sha256sum writes "
                            f"it")
        path = os.fsdecode(name)
        if path.startswith("/") or ".." in path.split("/"):
            raise UserError(f"{place}: {ascii(path)} leads out of the dataset: expected a path from the root on; make "
                            f"the list in the root")
        return posixpath.normpath(path), digest.decode().lower()


@dataclass
class Comparison:
    """What a list of checksums and a dataset have not in common, by paths below the root.

    Args:
        absent: listed files that are not there or cannot be read.
        different: listed files of other contents.
        unlisted: files of the dataset that are not listed.
    """

    absent: Trouble = field(default_factory=Trouble)
    different: Trouble = field(default_factory=Trouble)
    unlisted: Trouble = field(default_factory=Trouble)


def compare(root: Path, checksums: Checksums, names: Iterable[str], run: Map) -> Comparison:
    """Read every listed file.

    Args:
        root: dataset root.
        names: what should be listed, see `contents`.
        run: see `rdcd.data.parallel.process_map`.
    """
    found = Comparison()
    entries, listed = tee(checksums)  # at most a block apart
    results = in_blocks(run, partial(_digest, root), (name for name, _ in listed), f"checksums of {len(checksums):,}")
    for (_, expected), (name, (digest, problem)) in zip(entries, results):
        if problem:
            found.absent.add(f"{name} ({problem})")
        elif digest != expected:
            found.different.add(name)
    for name in names:
        if name not in checksums:
            found.unlisted.add(name)
    return found


def write_list(root: Path, names: Iterable[str], out: str | Path, run: Map) -> int:
    """Read files and write their checksums as `sha256sum` does; return how many there were.

    Args:
        root: dataset root.
        names: paths below it, see `contents`.
        out: the list to write.
        run: see `rdcd.data.parallel.process_map`.

    Raises:
        UserError: a file cannot be read; nothing is written then.
    """
    count, taken = 0, os.stat(out) if os.path.exists(out) else None
    with atomic_path(out) as unfinished, open(unfinished, "wb") as file:
        for name, (digest, problem) in in_blocks(run, partial(_digest, root), names, "checksums"):
            if problem:
                raise UserError(f"{root / name} cannot be read ({problem})")
            if taken is not None and os.path.samestat(os.stat(root / name), taken):
                raise UserError(f"write_checksums={out} is a file of the dataset itself: give another name")
            escaped = re.sub(rb"[\\\n\r]", lambda found: _ESCAPES[found[0]], plain := os.fsencode(name))
            file.write(b"\\" * (escaped != plain) + digest.encode() + b"  " + escaped + b"\n")
            count += 1
    return count


def contents(root: Path, places: Iterable[Path]) -> Iterator[str]:
    """Yield the paths below a root of all pictures in folders, and of files, each once, sorted by their bytes.

    Args:
        root: dataset root.
        places: folders and files; what is not there or not below the root is left out.
    """
    below = {name for place in places if (name := relative(root, place)) is not None}
    folders = [name for name in below if (root / name).is_dir()]
    highest = [name for name in folders if not any(other in name.parents for other in folders)]
    files = sorted((name.as_posix() for name in below if (root / name).is_file()), key=os.fsencode)
    return heapq.merge(files, *(_pictures(root, folder) for folder in highest), key=os.fsencode)


def relative(root: Path, place: Path) -> Path | None:
    """Return the path of a place below a root, wherever links lead; None: it is not below."""
    top, place = Path(os.path.abspath(root)), Path(os.path.abspath(place))
    return place.relative_to(top) if place.is_relative_to(top) else None


def _pictures(root: Path, folder: Path) -> Iterator[str]:
    return (posixpath.join(*folder.parts, name) for name in pictures(root / folder))


def _digest(root: Path, name: str) -> tuple[str, str]:
    """Return (SHA-256, what is wrong), one of them empty."""
    path = existing(root / name)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return "", "no regular file"
        return sha256(path), ""
    except OSError as error:
        return "", error.strerror
