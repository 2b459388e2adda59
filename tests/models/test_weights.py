import argparse
import json
import pickle
from pathlib import Path

import pytest
import torch

from rdcd.errors import UserError
from rdcd.files import sha256
from rdcd.models.student import Student, reparameterize
from rdcd.models.weights import FORMAT, load_student, read_checkpoint, save_student

PICTURES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
ARCHITECTURE = {"trunk": "test_efficientnet", "dim": 6, "kd_dim": 10, "gem_p": 4.0,
                "mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}


@pytest.fixture
def student() -> Student:
    torch.manual_seed(0)
    made = Student(**ARCHITECTURE)
    made(PICTURES)  # moves the BN statistics away from their start
    return made.eval()


@pytest.fixture
def saved(student: Student, tmp_path: Path) -> Path:
    return save_student(tmp_path / "student.safetensors", student, size=96)


def write_checkpoint(path: Path, student: Student, **changes) -> Path:
    checkpoint = {"state_dict": {f"student.{k}": v for k, v in student.state_dict().items()}
                  | {"objective.student_queue.features": torch.zeros(4, 6)},
                  "card": {"architecture": student.architecture,
                           "preprocessing": {"resize": "square", "size": 96}},
                  "epoch": 3}
    torch.save({k: v for k, v in (checkpoint | changes).items() if v is not None}, path)
    return path


def test_round_trip_gives_the_same_descriptors(student: Student, saved: Path) -> None:
    again, card = load_student(saved)
    assert not again.training
    for found, expected in zip(again(PICTURES), student(PICTURES), strict=True):
        assert torch.equal(found, expected)
    assert again.architecture == student.architecture == card["architecture"]
    assert sorted(path.name for path in saved.parent.iterdir()) == ["student.json", "student.safetensors"]


def test_network_without_projector_round_trips(tmp_path: Path) -> None:
    teacher = Student(trunk="test_vit", dim=None, kd_dim=8).eval()
    again, _ = load_student(save_student(tmp_path / "teacher.safetensors", teacher, size=32))
    assert again.projector is None and torch.equal(again.embed(PICTURES), teacher.embed(PICTURES))


def test_card_says_what_is_needed(student: Student, tmp_path: Path) -> None:
    path = save_student(tmp_path / "new" / "student", student, size=96, card={"licence": "MIT"})
    assert path == tmp_path / "new" / "student.safetensors"
    card = json.loads((tmp_path / "new" / "student.json").read_text())
    assert card == {
        "format": FORMAT, "architecture": ARCHITECTURE,
        "preprocessing": {"resize": "square", "size": 96, "mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]},
        "weights_sha256": sha256(path), "licence": "MIT"}


def test_training_checkpoint_gives_the_same_descriptors(student: Student, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "last.ckpt", student)
    again, card = load_student(path)
    assert torch.equal(again.embed(PICTURES), student.embed(PICTURES)) and not again.training
    assert card["weights_sha256"] == sha256(path) and card["preprocessing"]["size"] == 96
    assert read_checkpoint(path)["epoch"] == 3


def test_missing_files_are_said(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights file .*other.safetensors"):
        load_student(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no checkpoint .*last.ckpt"):
        load_student(tmp_path / "last.ckpt")
    saved.with_suffix(".json").unlink()
    with pytest.raises(UserError, match="no card .*student.json: student weights are two files"):
        load_student(saved)


@pytest.mark.parametrize(("text", "said"), [
    ("{", "is not JSON"),
    ("[]", "format 'list', expected 'rdcd-student-1'"),
    ('{"format": "other"}', "format 'other', expected 'rdcd-student-1'"),
    ('{"format": "rdcd-student-1", "preprocessing": {}}', "has no architecture, weights_sha256"),
    ('{"format": "rdcd-student-1", "preprocessing": 3, "architecture": {}, "weights_sha256": ""}', "no preprocessing"),
    ('{"format": "rdcd-student-1", "preprocessing": {}, "architecture": {}, "weights_sha256": ""}',
     "has no preprocessing.size"),
])
def test_a_foreign_card_is_said(saved: Path, text: str, said: str) -> None:
    saved.with_suffix(".json").write_text(text)
    with pytest.raises(UserError, match=f"student.json.*{said}"):
        load_student(saved)


@pytest.mark.parametrize(("change", "said"), [
    ({"trunk": "test_resnet"}, "does not fit the test_resnet its card describes: .*missing"),
    ({"dim": 7}, r"2 misshaped \(projector.weight \(6, 10\) for \(7, 10\), projector.bias"),
    ({"dim": None}, r"2 unexpected \(projector"),
    ({"trunk": "nosuch"}, "timm has no such model"),
    ({"colour": 1}, "describes no student"),
])
def test_weights_of_another_architecture_are_said(saved: Path, change: dict, said: str) -> None:
    card = json.loads(saved.with_suffix(".json").read_text())
    card["architecture"] |= change
    saved.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=said):
        load_student(saved)


def test_the_card_of_other_weights_is_said(saved: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = save_student(tmp_path / "other.safetensors", Student(**ARCHITECTURE), size=96)
    other.replace(saved)
    with pytest.raises(UserError, match="student.json is the card of other weights than .*student.safe"):
        load_student(saved)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_truncated_files_are_said(student: Student, saved: Path, suffix: str) -> None:
    path = saved if suffix == ".safetensors" else write_checkpoint(saved.with_suffix(suffix), student)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"[\d,]+ bytes\) is not a readable .*truncated"):
        load_student(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"\(0 bytes\) is not a readable"):
        load_student(path)


@pytest.mark.parametrize("change", [{"state_dict": None}, {"card": None}, {"card": 1}, {"state_dict": [1]}])
def test_a_foreign_checkpoint_is_said(student: Student, tmp_path: Path, change: dict) -> None:
    path = write_checkpoint(tmp_path / "other.ckpt", student, **change)
    with pytest.raises(UserError, match="no training checkpoint of rdcd: it has no `state_dict` and `card`"):
        load_student(path)


def test_a_checkpoint_whose_card_lacks_something_is_said(student: Student, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "last.ckpt", student, card={"architecture": ARCHITECTURE, "preprocessing": {}})
    with pytest.raises(UserError, match="the card in .*last.ckpt has no preprocessing.size"):
        load_student(path)


def test_the_content_tells_weights_from_checkpoints_not_the_name(student: Student, saved: Path) -> None:
    weights = saved.rename(saved.with_suffix(".ckpt"))
    assert torch.equal(load_student(weights)[0].embed(PICTURES), student.embed(PICTURES))
    checkpoint = write_checkpoint(saved, student)
    assert torch.equal(load_student(checkpoint)[0].embed(PICTURES), student.embed(PICTURES))
    assert load_student(checkpoint)[1]["weights_sha256"] == sha256(checkpoint)


def test_a_released_checkpoint_of_the_authors_is_pointed_to_export(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "hyper_parameters": {"args": argparse.Namespace(dim=64)}}, tmp_path / "rdcd.ckpt")
    with pytest.raises(UserError, match="it holds argparse.Namespace, and only .*RDCD's authors .*`rdcd export`"):
        load_student(tmp_path / "rdcd.ckpt")


def test_a_reparameterized_student_is_not_saved(tmp_path: Path) -> None:
    folded = reparameterize(Student(trunk="fastvit_t8", dim=4, kd_dim=6))
    with pytest.raises(ValueError, match="save the one it was made from"):
        save_student(tmp_path / "student.safetensors", folded, size=64)
    assert not list(tmp_path.iterdir())


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["hostile.ckpt", "hostile.pth"])
def test_a_hostile_pickle_is_refused_unrun(student: Student, tmp_path: Path, name: str) -> None:
    mark = tmp_path / "ran"
    path = write_checkpoint(tmp_path / name, student, extra=Hostile(mark))
    with pytest.raises(UserError, match="is not a readable"):
        load_student(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the trap is a real one
    assert mark.exists()
    path.write_bytes(pickle.dumps(Hostile(mark), protocol=2))
    with pytest.raises(UserError, match="is not a readable"):
        load_student(path)
