"""Exported ONNX files as models: extraction, evaluation and an index without a student's network."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rdcd.collection.pictures import Embedder
from rdcd.errors import UserError
from rdcd.evaluation.evaluate import DataRoot, evaluate
from rdcd.evaluation.extract import extract
from rdcd.evaluation.protocols import Protocol
from rdcd.files import sha256
from rdcd.models import weights as weights_module
from rdcd.models.exported import OnnxDescriptor, card_of, load_onnx
from rdcd.models.inference import make_embed
from rdcd.models.student import Student
from rdcd.models.weights import load_student
from rdcd.retrieval.descriptors import read_descriptors


@pytest.fixture
def no_student(monkeypatch: pytest.MonkeyPatch) -> None:
    """No student can be built, and no weights of one be loaded."""
    def refuse(*_, **__):
        raise AssertionError("a student was built")

    monkeypatch.setattr(Student, "__init__", refuse)
    monkeypatch.setattr(weights_module, "read_weights", refuse)


def by_hand(weights: Path, paths: list[Path]) -> np.ndarray:
    """Descriptors by the eager student, a picture at a time."""
    student, found = load_student(weights)[0], []
    for path in paths:
        picture = np.asarray(Image.open(path).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
        with torch.no_grad():
            found.append(student.embed(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255)[0].numpy())
    return np.stack(found)


def copied(onnx_file: Path, folder: Path) -> Path:
    for path in (onnx_file, card_of(onnx_file)):
        shutil.copy(path, folder)
    return folder / onnx_file.name


def test_extract_gives_the_students_descriptors(onnx_file: Path, small_student: Path, drawn: Path, tmp_path: Path,
                                                request: pytest.FixtureRequest, capsys) -> None:
    expected = by_hand(small_student, sorted(drawn.iterdir()))
    request.getfixturevalue("no_student")
    extract(images=str(drawn), model=str(onnx_file), out=str(tmp_path / "d.h5"), batch_size=5, device="cpu")
    found = read_descriptors(tmp_path / "d.h5")
    assert found.names.tolist() == [path.stem for path in sorted(drawn.iterdir())]
    np.testing.assert_allclose(found.vectors, expected, atol=1e-5)
    assert "16 numbers, 32 px square" in capsys.readouterr().out


def test_evaluate_measures_the_file(onnx_file: Path, benchmark_root: Path, tmp_path: Path, no_student: None) -> None:
    rows = evaluate(checkpoint=str(onnx_file), data=DataRoot(root=str(benchmark_root)), out=str(tmp_path / "e"),
                    protocol=Protocol(bootstrap=0), device="cpu", keep_descriptors=False)
    assert {row["dim"] for row in rows} == {16} and len(rows) == 2
    page = (tmp_path / "e" / "report.html").read_text(encoding="utf-8")
    parameters = json.loads(card_of(onnx_file).read_text())["exported"]["parameters"]
    assert f"{parameters:,}" in page


def test_an_index_takes_it(onnx_file: Path, no_student: None) -> None:
    embedder = Embedder.load(onnx_file, device="cpu")
    assert embedder.about["weights_sha256"] == sha256(onnx_file) and embedder.about["size"] == 32
    pictures = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    both = make_embed(embedder.network, device="cpu")(pictures)
    np.testing.assert_array_equal(both[1:2], make_embed(embedder.network, device="cpu")(pictures[1:2]))


def test_bytes_come_through_unchanged(onnx_file: Path) -> None:
    network, card = load_onnx(onnx_file)
    pictures = torch.arange(256, dtype=torch.uint8).repeat(12).view(1, 3, 32, 32)
    np.testing.assert_array_equal(network.embed(pictures.float() / 255).numpy(), network.run(pictures.numpy()))
    assert network.fingerprint == card["weights_sha256"] and list(network.state_dict()) == []


def test_what_onnx_runtime_does_not_do_is_said(onnx_file: Path, drawn: Path, tmp_path: Path) -> None:
    asked = {"images": str(drawn), "model": str(onnx_file), "out": str(tmp_path / "d.h5"), "device": "cpu"}
    for options, said in (({"size": 64}, "takes pictures of 32 x 32 pixels, and these have 64 x 64: leave size"),
                          ({"precision": "bf16"}, "as it was exported: leave precision=bf16 and compile out"),
                          ({"compile": True}, "as it was exported")):
        with pytest.raises(UserError, match=said):
            extract(**asked, **options)


def test_damaged_and_foreign_files_are_said(onnx_file: Path, tmp_path: Path) -> None:
    def refused(path: Path, said: str) -> None:
        with pytest.raises(UserError, match=said):
            load_onnx(path)

    refused(tmp_path / "none.onnx", "no file .*none.onnx: expected one that `rdcd export format=onnx` wrote")
    path = copied(onnx_file, tmp_path)
    card = json.loads(card_of(path).read_text())
    path.write_bytes(path.read_bytes()[:-9])
    refused(path, "is the card of another file")
    card_of(path).write_text(json.dumps(card | {"weights_sha256": sha256(path)}))
    refused(path, "is no ONNX file that ONNX Runtime takes")
    card_of(path).write_text(json.dumps({"format": "rdcd-student-1"}))
    refused(path, "is no card of format 'rdcd-exported-1'")
    card_of(path).write_text(json.dumps({key: value for key, value in card.items() if key != "exported"}))
    refused(path, "has no exported: copy")
    card_of(path).write_text("{")
    refused(path, "is not JSON")
    card_of(path).unlink()
    refused(path, "an exported network is two files, test_efficientnet.onnx and test_efficientnet.onnx.json")


def test_another_graph_is_refused(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "g.onnx")
    with pytest.raises(UserError, match=r"takes tensor.float. \[1, 4\]; expected one input, uint8 \[N, 3, S, S\]"):
        OnnxDescriptor(tmp_path / "g.onnx")
