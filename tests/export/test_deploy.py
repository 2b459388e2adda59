"""Exported files give the eager student's descriptors in their own runtimes, or are not written."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exported_files import write_student
from miniatures import noise

from rdcd import cli
from rdcd.errors import UserError
from rdcd.export import deploy
from rdcd.export.convert import FORMATS, export
from rdcd.export.quantize import write_int8
from rdcd.files import sha256
from rdcd.models.student import Student
from rdcd.models.weights import load_student, save_student

PICTURES = np.stack([np.asarray(noise(seed, 32, 32)).transpose(2, 0, 1) for seed in range(7)])


def eager(weights: Path) -> np.ndarray:
    """Descriptors of PICTURES by the network as it was trained, one picture at a time."""
    student = load_student(weights)[0]
    with torch.no_grad():
        return np.concatenate([student.embed(torch.from_numpy(one[None]) / 255).numpy() for one in PICTURES])


def by_onnx(path: Path, *batches: int) -> np.ndarray:
    """Descriptors of PICTURES by ONNX Runtime, in batches of these sizes."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    parts = np.split(PICTURES, np.cumsum(batches)[:-1])
    return np.concatenate([session.run(None, {"pictures": part})[0] for part in parts])


@pytest.mark.parametrize("trunk", ["efficientnet_b0", "mobilenetv3_large_100", "fastvit_t12"])
def test_every_student_in_every_format(trunk: str, drawn: Path, tmp_path: Path) -> None:
    weights = write_student(tmp_path, trunk)
    out = export(checkpoint=weights, out=tmp_path / "s.onnx", format="onnx", images=drawn)
    expected = eager(weights)
    products = expected @ expected.T
    assert products[~np.eye(len(products), dtype=bool)].min() < 0.999, "these descriptors tell nothing apart"
    assert ((by_onnx(out, 1, 2, 4) * expected).sum(axis=1) >= 0.9999).all()
    assert json.loads((tmp_path / "s.onnx.json").read_text())["exported"]["parity"]["cosine_min"] >= 0.9999
    graph = onnx.load(str(out)).graph
    kinds = {node.op_type for node in graph.node}
    assert "BatchNormalization" not in kinds and "Conv" in kinds
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert write_int8(tmp_path / "int8.onnx", out, pictures=torch.from_numpy(PICTURES)) > 20
    assert 0.9 < (by_onnx(tmp_path / "int8.onnx", 3, 4) * expected).sum(axis=1).mean() < 0.99999
    script = torch.jit.load(str(export(checkpoint=weights, out=tmp_path / "s.pt", format="torchscript", images=drawn)))
    np.testing.assert_allclose(script(torch.from_numpy(PICTURES)).numpy(), expected, atol=1e-4)


def test_the_card_is_the_students_and_says_what_the_file_is(onnx_file: Path, small_student: Path) -> None:
    card = json.loads(Path(f"{onnx_file}.json").read_text())
    student = json.loads(small_student.with_suffix(".json").read_text())
    for key in ("architecture", "preprocessing", "licence", "thresholds", "training"):
        assert card[key] == student[key]
    assert card["format"] == "rdcd-exported-1" and card["weights_sha256"] == sha256(onnx_file)
    assert card["source"]["sha256"] == sha256(small_student) and card["exported"]["format"] == "onnx"
    opset = next(one.version for one in onnx.load(str(onnx_file)).opset_import if not one.domain)
    assert card["exported"]["opset"] == opset >= 18
    assert card["exported"]["parity"]["pictures"] == 12
    assert load_student(small_student)[1] == student, "the student's own card is another file"


def test_torchscript_takes_batches_of_any_size(small_student: Path, tmp_path: Path) -> None:
    out = export(checkpoint=small_student, out=tmp_path / "s.pt", format="torchscript")
    loaded = torch.jit.load(str(out))
    for count in (1, 3, 7):
        found = loaded(torch.from_numpy(PICTURES[:count])).numpy()
        np.testing.assert_allclose(found, eager(small_student)[:count], atol=1e-5)
    assert json.loads((tmp_path / "s.pt.json").read_text())["exported"]["format"] == "torchscript"


