"""The Python of docs/deploy.md does what the page says: without torch, and in a database."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from rdcd.evaluation.extract import extract
from rdcd.models.exported import card_of
from rdcd.retrieval.descriptors import Descriptors, read_descriptors, write_descriptors
from rdcd.retrieval.knn import search
from rdcd.retrieval.score_norm import background_products, parse_score_norm

PAGE = Path(__file__).resolve().parents[2] / "docs" / "deploy.md"
ALONE, DATABASE = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)


def test_the_file_runs_without_torch(onnx_file: Path, drawn: Path, tmp_path: Path) -> None:
    for path in (onnx_file, card_of(onnx_file)):
        shutil.copy(path, tmp_path)
    (tmp_path / "alone.py").write_text(
        ALONE + "\nassert not {'torch', 'rdcd', 'timm'} & set(sys.modules), 'the page says without'\n")
    pictures = sorted(drawn.iterdir())
    done = subprocess.run([sys.executable, "alone.py", onnx_file.name, *map(str, pictures)], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    extract(images=str(drawn), model=str(onnx_file), out=str(tmp_path / "d.h5"), decode="exact", device="cpu")
    np.testing.assert_allclose(np.load(tmp_path / "descriptors.npy"), read_descriptors(tmp_path / "d.h5").vectors,
                               atol=1e-5)


def directions(count: int, seed: int) -> np.ndarray:
    """Unit vectors [count, 24] around a common mean, so that background products differ from query to query."""
    vectors = np.random.default_rng(seed).normal(size=(count, 24)) + 0.4
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_a_vector_database_gives_normalized_scores(tmp_path: Path, monkeypatch) -> None:
    references = Descriptors(names=np.array([f"R{i:03}" for i in range(200)]), vectors=directions(200, 0))
    background = Descriptors(names=np.array([f"B{i:03}" for i in range(50)]), vectors=directions(50, 1))
    queries = Descriptors(names=np.array([f"Q{i:03}" for i in range(20)]), vectors=directions(20, 2))
    write_descriptors(tmp_path / "references.h5", references)
    write_descriptors(tmp_path / "background.h5", background)
    monkeypatch.chdir(tmp_path)
    page: dict = {}
    exec(compile(DATABASE, PAGE.name, "exec"), page)  # noqa: S102  (the page's own block)
    norm = parse_score_norm("1.0[0,2]")
    bias = norm.bias(background_products(queries.vectors, background.vectors, norm.last + 1))
    assert np.ptp(bias) > 0.05
    expected = search(queries, references, k=10, biases=(bias,))[0]
    for row, name in enumerate(queries.names.tolist()):
        found = page["search"](queries.vectors[row], limit=10)
        ours = expected.queries == name
        assert [one for one, _ in found] == expected.references[ours].tolist()
        np.testing.assert_allclose([score for _, score in found], expected.scores[ours], atol=1e-5)
    page["client"].close()
