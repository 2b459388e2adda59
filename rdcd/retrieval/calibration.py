"""What a score means: the precision that was measured for scores as high, on the benchmark a student's card names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rdcd.errors import UserError, check_number

ENTRIES = ("thresholds", "calibration", "calibrated")  # of a card: of its weights and preprocessing alone


@dataclass(frozen=True)
class Calibration:
    """Thresholds of a codec and a score normalization with the precision that was measured above each.

    Args:
        codec, score_norm: what the scores were made by.
        points: (threshold, precision), thresholds ascending; precision is of all matches that score as much or more.
        source: the benchmark it was measured on.
        curve: (score, expected precision of a match with this score, up to the next), scores ascending; empty: not
            known.
        references: pictures that were searched; None: not known.
        refused: (precision, why it has no threshold).
    """

    codec: str
    score_norm: str | None
    points: tuple[tuple[float, float], ...]
    source: str
    curve: tuple[tuple[float, float], ...] = ()
    references: int | None = None
    refused: tuple[tuple[float, str], ...] = ()

    def confidence(self, scores: np.ndarray) -> np.ndarray:
        """Return the expected precision of matches with these scores, float64 [n]: that of the curve; where there is
        none, the largest precision measured at a threshold they reach, NaN below the lowest threshold."""
        scores = np.asarray(scores, dtype=np.float64)
        if self.curve:
            starts, expected = np.array(self.curve).T
            return expected[np.maximum(np.searchsorted(starts, scores, side="right") - 1, 0)]
        thresholds = [threshold for threshold, _ in self.points]
        reached = np.concatenate(([np.nan], np.maximum.accumulate([precision for _, precision in self.points])))
        return reached[np.searchsorted(thresholds, scores, side="right")]

    def threshold(self, precision: float) -> float:
        """Return the lowest threshold above which at least this precision was measured.

        Raises:
            UserError: none was, or by too few matches.
        """
        check_number("precision", precision, 0, 1, whole=False, above=True)
        good = [threshold for threshold, measured in self.points if measured >= precision]
        if not good:
            best = max(measured for _, measured in self.points)
            why = next((f" ({reason})" for wanted, reason in self.refused if wanted >= precision), "")
            raise UserError(f"precision={precision:g}: the highest that was calibrated for codec {self.codec!r} and "
                            f"score normalization {self.score_norm} is {best:g}, on {self.source}{why}; ask for that, "
                            f"or give threshold=NUMBER")
        return min(good)


def read_calibration(card: Mapping, codec: str, score_norm: str | None) -> Calibration | None:
    """Return what a student's card has for a codec and a score normalization; None: nothing.

    Args:
        card: its `calibration`, or where that has none, its `thresholds`, are lists of rows `codec, score_norm,
            precision, threshold, benchmark`; a row whose threshold is None was not reached. `calibrated` has further
            entries for each codec and score normalization: `curve` and `references`, see `Calibration`.
    """
    def of_these(key: str) -> list[Mapping]:
        return [row for row in _rows(card, key) if row.get("codec") == codec and row.get("score_norm") == score_norm]

    for key in ("calibration", "thresholds"):
        rows = [row for row in of_these(key) if row.get("threshold") is not None]
        if rows:
            about = next(iter(of_these("calibrated")), {}) if key == "calibration" else {}
            try:
                return Calibration(
                    codec, score_norm,
                    tuple(sorted({(float(row["threshold"]), float(row["precision"])) for row in rows})),
                    ", ".join(sorted({str(row.get("benchmark")) for row in rows})),
                    curve=tuple((float(score), float(expected)) for score, expected in about.get("curve") or ()),
                    references=about.get("references"),
                    refused=tuple((float(row["precision"]), str(row["refused"])) for row in of_these(key)
                                  if row.get("threshold") is None and row.get("refused")))
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"`{key}` of the model's card is damaged ({type(error).__name__}: {error}): copy the "
                                f"card again, or calibrate anew") from error
    return None


def _rows(card: Mapping, key: str) -> Sequence[Mapping]:
    rows = card.get(key) or []
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise UserError(f"`{key}` of the model's card is no list of rows: copy the card again, or calibrate anew")
    return rows


def calibrated(card: Mapping) -> list[tuple[str, str | None]]:
    """List the (codec, score normalization) pairs that a card has thresholds for."""
    rows: Sequence[Mapping] = [row for key in ("calibration", "thresholds") for row in _rows(card, key)]
    return list(dict.fromkeys((row["codec"], row.get("score_norm")) for row in rows
                              if row.get("threshold") is not None and "codec" in row))


def recalibrated(card: Mapping, rows: Sequence[Mapping], about: Sequence[Mapping]) -> dict[str, list]:
    """Return the `calibration` and `calibrated` of a card to come: these replace what it has for the same codec and
    score normalization.

    Args:
        card: as it is.
        rows: of `calibration`.
        about: of `calibrated`; it has one entry for each codec and score normalization of `rows`.
    """
    new = {(entry["codec"], entry["score_norm"]) for entry in about}
    return {key: [row for row in _rows(card, key) if (row.get("codec"), row.get("score_norm")) not in new]
            + [dict(row) for row in fresh] for key, fresh in (("calibration", rows), ("calibrated", about))}


def uncalibrated(card: Mapping) -> dict:
    """Return a card without what holds for its weights and preprocessing alone: all that scores are said to mean."""
    return {key: value for key, value in card.items() if key not in ENTRIES}


def confidence(score: float, card: Mapping, *, codec: str = "Flat", score_norm: str | None = None) -> float | None:
    """Return the expected precision of a match with this score; None: not calibrated, or lower than what was."""
    found = read_calibration(card, codec, score_norm)
    value = np.nan if found is None else float(found.confidence(np.array([score]))[0])
    return None if np.isnan(value) else value
