"""Fill the result tables of the documents from result files: no number in them is typed by hand.

A block `<!-- results FILE[:MODEL,…] … -->` … `<!-- end -->` in README.md or docs/*.md holds the table of the
named `docs/results/FILE.json`, which are `metrics.json` files as the tool wrote them; `<!-- differences … -->` that of
the paired differences in them, of the first model and the named others. A block `<!-- published -->` …
`<!-- end -->` holds the rows of docs/results/published.json, reported by others, with ours beside them where there is a
`docs/results/EXPERIMENT.json`. Of files that `rdcd bench step` wrote, `<!-- steps FILE … -->` holds the speed,
`<!-- parts FILE … -->` where a step's time goes, `<!-- costs FILE … -->` operations and memory, and
`<!-- hours FILE … -->` the length of the full recipe. `<!-- rows FILE … : COLUMN[|FORMAT] … -->` shows the named
columns of the `rows` of any result file, numbers by a format of Python's. Run after adding one:

    python scripts/results.py
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
BLOCK = re.compile(r"(<!-- (results|differences|published|steps|parts|costs|hours|rows) ?([^>]*?) -->\n).*?"
                   r"(<!-- end -->)", re.S)


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


def benches(names: list[str]) -> list[tuple[str, dict, dict[str, dict]]]:
    """Return (file, content, its rows by what was timed) of each result of `rdcd bench step`."""
    contents = [(name, json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))) for name in names]
    return [(name, content, {row["what"]: row for row in content["rows"]}) for name, content in contents]


def step_of(content: dict) -> str:
    """Return what a step consists of, in a few words."""
    return (f"{content['student']}, {content['teacher'] or 'no teacher'}, {content['size']} px, "
            f"{content['batch_size']} pictures")


def precision_of(content: dict) -> str:
    """Return precision, compiled or not, and input if it is not from memory."""
    return (content["precision"] + ", compiled" * content["compile"]
            + ", real loader" * (content["input"] == "loader"))


def steps(names: list[str]) -> str:
    """Return a Markdown table of images/s, of the framework's costs, of its share of the bound, and of memory."""
    lines = ["| result file | step | precision | device | images/s, networks alone | bare loop | `rdcd train` | "
             "framework/bare | share of the bound | peak GPU memory |", "|---|---|---|---|--:|--:|--:|--:|--:|--:|"]
    for name, content, timed in benches(names):
        rates = " | ".join(f"{timed[what]['images_per_s']:,.0f}"
                           for what in ("networks alone", "bare loop", "rdcd train"))
        ratio, bound, peak = content["ratio"], content["bound_share"], timed["rdcd train"]["peak_bytes"]
        device = content["provenance"]["device"]
        framework = f"{ratio['median']:.3f} ({ratio['low']:.3f}–{ratio['high']:.3f})"
        if content["input"] == "loader":
            framework = "both wait for one loader"
        lines.append(f"| {name} | {step_of(content)} | {precision_of(content)} | {device} | {rates} | "
                     f"{framework} | {bound['median']:.0%} | "
                     f"{'' if peak is None else f'{peak / 1e9:.1f} GB'} |")
    return "\n".join(lines) + "\n"


def parts(names: list[str]) -> str:
    """Return a Markdown table of the milliseconds of a step by part, a column a file."""
    found = benches(names)
    parts = sorted({part for _, content, _ in found for part in content["parts"]} - {"the rest"},
                   key=lambda part: -found[0][1]["parts"].get(part, 0))
    lines = ["| ms a step | " + " | ".join(f"{name} ({precision_of(content)})" for name, content, _ in found) + " |",
             "|---|" + "--:|" * len(found)]
    for part in [*parts, "the rest"]:
        values = [content["parts"].get(part, 0) * 1000 for _, content, _ in found]
        lines.append(f"| {part} | " + " | ".join(f"{value:.1f}" for value in values) + " |")
    return "\n".join(lines) + "\n"


def costs(names: list[str]) -> str:
    """Return a Markdown table of what is counted of a step: operations and kept memory."""
    lines = ["| result file | student, teacher | precision | size | G operations a picture: student | key encoder | "
             "teacher | networks | queues | MB a picture: student keeps | losses keep |",
             "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"]
    for name, content, _ in benches(names):
        cost = content["costs"]
        operations = " | ".join(f"{cost[f'{part}_operations'] / 1e9:.2f}" for part in ("student", "key", "teacher"))
        lines.append(f"| {name} | {content['student']}, {content['teacher'] or 'none'} | {content['precision']} | "
                     f"{content['size']} px | {operations} | {cost['network_bytes'] / 1e6:.0f} MB | "
                     f"{cost['queue_bytes'] / 1e6:.0f} MB | {cost['student_bytes'] / 1e6:.1f} | "
                     f"{cost['loss_bytes'] / 1e6:.2f} |")
    return "\n".join(lines) + "\n"


def hours(names: list[str]) -> str:
    """Return a Markdown table of the full recipe's length at the measured images/s, scaled ideally."""
    lines = ["| at the images/s of | precision | device | 1 | 2 | 8 | device-hours | at 2 USD an hour, an assumption |",
             "|---|---|---|--:|--:|--:|--:|--:|"]
    for name, content, _ in benches(names):
        full = content["full_recipe_hours"]
        lines.append(f"| {name}: {step_of(content)} | {precision_of(content)} | {content['provenance']['device']} | "
                     + " | ".join(f"{full[count]:,.0f} h" for count in ("1", "2", "8"))
                     + f" | {full['1']:,.0f} | {2 * full['1']:,.0f} USD |")
    return "\n".join(lines) + "\n"


def named_columns(words: list[str]) -> str:
    """Return a Markdown table of rows as they are: files, a colon, and the columns wanted of them."""
    colon = words.index(":")
    names, wanted = words[:colon], [word.partition("|")[::2] for word in words[colon + 1:]]
    found = [row for name in names for row in rows(name)]
    numeric = [any(isinstance(row.get(column), int | float) for row in found) for column, _ in wanted]
    lines = ["| " + " | ".join(["result file", *(column.replace("_", " ") for column, _ in wanted)]) + " |",
             "|---|" + "".join("--:|" if number else "---|" for number in numeric)]
    for row in found:
        values = ["" if row.get(column) is None else format(row[column], form) for column, form in wanted]
        lines.append("| " + " | ".join([row["file"], *values]) + " |")
    return "\n".join(lines) + "\n"


def filled(text: str) -> str:
    """Return a document with its result blocks renewed."""
    makers = {"results": table, "differences": compared, "published": lambda _: published(), "steps": steps,
              "parts": parts, "costs": costs, "hours": hours, "rows": named_columns}
    return BLOCK.sub(lambda m: m[1] + makers[m[2]](m[3].split()) + m[4], text)


def documents() -> list[Path]:
    """Return the documents that may hold result blocks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


if __name__ == "__main__":
    for path in documents():
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
