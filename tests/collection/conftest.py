"""A small album of pictures and of edited copies, and the commands as functions that load nothing heavy."""

import csv
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from miniatures import EDITS, jpeg, save, scene

from rdcd.collection import dedup, index, search

HOSTILE = {3: "<b>&amp; 'quoted' \"twice\".jpg", 4: "with space #1?.jpg", 5: "été 日本.jpg"}
QUICK = {"workers": 0, "device": "cpu"}


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """24 pictures in two folders, file names that need escaping among them."""
    folder = tmp_path / "album"
    for i in range(24):
        save(scene(i), folder / ("2023" if i % 2 else "2024") / HOSTILE.get(i, f"p{i:02d}.jpg"))
    return folder


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """Edits of pictures 0, 1, 2 of the album, an identical file, two that copy none, and one that is no picture."""
    folder = tmp_path / "copies"
    for i in range(3):
        save(jpeg(EDITS[2](scene(i)), 40) if i else EDITS[0](scene(i)), folder / f"copy{i}.jpg")
    shutil.copy(tmp_path / "album" / "2024" / "p06.jpg", folder / "same.jpg")
    for i in (100, 101):
        save(scene(i), folder / f"other{i}.jpg")
    (folder / "broken.jpg").write_text("no picture")
    return folder


@pytest.fixture
def build() -> Callable[..., object]:
    return partial(index.build, model="thumbnail", **QUICK)


@pytest.fixture
def add() -> Callable[..., object]:
    return partial(index.add, **QUICK)


@pytest.fixture
def find() -> Callable[..., Path]:
    return partial(search.search, **QUICK)


@pytest.fixture
def duplicates() -> Callable[..., Path]:
    return partial(dedup.dedup, **QUICK)


@pytest.fixture
def rows() -> Callable[[Path], list[dict[str, str]]]:
    def read(path: Path) -> list[dict[str, str]]:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    return read
