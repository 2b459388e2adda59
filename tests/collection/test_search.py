import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rdcd.collection.scoring import choose_scoring, guess_threshold
from rdcd.errors import UserError
from rdcd.retrieval.index import Index
from rdcd.retrieval.score_norm import parse_score_norm

OWN = "1.0[10,12]"


def slow_matches(index: Index, vectors: dict[str, np.ndarray], k: int,
                 threshold: float) -> list[tuple[str, str, float]]:
    """Every product in turn, less the mean of the 11th to 13th largest."""
    found = []
    entries = {index.path(row): index.vectors(np.array([row]))[0].astype(np.float64) for row in range(len(index))}
    for query, vector in vectors.items():
        products = {path: float(vector.astype(np.float64) @ entry) for path, entry in entries.items()}
        off = np.mean(sorted(products.values(), reverse=True)[10:13])
        best = sorted(((off - product, path) for path, product in products.items() if path != query))[:k]
        found += [(query, path, -score) for score, path in best if -score >= threshold]
    return found


def test_matches_are_those_of_a_plain_loop(album: Path, copies: Path, tmp_path: Path, build, find, rows) -> None:
    index = build(index=tmp_path / "index", images=album)
    other = build(index=tmp_path / "copies index", images=copies)
    vectors = {other.path(row): other.vectors(np.array([row]))[0] for row in range(len(other))}
    out = find(index=tmp_path / "index", images=copies, out=tmp_path / "out", threshold=0.05, k=3)
    got = rows(out / "matches.csv")
    want = slow_matches(index, vectors, 3, 0.05)
    assert [(row["query"], row["match"]) for row in got] == [pair[:2] for pair in want] and len(want) > 6
    np.testing.assert_allclose([float(row["score"]) for row in got], [score for *_, score in want], atol=1e-6)
    assert {row["kind"] for row in got} == {"alike", "identical file"} and {row["confidence"] for row in got} == {""}
    record = json.loads((out / "matches.json").read_text(encoding="utf-8"))
    assert [(row["query"], row["match"]) for row in record["matches"]] == [pair[:2] for pair in want]
    assert record["score_norm"] == OWN and record["provenance"]["versions"]
    assert record["matches"][0]["confidence"] is None
    assert "no calibration" in record["threshold_from"] and record["queries"] == 7
    assert "broken.jpg" in (out / "bad_files.csv").read_text()
    assert (out / "gallery.html").is_file()


def test_a_guessed_threshold_finds_the_copies_and_says_it_is_one(album: Path, copies: Path, tmp_path: Path, build, find,
                                                                rows, capsys) -> None:
    build(index=tmp_path / "index", images=album)
    capsys.readouterr()
    got = rows(find(index=tmp_path / "index", images=copies, out=tmp_path / "out") / "matches.csv")
    said = "a guess, halfway between ordinary neighbours and the same picture; no calibration"
    assert said in capsys.readouterr().out
    best = {Path(row["query"]).name: Path(row["match"]).name for row in reversed(got)}
    assert best == {"copy0.jpg": "p00.jpg", "copy1.jpg": "p01.jpg", "copy2.jpg": "p02.jpg", "same.jpg": "p06.jpg"}


def test_a_pictures_own_entry_is_not_its_match(album: Path, tmp_path: Path, build, find, rows) -> None:
    shutil.copy(album / "2024" / "p06.jpg", album / "p06 again.jpg")
    build(index=tmp_path / "index", images=album)
    one = album / "2024" / "p06.jpg"
    got = rows(find(index=tmp_path / "index", images=one, out=tmp_path / "a", k=1) / "matches.csv")
    assert [(Path(row["match"]).name, row["kind"]) for row in got] == [("p06 again.jpg", "identical file")]
    got = rows(find(index=tmp_path / "index", images=one, out=tmp_path / "b", k=2, itself=True) / "matches.csv")
    assert [row["kind"] for row in got] == ["itself", "identical file"]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_indexes_of_hardly_any_pictures(album: Path, copies: Path, tmp_path: Path, build, find, rows, count) -> None:
    paths = [album / "2024" / "p00.jpg", album / "2024" / "p06.jpg"][:count]
    build(index=tmp_path / "index", images=paths)
    got = rows(find(index=tmp_path / "index", images=copies, out=tmp_path / "out") / "matches.csv")
    assert [Path(row["query"]).name for row in got] == ["copy0.jpg", "same.jpg"][:count]


def card(*rows: tuple[str | None, float, float]) -> dict:
    return {"thresholds": [{"codec": "Flat", "score_norm": norm, "precision": p, "threshold": t, "benchmark": "ours"}
                           for norm, p, t in rows]}


def test_thresholds_of_a_precision(album: Path, tmp_path: Path, build) -> None:
    index = build(index=tmp_path / "index", images=album)
    known = card((OWN, 0.9, 0.3), (OWN, 0.99, 0.5))
    chosen = choose_scoring(index, known)
    assert (chosen.score_norm, chosen.threshold) == (OWN, 0.3)
    assert chosen.said == "of precision 0.9, measured on ours"
    assert chosen.confidence(np.array([0.1, 0.4, 0.6])) == [None, 0.9, 0.99]
    assert choose_scoring(index, known, precision=0.99).threshold == 0.5
    assert choose_scoring(index, known, threshold=0.1).confidence(np.array([0.35])) == [0.9]
    assert choose_scoring(index, card((OWN, 0.5, 0.1), (OWN, 0.7, 0.2))).said == (
        "of precision 0.7, the highest that was calibrated, measured on ours")
    plain = card((None, 0.9, 0.7))
    assert choose_scoring(index, plain, precision=0.9).score_norm is None
    chosen = choose_scoring(index, plain)
    assert chosen.score_norm == OWN and chosen.calibration is None and "only for None" in chosen.said
    with pytest.raises(UserError, match=r"precision=0.9: no calibration for codec 'Flat' with score normalization"):
        choose_scoring(index, {}, precision=0.9)
    with pytest.raises(UserError, match="the highest that was calibrated .* is 0.99"):
        choose_scoring(index, known, precision=0.999)
    with pytest.raises(UserError, match="score_norm=1.0\\[0,30\\] needs 31 background pictures"):
        choose_scoring(index, known, score_norm="1.0[0,30]")


def test_guess_is_halfway(album: Path, tmp_path: Path, build) -> None:
    index = build(index=tmp_path / "index", images=album)
    vectors = index.vectors(np.arange(24)).astype(np.float64)
    ordinary = np.median([np.sort(vectors @ v)[::-1][10:13].mean() for v in vectors])
    assert guess_threshold(index, None)[0] == pytest.approx((1 + ordinary) / 2, abs=1e-5)
    assert guess_threshold(index, parse_score_norm(OWN))[0] == pytest.approx((1 - ordinary) / 2, abs=1e-5)


@pytest.mark.parametrize(("asked", "said"), [
    ({"threshold": 0.5, "precision": 0.9}, "expected one of them"), ({"precision": 90}, "precision=90: expected"),
    ({"k": 0}, "k=0: expected"), ({"threshold": "high"}, "threshold=high: expected"),
    ({"gallery": -1}, "gallery=-1: expected"), ({"index": "none"}, "no index in none"),
    ({"score_norm": "2"}, "score normalization '2' not understood")])
def test_refusals(album: Path, copies: Path, tmp_path: Path, build, find, asked: dict, said: str) -> None:
    build(index=tmp_path / "index", images=album)
    with pytest.raises(UserError, match=said):
        find(**{"index": tmp_path / "index", "images": copies, "out": tmp_path / "out"} | asked)
