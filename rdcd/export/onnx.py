"""A student → ONNX: one graph from uint8 pictures to descriptors, for batches of any size."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from rdcd.errors import UserError
from rdcd.export.parity import Deployed
from rdcd.models.exported import NEEDS
from rdcd.models.inference import fold_batch_norms
from rdcd.models.student import Student, reparameterize

INPUT, OUTPUT = "pictures", "descriptors"


def deployed(student: Student) -> Deployed:
    """Return a copy for inference: parallel branches and batch norms folded, scaling and normalization inside."""
    ready = reparameterize(student)
    fold_batch_norms(ready)
    return Deployed(ready)


def write_onnx(path: Path, student: Student, *, size: int) -> int:
    """Write a student as ONNX with the exporter's current opset; return that opset.

    The input `pictures` is uint8 [N, 3, size, size], the output `descriptors` fp32 [N, d], L2-normalized.

    Raises:
        UserError: packages are missing, or the trunk cannot be exported.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise UserError(f"format=onnx needs packages that are not installed ({error}): {NEEDS}") from error
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    try:
        with quiet():
            program = torch.onnx.export(
                deployed(student), (example,), dynamo=True, input_names=[INPUT], output_names=[OUTPUT],
                dynamic_shapes={"pictures": {0: torch.export.Dim("batch")}}, verbose=False)
            program.save(str(path), external_data=False)
    except Exception as error:  # whatever tracing and translation raise
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"format=onnx: {student.architecture['trunk']} at size={size} cannot be exported "
                        f"({type(error).__name__}: {reason}); try format=torchscript, or another trunk") from error
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    return next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back what the libraries say along the way: errors are raised."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
