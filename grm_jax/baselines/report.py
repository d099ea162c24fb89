"""All judges of an experiment in one table: Markdown, JSON and a page.

A row is the mean over seeds with an interval over comparisons, and the paired difference to the
SPCT judge.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grm_jax import strict_json
from grm_jax.baselines.results import Measured
from grm_jax.evals import figures, tables
from grm_jax.evals.benchmark import Benchmark
from grm_jax.evals.bootstrap import DRAWS, MetricFunction, Resampler
from grm_jax.evals.page import render
from grm_jax.evals.scaling import mean_metrics
from grm_jax.judging.summary import mean
from grm_jax.storage import write_atomic

REFERENCE = "spct rl, k = "  # the other judges are compared with this one, if it was measured
Runs = dict[int, Measured]  # by seed
Table = dict[str, Any]
_SHARES = ("ties", "parsed")


def summary(benchmark: Benchmark, judges: dict[str, Runs], draws: int = DRAWS) -> Table:
    """Returns a JSON-ready table of judges by name.

    Intervals are over comparisons, of the mean over seeds. A difference is over the seeds that the
    judge and the reference share. Raises ValueError if two runs judged different comparisons.
    """
    first = next(iter(next(iter(judges.values())).values()))
    ids = [j.comparison.id for j in first.judged]
    for name, runs in judges.items():
        for seed, run in runs.items():
            if [j.comparison.id for j in run.judged] != ids:
                raise ValueError(
                    f"{name} of seed {seed} judged other comparisons than the rest: keep data.seed "
                    "and --limit the same"
                )
    resampler = Resampler.of(first.judged, draws)
    reference = next((name for name in judges if name.startswith(REFERENCE)), None)
    blind = first.entry["content_blind"]
    return {
        "benchmark": benchmark.title,
        "headline": first.entry["headline"],
        "comparisons": len(ids),
        "chance": benchmark.chance,
        "reference": reference,
        "seeds": sorted({seed for runs in judges.values() for seed in runs}),
        "rows": [
            _row(benchmark, resampler, name, runs, judges[reference] if reference else {})
            for name, runs in judges.items()
        ],
        "content_blind": {f"{name} response": value for name, value in blind.items()},
    }


def _row(
    benchmark: Benchmark, resampler: Resampler, name: str, runs: Runs, reference: Runs
) -> dict[str, Any]:
    shared = [seed for seed in runs if seed in reference and runs is not reference]
    difference = None
    if shared:
        theirs, ours = (
            _mean_over(benchmark, [side[seed] for seed in shared]) for side in (reference, runs)
        )
        difference = next(iter(resampler.difference(theirs, ours).values()))
    parsing = [run.entry["parsing"] for run in runs.values()]
    return {
        "name": name,
        **resampler.headline(_mean_over(benchmark, list(runs.values()))).as_json(),
        "seeds": {seed: tables.headline(run.entry)["value"] for seed, run in runs.items()},
        "difference": difference,
        **{share: mean(p[share] for p in parsing if p[share] is not None) for share in _SHARES},
        "tokens": mean(_tokens(run.entry) for run in runs.values()),
    }


def _tokens(entry: dict[str, Any]) -> float:
    """Generated tokens per comparison; 0 for scalars."""
    parsing = entry["parsing"]
    return parsing["critiques"] * (parsing["tokens_per_critique"] or 0.0) / entry["comparisons"]


def _mean_over(benchmark: Benchmark, runs: Sequence[Measured]) -> MetricFunction:
    return mean_metrics(benchmark, [run.judged for run in runs], runs[0].entry["rule"])


# ---------------------------------------------------------------- output


def headings(table: Table) -> list[str]:
    """The titles of the columns."""
    against = f"against {table['reference'] or 'the SPCT judge'}"
    return ["judge", "accuracy", "95% interval", "seeds", against, "ties", "parsed", "tokens"]


def rows(table: Table) -> list[list[str]]:
    """The judges, best first, then the content-blind baselines."""
    judges = sorted(table["rows"], key=lambda row: -row["value"])
    blind = [{"name": name, **value} for name, value in table["content_blind"].items()]
    return [
        [
            row["name"],
            tables.percent(row["value"]),
            tables.span(row),
            ", ".join(tables.percent(value) for value in row.get("seeds", {}).values()),
            tables.signed(row["difference"]) if row.get("difference") else "",
            *("" if row.get(share) is None else tables.percent(row[share]) for share in _SHARES),
            f"{row['tokens']:.0f}" if row.get("tokens") else "",
        ]
        for row in (*judges, *blind)
    ]


def explanation(table: Table) -> str:
    """The line above the table."""
    return (
        f"{table['benchmark']}, {table['comparisons']} comparisons, seeds "
        f"{', '.join(map(str, table['seeds']))}. {table['headline'].capitalize()} in percent, mean "
        f"over seeds, with the interval over comparisons; chance is {table['chance']}. Differences "
        "in points, paired by comparison. Ties: percent of comparisons. Parsed: percent of "
        "critiques. Tokens: generated per comparison."
    )


def markdown(table: Table) -> str:
    """Returns the explanation and the table."""
    lines = [explanation(table), "", *tables.markdown_table(headings(table), rows(table))]
    return "\n".join(lines) + "\n"


def figure(table: Table) -> str:
    """Returns an SVG: mean, interval and seeds of each judge; lines for content-blind baselines."""
    judges = sorted(table["rows"], key=lambda row: -row["value"])
    drawing, axes = figures.new_axes(1.1 + 0.25 * len(judges))
    for y, row in enumerate(judges):
        colour = figures.COLOURS[0 if row["name"].startswith("spct") else 1]
        figures.draw_interval(axes, y, row, colour, linewidth=5, alpha=0.35)
        seeds = [100 * value for value in row["seeds"].values()]
        axes.plot(seeds, [y] * len(seeds), "o", color=colour, markersize=3)
        axes.plot(
            [100 * row["value"]], [y], "|", color=figures.INK, markersize=11, markeredgewidth=1.6
        )
    for style, (name, value) in zip((":", "--"), table["content_blind"].items()):
        axes.axvline(
            100 * value["value"], color=figures.INK, linewidth=0.9, linestyle=style, label=name
        )
    figures.draw_names(axes, [row["name"] for row in judges], fontsize=7.5)
    figures.set_labels(axes, f"{table['headline']}, %")
    if table["content_blind"]:
        drawing.legend(
            loc="outside lower center", ncols=2, fontsize=7, frameon=False, labelcolor=figures.INK
        )
    return figures.to_svg(drawing, "Accuracy of each judge")


def page(table: Table) -> str:
    """Returns one self-contained HTML file."""
    body = rows(table)
    return render(
        "baselines.html",
        title=f"{table['benchmark']}: judges side by side",
        explanation=explanation(table),
        figure=figure(table),
        headings=headings(table),
        rows=body,
        ours=[i for i, cells in enumerate(body) if cells[0].startswith("spct")],
    )


def write(table: Table, folder: Path) -> str:
    """Writes table.json, table.md and table.html; returns the Markdown."""
    text = markdown(table)
    write_atomic(folder / "table.json", strict_json.dumps(table, indent=1) + "\n")
    write_atomic(folder / "table.md", text)
    write_atomic(folder / "table.html", page(table))
    return text
