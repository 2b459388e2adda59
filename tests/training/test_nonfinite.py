"""A loss that is not finite names its term, step, rank and pictures, and can be computed again."""

import re

import pytest
import torch
from tiny_runs import go, settings

from rdcd.errors import UserError
from rdcd.training.launch import TeacherFile
from rdcd.training.module import CopyDetection


def spoiled(monkeypatch, *, step, spoil):
    """Let `spoil(module)` happen before `step`."""
    forward = CopyDetection.training_step

    def training_step(self, *words):
        if self.global_step == step:
            spoil(self)
        return forward(self, *words)

    monkeypatch.setattr(CopyDetection, "training_step", training_step)


def fill(parameter, value=float("nan")):
    with torch.no_grad():
        parameter.fill_(value)


def test_the_term_step_rank_and_pictures_are_named_and_a_file_is_left(benchmark_root, plain_run, tmp_path, monkeypatch):
    spoiled(monkeypatch, step=4, spoil=lambda module: fill(module.student.projector.weight))
    with pytest.raises(UserError) as said:
        go(benchmark_root, tmp_path / "run", teacher=TeacherFile(str(plain_run / "teacher")))
    path = tmp_path / "run" / "nonfinite-step4-rank0.pt"
    for part in ("not finite at step 4 on rank 0: contrastive and hard_negative", "relational 0", str(path),
                 "and 5 more", "trainer.optimization.lr (now 0.005)", "trainer.optimization.warmup_epochs"):
        assert part in str(said.value), part
    dump = torch.load(path, weights_only=True)
    assert (dump["step"], dump["rank"], dump["epoch"]) == (4, 0, 1) and dump["query"].shape == (8, 3, 32, 32)
    shown = re.search(r"pictures (\S+), ", str(said.value))[1]
    assert dump["pictures"][0] == shown and len(dump["pictures"]) == 8
    assert (benchmark_root / "images" / "train" / shown).is_file() or (benchmark_root / shown).is_file()
    assert not (tmp_path / "run" / "student.safetensors").exists()
    # the checkpoints are those before it went wrong
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(v.isfinite().all() for v in last["state_dict"].values() if v.is_floating_point())


def test_the_step_is_computed_again_and_the_first_layer_named(benchmark_root, plain_run, tmp_path, monkeypatch, capsys):
    options = {"teacher": TeacherFile(str(plain_run / "teacher"))}

    def overflow(module):
        fill(module.student.trunk.conv_stem.weight, 1e38)

    spoiled(monkeypatch, step=2, spoil=overflow)
    run = tmp_path / "run"
    with pytest.raises(UserError) as first:
        go(benchmark_root, run, trainer=settings(checkpoint_every=1), **options)
    monkeypatch.undo()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    go(benchmark_root, resume=str(run), replay=str(run / "nonfinite-step2-rank0.pt"), **options)
    said = capsys.readouterr().out
    values = re.search(r"\((contrastive .*?)\), pictures", str(first.value))[1]
    assert [word.rstrip(",;") for word in said.split() if word.rstrip(",;") == "nan"] == re.findall("nan", values)
    assert re.search(r"the first layer without a finite output is \S.*trunk\.(conv_stem|bn1)", said)
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def test_a_step_of_a_finite_loss_says_so(benchmark_root, plain_run, tmp_path, monkeypatch, capsys):
    """The file holds the very step: its terms come out again."""
    from rdcd.training import nonfinite

    options = {"teacher": TeacherFile(str(plain_run / "teacher"))}
    with monkeypatch.context() as patch:
        patch.setattr(nonfinite.torch, "isfinite", lambda value: torch.zeros((), dtype=torch.bool))
        with pytest.raises(UserError, match="not finite at step 0") as said:
            go(benchmark_root, tmp_path / "run", **options)
    go(benchmark_root, resume=str(tmp_path / "run"), replay=str(tmp_path / "run" / "nonfinite-step0-rank0.pt"),
       **options)
    found = capsys.readouterr().out
    assert "every layer's output is finite" in found
    relational = float(re.search(r"relational ([\d.e+-]+)", str(said.value))[1])
    assert relational == pytest.approx(float(re.search(r"relational ([\d.e+-]+)", found)[1]), rel=1e-3)


@pytest.mark.parametrize("content", [b"", b"half of one"])
def test_a_damaged_file_is_said(benchmark_root, plain_run, tmp_path, content):
    options = {"teacher": TeacherFile(str(plain_run / "teacher")), "trainer": settings(epochs=1, validate_every=0)}
    run = go(benchmark_root, tmp_path / "run", **options)
    path = tmp_path / "nonfinite.pt"
    with pytest.raises(UserError, match="replay=.*expected a nonfinite-….pt of a run, together with resume=RUN"):
        go(benchmark_root, resume=str(run), replay=str(path), **options)
    path.write_bytes(content)
    with pytest.raises(UserError, match="no readable record of a loss that was not finite"):
        go(benchmark_root, resume=str(run), replay=str(path), **options)
    with pytest.raises(UserError, match="together with resume=RUN"):
        go(benchmark_root, tmp_path / "new", replay=str(path), **options)
