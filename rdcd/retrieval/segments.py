"""Segments of an index: folders of pictures in order of path, written once and memory-mapped ever after."""

import heapq
import mmap
import os
import shutil
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import faiss
import numpy as np

from rdcd.errors import UserError
from rdcd.retrieval.codec import check_order, other_metric
from rdcd.retrieval.distinct import Distinct, best
from rdcd.retrieval.rows import Rows

DIGEST = 32  # bytes of a SHA-256
_LEAST = 1000  # pictures from which a segment gets a faiss index of its own; fewer are searched as fast without
_DEEPER = 4  # times k candidates that an approximate index is asked for; their scores are then computed exactly
_ROWS = 1 << 14  # rows handled at a time


class Segment:
    """Pictures of an index, sorted by path, each path once; all arrays stay on disk.

    Args:
        folder: as `SegmentWriter` wrote it.
        rows, dim: as the index records them.

    Raises:
        FileNotFoundError: a writer has replaced the segment meanwhile.
        UserError: files of other sizes than recorded.
    """

    def __init__(self, folder: Path, *, rows: int, dim: int) -> None:
        self.folder, self.rows = folder, rows
        self.vectors = _mapped(folder / "vectors.f32", np.float32, (rows, dim))
        self.digests = _mapped(folder / "digests.u8", np.uint8, (rows, DIGEST))
        self._ends = _mapped(folder / "path_ends.i64", np.int64, (rows,))
        with open(folder / "paths.utf8", "rb") as file:
            if os.fstat(file.fileno()).st_size != self._ends[-1] or (np.diff(self._ends, prepend=0) <= 0).any():
                raise UserError(f"{folder} is damaged: its paths are not as long as recorded; build the index again")
            self._paths = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.faiss = None
        if (folder / "faiss.index").is_file():
            self.faiss = faiss.read_index(str(folder / "faiss.index"))
            equal = folder / "groups.i64"
            self._held = Distinct(_mapped(equal, np.int64, (rows,))) if equal.is_file() else None
            held = rows if self._held is None else int(self._held.numbers.max()) + 1
            if self.faiss is None or (self.faiss.d, self.faiss.ntotal) != (dim, held):
                raise UserError(f"{folder / 'faiss.index'} is damaged: it is of other pictures; build the index again")
            tune(self.faiss)

    def __len__(self) -> int:
        return self.rows

    def path(self, row: int) -> str:
        """Return the path of a picture."""
        return self._text(self._bytes(row))

    def paths(self) -> Iterator[str]:
        """Yield all paths, in order."""
        start = 0
        for first in range(0, self.rows, _ROWS):
            for end in self._ends[first:first + _ROWS].tolist():
                yield self._text(self._paths[start:end])
                start = end

    def _text(self, path: bytes) -> str:
        try:
            return path.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{self.folder / 'paths.utf8'} is damaged ({error}): build the index again") from None

    def find(self, path: str) -> int | None:
        """Return the row of a path, or None."""
        wanted = path.encode()
        row = bisect_left(range(self.rows), wanted, key=self._bytes)
        return row if row < self.rows and self._bytes(row) == wanted else None

    def _bytes(self, row: int) -> bytes:
        return self._paths[self._ends[row - 1] if row else 0:self._ends[row]]

    def approximate(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Ask the segment's own faiss index; return float64 scores and int64 rows, [n, k], -inf and -1 where fewer were
        found. Equal scores are in order of row."""
        return (best if self._held is None else self._held.best)(*self._candidates(queries, k), k)

    def distinct(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Return what `approximate` chooses from, the first row of equal descriptors: int64 [n, depth], -1 for none."""
        _, groups = self._candidates(queries, k)
        return np.where(groups < 0, -1, self._first(groups))

    def _first(self, groups: np.ndarray) -> np.ndarray:
        return groups if self._held is None else self._held.first[groups]

    def _candidates(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        depth = min(max(_DEEPER * k, 64), self.faiss.ntotal)
        _, groups = self.faiss.search(queries, depth)
        scores = np.full(groups.shape, -np.inf)
        for i, found in enumerate(groups):
            some = found >= 0
            scores[i, some] = products(queries[i], self.vectors[self._first(found[some])])
        return scores, groups


def products(query: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Return the inner products of a vector [d] with each of [m, d] in float64, as the exact search computes them."""
    return np.einsum("md,md->m", np.broadcast_to(query.astype(np.float64), references.shape),
                     references.astype(np.float64))


def _mapped(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    wanted = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if (size := path.stat().st_size) != wanted:
        raise UserError(f"{path} is damaged: {size:,} bytes, expected {wanted:,}; build the index again")
    return np.memmap(path, dtype=dtype, mode="r", shape=shape).view(np.ndarray)


class SegmentWriter:
    """Writes a segment, part by part; nothing of it counts until an index lists it.

    Args:
        folder: is made; one that is there is what a killed writer left, and is removed.
    """

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder, self.rows, self._end, self._last = folder, 0, 0, b""
        names = ("vectors.f32", "digests.u8", "paths.utf8", "path_ends.i64")
        self._files = {name.partition(".")[0]: open(folder / name, "wb") for name in names}

    def append(self, paths: Iterable[str], digests: np.ndarray, vectors: np.ndarray) -> None:
        """Add pictures: paths in ascending order of their bytes, uint8 [n, 32], float32 [n, d]."""
        encoded = [path.encode() for path in paths]
        for before, after in zip([self._last, *encoded], encoded):
            if before >= after:
                raise UserError(f"{self.folder}: {after!r} after {before!r}, and paths must ascend; an index that has "
                                f"them otherwise is damaged: build it again")
        if not encoded:
            return
        ends = self._end + np.cumsum([len(path) for path in encoded], dtype=np.int64)
        self._files["vectors"].write(np.ascontiguousarray(vectors, dtype=np.float32).data)
        self._files["digests"].write(np.ascontiguousarray(digests, dtype=np.uint8).data)
        self._files["paths"].write(b"".join(encoded))
        self._files["path_ends"].write(ends.data)
        self.rows, self._end, self._last = self.rows + len(encoded), int(ends[-1]), encoded[-1]

    def close(self) -> None:
        """Finish the files; a segment without rows leaves none."""
        for file in self._files.values():
            file.close()
        if not self.rows:
            shutil.rmtree(self.folder)


def merge(segments: list[Segment], writer: SegmentWriter, *, without: frozenset[str] = frozenset(),
          last_whole: bool = False) -> None:
    """Write the pictures of several segments, whose paths differ, in order of path.

    Memory holds a few thousand rows at a time, whatever the sizes.

    Args:
        without: paths to leave out.
        last_whole: of the last segment, leave none out.
    """
    def listed(number: int) -> Iterator[tuple[bytes, int, int]]:
        whole = not without or last_whole and number == len(segments) - 1
        for row, path in enumerate(segments[number].paths()):
            if whole or path not in without:
                yield path.encode(), number, row

    entries = heapq.merge(*(listed(number) for number in range(len(segments))))
    while block := list(islice(entries, _ROWS)):
        vectors = np.empty((len(block), segments[0].vectors.shape[1]), np.float32)
        digests = np.empty((len(block), DIGEST), np.uint8)
        numbers, rows = np.array([entry[1:] for entry in block]).T
        for number, segment in enumerate(segments):
            here = numbers == number
            vectors[here], digests[here] = segment.vectors[rows[here]], segment.digests[rows[here]]
        writer.append([path.decode() for path, _, _ in block], digests, vectors)


def train_faiss(factory: str, vectors: np.ndarray, dim: int) -> faiss.Index:
    """Return an empty, trained faiss index for inner products.

    Args:
        factory: faiss index-factory string, such as `IVF1024,Flat`, `HNSW32`, `IVF1024,PQ32`.
        vectors: float32 [n, dim] to learn from.

    Raises:
        UserError: a string faiss refuses or builds for another metric, or too few vectors.
    """
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise UserError(f"factory={factory}: faiss cannot parse it for {dim} numbers; expected Flat (exact), or such "
                        f"as 'IVF1024,Flat', HNSW32 or 'IVF1024,PQ32'") from error
    if other := other_metric(index, faiss.METRIC_INNER_PRODUCT):
        raise UserError(f"factory={factory}: {other}; take such as HNSW32_SQ8, 'IVF1024,PQ32' or HNSW32 instead")
    if not index.is_trained:
        try:
            index.train(vectors)
        except RuntimeError as error:
            reason = str(error).split("Error: ")[-1].strip()
            raise UserError(f"factory={factory}: faiss cannot train it on {len(vectors):,} pictures ({reason}); build "
                            f"from more pictures, ask for fewer cells, or take factory=Flat") from error
    return index


def tune(index: faiss.Index) -> None:
    """Set how far an approximate index looks: a sixteenth of the cells, at least eight; 128 neighbours of a graph."""
    index = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    if isinstance(index, faiss.IndexIVF):
        index.nprobe = max(index.nlist // 16, min(8, index.nlist))
    elif isinstance(index, faiss.IndexHNSW):
        index.hnsw.efSearch = 128


def write_faiss(trained: Path, segment: Path, *, rows: int, dim: int, name: str) -> None:
    """Give a segment its faiss index, of the trained one and the segment's vectors, if it is large enough.

    Equal vectors are one in it; where there are any, `groups.i64` has the number there of each row.

    Args:
        name: of the index, for messages.

    Raises:
        UserError: it does not rank as an exact search does, or cannot hold them.
    """
    if rows < _LEAST:
        return
    index = faiss.read_index(str(trained))
    if index is None or index.d != dim:  # faiss has a file for no index, too
        raise UserError(f"{trained} is damaged: it takes no {dim}-d descriptors; build the index again")
    vectors = Rows([_mapped(segment / "vectors.f32", np.float32, (rows, dim))])
    held = Distinct.of(vectors)
    if len(held) < rows:
        held.numbers.tofile(segment / "groups.i64")
        vectors = vectors.at(held.first)
    try:
        check_order(index, vectors, index.search, name=name, exact=lambda q, r: q.astype(np.float64) @ r.T)
        for _, block in vectors.blocks():
            index.add(block)
    except RuntimeError as error:
        raise UserError(f"{name}: faiss cannot hold {rows:,} pictures, {len(held):,} of them distinct, in it "
                        f"({str(error).split('Error: ')[-1].strip()}); take another, such as HNSW32") from error
    faiss.write_index(index, str(segment / "faiss.index"))
