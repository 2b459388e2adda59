import numpy as np
import pytest

from rdcd.errors import UserError
from rdcd.retrieval import codec as module
from rdcd.retrieval.codec import Codec


def background(rng, n=400, d=12):
    mixing = np.linalg.qr(rng.normal(size=(d, d)))[0] * np.linspace(0.5, 2, d)[:, None]
    return (rng.normal(size=(n, d)) @ mixing + rng.normal(size=d)).astype(np.float32)


def trained(text, vectors):
    codec = Codec(text, vectors.shape[1])
    codec.train(vectors)
    return codec


def whitened(background, vectors, keep):
    """Slow plain oracle of PCAW,L2norm in float64; the sign of each component is free."""
    centre = background.astype(np.float64).mean(axis=0)
    covariance = np.zeros((background.shape[1],) * 2)
    for row in background.astype(np.float64) - centre:
        covariance += np.outer(row, row)
    values, directions = np.linalg.eigh(covariance)
    out = []
    for vector in vectors:
        z = [directions[:, -1 - i] @ (vector - centre) / np.sqrt(values[-1 - i]) for i in range(keep)]
        out.append(np.array(z) / np.linalg.norm(z))
    return np.array(out)


@pytest.mark.parametrize("text, keep", [("PCAW{d},L2norm,Flat", 12), ("PCAW5,L2norm,Flat", 5)])
def test_whitening_equals_the_oracle(text, keep, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 7)  # several blocks
    rng = np.random.default_rng(0)
    known, vectors = background(rng), rng.normal(size=(30, 12)).astype(np.float32)
    found, expected = trained(text, known).apply(vectors), whitened(known, vectors, keep)
    assert found.shape == (30, keep) and found.dtype == np.float32
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)


def test_flat_is_the_identity_and_needs_no_training():
    codec, vectors = Codec("Flat", 3), np.ones((2, 3), dtype=np.float32)
    codec.train(None)
    assert codec.trained and codec.apply(vectors) is vectors


def test_l2norm_needs_no_background():
    codec = Codec("L2norm,Flat", 2)
    codec.train(None)
    np.testing.assert_allclose(codec.apply(np.array([[3, 4]], dtype=np.float32)), [[0.6, 0.8]], rtol=1e-6)


def test_every_codec_gets_its_own_dimension():
    rng = np.random.default_rng(1)
    for d in (4, 6):
        vectors = background(rng, d=d)
        assert trained("PCA{d},Flat", vectors).apply(vectors).shape == (400, d)


@pytest.mark.parametrize("text, message", [
    ("PCAW8", "faiss cannot parse codec 'PCAW8' for 12-d descriptors; .*'PCAW{d},L2norm,Flat', 'Flat' for none"),
    ("HNSWFlat", "faiss cannot parse"),
    ("", "codec '': expected an index-factory string"),
    (None, "codec None: expected an index-factory string"),
    ("PCAX9,Flat", "faiss cannot parse codec 'PCAX9,Flat' for 12-d descriptors"),
    ("{e},Flat", "faiss cannot parse"),
    (",Flat", "faiss cannot parse"),
    ("PQ5", "faiss cannot parse codec 'PQ5'"),
    ("Flat;nprobe=3", "faiss cannot parse"),
    ("IVF4,Flat;nprobes=3", "faiss cannot parse"),
    ("NSG16", "codec 'NSG16' is a IndexNSGFlat, which is not measured here; expected Flat, SQ, PQ, LSH, IVF or HNSW"),
    ("IDMap,Flat", "is a IndexIDMap"),
    ("PCAW13,L2norm,Flat", "PCA to 13 dimensions of 12-d descriptors; expected 1 to 12"),
    ("PCA0,Flat", "PCA to 0 dimensions of 12-d descriptors; expected 1 to 12"),
])
def test_refuses_other_strings(text, message):
    with pytest.raises(UserError, match=message):
        Codec(text, 12)


def test_training_mistakes():
    rng = np.random.default_rng(2)
    with pytest.raises(UserError, match="has to be trained and no background was given.*background=FILE"):
        Codec("PCAW4,Flat", 12).train(None)
    for n in (3, 8):
        with pytest.raises(UserError, match=f"needs more than 8 background vectors and got {n}"):
            trained("PCAW8,L2norm,Flat", background(rng, n=n))
    trained("PCAW8,L2norm,Flat", background(rng, n=9))
    flat = background(rng)
    flat[:, 3:] = 0
    with pytest.raises(UserError, match="vary in only 3 directions, whitening asks for 12.*collapsed"):
        trained("PCAW{d},L2norm,Flat", flat)
    with pytest.raises(UserError, match="vary in only 0 directions"):
        trained("PCAW2,Flat", np.ones((40, 12), dtype=np.float32))
    assert np.isfinite(trained("PCA{d},Flat", flat).apply(flat)).all()
    with pytest.raises(UserError, match="faiss cannot train codec 'ITQ12,Flat' on 3 background vectors"):
        trained("ITQ12,Flat", background(rng, n=3))


