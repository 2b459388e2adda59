"""What a score means: the precision that was measured for scores as high, on the benchmark a student's card names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rdcd.errors import UserError, check_number


@dataclass(frozen=True)
class Calibration:
    """Thresholds of a codec and a score normalization with the precision that was measured above each.

    Args:
        codec, score_norm: what the scores were made by.
        points: (threshold, precision), thresholds ascending; precision is of all matches that score as much or more.
        source: the benchmark it was measured on.
    """

    codec: str
    score_norm: str | None
    points: tuple[tuple[float, float], ...]
    source: str

    def confidence(self, scores: np.ndarray) -> np.ndarray:
        """Return the expected precision of matches with these scores, float64 [n]: the largest precision measured at a
        threshold they reach, NaN below the lowest threshold."""
        thresholds = [threshold for threshold, _ in self.points]
        reached = np.concatenate(([np.nan], np.maximum.accumulate([precision for _, precision in self.points])))
        return reached[np.searchsorted(thresholds, np.asarray(scores, dtype=np.float64), side="right")]

    def threshold(self, precision: float) -> float:
        """Return the lowest threshold above which at least this precision was measured.

        Raises:
            UserError: none was.
        """
        check_number("precision", precision, 0, 1, whole=False, above=True)
        good = [threshold for threshold, measured in self.points if measured >= precision]
        if not good:
            best = max(measured for _, measured in self.points)
            raise UserError(f"precision={precision:g}: the highest that was calibrated for codec {self.codec!r} and "
                            f"score normalization {self.score_norm} is {best:g}, on {self.source}; ask for that, or "
                            f"give threshold=NUMBER")
        return min(good)


def read_calibration(card: Mapping, codec: str, score_norm: str | None) -> Calibration | None:
    """Return what a student's card has for a codec and a score normalization; None: nothing.

    Args:
        card: its `calibration` and `thresholds` are lists of rows `codec, score_norm, precision, threshold,
            benchmark`; a row whose threshold is None was not reached.
    """
    rows = [row for key in ("calibration", "thresholds") for row in card.get(key) or ()
            if row.get("codec") == codec and row.get("score_norm") == score_norm and row.get("threshold") is not None]
    if not rows:
        return None
    points = sorted({(float(row["threshold"]), float(row["precision"])) for row in rows})
    return Calibration(codec, score_norm, tuple(points), ", ".join(sorted({str(row.get("benchmark")) for row in rows})))


def calibrated(card: Mapping) -> list[tuple[str, str | None]]:
    """List the (codec, score normalization) pairs that a card has thresholds for."""
    rows: Sequence[Mapping] = [row for key in ("calibration", "thresholds") for row in card.get(key) or ()]
    return list(dict.fromkeys((row["codec"], row["score_norm"]) for row in rows if row.get("threshold") is not None))


def confidence(score: float, card: Mapping, *, codec: str = "Flat", score_norm: str | None = None) -> float | None:
    """Return the expected precision of a match with this score; None: not calibrated, or lower than what was."""
    found = read_calibration(card, codec, score_norm)
    value = np.nan if found is None else float(found.confidence(np.array([score]))[0])
    return None if np.isnan(value) else value
