"""Split a folder of pictures into the roles of a benchmark, by content and without near-duplicates."""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from rdcd.data.images import check_regular, find_images, open_image
from rdcd.data.ledger import Ledger
from rdcd.data.near_duplicates import SIDE, find_near_duplicates, thumbnail
from rdcd.data.parallel import Map
from rdcd.errors import BadImage, UserError
from rdcd.files import sha256

LEAST_SIDE = 32  # pixels; smaller pictures are of no use as references or queries
SHARES = {"train": 0.5, "references": 0.3, "sources": 0.2}  # of the pictures, where no number is given
_CHUNK = 20_000  # thumbnails held at a time beside those of references and sources: 80 MB


@dataclass(frozen=True)
class Photo:
    """A picture file; `name` is its path below the folder it was found in."""

    path: Path
    name: str

    def open(self) -> Image.Image:
        """Decode it to upright RGB, or raise `BadImage`."""
        picture = open_image(self.path)
        if min(picture.size) < LEAST_SIDE:
            raise BadImage(self.path, f"{picture.width}x{picture.height} pixels, at least "
                                      f"{LEAST_SIDE} a side are needed")
        return picture


@dataclass(frozen=True)
class LeftOut:
    """A picture that shows what another, which is used, shows already."""

    name: str
    copy_of: str
    agreement: float


@dataclass
class Split:
    """Pictures by role: training and background, references, and what distractor queries are made from."""

    train: list[Photo] = field(default_factory=list)
    references: list[Photo] = field(default_factory=list)
    sources: list[Photo] = field(default_factory=list)
    identical: int = 0
    left_out: list[LeftOut] = field(default_factory=list)
    ledger: Ledger | None = None

    @property
    def bad(self) -> list[BadImage]:
        """Files that cannot be used."""
        return list(self.ledger.bad.values()) if self.ledger else []


def split_folder(photos: Path, *, train_photos: Path | None, seed: int, sizes: dict[str, int | None],
                 run: Map, ledger: Ledger) -> Split:
    """Assign every picture a role by the hash of its content, so that names and order do not matter.

    Files of equal content count once. No reference or source is a near-duplicate of another, and no training
    picture of either: a copy among references makes the ground truth false, one in the background hides true
    matches from score normalization.

    Args:
        photos: folder of pictures.
        train_photos: folder that training pictures come from instead.
        seed: salt of the hash; another seed is another split.
        sizes: pictures of each role in `SHARES`; None takes its share of what the given numbers leave.
        run: see `rdcd.data.parallel.process_map`.
        ledger: takes the files that cannot be used.

    Raises:
        UserError: more pictures asked for than there are, or too few of them usable, or too many
            of them bad.
    """
    split = Split(ledger=ledger)
    pictures = _by_content(photos, seed, run, split)
    shares = {role: share for role, share in SHARES.items() if role != "train" or train_photos is None}
    wanted = _fill_sizes(sizes, shares, len(pictures), photos)
    pool, thumbnails, rest = _take(pictures, wanted["references"] + wanted["sources"], run, split)
    split.references, split.sources = _divide(pool, wanted, sizes, photos, split)
    if train_photos is not None:
        used = {digest for digest, _ in pictures}
        rest = [(digest, photo) for digest, photo in _by_content(train_photos, seed, run, split)
                if digest not in used]
    target = len(rest) if sizes["train"] is None else sizes["train"]
    split.train, _, _ = _take(rest, target, run, split, against=thumbnails)
    if len(split.train) < (sizes["train"] or 1):
        folder = photos if train_photos is None else train_photos
        raise _too_few(folder, "training pictures", sizes["train"] or 1, len(split.train), split)
    ledger.settle()
    return split


def _by_content(folder: Path, seed: int, run: Map, split: Split) -> list[tuple[str, Photo]]:
    """List (digest, picture), each content once, in an order that content and seed alone decide."""
    found = [Photo(path=path, name=_readable(path.relative_to(folder))) for path in find_images(folder)]
    unique: dict[str, Photo] = {}
    for photo, digest in zip(found, run(_digest, found, f"reading {folder}")):
        split.ledger.add([digest] if isinstance(digest, BadImage) else [], seen=1)
        if not isinstance(digest, BadImage):
            split.identical += digest in unique
            unique.setdefault(digest, photo)
    split.ledger.settle()
    return sorted(unique.items(), key=lambda item: hashlib.sha256(f"{seed}:{item[0]}".encode()).digest())


