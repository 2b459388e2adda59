"""The report's tables of scores: metrics with their intervals, and the models compared."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rdcd.evaluation.bootstrap import interval
from rdcd.evaluation.cases import ModelResult
from rdcd.evaluation.metrics_copydays import CopydaysMetrics
from rdcd.evaluation.report_page import metric, percent, row_name, score, text
from rdcd.evaluation.score import ScoreRow

UAP = ("Average precision of all scored pairs pooled over queries, so that one threshold must serve every query. "
       "µAP<sub>SN</sub>: the same after score normalization against background pictures.")


class Column(NamedTuple):
    """One number of a row: its heading, how a row shows it, what it means; `quoted` ones are shown large, too."""

    heading: str
    show: Callable[[ScoreRow], str]
    meaning: str = ""
    quoted: str = ""


def _share(name: str) -> Callable[[ScoreRow], str]:
    return lambda row: percent(getattr(row.metrics, name)) + _within(row, name)


def _within(row: ScoreRow, name: str) -> str:
    if name not in row.samples:
        return ""
    low, high = interval(row.samples[name])
    return f" <small>{100 * low:.1f}–{100 * high:.1f}</small>"


def _negatives(row: ScoreRow) -> str:
    above, count = row.hard_negatives
    return f"{'–' if above is None else format(above, ',')} of {count:,}"


POOLED = [
    Column("µAP, %", lambda row: "" if row.score_norm else _share("uAP")(row), UAP),
    Column("µAP<sub>SN</sub>, %", lambda row: _share("uAP")(row) if row.score_norm else ""),
    Column("recall@P90, %", _share("recall_at_p90"), "The largest share of true pairs that one threshold finds while "
           "at least 90 % of what it returns is true.", "recall at 90 % precision, %"),
    Column("threshold", lambda row: score(row.metrics.threshold_at_p90), "The score at that point; “–” where "
           "precision never reaches 90 %.", "threshold at 90 % precision"),
    Column("accuracy@1, %", _share("accuracy_at_1"), "The share of true pairs whose reference comes first in its "
           "query's list.", "accuracy@1, %"),
]
NEGATIVES = Column("hard negatives above", _negatives, "Queries without a true reference that a threshold at 90 % "
                   "precision takes for copies.", "hard negatives above that threshold")
COPYDAYS = [
    Column("strong mAP, %", _share("strong_mAP"), "Mean over the strongly edited queries of their average precision by "
           "trapezoids.", "strong mAP, %"),
    Column("overall µAP, %", _share("overall_uAP"), "One average precision by trapezoids over the pooled candidates "
           "of all queries, by distance.", "overall µAP, %"),
]


def scores(results: Sequence[ModelResult]) -> str:
    """Return the headline in large figures and the table of every model and row."""
    first = results[0].headline
    columns = COPYDAYS if isinstance(first.metrics, CopydaysMetrics) else POOLED
    columns = columns + [NEGATIVES] * (first.hard_negatives is not None)
    tiles = [(column.quoted, column.show) for column in columns if column.quoted]
    if columns[0] is POOLED[0]:
        tiles.insert(0, (f"{metric(first)}, %", _share("uAP")))
    tiles_html = "".join(
        f'<div class="tile"><span>{label}</span><b>{show(first)}</b>'
        + "".join(f"<small>{text(other.name)} {show(other.headline)}</small>" for other in results[1:])
        + "</div>" for label, show in tiles)
    rows = "".join(_row(result, i, columns) for result in results for i in range(len(result.rows)))
    heads = "".join(f'<th scope="col" class="n">{column.heading}</th>' for column in columns)
    meanings = "".join(f"<dt>{column.heading.removesuffix(', %')}</dt><dd>{column.meaning}</dd>"
                       for column in columns if column.meaning)
    small = "<dt>small figures</dt><dd>95 % interval, from resampling the queries.</dd>" if first.samples else ""
    return f"""<p class="note">Headline of <b>{text(results[0].name)}</b>: {row_name(first)}.</p>
<div class="tiles">{tiles_html}</div>
<div class="scroll"><table><thead><tr>
<th scope="col">model</th><th scope="col">codec</th><th scope="col">score norm</th>{heads}</tr></thead><tbody>
{rows}</tbody></table></div>
<details><summary>What the columns mean</summary><dl>{meanings}{small}
<dt>tinted</dt><dd>Each model's headline row: the last codec that all models have, score-normalized if any row is.
</dd>
</dl></details>"""


def _row(result: ModelResult, i: int, columns: Sequence[Column]) -> str:
    row = result.rows[i]
    model = f'<th scope="rowgroup" rowspan="{len(result.rows)}">{text(result.name)}</th>' if i == 0 else ""
    tint = ' class="headline"' if row is result.headline else ""
    norm = "none" if row.score_norm is None else f"<code>{text(row.score_norm)}</code>"
    return (f"<tr{tint}>{model}<td><code>{text(row.codec)}</code></td><td>{norm}</td>"
            + "".join(f'<td class="n">{column.show(row)}</td>' for column in columns) + "</tr>\n")


def compared(rows: Sequence[Mapping[str, object]]) -> str:
    """Return the table of `rdcd.evaluation.differences.differences`."""
    metrics = {name: heading for name, heading in (("uAP", "µAP"), ("accuracy_at_1", "accuracy@1"),
                                                   ("recall_at_p90", "recall@P90"), ("strong_mAP", "strong mAP"),
                                                   ("overall_uAP", "overall µAP")) if name in rows[0]}

    def cell(row: Mapping[str, object], metric: str) -> str:
        low, high = 100 * row[f"{metric}_low"], 100 * row[f"{metric}_high"]
        beyond = ' class="n beyond"' if low > 0 or high < 0 else ' class="n"'
        return f"<td{beyond}>{100 * row[metric]:+.2f} <small>{low:+.1f} … {high:+.1f}</small></td>"

    def line(row: Mapping[str, object]) -> str:
        norm = f"<code>{text(row['score_norm'])}</code>" if row["score_norm"] else "none"
        return (f'<tr><th scope="row">{text(row["model"])} − {text(row["other"])}</th>'
                f'<td><code>{text(row["codec"])}</code></td><td>{norm}</td>'
                + "".join(cell(row, metric) for metric in metrics) + "</tr>\n")

    heads = "".join(f'<th scope="col" class="n">{heading}, points</th>' for heading in metrics.values())
    return f"""<p class="note">Differences in percentage points with their 95 % intervals, paired: both models on the
same resampled queries. Bold: the interval leaves out 0, so that other queries of this kind would show the same order;
whether another training run of the same recipe would, it does not say.</p>
<div class="scroll"><table><thead><tr><th scope="col">models</th><th scope="col">codec</th>
<th scope="col">score norm</th>{heads}</tr></thead><tbody>
{"".join(map(line, rows))}</tbody></table></div>"""
