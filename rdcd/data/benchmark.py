"""Make a DISC-layout benchmark from a folder of pictures, or from drawn ones (docs/method.md §7)."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rdcd.augment.edits import check_families
from rdcd.augment.edits_picture import augly
from rdcd.data.benchmark_files import draw_split, write_benchmark
from rdcd.data.folder import LEAST_SIDE, Split, split_folder
from rdcd.data.images import find_images, reads_images
from rdcd.data.ledger import MAX_BAD_SHARE, Ledger
from rdcd.data.parallel import process_map
from rdcd.errors import UserError, check_number
from rdcd.files import write_json
from rdcd.provenance import provenance


@reads_images
def make_benchmark(*, source: str = "synthetic", out: str | Path, photos: str | Path | None = None,
                   train_photos: str | Path | None = None, seed: int = 0, train: int | None = None,
                   references: int | None = None, sources: int | None = None, queries: int | None = None,
                   distractors: int | None = None, size: int = 160, max_side: int | None = None,
                   edits: Sequence[int] = (1, 4), families: Sequence[str] | None = None,
                   workers: int | None = None, max_bad_share: float = MAX_BAD_SHARE) -> Path:
    """Make a benchmark in the DISC layout, with every query's edits in `dev_queries.csv`.

    Equal pictures, arguments and versions give equal files, whatever `workers` is. The benchmark appears
    under its name when it is complete; one made before with the same arguments is kept as it is.

    Args:
        source: `synthetic` (drawn pictures) or `folder`.
        out: dataset root to make.
        photos: folder of pictures, with `source=folder`.
        train_photos: folder that training and background pictures come from instead.
        seed: of the split, the choice of queries and their edits.
        train, references: number of pictures; None: 2,000 and 600 drawn, or 5 and 3 tenths of a folder.
        sources: pictures that distractor queries are made from; None: one each drawn, or 2 tenths.
        queries: queries that are copies of a reference; None: half as many as references.
        distractors: queries that are not; None: four times `queries`.
        size: longest side of drawn pictures, in pixels.
        max_side: longest side of all pictures written, in pixels; None: as they are.
        edits: fewest and most edits of a query.
        families: families of edits to draw from, see `rdcd.augment.edits`; None: all.
        workers: processes; None: one a core.
        max_bad_share: largest share of the photos that may be unreadable or too small; those are in `bad_files.csv`,
            which lies beside `out` where they are too many.

    Returns:
        `out`.

    Raises:
        UserError: an argument out of range, `out` taken, too few usable pictures, or too many bad ones.
    """
    out = Path(out)
    sizes = {"train": train, "references": references, "sources": sources}
    photos, train_photos = (Path(folder) if folder is not None else None for folder in (photos, train_photos))
    _check_places(source=source, out=out, photos=photos, train_photos=train_photos)
    _check_numbers(edits=edits, seed=(seed, 0), distractors=(distractors, 0), max_side=(max_side, LEAST_SIDE),
                   size=(size, LEAST_SIDE), queries=(queries, 1),
                   **{role: (number, 1) for role, number in sizes.items()})
    check_number("max_bad_share", max_bad_share, 0, 1, whole=False)
    families = check_families(families)
    parameters = {"source": source, "seed": seed, **sizes, "queries": queries, "distractors": distractors,
                  "max_side": max_side, "edits": list(edits), "families": families}
    if source == "synthetic":
        parameters["size"] = size
    else:
        parameters |= {"photos": _contents(photos), "train_photos": _contents(train_photos)}
    if _already_made(out, parameters):
        print(f"{out} is there already, made with the same settings: nothing to do")
        return out
    augly()  # a missing system library shows before minutes of work

    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    for left in sorted(out.parent.glob(f".{out.name}.*.partial")):
        print(f"note: {left} is what an interrupted run left, unless one is at work there: remove it")
    ledger = Ledger(out.with_name(f"{out.name}-bad_files.csv"), max_bad_share=max_bad_share)
    try:
        with process_map(workers) as run:
            if source == "synthetic":
                split = draw_split(seed, size=size, sizes=sizes, queries=queries, distractors=distractors)
            else:
                split = split_folder(photos, train_photos=train_photos, seed=seed, sizes=sizes, run=run,
                                     ledger=ledger)
            counts = write_benchmark(split, partial, seed=seed, queries=queries, distractors=distractors,
                                     max_side=max_side, edits=edits, families=families, run=run)
        write_json(partial / "benchmark.json", {
            "parameters": parameters, "counts": counts, "left_out": [asdict(item) for item in split.left_out],
            "provenance": provenance(seed=seed)})
        _publish(partial, out, parameters)
        ledger.path.unlink(missing_ok=True)  # it is in `out`
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _tell(out, counts, split)
    return out


def _check_places(*, source: str, out: Path, photos: Path | None, train_photos: Path | None) -> None:
    if source not in ("synthetic", "folder"):
        raise UserError(f"source={source!r}: expected synthetic (drawn pictures) or folder (with photos=DIR)")
    if source == "folder" and photos is None:
        raise UserError("source=folder needs photos=DIR, the folder of pictures to make the benchmark from")
    for name, folder in (("photos", photos), ("train_photos", train_photos)):
        if folder is not None and source == "synthetic":
            raise UserError(f"{name}={folder} is not used with source=synthetic: add source=folder, "
                            "or leave it out")
        if folder is not None and folder.resolve() in (out.resolve(), *out.resolve().parents):
            raise UserError(f"out={out} lies inside {name}={folder}, where the next run would take its own "
                            "pictures for photographs: choose a folder outside")


def _check_numbers(*, edits: Sequence[int], **numbers: tuple[int | None, int]) -> None:
    """Refuse a number, given as name=(value, least), that is too small or no number; None is any default."""
    for name, (value, least) in numbers.items():
        check_number(name, value, least, null=None if name in ("seed", "size") else "the default")
    whole = not isinstance(edits, int | str) and all(isinstance(n, int) for n in edits)
    if not whole or len(edits) != 2 or not 1 <= edits[0] <= edits[1]:
        raise UserError(f"edits={edits}: expected [fewest,most], 1 <= fewest <= most, such as [1,4]")


def _contents(folder: Path | None) -> dict[str, object] | None:
    """Describe a folder so that a change of its files shows: number of pictures, hash of names and sizes."""
    if folder is None:
        return None
    files = find_images(folder)
    listing = "\n".join(f"{path.relative_to(folder).as_posix()} {_size(path)}" for path in files)
    digest = hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()[:16]
    return {"folder": str(folder.resolve()), "pictures": len(files), "listing": digest}


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1  # a link to nowhere


def _already_made(out: Path, parameters: dict[str, object]) -> bool:
    """Tell whether `out` is this very benchmark; refuse a place that holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    record = out / "benchmark.json"
    if not record.is_file():
        raise UserError(f"out={out} is not empty and holds no benchmark.json: choose another folder, "
                        "or empty it")
    try:
        made = json.loads(record.read_text(encoding="utf-8"))["parameters"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{record} is damaged ({error!r}): remove the folder {out}, or choose another") from error
    changed = [f"{name} {_short(made.get(name))} there, {_short(value)} here"
               for name, value in parameters.items() if made.get(name) != value]
    if changed:
        raise UserError(f"out={out} holds a benchmark made with other settings ({'; '.join(changed)}): "
                        "choose another folder, remove that one, or repeat its settings")
    return True


def _short(value: object) -> str:
    if isinstance(value, dict):  # of `_contents`
        return f"{value['folder']} ({value['pictures']} pictures, names and sizes {value['listing']})"
    return "null" if value is None else str(value)


def _publish(partial: Path, out: Path, parameters: dict[str, object]) -> None:
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    try:
        os.rename(partial, out)
    except OSError:  # another run was first: good if it made the same, else told so
        if not _already_made(out, parameters):
            raise


def _tell(out: Path, counts: dict[str, int], split: Split) -> None:
    print(f"{out}: {counts['train']} training pictures, {counts['references']} references, "
          f"{counts['queries']} queries that copy one, {counts['distractors']} that do not")
    if counts["identical"]:
        print(f"{counts['identical']} files identical to another were left out")
    if split.left_out:
        one = split.left_out[0]
        print(f"{len(split.left_out)} near-duplicates were left out, such as {one.name}, a copy of "
              f"{one.copy_of}; all are in {out / 'benchmark.json'}")
    if split.bad:
        print(f"{len(split.bad)} files could not be used; {out / 'bad_files.csv'} says why")
