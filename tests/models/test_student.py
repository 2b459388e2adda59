from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
import torch.nn.functional as F
from authors_checkpoint import settle
from safetensors.torch import save_file
from torch import Tensor

from rdcd.errors import UserError
from rdcd.models.student import Student, check_size, is_safetensors, load_trunk, parameter_count, pooled, reparameterize

PICTURES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))  # maps of 2 x 3 places


def make(**options) -> Student:
    torch.manual_seed(0)
    return Student(**{"trunk": "test_efficientnet", "dim": 6, "kd_dim": 10} | options).eval()


def normalized(pictures: Tensor, trunk: str) -> Tensor:
    own = timm.models.get_pretrained_cfg(trunk)
    return torch.stack([(pictures[:, c] - own.mean[c]) / own.std[c] for c in range(3)], dim=1)


def gem(places: Tensor) -> Tensor:
    """GeM of [B, N, C]."""
    return (places.clamp(min=1e-6) ** 3).mean(dim=1) ** (1 / 3)


def by_hand(student: Student, pictures: Tensor, places) -> tuple[Tensor, Tensor]:
    """Both outputs by the text of docs/method.md §1; `places` turns the trunk's answer into [B, N, C]."""
    found = places(student.trunk(normalized(pictures, student.architecture["trunk"])))
    fc = gem(found) @ student.fc.weight.T + student.fc.bias
    projected = fc @ student.projector.weight.T + student.projector.bias
    return fc / fc.norm(dim=1, keepdim=True), projected / projected.norm(dim=1, keepdim=True)


@pytest.mark.parametrize(("trunk", "millions", "alone"), [  # also in docs/students.md
    ("efficientnet_b0", 4.66, 4.01), ("mobilenetv3_large_100", 4.86, 4.20), ("resnet50", 24.56, 23.51),
    ("fastvit_t12", 7.05, 6.53), ("test_byobnet", 0.33, 0.20)])
def test_parameters_of_trunk_and_fc(trunk: str, millions: float, alone: float) -> None:
    with torch.device("meta"):  # counts without memory
        student = Student(trunk=trunk, dim=None, kd_dim=512)
    assert round(parameter_count(student) / 1e6, 2) == millions
    assert round(parameter_count(student.trunk) / 1e6, 2) == alone
    assert student.projector is None and student.dim == 512


@pytest.mark.parametrize("trunk", ["vit_base_patch8_224.dino", "vit_base_patch16_224.dino"])
def test_parameters_of_the_trunk_of_dino_teachers(trunk: str) -> None:
    with torch.device("meta"):
        assert round(parameter_count(Student(trunk=trunk).trunk) / 1e6, 1) == 85.8


@pytest.mark.parametrize(("trunk", "places"), [
    ("test_efficientnet", lambda maps: maps.flatten(2).transpose(1, 2)),  # [B, C, H, W]
    ("test_mambaout", lambda maps: maps.flatten(1, 2)),                   # [B, H, W, C]
    ("test_vit", lambda tokens: tokens[:, 1:]),                           # [B, 1 + N, C]
])
def test_every_kind_of_trunk_equals_the_method_by_hand(trunk: str, places) -> None:
    student = make(trunk=trunk)
    with torch.no_grad():
        found, expected = student(PICTURES), by_hand(student, PICTURES, places)
    torch.testing.assert_close(found.features, expected[0])
    torch.testing.assert_close(found.descriptors, expected[1])
    assert torch.equal(student.embed(PICTURES), found.descriptors)


def test_tokens_of_a_trunk_without_class_token_are_all_pooled() -> None:
    student = make(trunk="resmlp_12_224")
    pictures = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = by_hand(student, pictures, lambda tokens: tokens)[1]
        torch.testing.assert_close(student.embed(pictures), expected)


