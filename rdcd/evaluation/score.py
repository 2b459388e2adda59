"""From descriptor files and ground truth to metrics: the `rdcd score` command."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rdcd.data.ground_truth import read_ground_truth
from rdcd.errors import UserError
from rdcd.evaluation.metrics import NO_PAIRS, Metrics, evaluate_matches
from rdcd.files import atomic_path, check_output, sha256, write_json, write_text
from rdcd.provenance import provenance
from rdcd.retrieval.codec import Codec
from rdcd.retrieval.descriptors import Descriptors, read_descriptors, some
from rdcd.retrieval.knn import Matches, check_candidates, search
from rdcd.retrieval.score_norm import background_products, parse_score_norm


@dataclass(frozen=True)
class ScoreRow:
    """One way of scoring (codec, score normalization, candidates), its metrics and its matches."""

    codec: str
    score_norm: str | None
    candidates: str
    metrics: Metrics
    matches: Matches


def score(*, query: str | Path, reference: str | Path, ground_truth: str | Path, out: str | Path,
          background: str | Path | None = None, codecs: Sequence[str] = ("Flat",),
          score_norms: Sequence[str | None] = (None, "1.0[0,2]"), candidates: str = "per_query",
          k: int = 10, predictions: bool = False) -> list[dict[str, object]]:
    """Measure descriptor files; write `out/metrics.csv` and `out/metrics.json` (METHOD sections 5, 6).

    Args:
        query, reference, background: descriptor files; background None: no score normalization and no
            codec that learns.
        ground_truth: CSV query_id,reference_id.
        out: folder, made if need be.
        codecs: faiss index-factory strings, see `Codec`.
        score_norms: None or strings such as "1.0[0,2]", see `ScoreNorm`.
        candidates, k: see `search`.
        predictions: also write `out/predictions-<n>.csv` of query_id,reference_id,score, with n the
            number, from 1, of the row in metrics.csv.

    Returns:
        the rows of metrics.csv, one per codec and normalization.

    Raises:
        UserError: anything wrong with the input; each message names the file and the mistake.
    """
    for name, path in (("query", query), ("reference", reference), ("ground_truth", ground_truth), ("out", out)):
        if not isinstance(path, str | Path):
            raise UserError(f"{name}={path}: expected the path of a {'folder' if name == 'out' else 'file'}")
    out = Path(out)
    check_output(out, folder=True)
    files = {"query": query, "reference": reference, "background": background}
    files = {name: Path(path) for name, path in files.items() if path is not None}
    pairs = read_ground_truth(ground_truth)
    sets = {name: read_descriptors(path) for name, path in files.items()}
    rows = score_descriptors(sets["query"], sets["reference"], sets.get("background"), pairs, codecs=codecs,
                             score_norms=score_norms, candidates=candidates, k=k, progress=True)
    values = [as_record(row) for row in rows]
    files["ground_truth"] = Path(ground_truth)
    inputs = {name: {"file": str(path), "sha256": sha256(path)} for name, path in files.items()}
    record = {**provenance(), "k": k, "inputs": inputs}
    write_metrics(out, values, record)
    if predictions:
        for number, row in enumerate(rows, start=1):
            write_predictions(out / f"predictions-{number}.csv", row.matches)
    title = (f"{len(sets['query']):,} queries, {len(sets['reference']):,} references, "
             f"{len(pairs):,} pairs, k={k}")
    Console().print(metrics_table(values, title=title))
    print(f"written: {out / 'metrics.csv'}")
    return values


def score_descriptors(query: Descriptors, reference: Descriptors, background: Descriptors | None,
                      pairs: Sequence[tuple[str, str]], *, codecs: Sequence[str] = ("Flat",),
                      score_norms: Sequence[str | None] = (None, "1.0[0,2]"), candidates: str = "per_query",
                      k: int = 10, progress: bool = False) -> list[ScoreRow]:
    """Codec, search, normalize and measure; one row per codec x normalization, in the order given.

    The order of rows within the descriptor sets changes nothing.

    Args:
        query, reference, background: descriptors of one length d; background None where unused.
        pairs: ground-truth pairs; ids in `missing` are allowed and count as missed.
        codecs: faiss index-factory strings, see `Codec`.
        score_norms: None or strings such as "1.0[0,2]", see `ScoreNorm`.
        candidates, k: see `search`.
        progress: whether to show a bar, on stderr, over long searches.

    Raises:
        UserError: options that are not understood, ids of the ground truth without a picture, lengths
            that differ, or a background that is absent or too small.
    """
    codecs, score_norms = _listed(codecs, "codecs"), _listed(score_norms, "score_norms")
    norms = [parse_score_norm(text) for text in score_norms]
    check_candidates(candidates, k)
    _check_dims({"query": query, "reference": reference, "background": background})
    _check_ids(query, reference, pairs)
    query, reference = query.sorted(), reference.sorted()
    background = None if background is None else background.sorted()
    trained = [Codec(text, query.dim) for text in codecs]
    for codec in trained:  # all of them before the first search: a mistake shows at once
        codec.train(None if background is None else background.vectors)
    depth = max((norm.last + 1 for norm in norms if norm), default=0)
    rows = []
    for codec in trained:
        q, r, b = (None if d is None else codec.apply(d.vectors) for d in (query, reference, background))
        biases: list[np.ndarray | None] = [None] * len(norms)
        if depth:
            label = f"{codec.text}: background" if progress else None
            products = background_products(q, b, depth, label=label)
            biases = [norm and norm.bias(products) for norm in norms]
        found = search(Descriptors(query.names, q), Descriptors(reference.names, r), k=k,
                       candidates=candidates, biases=biases,
                       label=f"{codec.text}: references" if progress else None)
        rows += [ScoreRow(codec.text, text, candidates, evaluate_matches(matches, pairs), matches)
                 for text, matches in zip(score_norms, found, strict=True)]
    return rows


def _listed(values: Sequence[str | None] | str | None, name: str) -> list[str | None]:
    values = [values] if values is None or isinstance(values, str | int | float) else list(values)
    if not values:
        raise UserError(f"{name}=[] asks for nothing; expected at least one, such as "
                        f"{name}={'[Flat]' if name == 'codecs' else '[null]'}")
    return values


def _check_dims(sets: Mapping[str, Descriptors | None]) -> None:
    dims = {name: d.dim for name, d in sets.items() if d is not None}
    if len(set(dims.values())) > 1:
        lengths = ", ".join(f"{name} {dim}" for name, dim in dims.items())
        raise UserError(f"descriptors of different lengths: {lengths}; expected one length: extract all of "
                        "them with the same model")


def _check_ids(query: Descriptors, reference: Descriptors, pairs: Sequence[tuple[str, str]]) -> None:
    """Refuse ground truth that names pictures which neither have a descriptor nor were unreadable."""
    if not len(pairs):
        raise UserError(NO_PAIRS)
    named = [np.unique(column) for column in np.asarray(pairs, dtype=np.str_).T]
    known = query.known, reference.known
    if not np.isin(named[0], known[0]).any() and np.isin(named[0], known[1]).any():
        raise UserError(f"query ids of the ground truth ({some(named[0], most=3)}) are in the reference "
                        "descriptors and none is in the query descriptors: query and reference are swapped; "
                        "expected query=QUERIES reference=REFERENCES: exchange the two")
    for role, ids, there in zip(("query", "reference"), named, known, strict=True):
        absent = np.setdiff1d(ids, there, assume_unique=True)
        if absent.size:
            raise UserError(f"{absent.size:,} of the {ids.size:,} {role} ids of the ground truth are not in "
                            f"the {role} descriptors: {some(absent)} (these hold ids such as "
                            f"{', '.join(there[:2])}); ids are file names without folder and extension: "
                            f"extract all {role} pictures, or give the ground truth that belongs to them")


def as_record(row: ScoreRow) -> dict[str, object]:
    """Return the columns of metrics.csv for one row; `{"model": name, **as_record(row)}` adds one."""
    return {"codec": row.codec, "score_norm": row.score_norm, "candidates": row.candidates,
            **asdict(row.metrics)}


def write_metrics(out: str | Path, rows: Sequence[dict[str, object]], record: dict[str, object]) -> None:
    """Write `out/metrics.csv` (digits enough to read back the same numbers, `None` for None) and, with
    the same rows under `rows` and `record` under `provenance`, `out/metrics.json`.

    Args:
        rows: all of the same keys, which become the columns, in their order.
        record: from `rdcd.provenance.provenance`.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: str(value) for name, value in row.items()} for row in rows)
    write_text(Path(out) / "metrics.csv", text.getvalue())
    write_json(Path(out) / "metrics.json", {"rows": list(rows), "provenance": record})


def write_predictions(path: str | Path, matches: Matches) -> None:
    """Write candidate pairs as CSV `query_id,reference_id,score`; scores read back as the same float32."""
    with atomic_path(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("query_id", "reference_id", "score"))
        writer.writerows(zip(matches.queries.tolist(), matches.references.tolist(),
                             matches.scores.astype(np.str_).tolist(), strict=True))


def metrics_table(rows: Sequence[dict[str, object]], *, title: str | None = None) -> Table:
    """Return the rows of metrics.csv as a table for people: fractions in percent."""
    heads = {"uAP": "µAP %", "accuracy_at_1": "acc@1 %", "recall_at_p90": "R@P90 %",
             "threshold_at_p90": "threshold"}
    table = Table(title=title)
    for name in rows[0]:
        justify = "right" if name in heads else "left"
        table.add_column(heads.get(name, name.replace("_", " ")), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(name, value) for name, value in row.items()))
    return table


def _cell(name: str, value: object) -> str:
    if not isinstance(value, float):
        return escape(str(value))
    return f"{value:.4f}" if name == "threshold_at_p90" else f"{100 * value:.2f}"
