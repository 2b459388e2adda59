"""Runs that were interrupted end like whole ones; runs of one seed are equal."""

import json
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import VIEWS, Breaks, go, rows, same_weights, settings
from zoo_checkpoints import synthetic_checkpoint

from rdcd.errors import UserError
from rdcd.evaluation.protocols import Protocol
from rdcd.evaluation.runs import run_models
from rdcd.models.student import Student
from rdcd.models.weights import load_student, save_student
from rdcd.models.zoo import ZooTeacher
from rdcd.training.checkpoints import AtomicCheckpointIO
from rdcd.training.launch import TeacherFile
from rdcd.training.module import CopyDetection, Optimization
from rdcd.training.objectives import RDCD
from rdcd.training.optim import schedule_factor


@pytest.mark.parametrize("views, stage", [(VIEWS + 20, "teacher"), (3 * VIEWS + 20, "student")])
def test_interrupted_run_continues_to_the_same_weights(benchmark_root, plain_run, tmp_path, views, stage):
    """Stopped in the second epoch of either stage, then resumed: as if nothing had happened."""
    folder = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        go(benchmark_root, folder, augment=Breaks(views))
    assert not (folder / "student.safetensors").exists()
    teacher = folder / "teacher" / "student.safetensors"
    assert teacher.exists() == (stage == "student")
    untouched = teacher.stat().st_mtime_ns if teacher.exists() else None
    augment = Breaks({"teacher": 3, "student": 1}[stage] * VIEWS)  # enough for what is left, and no more
    assert go(benchmark_root, resume=str(folder), augment=augment) == folder
    assert same_weights(folder / "teacher", plain_run / "teacher") and same_weights(folder, plain_run)
    assert untouched in (None, teacher.stat().st_mtime_ns)
    first, second = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
                     for run in (folder, plain_run))
    assert all(torch.allclose(first[key].float(), second[key].float(), atol=1e-5) for key in second)
    for ours, theirs in zip(rows(folder), rows(plain_run), strict=True):
        assert float(ours["uAP"]) == pytest.approx(float(theirs["uAP"]), abs=1e-6)


def test_finished_run_resumed_stays_as_it_is(benchmark_root, plain_run, tmp_path):
    folder = shutil.copytree(plain_run, tmp_path / "run")
    go(benchmark_root, resume=str(folder), augment=Breaks(0))
    assert same_weights(folder, plain_run, atol=0) and rows(folder) == rows(plain_run)


def test_same_seed_same_numbers_and_another_seed_others(benchmark_root, plain_run, tmp_path):
    again = go(benchmark_root, tmp_path / "again")
    assert (again / "metrics.csv").read_bytes() == (plain_run / "metrics.csv").read_bytes()
    assert same_weights(again, plain_run, atol=0)
    other = go(benchmark_root, tmp_path / "other", seed=5, teacher=TeacherFile(str(plain_run / "teacher")),
               trainer=settings(epochs=1))
    first, second = (load_file(folder / "untrained.safetensors") for folder in (other, plain_run))
    assert not torch.equal(first["fc.weight"], second["fc.weight"])


@pytest.mark.parametrize("validate_every", [0, 5])
def test_every_epoch_leaves_a_checkpoint(benchmark_root, plain_run, tmp_path, validate_every):
    """Also where validation comes later, or never: an interrupted run loses one epoch at most."""
    run = go(benchmark_root, tmp_path / "run", trainer=settings(epochs=2, validate_every=validate_every),
             teacher=TeacherFile(str(plain_run / "teacher")))
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6