def test_projector_is_one_biased_layer_on_the_unnormalized_fc_output() -> None:
    student = make()
    assert student.projector.bias is not None and tuple(student.projector.weight.shape) == (6, 10)
    seen = []
    student.projector.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    found = student(PICTURES)
    hidden, projected = seen[0]
    assert not torch.allclose(hidden.norm(dim=1), torch.ones(2), atol=1e-3)
    torch.testing.assert_close(found.features, F.normalize(hidden, dim=1))
    torch.testing.assert_close(found.descriptors, F.normalize(projected, dim=1))


@pytest.mark.parametrize("dim", [1, 7, 64, 300, None])
def test_any_dim_gives_unit_descriptors(dim: int | None) -> None:
    student = make(dim=dim)
    found = student(PICTURES)
    assert found.descriptors.shape == (2, student.dim) and found.features.shape == (2, 10)
    assert student.dim == (dim or 10)
    for output in found:
        assert output.dtype == torch.float32
        torch.testing.assert_close(output.norm(dim=1), torch.ones(2))
    if dim is None:
        assert found.features is found.descriptors


@pytest.mark.parametrize("trunk", ["efficientnet_b0", "mobilenetv3_large_100", "fastvit_t12"])
def test_any_size_of_picture_gives_one_size_of_descriptor(trunk: str) -> None:
    student = make(trunk=trunk)
    for height, width in [(64, 64), (128, 128), (256, 256), (512, 512), (37, 37), (37, 90)]:
        with torch.inference_mode():
            found = student(torch.rand(1, 3, height, width))
        assert found.features.shape == (1, 10) and found.descriptors.shape == (1, 6)
        for output in found:
            torch.testing.assert_close(output.norm(dim=1), torch.ones(1))


def test_pooled_features_are_those_under_the_fc() -> None:
    student = make()
    with torch.no_grad():
        found = pooled(student.trunk, student.pool, (PICTURES - student.mean) / student.std)
        assert found.shape == (2, student.fc.in_features)
        torch.testing.assert_close(F.normalize(student.fc(found)), student(PICTURES).features)


@pytest.mark.parametrize("trunk", ["fastvit_t12", "repvgg_a0", "mobileone_s0"])
def test_a_reparameterized_student_gives_the_same_descriptors(trunk: str) -> None:
    student = make(trunk=trunk, dim=16)
    settle(student.trunk)
    student.train()
    pictures = PICTURES[..., :64]
    state = {k: v.clone() for k, v in student.state_dict().items()}
    folded = reparameterize(student)
    assert student.training and not folded.training
    assert student.state_dict().keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in student.state_dict().items()), "the student itself is left alone"
    with torch.no_grad():
        found, expected = folded(pictures), student.eval()(pictures)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert parameter_count(folded) < parameter_count(student)
    assert (expected.descriptors[0] - expected.descriptors[1]).abs().max() > 1e-3


@pytest.mark.parametrize("trunk", ["efficientnet_b0", "mobilenetv3_large_100", "test_vit"])
def test_a_trunk_with_nothing_to_fold_is_copied(trunk: str) -> None:
    student = make(trunk=trunk)
    folded = reparameterize(student)
    assert folded is not student and folded.state_dict().keys() == student.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(folded.embed(PICTURES[..., :64]), student.embed(PICTURES[..., :64]))


