"""What codecs save against the µAP they lose (`rdcd bench codecs`)."""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import faiss
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from rich.table import Table

from rdcd.bench.clusters import draw
from rdcd.bench.score import bare_search
from rdcd.data.ground_truth import read_ground_truth
from rdcd.data.progress import track
from rdcd.errors import UserError, check_number, check_path
from rdcd.evaluation.metrics import evaluate_matches
from rdcd.evaluation.score_inputs import check_dims, check_ids
from rdcd.evaluation.tables import wide_console
from rdcd.files import atomic_path, check_output, write_json
from rdcd.provenance import provenance
from rdcd.retrieval.codec import Codec
from rdcd.retrieval.descriptors import Descriptors, open_descriptors, warn_of_lengths
from rdcd.retrieval.knn import search
from rdcd.retrieval.nearest import nearest
from rdcd.retrieval.score_norm import ScoreNorm, background_products, parse_score_norm

EXACT = "Flat"
CODECS = ("SQfp16", "SQ8", "PQ64", "PQ32", "PQ16", "LSH", "IVF256,Flat;nprobe=4", "IVF256,Flat;nprobe=16",
          "IVF256,Flat;nprobe=64", "HNSW32;efSearch=64")
_ROLES = ("query", "reference", "background", "ground_truth")


def bench_codecs(*, query: str | None = None, reference: str | None = None, background: str | None = None,
                 ground_truth: str | None = None, codecs: Sequence[str] = CODECS, score_norm: str = "1.0[0,2]",
                 k: int = 10, turns: int = 3, queries: int = 2000, references: int = 50_000,
                 drawn_background: int = 20_000, dim: int = 256, noise: float = 2.0, seed: int = 0,
                 out: str | None = None) -> dict:
    """Measure codecs: bytes per descriptor, seconds of building, search time and µAP against exact fp32.

    Searches are timed in turns with faiss's own exact one of the same vectors; building includes learning.

    Args:
        query, reference, background, ground_truth: see `score`; all None: drawn, see `draw`.
        codecs: faiss index-factory strings, see `Codec`.
        score_norm: of µAP_SN, see `ScoreNorm`.
        k: candidates per query.
        turns: timed searches of each.
        queries, references, drawn_background, dim, noise, seed: of what is drawn.
        out: JSON file for the result, with a plot beside it, `.png`; None: none.

    Raises:
        UserError: settings that cannot work.
    """
    files = dict(zip(_ROLES, (query, reference, background, ground_truth), strict=True))
    for key, value in files.items():
        check_path(key, value, null="drawn descriptors")
    if absent := [key for key, value in files.items() if value is None]:
        if len(absent) < len(files):
            raise UserError(f"{absent[0]}=null: expected {', '.join(_ROLES)}, or none of them for drawn descriptors")
    for key, value in (("k", k), ("turns", turns), ("queries", queries), ("references", references),
                       ("drawn_background", drawn_background), ("dim", dim)):
        check_number(key, value, 1)
    check_number("noise", noise, 0, whole=False)
    check_number("seed", seed, 0)
    norm = parse_score_norm(score_norm)
    if norm is None:
        raise UserError("score_norm=null: expected a string such as '1.0[0,2]', for µAP_SN")
    check_path("out", out, null="no file")
    if out:
        check_output(out)
        check_output(Path(out).with_suffix(".png"))
    with tempfile.TemporaryDirectory() as folder:
        places = files if not absent else draw(Path(folder), queries=queries, references=references,
                                               background=drawn_background, dim=dim, seed=seed,
                                               noise=noise)
        pairs = read_ground_truth(places["ground_truth"])
        q, r, b = (open_descriptors(places[role]).sorted() for role in _ROLES[:3])
        for descriptors, role in zip((q, r, b), _ROLES):
            warn_of_lengths(descriptors, places[role])
        check_dims({"query": q, "reference": r, "background": b})
        check_ids(q, r, pairs)
        q = q.coded(np.asarray(q.vectors))
        made = [Codec(text, q.dim) for text in dict.fromkeys((EXACT, *codecs))]
        rows = []
        with track(len(made), "codecs") as advance:
            for codec in made:
                rows.append(_measured(codec, q, r, b, pairs, norm=norm, k=k, turns=turns))
                for name in ("uAP", "uAP_SN"):
                    rows[-1][f"{name}_difference"] = rows[-1][name] - rows[0][name]
                advance(1)
        result = {"rows": rows, "queries": len(q), "references": len(r), "background": len(b), "dim": q.dim, "k": k,
                  "score_norm": score_norm, "drawn": bool(absent), "threads": faiss.omp_get_max_threads(),
                  "provenance": provenance(seed=seed if absent else None)}
    if out:
        write_json(out, result)
        plot(Path(out).with_suffix(".png"), rows)
    _show(result)
    return result


