"""Equal vectors as one: a graph of nearest neighbours loses what lies behind a thousand equal ones."""

from functools import cached_property
from hashlib import blake2b

import numpy as np

from rdcd.retrieval.rows import Rows


class Distinct:
    """Groups of equal rows, numbered in the order of their first rows.

    Args:
        numbers: int64 [n], the group of each row.
    """

    def __init__(self, numbers: np.ndarray) -> None:
        self.numbers = numbers

    @classmethod
    def of(cls, vectors: Rows) -> "Distinct":
        """Compare vectors by hashes of 128 bits of their bytes; memory holds these."""
        hashes = np.empty((len(vectors), 2), np.uint64)
        for start, block in vectors.blocks():
            whole = b"".join(blake2b(row.data, digest_size=16).digest() for row in np.ascontiguousarray(block))
            hashes[start:start + len(block)] = np.frombuffer(whole, np.uint64).reshape(-1, 2)
        order = np.lexsort(hashes.T)  # stable, so that the first of equal ones is the first row
        new = np.ones(len(order), bool)
        new[1:] = (hashes[order[1:]] != hashes[order[:-1]]).any(axis=1)
        first = order[new]
        numbers = np.empty(len(order), np.int64)
        numbers[order] = np.argsort(np.argsort(first))[np.cumsum(new) - 1]
        return cls(numbers)

    def __len__(self) -> int:
        return len(self.first)

    @cached_property
    def first(self) -> np.ndarray:
        """First row of each group, ascending, int64 [groups]."""
        return np.unique(self.numbers, return_index=True)[1]

    @cached_property
    def _members(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows by group, in order within each; where each group begins; how many it has."""
        counts = np.bincount(self.numbers)
        return np.argsort(self.numbers, kind="stable"), np.cumsum(counts) - counts, counts

    def best(self, scores: np.ndarray, groups: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the k best rows of groups that were found, see `best`: all rows of a group have its score.

        Args:
            scores, groups: float64 and int64 [n, depth], in any order, -inf and -1 for none.
        """
        if len(self) == len(self.numbers):
            return best(scores, groups, k)
        members, starts, counts = self._members
        order = np.argsort(-scores, axis=1, kind="stable")
        scores, groups = np.take_along_axis(scores, order, 1), np.take_along_axis(groups, order, 1)
        taken = np.where(groups < 0, 0, np.minimum(counts[groups], k))
        enough = np.minimum((np.cumsum(taken, axis=1) < k).sum(axis=1), groups.shape[1] - 1)
        taken[scores < np.take_along_axis(scores, enough[:, None], 1)] = 0  # but not what ties with the last
        flat = taken.ravel()
        place = np.arange(flat.sum()) - np.repeat(np.cumsum(flat) - flat, flat)
        rows = members[np.repeat(starts[groups.ravel()], flat) + place]
        scores, query = np.repeat(scores.ravel(), flat), np.repeat(np.arange(len(taken)), taken.sum(axis=1))
        order = np.lexsort((rows, -scores, query))
        rank = np.arange(len(order)) - np.repeat(np.cumsum(taken.sum(axis=1)) - taken.sum(axis=1), taken.sum(axis=1))
        kept = rank < k
        out = np.full((len(taken), k), -np.inf), np.full((len(taken), k), -1, np.int64)
        for whole, values in zip(out, (scores, rows)):
            whole[query[kept], rank[kept]] = values[order][kept]
        return out


def best(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best of rows that were found, best first, equal scores in order of row, [n, min(k, depth)].

    Args:
        scores, rows: float64 and int64 [n, depth], in any order, -inf and -1 for none.
    """
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
