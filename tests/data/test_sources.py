"""Folders, lists and tar shards give the same pictures; what is hostile or damaged is said."""

import io
import pickle
import tarfile
from pathlib import Path

import pytest

from rdcd.data import sources
from rdcd.data.images import open_image
from rdcd.data.sources import open_pictures, read_list
from rdcd.errors import BadImage, UserError

NAMES = ["a/R0", "a/R1", "b/R2", "b/c/R3", "R4"]


@pytest.fixture
def folder(picture, tmp_path: Path) -> Path:
    for seed, name in enumerate(NAMES):
        path = tmp_path / "folder" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed, 20 + seed, 16).save(path)
    return tmp_path / "folder"


def pack(folder: Path, out: Path, names: list[str]) -> Path:
    out.parent.mkdir(exist_ok=True)
    with tarfile.open(out, "w", format=tarfile.USTAR_FORMAT) as tar:  # one block before each
        for name in names:
            tar.add(folder / f"{name}.png", f"./{name}.png")
    return out


@pytest.fixture
def shards(folder: Path, tmp_path: Path) -> Path:
    pack(folder, tmp_path / "shards" / "1.tar", NAMES[3:])
    pack(folder, tmp_path / "shards" / "0.tar", NAMES[:3])
    return tmp_path / "shards"


def content(pictures) -> dict[str, bytes]:
    return {name: open_image(pictures.source(i)).tobytes() for i, name in enumerate(pictures.names)}


@pytest.mark.parametrize("ids", ["stem", "path"])
def test_folder_list_and_shards_are_one(folder: Path, shards: Path, ids: str) -> None:
    expected = content(open_pictures(folder, ids=ids))
    assert set(expected) == {name if ids == "path" else Path(name).stem for name in NAMES}
    (folder / "list.txt").write_text("# pictures\n\n" + "".join(f"  {name}.png \n" for name in NAMES))
    listed = open_pictures(folder / "list.txt", ids=ids)
    assert content(listed) == expected and listed.path(0) == folder / "a/R0.png"
    for images in (shards, f"{shards}/*.tar", f"{shards}/[01].tar"):
        found = open_pictures(images, ids=ids)
        assert content(found) == expected and found.names[0].endswith("R0") and found.names[-1].endswith("R4")
        assert content(pickle.loads(pickle.dumps(found))) == expected  # as for a spawned worker
    one = open_pictures(shards / "1.tar", ids=ids)
    assert len(one) == 2 and str(one.path(0)) == f"{shards}/1.tar/b/c/R3.png"


def test_digests_tell_pictures_apart(folder: Path, shards: Path) -> None:
    assert open_pictures(folder).digest() == open_pictures(folder).digest()
    before = open_pictures(shards).digest()
    assert len({open_pictures(folder).digest(), open_pictures(folder / "a").digest(), before,
                open_pictures(folder, ids="path").digest()}) == 4
    pack(folder, shards / "0.tar", ["a/R1", "a/R0", "b/R2"])
    assert open_pictures(shards).digest() != before


