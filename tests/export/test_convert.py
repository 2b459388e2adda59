from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from authors_checkpoint import authors_state, settle, write_authors_checkpoint
from safetensors.torch import save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision.models import efficientnet_b0

from rdcd import cli
from rdcd.errors import UserError
from rdcd.export import convert
from rdcd.export.convert import export, read_source
from rdcd.files import sha256
from rdcd.models.student import Student
from rdcd.models.weights import extend_card, load_student, save_student

PICTURES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return authors_state()


@pytest.fixture(scope="module")
def released(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_authors_checkpoint(tmp_path_factory.mktemp("released") / "rdcd_b0_64.ckpt", state=state)


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    made = Student(trunk="test_byobnet", dim=6, kd_dim=10)
    settle(made.trunk)
    return made.eval()


def write_ours(kind: str, folder: Path, student: Student) -> Path:
    """The student as a run folder, its weights, or a training checkpoint."""
    card = {"training": {"steps": 7}, "licence": "MIT", "provenance": {"seed": 5}}
    weights = save_student(folder / "run" / "student.safetensors", student, size=48, resize="short", card=card)
    if kind == "checkpoint":
        made = {"architecture": student.architecture, "preprocessing": {"resize": "short", "size": 48}}
        torch.save({"state_dict": {f"student.{k}": v for k, v in student.state_dict().items()}, "card": made | card},
                   folder / "last.ckpt")
        return folder / "last.ckpt"
    return weights.parent if kind == "run" else weights


def plain(state: dict[str, Tensor], pictures: Tensor) -> Tensor:
    """Descriptors of the query encoder by torchvision's module, GeM and products alone."""
    network = efficientnet_b0(num_classes=512).eval()
    network.load_state_dict({k.removeprefix("model.encoder_q.backbone."): v for k, v in state.items()
                             if k.startswith("model.encoder_q.backbone.")})
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    with torch.no_grad():
        pooled = (network.features((pictures - mean) / std).clamp(min=1e-6) ** 3).mean(dim=(2, 3)) ** (1 / 3)
        return F.normalize(network.classifier(pooled) @ state["model.encoder_q.projector.weight"].T
                           + state["model.encoder_q.projector.bias"])


def test_the_command_converts_the_authors_checkpoint(released: Path, state: dict, tmp_path: Path, capsys) -> None:
    out = tmp_path / "new" / "student.safetensors"
    assert cli.main(["export", f"checkpoint={released}", f"out={out}", "size=64"]) == 0
    said = capsys.readouterr().out
    assert f"{out}: efficientnet_b0, 4.70 M parameters, 64-d, 64 px square; from {released}" in said
    assert "descriptors differ from the source's by at most" in said
    found, card = load_student(out)
    with torch.no_grad():
        torch.testing.assert_close(found.embed(PICTURES), plain(state, PICTURES), atol=1e-5, rtol=0)
    assert card["preprocessing"]["size"] == 64 and card["preprocessing"]["resize"] == "square"
    assert "none is stated by RDCD's authors" in card["licence"]
    assert 0 <= card["source"].pop("largest_difference") <= 1e-5
    assert card["source"].pop("conversion").startswith("the query encoder")
    assert card["source"] == {"file": "rdcd_b0_64.ckpt", "sha256": sha256(released), "epoch": 99,
                              "global_step": 390600, "format": "Lightning checkpoint of RDCD's authors"}
    assert card["provenance"]["command"] == f"rdcd export checkpoint={released} out={out} size=64"
    assert card["provenance"]["weights_sha256"] == {"rdcd_b0_64.ckpt": sha256(released)}
    assert sorted(path.name for path in out.parent.iterdir()) == ["student.json", "student.safetensors"]


def test_size_and_resize_of_the_authors_files(released: Path) -> None:
    source = read_source(released)
    assert (source.size, source.resize, source.unknown) == (288, "square", [])


def test_unknown_keys_are_told(state: dict, tmp_path: Path, capsys) -> None:
    path = write_authors_checkpoint(tmp_path / "a.ckpt", state=state | {"ema.decay": torch.zeros(1)})
    export(checkpoint=path, out=tmp_path / "student.safetensors", size=32)
    assert f"{path}: 1 keys are not known and not used: ema.decay" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "named"), [("run", "rdcd student"), ("weights", "rdcd student"),
                                             ("checkpoint", "rdcd training checkpoint")])
def test_our_own_formats_keep_their_card(kind: str, named: str, student: Student, tmp_path: Path) -> None:
    path = write_ours(kind, tmp_path, student)
    out = export(checkpoint=path, out=tmp_path / "small.safetensors")
    found, card = load_student(out)
    assert torch.equal(found.embed(PICTURES), student.embed(PICTURES))
    assert card["training"] == {"steps": 7} and card["licence"] == "MIT"
    assert card["preprocessing"]["size"] == 48 and card["preprocessing"]["resize"] == "short"
    assert card["source"]["format"] == named and card["source"]["largest_difference"] == 0
    assert card["source"]["provenance"] == {"seed": 5} and card["provenance"]["weights_sha256"]


