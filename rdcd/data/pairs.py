"""A benchmark of the user's own: any folder of pictures and a CSV of known copies."""

import csv
import posixpath
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from rdcd.data.disc import Benchmark
from rdcd.data.ground_truth import HEADER, read_ground_truth
from rdcd.data.images import find_images
from rdcd.data.manifest import Manifest, path_name
from rdcd.data.places import check_apart, whats_there
from rdcd.errors import UserError
from rdcd.files import composed


def open_pairs(root: str | Path, *, pairs: str | Path | None = None, background: str | Path | None = None) -> Benchmark:
    """Open a folder of pictures and a CSV `query_id,reference_id` of the copies among them.

    Queries are the pictures of the first column, those with an empty reference, which are copies of nothing, included;
    references are all others. Where the root has folders `queries` and `references`, these are used instead.

    An id is a file name, with or without extension, or, where it has a slash, a path below the folder; a file of
    exactly that name goes before one that has it without its extension. Pictures are then named by file name without
    extension, or, where two of a role share one, by path without extension, see `Manifest` for those of one path.

    Args:
        root: folder of pictures, nested ones included.
        pairs: the CSV; None: `pairs.csv` in the root.
        background: folder of other pictures for score normalization and codecs; None: `background` in the root, if
            there is one. Pictures of the root that lie in it are neither queries nor references.

    Raises:
        UserError: anything missing, an id that names no picture or several, a picture that is both query and
            reference, or folders of queries, references and background that overlap.
    """
    root = Path(root)
    table = root / "pairs.csv" if pairs is None else Path(pairs)
    if not root.is_dir():
        raise UserError(f"data.root={root}: no such folder; expected a folder of pictures")
    if not table.is_file():
        raise UserError(f"no file {table} of known copies (in {root}: {whats_there(root)}): expected a CSV of "
                        f"query_id,reference_id; name the folder and its CSV: data.root=DIR data.pairs=FILE of "
                        f"`rdcd evaluate`, root=DIR pairs=FILE of `rdcd check-data`")
    known = read_ground_truth(table)
    if not known:
        raise UserError(f"{table} gives no pair, so there is nothing to find: expected lines of query_id,reference_id")
    apart = root / "background" if background is None and (root / "background").is_dir() else background
    if apart is not None:
        apart = Path(apart)
        if not apart.is_dir():
            raise UserError(f"background={apart}: no such folder; expected a folder of pictures (relative paths start "
                            f"at {Path.cwd()})")
        if root.resolve().is_relative_to(apart.resolve()):
            raise UserError(f"background={apart} holds {root} itself: normalization and codecs are to learn from other "
                            f"pictures than those they are measured on; name another folder")
    ids = [_first_column(table), {reference for _, reference in known}]
    folders = [root / name for name in ("queries", "references") if (root / name).is_dir()]
    if len(folders) == 1:
        raise UserError(f"{root} has a folder {folders[0].name} but not the other of queries and references: make "
                        f"both, or rename it where queries and references lie in one folder")
    if folders:
        check_apart({folder.name: folder for folder in folders} | ({} if apart is None else {"background": apart}))
        files = [find_images(folder) for folder in folders]
        found = [_resolve(*role, root, table) for role in zip(ids, files, folders)]
    else:
        folders = [root, root]
        pictures = find_images(root) if apart is None else _outside(apart, find_images(root))
        found = [_resolve(role, pictures, root, root, table, apart) for role in ids]
        if both := sorted(set(found[0].values()) & set(found[1].values())):
            raise UserError(f"{table}: {len(both)} pictures are a query on one line and a reference on another, such "
                            f"as {both[0].relative_to(root)}: searched among the references, it would find itself. "
                            f"Exchange the columns of one of the lines, or put queries and references into folders "
                            f"queries and references of {root}")
        queries = set(found[0].values())
        files = [sorted(queries), [path for path in pictures if path not in queries]]
    train = None if apart is None else Manifest.of_folder(apart)
    queries, references = (Manifest(folder, paths, names=own)
                           for folder, paths, own in zip(folders, files, _names(files, folders)))
    names = [dict(zip(paths, role.names)) for paths, role in zip(files, (queries, references))]
    copies = [(names[0][found[0][query]], names[1][found[1][reference]]) for query, reference in known]
    if twice := [pair for pair, times in Counter(copies).items() if times > 1]:
        raise UserError(f"{table} gives the pair {','.join(twice[0])} twice, written in two ways: remove one of the "
                        f"lines")
    return Benchmark(root=root, split="all", queries=queries, references=references, pairs=copies, background=train,
                     layout="pairs")


def _first_column(table: Path) -> set[str]:
    """Return the query ids of a CSV that `read_ground_truth` has read without complaint."""
    with open(table, newline="", encoding="utf-8-sig") as file:
        rows = [tuple(composed(cell.strip()) for cell in row) for row in csv.reader(file)]
    rows = [row for row in rows if any(row)]
    return {row[0] for row in (rows[1:] if tuple(cell.lower() for cell in rows[0]) == HEADER else rows)}


def _resolve(ids: Collection[str], paths: Sequence[Path], folder: Path, root: Path, table: Path,
             outside: Path | None = None) -> dict[str, Path]:
    """Return id → the one picture it names.

    Args:
        outside: folder whose pictures `paths` leaves out, for the message.

    Raises:
        UserError: it names none, or several.
    """
    wanted: dict[str, list[str]] = {}
    for name in ids:
        wanted.setdefault(posixpath.normpath(name) if "/" in name else f"*/{name}", []).append(name)
    found: dict[str, dict[int, list[Path]]] = {name: {} for name in ids}  # id → rank → pictures, rank 0 the closest
    tops = dict.fromkeys((folder, root))
    for path in paths:
        keys = [f"*/{path.name}", *(path.relative_to(top).as_posix() for top in tops)]
        keys += [f"*/{path.stem}", *(path_name(path, top) for top in tops)]
        for rank, key in enumerate(map(composed, keys)):
            for name in wanted.get(key, ()):
                found[name].setdefault(rank, []).append(path)
    if lost := sorted(name for name, there in found.items() if not there):
        apart = "" if outside is None else f" outside {outside}"
        raise UserError(f"{table} names {len(lost)} of {len(ids)} ids that are no picture under {folder}{apart}, such "
                        f"as {', '.join(lost[:3])} (there: {', '.join(path.name for path in paths[:2])}): an id is a "
                        f"file name, or a path from {folder} on")
    closest = {name: there[min(there)] for name, there in found.items()}
    for name, there in closest.items():
        if len(there) > 1:
            raise UserError(f"{table}: {name} may be {there[0].relative_to(folder)} or "
                            f"{there[1].relative_to(folder)}: write which by its path from {folder} on, "
                            f"with a slash, such as ./{there[0].relative_to(folder).as_posix()}")
    return {name: there[0] for name, there in closest.items()}


def _outside(folder: Path, paths: Sequence[Path]) -> list[Path]:
    """Leave out the pictures that lie in a folder, by whatever links either is reached."""
    real = folder.resolve()
    within = {parent: parent.resolve().is_relative_to(real) for parent in {path.parent for path in paths}}
    return [path for path in paths if not within[path.parent]]


def _names(files: Sequence[Sequence[Path]], folders: Sequence[Path]) -> list[list[str]]:
    """Return the names of each role: stems, or for all of them paths where stems repeat within a role."""
    stems = [[composed(path.stem) for path in paths] for paths in files]
    if all(len(set(names)) == len(names) for names in stems):
        return stems
    return [[path_name(path, folder) for path in paths] for paths, folder in zip(files, folders)]
