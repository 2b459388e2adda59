"""What a person is told while a network trains."""

import csv
import re
from types import SimpleNamespace

import pytest
from tiny_runs import go, rows, settings

from rdcd.errors import BadImage
from rdcd.training.clock import Clock
from rdcd.training.console import Console, Ledger
from rdcd.training.launch import TeacherFile


def test_lines_of_a_run(benchmark_root, plain_run, tmp_path, capsys):
    run = go(benchmark_root, tmp_path / "run", teacher=TeacherFile(str(plain_run / "teacher")),
             trainer=settings(log_every=2))
    said = capsys.readouterr().out
    assert f"run folder: {run}\n" in said
    assert ("student: test_efficientnet, 0.10 M parameters, 8-d; 24 pictures, 2 epochs of 3 steps of 8, "
            "32 px") in said
    line = re.search(r"student: epoch 2/2, step 6/6, loss \d+\.\d{3}, (\d+) images/s, (\d+)% waiting for "
                     r"data, 0:00 left, µAP_SN 0\.\d{3}\n", said)
    assert line and int(line[1]) > 0 and 0 <= int(line[2]) <= 100
    log = [row for row in rows(next(run.glob("logs/csv/*/"))) if row.get("train/images_per_s")]
    assert len(log) == 3 and all(float(row["train/images_per_s"]) > 0 for row in log)
    assert all(0 <= float(row["train/data_wait"]) <= 1 for row in log)


def test_speed_and_time_left_leave_validation_out(monkeypatch, capsys):
    """Steps of 8 pictures and 2 s, 1 s of it waiting; after four of them, validation takes 100 s."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("rdcd.training.console.time", SimpleNamespace(monotonic=lambda: clock.now))
    logged = []
    module = SimpleNamespace(log_dict=logged.append, shown_loss=1.5, clock=Clock(), waited=0.0)
    trainer = SimpleNamespace(estimated_stepping_batches=10, global_step=0, is_global_zero=True,
                              current_epoch=0, max_epochs=1, log_every_n_steps=5,
                              callback_metrics={"train/loss": 1.5})
    console = Console("student", global_batch=8, every=7.0)
    console.on_train_start(trainer, module)
    for step in range(1, 7):
        clock.now += 2
        module.waited += 1
        trainer.global_step = step
        console.on_train_batch_end(trainer, module, None, None, step)
        if step == 4:
            console.on_validation_start(trainer, module)
            clock.now += 100
            console.on_validation_end(trainer, module)
    assert logged == [{"train/images_per_s": pytest.approx(4), "train/data_wait": pytest.approx(0.5)}]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == ("student: epoch 1/1, step 4/10, loss 1.500, 4 images/s, 50% waiting for data, "
                        "0:12 left")
    assert lines[1].endswith("step 5/10, loss 1.500, 4 images/s, 50% waiting for data, 0:10 left")


def test_bad_pictures_are_said_and_listed_once(tmp_path, capsys):
    ledger = Ledger(tmp_path / "bad_files.csv")
    first, second = BadImage("b.jpg", "cut short"), BadImage("a.jpg", "empty")
    for bad in ([], [first], [second, first]):
        ledger.on_train_batch_end(None, None, None, {"bad": bad}, 0)
    with open(tmp_path / "bad_files.csv", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["path", "reason"], ["a.jpg", "empty"], ["b.jpg", "cut short"]]
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and all("the next picture takes its place" in line for line in said)


def test_no_bad_picture_no_ledger(tmp_path):
    Ledger(tmp_path / "bad_files.csv").on_train_batch_end(None, None, None, {"bad": []}, 0)
    assert not list(tmp_path.iterdir())
