"""Measure what hashes, a trunk as it comes and a student find on the same pictures (docs/copy-vs-similar.md).

    python scripts/copy_vs_similar.py student=student.safetensors trunk=timm:mobilenetv2_100:FILE
    python scripts/copy_vs_similar.py student=… trunk=… photos=DIR similar='grocery_*' name=copy-vs-similar

References are pictures of a collection. Queries are copies of some of them, each by one edit of one family, and similar
pictures that are no copies: with `similar`, half of the photographs whose names match it, the other half of which are
references; else others of the collection. Written are `docs/results/NAME.json` and, of drawn pictures,
`docs/images/copy-vs-similar.jpg`: photographs may be anybody's. Numbers reach the document by `scripts/results.py`.
"""

import fnmatch
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rdcd.augment.edits import EDITS, apply_chain
from rdcd.data.images import find_images, open_image
from rdcd.data.manifest import Manifest
from rdcd.data.synthetic import draw_picture
from rdcd.errors import UserError
from rdcd.evaluation.extract import extract_descriptors
from rdcd.evaluation.networks import load_network, preprocessing
from rdcd.files import atomic_path, write_json
from rdcd.provenance import provenance, set_run
from rdcd.retrieval.nearest import nearest

ROOT = Path(__file__).resolve().parent.parent
QUALITY = 90  # JPEG quality of queries, and of drawn references
SHARES = (0.9, 0.7, 0.5)  # of the copies, that a threshold finds
SHOWN = ("jpeg", "crop", "flip", "rotate", "text", "overlay_onto", "collage")  # families of the montage


@dataclass(frozen=True)
class Set:
    """Files of references; of queries with their family, `similar` for no copy, and the number of their reference."""

    references: list[Path]
    queries: list[Path]
    families: list[str]
    truth: list[int | None]


