import pytest
import torch
from torchvision.models import resnet50
from zoo_checkpoints import RESNET50, RESNEXT101, VIT_B, classy_layout, dino_layout, layout, torchvision_layout

from rdcd.models.key_maps import KEY_MAPS, current_names, tell_format
from rdcd.models.zoo import ZOO

STATES = [(name, form) for name in ("sscd_disc_mixup", "sscd_disc_large", "dino_vitb8", "dino_vitb16")
          for form in ZOO[name].files if form != "torchscript"]


def test_the_layout_is_torchvisions() -> None:
    with torch.device("meta"):
        expected = {f"backbone.{k}": tuple(v.shape) for k, v in resnet50(num_classes=512).state_dict().items()}
    assert torchvision_layout(**RESNET50) == expected


@pytest.mark.parametrize(("name", "form"), STATES)
def test_every_tensor_has_its_place_and_shape_in_the_file(name: str, form: str) -> None:
    with torch.device("meta"):
        state = ZOO[name].build().state_dict()
    renamed = {KEY_MAPS[form](key): tuple(value.shape) for key, value in state.items()}
    assert len(renamed) == len(state) and renamed == layout(name, form)


@pytest.mark.parametrize(("form", "key", "expected"), [
    ("torchvision", "trunk.conv1.weight", "backbone.conv1.weight"),
    ("torchvision", "trunk.layer3.5.bn2.running_var", "backbone.layer3.5.bn2.running_var"),
    ("torchvision", "fc.bias", "backbone.fc.bias"),
    ("classy", "trunk.conv1.weight", "backbone.initial_block._module.0.weight"),
    ("classy", "trunk.bn1.num_batches_tracked", "backbone.initial_block._module.1.num_batches_tracked"),
    ("classy", "trunk.layer3.22.conv2.weight", "backbone.blocks.2.block2-22.convolutional_block.3.weight"),
    ("classy", "trunk.layer1.0.bn3.bias", "backbone.blocks.0.block0-0.bn.bias"),
    ("classy", "trunk.layer4.0.downsample.1.weight", "backbone.blocks.3.block3-0.downsample.1.weight"),
    ("classy", "fc.weight", "embeddings.1.weight"),
    ("dino", "trunk.blocks.11.attn.qkv.bias", "blocks.11.attn.qkv.bias"),
])
def test_names(form: str, key: str, expected: str) -> None:
    assert KEY_MAPS[form](key) == expected


def test_blocks_of_older_classy_vision_get_todays_names() -> None:
    old, new = classy_layout(**RESNEXT101, old=True), classy_layout(**RESNEXT101)
    assert list(current_names(old).items()) == list(new.items()) and set(old) != set(new)
    assert current_names(new) == new and current_names(torchvision_layout(**RESNET50)) == torchvision_layout(**RESNET50)


def test_format_is_told_by_names() -> None:
    assert tell_format(torchvision_layout(**RESNET50)) == "torchvision"
    assert tell_format(classy_layout(**RESNEXT101)) == "classy"
    assert tell_format(dino_layout(16, **VIT_B)) == "dino"
    assert tell_format(["trunk.conv1.weight", "fc.weight"]) is None and tell_format([]) is None
