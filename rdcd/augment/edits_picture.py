"""Edits of the picture itself: frame, shape, colour, detail.

Each family is a pair: `draw_x(rng)` draws the parameters, plain JSON values that tell the strength, and
`x(picture, **parameters)` applies them; nothing in the second is random. Lengths are shares of the picture's
width or height, so that a parameter means the same at any size. AugLy supplies the edits it has. Ours are
perspective (AugLy 1.0.0 needs an older NumPy), pixelation (AugLy's interpolates, so it shows no blocks),
noise (AugLy's reseeds NumPy's global generator), and gamma, hue, channels and tint, which AugLy lacks.
"""

import math
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import numpy as np
from PIL import Image

from rdcd.augment.steps import shift_hue
from rdcd.errors import UserError

Parameters = dict[str, object]


@cache
def augly() -> ModuleType:
    """Import AugLy's picture functions when the first edit needs them.

    It asks for libmagic: the system's or, where there is none, pylibmagic's. That package changes `ctypes` and the
    environment when it is imported, so only then.

    Raises:
        UserError: it does not import all the same.
    """
    try:
        try:
            import augly.image
        except ImportError:
            import pylibmagic  # noqa: F401, I001
            import augly.image
    except ImportError as error:
        raise UserError(f"AugLy, which edits the queries, does not import ({error}); if libmagic is what it misses: "
                        "`apt-get install libmagic1` on Debian and Ubuntu, `brew install libmagic` on macOS") from error

    return augly.image


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw from U(low, high), rounded to three digits: what is recorded is what is applied."""
    return round(float(rng.uniform(low, high)), 3)


def factor(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a factor whose logarithm is uniform, rounded to three digits."""
    return round(math.exp(rng.uniform(math.log(low), math.log(high))), 3)


