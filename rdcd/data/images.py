"""Decode rules: one way to turn a file into an RGB picture, and the ledger of those that fail."""

import csv
import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from rdcd.errors import BadImage, UserError
from rdcd.files import atomic_path

EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
MAX_PIXELS = 100_000_000  # a decoded RGB picture of this size takes 300 MB


def open_image(source: str | Path | bytes, *, max_pixels: int = MAX_PIXELS,
               at_least: tuple[int, int] | None = None) -> Image.Image:
    """Decode a picture to upright 8-bit RGB.

    EXIF orientation is applied, transparency is composed on white, 16-bit greys are scaled to 8,
    of an animation the first frame is taken; the whole of the file must decode.

    Args:
        source: a path, or the encoded bytes.
        max_pixels: pictures of more pixels are refused before they are decoded.
        at_least: (width, height), upright: a JPEG is decoded at the smallest of the scales 1, 1/2, 1/4 and 1/8 at
            which it is no smaller on either side, which saves most of the time; None: at full size.

    Raises:
        BadImage: naming the file and what is wrong with it.
    """
    name = "<bytes>" if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own size and EXIF warnings: our rules apply
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file) as picture:
                if picture.width * picture.height > max_pixels:
                    raise BadImage(name, f"{picture.width}x{picture.height} pixels, at most {max_pixels} allowed")
                if at_least is not None and picture.format in ("JPEG", "MPO"):
                    lying = picture.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
                    picture.draft(None, at_least[::-1] if lying else at_least)
                picture.load()
                return _to_rgb(ImageOps.exif_transpose(picture))
    except BadImage:
        raise
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything on hostile bytes; each is a bad file
        raise BadImage(name, f"{type(error).__name__}: {error}") from error


def upright_size(source: str | Path | bytes) -> tuple[int, int]:
    """Return (width, height) of a picture as `open_image` would at full size, from its header alone.

    Raises:
        BadImage: naming the file and what is wrong with it.
    """
    name = "<bytes>" if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
                lying = picture.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
                return picture.size[::-1] if lying else picture.size
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise BadImage(name, f"{type(error).__name__}: {error}") from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB":
        return picture
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float32)
        top = 65535.0 if picture.mode.startswith("I;16") or values.max(initial=0) > 255 else 255.0
        return Image.fromarray((np.clip(values / top, 0, 1) * 255).astype(np.uint8), "L").convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def find_images(folder: str | Path) -> list[Path]:
    """List the pictures under `folder`, those in nested and linked folders included, sorted by path.

    Raises:
        UserError: the folder does not exist or holds no picture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: expected a folder of pictures; check the path "
                        f"(relative ones start at {Path.cwd()})")
    found, seen = [], set()

    def unreadable(error: OSError) -> None:
        raise UserError(f"cannot look into {error.filename} ({error.strerror}): its pictures would be left out "
                        f"silently; make it readable") from error

    for top, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(top)
        if real in seen:  # a link back up, or a second one to the same place
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        paths = (Path(top, name) for name in files if not name.startswith("."))
        found += [path for path in paths if path.suffix.lower() in EXTENSIONS]
    found.sort()
    if not found:
        raise UserError(f"no pictures under {folder}: expected files ending in {', '.join(EXTENSIONS)}")
    return found


def write_ledger(path: str | Path, bad: list[BadImage]) -> None:
    """Write the bad-file ledger: CSV `path,reason`, one row a file, sorted by path."""
    with atomic_path(path) as partial, open(  # a file name may be any bytes
            partial, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "reason"))
        writer.writerows(sorted({(b.path, b.reason) for b in bad}))
