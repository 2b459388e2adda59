"""Training views by name: a recipe is an ordered list of (probability, op)."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from rdcd.augment import assets, ops
from rdcd.augment.steps import Step
from rdcd.errors import UserError

PATHS = ("fast", "plain")


@dataclass(frozen=True)
class Recipe:
    """Turn a picture into one random view of it, `size` x `size` RGB pixels.

    Views are not normalized: networks do that themselves. Recipes can be pickled, so loader workers take
    them whatever their start method.

    Args:
        size: side of the view, pixels.
        steps: (probability, op) in the order of their use; one of them makes the picture `size` x `size`.
        path: how training makes the views: `fast`, see `rdcd.augment.fast`, or `plain`, as `__call__` does, one edit
            after another at full size.
        device: `cuda` or `cpu`: colours, grey and blur for whole batches on the device that trains, see
            `rdcd.augment.on_device`; None: by the loader's workers.

    Raises:
        UserError: `size` or a probability is out of range, or another `path` or `device`.
    """

    size: int
    steps: tuple[tuple[float, ops.Op], ...]
    path: str = "fast"
    device: str | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"size={self.size}: expected the side of a view in pixels, 1 or more; "
                            "try size=224")
        if self.path not in PATHS:
            raise UserError(f"augment.path={self.path!r}: expected one of {', '.join(PATHS)}")
        if self.device not in (None, "cuda", "cpu"):
            raise UserError(f"augment.device={self.device!r}: expected cuda, cpu, or null for the loader's workers")
        if self.device and self.path != "fast":
            raise UserError(f"augment.device={self.device}, augment.path={self.path}: the plain way is whole in the "
                            "loader's workers; take augment.path=fast, or augment.device=null")
        for probability, op in self.steps:
            if not 0 <= probability <= 1:
                raise UserError(f"probability {probability} of {op}: expected 0 to 1")

    def draw(self, width: int, height: int, rng: np.random.Generator) -> list[Step]:
        """Draw the steps that `__call__` would take of a picture of `width` x `height` pixels; one draw from `rng`."""
        rng = np.random.default_rng(rng.integers(2**63))
        drawn = []
        for probability, op in self.steps:
            if rng.random() < probability:
                drawn.append(op.draw(width, height, rng))
                width, height = drawn[-1].size(width, height)
        return drawn

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Make one view of an RGB picture of any size; takes exactly one draw from `rng`."""
        rng = np.random.default_rng(rng.integers(2**63))  # so that no view depends on the ones before it
        for probability, op in self.steps:
            if rng.random() < probability:
                picture = op(picture, rng)
        return picture


def advanced(size: int = 224, *, path: str = "fast", device: str | None = None) -> Recipe:
    """Make the ADVANCED views (docs/method.md §3; Pizzi et al., CVPR 2022, section 4).

    The blur's radius, 1 to 5 pixels at 224, grows and shrinks with `size`, so that small views are
    blurred as much, relative to what they show, as large ones.

    Args:
        size: side of the view, pixels.
        path, device: see `Recipe`.

    Raises:
        UserError: AugLy's fonts or emoji are not found, or `size` is out of range.
    """
    assets.typefaces()  # both calls: a missing asset is told now, not from inside a loader worker
    assets.emoji_files()
    return Recipe(size=size, path=path, device=device, steps=(
        (0.5, ops.HorizontalFlip()),
        (0.05, ops.QuarterTurn()),
        (0.1, ops.OverlayText(size=(0.1, 0.3), opacity=(0.1, 1.0))),
        (0.2, ops.OverlayEmoji(size=(0.1, 0.5), opacity=(0.7, 1.0))),
        (0.05, ops.Rotate()),
        (1.0, ops.RandomResizedCrop(size=size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))),
        (0.8, ops.ColorJitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)),
        (0.2, ops.Grayscale()),
        (0.5, _blur(1, 5, size)),
        (0.2, ops.JpegReencode(quality=(0, 100))),
    ))


def strong_blur(size: int = 224, *, path: str = "fast", device: str | None = None) -> Recipe:
    """Make the STRONG_BLUR views: crop, flip, jitter, grayscale, blur of 1 to 5 pixels at 224.

    Args:
        size: side of the view, pixels; the blur scales with it, as in `advanced`.
        path, device: see `Recipe`.

    Raises:
        UserError: `size` is out of range.
    """
    return _crop_flip_colour_blur(size, _blur(1, 5, size), path=path, device=device)


def simclr(size: int = 224, *, path: str = "fast", device: str | None = None) -> Recipe:
    """Make the SIMCLR views: as STRONG_BLUR, with a blur of 0.1 to 2 pixels at 224.

    Args:
        size: side of the view, pixels; the blur scales with it, as in `advanced`.
        path, device: see `Recipe`.

    Raises:
        UserError: `size` is out of range.
    """
    return _crop_flip_colour_blur(size, _blur(0.1, 2, size), path=path, device=device)


def plain(size: int = 224) -> Recipe:
    """Resize to a square and nothing else: for looking at, and for validation.

    Args:
        size: side of the view, pixels.

    Raises:
        UserError: `size` is out of range.
    """
    return Recipe(size=size, steps=((1.0, ops.SquareResize(size=size)),))


def _crop_flip_colour_blur(size: int, blur: ops.GaussianBlur, **how: str | None) -> Recipe:
    return Recipe(size=size, **how, steps=(
        (1.0, ops.RandomResizedCrop(size=size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))),
        (0.5, ops.HorizontalFlip()),
        (0.8, ops.ColorJitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)),
        (0.2, ops.Grayscale()),
        (0.5, blur),
    ))


def _blur(low: float, high: float, size: int) -> ops.GaussianBlur:
    return ops.GaussianBlur(radius=(low * size / 224, high * size / 224))
