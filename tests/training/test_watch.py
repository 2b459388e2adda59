"""What a step shows of itself: by hand, and of all ranks whichever asks."""

from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from rdcd.models.queue import DescriptorQueue
from rdcd.training.spread import effective_rank
from rdcd.training.watch import measured, write_histograms


def outcome(seed, rows=6):
    torch.manual_seed(seed)
    h, z = torch.randn(rows, 5), torch.randn(rows, 3)
    return SimpleNamespace(total=torch.tensor(1.0 + seed, requires_grad=True),
                           terms={"contrastive": torch.tensor(0.5 * seed)},
                           embedding=SimpleNamespace(features=h.requires_grad_(), descriptors=z),
                           similarities=lambda: {"positives": torch.arange(rows) + 10.0 * seed})


def queued(steps, size=32, batch=8):
    objective = nn.Module()
    objective.student_queue, objective.teacher_queue = DescriptorQueue(size, 3), DescriptorQueue(size // 2, 5)
    for _ in range(steps):
        objective.student_queue.enqueue(torch.rand(batch, 3))
        objective.teacher_queue.enqueue(torch.rand(batch, 5))
    return objective


def test_scalars_and_histograms_are_of_all_ranks():
    first, second = outcome(0), outcome(1)
    # what the other rank has, by shape: means, features, descriptors, similarities, in the order they are asked for
    theirs = iter([torch.tensor([[2.0, 0.5]]), second.embedding.features.detach(), second.embedding.descriptors,
                   second.similarities()["positives"]])
    scalars, histograms = measured(first, queued(3), global_batch=8,
                                   gather=lambda rows: torch.cat([rows, next(theirs)]))
    assert (scalars["loss"], scalars["contrastive"]) == (1.5, 0.25)
    for letter, part in (("h", "features"), ("z", "descriptors")):
        both = torch.cat([getattr(o.embedding, part).detach() for o in (first, second)])
        assert scalars[f"effective_rank_{letter}"] == pytest.approx(float(effective_rank(both)))
    assert histograms["positives"].tolist() == [*range(6), *range(10, 16)]
    assert [float(scalars[f"positives_p{p}"]) for p in (10, 50, 90)] == pytest.approx([1.1, 7.5, 13.9])
    assert not any(value.requires_grad for value in scalars.values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize(("steps", "age"), [(0, 0), (1, 1), (3, 3), (4, 4), (9, 4)])
def test_the_age_of_a_queue_is_that_of_its_oldest_entry(steps, age):
    scalars, _ = measured(outcome(0), queued(steps), global_batch=8, gather=lambda rows: rows)
    assert scalars["queue_age"] == age


def test_without_queues_there_is_no_age():
    assert "queue_age" not in measured(outcome(0), nn.Module(), global_batch=8, gather=lambda rows: rows)[0]


def test_histograms_go_where_they_can_be_seen(tmp_path):
    board, table = TensorBoardLogger(tmp_path, name="board"), CSVLogger(tmp_path, name="table")
    write_histograms([table, board], {"positives": torch.tensor([0.0, 1.0, 5.0])}, step=7)
    board.experiment.flush()
    events = EventAccumulator(board.log_dir).Reload()
    (found,) = events.Histograms("train/positives")
    assert found.step == 7 and (found.histogram_value.min, found.histogram_value.max, found.histogram_value.num) == (
        0, 5, 3)