def test_interruption_by_the_keyboard_passes_through(benchmark_root, plain_run, tmp_path, monkeypatch):
    """Lightning turns it into an exit with code 1 and silences later ones; the command line expects it."""
    monkeypatch.setattr("signal.signal", lambda *words: None)
    augment = Breaks(VIEWS + 20, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        go(benchmark_root, tmp_path / "run", teacher=TeacherFile(str(plain_run / "teacher")), augment=augment)
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_run_whose_checkpoints_are_all_cut_short_is_refused(benchmark_root, plain_run, tmp_path):
    folder = shutil.copytree(plain_run, tmp_path / "run")
    for checkpoint in (folder / "checkpoints").glob("*.ckpt"):
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(UserError, match=".ckpt .1,000 bytes. is not a readable checkpoint"):
        go(benchmark_root, resume=str(folder), augment=Breaks(0))


def test_muon_continues_like_the_others(benchmark_root, plain_run, tmp_path):
    options = {"teacher": TeacherFile(str(plain_run / "teacher")),
               "trainer": settings(optimization=Optimization(algorithm="muon", lr=0.05, warmup_epochs=0.0))}
    whole = go(benchmark_root, tmp_path / "whole", **options)
    with pytest.raises(ZeroDivisionError):
        go(benchmark_root, tmp_path / "cut", augment=Breaks(VIEWS + 20), **options)
    assert same_weights(whole, go(benchmark_root, resume=str(tmp_path / "cut"), **options))
    assert not same_weights(whole, plain_run)


def test_dropout_and_stochastic_depth_go_on_with_the_same_draws(benchmark_root, plain_run, tmp_path):
    student = partial(Student, trunk="efficientnet_b0", dim=8, kd_dim=None, drop_rate=0.2, drop_path_rate=0.2)
    options = {"teacher": TeacherFile(str(plain_run / "teacher")), "student": student, "trainer": settings(epochs=2)}
    whole = go(benchmark_root, tmp_path / "whole", **options)
    with pytest.raises(ZeroDivisionError):
        go(benchmark_root, tmp_path / "cut", augment=Breaks(VIEWS + 20), **options)
    assert same_weights(whole, go(benchmark_root, resume=str(tmp_path / "cut"), **options))


@pytest.mark.parametrize("algorithm", ["sgd", "adamw", "muon"])
def test_a_resumed_run_takes_the_settings_it_is_given(benchmark_root, plain_run, tmp_path, algorithm):
    """Lightning alone would go on with the optimizer settings of the checkpoint."""
    options = {"teacher": TeacherFile(str(plain_run / "teacher"))}

    def recipe(**changes):
        values = {"algorithm": algorithm, "lr": 0.005, "momentum": 0.9, "weight_decay": 1e-4, "warmup_epochs": 1.0}
        return settings(optimization=Optimization(**values | changes))

    with pytest.raises(ZeroDivisionError):
        go(benchmark_root, tmp_path / "run", augment=Breaks(VIEWS + 20), trainer=recipe(), **options)
    run = go(benchmark_root, resume=str(tmp_path / "run"),
             trainer=recipe(lr=0.5, momentum=0.5, weight_decay=0.25), **options)
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    (group,) = checkpoint["optimizer_states"][0]["param_groups"]
    assert group["initial_lr"] == pytest.approx(0.5 * 8 / 256) and group["weight_decay"] == 0.25
    assert group.get("momentum", 0.5) == 0.5
    rates = {int(row["step"]): float(row["train/lr"]) for log in sorted(run.glob("logs/csv/*"))
             for row in rows(log) if row.get("train/lr")}
    for step in (3, 4, 5):  # the second epoch
        assert rates[step] == pytest.approx(0.5 * 8 / 256 * schedule_factor(step, total=6, warmup=3)), step


def test_another_network_queue_or_batch_cannot_be_resumed(benchmark_root, plain_run, tmp_path):
    options = {"teacher": TeacherFile(str(plain_run / "teacher"))}
    with pytest.raises(ZeroDivisionError):
        go(benchmark_root, tmp_path / "run", augment=Breaks(VIEWS + 20), **options)
    for changes, said in (({"data": {"batch_size": 6}}, "last.ckpt was written at data.batch_size 8, this run has 6"),
                          ({"data": {"size": 40}}, "was written at data.size 32, this run has 40"),
                          ({"loss": partial(RDCD, queue_size=41)}, "does not fit this run's networks and queues"),
                          ({"student": partial(Student, trunk="test_efficientnet", dim=9, kd_dim=None)},
                           "does not fit this run's networks and queues")):
        with pytest.raises(UserError, match=said):
            go(benchmark_root, resume=str(tmp_path / "run"), **changes, **options)


def test_the_best_checkpoint_stays_the_best_after_a_resume(benchmark_root, plain_run, tmp_path, monkeypatch):
    """Also of the epoch whose checkpoint is the last."""
    scores = iter([0.1, 0.9, 0.5, 0.4])
    monkeypatch.setattr(CopyDetection, "on_validation_epoch_end",
                        lambda self: (self._extracted.clear(), self.log("val/uAP_SN", next(scores))))
    options = {"teacher": TeacherFile(str(plain_run / "teacher")), "trainer": settings(epochs=4)}
    with pytest.raises(ZeroDivisionError):
        go(benchmark_root, tmp_path / "run", augment=Breaks(2 * VIEWS + 20), **options)
    run = go(benchmark_root, resume=str(tmp_path / "run"), **options)
    assert torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 1
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 3


def test_a_checkpoint_cut_short_leaves_the_former_one(tmp_path, monkeypatch):
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"value": 1}, path)

    def cut(checkpoint, file):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", cut)
    with pytest.raises(OSError, match="no space"):
        AtomicCheckpointIO().save_checkpoint({"value": 2}, path)
    assert torch.load(path, weights_only=True) == {"value": 1} and list(path.parent.iterdir()) == [path]


def test_a_teacher_without_its_card_is_finished_again(benchmark_root, plain_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(plain_run, run)
    for left in (run / "student.safetensors", run / "student.json", run / "teacher" / "student.json"):
        left.unlink()
    go(benchmark_root, resume=str(run))
    assert same_weights(run / "teacher", plain_run / "teacher") and (run / "teacher" / "student.json").is_file()


def test_another_teacher_cannot_be_resumed(benchmark_root, plain_run, tmp_path):
    """Its features in the queue are not those of the one before."""
    given = {"teacher": TeacherFile(str(plain_run / "teacher")), "trainer": settings(epochs=1)}
    run = go(benchmark_root, tmp_path / "run", **given)
    other = shutil.copytree(plain_run / "teacher", tmp_path / "other")
    student, card = load_student(other / "student.safetensors")
    with torch.no_grad():
        student.fc.weight.mul_(1.01)
    save_student(other / "student.safetensors", student, size=32, card={"training": card["training"]})
    with pytest.raises(UserError, match="was written at a teacher with the hash .*, this run has"):
        go(benchmark_root, resume=str(run), **given | {"teacher": TeacherFile(str(other))})


def test_a_run_whose_teacher_has_moved_is_measured_without_it(benchmark_root, plain_run, tmp_path, capsys):
    path = tmp_path / "teacher.pt"
    synthetic_checkpoint("sscd_disc_mixup", None, path)
    run = go(benchmark_root, tmp_path / "run", teacher=ZooTeacher("sscd_disc_mixup", path=str(path)), student=None,
             baselines=["thumbnail"], protocol=Protocol(size=32))
    assert json.loads((run / "run.json").read_text())["models"]["teacher"] == f"sscd_disc_mixup:{path}"
    assert set(run_models(run)) == {"teacher", "thumbnail"}
    path.rename(tmp_path / "moved.pt")
    assert set(run_models(run)) == {"thumbnail"}
    assert f"teacher: {path} is gone; it is left out of the table" in capsys.readouterr().out
