"""Descriptors of a set of pictures, and the HDF5 file they are kept in (ISC2021 format)."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from rdcd.errors import UserError
from rdcd.files import atomic_path, composed
from rdcd.retrieval.nearest import lengths
from rdcd.retrieval.rows import Rows, one_after_the_other, rows_of


def _no_names() -> np.ndarray:
    return np.empty(0, dtype=np.str_)


@dataclass(frozen=True)
class Descriptors:
    """One row of `vectors` per picture; an object of this class is always sound.

    Args:
        names: [n] picture ids (file names without folder and extension), each once.
        vectors: float32 [n, d], finite; rows in any order. `Rows` are read only when needed.
        missing: [m] ids of pictures that could not be read at extraction: they exist, have no
            vector, and their ground-truth pairs count as missed.

    Raises:
        UserError: no vectors, another number of names than vectors, an id given twice, NaN or infinity.
    """

    names: np.ndarray
    vectors: np.ndarray | Rows
    missing: np.ndarray = field(default_factory=_no_names)

    def __post_init__(self) -> None:
        names, missing = (np.asarray(ids, dtype=np.str_) for ids in (self.names, self.missing))
        vectors = self.vectors
        if not isinstance(vectors, Rows):
            with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite and is refused below
                vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        for name, value in (("names", names), ("vectors", vectors), ("missing", missing)):
            object.__setattr__(self, name, value)
        if len(vectors.shape) != 2 or names.ndim != 1 or missing.ndim != 1 or vectors.shape[1:] == (0,):
            raise UserError(f"vectors of shape {list(vectors.shape)} with names of shape "
                            f"{list(names.shape)}; expected [n, d] and [n]: extract them again")
        if len(names) != len(vectors):
            raise UserError(f"{len(names)} names for {len(vectors)} vectors; expected one name per vector: "
                            "extract them again")
        if not len(vectors):
            raise UserError("no vectors; expected at least one: check that extraction found readable "
                            "pictures")
        ids, counts = np.unique(np.concatenate((names, missing)), return_counts=True)
        if counts.max() > 1:
            raise UserError(f"the same id twice: {some(ids[counts > 1])}; ids are file names without folder "
                            "and extension and must differ: extract the folders as one, or with ids=path, or rename "
                            "pictures")
        # A row is finite exactly if its extremes are; they take no array of the vectors' size.
        finite = np.concatenate([np.isfinite(block.max(axis=1)) & np.isfinite(block.min(axis=1))
                                 for _, block in rows_of(vectors).blocks()])
        if not finite.all():
            raise UserError(f"NaN or infinity in the vectors of {some(names[~finite])}; expected finite "
                            "numbers: check the model that made them, then extract again")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def dim(self) -> int:
        """Length d of each vector."""
        return self.vectors.shape[1]

    @property
    def known(self) -> np.ndarray:
        """All ids, those of unreadable pictures included: [n + m]."""
        return np.concatenate((self.names, self.missing))

    def sorted(self) -> "Descriptors":
        """Return the same descriptors with rows in order of name (itself if they are already)."""
        if (self.names[:-1] < self.names[1:]).all():
            return self
        order = np.argsort(self.names)
        return self._with(names=self.names[order], vectors=_taken(self.vectors, order))

    def chosen(self, rows: np.ndarray, missing: np.ndarray) -> "Descriptors":
        """Return the descriptors and the unreadable pictures that these masks choose."""
        return Descriptors(self.names[rows], _taken(self.vectors, rows), self.missing[missing])

    def coded(self, vectors: np.ndarray | Rows) -> "Descriptors":
        """Return the same pictures with other vectors, finite ones, which are not looked at again."""
        return self._with(vectors=vectors)

    def _with(self, **fields: object) -> "Descriptors":
        made = object.__new__(Descriptors)  # what is sound stays so: not checked again, a million names take seconds
        made.__dict__.update(self.__dict__ | fields)
        return made


def _taken(vectors: np.ndarray | Rows, rows: np.ndarray) -> np.ndarray | Rows:
    return vectors.reordered(rows) if isinstance(vectors, Rows) else vectors[rows]


def join(sets: Sequence[Descriptors]) -> Descriptors:
    """Return the descriptors of several sets of pictures as one.

    Raises:
        UserError: vectors of different lengths, or an id in two of them.
    """
    if len(sets) == 1:
        return sets[0]
    if len({d.dim for d in sets}) > 1:
        raise UserError(f"descriptors of different lengths: {', '.join(str(d.dim) for d in sets)}; expected one "
                        "length: extract all of them with the same model")
    names, missing = (np.concatenate([getattr(d, name) for d in sets]) for name in ("names", "missing"))
    return Descriptors(names, one_after_the_other([rows_of(d.vectors) for d in sets]), missing)


def some(ids: np.ndarray, *, most: int = 5) -> str:
    """Name the first few of `ids` and say how many more there are."""
    shown = ", ".join(map(str, ids[:most]))
    return shown if len(ids) <= most else f"{shown} and {len(ids) - most:,} more"


def warn_of_lengths(descriptors: Descriptors, path: str | Path) -> None:
    """Say on standard error if descriptors of a file that are compared by inner products differ in length by more than
    1 %: the long ones score high with everything."""
    blocks = [lengths(block) for _, block in rows_of(descriptors.vectors).blocks()]
    least, most = min(block.min() for block in blocks), max(block.max() for block in blocks)
    if most > 1.01 * least:
        print(f"rdcd: warning: {path}: lengths of descriptors range from {least:.4g} to {most:.4g}, and inner products "
              f"favour the long ones; metric=cosine of `rdcd score` compares directions, metric=l2 distances",
              file=sys.stderr, flush=True)


def read_descriptors(path: str | Path) -> Descriptors:
    """Read a file as `open_descriptors` does, with its vectors in memory as one array."""
    found = open_descriptors(path)
    return found.coded(np.asarray(found.vectors))


def open_descriptors(path: str | Path) -> Descriptors:
    """Open an HDF5 file of `vectors` [n, d], `image_names` [n] and, optionally, `missing` [m].

    Vectors stay in the file, mapped into memory, and are read over once to check them; the file must stay as it is
    (`write_descriptors` replaces files, which is harmless). Those that are not plain float32, or compressed or in
    chunks, are read into memory.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no descriptor file {path}: expected the HDF5 file `rdcd extract` writes; "
                        "check the path")
    try:
        with h5py.File(path, "r") as file:
            absent = [name for name in ("vectors", "image_names")
                      if not isinstance(file.get(name), h5py.Dataset)]
            if absent:
                raise UserError(f"{path} has no dataset {' nor '.join(absent)} (it has: "
                                f"{', '.join(file) or 'none'}); expected `vectors` and `image_names`, as "
                                "`rdcd extract` writes them")
            vectors = file["vectors"]
            if vectors.shape is None or vectors.dtype.kind not in "fiu":
                holds = "nothing" if vectors.shape is None else vectors.dtype
                raise UserError(f"{path}: `vectors` holds {holds}, expected float32: "
                                "extract them again")
            arguments = (_read_names(file, "image_names", path), _mapped(vectors, path),
                         _read_names(file, "missing", path) if "missing" in file else _no_names())
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} is not a whole HDF5 file ({error}); expected the file `rdcd extract` "
                        "writes: copy or extract it again") from error
    try:
        return Descriptors(*arguments)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _mapped(vectors: h5py.Dataset, path: Path) -> Rows | np.ndarray:
    """Return the vectors where they lie in the file; read them where they do not lie there as float32 rows."""
    offset = vectors.id.get_offset()
    plain = vectors.chunks is None and not vectors.external and not vectors.is_virtual and vectors.ndim == 2
    if offset is None or offset % 4 or not plain or vectors.dtype != np.dtype("<f4") or vectors.file.userblock_size:
        with np.errstate(over="ignore"):  # as in `Descriptors`
            return vectors.astype(np.float32)[()] if vectors.ndim == 2 else vectors[()]
    mapped = np.memmap(path, dtype="<f4", mode="r", offset=offset, shape=vectors.shape)
    return Rows([mapped.view(np.ndarray)])


