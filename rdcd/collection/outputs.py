"""Result files of `rdcd search` and `rdcd dedup`, written as results come."""

import csv
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from rdcd.errors import check_path
from rdcd.evaluation.runs import RUNS
from rdcd.files import atomic_path, check_output


def choose_out(out: str | Path | None, kind: str) -> Path:
    """Return the folder for results: the one given, or a new `runs/<time>-<kind>`."""
    check_path("out", out, null="a new folder under runs/")
    if out is None:
        out = wanted = RUNS / f"{time.strftime('%Y%m%d-%H%M%S')}-{kind}"
        tries = 1
        while out.exists():
            tries += 1
            out = wanted.with_name(f"{wanted.name}-{tries}")
    check_output(out, folder=True)
    Path(out).mkdir(parents=True, exist_ok=True)
    return Path(out)


class Rows:
    """Rows of one CSV file and of one list in a JSON file, written one by one."""

    def __init__(self, table: TextIO, listed: TextIO, columns: Sequence[str], name: str) -> None:
        self._csv, self._json, self.count = csv.DictWriter(table, columns, lineterminator="\n"), listed, 0
        self._csv.writeheader()
        listed.write(f'{{\n"{name}": [')

    def add(self, row: dict[str, object]) -> None:
        """Write a row; a confidence that is not known is empty in the CSV and null in the JSON."""
        self._csv.writerow(row)
        self._json.write(("," if self.count else "") + "\n " + json.dumps(row, ensure_ascii=False, allow_nan=False))
        self.count += 1

    def finish(self, record: dict[str, object]) -> None:
        """End the JSON with further entries."""
        rest = json.dumps(record, ensure_ascii=False, allow_nan=False, indent=1)
        self._json.write("\n],\n" + rest.lstrip("{\n"))
        self._json.write("\n")


@contextmanager
def rows_written(path: Path, columns: Sequence[str], *, name: str) -> Iterator[Rows]:
    """Yield `Rows` for `path` with the suffixes `.csv` and `.json`, which appear when all is written.

    Args:
        columns: of the CSV.
        name: of the list in the JSON.
    """
    with ExitStack() as stack:
        partial = [stack.enter_context(atomic_path(path.with_suffix(suffix))) for suffix in (".csv", ".json")]
        files = [stack.enter_context(open(part, "w", newline="", encoding="utf-8")) for part in partial]
        yield Rows(*files, columns, name)
