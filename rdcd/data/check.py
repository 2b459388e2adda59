"""Is a dataset complete and sound? Told before hours are spent on it: the `rdcd check-data` command."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rdcd.data import copydays, disc, ndec, official
from rdcd.data.check_parts import OTHER_SIZE, Check, Findings, Part
from rdcd.data.ground_truth import read_ground_truth
from rdcd.data.images import find_images
from rdcd.data.layouts import check_options, open_layout
from rdcd.data.places import locate
from rdcd.data.scan import printable
from rdcd.errors import UserError, check_number, check_path
from rdcd.files import check_output, write_json
from rdcd.provenance import provenance

PHOTOGRAPHS = "any collection of photographs (the published ones are of YFCC100M)"
COLOURS = {"ok": "green", "note": "yellow", "FAILED": "bold red"}


def check_data(*, root: str | Path, layout: str = "disc", split: str = "dev", pairs: str | Path | None = None,
               background: str | Path | None = None, distractors: str | Path | None = None, samples: int = 200,
               seed: int = 0, out: str | Path | None = None) -> list[Check]:
    """Compare a dataset root with its layout and with the published dataset; print a table of checks.

    Names and sizes of all files are looked at, and `samples` pictures of every part are decoded. Own data in a
    dataset's layout may have any size; a dataset that is the published one by its size and names must be whole.

    Args:
        root: dataset root.
        layout: `disc`, `ndec`, `cd10k` or `pairs` as in `open_layout`, or `folder`, pictures to train on.
        split, pairs, background, distractors: as in `open_layout`.
        samples: pictures to decode of every part.
        seed: of the choice of samples.
        out: JSON file for the checks.

    Raises:
        UserError: a check failed, after the table is printed; or an argument that is not understood.
    """
    check_options(layout, root, folder=True, split=split, pairs=pairs, background=background, distractors=distractors)
    check_number("samples", samples, 0)
    check_number("seed", seed, 0)
    if layout == "disc":
        disc.check_split(split)
    check_path("out", out, null="the table on screen alone")
    if out is not None:
        check_output(out)
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"root={root}: no such folder; expected a dataset root (relative paths start at {Path.cwd()})")
    findings = Findings(root, samples=samples, seed=seed)
    if layout == "disc":
        _check_disc(findings, split)
    elif layout == "ndec":
        _check_ndec(findings)
    elif layout == "cd10k":
        _check_cd10k(findings, background, distractors)
    elif layout == "pairs":
        _check_pairs(findings, pairs, background)
    else:
        _check_folder(findings)
    checks = findings.checks
    failed = [check.check for check in checks if check.verdict == "FAILED"]
    if out is not None:
        write_json(out, {"root": printable(str(root)), "layout": layout, "split": split, "failed": len(failed),
                         "checks": [asdict(check) for check in checks], "provenance": provenance(seed=seed)})
    _print(checks, title=printable(f"{root} as layout={layout}") + f", split={split}" * (layout == "disc"))
    if failed:
        raise UserError(f"{len(failed)} of {len(checks)} checks of {root} failed: {', '.join(failed)}; what to do "
                        f"stands under the table")
    return checks


def _check_disc(findings: Findings, split: str) -> None:
    places = locate(findings.root, disc.parts(split))
    ids = {"references": official.REFERENCES, "train": official.TRAIN, "queries": official.QUERIES[split]}
    parts = [Part(name, disc.parts(split)[name], _single(places[name]), ids=run, page=official.DISC_PAGE,
                  sizes=tuple(official.PAIRS[split]) if name == "queries" else ())
             for name, run in ids.items()]
    known = _ground_truth(findings, places["ground truth"], disc.GROUND_TRUTH[split][0], official.DISC_PAGE)
    whole = findings.look(parts, known)
    if not any(places.values()):
        findings.add("layout", "a DISC root", "none of its parts", fatal=True,
                     advice="name the layout if it is another: layout=ndec, cd10k, pairs, or folder for pictures to "
                            "train on")
    if whole and known and places["queries"]:
        wanted = official.PAIRS[split][findings.sizes["queries"]]
        findings.add("ground truth: pairs", f"{wanted:,}", f"{len(known):,}", ok=len(known) == wanted,
                     advice=f"take the ground truth of these queries from {official.DISC_PAGE}")


def _check_ndec(findings: Findings) -> None:
    places = locate(findings.root, ndec.PARTS)
    known = _ground_truth(findings, places["ground truth"], ndec.PARTS["ground truth"][0], official.NDEC_PAGE)
    runs = {"references": official.REFERENCES, "train": official.TRAIN}
    parts = [Part("queries", ndec.PARTS["queries"], _single(places["queries"]), size=official.NDEC_QUERIES,
                  page=official.NDEC_PAGE)]
    parts += [Part(name, ndec.PARTS[name], _single(places[name]), ids=run, page=official.DISC_PAGE)
              for name, run in runs.items()]
    whole = findings.look(parts, known)
    if not (places["queries"] and known):
        return
    try:
        names = {path.stem for path in find_images(places["queries"])}
        hard, source = ndec.hard_negatives(findings.root, names, known)
    except UserError as error:
        findings.add("hard negatives", "ids of queries", str(error), fatal=True, advice=f"mend {ndec.LIST}")
        return
    listed = source == ndec.LIST
    findings.add("hard negatives", f"{official.NDEC_HARD_NEGATIVES:,}", f"{len(hard):,} ({source})",
                 ok=len(hard) == official.NDEC_HARD_NEGATIVES, fatal=whole and listed,
                 advice=f"list NDEC's {official.NDEC_HARD_NEGATIVES:,} in {ndec.LIST}, one query id a line; without it "
                        f"every query that has no pair counts as one")


def _check_cd10k(findings: Findings, background: str | Path | None, distractors: str | Path | None) -> None:
    names = copydays.parts(findings.root, background=background, distractors=distractors)
    places = locate(findings.root, names)
    blocks = {block: places[block] for block in copydays.BLOCKS if places[block] is not None}
    parts = [Part("copydays", ("original", "copydays/original"), blocks, size=sum(official.COPYDAYS.values()),
                  page=official.COPYDAYS_PAGE),
             Part("distractors", names["distractors"], _labelled("distractors", places["distractors"]),
                  size=official.DISTRACTORS, tells=False, page=PHOTOGRAPHS),
             Part("train", names["train"], _single(places["train"]), size=official.WHITENING, tells=False,
                  any_size=True, optional=background is None,
                  page=f"{PHOTOGRAPHS}: codecs that learn, such as PCAW{{d}}, need them")]
    whole = findings.look(parts, [])
    counts = findings.counts["copydays"]
    wrong = [f"{block} {counts[block] if block in blocks else 'missing'}" for block, size in official.COPYDAYS.items()
             if counts[block] != size]
    fatal = whole or 0 in (counts[block] for block in copydays.BLOCKS)
    findings.add("copydays: blocks", "157 pictures in each of 20, 229 in strong", ", ".join(wrong) or "just so",
                 ok=not wrong, fatal=fatal,
                 advice=f"get what is missing from {official.COPYDAYS_PAGE}" if fatal else OTHER_SIZE)
    if all(place or (part == "train" and background is None) for part, place in places.items()):
        _opens(findings, "cd10k", background=background, distractors=distractors)


def _check_pairs(findings: Findings, pairs: str | Path | None, background: str | Path | None) -> None:
    parts = [Part("folder", (str(findings.root),), {"folder": findings.root}, unique=False)]
    if background is not None:
        place = Path(background)
        parts.append(Part("background", (str(place),), _single(place if place.is_dir() else None)))
    elif not (findings.root / "background").is_dir():
        findings.add("background", "a folder", "none", fatal=False,
                     advice="score normalization and codecs that learn need other pictures: background=DIR")
    findings.look(parts, [])
    _opens(findings, "pairs", pairs=pairs, background=background)


def _check_folder(findings: Findings) -> None:
    if disc.is_benchmark(findings.root):
        findings.add("layout", "a plain folder of pictures", "a benchmark's folders", fatal=False,
                     advice="layout=disc checks it as a benchmark; training uses its images/train alone")
    findings.look([Part("folder", (str(findings.root),), _single(findings.root))], [])


def _opens(findings: Findings, layout: str, **options: str | Path | None) -> None:
    """Check the copies by opening the benchmark, as an evaluation does."""
    try:
        opened = open_layout(layout, findings.root, **options)
    except UserError as error:
        findings.add("ground truth", "names pictures that are there", str(error), fatal=True,
                     advice="mend it as it says; the benchmark cannot be opened as it is")
        return
    findings.add("ground truth", "names pictures that are there", f"{len(opened.pairs):,} pairs of "
                 f"{len(opened.queries):,} queries and {len(opened.references):,} references", ok=True)


def _ground_truth(findings: Findings, path: Path | None, name: str, page: str) -> list[tuple[str, str]]:
    """Return the pairs of a file, none if it cannot be read; that is a check of its own."""
    if path is None:
        findings.add("ground truth", name, "missing", fatal=True, advice=f"get it from {page}")
        return []
    try:
        pairs = read_ground_truth(path)
    except UserError as error:
        findings.add("ground truth", "lines of query_id,reference_id", str(error), fatal=True,
                     advice=f"mend the line, or get the file again from {page}")
        return []
    findings.add("ground truth", "at least 1 pair, each once", f"{len(pairs):,} pairs in {path.name}", ok=bool(pairs),
                 fatal=True, advice=f"a file without a pair measures nothing: get it again from {page}")
    return pairs


def _single(place: Path | None) -> Mapping[str, Path]:
    return _labelled("", place)


def _labelled(label: str, place: Path | None) -> Mapping[str, Path]:
    return {} if place is None else {label: place}


def _print(checks: list[Check], *, title: str) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = 120
    table = Table(title=escape(title))
    for head in ("check", "expected", "found", "verdict"):
        table.add_column(head, overflow="fold")
    for check in checks:
        cells = (escape(text) for text in (check.check, check.expected, check.found))
        table.add_row(*cells, f"[{COLOURS[check.verdict]}]{check.verdict}[/]")
    console.print(table)
    same: dict[tuple[str, str], list[str]] = {}
    for check in checks:
        if check.advice:
            same.setdefault((check.verdict, check.advice), []).append(check.check)
    for (verdict, advice), names in same.items():
        console.print(f"{verdict}: {', '.join(names)}: {advice}", markup=False, highlight=False, soft_wrap=True)
