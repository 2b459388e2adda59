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