def test_hostile_members_are_left_out_and_counted(folder: Path, tmp_path: Path, capsys) -> None:
    data = (folder / "R4.png").read_bytes()
    with tarfile.open(tmp_path / "h.tar", "w") as tar:
        for name, kind in (("../../up.png", tarfile.REGTYPE), ("/etc/root.png", tarfile.REGTYPE),
                           ("link.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE),
                           ("device.png", tarfile.CHRTYPE), ("pipe.png", tarfile.FIFOTYPE),
                           ("folder.png", tarfile.DIRTYPE), ("a.json", tarfile.REGTYPE), ("cut.png", tarfile.REGTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            part = data[:40] if name == "cut.png" else data
            member.size = len(part) if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(part))
    before = sorted(tmp_path.rglob("*"))
    pictures = open_pictures(tmp_path / "h.tar")
    assert pictures.names == ["up", "root", "cut"] and pictures.source(0) == pictures.source(1) == data
    with pytest.raises(BadImage):
        open_image(pictures.source(2))
    assert sorted(tmp_path.rglob("*")) == before
    assert "5 members of the tar files are left out" in capsys.readouterr().out


def test_what_became_shorter_or_is_too_large_is_bad(shards: Path, monkeypatch) -> None:
    pictures = open_pictures(shards / "1.tar")
    (shards / "1.tar").write_bytes((shards / "1.tar").read_bytes()[:600])
    with pytest.raises(BadImage, match="R3.png: the tar file ends after 88 of its"):
        pictures.source(0)
    (shards / "1.tar").unlink()
    with pytest.raises(BadImage, match="FileNotFoundError"):
        pictures.source(0)
    monkeypatch.setattr(sources, "MAX_BYTES", 100)
    with pytest.raises(BadImage, match="at most 100 allowed"):
        pictures.source(0)


def test_damaged_shards_are_refused(folder: Path, shards: Path, tmp_path: Path) -> None:
    whole = (shards / "0.tar").read_bytes()
    second = 512 + -(-(folder / "a/R0.png").stat().st_size // 512) * 512  # where the second header begins
    broken = bytearray(whole)
    broken[second:second + 3] = b"???"
    used = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    cases = {"cut": (whole[:second + 700], "is no whole tar file"), "header": (bytes(broken), "a damaged header"),
             "joined": (whole + whole, "another archive"), "no end": (whole[:used], "the mark of its end is missing"),
             "text": (b"no tar " * 400, "is no whole tar file"), "empty": (b"", "is no whole tar file")}
    for name, (data, said) in cases.items():
        (tmp_path / f"{name}.tar").write_bytes(data)
        with pytest.raises(UserError, match=said):
            open_pictures(tmp_path / f"{name}.tar")
    for name, mode in (("z.tar.gz", "w:gz"), ("z.tar", "w:xz"), ("z.tgz", "w:gz"), ("z.tbz2", "w:bz2")):
        with tarfile.open(tmp_path / name, mode) as tar:
            tar.add(folder / "R4.png", "R4.png")
        with pytest.raises(UserError, match=f"{name} is compressed"):
            open_pictures(tmp_path / name)


@pytest.mark.parametrize("ids", ["stem", "path"])
def test_equal_names_over_shards_are_told_apart(folder: Path, shards: Path, capsys, ids: str) -> None:
    pack(folder, shards / "2.tar", ["a/R0"])
    names = open_pictures(shards, ids=ids).names
    assert names[0] == "0.tar/a/R0.png" and names[-1] == "2.tar/a/R0.png" and names[1].endswith("R1")
    said = capsys.readouterr().out
    assert f"2 pictures under {shards} share their names with others: their ids are names with extension" in said
    assert ("ids=path" in said) == (ids == "stem")


def test_pictures_of_one_stem_in_one_folder_have_ids(folder: Path, picture, capsys) -> None:
    picture(7, 20, 16).save(folder / "a/R0.bmp")
    assert {"R0.bmp", "R0.png", "R1"} < set(open_pictures(folder).names)
    assert {"a/R0.bmp", "a/R0.png"} < set(open_pictures(folder, ids="path").names)
    assert capsys.readouterr().out.count("2 pictures under") == 2


def test_a_place_is_found_in_whatever_normalization_it_is_typed(folder: Path, tmp_path: Path) -> None:
    folder = folder.rename(tmp_path / "Cafe\u0301")
    (folder / "a" / "R0.png").rename(folder / "a" / "e\u0301.png")
    assert open_pictures(tmp_path / "Café").root == folder
    (folder / "list.txt").write_text("a/é.png\n")
    listed = open_pictures(tmp_path / "Café" / "list.txt")
    assert listed.names == ["é"] and listed.path(0).is_file()
    (folder / "a" / "é.png").write_bytes(b"another file")
    assert open_pictures(folder / "list.txt").path(0).read_bytes() == b"another file"  # as typed goes first


def test_tar_files_beside_pictures_are_said(folder: Path, capsys) -> None:
    pack(folder, folder / "backup.tar", ["R4"])
    assert len(open_pictures(folder)) == 5
    assert "beside 1 tar files, which are left out" in capsys.readouterr().out


def test_what_cannot_be_a_source_is_said(folder: Path, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "wrong.txt").write_text("nowhere.png\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with tarfile.open(tmp_path / "none.tar", "w"):
        pass
    (shards / "x.tar.txt").write_text("")
    for images, said in ((tmp_path / "nowhere", "no folder .*nor a file"), (f"{tmp_path}/n*.tar.none", "no folder"),
                         (tmp_path / "empty.txt", "names no picture"), (tmp_path / "wrong.txt", "nowhere.png'?, which"),
                         (tmp_path / "bytes.txt", "expected a folder, a .tar, or a list"),
                         (folder / "R4.png", "is one picture"), (tmp_path / "none.tar", "no pictures in .*none.tar"),
                         (f"{shards}/*", "which is no .tar")):
        with pytest.raises(UserError, match=said):
            open_pictures(images)
    with pytest.raises(UserError, match="ids=name"):
        open_pictures(folder, ids="name")


def test_a_list_may_name_what_is_elsewhere(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "l.txt").write_text(f"{folder}/R4.png\n../folder/a/R0.png\nnowhere.png\n")
    pictures = read_list(tmp_path / "lists" / "l.txt")
    assert pictures.names == ["R4", "R0", "nowhere"]
    assert [open_image(pictures.source(i)).size for i in range(2)] == [(24, 16), (20, 16)]
    with pytest.raises(BadImage):
        open_image(pictures.source(2))
