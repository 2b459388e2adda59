import csv
import json
import unicodedata

import h5py
import numpy as np
import pytest
from oracles import trapezoids

from rdcd.data.ground_truth import write_ground_truth
from rdcd.errors import UserError
from rdcd.evaluation.bootstrap import QueryBootstrap, interval
from rdcd.evaluation.metrics_copydays import CopydaysMetrics, evaluate_copydays
from rdcd.evaluation.score import as_record, score, score_copydays, score_descriptors
from rdcd.files import sha256
from rdcd.retrieval.descriptors import Descriptors, write_descriptors

INTERVALS = [f"{name}_{end}" for name in ("uAP", "accuracy_at_1", "recall_at_p90") for end in ("low", "high")]
COLUMNS = ["codec", "score_norm", "candidates", "uAP", "accuracy_at_1", "recall_at_p90", "threshold_at_p90"]


def case(seed, *, d=6, queries=12, references=15, background=30, grid=False):
    """Noisy copies, distractors, several positives for one query, one missing picture on each side."""
    rng = np.random.default_rng(seed)

    def rows(n):
        values = rng.normal(size=(n, d))
        return np.round(values) / 2 if grid else values / np.linalg.norm(values, axis=1, keepdims=True)

    q, r, b = rows(queries), rows(references), rows(background)
    for i in range(queries // 2):
        q[i] = r[i] + (0 if grid else rng.normal(size=d) * 0.3)
    pairs = [(f"Q{i}", f"R{i}") for i in range(queries // 2)]
    pairs += [("Q0", f"R{references - 1}"), ("Q_unread", "R1"), ("Q1", "R_unread")]

    def descriptors(prefix, values, missing=()):
        order = rng.permutation(len(values))  # files are in no order
        names = np.array([f"{prefix}{i}" for i in order])
        return Descriptors(names, values[order], np.array(missing, dtype=str))

    return (descriptors("Q", q, ["Q_unread"]), descriptors("R", r, ["R_unread"]), descriptors("T", b), pairs)


def alike(a, b, metric):
    """One pair's score, in float64."""
    if metric == "l2":
        return -sum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist()))
    return float(a @ b) / (float(np.linalg.norm(a) * np.linalg.norm(b)) if metric == "cosine" else 1)


def oracle(query, reference, background, pairs, *, norm, candidates, k, metric="ip"):
    """The whole of docs/method.md §5 and 6 for the codec Flat, with lists and loops."""
    rows = []
    names = sorted(reference.names.tolist())
    vector = {name: reference.vectors[reference.names.tolist().index(name)].astype(float) for name in names}
    for name in sorted(query.names.tolist()):
        q = query.vectors[query.names.tolist().index(name)].astype(float)
        bias = 0.0
        if norm:
            beta, first, last = norm
            products = sorted((alike(q, b, metric) for b in background.vectors.astype(float)), reverse=True)
            bias = beta * sum(products[first:last + 1]) / (last + 1 - first)
        own = sorted(((alike(q, vector[r], metric) - bias, name, r) for r in names), key=lambda row: -row[0])
        rows += own[:k] if candidates == "per_query" else own
    rows.sort(key=lambda row: (-row[0], row[1], row[2]))
    if candidates == "global":
        rows = rows[:k * len(query.names)]
    truth, hits, uap, best, threshold = set(pairs), 0, 0.0, 0.0, None
    rows.sort(key=lambda row: (-np.float32(row[0]), row[1:] in truth))
    for i, (s, q, r) in enumerate(rows, start=1):
        if (q, r) in truth:
            hits += 1
            uap += hits / i / len(pairs)
        if hits / i >= 0.9 and hits / len(pairs) > best:
            best, threshold = hits / len(pairs), s
    first = sum(sum(q == name and np.float32(s) >= np.float32(own) for s, q, _ in rows) == 1
                for own, name, r in rows if (name, r) in truth)
    return uap, first / len(pairs), best, threshold


@pytest.mark.parametrize("candidates", ["per_query", "global"])
@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("k", [1, 3, 40])
def test_equals_the_oracle(seed, k, grid, candidates):
    query, reference, background, pairs = case(seed, grid=grid)
    rows = score_descriptors(query, reference, background, pairs, codecs=["Flat"],
                             score_norms=[None, "1.0[0,2]", "0.5[1,1]"], candidates=candidates, k=k)
    for row, norm in zip(rows, (None, (1.0, 0, 2), (0.5, 1, 1)), strict=True):
        expected = oracle(query, reference, background, pairs, norm=norm, candidates=candidates, k=k)
        found = row.metrics
        fractions = found.uAP, found.accuracy_at_1, found.recall_at_p90
        np.testing.assert_allclose(fractions, expected[:3], atol=1e-6)
        assert (found.threshold_at_p90 is None) == (expected[3] is None)
        assert expected[3] is None or found.threshold_at_p90 == pytest.approx(expected[3], abs=1e-6)
        assert len(row.matches) == min(k, 15) * 12 and row.candidates == candidates


@pytest.mark.parametrize("candidates", ["per_query", "global"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
def test_descriptors_of_any_length_equal_the_oracle_in_every_metric(seed, metric, candidates):
    query, reference, background, pairs = case(seed)
    sets = []
    for number, one in enumerate((query, reference, background)):
        scale = np.random.default_rng(number).uniform(0.5, 2, (len(one.names), 1))
        sets.append(Descriptors(one.names, one.vectors * scale + 0.3, one.missing))
    rows = score_descriptors(*sets, pairs, metric=metric, score_norms=[None, "1.0[0,2]", "0.5[1,1]"], k=3,
                             candidates=candidates)
    for row, norm in zip(rows, (None, (1.0, 0, 2), (0.5, 1, 1)), strict=True):
        expected = oracle(*sets, pairs, norm=norm, candidates=candidates, k=3, metric=metric)
        found = row.metrics
        np.testing.assert_allclose((found.uAP, found.accuracy_at_1, found.recall_at_p90), expected[:3], atol=1e-6)
        assert expected[3] is None or found.threshold_at_p90 == pytest.approx(expected[3], abs=1e-5)


@pytest.mark.parametrize(("codec", "metric"), [("SQfp16", "l2"), ("HNSW8;efSearch=64", "l2"), ("IVF1,Flat", "l2"),
                                               ("SQfp16", "cosine"), ("HNSW8;efSearch=64", "cosine")])
def test_approximate_codecs_follow_the_metric(codec, metric):
    query, reference, background, pairs = case(2)
    reference = Descriptors(reference.names, reference.vectors * np.linspace(0.5, 2, 15)[:, None], reference.missing)
    near, exact = (score_descriptors(query, reference, background, pairs, codecs=text, metric=metric, k=3)
                   for text in (codec, "Flat"))
    for one, other in zip(near, exact, strict=True):
        assert one.matches.references.tolist() == other.matches.references.tolist()
        np.testing.assert_allclose(one.matches.scores, other.matches.scores, atol=2e-3)


def test_distances_of_far_and_equal_descriptors_lose_no_digit():
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(8, 6)) + 30).astype(np.float32)
    q, r = (Descriptors(np.array([f"{side}{i}" for i in range(8)]), vectors) for side in "qr")
    (row,) = score_descriptors(q, r, None, [("q0", "r0")], metric="l2", score_norms=None, k=8)
    for a, b, score_ in zip(row.matches.queries, row.matches.references, row.matches.scores):
        apart = vectors[int(a[1])].astype(np.float64) - vectors[int(b[1])]
        assert score_ == pytest.approx(-float(apart @ apart), abs=1e-6)


def test_lengths_that_differ_are_said_once_a_file(files, tmp_path, capsys):
    query = case(4)[0]
    for share, said in ((1, 0), (1.005, 0), (1.02, 1)):
        scale = np.where(np.arange(len(query)) % 2, share, 1)[:, None]
        write_descriptors(files["query"], Descriptors(query.names, 3 * scale * query.vectors
                                                      / np.linalg.norm(query.vectors, axis=1, keepdims=True)))
        files["ground_truth"].write_text("Q0,R0\n")
        for metric in ("ip", "cosine", "l2"):
            score(**files, out=tmp_path / "s", k=3, bootstrap=0, metric=metric)
            err = capsys.readouterr().err
            assert err.count("warning") == (said if metric == "ip" else 0)
            assert not said or metric != "ip" or (
                f"{files['query']}: lengths of descriptors range from 3 to 3.06, and" in err)
            written = json.loads((tmp_path / "s" / "metrics.json").read_text())
            assert written["provenance"]["metric"] == metric
            with open(tmp_path / "s" / "metrics.csv", newline="", encoding="utf-8") as file:
                assert next(csv.reader(file)) == COLUMNS


def test_names_of_files_and_tables_are_compared_in_nfc(files, tmp_path):
    query, reference, background, pairs = case(4)
    for side, one in (("query", query), ("reference", reference)):
        form = "NFD" if side == "query" else "NFC"
        names = np.array([unicodedata.normalize(form, f"é{name}") for name in one.names])
        with h5py.File(files[side], "w") as file:
            file["vectors"], file["image_names"] = one.vectors, np.array([name.encode() for name in names])
    write_ground_truth(files["ground_truth"], [(unicodedata.normalize("NFC", f"é{q}"),
                                                unicodedata.normalize("NFD", f"é{r}")) for q, r in pairs[:6]])
    (tmp_path / "hard.csv").write_text(unicodedata.normalize("NFC", "éQ9\n"))
    values = score(**files, out=tmp_path / "s", k=3, bootstrap=0, hard_negatives=tmp_path / "hard.csv")
    assert values[0]["uAP"] == score_descriptors(query, reference, background, pairs[:6], k=3)[0].metrics.uAP


def test_an_id_that_several_pictures_share_is_said_with_them():
    query, reference, background, _ = case(4)
    names = np.array([{"R0": "R.jpg", "R1": "R.png"}.get(name, name) for name in reference.names.tolist()])
    with pytest.raises(UserError, match=r"ids of the ground truth are not in .*: R .*; R may be R.(jpg|png) or "
                                        r"R.(jpg|png): write which"):
        score_descriptors(query, Descriptors(names, reference.vectors), background, [("Q0", "R")])


def test_rows_come_per_codec_and_norm_and_the_codec_is_applied_to_all():
    query, reference, background, pairs = case(1)
    codecs, norms = ["Flat", "PCAW{d},L2norm,Flat"], ["1.0[0,2]", None]
    rows = score_descriptors(query, reference, background, pairs, codecs=codecs, score_norms=norms, k=3)
    assert [(row.codec, row.score_norm) for row in rows] == [(c, norm) for c in codecs for norm in norms]
    centred = background.vectors.astype(float) - background.vectors.astype(float).mean(axis=0)
    values, directions = np.linalg.eigh(centred.T @ centred)

    def white(d):
        z = (d.vectors - background.vectors.astype(float).mean(axis=0)) @ directions / np.sqrt(values)
        return Descriptors(d.names, z / np.linalg.norm(z, axis=1, keepdims=True), d.missing)

    by_hand = score_descriptors(*map(white, (query, reference, background)), pairs, score_norms=norms, k=3)
    for found, expected in zip(rows[2:], by_hand, strict=True):
        assert found.metrics.uAP == pytest.approx(expected.metrics.uAP, abs=1e-6)
        np.testing.assert_allclose(found.matches.scores, expected.matches.scores, atol=1e-4)


def test_order_of_rows_in_the_files_changes_nothing():
    query, reference, background, pairs = case(2, grid=True)

    def turned(d):
        return Descriptors(d.names[::-1], d.vectors[::-1], d.missing)

    sets = query, reference, background
    for candidates in ("per_query", "global"):
        one, other = (score_descriptors(*these, pairs, codecs=["Flat", "PCA4,Flat"], candidates=candidates,
                                        k=4) for these in (sets, map(turned, sets)))
        for a, b in zip(one, other, strict=True):
            assert a.metrics == b.metrics
            assert (a.matches.references == b.matches.references).all()


def test_pairs_of_missing_pictures_are_missed():
    query = Descriptors(np.array(["Q1"]), np.ones((1, 2)), np.array(["Q2"]))
    reference = Descriptors(np.array(["R1"]), np.ones((1, 2)), np.array(["R2"]))
    pairs = [("Q1", "R1"), ("Q2", "R1"), ("Q2", "R2"), ("Q1", "R2")]
    (row,) = score_descriptors(query, reference, None, pairs, score_norms=[None])
    assert (row.metrics.uAP, row.metrics.accuracy_at_1, row.metrics.recall_at_p90) == (0.25, 0.25, 0.25)


def test_background_may_hold_references():
    query, reference, _, pairs = case(3)
    background = Descriptors(reference.names, reference.vectors)
    assert len(score_descriptors(query, reference, background, pairs)) == 2


@pytest.fixture
def files(tmp_path):
    query, reference, background, pairs = case(4)
    sets = {"query": query, "reference": reference, "background": background}
    paths = {name: tmp_path / f"{name}.hdf5" for name in sets}
    for name, path in paths.items():
        write_descriptors(path, sets[name])
    paths["ground_truth"] = tmp_path / "truth.csv"
    write_ground_truth(paths["ground_truth"], [*pairs, ("Q11", "")])
    return paths


def test_command_writes_metrics_with_provenance(files, tmp_path, capsys):
    out = tmp_path / "new" / "scores"
    values = score(**files, out=out, codecs=["Flat", "PCAW4,L2norm,Flat"], k=3)
    with open(out / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == COLUMNS + INTERVALS
    assert [(row["codec"], row["score_norm"]) for row in rows] == [
        ("Flat", "None"), ("Flat", "1.0[0,2]"),
        ("PCAW4,L2norm,Flat", "None"), ("PCAW4,L2norm,Flat", "1.0[0,2]")]
    query, reference, background, pairs = case(4)
    direct = score_descriptors(query, reference, background, pairs, codecs=["Flat", "PCAW4,L2norm,Flat"], k=3,
                               bootstrap=QueryBootstrap(query.known))
    assert values == [as_record(row) for row in direct]
    for row, value in zip(rows, values, strict=True):
        assert all(float(row[name]) == value[name] for name in (COLUMNS + INTERVALS)[3:] if value[name] is not None)
    written = json.loads((out / "metrics.json").read_text("utf-8"))
    assert written["rows"] == values
    record = written["provenance"]
    assert record["k"] == 3 and "faiss" in " ".join(record["versions"])
    assert record["inputs"] == {
        name: {"file": str(path), "sha256": sha256(path)} for name, path in files.items()}
    assert sorted(path.name for path in out.iterdir()) == ["metrics.csv", "metrics.json"]
    shown = capsys.readouterr().out
    assert "1.0[0,2]" in shown and f"{100 * values[0]['uAP']:.2f}" in shown and "metrics.csv" in shown


def test_command_without_background_and_with_predictions(files, tmp_path):
    del files["background"]
    values = score(**files, out=tmp_path, score_norms=[None], candidates="global", k=2, bootstrap=0, predictions=True)
    assert list(values[0]) == COLUMNS
    assert [value["score_norm"] for value in values] == [None]
    with open(tmp_path / "predictions-1.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    query, reference, _, pairs = case(4)
    (row,) = score_descriptors(query, reference, None, pairs, score_norms=[None], candidates="global", k=2)
    assert rows[0] == ["query_id", "reference_id", "score"]
    assert [r[0] for r in rows[1:]] == row.matches.queries.tolist()
    assert [r[1] for r in rows[1:]] == row.matches.references.tolist()
    assert np.array([r[2] for r in rows[1:]], dtype=np.float32).tolist() == row.matches.scores.tolist()


def test_references_in_several_files(files, tmp_path):
    _, reference, _, _ = case(4)
    parts = []
    for i, rows in enumerate((slice(0, 4), slice(4, None))):
        parts.append(tmp_path / f"part-{i}.hdf5")
        write_descriptors(parts[-1], Descriptors(reference.names[rows], reference.vectors[rows],
                                                 reference.missing if i else np.array([], str)))
    whole = score(**files, out=tmp_path / "whole")
    assert score(**files | {"reference": parts}, out=tmp_path / "parts") == whole
    inputs = json.loads((tmp_path / "parts" / "metrics.json").read_text())["provenance"]["inputs"]
    assert [inputs[name]["file"] for name in ("reference", "reference-1")] == [str(part) for part in parts]
    with pytest.raises(UserError, match="the same id twice"):
        score(**files | {"reference": [parts[0], parts[0]]}, out=tmp_path / "twice")


def test_hard_negatives_above_the_threshold_are_counted(files, tmp_path):
    query, reference, background, pairs = case(4)
    (tmp_path / "hard.csv").write_text("query_id\nQ7\nQ9\nQ11\n")
    values = score(**files, out=tmp_path / "scores", hard_negatives=tmp_path / "hard.csv", k=3, bootstrap=0)
    assert list(values[0]) == [*COLUMNS, "hard_negatives_above_p90", "hard_negatives"]
    rows = score_descriptors(query, reference, background, pairs, k=3)
    assert any(row.metrics.threshold_at_p90 is not None for row in rows)
    for row, value in zip(rows, values, strict=True):
        threshold, above = row.metrics.threshold_at_p90, 0
        for name in ("Q7", "Q9", "Q11"):
            scores = [s for q, s in zip(row.matches.queries, row.matches.scores) if q == name]
            above += threshold is not None and any(s >= threshold for s in scores)
        assert value["hard_negatives"] == 3
        assert value["hard_negatives_above_p90"] == (None if threshold is None else above)
    (tmp_path / "hard.csv").write_text("Q7\nQ99\n")
    with pytest.raises(UserError, match="1 of 2 hard negatives are no queries: Q99"):
        score(**files, out=tmp_path / "scores", hard_negatives=tmp_path / "hard.csv")


def test_intervals_hold_the_value_of_most_resamples():
    query, reference, background, pairs = case(4)
    bootstrap = QueryBootstrap(query.known, resamples=200)
    for row in score_descriptors(query, reference, background, pairs, k=3, bootstrap=bootstrap):
        record = as_record(row)
        assert (record["uAP_low"], record["uAP_high"]) == interval(row.samples["uAP"])
        assert record["uAP_low"] <= np.median(row.samples["uAP"]) <= record["uAP_high"]


def copydays(seed, *, d=5):
    """Four originals, a copy of each in two blocks, strong copies, and distractors, one of a colliding prefix."""
    rng = np.random.default_rng(seed)
    names = [f"20{i:02d}00" for i in range(4)]
    centres = dict(zip(names, rng.normal(size=(4, d))))
    query = {f"original/{name}": centres[name] for name in names}
    for block, noise in (("crops/10", 0.5), ("jpegqual/3", 0.2)):
        query |= {f"{block}/{name}": centres[name] + noise * rng.normal(size=d) for name in names}
    query |= {f"strong/{name[:5]}{i}": centres[name] + rng.normal(size=d) for name in names[1:] for i in range(2)}
    other = {f"{i:06d}": rng.normal(size=d) for i in (200100, 300000, 300001, 300002)}

    def descriptors(rows, missing=()):
        order = rng.permutation(len(rows))
        return Descriptors(np.array(list(rows))[order], np.array(list(rows.values()))[order], np.array(missing, str))

    return descriptors(query, ["strong/200009"]), descriptors(other), rng.normal(size=(30, d))


def copydays_oracle(query, distractors, transform, k):
    """docs/method.md §7 in loops: top k by distance, AP by trapezoids."""
    q = dict(zip(query.names.tolist(), transform(query.vectors)))
    r = {name: v for name, v in q.items() if name.startswith("original/")}
    r |= {f"distractors/{name}": v for name, v in zip(distractors.names.tolist(), transform(distractors.vectors))}
    strong, pooled = [], []
    for name in query.known.tolist():
        rows = []
        if name in q:
            rows = sorted(((float(((q[name].astype(float) - v) ** 2).sum()), other) for other, v in r.items()))[:k]
        rows = [(distance, other.startswith("original/") and other[9:13] == name.rpartition("/")[2][:4])
                for distance, other in rows]
        pooled += rows
        if name.startswith("strong/"):
            strong.append(trapezoids(rows, 1))
    return sum(strong) / len(strong), trapezoids(sorted(pooled), len(query.known))


@pytest.mark.parametrize("seed", range(6))
def test_copydays_is_its_definition(seed):
    query, distractors, _ = copydays(seed)
    (row,) = score_copydays(query, distractors, None, k=5)
    expected = copydays_oracle(query, distractors, lambda vectors: vectors, 5)
    assert (row.metrics.strong_mAP, row.metrics.overall_uAP) == pytest.approx(expected, abs=1e-6)
    assert row.score_norm is None and row.main == ("overall µAP", row.metrics.overall_uAP)


def test_copydays_after_a_codec_goes_by_distance_not_by_angle():
    query, distractors, background = copydays(3)
    background = Descriptors(np.array([f"T{i}" for i in range(len(background))]), background + 5)

    def centred(vectors):
        return vectors - background.vectors.mean(axis=0)  # and a rotation, which keeps distances

    (row,) = score_copydays(query, distractors, background, codecs=["PCA5,Flat"], k=5)
    assert (row.metrics.strong_mAP, row.metrics.overall_uAP) == pytest.approx(
        copydays_oracle(query, distractors, centred, 5), abs=1e-5)
    (flat,) = score_copydays(query, distractors, background, k=5)
    assert flat.metrics == row.metrics  # no distance has changed


def test_copydays_from_descriptor_files(tmp_path, capsys):
    query, distractors, _ = copydays(0)
    files = {"query": tmp_path / "copydays.h5", "reference": tmp_path / "distractors.h5"}
    write_descriptors(files["query"], query)
    write_descriptors(files["reference"], distractors)
    (value,) = score(**files, out=tmp_path / "scores", metrics="cd10k", predictions=True)
    (row,) = score_copydays(query, distractors, None, k=100)
    assert list(value)[:5] == ["codec", "score_norm", "candidates", "strong_mAP", "overall_uAP"]
    assert value["strong_mAP"] == row.metrics.strong_mAP and value["strong_mAP_low"] <= value["strong_mAP_high"]
    assert "strong mAP" in capsys.readouterr().out
    both = Descriptors(np.array([f"distractors/{name}" for name in distractors.names] + ["original/200000"]),
                       np.concatenate([distractors.vectors, query.vectors[query.names == "original/200000"]]))
    write_descriptors(files["reference"], both)
    with pytest.raises(UserError, match="queries have no original"):  # those given are all there are
        score(**files, out=tmp_path / "scores", metrics="cd10k")
    with pytest.raises(UserError, match="metrics=cd10k takes the nearest of every query .*candidates=global"):
        score(**files, out=tmp_path / "scores", metrics="cd10k", candidates="global")
    with pytest.raises(UserError, match=r"normalizes no scores.*score_norms=\['1.0\[0,4\]'\]"):
        score(**files, out=tmp_path / "scores", metrics="cd10k", score_norms=["1.0[0,4]"])
    with pytest.raises(UserError, match="metrics=cd10k .* ground_truth=truth.csv"):
        score(**files, out=tmp_path / "scores", metrics="cd10k", ground_truth="truth.csv")
    write_descriptors(tmp_path / "stems.h5", distractors)
    with pytest.raises(UserError, match="none of the 4 queries .*is in the block original/.*ids=path"):
        score(**files | {"query": tmp_path / "stems.h5"}, out=tmp_path / "scores", metrics="cd10k")
    with pytest.raises(UserError, match="metric=cosine: metrics=cd10k goes by L2 distance"):
        score(**files, out=tmp_path / "scores", metrics="cd10k", metric="cosine")
    with pytest.raises(UserError, match="metrics=map: expected one of disc, cd10k"):
        score(**files, out=tmp_path / "scores", metrics="map")
    with pytest.raises(UserError, match="ground_truth=null: expected the CSV"):
        score(**files, out=tmp_path / "scores")


def test_copydays_measures_what_the_metrics_define():
    query, distractors, _ = copydays(1)
    (row,) = score_copydays(query, distractors, None, k=100, bootstrap=QueryBootstrap(query.known, resamples=20))
    originals = [name for name in query.names.tolist() if name.startswith("original/")]
    assert isinstance(row.metrics, CopydaysMetrics)
    assert row.metrics == evaluate_copydays(row.matches, query.known.tolist(), originals)
    assert set(row.samples) == {"strong_mAP", "overall_uAP"} and len(row.samples["strong_mAP"]) == 20


@pytest.mark.parametrize("options, message", [
    ({"codecs": []}, r"codecs=\[\] asks for nothing; .*codecs=\[Flat\]"),
    ({"score_norms": []}, r"score_norms=\[\] asks for nothing; .*score_norms=\[null\]"),
    ({"codecs": ["Flat", "PQ4"]}, "faiss cannot parse codec 'PQ4' for 6-d"),
    ({"codecs": ["Flat", "SQ8"], "candidates": ["per_query", "global"]},
     "codec 'SQ8' does not search exactly, which candidates=global needs"),
    ({"candidates": []}, r"candidates=\[\] asks for nothing"),
    ({"codecs": ["PCAW7,Flat"]}, "PCA to 7 dimensions of 6-d"),
    ({"score_norms": ["1.0"]}, "score normalization '1.0' not understood"),
    ({"score_norms": ["1.0[0,30]"]}, "background of at least 31 vectors, got 30"),
    ({"metric": "euclid"}, "metric=euclid: expected one of ip, cosine, l2"),
    ({"candidates": "all"}, "candidates=all: expected one of per_query, global"),
    ({"k": 0}, "k=0: expected a whole number"),
    ({"background": None}, "background of at least 3 vectors, none was given"),
    ({"background": None, "score_norms": [None], "codecs": ["Flat", "PCA2,Flat"]},
     "'PCA2,Flat' has to be trained and no background was given"),
    ({"pairs": []}, "no pairs"),
    ({"pairs": [("Q0", "R0"), ("Q77", "R0"), ("Q78.jpg", "R0")]},
     "2 of the 3 query ids of the ground truth are not in the query descriptors: Q77, Q78.jpg .*without"),
    ({"pairs": [("Q0", "R77")]},
     "1 of the 1 reference ids of the ground truth are not in the reference descriptors: R77 "),
    ({"pairs": [("Q0", "R0"), ("Q0", "R0")]}, "ground-truth pair Q0,R0 is given twice"),
    ({"pairs": [("R0", "Q0")]}, "query and reference are swapped; .*exchange the two"),
])
def test_mistakes_in_options(options, message):
    query, reference, background, pairs = case(5)
    values = {"query": query, "reference": reference, "background": background, "pairs": pairs, **options}
    with pytest.raises(UserError, match=message):
        score_descriptors(values.pop("query"), values.pop("reference"), values.pop("background"),
                          values.pop("pairs"), **values)


def test_a_single_codec_or_norm_needs_no_list():
    query, reference, background, pairs = case(5)
    (row,) = score_descriptors(query, reference, background, pairs, codecs="PCA2,Flat", score_norms=None)
    assert (row.codec, row.score_norm) == ("PCA2,Flat", None)


def test_mistakes_in_files(files, tmp_path):
    def refused(message, **options):
        with pytest.raises(UserError, match=message):
            score(**{**files, "out": tmp_path / "scores", **options})
        assert not (tmp_path / "scores").exists()

    refused("lengths: query 6, reference 6, background 5; expected", background=other_length(tmp_path))
    refused("query and reference are swapped", query=files["reference"], reference=files["query"])
    refused("no descriptor file .*absent.hdf5", query=tmp_path / "absent.hdf5")
    refused("truth.csv is not a whole HDF5", reference=files["ground_truth"])
    refused("query.hdf5 is not a UTF-8 CSV", ground_truth=files["query"])
    refused("no ground truth file", ground_truth=tmp_path / "absent.csv")
    refused("query.hdf5 cannot be written: .*query.hdf5 is a file, no folder", out=files["query"])
    write_ground_truth(tmp_path / "none.csv", [("Q1", "")])
    refused("the ground truth has no pairs", ground_truth=tmp_path / "none.csv")


def other_length(folder):
    write_descriptors(folder / "five.hdf5", case(4, d=5)[2])
    return folder / "five.hdf5"
