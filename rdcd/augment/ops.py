"""The edits that make a training view: each is `op(picture, rng)`, RGB picture to RGB picture.

Written plainly, one PIL call after another, at the picture's full size. An op leaves its input picture as
it was, draws its parameters from `rng` uniformly over the closed range it is given, and takes pictures of
any size and shape from 1 x 1 pixel.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from rdcd.augment import assets

Op = Callable[[Image.Image, np.random.Generator], Image.Image]
Range = tuple[float, float]

_ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror left and right."""

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


@dataclass(frozen=True)
class QuarterTurn:
    """Turn by 90, 180 or 270 degrees; exact, the frame turns with its content."""

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        turns = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
        return picture.transpose(turns[rng.integers(3)])


@dataclass(frozen=True)
class Rotate:
    """Rotate about the centre by a whole number of degrees, 0 to 359: bilinear, size kept, black corners."""

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        return picture.rotate(int(rng.integers(360)), resample=Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class OverlayText:
    """Write one line of random glyphs of one random font, in a random colour.

    The line has 1 to n glyphs, n being how many fit into the picture; it lies wholly inside. The picture
    is returned as it was if not even one glyph fits.

    Args:
        size: font size, as a share of the picture's short side.
        opacity: 0 (invisible) to 1.
    """

    size: Range = (0.1, 0.3)
    opacity: Range = (0.1, 1.0)

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        faces = assets.typefaces()
        face = faces[rng.integers(len(faces))]
        font = face.at(max(1, int(min(picture.size) * rng.uniform(*self.size))))
        glyphs = "".join(face.characters[i] for i in rng.integers(len(face.characters), size=100))
        colour = tuple(int(c) for c in rng.integers(256, size=3))
        ink = round(255 * rng.uniform(*self.opacity))

        def box(count: int) -> tuple[int, int, int, int]:
            left, top, right, bottom = font.getbbox(glyphs[:count])
            return math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)

        def fits(count: int) -> bool:
            left, top, right, bottom = box(count)
            return right - left <= picture.width and bottom - top <= picture.height

        counts = list(takewhile(fits, range(1, len(glyphs) + 1)))
        if not counts:
            return picture
        count = counts[rng.integers(len(counts))]
        left, top, right, bottom = box(count)
        if right <= left or bottom <= top:
            return picture
        mask = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(mask).text((-left, -top), glyphs[:count], fill=ink, font=font)
        picture = picture.copy()
        picture.paste(colour, _random_place(picture, mask, rng), mask)
        return picture


@dataclass(frozen=True)
class OverlayEmoji:
    """Put one random emoji wholly inside the picture.

    Args:
        size: its side, as a share of the picture's short side.
        opacity: 0 (invisible) to 1.
    """

    size: Range = (0.1, 0.5)
    opacity: Range = (0.7, 1.0)

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        files = assets.emoji_files()
        emoji = assets.read_emoji(files[rng.integers(len(files))])
        side = max(1, round(min(picture.size) * rng.uniform(*self.size)))
        opacity = rng.uniform(*self.opacity)
        emoji = emoji.resize((side, side), Image.Resampling.BILINEAR)
        mask = emoji.getchannel("A").point([round(alpha * opacity) for alpha in range(256)])
        picture = picture.copy()
        picture.paste(emoji.convert("RGB"), _random_place(picture, emoji, rng), mask)
        return picture


def _random_place(picture: Image.Image, overlay: Image.Image, rng: np.random.Generator) -> tuple[int, int]:
    left = rng.integers(picture.width - overlay.width, endpoint=True)
    top = rng.integers(picture.height - overlay.height, endpoint=True)
    return int(left), int(top)


@dataclass(frozen=True)
class RandomResizedCrop:
    """Cut out a random box and resize it to a square (bilinear, antialiased), as torchvision does.

    Args:
        size: side of the result, pixels.
        scale: area of the box, as a share of the picture's.
        ratio: width / height of the box; its logarithm is uniform.
    """

    size: int
    scale: Range = (0.08, 1.0)
    ratio: Range = (3 / 4, 4 / 3)

    def box(self, width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Draw the box (left, top, right, bottom) for a picture of `width` x `height` pixels.

        Ten tries at a box that fits; then the largest centred box with a ratio in range.
        """
        for _ in range(10):
            area = width * height * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left = int(rng.integers(width - w, endpoint=True))
                top = int(rng.integers(height - h, endpoint=True))
                return left, top, left + w, top + h
        w = min(width, round(height * self.ratio[1]))
        h = min(height, round(width / self.ratio[0]))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        cut = picture.crop(self.box(*picture.size, rng))
        return cut.resize((self.size, self.size), Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class SquareResize:
    """Resize to a square, aspect not kept (bilinear, antialiased).

    Args:
        size: side of the result, pixels.
    """

    size: int

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        return picture.resize((self.size, self.size), Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class ColorJitter:
    """Change brightness, contrast, saturation and hue, in random order, as torchvision does.

    Args:
        brightness: factor from U(max(0, 1 - brightness), 1 + brightness); 1 changes nothing.
        contrast: likewise.
        saturation: likewise.
        hue: shift from U(-hue, hue), in turns of the colour circle.
    """

    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2

    def sample(self, rng: np.random.Generator) -> list[tuple[str, float]]:
        """Draw the four (name, factor) in the order of their use."""
        values = {name: rng.uniform(max(0.0, 1 - strength), 1 + strength)
                  for name, strength in (("brightness", self.brightness), ("contrast", self.contrast),
                                         ("saturation", self.saturation))}
        values["hue"] = rng.uniform(-self.hue, self.hue)
        names = list(values)
        return [(names[i], values[names[i]]) for i in rng.permutation(4)]

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        for name, value in self.sample(rng):
            if name == "hue":
                picture = shift_hue(picture, value)
            else:
                picture = _ENHANCERS[name](picture).enhance(value)
        return picture


def shift_hue(picture: Image.Image, turns: float) -> Image.Image:
    """Turn the colour circle of `picture` by `turns` (1 = once round), in 8-bit HSV."""
    hue, saturation, value = picture.convert("HSV").split()
    steps = int(turns * 255)
    hue = hue.point([(h + steps) % 256 for h in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


@dataclass(frozen=True)
class Grayscale:
    """Keep the luma only, in three equal channels."""

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        return picture.convert("L").convert("RGB")


@dataclass(frozen=True)
class GaussianBlur:
    """Blur with Pillow's Gaussian.

    Args:
        radius: standard deviation, pixels.
    """

    radius: Range

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        return picture.filter(ImageFilter.GaussianBlur(rng.uniform(*self.radius)))


@dataclass(frozen=True)
class JpegReencode:
    """Encode as JPEG and decode again.

    Args:
        quality: Pillow's quality, whole numbers from 0 (worst) to 100.
    """

    quality: tuple[int, int] = (0, 100)

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=int(rng.integers(*self.quality, endpoint=True)))
        with Image.open(file) as decoded:
            return decoded.convert("RGB")
