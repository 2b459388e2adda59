"""What `dedup` suggests may be done: nothing is lost if it is, whatever lies on the disk by then."""

import csv
import hashlib
import json
import os
import shutil
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from miniatures import save, scene
from PIL import Image

from rdcd.collection.keep import parse_keep
from rdcd.collection.on_disk import OnDisk, look_at_all
from rdcd.collection.pictures import Embedder
from rdcd.collection.rejected import Rejected
from rdcd.collection.suggest import Links, Suggestions
from rdcd.errors import UserError

PLAIN = {"score_norm": None, "threshold": 0.8, "gallery": 0, "model": "thumbnail"}
Vectors = dict[str, np.ndarray]  # SHA-256 of a file → its descriptor


def digest(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.fixture
def sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose matches from 0.9 on are right with an expected precision of 0.995."""
    load = Embedder.load.__func__

    def calibrated(cls, *args, **kwargs):
        made = load(cls, *args, **kwargs)
        rows = [{"codec": "Flat", "score_norm": norm, "precision": 0.995, "threshold": 0.9, "benchmark": "ours"}
                for norm in (None, "1.0[10,12]")]
        return Embedder(made.network, made.card | {"calibration": rows}, made.about, made.settings)

    monkeypatch.setattr(Embedder, "load", classmethod(calibrated))


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Vectors:
    """Descriptors by content, in the place of a network; `plant` adds to them."""
    vectors: Vectors = {}

    def embed(self, paths, bad, *, label):
        found = np.zeros((len(paths), 243), np.float32)
        for row, path in enumerate(paths):
            part = vectors[digest(path)]
            found[row, :len(part)] = part
        return list(range(len(paths))), found

    monkeypatch.setattr(Embedder, "_embed", embed)
    return vectors


def plant(vectors: Vectors, path: Path, vector: Iterable[float], *, size: tuple[int, int] = (4, 4), seed: int = 0,
          changed: float | None = None) -> str:
    """Write a picture whose descriptor is `vector`, normalized; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, *map(ord, path.stem)]).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    vector = np.array(list(vector), np.float32)
    vectors[digest(path)] = vector / np.linalg.norm(vector)
    if changed is not None:
        os.utime(path, (changed, changed))
    return str(path)


def turned(degrees: float) -> tuple[float, float]:
    """A vector of the plane: those at most 36 degrees apart score 0.8 or more."""
    return float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))


def by_name(found: list[dict[str, str]]) -> dict[str, tuple[str, str]]:
    return {Path(row["path"]).name: (row["action"], Path(row["of"]).name) for row in found}


def lost(found: list[dict[str, str]], *, really: bool = True) -> list[str]:
    """Delete what is called a duplicate; return those of which no file with the bytes of before is left."""
    wanted = [row for row in found if row["action"] == "duplicate"]
    of = {row["path"]: digest(row["of"]) for row in wanted if os.path.exists(row["of"])}
    for row in wanted:
        if really:
            os.unlink(row["path"])
    return [row["path"] for row in wanted
            if not os.path.isfile(row["of"]) or digest(row["of"]) != of.get(row["path"])]


# One file on disk


@pytest.mark.parametrize("link", ["hard link", "link", "linked folder", "both as roots"])
def test_a_file_under_two_paths_is_one(album: Path, tmp_path: Path, duplicates, rows, link: str) -> None:
    picture, images = album / "2024" / "p08.jpg", album
    if link == "hard link":
        os.link(picture, album / "other.jpg")
    elif link == "link":
        (album / "other.jpg").symlink_to(picture)
    else:
        folder = tmp_path / "again" if link == "both as roots" else album / "again"
        folder.symlink_to(album / "2024", target_is_directory=True)
        images = [album, folder]
    found = rows(duplicates(images=images, model="thumbnail", out=tmp_path / "out") / "actions.csv")
    assert "duplicate" not in {row["action"] for row in found}
    assert {row["reason"] for row in found if row["action"] == "review"} == {"same file"}


def test_a_copy_of_a_linked_file_is_found_once(album: Path, tmp_path: Path, duplicates, rows) -> None:
    picture = album / "2024" / "p08.jpg"
    shutil.copy(picture, album / "a copy.jpg")
    os.link(picture, album / "b link.jpg")
    (album / "c link.jpg").symlink_to(album / "a copy.jpg")
    found = rows(duplicates(images=album, model="thumbnail", out=tmp_path / "out") / "actions.csv")
    assert sorted(row["action"] for row in found) == ["duplicate", "keep", "review", "review"]
    assert lost(found) == []


