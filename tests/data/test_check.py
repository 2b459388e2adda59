"""`rdcd check-data`: what is whole passes, what is not is named, and own data may have any size."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from miniatures import make_cd10k, make_disc, make_ndec, make_pairs, make_sscd, scene

from rdcd import cli
from rdcd.data import check as checking
from rdcd.data import check_parts, official
from rdcd.data import scan as scanning
from rdcd.data.check import check_data
from rdcd.data.images import find_images
from rdcd.data.layouts import LAYOUTS, open_layout
from rdcd.data.official import Ids
from rdcd.data.scan import in_blocks, pictures, scan, walk
from rdcd.errors import ChecksFailed, UserError

SMALL = {"references": 6, "train": 4, "pairs": 3}
MAKERS = {"disc": lambda root: make_disc(root, **SMALL, queries=5),
          "ndec": lambda root: make_ndec(root, **SMALL, hard_negatives=2, distractors=2),
          "cd10k": lambda root: make_cd10k(root, originals=2, strong=3, distractors=3, train=2),
          "pairs": lambda root: make_pairs(root, pictures=5, pairs=3, distractors=2, background=2)}


def failures(root: Path, out: Path | None = None, **options) -> dict[str, dict]:
    """Check → its record, of the checks that fail; the verdict of the whole is theirs."""
    out = out or root.parent / f"{root.name}-checks.json"
    try:
        checks = check_data(root=root, out=out, **options)
    except ChecksFailed as error:
        record = json.loads(out.read_text())
        failed = {check["check"]: check for check in record["checks"] if check["verdict"] == "FAILED"}
        assert f"{len(failed)} of {len(record['checks'])} checks of {root} failed: {', '.join(failed)};" in str(error)
        assert len(failed) == record["failed"] > 0 and all(check["advice"] for check in failed.values())
        assert all(page in check["advice"] for check in failed.values() for page in check["page"].split())
        return failed
    assert all(check.verdict != "FAILED" for check in checks)
    return {}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_whole_miniature_passes_in_every_layout(tmp_path: Path, layout: str,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    root = MAKERS[layout](tmp_path / "root")
    checks = {check.check: check for check in check_data(root=root, layout=layout)}
    said = capsys.readouterr().out
    assert f"layout={layout}" in said and "FAILED" not in said
    for check in checks.values():
        assert check.verdict == "ok" or "another size" in check.advice or check.check == "hard negatives", check
    if layout != "pairs":
        assert any(check.verdict == "note" for check in checks.values())
        assert "compare with each other, not with published ones" in said


def test_sscds_names_pass_too(tmp_path: Path) -> None:
    root = make_sscd(tmp_path / "root", **SMALL, queries=5, under="images")
    assert failures(root) == {}
    found = {check.check: check.found for check in check_data(root=root)}
    assert found["references: pictures"] == "6 in images/val_ref"
    assert set(failures(root, split="final")) == {"ground truth", "queries: pictures"}


def test_what_this_project_makes_passes(benchmark_root: Path, tmp_path: Path) -> None:
    assert failures(benchmark_root, out=tmp_path / "checks.json") == {}


def test_the_file_says_what_the_table_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = MAKERS["disc"](tmp_path / "root")
    (root / "images" / "dev_queries" / "Q00004.jpg").write_bytes(b"")
    failed = failures(root, out=tmp_path / "new" / "checks.json", samples=0)
    assert set(failed) == {"queries: files"} and "Q00004.jpg (empty)" in failed["queries: files"]["found"]
    record = json.loads((tmp_path / "new" / "checks.json").read_text())
    assert (record["root"], record["layout"], record["split"]) == (str(root), "disc", "dev")
    assert record["provenance"]["seed"] == 0 and "versions" in record["provenance"]
    said = capsys.readouterr().out
    for check in record["checks"]:
        assert check["check"] in said and check["advice"] in said


BREAKS: dict[str, dict[str, Callable[[Path], object]]] = {
    "disc": {
        "references: pictures": lambda root: shutil.rmtree(root / "images" / "references"),
        "train: pictures": lambda root: [path.unlink() for path in (root / "images/train").rglob("*.jpg")],
        "references: names": lambda root: shutil.copy(root / "images/references/refs_50k_0/R000000.jpg",
                                                      root / "images/references/R000000.jpg"),
        "queries: decoding": lambda root: (root / "images/dev_queries/Q00002.jpg").write_bytes(b"no picture"),
        "train: files": lambda root: (root / "images/train/T9.jpg").symlink_to(root / "nowhere"),
        "ground truth": lambda root: (root / "dev_ground_truth.csv").write_text("Q00000,R000000\nQ00000,R000000\n"),
        "ground truth: queries": lambda root: (root / "dev_ground_truth.csv").write_text("Q00009,R000000\n"),
        "ground truth: references": lambda root: (root / "dev_ground_truth.csv").write_text("Q00000,R000009\n"),
    },
    "ndec": {
        "queries: pictures": lambda root: shutil.rmtree(root / "NDEC_test_query"),
        "hard negatives": lambda root: (root / "hard_negatives.csv").write_text("Q00000\n"),
        "ground truth": lambda root: (root / "public_ground_truth_h5.csv").unlink(),
    },
    "cd10k": {
        "copydays: blocks": lambda root: shutil.rmtree(root / "jpegqual" / "8"),
        "distractors: pictures": lambda root: shutil.rmtree(root / "distractors"),
        "copydays: names": lambda root: shutil.copy(root / "crops/10/200000.jpg", root / "crops/10/200000.png"),
        "ground truth": lambda root: (root / "strong/200001.jpg").rename(root / "strong/900001.jpg"),
    },
    "pairs": {
        "ground truth": lambda root: (root / "2024" / "photo0.jpg").unlink(),
        "folder: pictures": lambda root: [path.unlink() for path in root.rglob("*.jpg")],
    },
}
STILL_OPEN = {"queries: decoding", "train: files",  # an evaluation counts unreadable pictures as not found,
              "copydays: names"}  # and tells apart those of one name


@pytest.mark.parametrize(("layout", "check"), [(layout, check) for layout in BREAKS for check in BREAKS[layout]])
def test_every_break_is_named_and_a_benchmark_that_does_not_open_fails(tmp_path: Path, layout: str,
                                                                       check: str) -> None:
    root = MAKERS[layout](tmp_path / "root")
    BREAKS[layout][check](root)
    failed = failures(root, layout=layout)
    assert check in failed
    for found in failed.values():  # own data is on no page
        assert bool(found["page"]) == (layout != "pairs") and found["page"].startswith("http" * (layout != "pairs"))
    if check not in STILL_OPEN:
        with pytest.raises(UserError):
            open_layout(layout, root)


def test_equal_names_of_training_pictures_are_no_failure(tmp_path: Path) -> None:
    root = MAKERS["disc"](tmp_path / "root")
    train = root / "images" / "train"
    first = next(train.rglob("*.jpg"))
    shutil.copy(first, first.with_suffix(".png"))
    assert failures(root) == {}
    benchmark = open_layout("disc", root)
    assert {first.name, first.with_suffix(".png").name} <= set(benchmark.background.names)
    reference = next((root / "images" / "references").rglob("R000000.jpg"))
    shutil.copy(reference, reference.with_suffix(".png"))
    with pytest.raises(UserError, match="R000000 may be R000000.jpg or R000000.png: write which"):
        open_layout("disc", root)


def test_ids_are_compared_in_nfc(tmp_path: Path) -> None:
    root = MAKERS["disc"](tmp_path / "root")
    table = root / "dev_ground_truth.csv"
    for path in (root / "images" / "references").rglob("R000000.jpg"):
        path.rename(path.with_name("e\u0301.jpg"))
    table.write_text(table.read_text().replace("R000000", "é"))
    assert failures(root) == {} and "é" in open_layout("disc", root).references.names


def test_a_plain_folder(tmp_path: Path, fill, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "photos" / "a", ["1", "2"])
    fill(tmp_path / "photos" / "b", ["3"])
    assert failures(tmp_path / "photos", layout="folder") == {}
    fill(tmp_path / "photos" / "c", ["2"], bad=("2",))
    failed = failures(tmp_path / "photos", layout="folder")
    assert set(failed) == {"folder: decoding"}  # equal names are told apart
    assert "no sound file of the formats JPEG" in failed["folder: decoding"]["found"]
    capsys.readouterr()
    assert "layout" in failures(tmp_path / "photos")  # not in the DISC layout
    assert "or folder for pictures to train on" in capsys.readouterr().out


def test_archives_that_were_not_unpacked_are_seen(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for shard in range(3):
        (tmp_path / "photos" / f"train_50k_{shard}.zip").write_bytes(b"zip")
    failed = failures(tmp_path / "photos", layout="folder")["folder: pictures"]
    assert "0 in" in failed["found"] and "beside 3 .zip" in failed["found"] and "unpack" in failed["advice"]


def test_names_of_any_bytes_are_written(tmp_path: Path, fill, capsys: pytest.CaptureFixture[str]) -> None:
    root = fill(tmp_path / os.fsdecode(b"r\xff"), ["plain"])
    for name in (b"x\xff.jpg", b"x\xff.png", b"note.\xfe", b"d\xff/y.jpg", b"d\xff/y.png", b"e\xff/y.png"):
        path = root / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no picture")
    out = tmp_path / "checks.json"
    with pytest.raises(ChecksFailed, match="checks of .* failed"):
        check_data(root=root, layout="folder", out=out)
    record = json.loads(out.read_text(encoding="utf-8"))
    found = {check["check"]: check["found"] for check in record["checks"]}
    assert record["root"] == rf"{tmp_path}/r\xff" and r"x\xff in " in found["folder: names"]
    assert r"/r\xff/d\xff" in found["folder: names"] and found["folder: names"].startswith("3 not so")
    assert r"/r\xff/x\xff.jpg (its name is not UTF-8)" in found["folder: files"]
    assert r"x\xff in " in capsys.readouterr().out.replace("\n", "")
    assert scan({"": root}, samples=0).others == {r".\xfe": 1}


def test_parts_that_overlap_fail(tmp_path: Path) -> None:
    root = MAKERS["disc"](tmp_path / "root")
    shutil.rmtree(root / "images" / "train")
    (root / "images" / "train").symlink_to(root / "images" / "references")
    failed = failures(root)
    assert set(failed) == {"folders"} and "are one folder" in failed["folders"]["found"]
    assert failed["folders"]["page"] == official.DISC_PAGE.url
    root = MAKERS["cd10k"](tmp_path / "cd10k")
    failed = failures(root, layout="cd10k", distractors=root)
    assert "lie one within the other" in failed["folders"]["found"]
    root = make_pairs(tmp_path / "pairs", pictures=5, pairs=3, distractors=2, background=2, apart=True)
    assert "ground truth" in failures(root, layout="pairs", background=root / "references")


def test_every_failure_names_the_page_of_what_failed(tmp_path: Path) -> None:
    root = MAKERS["ndec"](tmp_path / "ndec")
    shutil.rmtree(root / "DISC" / "images" / "train")
    (root / "public_ground_truth_h5.csv").write_text("Q00000,R9\nQ9,R000000\n")
    failed = failures(root, layout="ndec")
    pages = {name: check["page"] for name, check in failed.items()}
    ndec, disc = official.NDEC_PAGE.url, official.DISC_PAGE.url
    assert pages == {"train: pictures": disc, "ground truth: queries": ndec,
                     "ground truth: references": f"{ndec} {disc}"}
    root = MAKERS["cd10k"](tmp_path / "cd10k")
    shutil.rmtree(root / "distractors")
    shutil.rmtree(root / "strong")
    failed = failures(root, layout="cd10k")
    assert failed["distractors: pictures"]["page"] == "http://www.multimediacommons.org"
    assert failed["copydays: blocks"]["page"] == "https://lear.inrialpes.fr/~jegou/data.php#copydays"


def test_what_this_project_made_is_on_no_page(tmp_path: Path) -> None:
    root = MAKERS["disc"](tmp_path / "root")
    (root / "benchmark.json").write_text("{}")
    (root / "images" / "dev_queries" / "Q00004.jpg").write_bytes(b"")
    failed = failures(root)["queries: decoding"]
    assert failed["page"] == "" and "make it again, as benchmark.json says" in failed["advice"]


def test_all_pictures_are_decoded_where_a_sample_misses_one(tmp_path: Path, fill,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path / "photos", [f"p{i}" for i in range(8)])
    fill(root / "deep", ["z"])
    drawn, = scan({"": root}, samples=1).sample
    bad = next(path for path in root.glob("*.png") if path != drawn)
    bad.write_bytes(b"no picture")
    assert failures(root, layout="folder", samples=1) == {} == failures(root, layout="folder", samples=0)
    for block in (100, 2):
        monkeypatch.setattr(scanning, "BLOCK", block)
        failed = failures(root, layout="folder", samples=None)
        assert set(failed) == {"folder: decoding"} and failed["folder: decoding"]["expected"] == "all 9 decode"
        assert failed["folder: decoding"]["found"].startswith(f"1 not so: {bad} (no sound file")


def test_several_processes_find_what_one_finds(tmp_path: Path) -> None:
    root = MAKERS["pairs"](tmp_path / "root")
    sums = tmp_path / "sums"
    check_data(root=root, layout="pairs", write_checksums=sums)
    (root / "2024" / "photo1.jpg").write_bytes(b"no picture")
    (root / "background" / "other1.jpg").unlink()
    found = [failures(root, layout="pairs", samples=None, checksums=sums, workers=workers) for workers in (1, 2)]
    assert found[0] == found[1]
    assert set(found[0]) == {"folder: decoding", "checksums: files", "checksums: contents"}


def test_a_few_files_start_no_processes_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def maps(workers: int | None) -> Iterator[Callable]:
        yield lambda function, jobs, label: workers

    monkeypatch.setattr(checking, "process_map", maps)
    for workers, count, taken in ((None, checking.FEW - 1, 1), (None, checking.FEW, None), (3, 1, 3), (1, 9999, 1)):
        with checking._processes(workers) as run:
            assert run(abs, [0] * count, "label") == taken


def test_blocks_keep_order_and_hold_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "BLOCK", 3)
    taken, labels = [], []

    def run(function: Callable, jobs: list[str], label: str) -> Iterator[int]:
        labels.append(label)
        return map(function, jobs)

    results = in_blocks(run, len, (taken.append(i) or "x" * i for i in range(7)), "reading")
    assert next(results) == ("", 0) and taken == [0, 1, 2]
    assert [("", 0), *results] == [("x" * i, i) for i in range(7)]
    assert labels == ["reading", "reading, 3 done", "reading, 6 done"]


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published dataset whole, were it of 20 references in shards of 5, 10 training pictures and 8 queries."""
    monkeypatch.setattr(official, "REFERENCES", Ids("R", 6, 0, 20))
    monkeypatch.setattr(official, "TRAIN", Ids("T", 6, 0, 10))
    monkeypatch.setattr(official, "QUERIES", {"dev": Ids("Q", 5, 0, 8), "final": Ids("Q", 5, 50_000, 8)})
    monkeypatch.setattr(official, "PAIRS", {"dev": {8: 4, 4: 2}, "final": {8: 4}})
    monkeypatch.setattr(check_parts, "SHARD", 5)
    root = tmp_path / "root"
    parts = (("references", "R", 6, 20), ("train", "T", 6, 10), ("dev_queries", "Q", 5, 8))
    for folder, letter, digits, count in parts:
        (root / "images" / folder).mkdir(parents=True)
        for i in range(count):
            scene(i, 16).save(root / "images" / folder / f"{letter}{i:0{digits}d}.jpg")
    (root / "dev_ground_truth.csv").write_text("".join(f"Q0000{i},R0000{i:02d}\n" for i in range(4)))
    return root


