"""The bootstrap: every resample equals the metrics of the data set written out copy by copy."""

import numpy as np
import pytest

from rdcd.errors import UserError
from rdcd.evaluation.bootstrap import Difference, QueryBootstrap, interval, paired_difference
from rdcd.evaluation.metrics import evaluate_matches
from rdcd.evaluation.metrics_copydays import evaluate_copydays
from rdcd.retrieval.knn import Matches

NAMES = ("uAP", "accuracy_at_1", "recall_at_p90")


def as_matches(rows):
    queries, references, scores = zip(*rows, strict=True) if rows else ((), (), ())
    return Matches(np.array(queries, dtype=str), np.array(references, dtype=str),
                   np.array(scores, dtype=np.float32))


def copies(counts, queries):
    """Names of the copies of each query in a resample."""
    return {query: [f"{query}#{j}" for j in range(count)]
            for query, count in zip(sorted(queries), counts.tolist(), strict=True)}


def random_case(seed):
    """Distractor queries, several pairs per query, pairs that are no candidate, ties, queries without rows."""
    rng = np.random.default_rng(seed)
    queries, rows, pairs = [f"Q{i}" for i in range(rng.integers(1, 14))], [], []
    gain = rng.choice([0, 0.5, 2])
    for query in queries:
        positives = rng.choice(20, rng.choice([0, 1, 1, 3]), replace=False).tolist()
        pairs += [(query, f"R{r}") for r in positives]
        for r in rng.choice(20, rng.integers(0, 9), replace=False).tolist():
            score = rng.normal() + gain * (r in positives)
            rows.append((query, f"R{r}", round(score * 3) / 3 if seed % 2 else score))
    rng.shuffle(rows)
    return rows, pairs or [(queries[0], "R0")], rng.permutation(queries).tolist()


@pytest.mark.parametrize("seed", range(40))
def test_pooled_equals_literal_resampling(seed):
    rows, pairs, queries = random_case(seed)
    bootstrap = QueryBootstrap(queries, resamples=12, seed=seed)
    found = bootstrap.pooled(as_matches(rows), pairs)
    assert list(found) == list(NAMES)
    for i, counts in enumerate(bootstrap.counts()):
        copy = copies(counts, queries)
        drawn = [(q, reference) for query, reference in pairs for q in copy[query]]
        if not drawn:
            assert all(np.isnan(found[name][i]) for name in NAMES)
            continue
        literal = evaluate_matches(as_matches([(q, r, s) for query, r, s in rows for q in copy[query]]), drawn)
        for name in NAMES:
            assert found[name][i] == pytest.approx(getattr(literal, name), abs=1e-12)


def copydays_case(seed):
    rng = np.random.default_rng(seed)
    originals = [f"original/{2000 + i}{j:02}" for i in range(3) for j in range(rng.integers(1, 3))]
    queries = originals + [f"{block}/{2000 + i}{j:02}" for i in range(3) for block in ("strong", "crops/10")
                           for j in range(rng.integers(0, 3))] + ["strong/200077"]
    references = originals + [f"distractors/{i}" for i in range(6)]
    rows = []
    for query in queries:
        for reference in rng.choice(references, rng.integers(0, len(references)), replace=False).tolist():
            rows.append((query, reference, -rng.integers(0, 12) / 4 if seed % 2 else -rng.random()))
    rng.shuffle(rows)
    return rows, rng.permutation(queries).tolist(), originals


@pytest.mark.parametrize("seed", range(20))
def test_copydays_equals_literal_resampling(seed):
    rows, queries, originals = copydays_case(seed)
    bootstrap = QueryBootstrap(queries, resamples=12, seed=seed)
    found = bootstrap.copydays(as_matches(rows), originals)
    assert list(found) == ["strong_mAP", "overall_uAP"]
    for i, counts in enumerate(bootstrap.counts()):
        copy = copies(counts, queries)
        drawn = [q for query in queries for q in copy[query]]
        literal = [(q, r, s) for query, r, s in rows for q in copy[query]]
        if not any(q.startswith("strong/") for q in drawn):
            assert np.isnan(found["strong_mAP"][i])
            continue
        expected = evaluate_copydays(as_matches(literal), drawn, originals)
        assert found["strong_mAP"][i] == pytest.approx(expected.strong_mAP, abs=1e-12)
        assert found["overall_uAP"][i] == pytest.approx(expected.overall_uAP, abs=1e-12)


