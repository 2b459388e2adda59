"""Pictures in batches of one shape, decoded by loader processes or by threads between the network's steps."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rdcd.data.manifest import Manifest
from rdcd.data.parallel import own_cores, start_worker
from rdcd.data.views import Pictures
from rdcd.errors import BadImage

Batch = tuple[list[tuple[list[int], Tensor]], list[tuple[int, BadImage]]]
WAITING = 2**28  # bytes of decoded pictures that may wait for others of their shape


def collate_pictures(samples: list[tuple[int, Tensor | BadImage]]) -> Batch:
    """Stack pictures of one shape: [(indices, uint8 [n, 3, H, W]), …] and the unreadable ones."""
    shapes: dict[tuple, tuple[list[int], list[Tensor]]] = {}
    bad = []
    for index, picture in samples:
        if isinstance(picture, BadImage):
            bad.append((index, picture))
            continue
        indices, pictures = shapes.setdefault(tuple(picture.shape), ([], []))
        indices.append(index)
        pictures.append(picture)
    return [(indices, torch.stack(pictures)) for indices, pictures in shapes.values()], bad


def picture_loader(pictures: Manifest, *, size: int, resize: str = "square", batch_size: int = 64,
                   workers: int = 2, rows: Sequence[int] | None = None) -> DataLoader:
    """Return a loader of `collate_pictures` batches over pictures in order, over all or over the numbers in `rows`."""
    return _loader(Pictures(pictures, size=size, resize=resize), workers=workers, batch_size=batch_size,
                   sampler=range(len(pictures)) if rows is None else rows)


def _loader(dataset: Pictures, *, workers: int, **arguments) -> DataLoader:
    return DataLoader(dataset, num_workers=workers, collate_fn=collate_pictures, worker_init_fn=start_worker,
                      generator=torch.Generator(),  # else it would draw from the one that training goes on with
                      **arguments)


def decoded(dataset: Pictures, batches: Sequence[Sequence[int]], *, workers: int, pin: bool = False) -> Iterator[Batch]:
    """Yield `collate_pictures` of each of `batches`, in order.

    Args:
        batches: numbers of pictures, those that are decoded together.
        workers: loader processes, which decode ahead; 0: none, every core decodes a batch and then has the network's
            step to itself: where the network computes on the CPU, neither waits for the other's cores.
        pin: copy them to pinned memory, for a GPU.
    """
    if workers:
        yield from _loader(dataset, workers=workers, batch_sampler=batches, pin_memory=pin)
        return
    with ThreadPoolExecutor(own_cores()) as pool:
        for batch in batches:
            yield collate_pictures(list(pool.map(dataset.__getitem__, batch)))


def grouped(batches: Iterable[list[tuple[list[int], Tensor]]], *, batch_size: int,
            waiting: int = WAITING) -> Iterator[tuple[list[int], Tensor]]:
    """Regroup pictures over batches, so that as many as possible of one shape are embedded together.

    Pictures wait for others of their shape until they fill a batch. When more than `waiting` bytes wait, those of the
    most frequent shape go; at the end, all. A picture thus goes alone only if no other of its shape was near.

    Args:
        batches: lists of (indices, pictures of one shape).
        batch_size: most pictures of a group.
        waiting: bytes.

    Yields:
        (indices, uint8 [n, 3, H, W]), the same for the same input.
    """
    shapes: dict[tuple, tuple[list[int], list[Tensor]]] = {}
    held = 0

    def leave(shape: tuple) -> tuple[list[int], Tensor]:
        indices, pieces = shapes.pop(shape)
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        if len(indices) > batch_size:
            shapes[shape] = indices[batch_size:], [whole[batch_size:]]
        return indices[:batch_size], whole[:batch_size]

    for batch in batches:
        for indices, pictures in batch:
            shape = tuple(pictures.shape[1:])
            known = shapes.setdefault(shape, ([], []))
            known[0].extend(indices)
            known[1].append(pictures)
            held += pictures.nbytes
            while shape in shapes and len(shapes[shape][0]) >= batch_size:
                found = leave(shape)
                held -= found[1].nbytes
                yield found
            while held > waiting:
                found = leave(max(shapes, key=lambda one: len(shapes[one][0])))
                held -= found[1].nbytes
                yield found
    while shapes:
        yield leave(next(iter(shapes)))