def test_a_share_that_is_mounted_twice_is_one_folder(album: Path, tmp_path: Path, duplicates, rows,
                                                     monkeypatch) -> None:
    """Each mount has a device number of its own; inode and time of change are the file's."""
    os.link(album / "2024" / "p08.jpg", album / "mounted.jpg")
    plain = os.stat

    def stat(path, *args, **kwargs):
        about = plain(path, *args, **kwargs)
        if not str(path).endswith("mounted.jpg"):
            return about
        return os.stat_result([*about[:2], about.st_dev + 1, *about[3:10]],
                              {name: getattr(about, name) for name in ("st_mtime_ns", "st_ctime_ns")})

    monkeypatch.setattr(os, "stat", stat)
    found = rows(duplicates(images=album, model="thumbnail", out=tmp_path / "out") / "actions.csv")
    assert sorted((row["action"], row["reason"]) for row in found if row["of"]) == [("review", "same file")]


# Overlap


@pytest.mark.parametrize("overlap", ["same", "part", "index", "own index", "both indexes", "linked", "list"])
def test_overlapping_collections_keep_one(album: Path, tmp_path: Path, build, duplicates, rows, overlap: str) -> None:
    for name in ("copy 1.jpg", "copy 2.jpg"):
        shutil.copy(album / "2024" / "p08.jpg", album / "2024" / name)
    shutil.copy(album / "2023" / "p09.jpg", album / "2024" / "copy of p09.jpg")  # its original is in 2023
    images = against = album
    if overlap == "part":
        images = album / "2024"
    elif overlap in ("index", "own index", "both indexes"):
        build(index=tmp_path / "index", images=album)
        images = tmp_path / "index" if overlap != "index" else album
        against = tmp_path / "index" if overlap != "own index" else album
    elif overlap == "linked":
        images = tmp_path / "linked"
        images.symlink_to(album, target_is_directory=True)
    elif overlap == "list":
        images = [album / "2024", album / "2023" / "p09.jpg"]
    before = {digest(path) for path in album.rglob("*.jpg")}
    found = rows(duplicates(images=images, against=against, model="thumbnail", out=tmp_path / "out") / "actions.csv")
    assert sum(row["action"] == "duplicate" for row in found) == 3
    assert lost(found) == []
    assert {digest(path) for path in album.rglob("*.jpg")} == before


def test_what_is_in_images_alone_yields_to_what_is_in_both(album: Path, tmp_path: Path, duplicates, rows) -> None:
    shutil.copy(album / "2024" / "p08.jpg", tmp_path / "incoming.jpg")
    os.utime(tmp_path / "incoming.jpg", (1, 1))
    found = rows(duplicates(images=[album / "2024", tmp_path / "incoming.jpg"], against=album, model="thumbnail",
                            out=tmp_path / "out") / "actions.csv")
    assert by_name(found) == {"p08.jpg": ("keep", ""), "incoming.jpg": ("duplicate", "p08.jpg")}


def test_the_larger_picture_is_not_given_up_for_one_of_against(tmp_path: Path, planted, sure, duplicates, rows) -> None:
    plant(planted, tmp_path / "mine" / "large.png", turned(0), size=(8, 8))
    plant(planted, tmp_path / "mine" / "small.png", turned(1), size=(2, 2))
    plant(planted, tmp_path / "theirs" / "theirs.png", turned(2))
    found = rows(duplicates(images=tmp_path / "mine", against=tmp_path / "theirs", out=tmp_path / "out", **PLAIN)
                 / "actions.csv")
    assert by_name(found) == {"large.png": ("review", "theirs.png"), "small.png": ("duplicate", "theirs.png")}
    assert found[0]["reason"] == "alike; keep=pixels prefers this one"


# An index older than the disk


@pytest.mark.parametrize("change", ["renamed", "deleted", "overwritten", "replaced by a pipe", "a link to the other",
                                    "touched"])
