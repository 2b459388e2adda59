"""`rdcd bench step` at the smallest scale: what it compares is the same, and what its file says."""

import json
from collections.abc import Iterator
from functools import partial

import pytest
from pytorch_lightning.loggers import CSVLogger

from rdcd.augment.recipes import simclr
from rdcd.bench import step
from rdcd.bench.step import bench_step
from rdcd.errors import UserError
from rdcd.models.student import Student
from rdcd.training.datamodule import DataSettings
from rdcd.training.fit import TrainerSettings
from rdcd.training.module import Optimization
from rdcd.training.objectives import RDCD, SSCD


def bench(*, data=None, trainer=None, **changes):
    settings = {"accelerator": "cpu", "threads": 1, "log_every": 2, "optimization": Optimization(lr=1.0)}
    values = {"student": partial(Student, trunk="test_efficientnet", dim=8, kd_dim=None),
              "loss": partial(RDCD, queue_size=20), "augment": simclr(32), "teacher_trunk": "test_efficientnet",
              "teacher_dim": 12, "steps": 4, "block": 2, "logger": {"csv": partial(CSVLogger, name="csv")}}
    data = DataSettings(**{"size": 32, "batch_size": 8, "workers": 0} | (data or {}))
    return bench_step(data=data, trainer=TrainerSettings(**settings | (trainer or {})), **values | changes)


@pytest.mark.parametrize("changes", [
    {}, {"loss": SSCD, "teacher_trunk": None}, {"trainer": {"accumulate": 2}}, {"trainer": {"precision": "bf16-mixed"}},
    {"trainer": {"precision": "16-mixed"}},
    {"trainer": {"optimization": Optimization(algorithm="adamw", lr=0.01, clip=0.1), "channels_last": False}}],
    ids=["rdcd", "sscd", "accumulate", "bf16", "fp16", "clipped"])
def test_training_and_bare_loop_end_with_the_same_weights(changes) -> None:
    assert bench(**changes)["weights_apart"] < 1e-6


def test_result_file_has_all_that_the_page_shows(tmp_path, capsys) -> None:
    result = bench(out=str(tmp_path / "step.json"))
    assert json.loads((tmp_path / "step.json").read_text()) == result
    assert [path.name for path in tmp_path.iterdir()] == ["step.json"]
    assert [row["what"] for row in result["rows"]] == ["networks alone", "bare loop", "rdcd train"]
    for row in result["rows"]:
        assert 0 < row["low"] <= row["median"] <= row["high"] and row["turns"] == 2
        assert row["images_per_s"] == pytest.approx(8 / row["median"]) and row["peak_bytes"] is None
    assert {"student", "teacher", "momentum", "losses", "backward", "optimizer", "logging", "the rest"} <= set(
        result["parts"])
    hours = result["full_recipe_hours"]
    assert hours["1"] == pytest.approx(390_600 * 256 / result["rows"][-1]["images_per_s"] / 3600)
    assert hours["8"] == pytest.approx(hours["1"] / 8)
    costs = result["costs"]
    assert result["counted_bytes"] == pytest.approx(
        costs["network_bytes"] + costs["queue_bytes"] + 8 * (costs["student_bytes"] + costs["loss_bytes"]), abs=1)
    assert result["provenance"]["seed"] == 0
    said = capsys.readouterr().out.strip().splitlines()
    assert said[-1].startswith("framework/bare = ") and "over 2 turns)" in said[-1]
    assert any("such devices if they scaled ideally" in line for line in said)


@pytest.mark.parametrize("device", [None, "cpu"])
def test_input_of_the_real_loader_is_shared(benchmark_root, monkeypatch, device) -> None:
    opened, edited = [], []

    def stream(modules: step.DataModule) -> Iterator[dict]:
        opened.append(modules.views)
        for batch in real(modules):
            edited.append("query_edits" in batch)
            yield batch

    real = step.stream
    monkeypatch.setattr(step, "stream", stream)
    result = bench(input="loader", data={"root": str(benchmark_root), "workers": 1}, augment=simclr(32, device=device))
    assert result["weights_apart"] is None and [row["turns"] for row in result["rows"]] == [2, 2, 2]
    assert len(opened[0]) == 2 * 6 * 8, "few pictures are repeated, so that one epoch lasts for both"
    assert len({opened[0].pictures.path(i) for i in range(len(opened[0]))}) == 24
    assert set(edited) == {device is not None}


@pytest.mark.parametrize(("changes", "said"), [
    ({"steps": 5}, "steps=5: expected a multiple of block=2, such as 6"),
    ({"input": "disk"}, "input=disk: expected memory or loader"),
    ({"student": None}, "student=none leaves no step to time"),
    ({"trainer": {"devices": 2}}, "trainer.devices=2, trainer.nodes=1: the step of one process is timed; set both"),
    ({"loss": partial(SSCD, mixup=0.1)}, "loss.mixup=0.1: the bare loop mixes no pictures"),
    ({"out": "."}, r"\. is a folder: expected the name of a file to write"),
    ({"teacher_trunk": None}, "loss=rdcd follows a teacher")])
def test_what_cannot_be_timed_is_refused(changes, said) -> None:
    with pytest.raises(UserError, match=said):
        bench(**changes)
