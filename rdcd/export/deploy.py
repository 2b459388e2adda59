"""Files that run without rdcd: written beside their name, compared, and only then named (`rdcd export format=…`)."""

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from rdcd.data.disc import open_benchmark
from rdcd.errors import UserError
from rdcd.evaluation.extract import extract_descriptors
from rdcd.evaluation.score import score_descriptors
from rdcd.export.onnx import INPUT, OUTPUT, write_onnx
from rdcd.export.parity import Parity, check_parity, compare, embed_bytes, read_pictures
from rdcd.export.quantize import BATCH, speed_ratio, split, threads, write_int8
from rdcd.export.torchscript import run_torchscript, write_torchscript
from rdcd.files import atomic_path, sha256, write_json
from rdcd.models.exported import FORMAT, OnnxDescriptor, card_of
from rdcd.models.student import Student, parameter_count
from rdcd.retrieval.descriptors import Descriptors

SUFFIXES = {"onnx": ".onnx", "int8": ".onnx", "torchscript": ".pt"}
SCORE_NORM = "1.0[0,2]"


def deploy(out: Path, student: Student, *, eager: torch.nn.Module, format: str, size: int, card: dict,
           images: str | Path | None, calibration_images: str | Path | None, calibration_count: int,
           min_cosine: float, benchmark: str | Path | None) -> list[str]:
    """Write `out` and its card, unless its descriptors differ from the eager network's; return what is to be said.

    Args:
        student: what is exported.
        eager: what it must agree with, has `embed`.
        card: entries of the card, without format and hash.
        images, calibration_images, calibration_count, min_cosine, benchmark: see `export`.

    Raises:
        UserError: it cannot be written, or the descriptors differ.
    """
    eager = embed_bytes(eager)
    with atomic_path(out) as partial, atomic_path(card_of(out)) as card_partial:
        about = {"format": format, "parameters": parameter_count(student),
                 "input": f"uint8 [N, 3, {size}, {size}], RGB in 0…255; scaling and normalization are inside",
                 "output": f"float32 [N, {student.dim}], L2-normalized"}
        if format == "int8":
            found, said = _int8(partial, student, eager, size=size, images=images,
                                calibration_images=calibration_images, count=calibration_count,
                                min_cosine=min_cosine, benchmark=benchmark)
            about |= found
        else:
            if format == "onnx":
                about["opset"] = write_onnx(partial, student, size=size)
                written = embed_bytes(OnnxDescriptor(partial))
            else:
                write_torchscript(partial, student, size=size)
                written = run_torchscript(partial)
            parity = compare(eager, written, read_pictures(images, size=size))
            check_parity(parity, format=format)
            about["parity"] = asdict(parity)
            said = [_agreement(parity)]
        if format != "torchscript":
            about["names"] = {"input": INPUT, "output": OUTPUT}
        write_json(card_partial, {"format": FORMAT, "exported": about, "weights_sha256": sha256(partial)} | card)
    return said


def _int8(path: Path, student: Student, eager, *, size: int, images: str | Path | None,
          calibration_images: str | Path, count: int, min_cosine: float, benchmark: str | Path | None,
          ) -> tuple[dict, list[str]]:
    """Write int8 to `path`; return what its card says and what is to be said."""
    with TemporaryDirectory() as folder:
        plain = Path(folder) / "fp32.onnx"
        opset = write_onnx(plain, student, size=size)
        own = read_pictures(calibration_images, size=size, count=count + min(max(count // 7, 1), 64))
        calibration, held = split(own, count)
        pictures = held if images is None else read_pictures(images, size=size, count=64)
        fp32 = OnnxDescriptor(plain)
        check_parity(compare(eager, embed_bytes(fp32), pictures[:12]), format="onnx")
        nodes = write_int8(path, plain, pictures=calibration)
        int8 = OnnxDescriptor(path)
        parity = compare(embed_bytes(fp32), embed_bytes(int8), pictures)
        if not parity.cosine_mean >= min_cosine:  # NaN, too
            raise UserError(f"format=int8: descriptors have a mean cosine of {parity.cosine_mean:.4f} to fp32 on "
                            f"{parity.pictures} pictures, and min_cosine={min_cosine} is asked for: nothing was "
                            f"written; calibrate with more pictures like your own (calibration_images, "
                            f"calibration_count), take format=onnx, or accept it with min_cosine="
                            f"{max(parity.cosine_mean - 0.005, 0):.2f}")
        ratio = speed_ratio(fp32, int8)
        about = {"opset": opset, "parity": asdict(parity), "quantized_nodes": nodes,
                 "calibration": {"pictures": len(calibration), "images": Path(calibration_images).name},
                 "speed_ratio": {"int8_over_fp32": ratio, "batch": BATCH, "threads": threads()}}
        said = [f"int8: cosine to fp32 {parity.cosine_mean:.4f} on average, {parity.cosine_min:.4f} at least, on "
                f"{parity.pictures} pictures" + " held out of the calibration's" * (images is None),
                f"speed: {ratio:.2f} times that of fp32 in ONNX Runtime here ({threads()} threads, batches of {BATCH})"]
        if benchmark is not None:
            values = {name: _uap_sn(network, benchmark, size=size) for name, network in
                      (("fp32", fp32), ("int8", int8))}
            change = values["int8"] - values["fp32"]
            about["uAP_SN"] = values | {"change": change, "benchmark": Path(benchmark).name}
            said.append(f"µAP_SN: {values['int8']:.4f} for {values['fp32']:.4f} of fp32 on {benchmark}, {change:+.4f}")
        return about, said


def _uap_sn(network: OnnxDescriptor, root: str | Path, *, size: int) -> float:
    """Return µAP with score normalization on a benchmark of DISC's layout, as `rdcd evaluate` measures it."""
    benchmark = open_benchmark(root)
    found: dict[str, Descriptors] = {}
    for role, pictures in (("query", benchmark.queries), ("reference", benchmark.references),
                           ("background", benchmark.background)):
        found[role] = extract_descriptors(network, pictures, size=size, label=role)[0]
    return score_descriptors(found["query"], found["reference"], found["background"], benchmark.pairs,
                             score_norms=[SCORE_NORM])[0].metrics.uAP


def _agreement(parity: Parity) -> str:
    return (f"descriptors of the written file agree with the student's on {parity.pictures} pictures: cosine at least "
            f"{parity.cosine_min:.6f}, numbers differ by at most {parity.largest_difference:.1e}")
