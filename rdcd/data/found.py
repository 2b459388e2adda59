"""Which files of a folder are images, and what looks like images and is left out: one rule for every command."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path, PurePath

from PIL import features

from rdcd.errors import UserError

FEW = 5  # of each kind of trouble, so many are remembered by name
HEIC = (".heic", ".heif", ".hif", ".heics", ".heifs")
AVIF, JPEG2000 = (".avif", ".avifs"), (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx")
OPTIONAL = {  # suffixes → whether they can be read here, and what reads them
    HEIC: (find_spec("pillow_heif") is not None, "pip install pillow-heif"),
    AVIF: ("avif" in features.get_supported_modules() or find_spec("pillow_avif") is not None,
           "pip install 'pillow>=11.3'"),
    JPEG2000: (bool(features.check("jpg_2000")), "a Pillow with OpenJPEG: pip install --force-reinstall pillow")}
EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif",
              ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".qoi",
              *(suffix for suffixes, (readable, _) in OPTIONAL.items() if readable for suffix in suffixes))
_RAW = "3fr arw cr2 cr3 crw dcr dng erf fff gpr iiq kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f"
_OTHER = ("ai bpg cdr cur dcm dds djvu emf eps exr fit fits flif hdp hdr icns ico jls jxl jxr kra ora pam pcx pfm psb "
          "psd sgi svg svgz tga wdp wmf xbm xcf xpm")
UNREADABLE = {  # suffix of what looks like an image → what reads it
    **{f".{name}": "convert them, to TIFF or JPEG" for name in _RAW.split()},
    **{f".{name}": "convert them, to PNG or JPEG" for name in _OTHER.split()},
    **{suffix: way for suffixes, (readable, way) in OPTIONAL.items() if not readable for suffix in suffixes}}
_HIDDEN = {"@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "$recycle.bin", "recycler", "__macosx",
           "system volume information", "lost+found"}
_said: set[str] = set()


def printable(text: str) -> str:
    """Return a path as text that can be written anywhere, though a file name may be any bytes."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or a folder of trash or of thumbnails that a system keeps by itself."""
    return name.startswith(".") and name not in (".", "..") or name.lower() in _HIDDEN


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
class LeftOut:
    """What looks like images and is left out, by kind: a suffix, or where it lies."""

    kinds: dict[str, Trouble] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of files."""
        return sum(kind.count for kind in self.kinds.values())

    def file(self, path: str, *, hidden: bool) -> None:
        """Note a file that is not read, if it looks like an image."""
        suffix = os.path.splitext(path)[1].lower()
        if suffix in UNREADABLE or hidden and suffix in EXTENSIONS:
            self.kinds.setdefault("hidden, or in hidden, trash or thumbnail folders" if hidden else suffix,
                                  Trouble()).add(path)

    def __str__(self) -> str:
        """Say all of it in one line; without any, nothing."""
        return "; ".join(f"{trouble.count:,} {kind} ({trouble})"
                         + (f": {UNREADABLE[kind]}" if kind in UNREADABLE else "")
                         for kind, trouble in sorted(self.kinds.items()))

    def say(self, place: object) -> None:
        """Print what was left out of `place`, once however often it is looked through."""
        line = printable(f"{place}: left out {self}")
        if self.kinds and line not in _said:
            _said.add(line)
            print(line, flush=True)


def is_hidden_path(path: PurePath) -> bool:
    """Whether a path below a folder or in an archive is hidden, by any of its parts."""
    return any(map(is_hidden, path.parts))


def walk(folder: str | Path, left: LeftOut | None = None) -> Iterator[tuple[str, str, str]]:
    """Yield (folder, its path below the first with a slash at the end, file), sorted by the bytes of their paths.

    What is hidden is left out, files and folders; linked folders are looked into, each once.

    Args:
        left: takes what is left out.

    Raises:
        UserError: a folder that cannot be read, unless it is hidden.
    """
    seen = set()

    def visit(top: str, below: str, hidden: bool) -> Iterator[tuple[str, str, str]]:
        real = os.path.realpath(top)
        if real in seen:
            return
        seen.add(real)
        try:
            with os.scandir(top) as entries:
                names = [entry.name + "/" * _is_folder(entry) for entry in entries]
        except OSError as error:
            if hidden:
                return
            raise UserError(f"cannot look into {error.filename} ({error.strerror}): its pictures would be left out "
                            f"silently; make it readable") from error
        for name in sorted(names, key=os.fsencode):
            if name.endswith("/"):
                if hidden or not is_hidden(name[:-1]):
                    yield from visit(os.path.join(top, name[:-1]), below + name, hidden)
                elif left is not None:
                    trash.append((os.path.join(top, name[:-1]), below + name))
            elif hidden or is_hidden(name):
                if left is not None:
                    left.file(below + name, hidden=True)
            else:
                if left is not None:
                    left.file(below + name, hidden=False)
                yield top, below, name

    trash: list[tuple[str, str]] = []
    yield from visit(str(folder), "", False)
    for top, below in trash:  # last: a link in the trash must not take the turn of what it leads to
        for _ in visit(top, below, True):
            pass


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def find_images(folder: str | Path) -> list[Path]:
    """List the pictures under `folder`, those in nested and linked folders included, sorted by path.

    What looks like a picture and is left out is said.

    Raises:
        UserError: the folder does not exist or holds no picture.
    """
    folder, left = Path(folder), LeftOut()
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: expected a folder of pictures; check the path "
                        f"(relative ones start at {Path.cwd()})")
    found = sorted(Path(top, name) for top, _, name in walk(folder, left)
                   if os.path.splitext(name)[1].lower() in EXTENSIONS)
    if not found:
        raise UserError(f"no pictures under {folder}: expected files ending in {', '.join(EXTENSIONS)}"
                        + printable(f"; left out {left}") * bool(left.kinds))
    left.say(folder)
    return found
