"""Copy detection from Python: `load` a model, `embed` pictures, build an `Index` and search it.

The classes are thin: what they do is what `rdcd extract`, `rdcd index …` and `rdcd search` do.
"""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np

from rdcd.collection.index import Images, extend_index, index_embedder, make_index, shrink_index
from rdcd.collection.matching import Block, Match, find_matches
from rdcd.collection.pictures import Embedder, list_pictures, settle_bad
from rdcd.collection.scoring import AUTO, Scoring, choose_scoring
from rdcd.data.given import Given, Picture
from rdcd.data.views import Pictures
from rdcd.errors import BadImage, UserError, check_number, check_path
from rdcd.evaluation.batches import decoded
from rdcd.evaluation.extract import cut, embedded
from rdcd.models.inference import Embed, make_embed
from rdcd.retrieval.index import FLAT
from rdcd.retrieval.index import Index as IndexFolder

__all__ = ["Index", "Match", "Model", "Picture", "Scoring", "load"]


def load(model: str | Path, *, size: int | None = None, resize: str | None = None, device: str | None = None,
         batch_size: int = 64, allow_torchscript: bool = False) -> "Model":
    """Load a model that embeds pictures.

    Args:
        model: `student.safetensors`, whose card lies beside it, or any other model as `rdcd extract` takes it; a run
            folder or `latest` for a run's student.
        size, resize: of pictures; None: what the model's card says. The card's thresholds do not hold for others.
        device: `cpu` or `cuda`; None: cuda where it works.
        batch_size: pictures decoded and, on a GPU, embedded at a time.
        allow_torchscript: whether a TorchScript file, whose loading runs code, may be loaded.

    Raises:
        UserError: no such model, or settings that cannot work.
    """
    return Model(Embedder.load(model, size=size, resize=resize, batch_size=batch_size, workers=0, device=device,
                               allow_torchscript=allow_torchscript, alone=False))


