"""What a model may be called, and what is loaded for it."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from zoo_checkpoints import synthetic_checkpoint

from rdcd.errors import UserError
from rdcd.evaluation.networks import is_named, load_network, preprocessing
from rdcd.files import sha256
from rdcd.models.hashes import PerceptualHash
from rdcd.models.student import Student
from rdcd.models.thumbnail import Thumbnail
from rdcd.models.weights import save_student
from rdcd.models.zoo import load_zoo


@pytest.mark.parametrize(("model", "named"), [
    ("thumbnail", True), ("phash", True), ("pdq", True), ("sscd_disc_mixup", True), ("dino_vitb8:a/b.pth", True),
    ("timm:resnet50", True), ("timm:resnet50:x.pth", True), ("student.safetensors", False), ("runs/phash", False),
    ("a/thumbnail", False), ("sscd", False), (Path("last.ckpt"), False)])
def test_names_and_paths(model, named):
    assert is_named(model) is named


def test_a_student_comes_ready_for_inference(tmp_path):
    student = Student(trunk="repvgg_a0", dim=4, kd_dim=6).eval()
    save_student(tmp_path / "s.safetensors", student, size=48, resize="short")
    network, card = load_network(tmp_path / "s.safetensors")
    pictures = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.allclose(network.embed(pictures), student.embed(pictures), atol=1e-4)
    assert network.folded and not network.training
    assert preprocessing(card, size=None, resize=None) == (48, "short")
    assert preprocessing(card, size=64, resize="long") == (64, "long")


def test_names_need_no_file():
    network, card = load_network("thumbnail")
    assert isinstance(network, Thumbnail) and preprocessing(card, size=32, resize="short") == (32, "short")
    network, card = load_network("phash")
    assert isinstance(network, PerceptualHash) and card["weights_sha256"] is None
    assert preprocessing(card, size=32, resize="short") == (512, "square")  # a hash scales pictures itself


def test_a_teacher_of_the_zoo_by_its_file(tmp_path):
    path = tmp_path / "any name.pt"
    synthetic_checkpoint("sscd_disc_mixup", "torchvision", path)
    network, card = load_network(f"sscd_disc_mixup:{path}")
    expected, _ = load_zoo("sscd_disc_mixup", path=path)
    pictures = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network.embed(pictures), expected.embed(pictures))
    assert card["weights_sha256"] == sha256(path)


def test_a_trunk_as_it_comes(tmp_path):
    trunk = timm.create_model("test_efficientnet", num_classes=0)
    save_file(trunk.state_dict(), tmp_path / "trunk.safetensors")
    network, card = load_network(f"timm:test_efficientnet:{tmp_path}/trunk.safetensors")
    assert network.dim == trunk.head_hidden_size and not network.training
    assert card["weights_sha256"] == sha256(tmp_path / "trunk.safetensors")
    assert preprocessing(card, size=None, resize=None) == (network.size, "square")


@pytest.mark.parametrize(("model", "said"), [
    ("timm:", "expected timm:TRUNK or timm:TRUNK:FILE"),
    ("timm:resnet0", "timm has no such model"),
    ("phash:file", "phash takes no file"),
    ("ssdc_disc_mixup:x.pt",
     "no model 'ssdc_disc_mixup:x.pt' .did you mean sscd_disc_mixup.*: expected student.safetensors"),
    ("pHash", "no model 'pHash' .did you mean phash.*timm:TRUNK"),
    ("nowhere.safetensors", "no weights file nowhere.safetensors"),
    ("sscd_disc_mixup:nowhere.pt", "nowhere.pt")])
def test_mistakes_are_said(model, said):
    with pytest.raises(UserError, match=said):
        load_network(model)
