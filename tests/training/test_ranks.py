"""Several processes on the CPU as torchrun starts them: one run folder, one table, every picture once."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rdcd
from rdcd.errors import UserError
from rdcd.models.weights import load_student
from rdcd.training import collectives

ROOT = Path(rdcd.__file__).resolve().parent.parent
WORDS = ["data.size=32", "data.test_size=32", "data.batch_size=8", "data.workers=0", "trainer.epochs=1",
         "trainer.validate_every=1", "trainer.log_every=1", "trainer.accelerator=cpu", "trainer.threads=1",
         "student.trunk=test_efficientnet", "teacher.student.trunk=test_efficientnet", "student.dim=8",
         "teacher.student.kd_dim=12", "teacher.trainer.epochs=1", "teacher.batch_size=8", "loss.queue_size=40",
         "protocol.codecs=[Flat]", "trainer.devices=2"]


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


def test_other_numbers_of_processes_are_refused_with_the_command(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UserError, match="make 4 processes, 1 was started: run `torchrun --standalone "
                                        "--nproc_per_node 4 -m rdcd train …`, or `sh train.sh "
                                        "trainer.devices=4 …`"):
        collectives.start(devices=4, nodes=1, device="cpu")
    with pytest.raises(UserError, match="make 16 processes.*torchrun --nnodes 2 .*--rdzv_endpoint HOST:29500 "
                                        "--nproc_per_node 8"):
        collectives.start(devices=8, nodes=2, device="cpu")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="make 1 processes, 3 were started: run `python -m rdcd train …`"):
        collectives.start(devices=1, nodes=1, device="cpu")


def test_a_batch_that_does_not_divide_is_said(benchmark_root, tmp_path):
    done = launch(tmp_path, f"data.root={benchmark_root}", *[word for word in WORDS if "batch_size" not in word],
                  "data.batch_size=7", "teacher.batch_size=8")
    assert done.returncode and "data.batch_size=7 is of all devices together and does not divide over 2" in done.stderr


def test_alone_there_is_one_rank():
    collectives.start(devices=1, nodes=1, device="cpu")
    assert (collectives.rank(), collectives.world_size(), collectives.first_says("x")) == (0, 1, "x")
