"""Decode rules: one way to turn a file into an RGB picture, and the ledger of those that fail."""

import csv
import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from rdcd.errors import BadImage, UserError
from rdcd.files import atomic_path

EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # Pillow's names; of JPEG, MPO of telephones too
MAX_PIXELS = 100_000_000  # Pillow holds one of this size in 400 MB, and conversions take as much again
MAX_SCANS = 100  # of a progressive JPEG, each of which goes over the whole picture; usual are ten
_UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_90}
_LYING = (5, 6, 7, 8)  # orientations of EXIF that exchange width and height
_ORIENTATION, _TILE_WIDTH, _TILE_HEIGHT = 0x0112, 322, 323  # tags of EXIF and TIFF

# Pillow's own size and EXIF warnings: our rules apply. Once, as `catch_warnings` is slow and not of one thread alone.
warnings.filterwarnings("ignore", module=r"PIL\.")


def open_image(source: str | Path | bytes | Image.Image, *, max_pixels: int = MAX_PIXELS,
               at_least: tuple[int, int] | None = None) -> Image.Image:
    """Decode a picture to upright 8-bit RGB.

    The content decides what format it is, not the file's name. EXIF orientation is applied and an EXIF block that is
    broken ignored; transparency is composed on white, 16-bit values are scaled to 8, of an animation the first frame is
    taken; colour profiles are not applied; the whole of the file must decode.

    Args:
        source: a path, the encoded bytes, or a picture of Pillow's, which stays as it is.
        max_pixels: pictures of more pixels are refused before they are decoded.
        at_least: (width, height), upright: a JPEG is decoded at the smallest of the scales 1, 1/2, 1/4 and 1/8 at
            which it is no smaller on either side, which saves most of the time; None: at full size.

    Raises:
        BadImage: naming the file and what is wrong with it.
    """
    with opened(source, max_pixels=max_pixels) as picture:
        if at_least is not None and picture is not source and picture.format in ("JPEG", "MPO"):
            picture.draft(None, at_least[::-1] if orientation_of(picture) in _LYING else at_least)
        picture.load()
        how = _UPRIGHT.get(orientation_of(picture))
        return _to_rgb(picture if how is None else picture.transpose(how))


def upright_size(source: str | Path | bytes) -> tuple[int, int]:
    """Return (width, height) of a picture as `open_image` would at full size, from its header alone.

    Raises:
        BadImage: naming the file and what is wrong with it.
    """
    with opened(source) as picture:
        return picture.size[::-1] if orientation_of(picture) in _LYING else picture.size


