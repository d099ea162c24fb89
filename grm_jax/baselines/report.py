"""All judges of an experiment in one table: means over seeds with intervals over comparisons, each against the SPCT judge, as Markdown, JSON and a page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from grm_jax.evals import figures, tables
from grm_jax.evals.benchmark import Benchmark, Metrics, nan_mean
from grm_jax.evals.bootstrap import DRAWS, Resampler
from grm_jax.evals.judged import JudgedComparison
from grm_jax.evals.page import render

REFERENCE = "spct rl, k = "  # the judge that the others are compared with, where it was measured
COLUMNS = ("judge", "accuracy", "95% interval", "seeds", "against", "ties", "read", "tokens")


@dataclasses.dataclass(frozen=True)
class Measured:
    """A judge of one seed: its entry in a results file, and the judgements that were measured."""

    entry: dict
    judged: Sequence[JudgedComparison]


def summary(
    benchmark: Benchmark, found: dict[str, dict[int, Measured]], draws: int = DRAWS
) -> dict:
    """A JSON-ready table of judges by name, each measured with some seeds.

    Intervals are over comparisons, of the mean over seeds. "difference" is to the reference, over the seeds that both have.
    Raises ValueError where two measurements are not of the same comparisons.
    """
    first = next(iter(next(iter(found.values())).values()))
    ids = [j.comparison.id for j in first.judged]
    for name, runs in found.items():
        for seed, run in runs.items():
            if [j.comparison.id for j in run.judged] != ids:
                raise ValueError(
                    f"{name} of seed {seed} judged other comparisons than the rest: keep data.seed and --limit the same"
                )
    resampler = Resampler.of(first.judged, draws)
    reference = next((name for name in found if name.startswith(REFERENCE)), None)
    rows = [_row(benchmark, resampler, found, name, reference) for name in found]
    floors = {f"{name} response": value for name, value in first.entry["content_blind"].items()}
    return {
        "benchmark": benchmark.title,
        "headline": first.entry["headline"],
        "comparisons": len(ids),
        "chance": benchmark.chance,
        "reference": reference,
        "seeds": sorted({seed for runs in found.values() for seed in runs}),
        "rows": rows,
        "content_blind": floors,
    }


def _row(benchmark, resampler, found, name: str, reference: str | None) -> dict:
    runs = found[name]
    reads = [run.entry["parsing"] for run in runs.values()]
    row = {"name": name, **resampler.estimate(_mean(benchmark, runs.values()))["mean"].as_json()}
    row["seeds"] = {seed: tables.headline(run.entry)["value"] for seed, run in runs.items()}
    both = [seed for seed in runs if reference and seed in found[reference]]
    row["difference"] = None
    if both and name != reference:
        ours, theirs = ([found[of][seed] for seed in both] for of in (name, reference))
        row["difference"] = resampler.difference(_mean(benchmark, theirs), _mean(benchmark, ours))[
            "mean"
        ]
    for share in ("ties", "parsed"):
        known = [read[share] for read in reads if read[share] is not None]
        row[share] = nan_mean(known) if known else None
    row["tokens"] = nan_mean([_tokens(run.entry) for run in runs.values()])
    return row


def _tokens(entry: dict) -> float:
    """Generated tokens per comparison; 0 for scalars."""
    return (
        entry["parsing"]["critiques"]
        * (entry["parsing"]["tokens_per_critique"] or 0.0)
        / entry["comparisons"]
    )


def _mean(benchmark: Benchmark, runs):
    """The headline's mean over runs as a function of the comparisons' weights."""
    graded = [benchmark.grade(run.judged, run.entry["rule"]) for run in runs]
    headline = next(iter(runs)).entry["headline"]

    def metrics(weights) -> Metrics:
        return {
            "mean": nan_mean([benchmark.aggregate(grades, weights)[headline] for grades in graded])
        }

    return metrics


def cells(row: dict) -> list[str]:
    """A row as texts, in the order of COLUMNS."""
    return [
        row["name"],
        tables.percent(row["value"]),
        tables.span(row),
        ", ".join(tables.percent(value) for value in row["seeds"].values())
        if "seeds" in row
        else "",
        tables.signed(row["difference"]) if row.get("difference") else "",
        tables.percent(row["ties"]) if row.get("ties") is not None else "",
        tables.percent(row["parsed"]) if row.get("parsed") is not None else "",
        f"{row['tokens']:.0f}" if row.get("tokens") else "",
    ]


def body(found: dict) -> list[list[str]]:
    """Judges, best first, then the rules that read nothing."""
    rows = sorted(found["rows"], key=lambda row: -row["value"])
    floors = [{"name": name, **value} for name, value in found["content_blind"].items()]
    return [cells(row) for row in (*rows, *floors)]


def heads(found: dict) -> list[str]:
    """The columns' titles."""
    return [
        f"against {found['reference'] or 'the SPCT judge'}" if c == "against" else c
        for c in COLUMNS
    ]


