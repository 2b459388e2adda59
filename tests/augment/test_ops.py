import io
import pickle
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageFilter
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop
from torchvision.transforms import functional as torchvision

from rdcd.augment import assets, ops, steps
from rdcd.errors import UserError


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def equal(a: Image.Image, b: Image.Image) -> bool:
    return a.mode == b.mode and a.size == b.size and a.tobytes() == b.tobytes()


def changed_box(before: Image.Image, after: Image.Image) -> tuple[int, int, int, int]:
    """The rows and columns that an op touched: left, top, width, height."""
    ys, xs = np.nonzero((np.asarray(before) != np.asarray(after)).any(axis=2))
    return xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1


EVERY_OP = (ops.HorizontalFlip(), ops.QuarterTurn(), ops.Rotate(), ops.OverlayText(), ops.OverlayEmoji(),
            ops.RandomResizedCrop(size=32), ops.SquareResize(size=32), ops.ColorJitter(), ops.Grayscale(),
            ops.GaussianBlur(radius=(1, 5)), ops.JpegReencode())


@pytest.mark.parametrize("op", EVERY_OP, ids=lambda op: type(op).__name__)
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3), (7, 400), (61, 47)])
def test_any_picture_comes_out_rgb_and_the_input_is_left_alone(op, size):
    picture, untouched = noise(*size), noise(*size)
    for seed in range(12):
        result = op(picture, generator(seed))
        assert result.mode == "RGB" and min(result.size) >= 1
        assert equal(result, op(picture, generator(seed)))
    assert equal(picture, untouched)


def test_horizontal_flip_reverses_every_row():
    picture = noise(7, 5)
    flipped = ops.HorizontalFlip()(picture, generator())
    for y in range(5):
        for x in range(7):
            assert flipped.getpixel((x, y)) == picture.getpixel((6 - x, y))


@pytest.mark.parametrize("size", [(7, 5), (8, 4), (4, 8), (6, 5), (5, 5), (1, 4)])
def test_quarter_turns_keep_the_frame_and_are_equally_likely(size):
    picture = noise(*size)
    turned = {picture.rotate(90 * k, resample=Image.Resampling.BILINEAR).tobytes(): k for k in (1, 2, 3)}
    rng = generator()
    results = [ops.QuarterTurn()(picture, rng) for _ in range(3000)]
    assert {result.size for result in results} == {size}
    seen = Counter(turned[result.tobytes()] for result in results)
    assert set(seen) == {1, 2, 3}
    assert all(abs(count - 1000) < 4.5 * (3000 * 2 / 9) ** 0.5 for count in seen.values())


def test_a_quarter_turn_cuts_the_ends_off_and_blackens_the_sides():
    pixels = np.arange(1, 8 * 4 * 3 + 1, dtype=np.uint8).reshape(4, 8, 3)  # no pixel is black
    expected = np.zeros((4, 8, 3), np.uint8)
    expected[:, 2:6] = np.rot90(pixels[:, 2:6])  # the middle square, turned anticlockwise
    assert np.array_equal(np.asarray(steps.QuarterTurned(1).apply(Image.fromarray(pixels))), expected)
    expected[:, 2:6] = np.rot90(pixels[:, 2:6], 3)
    assert np.array_equal(np.asarray(steps.QuarterTurned(3).apply(Image.fromarray(pixels))), expected)
    assert np.array_equal(np.asarray(steps.QuarterTurned(2).apply(Image.fromarray(pixels))), pixels[::-1, ::-1])


def test_rotation_keeps_the_size_and_uses_every_whole_degree():
    picture = noise(31, 17)
    known = {picture.rotate(angle, resample=Image.Resampling.BILINEAR).tobytes(): angle
             for angle in range(360)}
    rng, seen = generator(), set()
    for _ in range(4000):
        result = ops.Rotate()(picture, rng)
        assert result.size == picture.size
        seen.add(known[result.tobytes()])
    assert len(seen) == 360


def test_grayscale_is_the_luma_of_bt601():
    picture = noise(31, 17)
    expected = np.asarray(picture) @ np.array([0.299, 0.587, 0.114])
    gray = np.asarray(ops.Grayscale()(picture, generator())).astype(float)
    assert (gray[..., 0] == gray[..., 1]).all() and (gray[..., 0] == gray[..., 2]).all()
    assert np.abs(gray[..., 0] - expected).max() <= 0.51  # rounded


def test_crop_resizes_its_box_as_torchvision_does():
    picture, crop = noise(90, 60), ops.RandomResizedCrop(size=24)
    for seed in range(30):
        left, top, right, bottom = crop.box(90, 60, generator(seed))
        expected = torchvision.resized_crop(picture, top, left, bottom - top, right - left, [24, 24])
        assert equal(crop(picture, generator(seed)), expected)


