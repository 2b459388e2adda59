"""Students that RDCD's authors released: Lightning checkpoints of torchvision's and timm's (docs/method.md §8)."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torchvision.models import efficientnet_b0, mobilenet_v3_large

from rdcd.errors import UserError
from rdcd.models.gem import GeM
from rdcd.models.student import Student, check_fit, why_unreadable

QUERY_ENCODER = "model.encoder_q."
UNUSED = ("model.encoder_k.", "model.queue", "teacher.", "kld.")  # key encoder, queues, teacher: of training alone


class _Inert:
    """Takes the place of a class that a pickle names: it is made, told its state, and does nothing."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _PlainDict(_Inert):
    def __new__(cls, *args: object) -> dict:
        return {}


def _stand_in(name: str, kind: type) -> type:
    module, _, name = name.rpartition(".")
    return type(name, (kind,), {"__module__": module})


HARMLESS = [argparse.Namespace] + [_stand_in(name, _Inert) for name in (
    "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
    "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")] + [_stand_in(name, _PlainDict) for name in (
        "pytorch_lightning.utilities.parsing.AttributeDict", "lightning_fabric.utilities.data.AttributeDict")]


class Architecture(NamedTuple):
    """What a released student is built of.

    Args:
        build: makes the backbone, of `num_classes` outputs.
        pooling, fc, projector: names in the encoder: of the backbone's pooling and of the last layers.
        trunk, timm: make the same trunk for a `Student`.
    """

    build: Callable[..., nn.Module]
    pooling: str
    fc: str
    projector: str
    trunk: str
    timm: dict[str, object] | None = None


ARCHITECTURES = (
    Architecture(efficientnet_b0, "avgpool", "backbone.classifier.1", "projector", "efficientnet_b0"),
    Architecture(mobilenet_v3_large, "avgpool", "backbone.classifier.3", "projector", "mobilenetv3_large_100",
                 {"bn_eps": 1e-3, "bn_momentum": 0.01}),
    Architecture(partial(timm.create_model, "fastvit_t12"), "head.global_pool", "backbone.head.fc", "projector.0",
                 "fastvit_t12"))


class AuthorsNetwork(nn.Module):
    """A student as its authors built it, under their names: the measure of a conversion.

    Args:
        backbone: normalized pictures → the un-normalized feature [B, kd_dim], GeM included.
        projector: to the descriptor, not yet normalized.
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.projector = backbone, projector

    def embed(self, pictures: Tensor) -> Tensor:
        """Return descriptors [B, dim] of pictures [B, 3, H, W] in [0, 1]."""
        mean, std = (pictures.new_tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        return F.normalize(self.projector(self.backbone((pictures - mean) / std)))


class AuthorsStudent(NamedTuple):
    """A released network, the same as a `Student`, and the checkpoint's keys that neither needs nor knows."""

    network: AuthorsNetwork
    student: Student
    unknown: list[str]


def read_lightning(path: str | Path) -> object:
    """Read a torch file weights-only, the plain classes of old Lightning checkpoints allowed and left inert.

    Raises:
        UserError: truncated, or holding any other object, which is named.
    """
    path = Path(path)
    try:
        with torch.serialization.safe_globals(HARMLESS), open(path, "rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # truncated or hostile files raise anything, from zip to pickle errors
        raise UserError(f"{path} ({path.stat().st_size:,} bytes) is not a readable checkpoint "
                        f"({why_unreadable(error)}): expected student.safetensors, a training checkpoint, or the "
                        f"Lightning checkpoint of RDCD's authors; if it is one, it may be truncated") from error


def authors_student(checkpoint: object, *, path: str | Path) -> AuthorsStudent:
    """Build the query encoder of a released checkpoint twice: as its authors did, and as a `Student`.

    Every weight of the encoder is used, once.

    Args:
        checkpoint: from `read_lightning`.
        path: of the file, for messages.

    Raises:
        UserError: no such checkpoint, another architecture, or weights that do not fit it (listed).
    """
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    state = state.items() if isinstance(state, dict) else ()
    state = {k: v for k, v in state if isinstance(k, str) and isinstance(v, Tensor)}
    encoder = {k.removeprefix(QUERY_ENCODER): v for k, v in state.items() if k.startswith(QUERY_ENCODER)}
    if not encoder:
        found = f"its keys begin {', '.join(list(state)[:3])}" if state else "it holds no state_dict"
        raise UserError(f"{path}: {found}; expected student.safetensors, a training checkpoint with its card, or the "
                        f"Lightning checkpoint of RDCD's authors, with {QUERY_ENCODER}*")
    kind = next((one for one in ARCHITECTURES if f"{one.fc}.weight" in encoder), ARCHITECTURES[-1])
    outputs = [encoder[f"{name}.weight"].shape[:1] for name in (kind.fc, kind.projector) if f"{name}.weight" in encoder]
    if sum(map(len, outputs)) < 2:
        raise UserError(f"{path} holds no {kind.fc}.weight or no {kind.projector}.weight under {QUERY_ENCODER}: "
                        f"expected an EfficientNet-B0, MobileNetV3-Large or FastViT-T12 student of RDCD's authors; its "
                        f"keys begin {', '.join(list(encoder)[:3])}")
    (kd_dim,), (dim,) = outputs
    gem_p = _gem_p(checkpoint)
    network = _network(kind, kd_dim, dim, gem_p=gem_p)
    check_fit(network.state_dict(), encoder, path=path, what=f"the authors' {kind.trunk} student")
    network.load_state_dict(encoder)
    student = Student(trunk=kind.trunk, kd_dim=kd_dim, dim=dim, gem_p=gem_p, timm=kind.timm,
                      mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD)
    student.load_state_dict(_renamed(network.state_dict(), student.state_dict()))
    unknown = [name for name in state if not name.startswith((QUERY_ENCODER, *UNUSED))]
    return AuthorsStudent(network.eval(), student.eval(), unknown)


def _gem_p(checkpoint: dict) -> float:
    """The exponent that the authors' training script was given; 3 where the file does not say."""
    settings = checkpoint.get("hyper_parameters")
    args = settings.get("args") if isinstance(settings, dict) else None
    return getattr(args, "pool_param", 3.0)


def _network(kind: Architecture, kd_dim: int, dim: int, *, gem_p: float) -> AuthorsNetwork:
    backbone, projector = kind.build(num_classes=kd_dim), nn.Linear(kd_dim, dim)
    backbone.set_submodule(kind.pooling, GeM(gem_p))
    return AuthorsNetwork(backbone, projector if kind.projector == "projector" else nn.Sequential(projector))


def _renamed(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of a network the names of the same network built elsewhere.

    Both list their layers from the image to the descriptor, so the n-th tensor of one is the n-th of the other; a
    linear layer of torchvision may be a 1 × 1 convolution of timm.
    """
    return {name: value.reshape(own.shape) for (name, own), value in zip(ours.items(), theirs.values(), strict=True)}
