"""Two models on one benchmark: the paired difference of every metric, against literal resampling."""

from dataclasses import replace

import numpy as np
import pytest
from report_samples import make_matches

from rdcd.evaluation.bootstrap import QueryBootstrap
from rdcd.evaluation.cases import ModelResult
from rdcd.evaluation.differences import differences
from rdcd.evaluation.metrics import evaluate_matches
from rdcd.evaluation.score import ScoreRow


def result(name, seed, bootstrap, *, norms=(None, "1.0[0,2]"), codec="Flat"):
    matches, pairs = make_matches(np.random.default_rng(seed))
    return ModelResult(name, {}, [ScoreRow(codec, norm, "per_query", evaluate_matches(matches, pairs), matches,
                                           bootstrap.pooled(matches, pairs)) for norm in norms])


@pytest.fixture
def bootstrap():
    return QueryBootstrap([f"Q{i}" for i in range(30)], resamples=300)


def test_a_difference_is_of_the_same_resamples(bootstrap):
    first, second = result("a", 0, bootstrap), result("b", 1, bootstrap)
    rows = differences([first, second])
    assert [row["score_norm"] for row in rows] == [None, "1.0[0,2]"]
    row = rows[0]
    assert (row["model"], row["other"], row["codec"]) == ("a", "b", "Flat")
    assert {"accuracy_at_1", "recall_at_p90"} < row.keys()
    assert row["uAP"] == first.rows[0].metrics.uAP - second.rows[0].metrics.uAP
    samples = first.rows[0].samples["uAP"] - second.rows[0].samples["uAP"]
    assert (row["uAP_low"], row["uAP_high"]) == pytest.approx(np.quantile(samples, (0.025, 0.975)))
    assert row["uAP_low"] < row["uAP"] < row["uAP_high"]


def test_a_model_differs_from_itself_by_nothing(bootstrap):
    same = result("a", 0, bootstrap)
    assert {(row["uAP"], row["uAP_low"], row["recall_at_p90_high"])
            for row in differences([same, replace(same, name="b")])} == {(0.0, 0.0, 0.0)}


def test_the_first_is_compared_with_each_in_what_both_have(bootstrap):
    rows = differences([result("a", 0, bootstrap), result("b", 1, bootstrap, norms=[None]),
                        result("c", 2, bootstrap, codec="PCA4,Flat")])
    assert {(row["other"], row["score_norm"]) for row in rows} == {("b", None)}


def test_without_resamples_or_others_there_is_nothing_to_say(bootstrap):
    one = result("a", 0, bootstrap)
    assert differences([one]) == []
    bare = ModelResult("b", {}, [replace(row, samples={}) for row in one.rows])
    assert differences([one, bare]) == []
