"""The short way of making views against the plain one, of the same drawn steps."""

import io
import math

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from rdcd.augment import assets, fast, on_device, recipes, steps
from rdcd.augment.colours import reencoded
from rdcd.data.encoded import Encoded
from rdcd.data.images import open_image
from rdcd.data.synthetic import draw_picture
from rdcd.errors import BadImage

SIDE = 64
BUILDERS = (recipes.advanced, recipes.strong_blur, recipes.simclr)
PICTURES = [draw_picture(seed, size=224).resize((224, 200)) for seed in range(6)]


def encoded(picture: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **({"quality": 95} if kind == "JPEG" else {}), **options)
    return file.getvalue()


def plainly(picture: Image.Image, drawn: list[steps.Step]) -> np.ndarray:
    for step in drawn:
        picture = step.apply(picture)
    return np.array(picture)


def shortly(picture: Image.Image, drawn: list[steps.Step]) -> np.ndarray:
    return fast.views(lambda reduction: np.array(picture), *picture.size, [drawn])[0]


def statistics(view: np.ndarray) -> np.ndarray:
    """Mean, spread and percentiles of each channel, and the spread of detail."""
    values = view.reshape(-1, 3).astype(float)
    detail = cv2.Laplacian(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY).astype(np.float32), cv2.CV_32F).std()
    return np.concatenate([values.mean(0), values.std(0), *np.percentile(values, (10, 50, 90), axis=0), [detail]])


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other).mean())


@pytest.mark.parametrize("builder", BUILDERS)
def test_drawn_steps_are_those_of_the_plain_call(builder) -> None:
    recipe = builder(SIDE)
    for seed in range(60):
        picture = PICTURES[seed % 6]
        drawn = recipe.draw(*picture.size, np.random.default_rng(seed))
        assert np.array_equal(plainly(picture, drawn), np.array(recipe(picture, np.random.default_rng(seed))))


@pytest.mark.parametrize("before", [
    [], [steps.Mirrored()], *([steps.QuarterTurned(k)] for k in (1, 2, 3)),
    [steps.Mirrored(), steps.QuarterTurned(1)], [steps.QuarterTurned(3), steps.Mirrored()],
    [steps.Mirrored(), steps.Mirrored(), steps.QuarterTurned(2), steps.QuarterTurned(3)],
    [steps.QuarterTurned(1), steps.QuarterTurned(3)]])
@pytest.mark.parametrize("shape", [(200, 130), (130, 200), (150, 150), (201, 130), (130, 203), (137, 101)])
def test_turns_and_crops_are_exact_but_for_rounding(before, shape) -> None:
    picture, between = PICTURES[0].crop((0, 0, *shape)), sum(shape) % 2  # pixels of the frame lie between those turned
    boxes = [(x, y, x + SIDE, y + SIDE) for x, y in ((5, 9), (shape[0] - SIDE, shape[1] - SIDE), (30, 20))]
    resized = [(3, 7, 125, 99), (0, 0, *shape), (30, 40, 70, 69), (0, 60, 20, 90)]
    for box in (*boxes, *resized):
        drawn = [*before, steps.Resized(box, SIDE)]
        apart = np.abs(shortly(picture, drawn).astype(int) - plainly(picture, drawn)).max(axis=-1)
        if before[:1] == [steps.Mirrored()] and between:  # Pillow counts one of two opposite edges as inside
            assert (apart > 2).mean() <= 4 / SIDE
        else:
            assert apart.max() <= (box not in boxes) + between


@pytest.mark.parametrize("shape", [(400, 60), (60, 401)])
def test_of_a_long_picture_a_turned_view_may_be_all_black(shape) -> None:
    picture = PICTURES[0].resize(shape)
    drawn = [steps.QuarterTurned(1), steps.Resized((0, 0, 50, 50), SIDE)]
    assert not plainly(picture, drawn).any() and not shortly(picture, drawn).any()


def test_jpeg_is_exact() -> None:
    view = PICTURES[1].resize((SIDE, SIDE))
    for quality in (0, 1, 17, 50, 75, 99, 100):
        assert np.array_equal(reencoded(np.array(view), quality), np.array(steps.Reencoded(quality).apply(view)))


def text() -> steps.Text:
    face = assets.typefaces()[0]
    return steps.Text(face, 60, face.characters[:4], (250, 10, 30), 255, (0, 0), (35, 60, 185, 130))