def test_own_mean_and_std() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    student = make(mean=mean, std=std)
    plain = make(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # same seed, same weights
    normalized = (PICTURES - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(student.embed(PICTURES), plain.embed(normalized))
    assert not {"mean", "std"} & set(student.state_dict())  # they travel in the card


def test_gem_exponent_is_an_option() -> None:
    assert make(gem_p=4.0).pool.p == 4.0
    with torch.no_grad():
        assert (make(gem_p=1.0).embed(PICTURES) - make().embed(PICTURES)).abs().max() > 1e-4


def test_outputs_are_fp32_under_autocast() -> None:
    student = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = student(PICTURES)
    for output in found:
        assert output.dtype == torch.float32
        torch.testing.assert_close(output.norm(dim=1), torch.ones(2))


def test_gradient_reaches_every_parameter() -> None:
    student = make().train()
    found = student(PICTURES)
    (found.features[:, 0] + found.descriptors[:, 0]).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in student.parameters())


@pytest.mark.parametrize(("trunk", "classifier"), [
    ("efficientnet_b0", "classifier"), ("mobilenetv3_large_100", "classifier"), ("fastvit_t12", "head.fc"),
    ("test_efficientnet", "classifier"), ("test_resnet", "fc"), ("test_convnext", "head.fc"),
    ("test_vit", "head")])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_trunk_weights_from_a_half_precision_file(tmp_path: Path, trunk: str, classifier: str,
                                                  suffix: str) -> None:
    torch.manual_seed(1)
    whole = timm.create_model(trunk)
    state = {k: v.half() if v.is_floating_point() else v for k, v in whole.state_dict().items()}
    assert f"{classifier}.weight" in state
    path = tmp_path / f"trunk{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    student = make(trunk=trunk, pretrained=str(path))
    for name, value in student.trunk.state_dict().items():
        assert torch.equal(value, state[name].to(value.dtype)), name
        assert value.dtype in (torch.float32, torch.int64)
    assert torch.isfinite(student.embed(PICTURES)).all()


@pytest.mark.parametrize(("trunk", "blocks"), [
    ("efficientnet_b0", 9), ("mobilenetv3_large_100", 10), ("efficientnet_b0_gn", 9), ("test_vit", 0)])
def test_zero_init_residual_makes_every_block_with_a_skip_the_identity(trunk: str, blocks: int) -> None:
    student = make(trunk=trunk, zero_init_residual=True).train()
    found = []
    for block in student.trunk.modules():
        if getattr(block, "has_skip", False):
            block.register_forward_hook(lambda module, inputs, output: found.append(torch.equal(inputs[0], output)))
    if trunk == "test_vit":
        assert torch.equal(student.embed(PICTURES[..., :64]), make(trunk=trunk).train().embed(PICTURES[..., :64]))
    else:
        student.embed(PICTURES)
    assert found == [True] * blocks
    plain = make(trunk=trunk)  # one draw of random weights, whatever the option
    changed = [name for name, value in student.state_dict().items() if "running" not in name and "tracked" not in name
               and not torch.equal(value, plain.state_dict()[name])]
    assert len(changed) == blocks and all(name.endswith(".weight") for name in changed)


def test_zero_init_residual_leaves_pretrained_weights(tmp_path: Path) -> None:
    state = timm.create_model("test_efficientnet").state_dict()
    save_file(state, tmp_path / "trunk.safetensors")
    student = make(pretrained=tmp_path / "trunk.safetensors", zero_init_residual=True)
    assert all(torch.equal(value, state[name]) for name, value in student.trunk.state_dict().items())


def test_random_weights_differ_from_the_file_and_between_seeds() -> None:
    one = make()
    torch.manual_seed(1)
    other = Student(trunk="test_efficientnet", dim=6, kd_dim=10)
    assert not torch.equal(one.fc.weight, other.fc.weight)
    assert not torch.equal(one.trunk.conv_stem.weight, other.trunk.conv_stem.weight)


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    trunk = timm.create_model("test_efficientnet", num_classes=0, global_pool="")
    state = trunk.state_dict()
    state["extra.weight"] = torch.zeros(1)
    state["conv_stem.weight"] = torch.zeros(1, 2)
    del state["bn1.bias"], state["bn1.weight"]
    save_file(state, tmp_path / "trunk.safetensors")
    before = {k: v.clone() for k, v in trunk.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_trunk(trunk, tmp_path / "trunk.safetensors")
    message = str(error.value)
    assert str(tmp_path / "trunk.safetensors") in message
    assert "2 missing (bn1.weight, bn1.bias)" in message and "1 unexpected (extra.weight)" in message
    assert f"1 misshaped (conv_stem.weight (1, 2) for {tuple(before['conv_stem.weight'].shape)})" in message
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())


def test_many_misfits_are_shortened(tmp_path: Path) -> None:
    save_file({"other": torch.zeros(1)}, tmp_path / "trunk.safetensors")
    with pytest.raises(UserError, match=r"\d+ missing \(\S+, \S+, \S+, \S+, …\); 1 unexpected \(other\)"):
        make(pretrained=tmp_path / "trunk.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_truncated_and_missing_files_are_said(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"trunk{suffix}"
    with pytest.raises(UserError, match=f"no weights file {path}"):
        make(pretrained=str(path))
    state = timm.create_model("test_efficientnet").state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"1,000 bytes.*truncated"):
        make(pretrained=str(path))


def test_a_file_of_something_else_is_said(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds no dict of tensors"):
        make(pretrained=tmp_path / "list.pth")


@pytest.mark.parametrize(("trunk", "said"), [
    ("efficientnet_b00", "timm has no such model; near it: .*efficientnet_b0"),
    ("zzz", r"timm has no such model; `timm.list_models\(\)` lists them"),
    ("test_resnet.nosuchtag", "nosuchtag"),
])
def test_unknown_and_unfit_trunks_are_said(trunk: str, said: str) -> None:
    with pytest.raises(UserError, match=f"student.trunk={trunk}: .*{said}"):
        Student(trunk=trunk)


@pytest.mark.parametrize("name", ["dim", "kd_dim"])
def test_sizes_must_be_positive(name: str) -> None:
    with pytest.raises(UserError, match=f"student.{name}=0: expected a whole number of at least 1"):
        make(**{name: 0})


def test_hub_weights_out_of_reach_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match="no network.*student.pretrained=FILE"):
        make(pretrained=True)


def test_hub_weights_without_a_network_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="pretrained=true: timm could not fetch fastvit_t12 .*student.pretrained=FILE"):
        make(trunk="fastvit_t12", pretrained=True)


