"""What is installed, which device works, what would fail and the fix (`rdcd doctor`).

Libraries are tried in processes of their own, so that one which crashes is a finding, too; nothing of theirs is
imported here.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import rdcd
from rdcd.errors import ChecksFailed, check_path
from rdcd.files import check_output, write_json
from rdcd.models.download import cache_folder
from rdcd.provenance import git_commit, versions

PYTHONS = ((3, 10), (3, 13))  # oldest and newest that are tested
COLOURS = {"ok": "green", "note": "yellow", "FAILED": "bold red"}
GIB = 2**30
TRIALS = {  # name → (what it prints when it works, what to do when it does not)
    "torch": ("""
import torch
device = "cuda" if torch.cuda.is_available() else "cpu"
x = torch.rand(2, 8, 16, 16, device=device)
torch.nn.functional.conv2d(x, torch.rand(8, 8, 3, 3, device=device)).sum().item()
gpus = [f"{p.name}, {p.total_memory / 2**30:.0f} GB" for p in map(torch.cuda.get_device_properties,
                                                                range(torch.cuda.device_count()))]
print(f"a convolution on {device}; CUDA {torch.version.cuda or 'not built in'}; GPUs: {'; '.join(gpus) or 'none'}")
""", "install torch and torchvision together, unpinned: pip install --force-reinstall torch torchvision"),
    "torchvision": ("""
import torch, torchvision
torchvision.ops.nms(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([1.0]), 0.5)
print("its compiled operators load")
""", "it was built for another torch: pip install --force-reinstall torch torchvision"),
    "faiss": ("""
import faiss, numpy
index = faiss.IndexFlatIP(8)
index.add(numpy.eye(8, dtype="float32"))
assert index.search(numpy.eye(8, dtype="float32"), 1)[1].ravel().tolist() == list(range(8))
print(f"a search on the CPU, {faiss.omp_get_max_threads()} threads")
""", "keep one distribution of faiss: pip uninstall -y faiss-cpu faiss-gpu; pip install -r requirements.txt"),
    "pictures": ("""
from PIL import features
absent = [name for name in ("jpg", "zlib", "webp", "libtiff") if not features.check(name)]
assert not absent, f"Pillow cannot read {', '.join(absent)}"
print("JPEG" + " by libjpeg-turbo" * bool(features.check("libjpeg_turbo")) + ", PNG, WebP, TIFF, BMP, GIF, PPM, QOI")
""", "pip install --force-reinstall pillow"),
    "AVIF": ("""
from rdcd.data.found import AVIF, OPTIONAL
assert OPTIONAL[AVIF][0], "AVIF files are left out"
print("AVIF files are read")
""", "to read them: pip install 'pillow>=11.3'"),
    "JPEG 2000": ("""
from rdcd.data.found import JPEG2000, OPTIONAL
assert OPTIONAL[JPEG2000][0], "JPEG 2000 files are left out"
print("JPEG 2000 files are read")
""", "to read them: pip install --force-reinstall pillow"),
    "HEIC": ("""
from rdcd.data.found import HEIC, OPTIONAL
assert OPTIONAL[HEIC][0], "HEIC files are left out"
import pillow_heif
print(f"HEIC files are read, by pillow-heif {pillow_heif.__version__}")
""", "to read the photographs of telephones: pip install pillow-heif"),
    "overlays": ("""
