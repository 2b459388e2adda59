"""The student: any timm trunk → GeM → fc to the teacher's size → linear projector (METHOD §1)."""

import copy
import difflib
import os
import re
from pathlib import Path
from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.utils import reparameterize_model
from torch import Tensor, nn

from rdcd.errors import UserError, check_number
from rdcd.models.gem import GeM


class Embedding(NamedTuple):
    """`features` h_S [B, kd_dim] and `descriptors` z_S [B, dim], both fp32 and L2-normalized."""

    features: Tensor
    descriptors: Tensor


class Student(nn.Module):
    """A compact descriptor network; it takes pictures in [0, 1] and normalizes them itself.

    The projector takes the un-normalized fc output, has a bias, no BN and no hidden layer.

    Args:
        trunk: any timm model name.
        dim: size of the descriptor z_S; None leaves the projector out, and z_S = h_S (a teacher, or
            a network trained by the SSCD objective alone).
        kd_dim: size of h_S, the teacher's descriptor size.
        gem_p: exponent of the pooling.
        pretrained: False, random weights; True, timm's hub weights; a path, a file of the trunk's
            weights under timm's names (`.safetensors`, or a state dict that loads weights-only).
        zero_init_residual: start random weights with every residual branch at zero (Goyal et al. 2017, §5.1), see
            `zero_residual_branches`; pretrained weights are left as they are.
        mean, std: of the input, RGB in [0, 1].

    Raises:
        UserError: an unknown trunk, or weights that do not fit it.
    """

    folded = False  # whether `reparameterize` made it

    def __init__(self, *, trunk: str = "efficientnet_b0", dim: int | None = 256, kd_dim: int = 512,
                 gem_p: float = 3.0, pretrained: bool | str | Path = False, zero_init_residual: bool = False,
                 mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN,
                 std: tuple[float, float, float] = IMAGENET_DEFAULT_STD) -> None:
        super().__init__()
        check_number("student.dim", dim, 1, null="no projector")
        check_number("student.kd_dim", kd_dim, 1)
        if not isinstance(trunk, str):
            raise UserError(f"student.trunk={trunk}: expected the name of a timm model, such as efficientnet_b0")
        if not isinstance(pretrained, bool | str | Path):
            raise UserError(f"student.pretrained={pretrained}: expected false, true, or a file of weights")
        check_number("student.gem_p", gem_p, 0, whole=False, above=True)
        self.architecture = {"trunk": trunk, "dim": dim, "kd_dim": kd_dim, "gem_p": gem_p,
                             "mean": list(mean), "std": list(std)}
        self.trunk = build_trunk(trunk, pretrained)
        if zero_init_residual and pretrained is False:
            zero_residual_branches(self.trunk)
        self.pool = GeM(gem_p)
        self.fc = nn.Linear(self.trunk.head_hidden_size, kd_dim)
        self.projector = None if dim is None else nn.Linear(kd_dim, dim)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @property
    def dim(self) -> int:
        """Size of the descriptor."""
        return self.architecture["dim"] or self.architecture["kd_dim"]

    def forward(self, pictures: Tensor) -> Embedding:
        """Embed pictures [B, 3, H, W] in [0, 1]."""
        hidden = self.fc(pooled(self.trunk, self.pool, (pictures - self.mean) / self.std))
        with torch.autocast(pictures.device.type, enabled=False):
            features = F.normalize(hidden.float(), dim=1)
        if self.projector is None:
            return Embedding(features, features)
        projected = self.projector(hidden)
        with torch.autocast(pictures.device.type, enabled=False):
            return Embedding(features, F.normalize(projected.float(), dim=1))

    def embed(self, pictures: Tensor) -> Tensor:
        """Return the descriptors z_S [B, dim] alone."""
        return self(pictures).descriptors


def pooled(trunk: nn.Module, pool: GeM, pictures: Tensor) -> Tensor:
    """Return a timm trunk's features of normalized pictures [B, 3, H, W], pooled over all places: [B, C]."""
    maps = trunk(pictures)
    if maps.ndim == 3:  # tokens of a transformer: the class and register tokens come first
        maps = maps[:, getattr(trunk, "num_prefix_tokens", 0):]
    elif maps.shape[1] != trunk.head_hidden_size:  # some trunks answer [B, H, W, C]
        maps = maps.permute(0, 3, 1, 2)
    return pool(maps)


def reparameterize(student: Student) -> Student:
    """Return a copy for inference whose trunk's parallel training branches are folded into single convolutions.

    FastViT, MobileOne, RepVGG and their like train with more branches than they need afterwards (Vasu et al. 2023,
    §3); descriptors are equal but for rounding. A trunk with nothing to fold is copied as it is. Weights files keep
    the training form: `save_student` refuses the copy.
    """
    folded = copy.deepcopy(student).eval().requires_grad_(False)
    reparameterize_model(folded.trunk, inplace=True)
    folded.folded = True
    return folded


