"""A benchmark on disk in the DISC2021 layout (METHOD §7)."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

from rdcd.data.ground_truth import read_ground_truth
from rdcd.data.manifest import Manifest
from rdcd.errors import UserError

FOLDERS = {"dev": "dev_queries", "final": "final_queries"}


@dataclass(frozen=True)
class Benchmark:
    """Pictures by role and the pairs (query, reference) that are copies.

    `background` is the training split, which score normalization and codecs learn from.
    """

    root: Path
    split: str
    queries: Manifest
    references: Manifest
    background: Manifest
    pairs: list[tuple[str, str]]


def open_benchmark(root: str | Path, *, split: str = "dev") -> Benchmark:
    """Open a dataset root: `images/{references,train,<split>_queries}` and `<split>_ground_truth.csv`.

    Raises:
        UserError: an unknown split, or whatever is missing under the root, with what is there instead.
    """
    if split not in FOLDERS:
        raise UserError(f"split={split!r}: expected one of {', '.join(FOLDERS)}")
    root = Path(root)
    needed = [root / "images" / name for name in ("references", "train", FOLDERS[split])]
    needed.append(root / f"{split}_ground_truth.csv")
    missing = [str(path.relative_to(root)) for path in needed if not path.exists()]
    if missing:
        there = "no such folder"
        if root.is_dir():
            there = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
        raise UserError(f"data.root={root} is no DISC-layout benchmark: missing {', '.join(missing)} (found: {there}); "
                        f"`rdcd make-benchmark source=folder photos=DIR out={root}` makes one from pictures")
    references, train, queries = (Manifest.of_folder(path) for path in needed[:3])
    pairs = read_ground_truth(needed[3])
    if not pairs:
        raise UserError(f"{needed[3]} gives no pair (query, reference), so there is nothing to find: expected lines of "
                        f"query_id,reference_id")
    for role, pictures, column in (("query", queries, 0), ("reference", references, 1)):
        ids = {pair[column] for pair in pairs}
        if absent := sorted(ids.difference(pictures.names)):
            raise UserError(f"{needed[3]} names {len(absent)} of {len(ids)} {role} ids that are no picture under "
                            f"{pictures.root}, such as {', '.join(absent[:3])} (there: "
                            f"{', '.join(pictures.names[:2])}): add the pictures, or take the ground truth that "
                            f"belongs to these")
    return Benchmark(root=root, split=split, queries=queries, references=references, background=train, pairs=pairs)


def open_training(root: str | Path) -> Manifest:
    """List the training pictures of a dataset root: `images/train`, or all of a plain folder."""
    train = Path(root) / "images" / "train"
    return Manifest.of_folder(train if train.is_dir() else root)


def read_edit_families(root: str | Path, *, split: str = "dev") -> dict[str, list[str]] | None:
    """Return query → families of the edits it was made by, where the benchmark records them."""
    path = Path(root) / f"{split}_queries.csv"
    if not path.is_file():
        return None
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {row["query_id"]: [family for family, _ in json.loads(row["edits"])] for row in csv.DictReader(file)}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not the record of edits that make-benchmark writes ({error!r}): make the benchmark "
                        f"again, or remove the file to do without results by edit") from error
