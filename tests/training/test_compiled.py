"""`trainer.compile` compiles every network of a step, whatever kind of teacher, and changes none."""

import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_runs import go, settings
from torch import nn

from rdcd.models.dino import DinoDescriptor
from rdcd.models.off_the_shelf import OffTheShelf
from rdcd.models.student import Student
from rdcd.models.teacher import Teacher
from rdcd.models.zoo import ZOO, TorchScriptDescriptor
from rdcd.training.module import CopyDetection, Optimization
from rdcd.training.objectives import RDCD

KINDS = {"dino": partial(DinoDescriptor, trunk="test_vit"),
         "off the shelf": partial(OffTheShelf, "test_resnet", pretrained=False),
         "of our own": partial(Student, trunk="test_resnet", dim=None, kd_dim=12)}


class Graphs:
    """A backend of torch.compile that only notes what it is given."""

    def __init__(self):
        self.seen = []

    def __call__(self, graph, inputs):
        self.seen.append(graph)
        return graph.forward


@pytest.fixture
def graphs(monkeypatch):
    """What is compiled, as torch.compile hands it to a backend."""
    torch._dynamo.reset()
    graphs, compile_as_asked = Graphs(), nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda network, *words, **named: compile_as_asked(
        network, *words, **named, backend=graphs))
    yield graphs
    torch._dynamo.reset()


def module_with(teacher):
    torch.manual_seed(0)
    student = Student(trunk="test_efficientnet", dim=6, kd_dim=teacher.dim)
    objective = RDCD(student, Teacher(teacher), queue_size=20)
    return CopyDetection(student=student, objective=objective, epochs=1, card={}, steps_per_epoch=1, global_batch=4,
                         optimization=Optimization())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_teacher_is_compiled_whole(graphs, kind):
    torch.manual_seed(0)
    module, pictures = module_with(KINDS[kind]().eval()), torch.rand(2, 3, 160, 160)
    expected, keys = module.objective.teacher(pictures), module.state_dict().keys()
    module.compile_networks()
    found = module.objective.teacher(pictures)
    assert len(graphs.seen) == 1  # from pixels to descriptors
    assert {"placeholder", "output"} < {node.op for node in graphs.seen[0].graph.nodes}
    torch.testing.assert_close(found, expected)
    assert module.state_dict().keys() == keys and not found.requires_grad


def test_student_and_key_encoder_are_compiled(graphs):
    module, pictures = module_with(KINDS["dino"]().eval()), torch.rand(2, 3, 32, 32)
    module.compile_networks()
    for embed, count in ((module.student, 1), (module.student.embed, 1), (module.objective.key_encoder, 2)):
        embed(pictures)
        assert len(graphs.seen) == count


def test_torchscript_runs_as_it_was_traced_and_this_is_said(graphs, capsys, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(nn.Sequential(nn.Conv2d(3, 4, 32), nn.Flatten()).eval(), torch.rand(1, 3, 32, 32))
    entry = replace(ZOO["sscd_disc_mixup"], dim=4)
    module, pictures = module_with(TorchScriptDescriptor(traced, entry)), torch.rand(2, 3, 32, 32)
    expected = module.objective.teacher(pictures)
    module.compile_networks()
    assert "note: the teacher is TorchScript, which runs as it was traced: it is not comp" in capsys.readouterr().out
    assert torch.equal(module.objective.teacher(pictures), expected) and graphs.seen == []


@dataclass
class Given:
    """A teacher that is there already, of any kind."""

    network: nn.Module
    name: str = "given"

    def load(self):
        return self.network, {"weights_sha256": "0" * 64}

    def weights(self):
        return Path("none.pth")


def test_a_run_compiles_all_it_calls(drawn, tmp_path, graphs):
    go(drawn, tmp_path / "run", teacher=Given(DinoDescriptor(trunk="test_vit").eval()), baselines=[],
       data={"batch_size": 12}, trainer=settings(compile=True, epochs=1, validate_every=0))
    names = [" ".join(node.name for node in graph.graph.nodes) for graph in graphs.seen]
    assert any("trunk_parameters_cls_token" in seen for seen in names)
    assert len([seen for seen in names if "projector" in seen]) == 2  # student and key encoder
