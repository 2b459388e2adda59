"""Exact inner-product search in bounded memory, with one rule for equal scores.

Equal scores are ordered by reference row (within a query) or by query row, then reference row (over
all queries). BLAS rounds the same product differently by its place in a block, so the block search
only proposes; the proposed pairs' products are then computed again in float64, one pair at a time.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import faiss
import numpy as np
from rich.console import Console
from rich.progress import track

from rdcd.errors import UserError, check_number
from rdcd.retrieval.descriptors import Descriptors

CANDIDATES = ("per_query", "global")
_QUERIES = 4096  # queries searched at a time
_PAIRS = 1 << 22  # scores held at a time by the search over all pairs
_RESCORED = 1 << 14  # pairs scored again at a time
_SPARE = 16  # proposals beyond k
_DEEPEST = 1024  # proposals after which a still undecided tie at the k-th place is left as it is


@dataclass(frozen=True)
class Matches:
    """Scored pairs: query ids [m], reference ids [m], float32 scores [m] (higher is more alike)."""

    queries: np.ndarray
    references: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)


def search(query: Descriptors, reference: Descriptors, *, k: int = 10, candidates: str = "per_query",
           biases: Sequence[np.ndarray | None] = (None,), label: str | None = None) -> list[Matches]:
    """Find the candidate pairs (METHOD section 5), one `Matches` for each way of normalizing scores.

    A per-query shift does not change a query's own ranking, so `per_query` searches only once.

    Args:
        query, reference: descriptors of the same length d.
        k: candidates per query.
        candidates: `per_query`, the k nearest references of each query, rows in query order, best
            first; or `global`, the best k * n_queries pairs over all queries, best first.
        biases: each [n_queries], subtracted from the query's inner products; None for zero.
        label: name of the progress bar; None shows none.

    Raises:
        UserError: k below 1, or an unknown kind of candidates.
    """
    check_candidates(candidates, k)
    if candidates == "per_query":
        scores, rows = nearest(query.vectors, reference.vectors, k, label=label)
        queries = np.repeat(query.names, rows.shape[1])
        references = reference.names[rows.ravel()]
        shifted = (scores if bias is None else scores - bias[:, None] for bias in biases)
        return [Matches(queries, references, s.ravel().astype(np.float32)) for s in shifted]
    found = []
    for bias in biases:
        q, r, scores = best_pairs(query.vectors, reference.vectors, k * len(query), bias=bias, label=label)
        found.append(Matches(query.names[q], reference.names[r], scores.astype(np.float32)))
    return found


def search_by_distance(query: Descriptors, reference: Descriptors, *, k: int, label: str | None = None) -> Matches:
    """Find the k references nearest to each query by L2 distance; scores are minus the squared distance.

    Args:
        query, reference: descriptors of the same length d, of any norm.
        k: candidates per query.
        label: name of the progress bar; None shows none.
    """
    middle = reference.vectors.mean(axis=0)  # distances are the same from there, and rounding is of their size
    q, r = query.vectors - middle, reference.vectors - middle
    lifted = np.column_stack((2 * q, np.full(len(q), -1, np.float32)))  # 2q·r − r·r = q·q − |q − r|²
    depth = min(k + _SPARE, len(r))
    _, rows = nearest(lifted, np.column_stack((r, np.einsum("md,md->m", r, r))), depth, label=label)
    rows.sort(axis=1)  # with the stable sort below: equal distances in reference order
    scores = np.empty(rows.shape, np.float64)
    for i, row in enumerate(rows):
        apart = query.vectors[i].astype(np.float64) - reference.vectors[row]
        scores[i] = -np.einsum("md,md->m", apart, apart)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
    return Matches(np.repeat(query.names, rows.shape[1]), reference.names[rows.ravel()],
                   scores.ravel().astype(np.float32))


def check_candidates(candidates: str, k: int) -> None:
    """Raise UserError unless `candidates` is one of CANDIDATES and `k` a whole number from 1."""
    if candidates not in CANDIDATES:
        raise UserError(f"candidates={candidates}: expected one of {', '.join(CANDIDATES)}")
    check_number("k", k, 1)


def nearest(queries: np.ndarray, references: np.ndarray, k: int, *,
            label: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the k largest inner products of each query, descending; equal ones in reference order.

    Args:
        queries: float32 [n, d].
        references: float32 [m, d].
        k: at most m are returned.
        label: name of the progress bar; None shows none.

    Returns:
        float64 scores and int64 reference rows, each [n, min(k, m)].
    """
    k = min(k, len(references))
    scores = np.empty((len(queries), k), dtype=np.float64)
    rows = np.empty((len(queries), k), dtype=np.int64)
    longest = np.sqrt(np.einsum("md,md->m", references, references).max())
    for start in _progress(range(0, len(queries), _QUERIES), label):
        block = slice(start, start + _QUERIES)
        _nearest_block(queries[block], references, longest, scores[block], rows[block])
    return scores, rows


