"""What Python gives is what the commands give."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import EDITS, make_student, save, scene
from PIL import Image

import rdcd
from rdcd.collection import index, search
from rdcd.evaluation.extract import extract
from rdcd.models.weights import extend_card
from rdcd.retrieval.descriptors import read_descriptors

QUICK = {"workers": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("model") / "student.safetensors")


@pytest.fixture
def album(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "album" / f"p{i:02d}.jpg" for i in range(16)]
    for i, path in enumerate(paths):
        save(scene(i), path)
    return paths


def test_import_is_light() -> None:
    code = ("import sys, rdcd\nassert not {'torch', 'numpy', 'PIL'} & set(sys.modules)\n"
            "assert {'load', 'Index', 'Model'} <= set(dir(rdcd))\n"
            "try:\n    rdcd.nothing\nexcept AttributeError as error:\n    print(error)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "module 'rdcd' has no attribute 'nothing'\n"
    assert (Path(rdcd.__file__).parent / "py.typed").is_file()


def test_descriptors_are_those_of_extract_and_of_an_index(student: Path, album: list[Path], tmp_path: Path) -> None:
    model = rdcd.load(student, device="cpu")
    assert (model.dim, model.size, model.card["weights_sha256"][:3]) == (32, 32, model.card["weights_sha256"][:3])
    found = model.embed(album)
    assert found.dtype == np.float32 and found.shape == (16, 32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    extract(images=str(album[0].parent), model=str(student), out=str(tmp_path / "d.h5"), decode="exact", **QUICK)
    want = read_descriptors(tmp_path / "d.h5")
    rows = [want.names.tolist().index(path.stem) for path in album]
    np.testing.assert_allclose(found, want.vectors[rows], rtol=0, atol=1e-5)  # it rounds otherwise
    built = index.build(index=tmp_path / "ix", images=album, model=student, **QUICK)
    np.testing.assert_array_equal(found, built.vectors(np.arange(16)))
    one_by_one = [model.embed([path])[0] for path in album[:3]]
    np.testing.assert_array_equal(found[:3], one_by_one)


def test_pictures_in_memory_are_as_those_in_files(student: Path, album: list[Path], tmp_path: Path) -> None:
    model = rdcd.load(str(student), device="cpu")
    (want,) = model.embed(album[:1])
    with Image.open(album[0]) as opened:
        array = np.array(opened)
        given = [str(album[0]), opened, array, opened, array[:, :, ::-1].copy()[:, :, ::-1]]
        found = model.embed(given)
    np.testing.assert_array_equal(found, np.tile(want, (5, 1)))
    turned = Image.fromarray(array).transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6
    clear = np.dstack([array, np.full(array.shape[:2], 255, np.uint8)])
    grey = array[:, :, 0]
    found = model.embed([turned, clear, grey, np.stack([grey] * 3, axis=2)])
    np.testing.assert_array_equal(found[:2], np.tile(want, (2, 1)))
    np.testing.assert_array_equal(found[2], found[3])
    assert model.embed([]).shape == (0, 32)
    assert model.embed(np.stack([array, array])).shape == (2, 32)


def test_pictures_that_are_none(student: Path, album: list[Path], tmp_path: Path) -> None:
    model = rdcd.load(student, resize="short", device="cpu")
    (tmp_path / "broken.jpg").write_text("no picture")
    for one, said in ((tmp_path / "broken.jpg", r"broken\.jpg: no sound file"),
                      (np.zeros((4, 4, 3)), r"pictures\[1\]: an array of float64 \[4, 4, 3\]; expected uint8"),
                      (np.zeros((4, 4, 2), np.uint8), r"pictures\[1\]: an array of uint8 \[4, 4, 2\]"),
                      (7, r"pictures\[1\]: int; expected a path"), (Image.new("RGB", (0, 9)), r"pictures\[1\]: 0x9"),
                      (Image.new("L", (2, 900)), r"pictures\[1\]: 2x900 pixels, at most 16 times")):
        with pytest.raises(rdcd.BadImage, match=said):
            model.embed([album[0], one, 8])
        found = model.embed([album[0], one], errors="nan")
        assert np.isfinite(found[0]).all() and np.isnan(found[1]).all()
    for one in (str(album[0]), album[0], Image.new("RGB", (9, 9)), np.zeros((9, 9, 3), np.uint8)):
        with pytest.raises(rdcd.UserError, match="expected a list of pictures"):
            model.embed(one)
    with pytest.raises(rdcd.UserError, match="errors='skip': expected"):
        model.embed([], errors="skip")


def test_loading_leaves_the_process_as_it_is(student: Path) -> None:
    torch.set_num_threads(3)
    rdcd.load(student, device="cpu")
    assert torch.get_num_threads() == 3
    assert repr(rdcd.load("thumbnail", device="cpu")).startswith("<rdcd.Model thumbnail, 24")
    with pytest.raises(rdcd.UserError, match="no model '.*nothing'"):
        rdcd.load("nothing", device="cpu")


def test_an_index_is_that_of_the_commands(album: list[Path], tmp_path: Path) -> None:
    model = rdcd.load("thumbnail", device="cpu")
    made = rdcd.Index.build(tmp_path / "ix", album[:14], model)
    (tmp_path / "album" / "broken.jpg").write_text("no picture")
    assert made.add([*album[12:], tmp_path / "album" / "broken.jpg"]) == 2 and len(made) == 16
    assert [Path(error.path).name for error in made.bad] == ["broken.jpg"]
    assert made.remove(album[15]) == 1 and album[14] in made and album[15] not in made
    assert list(made) == [str(path) for path in album[:15]]
    queries = [EDITS[i](scene(i)) for i in range(3)]
    for i, query in enumerate(queries):
        query.save(tmp_path / f"q{i}.png")
    paths = [*(tmp_path / f"q{i}.png" for i in range(3)), album[4]]
    out = search.search(index=tmp_path / "ix", images=paths, threshold=0.05, k=3, out=tmp_path / "out", gallery=0,
                        **QUICK)
    want = (out / "matches.csv").read_text().splitlines()[1:]
    opened = rdcd.Index.open(tmp_path / "ix", device="cpu")
    found = opened.search(paths, threshold=0.05, k=3)
    got = [f"{path},{m.path},{round(m.score, 6)},,{m.kind}" for path, matches in zip(paths, found) for m in matches]
    assert sorted(got) == sorted(want) and len(want) > 4
    assert opened.search(queries, threshold=0.05, k=3) == found[:3]
    assert opened.search(opened.model.embed(queries), threshold=0.05, k=3) == found[:3]
    assert opened.search([album[4]], threshold=0.05, k=1, itself=True)[0][0].kind == "itself"
    assert opened.search([], threshold=0.05) == [] and repr(opened).endswith("ix, 15 pictures>")


def test_what_is_not_calibrated_is_said(student: Path, album: list[Path], tmp_path: Path) -> None:
    for path in (student, student.with_suffix(".json")):
        shutil.copy(path, tmp_path)
    made = rdcd.Index.build(tmp_path / "ix", album, rdcd.load(tmp_path / student.name, device="cpu"))
    with pytest.warns(UserWarning, match="threshold .* a guess, .*: `rdcd calibrate` measures"):
        made.search(album[:1])
    with pytest.raises(rdcd.UserError, match="precision=0.9: no calibration"):
        made.search(album[:1], precision=0.9)
    extend_card(tmp_path / student.name, calibration=[{"codec": "Flat", "score_norm": "1.0[10,12]", "precision": 0.9,
                                                       "threshold": -1.0, "benchmark": "ours"}])
    again = rdcd.Index.open(tmp_path / "ix", device="cpu")
    assert {match.confidence for match in again.search(album[:1], precision=0.9)[0]} == {0.9}
    assert again.scoring(precision=0.9).said == "of precision 0.9, measured on ours"


def test_mistakes_are_named(student: Path, album: list[Path], tmp_path: Path) -> None:
    made = rdcd.Index.build(tmp_path / "ix", album[:3], rdcd.load("thumbnail", device="cpu"))
    with pytest.raises(rdcd.UserError, match="descriptors of different models"):
        rdcd.Index.open(tmp_path / "ix", rdcd.load(student, device="cpu"))
    with pytest.raises(rdcd.UserError, match=r"descriptors of shape \[2, 8\]: expected \[n, 243\]"):
        made.search(np.zeros((2, 8), np.float32), threshold=0)
    with pytest.raises(rdcd.UserError, match="no index in"):
        rdcd.Index.open(tmp_path)
    with pytest.raises(rdcd.UserError, match="holds an index already"):
        rdcd.Index.build(tmp_path / "ix", album[:3], made.model)


def test_the_example_of_the_documentation_runs(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                               capsys) -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "library.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    for i in range(22):
        save(scene(i), tmp_path / ("photos" if i < 18 else "more") / f"{i}.jpg")
    for path in (student, student.with_suffix(".json")):
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(block, "library.md", "exec"), names)
    assert names["descriptors"].shape == (3, 32) and len(names["index"]) == 21 and len(names["matches"]) == 3
    assert re.search(r"photos/1.jpg .* None alike", capsys.readouterr().out)
