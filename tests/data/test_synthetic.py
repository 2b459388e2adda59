"""Synthetic pictures: the same for the same seed, photo-like in the mean, and hard to tell by colour."""

import hashlib
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from rdcd.data import synthetic
from rdcd.data.synthetic import draw_picture
from rdcd.data.synthetic_scenes import SCENES
from rdcd.data.synthetic_sheet import TEXTURES, Sheet, fractal
from rdcd.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@lru_cache(maxsize=1)
def pictures() -> list[Image.Image]:
    return [draw_picture(seed, size=128) for seed in range(200)]


def thumbnails(images: list[Image.Image]) -> np.ndarray:
    """Unit vectors [n, 256]: grey 16 x 16 thumbnails without their mean."""
    small = [im.convert("L").resize((16, 16), Image.Resampling.BOX) for im in images]
    rows = np.stack([np.asarray(im, np.float64).ravel() for im in small])
    centred = rows - rows.mean(axis=1, keepdims=True)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


def nearest(queries: list[Image.Image], references: list[Image.Image]) -> np.ndarray:
    return (thumbnails(queries) @ thumbnails(references).T).argmax(axis=1)


def digest(seed: int, size: int) -> str:
    picture = draw_picture(seed, size=size)
    return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()


def spectrum_slope(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log frequency and log power of a square picture in rings from 3 cycles a side to 0.4 a pixel."""
    n = min(grey.shape)
    window = np.hanning(n)[:, None] * np.hanning(n)
    square = grey[:n, :n] - grey[:n, :n].mean()
    power = np.abs(np.fft.fft2(square * window)) ** 2
    frequency = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.fftfreq(n))
    ring = np.digitize(frequency, np.geomspace(3 / n, 0.4, 9))
    rings = [ring == k for k in range(1, 9)]
    return (np.log([frequency[r].mean() for r in rings]), np.log([power[r].mean() + 1e-9 for r in rings]))


def test_same_seed_same_pixels_in_this_and_in_a_fresh_process():
    expected = [digest(seed, 96) for seed in range(24)]
    assert expected == [digest(seed, 96) for seed in range(24)]
    code = ("import hashlib; from rdcd.data.synthetic import draw_picture\n"
            "for seed in range(24):\n"
            "    p = draw_picture(seed, size=96)\n"
            "    print(hashlib.sha256(repr(p.size).encode() + p.tobytes()).hexdigest())")
    fresh = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert fresh.stdout.split() == expected


def test_does_not_touch_or_read_global_random_state():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    first = digest(5, 64)
    assert (np.random.get_state()[1] == before).all()
    np.random.seed(1)
    assert digest(5, 64) == first


def test_seeds_differ_and_none_are_near_copies():
    assert len({im.tobytes() for im in pictures()}) == 200
    correlation = thumbnails(pictures()) @ thumbnails(pictures()).T
    np.fill_diagonal(correlation, -1)
    assert correlation.max() < 0.98


def test_every_scene_recurs(monkeypatch):
    seen = []
    spies = tuple(lambda sheet, k=k: seen.append(k) for k in range(len(SCENES)))
    monkeypatch.setattr(synthetic, "SCENES", spies)
    for seed in range(100):
        draw_picture(seed, size=16)
    assert len(seen) == 100 and np.bincount(seen, minlength=len(SCENES)).min() >= 3


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_each_scene_paints_many_surfaces_differently_each_time(scene):
    maps = []
    for seed in range(8):
        sheet = Sheet(np.random.default_rng(seed), 160, 128)
        scene(sheet)
        labels = np.asarray(sheet.labels)
        assert labels.max() < len(sheet.materials) and labels.min() >= 0
        maps.append(labels.tobytes())
    assert len(set(maps)) == 8


def test_spectrum_falls_as_in_photographs():
    log_f, log_p = zip(*(spectrum_slope(np.asarray(im.convert("L"), np.float64)) for im in pictures()))
    slope, _ = np.polyfit(np.mean(log_f, axis=0), np.mean(log_p, axis=0), 1)
    assert 1.2 < -slope < 3
    single = [-np.polyfit(f, p, 1)[0] for f, p in zip(log_f, log_p)]
    assert np.quantile(single, 0.05) > 1 and np.quantile(single, 0.95) < 3.6


def test_photo_like_brightness_contrast_and_correlated_channels():
    arrays = [np.asarray(im, np.float64).reshape(-1, 3) / 255 for im in pictures()]
    assert 0.35 < np.mean([a.mean() for a in arrays]) < 0.6
    assert min(a.std() for a in arrays) > 0.04
    assert np.mean([np.corrcoef(a.T)[np.triu_indices(3, 1)].mean() for a in arrays]) > 0.6


def test_mean_colour_alone_does_not_identify():
    colours = np.stack([np.asarray(im, np.float64).mean(axis=(0, 1)) for im in pictures()])
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (distance.min(axis=1) < 20).mean() > 0.8  # of 255: less than a mild change of exposure


def test_thumbnails_find_light_edits_but_not_crops_or_flips():
    images, rng = pictures(), np.random.default_rng(0)
    crops = []
    for im in images:
        w, h = int(im.width * 0.3**0.5), int(im.height * 0.3**0.5)
        x, y = int(rng.integers(im.width - w)), int(rng.integers(im.height - h))
        crops.append(im.crop((x, y, x + w, y + h)))
    truth = np.arange(len(images))
    assert (nearest([im.resize((64, 64)) for im in images], images) == truth).mean() > 0.98
    assert (nearest(crops, images) == truth).mean() < 0.25
    assert (nearest([ImageOps.mirror(im) for im in images], images) == truth).mean() < 0.4


def test_sizes_and_aspects():
    aspects = []
    for seed in range(60):
        picture = draw_picture(seed, size=40)
        assert picture.mode == "RGB" and max(picture.size) == 40 and min(picture.size) >= 30
        aspects.append(picture.width / picture.height)
    assert min(aspects) < 0.9 and max(aspects) > 1.1 and 1.0 in aspects


@pytest.mark.parametrize("size", [16, 17, 23, 64, 257])
def test_any_size(size):
    for seed in range(20):
        assert max(draw_picture(seed, size=size).size) == size
    assert draw_picture(np.int64(3), size=np.int32(size)).tobytes() == draw_picture(3, size=size).tobytes()


def test_largest_size():
    assert max(draw_picture(1, size=1024).size) == 1024


def test_one_seed_shows_one_scene_at_every_size():
    small, large = ([draw_picture(seed, size=size) for seed in range(40)] for size in (96, 192))
    assert (nearest(small, large) == np.arange(40)).mean() > 0.9


@pytest.mark.parametrize("size", [0, -5, 15, 1025, 100.0, "160", None])
def test_bad_size(size):
    with pytest.raises(UserError, match="size=.*16 to 1024"):
        draw_picture(0, size=size)


@pytest.mark.parametrize("seed", [-1, 0.5, "a", None])
def test_bad_seed(seed):
    with pytest.raises(UserError, match="seed="):
        draw_picture(seed)


def test_large_seeds():
    assert draw_picture(2**64, size=16).tobytes() != draw_picture(2**64 + 1, size=16).tobytes()


@pytest.mark.parametrize(("roughness", "slope"), [(1.0, 2.0), (0.7, 3.03)])
def test_fractal_has_the_slope_its_roughness_promises(roughness, slope):
    rng = np.random.default_rng(0)
    curves = [spectrum_slope(fractal(rng, 128, 128, roughness)) for _ in range(20)]
    log_f, log_p = np.mean(curves, axis=0)
    assert -np.polyfit(log_f, log_p, 1)[0] == pytest.approx(slope, abs=0.5)


def test_render_equals_a_loop_over_pixels():
    palette = ((0, 20, 40), (200, 100, 50), (250, 240, 230))
    sheet = Sheet(np.random.default_rng(3), 24, 18)
    sheet.scatter(6, 0.1, 0.3)
    labels, (width, height) = np.asarray(sheet.labels), sheet.labels.size
    bank, shadows = sheet.textures(np.random.default_rng(7)), sheet._shadows(labels)
    expected = np.zeros((height, width, 3))
    for y in range(height):
        for x in range(width):
            (hue, light, hue_gain, light_gain, texture, dx, dy, slope_x, slope_y,
             bulge, cx, cy, curve, red, blue) = sheet.materials[labels[y, x]]
            ty, tx = y + int(dy * height), x + int(dx * width)
            ty, tx = min(ty, 2 * height - 1 - ty), min(tx, 2 * width - 1 - tx)  # mirrored at the edge
            u, v = (x / sheet.scale - cx) * curve, (y / sheet.scale - cy) * curve
            shade = 1 + light_gain * bank[texture, ty, tx] + slope_x * u + slope_y * v
            shade -= bulge * (u * u + v * v)
            position = hue + hue_gain * bank[(texture + 1) % len(TEXTURES), ty, tx]
            step = int(np.clip(position * 255, 0, 255)) / 255 * (len(palette) - 1)
            colour = np.array([np.interp(step, range(len(palette)), channel) for channel in zip(*palette)])
            expected[y, x] = colour / 255 * (red, 1, blue) * shade * light * shadows[y, x]
    rendered = sheet.render(palette, np.random.default_rng(7))
    assert (np.abs(rendered - expected) < 1e-4).mean() > 0.98  # a palette step may round either way
    assert np.abs(rendered - expected).max() < 0.03


def test_what_is_painted_later_hides_and_shades_what_lies_behind():
    sheet = Sheet(np.random.default_rng(0), 100, 100)
    label = sheet.box(0.3, 0.3, 0.6, 0.6)
    labels = np.asarray(sheet.labels)
    shadows = sheet._shadows(labels)
    assert labels[45, 45] == label and labels[10, 10] == 0
    assert shadows[45, 45] == 1 and shadows[45, 29] < shadows[10, 10] == 1
