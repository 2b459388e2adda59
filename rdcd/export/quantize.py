"""An exported ONNX file → int8: static, calibrated on the user's own pictures."""

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rdcd.errors import UserError
from rdcd.export.onnx import INPUT, quiet
from rdcd.models.exported import NEEDS, OnnxDescriptor

BATCH = 8  # pictures a step of calibration, and of the timing
TURNS = 7
_FP32 = ("network.fc.", "network.projector.")  # the layers whose output is the descriptor: little work, much to lose


class _Calibration:
    """Batches of pictures as onnxruntime's calibration asks for them."""

    def __init__(self, pictures: Tensor) -> None:
        self._batches = iter(pictures.split(BATCH))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch.numpy()}


def write_int8(path: Path, source: Path, *, pictures: Tensor) -> int:
    """Quantize the convolutions and products of the trunk; return how many nodes were.

    Weights have a scale a channel and 7 bits: with 8, sums of two products saturate on processors that have AVX2 and no
    VNNI, and descriptors depend on the machine. Activations have a scale a tensor, from the range that calibration saw
    on the average of its batches, since one outlier would coarsen all others. In fp32 stay depthwise convolutions,
    whose channels differ most and whose work is least, pooling, all layers behind it and the normalization.

    Args:
        source: an fp32 file of `write_onnx`.
        pictures: uint8 [n, 3, S, S] to calibrate with.

    Raises:
        UserError: packages are missing.
    """
    try:
        import onnx
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    except ImportError as error:
        raise UserError(f"format=int8 needs packages that are not installed ({error}): {NEEDS}") from error
    graph = onnx.load(str(source)).graph
    kinds = ("Conv", "MatMul", "Gemm")
    depthwise = {one.name for one in graph.initializer if len(one.dims) == 4 and one.dims[1] == 1}
    pooling = max((i for i, node in enumerate(graph.node) if node.op_type == "ReduceMean"), default=len(graph.node))
    chosen = [node.name for node in graph.node[:pooling] if node.op_type in kinds
              and not any(name in depthwise or name.startswith(_FP32) for name in node.input)]
    with quiet():
        quantize_static(str(source), str(path), _Calibration(pictures), quant_format=QuantFormat.QDQ,
                        op_types_to_quantize=list(kinds), nodes_to_quantize=chosen, per_channel=True,
                        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                        calibrate_method=CalibrationMethod.MinMax, reduce_range=True,
                        extra_options={"CalibMovingAverage": True})
    return len(chosen)


def speed_ratio(fp32: OnnxDescriptor, int8: OnnxDescriptor) -> float:
    """Return how many times as fast int8 is: the median over interleaved turns of a batch each."""
    pictures = np.random.default_rng(0).integers(0, 256, (BATCH, 3, fp32.size, fp32.size), dtype=np.uint8)
    ratios = []
    for turn in range(TURNS + 1):
        seconds = []
        for network in (fp32, int8):
            start = time.perf_counter()
            network.run(pictures)
            seconds.append(time.perf_counter() - start)
        if turn:  # the first warms up
            ratios.append(seconds[0] / seconds[1])
    return float(np.median(ratios))


def split(pictures: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return (those to calibrate with, those held out to compare): an eighth of them is held out, at most 64."""
    held = min(max(len(pictures) // 8, 1), 64)
    if len(pictures) < 2:
        raise UserError("calibration_images has one picture: give a folder of at least 2, better some hundreds")
    return pictures[held:][:count], pictures[:held]


def threads() -> int:
    """Return the number of threads that ONNX Runtime computes with here."""
    return torch.get_num_threads()
