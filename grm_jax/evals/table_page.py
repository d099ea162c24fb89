"""The tables beside the paper's rows as one self-contained HTML page, with figure 4 drawn."""

from __future__ import annotations

from grm_jax.evals import plots
from grm_jax.evals.page import template
from grm_jax.evals.table import cell_text

COLOURS = ("#2f6fb0", "#b5651d", "#3c8d5a", "#8a4fb0", "#a83250", "#5a6b78", "#7a8f2a")


def page(found: dict) -> str:
    """The page of what `table.build` returns."""
    figures = [figure(found["figure4"], axis) for axis in ("k", "seconds", "flops")]
    return template("table.html").render(
        found=found, figures=[f for f in figures if f], cell=cell_text
    )


def figure(data: dict, axis: str) -> str:
    """Lines over k, seconds or FLOPs; on the k axis the paper's greedy sizes are horizontal marks. Empty without points."""
    lines = [
        (line, [p for p in line["points"] if p.get(axis) and p["value"] is not None])
        for line in data["lines"]
    ]
    if not any(points for _, points in lines) or (
        axis != "k" and all(line["paper"] for line, points in lines if points)
    ):
        return ""
    drawing, axes = plots.new_axes(3.2)
    for colour, (line, points) in zip(
        COLOURS * 5, [(line, points) for line, points in lines if points]
    ):
        style = (
            {"linestyle": "--", "marker": "s", "alpha": 0.75}
            if line["paper"]
            else {"linestyle": "-", "marker": "o"}
        )
        axes.plot(
            [p[axis] for p in points],
            [100 * p["value"] for p in points],
            color=colour,
            markersize=4,
            label=line["name"],
            **style,
        )
    if axis == "k":
        for line in data["lines"]:
            for p in line["points"]:
                if "billions" in p:
                    axes.axhline(100 * p["value"], color=plots.FAINT, linewidth=0.6)
                    axes.annotate(
                        f"{p['billions']}B {line['name'].split(',')[0]}",
                        (1, 100 * p["value"]),
                        fontsize=6.5,
                        color=plots.INK,
                    )
    axes.set_xscale("log", base=2 if axis == "k" else 10)
    if axis == "k":
        ticks = sorted({p["k"] for line in data["lines"] for p in line["points"] if "k" in p})
        axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.set_xlabel(
        {
            "k": "critiques that vote (k)",
            "seconds": "measured seconds",
            "flops": "FLOPs of generated tokens",
        }[axis],
        color=plots.INK,
        fontsize=9,
    )
    axes.set_ylabel(f"{data['benchmark'] or 'rewardbench'}, %", color=plots.INK, fontsize=9)
    axes.legend(fontsize=7, frameon=False, labelcolor=plots.INK)
    return plots.to_svg(drawing, f"Scaling over {axis}")
