"""Any student → `student.safetensors` and its card, checked against its source (`rdcd export`)."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from rdcd.data.views import RESIZES
from rdcd.errors import UserError, check_number
from rdcd.evaluation.runs import find_run
from rdcd.files import atomic_path, check_output, sha256
from rdcd.models.authors import authors_student, read_lightning
from rdcd.models.student import Student, is_safetensors, parameter_count
from rdcd.models.weights import extend_card, load_student, save_student
from rdcd.provenance import provenance
from rdcd.retrieval.calibration import uncalibrated

TOLERANCE = 1e-5  # between descriptors of the source and of what was written
OURS = ("format", "architecture", "preprocessing", "weights_sha256", "source", "provenance")  # written anew
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


def export(*, checkpoint: str | Path, out: str | Path, size: int | None = None, resize: str | None = None) -> Path:
    """Write a student's weights and card; nothing appears unless they give the source's descriptors.

    Args:
        checkpoint: a run folder or `latest`, `student.safetensors`, a training checkpoint, or the Lightning
            checkpoint of RDCD's authors; files are told apart by content.
        out: the `.safetensors` to write; its card goes beside it. Files of these names are replaced.
        size, resize: what the card says of preprocessing, see `Pictures`; None: the source's, for the authors'
            files 288 square.

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
    if out.suffix != ".safetensors":
        raise UserError(f"out={out}: expected a name that ends in .safetensors; the card goes beside it")
    check_output(out)
    check_output(out.with_suffix(".json"))
    source = read_source(checkpoint)
    if out.resolve() == source.path.resolve():
        raise UserError(f"out={out} is the checkpoint itself: give another name")
    size, resize, digest = size or source.size, resize or source.resize, sha256(source.path)
    if source.unknown:
        print(f"{source.path}: {len(source.unknown)} keys are not known and not used: {', '.join(source.unknown)}")
    card = source.card
    if (size, resize) != (source.size, source.resize) and uncalibrated(card) != card:
        card = uncalibrated(card)
        print(f"thresholds on the source's card are of {source.size} px {source.resize}: they are left out")
    # The names that atomic_path gives to the two files are those of a student and its card, too.
    with atomic_path(out) as weights, atomic_path(out.with_suffix(".json")):
        save_student(weights, source.student, size=size, resize=resize, card=card)
        difference = largest_difference(source, load_student(weights)[0], size=size)
        extend_card(weights, source={"file": source.path.name, "sha256": digest, "format": source.kind,
                                     "conversion": source.conversion, "largest_difference": difference} | source.about,
                    provenance=provenance(weights={source.path.name: digest}, device="cpu"))
    print(f"{out}: {source.student.architecture['trunk']}, {parameter_count(source.student) / 1e6:.2f} M parameters, "
          f"{source.student.dim}-d, {size} px {resize}; from {source.path}, {source.kind}\n"
          f"descriptors differ from the source's by at most {difference:.1e} (allowed: {TOLERANCE:g})")
    return out


def read_source(checkpoint: str | Path) -> Source:
    """Load a student from whatever holds it; see `export`."""
    path = Path(checkpoint)
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
