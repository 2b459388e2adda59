"""A picture of which only the header has been read: it is decoded once it is known at what scale."""

import os
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from rdcd.data.images import check_regular, open_image, opened, orientation_of, pixel_limit, turned_upright, upright

_WHOLE = 1 << 25  # bytes of a file that is read at once
_BASELINE, _SCAN, _TURNING = 0xC0, 0xDA, 0xE1  # markers of JPEG; APP1 holds EXIF or XMP
_FRAMES = set(range(0xC1, 0xD0)) - {0xC4, 0xC8, 0xCC}  # progressive and rarer ones


class Encoded:
    """A picture that may be decoded, see `open_image` for the rules; `width` and `height` are upright.

    Args:
        source: a path, or the encoded bytes.

    Raises:
        BadImage: naming the file and what is wrong with it.
    """

    def __init__(self, source: str | Path | bytes) -> None:
        self.source, self._orientation, self._reduction = source, 1, 1
        self._data = _plain_jpeg(source)
        if self._data is not None:
            self.height, self.width = simplejpeg.decode_jpeg_header(self._data)[:2]
            return
        with opened(source) as picture:
            self._orientation = orientation_of(picture)
            self.width, self.height = upright(picture)
            self._reduction = picture.info.get("reduction", 1)  # above the limit of pixels
            if picture.format == "JPEG" and picture.mode == "RGB":
                picture.fp.seek(0)
                self._data = picture.fp.read()

    def pixels(self, reduction: int = 1) -> np.ndarray:
        """Decode to upright RGB, uint8 [h, w, 3]; of a JPEG, whose colours are coarser, these are not interpolated.

        Args:
            reduction: 1, 2, 4 or 8: a JPEG's sides are divided by this, rounded up.

        Raises:
            BadImage: naming the file and what is wrong with it.
        """
        if self._data is not None:
            try:
                height, width, space, _ = simplejpeg.decode_jpeg_header(self._data)
                reduction = min(reduction * self._reduction, 8)
                if space == "YCbCr":
                    return turned_upright(simplejpeg.decode_jpeg(
                        self._data, min_height=-(-height // reduction), min_width=-(-width // reduction),
                        fastupsample=True), self._orientation)
            except ValueError:  # what is odd about it, Pillow tells, or takes
                pass
        return np.array(open_image(self.source))

    def picture(self) -> Image.Image:
        """Decode to upright RGB, whole, by Pillow."""
        return open_image(self.source)


def _plain_jpeg(source: str | Path | bytes) -> bytes | None:
    """Return the bytes of a JPEG that needs nothing of Pillow's reader: see `_is_plain`, and of allowed size."""
    if not isinstance(source, bytes):
        path = check_regular(source)
        try:
            with open(path, "rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size > _WHOLE:
                    return None
                source = file.read()
        except OSError:
            return None  # which `opened` words
    try:
        if not _is_plain(source):
            return None
        height, width, space, _ = simplejpeg.decode_jpeg_header(source)
    except (ValueError, IndexError):
        return None
    return source if space == "YCbCr" and height * width <= pixel_limit() else None


def _is_plain(data: bytes) -> bool:
    """Go from marker to marker of a JPEG up to its scan: it is baseline, all of it in one scan, and no EXIF or XMP may
    tell how to turn it.

    Raises:
        IndexError: it ends before that.
    """
    if not data.startswith(b"\xff\xd8"):
        return False
    place, colours = 2, 0
    while data[place] == 0xFF:
        kind, length = data[place + 1], int.from_bytes(data[place + 2:place + 4], "big")
        if kind == _SCAN:
            return data[place + 4] == colours
        if kind == _TURNING or kind in _FRAMES or length < 2:
            return False
        if kind == _BASELINE:
            colours = data[place + 9]
        place += 2 + length
    return False