@pytest.fixture
def exported_before(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fp32 file of `small_student` is copied, not made again."""
    def copy(path: Path, *_, **__) -> int:
        path.write_bytes(onnx_file.read_bytes())
        return 20

    monkeypatch.setattr(deploy, "write_onnx", copy)


def test_int8_says_what_it_costs(small_student: Path, exported_before: None, drawn: Path, benchmark_root: Path,
                                 tmp_path: Path, capsys) -> None:
    out = tmp_path / "int8.onnx"
    assert cli.main(["export", f"checkpoint={small_student}", f"out={out}", "format=int8", "min_cosine=0.5",
                     f"calibration_images={drawn}", f"benchmark={benchmark_root}"]) == 0
    said = capsys.readouterr().out
    card = json.loads(Path(f"{out}.json").read_text())
    about = card["exported"]
    assert about["calibration"]["pictures"] == 21 and about["parity"]["pictures"] == 3  # an eighth is held out
    assert f"cosine to fp32 {about['parity']['cosine_mean']:.4f} on average" in said
    assert f"{about['speed_ratio']['int8_over_fp32']:.2f} times" in said
    assert about["uAP_SN"]["change"] == about["uAP_SN"]["int8"] - about["uAP_SN"]["fp32"]
    assert re.search(r"µAP_SN: 0\.\d{4} for 0\.\d{4} of fp32", said)
    assert "thresholds" not in card and "of fp32 descriptors: they are left out" in said
    cosines = (by_onnx(out, 3, 4) * eager(small_student)).sum(axis=1)
    assert 0.5 < cosines.min() < 0.99999, "int8 is near, and not fp32"
    graph = onnx.load(str(out)).graph
    types = {one.name: one.data_type for one in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    sources = {name: node for node in graph.node for name in node.output}
    depthwise = {one.name for one in graph.initializer if len(one.dims) == 4 and one.dims[1] == 1}
    int8 = [node for node in convolutions if node.input[1] not in depthwise]
    assert all(types[sources[node.input[1]].input[0]] == onnx.TensorProto.INT8 for node in int8)
    assert about["quantized_nodes"] == len(int8) >= 8 and len(depthwise) == 2
    assert all(types[node.input[1]] == onnx.TensorProto.FLOAT for node in graph.node if node.op_type == "Gemm")


def test_int8_that_costs_too_much_is_not_written(small_student: Path, exported_before: None, drawn: Path,
                                                 tmp_path: Path) -> None:
    few = tmp_path / "few.txt"
    few.write_text("\n".join(str(path) for path in sorted(drawn.iterdir())[:5]))
    with pytest.raises(UserError, match=r"mean cosine of 0\.\d+ to fp32 on 5 pictures, and min_cosine=1 is asked for"):
        export(checkpoint=small_student, out=tmp_path / "new" / "s.onnx", format="int8", calibration_images=drawn,
               images=few, calibration_count=4, min_cosine=1)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("damage", [0.05, float("nan")])
def test_nothing_is_written_unless_descriptors_agree(damage: float, small_student: Path, onnx_file: Path, drawn: Path,
                                                     tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(path: Path, student: Student, *, size: int) -> int:
        model = onnx.load(str(onnx_file))
        bias = next(one for one in model.graph.initializer if one.name.endswith("projector.bias"))
        values = onnx.numpy_helper.to_array(bias) + np.float32(damage)
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        onnx.save(model, str(path))
        return 20

    monkeypatch.setattr(deploy, "write_onnx", damaged)
    before = onnx_file.read_bytes()
    with pytest.raises(UserError, match=r"cosine of (0\.\d+|nan) at least .* 0.9999 is needed: nothing was written"):
        export(checkpoint=small_student, out=tmp_path / "new" / "s.onnx", format="onnx", images=drawn)
    assert list((tmp_path / "new").iterdir()) == [] and onnx_file.read_bytes() == before


@pytest.mark.parametrize(("options", "said"), [
    ({"format": "tflite"}, "format=tflite: expected one of safetensors, onnx, int8, torchscript"),
    ({"out": "s.pt"}, r"out=s.pt: expected a name that ends in .onnx; .* give format=torchscript"),
    ({"format": "safetensors"}, "expected a name that ends in .safetensors; .* give format=onnx or format=int8"),
    ({"format": "int8"}, "format=int8: ranges are learnt from pictures: give calibration_images=DIR"),
    ({"benchmark": "root"}, "benchmark=root: format=onnx makes no use of it"),
    ({"calibration_images": "d"}, "calibration_images=d: format=onnx makes no use of it"),
    ({"calibration_count": 0}, "calibration_count=0: expected a whole number of at least 1"),
    ({"min_cosine": 2}, "min_cosine=2: expected a number of at least -1 and at most 1"),
    ({"images": 2024}, "images=2024: expected a path"),
    ({"resize": "short"}, "format=onnx: a deployed network takes squares"),
    ({"checkpoint": "x.onnx"}, "checkpoint=x.onnx is an exported file"),
])
def test_mistakes_are_said(small_student: Path, options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        export(**{"checkpoint": small_student, "out": "s.onnx", "format": "onnx"} | options)
    assert set(FORMATS) == {"safetensors", "onnx", "int8", "torchscript"}


@pytest.mark.parametrize("absent", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_said_with_its_command(absent: str, small_student: Path, tmp_path: Path,
                                                    request: pytest.FixtureRequest,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    if absent == "onnxruntime":
        request.getfixturevalue("exported_before")
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(UserError, match=r"pip install 'rdcd\[onnx\]'"):
        export(checkpoint=small_student, out=tmp_path / "s.onnx", format="onnx")
    assert list(tmp_path.iterdir()) == []


def test_unreadable_pictures_are_left_out(small_student: Path, tmp_path: Path, fill) -> None:
    fill(tmp_path / "some", ["a", "b", "c"], bad=("b",))
    card = export(checkpoint=small_student, out=tmp_path / "s.pt", format="torchscript", images=tmp_path / "some")
    assert json.loads(Path(f"{card}.json").read_text())["exported"]["parity"]["pictures"] == 2
    fill(tmp_path / "none", ["a"], bad=("a",))
    with pytest.raises(UserError, match="none of the pictures in .*none could be read, the first"):
        export(checkpoint=small_student, out=tmp_path / "t.pt", format="torchscript", images=tmp_path / "none")


def test_a_trunk_that_cannot_be_exported_is_said(small_student: Path, tmp_path: Path, monkeypatch) -> None:
    def refuse(*_, **__):
        raise RuntimeError("no such op\nand more")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(UserError, match="test_efficientnet at size=32 cannot be exported .RuntimeError: no such op.;"):
        export(checkpoint=small_student, out=tmp_path / "s.onnx", format="onnx")
    fixed = save_student(tmp_path / "v.safetensors", Student(trunk="resmlp_12_224", dim=4, kd_dim=4), size=224)
    with pytest.raises(UserError, match="size=64: resmlp_12_224 takes no pictures of that size"):
        export(checkpoint=fixed, out=tmp_path / "s.pt", format="torchscript", size=64)
