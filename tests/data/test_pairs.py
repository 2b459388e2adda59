import shutil
import unicodedata
from pathlib import Path

import pytest
from miniatures import make_pairs, scene

from rdcd.data.layouts import open_layout
from rdcd.data.pairs import open_pairs
from rdcd.errors import UserError


@pytest.fixture
def photos(fill, tmp_path: Path) -> Path:
    """Six pictures in two folders; two share a name."""
    fill(tmp_path / "photos" / "2024", ["IMG_1", "IMG_2", "IMG_3"])
    fill(tmp_path / "photos" / "2025", ["IMG_1", "beach"])
    fill(tmp_path / "photos", ["sea.v2"])
    return tmp_path / "photos"


def written(folder: Path, text: str) -> Path:
    path = folder / "known.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize("apart", [False, True])
def test_queries_are_the_first_column_and_references_the_rest(tmp_path: Path, apart: bool) -> None:
    root = make_pairs(tmp_path, pictures=7, pairs=3, distractors=2, background=4, apart=apart)
    benchmark = open_pairs(str(root))
    assert benchmark.layout == "pairs" and benchmark.split == "all" and benchmark.root == root
    assert benchmark.queries.names == [f"repost{i}" for i in range(5)]  # two of them distractors
    assert benchmark.references.names == [f"photo{i}" for i in range(7)]
    assert benchmark.pairs == [(f"repost{i}", f"photo{i}") for i in range(3)]
    assert benchmark.background.names == [f"other{i}" for i in range(4)]
    shutil.rmtree(root / "background")
    assert open_pairs(root).background is None


def test_a_csv_and_a_background_of_other_places(tmp_path: Path, fill) -> None:
    root = make_pairs(tmp_path / "root", pictures=4, pairs=2, distractors=0, background=2)
    table = (root / "pairs.csv").rename(tmp_path / "known.csv")
    with pytest.raises(UserError, match=r"no file .*pairs.csv of known copies \(in .*: 2024, background\).*pairs=FILE"):
        open_pairs(root)
    fill(tmp_path / "elsewhere", ["x"])
    benchmark = open_pairs(root, pairs=table, background=tmp_path / "elsewhere")
    assert benchmark.background.names == ["x"]
    assert benchmark.references.names == ["photo0", "photo1", "photo2", "photo3", "other0", "other1"]
    inside = open_pairs(root, pairs=table, background=root / "background")  # below the root: no reference
    assert inside.references.names == ["photo0", "photo1", "photo2", "photo3"]


@pytest.mark.parametrize("how", ["plain", "dots", "linked background", "linked root", "linked from the root"])
def test_the_background_is_no_reference_however_it_is_spelled(tmp_path: Path, how: str) -> None:
    root = make_pairs(tmp_path / "root", pictures=4, pairs=2, distractors=1, background=2)
    background = root / "background"
    if how == "dots":
        background = root / "2024" / ".." / ".." / "root" / "background"
    elif how == "linked background":
        (tmp_path / "link").symlink_to(background)
        background = tmp_path / "link"
    elif how == "linked root":
        (tmp_path / "link").symlink_to(root)
        root = tmp_path / "link"
    elif how == "linked from the root":
        background = background.rename(tmp_path / "elsewhere")
        (root / "2023").symlink_to(background)
    benchmark = open_pairs(root, background=background)
    assert benchmark.references.names == ["photo0", "photo1", "photo2", "photo3"]
    assert benchmark.queries.names == ["repost0", "repost1", "repost2"]
    assert benchmark.background.names == ["other0", "other1"]


def test_a_link_from_the_background_takes_no_picture_from_the_rest(tmp_path: Path) -> None:
    root = make_pairs(tmp_path / "root", pictures=4, pairs=2, distractors=1, background=2)
    (root / "2024").rename(root / "zoo")  # walked after the background, which leads to it
    (root / "background" / "link").symlink_to(root / "zoo")
    assert len(open_pairs(root).references) == 4


@pytest.mark.parametrize(("background", "said"), [
    ("references", "references .*/references. and background .*/other/../references. are one folder"),
    ("queries", "queries .*/queries. and background .*/other/../queries. are one folder"),
    ("queries/2024", "queries .* and background .*queries/2024. lie one within the other"),
    ("link", "references .* and background .*/link. are one folder"),
    ("", "background=.*/other/.. holds .* itself"),
    ("nowhere", "background=.*nowhere: no such folder")])
