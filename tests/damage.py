"""Ways in which a file cannot be read, and this process without root's right to read everything."""

import ctypes
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

READ_ALL = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


@contextmanager
def without_roots_rights() -> Iterator[None]:
    """Root reads what no one may; meanwhile this thread asks the mode of a file as others do (capset(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, held = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if os.geteuid() or libc.capget(header, held):
        yield
        return
    fewer = (ctypes.c_uint32 * 6)(*held)
    fewer[0] &= ~READ_ALL  # of those in effect: they may be taken up again
    libc.capset(header, fewer)
    try:
        yield
    finally:
        libc.capset(header, held)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _folder(path: Path) -> None:
    _remove(path)
    path.mkdir()


def _dangling(path: Path) -> None:
    _remove(path)
    path.symlink_to(path.with_name("nowhere"))


def _circle(path: Path) -> None:
    _remove(path)
    path.symlink_to(path)


def _half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 3, len(content), 97):
        content[place] ^= 0x5A
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "missing": _remove, "folder": _folder, "dangling": _dangling, "circle": _circle,
    "forbidden": lambda path: path.chmod(0), "empty": lambda path: path.write_bytes(b""), "half": _half,
    "flipped": _flipped, "garbage": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "text": lambda path: path.write_text("hello, world\nno, data\n"), "list": lambda path: path.write_text("[1, 2]"),
    "object": lambda path: path.write_text('{"a": null}'), "null": lambda path: path.write_text("null")}
