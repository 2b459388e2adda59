"""Is one model better than another? Paired differences of metrics, with intervals over the same resamples."""

from collections.abc import Sequence

from rdcd.evaluation.bootstrap import paired_difference
from rdcd.evaluation.cases import ModelResult
from rdcd.evaluation.score import ScoreRow


def differences(results: Sequence[ModelResult]) -> list[dict[str, object]]:
    """Compare the first model with every other, way of scoring by way of scoring, in each metric.

    Args:
        results: of one benchmark and one bootstrap; models without resamples are left out.

    Returns:
        rows of `model`, `other`, `codec`, `score_norm`, and for every metric that of the first model minus that of the
        other, with the 95 % interval `<metric>_low`, `<metric>_high`. An interval without 0: the order is no accident
        of which queries the benchmark has. (It says nothing of the accident of training, which other seeds show.)
    """
    first, rows = results[0], []
    for other in results[1:]:
        theirs = {_way(row): row for row in other.rows}
        for row in first.rows:
            if (matching := theirs.get(_way(row))) is None or not (row.samples and matching.samples):
                continue
            found: dict[str, object] = {"model": first.name, "other": other.name, "codec": row.codec,
                                        "score_norm": row.score_norm}
            for metric, samples in row.samples.items():
                difference = paired_difference(getattr(row.metrics, metric), getattr(matching.metrics, metric),
                                               samples, matching.samples[metric])
                found |= {metric: difference.difference, f"{metric}_low": difference.low,
                          f"{metric}_high": difference.high}
            rows.append(found)
    return rows


def _way(row: ScoreRow) -> tuple[str, str | None, str]:
    return row.codec, row.score_norm, row.candidates