def test_a_resample_without_strong_queries():
    queries = ["strong/200001", "original/200000"]
    bootstrap = QueryBootstrap(queries, resamples=30)
    rows = [(query, "original/200000", -1) for query in queries]
    found = bootstrap.copydays(as_matches(rows), ["original/200000"])
    without = np.array([counts[1] == 0 for counts in bootstrap.counts()])  # "original" sorts before "strong"
    assert 0 < without.sum() < 30
    np.testing.assert_array_equal(np.isnan(found["strong_mAP"]), without)
    np.testing.assert_array_equal(found["overall_uAP"], 1.0)


def test_draws():
    queries = [f"Q{i}" for i in range(50)]
    draws = np.array(list(QueryBootstrap(queries, resamples=400, seed=3).counts()))
    assert draws.shape == (400, 50) and (draws.sum(axis=1) == 50).all() and (draws >= 0).all()
    assert np.abs(draws.mean(axis=0) - 1).max() < 0.25  # standard error 0.05
    assert draws.var() == pytest.approx(1 - 1 / 50, abs=0.05)
    again = QueryBootstrap(queries[::-1], resamples=400, seed=3)
    np.testing.assert_array_equal(draws, list(again.counts()))
    assert (draws != list(QueryBootstrap(queries, resamples=400, seed=4).counts())).any()


@pytest.mark.parametrize("seed", range(4))
def test_neither_order_of_rows_nor_of_queries_matters(seed):
    rows, pairs, queries = random_case(seed + 4)
    found = QueryBootstrap(queries, 50).pooled(as_matches(rows), pairs)
    again = QueryBootstrap(queries[::-1], 50).pooled(as_matches(rows[::-1]), pairs[::-1])
    for name in NAMES:
        np.testing.assert_array_equal(found[name], again[name])
    rows, queries, originals = copydays_case(seed)
    found = QueryBootstrap(queries, 50).copydays(as_matches(rows), originals)
    again = QueryBootstrap(queries[::-1], 50).copydays(as_matches(rows[::-1]), originals[::-1])
    for name, samples in found.items():
        np.testing.assert_array_equal(samples, again[name])


def test_no_candidates():
    found = QueryBootstrap(["Q0", "Q1"], 20).pooled(as_matches([]), [("Q0", "R0"), ("Q1", "R0")])
    assert all((found[name] == 0).all() for name in NAMES)


def test_precision_of_exactly_nine_tenths_counts():
    pairs = [("Q0", f"R{i}") for i in range(9)]
    rows = [("Q0", "X", 1.0), *((*pair, 0.5) for pair in pairs)]
    np.testing.assert_array_equal(QueryBootstrap(["Q0"], 3).pooled(as_matches(rows), pairs)["recall_at_p90"], 1.0)


def simulated(rng, n):
    """Queries of which two thirds have a pair, found first with probability 0.6."""
    rows, pairs = [], []
    for i in range(n):
        hit = rng.random() < 0.6
        if i % 3:
            pairs.append((f"Q{i}", f"R{i}"))
            rows.append((f"Q{i}", f"R{i}", rng.normal() + 1 if hit else -9 + rng.random()))
        rows += [(f"Q{i}", f"X{j}", rng.normal() - 2) for j in range(2)]
        rows.append((f"Q{i}", "Y", -4.0))
    return as_matches(rows), pairs, [f"Q{i}" for i in range(n)]


def test_intervals_cover_the_value_of_many_queries():
    rng = np.random.default_rng(0)
    matches, pairs, _ = simulated(rng, 6000)
    truth = evaluate_matches(matches, pairs)
    covered = dict.fromkeys(NAMES[:2], 0)
    for _ in range(80):
        matches, pairs, queries = simulated(rng, 90)
        samples = QueryBootstrap(queries, resamples=200).pooled(matches, pairs)
        for name in covered:
            low, high = interval(samples[name])
            covered[name] += low <= getattr(truth, name) <= high
    assert all(70 <= times <= 80 for times in covered.values()), covered  # 76 expected


