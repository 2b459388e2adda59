"""One picture at a time against an index, from any thread: what the demo asks."""

import hashlib
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rdcd.collection.index import index_embedder
from rdcd.collection.matching import Block, Match, find_matches
from rdcd.collection.pictures import Embedder
from rdcd.collection.scoring import AUTO, Scoring, check_asked, choose_scoring
from rdcd.errors import check_number, check_path
from rdcd.retrieval.index import Index, read_about

_ANY = float(np.finfo(np.float64).min)  # above the -inf of pictures that an approximate index did not find


@dataclass(frozen=True)
class Answer:
    """The pictures nearest to one, best first; those below the threshold of `scoring` are no matches.

    Args:
        nearest: at most k.
        scoring: how they are scored.
        pictures: how many were searched.
    """

    nearest: list[Match]
    scoring: Scoring
    pictures: int


class Finder:
    """An index with its model; requests take turns, so that memory holds one decoded picture.

    An index that was changed on disk is opened anew at the next request.

    Args:
        index: its folder.
        k: pictures of an answer, at most.
        threshold, precision, score_norm: see `choose_scoring`.
        model, device, allow_torchscript: see `Embedder.load`.

    Raises:
        UserError: no index, or another model.
    """

    def __init__(self, index: str | Path, *, k: int = 10, threshold: float | None = None,
                 precision: float | None = None, score_norm: str | None = AUTO, model: str | None = None,
                 device: str | None = None, allow_torchscript: bool = False) -> None:
        check_path("index", index)
        check_path("model", model, null="the one the index was built with")
        check_number("k", k, 1)
        check_asked(threshold, precision)
        self.folder, self.k = Path(index), k
        self._asked = {"threshold": threshold, "precision": precision, "score_norm": score_norm}
        opened = Index.open(index)
        self._embedder: Embedder = index_embedder(opened, model=model, batch_size=1, device=device,
                                                  allow_torchscript=allow_torchscript)
        self._turn = threading.Lock()
        self._take(opened)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def scoring(self) -> Scoring:
        """How pictures are scored."""
        return self._scoring

    def _take(self, index: Index) -> None:
        scoring = choose_scoring(index, self._embedder.card, **self._asked)
        self._index, self._scoring = index, scoring

    def find(self, picture: bytes) -> Answer:
        """Return what an encoded picture is like.

        Raises:
            BadImage: it cannot be decoded.
            UserError: the index is gone, or is now of another model.
        """
        with self._turn:
            if read_about(self.folder) != self._index.about:
                opened = Index.open(self.folder)
                self._embedder.check_same(opened.about["model"], where=str(self.folder))
                self._take(opened)
            index, scoring = self._index, self._scoring
            coded = index.encode(self._embedder.embed(picture))
            digest = np.frombuffer(hashlib.sha256(picture).digest(), np.uint8)[None]
            (case,) = find_matches([Block([""], digest, coded)], index, replace(scoring, threshold=_ANY), k=self.k)
            return Answer(case.matches, scoring, len(index))
