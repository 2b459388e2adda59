import numpy as np
import pytest

from rdcd.errors import UserError
from rdcd.retrieval import knn, pairs, rows
from rdcd.retrieval import nearest as nearest_module
from rdcd.retrieval.descriptors import Descriptors
from rdcd.retrieval.knn import best_pairs, nearest, search, search_by_distance


def product(a, b):
    """Inner product in float64, one term after the other."""
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def nearest_oracle(queries, references, k):
    """For each query, all references sorted by (-score, row), cut at k."""
    return [sorted((-product(q, r), row) for row, r in enumerate(references))[:k] for q in queries]


def best_oracle(queries, references, count, bias):
    """All pairs sorted by (-score, query row, reference row), cut at count."""
    return sorted((bias[i] - product(q, r), i, j) for i, q in enumerate(queries)
                  for j, r in enumerate(references))[:count]


def vectors(rng, n, d, *, grid):
    """On a small grid products are exact and ties abound; otherwise they are in general position."""
    values = rng.integers(-2, 3, (n, d)) / 4 if grid else rng.normal(size=(n, d))
    return values.astype(np.float32)


def described(prefix, values):
    return Descriptors(np.array([f"{prefix}{i:05d}" for i in range(len(values))]), values)


@pytest.fixture(params=["plain", "small blocks"])
def blocks(request, monkeypatch):
    if request.param == "small blocks":
        monkeypatch.setattr(rows, "BLOCK", 7)
        monkeypatch.setattr(nearest_module, "_PROPOSALS", 100)
        monkeypatch.setattr(nearest_module, "_RESCORED", 5)
        monkeypatch.setattr(pairs, "_PAIRS", 20)


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("n, m, d, k", [(1, 1, 1, 1), (7, 60, 3, 4), (25, 300, 2, 10), (25, 12, 5, 40),
                                        (4, 200, 2, 110)])
def test_nearest_equals_the_oracle_ties_in_reference_order(blocks, grid, n, m, d, k):
    rng = np.random.default_rng(n * m + d + k + grid)
    queries, references = vectors(rng, n, d, grid=grid), vectors(rng, m, d, grid=grid)
    scores, rows = nearest(queries, references, k)
    expected = nearest_oracle(queries, references, k)
    assert rows.tolist() == [[row for _, row in one] for one in expected]
    np.testing.assert_allclose(scores, [[-s for s, _ in one] for one in expected], atol=1e-12)


def test_repeated_references_tie_whatever_blas_rounds():
    rng = np.random.default_rng(3)
    queries, once = vectors(rng, 40, 129, grid=False), vectors(rng, 91, 129, grid=False)
    references = np.concatenate([once] * 25)  # more copies than are fetched at first
    scores, rows = nearest(queries, references, 30)
    assert (scores[:, :25] == scores[:, :1]).all() and (scores[:, 25:] == scores[:, 25:26]).all()
    best = (queries.astype(np.float64) @ once.T.astype(np.float64)).argsort(axis=1)
    for query in range(40):
        assert rows[query, :25].tolist() == [best[query, -1] + 91 * copy for copy in range(25)]
        assert rows[query, 25:].tolist() == [best[query, -2] + 91 * copy for copy in range(5)]


def test_collapsed_descriptors_end_and_keep_the_order():
    same = np.full((9000, 8), 0.3, dtype=np.float32)  # more than one block of references
    scores, rows = nearest(same[:3], same, 5)
    assert (scores == scores[0, 0]).all() and rows.shape == (3, 5)
    ((q, r, scores),) = best_pairs(same[:3], same, 9100)
    assert q.tolist() == [0] * 9000 + [1] * 100 and r.tolist() == [*range(9000), *range(100)]
    assert (scores == scores[0]).all()


@pytest.mark.parametrize("spare", [1024, 2])
@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("n, m, d, count", [(1, 1, 1, 3), (7, 60, 3, 20), (25, 90, 2, 250),
                                            (25, 12, 5, 1000)])
def test_best_pairs_equal_the_oracle(blocks, monkeypatch, spare, grid, n, m, d, count):
    monkeypatch.setattr(pairs, "_ROOM", spare)  # with few spare pairs the running cut is at work
    monkeypatch.setattr(pairs, "_LISTED", spare)  # with few listed, all pairs of a query are looked at
    rng = np.random.default_rng(n * m + d + count + grid)
    queries, references = vectors(rng, n, d, grid=grid), vectors(rng, m, d, grid=grid)
    bias = rng.integers(-3, 4, n) / 8 if grid else rng.normal(size=n)
    found = best_pairs(queries, references, count, biases=[None, bias])
    for shift, (q, r, scores) in zip((np.zeros(n), bias), found, strict=True):
        expected = best_oracle(queries, references, count, shift)
        assert list(zip(q.tolist(), r.tolist(), strict=True)) == [(i, j) for _, i, j in expected]
        np.testing.assert_allclose(scores, [-s for s, _, _ in expected], atol=1e-12)


