"""Find pictures that are copies of one another: re-encoded, resized, mirrored, slightly cropped or toned.

Two steps on grey 64 x 64 thumbnails. First every pair is compared by the edges of 8 x 8 reductions: the
whole of one picture, and its mirror image, with the whole and five windows of the other. Where that suggests
a copy, the window is moved and sized until the edges at 32 x 32 agree best. Different photographs of one
scene fail the second step, because no window of one lines up with the other.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from PIL import Image

from rdcd.data.progress import track

SIDE = 64
# Among 3.6 million pairs of photographs without copies, bursts of one shop shelf included, 0.01 % are
# candidates and the best agrees to 0.88; re-encoded copies cropped by up to 15 % agree to 0.96 and more.
CANDIDATE, COPY = 0.78, 0.92
_LEAST = 40  # smallest side of a window, so that a copy shows at least 5/8 of the other's width and height
_BLOCK = 2048  # pictures compared at once: matrices of 16 MB
_WINDOWS = ((0, 0, 64, 64), (0, 0, 58, 58), (6, 0, 64, 58), (0, 6, 58, 64), (6, 6, 64, 64), (3, 3, 61, 61))


def thumbnail(picture: Image.Image) -> np.ndarray:
    """Return what pictures are compared by: luma, uint8 [64, 64], aspect not kept."""
    return np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0))


def find_near_duplicates(new: np.ndarray, old: np.ndarray | None = None) -> list[tuple[int, int, float]]:
    """List the copies among pictures, or those of one set in another.

    Args:
        new: thumbnails, uint8 [n, 64, 64].
        old: thumbnails [m, 64, 64] to compare with; None compares `new` with itself.

    Returns:
        Sorted (i, j, agreement): `new[i]` is a copy of `old[j]`, or without `old`, of `new[j]` with j < i.
    """
    alone = old is None
    old = new if alone else old
    if not len(new) or not len(old):
        return []
    windows, wholes = _signatures(new)
    best: dict[tuple[int, int], tuple[float, int, bool, bool]] = {}
    for i, j, *match in _candidates(windows, wholes if alone else _signatures(old)[1]):
        if not alone or i != j:
            pair, swapped = ((i, j), False) if not alone or j < i else ((j, i), True)
            best[pair] = max(best.get(pair, (0.0,)), (*match, swapped))
    if not alone:
        for j, i, *match in _candidates(_signatures(old)[0], wholes):
            best[i, j] = max(best.get((i, j), (0.0,)), (*match, True))
    copies = []
    with track(len(best), "aligning likely near-duplicates", unit="pairs") as advance:
        for (i, j), (_, window, mirrored, swapped) in best.items():
            outer, inner = (old[j], new[i]) if swapped else (new[i], old[j])
            agreement = _align(inner[:, ::-1] if mirrored else inner, outer, _WINDOWS[window])
            if agreement >= COPY:
                copies.append((i, j, round(agreement, 4)))
            advance(1)
    return sorted(copies)


def _reduce(thumbnail: np.ndarray, box: Sequence[float], side: int, how: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(thumbnail).resize((side, side), how, box=tuple(box)), dtype=np.float32)


def _edges(reduced: np.ndarray, *, even: bool) -> np.ndarray:
    """Return the differences of neighbours as unit vectors; `even` takes roots, so that no edge rules."""
    rows = len(reduced)
    steps = np.concatenate([np.diff(reduced, axis=axis).reshape(rows, -1) for axis in (1, 2)], axis=1)
    if even:
        steps = np.sign(steps) * np.sqrt(np.abs(steps))
    return steps / np.maximum(np.linalg.norm(steps, axis=1, keepdims=True), 1e-6)


def _signatures(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges of every window [6, n, 112], and of the whole and its mirror image [2, n, 112]."""
    boxes = [np.stack([_reduce(t, box, 8, Image.Resampling.BOX) for t in thumbnails]) for box in _WINDOWS]
    windows = np.stack([_edges(reduced, even=True) for reduced in boxes])
    return windows, np.stack([windows[0], _edges(boxes[0][:, :, ::-1], even=True)])


def _candidates(windows: np.ndarray, wholes: np.ndarray) -> Iterator[tuple[int, int, float, int, bool]]:
    """Yield (i, j, similarity, window of i, j mirrored) for every likely copy, best window only."""
    blocks = list(product(range(0, windows.shape[1], _BLOCK), range(0, wholes.shape[1], _BLOCK)))
    with track(len(blocks), "comparing pictures", unit="blocks") as advance:
        for start, first in blocks:
            rows, columns = windows[:, start:start + _BLOCK], wholes[:, first:first + _BLOCK]
            top = np.full((rows.shape[1], columns.shape[1]), CANDIDATE, dtype=np.float32)
            which = np.full(top.shape, -1, dtype=np.int8)
            for kind in range(2 * len(_WINDOWS)):
                similarity = rows[kind // 2] @ columns[kind % 2].T
                better = similarity > top
                top[better], which[better] = similarity[better], kind
            for i, j in zip(*np.nonzero(which >= 0)):
                kind = int(which[i, j])
                yield int(start + i), int(first + j), float(top[i, j]), kind // 2, bool(kind % 2)
            advance(1)


def _align(inner: np.ndarray, outer: np.ndarray, window: Sequence[float]) -> float:
    """Return how well `inner` agrees with the window of `outer` that fits it best, near the given one.

    Coordinate ascent on the cosine of the edges: shift or stretch along x or y, halve the step when stuck.
    """
    box, agreement = np.array(window, dtype=float), 0.0
    for side, step, least in ((16, 3.0, 0.7), (32, 1.5, 0.2)):
        target = _fine_edges(inner, _WINDOWS[0], side)
        agreement = float(_fine_edges(outer, box, side) @ target)
        while step > least:
            stuck = True
            for direction in ((1, 0, 1, 0), (0, 1, 0, 1), (1, 0, -1, 0), (0, 1, 0, -1)):
                for signed_step in (step, -step):
                    moved = np.clip(box + np.array(direction) * signed_step, 0, SIDE)
                    if min(moved[2] - moved[0], moved[3] - moved[1]) < _LEAST:
                        continue
                    if (here := float(_fine_edges(outer, moved, side) @ target)) > agreement:
                        box, agreement, stuck = moved, here, False
            step = step / 2 if stuck else step
    return agreement


def _fine_edges(thumbnail: np.ndarray, box: Sequence[float], side: int) -> np.ndarray:
    return _edges(_reduce(thumbnail, box, side, Image.Resampling.BILINEAR)[None], even=False)[0]
