"""Where faiss searches: on GPUs that a try in a process of its own has shown to work, else on the CPU."""

import functools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np

_WORTH = 1 << 28  # products of a search below which no GPU is looked for
_SECONDS = 120  # given to the try
# A build without kernels for the card, or a broken driver, may abort: hence a process of its own, and real work.
_TRY = """
import faiss, numpy as np
count = faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0
vectors = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
for device in range(count):
    config = faiss.GpuIndexFlatConfig()
    config.device = device
    index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), 16, config)
    index.add(vectors)
    found = index.search(vectors, 1)[0][:, 0]
    best = (vectors @ vectors.T).max(axis=1)
    assert np.allclose(found, best, rtol=1e-3), f"GPU {device} returns wrong products"
print("GPUs", count)
"""


def knn(queries: np.ndarray, references: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k largest inner products of each query and their rows, as `faiss.knn`, on GPUs where they work.

    Args:
        queries, references: float32 [n, d] and [m, d] with m >= k.

    Returns:
        float32 and int64 [n, k], descending.
    """
    devices = gpus() if len(queries) * len(references) >= _WORTH else 0
    if not devices:
        return faiss.knn(queries, references, k, metric=faiss.METRIC_INNER_PRODUCT)
    parts = np.array_split(queries, devices)
    with ThreadPoolExecutor(devices) as pool:
        found = list(pool.map(lambda device: faiss.knn_gpu(_resources(device), parts[device], references, k,
                                                           metric=faiss.METRIC_INNER_PRODUCT, device=device),
                              range(devices)))
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


@functools.cache
def gpus() -> int:
    """Return the number of GPUs that faiss searches on here, tried once a process.

    0 without a GPU, with `RDCD_FAISS=cpu` in the environment, or where the try fails, which is said on stderr.
    """
    if os.environ.get("RDCD_FAISS") == "cpu" or not hasattr(faiss, "StandardGpuResources"):
        return 0
    try:
        done = subprocess.run([sys.executable, "-c", _TRY], capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        reason = f"no answer in {_SECONDS} s"
    else:
        said = done.stdout.split()
        if done.returncode == 0 and said[:1] == ["GPUs"]:
            return int(said[1])
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"exit code {done.returncode}"
    print(f"faiss does not work on the GPU here ({reason}): searching on the CPU; RDCD_FAISS=cpu leaves out the try",
          file=sys.stderr)
    return 0


@functools.cache
def _resources(device: int) -> object:
    return faiss.StandardGpuResources()
