"""Student weights on disk: `student.safetensors` and its card `student.json` (DESIGN, contracts)."""

import json
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from rdcd.errors import UserError
from rdcd.files import atomic_path, sha256, write_json
from rdcd.models.student import FORMER, Student, check_fit, is_safetensors, read_weights, why_unreadable

FORMAT = "rdcd-student-1"


def save_student(path: str | Path, student: Student, *, size: int, resize: str = "square",
                 card: dict | None = None) -> Path:
    """Write weights to `path` (`.safetensors`) and the card beside it (`.json`); return `path`.

    Args:
        size, resize: how pictures are resized for this student by default, see `Pictures`.
        card: what else a reader should know: training config, provenance, licence, thresholds.

    Raises:
        ValueError: a student made by `reparameterize`, whose weights fit no architecture.
    """
    if student.folded:
        raise ValueError("a re-parameterized student cannot be saved: save the one it was made from")
    path = Path(path).with_suffix(".safetensors")
    with atomic_path(path) as partial:
        save_file({k: v.detach().cpu().contiguous() for k, v in student.state_dict().items()}, partial)
    write_json(path.with_suffix(".json"), {
        "format": FORMAT,
        "architecture": student.architecture,
        "preprocessing": {"resize": resize, "size": size, "mean": student.architecture["mean"],
                          "std": student.architecture["std"]},
        "weights_sha256": sha256(path),
    } | (card or {}))
    return path


def extend_card(path: str | Path, **entries: object) -> None:
    """Add entries to the card of a weights file."""
    write_json(Path(path).with_suffix(".json"), read_card(path) | entries)


def read_card(path: str | Path) -> dict:
    """Return the card that lies beside a weights file.

    Raises:
        UserError: there is none, or it is no card of ours.
    """
    card_path = Path(path).with_suffix(".json")
    card = read_json_card(card_path, of=Path(path), what="student weights are")
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise UserError(f"{card_path}: format {found!r}, expected {FORMAT!r}; "
                        f"is it the card of a student trained by rdcd?")
    if absent := _absent(card, "weights_sha256"):
        raise UserError(f"{card_path} has no {', '.join(absent)}: copy the card again")
    return card


def read_json_card(card_path: Path, *, of: Path, what: str) -> object:
    """Return what the card of the file `of` holds, whatever that is; `what` names such a pair of files in the error.

    Raises:
        UserError: there is none, or it is not JSON.
    """
    try:
        return json.loads(card_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no card {card_path}: {what} two files, {of.name} and {card_path.name}; copy both") from None
    except ValueError as error:
        raise UserError(f"{card_path} is not JSON ({error}): copy the card again") from error


def _absent(card: dict, *further: str) -> list[str]:
    """Return what a student's card lacks."""
    absent = [key for key in ("architecture", "preprocessing") if not isinstance(card.get(key), dict)]
    absent += [key for key in further if key not in card]
    return absent or ["preprocessing.size"] * ("size" not in card["preprocessing"])


def load_student(path: str | Path) -> tuple[Student, dict]:
    """Load a student and its card from `student.safetensors` or a training checkpoint, told apart by content.

    Raises:
        UserError: missing, truncated or foreign files, or weights of another architecture.
    """
    path = Path(path)
    if not is_safetensors(path) if path.is_file() else path.suffix == ".ckpt":
        return _from_checkpoint(path)
    state, card = read_weights(path), read_card(path)
    if sha256(path) != card["weights_sha256"]:
        raise UserError(f"{path.with_suffix('.json')} is the card of other weights than {path}: copy both "
                        f"files again")
    return _build(card["architecture"], state, path), card


def read_checkpoint(path: str | Path) -> dict:
    """Read a training checkpoint, tensors and plain types only.

    Raises:
        UserError: no such file, truncated, or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint {path}: a run keeps its own in RUN/checkpoints/last.ckpt")
    try:
        with open(path, "rb") as file, warnings.catch_warnings():  # torch goes by the name of what it is given by name
            warnings.simplefilter("ignore")  # that TorchScript is loaded otherwise: we say what is wrong
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # truncated or hostile files raise anything, from zip to pickle errors
        raise UserError(f"{path} ({path.stat().st_size:,} bytes) is not a readable checkpoint "
                        f"({why_unreadable(error)}): it may be truncated; use another one of the run's checkpoints/, "
                        f"or, for a student that RDCD's authors released, `rdcd export` first") from error
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(k), dict) for k in ("state_dict", "card")):
        raise UserError(f"{path} is no training checkpoint of rdcd: it has no `state_dict` and `card`")
    if absent := _absent(checkpoint["card"]):
        raise UserError(f"the card in {path} has no {', '.join(absent)}: use another one of the run's checkpoints/")
    return checkpoint


def _from_checkpoint(path: Path) -> tuple[Student, dict]:
    checkpoint = read_checkpoint(path)
    state = {k.removeprefix("student."): v for k, v in checkpoint["state_dict"].items() if k.startswith("student.")}
    card = checkpoint["card"] | {"weights_sha256": sha256(path)}
    return _build(card["architecture"], state, path), card


def _build(architecture: dict, state: dict[str, Tensor], path: Path) -> Student:
    try:
        student = Student(**FORMER | architecture)
    except TypeError as error:
        raise UserError(f"the card of {path} describes no student ({error}): copy the card again") from error
    check_fit(student.state_dict(), state, path=path, what=f"the {student.architecture['trunk']} its card describes")
    student.load_state_dict(state)
    return student.eval()
