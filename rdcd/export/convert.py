"""Any student → `student.safetensors` or a file to deploy, with its card, checked against it (`rdcd export`)."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from rdcd.data.images import reads_images
from rdcd.data.views import RESIZES
from rdcd.errors import UserError, check_number, check_path
from rdcd.evaluation.runs import find_run
from rdcd.export.deploy import SUFFIXES, deploy
from rdcd.files import atomic_path, check_output, sha256
from rdcd.models.authors import authors_student, read_lightning
from rdcd.models.exported import card_of
from rdcd.models.student import Student, check_size, is_safetensors, parameter_count
from rdcd.models.weights import extend_card, load_student, save_student
from rdcd.provenance import provenance
from rdcd.retrieval.calibration import uncalibrated

FORMATS = {"safetensors": ".safetensors"} | SUFFIXES
TOLERANCE = 1e-5  # between descriptors of the source and of what was written
OURS = ("format", "exported", "architecture", "preprocessing", "weights_sha256", "source", "provenance")  # written anew
AUTHORS_LICENCE = ("none is stated by RDCD's authors (github.com/juntae9926/RDCD); of the training pictures, DISC2021, "
                   "and the teacher's weights")


@dataclass(frozen=True)
class Source:
    """A student as it was found.

    Args:
        path: the file.
        kind: its format.
        network: what computes the descriptors to be kept, by `embed`.
        student: the same as a `Student`.
        size, resize: how its pictures are resized.
        conversion: what was done to the weights.
        card: entries to keep.
        about: entries on the source.
        unknown: keys of the file that are not understood, and not used.
    """

    path: Path
    kind: str
    network: torch.nn.Module
    student: Student
    size: int
    resize: str
    conversion: str
    card: dict
    about: dict = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


@reads_images
def export(*, checkpoint: str | Path, out: str | Path, format: str = "safetensors", size: int | None = None,
           resize: str | None = None, images: str | Path | None = None, calibration_images: str | Path | None = None,
           calibration_count: int = 256, min_cosine: float = 0.95, benchmark: str | Path | None = None) -> Path:
    """Write a student's weights and card; nothing appears unless they give the source's descriptors.

    Args:
        checkpoint: a run folder or `latest`, `student.safetensors`, a training checkpoint, or the Lightning
            checkpoint of RDCD's authors; files are told apart by content.
        out: the file to write; its card goes beside it, `NAME.json` of `NAME.safetensors`, `FILE.json` of other
            formats. Files of these names are replaced.
        format: `safetensors`, the weights as they were trained; `onnx`, `int8` (ONNX, too) or `torchscript`, networks
            folded for inference that take uint8 pictures [N, 3, S, S].
        size, resize: what the card says of preprocessing, see `Pictures`; None: the source's, for the authors'
            files 288 square. A deployed network takes squares of this size alone.
        images: pictures on which a deployed file is compared with the source, see `open_pictures`; None: drawn ones,
            of int8 some that are held out of the calibration.
        calibration_images, calibration_count: of int8, the user's own pictures, and how many of them at most.
        min_cosine: of int8, the least mean cosine to fp32 descriptors.
        benchmark: of int8, root of a benchmark of DISC's layout on which the change of µAP is measured.

    Raises:
        UserError: no such file, one that is none of these, or descriptors that differ.
    """
    for name, value in (("checkpoint", checkpoint), ("out", out)):
        if not isinstance(value, str | Path):
            raise UserError(f"{name}={value}: expected the path of a file")
    check_number("size", size, 1, null="the source's")
    if resize not in (None, *RESIZES):
        raise UserError(f"resize={resize}: expected {', '.join(RESIZES)}, or null for the source's")
    out = Path(out)
    _check_format(format, out=out, images=images, calibration_images=calibration_images,
                  calibration_count=calibration_count, min_cosine=min_cosine, benchmark=benchmark)
    card_path = out.with_suffix(".json") if format == "safetensors" else card_of(out)
    check_output(out)
    check_output(card_path)
    source = read_source(checkpoint)
    if out.resolve() == source.path.resolve():
        raise UserError(f"out={out} is the checkpoint itself: give another name")
    size, resize, digest = size or source.size, resize or source.resize, sha256(source.path)
    if format != "safetensors" and resize != "square":
        raise UserError(f"format={format}: a deployed network takes squares, and the student's pictures are resized "
                        f"{RESIZES[resize]} (resize={resize}); give resize=square, which changes descriptors, or "
                        f"format=safetensors")
    if source.unknown:
        print(f"{source.path}: {len(source.unknown)} keys are not known and not used: {', '.join(source.unknown)}")
    card = source.card
    if (size, resize) != (source.size, source.resize) and uncalibrated(card) != card:
        card = uncalibrated(card)
        print(f"thresholds on the source's card are of {source.size} px {source.resize}: they are left out")
    about = {"file": source.path.name, "sha256": digest, "format": source.kind, "conversion": source.conversion}
    made = provenance(weights={source.path.name: digest}, device="cpu")
    if format == "safetensors":
        # The names that atomic_path gives to the two files are those of a student and its card, too.
        with atomic_path(out) as weights, atomic_path(card_path):
            save_student(weights, source.student, size=size, resize=resize, card=card)
            difference = largest_difference(source, load_student(weights)[0], size=size)
            extend_card(weights, source=about | {"largest_difference": difference} | source.about, provenance=made)
        said = [f"descriptors differ from the source's by at most {difference:.1e} (allowed: {TOLERANCE:g})"]
    else:
        if format == "int8" and uncalibrated(card) != card:
            card = uncalibrated(card)
            print("thresholds on the source's card are of fp32 descriptors: they are left out")
        check_size(source.student, size, name=source.student.architecture["trunk"], key="size")
        architecture = source.student.architecture
        said = deploy(out, source.student, eager=source.network, format=format, size=size, images=images,
                      calibration_images=calibration_images, calibration_count=calibration_count,
                      min_cosine=min_cosine, benchmark=benchmark, card={
                          "architecture": architecture,
                          "preprocessing": {"resize": resize, "size": size, "mean": architecture["mean"],
                                            "std": architecture["std"]},
                          "source": about | source.about, "provenance": made} | card)
    print(f"{out}: {source.student.architecture['trunk']}, {parameter_count(source.student) / 1e6:.2f} M parameters, "
          f"{source.student.dim}-d, {size} px {resize}; from {source.path}, {source.kind}", *said, sep="\n")
    return out


def _check_format(format: str, *, out: Path, images: str | Path | None, calibration_images: str | Path | None,
                  calibration_count: int, min_cosine: float, benchmark: str | Path | None) -> None:
    if format not in FORMATS:
        raise UserError(f"format={format}: expected one of {', '.join(FORMATS)}")
    if out.suffix != FORMATS[format]:
        others = [name for name, suffix in FORMATS.items() if suffix == out.suffix]
        raise UserError(f"out={out}: expected a name that ends in {FORMATS[format]}; the card goes beside it"
                        + (f"; for such a file give format={' or format='.join(others)}" if others else ""))
    for key, value in (("images", images), ("calibration_images", calibration_images), ("benchmark", benchmark)):
        check_path(key, value, null="none")
    check_number("calibration_count", calibration_count, 1)
    check_number("min_cosine", min_cosine, -1, 1, whole=False)
    if format == "int8" and calibration_images is None:
        raise UserError("format=int8: ranges are learnt from pictures: give calibration_images=DIR, some hundreds of "
                        "your own")
    unused = {"images": images} if format == "safetensors" else {}
    if format != "int8":
        unused |= {"calibration_images": calibration_images, "benchmark": benchmark}
    for key, value in unused.items():
        if value is not None:
            raise UserError(f"{key}={value}: format={format} makes no use of it; leave it out")


def read_source(checkpoint: str | Path) -> Source:
    """Load a student from whatever holds it; see `export`."""
    path = Path(checkpoint)
    if path.suffix == ".onnx":
        raise UserError(f"checkpoint={checkpoint} is an exported file: give what it was exported from")
    if str(checkpoint) == "latest" or path.is_dir():
        path = find_run(checkpoint, finished=True) / "student.safetensors"
    if not path.is_file():
        raise UserError(f"checkpoint={checkpoint}: no file {path}; expected a run folder, latest, student.safetensors, "
                        f"or a checkpoint")
    if is_safetensors(path):
        return _ours(path, "rdcd student")
    checkpoint = read_lightning(path)
    if isinstance(checkpoint, dict) and "card" in checkpoint:
        return _ours(path, "rdcd training checkpoint")
    network, student, unknown = authors_student(checkpoint, path=path)
    return Source(path, "Lightning checkpoint of RDCD's authors", network, student, size=288, resize="square",
                  conversion="the query encoder (model.encoder_q.*), its trunk under timm's names; the rest left out",
                  card={"licence": AUTHORS_LICENCE}, unknown=unknown,
                  about={key: checkpoint[key] for key in ("epoch", "global_step") if type(checkpoint.get(key)) is int})


def _ours(path: Path, kind: str) -> Source:
    student, card = load_student(path)
    made = card["preprocessing"]
    return Source(path, kind, student, student, made["size"], made.get("resize", "square"), conversion="none",
                  card={key: value for key, value in card.items() if key not in OURS},
                  about={key: card[key] for key in ("source", "provenance") if key in card})


def largest_difference(source: Source, student: Student, *, size: int) -> float:
    """Return the largest absolute difference of descriptors between a source and its copy, on seeded pictures.

    Raises:
        UserError: it exceeds `TOLERANCE`, or the network does not take pictures of this size.
    """
    pictures = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            difference = float((source.network.embed(pictures) - student.embed(pictures)).abs().max())
    except (AssertionError, RuntimeError) as error:  # a transformer of fixed positions, say
        raise UserError(f"size={size}: {student.architecture['trunk']} does not take such pictures ({error}); leave "
                        f"size out, or give the one it was trained for") from error
    if not difference <= TOLERANCE:  # NaN, too
        raise UserError(f"descriptors of the converted student differ from those of {source.path} by {difference:g}, "
                        f"and {TOLERANCE:g} is allowed: nothing was written; fetch or train the file again")
    return difference
