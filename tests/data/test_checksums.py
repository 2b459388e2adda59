"""Lists of checksums: those of `sha256sum`, byte by byte, and what differs from one is found."""

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from miniatures import make_cd10k, make_disc, make_ndec, make_pairs
from PIL import Image

from rdcd.data import scan
from rdcd.data.check import Check, check_data
from rdcd.data.checksums import Checksums, compare, contents, write_list
from rdcd.errors import ChecksFailed, UserError

ODD = (b"plain", b"with space", b" first", b"back\\slash", b"new\nline", b"return\r", b"\xff\xfe", b"caf\xc3\xa9",
       b"*star", b"a/b", b"a-b", b"a\\nb")
DIGEST = hashlib.sha256(b"x").hexdigest()


def here(function, jobs, label):
    return map(function, jobs)


def odd_files(root: Path) -> list[str]:
    """Names of files of `x` under a root, by their bytes in order."""
    for name in ODD:
        path = root / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return [os.fsdecode(name) for name in sorted(ODD)]


def checks(root: Path, **options) -> dict[str, Check]:
    """What was checked of checksums → the check."""
    return {check.check.removeprefix("checksums: "): check for check in check_data(root=root, **options)
            if check.check.startswith("checksums: ")}


def test_lists_are_those_of_sha256sum_and_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = odd_files(tmp_path / "root")
    for block in (100, 5):
        monkeypatch.setattr(scan, "BLOCK", block)
        assert write_list(tmp_path / "root", names, tmp_path / "sums", here) == len(names)
        assert list(Checksums(tmp_path / "sums")) == [(name, DIGEST) for name in names]
    if shutil.which("sha256sum"):
        done = subprocess.run(["sha256sum", "--", *names], cwd=tmp_path / "root", capture_output=True, check=True)
        assert (tmp_path / "sums").read_bytes() == done.stdout
        subprocess.run(["sha256sum", "--check", "--strict", tmp_path / "sums"], cwd=tmp_path / "root", check=True,
                       capture_output=True)


@pytest.mark.parametrize(("line", "name"), [
    (f"{DIGEST}  a b.jpg", "a b.jpg"), (f"{DIGEST} *a.jpg", "a.jpg"), (f"{DIGEST}  *a.jpg", "*a.jpg"),
    (f"{DIGEST.upper()}  ./a//b.jpg", "a/b.jpg"), (f"{DIGEST}  a\\nb", "a\\nb"), (f"\\{DIGEST}  a\\nb\\\\", "a\nb\\"),
    (f"# made today\n\n  \n{DIGEST}  a.jpg\r\n\r\n", "a.jpg"), (f"{DIGEST}  ..a/b..", "..a/b..")])
def test_what_is_understood(tmp_path: Path, line: str, name: str) -> None:
    (tmp_path / "sums").write_bytes(line.encode())
    found = Checksums(tmp_path / "sums")
    assert list(found) == [(name, DIGEST)] and len(found) == 1 and name in found and "other" not in found


@pytest.mark.parametrize(("line", "said"), [
    ("", "lists no file"), ("# nothing", "lists no file"), ("a.jpg", "line 1: 'a.jpg': expected `<64 hex digits>"),
    (f"{DIGEST[:-1]}  a.jpg", "line 1"), (f"{DIGEST}g  a.jpg", "line 1"), (f"{DIGEST} a.jpg", "line 1"),
    (f"{DIGEST}  a.jpg\n{DIGEST}", "line 2"), (f"{DIGEST}  ", "line 1"), (f"{DIGEST}  a\0b", "line 1"),
    (f"\\{DIGEST}  a\\tb", "line 1"), (f"\\{DIGEST}  a\\", "line 1"), (f"SHA256 (a.jpg) = {DIGEST}", "line 1"),
    (f"{DIGEST}  /etc/passwd", "'/etc/passwd' leads out of the dataset"), (f"{DIGEST}  a/../../b", "leads out"),
    ("\xff" * 100_000, "line 1")])
def test_what_is_refused(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "sums").write_bytes(line.encode("latin-1"))
    with pytest.raises(UserError, match=f"^checksums={tmp_path}/sums.*{said}") as error:
        Checksums(tmp_path / "sums")
    assert type(error.value) is UserError and len(str(error.value)) < 1000
    with pytest.raises(UserError, match="cannot be read"):
        Checksums(tmp_path)


def test_what_differs_is_found(tmp_path: Path) -> None:
    root = tmp_path / "root"
    names = odd_files(root)
    write_list(root, names, tmp_path / "sums", here)
    same = compare(root, Checksums(tmp_path / "sums"), names, here)
    assert (same.absent.count, same.different.count, same.unlisted.count) == (0, 0, 0)
    (root / "plain").write_bytes(b"y")
    (root / "*star").unlink()
    (root / " first").unlink()
    os.mkfifo(root / " first")  # reading it would wait for ever
    found = compare(root, Checksums(tmp_path / "sums"), [*names, "more", "still more"], here)
    assert str(found.different) == "plain" and str(found.unlisted) == "more, still more"
    assert str(found.absent) == " first (no regular file), *star (No such file or directory)"