def _read_names(file: h5py.File, dataset: str, path: Path) -> np.ndarray:
    if not isinstance(file[dataset], h5py.Dataset) or file[dataset].shape is None:
        raise UserError(f"{path}: `{dataset}` is no array of byte strings: extract it again")
    if h5py.check_string_dtype(file[dataset].dtype) is None:
        raise UserError(f"{path}: `{dataset}` holds {file[dataset].dtype}, expected byte strings: "
                        "extract it again")
    try:
        names = np.asarray(file[dataset].asstr("utf-8")[()], dtype=np.str_)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: `{dataset}` is not UTF-8 ({error}); extract it again") from error
    if not names.size or np.ascontiguousarray(names).view(np.uint32).max(initial=0) < 0x300:  # composed as they are
        return names
    return np.array([composed(name) for name in names.ravel().tolist()], dtype=np.str_).reshape(names.shape)


def write_descriptors(path: str | Path, descriptors: Descriptors) -> None:
    """Write `descriptors` to an HDF5 file, whole or not at all."""
    blocks = ((descriptors.names[start:start + len(block)], block)
              for start, block in rows_of(descriptors.vectors).blocks())
    write_blocks(path, blocks, names=descriptors.names, dim=descriptors.dim, missing=descriptors.missing)


def write_blocks(path: str | Path, blocks: Iterable[tuple[Sequence[str], np.ndarray]], *, names: Sequence[str],
                 dim: int, missing: Sequence[str] = ()) -> None:
    """Write descriptors that come in blocks, so that no more than one is held, to an HDF5 file, whole or not at all.

    Args:
        blocks: (names, vectors [n, dim]), in the order of `names`.
        names: all ids, each once.
        missing: ids of unreadable pictures.

    Raises:
        UserError: a vector is not finite.
    """
    with atomic_path(path) as partial, h5py.File(partial, "w") as file:
        rows = file.create_dataset("vectors", (len(names), dim), dtype=np.float32)
        done = 0
        for some_names, vectors in blocks:
            if len(broken := np.flatnonzero(~np.isfinite(vectors).all(axis=1))):
                raise UserError(f"NaN or infinity in the vectors of {some(np.asarray(some_names)[broken])}; expected "
                                f"finite numbers: check the model that made them, then extract again")
            rows[done:done + len(vectors)] = vectors
            done += len(vectors)
        if done != len(names):
            raise ValueError(f"{done} vectors for {len(names)} names")
        file["image_names"] = np.array([name.encode() for name in names])
        if len(missing):
            file["missing"] = np.array([name.encode() for name in missing])
