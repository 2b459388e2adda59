"""A trunk as it comes: GeM of its features, by a plain computation."""

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from rdcd.errors import UserError
from rdcd.models.off_the_shelf import OffTheShelf
from rdcd.models.student import parameter_count


def test_it_is_gem_over_the_trunks_maps(tmp_path):
    plain = timm.create_model("test_efficientnet", num_classes=0, global_pool="").eval()
    save_file(plain.state_dict(), tmp_path / "trunk.safetensors")
    network = OffTheShelf("test_efficientnet", pretrained=tmp_path / "trunk.safetensors").eval()
    pictures = torch.rand(3, 3, 48, 40)
    mean, std = (torch.tensor(plain.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        maps = plain((pictures - mean) / std)
        expected = F.normalize((maps.clamp(min=1e-6) ** 3).mean(dim=(2, 3)) ** (1 / 3), dim=1)
        assert torch.allclose(network.embed(pictures), expected, atol=1e-5)
    assert network.dim == expected.shape[1] and parameter_count(network) == parameter_count(plain)


def test_pictures_are_normalized_as_the_trunk_wants_and_sized_as_its_card_says():
    network = OffTheShelf("test_vit", pretrained=False).eval()
    card = network.trunk.pretrained_cfg
    assert network.mean.ravel().tolist() == pytest.approx(list(card["mean"]))
    assert network.std.ravel().tolist() == pytest.approx(list(card["std"]))
    assert network.size == card["input_size"][-1]
    with torch.no_grad():
        assert network.embed(torch.rand(2, 3, network.size, network.size)).norm(dim=1).tolist() == pytest.approx([1, 1])


def test_mistakes_are_said(tmp_path):
    with pytest.raises(UserError, match="resnet0: timm has no such model"):
        OffTheShelf("resnet0")
    with pytest.raises(UserError, match="no weights file"):
        OffTheShelf("test_efficientnet", pretrained=tmp_path / "none.pth")
