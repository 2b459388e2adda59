"""What the tests of training share: a run, hashes, a benchmark with a picture that does not decode."""

import hashlib
import shutil

import pytest
from tiny_runs import go
from torch import nn

from rdcd import provenance


@pytest.fixture(autouse=True, scope="module")
def no_command_line():
    """Whatever command this process ran before, runs called from here are nobody's command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "_run", {"command": None, "config": None})
        yield


@pytest.fixture(scope="session")
def plain_run(benchmark_root, tmp_path_factory):
    """A run without further rows or loggers, which others are compared with."""
    return go(benchmark_root, tmp_path_factory.mktemp("runs") / "plain")


@pytest.fixture
def digest():
    """Hash a module's parameters and buffers, BN statistics among them."""

    def compute(module: nn.Module) -> str:
        state = hashlib.sha256()
        for name, value in sorted(module.state_dict().items()):
            state.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return state.hexdigest()

    return compute


@pytest.fixture
def damaged(benchmark_root, tmp_path):
    """Copy the benchmark with one picture of a role cut short; return (root, that picture)."""

    def copy(role, number=0):
        root = tmp_path / f"damaged-{role}"
        shutil.copytree(benchmark_root, root)
        picture = sorted((root / "images" / role).iterdir())[number]
        picture.write_bytes(picture.read_bytes()[:200])
        return root, picture

    return copy
