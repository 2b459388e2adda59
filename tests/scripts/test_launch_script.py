"""Trainings in several processes as train.sh starts and ends them: in time, together, with an exit code that tells."""

import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["data.size=32", "data.test_size=32", "data.batch_size=8", "trainer.accelerator=cpu", "trainer.threads=1",
         "trainer.validate_every=0", "trainer.log_every=1", "trainer.checkpoint_every=2",
         "student.trunk=test_efficientnet", "student.dim=8", "teacher=none", "loss.relational_weight=0",
         "loss.queue_size=16", "augment=simclr", "protocol.codecs=[Flat]", "baselines=[]"]
ENDLESS = ["trainer.devices=2", "trainer.epochs=10000", "data.workers=1", "run_dir=run"]
MINUTE = 60

RAISING = """
import os
from rdcd.augment.recipes import simclr

class Views:
    def __init__(self, size, **how):
        self.recipe, self.made = simclr(size), 0

    def __call__(self, picture, rng):
        self.made += 1
        if os.environ["RANK"] == "1" and self.made > 60:
            raise ZeroDivisionError("the power failed")
        return self.recipe(picture, rng)
"""


class Training:
    """`sh train.sh …` in a process group of its own, as a terminal has it, and what came of it."""

    def __init__(self, folder: Path, *words: str, under: Sequence[str] = (), **environment: str) -> None:
        self.folder, self.mark = folder, uuid.uuid4().hex
        known = {key: value for key, value in os.environ.items()
                 if not key.startswith(("SLURM_", "PET_", "MASTER_", "WORLD_"))}
        known |= {"RDCD_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "RDCD_TEST": self.mark}
        self.said = folder / f"said-{self.mark}"
        with open(self.said, "w", encoding="utf-8") as said:
            self.process = subprocess.Popen([*under, "sh", str(ROOT / "train.sh"), *words], cwd=folder,
                                            start_new_session=True, stdout=said, stderr=said, env=known | environment)

    def members(self) -> dict[int, str]:
        """Return pid → rank of every process that it started and that lives; loader workers have their rank's."""
        found = {}
        for place in Path("/proc").glob("[0-9]*"):
            try:
                environment = place.joinpath("environ").read_bytes().split(b"\0")
                dead = place.joinpath("stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except OSError:  # it has just ended
                continue
            if f"RDCD_TEST={self.mark}".encode() in environment and not dead:
                ranks = [word[5:].decode() for word in environment if word.startswith(b"RANK=")]
                found[int(place.name)] = ranks[0] if ranks else ""
        return found

    def rank(self, number: int) -> int:
        """Return the process of a rank, which is older than its loader workers."""
        return min(pid for pid, rank in self.members().items() if rank == str(number))

    def under_way(self, after: int = 0) -> None:
        """Wait until it has trained for some steps, more than `after`."""
        while last_step(self.folder) <= after:
            assert self.process.poll() is None, self.text()
            time.sleep(0.05)

    def ended(self) -> int:
        """Wait until it and all that it started are gone, a minute at most; return its exit code."""
        code, end = self.process.wait(MINUTE), time.monotonic() + MINUTE
        while left := self.members():
            assert time.monotonic() < end, left
            time.sleep(0.05)
        return code

    def text(self) -> str:
        return self.said.read_text(encoding="utf-8")


@pytest.fixture
def begin(benchmark_root, tmp_path):
    """Start a training of the tiny benchmark; whatever is left of it is killed in the end."""
    begun = []

    def start(*words, **how):
        settings = [] if "resume=run" in words else [f"data.root={benchmark_root}", *WORDS]
        begun.append(Training(tmp_path, *settings, *words, **how))
        return begun[-1]

    yield start
    for training in begun:
        for pid in training.members():
            os.kill(pid, signal.SIGKILL)
        training.process.wait()


def last_step(folder):
    try:
        return torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    except FileNotFoundError:  # none yet, or it is just becoming the previous one
        return 0


def test_ctrl_c_ends_every_process_and_is_said_once(begin):
    training = begin(*ENDLESS)
    training.under_way()
    os.killpg(training.process.pid, signal.SIGINT)
    assert training.ended() == 130, training.text()
    assert training.text().count("rdcd: interrupted") == 1 and "Traceback" not in training.text()


def test_a_run_told_to_end_leaves_a_checkpoint_and_goes_on_in_as_many_processes(begin, tmp_path):
    steps = []
    for words, number in ((ENDLESS, signal.SIGUSR1), (["resume=run", "trainer.epochs=20000"], signal.SIGTERM)):
        training = begin(*words)
        training.under_way(after=steps[-1] if steps else 0)
        training.process.send_signal(number)
        time.sleep(0.2)
        if number == signal.SIGTERM:  # as `timeout` sends it, to the process and then to its group
            training.process.send_signal(number)
        assert training.ended() == 128 + number, training.text()
        steps.append(last_step(tmp_path))
        assert training.text().count(f"rdcd: stopped by {number.name} after step {steps[-1]}") == 1
        assert "--nproc_per_node 2" in training.text() and "Traceback" not in training.text()
    assert 0 < steps[0] < steps[1]


def test_a_rank_that_is_killed_takes_the_others_along(begin):
    training = begin(*ENDLESS)
    training.under_way()
    os.kill(training.rank(1), signal.SIGKILL)
    assert training.ended() == 128 + signal.SIGKILL, training.text()
    assert "rdcd: rank 0 ends because another has ended" in training.text()
    assert "rdcd: rank 1 was ended by SIGKILL, as a machine does that is out of memory" in training.text()
    assert "Traceback" not in training.text()


def test_no_rank_outlives_the_launcher(begin):
    training = begin(*ENDLESS)
    training.under_way()
    training.process.kill()
    assert training.ended() == -signal.SIGKILL
    assert len(list((training.folder / "run" / "checkpoints").iterdir())) > 0


def test_a_rank_that_fails_takes_the_others_along(begin, tmp_path):
    (tmp_path / "raising.py").write_text(RAISING)
    training = begin(*ENDLESS, "augment._target_=raising.Views", PYTHONPATH=str(tmp_path))
    assert training.ended() == 1
    assert "ZeroDivisionError: the power failed" in training.text() and "[rank0]" not in training.text()


def test_a_mistake_is_said_once_and_ends_with_its_code(begin):
    for words, said in ((["data.bathc_size=8"], "no key 'data.bathc_size'"),
                        (["run_dir=/dev/null/run"], "run_dir=/dev/null/run"),):
        training = begin("trainer.devices=2", "run_dir=run", *words)
        assert training.ended() == 2, training.text()
        assert training.text().count(said) == 1 and "Traceback" not in training.text()


def test_a_machine_that_does_not_know_its_own_name_trains(begin):
    """As in many a container; the processes of one machine must not look for each other by its name."""
    renamed = ("unshare", "-r", "--uts", "sh", "-c", 'hostname nowhere.invalid && exec "$@"', "sh")
    if shutil.which("unshare") is None or subprocess.run([*renamed, "true"], capture_output=True).returncode:
        pytest.skip("a process cannot have a host name of its own here")
    training = begin("trainer.devices=2", "data.bathc_size=8", under=renamed)
    assert training.ended() == 2 and "no key 'data.bathc_size'" in training.text(), training.text()


def test_a_sweep_runs_in_the_same_processes_with_a_folder_each(begin, tmp_path):
    training = begin("trainer.devices=2", "trainer.epochs=1", "data.workers=0", "--multirun", "student.dim=8,6")
    assert training.ended() == 0, training.text()
    runs = sorted((tmp_path / "runs").iterdir())
    assert [run.name.rpartition("-")[2] for run in runs] == ["8", "6"]
    for run in runs:
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["student"]["dim"] == int(run.name[-1]) and (run / "report.html").is_file()
    assert training.text().count("run folder:") == training.text().count("done in") == 2


def test_two_machines_meet_where_torchrun_is_told(begin, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["trainer.devices=1", "trainer.nodes=2", "trainer.epochs=1", "data.workers=0", "run_dir=run"]
    machines = [begin(*words, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), PET_LOCAL_ADDR="127.0.0.1")
                for _ in range(2)]
    assert [machine.ended() for machine in machines] == [0, 0], "\n".join(machine.text() for machine in machines)
    assert sum(machine.text().count("done in") for machine in machines) == 1
    assert last_step(tmp_path) == 3  # 24 pictures, of both together


@pytest.fixture(scope="module")
def planned():
    return runpy.run_path(str(ROOT / "scripts" / "launch.py"))["planned"]


ALONE = ["-m", "rdcd", "train"]


def test_one_process_is_started_without_torchrun(planned):
    for words in ([], ["trainer.devices=1"], ["trainer.devices=2", "trainer.devices=1"], ["trainer.devices=two"],
                  ["trainer.devices=0"], ["resume=nowhere"]):
        assert planned(words, {}) == ALONE


def test_a_process_that_is_one_of_several_trains_itself(planned):
    words = ["trainer.devices=4", "trainer.nodes=2"]
    assert planned(words, {"WORLD_SIZE": "8"}) == planned(words, {"SLURM_STEP_NUM_TASKS": "8"}) == ALONE
    for alone in ({"WORLD_SIZE": "1"}, {"WORLD_SIZE": ""}, {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}):
        assert "torch.distributed.run" in planned(["trainer.devices=4"], alone)


def test_several_processes_are_started_once_and_never_again(planned):
    line = " ".join(planned(["trainer.devices=4"], {}))
    assert line == ("-m torch.distributed.run --nproc_per_node 4 --max_restarts 0 --standalone --local_addr localhost "
                    "-m rdcd train")


def test_a_resumed_run_keeps_its_number_of_processes(planned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("teacher: {trainer: {devices: 5}}\ntrainer: {devices: 3, nodes: 1}\n")
    for words in (["resume=runs/one"], ["resume=latest"], ["trainer.epochs=3", f"resume={run}"]):
        assert planned(words, {})[:4] == ["-m", "torch.distributed.run", "--nproc_per_node", "3"]
    assert planned(["resume=runs/one", "trainer.devices=2"], {})[3] == "2"
    assert planned(["resume=auto", "run_dir=runs/one"], {}) == ALONE  # the line says all


def test_several_machines_need_a_meeting_place(planned):
    words = ["trainer.devices=4", "trainer.nodes=2"]
    with pytest.raises(ValueError, match="trainer.nodes=2: nothing says where the 2 machines meet: set MASTER_ADDR"):
        planned(words, {})
    line = " ".join(planned(words, {"MASTER_ADDR": "one"}))
    assert "--nnodes 2 --rdzv_backend c10d --rdzv_id rdcd --rdzv_endpoint one:29500 -m rdcd train" in line
    assert "--rdzv_endpoint one:4000" in " ".join(planned(words, {"MASTER_ADDR": "one", "MASTER_PORT": "4000"}))
    own = " ".join(planned(words, {"PET_RDZV_ENDPOINT": "one:1", "PET_RDZV_ID": "7", "PET_RDZV_BACKEND": "etcd-v2"}))
    assert own == "-m torch.distributed.run --nproc_per_node 4 --max_restarts 0 --nnodes 2 -m rdcd train"
