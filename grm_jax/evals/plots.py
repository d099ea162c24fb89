"""The page's figures as SVG: accuracy over k, place of the winner, accuracy by length.

Text and axes take the page's colour, so that one figure serves light and dark.
"""

from __future__ import annotations

import io
import re

INK, FAINT = "#123457", "#876543"  # replaced by currentColor and a faint one
COLOURS = {"sum": "#2f6fb0", "majority": "#b5651d", "expected": "#3c8d5a", "meta": "#8a4fb0"}
LABELS = {"sum": "sum", "majority": "majority", "expected": "expected", "meta": "sum, meta-guided"}
WIDTH = 4.3  # inches: a phone shows this size unscaled


def new_axes(height: float = 2.7):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(colors=INK, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
    axes.grid(axis="y", color=FAINT, linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)
    return figure, axes


def to_svg(figure, title: str) -> str:
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}
    ):
        figure.savefig(
            text, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = svg.replace(INK, "currentColor").replace(FAINT, "var(--faint)")
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>',
        rf'<svg viewBox="\1" role="img" aria-label="{title}">',
        svg,
        count=1,
    )
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)


def curve(entry: dict) -> str:
    """The headline over k, a line per way of voting, with the greedy value and the floors. Empty without critiques."""
    if not entry["curves"]:
        return ""
    figure, axes = new_axes()
    for kind, points in entry["curves"].items():
        known = {int(k): p for k, p in points.items() if p["value"] is not None}
        if not known:
            continue
        ks, values = list(known), [100 * p["value"] for p in known.values()]
        bounds = [
            (
                p["low"] if p["low"] is not None else p["value"],
                p["high"] if p["high"] is not None else p["value"],
            )
            for p in known.values()
        ]
        axes.plot(
            ks,
            values,
            marker="o",
            markersize=4,
            linewidth=1.6,
            color=COLOURS[kind],
            label=LABELS[kind],
        )
        axes.fill_between(
            ks,
            [100 * b[0] for b in bounds],
            [100 * b[1] for b in bounds],
            color=COLOURS[kind],
            alpha=0.13,
            linewidth=0,
        )
    if entry.get("greedy", {}).get("value") is not None:
        axes.axhline(
            100 * entry["greedy"]["value"], color=INK, linewidth=1, linestyle="--", label="greedy"
        )
    if entry["content_blind"]["longest"]["value"] is not None:
        axes.axhline(
            100 * entry["content_blind"]["longest"]["value"],
            color=INK,
            linewidth=1,
            linestyle=":",
            label="longest",
        )
    axes.set_xscale("log", base=2)
    ticks = sorted({int(k) for points in entry["curves"].values() for k in points})
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.minorticks_off()
    axes.set_xlabel("critiques that vote (k)", color=INK, fontsize=9)
    axes.set_ylabel(f"{entry['headline']}, %", color=INK, fontsize=9)
    axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    return to_svg(figure, f"{entry['title']}: {entry['headline']} over k")


def place(entry: dict) -> str:
    """How often the winner was shown first, and how often orders disagree. Empty for judges without orders."""
    position = entry["position"]
    bars = [
        ("orders disagree", position["flips"], None),
        ("winner shown first", position["first_place"], position["first_chance"]),
    ]
    bars = [bar for bar in bars if bar[1] is not None and bar[1]["value"] is not None]
    if not bars:
        return ""
    figure, axes = new_axes(1.5)
    _bars(axes, [(name, share) for name, share, _ in bars], COLOURS["majority"])
    for row, (_, _, chance) in enumerate(bars):
        if chance is not None:
            axes.plot([100 * chance] * 2, [row - 0.38, row + 0.38], color=INK, linewidth=1.4)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of comparisons (line: without any bias)", color=INK, fontsize=9)
    return to_svg(figure, f"{entry['title']}: place of the winner")


def length(entry: dict) -> str:
    """Accuracy by how long the right response is beside the longest wrong one. Empty for single responses."""
    parts = {name: p for name, p in entry["length"]["by_ratio"].items() if p["value"] is not None}
    if not parts:
        return ""
    figure, axes = new_axes(2.1)
    _bars(axes, [(f"{name} (n = {p['n']})", p) for name, p in parts.items()], COLOURS["expected"])
    axes.plot([50, 50], [-0.5, len(parts) - 0.5], color=INK, linewidth=0.8, linestyle=":")
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy in %, by length of the right response", color=INK, fontsize=9)
    return to_svg(figure, f"{entry['title']}: accuracy by length")


def _bars(axes, rows, colour: str) -> None:
    """Horizontal bars with their intervals, the first on top."""
    axes.grid(axis="x", color=FAINT, linewidth=0.4, alpha=0.5)
    axes.grid(axis="y", visible=False)
    for y, (_, share) in enumerate(rows):
        axes.barh(y, 100 * share["value"], height=0.6, color=colour, alpha=0.75)
        if share["low"] is not None:
            axes.plot([100 * share["low"], 100 * share["high"]], [y, y], color=INK, linewidth=1.2)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
