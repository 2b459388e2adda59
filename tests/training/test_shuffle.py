"""ShuffleBN: keys of a process are embedded beside those of others, and come back as its own (docs/method.md §1)."""


import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_equal_ranks import processes
from tiny_runs import VIEWS, Breaks, go, same_weights, settings
from torch import nn

from rdcd.errors import UserError
from rdcd.models.student import Student
from rdcd.training import collectives
from rdcd.training.fit import shuffles
from rdcd.training.launch import TeacherFile
from rdcd.training.objectives import RDCD

RANKS, SHARE, SEED = 3, 4, (5, 17)
ALL = torch.rand(RANKS * SHARE, 3, 6, 5, generator=torch.Generator().manual_seed(0)) ** torch.arange(
    1, RANKS * SHARE + 1).view(-1, 1, 1, 1)  # no two alike


def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)).train()


def by_loops(rank):
    """Which pictures a process embeds, those it hands on excluded: place after place of the shuffled batch."""
    order = np.random.default_rng(SEED).permutation(RANKS * SHARE)
    return sorted(int(order[place]) for place in range(rank * SHARE, (rank + 1) * SHARE))


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    network, own, shown = encoder(), ALL[rank * SHARE:(rank + 1) * SHARE], []

    def embed(pictures):
        shown.append(pictures.clone())
        return network(pictures)

    found = {}
    for name, pictures in (("plain", own), ("channels last", own.contiguous(memory_format=torch.channels_last))):
        found[name] = collectives.shuffled(embed, pictures, seed=SEED)
        found[f"{name} kept"] = shown[-1].is_contiguous(memory_format=torch.channels_last) == (name != "plain")
    found["unchanged"] = collectives.shuffled(lambda pictures: pictures.flatten(1), own, seed=SEED)
    found["other order"] = collectives.shuffled(embed, own, seed=(5, 18))
    torch.save(found | {"shown": shown, "mean": network[1].running_mean}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of three processes got, for its four of twelve pictures."""
    folder = tmp_path_factory.mktemp("shuffled")
    start = "spawn" if torch.cuda.is_available() else "fork"
    mp.start_processes(worker, args=(str(folder),), nprocs=RANKS, start_method=start)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def shown(batch):
    """Return the numbers of the pictures of a batch, in its order."""
    return [int((ALL - picture).abs().sum(dim=(1, 2, 3)).argmin()) for picture in batch]


def test_every_process_embeds_the_pictures_of_a_common_order(found):
    for rank, ours in enumerate(found):
        pictures = shown(ours["shown"][0])
        assert sorted(pictures) == by_loops(rank)
        assert torch.equal(ours["shown"][0], ALL[pictures]) and ours["plain kept"] and ours["channels last kept"]
    assert len({number // SHARE for number in by_loops(0)}) > 1  # a mixture
    assert [shown(ours["shown"][2]) for ours in found] != [shown(ours["shown"][0]) for ours in found]  # of each step


def test_descriptors_come_back_in_their_order(found):
    for rank, ours in enumerate(found):
        assert torch.equal(ours["unchanged"], ALL[rank * SHARE:(rank + 1) * SHARE].flatten(1))


def test_statistics_are_those_of_the_mixture(found):
    """Every descriptor is that of its picture among those that were embedded with it, computed here alone."""
    expected = {}
    for rank in range(RANKS):
        numbers = by_loops(rank)
        expected |= dict(zip(numbers, encoder()(ALL[numbers]), strict=True))
    for rank, ours in enumerate(found):
        own = torch.stack([expected[number] for number in range(rank * SHARE, (rank + 1) * SHARE)])
        torch.testing.assert_close(ours["plain"], own.detach())
        torch.testing.assert_close(ours["channels last"], own.detach())
        unmixed = encoder()(ALL[rank * SHARE:(rank + 1) * SHARE])
        assert (ours["plain"] - unmixed).abs().max() > 1e-3


def test_alone_nothing_is_shuffled():
    seen = []
    pictures = torch.rand(4, 3, 6, 5)
    assert collectives.shuffled(lambda given: seen.append(given) or given, pictures, seed=(1, 2)) is pictures
    assert seen == [pictures]


@pytest.mark.parametrize(("sync", "device", "asked", "expected"), [
    (True, "cuda", None, False), (False, "cuda", None, True), (True, "cpu", None, True), (False, "cpu", None, True),
    (True, "cuda", True, True), (False, "cpu", False, False)])
def test_it_stands_in_where_norms_do_not_span_processes(monkeypatch, sync, device, asked, expected):
    monkeypatch.setattr("rdcd.training.fit.device_of", lambda settings: device)
    assert shuffles(settings(sync_batchnorm=sync, shuffle_bn=asked)) is expected


def test_another_word_is_refused():
    with pytest.raises(UserError, match="trainer.shuffle_bn=maybe: expected true or false, or null"):
        settings(shuffle_bn="maybe")


def test_a_run_of_one_process_is_what_it_was(benchmark_root, plain_run, tmp_path):
    run = go(benchmark_root, tmp_path / "run", teacher=TeacherFile(str(plain_run / "teacher")),
             trainer=settings(shuffle_bn=True))
    assert same_weights(run, plain_run, atol=0)


def norms(held):
    """Statistics of the key encoder's BatchNorm, of every process."""
    return [torch.cat([value for key, value in ours.items() if "key_encoder" in key and key.endswith("running_mean")])
            for ours in held]


def test_runs_of_two_processes_shuffle_where_they_should_and_continue_alike(benchmark_root, plain_run, tmp_path):
    options = {"root": benchmark_root, "teacher": plain_run / "teacher", "ranks": 2, "loss": "rdcd",
               "trunk": "test_efficientnet", "validate_every": 0, "epochs": 2}
    run, held = processes(folder=tmp_path / "whole", **options)
    _, apart = processes(folder=tmp_path / "apart", shuffle_bn=False, **options)
    for ours, theirs in zip(norms(held), norms(apart), strict=True):
        assert not torch.allclose(ours, theirs, atol=1e-4)
    assert not torch.equal(*norms(held))
    with pytest.raises(AssertionError):
        processes(folder=tmp_path / "cut", augment=Breaks(VIEWS // 2 + 12), **options)
    again, resumed = processes(folder=tmp_path / "cut", resume=True, **options)
    assert same_weights(run, again, atol=0)
    for key, value in held[0].items():
        assert torch.equal(value, resumed[0][key]), key
        if "running_" not in key:  # a checkpoint holds the first process's
            assert torch.equal(value, resumed[1][key]), key


def test_the_objective_shuffles_its_keys_alone():
    torch.manual_seed(0)
    student = Student(trunk="test_efficientnet", dim=6, kd_dim=12)
    objective = RDCD(student, None, relational_weight=0, queue_size=8).train()
    query, key = torch.rand(2, 4, 3, 32, 32)
    turned = []

    def turn(embed, pictures):
        turned.append(pictures)
        return embed(pictures.flip(0)).flip(0)

    objective(student, query, key, torch.arange(4), shuffle=turn).remember()
    assert len(turned) == 1 and turned[0] is key
    with torch.no_grad():
        expected = objective.key_encoder(key).descriptors
    torch.testing.assert_close(objective.student_queue.features[:4], expected, rtol=1e-4, atol=1e-5)
