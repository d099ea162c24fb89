"""Tables of several runs of `grm eval`, in the shape of the paper's tables 2, 3, 4 and figure 4.

The values are under the paper's rule for ties if the benchmark has it, else under its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from grm_jax.evals import paper
from grm_jax.evals.scaling import META, all_kinds
from grm_jax.evals.tables import markdown_table, percent, print_table, with_span, wrapped

SINGLE = "single"  # one critique, or scores without critiques
KS = (1, 8, 32)  # the paper's table 3
TERMINAL_WIDTH = 66  # of the columns of values; those that do not fit are in a further table
Runs = Mapping[str, Mapping[str, dict]]  # run -> benchmark -> entry
Cells = list[dict | None]


# ---------------------------------------------------------------- cells


def curves(entry: Mapping) -> dict:
    """The curves under the paper's rule if the benchmark has it, else under its own."""
    return entry.get("by_paper", entry)["curves"]


def voted(entry: Mapping) -> dict:
    """The headline estimate of the whole run, under the same rule."""
    return entry["metrics"].get("paper", entry["metrics"][entry["rule"]])[entry["headline"]]


def greedy(entry: Mapping) -> dict | None:
    """The greedy estimate, under the same rule."""
    return entry.get("by_paper", entry).get("greedy")


def at_k(entry: Mapping, k: int, kind: str = "sum") -> dict | None:
    """One point of a curve, under the same rule."""
    points = curves(entry).get(kind, {})
    return points.get(str(k), points.get(k))


def cells(
    run: Mapping[str, dict],
    names: Sequence[str],
    estimate: Callable[[Mapping], dict | None] = voted,
) -> Cells | None:
    """One estimate per benchmark, and their mean, which is None unless all are known.

    None for a row without any estimate.
    """
    estimates = [estimate(run[name]) if name in run else None for name in names]
    if not any(estimates):
        return None
    known = [e["value"] for e in estimates if e and e["value"] is not None]
    mean = sum(known) / len(known) if len(known) == len(estimates) else None
    return [*estimates, {"value": mean, "low": None, "high": None}]


def _printed(row: paper.Row) -> dict:
    return {
        "name": row.name,
        "paper": True,
        "marks": row.marks,
        "cells": [{"value": value / 100, "low": None, "high": None} for value in row.values],
    }


def _ours(name: str, row: Cells | None) -> list[dict]:
    return [{"name": name, "paper": False, "marks": "", "cells": row}] if row else []


# ---------------------------------------------------------------- tables


def build(runs: Runs, with_paper: bool, flops: Mapping[str, float]) -> dict:
    """Builds the tables as data: columns, rows, notes, and the points of figure 4.

    flops: forward FLOPs per token by run.
    """
    titles = {name: entry["title"] for run in runs.values() for name, entry in run.items()}
    official = [name for name in paper.BENCHMARKS if name in titles]
    others = [name for name in titles if name not in paper.BENCHMARKS]
    tables = [table_2(runs), table_3(runs), table_4(runs)] if with_paper else []
    if others or not with_paper:
        names = others if with_paper else official + others
        tables.append(side_by_side(runs, {name: titles[name] for name in names}))
    figure = figure_4(runs, with_paper, flops)
    marked = [row for table in tables for row in table["rows"]]
    marked += [point for line in figure["lines"] for point in line["points"]]
    used = {mark for item in marked for mark in item.get("marks", "")}
    notes = paper.NOTES if with_paper else {}
    return {
        "tables": tables,
        "figure4": figure,
        "notes": {mark: text for mark, text in notes.items() if mark in used},
    }


def table_2(runs: Runs) -> dict:
    """Greedy and voted results of every run under the paper's rows."""
    rows = [_printed(row) for row in paper.TABLE_2]
    for name, run in runs.items():
        rows += _ours(f"{name}, greedy", cells(run, paper.BENCHMARKS, greedy))
        rows += _ours(name + _settings(run, paper.BENCHMARKS), cells(run, paper.BENCHMARKS))
    return {"title": "Table 2: overall", "columns": list(paper.COLUMNS), "rows": rows}


