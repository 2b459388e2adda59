"""What a person is told while a network trains."""

import csv
import re
from types import SimpleNamespace

import pytest
import torch
from tiny_runs import go, rows, settings

from rdcd.errors import BadImage, UserError
from rdcd.training.clock import Clock
from rdcd.training.console import BadFiles, Console
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


def bad(*names):
    return [BadImage(name, "cut short") for name in names]


def train(callback, seen, *lists):
    callback.on_train_batch_end(None, None, None, {"index": torch.arange(seen), "bad": list(lists)}, 0)


def test_bad_pictures_are_said_and_listed_once(tmp_path, capsys):
    callback = BadFiles(tmp_path, max_bad_share=0.1, epoch=24)
    for lists in ([], [bad("b")], [bad("a", "b"), bad("b")]):
        train(callback, 8, *lists)
    with pytest.raises(UserError, match=r"3 of 24 pictures .* data.max_bad_share=0.1 allows; the first: b \(cut short"):
        callback.on_train_epoch_end(None, None)
    with open(tmp_path / "bad_files.csv", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["path", "reason"], ["a", "cut short"], ["b", "cut short"]]
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and all("the next picture takes its place" in line for line in said)
    assert [path.name for path in tmp_path.iterdir()] == ["bad_files.csv"]


def test_no_bad_picture_no_ledger(tmp_path):
    callback = BadFiles(tmp_path, max_bad_share=0.1, epoch=8)
    train(callback, 8)
    callback.on_train_epoch_end(None, None)
    callback.on_validation_epoch_end(None, None)
    assert not list(tmp_path.iterdir())


def test_a_thousand_bad_pictures_are_not_a_thousand_lines(tmp_path, capsys):
    callback = BadFiles(tmp_path, max_bad_share=1, epoch=2000)
    for i in range(100):
        train(callback, 20, bad(*(f"{j:04d}" for j in range(10 * i, 10 * i + 12))))
    callback.on_train_epoch_end(None, None)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 11 and said[-1].startswith("further pictures that cannot be read are only listed")
    assert len(rows(tmp_path, "bad_files.csv")) == 1002


def test_the_rest_of_an_interrupted_epoch_is_not_judged_by_itself(tmp_path):
    train(BadFiles(tmp_path, max_bad_share=0.1, epoch=24), 20, bad("a"))
    resumed = BadFiles(tmp_path, max_bad_share=0.1, epoch=24, rank=0)
    train(resumed, 4, bad("b"))
    resumed.on_train_epoch_end(None, None)
    train(resumed, 24)
    resumed.on_train_epoch_end(None, None)
    assert [row["path"] for row in rows(tmp_path, "bad_files.csv")] == ["a", "b"]


def test_validation_has_a_ledger_of_its_own(tmp_path, capsys):
    callback = BadFiles(tmp_path, max_bad_share=0.1, epoch=24, rank=2)
    for number in range(2):
        unreadable = list(enumerate(bad("q")))
        callback.on_validation_batch_end(None, None, None, ([([1, 2, 3], None), ([4], None)], unreadable), 0, 0)
        callback.on_validation_batch_end(None, None, None, ([(list(range(5 - number)), None)], []), 0, 1)
        if number == 0:
            callback.on_validation_epoch_end(None, None)
    with pytest.raises(UserError, match="1 of 9 pictures"):
        callback.on_validation_epoch_end(None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["bad_files_evaluation-2.csv"]
    assert capsys.readouterr().out.count("it counts as missing") == 1