def test_the_published_dataset_passes_without_a_note(published: Path) -> None:
    assert {check.verdict for check in check_data(root=published)} == {"ok"}


def test_what_the_published_dataset_lacks_is_said_by_shard(published: Path) -> None:
    for i in (5, 6, 7, 8, 9, 17):
        (published / "images" / "references" / f"R{i:06d}.jpg").unlink()
    failed = failures(published)
    assert set(failed) == {"references: pictures", "references: ids"}
    assert failed["references: pictures"]["expected"] == "20"
    assert failed["references: pictures"]["found"] == "14 in images/references"
    assert failed["references: ids"]["found"] == ("6 missing: R000005, R000006, R000007, …; by shard "
                                                  "1 (R000005 on): all, 3 (R000015 on): 1")
    assert "https://ai.meta.com/datasets/disc21-dataset/" in failed["references: ids"]["advice"]


def test_own_data_under_published_names_may_have_any_size(published: Path) -> None:
    for i in range(4, 20):
        (published / "images" / "references" / f"R{i:06d}.jpg").unlink()
    for i in range(3, 10):
        (published / "images" / "train" / f"T{i:06d}.jpg").unlink()
    (published / "benchmark.json").write_text("{}")  # make-benchmark's
    assert failures(published) == {}
    (published / "benchmark.json").unlink()  # eight queries make it look like the published one
    assert {"references: ids", "train: ids"} <= set(failures(published))


