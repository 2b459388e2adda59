"""Released teachers by name: where their files lie, how they are read, what pictures they take (docs/method.md §8)."""

import difflib
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from rdcd.errors import UserError, check_path
from rdcd.files import sha256
from rdcd.models.dino import DinoDescriptor
from rdcd.models.download import cache_folder, fetch
from rdcd.models.key_maps import KEY_MAPS, current_names, tell_format
from rdcd.models.student import Student, check_fit, read_weights


@dataclass(frozen=True)
class ZooFile:
    """A released file: its address and, where they are known, its bytes and its hash."""

    url: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class ZooEntry:
    """A released network.

    Args:
        name: what people call it.
        files: format, see `KEY_MAPS`, or torchscript → file; the first is the one to download.
        licence: of the weights.
        trunk: timm's name of its trunk.
        dim: size of its descriptor.
        gem_p: exponent of its pooling.
        size, resize: how pictures are resized for it, see `Pictures`.
        mean, std: of its input, RGB in [0, 1].
    """

    name: str
    files: Mapping[str, ZooFile]
    licence: str
    trunk: str
    dim: int
    gem_p: float
    size: int
    resize: str = "square"
    mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, float, float] = IMAGENET_DEFAULT_STD

    def build(self) -> Student | DinoDescriptor:
        """Return the network with random weights."""
        options = {"trunk": self.trunk, "gem_p": self.gem_p, "mean": self.mean, "std": self.std}
        return DinoDescriptor(**options) if "dino" in self.files else Student(dim=None, kd_dim=self.dim, **options)


def _sscd(name: str, formats: tuple[str, ...] = ("torchvision", "classy", "torchscript"), trunk: str = "resnet50",
          dim: int = 512) -> ZooEntry:
    url = "https://dl.fbaipublicfiles.com/sscd-copy-detection/{}.{}.pt"
    return ZooEntry(name, {form: ZooFile(url.format(name, form)) for form in formats}, trunk=trunk, dim=dim, gem_p=3.0,
                    size=288, licence="MIT, CC-BY-NC 4.0 at first (https://github.com/facebookresearch/"
                                      "sscd-copy-detection)")


def _dino(name: str, patch: int) -> ZooEntry:
    url = "https://dl.fbaipublicfiles.com/dino/{0}/{0}.pth".format(f"dino_vitbase{patch}_pretrain")
    return ZooEntry(name, {"dino": ZooFile(url)}, trunk=f"vit_base_patch{patch}_224", dim=1536, gem_p=4.0, size=224,
                    licence="Apache 2.0 (https://github.com/facebookresearch/dino)")


ZOO: dict[str, ZooEntry] = {entry.name: entry for entry in (
    *(_sscd(f"sscd_{data}_{views}") for data in ("disc", "imagenet") for views in ("mixup", "advanced", "blur")),
    _sscd("sscd_disc_large", ("classy", "torchscript"), trunk="resnext101_32x4d", dim=1024),
    _dino("dino_vitb8", 8), _dino("dino_vitb16", 16))}


@dataclass(frozen=True)
class ZooTeacher:
    """A teacher of the zoo, see `load_zoo`; nothing is read or fetched before it is asked for."""

    name: str
    path: str | None = None
    format: str | None = None
    cache: str | None = None
    allow_torchscript: bool = False

    def __post_init__(self) -> None:
        check_path("teacher.path", self.path, null="a download")
        check_path("teacher.cache", self.cache, null="the default folder")

    def weights(self) -> Path:
        """Return the file: the local one, or that in the cache, fetched if it is not there yet."""
        return Path(self.path) if self.path else _fetched(_entry(self.name, self.format), self.format, self.cache,
                                                          self.allow_torchscript)

    def load(self) -> tuple[nn.Module, dict]:
        """Return the network, in eval mode, and its card."""
        return load_zoo(**vars(self))


def load_zoo(name: str, *, path: str | Path | None = None, format: str | None = None, cache: str | Path | None = None,
             allow_torchscript: bool = False) -> tuple[nn.Module, dict]:
    """Load a released network, in eval mode, and its card.

    Args:
        name: of the zoo.
        path: a local file of its weights; None: fetched once into the cache.
        format: torchvision, classy, torchscript or dino; None: as the file's content tells, and to download, the
            first that the zoo knows of.
        cache: folder of downloads, see `cache_folder`.
        allow_torchscript: whether a file may be loaded that carries code of its own.

    Returns:
        The network: `embed` takes pictures [B, 3, H, W] in [0, 1] and returns descriptors [B, `dim`], fp32 and
        L2-normalized. The card: architecture, preprocessing, SHA-256 of the file, licence.

    Raises:
        UserError: an unknown name or format, a file that cannot be fetched or is another one, weights that do not
            fit to the last key, or TorchScript that was not allowed.
    """
    entry = _entry(name, format)
    path = Path(path) if path else _fetched(entry, format, cache, allow_torchscript)
    if _is_torchscript(path):
        _check_format(entry, format, "torchscript", path)
        _check_allowed(allow_torchscript, path)
        network: nn.Module = _load_torchscript(entry, path)
    else:
        network = _load_state(entry, format, path)
    card = {"architecture": {"trunk": entry.trunk, "zoo": name},
            "preprocessing": {"resize": entry.resize, "size": entry.size, "mean": list(entry.mean),
                              "std": list(entry.std)},
            "weights_sha256": sha256(path), "licence": entry.licence}
    return network.eval(), card


