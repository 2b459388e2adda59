"""From descriptor files and ground truth to metrics: the `rdcd score` command."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from rdcd.data.copydays import BLOCKS
from rdcd.data.ground_truth import read_ground_truth, read_ids
from rdcd.errors import UserError, check_number, check_path
from rdcd.evaluation.bootstrap import QueryBootstrap, interval
from rdcd.evaluation.metrics import Metrics, evaluate_matches, queries_above
from rdcd.evaluation.metrics_copydays import ORIGINAL, CopydaysMetrics, evaluate_copydays
from rdcd.evaluation.score_inputs import check_dims, check_exact, check_ids, coded, lifted, listed
from rdcd.evaluation.tables import metrics_table, wide_console, write_metrics, write_predictions
from rdcd.files import check_output, sha256
from rdcd.provenance import provenance
from rdcd.retrieval.codec import check_metric
from rdcd.retrieval.descriptors import Descriptors, join, open_descriptors, some, warn_of_lengths
from rdcd.retrieval.knn import Matches, check_candidates, search, search_by_distance
from rdcd.retrieval.score_norm import background_products, parse_score_norm

METRICS = ("disc", "cd10k")
DEFAULT_NORMS = (None, "1.0[0,2]")


@dataclass(frozen=True)
class ScoreRow:
    """One way of scoring (codec, score normalization, candidates), its metrics and its matches.

    `samples` has the value of each metric on every resample of the queries, where they were asked for;
    `hard_negatives` is (how many reach the threshold of P90, how many there are), where a benchmark has such.
    """

    codec: str
    score_norm: str | None
    candidates: str
    metrics: Metrics | CopydaysMetrics
    matches: Matches
    samples: Mapping[str, np.ndarray] = field(default_factory=dict)
    hard_negatives: tuple[int | None, int] | None = None

    @property
    def main(self) -> tuple[str, float]:
        """Name, as papers write it, and value of the metric that is quoted for this row."""
        if isinstance(self.metrics, CopydaysMetrics):
            return "overall µAP", self.metrics.overall_uAP
        return "µAP" if self.score_norm is None else "µAP_SN", self.metrics.uAP


def score(*, query: str | Path, reference: str | Path | Sequence[str | Path], out: str | Path,
          ground_truth: str | Path | None = None, background: str | Path | None = None, metrics: str = "disc",
          metric: str = "ip", codecs: Sequence[str] = ("Flat",), score_norms: Sequence[str | None] = DEFAULT_NORMS,
          candidates: str | Sequence[str] = "per_query", k: int | None = None, bootstrap: int = 1000,
          hard_negatives: str | Path | None = None, predictions: bool = False) -> list[dict[str, object]]:
    """Measure descriptor files; write `out/metrics.csv` and `out/metrics.json` (docs/method.md §5, 6).

    Args:
        query, reference, background: descriptor files, of references one or several; background None: no score
            normalization and no codec that learns.
        ground_truth: CSV query_id,reference_id; not used by `cd10k`, where names tell.
        out: folder, made if need be.
        metrics: `disc`, pooled over scores; `cd10k`, strong mAP and overall µAP over L2 distances, see
            `evaluate_copydays`: references are the originals (of the queries, unless among the references) and the
            distractors, no score normalization.
        metric: of scores, see `Codec`; cd10k goes by distance, and refuses `cosine`.
        codecs: faiss index-factory strings, see `Codec`.
        score_norms: None or strings such as "1.0[0,2]", see `ScoreNorm`.
        candidates: one rule or several, see `search`.
        k: see `search`; None: 10, of cd10k 100.
        bootstrap: resamples of the queries behind the 95 % intervals; 0: no intervals.
        hard_negatives: CSV of the ids of queries that look like a reference and copy none; how many of them reach
            the threshold of P90 is counted.
        predictions: also write `out/predictions-<n>.csv` of query_id,reference_id,score, with n the
            number, from 1, of the row in metrics.csv.

    Returns:
        the rows of metrics.csv, one per codec, rule and normalization.

    Raises:
        UserError: anything wrong with the input; each message names the file and the mistake.
    """
    references = list(reference) if isinstance(reference, list | tuple) else [reference]
    for name, path in (("query", query), ("out", out), *(("reference", path) for path in references or [reference])):
        check_path(name, path)
    for name, path in (("background", background), ("ground_truth", ground_truth), ("hard_negatives", hard_negatives)):
        check_path(name, path, null="none")
    if metrics not in METRICS:
        raise UserError(f"metrics={metrics}: expected one of {', '.join(METRICS)}")
    if metrics == "disc" and ground_truth is None:
        raise UserError("ground_truth=null: expected the CSV of query_id,reference_id; only metrics=cd10k does without")
    if metrics == "cd10k" and not (ground_truth is None and hard_negatives is None
                                   and listed(candidates, "candidates") == ["per_query"]
                                   and tuple(listed(score_norms, "score_norms")) in (DEFAULT_NORMS, (None,))):
        raise UserError(f"metrics=cd10k takes the nearest of every query by distance, normalizes no scores, and reads "
                        f"from names which query copies what: leave out ground_truth={ground_truth}, candidates="
                        f"{candidates}, score_norms={list(score_norms)} and hard_negatives={hard_negatives}")
    check_metric(metric)
    if metrics == "cd10k" and metric == "cosine":
        raise UserError("metric=cosine: metrics=cd10k goes by L2 distance; leave it out, or normalize by "
                        "codecs=['L2norm,Flat']")
    metric = "l2" if metrics == "cd10k" else metric
    check_number("bootstrap", bootstrap, 0)
    out = Path(out)
    check_output(out, folder=True)
    files = {"query": Path(query)} | {f"reference{f'-{i}' if i else ''}": Path(path)
                                      for i, path in enumerate(references)}
    if background is not None:
        files["background"] = Path(background)
    negatives = None if hard_negatives is None else read_ids(hard_negatives)
    pairs = [] if metrics == "cd10k" else read_ground_truth(ground_truth)
    sets = {name: open_descriptors(path) for name, path in files.items()}
    if metric == "ip":
        for name, descriptors in sets.items():
            warn_of_lengths(descriptors, files[name])
    queries, learnt_from = sets["query"], sets.get("background")
    found = join([sets[name] for name in sets if name.startswith("reference")])
    if metrics == "cd10k":
        queries = copydays_blocks(queries)
    k = k if k is not None else 100 if metrics == "cd10k" else 10
    resamples = QueryBootstrap(queries.known, bootstrap) if bootstrap else None
    title = f"{len(queries):,} queries, {len(found):,} references, k={k}"
    if metrics == "cd10k":
        rows = score_copydays(queries, found, learnt_from, codecs=codecs, k=k, bootstrap=resamples, progress=True)
    else:
        rows = score_descriptors(queries, found, learnt_from, pairs, metric=metric, codecs=codecs,
                                 score_norms=score_norms, candidates=candidates, k=k, bootstrap=resamples,
                                 hard_negatives=negatives, progress=True)
        title += f", {len(pairs):,} pairs"
        files["ground_truth"] = Path(ground_truth)
    values = [as_record(row) for row in rows]
    inputs = {name: {"file": str(path), "sha256": sha256(path)} for name, path in files.items()}
    write_metrics(out, values, {**provenance(protocol=metrics), "metric": metric, "k": k, "bootstrap": bootstrap,
                                "inputs": inputs})
    if predictions:
        for number, row in enumerate(rows, start=1):
            write_predictions(out / f"predictions-{number}.csv", row.matches)
    wide_console().print(metrics_table(values, title=title))
    print(f"written: {out / 'metrics.csv'}")
    return values


def score_descriptors(query: Descriptors, reference: Descriptors, background: Descriptors | None,
                      pairs: Sequence[tuple[str, str]], *, metric: str = "ip", codecs: Sequence[str] = ("Flat",),
                      score_norms: Sequence[str | None] = DEFAULT_NORMS,
                      candidates: str | Sequence[str] = "per_query", k: int = 10,
                      bootstrap: QueryBootstrap | None = None, hard_negatives: Sequence[str] | None = None,
                      progress: bool = False) -> list[ScoreRow]:
    """Codec, search, normalize and measure; one row per codec x candidates x normalization, in the order given.

    The order of rows within the descriptor sets changes nothing (but for HNSW, which is built by threads in turns).
    Each codec costs one search of the background and one of the references. A codec that is not exact
    keeps and searches both as its string says.

    Args:
        query, reference, background: descriptors of one length d; background None where unused.
        pairs: ground-truth pairs; ids in `missing` are allowed and count as missed.
        metric: of scores, see `Codec`; those that are normalized, too: minus squared distances less the mean of the
            largest ones with the background.
        codecs: faiss index-factory strings, see `Codec`.
        score_norms: None or strings such as "1.0[0,2]", see `ScoreNorm`.
        candidates, k: see `search`.
        bootstrap: over the ids of these queries; None: no intervals.
        hard_negatives: ids of queries, see `score`.
        progress: whether to show a bar, on stderr, over long searches.

    Raises:
        UserError: options that are not understood, ids of the ground truth without a picture, lengths
            that differ, or a background that is absent or too small.
    """
    codecs, score_norms = listed(codecs, "codecs"), listed(score_norms, "score_norms")
    norms = [parse_score_norm(text) for text in score_norms]
    rules = listed(candidates, "candidates")
    for rule in rules:
        check_candidates(rule, k)
    check_dims({"query": query, "reference": reference, "background": background})
    if "global" in rules:
        check_exact(codecs, query.dim, "candidates=global", metric=metric)
    check_ids(query, reference, pairs)
    if hard_negatives is not None and (absent := np.setdiff1d(hard_negatives, query.known)).size:
        raise UserError(f"{absent.size:,} of {len(hard_negatives):,} hard negatives are no queries: {some(absent)}; "
                        f"expected ids of queries")
    depth = max((norm.last + 1 for norm in norms if norm), default=0)
    rows = []
    for codec, q, r, b in coded(query, reference, background, codecs, metric=metric):
        find = None if codec.exact else codec.nearest
        biases: list[np.ndarray | None] = [None] * len(norms)
        squares = None
        if metric == "l2" and codec.exact:
            squares, q, r, b = lifted(q, r, b)
        if depth:
            products = background_products(q.vectors, None if b is None else b.vectors, depth, find=find,
                                           label=f"{codec.text}: background" if progress else None)
            products = products if squares is None else products - squares[:, None]
            biases = [norm and norm.bias(products) for norm in norms]
        if squares is not None:
            biases = [squares if bias is None else squares + bias for bias in biases]
        found = search(q, r, k=k, candidates=rules, biases=biases, find=find,
                       label=f"{codec.text}: references" if progress else None)
        ways = [(rule, text) for rule in rules for text in score_norms]
        for (rule, text), matches in zip(ways, found, strict=True):
            measured = evaluate_matches(matches, pairs)
            negatives = None if hard_negatives is None else (
                queries_above(matches, hard_negatives, measured.threshold_at_p90), len(hard_negatives))
            rows.append(ScoreRow(codec.text, text, rule, measured, matches,
                                 bootstrap.pooled(matches, pairs) if bootstrap else {}, negatives))
    return rows


def score_copydays(query: Descriptors, reference: Descriptors, background: Descriptors | None, *,
                   codecs: Sequence[str] = ("Flat",), k: int = 100, bootstrap: QueryBootstrap | None = None,
                   progress: bool = False) -> list[ScoreRow]:
    """Measure CD10K (docs/method.md §6, 7): codec, k nearest by L2 distance, strong mAP and overall µAP.

    Args:
        query: all blocks of Copydays, ids `block/name`.
        reference: distractors, and the originals, ids `original/name`; where none of these are among them, those of
            the queries are taken. Ids without a block are taken for distractors', edits are left out.
        background: what codecs learn from.
        codecs, k, bootstrap, progress: as for `score_descriptors`.

    Raises:
        UserError: as `score_descriptors` and `evaluate_copydays`.
    """
    codecs = listed(codecs, "codecs")
    check_candidates("per_query", k)
    check_dims({"query": query, "reference": reference, "background": background})
    check_exact(codecs, query.dim, "cd10k")
    reference = replace(reference, names=_in_block(reference.names), missing=_in_block(reference.missing))
    edited = [block for block in BLOCKS if block != "original"]
    reference = reference.chosen(~_in_copydays(reference.names, edited), ~_in_copydays(reference.missing, edited))
    if not np.char.startswith(reference.known, ORIGINAL).any():
        reference = join([query.chosen(np.char.startswith(query.names, ORIGINAL),
                                       np.char.startswith(query.missing, ORIGINAL)), reference])
    originals = [name for name in reference.known.tolist() if name.startswith(ORIGINAL)]
    queries = query.known.tolist()
    rows = []
    for codec, q, r, _ in coded(query, reference, background, codecs):
        matches = search_by_distance(q, r, k=k, label=f"{codec.text}: references" if progress else None)
        rows.append(ScoreRow(codec.text, None, "per_query", evaluate_copydays(matches, queries, originals), matches,
                             bootstrap.copydays(matches, originals) if bootstrap else {}))
    return rows


def copydays_blocks(query: Descriptors) -> Descriptors:
    """Return the pictures of Copydays' blocks, which are its queries, of those of a whole dataset root.

    Raises:
        UserError: there are none.
    """
    if not np.char.startswith(query.known, ORIGINAL).any():
        raise UserError(f"none of the {len(query.known):,} queries ({some(query.known, most=3)}) is in the block "
                        f"original/; expected all blocks of Copydays, ids such as strong/200001: extract the folder "
                        f"above the blocks with ids=path")
    return query.chosen(_in_copydays(query.names), _in_copydays(query.missing))


def _in_copydays(ids: np.ndarray, blocks: Sequence[str] = BLOCKS) -> np.ndarray:
    """Whether an id `block/name` is of one of Copydays' blocks, bool [n]."""
    return np.isin(np.array([name.rpartition("/")[0] for name in ids.tolist()], dtype=np.str_), blocks)


def _in_block(ids: np.ndarray) -> np.ndarray:
    return np.array([name if "/" in name else f"distractors/{name}" for name in ids.tolist()], dtype=np.str_)


def as_record(row: ScoreRow) -> dict[str, object]:
    """Return the columns of metrics.csv for one row; `{"model": name, **as_record(row)}` adds one.

    First codec, score_norm, candidates and the metrics; then, where there are resamples, `<metric>_low` and
    `<metric>_high`, the 95 % interval over queries; then, where there are hard negatives, their number and how many
    reach the threshold of P90.
    """
    record = {"codec": row.codec, "score_norm": row.score_norm, "candidates": row.candidates, **asdict(row.metrics)}
    for name, samples in row.samples.items():
        record[f"{name}_low"], record[f"{name}_high"] = interval(samples)
    if row.hard_negatives:
        record["hard_negatives_above_p90"], record["hard_negatives"] = row.hard_negatives
    return record