def test_the_first_half_of_the_queries_has_pairs_of_its_own(published: Path) -> None:
    for i in range(4, 8):
        (published / "images" / "dev_queries" / f"Q0000{i}.jpg").unlink()
    failed = failures(published)
    assert set(failed) == {"ground truth: pairs"} and failed["ground truth: pairs"]["expected"] == "2"
    (published / "dev_ground_truth.csv").write_text("Q00000,R000000\nQ00003,R000001\n")
    assert failures(published) == {}


def test_queries_of_the_other_split_are_seen(published: Path) -> None:
    for i in range(8):
        path = published / "images" / "dev_queries" / f"Q0000{i}.jpg"
        path.rename(path.with_name(f"Q5000{i}.jpg"))
    failed = failures(published)["queries: ids"]
    assert "8 missing" in failed["found"] and "8 of another form: Q50000" in failed["found"]
    assert failed["expected"] == "Q00000 – Q00007"


def test_published_copydays_must_be_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = MAKERS["cd10k"](tmp_path / "root")
    sizes = {block: 3 if block == "strong" else 2 for block in official.COPYDAYS}
    monkeypatch.setattr(official, "COPYDAYS", sizes)
    monkeypatch.setattr(official, "DISTRACTORS", 4)
    assert set(failures(root, layout="cd10k")) == {"distractors: pictures"}
    monkeypatch.setattr(official, "DISTRACTORS", 3)
    shutil.rmtree(root / "train")
    assert failures(root, layout="cd10k") == {}  # whitening can be done without
    (root / "crops" / "10" / "200100.jpg").unlink()
    failed = failures(root, layout="cd10k")
    assert set(failed) == {"copydays: pictures", "copydays: blocks"}
    assert failed["copydays: blocks"]["found"] == "crops/10 1"


