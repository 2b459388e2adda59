"""One evaluation run as a page to look at: `report.html`, self-contained and readable from disk."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rdcd.errors import UserError
from rdcd.evaluation.cases import FamilyScore, ModelResult, Outcome, by_family, pair_outcomes, score_group
from rdcd.evaluation.metrics_copydays import CopydaysMetrics
from rdcd.evaluation.plots import (
    PAGE,
    Curves,
    curves_figure,
    figure_svg,
    plot_curves,
    plot_precision_recall,
    precision_recall_figure,
)
from rdcd.evaluation.report_gallery import galleries
from rdcd.evaluation.report_page import SKELETON, STYLE, empty, percent, record, text
from rdcd.evaluation.report_scores import compared, scores
from rdcd.evaluation.score import ScoreRow
from rdcd.files import write_text

__all__ = ["ModelResult", "plot_curves", "plot_precision_recall", "write_report"]

CANDIDATES = {"per_query": "the nearest references of every query, pooled over all queries",
              "global": "the best pairs over all queries together"}


def write_report(path: str | Path, *, title: str, protocol: str, results: Sequence[ModelResult],
                 pairs: Sequence[tuple[str, str]], image_path: Callable[[str], Path | None],
                 query_path: Callable[[str], Path | None] | None = None, curves: Curves | None = None,
                 families: Mapping[str, Sequence[str]] | None = None, provenance: Mapping[str, object],
                 differences: Sequence[Mapping[str, object]] = (), n_pictures: int = 24) -> None:
    """Write the report of one evaluation run as a single HTML file.

    Args:
        path: the HTML file, written whole or not at all.
        title: the page's heading.
        protocol: the protocol's name.
        results: the models; pictures and the breakdown by edit are of the first one's headline row.
        pairs: ground truth, (query, reference) names.
        image_path: picture name → its file, or None where there is no such picture.
        query_path: the same for queries, whose names may be those of references; None: `image_path`.
        curves: training curves, panel title → series name → (steps, values).
        families: query name → families of the edits that made it.
        provenance: where the run came from, as `rdcd.provenance.provenance` returns it.
        differences: rows of `rdcd.evaluation.differences.differences`.
        n_pictures: at most so many cases in each gallery; 0 leaves the galleries out.

    Raises:
        UserError: there is no result, or `n_pictures` is negative.
    """
    if not results:
        raise UserError("results is empty: a report needs at least one model; pass a ModelResult")
    if n_pictures < 0:
        raise UserError(f"n_pictures={n_pictures}: expected a number of cases per gallery, 0 or more")
    headline = results[0].headline
    outcomes = pair_outcomes(headline.matches, pairs)
    sections = [("scores", "Scores", scores(results)),
                ("precision-recall", "Precision and recall", _precision_recall(results, pairs))]
    if differences:
        sections.insert(1, ("differences", "Compared", compared(differences)))
    if curves:
        sections.append(("training", "Training curves", _training(curves)))
    if families:
        sections.append(("edits", "By edit", _families(outcomes, families, headline)))
    if n_pictures:
        sections += galleries(results[0], pairs, outcomes, image_path, query_path or image_path, n_pictures)
    sections += [("models", "Models", _models(results)),
                 ("provenance", "Provenance", _provenance(provenance))]
    write_text(path, SKELETON.substitute(
        title=text(title), style=STYLE, lead=_lead(protocol, results, pairs),
        contents="".join(f'<a href="#{key}">{heading}</a>' for key, heading, _ in sections),
        sections="\n".join(f'<section id="{key}"><h2>{heading}</h2>\n{body}</section>'
                           for key, heading, body in sections),
        footer=f"Written {text(provenance.get('written') or 'at an unrecorded time')}. "
               "This file needs no network and no other file."))


def _lead(protocol: str, results: Sequence[ModelResult], pairs: Sequence[tuple[str, str]]) -> str:
    rules = {row.candidates for result in results for row in result.rows}
    said = "".join(f" Candidates {rule}: {CANDIDATES.get(rule, 'a rule of its own')}."
                   for rule in sorted(rules) if rule not in protocol)
    matches = results[0].headline.matches
    if isinstance(results[0].headline.metrics, CopydaysMetrics):
        said += " Scores are minus the squared L2 distance."
    return text(f"Protocol {protocol}.{said} {len(pairs):,} ground-truth pairs, {len(matches):,} scored "
                f"pairs of {len(set(matches.queries.tolist())):,} queries.")


def _precision_recall(results: Sequence[ModelResult], pairs: Sequence[tuple[str, str]]) -> str:
    if not pairs or not any(len(result.headline.matches) for result in results):
        return empty("No scored pairs or no ground truth, hence no curve.")
    alt = "Precision over recall. " + " ".join(
        f"{text(result.name)}: {result.headline.main[0]} {percent(result.headline.main[1])} %." for result in results)
    svg = figure_svg(precision_recall_figure(results, pairs, palette=PAGE), name="pr", alt=alt)
    return (f'<figure class="figure wide">{svg}<figcaption>Headline row of every model. Dotted line: 90 % '
            "precision; dots: the last point at or above it.</figcaption></figure>")


def _training(curves: Curves) -> str:
    def panel(i: int, title: str) -> str:
        svg = figure_svg(curves_figure({title: curves[title]}, palette=PAGE), name=f"curve{i}",
                         alt=f"{text(title)} over training steps: {text(', '.join(curves[title]))}")
        return f'<figure class="figure">{svg}</figure>'

    return f'<div class="figures">{"".join(panel(i, title) for i, title in enumerate(curves))}</div>'


def _families(outcomes: Sequence[Outcome], families: Mapping[str, Sequence[str]], row: ScoreRow) -> str:
    known = [outcome for outcome in outcomes if outcome.query in families]
    if not known:
        return empty("No query with a true reference has recorded edits.")
    threshold = row.metrics.threshold_at_p90
    groups = [_family_row(group, "") for group in by_family(known, families, threshold)]
    total = _family_row(score_group("all of these", known, threshold), "total")
    return f"""<p class="note">Queries with a true reference, by the edits that made them, hardest first.
