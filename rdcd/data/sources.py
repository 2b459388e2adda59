"""Where pictures come from: a folder, a list of files, tar shards; nothing of an archive is ever written to disk."""

import hashlib
import os
import tarfile
from array import array
from collections.abc import Sequence
from glob import glob
from pathlib import Path, PurePosixPath

import numpy as np

from rdcd.data.found import EXTENSIONS, UNREADABLE, LeftOut, find_images, is_hidden, is_hidden_path
from rdcd.data.manifest import Manifest, path_name
from rdcd.data.progress import track
from rdcd.errors import BadImage, UserError
from rdcd.files import existing

MAX_BYTES = 2**29  # of one member, which is read whole
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")  # first bytes of gzip, bzip2, xz, zstandard
ENDINGS = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst")


class TarShards(Manifest):
    """The pictures of plain tar files, read in place by their offsets; links and special files are no pictures.

    Args:
        paths: the tar files; pictures come in their order, and in that of the files within each.
        ids: `stem`, a picture is called by its member's file name without extension; `path`, with its folders.

    Raises:
        UserError: no tar file, a compressed or a damaged one, none with a picture, or one picture twice.
    """

    def __init__(self, paths: Sequence[Path], *, ids: str = "stem") -> None:
        shards, offsets, sizes = array("i"), array("q"), array("q")
        members: list[str] = []
        names: list[str] = []
        self.shards, self.skipped, self.left = list(paths), 0, LeftOut()
        root = Path(os.path.commonpath([path.absolute().parent for path in paths]))
        with track(len(paths), "tar shards", unit="shards") as advance:
            for number, path in enumerate(paths):
                for member in _members(path):
                    kept = PurePosixPath(member.name)
                    hidden = is_hidden_path(kept)
                    if (hidden or not member.isreg() or member.sparse is not None
                            or kept.suffix.lower() not in EXTENSIONS):
                        self.skipped += not member.isdir()
                        if member.isreg():
                            self.left.file(str(kept), hidden=hidden)
                        continue
                    shards.append(number)
                    offsets.append(member.offset_data)
                    sizes.append(member.size)
                    members.append(f"{path.absolute()}/{kept}")
                    names.append(kept.stem if ids == "stem" else kept.with_suffix("").as_posix())
                advance(1)
        if not names:
            raise UserError(f"no pictures in {paths[0]}" + f" and {len(paths) - 1} more" * (len(paths) > 1)
                            + f": expected files ending in {', '.join(EXTENSIONS)}"
                            + f"; left out {self.left}" * bool(self.left.kinds))
        super().__init__(root, members, names=names)
        self._shard, self._offset, self._size = (np.array(values) for values in (shards, offsets, sizes))

    def source(self, index: int) -> bytes:
        """Return the encoded bytes of picture `index`.

        Raises:
            BadImage: it is too large to be a picture, or the file has become shorter.
        """
        size, offset = int(self._size[index]), int(self._offset[index])
        if size > MAX_BYTES:
            raise BadImage(self.path(index), f"{size:,} bytes, at most {MAX_BYTES:,} allowed")
        try:
            with open(self.shards[self._shard[index]], "rb", buffering=0) as file:
                data = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise BadImage(self.path(index), f"{type(error).__name__}: {error}") from error
        if len(data) < size:
            raise BadImage(self.path(index), f"the tar file ends after {len(data):,} of its {size:,} bytes")
        return data

    def digest(self) -> str:
        """Return a hash of names, paths, offsets and sizes."""
        whole = hashlib.sha256(super().digest().encode())
        whole.update(self._offset.tobytes() + self._size.tobytes())
        return whole.hexdigest()


def _members(path: Path):
    """Yield the members of a plain tar file, of which only one is held at a time."""
    try:
        with open(path, "rb") as file:
            if file.read(6).startswith(COMPRESSED):
                raise UserError(f"{path} is compressed: pictures are read at their places within a tar file, so "
                                f"unpack it to a plain one first (gunzip, unxz, zstd -d)")
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()
                yield member
            _check_end(path, tar.offset)
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no whole tar file ({error}): fetch or make it again") from error