def test_published_ndec_counts_its_hard_negatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_ndec(tmp_path / "root", **SMALL, hard_negatives=2, distractors=2)
    monkeypatch.setattr(official, "NDEC_QUERIES", 7)
    monkeypatch.setattr(official, "NDEC_HARD_NEGATIVES", 2)
    monkeypatch.setattr(official, "REFERENCES", Ids("R", 6, 0, 1_000_000))
    found = {check["check"]: check for check in failures(root, layout="ndec").values()}
    assert "hard negatives" not in found  # four by the ground truth: a note, as no list says otherwise
    (root / "hard_negatives.csv").write_text("Q00005\n")
    assert failures(root, layout="ndec")["hard negatives"]["found"] == "1 (hard_negatives.csv)"
    (root / "hard_negatives.csv").write_text("Q00005\nQ00006\n")
    assert "hard negatives" not in failures(root, layout="ndec")


def test_a_scan_sees_what_a_listing_sees(tmp_path: Path, fill) -> None:
    fill(tmp_path / "root" / "b", ["x.1", "y"])
    fill(tmp_path / "root" / "a" / "deep", ["z", ".hidden"])
    fill(tmp_path / "linked", ["w"])
    (tmp_path / "root" / "c").symlink_to(tmp_path / "linked")
    (tmp_path / "root" / "again").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "notes.txt").write_text("no picture")
    (tmp_path / "root" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    found = scan({"": tmp_path / "root"}, samples=99, wanted=["z", "w", "nobody"])
    assert found.sample == find_images(tmp_path / "root") and found.count == 5
    assert found.absent == {"nobody"} and found.others == {".txt": 1}
    assert str(found.unusable) == rf"{tmp_path}/root/caf\xe9.png (its name is not UTF-8)"


def test_twins_of_one_folder_are_told_apart(tmp_path: Path) -> None:
    for name in ("q.jpg", "q.png", "r.png"):
        (tmp_path / name).touch()
    assert str(scan({"": tmp_path}, samples=0).twins) == f"q in {tmp_path} and {tmp_path / 'q.png'}"


def test_a_walk_is_sorted_by_bytes(tmp_path: Path, fill) -> None:
    for folder in ("a", "a-b", "b", "\U0001f600", "a/c", "a!"):
        fill(tmp_path / folder, ["x", "a", "\uffff", ".h"])
    fill(tmp_path, ["a", "b", "a.b"])
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "notes.txt").write_text("no picture")
    plain = [os.fsencode(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")
             if path.suffix == ".png" and path.name != ".h.png"]
    assert list(map(os.fsencode, pictures(tmp_path))) == sorted(plain)
    walked = [(os.path.join(top, file), f"{tmp_path}/{below}{file}") for top, below, file in walk(tmp_path)]
    assert all(path == other for path, other in walked) and len(walked) == len(plain) + 2


def test_the_sample_is_of_seed_and_paths_alone(tmp_path: Path, fill) -> None:
    fill(tmp_path / "one", [f"p{i}" for i in range(30)])
    fill(tmp_path / "other", [f"p{i}" for i in reversed(range(30))])

    def names(folder: str, seed: int) -> list[str]:
        return [path.name for path in scan({"": tmp_path / folder}, samples=5, seed=seed).sample]

    assert names("one", 0) == names("other", 0) != names("one", 1) and len(set(names("one", 0))) == 5
    assert set(names("one", 0)) < {path.name for path in (tmp_path / "one").iterdir()}


def test_names_are_those_of_a_manifest(tmp_path: Path) -> None:
    root = MAKERS["cd10k"](tmp_path)
    benchmark = open_layout("cd10k", root)
    folders = {name: root / name for name in ("original", "distractors")}
    assert scan(folders, wanted=benchmark.references.names).absent == set()


@pytest.mark.parametrize("ids", [Ids("R", 6, 0, 1_000_000), Ids("Q", 5, 50_000, 50_000)])
def test_numbered_names(ids: Ids) -> None:
    for place in (0, 7, ids.count - 1):
        name = f"{ids.letter}{ids.first + place:0{ids.digits}d}"
        assert ids.name(place) == name and ids.place(name) == place
    for name in ("", "R", "Q00000", "Q100000", "R0000001", "T000001", "R00000a", "R0000٣٣", "r000001"):
        assert ids.place(name) is None


@pytest.mark.parametrize(("options", "said"), [
    ({"layout": "coco"}, "layout='coco': expected one of disc, ndec, cd10k, pairs, folder"),
    ({"layout": "folder", "split": "final"}, "split=final says nothing about layout=folder"),
    ({"split": "test"}, "split='test': expected one of dev, final"),
    ({"samples": -1}, "samples=-1.*null for every picture"), ({"seed": 0.5}, "seed=0.5"),
    ({"workers": 0}, "workers=0: .*null for one process a core"), ({"workers": "all"}, "workers=all"),
    ({"checksums": 3}, "^checksums=3: expected a path"), ({"checksums": "none"}, "checksums=none cannot be read"),
    ({"write_checksums": 3}, "^write_checksums=3: expected a path"), ({"write_checksums": "/"}, "/ is a folder"),
    ({"checksums": "a", "write_checksums": "b"}, "checksums=a and write_checksums=b: one of the two"),
    ({"root": "nowhere"}, "root=nowhere: no such folder"),
    ({"root": 2024}, "^root=2024: expected a path"),
    ({"layout": ["disc"]}, r"layout=\['disc'\]: expected one of disc"),
    ({"split": ["dev"]}, r"split=\['dev'\]: expected"),
    ({"layout": "pairs", "pairs": 7}, "^pairs=7: expected a path"),
    ({"layout": "pairs", "background": ["a"]}, r"^background=\['a'\]: expected a path"),
    ({"layout": "cd10k", "distractors": False}, "^distractors=False: expected a path"),
    ({"out": 1}, "^out=1: expected a path"), ({"out": ["a"]}, r"^out=\['a'\]: expected a path")])
def test_arguments_that_are_not_understood(tmp_path: Path, options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_data(**{"root": tmp_path, **options})


def command(*words: str) -> int:
    """The exit code."""
    try:
        return cli.main(["check-data", *words])
    except SystemExit as stopped:
        return stopped.code


def test_the_command_exits_with_1_after_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    root = MAKERS["disc"](tmp_path / "root")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["rdcd"])
    assert command(f"root={root}", "samples=2") == 0
    shutil.rmtree(root / "images" / "train")
    assert command(f"root={root}", "samples=2") == 1
    said = capsys.readouterr()
    assert "train: pictures" in said.out and "1 of " in said.err
    assert command(f"root={root}", "samples=-2") == 2 and capsys.readouterr().out == ""


def test_standard_output_is_the_json_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    root = MAKERS["disc"](tmp_path / "root")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["rdcd"])
    sums = f"write_checksums={tmp_path / 'sums'}"
    for code, words in ((0, ["samples=null", sums]), (1, []), (2, ["samples=-2"])):
        assert command(f"root={root}", "out=-", *words) == code
        said = capsys.readouterr()
        if code == 2:
            assert said.out == "" and "samples=-2" in said.err
            continue
        record = json.loads(said.out)
        assert (record["failed"] > 0) == (code == 1) and "queries: pictures" in said.err
        assert all(set(check) == {"check", "expected", "found", "verdict", "advice", "page"}
                   for check in record["checks"])
        shutil.rmtree(root / "images" / "train", ignore_errors=True)
    assert not (tmp_path / "-").exists()
