"""Codecs: what is done to descriptors between the network and the search (METHOD section 5)."""

from pathlib import Path

import faiss
import numpy as np

from rdcd.errors import UserError
from rdcd.files import atomic_path
from rdcd.retrieval.nearest import SPARE, progress
from rdcd.retrieval.rows import BLOCK, Rows, rows_of

_TRAINING = 1 << 28  # numbers, 1 GB, of background vectors that a codec learns from at most


class Codec:
    """A faiss index-factory string: a chain of vector transforms, then how descriptors are kept and searched.

    One that ends in `Flat` after nothing but transforms is exact: `Flat` changes nothing, `PCAW{d},L2norm,Flat`
    centres, rotates, whitens and L2-normalizes. Its vectors come from `apply` and any search will do. All others
    keep less than the vectors (`SQ8`, `PQ32`, `L2norm,LSH`) or look at less than all (`IVF256,Flat;nprobe=16`,
    `HNSW32;efSearch=64`): `nearest` is their search, and its scores are what faiss computes from what is kept. Of
    `LSH`, which keeps signs, that is 1 - 2 x the share of signs that differ.

    Args:
        text: the string; `{d}` in it stands for `dim`; after a semicolon, settings of faiss's search.
        dim: length of the descriptors.

    Raises:
        UserError: refused by faiss, or a PCA to more than `dim`.
    """

    def __init__(self, text: str, dim: int) -> None:
        self.text = text
        self._name = f"codec {text!r}"
        if not isinstance(text, str) or not text:
            raise UserError(f"{self._name}: expected an index-factory string such as 'PCAW{{d}},L2norm,Flat', or "
                            "'Flat' for none")
        factory, _, settings = text.replace("{d}", str(dim)).partition(";")
        binary = factory.split(",")[-1].startswith("LSH")
        try:
            index = faiss.index_factory(dim, factory, faiss.METRIC_L2 if binary else faiss.METRIC_INNER_PRODUCT)
            if settings:
                faiss.ParameterSpace().set_index_parameters(index, settings)
        except RuntimeError as error:
            raise UserError(f"faiss cannot parse {self._name} for {dim}-d descriptors; expected an index-factory "
                            "string, transforms followed by ',Flat' such as 'PCAW{d},L2norm,Flat', 'Flat' for none, or "
                            "an approximate index such as 'SQ8' or 'IVF256,Flat;nprobe=16'") from error
        self._take(index)
        last = self._last
        if isinstance(last, faiss.IndexPQ):
            last.do_polysemous_training = False  # minutes of annealing, of use to a search that nothing here asks for
        self.exact = isinstance(last, faiss.IndexFlat)
        self._signs = last.d if binary else None
        if not isinstance(last, faiss.IndexFlatCodes | faiss.IndexIVF | faiss.IndexHNSW):
            raise UserError(f"{self._name} is a {type(last).__name__}, which is not measured here; expected Flat, SQ, "
                            f"PQ, LSH, IVF or HNSW, such as 'SQ8' or 'IVF256,Flat;nprobe=16'")
        for pca in self._pcas:
            if not 1 <= pca.d_out <= pca.d_in:
                raise UserError(f"{self._name}: a PCA to {pca.d_out} dimensions of {pca.d_in}-d descriptors; "
                                f"expected 1 to {pca.d_in}: write 'PCAW{{d}}' for all of them")

    def _take(self, index: faiss.Index) -> None:
        self._index = index
        chain = isinstance(index, faiss.IndexPreTransform)
        self._last = faiss.downcast_index(index.index) if chain else index
        self._steps = [faiss.downcast_VectorTransform(index.chain.at(step))
                       for step in (range(index.chain.size()) if chain else ())]
        self._pcas = [step for step in self._steps if isinstance(step, faiss.PCAMatrix)]

    @property
    def trained(self) -> bool:
        """Whether the codec can be used; False until `train` for codecs that learn from data."""
        return self._index.is_trained

    @property
    def bytes(self) -> int:
        """What an index keeps of one descriptor: its code, of IVF its number too, of HNSW its links on the ground
        level; what all descriptors share is not counted."""
        if isinstance(self._last, faiss.IndexHNSW):
            return faiss.downcast_index(self._last.storage).sa_code_size() + 4 * self._last.hnsw.nb_neighbors(0)
        return self._last.code_size + 8 * isinstance(self._last, faiss.IndexIVF)

    def train(self, background: np.ndarray | Rows | None) -> None:
        """Fit what is to be learnt to background descriptors; does nothing where there is nothing to fit.

        Args:
            background: float32 [n, dim]; of more than 1 GB, or more than a PCA looks at (1,000 per dimension, by
                faiss's rule), a sample is read, always the same rows.

        Raises:
            UserError: no background, too few vectors for the PCA, or vectors of too few directions.
        """
        if self.trained:
            return
        if background is None:
            raise UserError(f"{self._name} has to be trained and no background was given; expected background "
                            "descriptors: give background=FILE (of `rdcd evaluate`, data.background=DIR), or use the "
                            "codec 'Flat'")
        for pca in self._pcas:
            if len(background) <= pca.d_out:  # n centred vectors span at most n - 1 directions
                raise UserError(f"{self._name} needs more than {pca.d_out} background vectors and got "
                                f"{len(background)}; give a larger background or ask for fewer PCA "
                                "dimensions")
        try:
            self._index.train(self._sample(rows_of(background)))
        except RuntimeError as error:
            raise UserError(f"faiss cannot train {self._name} on {len(background)} background vectors: "
                            f"{error}; give a larger background or another codec") from error
        for pca in self._pcas:
            variances = faiss.vector_to_array(pca.eigenvalues)[:pca.d_out]
            spanned = int((variances > np.finfo(np.float32).eps * variances[0]).sum())
            if pca.eigen_power < 0 and spanned < pca.d_out:  # whitening would blow up what is only rounding
                raise UserError(f"{self._name}: the background vectors vary in only {spanned} directions, "
                                f"whitening asks for {pca.d_out}; ask for fewer PCA dimensions, or check "
                                "that the model's descriptors have not collapsed")

    def _sample(self, background: Rows) -> np.ndarray:
        """Read what is learnt from, in faiss's order: a PCA then learns from it what it would from all rows."""
        n, d = background.shape
        most = max(1, _TRAINING // d)
        learn = [step for step in self._steps if not step.is_trained]
        if len(learn) == 1 and learn[0] in self._pcas and self.exact:
            most = min(most, learn[0].max_points_per_d * learn[0].d_in)
        if n <= most:
            return background.raw(slice(None))
        order = np.empty(n, np.int32)
        faiss.rand_perm(faiss.swig_ptr(order), n, 1234)  # the seed of faiss's own sampling
        return background.raw(order[:most].astype(np.int64))

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """Transform float32 [n, dim] to float32 [n, dim of the codec]; `Flat` returns `vectors` itself.

        Raises:
            UserError: vectors so large that the transform overflows.
        """
        if not self._steps:
            return vectors
        out = np.empty((len(vectors), self._steps[-1].d_out), dtype=np.float32)
        for start in range(0, len(vectors), BLOCK):
            block = np.ascontiguousarray(vectors[start:start + BLOCK])
            for step in self._steps:
                block = step.apply(block)
            if not np.isfinite(block.max() + block.min()):
                raise UserError(f"{self._name} makes NaN or infinity of descriptors; expected vectors of about unit "
                                "length: check the model that made them")
            out[start:start + BLOCK] = block
        return out

    def save(self, path: str | Path) -> None:
        """Write the trained transforms to a file that `load` reads."""
        with atomic_path(path) as partial:
            faiss.write_index(self._index, str(partial))

    def load(self, path: str | Path) -> "Codec":
        """Take the trained transforms of a file written by `save`, of a codec of the same text; return itself.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            index = faiss.read_index(str(path))
            if index is None or index.d != self._index.d:  # faiss has a file for no index, too
                raise RuntimeError("it holds no index" if index is None else f"it takes {index.d}-d descriptors")
            self._take(index)
        except RuntimeError as error:
            raise UserError(f"{path} is no trained {self._name} ({error}): copy it again, or build anew") from None
        return self

    def coded(self, vectors: np.ndarray | Rows) -> np.ndarray | Rows:
        """Return vectors as `apply` makes them, of `Rows` each block when it is read."""
        if not self._steps:
            return vectors
        return (vectors.transformed(self.apply, self._steps[-1].d_out) if isinstance(vectors, Rows)
                else self.apply(vectors))

    def nearest(self, queries: np.ndarray, references: np.ndarray | Rows, k: int, *,
                label: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Build the index of `references` and return what it finds, best first; equal scores in reference order.

        Args:
            queries, references: float32 [n, dim] and [m, dim], not transformed.
            k: at most m are returned.
            label: name of the progress bar of the build; None shows none.

        Returns:
            float64 scores and int64 reference rows, each [n, min(k, m)].

        Raises:
            UserError: an index that finds fewer than k, whatever it is asked.
        """
        self.build(references, label=label)
        found = self.find(queries, k)
        self._index.reset()
        return found

    def build(self, references: np.ndarray | Rows, *, label: str | None = None) -> None:
        """Make the index hold `references`, and nothing else."""
        self._index.reset()
        for _, block in progress(rows_of(references), label):
            self._index.add(np.ascontiguousarray(block))

    def find(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Search what `build` was given, see `nearest`."""
        held = self._index.ntotal
        k = min(k, held)
        scores, rows = self._index.search(queries, min(k + SPARE, held))
        if (short := (rows[:, :k] < 0).any(axis=1)).any():
            raise UserError(f"{self._name} finds fewer than k={k} of {held:,} descriptors for {int(short.sum()):,} of "
                            f"{len(rows):,} queries; let it look at more, such as {self.text.partition(';')[0]};nprobe="
                            f"16 for IVF, ;efSearch=64 for HNSW, or at all, with 'Flat'")
        scores = scores.astype(np.float64)
        if self._signs:
            scores = 1 - 2 * scores / self._signs
        scores[rows < 0] = -np.inf
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
