"""`rdcd bench codecs` at the smallest scale: its numbers are those of `rdcd score`."""

import json
from pathlib import Path

import numpy as np
import pytest

from rdcd.bench.clusters import draw
from rdcd.bench.codecs import bench_codecs
from rdcd.errors import UserError
from rdcd.evaluation.score import score
from rdcd.retrieval.codec import Codec

CODECS = ["PCA8,L2norm,Flat", "SQfp16", "SQ8", "LSH", "PQ4", "HNSW8", "IVF4,Flat;nprobe=4"]


def test_rows_are_those_of_score(tmp_path: Path, capsys) -> None:
    places = draw(tmp_path, queries=60, references=400, background=500, dim=16, seed=1, noise=1.2)
    result = bench_codecs(**{role: str(place) for role, place in places.items()}, codecs=CODECS, k=5, turns=2,
                          out=str(tmp_path / "c.json"))
    assert json.loads((tmp_path / "c.json").read_text()) == result
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".*partial*"))
    expected = score(**places, out=tmp_path / "s", codecs=["Flat", *CODECS], k=5, bootstrap=0)
    rows = result["rows"]
    assert [row["codec"] for row in rows] == ["Flat", *CODECS]
    for row, plain, normalized in zip(rows, expected[::2], expected[1::2], strict=True):
        assert (row["uAP"], row["uAP_SN"]) == (pytest.approx(plain["uAP"]), pytest.approx(normalized["uAP"]))
        assert row["uAP_SN_difference"] == row["uAP_SN"] - rows[0]["uAP_SN"]
        assert all(isinstance(value, str | int | float) for value in row.values())
    assert [row["bytes"] for row in rows] == [64, 32, 32, 16, 2, 4, 128, 72]
    assert rows[-1]["uAP"] == pytest.approx(rows[0]["uAP"], abs=1e-6)  # looks at every list


def test_halves_and_signs_equal_the_plain_computation() -> None:
    rng = np.random.default_rng(0)
    q, r = (rng.normal(size=(count, 16)).astype(np.float32) for count in (7, 50))
    halves, signs = Codec("SQfp16", 16), Codec("LSH", 16)
    for codec in (halves, signs):
        codec.train(r)
    scores, rows = halves.nearest(q, r, 5)
    expected = q.astype(np.float64) @ r.astype(np.float16).astype(np.float64).T
    np.testing.assert_array_equal(rows, np.argsort(-expected, axis=1)[:, :5])
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :5], rtol=1e-5)
    scores, _ = signs.nearest(q, r, 5)
    expected = np.array([[1 - 2 * np.mean((a >= 0) != (b >= 0)) for b in r] for a in q])
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :5])


@pytest.mark.parametrize(("changes", "said"), [
    ({"query": "q.h5"}, "reference=null"), ({"turns": 0}, "turns=0"), ({"score_norm": None}, "score_norm=null"),
    ({"out": "."}, "is a folder")])
def test_what_cannot_be_measured_is_refused(changes, said) -> None:
    with pytest.raises(UserError, match=said):
        bench_codecs(**changes)