def test_latest_is_the_newest_run(student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_ours("run", tmp_path / "runs", student)
    (tmp_path / "runs" / "run" / "run.json").write_text("{}")
    assert read_source("latest").path == Path("runs/run/student.safetensors")


def test_the_content_tells_the_format_not_the_name(released: Path, student: Student, tmp_path: Path) -> None:
    disguised = tmp_path / "released.safetensors"
    disguised.symlink_to(released)
    assert read_source(disguised).kind == "Lightning checkpoint of RDCD's authors"
    weights = write_ours("weights", tmp_path, student)
    assert read_source(weights.rename(weights.with_suffix(".ckpt"))).kind == "rdcd student"
    checkpoint = write_ours("checkpoint", tmp_path, student)
    assert read_source(checkpoint.rename(tmp_path / "last.safetensors")).kind == "rdcd training checkpoint"


def test_another_size_leaves_the_thresholds_out(student: Student, tmp_path: Path, capsys) -> None:
    weights = write_ours("weights", tmp_path, student)
    extend_card(weights, thresholds=[{"threshold": 0.7}])
    assert "thresholds" in load_student(export(checkpoint=weights, out=tmp_path / "same.safetensors"))[1]
    card = load_student(export(checkpoint=weights, out=tmp_path / "other.safetensors", size=64, resize="long"))[1]
    assert card["preprocessing"]["size"] == 64 and card["preprocessing"]["resize"] == "long"
    assert "thresholds" not in card and "thresholds on the source's card are of 48 px short" in capsys.readouterr().out


@pytest.mark.parametrize("damage", [float("nan"), 2e-5])
def test_nothing_is_written_unless_the_descriptors_agree(student: Student, tmp_path: Path, damage: float,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    weights, out = write_ours("weights", tmp_path, student), tmp_path / "out" / "small.safetensors"
    export(checkpoint=weights, out=out)
    before = {path: path.read_bytes() for path in out.parent.iterdir()}

    def damaged(path: Path) -> tuple[Student, dict]:
        found, card = load_student(path)
        if path != weights:
            found.embed = lambda pictures: student.embed(pictures) + damage
        return found, card

    monkeypatch.setattr(convert, "load_student", damaged)
    with pytest.raises(UserError, match=r"differ from those of .* by (nan|[12]\S*e-05), and 1e-05 is allowed: nothing"):
        export(checkpoint=weights, out=out)
    assert {path: path.read_bytes() for path in out.parent.iterdir()} == before


def test_an_authors_checkpoint_that_does_not_fit_leaves_nothing(state: dict, tmp_path: Path, capsys) -> None:
    path = write_authors_checkpoint(tmp_path / "a.ckpt", state={
        k: v for k, v in state.items() if k != "model.encoder_q.backbone.features.0.1.running_mean"})
    with pytest.raises(SystemExit, match="2"):
        cli.main(["export", f"checkpoint={path}", f"out={tmp_path / 'out' / 'a.safetensors'}"])
    assert "1 missing (backbone.features.0.1.running_mean)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_size_the_trunk_does_not_take_is_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = save_student(tmp_path / "s.safetensors", Student(trunk="resmlp_12_224", dim=4, kd_dim=4), size=224)
    with pytest.raises(UserError, match="size=64: resmlp_12_224 does not take such pictures"):
        export(checkpoint=weights, out=tmp_path / "out.safetensors", size=64)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(("options", "said"), [
    ({"checkpoint": None}, "checkpoint=None: expected the path of a file"),
    ({"checkpoint": "nowhere.ckpt"}, "checkpoint=nowhere.ckpt: no file nowhere.ckpt; expected a run folder, latest"),
    ({"out": "student.onnx"}, "out=student.onnx: expected a name that ends in .safetensors"),
    ({"out": 3}, "out=3: expected the path of a file"),
    ({"size": 0}, "size=0: expected a whole number of at least 1, or null for the source's"),
    ({"resize": "round"}, "resize=round: expected square, short"),
])
def test_mistakes_are_said(released: Path, tmp_path: Path, options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        export(**{"checkpoint": released, "out": tmp_path / "out.safetensors"} | options)


def test_out_is_neither_the_source_nor_a_folder(student: Student, tmp_path: Path) -> None:
    weights = write_ours("weights", tmp_path, student)
    with pytest.raises(UserError, match="is the checkpoint itself: give another name"):
        export(checkpoint=weights, out=tmp_path / "run" / ".." / "run" / "student.safetensors")
    (tmp_path / "out.json").mkdir()
    with pytest.raises(UserError, match="out.json is a folder"):
        export(checkpoint=weights, out=tmp_path / "out.safetensors")
    with pytest.raises(UserError, match="no file .*/student.safetensors"):
        (tmp_path / "empty").mkdir()
        export(checkpoint=tmp_path / "empty", out=tmp_path / "x.safetensors")


@pytest.mark.parametrize(("write", "said"), [
    (lambda path: path.write_bytes(b""), r"\(0 bytes\) is not a readable checkpoint"),
    (lambda path: path.write_text("hello"), "is not a readable checkpoint"),
    (lambda path: torch.save([1], path), "it holds no state_dict"),
    (lambda path: torch.save({"state_dict": {"conv.weight": torch.zeros(1)}}, path), "its keys begin conv.weight"),
    (lambda path: torch.save({"card": 1}, path), "is no training checkpoint of rdcd"),
    (lambda path: save_file({"conv.weight": torch.zeros(1)}, path), "no card"),
])
def test_foreign_files_are_said(tmp_path: Path, write, said: str) -> None:
    write(tmp_path / "foreign")
    with pytest.raises(UserError, match=f"{tmp_path}.*{said}" if said != "no card" else said):
        export(checkpoint=tmp_path / "foreign", out=tmp_path / "out.safetensors")
