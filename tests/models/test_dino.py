from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor
from zoo_checkpoints import dino_layout, random_state, synthetic_checkpoint

from rdcd.errors import UserError
from rdcd.files import sha256
from rdcd.models.dino import DinoDescriptor
from rdcd.models.zoo import load_zoo

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
TINY = {"dim": 64, "depth": 6, "size": 160, "mlp_ratio": 3}  # timm's test_vit: 2 heads, 10 × 10 patches of 16


def pictures(height: int, width: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def positions_by_hand(state: dict[str, Tensor], rows: int, columns: int) -> Tensor:
    table = state["pos_embed"][0]
    side = round((len(table) - 1) ** 0.5)
    if (rows, columns) == (side, side):
        return table
    cells = table[1:].T.reshape(1, -1, side, side)
    cells = F.interpolate(cells, scale_factor=((rows + 0.1) / side, (columns + 0.1) / side), mode="bicubic")
    return torch.cat([table[:1], cells[0].reshape(table.shape[1], -1).T])


def dino_by_hand(state: dict[str, Tensor], batch: Tensor, *, heads: int) -> Tensor:
    """The descriptor from the raw tensors of a file, picture by picture, head by head."""

    def norm(x: Tensor, name: str) -> Tensor:
        x = (x - x.mean(dim=1, keepdim=True)) / (x.var(dim=1, keepdim=True, unbiased=False) + 1e-6).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    kernel = state["patch_embed.proj.weight"]
    patch, found = kernel.shape[-1], []
    for picture in batch:
        normalized = (picture - MEAN) / STD
        rows, columns = picture.shape[1] // patch, picture.shape[2] // patch
        cells = [normalized[:, r * patch:(r + 1) * patch, c * patch:(c + 1) * patch].flatten()
                 for r in range(rows) for c in range(columns)]
        x = torch.stack(cells) @ kernel.flatten(1).T + state["patch_embed.proj.bias"]
        x = torch.cat([state["cls_token"][0], x]) + positions_by_hand(state, rows, columns)
        depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
        for block in (f"blocks.{i}" for i in range(depth)):
            qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
            size = x.shape[1] // heads
            outputs = []
            for head in range(heads):
                q, k, v = (qkv[:, part * x.shape[1] + head * size:][:, :size] for part in range(3))
                outputs.append(torch.softmax(q @ k.T / size ** 0.5, dim=1) @ v)
            x = x + linear(torch.cat(outputs, dim=1), f"{block}.attn.proj")
            hidden = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
            x = x + linear(hidden, f"{block}.mlp.fc2")
        x = norm(x, "norm")
        pooled = (x[1:].clamp(min=1e-6) ** 4).mean(dim=0) ** (1 / 4)
        descriptor = torch.cat([x[0], pooled])
        found.append(descriptor / descriptor.norm())
    return torch.stack(found)


@pytest.fixture(scope="module")
def tiny() -> tuple[DinoDescriptor, dict[str, Tensor]]:
    network = DinoDescriptor(trunk="test_vit").eval()
    state = random_state(dino_layout(16, **TINY), seed=0)
    network.trunk.load_state_dict(state)
    return network, state


@pytest.mark.parametrize(("height", "width"), [
    (160, 160), (64, 64), (320, 320), (96, 208), (16, 16), (175, 169), (75, 50)])
def test_equals_the_method_by_hand_at_any_size(tiny, height: int, width: int) -> None:
    network, state = tiny
    with torch.no_grad():
        found = network.embed(pictures(height, width))
    assert found.shape == (2, 128) == (2, network.dim) and found.dtype == torch.float32
    torch.testing.assert_close(found, dino_by_hand(state, pictures(height, width), heads=2))


@pytest.mark.parametrize("name", ["dino_vitb8", "dino_vitb16"])
def test_the_released_size_loads_and_equals_the_method_by_hand(name: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    state = synthetic_checkpoint(name, "dino", path, seed=1)
    network, card = load_zoo(name, path=path)
    assert isinstance(network, DinoDescriptor) and not network.training and network.dim == 1536
    with torch.no_grad():
        torch.testing.assert_close(network.embed(pictures(48, 64)), dino_by_hand(state, pictures(48, 64), heads=12),
                                   atol=1e-5, rtol=1e-4)
    trunk = f"vit_base_patch{name.removeprefix('dino_vitb')}_224"
    assert network.architecture["trunk"] == trunk
    assert card == {
        "architecture": {"trunk": trunk, "zoo": name},
        "preprocessing": {"resize": "square", "size": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        "weights_sha256": sha256(path), "licence": "Apache 2.0 (https://github.com/facebookresearch/dino)"}


def test_tokens_at_the_native_size_are_timms(tiny) -> None:
    network, state = tiny
    trunk = timm.create_model("test_vit", num_classes=0)
    trunk.load_state_dict(state)
    with torch.no_grad():
        tokens = trunk.eval().forward_features((pictures(160, 160) - MEAN) / STD)
        pooled = (tokens[:, 1:].clamp(min=1e-6) ** 4).mean(dim=1) ** 0.25
        torch.testing.assert_close(network.embed(pictures(160, 160)),
                                   F.normalize(torch.cat([tokens[:, 0], pooled], dim=1)))


def cubic(x: float) -> float:
    """The kernel of bicubic interpolation, a = -3/4."""
    x, a = abs(x), -0.75
    if x <= 1:
        return (a + 2) * x ** 3 - (a + 3) * x ** 2 + 1
    return a * x ** 3 - 5 * a * x ** 2 + 8 * a * x - 4 * a if x < 2 else 0.0


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (14, 7), (20, 20)])
def test_positions_are_interpolated_bicubically(tiny, rows: int, columns: int) -> None:
    network, state = tiny
    table = state["pos_embed"][0, 1:].view(10, 10, 64)
    expected = torch.zeros(rows, columns, 64)
    for r in range(rows):
        for c in range(columns):
            y, x = ((i + 0.5) / ((size + 0.1) / 10) - 0.5 for i, size in ((r, rows), (c, columns)))
            for i in range(int(y // 1) - 1, int(y // 1) + 3):
                for j in range(int(x // 1) - 1, int(x // 1) + 3):
                    cell = table[min(max(i, 0), 9), min(max(j, 0), 9)]
                    expected[r, c] += cubic(y - i) * cubic(x - j) * cell
    with torch.no_grad():
        found = network._positions(rows, columns)[0]
        assert network._positions(10, 10) is network.trunk.pos_embed
    assert torch.equal(found[0], state["pos_embed"][0, 0])
    torch.testing.assert_close(found[1:], expected.view(-1, 64), atol=1e-5, rtol=1e-4)


def test_pixels_beyond_whole_patches_do_not_matter(tiny) -> None:
    batch = pictures(75, 50)
    with torch.no_grad():
        assert torch.equal(tiny[0].embed(batch), tiny[0].embed(batch[..., :64, :48]))


def test_pictures_of_a_batch_are_independent(tiny) -> None:
    batch = pictures(64, 48, count=5)
    with torch.no_grad():
        one_by_one = torch.cat([tiny[0].embed(picture[None]) for picture in batch])
        torch.testing.assert_close(tiny[0].embed(batch), one_by_one)


def test_descriptors_are_fp32_under_autocast(tiny) -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = tiny[0].embed(pictures(64, 64))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize(("height", "width"), [(15, 64), (64, 15)])
def test_pictures_smaller_than_a_patch_are_said(tiny, height: int, width: int) -> None:
    with pytest.raises(UserError, match=f"{height} × {width} pixels are smaller than a patch of 16 × 16"):
        tiny[0].embed(pictures(height, width))


@pytest.mark.parametrize("trunk", ["vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_224"])
def test_other_kinds_of_vit_are_said(trunk: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=f"{trunk}: expected a ViT with one class token"):
        DinoDescriptor(trunk=trunk)
