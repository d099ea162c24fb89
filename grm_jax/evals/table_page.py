"""The tables of `grm table` as one self-contained HTML page, with figure 4 as plots."""

from collections.abc import Mapping

from grm_jax.evals import figures
from grm_jax.evals.figures import FAINT, INK
from grm_jax.evals.page import render
from grm_jax.evals.run_tables import headings_and_rows, title_and_explanation

X_LABELS = {
    "k": "critiques that vote (k)",
    "seconds": "measured seconds",
    "flops": "FLOPs of generated tokens",
}


def page(built: Mapping) -> str:
    """The page of what `table.build` returns; our rows are shaded."""
    title, explanation = title_and_explanation(built)
    drawn = [figure(built["figure4"], x) for x in X_LABELS]
    return render(
        "table.html",
        title=title,
        explanation=explanation,
        tables=[_table(table) for table in built["tables"]],
        figures=[svg for svg in drawn if svg],
        benchmark=built["figure4"]["benchmark"] or "RewardBench",
        notes=built["notes"],
    )


def _table(table: Mapping) -> dict:
    headings, rows = headings_and_rows(table)
    ours = [i for i, row in enumerate(table["rows"]) if not row["paper"]]
    return {"title": table["title"], "headings": headings, "rows": rows, "ours": ours}


def figure(data: Mapping, x: str) -> str:
    """Figure 4 over k, seconds or FLOPs as SVG; empty without points of ours or over k.

    Over k, the paper's greedy results by model size are horizontal lines.
    """
    lines: list = []
    for line in data["lines"]:
        points = [(p[x], p) for p in line["points"] if p.get(x) and p["value"] is not None]
        if points:
            style = {"linestyle": "--", "marker": "s", "alpha": 0.75} if line["paper"] else {}
            drawn = figures.numbered_line(len(lines), line["name"], points, **style)
            lines.append((line["paper"], drawn))
    if not lines or (x != "k" and all(is_paper for is_paper, _ in lines)):
        return ""
    drawing, axes = figures.new_axes(3.2)
    for line in data["lines"] if x == "k" else ():
        for point in line["points"]:
            if "billions" in point:
                level, name = 100 * point["value"], line["name"].split(",")[0]
                axes.axhline(level, color=FAINT, linewidth=0.6)
                text = figures.plain(f"{point['billions']}B {name}")
                axes.annotate(text, (1, level), fontsize=6.5, color=INK)
    figures.draw_lines(axes, [line for _, line in lines], x_base=2 if x == "k" else 10)
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    figures.set_labels(axes, X_LABELS[x], f"{data['benchmark'] or 'rewardbench'}, %")
    figures.draw_legend(axes, 7)
    return figures.to_svg(drawing, f"Scaling over {x}")
