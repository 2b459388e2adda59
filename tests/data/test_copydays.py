import shutil
from pathlib import Path

import pytest
from miniatures import make_cd10k

from rdcd.data.copydays import open_cd10k
from rdcd.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_cd10k(tmp_path / "cd10k", originals=3, strong=5, distractors=4, train=2)


def walked(folder: Path, label: str) -> list[str]:
    return [f"{label}/{path.stem}" for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("under", ["", "copydays"])
def test_queries_references_and_pairs(tmp_path: Path, under: str) -> None:
    root = make_cd10k(tmp_path, originals=3, strong=5, distractors=4, train=2, under=under)
    benchmark = open_cd10k(root)
    assert benchmark.layout == "cd10k" and benchmark.split == "all" and benchmark.hard_negatives is None
    expected = []
    for block in ("original", "strong", *(f"crops/{n}" for n in (10, 15, 20, 30, 40, 50, 60, 70, 80)),
                  *(f"jpegqual/{n}" for n in (3, 5, 8, 10, 15, 20, 30, 50, 75))):
        expected += walked(root / under / block, block)
    assert benchmark.queries.names == expected and len(expected) == 19 * 3 + 5
    assert {"strong/200001", "strong/200102", "crops/10/200000", "jpegqual/75/200200"} <= set(expected)
    assert benchmark.references.names == (walked(root / under / "original", "original")
                                          + walked(root / "distractors", "distractors"))
    assert benchmark.background.names == ["w00000", "w00001"]
    pairs = []
    for name in expected:
        for original in walked(root / under / "original", "original"):
            if original.split("/")[-1][:4] == name.split("/")[-1][:4]:
                pairs.append((name, original))
    assert benchmark.pairs == pairs and len(pairs) == len(expected)
    path = benchmark.queries.paths_by_name()["crops/10/200100"]
    assert path == root / under / "crops" / "10" / "200100.jpg" and path.is_file()


def test_distractors_and_background_elsewhere(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "distractors").rename(tmp_path / "others")
    with pytest.raises(UserError, match=r"is no CD10K root: missing distractors \(found: .*distractors=DIR"):
        open_cd10k(root)
    (root / "train").rename(tmp_path / "whitening")
    monkeypatch.chdir(tmp_path)
    benchmark = open_cd10k("cd10k", distractors="others")
    assert benchmark.references.names[-1] == "distractors/d00003" and benchmark.background is None
    assert all(path.is_file() for path in benchmark.references.paths_by_name().values())
    assert len(open_cd10k("cd10k", distractors="others", background="whitening").background) == 2
    with pytest.raises(UserError, match="is no CD10K root: missing .*/nowhere"):
        open_cd10k("cd10k", distractors="others", background="nowhere")


@pytest.mark.parametrize(("options", "said"), [
    ({"distractors": ""}, "original .*/original. and distractors .* lie one within the other"),
    ({"distractors": "original"}, "original .* and distractors .* are one folder"),
    ({"distractors": "link"}, "crops/10 .* and distractors .*/link. are one folder"),
    ({"background": ".."}, "original .* and train .* lie one within the other"),
    ({"background": "crops"}, "crops/10 .* and train .*/crops. lie one within the other"),
    ({"background": "train/../distractors"}, "distractors .* and train .* are one folder"),
    ({"background": "distractors/more"}, "distractors .* and train .* lie one within the other"),
    ({"distractors": "train"}, "distractors .* and train .* are one folder")])
def test_folders_of_two_roles_are_apart(root: Path, options: dict[str, str], said: str) -> None:
    (root / "distractors" / "more").mkdir()
    (root / "link").symlink_to(root / "crops" / "10")
    with pytest.raises(UserError, match=said):
        open_cd10k(root, **{option: root / folder for option, folder in options.items()})


def test_blocks_that_are_one_folder_are_refused(root: Path) -> None:
    shutil.rmtree(root / "strong")
    (root / "strong").symlink_to(root / "original")
    with pytest.raises(UserError, match="original .* and strong .* are one folder"):
        open_cd10k(root)


def test_a_linked_root_is_the_root(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    benchmark = open_cd10k(tmp_path / "link", distractors=root / "distractors", background=root / "train")
    assert benchmark.queries.names == open_cd10k(root).queries.names and len(benchmark.background) == 2


def test_missing_blocks_are_named(root: Path) -> None:
    shutil.rmtree(root / "crops")
    (root / "strong").rename(root / "Strong")
    with pytest.raises(UserError, match=r"missing strong, crops/10, .*crops/80 \(found: Strong, .*\); expected "
                                        r"Copydays' folders original, strong"):
        open_cd10k(root)


def test_names_that_lead_to_no_or_two_originals_are_said(root: Path) -> None:
    lost = (root / "strong" / "200001.jpg").rename(root / "strong" / "300001.jpg")
    with pytest.raises(UserError, match="1 of 62 queries .*copy of no original, such as strong/300001: .*the same 4 "):
        open_cd10k(root)
    lost.unlink()
    shutil.copy(root / "original" / "200000.jpg", root / "original" / "200050.jpg")
    with pytest.raises(UserError, match="original/200000 and original/200050 .*begin with the same 4 characters"):
        open_cd10k(root)