class TorchScriptDescriptor(nn.Module):
    """A traced network that wants normalized pictures, as one that takes them in [0, 1].

    Args:
        network: the traced one.
        entry: what it should be.
    """

    def __init__(self, network: nn.Module, entry: ZooEntry) -> None:
        super().__init__()
        self.network, self.dim = network, entry.dim
        self.architecture = {"trunk": entry.trunk}
        self.register_buffer("mean", torch.tensor(entry.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(entry.std).view(1, 3, 1, 1), persistent=False)

    def embed(self, pictures: Tensor) -> Tensor:
        """Return descriptors [B, dim], fp32 and L2-normalized."""
        return F.normalize(self.network((pictures - self.mean) / self.std).float(), dim=1)


def _entry(name: str, format: str | None) -> ZooEntry:
    if not isinstance(name, str) or name not in ZOO:
        near = difflib.get_close_matches(str(name), ZOO, n=3)
        raise UserError(f"teacher.name={name}: the zoo has no such network; "
                        + (f"near it: {', '.join(near)}" if near else f"it has {', '.join(ZOO)}"))
    if format is not None and str(format) not in ZOO[name].files:
        raise UserError(f"teacher.format={format}: {name} exists as {', '.join(ZOO[name].files)}; choose one of them, "
                        f"or null")
    return ZOO[name]


def _fetched(entry: ZooEntry, format: str | None, cache: str | Path | None, allow_torchscript: bool) -> Path:
    format = format or next(iter(entry.files))
    if format == "torchscript":
        _check_allowed(allow_torchscript, "teacher.format=torchscript")
    file = entry.files[format]
    return fetch(file.url, cache_folder(cache) / file.url.rpartition("/")[2], size=file.size, sha256=file.sha256,
                 instead=f"teacher.path=FILE (to measure it, {entry.name}:FILE)")


def _check_allowed(allowed: bool, what: object) -> None:
    if allowed is not True:
        raise UserError(f"{what}: a TorchScript file carries code that runs when it is loaded; use another format, or, "
                        f"if you trust where the file is from, say teacher.allow_torchscript=true (to measure it, "
                        f"allow_torchscript=true)")


def _check_format(entry: ZooEntry, format: str | None, found: str, path: Path) -> None:
    if format not in (None, found):
        raise UserError(f"teacher.format={format}, but the content of {path} is {found}: leave teacher.format=null, or "
                        f"give another file")
    if found not in entry.files:
        others = ", ".join(other.name for other in ZOO.values() if found in other.files)
        raise UserError(f"{path} is no {entry.name}: its content is {found}, as of {others}; give teacher= its name, "
                        f"or another file")


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _load_torchscript(entry: ZooEntry, path: Path) -> TorchScriptDescriptor:
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", FutureWarning)  # of its being deprecated: the files are as they are
            network = TorchScriptDescriptor(torch.jit.load(path, map_location="cpu"), entry).eval()
            found = network.embed(torch.zeros(1, 3, 64, 64))
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a TorchScript network that turns pictures into descriptors ({error}): fetch it "
                        f"again, or use another format") from error
    if found.shape != (1, entry.dim):
        raise UserError(f"{path} gives an output of shape {list(found.shape)} for one picture, {entry.name} one of "
                        f"[1, {entry.dim}]: it is the file of another network")
    return network


def _load_state(entry: ZooEntry, format: str | None, path: Path) -> nn.Module:
    state = current_names(read_weights(path))
    found = tell_format(state)
    if found is None:
        raise UserError(f"{path} is no file of the zoo: its keys ({', '.join([*state][:3])}, …) are none of "
                        f"{', '.join(KEY_MAPS)}; a network that rdcd trained is teacher=file teacher.path=RUN")
    _check_format(entry, format, found, path)
    rename, network = KEY_MAPS[found], entry.build()
    wanted = {rename(key): value for key, value in network.state_dict().items()}
    if _shapes(wanted) != _shapes(state) and (others := _owners(found, state)):
        raise UserError(f"{path} is no {entry.name}: its keys and shapes are those of {' or '.join(others)}; say "
                        f"teacher={others[0]}, or give another file")
    check_fit(wanted, state, path=path, what=f"{entry.name} ({found})")
    network.load_state_dict({key: state[rename(key)] for key in network.state_dict()})  # fp16 is widened
    return network


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items()}


def _owners(format: str, state: dict[str, Tensor]) -> list[str]:
    """Names of the networks of the zoo that weights fit."""
    owners = []
    for entry in ZOO.values():
        if format in entry.files:
            with torch.device("meta"):  # shapes only
                wanted = entry.build().state_dict()
            if _shapes({KEY_MAPS[format](key): value for key, value in wanted.items()}) == _shapes(state):
                owners.append(entry.name)
    return owners
