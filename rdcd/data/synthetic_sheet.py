"""The drawing sheet of synthetic pictures: a label map, a material per label, and how they are shaded."""

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

TEXTURES = ("smooth", "rough", "marble", "spots", "stripes", "weave")  # the first are the commonest


def fractal(rng: np.random.Generator, width: int, height: int, roughness: float) -> np.ndarray:
    """Return noise of unit deviation, [height, width]: each octave doubles the grid and adds detail.

    Power ~ f^-(2 - 2 log2 roughness): 1 gives a rough f^-2, 0.5 a smooth f^-4.
    """
    level = max(0, max(width, height).bit_length() - 2)
    field, amplitude = None, 1.0
    for k in range(level, -1, -1):
        shape = (-(-height >> k), -(-width >> k))
        detail = (rng.random(shape, dtype=np.float32) - 0.5) * np.float32(amplitude)
        if field is None:
            field = detail
        else:
            field = detail + np.asarray(Image.fromarray(field).resize(shape[::-1], Image.Resampling.BICUBIC))
        amplitude *= roughness
    return _unit(field)


def _unit(field: np.ndarray) -> np.ndarray:
    return ((field - field.mean()) / (field.std() + np.float32(1e-6))).clip(-2.5, 2.5)


@lru_cache(maxsize=64)
def _font(pixels: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=pixels)


