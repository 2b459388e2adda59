from collections import deque

import numpy as np
import pytest
import torch
from torch import nn

from rdcd.models.queue import DescriptorQueue


def rows(queue: DescriptorQueue) -> list[tuple[float, ...]]:
    return sorted(map(tuple, queue.features[queue.valid].tolist()))


@pytest.mark.parametrize("size", [1, 2, 7, 16])
@pytest.mark.parametrize("largest", [1, 5, 40])  # 40: batches longer than any of the queues
def test_holds_what_a_deque_holds(size: int, largest: int) -> None:
    rng = np.random.default_rng((size, largest))
    queue, oracle, number = DescriptorQueue(size, 2), deque(maxlen=size), 0.0
    for _ in range(30):
        batch = []
        for _ in range(rng.integers(0, largest + 1)):
            number += 1
            batch.append((number, -number))
        queue.enqueue(torch.tensor(batch).view(-1, 2))
        oracle.extend(batch)
        assert rows(queue) == sorted(oracle)
        assert int(queue.filled) == len(oracle) == int(queue.valid.sum())
        assert 0 <= int(queue.pointer) < size


def test_order_is_first_in_first_out_around_the_end() -> None:
    queue = DescriptorQueue(4, 1)
    queue.enqueue(torch.tensor([[1.0], [2.0], [3.0]]))
    assert queue.valid.tolist() == [True, True, True, False]
    queue.enqueue(torch.tensor([[4.0], [5.0], [6.0]]))
    assert queue.features.flatten().tolist() == [5, 6, 3, 4] and int(queue.pointer) == 2
    queue.enqueue(torch.arange(10, 16).float().view(-1, 1))  # six into four: the last four stay
    queue.enqueue(torch.tensor([[20.0]]))  # takes the place of the oldest, 12
    assert rows(queue) == [(13,), (14,), (15,), (20,)]


def test_state_survives_a_checkpoint(tmp_path) -> None:
    queue = DescriptorQueue(5, 3)
    queue.enqueue(torch.randn(7, 3))
    queue.enqueue(torch.randn(2, 3))
    torch.save(queue.state_dict(), tmp_path / "queue.pt")
    again = DescriptorQueue(5, 3)
    again.load_state_dict(torch.load(tmp_path / "queue.pt", weights_only=True))
    batch = torch.randn(4, 3)
    for each in (queue, again):
        each.enqueue(batch)
    assert torch.equal(queue.features, again.features)
    assert queue.pointer == again.pointer and queue.filled == again.filled
    assert set(queue.state_dict()) == {"features", "pointer", "filled"}


def test_keeps_no_graph_and_no_parameter() -> None:
    queue = DescriptorQueue(4, 2)
    batch = nn.Parameter(torch.ones(2, 2))
    queue.enqueue(batch * 2)
    assert not queue.features.requires_grad and not list(queue.parameters())
    queue.enqueue(torch.full((1, 2), 3.0, dtype=torch.float64))  # other precisions are stored as the queue's
    assert queue.features.dtype == torch.float32 and rows(queue)[-1] == (3, 3)
