"""Perceptual hashes people use today as descriptors, by their own libraries: pHash and PDQ."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rdcd.errors import UserError


def _phash() -> Callable[[np.ndarray], np.ndarray]:
    import imagehash

    return lambda pixels: imagehash.phash(Image.fromarray(pixels)).hash.ravel()


def _pdq() -> Callable[[np.ndarray], np.ndarray]:
    import pdqhash

    return lambda pixels: pdqhash.compute(pixels)[0]


HASHES = {"phash": (64, _phash, "imagehash"),  # name → bits, the library's function, how to install it
          "pdq": (256, _pdq, "pdqhash, which needs a C++ compiler")}


class PerceptualHash(nn.Module):
    """A hash of b bits as the descriptor (±1, …, ±1)/√b, whose inner product is 1 − 2·Hamming distance/b.

    Args:
        name: `phash` (DCT of 32 × 32 greys, 64 bits; the library imagehash) or `pdq` (256 bits; the library pdqhash).

    Raises:
        UserError: another name, or its library is not installed.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in HASHES:
            raise UserError(f"hash {name!r}: expected one of {', '.join(HASHES)}")
        self.dim, library, package = HASHES[name]
        try:
            self._bits = library()
        except ImportError as error:
            raise UserError(f"{name} is computed by a library that is not installed ({error}): "
                            f"pip install {package}") from error

    def embed(self, pictures: Tensor) -> Tensor:
        """Return descriptors [B, b] of pictures [B, 3, H, W] in [0, 1]."""
        pixels = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        bits = np.stack([self._bits(np.ascontiguousarray(picture)) for picture in pixels])
        return torch.from_numpy(2 * bits.astype(np.float32) - 1).to(pictures.device) / self.dim ** 0.5
