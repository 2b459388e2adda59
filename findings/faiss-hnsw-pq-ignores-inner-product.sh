#!/bin/sh
# faiss: index_factory builds graphs over product codes for L2 distances though it was asked for inner products.
#
# Versions: faiss-cpu 1.15.1, numpy 2.2.6, Python 3.11.
# What: index_factory(32, "HNSW32_PQ8", METRIC_INNER_PRODUCT) returns an IndexHNSWPQ whose metric_type is METRIC_L2,
#   "NSG32,PQ8" an IndexNSGPQ of the same. No error and no warning; "HNSW32", "HNSW32_SQ8", "NSG32", "PQ8" and
#   "IVF16,PQ8" take the metric. Scores that come back are squared distances, ascending: a program that reads them as
#   inner products, highest first, ranks upside down.
# Expected: an index of the metric asked for, or an error, as of "LSH" and "IMI2x4,PQ8".
# Output seen:
#   asked for inner product (0): HNSW32 0, HNSW32_SQ8 0, NSG32 0, PQ8 0, IVF16,PQ8 0, HNSW32_PQ8 1, NSG32,PQ8 1
#   PQ8: scores of the found correlate with inner products by +0.87
#   HNSW32_PQ8: scores of the found correlate with inner products by -0.84
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

ASKED = faiss.METRIC_INNER_PRODUCT
names = ("HNSW32", "HNSW32_SQ8", "NSG32", "PQ8", "IVF16,PQ8", "HNSW32_PQ8", "NSG32,PQ8")
found = {name: faiss.index_factory(32, name, ASKED).metric_type for name in names}
print(f"asked for inner product ({ASKED}):", ", ".join(f"{name} {metric}" for name, metric in found.items()))

rng = np.random.default_rng(0)
vectors = rng.normal(size=(12_000, 32)).astype(np.float32)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
agreement = {}
for name in ("PQ8", "HNSW32_PQ8"):
    index = faiss.index_factory(32, name, ASKED)
    index.train(vectors)
    index.add(vectors[:1000])
    scores, rows = index.search(vectors[:20], 200)
    products = np.einsum("nd,nkd->nk", vectors[:20], vectors[rows])
    agreement[name] = np.corrcoef(scores.ravel(), products.ravel())[0, 1]
    print(f"{name}: scores of the found correlate with inner products by {agreement[name]:+.2f}")

as_seen = (all(found[name] == ASKED for name in names[:5])
           and all(found[name] == faiss.METRIC_L2 for name in names[5:])
           and agreement["PQ8"] > 0.5 and agreement["HNSW32_PQ8"] < -0.5)
sys.exit(0 if as_seen else "not as seen: faiss behaves otherwise now")
PYTHON
