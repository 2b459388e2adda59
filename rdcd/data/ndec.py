"""NDEC: queries that look like a reference and are no copy, searched among DISC's references (docs/method.md §7)."""

from collections.abc import Collection, Sequence
from pathlib import Path

from rdcd.data.disc import REFERENCES, TRAIN, Benchmark, check_pairs
from rdcd.data.ground_truth import read_ground_truth, read_ids
from rdcd.data.manifest import Manifest
from rdcd.data.places import require
from rdcd.errors import UserError

LIST = "hard_negatives.csv"
PARTS = {"queries": ("NDEC_test_query", "query_images_h5"),
         "references": tuple(prefix + name for prefix in ("DISC/", "") for name in REFERENCES),
         "train": tuple(prefix + name for prefix in ("DISC/", "") for name in TRAIN),
         "ground truth": ("public_ground_truth_h5.csv",)}


def open_ndec(root: str | Path) -> Benchmark:
    """Open an NDEC root: `NDEC_test_query/` or `query_images_h5/`, DISC's folders below `DISC/` or beside them, and
    `public_ground_truth_h5.csv`.

    Raises:
        UserError: whatever is missing under the root, or files that disagree.
    """
    root = Path(root)
    places = require(root, PARTS, layout="NDEC root",
                     hint="expected NDEC_test_query or query_images_h5, DISC/images/references and DISC/images/train "
                          "(links to DISC2021's will do) and public_ground_truth_h5.csv")
    queries, references, train = (Manifest.of_folder(places[part]) for part in ("queries", "references", "train"))
    pairs = read_ground_truth(places["ground truth"])
    check_pairs(places["ground truth"], pairs, queries, references)
    hard, source = hard_negatives(root, queries.names, pairs)
    return Benchmark(root=root, split="all", queries=queries, references=references, pairs=pairs, background=train,
                     layout="ndec", hard_negatives=hard, hard_negatives_from=source)


def hard_negatives(root: Path, queries: Collection[str], pairs: Sequence[tuple[str, str]]) -> tuple[list[str], str]:
    """Return the hard negatives, sorted, and where they are known from.

    NDEC's names do not mark them: they are the ids of `hard_negatives.csv`, or without that file every query that
    has no pair.

    Raises:
        UserError: the file names no id, one that is no query, or one that has a pair.
    """
    copies = {query for query, _ in pairs}
    path = root / LIST
    if not path.is_file():
        return sorted(set(queries) - copies), "queries without a pair"
    ids = set(read_ids(path))
    for wrong, problem in ((ids.difference(queries), "no queries"), (ids & copies, "copies by the ground truth")):
        if wrong:
            raise UserError(f"{path}: {len(wrong)} ids are {problem}, such as {', '.join(sorted(wrong)[:3])}; expected "
                            f"the id of a query that is no copy on every line")
    return sorted(ids), LIST
