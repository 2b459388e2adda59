"""Vectors that are read and transformed a block at a time: a million rows need no memory of their own."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

BLOCK = 1 << 16  # rows at a time


class Rows:
    """The rows of one or more arrays, in an order of their own, float32 [n, d].

    Arrays stay where they are, memory-mapped files on disk. What a row becomes depends on `order` alone, not on
    where it lies, and is the same each time it is read.

    Args:
        parts: float32 [m, d] each, row-major.
        order: int64 [n], which row of the parts, one after the other, comes where; None: as they lie.
        transform: float32 [b, d] to float32 [b, width]; None: none.
        width: of the transformed rows; None: d.
    """

    def __init__(self, parts: Sequence[np.ndarray], *, order: np.ndarray | None = None,
                 transform: Callable[[np.ndarray], np.ndarray] | None = None, width: int | None = None) -> None:
        self.parts, self.order, self.transform = tuple(parts), order, transform
        self._starts = np.cumsum([0, *map(len, self.parts)])
        length = self._starts[-1] if order is None else len(order)
        self.shape = int(length), self.parts[0].shape[1] if width is None else width

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        whole = np.empty(self.shape, np.float32)
        for start, block in self.blocks():
            whole[start:start + len(block)] = block
        return whole if dtype is None else whole.astype(dtype, copy=False)

    @property
    def block_count(self) -> int:
        """How many `blocks` there are."""
        return -(-len(self) // BLOCK)

    def reordered(self, rows: np.ndarray) -> "Rows":
        """Return these rows (indices or a mask) as they are in the arrays, without the transform."""
        order = np.arange(self._starts[-1]) if self.order is None else self.order
        return Rows(self.parts, order=order[rows])

    def at(self, rows: np.ndarray) -> "Rows":
        """Return these rows (indices or a mask) as they are here, with the transform."""
        return self.reordered(rows).transformed(self.transform, self.shape[1])

    def transformed(self, transform: Callable[[np.ndarray], np.ndarray] | None, width: int) -> "Rows":
        """Return the rows as `transform` makes them, in place of the transform they have."""
        return Rows(self.parts, order=self.order, transform=transform, width=width)

    def raw(self, rows: slice | np.ndarray) -> np.ndarray:
        """Read rows, float32 [b, d], without the transform."""
        if self.order is None and isinstance(rows, slice) and len(self.parts) == 1:
            return self.parts[0][rows]
        places = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        if self.order is not None:
            places = self.order[places]
        if len(self.parts) == 1:
            return self.parts[0][places]
        out = np.empty((len(places), self.parts[0].shape[1]), np.float32)
        owner = np.searchsorted(self._starts, places, side="right") - 1
        for number in np.unique(owner):
            own = owner == number
            out[own] = self.parts[number][places[own] - self._starts[number]]
        return out

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (number of its first row, block) for blocks of BLOCK rows, the last one shorter."""
        for start in range(0, len(self), BLOCK):
            block = self.raw(slice(start, start + BLOCK))
            yield start, block if self.transform is None else self.transform(block)


def one_after_the_other(sets: Sequence[Rows]) -> Rows:
    """Return the rows of several sets, without transforms, as one."""
    order = None
    if any(rows.order is not None for rows in sets):
        before = np.cumsum([0, *(rows._starts[-1] for rows in sets)])
        order = np.concatenate([start + (np.arange(rows._starts[-1]) if rows.order is None else rows.order)
                                for start, rows in zip(before, sets, strict=False)])
    return Rows([part for rows in sets for part in rows.parts], order=order)


def rows_of(vectors: np.ndarray | Rows) -> Rows:
    """Return an array as `Rows`; `Rows` as they are."""
    return vectors if isinstance(vectors, Rows) else Rows([vectors])
