"""Building and changing an index: what is new is written beside the old, then one file is replaced."""

import fcntl
import os
import shutil
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rdcd.errors import UserError
from rdcd.files import write_json
from rdcd.retrieval.codec import Codec
from rdcd.retrieval.index import FLAT, FORMAT, Index, read_about
from rdcd.retrieval.segments import Segment, SegmentWriter, merge, train_faiss, write_faiss

_TRAINED_ON = 1 << 18  # vectors that an approximate index learns from, at most


@dataclass
class _Part:
    """Segments that are to become one, and how many pictures they hold."""

    segments: list[Segment]
    rows: int
    changed: bool


class IndexWriter:
    """The one writer of an index folder, made by `new_index` or `change_index`.

    Segments are kept in the order they came, each more than twice as large as the next, so that a picture is copied
    a few times however often pictures are added.
    """

    def __init__(self, folder: Path, about: dict) -> None:
        self.folder, self.about = folder, about
        self.index = Index(folder, about)
        self._next = about["next_segment"]

    def segment(self) -> SegmentWriter:
        """Begin a segment of pictures to add."""
        self._next += 1
        return SegmentWriter(self.folder / f"{self._next:06d}")

    def commit(self, added: SegmentWriter | None = None, *, without: Set[str] = frozenset()) -> Index:
        """Make a change visible, whole.

        Args:
            added: a segment of this writer, closed.
            without: paths of the index to leave out; those of `added` that the index has must be among them.

        Returns:
            the changed index.
        """
        parts = []
        for segment in self.index.segments:
            gone = sum(segment.find(path) is not None for path in without)
            if gone < len(segment):
                parts.append(_Part([segment], len(segment) - gone, changed=gone > 0))
        new = []
        if added is not None and added.rows:
            new = [Segment(added.folder, rows=added.rows, dim=self.index.code_dim)]
            parts.append(_Part(new, added.rows, changed=False))
        while len(parts) > 1 and parts[-2].rows <= 2 * parts[-1].rows:
            last = parts.pop()
            parts[-1] = _Part(parts[-1].segments + last.segments, parts[-1].rows + last.rows, changed=True)
        listed = []
        for part in parts:
            segment = part.segments[0]
            folder, fresh = segment.folder, part.segments == new
            if part.changed:
                writer = self.segment()
                # The new pictures are the last segment, whose own paths are not left out.
                merge(part.segments, writer, without=frozenset(without), last_whole=part.segments[-1:] == new)
                writer.close()
                folder, fresh = writer.folder, True
            if fresh and self.about["factory"] != FLAT:
                self._approximate(folder, part.rows)
            listed.append({"folder": folder.name, "rows": part.rows})
        about = self.about | {"segments": listed, "next_segment": self._next}
        index = Index(self.folder, about)
        about["recall"] = index.recall()
        write_json(self.folder / "index.json", about)
        self.about, self.index = about, index
        _sweep(self.folder, about)
        return index

    def _approximate(self, folder: Path, rows: int) -> None:
        trained = self.folder / "trained.faiss"
        if not trained.is_file():
            raise UserError(f"{self.folder} has lost trained.faiss: build the index again")
        write_faiss(trained, folder, rows=rows, dim=self.index.code_dim, name=f"factory={self.about['factory']}")

    def train(self, added: SegmentWriter) -> None:
        """Train the approximate index of a new index, on its first pictures.

        Raises:
            UserError: faiss refuses the factory string, or there are too few pictures.
        """
        import faiss

        dim = self.index.code_dim
        sample = np.empty((0, dim), np.float32)
        if added.rows:
            segment = Segment(added.folder, rows=added.rows, dim=dim)
            rows = np.unique(np.linspace(0, added.rows - 1, min(added.rows, _TRAINED_ON)).astype(np.int64))
            sample = segment.vectors[rows]
        faiss.write_index(train_faiss(self.about["factory"], sample, dim), str(self.folder / "trained.faiss"))


@contextmanager
def new_index(folder: str | Path, *, model: dict, codec: Codec, dim: int, background: np.ndarray | None = None,
              background_source: str | None = None, factory: str = FLAT, **more: object) -> Iterator[IndexWriter]:
    """Yield the writer of an index to come; it is there from its first `commit` on.

    Args:
        folder: to make; one in which a build was killed is begun anew.
        model: what `describe_model` names.
        codec: trained on `background`, where it has anything to learn.
        dim: length of the descriptors.
        background: descriptors, float32 [m, dim]; None: the index's own pictures will do.
        background_source: where they are from.
        factory: `Flat`, exact, or a faiss index-factory string.
        more: further entries of index.json.

    Raises:
        UserError: the folder holds an index or something else, or is being written.
    """
    folder = Path(folder)
    if folder.is_dir() and not (folder / "lock").is_file() and any(folder.iterdir()):
        what = "is no index" if not (folder / "index.json").is_file() else "is an index without its lock file"
        raise UserError(f"index={folder} is not empty and {what}: name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        if (folder / "index.json").is_file():
            raise UserError(f"index={folder} holds an index already: add to it with `rdcd index add`, name another "
                            f"folder, or remove that one")
        coded_dim = codec.apply(np.zeros((1, dim), np.float32)).shape[1]
        about = {"format": FORMAT, "model": model, "codec": {"text": codec.text, "dim": dim, "coded_dim": coded_dim},
                 "factory": factory, "background": {"source": background_source, "count": 0}, "recall": None,
                 "segments": [], "next_segment": 0} | more
        _sweep(folder, about)
        if codec.text != FLAT:
            codec.save(folder / "codec.faiss")
        if background is not None:
            codec.apply(background).tofile(folder / "background.f32")
            about["background"]["count"] = len(background)
        try:
            yield IndexWriter(folder, about)
        finally:
            if not (folder / "index.json").is_file():  # nothing came of it: as before
                _sweep(folder, about)
                for name in ("codec.faiss", "background.f32", "trained.faiss", "lock"):
                    (folder / name).unlink(missing_ok=True)
                with suppress(OSError):
                    folder.rmdir()


@contextmanager
def change_index(folder: str | Path) -> Iterator[IndexWriter]:
    """Yield the writer of an index that is there.

    Raises:
        UserError: there is none, or another process is writing it.
    """
    folder = Path(folder)
    read_about(folder)
    with _locked(folder):
        about = read_about(folder)
        _sweep(folder, about)
        writer = IndexWriter(folder, about)
        try:
            yield writer
        finally:
            _sweep(folder, writer.about)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system frees it when the process ends, however it does."""
    with open(folder / "lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"{folder} is being written by process {file.read().strip() or 'unknown'}: try again when "
                            f"it is done; searching goes on meanwhile") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _sweep(folder: Path, about: dict) -> None:
    """Remove segments that are not listed: replaced ones, and what a killed writer left. Open ones stay readable."""
    listed = {part["folder"] for part in about["segments"]}
    for path in folder.iterdir():
        if path.is_dir() and path.name.isdigit() and path.name not in listed:
            shutil.rmtree(path, ignore_errors=True)