@pytest.mark.parametrize("which", ["first", "second"])
@pytest.mark.parametrize("mode", ["inside", "against", "own index"])
def test_an_index_older_than_the_disk(album: Path, tmp_path: Path, build, duplicates, rows, capsys, change: str,
                                      which: str, mode: str) -> None:
    (tmp_path / "more").mkdir()
    first, second = album / "2024" / "p08.jpg", tmp_path / "more" / "a copy.jpg"
    shutil.copy(first, second)
    build(index=tmp_path / "index", images={"inside": [album, second], "against": album, "own index": second}[mode])
    asked = {"inside": {"images": tmp_path / "index"}, "against": {"images": second, "against": tmp_path / "index"},
             "own index": {"images": tmp_path / "index", "against": album}}[mode]
    path, other = (first, second) if which == "first" else (second, first)
    indexed = mode == "inside" or (mode == "against") == (which == "first")
    if not indexed:  # read in this run: as it is
        return
    reason = "gone since it was indexed" if change in ("renamed", "deleted") else "changed since it was indexed"
    if change == "renamed":
        path.rename(path.with_name("renamed.jpg"))
    elif change == "touched":
        os.utime(path, (5, 5))
    else:
        path.unlink()
        if change == "overwritten":
            save(scene(300), path)
        elif change == "replaced by a pipe":
            os.mkfifo(path)
        elif change == "a link to the other":
            path.symlink_to(other)
            reason = "same file"
    out = duplicates(model="thumbnail", out=tmp_path / "out", gallery=0, **asked)
    found = rows(out / "actions.csv")
    if change == "touched":
        assert sum(row["action"] == "duplicate" for row in found) == 1 and lost(found) == []
        return
    assert "duplicate" not in {row["action"] for row in found}
    assert any(reason in row["reason"] for row in found if row["action"] == "review"), found
    if reason != "same file":
        assert "1 picture has changed or gone since it was indexed" in capsys.readouterr().out
        assert json.loads((out / "actions.json").read_text())["stale"] == 1


def test_a_sound_match_is_taken_before_one_that_has_gone(album: Path, tmp_path: Path, build, duplicates, rows) -> None:
    picture, other = album / "2024" / "p08.jpg", album / "2024" / "z.jpg"
    shutil.copy(picture, other)
    shutil.copy(picture, tmp_path / "mine.jpg")
    build(index=tmp_path / "index", images=album)
    picture.unlink()
    (row,) = rows(duplicates(images=tmp_path / "mine.jpg", against=tmp_path / "index", out=tmp_path / "out")
                  / "actions.csv")
    assert (row["action"], row["of"]) == ("duplicate", str(other))


@pytest.mark.parametrize("change", ["deleted", "overwritten", "linked"])
@pytest.mark.parametrize("which", [0, 1])
def test_what_changes_while_the_tables_are_written(tmp_path: Path, change: str, which: int) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path in paths:
        Image.new("RGB", (4, 4)).save(path)
    links, content = Links(), hashlib.sha256(paths[0].read_bytes()).digest()
    links.add(str(paths[0]), content, str(paths[1]), content, 1.0, None)
    made = Suggestions(links, parse_keep("shortest"), Rejected())
    assert [row["action"] for row in made.rows()] == ["keep", "duplicate"]
    coming = made.rows()
    assert next(coming)["action"] == "keep"
    paths[which].unlink()
    if change == "overwritten":
        Image.new("RGB", (4, 5)).save(paths[which])
    elif change == "linked":
        os.link(paths[1 - which], paths[which])
    row = next(coming)
    assert row["action"] == "review" and row["reason"].startswith("identical file; ")


def test_a_size_that_is_not_known_is_not_taken_for_none(tmp_path: Path) -> None:
    """A picture above the limit of pixels has the most; one that cannot be opened here is for review."""
    Image.new("1", (10_010, 10_000)).save(tmp_path / "large.png")
    (tmp_path / "of a plugin.jpg").write_text("no picture")
    Image.new("RGB", (4, 4)).save(tmp_path / "small.png")
    files = [(str(path), hashlib.sha256(path.read_bytes()).digest()) for path in sorted(tmp_path.iterdir())]
    links = Links()
    for file in files[:2]:
        links.add(*file, *files[2], 0.95, 0.995)
    found = list(Suggestions(links, parse_keep("pixels"), Rejected()).rows())
    assert [(Path(row["path"]).name, row["action"]) for row in found] == [
        ("large.png", "keep"), ("small.png", "duplicate"), ("of a plugin.jpg", "review")]
    assert found[0]["width"] == 10_010 and "cannot be opened now" in found[2]["reason"]


