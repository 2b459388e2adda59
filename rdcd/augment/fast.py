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
        width, height: of the picture, pixels, before and after the turns.
        turns: mirrorings and quarter turns, in order; one of these by 90 or 270 degrees at most.
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
    lying = [step for step in before if getattr(step, "quarters", 0) % 2]  # a second would turn what the first has cut
    if None in order or order != sorted(order) or order.count(2) > 1 or len(lying) > 1:
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
    side = p.cut.side
    if p.rotation is None:
        box, across, down = p.cut.box, side, side
    else:
        back = _back(p)
        box = _seen(back, side, (p.width, p.height))
        across, down = (max(1, round(length / max(p.reduction, 1.0))) for length in (box[2] - box[0], box[3] - box[1]))
    lying = sum(getattr(turn, "quarters", 0) for turn in p.turns) % 2
    size = (down, across) if lying else (across, down)
    view = _turned(resized(pixels, _unturned(p, box), p.width, p.height, *size), p.turns)
    scale = across / (box[2] - box[0]), down / (box[3] - box[1])
    view = _overlaid(view, p.overlays, box[:2], scale)
    if p.rotation is None:
        return view
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # from the number of a pixel to its middle
    part = np.diag([*scale, 1]) @ np.array([[1, 0, -box[0]], [0, 1, -box[1]], [0, 0, 1]])
    return cv2.warpAffine(view, (np.linalg.inv(half) @ part @ back @ half)[:2], (side, side),
                          flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def _back(p: Plan) -> np.ndarray:
    """Return the affine map [3, 3] from places in the view to places in the turned picture, before it was rotated."""
    left, top, right, bottom = p.cut.box
    cut = np.array([[(right - left) / p.cut.side, 0, left], [0, (bottom - top) / p.cut.side, top], [0, 0, 1]])
    angle = -math.radians(p.rotation.degrees)
    x, y = p.width / 2, p.height / 2
    turn = np.array([[math.cos(angle), math.sin(angle), 0], [-math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    centre = np.array([[1, 0, x], [0, 1, y], [0, 0, 1]])
    return centre @ turn @ np.linalg.inv(centre) @ cut


def _seen(back: np.ndarray, side: int, size: tuple[int, int]) -> Box:
    """Return the box of a `size` picture in which all lies that a rotated view of it shows, and a little around it."""
    corners = back[:2] @ np.array([[0, side, 0, side], [0, 0, side, side], [1, 1, 1, 1]])
    spare = 2 * np.abs(back[:2, :2]).sum(1).max() + 2
    low = np.floor(corners.min(1) - spare).clip(0, np.array(size) - 1)
    high = np.ceil(corners.max(1) + spare).clip(low + 1, size)
    return (*map(int, low), *map(int, high))


def _unturned(p: Plan, box: Box) -> Box:
    """Return where a box of the turned picture lies in the picture before its turns; in part outside it, perhaps."""
    left, top, right, bottom = box
    half_difference, half_sum = (p.width - p.height) / 2, (p.width + p.height) / 2
    for turn in reversed(p.turns):
        quarters = getattr(turn, "quarters", 0)
        left, top, right, bottom = (
            (p.width - right, top, p.width - left, bottom) if not quarters else
            (half_sum - bottom, left - half_difference, half_sum - top, right - half_difference) if quarters == 1 else
            (p.width - right, p.height - bottom, p.width - left, p.height - top) if quarters == 2 else
            (top + half_difference, half_sum - right, bottom + half_difference, half_sum - left))
    return left, top, right, bottom


def _turned(view: np.ndarray, turns: Sequence[steps.Step]) -> np.ndarray:
    for turn in turns:
        view = cv2.rotate(view, _TURNS[turn.quarters]) if isinstance(turn, steps.QuarterTurned) else cv2.flip(view, 1)
    return view


def resized(pixels: np.ndarray, box: Box, width: int, height: int, across: int, down: int) -> np.ndarray:
    """Cut `box`, in pixels of the whole `width` x `height` picture, and resize it, bilinear, antialiased.

    What is at least twice as fine as `SPARE` asks for is halved before that, by the means of four pixels.

    Args:
        pixels: uint8 [h, w, 3], the picture whole or reduced; of a reduced one the box is rounded to its pixels.
        box: black where it lies outside the picture; of a whole one, its corners are of pixels, or between four.
        across, down: pixels of the result.
    """
    tall, wide = pixels.shape[:2]
    if (tall, wide) == (height, width) and box[0] % 1:  # turned about a centre that is in the middle of a pixel's side
        pixels = cv2.blur(pixels, (2, 2), anchor=(1, 1), borderType=cv2.BORDER_REPLICATE)
    left, right = (math.floor(x * wide / width + 0.5) for x in (box[0], box[2]))
    top, bottom = (math.floor(y * tall / height + 0.5) for y in (box[1], box[3]))
    cut = _cut(pixels, left, top, max(right, left + 1), max(bottom, top + 1))
    if cut.shape[:2] == (down, across):
        return cut.copy()  # overlays are drawn into it
    if cut.shape[0] <= down and cut.shape[1] <= across:  # nothing to average
        return cv2.resize(cut, (across, down), interpolation=cv2.INTER_LINEAR)
    while min(cut.shape[0] / down, cut.shape[1] / across) >= 2 * SPARE:  # as reduced decoding does
        cut = cut[:cut.shape[0] & ~1, :cut.shape[1] & ~1]
        cut = cv2.resize(cut, (cut.shape[1] // 2, cut.shape[0] // 2), interpolation=cv2.INTER_AREA)
    # equal to Pillow's but for rounding, and faster; this order of axes tells torch that channels are last
    batch = torch.from_numpy(np.ascontiguousarray(cut).reshape(1, *cut.shape[:2], -1)).permute(0, 3, 1, 2)
    made = interpolate(batch, size=(down, across), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    return np.ascontiguousarray(made if cut.ndim == 3 else made[..., 0])


def _cut(pixels: np.ndarray, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    """Cut a box, black where it lies outside."""
    inside = pixels[max(top, 0):max(bottom, 0), max(left, 0):max(right, 0)]
    if inside.shape[:2] == (bottom - top, right - left):
        return inside
    cut = np.zeros((bottom - top, right - left, *pixels.shape[2:]), pixels.dtype)
    cut[max(-top, 0):, max(-left, 0):][:inside.shape[0], :inside.shape[1]] = inside
    return cut


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
