"""The pooled metrics of copy detection (docs/method.md §6; SSCD section 5.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rdcd.errors import UserError
from rdcd.retrieval.knn import Matches

PRECISION = 0.9  # of recall@P90
NO_PAIRS = ("the ground truth has no pairs; expected at least one query_id,reference_id with a reference "
            "(without one a query is a distractor): no metric is defined without")


@dataclass(frozen=True)
class Metrics:
    """Fractions from 0 to 1; `threshold_at_p90` is a score, None where no threshold reaches P90."""

    uAP: float
    accuracy_at_1: float
    recall_at_p90: float
    threshold_at_p90: float | None


def evaluate_matches(matches: Matches, pairs: Sequence[tuple[str, str]]) -> Metrics:
    """Score candidate pairs against the ground truth (docs/method.md §6).

    uAP = sum_i (recall_i - recall_{i-1}) * precision_i over all rows pooled, by descending score, of
    equal ones negatives first. recall@P90 is the largest recall among points of precision >= 0.9, its
    threshold the highest score that reaches it. accuracy@1 is the share of ground-truth pairs whose
    reference scores above all other rows of its query.

    Args:
        matches: candidate pairs, each (query, reference) at most once, in any order.
        pairs: all ground-truth pairs; those that are no candidate count as missed.

    Raises:
        UserError: no pairs, a pair or a candidate given twice, or scores that are not finite.
    """
    positive, query = label_rows(matches, pairs)
    precision, recall, thresholds = _curve(matches.scores, positive, len(pairs))
    at_positive = np.diff(recall, prepend=0.0) > 0
    reached = np.where(precision >= PRECISION, recall, 0.0)
    best = int(reached.argmax()) if len(reached) else 0  # the first of equals: the highest threshold
    found = len(reached) > 0 and reached[best] > 0
    return Metrics(
        uAP=float(precision[at_positive].sum() / len(pairs)),
        accuracy_at_1=float(_first_hits(matches.scores, positive, query) / len(pairs)),
        recall_at_p90=float(reached[best]) if found else 0.0,
        threshold_at_p90=float(thresholds[best]) if found else None,
    )


def queries_above(matches: Matches, queries: Sequence[str], threshold: float | None) -> int | None:
    """Count those of `queries` that have a candidate scored at or above `threshold`; None without a threshold."""
    if threshold is None:
        return None
    return int(np.isin(np.unique(matches.queries[matches.scores >= threshold]), np.asarray(queries, np.str_)).sum())


def precision_recall(matches: Matches,
                     pairs: Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the precision-recall curve, one point per row, by descending score, negatives first.

    Args:
        matches: candidate pairs, each (query, reference) at most once, in any order.
        pairs: all ground-truth pairs.

    Returns:
        precision_i = TP_i / i, recall_i = TP_i / #pairs (float64) and the row's score (float32), each [m].

    Raises:
        UserError: as `evaluate_matches`.
    """
    return _curve(matches.scores, label_rows(matches, pairs)[0], len(pairs))


def label_rows(matches: Matches, pairs: Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """Whether each row is a ground-truth pair, and the number of its query; both [m]."""
    if not len(pairs):
        raise UserError(NO_PAIRS)
    if not np.isfinite(matches.scores).all():
        raise UserError(f"{int((~np.isfinite(matches.scores)).sum())} of {len(matches)} scores are NaN or "
                        "infinite; expected finite scores: check the descriptors")
    truth = np.asarray(pairs, dtype=np.str_)
    rows = len(matches)
    query = np.unique(np.concatenate((matches.queries, truth[:, 0])), return_inverse=True)[1]
    names, reference = np.unique(np.concatenate((matches.references, truth[:, 1])), return_inverse=True)
    key = query.astype(np.int64) * len(names) + reference
    _refuse_twice(key[:rows], matches.queries, matches.references, "candidate")
    _refuse_twice(key[rows:], truth[:, 0], truth[:, 1], "ground-truth pair")
    return np.isin(key[:rows], key[rows:]), query[:rows]


def _refuse_twice(key: np.ndarray, queries: np.ndarray, references: np.ndarray, what: str) -> None:
    order = np.argsort(key, kind="stable")
    again = order[1:][key[order[1:]] == key[order[:-1]]]
    if again.size:
        row = again[0]
        raise UserError(f"{what} {queries[row]},{references[row]} is given twice ({again.size} such rows in "
                        "all); expected each (query, reference) once: remove the repetitions")


def _curve(scores: np.ndarray, positive: np.ndarray, pairs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    order = np.lexsort((positive, -scores))
    hits = np.cumsum(positive[order])
    return hits / np.arange(1, len(hits) + 1), hits / pairs, scores[order]


def _first_hits(scores: np.ndarray, positive: np.ndarray, query: np.ndarray) -> int:
    """Count the positives of rank (#rows of the query with score >= its score) - 1 = 0."""
    order = np.lexsort((-scores, query))
    query, scores, positive = query[order], scores[order], positive[order]
    first = np.diff(query, prepend=-1) != 0
    tied = np.zeros(len(order), dtype=bool)
    tied[:-1] = (query[:-1] == query[1:]) & (scores[:-1] == scores[1:])
    return int((first & ~tied & positive).sum())