def test_spread_is_the_binomial_one():
    matches = as_matches([(f"Q{i}", f"R{i % 10 < 3}", 1.0) for i in range(400)])
    samples = QueryBootstrap([f"Q{i}" for i in range(400)], 2000).pooled(
        matches, [(f"Q{i}", "RTrue") for i in range(400)])
    assert samples["accuracy_at_1"].mean() == pytest.approx(0.3, abs=0.003)
    assert samples["accuracy_at_1"].std() == pytest.approx(np.sqrt(0.3 * 0.7 / 400), rel=0.05)


def test_interval():
    samples = np.append(np.random.default_rng(0).permutation(np.arange(101.0)), np.nan)
    assert interval(samples, 0.9) == (pytest.approx(5), pytest.approx(95))
    assert interval(samples) == (pytest.approx(2.5), pytest.approx(97.5))
    assert interval(samples, 1) == (0, 100)


def test_paired_difference():
    rng = np.random.default_rng(2)
    matches, pairs, queries = simulated(rng, 90)
    better = Matches(matches.queries, matches.references,
                     matches.scores + np.isin(matches.references, [r for _, r in pairs]).astype(np.float32))
    bootstrap = QueryBootstrap(queries, 300)
    first, second = bootstrap.pooled(better, pairs)["uAP"], bootstrap.pooled(matches, pairs)["uAP"]
    points = evaluate_matches(better, pairs).uAP, evaluate_matches(matches, pairs).uAP
    found = paired_difference(*points, first, second)
    assert found.difference == points[0] - points[1]
    assert (found.low, found.high) == pytest.approx(np.quantile(first - second, (0.025, 0.975)), abs=1e-12)
    assert 0 < found.low < found.difference < found.high
    width = np.diff(interval(first))[0]
    assert found.high - found.low < width / 2  # unpaired, it would be wider than either
    assert paired_difference(points[0], points[0], first, bootstrap.pooled(better, pairs)["uAP"]) == Difference(0, 0, 0)


@pytest.mark.parametrize("rows, pairs, message", [
    ([("Q9", "R1", 1)], [("Q1", "R1")], "1 query ids of the candidates are not among the 2 queries .*: Q9"),
    ([], [("Q1", "R1"), ("Q8", "R1")], "1 query ids of the ground truth are not among the 2 queries .*: Q8"),
    ([], [], "the ground truth has no pairs"),
    ([("Q1", "R1", 1), ("Q1", "R1", 0)], [("Q1", "R1")], "candidate Q1,R1 is given twice"),
    ([("Q1", "R1", np.inf)], [("Q1", "R1")], "1 of 1 scores are NaN or infinite"),
])
def test_mistakes_in_the_data(rows, pairs, message):
    with pytest.raises(UserError, match=message):
        QueryBootstrap(["Q1", "Q2"]).pooled(as_matches(rows), pairs)


@pytest.mark.parametrize("call, message", [
    (lambda: QueryBootstrap([]), "no queries to resample"),
    (lambda: QueryBootstrap(["Q1", "Q2", "Q1"]), "query ids given more than once: Q1;"),
    (lambda: QueryBootstrap(["Q1"], resamples=0), "resamples=0: expected a whole number of at least 1"),
    (lambda: QueryBootstrap(["Q1"], seed=-1), "seed=-1: expected a whole number of at least 0"),
    (lambda: interval(np.ones(3), 95), "level=95: expected a number above 0 and at most 1"),
    (lambda: interval(np.full(3, np.nan)), "no resample has a value"),
    (lambda: paired_difference(1, 1, np.ones(3), np.ones(4)), "3 and 4 resamples: expected those of one bootstrap"),
    (lambda: QueryBootstrap(["strong/200001"]).copydays(as_matches([]), ["original/200100"]), "have no original"),
])
def test_mistakes(call, message):
    with pytest.raises(UserError, match=message):
        call()
