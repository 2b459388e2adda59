import numpy as np
import pytest

from rdcd.retrieval import rows as module
from rdcd.retrieval.distinct import Distinct
from rdcd.retrieval.rows import Rows


@pytest.mark.parametrize("seed", range(4))
def test_groups_are_those_of_a_plain_loop(seed, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 7)
    rng = np.random.default_rng(seed)
    vectors = rng.integers(0, 3, (40, 2)).astype(np.float32)
    seen: dict[tuple, int] = {}
    expected = [seen.setdefault(tuple(row), len(seen)) for row in vectors.tolist()]
    found = Distinct.of(Rows([vectors[:11], vectors[11:]]))
    assert found.numbers.tolist() == expected and len(found) == len(seen)
    assert found.first.tolist() == [expected.index(number) for number in range(len(seen))]


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("k", [1, 3, 8, 60])
def test_best_rows_are_those_of_a_plain_loop(seed, k):
    rng = np.random.default_rng(seed)
    groups = Distinct.of(Rows([rng.integers(0, rng.integers(2, 20), (50, 1)).astype(np.float32)]))
    count, depth = len(groups), rng.integers(1, len(groups) + 1)
    found = np.array([rng.permutation(count)[:depth] for _ in range(9)])
    scores = rng.integers(0, 4, found.shape) / 4
    scores[2:4, 1:], found[2:4, 1:] = -np.inf, -1
    scores[5], found[5] = -np.inf, -1
    best_scores, best_rows = groups.best(scores, found, k)
    for i in range(9):
        expected = sorted((-s, row) for s, group in zip(scores[i], found[i]) if group >= 0
                          for row in range(50) if groups.numbers[row] == group)[:k]
        kept = best_rows[i] >= 0
        assert list(zip((-best_scores[i][kept]).tolist(), best_rows[i][kept].tolist())) == expected
        assert np.isneginf(best_scores[i][~kept]).all() and not kept[len(expected):].any()
