"""Several processes on the CPU as torchrun starts them: one run folder, one table, every picture once."""

import csv
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from tiny_runs import go, here, settings

import rdcd
from rdcd import provenance
from rdcd.errors import UserError
from rdcd.models.weights import load_student
from rdcd.training import collectives
from rdcd.training import launch as launcher
from rdcd.training.mixing import check_pairs
from rdcd.training.objectives import RDCD, SSCD

ROOT = Path(rdcd.__file__).resolve().parent.parent
WORDS = ["data.size=32", "data.test_size=32", "data.batch_size=8", "data.workers=0", "trainer.epochs=1",
         "trainer.validate_every=1", "trainer.log_every=1", "trainer.accelerator=cpu", "trainer.threads=1",
         "student.trunk=test_efficientnet", "teacher.student.trunk=test_efficientnet", "student.dim=8",
         "teacher.student.kd_dim=12", "teacher.trainer.epochs=1", "teacher.batch_size=8", "loss.queue_size=40",
         "protocol.codecs=[Flat]", "trainer.devices=2"]
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


def launch(folder, *words):
    environment = os.environ | {"RDCD_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.run(["sh", str(ROOT / "train.sh"), *words], cwd=folder, capture_output=True, text=True,
                          env=environment)


def test_two_processes_make_one_run(benchmark_root, tmp_path):
    done = launch(tmp_path, f"data.root={benchmark_root}", "run_dir=run", *WORDS)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "run"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    for part in ("", "teacher/"):
        _, card = load_student(run / f"{part}student.safetensors")
        assert card["training"]["batch_size"] == 8 and card["training"]["steps"] == 3  # 24 pictures, of both together
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        models = [row["model"] for row in csv.DictReader(file)]
    assert models == [name for name in ("student", "teacher", "student untrained", "thumbnail") for _ in range(2)]
    assert done.stdout.count("run folder:") == 1 and done.stdout.count("done in") == 1  # one of them speaks
    assert json.loads((run / "run.json").read_text())["models"]["teacher"] == "teacher/student.safetensors"
    assert len(list((run / "logs").rglob("metrics.csv"))) == 1


@pytest.fixture
def alone(monkeypatch):
    """An environment that nobody started several processes in."""
    for name in os.environ:
        if name.startswith(("SLURM_", "MASTER_", "TORCHELASTIC_")) or name in VARIABLES:
            monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return monkeypatch


def step(**changes):
    """The variables of one task of a step of srun, on two machines of two tasks."""
    return {"SLURM_JOB_ID": "123456", "SLURM_JOB_NAME": "interactive", "SLURM_STEP_ID": "2", "SLURM_NTASKS": "4",
            "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu[07-08,12]",
            "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"} | changes


def refused(devices, nodes, device="cpu"):
    with pytest.raises(UserError) as error:
        collectives.start(devices=devices, nodes=nodes, device=device)
    return str(error.value)


def test_other_numbers_of_processes_are_refused_with_the_command(alone):
    assert ("make 4 processes, 1 was started: run `sh train.sh trainer.devices=4 …`, or `torchrun --standalone "
            "--nproc_per_node 4 -m rdcd train` with the same words") in refused(4, 1)
    assert ("make 16 processes, 1 was started: run `sh train.sh trainer.devices=8 trainer.nodes=2 …` on every machine "
            "(docs/multi-node.md), or `torchrun --nnodes 2 --rdzv_backend c10d --rdzv_endpoint HOST:29500 "
            "--nproc_per_node 8 -m rdcd train`") in refused(8, 2)
    alone.setenv("WORLD_SIZE", "3")
    assert "make 1 processes, 3 were started: run `python -m rdcd train …`" in refused(1, 1)


def test_the_command_is_that_of_the_run_with_what_it_lacks(alone):
    for words, whole in (("'resume=my run' seed=1", "trainer.devices=2 'resume=my run' seed=1"),
                         ("seed=1 trainer.devices=2", "seed=1 trainer.devices=2")):
        alone.setattr(provenance, "_run", {"command": f"rdcd train {words}", "config": {}, "git_commit": None})
        assert f"run `sh train.sh {whole}`, or" in refused(2, 1)


