"""What a stage says at its end."""

import json
import multiprocessing

import pytest
from tiny_runs import go, settings

from rdcd.training import summary
from rdcd.training.launch import TeacherFile

PARTS = {"data", "momentum", "student", "teacher", "losses", "backward", "optimizer", "logging", "validation",
         "checkpoints"}


def test_every_part_of_a_run_is_counted_once(benchmark_root, plain_run, tmp_path, capsys):
    run = go(benchmark_root, tmp_path / "run", teacher=TeacherFile(str(plain_run / "teacher")), trainer=settings())
    measured = json.loads((run / "timing.json").read_text())
    assert (measured["steps"], measured["first_step"], measured["batch_size"]) == (6, 0, 8)
    parts = measured["parts"]
    assert set(parts) == PARTS and all(value > 0 for value in parts.values())
    assert list(parts.values()) == sorted(parts.values(), reverse=True)
    assert sum(parts.values()) + measured["the_rest"] == pytest.approx(measured["seconds"], rel=1e-6)
    assert measured["images_per_s"] == pytest.approx(48 / (measured["seconds"] - parts["validation"]))
    assert measured["peak_bytes"]["process"] > 10**8 and measured["peak_bytes"]["gpu"] == 0
    assert measured["provenance"]["seed"] == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("student: ")]
    assert any(line.startswith("student: 6 steps of 8 in 0 min ") and "; peak memory " in line for line in lines)
    (shares,) = [line for line in lines if line.startswith("student: time: ")]
    assert all(summary.NAMES.get(name, name) in shares for name in parts)
    assert json.loads((plain_run / "teacher" / "timing.json").read_text())["label"] == "teacher"


def measured(**changes):
    return {"seconds": 125.0, "steps": 10, "batch_size": 8, "images_per_s": 64.2, "the_rest": 5.0, "processes": 1,
            "parts": {"backward": 100.0, "data": 20.0},
            "peak_bytes": {"process": 15 * 10**8, "loader_workers": 0, "gpu": 0}} | changes


def test_lines():
    assert summary.said(measured()) == [
        "10 steps of 8 in 2 min 5 s, 64 images/s; peak memory 1.5 GB",
        "time: backward 80%, waiting for data 16%, the rest 4%"]
    (line, _, hint) = summary.said(measured(processes=2, parts={"data": 26.0}, peak_bytes={
        "process": 10**9, "loader_workers": 2 * 10**9, "gpu": 3 * 10**9}))
    assert line.endswith("peak memory 1.0 GB, loader workers 2.0 GB, GPU 3.0 GB (of the largest of 2 processes)")
    assert "data.workers" in hint


def test_workers_that_live_are_counted():
    before = summary.peak_bytes("cpu")["loader_workers"]  # of loaders of other tests
    event = multiprocessing.Event()
    child = multiprocessing.Process(target=event.wait)
    child.start()
    try:
        assert summary.peak_bytes("cpu")["loader_workers"] > before + 10**6
    finally:
        event.set()
        child.join()
    assert summary._peak_of(child.pid) == 0