def _readable(path: Path) -> str:
    """Return a path as text that can be written anywhere, though a file name may be any bytes."""
    return os.fsencode(path.as_posix()).decode(errors="backslashreplace")


def _digest(photo: Photo) -> str | BadImage:
    try:
        return sha256(check_regular(photo.path))
    except BadImage as error:
        return error
    except OSError as error:
        return BadImage(photo.path, f"{type(error).__name__}: {error}")


def _look(photo: Photo) -> np.ndarray | BadImage:
    try:
        return thumbnail(photo.open())
    except BadImage as error:
        return error


def _fill_sizes(sizes: dict[str, int | None], shares: dict[str, float], available: int,
                folder: Path) -> dict[str, int]:
    """Return a number for every role in `shares`; those not given share what the given ones leave."""
    given = {role: sizes[role] for role in shares if sizes[role] is not None}
    missing = [role for role in shares if role not in given]
    left = available - sum(given.values())
    if left < len(missing):
        asked = ", ".join(f"{role}={size}" for role, size in given.items()) or "no sizes given"
        raise UserError(f"{asked}: {folder} has {available} different pictures, too few for "
                        f"{' and '.join(['that', *missing])}; ask for fewer, or add pictures")
    total = sum(shares[role] for role in missing)
    return given | {role: max(1, math.floor(left * shares[role] / total)) for role in missing}


def _divide(pool: list[Photo], wanted: dict[str, int], sizes: dict[str, int | None], folder: Path,
            split: Split) -> tuple[list[Photo], list[Photo]]:
    """Divide what was found between references and sources; a size not given gives way."""
    short = wanted["references"] + wanted["sources"] - len(pool)
    count = wanted["references"]
    if short and sizes["references"] is None:
        share = 1.0 if sizes["sources"] is not None else count / (count + wanted["sources"])
        count -= round(short * share)
    if not 0 < count < len(pool) or (short and None not in (sizes["references"], sizes["sources"])):
        what = f"references and sources ({wanted['references']} + {wanted['sources']})"
        raise _too_few(folder, what, wanted["references"] + wanted["sources"], len(pool), split)
    return pool[:count], pool[count:]


def _take(candidates: Sequence[tuple[str, Photo]], wanted: int, run: Map, split: Split, *,
          against: np.ndarray | None = None) -> tuple[list[Photo], np.ndarray, list[tuple[str, Photo]]]:
    """Take the first `wanted` readable pictures that copy none of `against`, or without it, one another.

    Only as many pictures are decoded as that takes.

    Returns:
        (taken, thumbnails that were compared with, candidates that were not needed).
    """
    distinct = against is None
    known = np.empty((0, SIDE, SIDE), np.uint8) if distinct else against
    names = [] if distinct else [photo.name for photo in split.references + split.sources]
    taken: list[Photo] = []
    position = 0
    while len(taken) < wanted and position < len(candidates):
        chunk = [photo for _, photo in candidates[position:position + min(wanted - len(taken), _CHUNK)]]
        position += len(chunk)
        looks = []
        for photo, look in zip(chunk, run(_look, chunk, "looking for near-duplicates")):
            split.ledger.add([look] if isinstance(look, BadImage) else [], seen=1)
            looks.append((photo, look))
        good = [(photo, look) for photo, look in looks if not isinstance(look, BadImage)]
        photos = [photo for photo, _ in good]
        thumbnails = np.array([look for _, look in good], dtype=np.uint8).reshape(-1, SIDE, SIDE)
        copies = {i: (names[j], agreement) for i, j, agreement in find_near_duplicates(thumbnails, known)}
        for i, j, agreement in find_near_duplicates(thumbnails) if distinct else ():
            if j not in copies:
                copies.setdefault(i, (photos[j].name, agreement))
        split.left_out += [LeftOut(photos[i].name, *copies[i]) for i in sorted(copies)]
        keep = [i for i in range(len(photos)) if i not in copies]
        taken += [photos[i] for i in keep]
        if distinct:
            known = np.concatenate([known, thumbnails[keep]])
            names += [photos[i].name for i in keep]
    return taken, known, list(candidates[position:])


def _too_few(folder: Path, what: str, wanted: int, found: int, split: Split) -> UserError:
    split.ledger.write()
    first = f" (the first: {split.bad[0]}; {split.ledger.path} lists all)" if split.bad else ""
    return UserError(f"{wanted} {what} wanted from {folder}, {found} found: {len(split.bad)} files cannot be "
                     f"read{first}, {split.identical} are identical to others and {len(split.left_out)} are "
                     "near-duplicates; ask for fewer, or add pictures")
