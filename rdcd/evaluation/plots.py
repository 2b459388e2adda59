"""The figures of a run: precision–recall and training curves, for the run folder and for the report.

Figures are built object by object: no pyplot, hence no global state and no display.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import FuncFormatter, NullFormatter

from rdcd.evaluation.cases import ModelResult
from rdcd.evaluation.metrics import precision_recall
from rdcd.evaluation.precisions import Curve
from rdcd.files import atomic_path

Series = tuple[Sequence[float], Sequence[float]]
Curves = Mapping[str, Mapping[str, Series]]

MAX_POINTS = 400  # of one line: more cannot be seen, and each is paid for in every report
LOG_SPAN = 30.0  # a highest value of more than so many times the lowest line's median calls for a log axis
LEGEND = {"fontsize": 9, "frameon": False, "handlelength": 2.2}
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))


@dataclass(frozen=True)
class Palette:
    """Colours of a figure: `ink` for text and axes, `grid`, and one per line (then dashes change)."""

    ink: str
    grid: str
    lines: tuple[str, ...]


LIGHT = Palette("#1f2933", "#d9dee4", ("#1f5fa8", "#c2570c", "#16794c", "#7a3fb0", "#a8326a", "#5b6673"))
# Stand-ins that `figure_svg` turns into the page's CSS colours, so that figures follow its dark mode.
PAGE = Palette("#010203", "#010204", tuple(f"#01030{i}" for i in range(len(LIGHT.lines))))


def plot_precision_recall(path: str | Path, results: Sequence[ModelResult],
                          pairs: Sequence[tuple[str, str]]) -> None:
    """Write a PNG of every model's precision over recall, by its headline row."""
    _write_png(path, precision_recall_figure(results, pairs, palette=LIGHT))


def plot_curves(path: str | Path, curves: Curves) -> None:
    """Write a PNG of training curves.

    Args:
        path: the PNG file.
        curves: panel title → series name → (steps, values).
    """
    _write_png(path, curves_figure(curves, palette=LIGHT))


def precision_recall_figure(results: Sequence[ModelResult], pairs: Sequence[tuple[str, str]], *,
                            palette: Palette) -> Figure:
    """Draw precision over recall with each model's point of 90 % precision."""
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = _style(figure.subplots(), palette)
    axes.axhline(0.9, color=palette.ink, linewidth=0.7, linestyle=(0, (2, 3)), alpha=0.7)
    for i, result in enumerate(results):
        row, line = result.headline, _line(palette, i)
        recall, precision = pr_points(result, pairs)
        label = f"{result.name}  ({row.main[0]} {100 * row.main[1]:.1f})"
        axes.plot(recall, precision, **line, linewidth=1.6, label=f" {_drawable(label)}")
        precise = np.flatnonzero(precision >= 0.9)
        if len(precise):
            axes.plot(recall[precise[-1]], precision[precise[-1]], "o", color=line["color"], markersize=4.5)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        _dress(figure.legend(handles, labels, loc="outside upper left", **LEGEND), palette)
    return figure


def plot_thresholds(path: str | Path, curves: Mapping[str, Curve]) -> None:
    """Write a PNG of precision, with its 95 % lower bound, and recall over the threshold, a panel for each of curves.

    Args:
        path: the PNG file.
        curves: title → curve.
    """
    figure = Figure(figsize=(4.2 * max(len(curves), 1), 3.4), layout="constrained")
    panels = figure.subplots(1, max(len(curves), 1), squeeze=False, sharey=True).ravel()
    for axes, (title, curve) in zip(panels, curves.items()):
        _style(axes, LIGHT)
        last = len(curve.thresholds) - 1  # the highest scores, of which there are few, are all shown
        shown = np.union1d(np.geomspace(1, last + 1, MAX_POINTS), np.linspace(1, last + 1, MAX_POINTS)).astype(int) - 1
        x = curve.thresholds[shown]
        axes.fill_between(x, curve.precision_low[shown], curve.precision[shown], color=LIGHT.lines[0], alpha=0.2,
                          linewidth=0)
        axes.plot(x, curve.precision[shown], **_line(LIGHT, 0), linewidth=1.6,
                  label=" precision, shaded to its 95 % lower bound")
        axes.plot(x, curve.recall[shown], **_line(LIGHT, 1), linewidth=1.6, label=" recall")
        axes.set(ylim=(0, 1.02), xlabel="threshold")
        axes.set_title(_drawable(title), fontsize=10, color=LIGHT.ink, loc="left", parse_math=False)
    if curves:
        handles, labels = panels[0].get_legend_handles_labels()
        _dress(figure.legend(handles, labels, loc="outside upper left", ncols=2, **LEGEND), LIGHT)
    _write_png(path, figure)


