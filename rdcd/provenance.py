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
    """Record this process's command line and resolved config; `provenance` repeats them."""
    _run.update(command=command, config=config)


def run_config() -> dict | None:
    """Return the resolved config of this process's command, or None outside the command line."""
    return _run["config"]


def git_commit() -> str | None:
    """Return the commit of the source tree this package runs from, `+dirty` if changed, or None."""
    folder = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)
        except OSError:  # no git on this machine
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed wheel may lie inside some other project's checkout: that commit is not ours.
    if git("ls-files", "--error-unmatch", "provenance.py") is None:
        return None
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


def device() -> str:
    """Name the device results are computed on."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def provenance(*, seed: int | None = None, protocol: str | None = None,
               weights: dict[str, str] | None = None) -> dict[str, object]:
    """Return the record that goes into every result file.

    Args:
        seed: the run's seed, where one was used.
        protocol: name of the evaluation protocol.
        weights: model name → SHA-256 of the weights file it was measured with.
    """
    return {
        "command": _run["command"] or " ".join(sys.argv),
        "config": _run["config"],
        "protocol": protocol,
        "seed": seed,
        "git_commit": git_commit(),
        "versions": versions(),
        "device": device(),
        "weights_sha256": weights or {},
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