def table_3(runs: Runs) -> dict:
    """Voting at 1, 8, 32 and every other k of a run, with the gain over Voting@1 of that run."""
    measured = {
        int(k)
        for run in runs.values()
        for entry in run.values()
        for k in curves(entry).get("sum", {})
    }
    rows = []
    for k in sorted(set(KS) | measured):
        rows += [_printed(row) | {"name": f"@{k} {row.name}"} for row in paper.TABLE_3.get(k, ())]
        for name, run in runs.items():
            single = cells(run, paper.BENCHMARKS, lambda entry: at_k(entry, 1))
            for kind in all_kinds():
                row = cells(
                    run, paper.BENCHMARKS, lambda entry, k=k, kind=kind: at_k(entry, k, kind)
                )
                rows += _ours(f"@{k} {name}, {kind}", row)
                means = [cell[-1]["value"] for cell in (row, single) if cell]
                if k > 1 and len(means) == 2 and None not in means:
                    rows[-1]["gain"] = means[0] - means[1]
    return {
        "title": "Table 3: inference-time scaling",
        "columns": list(paper.COLUMNS),
        "rows": rows,
    }


def table_4(runs: Runs) -> dict:
    """Ablations: a run named as one of ours is under the paper's row of the same change."""
    rows = []
    for name, row in paper.TABLE_4.items():
        run = runs.get(name, {})
        ours = cells(run, paper.BENCHMARKS, greedy) or cells(run, paper.BENCHMARKS)
        rows += [_printed(row), *_ours(name, ours)]
    return {"title": "Table 4: ablations", "columns": list(paper.COLUMNS), "rows": rows}


def side_by_side(runs: Runs, titles: Mapping[str, str]) -> dict:
    """Every run on the benchmarks of `titles`: greedy, Voting@1, voted."""
    rows = []
    for name, run in runs.items():
        rows += _ours(f"{name}, greedy", cells(run, list(titles), greedy))
        rows += _ours(f"{name}, voting@1", cells(run, list(titles), lambda entry: at_k(entry, 1)))
        rows += _ours(name + _settings(run, list(titles)), cells(run, list(titles)))
    return {"title": "Side by side", "columns": [*titles.values(), "mean"], "rows": rows}


def _settings(run: Mapping[str, dict], names: Sequence[str]) -> str:
    """What the name of a run's row ends with: ", Voting@8"; several where benchmarks differ."""
    judges = [run[name]["judge"] for name in names if name in run]
    methods = list(dict.fromkeys(map(_method, judges)))
    return f", {' / '.join(methods)}" if methods not in ([], [SINGLE]) else ""


def _method(judge: Mapping) -> str:
    if judge.get("k") in (None, 1):
        return SINGLE
    rule = judge.get("vote") or "sum"  # the paper's
    method = "MetaRM" if judge.get("meta_rm") else "Voting"
    return f"{method}@{judge['k']}" + (f" by {rule}" if rule != "sum" else "")


# ---------------------------------------------------------------- figure 4


def figure_4(runs: Runs, with_paper: bool, flops: Mapping[str, float]) -> dict:
    """Lines over k on RewardBench, or else on the first benchmark that every run has."""
    common = [n for n in next(iter(runs.values())) if all(n in run for run in runs.values())]
    benchmark = "rewardbench" if "rewardbench" in common else common[0] if common else None
    lines = []
    if with_paper and benchmark in ("rewardbench", None):
        lines += [_printed_line(name, "k", points) for name, points in paper.FIGURE_4.items()]
        lines += [
            _printed_line(f"{name}, greedy by size", "billions", points)
            for name, points in paper.FIGURE_4_SIZES.items()
        ]
    for name, run in runs.items() if benchmark else ():
        lines += _scaling_lines(name, run[benchmark], flops.get(name))
    return {"benchmark": benchmark, "lines": lines}


def _printed_line(name: str, x: str, points: Sequence[tuple[int, float, str]]) -> dict:
    return {
        "name": name,
        "paper": True,
        "points": [{x: at, "value": value / 100, "marks": marks} for at, value, marks in points],
    }


def _scaling_lines(name: str, entry: Mapping, flops_per_token: float | None) -> list[dict]:
    """The run's lines. Its K critiques are one run, so a smaller k is charged its share."""
    cost, total = entry["cost"], entry["judge"].get("k")
    if flops_per_token is None and cost.get("parameters"):
        flops_per_token = 2.0 * cost["parameters"]
    lines = []
    for kind, label in {"sum": "voting", META: "meta-guided"}.items():
        points = [{"k": int(k), **point} for k, point in curves(entry).get(kind, {}).items()]
        for point in points if total else ():
            if cost.get("seconds"):
                point["seconds"] = cost["seconds"] * (point["k"] / total)
            if cost.get("tokens") and flops_per_token:
                point["flops"] = cost["tokens"] * flops_per_token * (point["k"] / total)
        if points:
            lines.append({"name": f"{name}, {label}", "paper": False, "points": points})
    return lines