def _nearest_block(queries: np.ndarray, references: np.ndarray, longest: float,
                   scores: np.ndarray, rows: np.ndarray) -> None:
    """Fill `scores` and `rows` [n, k]; look deeper for queries whose k-th place may still be tied."""
    k = scores.shape[1]
    lengths = np.sqrt(np.einsum("nd,nd->n", queries, queries))
    rounding = np.finfo(np.float32).eps * queries.shape[1] * lengths * longest
    todo, depth = np.arange(len(queries)), k + _SPARE
    while todo.size:
        depth = min(depth, len(references))
        proposed, ids = faiss.knn(queries[todo], references, depth, metric=faiss.METRIC_INNER_PRODUCT)
        ids.sort(axis=1)  # with the stable sort below: equal scores in reference order
        exact = _products(queries, references, np.repeat(todo, depth), ids.ravel()).reshape(ids.shape)
        order = np.argsort(-exact, axis=1, kind="stable")[:, :k]
        scores[todo], rows[todo] = np.take_along_axis(exact, order, 1), np.take_along_axis(ids, order, 1)
        if depth >= min(len(references), _DEEPEST):
            break
        todo = todo[scores[todo, -1] <= proposed[:, -1] + rounding[todo]]
        depth *= 4


def best_pairs(queries: np.ndarray, references: np.ndarray, count: int, *, bias: np.ndarray | None = None,
               label: str | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the `count` best pairs over all queries, descending; equal ones in query, reference order.

    Args:
        queries: float32 [n, d].
        references: float32 [m, d].
        count: at most n * m are returned.
        bias: [n], subtracted from the query's inner products; None for zero.
        label: name of the progress bar; None shows none.

    Returns:
        int64 query rows, int64 reference rows, float64 scores, each [min(count, n * m)].
    """
    bias = np.zeros(len(queries)) if bias is None else bias
    keep = count + _DEEPEST  # room for pairs that rounding puts on the wrong side of the cut
    pairs, scores = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    waiting, held, floor = [], 0, np.float32(-np.inf)
    width = min(len(references), 8192)
    height = _PAIRS // width
    shift = bias.astype(np.float32)[:, None]
    for q in _progress(range(0, len(queries), height), label):
        for r in range(0, len(references), width):
            block = queries[q:q + height] @ references[r:r + width].T - shift[q:q + height]
            if block.max() < floor:
                continue
            row, column = np.nonzero(block >= floor)
            waiting.append(((row + q) * len(references) + column + r, block[row, column]))
            held += len(row)
            if held >= keep:
                pairs, scores = _cut(pairs, scores, waiting, keep)
                waiting, held, floor = [], 0, scores.min()
    pairs, scores = _cut(pairs, scores, waiting, keep)
    row, column = np.divmod(pairs, len(references))
    exact = _products(queries, references, row, column) - bias[row]
    order = np.lexsort((pairs, -exact))[:count]
    return row[order], column[order], exact[order]


def _cut(pairs: np.ndarray, scores: np.ndarray, more: list[tuple[np.ndarray, np.ndarray]],
         keep: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the `keep` best of all the pairs; of those equal to the last, the lowest pair numbers."""
    pairs = np.concatenate([pairs, *(p for p, _ in more)])
    scores = np.concatenate([scores, *(s for _, s in more)])
    if len(scores) <= keep:
        return pairs, scores
    last = np.partition(scores, -keep)[-keep]
    above, equal = np.flatnonzero(scores > last), np.flatnonzero(scores == last)
    equal = equal[np.argsort(pairs[equal])][:keep - len(above)]
    chosen = np.concatenate((above, equal))
    return pairs[chosen], scores[chosen]


def _products(queries: np.ndarray, references: np.ndarray, q: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Inner products of the pairs (q[i], r[i]) of rows, float64: each depends on its two vectors alone."""
    out = np.empty(len(q), dtype=np.float64)
    for start in range(0, len(q), _RESCORED):
        block = slice(start, start + _RESCORED)
        # Cast first: einsum's own casting goes through a buffer that cuts rows at different places.
        left, right = queries[q[block]].astype(np.float64), references[r[block]].astype(np.float64)
        out[block] = np.einsum("md,md->m", left, right)
    return out


def _progress(blocks: range, label: str | None) -> Iterable[int]:
    if label is None or len(blocks) < 2:
        return blocks
    return track(blocks, description=label, console=Console(stderr=True), transient=True)