def test_crop_boxes_fit_and_spread_over_scale_and_ratio():
    crop, rng = ops.RandomResizedCrop(size=24), generator()
    boxes = np.array([crop.box(800, 600, rng) for _ in range(4000)])
    left, top, right, bottom = boxes.T
    width, height = right - left, bottom - top
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= 800 and bottom.max() <= 600
    assert left.min() == 0 and top.min() == 0 and right.max() == 800 and bottom.max() == 600
    scale, ratio = width * height / (800 * 600), width / height
    assert 0.079 < scale.min() < 0.09 and 0.97 < scale.max() <= 1
    assert 0.745 < ratio.min() < 0.76 and 1.32 < ratio.max() < 1.34
    small = scale < 0.4  # every ratio fits there, so none is rejected: log-uniform, mean 1
    assert abs(np.log(ratio[small]).mean()) < 4.5 * np.log(16 / 9) / 12**0.5 / small.sum() ** 0.5


@pytest.mark.parametrize("size", [(4, 1000), (1000, 4), (1, 500), (500, 1), (3, 90)])
def test_crop_falls_back_to_torchvisions_centre_box(size):
    width, height = size
    top, left, h, w = TorchvisionCrop.get_params(noise(width, height), [0.9, 1.0], [3 / 4, 4 / 3])
    crop = ops.RandomResizedCrop(size=8, scale=(0.9, 1.0))  # no box of this area fits
    assert crop.box(width, height, generator()) == (left, top, left + w, top + h)


def test_jitter_equals_torchvision_for_the_factors_it_drew():
    jitter, picture = ops.ColorJitter(), noise(40, 30)
    oracles = {"brightness": torchvision.adjust_brightness, "contrast": torchvision.adjust_contrast,
               "saturation": torchvision.adjust_saturation, "hue": torchvision.adjust_hue}
    for seed in range(40):
        expected = picture
        for name, value in jitter.sample(generator(seed)):
            expected = oracles[name](expected, value)
        assert equal(jitter(picture, generator(seed)), expected)


def test_jitter_draws_from_the_stated_ranges_in_every_order():
    rng = generator()
    draws = [ops.ColorJitter().sample(rng) for _ in range(3000)]
    orders = Counter(tuple(name for name, _ in draw) for draw in draws)
    assert len(orders) == 24 and all(abs(n - 125) < 4.5 * (125 * 23 / 24) ** 0.5 for n in orders.values())
    for name, low, high in (("brightness", 0.2, 1.8), ("contrast", 0.2, 1.8), ("saturation", 0.2, 1.8),
                            ("hue", -0.2, 0.2)):
        values = np.array([dict(draw)[name] for draw in draws])
        margin = 0.01 * (high - low)
        assert low <= values.min() < low + margin and high - margin < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 4.5 * (high - low) / 12**0.5 / 3000**0.5
    strong = [dict(ops.ColorJitter(brightness=3).sample(rng))["brightness"] for _ in range(500)]
    assert 0 <= min(strong) < 0.1 and 3.9 < max(strong) <= 4


def test_blur_radius_is_uniform_over_its_range():
    picture, op = noise(24, 24), ops.GaussianBlur(radius=(1, 5))
    for seed in range(20):
        radius = generator(seed).uniform(1, 5)
        assert equal(op(picture, generator(seed)), picture.filter(ImageFilter.GaussianBlur(radius)))
    weakest, strongest = (picture.filter(ImageFilter.GaussianBlur(r)) for r in (1, 5))
    spread = [np.asarray(op(picture, generator(seed))).std() for seed in range(300)]
    assert np.asarray(strongest).std() <= min(spread) < max(spread) <= np.asarray(weakest).std()


def test_jpeg_uses_every_quality_from_0_to_100():
    picture, known = noise(16, 16), {}
    for quality in range(101):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        known.setdefault(Image.open(file).tobytes(), set()).add(quality)
    rng, seen = generator(), set()
    for _ in range(2000):
        seen |= known[ops.JpegReencode()(picture, rng).tobytes()]
    assert seen == set(range(101))


@pytest.fixture
def red_emoji(monkeypatch):
    red = Image.new("RGBA", (72, 72), (255, 0, 0, 255))
    monkeypatch.setattr(assets, "read_emoji", lambda path: red)


def test_emoji_is_a_square_wholly_inside_at_any_place(red_emoji):
    white, rng = Image.new("RGB", (200, 100), "white"), generator()
    boxes = [changed_box(white, ops.OverlayEmoji()(white, rng)) for _ in range(1500)]
    left, top, width, height = np.array(boxes).T
    assert (width == height).all() and width.min() == 10 and width.max() == 50  # .1 to .5 of the short side
    assert left.min() == 0 and (left + width).max() == 200 and top.min() == 0 and (top + height).max() == 100
    for place in (left / (200 - width), top / (100 - height)):
        assert abs(place.mean() - 0.5) < 4.5 / 12**0.5 / 1500**0.5


def test_emoji_opacity_mixes_with_the_picture(red_emoji):
    white, rng = Image.new("RGB", (100, 100), "white"), generator()
    greens = [np.asarray(ops.OverlayEmoji()(white, rng))[..., 1].min() for _ in range(300)]
    assert 0 <= min(greens) < 3 and 74 < max(greens) <= 77  # 255 x (1 - opacity), opacity .7 to 1
    faint = ops.OverlayEmoji(size=(0.5, 0.5), opacity=(0.5, 0.5))(white, rng)
    assert sorted(faint.getcolors()) == [(2500, (255, 127, 127)), (7500, (255, 255, 255))]


