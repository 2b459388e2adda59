import hashlib
import json
import os
import shutil
import tracemalloc
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from miniatures import save, scene

from rdcd.collection import matching
from rdcd.collection.matching import find_pairs
from rdcd.collection.pictures import Embedder, Shard
from rdcd.collection.scoring import Scoring
from rdcd.errors import UserError
from rdcd.retrieval.index import Index


def names(row: dict[str, str], *columns: str) -> tuple[str, ...]:
    return tuple(Path(row[column]).name if column in ("path", "of", "first", "second", "query", "match")
                 else row[column] for column in columns)


def contents(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_pairs_are_those_of_a_plain_loop(album: Path, copies: Path, tmp_path: Path, build, duplicates, rows) -> None:
    index = build(index=tmp_path / "index", images=[album, copies])
    vectors = index.vectors(np.arange(len(index))).astype(np.float64)
    files = list({index.digest(row): row for row in range(len(index))}.values())  # equal ones count once
    off = [np.mean(sorted(vectors[files] @ vector, reverse=True)[10:13]) for vector in vectors]
    want = {}
    for a, b in combinations(range(len(index)), 2):
        score = min(vectors[a] @ vectors[b] - off[a], vectors[a] @ vectors[b] - off[b])
        if score >= 0.02:
            want[index.path(a), index.path(b)] = score
    out = duplicates(images=[album, copies], model="thumbnail", out=tmp_path / "out", threshold=0.02, k=29)
    got = {(row["first"], row["second"]): float(row["score"]) for row in rows(out / "pairs.csv")}
    assert got == pytest.approx(want, abs=1e-6) and len(want) > 5
    record = json.loads((out / "pairs.json").read_text(encoding="utf-8"))
    assert len(record["pairs"]) == len(want) and record["pictures"] == 30 and record["threshold"] == 0.02
    again = duplicates(images=tmp_path / "index", out=tmp_path / "again", threshold=0.02, k=29)
    assert (again / "pairs.csv").read_bytes() == (out / "pairs.csv").read_bytes()
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_groups_and_suggestions(album: Path, tmp_path: Path, duplicates, rows) -> None:
    for name in ("p02", "p06"):  # larger, smaller and equal ones
        save(scene(int(name[1:])).resize((120, 96)), album / "large" / f"{name}.jpg")
    shutil.copy(album / "2024" / "p08.jpg", album / "copy of p08.jpg")
    os.utime(album / "copy of p08.jpg", (1, 1))
    save(scene(2).crop((1, 1, 58, 46)), album / "crop.jpg")
    before = contents(album)
    out = duplicates(images=album, model="thumbnail", out=tmp_path / "out")
    assert contents(album) == before
    actions = rows(out / "actions.csv")
    groups = {}
    for row in actions:
        groups.setdefault(row["group"], []).append(names(row, "path", "action", "of"))
    assert list(groups) == ["1", "2", "3"]
    assert groups["1"][0] == ("p02.jpg", "keep", "") and {row[1] for row in groups["1"][1:]} == {"review"}
    assert {row[0] for row in groups["1"]} == {"p02.jpg", "crop.jpg"} and len(groups["1"]) == 3
    assert sorted(map(tuple, [groups["2"], groups["3"]])) == [
        (("copy of p08.jpg", "keep", ""), ("p08.jpg", "duplicate", "copy of p08.jpg")),  # the older one is kept
        (("p06.jpg", "keep", ""), ("p06.jpg", "review", "p06.jpg"))]
    kept = next(row for row in actions if names(row, "path", "action") == ("p06.jpg", "keep"))
    assert Path(kept["path"]).parent.name == "large" and kept["width"] == "120" and kept["score"] == ""


def test_sure_copies_are_called_duplicates(album: Path, tmp_path: Path, duplicates, rows, monkeypatch) -> None:
    save(scene(2), album / "again.png")
    load = Embedder.load.__func__

    def calibrated(cls, *args, **kwargs):
        made = load(cls, *args, **kwargs)
        row = {"codec": "Flat", "score_norm": "1.0[10,12]", "precision": 0.99, "threshold": 0.5, "benchmark": "ours"}
        return Embedder(made.network, made.card | {"calibration": [row]}, made.about, made.settings)

    monkeypatch.setattr(Embedder, "load", classmethod(calibrated))
    out = duplicates(images=album, model="thumbnail", out=tmp_path / "out", precision=0.99)
    rest = [row for row in rows(out / "actions.csv") if row["action"] != "keep"]
    assert [names(row, "action", "confidence", "reason") for row in rest] == [("duplicate", "0.99", "alike")]
    assert json.loads((out / "actions.json").read_text())["calibrated_on"] == "ours"


@pytest.mark.parametrize("own_index", [False, True])
@pytest.mark.parametrize("other_index", [False, True])
def test_against_another_collection(album: Path, copies: Path, tmp_path: Path, build, duplicates, rows, own_index,
                                    other_index) -> None:
    images, against = copies, album
    if own_index:
        build(index=tmp_path / "a", images=copies)
        images = tmp_path / "a"
    if other_index:
        build(index=tmp_path / "b", images=album)
        against = tmp_path / "b"
    out = duplicates(images=images, against=against, out=tmp_path / "out", model="thumbnail")
    best = {names(row, "path"): names(row, "of", "action", "reason") for row in rows(out / "actions.csv")}
    assert best == {("copy0.jpg",): ("p00.jpg", "review", "alike"), ("copy1.jpg",): ("p01.jpg", "review", "alike"),
                    ("copy2.jpg",): ("p02.jpg", "review", "alike"),
                    ("same.jpg",): ("p06.jpg", "duplicate", "identical file")}
    assert {Path(row["query"]).name for row in rows(out / "matches.csv")} == {name for name, in best}
    assert ("broken.jpg" in (out / "bad_files.csv").read_text()) if not own_index else not (
        out / "bad_files.csv").exists()


def test_a_collection_against_itself_has_no_self_matches(album: Path, tmp_path: Path, duplicates, rows) -> None:
    out = duplicates(images=album, against=album, out=tmp_path / "out", model="thumbnail")
    assert rows(out / "matches.csv") == [] == rows(out / "actions.csv")
    assert "nothing scores" in (out / "gallery.html").read_text(encoding="utf-8")


def test_a_bad_picture_of_both_collections_counts_once(album: Path, tmp_path: Path, duplicates, capsys) -> None:
    (album / "broken.jpg").write_text("x")
    duplicates(images=album, against=album, out=tmp_path / "out", model="thumbnail", gallery=0)
    assert "\n1 pictures could not be read" in capsys.readouterr().out


@pytest.mark.parametrize("count", [1, 2])
def test_one_and_two_pictures(tmp_path: Path, duplicates, rows, count: int) -> None:
    for i in range(count):
        save(scene(1), tmp_path / "few" / f"{i}.jpg")
    out = duplicates(images=tmp_path / "few", out=tmp_path / "out", model="thumbnail")
    assert len(rows(out / "pairs.csv")) == count - 1


def test_many_identical_files_are_one_group(tmp_path: Path, duplicates, rows) -> None:
    for i in range(40):
        save(scene(1 if i < 30 else i), tmp_path / "many" / f"{i:02d}.jpg")
    out = duplicates(images=tmp_path / "many", out=tmp_path / "out", model="thumbnail", k=5)
    assert len({row["group"] for row in rows(out / "actions.csv")}) == 1 and len(rows(out / "actions.csv")) == 30


@pytest.mark.parametrize(("asked", "said"), [
    ({}, "model=null: expected a model"), ({"images": ["index", "album"]}, "index is an index; expected it alone"),
    ({"images": "index", "background": "album"}, "is an index and has its background"),
    ({"images": "index", "model": "phash"}, "is of the model thumbnail .*and this is phash"),
    ({"images": "index", "codec": "L2norm,Flat"}, "was built with the codec 'Flat'")])
def test_refusals(album: Path, tmp_path: Path, build, duplicates, monkeypatch, asked: dict, said: str) -> None:
    build(index=tmp_path / "index", images=album)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        duplicates(**{"images": "album", "out": "out"} | asked)
    assert not (tmp_path / "out" / "pairs.csv").exists()


def synthetic(self: Embedder, paths, bad, *, label, known=lambda path: None):
    """Random descriptors, every hundredth that of the one before, in the place of extraction."""
    for start in range(0, len(paths), 256):
        part = list(paths[start:start + 256])
        vectors = np.random.default_rng(start).normal(size=(len(part), 243)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors[99::100] = vectors[98::100][:len(vectors[99::100])]
        digests = np.random.default_rng(start + 1).integers(0, 256, (len(part), 32)).astype(np.uint8)
        yield Shard(part, digests, vectors)


def test_memory_does_not_follow_the_collection(tmp_path: Path, build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Embedder, "shards", synthetic)
    monkeypatch.setattr(matching, "BLOCK", 256)
    monkeypatch.setattr("rdcd.retrieval.index._SAMPLE", 500)
    scoring = Scoring("1.0[10,12]", 0.5, None, "given")
    peaks, found = {}, {}
    for count in (1000, 4000):
        paths = [f"/pictures/{i:06d}.jpg" for i in range(count)]
        monkeypatch.setattr("rdcd.collection.index.list_pictures", lambda *args, **kwargs: paths)
        tracemalloc.start()
        build(index=tmp_path / str(count), images="-")
        index = Index.open(tmp_path / str(count))
        found[count] = len(find_pairs(index, scoring, k=5).scores)
        for _ in matching.find_matches(matching.blocks_of(index), index, scoring, k=5):
            pass
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert found == {count: count // 256 * 2 + (count % 256) // 100 for count in (1000, 4000)}
    descriptors = 4 * 243 * 3000
    assert peaks[4000] - peaks[1000] < descriptors / 4, peaks


def test_files_of_the_same_bytes_are_found_whatever_their_score(album: Path, tmp_path: Path, build, find, duplicates,
                                                                rows) -> None:
    """Of a picture that many are like, normalization may put a copy below any threshold."""
    shutil.copy(album / "2024" / "p08.jpg", album / "copy of p08.jpg")
    out = duplicates(images=album, model="thumbnail", out=tmp_path / "pairs", threshold=5)
    (pair,) = rows(out / "pairs.csv")
    assert {Path(pair["first"]).name, Path(pair["second"]).name} == {"p08.jpg", "copy of p08.jpg"}
    assert float(pair["score"]) < 5
    build(index=tmp_path / "index", images=album / "2024")
    (match,) = rows(find(index=tmp_path / "index", images=album, out=tmp_path / "found", threshold=5) / "matches.csv")
    assert names(match, "query", "match", "kind") == ("copy of p08.jpg", "p08.jpg", "identical file")
    (action,) = rows(duplicates(images=album / "copy of p08.jpg", against=tmp_path / "index", out=tmp_path / "against",
                                threshold=5) / "actions.csv")
    assert names(action, "path", "action", "of") == ("copy of p08.jpg", "duplicate", "p08.jpg")
