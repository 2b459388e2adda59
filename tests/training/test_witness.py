"""The file that a run writes is the network that it trained, or the run ends and says so."""

import math
from copy import deepcopy
from functools import partial
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning.plugins import LayerSync, TorchSyncBatchNorm
from test_equal_ranks import processes
from test_sync import as_on_gpus
from tiny_runs import go, settings
from torch import nn

from rdcd.errors import UserError
from rdcd.models.student import Student
from rdcd.models.weights import load_student
from rdcd.training import fit
from rdcd.training.checkpoints import random_state
from rdcd.training.module import CopyDetection
from rdcd.training.objectives import RDCD, SSCD
from rdcd.training.witness import Witness, likeness

ALONE = {"teacher": None, "baselines": [], "loss": partial(RDCD, queue_size=16, relational_weight=0)}


def once(**changes):
    return settings(**{"epochs": 1, "validate_every": 0} | changes)


def normalizing_otherwise(**options):
    """A student that normalizes images by other numbers than its card tells."""
    student = Student(**options)
    student.std.fill_(1.0)
    return student


def extended(**options):
    """A student with a layer that its card does not tell of."""
    student = Student(**options)
    student.fc = nn.Sequential(student.fc, nn.Linear(options["kd_dim"], options["kd_dim"]))
    return student


def left(run):
    """Names of what a run left that has to do with weights."""
    return sorted(path.name for path in run.rglob("*") if "student" in path.name or "partial" in path.name)


@pytest.mark.parametrize(("make", "said"), [
    (normalizing_otherwise, r"is not the network in training: .* cosine of -?0\.\d+ .* at least 0\.9999"),
    (extended, r"is not the network in training: .*student.safetensors does not fit")], ids=["options", "layers"])
def test_a_file_that_would_be_another_network_is_said_before_the_first_step(benchmark_root, tmp_path, make, said):
    with pytest.raises(UserError, match=said):
        go(benchmark_root, tmp_path / "run", student=partial(make, trunk="test_efficientnet", dim=8, kd_dim=12),
           trainer=once(), **ALONE)
    assert left(tmp_path / "run") == [] and not list((tmp_path / "run").rglob("*.ckpt"))


def test_a_file_that_is_another_network_in_the_end_is_not_left(benchmark_root, tmp_path, monkeypatch):
    monkeypatch.setattr(CopyDetection, "on_train_end", lambda self: nn.init.normal_(self.student.fc.weight))
    with pytest.raises(UserError, match=r"not the network in training.*checkpoints.last\.ckpt holds") as error:
        go(benchmark_root, tmp_path / "run", trainer=once(), **ALONE)
    assert error.value.code == 1 and "\n" not in str(error.value)
    assert left(tmp_path / "run") == [] and (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_descriptors_that_are_no_numbers_are_no_match(benchmark_root, tmp_path, monkeypatch):
    monkeypatch.setattr(CopyDetection, "on_train_epoch_end", lambda self: self.student.fc.bias.data.fill_(torch.nan))
    with pytest.raises(UserError, match="not the network in training: .* cosine of nan"):
        go(benchmark_root, tmp_path / "run", trainer=once(), **ALONE)
    assert left(tmp_path / "run") == []


def test_a_finished_run_whose_file_is_lost_writes_it_again(benchmark_root, tmp_path):
    run = go(benchmark_root, tmp_path / "run", trainer=once(), **ALONE)
    whole = (run / "student.safetensors").read_bytes()
    for name in ("student.safetensors", "student.json", "run.json"):
        (run / name).unlink()
    go(benchmark_root, resume=str(run), trainer=once(), **ALONE)
    assert (run / "student.safetensors").read_bytes() == whole


@pytest.mark.parametrize("changes", [{"precision": "bf16-mixed"}, {"accumulate": 2}, {"channels_last": True}], ids=str)
def test_ordinary_runs_pass(benchmark_root, tmp_path, changes):
    run = go(benchmark_root, tmp_path / "run", trainer=once(**changes), **ALONE)
    assert load_student(run / "student.safetensors")[1]["training"]["steps"] == 3
    assert [name for name in left(run) if "partial" in name] == []


@pytest.mark.parametrize("trunk", ["test_byobnet", "test_convnext", "test_vit", "repvgg_a0", "fastvit_t8"])
def test_ordinary_trunks_pass(benchmark_root, tmp_path, trunk):
    """Those that can be folded, too, and those that crash channels last."""
    run = go(benchmark_root, tmp_path / "run", trainer=once(), loss=SSCD, teacher=None, baselines=[],
             student=partial(Student, trunk=trunk, dim=8, kd_dim=12))
    assert (run / "student.json").is_file()


def test_descriptors_that_are_almost_one_hide_no_other_network():
    torch.manual_seed(0)
    middle, apart = F.normalize(torch.randn(8), dim=0), 1e-3 * torch.randn(6, 8)
    seen, other = F.normalize(middle + apart, dim=1), F.normalize(middle + apart.flip(0), dim=1)
    assert F.cosine_similarity(seen, other).min() > 0.9999 > likeness(other, seen)
    one = seen[:1].expand(6, -1)
    assert likeness(seen + 1e-6, seen) > 0.9999 and likeness(one + 1e-6, one) > 0.9999
    assert likeness(-seen, seen) < -0.99 and math.isnan(likeness(seen * torch.nan, seen))


def test_looking_changes_nothing_of_the_run(benchmark_root, tmp_path, monkeypatch):
    seen, look = [], Witness.on_fit_start

    def held(module):
        state = random_state()
        return {"torch": state.pop("torch"), **module.state_dict()}, (state, [m.training for m in module.modules()])

    def between(self, trainer, module):
        module.student.train().trunk.bn1.eval()
        tensors, plain = deepcopy(held(module))
        look(self, trainer, module)
        assert held(module)[1] == plain
        torch.testing.assert_close(held(module)[0], tensors, rtol=0, atol=0)
        seen.append(tuple(self.seen.shape))

    monkeypatch.setattr(Witness, "on_fit_start", between)
    go(benchmark_root, tmp_path / "run", trainer=once(), **ALONE)
    assert seen == [(8, 8)]


class Bare(LayerSync):
    """Lightning's default, by torch's conversion."""
    apply, revert = TorchSyncBatchNorm.apply, TorchSyncBatchNorm.revert


def test_no_rank_waits_for_ever_where_the_file_is_another_network(benchmark_root, plain_run, tmp_path, capfd):
    """Of two processes with the fault that this was made for."""
    with (patch.object(fit, "SyncNorms", Bare), patch.object(fit, "make_trainer", as_on_gpus(fit.make_trainer)),
          patch.object(nn.parallel.DistributedDataParallel, "_passing_sync_batchnorm_handle"),
          pytest.raises(AssertionError)):
        processes(benchmark_root, plain_run / "teacher", tmp_path / "run", 2, "rdcd", trunk="test_efficientnet")
    assert capfd.readouterr().err.count("Unlike: ") == 2 and left(tmp_path / "run") == []
