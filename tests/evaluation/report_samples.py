"""Random matches and hostile names that the tests of the report share."""

import numpy as np

from rdcd.evaluation.cases import ModelResult
from rdcd.evaluation.metrics import evaluate_matches
from rdcd.evaluation.score import ScoreRow
from rdcd.retrieval.knn import Matches

HOSTILE = 'Q"><script>alert(1)</script>&amp;$x^{$\u202e\udcff'


def make_matches(rng, *, queries=30, references=60, k=6, ties=False):
    """Random candidates of which about half the queries' true references are in, in shuffled order."""
    pairs = [(f"Q{i}", f"R{i}") for i in range(0, queries, 2)]
    pairs += [("Q0", "R50"), ("Q2", "R51")]  # two true references each
    rows = []
    for i in range(queries):
        found = set(rng.choice(references, k, replace=False).tolist())
        if rng.random() < 0.7:
            found.add(i)
        true = i if i % 2 == 0 else None
        rows += [(f"Q{i}", f"R{r}", rng.normal(0.8 if r == true else 0.2, 0.2)) for r in sorted(found)]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    scores = np.array([row[2] for row in rows], dtype=np.float32)
    return Matches(queries=np.array([row[0] for row in rows]), references=np.array([row[1] for row in rows]),
                   scores=np.round(scores, 1) if ties else scores), pairs


def make_result(matches, pairs, *, name="student", norms=(None, "1.0[0,2]"), codec="Flat"):
    metrics = evaluate_matches(matches, pairs)
    rows = [ScoreRow(codec=codec, score_norm=norm, candidates="per_query", metrics=metrics, matches=matches)
            for norm in norms]
    return ModelResult(name, {"architecture": "efficientnet_b0", "dims": "256"}, rows)
