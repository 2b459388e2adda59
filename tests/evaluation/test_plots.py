"""Figures: thinned without a lie, log axes where they help, PNGs from odd input."""

import numpy as np
import pytest
from PIL import Image
from report_samples import HOSTILE, make_matches, make_result

from rdcd.evaluation import plots
from rdcd.evaluation.metrics import precision_recall
from rdcd.retrieval.knn import Matches


def test_precision_recall_points_are_thinned_and_keep_p90():
    rng = np.random.default_rng(6)
    n = 4000
    names = np.array([str(i) for i in range(n)])
    scores = rng.normal(size=n).astype(np.float32)
    matches = Matches(queries=names, references=names, scores=scores)
    pairs = [(str(i), str(i)) for i in range(n) if rng.random() < 1 / (1 + np.exp(-4 * scores[i]))]
    result = make_result(matches, pairs)
    recall, precision = plots.pr_points(result, pairs)
    assert len(recall) <= plots.MAX_POINTS + 1 < len(pairs)
    assert np.all(np.diff(recall) > 0) and recall[-1] == 1.0
    assert recall[precision >= 0.9].max() == result.headline.metrics.recall_at_p90
    every_precision, every_recall, _ = precision_recall(matches, pairs)
    assert set(zip(recall, precision)) <= set(zip(every_recall, every_precision))


def test_thin_out_equals_loop_of_means():
    rng = np.random.default_rng(7)
    x, y = np.arange(1003.0), rng.normal(size=1003)
    y[[3, 500]] = np.nan
    y[4] = np.inf
    y[700:710] = np.nan  # at least one whole bucket without a value
    order = rng.permutation(1003)
    thin_x, thin_y = plots.thin_out(x[order], y[order])
    edges = [int(i * 1003 / plots.MAX_POINTS) for i in range(plots.MAX_POINTS)] + [1003]
    for i, (a, b) in enumerate(zip(edges[:-1], edges[1:])):
        finite = [v for v in y[a:b] if np.isfinite(v)]
        assert thin_x[i] == pytest.approx(np.mean(x[a:b]))
        assert np.isnan(thin_y[i]) if not finite else thin_y[i] == pytest.approx(np.mean(finite))
    assert np.isnan(thin_y).any()
    assert plots.thin_out([1, 0], [5.0, float("inf")])[1].tolist()[1] == 5.0


def test_log_axis_only_where_it_helps():
    ramp = np.linspace(0, 1, 100)
    assert plots.wants_log([10 * np.exp(-9 * ramp)])
    assert plots.wants_log([np.full(5, 10.0), np.full(5, 0.01)])
    assert not plots.wants_log([3 - ramp])
    assert not plots.wants_log([np.append(10 * np.exp(-9 * ramp), 0.0)])
    assert not plots.wants_log([]) and not plots.wants_log([np.array([np.nan])])
    assert not plots.wants_log([0.5 + 0.5 * np.cos(3.1 * ramp)])  # a cosine schedule that ends near zero


def test_pngs_are_written_even_from_odd_input(tmp_path):
    matches, pairs = make_matches(np.random.default_rng(1))
    odd = {HOSTILE: {"_hidden": ([0], [1.0]), HOSTILE: ([0, 1], [float("nan"), float("inf")])},
           "empty": {"nothing": ([], [])}, "none": {},
           "fourth": {"x": (range(2000), np.geomspace(1, 1e-5, 2000))}}
    plots.plot_curves(tmp_path / "new" / "curves.png", odd)
    plots.plot_curves(tmp_path / "no_curves.png", {})
    plots.plot_precision_recall(tmp_path / "pr.png", [make_result(matches, pairs, name=HOSTILE)] * 7, pairs)
    for file in (tmp_path / "new" / "curves.png", tmp_path / "no_curves.png", tmp_path / "pr.png"):
        with Image.open(file) as picture:
            assert picture.format == "PNG" and min(picture.size) > 100
    assert not list(tmp_path.glob(".*"))
