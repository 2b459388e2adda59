"""`rdcd bench extract` at the smallest scale: both compute the same, and what its file says."""

import json

import pytest

from rdcd.bench.extract import bench_extract, make_photographs
from rdcd.data.images import open_image
from rdcd.errors import UserError

SMALL = {"trunk": "test_efficientnet", "size": 32, "side": 64, "turn": 4, "turns": 2, "batch_size": 3, "device": "cpu"}


@pytest.mark.parametrize("resize", ["square", "short"])
def test_result_file_has_what_the_page_shows(tmp_path, capsys, resize) -> None:
    result = bench_extract(**SMALL, resize=resize, out=str(tmp_path / "e.json"))
    assert json.loads((tmp_path / "e.json").read_text()) == result
    assert [path.name for path in tmp_path.iterdir()] == ["e.json"]
    rows = result["rows"]
    assert [row["what"] for row in rows] == ["plain loop", "rdcd extract, decode=exact", "rdcd extract, decode=reduced"]
    for row in rows:
        assert all(isinstance(value, str | int | float) for value in row.values())
        assert 0 < row["low"] <= row["median"] <= row["high"] and row["turns"] == 2
        assert row["images_per_s"] == pytest.approx(1 / row["median"]) and 0 < row["decode_share"] < 1
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    assert rows[0]["ratio"] == 1 and rows[1]["cosine_min"] > 1 - 1e-5 and rows[1]["centred_cosine_min"] > 0.999
    assert rows[2]["cosine_min"] > 0.9
    assert "times the plain loop" in capsys.readouterr().out.strip().splitlines()[-1]


def test_small_photographs_are_laid_side_by_side(fill, picture, tmp_path) -> None:
    fill(tmp_path / "small", [f"p{i}" for i in range(5)])
    made = make_photographs(tmp_path / "made", 3, images=str(tmp_path / "small"), side=100, seed=0)
    assert sorted(open_image(made.path(i)).size for i in range(3)) == [(75, 100), (100, 75), (100, 75)]
    (tmp_path / "large").mkdir()
    picture(0, 300, 120).save(tmp_path / "large" / "l.png")
    made = make_photographs(tmp_path / "shrunk", 1, images=str(tmp_path / "large"), side=100, seed=0)
    assert open_image(made.path(0)).size == (100, 40)


@pytest.mark.parametrize(("changes", "said"), [
    ({"turn": 0}, "turn=0"), ({"side": 4000}, "side=4000"), ({"resize": "crop"}, "resize='crop'"),
    ({"compile": True, "resize": "short"}, "compile=true, resize=short"), ({"out": "."}, "is a folder")])
def test_what_cannot_be_timed_is_refused(changes, said) -> None:
    with pytest.raises(UserError, match=said):
        bench_extract(**SMALL | changes)
