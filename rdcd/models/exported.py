"""Exported networks (`FILE.onnx` and its card `FILE.onnx.json`), run by ONNX Runtime."""

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rdcd.errors import UserError
from rdcd.files import sha256
from rdcd.models.weights import read_json_card

FORMAT = "rdcd-exported-1"
NEEDS = "pip install 'rdcd[onnx]'"


def card_of(path: str | Path) -> Path:
    """Return the place of an exported file's card: its whole name and `.json`, unlike that of `student.safetensors`."""
    return Path(path).with_name(f"{Path(path).name}.json")


def read_exported_card(path: str | Path) -> dict:
    """Return the card beside an exported file.

    Raises:
        UserError: no such file, no card, or the card of another file.
    """
    path, card_path = Path(path), card_of(path)
    if not path.is_file():
        raise UserError(f"no file {path}: expected one that `rdcd export format=onnx` wrote; check the path")
    card = read_json_card(card_path, of=path, what="an exported network is")
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise UserError(f"{card_path} is no card of format {FORMAT!r}: was {path.name} written by `rdcd export`?")
    absent = [key for key in ("architecture", "preprocessing", "exported") if not isinstance(card.get(key), dict)]
    if absent or "size" not in card["preprocessing"]:
        raise UserError(f"{card_path} has no {', '.join(absent) or 'preprocessing.size'}: copy the card again")
    if sha256(path) != card.get("weights_sha256"):
        raise UserError(f"{card_path} is the card of another file than {path}: copy both files again")
    return card


class OnnxDescriptor(torch.nn.Module):
    """An ONNX file as extraction wants a network: `embed` and `dim`. It has no weights that torch knows of.

    ONNX Runtime computes: on a GPU where pictures lie there and its CUDA provider is installed, else on the CPU, with
    as many threads as torch has when the first picture comes.

    Args:
        path: a file of one input, uint8 [N, 3, S, S], and one output, fp32 [N, d].

    Raises:
        UserError: ONNX Runtime is not installed, or the file is none that it takes.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._sessions: dict[bool, object] = {}
        session = self.session()
        inputs, outputs = session.get_inputs(), session.get_outputs()
        shape = inputs[0].shape
        if (len(inputs) != 1 or len(outputs) != 1 or inputs[0].type != "tensor(uint8)" or len(shape) != 4
                or shape[1] != 3 or shape[2] != shape[3] or not isinstance(outputs[0].shape[-1], int)):
            raise UserError(f"{path} takes {', '.join(f'{one.type} {one.shape}' for one in inputs)}; expected one "
                            f"input, uint8 [N, 3, S, S], as `rdcd export format=onnx` writes it")
        self.size, self.dim = shape[2], outputs[0].shape[-1]

    def __deepcopy__(self, memo: dict) -> "OnnxDescriptor":
        """Return itself: nothing of it changes, and sessions cannot be copied."""
        return self

    def session(self, *, cuda: bool = False):
        """Return the `onnxruntime.InferenceSession`, made at the first call."""
        if cuda not in self._sessions:
            try:
                import onnxruntime
            except ImportError as error:
                raise UserError(f"{self.path} needs ONNX Runtime ({error}): {NEEDS}") from error
            cuda_too = cuda and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = 3  # errors alone
            try:
                self._sessions[cuda] = onnxruntime.InferenceSession(
                    str(self.path), options,
                    providers=["CUDAExecutionProvider"] * cuda_too + ["CPUExecutionProvider"])
            except Exception as error:  # onnxruntime's errors share no base of their own
                raise UserError(f"{self.path} is no ONNX file that ONNX Runtime takes ({_line(error)}): export or copy "
                                f"it again") from error
        return self._sessions[cuda]

    def run(self, pictures: np.ndarray, *, cuda: bool = False) -> np.ndarray:
        """Return the descriptors, float32 [B, d], of pictures, uint8 [B, 3, S, S].

        Raises:
            UserError: pictures of another size.
        """
        if pictures.shape[1:] != (3, self.size, self.size):
            raise UserError(f"{self.path} takes pictures of {self.size} x {self.size} pixels, and these have "
                            f"{pictures.shape[-1]} x {pictures.shape[-2]}: leave size and resize out, or export the "
                            f"student again with another size")
        session = self.session(cuda=cuda)
        return session.run(None, {session.get_inputs()[0].name: pictures})[0]

    def embed(self, pictures: Tensor) -> Tensor:
        """Return the descriptors [B, d] of pictures [B, 3, S, S] in [0, 1], steps of 1/255."""
        given = (pictures * 255).round().to(torch.uint8).cpu().contiguous()
        return torch.from_numpy(self.run(given.numpy(), cuda=pictures.is_cuda)).to(pictures.device)


def load_onnx(path: str | Path) -> tuple[OnnxDescriptor, dict]:
    """Load an exported ONNX file with its card.

    Raises:
        UserError: missing, damaged or foreign files, or no ONNX Runtime.
    """
    card = read_exported_card(path)
    network = OnnxDescriptor(path)
    network.fingerprint = card["weights_sha256"]
    if network.size != card["preprocessing"]["size"]:
        raise UserError(f"{card_of(path)} says {card['preprocessing']['size']} px and {path} takes {network.size}: "
                        f"copy both files again")
    return network.eval(), copy.deepcopy(card)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