class Model:
    """A model ready to embed pictures; made by `load`."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    def __repr__(self) -> str:
        about = self._embedder.about
        return f"<rdcd.Model {about['name']}, {self.dim} numbers, {self.size} px {about['resize']}>"

    @property
    def card(self) -> Mapping[str, object]:
        """What lies beside the weights: architecture, preprocessing, licence, calibration and so on."""
        return MappingProxyType(self._embedder.card)

    @property
    def dim(self) -> int:
        """Length of a descriptor."""
        return self._embedder.network.dim

    @property
    def size(self) -> int:
        """Side of pictures in pixels; which side, `card["preprocessing"]` says."""
        return self._embedder.about["size"]

    def embed(self, pictures: Sequence[Picture], *, errors: Literal["raise", "nan"] = "raise") -> np.ndarray:
        """Return the descriptors of pictures, float32 [n, dim], of networks L2-normalized, in the order given.

        A descriptor is the same whatever pictures are beside it, and the same as in an index.

        Args:
            pictures: each a path, a PIL picture, or a uint8 array [H, W, 3] of RGB ([H, W] of greys and [H, W, 4] of
                RGBA will do); all are turned upright, composed on white and resized alike.
            errors: what becomes of a picture that cannot be decoded: `raise`, or `nan`, a row of NaN.

        Raises:
            BadImage: naming the first picture that cannot be decoded, by its path or its place.
            UserError: one picture instead of several.
        """
        if errors not in ("raise", "nan"):
            raise UserError(f"errors={errors!r}: expected 'raise' or 'nan'")
        return self._embedded(Given(pictures), errors=errors)

    def _embedded(self, given: Given, *, errors: str = "raise") -> np.ndarray:
        settings, bad = self._embedder.settings, {}
        batches = decoded(Pictures(given, size=settings["size"], resize=settings["resize"]),
                          cut(range(len(given)), settings["batch_size"]), workers=0)
        found = np.full((len(given), self.dim), np.nan, np.float32)
        for rows, vectors in embedded(self._ready, batches, batch_size=settings["batch_size"], bad=bad,
                                      advance=lambda count: None):
            found[rows] = vectors
        if bad and errors == "raise":
            raise bad[min(bad)]
        return found

    @cached_property
    def _ready(self) -> Embed:
        return make_embed(self._embedder.network, device=self._embedder.settings["device"])


class Index:
    """An index folder with its model, as `rdcd index build` makes it; made by `build` or `open`.

    It shows the folder as it was when it was opened or last changed by this object.
    """

    def __init__(self, opened: IndexFolder, model: Model | None = None, *, device: str | None = None,
                 allow_torchscript: bool = False) -> None:
        self._opened, self._model = opened, model
        self._settings = {"workers": 0, "device": device, "allow_torchscript": allow_torchscript}
        self.bad: list[BadImage] = []  # pictures that could not be read when they were to be added

    @classmethod
    def build(cls, folder: str | Path, pictures: Images, model: Model, *, codec: str = FLAT, factory: str = FLAT,
              background: Images = None, background_size: int = 10_000) -> "Index":
        """Make an index of picture files; unreadable ones are left out and listed in `bad` and `bad_files.csv`.

        Args:
            folder: to make.
            pictures: folders and picture files; None: none as yet.
            model: what embeds them.
            codec, factory, background, background_size: see `rdcd.collection.index.build`.

        Raises:
            UserError: the folder is taken, or settings that cannot work.
        """
        check_path("folder", folder)
        check_number("background_size", background_size, 1)
        bad: list[BadImage] = []
        made = cls(make_index(folder, list_pictures(pictures, key="pictures"), model._embedder, bad, codec=codec,
                              factory=factory, background=background, background_size=background_size), model)
        settle_bad(Path(folder) / "bad_files.csv", bad)
        made.bad += bad
        return made

    @classmethod
    def open(cls, folder: str | Path, model: Model | None = None, *, device: str | None = None,
             allow_torchscript: bool = False) -> "Index":
        """Open an index folder.

        Args:
            folder: of the index.
            model: None: the one it was built with, from where it lay then, loaded when it is needed.
            device, allow_torchscript: of that, see `load`.

        Raises:
            UserError: there is no index, or it is of another model.
        """
        check_path("folder", folder)
        opened = IndexFolder.open(folder)
        if model is not None:
            model._embedder.check_same(opened.about["model"], where=str(folder))
        return cls(opened, model, device=device, allow_torchscript=allow_torchscript)

    def __repr__(self) -> str:
        return f"<rdcd.Index {self.folder}, {len(self):,} pictures>"

    def __len__(self) -> int:
        return len(self._opened)

    def __contains__(self, path: str | Path) -> bool:
        return self._opened.find(os.path.abspath(path)) is not None

    def __iter__(self) -> Iterator[str]:
        return (path for segment in self._opened.segments for path in segment.paths())

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self._opened.folder

    @property
    def model(self) -> Model:
        """What its pictures were embedded by.

        Raises:
            UserError: it lies elsewhere now: `Index.open(folder, rdcd.load(FILE))`.
        """
        if self._model is None:
            self._model = Model(index_embedder(self._opened, model=None, alone=False, **self._settings))
        return self._model

    def add(self, pictures: Images) -> int:
        """Add picture files, see `rdcd.collection.index.add`; return how many were added or replaced.

        Raises:
            UserError: no pictures, or another writer at work.
        """
        bad: list[BadImage] = []
        paths = list_pictures(pictures, key="pictures")
        self._opened, added, _, _ = extend_index(self.folder, paths, lambda index: self._same(index), bad)
        self.bad += bad
        return added

    def _same(self, index: IndexFolder) -> Embedder:
        self.model._embedder.check_same(index.about["model"], where=str(index.folder))
        return self.model._embedder

    def remove(self, pictures: Images = None, *, missing: bool = False) -> int:
        """Take pictures out, see `rdcd.collection.index.remove`; return how many. No picture file is touched.

        Raises:
            UserError: none of the index's pictures is meant, or another writer is at work.
        """
        self._opened, removed = shrink_index(self.folder, pictures, missing=missing)
        return removed

    def scoring(self, *, precision: float | None = None, threshold: float | None = None,
                score_norm: str | None = AUTO) -> Scoring:
        """Say how `search` would score: `threshold`, `score_norm`, what was calibrated, and `said`, that in words.

        Args:
            precision, threshold, score_norm: see `search`.

        Raises:
            UserError: a precision is asked for and not calibrated.
        """
        return choose_scoring(self._opened, self.model.card, score_norm=score_norm, threshold=threshold,
                              precision=precision)

    def search(self, queries: Sequence[Picture] | np.ndarray, *, k: int = 10, precision: float | None = None,
               threshold: float | None = None, score_norm: str | None = AUTO,
               itself: bool = False) -> list[list[Match]]:
        """Return each query's matches, best first; a `Match` has `path`, `score`, `confidence` and `kind`.

        Args:
            queries: pictures as `Model.embed` takes them, or their descriptors, float [n, dim].
            k: matches of a query, at most.
            precision: share of the matches that should be right, see `rdcd calibrate`; None: 0.9 where that is
                calibrated, else a threshold is guessed, with a warning.
            threshold: lowest score reported, instead.
            score_norm: `auto`, that which goes with the index's background; None; or such as "1.0[0,2]".
            itself: report a picture's own entry in the index, too.

        Raises:
            BadImage: a picture that cannot be decoded.
            UserError: a precision that is not calibrated, or descriptors of another length.
        """
        check_number("k", k, 1)
        scoring = self.scoring(precision=precision, threshold=threshold, score_norm=score_norm)
        if threshold is None and scoring.calibration is None:
            warnings.warn(f"threshold {scoring.threshold:.4f}, {scoring.said}", stacklevel=2)
        if isinstance(queries, np.ndarray) and queries.dtype.kind == "f":
            if queries.ndim != 2 or queries.shape[1] != self._opened.dim:
                raise UserError(f"descriptors of shape {list(queries.shape)}: expected [n, {self._opened.dim}], as "
                                f"the index's model makes them")
            paths, digests = [""] * len(queries), np.zeros((len(queries), 32), np.uint8)
            vectors = np.ascontiguousarray(queries, dtype=np.float32)
        else:
            given = Given(queries)
            vectors, (paths, digests) = self.model._embedded(given), given.files()
        block = Block(paths, digests, self._opened.encode(vectors))
        return [case.matches for case in find_matches([block], self._opened, scoring, k=k, itself=itself)]
