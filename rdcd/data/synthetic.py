"""Pictures drawn from a seed, photo-like enough to train and to measure with no data at all.

Colours come from a small table of palettes and layouts from eight kinds of scene, so that many
pictures share both: what tells them apart is layout and detail, as in real collections.
"""

import math
import operator

import numpy as np
from PIL import Image, ImageFilter

from rdcd.data.synthetic_scenes import SCENES
from rdcd.data.synthetic_sheet import Sheet
from rdcd.errors import UserError

MIN_SIZE, MAX_SIZE = 16, 1024
_OVERSAMPLING = 1.25  # surfaces have jagged edges until the last reduction smooths them
_STREAM = 0x5C3E  # keeps these random numbers apart from other uses of the same seed

# Six anchors each, from the darkest to the lightest surface.
_PALETTES = tuple(
    tuple(tuple(bytes.fromhex(anchor)) for anchor in row.split())
    for row in (
        "2b2a1f 4e5a2e 8d7b4a 7fa3c4 b9d2e6 f3f1e6",  # meadow under a sky
        "1d2b3a 2f6f86 b08a5c c4b48e 9cc3d6 f1ece0",  # coast
        "33211a 8a2f22 b9793f 5f7a52 d9b88a f2e6d2",  # market
        "1a1c20 45484d 7d7468 8f9aa4 bdbcb6 eeeeee",  # town greys
        "20302a 2f6b45 7d5a3a 9fae52 d8c88a f4efe0",  # wood
        "2a1626 6b3a5c c4523e 4f6a8a e5a55f f7e3c0",  # sunset
        "14203c 7a3b2e 3f78b0 8aa39a c9d3d8 f5f3ea",  # harbour
        "3a2a24 8b5e50 5c6f7c c49480 e2c4b0 faf0e8",  # skin and denim
        "26221c 8a5a2c 2f7f86 d0a54a a9bcae efe4c6",  # brass and teal
        "301c2c 4a5f7c a0506a 7f9a5a d9a5a8 f6e4dc",  # garden
        "1f1f1f b0252b 2f5f9c c9b37a e8c62e f7f4ec",  # print
        "1c2a22 8a3f22 5a7358 d08a3c a8b4ac efe0c4",  # autumn
    )
)


def draw_picture(seed: int, *, size: int = 160) -> Image.Image:
    """Draw the picture of a seed: the same pixels at every call, in every process.

    Power spectrum ~ f^-a with a near 2, as photographs have (Field, 1987); occluding shapes of
    radius density r^-3 (the dead-leaves model of Lee, Mumford and Huang, 2001).

    Args:
        seed: any integer >= 0.
        size: longest side in pixels, 16 to 1024; the other is 3/4 of it or more.

    Returns:
        An RGB picture. Two sizes of one seed show one scene. Other builds of Pillow or NumPy, or
        another processor, may round a pixel or set a letter differently.

    Raises:
        UserError: `seed` or `size` is no integer or out of range.
    """
    seed = _integer("seed", seed, 0, None)
    size = _integer("size", size, MIN_SIZE, MAX_SIZE)
    streams = np.random.SeedSequence(seed, spawn_key=(_STREAM,)).spawn(3)
    rng, texture_rng, film_rng = (np.random.Generator(np.random.PCG64(stream)) for stream in streams)
    scene = SCENES[int(rng.integers(len(SCENES)))]
    palette = _PALETTES[int(rng.integers(len(_PALETTES)))]
    short = size if rng.random() < 0.2 else math.ceil(size * rng.uniform(0.75, 1.0))
    width, height = (size, short) if rng.random() < 0.6 else (short, size)
    sheet = Sheet(rng, round(width * _OVERSAMPLING), round(height * _OVERSAMPLING))
    scene(sheet)
    return _develop(film_rng, sheet.render(palette, texture_rng), width, height)


def _integer(name: str, value: int, low: int, high: int | None) -> int:
    expected = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    try:
        number = operator.index(value)
    except TypeError:
        raise UserError(f"{name}={value!r}: expected {expected}; pass a whole number") from None
    if number < low or (high is not None and number > high):
        raise UserError(f"{name}={number}: expected {expected}; choose one in that range")
    return number


def _develop(rng: np.random.Generator, rgb: np.ndarray, width: int, height: int) -> Image.Image:
    """Light, lens, film: vignette, white balance, contrast, reduction to size, grain."""
    tall, wide = rgb.shape[:2]
    y = np.linspace(-1, 1, tall, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, wide, dtype=np.float32)[None, :]
    slope, vignette = rng.uniform(-0.25, 0.25, 2).tolist(), max(0.0, rng.uniform(-0.1, 0.25))
    light = 1 + slope[0] * x + slope[1] * y - vignette * (x * x + y * y)
    exposure = (rng.uniform(0.35, 0.68) / max(float(rgb.mean()), 0.05)) ** 0.8
    tint = rng.uniform(0.93, 1.07, 3) * exposure
    rgb = rgb * (light[..., None] * tint).astype(np.float32)
    if rng.random() < 0.05:
        rgb = np.repeat(rgb @ np.float32([[0.299], [0.587], [0.114]]), 3, axis=2)
    contrast = np.float32(rng.uniform(0.9, 1.35))
    rgb = (rgb - 0.45) * contrast + 0.45
    picture = Image.fromarray((rgb * 255).clip(0, 255).astype(np.uint8))
    if rng.random() < 0.12:
        picture = picture.filter(ImageFilter.GaussianBlur(max(wide, tall) / 250))
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    grain = 1000 * rng.uniform(0, 0.06) ** 1.5
    noise = (rng.random((height, width, 1), dtype=np.float32) - 0.5) * grain
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