CROP = steps.Resized((30, 20, 190, 170), SIDE)
EMOJI = steps.Emoji(assets.emoji_files()[10], 90, 0.9, (60, 50))
CASES = {  # steps, largest mean distance from the plain pixels; leaving the step out is at least twice as far
    "crop": ([CROP], 0.5), "text": ([text(), CROP], 1.0), "emoji": ([steps.Mirrored(), EMOJI, CROP], 1.0),
    "emoji, turn": ([steps.QuarterTurned(3), EMOJI, CROP], 1.0),
    "turn, rotation": ([steps.QuarterTurned(1), steps.Rotated(31), CROP], 4.0),
    "rotation": ([steps.Rotated(31), CROP], 4.0),
    "emoji, rotation": ([EMOJI, steps.Rotated(200), CROP], 4.0),
    **{name: ([CROP, steps.Jittered(((name, value),))], bound) for name, value, bound in (
        ("brightness", 1.5, 0.6), ("contrast", 0.4, 0.6), ("saturation", 1.7, 0.8), ("hue", 0.15, 2.0))},
    "grey": ([CROP, steps.Grey()], 0.6), "blur 1": ([CROP, steps.Blurred(1.0)], 0.8),
    "blur 4": ([CROP, steps.Blurred(4.0)], 1.2), "jpeg": ([CROP, steps.Reencoded(5)], 1.0),
    "colours in order": ([CROP, steps.Jittered((("contrast", 1.7), ("brightness", 0.5), ("hue", -0.1),
                                                ("saturation", 0.3)))], 1.5),
}


@pytest.mark.parametrize("name", CASES)
def test_each_step_makes_nearly_the_plain_pixels(name: str) -> None:
    drawn, bound = CASES[name]
    far = [distance(shortly(picture, drawn), plainly(picture, drawn)) for picture in PICTURES]
    assert max(far) < bound
    for left_out in range(len(drawn)):
        rest = [step for i, step in enumerate(drawn) if i != left_out or step is CROP]
        if len(rest) < len(drawn):
            assert np.mean([distance(plainly(p, rest), plainly(p, drawn)) for p in PICTURES]) > 2 * np.mean(far)


def test_order_of_colours_is_kept() -> None:
    changes = (("contrast", 1.8), ("brightness", 0.4), ("saturation", 1.8))
    there, back = ([CROP, steps.Jittered(order)] for order in (changes, changes[::-1]))
    for picture in PICTURES:
        assert distance(shortly(picture, there), plainly(picture, there)) < 1
    assert np.mean([distance(shortly(p, there), plainly(p, back)) for p in PICTURES]) > 2


@pytest.mark.parametrize("builder", BUILDERS)
def test_views_have_the_plain_statistics(builder) -> None:
    recipe, pairs = builder(SIDE), []
    for seed in range(150):
        source = encoded(PICTURES[seed % 6])
        picture = Encoded(source)
        drawn = [recipe.draw(picture.width, picture.height, np.random.default_rng((seed, view))) for view in (0, 1)]
        made = fast.views(picture.pixels, picture.width, picture.height, drawn)
        pairs += [(own, np.array(recipe(open_image(source), np.random.default_rng((seed, view)))))
                  for view, own in enumerate(made)]

    def shift(change=lambda view: view) -> tuple[float, float]:
        """Return how far views are from the plain ones, and how far their statistics are on average."""
        changed = [np.ascontiguousarray(change(own)) for own, _ in pairs]
        means = [np.array([statistics(view) for view in views]).mean(0) for views in (changed, [p for _, p in pairs])]
        return float(np.mean([distance(own, p) for own, (_, p) in zip(changed, pairs, strict=True)])), float(
            np.abs(means[0] - means[1]).max())

    apart, statistic = shift()
    assert apart < 2 and statistic < 0.7
    # it would notice: a view a pixel off, blurred a little more, somewhat brighter, of exchanged colours
    assert shift(lambda view: np.roll(view, 1, axis=1))[0] > 2
    assert shift(lambda view: cv2.GaussianBlur(view, (3, 3), 0.6))[1] > 0.7
    assert shift(lambda view: cv2.add(view, np.full_like(view, 2)))[1] > 0.7
    assert shift(lambda view: view[..., ::-1])[0] > 2


def test_reduced_decoding_is_no_finer_than_views_need_and_keeps_detail() -> None:
    picture = draw_picture(7, size=800).resize((800, 800))
    asked, whole = [], Encoded(encoded(picture))

    def decode(reduction: int) -> np.ndarray:
        asked.append(reduction)
        return whole.pixels(reduction)

    boxes = [(0, 0, 800, 800), (11, 20, 11 + 5 * SIDE, 20 + 5 * SIDE), (3, 3, 3 + SIDE, 3 + SIDE)]
    for count, reduction in ((1, 8), (2, 4), (3, 1)):
        drawn = [[steps.Resized(box, SIDE)] for box in boxes[:count]]
        views = fast.views(decode, 800, 800, drawn)
        assert asked[-1] == reduction
        for view, some, box in zip(views, drawn, boxes, strict=False):
            plain = plainly(whole.picture(), some)
            halvings = halvings_of(box) if reduction == 1 else 0  # else it is the decoder that reduces
            assert distance(view, plain) < (6 if reduction > 1 else 2 if halvings else 0.5)
            if reduction == 1:  # what is done is that, but for rounding
                small = whole.picture().crop(box).reduce(2**halvings).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
                assert distance(view, np.array(small)) < 0.8
            assert statistics(view)[-1] == pytest.approx(statistics(plain)[-1], rel=0.15)
    assert len(asked) == 3  # once for all views


