"""Dropout, stochastic depth, options of timm, inits and statistics of a student, against torchvision and timm."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torchvision.models import efficientnet_b0, mobilenet_v3_large
from torchvision.models.efficientnet import MBConv
from torchvision.ops import StochasticDepth

from rdcd.errors import UserError
from rdcd.models.authors import ARCHITECTURES
from rdcd.models.momentum import MomentumEncoder
from rdcd.models.student import INITS, Student, check_size
from rdcd.models.teacher import Teacher
from rdcd.models.weights import load_student, save_student
from rdcd.models.zoo import ZOO

PICTURES = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
MOBILENET = {"trunk": "mobilenetv3_large_100", "timm": {"bn_eps": 1e-3, "bn_momentum": 0.01}}


def make(**options: object) -> Student:
    torch.manual_seed(0)
    return Student(**{"trunk": "test_efficientnet", "dim": 6, "kd_dim": 10} | options)


def test_stochastic_depth_is_torchvisions_block_by_block() -> None:
    """Blocks without a skip never apply theirs, in either network."""
    theirs = [module.stochastic_depth.p * module.use_res_connect for module in efficientnet_b0().modules()
              if isinstance(module, MBConv)]
    trunk = make(trunk="efficientnet_b0", drop_path_rate=0.2).trunk
    ours = [getattr(block.drop_path, "drop_prob", 0) * block.has_skip for stage in trunk.blocks for block in stage]
    assert len(ours) == 16 and ours == pytest.approx(theirs)
    assert max(ours) == pytest.approx(0.175)  # the last block, of 0.1875, has no skip


@pytest.mark.parametrize("skips", [True, False])
def test_a_dropped_branch_is_dropped_for_a_whole_image_and_the_others_scaled(skips: bool) -> None:
    """timm's and torchvision's stochastic depth draw the same thing."""
    trunk = make(trunk="efficientnet_b0", drop_path_rate=0.2).trunk.train()
    for drop in (trunk.blocks[5][2].drop_path, StochasticDepth(0.175, "row")):
        given = torch.ones(4000, 2, 3, 3)
        found = drop.train(skips)(given)
        if not skips:
            assert torch.equal(found, given)
            continue
        assert all(len(image.unique()) == 1 for image in found[:50])
        kept = found[:, 0, 0, 0] > 0
        assert kept.float().mean() == pytest.approx(1 - drop.p if hasattr(drop, "p") else 1 - drop.drop_prob, abs=0.02)
        torch.testing.assert_close(found[kept][0, 0, 0, 0].item(), 1 / (1 - 0.175), rtol=0.02, atol=0)


def test_dropout_stands_before_the_fc_of_the_published_networks() -> None:
    for network in (efficientnet_b0(), mobilenet_v3_large()):
        *_, dropout, fc = network.classifier
        assert isinstance(dropout, nn.Dropout) and dropout.p == 0.2 and isinstance(fc, nn.Linear)
    for trunk in ("efficientnet_b0", "mobilenetv3_large_100"):
        student, seen = make(trunk=trunk, drop_rate=0.2).train(), []
        student.fc.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(inputs[0]))
        with torch.no_grad():
            student(PICTURES.expand(4, 3, 64, 64))
        assert seen[0].shape == (4, 1280) and (seen[0] == 0).float().mean() == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("options", [{"drop_rate": 0.5}, {"drop_path_rate": 0.5}])
def test_training_alone_draws(options: dict) -> None:
    student, plain = (make(trunk="efficientnet_b0", **some) for some in (options, {}))
    teacher, keys = Teacher(make(trunk="efficientnet_b0", dim=None, **options)), MomentumEncoder(student)
    with torch.no_grad():
        expected = plain.eval()(PICTURES)
        assert torch.equal(student.eval()(PICTURES).descriptors, expected.descriptors)  # one draw of weights, too
        assert torch.equal(teacher.train()(PICTURES), teacher(PICTURES))
        student.train()
        keys.train()
        torch.manual_seed(1)
        one, two = student(PICTURES).descriptors, student(PICTURES).descriptors
        assert not torch.equal(one, two)
        assert not torch.equal(keys(PICTURES).descriptors, keys(PICTURES).descriptors), "as MoCo's key encoder"
        torch.manual_seed(1)
        assert torch.equal(student(PICTURES).descriptors, one)
    assert student.architecture == plain.architecture  # the card describes what a file holds


def test_without_rates_nothing_is_drawn() -> None:
    student = make(trunk="efficientnet_b0").train()
    before = torch.get_rng_state()
    student(PICTURES)
    assert torch.equal(torch.get_rng_state(), before)


def test_options_of_timm_reach_the_trunk_and_the_card(tmp_path: Path) -> None:
    student = make(**MOBILENET).eval()
    assert {(m.eps, m.momentum) for m in student.modules() if isinstance(m, nn.BatchNorm2d)} == {(1e-3, 0.01)}
    again, card = load_student(save_student(tmp_path / "student.safetensors", student, size=64))
    assert card["architecture"]["timm"] == MOBILENET["timm"]
    assert {m.eps for m in again.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}
    with torch.no_grad():
        assert torch.equal(again.embed(PICTURES), student.embed(PICTURES))
    assert "timm" not in make().architecture


@pytest.mark.parametrize(("options", "said"), [
    ({"timm": {"bn_epsilon": 1e-3}}, r"student.timm=\{'bn_epsilon': 0.001\}.*unexpected keyword argument 'bn_epsilon'"),
    ({"timm": {"in_chans": 1}}, "student.timm.in_chans=1: the student sets that itself"),
    ({"timm": {"drop_rate": 0.2}}, "student.timm.drop_rate=0.2: the student sets that itself; .* drop_rate"),
    ({"timm": {"act_layer": nn.ReLU}}, "student.timm=.*expected plain values"),
    ({"timm": "bn_eps"}, "student.timm=bn_eps: expected options of timm.create_model"),
    ({"trunk": "densenet121", "drop_path_rate": 0.2}, "student.drop_path_rate=0.2: timm cannot make densenet121"),
    ({"drop_rate": 1.5}, "student.drop_rate=1.5: expected a number of at least 0 and at most 1"),
    ({"drop_path_rate": "much"}, "student.drop_path_rate=much: expected a number"),
    ({"init": "kaiming"}, "student.init=kaiming: expected one of timm, efficientnet, mobilenetv3, sscd"),
    ({"mean": [0.5, 0.5]}, r"student.mean=\[0.5, 0.5\]: expected three numbers, or null for the trunk's own"),
    ({"std": [0.5, 0.5, 0]}, "student.std=0: expected a number above 0")])
def test_mistakes_are_said_in_a_line(options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        make(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("init", "build"), [("efficientnet", efficientnet_b0), ("mobilenetv3", mobilenet_v3_large)])
def test_published_inits_are_torchvisions(init: str, build: Callable[..., nn.Module]) -> None:
    """Tensor by tensor: mean, deviation and reach of the weights."""
    kind = next(one for one in ARCHITECTURES if one.build is build)
    torch.manual_seed(1)
    theirs = build(num_classes=512).state_dict()
    student = make(trunk=kind.trunk, timm=kind.timm, init=init, kd_dim=512)
    ours = {name: value for name, value in student.state_dict().items() if not name.startswith("projector")}
    assert len(ours) == len(theirs)
    for (name, own), (other, value) in zip(ours.items(), theirs.items(), strict=True):
        own, value = own.float(), value.float()
        assert own.numel() == value.numel(), (name, other)
        if value.numel() == 1 or value.std() == 0:
            assert torch.equal(own.flatten(), value.flatten()), (name, other)
        else:
            few = 5 / (2 * value.numel()) ** 0.5  # five standard errors of a deviation
            assert own.std().item() == pytest.approx(value.std().item(), rel=1.5 * few), (name, other)
            assert abs(own.mean() - value.mean()) < 7 * value.std() / value.numel() ** 0.5, (name, other)
    assert student.fc.weight.abs().max() <= 512 ** -0.5 if init == "efficientnet" else student.fc.weight.std() < 0.011


def test_the_fc_of_sscd_is_xavier_without_bias() -> None:
    student = make(trunk="test_resnet", init="sscd", dim=None, kd_dim=512)
    bound = (6 / (student.fc.in_features + 512)) ** 0.5
    assert 0.99 * bound < student.fc.weight.abs().max() <= bound and not student.fc.bias.any()
    conv = student.trunk.layer3[0].conv1
    assert conv.weight.std().item() == pytest.approx((2 / conv.weight[:, 0].numel()) ** 0.5, rel=0.05)
    last = [[m for m in block.modules() if isinstance(m, nn.BatchNorm2d)] for block in student.trunk.layer4]
    assert not any(norms[-1 - bool(block.downsample)].weight.any()
                   for norms, block in zip(last, student.trunk.layer4, strict=True)), "as zero_init_residual of SSCD"


@pytest.mark.parametrize("init", INITS)
def test_an_init_leaves_pretrained_weights_and_the_projector(init: str, tmp_path: Path) -> None:
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "trunk.pth")
    student, plain = (make(init=one, pretrained=tmp_path / "trunk.pth") for one in (init, "timm"))
    assert all(torch.equal(value, plain.trunk.state_dict()[name]) for name, value in student.trunk.state_dict().items())
    assert torch.equal(student.projector.weight, plain.projector.weight)
    assert torch.equal(student.fc.weight, plain.fc.weight) == (init == "timm")


@pytest.mark.parametrize("pretrained", [False, True])
def test_statistics_are_those_of_the_weights_at_timm(pretrained: bool, tmp_path: Path) -> None:
    trunk = "test_vit.r160_in1k"
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "trunk.pth")
    student = make(trunk=trunk, pretrained=tmp_path / "trunk.pth" if pretrained else False).eval()
    own = timm.models.get_pretrained_cfg(trunk)
    assert own.mean != IMAGENET_DEFAULT_MEAN
    _, card = load_student(save_student(tmp_path / "student.safetensors", student, size=64))
    for name in ("mean", "std"):
        assert card["architecture"][name] == card["preprocessing"][name] == list(getattr(own, name))
        assert getattr(student, name).flatten().tolist() == pytest.approx(getattr(own, name))


@pytest.mark.parametrize("trunk", ["efficientnet_b0", "mobilenetv3_large_100", "fastvit_t12", "resnet50"])
def test_the_trunks_of_the_published_rows_have_imagenets_statistics(trunk: str) -> None:
    own = timm.models.get_pretrained_cfg(trunk)
    assert (own.mean, own.std) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


@pytest.mark.parametrize("name", ZOO)
def test_networks_of_the_zoo_keep_the_statistics_they_were_trained_with(name: str) -> None:
    with torch.device("meta"):
        made = ZOO[name].build()
    assert (made.architecture["mean"], made.architecture["std"]) == (list(IMAGENET_DEFAULT_MEAN),
                                                                     list(IMAGENET_DEFAULT_STD))


@pytest.mark.parametrize("trunk", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224",
                                   "deit3_small_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_transformer_that_can_takes_any_size(trunk: str) -> None:
    student = make(trunk=trunk).eval()
    with torch.no_grad():
        for size in (96, 160):
            assert student.embed(torch.rand(1, 3, size, size)).shape == (1, 6)


def test_a_transformer_of_one_size_is_made_for_another_by_an_option_of_timm() -> None:
    student = make(trunk="cait_xxs24_224")
    with pytest.raises(UserError, match=re.escape("data.size=96: it takes no pictures of that size")):
        check_size(student, 96, name="it", key="data.size")
    student = make(trunk="cait_xxs24_224", timm={"img_size": 96})
    check_size(student, 96, name="it", key="data.size")
    assert student.architecture["timm"] == {"img_size": 96}
