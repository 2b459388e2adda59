"""Codecs: what is done to descriptors between the network and the search (docs/method.md §5)."""

from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np

from rdcd.errors import UserError
from rdcd.files import atomic_path
from rdcd.retrieval.distinct import Distinct, best
from rdcd.retrieval.nearest import SPARE, progress
from rdcd.retrieval.rows import BLOCK, Rows, rows_of

METRICS = ("ip", "cosine", "l2")
_TRAINING = 1 << 28  # numbers, 1 GB, of background vectors that a codec learns from at most
_SAMPLE, _ASKED = 512, 64  # vectors whose order is looked at once, and how many of them are searched for


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
        metric: what scores are: `ip`, inner products; `cosine`, those of descriptors that are L2-normalized first;
            `l2`, minus squared distances.

    Raises:
        UserError: refused by faiss, a PCA to more than `dim`, or an index that faiss builds for another metric.
    """

    def __init__(self, text: str, dim: int, *, metric: str = "ip") -> None:
        self.text = text
        check_metric(metric)
        self._distances, self._checked, self._held = metric == "l2", False, None
        self._name = f"codec {text!r}"
        if not isinstance(text, str) or not text:
            raise UserError(f"{self._name}: expected an index-factory string such as 'PCAW{{d}},L2norm,Flat', or "
                            "'Flat' for none")
        factory, _, settings = text.replace("{d}", str(dim)).partition(";")
        binary = factory.split(",")[-1].startswith("LSH")
        wanted = faiss.METRIC_L2 if binary or self._distances else faiss.METRIC_INNER_PRODUCT
        try:
            index = faiss.index_factory(dim, "L2norm," * (metric == "cosine") + factory, wanted)
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
        if not isinstance(last, faiss.IndexFlatCodes | faiss.IndexIVF | faiss.IndexHNSW):
            raise UserError(f"{self._name} is a {type(last).__name__}, which is not measured here; expected Flat, SQ, "
                            f"PQ, LSH, IVF or HNSW, such as 'SQ8' or 'IVF256,Flat;nprobe=16'")
        if other := other_metric(index, wanted):
            raise UserError(f"{self._name}: {other}; take HNSW32_SQ8, IVF256,PQ16, PQ16 or HNSW32 instead, or "
                            f"metric=l2 of `rdcd score`")
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
        """Make the index hold `references`, and nothing else; of equal ones a graph holds one.

        Raises:
            UserError: the first time, scores that do not follow the exact ones on a sample.
        """
        references = rows_of(references)
        if not self._checked:
            self._checked = check_order(self._index, references, self._searched, name=self._name, exact=self._exact)
        self._held = None
        if isinstance(self._last, faiss.IndexHNSW) and len(held := Distinct.of(references)) < len(references):
            self._held, references = held, references.at(held.first)
        self._index.reset()
        for _, block in progress(references, label):
            self._index.add(np.ascontiguousarray(block))

    def find(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Search what `build` was given, see `nearest`."""
        held = self._index.ntotal if self._held is None else len(self._held.numbers)
        k = min(k, held)
        scores, rows = self._searched(queries, min(k + SPARE, self._index.ntotal))
        scores, rows = (best if self._held is None else self._held.best)(scores, rows, k)
        if (short := (rows < 0).any(axis=1)).any():
            raise UserError(f"{self._name} finds fewer than k={k} of {held:,} descriptors for {int(short.sum()):,} of "
                            f"{len(rows):,} queries; let it look at more, such as {self.text.partition(';')[0]};nprobe="
                            f"16 for IVF, ;efSearch=64 for HNSW, or at all, with 'Flat'")
        return scores, rows

    def _searched(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Return faiss's float64 scores, higher is more alike, and numbers, [n, depth]; -inf and -1 for none."""
        scores, rows = self._index.search(queries, depth)
        scores = scores.astype(np.float64)
        if isinstance(self._last, faiss.IndexLSH):
            scores = 1 - 2 * scores / self._last.nbits
        elif self._distances:
            scores = -scores
        scores[rows < 0] = -np.inf
        return scores, rows

    def _exact(self, queries: np.ndarray, references: np.ndarray) -> np.ndarray:
        """Return the scores that are stood for, of vectors as `apply` makes them, float64 [n, m]."""
        queries, references = (self.apply(vectors).astype(np.float64) for vectors in (queries, references))
        products = queries @ references.T
        if not self._distances:
            return products
        return 2 * products - (queries ** 2).sum(axis=1)[:, None] - (references ** 2).sum(axis=1)


def check_metric(metric: str) -> None:
    """Raise UserError unless `metric` is one of METRICS."""
    if metric not in METRICS:
        raise UserError(f"metric={metric}: expected one of {', '.join(METRICS)}")


def other_metric(index: faiss.Index, wanted: int) -> str | None:
    """Say what part of a faiss index is built for another metric than was asked for, silently; None: none is."""
    for part in _parts(index):
        if part.metric_type != wanted and not isinstance(part, faiss.IndexPreTransform):  # which takes that of its part
            return (f"faiss builds its {type(part).__name__} for L2 distances, whatever metric it is asked for, so "
                    f"that inner products would come in another order")
    return None


def _parts(index: faiss.Index) -> Iterator[faiss.Index]:
    index = faiss.downcast_index(index)
    yield index
    for name in ("index", "base_index", "refine_index", "storage", "quantizer"):
        if (part := getattr(index, name, None)) is not None:
            yield from _parts(part)


def check_order(index: faiss.Index, references: Rows, search: Callable[..., tuple[np.ndarray, np.ndarray]], *,
                name: str, exact: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> bool:
    """Compare the scores of an index, trained and left empty, with exact ones on evenly chosen references.

    Args:
        index: to fill for it, and to empty.
        references: what it is to hold.
        search: queries [n, dim], depth → scores [n, depth], higher is more alike, and numbers, -1 for none.
        name: of the index, for the message.
        exact: queries, references → scores [n, m].

    Returns:
        whether there was anything to compare: several vectors that differ.

    Raises:
        UserError: scores that do not rise with the exact ones.
    """
    chosen = np.unique(np.linspace(0, len(references) - 1, min(len(references), _SAMPLE)).astype(np.int64))
    sample = np.asarray(references.at(chosen))
    asked = np.unique(np.linspace(0, len(sample) - 1, min(len(sample), _ASKED)).astype(np.int64))
    index.reset()
    index.add(sample)
    scores, rows = search(sample[asked], len(sample))
    index.reset()
    others = (rows >= 0) & (rows != asked[:, None])
    expected = np.take_along_axis(exact(sample[asked], sample), np.maximum(rows, 0), 1)[others]
    scores = scores[others]
    if len(scores) < _ASKED // 2 or expected.std() <= 1e-3 * np.abs(expected).max():
        return False
    agreement = np.corrcoef(scores, expected)[0, 1] if np.ptp(scores) else 0.0
    if not agreement >= 0.1 - len(sample) ** -0.5:  # what a short code of few vectors may come to by chance
        raise UserError(f"{name} does not rank as an exact search does: on {len(sample)} descriptors its scores "
                        f"correlate by {agreement:.2f} with exact ones; take another, such as SQ8, IVF256,Flat or "
                        f"HNSW32, or train it on a background like what is searched")
    return True
