"""From descriptors to scored pairs: the candidates of docs/method.md §5."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rdcd.errors import UserError, check_number
from rdcd.retrieval.descriptors import Descriptors
from rdcd.retrieval.nearest import SPARE, nearest
from rdcd.retrieval.pairs import best_pairs, first_depth
from rdcd.retrieval.rows import Rows

CANDIDATES = ("per_query", "global")


@dataclass(frozen=True)
class Matches:
    """Scored pairs: query ids [m], reference ids [m], float32 scores [m] (higher is more alike)."""

    queries: np.ndarray
    references: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)


def search(query: Descriptors, reference: Descriptors, *, k: int = 10, candidates: str | Sequence[str] = "per_query",
           biases: Sequence[np.ndarray | None] = (None,), label: str | None = None,
           find: Callable[..., tuple[np.ndarray, np.ndarray]] | None = None) -> list[Matches]:
    """Find the candidate pairs (docs/method.md §5), one `Matches` for each rule and way of normalizing scores.

    One search serves them all: a per-query shift does not change a query's own ranking.

    Args:
        query, reference: descriptors of the same length d.
        k: candidates per query.
        candidates: `per_query`, the k nearest references of each query, rows in query order, best
            first; `global`, the best k * n_queries pairs over all queries, best first; or several of these.
        biases: each [n_queries], subtracted from the query's inner products; None for zero.
        label: name of the progress bar; None shows none.
        find: what searches in place of `nearest`, such as `Codec.nearest`; for `per_query` alone.

    Returns:
        of the first rule, a `Matches` per bias; then of the second.

    Raises:
        UserError: k below 1, or an unknown kind of candidates.
    """
    rules = [candidates] if isinstance(candidates, str) else list(candidates)
    for rule in rules:
        check_candidates(rule, k)
    depth = first_depth(k * len(query), len(query), len(reference)) if "global" in rules else k
    vectors = np.asarray(query.vectors)
    scores, rows = (find or nearest)(vectors, reference.vectors, depth, label=label)
    found = []
    for rule in rules:
        if rule == "per_query":
            queries = np.repeat(query.names, rows[:, :k].shape[1])
            references = reference.names[rows[:, :k].ravel()]
            shifted = (scores[:, :k] if bias is None else scores[:, :k] - bias[:, None] for bias in biases)
            found += [Matches(queries, references, s.ravel().astype(np.float32)) for s in shifted]
        else:
            found += [Matches(query.names[q], reference.names[r], s.astype(np.float32)) for q, r, s in best_pairs(
                vectors, reference.vectors, k * len(query), biases=biases, known=(scores, rows), label=label)]
    return found


def search_by_distance(query: Descriptors, reference: Descriptors, *, k: int, label: str | None = None) -> Matches:
    """Find the k references nearest to each query by L2 distance; scores are minus the squared distance.

    Args:
        query, reference: descriptors of the same length d, of any norm.
        k: candidates per query.
        label: name of the progress bar; None shows none.
    """
    queries, references = np.asarray(query.vectors), np.asarray(reference.vectors)
    middle = references.mean(axis=0)  # distances are the same from there, and rounding is of their size
    q, r = queries - middle, references - middle
    lifted = np.column_stack((2 * q, np.full(len(q), -1, np.float32)))  # 2q·r − r·r = q·q − |q − r|²
    depth = min(k + SPARE, len(r))
    _, rows = nearest(lifted, np.column_stack((r, np.einsum("md,md->m", r, r))), depth, label=label)
    rows.sort(axis=1)  # with the stable sort below: equal distances in reference order
    scores = np.empty(rows.shape, np.float64)
    for i, row in enumerate(rows):
        apart = queries[i].astype(np.float64) - references[row]
        scores[i] = -np.einsum("md,md->m", apart, apart)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
    return Matches(np.repeat(query.names, rows.shape[1]), reference.names[rows.ravel()],
                   scores.ravel().astype(np.float32))


def lift_queries(queries: np.ndarray) -> np.ndarray:
    """Return float32 [n, d + 2] whose inner products with lifted references are q·q − |q − r|²."""
    return np.column_stack((2 * queries, np.full((len(queries), 2), -1, np.float32)))


def lift_references(references: np.ndarray | Rows) -> np.ndarray | Rows:
    """Return float32 [m, d + 2] for `lift_queries`: r·r goes into two numbers, so that no digit of it is lost."""
    if isinstance(references, Rows):
        inner = references.transform or (lambda block: block)
        return references.transformed(lambda block: lift_references(inner(block)), references.shape[1] + 2)
    squares = squared_lengths(references)
    high = squares.astype(np.float32)
    return np.column_stack((references, high, (squares - high).astype(np.float32)))


def squared_lengths(vectors: np.ndarray) -> np.ndarray:
    """Squared lengths of float32 [n, d], float64 [n]: each depends on its vector alone."""
    wide = vectors.astype(np.float64)  # first: see `products`
    return np.einsum("nd,nd->n", wide, wide)


def check_candidates(candidates: str, k: int) -> None:
    """Raise UserError unless `candidates` is one of CANDIDATES and `k` a whole number from 1."""
    if candidates not in CANDIDATES:
        raise UserError(f"candidates={candidates}: expected one of {', '.join(CANDIDATES)}")
    check_number("k", k, 1)
