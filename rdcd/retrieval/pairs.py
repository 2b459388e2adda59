"""The best pairs over all queries (candidates `global`), from the nearest of every query."""

from collections.abc import Sequence

import numpy as np

from rdcd.retrieval.nearest import lengths, nearest, products, progress
from rdcd.retrieval.rows import BLOCK, Rows, rows_of

_DEEPER = 4  # times as many of a query's nearest at the next look
_LISTED = 256  # of a query's nearest; beyond, all its pairs are looked at
_ROOM = 1024  # pairs kept beyond those asked for, until all have been seen
_PAIRS = 1 << 24  # scores held at a time where all pairs are looked at


def first_depth(count: int, queries: int, references: int) -> int:
    """Return how many of every query's nearest to ask for first, to settle most of the `count` best pairs."""
    return min(_DEEPER * -(-count // queries), references)


def best_pairs(queries: np.ndarray, references: np.ndarray | Rows, count: int, *,
               biases: Sequence[np.ndarray | None] = (None,), known: tuple[np.ndarray, np.ndarray] | None = None,
               label: str | None = None) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return the `count` best pairs over all queries, for each bias: descending, equal ones in query, reference order.

    The best of every query settle it for most: a pair that is not among them scores at most what their last does.
    Queries whose last is still good enough for the result are searched deeper, and the few that remain, whole.

    Args:
        queries: float32 [n, d].
        references: float32 [m, d].
        count: at most n * m are returned.
        biases: each [n], subtracted from the query's inner products; None for zero.
        known: what `nearest` returns for these, to begin with; None: not searched yet.
        label: name of the progress bar; None shows none.

    Returns:
        int64 query rows, int64 reference rows, float64 scores, each [min(count, n * m)].
    """
    references = rows_of(references)
    shifts = [np.zeros(len(queries)) if bias is None else np.asarray(bias, np.float64) for bias in biases]
    depth = first_depth(count, len(queries), len(references))
    scores, rows = nearest(queries, references, depth, label=label) if known is None else known
    sets = [(np.repeat(np.arange(len(queries)), rows.shape[1]), rows.ravel(), scores.ravel())]
    last, depth, unsettled = scores[:, -1].copy(), rows.shape[1], np.arange(len(queries))
    while depth < len(references):
        pooled = tuple(np.concatenate(column) for column in zip(*sets, strict=True))
        floors = [_floor(pooled[2] - shift[pooled[0]], count) for shift in shifts]
        unsettled = unsettled[np.any([last[unsettled] - shift[unsettled] >= floor
                                      for shift, floor in zip(shifts, floors, strict=True)], axis=0)]
        if not unsettled.size:
            break
        kept = ~np.isin(pooled[0], unsettled)
        sets = [tuple(column[kept] for column in pooled)]
        depth = min(_DEEPER * depth, len(references))
        if depth > _LISTED:
            q, r, s = _above(queries[unsettled], references, [shift[unsettled] for shift in shifts], floors, count,
                             label=label)
            sets.append((unsettled[q], r, s))
            break
        scores, rows = nearest(queries[unsettled], references, depth, label=label)
        sets.append((np.repeat(unsettled, depth), rows.ravel(), scores.ravel()))
        last[unsettled] = scores[:, -1]
    query, row, exact = (np.concatenate(column) for column in zip(*sets, strict=True))
    found = []
    for shift in shifts:
        shifted = exact - shift[query]
        order = np.lexsort((row, query, -shifted))[:count]
        found.append((query[order], row[order], shifted[order]))
    return found


def _floor(scores: np.ndarray, count: int) -> float:
    """The `count`-th largest score, below which no pair is among the best; minus infinity if there are fewer."""
    return -np.inf if len(scores) < count else float(np.partition(scores, -count)[-count])


def _above(queries: np.ndarray, references: Rows, shifts: Sequence[np.ndarray], floors: Sequence[float], count: int, *,
           label: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs that may be among the `count` best for any shift, whatever is known: their query rows, reference rows
    and exact inner products. One product serves all shifts."""
    keep = count + _ROOM  # room for pairs that rounding puts on the wrong side of the cut
    longest = max(lengths(block).max() for _, block in references.blocks())
    rounding = np.finfo(np.float32).eps * queries.shape[1] * longest * lengths(queries).max()
    best = [_Best(keep, floor - 2 * rounding) for floor in floors]
    height = max(1, _PAIRS // BLOCK)
    for start, block in progress(references, label):
        for q in range(0, len(queries), height):
            scores = queries[q:q + height] @ block.T
            for one, shift in zip(best, shifts, strict=True):
                one.add(scores - shift[q:q + height, None].astype(np.float32), q, start, len(references))
    pairs = np.unique(np.concatenate([one.pairs() for one in best]))
    query, row = np.divmod(pairs, len(references))
    exact = np.empty(len(pairs), dtype=np.float64)
    for start, block in references.blocks():
        own = np.flatnonzero((row >= start) & (row < start + len(block)))
        exact[own] = products(queries, block, query[own], row[own] - start)
    return query, row, exact


class _Best:
    """The `keep` best pairs among those added, from `floor` on; of those equal to the last, the lowest numbers."""

    def __init__(self, keep: int, floor: float) -> None:
        self.keep, self.floor = keep, np.float32(floor)
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._held = 0

    def add(self, block: np.ndarray, query: int, reference: int, references: int) -> None:
        """Add the scores of a block of pairs that begins at these rows."""
        row, column = np.nonzero(block >= self.floor)
        self._waiting.append(((row + query) * references + column + reference, block[row, column]))
        self._held += len(row)
        if self._held >= 2 * self.keep:
            self._cut()

    def pairs(self) -> np.ndarray:
        """Return their numbers: query row x number of references + reference row."""
        self._cut()
        return self._waiting[0][0]

    def _cut(self) -> None:
        pairs, scores = (np.concatenate(column) for column in zip(*self._waiting, strict=True))
        if len(scores) > self.keep:
            self.floor = np.partition(scores, -self.keep)[-self.keep]
            above, equal = np.flatnonzero(scores > self.floor), np.flatnonzero(scores == self.floor)
            equal = equal[np.argsort(pairs[equal])][:self.keep - len(above)]
            chosen = np.concatenate((above, equal))
            pairs, scores = pairs[chosen], scores[chosen]
        self._waiting, self._held = [(pairs, scores)], 0
