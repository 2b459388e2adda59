"""What is built and shipped: the wheel, the source distribution, the image's recipe."""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from rdcd.yamls import spelled

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("rdcd", "configs", "setup.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE")


def build(folder: Path, kind: str) -> Path:
    """Build with the installed setuptools, so that no network is asked."""
    code = f"from setuptools import build_meta as b; print(b.build_{kind}('dist'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "dist" / done.stdout.split()[-1]


def package_files(folder: Path) -> set[str]:
    """What a wheel of this tree must hold, found without setuptools."""
    paths = [path for top in ("rdcd", "configs") for path in (folder / top).rglob("*")
             if path.is_file() and "__pycache__" not in path.parts]
    names = {path.relative_to(folder).as_posix() for path in paths}
    return {name if name.startswith("rdcd/") else f"rdcd/{name}" for name in names}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that building leaves nothing in the checkout, with traps added."""
    folder = tmp_path_factory.mktemp("tree with space")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    for name in ("rdcd/evaluation/pages/page.html", "configs/one/two/deep.yaml",  # to be packed
                 "build/lib/rdcd/removed.py", "rdcd/data/__pycache__/old.pyc"):  # not to be packed
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("# trap\n")
    return folder


@pytest.fixture(scope="module")
def wheel(tree: Path) -> Path:
    return build(tree, "wheel")


def test_wheel_holds_every_module_template_and_config(tree: Path, wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == package_files(tree)


def test_wheel_metadata_repeats_the_one_list_of_requirements(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = next(name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name)
        metadata = message_from_bytes(archive.read(f"{info}/METADATA"))
        assert "rdcd = rdcd.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
        assert "rdcd contributors" in archive.read(f"{info}/licenses/LICENSE").decode()
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    wanted = {str(Requirement(line)) for line in lines if line and not line.startswith("#")}
    packed = {str(Requirement(line)) for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    assert packed == wanted
    assert metadata["Requires-Python"] == ">=3.10"


@pytest.mark.parametrize(("platform", "machine", "build_of_faiss"), [
    ("linux", "x86_64", "faiss-gpu"), ("linux", "aarch64", "faiss-cpu"),
    ("darwin", "arm64", "faiss-cpu"), ("darwin", "x86_64", "faiss-cpu"), ("win32", "AMD64", "faiss-cpu")])
def test_every_platform_gets_exactly_one_faiss(platform: str, machine: str, build_of_faiss: str) -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    needs = [Requirement(line) for line in lines if line.startswith("faiss")]
    environment = {"sys_platform": platform, "platform_machine": machine}
    assert [need.name for need in needs if need.marker.evaluate(environment)] == [build_of_faiss]


def test_wheel_works_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*words: str) -> str:
        done = subprocess.run([sys.executable, *words], cwd=elsewhere, env=environment, capture_output=True,
                              text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", "import rdcd; print(rdcd.__file__)").startswith(str(site))
    found = run("-c", "from rdcd.yamls import config_dir; print(config_dir())").strip()
    assert found == str(site / "rdcd/configs")
    commands = [spelled(path.stem) for path in (ROOT / "configs").glob("*.yaml")]
    described = run("-m", "rdcd", "--help")
    assert commands and all(command in described for command in commands)
    for command in commands:
        assert run("-m", "rdcd", *command.split(), "--help")


def test_source_distribution_builds_the_same_wheel(tree: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build(tree, "sdist")) as archive:
        archive.extractall(tmp_path)
    rebuilt = build(next(tmp_path.iterdir()), "wheel")
    assert sorted(zipfile.ZipFile(rebuilt).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def dockerfile() -> list[list[str]]:
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE))
    return [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]


def test_image_runs_as_an_ordinary_user_and_its_base_is_an_argument() -> None:
    steps = dockerfile()
    assert steps[0][0] == "ARG" and steps[0][1].startswith("BASE=") and steps[1] == ["FROM", "${BASE}"]
    arguments = dict(words.split("=", 1) for step, words in steps if step == "ARG")
    users = [words for step, words in steps if step == "USER"]
    assert users == ["${USER_ID}"] and int(arguments["USER_ID"]) > 0
    assert steps[-1] == ["CMD", '["sh", "train.sh"]']


def test_image_copies_what_exists_and_requirements_before_sources() -> None:
    copied = [[word for word in shlex.split(words) if not word.startswith("--")][:-1]
              for step, words in dockerfile() if step == "COPY"]
    assert copied == [["requirements.txt"], ["."]]
    ignored = (ROOT / ".dockerignore").read_text().split()
    needed = [*SOURCES, "train.sh", "disc_eval.sh", "scripts", "tests", "docs"]
    assert all((ROOT / name).exists() for name in needed)
    assert not [name for name in needed for pattern in ignored if fnmatch.fnmatch(name, pattern)]
    assert {".git", ".venv", "runs", "benchmarks"} <= set(ignored)


def test_image_serves_any_user_has_compilers_and_names_its_commit() -> None:
    system, _, sources = (words for step, words in dockerfile() if step == "RUN")
    assert "g++" in shlex.split(system) and "python3-dev" in shlex.split(system)
    assert '--mode=1777 "$HOME" "$HOME/work"' in system and "mkdir -m 1777 runs benchmarks" in sources
    assert 'echo "$COMMIT" >.rdcd-commit' in sources
    steps = [(step, words.split("=")[0]) for step, words in dockerfile()]
    assert steps.index(("ARG", "COMMIT")) > steps.index(("COPY", "--chown"))  # no commit remakes the large layer


def test_ci_runs_the_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "sh scripts/test.sh" in script.read_text().splitlines()