def clustered(n=600, d=16, seed=3):
    """Unit vectors around forty centres."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(40, d))
    vectors = centres[rng.integers(0, 40, n)] + 0.6 * rng.normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("text", ["HNSW16_PQ4x4", "HNSW16,PQ4x4np", "PCA8,L2norm,HNSW16_PQ4x4", "IVF8,ITQ,SH",
                                  "ZnLattice2x10_6", "IVF8(HNSW8_PQ4x4),Flat"])
def test_indexes_that_faiss_builds_for_another_metric_are_refused(text):
    with pytest.raises(UserError, match=r"faiss builds its Index(?!PreTransform)\w+ for L2 distances, .*take HNSW32"):
        Codec(text, 16)
    with pytest.raises(UserError, match="IndexNSGPQ"):
        Codec("NSG16,PQ4x4", 16)


@pytest.mark.parametrize("text", [
    "SQ8", "SQ4", "SQfp16", "SQbf16", "PQ8x4", "PQ4x4", "OPQ4,PQ4x4", "LSH", "LSHrt", "LSH64r", "ITQ16,LSH", "HNSW16",
    "HNSW16_SQ8", "HNSW16,SQ4", "IVF8,Flat;nprobe=4", "IVF8,PQ4x4", "IVF8_HNSW8,PQ4x4", "IVF8,SQ4", "IVF8,PQ4x4fs",
    "IVF8,PQ4x4fsr", "RQ4x4", "LSQ4x4", "PRQ2x2x4", "IVF8,RQ2x4", "RaBitQ", "IVF8,FlatDedup", "PCA8,L2norm,SQ8"])
@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
def test_scores_of_every_family_rise_with_the_exact_ones(text, metric):
    known, references, queries = clustered(seed=1), clustered(200), clustered(20, seed=4)
    references *= np.random.default_rng(5).uniform(0.9, 1.1, (200, 1)).astype(np.float32)
    codec = Codec(text, 16, metric=metric)
    codec.train(known)
    scores, rows = codec.nearest(queries, references, 5)
    wanted = references / np.linalg.norm(references, axis=1, keepdims=True) if metric == "cosine" else references
    found = exact = 0.0
    for query, best in zip(queries, rows):
        every = [-float(((query - r) ** 2).sum()) if metric == "l2" else float(query @ r) for r in wanted]
        mean = sum(every) / len(every)
        found += sum(every[row] - mean for row in best)
        exact += sum(value - mean for value in sorted(every)[-5:])
    assert found > 0.35 * exact and (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("text", ["HNSW16_PQ8x4;efSearch=64", "IMI2x3,Flat;nprobe=64", "ZnLattice2x10_6"])
def test_indexes_of_distances_alone_rank_by_them(text):
    codec, references, queries = Codec(text, 16, metric="l2"), clustered(300), clustered(20, seed=4)
    codec.train(clustered())
    scores, rows = codec.nearest(queries, references, 40)
    exact = [[-float(((query - references[row]) ** 2).sum()) for row in found] for query, found in zip(queries, rows)]
    assert np.corrcoef(scores.ravel(), np.ravel(exact))[0, 1] > 0.5


def test_an_index_that_ranks_otherwise_is_refused_when_it_is_built():
    codec, vectors = Codec("SQ8_direct", 16), clustered(300)
    codec.train(vectors)
    with pytest.raises(UserError, match="'SQ8_direct' does not rank as an exact search does: on 300 descriptors its "
                                        "scores correlate by 0.00"):
        codec.nearest(vectors[:3], vectors, 2)
    upside_down = Codec("SQ8", 16)
    upside_down.train(vectors)
    searched = upside_down._searched
    upside_down._searched = lambda *asked: (-searched(*asked)[0], searched(*asked)[1])  # as distances would be
    with pytest.raises(UserError, match="correlate by -1.00"):
        upside_down.build(vectors)


def test_few_or_equal_descriptors_are_no_reason_to_refuse():
    for vectors in (clustered(2), np.tile(clustered(1), (70, 1))):
        codec = Codec("LSH", 16)
        codec.nearest(vectors[:1], vectors, 2)
        assert not codec._checked
    codec.nearest(vectors[:1], clustered(80), 2)
    assert codec._checked


@pytest.mark.parametrize(("text", "bits"), [("LSH", 16), ("LSHr", 16), ("LSHt", 16), ("LSHrt", 16), ("LSH8", 8),
                                            ("LSH12", 12), ("LSH64r", 64), ("LSH24rt", 24), ("PCA8,LSH", 8),
                                            ("ITQ12,LSH", 12), ("L2norm,LSH40r", 40)])
def test_signs_are_scored_by_the_share_that_differs(text, bits):
    codec, vectors = Codec(text, 16), clustered(120)
    codec.train(clustered())
    codes = np.unpackbits(codec._index.sa_encode(vectors), axis=1, bitorder="little")
    scores, rows = codec.nearest(vectors[:6], vectors, 4)
    for i in range(6):
        expected = [1 - 2 * sum(int(a) != int(b) for a, b in zip(codes[i], codes[j])) / bits for j in range(120)]
        best = sorted(range(120), key=lambda j: (-expected[j], j))[:4]
        assert rows[i].tolist() == best
        np.testing.assert_allclose(scores[i], [expected[j] for j in best])


@pytest.mark.parametrize("text", ["HNSW16;efSearch=64", "HNSW16_SQ8", "L2norm,HNSW16;efSearch=64"])
def test_thousands_of_equal_descriptors_hide_no_other(text):
    others = clustered(1000, seed=6)
    references = np.concatenate([others[:500], np.tile(others[:1], (3000, 1)), others[500:]])
    codec = Codec(text, 16)
    codec.train(clustered())
    queries = np.concatenate([others[1:150], others[:1]])
    scores, rows = codec.nearest(queries, references, 5)
    exact = queries.astype(np.float64) @ references.astype(np.float64).T
    order = np.argsort(-exact, axis=1, kind="stable")[:, :5]
    assert (rows[:-1, 0] == order[:-1, 0]).mean() > 0.98
    assert rows[-1].tolist() == [0, 500, 501, 502, 503]  # equal ones in order of row, no more than k
    assert (np.diff(scores, axis=1) <= 0).all() and codec._index.ntotal == 0
