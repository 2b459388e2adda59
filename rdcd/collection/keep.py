"""Which of several copies is kept: the rules of `keep=`."""

import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rdcd.collection.on_disk import OnDisk
from rdcd.data.images import FORMATS
from rdcd.errors import UserError

_FORMATS = {"jpg": "JPEG", "tif": "TIFF", "heic": "HEIF", "jp2": "JPEG2000", "pgm": "PPM",
            **{name.lower(): name for name in FORMATS}}


@dataclass(frozen=True)
class Rule:
    """A rule.

    Args:
        text: as it is written.
        said: why a picture is kept by it.
        key: file → a number, the lower the sooner it is kept.
    """

    text: str
    said: str
    key: Callable[[OnDisk], int]


_PLAIN = {rule.text: rule for rule in (
    Rule("pixels", "most pixels", lambda file: -file.width * file.height),
    Rule("bytes", "most bytes", lambda file: -file.size),
    Rule("oldest", "oldest", lambda file: file.about.st_mtime_ns),
    Rule("newest", "newest", lambda file: -file.about.st_mtime_ns),
    Rule("shortest", "shortest path", lambda file: len(file.path)))}
TIES = [_PLAIN[name] for name in ("pixels", "bytes", "oldest")]  # what is equal by all rules goes by path then
PIXELS = "pixels"


def parse_keep(keep: str | Sequence[str]) -> list[Rule]:
    """Return the rules of `keep`: one, or several of which each decides where those before leave a tie.

    Args:
        keep: `pixels` or `bytes`, the most; `oldest`, `newest`, by the time of the file's last change; `shortest`
            path; `folder:DIR`, what lies below DIR; `format:NAME`, what is of that format, by its content.

    Raises:
        UserError: an unknown rule or format, or a folder that is not there.
    """
    rules = list(keep) if isinstance(keep, list | tuple) else [keep]
    return [_rule(rule) for rule in rules or [rules]]


def _rule(text: object) -> Rule:
    name, colon, value = str(text).partition(":")
    if rule := _PLAIN.get(str(text)):
        return rule
    if colon and name == "folder":
        if not value:
            raise UserError(f"keep={text}: expected a folder, keep=folder:DIR")
        if not os.path.isdir(value):
            raise UserError(f"keep={text}: no folder {value}; check the path (relative ones start at {Path.cwd()})")
        below = os.path.join(_real(value), "")
        return Rule(text, f"in {os.path.abspath(value)}",
                    lambda file: not os.path.join(_real(os.path.dirname(file.path)), "").startswith(below))
    if colon and name == "format":
        wanted = _FORMATS.get(value.lower())
        if wanted is None:
            raise UserError(f"keep={text}: expected one of {', '.join(_FORMATS)}; several are several rules, such as "
                            f"keep=[format:png,format:jpg]")
        return Rule(text, wanted, lambda file: file.format != wanted)
    raise UserError(f"keep={text}: expected one of {', '.join(_PLAIN)}, folder:DIR, format:NAME, or a list of these")


def _real(folder: str) -> str:
    return unicodedata.normalize("NFC", os.path.realpath(folder))
