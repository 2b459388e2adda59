"""Draw up a benchmark's queries, and write its pictures and tables."""

import csv
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rdcd.augment.edits import Chain, apply_chain, draw_chain, needs_other
from rdcd.data.folder import Photo, Split
from rdcd.data.ground_truth import write_ground_truth
from rdcd.data.images import write_ledger
from rdcd.data.parallel import Map
from rdcd.data.synthetic import draw_picture
from rdcd.errors import BadImage, UserError

QUALITY = 90  # JPEG quality of references and training pictures that are not copied as they are
_PLAN, _EDITS = 1, 2  # streams of random numbers, beside the seed


@dataclass(frozen=True)
class Drawing:
    """A drawn picture, which a seed stands for."""

    seed: int
    size: int

    @property
    def name(self) -> str:
        """What is recorded as its source."""
        return f"drawn:{self.seed}"

    def open(self) -> Image.Image:
        """Draw it."""
        return draw_picture(self.seed, size=self.size)


Source = Photo | Drawing


@dataclass(frozen=True)
class _Plain:
    """A reference or training picture to write."""

    source: Source
    target: Path
    max_side: int | None


@dataclass(frozen=True)
class _Query:
    """A query to write: `source`, edited; `reference` is empty for a distractor."""

    source: Source
    reference: str
    chain: Chain
    other: Source | None
    quality: int
    max_side: int | None
    target: Path


def draw_split(seed: int, *, size: int, sizes: dict[str, int | None], queries: int | None,
               distractors: int | None) -> Split:
    """Give every role drawn pictures of its own; they are taken to be distinct."""
    train, references = sizes["train"] or 2000, sizes["references"] or 600
    sources = sizes["sources"] or max(1, _count_queries(references, queries, distractors)[1])
    first = seed * 10_000_000  # so that the benchmarks of two seeds share no picture
    drawings = [Drawing(seed=first + i, size=size) for i in range(train + references + sources)]
    return Split(train=drawings[:train], references=drawings[train:train + references],
                 sources=drawings[train + references:])


def _count_queries(references: int, queries: int | None, distractors: int | None) -> tuple[int, int]:
    queries = max(1, references // 2) if queries is None else queries
    return queries, 4 * queries if distractors is None else distractors


def write_benchmark(split: Split, root: Path, *, seed: int, queries: int | None, distractors: int | None,
                    max_side: int | None, edits: Sequence[int], families: Sequence[str],
                    run: Map) -> dict[str, int]:
    """Write the pictures and tables of a benchmark; return how many there are of each kind.

    Args: see `rdcd.data.benchmark.make_benchmark`.
    """
    folders = {role: root / "images" / role for role in ("train", "references", "dev_queries")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    plain = [_Plain(picture, folder / f"{letter}{i:06d}.jpg", max_side)
             for folder, letter, pictures in ((folders["train"], "T", split.train),
                                              (folders["references"], "R", split.references))
             for i, picture in enumerate(pictures)]
    queries, distractors = _count_queries(len(split.references), queries, distractors)
    rows = _plan(split, seed=seed, queries=queries, distractors=distractors, edits=(edits[0], edits[1]),
                 families=families, folder=folders["dev_queries"], max_side=max_side)
    failed = [error for error in run(_write_plain, plain, "training pictures and references") if error]
    failed += [error for error in run(_write_query, rows, "queries") if error]
    if failed:  # each was decoded when it was given its role
        raise UserError(f"{failed[0]}: it could be read a moment ago; leave the pictures alone and run again")
    _write_csv(root / "sources.csv", ("id", "source"), ((job.target.stem, job.source.name) for job in plain))
    _write_csv(root / "dev_queries.csv", ("query_id", "reference_id", "source", "edits"),
               ((row.target.stem, row.reference, row.source.name, json.dumps(row.chain, ensure_ascii=False))
                for row in rows))
    write_ground_truth(root / "dev_ground_truth.csv", [(row.target.stem, row.reference) for row in rows])
    if split.bad:
        write_ledger(root / "bad_files.csv", split.bad)
    return {"train": len(split.train), "references": len(split.references), "sources": len(split.sources),
            "queries": queries, "distractors": distractors, "identical": split.identical,
            "near_duplicates": len(split.left_out), "bad": len(split.bad)}


def _plan(split: Split, *, seed: int, queries: int, distractors: int, edits: tuple[int, int],
          families: Sequence[str], folder: Path, max_side: int | None) -> list[_Query]:
    """Choose every query's source and edits, in the order of ids that mix copies and distractors.

    Every reference is copied once before one is copied again; likewise the sources of distractors.
    """
    rng = np.random.default_rng([seed, _PLAN])
    ids = rng.permutation(queries + distractors)
    copied, edited = rng.permutation(len(split.references)), rng.permutation(len(split.sources))
    rows = []
    for number, place in enumerate(ids):
        own = np.random.default_rng([seed, _EDITS, number])
        if number < queries:
            index = int(copied[number % len(copied)])
            source, reference = split.references[index], f"R{index:06d}"
        else:
            source, reference = split.sources[edited[(number - queries) % len(edited)]], ""
        chain, quality = draw_chain(own, families=families, n=edits), int(own.integers(85, 98))
        other = split.train[own.integers(len(split.train))] if needs_other(chain) else None
        rows.append((place, _Query(source=source, reference=reference, chain=chain, other=other,
                                   quality=quality, max_side=max_side, target=folder / f"Q{place:05d}.jpg")))
    return [row for _, row in sorted(rows, key=lambda row: row[0])]


def _write_plain(job: _Plain) -> BadImage | None:
    """Copy a JPEG that is upright, RGB and small enough as it is; decode and encode anything else."""
    try:
        if isinstance(job.source, Photo) and _is_plain_jpeg(job.source.path, job.max_side):
            shutil.copyfile(job.source.path, job.target)
        else:
            _limited(job.source.open(), job.max_side).save(job.target, "JPEG", quality=QUALITY)
    except BadImage as error:
        return error
    return None


def _is_plain_jpeg(path: Path, max_side: int | None) -> bool:
    try:
        with Image.open(path, formats=["JPEG"]) as picture:
            upright = picture.getexif().get(0x0112, 1) == 1  # the orientation tag
            return (picture.format == "JPEG" and picture.mode == "RGB" and upright
                    and (max_side is None or max(picture.size) <= max_side))
    except Exception:  # another format, or a broken EXIF block: decoded, and written anew
        return False


def _write_query(job: _Query) -> BadImage | None:
    try:
        other = job.other.open() if job.other is not None else None
        edited = apply_chain(job.source.open(), job.chain, other)
    except BadImage as error:
        return error
    _limited(edited, job.max_side).save(job.target, "JPEG", quality=job.quality)
    return None


def _limited(picture: Image.Image, max_side: int | None) -> Image.Image:
    if max_side is not None and max(picture.size) > max_side:
        picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return picture


def _write_csv(path: Path, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