A query counts under each of its edits.</p>
<div class="scroll"><table><thead><tr><th scope="col">edit</th><th scope="col" class="n">queries</th>
<th scope="col">accuracy@1, %</th><th scope="col">recall at the P90 threshold, %</th></tr></thead><tbody>
{total}{"".join(groups)}</tbody></table></div>"""


def _family_row(group: FamilyScore, kind: str) -> str:
    def bar(share: float | None, colour: str) -> str:
        if share is None:
            return "–"
        return (f'<div class="bar {colour}"><i><i style="width:{100 * share:.1f}%"></i></i>'
                f"<span>{percent(share)}</span></div>")

    return (f'<tr class="{kind}"><th scope="row">{text(group.family)}</th>'
            f'<td class="n">{group.queries:,}</td><td class="share">{bar(group.accuracy_at_1, "first")}</td>'
            f'<td class="share">{bar(group.recall, "second")}</td></tr>\n')


def _models(results: Sequence[ModelResult]) -> str:
    return '<div class="models">' + "".join(
        f'<div class="card"><h3>{text(result.name)}</h3>{record(result.details)}</div>'
        for result in results) + "</div>"


def _provenance(provenance: Mapping[str, object]) -> str:
    rest = {key: value for key, value in provenance.items() if key not in ("command", "config")}
    config = json.dumps(provenance.get("config"), indent=2, ensure_ascii=False, default=str)
    return (f"<pre>{text(provenance.get('command') or 'command not recorded')}</pre>"
            f"<details><summary>Configuration</summary><pre>{text(config)}</pre></details>"
            f'<div class="card">{record(rest)}</div>')
