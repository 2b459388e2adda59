"""`rdcd score` against the bare faiss searches it needs (`rdcd bench score`)."""

import functools
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import faiss
import numpy as np
from rich.table import Table

from rdcd.bench.clusters import draw, needed_bytes
from rdcd.data.parallel import end_with_parent
from rdcd.errors import UserError, check_number, check_path
from rdcd.evaluation import score as scoring
from rdcd.evaluation.bootstrap import QueryBootstrap
from rdcd.evaluation.score_inputs import check_exact
from rdcd.evaluation.tables import wide_console
from rdcd.files import check_output, write_json
from rdcd.provenance import provenance
from rdcd.retrieval.devices import knn
from rdcd.retrieval.rows import rows_of
from rdcd.retrieval.score_norm import parse_score_norm

_TRY = 512, 1 << 14  # queries and references of the search behind the estimate


def bench_score(*, queries: int = 50_000, references: int = 1_000_000, background: int = 1_000_000, dim: int = 256,
                codecs: Sequence[str] = ("Flat", "PCAW{d},L2norm,Flat"),
                score_norms: Sequence[str | None] = (None, "1.0[0,2]"), k: int = 10, bootstrap: int = 1000,
                bare_share: float = 1.0, sizes: Sequence[float] = (0.25, 0.5), seed: int = 0, keep: str | None = None,
                out: str | None = None) -> dict:
    """Time `rdcd score` over drawn descriptors, and after each of its searches the bare one; return the result.

    A bare search is faiss's own, of as many neighbours as are asked for, block after block of the same vectors; reading
    and transforming these is not counted. Every run has a process of its own, whose peak memory, pages of mapped files
    included, is told.

    Args:
        queries, references, background, dim: what is drawn, see `draw`.
        codecs, score_norms, k, bootstrap: see `score`; exact codecs alone.
        bare_share: share of the queries that the bare searches take; their time is scaled up.
        sizes: shares of the queries, and then of references and background, of further runs, which tell how time grows.
        seed: of the descriptors.
        keep: folder, not there yet, for the drawn descriptors of the full size; None: a temporary one.
        out: JSON file for the result; None: none.

    Raises:
        UserError: settings that cannot work, or no room on the disk.
    """
    for key, value in (("queries", queries), ("references", references), ("background", background), ("dim", dim),
                       ("k", k)):
        check_number(key, value, 1)
    check_number("bootstrap", bootstrap, 0)
    check_number("seed", seed, 0)
    for key, value in (("bare_share", bare_share), *(("sizes", size) for size in sizes)):
        check_number(key, value, 0, 1, whole=False)
        if not value:
            raise UserError(f"{key}=0: expected a share above 0, at most 1")
    check_exact(codecs, dim, "rdcd bench score")
    for text in score_norms:
        parse_score_norm(text)
    for key, value in (("keep", keep), ("out", out)):
        check_path(key, value, null="none")
    if out:
        check_output(out)
    if keep:
        check_output(keep, folder=True)
        if Path(keep).exists():
            raise UserError(f"keep={keep} is there already: expected a new folder; remove it, or give another name")
    whole = {"queries": queries, "references": references, "background": background}
    shares = sorted({float(size) for size in sizes} - {1.0})
    runs = [("all", whole)]
    runs += [("queries", whole | {"queries": _part(queries, size)}) for size in shares]
    runs += [("references", whole | {"references": _part(references, size), "background": _part(background, size)})
             for size in shares]
    place = Path(keep or tempfile.gettempdir()).absolute()
    _check_room(place, needed_bytes(**whole, dim=dim), most=keep and len(runs) > 1)
    _say_estimate(runs, dim=dim, codecs=len(codecs), k=k, bare_share=bare_share)
    settings = {"codecs": list(codecs), "score_norms": list(score_norms), "k": k, "bootstrap": bootstrap,
                "bare_share": bare_share}
    rows = []
    for number, (varied, counts) in enumerate(runs, start=1):
        print(f"run {number} of {len(runs)}: " + ", ".join(f"{count:,} {role}" for role, count in counts.items()),
              flush=True)
        with tempfile.TemporaryDirectory() as folder:
            where = Path(keep) if keep and number == 1 else Path(folder) / "drawn"
            places = draw(where, **counts, dim=dim, seed=seed)
            with multiprocessing.get_context("spawn").Pool(1, end_with_parent) as pool:
                found = pool.apply(measure, (places, Path(folder) / "scores", settings))
        rows.append({"varied": varied, **counts, "dim": dim, "pairs": counts["queries"] * (
            counts["references"] + counts["background"]), **found})
        print(f"  {found['seconds']:.1f} s, {found['ratio']:.3f} times the bare searches", flush=True)
        result = {"rows": rows, "runs_left": len(runs) - number, **settings, "sizes": shares,
                  "threads": faiss.omp_get_max_threads(), "provenance": provenance(seed=seed), **growing(rows)}
        if out:  # after every run: the largest comes first, and takes most of the hours
            write_json(out, result)
    _show(result)
    return result


