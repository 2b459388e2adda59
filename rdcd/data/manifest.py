"""A table of pictures: names and paths in byte arrays, so loader workers share no Python objects."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np

from rdcd.data.images import find_images
from rdcd.errors import UserError
from rdcd.files import composed


class Strings:
    """A sequence of strings in one byte array."""

    def __init__(self, values: Iterable[str]) -> None:
        encoded = [value.encode() for value in values]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([len(value) for value in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def digest(self) -> bytes:
        """Return a hash of them all, in order."""
        return hashlib.sha256(hashlib.sha256(self._ends).digest() + hashlib.sha256(self._bytes).digest()).digest()

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return self._bytes[start:self._ends[index]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self._ends.tolist():
            yield self._bytes[start:end].tobytes().decode()
            start = end


class Manifest:
    """Pictures of one role, in a fixed order; a picture's name is its file name without extension, unless given.

    Pictures that would share a name are told apart, all of them: by the name with its extension, where that is shared
    too, by the path below `root`, and where only the Unicode normalization differs, by that with escapes. Names are in
    NFC, paths as they are on disk.

    Args:
        root: the folder the paths are relative to.
        paths: picture files, below `root` or elsewhere.
        names: one a picture, without extension; None: file names.

    Attributes:
        told_apart: how many pictures have a longer name, for theirs was another's.

    Raises:
        UserError: a file is given twice, or a path is not UTF-8.
    """

    def __init__(self, root: str | Path, paths: Sequence[Path], *, names: Sequence[str] | None = None) -> None:
        self.root = Path(root)
        names = [composed(name) for name in ([Path(path).stem for path in paths] if names is None else names)]
        try:
            top = str(self.root / "x")[:-1]  # with its slash; text is ten times as fast as Path.relative_to
            self._paths = Strings(text.removeprefix(top) if (text := str(path)).startswith(top)
                                  else str(path.absolute()) for path in paths)  # root / absolute is absolute
            names, self.told_apart = self._apart(names)
            self._names = Strings(names)
        except UnicodeEncodeError as error:
            raise UserError(f"a file name under {self.root} is not UTF-8: {ascii(error.object)}; rename it") from None

    def _apart(self, names: list[str]) -> tuple[list[str], int]:
        if len(names) != len(self):
            raise ValueError(f"{len(names)} names for {len(self)} pictures")
        short, names = names, list(names)
        longer: dict[int, int] = {}  # picture → how many times its name was made longer
        while len(counts := Counter(names)) < len(names):
            same = [i for i, name in enumerate(names) if counts[name] > 1]
            if not (left := [i for i in same if longer.get(i, 0) < 3]):
                raise UserError(f"{self.path(same[0])} is given twice: expected every picture once")
            for i in left:
                path, longer[i] = self._paths[i], longer.get(i, 0) + 1
                names[i] = (composed(short[i] + PurePath(path).suffix), composed(path),
                            path.encode("ascii", "backslashreplace").decode())[longer[i] - 1]
        return names, len(longer)

    @classmethod
    def of_folder(cls, folder: str | Path) -> "Manifest":
        """List every picture under `folder`, nested ones included, sorted by path."""
        return cls(folder, find_images(folder))

    @classmethod
    def of_folders(cls, root: str | Path, folders: Mapping[str, str | Path]) -> "Manifest":
        """List the pictures of labelled folders, which may lie anywhere, in the order given.

        A picture's name is `label/path`, its path below its folder without extension.

        Args:
            root: folder that paths are kept relative to where they lie below it.
            folders: label → folder.
        """
        paths, names = [], []
        for label, folder in folders.items():
            for path in find_images(folder):
                paths.append(path)
                names.append(f"{label}/{path_name(path, folder)}")
        return cls(root, paths, names=names)

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, index: int) -> Path:
        """Return the path of picture `index`."""
        return self.root / self._paths[index]

    def source(self, index: int) -> Path | bytes:
        """Return what `open_image` reads picture `index` from."""
        return self.path(index)

    def digest(self) -> str:
        """Return a hash of names and paths, in order."""
        return hashlib.sha256(self._names.digest() + self._paths.digest()).hexdigest()

    @property
    def names(self) -> list[str]:
        """Names of all pictures, in order."""
        return list(self._names)

    def paths_by_name(self) -> dict[str, Path]:
        """Map names to paths."""
        return {name: self.root / path for name, path in zip(self._names, self._paths)}


def path_name(path: Path, folder: str | Path) -> str:
    """Return a picture's path below `folder`, with slashes and without extension."""
    return path.relative_to(folder).with_suffix("").as_posix()
