import os
import pickle
from pathlib import Path

import pytest

from rdcd.data.manifest import Manifest
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


def test_one_name_twice_is_said_with_both_files(tmp_path: Path) -> None:
    touch(tmp_path, "a/R1.jpg", "b/R1.png", "R2.jpg")
    with pytest.raises(UserError, match=f"named 'R1': {tmp_path}/a/R1.jpg and {tmp_path}/b/R1.png"):
        Manifest.of_folder(tmp_path)


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
