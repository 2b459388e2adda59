"""One way to open every benchmark layout (docs/method.md §7)."""

from pathlib import Path

from rdcd.data.copydays import open_cd10k
from rdcd.data.disc import Benchmark, open_benchmark
from rdcd.data.ndec import open_ndec
from rdcd.data.pairs import open_pairs
from rdcd.errors import UserError, check_path

LAYOUTS = {"disc": ("split",), "ndec": (), "cd10k": ("background", "distractors"), "pairs": ("pairs", "background")}


def open_layout(layout: str, root: str | Path, *, split: str = "dev", pairs: str | Path | None = None,
                background: str | Path | None = None, distractors: str | Path | None = None) -> Benchmark:
    """Open a benchmark.

    Args:
        layout: `disc` (see `open_benchmark`), `ndec` (`open_ndec`), `cd10k` (`open_cd10k`) or `pairs` (`open_pairs`).
        root: dataset root.
        split: `dev` or `final`, of disc.
        pairs: CSV of known copies, of pairs.
        background: folder of background pictures, of cd10k and pairs.
        distractors: folder of distractors, of cd10k.

    Raises:
        UserError: an unknown layout, an option that it does not have or that is no path, or anything wrong under the
            root.
    """
    check_options(layout, root, written="data.", split=split, pairs=pairs, background=background,
                  distractors=distractors)
    if layout == "disc":
        return open_benchmark(root, split=split)
    if layout == "ndec":
        return open_ndec(root)
    if layout == "cd10k":
        return open_cd10k(root, distractors=distractors, background=background)
    return open_pairs(root, pairs=pairs, background=background)


def check_options(layout: str, root: str | Path, *, split: str, folder: bool = False, written: str = "",
                  **options: str | Path | None) -> None:
    """Refuse an unknown layout, options that say nothing about it, and what is no path.

    Args:
        root: dataset root.
        folder: whether `folder`, a plain folder of pictures, is a layout.
        written: what the user writes before the name of a path.
        options: pairs, background, distractors; None: not given.
    """
    known = LAYOUTS | ({"folder": ()} if folder else {})
    if not isinstance(layout, str) or layout not in known:
        raise UserError(f"layout={layout!r}: expected one of {', '.join(known)}")
    if not isinstance(split, str):
        raise UserError(f"split={split!r}: expected the name of a split, such as dev")
    check_path(f"{written}root", root)
    given = {name: value for name, value in options.items() if value is not None}
    if split != "dev":
        given["split"] = split
    for name, value in given.items():
        if name not in known[layout]:
            users = [other for other in LAYOUTS if name in LAYOUTS[other]]
            raise UserError(f"{name}={value} says nothing about layout={layout}: leave it out; it is for layout="
                            f"{' or '.join(users)}")
        if name != "split":
            check_path(f"{written}{name}", value)
