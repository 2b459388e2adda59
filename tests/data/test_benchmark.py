"""make-benchmark: a folder, or drawn pictures, into a benchmark whose ground truth is true."""

import csv
import hashlib
import inspect
import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import yaml
from PIL import Image, ImageOps

from rdcd.augment.edits import EDITS, apply_chain
from rdcd.data import benchmark_files
from rdcd.data.benchmark import make_benchmark
from rdcd.data.disc import open_benchmark, read_edit_families
from rdcd.data.folder import SHARES, _fill_sizes, split_folder
from rdcd.data.ledger import Ledger
from rdcd.data.parallel import process_map
from rdcd.data.synthetic import draw_picture
from rdcd.errors import UserError


def photo(seed, width=120, height=90):
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells in (3, 6, 12, 24):
        grid = (rng.random((cells, cells, 3)) * 255).astype(np.uint8)
        grid = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(grid) / cells**0.7
    total -= total.min()
    return Image.fromarray((255 * total / total.max()).astype(np.uint8))


def fill(folder, seeds):
    folder.mkdir(parents=True)
    for seed in seeds:
        photo(seed).save(folder / f"photo{seed:03d}.jpg", quality=92)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Thirty pictures, of which one is there twice, three have a near-duplicate, and two cannot be used."""
    folder = fill(tmp_path_factory.mktemp("photos") / "album", range(30))
    (folder / "more").mkdir()
    shutil.copy(folder / "photo000.jpg", folder / "more" / "again.jpg")
    ImageOps.mirror(photo(1)).save(folder / "more" / "mirrored.png")
    photo(2).resize((60, 45)).save(folder / "more" / "half.jpg")
    photo(3).crop((4, 3, 115, 88)).save(folder / "more" / "cropped.jpg", quality=70)
    (folder / "broken.jpg").write_bytes((folder / "photo004.jpg").read_bytes()[:900])
    photo(99, width=20, height=200).save(folder / "narrow.png")
    return folder


def split(photos, *, train_photos=None, seed=0, **sizes):
    with process_map(1) as run, TemporaryDirectory() as place:
        return split_folder(photos, train_photos=train_photos, seed=seed, run=run,
                            ledger=Ledger(Path(place, "bad_files.csv")),
                            sizes={"train": None, "references": None, "sources": None} | sizes)


def digests(root):
    """Hash every file but the record, which has the time and the command in it."""
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*")) if path.is_file() and path.name != "benchmark.json"}


def rows(root):
    with open(root / "dev_queries.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory):
    root = tmp_path_factory.mktemp("made") / "deep" / "benchmark"
    assert make_benchmark(source="folder", photos=photos, out=root, queries=12, workers=2) == root
    return root


def test_one_and_two_processes_write_the_same_bytes(photos, made, tmp_path):
    one = make_benchmark(source="folder", photos=photos, out=tmp_path / "one", queries=12, workers=1)
    assert digests(one) == digests(made)


def test_layout(made):
    benchmark = open_benchmark(made)
    record = json.loads((made / "benchmark.json").read_text())
    counts = record["counts"]
    assert counts == {"train": len(benchmark.background), "references": len(benchmark.references),
                      "sources": counts["sources"], "queries": 12, "distractors": 48, "identical": 1,
                      "near_duplicates": len(record["left_out"]), "bad": 2}
    assert benchmark.references.names == [f"R{i:06d}" for i in range(counts["references"])]
    assert benchmark.background.names == [f"T{i:06d}" for i in range(counts["train"])]
    assert benchmark.queries.names == [f"Q{i:05d}" for i in range(60)]
    for role in (benchmark.references, benchmark.background, benchmark.queries):
        for i in range(len(role)):
            with Image.open(role.path(i)) as picture:
                assert picture.format == "JPEG" and picture.mode == "RGB"
    assert record["provenance"]["seed"] == 0 and record["parameters"]["queries"] == 12


def test_ground_truth_and_queries_tell_the_same(made):
    listed = [(row["query_id"], row["reference_id"]) for row in rows(made)]
    with open(made / "dev_ground_truth.csv", newline="") as file:
        assert list(csv.reader(file)) == [["query_id", "reference_id"], *map(list, listed)]
    assert [query for query, _ in listed] == [f"Q{i:05d}" for i in range(60)]
    pairs = open_benchmark(made).pairs
    assert pairs == [pair for pair in listed if pair[1]] and len(pairs) == 12
    copied = [int(query[1:]) for query, _ in pairs]
    assert min(copied) < 20 and max(copied) > 40, "copies and distractors are mixed"
    families = read_edit_families(made)
    assert all(1 <= len(edits) <= 4 and set(edits) <= set(EDITS) for edits in families.values())


def test_sources_prove_the_ground_truth(photos, made):
    """No two roles share a file; a query's file is its reference's, and a distractor's is nobody's."""
    with open(made / "sources.csv", newline="") as file:
        sources = {row["id"]: row["source"] for row in csv.DictReader(file)}
    references = {name for key, name in sources.items() if key[0] == "R"}
    train = {name for key, name in sources.items() if key[0] == "T"}
    edited = {row["source"] for row in rows(made) if not row["reference_id"]}
    assert not references & train and not references & edited and not train & edited
    for row in rows(made):
        if row["reference_id"]:
            assert row["source"] == sources[row["reference_id"]]
    assert all((photos / name).is_file() for name in sources.values())


def test_recorded_edits_give_the_query(photos, made):
    """Those that show no second picture can be repeated from the record alone."""
    repeated = 0
    for row in rows(made):
        chain = json.loads(row["edits"])
        if any(EDITS[family].needs_other for family, _ in chain):
            continue
        with Image.open(photos / row["source"]) as source, Image.open(
                made / "images" / "dev_queries" / f"{row['query_id']}.jpg") as query:
            edited = apply_chain(source.convert("RGB"), chain)
            assert edited.size == query.size
            assert np.abs(np.asarray(edited).astype(int) - np.asarray(query)).mean() < 30
        repeated += 1
    assert repeated > 15


def test_every_reference_is_copied_once_before_one_is_copied_twice(made, photos, tmp_path):
    copied = [reference for _, reference in open_benchmark(made).pairs]
    references = len(open_benchmark(made).references)
    assert max(copied.count(name) for name in copied) == -(-12 // references)
    few = make_benchmark(source="folder", photos=photos, out=tmp_path / "few", references=3, queries=7,
                         workers=1)
    copied = [reference for _, reference in open_benchmark(few).pairs]
    assert sorted(copied.count(f"R{i:06d}") for i in range(3)) == [2, 2, 3]


def test_near_duplicates_are_left_out_of_every_role(photos):
    pairs = {frozenset((f"photo{seed:03d}.jpg", f"more/{copy}"))
             for seed, copy in ((1, "mirrored.png"), (2, "half.jpg"), (3, "cropped.jpg"))}
    found = set()
    for seed in range(4):
        roles = split(photos, seed=seed)
        pool = {p.name for p in roles.references + roles.sources}
        everywhere = pool | {p.name for p in roles.train}
        out = {item.name for item in roles.left_out}
        assert not out & everywhere
        for pair in pairs:  # both may be training pictures, but not if one of them is in the pool
            assert not (pair & pool) or len(pair & everywhere) == 1
        assert all(item.copy_of in pool for item in roles.left_out)
        assert {frozenset((item.name, item.copy_of)) for item in roles.left_out} <= pairs
        found |= {frozenset((item.name, item.copy_of)) for item in roles.left_out}
    assert found == pairs


def test_split_depends_on_content_and_seed_not_on_names(photos, tmp_path):
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for number, path in enumerate(sorted(photos.rglob("*.*"), reverse=True)):
        shutil.copy(path, renamed / f"{number:03d}{path.suffix}")

    def contents(roles):
        return [[hashlib.sha256(p.path.read_bytes()).hexdigest() for p in role]
                for role in (roles.train, roles.references, roles.sources)]

    assert contents(split(photos)) == contents(split(renamed))
    assert contents(split(photos)) != contents(split(photos, seed=1))


def test_bad_files_are_listed(made):
    with open(made / "bad_files.csv", newline="") as file:
        listed = {Path(row["path"]).name: row["reason"] for row in csv.DictReader(file)}
    assert set(listed) == {"broken.jpg", "narrow.png"} and "at least 32" in listed["narrow.png"]


def test_too_many_bad_files_end_it_with_a_list(photos, tmp_path):
    with pytest.raises(UserError, match=rf"2 of 35 pictures \(5.7%\) could not be read, more than max_bad_share=0.05 "
                                        rf"allows; .*; {tmp_path}/out-bad_files.csv lists all"):
        make_benchmark(source="folder", photos=photos, out=tmp_path / "out", workers=1, max_bad_share=0.05)
    assert [path.name for path in tmp_path.iterdir()] == ["out-bad_files.csv"]
    with pytest.raises(UserError, match="max_bad_share=2: expected a number"):
        make_benchmark(source="folder", photos=photos, out=tmp_path / "out", workers=1, max_bad_share=2)


def test_what_is_no_file_is_listed_too(tmp_path):
    album = fill(tmp_path / "album", range(12))
    os.mkfifo(album / "pipe.jpg")
    (album / "gone.jpg").symlink_to(album / "nowhere.jpg")
    photo(50).save(album / os.fsdecode(b"caf\xe9.jpg"))
    (album / os.fsdecode(b"bad\xe9.jpg")).write_bytes(b"no picture")
    root = make_benchmark(source="folder", photos=album, out=tmp_path / "out", workers=1, max_bad_share=0.5)
    with open(root / "bad_files.csv", newline="", encoding="utf-8") as file:
        listed = {Path(row["path"]).name: row["reason"] for row in csv.DictReader(file)}
    assert sorted(listed) == ["bad\\udce9.jpg", "gone.jpg", "pipe.jpg"]
    assert listed["pipe.jpg"] == "a pipe, not a file" and listed["gone.jpg"] == "No such file or directory"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["album", "out"]


def test_training_pictures_from_another_folder(photos, tmp_path):
    background = fill(tmp_path / "background", range(200, 208))
    shutil.copy(photos / "photo005.jpg", background / "the_same.jpg")
    photo(6).rotate(0).resize((100, 75)).save(background / "like_one.jpg")
    roles = split(photos, train_photos=background)
    pool = {p.name for p in roles.references + roles.sources}
    expected = {f"photo{seed}.jpg" for seed in range(200, 208)}
    assert {p.name for p in roles.train} == expected | (set() if "photo006.jpg" in pool else {"like_one.jpg"})
    assert len(pool) == 30 and len(roles.references) == pytest.approx(0.6 * 30, abs=2)


def test_sizes_given_are_kept_and_the_others_share_the_rest(photos):
    roles = split(photos, references=5)
    assert len(roles.references) == 5 and len(roles.sources) == 8
    roles = split(photos, train=4, references=5, sources=2)
    assert (len(roles.train), len(roles.references), len(roles.sources)) == (4, 5, 2)
    assert _fill_sizes({"train": None, "references": None, "sources": None}, SHARES, 100, photos) == {
        "train": 50, "references": 30, "sources": 20}
    assert _fill_sizes({"train": 60, "references": None, "sources": None}, SHARES, 100, photos) == {
        "train": 60, "references": 24, "sources": 16}


@pytest.mark.parametrize("sizes, message", [
    (dict(references=40), "references=40: .* has 35 different pictures, too few"),
    (dict(references=20, sources=15, train=1), "35 different pictures, too few"),
    (dict(references=15, sources=14, train=5), "5 training pictures wanted .* 2 files cannot be read"),
    (dict(references=17, sources=17), "34 references and sources .17 . 17. wanted"),
])
def test_more_than_there_is_is_refused_with_counts(photos, sizes, message):
    with pytest.raises(UserError, match=message):
        split(photos, **sizes)


def test_nothing_readable_is_refused_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "bad").mkdir()
    for i in range(6):
        (tmp_path / "bad" / f"{i}.jpg").write_bytes(bytes([i]) * 50)
    with pytest.raises(UserError, match="0 found: .* files cannot be read .the first: cannot read picture"):
        make_benchmark(source="folder", photos=tmp_path / "bad", out=tmp_path / "out", workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "out-bad_files.csv"]


def test_again_with_the_same_settings_does_nothing(made, photos, capsys):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert make_benchmark(source="folder", photos=photos, out=made, queries=12, workers=1) == made
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_a_place_that_is_taken_is_refused(made, photos, tmp_path):
    with pytest.raises(UserError, match="queries 12 there, 11 here; max_side null there, 80 here"):
        make_benchmark(source="folder", photos=photos, out=made, queries=11, max_side=80)
    with pytest.raises(UserError, match="holds no benchmark.json"):
        make_benchmark(source="synthetic", out=photos)
    album = fill(tmp_path / "album", range(6))
    root = make_benchmark(source="folder", photos=album, out=tmp_path / "out", workers=1)
    photo(7).save(album / "new.jpg")
    with pytest.raises(UserError, match=r"\(6 pictures.* there, .*\(7 pictures"):
        make_benchmark(source="folder", photos=album, out=root, workers=1)


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def stop(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark_files, "write_ground_truth", stop)
    (tmp_path / "out").mkdir()  # an empty folder is as good as none
    with pytest.raises(KeyboardInterrupt):
        make_benchmark(out=tmp_path / "out", train=2, references=2, size=48, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and not any((tmp_path / "out").iterdir())
    monkeypatch.undo()
    make_benchmark(out=tmp_path / "out", train=2, references=2, size=48, workers=1)
    assert (tmp_path / "out" / "benchmark.json").is_file()


def test_jpegs_are_copied_and_everything_else_is_encoded(tmp_path):
    album = fill(tmp_path / "album", range(3))
    photo(3).save(album / "other.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    photo(4).save(album / "turned.jpg", exif=turned)
    photo(5).convert("L").save(album / "grey.jpg")
    photo(6, width=400, height=300).save(album / "large.jpg")
    root = make_benchmark(source="folder", photos=album, out=tmp_path / "out", max_side=200, workers=1,
                          train=2, references=4, sources=1)
    with open(root / "sources.csv", newline="") as file:
        for row in csv.DictReader(file):
            role = "train" if row["id"][0] == "T" else "references"
            written = root / "images" / role / f"{row['id']}.jpg"
            same = written.read_bytes() == (album / row["source"]).read_bytes()
            assert same == row["source"].startswith("photo")
            with Image.open(written) as picture:
                assert picture.mode == "RGB" and max(picture.size) <= 200
                assert (picture.height > picture.width) == (row["source"] == "turned.jpg")


def test_synthetic(tmp_path):
    root = make_benchmark(out=tmp_path / "drawn", train=6, references=4, distractors=5, size=48, seed=3,
                          max_side=64, families=["crop", "collage"], edits=[2, 2], workers=1)
    benchmark = open_benchmark(root)
    assert (len(benchmark.background), len(benchmark.references), len(benchmark.queries)) == (6, 4, 7)
    with open(root / "sources.csv", newline="") as file:
        sources = {row["id"]: row["source"] for row in csv.DictReader(file)}
    used = list(sources.values()) + [row["source"] for row in rows(root) if not row["reference_id"]]
    assert len(set(used)) == 6 + 4 + 5, "training, references and distractors share no drawing"
    drawn = draw_picture(int(sources["R000001"].removeprefix("drawn:")), size=48)
    with Image.open(benchmark.references.path(1)) as picture:
        assert np.abs(np.asarray(picture).astype(int) - np.asarray(drawn)).mean() < 12
    assert set(map(tuple, read_edit_families(root).values())) == {("crop", "collage")}
    for i in range(7):
        with Image.open(benchmark.queries.path(i)) as picture:
            assert max(picture.size) <= 64


@pytest.mark.parametrize("arguments, message", [
    (dict(source="web"), "source='web': expected synthetic .* or folder"),
    (dict(source="folder"), "needs photos=DIR"),
    (dict(photos="x"), "photos=x is not used with source=synthetic"),
    (dict(source="folder", photos="nowhere"), "no folder nowhere"),
    (dict(references=0), "references=0: expected a whole number of at least 1"),
    (dict(queries="many"), "queries=many: expected a whole number"),
    (dict(distractors=-1), "distractors=-1: expected a whole number of at least 0"),
    (dict(max_side=8), "max_side=8: expected a whole number of at least 32"),
    (dict(seed=-1), "seed=-1: expected a whole number of at least 0"),
    (dict(edits=[3, 2]), r"edits=\[3, 2\]: expected \[fewest,most\]"),
    (dict(edits=["a", "b"]), r"edits=\['a', 'b'\]: expected \[fewest,most\]"),
    (dict(edits=3), r"edits=3: expected \[fewest,most\]"),
    (dict(families=["crap"]), "no family 'crap'"),
    (dict(families="crap"), "no family 'crap'"),  # one word, not its letters
    (dict(workers=0), "workers=0: expected at least 1"),
])
def test_mistakes_are_told_before_any_work(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        make_benchmark(out=tmp_path / "out", **arguments)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_record_of_a_benchmark_is_told(tmp_path, content):
    (tmp_path / "benchmark.json").write_text(content)
    with pytest.raises(UserError, match="benchmark.json is damaged"):
        make_benchmark(out=tmp_path)


def test_a_benchmark_inside_its_photographs_is_refused(photos):
    with pytest.raises(UserError, match="lies inside photos="):
        make_benchmark(source="folder", photos=photos, out=photos / "benchmark")


def test_the_command_has_the_functions_arguments():
    config = yaml.safe_load((Path(__file__).parents[2] / "configs" / "make-benchmark.yaml").read_text())
    assert config.pop("_target_") == "rdcd.data.benchmark.make_benchmark"
    parameters = inspect.signature(make_benchmark).parameters
    assert list(config) == list(parameters)
    for name, parameter in parameters.items():
        default = "???" if parameter.default is parameter.empty else parameter.default
        assert config[name] == (list(default) if isinstance(default, tuple) else default)