def pr_points(result: ModelResult, pairs: Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """Return (recall, precision) of the headline row at correct pairs, thinned to about `MAX_POINTS`.

    The last point of at least 90 % precision is always kept.
    """
    matches = result.headline.matches
    if not len(matches) or not pairs:
        return np.empty(0), np.empty(0)
    precision, recall, _ = precision_recall(matches, pairs)
    hits = np.flatnonzero(np.diff(recall, prepend=0.0) > 0)
    if len(hits) > MAX_POINTS:
        kept = np.linspace(0, len(hits) - 1, MAX_POINTS).round().astype(int)
        hits = hits[np.union1d(kept, np.flatnonzero(precision[hits] >= 0.9)[-1:])]
    return recall[hits], precision[hits]


def curves_figure(curves: Curves, *, palette: Palette) -> Figure:
    """Draw one panel per entry of `curves`, three in a row."""
    columns = max(1, min(3, len(curves)))
    rows = max(1, -(-len(curves) // columns))
    figure = Figure(figsize=(3.6 * columns, 2.7 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, series) in zip(panels, curves.items(), strict=False):
        _draw_panel(_style(axes, palette), title, series, palette)
    for axes in panels[len(curves):]:
        axes.set_axis_off()
    return figure


def thin_out(steps: Sequence[float], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return a series by step as at most `MAX_POINTS` means of neighbours; NaN where none is finite."""
    x, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    order = np.argsort(x, kind="stable")
    x, y = x[order], np.where(np.isfinite(y[order]), y[order], np.nan)
    if len(x) <= MAX_POINTS:
        return x, y
    starts = np.unique(np.linspace(0, len(x), MAX_POINTS, endpoint=False).astype(int))
    finite = np.add.reduceat(np.isfinite(y).astype(float), starts)
    total = np.add.reduceat(np.nan_to_num(y), starts)
    size = np.diff(starts, append=len(x))
    return np.add.reduceat(x, starts) / size, total / np.where(finite > 0, finite, np.nan)


def wants_log(values: Sequence[np.ndarray]) -> bool:
    """Tell whether a panel's lines, all positive, would lie flat on a linear axis."""
    finite = [v[np.isfinite(v)] for v in values if np.isfinite(v).any()]
    if not finite or min(v.min() for v in finite) <= 0:
        return False
    return bool(max(v.max() for v in finite) > LOG_SPAN * min(np.median(v) for v in finite))


def figure_svg(figure: Figure, *, name: str, alt: str) -> str:
    """Render a figure drawn with `PAGE` as an `<svg>` element that takes its colours from the page.

    Args:
        figure: the figure.
        name: put before every id inside, so that several figures can share a page.
        alt: what the figure shows, in words, already escaped for HTML.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True,
                       metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    head, body = re.search(r"<svg([^>]*)>(.*)</svg>", buffer.getvalue(), re.DOTALL).groups()
    view = re.search(r'viewBox="[^"]*"', head).group()
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    colours = {PAGE.ink: "--ink", PAGE.grid: "--line", **{c: f"--line-{i}" for i, c in enumerate(PAGE.lines)}}
    for stand_in, variable in colours.items():
        body = body.replace(stand_in, f"var({variable})")
    return f'<svg {view} role="img" aria-label="{alt}">{body}</svg>'


def _draw_panel(axes: Axes, title: str, series: Mapping[str, Series], palette: Palette) -> None:
    lines = {name: thin_out(*values) for name, values in series.items()}
    for i, (name, (x, y)) in enumerate(lines.items()):
        axes.plot(x, y, **_line(palette, i), linewidth=1.4, marker="o" if len(x) == 1 else None,
                  label=f" {_drawable(name)}")
    if wants_log([y for _, y in lines.values()]):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(_drawable(title), fontsize=10, color=palette.ink, loc="left", parse_math=False)
    axes.set_xlabel("step")
    if len(lines) > 1:
        _dress(axes.legend(**LEGEND), palette)


def _style(axes: Axes, palette: Palette) -> Axes:
    axes.grid(color=palette.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=palette.ink, labelsize=9, length=0, pad=6)
    axes.xaxis.label.set(color=palette.ink, fontsize=9)
    axes.yaxis.label.set(color=palette.ink, fontsize=9)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=palette.grid)
    return axes


def _line(palette: Palette, i: int) -> dict[str, object]:
    return {"color": palette.lines[i % len(palette.lines)], "linestyle": DASHES[i % len(DASHES)]}


def _dress(legend: Legend, palette: Palette) -> None:
    for text in legend.get_texts():
        text.set(color=palette.ink, parse_math=False)  # a "$" in a name is no formula


def _drawable(text: str) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _write_png(path: str | Path, figure: Figure) -> None:
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=150, facecolor="white")
