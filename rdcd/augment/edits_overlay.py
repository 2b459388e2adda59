"""Edits that add something: text, emoji, stripes, or another picture.

Pairs of `draw_x(rng)` and `x(picture, **parameters)` as in `edits_picture`; those that need another picture
take it second. `x` and `y` place what is added in the room that is left, 0 to 1. Text is ours: AugLy's draws
it opaque whatever its opacity, and may pick blanks; the fonts are AugLy's.
"""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from rdcd.augment import assets
from rdcd.augment.edits_picture import Parameters, any_colour, augly, uniform

_SCREENSHOT_PIXELS = 4_000_000  # larger pictures are reduced to fit a screenshot of this size


def draw_text(rng: np.random.Generator) -> Parameters:
    faces = assets.typefaces()
    face = faces[rng.integers(len(faces))]
    lines = [rng.integers(len(face.characters), size=rng.integers(4, 15)) for _ in range(rng.integers(1, 4))]
    return {"text": ["".join(face.characters[i] for i in line) for line in lines], "font": face.path.stem,
            "size": uniform(rng, 0.08, 0.22), "colour": any_colour(rng), "opacity": uniform(rng, 0.5, 1.0),
            "x": uniform(rng, 0, 1), "y": uniform(rng, 0, 1)}


def text(picture: Image.Image, *, text: list[str], font: str, size: float, colour: list[int], opacity: float,
         x: float, y: float) -> Image.Image:
    """Write lines of text; `size` is the font's, a share of the short side. Lines too wide are cut."""
    face = next(face for face in assets.typefaces() if face.path.stem == font)
    pixels = max(6, round(size * min(picture.size)))
    mask = Image.new("L", picture.size)
    draw, loaded = ImageDraw.Draw(mask), face.at(pixels)
    width = max(loaded.getlength(line) for line in text)
    left, top = max(0, x * (picture.width - width)), max(0, y * (picture.height - 1.2 * pixels * len(text)))
    for number, line in enumerate(text):
        draw.text((left, top + 1.2 * pixels * number), line, fill=round(255 * opacity), font=loaded)
    written = picture.copy()
    written.paste(tuple(colour), mask=mask)
    return written


def draw_emoji(rng: np.random.Generator) -> Parameters:
    files = assets.emoji_files()
    chosen = [files[rng.integers(len(files))] for _ in range(rng.integers(1, 5))]
    return {"emoji": [f"{file.parent.name}/{file.stem}" for file in chosen],
            "size": [uniform(rng, 0.12, 0.4) for _ in chosen], "opacity": uniform(rng, 0.7, 1.0),
            "x": [uniform(rng, 0, 1) for _ in chosen], "y": [uniform(rng, 0, 1) for _ in chosen]}


def emoji(picture: Image.Image, *, emoji: list[str], size: list[float], opacity: float, x: list[float],
          y: list[float]) -> Image.Image:
    """Put one to four emoji on the picture; `size` is their height, a share of the short side."""
    folder = assets.emoji_files()[0].parent.parent
    for name, share, left, top in zip(emoji, size, x, y):
        tall = share * min(picture.size) / picture.height
        wide = share * min(picture.size) / picture.width
        picture = augly().overlay_emoji(picture, emoji_path=str(folder / f"{name}.png"), opacity=opacity,
                                        emoji_size=tall, x_pos=left * (1 - wide), y_pos=top * (1 - tall))
    return picture


def draw_stripes(rng: np.random.Generator) -> Parameters:
    return {"width": uniform(rng, 0.1, 0.4), "density": uniform(rng, 0.5, 0.9),
            "degrees": uniform(rng, -90, 90), "kind": str(rng.choice(("solid", "dashed", "dotted"))),
            "colour": any_colour(rng), "opacity": uniform(rng, 0.5, 1.0)}


def stripes(picture: Image.Image, *, width: float, density: float, degrees: float, kind: str,
            colour: list[int], opacity: float) -> Image.Image:
    """Draw parallel stripes that cover the share `width` of the picture."""
    return augly().overlay_stripes(picture, line_width=width, line_density=density, line_angle=degrees,
                                   line_type=kind, line_color=tuple(colour), line_opacity=opacity)


def draw_screenshot(rng: np.random.Generator) -> Parameters:
    return {"template": "mobile" if rng.random() < 0.6 else "web"}


