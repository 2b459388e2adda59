"""The sbatch script of docs/multi-node.md, with stand-ins for SLURM: begun, told to end, requeued, finished."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["data.size=32", "data.test_size=32", "data.batch_size=8", "data.workers=1", "trainer.accelerator=cpu",
         "trainer.threads=1", "trainer.validate_every=0", "trainer.log_every=1", "trainer.checkpoint_every=2",
         "student.trunk=test_efficientnet", "student.dim=8", "teacher=none", "loss.relational_weight=0",
         "loss.queue_size=16", "augment=simclr", "protocol.codecs=[Flat]", "baselines=[]"]

# Starts the tasks of a step on nodes that are all this machine; passes SIGUSR1 on; where one fails, ends the others.
SRUN = r"""#!/bin/bash
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=$SLURM_NTASKS SLURM_STEP_NUM_NODES=$SLURM_NNODES
export SLURM_STEP_NODELIST=$SLURM_NODELIST
pids=()
for ((n = 0; n < SLURM_NTASKS; n++)); do
    export SLURM_PROCID=$n SLURM_LOCALID=$((n % SLURM_NTASKS_PER_NODE)) SLURM_NODEID=$((n / SLURM_NTASKS_PER_NODE))
    "$@" &
    pids+=($!)
done
trap 'kill -USR1 "${pids[@]}"' USR1
highest=0
for pid in "${pids[@]}"; do
    while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done
    wait "$pid"
    code=$?
    ((code == 0)) || kill "${pids[@]}" 2>/dev/null
    ((code <= highest)) || highest=$code
done
exit $highest
"""
SCONTROL = r"""#!/bin/bash
echo "$*" >>"$ASKED"
"""


@pytest.fixture(scope="module")
def text():
    document = (ROOT / "docs" / "multi-node.md").read_text(encoding="utf-8")
    script, = re.findall(r"^```bash\n(#!/bin/bash\n.*?)^```", document, flags=re.M | re.S)
    return script


class Cluster:
    """A checkout on a machine where `srun` and `scontrol` are stand-ins, and what sbatch does."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder, self.script, self.asked = folder, folder / "train.sbatch", folder / "asked"
        self.script.write_text(text)
        for name in ("train.sh", "scripts", "rdcd", "configs", "requirements.txt", "pyproject.toml", "setup.py"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "bin").mkdir()
        for name, source in (("srun", SRUN), ("scontrol", SCONTROL)):
            (folder / "bin" / name).write_text(source)
            (folder / "bin" / name).chmod(0o755)
        self.said = ""

    def start(self, *words: str, nodes: int = 2, tasks: int = 1, restarts: int = 0) -> subprocess.Popen:
        known = {key: value for key, value in os.environ.items()
                 if not key.startswith(("SLURM_", "PET_", "MASTER_", "WORLD_"))}
        return subprocess.Popen(
            ["bash", str(self.script), *words], cwd=self.folder, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True, env=known | {
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "ASKED": str(self.asked),
                "RDCD_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "rdcd",
                "SLURM_NNODES": str(nodes), "SLURM_NTASKS_PER_NODE": str(tasks), "SLURM_NTASKS": str(nodes * tasks),
                "SLURM_NODELIST": "localhost,other", "SLURM_CPUS_PER_TASK": "1", "SLURM_RESTART_COUNT": str(restarts),
                "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"})  # which a batch shell has, too

    def end(self, job: subprocess.Popen) -> int:
        self.said = job.communicate(timeout=300)[0]
        return job.returncode


@pytest.fixture
def cluster(tmp_path, text):
    return Cluster(tmp_path, text)


def test_the_script_is_sound_and_its_numbers_come_first(text):
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    lines = text.splitlines()
    options = [line for line in lines if line.startswith("#SBATCH")]
    assert lines[1:1 + len(options)] == options
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", line) for line in options)
    assert {"#SBATCH --requeue", "#SBATCH --open-mode=append", "#SBATCH --signal=B:USR1@120"} <= set(options)


def test_a_job_whose_time_is_over_is_requeued_and_finishes(cluster, benchmark_root):
    run = cluster.folder / "runs" / "job-4711"
    words = [f"data.root={benchmark_root}", *WORDS, "trainer.epochs=10"]
    job = cluster.start(*words)
    last = run / "checkpoints" / "last.ckpt"
    while not last.is_file():
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    # of a task by itself, or of one that srun ended along
    assert cluster.end(job) in (128 + signal.SIGUSR1, 128 + signal.SIGTERM), cluster.said
    assert cluster.asked.read_text() == "requeue 4711\n"
    step = torch.load(last, weights_only=True)["global_step"]
    assert f"stopped by SIGUSR1 after step {step}" in cluster.said and step < 30
    assert "Traceback" not in cluster.said and "torch.distributed.run" not in cluster.said

    assert cluster.end(cluster.start(*words, restarts=1)) == 0, cluster.said
    assert cluster.said.count("continuing from") == cluster.said.count("done in") == 1
    assert torch.load(last, weights_only=True)["global_step"] == 30
    assert cluster.asked.read_text() == "requeue 4711\n" and (run / "run.json").is_file()
    assert [path.name for path in (cluster.folder / "runs").iterdir()] == ["job-4711"]


def test_a_job_that_fails_is_not_requeued(cluster, benchmark_root):
    assert cluster.end(cluster.start("data.root=nowhere", *WORDS)) in (2, 128 + signal.SIGTERM), cluster.said
    assert "data.root=nowhere" in cluster.said and not cluster.asked.exists()
