#!/bin/sh
# faiss: an HNSW index that holds a vector a few thousand times no longer finds others.
#
# Versions: faiss-cpu 1.15.1, numpy 2.2.6, Python 3.11.
# What: IndexHNSWFlat (M = 32, inner product) of 2,000 different unit vectors finds the nearest of every one of 199
#   queries that are among them; with 2,000 copies of one vector beside them it misses a third of these, at efSearch
#   128, whether the copies are added first or last. Copies that differ by 1e-4 do no harm: links go to the nearest,
#   and of equal ones there are more than a node has links.
# Expected: that copies of one vector change nothing for queries near other vectors.
# Output seen:
#   without copies: 1.000 of the queries find themselves
#   copies first: 0.663
#   copies last: 0.714
#   copies that differ: 1.000
# Exits non-zero if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet faiss-cpu==1.15.1 numpy==2.2.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import faiss
import numpy as np

faiss.omp_set_num_threads(1)
rng = np.random.default_rng(0)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


vectors = unit(rng.normal(size=(300, 32))[rng.integers(0, 300, 2000)] + 0.5 * rng.normal(size=(2000, 32)))
copies = np.repeat(vectors[:1], 2000, axis=0)
similar = unit(copies + 1e-4 * rng.normal(size=copies.shape))


def share(held):
    index = faiss.IndexHNSWFlat(32, 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efSearch = 128
    index.add(held)
    _, rows = index.search(vectors[1:200], 1)
    return float((held[rows[:, 0]] == vectors[1:200]).all(axis=1).mean())


without, first, last, differ = (share(held) for held in (
    vectors, np.concatenate((copies, vectors)), np.concatenate((vectors, copies)), np.concatenate((vectors, similar))))
print(f"without copies: {without:.3f} of the queries find themselves")
print(f"copies first: {first:.3f}\ncopies last: {last:.3f}\ncopies that differ: {differ:.3f}")
as_seen = without > 0.99 and differ > 0.99 and first < 0.9 and last < 0.9
sys.exit(0 if as_seen else "not as seen: faiss behaves otherwise now")
PYTHON