def make_set(collection: Sequence[Path], folder: Path, *, similar: str | None, references: int, copies: int,
             others: int, families: Sequence[str], seed: int) -> Set:
    """Choose references, and write copies into `folder`: `copies` of each family, each of a reference of its own.

    Args:
        collection: pictures without copies among them.
        similar: pattern of names; None: non-copies are any pictures.
        references, others: how many references, and how many similar pictures that are no copies.
        seed: of the choice and the edits.
    """
    rng = np.random.default_rng(seed)
    order = [collection[i] for i in rng.permutation(len(collection))]
    alike = [path for path in order if similar is not None and fnmatch.fnmatch(path.name, similar)]
    plain = [path for path in order if path not in set(alike)]
    half = min(len(alike) // 2, others, references // 2)
    chosen = alike[:half] + plain[:references - half]
    rest = plain[references - half:]
    strangers = alike[half:half + others] if similar is not None else rest[:others]
    second = rest[len(strangers) if similar is None else 0:]  # for edits that show another picture
    if len(chosen) < references or len(strangers) < others or not second:
        raise UserError(f"{len(collection)} pictures, {len(alike)} of them {similar}: expected enough for {references} "
                        f"references and {others} similar ones; ask for fewer")
    if copies * len(families) > references:
        raise UserError(f"copies={copies} of {len(families)} families need as many references, not {references}")
    sources = rng.permutation(references)[:copies * len(families)].tolist()
    queries, kinds = [], []
    for number, source in enumerate(sources):
        family = families[number % len(families)]
        chain = [(family, EDITS[family].draw(rng))]
        other = open_image(second[number % len(second)]) if EDITS[family].needs_other else None
        queries.append(folder / f"copy{number:04d}.jpg")
        apply_chain(open_image(chosen[source]), chain, other).save(queries[-1], quality=QUALITY)
        kinds.append(family)
    return Set(chosen, [*queries, *strangers], [*kinds, *["similar"] * len(strangers)],
               [*sources, *[None] * len(strangers)])


@dataclass(frozen=True)
class Found:
    """A method's view: for each query the nearest reference, its score, and the score of its own (NaN: it has none)."""

    first: np.ndarray
    score: np.ndarray
    own: np.ndarray


def look(pictures: Set, model: str, *, size: int | None = None) -> tuple[Found, dict[str, object]]:
    """Search the references for all queries.

    Args:
        model: as `load_network` takes it.
        size: in pixels; None: what its card says.

    Returns:
        what is found, and the size and the hash of the weights.
    """
    network, card = load_network(model)
    size, resize = preprocessing(card, size=size, resize=None)

    def described(paths: list[Path], label: str) -> np.ndarray:
        manifest = Manifest("/", paths, names=[str(path) for path in paths])
        descriptors, bad = extract_descriptors(network, manifest, size=size, resize=resize, workers=0, label=label)
        if bad:
            raise bad[0]
        return descriptors.vectors

    references, queries = described(pictures.references, "references"), described(pictures.queries, "queries")
    scores, rows = nearest(queries, references, 1)
    own = [np.nan if row is None else float(queries[i].astype(np.float64) @ references[row].astype(np.float64))
           for i, row in enumerate(pictures.truth)]
    return Found(rows[:, 0], scores[:, 0], np.array(own)), {"pixels": size, "weights": card.get("weights_sha256")}


def tabulate(pictures: Set, found: dict[str, Found]) -> list[dict[str, object]]:
    """Return rows with a share a method: by family, copies whose original comes first; similar pictures taken for
    copies at the highest threshold that a share of all copies reach with their original."""
    families = np.array(pictures.families)
    truth = np.array([-1 if row is None else row for row in pictures.truth])
    copies = truth >= 0
    rows = [{"queries": family.replace("_", " "), "count": int((families == family).sum())}
            | {name: float((one.first == truth)[families == family].mean()) for name, one in found.items()}
            for family in dict.fromkeys(families[copies].tolist())]
    rows.append({"queries": "all copies", "count": int(copies.sum())}
                | {name: float((one.first == truth)[copies].mean()) for name, one in found.items()})
    for share in SHARES:
        rows.append({"queries": f"similar, no copies: false alarms where {share:.0%} of copies are found",
                     "count": int((~copies).sum())}
                    | {name: float((one.score[~copies] >= threshold(one.own[copies], share)).mean())
                       for name, one in found.items()})
    return rows


def threshold(scores: np.ndarray, share: float) -> float:
    """Return the highest threshold that at least a share of the scores reach."""
    return float(np.sort(scores)[::-1][int(np.ceil(share * len(scores))) - 1])


def montage(path: Path, pictures: Set, found: dict[str, Found], *, side: int = 112) -> None:
    """Draw the first query of some families and two that are no copies, each with every method's first match."""
    shown = [pictures.families.index(family) for family in SHOWN if family in pictures.families]
    shown += [i for i, family in enumerate(pictures.families) if family == "similar"][:2]
    gap, line = 8, 18
    columns = ["query", *(name.replace("_", " ") for name in found)]
    sheet = Image.new("RGB", (gap + len(columns) * (side + gap), 28 + len(shown) * (side + line + gap)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for column, name in enumerate(columns):
        pen.text((gap + column * (side + gap), 6), name, "black", font)
    for row, query in enumerate(shown):
        top = 28 + row * (side + line + gap)
        family, own = pictures.families[query], pictures.truth[query]
        label = "no copy" if own is None else family.replace("_", " ")
        tiles = [(pictures.queries[query], label, "black")]
        for one in found.values():
            first = int(one.first[query])
            tiles.append((pictures.references[first], f"{one.score[query]:.3f}",
                          "#666666" if own is None else "#16794c" if first == own else "#b3322b"))
        for column, (file, said, colour) in enumerate(tiles):
            left = gap + column * (side + gap)
            picture = open_image(file)
            picture.thumbnail((side, side))
            sheet.paste(picture, (left + (side - picture.width) // 2, top + (side - picture.height) // 2))
            pen.rectangle((left - 2, top - 2, left + side + 1, top + side + 1), outline=colour, width=2)
            pen.text((left, top + side + 3), said, colour, font)
    with atomic_path(path) as partial:
        sheet.save(partial, quality=80, optimize=True)


def measure(*, student: str, trunk: str, photos: str | None = None, similar: str | None = None,
            name: str = "copy-vs-similar-drawn", references: int = 300, copies: int = 8, others: int = 100,
            families: Sequence[str] = tuple(EDITS), seed: int = 0, size: int = 160, out: Path = ROOT / "docs") -> Path:
    """Measure all methods and write the result file, of drawn pictures with the montage; return the result file."""
    its, ours = _size(trunk), _size(student)
    methods = {"pHash": ("phash", None), "PDQ": ("pdq", None), f"trunk_{its}_px": (trunk, its),
               f"trunk_{ours}_px": (trunk, ours), f"student_{ours}_px": (student, ours)}
    if not _has_pdq():
        del methods["PDQ"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        collection = _drawn(folder, references + others + 50, size) if photos is None else find_images(photos)
        pictures = make_set(collection, folder, similar=similar, references=references, copies=copies, others=others,
                            families=families, seed=seed)
        looked = {method: look(pictures, model, size=side) for method, (model, side) in methods.items()}
        found = {method: one for method, (one, _) in looked.items()}
        rows = tabulate(pictures, found)
        if photos is None:
            montage(out / "images" / "copy-vs-similar.jpg", pictures, found)
    weights = {method: about["weights"] for method, (_, about) in looked.items() if about["weights"]}
    path = out / "results" / f"{name}.json"
    write_json(path, {"rows": rows, "pictures": "drawn" if photos is None else "photographs", "references": references,
                      "pixels": {method: about["pixels"] for method, (_, about) in looked.items()},
                      "provenance": provenance(seed=seed, weights=weights, device="cpu")})
    return path


def _drawn(folder: Path, count: int, size: int) -> list[Path]:
    paths = [folder / f"drawn{seed:05d}.jpg" for seed in range(count)]
    for seed, path in enumerate(paths):
        draw_picture(seed, size=size).save(path, quality=QUALITY)
    return paths


def _size(model: str) -> int:
    return preprocessing(load_network(model)[1], size=None, resize=None)[0]


def _has_pdq() -> bool:
    try:
        import pdqhash  # noqa: F401
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    numbers = {key: int(given.pop(key)) for key in ("references", "copies", "others", "seed", "size") if key in given}
    set_run(command=" ".join(["python scripts/copy_vs_similar.py", *sys.argv[1:]]), config=None)
    print(measure(**given, **numbers))