# Groups


def slow_actions(pictures: dict[str, tuple[np.ndarray, tuple]], least: float) -> dict[str, tuple[str, str]]:
    """Path → (action, of) by the rule itself: in the order of keeping, a picture that matches none kept is kept; the
    others go to the one of these that they match best. pictures: path → (descriptor, key of the order)."""
    kept, joined = [], {}
    for path in sorted(pictures, key=lambda path: pictures[path][1]):
        scores = [(float(pictures[path][0].astype(np.float64) @ pictures[k][0]), k) for k in kept]
        scores = [(digest(path) == digest(k), score, -kept.index(k), k) for score, k in scores if score >= least]
        if scores:
            joined[path] = max(scores)
        else:
            kept.append(path)
    actions = {path: ("duplicate" if same or score >= 0.9 else "review", of)
               for path, (same, score, _, of) in joined.items()}
    return actions | {path: ("keep", "") for path in kept if any(of == path for _, of in actions.values())}


def test_groups_do_not_chain(tmp_path: Path, planted, sure, duplicates, rows) -> None:
    for i in range(7):  # neighbours match, the next but one do not; the first is the largest
        plant(planted, tmp_path / "row" / f"{i}.png", turned(20 * i), size=(20 - i, 20))
    out = duplicates(images=tmp_path / "row", out=tmp_path / "out", **PLAIN)
    found = rows(out / "actions.csv")
    assert by_name(found) == {"0.png": ("keep", ""), "1.png": ("duplicate", "0.png"), "2.png": ("keep", ""),
                              "3.png": ("duplicate", "2.png"), "4.png": ("keep", ""), "5.png": ("duplicate", "4.png"),
                              "6.png": ("review", "5.png")}
    assert [row["reason"] for row in found if row["path"].endswith("6.png")] == ["alike; the other is not kept itself"]
    assert {row["group"] for row in found} == {"1", "2", "3", ""}
    groups = [row["group"] for row in rows(out / "pairs.csv")]
    assert len(groups) == 6 and sorted(groups) == ["", "", "", "1", "2", "3"]