class Sheet:
    """A picture under way: which surface is seen at each pixel, and the material of every surface.

    Surfaces are painted back to front. Lengths are shares of the longest side, y points down.

    Args:
        rng: decides what is painted where, whatever the number of pixels.
        width, height: in pixels.
    """

    def __init__(self, rng: np.random.Generator, width: int, height: int) -> None:
        self.rng, self.scale = rng, max(width, height)
        self.width, self.height = width / self.scale, height / self.scale
        self.labels = Image.new("I", (width, height), 0)
        self.draw = ImageDraw.Draw(self.labels)
        self.materials: list[tuple[float, ...]] = []
        self.busy = rng.uniform(0.35, 1.2)  # how strong textures are in this picture
        self.material()

    def rand(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.rng.random())

    def pick(self, low: int, high: int) -> int:
        return low + int(self.rng.random() * (high + 1 - low))

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def material(self, *, hue: float | None = None, light: float | None = None, gain: float = 1.0,
                 texture: str | None = None, bulge: float = 0.0,
                 centre: tuple[float, float] = (0.5, 0.5), radius: float = 1.0) -> int:
        """Add a material and return its label; what is not given is drawn at random.

        Args:
            hue: position on the palette, 0 to 1.
            light: brightness; 1 is the palette's own.
            gain: strength of the texture.
            texture: one of `TEXTURES`.
            bulge: how much a rounded body darkens from its `centre` to its `radius`.
        """
        u = self.rng.random(11).tolist()
        small = radius < 0.3  # only these move their texture: a large surface would show the mirrored edge
        self.materials.append((  # the order in which `render` unpacks
            u[0] if hue is None else hue,
            0.55 + 0.6 * u[1] if light is None else light,
            (u[2] - 0.5) * 0.35 * gain * self.busy,
            (0.04 + 0.2 * u[3]) * gain * self.busy,
            int(u[4] ** 1.4 * len(TEXTURES)) if texture is None else TEXTURES.index(texture),
            u[5] * small, u[6] * small,
            (u[7] - 0.5) * 0.5, (u[8] - 0.5) * 0.5, bulge, *centre, 1 / radius,
            0.82 + 0.36 * u[9], 0.82 + 0.36 * u[10],
        ))
        return len(self.materials) - 1

    def add(self, points: np.ndarray, label: int | None = None, **material: float | str) -> int:
        """Paint a polygon, points [n, 2], with `label` or a new material; return the label."""
        if label is None:
            low, high = points.min(axis=0).tolist(), points.max(axis=0).tolist()
            centre = ((low[0] + high[0]) / 2, (low[1] + high[1]) / 2)
            radius = max(high[0] - low[0], high[1] - low[1], 1e-3) / 2
            label = self.material(**material, centre=centre, radius=radius)
        self.draw.polygon((points * self.scale).ravel().tolist(), fill=label)
        return label

    def box(self, x0: float, y0: float, x1: float, y1: float, label: int | None = None,
            **material: float | str) -> int:
        return self.add(np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]), label, **material)

    def fill(self, **material: float | str) -> int:
        """Paint the whole sheet."""
        return self.box(0, 0, 1, 1, **material)

    def text(self, x: float, y: float, height: float, label: int, letters: int) -> None:
        """Write a line of random words from the left end (x, y)."""
        words = "".join(chr(97 + c) if c < 26 else " " for c in self.rng.integers(0, 31, letters).tolist())
        words = words.upper() if self.chance(0.3) else words.capitalize()
        pixels = max(5, round(height * self.scale))
        self.draw.text((x * self.scale, y * self.scale), words, fill=label, font=_font(pixels))

    def outline(self, *, corners: bool = True) -> np.ndarray:
        """Return a closed unit shape [n, 2]: ellipse, polygon, star, or blob; turned at random."""
        rng, form = self.rng, self.pick(0, 3) if corners else self.pick(0, 1)
        n = (18, 20, self.pick(3, 6), 2 * self.pick(4, 8))[form]
        angle = np.arange(n) * (2 * np.pi / n)
        radius = np.ones(n)
        if form == 1:
            for k in (2, 3, 5):
                radius += rng.uniform(0, 0.5) / k * np.sin(k * angle + rng.uniform(0, 6.3))
        elif form == 2:
            angle = angle + rng.uniform(-0.25, 0.25, n)
        elif form == 3:
            radius[::2] = rng.uniform(0.35, 0.8)
        turn, squash = rng.uniform(0, 6.3), rng.uniform(0.35, 1.0)
        x, y = radius * np.cos(angle), squash * radius * np.sin(angle)
        return np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=1)

    def scatter(self, number: int, small: float, large: float, top: float = 0.0, **material: float) -> None:
        """Scatter shapes with radius density r^-3 between `small` and `large`, below `top`."""
        u = self.rng.random((number, 3))
        radii = (large**-2 + u[:, 0] * (small**-2 - large**-2)) ** -0.5
        for r, x, y in zip(radii, u[:, 1] * self.width, top + u[:, 2] * (self.height - top)):
            self.add(self.outline() * r + (x, y), bulge=self.rand(0, 0.5), **material)

    def textures(self, rng: np.random.Generator) -> np.ndarray:
        """Return this picture's version of every texture, unit deviation, [6, height, width]."""
        width, height = self.labels.size
        smooth = fractal(rng, width, height, rng.uniform(0.5, 0.65))
        rough = fractal(rng, width, height, rng.uniform(0.8, 1.05))
        y = np.linspace(0, self.height, height, dtype=np.float32)[:, None]
        x = np.linspace(0, self.width, width, dtype=np.float32)[None, :]
        turn, waves = rng.uniform(0, math.pi), rng.uniform(24, 90)
        a, b, bend = waves * math.cos(turn), waves * math.sin(turn), smooth * rng.uniform(0.2, 2.5)
        marble = np.abs(smooth + 0.35 * rough)
        stripes = np.sin(a * x + b * y + 1.5 * bend) + 0.4 * rough
        weave = np.sin(a * x - b * y + bend) * np.sin(b * x + a * y + 0.6 * bend)
        weave = weave * (0.3 + marble) + 0.25 * rough
        spots = ((rough + 0.5 * np.roll(smooth, height // 3, axis=0)) > rng.uniform(0.3, 1.1)) + 0.2 * rough
        return np.stack([smooth, rough, *map(_unit, (-marble, spots, stripes, weave))])

    def render(self, palette: tuple[tuple[int, ...], ...], rng: np.random.Generator) -> np.ndarray:
        """Return colours float32 [height, width, 3], nominally 0 to 1: palette colour times shading.

        Args:
            palette: RGB anchors, 0 to 255, that the colours run through.
            rng: for the textures, whose draws depend on the number of pixels.
        """
        labels, bank = np.asarray(self.labels), self.textures(rng)
        height, width = labels.shape
        (hue, light, hue_gain, light_gain, texture, dx, dy, slope_x, slope_y,
         bulge, cx, cy, curve, red, blue) = np.array(self.materials, np.float32).T.copy()
        fold_y = np.r_[np.arange(height), np.arange(height)[::-1]]
        fold_x = np.r_[np.arange(width), np.arange(width)[::-1]]
        iy = fold_y[np.arange(height)[:, None] + (dy * height).astype(np.int32)[labels]]
        ix = fold_x[np.arange(width)[None, :] + (dx * width).astype(np.int32)[labels]]
        at, plane = iy * width + ix, height * width
        flat, which = bank.ravel(), texture.astype(np.int32) * plane
        other = (which + plane) % flat.size  # the next texture varies the colour, this one the brightness
        u = (np.arange(width, dtype=np.float32) / self.scale)[None, :] - cx[labels]
        v = (np.arange(height, dtype=np.float32) / self.scale)[:, None] - cy[labels]
        u, v = u * curve[labels], v * curve[labels]
        shade = 1 + light_gain[labels] * flat[which[labels] + at] + slope_x[labels] * u + slope_y[labels] * v
        shade -= bulge[labels] * (u * u + v * v)
        shade *= light[labels] * self._shadows(labels)
        position = hue[labels] + hue_gain[labels] * flat[other[labels] + at]
        ramp = np.linspace(0, len(palette) - 1, 256)
        table = np.stack([np.interp(ramp, range(len(palette)), [anchor[c] for anchor in palette])
                          for c in range(3)], axis=1).astype(np.float32) / 255
        rgb = table[(position * 255).clip(0, 255).astype(np.uint8)] * shade[..., None]
        rgb[..., 0] *= red[labels]
        rgb[..., 2] *= blue[labels]
        return rgb

    def _shadows(self, labels: np.ndarray) -> np.ndarray:
        """Darken what lies next to something painted later: unsharp masking of the depth buffer."""
        depth = (labels * (255 / max(30, len(self.materials)))).astype(np.uint8)
        blurred = Image.fromarray(depth).filter(ImageFilter.BoxBlur(self.scale * 0.02))
        gap = np.asarray(blurred).astype(np.float32) - depth
        return 1 - np.float32(0.9 / 255) * gap.clip(0, 110)