def test_a_file_that_cannot_be_read_leaves_no_list(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(UserError, match="b cannot be read .No such file"):
        write_list(tmp_path, ["a", "b"], tmp_path / "sums", here)
    assert os.listdir(tmp_path) == ["a"]


def test_a_list_does_not_take_the_place_of_a_picture(tmp_path: Path) -> None:
    names = odd_files(tmp_path)
    with pytest.raises(UserError, match="plain is a file of the dataset itself: give another name"):
        write_list(tmp_path, names, tmp_path / "plain", here)
    assert (tmp_path / "plain").read_bytes() == b"x"


def test_contents_are_listed_once_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fill) -> None:
    for folder in ("root/a/b", "root/a", "root/a-b", "root/b", "other"):
        fill(tmp_path / folder, ["x", "y"])
    (tmp_path / "root" / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "root" / "t.csv").write_text("table")
    (tmp_path / "root" / "c").symlink_to(tmp_path / "other")
    places = ("a", "a/b", "a-b", "c", "none", "t.csv", "../other")
    expected = ["a-b/x.png", "a-b/y.png", "a/b/x.png", "a/b/y.png", "a/x.png", "a/y.png", "c/x.png", "c/y.png", "t.csv"]
    monkeypatch.chdir(tmp_path)
    for root in (tmp_path / "root", Path("root")):
        assert list(contents(root, [root / place for place in places])) == expected
        everything = sorted(["b/x.png", "b/y.png", *expected])
        assert list(contents(root, [root / "a", tmp_path / "root", root / "t.csv"])) == everything


MAKERS = {"disc": make_disc, "ndec": make_ndec, "cd10k": make_cd10k, "pairs": make_pairs}
TABLES = {"disc": ["benchmark.json", "dev_ground_truth.csv", "dev_queries.csv"], "pairs": ["pairs.csv"],
          "ndec": ["hard_negatives.csv", "public_ground_truth_h5.csv"], "cd10k": []}


@pytest.mark.parametrize("layout", MAKERS)
def test_a_list_of_every_layout_verifies_its_copy(tmp_path: Path, layout: str) -> None:
    root = MAKERS[layout](tmp_path / "root", train=2) if layout != "pairs" else make_pairs(tmp_path / "root")
    if layout == "disc":
        (root / "benchmark.json").write_text("{}")
        (root / "dev_queries.csv").write_text("query_id,edits\n")
    if layout == "ndec":
        (root / "hard_negatives.csv").write_text("Q00012\n")
    sums = root / "SHA256SUMS"
    done = checks(root, layout=layout, samples=0, write_checksums=sums)
    assert done["written"].verdict == "ok" and "outside" not in done
    pictures = [path.relative_to(root).as_posix() for path in root.rglob("*.jpg")]
    names = [name for name, _ in Checksums(sums)]
    assert names == sorted(pictures + TABLES[layout]) and done["written"].found == f"{len(names)} files"
    for name, digest in Checksums(sums):
        assert digest == hashlib.sha256((root / name).read_bytes()).hexdigest()
    copied = shutil.copytree(root, tmp_path / "copy")
    found = checks(copied, layout=layout, samples=0, checksums=sums)
    assert [(name, check.verdict) for name, check in found.items()] == [("files", "ok"), ("contents", "ok"),
                                                                        ("unlisted", "ok")]


def test_a_damage_that_decoding_does_not_see(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(3):
        Image.new("RGB", (20, 20), (i, 0, 0)).save(root / f"{i}.bmp")
    check_data(root=root, layout="folder", write_checksums=tmp_path / "sums")
    bytes_ = bytearray((root / "1.bmp").read_bytes())
    bytes_[-1] ^= 1
    (root / "1.bmp").write_bytes(bytes_)
    Image.new("RGB", (20, 20)).save(root / "new.bmp")
    check_data(root=root, layout="folder", samples=None)
    with pytest.raises(ChecksFailed, match=r"^1 of \d checks of .* failed: checksums: contents;") as failed:
        check_data(root=root, layout="folder", checksums=tmp_path / "sums", out=tmp_path / "checks.json")
    assert failed.value.code == 1
    record = (tmp_path / "checks.json").read_text()
    assert '"1 not so: 1.bmp"' in record and '"1 not so: new.bmp"' in record
    assert len(re.findall('"verdict": "FAILED"', record)) == len(re.findall('"verdict": "note"', record)) == 1


def test_damaged_data_is_given_no_list(tmp_path: Path, fill) -> None:
    root = fill(tmp_path / "photos", ["a", "b"], bad=("b",))
    with pytest.raises(ChecksFailed):
        check_data(root=root, layout="folder", write_checksums=tmp_path / "sums", out=tmp_path / "checks.json")
    assert not (tmp_path / "sums").exists() and "mend what failed first" in (tmp_path / "checks.json").read_text()


def test_parts_outside_the_root_are_said_to_be_left_out(tmp_path: Path) -> None:
    root = make_cd10k(tmp_path / "root", train=0)
    (root / "distractors").rename(tmp_path / "other")
    done = checks(root, layout="cd10k", samples=0, distractors=tmp_path / "other", write_checksums=tmp_path / "sums")
    assert done["outside"].verdict == "note" and done["outside"].found == f"not listed: {tmp_path}/other"
    assert not any("other" in name for name, _ in Checksums(tmp_path / "sums"))


def test_paths_are_compared_in_nfc(tmp_path: Path) -> None:
    (tmp_path / "Cafe\u0301").mkdir()
    (tmp_path / "Cafe\u0301" / "e\u0301.jpg").write_bytes(b"x")
    (tmp_path / "sums").write_text(f"{DIGEST}  Café/é.jpg\n")
    found = compare(tmp_path, Checksums(tmp_path / "sums"), ["Cafe\u0301/e\u0301.jpg"], here)
    assert not any(trouble.count for trouble in (found.absent, found.different, found.unlisted))
