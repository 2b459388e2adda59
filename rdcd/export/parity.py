"""The gate that every exported file passes: its own runtime gives the descriptors of the eager network."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rdcd.data.sources import open_pictures
from rdcd.data.synthetic import MAX_SIZE, MIN_SIZE, draw_picture
from rdcd.data.views import Pictures, to_tensor
from rdcd.errors import BadImage, UserError
from rdcd.models.student import Student

MIN_COSINE = 0.9999  # of fp32 formats
BATCHES = (1, 3)
COUNT = 12  # pictures compared


class Deployed(torch.nn.Module):
    """What a deployed file computes: uint8 pictures [N, 3, S, S] → fp32 descriptors [N, d], all steps inside.

    Args:
        student: re-parameterized, in evaluation mode.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.network = student
        self.eval()

    def forward(self, pictures: Tensor) -> Tensor:
        """Scale to [0, 1], normalize, compute."""
        return self.network.embed(pictures.float() / 255)


@dataclass(frozen=True)
class Parity:
    """How far two networks agree: cosines of their descriptors of the same pictures.

    Args:
        cosine_min, cosine_mean: over all pictures and sizes of batches.
        largest_difference: absolute, of any number.
        pictures: how many were compared.
    """

    cosine_min: float
    cosine_mean: float
    largest_difference: float
    pictures: int


def read_pictures(images: str | Path | None, *, size: int, count: int = COUNT, skip: int = 0) -> Tensor:
    """Return uint8 pictures [n, 3, size, size], resized as extraction does, n ≤ count.

    Args:
        images: see `open_pictures`; spread over it in a seeded order; None: drawn pictures.
        skip: pictures of that order to leave out.

    Raises:
        UserError: nothing there that can be read.
    """
    if images is None:
        drawn = [draw_picture(seed, size=min(max(size, MIN_SIZE), MAX_SIZE)) for seed in range(skip, skip + count)]
        return torch.stack([to_tensor(one.resize((size, size), 2)) for one in drawn])
    pictures = open_pictures(images)
    dataset, found, first_bad = Pictures(pictures, size=size, resize="square"), [], None
    for index in np.random.default_rng(0).permutation(len(pictures))[skip:].tolist():
        picture = dataset[index][1]
        if isinstance(picture, BadImage):
            first_bad = first_bad or picture
        else:
            found.append(picture)
        if len(found) == count:
            break
    if not found:
        raise UserError(f"none of the pictures in {images} could be read" + (f", the first: {first_bad}" if first_bad
                        else f" beyond the first {skip}") + "; give a folder of more pictures")
    return torch.stack(found)


def compare(eager: Callable[[Tensor], Tensor], written: Callable[[Tensor], Tensor], pictures: Tensor, *,
            batches: tuple[int, ...] = BATCHES) -> Parity:
    """Compare two functions of uint8 pictures, in batches of each size."""
    cosines, differences = [], []
    for size in batches:
        for part in pictures.split(size):
            with torch.inference_mode():
                expected, found = eager(part).double(), written(part).double()
            differences.append((expected - found).abs().max())
            cosines.append(torch.nn.functional.cosine_similarity(expected, found, dim=1))
    whole = torch.cat(cosines)
    return Parity(float(whole.min()), float(whole.mean()), float(torch.stack(differences).max()), len(pictures))


def check_parity(found: Parity, *, format: str, least: float = MIN_COSINE) -> None:
    """Refuse a file whose descriptors are others than the eager network's.

    Raises:
        UserError: a cosine below `least`, or none at all.
    """
    if not found.cosine_min >= least:  # NaN, too
        raise UserError(f"format={format}: descriptors of the exported file have a cosine of {found.cosine_min:.6f} at "
                        f"least to the student's own, and {least} is needed: nothing was written; give another format, "
                        f"or report the trunk")


def embed_bytes(network: torch.nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a network's `embed` as a function of uint8 pictures."""
    return lambda pictures: network.embed(pictures.float() / 255)
