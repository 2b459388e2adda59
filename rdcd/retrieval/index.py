"""An index: a folder of descriptors that is searched while pictures are added to it and removed (see `IndexWriter`).

    DIR/index.json      what the index is: model, codec, background, and the segments that make it up; replaced at once
    DIR/000001/ …       segments, see `Segment`; one that index.json does not list does not count
    DIR/codec.faiss     the codec, where it was trained; DIR/background.f32, where one was given
    DIR/trained.faiss   the trained, empty index of an approximate one
    DIR/lock            held by the one writer

A reader takes index.json once and opens what it lists: the index as it was before or after a change, never between.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from rdcd.errors import UserError, check_number
from rdcd.retrieval.codec import Codec
from rdcd.retrieval.distinct import Distinct
from rdcd.retrieval.nearest import nearest
from rdcd.retrieval.rows import Rows, rows_of
from rdcd.retrieval.score_norm import ScoreNorm, background_products, parse_score_norm
from rdcd.retrieval.segments import Segment

FORMAT = "rdcd-index-1"
FLAT = "Flat"
GIVEN_NORM, OWN_NORM = "1.0[0,2]", "1.0[10,12]"
_SAMPLE = 10_000  # pictures of the index that stand in for a background
_TRIES = 100  # times that a reader looks again while a writer replaces what it opens


@dataclass(frozen=True)
class Hits:
    """The best pictures for each query, best first: float64 scores and int64 rows of the index, [n, k]."""

    scores: np.ndarray
    rows: np.ndarray


class Index:
    """An index opened for searching; later changes of the folder do not reach it.

    Attributes:
        about: what index.json holds.
        dim: length of the descriptors that `search` takes.
    """

    def __init__(self, folder: Path, about: dict) -> None:
        self.folder, self.about = folder, about
        self.dim, self.code_dim = about["codec"]["dim"], about["codec"]["coded_dim"]
        self.codec = Codec(about["codec"]["text"], self.dim)
        if not self.codec.trained:
            self.codec.load(folder / "codec.faiss")
        self.segments = [Segment(folder / part["folder"], rows=part["rows"], dim=self.code_dim)
                         for part in about["segments"]]
        self._firsts = np.cumsum([0, *map(len, self.segments)])

    @classmethod
    def open(cls, folder: str | Path) -> "Index":
        """Open an index folder.

        Raises:
            UserError: there is no index, or its files are damaged.
        """
        folder = Path(folder)
        about = read_about(folder)
        for _ in range(_TRIES):
            try:
                return cls(folder, about)
            except (FileNotFoundError, UserError, RuntimeError, ValueError) as error:  # gone, or going
                before, about = about, read_about(folder)
                if before == about:
                    if isinstance(error, UserError):
                        raise
                    raise UserError(f"{folder} is damaged ({error}): build the index again") from error
        raise UserError(f"{folder} changes faster than it can be opened: try again when its writers are done")

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def path(self, row: int) -> str:
        """Return the path of a picture."""
        segment, place = self._place(row)
        return segment.path(place)

    def digest(self, row: int) -> bytes:
        """Return the SHA-256 of a picture's file when it was added."""
        segment, place = self._place(row)
        return segment.digests[place].tobytes()

    def find(self, path: str) -> int | None:
        """Return the row of a path, or None."""
        for first, segment in zip(self._firsts.tolist(), self.segments):
            if (row := segment.find(path)) is not None:
                return first + row
        return None

    def _place(self, row: int) -> tuple[Segment, int]:
        number = int(np.searchsorted(self._firsts, row, side="right")) - 1
        return self.segments[number], int(row - self._firsts[number])

    @property
    def score_norm(self) -> str | None:
        """The score normalization that goes with the background: a given one's three nearest; of the index's own
        pictures, the ten nearest, which may be copies, are passed over; None where there are too few."""
        text = GIVEN_NORM if self.about["background"]["source"] else OWN_NORM
        return text if len(self.background) > parse_score_norm(text).last else None

    @cached_property
    def background(self) -> np.ndarray:
        """The background, coded, float32 [m, coded_dim]: as given, or those of the index's pictures whose files have
        the lowest hashes: the same ones in whatever order the pictures came, equal files once."""
        if self.about["background"]["source"]:
            path = self.folder / "background.f32"
            if path.stat().st_size % (4 * self.code_dim):
                raise UserError(f"{path} is damaged: {path.stat().st_size:,} bytes are no whole number of "
                                f"{self.code_dim}-d descriptors; build the index again")
            return np.fromfile(path, dtype=np.float32).reshape(-1, self.code_dim)
        if not len(self):
            return np.empty((0, self.code_dim), np.float32)
        hashes = np.concatenate([np.ascontiguousarray(segment.digests[:, :8]).view(">u8").ravel()
                                 for segment in self.segments])
        _, rows = np.unique(hashes, return_index=True)
        return self.vectors(rows[:_SAMPLE])

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Return the coded descriptors of these rows, float32 [n, coded_dim]."""
        out = np.empty((len(rows), self.code_dim), np.float32)
        for first, segment in zip(self._firsts.tolist(), self.segments):
            here = (rows >= first) & (rows < first + len(segment))
            out[here] = segment.vectors[rows[here] - first]
        return out

    def encode(self, descriptors: np.ndarray) -> np.ndarray:
        """Apply the codec to float32 [n, dim], one by one: a matrix product rounds a row by its place in a block."""
        if self.codec.text == FLAT:
            return descriptors
        coded = [self.codec.apply(np.ascontiguousarray(row[None], dtype=np.float32)) for row in descriptors]
        return np.concatenate(coded) if coded else np.empty((0, self.code_dim), np.float32)

    def search(self, descriptors: np.ndarray, k: int = 10, *, score_norm: str | None = "default") -> Hits:
        """Find the k pictures most like each query; equal scores in order of path.

        Args:
            descriptors: float32 [n, dim], as the index's model makes them.
            k: fewer are returned where the index has fewer.
            score_norm: None or such as "1.0[0,2]"; "default": that of `score_norm`.

        Raises:
            UserError: descriptors of another length, or too small a background.
        """
        check_number("k", k, 1)
        if descriptors.ndim != 2 or descriptors.shape[1] != self.dim:
            raise UserError(f"descriptors of shape {list(descriptors.shape)}: {self.folder} takes [n, {self.dim}], of "
                            f"its own model, {describe_model(self.about['model'])}")
        coded = self.encode(descriptors)
        scores, rows = self.nearest(coded, k)
        norm = parse_score_norm(self.score_norm if score_norm == "default" else score_norm)
        return Hits(scores - self.biases(coded, norm)[:, None], rows)

    def biases(self, coded: np.ndarray, norm: ScoreNorm | None) -> np.ndarray:
        """Return what the normalization takes off each query's scores, float64 [n]."""
        if norm is None:
            return np.zeros(len(coded))
        return norm.bias(background_products(coded, self.background, norm.last + 1))

    def nearest(self, coded: np.ndarray, k: int, *, exact: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return the k largest inner products of coded queries and their rows, [n, min(k, pictures)].

        Args:
            exact: do without approximate indexes.
        """
        k = min(k, len(self))
        if not k or not len(coded):
            return np.empty((len(coded), k)), np.empty((len(coded), k), np.int64)
        scores, rows = [], []
        for first, segment in zip(self._firsts.tolist(), self.segments):
            if segment.faiss is None or exact:
                s, r = nearest(coded, segment.vectors, k)
            else:
                s, r = segment.approximate(coded, k)
            scores.append(s)
            rows.append(r + first)
        if len(self.segments) == 1:
            return scores[0], rows[0]
        scores, rows = np.concatenate(scores, axis=1), np.concatenate(rows, axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")
        scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
        equal = (scores[:, 1:] == scores[:, :-1]) & np.isfinite(scores[:, 1:])
        for query in np.flatnonzero(equal[:, :k].any(axis=1)):  # within a segment they are in order of path already
            best = sorted(zip((-scores[query]).tolist(), rows[query].tolist()),
                          key=lambda pair: (pair[0], self.path(pair[1]).encode() if pair[0] < np.inf else b""))
            rows[query] = [row for _, row in best]
        return scores[:, :k], rows[:, :k]

    def recall(self, *, queries: int = 200) -> dict[str, float] | None:
        """Return what share of the exact nearest an approximate index finds, `recall_at_1` and `recall_at_10`, for
        pictures of the background; None: the index is exact. Equal descriptors count once, as queries and as found."""
        if all(segment.faiss is None for segment in self.segments):
            return None
        sample = self.background[Distinct.of(rows_of(self.background)).first[:queries]]
        parts = [segment.vectors for segment in self.segments]
        known = Distinct.of(Rows(parts))
        _, exact = nearest(sample, Rows(parts, order=known.first), 11)
        found = []
        for first, segment in zip(self._firsts.tolist(), self.segments):
            rows = np.arange(len(segment))[None] if segment.faiss is None else segment.distinct(sample, 11)
            groups = np.where(rows < 0, -1, known.numbers[first + rows])
            found.append(np.broadcast_to(groups, (len(sample), groups.shape[1])))
        found = np.concatenate(found, axis=1)
        hits = []
        for query, near, there in zip(sample, exact, found):
            if not self.about["background"]["source"]:  # a query finds itself
                near = near[(self.vectors(known.first[near]) != query).any(axis=1)]
            if len(near):
                hits.append(np.isin(near[:10], there))
        return {"queries": len(hits), "recall_at_1": float(np.mean([hit[0] for hit in hits] or 1)),
                "recall_at_10": float(np.mean([hit.mean() for hit in hits] or 1))}


def read_about(folder: str | Path) -> dict:
    """Return what index.json says.

    Raises:
        UserError: there is none, or it is none of ours.
    """
    path = Path(folder) / "index.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no index in {folder} (no index.json): make one with `rdcd index build index={folder} "
                        f"images=DIR model=MODEL`, or check the path") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): build the index again") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else None
        raise UserError(f"{path}: format {found!r}, expected {FORMAT!r}: build the index with this version of rdcd")
    return about


def describe_model(model: Mapping[str, object]) -> str:
    """Name a model as an index records it: its name, the first digits of its hash, and its input."""
    digest = str(model.get("weights_sha256") or "")[:12]
    return (f"{model['name']}" + (f" (weights {digest})" if digest else "")
            + f", {model['dim']} numbers, {model['size']} px {model['resize']}")
