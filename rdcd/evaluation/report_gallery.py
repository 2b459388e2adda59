"""The report's picture galleries: best matches, worst false alarms, misses."""

import base64
import io
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from rdcd.data.images import open_image
from rdcd.errors import BadImage
from rdcd.evaluation.cases import ModelResult, Outcome, best_matches, false_alarms, misses
from rdcd.evaluation.report_page import empty, name, row_name, score, text

THUMBNAIL = 160  # pixels of the longer side
SHOWN = 12  # cases before the fold: whole rows of 4, 3 or 2

Thumbnail = Callable[[str, str], tuple[str | None, str]]
ROLES = {"query": "", "match": "good", "true reference": "good", "also true, ahead": "good",
         "wrong match": "bad", "ranked first": "bad"}


def galleries(result: ModelResult, pairs: Sequence[tuple[str, str]], outcomes: Sequence[Outcome],
              image_path: Callable[[str], Path | None], query_path: Callable[[str], Path | None],
              n: int) -> list[tuple[str, str, str]]:
    """Return the three galleries of a model's headline row as (anchor, heading, HTML).

    Args:
        result: the model.
        pairs: ground truth, (query, reference) names.
        outcomes: what became of every ground-truth pair.
        image_path, query_path: name of a reference, of a query → its file, or None where there is no such picture.
        n: at most so many cases in each gallery.
    """
    matches = result.headline.matches
    truth: dict[str, list[str]] = {}
    for query, reference in pairs:
        truth.setdefault(query, []).append(reference)
    thumbnail = cache(lambda picture, role: _thumbnail(picture, query_path if role == "query" else image_path))
    best = [_best(case, thumbnail) for case in best_matches(matches, pairs, n)]
    alarms = [_alarm(case, truth.get(case.query, []), thumbnail) for case in false_alarms(matches, pairs, n)]
    missed = [_miss(case, truth[case.query], thumbnail) for case in misses(outcomes, n)]
    of = f'{text(result.name)}, {row_name(result.headline)}'

    def page(note: str, cards: list[str], nothing: str, kind: str = "") -> str:
        return f'<p class="note">{note}: {of}.</p>\n' + (_fold(cards, kind) if cards else empty(nothing))

    return [
        ("best", "Best matches",
         page("Correct pairs of highest score", best, "No candidate is a correct pair.")),
        ("false-alarms", "Worst false alarms",
         page("Wrong pairs of highest score, one per query", alarms, "No candidate is a wrong pair.")),
        ("misses", "Misses",
         page("True pairs whose reference was not found or ranks lowest", missed,
              "Every true reference ranks first.", " three")),
    ]


def _best(case: Outcome, thumbnail: Thumbnail) -> str:
    caption = f"score <b>{score(case.score)}</b>"
    return _card({"query": case.query, "match": case.reference}, caption, thumbnail)


def _alarm(case: Outcome, true: list[str], thumbnail: Thumbnail) -> str:
    verdict = f"true: {', '.join(map(name, true))}" if true else "no true reference"
    return _card({"query": case.query, "wrong match": case.reference},
                 f"score <b>{score(case.score)}</b> · {verdict}", thumbnail)


def _miss(case: Outcome, true: list[str], thumbnail: Thumbnail) -> str:
    pictures = {"query": case.query, "true reference": case.reference}
    caption = "not among the candidates"
    if case.rank is not None:
        caption = f"rank <b>{case.rank + 1}</b>, score <b>{score(case.score)}</b>"
    if case.rival is None:
        caption += " · no other candidate"
    else:
        pictures["also true, ahead" if case.rival in true else "ranked first"] = case.rival
        caption += f" · the first: score <b>{score(case.rival_score)}</b>"
    return _card(pictures, caption, thumbnail)


def _card(pictures: dict[str, str], caption: str, thumbnail: Thumbnail) -> str:
    row = "".join(f'<div class="thumb">{_picture(role, picture, thumbnail)}'
                  f'<span class="role {ROLES[role]}">{role}</span>{name(picture)}</div>'
                  for role, picture in pictures.items())
    return (f'<figure class="case"><div class="row">{row}</div>'
            f"<figcaption>{caption}</figcaption></figure>\n")


def _fold(cards: list[str], kind: str) -> str:
    page = f'<div class="gallery{kind}">{"".join(cards[:SHOWN])}</div>'
    if cards[SHOWN:]:
        page += (f"<details><summary>{len(cards) - SHOWN} more</summary>"
                 f'<div class="gallery{kind}">{"".join(cards[SHOWN:])}</div></details>')
    return page


def _picture(role: str, picture: str, thumbnail: Thumbnail) -> str:
    source, reason = thumbnail(picture, role)
    label = f"{role} {text(picture)}"
    if source is None:
        why = text(reason)
        return (f'<div class="missing" role="img" title="{why}" aria-label="{label}: {why}">'
                f"<span>{why}</span></div>")
    return f'<img src="{source}" alt="{label}" loading="lazy" decoding="async">'


def _thumbnail(picture: str, image_path: Callable[[str], Path | None]) -> tuple[str | None, str]:
    """Return (JPEG data URI, "") or (None, why it cannot be shown)."""
    path = image_path(picture)
    if path is None:
        return None, "no such picture"
    if not Path(path).is_file():
        return None, "file not found"
    return thumbnail_uri(path)


def thumbnail_uri(path: str | Path) -> tuple[str | None, str]:
    """Return a picture's thumbnail as (JPEG data URI, "") or (None, why it cannot be shown)."""
    try:
        image = open_image(path)
    except BadImage as bad:
        return None, bad.reason
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii"), ""
