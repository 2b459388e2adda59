"""`rdcd bench data` at the smallest scale: what its file says."""

import json
from pathlib import Path

import pytest

from rdcd.bench.data import STAGES, bench_data
from rdcd.errors import UserError


def test_result_file_has_what_the_page_shows(tmp_path: Path, capsys) -> None:
    result = bench_data(size=16, sides=[64], turn=4, turns=2, workers=[1], batch_size=4, out=str(tmp_path / "d.json"))
    assert json.loads((tmp_path / "d.json").read_text()) == result
    assert [path.name for path in tmp_path.iterdir()] == ["d.json"]
    [row] = result["rows"]
    assert all(isinstance(value, int | float) for value in row.values())
    assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"] and row["bound_low"] <= row["bound"]
    assert row["geometry_ratio_low"] <= row["geometry_ratio"] and row["ms_geometry"] > 0
    assert row["pictures_per_s"] == pytest.approx(1000 / row["ms_fast"]) and row["pictures_per_s_1_workers"] > 0
    assert all(row[f"stage_{stage}"] >= 0 for stage in STAGES) and row["stage_decoding"] > 0
    assert "where a picture's milliseconds go" in capsys.readouterr().out


@pytest.mark.parametrize(("changes", "said"), [
    ({"turn": 0}, "turn=0"), ({"sides": [9000]}, "sides=9000"), ({"recipe": "crop"}, "recipe='crop'"),
    ({"workers": [0]}, "workers=0"), ({"out": "."}, "is a folder")])
def test_what_cannot_be_timed_is_refused(changes, said) -> None:
    with pytest.raises(UserError, match=said):
        bench_data(**changes)
