"""Pictures of one shape are brought together, each once, however they come."""

import pytest
import torch

from rdcd.evaluation.batches import grouped


def batches(shapes: list[tuple[int, int]], batch: int):
    """Batches as `collate_pictures` makes them; picture i is all i."""
    found = []
    for start in range(0, len(shapes), batch):
        groups: dict = {}
        for index in range(start, min(start + batch, len(shapes))):
            groups.setdefault(shapes[index], []).append(index)
        found.append([(indices, torch.stack([torch.full((3, *shape), i, dtype=torch.uint8) for i in indices]))
                      for shape, indices in groups.items()])
    return found


def check(found, shapes) -> None:
    seen = []
    for indices, pictures in found:
        assert len({shapes[i] for i in indices}) == 1 and pictures.shape[1:] == (3, *shapes[indices[0]])
        assert pictures[:, 0, 0, 0].tolist() == indices
        seen += indices
    assert sorted(seen) == list(range(len(shapes)))


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_each_once_and_none_alone_that_has_a_partner(batch: int) -> None:
    shapes = [[(8, 8), (8, 12), (8, 9)][i * i % 3 if i != 20 else 2] for i in range(41)]  # one of (8, 9)
    found = list(grouped(batches(shapes, batch), batch_size=batch))
    check(found, shapes)
    assert [len(indices) for indices, _ in found].count(batch) >= 41 // batch - 3
    leftovers = [shapes[indices[0]] for indices, _ in found if len(indices) < batch]
    assert len(leftovers) == len(set(leftovers))  # at most one group of each shape is not full


def test_one_shape_passes_in_order() -> None:
    found = list(grouped(batches([(4, 4)] * 10, 4), batch_size=4))
    assert [indices for indices, _ in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_memory_is_bounded_and_the_fullest_shapes_go_first() -> None:
    shapes = [(8, 8 + i % 5) for i in range(40)] + [(8, 30 + i) for i in range(10)]
    source, given, most = batches(shapes, 4), 0, 6000

    def counted():
        nonlocal given
        for batch in source:
            given += sum(pictures.nbytes for _, pictures in batch)
            yield batch

    taken, found = 0, []
    for indices, pictures in grouped(counted(), batch_size=16, waiting=most):
        found.append((indices, pictures))
        taken += pictures.nbytes
        largest = max(sum(pictures.nbytes for _, pictures in batch) for batch in source)
        assert given - taken <= most + largest
    check(found, shapes)
    assert min(len(indices) for indices, _ in found[:4]) >= 6  # those of the frequent shapes, together
    again = list(grouped(source, batch_size=16, waiting=most))
    assert [indices for indices, _ in again] == [indices for indices, _ in found]