def markdown(found: dict) -> str:
    """The table, with a line that says what it is of."""
    lines = [
        f"{found['benchmark']}, {found['comparisons']} comparisons, seeds {', '.join(map(str, found['seeds']))}. {explained(found)}",
        "",
        *tables.markdown_table(heads(found), body(found)),
    ]
    return "\n".join(lines) + "\n"


def explained(found: dict) -> str:
    """What the columns hold."""
    return (
        f"{found['headline'].capitalize()} in percent, mean over seeds, with the interval over comparisons; chance is {found['chance']}. "
        "Differences in points, paired by comparison. Ties and read: shares in percent of comparisons and of critiques. "
        "Tokens: generated per comparison."
    )


def figure(found: dict) -> str:
    """A row per judge: mean and interval, a dot per seed; vertical lines for content-blind baselines."""
    rows = sorted(found["rows"], key=lambda row: -row["value"])
    drawing, axes = figures.new_axes(1.1 + 0.25 * len(rows))
    for y, row in enumerate(rows):
        colour = figures.COLOURS[0 if row["name"].startswith("spct") else 1]
        figures.draw_interval(axes, y, row, colour, linewidth=5, alpha=0.35)
        seeds = [100 * value for value in row["seeds"].values()]
        axes.plot(seeds, [y] * len(seeds), "o", color=colour, markersize=3)
        mean = {"color": figures.INK, "markersize": 11, "markeredgewidth": 1.6}
        axes.plot([100 * row["value"]], [y], "|", **mean)
    for style, (name, value) in zip((":", "--"), found["content_blind"].items()):
        level = {"color": figures.INK, "linewidth": 0.9, "linestyle": style, "label": name}
        axes.axvline(100 * value["value"], **level)
    figures.draw_names(axes, [row["name"] for row in rows], fontsize=7.5)
    figures.set_labels(axes, f"{found['headline']}, %")
    if found["content_blind"]:
        legend = {"ncols": 2, "fontsize": 7, "frameon": False, "labelcolor": figures.INK}
        drawing.legend(loc="outside lower center", **legend)
    return figures.to_svg(drawing, "Accuracy of each judge")


def page(found: dict) -> str:
    """One self-contained HTML file."""
    seeds = ", ".join(map(str, found["seeds"]))
    rows = body(found)
    return render(
        "baselines.html",
        title=f"{found['benchmark']}: judges side by side",
        explanation=f"{found['comparisons']} comparisons, seeds {seeds}. {explained(found)}",
        figure=figure(found),
        headings=heads(found),
        rows=rows,
        ours=[i for i, row in enumerate(rows) if row[0].startswith("spct")],
    )


def write(found: dict, folder: Path) -> str:
    """table.json, table.md and table.html in `folder`; returns the Markdown."""
    text = markdown(found)
    (folder / "table.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(text, encoding="utf-8")
    (folder / "table.html").write_text(page(found), encoding="utf-8")
    return text
