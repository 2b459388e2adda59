"""From which score on a pair is reported, and what a score is worth."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rdcd.errors import UserError, check_number
from rdcd.retrieval.calibration import Calibration, calibrated, read_calibration
from rdcd.retrieval.index import OWN_NORM, Index
from rdcd.retrieval.score_norm import ScoreNorm, parse_score_norm

AUTO = "auto"
PRECISION = 0.9  # asked for where nothing is
ADVICE = "`rdcd calibrate` measures what a student's scores are worth"
LARGER = 2  # times as many pictures as a threshold was measured among, from which on this is said


@dataclass(frozen=True)
class Scoring:
    """How scores are made, the lowest that is reported, and where that comes from.

    Args:
        score_norm: None, or such as "1.0[0,2]".
        threshold: lowest score reported.
        calibration: what scores are worth; None: not known.
        said: the same in words.
    """

    score_norm: str | None
    threshold: float
    calibration: Calibration | None
    said: str

    @property
    def norm(self) -> ScoreNorm | None:
        """The normalization."""
        return parse_score_norm(self.score_norm)

    def confidence(self, scores: np.ndarray) -> list[float | None]:
        """Return the expected precision of matches with these scores; None where it is not known."""
        if self.calibration is None:
            return [None] * len(scores)
        return [None if np.isnan(value) else value for value in self.calibration.confidence(scores).tolist()]

    def record(self) -> dict[str, object]:
        """Return what result files say of it."""
        return {"score_norm": self.score_norm, "threshold": self.threshold, "threshold_from": self.said,
                "calibrated_on": self.calibration and self.calibration.source}


def check_asked(threshold: float | None, precision: float | None) -> None:
    """Refuse settings that cannot be, before any work.

    Raises:
        UserError: both are given, or one is out of range.
    """
    check_number("threshold", threshold, -np.inf, whole=False, null="what precision asks for")
    check_number("precision", precision, 0, 1, whole=False, above=True, null=f"{PRECISION}, where it is calibrated")
    if threshold is not None and precision is not None:
        raise UserError(f"threshold={threshold} and precision={precision}: expected one of them; a precision stands "
                        f"for the threshold that reached it in calibration")


def choose_scoring(index: Index, card: Mapping, *, score_norm: str | None = AUTO, threshold: float | None = None,
                   precision: float | None = None) -> Scoring:
    """Decide from which score on pairs are reported: the threshold given, that of a precision, or a guess.

    Args:
        index: what is searched.
        card: the model's, with its calibration.
        score_norm: `auto`, that which goes with the index's background; if only un-normalized scores are calibrated
            and a precision is asked for, none.
        threshold, precision: see `check_asked`.

    Raises:
        UserError: a precision is asked for and not calibrated.
    """
    check_asked(threshold, precision)
    codec = index.about["codec"]["text"]
    known = [norm for text, norm in calibrated(card) if text == codec]
    chosen = index.score_norm if score_norm == AUTO else score_norm
    if score_norm == AUTO and precision is not None and chosen not in known and None in known:
        chosen = None
    norm = parse_score_norm(chosen)
    if norm is not None and len(index) and len(index.background) <= norm.last:
        raise UserError(f"score_norm={chosen} needs {norm.last + 1} background pictures, {index.folder} has "
                        f"{len(index.background)}: give background=DIR when building it, or score_norm=null")
    calibration = read_calibration(card, codec, chosen)
    about = (f"no calibration for codec {codec!r} with score normalization {chosen}"
             + (f", only for {' and '.join(map(str, known))}" if known else ""))
    if threshold is not None:
        said = "given" if calibration else f"given; {about}, so no precision is known ({ADVICE})"
        return Scoring(chosen, float(threshold), calibration, said)
    if calibration is not None:
        best = max(measured for _, measured in calibration.points)
        wanted = min(PRECISION, best) if precision is None else precision
        value = calibration.threshold(wanted)
        highest = ", the highest that was calibrated" if precision is None and best < PRECISION else ""
        said = f"of precision {wanted:g}{highest}, measured on {calibration.source}"
        if calibration.references and len(index) > LARGER * calibration.references:
            said += (f", {calibration.references:,} pictures; this index has {len(index):,}, so that more is alike by "
                     f"chance and the precision lower")
        return Scoring(chosen, value, calibration, said)
    if precision is not None:
        instead = f", or score_norm={'null' if known[0] is None else known[0]}" if known else ""
        raise UserError(f"precision={precision:g}: {about}, on the card of {index.about['model']['name']}; {ADVICE}, "
                        f"or give threshold=NUMBER{instead}")
    value, how = guess_threshold(index, norm)
    return Scoring(chosen, value, None, f"a guess, {how}; {about}, so no precision is known: {ADVICE}, or look at the "
                                        f"page, then say threshold=NUMBER")


def guess_threshold(index: Index, norm: ScoreNorm | None) -> tuple[float, str]:
    """Guess a threshold without any known copies: halfway between a picture's ordinary neighbours and itself.

    Ordinary neighbours are the eleventh to thirteenth nearest in the background, at the median; where there are fewer,
    three quarters of what a picture scores with itself.
    """
    rows = np.unique(np.linspace(0, max(len(index) - 1, 0), min(len(index), 256)).astype(np.int64))
    sample = index.vectors(rows)
    own = float(np.median(np.einsum("nd,nd->n", sample, sample))) if len(sample) else 1.0
    deep = parse_score_norm(OWN_NORM)
    if not len(sample) or len(index.background) <= deep.last:
        return 0.75 * own, "three quarters of an identical picture's score, for want of pictures to learn from"
    ordinary = float(np.median(index.biases(sample, deep)))
    off = 0.0 if norm is None else float(np.median(index.biases(sample, norm)))
    return (own + ordinary) / 2 - off, "halfway between ordinary neighbours and the same picture"
