"""A table of pictures: names and paths in byte arrays, so loader workers share no Python objects."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from rdcd.data.images import find_images
from rdcd.errors import UserError


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

    Args:
        root: the folder the paths are relative to.
        paths: picture files, below `root` or elsewhere.
        names: one a picture; None: file names without extension.

    Raises:
        UserError: two files have one name, or a path is not UTF-8.
    """

    def __init__(self, root: str | Path, paths: Sequence[Path], *, names: Sequence[str] | None = None) -> None:
        self.root = Path(root)
        kind = "names without folder and extension" if names is None else "paths without extension"
        names = [Path(path).stem for path in paths] if names is None else names
        try:
            top = str(self.root / "x")[:-1]  # with its slash; text is ten times as fast as Path.relative_to
            self._paths = Strings(text.removeprefix(top) if (text := str(path)).startswith(top)
                                  else str(path.absolute()) for path in paths)  # root / absolute is absolute
            self._names = Strings(names)
        except UnicodeEncodeError as error:
            raise UserError(f"a file name under {self.root} is not UTF-8: {ascii(error.object)}; rename it") from None
        if len(names) != len(self):
            raise ValueError(f"{len(names)} names for {len(self)} pictures")
        if len(set(names)) < len(names):
            seen: dict[str, int] = {}
            for i, name in enumerate(names):
                if name in seen:
                    raise UserError(f"two pictures are named {name!r}: {self.path(seen[name])} and {self.path(i)}; "
                                    f"{kind} must be unique: rename one")
                seen[name] = i

    @classmethod
    def of_folder(cls, folder: str | Path) -> "Manifest":
        """List every picture under `folder`, nested ones included, sorted by path."""
        return cls(folder, find_images(folder))

    @classmethod
    def of_folders(cls, root: str | Path, folders: Mapping[str, str | Path]) -> "Manifest":
        """List the pictures of labelled folders, which may lie anywhere, in the order given.

        A picture's name is `label/path`, its path below its folder without extension: names need be unique within
        a folder only.

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
