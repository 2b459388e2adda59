import hashlib
import json
from pathlib import Path

import pytest

from rdcd.errors import UserError
from rdcd.files import atomic_path, check_output, sha256, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_whole_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "a.tar.h5"
    with atomic_path(str(target)) as partial:
        assert partial.parent == target.parent and partial.suffix == ".h5" and partial.name.startswith(".")
        partial.write_text("half")
        assert not target.exists()
        partial.write_text("whole")
    assert target.read_text() == "whole" and names(target.parent) == ["a.tar.h5"]


def test_failure_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    for before in (None, "old"):
        if before:
            target.write_text(before)
        with pytest.raises(KeyboardInterrupt), atomic_path(target) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt
        assert names(tmp_path) == (["a.txt"] if before else [])
    assert target.read_text() == "old"


def test_nothing_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt"):
        pass
    assert names(tmp_path) == []


def test_text_is_utf8_and_replaces(tmp_path: Path) -> None:
    for text in ("old", "µAP 写真\n"):
        write_text(tmp_path / "a.txt", text)
    assert (tmp_path / "a.txt").read_bytes() == "µAP 写真\n".encode()


def test_json_is_readable_and_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"µAP": 0.5, "none": None, "list": [1, "é"]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"µAP": 0.5, "none": None, "list": [1, "é"]}
    assert "µAP" in text and text.endswith("}\n") and len(text.splitlines()) > 3
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError):
            write_json(tmp_path / "a.json", {"value": value})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == text and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("size", [0, 5, 1 << 20, (1 << 20) + 1])
def test_sha256(tmp_path: Path, size: int) -> None:
    content = bytes(i % 251 for i in range(size))
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_outputs_are_checked_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    check_output(tmp_path / "new" / "deep" / "x.csv")
    check_output(tmp_path / "file")  # to be replaced
    check_output(tmp_path, folder=True)
    for path, folder, said in ((tmp_path, False, "is a folder: expected the name of a file"),
                               (tmp_path / "file", True, "is a file, no folder"),
                               (tmp_path / "file" / "x", False, "is a file, no folder")):
        with pytest.raises(UserError, match=said):
            check_output(path, folder=folder)


def test_a_place_without_permission_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UserError, match="no permission"):
        check_output(tmp_path / "x")
