"""How far the metrics would move with other queries: the bootstrap over queries (Efron 1979)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rdcd.errors import UserError, check_number
from rdcd.evaluation.metrics import PRECISION, label_rows
from rdcd.evaluation.metrics_copydays import label_copydays, trapezoids
from rdcd.retrieval.descriptors import some
from rdcd.retrieval.knn import Matches


class QueryBootstrap:
    """Resamples of a benchmark's queries, as many as it has, with replacement; the same ones for every model.

    Every drawn copy of a query is a query of its own, with the query's candidates and pairs. References and
    the model stay as they are: the spread is that of the choice of queries, taken as independent.

    Args:
        queries: ids of all queries of the benchmark, in any order: also distractors and unreadable ones.
        resamples: number B of resamples.
        seed: of the draws.

    Raises:
        UserError: no queries, one given twice, or a number out of range.
    """

    def __init__(self, queries: Sequence[str], resamples: int = 1000, seed: int = 0) -> None:
        check_number("resamples", resamples, 1)
        check_number("seed", seed, 0)
        self.queries, times = np.unique(np.asarray(queries, dtype=np.str_), return_counts=True)
        if not self.queries.size:
            raise UserError("no queries to resample; expected the ids of all queries of the benchmark")
        if (times > 1).any():
            raise UserError(f"query ids given more than once: {some(self.queries[times > 1])}; expected each once")
        self.resamples, self.seed = resamples, seed

    def counts(self) -> Iterator[np.ndarray]:
        """Yield, for each resample, how often it holds each of the sorted queries: int64 [n], drawn anew each time."""
        draw, n = np.random.default_rng(self.seed), len(self.queries)
        for _ in range(self.resamples):
            yield np.bincount(draw.integers(n, size=n), minlength=n)

    def pooled(self, matches: Matches, pairs: Sequence[tuple[str, str]]) -> dict[str, np.ndarray]:
        """Return `uAP`, `accuracy_at_1` and `recall_at_p90` of every resample, as `evaluate_matches` defines them.

        Args:
            matches, pairs: as `evaluate_matches`.

        Returns:
            float64 [B] each; NaN for a resample without any pair, where no metric is defined.

        Raises:
            UserError: as `evaluate_matches`, or ids of queries that the bootstrap was not given.
        """
        hit, _ = label_rows(matches, pairs)
        query = self._numbers(matches.queries.tolist(), "candidates")
        pairs_of = self._per_query(self._numbers([name for name, _ in pairs], "ground truth"))
        first = self._first_hits(query, matches.scores, hit)
        areas, firsts, reached, drawn = np.zeros((4, self.resamples))
        for i, (counts, wrong) in enumerate(self._drawn(query, matches.scores, hit)):
            right = np.arange(1, len(wrong) + 1)
            precision = right / (right + wrong)
            areas[i] = precision.sum()
            firsts[i] = counts @ first
            reached[i] = right[precision >= PRECISION].max(initial=0)
            drawn[i] = counts @ pairs_of
        drawn[drawn == 0] = np.nan
        return {"uAP": areas / drawn, "accuracy_at_1": firsts / drawn, "recall_at_p90": reached / drawn}

    def copydays(self, matches: Matches, originals: Sequence[str]) -> dict[str, np.ndarray]:
        """Return `strong_mAP` and `overall_uAP` of every resample, as `evaluate_copydays` defines them.

        Args:
            matches, originals: as `evaluate_copydays`.

        Returns:
            float64 [B] each; strong_mAP is NaN for a resample without any strong query.

        Raises:
            UserError: as `evaluate_copydays`.
        """
        rows = label_copydays(matches, self.queries, originals)
        areas, precisions, strong = np.zeros((3, self.resamples))
        for i, (counts, wrong) in enumerate(self._drawn(rows.query, matches.scores, rows.hit)):
            areas[i] = trapezoids(np.arange(len(wrong)), wrong).sum()
            precisions[i] = counts[rows.strong] @ rows.precisions
            strong[i] = counts[rows.strong].sum()
        strong[strong == 0] = np.nan
        return {"strong_mAP": precisions / strong, "overall_uAP": areas / len(self.queries)}

    def _drawn(self, query: np.ndarray, scores: np.ndarray, hit: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield each resample's counts [n] and, for every drawn copy of a hit, by rank, the wrong rows above it.

        Of equal scores hits come last, so the copies of one hit have the same wrong rows above them: the
        j-th hit in all has rank j + wrong[j], exactly as if every copy were written out.
        """
        order = np.lexsort((hit, -scores))
        query, hit = query[order], hit[order]
        above = np.flatnonzero(hit) - np.arange(hit.sum())
        right, wrong = query[hit], query[~hit][:above.max(initial=0)]
        total = np.zeros(len(wrong) + 1, dtype=np.int64)
        for counts in self.counts():
            np.cumsum(counts[wrong], out=total[1:])
            yield counts, np.repeat(total[above], counts[right])

    def _first_hits(self, query: np.ndarray, scores: np.ndarray, hit: np.ndarray) -> np.ndarray:
        """Whether the one row of highest score of each query is a hit; bool [n], False where it has to share."""
        best = np.full(len(self.queries), -np.inf, dtype=scores.dtype)
        np.maximum.at(best, query, scores)
        top = scores == best[query]
        return (self._per_query(query[top]) == 1) & (self._per_query(query[top & hit]) == 1)

    def _per_query(self, numbers: np.ndarray) -> np.ndarray:
        return np.bincount(numbers, minlength=len(self.queries))

    def _numbers(self, names: Sequence[str], where: str) -> np.ndarray:
        numbers = {name: number for number, name in enumerate(self.queries.tolist())}
        unknown = sorted(set(names) - numbers.keys())
        if unknown:
            raise UserError(f"{len(unknown):,} query ids of the {where} are not among the {len(numbers):,} queries "
                            f"of the bootstrap: {some(unknown)}; expected the ids of all queries of the benchmark")
        return np.array([numbers[name] for name in names], dtype=np.int64)


@dataclass(frozen=True)
class Difference:
    """A metric of one model minus that of another, and the interval of this difference."""

    difference: float
    low: float
    high: float


def interval(samples: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval, the (1 - level) / 2 and (1 + level) / 2 quantiles of the samples.

    Args:
        samples: a metric of every resample, [B]; NaN ones, where the metric is undefined, are left out.
        level: share of the samples inside.

    Raises:
        UserError: a level not within 0 to 1, or no samples that are numbers.
    """
    check_number("level", level, 0, 1, whole=False, above=True)
    samples = np.asarray(samples)[~np.isnan(samples)]
    if not samples.size:
        raise UserError("no resample has a value; expected some that hold ground-truth pairs: take more resamples")
    low, high = np.quantile(samples, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def paired_difference(first: float, second: float, samples_first: np.ndarray, samples_second: np.ndarray,
                      level: float = 0.95) -> Difference:
    """Compare two models on the same resamples, where the luck of the draw mostly cancels.

    Args:
        first, second: the metric of each model on all queries.
        samples_first, samples_second: the same of every resample, [B], from one bootstrap.
        level: as `interval`.

    Raises:
        UserError: numbers of resamples that differ, or as `interval`.
    """
    if np.shape(samples_first) != np.shape(samples_second):
        raise UserError(f"{len(samples_first):,} and {len(samples_second):,} resamples: expected those of one "
                        "bootstrap: give both models the same queries, resamples and seed")
    return Difference(float(first - second), *interval(np.subtract(samples_first, samples_second), level))