def screenshot(picture: Image.Image, *, template: str) -> Image.Image:
    """Show the picture as a post in a social network, on a phone or on a computer."""
    from augly.utils import SCREENSHOT_TEMPLATES_DIR

    return augly().overlay_onto_screenshot(
        picture, template_filepath=f"{SCREENSHOT_TEMPLATES_DIR}/{template}.png",
        resize_src_to_match_template=False, max_image_size_pixels=_SCREENSHOT_PIXELS)


def draw_overlay_onto(rng: np.random.Generator) -> Parameters:
    return {"area": uniform(rng, 0.2, 0.6), "opacity": uniform(rng, 0.8, 1.0),
            "x": uniform(rng, 0, 1), "y": uniform(rng, 0, 1)}


def overlay_onto(picture: Image.Image, other: Image.Image, *, area: float, opacity: float, x: float,
                 y: float) -> Image.Image:
    """Lay the picture onto another; it covers the share `area` of it, or less if its shape does not fit."""
    ground = _resized(other, math.sqrt(picture.width * picture.height / (other.width * other.height)))
    return augly().overlay_onto_background_image(picture, ground, opacity=opacity,
                                                 **_placed(picture, ground, area, x, y))


def draw_overlay_other(rng: np.random.Generator) -> Parameters:
    return {"area": uniform(rng, 0.1, 0.35), "opacity": uniform(rng, 0.6, 1.0),
            "x": uniform(rng, 0, 1), "y": uniform(rng, 0, 1)}


def overlay_other(picture: Image.Image, other: Image.Image, *, area: float, opacity: float, x: float,
                  y: float) -> Image.Image:
    """Lay another picture onto this one; it covers the share `area`, or less if its shape does not fit."""
    return augly().overlay_image(picture, other, opacity=opacity, **_placed(other, picture, area, x, y))


def _placed(overlay: Image.Image, ground: Image.Image, area: float, x: float, y: float) -> dict[str, float]:
    """Return AugLy's size and position for an overlay that covers `area` of the ground and lies inside it."""
    shape = overlay.width / overlay.height * ground.height / ground.width
    height = min(math.sqrt(area / shape), 0.95, 0.95 / shape)
    return {"overlay_size": height, "x_pos": x * (1 - height * shape), "y_pos": y * (1 - height)}


def draw_blend(rng: np.random.Generator) -> Parameters:
    return {"opacity": uniform(rng, 0.2, 0.45)}


def blend(picture: Image.Image, other: Image.Image, *, opacity: float) -> Image.Image:
    """Let another picture, stretched to this one's size, shine through with `opacity`."""
    return Image.blend(picture, other.resize(picture.size, Image.Resampling.BILINEAR), opacity)


def draw_collage(rng: np.random.Generator) -> Parameters:
    layout = str(rng.choice(("row", "column", "grid")))
    return {"layout": layout, "cell": int(rng.integers(4 if layout == "grid" else 2)),
            "gap": uniform(rng, 0, 0.05), "colour": any_colour(rng)}


def collage(picture: Image.Image, other: Image.Image, *, layout: str, cell: int, gap: float,
            colour: list[int]) -> Image.Image:
    """Put the picture beside others of its size: one, in a row or column, or three, in a 2 x 2 grid.

    The three are the other picture, its mirror image and its middle.

    Args:
        cell: the picture's place, counted along the rows. gap: between cells, a share of the short side.
    """
    columns, rows = {"row": (2, 1), "column": (1, 2), "grid": (2, 2)}[layout]
    width, height = picture.size
    step = round(gap * min(picture.size))
    fitted = ImageOps.fit(other, picture.size, Image.Resampling.BILINEAR)
    middle = ImageOps.fit(other, picture.size, Image.Resampling.BILINEAR, bleed=0.25)
    cells = [fitted, ImageOps.mirror(fitted), middle][:columns * rows - 1]
    cells.insert(cell, picture)
    sheet = Image.new("RGB", (columns * (width + step) - step, rows * (height + step) - step), tuple(colour))
    for place, shown in enumerate(cells):
        sheet.paste(shown, (place % columns * (width + step), place // columns * (height + step)))
    return sheet


def _resized(picture: Image.Image, scale: float) -> Image.Image:
    return picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BILINEAR)
