"""What is an image of a folder, and what only looks like one: the same rule wherever folders are looked through."""

import tarfile
from pathlib import Path

import pytest
from PIL import Image

from rdcd.data import found
from rdcd.data.check import check_data
from rdcd.data.checksums import contents
from rdcd.data.found import find_images, walk
from rdcd.data.manifest import Manifest
from rdcd.data.scan import pictures, scan
from rdcd.data.sources import open_pictures
from rdcd.errors import UserError

HIDDEN = (".Trash-1000", ".Trashes", ".thumbnails", "@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", ".git",
          "System Volume Information", ".@__thumb")


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found, "_said", set())


@pytest.fixture
def folder(tmp_path: Path, picture) -> Path:
    (tmp_path / "in" / "2019").mkdir(parents=True)
    for number, name in enumerate(("a.jpg", "2019/b.png", "c.jpe", "d.pgm", "e.qoi")):
        picture(number, 64, 48).convert("L" if name.endswith("pgm") else "RGB").save(
            tmp_path / "in" / name, {".jpe": "JPEG", ".pgm": "PPM"}.get(name[-4:]))
    for name in HIDDEN:
        (tmp_path / "in" / "2019" / name / "deep").mkdir(parents=True)
        (tmp_path / "in" / "2019" / name / "deep" / "z.jpg").write_bytes(b"")
    for name in ("._a.jpg", "f.cr2", "2019/g.CR2", "h.psd", "i.txt"):
        (tmp_path / "in" / name).write_bytes(b"")
    return tmp_path / "in"


def test_hidden_trash_and_thumbnail_folders_are_left_out_in_every_scan(folder: Path, capsys) -> None:
    names = ["2019/b.png", "a.jpg", "c.jpe", "d.pgm", "e.qoi"]
    assert [path.relative_to(folder).as_posix() for path in find_images(folder)] == names
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and said.startswith(f"{folder}: left out 2 .cr2 (2019/g.CR2, f.cr2): convert them")
    assert "1 .psd (h.psd): convert them" in said and ".txt" not in said
    assert "11 hidden, or in hidden, trash or thumbnail folders (._a.jpg, 2019/" in said
    assert sorted(pictures(folder)) == names
    assert sorted(map(str, contents(folder, [folder]))) == names
    looked = scan({"": folder}, samples=0)
    assert looked.count == 5 and looked.left.count == 14
    assert len(Manifest.of_folder(folder)) == len(open_pictures(folder)) == 5
    assert not capsys.readouterr().out.count("left out")  # once is enough


def test_what_lies_in_a_hidden_place_by_its_own_path_is_read(tmp_path: Path, picture) -> None:
    place = tmp_path / ".cache" / "@eaDir"
    place.mkdir(parents=True)
    picture(0).save(place / "a.png")
    assert find_images(place) == [place / "a.png"]


def test_a_link_in_the_trash_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").write_bytes(b"")
    (tmp_path / ".trash").mkdir()
    (tmp_path / ".trash" / "link").symlink_to(tmp_path / "real")
    assert [name for _, _, name in walk(tmp_path, found.LeftOut())] == ["a.jpg"]


def test_a_folder_of_other_formats_alone_says_what_reads_them(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a.heic").write_bytes(b"")
    monkeypatch.setattr(found, "EXTENSIONS", (".jpg",))
    monkeypatch.setattr(found, "UNREADABLE", {".heic": "pip install pillow-heif"})
    with pytest.raises(UserError, match=r"no pictures under .*left out 1 .heic \(a.heic\): pip install pillow-heif"):
        find_images(tmp_path)


def test_members_of_a_tar_are_left_out_by_the_same_rule(folder: Path, tmp_path: Path, capsys) -> None:
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(folder, "in")
    assert sorted(open_pictures(tmp_path / "all.tar").names) == ["a", "b", "c", "d", "e"]
    said = capsys.readouterr().out
    assert "all.tar: left out 2 .cr2 (in/" in said and "11 hidden, or in hidden" in said


def test_trash_beside_tars_is_no_folder_of_images(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "shards" / "@eaDir").mkdir(parents=True)
    with tarfile.open(tmp_path / "shards" / "all.tar", "w") as tar:
        tar.add(folder / "a.jpg", "a.jpg")
    assert open_pictures(tmp_path / "shards").names == ["a"]


def test_check_data_has_a_line_of_it(folder: Path) -> None:
    checks = {check.check: check for check in check_data(root=folder, layout="folder")}
    left = checks["folder: left out"]
    assert left.verdict == "note" and "2 .cr2" in left.found and "11 hidden" in left.found


def test_every_readable_suffix_is_one_of_a_format_that_is_read() -> None:
    Image.init()
    known = {suffix for suffix, kind in Image.registered_extensions().items()}
    assert set(found.EXTENSIONS) - known <= {".jif", ".pnm", *found.HEIC}
    assert not set(found.EXTENSIONS) & set(found.UNREADABLE)
