"""Views by the shortest way: what `Recipe` draws, without work that the final pixels do not need.

A view is planned from its steps and the size of the picture before any pixel is decoded. What comes before the crop
is done to what is left of it: the picture is decoded once for all views, at the smallest scale that each allows; the
box is cut from it, mirrored or turned after it is resized, and overlays are drawn at the size and place they end up.
The oracle is the plain way, `Recipe.__call__`, of the same steps.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn.functional import interpolate

from rdcd.augment import assets, steps
from rdcd.augment.colours import edited

SPARE = 1.25  # how many times finer than the view a reduced picture must be
_TEXT = 4.0  # how many times larger than it ends up text is drawn, before it is reduced
_TURNS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}
Box = tuple[float, float, float, float]
Decode = Callable[[int], np.ndarray]


@dataclass(frozen=True)
class Plan:
    """A view's steps by their part in it.

    Args:
        width, height: of the picture, pixels.
        turns: mirrorings and quarter turns, in order.
        overlays: text and emoji, after them.
        rotation: after these, or None.
        cut: the box of all this that is seen, and the side of the view.
        edits: what is done to the view itself.
    """

    width: int
    height: int
    turns: tuple[steps.Mirrored | steps.QuarterTurned, ...]
    overlays: tuple[steps.Text | steps.Emoji, ...]
    rotation: steps.Rotated | None
    cut: steps.Resized
    edits: tuple[steps.Step, ...]

    @property
    def turned_size(self) -> tuple[int, int]:
        """(width, height) after the turns."""
        width, height = self.width, self.height
        for turn in self.turns:
            width, height = turn.size(width, height)
        return width, height

    @property
    def reduction(self) -> float:
        """How many times the picture's pixels are finer than the view's, along the coarser axis."""
        left, top, right, bottom = self.cut.box
        return min(right - left, bottom - top) / self.cut.side


def plan(drawn: Sequence[steps.Step], width: int, height: int) -> Plan | None:
    """Sort the steps of a view of a `width` x `height` picture; None if they come in another order than is known."""
    places = [i for i, step in enumerate(drawn) if isinstance(step, steps.Resized)]
    if not places:
        return None
    before = [step for step in drawn[:places[0]] if not isinstance(step, steps.Nothing)]
    kinds = ((steps.Mirrored, steps.QuarterTurned), (steps.Text, steps.Emoji), (steps.Rotated,))
    order = [next((rank for rank, kind in enumerate(kinds) if isinstance(step, kind)), None) for step in before]
    if None in order or order != sorted(order) or order.count(2) > 1:
        return None
    parts = [tuple(step for step, rank in zip(before, order, strict=True) if rank == kind) for kind in range(3)]
    return Plan(width, height, *parts[:2], parts[2][0] if parts[2] else None, drawn[places[0]],
                tuple(drawn[places[0] + 1:]))


def views(decode: Decode, width: int, height: int, drawn: Sequence[Sequence[steps.Step]]) -> list[np.ndarray]:
    """Make the views of one picture.

    Args:
        decode: called once with the reduction allowed, 1, 2, 4 or 8; returns the upright picture, uint8 [h, w, 3],
            its sides divided by that or by less.
        width, height: of the whole upright picture, pixels.
        drawn: the steps of each view, drawn for that size.

    Returns:
        uint8 [side, side, 3] each.
    """
    plans = [plan(some, width, height) for some in drawn]
    pixels = decode(reduction(plans))
    return [_plainly(pixels, some) if p is None else rendered(pixels, p)
            for p, some in zip(plans, drawn, strict=True)]


def reduction(plans: Sequence[Plan | None]) -> int:
    """Return by how much the sides of a picture may be divided for all its views: 1, 2, 4 or 8."""
    allowed = min((1.0 if p is None else p.reduction / SPARE for p in plans), default=1.0)
    return max(scale for scale in (1, 2, 4, 8) if scale <= max(allowed, 1))


def _plainly(pixels: np.ndarray, drawn: Sequence[steps.Step]) -> np.ndarray:
    picture = Image.fromarray(pixels)
    for step in drawn:
        picture = step.apply(picture)
    return np.asarray(picture)


def rendered(pixels: np.ndarray, p: Plan) -> np.ndarray:
    """Make a view of a decoded picture, or of a reduced one."""
    view = geometry(pixels, p)
    for step in p.edits:
        view = edited(view, step)
    return view


def geometry(pixels: np.ndarray, p: Plan) -> np.ndarray:
    """Make a view as far as the crop: turned, overlaid, rotated, cut and resized."""
    side, (left, top, right, bottom) = p.cut.side, p.cut.box
    if p.rotation is None:
        view = _turned(resized(pixels, _unturned(p), p.width, p.height, side, side), p.turns)
        return _overlaid(view, p.overlays, (left, top), (side / (right - left), side / (bottom - top)))
    scale = max(p.reduction, 1.0)
    width, height = (max(1, round(length / scale)) for length in (p.width, p.height))
    small = _turned(resized(pixels, (0, 0, p.width, p.height), p.width, p.height, width, height), p.turns)
    whole, size = p.turned_size, small.shape[1::-1]
    small = _overlaid(small, p.overlays, (0, 0), (size[0] / whole[0], size[1] / whole[1]))
    return cv2.warpAffine(small, _back(p, whole, size), (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def _back(p: Plan, whole: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Return the affine map [2, 3] from pixels of the view to pixels of the turned, reduced picture."""
    left, top, right, bottom = p.cut.box
    cut = np.array([[(right - left) / p.cut.side, 0, left], [0, (bottom - top) / p.cut.side, top], [0, 0, 1]])
    angle = -math.radians(p.rotation.degrees)
    x, y = whole[0] / 2, whole[1] / 2
    turn = np.array([[math.cos(angle), math.sin(angle), 0], [-math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    centre = np.array([[1, 0, x], [0, 1, y], [0, 0, 1]])
    reduce = np.diag([size[0] / whole[0], size[1] / whole[1], 1])
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # from the number of a pixel to its middle
    return (np.linalg.inv(half) @ reduce @ centre @ turn @ np.linalg.inv(centre) @ cut @ half)[:2]


def _unturned(p: Plan) -> Box:
    """Return where the cut's box lies in the picture before its turns."""
    left, top, right, bottom = p.cut.box
    sizes, (width, height) = [], (p.width, p.height)
    for turn in p.turns:
        sizes.append((width, height))
        width, height = turn.size(width, height)
    for turn, (width, height) in zip(reversed(p.turns), reversed(sizes), strict=True):
        quarters = getattr(turn, "quarters", 0)
        left, top, right, bottom = (
            (width - right, top, width - left, bottom) if not quarters else
            (width - bottom, left, width - top, right) if quarters == 1 else
            (width - right, height - bottom, width - left, height - top) if quarters == 2 else
            (top, height - right, bottom, height - left))
    return left, top, right, bottom


def _turned(view: np.ndarray, turns: Sequence[steps.Step]) -> np.ndarray:
    for turn in turns:
        view = cv2.rotate(view, _TURNS[turn.quarters]) if isinstance(turn, steps.QuarterTurned) else cv2.flip(view, 1)
    return view


def resized(pixels: np.ndarray, box: Box, width: int, height: int, across: int, down: int) -> np.ndarray:
    """Cut `box`, in pixels of the whole `width` x `height` picture, and resize it, bilinear, antialiased.

    Args:
        pixels: uint8 [h, w, 3], the picture whole or reduced; of a reduced one the box is rounded to its pixels.
        across, down: pixels of the result.
    """
    tall, wide = pixels.shape[:2]
    left, right = (round(x * wide / width) for x in (box[0], box[2]))
    top, bottom = (round(y * tall / height) for y in (box[1], box[3]))
    cut = np.ascontiguousarray(pixels[top:max(bottom, top + 1), left:max(right, left + 1)])
    if cut.shape[:2] == (down, across):
        return cut.copy()  # overlays are drawn into it
    if cut.shape[0] <= down and cut.shape[1] <= across:  # nothing to average
        return cv2.resize(cut, (across, down), interpolation=cv2.INTER_LINEAR)
    batch = torch.from_numpy(cut)
    # equal to Pillow's but for rounding, and three times as fast
    batch = (batch.permute(2, 0, 1) if cut.ndim == 3 else batch[None])[None]
    return cv2.merge(list(interpolate(batch, size=(down, across), mode="bilinear", antialias=True)[0].numpy()))


def _overlaid(view: np.ndarray, overlays: Sequence[steps.Step], origin: tuple[float, float],
              scale: tuple[float, float]) -> np.ndarray:
    """Draw overlays where they end up: a point of the whole picture, less `origin`, times `scale`."""
    for step in overlays:
        box = step.box if isinstance(step, steps.Text) else (*step.place, *(x + step.side for x in step.place))
        x0, x1 = (round((x - origin[0]) * scale[0]) for x in (box[0], box[2]))
        y0, y1 = (round((y - origin[1]) * scale[1]) for y in (box[1], box[3]))
        x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
        left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, view.shape[1]), min(y1, view.shape[0])
        if left >= right or top >= bottom:
            continue
        ink, mask = (_text if isinstance(step, steps.Text) else _emoji)(step, x1 - x0, y1 - y0, scale)
        seen = slice(top - y0, bottom - y0), slice(left - x0, right - x0)
        rest = cv2.cvtColor(255 - mask[seen], cv2.COLOR_GRAY2RGB)
        ground = view[top:bottom, left:right]
        ground[...] = cv2.add(cv2.multiply(ground, rest, scale=1 / 255), ink[seen])
    return view


def _text(step: steps.Text, width: int, height: int, scale: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return colour times opacity, [height, width, 3], and the opacity [height, width] of a line of text."""
    share = min(1.0, _TEXT * max(scale))
    font = step.face.at(max(step.pixels * share, 1.0))
    left, top, right, bottom = step.box
    drawn = Image.new("L", (max(1, round((right - left) * share)), max(1, round((bottom - top) * share))))
    ImageDraw.Draw(drawn).text((-step.offset[0] * share, -step.offset[1] * share), step.glyphs, fill=step.ink,
                               font=font)
    mask = _fitted(np.array(drawn), width, height)
    return cv2.merge([cv2.convertScaleAbs(mask, alpha=value / 255) for value in step.colour]), mask


def _emoji(step: steps.Emoji, width: int, height: int, scale: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return colour times opacity, [height, width, 3], and the opacity [height, width] of an emoji."""
    emoji = cv2.convertScaleAbs(_fitted(_premultiplied(step.path), width, height), alpha=step.opacity)
    return emoji[..., :3], np.ascontiguousarray(emoji[..., 3])


@lru_cache(maxsize=None)
def _premultiplied(path: Path) -> np.ndarray:
    return np.array(assets.read_emoji(path).convert("RGBa"))


def _fitted(patch: np.ndarray, width: int, height: int) -> np.ndarray:
    return resized(patch, (0, 0, *patch.shape[1::-1]), *patch.shape[1::-1], width, height)