@contextmanager
def opened(source: str | Path | bytes | Image.Image, *, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open a picture that may be decoded, by its header; whatever fails, then or within the block, is a `BadImage`.

    Raises:
        BadImage: naming the file and what is wrong with it.
    """
    name = "<bytes>" if isinstance(source, bytes) else "<picture>" if isinstance(source, Image.Image) else source
    try:
        if isinstance(source, Image.Image):
            _check_pixels(source, name, max_pixels)
            yield source
            return
        with io.BytesIO(source) if isinstance(source, bytes) else open(check_regular(source), "rb") as file:
            _check_file(file, name, max_pixels)
            with Image.open(file, formats=FORMATS) as picture:
                _check_size(picture, name, max_pixels)
                yield picture
    except (BadImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadImage(name, f"no sound file of the formats {', '.join(FORMATS)}") from None
    except OSError as error:
        raise BadImage(name, error.strerror or _one_line(error)) from error
    except Exception as error:  # decoders raise anything on hostile bytes; each is a bad file
        raise BadImage(name, f"{type(error).__name__}: {_one_line(error)}") from error


def check_regular(path: str | Path) -> Path:
    """Return the path of what may be opened; a pipe would let the reader wait for ever.

    Raises:
        BadImage: it is not there, or a folder, a pipe, a socket or a device.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise BadImage(path, getattr(error, "strerror", None) or _one_line(error)) from None
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a device or socket"
        raise BadImage(path, f"{what}, not a file")
    return Path(path)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _check_file(file: BinaryIO, name: object, max_pixels: int) -> None:
    """Refuse what is empty or longer than any picture; the file stands at its begin again."""
    size, most = file.seek(0, os.SEEK_END), 8 * max_pixels + 2**24  # 16-bit RGBA as it is, and text beside it
    if not size:
        raise BadImage(name, "the file is empty")
    if size > most:
        raise BadImage(name, f"a file of {size} bytes, at most {most} allowed")
    file.seek(0)


def _check_pixels(picture: Image.Image, name: object, max_pixels: int) -> None:
    if not picture.width or not picture.height:
        raise BadImage(name, f"{picture.width}x{picture.height} pixels")
    if picture.width * picture.height > max_pixels:
        raise BadImage(name, f"{picture.width}x{picture.height} pixels, at most {max_pixels} allowed")


def _check_size(picture: Image.Image, name: object, max_pixels: int) -> None:
    """Refuse what would take minutes or gigabytes: pixels, scans of a JPEG, tiles of a TIFF that are mostly padding."""
    _check_pixels(picture, name, max_pixels)
    if "progressive" in picture.info:
        place = picture.fp.tell()
        picture.fp.seek(0)
        scans = picture.fp.read().count(b"\xff\xda")
        picture.fp.seek(place)
        if scans > MAX_SCANS:
            raise BadImage(name, f"a progressive JPEG of {scans} scans, at most {MAX_SCANS} allowed")
    tags = getattr(picture, "tag_v2", {})
    if _TILE_WIDTH in tags and _TILE_HEIGHT in tags:
        tile = tags[_TILE_WIDTH], tags[_TILE_HEIGHT]
        across, down = (-(-side // part) * part for side, part in zip(picture.size, tile, strict=True))
        if across * down > max_pixels:
            raise BadImage(name, f"tiles of {tile[0]}x{tile[1]} pixels make {across}x{down}, at most {max_pixels} "
                                 f"allowed")


def orientation_of(picture: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) to 8; 1 where there is none or it is broken."""
    try:
        how = picture.getexif().get(_ORIENTATION)
    except Exception:  # of a broken EXIF block, Pillow's reader raises anything; the picture is sound
        return 1
    return how if how in _UPRIGHT else 1


def turned_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an array [h, w, 3] as EXIF's `orientation` asks."""
    if orientation == 1:
        return pixels
    return np.array(Image.fromarray(pixels).transpose(_UPRIGHT[orientation]))


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        return _grey(picture).convert("RGB")
    if not picture.has_transparency_data:
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    picture = picture.convert("RGBA")
    white = Image.new("RGB", picture.size, (255, 255, 255))
    white.paste(picture, mask=picture)
    return white


def _grey(picture: Image.Image) -> Image.Image:
    """Scale wide greys to 8 bits by their range: 16 bits, or where none is above, 8 bits, or of fractions, 1.

    Strip by strip, as numbers of all pixels would take several times the picture's memory.
    """
    rows = max(2**22 // picture.width, 1)
    boxes = [(0, top, picture.width, min(top + rows, picture.height)) for top in range(0, picture.height, rows)]
    scale = 65535.0
    if picture.mode in ("I", "F"):
        strips = (np.asarray(picture.crop(box)) for box in boxes)
        most = max(strip.max(initial=0, where=np.isfinite(strip)) for strip in strips)
        scale = 65535.0 if most > 255 else 1.0 if most <= 1 and picture.mode == "F" else 255.0
    grey = Image.new("L", picture.size)
    for box in boxes:
        grey.paste(Image.fromarray(_eight_bits(np.asarray(picture.crop(box)), scale,
                                               picture.info.get("transparency"))), box)
    return grey


def _eight_bits(values: np.ndarray, scale: float, transparent: object) -> np.ndarray:
    if values.dtype.kind == "u":
        grey = (values // 257).astype(np.uint8)
        if isinstance(transparent, int):
            grey[values == transparent] = 255
        return grey
    values = np.clip(np.nan_to_num(values.astype(np.float32)) / scale, 0, 1)  # what is no number is black
    return (values * 255).astype(np.uint8)


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
