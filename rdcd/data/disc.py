"""A benchmark on disk in the DISC2021 layout, under the official names or SSCD's (docs/method.md §7)."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rdcd.data.ground_truth import may_be, read_ground_truth
from rdcd.data.manifest import Manifest
from rdcd.data.places import locate, require, whats_there
from rdcd.errors import UserError
from rdcd.files import composed

REFERENCES = ("images/references", "val_ref", "images/val_ref")
TRAIN = ("images/train", "training", "images/training")
QUERIES = {"dev": ("images/dev_queries", "val_query", "images/val_query"), "final": ("images/final_queries",)}
GROUND_TRUTH = {"dev": ("dev_ground_truth.csv", "val_groundtruth_matches.csv", "images/val_groundtruth_matches.csv",
                        "dev_queries_groundtruth.csv"),
                "final": ("final_ground_truth.csv", "test_queries_groundtruth.csv")}


@dataclass(frozen=True)
class Benchmark:
    """Pictures by role and the pairs (query, reference) that are copies.

    Args:
        root: dataset root.
        split: which queries of DISC, `dev` or `final`; `all` of the other layouts.
        queries, references: the pictures.
        pairs: ground truth, (query, reference) names.
        background: what score normalization and codecs learn from, the training split of DISC; None: there is none.
        layout: `disc`, `ndec`, `cd10k` or `pairs`.
        hard_negatives: queries that look like a reference and are no copy; None: not told apart.
        hard_negatives_from: where `hard_negatives` is known from.
    """

    root: Path
    split: str
    queries: Manifest
    references: Manifest
    pairs: list[tuple[str, str]]
    background: Manifest | None = None
    layout: str = "disc"
    hard_negatives: list[str] | None = None
    hard_negatives_from: str | None = None


def check_split(split: str) -> None:
    """Refuse a split that DISC does not have."""
    if not isinstance(split, str) or split not in QUERIES:
        raise UserError(f"split={split!r}: expected one of {', '.join(QUERIES)}")


def parts(split: str) -> dict[str, Sequence[str]]:
    """Return part → the names it may have under a root."""
    return {"references": REFERENCES, "train": TRAIN, "queries": QUERIES[split], "ground truth": GROUND_TRUTH[split]}


def open_benchmark(root: str | Path, *, split: str = "dev") -> Benchmark:
    """Open a dataset root: `images/{references,train,<split>_queries}` and `<split>_ground_truth.csv`.

    SSCD's names will do for split dev: `val_ref`, `training`, `val_query`, `val_groundtruth_matches.csv`, under the
    root or its `images`; and so will a mixture, as long as no part is there twice.

    Raises:
        UserError: an unknown split, or whatever is missing under the root, with what is there instead.
    """
    check_split(split)
    root = Path(root)
    places = require(root, parts(split), layout="DISC-layout benchmark",
                     hint=f"`rdcd make-benchmark source=folder photos=DIR out={root}` makes one from pictures")
    roles = {part: Manifest.of_folder(places[part]) for part in ("references", "train", "queries")}
    pairs = read_ground_truth(places["ground truth"])
    check_pairs(places["ground truth"], pairs, roles["queries"], roles["references"])
    return Benchmark(root=root, split=split, queries=roles["queries"], references=roles["references"], pairs=pairs,
                     background=roles["train"])


def check_pairs(path: Path, pairs: Sequence[tuple[str, str]], queries: Manifest, references: Manifest) -> None:
    """Refuse ground truth without a pair, or with ids that are no pictures.

    Args:
        path: where `pairs` were read from.
    """
    if not pairs:
        raise UserError(f"{path} gives no pair (query, reference), so there is nothing to find: expected lines of "
                        f"query_id,reference_id")
    for role, pictures, column in (("query", queries, 0), ("reference", references, 1)):
        ids = {pair[column] for pair in pairs}
        if absent := sorted(ids.difference(pictures.names)):
            raise UserError(f"{path} names {len(absent)} of {len(ids)} {role} ids that are no picture under "
                            f"{pictures.root}, such as {', '.join(absent[:3])} (there: "
                            f"{', '.join(pictures.names[:2])}){may_be(absent[0], pictures.names)}: add the "
                            f"pictures, or take the ground truth that belongs to these (a header, if any, is "
                            f"query_id,reference_id)")


def is_benchmark(root: str | Path) -> bool:
    """Tell whether a root is laid out as DISC, complete or not, and no plain folder of pictures."""
    root = Path(root)
    return any((root / name).is_dir() for name in ("images", "val_ref", "val_query"))


def open_training(root: str | Path) -> Manifest:
    """List the training pictures of a dataset root, or all of a plain folder.

    Raises:
        UserError: no such folder, or a benchmark without training pictures: its queries are not to train on.
    """
    root = Path(root)
    laid_out = is_benchmark(root)
    names = (TRAIN[0], f"DISC/{TRAIN[0]}", *(TRAIN[1:] if laid_out else ()))  # photos may have a folder `training`
    train = locate(root, {"training pictures": names})["training pictures"]
    if train is None and laid_out:
        raise UserError(f"data.root={root} is a benchmark without training pictures: missing {TRAIN[0]} (found: "
                        f"{whats_there(root)}); add them, or train on another folder")
    return Manifest.of_folder(train or root)


def read_edit_families(root: str | Path, *, split: str = "dev") -> dict[str, list[str]] | None:
    """Return query → families of the edits it was made by, where the benchmark records them."""
    path = Path(root) / f"{split}_queries.csv"
    if not path.is_file():
        return None
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {composed(row["query_id"]): [family for family, _ in json.loads(row["edits"])]
                    for row in csv.DictReader(file)}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not the record of edits that make-benchmark writes ({error!r}): make the benchmark "
                        f"again, or remove the file to do without results by edit") from error