def _measured(codec: Codec, query: Descriptors, reference: Descriptors, background: Descriptors,
              pairs: Sequence[tuple[str, str]], *, norm: ScoreNorm, k: int, turns: int) -> dict:
    start = time.perf_counter()
    codec.train(background.vectors)
    build = time.perf_counter() - start
    q, r, b = (d.coded(codec.coded(d.vectors)) if codec.exact else d for d in (query, reference, background))
    products = background_products(q.vectors, b.vectors, norm.last + 1, find=None if codec.exact else codec.nearest)
    find: Callable[..., tuple[np.ndarray, np.ndarray]] = nearest
    if not codec.exact:
        start = time.perf_counter()
        codec.build(r.vectors)
        build += time.perf_counter() - start

        def find(queries: np.ndarray, references: object, k: int, *, label: str | None = None) -> tuple:
            return codec.find(queries, k)

    seconds, ratios = [], []
    for _ in range(turns):
        exact = bare_search(query.vectors, reference.vectors, k)
        start = time.perf_counter()
        find(q.vectors, r.vectors, k)
        seconds.append(time.perf_counter() - start)
        ratios.append(seconds[-1] / exact)
    plain, normalized = (evaluate_matches(found, pairs).uAP for found in search(
        q, r, k=k, biases=[None, norm.bias(products)], find=find))
    codec._index.reset()
    return {"codec": codec.text, "bytes": codec.bytes, "build_seconds": build,
            "search_seconds": statistics.median(seconds), "search_ratio": statistics.median(ratios),
            "ratio_low": min(ratios), "ratio_high": max(ratios), "turns": turns, "uAP": plain, "uAP_SN": normalized}


def plot(path: Path, rows: Sequence[dict]) -> None:
    """Draw µAP_SN against bytes, and search time against the µAP_SN lost, into a PNG."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours, marks = colormaps["tab10"].colors, "os^D"
    for axes, x, y in ((left, "bytes", "uAP_SN"), (right, "search_ratio", "uAP_SN_difference")):
        for number, row in enumerate(rows):
            axes.scatter(row[x], 100 * row[y], s=28, label=row["codec"], color=colours[number % len(colours)],
                         marker=marks[number // len(colours) % len(marks)])
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    left.set(xlabel="bytes per descriptor", ylabel="µAP_SN, %")
    right.set(xlabel="search time, exact fp32 = 1", ylabel="µAP_SN against exact, points")
    figure.legend(*left.get_legend_handles_labels(), loc="outside right", fontsize=8)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=150, facecolor="white")


def _show(result: dict) -> None:
    table = Table(title=f"{result['queries']:,} queries, {result['references']:,} references, {result['dim']}-d, "
                        f"{result['threads']} threads")
    for head in ("codec", "bytes", "build s", "search/exact", "over turns", "µAP %", "µAP_SN %", "difference"):
        table.add_column(head, justify="left" if head == "codec" else "right")
    for row in result["rows"]:
        table.add_row(row["codec"], str(row["bytes"]), f"{row['build_seconds']:.1f}", f"{row['search_ratio']:.3f}",
                      f"{row['ratio_low']:.3f}–{row['ratio_high']:.3f}", f"{100 * row['uAP']:.2f}",
                      f"{100 * row['uAP_SN']:.2f}", f"{100 * row['uAP_SN_difference']:+.2f}")
    wide_console().print(table)
