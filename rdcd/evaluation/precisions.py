"""Which precision and recall a threshold gives, and how sure a match of some score is, from scored matches."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rdcd.errors import UserError
from rdcd.evaluation.metrics import NO_PAIRS

PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
SLACK = 3  # a precision stands if, with 97.5 % confidence, no more than so many times the wrong matches it allows are
_Z = 1.959964  # of the normal distribution, for an interval of 95 %


@dataclass(frozen=True)
class Curve:
    """Precision and recall of all matches from each threshold on, thresholds descending; arrays [m], m distinct scores.

    Args:
        thresholds: distinct scores, float64.
        right, wrong: matches that score as much or more.
        pairs: pairs there are to find.
    """

    thresholds: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    pairs: int

    @property
    def precision(self) -> np.ndarray:
        """Share of right ones."""
        return self.right / (self.right + self.wrong)

    @property
    def recall(self) -> np.ndarray:
        """Share of the pairs that are found."""
        return self.right / self.pairs

    @property
    def precision_low(self) -> np.ndarray:
        """Lower end of the 95 % interval of the precision."""
        return wilson_low(self.right, self.right + self.wrong)


def wilson_low(hits: np.ndarray, trials: np.ndarray) -> np.ndarray:
    """Return the lower end of Wilson's (1927) 95 % interval of the share hits / trials, each [n]."""
    share, square = hits / trials, _Z ** 2 / trials
    return (share + square / 2 - _Z * np.sqrt(share * (1 - share) / trials + square / (4 * trials))) / (1 + square)


def threshold_curve(scores: np.ndarray, correct: np.ndarray, pairs: int) -> Curve:
    """Count right and wrong matches from every score on.

    Args:
        scores: of all matches, finite, [m], in any order.
        correct: whether each is a pair of the ground truth.
        pairs: pairs of the ground truth.

    Raises:
        UserError: there are no pairs.
    """
    if not pairs:
        raise UserError(NO_PAIRS)
    values, group = np.unique(-np.asarray(scores, dtype=np.float64), return_inverse=True)
    right = np.bincount(group, weights=correct, minlength=len(values)).astype(np.int64)
    wrong = np.bincount(group, minlength=len(values)) - right
    return Curve(-values, np.cumsum(right), np.cumsum(wrong), pairs)


def precision_rows(curve: Curve, precisions: Sequence[float] = PRECISIONS) -> list[dict[str, object]]:
    """Return for each precision the lowest threshold that gives it, what comes of it, and the numbers behind.

    A precision of too few matches is no precision: the lower end of its 95 % interval must be at least
    1 − `SLACK`·(1 − precision). Where no threshold will do, the row's is None and `refused` says why.

    Returns:
        rows `precision, threshold, measured, precision_low, recall, right, wrong, refused`.
    """
    rows = []
    measured, low = curve.precision, curve.precision_low
    for wanted in precisions:
        reached, sure = measured >= wanted, low >= 1 - SLACK * (1 - wanted)
        good = np.flatnonzero(reached & sure)
        row = dict.fromkeys(("precision", "threshold", "measured", "precision_low", "recall", "right", "wrong",
                             "refused")) | {"precision": wanted}
        if len(good):
            i = good[-1]
            row |= {"threshold": float(curve.thresholds[i]), "measured": float(measured[i]),
                    "precision_low": float(low[i]), "recall": float(curve.recall[i]), "right": int(curve.right[i]),
                    "wrong": int(curve.wrong[i])}
        elif reached.any():
            i = np.flatnonzero(reached)[-1]
            row["refused"] = (f"{curve.right[i]:,} right and {curve.wrong[i]:,} wrong matches are too few to tell "
                              f"{wanted:g}")
        else:
            row["refused"] = "no threshold reaches it"
        rows.append(row)
    return rows


def expected_precision(scores: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimate how likely a match of a score is right: isotonic regression, so that more is never less.

    One wrong match above all and one right one below all are added: nothing is certain for want of a counterexample.

    Args:
        scores, correct: see `threshold_curve`; at least one.

    Returns:
        the scores at which it steps up, ascending, the lowest among them, and its values from there on, each [b].
    """
    starts, group = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True)
    weight = np.bincount(group, minlength=len(starts)).astype(np.float64)
    right = np.bincount(group, weights=correct, minlength=len(starts))
    weight[0], right[0], weight[-1] = weight[0] + 1, right[0] + 1, weight[-1] + 1
    blocks: list[list[float]] = []  # start, right, weight
    for start, hits, count in zip(starts.tolist(), right.tolist(), weight.tolist()):
        blocks.append([start, hits, count])
        while len(blocks) > 1 and blocks[-2][1] * blocks[-1][2] >= blocks[-1][1] * blocks[-2][2]:
            _, hits, count = blocks.pop()
            blocks[-1][1] += hits
            blocks[-1][2] += count
    table = np.array(blocks)
    return table[:, 0], table[:, 1] / table[:, 2]
