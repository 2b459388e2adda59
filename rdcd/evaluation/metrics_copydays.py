"""The two metrics of Copydays with 10,000 distractors, CD10K (docs/method.md §6, 7; SSCD section 5.1).

Ids are paths below the data set without extension, `strong/200001` or `crops/10/200000`: one file name
recurs in many blocks. Copies and original share the first four characters of the file name.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rdcd.data.copydays import KEY, original_key
from rdcd.errors import UserError
from rdcd.evaluation.metrics import label_rows
from rdcd.retrieval.descriptors import some
from rdcd.retrieval.knn import Matches

ORIGINAL, STRONG = "original/", "strong/"


@dataclass(frozen=True)
class CopydaysMetrics:
    """Fractions from 0 to 1."""

    strong_mAP: float
    overall_uAP: float


@dataclass(frozen=True)
class CopydaysRows:
    """Labelled candidate rows; a query's number is its place among the sorted ids of all queries.

    Args:
        query: number of each row's query, [m].
        hit: whether each row's reference is the original of its query, [m].
        strong: numbers of the strong queries, [s].
        precisions: average precision of each strong query over its own rows, [s].
    """

    query: np.ndarray
    hit: np.ndarray
    strong: np.ndarray
    precisions: np.ndarray


def evaluate_copydays(matches: Matches, queries: Sequence[str], originals: Sequence[str]) -> CopydaysMetrics:
    """Score candidate rows against the file names (docs/method.md §7, CD10K).

    Average precision by trapezoids: AP = (1 / #positives) * sum over hits of (p + p') / 2, with p and p'
    the precision before (1 before the first row) and after the hit; of equal scores, non-hits first.
    strong mAP is the mean AP of the strong queries, each over its own rows, with the originals of its
    prefix as positives. overall µAP is one AP of all rows pooled, with the number of queries as #positives.

    Args:
        matches: candidate rows, each (query, reference) at most once, in any order, scores the higher the
            nearer (minus the distance); references outside `original/` are distractors.
        queries: ids of all queries, also those that found nothing or could not be read.
        originals: ids of all originals, also those that could not be read.

    Raises:
        UserError: as `label_copydays`.
    """
    rows = label_copydays(matches, queries, originals)
    pooled = _precision_sums(np.zeros_like(rows.query), matches.scores, rows.hit, 1)[0]
    return CopydaysMetrics(float(rows.precisions.mean()), float(pooled / len(queries)))


def label_copydays(matches: Matches, queries: Sequence[str], originals: Sequence[str]) -> CopydaysRows:
    """Find the hits among candidate rows, and the strong queries with their average precisions.

    Args:
        matches, queries, originals: as `evaluate_copydays`.

    Raises:
        UserError: as `copydays_pairs`; no strong query; a row whose query or original is not among those
            given, or whose reference has no block; a row given twice; scores that are not finite.
    """
    pairs = copydays_pairs(queries, originals)
    names, positives = np.unique([query for query, _ in pairs], return_counts=True)
    strong = np.flatnonzero(np.char.startswith(names, STRONG))
    if not strong.size:
        raise UserError(f"none of the {len(names):,} queries ({some(names, most=3)}) is in the block {STRONG}; "
                        "expected Copydays' 229 strong copies among them: strong mAP is their mean")
    _refuse_unknown(set(matches.queries.tolist()), set(names.tolist()), "query", "queries")
    references = _with_block(sorted(set(matches.references.tolist())), "reference")
    found = {name for name in references if name.startswith(ORIGINAL)}
    _refuse_unknown(found, {str(name) for name in originals}, "reference", "originals")
    hit, query = label_rows(matches, pairs)
    sums = _precision_sums(query, matches.scores, hit, len(names))
    return CopydaysRows(query, hit, strong, sums[strong] / positives[strong])


def copydays_pairs(queries: Sequence[str], originals: Sequence[str]) -> list[tuple[str, str]]:
    """Return the ground truth, every (query, original) of one prefix; an original is also its own query.

    Args:
        queries: ids of the queries; the pairs come in their order.
        originals: ids of the originals.

    Raises:
        UserError: no queries or no originals, an id without block or given twice, an original that is not
            in the block `original/`, or a query without original.
    """
    queries, originals = _ids(queries, "query"), _ids(originals, "original")
    misplaced = [name for name in originals if not name.startswith(ORIGINAL)]
    if misplaced:
        raise UserError(f"{len(misplaced):,} originals are not in the block {ORIGINAL}: {some(misplaced)}; "
                        f"expected ids such as {ORIGINAL}200000")
    by_prefix: dict[str, list[str]] = {}
    for name in originals:
        by_prefix.setdefault(original_key(name), []).append(name)
    lost = [name for name in queries if original_key(name) not in by_prefix]
    if lost:
        raise UserError(f"{len(lost):,} queries have no original: {some(lost)}; expected an original whose file "
                        f"name has the same first {KEY} characters: complete the folder {ORIGINAL}")
    return [(query, original) for query in queries for original in by_prefix[original_key(query)]]


def trapezoids(right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Return (p + p') / 2 for hits that come after `right` other hits and `wrong` rows that are none."""
    rank = right + wrong
    before = np.divide(right, rank, out=np.ones(len(rank)), where=rank > 0)
    return (before + (right + 1) / (rank + 1)) / 2


def _precision_sums(group: np.ndarray, scores: np.ndarray, hit: np.ndarray, groups: int) -> np.ndarray:
    """Sum the trapezoids of each group's hits, every group's rows in their own order by score; [groups]."""
    order = np.lexsort((hit, -scores, group))
    group, hit = group[order], hit[order]
    first = np.searchsorted(group, group)  # row where each row's group begins
    hits = np.cumsum(hit) - hit
    right = hits - hits[first]
    wrong = np.arange(len(group)) - first - right
    return np.bincount(group[hit], weights=trapezoids(right[hit], wrong[hit]), minlength=groups)


def _ids(names: Sequence[str], what: str) -> list[str]:
    names = _with_block([str(name) for name in names], what)
    if not names:
        raise UserError(f"no {what} given; expected the {what} ids of Copydays, such as "
                        f"{ORIGINAL if what == 'original' else STRONG}200000")
    if len(set(names)) < len(names):
        again = sorted(names)
        again = sorted({a for a, b in zip(again, again[1:]) if a == b})
        raise UserError(f"{what} ids given more than once: {some(again)}; expected each once: two files of one "
                        "name but different extension? keep one of them")
    return names


def _with_block(names: list[str], what: str) -> list[str]:
    bare = [name for name in names if not all(name.rpartition("/")[::2])]
    if bare:
        raise UserError(f"{len(bare):,} {what} ids name no block: {some(bare)}; expected the path below the data "
                        f"set without extension, such as {STRONG}200001 or distractors/0001: file names alone "
                        "recur in the blocks")
    return names


def _refuse_unknown(found: set[str], known: set[str], what: str, where: str) -> None:
    unknown = sorted(found - known)
    if unknown:
        raise UserError(f"{len(unknown):,} {what} ids of the candidates are not among the {len(known):,} {where} "
                        f"given: {some(unknown)}; expected all {where} of the data set, also unreadable ones")
