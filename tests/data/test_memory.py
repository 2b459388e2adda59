"""Loader workers over a million paths: they share no Python objects, so their memory stays what it is."""

import multiprocessing
import pickle
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from rdcd.data import views
from rdcd.data.manifest import Manifest
from rdcd.data.parallel import start_worker
from rdcd.data.views import EpochSampler, Pictures, TwoViews
from rdcd.errors import BadImage

COUNT, BATCH, MEGABYTE = 1_000_000, 10_000, 2**20


def manifest() -> Manifest:
    return Manifest("/data/images", [f"/data/images/shard{i // 50_000:02d}/T{i:06d}.jpg" for i in range(COUNT)],
                    names=[f"T{i:06d}" for i in range(COUNT)])


@pytest.fixture(scope="module")
def million() -> Manifest:
    return manifest()


class Listed(Dataset):
    """What not to do: a list of strings, of which every look writes the count of references."""

    def __init__(self, count: int) -> None:
        self.paths = [f"/data/images/shard{i // 50_000:02d}/T{i:06d}.jpg" for i in range(count)]

    def __getitem__(self, index: int) -> str:
        return self.paths[index]


class Shuffled:
    """The order of an epoch without its number; no list, of which the first process would write counts."""

    def __init__(self, count: int) -> None:
        self.sampler = EpochSampler(count, batch_size=BATCH)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        return (index for _, index in self.sampler)


def own_memory(samples: list) -> int:
    """Return the bytes of this process that it shares with no other, instead of a batch."""
    samples.clear()
    return 1024 * sum(int(size) for size in re.findall(r"^Private_\w+: +(\d+) kB", Path("/proc/self/smaps_rollup")
                                                       .read_text(), flags=re.MULTILINE))


def growth(dataset: Dataset, order: Shuffled | range) -> int:
    """Return by how many bytes one forked worker grows between a tenth and the whole of an epoch."""
    sizes = list(DataLoader(dataset, sampler=order, batch_size=BATCH, num_workers=1, collate_fn=own_memory,
                            worker_init_fn=start_worker, multiprocessing_context="fork"))
    assert len(sizes) * BATCH == len(order)
    return max(sizes[len(sizes) // 10:]) - sizes[len(sizes) // 10]


def growths() -> tuple[int, int]:
    """Return by how much a worker of ours grows, and one of a list half as long."""
    def cheap(path: Path, **_: object) -> None:
        raise BadImage(path, "not opened here")

    views.open_image = cheap
    return (growth(Pictures(manifest(), size=8), Shuffled(COUNT)),
            growth(Listed(COUNT // 2), range(COUNT // 2)))


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_a_worker_stays_as_it_is_over_an_epoch_of_a_million() -> None:
    # from a process of its own: a page that the first process writes is the worker's own from then on, and one that
    # has run a thousand tests writes many
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        ours, listed = process.submit(growths).result()
    assert ours < 8 * MEGABYTE
    assert listed > 16 * MEGABYTE  # this test would notice


def test_what_workers_get_is_the_bytes_of_the_paths(million: Manifest) -> None:
    text = 2 * sum(len(f"shard00/T{i:06d}.jpg") for i in range(3)) // 3 * COUNT  # paths, and less for names
    for dataset in (Pictures(million, size=8), TwoViews(million, augment=print)):
        started = pickle.dumps(dataset, protocol=pickle.HIGHEST_PROTOCOL)
        assert len(started) < text + 2 * 8 * COUNT  # and where each ends
    assert million.path(777_777) == Path("/data/images/shard15/T777777.jpg")
    assert million.names[123_456] == "T123456"
