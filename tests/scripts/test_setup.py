"""The shell scripts, with stand-ins for Python on the PATH: what they choose, say, install and start."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("train.sh", "disc_eval.sh", "scripts/setup.sh", "scripts/test.sh")
FILES = (*SCRIPTS, "scripts/prepared.py", "requirements.txt", "pyproject.toml", "setup.py")
TOOLS = ("sh", "cat", "cksum", "cp", "chmod", "dirname", "id", "mkdir", "rm", "sleep", "tr")

# A Python that only writes down how it was called; what it is comes from the file beside it.
STAND_IN = r"""#!/bin/sh
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
VERSION=3.12 VENV=yes PIP=yes PREPARED=no RUNS=yes
[ ! -e "$here/facts" ] || . "$here/facts"
[ "$RUNS" = yes ] || exit 127
case "$1 ${2:-}" in
    "-c import sys"*) printf '%s\n%s\n%s\n' "$VERSION" "$(dirname -- "$here")" "$0"; exit ;;
    "-c import ensurepip"*) [ "$VENV" = yes ]; exit ;;
    "-m pip") [ "$PIP" = yes ] || exit 1; [ "$3" != --version ] || exit 0 ;;
    *prepared.py*) [ "$PREPARED" = yes ]; exit ;;
esac
echo "$(dirname -- "$here"): $* PYTHONPATH=${PYTHONPATH:-}" >>"$CALLS"
case "$1 ${2:-}" in
    "-m venv")
        while [ -e "$HOLD" ]; do sleep 0.05; done
        rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
    "-m pip") [ ! -e "$FAIL_PIP" ] || exit 1 ;;
