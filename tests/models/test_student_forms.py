"""Trunks with layers behind their pooling, or that insist on pooling: where GeM stands, and what older weights keep."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from authors_checkpoint import settle
from omegaconf import OmegaConf
from safetensors.torch import save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from rdcd import cli
from rdcd.bench.costs import operations_of
from rdcd.errors import UserError
from rdcd.files import sha256
from rdcd.models.inference import fold_batch_norms, make_embed
from rdcd.models.off_the_shelf import OffTheShelf
from rdcd.models.student import Student, reparameterize
from rdcd.models.weights import load_student, save_student
from rdcd.training.checkpoints import check_resumable

PICTURES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
HEADS = {  # trunk → (maps before its pooling, [B, C] behind it), by its own layers
    "mobilenetv3_small_050": (lambda t, x: t.forward_features(x), lambda t, x: F.hardswish(dense(t.conv_head, x))),
    "mobilenetv4_conv_small_035": (lambda t, x: t.forward_features(x),
                                   lambda t, x: flat(t.norm_head, dense(t.conv_head, x))),
    "lcnet_050": (lambda t, x: t.forward_features(x), lambda t, x: F.hardswish(dense(t.conv_head, x))),
    "ghostnet_050": (lambda t, x: t.forward_features(x), lambda t, x: F.relu(dense(t.conv_head, x))),
    "hgnetv2_b0": (lambda t, x: t.forward_features(x),
                   lambda t, x: flat(t.head.last_conv[2], F.relu(dense(t.head.last_conv[0], x)))),
    "inception_next_atto": (lambda t, x: t.forward_features(x), lambda t, x: t.head.norm(F.gelu(t.head.fc1(x)))),
    "efficientvit_b0": (lambda t, x: t.head.in_conv(t.forward_features(x)),
                        lambda t, x: F.hardswish(t.head.classifier[1](t.head.classifier[0](x))))}
STATISTICS = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}


def dense(layer: nn.Conv2d, vectors: Tensor) -> Tensor:
    """A 1 × 1 convolution of [B, C] as a product."""
    return F.linear(vectors, layer.weight.flatten(1), layer.bias)


def flat(layer: nn.Module, vectors: Tensor) -> Tensor:
    return layer(vectors[:, :, None, None]).flatten(1)


def gem(maps: Tensor, p: float = 3) -> Tensor:
    return (maps.clamp(min=1e-6) ** p).mean(dim=(2, 3)) ** (1 / p)


def normalized(pictures: Tensor) -> Tensor:
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in STATISTICS.values())
    return (pictures - mean) / std


def make(trunk: str, *, settled: bool = True, **options: object) -> Student:
    torch.manual_seed(0)
    student = Student(trunk=trunk, dim=6, kd_dim=10, **STATISTICS | options)
    if settled:
        settle(student.trunk)
    return student.eval()


@pytest.mark.parametrize("trunk", HEADS)
def test_gem_takes_the_place_of_the_trunks_own_pooling(trunk: str) -> None:
    student = make(trunk, gem_p=4.0)
    before, behind = HEADS[trunk]
    with torch.no_grad():
        found = student(PICTURES)
        feature = student.fc(behind(student.trunk, gem(before(student.trunk, normalized(PICTURES)), p=4)))
        torch.testing.assert_close(found.features, F.normalize(feature))
        torch.testing.assert_close(found.descriptors, F.normalize(student.projector(feature)))
    assert student.architecture["pool_first"] is True
    assert (found.descriptors[0] - found.descriptors[1]).abs().max() > 1e-3


@pytest.mark.parametrize(("pool_first", "millions"), [(True, 216.1), (False, 275.1)])
def test_operations_of_mobilenetv3_at_224(pool_first: bool, millions: float) -> None:
    student = Student(trunk="mobilenetv3_large_100", pool_first=pool_first).eval()
    with torch.no_grad():
        found = operations_of(lambda count: student.embed(torch.zeros(count, 3, 224, 224)))
    assert found / 2e6 == pytest.approx(millions, abs=0.05)  # a multiplication and an addition are one MAC


@pytest.mark.parametrize("trunk", ["mobilenetv3_small_050", "mobilenetv4_conv_small_035", "hgnetv2_b0"])
@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
def test_weights_of_before_keep_their_form_bit_for_bit(trunk: str, kind: str, tmp_path: Path) -> None:
    """A file and its card as they were written before: the head at every place, then GeM."""
    torch.manual_seed(0)
    plain = settle(timm.create_model(trunk, num_classes=0, global_pool=""))
    fc, projector = nn.Linear(plain.head_hidden_size, 10), nn.Linear(10, 6)
    state = {f"{name}.{key}": value for name, module in (("trunk", plain), ("fc", fc), ("projector", projector))
             for key, value in module.state_dict().items()}
    card = {"architecture": {"trunk": trunk, "dim": 6, "kd_dim": 10, "gem_p": 3.0,
                             "mean": list(IMAGENET_DEFAULT_MEAN), "std": list(IMAGENET_DEFAULT_STD)},
            "preprocessing": {"resize": "square", "size": 64}}
    path = tmp_path / f"old.{kind}"
    if kind == "ckpt":
        torch.save({"state_dict": {f"student.{key}": value for key, value in state.items()}, "card": card}, path)
    else:
        save_file(state, path)
        path.with_suffix(".json").write_text(json.dumps(card | {"format": "rdcd-student-1",
                                                                "weights_sha256": sha256(path)}))
    student, _ = load_student(path)
    with torch.no_grad():
        maps = plain(normalized(PICTURES))
        pooled = maps.clamp(min=1e-6).pow(3).mean(dim=(2, 3)).pow(1 / 3)
        assert torch.equal(student.embed(PICTURES), F.normalize(projector(fc(pooled))))
    again, card = load_student(save_student(tmp_path / "again.safetensors", student, size=64))
    assert torch.equal(again.embed(PICTURES), student.embed(PICTURES)) and "pool_first" not in card["architecture"]


def test_a_run_does_not_go_on_in_another_form() -> None:
    """A checkpoint from before the key, and a run that pools first: weights fit, and it is another network."""
    student = make("mobilenetv3_small_050")
    module = SimpleNamespace(card={"training": {}, "architecture": student.architecture}, state_dict=student.state_dict)
    card = {"training": {}, "architecture": {k: v for k, v in student.architecture.items() if k != "pool_first"}}
    with pytest.raises(UserError, match="last.ckpt was written at student.pool_first=False, this run has True: contin"):
        check_resumable({"card": card, "state_dict": student.state_dict()}, module, path=Path("last.ckpt"))
    check_resumable({"card": module.card, "state_dict": student.state_dict()}, module, path=Path("last.ckpt"))


def test_the_configuration_of_an_older_run_keeps_what_it_meant() -> None:
    node = {"_target_": "rdcd.models.student.Student", "trunk": "mobilenetv3_small_050", "dim": 6, "kd_dim": 10}
    config = OmegaConf.create({"student": dict(node), "teacher": {"student": dict(node)}})
    cli._say_what_was_left_unsaid(config)
    for found in (config.student, config.teacher.student):
        assert found.pool_first is False and list(found.mean) == list(IMAGENET_DEFAULT_MEAN) and found.timm == {}
    config = OmegaConf.create({"student": node | {"drop_rate": 0.0, "pool_first": True, "mean": None}, "teacher": None})
    cli._say_what_was_left_unsaid(config)
    assert config.student.pool_first is True and config.student.mean is None


@pytest.mark.parametrize("trunk", ["mobilenetv3_small_050", "efficientvit_b0"])
def test_the_card_of_new_weights_says_the_form(trunk: str, tmp_path: Path) -> None:
    student = make(trunk)
    again, card = load_student(save_student(tmp_path / "new.safetensors", student, size=64))
    assert card["architecture"]["pool_first"] is True
    with torch.no_grad():
        assert torch.equal(again.embed(PICTURES), student.embed(PICTURES))


@pytest.mark.parametrize("trunk", ["test_efficientnet", "test_resnet", "test_convnext", "test_mambaout"])
def test_other_trunks_have_one_form(trunk: str) -> None:
    first, last = make(trunk), make(trunk, pool_first=False)
    with torch.no_grad():
        assert torch.equal(first.embed(PICTURES), last.embed(PICTURES))
    assert "pool_first" not in first.architecture


@pytest.mark.parametrize(("trunk", "size"), [
    ("deit_tiny_distilled_patch16_224", 96), ("coat_lite_tiny", 224), ("crossvit_9_240", 240),
    ("pit_ti_distilled_224", 224)])
def test_transformers_that_pool_themselves_give_their_class_tokens(trunk: str, size: int) -> None:
    student = make(trunk, settled=False)
    pictures = torch.rand(1, 3, size, size)
    with torch.no_grad():
        tokens = student.trunk.forward_head(student.trunk.forward_features(normalized(pictures)), pre_logits=True)
        assert tokens.shape == (1, student.fc.in_features)
        torch.testing.assert_close(student(pictures).features, F.normalize(student.fc(tokens)))


def test_maps_of_several_stages_are_pooled_and_joined() -> None:
    student = make("efficientvim_m1")
    with torch.no_grad():
        stages = student.trunk(normalized(PICTURES))
        joined = torch.cat([(stage.clamp(min=1e-6) ** 3).mean(dim=2) ** (1 / 3) for stage in stages], dim=1)
        torch.testing.assert_close(student(PICTURES).features, F.normalize(student.fc(joined)))


def test_a_trunk_with_its_own_pooling_has_no_former_form() -> None:
    with pytest.raises(UserError, match="student.pool_first=false: timm builds efficientvit_b0 only with its own poo"):
        make("efficientvit_b0", pool_first=False)


@pytest.mark.parametrize("trunk", ["mobilenetv3_small_050", "efficientvit_b0"])
def test_weights_of_timm_fit(trunk: str, tmp_path: Path) -> None:
    whole = timm.create_model(trunk)
    save_file(whole.state_dict(), tmp_path / "trunk.safetensors")
    student = make(trunk, pretrained=tmp_path / "trunk.safetensors")
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in
               Student(trunk=trunk, pretrained=tmp_path / "trunk.safetensors").trunk.state_dict().items())
    assert student.trunk.state_dict().keys() < whole.state_dict().keys()


@pytest.mark.parametrize("trunk", ["mobilenetv3_small_050", "mobilenetv4_conv_small_035", "efficientvit_b0"])
def test_made_ready_for_inference_it_is_the_same(trunk: str) -> None:
    student = make(trunk)
    pictures = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = student.embed(pictures.float() / 255)
        torch.testing.assert_close(make_embed(student, device="cpu")(pictures), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(reparameterize(student).embed(pictures.float() / 255), expected, atol=1e-5, rtol=0)
    if trunk == "efficientvit_b0":  # its attention asks for the type that autocast sets, which no tracer follows
        return
    assert fold_batch_norms(student) > 10
    assert not any(isinstance(module, nn.BatchNorm2d) for module in student.modules())


def test_gradient_reaches_every_parameter() -> None:
    student = Student(trunk="mobilenetv3_small_050", dim=6, kd_dim=10).train()
    found = student(torch.rand(4, 3, 64, 64))
    (found.features[:, 0] + found.descriptors[:, 0]).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in student.parameters())


def test_a_trunk_as_it_comes_pools_where_its_own_network_does() -> None:
    network = OffTheShelf("mobilenetv3_small_050", pretrained=False).eval()
    before, behind = HEADS["mobilenetv3_small_050"]
    with torch.no_grad():
        expected = behind(network.trunk, gem(before(network.trunk, normalized(PICTURES))))
        torch.testing.assert_close(network.embed(PICTURES), F.normalize(expected))
