"""The report's page: its skeleton, its style, and how values become HTML. Nothing is fetched."""

import html
from collections.abc import Mapping
from string import Template

from rdcd.evaluation.score import ScoreRow

SKELETON = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
$style
</style>
</head>
<body>
<header>
<p class="eyebrow">Image copy detection · evaluation report</p>
<h1>$title</h1>
<p class="lead">$lead</p>
<nav aria-label="Contents">$contents</nav>
</header>
<main>
$sections
</main>
<footer>$footer</footer>
</body>
</html>
""")

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfbfa; --card: #ffffff; --well: #f0f1f3; --ink: #1c232b; --soft: #5a6673; --line: #dfe3e8;
  --accent: #1f5fa8; --tint: #eaf1f9; --good: #16794c; --bad: #b3322b;
  --line-0: #1f5fa8; --line-1: #c2570c; --line-2: #16794c; --line-3: #7a3fb0; --line-4: #a8326a;
  --line-5: #5b6673;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181d; --card: #1b2027; --well: #252c35; --ink: #e4e8ec; --soft: #9aa6b2; --line: #313a45;
    --accent: #7db4f0; --tint: #1d2d40; --good: #62c596; --bad: #f0857d;
    --line-0: #7db4f0; --line-1: #f2a065; --line-2: #62c596; --line-3: #c09bea; --line-4: #ee8fb8;
    --line-5: #a5b0bb; }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 72rem; background: var(--paper);
  color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
a { color: var(--accent); }
h1 { margin: 0 0 .5rem; font-size: clamp(1.6rem, 4vw, 2.3rem); line-height: 1.15; letter-spacing: -.015em;
  overflow-wrap: anywhere; }
h2 { margin: 0 0 .25rem; font-size: 1.3rem; letter-spacing: -.01em; }
section > .figure, section > .figures, section > .models, section > pre { margin-top: .8rem; }
h3 { margin: 0 0 .5rem; font-size: 1rem; overflow-wrap: anywhere; }
p { margin: 0 0 .75rem; }
section { margin-top: 3rem; }
.eyebrow { color: var(--soft); font-size: .8rem; letter-spacing: .04em; margin-bottom: .4rem; }
.lead { max-width: 50rem; overflow-wrap: anywhere; }
.note { color: var(--soft); max-width: 50rem; }
.none { padding: 1rem 1.1rem; border: 1px dashed var(--line); border-radius: 8px; color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; padding-top: .6rem;
  border-top: 1px solid var(--line); }
nav a { text-decoration: none; font-size: .9rem; }
nav a:hover, nav a:focus { text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem;
  margin: 1rem 0 1.5rem; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .9rem 1rem; min-width: 0; }
.tile b { display: block; font-size: 1.9rem; line-height: 1.2; font-weight: 650; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; }
.tile span { font-size: .85rem; }
td.beyond { font-weight: 600; }
td small { display: block; font-size: .8rem; }
td small, .tile b small { color: var(--soft); font-weight: 400; }
.tile b small { display: inline; font-size: .85rem; letter-spacing: 0; }
.tile small small { display: inline; }
.tile small { display: block; color: var(--soft); font-size: .8rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .8rem; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: baseline; }
thead th { color: var(--soft); font-weight: 500; font-size: .85rem; white-space: nowrap; }
tbody th { font-weight: 600; overflow-wrap: break-word; max-width: 16rem; }
td code { white-space: nowrap; }
td.share { width: 36%; }
th.n, td.n { text-align: right; white-space: nowrap; }
tr.headline td { background: var(--tint); font-weight: 600; }
tr.total th, tr.total td { border-bottom: 2px solid var(--line); }
.bar { display: grid; grid-template-columns: minmax(4rem, 1fr) 3.4rem; gap: .6rem; align-items: center;
  min-width: 9rem; }
.bar i { display: block; height: .55rem; border-radius: 2px; background: var(--well); overflow: hidden; }
.bar i i { background: var(--line-0); }
.bar.second i i { background: var(--line-1); }
.bar span { text-align: right; }
code, pre, .name { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
  font-size: .85em; }
pre { margin: 0; padding: .8rem 1rem; background: var(--well); border-radius: 6px; overflow-x: auto;
  white-space: pre-wrap; overflow-wrap: anywhere; }
code, .name { overflow-wrap: anywhere; }
.name { unicode-bidi: isolate; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--accent); font-size: .92rem; padding: .2rem 0; }
dl { display: grid; grid-template-columns: minmax(6rem, auto) minmax(0, 1fr); gap: .25rem 1rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.models, .figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr));
  gap: .8rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
.figure { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem;
  margin: 0; }
.figure.wide { max-width: 42rem; }
.figure figcaption { color: var(--soft); font-size: .85rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15.5rem), 1fr));
  gap: .8rem; margin: .8rem 0; }
.gallery.three { grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.case { margin: 0; padding: .6rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
.case .row { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); gap: .5rem; }
.case figcaption { margin-top: .45rem; font-size: .83rem; color: var(--soft); overflow-wrap: anywhere; }
.case figcaption b { color: var(--ink); font-variant-numeric: tabular-nums; }
.thumb { min-width: 0; font-size: .78rem; line-height: 1.35; }
.thumb img, .thumb .missing { display: flex; width: 100%; aspect-ratio: 1; background: var(--well);
  border-radius: 4px; }
.thumb img { object-fit: contain; }
.thumb .missing { padding: .4rem; align-items: center; justify-content: center; text-align: center;
  overflow: hidden; color: var(--soft); border: 1px dashed var(--line); overflow-wrap: anywhere; }
.thumb .missing span { max-height: 100%; }
.thumb .role { display: block; margin-top: .3rem; color: var(--soft); }
.thumb .role.good { color: var(--good); }
.thumb .role.bad { color: var(--bad); }
.thumb .name { display: block; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
footer { margin-top: 3rem; padding-top: .8rem; border-top: 1px solid var(--line); color: var(--soft);
  font-size: .85rem; }
@media (max-width: 34rem) { body { padding-top: 1.4rem; } th, td { padding: .4rem .5rem; } }
@media print { body { max-width: none; } .case, .tile, .figure, .card { break-inside: avoid; }
  nav { display: none; } }
"""


