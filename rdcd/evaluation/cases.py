"""What lies behind the numbers: the pairs an evaluation got right and wrong, and by which edit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rdcd.errors import UserError
from rdcd.evaluation.score import ScoreRow
from rdcd.retrieval.knn import Matches

NO_EDIT = "no edit"


@dataclass(frozen=True)
class ModelResult:
    """One model's scores under one protocol.

    Args:
        name: what people call it: "student", "teacher", "student untrained".
        details: facts about the model, as shown: architecture, dims, parameters, weights hash.
        rows: one row per codec and score normalization, at least one.
        headline_codec: the codec of the row quoted for this model; None: any.
    """

    name: str
    details: dict[str, str]
    rows: list[ScoreRow]
    headline_codec: str | None = None

    def __post_init__(self) -> None:
        if not self.rows:
            raise UserError(f"model {self.name!r} has no score rows: expected one per codec and score norm")

    @property
    def headline(self) -> ScoreRow:
        """The row quoted for this model: its codec's last one with score normalization, else its first."""
        rows = [row for row in self.rows if self.headline_codec in (None, row.codec)]
        normalized = [row for row in rows if row.score_norm is not None]
        return normalized[-1] if normalized else rows[0]


def comparable(results: Sequence[ModelResult]) -> list[ModelResult]:
    """Return the results with headlines of one codec, the last that every model has; without one, as they are."""
    shared = [row.codec for row in results[0].rows
              if all(row.codec in {other.codec for other in result.rows} for result in results)]
    return [replace(result, headline_codec=shared[-1]) if shared else result for result in results]


@dataclass(frozen=True)
class Outcome:
    """What became of one (query, reference) pair.

    Args:
        query: the query's name.
        reference: the reference's name.
        score: the pair's score; None if it is not among the candidates.
        rank: (number of the query's rows scored at least as high) − 1, docs/method.md §6; None as for `score`.
        rival: the best-scoring other reference of the query; None if there is no other.
        rival_score: the rival's score.
    """

    query: str
    reference: str
    score: float | None
    rank: int | None
    rival: str | None
    rival_score: float | None


@dataclass(frozen=True)
class FamilyScore:
    """Scores over the queries that carry one family of edits.

    Args:
        family: the family's name.
        queries: number of queries with this edit and at least one true reference.
        accuracy_at_1: share of their pairs with rank 0.
        recall: share of their pairs scored at or above the threshold; None without a threshold.
    """

    family: str
    queries: int
    accuracy_at_1: float
    recall: float | None


def correct_rows(matches: Matches, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Return bool [m]: which rows of `matches` are in the ground truth `pairs`."""
    truth = set(pairs)
    rows = zip(matches.queries.tolist(), matches.references.tolist(), strict=True)
    return np.fromiter((row in truth for row in rows), dtype=bool, count=len(matches))


def best_matches(matches: Matches, pairs: Sequence[tuple[str, str]], n: int) -> list[Outcome]:
    """Return the `n` correct rows of highest score, best first."""
    found = np.flatnonzero(correct_rows(matches, pairs))
    return pair_outcomes(matches, _names(matches, _by_score(matches, found)[:n]))


def false_alarms(matches: Matches, pairs: Sequence[tuple[str, str]], n: int) -> list[Outcome]:
    """Return the `n` wrong rows of highest score, worst first, at most one per query."""
    wrong = _by_score(matches, np.flatnonzero(~correct_rows(matches, pairs)))
    _, first = np.unique(matches.queries[wrong], return_index=True)
    return pair_outcomes(matches, _names(matches, wrong[np.sort(first)[:n]]))


def misses(outcomes: Sequence[Outcome], n: int) -> list[Outcome]:
    """Return the `n` worst pairs not ranked first: not found ones, then by falling rank.

    Among equals, those whose rival scores highest (the most confident mistakes) come first.
    """
    def badness(outcome: Outcome) -> tuple[float, float]:
        rank = np.inf if outcome.rank is None else outcome.rank
        return rank, -np.inf if outcome.rival_score is None else outcome.rival_score

    return sorted((o for o in outcomes if o.rank != 0), key=badness, reverse=True)[:n]


def pair_outcomes(matches: Matches, pairs: Sequence[tuple[str, str]]) -> list[Outcome]:
    """Return what became of every pair, in the order of `pairs`."""
    rows_of: dict[str, list[int]] = {query: [] for query, _ in pairs}
    for row, query in enumerate(matches.queries.tolist()):
        if query in rows_of:
            rows_of[query].append(row)
    return [_outcome(matches, np.array(rows_of[query], dtype=int), query, reference)
            for query, reference in pairs]


def by_family(outcomes: Sequence[Outcome], families: Mapping[str, Sequence[str]], threshold: float | None,
              ) -> list[FamilyScore]:
    """Break ground-truth pairs down by the edits of their query, hardest family first.

    A query with several families counts in each of them; one with none counts as `NO_EDIT`; one that
    `families` does not know is left out.

    Args:
        outcomes: what became of every ground-truth pair.
        families: query name → names of its edits.
        threshold: the score from which on a pair counts as recalled, or None.
    """
    members: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.query in families:
            for family in set(families[outcome.query]) or {NO_EDIT}:
                members.setdefault(family, []).append(outcome)
    scores = [score_group(family, group, threshold) for family, group in members.items()]
    return sorted(scores, key=lambda s: (s.recall if s.recall is not None else s.accuracy_at_1,
                                         s.accuracy_at_1, s.family))


def score_group(name: str, outcomes: Sequence[Outcome], threshold: float | None) -> FamilyScore:
    """Score a non-empty group of ground-truth pairs."""
    recalled = None if threshold is None else [o.score is not None and o.score >= threshold for o in outcomes]
    return FamilyScore(family=name, queries=len({o.query for o in outcomes}),
                       accuracy_at_1=float(np.mean([o.rank == 0 for o in outcomes])),
                       recall=None if recalled is None else float(np.mean(recalled)))


def _by_score(matches: Matches, rows: np.ndarray) -> np.ndarray:
    return rows[np.argsort(-matches.scores[rows], kind="stable")]


def _names(matches: Matches, rows: np.ndarray) -> list[tuple[str, str]]:
    return list(zip(matches.queries[rows].tolist(), matches.references[rows].tolist(), strict=True))


def _outcome(matches: Matches, rows: np.ndarray, query: str, reference: str) -> Outcome:
    scores = matches.scores[rows]
    this = matches.references[rows] == reference
    score = float(scores[this].max()) if this.any() else None
    rank = None if score is None else int((scores >= score).sum()) - 1
    others = rows[~this]
    best = others[np.argmax(matches.scores[others])] if len(others) else None
    return Outcome(query, reference, score, rank,
                   rival=None if best is None else str(matches.references[best]),
                   rival_score=None if best is None else float(matches.scores[best]))