def growing(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Return by which power of queries, and of references, time grows, and note it in the rows."""
    growth = {}
    for varied in ("queries", "references"):
        some = [row for row in rows if row["varied"] in ("all", varied)]
        if len(some) > 1:
            growth[varied] = exponent(some)
    for row in rows:
        row["exponent"] = growth.get(row["varied"])
    return {"growth": growth}


def measure(places: dict[str, Path], out: Path, settings: dict) -> dict:
    """Run `score` in this process, and the bare search after each of its own; return seconds, ratio and memory."""
    spent: dict[str, float] = defaultdict(float)
    share = settings["bare_share"]

    def staged(call: Callable, stage: str, bare: Callable | None = None) -> Callable:
        @functools.wraps(call)
        def timed(*args: object, **kwargs: object) -> object:
            start = time.perf_counter()
            found = call(*args, **kwargs)
            spent[stage] += time.perf_counter() - start
            if bare:
                start = time.perf_counter()
                spent["bare"] += bare(*args, **kwargs)
                spent["apart"] += time.perf_counter() - start
            return found
        return timed

    def bare_background(queries: np.ndarray, background: object, depth: int, **_: object) -> float:
        return bare_search(queries, background, depth, share=share)

    def bare_references(query: object, reference: object, *, k: int, **_: object) -> float:
        return bare_search(query.vectors, reference.vectors, k, share=share)

    replaced = [(scoring, "open_descriptors", "reading", None), (scoring, "sha256", "reading", None),
                (scoring, "background_products", "searches", bare_background),
                (scoring, "search", "searches", bare_references),
                (scoring, "evaluate_matches", "metrics", None), (QueryBootstrap, "pooled", "bootstrap", None)]
    kept = [(owner, name, getattr(owner, name)) for owner, name, *_ in replaced]
    for owner, name, stage, bare in replaced:
        setattr(owner, name, staged(getattr(owner, name), stage, bare))
    try:
        start = time.perf_counter()
        values = scoring.score(**places, out=out, **{key: settings[key] for key in (
            "codecs", "score_norms", "k", "bootstrap")})
        seconds = time.perf_counter() - start - spent["apart"]
    finally:
        for owner, name, call in kept:
            setattr(owner, name, call)
    stages = {stage: spent[stage] for stage in ("reading", "searches", "metrics", "bootstrap")}
    return {"seconds": seconds, "bare_seconds": spent["bare"], "bare_share": share, "ratio": seconds / spent["bare"],
            "search_ratio": spent["searches"] / spent["bare"], **stages, "other": seconds - sum(stages.values()),
            "peak_gb": peak_bytes() / 1e9, "uAP": values[-1]["uAP"]}


def bare_search(queries: np.ndarray, vectors: object, k: int, *, share: float = 1.0) -> float:
    """Search as little as can be; return the seconds that all queries would take."""
    vectors = rows_of(vectors)
    some = queries[:max(1, round(share * len(queries)))]
    best = faiss.ResultHeap(len(some), k, keep_max=True)
    seconds = 0.0
    for first, block in vectors.blocks():
        start = time.perf_counter()
        scores, rows = knn(some, block, min(k, len(block)))
        best.add_result(scores, rows + first)
        seconds += time.perf_counter() - start
    best.finalize()
    return seconds * len(queries) / len(some)


def exponent(rows: Sequence[dict]) -> float:
    """Return p of seconds ~ pairs^p, by least squares of the logarithms."""
    return float(np.polyfit(np.log([row["pairs"] for row in rows]), np.log([row["seconds"] for row in rows]), 1)[0])


def peak_bytes() -> int:
    """Return the most memory this process has held, without what its parent held before it."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _part(count: int, share: float) -> int:
    return max(1, round(share * count))


def _check_room(place: Path, need: int, *, most: bool) -> None:
    need *= 2 if most else 1  # what is kept, and a further run's
    place = next(folder for folder in (place, *place.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    print(f"disk: {need / 1e9:.1f} GB needed in {place}, {free / 1e9:.1f} GB free", flush=True)
    if need > free:
        raise UserError(f"{need / 1e9:.1f} GB of descriptors do not fit in {place}, which has {free / 1e9:.1f} GB; "
                        f"free some, set TMPDIR or keep=DIR to another disk, or ask for fewer references")


def _say_estimate(runs: list, *, dim: int, codecs: int, k: int, bare_share: float) -> None:
    rng = np.random.default_rng(0)
    queries, references = (rng.standard_normal((count, dim), np.float32) for count in _TRY)
    bare_search(queries, references, k)
    each = bare_search(queries, references, k) / _TRY[0] / _TRY[1]
    pairs = sum(counts["queries"] * (counts["references"] + counts["background"]) for _, counts in runs)
    print(f"about {(1.1 + bare_share) * codecs * pairs * each / 60:.1f} minutes of searching in {len(runs)} runs",
          flush=True)


def _show(result: dict) -> None:
    table = Table(title=f"{len(result['codecs'])} codecs x {len(result['score_norms'])} normalizations, "
                        f"{result['threads']} threads")
    for head in ("queries", "references", "seconds", "bare", "ratio", "reading", "searches", "metrics", "bootstrap",
                 "other", "peak GB"):
        table.add_column(head, justify="right")
    for row in result["rows"]:
        table.add_row(f"{row['queries']:,}", f"{row['references']:,}", f"{row['seconds']:.1f}",
                      f"{row['bare_seconds']:.1f}", f"{row['ratio']:.3f}", *(f"{row[stage]:.1f}" for stage in (
                          "reading", "searches", "metrics", "bootstrap", "other")), f"{row['peak_gb']:.2f}")
    wide_console().print(table)
    if result["bare_share"] < 1:
        print(f"bare searches took {result['bare_share']:.0%} of the queries; their time is scaled up")
    for varied, power in result["growth"].items():
        print(f"time grows with {varied} to the power of {power:.2f}")
