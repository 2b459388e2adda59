"""Is a dataset complete and sound? Told before hours are spent on it: the `rdcd check-data` command."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rdcd.data import copydays, disc, ndec, official
from rdcd.data.check_parts import OTHER_SIZE, Check, Findings, Part
from rdcd.data.checksums import Checksums, compare, contents, relative, write_list
from rdcd.data.ground_truth import read_ground_truth
from rdcd.data.images import reads_images
from rdcd.data.layouts import check_options, open_layout
from rdcd.data.manifest import Manifest
from rdcd.data.parallel import Map, process_map
from rdcd.data.places import locate
from rdcd.data.scan import printable
from rdcd.errors import ChecksFailed, UserError, check_number, check_path
from rdcd.files import check_output, write_json
from rdcd.provenance import provenance

FEW = 100  # files that are read before other processes have started
COLOURS = {"ok": "green", "note": "yellow", "FAILED": "bold red"}
PAGES = {"disc": official.DISC_PAGE, "ndec": official.NDEC_PAGE, "cd10k": official.COPYDAYS_PAGE}


@reads_images
def check_data(*, root: str | Path, layout: str = "disc", split: str = "dev", pairs: str | Path | None = None,
               background: str | Path | None = None, distractors: str | Path | None = None,
               samples: int | None = 200, seed: int = 0, workers: int | None = None,
               checksums: str | Path | None = None, write_checksums: str | Path | None = None,
               out: str | Path | None = None) -> list[Check]:
    """Compare a dataset root with its layout and with the published dataset; print a table of checks.

    Names and sizes of all files are looked at, and `samples` pictures of every part are decoded. Own data in a
    dataset's layout may have any size; a dataset that is the published one by its size and names must be whole.

    Args:
        root: dataset root.
        layout: `disc`, `ndec`, `cd10k` or `pairs` as in `open_layout`, or `folder`, pictures to train on.
        split, pairs, background, distractors: as in `open_layout`.
        samples: pictures to decode of every part; None: all.
        seed: of the choice of samples.
        workers: processes that decode and read; None: one a core, and for a few files none but this one.
        checksums: list of SHA-256, in `sha256sum`'s format and with paths below the root, to hold the files against.
        write_checksums: where to write such a list of the pictures of all parts and the tables that are read, if no
            check fails.
        out: JSON file for the checks; `-`: standard output, and everything else goes to standard error.

    Raises:
        ChecksFailed: a check failed, after the table is printed.
        UserError: an argument that is not understood.
    """
    check_options(layout, root, folder=True, split=split, pairs=pairs, background=background, distractors=distractors)
    check_number("samples", samples, 0, null="every picture")
    check_number("seed", seed, 0)
    check_number("workers", workers, 1, null="one process a core")
    if layout == "disc":
        disc.check_split(split)
    outputs = {"out": (out, "the table alone"), "write_checksums": (write_checksums, "no list")}
    for name, (path, null) in outputs.items():
        check_path(name, path, null=null)
        if path is not None and not (name == "out" and path == "-"):
            check_output(path)
    check_path("checksums", checksums, null="none")
    if checksums is not None and write_checksums is not None:
        raise UserError(f"checksums={checksums} and write_checksums={write_checksums}: one of the two at a time; "
                        f"checksums holds the files against a list, write_checksums makes one of them")
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"root={root}: no such folder; expected a dataset root (relative paths start at {Path.cwd()})")
    listed = None if checksums is None else Checksums(checksums)

    def look(findings: Findings) -> None:
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
        if listed is not None:
            _hold_against(findings, listed)
        if write_checksums is not None:
            _write_list(findings, write_checksums)

    with redirect_stdout(sys.stderr) if out == "-" else nullcontext():
        checks = _checks(look, root, samples=samples, seed=seed, workers=workers, page=PAGES.get(layout))
        _print(checks, title=printable(f"{root} as layout={layout}") + f", split={split}" * (layout == "disc"))
    failed = [check.check for check in checks if check.verdict == "FAILED"]
    if out is not None:
        record = {"root": printable(str(root)), "layout": layout, "split": split, "failed": len(failed),
                  "checks": [asdict(check) for check in checks], "provenance": provenance(seed=seed)}
        print(json.dumps(record, indent=2, allow_nan=False), flush=True) if out == "-" else write_json(out, record)
    if failed:
        raise ChecksFailed(f"{len(failed)} of {len(checks)} checks of {root} failed: {', '.join(failed)}; what to do "
                           f"stands under the table")
    return checks


def _checks(look: Callable[[Findings], None], root: Path, *, samples: int | None, seed: int, workers: int | None,
            page: official.Page | None) -> list[Check]:
    """Return the checks that `look` makes; a root that cannot be looked through is one of them."""
    with _processes(workers) as run:
        findings = Findings(root, samples=samples, seed=seed, run=run)
        try:
            look(findings)
        except UserError as error:
            findings.add("folders", "readable, each part once and apart from the others", str(error),
                         advice="mend it as it says", pages=[page])
    return findings.checks


@contextmanager
def _processes(workers: int | None) -> Iterator[Map]:
    """Yield `process_map`'s map, which for None does a few jobs without other processes."""
    with process_map(1) as here, process_map(workers) as pool:
        yield lambda function, jobs, label: (here if workers is None and len(jobs) < FEW else pool)(function, jobs,
                                                                                                    label)


