"""Fonts and emoji for the overlays: the files that the `augly` package installs, read once a process."""

import pickle
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageFont

from rdcd.errors import UserError

# Controls, formats, surrogates, spaces. Private use (Co) stays: icon fonts keep their glyphs there.
_INVISIBLE = {"Cc", "Cf", "Cs", "Zs", "Zl", "Zp"}


@dataclass(frozen=True)
class Typeface:
    """A TrueType file and the characters it can draw (never empty, none of them blank)."""

    path: Path
    characters: str

    def at(self, pixels: float) -> ImageFont.FreeTypeFont:
        """Open the font at `pixels` a line.

        The basic layout places one glyph after another. Random glyphs make no words that would need
        shaping, it does not depend on an optional library, and it draws where Raqm refuses some.
        """
        return _opened(self.path, pixels)


@lru_cache(maxsize=8)
def _opened(path: Path, pixels: float) -> ImageFont.FreeTypeFont:
    """Keep the latest fonts: the first glyph of one takes longer than a line, and a line is measured, then drawn."""
    return ImageFont.truetype(path, pixels, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=1)
def typefaces() -> tuple[Typeface, ...]:
    """List AugLy's usable fonts, sorted by name.

    A font is left out if its list of characters (`NAME.pkl` beside `NAME.ttf`) is missing, if that list
    holds nothing visible (only controls and spaces), or if Pillow cannot open the file. AugLy 1.0.0 has
    364 fonts and all of them are usable.

    Raises:
        UserError: AugLy's fonts are not found.
    """
    usable = []
    for path in _find("fonts", "*.ttf"):
        characters = _visible_characters(path.with_suffix(".pkl"))
        if characters:
            face = Typeface(path=path, characters=characters)
            try:
                face.at(16)
            except OSError:
                continue
            usable.append(face)
    if not usable:
        raise _not_found("none of its fonts can be used")
    return tuple(usable)


def _visible_characters(path: Path) -> str:
    if not path.is_file():
        return ""
    characters = map(chr, pickle.loads(path.read_bytes()))  # a list of code points, of an installed package
    return "".join(c for c in characters if unicodedata.category(c) not in _INVISIBLE)


@lru_cache(maxsize=1)
def emoji_files() -> tuple[Path, ...]:
    """List AugLy's emoji (Twemoji, 72 x 72 pixels), sorted by path.

    Raises:
        UserError: AugLy's emoji are not found.
    """
    return tuple(_find("twemojis", "*/*.png"))


@lru_cache(maxsize=None)
def read_emoji(path: Path) -> Image.Image:
    """Decode an emoji to RGBA; the picture is shared, so do not write into it (all 872 take 18 MB)."""
    with Image.open(path) as emoji:
        return emoji.convert("RGBA")


def _find(folder: str, pattern: str) -> list[Path]:
    package = find_spec("augly")  # found, not imported: we need its files only
    if package is None or not package.submodule_search_locations:
        raise _not_found("the package is not installed")
    folder = Path(package.submodule_search_locations[0]) / "assets" / folder
    found = sorted(folder.glob(pattern))
    if not found:
        raise _not_found(f"no {pattern} under {folder}")
    return found


def _not_found(reason: str) -> UserError:
    return UserError(f"AugLy's fonts and emoji not found: {reason}; the text and emoji overlays need them, "
                     "so run `pip install --force-reinstall augly`, or choose augment=strong_blur")
