"""Samples for the networks: two augmented views for training, one resized picture for extraction."""

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from rdcd.augment import fast, on_device
from rdcd.data.encoded import Encoded
from rdcd.data.images import open_image, upright_size
from rdcd.data.manifest import Manifest
from rdcd.errors import BadImage, UserError, check_number

RESIZES = {"square": "square, aspect not kept", "short": "short side, aspect kept", "long": "long side, aspect kept"}
DECODES = ("exact", "reduced")
VIEWS, EDITS = ("query", "key"), ("query_edits", "key_edits")
MAX_ASPECT = 16  # where the aspect is kept: a thin line of a picture would become one of a million pixels, or of one
Augment = Callable[[Image.Image, np.random.Generator], Image.Image]


def to_tensor(picture: Image.Image | np.ndarray) -> Tensor:
    """Return a picture as uint8 [3, H, W]; networks scale to [0, 1] and normalize themselves."""
    pixels = np.asarray(picture, dtype=np.uint8)
    planes = np.empty((3, *pixels.shape[:2]), np.uint8)
    cv2.split(pixels, list(planes))
    return torch.from_numpy(planes)


class TwoViews(Dataset):
    """Two independent views of every training picture.

    A view is a function of (seed, epoch, index, view) alone, whatever worker makes it. A picture
    that does not decode is replaced by the next one that does, and travels along as a `BadImage`;
    `index` is of the picture shown.

    Args:
        pictures: the training pictures.
        augment: recipe, PIL picture and generator → PIL picture of fixed size; a `Recipe` makes them by the way that
            its `path` names.
        seed: seed of all views.
    """

    def __init__(self, pictures: Manifest, augment: Augment, *, seed: int = 0) -> None:
        self.pictures, self.augment, self.seed = pictures, augment, seed

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        bad: list[BadImage] = []
        for shift in range(min(len(self), 100)):
            shown = (index + shift) % len(self)
            try:
                return {**self._views(self.pictures.path(shown), epoch, index), "index": shown, "bad": bad}
            except BadImage as error:
                bad.append(error)
        raise UserError(f"{len(bad)} training pictures in a row do not decode, the first {bad[0].path} "
                        f"({bad[0].reason}): check the folder {self.pictures.root}")

    def _views(self, path: Path, epoch: int, index: int) -> dict[str, Tensor]:
        generators = [np.random.default_rng((self.seed, epoch, index, view)) for view in range(2)]
        if getattr(self.augment, "path", "plain") == "plain":
            picture = open_image(path)
            return {name: to_tensor(self.augment(picture, rng)) for name, rng in zip(VIEWS, generators, strict=True)}
        encoded = Encoded(path)
        drawn = [self.augment.draw(encoded.width, encoded.height, rng) for rng in generators]
        sample, left = {}, None
        if self.augment.device:
            drawn, left = zip(*map(on_device.split, drawn), strict=True)
        views = fast.views(encoded.pixels, encoded.width, encoded.height, drawn)
        for number, name in enumerate(VIEWS):
            sample[name] = to_tensor(views[number])
            if left is not None:
                sample[EDITS[number]] = left[number]
        return sample


def collate_views(samples: list[dict]) -> dict:
    """Stack samples: `query`, `key` uint8 [B, 3, S, S], `index` [B]; `bad`, a list for every sample that has one.

    Where edits are left to the device, see `Recipe`, `query_edits` and `key_edits` say which, float32 [B, WIDTH].
    """
    stacked = {name: torch.stack([s[name] for s in samples]) for name in samples[0] if name not in ("index", "bad")}
    return {**stacked, "index": torch.tensor([s["index"] for s in samples]),
            "bad": [s["bad"] for s in samples if s["bad"]]}


class EpochSampler(Sampler[tuple[int, int]]):
    """A seeded permutation an epoch, cut into whole global batches; yields (epoch, index).

    Row b of a global batch belongs to rank b // batch_size, so that gathering in rank order gives
    the batch a single process would have had.

    Args:
        length: number of pictures.
        batch_size: pictures a step on one rank.
        seed: seed of the order.
        rank, world_size: this process among all.
        begin: (epoch, step) to begin with, of an interrupted run; further epochs are whole.

    Raises:
        UserError: fewer pictures than one global batch.
    """

    def __init__(self, length: int, *, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1,
                 begin: tuple[int, int] = (0, 0)) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size, self.begin, self.epoch = rank, world_size, begin, begin[0]
        self.steps = length // (batch_size * world_size)
        if self.steps == 0:
            raise UserError(f"{length} training pictures are fewer than one batch of {batch_size * world_size}: "
                            f"add pictures, or set data.batch_size={max(length // world_size, 1)} or less")

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and views come next; Lightning calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of pictures of a whole epoch on this rank."""
        return self.steps * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        batches = order[:self.steps * self.world_size * self.batch_size].reshape(self.steps, self.world_size, -1)
        epoch, (begun, step) = self.epoch, self.begin
        mine = batches[step if epoch == begun else 0:, self.rank].ravel()
        return ((epoch, int(i)) for i in mine)  # no list of a million pairs, for workers to inherit


class Pictures(Dataset):
    """Pictures as a network sees them at extraction (docs/method.md §4): (index, uint8 [3, H, W] or BadImage).

    Args:
        pictures: which.
        size: side in pixels.
        resize: `square` (size × size, aspect not kept), `short` or `long` (that side = size, aspect kept). Of `short`,
            the long side is cut to a whole pixel, as by torchvision's `Resize(size)`; of `long`, the short is rounded.
        decode: `exact`, whole; `reduced`, a JPEG at the smallest scale at which either side is still at least twice
            `size`, before it is resized to the same shape as ever: nearer to `size`, the coarser pixels would show.
        bucket: where the aspect is kept, round the other side to a multiple of this, so that more pictures have one
            shape; None: whole pixels.

    Raises:
        UserError: another `resize` or `decode`, or a bucket that is no whole number above 0.
    """

    def __init__(self, pictures: Manifest, *, size: int, resize: str = "square", decode: str = "exact",
                 bucket: int | None = None) -> None:
        for name, value, known in (("resize", resize, RESIZES), ("decode", decode, DECODES)):
            if value not in known:
                raise UserError(f"{name}={value!r}: expected one of {', '.join(known)}")
        check_number("bucket", bucket, 1, null="shapes to a pixel")
        self.pictures, self.size, self.resize, self.decode, self.bucket = pictures, size, resize, decode, bucket

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[int, Tensor | BadImage]:
        try:
            source = self.pictures.source(index)
            reduced = self.decode == "reduced"
            picture = open_image(source, at_least=(2 * self.size, 2 * self.size) if reduced else None)
            whole = upright_size(source) if reduced and self.resize != "square" else picture.size
            if self.resize != "square" and max(whole) > MAX_ASPECT * min(whole):
                raise BadImage(source, f"{whole[0]}x{whole[1]} pixels, at most {MAX_ASPECT} times as long as short "
                                       f"when the aspect is kept")
        except BadImage as error:
            return index, BadImage(self.pictures.path(index), error.reason)
        return index, to_tensor(picture.resize(self._target(whole), Image.Resampling.BILINEAR))

    def _target(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.resize == "square":
            return self.size, self.size
        kept = min(size) if self.resize == "short" else max(size)

        def scaled(side: int) -> int:
            length = self.size * side / kept
            if self.bucket:
                return max(round(length / self.bucket), 1) * self.bucket
            return int(length) if self.resize == "short" else max(int(length + 0.5), 1)

        return tuple(self.size if side == kept else scaled(side) for side in size)
