import json
import shutil
from pathlib import Path

import pytest
from miniatures import make_disc, make_ndec, make_sscd

from rdcd.data.disc import is_benchmark, open_benchmark, open_training, read_edit_families
from rdcd.errors import UserError


@pytest.fixture
def root(fill, tmp_path: Path) -> Path:
    fill(tmp_path / "images" / "references" / "refs_0", ["R000000", "R000001"])
    fill(tmp_path / "images" / "references" / "refs_1", ["R000002"])
    fill(tmp_path / "images" / "train", ["T000000", "T000001"])
    fill(tmp_path / "images" / "dev_queries", ["Q00000", "Q00001"])
    fill(tmp_path / "images" / "final_queries", ["Q50000"])
    (tmp_path / "dev_ground_truth.csv").write_text("query_id,reference_id\nQ00000,R000002\nQ00001,\n")
    (tmp_path / "final_ground_truth.csv").write_text("Q50000,R000000\n")
    return tmp_path


def test_roles_and_pairs(root: Path) -> None:
    benchmark = open_benchmark(str(root))
    assert benchmark.root == root and benchmark.split == "dev"
    assert benchmark.queries.names == ["Q00000", "Q00001"]
    assert benchmark.references.names == ["R000000", "R000001", "R000002"]  # nested, as downloads are
    assert benchmark.background.names == ["T000000", "T000001"]
    assert benchmark.pairs == [("Q00000", "R000002")]
    final = open_benchmark(root, split="final")
    assert final.queries.names == ["Q50000"] and final.pairs == [("Q50000", "R000000")]
    assert final.references.names == benchmark.references.names


def test_an_unknown_split_is_said(root: Path) -> None:
    with pytest.raises(UserError, match="split='test': expected one of dev, final"):
        open_benchmark(root, split="test")
    with pytest.raises(UserError, match=r"split=\['dev'\]: expected one of dev, final"):
        open_benchmark(root, split=["dev"])


@pytest.mark.parametrize("absent", ["images/references", "images/train", "images/dev_queries",
                                    "dev_ground_truth.csv"])
def test_whatever_is_missing_is_said(root: Path, absent: str) -> None:
    path = root / absent
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=rf"data.root={root} is no DISC-layout benchmark: missing {absent} "
                                        r"\(found: .*images.*\); `rdcd make-benchmark .*makes one"):
        open_benchmark(root)


def test_everything_missing_is_said_at_once(tmp_path: Path) -> None:
    everything = "images/references, images/train, images/dev_queries, dev_ground_truth.csv"
    with pytest.raises(UserError, match=rf"missing {everything} \(found: nothing\)"):
        open_benchmark(tmp_path)
    with pytest.raises(UserError, match=rf"missing {everything} \(found: no such folder\)"):
        open_benchmark(tmp_path / "none")


def test_what_is_there_instead_is_listed(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"photo{i:02d}.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"found: photo00.jpg, .*photo07.jpg\)"):
        open_benchmark(tmp_path)


def test_a_folder_without_pictures_is_said(root: Path) -> None:
    shutil.rmtree(root / "images" / "train")
    (root / "images" / "train").mkdir()
    with pytest.raises(UserError, match="no pictures under .*images/train"):
        open_benchmark(root)


def test_a_wrong_ground_truth_is_said(root: Path) -> None:
    (root / "dev_ground_truth.csv").write_text("Q00000,R000000,0.5\n")
    with pytest.raises(UserError, match="dev_ground_truth.csv, line 1: 3 columns"):
        open_benchmark(root)


def test_training_pictures_of_a_benchmark_and_of_a_plain_folder(root: Path) -> None:
    assert open_training(root).names == ["T000000", "T000001"]
    assert open_training(root / "images" / "references").names == ["R000000", "R000001", "R000002"]
    with pytest.raises(UserError, match="no folder"):
        open_training(root / "none")


def test_edit_families(root: Path) -> None:
    assert read_edit_families(root) is None
    edits = json.dumps([["crop", {"share": 0.5}], ["text", {"words": 'a, "b"'}]]).replace('"', '""')
    (root / "dev_queries.csv").write_text("query_id,reference_id,source,edits\n"
                                          f'Q00000,R000002,R000002,"{edits}"\nQ00001,,T1,[]\n')
    assert read_edit_families(root) == {"Q00000": ["crop", "text"], "Q00001": []}
    assert read_edit_families(root, split="final") is None


@pytest.mark.parametrize(("content", "said"), [
    ("query_id,reference_id\nQ00001,\n", "gives no pair"),
    ("Q00000,R000002\nQ00007,R000001\n", "names 1 of 2 query ids that are no picture .*such as Q00007"),
    ("Q00000,R9\n", "names 1 of 1 reference ids that are no picture .*such as R9 .there: R000000")])
