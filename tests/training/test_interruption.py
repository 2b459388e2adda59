"""Runs that are killed, or told to end, and continued: to the bit as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import go, rows, settings
from torch import nn

import rdcd
from rdcd.cli import main
from rdcd.data.views import EpochSampler
from rdcd.errors import UserError
from rdcd.models.student import Student
from rdcd.training.checkpoints import AtomicCheckpointIO, latest_sound
from rdcd.training.interruption import Stopped
from rdcd.training.launch import TeacherFile
from rdcd.training.module import CopyDetection
from rdcd.training.objectives import RDCD

ROOT = Path(rdcd.__file__).resolve().parent.parent


class Forgetful(Student):
    """A student whose every step draws random numbers."""

    def __init__(self, **options):
        super().__init__(**options)
        self.pool = nn.Sequential(self.pool, nn.Dropout(0.3))


STUDENT = partial(Forgetful, trunk="test_efficientnet", dim=8, kd_dim=None)


def train(root, teacher, folder, *, workers=0, **changes):
    """Three epochs of four steps, a checkpoint every three; its own folder is begun or continued."""
    return go(root, folder, **{"student": STUDENT, "teacher": TeacherFile(str(teacher)), "resume": "auto",
                               "data": {"batch_size": 6, "workers": workers}, "loss": partial(RDCD, queue_size=17),
                               "trainer": settings(epochs=3, checkpoint_every=3, validate_every=2),
                               "baselines": []} | changes)


def in_a_process(work):
    """Do `work` in a process of its own; return how it ended: its exit code, or minus the signal."""
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            work()
            code = 0
        except UserError as error:
            code = error.code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(step, place):
    """Patch this process so that it is killed at `step`: in its forward pass, after its optimizer's step, within the
    writing of its checkpoint, or between the two renames after that."""
    def die(*words, **named):
        os.kill(os.getpid(), signal.SIGKILL)

    if place == "forward":
        whole = CopyDetection.training_step
        CopyDetection.training_step = lambda self, *words: (die if self.global_step == step else whole)(self, *words)
    elif place == "optimizer":
        after = CopyDetection.optimizer_step

        def optimizer_step(self, *words, **named):
            after(self, *words, **named)
            if self.global_step == step + 1:
                die()

        CopyDetection.optimizer_step = optimizer_step
    else:
        save, replace = torch.save, os.replace

        def half(checkpoint, file):
            if checkpoint["global_step"] < step:
                return save(checkpoint, file)
            if place == "writing":
                file.write(b"half")
                file.flush()
                die()
            os.replace = lambda *words: (replace(*words), die())
            save(checkpoint, file)

        torch.save = half


def state(run):
    """Everything that a run leaves and another run must leave to the bit."""
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return {"weights": load_file(run / "student.safetensors"), "module": last["state_dict"],
            "optimizer": last["optimizer_states"], "schedule": last["lr_schedulers"], "random": last["random"],
            "place": last["DataModule"], "step": last["global_step"], "table": rows(run)}


def equal(first, second):
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second


@pytest.fixture(scope="module")
def teacher(plain_run):
    return plain_run / "teacher"


@pytest.fixture(scope="module")
def whole(benchmark_root, teacher, tmp_path_factory):
    """The run that nothing interrupts."""
    return train(benchmark_root, teacher, tmp_path_factory.mktemp("runs") / "whole")


@pytest.mark.parametrize(("workers", "kills"), [
    (0, [(2, "forward"), (4, "forward"), (7, "optimizer"), (11, "forward")]),
    (2, [(5, "optimizer"), (6, "writing"), (9, "renaming")]),
    (1, [(10, "forward")])])
def test_a_run_killed_again_and_again_ends_to_the_bit_like_a_whole_one(benchmark_root, teacher, whole, tmp_path,
                                                                       workers, kills):
    run = tmp_path / "run"
    for kill in kills:
        def killed(kill=kill):
            killed_at(*kill)
            train(benchmark_root, teacher, run, workers=workers)

        assert in_a_process(killed) == -signal.SIGKILL, kill
        assert not (run / "student.safetensors").exists()
    assert in_a_process(lambda: train(benchmark_root, teacher, run, workers=workers)) == 0
    assert equal(state(run), state(whole))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("step", [1, 3, 11])  # within an epoch, its last, the last of all
def test_a_signal_leaves_a_checkpoint_of_the_step_under_way(benchmark_root, teacher, whole, tmp_path, number, step):
    run = tmp_path / "run"

    def told():
        forward = CopyDetection.training_step

        def training_step(self, *words):
            if self.global_step == step:
                os.kill(os.getpid(), number)
            return forward(self, *words)

        CopyDetection.training_step = training_step
        train(benchmark_root, teacher, run)

    assert in_a_process(told) == 128 + number
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == step + 1
    assert in_a_process(lambda: train(benchmark_root, teacher, run)) == 0
    assert equal(state(run), state(whole))


def test_a_signal_while_validating_stops_there(benchmark_root, teacher, whole, tmp_path):
    run = tmp_path / "run"

    def told():
        forward = CopyDetection.validation_step
        CopyDetection.validation_step = lambda self, *words: (os.kill(os.getpid(), signal.SIGTERM),
                                                              forward(self, *words))[1]
        train(benchmark_root, teacher, run)

    assert in_a_process(told) == 128 + signal.SIGTERM
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 8
    assert in_a_process(lambda: train(benchmark_root, teacher, run)) == 0
    assert equal(state(run)["module"], state(whole)["module"])


def test_what_it_says_names_step_and_remedy(tmp_path):
    said = Stopped(signal.SIGUSR1, step=7, run=tmp_path)
    assert str(said) == (f"stopped by SIGUSR1 after step 7, which {tmp_path} holds: `rdcd train resume={tmp_path}` "
                         f"continues")
    assert said.code == 138


def test_a_command_killed_at_any_moment_goes_on(benchmark_root, teacher, tmp_path):
    """A real command line, killed by another process at moments that nobody chose; both ways to continue it."""
    options = [f"data.root={benchmark_root}", "data.size=32", "data.test_size=32", "data.batch_size=6",
               "data.workers=1", "trainer.epochs=12", "trainer.validate_every=0", "trainer.checkpoint_every=3",
               "trainer.accelerator=cpu", "trainer.threads=1", "trainer.log_every=1", "augment=simclr",
               "student.trunk=test_efficientnet", "student.dim=8", "teacher=file", f"teacher.path={teacher}",
               "loss.queue_size=17", "baselines=[]", "protocol.codecs=[Flat]"]

    def command(run, *further):
        return subprocess.Popen([sys.executable, "-m", "rdcd", "train", *further], stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True, cwd=tmp_path, env=os.environ | {
                                    "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})

    def last_step(run):
        try:
            return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
        except FileNotFoundError:  # none yet, or it is just becoming the previous one
            return 0

    whole, run = tmp_path / "whole", tmp_path / "run"
    steps, auto = [], [*options, f"run_dir={run}", "resume=auto"]
    begun = command(run, *auto)
    for again in (auto, [f"resume={run}"]):
        before = last_step(run)
        while begun.poll() is None and last_step(run) < before + 6:
            time.sleep(0.01)
        begun.kill()
        begun.communicate()
        steps.append(last_step(run))
        begun = command(run, *again)
    said, _ = begun.communicate()
    assert begun.returncode == 0, said
    assert 0 < steps[0] < steps[1] < 48, steps
    assert "student: continuing from" in said
    assert in_a_process(lambda: main(["train", *options, f"run_dir={whole}"])) == 0
    assert equal(state(run), state(whole))


def test_a_checkpoint_cut_short_is_skipped_with_a_warning(benchmark_root, teacher, whole, tmp_path, capsys):
    run = tmp_path / "run"

    def killed():
        killed_at(7, "forward")
        train(benchmark_root, teacher, run)

    in_a_process(killed)
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    train(benchmark_root, teacher, run)
    assert equal(state(run), state(whole))
    said = capsys.readouterr()
    assert "warning: " in said.err and "last.ckpt" in said.err and "it may be truncated" in said.err
    assert "it is now called last.ckpt.damaged, and previous.ckpt, after step 4, takes its place" in said.err
    assert (run / "checkpoints" / "last.ckpt.damaged").is_file()


def test_without_a_sound_checkpoint_nothing_is_begun_anew(tmp_path):
    for name in ("last.ckpt", "previous.ckpt"):
        (tmp_path / name).write_bytes(b"half of one")
    with pytest.raises(UserError, match="last.ckpt .* is not a readable checkpoint"):
        latest_sound(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "previous.ckpt"}
    assert latest_sound(tmp_path / "nothing") is None


def test_the_checkpoint_of_most_steps_is_the_latest(tmp_path):
    card = {"architecture": {}, "preprocessing": {"size": 32}}
    for name, step in (("best.ckpt", 5), ("last.ckpt", 5), ("previous.ckpt", 4)):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "card": card, "global_step": step}, tmp_path / name)
    (tmp_path / ".last.77.partial.ckpt").write_bytes(b"half")
    assert latest_sound(tmp_path) == tmp_path / "last.ckpt"
    assert not (tmp_path / ".last.77.partial.ckpt").exists()


def test_the_last_checkpoint_becomes_the_previous_one(tmp_path):
    for step in range(3):
        AtomicCheckpointIO().save_checkpoint({"step": step}, tmp_path / "last.ckpt")
        AtomicCheckpointIO().save_checkpoint({"step": step}, tmp_path / "best.ckpt")
    kept = {path.name: torch.load(path, weights_only=True)["step"] for path in tmp_path.iterdir()}
    assert kept == {"last.ckpt": 2, "previous.ckpt": 1, "best.ckpt": 2}


def test_a_folder_that_holds_no_run_is_not_continued(benchmark_root, teacher, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        train(benchmark_root, teacher, tmp_path / "other")


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("begin", [(0, 0), (0, 3), (2, 1)])
def test_the_order_of_pictures_goes_on_where_it_ended(ranks, begin):
    def order(epochs, **options):
        sampler = EpochSampler(37, batch_size=3, seed=5, rank=ranks - 1, world_size=ranks, **options)
        keys = []
        for epoch in epochs:
            sampler.set_epoch(epoch)
            keys += list(sampler)
        return keys

    whole = order(range(4))
    done = (begin[0] * (37 // (3 * ranks)) + begin[1]) * 3
    assert order(range(begin[0], 4), begin=begin) == whole[done:]
    untold = EpochSampler(37, batch_size=3, seed=5, rank=ranks - 1, world_size=ranks, begin=begin)  # by no set_epoch
    assert list(untold) == whole[done:(begin[0] + 1) * len(untold)]
