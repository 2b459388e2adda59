import os
import pickle
from pathlib import Path

import pytest

from rdcd.data.manifest import Manifest, Strings
from rdcd.errors import UserError


def touch(root: Path, *names: str) -> list[Path]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return [root / name for name in names]


def test_names_and_paths_in_the_given_order(tmp_path: Path) -> None:
    paths = touch(tmp_path, "shard1/R000002.jpg", "R000001.png", "shard0/deep/a.b.webp", "é 写真.jpg")
    pictures = Manifest(tmp_path, paths)
    assert len(pictures) == 4
    assert [pictures.path(i) for i in range(4)] == paths
    assert pictures.names == ["R000002", "R000001", "a.b", "é 写真"]
    assert pictures.paths_by_name() == dict(zip(pictures.names, paths, strict=True))


def test_of_folder_is_every_picture_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.jpg", "a/9.png", "1.gif", "notes.txt", "a/.4.jpg")
    assert Manifest.of_folder(tmp_path).names == ["1", "9", "2"]
    with pytest.raises(UserError, match="no folder"):
        Manifest.of_folder(tmp_path / "none")


def test_empty(tmp_path: Path) -> None:
    pictures = Manifest(tmp_path, [])
    assert len(pictures) == 0 and pictures.names == [] and pictures.paths_by_name() == {}


@pytest.mark.parametrize(("files", "names"), [
    (["a/R1.jpg", "b/R1.png", "R2.jpg"], ["R2", "R1.jpg", "R1.png"]),
    (["IMG_1.jpg", "IMG_1.png", "IMG_1.JPG"], ["IMG_1.JPG", "IMG_1.jpg", "IMG_1.png"]),
    (["2019/IMG_1.jpg", "2020/IMG_1.jpg", "2020/IMG_1.png", "2020/IMG_2.jpg"],
     ["2019/IMG_1.jpg", "2020/IMG_1.jpg", "IMG_1.png", "IMG_2"]),
    (["a.jpg", "a.png", "a.jpg.png", "a.jpg.png.png"], ["a.jpg", "a.jpg.png", "a.jpg.png.png", "a.png"]),
    (["é.jpg", "e\u0301.png"], ["é.png", "é.jpg"]),
    (["é.jpg", "e\u0301.jpg", "b/x.jpg"], ["x", r"e\u0301.jpg", r"\xe9.jpg"]),
    (["é/1.jpg", "e\u0301/1.jpg"], [r"e\u0301/1.jpg", r"\xe9/1.jpg"])], ids=str)
def test_equal_names_are_told_apart_by_extension_or_path(tmp_path: Path, files: list[str], names: list[str]) -> None:
    touch(tmp_path, *files)
    pictures = Manifest.of_folder(tmp_path)
    assert pictures.names == names
    assert sorted(str(path.relative_to(tmp_path)) for path in pictures.paths_by_name().values()) == sorted(files)
    assert pictures.told_apart == sum("." in name for name in names)
    again = Manifest(tmp_path, [tmp_path / file for file in reversed(files)])
    assert again.paths_by_name() == pictures.paths_by_name()  # in whatever order they come
    with pytest.raises(UserError, match=f"{tmp_path}/{files[0]} is given twice: expected every picture once"):
        Manifest(tmp_path, [tmp_path / files[0], *(tmp_path / file for file in files)])


def test_names_are_composed_and_paths_as_they_are(tmp_path: Path) -> None:
    path, = touch(tmp_path, "cafe\u0301/cafe\u0301.jpg")
    for pictures in (Manifest.of_folder(tmp_path), Manifest.of_folders(tmp_path, {"b": tmp_path})):
        assert pictures.path(0) == path and pictures.path(0).is_file()
        assert pictures.names in (["café"], ["b/café/café"])


def test_a_name_that_is_not_utf8_is_said(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    with pytest.raises(UserError, match=r"not UTF-8: 'caf\\udce9.jpg'; rename it"):
        Manifest(tmp_path, [path])


def test_workers_get_one_array_and_no_list_of_objects(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i:06d}.jpg" for i in range(1000)]
    pictures = Manifest(tmp_path, paths)
    assert not [value for value in vars(pictures).values() if isinstance(value, list | tuple | dict)]
    again = pickle.loads(pickle.dumps(pictures))
    assert again.path(999) == paths[999] and again.names == pictures.names


def test_given_names_stand_for_file_names(tmp_path: Path) -> None:
    paths = touch(tmp_path, "2024/IMG_1.jpg", "2025/IMG_1.jpg")
    pictures = Manifest(tmp_path, paths, names=["2024/IMG_1", "2025/IMG_1"])
    assert pictures.names == ["2024/IMG_1", "2025/IMG_1"]
    assert pictures.paths_by_name() == dict(zip(pictures.names, paths, strict=True))
    assert Manifest(tmp_path, paths, names=["a", "a"]).names == ["2024/IMG_1.jpg", "2025/IMG_1.jpg"]
    with pytest.raises(ValueError, match="1 names for 2 pictures"):
        Manifest(tmp_path, paths, names=["a"])


def test_labelled_folders_that_lie_apart(tmp_path: Path) -> None:
    touch(tmp_path, "root/blocks/10/200000.jpg", "root/blocks/10/200100.png", "root/blocks/15/200000.jpg",
          "elsewhere/deep/x.y.jpg", "elsewhere/200000.jpg")
    folders = {"crops/15": tmp_path / "root/blocks/15", "crops/10": tmp_path / "root/blocks/10",
               "distractors": tmp_path / "elsewhere"}
    pictures = Manifest.of_folders(tmp_path / "root", folders)
    expected = []
    for label, folder in folders.items():
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = f"{label}/{path.relative_to(folder)}"
            expected.append((name[:name.rindex(".")], path))
    assert list(zip(pictures.names, [pictures.path(i) for i in range(5)])) == expected
    assert pictures.names[-1] == "distractors/deep/x.y"
    assert [pickle.loads(pickle.dumps(pictures)).path(i) for i in range(5)] == [path for _, path in expected]


def test_labelled_folders_named_from_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "root/a/1.jpg", "other/2.jpg")
    monkeypatch.chdir(tmp_path)
    pictures = Manifest.of_folders("root", {"a": Path("root/a"), "b": Path("other")})
    assert [pictures.path(i).resolve() for i in range(2)] == [tmp_path / "root/a/1.jpg", tmp_path / "other/2.jpg"]
    assert Manifest(".", [Path("other/2.jpg")]).path(0) == Path("other/2.jpg")


def test_one_name_twice_in_a_labelled_folder_keeps_the_extension(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "a/1.png", "b/1.jpg")
    pictures = Manifest.of_folders(tmp_path, {"a": tmp_path / "a", "b": tmp_path / "b"})
    assert pictures.names == ["a/1.jpg", "a/1.png", "b/1"] and pictures.told_apart == 2


def test_strings_are_those_put_in() -> None:
    values = ["", "a", "é 写真", "", "b" * 300]
    strings = Strings(values)
    assert list(strings) == values and [strings[i] for i in range(5)] == values and len(strings) == 5
