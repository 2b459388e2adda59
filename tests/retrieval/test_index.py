"""An index changes as a whole, and what it finds depends on what is in it, not on how that came in."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import faiss
import numpy as np
import pytest

from rdcd.errors import UserError
from rdcd.retrieval.codec import Codec
from rdcd.retrieval.index import Index, read_about
from rdcd.retrieval.index_writer import change_index, new_index
from rdcd.retrieval.score_norm import parse_score_norm
from rdcd.retrieval.segments import train_faiss

DIM = 8
MODEL = {"name": "made up", "weights_sha256": "ab" * 32, "dim": DIM, "size": 32, "resize": "square"}
ROOT = Path(__file__).resolve().parents[2]


def collection(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Path → descriptor; every third is that of the one before, so that scores are equal."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, DIM)).astype(np.float32)
    vectors[2::3] = vectors[1::3][:len(vectors[2::3])]
    names = rng.permutation(count)
    return {f"/p/{name:05d} é.jpg": vector for name, vector in zip(names, vectors)}


def digests(paths: list[str]) -> np.ndarray:
    rows = [np.random.default_rng(list(path.encode())).integers(0, 256, 32) for path in paths]
    return np.array(rows, dtype=np.uint8).reshape(-1, 32)


def put(writer, pictures: dict[str, np.ndarray], **more: object) -> Index:
    """Commit pictures to a writer."""
    paths = sorted(pictures, key=lambda path: path.encode())
    segment = writer.segment()
    if paths:
        segment.append(paths, digests(paths), writer.index.encode(np.array([pictures[path] for path in paths])))
    segment.close()
    if writer.about["factory"] != "Flat" and not writer.index.segments:
        writer.train(segment)
    return writer.commit(segment, **more)


def make(folder: Path, pictures: dict[str, np.ndarray], *, codec: str = "Flat", background: np.ndarray | None = None,
         factory: str = "Flat") -> Index:
    ready = Codec(codec, DIM)
    ready.train(background)
    with new_index(folder, model=MODEL, codec=ready, dim=DIM, background=background,
                   background_source=None if background is None else "given", factory=factory) as writer:
        return put(writer, pictures)


def slow_search(pictures: dict[str, np.ndarray], query: np.ndarray, k: int) -> list[tuple[str, float]]:
    """All products, one by one; equal ones in order of path."""
    scored = [(-float(np.dot(query.astype(np.float64), vector.astype(np.float64))), path.encode())
              for path, vector in pictures.items()]
    return [(path.decode(), -score) for score, path in sorted(scored)[:k]]


def found(index: Index, queries: np.ndarray, k: int, **how) -> list[list[tuple[str, float]]]:
    hits = index.search(queries, k, **how)
    return [[(index.path(row), score) for row, score in zip(rows, scores)]
            for rows, scores in zip(hits.rows.tolist(), hits.scores.tolist())]


@pytest.mark.parametrize("parts", [[90], [30, 30, 30], [50, 1, 1, 1, 20, 17], [1] * 12 + [78]], ids=str)
def test_search_of_added_parts_is_that_of_a_plain_loop(tmp_path: Path, parts: list[int]) -> None:
    pictures = collection(90)
    paths, queries = list(pictures), np.random.default_rng(1).normal(size=(9, DIM)).astype(np.float32)
    queries[0] = pictures[paths[1]]  # whose equal is another
    start = 0
    for count in parts:
        part = {path: pictures[path] for path in paths[start:start + count]}
        if not start:
            index = make(tmp_path / "index", part)
        else:
            with change_index(tmp_path / "index") as writer:
                index = put(writer, part)
        start += count
    for k in (1, 2, 7, 90, 200):
        for query, got in zip(queries, found(index, queries, k, score_norm=None)):
            want = slow_search(pictures, query, k)
            assert [path for path, _ in got] == [path for path, _ in want]
            np.testing.assert_allclose([score for _, score in got], [score for _, score in want], rtol=1e-12)
    sizes = [len(segment) for segment in index.segments]
    assert sum(sizes) == 90 and all(a > 2 * b for a, b in zip(sizes, sizes[1:]))


@pytest.mark.parametrize("codec", ["Flat", "PCAW4,L2norm,Flat"])
@pytest.mark.parametrize("given", [True, False])
def test_added_and_removed_is_as_built_at_once_to_the_last_bit(tmp_path: Path, codec: str, given: bool) -> None:
    pictures, queries = collection(60), np.random.default_rng(1).normal(size=(5, DIM)).astype(np.float32)
    background = np.random.default_rng(2).normal(size=(20, DIM)).astype(np.float32) if given else None
    if not given and codec != "Flat":
        with pytest.raises(UserError, match="has to be trained and no background was given"):
            make(tmp_path / "no", pictures, codec=codec)
        return
    paths = list(pictures)
    at_once = make(tmp_path / "once", {path: pictures[path] for path in paths[5:]}, codec=codec, background=background)
    make(tmp_path / "parts", {path: pictures[path] for path in paths[:40]}, codec=codec, background=background)
    for start in range(40, 60, 5):
        with change_index(tmp_path / "parts") as writer:
            put(writer, {path: pictures[path] for path in paths[start:start + 5]})
    with change_index(tmp_path / "parts") as writer:
        writer.commit(without=set(paths[:5]))
    parts = Index.open(tmp_path / "parts")
    assert len(parts) == 55 and parts.score_norm == ("1.0[0,2]" if given else "1.0[10,12]")
    assert np.array_equal(parts.background, at_once.background)
    assert found(parts, queries, 8) == found(at_once, queries, 8)


def test_scores_are_normalized_by_the_background(tmp_path: Path) -> None:
    pictures, queries = collection(30), np.random.default_rng(1).normal(size=(4, DIM)).astype(np.float32)
    index = make(tmp_path / "index", pictures)
    plain, normal = index.search(queries, 3, score_norm=None), index.search(queries, 3, score_norm="0.5[1,3]")
    for query, before, after in zip(queries, plain.scores, normal.scores):
        nearest = np.sort(np.array(list(pictures.values()), np.float64) @ query.astype(np.float64))[::-1]
        np.testing.assert_allclose(after, before - 0.5 * nearest[1:4].mean(), rtol=1e-6)
    assert np.array_equal(plain.rows, normal.rows)
    with pytest.raises(UserError, match="background of at least 41 vectors, got 30"):
        index.search(queries, score_norm="1.0[0,40]")


def test_equal_files_count_once_in_the_background(tmp_path: Path) -> None:
    with new_index(tmp_path / "index", model=MODEL, codec=Codec("Flat", DIM), dim=DIM) as writer:
        segment = writer.segment()
        same = np.repeat(digests(["x"]), 5, axis=0)
        segment.append([f"/{i}" for i in range(5)], same, np.ones((5, DIM), np.float32))
        segment.close()
        assert len(writer.commit(segment).background) == 1


@pytest.mark.parametrize("count", [0, 1, 2])
def test_tiny_indexes(tmp_path: Path, count: int) -> None:
    pictures, query = collection(count), np.ones((1, DIM), np.float32)
    index = make(tmp_path / "index", pictures)
    index = Index.open(tmp_path / "index")
    assert len(index) == count and index.score_norm is None and index.recall() is None
    assert found(index, query, 5) == [[(path, pytest.approx(score)) for path, score in
                                       slow_search(pictures, query[0], 5)]]
    with change_index(tmp_path / "index") as writer:
        index = writer.commit(without=set(pictures))
    assert len(index) == 0 and found(index, query, 3) == [[]]
    assert not [path for path in (tmp_path / "index").iterdir() if path.is_dir()]


def test_a_picture_that_changed_is_replaced(tmp_path: Path) -> None:
    pictures = collection(20)
    path = list(pictures)[3]
    make(tmp_path / "index", pictures)
    new = np.full(DIM, 9, np.float32)
    with change_index(tmp_path / "index") as writer:
        index = put(writer, {path: new}, without={path})
    assert len(index) == 20 and np.array_equal(index.vectors(np.array([index.find(path)]))[0], new)


def test_an_opened_index_stays_as_it_was(tmp_path: Path) -> None:
    pictures, queries = collection(40), np.eye(DIM, dtype=np.float32)
    before = make(tmp_path / "index", pictures)
    want = found(before, queries, 5)
    for seed in range(1, 4):
        with change_index(tmp_path / "index") as writer:
            put(writer, {f"{path}{seed}": v for path, v in collection(40, seed).items()})
    assert found(before, queries, 5) == want and len(Index.open(tmp_path / "index")) == 160


def test_two_writers_and_wrong_folders_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "index", collection(3))
    with change_index(tmp_path / "index"):
        with pytest.raises(UserError, match=f"is being written by process {os.getpid()}: try again"):
            with change_index(tmp_path / "index"):
                pass
        assert len(Index.open(tmp_path / "index")) == 3
    with pytest.raises(UserError, match="holds an index already: add to it with"):
        make(tmp_path / "index", collection(3))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="is not empty and is no index"):
        make(tmp_path / "mine", collection(3))
    for folder in ("mine", "none"):
        with pytest.raises(UserError, match="no index in .*rdcd index build"):
            Index.open(tmp_path / folder)


@pytest.mark.parametrize(("name", "content", "said"), [
    ("index.json", b"{", "is damaged"), ("index.json", b'{"format": "other"}', "format 'other', expected"),
    ("000001/vectors.f32", b"1234", "is damaged: 4 bytes, expected"), ("000001/paths.utf8", b"/a", "is damaged"),
    ("000001/path_ends.i64", None, "is damaged")])
def test_damage_is_said(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    make(tmp_path / "index", collection(3))
    path = tmp_path / "index" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        Index.open(tmp_path / "index")


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        with new_index(tmp_path / "index", model=MODEL, codec=Codec("Flat", DIM), dim=DIM) as writer:
            writer.segment().append(["/a"], digests(["/a"]), np.ones((1, DIM), np.float32))
            raise ZeroDivisionError
    assert not (tmp_path / "index").exists()


WRITER = textwrap.dedent("""
    import os, signal, sys
    sys.path[:0] = [{tests!r}]
    from test_index import *
    from rdcd.retrieval import index_writer, segments
    kill = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
    if {place!r} == "build":
        segments.SegmentWriter.close = kill
        make({folder!r}, collection(30))
    setattr(*{{"merge": (index_writer, "merge"), "switch": (index_writer, "write_json"),
              "clean": (index_writer, "_sweep")}}[{place!r}], kill) if {place!r} != "clean" else None
    with change_index({folder!r}) as writer:
        if {place!r} == "clean":
            index_writer._sweep = kill
        put(writer, collection(40, 1))