def _check_disc(findings: Findings, split: str) -> None:
    places = locate(findings.root, disc.parts(split))
    ids = {"references": official.REFERENCES, "train": official.TRAIN, "queries": official.QUERIES[split]}
    parts = [Part(name, disc.parts(split)[name], _single(places[name]), ids=run, page=official.DISC_PAGE,
                  sizes=tuple(official.PAIRS[split]) if name == "queries" else ())
             for name, run in ids.items()]
    findings.places += [findings.root / name for name in (f"{split}_queries.csv", "benchmark.json")]  # make-benchmark's
    known = _ground_truth(findings, places["ground truth"], disc.GROUND_TRUTH[split][0], official.DISC_PAGE)
    whole = findings.look(parts, known, page=official.DISC_PAGE)
    if not any(places.values()):
        findings.add("layout", "a DISC root", "none of its parts", pages=[official.DISC_PAGE],
                     advice="name the layout if it is another: layout=ndec, cd10k, pairs, or folder for pictures to "
                            "train on")
    if whole and known and places["queries"]:
        wanted = official.PAIRS[split][findings.sizes["queries"]]
        findings.add("ground truth: pairs", f"{wanted:,}", f"{len(known):,}", ok=len(known) == wanted,
                     advice="take the ground truth of these queries", pages=[official.DISC_PAGE])


def _check_ndec(findings: Findings) -> None:
    places = locate(findings.root, ndec.PARTS)
    findings.places.append(findings.root / ndec.LIST)
    known = _ground_truth(findings, places["ground truth"], ndec.PARTS["ground truth"][0], official.NDEC_PAGE)
    runs = {"references": official.REFERENCES, "train": official.TRAIN}
    parts = [Part("queries", ndec.PARTS["queries"], _single(places["queries"]), size=official.NDEC_QUERIES,
                  page=official.NDEC_PAGE)]
    parts += [Part(name, ndec.PARTS[name], _single(places[name]), ids=run, page=official.DISC_PAGE)
              for name, run in runs.items()]
    whole = findings.look(parts, known, page=official.NDEC_PAGE)
    if not (places["queries"] and known):
        return
    try:
        names = Manifest.of_folder(places["queries"]).names
        hard, source = ndec.hard_negatives(findings.root, names, known)
    except UserError as error:
        findings.add("hard negatives", "ids of queries", str(error), advice=f"mend {ndec.LIST}",
                     pages=[official.NDEC_PAGE])
        return
    fatal = whole and source == ndec.LIST
    findings.add("hard negatives", f"{official.NDEC_HARD_NEGATIVES:,}", f"{len(hard):,} ({source})",
                 ok=len(hard) == official.NDEC_HARD_NEGATIVES, fatal=fatal,
                 advice=f"list NDEC's {official.NDEC_HARD_NEGATIVES:,} in {ndec.LIST}, one query id a line; without it "
                        f"every query that has no pair counts as one", pages=[official.NDEC_PAGE] if fatal else [])


