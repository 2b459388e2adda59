"""Thresholds are those at which `rdcd search` has the precision they say."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import make_disc, make_student, save, scene
from test_commands import run

from rdcd import provenance
from rdcd.collection.calibrate import calibrate
from rdcd.collection.pictures import Embedder
from rdcd.collection.scoring import choose_scoring
from rdcd.data.disc import open_benchmark
from rdcd.errors import UserError
from rdcd.evaluation.evaluate import DataRoot
from rdcd.files import sha256
from rdcd.models.weights import extend_card, read_card

QUICK = {"workers": 0, "device": "cpu"}


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return make_student(tmp_path / "student.safetensors", thresholds=[
        {"codec": "PCA9,Flat", "score_norm": None, "precision": 0.9, "threshold": 7.0, "benchmark": "training's"}])


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    return make_disc(tmp_path / "disc", references=24, train=20, queries=40, pairs=20)


def test_thresholds_have_the_precision_that_a_search_finds(student: Path, benchmark: Path, tmp_path: Path,
                                                           build: Callable, find: Callable, rows: Callable) -> None:
    digest = sha256(student)
    got = calibrate(checkpoint=student, data=DataRoot(root=str(benchmark)), out=tmp_path / "cal", k=3, **QUICK)
    assert sha256(student) == digest and {row["score_norm"] for row in got} == {None, "1.0[0,2]", "1.0[10,12]"}
    pairs = set(open_benchmark(benchmark).pairs)
    for norm, background in (("1.0[0,2]", benchmark / "images/train"), ("1.0[10,12]", None), (None, None)):
        index = tmp_path / f"index {norm}"
        build(index=index, images=benchmark / "images/references", model=student, background=background)
        out = find(index=index, images=benchmark / "images/dev_queries", threshold=-9, k=3, gallery=0,
                   score_norm=norm, out=tmp_path / f"out {norm}")
        found = [(float(row["score"]), (Path(row["query"]).stem, Path(row["match"]).stem) in pairs)
                 for row in rows(out / "matches.csv")]
        told = [row for row in got if row["score_norm"] == norm and row["threshold"] is not None]
        assert len(told) > 3
        for row in told:
            above = [right for score, right in found if score >= row["threshold"] - 1e-6]
            assert (sum(above), len(above) - sum(above)) == (row["right"], row["wrong"])
            assert sum(above) / len(above) >= row["precision"] and row["recall"] == sum(above) / 20


def test_a_search_takes_what_was_calibrated_after_its_index_was_built(
        student: Path, benchmark: Path, tmp_path: Path, build: Callable, find: Callable, rows: Callable,
        capsys: pytest.CaptureFixture) -> None:
    index = build(index=tmp_path / "index", images=benchmark / "images/references", model=student)
    asked = {"index": tmp_path / "index", "images": benchmark / "images/dev_queries"}
    find(**asked, out=tmp_path / "before")
    assert "no calibration for codec 'Flat' with score normalization 1.0[10,12]" in (said := capsys.readouterr().out)
    assert "`rdcd calibrate` measures" in said
    with pytest.raises(UserError, match="`rdcd calibrate` measures"):
        find(**asked, precision=0.5, out=tmp_path / "no")
    got = calibrate(checkpoint=student, data=DataRoot(root=str(benchmark)), out=tmp_path / "cal", **QUICK)
    (row,) = [row for row in got if row["score_norm"] == "1.0[10,12]" and row["precision"] == 0.5]
    capsys.readouterr()
    out = find(**asked, precision=0.5, out=tmp_path / "after")
    assert f"threshold {row['threshold']:.4f}, of precision 0.5, measured on {benchmark}" in capsys.readouterr().out
    found = rows(out / "matches.csv")
    assert len(found) == row["right"] + row["wrong"]
    sure = [float(match["confidence"]) for match in sorted(found, key=lambda match: float(match["score"]))]
    assert sure == sorted(sure) and 0 < sure[0] and sure[-1] < 1
    assert json.loads((out / "matches.json").read_text())["calibrated_on"] == str(benchmark)
    assert "expected precision" in (out / "gallery.html").read_text()
    about = read_card(student)["calibrated"]
    assert {(entry["references"], entry["queries_with_copies"], entry["k"]) for entry in about} == {(24, 20, 10)}
    assert about[0]["written"] and "this index has" not in choose_scoring(index, read_card(student), precision=0.5).said
    smaller = read_card(student) | {"calibrated": [entry | {"references": 11} for entry in about]}
    assert "11 pictures; this index has 24" in choose_scoring(index, smaller, precision=0.5).said


def test_results_and_another_codec(student: Path, benchmark: Path, tmp_path: Path, capsys) -> None:
    calibrate(checkpoint=student, data=DataRoot(root=str(benchmark)), out=tmp_path / "a", **QUICK)
    calibrate(checkpoint=student, data=DataRoot(root=str(benchmark)), out=tmp_path / "b", codecs="PCA4,L2norm,Flat",
              **QUICK)
    card = read_card(student)
    assert {row["codec"] for row in card["calibration"]} == {"Flat", "PCA4,L2norm,Flat"}
    assert card["thresholds"][0]["threshold"] == 7.0
    record = json.loads((tmp_path / "a/calibration.json").read_text())
    assert record["rows"] == card["calibration"][:len(record["rows"])] and record["provenance"]["versions"]
    with open(tmp_path / "a/calibration.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(record["rows"])
    assert (tmp_path / "a/calibration.png").read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "a").glob(".*"))
    said = capsys.readouterr().out
    assert "measured where 20 of 40 queries have a copy among 24 references" in said and "too few to tell" in said
    assert "calibration" in Embedder.load(student, device="cpu").card
    assert not {"calibration", "calibrated", "thresholds"} & Embedder.load(student, size=48, device="cpu").card.keys()


def test_pictures_alone_will_do(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rdcd"])
    monkeypatch.setattr(provenance, "_run", {"command": None, "config": None})
    for i in range(30):
        save(scene(i), tmp_path / "mine" / f"{i}.jpg")
    assert run("calibrate", "checkpoint=student.safetensors", "images=mine", "queries=6", "out=cal", "workers=0",
               "device=cpu") == 0
    assert "measured where 6 of 30 queries have a copy among 9 references" in capsys.readouterr().out
    assert (tmp_path / "cal/benchmark/dev_ground_truth.csv").is_file()
    assert {entry["benchmark"] for entry in read_card(student)["calibrated"]} == {"mine"}
    assert read_card(student)["calibrated"][0]["command"].startswith("rdcd calibrate checkpoint=student.safetensors")


@pytest.mark.parametrize(("asked", "said"), [
    ({"checkpoint": "thumbnail"}, "expected a student, on whose card"), ({"checkpoint": "none.safetensors"}, "no file"),
    ({"images": "x"}, "expected one of them"), ({"data": DataRoot()}, "expected one of them"),
    ({"codecs": "HNSW32"}, "expected transforms followed by Flat"), ({"layout": "cd10k"}, "layout=cd10k: expected"),
    ({"k": 0}, "k=0: expected"), ({"queries": 0}, "queries=0: expected"), ({"checkpoint": 3}, "checkpoint=3: exp")])
def test_refusals(student: Path, benchmark: Path, tmp_path: Path, asked: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        calibrate(**{"checkpoint": student, "data": DataRoot(root=str(benchmark)), "out": tmp_path / "cal"} | asked,
                  **QUICK)
    assert "calibration" not in read_card(student)


def test_a_checkpoint_has_no_card(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="`rdcd export checkpoint=.*last.ckpt out=student.safetensors`"):
        calibrate(checkpoint=tmp_path / "last.ckpt", images=tmp_path)


def test_a_student_that_is_replaced_meanwhile_keeps_its_card(student: Path, benchmark: Path, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    from rdcd.collection import calibrate as module

    def replaced(*args: object, **more: object) -> dict:
        extend_card(student, weights_sha256="0" * 64)
        return {None: (np.array([1.0]), np.array([True]))}

    monkeypatch.setattr(module, "_scored", replaced)
    with pytest.raises(UserError, match="was replaced while it was measured"):
        calibrate(checkpoint=student, data=DataRoot(root=str(benchmark)), out=tmp_path / "cal", **QUICK)
    assert "calibration" not in read_card(student)


def test_an_exported_network_keeps_thresholds_on_its_own_card(student: Path, benchmark: Path, tmp_path: Path,
                                                              build: Callable, find: Callable) -> None:
    from rdcd.export.convert import export

    before = student.with_suffix(".json").read_bytes()
    network = export(checkpoint=student, out=tmp_path / "network.onnx", format="onnx")
    got = calibrate(checkpoint=network, data=DataRoot(root=str(benchmark)), out=tmp_path / "cal", k=3, **QUICK)
    card = json.loads((tmp_path / "network.onnx.json").read_text(encoding="utf-8"))
    assert card["calibration"] == got and card["weights_sha256"] == sha256(network)
    assert student.with_suffix(".json").read_bytes() == before
    build(index=tmp_path / "index", images=benchmark / "images/references", model=network)
    out = find(index=tmp_path / "index", images=benchmark / "images/dev_queries", precision=0.5, gallery=0)
    assert (out / "matches.csv").is_file()
