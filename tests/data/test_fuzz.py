"""A thousand spoilt files: each is a picture or a `BadImage`; no crash, no hang, no bomb, no silent drop."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mutations import mutate, originals

import rdcd
from rdcd.data.images import open_image


def test_the_originals_are_sound() -> None:
    for name, data in originals().items():
        assert set(open_image(data).size) == {45, 35}, name


def test_mutations_are_seeded() -> None:
    data = originals()["rgb.png"]
    spoilt = [mutate(data, np.random.default_rng((0, i))) for i in (1, 1, 2)]
    assert spoilt[0] == spoilt[1] != spoilt[2] and data not in spoilt


@pytest.mark.skipif(sys.platform != "linux", reason="limits its memory as Linux does")
def test_a_thousand_spoilt_files(tmp_path: Path) -> None:
    root = Path(rdcd.__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, str(Path(__file__).with_name("mutations.py")), "0", "1000", str(tmp_path)],
                          capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(root),
                                                                           "OMP_NUM_THREADS": "1"}, timeout=300)
    last = (tmp_path / "now").read_text() if (tmp_path / "now").exists() else "none"
    assert done.returncode == 0, f"exit code {done.returncode}, the last file {last}: {done.stderr[-2000:]}"
    decoded, bad = (int(word) for word in done.stdout.replace(",", "").split() if word.isdigit())
    assert decoded + bad == 1000 and decoded > 100 and bad > 300  # both are met