""")


@pytest.mark.parametrize("place", ["build", "merge", "switch", "clean"])
def test_a_killed_writer_leaves_a_whole_index(tmp_path: Path, place: str) -> None:
    folder, old = tmp_path / "index", {f"/old{path}": vector for path, vector in collection(30).items()}
    if place != "build":
        make(folder, old)
    script = WRITER.format(tests=str(Path(__file__).parent), place=place, folder=str(folder))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL, done.stderr
    if place == "build":
        with pytest.raises(UserError, match="no index in"):
            Index.open(folder)
        assert len(make(folder, old)) == 30
    assert len(Index.open(folder)) == {"clean": 70}.get(place, 30)
    with change_index(folder) as writer:
        index = put(writer, collection(5, 2), without=set())
    listed = {part["folder"] for part in read_about(folder)["segments"]}
    assert {path.name for path in folder.iterdir() if path.is_dir()} == listed  # what was left is gone
    assert len(index) == {"clean": 75}.get(place, 35)


def _read_on(folder: Path, sizes: multiprocessing.Queue, stop) -> None:
    query = np.ones((1, DIM), np.float32)
    while not stop.is_set():
        index = Index.open(folder)
        paths = [index.path(row) for row in index.search(query, 1000, score_norm=None).rows[0].tolist()]
        sizes.put((len(index), len(set(paths))))


def test_readers_see_the_old_index_or_the_new(tmp_path: Path) -> None:
    make(tmp_path / "index", {f"/0{path}": v for path, v in collection(10).items()})
    context = multiprocessing.get_context("spawn")
    sizes, stop = context.Queue(), context.Event()
    readers = [context.Process(target=_read_on, args=(tmp_path / "index", sizes, stop)) for _ in range(2)]
    for reader in readers:
        reader.start()
    seen = [sizes.get(timeout=60) for _ in readers]
    for number in range(1, 25):
        with change_index(tmp_path / "index") as writer:
            put(writer, {f"/{number}{path}": v for path, v in collection(10, number).items()})
    stop.set()
    while any(reader.is_alive() for reader in readers) or not sizes.empty():
        while not sizes.empty():
            seen.append(sizes.get())
        time.sleep(0.01)
    assert [reader.exitcode for reader in readers] == [0, 0]
    assert len({size for size, _ in seen}) > 2
    assert all(size == paths and size % 10 == 0 for size, paths in seen)


@pytest.mark.parametrize("factory", ["IVF16,Flat", "HNSW8", "IVF4,PQ4x4"])
def test_approximate_indexes_find_most_with_exact_scores(tmp_path: Path, factory: str) -> None:
    faiss.omp_set_num_threads(1)
    pictures = {f"/{i:05d}": v for i, v in enumerate(np.random.default_rng(0).normal(size=(2400, DIM))
                                                     .astype(np.float32))}
    paths, queries = list(pictures), np.random.default_rng(1).normal(size=(20, DIM)).astype(np.float32)
    index = make(tmp_path / "index", {path: pictures[path] for path in paths[:1500]}, factory=factory)
    with change_index(tmp_path / "index") as writer:
        put(writer, {path: pictures[path] for path in paths[1500:]})
    with change_index(tmp_path / "index") as writer:
        index = put(writer, {f"/more{i}": -np.ones(DIM, np.float32) for i in range(5)})
    assert [segment.faiss is not None for segment in index.segments] == [True, False]
    exact, rows = index.nearest(queries, 10, exact=True)
    scores, approximate = index.nearest(queries, 10)
    shared = [set(a) & set(b) for a, b in zip(rows.tolist(), approximate.tolist())]
    assert sum(map(len, shared)) > 0.8 * rows.size
    same = rows == approximate
    assert np.array_equal(scores[same], exact[same])  # to the last bit
    recall = read_about(tmp_path / "index")["recall"]
    assert recall == index.recall() and 0.8 < recall["recall_at_10"] <= 1 and recall["queries"] == 200


@pytest.mark.parametrize("factory", ["HNSW8", "HNSW8_SQ8", "IVF16,Flat"])
def test_thousands_of_equal_descriptors_hide_no_other_picture(tmp_path: Path, factory: str) -> None:
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    others = rng.normal(size=(1200, DIM)).astype(np.float32)
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    equal = np.tile(others[:1], (2500, 1))
    pictures = {f"/{i:05d}": v for i, v in enumerate(np.concatenate([others[:600], equal, others[600:]]))}
    index = make(tmp_path / "index", pictures, factory=factory)
    with change_index(tmp_path / "index") as writer:  # a small segment, too
        index = put(writer, {f"/9{i:04d}": others[0] for i in range(12)})
    queries = others[1:200]
    _, exact = index.nearest(queries, 1, exact=True)
    scores, rows = index.nearest(queries, 1)
    assert (rows == exact).mean() > 0.98
    assert np.array_equal(scores[rows == exact], index.nearest(queries, 1, exact=True)[0][rows == exact])
    scores, rows = index.nearest(others[:1], 2513)  # all of the equal ones, in order of path, each once
    assert [index.path(row) for row in rows[0]] == sorted(path for path, v in pictures.items()
                                                          if (v == others[0]).all()) + [f"/9{i:04d}" for i in range(12)]
    assert index.segments[0].faiss.ntotal == 1200 and index.segments[1].faiss is None
    recall = read_about(tmp_path / "index")["recall"]
    assert recall == index.recall() and recall == slow_recall(index, pictures)


def slow_recall(index: Index, pictures: dict[str, np.ndarray]) -> dict:
    """The recall of distinct pictures, by a loop over all of them."""
    distinct = list({v.tobytes(): v for v in pictures.values()}.values())
    seen, hits = set(), []
    for query in index.background:
        if query.tobytes() in seen or len(seen) == 200:
            continue
        seen.add(query.tobytes())
        products = {v.tobytes(): float(query.astype(np.float64) @ v.astype(np.float64)) for v in distinct}
        del products[query.tobytes()]
        nearest = sorted(products, key=products.get)[:-11:-1]
        large, small = index.segments
        found = {v.tobytes() for v in (*small.vectors, *large.vectors[large.distinct(query[None], 11)[0]])}
        hits.append([v in found for v in nearest])
    return {"queries": len(hits), "recall_at_1": np.mean([hit[0] for hit in hits]),
            "recall_at_10": np.mean([np.mean(hit) for hit in hits])}


def test_an_index_of_one_picture_over_and_over(tmp_path: Path) -> None:
    index = make(tmp_path / "index", {f"/{i}": np.ones(DIM, np.float32) for i in range(1100)}, factory="HNSW8")
    assert len(set(index.nearest(np.ones((1, DIM), np.float32), 20)[1][0].tolist())) == 20
    assert index.recall() == {"queries": 0, "recall_at_1": 1.0, "recall_at_10": 1.0}
    assert index.segments[0].faiss.ntotal == 1


@pytest.mark.parametrize(("factory", "said"), [
    ("HNSW8_PQ4", "factory=HNSW8_PQ4: faiss builds its IndexHNSWPQ for L2 distances, .*HNSW32_SQ8"),
    ("NSG8", None),
    ("IVF4,PQ4x4,RFlat", None), ("SQ8_direct", "factory=SQ8_direct does not rank as an exact search does: on 512 ")])
def test_factories_rank_by_inner_product_or_are_refused(tmp_path: Path, factory: str, said: str | None) -> None:
    pictures = {f"/{i:05d}": v for i, v in enumerate(np.random.default_rng(0).normal(size=(1100, DIM))
                                                     .astype(np.float32))}
    if said is None:
        make(tmp_path / "index", pictures, factory=factory)
    else:
        with pytest.raises(UserError, match=said):
            make(tmp_path / "index", pictures, factory=factory)
        assert not (tmp_path / "index").exists()
    with pytest.raises(UserError, match="factory=NSG8,PQ4x4: faiss builds its IndexNSGPQ for L2 distances"):
        train_faiss("NSG8,PQ4x4", np.array(list(pictures.values())), DIM)
    with pytest.raises(UserError, match="factory=NSG8: faiss cannot hold 1,100 pictures, 1 of them distinct"):
        make(tmp_path / "one", dict.fromkeys(pictures, np.ones(DIM, np.float32)), factory="NSG8")


def test_factories_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="factory=IVF64,Flat: faiss cannot train it on 20 pictures"):
        make(tmp_path / "index", collection(20), factory="IVF64,Flat")
    with pytest.raises(UserError, match="factory=NSA: faiss cannot parse it"):
        make(tmp_path / "index", collection(20), factory="NSA")
    assert not (tmp_path / "index").exists()


def test_a_wrong_length_names_the_model(tmp_path: Path) -> None:
    index = make(tmp_path / "index", collection(3))
    with pytest.raises(UserError, match=r"takes \[n, 8\], of its own model, made up \(weights abababababab\)"):
        index.search(np.ones((2, 4), np.float32))
    assert json.loads((tmp_path / "index" / "index.json").read_text())["model"] == MODEL
    assert index.biases(np.ones((2, DIM), np.float32), parse_score_norm(None)).tolist() == [0, 0]
