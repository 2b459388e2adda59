import numpy as np
import pytest

from rdcd.errors import UserError
from rdcd.retrieval.calibration import calibrated, confidence, read_calibration

NORM = "1.0[0,2]"


def row(norm: str | None, precision: float, threshold: float | None, benchmark: str = "b") -> dict:
    return {"codec": "Flat", "score_norm": norm, "precision": precision, "threshold": threshold, "benchmark": benchmark}


CARD = {"calibration": [row(NORM, 0.99, 0.6), row(NORM, 0.5, 0.2), row(None, 0.99, None)],
        "thresholds": [row(NORM, 0.9, 0.4, "other"), row(None, 0.9, None)]}


def test_confidence_is_the_precision_of_the_thresholds_reached() -> None:
    found = read_calibration(CARD, "Flat", NORM)
    assert found.points == ((0.2, 0.5), (0.4, 0.9), (0.6, 0.99)) and found.source == "b, other"
    np.testing.assert_array_equal(found.confidence(np.array([0.1, 0.2, 0.39, 0.4, 0.6, 5])),
                                  [np.nan, 0.5, 0.5, 0.9, 0.99, 0.99])
    assert confidence(0.45, CARD, score_norm=NORM) == 0.9 and confidence(0.1, CARD, score_norm=NORM) is None
    assert confidence(0.45, CARD) is None and confidence(0.45, {}) is None
    assert confidence(0.45, CARD, codec="PCA2,Flat", score_norm=NORM) is None


def test_a_measured_dip_does_not_lower_what_was_reached() -> None:
    card = {"calibration": [row(None, 0.9, 0.4), row(None, 0.8, 0.5)]}
    assert confidence(0.6, card) == 0.9


def test_threshold_of_a_precision() -> None:
    found = read_calibration(CARD, "Flat", NORM)
    assert [found.threshold(p) for p in (0.3, 0.5, 0.9, 0.95, 0.99)] == [0.2, 0.2, 0.4, 0.6, 0.6]
    with pytest.raises(UserError, match=r"precision=0.999: the highest that was calibrated .* is 0.99, on b, other"):
        found.threshold(0.999)
    with pytest.raises(UserError, match="precision=1.5: expected"):
        found.threshold(1.5)


def test_what_was_not_reached_is_not_calibrated() -> None:
    assert read_calibration(CARD, "Flat", None) is None and read_calibration({}, "Flat", None) is None
    assert calibrated(CARD) == [("Flat", NORM)] and calibrated({"thresholds": None}) == []
