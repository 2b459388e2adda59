"""What is scored: checked against one another, sorted, and as codecs make it."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rdcd.data.ground_truth import may_be
from rdcd.errors import UserError
from rdcd.evaluation.metrics import NO_PAIRS
from rdcd.retrieval.codec import Codec
from rdcd.retrieval.descriptors import Descriptors, some
from rdcd.retrieval.knn import lift_queries, lift_references, squared_lengths

_EXAMPLES = {"codecs": "[Flat]", "score_norms": "[null]", "candidates": "per_query"}


def coded(query: Descriptors, reference: Descriptors, background: Descriptors | None, codecs: Sequence[str], *,
          metric: str = "ip") -> Iterator[tuple[Codec, Descriptors, Descriptors, Descriptors | None]]:
    """Yield (codec, query, reference, background), sorted by name, as exact codecs make them; others do it themselves.

    Queries are held in memory, the others are read and transformed a block at a time.
    """
    query, reference, background = (None if d is None else d.sorted() for d in (query, reference, background))
    query = query.coded(np.asarray(query.vectors))
    trained = [Codec(text, query.dim, metric=metric) for text in codecs]
    for codec in trained:  # all of them before the first search: a mistake shows at once
        codec.train(None if background is None else background.vectors)
    for codec in trained:
        sets = query, reference, background
        yield codec, *(d if d is None or not codec.exact else d.coded(codec.coded(d.vectors)) for d in sets)


def lifted(query: Descriptors, reference: Descriptors, background: Descriptors | None,
           ) -> tuple[np.ndarray, Descriptors, Descriptors, Descriptors | None]:
    """Return the queries' squared lengths, float64 [n], and descriptors whose inner products less these are minus the
    squared distances of the given ones: any search for the former then finds the nearest."""
    q = np.asarray(query.vectors)
    r, b = (None if d is None else d.coded(lift_references(d.vectors)) for d in (reference, background))
    return squared_lengths(q), query.coded(lift_queries(q)), r, b


def check_exact(codecs: Sequence[str], dim: int, what: str, *, metric: str = "ip") -> None:
    """Refuse codecs whose search is not exact, for `what` needs one that is."""
    for text in codecs:
        if not Codec(text, dim, metric=metric).exact:
            raise UserError(f"codec {text!r} does not search exactly, which {what} needs; expected transforms followed "
                            f"by ',Flat', such as 'PCAW{{d}},L2norm,Flat'")


def listed(values: Sequence[str | None] | str | None, name: str) -> list[str | None]:
    """Return one value or several as a list.

    Raises:
        UserError: none at all.
    """
    values = [values] if values is None or isinstance(values, str | int | float) else list(values)
    if not values:
        raise UserError(f"{name}=[] asks for nothing; expected at least one, such as "
                        f"{name}={_EXAMPLES[name]}")
    return values


def check_dims(sets: Mapping[str, Descriptors | None]) -> None:
    """Refuse descriptors of different lengths, by name."""
    dims = {name: d.dim for name, d in sets.items() if d is not None}
    if len(set(dims.values())) > 1:
        lengths = ", ".join(f"{name} {dim}" for name, dim in dims.items())
        raise UserError(f"descriptors of different lengths: {lengths}; expected one length: extract all of "
                        "them with the same model")


def check_ids(query: Descriptors, reference: Descriptors, pairs: Sequence[tuple[str, str]]) -> None:
    """Refuse ground truth that names pictures which neither have a descriptor nor were unreadable."""
    if not len(pairs):
        raise UserError(NO_PAIRS)
    named = [np.unique(column) for column in np.asarray(pairs, dtype=np.str_).T]
    known = query.known, reference.known
    if not np.isin(named[0], known[0]).any() and np.isin(named[0], known[1]).any():
        raise UserError(f"query ids of the ground truth ({some(named[0], most=3)}) are in the reference "
                        "descriptors and none is in the query descriptors: query and reference are swapped; "
                        "expected query=QUERIES reference=REFERENCES: exchange the two")
    for role, ids, there in zip(("query", "reference"), named, known, strict=True):
        absent = np.setdiff1d(ids, there, assume_unique=True)
        if absent.size:
            raise UserError(f"{absent.size:,} of the {ids.size:,} {role} ids of the ground truth are not in "
                            f"the {role} descriptors: {some(absent)} (these hold ids such as "
                            f"{', '.join(there[:2])}){may_be(absent[0], there)}; ids are file names without "
                            f"folder and extension, unless those are equal: extract all {role} pictures, or give the "
                            f"ground truth that belongs to them")