def test_hub_weights_are_the_trunks(monkeypatch: pytest.MonkeyPatch) -> None:
    create, asked = timm.create_model, []

    def hub(name: str, *, pretrained: bool, **options):
        asked.append((name, pretrained))
        trunk = create(name, **options)
        trunk.conv_stem.weight.data.fill_(0.5)
        return trunk

    monkeypatch.setattr(timm, "create_model", hub)
    student = make(trunk="efficientnet_b0", pretrained=True, zero_init_residual=True)
    assert asked == [("efficientnet_b0", True)]
    assert (student.trunk.conv_stem.weight == 0.5).all() and (student.trunk.blocks[1][1].bn3.weight == 1).all()
    assert "pretrained" not in student.architecture  # the card describes what a file holds


def test_the_content_tells_safetensors_not_the_name(tmp_path: Path) -> None:
    state = timm.create_model("test_efficientnet").state_dict()
    save_file(state, tmp_path / "trunk.pth")
    torch.save(state, tmp_path / "trunk.safetensors")
    assert is_safetensors(tmp_path / "trunk.pth") and not is_safetensors(tmp_path / "trunk.safetensors")
    for name in ("trunk.pth", "trunk.safetensors"):
        assert torch.equal(make(pretrained=tmp_path / name).trunk.conv_stem.weight, state["conv_stem.weight"])


@pytest.mark.parametrize(("options", "said"), [
    ({"trunk": None}, "student.trunk=None: expected the name of a timm model"),
    ({"pretrained": 1}, "student.pretrained=1: expected false, true, or a file"),
    ({"gem_p": 0}, "student.gem_p=0: expected a number above 0")])
def test_options_of_a_wrong_kind_are_said(options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make(**options)


@pytest.mark.parametrize("size", [160, 192, 224])
def test_a_vision_transformer_takes_other_sizes(size: int) -> None:
    student = Student(trunk="vit_tiny_patch16_224", dim=4, kd_dim=6).eval()
    with torch.no_grad():
        assert student.embed(torch.rand(1, 3, size, size)).shape == (1, 4)
    with pytest.raises(UserError, match="data.size=150: it takes no pictures of that size .*; take the size it was"):
        check_size(student, 150, name="it", key="data.size")
    student.train()
    check_size(student, size, name="it", key="data.size")
    assert student.training