def text(value: object) -> str:
    """Escape for HTML text and quoted attributes; what cannot be shown or encoded becomes U+FFFD."""
    return html.escape("".join(c if c.isprintable() or c in "\n\t\xa0" else "\ufffd" for c in str(value)))


def name(value: str) -> str:
    """Show a picture's name on one line, the whole of it on hovering."""
    return f'<span class="name" title="{text(value)}">{text(value)}</span>'


def percent(share: float) -> str:
    """Show a share of one as per cent."""
    return f"{100 * share:.2f}"


def score(value: float | None) -> str:
    """Show a score or threshold."""
    return "–" if value is None else f"{value:.4f}"


def metric(row: ScoreRow) -> str:
    """Name the metric that is quoted for a row, with its index where scores are normalized."""
    return row.main[0].replace("_SN", "<sub>SN</sub>")


def row_name(row: ScoreRow) -> str:
    """Name a row by what sets it apart from the model's others."""
    norm = "no score normalization"
    if row.score_norm is not None:
        norm = f"score normalization <code>{text(row.score_norm)}</code>"
    return f"codec <code>{text(row.codec)}</code>, {norm}"


def empty(reason: str) -> str:
    """Say why there is nothing to show."""
    return f'<p class="none">{reason}</p>'


def record(values: Mapping[str, object]) -> str:
    """Show a mapping, nested ones too, as a list of keys and values."""
    if not values:
        return '<p class="note">Nothing recorded.</p>'
    return "<dl>" + "".join(f"<dt>{text(key).replace('_', ' ')}</dt><dd>{_value(value)}</dd>"
                            for key, value in values.items()) + "</dl>"


def _value(value: object) -> str:
    if value is None or value == {}:
        return "not recorded"
    return record(value) if isinstance(value, Mapping) else text(value)
