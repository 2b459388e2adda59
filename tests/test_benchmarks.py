"""Every benchmark, a miniature in its exact layout, through the command line; numbers by plain loops over its files."""

import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import make_cd10k, make_disc, make_ndec, make_pairs, make_sscd
from oracles import trapezoids
from PIL import Image

from rdcd import provenance
from rdcd.cli import main
from rdcd.evaluation.evaluate import evaluate
from rdcd.evaluation.protocols import Protocol
from rdcd.models.student import Student
from rdcd.models.weights import save_student


@pytest.fixture(autouse=True)
def keep_process(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rdcd"])
    monkeypatch.setattr(provenance, "_run", {"command": None, "config": None})


def rdcd(*words):
    try:
        return main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def evaluated(protocol, root, *words, checkpoint="thumbnail", size=32):
    assert rdcd("evaluate", f"protocol={protocol}", f"checkpoint={checkpoint}", f"data.root={root}", "out=out",
                "workers=0", "device=cpu", f"protocol.size={size}", *words) == 0
    return rows("out/metrics.csv")


def thumbnails(folder, *, size=(32, 32), side=9):
    """Path below a folder, without extension → centred mean colours of its cells, by loops."""
    found = {}
    for path in sorted(Path(folder).rglob("*.jpg")):
        with Image.open(path) as picture:
            target = size if isinstance(size, tuple) else [size * a // min(picture.size) for a in picture.size]
            pixels = np.asarray(picture.convert("RGB").resize(target, Image.Resampling.BILINEAR)) / 255
        height, width = pixels.shape[:2]
        cells = np.array([[pixels[i * height // side:-(-(i + 1) * height // side),
                                  j * width // side:-(-(j + 1) * width // side)].mean(axis=(0, 1))
                           for j in range(side)] for i in range(side)]).transpose(2, 0, 1).ravel()
        cells -= cells.mean()
        found[path.relative_to(folder).with_suffix("").as_posix()] = cells / np.linalg.norm(cells)
    return found


def stems(vectors):
    return {name.rpartition("/")[2]: v for name, v in vectors.items()}


def pooled(queries, references, background, pairs, *, normalized, k, candidates="per_query"):
    """µAP of docs/method.md §5 and 6, in loops; and the scored rows, (score, query, hit)."""
    found = []
    for query, q in queries.items():
        bias = np.mean(sorted((float(q @ b) for b in background.values()), reverse=True)[:3]) if normalized else 0.0
        own = sorted(((float(q @ r) - bias, query, (query, name) in pairs) for name, r in references.items()),
                     key=lambda row: -row[0])
        found += own[:k] if candidates == "per_query" else own
    if candidates == "global":
        found = sorted(found, key=lambda row: -row[0])[:k * len(queries)]
    found.sort(key=lambda row: (-row[0], row[2]))
    hits, area = 0, 0.0
    for rank, (_, _, hit) in enumerate(found, start=1):
        hits += hit
        area += hit * hits / rank / len(pairs)
    return area, found


def truth(path):
    with open(path, encoding="utf-8") as file:
        return {tuple(line.strip().split(",")) for line in file if not line.startswith("query_id")
                and not line.strip().endswith(",")}


@pytest.mark.parametrize(("protocol", "split", "candidates"), [
    ("disc_dev", "dev", "global"), ("disc_dev_knn10", "dev", "per_query"), ("disc_final", "final", "global")])
def test_disc_by_its_protocols(tmp_path, protocol, split, candidates):
    root = make_disc(tmp_path / "disc", splits=("dev", "final"))
    table = evaluated(protocol, root, "protocol.k=4")
    queries, references, background = (stems(thumbnails(root / "images" / name))
                                       for name in (f"{split}_queries", "references", "train"))
    pairs = truth(root / f"{split}_ground_truth.csv")
    for row, normalized in zip(table, (False, True), strict=True):
        expected, _ = pooled(queries, references, background, pairs, normalized=normalized, k=4, candidates=candidates)
        assert float(row["uAP"]) == pytest.approx(expected, abs=1e-4) and row["candidates"] == candidates
        assert float(row["uAP_low"]) <= float(row["uAP_high"])
    said = json.loads(Path("out/metrics.json").read_text())["provenance"]
    assert said["protocol"].startswith(f"{protocol} ({split} queries), 32 px square") and said["bootstrap"] == 1000


@pytest.mark.parametrize("under", ["", "images"])
def test_sscds_names_give_the_same_numbers(tmp_path, under):
    official = evaluated("disc_dev_knn10", make_disc(tmp_path / "disc", shards=1))
    assert evaluated("disc_dev_knn10", make_sscd(tmp_path / "sscd", under=under)) == official


@pytest.mark.parametrize("listed", [True, False])
def test_ndec_counts_hard_negatives_above_the_threshold(tmp_path, listed, capsys):
    root = make_ndec(tmp_path / "ndec", listed=listed)
    table = evaluated("ndec", root)
    queries = stems(thumbnails(root / "NDEC_test_query"))
    references, background = (stems(thumbnails(root / "DISC/images" / name)) for name in ("references", "train"))
    pairs = truth(root / "public_ground_truth_h5.csv")
    negatives = set(queries) - {query for query, _ in pairs}
    if listed:
        negatives = set((root / "hard_negatives.csv").read_text().split()) - {"query_id"}
    for row, normalized in zip(table, (False, True), strict=True):
        expected, found = pooled(queries, references, background, pairs, normalized=normalized, k=10)
        assert float(row["uAP"]) == pytest.approx(expected, abs=1e-4)
        assert int(row["hard_negatives"]) == len(negatives) == (8 if listed else 12)
        above = {query for score, query, _ in found if score >= float(row["threshold_at_p90"]) - 1e-6}
        assert int(row["hard_negatives_above_p90"]) == len(above & negatives)
    said = json.loads(Path("out/metrics.json").read_text())["provenance"]["benchmark"]["hard_negatives_from"]
    assert said == ("hard_negatives.csv" if listed else "queries without a pair")
    assert "hard negatives above" in Path("out/report.html").read_text() and "hard neg." in capsys.readouterr().out


def test_cd10k_is_its_definition(tmp_path, capsys):
    root = make_cd10k(tmp_path / "cd10k")
    (row,) = evaluated("cd10k", root, "protocol.k=6")  # 243 numbers are too many for 20 whitening pictures
    queries = {name: v for name, v in thumbnails(root, size=32).items() if not name.startswith(("distr", "train"))}
    references = {name: v for name, v in queries.items() if name.startswith("original/")}
    references |= {f"distractors/{name}": v for name, v in thumbnails(root / "distractors", size=32).items()}
    strong, everything = [], []
    for query, q in queries.items():
        own = sorted((float(((q - r) ** 2).sum()), name.startswith("original/")
                      and Path(name).name[:4] == Path(query).name[:4]) for name, r in references.items())[:6]
        everything += own
        if query.startswith("strong/"):
            strong.append(trapezoids(own, 1))
    assert len(queries) == 20 * 3 - 3 + 5 and len(strong) == 5
    assert float(row["strong_mAP"]) == pytest.approx(np.mean(strong), abs=1e-4)
    assert float(row["overall_uAP"]) == pytest.approx(trapezoids(sorted(everything), len(queries)), abs=1e-4)
    assert row["score_norm"] == "None" and float(row["strong_mAP_low"]) <= float(row["strong_mAP_high"])
    assert "strong mAP" in Path("out/report.html").read_text() and "left out of its rows" in capsys.readouterr().out


def test_cd10k_from_descriptor_files(tmp_path):
    root = make_cd10k(tmp_path / "cd10k")
    (row,) = evaluated("cd10k", root)
    for name, folder, words in (("distractors", root / "distractors", []), ("copydays", root, ["ids=path"])):
        assert rdcd("extract", f"images={folder}", "model=thumbnail", f"out={name}.h5", "size=32", "resize=short",
                    "workers=0", "device=cpu", *words) == 0
    assert rdcd("score", "query=copydays.h5", "reference=distractors.h5", "metrics=cd10k", "out=scores") == 0
    assert rows("scores/metrics.csv") == [{name: row[name] for name in row if name not in ("model", "dim")}]


def test_pairs_of_ones_own(tmp_path, capsys):
    root = make_pairs(tmp_path / "mine", apart=True)
    table = evaluated("pairs", root)
    queries, references, background = (stems(thumbnails(root / name))
                                       for name in ("queries", "references", "background"))
    for row, normalized in zip(table, (False, True), strict=True):
        expected, _ = pooled(queries, references, background, truth(root / "pairs.csv"), normalized=normalized, k=10)
        assert float(row["uAP"]) == pytest.approx(expected, abs=1e-4)
    alone = make_pairs(tmp_path / "alone", background=0)
    assert [row["score_norm"] for row in evaluated("pairs", alone, f"data.pairs={alone}/pairs.csv")] == ["None"]
    assert "no background pictures, so no score normalization; data.background=DIR" in capsys.readouterr().out
    given = evaluated("pairs", alone, f"data.background={root}/background")
    assert [row["score_norm"] for row in given] == ["None", "1.0[0,2]"]


def test_two_students_are_compared_on_the_same_resamples(tmp_path, capsys):
    root = make_disc(tmp_path / "disc")
    for seed in range(2):
        torch.manual_seed(seed)
        save_student(tmp_path / f"s{seed}.safetensors", Student(trunk="test_efficientnet", dim=8, kd_dim=12), size=32)
    evaluated("disc_dev_knn10", root, "protocol.codecs=[Flat,'PCA4,L2norm,Flat']",
              checkpoint="[s0.safetensors,s1.safetensors,phash]")
    compared = rows("out/differences.csv")
    assert [(row["model"], row["other"], row["codec"], row["score_norm"]) for row in compared] == [
        ("s0", other, codec, norm) for other in ("s1", "phash") for codec in ("Flat", "PCA4,L2norm,Flat")
        for norm in ("None", "1.0[0,2]")]
    table = rows("out/metrics.csv")
    value = {(row["model"], row["codec"], row["score_norm"]): float(row["uAP"]) for row in table}
    for row in compared:
        first, other = (value[name, row["codec"], row["score_norm"]] for name in ("s0", row["other"]))
        assert float(row["uAP"]) == pytest.approx(first - other, abs=1e-12)
        assert float(row["uAP_low"]) <= float(row["uAP_high"])
    assert json.loads(Path("out/metrics.json").read_text())["differences"][0]["other"] == "s1"
    assert "paired differences" in capsys.readouterr().out
    again = evaluated("disc_dev_knn10", root, checkpoint="[s1.safetensors,s1.safetensors]")
    assert {row["uAP_low"] for row in rows("out/differences.csv")} == {"0.0"} and again


def test_a_cut_by_pca_is_a_row(tmp_path):
    root = make_disc(tmp_path / "disc")
    table = evaluated("disc_dev", root, 'protocol.codecs=[Flat,"PCA8,L2norm,Flat","PCAW4,L2norm,Flat"]')
    assert [row["codec"] for row in table[::2]] == ["Flat", "PCA8,L2norm,Flat", "PCAW4,L2norm,Flat"]


def test_without_intervals(tmp_path):
    root = make_disc(tmp_path / "disc")
    assert list(evaluated("disc", root, "protocol.bootstrap=0", checkpoint="[thumbnail,phash]")[0])[-1] \
        == "threshold_at_p90"
    assert not Path("out/differences.csv").exists()


@pytest.mark.parametrize(("protocol", "words", "said"), [
    ("cd10k", [], "missing original"), ("ndec", [], "is no NDEC root: missing NDEC_test_query"),
    ("pairs", [], "no file .*pairs.csv of known copies"),
    ("disc", ["data.pairs=x.csv"], "pairs=x.csv says nothing about layout=disc"),
    ("disc_final", [], "missing .*final_queries")])
def test_another_layout_is_said(tmp_path, capsys, protocol, words, said):
    root = make_disc(tmp_path / "disc")
    assert rdcd("evaluate", f"protocol={protocol}", "checkpoint=thumbnail", f"data.root={root}", "out=out", *words) == 2
    error = capsys.readouterr().err
    assert re.search(said, error) and error.startswith("rdcd: ") and error.count("\n") == 1


def test_models_are_called_apart(tmp_path):
    root = make_disc(tmp_path / "disc")
    for place in ("a/run", "b/run"):
        student = Student(trunk="test_efficientnet", dim=8, kd_dim=12)
        for name in ("student", "thumbnail"):
            save_student(tmp_path / place / f"{name}.safetensors", student, size=32)
        (tmp_path / place / "run.json").write_text(json.dumps({
            "models": {"teacher": "student.safetensors"}, "data_root": str(root), "seed": 0, "name": "x"}))
    words = ["protocol.codecs=[Flat]", "protocol.score_norms=[null]", "protocol.bootstrap=0"]

    def names(checkpoint):
        return [row["model"] for row in evaluated("disc", root, *words, checkpoint=checkpoint)]

    assert names("[a/run,b/run]") == ["a/run teacher", "b/run teacher"]
    assert names("[a/run/thumbnail.safetensors,thumbnail]") == ["run thumbnail", "thumbnail"]
    assert names("[a/run/student.safetensors,b/run/student.safetensors]") == [
        "a/run/student.safetensors", "b/run/student.safetensors"]
    assert names("[thumbnail,thumbnail]") == ["thumbnail", "thumbnail (2)"]


def test_a_table_of_one_model_leaves_no_old_comparison(tmp_path):
    root = make_disc(tmp_path / "disc")
    evaluated("disc", root, checkpoint="[thumbnail,phash]")
    assert Path("out/differences.csv").is_file()
    evaluated("disc", root)
    assert not Path("out/differences.csv").exists()


def test_ndec_without_hard_negatives_is_a_table_still(tmp_path):
    root = make_ndec(tmp_path / "ndec", hard_negatives=0, distractors=0)
    assert {row["hard_negatives"] for row in evaluated("ndec", root)} == {"0"}


@pytest.mark.parametrize(("words", "said"), [
    (["checkpoint=[thumbnail,timm:nonsense]"], "timm:nonsense: timm has no such model"),
    (["checkpoint=[thumbnail,none.safetensors]"], "no weights file none.safetensors"),
    (["checkpoint=3"], "no model '3'"), (["checkpoint=[null]"], "checkpoint=None: expected a path"),
    (["protocol.score_norms=['1.0[0,500]']"], "needs 501 background pictures"),
    (["protocol.codecs=['PCA500,Flat']"], "thumbnail: codec 'PCA500,Flat': a PCA to 500"),
    (["data.root=2024"], "2024"),
    (["keep_descriptors=no"], "keep_descriptors=no: expected true or false")])
def test_mistakes_are_told_before_anything_is_extracted(tmp_path, capsys, monkeypatch, words, said):
    root = make_disc(tmp_path / "disc")
    monkeypatch.setattr("rdcd.evaluation.evaluate.extract_descriptors", lambda *a, **k: pytest.fail("too late"))
    given = {word.partition("=")[0] for word in words}
    rest = [word for word in ("checkpoint=thumbnail", f"data.root={root}", "out=out")
            if word.partition("=")[0] not in given]
    assert rdcd("evaluate", *words, *rest, "device=cpu") == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_model_that_no_codec_fits_is_left_out_of_the_table(tmp_path, capsys):
    root = make_disc(tmp_path / "disc")
    words = ["protocol.codecs=['PCAW100,L2norm,Flat','PCAW8,L2norm,Flat']"]
    save_student(tmp_path / "s.safetensors", Student(trunk="test_efficientnet", dim=4, kd_dim=12), size=32)
    assert rdcd("evaluate", *words, "checkpoint=[thumbnail,s.safetensors]", f"data.root={root}", "out=out") == 2
    assert "s: codec 'PCAW100,L2norm,Flat': a PCA to 100" in capsys.readouterr().err


def test_training_under_a_protocol_that_only_measures_is_refused(tmp_path, capsys):
    root = make_cd10k(tmp_path / "cd10k")
    assert rdcd("train", "protocol=cd10k", f"data.root={root}", "trainer.accelerator=cpu") == 2
    assert "protocol=cd10k measures only" in capsys.readouterr().err


def test_the_function_behind_the_command_needs_no_yaml(tmp_path):
    root = make_disc(tmp_path / "disc")
    from rdcd.evaluation.evaluate import DataRoot

    found = evaluate(checkpoint="thumbnail", data=DataRoot(str(root)), protocol=Protocol(size=32), out="direct",
                     workers=0, device="cpu")
    assert [row["score_norm"] for row in found] == [None, "1.0[0,2]"]