def test_python_asked_for_several_devices_stops_with_the_command(benchmark_root, tmp_path):
    words = [f"data.root={benchmark_root}", *WORDS]
    done = subprocess.run([sys.executable, "-m", "rdcd", "train", *words], cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and f"run `sh train.sh {shlex.join(words)}`" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_variables_that_are_missing_are_named(alone):
    alone.setenv("WORLD_SIZE", "2")
    alone.setenv("RANK", "0")
    assert "one of 2 processes, and LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not set" in refused(2, 1)


def test_processes_that_do_not_find_each_other_are_said(alone):
    alone.setattr(collectives, "MEET", timedelta(seconds=1))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ |= {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    assert f"process 1 does not find the others at MASTER_ADDR=127.0.0.1, MASTER_PORT={port}" in refused(2, 1)


def test_a_gpu_that_is_hidden_is_said(alone):
    alone.setattr(torch.cuda, "device_count", lambda: 1)
    os.environ |= {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1",
                   "CUDA_VISIBLE_DEVICES": "0"}
    said = refused(2, 1, "cuda")
    assert "process 1 of this machine needs a GPU of its own, and sees 1 (CUDA_VISIBLE_DEVICES=0)" in said
    assert "not by --gpus-per-task" in said


def test_a_task_of_srun_is_a_rank(alone):
    os.environ |= step()
    alone.setattr(collectives, "_meet", lambda backend: None)
    collectives.start(devices=2, nodes=2, device="cpu")
    assert {name: os.environ[name] for name in VARIABLES} == {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1",
        "MASTER_ADDR": "gpu07", "MASTER_PORT": str(15000 + (17 * 123456 + 2) % 10000)}


def test_a_step_of_another_number_of_tasks_is_refused_with_the_command(alone):
    os.environ |= step()
    for devices, nodes in ((1, 1), (4, 1), (1, 4), (4, 2)):
        said = refused(devices, nodes)
        assert "this step of srun has 4 tasks on 2 machines; trainer.devices=" in said
        assert f"want {devices} on each of {nodes}: run `srun --nodes={nodes} --ntasks-per-node={devices} sh " in said
    os.environ |= step(SLURM_LOCALID="2")  # three tasks here, one there
    assert "want 2 on each of 2" in refused(2, 2)


def test_a_shell_of_slurm_is_no_rank(alone):
    """In a batch script the variables of a task are set, but not those of a step; a shell by srun is a step of one."""
    batch = {name: value for name, value in step(SLURM_PROCID="0", SLURM_LOCALID="0").items() if "STEP" not in name}
    for variables in (batch, step(SLURM_STEP_NUM_TASKS="1", SLURM_STEP_NUM_NODES="1")):
        os.environ |= variables
        collectives.start(devices=1, nodes=1, device="cpu")
        assert "RANK" not in os.environ and collectives.world_size() == 1
        assert "make 2 processes, 1 was started: run `sh train.sh" in refused(2, 1)


def test_torchrun_within_a_step_has_the_say(alone):
    os.environ |= step() | {"WORLD_SIZE": "3"}
    assert "make 2 processes, 3 were started" in refused(2, 1)


def test_lightning_takes_no_shell_of_slurm_for_its_cluster(alone, benchmark_root, tmp_path):
    os.environ |= {name: value for name, value in step(SLURM_JOB_NAME="train").items() if "STEP" not in name}
    handler = signal.getsignal(signal.SIGUSR1)
    go(benchmark_root, tmp_path / "run", teacher=None, loss=partial(RDCD, queue_size=16, relational_weight=0),
       trainer=settings(epochs=1, validate_every=0))
    assert (tmp_path / "run" / "run.json").is_file() and signal.getsignal(signal.SIGUSR1) == handler


def test_a_batch_that_does_not_divide_is_said(benchmark_root, tmp_path):
    done = launch(tmp_path, f"data.root={benchmark_root}", *[word for word in WORDS if "batch_size" not in word],
                  "data.batch_size=7", "teacher.batch_size=8")
    said = "data.batch_size=7 is of all devices together and does not divide over 2: take a multiple, such as 8"
    assert done.returncode and said in done.stderr and "run folder" not in done.stdout


def test_odd_shares_are_not_mixed(benchmark_root, tmp_path, monkeypatch):
    monkeypatch.setattr(launcher, "check_pairs", lambda share, ranks: check_pairs(share, ranks=2))
    mixing = partial(SSCD, mixup=0.5)
    options = {"teacher": None, "trainer": settings(epochs=1, validate_every=0), "baselines": []}
    with pytest.raises(UserError, match="data.batch_size=14 gives 7 pictures to each of 2 processes"):
        go(benchmark_root, tmp_path / "run", data={"batch_size": 7}, loss=mixing, **options)
    odd = replace(here(), batch_size=7, loss=mixing)
    with pytest.raises(UserError, match="data.batch_size=14 gives 7 pictures to each of 2 processes"):
        go(benchmark_root, tmp_path / "run", **options | {"teacher": odd})
    assert not (tmp_path / "run").exists()


def two_runs(rank, folder, port):
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": port}
    for run in ("first", "second"):
        collectives.start(devices=2, nodes=1, device="cpu")
        assert collectives.gather_objects(f"{rank} {run}") == [f"0 {run}", f"1 {run}"]
        if rank == 0:
            time.sleep(0.7)  # it measures
            (folder / run).touch()
        collectives.stop()
        assert (folder / run).exists() and collectives.world_size() == 1


def test_at_the_end_of_each_run_all_wait_for_the_first(alone, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    start = "spawn" if torch.cuda.is_available() else "fork"
    mp.start_processes(two_runs, args=(tmp_path, port), nprocs=2, start_method=start)
    assert {path.name for path in tmp_path.iterdir()} == {"first", "second"}


def test_an_error_that_others_have_gone_is_told_from_one_of_this_process():
    lost = RuntimeError("[/a/gloo/transport/tcp/pair.cc:5] Connection closed by peer [127.0.0.1]:7. This is typical\nx")
    assert collectives.left_alone(lost) and not collectives.left_alone(RuntimeError("CUDA out of memory"))
    said = str(collectives.LeftAlone(lost))
    assert said.endswith("another has ended or no longer answers (Connection closed by peer [127.0.0.1]:7)")


def test_alone_there_is_one_rank():
    collectives.stop()
    collectives.start(devices=1, nodes=1, device="cpu")
    assert (collectives.rank(), collectives.world_size(), collectives.first_says("x")) == (0, 1, "x")
