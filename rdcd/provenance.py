"""Where a result came from: what every result file carries beside its numbers."""

import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

PACKAGES = ("rdcd", "torch", "torchvision", "pytorch-lightning", "timm", "hydra-core", "faiss-gpu",
            "faiss-cpu", "augly", "pillow", "numpy", "h5py", "safetensors")

_run: dict[str, object] = {"command": None, "config": None}


def set_run(*, command: str, config: dict | None) -> None:
    """Record this process's command line, resolved config and commit; `provenance` repeats them.

    The commit is that of the start: a run of hours must not name what was committed meanwhile.
    """
    _run.update(command=command, config=config, git_commit=git_commit())


def run_config() -> dict | None:
    """Return the resolved config of this process's command, or None outside the command line."""
    return _run["config"]


def git_commit() -> str | None:
    """Return the commit of the source tree this package runs from, `+dirty` if changed, or None.

    Git says it; a container's image has neither git nor the repository, but a file that its build wrote.
    """
    folder = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)
        except OSError:  # no git on this machine
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed wheel may lie inside some other project's checkout: that commit is not ours.
    if git("ls-files", "--error-unmatch", "provenance.py") is None:
        built = folder.parent / ".rdcd-commit"
        return (built.read_text(encoding="utf-8").strip() or None) if built.is_file() else None
    commit = git("rev-parse", "HEAD")
    if commit and git("status", "--porcelain", "--untracked-files=no"):
        commit += "+dirty"
    return commit


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that can move a number."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def device_name(device: str | None = None) -> str:
    """Name the device results are computed on: `cpu`, `cuda`, or None for cuda where it works."""
    import torch

    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def provenance(*, seed: int | None = None, protocol: str | None = None,
               weights: dict[str, str] | None = None, device: str | None = None) -> dict[str, object]:
    """Return the record that goes into every result file.

    Args:
        seed: the run's seed, where one was used.
        protocol: name of the evaluation protocol.
        weights: model name → SHA-256 of the weights file it was measured with.
        device: what computed, see `device_name`.
    """
    return {
        "command": _run["command"] or " ".join(sys.argv),
        "config": _run["config"],
        "protocol": protocol,
        "seed": seed,
        "git_commit": _run["git_commit"] if "git_commit" in _run else git_commit(),
        "versions": versions(),
        "device": device_name(device),
        "weights_sha256": weights or {},
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
