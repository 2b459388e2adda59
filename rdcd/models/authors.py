"""Students that RDCD's authors released: Lightning checkpoints around networks of torchvision and timm (METHOD §8)."""

import argparse
import re
from pathlib import Path
from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torchvision.models import efficientnet_b0

from rdcd.errors import UserError
from rdcd.models.gem import GeM
from rdcd.models.student import Student, check_fit, why_unreadable

QUERY_ENCODER = "model.encoder_q."
EFFICIENTNET = "efficientnet_b0", "backbone.classifier.1", "projector"  # trunk, fc, projector
FASTVIT = "fastvit_t12", "backbone.head.fc", "projector.0"
UNUSED = ("model.encoder_k.", "model.queue", "teacher.", "kld.")  # key encoder, queues, teacher: of training alone
ENDS = {"features.0.0": "conv_stem", "features.0.1": "bn1", "features.8.0": "conv_head", "features.8.1": "bn2"}
BLOCK = {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2", "2.fc1": "se.conv_reduce",
         "2.fc2": "se.conv_expand", "3.0": "conv_pwl", "3.1": "bn3"}
FIRST_BLOCK = {"0.0": "conv_dw", "0.1": "bn1", "1.fc1": "se.conv_reduce", "1.fc2": "se.conv_expand",
               "2.0": "conv_pw", "2.1": "bn2"}  # it does not expand


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
    if "backbone.classifier.3.weight" in encoder:
        raise UserError(f"{path} holds a MobileNetV3 of torchvision, which pools before its 1280-wide layer, where a "
                        f"student's trunk has that layer inside: no conversion gives equal descriptors; train one "
                        f"with student=mobilenetv3")
    trunk, fc, projector = EFFICIENTNET if "backbone.features.0.0.weight" in encoder else FASTVIT
    outputs = [encoder[name].shape[:1] for name in (f"{fc}.weight", f"{projector}.weight") if name in encoder]
    if sum(map(len, outputs)) < 2:
        raise UserError(f"{path} holds no {fc}.weight or no {projector}.weight under {QUERY_ENCODER}: expected an "
                        f"EfficientNet-B0 or FastViT-T12 student of RDCD's authors; its keys begin "
                        f"{', '.join(list(encoder)[:3])}")
    (kd_dim,), (dim,) = outputs
    gem_p = _gem_p(checkpoint)
    network = _network(trunk, kd_dim, dim, gem_p=gem_p)
    check_fit(network.state_dict(), encoder, path=path, what=f"the authors' {trunk} student")
    student = Student(trunk=trunk, kd_dim=kd_dim, dim=dim, gem_p=gem_p)
    network.load_state_dict(encoder)
    student.load_state_dict({_our_name(name): value for name, value in encoder.items()})
    unknown = [name for name in state if not name.startswith((QUERY_ENCODER, *UNUSED))]
    return AuthorsStudent(network.eval(), student.eval(), unknown)


def _gem_p(checkpoint: dict) -> float:
    """The exponent that the authors' training script was given; 3 where the file does not say."""
    settings = checkpoint.get("hyper_parameters")
    args = settings.get("args") if isinstance(settings, dict) else None
    return getattr(args, "pool_param", 3.0)


def _network(trunk: str, kd_dim: int, dim: int, *, gem_p: float) -> AuthorsNetwork:
    if trunk == EFFICIENTNET[0]:
        backbone = efficientnet_b0(num_classes=kd_dim)
        backbone.avgpool = GeM(gem_p)
        return AuthorsNetwork(backbone, nn.Linear(kd_dim, dim))
    backbone = timm.create_model(trunk, num_classes=kd_dim)
    backbone.head.global_pool = GeM(gem_p)
    return AuthorsNetwork(backbone, nn.Sequential(nn.Linear(kd_dim, dim)))


def _our_name(name: str) -> str:
    """The name in `Student` of a weight in `AuthorsNetwork`; torchvision's EfficientNet-B0 becomes timm's."""
    module, _, leaf = name.removeprefix("backbone.").rpartition(".")
    if module in ("projector", "projector.0"):
        return f"projector.{leaf}"
    if module in ("classifier.1", "head.fc"):
        return f"fc.{leaf}"
    if module in ENDS:
        return f"trunk.{ENDS[module]}.{leaf}"
    if block := re.fullmatch(r"features\.(\d)\.(\d+)\.block\.(.+)", module):
        stage = int(block[1]) - 1
        return f"trunk.blocks.{stage}.{block[2]}.{(BLOCK if stage else FIRST_BLOCK)[block[3]]}.{leaf}"
    return f"trunk.{module}.{leaf}"
