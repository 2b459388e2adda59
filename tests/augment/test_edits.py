"""The edits of benchmark queries: each does what its parameters say, and nothing in it is random."""

import io
import json
import random
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image, ImageOps

from rdcd.augment import edits_overlay as overlay
from rdcd.augment import edits_picture as alone
from rdcd.augment.edits import EDITS, MIN_SIDE, apply_chain, check_families, draw_chain, needs_other
from rdcd.errors import UserError


def picture(width=96, height=72, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def array(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("size", [(96, 72), (32, 32), (250, 33)])
@pytest.mark.parametrize("family", EDITS)
def test_every_family_is_determined_by_its_json_parameters(family, size):
    edit, source, other = EDITS[family], picture(*size), picture(80, 90, seed=1)
    before = source.tobytes()
    for seed in range(4):
        parameters = edit.draw(np.random.default_rng(seed))
        assert parameters == edit.draw(np.random.default_rng(seed))
        recorded = json.loads(json.dumps(parameters))
        assert recorded == parameters
        np.random.seed(seed)
        random.seed(seed)
        one = edit.apply(source, parameters, other)
        np.random.seed(seed + 1)
        random.seed(seed + 1)
        state, plain_state = np.random.get_state()[1].copy(), random.getstate()
        two = edit.apply(source, recorded, other)
        assert (np.random.get_state()[1] == state).all() and random.getstate() == plain_state
        assert one.mode == two.mode == "RGB" and one.size == two.size and one.tobytes() == two.tobytes()
        assert source.tobytes() == before
        assert min(one.size) >= 1


@pytest.mark.parametrize("family", EDITS)
def test_every_family_changes_the_picture(family):
    source, other = picture(), picture(seed=1)
    for seed in range(5):
        edited = EDITS[family].apply(source, EDITS[family].draw(np.random.default_rng(seed)), other)
        assert edited.size != source.size or edited.tobytes() != source.tobytes()


def test_crop_keeps_between_30_and_85_percent():
    for seed in range(300):
        box = alone.draw_crop(np.random.default_rng(seed))
        assert 0 <= box["x1"] < box["x2"] <= 1 and 0 <= box["y1"] < box["y2"] <= 1
        assert 0.295 < (box["x2"] - box["x1"]) * (box["y2"] - box["y1"]) < 0.855
    cut = alone.crop(picture(), x1=0.25, y1=0.5, x2=0.75, y2=1.0)
    assert cut.tobytes() == picture().crop((24, 36, 72, 72)).tobytes()


def test_pad_aspect_and_downscale_give_the_sizes_they_say():
    padded = alone.pad(picture(), width=0.25, height=0.5, colour=[1, 2, 3])
    assert padded.size == (96 + 48, 72 + 72) and padded.getpixel((0, 0)) == (1, 2, 3)
    assert padded.crop((24, 36, 120, 108)).tobytes() == picture().tobytes()
    wide = alone.aspect(picture(), stretch=2.0)
    assert wide.width / wide.height == pytest.approx(2 * 96 / 72, rel=0.03)
    assert wide.width * wide.height == pytest.approx(96 * 72, rel=0.03)
    assert alone.downscale(picture(), factor=0.5).size == (48, 36)


def test_quarter_turns_and_flips_move_every_pixel_to_its_place():
    turned = alone.rotate(picture(), degrees=90.0, corners=None)
    assert turned.tobytes() == picture().transpose(Image.Transpose.ROTATE_90).tobytes()
    assert alone.flip(picture(), axis="horizontal").tobytes() == ImageOps.mirror(picture()).tobytes()
    assert alone.flip(picture(), axis="vertical").tobytes() == ImageOps.flip(picture()).tobytes()
    filled = alone.rotate(picture(), degrees=45.0, corners=[9, 8, 7])
    assert filled.width > 96 and filled.getpixel((0, 0)) == (9, 8, 7)


@pytest.mark.parametrize("axis", [0, 1])
def test_skew_moves_the_edge_by_the_share_it_says(axis):
    """A line across the middle ends `shift` / 2 of the side away from it."""
    line = np.zeros((80, 120, 3), np.uint8)
    if axis == 0:
        line[:, 60] = 255
    else:
        line[40, :] = 255
    skewed = array(alone.skew(Image.fromarray(line), shift=0.5, axis=axis))[..., 0]
    edge = skewed[0] if axis == 0 else skewed[:, 0]
    side = 120 if axis == 0 else 80
    assert abs(abs(int(edge.argmax()) - side // 2) - 0.25 * side) <= 1


def test_perspective_maps_corner_to_corner():
    """Against the projection worked out point by point."""
    identity = alone.perspective(picture(), corners=[[0, 0]] * 4, ground=[0, 0, 0])
    assert np.abs(array(identity) - array(picture())).max() <= 1
    corners = [[0.1, 0.2], [0.25, 0.05], [0.0, 0.15], [0.2, 0.1]]
    white = Image.new("RGB", (200, 100), "white")
    shown = array(alone.perspective(white, corners=corners, ground=[0, 0, 0]))[..., 0]
    quad = [(20, 20), (150, 5), (200, 85), (40, 90)]
    for y in range(2, 100, 7):
        for x in range(2, 200, 7):
            sides = [(bx - ax) * (y + 0.5 - ay) - (by - ay) * (x + 0.5 - ax)
                     for (ax, ay), (bx, by) in zip(quad, quad[1:] + quad[:1])]
            if min(sides) > 300:
                assert shown[y, x] == 255
            elif min(sides) < -300:
                assert shown[y, x] == 0


def test_colour_kinds():
    source = picture()
    grey = array(alone.colour(source, kind="grey"))
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 1] == grey[..., 2]).all()
    swapped = array(alone.colour(source, kind="channels", order=[2, 0, 1]))
    assert (swapped == array(source)[..., [2, 0, 1]]).all()
    few = array(alone.colour(source, kind="palette", colours=6)).reshape(-1, 3)
    assert len(np.unique(few, axis=0)) <= 6
    tinted = array(alone.colour(source, kind="tint", colour=[255, 0, 0], opacity=0.5))
    assert np.abs(tinted - (array(source) + [255, 0, 0]) / 2).max() <= 1
    assert alone.colour(source, kind="saturation", factor=1.0).tobytes() == source.tobytes()
    drawn = {alone.draw_colour(np.random.default_rng(seed))["kind"] for seed in range(60)}
    assert drawn == {"grey", "saturation", "hue", "channels", "palette", "tint"}


def test_tone_blur_and_sharpen_at_rest_change_nothing():
    source = picture()
    assert alone.tone(source, brightness=1.0, contrast=1.0, gamma=1.0).tobytes() == source.tobytes()
    assert alone.sharpen(source, factor=1.0).tobytes() == source.tobytes()
    darker = array(alone.tone(source, brightness=1.0, contrast=1.0, gamma=2.0))
    assert np.abs(darker - 255 * (array(source) / 255) ** 2).max() <= 0.5 + 1e-9
    assert array(alone.blur(source, radius=0.05)).std() < array(source).std()


def test_pixelate_shows_blocks_of_one_colour():
    shown = array(alone.pixelate(picture(128, 64), blocks=16))
    for y in range(0, 64, 8):
        for x in range(0, 128, 8):
            block = shown[y:y + 8, x:x + 8].reshape(-1, 3)
            assert (block == block[0]).all()
            mean = array(picture(128, 64))[y:y + 8, x:x + 8].reshape(-1, 3).mean(0)
            assert np.abs(block[0] - mean).max() <= 1


def test_noise_has_the_deviation_it_says():
    grey = Image.new("RGB", (200, 200), (128, 128, 128))
    assert array(alone.noise(grey, deviation=0.1, seed=5)).std() == pytest.approx(25.5, rel=0.02)
    five, six = (alone.noise(grey, deviation=0.1, seed=seed) for seed in (5, 6))
    assert five.tobytes() != six.tobytes()


def test_jpeg_is_pillows():
    file = io.BytesIO()
    picture().save(file, "JPEG", quality=7)
    assert alone.jpeg(picture(), quality=7).tobytes() == Image.open(file).convert("RGB").tobytes()


def test_text_touches_only_its_letters_and_obeys_opacity():
    grey = Image.new("RGB", (200, 100), (100, 100, 100))
    arguments = dict(text=["abc", "de"], font="OpenSans-Light", size=0.2, colour=[255] * 3, x=0.5, y=0.5)
    strong = array(overlay.text(grey, opacity=1.0, **arguments))
    weak = array(overlay.text(grey, opacity=0.4, **arguments))
    assert 0.005 < (strong != 100).mean() < 0.2
    assert strong.max() == 255 and weak.max() == pytest.approx(100 + 0.4 * 155, abs=2)


def test_emoji_lie_inside_and_are_as_tall_as_they_say():
    white = Image.new("RGB", (300, 150), "white")
    for x, y in ((0.0, 0.0), (1.0, 1.0)):
        shown = overlay.emoji(white, emoji=["smileys/smiling_face_with_heart_eyes"], size=[0.4], opacity=1.0,
                              x=[x], y=[y])
        changed = np.argwhere((array(shown) != 255).any(axis=2))
        low, high = changed.min(axis=0), changed.max(axis=0)
        assert 50 <= (high - low + 1).max() <= 60
        edge = low if x == 0 else (149, 299) - high
        assert edge.max() <= 6


@pytest.mark.parametrize("kind", ["solid", "dashed", "dotted"])
def test_stripes_cover_no_more_than_their_width(kind):
    white = Image.new("RGB", (200, 200), "white")
    shown = overlay.stripes(white, width=0.3, density=0.9, degrees=30.0, kind=kind, colour=[0, 0, 0],
                            opacity=0.5)
    covered = array(shown)[..., 0] < 200
    assert 0.02 < covered.mean() < 0.33
    assert array(shown).min() >= 126  # half of the picture shines through


@pytest.mark.parametrize("template", ["mobile", "web"])
def test_screenshot_shows_the_whole_picture(template):
    red = Image.new("RGB", (100, 80), (255, 0, 0))
    shown = array(overlay.screenshot(red, template=template))
    area = ((shown[..., 0] > 240) & (shown[..., 1] < 20) & (shown[..., 2] < 20)).sum()
    assert area == pytest.approx(100 * 80, rel=0.1)


@pytest.mark.parametrize("size, other", [((100, 80), (120, 120)), ((80, 100), (200, 60))])
def test_overlays_cover_the_share_they_say_or_what_fits(size, other):
    red, blue = Image.new("RGB", size, (255, 0, 0)), Image.new("RGB", other, (0, 0, 255))
    for x, y in ((0, 0), (1, 1), (0.3, 0.6)):
        onto = array(overlay.overlay_onto(red, blue, area=0.3, opacity=1.0, x=x, y=y))
        over = array(overlay.overlay_other(red, blue, area=0.3, opacity=1.0, x=x, y=y))
        for shown, inner in ((onto, 0), (over, 2)):
            assert 0.1 < (shown[..., inner] == 255).mean() < 0.31
    assert onto.shape[0] * onto.shape[1] == pytest.approx(size[0] * size[1], rel=0.05)
    red, black = (Image.new("RGB", (100, 100), colour) for colour in ("red", "black"))
    shown = array(overlay.overlay_onto(red, black, area=0.5, opacity=1.0, x=0, y=0))
    assert (shown[..., 0] == 255).mean() == pytest.approx(0.5, abs=0.02)


def test_blend_is_the_weighted_mean():
    one, two = picture(), picture(seed=1)
    mean = 0.7 * array(one) + 0.3 * array(two)
    assert np.abs(array(overlay.blend(one, two, opacity=0.3)) - mean).max() <= 1


@pytest.mark.parametrize("layout, cells", [("row", 2), ("column", 2), ("grid", 4)])
def test_collage_shows_the_picture_untouched_in_its_cell(layout, cells):
    columns = 1 if layout == "column" else 2
    for cell in range(cells):
        sheet = overlay.collage(picture(), picture(50, 90, seed=1), layout=layout, cell=cell, gap=0.05,
                                colour=[0, 0, 0])
        left, top = cell % columns * (96 + 4), cell // columns * (72 + 4)
        assert sheet.crop((left, top, left + 96, top + 72)).tobytes() == picture().tobytes()
        assert sheet.size == (columns * 100 - 4, cells // columns * 76 - 4)


def test_chains_hold_one_edit_a_group_and_end_with_the_scene():
    lengths, families = set(), set()
    for seed in range(400):
        chain = draw_chain(np.random.default_rng(seed))
        groups = [EDITS[family].group for family, _ in chain]
        assert len(set(groups)) == len(groups)
        assert "scene" not in groups[:-1]
        lengths.add(len(chain))
        families |= {family for family, _ in chain}
        assert needs_other(chain) == any(EDITS[family].needs_other for family, _ in chain)
    assert lengths == {1, 2, 3, 4} and families == set(EDITS)


def test_chain_length_and_families_are_obeyed():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        assert len(draw_chain(rng, n=(3, 3))) == 3
        assert [family for family, _ in draw_chain(rng, families=["crop", "pad"])] in (["crop"], ["pad"])


def test_equal_generators_give_equal_pictures():
    for seed in range(25):
        chain, again = (draw_chain(np.random.default_rng(seed)) for _ in range(2))
        assert chain == again
        one = apply_chain(picture(), chain, picture(seed=1))
        two = apply_chain(picture(), json.loads(json.dumps(chain)), picture(seed=1))
        assert one.size == two.size and one.tobytes() == two.tobytes()
        assert min(one.size) >= MIN_SIDE


def test_a_result_that_is_too_small_is_enlarged():
    small = apply_chain(picture(64, 40), [("downscale", {"factor": 0.2})])
    assert min(small.size) == MIN_SIDE and small.width > small.height


def test_mistakes_are_told():
    with pytest.raises(UserError, match="'blend' shows a second picture"):
        apply_chain(picture(), [("blend", {"opacity": 0.3})])
    with pytest.raises(UserError, match="no family 'crup'; expected some of crop, pad"):
        check_families(["crop", "crup"])
    with pytest.raises(UserError, match="none given"):
        check_families([])


@pytest.mark.skipif(find_spec("pylibmagic") is None, reason="pylibmagic has no wheel for this machine")
def test_a_library_from_a_package_serves_where_the_system_has_none():
    code = """
import ctypes, ctypes.util
find, load = ctypes.util.find_library, ctypes.CDLL.__init__
def absent(self, name, *rest, **words):
    if name == "libmagic.so.1":
        raise OSError("not there")
    load(self, name, *rest, **words)
ctypes.util.find_library = lambda name: None if name == "magic" else find(name)
ctypes.CDLL.__init__ = absent
from PIL import Image
from rdcd.augment.edits_picture import augly
print(augly().hflip(Image.new("RGB", (4, 4))).size)
import magic
print(magic.libmagic._name)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("(4, 4)") and "pylibmagic" in result.stdout


def test_a_missing_system_library_is_named_with_its_package(monkeypatch):
    for module in ("augly.image", "pylibmagic"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it now raises ImportError
    with pytest.raises(UserError, match="apt-get install libmagic1"):
        alone.augly.__wrapped__()
