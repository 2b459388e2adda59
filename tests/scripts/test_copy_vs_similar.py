"""The script that sets hashes, a trunk and a student side by side: its shares are those of plain counting."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from miniatures import save, scene
from PIL import Image
from safetensors.torch import save_file

from rdcd.errors import UserError
from rdcd.models.student import Student
from rdcd.models.weights import save_student

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "copy_vs_similar.py"))
FAMILIES = ("jpeg", "flip", "blend")


@pytest.fixture
def networks(tmp_path: Path) -> dict[str, str]:
    torch.manual_seed(0)
    save_file(timm.create_model("test_efficientnet", num_classes=0).state_dict(), tmp_path / "trunk.safetensors")
    save_student(tmp_path / "student.safetensors", Student(trunk="test_efficientnet", dim=16, kd_dim=10), size=32)
    return {"student": str(tmp_path / "student.safetensors"),
            "trunk": f"timm:test_efficientnet:{tmp_path / 'trunk.safetensors'}"}


def test_drawn_pictures_with_a_montage(networks: dict[str, str], tmp_path: Path) -> None:
    path = SCRIPT["measure"](**networks, references=9, copies=2, others=3, families=FAMILIES, size=48,
                             out=tmp_path / "docs")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert [(row["queries"], row["count"]) for row in content["rows"][:4]] == [
        ("jpeg", 2), ("flip", 2), ("blend", 2), ("all copies", 6)]
    assert all(row["count"] == 3 and "false alarms" in row["queries"] for row in content["rows"][4:])
    assert {"pHash", "student_32_px", "trunk_32_px"} <= set(content["rows"][0])
    assert content["rows"][0]["pHash"] == 1 and set(content["provenance"]["weights_sha256"]) <= set(content["pixels"])
    shown = Image.open(tmp_path / "docs" / "images" / "copy-vs-similar.jpg")
    assert shown.format == "JPEG" and shown.width > shown.height > 300


def test_photographs_are_never_shown_and_similar_ones_are_split(networks: dict[str, str], tmp_path: Path) -> None:
    for i in range(24):
        save(scene(i), tmp_path / "photos" / f"{'shelf' if i < 8 else 'p'}{i}.jpg")
    path = SCRIPT["measure"](**networks, photos=str(tmp_path / "photos"), similar="shelf*", name="mine", references=9,
                             copies=2, others=4, families=FAMILIES, out=tmp_path / "docs")
    assert path.name == "mine.json" and not (tmp_path / "docs" / "images").exists()
    files = sorted((tmp_path / "photos").iterdir())
    chosen = SCRIPT["make_set"](files, tmp_path, similar="shelf*", references=9, copies=2, others=4,
                                families=FAMILIES, seed=0)
    strangers = [query for query, row in zip(chosen.queries, chosen.truth) if row is None]
    assert len(strangers) == 4 and all(path.name.startswith("shelf") for path in strangers)
    assert sum(path.name.startswith("shelf") for path in chosen.references) == 4
    assert not set(strangers) & set(chosen.references) and len(set(chosen.references)) == 9
    copied = [row for row in chosen.truth if row is not None]
    assert len(set(copied)) == 6
    with pytest.raises(UserError, match="expected enough for 90 references"):
        SCRIPT["make_set"](files, tmp_path, similar=None, references=90, copies=1, others=4, families=FAMILIES, seed=0)


def test_shares_are_those_of_plain_counting() -> None:
    rng = np.random.default_rng(0)
    families = [("jpeg", "flip", "similar")[i % 3] for i in range(60)]
    truth = [None if family == "similar" else i for i, family in enumerate(families)]
    first = np.array([i if rng.random() < 0.7 else 0 for i in range(60)])
    score, own = rng.random(60), np.where([row is None for row in truth], np.nan, rng.random(60))
    pictures = SCRIPT["Set"]([], [], families, truth)
    rows = SCRIPT["tabulate"](pictures, {"it": SCRIPT["Found"](first, score, own)})
    for row, family in zip(rows, ("jpeg", "flip")):
        here = [i for i in range(60) if families[i] == family]
        assert row == {"queries": family, "count": 20, "it": sum(first[i] == i for i in here) / 20}
    assert rows[2]["it"] == sum(first[i] == i for i in range(60) if i % 3 < 2) / 40
    for row, share in zip(rows[3:], (0.9, 0.7, 0.5), strict=True):
        least = max(t for t in own[~np.isnan(own)] if sum(o >= t for o in own) >= share * 40)
        assert row["it"] == sum(score[i] >= least for i in range(60) if truth[i] is None) / 20
