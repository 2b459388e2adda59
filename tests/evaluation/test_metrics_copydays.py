"""Copydays' metrics: against loops over the definition, by hand, and the mistakes."""

import numpy as np
import pytest

from rdcd.errors import UserError
from rdcd.evaluation.metrics_copydays import CopydaysMetrics, copydays_pairs, evaluate_copydays
from rdcd.retrieval.knn import Matches


def as_matches(rows):
    queries, references, scores = zip(*rows, strict=True) if rows else ((), (), ())
    return Matches(np.array(queries, dtype=str), np.array(references, dtype=str),
                   np.array(scores, dtype=np.float32))


def is_hit(query, reference):
    return reference.startswith("original/") and query.split("/")[-1][:4] == reference.split("/")[-1][:4]


def slow_ap(rows, positives):
    """Trapezoid average precision of one list, one row at a time."""
    rows = sorted(rows, key=lambda row: (-row[2], is_hit(row[0], row[1])))
    found, area = 0, 0.0
    for rank, (query, reference, _) in enumerate(rows):
        if is_hit(query, reference):
            before = 1.0 if rank == 0 else found / rank
            area += (before + (found + 1) / (rank + 1)) / 2 / positives
            found += 1
    return area


def oracle(rows, queries, originals):
    strong = [query for query in queries if query.startswith("strong/")]
    aps = [slow_ap([row for row in rows if row[0] == query], sum(is_hit(query, name) for name in originals))
           for query in strong]
    return CopydaysMetrics(pytest.approx(sum(aps) / len(strong), abs=1e-12),
                           pytest.approx(slow_ap(rows, len(queries)), abs=1e-12))


def random_case(seed):
    """Small blocks, some prefixes with two originals, ties, queries that found little or nothing."""
    rng = np.random.default_rng(seed)
    originals = [f"original/{2000 + i}{j:02}" for i in range(4) for j in range(rng.integers(1, 3))]
    queries = originals + [f"crops/10/{name[9:]}" for name in originals]
    queries += [f"strong/{2000 + i}{j:02}" for i in range(4) for j in range(rng.integers(0, 3))] + ["strong/200077"]
    references = originals + [f"distractors/{i:04}" for i in range(8)] + ["distractors/200000", "2000/200001"]
    rows = []
    for query in queries:
        for reference in rng.choice(references, rng.integers(0, len(references)), replace=False).tolist():
            score = -rng.random() + rng.choice([0, 0.5]) * is_hit(query, reference)
            rows.append((query, reference, round(score * 4) / 4 if seed % 2 else score))
    rng.shuffle(rows)
    return rows, rng.permutation(queries).tolist(), rng.permutation(originals).tolist()


@pytest.mark.parametrize("seed", range(40))
def test_equals_the_oracle(seed):
    rows, queries, originals = random_case(seed)
    rows = [(query, reference, float(np.float32(score))) for query, reference, score in rows]
    assert evaluate_copydays(as_matches(rows), queries, originals) == oracle(rows, queries, originals)


def test_by_hand():
    originals = ["original/200000", "original/200100"]
    queries = [*originals, "strong/200005", "strong/200105", "strong/200106"]
    rows = [("original/200000", "original/200000", 0.0), ("strong/200005", "original/200000", -1.0),
            ("strong/200105", "distractors/200100", -2.0), ("strong/200105", "original/200100", -3.0)]
    found = evaluate_copydays(as_matches(rows), queries, originals)
    # strong: first 1; second at rank 1 after a distractor (0 + 1/2) / 2; third found nothing
    assert found.strong_mAP == pytest.approx((1 + 1 / 4 + 0) / 3)
    # pooled ranks 0, 1, 3: (1 + 1) / 2, (1 + 1) / 2, (2/3 + 3/4) / 2
    assert found.overall_uAP == pytest.approx((1 + 1 + 17 / 24) / 5)


def test_ties_put_distractors_first():
    queries, originals = ["strong/200001"], ["original/200000"]
    rows = [("strong/200001", "original/200000", -1), ("strong/200001", "distractors/1", -1)]
    assert evaluate_copydays(as_matches(rows), queries, originals) == CopydaysMetrics(0.25, 0.25)


def test_no_candidates_and_everything_found():
    queries, originals = ["strong/200001", "original/200000"], ["original/200000"]
    assert evaluate_copydays(as_matches([]), queries, originals) == CopydaysMetrics(0.0, 0.0)
    rows = [(query, "original/200000", -1) for query in queries]
    assert evaluate_copydays(as_matches(rows), queries, originals) == CopydaysMetrics(1.0, 1.0)


def test_neither_order_nor_shift_matters():
    rows, queries, originals = random_case(1)
    found = evaluate_copydays(as_matches(rows), queries, originals)
    assert evaluate_copydays(as_matches(rows[::-1]), queries[::-1], originals[::-1]) == found
    assert evaluate_copydays(as_matches([(q, r, s - 8) for q, r, s in rows]), np.array(queries), originals) == found


def test_pairs():
    queries = ["strong/200101", "original/200000", "crops/10/200000"]
    originals = ["original/200000", "original/200100", "original/200001"]
    assert copydays_pairs(queries, originals) == [
        ("strong/200101", "original/200100"), ("original/200000", "original/200000"),
        ("original/200000", "original/200001"), ("crops/10/200000", "original/200000"),
        ("crops/10/200000", "original/200001")]


QUERIES, ORIGINALS = ["strong/200001", "original/200000"], ["original/200000"]


@pytest.mark.parametrize("queries, originals, message", [
    ([], ORIGINALS, "no query given"),
    (QUERIES, [], "no original given"),
    (["200001", *QUERIES], ORIGINALS, "1 query ids name no block: 200001; expected the path"),
    (["strong/", *QUERIES], ORIGINALS, "1 query ids name no block: strong/"),
    (QUERIES, ["/200000"], "1 original ids name no block: /200000"),
    (QUERIES, [*ORIGINALS, "strong/200001"], "1 originals are not in the block original/: strong/200001"),
    ([*QUERIES, "strong/200101"], ORIGINALS, "1 queries have no original: strong/200101"),
    ([*QUERIES, "strong/200001"], ORIGINALS, "query ids given more than once: strong/200001"),
    (QUERIES, ORIGINALS * 2, "original ids given more than once: original/200000"),
])
def test_mistakes_in_the_ids(queries, originals, message):
    for measure in (copydays_pairs, lambda *ids: evaluate_copydays(as_matches([]), *ids)):
        with pytest.raises(UserError, match=message):
            measure(queries, originals)


@pytest.mark.parametrize("row, message", [
    (("strong/200002", "original/200000", 0), "1 query ids of the candidates are not among the 2 queries"),
    (("strong/200001", "original/200100", 0), "1 reference ids of the candidates are not among the 1 originals"),
    (("strong/200001", "200000", 0), "1 reference ids name no block: 200000"),
    (("original/200000", "original/200000", 0), "candidate original/200000,original/200000 is given twice"),
    (("strong/200001", "original/200000", np.nan), "1 of 2 scores are NaN or infinite"),
])
def test_mistakes_in_the_rows(row, message):
    rows = [("original/200000", "original/200000", -1), row]
    with pytest.raises(UserError, match=message):
        evaluate_copydays(as_matches(rows), QUERIES, ORIGINALS)


def test_no_strong_query():
    with pytest.raises(UserError, match="none of the 1 queries .original/200000. is in the block strong/"):
        evaluate_copydays(as_matches([]), ["original/200000"], ORIGINALS)
