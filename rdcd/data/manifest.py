"""A table of pictures: names and paths in one byte array, so loader workers share no Python objects."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rdcd.data.images import find_images
from rdcd.errors import UserError


class Manifest:
    """Pictures of one role, in a fixed order; a picture's name is its file name without extension.

    Args:
        root: the folder the paths are relative to.
        paths: picture files below `root`.

    Raises:
        UserError: two files have one name, or a name is not UTF-8.
    """

    def __init__(self, root: str | Path, paths: Sequence[Path]) -> None:
        self.root = Path(root)
        try:
            relative = [str(Path(path).relative_to(self.root)).encode() for path in paths]
        except UnicodeEncodeError as error:
            raise UserError(f"a file name under {self.root} is not UTF-8: {ascii(error.object)}; rename it") from None
        self._bytes = np.frombuffer(b"".join(relative), dtype=np.uint8)
        self._ends = np.cumsum([len(r) for r in relative], dtype=np.int64)
        names = self.names
        if len(set(names)) < len(names):
            seen: dict[str, int] = {}
            for i, name in enumerate(names):
                if name in seen:
                    raise UserError(f"two pictures are named {name!r}: {self.path(seen[name])} and {self.path(i)}; "
                                    f"names without folder and extension must be unique: rename one")
                seen[name] = i

    @classmethod
    def of_folder(cls, folder: str | Path) -> "Manifest":
        """List every picture under `folder`, nested ones included, sorted by path."""
        return cls(folder, find_images(folder))

    def __len__(self) -> int:
        return len(self._ends)

    def path(self, index: int) -> Path:
        """Return the path of picture `index`."""
        start = self._ends[index - 1] if index else 0
        return self.root / self._bytes[start:self._ends[index]].tobytes().decode()

    @property
    def names(self) -> list[str]:
        """Names of all pictures, in order."""
        return [self.path(i).stem for i in range(len(self))]

    def paths_by_name(self) -> dict[str, Path]:
        """Map names to paths."""
        return {(path := self.path(i)).stem: path for i in range(len(self))}
