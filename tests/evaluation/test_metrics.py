import numpy as np
import pytest

from rdcd.errors import UserError
from rdcd.evaluation.metrics import Metrics, evaluate_matches, precision_recall, queries_above
from rdcd.retrieval.knn import Matches


def matches(*rows):
    queries, references, scores = zip(*rows, strict=True) if rows else ((), (), ())
    return Matches(np.array(queries, dtype=str), np.array(references, dtype=str),
                   np.array(scores, dtype=np.float32))


def oracle(rows, pairs):
    """docs/method.md §6 word by word, one row at a time; also returns the curve."""
    truth, ordered = set(pairs), sorted(rows, key=lambda row: (-row[2], (row[0], row[1]) in set(pairs)))
    hits, last_recall, uap, best, threshold, curve = 0, 0.0, 0.0, 0.0, None, []
    for i, (query, reference, score) in enumerate(ordered, start=1):
        hits += (query, reference) in truth
        precision, recall = hits / i, hits / len(pairs)
        uap += (recall - last_recall) * precision
        last_recall = recall
        if precision >= 0.9 and recall > best:
            best, threshold = recall, score
        curve.append((precision, recall, score))
    first = 0
    for query, reference in pairs:
        own = [score for q, r, score in rows if (q, r) == (query, reference)]
        if own and sum(q == query and score >= own[0] for q, _, score in rows) - 1 == 0:
            first += 1
    return Metrics(uap, first / len(pairs), best, threshold), curve


def random_case(seed):
    """Queries with none, one or several positives, pairs that are no candidate, ties, negative scores."""
    rng = np.random.default_rng(seed)
    rows, pairs = [], set()
    quality = rng.choice([0, 0.5, 2])
    for query in range(rng.integers(1, 25)):
        positives = set(rng.choice(40, rng.choice([0, 0, 1, 1, 3]), replace=False).tolist())
        pairs |= {(f"Q{query}", f"R{r}") for r in positives}
        for r in rng.choice(40, rng.integers(0, 12), replace=False).tolist():
            score = rng.normal() - 1 + quality * (r in positives)
            score = round(score * 4) / 4 if seed % 2 else score
            rows.append((f"Q{query}", f"R{r}", float(np.float32(score))))
    pairs.add(("Q0", "R40"))
    return [rows[i] for i in rng.permutation(len(rows))], sorted(pairs)


@pytest.mark.parametrize("seed", range(60))
def test_equals_the_oracle(seed):
    rows, pairs = random_case(seed)
    found, (expected, curve) = evaluate_matches(matches(*rows), pairs), oracle(rows, pairs)
    assert found.uAP == pytest.approx(expected.uAP, abs=1e-9)
    assert found.accuracy_at_1 == pytest.approx(expected.accuracy_at_1, abs=1e-12)
    assert found.recall_at_p90 == pytest.approx(expected.recall_at_p90, abs=1e-12)
    assert found.threshold_at_p90 == expected.threshold_at_p90
    expected_columns = zip(*curve, strict=True) if curve else ((), (), ())
    for column, values in zip(precision_recall(matches(*rows), pairs), expected_columns, strict=True):
        np.testing.assert_allclose(column, values, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_neither_order_of_rows_nor_shift_of_scores_matters(seed):
    rows, pairs = random_case(2 * seed + 1)
    found = evaluate_matches(matches(*rows), pairs)
    assert evaluate_matches(matches(*rows[::-1]), pairs[::-1]) == found
    shifted = evaluate_matches(matches(*((q, r, s - 8) for q, r, s in rows)), pairs)
    assert (shifted.uAP, shifted.accuracy_at_1, shifted.recall_at_p90) == (
        found.uAP, found.accuracy_at_1, found.recall_at_p90)


def test_by_hand():
    rows = [("Q1", "R1", 0.9), ("Q2", "R2", -0.5), ("Q3", "R9", -0.5), ("Q1", "R3", 0.1)]
    pairs = [("Q1", "R1"), ("Q2", "R2"), ("Q4", "R4"), ("Q1", "R3")]
    found = evaluate_matches(matches(*rows), pairs)  # precisions at the positives: 1, 1, 3/4 (the tie counts)
    assert found == Metrics(pytest.approx((1 + 1 + 3 / 4) / 4), 2 / 4, 2 / 4, pytest.approx(0.1))


def test_ties_put_negatives_first():
    pairs = [("Q1", "R1")]
    found = evaluate_matches(matches(("Q1", "R1", 1), ("Q1", "R2", 1)), pairs)
    assert found == Metrics(0.5, 0.0, 0.0, None)
    precision, recall, thresholds = precision_recall(matches(("Q1", "R1", 1), ("Q1", "R2", 1)), pairs)
    assert (precision.tolist(), recall.tolist(), thresholds.tolist()) == ([0, 0.5], [0, 1], [1, 1])


def test_precision_of_exactly_nine_tenths_counts_with_its_highest_threshold():
    rows = [(f"Q{i}", f"R{i}", 20 - i) for i in range(9)] + [("Q0", "R1", 5), ("Q0", "R2", 4)]
    found = evaluate_matches(matches(*rows), [(f"Q{i}", f"R{i}") for i in range(9)])
    assert (found.recall_at_p90, found.threshold_at_p90) == (1.0, 12.0)
    rows = [("Q0", "R1", 30), *rows[:9]]
    found = evaluate_matches(matches(*rows), [(f"Q{i}", f"R{i}") for i in range(9)])
    assert (found.recall_at_p90, found.threshold_at_p90) == (1.0, 12.0)


def test_no_candidates_miss_everything():
    assert evaluate_matches(matches(), [("Q1", "R1")]) == Metrics(0.0, 0.0, 0.0, None)
    assert [len(column) for column in precision_recall(matches(), [("Q1", "R1")])] == [0, 0, 0]


def test_everything_found():
    rows = [("Q1", "R1", -3), ("Q2", "R1", -4)]
    assert evaluate_matches(matches(*rows), [("Q2", "R1"), ("Q1", "R1")]) == Metrics(1.0, 1.0, 1.0, -4.0)


@pytest.mark.parametrize("rows, pairs, message", [
    ([("Q1", "R1", 1)], [], "no pairs; expected at least one query_id,reference_id with a reference"),
    ([("Q1", "R1", 1), ("Q2", "R1", 1), ("Q1", "R1", 0)], [("Q1", "R1")],
     r"candidate Q1,R1 is given twice \(1 such rows"),
    ([("Q1", "R1", 1)], [("Q1", "R2"), ("Q1", "R1"), ("Q1", "R2")], "ground-truth pair Q1,R2 is given twice"),
    ([("Q1", "R1", np.nan), ("Q2", "R1", 1)], [("Q1", "R1")], "1 of 2 scores are NaN or infinite"),
    ([("Q1", "R1", -np.inf)], [("Q1", "R1")], "1 of 1 scores are NaN or infinite"),
])
@pytest.mark.parametrize("measure", [evaluate_matches, precision_recall])
def test_mistakes(rows, pairs, message, measure):
    with pytest.raises(UserError, match=message):
        measure(matches(*rows), pairs)


def test_queries_above_a_threshold_count_those_at_it_once():
    matches = Matches(np.array(["a", "a", "b", "c", "d"]), np.array(["r", "s", "r", "r", "r"]),
                      np.array([0.9, 0.8, 0.5, 0.4999, 0.7], np.float32))
    assert queries_above(matches, ["a", "b", "c", "missing"], 0.5) == 2
    assert queries_above(matches, ["c"], 0.5) == 0 and queries_above(matches, ["a"], None) is None
