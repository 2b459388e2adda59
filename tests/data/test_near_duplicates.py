"""Copies are found, look-alikes are not."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from rdcd.data import near_duplicates
from rdcd.data.near_duplicates import SIDE, find_near_duplicates, thumbnail


def scene(seed, width=240, height=180, detail=None):
    """Smooth noise with detail at every scale, as photographs have; `detail` seeds the finer scales."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells in (3, 6, 12, 24, 48):
        if cells == 12 and detail is not None:
            rng = np.random.default_rng(detail)
        grid = (rng.random((cells, cells, 3)) * 255).astype(np.uint8)
        grid = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(grid) / cells**0.7
    total -= total.min()
    return Image.fromarray((255 * total / total.max()).astype(np.uint8))


def encoded(picture, quality):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def thumbnails(*pictures):
    return np.stack([thumbnail(picture) for picture in pictures])


COPIES = {
    "re-encoded": lambda p: encoded(p, 30),
    "half size": lambda p: p.resize((p.width // 2, p.height // 2)),
    "other aspect": lambda p: p.resize((200, 200)),
    "mirrored": ImageOps.mirror,
    "grey": lambda p: p.convert("L").convert("RGB"),
    "toned": lambda p: ImageEnhance.Contrast(ImageEnhance.Brightness(p).enhance(1.2)).enhance(0.85),
    "cropped": lambda p: encoded(p.crop((12, 4, 228, 170)), 60),
    "mirrored and cropped": lambda p: ImageOps.mirror(p).crop((4, 10, 222, 176)),
    "bordered": lambda p: ImageOps.expand(p, 6, "white"),
}


@pytest.mark.parametrize("name", COPIES)
def test_finds_copies_and_nothing_else(name):
    originals = [scene(seed) for seed in range(6)]
    copies = [COPIES[name](picture) for picture in originals]
    found = find_near_duplicates(thumbnails(*copies), thumbnails(*originals))
    assert [(i, j) for i, j, _ in found] == [(i, i) for i in range(6)]
    assert all(near_duplicates.COPY <= agreement <= 1.0001 for _, _, agreement in found)


def test_within_one_set_the_later_is_the_copy():
    pictures = [scene(0), scene(1), ImageOps.mirror(scene(0)), scene(2), encoded(scene(1), 40)]
    assert [(i, j) for i, j, _ in find_near_duplicates(thumbnails(*pictures))] == [(2, 0), (4, 1)]


def test_scenes_that_share_all_but_detail_are_not_copies():
    """Like two shots of one shelf: the first step takes them for candidates, the second refuses."""
    first, like = scene(2), scene(2, detail=9)
    windows, _ = near_duplicates._signatures(thumbnails(first))
    _, wholes = near_duplicates._signatures(thumbnails(like))
    assert list(near_duplicates._candidates(windows, wholes))
    assert find_near_duplicates(thumbnails(like), thumbnails(first)) == []


def test_blocks_do_not_matter(monkeypatch):
    pictures = [change(scene(seed)) for seed, change in enumerate(COPIES.values())]
    both = thumbnails(*[scene(seed) for seed in range(len(pictures))], *pictures)
    whole = find_near_duplicates(both)
    monkeypatch.setattr(near_duplicates, "_BLOCK", 4)
    assert find_near_duplicates(both) == whole and len(whole) == len(pictures)


def test_candidates_against_a_plain_loop():
    one, two = ([scene(seed) for seed in seeds] for seeds in ((0, 1, 2), (3, 0, 4, 1)))
    two[3] = ImageOps.mirror(two[3])
    windows, _ = near_duplicates._signatures(thumbnails(*one))
    _, wholes = near_duplicates._signatures(thumbnails(*two))
    slow = []
    for i in range(3):
        for j in range(4):
            similarity, window, mirrored = max((float(np.dot(windows[w, i], wholes[m, j])), w, m)
                                               for w in range(6) for m in range(2))
            if similarity > near_duplicates.CANDIDATE:
                slow.append((i, j, pytest.approx(similarity, abs=1e-5), window, bool(mirrored)))
    assert list(near_duplicates._candidates(windows, wholes)) == slow and len(slow) >= 2


def test_alignment_finds_the_window_that_a_full_search_finds():
    """Shifts of 0 to 6 of a 58-wide window, exhaustively, in whole pixels."""
    outer = scene(3)
    inner = outer.resize((SIDE * 4, SIDE * 4)).crop((12, 20, 12 + 232, 20 + 232))
    outer, inner = thumbnail(outer), thumbnail(inner)
    target = near_duplicates._fine_edges(inner, (0, 0, 64, 64), 32)
    full = max(float(near_duplicates._fine_edges(outer, (x, y, x + 58, y + 58), 32) @ target)
               for x in range(7) for y in range(7))
    assert near_duplicates._align(inner, outer, (6, 0, 64, 58)) >= full - 0.005


def test_plain_pictures_and_empty_sets_have_no_copies():
    plain = [Image.new("RGB", (90, 60), colour) for colour in ("white", "black", "red")]
    assert find_near_duplicates(thumbnails(*plain)) == []
    empty = np.empty((0, SIDE, SIDE), np.uint8)
    assert find_near_duplicates(empty) == find_near_duplicates(empty, thumbnails(*plain)) == []
    assert find_near_duplicates(thumbnails(*plain), empty) == []