def test_folders_of_two_roles_are_apart(tmp_path: Path, fill, background: str, said: str) -> None:
    fill(tmp_path / "queries", ["a"])
    fill(tmp_path / "queries" / "2024", ["b"])
    fill(tmp_path / "references", ["c"])
    fill(tmp_path / "other", ["d"])
    (tmp_path / "link").symlink_to(tmp_path / "references")
    (tmp_path / "pairs.csv").write_text("a,c\n")
    with pytest.raises(UserError, match=said):
        open_pairs(tmp_path, background=f"{tmp_path}/other/../{background}")
    assert open_pairs(tmp_path, background=tmp_path / "other").background.names == ["d"]


def test_queries_that_are_the_references_are_refused(tmp_path: Path, fill) -> None:
    fill(tmp_path / "queries", ["a", "b"])
    (tmp_path / "references").symlink_to(tmp_path / "queries")
    (tmp_path / "pairs.csv").write_text("a,b\n")
    with pytest.raises(UserError, match="queries .* and references .* are one folder"):
        open_pairs(tmp_path)


def test_ids_in_the_background_are_said_to_lie_outside(tmp_path: Path) -> None:
    root = make_pairs(tmp_path, pictures=4, pairs=2, distractors=0, background=2)
    with pytest.raises(UserError, match=f"names 2 of 2 ids that are no picture under {root} outside {root}/2024, "):
        open_pairs(root, background=root / "2024")


def test_a_whole_file_name_goes_before_one_without_its_extension(tmp_path: Path, fill) -> None:
    for name in ("a.jpg", "a.jpg.jpg", "b.jpg"):
        scene(len(name)).save(tmp_path / name)
    scene(1).save(fill(tmp_path / "2024", []) / "a.png.jpg")
    for query, reference, expected in (("a.jpg", "b", ("a", "b")), ("./a.jpg", "b", ("a", "b")),
                                       ("a.jpg.jpg", "a.jpg", ("a.jpg", "a")), ("b", "a", ("b", "a"))):
        table = written(tmp_path, f"{query},{reference}\n")
        assert open_pairs(tmp_path, pairs=table).pairs == [expected]
    scene(2).save(tmp_path / "2024" / "a.jpg")
    with pytest.raises(UserError, match="a.jpg may be 2024/a.jpg or a.jpg: .*such as ./2024/a.jpg"):
        open_pairs(tmp_path, pairs=written(tmp_path, "b,a.jpg\n"))
    assert open_pairs(tmp_path, pairs=written(tmp_path, "b,./2024/a.jpg\n")).pairs == [("b", "2024/a")]


def test_the_advised_path_is_understood_in_a_folder_of_its_own_name(tmp_path: Path, fill) -> None:
    fill(tmp_path / "queries" / "queries", ["a"])
    fill(tmp_path / "queries", ["a"])
    fill(tmp_path / "references", ["c"])
    for query, expected in (("./queries/a.png", "queries/a"), ("./a.png", "a"), ("queries/a", "queries/a")):
        (tmp_path / "pairs.csv").write_text(f"{query},c\n")
        assert open_pairs(tmp_path).pairs == [(expected, "c")]


def test_ids_are_names_with_or_without_extension_or_paths(photos: Path) -> None:
    table = written(photos.parent, "query_id,reference_id\nbeach,IMG_2\nIMG_3.png,2024/IMG_1\nsea.v2,2025/IMG_1.png\n")
    benchmark = open_pairs(photos, pairs=table)
    assert benchmark.pairs == [("2025/beach", "2024/IMG_2"), ("2024/IMG_3", "2024/IMG_1"), ("sea.v2", "2025/IMG_1")]
    assert benchmark.references.names == ["2024/IMG_1", "2024/IMG_2", "2025/IMG_1"]  # paths, as names repeat
    for name, path in benchmark.references.paths_by_name().items():
        assert path == photos / f"{name}.png"
    (photos / "2025" / "IMG_1.png").unlink()
    table = written(photos.parent, "beach.png,./2024/IMG_2.png\nsea.v2,IMG_1\n")
    assert open_pairs(photos, pairs=table).pairs == [("beach", "IMG_2"), ("sea.v2", "IMG_1")]


def test_pictures_of_one_stem_in_one_folder_are_named_with_extension(photos: Path) -> None:
    scene(5).save(photos / "2024" / "IMG_2.bmp")
    table = written(photos.parent, "beach,IMG_2.png\nsea.v2,2024/IMG_2.bmp\n")
    benchmark = open_pairs(photos, pairs=table)
    assert benchmark.pairs == [("2025/beach", "2024/IMG_2.png"), ("sea.v2", "2024/IMG_2.bmp")]
    assert benchmark.references.paths_by_name()["2024/IMG_2.bmp"] == photos / "2024" / "IMG_2.bmp"
    with pytest.raises(UserError, match="IMG_2 may be 2024/IMG_2.bmp or 2024/IMG_2.png: write which"):
        open_pairs(photos, pairs=written(photos.parent, "beach,IMG_2\n"))


