"""Codecs: what is done to descriptors between the network and the search (METHOD section 5)."""

from pathlib import Path

import faiss
import numpy as np

from rdcd.errors import UserError
from rdcd.files import atomic_path

_ROWS = 1 << 16  # vectors transformed at a time


class Codec:
    """A chain of vector transforms, written as a faiss index-factory string ending in `Flat`.

    `Flat` changes nothing; `PCAW{d},L2norm,Flat` centres, rotates, whitens and L2-normalizes.

    Args:
        text: the string; `{d}` in it stands for `dim`.
        dim: length of the descriptors.

    Raises:
        UserError: not ending in Flat, refused by faiss, not exact, or a PCA to more than `dim`.
    """

    def __init__(self, text: str, dim: int) -> None:
        self.text = text
        self._name = f"codec {text!r}"
        if not isinstance(text, str) or text.split(",")[-1] != "Flat":
            raise UserError(f"{self._name} does not end in Flat; expected transforms followed by ',Flat', "
                            "such as 'PCAW{d},L2norm,Flat', or 'Flat' for none")
        try:
            index = faiss.index_factory(dim, text.replace("{d}", str(dim)), faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise UserError(f"faiss cannot parse {self._name} for {dim}-d descriptors; expected an "
                            "index-factory string such as 'Flat', 'PCA64,Flat' or "
                            "'PCAW{d},L2norm,Flat'") from error
        self._index = index
        chain = isinstance(index, faiss.IndexPreTransform)
        if not isinstance(faiss.downcast_index(index.index) if chain else index, faiss.IndexFlat):
            raise UserError(f"{self._name} is not a chain of vector transforms; expected only transforms "
                            "such as PCA, PCAW, L2norm before ',Flat': the search here is exact")
        steps = range(index.chain.size()) if chain else ()
        steps = (faiss.downcast_VectorTransform(index.chain.at(step)) for step in steps)
        self._pcas = [step for step in steps if isinstance(step, faiss.PCAMatrix)]
        for pca in self._pcas:
            if not 1 <= pca.d_out <= pca.d_in:
                raise UserError(f"{self._name}: a PCA to {pca.d_out} dimensions of {pca.d_in}-d descriptors; "
                                f"expected 1 to {pca.d_in}: write 'PCAW{{d}}' for all of them")

    @property
    def trained(self) -> bool:
        """Whether `apply` can be called; False until `train` for codecs that learn from data."""
        return self._index.is_trained

    def train(self, background: np.ndarray | None) -> None:
        """Fit the transforms to background descriptors; does nothing where there is nothing to fit.

        Args:
            background: float32 [n, dim].

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
            self._index.train(background)
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

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """Transform float32 [n, dim] to float32 [n, dim of the codec]; `Flat` returns `vectors` itself."""
        if isinstance(self._index, faiss.IndexFlat):
            return vectors
        # The Flat code of a vector is the bytes of the transformed vector.
        out = np.empty((len(vectors), self._index.sa_code_size() // 4), dtype=np.float32)
        for start in range(0, len(vectors), _ROWS):
            rows = slice(start, start + _ROWS)
            out[rows] = self._index.sa_encode(vectors[rows]).view(np.float32)
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
            self._index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise UserError(f"{path} is no trained {self._name} ({error}): copy it again, or build anew") from None
        return self
