"""What the published datasets hold (docs/method.md §7), and where they are to be had."""

from dataclasses import dataclass

import numpy as np

from rdcd.data.copydays import BLOCKS


@dataclass(frozen=True)
class Ids:
    """A run of numbered names, such as R000000 – R999999."""

    letter: str
    digits: int
    first: int
    count: int

    def place(self, name: str) -> int | None:
        """Return a name's place in the run, from 0; None: it is not of this run."""
        number = name[1:]
        if name[:1] != self.letter or len(number) != self.digits or not (number.isascii() and number.isdigit()):
            return None
        place = int(number) - self.first
        return place if 0 <= place < self.count else None

    def name(self, place: int) -> str:
        """Return the name at a place."""
        return f"{self.letter}{self.first + place:0{self.digits}d}"

    def part(self, count: int) -> "Ids":
        """Return the first so many of the run."""
        return Ids(self.letter, self.digits, self.first, count)

    def names(self, places: np.ndarray, *, most: int = 3) -> str:
        """Name the first few of `places`."""
        return ", ".join(map(self.name, places[:most].tolist())) + (", …" if len(places) > most else "")

    def __str__(self) -> str:
        return f"{self.name(0)} – {self.name(self.count - 1)}"


@dataclass(frozen=True)
class Page:
    """Where a dataset is to be had."""

    name: str
    url: str

    def __str__(self) -> str:
        return f"{self.name}, {self.url}"


SHARD = 50_000  # pictures in one archive of DISC's references and training split
REFERENCES, TRAIN = Ids("R", 6, 0, 1_000_000), Ids("T", 6, 0, 1_000_000)
QUERIES = {"dev": Ids("Q", 5, 0, 50_000), "final": Ids("Q", 5, 50_000, 50_000)}
PAIRS = {"dev": {50_000: 10_000, 25_000: 4_991}, "final": {50_000: 10_000}}  # queries there → pairs among them
NDEC_QUERIES, NDEC_HARD_NEGATIVES = 49_252, 24_252
COPYDAYS = {block: 229 if block == "strong" else 157 for block in BLOCKS}
DISTRACTORS, WHITENING = 10_000, 20_000

DISC_PAGE = Page("the DISC2021 page", "https://ai.meta.com/datasets/disc21-dataset/")
NDEC_PAGE = Page("the NDEC page", "https://github.com/WangWenhao0716/ASL")
COPYDAYS_PAGE = Page("INRIA's Holidays and Copydays page (where it fails, the Web Archive's copy of it)",
                     "https://lear.inrialpes.fr/~jegou/data.php#copydays")
PHOTOGRAPHS = Page("any photographs (the published ones are of YFCC100M)", "http://www.multimediacommons.org")