esac
"""


class Machine:
    """A folder that plays a bare machine: a checkout, a PATH with a few tools, and stand-in Pythons."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root, self.calls = folder, folder / "check out", folder / "calls"
        self.fail_pip, self.hold = folder / "fail_pip", folder / "hold"
        for name in FILES:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)
        self.tools = folder / "tools"
        self.tools.mkdir()
        for tool in TOOLS:
            (self.tools / tool).symlink_to(shutil.which(tool))
        self.path = [self.tools]
        self.environment = {"CALLS": str(self.calls), "FAIL_PIP": str(self.fail_pip), "HOLD": str(self.hold),
                            "TMPDIR": str(folder)}

    def python(self, prefix: str, name: str = "python3", **facts: str) -> Path:
        """Put a stand-in at prefix/bin/name."""
        file = self.folder / prefix / "bin" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(STAND_IN)
        file.chmod(0o755)
        (file.parent / "facts").write_text("".join(f"{key}={value}\n" for key, value in facts.items()))
        return file

    def on_path(self, prefix: str, name: str = "python3", **facts: str) -> Path:
        file = self.python(prefix, name, **facts)
        self.path.insert(0, file.parent)
        return file

    def start(self, script: str, *words: str, **environment: str) -> subprocess.Popen:
        path = os.pathsep.join(map(str, self.path))
        return subprocess.Popen(["sh", str(self.root / script), *words], cwd=self.folder, text=True,
                                env={**self.environment, "PATH": path, **environment},
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, script: str, *words: str, **environment: str) -> tuple[int, str, str, list[str]]:
        """Return the exit code, standard output, standard error and the new calls."""
        self.calls.unlink(missing_ok=True)
        process = self.start(script, *words, **environment)
        out, error = process.communicate(timeout=30)
        return process.returncode, out, error, self.read_calls()

    def read_calls(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_plain_posix_shell(script: str) -> None:
    shell = shutil.which("dash") or "sh"
    assert subprocess.run([shell, "-n", str(ROOT / script)]).returncode == 0
    assert (ROOT / script).read_text().startswith("#!/bin/sh\n")


def test_bare_machine_gets_an_environment_the_requirements_and_the_package_once(machine: Machine) -> None:
    machine.on_path("usr")
    code, out, error, calls = machine.run("scripts/setup.sh")
    venv = machine.root / ".venv"
    assert code == 0 and out == f"{venv}/bin/python\n"
    assert [call.split(" PYTHONPATH")[0] for call in calls] == [
        f"{machine.folder}/usr: -m venv --clear {venv}",
        f"{venv}: -m pip install -r {machine.root}/requirements.txt",
        f"{venv}: -m pip install --quiet -e {machine.root}"]
    assert "making .venv with python3 (Python 3.12)" in error and "installing" in error

    code, again, error, calls = machine.run("scripts/setup.sh")
    assert (code, again, calls) == (0, out, [])
    assert error == f"rdcd: using Python 3.12 in {venv}\n"


def test_tests_add_their_extra_and_serve_later_runs_too(machine: Machine) -> None:
    machine.on_path("usr")
    machine.run("scripts/setup.sh")
    assert any(call.split(" PYTHONPATH")[0].endswith("check out[test]")
               for call in machine.run("scripts/setup.sh", "test")[3])
    assert machine.run("scripts/setup.sh", "test")[3] == machine.run("scripts/setup.sh")[3] == []


@pytest.mark.parametrize("changed", ["requirements.txt", "pyproject.toml", "setup.py"])
def test_changed_requirements_are_installed(machine: Machine, changed: str) -> None:
    machine.on_path("usr")
    machine.run("scripts/setup.sh")
    with open(machine.root / changed, "a") as file:
        file.write("# changed\n")
    assert len(machine.run("scripts/setup.sh")[3]) == 2
    assert machine.run("scripts/setup.sh")[3] == []


def test_moved_checkout_is_installed_from_its_new_place(machine: Machine) -> None:
    machine.on_path("usr")
    machine.run("scripts/setup.sh")
    machine.root = machine.root.rename(machine.folder / "moved")
    calls = machine.run("scripts/setup.sh")[3]
    assert len(calls) == 2 and f"-e {machine.root}" in calls[1]


def test_an_environment_that_another_checkout_set_up_stays_its_own(machine: Machine) -> None:
    machine.on_path("usr")
    python = machine.run("scripts/setup.sh")[1].strip()
    record = Path(python).parents[1] / ".rdcd-setup"
    before = record.read_text()
    shutil.copytree(machine.root, machine.folder / "second", ignore=shutil.ignore_patterns(".venv"))
    machine.root = machine.folder / "second"
    (Path(python).parent / "facts").write_text("PREPARED=yes\n")
    code, out, _, calls = machine.run("scripts/setup.sh", RDCD_PYTHON=python)
    assert (code, out.strip(), calls) == (0, python, []) and record.read_text() == before
    (Path(python).parent / "facts").write_text("PREPARED=no\n")  # it lacks something: installed, for this one now
    assert any(f"-e {machine.root}" in call for call in machine.run("scripts/setup.sh", RDCD_PYTHON=python)[3])


def test_interrupted_install_is_mended_by_the_next_run(machine: Machine) -> None:
    machine.on_path("usr")
    machine.fail_pip.touch()
    code, out, _, _ = machine.run("train.sh")
    assert code != 0 and out == "" and not any("launch.py" in call for call in machine.read_calls())
    machine.fail_pip.unlink()
    # Even where the packages look complete, an unfinished record is not believed.
    (machine.root / ".venv/bin/facts").write_text("PREPARED=yes\n")
    code, _, _, calls = machine.run("train.sh")
    assert code == 0 and len(calls) == 3 and "scripts/launch.py" in calls[2]


def test_environment_broken_half_way_is_made_anew(machine: Machine) -> None:
    machine.on_path("usr")
    (machine.root / ".venv/bin").mkdir(parents=True)
    (machine.root / ".venv/bin/python").symlink_to(machine.folder / "gone")
    code, _, _, calls = machine.run("scripts/setup.sh")
    assert code == 0 and "-m venv --clear" in calls[0] and len(calls) == 3


def test_active_environment_is_used_and_no_other_made(machine: Machine) -> None:
    machine.on_path("usr")
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        active = machine.python(f"active {variable}", "python", VERSION="3.13").parents[1]
        _, out, _, calls = machine.run("scripts/setup.sh", **{variable: str(active)})
        assert out == f"{active}/bin/python\n" and len(calls) == 2
        assert all(call.startswith(f"{active}: -m pip install") for call in calls)
        assert machine.run("scripts/setup.sh", **{variable: str(active)})[3] == []
    named = machine.python("named", "python3.10", VERSION="3.10")
    _, out, _, calls = machine.run("scripts/setup.sh", VIRTUAL_ENV="/nowhere",
                                   RDCD_PYTHON="named/bin/python3.10")
    assert calls and all(call.startswith(f"{named.parents[1]}: -m pip") for call in calls)
    assert not (machine.root / ".venv").exists()


def test_complete_environment_is_left_as_it_is(machine: Machine) -> None:
    active = machine.python("active", "python", PREPARED="yes").parents[1]
    assert machine.run("scripts/setup.sh", "test", VIRTUAL_ENV=str(active))[::3] == (0, [])
    assert not (active / ".rdcd-setup").exists()


def test_complete_python_on_the_path_needs_no_environment(machine: Machine) -> None:
    python = machine.on_path("image", PREPARED="yes")
    code, out, error, calls = machine.run("scripts/setup.sh")
    assert (code, out, calls) == (0, f"{python}\n", []) and "which has every requirement" in error
    assert not (machine.root / ".venv").exists()


@pytest.mark.parametrize(("facts", "said"), [
    ({"VERSION": "3.9"}, "python3 is 3.9"),
    ({"VERSION": "3.14"}, "python3 is 3.14"),
    ({"VENV": "no"}, "package python3.12-venv"),
    ({"RUNS": "no"}, "none on the PATH"),
    (None, "none on the PATH")])
def test_unfit_machine_is_told_why_and_what_to_do(machine: Machine, facts: dict | None, said: str) -> None:
    if facts is not None:
        machine.on_path("usr", **facts)
    code, out, error, calls = machine.run("train.sh")
    assert code == 1 and out == "" and calls == [] and not (machine.root / ".venv").exists()
    assert said in error and "Python 3.10 to 3.13" in error


def test_a_fitting_python_is_looked_for_past_an_unfit_one(machine: Machine) -> None:
    machine.on_path("old", VERSION="3.8")
    machine.on_path("new", "python3.11", VERSION="3.11")
    assert "-m venv" in machine.run("scripts/setup.sh")[3][0]
    assert machine.read_calls()[0].startswith(str(machine.folder / "new"))


def test_named_python_is_taken_or_complained_about(machine: Machine) -> None:
    machine.on_path("usr")
    code, _, error, calls = machine.run("scripts/setup.sh", PYTHON="/nowhere/python3")
    assert code == 1 and "PYTHON=/nowhere/python3 does not run" in error and calls == []
    named = machine.python("my own", "python3.10", VERSION="3.10")
    assert machine.run("scripts/setup.sh", PYTHON=str(named))[3][0].startswith(f"{named.parents[1]}: -m venv")


@pytest.mark.parametrize(("facts", "said"), [
    ({"VERSION": "3.9"}, "rdcd needs 3.10 to 3.13"), ({"PIP": "no"}, "has no pip"),
    ({"RUNS": "no"}, "does not run")])
def test_unfit_active_environment_is_refused(machine: Machine, facts: dict, said: str) -> None:
    machine.on_path("usr")
    active = machine.python("active", "python", **facts).parents[1]
    code, out, error, calls = machine.run("scripts/setup.sh", VIRTUAL_ENV=str(active))
    assert (code, out, calls) == (1, "", []) and said in error and "Activate another" in error


def test_environment_that_cannot_be_written_is_refused(machine: Machine) -> None:
    active = machine.python("active", "python").parents[1]
    (active / ".rdcd-setup").mkdir()  # stops root too, whom permissions would not
    code, out, error, calls = machine.run("scripts/setup.sh", VIRTUAL_ENV=str(active))
    assert (code, out, calls) == (1, "", []) and f"{active} cannot be written. Activate another" in error


def test_two_at_once_install_once(machine: Machine) -> None:
    machine.on_path("usr")
    processes = [machine.start("scripts/setup.sh") for _ in range(3)]
    ends = [(*process.communicate(timeout=30), process.returncode) for process in processes]
    assert {(out, code) for out, _, code in ends} == {(f"{machine.root}/.venv/bin/python\n", 0)}
    assert len(machine.read_calls()) == 3
    assert not list(machine.folder.glob("*.lock"))


def test_lock_is_waited_for_while_its_owner_lives_and_taken_over_afterwards(machine: Machine) -> None:
    machine.on_path("usr")
    machine.hold.touch()
    first = machine.start("scripts/setup.sh")
    for _ in range(200):
        if machine.read_calls() and list(machine.folder.glob("*.lock/pid")):
            break
        time.sleep(0.05)
    second = machine.start("scripts/setup.sh")
    told = second.stderr.readline()
    first.send_signal(signal.SIGKILL)
    first.wait()
    machine.hold.unlink()  # the killed call's child ends too
    first.communicate(timeout=30)
    out, _ = second.communicate(timeout=30)
    assert f"(process {first.pid})" in told
    assert second.returncode == 0 and out == f"{machine.root}/.venv/bin/python\n"
    assert not list(machine.folder.glob("*.lock"))


@pytest.mark.parametrize(("words", "passed"), [([], ""), (["a=1 2", "b=3"], " a=1 2 b=3")])
def test_train_passes_its_words_on(machine: Machine, words: list[str], passed: str) -> None:
    machine.on_path("usr")
    code, _, _, calls = machine.run("train.sh", *words)
    assert code == 0
    assert calls[-1] == f"{machine.root}/.venv: {machine.root}/scripts/launch.py{passed} PYTHONPATH={machine.root}"


def test_evaluation_and_tests_start_what_they_say(machine: Machine) -> None:
    machine.on_path("usr")
    assert "-m rdcd evaluate k=5 PYTHONPATH=" in machine.run("disc_eval.sh", "k=5")[3][-1]
    _, _, error, calls = machine.run("scripts/test.sh", "-k", "a b", PYTHONPATH="/mine")
    assert calls[-1] == f"{machine.root}/.venv: -m pytest -k a b PYTHONPATH={machine.root}:/mine"
    assert f"rdcd: in {machine.root}: python -m pytest -k a b\n" in error
    assert ("-m pytest -n auto --maxprocesses 8 --dist loadscope --no-loadscope-reorder PYTHONPATH="
            in machine.run("scripts/test.sh")[3][-1])
