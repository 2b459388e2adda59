"""Files that commands write have the mode of any new file, whatever library writes them: colleagues can read them."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_cli import process, run, write_case  # noqa: F401 (a fixture for every test)

from rdcd.files import atomic_path
from rdcd.training.checkpoints import AtomicCheckpointIO


@pytest.fixture(params=["022", "002", "027", "077"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """Each usual umask in turn."""
    before = os.umask(int(request.param, 8))
    yield int(request.param, 8)
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    """Path below `folder` → octal mode, of all files and folders."""
    return {str(path.relative_to(folder)): f"{stat.S_IMODE(path.stat().st_mode):o}" for path in folder.rglob("*")}


def as_any(folder: Path, umask: int) -> dict[str, str]:
    """What `modes` would be if open() and mkdir() had made everything."""
    return {str(path.relative_to(folder)): f"{(0o777 if path.is_dir() else 0o666) & ~umask:o}"
            for path in folder.rglob("*")}


def test_whatever_library_writes(tmp_path: Path, umask: int) -> None:
    def private(path: Path) -> None:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))

    def generous(path: Path) -> None:
        path.touch()
        path.chmod(0o777)

    def hdf5(path: Path) -> None:
        with h5py.File(path, "w") as file:
            file["x"] = np.zeros(3)

    for name, write in (("a.txt", lambda path: path.write_text("x")), ("a.json", private), ("a.bin", generous),
                        ("a.h5", hdf5), ("a.safetensors", lambda path: save_file({"x": torch.zeros(3)}, path)),
                        ("a.pt", lambda path: torch.save({}, path))):
        with atomic_path(tmp_path / "new" / name) as partial:
            assert not partial.exists()
            write(partial)
    AtomicCheckpointIO().save_checkpoint({"x": 1}, tmp_path / "new" / "last.ckpt")
    assert len(modes(tmp_path)) == 8 and modes(tmp_path) == as_any(tmp_path, umask)


def test_a_mode_given_to_the_file_before_does_not_stay(tmp_path: Path, umask: int) -> None:
    (tmp_path / "a").touch(mode=0o600)
    with atomic_path(tmp_path / "a") as partial:
        partial.write_text("new")
    assert modes(tmp_path) == as_any(tmp_path, umask)


def test_the_umask_is_never_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other threads would write with it meanwhile."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("changed"))
    with atomic_path(tmp_path / "a") as partial:
        partial.write_text("x")


def test_commands(tmp_path: Path, umask: int, small_student: Path, drawn: Path) -> None:
    out = tmp_path / "out"
    student = f"{small_student}"
    assert run("export", f"checkpoint={student}", "out=out/s/student.safetensors") == 0
    assert run("export", f"checkpoint={student}", "out=out/s/student.onnx", "format=onnx", f"images={drawn}") == 0
    assert run("extract", f"images={drawn}", "model=thumbnail", "out=out/x/thumbnail.h5", "device=cpu") == 0
    assert run("index", "build", "index=out/index", f"images={drawn}", "model=out/s/student.safetensors",
               "codec=PCAW4,L2norm,Flat", "factory=HNSW8", f"background={drawn}", "device=cpu") == 0
    assert run("search", "index=out/index", f"images={drawn}", "out=out/found", "device=cpu") == 0
    assert run("dedup", "images=out/index", "out=out/copies", "device=cpu") == 0
    assert run("score", *write_case(tmp_path), "out=out/scores", "predictions=true") == 0
    assert run("check-data", f"root={drawn}", "layout=folder", "out=out/check.json",
               "write_checksums=out/sums.txt") == 0
    found = modes(out)
    assert {"s/student.safetensors", "s/student.json", "s/student.onnx", "x/thumbnail.h5", "found/matches.csv",
            "copies/pairs.csv", "scores/metrics.json", "sums.txt", "index/index.json"} <= found.keys()
    assert found == as_any(out, umask)
