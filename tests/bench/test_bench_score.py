"""`rdcd bench score` at the smallest scale: what is drawn, what is timed, and what its file says."""

import json
from pathlib import Path

import numpy as np
import pytest

from rdcd.bench import score as module
from rdcd.bench.clusters import draw, needed_bytes
from rdcd.bench.score import bench_score, exponent, measure
from rdcd.data.ground_truth import read_ground_truth
from rdcd.errors import UserError
from rdcd.evaluation.score import score
from rdcd.retrieval.descriptors import read_descriptors

SMALL = {"queries": 30, "references": 200, "background": 150, "dim": 8}
SETTINGS = {"codecs": ["Flat", "PCAW{d},L2norm,Flat"], "score_norms": [None, "1.0[0,2]"], "k": 5, "bootstrap": 20,
            "bare_share": 0.5}


def test_copies_are_nearest_to_their_references_and_draws_repeat(tmp_path: Path) -> None:
    places = draw(tmp_path / "a", **SMALL, seed=3, noise=0.05)
    query, reference = read_descriptors(places["query"]), read_descriptors(places["reference"])
    pairs = read_ground_truth(places["ground_truth"])
    assert len(pairs) == 6 and (len(query), len(reference)) == (30, 200)
    for name, original in pairs:
        products = reference.vectors @ query.vectors[query.names.tolist().index(name)]
        assert reference.names[products.argmax()] == original
    again = draw(tmp_path / "b", **SMALL, seed=3, noise=0.05)
    np.testing.assert_array_equal(query.vectors, read_descriptors(again["query"]).vectors)
    written = sum(places[role].stat().st_size for role in ("query", "reference", "background"))
    assert written <= needed_bytes(**SMALL)


def test_score_is_measured_as_it_is(tmp_path: Path) -> None:
    places = draw(tmp_path, **SMALL, seed=0)
    original = module.scoring.search
    found = measure(places, tmp_path / "timed", SETTINGS)
    assert module.scoring.search is original
    keys = {key: value for key, value in SETTINGS.items() if key != "bare_share"}
    expected = score(**places, out=tmp_path / "plain", **keys)
    assert (tmp_path / "timed" / "metrics.csv").read_text() == (tmp_path / "plain" / "metrics.csv").read_text()
    assert found["uAP"] == expected[-1]["uAP"] and found["ratio"] == found["seconds"] / found["bare_seconds"]
    stages = sum(found[stage] for stage in ("reading", "searches", "metrics", "bootstrap", "other"))
    assert stages == pytest.approx(found["seconds"]) and min(found["searches"], found["bootstrap"]) > 0


def test_growth_is_the_slope_of_the_logarithms() -> None:
    rows = [{"pairs": pairs, "seconds": 3 * pairs ** 1.5} for pairs in (10, 40, 100)]
    assert exponent(rows) == pytest.approx(1.5)


def test_result_file_has_flat_rows_and_nothing_is_left(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()

    class Here:
        """A pool of this process: a new one takes seconds to begin."""

        def Pool(self, count: int, start: object) -> "Here":  # noqa: N802
            return self

        def __enter__(self) -> "Here":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def apply(self, call, arguments: tuple) -> dict:
            return call(*arguments)

    monkeypatch.setattr(module.multiprocessing, "get_context", lambda kind: Here())
    result = bench_score(**SMALL, k=5, bootstrap=10, sizes=[0.5], keep=str(tmp_path / "kept"),
                         out=str(tmp_path / "s.json"))
    assert json.loads((tmp_path / "s.json").read_text()) == result
    assert not list((tmp_path / "temporary").iterdir()) and (tmp_path / "kept" / "query.h5").is_file()
    assert [(row["varied"], row["queries"], row["references"]) for row in result["rows"]] == [
        ("all", 30, 200), ("queries", 15, 200), ("references", 30, 100)]
    assert all(isinstance(value, str | int | float | None) for row in result["rows"] for value in row.values())
    assert set(result["growth"]) == {"queries", "references"}
    said = capsys.readouterr().out
    assert "GB needed" in said and "minutes of searching in 3 runs" in said


@pytest.mark.parametrize(("changes", "said"), [
    ({"queries": 0}, "queries=0"), ({"bare_share": 0}, "bare_share=0"), ({"sizes": [2]}, "sizes=2"),
    ({"codecs": ["SQ8"]}, "SQ8"), ({"keep": "."}, "is there already"),
    ({"references": 10 ** 13}, "do not fit")])
def test_what_cannot_be_timed_is_refused(changes, said) -> None:
    with pytest.raises(UserError, match=said):
        bench_score(**SMALL | changes)
