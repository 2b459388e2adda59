from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo_checkpoints import (
    RESNET50,
    RESNEXT101,
    classy_layout,
    layout,
    random_state,
    synthetic_checkpoint,
    torchvision_layout,
    trace,
)

from rdcd.errors import UserError
from rdcd.files import sha256
from rdcd.models import zoo
from rdcd.models.student import Student
from rdcd.models.teacher import Teacher
from rdcd.models.zoo import ZOO, ZooTeacher, load_zoo

PICTURES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
RESNETS = ["sscd_disc_mixup", "sscd_disc_advanced", "sscd_disc_blur", "sscd_imagenet_mixup",
           "sscd_imagenet_advanced", "sscd_imagenet_blur"]
STEMS = {"torchvision": ("backbone.conv1", "backbone.bn1"),
         "classy": ("backbone.initial_block._module.0", "backbone.initial_block._module.1"),
         "classy, old": ("backbone.initial_block._module.0", "backbone.initial_block._module.1")}
BLOCKS = {"torchvision": lambda stage, block: f"backbone.layer{stage + 1}.{block}",
          "classy": lambda stage, block: f"backbone.blocks.{stage}.block{stage}-{block}",
          "classy, old": lambda stage, block: f"backbone.blocks.{stage}.{block}._module"}
CLASSY = [("convolutional_block.0", "convolutional_block.1"), ("convolutional_block.3", "convolutional_block.4"),
          ("convolutional_block.6", "bn")]
