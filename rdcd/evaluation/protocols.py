"""A named way to measure, from pictures to numbers (docs/method.md §4–§7)."""

from dataclasses import dataclass, field

from rdcd.data.layouts import LAYOUTS
from rdcd.data.views import RESIZES
from rdcd.errors import UserError, check_number
from rdcd.retrieval.codec import Codec
from rdcd.retrieval.knn import check_candidates
from rdcd.retrieval.score_norm import parse_score_norm

_ANY_DIM = 7680  # a descriptor size that no codec written for a real one exceeds, and most parts of a PQ divide


@dataclass(frozen=True)
class Protocol:
    """How a benchmark is read, descriptors are extracted and scored.

    Args:
        name: printed beside every number.
        layout: how the benchmark lies on disk, see `rdcd.data.layouts`; `cd10k` also measures its own metrics, by
            L2 distance.
        split: which queries of DISC2021, `dev` or `final`.
        size: side in pixels; None: what the student's card says.
        resize: `square`, `short` or `long`; None: what the student's card says.
        codecs: faiss factory strings; `{d}` stands for a descriptor's own size.
        score_norms: None or strings such as `1.0[0,2]`.
        candidates: `per_query` or `global`.
        k: candidates per query.
        bootstrap: resamples of the queries behind the 95 % intervals; 0: no intervals.

    Raises:
        UserError: a way to score that is not understood; said here, before a run that ends with it.
    """

    name: str = "disc"
    layout: str = "disc"
    split: str = "dev"
    size: int | None = None
    resize: str | None = None
    codecs: list[str] = field(default_factory=lambda: ["Flat"])
    score_norms: list[str | None] = field(default_factory=lambda: [None, "1.0[0,2]"])
    candidates: str = "per_query"
    k: int = 10
    bootstrap: int = 1000

    def __post_init__(self) -> None:
        check_candidates(self.candidates, self.k)
        if self.layout not in LAYOUTS:
            raise UserError(f"protocol.layout={self.layout}: expected one of {', '.join(LAYOUTS)}")
        if self.resize not in (None, *RESIZES):
            raise UserError(f"protocol.resize={self.resize}: expected {', '.join(RESIZES)}, or null for what the "
                            f"student's card says")
        check_number("protocol.size", self.size, 1, null="what the student's card says")
        check_number("protocol.bootstrap", self.bootstrap, 0)
        for name, example in (("codecs", "[Flat]"), ("score_norms", "[null]")):
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or not values:
                raise UserError(f"protocol.{name}={values}: expected a list of one or more, such as {example}")
        for text in self.codecs:
            if not Codec(text, _ANY_DIM).exact and (self.layout == "cd10k" or self.candidates == "global"):
                raise UserError(f"protocol.codecs={self.codecs}: {text} does not search exactly, which "
                                f"protocol.layout=cd10k and protocol.candidates=global need; choose others")
        for text in self.score_norms:
            parse_score_norm(text)
        if self.layout == "cd10k" and (self.candidates != "per_query" or any(self.score_norms)):
            raise UserError(f"protocol.layout=cd10k is measured by distance, the nearest of every query, without score "
                            f"normalization: set protocol.score_norms=[null] and protocol.candidates=per_query (now "
                            f"{self.score_norms}, {self.candidates})")

    def describe(self, size: int, resize: str) -> str:
        """Say the protocol in one line, for pictures of this size, resized so."""
        rule = (f"{self.k} nearest references of every query" if self.candidates == "per_query"
                else f"best {self.k} × queries pairs over all queries")
        if self.layout == "cd10k":
            rule += " by L2 distance"
        queries = f" ({self.split} queries)" if self.layout == "disc" else ""
        return f"{self.name}{queries}, {size} px {RESIZES[resize]}, candidates {self.candidates}: {rule}"
