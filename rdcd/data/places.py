"""Where the parts of a dataset lie under its root, by the names they may have."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from rdcd.errors import UserError
from rdcd.files import sha256


def locate(root: Path, wanted: Mapping[str, Sequence[str]]) -> dict[str, Path | None]:
    """Find every part of a dataset under one of its names.

    Args:
        root: dataset root.
        wanted: part → the names below `root` it may have.

    Returns:
        part → its place, None where there is none.

    Raises:
        UserError: a part is there under two names, and they are not the same files; or two parts overlap.
    """
    found = {}
    for part, names in wanted.items():
        places = [root / name for name in names if (root / name).exists()]
        contents = {sha256(place) if place.is_file() else place.resolve() for place in places}
        if len(contents) > 1:
            raise UserError(f"{root} has its {part} under two names, {' and '.join(map(str, places))}, and they "
                            f"differ: keep the one that is meant, and move the other out of {root}")
        found[part] = places[0] if places else None
    check_apart({part: place for part, place in found.items() if place is not None and place.is_dir()})
    return found


def check_apart(folders: Mapping[str, Path]) -> None:
    """Refuse folders of two roles that are one or lie within each other, however they are spelled.

    Args:
        folders: role → a folder that is there.

    Raises:
        UserError: naming both.
    """
    real = {role: folder.resolve() for role, folder in folders.items()}
    for one, other in combinations(folders, 2):
        if real[one].is_relative_to(real[other]) or real[other].is_relative_to(real[one]):
            how = "are one folder" if real[one] == real[other] else "lie one within the other"
            raise UserError(f"{one} ({folders[one]}) and {other} ({folders[other]}) {how}: pictures in two roles make "
                            f"results wrong; name another folder, or move one of the two")


def require(root: Path, wanted: Mapping[str, Sequence[str]], *, layout: str, hint: str) -> dict[str, Path]:
    """Find every part of a dataset, see `locate`.

    Args:
        layout: what the root should be, for the message.
        hint: what to do where something is missing.

    Raises:
        UserError: the parts that are missing, by their first names, and what is there instead.
    """
    found = locate(root, wanted)
    if missing := [wanted[part][0] for part, place in found.items() if place is None]:
        raise UserError(f"data.root={root} is no {layout}: missing {', '.join(missing)} (found: {whats_there(root)}); "
                        f"{hint}")
    return found


def whats_there(folder: Path) -> str:
    """Name the first few entries of a folder."""
    if not folder.is_dir():
        return "no such folder"
    return ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
