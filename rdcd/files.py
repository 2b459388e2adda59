"""Files that are either whole or absent: write beside the target, then rename."""

import hashlib
import json
import os
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rdcd.errors import UserError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; rename it to `path` on success, remove it on failure.

    The temporary name keeps the suffix, so that libraries that look at it behave. The file gets the mode that any new
    file gets there (0666 less the umask), whatever the library that wrote it gave it.

    Args:
        path: the final name; missing parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        partial.touch()  # an empty file tells the mode; reading the umask would change it for other threads
        mode = stat.S_IMODE(partial.stat().st_mode)
        partial.unlink()
        yield partial
        if stat.S_IMODE(partial.stat().st_mode) != mode:  # safetensors writes 0600
            partial.chmod(mode)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_output(path: str | Path, *, folder: bool = False) -> None:
    """Refuse a place that cannot be written, before the work whose result is to go there.

    Args:
        path: the file, or with `folder` the folder, to come.

    Raises:
        UserError: a file where a folder is needed, or the other way round.
    """
    path = Path(path)
    if path.is_dir() and not folder:
        raise UserError(f"{path} is a folder: expected the name of a file to write")
    for place in ([path] if folder else []) + list(path.parents):
        if place.exists():
            if not place.is_dir():
                raise UserError(f"{path} cannot be written: {place} is a file, no folder; give another name")
            if not os.access(place, os.W_OK):
                raise UserError(f"{path} cannot be written: no permission in {place}; give another place")
            return


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically, in UTF-8; bytes of file names that are none as `\\udce9`: JSON reads that."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as indented JSON to `path` atomically; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def composed(name: str) -> str:
    """Return a name in NFC, in which names are compared: what looks alike is one, whether `é` is written as one
    character or, as by macOS, as two. Files are opened by their names as they are."""
    return unicodedata.normalize("NFC", name)


def existing(path: Path) -> Path:
    """Return the path whose names are those of `path` in NFC, where `path` itself is not there and such a one is."""
    if str(path).isascii() or os.path.lexists(path):
        return path
    folder = existing(path.parent)
    try:
        alike = sorted(name for name in os.listdir(folder) if composed(name) == composed(path.name))
    except OSError:
        return path
    return folder / alike[0] if alike else path


def sha256(path: str | Path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
