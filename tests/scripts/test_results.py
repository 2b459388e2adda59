"""Figures of the documents are those of the result files, a student's never those of its teacher."""

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def results(tmp_path):
    """The script's functions, reading result files from a folder of the test's."""
    script = runpy.run_path(str(ROOT / "scripts" / "results.py"))
    script["rows"].__globals__["RESULTS"] = tmp_path
    (tmp_path / "published.json").write_text(json.dumps({"rows": [
        {"experiment": "one", "system": "One", "dim": 64, "uAP_SN": 53.5},
        {"experiment": "two", "system": "Two", "dim": 8, "uAP_SN": None}]}))

    def write(name, *lines, **more):
        keys = ("model", "codec", "score_norm", "uAP")
        made = [dict(zip(keys, line)) | {"dim": 8, "recall_at_p90": 0.5, "accuracy_at_1": 0.25} for line in lines]
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": made, **more}))

    return script, write


WHITE = "PCAW{d},L2norm,Flat"


def test_ours_stands_beside_what_is_reported(results):
    script, write = results
    filled = script["filled"]("<!-- published -->\n<!-- end -->")
    assert "| `one` | One | 64 | 53.5 |  |" in filled and "| `two` | Two | 8 |  |  |" in filled
    write("one", ("student", "Flat", "1.0[0,2]", 0.1), ("student", WHITE, None, 0.2),
          ("student", WHITE, "1.0[0,2]", 0.3), ("teacher", WHITE, "1.0[0,2]", 0.9))
    assert "| `one` | One | 64 | 53.5 | 30.0 |" in script["filled"]("<!-- published -->\n<!-- end -->")


def test_a_students_missing_row_is_not_filled_by_its_teacher(results):
    script, write = results
    write("one", ("student", "Flat", "1.0[0,2]", 0.1), ("teacher", WHITE, "1.0[0,2]", 0.9))
    write("two", ("teacher", WHITE, "1.0[0,2]", 0.9))  # measured alone
    filled = script["filled"]("<!-- published -->\n<!-- end -->")
    assert "| 53.5 | no whitened row |" in filled and "| `two` | Two | 8 |  | 90.0 |" in filled


def test_intervals_and_differences(results):
    script, write = results
    write("one", ("a", "Flat", None, 0.1), ("a", "Flat", "1.0[0,2]", 0.2), differences=[
        {"model": "a", "other": "b", "codec": "Flat", "score_norm": norm, "uAP": 0.01, "uAP_low": -0.02,
         "uAP_high": 0.04} for norm in (None, "1.0[0,2]")])
    assert "| one | a − b | `Flat` | +1.0 | -2.0 … +4.0 |" in script["filled"]("<!-- differences one -->\n<!-- end -->")
    row = {"uAP": 0.5, "uAP_low": 0.45, "uAP_high": 0.56}
    assert script["figure"](row, "uAP") == "50.0 (45.0–56.0)" and script["figure"]({"uAP": 0.5}, "uAP") == "50.0"


def test_what_bench_step_wrote(results, tmp_path):
    script, _ = results
    rows = [{"what": what, "images_per_s": rate, "peak_bytes": peak} for what, rate, peak in (
        ("networks alone", 2000.4, 1e9), ("bare loop", 1500.0, 2e9), ("rdcd train", 1250.0, 3.04e9))]
    counts = {f"{part}_operations": 1e9 * i for i, part in enumerate(("student", "key", "teacher"), start=1)}
    content = {"rows": rows, "student": "s", "teacher": None, "size": 224, "batch_size": 256, "precision": "bf16-mixed",
               "compile": True, "input": "loader", "ratio": {"median": 1.0123, "low": 1.0, "high": 1.5},
               "bound_share": {"median": 0.625}, "parts": {"student": 0.1, "data": 0.2, "the rest": 0.0015},
               "costs": counts | {"network_bytes": 5e6, "queue_bytes": 6e6, "student_bytes": 7.5e6, "loss_bytes": 8e4},
               "full_recipe_hours": {"1": 2000.4, "2": 1000.2, "8": 250.05}, "provenance": {"device": "a card"}}
    (tmp_path / "step.json").write_text(json.dumps(content))

    def lines(kind):
        return script["filled"](f"<!-- {kind} step -->\n<!-- end -->").splitlines()[3:-1]

    assert lines("steps") == ["| step | s, no teacher, 224 px, 256 pictures | bf16-mixed, compiled, real loader | "
                              "a card | 2,000 | 1,500 | 1,250 | both wait for one loader | 62% | 3.0 GB |"]
    assert lines("parts") == ["| data | 200.0 |", "| student | 100.0 |", "| the rest | 1.5 |"]
    assert lines("costs") == ["| step | s, none | bf16-mixed | 224 px | 1.00 | 2.00 | 3.00 | 5 MB | "
                              "6 MB | 7.5 | 0.08 |"]
    assert lines("hours") == ["| step: s, no teacher, 224 px, 256 pictures | bf16-mixed, compiled, real loader | "
                              "a card | 2,000 h | 1,000 h | 250 h | 2,000 | 4,001 USD |"]
    rows[2]["peak_bytes"] = None
    (tmp_path / "step.json").write_text(json.dumps(content))
    assert lines("steps")[0].endswith("| 62% |  |")
    (tmp_path / "step.json").write_text(json.dumps(content | {"input": "memory"}))
    assert "| bf16-mixed, compiled | a card | 2,000 | 1,500 | 1,250 | 1.012 (1.000–1.500) |" in lines("steps")[0]


def test_named_columns_of_any_result(results, tmp_path):
    script, _ = results
    (tmp_path / "a.json").write_text(json.dumps({"rows": [{"what": "one", "images_per_s": 1234.5, "ratio": 4.04},
                                                          {"what": "two", "images_per_s": 7, "ratio": None}]}))
    filled = script["filled"]("<!-- rows a : what images_per_s|,.0f ratio|.1f -->\n<!-- end -->")
    assert filled.splitlines()[1:-1] == ["| result file | what | images per s | ratio |", "|---|---|--:|--:|",
                                         "| a | one | 1,234 | 4.0 |", "| a | two | 7 |  |"]
