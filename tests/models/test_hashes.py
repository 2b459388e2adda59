"""Perceptual hashes: the library's own bits, and Hamming distance as inner product."""

import sys
from types import SimpleNamespace

import imagehash
import numpy as np
import pytest
import torch
from PIL import Image

from rdcd.data.synthetic import draw_picture
from rdcd.errors import UserError
from rdcd.models.hashes import HASHES, PerceptualHash


def batch(pictures):
    return torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in pictures]).float() / 255


def test_phash_is_the_librarys(picture):
    pictures = [picture(seed, 64, 64) for seed in range(5)]
    network = PerceptualHash("phash")
    found = network.embed(batch(pictures))
    assert found.shape == (5, network.dim) == (5, 64)
    assert torch.allclose(found.norm(dim=1), torch.ones(5))
    hashes = [imagehash.phash(p) for p in pictures]
    for row, own in zip(found, hashes):
        assert (row.numpy() > 0).tolist() == own.hash.ravel().tolist()
    for i in range(5):
        for j in range(5):  # `-` of two hashes counts differing bits
            assert float(found[i] @ found[j]) == pytest.approx(1 - 2 * (hashes[i] - hashes[j]) / 64, abs=1e-6)


def test_pdq_is_the_librarys(picture):
    pdqhash = pytest.importorskip("pdqhash", reason="pdqhash is built from source: it needs a C++ compiler")
    pictures = [picture(seed, 64, 64) for seed in range(3)]
    found = PerceptualHash("pdq").embed(batch(pictures))
    assert found.shape == (3, 256)
    for row, p in zip(found, pictures):
        assert (row.numpy() > 0).tolist() == pdqhash.compute(np.asarray(p))[0].astype(bool).tolist()


def test_pdq_gets_pixels_as_its_library_wants_them(picture, monkeypatch):
    seen = []

    def compute(pixels):
        seen.append(pixels)
        return np.arange(256) % 2, 100

    monkeypatch.setitem(sys.modules, "pdqhash", SimpleNamespace(compute=compute))
    one = picture(0, 20, 12)
    found = PerceptualHash("pdq").embed(batch([one]))
    assert (seen[0] == np.asarray(one)).all() and seen[0].dtype == np.uint8
    assert found[0, :2].tolist() == [-1 / 16, 1 / 16]


def test_a_recoding_is_nearer_than_another_picture(tmp_path):
    one, other = (draw_picture(seed, size=128).resize((128, 128)) for seed in (0, 1))
    one.save(tmp_path / "a.jpg", quality=60)
    recoded = Image.open(tmp_path / "a.jpg").convert("RGB")
    rows = PerceptualHash("phash").embed(batch([one, recoded, other]))
    assert rows[0] @ rows[1] > 0.8 > rows[0] @ rows[2]


@pytest.mark.parametrize("name", HASHES)
def test_a_missing_library_is_said(name, monkeypatch):
    package = HASHES[name][2].partition(",")[0]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"{name} is computed by a library .*{package}.*: pip install {package}"):
        PerceptualHash(name)


def test_another_name_is_said():
    with pytest.raises(UserError, match="hash 'md5': expected one of phash, pdq"):
        PerceptualHash("md5")
