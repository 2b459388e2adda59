"""Pictures' files as they lie on the disk now: which file a path leads to, and whether it is what was indexed."""

import os
import stat
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from rdcd.data.images import opened
from rdcd.data.parallel import available_cores
from rdcd.data.progress import track
from rdcd.errors import BadImage
from rdcd.files import sha256

GONE, CHANGED = "has gone since it was indexed", "has changed since it was indexed"


@dataclass(frozen=True)
class OnDisk:
    """A file that was looked at.

    Args:
        path: that leads to it.
        about: what `os.stat` said before it was read; None: there is none.
        fault: why it is not the file that was indexed, as the end of a sentence; None: it has the same bytes.
        width, height: in pixels, as stored.
        format: Pillow's name.
    """

    path: str
    about: os.stat_result | None = None
    fault: str | None = None
    width: int = 0
    height: int = 0
    format: str = ""

    @property
    def size(self) -> int:
        """Bytes; of a file that is not the one indexed, 0."""
        return 0 if self.fault else self.about.st_size

    def moved(self) -> bool:
        """Tell whether the file was changed, replaced or removed since it was looked at."""
        try:
            now = os.stat(self.path)
        except OSError:
            return True
        return (now.st_size, now.st_mtime_ns) != (self.about.st_size, self.about.st_mtime_ns)


def look(path: str, digest: bytes) -> OnDisk:
    """Look at a file.

    Args:
        digest: its SHA-256 when it was indexed.
    """
    try:
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):  # a pipe would let the reader wait for ever
            return OnDisk(path, about, CHANGED)
        if bytes.fromhex(sha256(path)) != digest:
            return OnDisk(path, about, CHANGED)
    except (FileNotFoundError, NotADirectoryError):
        return OnDisk(path, None, GONE)
    except OSError as error:
        return OnDisk(path, None, f"cannot be read now ({error.strerror})")
    try:
        with opened(path, max_pixels=sys.maxsize) as picture:  # the header alone, so of any size
            return OnDisk(path, about, None, *picture.size, "JPEG" if picture.format == "MPO" else picture.format)
    except BadImage as error:  # read elsewhere, where a plugin is installed
        return OnDisk(path, about, f"cannot be opened now ({error.reason})")


def look_at_all(digests: Mapping[str, bytes]) -> dict[str, OnDisk]:
    """Look at files, several at a time. digests: path → SHA-256 when it was indexed."""
    found, limit = {}, Image.MAX_IMAGE_PIXELS
    try:
        with track(len(digests), "checking files", unit="files") as advance, \
                ThreadPoolExecutor(min(available_cores(), 8)) as pool:
            for file in pool.map(look, digests, digests.values()):
                found[file.path] = file
                advance(1)
    finally:
        Image.MAX_IMAGE_PIXELS = limit  # which `look` lifts
    return found


def identities(about: os.stat_result) -> tuple[tuple[int, ...], ...]:
    """Return what identifies a file: two paths with any of these in common lead to one.

    Device and inode; and, as a share that is mounted twice has two device numbers, inode, time of change and size.
    """
    return (about.st_dev, about.st_ino), (about.st_ino, about.st_ctime_ns, about.st_size)


def same_file(one: str, other: str) -> bool:
    """Tell whether two paths lead to one file."""
    try:
        return not set(identities(os.stat(one))).isdisjoint(identities(os.stat(other)))
    except (OSError, ValueError):
        return False
