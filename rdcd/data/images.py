"""Decode rules: one way to turn a file into an RGB picture, and the ledger of those that fail."""

import csv
import inspect
import io
import os
import stat
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, wraps
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from rdcd.data import sound
from rdcd.data.found import EXTENSIONS as EXTENSIONS
from rdcd.data.found import find_images as find_images
from rdcd.errors import BadImage, check_number
from rdcd.files import atomic_path

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "QOI", "JPEG2000", "AVIF", "HEIF")  # Pillow's names
MAX_PIXELS = 100_000_000  # Pillow holds one of this size in 400 MB, and conversions take as much again
_LIMIT = "RDCD_MAX_PIXELS"  # of the environment, which processes that are started inherit
MAX_SCANS = 100  # of a JPEG, each of which goes over the whole picture; usual are ten
_UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_90}
_LYING = (5, 6, 7, 8)  # orientations of EXIF that exchange width and height
_ORIENTATION = 0x0112  # a tag of EXIF and TIFF, as the following are of TIFF
_WIDTH, _HEIGHT, _BITS, _MEANING, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 258, 262, 322, 323
_WHITE = (255, 255, 255)
_RANGES = (1, 255, 65535)  # of wide greys
_STRAY = 0.001  # share of the values that may lie outside of the range

# Pillow's own size and EXIF warnings: our rules apply. Once, as `catch_warnings` is slow and not of one thread alone.
warnings.filterwarnings("ignore", module=r"PIL\.")


def reads_images(command: Callable) -> Callable:
    """Give a command the keyword `max_pixels`, which holds for all processes that it starts, until it is done.

    Pictures of more pixels are refused, but for JPEGs that are decoded at 1/2, 1/4 or 1/8 of their sides, see
    `open_image`.
    """
    @wraps(command)
    def limited(*, max_pixels: int | None = None, **settings: object) -> object:
        check_number("max_pixels", max_pixels, 1, null=f"what holds, {pixel_limit()}")
        max_pixels = max_pixels or pixel_limit()
        before = os.environ.get(_LIMIT)
        os.environ[_LIMIT] = str(max_pixels)
        try:
            return command(**settings)
        finally:
            os.environ.pop(_LIMIT) if before is None else os.environ.update({_LIMIT: before})

    signature = inspect.signature(command)
    key = inspect.Parameter("max_pixels", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=int | None)
    limited.__signature__ = signature.replace(parameters=[*signature.parameters.values(), key])
    limited.__annotations__ = command.__annotations__ | {key.name: key.annotation}
    return limited


def pixel_limit() -> int:
    """Return the number of pixels that a picture may have: that of the command at work, else `MAX_PIXELS`."""
    return int(os.environ.get(_LIMIT, MAX_PIXELS))


def open_image(source: str | Path | bytes | Image.Image, *, max_pixels: int | None = None,
               at_least: tuple[int, int] | None = None) -> Image.Image:
    """Decode a picture to upright 8-bit RGB.

    The content decides what format it is, not the file's name. EXIF orientation is applied and an EXIF block that is
    broken ignored, as is other metadata; transparency is composed on white, and so is what the first frame of an
    animation, which is taken, leaves of its canvas; wide greys are scaled to 8 bits (`_grey`); colour profiles are not
    applied; all of the pixels must decode.

    Args:
        source: a path, the encoded bytes, or a picture of Pillow's, which stays as it is.
        max_pixels: pictures of more pixels are refused before they are decoded, but for JPEGs: these are decoded at the
            largest of the scales 1/2, 1/4 and 1/8 that is within it, which is then their full size; None: see
            `pixel_limit`.
        at_least: (width, height), upright: a JPEG is decoded at the smallest of the scales 1, 1/2, 1/4 and 1/8 at
            which it is no smaller on either side, which saves most of the time; None: at full size.

    Raises:
        BadImage: naming the file and what is wrong with it.
    """
    with opened(source, max_pixels=max_pixels, at_least=at_least) as picture:
        frame = _first_frame(picture)
        picture.load()
        found = _to_rgb(picture)
        if frame is not None:
            canvas = Image.new("RGB", found.size, _WHITE)
            canvas.paste(found.crop(frame), frame)
            found = canvas
        how = _UPRIGHT.get(orientation_of(picture))
        return found if how is None else found.transpose(how)


