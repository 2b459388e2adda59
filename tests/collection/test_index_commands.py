import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import save, scene

from rdcd.collection.index import info, remove, shrink_index
from rdcd.collection.pictures import Embedder, list_pictures
from rdcd.errors import UserError
from rdcd.evaluation.extract import extract
from rdcd.models.student import Student
from rdcd.models.weights import save_student
from rdcd.retrieval.index import Index


def everything(index: Index) -> tuple[list[str], np.ndarray]:
    """Paths and, in their order, vectors."""
    rows = sorted(range(len(index)), key=index.path)
    return [index.path(row) for row in rows], index.vectors(np.array(rows, np.int64))


@pytest.fixture
def student(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    made = Student(trunk="test_efficientnet", dim=6, kd_dim=10).train()
    for _ in range(5):
        made(torch.rand(8, 3, 32, 32))
    return save_student(tmp_path / "student.safetensors", made.eval(), size=32)


def test_adding_folders_is_building_of_both(album: Path, tmp_path: Path, build, add) -> None:
    at_once = build(index=tmp_path / "once", images=album)
    build(index=tmp_path / "parts", images=album / "2024")
    parts = add(index=tmp_path / "parts", images=album / "2023")
    assert len(parts) == 24
    for one, other in zip(everything(at_once), everything(parts)):
        assert np.array_equal(one, other)
    queries = np.random.default_rng(0).normal(size=(4, 243)).astype(np.float32)
    for name in ("rows", "scores"):
        values = [getattr(index.search(queries, 5), name) for index in (at_once, parts)]
        if name == "rows":
            values = [[[index.path(row) for row in found] for found in rows.tolist()]
                      for index, rows in zip((at_once, parts), values)]
        assert np.array_equal(*values)


def test_a_students_descriptors_do_not_depend_on_what_is_beside_them(album: Path, tmp_path: Path, student: Path, build,
                                                                     add) -> None:
    at_once = build(index=tmp_path / "once", images=album, model=str(student))
    build(index=tmp_path / "parts", images=album / "2024", model=str(student))
    for path in list_pictures(album / "2023")[:3]:
        add(index=tmp_path / "parts", images=path)
    parts = add(index=tmp_path / "parts", images=album, batch_size=9)
    for one, other in zip(everything(at_once), everything(parts)):
        assert np.array_equal(one, other)


def test_unchanged_pictures_are_skipped_and_changed_ones_replaced(album: Path, tmp_path: Path, build, add, capsys,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    build(index=tmp_path / "index", images=album)
    embedded = []
    embed = Embedder._embed
    monkeypatch.setattr(Embedder, "_embed", lambda self, paths, *a, **k: embedded.extend(paths) or embed(
        self, paths, *a, **k))
    add(index=tmp_path / "index", images=album)
    assert "0 pictures added, 0 replaced, 24 were there already; 24 in all" in capsys.readouterr().out
    assert not embedded
    save(scene(500), album / "2024" / "p00.jpg")
    save(scene(501), album / "new.jpg")
    (album / "bad.jpg").write_text("x")
    index = add(index=tmp_path / "index", images=[album, album / "2024", album / "new.jpg"])
    said = capsys.readouterr().out
    assert "1 pictures added, 1 replaced, 23 were there already; 25 in all" in said
    assert "1 pictures could not be read" in said
    assert {Path(path).name for path in embedded} == {"p00.jpg", "new.jpg", "bad.jpg"}
    save(scene(500), tmp_path / "alone" / "p00.jpg")
    lone = build(index=tmp_path / "lone", images=tmp_path / "alone" / "p00.jpg")
    row = index.find(str(album / "2024" / "p00.jpg"))
    assert np.array_equal(index.vectors(np.array([row])), lone.vectors(np.array([0])))


def test_unreadable_pictures_are_listed_even_if_all_are(tmp_path: Path, build, add) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.jpg").write_text("no picture")
    assert len(build(index=tmp_path / "index", images=folder)) == 0
    with open(tmp_path / "index" / "bad_files.csv", newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [str(folder / f"{i}.jpg") for i in range(3)]
    assert len(add(index=tmp_path / "index", images=folder / "0.jpg")) == 0


def test_an_empty_index_grows_and_shrinks(album: Path, tmp_path: Path, build, add) -> None:
    index = tmp_path / "index"
    assert len(build(index=index, images=None)) == 0
    paths = list_pictures(album)
    assert len(add(index=index, images=paths[0])) == 1
    assert len(add(index=index, images=paths[1])) == 2
    assert len(remove(index=index, images=album)) == 0
    assert all(os.path.exists(path) for path in paths)


def test_removing_by_file_folder_and_absence(album: Path, tmp_path: Path, build, monkeypatch) -> None:
    index = tmp_path / "index"
    build(index=index, images=album)
    shutil.rmtree(album / "2023")
    with pytest.raises(UserError, match=r"no picture .*/202, nor any below it.*nothing was removed"):
        remove(index=index, images=[album / "2024", album / "202"])
    with pytest.raises(UserError, match="nothing to remove"):
        remove(index=index)
    monkeypatch.chdir(album)
    assert len(remove(index=index, images=["2024/p00.jpg", album / "2023"])) == 11
    (album / "2024" / "p02.jpg").unlink()
    assert len(remove(index=index, missing=True)) == 10
    assert len(remove(index=index, missing=True)) == 10


def test_places_are_met_in_whatever_normalization_they_are_typed(tmp_path: Path, build, add) -> None:
    folder = tmp_path / "Cafe\u0301"
    for i, name in enumerate(("e\u0301.jpg", "é.jpg", "o\u0308.jpg", "x.jpg")):
        save(scene(i), folder / name)
    made = build(index=tmp_path / "index", images=tmp_path / "Café")
    assert len(made) == 4 and all(os.path.exists(made.path(row)) for row in range(4))  # both of one name
    assert len(add(index=tmp_path / "index", images=[tmp_path / "Café" / "ö.jpg", folder])) == 4
    left, gone = shrink_index(tmp_path / "index", [folder / "é.jpg", tmp_path / "Café" / "ö.jpg"], missing=False)
    assert gone == 2 and [Path(left.path(row)).name for row in range(2)] == ["e\u0301.jpg", "x.jpg"]
    shutil.rmtree(folder)
    assert shrink_index(tmp_path / "index", tmp_path / "Café", missing=False)[1] == 2


def test_another_model_or_codec_is_refused_with_both_names(album: Path, tmp_path: Path, student: Path, build, add,
                                                           find) -> None:
    build(index=tmp_path / "index", images=album, model=str(student))
    other = tmp_path / "other.safetensors"
    save_student(other, Student(trunk="test_efficientnet", dim=6, kd_dim=10), size=32)
    for command in (add, find):
        with pytest.raises(UserError, match=r"is of the model .*/student.safetensors \(weights \w{12}\), .*and this is "
                                            r".*/other.safetensors \(weights \w{12}\)"):
            command(index=tmp_path / "index", images=album, model=str(other))
        with pytest.raises(UserError, match="student.safetensors.*and this is thumbnail"):
            command(index=tmp_path / "index", images=album, model="thumbnail")
    with pytest.raises(UserError, match="codec=PCA2,Flat: .* was built with the codec 'Flat'"):
        add(index=tmp_path / "index", images=album, codec="PCA2,Flat")
    moved = tmp_path / "moved" / "student.safetensors"
    moved.parent.mkdir()
    for suffix in (".safetensors", ".json"):
        student.with_suffix(suffix).rename(moved.with_suffix(suffix))
    with pytest.raises(UserError, match="the model of .* cannot be loaded: .*; model=PATH says where it lies now"):
        add(index=tmp_path / "index", images=album)
    assert len(add(index=tmp_path / "index", images=album, model=str(moved))) == 24


def test_background_of_pictures_or_of_descriptors_is_the_same(album: Path, copies: Path, tmp_path: Path, build) -> None:
    one = build(index=tmp_path / "one", images=album, background=copies, codec="PCAW4,L2norm,Flat")
    extract(images=str(copies), model="thumbnail", out=str(tmp_path / "b.h5"), workers=0, max_bad_share=0.5)
    other = build(index=tmp_path / "other", images=album, background=tmp_path / "b.h5", codec="PCAW4,L2norm,Flat")
    assert one.score_norm == "1.0[0,2]" and one.background.shape == (6, 4)
    assert np.array_equal(one.background, other.background)
    assert np.array_equal(everything(one)[1], everything(other)[1])
    few = build(index=tmp_path / "few", images=album, background=copies, background_size=3)  # one is broken
    assert len(few.background) == 2 and few.score_norm is None
    np.testing.assert_array_equal(Index.open(tmp_path / "one").background, one.background)
    with pytest.raises(UserError, match="descriptors of 243 numbers, phash makes"):
        build(index=tmp_path / "no", images=album, background=tmp_path / "b.h5", model="phash")


def test_info_says_what_there_is(album: Path, tmp_path: Path, build, capsys) -> None:
    build(index=tmp_path / "index", images=album)
    capsys.readouterr()
    shown = info(index=tmp_path / "index", paths=True)
    said = capsys.readouterr().out
    assert shown["pictures"] == 24 and shown["model"].startswith("thumbnail (weights ")
    assert "search:               exact" in said and "été 日本.jpg" in said and said.count("\n") == len(shown) + 24


@pytest.mark.parametrize(("images", "said"), [("nowhere", "no folder nowhere"), (3, r"images=3: expected a path"),
                                              ([""], "images=: expected a path")])
def test_pictures_that_are_not_there(tmp_path: Path, build, images, said: str) -> None:
    with pytest.raises(UserError, match=said):
        build(index=tmp_path / "index", images=images)
    assert not (tmp_path / "index").exists()


def test_shards_are_as_one(album: Path, tmp_path: Path, build, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build(index=tmp_path / "whole", images=album)
    monkeypatch.setattr("rdcd.collection.pictures.SHARD", 5)
    parts = build(index=tmp_path / "parts", images=album)
    for one, other in zip(everything(whole), everything(parts)):
        assert np.array_equal(one, other)
