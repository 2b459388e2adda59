"""Exact inner-product search in bounded memory, with one rule for equal scores.

Equal scores are ordered by reference row (within a query) or by query row, then reference row (over
all queries). BLAS rounds the same product differently by its place in a block, so the block search
only proposes; the proposed pairs' products are then computed again in float64, one pair at a time.
"""

from collections.abc import Iterable

import faiss
import numpy as np
from rich.console import Console
from rich.progress import track

from rdcd.retrieval.devices import knn
from rdcd.retrieval.rows import Rows, rows_of

_PROPOSALS = 1 << 22  # proposed pairs held at a time
_RESCORED = 1 << 12  # pairs scored again at a time
SPARE = 16  # proposals beyond k
_DEEPEST = 1024  # proposals after which a still undecided tie at the k-th place is left as it is


def nearest(queries: np.ndarray, references: np.ndarray | Rows, k: int, *,
            label: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the k largest inner products of each query, descending; equal ones in reference order.

    Args:
        queries: float32 [n, d].
        references: float32 [m, d]; `Rows` are read twice, a block at a time.
        k: at most m are returned.
        label: name of the progress bar; None shows none.

    Returns:
        float64 scores and int64 reference rows, each [n, min(k, m)].
    """
    references = rows_of(references)
    k = min(k, len(references))
    scores = np.empty((len(queries), k), dtype=np.float64)
    rows = np.empty((len(queries), k), dtype=np.int64)
    todo, depth = np.arange(len(queries)), k + SPARE
    while todo.size:  # again, and deeper, for queries whose k-th place may still be tied
        depth = min(depth, len(references))
        height = max(1, _PROPOSALS // depth)
        tied = []
        for start in range(0, len(todo), height):
            part = todo[start:start + height]
            own = queries if len(part) == len(queries) else queries[part]
            proposed, ids, longest = _proposed(own, references, depth, label=label)
            exact = _rescored(own, references, ids)
            order = np.argsort(-exact, axis=1, kind="stable")[:, :k]  # of ids in order, so equal ones stay so
            scores[part], rows[part] = np.take_along_axis(exact, order, 1), np.take_along_axis(ids, order, 1)
            rounding = np.finfo(np.float32).eps * own.shape[1] * lengths(own) * longest
            tied.append(part[scores[part, -1] <= proposed + rounding])
        if depth >= min(len(references), _DEEPEST):
            break
        todo, depth = np.concatenate(tied), 4 * depth
    return scores, rows


def _proposed(queries: np.ndarray, references: Rows, depth: int, *,
              label: str | None) -> tuple[np.ndarray, np.ndarray, float]:
    """Search block after block: each query's least proposed product [n], the rows of its `depth` best, in order
    [n, depth], and the length of the longest reference."""
    best, longest = faiss.ResultHeap(len(queries), depth, keep_max=True), 0.0
    for start, block in progress(references, label):
        scores, ids = knn(queries, block, min(depth, len(block)))
        best.add_result(scores, ids + start)
        longest = max(longest, lengths(block).max())
    best.finalize()
    best.I.sort(axis=1)
    return best.D[:, -1], best.I, longest


def _rescored(queries: np.ndarray, references: Rows, ids: np.ndarray) -> np.ndarray:
    """Inner products of each query with its rows `ids` [n, depth], float64 [n, depth]."""
    exact = np.empty(ids.shape, dtype=np.float64)
    for start, block in references.blocks():
        query, place = np.nonzero((ids >= start) & (ids < start + len(block)))
        exact[query, place] = products(queries, block, query, ids[query, place] - start)
    return exact


def products(queries: np.ndarray, references: np.ndarray, q: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Inner products of the pairs (q[i], r[i]) of rows, float64: each depends on its two vectors alone."""
    out = np.empty(len(q), dtype=np.float64)
    for start in range(0, len(q), _RESCORED):
        block = slice(start, start + _RESCORED)
        # Cast first: einsum's own casting goes through a buffer that cuts rows at different places.
        left, right = queries[q[block]].astype(np.float64), references[r[block]].astype(np.float64)
        out[block] = np.einsum("md,md->m", left, right)
    return out


def lengths(vectors: np.ndarray) -> np.ndarray:
    """Euclidean lengths [n] of float32 [n, d]."""
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors))


def progress(references: Rows, label: str | None) -> Iterable[tuple[int, np.ndarray]]:
    """Yield the blocks of `references` with a bar on stderr, if it has a name and there are several."""
    if label is None or references.block_count < 2:
        return references.blocks()
    return track(references.blocks(), total=references.block_count, description=label, console=Console(stderr=True),
                 transient=True)