LAYERS = {"torchvision": [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")], "classy": CLASSY,
          "classy, old": CLASSY}
HEADS = {"torchvision": "backbone.fc", "classy": "embeddings.1", "classy, old": "embeddings.1"}


def sscd_by_hand(state: dict[str, Tensor], form: str, depths: tuple[int, ...], groups: int) -> Tensor:
    """SSCD's descriptor of `PICTURES` from the raw tensors of a file."""

    def conv_bn(x: Tensor, conv: str, bn: str, **options: int) -> Tensor:
        x = F.conv2d(x, state[f"{conv}.weight"], **options)
        scale = state[f"{bn}.weight"] / (state[f"{bn}.running_var"] + 1e-5).sqrt()
        shift = state[f"{bn}.bias"] - state[f"{bn}.running_mean"] * scale
        return x * scale[:, None, None] + shift[:, None, None]

    x = torch.stack([(PICTURES[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1)
    x = F.max_pool2d(conv_bn(x, *STEMS[form], stride=2, padding=3).relu(), 3, stride=2, padding=1)
    for stage, depth in enumerate(depths):
        for block in range(depth):
            name, stride = BLOCKS[form](stage, block), 2 if stage and not block else 1
            one, two, three = [(f"{name}.{conv}", f"{name}.{bn}") for conv, bn in LAYERS[form]]
            y = conv_bn(x, *one).relu()
            y = conv_bn(y, *two, stride=stride, padding=1, groups=groups).relu()
            y = conv_bn(y, *three)
            if not block:
                x = conv_bn(x, f"{name}.downsample.0", f"{name}.downsample.1", stride=stride)
            x = (x + y).relu()
    pooled = (x.clamp(min=1e-6) ** 3).mean(dim=(2, 3)) ** (1 / 3)
    descriptor = pooled @ state[f"{HEADS[form]}.weight"].T + state[f"{HEADS[form]}.bias"]
    return descriptor / descriptor.norm(dim=1, keepdim=True)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def embed(network: nn.Module) -> Tensor:
    with torch.no_grad():
        return network.embed(PICTURES)


@pytest.fixture(scope="module")
def mixup(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """The default teacher's file, and its tensors; do not change it."""
    path = tmp_path_factory.mktemp("zoo") / "weights.bin"
    return path, synthetic_checkpoint("sscd_disc_mixup", None, path, seed=0)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    path = tmp_path_factory.mktemp("zoo") / "weights.bin"
    return path, synthetic_checkpoint("sscd_disc_mixup", "torchscript", path, seed=2)


def test_the_zoo_is_that_of_the_papers() -> None:
    sscd, dino = "https://dl.fbaipublicfiles.com/sscd-copy-detection", "https://dl.fbaipublicfiles.com/dino"
    expected = {f"{name} {form}": f"{sscd}/{name}.{form}.pt" for name in RESNETS
                for form in ("torchvision", "classy", "torchscript")}
    expected |= {f"sscd_disc_large {form}": f"{sscd}/sscd_disc_large.{form}.pt" for form in ("classy", "torchscript")}
    expected |= {f"dino_vitb{patch} dino": f"{dino}/dino_vitbase{patch}_pretrain/dino_vitbase{patch}_pretrain.pth"
                 for patch in (8, 16)}
    assert {f"{name} {form}": file.url for name, entry in ZOO.items() for form, file in entry.files.items()} == expected
    assert {name: next(iter(ZOO[name].files)) for name in ZOO} == dict.fromkeys(RESNETS, "torchvision") | {
        "sscd_disc_large": "classy", "dino_vitb8": "dino", "dino_vitb16": "dino"}
    assert all(entry.name == name for name, entry in ZOO.items())


@pytest.mark.parametrize(("name", "form", "size"), [
    *((name, "torchvision", RESNET50) for name in ("sscd_disc_mixup", "sscd_imagenet_blur")),
    ("sscd_disc_advanced", "classy", RESNET50), ("sscd_disc_large", "classy", RESNEXT101)])
def test_descriptors_equal_the_method_by_hand(name: str, form: str, size: dict, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    state = synthetic_checkpoint(name, form, path, seed=1)
    network, card = load_zoo(name, path=path)
    assert isinstance(network, Student) and not any(module.training for module in network.modules())
    found = embed(network)
    assert network.dim == size["dim"] and found.shape == (2, size["dim"]) and found.dtype == torch.float32
    expected = sscd_by_hand(state, form, size["depths"], size["groups"])
    assert (expected[0] - expected[1]).norm() > 0.05  # pictures are told apart
    close(found, expected)
    trunk = "resnext101_32x4d" if name == "sscd_disc_large" else "resnet50"
    assert card["architecture"] == {"trunk": trunk, "zoo": name} and network.architecture["trunk"] == trunk
    assert card["preprocessing"] == {"resize": "square", "size": 288, "mean": MEAN, "std": STD}
    assert card["weights_sha256"] == sha256(path) and card["licence"].startswith("MIT")


@pytest.mark.parametrize(("name", "size"), [("sscd_disc_mixup", RESNET50), ("sscd_disc_large", RESNEXT101)])
def test_blocks_of_older_classy_vision_are_read(name: str, size: dict, tmp_path: Path) -> None:
    state = random_state(classy_layout(**size, old=True), seed=3)
    torch.save(state, tmp_path / "weights.bin")
    network, _ = load_zoo(name, path=tmp_path / "weights.bin")
    close(embed(network), sscd_by_hand(state, "classy, old", size["depths"], size["groups"]))


def test_half_precision_is_widened(mixup, tmp_path: Path) -> None:
    half = {key: value.half() if value.is_floating_point() else value for key, value in mixup[1].items()}
    torch.save(half, tmp_path / "half.pt")
    network, _ = load_zoo("sscd_disc_mixup", path=tmp_path / "half.pt")
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    wide = {key: value.float() for key, value in half.items()}
    close(embed(network), sscd_by_hand(wide, "torchvision", RESNET50["depths"], 1))


def test_a_teacher_of_the_zoo_loads_as_its_settings_say(mixup) -> None:
    network, card = ZooTeacher("sscd_disc_mixup", path=str(mixup[0]), format="torchvision").load()
    teacher = Teacher(network)
    assert teacher.dim == 512 and card["weights_sha256"] == sha256(mixup[0])
    close(teacher(PICTURES), sscd_by_hand(mixup[1], "torchvision", RESNET50["depths"], 1))
    with pytest.raises(UserError, match="teacher.name=nosuch"):
        ZooTeacher("nosuch").load()


@pytest.mark.parametrize(("name", "format", "said"), [
    ("sscd_mixup", None, "teacher.name=sscd_mixup: the zoo has no such network; near it: .*sscd_disc_mixup"),
    (None, None, "teacher.name=None: .*it has sscd_disc_mixup, .*dino_vitb16"),
    ("sscd_disc_large", "torchvision", "teacher.format=torchvision: sscd_disc_large exists as classy, torchscript"),
    ("dino_vitb8", "timm", "teacher.format=timm: dino_vitb8 exists as dino")])
def test_unknown_names_and_formats_are_said(name: str, format: str | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_zoo(name, path="weights.pt", format=format)


@pytest.mark.parametrize(("form", "shapes"), [
    ("torchvision", torchvision_layout(**RESNET50)), ("classy", classy_layout(**RESNET50))])
def test_weights_that_do_not_fit_are_listed_in_the_files_own_names(form: str, shapes: dict, tmp_path: Path) -> None:
    state = random_state(shapes, seed=0)
    first, second, third = [key for key in state if key.endswith("running_mean")][:3]
    state["extra"] = state.pop(first)
    state[second] = torch.zeros(3)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(UserError) as error:
        load_zoo("sscd_disc_mixup", path=tmp_path / "weights.pt")
    said = str(error.value)
    assert f"does not fit sscd_disc_mixup ({form})" in said and str(tmp_path / "weights.pt") in said
    assert f"1 missing ({first})" in said and "1 unexpected (extra)" in said
    assert f"1 misshaped ({second} (3,) for (64,))" in said and third not in said


@pytest.mark.parametrize(("wanted", "name", "form", "said"), [
    ("sscd_disc_mixup", "sscd_disc_large", "classy",
     "is no sscd_disc_mixup: its keys and shapes are those of sscd_disc_large; say teacher=sscd_disc_large"),
    ("sscd_disc_large", "sscd_disc_blur", "classy",
     "is no sscd_disc_large: .* of sscd_disc_mixup or .*sscd_disc_blur.*; say teacher=sscd_disc_mixup"),
    ("sscd_disc_large", "sscd_disc_blur", "torchvision",
     "is no sscd_disc_large: its content is torchvision, as of .*sscd_disc_blur"),
    ("sscd_disc_mixup", "dino_vitb8", "dino", "its content is dino, as of dino_vitb8, dino_vitb16"),
    ("dino_vitb16", "sscd_disc_mixup", "torchvision", "is no dino_vitb16: its content is torchvision"),
    ("dino_vitb16", "dino_vitb8", "dino", "keys and shapes are those of dino_vitb8; say teacher=dino_vitb8")])
def test_the_file_of_another_network_is_named(wanted: str, name: str, form: str, said: str, tmp_path: Path) -> None:
    shapes = layout(name, form)
    torch.save({key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=said):
        load_zoo(wanted, path=tmp_path / "weights.pt")


def test_format_is_told_by_content_never_by_name(mixup, tmp_path: Path) -> None:
    path = tmp_path / "dino" / "sscd_disc_large.classy.torchscript.pt"
    path.parent.mkdir()
    path.symlink_to(mixup[0])
    close(embed(load_zoo("sscd_disc_mixup", path=path)[0]), embed(load_zoo("sscd_disc_mixup", path=mixup[0])[0]))
    with pytest.raises(UserError, match="teacher.format=classy, but the content of .* is torchvision"):
        load_zoo("sscd_disc_mixup", path=path, format="classy")
    with pytest.raises(UserError, match="teacher.format=torchscript, but the content of .* is torchvision"):
        load_zoo("sscd_disc_mixup", path=path, format="torchscript", allow_torchscript=True)


@pytest.mark.parametrize(("content", "said"), [
    ({"trunk.conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)},
     r"is no file of the zoo: its keys \(trunk.conv1.weight, fc.bias, …\) are none of torchvision, classy, dino"),
    ([1], "holds no dict of tensors"), (None, "no weights file"), ("truncated", "is not a readable weights file")])
def test_foreign_missing_and_broken_files_are_said(content: object, said: str, mixup, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    if content == "truncated":
        path.write_bytes(mixup[0].read_bytes()[:100_000])
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=f"{path}.*{said}" if content is not None else f"{said} {path}"):
        load_zoo("sscd_disc_mixup", path=path)


def test_torchscript_equals_the_method_by_hand(traced) -> None:
    path, state = traced
    network, card = load_zoo("sscd_disc_mixup", path=path, allow_torchscript=True)
    assert not network.training and network.dim == 512 and network.architecture == {"trunk": "resnet50"}
    close(Teacher(network)(PICTURES), sscd_by_hand(state, "torchvision", RESNET50["depths"], 1))
    assert card["weights_sha256"] == sha256(path) and card["preprocessing"]["size"] == 288


@pytest.mark.parametrize("options", [{}, {"format": "torchscript"}, {"allow_torchscript": 1}])
def test_torchscript_is_refused_unread_unless_allowed(options: dict, traced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.jit, "load", lambda *args, **kwargs: pytest.fail("it was loaded"))
    with pytest.raises(UserError, match="code that runs when it is loaded.*teacher.allow_torchscript=true"):
        load_zoo("sscd_disc_mixup", path=traced[0], **options)


def test_torchscript_is_refused_before_it_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "fetch", lambda *args, **kwargs: pytest.fail("it was fetched"))
    with pytest.raises(UserError, match="teacher.format=torchscript: .*teacher.allow_torchscript=true"):
        load_zoo("sscd_disc_mixup", format="torchscript")


class Means(nn.Module):
    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.mean(dim=(2, 3))


class Pair(nn.Module):
    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        return pictures, pictures


class NarrowOnly(nn.Module):
    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.flatten(1) @ torch.zeros(3, 512)


@pytest.mark.parametrize(("make", "name", "said"), [
    (Means, "sscd_disc_mixup", r"gives an output of shape \[1, 3\] for one picture, sscd_disc_mixup one of \[1, 512\]"),
    (Pair, "sscd_disc_mixup", "is not a TorchScript network that turns pictures into descriptors"),
    (Means, "dino_vitb8", "is no dino_vitb8: its content is torchscript")])
def test_a_traced_network_of_another_kind_is_said(make: Callable, name: str, said: str, tmp_path: Path) -> None:
    trace(make(), tmp_path / "weights.pt")
    with pytest.raises(UserError, match=said):
        load_zoo(name, path=tmp_path / "weights.pt", allow_torchscript=True)


def test_a_traced_network_that_fails_on_pictures_is_said(tmp_path: Path) -> None:
    trace(NarrowOnly(), tmp_path / "weights.pt", size=1)
    with pytest.raises(UserError, match="is not a TorchScript network that turns pictures into descriptors"):
        load_zoo("sscd_disc_mixup", path=tmp_path / "weights.pt", allow_torchscript=True)


@pytest.mark.parametrize(("name", "format", "file"), [
    ("sscd_disc_mixup", None, "sscd_disc_mixup.torchvision.pt"),
    ("sscd_disc_mixup", "classy", "sscd_disc_mixup.classy.pt"),
    ("dino_vitb16", None, "dino_vitbase16_pretrain.pth")])
def test_without_a_path_the_file_is_fetched_into_the_cache(name: str, format: str | None, file: str, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(url: str, path: Path, **options) -> Path:
        asked.append((url, path, options))
        raise UserError("fetched")

    monkeypatch.setattr(zoo, "fetch", fetch)
    monkeypatch.setitem(ZOO, name, replace(ZOO[name], files={
        form: replace(found, size=7, sha256="ab") for form, found in ZOO[name].files.items()}))
    with pytest.raises(UserError, match="fetched"):
        load_zoo(name, format=format, cache=tmp_path)
    (url, path, options), = asked
    assert url.endswith(f"/{file}") and path == tmp_path / file
    assert options == {"size": 7, "sha256": "ab", "instead": f"teacher.path=FILE (to measure it, {name}:FILE)"}


def test_a_file_in_the_cache_is_loaded_without_network(mixup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RDCD_CACHE", str(tmp_path))
    (tmp_path / "sscd_disc_mixup.torchvision.pt").write_bytes(mixup[0].read_bytes())
    assert ZooTeacher("sscd_disc_mixup").weights() == tmp_path / "sscd_disc_mixup.torchvision.pt"
    assert ZooTeacher("sscd_disc_mixup", path="mine.pt").weights() == Path("mine.pt")
    network, card = load_zoo("sscd_disc_mixup")
    close(embed(network), sscd_by_hand(mixup[1], "torchvision", RESNET50["depths"], 1))
    assert card["weights_sha256"] == sha256(mixup[0])


def test_offline_the_way_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = replace(ZOO["sscd_disc_mixup"].files["torchvision"], url="http://127.0.0.1:9/sscd_disc_mixup.torchvision.pt")
    monkeypatch.setitem(ZOO, "sscd_disc_mixup", replace(ZOO["sscd_disc_mixup"], files={"torchvision": dead}))
    place = tmp_path / "sscd_disc_mixup.torchvision.pt"
    with pytest.raises(UserError, match=f"cannot fetch {dead.url} .*put it at {place} or give teacher.path=FILE"):
        load_zoo("sscd_disc_mixup", cache=tmp_path)