def halvings_of(box: tuple[int, int, int, int]) -> int:
    """How often a square box is halved before it is resized to SIDE."""
    return max(0, math.floor(math.log2((box[2] - box[0]) / SIDE / fast.SPARE)))


def test_orientation_is_honoured_at_any_scale() -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        source = encoded(PICTURES[0].resize((400, 240)), exif=exif)
        picture = Encoded(source)
        upright = open_image(source)
        assert (picture.width, picture.height) == upright.size
        lying = Image.fromarray(Encoded(encoded(PICTURES[0].resize((400, 240)))).pixels())
        lying.getexif()[0x0112] = orientation
        assert np.array_equal(picture.pixels(), np.array(ImageOps.exif_transpose(lying)))
        assert distance(picture.pixels(), np.array(upright)) < 1.5  # a JPEG's coarse colours are not interpolated
        half = upright.resize((upright.width // 2, upright.height // 2), Image.Resampling.BOX)
        assert distance(picture.pixels(2), np.array(half)) < 3


def test_orientation_in_xmp_alone_is_honoured() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">' \
          b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    data = encoded(PICTURES[0].resize((300, 200)))
    segment = b"http://ns.adobe.com/xap/1.0/\0" + xmp
    data = data[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + data[2:]
    upright = open_image(data)
    assert upright.size == (200, 300)
    assert distance(Encoded(data).pixels(), np.array(upright)) < 1.5


def test_what_looks_like_a_marker_within_a_segment_is_none() -> None:
    data = encoded(PICTURES[0], comment=b"\xff\xc2 Exif\0 \xff\xda")
    assert distance(Encoded(data).pixels(), np.array(open_image(data))) < 1.5
    for cut in range(2, 700):  # of whatever is left of the header, no reader falls over
        try:
            Encoded(data[:cut])
        except BadImage:
            continue


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (5, 900)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_odd_pictures_become_views(builder, shape, kind) -> None:
    picture = Image.new("RGBA", shape, (10, 200, 30, 100)) if kind == "PNG" else Image.new("L", shape, 90)
    source, recipe = Encoded(encoded(picture, kind)), builder(24)
    for seed in range(25):
        drawn = recipe.draw(source.width, source.height, np.random.default_rng(seed))
        view = fast.views(source.pixels, source.width, source.height, [drawn])[0]
        assert view.shape == (24, 24, 3) and view.dtype == np.uint8


def test_steps_in_another_order_are_taken_plainly() -> None:
    drawn = [steps.Rotated(20), EMOJI, CROP]
    assert fast.plan(drawn, 224, 224) is None
    assert np.array_equal(shortly(PICTURES[0], drawn), plainly(PICTURES[0], drawn))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("builder", BUILDERS)
def test_edits_on_the_device_are_those_of_the_workers(builder, device: str) -> None:
    recipe, whole, left, rows = builder(SIDE), [], [], []
    for seed in range(200):
        picture = PICTURES[seed % 6]
        drawn = recipe.draw(*picture.size, np.random.default_rng(seed))
        first, row = on_device.split(drawn)
        whole.append(shortly(picture, drawn))
        left.append(shortly(picture, first))
        rows.append(row)
        if any(isinstance(step, steps.Reencoded) for step in drawn):
            assert first == drawn and not row.any()  # JPEG comes last, and is the workers'
    with torch.autocast(device, torch.bfloat16):  # as in a training of mixed precision
        made = on_device.edited(torch.from_numpy(np.stack(left)).permute(0, 3, 1, 2).to(device), torch.stack(rows))
    assert made.dtype == torch.uint8 and made.device.type == device
    made = made.permute(0, 2, 3, 1).cpu().numpy()
    apart = np.mean([distance(*pair) for pair in zip(made, whole, strict=True)])
    means = [np.array([statistics(np.ascontiguousarray(view)) for view in views]).mean(0) for views in (made, whole)]
    assert apart < 1.5 and np.abs(means[0] - means[1]).max() < 0.7
    assert np.mean([distance(*pair) for pair in zip(left, whole, strict=True)]) > 10


@pytest.mark.parametrize(("how", "said"), [
    ({"path": "quick"}, "augment.path='quick'"), ({"device": "tpu"}, "augment.device='tpu'"),
    ({"path": "plain", "device": "cpu"}, "augment.device=cpu, augment.path=plain")])
def test_ways_that_are_none_are_refused(how, said) -> None:
    from rdcd.errors import UserError

    with pytest.raises(UserError, match=said):
        recipes.simclr(16, **how)


def test_a_view_leaves_the_pixels_of_the_next_alone() -> None:
    pixels = np.array(PICTURES[0].resize((SIDE, SIDE)))
    whole, emoji = steps.Resized((0, 0, SIDE, SIDE), SIDE), steps.Emoji(assets.emoji_files()[10], 30, 1.0, (5, 5))
    first, second = fast.views(lambda reduction: pixels, SIDE, SIDE, [[emoji, whole], [whole]])
    assert np.array_equal(second, np.array(PICTURES[0].resize((SIDE, SIDE)))) and not np.array_equal(first, second)
