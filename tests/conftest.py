"""What all tests share: one compute thread, no network, and small pictures on disk."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from miniatures import noise
from PIL import Image

from rdcd.data.parallel import available_cores

LONGEST = ("test_docs", "test_launch_script", "test_end_to_end", "test_interruption", "test_sbatch", "test_resume",
           "test_ranks", "test_launch", "test_equal_ranks", "test_whole_precision")


def pytest_sessionstart() -> None:
    torch.set_num_threads(1)  # threads that wait for a busy core are slower than one
    os.environ["WANDB_MODE"] = "offline"  # before W&B looks, once a process


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than cores: a third of the time of tests that start commands is waiting for them."""
    return available_cores() + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no core waits for the other in the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU that torch can use")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Training sets its own number; the next test has one again."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only this machine is reached from a test."""
    connect = socket.socket.connect

    def local(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test asked the network for {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)


@pytest.fixture
def picture() -> Callable[..., Image.Image]:
    return noise


@pytest.fixture
def fill() -> Callable[..., Path]:
    """Write one PNG a name into a folder; `bad` ones are no pictures. Sizes differ from name to name."""

    def write(folder: Path, names: list[str], bad: tuple[str, ...] = ()) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for seed, name in enumerate(names):
            path = folder / f"{name}.png"
            if name in bad:
                path.write_text("no picture")
            else:
                noise(seed, 32 + seed % 3 * 8, 24 + seed % 2 * 16).save(path)
        return folder

    return write


@pytest.fixture(scope="session")
def benchmark_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn benchmark of 24 training pictures, 12 references, 8 queries that copy one and 8 that do not; do not
    change it."""
    from rdcd.data.benchmark import make_benchmark

    return make_benchmark(source="synthetic", out=tmp_path_factory.mktemp("benchmark") / "tiny", train=24,
                          references=12, sources=4, queries=8, distractors=8, size=48, workers=1)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 drawn pictures; do not change it."""
    from rdcd.data.synthetic import draw_picture

    folder = tmp_path_factory.mktemp("drawn")
    for seed in range(24):
        draw_picture(seed, size=48).save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="session")
def small_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights file of a student of 32 px, in a folder with its exported file alone; do not change it."""
    from exported_files import write_student

    return write_student(tmp_path_factory.mktemp("small"), "test_efficientnet", card={
        "licence": "MIT", "thresholds": [{"threshold": 0.7}], "training": {"steps": 7}})


@pytest.fixture(scope="session")
def onnx_file(small_student: Path, drawn: Path) -> Path:
    """`small_student` as ONNX; do not change it."""
    from rdcd.export.convert import export

    return export(checkpoint=small_student, out=small_student.with_suffix(".onnx"), format="onnx", images=drawn)
