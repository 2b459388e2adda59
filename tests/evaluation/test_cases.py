"""Cases behind the numbers: each against loops or by hand, and consistent with the metrics."""

import numpy as np
import pytest
from report_samples import make_matches, make_result

from rdcd.errors import UserError
from rdcd.evaluation.cases import (
    NO_EDIT,
    ModelResult,
    best_matches,
    by_family,
    comparable,
    correct_rows,
    false_alarms,
    misses,
    pair_outcomes,
    score_group,
)
from rdcd.evaluation.metrics import evaluate_matches
from rdcd.retrieval.knn import Matches


def slow_outcome(matches, query, reference):
    """Rank and rival of one pair, by loops."""
    rows = zip(matches.queries, matches.references, matches.scores)
    rows = [(r, float(s)) for q, r, s in rows if q == query]
    mine = [s for r, s in rows if r == reference]
    others = sorted((s for r, s in rows if r != reference), reverse=True)
    rank = sum(s >= mine[0] for _, s in rows) - 1 if mine else None
    return (mine[0] if mine else None), rank, (others[0] if others else None)


@pytest.mark.parametrize("ties", [False, True])
def test_outcomes_equal_loops_and_accuracy(ties):
    matches, pairs = make_matches(np.random.default_rng(3), ties=ties)
    outcomes = pair_outcomes(matches, pairs)
    for (query, reference), outcome in zip(pairs, outcomes, strict=True):
        assert (outcome.query, outcome.reference) == (query, reference)
        assert (outcome.score, outcome.rank, outcome.rival_score) == slow_outcome(matches, query, reference)
        assert outcome.rival != reference
    metrics = evaluate_matches(matches, pairs)
    assert np.mean([o.rank == 0 for o in outcomes]) == pytest.approx(metrics.accuracy_at_1)


def test_best_matches_and_false_alarms_equal_loops():
    matches, pairs = make_matches(np.random.default_rng(4))
    rows = zip(matches.scores.tolist(), matches.queries.tolist(), matches.references.tolist())
    rows = sorted(rows, reverse=True)
    right = [(q, r) for _, q, r in rows if (q, r) in pairs]
    wrong, seen = [], set()
    for _, q, r in rows:
        if (q, r) not in pairs and q not in seen:
            seen.add(q)
            wrong.append((q, r))
    assert correct_rows(matches, pairs).sum() == len(right)
    assert [(o.query, o.reference) for o in best_matches(matches, pairs, 5)] == right[:5]
    assert [(o.query, o.reference) for o in best_matches(matches, pairs, 500)] == right
    assert [(o.query, o.reference) for o in false_alarms(matches, pairs, 7)] == wrong[:7]


def test_misses_puts_not_found_before_low_ranks():
    matches = Matches(queries=np.array(list("aaabbbc")), references=np.array(list("xyzxyzw")),
                      scores=np.array([0.9, 0.8, 0.7, 0.9, 0.8, 0.1, 0.5], dtype=np.float32))
    pairs = [("a", "x"), ("b", "y"), ("a", "z"), ("c", "nowhere"), ("d", "x"), ("b", "nowhere")]
    found = misses(pair_outcomes(matches, pairs), 10)
    # b's winner is more confident than c's; d has no candidate at all; then rank 2, then rank 1
    assert [(o.query, o.reference) for o in found] == [
        ("b", "nowhere"), ("c", "nowhere"), ("d", "x"), ("a", "z"), ("b", "y")]
    assert [o.rank for o in found] == [None, None, None, 2, 1]
    assert [o.rival for o in found] == ["x", "w", None, "x", "x"]
    assert len(misses(pair_outcomes(matches, pairs), 2)) == 2


def test_families_by_hand():
    matches = Matches(queries=np.array(["a", "b", "c", "c"]), references=np.array(["x", "y", "q", "z"]),
                      scores=np.array([0.9, 0.4, 0.8, 0.7], dtype=np.float32))
    outcomes = pair_outcomes(matches, [("a", "x"), ("b", "y"), ("c", "z"), ("unrecorded", "x")])
    families = {"a": ["crop"], "b": ["crop", "blur", "blur"], "c": [], "distractor": ["crop"]}
    table = {row.family: row for row in by_family(outcomes, families, 0.5)}
    assert set(table) == {"crop", "blur", NO_EDIT}
    assert (table["crop"].queries, table["crop"].accuracy_at_1, table["crop"].recall) == (2, 1.0, 0.5)
    assert (table["blur"].queries, table["blur"].accuracy_at_1, table["blur"].recall) == (1, 1.0, 0.0)
    assert (table[NO_EDIT].queries, table[NO_EDIT].accuracy_at_1, table[NO_EDIT].recall) == (1, 0.0, 1.0)
    assert [row.family for row in by_family(outcomes, families, 0.5)] == ["blur", "crop", NO_EDIT]
    assert [row.recall for row in by_family(outcomes, families, None)] == [None] * 3


@pytest.mark.parametrize("ties", [False, True])
def test_group_of_all_pairs_equals_metrics(ties):
    matches, pairs = make_matches(np.random.default_rng(5), queries=60, references=120, ties=ties)
    metrics = evaluate_matches(matches, pairs)
    assert metrics.threshold_at_p90 is not None
    group = score_group("all", pair_outcomes(matches, pairs), metrics.threshold_at_p90)
    assert group.recall == pytest.approx(metrics.recall_at_p90)
    assert group.accuracy_at_1 == pytest.approx(metrics.accuracy_at_1)


def test_headline_is_last_normalized_row_else_first():
    matches, pairs = make_matches(np.random.default_rng(0))
    result = make_result(matches, pairs, norms=("1.0[0,2]", "2.0[0,1]", None))
    assert result.headline is result.rows[1]
    plain = make_result(matches, pairs, norms=(None, None))
    assert plain.headline is plain.rows[0]
    with pytest.raises(UserError, match="no score rows"):
        ModelResult("student", {}, [])


def test_headlines_are_of_the_last_codec_that_every_model_has():
    matches, pairs = make_matches(np.random.default_rng(0))

    def result(*codecs):
        rows = [row for codec in codecs for row in make_result(matches, pairs, codec=codec).rows]
        return ModelResult("model", {}, rows)

    several = [result("Flat", "PCA2,Flat", "PCA3,Flat"), result("Flat", "PCA2,Flat"), result("Flat", "PCA2,Flat")]
    assert [(r.headline.codec, r.headline.score_norm) for r in comparable(several)] == [("PCA2,Flat", "1.0[0,2]")] * 3
    assert comparable(several[:1])[0].headline.codec == "PCA3,Flat"
    apart = comparable([result("Flat"), result("PCA2,Flat")])
    assert [r.headline.codec for r in apart] == ["Flat", "PCA2,Flat"]
