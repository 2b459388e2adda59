import argparse
import pickle
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from authors_checkpoint import NETWORKS, authors_state, write_authors_checkpoint
from lightning_fabric.utilities.data import AttributeDict
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from rdcd.errors import UserError
from rdcd.models.authors import AuthorsStudent, authors_student, read_lightning

GENERATOR = torch.Generator().manual_seed(1)
PICTURES = {size: torch.rand(3, 3, size, size, generator=GENERATOR) ** torch.tensor([0.3, 1, 3]).view(3, 1, 1, 1)
            for size in (64, 96)}
PROJECTORS = {"efficientnet_b0": "projector", "mobilenet_v3_large": "projector", "fastvit_t12": "projector.0"}
FCS = {"efficientnet_b0": "classifier.1", "mobilenet_v3_large": "classifier.3", "fastvit_t12": "head.fc"}


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, Tensor]]:
    return {network: authors_state(network=network, kd_dim=24, dim=8) for network in PROJECTORS}


def convert(state: dict[str, Tensor], **entries: object) -> AuthorsStudent:
    return authors_student({"state_dict": state} | entries, path="released.ckpt")


def by_hand(network: str, state: dict[str, Tensor], pictures: Tensor, p: float = 3) -> tuple[Tensor, Tensor]:
    """Feature and descriptor by torchvision's or timm's own module, plain pooling and plain products."""
    encoder = {k.removeprefix("model.encoder_q."): v for k, v in state.items() if "encoder_q" in k}
    module = NETWORKS[network](num_classes=24).eval()
    module.load_state_dict({k.removeprefix("backbone."): v for k, v in encoder.items() if k.startswith("backbone.")})
    mean, std = torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD)
    normalized = torch.stack([(pictures[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    with torch.no_grad():
        maps = module.forward_features(normalized) if network == "fastvit_t12" else module.features(normalized)
        pooled = (maps.clamp(min=1e-6) ** p).mean(dim=(2, 3)) ** (1 / p)
        if network == "mobilenet_v3_large":  # 960 → 1280 behind the pooling
            wide = pooled @ encoder["backbone.classifier.0.weight"].T + encoder["backbone.classifier.0.bias"]
            pooled = wide * (wide + 3).clamp(0, 6) / 6
        fc = FCS[network]
        feature = pooled @ encoder[f"backbone.{fc}.weight"].T + encoder[f"backbone.{fc}.bias"]
        projector = PROJECTORS[network]
        projected = feature @ encoder[f"{projector}.weight"].T + encoder[f"{projector}.bias"]
    return feature / feature.norm(dim=1, keepdim=True), projected / projected.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("network", PROJECTORS)
@pytest.mark.parametrize("size", PICTURES)
def test_the_student_equals_the_authors_network(states: dict, network: str, size: int) -> None:
    found = convert(states[network])
    feature, descriptor = by_hand(network, states[network], PICTURES[size])
    with torch.no_grad():
        ours, theirs = found.student(PICTURES[size]), found.network.embed(PICTURES[size])
    torch.testing.assert_close(ours.features, feature, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.descriptors, descriptor, atol=1e-5, rtol=0)
    torch.testing.assert_close(theirs, descriptor, atol=1e-5, rtol=0)
    assert (descriptor[0] - descriptor[2]).abs().max() > 0.05, "pictures must differ for this to mean something"


def test_sizes_come_from_the_shapes_and_the_exponent_from_the_options(states: dict) -> None:
    state = states["efficientnet_b0"]
    found = convert(state, hyper_parameters={"args": argparse.Namespace(pool_param=4.0)})
    assert {k: found.student.architecture[k] for k in ("trunk", "kd_dim", "dim", "gem_p")} == {
        "trunk": "efficientnet_b0", "kd_dim": 24, "dim": 8, "gem_p": 4.0}
    expected = by_hand("efficientnet_b0", state, PICTURES[64], p=4)[1]
    with torch.no_grad():
        for network in (found.student, found.network):
            torch.testing.assert_close(network.embed(PICTURES[64]), expected, atol=1e-5, rtol=0)
    assert not found.student.training and not found.network.training


@pytest.mark.parametrize("network", PROJECTORS)
def test_every_weight_of_the_query_encoder_is_used_once(states: dict, network: str) -> None:
    state = {k: v.clone() for k, v in states[network].items()}
    encoder = [k for k in state if "encoder_q" in k]
    for number, name in enumerate(encoder):  # every tensor is told apart by its first value
        state[name].view(-1)[0] = number
    ours = convert(state).student.state_dict()
    assert sorted(int(v.view(-1)[0]) for v in ours.values()) == list(range(len(encoder)))
    assert convert(state).unknown == []


def test_keys_beside_the_encoders_are_told(states: dict) -> None:
    extra = {"model.head.weight": torch.zeros(1), "ema.decay": torch.zeros(1)}
    assert convert(states["efficientnet_b0"] | extra).unknown == list(extra)


@pytest.mark.parametrize("network", PROJECTORS)
def test_weights_that_do_not_fit_are_listed(states: dict, network: str) -> None:
    state = dict(states[network])
    body = {"efficientnet_b0": "backbone.features.2.0.block.3.0.weight",
            "mobilenet_v3_large": "backbone.features.4.block.2.fc1.weight",
            "fastvit_t12": "backbone.stages.0.blocks.0.mlp.fc1.weight"}[network]
    del state[f"model.encoder_q.{body}"]
    state["model.encoder_q.backbone.extra"] = torch.zeros(1)
    state[f"model.encoder_q.{PROJECTORS[network]}.bias"] = torch.zeros(9)
    with pytest.raises(UserError) as error:
        convert(state)
    trunk = {"mobilenet_v3_large": "mobilenetv3_large_100"}.get(network, network)
    assert str(error.value).startswith(f"released.ckpt does not fit the authors' {trunk} student: ")
    for said in (f"1 missing ({body})", "1 unexpected (backbone.extra)",
                 f"1 misshaped ({PROJECTORS[network]}.bias (9,) for (8,))"):
        assert said in str(error.value)


def test_a_mobilenet_is_built_as_published(states: dict) -> None:
    student = convert(states["mobilenet_v3_large"]).student
    assert student.architecture["timm"] == {"bn_eps": 1e-3, "bn_momentum": 0.01}
    assert student.architecture["pool_first"] is True
    assert {(m.eps, m.momentum) for m in student.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {(1e-3, 0.01)}


@pytest.mark.parametrize(("checkpoint", "said"), [
    ([1, 2], "it holds no state_dict"),
    ({"state_dict": {1: torch.zeros(1)}}, "it holds no state_dict"),
    ({"state_dict": [1]}, "it holds no state_dict"),
    ({"state_dict": {"backbone.fc.bias": torch.zeros(1), "a": torch.zeros(1)}}, "its keys begin backbone.fc.bias, a"),
    ({"state_dict": {"model.encoder_q.backbone.conv1.bias": torch.zeros(1)}}, "its keys begin backbone.conv1.bias"),
    ({"state_dict": {"model.encoder_q.backbone.head.fc.weight": torch.zeros(()),
                     "model.encoder_q.projector.0.weight": torch.zeros(2, 3)}}, "holds no backbone.head.fc.weight"),
])
def test_other_checkpoints_are_said(checkpoint: object, said: str) -> None:
    with pytest.raises(UserError, match=f"released.ckpt.*{said}"):
        authors_student(checkpoint, path="released.ckpt")


def test_an_exponent_that_is_no_number_is_said(states: dict) -> None:
    with pytest.raises(UserError, match="student.gem_p=x: expected a number above 0"):
        convert(states["efficientnet_b0"], hyper_parameters={"args": argparse.Namespace(pool_param="x")})


@pytest.mark.parametrize("legacy", [False, True])
def test_plain_classes_of_old_checkpoints_load(tmp_path: Path, legacy: bool) -> None:
    args = argparse.Namespace(pool_param=3.0, output_path=Path("runs"), lr=np.float64(0.3), seeds=[1])
    torch.save({"state_dict": {"a": torch.ones(2)}, "hyper_parameters": AttributeDict(args=args, train_steps=3),
                "callbacks": {pl.callbacks.ModelCheckpoint: {"best_model_path": Path("runs")}}},
               tmp_path / "old", _use_new_zipfile_serialization=not legacy)
    before = torch.serialization.get_safe_globals()
    found = read_lightning(tmp_path / "old")
    assert torch.equal(found["state_dict"]["a"], torch.ones(2))
    assert type(found["hyper_parameters"]) is dict and found["hyper_parameters"]["train_steps"] == 3
    assert found["hyper_parameters"]["args"].pool_param == 3.0 and found["hyper_parameters"]["args"].seeds == [1]
    assert not isinstance(found["hyper_parameters"]["args"].output_path, Path)
    assert set(torch.serialization.get_safe_globals()) == set(before), "allowed for this file alone"


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_a_hostile_pickle_is_refused_unrun(tmp_path: Path, legacy: bool, inside: bool) -> None:
    mark, path = tmp_path / "ran", tmp_path / "hostile.ckpt"
    trap = argparse.Namespace(a=Hostile(mark)) if inside else Hostile(mark)
    torch.save({"hyper_parameters": {"args": trap}}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="it holds .*, and only tensors and plain types are loaded"):
        read_lightning(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the trap is a real one
    assert mark.exists()


def test_any_other_class_is_named(tmp_path: Path) -> None:
    torch.save({"x": pl.callbacks.EarlyStopping("loss")}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="it holds pytorch_lightning.callbacks.early_stopping.EarlyStopping, and only"):
        read_lightning(tmp_path / "other.ckpt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", pickle.dumps({"a": 1}, protocol=4), None])
def test_truncated_and_foreign_files_are_said(tmp_path: Path, states: dict, content: bytes | None) -> None:
    path = write_authors_checkpoint(tmp_path / "released.ckpt", state=states["efficientnet_b0"])
    path.write_bytes(path.read_bytes()[:-2000] if content is None else content)
    with pytest.raises(UserError, match=r"released.ckpt \([\d,]+ bytes\) is not a readable .*truncated") as error:
        read_lightning(path)
    assert "weights_only" not in str(error.value), "never advise to load it unsafely"
