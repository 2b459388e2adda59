"""`rdcd calibrate`: which threshold gives which precision, measured as `rdcd search` searches, for a student's card."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Table

from rdcd.collection.outputs import choose_out
from rdcd.collection.pictures import Embedder, settle_bad
from rdcd.data.benchmark import make_benchmark
from rdcd.data.disc import Benchmark
from rdcd.data.images import find_images, reads_images
from rdcd.data.layouts import open_layout
from rdcd.data.manifest import Manifest
from rdcd.errors import BadImage, UserError, check_number, check_path
from rdcd.evaluation.evaluate import DataRoot
from rdcd.evaluation.networks import is_named
from rdcd.evaluation.plots import plot_thresholds
from rdcd.evaluation.precisions import SLACK, Curve, expected_precision, precision_rows, threshold_curve
from rdcd.evaluation.runs import find_run
from rdcd.evaluation.tables import wide_console, write_table
from rdcd.files import write_json
from rdcd.models.exported import card_of, read_exported_card
from rdcd.models.student import is_safetensors
from rdcd.models.weights import read_card
from rdcd.provenance import provenance
from rdcd.retrieval.calibration import recalibrated
from rdcd.retrieval.codec import Codec
from rdcd.retrieval.index import FLAT, GIVEN_NORM, OWN_NORM, Index
from rdcd.retrieval.index_writer import new_index
from rdcd.retrieval.score_norm import background_products, parse_score_norm

_MAX_SIDE, _MOST_QUERIES = 1024, 2000  # of the benchmark that is made of the user's pictures
LAYOUTS = ("disc", "ndec", "pairs")


@dataclass(frozen=True)
class _Role:
    """Pictures of a role: absolute paths in order, their SHA-256 uint8 [n, 32] and descriptors float32 [n, d]."""

    paths: list[str]
    digests: np.ndarray
    vectors: np.ndarray


@reads_images
def calibrate(*, checkpoint: str | Path, data: DataRoot = DataRoot(), layout: str = "disc", split: str = "dev",
              images: str | Path | None = None, queries: int | None = None, codecs: Sequence[str] | str = FLAT,
              k: int = 10, seed: int = 0, out: str | Path | None = None, batch_size: int = 64,
              workers: int | None = None, device: str | None = None) -> list[dict[str, object]]:
    """Measure thresholds on a benchmark and write them on the student's card: the `rdcd calibrate` command.

    The references are indexed and the queries searched for as `rdcd search` does, un-normalized and normalized either
    way an index normalizes: against a background that is given, and against its own pictures. The weights file is not
    touched; what the card had for the same codec and normalization is replaced.

    Args:
        checkpoint: `student.safetensors` or an exported `.onnx`, or a run folder or `latest` for a run's student.
        data, layout, split: the benchmark, see `open_layout`.
        images: folder of pictures instead, no labels needed: `make_benchmark` makes a benchmark of edited copies of
            them, in `out/benchmark`.
        queries: edited copies in that benchmark, four distractors beside each; None: two of every reference, at most
            2,000. Higher precisions need more of them.
        codecs: of the indexes that are to be searched, see `Codec`; one that learns does so from the background.
        k: matches of a query, at most.
        seed: of the benchmark that is made of `images`.
        out: folder for calibration.csv, calibration.json and calibration.png; None: a new one under `runs/`.
        batch_size, workers, device: see `Embedder.load`.

    Returns:
        the rows of calibration.csv.

    Raises:
        UserError: no student with a card, no benchmark, or settings that cannot work.
    """
    weights = _weights(checkpoint)
    check_number("k", k, 1)
    check_number("queries", queries, 1, null="two of every reference")
    check_path("images", images, null="the benchmark at data.root")
    check_path("data.root", data.root, null="a benchmark made of images")
    if (images is None) == (data.root is None):
        raise UserError(f"data.root={data.root} and images={images}: expected one of them, a benchmark or a folder of "
                        f"pictures to make one of")
    if layout not in LAYOUTS:
        raise UserError(f"layout={layout}: expected one of {', '.join(LAYOUTS)}")
    codecs = [codecs] if isinstance(codecs, str) else list(codecs)
    embedder = Embedder.load(weights, batch_size=batch_size, workers=workers, device=device)
    trained = [_codec(text, embedder.network.dim) for text in codecs]
    folder = choose_out(out, "calibrate")
    if images is not None:
        queries = queries or min(max(6 * len(find_images(images)) // 10, 1), _MOST_QUERIES)
        root = make_benchmark(source="folder", photos=images, out=folder / "benchmark", seed=seed, queries=queries,
                              max_side=_MAX_SIDE, workers=1 if workers == 0 else workers)
        benchmark = open_layout("disc", root)
    else:
        benchmark = open_layout(layout, data.root, split=split, pairs=data.pairs, background=data.background)
    name = str(images if images is not None else data.root)
    bad: list[BadImage] = []
    found = {role: _embedded(embedder, pictures, bad, role) for role, pictures in (
        ("query", benchmark.queries), ("reference", benchmark.references), ("background", benchmark.background))
        if pictures is not None}
    settle_bad(folder / "bad_files.csv", bad)
    made = provenance(device=device, weights={"student": embedder.card["weights_sha256"]})
    counts = {"queries": len(benchmark.queries), "queries_with_copies": len({query for query, _ in benchmark.pairs}),
              "references": len(benchmark.references), "background": len(benchmark.background or ()),
              "pairs": len(benchmark.pairs), "k": k}
    rows, about, curves = [], [], {}
    for codec in trained:
        for norm, (scores, correct) in _scored(embedder, codec, found, benchmark, k=k, folder=folder).items():
            curve = threshold_curve(scores, correct, len(benchmark.pairs))
            key = {"codec": codec.text, "score_norm": norm}
            rows += [key | row | {"benchmark": name} for row in precision_rows(curve)]
            steps = np.column_stack(expected_precision(scores, correct)).round(6).tolist()
            about.append(key | {"benchmark": name, **counts, "curve": steps,
                                **{entry: made[entry] for entry in ("command", "git_commit", "written")}})
            curves[f"{codec.text}, {norm or 'not normalized'}"] = curve
    _write(weights, folder, embedder, rows, about, {"benchmark": {"root": name, **counts}, "provenance": made}, curves)
    return rows


def _weights(checkpoint: str | Path) -> Path:
    """Return the weights file that has a card to write on."""
    check_path("checkpoint", checkpoint)
    path = Path(checkpoint)
    if is_named(checkpoint):
        raise UserError(f"checkpoint={checkpoint}: expected a student, on whose card thresholds are kept; a model by "
                        f"name has none: give `rdcd search` a threshold=NUMBER")
    if str(checkpoint) == "latest" or path.is_dir():
        path = find_run(checkpoint, finished=True) / "student.safetensors"
    if not path.is_file():
        raise UserError(f"checkpoint={checkpoint}: no file {path}; expected student.safetensors, a run folder or "
                        f"latest")
    if path.suffix != ".onnx" and not is_safetensors(path):
        raise UserError(f"checkpoint={checkpoint} has no card to write thresholds on: `rdcd export "
                        f"checkpoint={checkpoint} out=student.safetensors` makes a student with one")
    _card(path)
    return path


def _card(weights: Path) -> tuple[Path, dict]:
    """Return where the card of a weights file is, and the card."""
    if weights.suffix == ".onnx":
        return card_of(weights), read_exported_card(weights)
    return weights.with_suffix(".json"), read_card(weights)


def _codec(text: str, dim: int) -> Codec:
    codec = Codec(text, dim)
    if not codec.exact:
        raise UserError(f"codecs={text}: expected transforms followed by Flat, as of an index; its factory changes no "
                        f"score")
    return codec


def _embedded(embedder: Embedder, pictures: Manifest, bad: list[BadImage], role: str) -> _Role:
    paths = sorted((str(path.absolute()) for path in pictures.paths_by_name().values()), key=str.encode)
    shards = list(embedder.shards(paths, bad, label=role))
    if not shards:
        raise UserError(f"none of the {len(paths)} {role} pictures under {pictures.root} could be read, the first "
                        f"{bad[-1].path} ({bad[-1].reason})")
    return _Role([path for shard in shards for path in shard.paths], np.concatenate([s.digests for s in shards]),
                 np.concatenate([shard.vectors for shard in shards]))


def _scored(embedder: Embedder, codec: Codec, found: Mapping[str, _Role], benchmark: Benchmark, *, k: int,
            folder: Path) -> dict[str | None, tuple[np.ndarray, np.ndarray]]:
    """Return score normalization → (scores, whether right), of the k nearest of all queries."""
    query, reference, background = (found.get(role) for role in ("query", "reference", "background"))
    codec.train(None if background is None else background.vectors)
    with tempfile.TemporaryDirectory(prefix=".work-", dir=folder) as work:
        index = _index(Path(work) / "index", embedder, codec, reference)
        coded = index.encode(query.vectors)
        scores, rows = index.nearest(coded, k)
        biases: dict[str | None, np.ndarray] = {None: np.zeros(len(coded))}
        depth = {text: parse_score_norm(text).last + 1 for text in (GIVEN_NORM, OWN_NORM)}
        if background is not None and len(background.paths) >= depth[GIVEN_NORM]:
            others = codec.apply(background.vectors)
            biases[GIVEN_NORM] = parse_score_norm(GIVEN_NORM).bias(
                background_products(coded, others, depth[GIVEN_NORM]))
        if len(index.background) >= depth[OWN_NORM]:
            biases[OWN_NORM] = index.biases(coded, parse_score_norm(OWN_NORM))
    names = {role: {str(path.absolute()): name for name, path in pictures.paths_by_name().items()}
             for role, pictures in (("query", benchmark.queries), ("reference", benchmark.references))}
    known = np.array([names["reference"][path] for path in reference.paths])
    copies: dict[str, set[str]] = {}
    for one, other in benchmark.pairs:
        copies.setdefault(one, set()).add(other)
    correct = np.array([[name in copies.get(names["query"][path], ()) for name in known[near].tolist()]
                        for path, near in zip(query.paths, rows)])
    return {text: ((scores - bias[:, None]).ravel(), correct.ravel()) for text, bias in biases.items()}


def _index(folder: Path, embedder: Embedder, codec: Codec, reference: _Role) -> Index:
    with new_index(folder, model=embedder.about, codec=codec, dim=embedder.network.dim) as writer:
        segment = writer.segment()
        segment.append(reference.paths, reference.digests, writer.index.encode(reference.vectors))
        segment.close()
        return writer.commit(segment)


def _write(weights: Path, folder: Path, embedder: Embedder, rows: list[dict], about: list[dict], record: dict,
           curves: Mapping[str, Curve]) -> None:
    place, card = _card(weights)
    if card["weights_sha256"] != embedder.card["weights_sha256"]:
        raise UserError(f"{weights} was replaced while it was measured: calibrate it again")
    write_table(folder / "calibration.csv", rows)
    write_json(folder / "calibration.json", {"rows": rows, "calibrated": about, **record})
    plot_thresholds(folder / "calibration.png", curves)
    write_json(place, card | recalibrated(card, rows, about))
    wide_console().print(_table(rows, title=f"{weights.name} on {record['benchmark']['root']}"))
    counts = record["benchmark"]
    print(f"measured where {counts['queries_with_copies']:,} of {counts['queries']:,} queries have a copy among "
          f"{counts['references']:,} references: where copies are rarer or the collection is larger, the same "
          f"threshold gives a lower precision\ncard:  {place}\ntable: "
          f"{folder / 'calibration.csv'}\nplot:  {folder / 'calibration.png'}", flush=True)


def _table(rows: Sequence[Mapping[str, object]], *, title: str) -> Table:
    table = Table(title=escape(title), caption=f"at least: lower end of the 95 % interval; a precision stands if that "
                                               f"allows no more than {SLACK} times as many wrong matches")
    for head in ("codec", "score norm", "precision", "threshold", "recall %", "right", "wrong", "at least %"):
        table.add_column(head, justify="left" if head in ("codec", "score norm") else "right")
    for row in rows:
        cells = [escape(str(row["codec"])), escape(str(row["score_norm"])), f"{row['precision']:g}"]
        if row["threshold"] is None:
            table.add_row(*cells, "–", "", "", "", escape(str(row["refused"])))
        else:
            table.add_row(*cells, f"{row['threshold']:.4f}", f"{100 * row['recall']:.1f}", f"{row['right']:,}",
                          f"{row['wrong']:,}", f"{100 * row['precision_low']:.1f}")
    return table
