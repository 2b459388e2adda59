"""Gathering over real processes, and objectives that are in several of them what they are in one."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from rdcd.losses import sscd_loss
from rdcd.models.student import Student
from rdcd.models.teacher import Teacher
from rdcd.training.collectives import gather, gather_objects
from rdcd.training.objectives import RDCD, SSCD

BATCH, STEPS, SLOTS = 12, 4, 31  # of all processes together
OBJECTIVES = {
    "rdcd": partial(RDCD, queue_size=SLOTS, momentum=0.5),
    "batch_negatives": partial(RDCD, queue_size=SLOTS, momentum=0.5, batch_negatives=True),
    "append_batch": partial(RDCD, queue_size=SLOTS, momentum=0.5, append_batch=True),
    "append_own": partial(RDCD, queue_size=SLOTS, momentum=0.5, append_own=True),
    "sscd": partial(SSCD, entropy_weight=3.0),
    "sscd mixed": partial(SSCD, entropy_weight=3.0, mixup=0.5),
}


def rows(shape, seed):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(tuple(shape))).float()


def share(rank, ranks, count=BATCH):
    return slice(rank * count // ranks, (rank + 1) * count // ranks)


SHOWN = torch.tensor([[0, 1], [2, 2], [3, 3], [1, 1], [0, 0], [1, 2], [3, 0], [2, 2], [4, 4], [5, 5], [4, 5], [5, 0]])


def mixed_gradients(part, gather):
    """Terms and gradient of the SSCD loss where rows show two pictures."""
    descriptors = rows((BATCH, 3), seed=3)[part].requires_grad_()
    unit, labels = nn.functional.normalize(descriptors, dim=1), SHOWN[part]
    terms = sscd_loss(unit, labels, gather(unit), gather(labels), offset=part.start, entropy_weight=3.0)
    sum(terms).backward()
    return torch.stack(terms).detach(), descriptors.grad


def trained(name, part, ranks):
    """Train as one of `ranks` processes with its part of the batches; return what is there after it."""
    torch.manual_seed(0)
    student = Student(trunk="test_convnext", dim=None if "sscd" in name else 5, kd_dim=8)  # of LayerNorm
    objective = OBJECTIVES[name](student, Teacher(Student(trunk="test_resnet", dim=None, kd_dim=8)))
    optimizer, shown, found = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9), [], []
    student.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0].clone()))
    for step in range(STEPS):
        query, key = torch.rand(2, BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(step))[:, part]
        outcome = objective(student, query, key, torch.arange(BATCH)[part], gather)
        optimizer.zero_grad()
        outcome.total.backward()
        outcome.remember()
        values = [p.grad for p in student.parameters()] + [v.detach() for v in outcome.terms.values()]
        means = torch.cat([value.flatten() for value in values])
        if ranks > 1:
            dist.all_reduce(means)
        found.append([mean.view_as(value) / ranks for mean, value in
                      zip(means.split([value.numel() for value in values]), values, strict=True)])
        for parameter, mean in zip(student.parameters(), found[-1], strict=False):
            parameter.grad = mean.clone()
        optimizer.step()
    return {"means": found, "state": student.state_dict() | objective.state_dict(), "shown": shown}


def worker(rank, folder, ranks):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    mine = rows((2, 3), seed=rank).requires_grad_()
    everyone = gather(mine)
    (everyone * torch.arange(6.0 * ranks).view(2 * ranks, 3) * (rank + 1)).sum().backward()
    torch.save({"everyone": everyone.detach(), "gradient": mine.grad,
                "labels": gather(torch.tensor([rank, 7])), "strided": gather(rows((3, 2), seed=rank).T),
                "objects": gather_objects({"rank": rank}), "mixed": mixed_gradients(share(rank, ranks), gather),
                "trained": {name: trained(name, share(rank, ranks), ranks) for name in OBJECTIVES}},
               f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def found(request, tmp_path_factory):
    """What each of several processes saved, by rank."""
    folder, ranks = tmp_path_factory.mktemp("ranks"), request.param
    start = "spawn" if torch.cuda.is_available() else "fork"  # quicker, but not once CUDA has started
    mp.start_processes(worker, args=(str(folder), ranks), nprocs=ranks, start_method=start)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]


@pytest.fixture(scope="module")
def alone():
    """What a single process has after training, by objective."""
    torch.set_num_threads(1)
    return {name: trained(name, share(0, 1), 1) for name in OBJECTIVES}


def test_rows_of_all_ranks_come_in_rank_order(found):
    ranks = range(len(found))
    for rank, values in enumerate(found):
        assert torch.equal(values["everyone"], torch.cat([rows((2, 3), seed=r) for r in ranks]))
        assert values["labels"].tolist() == [number for r in ranks for number in (r, 7)]
        assert torch.equal(values["strided"], torch.cat([rows((3, 2), seed=r).T for r in ranks]))
        assert values["objects"] == [{"rank": r} for r in ranks]
        # all processes use the rows, with weights w, 2w, …: their gradients add up
        total = sum(r + 1 for r in ranks)
        weights = torch.arange(6.0 * len(found)).view(-1, 3)[2 * rank:2 * rank + 2]
        assert torch.allclose(values["gradient"], total * weights)


def test_loss_of_rows_that_show_two_pictures_is_that_of_one_process(found):
    """Averaged over processes; a gathered row's gradient comes from all of them."""
    terms, gradient = mixed_gradients(slice(0, BATCH), gather)
    assert torch.allclose(sum(values["mixed"][0] for values in found) / len(found), terms, atol=1e-5)
    assert torch.allclose(torch.cat([values["mixed"][1] for values in found]) / len(found), gradient, atol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_is_that_of_one_process(found, alone, name):
    """Terms and gradients of every step; weights, momentum encoder, queues with their pointers and the step of mixing
    after the last: equal on every rank, and those of one process with the whole batch to rounding."""
    one, many = alone[name], [values["trained"][name] for values in found]
    for other in many:
        for step, (ours, theirs) in enumerate(zip(one["means"], other["means"], strict=True)):
            for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
                assert (a - b).abs().max() <= 1e-3 * a.abs().max().clamp(min=1e-3), (step, number)
        assert one["state"].keys() == other["state"].keys()
        for key, value in one["state"].items():
            assert torch.equal(other["state"][key], many[0]["state"][key]), key
            assert torch.allclose(other["state"][key].double(), value.double(), atol=1e-3), key
    queues = [key for key in one["state"] if key.endswith("_queue.pointer")]
    assert len(queues) == (0 if "sscd" in name else 2)
    assert all(int(many[0]["state"][key]) == STEPS * BATCH % SLOTS for key in queues)
    first, last = one["means"][0][0], one["means"][-1][0]
    assert (first - last).abs().max() > 0.1 * last.abs().max()  # training changes things


def test_views_are_mixed_as_in_one_process(found, alone):
    one, many = alone["sscd mixed"]["shown"], [values["trained"]["sscd mixed"]["shown"] for values in found]
    for step, both in enumerate(one):
        queries, keys = (torch.cat(parts) for parts in zip(*(shown[step].chunk(2) for shown in many), strict=True))
        assert torch.equal(both, torch.cat([queries, keys]))
        plain = torch.rand(2, BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(step)).flatten(0, 1)
        touched = (both != plain).flatten(1).any(dim=1).float()
        assert 0.2 < touched.mean() < 0.8


def test_without_a_process_group_rows_come_back_as_they_are():
    mine = rows((2, 3), seed=0).requires_grad_()
    assert gather(mine) is mine
    assert gather_objects("one") == ["one"]
