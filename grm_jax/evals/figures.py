"""Primitives for every figure of the project: axes, lines with confidence bands, SVG and PNG.

In an SVG, text and axes take the page's colour and lines its --c0, --c1, ..., so one figure serves
light and dark pages.
Values and bounds are shares, drawn in percent.
"""

import dataclasses
import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from grm_jax.storage import open_atomic

INK, FAINT = "#1d2329", "#c9ced3"  # an SVG has the page's text colour and --faint instead
COLOURS = ("#2f6fb0", "#b5651d", "#3c8d5a", "#8a4fb0", "#a83250", "#5a6b78", "#7a8f2a")
MARKERS = "oD^vP"  # of the lines of each further round of the colours
WIDTH = 4.3  # inches; fits a phone unscaled


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a plot: (x, {"value", "low", "high"}) points; a missing bound draws no band."""

    label: str
    points: Sequence[tuple[float, Mapping]]
    colour: str
    style: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def new_axes(height: float = 2.7, width: float = WIDTH) -> tuple[Any, Any]:
    """Returns a figure of the size in inches, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    style_axes(axes)
    return figure, axes


def style_axes(axes: Any) -> None:
    """Applies the project's style: faint horizontal grid, left and bottom spines only."""
    axes.tick_params(colors=INK, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
    axes.grid(axis="y", color=FAINT, linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)


def plain(text: str) -> str:
    """Returns a text as matplotlib draws it unchanged.

    It parses $...$ as mathematics, and its legends skip labels that begin with "_".
    """
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def numbered_line(
    number: int, label: str, points: Sequence[tuple[float, Mapping]], **style: Any
) -> Line:
    """Returns the line of a number from 0 in a plot: no two have the same colour and marker."""
    turn, place = divmod(number, len(COLOURS))
    return Line(label, points, COLOURS[place], {"marker": MARKERS[turn % len(MARKERS)]} | style)


def set_labels(axes: Any, x: str = "", y: str = "", title: str = "") -> None:
    """Sets the axis labels and the title in the project's style."""
    axes.set_xlabel(plain(x), color=INK, fontsize=9)
    axes.set_ylabel(plain(y), color=INK, fontsize=9)
    axes.set_title(plain(title), color=INK, fontsize=10)


def draw_lines(axes: Any, lines: Sequence[Line], x_base: int = 2) -> None:
    """Draws lines with bands over a logarithmic x axis; with base 2, ticks are at the points."""
    for line in lines:
        xs = [x for x, _ in line.points]
        style = {"marker": "o", "markersize": 4, "linewidth": 1.6} | dict(line.style)
        values = [100 * point["value"] for _, point in line.points]
        axes.plot(xs, values, color=line.colour, label=plain(line.label), **style)
        low, high = zip(*([100 * bound for bound in bounds(point)] for _, point in line.points))
        axes.fill_between(xs, low, high, color=line.colour, alpha=0.13, linewidth=0)
    axes.set_xscale("log", base=x_base)
    if x_base == 2:
        ticks = sorted({x for line in lines for x, _ in line.points})
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()


def bounds(estimate: Mapping) -> tuple[float, float]:
    """Returns the interval of an estimate, its value where a bound is missing."""
    low, high = (
        estimate["value"] if estimate.get(b) is None else estimate[b] for b in ("low", "high")
    )
    return low, high


def draw_level(
    axes: Any, value: float | None, style: str, label: str = "", colour: str = INK
) -> None:
    """Draws a horizontal line at a share; nothing for None."""
    if value is not None:
        name = plain(label) or None
        axes.axhline(100 * value, color=colour, linewidth=1, linestyle=style, label=name)


def draw_interval(axes: Any, y: float, estimate: Mapping, colour: str = INK, **style: Any) -> None:
    """Draws the interval of an estimate as a horizontal line at height y; nothing without one."""
    if estimate["low"] is not None:
        axes.plot([100 * estimate["low"], 100 * estimate["high"]], [y, y], color=colour, **style)


def draw_names(axes: Any, names: Sequence[str], **style: Any) -> None:
    """Labels the rows of a horizontal plot, the first on top, with a vertical grid."""
    axes.grid(axis="x", color=FAINT, linewidth=0.4, alpha=0.5)
    axes.grid(axis="y", visible=False)
    axes.set_yticks(range(len(names)), list(map(plain, names)), **style)
    axes.invert_yaxis()


def draw_bars(axes: Any, bars: Sequence[tuple[str, Mapping]], colour: str) -> None:
    """Draws named estimates as horizontal bars with intervals, on an axis from 0 to 100%."""
    for y, (_, estimate) in enumerate(bars):
        axes.barh(y, 100 * estimate["value"], height=0.6, color=colour, alpha=0.75)
        draw_interval(axes, y, estimate, linewidth=1.2)
    draw_names(axes, [name for name, _ in bars])
    axes.set_xlim(0, 100)


def draw_legend(axes: Any, fontsize: float = 8) -> None:
    """Draws a legend without a frame."""
    axes.legend(fontsize=fontsize, frameon=False, labelcolor=INK)


def to_svg(figure: Any, title: str) -> str:
    """Renders a figure as an SVG element that takes the page's colours."""
    import matplotlib

    text = io.StringIO()
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "font.family": "sans-serif",
    }
    with matplotlib.rc_context(style):
        figure.savefig(
            text, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = svg.replace(INK, "currentColor").replace(FAINT, "var(--faint)")
    for i, colour in enumerate(COLOURS):
        svg = svg.replace(colour, f"var(--c{i}, {colour})")
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>',
        lambda match: f'<svg viewBox="{match[1]}" role="img" aria-label="{html.escape(title)}">',
        svg,
        count=1,
    )
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)


def standalone(svg: str) -> str:
    """Returns a figure for a page as the text of an SVG file, with its own colours."""
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = re.sub(r"var\(--c\d+, ([^)]+)\)", r"\1", svg)
    svg = svg.replace("var(--faint)", FAINT).replace("currentColor", INK)
    return svg.replace("<svg ", f'<svg {names} style="background: white" ', 1) + "\n"


def save_png(figure: Any, path: Any) -> None:
    """Writes a figure as PNG to a local path or a bucket."""
    with open_atomic(path) as file:
        figure.savefig(file, format="png", dpi=110)
