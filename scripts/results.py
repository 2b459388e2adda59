"""Fill the result tables of the documents from result files: no number in them is typed by hand.

A block `<!-- results FILE[:MODEL,…] … -->` … `<!-- end -->` in README.md or docs/*.md holds the table of the
named `docs/results/FILE.json`, which are `metrics.json` files as the tool wrote them. Run after adding one:

    python scripts/results.py
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- results ([^>]*?) -->\n).*?(<!-- end -->)", re.S)


def rows(selection: str) -> list[dict]:
    """Return the rows of one `FILE[:MODEL,…]`, each with `file` added."""
    name, _, models = selection.partition(":")
    content = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    wanted = [model.replace("_", " ") for model in models.split(",")] if models else None
    return [row | {"file": name} for row in content["rows"] if wanted is None or row["model"] in wanted]


def table(selections: list[str]) -> str:
    """Return a Markdown table: one line per model and codec, µAP and µAP_SN side by side, in percent."""
    lines = ["| result file | model | dim | codec | µAP | µAP_SN | R@P90 (SN) | acc@1 |",
             "|---|---|--:|---|--:|--:|--:|--:|"]
    plain: dict[tuple, dict] = {}
    for row in (row for selection in selections for row in rows(selection)):
        key = (row["file"], row["model"], row["dim"], row["codec"])
        if row["score_norm"] is None:
            plain[key] = row
        else:
            values = [plain[key]["uAP"], row["uAP"], row["recall_at_p90"], row["accuracy_at_1"]]
            lines.append(f"| {key[0]} | {key[1]} | {key[2]} | `{key[3]}` | "
                         + " | ".join(f"{100 * value:.1f}" for value in values) + " |")
    return "\n".join(lines) + "\n"


def filled(text: str) -> str:
    """Return a document with its result blocks renewed."""
    return BLOCK.sub(lambda m: m[1] + table(m[2].split()) + m[3], text)


def documents() -> list[Path]:
    """Return the documents that may hold result blocks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


if __name__ == "__main__":
    for path in documents():
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
