import json
import platform
import re
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest

from rdcd import provenance

PACKAGE = Path(provenance.__file__).parent


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_run", {"command": None, "config": None})


def test_record_is_complete_and_json() -> None:
    provenance.set_run(command="rdcd score k=5", config={"k": 5, "out": "é"})
    record = provenance.provenance(seed=7, protocol="disc", weights={"student": "abc"})
    record = json.loads(json.dumps(record))
    assert set(record) == {"command", "config", "protocol", "seed", "git_commit", "versions", "device",
                           "weights_sha256", "written"}
    assert record["command"] == "rdcd score k=5" and record["config"] == {"k": 5, "out": "é"}
    assert provenance.run_config() == record["config"]
    assert (record["seed"], record["protocol"], record["weights_sha256"]) == (7, "disc", {"student": "abc"})
    age = datetime.now(timezone.utc) - datetime.fromisoformat(record["written"])
    assert 0 <= age.total_seconds() < 3600


def test_outside_the_command_line_the_process_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["notebook.py", "one"])
    record = provenance.provenance()
    assert record["command"] == "notebook.py one"
    assert record["config"] is record["seed"] is record["protocol"] is None and record["weights_sha256"] == {}


def test_versions_of_what_is_installed() -> None:
    import numpy
    import torch

    found = provenance.versions()
    assert found["python"] == platform.python_version() and found["numpy"] == numpy.__version__
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"timm", "pillow", "hydra-core", "pytorch-lightning"} <= set(found)
    assert all(re.match(r"\d", version) for version in found.values())


def test_device_is_named() -> None:
    import torch

    found = provenance.device_name()
    assert found == torch.cuda.get_device_name() if torch.cuda.is_available() else found.startswith("cpu (")


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(folder), *words],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with this package in it."""
    if shutil.which("git") is None:
        pytest.skip("no git here")
    package = tmp_path / "rdcd"
    package.mkdir()
    shutil.copy(PACKAGE / "provenance.py", package)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    return tmp_path


def test_commit_and_its_changes(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert provenance.git_commit() == provenance.provenance()["git_commit"] == commit
    (checkout / "result.csv").write_text("1")  # untracked files change nothing
    assert provenance.git_commit() == commit
    with open(checkout / "rdcd" / "provenance.py", "a") as file:
        file.write("# changed\n")
    assert provenance.git_commit() == f"{commit}+dirty"


def test_another_projects_commit_is_not_ours(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = checkout / "venv" / "rdcd"  # not added to that repository
    installed.mkdir(parents=True)
    shutil.copy(PACKAGE / "provenance.py", installed)
    monkeypatch.setattr(provenance, "__file__", str(installed / "provenance.py"))
    assert provenance.git_commit() is None


def test_no_repository_and_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    assert provenance.git_commit() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git_commit() is None


def test_an_image_names_the_commit_it_was_built_from(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / ".rdcd-commit").write_text("built\n")
    assert provenance.git_commit() == git(checkout, "rev-parse", "HEAD")  # a checkout knows better
    shutil.rmtree(checkout / ".git")
    assert provenance.git_commit() == "built"
    (checkout / ".rdcd-commit").write_text("\n")  # built without saying it
    assert provenance.git_commit() is None


def test_the_commit_is_that_of_the_start(monkeypatch):
    monkeypatch.setattr(provenance, "git_commit", lambda: "first")
    provenance.set_run(command="rdcd train", config=None)
    monkeypatch.setattr(provenance, "git_commit", lambda: "second")
    assert provenance.provenance()["git_commit"] == "first"


def test_the_device_is_the_one_that_computed(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    assert provenance.provenance()["device"] == provenance.provenance(device="cuda")["device"] == "a GPU"
    assert provenance.provenance(device="cpu")["device"].startswith("cpu ")
