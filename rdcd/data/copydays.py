"""CD10K: all of Copydays searched among its originals and 10,000 distractors (docs/method.md §7)."""

from pathlib import Path

from rdcd.data.disc import Benchmark
from rdcd.data.manifest import Manifest
from rdcd.data.places import require
from rdcd.errors import UserError

CROPS = (10, 15, 20, 30, 40, 50, 60, 70, 80)
QUALITIES = (3, 5, 8, 10, 15, 20, 30, 50, 75)
BLOCKS = ("original", "strong", *(f"crops/{n}" for n in CROPS), *(f"jpegqual/{n}" for n in QUALITIES))
KEY = 4  # so many first characters of a file name tell the original


def parts(root: Path, *, distractors: str | Path | None = None,
          background: str | Path | None = None) -> dict[str, tuple[str, ...]]:
    """Return part → the names it may have under a root; a folder that is given replaces them."""
    wanted = {block: (block, f"copydays/{block}") for block in BLOCKS}
    for part, given in (("distractors", distractors), ("train", background)):
        wanted[part] = (part,) if given is None else (str(Path(given).absolute()),)
    return wanted


def open_cd10k(root: str | Path, *, distractors: str | Path | None = None,
               background: str | Path | None = None) -> Benchmark:
    """Open a CD10K root: the 20 blocks of Copydays, also below `copydays/`, `distractors/` and perhaps `train/`.

    Queries are named `block/file`, such as `crops/10/200000`, references `original/…` and `distractors/…`. Every
    query is a copy of the original whose file name begins with the same four characters.

    Args:
        root: dataset root.
        distractors: folder of distractors; None: `distractors/` under the root.
        background: folder of pictures that codecs learn from; None: `train/` under the root, if there is one.

    Raises:
        UserError: whatever is missing, or names that do not lead to one original.
    """
    root = Path(root)
    wanted = parts(root, distractors=distractors, background=background)
    if background is None and not (root / "train").exists():
        del wanted["train"]
    places = require(root, wanted, layout="CD10K root",
                     hint="expected Copydays' folders original, strong, crops/N and jpegqual/N under it or under "
                          "copydays/, and a folder of other pictures as distractors/ or distractors=DIR")
    queries = Manifest.of_folders(root, {block: places[block] for block in BLOCKS})
    references = Manifest.of_folders(root, {part: places[part] for part in ("original", "distractors")})
    train = Manifest.of_folder(places["train"]) if "train" in places else None
    return Benchmark(root=root, split="all", queries=queries, references=references, background=train,
                     pairs=_pairs(queries, references), layout="cd10k")


def _pairs(queries: Manifest, references: Manifest) -> list[tuple[str, str]]:
    """Pair every query with the original of the same key."""
    originals: dict[str, str] = {}
    for name in references.names:
        if not name.startswith("original/"):
            continue
        first = originals.setdefault(original_key(name), name)
        if first != name:
            raise UserError(f"{first} and {name} under {references.root} begin with the same {KEY} characters, by "
                            f"which their copies are told apart: expected the file names of Copydays, such as "
                            f"200000.jpg and 200100.jpg")
    pairs = [(name, originals.get(original_key(name), "")) for name in queries.names]
    if lost := [name for name, original in pairs if not original]:
        raise UserError(f"{len(lost)} of {len(pairs)} queries under {queries.root} are a copy of no original, such as "
                        f"{', '.join(lost[:3])}: expected an original whose file name begins with the same {KEY} "
                        f"characters; add it, or remove these")
    return pairs


def original_key(name: str) -> str:
    """Return what tells a picture's original: the first four characters of the file name in its id."""
    return name.rpartition("/")[2][:KEY]