def test_ground_truth_of_other_pictures_is_said_at_once(root: Path, content: str, said: str) -> None:
    (root / "dev_ground_truth.csv").write_text(content)
    with pytest.raises(UserError, match=said):
        open_benchmark(root)


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "query_id,edits\nQ00000,{\n", "query_id,edits\nQ00000,3\n"])
def test_a_foreign_record_of_edits_is_said(root: Path, content: str) -> None:
    (root / "dev_queries.csv").write_text(content)
    with pytest.raises(UserError, match="dev_queries.csv is not the record of edits"):
        read_edit_families(root)


def listed(folder: Path) -> list[str]:
    """File names without extension, in the order of their paths, by a plain walk."""
    return [path.stem for path in sorted(folder.rglob("*.jpg"))]


def rows(path: Path) -> list[tuple[str, str]]:
    """Pairs of a CSV that has no quotes."""
    lines = [line.split(",") for line in path.read_text().splitlines()]
    return [(query, reference) for query, reference in lines if reference and query != "query_id"]


def test_official_names_with_shards(tmp_path: Path) -> None:
    root = make_disc(tmp_path, references=6, train=4, queries=5, pairs=3, splits=("dev", "final"))
    for split, first in (("dev", "Q00000"), ("final", "Q50000")):
        benchmark = open_benchmark(root, split=split)
        assert benchmark.queries.names == listed(root / "images" / f"{split}_queries")
        assert benchmark.queries.names[0] == first and benchmark.split == split and benchmark.layout == "disc"
        assert benchmark.references.names == listed(root / "images" / "references")
        assert benchmark.references.names[-1] == "R050002"  # of the second shard
        assert benchmark.background.names == listed(root / "images" / "train")
        assert benchmark.pairs == rows(root / f"{split}_ground_truth.csv") and len(benchmark.pairs) == 3
        assert benchmark.hard_negatives is None and benchmark.hard_negatives_from is None


@pytest.mark.parametrize("under", ["", "images"])
def test_sscds_names(tmp_path: Path, under: str) -> None:
    root = make_sscd(tmp_path, references=6, train=4, queries=5, pairs=3, under=under)
    benchmark = open_benchmark(root)
    assert benchmark.queries.names == listed(root / under / "val_query")
    assert benchmark.references.names == listed(root / under / "val_ref")
    assert benchmark.background.names == listed(root / under / "training") == open_training(root).names
    assert benchmark.pairs == rows(root / under / "val_groundtruth_matches.csv")
    with pytest.raises(UserError, match="missing images/final_queries, final_ground_truth.csv"):
        open_benchmark(root, split="final")


def test_both_kinds_of_names_mixed_and_twice(tmp_path: Path) -> None:
    root = make_sscd(tmp_path, references=6, train=4, queries=5, pairs=3)
    shutil.copytree(root / "val_query", root / "images" / "dev_queries")
    with pytest.raises(UserError, match="its queries under two names, .*images/dev_queries and .*val_query, and they "
                                        "differ: keep the one that is meant"):
        open_benchmark(root)
    shutil.rmtree(root / "val_query")
    assert len(open_benchmark(root).queries) == 5  # a mixture is no question
    (root / "val_query").symlink_to(root / "images" / "dev_queries")
    shutil.copy(root / "val_groundtruth_matches.csv", root / "dev_ground_truth.csv")
    assert len(open_benchmark(root).pairs) == 3  # nor is one thing under two names
    (root / "dev_ground_truth.csv").write_text("Q00000,R000001\n")
    with pytest.raises(UserError, match="its ground truth under two names"):
        open_benchmark(root)


def test_training_pictures_are_never_a_benchmarks_queries(tmp_path: Path, fill) -> None:
    root = make_disc(tmp_path / "disc", references=2, train=2, queries=2, pairs=1)
    assert is_benchmark(root) and not is_benchmark(root / "images" / "train")
    shutil.rmtree(root / "images" / "train")
    with pytest.raises(UserError, match="is a benchmark without training pictures: missing images/train"):
        open_training(root)
    ndec = make_ndec(tmp_path / "ndec", references=2, train=3, pairs=1, hard_negatives=1, distractors=1)
    assert open_training(ndec).names == listed(ndec / "DISC" / "images" / "train")
    fill(tmp_path / "photos" / "training", ["a"])
    fill(tmp_path / "photos" / "holidays", ["b"])
    assert open_training(tmp_path / "photos").names == ["b", "a"]  # no benchmark: all of it