from rdcd.augment import assets
print(f"{len(assets.typefaces())} fonts, {len(assets.emoji_files())} emoji of AugLy")
""", "pip install --force-reinstall augly, or train with augment=strong_blur"),
}
OPTIONAL = {"AVIF", "JPEG 2000", "HEIC"}  # formats of images that can be done without


@dataclass(frozen=True)
class Finding:
    """One thing looked at: `verdict` is `ok`, `note` (something will not work or be slow) or `FAILED`."""

    what: str
    verdict: str
    found: str
    advice: str = ""


def doctor(*, folder: str | Path = ".", out: str | Path | None = None) -> list[Finding]:
    """Look at this installation and machine; print a table of findings.

    Args:
        folder: where runs will be written.
        out: JSON file for the findings.

    Raises:
        ChecksFailed: something that is needed is missing or broken, after the table is printed.
    """
    check_path("folder", folder)
    check_path("out", out, null="the table alone")
    if out is not None:
        check_output(out)
    findings = [*_python(), *_packages(), *_trials(), *_gpu_driver(), *_machine(Path(folder)), *_extras()]
    _print(findings)
    failed = [finding.what for finding in findings if finding.verdict == "FAILED"]
    if out is not None:
        write_json(out, {"failed": len(failed), "findings": list(map(asdict, findings)), "versions": versions(),
                         "git_commit": git_commit()})
    if failed:
        raise ChecksFailed(f"{len(failed)} of {len(findings)} things that were looked at failed: {', '.join(failed)}; "
                           f"what to do stands in the table")
    return findings


def _python() -> Iterator[Finding]:
    tested = PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]
    oldest, newest = (".".join(map(str, version)) for version in PYTHONS)
    yield Finding("python", "ok" if tested else "note", f"{platform.python_version()}, {sys.executable}",
                  "" if tested else f"{oldest} to {newest} are tested: make an environment of one of them")
    commit = git_commit()
    yield Finding("rdcd", "ok", f"{rdcd.__version__}{f', commit {commit[:12]}' if commit else ''}, "
                                f"{Path(rdcd.__file__).parent}")


def _packages() -> Iterator[Finding]:
    """Hold what is installed against what rdcd asks for."""
    try:
        asked = list(map(Requirement, metadata.requires("rdcd") or ()))
    except metadata.PackageNotFoundError:
        yield Finding("packages", "note", "rdcd runs from a folder and is not installed: what it needs is not known",
                      "pip install -e . in its checkout")
        return
    needed = [need for need in asked if not need.marker or need.marker.evaluate({"extra": ""})]
    lacking = [lack for need in needed if (lack := _lacks(need))]
    yield Finding("packages", "FAILED" if lacking else "ok",
                  "; ".join(lacking) or ", ".join(f"{name} {version}" for name, version in versions().items()
                                                  if name not in ("python", "rdcd")),
                  "pip install -r requirements.txt" if lacking else "")


def _lacks(need: Requirement) -> str | None:
    try:
        version = metadata.version(need.name)
    except metadata.PackageNotFoundError:
        return f"{need.name} is not installed"
    fits = need.specifier.contains(version, prereleases=True)
    return None if fits else f"{need.name} {version} is installed, {need.specifier} is needed"


def _trials() -> Iterator[Finding]:
    """Let every library that is compiled do a little of its work."""
    for name, (code, advice) in TRIALS.items():
        works, said = attempt(code)
        yield Finding(name, "ok" if works else "note" if name in OPTIONAL else "FAILED", said, "" if works else advice)


def attempt(code: str, *, seconds: float = 300) -> tuple[bool, str]:
    """Run `code` in a Python of its own; return whether it ended well, and the last line it said.

    Args:
        seconds: after which it counts as stuck.
    """
    paths = [str(Path(rdcd.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds,
                              env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))})
    except subprocess.TimeoutExpired:
        return False, f"nothing after {seconds:g} s"
    lines = [line for line in (done.stdout if done.returncode == 0 else done.stderr).splitlines() if line.strip()]
    if done.returncode < 0:
        return False, f"it was ended by signal {-done.returncode}" + (f": {lines[-1].strip()}" if lines else "")
    return done.returncode == 0, lines[-1].strip() if lines else f"exit code {done.returncode}"


def _gpu_driver() -> Iterator[Finding]:
    """Name the GPUs that the driver sees, where there is one: torch may have none of them."""
    if shutil.which("nvidia-smi"):
        done = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
                              capture_output=True, text=True)
        fine = done.returncode == 0
        yield Finding("GPU driver", "ok" if fine else "note", "; ".join((done.stdout or done.stderr).split("\n")[:8]),
                      "if torch above sees none of these, its CUDA is newer than the driver" if fine
                      else "training will use the CPU until the driver works")
    else:
        yield Finding("GPU driver", "note", "none: there is no nvidia-smi", "training will use the CPU")


def _machine(folder: Path) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = _memory()
    enough = memory is None or memory >= 4 * GIB
    yield Finding("cores and memory", "ok" if enough else "note",
                  f"{cores} cores" + (f", {memory / GIB:.0f} GB" if memory else ""),
                  "" if enough else "take fewer data.workers and a smaller data.batch_size")
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).free
        yield Finding("shared memory", "ok" if size >= GIB else "note", f"{size / GIB:.1f} GB free in {shared}",
                      "" if size >= GIB else "loader workers need it: docker run --ipc=host, or data.workers=0")
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free, writable = shutil.disk_usage(there).free, os.access(there, os.W_OK)
    yield Finding("disk", "FAILED" if not writable else "ok" if free >= 5 * GIB else "note",
                  f"{free / GIB:.0f} GB free in {there}" + ("" if writable else ", which cannot be written to"),
                  "" if writable and free >= 5 * GIB else "choose another folder" if not writable
                  else "checkpoints of large students and descriptors of a million pictures take gigabytes")
    cache = cache_folder()
    files = [path for path in cache.rglob("*") if path.is_file()] if cache.is_dir() else []
    yield Finding("downloaded weights", "ok", f"{sum(path.stat().st_size for path in files) / GIB:.1f} GB in {cache}")
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    yield Finding("C++ compiler", "ok" if compiler else "note", compiler or "none",
                  "" if compiler else "trainer.compile=true and the pdq hash need one: g++, and Python's headers")


def _memory() -> int | None:
    """Return the bytes of memory this process may use: the machine's, or its container's where that is less."""
    found = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if Path(limit).is_file() and (text := Path(limit).read_text().strip()).isdigit():
            found.append(int(text))
    return min(found, default=None)


def _extras() -> Iterator[Finding]:
    """Say which optional parts are there."""
    try:
        asked = list(map(Requirement, metadata.requires("rdcd") or ()))
    except metadata.PackageNotFoundError:
        return
    extras: dict[str, list[Requirement]] = {}
    for need in asked:
        if need.marker and (name := re.search(r"extra == ['\"](\w+)['\"]", str(need.marker))):
            extras.setdefault(name[1], []).append(need)
    for name, needs in extras.items():
        lacking = [lack for need in needs if (lack := _lacks(need))]
        if name != "test":
            yield Finding(f"rdcd[{name}]", "note" if lacking else "ok", "; ".join(lacking) or "installed",
                          f"pip install 'rdcd[{name}]' if you want it" if lacking else "")


def _print(findings: list[Finding]) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = 160
    table = Table(title="rdcd doctor")
    for column in ("what", "", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        colour = COLOURS[finding.verdict]
        table.add_row(escape(finding.what), f"[{colour}]{finding.verdict}[/{colour}]", escape(finding.found),
                      escape(finding.advice))
    console.print(table)