# ---------------------------------------------------------------- terminal and Markdown


def terminal(built: Mapping) -> None:
    """Prints the tables without intervals, and the points of our runs of figure 4."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    title, explanation = title_and_explanation(built)
    console.print(f"{title}. {explanation}")
    for table in built["tables"]:
        for headings, rows in _narrow(table):
            console.print(f"\n{table['title']}")
            print_table(console, headings, rows)
    figure = built["figure4"]
    ours = [(line, point) for line in figure["lines"] for point in line["points"]]
    points = [
        [line["name"], str(point["k"]), percent(point["value"]), _decimals(point.get("seconds"))]
        for line, point in ours
        if not line["paper"]
    ]
    if points:
        console.print(f"\nScaling on {figure['benchmark']}")
        print_table(console, ("line", "k", "value", "seconds"), points)
    for mark, text in built["notes"].items():
        console.print(f"[{mark}] {text}")
    console.print("--out FILE.md or FILE.html has the intervals and all columns")


def _narrow(table: Mapping) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Yields headings and rows of values without intervals, as many columns as fit."""
    with_gains = any("gain" in row for row in table["rows"])
    headings = [*table["columns"], *(["gain on @1"] if with_gains else [])]
    names = [row["name"] + _marks(row) for row in table["rows"]]
    values = [
        [percent(cell and cell["value"]) for cell in row["cells"]]
        + ([f"{100 * row['gain']:+.1f}" if "gain" in row else ""] if with_gains else [])
        for row in table["rows"]
    ]
    start = 0
    while start < len(headings):
        widths = [max(map(len, wrapped(name).split("\n"))) + 2 for name in headings[start:]]
        fitting = sum(total <= TERMINAL_WIDTH for total in itertools.accumulate(widths))
        chosen = slice(start, start + max(1, fitting))
        yield ["", *headings[chosen]], [[n, *v[chosen]] for n, v in zip(names, values)]
        start = chosen.stop


def _decimals(value: float | None) -> str:
    return f"{value:,.1f}" if value else ""


def headings_and_rows(table: Mapping) -> tuple[list[str], list[list[str]]]:
    """A table's headings and the texts of its rows; the first column is the row's name."""
    with_gains = any("gain" in row for row in table["rows"])
    rows = [
        [row["name"] + _marks(row), *map(with_span, row["cells"])]
        + ([f"{100 * row['gain']:+.1f}" if "gain" in row else ""] if with_gains else [])
        for row in table["rows"]
    ]
    return ["", *table["columns"], *(["gain on @1"] if with_gains else [])], rows


def _marks(item: Mapping) -> str:
    return f" [{item['marks']}]" if item.get("marks") else ""


def title_and_explanation(built: Mapping) -> tuple[str, str]:
    """The page's title, and the sentence under it."""
    ties = "Values in percent. A tie of t counts 1/t, as in the paper's shuffled argmax on average."
    if built["notes"]:
        return "Beside the paper", f"{ties} The paper's rows are printed in arXiv 2504.02495 v3."
    return "Runs side by side", ties


def markdown(built: Mapping) -> str:
    """The tables, figure 4 as a list of points, and the notes. Our rows are bold."""
    title, explanation = title_and_explanation(built)
    lines = [f"# {title}", "", explanation, ""]
    for table in built["tables"]:
        headings, rows = headings_and_rows(table)
        for texts, row in zip(rows, table["rows"]):
            texts[0] = _emphasised(row) + _marks(row)
        lines += [f"## {table['title']}", "", *markdown_table(headings, rows), ""]
    lines += figure_lines(built["figure4"])
    lines += [f"- [{mark}] {text}" for mark, text in built["notes"].items()]
    return "\n".join(lines) + "\n"


def _emphasised(item: Mapping) -> str:
    return f"*{item['name']}*" if item["paper"] else f"**{item['name']}**"


def figure_lines(figure: Mapping) -> list[str]:
    """Figure 4 as a Markdown table."""
    if not figure["lines"]:
        return []
    rows = [
        [
            _emphasised(line) + _marks(point),
            str(point.get("k", "")),
            str(point.get("billions", "")),
            with_span({"low": None} | point),
            _decimals(point.get("seconds")),
            f"{point['flops']:.2e}" if point.get("flops") else "",
        ]
        for line in figure["lines"]
        for point in line["points"]
    ]
    headings = ("line", "k", "size (10^9)", "value", "seconds", "FLOPs")
    title = f"## Figure 4: scaling on {figure['benchmark'] or 'RewardBench'}"
    return [title, "", *markdown_table(headings, rows), ""]
