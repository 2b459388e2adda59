"""A picture of which only the header has been read: it is decoded once it is known at what scale."""

from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from rdcd.data.images import open_image, opened, orientation_of, turned_upright


class Encoded:
    """A picture that may be decoded, see `open_image` for the rules; `width` and `height` are upright.

    Args:
        source: a path, or the encoded bytes.

    Raises:
        BadImage: naming the file and what is wrong with it.
    """

    def __init__(self, source: str | Path | bytes) -> None:
        self.source = source
        self._data: bytes | None = None
        with opened(source) as picture:
            self._orientation = orientation_of(picture)
            self.width, self.height = picture.size if self._orientation < 5 else picture.size[::-1]
            if picture.format in ("JPEG", "MPO") and picture.mode == "RGB":
                picture.fp.seek(0)
                self._data = picture.fp.read()

    def pixels(self, reduction: int = 1) -> np.ndarray:
        """Decode to upright RGB, uint8 [h, w, 3].

        Args:
            reduction: 1, 2, 4 or 8: a JPEG's sides are divided by this, rounded up.

        Raises:
            BadImage: naming the file and what is wrong with it.
        """
        if self._data is not None:
            try:
                height, width, space, _ = simplejpeg.decode_jpeg_header(self._data)
                if space == "YCbCr":
                    return turned_upright(simplejpeg.decode_jpeg(
                        self._data, min_height=-(-height // reduction), min_width=-(-width // reduction)),
                        self._orientation)
            except ValueError:  # what is odd about it, Pillow tells, or takes
                pass
        return np.asarray(open_image(self.source))

    def picture(self) -> Image.Image:
        """Decode to upright RGB, whole, by Pillow."""
        return open_image(self.source)
