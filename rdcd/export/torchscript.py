"""A student → TorchScript: traced and frozen, for C++ and for Pythons without rdcd."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from rdcd.errors import UserError
from rdcd.export.onnx import deployed, quiet
from rdcd.models.student import Student


def write_torchscript(path: Path, student: Student, *, size: int) -> None:
    """Write a student as a frozen trace of uint8 pictures [N, 3, size, size] → descriptors [N, d].

    Raises:
        UserError: the trunk cannot be traced.
    """
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    try:
        with quiet(), torch.no_grad():
            traced = torch.jit.freeze(torch.jit.trace(deployed(student), example, check_trace=False).eval())
            torch.jit.save(traced, str(path))
    except Exception as error:  # whatever tracing raises
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"format=torchscript: {student.architecture['trunk']} at size={size} cannot be traced "
                        f"({type(error).__name__}: {reason}); try format=onnx, or another trunk") from error


def run_torchscript(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a file that was just written here as a function of uint8 pictures."""
    with quiet():
        return torch.jit.load(str(path), map_location="cpu")
