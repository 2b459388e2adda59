"""The student: any timm trunk → GeM → fc to the teacher's size → linear projector (docs/method.md §1)."""

import copy
import difflib
import inspect
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import SelectAdaptivePool2d
from timm.utils import reparameterize_model
from torch import Tensor, nn

from rdcd.errors import UserError, check_number
from rdcd.models.gem import GeM

FORMER = {"pool_first": False, "timm": {}, "mean": list(IMAGENET_DEFAULT_MEAN),
          "std": list(IMAGENET_DEFAULT_STD)}  # what cards and configurations from before these keys leave unsaid
OURS = ("num_classes", "global_pool", "in_chans", "features_only", "drop_rate", "drop_path_rate", "pretrained",
        "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")  # of timm, set by other ways
INITS: dict[str, Callable[[Tensor], Tensor] | None] = {  # how random weights of linear layers are drawn
    "timm": None,
    "efficientnet": lambda weight: nn.init.uniform_(weight, -len(weight) ** -0.5, len(weight) ** -0.5),
    "mobilenetv3": lambda weight: nn.init.normal_(weight, std=0.01),
    "sscd": nn.init.xavier_uniform_}


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
        init: random weights of the trunk and the fc: `timm`, as timm and torch draw them; `efficientnet`,
            `mobilenetv3` and `sscd`, as the published code does, see `initialize`.
        drop_rate: share of the pooled features that training drops before the fc.
        drop_path_rate: stochastic depth in training, timm's: of block i of n, `drop_path_rate`·i/n in the EfficientNet
            and MobileNet families; by another rule, up to that, in others.
        timm: further options of `timm.create_model`, such as `{"bn_eps": 1e-3}`.
        pool_first: layers that the trunk's own network has behind its pooling stay there: MobileNetV3 pools 960
            channels, and its 1280-wide layer takes the pooled vector. False: they take every place of the map, and
            what they give is pooled, as in students from before this option.
        mean, std: of the input, RGB in [0, 1]; None: those of the trunk's weights at timm, of random ones, too.

    Raises:
        UserError: an unknown trunk, options that it does not take, or weights that do not fit it.
    """

    folded = False  # whether `reparameterize` made it

    def __init__(self, *, trunk: str = "efficientnet_b0", dim: int | None = 256, kd_dim: int = 512,
                 gem_p: float = 3.0, pretrained: bool | str | Path = False, zero_init_residual: bool = False,
                 init: str = "timm", drop_rate: float = 0.0, drop_path_rate: float = 0.0,
                 timm: Mapping[str, object] | None = None, pool_first: bool = True,
                 mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> None:
        super().__init__()
        check_number("student.dim", dim, 1, null="no projector")
        check_number("student.kd_dim", kd_dim, 1)
        if not isinstance(trunk, str):
            raise UserError(f"student.trunk={trunk}: expected the name of a timm model, such as efficientnet_b0")
        if not isinstance(pretrained, bool | str | Path):
            raise UserError(f"student.pretrained={pretrained}: expected false, true, or a file of weights")
        check_number("student.gem_p", gem_p, 0, whole=False, above=True)
        for name, rate in (("drop_rate", drop_rate), ("drop_path_rate", drop_path_rate)):
            check_number(f"student.{name}", rate, 0, 1, whole=False)
        if init not in INITS:
            raise UserError(f"student.init={init}: expected one of {', '.join(INITS)}")
        self.trunk, self.pool = build_trunk(trunk, pretrained, gem_p=gem_p, pool_first=pool_first,
                                            drop_path_rate=drop_path_rate, options=timm)
        self.dropout = nn.Dropout(drop_rate)
        self.fc = nn.Linear(self.trunk.head_hidden_size, kd_dim)
        self.projector = None if dim is None else nn.Linear(kd_dim, dim)
        if INITS[init]:
            initialize(self, init, trunk=pretrained is False)
        if zero_init_residual and pretrained is False:
            zero_residual_branches(self.trunk)
        own = self.trunk.pretrained_cfg
        mean, std = own["mean"] if mean is None else mean, own["std"] if std is None else std
        for name, values in (("mean", mean), ("std", std)):
            _check_channels(f"student.{name}", values, positive=name == "std")
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.architecture = {"trunk": trunk, "dim": dim, "kd_dim": kd_dim, "gem_p": gem_p,
                             "mean": list(mean), "std": list(std)}
        if timm:
            self.architecture["timm"] = dict(timm)
        if isinstance(self.pool, nn.Flatten):  # of other trunks there is one form
            self.architecture["pool_first"] = True

    @property
    def dim(self) -> int:
        """Size of the descriptor."""
        return self.architecture["dim"] or self.architecture["kd_dim"]

    def forward(self, pictures: Tensor) -> Embedding:
        """Embed pictures [B, 3, H, W] in [0, 1]."""
        hidden = self.fc(self.dropout(pooled(self.trunk, self.pool, (pictures - self.mean) / self.std)))
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


def pooled(trunk: nn.Module, pool: nn.Module, pictures: Tensor) -> Tensor:
    """Return the features [B, C] of normalized pictures [B, 3, H, W]; trunk and pool are those of `build_trunk`."""
    maps = trunk(pictures)
    if isinstance(maps, list):  # of several stages, [B, C, N] each
        return torch.cat([pool(stage.transpose(1, 2)) for stage in maps], dim=1)
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


def build_trunk(name: str, pretrained: bool | str | Path, *, gem_p: float, pool_first: bool = True,
                drop_path_rate: float = 0.0,
                options: Mapping[str, object] | None = None) -> tuple[nn.Module, nn.Module]:
    """Make a timm trunk without classifier, and what pools its output; arguments as of `Student`.

    GeM comes after the trunk; where layers of the trunk follow its own pooling, GeM takes the place of that, and what
    is left to do is to flatten. A few transformers pool themselves whatever timm is told (CoaT, CrossViT, distilled
    DeiT and PiT): of these the class tokens are taken, and nothing is pooled.
    """
    options = _options(name, {} if options is None else options, pool_first=pool_first, drop_path_rate=drop_path_rate)
    hub = pretrained is True
    try:
        trunk = timm.create_model(name, pretrained=hub, **options)
    except (OSError, RuntimeError) as error:
        if not hub:
            raise UserError(f"student.trunk={name}: {error}; `timm.list_models()` lists the names") from error
        raise UserError(f"student.pretrained=true: timm could not fetch {name} ({error}); offline, give "
                        f"a local file: student.pretrained=FILE") from error
    if isinstance(pretrained, str | Path):
        load_trunk(trunk, pretrained)
    if "global_pool" in options:
        return trunk, GeM(gem_p)
    place, _ = own_pooling(trunk)
    if place is not None:
        place.pool, place.pool_type = GeM(gem_p, keep=True), "gem"  # which it flattens, if its trunk wants that
    return trunk, nn.Flatten()


def own_pooling(trunk: nn.Module) -> tuple[SelectAdaptivePool2d | None, list[nn.Module]]:
    """Return a timm trunk's pooling, None if that is no module, and the layers with products behind it."""
    modules = list(trunk.modules())  # of a head in the order in which they are called
    place = max((i for i, module in enumerate(modules) if isinstance(module, SelectAdaptivePool2d)), default=None)
    if place is None:
        return None, []
    return modules[place], [module for module in modules[place:] if isinstance(module, nn.Conv2d | nn.Linear)]


