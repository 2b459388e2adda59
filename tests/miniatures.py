"""Every benchmark layout in its exact names, of a few small pictures; copies are real edits of their originals."""

import csv
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from rdcd.data.views import to_tensor
from rdcd.models.student import Student, pooled
from rdcd.models.weights import save_student

CROPS = (10, 15, 20, 30, 40, 50, 60, 70, 80)
QUALITIES = (3, 5, 8, 10, 15, 20, 30, 50, 75)
SHARD = 50_000  # DISC's shard k begins with picture 50,000 k


def noise(seed: int, width: int = 32, height: int = 24) -> Image.Image:
    """A picture of random 4-pixel blocks, so that resizing and JPEG leave something to compare."""
    cells = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.NEAREST)


def scene(seed: int, side: int = 48) -> Image.Image:
    """A picture of smooth colours and a few hard edges, unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((side + 12, side), 3)
    for _ in range(4):
        x, y = rng.integers(0, side - 12, 2).tolist()
        picture.paste(tuple(rng.integers(0, 256, 3).tolist()), (x, y, x + 10, y + 8))
    return picture


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    """Encoded and decoded."""
    file = BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def crop(picture: Image.Image, percent: int) -> Image.Image:
    """Without so many percent of its area, at the border."""
    keep = (1 - percent / 100) ** 0.5
    cut = [round(side * (1 - keep) / 2) for side in picture.size]
    return picture.crop((*cut, picture.width - cut[0], picture.height - cut[1]))


EDITS: list[Callable[[Image.Image], Image.Image]] = [
    lambda picture: jpeg(picture, 15),
    lambda picture: crop(picture, 20),
    lambda picture: ImageEnhance.Brightness(picture).enhance(1.3),
    lambda picture: ImageOps.expand(picture, 4, "white"),
    lambda picture: ImageOps.mirror(picture),
    lambda picture: crop(picture.rotate(8, expand=True), 40),
]


def save(picture: Image.Image, path: Path) -> None:
    """Write a JPEG, its folder included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=92)


def table(path: Path, rows: Iterable[tuple[str, ...]]) -> None:
    """Write CSV rows."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def sharded(folder: Path, archive: str, letter: str, count: int, shards: int, seed: int) -> dict[str, int]:
    """Write pictures as the archives of DISC unpack; return name → seed."""
    seeds = {}
    for i in range(count):
        shard, place = i % shards, i // shards
        name = f"{letter}{SHARD * shard + place:06d}"
        save(scene(seed + i), folder / f"{archive}_50k_{shard}" / f"{name}.jpg")
        seeds[name] = seed + i
    return seeds


def copies(folder: Path, sources: dict[str, int], *, queries: int, pairs: int, seed: int,
           first: int = 0) -> list[tuple[str, str]]:
    """Write queries, the first `pairs` of which are edits of sources; return rows of the ground truth."""
    names, rows = sorted(sources), []
    for i in range(queries):
        name, source = f"Q{first + i:05d}", names[i % len(names)] if i < pairs else ""
        picture = scene(sources[source] if source else seed + i)
        save(EDITS[i % len(EDITS)](picture), folder / f"{name}.jpg")
        rows.append((name, source))
    return rows


def make_disc(folder: Path, *, references: int = 24, train: int = 32, queries: int = 16, pairs: int = 8,
              splits: tuple[str, ...] = ("dev",), shards: int = 2, seed: int = 0) -> Path:
    """DISC2021, official names; references and training pictures in shards."""
    sources = sharded(folder / "images/references", "refs", "R", references, shards, seed)
    sharded(folder / "images/train", "train", "T", train, shards, seed + 100_000)
    for split in splits:
        rows = copies(folder / f"images/{split}_queries", sources, queries=queries, pairs=pairs,
                      first={"dev": 0, "final": 50_000}[split], seed=seed + 200_000)
        table(folder / f"{split}_ground_truth.csv", [("query_id", "reference_id"), *rows])
    return folder


def make_sscd(folder: Path, *, references: int = 24, train: int = 32, queries: int = 16, pairs: int = 8,
              under: str = "", seed: int = 0) -> Path:
    """DISC2021 in SSCD's names, under the root or its folder `under`; flat, the ground truth without header."""
    place = folder / under
    sources = sharded(place / "val_ref", "refs", "R", references, 1, seed)
    sharded(place / "training", "train", "T", train, 1, seed + 100_000)
    rows = copies(place / "val_query", sources, queries=queries, pairs=pairs, seed=seed + 200_000)
    table(place / "val_groundtruth_matches.csv", [row for row in rows if row[1]])
    return folder