def signed(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw from U(low, high) with a random sign."""
    return uniform(rng, low, high) * (1 if rng.random() < 0.5 else -1)


def any_colour(rng: np.random.Generator) -> list[int]:
    """Draw a colour: black, white, or any."""
    pick = rng.random()
    return [0] * 3 if pick < 0.25 else [255] * 3 if pick < 0.5 else rng.integers(256, size=3).tolist()


def draw_crop(rng: np.random.Generator) -> Parameters:
    area, ratio = rng.uniform(0.3, 0.85), math.exp(rng.uniform(-0.5, 0.5))
    width = min(1.0, max(area, math.sqrt(area * ratio)))  # at least `area`, or the height would pass 1
    height = min(1.0, area / width)
    x, y = (1 - width) * rng.beta(2, 2), (1 - height) * rng.beta(2, 2)  # seldom in a corner, where little is
    box = {"x1": x, "y1": y, "x2": x + width, "y2": y + height}
    return {side: round(min(1.0, float(place)), 3) for side, place in box.items()}


def crop(picture: Image.Image, *, x1: float, y1: float, x2: float, y2: float) -> Image.Image:
    """Keep a box of 30 to 85 % of the area."""
    return augly().crop(picture, x1=x1, y1=y1, x2=x2, y2=y2)


def draw_pad(rng: np.random.Generator) -> Parameters:
    width, height = ((1, 0), (0, 1), (1, 1))[rng.integers(3)]
    return {"width": width * uniform(rng, 0.08, 0.4), "height": height * uniform(rng, 0.08, 0.4),
            "colour": any_colour(rng)}


def pad(picture: Image.Image, *, width: float, height: float, colour: list[int]) -> Image.Image:
    """Add a border of `width` left and right, `height` above and below."""
    return augly().pad(picture, w_factor=width, h_factor=height, color=tuple(colour))


def draw_aspect(rng: np.random.Generator) -> Parameters:
    stretch = factor(rng, 1.3, 2.2)
    return {"stretch": stretch if rng.random() < 0.5 else round(1 / stretch, 3)}


def aspect(picture: Image.Image, *, stretch: float) -> Image.Image:
    """Multiply width / height by `stretch`; the area stays."""
    return augly().change_aspect_ratio(picture, ratio=picture.width / picture.height * stretch)


def draw_rotate(rng: np.random.Generator) -> Parameters:
    pick = rng.random()
    if pick < 0.3:
        return {"degrees": float(rng.choice((90, 180, 270))), "corners": None}
    if pick < 0.6:
        return {"degrees": signed(rng, 4, 20), "corners": None}
    return {"degrees": signed(rng, 4, 50), "corners": any_colour(rng)}


def rotate(picture: Image.Image, *, degrees: float, corners: list[int] | None) -> Image.Image:
    """Rotate; empty corners are filled with a colour or, with None, cut off."""
    if corners is None:
        return augly().rotate(picture, degrees=degrees)
    return picture.rotate(degrees, Image.Resampling.BILINEAR, expand=True, fillcolor=tuple(corners))


def draw_flip(rng: np.random.Generator) -> Parameters:
    return {"axis": "vertical" if rng.random() < 0.25 else "horizontal"}


def flip(picture: Image.Image, *, axis: str) -> Image.Image:
    """Mirror left and right (horizontal) or top and bottom (vertical)."""
    return augly().hflip(picture) if axis == "horizontal" else augly().vflip(picture)


def draw_skew(rng: np.random.Generator) -> Parameters:
    return {"shift": signed(rng, 0.12, 0.45), "axis": int(rng.integers(2))}


def skew(picture: Image.Image, *, shift: float, axis: int) -> Image.Image:
    """Shear along x (axis 0) or y (1); `shift` is how far the edges move, of the side they move along."""
    along, across = (picture.width, picture.height) if axis == 0 else (picture.height, picture.width)
    return augly().skew(picture, skew_factor=shift * along / across, axis=axis)


def draw_perspective(rng: np.random.Generator) -> Parameters:
    corners = [[uniform(rng, 0, 0.28), uniform(rng, 0, 0.28)] for _ in range(4)]
    return {"corners": corners, "ground": any_colour(rng)}


def perspective(picture: Image.Image, *, corners: list[list[float]], ground: list[int]) -> Image.Image:
    """See the picture at an angle, on a plain ground.

    Args:
        corners: how far each corner moves inwards, (share of width, of height), clockwise from the top left.
    """
    width, height = picture.size
    sides = ((0, 0), (1, 0), (1, 1), (0, 1))
    source = [(width * x, height * y) for x, y in sides]
    target = [(width * abs(x - dx), height * abs(y - dy)) for (x, y), (dx, dy) in zip(sides, corners)]
    rows = []
    for (u, v), (x, y) in zip(source, target):  # u = (ax + by + c) / (gx + hy + 1), v with d, e, f
        rows += [(x, y, 1, 0, 0, 0, -u * x, -u * y), (0, 0, 0, x, y, 1, -v * x, -v * y)]
    coefficients = np.linalg.solve(np.array(rows, dtype=float), np.array(source, dtype=float).ravel())
    return picture.transform(picture.size, Image.Transform.PERSPECTIVE, coefficients.tolist(),
                             Image.Resampling.BILINEAR, fillcolor=tuple(ground))


def draw_colour(rng: np.random.Generator) -> Parameters:
    kind = str(rng.choice(("grey", "saturation", "hue", "channels", "palette", "tint")))
    if kind == "saturation":
        return {"kind": kind, "factor": factor(rng, 0.2, 0.6) if rng.random() < 0.5 else factor(rng, 1.8, 4)}
    if kind == "hue":
        return {"kind": kind, "turns": signed(rng, 0.06, 0.5)}
    if kind == "channels":
        orders = [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]
        return {"kind": kind, "order": orders[rng.integers(5)]}
    if kind == "palette":
        return {"kind": kind, "colours": int(rng.integers(6, 33))}
    if kind == "tint":
        return {"kind": kind, "colour": rng.integers(256, size=3).tolist(),
                "opacity": uniform(rng, 0.15, 0.45)}
    return {"kind": kind}


def colour(picture: Image.Image, *, kind: str, factor: float = 1.0, turns: float = 0.0,
           order: Sequence[int] = (0, 1, 2), colours: int = 256, colour: Sequence[int] = (0, 0, 0),
           opacity: float = 0.0) -> Image.Image:
    """Change the colours in one of six ways; `kind` says which, and each uses the argument of its own."""
    if kind == "grey":
        return augly().grayscale(picture)
    if kind == "saturation":
        return augly().saturation(picture, factor=factor)
    if kind == "hue":
        return shift_hue(picture, turns)
    if kind == "channels":
        return Image.merge("RGB", [picture.getchannel(channel) for channel in order])
    if kind == "palette":
        few = augly().convert_color(picture, mode="P", palette=Image.Palette.ADAPTIVE, colors=colours)
        return few.convert("RGB")
    return Image.blend(picture, Image.new("RGB", picture.size, tuple(colour)), opacity)


def draw_tone(rng: np.random.Generator) -> Parameters:
    return {"brightness": factor(rng, 0.5, 1.8), "contrast": factor(rng, 0.5, 1.9),
            "gamma": factor(rng, 0.6, 1.7)}


def tone(picture: Image.Image, *, brightness: float, contrast: float, gamma: float) -> Image.Image:
    """Change brightness and contrast by factors, then take every value to the power `gamma`."""
    picture = augly().color_jitter(picture, brightness_factor=brightness, contrast_factor=contrast)
    return picture.point([round(255 * (v / 255) ** gamma) for v in range(256)] * 3)


def draw_blur(rng: np.random.Generator) -> Parameters:
    return {"radius": round(factor(rng, 8, 28) / 1000, 4)}


def blur(picture: Image.Image, *, radius: float) -> Image.Image:
    """Blur with a Gaussian; `radius` is its deviation, a share of the short side."""
    return augly().blur(picture, radius=radius * min(picture.size))


def draw_sharpen(rng: np.random.Generator) -> Parameters:
    return {"factor": factor(rng, 3, 20)}


def sharpen(picture: Image.Image, *, factor: float) -> Image.Image:
    """Sharpen; a factor of 1 changes nothing."""
    return augly().sharpen(picture, factor=factor)


def draw_pixelate(rng: np.random.Generator) -> Parameters:
    return {"blocks": int(factor(rng, 32, 90))}


def pixelate(picture: Image.Image, *, blocks: int) -> Image.Image:
    """Show `blocks` squares of one colour along the longer side."""
    scale = blocks / max(picture.size)
    coarse = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BOX)
    return coarse.resize(picture.size, Image.Resampling.NEAREST)


def draw_noise(rng: np.random.Generator) -> Parameters:
    return {"deviation": factor(rng, 0.04, 0.25), "seed": int(rng.integers(2**31))}


def noise(picture: Image.Image, *, deviation: float, seed: int) -> Image.Image:
    """Add Gaussian noise of the given deviation (1 = white minus black) to every value."""
    grain = np.random.default_rng(seed).standard_normal((picture.height, picture.width, 3), dtype=np.float32)
    values = np.asarray(picture, dtype=np.float32) + grain * np.float32(255 * deviation)
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def draw_jpeg(rng: np.random.Generator) -> Parameters:
    return {"quality": int(factor(rng, 4, 30))}


def jpeg(picture: Image.Image, *, quality: int) -> Image.Image:
    """Encode as JPEG of this quality and decode again."""
    return augly().encoding_quality(picture, quality=quality)


def draw_downscale(rng: np.random.Generator) -> Parameters:
    return {"factor": factor(rng, 0.2, 0.6)}


def downscale(picture: Image.Image, *, factor: float) -> Image.Image:
    """Make both sides `factor` times as long; the picture stays small."""
    return augly().scale(picture, factor=factor)
