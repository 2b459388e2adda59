"""What only a GPU can show: each test is skipped without one."""

import json
import math
import time
from functools import partial

import pytest
import torch
from test_nonfinite import fill, spoiled
from tiny_runs import VIEWS, Breaks, go, rows, same_weights, settings

from rdcd.augment.recipes import simclr
from rdcd.bench.bare import Bare
from rdcd.errors import UserError
from rdcd.models.student import Student
from rdcd.models.teacher import Teacher
from rdcd.training.clock import Clock
from rdcd.training.launch import TeacherFile
from rdcd.training.module import CopyDetection, Optimization
from rdcd.training.objectives import RDCD, SSCD

pytestmark = pytest.mark.gpu


def losses(run):
    return [float(row["train/loss"]) for log in sorted(run.glob("logs/csv/*")) for row in rows(log)
            if row["train/loss"]]


@pytest.fixture
def exact_products():
    """Convolutions in fp32 as on a CPU: by default a GPU rounds their factors to TF32's 10 bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def test_the_same_run_as_on_a_cpu(benchmark_root, plain_run, tmp_path, exact_products):
    run = go(benchmark_root, tmp_path / "run", teacher=TeacherFile(str(plain_run / "teacher")),
             trainer=settings(accelerator="gpu"))
    assert losses(run) == pytest.approx(losses(plain_run), rel=0.02)
    assert json.loads((run / "timing.json").read_text())["provenance"]["device"] == torch.cuda.get_device_name()


@pytest.mark.parametrize("changes", [{"precision": "bf16-mixed"}, {"precision": "16-mixed"}, {"compile": True},
                                     {"precision": "bf16-mixed", "compile": True}], ids=str)
def test_runs_in_every_precision_and_compiled(benchmark_root, plain_run, tmp_path, changes):
    run = go(benchmark_root, tmp_path / "run", teacher=TeacherFile(str(plain_run / "teacher")),
             trainer=settings(accelerator="gpu", **changes))
    found = losses(run)
    assert len(found) == 6 and all(map(math.isfinite, found)) and found == pytest.approx(losses(plain_run), rel=0.1)
    ours, theirs = (torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
                    for folder in (run, plain_run))
    assert ours.keys() == theirs.keys() and all(ours[key].dtype == theirs[key].dtype for key in ours)


def test_an_interrupted_run_continues(benchmark_root, plain_run, tmp_path, exact_products):
    options = {"teacher": TeacherFile(str(plain_run / "teacher")), "trainer": settings(accelerator="gpu")}
    whole = go(benchmark_root, tmp_path / "whole", **options)
    with pytest.raises(ZeroDivisionError):
        go(benchmark_root, tmp_path / "run", augment=Breaks(VIEWS + 20), **options)
    assert same_weights(whole, go(benchmark_root, resume=str(tmp_path / "run"), **options), atol=1e-3)


def test_queues_are_on_the_gpu_and_hold_the_teachers_features(exact_products):
    torch.manual_seed(0)
    student = Student(trunk="test_efficientnet", dim=5, kd_dim=7)
    objective = RDCD(student, Teacher(Student(trunk="test_efficientnet", dim=None, kd_dim=7)), queue_size=8)
    student.cuda(), objective.cuda().train()
    views = torch.rand(2, 4, 3, 32, 32, device="cuda")
    outcome = objective(student, *views, torch.arange(4, device="cuda"))
    outcome.total.backward()
    outcome.remember()
    assert objective.teacher_queue.features.is_cuda and objective.teacher_queue.filled == 4
    with torch.no_grad():
        again = objective.teacher(views[0])
    torch.testing.assert_close(objective.teacher_queue.features[:4], again, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", [partial(RDCD, queue_size=10), SSCD])
def test_the_bare_loop_runs_in_half_precision(loss):
    torch.manual_seed(0)
    student = Student(trunk="test_efficientnet", dim=5, kd_dim=7)
    teacher = Teacher(Student(trunk="test_efficientnet", dim=None, kd_dim=7))
    bare = Bare(student, loss(student, teacher), device="cuda", batch_size=6, total_steps=4, warmup_steps=1,
                channels_last=True, settings=settings(accelerator="gpu", precision="bf16-mixed",
                                                      optimization=Optimization(lr=0.02)))
    start = student.trunk.conv_stem.weight.clone()
    batch = {name: torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8) for name in ("query", "key")}
    for _ in range(3):
        bare.step(batch | {"index": torch.arange(6)})
    assert student.trunk.conv_stem.weight.isfinite().all() and not torch.equal(start, student.trunk.conv_stem.weight)


def test_the_clock_counts_what_the_gpu_does_without_waiting_for_it():
    clock, matrix = Clock("cuda"), torch.rand(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    start = time.perf_counter()
    with clock.part("products"):
        for _ in range(50):
            matrix = (matrix @ matrix).clamp_(0, 1)
    asked = time.perf_counter() - start
    counted = clock.seconds()["products"]  # waits
    assert counted <= time.perf_counter() - start and counted > asked


def test_a_loss_that_is_not_finite_is_kept(benchmark_root, plain_run, tmp_path, monkeypatch):
    spoiled(monkeypatch, step=4, spoil=lambda module: fill(module.student.projector.weight))
    with pytest.raises(UserError, match="not finite at step 4 on rank 0: contrastive"):
        go(benchmark_root, tmp_path / "run", teacher=TeacherFile(str(plain_run / "teacher")),
           trainer=settings(accelerator="gpu", precision="bf16-mixed"))
    assert (tmp_path / "run" / "nonfinite-step4-rank0.pt").is_file()


def never_waiting(method):
    """Return a method of `CopyDetection` that may not wait for the GPU in step 3, which is not logged."""
    def call(self, *words):
        torch.cuda.set_sync_debug_mode("error" if self.global_step == 3 else "default")
        try:
            return method(self, *words)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return call


def test_a_step_that_is_not_logged_never_waits_for_the_gpu(benchmark_root, plain_run, tmp_path, monkeypatch):
    """What waits between forward and backward pass leaves the GPU idle, in every step."""
    for name in ("training_step", "on_after_backward"):
        monkeypatch.setattr(CopyDetection, name, never_waiting(getattr(CopyDetection, name)))
    go(benchmark_root, tmp_path / "run", teacher=TeacherFile(str(plain_run / "teacher")), data={"workers": 1},
       trainer=settings(accelerator="gpu", log_every=3, validate_every=0))


def test_views_finished_on_the_gpu_train_the_same_and_never_wait(benchmark_root, plain_run, tmp_path, monkeypatch,
                                                                 exact_products):
    monkeypatch.setattr(CopyDetection, "training_step", never_waiting(CopyDetection.training_step))
    runs = [go(benchmark_root, tmp_path / f"run {device}", teacher=TeacherFile(str(plain_run / "teacher")),
               augment=simclr(32, device=device), data={"workers": 1},
               trainer=settings(accelerator="gpu", log_every=3, validate_every=0)) for device in (None, "cuda")]
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=0.1)
