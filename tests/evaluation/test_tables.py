"""Result files read back to the same numbers; people get percent and intervals."""

import json

import pytest

from rdcd.evaluation.tables import metrics_table, wide_console, write_metrics, write_table


def test_metrics_file_takes_a_leading_column_and_undefined_thresholds(tmp_path):
    rows = [{"model": "a,b", "uAP": 0.1 + 0.2, "threshold_at_p90": None}]
    write_metrics(tmp_path / "m", rows, {"seed": 1})
    assert (tmp_path / "m" / "metrics.csv").read_text() == (
        'model,uAP,threshold_at_p90\n"a,b",0.30000000000000004,None\n')
    written = json.loads((tmp_path / "m" / "metrics.json").read_text())
    assert written == {"rows": rows, "provenance": {"seed": 1}}


def test_differences_go_into_the_json(tmp_path):
    write_metrics(tmp_path, [{"uAP": 0.5}], {}, differences=[{"model": "a", "uAP": 0.1}])
    assert json.loads((tmp_path / "metrics.json").read_text())["differences"] == [{"model": "a", "uAP": 0.1}]


def shown(rows):
    console = wide_console()
    with console.capture() as capture:
        console.print(metrics_table(rows))
    return capture.get()


def test_people_see_percent_with_the_interval_beside_it():
    text = shown([{"model": "[b]x", "uAP": 0.12345, "uAP_low": 0.1, "uAP_high": 0.2, "threshold_at_p90": 0.5}])
    assert "µAP %" in text and "12.35 [10.0, 20.0]" in text and "0.5000" in text and "[b]x" in text
    assert "low" not in text


@pytest.mark.parametrize(("low", "high", "said"), [(-0.01, 0.02, "+0.30 [-1.0, +2.0]"), (0.0, 0.02, "[+0.0, +2.0]")])
def test_differences_have_signs(low, high, said):
    assert said in shown([{"model": "a", "other": "b", "uAP": 0.003, "uAP_low": low, "uAP_high": high}])


def test_tables_read_back(tmp_path):
    write_table(tmp_path / "t.csv", [{"a": 1 / 3, "b": None}])
    assert (tmp_path / "t.csv").read_text() == f"a,b\n{1 / 3},None\n"