def test_best_pairs_over_many_blocks_of_references(monkeypatch):
    monkeypatch.setattr(pairs, "_ROOM", 3)
    monkeypatch.setattr(pairs, "_LISTED", 3)
    rng = np.random.default_rng(4)
    queries, references = vectors(rng, 6, 3, grid=True), vectors(rng, 20_000, 3, grid=True)
    ((q, r, scores),) = best_pairs(queries, references, 500)
    everything = queries.astype(np.float64) @ references.T.astype(np.float64)
    order = np.argsort(-everything, axis=None, kind="stable")[:500]
    assert (q * 20_000 + r).tolist() == order.tolist()
    np.testing.assert_array_equal(scores, everything.ravel()[order])


def test_search_names_and_shifts_the_candidates():
    rng = np.random.default_rng(5)
    query = described("Q", vectors(rng, 8, 4, grid=False))
    reference = described("R", vectors(rng, 30, 4, grid=False))
    bias = rng.normal(size=8)
    plain, normalized = search(query, reference, k=5, biases=[None, bias])
    expected = nearest_oracle(query.vectors, reference.vectors, 5)
    rows = [(f"Q{i:05d}", f"R{row:05d}") for i, one in enumerate(expected) for _, row in one]
    for matches, shift in ((plain, np.zeros(8)), (normalized, bias)):
        assert list(zip(matches.queries.tolist(), matches.references.tolist(), strict=True)) == rows
        assert matches.scores.dtype == np.float32 and len(matches) == 40
        values = [-s - shift[i] for i, one in enumerate(expected) for s, _ in one]
        np.testing.assert_allclose(matches.scores, values, atol=1e-6)
    (matches,) = search(query, reference, k=5, candidates="global", biases=[bias])
    expected = best_oracle(query.vectors, reference.vectors, 40, bias)
    assert matches.queries.tolist() == [f"Q{i:05d}" for _, i, _ in expected]
    assert matches.references.tolist() == [f"R{j:05d}" for _, _, j in expected]
    np.testing.assert_allclose(matches.scores, [-s for s, _, _ in expected], atol=1e-6)


def test_per_query_searches_once_for_all_normalizations(monkeypatch):
    rng = np.random.default_rng(6)
    query = described("Q", vectors(rng, 4, 3, grid=False))
    reference = described("R", vectors(rng, 9, 3, grid=False))
    calls = []
    monkeypatch.setattr(knn, "nearest", lambda *a, **k: calls.append(1) or nearest(*a, **k))
    assert len(search(query, reference, k=2, biases=[None, np.ones(4), np.zeros(4)])) == 3
    assert len(calls) == 1


def test_a_long_search_shows_a_bar_on_stderr(monkeypatch, capsys):
    monkeypatch.setattr(rows, "BLOCK", 2)
    rng = np.random.default_rng(7)
    nearest(vectors(rng, 5, 2, grid=False), vectors(rng, 5, 2, grid=False), 1, label="looking")
    said = capsys.readouterr()
    assert said.out == "" and said.err


@pytest.mark.parametrize("options, message", [
    ({"candidates": "best"}, "candidates=best: expected one of per_query, global"),
    ({"k": 0}, "k=0: expected a whole number of at least 1"),
    ({"k": 2.5}, "k=2.5: expected a whole number"),
    ({"k": True}, "k=True"),
])
def test_refuses_other_options(options, message):
    one = described("Q", np.ones((1, 2)))
    with pytest.raises(UserError, match=message):
        search(one, one, **options)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_search_by_distance_equals_the_oracle_wherever_the_vectors_lie(offset):
    rng = np.random.default_rng(0)
    query, reference = (rng.normal(size=(n, 8)) * np.array([5.0] + [1.0] * 7) + offset for n in (9, 40))
    reference[3] = reference[17]  # a tie
    query, reference = query.astype(np.float32), reference.astype(np.float32)
    found = search_by_distance(described("Q", query), described("R", reference), k=6)
    query, reference = query.astype(float), reference.astype(float)
    for i in range(9):
        distances = [sum((a - b) ** 2 for a, b in zip(query[i], r)) for r in reference]
        nearest = sorted(range(40), key=lambda j: (distances[j], j))[:6]
        rows = slice(6 * i, 6 * i + 6)
        assert found.references[rows].tolist() == [described("R", reference).names[j] for j in nearest]
        assert np.allclose(-found.scores[rows], [distances[j] for j in nearest], rtol=1e-6)
