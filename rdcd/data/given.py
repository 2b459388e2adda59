"""Pictures that a Python program has: files, PIL pictures and arrays in any mixture."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image

from rdcd.data.images import pixel_limit
from rdcd.errors import BadImage, UserError
from rdcd.files import sha256

Picture = str | Path | Image.Image | np.ndarray


class Given:
    """Pictures as they are given, in the place of a `Manifest`.

    Args:
        pictures: paths, PIL pictures, uint8 arrays [H, W, 3], [H, W] or [H, W, 4].

    Raises:
        UserError: one picture instead of several.
    """

    def __init__(self, pictures: Sequence[Picture]) -> None:
        if isinstance(pictures, str | Path | Image.Image) or isinstance(pictures, np.ndarray) and pictures.ndim < 4:
            raise UserError(f"pictures={type(pictures).__name__}: expected a list of pictures; put one into brackets")
        self._pictures, self._turn = list(pictures), Lock()

    def __len__(self) -> int:
        return len(self._pictures)

    def path(self, index: int) -> str:
        """Return how a picture is named."""
        one = self._pictures[index]
        return str(one) if isinstance(one, str | Path) else f"pictures[{index}]"

    def source(self, index: int) -> Path | Image.Image:
        """Return what `open_image` takes."""
        one = self._pictures[index]
        if isinstance(one, str | Path):
            return Path(one)
        if isinstance(one, Image.Image):
            if one.width * one.height <= pixel_limit():
                with self._turn, suppress(Exception):  # one thread at a time; `open_image` meets the same error
                    one.load()
            return one
        if not isinstance(one, np.ndarray):
            raise BadImage(self.path(index), f"{type(one).__name__}; expected a path, a PIL picture or an array")
        if one.dtype != np.uint8 or not (one.ndim == 2 or one.ndim == 3 and one.shape[2] in (3, 4)) or not one.size:
            raise BadImage(self.path(index), f"an array of {one.dtype} {list(one.shape)}; expected uint8 [H, W, 3]")
        return Image.fromarray(np.ascontiguousarray(one))

    def files(self) -> tuple[list[str], np.ndarray]:
        """Return absolute paths and the SHA-256 of the files, uint8 [n, 32]; of what is in memory, "" and zeros."""
        paths = [os.path.abspath(one) if isinstance(one, str | Path) else "" for one in self._pictures]
        digests = np.zeros((len(paths), 32), np.uint8)
        for row, path in enumerate(paths):
            if path:
                digests[row] = np.frombuffer(bytes.fromhex(sha256(path)), np.uint8)
        return paths, digests
