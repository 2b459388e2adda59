"""What an op drew: edits whose every parameter is known, each `step.apply(picture)`, RGB picture to RGB picture.

Written plainly, one PIL call after another, at the picture's full size: the oracle of `rdcd.augment.fast`. A step
leaves its input picture as it was; `step.size(width, height)` is the size of what it makes.
"""

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from rdcd.augment import assets

_ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


class Step:
    """One edit of a view."""

    def apply(self, picture: Image.Image) -> Image.Image:
        """Edit a picture of the size that the step was drawn for."""
        raise NotImplementedError

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) of the edited picture."""
        return width, height


@dataclass(frozen=True)
class Nothing(Step):
    """The picture as it is: of text too large for it."""

    def apply(self, picture: Image.Image) -> Image.Image:
        return picture


@dataclass(frozen=True)
class Mirrored(Step):
    """Left and right exchanged."""

    def apply(self, picture: Image.Image) -> Image.Image:
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


@dataclass(frozen=True)
class QuarterTurned(Step):
    """Turned anticlockwise about the centre by 1, 2 or 3 times 90 degrees: size kept, what lies outside is cut off.

    Of a picture that is no square, an odd turn leaves its two sides, or top and bottom, black.
    """

    quarters: int

    def apply(self, picture: Image.Image) -> Image.Image:
        return picture.rotate(90 * self.quarters, resample=Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class Rotated(Step):
    """Rotated anticlockwise about the centre by whole degrees: bilinear, size kept, black corners."""

    degrees: int

    def apply(self, picture: Image.Image) -> Image.Image:
        return picture.rotate(self.degrees, resample=Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class Text(Step):
    """A line of glyphs written into `box` (left, top, right, bottom); `ink` is its opacity, 0 to 255.

    `offset` is where the glyphs' own box begins from where the font would start to draw, pixels.
    """

    face: assets.Typeface
    pixels: int
    glyphs: str
    colour: tuple[int, int, int]
    ink: int
    offset: tuple[int, int]
    box: tuple[int, int, int, int]

    def apply(self, picture: Image.Image) -> Image.Image:
        left, top, right, bottom = self.box
        mask = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(mask).text((-self.offset[0], -self.offset[1]), self.glyphs, fill=self.ink,
                                  font=self.face.at(self.pixels))
        picture = picture.copy()
        picture.paste(self.colour, (left, top), mask)
        return picture


@dataclass(frozen=True)
class Emoji(Step):
    """An emoji of `side` pixels at `place` (left, top)."""

    path: Path
    side: int
    opacity: float
    place: tuple[int, int]

    def apply(self, picture: Image.Image) -> Image.Image:
        emoji = assets.read_emoji(self.path).resize((self.side, self.side), Image.Resampling.BILINEAR)
        mask = emoji.getchannel("A").point([round(alpha * self.opacity) for alpha in range(256)])
        picture = picture.copy()
        picture.paste(emoji.convert("RGB"), self.place, mask)
        return picture


@dataclass(frozen=True)
class Resized(Step):
    """A box (left, top, right, bottom) resized to a square of `side` pixels: bilinear, antialiased."""

    box: tuple[int, int, int, int]
    side: int

    def apply(self, picture: Image.Image) -> Image.Image:
        cut = picture if self.box == (0, 0, *picture.size) else picture.crop(self.box)
        return cut.resize((self.side, self.side), Image.Resampling.BILINEAR)

    def size(self, width: int, height: int) -> tuple[int, int]:
        return self.side, self.side


@dataclass(frozen=True)
class Jittered(Step):
    """Brightness, contrast, saturation (factors) and hue (turns of the colour circle), in the order given."""

    changes: tuple[tuple[str, float], ...]

    def apply(self, picture: Image.Image) -> Image.Image:
        for name, value in self.changes:
            picture = shift_hue(picture, value) if name == "hue" else _ENHANCERS[name](picture).enhance(value)
        return picture


@dataclass(frozen=True)
class Grey(Step):
    """The luma only, in three equal channels."""

    def apply(self, picture: Image.Image) -> Image.Image:
        return picture.convert("L").convert("RGB")


@dataclass(frozen=True)
class Blurred(Step):
    """Pillow's Gaussian; `radius` is its standard deviation, pixels."""

    radius: float

    def apply(self, picture: Image.Image) -> Image.Image:
        return picture.filter(ImageFilter.GaussianBlur(self.radius))


@dataclass(frozen=True)
class Reencoded(Step):
    """Encoded as JPEG of this quality, 0 (worst) to 100, and decoded again."""

    quality: int

    def apply(self, picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=self.quality)
        with Image.open(file) as decoded:
            return decoded.convert("RGB")


def shift_hue(picture: Image.Image, turns: float) -> Image.Image:
    """Turn the colour circle of `picture` by `turns` (1 = once round), in 8-bit HSV."""
    hue, saturation, value = picture.convert("HSV").split()
    steps = int(turns * 255)
    hue = hue.point([(h + steps) % 256 for h in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
