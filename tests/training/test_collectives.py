"""Gathering over two real processes, and alone."""

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from rdcd.losses import sscd_loss
from rdcd.models.student import Embedding
from rdcd.training.collectives import gather, gather_objects
from rdcd.training.objectives import SSCD

PICTURES, VALUES, DIM = 4, 6, 3  # pictures a process, numbers of an input, of a descriptor


class Linear(nn.Module):
    """A student without BN, so that two processes can be compared with one."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(VALUES, DIM)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(rows(parameter.shape, seed=9))

    def forward(self, inputs):
        features = nn.functional.normalize(self.fc(inputs), dim=1)
        return Embedding(features, features)


def rows(shape, seed):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(tuple(shape))).float()


def sscd_gradients(query, key, pictures, gather):
    student = Linear()
    outcome = SSCD(student, entropy_weight=3.0)(student, query, key, pictures, gather)
    outcome.total.backward()
    return outcome.total.detach(), [p.grad for p in student.parameters()]


class Record(Linear):
    """Keeps the pictures it was shown, [B, 3, 2, 1]."""

    def forward(self, inputs):
        self.seen = inputs
        return super().forward(inputs.flatten(1))


SHOWN = torch.tensor([[0, 1], [2, 2], [3, 3], [1, 1], [0, 0], [1, 2], [3, 0], [2, 2]])  # matches on both processes


def mixed_gradients(part, gather):
    """Terms and gradient of the SSCD loss where rows show two pictures."""
    descriptors = rows((8, DIM), seed=3)[part].requires_grad_()
    unit, labels = nn.functional.normalize(descriptors, dim=1), SHOWN[part]
    terms = sscd_loss(unit, labels, gather(unit), gather(labels), offset=part.start, entropy_weight=3.0)
    sum(terms).backward()
    return torch.stack(terms).detach(), descriptors.grad


def mixes():
    """What each of two steps shows the student, and the loss."""
    torch.manual_seed(1)
    student, found = Record(), []
    objective = SSCD(student, mixup=0.5)
    for step in range(2):
        outcome = objective(student, *rows((2, PICTURES, 3, 2, 1), seed=step), torch.arange(PICTURES), gather)
        found.append((student.seen, outcome.total.detach()))
    return found


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mine = rows((2, 3), seed=rank).requires_grad_()
    everyone = gather(mine)
    (everyone * torch.arange(12.0).view(4, 3) * (rank + 1)).sum().backward()
    query, key = rows((2, 2 * PICTURES, VALUES), seed=5)
    part = slice(rank * PICTURES, (rank + 1) * PICTURES)
    torch.save({"everyone": everyone.detach(), "gradient": mine.grad,
                "labels": gather(torch.tensor([rank, 7])), "strided": gather(rows((3, 2), seed=rank).T),
                "objects": gather_objects({"rank": rank}),
                "sscd": sscd_gradients(query[part], key[part], torch.arange(2 * PICTURES)[part], gather),
                "mixed": mixed_gradients(part, gather), "mixes": mixes()},
               f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes(tmp_path):
    start = "spawn" if torch.cuda.is_available() else "fork"  # quicker, but not once CUDA has started
    mp.start_processes(worker, args=(str(tmp_path),), nprocs=2, start_method=start)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for rank, values in enumerate(found):
        assert torch.equal(values["everyone"], torch.cat([rows((2, 3), seed=0), rows((2, 3), seed=1)]))
        assert values["labels"].tolist() == [0, 7, 1, 7]
        assert torch.equal(values["strided"], torch.cat([rows((3, 2), seed=0).T, rows((3, 2), seed=1).T]))
        assert values["objects"] == [{"rank": 0}, {"rank": 1}]
        # both processes use the rows, with weights w and 2w: their gradients add up
        assert torch.allclose(values["gradient"], 3 * torch.arange(12.0).view(4, 3)[2 * rank:2 * rank + 2])

    # the SSCD loss and gradient, averaged over processes, are those of one process with the whole batch
    query, key = rows((2, 2 * PICTURES, VALUES), seed=5)
    total, gradients = sscd_gradients(query, key, torch.arange(2 * PICTURES), gather)
    (total0, gradients0), (total1, gradients1) = (values["sscd"] for values in found)
    assert torch.allclose((total0 + total1) / 2, total, atol=1e-5)
    for whole, first, second in zip(gradients, gradients0, gradients1, strict=True):
        assert torch.allclose((first + second) / 2, whole, atol=1e-5)


    # likewise where rows show two pictures; a gathered row's gradient comes from both processes
    terms, gradient = mixed_gradients(slice(0, 8), gather)
    assert torch.allclose(sum(values["mixed"][0] for values in found) / 2, terms, atol=1e-5)
    assert torch.allclose(torch.cat([values["mixed"][1] for values in found]) / 2, gradient, atol=1e-5)

    # processes mix differently, the first as a single one does
    for alone, (first, loss0), (second, loss1) in zip(mixes(), *(values["mixes"] for values in found), strict=True):
        assert torch.equal(alone[0], first) and not torch.equal(first, second)
        assert torch.isfinite(loss0) and torch.isfinite(loss1)


def test_without_a_process_group_rows_come_back_as_they_are():
    mine = rows((2, 3), seed=0).requires_grad_()
    assert gather(mine) is mine
    assert gather_objects("one") == ["one"]
