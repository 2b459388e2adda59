"""Descriptors of no pictures: random, in clusters, some queries near a reference."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rdcd.files import atomic_path
from rdcd.retrieval.descriptors import open_descriptors, write_blocks

_CLUSTER = 100  # descriptors around a centre, on average
_CENTRES = 10_000  # at most
_SPREAD = 0.7  # length of what a descriptor adds to its centre
_BLOCK = 1 << 14  # rows drawn at a time
COPIES = 5  # every fifth query copies a reference


def draw(folder: Path, *, queries: int, references: int, background: int, dim: int, seed: int,
         noise: float = 0.6) -> dict[str, Path]:
    """Write descriptor files and ground truth, a block at a time; return their places by role.

    Args:
        folder: made if need be.
        queries, references, background: how many; each copy is of a reference of its own as far as these suffice.
        noise: length, on average, of what a copy adds to the unit vector it copies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = {role: folder / f"{role}.h5" for role in ("query", "reference", "background")}
    rng = np.random.default_rng(seed)
    centres = _unit(rng.normal(size=(min(_CENTRES, max(1, references // _CLUSTER)), dim)))
    for role, letter, count in (("reference", "R", references), ("background", "T", background)):
        names = _names(letter, count)
        write_blocks(places[role], _clustered(rng, centres, names), names=names, dim=dim)
    names = _names("Q", queries)
    copied = rng.permutation(references)[np.arange(-(-queries // COPIES)) % references]
    originals = open_descriptors(places["reference"]).vectors

    def blocks() -> Iterator[tuple[list[str], np.ndarray]]:
        for some_names, vectors in _clustered(rng, centres, names, block=_BLOCK - _BLOCK % COPIES):
            first = int(some_names[0][1:]) // COPIES
            own = slice(first, first + len(vectors[::COPIES]))
            found = originals.raw(copied[own])
            vectors[::COPIES] = _unit(found + rng.normal(size=found.shape) * noise / dim ** 0.5)
            yield some_names, vectors

    write_blocks(places["query"], blocks(), names=names, dim=dim)
    places["ground_truth"] = folder / "ground_truth.csv"
    with atomic_path(places["ground_truth"]) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("query_id", "reference_id"), *(
            (names[COPIES * number], f"R{row:07d}") for number, row in enumerate(copied))])
    return places


def needed_bytes(*, queries: int, references: int, background: int, dim: int) -> int:
    """Return how large the files of `draw` are, rounded up."""
    return (queries + references + background) * (4 * dim + 32) + (1 << 20)


def _names(letter: str, count: int) -> list[str]:
    return [f"{letter}{number:07d}" for number in range(count)]


def _clustered(rng: np.random.Generator, centres: np.ndarray, names: list[str], *,
               block: int = _BLOCK) -> Iterator[tuple[list[str], np.ndarray]]:
    for start in range(0, len(names), block):
        some_names = names[start:start + block]
        own = rng.integers(len(centres), size=len(some_names))
        apart = rng.standard_normal((len(some_names), centres.shape[1]), np.float32) * _SPREAD / centres.shape[1] ** 0.5
        yield some_names, _unit(centres[own] + apart)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
