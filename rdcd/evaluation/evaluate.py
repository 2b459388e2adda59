"""Extract and score under a protocol, for one or more models: one table, one page (`rdcd evaluate`)."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rdcd.data.disc import Benchmark, read_edit_families
from rdcd.data.images import reads_images
from rdcd.data.layouts import open_layout
from rdcd.data.ledger import MAX_BAD_SHARE, Ledger
from rdcd.errors import UserError, check_number, check_path
from rdcd.evaluation.bootstrap import QueryBootstrap
from rdcd.evaluation.cases import ModelResult, comparable
from rdcd.evaluation.differences import differences
from rdcd.evaluation.extract import check_device, default_device, extract_descriptors, take_cores
from rdcd.evaluation.networks import is_named, load_network, preprocessing
from rdcd.evaluation.protocols import Protocol
from rdcd.evaluation.report import plot_curves, plot_precision_recall, write_report
from rdcd.evaluation.runs import RUNS, find_run, read_curves, read_run, run_models
from rdcd.evaluation.score import ScoreRow, as_record, score_copydays, score_descriptors
from rdcd.evaluation.tables import metrics_table, wide_console, write_metrics, write_table
from rdcd.files import check_output
from rdcd.models.student import check_size, parameter_count
from rdcd.provenance import provenance
from rdcd.retrieval.codec import Codec
from rdcd.retrieval.descriptors import Descriptors, write_descriptors
from rdcd.retrieval.score_norm import parse_score_norm


@dataclass(frozen=True)
class DataRoot:
    """Where the benchmark lies; root None: where the run that is evaluated had it.

    `pairs`, `background` and `distractors` name what a layout may have in places of its own, see `open_layout`.
    """

    root: str | None = None
    pairs: str | None = None
    background: str | None = None
    distractors: str | None = None


@reads_images
def evaluate(*, checkpoint: str | Sequence[str] = "latest", data: DataRoot = DataRoot(),
             protocol: Protocol = Protocol(), out: str | None = None, batch_size: int = 64,
             workers: int | None = None, device: str | None = None, keep_descriptors: bool = True,
             allow_torchscript: bool = False, max_bad_share: float = MAX_BAD_SHARE) -> list[dict]:
    """Measure models on a benchmark; write metrics.csv, metrics.json, report.html; return the table's rows.

    Args:
        checkpoint: `latest`, a run folder (its student, teacher and untrained student), a weights file
            (`.safetensors`), a training checkpoint (`.ckpt`), a name (see `load_network`), or a list of these. The
            first is compared with the others.
        data: root of the benchmark.
        protocol: how to measure.
        out: folder of the results; None: a new one inside the run folder, or under `runs/`.
        batch_size, workers, device: of extraction.
        keep_descriptors: write descriptor files to `out/descriptors`.
        allow_torchscript: see `load_network`.
        max_bad_share: largest share of queries, of references or of background that may be unreadable.

    Raises:
        UserError: nothing to evaluate, no benchmark, or too many unreadable pictures.
    """
    device = check_device(device)
    take_cores(device, workers)
    wanted = list(checkpoint) if isinstance(checkpoint, list | tuple) else [checkpoint]
    if not wanted:
        raise UserError(f"checkpoint={checkpoint}: expected latest, a run folder, a weights file, a name, or a list of "
                        f"these")
    for item in wanted:
        check_path("checkpoint", item)
    for key in ("root", "pairs", "background", "distractors"):
        check_path(f"data.{key}", getattr(data, key), null="that of the run or the layout")
    found: list[tuple[list[str], Path | str]] = []
    runs = []
    for item in wanted:
        if is_named(item):
            found.append(([str(item)], str(item)))
        elif item == "latest" or Path(item).is_dir():
            runs.append(find_run(item, finished=True))
            places = [f"{runs[-1].name} ", f"{item} "] if len(wanted) > 1 else [""]
            found += [([place + name for place in places], path) for name, path in run_models(runs[-1]).items()]
        else:
            path = Path(item)
            found.append(([path.stem, f"{path.parent.name} {path.stem}".strip(), str(path)], path))
    models = dict(zip(distinct([names for names, _ in found]), (path for _, path in found), strict=True))
    roots = [data.root] if data.root else sorted({read_run(run)["data_root"] for run in runs})
    if len(roots) > 1:
        raise UserError(f"these runs were measured on different benchmarks ({', '.join(roots)}): say on which to "
                        f"measure them all, data.root=DIR")
    root = roots[0] if roots else None
    if root is None:
        raise UserError(f"checkpoint={checkpoint} does not say which benchmark to measure on: give data.root=DIR")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    check_path("out", out, null="a new folder")
    check_number("max_bad_share", max_bad_share, 0, 1, whole=False)
    if out is None:
        out = runs[0] / f"evaluation-{stamp}" if runs else RUNS / f"{stamp}-evaluation"
    check_output(out, folder=True)
    benchmark = open_layout(protocol.layout, root, split=protocol.split, pairs=data.pairs, background=data.background,
                            distractors=data.distractors)
    return measure(models, benchmark=benchmark, protocol=protocol, out=Path(out),
                   title=f"Evaluation of {_listed([run.name for run in runs] or list(models))}",
                   batch_size=batch_size, workers=workers, device=device, keep_descriptors=keep_descriptors,
                   curves=read_curves(runs[0] / "logs") if runs else None,
                   seed=read_run(runs[0])["seed"] if runs else None, allow_torchscript=allow_torchscript,
                   max_bad_share=max_bad_share)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def distinct(candidates: Sequence[Sequence[str]]) -> list[str]:
    """Choose a name for each: the first of its candidates that no other has in that place; of the same, numbered."""
    chosen: list[str] = []
    for i, own in enumerate(candidates):
        others = [other for j, other in enumerate(candidates) if j != i]
        free = (name for place, name in enumerate(own)
                if all(name != other[min(place, len(other) - 1)] for other in others))
        name = next(free, own[-1])
        while name in chosen:
            name = f"{own[-1]} ({sum(other.startswith(own[-1]) for other in chosen) + 1})"
        chosen.append(name)
    return chosen


def evaluate_run(folder: Path, *, out: Path, benchmark: Benchmark, protocol: Protocol, workers: int,
                 device: str, allow_torchscript: bool = False, max_bad_share: float = MAX_BAD_SHARE) -> list[dict]:
    """Measure all models of a run folder, into `out`."""
    about = read_run(folder)
    return measure(run_models(folder), benchmark=benchmark, protocol=protocol, out=out, title=about["name"],
                   workers=workers, device=device, curves=read_curves(folder / "logs"), seed=about["seed"],
                   allow_torchscript=allow_torchscript, max_bad_share=max_bad_share)


def measure(models: Mapping[str, Path | str], *, benchmark: Benchmark, protocol: Protocol, out: Path, title: str,
            batch_size: int = 64, workers: int | None = None, device: str | None = None, keep_descriptors: bool = False,
            curves: Mapping | None = None, seed: int | None = None, allow_torchscript: bool = False,
            max_bad_share: float = MAX_BAD_SHARE) -> list[dict]:
    """Measure models by name and write the results; the first model is the one the page shows.

    Unreadable pictures are listed in `out/bad_files_evaluation.csv` and scored as missing.

    Raises:
        UserError: weights that cannot be loaded, a benchmark whose files disagree, or too many unreadable pictures.
    """
    results, rows, weights, sizes, resizes, trained = [], [], {}, {}, {}, {}
    folders: set[str] = set()
    ledger = Ledger(out / "bad_files_evaluation.csv", max_bad_share=max_bad_share)  # beside a training run's own
    roles = {"query": benchmark.queries, "reference": benchmark.references, "background": benchmark.background}
    roles = {role: pictures for role, pictures in roles.items() if pictures is not None}
    families = read_edit_families(benchmark.root, split=benchmark.split) if benchmark.layout == "disc" else None
    _rehearse(models, benchmark, protocol, allow_torchscript=allow_torchscript)
    resamples = QueryBootstrap(benchmark.queries.names, protocol.bootstrap) if protocol.bootstrap else None
    for name, path in models.items():
        network, card = load_network(path, allow_torchscript=allow_torchscript)
        sizes[name], resizes[name] = size, resize = preprocessing(card, size=protocol.size, resize=protocol.resize)
        found = {}
        folder = re.sub(r"[^\w.]+", "-", name).strip("-.") or "model"  # a name may be a path
        while folder in folders:
            folder += "-2"
        folders.add(folder)
        for role, pictures in roles.items():
            found[role], unreadable = extract_descriptors(
                network, pictures, size=size, resize=resize, batch_size=batch_size, workers=workers,
                device=device or default_device(), label=f"{name}: {role}")
            ledger.add(unreadable, seen=len(pictures))
            ledger.settle()
            if keep_descriptors:
                write_descriptors(out / "descriptors" / folder / f"{role}.h5", found[role])
            found[role] = found[role].sorted()  # once, for all codecs
        scored = _score(name, found, benchmark, protocol, resamples)
        if not scored:
            print(f"{name}: no codec is left, so it is left out of the table")
            continue
        results.append(ModelResult(name, _details(network, card, size, path), scored))
        rows += [{"model": name, "dim": network.dim} | as_record(row) for row in scored]
        weights[name] = card["weights_sha256"]
        if made := card.get("provenance"):
            trained[name] = {key: made.get(key) for key in ("command", "git_commit", "seed", "written")}
    if not results:
        raise UserError(f"no model can be scored by protocol.codecs={protocol.codecs}, as said above: add Flat")
    results, first = comparable(results), results[0].name
    compared = differences(results)
    record = provenance(seed=seed, device=device, protocol=protocol.describe(sizes[first], resizes[first]),
                        weights={name: digest for name, digest in weights.items() if digest})
    record |= {"benchmark": {"root": str(benchmark.root), "queries": len(benchmark.queries),
                             "references": len(benchmark.references), "background": len(roles.get("background", ())),
                             "pairs": len(benchmark.pairs), "hard_negatives_from": benchmark.hard_negatives_from},
               "bootstrap": protocol.bootstrap, "sizes": sizes, "resizes": resizes, "trained": trained}
    write_metrics(out, rows, record, differences=compared)
    write_report(out / "report.html", title=title, protocol=record["protocol"], results=results,
                 pairs=benchmark.pairs, image_path=benchmark.references.paths_by_name().get,
                 query_path=benchmark.queries.paths_by_name().get, curves=curves, provenance=record,
                 families=families, differences=compared)
    plot_precision_recall(out / "precision_recall.png", results, benchmark.pairs)
    if curves:
        plot_curves(out / "curves.png", curves)
    console = wide_console()
    shown = [{name: value for name, value in row.items() if name != "candidates"} for row in rows]
    console.print(metrics_table(shown, title=record["protocol"]))
    (out / "differences.csv").unlink(missing_ok=True)
    if compared:
        write_table(out / "differences.csv", compared)
        console.print(metrics_table(compared, title="paired differences, points [95 % interval over queries]"))
    if ledger.bad:
        print(f"{len(ledger.bad)} unreadable pictures are scored as missing; {ledger.path} lists them")
    print(f"table: {out / 'metrics.csv'}\npage:  {out / 'report.html'}", flush=True)
    return rows


def _rehearse(models: Mapping[str, Path | str], benchmark: Benchmark, protocol: Protocol, *,
              allow_torchscript: bool) -> None:
    """Load every model and let it see one blank picture: what cannot work is said before hours of extraction."""
    norms = [parse_score_norm(text) for text in protocol.score_norms]
    depth = max((norm.last + 1 for norm in norms if norm), default=0)
    if benchmark.background is not None and len(benchmark.background) < depth:
        raise UserError(f"protocol.score_norms={protocol.score_norms} needs {depth} background pictures, "
                        f"{benchmark.root} has {len(benchmark.background)}: ask for nearer neighbours")
    for name, path in models.items():
        network, card = load_network(path, allow_torchscript=allow_torchscript)
        size, _ = preprocessing(card, size=protocol.size, resize=protocol.resize)
        check_size(network, size, name=name, key="protocol.size")
        refusals = []
        for text in protocol.codecs:
            try:
                Codec(text, network.dim)
            except UserError as error:
                refusals.append(error)
        if len(refusals) == len(protocol.codecs):
            raise UserError(f"{name}: {refusals[0]}")


def _score(name: str, found: Mapping[str, Descriptors], benchmark: Benchmark, protocol: Protocol,
           resamples: QueryBootstrap | None) -> list[ScoreRow]:
    """Score by every codec; what these descriptors do not admit is said and left out of the table."""
    background, norms, rows = found.get("background"), list(protocol.score_norms), []
    if background is None and any(norms):
        norms = [norm for norm in norms if norm is None]
        if not norms:
            raise UserError(f"{benchmark.root} has no background pictures, which protocol.score_norms="
                            f"{protocol.score_norms} needs: give data.background=DIR, or protocol.score_norms=[null]")
        print(f"{name}: no background pictures, so no score normalization; data.background=DIR gives some")
    for codec in protocol.codecs:
        try:
            if protocol.layout == "cd10k":
                rows += score_copydays(found["query"], found["reference"], background, codecs=[codec], k=protocol.k,
                                       bootstrap=resamples)
            else:
                rows += score_descriptors(found["query"], found["reference"], background, benchmark.pairs,
                                          codecs=[codec], score_norms=norms, candidates=protocol.candidates,
                                          k=protocol.k, bootstrap=resamples, hard_negatives=benchmark.hard_negatives)
        except UserError as error:
            if codec == "Flat":
                raise
            print(f"{name}: {error}; this codec is left out of its rows")
    return rows


def _details(network: torch.nn.Module, card: dict, size: int, path: Path | str) -> dict[str, str]:
    training = card.get("training", {})
    parameters = card.get("exported", {}).get("parameters") or parameter_count(network)
    details = {"architecture": card["architecture"]["trunk"], "descriptor": f"{network.dim} numbers",
               "parameters": f"{parameters:,}", "input": f"{size} px", "file": str(path)}
    if "steps_done" in training:  # a checkpoint, of the run's end or of before
        training = training | {"steps": f"{training['steps_done']} of {training['steps']}"}
    shown = ("objective", "epochs", "steps", "batch_size", "lr")
    details |= {key: str(training[key]) for key in shown if key in training}
    return details | ({"weights": card["weights_sha256"][:16]} if card["weights_sha256"] else {})
