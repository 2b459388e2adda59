"""Files in the layouts of the released teachers, every name and shape, with random numbers in them."""

import math
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from rdcd.models.zoo import ZOO

Shapes = dict[str, tuple[int, ...]]
RESNET50 = {"depths": (3, 4, 6, 3), "width": 64, "groups": 1, "dim": 512}
RESNEXT101 = {"depths": (3, 4, 23, 3), "width": 4, "groups": 32, "dim": 1024}
VIT_B = {"dim": 768, "depth": 12}


def batch_norm(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,), f"{name}.running_mean": (channels,),
            f"{name}.running_var": (channels,), f"{name}.num_batches_tracked": ()}


def linear(name: str, into: int, out: int) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def blocks(depths: tuple[int, ...], width: int, groups: int):
    """Stage, block, channels into it, inside it and out of it."""
    into = 64
    for stage, depth in enumerate(depths):
        for block in range(depth):
            out = 256 * 2 ** stage
            yield stage, block, into, width * groups * 2 ** stage, out
            into = out


def torchvision_layout(depths: tuple[int, ...], width: int, groups: int, dim: int) -> Shapes:
    """A bottleneck ResNet of torchvision with `fc` to `dim`, as an attribute `backbone`."""
    found: Shapes = {"backbone.conv1.weight": (64, 3, 7, 7)} | batch_norm("backbone.bn1", 64)
    for stage, block, into, inside, out in blocks(depths, width, groups):
        name = f"backbone.layer{stage + 1}.{block}"
        found[f"{name}.conv1.weight"] = (inside, into, 1, 1)
        found |= batch_norm(f"{name}.bn1", inside)
        found[f"{name}.conv2.weight"] = (inside, inside // groups, 3, 3)
        found |= batch_norm(f"{name}.bn2", inside)
        found[f"{name}.conv3.weight"] = (out, inside, 1, 1)
        found |= batch_norm(f"{name}.bn3", out)
        if block == 0:
            found[f"{name}.downsample.0.weight"] = (out, into, 1, 1)
            found |= batch_norm(f"{name}.downsample.1", out)
    return found | linear("backbone.fc", 2048, dim)


def classy_layout(depths: tuple[int, ...], width: int, groups: int, dim: int, *, old: bool = False) -> Shapes:
    """A bottleneck ResNe(X)t of Classy Vision without head, and `embeddings`; `old`: before its blocks had names."""
    found: Shapes = {"backbone.initial_block._module.0.weight": (64, 3, 7, 7)}
    found |= batch_norm("backbone.initial_block._module.1", 64)
    for stage, block, into, inside, out in blocks(depths, width, groups):
        name = f"backbone.blocks.{stage}." + (f"{block}._module" if old else f"block{stage}-{block}")
        found[f"{name}.convolutional_block.0.weight"] = (inside, into, 1, 1)
        found |= batch_norm(f"{name}.convolutional_block.1", inside)
        found[f"{name}.convolutional_block.3.weight"] = (inside, inside // groups, 3, 3)
        found |= batch_norm(f"{name}.convolutional_block.4", inside)
        found[f"{name}.convolutional_block.6.weight"] = (out, inside, 1, 1)
        found |= batch_norm(f"{name}.bn", out)
        if block == 0:
            found[f"{name}.downsample.0.weight"] = (out, into, 1, 1)
            found |= batch_norm(f"{name}.downsample.1", out)
    return found | linear("embeddings.1", 2048, dim)


def dino_layout(patch: int, dim: int, depth: int, *, size: int = 224, mlp_ratio: int = 4) -> Shapes:
    """A ViT of DINO without head."""
    found: Shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, 1 + (size // patch) ** 2, dim),
                     "patch_embed.proj.weight": (dim, 3, patch, patch), "patch_embed.proj.bias": (dim,)}
    for block in range(depth):
        name = f"blocks.{block}"
        for norm in ("norm1", "norm2"):
            found |= {f"{name}.{norm}.weight": (dim,), f"{name}.{norm}.bias": (dim,)}
        found |= linear(f"{name}.attn.qkv", dim, 3 * dim) | linear(f"{name}.attn.proj", dim, dim)
        found |= linear(f"{name}.mlp.fc1", dim, mlp_ratio * dim) | linear(f"{name}.mlp.fc2", mlp_ratio * dim, dim)
    return found | {"norm.weight": (dim,), "norm.bias": (dim,)}


def random_state(shapes: Shapes, seed: int) -> dict[str, Tensor]:
    """Fill a layout with numbers that keep activations in range and leave no tensor at a start value.

    Large weights are windows into one bank of numbers, so that a file is a few megabytes, not hundreds.
    """
    generator = torch.Generator().manual_seed(seed)
    largest = max(math.prod(shape) for shape in shapes.values())
    bank = 0.03 * torch.randn(largest + (1 << 20), generator=generator)

    def normal(shape: tuple[int, ...], std: float) -> Tensor:
        return std * torch.randn(shape, generator=generator)

    state, fan_in = {}, 1
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.randint(1, 10**6, (), generator=generator)
        elif name.endswith("running_mean"):
            state[name] = normal(shape, 0.1)
        elif name.endswith("running_var"):  # about what the convolution before it gives
            state[name] = 0.03 ** 2 * fan_in * (0.5 + torch.rand(shape, generator=generator))
        elif len(shape) < 2:
            branch_end = name.endswith((".bn.weight", ".bn3.weight"))  # keeps a sum of many blocks small
            state[name] = normal(shape, 0.1) + ((0.3 if branch_end else 1.0) if name.endswith("weight") else 0.0)
        else:
            fan_in = math.prod(shape[1:])
            start = int(torch.randint(0, 1 << 20, (), generator=generator))
            state[name] = bank[start:start + math.prod(shape)].view(shape)
    return state


class GeM3(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps.clamp(min=1e-6).pow(3).mean(dim=(2, 3)).pow(1 / 3)


class TorchvisionSSCD(nn.Module):
    """SSCD's network on torchvision's ResNet, the source of the traced files."""

    def __init__(self, depths: tuple[int, ...], width: int, groups: int, dim: int) -> None:
        super().__init__()
        self.backbone = ResNet(Bottleneck, list(depths), num_classes=dim, groups=groups, width_per_group=width)
        self.backbone.avgpool = GeM3()

    def forward(self, pictures: Tensor) -> Tensor:
        return F.normalize(self.backbone(pictures))


def trace(network: nn.Module, path: Path, *, size: int = 64) -> None:
    """Write a network as TorchScript, whose being deprecated is known."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.jit.trace(network.eval(), torch.rand(2, 3, size, size)).save(path)


def layout(name: str, form: str) -> Shapes:
    """Names and shapes of a released file; of a traced one, those of the network inside."""
    if form == "dino":
        return dino_layout(int(name.removeprefix("dino_vitb")), **VIT_B)
    size = RESNEXT101 if name == "sscd_disc_large" else RESNET50
    return classy_layout(**size) if form == "classy" else torchvision_layout(**size)


def synthetic_checkpoint(name: str, format: str | None, path: str | Path, seed: int = 0) -> dict[str, Tensor]:
    """Write a file in the layout of a zoo entry, with random numbers; return them.

    Args:
        name: of the zoo.
        format: torchvision, classy, torchscript or dino; None: the entry's first.
    """
    form = format or next(iter(ZOO[name].files))
    state = random_state(layout(name, form), seed)
    if form == "torchscript":
        network = TorchvisionSSCD(**(RESNEXT101 if name == "sscd_disc_large" else RESNET50))
        network.load_state_dict(state)
        trace(network, Path(path))
    else:
        torch.save(state, path)
    return state
