import shutil
from pathlib import Path

import pytest
from miniatures import make_ndec
from test_disc import listed, rows

from rdcd.data.ndec import open_ndec
from rdcd.errors import UserError

SIZES = {"references": 6, "train": 4, "pairs": 3, "hard_negatives": 2, "distractors": 2}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_ndec(tmp_path, **SIZES)


def test_roles_and_pairs(root: Path) -> None:
    benchmark = open_ndec(str(root))
    assert benchmark.layout == "ndec" and benchmark.root == root and benchmark.split == "all"
    assert benchmark.queries.names == listed(root / "NDEC_test_query") and len(benchmark.queries) == 7
    assert benchmark.references.names == listed(root / "DISC" / "images" / "references")
    assert benchmark.background.names == listed(root / "DISC" / "images" / "train")
    assert benchmark.pairs == rows(root / "public_ground_truth_h5.csv") and len(benchmark.pairs) == 3


@pytest.mark.parametrize("options", [{"query_folder": "query_images_h5"}, {"disc": ""}])
def test_other_names(tmp_path: Path, options: dict) -> None:
    root = make_ndec(tmp_path, **SIZES, **options)
    benchmark = open_ndec(root)
    assert (len(benchmark.queries), len(benchmark.references), len(benchmark.background)) == (7, 6, 4)


def test_hard_negatives_are_queries_without_a_pair_or_those_listed(root: Path, tmp_path: Path) -> None:
    benchmark = open_ndec(root)
    copies = [query for query, _ in benchmark.pairs]
    assert benchmark.hard_negatives == [name for name in benchmark.queries.names if name not in copies]
    assert benchmark.hard_negatives_from == "queries without a pair" and len(benchmark.hard_negatives) == 4
    listed_root = make_ndec(tmp_path / "listed", **SIZES, listed=True)
    benchmark = open_ndec(listed_root)
    assert benchmark.hard_negatives == ["Q00005", "Q00006"] and benchmark.hard_negatives_from == "hard_negatives.csv"
    (listed_root / "hard_negatives.csv").write_text("\ufeffQ00006\r\nQ00005\r\n\r\n")  # header optional
    assert open_ndec(listed_root).hard_negatives == ["Q00005", "Q00006"]


@pytest.mark.parametrize(("content", "said"), [
    ("query_id\nQ00005\nQ00099\n", "1 ids are no queries, such as Q00099"),
    ("Q00000\n", "1 ids are copies by the ground truth, such as Q00000"),
    ("query_id\n", "expected one query id a line"),
    (b"\xff\xfe\x00", "expected one query id a line")])
def test_a_wrong_list_of_hard_negatives_is_said(root: Path, content: str | bytes, said: str) -> None:
    (root / "hard_negatives.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"hard_negatives.csv.*{said}"):
        open_ndec(root)


@pytest.mark.parametrize(("absent", "said"), [
    ("NDEC_test_query", "NDEC_test_query"), ("DISC/images/references", "DISC/images/references"),
    ("DISC/images/train", "DISC/images/train"), ("public_ground_truth_h5.csv", "public_ground_truth_h5.csv")])
def test_whatever_is_missing_is_said(root: Path, absent: str, said: str) -> None:
    path = root / absent
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=rf"is no NDEC root: missing {said} \(found: .*\); expected NDEC_test_query or"):
        open_ndec(root)


def test_ground_truth_of_other_pictures_is_said(root: Path) -> None:
    (root / "public_ground_truth_h5.csv").write_text("Q00000,R000001\nQ00001,R999999\n")
    with pytest.raises(UserError, match="names 1 of 2 reference ids that are no picture .*such as R999999"):
        open_ndec(root)


@pytest.mark.parametrize("role", ["DISC/images/references", "NDEC_test_query"])
def test_training_pictures_that_are_searched_or_queries_are_refused(root: Path, role: str) -> None:
    shutil.rmtree(root / "DISC" / "images" / "train")
    (root / "DISC" / "images" / "train").symlink_to(root / role)
    with pytest.raises(UserError, match=f"{role}. and train .*/train. are one folder"):
        open_ndec(root)


def test_two_query_folders_are_refused(root: Path) -> None:
    shutil.copytree(root / "NDEC_test_query", root / "query_images_h5")
    with pytest.raises(UserError, match="queries under two names"):
        open_ndec(root)
