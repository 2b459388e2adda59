"""The script that builds and tries the image, with stand-ins for its tools: what it asks of them, checks and leaves.

The real build takes minutes, root and a network: docs/results/container.json is what it wrote.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "container.sh"
TOOLS = ("cat", "date", "dirname", "env", "find", "grep", "head", "mkdir", "mktemp", "mv", "rm", "sh", "tail",
         "wc")
STAND_INS = {
    "id": "echo ${ID:-0}",
    "chown": ":",
    "git": '[ "$5" = rev-parse ] && echo abc123 || exit ${CHANGED:-0}',
    "debootstrap": 'echo "debootstrap $*" >>"$CALLS"; mkdir "$4"',
    "buildah": r"""
case "$1 $2" in
    "images --quiet") [ -z "$HAVE_BASE" ] || echo 123; exit ;;
    "images --format") echo "8.6 GB"; exit ;;
    "from "*) echo working ;;
    "--version "*) echo buildah version 1 ;;
    "bud "*) echo "--> Using cache 1"; echo "--> Using cache 2" ;;
esac
echo "buildah $*" >>"$CALLS"
[ "$1" = run ] || exit 0
shift
case $* in *"$FAIL"*) echo it broke; exit 1 ;; esac
for word; do
    shift
    case $word in /*:/home/rdcd/work/runs) runs=${word%%:*} ;; --) break ;; esac
done
shift 2
case $1 in
    python) shift; exec "$PYTHON" "$@" ;;
    sh) [ "$2" != train.sh ] || { mkdir -p "$runs/one/teacher"; cd "$runs/one"
        echo >student.safetensors; echo >teacher/student.safetensors; }
        [ "$2" != scripts/test.sh ] || echo "12 passed, 1 skipped in 3.00s" ;;
    id) echo 1000 ;;
esac
"""}


class Machine:
    """A PATH of stand-ins and a few tools, and the folder that the script leaves its results in."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls, self.out, self.tools = folder, folder / "calls", folder / "o u t", folder / "tools"
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self.tools.mkdir()
        for tool in TOOLS:
            (self.tools / tool).symlink_to(shutil.which(tool))
        for name, code in STAND_INS.items():
            (self.tools / name).write_text(f"#!/bin/sh\n{code}\n")
            (self.tools / name).chmod(0o755)
        (folder / "rdcd").mkdir()
        (folder / "rdcd" / "provenance.py").write_text("def provenance(): return {'git_commit': 'abc123'}")
        self.environment = {"PATH": str(self.tools), "CALLS": str(self.calls), "OUT": str(self.out), "FAIL": "no such",
                            "HAVE_BASE": "", "PYTHON": sys.executable, "PYTHONPATH": str(folder),
                            "TMPDIR": str(self.scratch), "USER_ID": str(os.getuid())}

    def run(self, *words: str, **environment: str) -> tuple[int, str, list[str]]:
        """Return the exit code, standard error and what was called."""
        done = subprocess.run(["sh", str(SCRIPT), *words], capture_output=True, text=True, timeout=60,
                              cwd=self.folder, env=self.environment | environment)
        assert not list(self.scratch.iterdir())
        return done.returncode, done.stderr, self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_plain_posix_shell() -> None:
    assert subprocess.run([shutil.which("dash") or "sh", "-n", str(SCRIPT)]).returncode == 0


def test_builds_uses_and_records(machine: Machine) -> None:
    code, said, calls = machine.run("--volume=/secret:/etc/pip.conf:ro", TESTS="tests/a tests/b")
    assert code == 0, said
    assert calls[0].startswith("debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm")
    build = next(call for call in calls if call.startswith("buildah bud "))
    for words in ("--isolation=chroot", "--build-arg BASE=localhost/rdcd-base:bookworm", "--build-arg COMMIT=abc123 ",
                  f"--build-arg USER_ID={os.getuid()}", "--volume=/secret:/etc/pip.conf:ro", str(ROOT)):
        assert words in build
    inside = [call.split(" -- env PIP_NO_INDEX=1 ")[1] for call in calls if call.startswith("buildah run ")
              and f"--volume {machine.out}/runs:/home/rdcd/work/runs" in call]
    assert inside[:4] == ["rdcd doctor", "id -u", "sh train.sh experiment=smoke",
                          "sh scripts/test.sh -rs tests/a tests/b"]
    assert calls[-1] == "buildah rm working"

    text = (machine.out / "container.json").read_text()
    record = json.loads(text)
    assert [(row["what"], row["found"]) for row in record["rows"]] == [
        ("base image", "localhost/rdcd-base:bookworm, 8.6 GB"), ("image", "8.6 GB, 2 steps made before"),
        ("rdcd doctor", "as user 1000"),
        ("sh train.sh experiment=smoke", f"2 files of user {os.getuid()} on this machine"),
        ("sh scripts/test.sh tests/a tests/b", "12 passed, 1 skipped in 3.00s")]
    assert all(isinstance(row["seconds"], int) for row in record["rows"])
    assert record["provenance"]["git_commit"] == "abc123" and record["provenance"]["engine"] == "buildah version 1"
    assert record["provenance"]["command"] == "sh scripts/container.sh --volume=…" and "secret" not in text
    assert sorted(path.name for path in machine.out.iterdir()) == ["container.json", "container.log", "runs"]


@pytest.mark.parametrize("environment", [{"BASE": "mine:1"}, {"HAVE_BASE": "yes"}])
def test_a_base_that_is_there_is_taken(machine: Machine, environment: dict) -> None:
    if "BASE" in environment:
        (machine.tools / "debootstrap").unlink()
    code, said, calls = machine.run(**environment, CHANGED="1")
    build = next(call for call in calls if call.startswith("buildah bud "))
    assert code == 0 and not any("debootstrap" in call for call in calls), said
    assert f"BASE={environment.get('BASE', 'localhost/rdcd-base:bookworm')} " in build
    assert "COMMIT=abc123+dirty " in build


@pytest.mark.parametrize(("lacking", "words", "environment", "said"), [
    ((), (), {"ID": "1000"}, "takes root: sudo sh scripts/container.sh"),
    (("buildah", "debootstrap"), (), {}, "apt-get install buildah debootstrap"),
    (("debootstrap",), (), {}, "missing: debootstrap; "),
    ((), ("experiment=smoke",), {}, "'experiment=smoke' is no option: write those of buildah bud as --NAME=VALUE")])
def test_what_is_missing_is_one_line(machine: Machine, lacking: tuple, words: tuple, environment: dict,
                                     said: str) -> None:
    for tool in lacking:
        (machine.tools / tool).unlink()
    code, error, calls = machine.run(*words, **environment)
    assert code == 1 and calls == [] and said in error and len(error.splitlines()) == 1 and not machine.out.exists()


@pytest.mark.parametrize("stage", ["rdcd doctor", "train.sh", "scripts/test.sh"])
def test_a_stage_that_fails_shows_why_and_leaves_no_container_or_result(machine: Machine, stage: str) -> None:
    code, error, calls = machine.run(FAIL=stage)
    assert code == 1 and calls[-1] == "buildah rm working"
    assert "it broke" in error and f"failed; all of it is in {machine.out}/container.log" in error
    assert sorted(path.name for path in machine.out.iterdir()) == ["container.log", "runs"]


def test_results_of_another_user_are_refused(machine: Machine) -> None:
    other = str(os.getuid() + 1)
    code, error, _ = machine.run(USER_ID=other)
    assert code == 1 and f"runs does not belong to user {other}" in error


def test_an_earlier_folder_is_left_alone(machine: Machine) -> None:
    (machine.out / "runs").mkdir(parents=True)
    code, error, calls = machine.run()
    assert code == 1 and calls == [] and "is there already: name a new folder, OUT=DIR" in error