def make_ndec(folder: Path, *, references: int = 24, train: int = 32, pairs: int = 8, hard_negatives: int = 8,
              distractors: int = 4, query_folder: str = "NDEC_test_query", disc: str = "DISC", listed: bool = False,
              seed: int = 0) -> Path:
    """NDEC; hard negatives share half of their picture's colours with a reference. `listed`: in hard_negatives.csv."""
    sources = sharded(folder / disc / "images/references", "refs", "R", references, 2, seed)
    sharded(folder / disc / "images/train", "train", "T", train, 2, seed + 100_000)
    rows = copies(folder / query_folder, sources, queries=pairs + distractors, pairs=pairs, seed=seed + 200_000)
    names = []
    for i, like in zip(range(hard_negatives), sorted(sources.values())):
        names.append(f"Q{len(rows):05d}")
        picture = Image.blend(scene(like), scene(seed + 300_000 + i), 0.5)
        save(picture, folder / query_folder / f"{names[-1]}.jpg")
        rows.append((names[-1], ""))
    table(folder / "public_ground_truth_h5.csv", [("query_id", "reference_id"), *rows])
    if listed:
        table(folder / "hard_negatives.csv", [("query_id",), *((name,) for name in names)])
    return folder


def make_cd10k(folder: Path, *, originals: int = 3, strong: int = 5, distractors: int = 10, train: int = 20,
               under: str = "", seed: int = 0) -> Path:
    """CD10K: all 20 blocks under the root or its folder `under`, distractors and, unless 0, whitening pictures."""
    blocks = folder / under
    for i in range(originals):
        picture, file = scene(seed + i), f"{2000 + i}00.jpg"
        save(picture, blocks / "original" / file)
        for percent in CROPS:
            save(crop(picture, percent), blocks / f"crops/{percent}" / file)
        for quality in QUALITIES:
            path = blocks / f"jpegqual/{quality}" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, quality=quality)
    for i in range(strong):
        picture = EDITS[i % len(EDITS)](crop(scene(seed + i % originals), 30))
        save(picture, blocks / "strong" / f"{2000 + i % originals}{1 + i // originals:02d}.jpg")
    for i in range(distractors):
        save(scene(seed + 100_000 + i), folder / "distractors" / f"d{i:05d}.jpg")
    for i in range(train):
        save(scene(seed + 200_000 + i), folder / "train" / f"w{i:05d}.jpg")
    return folder


def make_pairs(folder: Path, *, pictures: int = 20, pairs: int = 6, distractors: int = 3, background: int = 16,
               apart: bool = False, seed: int = 0) -> Path:
    """A user's folder and its `pairs.csv`; `apart`: queries and references in folders of their own."""
    queries, references = (folder / name if apart else folder / "2024" for name in ("queries", "references"))
    rows = []
    for i in range(pictures):
        save(scene(seed + i), references / f"photo{i}.jpg")
    for i in range(pairs + distractors):
        picture = EDITS[i % len(EDITS)](scene(seed + i if i < pairs else seed + 100_000 + i))
        save(picture, queries / f"repost{i}.jpg")
        rows.append((f"repost{i}", f"photo{i}" if i < pairs else ""))
    for i in range(background):
        save(scene(seed + 200_000 + i), folder / "background" / f"other{i}.jpg")
    table(folder / "pairs.csv", [("query_id", "reference_id"), *rows])
    return folder


def make_student(path: Path, **card: object) -> Path:
    """Write a student of 32 numbers that was not trained but leaves out what all pictures have in common: it finds the
    easier copies."""
    torch.manual_seed(0)
    student = Student(trunk="test_efficientnet", dim=None, kd_dim=32)
    some = torch.stack([to_tensor(scene(i).resize((32, 32))) for i in range(1000, 1064)]) / 255
    with torch.no_grad():
        student.train()(some)
        student.eval().fc.bias -= student.fc(pooled(student.trunk, student.pool, (some - student.mean)
                                                    / student.std)).mean(0)
    return save_student(path, student, size=32, card=card)