@pytest.mark.parametrize(("file", "table"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_are_compared_in_nfc(photos: Path, file: str, table: str) -> None:
    place = photos / unicodedata.normalize(file, "café")
    place.mkdir()
    path = place / unicodedata.normalize(file, "été.png")
    (photos / "2025" / "beach.png").rename(path)
    for name in ("été", "été.png", "./café/été.png", "café/été"):
        csv = written(photos.parent, unicodedata.normalize(table, f"{name},IMG_2\nsea.v2,\n"))
        benchmark = open_pairs(photos, pairs=csv)
        assert benchmark.pairs in ([("été", "IMG_2")], [("café/été", "2024/IMG_2")])
        assert benchmark.queries.path(0) == path and path.is_file() and len(benchmark.queries) == 2


def test_ids_in_folders_of_their_own(tmp_path: Path, fill) -> None:
    fill(tmp_path / "queries", ["a", "b"])
    fill(tmp_path / "references", ["a", "c"])  # the same name in both is no question
    (tmp_path / "pairs.csv").write_text("a,a\nqueries/b.png,references/c\n")
    benchmark = open_layout("pairs", tmp_path)
    assert benchmark.pairs == [("a", "a"), ("b", "c")]
    assert benchmark.queries.path(0) == tmp_path / "queries" / "a.png"


def test_every_picture_of_a_query_folder_is_a_query(tmp_path: Path, fill) -> None:
    fill(tmp_path / "queries", ["a", "b", "not named"])
    fill(tmp_path / "references", ["c"])
    (tmp_path / "pairs.csv").write_text("a,c\n")
    assert open_pairs(tmp_path).queries.names == ["a", "b", "not named"]


@pytest.mark.parametrize(("text", "said"), [
    ("beach,IMG_1\n", r"IMG_1 may be 2024/IMG_1.png or 2025/IMG_1.png: .*such as ./2024/IMG_1.png"),
    ("beach,IMG_7\nsea.v2,IMG_2\n", r"names 1 of 2 ids that are no picture under .*such as IMG_7 \(there: IMG_1.png"),
    ("beach,2025/IMG_2\n", "names 1 of 1 ids that are no picture .*such as 2025/IMG_2"),
    ("beach,IMG_2\nIMG_2,IMG_3\n", r"1 pictures are a query on one line and a reference on another, such as "
                                   r"2024/IMG_2.png: .*folders queries and references"),
    ("beach,IMG_2\nbeach.png,2024/IMG_2\n", "pair 2025/beach,2024/IMG_2 twice"),
    ("beach,\n", "gives no pair"),
    ("beach,IMG_2,0.5\n", "line 1: 3 columns")])
def test_a_wrong_csv_is_said(photos: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        open_pairs(photos, pairs=written(photos.parent, text))


def test_a_root_that_says_half_is_refused(photos: Path, fill) -> None:
    table = written(photos.parent, "beach,IMG_2\n")
    fill(photos / "queries", ["q"])
    with pytest.raises(UserError, match="has a folder queries but not the other of queries and references"):
        open_pairs(photos, pairs=table)
    with pytest.raises(UserError, match="background=.*/photos holds .*/photos itself"):
        open_pairs(photos, pairs=table, background=photos)
    with pytest.raises(UserError, match="no such folder"):
        open_pairs(photos / "none", pairs=table)


@pytest.mark.parametrize(("layout", "options", "said"), [
    ("coco", {}, "layout='coco': expected one of disc, ndec, cd10k, pairs"),
    ("ndec", {"split": "final"}, "split=final says nothing about layout=ndec: .*for layout=disc"),
    ("disc", {"pairs": "x.csv"}, "pairs=x.csv says nothing about layout=disc"),
    ("pairs", {"distractors": "d"}, "distractors=d says nothing about layout=pairs: .*for layout=cd10k"),
    ("disc", {"background": "d"}, "background=d .*for layout=cd10k or pairs"),
    (["pairs"], {}, r"layout=\['pairs'\]: expected one of disc"),
    ("disc", {"split": ["dev"]}, r"split=\['dev'\]: expected"),
    ("pairs", {"split": ["dev"]}, r"split=\['dev'\]: expected"),
    ("pairs", {"root": 2024}, "data.root=2024: expected a path"),
    ("ndec", {"root": None}, "data.root=None: expected a path"),
    ("pairs", {"pairs": 7}, "data.pairs=7: expected a path"),
    ("pairs", {"background": ["a", "b"]}, "data.background=.*: expected a path"),
    ("cd10k", {"background": ""}, "data.background=: expected a path"),
    ("cd10k", {"distractors": 10000}, "data.distractors=10000: expected a path")])
def test_options_that_are_not_understood(tmp_path: Path, layout: str, options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        open_layout(layout, **{"root": tmp_path, **options})
