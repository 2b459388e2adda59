import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rdcd.data import parallel
from rdcd.data.parallel import available_cores, keep_freed_memory, loader_workers, process_map, share_cores
from rdcd.errors import UserError


def test_workers_leave_cores_to_computing(monkeypatch):
    assert loader_workers(5, device="cpu") == 5 and loader_workers(0, device="cuda") == 0
    assert 1 <= available_cores()
    for cores, threads, expected in ((16, 4, 8), (8, 3, 5), (2, 1, 1), (1, 1, 1), (4, 8, 1)):
        monkeypatch.setattr(parallel, "available_cores", lambda: cores)
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        assert loader_workers(None, device="cpu") == expected
    monkeypatch.setattr(parallel, "available_cores", lambda: 6)
    assert loader_workers(None, device="cuda") == 6  # computing happens elsewhere
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")  # what torchrun says of the processes on this machine
    assert loader_workers(None, device="cuda") == 2


@pytest.mark.parametrize(("cores", "asked", "processes", "expected"), [
    (1, None, 1, 1), (2, None, 1, 1), (9, None, 1, 4), (2, 3, 1, 3), (9, None, 2, 2), (2, None, 3, 1), (2, 3, 3, 3)])
def test_half_the_cores_compute_on_a_cpu(monkeypatch, cores, asked, processes, expected):
    said = []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(parallel, "available_cores", lambda: cores)
    monkeypatch.setattr(torch, "set_num_threads", said.append)
    share_cores("cpu", threads=asked)
    share_cores("cuda", threads=asked)
    assert said == [expected]


def test_kept_memory_is_not_fetched_again():
    """Minor page faults of steps that each take 64 MB: thousands when every step fetches its memory anew."""
    code = ("import resource, sys, torch; from rdcd.data.parallel import keep_freed_memory\n"
            "if sys.argv[1] == 'keep': keep_freed_memory()\n"
            "def step(): torch.ones(16, 1024, 1024)\n"
            "for _ in range(10): step()\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
            "for _ in range(20): step()\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)")
    faults = {how: int(subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True,
                                      check=True).stdout) for how in ("keep", "plain")}
    if parallel.platform.libc_ver()[0] == "glibc":
        assert faults["keep"] * 10 < faults["plain"]
    else:
        assert faults["keep"] >= 0


def test_a_process_ends_though_loader_workers_are_left():
    """They do not listen to SIGTERM, by which Python ends what is left of its children before it waits for them."""
    code = ("from torch.utils.data import DataLoader; from rdcd.data.parallel import start_worker\n"
            "left = iter(DataLoader(range(9), num_workers=1, worker_init_fn=start_worker, persistent_workers=True))\n"
            "print(int(next(left)))\n"
            "left.itself, left = left, None  # nobody's any more, and found by no reference count\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "0\n", done.stderr


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(parallel.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(parallel.ctypes, "CDLL", lambda name: pytest.fail("called"))
    keep_freed_memory()


def test_results_come_in_order_and_fewer_than_one_process_is_refused():
    for workers in (1, 2):
        with process_map(workers) as run:
            assert list(run(abs, [-3, 2, -1], "numbers")) == [3, 2, 1]
    with pytest.raises(UserError, match="workers=0"):
        with process_map(0):
            pass


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells children of their parent's end on Linux")
def test_no_process_outlives_the_one_that_started_it(tmp_path):
    """Killed, that one cannot tell them to end."""
    program = tmp_path / "program.py"
    program.write_text("import os, time\n"
                       "from rdcd.data.parallel import process_map\n"
                       "def work(job):\n"
                       "    print(os.getpid(), flush=True)\n"
                       "    time.sleep(600)\n"
                       "if __name__ == '__main__':\n"
                       "    with process_map(2) as run:\n"
                       "        list(run(work, [0, 1], 'waiting'))\n")
    begun = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                             text=True)
    workers = [int(begun.stdout.readline()) for _ in range(2)]
    begun.kill()
    begun.wait()
    deadline = time.monotonic() + 60
    while any(map(runs, workers)):
        assert time.monotonic() < deadline, "a worker goes on"
        time.sleep(0.05)


def runs(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"
