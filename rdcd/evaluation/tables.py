"""Result tables: as files, and for people."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rdcd.files import atomic_path, write_json, write_text
from rdcd.retrieval.knn import Matches

HEADS = {"uAP": "µAP %", "accuracy_at_1": "acc@1 %", "recall_at_p90": "R@P90 %", "threshold_at_p90": "threshold",
         "strong_mAP": "strong mAP %", "overall_uAP": "overall µAP %",
         "hard_negatives_above_p90": "hard neg. ≥ P90", "hard_negatives": "hard neg."}


def metrics_table(rows: Sequence[dict[str, object]], *, title: str | None = None) -> Table:
    """Return rows of metrics or of their differences as a table for people: in percent, intervals beside."""
    table = Table(title=title and escape(title))
    shown = [name for name in rows[0] if not name.endswith(("_low", "_high"))]
    for name in shown:
        justify = "right" if name in HEADS else "left"
        table.add_column(HEADS.get(name, name.replace("_", " ")), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(name, row) for name in shown))
    return table


def wide_console() -> Console:
    """Return a console that does not fold tables where no terminal gives the width."""
    console = Console()
    if not console.is_terminal:
        console.width = 160
    return console


def _cell(name: str, row: dict[str, object]) -> str:
    value, low, high = row[name], row.get(f"{name}_low"), row.get(f"{name}_high")
    if not isinstance(value, float):
        return escape(str(value))
    if name == "threshold_at_p90":
        return f"{value:.4f}"
    sign = "+" * ("other" in row)  # a difference of two models
    within = "" if low is None else f" [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
    return escape(f"{100 * value:{sign}.2f}{within}")


def write_metrics(out: str | Path, rows: Sequence[dict[str, object]], record: dict[str, object], *,
                  differences: Sequence[dict[str, object]] = ()) -> None:
    """Write `out/metrics.csv` and, with the same rows under `rows` and `record` under `provenance`, `out/metrics.json`.

    Args:
        rows: what becomes the lines.
        record: from `rdcd.provenance.provenance`.
        differences: rows of the paired comparison of models, for the JSON alone.
    """
    write_table(Path(out) / "metrics.csv", rows)
    write_json(Path(out) / "metrics.json", {"rows": list(rows), "provenance": record}
               | ({"differences": list(differences)} if differences else {}))


def write_table(path: str | Path, rows: Sequence[dict[str, object]]) -> None:
    """Write rows of the same keys as CSV, digits enough to read back the same numbers, `None` for None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: str(value) for name, value in row.items()} for row in rows)
    write_text(path, text.getvalue())


def write_predictions(path: str | Path, matches: Matches) -> None:
    """Write candidate pairs as CSV `query_id,reference_id,score`; scores read back as the same float32."""
    with atomic_path(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("query_id", "reference_id", "score"))
        writer.writerows(zip(matches.queries.tolist(), matches.references.tolist(),
                             matches.scores.astype(np.str_).tolist(), strict=True))
