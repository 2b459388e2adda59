"""The edits that make a training view: an op draws a step, whose parameters are all known, for pictures of a size.

An op draws uniformly over the closed range it is given, and for pictures of any size and shape from 1 x 1 pixel.
What is drawn depends on the generator and the size alone, so that a view can be planned before a picture is decoded.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from rdcd.augment import assets, steps

Range = tuple[float, float]


class Op:
    """One random edit: `op(picture, rng)`, RGB picture to RGB picture."""

    def draw(self, width: int, height: int, rng: np.random.Generator) -> steps.Step:
        """Draw the edit for a picture of `width` x `height` pixels."""
        raise NotImplementedError

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Draw the edit and apply it; the picture itself stays as it was."""
        return self.draw(*picture.size, rng).apply(picture)


@dataclass(frozen=True)
class HorizontalFlip(Op):
    """Mirror left and right."""

    def draw(self, width: int, height: int, rng: np.random.Generator) -> steps.Mirrored:
        return steps.Mirrored()


@dataclass(frozen=True)
class QuarterTurn(Op):
    """Turn by 90, 180 or 270 degrees about the centre; the frame stays, and is black where the picture leaves it."""

    def draw(self, width: int, height: int, rng: np.random.Generator) -> steps.QuarterTurned:
        return steps.QuarterTurned(1 + int(rng.integers(3)))


@dataclass(frozen=True)
class Rotate(Op):
    """Rotate about the centre by a whole number of degrees, 0 to 359: bilinear, size kept, black corners."""

    def draw(self, width: int, height: int, rng: np.random.Generator) -> steps.Rotated:
        return steps.Rotated(int(rng.integers(360)))


@dataclass(frozen=True)
class OverlayText(Op):
    """Write one line of random glyphs of one random font, in a random colour.

    The line has 1 to n glyphs, n being how many fit into the picture by their advances; it lies wholly
    inside. The picture is returned as it was if not even one glyph fits.

    Args:
        size: font size, as a share of the picture's short side.
        opacity: 0 (invisible) to 1.
    """

    size: Range = (0.1, 0.3)
    opacity: Range = (0.1, 1.0)

    def draw(self, width: int, height: int, rng: np.random.Generator) -> steps.Step:
        faces = assets.typefaces()
        face = faces[rng.integers(len(faces))]
        pixels = max(1, int(min(width, height) * rng.uniform(*self.size)))
        font = face.at(pixels)
        glyphs = "".join(face.characters[i] for i in rng.integers(len(face.characters), size=100))
        colour = tuple(int(c) for c in rng.integers(256, size=3))
        ink = round(255 * rng.uniform(*self.opacity))

        most, used = 0, 0.0
        while most < len(glyphs) and (used := used + font.getlength(glyphs[most])) <= width:
            most += 1
        for count in range(int(rng.integers(most)) + 1 if most else 0, 0, -1):
            left, top, right, bottom = font.getbbox(glyphs[:count])
            left, top, right, bottom = math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)
            if right - left <= width and bottom - top <= height:  # glyphs may reach out of the places they take
                break
        else:
            return steps.Nothing()
        if right <= left or bottom <= top:
            return steps.Nothing()
        x, y = _random_place(width, height, right - left, bottom - top, rng)
        return steps.Text(face, pixels, glyphs[:count], colour, ink, (left, top),
                          (x, y, x + right - left, y + bottom - top))


@dataclass(frozen=True)
class OverlayEmoji(Op):
    """Put one random emoji wholly inside the picture.

    Args:
        size: its side, as a share of the picture's short side.
        opacity: 0 (invisible) to 1.
    """

    size: Range = (0.1, 0.5)
    opacity: Range = (0.7, 1.0)

    def draw(self, width: int, height: int, rng: np.random.Generator) -> steps.Emoji:
        files = assets.emoji_files()
        path = files[rng.integers(len(files))]
        side = max(1, round(min(width, height) * rng.uniform(*self.size)))
        opacity = rng.uniform(*self.opacity)
        return steps.Emoji(path, side, opacity, _random_place(width, height, side, side, rng))


def _random_place(width: int, height: int, wide: int, tall: int, rng: np.random.Generator) -> tuple[int, int]:
    left = rng.integers(width - wide, endpoint=True)
    top = rng.integers(height - tall, endpoint=True)
    return int(left), int(top)


@dataclass(frozen=True)
class RandomResizedCrop(Op):
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

    def draw(self, width: int, height: int, rng: np.random.Generator) -> steps.Resized:
        return steps.Resized(self.box(width, height, rng), self.size)


@dataclass(frozen=True)
class SquareResize(Op):
    """Resize to a square, aspect not kept (bilinear, antialiased).

    Args:
        size: side of the result, pixels.
    """

    size: int

    def draw(self, width: int, height: int, rng: np.random.Generator) -> steps.Resized:
        return steps.Resized((0, 0, width, height), self.size)


@dataclass(frozen=True)
class ColorJitter(Op):
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

    def draw(self, width: int, height: int, rng: np.random.Generator) -> steps.Jittered:
        return steps.Jittered(tuple(self.sample(rng)))


@dataclass(frozen=True)
class Grayscale(Op):
    """Keep the luma only, in three equal channels."""

    def draw(self, width: int, height: int, rng: np.random.Generator) -> steps.Grey:
        return steps.Grey()


@dataclass(frozen=True)
class GaussianBlur(Op):
    """Blur with Pillow's Gaussian.

    Args:
        radius: standard deviation, pixels.
    """

    radius: Range

    def draw(self, width: int, height: int, rng: np.random.Generator) -> steps.Blurred:
        return steps.Blurred(float(rng.uniform(*self.radius)))


@dataclass(frozen=True)
class JpegReencode(Op):
    """Encode as JPEG and decode again.

    Args:
        quality: Pillow's quality, whole numbers from 0 (worst) to 100.
    """

    quality: tuple[int, int] = (0, 100)

    def draw(self, width: int, height: int, rng: np.random.Generator) -> steps.Reencoded:
        return steps.Reencoded(int(rng.integers(*self.quality, endpoint=True)))
