"""Fill the result tables of the documents from result files: no number in them is typed by hand.

A block `<!-- results FILE[:MODEL,…] … -->` … `<!-- end -->` in README.md or docs/*.md holds the table of the
named `docs/results/FILE.json`, which are `metrics.json` files as the tool wrote them; `<!-- differences … -->` that of
the paired differences in them, of the first model and the named others. A block `<!-- published -->` …
`<!-- end -->` holds the rows of docs/results/published.json, reported by others, with ours beside them where there is a
`docs/results/EXPERIMENT.json`. Run after adding one:

    python scripts/results.py
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
BLOCK = re.compile(r"(<!-- (results|differences|published) ?([^>]*?) -->\n).*?(<!-- end -->)", re.S)


def chosen(selection: str) -> tuple[str, list[str] | None]:
    """Return (file, models) of a `FILE[:MODEL,…]`, underscores for the spaces of a model's name; None: all."""
    name, _, models = selection.partition(":")
    return name, [model.replace("_", " ") for model in models.split(",")] if models else None


def rows(selection: str) -> list[dict]:
    """Return the rows of one `FILE[:MODEL,…]`, each with `file` added."""
    name, wanted = chosen(selection)
    content = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
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
            cells = [figure(plain[key], "uAP"), figure(row, "uAP"), figure(row, "recall_at_p90"),
                     figure(row, "accuracy_at_1")]
            lines.append(f"| {key[0]} | {key[1]} | {key[2]} | `{key[3]}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figure(row: dict, metric: str) -> str:
    """Return a metric in percent, with its 95 % interval where the file has one."""
    low, high = row.get(f"{metric}_low"), row.get(f"{metric}_high")
    within = "" if low is None else f" ({100 * low:.1f}–{100 * high:.1f})"
    return f"{100 * row[metric]:.1f}{within}"


def compared(selections: list[str]) -> str:
    """Return a Markdown table of the paired differences with the named models, of normalized scores."""
    lines = ["| result file | models | codec | µAP_SN, points | 95 % interval |", "|---|---|---|--:|--:|"]
    for name, wanted in map(chosen, selections):
        content = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        for row in content["differences"]:
            if row["score_norm"] and (wanted is None or row["other"] in wanted):
                difference, low, high = (f"{100 * row[key]:+.1f}" for key in ("uAP", "uAP_low", "uAP_high"))
                lines.append(f"| {name} | {row['model']} − {row['other']} | `{row['codec']}` | {difference} | "
                             f"{low} … {high} |")
    return "\n".join(lines) + "\n"


def published() -> str:
    """Return a Markdown table of what others report and what was measured here, whitened and score-normalized."""
    lines = ["| experiment | system | dim | reported by its authors | ours |", "|---|---|--:|--:|--:|"]
    for row in json.loads((RESULTS / "published.json").read_text(encoding="utf-8"))["rows"]:
        theirs = "" if row["uAP_SN"] is None else f"{row['uAP_SN']:.1f}"
        ours = ""
        if (RESULTS / f"{row['experiment']}.json").is_file():
            measured = rows(row["experiment"])
            model = "student" if any(line["model"] == "student" for line in measured) else "teacher"
            ours = next((figure(line, "uAP") for line in measured if line["model"] == model and line["score_norm"]
                         and line["codec"] == "PCAW{d},L2norm,Flat"), "no whitened row")
        lines.append(f"| `{row['experiment']}` | {row['system']} | {row['dim']} | {theirs} | {ours} |")
    return "\n".join(lines) + "\n"


def filled(text: str) -> str:
    """Return a document with its result blocks renewed."""
    makers = {"results": table, "differences": compared, "published": lambda _: published()}
    return BLOCK.sub(lambda m: m[1] + makers[m[2]](m[3].split()) + m[4], text)


def documents() -> list[Path]:
    """Return the documents that may hold result blocks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


if __name__ == "__main__":
    for path in documents():
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
