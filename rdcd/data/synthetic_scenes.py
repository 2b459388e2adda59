"""What synthetic pictures show: objects, and the eight kinds of scene they stand in."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from rdcd.data.synthetic_sheet import TEXTURES, Sheet, fractal


def _ridge(sheet: Sheet, base: float, relief: float) -> np.ndarray:
    """Return the polygon [n + 2, 2] of the ground under a fractal skyline about height `base`."""
    n = 65
    line = fractal(sheet.rng, n, 2, sheet.rand(0.5, 0.75))[0]
    x = np.linspace(0, sheet.width, n)
    return np.r_[np.stack([x, base + relief * line], axis=1), [(sheet.width, 2), (0, 2)]]


def _vase(sheet: Sheet, x: float, y: float, s: float) -> None:
    """A turned body: bottle, lamp, cup; with bands and perhaps a label."""
    profile = 0.25 + 0.75 * sheet.rng.random(6) ** 0.7
    half = np.interp(np.linspace(0, 5, 16), range(6), profile) * s * sheet.rand(0.2, 0.45)
    level = y - np.linspace(0, 1, 16) * s
    body = np.r_[np.stack([x - half, level], axis=1), np.stack([x + half, level], axis=1)[::-1]]
    sheet.add(body, bulge=0.5)
    for _ in range(sheet.pick(0, 3)):
        k = sheet.pick(0, 12)
        band = [*range(k, k + 3)] + [*range(29 - k, 32 - k)]
        sheet.add(body[band], bulge=0.5)
    if sheet.chance(0.5):
        sheet.text(x - half[6] * 0.8, level[8], s * 0.15, sheet.material(gain=0.2), 5)


def _house(sheet: Sheet, x: float, y: float, s: float) -> None:
    """Walls, roof, and a grid of windows."""
    w, h = s * sheet.rand(0.25, 0.5), s * sheet.rand(0.4, 0.9)
    sheet.box(x - w, y - h, x + w, y)
    if sheet.chance(0.6):
        eaves, ridge = w * 1.15, x + w * sheet.rand(-1, 1)
        sheet.add(np.array([(x - eaves, y - h), (ridge, y - s), (x + eaves, y - h)]))
    glass, lit = sheet.material(light=0.4, gain=0.5), sheet.material(light=1.2, gain=0.5)
    columns, rows = sheet.pick(2, 5), sheet.pick(2, 6)
    cell_x, cell_y, share = 2 * w / columns, h / rows, sheet.rand(0.4, 0.8)
    for i in range(columns):
        for j in range(rows):
            x0, y0 = x - w + (i + 0.2) * cell_x, y - h + (j + 0.2) * cell_y
            sheet.box(x0, y0, x0 + cell_x * share, y0 + cell_y * 0.6, lit if sheet.chance(0.3) else glass)


def _tree(sheet: Sheet, x: float, y: float, s: float) -> None:
    """A trunk with limbs under clumps of leaves."""
    trunk, t = sheet.material(light=0.5), s * sheet.rand(0.02, 0.06)
    sheet.box(x - t, y - s * 0.6, x + t, y, trunk)
    hue = sheet.rand(0, 0.7)
    for _ in range(sheet.pick(4, 10)):
        cx, cy, r = x + s * sheet.rand(-0.3, 0.3), y - s * sheet.rand(0.45, 0.95), s * sheet.rand(0.08, 0.25)
        sheet.add(np.array([(x, y - s * 0.35), (x, y - s * 0.3), (cx, cy)]), trunk)
        sheet.add(sheet.outline() * r + (cx, cy), hue=hue + sheet.rand(-0.1, 0.1), bulge=0.4, gain=1.6)


def _creature(sheet: Sheet, x: float, y: float, s: float) -> None:
    """A body on legs, a neck and a head of one coat, an eye."""
    fur = TEXTURES[sheet.pick(0, 5)]
    coat = dict(hue=sheet.rand(0, 1), light=sheet.rand(0.5, 1.1), texture=fur, gain=1.5)
    side, long, tall = (1 if sheet.chance(0.5) else -1), s * sheet.rand(0.3, 0.5), s * sheet.rand(0.3, 0.6)
    for k in sheet.rng.uniform(-0.8, 0.8, sheet.pick(2, 4)):
        foot = x + long * (k + sheet.rand(-0.3, 0.3))
        leg, t = x + long * k, s * 0.05
        sheet.add(np.array([(leg - t, y - tall), (leg + t, y - tall), (foot + t, y), (foot - t, y)]), **coat)
    body = sheet.outline(corners=False)
    body *= (long, s * sheet.rand(0.15, 0.3)) / np.abs(body).max(axis=0)
    sheet.add(body + (x, y - tall), **coat, bulge=0.4)
    hx, hy, r = x + side * long, y - tall - s * sheet.rand(0.1, 0.35), s * sheet.rand(0.1, 0.2)
    chest = x + side * long * 0.5
    sheet.add(np.array([(hx, hy - r / 2), (hx, hy + r), (chest, y - tall + r), (x, y - tall - r)]), **coat)
    sheet.add(sheet.outline() * r + (hx, hy), **coat, bulge=0.4)
    sheet.add(sheet.outline() * r * 0.25 + (hx + side * r * 0.3, hy - r * 0.2), light=0.15, gain=0.1)


def _flower(sheet: Sheet, x: float, y: float, s: float) -> None:
    """Petals about a heart; a wheel or a fan as well."""
    petal, turn, n = sheet.outline() * s * 0.2, sheet.rand(0, 6), sheet.pick(5, 11)
    label, cy = None, y - s / 2
    for k in range(n):
        a = turn + 2 * math.pi * k / n
        spin = np.array([(np.cos(a), np.sin(a)), (-np.sin(a), np.cos(a))])
        label = sheet.add(petal @ spin + (x + np.cos(a) * s * 0.3, cy + np.sin(a) * s * 0.3),
                          None if k < 2 else label, bulge=0.3)
    sheet.add(sheet.outline() * s * 0.17 + (x, cy), bulge=0.5)


def _pile(sheet: Sheet, x: float, y: float, s: float) -> None:
    """A nest of shapes: machine, toy, garment."""
    sheet.add(sheet.outline() * s * 0.45 + (x, y - s / 2), bulge=0.4)
    for _ in range(sheet.pick(3, 9)):
        spot = (x + s * sheet.rand(-0.3, 0.3), y - s * sheet.rand(0.2, 0.8))
        sheet.add(sheet.outline() * s * sheet.rand(0.04, 0.25) + spot, bulge=sheet.rand(0, 0.6))


_OBJECTS: tuple[Callable[[Sheet, float, float, float], None], ...] = (
    _vase, _house, _tree, _creature, _flower, _pile)


def _object(sheet: Sheet, x: float, y: float, s: float) -> None:
    _OBJECTS[sheet.pick(0, len(_OBJECTS) - 1)](sheet, x, y, s)


def _landscape(sheet: Sheet) -> None:
    """Sky, ridges that grow darker towards the eye, things that stand on them, water now and then."""
    far = sheet.rand(0.15, 0.65) * sheet.height
    cloud = TEXTURES[sheet.pick(0, 2)]
    sheet.fill(hue=sheet.rand(0.6, 1), light=1.1, gain=sheet.rand(0.1, 1), texture=cloud)
    if sheet.chance(0.4):
        sheet.add(sheet.outline(corners=False) * sheet.rand(0.02, 0.08)
                  + (sheet.rand(0, sheet.width), far * sheet.rand(0.2, 0.8)), hue=1.0, light=1.4, gain=0)
    thing, layers = _OBJECTS[sheet.pick(1, 3)], sheet.pick(2, 5)
    for k in range(layers):
        depth = (k + 1) / layers
        base = far + (sheet.height - far) * (depth - 1 / layers) * 0.9
        flat = sheet.chance(0.2)
        sheet.add(_ridge(sheet, base, 0.0 if flat else sheet.rand(0.005, 0.06)), hue=sheet.rand(0, 0.8),
                  light=sheet.rand(0.8, 1.1) - 0.3 * depth, gain=0.4 + depth,
                  texture="stripes" if flat else None)
        for _ in range(sheet.pick(0, 4)):
            x, y, s = sheet.rand(0, sheet.width), base + sheet.rand(0, 0.1), sheet.rand(0.05, 0.2)
            (thing if sheet.chance(0.8) else _object)(sheet, x, y, s + 0.25 * depth * sheet.rand(0, 1))
    sheet.scatter(sheet.pick(5, 40), 0.006, 0.06, top=far + 0.1, gain=1.3)


def _leaves(sheet: Sheet) -> None:
    """Dead leaves: shapes of all sizes hide one another."""
    sheet.scatter(sheet.pick(100, 260), sheet.rand(0.015, 0.045), sheet.rand(0.2, 0.5))


def _still(sheet: Sheet) -> None:
    """A few large things before a wall, on a table or on plain white."""
    plain = sheet.chance(0.3)
    floor = sheet.rand(0.55, 0.9) * sheet.height
    if plain:
        sheet.fill(hue=1.0, light=1.1, gain=0.1)
    else:
        sheet.box(0, floor, 1, 1)
    number = sheet.pick(1, 5)
    for k in sheet.rng.permutation(number).tolist():
        x = (k + sheet.rand(0.2, 0.8)) / number * sheet.width
        y = min(floor + sheet.rand(0.02, 0.3), 0.98 * sheet.height)
        _object(sheet, x, y, sheet.rand(0.3, 0.5 + 0.4 / number))
    sheet.scatter(sheet.pick(0, 15), 0.008, 0.05, top=floor)


def _tiles(sheet: Sheet) -> None:
    """Bricks, boards, checks or patchwork under a tilted view, each piece of its own material."""
    width, height = sheet.labels.size
    y, x = np.mgrid[:height, :width].astype(np.float32) / sheet.scale - 0.5
    turn, tilt = sheet.rand(-0.6, 0.6), sheet.rand(-0.5, 0.5)
    zoom = sheet.pick(3, 12) / (1 + tilt * y)
    u = (x * math.cos(turn) + y * math.sin(turn)) * zoom + 64
    v = (y * math.cos(turn) - x * math.sin(turn)) * zoom * sheet.rand(0.4, 2.5) + 64
    u = u + np.floor(v) * (0, 0.5, 0.37)[sheet.pick(0, 2)]
    joint, spread = sheet.rand(0, 0.1), sheet.rand(0.1, 1)
    mortar, first, number = sheet.material(), len(sheet.materials), 97
    hue, light = sheet.rand(0, 1), sheet.rand(0.6, 1.1)
    for _ in range(number):
        sheet.material(hue=hue + spread * sheet.rand(-0.5, 0.5), light=light + spread * sheet.rand(-0.3, 0.3))
    order = sheet.rng.integers(0, number, 4096)
    piece = first + order[(np.floor(u).astype(int) * 61 + np.floor(v).astype(int)) % 4096]
    seam = (u % 1 < joint) | (v % 1 < joint)
    sheet.labels.paste(Image.fromarray(np.where(seam, mortar, piece).astype(np.int32)))
    for _ in range(sheet.pick(0, 2)):
        _object(sheet, sheet.rand(0.1, 0.9), sheet.rand(0.3, 1) * sheet.height, sheet.rand(0.2, 0.5))
    sheet.scatter(sheet.pick(0, 12), 0.01, 0.1)


def _document(sheet: Sheet) -> None:
    """A page: heading, columns of text, figures, rules."""
    sheet.busy *= 0.7
    sheet.fill(hue=sheet.rand(0.9, 1), light=1.3, gain=0.1)
    ink, accent = sheet.material(hue=0, light=0.4, gain=0.1), sheet.material(gain=0.3)
    y, line = sheet.rand(0.03, 0.08), sheet.rand(0.035, 0.07)
    sheet.text(sheet.rand(0.04, 0.2), y, line * sheet.rand(1.2, 2.5), accent, sheet.pick(5, 14))
    columns = sheet.pick(1, 2)
    for k in range(columns):
        left, right = 0.05 + k * sheet.width / columns, (k + 1) * sheet.width / columns - 0.03
        down = y + line * 3
        while down < sheet.height - line:
            u = sheet.rand(0, 1)
            if u < 0.12:
                tall = sheet.rand(0.12, 0.35)
                sheet.box(left, down, right, min(down + tall, 0.97 * sheet.height))
                for _ in range(sheet.pick(2, 7)):
                    r = sheet.rand(0.1, 0.4) * tall
                    spot = (sheet.rand(left + r, right - r), sheet.rand(down + r, down + tall - r))
                    sheet.add(sheet.outline() * r + spot)
                down += tall + line / 2
            elif u < 0.18:
                sheet.box(left, down + line / 2, right, down + line * 0.7, accent)
            elif u < 0.9:
                letters = max(2, int((right - left) / line * sheet.rand(0.6, 1.6)))
                sheet.text(left + (line if u < 0.3 else 0), down, line, ink, letters)
            down += line * 1.1


def _poster(sheet: Sheet) -> None:
    """Flat shapes, rays, rings, big letters."""
    sheet.busy *= 0.35
    sheet.fill()
    x, y, n = sheet.rand(0.2, 0.8), sheet.rand(0.2, 0.8), sheet.pick(5, 16)
    pair, style, ring = (sheet.material(), sheet.material()), sheet.pick(0, 2), sheet.outline(corners=False)
    for k in range(n):
        if style == 0:
            a = np.array([k, k + 0.5]) * (2 * np.pi / n)
            sheet.add(np.r_[[(x, y)], np.stack([x + 2 * np.cos(a), y + 2 * np.sin(a)], axis=1)], pair[0])
        elif style == 1:
            sheet.add(ring * (0.7 * (1 - k / n)) + (x, y), pair[k % 2])
        else:
            sheet.box(k / n, 0, (k + sheet.rand(0.2, 0.9)) / n, 1, pair[k % 2])
    for _ in range(sheet.pick(2, 9)):
        spot = (sheet.rand(0, sheet.width), sheet.rand(0, sheet.height))
        sheet.add(sheet.outline() * sheet.rand(0.04, 0.3) + spot)
    if sheet.chance(0.5):
        _object(sheet, sheet.rand(0.2, 0.8), sheet.rand(0.6, 1) * sheet.height, sheet.rand(0.3, 0.7))
    for _ in range(sheet.pick(1, 4)):
        x, y = sheet.rand(0, 0.3), sheet.rand(0, 0.9) * sheet.height
        sheet.text(x, y, sheet.rand(0.05, 0.25), sheet.material(), sheet.pick(2, 12))


def _plasma(sheet: Sheet) -> None:
    """Clouds, stone, fur: one strong texture, with a few blots of others."""
    sheet.busy = sheet.rand(1, 2)
    texture = TEXTURES[sheet.pick(0, 4)]
    sheet.fill(hue=sheet.rand(0.3, 0.7), light=sheet.rand(0.7, 1), gain=2.0, texture=texture)
    for _ in range(sheet.pick(0, 3)):
        sheet.add(_ridge(sheet, sheet.rand(0.2, 0.9) * sheet.height, sheet.rand(0.05, 0.2)), gain=1.5)
    sheet.scatter(sheet.pick(0, 30), 0.01, 0.15, gain=1.5)


def _shelf(sheet: Sheet) -> None:
    """Rows of things of one sort, each a little different: shop shelf, flower bed, street."""
    sheet.fill(light=0.5)
    rows, board = sheet.pick(2, 4), sheet.material()
    for j in range(rows):
        floor = (j + 0.93) / rows * sheet.height
        tall, count = 0.85 * sheet.height / rows, sheet.pick(3, 7)
        thing = _OBJECTS[sheet.pick(0, len(_OBJECTS) - 1)]
        sheet.box(0, floor, 1, floor + 0.03, board)
        for k in range(count):
            x = (k + sheet.rand(0.3, 0.7)) / count * sheet.width
            thing(sheet, x, floor, tall * sheet.rand(0.6, 1.05))


SCENES: tuple[Callable[[Sheet], None], ...] = (
    _landscape, _leaves, _still, _tiles, _document, _poster, _plasma, _shelf)
