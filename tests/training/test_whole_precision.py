"""Whole runs in every precision, and with compiled networks."""

import math

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import go, rows, same_weights, settings

from rdcd.errors import UserError
from rdcd.training.launch import TeacherFile
from rdcd.training.objectives import SSCD


def held(run):
    """Return name → (shape, type) of every tensor of a run's last checkpoint."""
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name: (tuple(value.shape), value.dtype) for name, value in state.items()}


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_a_run_in_half_precision_keeps_whole_weights_and_learns_about_the_same(benchmark_root, plain_run, tmp_path,
                                                                               precision):
    run = go(benchmark_root, tmp_path / "run", teacher=TeacherFile(str(plain_run / "teacher")),
             trainer=settings(precision=precision))
    assert held(run) == held(plain_run)
    losses, whole = ([float(row["train/loss"]) for log in sorted(folder.glob("logs/csv/*")) for row in rows(log)
                      if row["train/loss"]] for folder in (run, plain_run))
    assert len(losses) == len(whole) == 6 and all(map(math.isfinite, losses))
    assert losses == pytest.approx(whole, rel=0.1) and losses != whole
    assert not same_weights(run, plain_run)  # it was in use
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert ("scale" in checkpoint.get("MixedPrecision", {})) == (precision == "16-mixed")  # which is resumed, too


def test_compiled_networks_leave_names_and_results_as_they_are(benchmark_root, tmp_path, monkeypatch):
    """All of `torch.compile` but its last step, in which a C++ compiler works for minutes; tests on a GPU have it."""
    asked, compile_as_asked = [], torch.nn.Module.compile

    def compile_quickly(network, *words, **named):
        asked.append(type(network).__name__)
        compile_as_asked(network, *words, **named, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_quickly)
    options = {"loss": SSCD, "teacher": None, "baselines": []}
    runs = [go(benchmark_root, tmp_path / f"compiled-{compiled}", **options,
               trainer=settings(compile=compiled, epochs=1, validate_every=0)) for compiled in (True, False)]
    assert asked == ["Student"] and held(runs[0]) == held(runs[1])
    ours, theirs = (load_file(folder / "student.safetensors") for folder in runs)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-2, atol=1e-2, msg=name)


def test_without_a_compiler_the_error_says_so(benchmark_root, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))  # nothing compiled before
    torch._dynamo.reset()
    said = r"trainer.compile=true: torch could not compile .*no-such-compiler.*\); on a CPU it needs a C\+\+ compiler"
    with pytest.raises(UserError, match=said):
        go(benchmark_root, tmp_path / "run", loss=SSCD, teacher=None, baselines=[],
           trainer=settings(compile=True, validate_every=0, epochs=1))
