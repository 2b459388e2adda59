import numpy as np
import pytest

from rdcd.errors import UserError
from rdcd.retrieval.calibration import calibrated, confidence, read_calibration, recalibrated, uncalibrated

NORM = "1.0[0,2]"


def row(norm: str | None, precision: float, threshold: float | None, benchmark: str = "b") -> dict:
    return {"codec": "Flat", "score_norm": norm, "precision": precision, "threshold": threshold, "benchmark": benchmark}


CARD = {"calibration": [row(NORM, 0.99, 0.6), row(NORM, 0.5, 0.2), row(NORM, 0.9, 0.4, "other"),
                        row(None, 0.99, None)],
        "thresholds": [row(NORM, 0.95, 0.1, "training's"), row(None, 0.9, None)]}


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


def test_thresholds_of_a_training_run_serve_until_something_is_calibrated() -> None:
    card = {"thresholds": CARD["thresholds"] + [row(None, 0.9, 0.7, "training's")], "calibration": CARD["calibration"]}
    assert read_calibration(card, "Flat", NORM).threshold(0.95) == 0.6
    assert read_calibration(card, "Flat", None).source == "training's"
    assert read_calibration({"thresholds": card["thresholds"]}, "Flat", NORM).threshold(0.95) == 0.1


def test_a_curve_says_what_a_score_is_worth() -> None:
    about = {"codec": "Flat", "score_norm": NORM, "curve": [[0.1, 0.02], [0.3, 0.5], [0.5, 0.97]], "references": 7}
    found = read_calibration(CARD | {"calibrated": [about]}, "Flat", NORM)
    np.testing.assert_array_equal(found.confidence(np.array([-1, 0.1, 0.3, 0.49, 0.5, 2])),
                                  [0.02, 0.02, 0.5, 0.5, 0.97, 0.97])
    assert found.references == 7 and found.threshold(0.9) == 0.4


def test_why_a_precision_was_not_calibrated_is_said() -> None:
    few = row(NORM, 0.999, None) | {"refused": "12 right and 0 wrong matches are too few to tell 0.999"}
    found = read_calibration({"calibration": [*CARD["calibration"], few]}, "Flat", NORM)
    with pytest.raises(UserError, match=r"is 0.99, on b, other \(12 right and 0 wrong matches are too few"):
        found.threshold(0.995)


def test_calibrating_again_replaces_what_was_measured_for_the_same_scores() -> None:
    about = [{"codec": "Flat", "score_norm": norm, "curve": []} for norm in (NORM, None)]
    card = {"a": 1} | recalibrated(CARD, [row(NORM, 0.9, 0.3, "new")], about)
    again = card | recalibrated(card, [row(NORM, 0.9, 0.2, "newer")], about[:1])
    assert [(r["score_norm"], r["benchmark"]) for r in again["calibration"]] == [(NORM, "newer")]
    assert again["calibrated"] == about[::-1]
    another = {"codec": "PCA2,Flat"}
    other = card | recalibrated(card, [row(NORM, 0.9, 0.2) | another], [about[0] | another])
    assert calibrated(other) == [("Flat", NORM), ("PCA2,Flat", NORM)]
    assert uncalibrated(again | {"thresholds": []}) == {"a": 1}