def check_size(network: nn.Module, size: int, *, name: str, key: str) -> None:
    """Refuse a size of square pictures that a network does not take, such as a transformer of fixed positions.

    Args:
        network: has `embed`; all of it is in the mode of its whole afterwards.
        size: side in pixels.
        name: what the message calls the network.
        key: the setting that the size comes from.

    Raises:
        UserError: it fails on a blank picture.
    """
    mode = network.training
    network.eval()
    try:
        with torch.no_grad():
            network.embed(next(network.buffers(), torch.empty(0)).new_zeros(1, 3, size, size, dtype=torch.float32))
    except (AssertionError, RuntimeError) as error:
        raise UserError(f"{key}={size}: {name} takes no pictures of that size ({str(error).strip()}); take the size it "
                        f"was made for, or another network") from error
    finally:
        network.train(mode)


def parameter_count(network: nn.Module) -> int:
    """Return the number of parameters of `network`."""
    return sum(p.numel() for p in network.parameters())


def build_trunk(name: str, pretrained: bool | str | Path) -> nn.Module:
    """Make a timm trunk without classifier and pooling; arguments as of `Student`."""
    if not timm.is_model(name.split(".")[0]):
        near = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=6))
        raise UserError(f"student.trunk={name}: timm has no such model"
                        + (f"; near it: {near}" if near else "; `timm.list_models()` lists them"))
    hub = pretrained is True
    options = {"num_classes": 0, "global_pool": ""}
    if timm.models.is_model_in_modules(name.split(".")[0], ("vision_transformer", "eva")):
        options["dynamic_img_size"] = True  # else it takes pictures of one size alone
    try:
        trunk = timm.create_model(name, pretrained=hub, **options)
    except (AssertionError, TypeError) as error:
        raise UserError(f"student.trunk={name}: timm builds it only with its own pooling ({error}), and the "
                        f"student pools itself; choose another trunk") from error
    except (OSError, RuntimeError) as error:
        if not hub:
            raise UserError(f"student.trunk={name}: {error}; `timm.list_models()` lists the names") from error
        raise UserError(f"student.pretrained=true: timm could not fetch {name} ({error}); offline, give "
                        f"a local file: student.pretrained=FILE") from error
    if isinstance(pretrained, str | Path):
        load_trunk(trunk, pretrained)
    return trunk


def zero_residual_branches(trunk: nn.Module) -> None:
    """Set the scale of the last normalization of every residual branch to 0, so that each block starts as identity.

    timm does so for its ResNets, not for the EfficientNet and MobileNet families, whose depth at random weights
    otherwise leaves features of few directions, which training shrinks further before it learns to tell pictures
    apart. Blocks are known by timm's `has_skip`; trunks without it stay as they are.
    """
    for block in trunk.modules():
        if getattr(block, "has_skip", False):
            norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]
            for last in norms[-1:]:
                nn.init.zeros_(last.weight)


def load_trunk(trunk: nn.Module, path: str | Path) -> None:
    """Load a file of trunk weights under timm's names, strictly; fp16 files are widened.

    Weights of the classifier, which the trunk has not, are left out.

    Raises:
        UserError: no such file, not a weights file, or keys and shapes that do not fit (listed).
    """
    state = read_weights(path)
    wanted = trunk.state_dict()
    classifier = trunk.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{name}." for name in ((classifier,) if isinstance(classifier, str) else classifier))
    state = {k: v for k, v in state.items() if k in wanted or not k.startswith(heads)}
    check_fit(wanted, state, path=path, what="the trunk")
    trunk.load_state_dict(state)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a flat dict of tensors from a safetensors file or a weights-only torch file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no weights file {path}: expected a .safetensors or .pth file; check the path")
    try:
        if is_safetensors(path):
            return load_file(path)
        with open(path, "rb") as file:  # torch goes by the name of what it is given by name
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # truncated or foreign files raise anything, from zip to pickle errors
        raise UserError(f"{path} ({os.path.getsize(path):,} bytes) is not a readable weights file "
                        f"({why_unreadable(error)}): it may be truncated; fetch or train it again") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} holds no dict of tensors: expected a state dict of weights")
    return state


def is_safetensors(path: str | Path) -> bool:
    """Tell by a file's first bytes whether it is a safetensors file; by its name where there are none."""
    path = Path(path)
    with open(path, "rb") as file:
        start = file.read(9)
    return start[8:] == b"{" if len(start) == 9 else path.suffix == ".safetensors"


def why_unreadable(error: Exception) -> str:
    """Say in a line why a file was not loaded, without torch's advice to trust it; a refused object is named."""
    if foreign := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it holds {foreign[1]}, and only tensors and plain types are loaded"
    return f"{type(error).__name__}: {str(error).strip().partition('. ')[0]}".removesuffix(": ")


def check_fit(wanted: dict[str, Tensor], state: dict[str, Tensor], *, path: str | Path, what: str) -> None:
    """Raise a UserError that lists missing, unexpected and misshaped keys, unless there are none."""
    missing = [k for k in wanted if k not in state]
    unexpected = [k for k in state if k not in wanted]
    shapes = [f"{k} {tuple(state[k].shape)} for {tuple(v.shape)}"
              for k, v in wanted.items() if k in state and state[k].shape != v.shape]
    problems = [f"{len(keys)} {kind} ({', '.join(keys[:4])}{', …' if len(keys) > 4 else ''})"
                for kind, keys in (("missing", missing), ("unexpected", unexpected), ("misshaped", shapes)) if keys]
    if problems:
        raise UserError(f"{path} does not fit {what}: {'; '.join(problems)}; "
                        f"choose the architecture these weights were made with")