def _check_cd10k(findings: Findings, background: str | Path | None, distractors: str | Path | None) -> None:
    names = copydays.parts(findings.root, background=background, distractors=distractors)
    places = locate(findings.root, names)
    blocks = {block: places[block] for block in copydays.BLOCKS if places[block] is not None}
    parts = [Part("copydays", ("original", "copydays/original"), blocks, size=sum(official.COPYDAYS.values()),
                  page=official.COPYDAYS_PAGE),
             Part("distractors", names["distractors"], _labelled("distractors", places["distractors"]),
                  size=official.DISTRACTORS, tells=False, page=official.PHOTOGRAPHS),
             Part("train", names["train"], _single(places["train"]), size=official.WHITENING, tells=False,
                  any_size=True, page=official.PHOTOGRAPHS,
                  optional="codecs that learn, such as PCAW{d}, need them" if background is None else "")]
    whole = findings.look(parts, [])
    counts = findings.counts["copydays"]
    wrong = [f"{block} {counts[block] if block in blocks else 'missing'}" for block, size in official.COPYDAYS.items()
             if counts[block] != size]
    fatal = whole or 0 in (counts[block] for block in copydays.BLOCKS)
    findings.add("copydays: blocks", "157 pictures in each of 20, 229 in strong", ", ".join(wrong) or "just so",
                 ok=not wrong, fatal=fatal,
                 advice="get what is missing" if fatal else OTHER_SIZE,
                 pages=[official.COPYDAYS_PAGE] if fatal else [])
    if all(place or (part == "train" and background is None) for part, place in places.items()):
        _opens(findings, "cd10k", background=background, distractors=distractors)


def _check_pairs(findings: Findings, pairs: str | Path | None, background: str | Path | None) -> None:
    findings.places.append(findings.root / "pairs.csv" if pairs is None else Path(pairs))
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
        findings.add("ground truth", "names pictures that are there", str(error), pages=[PAGES.get(layout)],
                     advice="mend it as it says; the benchmark cannot be opened as it is")
        return
    findings.add("ground truth", "names pictures that are there", f"{len(opened.pairs):,} pairs of "
                 f"{len(opened.queries):,} queries and {len(opened.references):,} references", ok=True)


def _ground_truth(findings: Findings, path: Path | None, name: str, page: official.Page) -> list[tuple[str, str]]:
    """Return the pairs of a file, none if it cannot be read; that is a check of its own."""
    if path is None:
        findings.add("ground truth", name, "missing", advice="put it there", pages=[page])
        return []
    findings.places.append(path)
    try:
        pairs = read_ground_truth(path)
    except UserError as error:
        findings.add("ground truth", "lines of query_id,reference_id", str(error), pages=[page],
                     advice="mend the line, or get the file again")
        return []
    findings.add("ground truth", "at least 1 pair, each once", f"{len(pairs):,} pairs in {path.name}", ok=bool(pairs),
                 advice="a file without a pair measures nothing: get it again", pages=[page])
    return pairs


def _hold_against(findings: Findings, listed: Checksums) -> None:
    found = compare(findings.root, listed, contents(findings.root, findings.places), findings.run)
    findings.trouble("checksums: files", f"{len(listed):,} listed, all readable", found.absent, pages=findings.pages,
                     advice=f"paths in {listed.path} start at {findings.root}: put the files there")
    findings.trouble("checksums: contents", "as listed", found.different, pages=findings.pages,
                     advice="copy or unpack them again, or take the list that belongs to this version")
    findings.trouble("checksums: unlisted", "every picture and table listed", found.unlisted, fatal=False,
                     advice=f"{listed.path} says nothing about them")


def _write_list(findings: Findings, out: str | Path) -> None:
    if any(check.verdict == "FAILED" for check in findings.checks):
        findings.add("checksums: written", str(out), "nothing", fatal=False,
                     advice="mend what failed first: a list of damaged files is of no use")
        return
    count = write_list(findings.root, contents(findings.root, findings.places), out, findings.run)
    findings.add("checksums: written", str(out), f"{count:,} files", ok=True)
    if outside := [str(place) for place in findings.places if relative(findings.root, place) is None]:
        findings.add("checksums: outside", f"every part below {findings.root}", f"not listed: {', '.join(outside)}",
                     fatal=False, advice="make lists of their own: root=DIR layout=folder write_checksums=FILE")


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
