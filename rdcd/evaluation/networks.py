"""What can embed pictures, by name or by file: students, teachers, hashes, trunks as they come."""

import difflib
from pathlib import Path

import torch

from rdcd.errors import UserError
from rdcd.files import sha256
from rdcd.models.exported import load_onnx
from rdcd.models.hashes import HASHES, PerceptualHash
from rdcd.models.off_the_shelf import OffTheShelf
from rdcd.models.student import reparameterize
from rdcd.models.thumbnail import Thumbnail
from rdcd.models.weights import load_student
from rdcd.models.zoo import ZOO, load_zoo

FORMS = (f"student.safetensors, a .ckpt, an exported .onnx, (to evaluate) a run folder or latest, thumbnail, "
         f"{', '.join(HASHES)}, NAME or NAME:FILE of the zoo ({', '.join(ZOO)}), timm:TRUNK or timm:TRUNK:FILE")


def is_named(model: str | Path) -> bool:
    """Tell whether a model is given by a name rather than by the path of a file or a run folder."""
    return str(model).partition(":")[0] in ("thumbnail", "timm", *HASHES, *ZOO)


def file_of(model: str) -> Path | None:
    """Return the file that a name goes with, as in `sscd_disc_mixup:FILE` or `timm:TRUNK:FILE`; None: there is none."""
    name, _, rest = model.partition(":")
    if name == "timm":
        rest = rest.partition(":")[2]
    return Path(rest) if rest else None


def load_network(model: str | Path, *, allow_torchscript: bool = False) -> tuple[torch.nn.Module, dict]:
    """Load what embeds pictures, ready for inference, with its card.

    Args:
        model: a student's weights or checkpoint; an exported `.onnx`, which ONNX Runtime computes; `thumbnail`, the
            mean colours of 9 × 9 cells; `phash` or `pdq`, see `PerceptualHash`; a name of the zoo, `sscd_disc_mixup`,
            with `:FILE` where its weights lie in a file; `timm:TRUNK`, any timm trunk with its hub weights, or those
            of `:FILE`, pooled by GeM.
        allow_torchscript: whether a TorchScript file, whose loading runs code, may be loaded.

    Raises:
        UserError: no such file or name, or weights that do not fit.
    """
    name, _, rest = str(model).partition(":")
    if not is_named(model):
        if not Path(model).is_file() and Path(model).suffix not in (".safetensors", ".ckpt", ".onnx"):
            names, word = ("thumbnail", "timm", *HASHES, *ZOO), Path(model).name.partition(":")[0]
            near = difflib.get_close_matches(word, names, n=3)
            raise UserError(f"no model {str(model)!r}" + (f" (did you mean {' or '.join(near)}?)" if near else "")
                            + f": expected {FORMS}")
        if Path(model).suffix == ".onnx":
            return load_onnx(model)
        student, card = load_student(model)
        return reparameterize(student), card
    if name in ZOO:
        return load_zoo(name, path=rest or None, allow_torchscript=allow_torchscript)
    if name == "timm":
        trunk, _, file = rest.partition(":")
        if not trunk:
            raise UserError(f"model {model!r}: expected timm:TRUNK or timm:TRUNK:FILE, such as timm:resnet50.a1_in1k")
        try:
            network = OffTheShelf(trunk, pretrained=file or True).eval()
        except UserError as error:
            raise UserError(str(error).replace("student.pretrained=FILE", f"timm:{trunk}:FILE")
                            .replace("student.pretrained=true", f"timm:{trunk}")
                            .replace("student.trunk=", "timm:")) from error
        return network, _card(trunk, network.size, weights=sha256(file) if file else None)
    if rest:
        raise UserError(f"model {model!r}: {name} takes no file; expected {name}")
    if name == "thumbnail":
        return Thumbnail(), _card("colour thumbnail", 64)
    return PerceptualHash(name), _card(f"{name} hash", 512, fixed=True)


def preprocessing(card: dict, *, size: int | None, resize: str | None) -> tuple[int, str]:
    """Return (size, resize) for a network: what is asked for, else what its card says.

    Hashes scale pictures themselves, from the 512 × 512 that PDQ's reference tools cut large pictures down to; nothing
    that is asked for changes that.
    """
    said = card["preprocessing"]
    if said.get("fixed"):
        size = resize = None
    return size or said["size"], resize or said.get("resize", "square")


def _card(trunk: str, size: int, *, weights: str | None = None, fixed: bool = False) -> dict:
    return {"architecture": {"trunk": trunk}, "weights_sha256": weights,
            "preprocessing": {"size": size, "resize": "square", "fixed": fixed}}