def _options(name: str, given: Mapping[str, object], *, pool_first: bool, drop_path_rate: float) -> dict[str, object]:
    """Return the options that a timm trunk is made with: those given, and ours as far as it takes them.

    Without `global_pool` it keeps its own pooling, since layers follow that or it cannot do without.
    """
    if not timm.is_model(name.split(".")[0]):
        near = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=6))
        raise UserError(f"student.trunk={name}: timm has no such model"
                        + (f"; near it: {near}" if near else "; `timm.list_models()` lists them"))
    if not isinstance(given, Mapping):
        raise UserError(f"student.timm={given}: expected options of timm.create_model, such as {{bn_eps: 1.0e-3}}")
    if ours := [key for key in given if key in OURS]:
        raise UserError(f"student.timm.{ours[0]}={given[ours[0]]}: the student sets that itself; see its keys "
                        f"pretrained, drop_rate, drop_path_rate, gem_p and pool_first")
    try:
        json.dumps(dict(given))
    except TypeError as error:
        raise UserError(f"student.timm={given}: expected plain values, as a card holds them ({error})") from error
    options = {"num_classes": 0, "global_pool": ""} | given
    if drop_path_rate:
        options["drop_path_rate"] = drop_path_rate
    try:
        with torch.device("meta"):  # a rehearsal, which needs no memory and draws no random numbers
            try:
                made = timm.models.create_model(name, **options)
            except AssertionError:  # it cannot do without pooling
                del options["global_pool"]
                made = timm.models.create_model(name, **options)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"student.timm={dict(given)}, student.drop_path_rate={drop_path_rate}: timm cannot make {name} "
                        f"with these ({error}); leave out what it does not take") from error
    except RuntimeError as error:
        raise UserError(f"student.trunk={name}: {error}; `timm.list_models()` lists the names") from error
    if any("dynamic_img_size" in inspect.signature(kind.__init__).parameters for kind in type(made).__mro__[:-1]):
        options.setdefault("dynamic_img_size", True)  # else it takes pictures of one size alone
    if not pool_first and "global_pool" not in options:
        raise UserError(f"student.pool_first=false: timm builds {name} only with its own pooling; leave it true")
    if pool_first and own_pooling(made)[1]:
        options.pop("global_pool", None)
    return options


def initialize(student: Student, init: str, *, trunk: bool) -> None:
    """Draw the random weights of a student's fc and, if `trunk`, of its trunk as the published code does.

    Convolutions: normal, kaiming by fan-out, with the outputs of all groups counted (He et al. 2015; timm counts those
    of one group, which makes depthwise weights √C times as large). Linear layers, the fc and what follows the trunk's
    own pooling: `efficientnet`, uniform ± 1/√outputs, as torchvision's; `mobilenetv3`, normal of deviation 0.01, as
    torchvision's; `sscd`, xavier uniform. Biases 0. The scales and shifts of norms are timm's, 1 and 0, but that its
    ResNets start with the last scale of every block at 0, as those of SSCD. The projector is torch's own in all.
    """
    linear, head = INITS[init], own_pooling(student.trunk)[1]
    for module in (*(student.trunk.modules() if trunk else ()), student.fc):
        if isinstance(module, nn.Linear) or any(module is one for one in head):
            linear(module.weight.data.flatten(1))
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_channels(key: str, values: object, *, positive: bool) -> None:
    """Refuse what are not three numbers, one for red, green and blue."""
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != 3:
        raise UserError(f"{key}={values}: expected three numbers, or null for the trunk's own")
    for value in values:
        check_number(key, value, 0, whole=False, above=positive)


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