def _check_end(path: Path, end: int) -> None:
    """tarfile takes a damaged header for the end, and other archives appended to one are never seen."""
    with open(path, "rb") as file:
        file.seek(end)
        first = file.read(512)
        if not first:
            raise tarfile.ReadError("the mark of its end is missing")
        while chunk := first or file.read(1 << 20):
            if chunk.strip(b"\0"):
                raise tarfile.ReadError(f"a damaged header or another archive at byte {end:,}, and what follows would "
                                        f"be left out silently")
            first = b""


def read_list(path: str | Path, *, ids: str = "stem") -> Manifest:
    """Read a list of pictures: a path a line, relative to the list's folder; blank lines and those of # are left out.

    Raises:
        UserError: it is no text, or names no picture.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"images={path}: expected a folder, a .tar, or a list of pictures, a path a line "
                        f"({error})") from None
    paths = [existing(path.parent / line) for line in map(str.strip, lines) if line and not line.startswith("#")]
    if not paths:
        raise UserError(f"{path} names no picture: expected a path a line")
    for one in paths[:1]:
        if "\0" in str(one) or not one.is_file():
            raise UserError(f"{path}: its first line names {str(one)!r}, which is no file; paths are relative to the "
                            f"list's folder")
    return Manifest(path.parent, paths, names=_below(paths, path.parent) if ids == "path" else None)


def _below(paths: Sequence[Path], folder: Path) -> list[str]:
    return [path_name(path, folder if path.is_relative_to(folder) else path.anchor or ".") for path in paths]


def open_pictures(images: str | Path, *, ids: str = "stem") -> Manifest:
    """Open what `images` names, and say what of it is left out.

    Args:
        images: a folder of pictures or of tar shards, a tar file, a pattern such as `shards/*.tar`, or a file that
            lists pictures (`read_list`).
        ids: `stem`, pictures are called by their file names without extension; `path`, with the folders below
            `images`, or within the tar file. Where that is not unique, see `Manifest`.

    Raises:
        UserError: nothing there, or nothing that can be read.
    """
    if ids not in ("stem", "path"):
        raise UserError(f"ids={ids}: expected stem or path")
    pictures = _opened(images, ids=ids)
    if pictures.told_apart:
        advice = "; ids=path calls all by their paths" if ids == "stem" else ""
        print(f"{pictures.told_apart:,} pictures under {pictures.root} share their names with others: their ids are "
              f"names with extension, or paths{advice}")
    return pictures


def _opened(images: str | Path, *, ids: str) -> Manifest:
    path = existing(Path(images))
    if path.is_dir():
        shards = sorted(path.glob("*.tar"))
        inside = list(os.scandir(path)) if shards else []
        if shards and not any((entry.is_dir() or Path(entry.name).suffix.lower() in EXTENSIONS)
                                  and not is_hidden(entry.name) for entry in inside):
            return _shards(shards, ids=ids)
        if shards:
            print(f"{path} holds pictures or folders beside {len(shards)} tar files, which are left out; "
                  f"images='{path}/*.tar' reads them alone")
        paths = find_images(path)
        return Manifest(path, paths, names=_below(paths, path) if ids == "path" else None)
    if path.is_file():
        if path.suffix.lower() == ".tar" or str(path).lower().endswith(ENDINGS):
            return _shards([path], ids=ids)
        if path.suffix.lower() in EXTENSIONS:
            raise UserError(f"images={path} is one picture: expected a folder, a .tar, or a list of pictures")
        if (suffix := path.suffix.lower()) in UNREADABLE:
            raise UserError(f"images={path}: {suffix} cannot be read here: {UNREADABLE[suffix]}")
        return read_list(path, ids=ids)
    found = sorted(map(Path, glob(str(images)))) if any(sign in str(images) for sign in "*?[") else []
    if found:
        if other := [one for one in found if one.suffix.lower() != ".tar" or not one.is_file()]:
            raise UserError(f"images={images} matches {other[0]}, which is no .tar: a pattern names tar shards alone")
        return _shards(found, ids=ids)
    raise UserError(f"no folder {path}, nor a file of that name: expected a folder of pictures or tar shards, a .tar, "
                    f"a pattern such as 'shards/*.tar', or a list of pictures (relative paths start at {Path.cwd()})")


def _shards(paths: list[Path], *, ids: str) -> TarShards:
    pictures = TarShards(paths, ids=ids)
    pictures.left.say(paths[0] if len(paths) == 1 else f"{len(paths)} tar files")
    if others := pictures.skipped - pictures.left.count:
        print(f"{others:,} members of the tar files are left out: no files that end as pictures do")
    return pictures
