"""Score normalization against a background set (docs/method.md §5; SSCD section 5.3)."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rdcd.errors import UserError
from rdcd.retrieval.nearest import nearest
from rdcd.retrieval.rows import Rows

_FORM = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*\[\s*(\d+)\s*,\s*(\d+)\s*\]\s*")


@dataclass(frozen=True)
class ScoreNorm:
    """`beta[first,last]`: s(q, r) = q·r - beta * mean of q's first-th to last-th largest inner products
    with the background, counted from 0, both included."""

    beta: float
    first: int
    last: int

    def bias(self, products: np.ndarray) -> np.ndarray:
        """Return beta * mean(products[:, first..last]), float64 [queries].

        Args:
            products: [queries, > last], from `background_products`.
        """
        return self.beta * products[:, self.first:self.last + 1].mean(axis=1, dtype=np.float64)


def parse_score_norm(text: str | None) -> ScoreNorm | None:
    """Parse `"1.0[0,2]"`: weight, then first and last neighbour, counted from 0, both included.

    Raises:
        UserError: another form, or the last neighbour before the first.
    """
    if text is None:
        return None
    found = _FORM.fullmatch(text) if isinstance(text, str) else None
    if found is None or int(found[2]) > int(found[3]):
        raise UserError(f"score normalization {text!r} not understood; expected null for none, or a string "
                        "like '1.0[0,2]': weight, first and last background neighbour, counted from 0")
    return ScoreNorm(float(found[1]), int(found[2]), int(found[3]))


def background_products(queries: np.ndarray, background: np.ndarray | Rows | None, depth: int, *,
                        label: str | None = None, find: Callable[..., tuple[np.ndarray, np.ndarray]] | None = None,
                        ) -> np.ndarray:
    """Return each query's `depth` largest inner products with the background, descending.

    Args:
        queries: float32 [n, d].
        background: float32 [m, d] with m >= depth.
        depth: 1 + the largest `last` of the normalizations to come.
        label: name of the progress bar; None shows none.
        find: what searches in place of `nearest`, see `search`.

    Returns:
        float64 [n, depth].

    Raises:
        UserError: no background, or one of fewer than `depth` vectors.
    """
    if background is None or len(background) < depth:
        had = "none was given" if background is None else f"got {len(background)}"
        raise UserError(f"score normalization needs a background of at least {depth} vectors, {had}; "
                        "give background=FILE (of `rdcd evaluate`, data.background=DIR) with enough of them, or "
                        "score_norms=[null] for none")
    return (find or nearest)(queries, background, depth, label=label)[0]


def augment_queries(queries: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Append -bias to each query, float32 [n, d + 1]: with `augment_references`, any inner-product
    index then serves normalized scores."""
    return np.column_stack((queries, -bias)).astype(np.float32)


def augment_references(references: np.ndarray) -> np.ndarray:
    """Append 1 to each reference, float32 [n, d + 1]."""
    return np.column_stack((references, np.ones(len(references)))).astype(np.float32)
