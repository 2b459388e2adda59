"""How many pictures cannot be read: each listed with its reason, and too many of them end the work."""

import csv
from collections.abc import Iterable
from pathlib import Path

from rdcd.data.images import write_ledger
from rdcd.errors import BadImage, UserError, check_number

MAX_BAD_SHARE = 0.1  # collections from the web hold a few per cent; a tenth is a disk, a download or a path gone wrong
_JUDGED_FROM = 1000  # pictures, before the end: fewer say little of the share


class Ledger:
    """The bad-file ledger of one piece of work, and its ceiling.

    >>> ledger = Ledger("bad_files.csv", max_bad_share=0.1)
    >>> for batch in batches:
    ...     ledger.add(batch.bad, seen=batch.size)  # may raise
    >>> ledger.settle()  # may raise

    Args:
        path: of the CSV `path,reason`, one row a file; there is none while there are no bad files.
        max_bad_share: largest share of the pictures that may be bad, from 0, none, to 1, all.
        key: how the user writes that setting.
        keep: begin with the rows that are there, of the same work interrupted; otherwise an old ledger is removed.

    Raises:
        UserError: a share that is none.
    """

    def __init__(self, path: str | Path, *, max_bad_share: float = MAX_BAD_SHARE, key: str = "max_bad_share",
                 keep: bool = False) -> None:
        check_number(key, max_bad_share, 0, 1, whole=False)
        self.path, self.max_bad_share, self.key = Path(path), max_bad_share, key
        self.bad: dict[str, BadImage] = _read(self.path) if keep else {}
        self._written = len(self.bad)
        self._seen = self._failed = 0
        self._first: BadImage | None = None
        if not keep:
            self.path.unlink(missing_ok=True)

    def add(self, bad: Iterable[BadImage], *, seen: int, failed: int | None = None) -> list[BadImage]:
        """Count pictures that were read or tried; return those of `bad` that are new.

        Args:
            bad: those that failed; a file that fails again is listed once.
            seen: how many were tried, `bad` among them.
            failed: how many of those failed; None: as many as `bad` has. Fewer where others than those that were
                asked for were met: a replacement that is bad, too, must not count, or neighbours would count often.

        Raises:
            UserError: after a thousand pictures, more have failed than the ceiling allows. The ledger is written.
        """
        bad = list(bad)
        new = list({error.path: error for error in bad if error.path not in self.bad}.values())
        self.bad |= {error.path: error for error in new}
        self._seen += seen
        self._failed += len(bad) if failed is None else failed
        self._first = self._first or next(iter(bad), None)
        if len(self.bad) > 1.05 * self._written:  # every one of the first twenty, then not a whole file for each
            self.write()
        if self._seen >= _JUDGED_FROM or not self.max_bad_share:
            self._judge(f"of the first {self._seen:,}")
        return new

    def settle(self) -> None:
        """Judge what was seen, however little, and count anew: at the end of the work, or of one folder of it.

        Raises:
            UserError: more have failed than the ceiling allows. The ledger is written, with this or without.
        """
        self.write()
        self._judge(f"of {self._seen:,}")
        self._seen = self._failed = 0
        self._first = None

    def write(self) -> None:
        """Bring the file up to date."""
        if len(self.bad) > self._written:
            write_ledger(self.path, list(self.bad.values()))
            self._written = len(self.bad)

    def _judge(self, of: str) -> None:
        share = self._failed / max(self._seen, 1)
        if share <= self.max_bad_share:
            return
        self.write()
        raise UserError(f"{self._failed:,} {of} pictures ({share:.1%}) could not be read, more than "
                        f"{self.key}={self.max_bad_share:g} allows; the first: {self._first.path} "
                        f"({self._first.reason}); {self.path} lists all: mend or remove them, or allow a larger share")


def _read(path: Path) -> dict[str, BadImage]:
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {row["path"]: BadImage(row["path"], row["reason"]) for row in csv.DictReader(file)}