@pytest.mark.parametrize("seed", range(4))
def test_groups_are_those_of_a_plain_loop(tmp_path: Path, planted, sure, duplicates, rows, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pictures = {}
    for i in range(40):
        side, when = int(rng.integers(2, 5)), float(rng.integers(1, 4))
        path = tmp_path / "p" / f"{i:02d}.png"
        if i and rng.random() < 0.3:
            source = rng.choice(sorted(pictures))
            shutil.copy(source, path)
            os.utime(path, (when, when))
        else:
            plant(planted, path, rng.normal(size=3), size=(side, 4), changed=when)
        width, height = Image.open(path).size
        pictures[str(path)] = (planted[digest(path)], (-width * height, -path.stat().st_size, when, str(path)))
    found = rows(duplicates(images=tmp_path / "p", out=tmp_path / "out", k=40, **PLAIN) / "actions.csv")
    assert {row["path"]: (row["action"], row["of"]) for row in found if row["group"]} == slow_actions(pictures, 0.8)
    groups = [row["group"] for row in found if row["group"]]
    assert groups == sorted(groups, key=int)
    sizes = [groups.count(str(number + 1)) for number in range(len(set(groups)))]
    assert sizes == sorted(sizes, reverse=True) and min(sizes) > 1


@pytest.mark.parametrize("keep", ["pixels", "newest"])
def test_more_copies_than_are_looked_for_are_one_group(tmp_path: Path, duplicates, rows, keep: str) -> None:
    for i in range(40):
        save(scene(1 if i < 30 else i), tmp_path / "many" / f"{i:02d}.jpg")
        os.utime(tmp_path / "many" / f"{i:02d}.jpg", (1000 - i % 7, 1000 - i % 7))
    out = duplicates(images=tmp_path / "many", out=tmp_path / "out", model="thumbnail", k=5,
                     **({} if keep == "pixels" else {"keep": keep}))
    found = rows(out / "actions.csv")
    assert sorted(row["action"] for row in found) == ["duplicate"] * 29 + ["keep"]
    assert Path(found[0]["path"]).name == {"pixels": "06.jpg", "newest": "00.jpg"}[keep]


# Which one is kept


@pytest.fixture
def five(tmp_path: Path, planted: Vectors) -> Path:
    """Five pictures that match each other, in two folders."""
    folder = tmp_path / "five"
    for name, size, changed in [("b/large.png", (9, 9), 50), ("b/oldest.bmp", (4, 4), 10), ("b/deep/newest.jpg", (5, 5),
                                90), ("z.tif", (6, 6), 60), ("good/much longer name.png", (7, 7), 70)]:
        plant(planted, folder / name, turned(len(name) / 10), size=size, changed=changed)
    return folder


@pytest.mark.parametrize(("keep", "kept", "reason"), [
    (None, "large.png", "most pixels"), ("pixels", "large.png", "most pixels"), ("oldest", "oldest.bmp", "oldest"),
    ("newest", "newest.jpg", "newest"), ("shortest", "z.tif", "shortest path"),
    ("folder:{}/good", "much longer name.png", "in {}/good"), ("folder:{}/b", "large.png", "most pixels"),
    ("format:jpg", "newest.jpg", "JPEG"), ("format:tif", "z.tif", "TIFF"), ("format:png", "large.png", "most pixels"),
    (["format:png", "oldest"], "large.png", "oldest"), (["format:png", "newest"], "much longer name.png", "newest"),
    (["folder:{}/b/deep", "folder:{}/good"], "newest.jpg", "in {}/b/deep"),
    (["format:webp", "shortest"], "z.tif", "shortest path"), ("bytes", "newest.jpg", "most bytes")])
def test_rules_of_keeping(five: Path, tmp_path: Path, duplicates, rows, keep, kept: str, reason: str) -> None:
    filled = [rule.format(five) for rule in keep] if isinstance(keep, list) else keep and keep.format(five)
    out = duplicates(images=five, out=tmp_path / "out", **PLAIN, **({} if keep is None else {"keep": filled}))
    found = rows(out / "actions.csv")
    assert [(Path(row["path"]).name, row["reason"]) for row in found if row["action"] == "keep"] == [
        (kept, reason.format(five))]
    assert len(found) == 5
    assert json.loads((out / "actions.json").read_text())["keep"] == (filled if isinstance(filled, list)
                                                                     else [filled or "pixels"])


def test_a_preferred_folder_may_be_named_by_a_link(five: Path, tmp_path: Path, duplicates, rows) -> None:
    (tmp_path / "linked").symlink_to(five / "good", target_is_directory=True)
    found = rows(duplicates(images=five, out=tmp_path / "out", keep=f"folder:{tmp_path / 'linked'}", **PLAIN)
                 / "actions.csv")
    assert Path(found[0]["path"]).name == "much longer name.png"


def test_the_format_is_that_of_the_content(five: Path, tmp_path: Path, duplicates, rows) -> None:
    (five / "b" / "deep" / "newest.jpg").rename(five / "b" / "deep" / "misnamed.png")
    found = rows(duplicates(images=five, out=tmp_path / "out", keep="format:jpeg", **PLAIN) / "actions.csv")
    assert Path(found[0]["path"]).name == "misnamed.png"


@pytest.mark.parametrize(("name", "kind"), [("jpg", "JPEG"), ("TIF", "TIFF"), ("heic", "HEIF"), ("jp2", "JPEG2000"),
                                            ("pgm", "PPM"), ("avif", "AVIF")])
def test_formats_are_called_as_files_end(name: str, kind: str) -> None:
    rule, = parse_keep(f"format:{name}")
    assert [rule.key(OnDisk("a", format=one)) for one in (kind, "PNG")] == [0, 1]


def test_looking_at_a_picture_of_any_size_leaves_the_limit_of_pillow(tmp_path: Path) -> None:
    path = str(tmp_path / "a.png")
    Image.new("1", (10, 10)).save(path)
    before = Image.MAX_IMAGE_PIXELS
    assert look_at_all({path: bytes.fromhex(digest(path))})[path].width == 10
    assert Image.MAX_IMAGE_PIXELS == before


@pytest.mark.parametrize(("keep", "said"), [
    ("largest", r"keep=largest: expected one of pixels, bytes, oldest, newest, shortest, folder:DIR, format:NAME, or a "
                r"list of these"),
    ("folder:nowhere", "keep=folder:nowhere: no folder nowhere"), ("folder:", "keep=folder:: expected a folder"),
    ("format:docx", "keep=format:docx: expected one of .*jpg.*png"), (["pixels", 3], "keep=3: expected one of"),
    ([], r"keep=\[\]: expected one of"), (None, "keep=None: expected one of"),
    ("format:png,jpg", r"keep=format:png,jpg: .*\[format:png,format:jpg\]")])
def test_rules_that_cannot_be(album: Path, tmp_path: Path, duplicates, keep, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        duplicates(images=album, model="thumbnail", out=tmp_path / "out", keep=keep)
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()


# Pairs that are no duplicates


def written(path: Path, rows: Iterable[Iterable[str]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture
def three(tmp_path: Path, planted: Vectors) -> Path:
    """Three pictures that match each other, a the largest."""
    for i, name in enumerate("abc"):
        plant(planted, tmp_path / "three" / f"{name}.png", turned(10 * i), size=(9 - i, 9))
    return tmp_path / "three"


def test_rejected_pairs_do_not_come_again(three: Path, tmp_path: Path, sure, duplicates, rows) -> None:
    first = duplicates(images=three, out=tmp_path / "1", **PLAIN)
    assert by_name(rows(first / "actions.csv")) == {"a.png": ("keep", ""), "b.png": ("duplicate", "a.png"),
                                                    "c.png": ("duplicate", "a.png")}
    lines = (first / "actions.csv").read_text().splitlines(keepends=True)
    kept = tmp_path / "rejected.csv"
    kept.write_text("".join(line for line in lines if "c.png" in line or line.startswith("path,")))
    second = duplicates(images=three, out=tmp_path / "2", not_duplicates=kept, **PLAIN)
    assert by_name(rows(second / "actions.csv")) == {"a.png": ("keep", ""), "b.png": ("duplicate", "a.png"),
                                                     "c.png": ("review", "b.png")}
    assert {(Path(row["first"]).name, Path(row["second"]).name) for row in rows(second / "pairs.csv")} == {
        ("a.png", "b.png"), ("b.png", "c.png")}
    assert json.loads((second / "actions.json").read_text())["not_duplicates"] == {"file": str(kept), "pairs": 1}
    (three / "c.png").rename(three / "0 renamed.png")  # the row names the contents, too
    again = duplicates(images=three, out=tmp_path / "3", not_duplicates=kept, **PLAIN)
    assert by_name(rows(again / "actions.csv"))["0 renamed.png"] == ("review", "b.png")
    with open(kept, "a") as file:  # another table behind the first, with its own header
        file.write((again / "pairs.csv").read_text())
    last = duplicates(images=three, out=tmp_path / "4", not_duplicates=kept, **PLAIN)
    assert rows(last / "pairs.csv") == [] == rows(last / "actions.csv")


def test_rejected_pairs_of_the_same_bytes(album: Path, tmp_path: Path, duplicates, rows) -> None:
    """Of three files of the same bytes, one that is to stay in its folder does; the third is a duplicate still."""
    picture = album / "2024" / "p08.jpg"
    for name in ("one.jpg", "two.jpg"):
        shutil.copy(picture, album / name)
        os.utime(album / name, (9, 9))
    os.utime(picture, (1, 1))
    first = duplicates(images=album, model="thumbnail", out=tmp_path / "1")
    lines = [line for line in (first / "actions.csv").read_text().splitlines() if "one.jpg" in line or "path" in line]
    kept = tmp_path / "rejected.csv"
    kept.write_text("\n".join(lines))
    found = rows(duplicates(images=album, model="thumbnail", out=tmp_path / "2", not_duplicates=kept) / "actions.csv")
    assert by_name(found) == {"p08.jpg": ("keep", ""), "two.jpg": ("duplicate", "p08.jpg"),
                              "one.jpg": ("review", "two.jpg")}


@pytest.mark.parametrize("header", [("path", "of"), ("query", "match"), ("first", "second"),
                                    ("sha256", "of_sha256"), ("Path ", "\ufeffof")])
@pytest.mark.parametrize("mode", ["inside", "against", "search"])
def test_tables_are_taken_as_they_are(three: Path, tmp_path: Path, build, find, duplicates, rows, header,
                                      mode: str) -> None:
    pair = [digest(three / "c.png"), digest(three / "a.png")] if header[0] == "sha256" else [
        str(three / "c.png"), "three/a.png"]  # relative to the table
    kept = written(tmp_path / "rejected.csv", [header, pair, []])
    if mode == "inside":
        found = rows(duplicates(images=three, out=tmp_path / "out", not_duplicates=kept, **PLAIN) / "pairs.csv")
        assert {(row["first"][-5:], row["second"][-5:]) for row in found} == {("a.png", "b.png"), ("b.png", "c.png")}
        return
    build(index=tmp_path / "index", images=[three / "a.png", three / "b.png"])
    asked = {"images": three / "c.png", "k": 1, "threshold": 0.8, "score_norm": None, "out": tmp_path / "out",
             "not_duplicates": kept}
    out = find(index=tmp_path / "index", **asked) if mode == "search" else duplicates(against=tmp_path / "index",
                                                                                     **asked)
    assert [row["match"][-5:] for row in rows(out / "matches.csv")] == ["b.png"]


def test_rejected_pairs_do_not_take_the_places_of_others(tmp_path: Path, planted, build, find, duplicates,
                                                         rows) -> None:
    """With k=1, a picture's nearest is rejected, and so are the two after it."""
    paths = [plant(planted, tmp_path / "p" / f"{i}.png", turned(i)) for i in range(5)]
    kept = written(tmp_path / "no.csv", [("path", "of"), *((paths[0], paths[i]) for i in (1, 2, 3))])
    out = duplicates(images=tmp_path / "p", out=tmp_path / "out", k=1, not_duplicates=kept, **PLAIN)
    found = {(row["first"], row["second"]) for row in rows(out / "pairs.csv")}
    assert (paths[0], paths[4]) in found and not any((paths[0], paths[i]) in found for i in (1, 2, 3))
    build(index=tmp_path / "index", images=paths[1:])
    (match,) = rows(find(index=tmp_path / "index", images=paths[0], out=tmp_path / "found", k=1, threshold=0.8,
                         score_norm=None, not_duplicates=kept) / "matches.csv")
    assert match["match"] == paths[4]


def test_names_are_compared_composed(tmp_path: Path, planted, duplicates, rows) -> None:
    composed, decomposed = (unicodedata.normalize(form, "été.png") for form in ("NFC", "NFD"))
    plant(planted, tmp_path / "p" / decomposed, turned(0))
    plant(planted, tmp_path / "p" / "b.png", turned(1))
    kept = written(tmp_path / "no.csv", [("path", "of"), (f"p/{composed}", "p/b.png")])
    out = duplicates(images=tmp_path / "p", out=tmp_path / "out", not_duplicates=kept, **PLAIN)
    assert rows(out / "pairs.csv") == []


@pytest.mark.parametrize(("text", "said"), [
    (None, r"not_duplicates=\S*no.csv: no such file; expected a CSV"),
    ("a,b\n1,2\n", "no.csv, line 1: 'a,b' names no columns of pairs; expected path,of, or query,match, or first"),
    ("path,of\na.png,b.png\nc.png\n", r"no.csv, line 3: 'c.png': expected two paths"),
    ("path,of\n\na.png,\n", r"no.csv, line 3: 'a.png,': expected two paths"),
    ("path,of,sha256,of_sha256\na.png,b.png,12,\n", r"no.csv, line 2: '12': expected a SHA-256 of 64 hex digits"),
    ("path;of\na;b\n", "line 1: 'path;of' names no columns"), (b"path,of\n\xff\xfe,b\n", r"no.csv: .*UTF-8"),
    ("path,of\n\"a.png,b.png\n", "line 2"), ("folder", "no.csv: expected a file")])
def test_rows_that_are_wrong_are_named(album: Path, tmp_path: Path, duplicates, text, said: str) -> None:
    kept = tmp_path / "no.csv"
    if text == "folder":
        kept.mkdir()
    elif text is not None:
        kept.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=said) as refused:
        duplicates(images=album, model="thumbnail", out=tmp_path / "out", not_duplicates=kept)
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()


def test_an_empty_list_rejects_nothing(three: Path, tmp_path: Path, duplicates, rows) -> None:
    (tmp_path / "no.csv").touch()
    out = duplicates(images=three, out=tmp_path / "out", not_duplicates=tmp_path / "no.csv", **PLAIN)
    assert len(rows(out / "pairs.csv")) == 3


# The promise itself


def random_disk(rng: np.random.Generator, folder: Path, planted: Vectors) -> list[Path]:
    """Some thirty paths in three folders: pictures that are alike by chance, copies, hard links, links, a linked
    folder."""
    paths = [folder / top / f"{i:02d}.png" for i, top in enumerate(rng.choice(["a", "b", "b/c"], 30))]
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = rng.choice(["new", "new", "copy", "hard", "link"]) if i else "new"
        source = paths[int(rng.integers(0, max(i, 1)))]
        if kind == "new":
            plant(planted, path, rng.normal(size=3), size=(int(rng.integers(2, 5)), 3), seed=int(rng.integers(1e9)),
                  changed=float(rng.integers(1, 9)))
        elif kind == "copy":
            shutil.copy(source, path)
            os.utime(path, (3, 3))
        elif kind == "hard":
            os.link(os.path.realpath(source), path)
        else:
            path.symlink_to(source)
    (folder / "d").symlink_to(folder / "b", target_is_directory=True)
    return paths


def disturb(rng: np.random.Generator, paths: list[Path], planted: Vectors) -> None:
    """Rename, delete, overwrite and link some files."""
    for path in rng.choice(np.array(paths, object), 8, replace=False):
        what = rng.choice(["rename", "delete", "overwrite", "copy", "link"])
        if not os.path.lexists(path):
            continue
        if what == "overwrite" and path.exists() and not path.is_symlink():
            plant(planted, path, rng.normal(size=3), seed=int(rng.integers(1e9)))
            continue
        path.unlink() if what != "rename" else path.rename(path.with_name(f"renamed {path.name}"))
        other = paths[int(rng.integers(len(paths)))]
        if what == "copy" and other.is_file():
            shutil.copy(other, path)
        elif what == "link" and other != path:
            path.symlink_to(other)


@pytest.mark.parametrize("mode", ["fresh", "index", "overlap", "against index", "own index", "both"])
@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_lost_by_deleting_every_duplicate(tmp_path: Path, planted, sure, build, duplicates, rows, mode: str,
                                                     seed: int) -> None:
    rng = np.random.default_rng([seed, len(mode)])
    folder = tmp_path / "disk"
    paths = random_disk(rng, folder, planted)
    images, against = [folder, folder / "d"], None
    parts = [folder / "a", folder / "b", folder / "b" / "c", folder / "d", folder]
    if mode in ("overlap", "against index", "own index", "both"):
        images, against = (parts[i] for i in rng.integers(0, len(parts), 2))
    if mode in ("index", "own index", "both"):
        build(index=tmp_path / "images", images=images)
        images = tmp_path / "images"
    if mode in ("against index", "both"):
        build(index=tmp_path / "against", images=against)
        against = tmp_path / "against"
    if mode not in ("fresh", "overlap"):
        disturb(rng, paths, planted)
        for path in paths:  # what leads nowhere is not listed
            if path.is_symlink() and not path.exists():
                path.unlink()
    keep = [["pixels"], ["newest"], ["shortest", "oldest"], [f"folder:{folder / 'b'}", "format:png"]][seed]
    found = rows(duplicates(images=images, against=against, out=tmp_path / "out", k=int(rng.choice([3, 20])), keep=keep,
                            **PLAIN) / "actions.csv")
    wanted = {row["path"]: row for row in found if row["action"] == "duplicate"}
    before = {path: digest(path) for path in wanted}
    kept = {row["path"] for row in found if row["action"] == "keep"}
    assert len(wanted) == sum(row["action"] == "duplicate" for row in found)
    for path in wanted:
        os.unlink(path)
    for path, row in wanted.items():
        of = row["of"]
        assert os.path.isfile(of) and of not in wanted, row
        assert digest(of) == before[path] or planted[digest(of)] @ planted[before[path]] >= 0.9 - 1e-6, row
        assert against is not None or of in kept