def test_emoji_keeps_its_transparency(monkeypatch):
    half = Image.new("RGBA", (72, 72))
    half.paste((0, 0, 255, 255), (0, 0, 36, 72))
    monkeypatch.setattr(assets, "read_emoji", lambda path: half)
    picture = noise(72, 72)
    result = np.asarray(ops.OverlayEmoji(size=(1, 1), opacity=(1, 1))(picture, generator()))
    assert (result[:, :36] == (0, 0, 255)).all() and (result[:, 36:] == np.asarray(picture)[:, 36:]).all()


def test_text_lies_inside_and_its_size_opacity_and_colour_vary():
    gray, rng = Image.new("RGB", (300, 200), (128, 128, 128)), generator()
    boxes, strongest, colours = [], [], set()
    for _ in range(400):
        after = ops.OverlayText()(gray, rng)
        left, top, width, height = changed_box(gray, after)
        boxes.append((left, top, left + width, top + height))
        difference = np.asarray(after).astype(int) - 128
        strongest.append(np.abs(difference).max())
        colours.add(tuple(np.sign(difference.reshape(-1, 3)[np.abs(difference).sum(axis=2).argmax()])))
    left, top, right, bottom = np.array(boxes).T
    assert left.min() < 20 and right.max() > 280 and top.min() < 20 and bottom.max() > 180
    assert (right - left).max() > 200 and (right - left).min() < 20
    assert np.median(bottom - top) > 15 and np.percentile(bottom - top, 95) < 90
    assert min(strongest) < 20 and max(strongest) > 110
    assert len(colours) >= 8  # each channel goes either way


def test_text_opacity_bounds_what_is_drawn():
    black, rng = Image.new("RGB", (300, 200)), generator()
    op = ops.OverlayText(opacity=(0.5, 0.5))
    brightest = [np.asarray(op(black, rng)).max() for _ in range(200)]
    assert 120 < max(brightest) <= 128  # random colour, at most 255, at half opacity


def test_text_size_is_a_share_of_the_short_side(monkeypatch):
    pixels = []
    opened = assets.Typeface.at
    monkeypatch.setattr(assets.Typeface, "at", lambda face, n: pixels.append(n) or opened(face, n))
    rng = generator()
    for size in ((900, 200), (200, 900)):
        for _ in range(200):
            ops.OverlayText()(Image.new("RGB", size), rng)
    assert min(pixels) == 20 and max(pixels) == 59


def test_text_that_cannot_fit_leaves_the_picture_unchanged():
    picture = noise(3, 300)
    assert equal(ops.OverlayText(size=(9, 9))(picture, generator()), picture)


def test_every_font_draws_visible_glyphs():
    faces = assets.typefaces()
    assert len(faces) > 300 and len({face.path for face in faces}) == len(faces)
    rng = generator()
    for face in faces:
        font = face.at(32)
        for i in rng.integers(len(face.characters), size=8):
            assert font.getmask(face.characters[i]).getbbox() is not None, (face.path.name, i)


def test_every_emoji_is_visible():
    files = assets.emoji_files()
    assert len(files) > 800
    for path in files[::8]:
        emoji = assets.read_emoji(path)
        assert emoji.mode == "RGBA" and emoji.getchannel("A").getextrema()[1] > 200
    assert assets.read_emoji(files[0]) is assets.read_emoji(files[0])  # decoded once


def test_fonts_without_characters_or_that_do_not_open_are_left_out(tmp_path, monkeypatch):
    folder = tmp_path / "assets" / "fonts"
    folder.mkdir(parents=True)
    good = assets.typefaces()[0]
    for name, characters in (("blank", [10, 13, 32, 160]), ("good", [32, 65, 66]), ("nolist", None)):
        (folder / f"{name}.ttf").write_bytes(good.path.read_bytes())
        if characters:
            (folder / f"{name}.pkl").write_bytes(pickle.dumps(characters))
    (folder / "broken.ttf").write_bytes(b"no font")
    (folder / "broken.pkl").write_bytes((folder / "good.pkl").read_bytes())
    package = SimpleNamespace(submodule_search_locations=[tmp_path])
    monkeypatch.setattr(assets, "find_spec", lambda name: package)
    found = assets.typefaces.__wrapped__()
    assert [(face.path.name, face.characters) for face in found] == [("good.ttf", "AB")]
    (folder / "good.ttf").unlink()
    with pytest.raises(UserError, match="none of its fonts"):
        assets.typefaces.__wrapped__()
    with pytest.raises(UserError, match="twemojis"):
        assets.emoji_files.__wrapped__()


def test_missing_augly_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(assets, "find_spec", lambda name: None)
    for listing in (assets.typefaces, assets.emoji_files):
        with pytest.raises(UserError, match="not installed.*pip install"):
            listing.__wrapped__()