def upright_size(source: str | Path | bytes) -> tuple[int, int]:
    """Return (width, height) of a picture as `open_image` would at full size, from its header alone.

    Raises:
        BadImage: naming the file and what is wrong with it.
    """
    with opened(source) as picture:
        return upright(picture)


def upright(picture: Image.Image) -> tuple[int, int]:
    """Return (width, height) that a picture has, or will have, once its orientation is applied.

    Pillow turns a TIFF by itself when it decodes it, and its newer versions exchange the sides before.
    """
    size = _stored_size(picture)
    return size[::-1] if orientation_of(picture) in _LYING else size


def _stored_size(picture: Image.Image) -> tuple[int, int]:
    tags = getattr(picture, "tag_v2", {}) if getattr(picture, "tile", None) else {}  # there is no tile when decoded
    return tags.get(_WIDTH, picture.width), tags.get(_HEIGHT, picture.height)


@contextmanager
def opened(source: str | Path | bytes | Image.Image, *, max_pixels: int | None = None,
           at_least: tuple[int, int] | None = None) -> Iterator[Image.Image]:
    """Open a picture that may be decoded, by its header; whatever fails, then or within the block, is a `BadImage`.

    Its sides are those at which it will be decoded. `max_pixels` and `at_least` are as in `open_image`.

    Raises:
        BadImage: naming the file and what is wrong with it.
    """
    max_pixels = pixel_limit() if max_pixels is None else max_pixels
    name = "<bytes>" if isinstance(source, bytes) else "<picture>" if isinstance(source, Image.Image) else source
    try:
        if isinstance(source, Image.Image):
            _check_pixels(source, name, max_pixels, smaller=False)
            yield source
            return
        with io.BytesIO(source) if isinstance(source, bytes) else open(check_regular(source), "rb") as file:
            _check_file(file, name, max_pixels)
            if Image.MAX_IMAGE_PIXELS and max_pixels > Image.MAX_IMAGE_PIXELS:
                Image.MAX_IMAGE_PIXELS = max_pixels  # as was asked for
            with _header(file) as picture:
                least = _check_size(picture, name, max_pixels)
                if least > 1 or at_least is not None and picture.format == "JPEG":
                    asked = picture.size if at_least is None else at_least
                    asked = asked[::-1] if at_least is not None and orientation_of(picture) in _LYING else asked
                    picture.info["reduction"] = least
                    picture.draft(None, tuple(min(want, max(side // least, 1))
                                              for want, side in zip(asked, picture.size, strict=True)))
                yield picture
    except (BadImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadImage(name, f"no sound file of the formats {', '.join(FORMATS)}") from None
    except OSError as error:
        raise BadImage(name, error.strerror or _one_line(error)) from error
    except Exception as error:  # decoders raise anything on hostile bytes; each is a bad file
        raise BadImage(name, f"{type(error).__name__}: {_one_line(error)}") from error


def _header(file: BinaryIO) -> Image.Image:
    """Open a picture whose metadata is passed over, see `rdcd.data.sound`.

    Raises:
        UnidentifiedImageError: it is none.
        OSError, ValueError, and what else Pillow raises: it is broken.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    begin = file.read(16)
    file.seek(0)
    try:
        if begin.startswith(sound.JPEG):
            parts, whole = sound.jpeg(file, size)
            picture = JpegImageFile(parts)
            picture.info["several scans"] = not whole or "progressive" in picture.info
        elif begin.startswith(sound.PNG):
            parts, exif, xmp = sound.png(file, size)
            picture = PngImageFile(parts)
            picture.info |= {"exif": exif, "XML:com.adobe.xmp": xmp}  # else Pillow decodes it to look behind
        else:
            if begin[4:8] == b"ftyp":
                _plugins()
            elif begin[4:8] == b"jP  ":
                sound.codestream(file, size)
                file.seek(0)
            Image.init()  # those of Pillow's formats that this one has, once
            picture = Image.open(file, formats=[kind for kind in FORMATS if kind in Image.OPEN])
    except SyntaxError as error:
        raise UnidentifiedImageError(str(error)) from None
    return picture


@cache
def _plugins() -> None:
    """Let Pillow read HEIC, and its older versions AVIF, by what is installed beside it."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    if "AVIF" not in Image.OPEN:
        with suppress(ImportError):
            import pillow_avif  # noqa: F401  (it registers itself)


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


def _check_pixels(picture: Image.Image, name: object, max_pixels: int, *, smaller: bool = True) -> int:
    """Refuse a picture of too many pixels; return by what the sides of a JPEG, if it may be, are to be divided."""
    pixels = picture.width * picture.height
    if not pixels:
        raise BadImage(name, f"{picture.width}x{picture.height} pixels")
    if pixels <= max_pixels:
        return 1
    scale = next((scale for scale in (2, 4, 8) if -(-picture.width // scale) * -(-picture.height // scale)
                  <= max_pixels), None)
    if not (smaller and isinstance(picture, JpegImageFile)) or scale is None:
        raise BadImage(name, f"{picture.width}x{picture.height} pixels, more than max_pixels={max_pixels} allows")
    if picture.info.get("several scans"):  # all coefficients of the whole are held, 2 bytes each
        across, down = (max(layer[axis] for layer in picture.layer) for axis in (1, 2))
        share = sum(layer[1] * layer[2] for layer in picture.layer) / across / down
        if pixels * share > 3 * max_pixels:
            raise BadImage(name, f"{picture.width}x{picture.height} pixels in several scans, which take more "
                                 f"memory at any scale than max_pixels={max_pixels} allows")
    return scale


def _check_size(picture: Image.Image, name: object, max_pixels: int) -> int:
    """Refuse what would take minutes or gigabytes: pixels, scans of a JPEG, tiles of a TIFF that are mostly padding.

    Return by what the sides of a JPEG are to be divided, else 1.
    """
    least = _check_pixels(picture, name, max_pixels)
    if picture.info.get("several scans"):
        place = picture.fp.tell()
        picture.fp.seek(0)
        scans = sound.scans(picture.fp.read())
        picture.fp.seek(place)
        if scans > MAX_SCANS:
            kind = "progressive JPEG" if "progressive" in picture.info else "JPEG"
            raise BadImage(name, f"a {kind} of {scans} scans, at most {MAX_SCANS} allowed")
    if picture.format == "JPEG2000":
        _check_codestream(picture, name, max_pixels)
    if picture.format == "QOI" and picture.width * picture.height > max_pixels // 10:  # Pillow's takes 1 s a million
        raise BadImage(name, f"a QOI of {picture.width}x{picture.height} pixels, at most {max_pixels // 10} allowed")
    tags = getattr(picture, "tag_v2", {})
    if _TILE_WIDTH in tags and _TILE_HEIGHT in tags:
        tile, size = (tags[_TILE_WIDTH], tags[_TILE_HEIGHT]), _stored_size(picture)
        across, down = (-(-side // part) * part for side, part in zip(size, tile, strict=True))
        if across * down > max_pixels:
            raise BadImage(name, f"tiles of {tile[0]}x{tile[1]} pixels make {across}x{down}, at most {max_pixels} "
                                 f"allowed")
    return least


def _check_codestream(picture: Image.Image, name: object, max_pixels: int) -> None:
    """Refuse a JPEG 2000 of other sides than its header's, or with tiles of more than 2 numbers for each pixel allowed.

    OpenJPEG decodes a tile into 4 bytes a number, whatever its bits.
    """
    start, stop = sound.codestream(picture.fp, picture.fp.seek(0, os.SEEK_END))
    picture.fp.seek(max(stop - 2, 0))
    whole = picture.fp.read(2) == b"\xff\xd9"
    picture.fp.seek(start)
    size = picture.fp.read(42)
    picture.fp.seek(0)
    if not whole:  # OpenJPEG would leave the rest black
        raise BadImage(name, "a JPEG 2000 that is truncated")
    if not size.startswith(sound.JPEG2000) or len(size) < 42:
        raise BadImage(name, "a JPEG 2000 without pixels")
    right, bottom, left, top, across, down, _, _, colours = struct.unpack(">8I H", size[8:])
    if (right - left, bottom - top) != picture.size:
        raise BadImage(name, f"a JPEG 2000 of {picture.width}x{picture.height} pixels that holds "
                             f"{right - left}x{bottom - top}")
    if min(across, picture.width) * min(down, picture.height) * colours > 2 * max_pixels:
        raise BadImage(name, f"tiles of {across}x{down} pixels in {colours} colours, at most {2 * max_pixels} numbers "
                             f"allowed")


def _first_frame(picture: Image.Image) -> tuple[int, int, int, int] | None:
    """Return the box that the first frame of a GIF or WebP covers, if it is not all; the rest of it is transparent."""
    frame = None
    if picture.format == "GIF" and picture.tile:
        frame = tuple(picture.tile[0][1])
    elif picture.format == "WEBP" and picture.fp:
        frame = _webp_frame(picture.fp)
    return None if frame == (0, 0, *picture.size) else frame


def _webp_frame(file: BinaryIO) -> tuple[int, int, int, int] | None:
    """Return the box of an animation's first frame: Pillow has black around it, where no alpha is declared."""
    place = 12  # behind RIFF, size, WEBP
    for _ in range(100):
        file.seek(place)
        head = file.read(20)
        if len(head) < 20 or head[:4] in (b"VP8 ", b"VP8L"):
            return None
        if head[:4] == b"ANMF":
            left, top, width, height = (int.from_bytes(head[at:at + 3], "little") for at in (8, 11, 14, 17))
            return 2 * left, 2 * top, 2 * left + width + 1, 2 * top + height + 1
        length = int.from_bytes(head[4:8], "little")
        place += 8 + length + length % 2
    return None


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
    white = Image.new("RGB", picture.size, _WHITE)
    white.paste(picture, mask=picture)
    return white


def _grey(picture: Image.Image) -> Image.Image:
    """Scale wide greys to 8 bits by their range.

    That is 12 or 16 bits where the format says so. Of 32-bit integers and of floats, which say nothing, it is the
    smallest of 1 (floats alone), 255 and 65535 of which no more than 1 value in 1,000 is above the double: strays such
    as a hot pixel and the overshoot of sharpening are clipped, and an image that is cut short by it would be black in
    the next range. What is no number is black.

    Strip by strip, as numbers of all pixels would take several times the picture's memory.
    """
    rows = max(2**22 // picture.width, 1)
    boxes = [(0, top, picture.width, min(top + rows, picture.height)) for top in range(0, picture.height, rows)]
    tags = getattr(picture, "tag_v2", {})
    most = 4095 if tags.get(_BITS) == (12,) else 65535
    if picture.mode == "F" or picture.mode == "I" and picture.format not in ("PPM", "PNG"):  # which are of 16 bits
        most = _range(np.asarray(picture.crop(box)) for box in boxes)
    grey = Image.new("L", picture.size)
    for box in boxes:
        values = np.asarray(picture.crop(box))
        eight = _eight_bits(most - values if tags.get(_MEANING) == 0 else values, most)  # 0: zero is white
        if isinstance(transparent := picture.info.get("transparency"), int):
            eight[values == transparent] = 255
        grey.paste(Image.fromarray(eight), box)
    return grey


def _range(strips: Iterable[np.ndarray]) -> int:
    known, above = 0, np.zeros(len(_RANGES), dtype=int)
    for strip in strips:
        strip, floats = strip[np.isfinite(strip)], strip.dtype.kind == "f"
        known += strip.size
        above += [(strip > 2 * most).sum() if floats or most > 1 else strip.size for most in _RANGES]
    return next((most for most, count in zip(_RANGES, above) if count <= _STRAY * known), _RANGES[-1])


def _eight_bits(values: np.ndarray, most: int) -> np.ndarray:
    if values.dtype.kind == "u":
        return (values.astype(np.uint32) * 255 // most).astype(np.uint8)
    return (np.clip(np.nan_to_num(values.astype(np.float32) / most), 0, 1) * 255).astype(np.uint8)


def write_ledger(path: str | Path, bad: list[BadImage]) -> None:
    """Write the bad-file ledger: CSV `path,reason`, one row a file, sorted by path."""
    with atomic_path(path) as partial, open(  # a file name may be any bytes
            partial, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "reason"))
        writer.writerows(sorted({(b.path, b.reason) for b in bad}))
