import numpy as np
import pytest

from rdcd.errors import UserError
from rdcd.evaluation.precisions import (
    SLACK,
    expected_precision,
    precision_rows,
    threshold_curve,
    wilson_low,
)


def matches(seed: int, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many equal ones; higher ones are more often right."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 60, count) / 50
    return scores, rng.random(count) < scores ** 2


def slow_rows(scores: np.ndarray, correct: np.ndarray, pairs: int, precisions: list[float]) -> list[dict]:
    """Every threshold in turn, every precision anew."""
    rows = []
    for wanted in precisions:
        best = None
        for threshold in sorted(set(scores.tolist()), reverse=True):
            right = sum(bool(c) for s, c in zip(scores, correct) if s >= threshold)
            count = sum(s >= threshold for s in scores)
            z, share = 1.959964, right / count
            spread = z * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
            low = (share + z * z / (2 * count) - spread) / (1 + z * z / count)
            if share >= wanted and low >= 1 - SLACK * (1 - wanted):
                best = {"threshold": threshold, "right": right, "wrong": count - right, "recall": right / pairs,
                        "measured": share}
        rows.append(best)
    return rows


def slow_isotonic(scores: np.ndarray, correct: np.ndarray) -> dict[float, float]:
    """Of each score, the highest of the least means of runs of neighbours from it or below to it or above."""
    levels = sorted(set(scores.tolist()))
    right = [float(correct[scores == level].sum()) for level in levels]
    count = [float((scores == level).sum()) for level in levels]
    right[0], count[0], count[-1] = right[0] + 1, count[0] + 1, count[-1] + 1
    return {level: max(min(sum(right[a:b + 1]) / sum(count[a:b + 1]) for b in range(i, len(levels)))
                       for a in range(i + 1)) for i, level in enumerate(levels)}


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_those_of_a_plain_loop(seed: int) -> None:
    scores, correct = matches(seed)
    wanted = [0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99]
    rows = precision_rows(threshold_curve(scores, correct, 250), wanted)
    for row, slow in zip(rows, slow_rows(scores, correct, 250, wanted), strict=True):
        if slow is None:
            assert row["threshold"] is None and row["refused"]
        else:
            assert row["refused"] is None and {key: row[key] for key in slow} == pytest.approx(slow)
    thresholds = [row["threshold"] for row in rows if row["threshold"] is not None]
    assert thresholds == sorted(thresholds) and len(thresholds) > 3


@pytest.mark.parametrize("seed", range(3))
def test_expected_precision_is_isotonic_regression(seed: int) -> None:
    scores, correct = matches(seed)
    starts, values = expected_precision(scores, correct)
    assert (np.diff(starts) > 0).all() and (np.diff(values) > 0).all() and 0 < values[0] and values[-1] < 1
    for level, expected in slow_isotonic(scores, correct).items():
        assert values[np.searchsorted(starts, level, side="right") - 1] == pytest.approx(expected)


def test_few_matches_do_not_tell_a_high_precision() -> None:
    few, many = (threshold_curve(np.linspace(1, 2, count), np.ones(count, bool), count) for count in (20, 2000))
    assert [row["threshold"] for row in precision_rows(few, [0.9, 0.99])] == [1.0, None]
    assert precision_rows(few, [0.99])[0]["refused"] == "20 right and 0 wrong matches are too few to tell 0.99"
    assert [row["threshold"] for row in precision_rows(many, [0.9, 0.99, 0.999])] == [1.0] * 3
    assert expected_precision(np.linspace(1, 2, 20), np.ones(20, bool))[1] == pytest.approx([21 / 22])


def test_a_precision_that_is_not_reached_says_so() -> None:
    rows = precision_rows(threshold_curve(np.array([3.0, 2.0]), np.array([False, True]), 1), [0.5, 0.9])
    assert rows[0]["threshold"] == 2 and rows[0]["recall"] == 1 and rows[1]["refused"] == "no threshold reaches it"
    with pytest.raises(UserError, match="the ground truth has no pairs"):
        threshold_curve(np.ones(1), np.ones(1, bool), 0)


def test_wilson_low_is_where_the_share_seen_lies_at_the_upper_end() -> None:
    hits, trials = np.array([20, 45, 990]), np.array([20, 50, 1000])
    low = wilson_low(hits, trials)
    np.testing.assert_allclose(hits / trials - low, 1.959964 * np.sqrt(low * (1 - low) / trials), atol=1e-12)
    assert wilson_low(np.array([0]), np.array([10]))[0] == pytest.approx(0, abs=1e-12)
