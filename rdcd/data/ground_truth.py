"""Ground truth of a copy-detection benchmark: which query is a copy of which reference."""

import csv
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from rdcd.errors import UserError
from rdcd.files import atomic_path, composed

HEADER = ("query_id", "reference_id")


def read_ground_truth(path: str | Path) -> list[tuple[str, str]]:
    """Read CSV `query_id,reference_id` (header optional) in file order (docs/method.md §7).

    A row with an empty reference names a distractor query and gives no pair.

    Args:
        path: the CSV file, UTF-8.

    Returns:
        (query id, reference id) pairs, in NFC as the names of pictures are.

    Raises:
        UserError: no such file, not text, a row that has not two columns or no query id, or a pair
            given twice; each with its line number.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no ground truth file {path}: expected a CSV of query_id,reference_id; "
                        "check the path")
    first_line: dict[tuple[str, str], int] = {}
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        try:
            begun = False
            for cells in reader:
                row = tuple(composed(cell.strip()) for cell in cells)
                if not any(row):
                    continue
                begun, first = True, not begun
                if first and tuple(cell.lower() for cell in row) == HEADER:
                    continue
                place = f"{path}, line {reader.line_num}"
                if len(row) != 2:
                    raise UserError(f"{place}: {len(row)} columns ({','.join(row)[:80]!r}), expected two, "
                                    "query_id,reference_id, with a comma between; leave the reference empty for a "
                                    "distractor query")
                if not row[0]:
                    raise UserError(f"{place}: empty query id before reference {row[1]!r}; "
                                    "expected query_id,reference_id: fill it in or remove the line")
                if not row[1]:
                    continue
                if row in first_line:
                    raise UserError(f"{place}: pair {row[0]},{row[1]} was already given on line "
                                    f"{first_line[row]}; expected each pair once: remove one of the lines")
                first_line[row] = reader.line_num
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path} is not a UTF-8 CSV file ({error}); expected lines of "
                            "query_id,reference_id") from error
    return list(first_line)


def read_ids(path: str | Path) -> list[str]:
    """Read picture ids, one a line; a header `query_id` is optional.

    Raises:
        UserError: no such file, not text, or no id.
    """
    path = Path(path)
    try:
        ids = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except FileNotFoundError:
        raise UserError(f"no file {path}: expected one query id a line; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable text file ({error}); expected one query id a line") from error
    ids = [composed(name) for name in ids if name and name != HEADER[0]]
    if not ids:
        raise UserError(f"{path} holds no id: expected one query id a line")
    return list(dict.fromkeys(ids))


def may_be(name: str, names: Iterable[str]) -> str:
    """Say which pictures share the name of an id that is none, of those in `names`; "" where none does."""
    shared = [str(other) for other in names if PurePosixPath(other).stem == name]
    return f"; {name} may be {' or '.join(shared[:3])}: write which" if shared else ""


def write_ground_truth(path: str | Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write (query id, reference id) rows with a header; an empty reference marks a distractor."""
    with atomic_path(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows(rows)
