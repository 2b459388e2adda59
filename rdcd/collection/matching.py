"""Matches of pictures in an index, block by block, and pairs of copies inside one."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from rdcd.collection.on_disk import same_file
from rdcd.collection.rejected import NONE, Rejected
from rdcd.collection.scoring import Scoring
from rdcd.retrieval.index import Index

BLOCK = 4096  # pictures searched at a time
ITSELF, SAME, IDENTICAL, ALIKE = "itself", "same file", "identical file", "alike"


@dataclass(frozen=True)
class Match:
    """A picture found: path, score, expected precision (None: not known), and what kind of match it is: the very
    same path, another path to the same file on the disk, another file of the same bytes, or a picture that looks
    alike."""

    path: str
    score: float
    confidence: float | None
    kind: str


@dataclass(frozen=True)
class Case:
    """A query and its matches, best first."""

    query: str
    matches: list[Match]
    digest: bytes = b""  # the query's SHA-256


@dataclass(frozen=True)
class Block:
    """Pictures to search for: paths, SHA-256 uint8 [n, 32], coded descriptors float32 [n, d]."""

    paths: list[str]
    digests: np.ndarray
    coded: np.ndarray


def blocks_of(index: Index) -> Iterator[Block]:
    """Yield the pictures of an index."""
    for segment in index.segments:
        paths = segment.paths()
        for start in range(0, len(segment), BLOCK):
            rows = slice(start, min(start + BLOCK, len(segment)))
            yield Block([next(paths) for _ in range(rows.stop - start)], segment.digests[rows], segment.vectors[rows])


def find_matches(blocks: Iterable[Block], index: Index, scoring: Scoring, *, k: int,
                 itself: bool = False, rejected: Rejected = NONE) -> Iterator[Case]:
    """Yield each query with its matches in the index, at most k, from the threshold on; those of the same bytes always.

    Args:
        itself: report a query's own entry in the index, too.
        rejected: pairs that are left out; others take their places.
    """
    for block in blocks:
        products, rows = index.nearest(block.coded, k + (not itself) + rejected.most)
        scores = products - index.biases(block.coded, scoring.norm if len(index) else None)[:, None]
        good = (scores >= scoring.threshold) | _identical(index, block, products, rows)
        good &= ~_rejected(rejected, index, block, rows, good)
        for i, path in enumerate(block.paths):
            confidences = scoring.confidence(scores[i, good[i]])
            found = [_match(index, path, block.digests[i], row, score, confidence) for row, score, confidence in
                     zip(rows[i, good[i]].tolist(), scores[i, good[i]].tolist(), confidences)]
            yield Case(path, [match for match in found if itself or match.kind != ITSELF][:k],
                       block.digests[i].tobytes())


def _identical(index: Index, block: Block, products: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Tell which of each picture's neighbours are files of the same bytes, bool [n, k].

    Normalization may put them below any threshold, of a picture that many others are like. Descriptors are equal then,
    so the bytes of few are compared.
    """
    lengths = np.einsum("nd,nd->n", block.coded, block.coded, dtype=np.float64)
    same = np.isclose(products, lengths[:, None], rtol=1e-2, atol=0)
    for i, j in np.argwhere(same).tolist():
        same[i, j] = index.digest(int(rows[i, j])) == block.digests[i].tobytes()
    return same


def _rejected(rejected: Rejected, index: Index, block: Block, rows: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Tell which of the good neighbours are rejected, bool [n, k]."""
    struck = np.zeros_like(good)
    for i, j in np.argwhere(good).tolist() if rejected else ():
        row = int(rows[i, j])
        struck[i, j] = rejected.pair(block.paths[i], block.digests[i].tobytes(), index.path(row), index.digest(row))
    return struck


def _match(index: Index, query: str, digest: np.ndarray, row: int, score: float, confidence: float | None) -> Match:
    path = index.path(row)
    if path == query:
        kind = ITSELF
    elif index.digest(row) == digest.tobytes():
        kind = SAME if same_file(path, query) else IDENTICAL
    else:
        kind = ALIKE
    return Match(path, score, confidence, kind)


@dataclass(frozen=True)
class Pairs:
    """Pairs of an index's pictures, each once: rows [m] with first < second, scores [m], in order of the rows."""

    first: np.ndarray
    second: np.ndarray
    scores: np.ndarray


def find_pairs(index: Index, scoring: Scoring, *, k: int, rejected: Rejected = NONE) -> Pairs:
    """Find the pairs of copies inside an index, from each picture's k nearest; files of the same bytes always are.

    A pair's score is the lower of the two that its pictures have as each other's query. Beside the descriptors, which
    stay on disk, memory holds one block, 8 bytes a picture, and the pairs found.

    Args:
        rejected: pairs that are left out; others take their places.
    """
    bias = np.zeros(len(index))
    norm = scoring.norm if len(index) > 1 else None
    row = 0
    for block in blocks_of(index) if norm else ():
        bias[row:row + len(block.paths)] = index.biases(block.coded, norm)
        row += len(block.paths)
    parts, row = [], 0
    for block in blocks_of(index):
        products, others = index.nearest(block.coded, k + 1 + rejected.most)
        own = np.broadcast_to(np.arange(row, row + len(products))[:, None], others.shape)
        scores = products - np.maximum(bias[own], bias[others])
        good = ((scores >= scoring.threshold) | _identical(index, block, products, others)) & (own != others)
        left = ~_rejected(rejected, index, block, others, good)
        good &= left & (np.cumsum(left, axis=1) <= k + 1)
        parts.append((np.minimum(own, others)[good], np.maximum(own, others)[good], scores[good]))
        row += len(products)
    if not parts:
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    first, second, scores = (np.concatenate(column) for column in zip(*parts))
    _, once = np.unique(first * np.int64(max(len(index), 1)) + second, return_index=True)
    return Pairs(first[once], second[once], scores[once])
