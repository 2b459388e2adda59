"""Batches: what is in them, and that they depend on the seed alone."""

from functools import partial

import numpy as np
import pytest
import torch

from rdcd.augment.recipes import advanced
from rdcd.data.disc import open_training
from rdcd.data.images import open_image
from rdcd.data.views import to_tensor
from rdcd.errors import UserError
from rdcd.evaluation.protocols import Protocol
from rdcd.training.datamodule import DataModule, DataSettings


def make(root, *, workers=0, seed=3, batch_size=7, augment=None, pictures=None):
    settings = DataSettings(root=str(root), size=32, batch_size=batch_size, workers=workers,
                            pictures=pictures)
    protocol = Protocol(size=24, resize="short")
    _, pictures, benchmark = settings.open(protocol)
    return DataModule(pictures, augment or advanced(32, path="plain"), settings=settings, protocol=protocol,
                      benchmark=benchmark, validation_size=24, seed=seed)


def epochs(module, count=2):
    loader = module.train_dataloader()
    found = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        found += list(loader)
    return found


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a[key], b[key]) for a, b in zip(first, second) for key in ("query", "key", "index"))


def test_batches_do_not_depend_on_workers(benchmark_root):
    alone = epochs(make(benchmark_root))
    assert same(alone, epochs(make(benchmark_root)))
    assert same(alone, epochs(make(benchmark_root, workers=2)))
    assert not same(alone, epochs(make(benchmark_root, seed=4)))


def test_batches_by_hand(benchmark_root):
    """Three whole batches of 7 out of 24 pictures; every view from its own generator."""
    recipe, pictures = advanced(32, path="plain"), open_training(benchmark_root)
    for step, batch in enumerate(epochs(make(benchmark_root))):
        epoch, start = step // 3, step % 3 * 7
        order = np.random.default_rng((3, epoch)).permutation(24)
        assert batch["index"].tolist() == order[start:start + 7].tolist() and batch["bad"] == []
        assert batch["query"].dtype == torch.uint8 and batch["query"].shape == (7, 3, 32, 32)
        for row in (0, 6):
            index = int(batch["index"][row])
            for view, name in enumerate(("query", "key")):
                generator = np.random.default_rng((3, epoch, index, view))
                expected = to_tensor(recipe(open_image(pictures.path(index)), generator))
                assert torch.equal(batch[name][row], expected)
    assert step == 5


def test_fewer_pictures_than_a_batch_is_said(benchmark_root):
    with pytest.raises(UserError, match="24 training pictures are fewer than one batch of 25.*batch_size=24"):
        make(benchmark_root, batch_size=25).train_dataloader()


def test_validation_reads_all_roles_as_the_protocol_asks(benchmark_root):
    loaders = make(benchmark_root).val_dataloader()
    assert [len(loader.dataset) for loader in loaders] == [16, 12, 24]
    for loader in loaders:
        sides = [pictures.shape[2:] for batches, _ in loader for _, pictures in batches]
        assert {min(side) for side in sides} == {24} and any(side[0] != side[1] for side in sides)


def test_first_pictures_alone(benchmark_root):
    module = make(benchmark_root, pictures=9, batch_size=9)
    assert sorted(epochs(module, 1)[0]["index"].tolist()) == list(range(9))
    everything = open_training(benchmark_root)
    assert [module.views.pictures.path(i) for i in range(9)] == [everything.path(i) for i in range(9)]


def test_plain_folder_has_pictures_and_no_benchmark(benchmark_root):
    folder = benchmark_root / "images" / "references"
    root, pictures, benchmark = DataSettings(root=str(folder)).open(Protocol())
    assert root == folder and len(pictures) == 12 and benchmark is None
    assert make(folder).val_dataloader() == []


def test_without_root_the_benchmark_is_drawn(benchmark_root):
    drawn = []
    settings = DataSettings(synthetic=lambda: drawn.append(1) or benchmark_root)
    root, pictures, benchmark = settings.open(Protocol())
    assert root == benchmark_root and len(pictures) == 24 and len(benchmark.pairs) == 8 and drawn == [1]
    named = DataSettings(root=str(benchmark_root), synthetic=partial(pytest.fail, "root is given"))
    assert named.open(Protocol())[0] == benchmark_root


def test_no_data_at_all_is_said():
    with pytest.raises(UserError, match="data.root is not set: give data.root=DIR"):
        DataSettings().open(Protocol())


@pytest.mark.parametrize("name, value, least", [("batch_size", 0, 1), ("batch_size", 1.5, 1), ("size", 0, 1),
                                                ("workers", -1, 0), ("pictures", 0, 1),
                                                ("pictures", "all", 1)])
def test_numbers_out_of_range_are_said(name, value, least):
    with pytest.raises(UserError, match=f"data.{name}={value}: expected a whole number of at least {least}"):
        DataSettings(**{name: value})


def test_given_workers_are_taken():
    assert DataSettings(workers=5).worker_count == 5


def test_pictures_are_not_tested_smaller_than_they_are_trained():
    assert DataSettings(size=64, test_size=96).test_size == 96
    with pytest.raises(UserError, match="data.test_size=96: expected a whole number of at least 224"):
        DataSettings(size=224, test_size=96)
