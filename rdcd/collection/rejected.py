"""Pairs of pictures that a person has looked at and found to be no duplicates: `not_duplicates=FILE`."""

import csv
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rdcd.errors import UserError, check_path

_PATHS = (("path", "of"), ("query", "match"), ("first", "second"))  # columns of actions.csv, matches.csv, pairs.csv
_DIGESTS = ("sha256", "of_sha256")
_HEX = re.compile(r"[0-9a-fA-F]{64}")


class Rejected:
    """Pairs that are never reported, by path and by content.

    Args:
        paths: pairs of paths.
        digests: pairs of SHA-256; both of one content mean nothing, as that would reject all its copies.
    """

    def __init__(self, paths: set[frozenset[str]] = frozenset(), digests: set[frozenset[bytes]] = frozenset()) -> None:
        self._paths, self._digests = paths, {pair for pair in digests if len(pair) == 2}
        self.most = sum(max(Counter(one for pair in pairs for one in pair).values(), default=0)
                        for pairs in (self._paths, self._digests))  # partners that a picture may have

    def __bool__(self) -> bool:
        return bool(self._paths or self._digests)

    def pair(self, first: str, first_digest: bytes, second: str, second_digest: bytes) -> bool:
        """Tell whether two pictures, given by path and SHA-256, are a rejected pair."""
        return bool(self) and (frozenset((first_digest, second_digest)) in self._digests
                               or frozenset((_real(first), _real(second))) in self._paths)


NONE = Rejected()


def read_rejected(path: str | Path | None) -> tuple[Rejected, dict[str, object] | None]:
    """Read a table of rejected pairs; return them, and what result files say of it.

    Rows are those of actions.csv, pairs.csv or matches.csv as they are: the columns `path,of`, `first,second` or
    `query,match`, with further ones or none; `sha256,of_sha256`, which survive renaming, beside them or alone. Where
    another header follows, it holds from there on. Relative paths start at the table's folder; pictures kept, which
    have no `of`, are passed over.

    Args:
        path: None: no pair.

    Raises:
        UserError: no such file, no such columns, or a row that is no pair, by its number.
    """
    check_path("not_duplicates", path, null="no such pairs")
    if path is None:
        return NONE, None
    paths, digests, count = set(), set(), 0
    for where, row in _rows(path):
        pair = next((found for names in _PATHS if any(found := [row.get(name, "") for name in names])), ["", ""])
        hashes = [row.get(name, "") for name in _DIGESTS]
        if wrong := [value for value in hashes if value and not _HEX.fullmatch(value)]:
            raise UserError(f"{where}: {wrong[0]!r}: expected a SHA-256 of 64 hex digits, or nothing")
        if row.get("action") == "keep" and not pair[1]:
            continue
        if not all(pair) and (any(pair) or not all(hashes)):
            raise UserError(f"{where}: {','.join(row.values())!r}: expected two paths, or two SHA-256")
        count += 1
        if all(pair):
            paths.add(frozenset(_real(os.path.join(os.path.dirname(os.path.abspath(path)), one)) for one in pair))
        if all(hashes):
            digests.add(frozenset(map(bytes.fromhex, hashes)))
    return Rejected(paths, digests), {"file": str(path), "pairs": count}


def _rows(path: str | Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield where a row is, and the row by its columns."""
    named = f"not_duplicates={path}"
    header, line = None, 1
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            for cells in reader:
                where, line = f"{named}, line {line}", reader.line_num + 1
                names = [cell.strip("\ufeff \t").lower() for cell in cells]
                if any(set(pair) <= set(names) for pair in (*_PATHS, _DIGESTS)):
                    header = names
                elif header is None:
                    raise UserError(f"{where}: {','.join(cells)!r} names no columns of pairs; expected "
                                    f"{', or '.join(map(','.join, _PATHS))}, as actions.csv, matches.csv and pairs.csv "
                                    f"have them")
                elif any(cells):
                    yield where, dict(zip(header, cells))
    except FileNotFoundError:
        raise UserError(f"{named}: no such file; expected a CSV of pairs that are no duplicates, with the columns "
                        f"path,of; make one, or leave it out") from None
    except IsADirectoryError:
        raise UserError(f"{named}: expected a file, a CSV with the columns path,of") from None
    except UnicodeDecodeError:
        raise UserError(f"{named}: it is not UTF-8; save it as such") from None
    except csv.Error as error:
        raise UserError(f"{named}, line {line}: {error}") from None
    except OSError as error:
        raise UserError(f"{named}: cannot be read ({error.strerror})") from None


def _real(path: str) -> str:
    return unicodedata.normalize("NFC", os.path.realpath(path))
