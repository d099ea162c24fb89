"""`grm table paper RUN ...`: result files of several evaluations in the shape of the paper's tables 2, 3, 4 and figure 4.

A RUN is an --out folder of `grm eval`, or NAME=FOLDER. Benchmarks other than the paper's four get columns of their own, so
that runs on what is at hand (or in the judging world) can be laid side by side too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from grm_jax.evals import paper, tables
from grm_jax.evals.results import read_results
from grm_jax.evals.scaling import KINDS

KS = (1, 8, 32)  # the paper's table 3


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="grm table", description="Lays result files of `grm eval` beside the paper's rows."
    )
    p.add_argument(
        "what", choices=("paper", "runs"), help="paper: with the paper's rows; runs: ours alone"
    )
    p.add_argument(
        "runs", nargs="+", metavar="RUN", help="--out folder of grm eval, or NAME=FOLDER"
    )
    p.add_argument(
        "--out", help="file to write: .md, .html or .json (default: Markdown to the terminal)"
    )
    p.add_argument(
        "--flops_per_token",
        help="NAME=FLOPS,...: forward FLOPs per token of a run's model (2 x parameters when not given)",
    )
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs `grm table`; returns the exit status."""
    args = parser().parse_args(argv)
    try:
        runs = read_runs(args.runs)
        flops = dict(pair.split("=", 1) for pair in (args.flops_per_token or "").split(",") if pair)
        found = build(
            runs, args.what == "paper", {name: float(value) for name, value in flops.items()}
        )
    except (ValueError, OSError) as error:
        print(f"grm table: {error}", file=sys.stderr)
        return 2
    if not args.out:
        print(markdown(found))
    elif args.out.endswith(".json"):
        Path(args.out).write_text(
            json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    elif args.out.endswith(".html"):
        from grm_jax.evals.table_page import page

        Path(args.out).write_text(page(found), encoding="utf-8")
    else:
        Path(args.out).write_text(markdown(found), encoding="utf-8")
    return 0


def read_runs(given: Sequence[str]) -> dict[str, dict[str, dict]]:
    """name -> benchmark -> entry. Raises ValueError where a folder holds no results."""
    runs: dict[str, dict[str, dict]] = {}
    for text in given:
        name, _, folder = text.rpartition("=")
        path = Path(folder) / "results.json" if Path(folder).is_dir() else Path(folder)
        if not path.is_file():
            raise ValueError(f"{folder} holds no results.json: give an --out folder of `grm eval`")
        name = name or Path(folder).resolve().name
        if name in runs:
            raise ValueError(f"two runs are called {name!r}: name them as NAME=FOLDER")
        runs[name] = {entry["benchmark"]: entry for entry in read_results(path)}
    return runs


# ---------------------------------------------------------------- cells


def point(entry: dict | None, k: int | None = None, kind: str = "sum") -> dict | None:
    """The headline estimate of a run (k None), or of one point of its curve. The paper's rule where the benchmark has it."""
    if entry is None:
        return None
    if k is None:
        return entry["metrics"].get("paper", entry["metrics"][entry["rule"]])[entry["headline"]]
    points = curves(entry).get(kind, {})
    return points.get(str(k), points.get(k))


def cells(
    run: dict[str, dict], names: Sequence[str], k: int | None = None, kind: str = "sum"
) -> list[dict | None] | None:
    """Estimates of one run by benchmark, and their mean where all are there; None for a row without any."""
    found = [point(run.get(name), k, kind) for name in names]
    if not any(found):
        return None
    values = [cell["value"] if cell else None for cell in found]
    overall = sum(values) / len(values) if all(value is not None for value in values) else None
    return [*found, {"value": overall, "low": None, "high": None}]


def curves(entry: dict) -> dict:
    """The curves under the paper's rule, where it is not the benchmark's own."""
    return entry.get("by_paper", entry)["curves"]


def greedy(run: dict[str, dict], names: Sequence[str]) -> list[dict | None] | None:
    """The greedy row of a run."""
    found = {}
    for name, entry in run.items():
        value = entry.get("by_paper", entry).get("greedy")
        if value:
            found[name] = entry | {
                "rule": "greedy",
                "metrics": {"greedy": {entry["headline"]: value}},
            }
    return cells(found, names)


def _printed(row: paper.Row) -> dict:
    return {
        "name": row.name,
        "paper": True,
        "marks": row.marks,
        "cells": [{"value": v / 100, "low": None, "high": None} for v in row.values],
    }


def _ours(name: str, found: list | None) -> list[dict]:
    return [{"name": name, "paper": False, "marks": "", "cells": found}] if found else []


# ---------------------------------------------------------------- tables


def build(runs: dict[str, dict[str, dict]], with_paper: bool, flops: dict[str, float]) -> dict:
    """The tables as data: columns, rows (the paper's and ours), notes; the points of figure 4; what judging cost."""
    there = {name for run in runs.values() for name in run}
    names = [n for n in paper.BENCHMARKS if n in there]
    others = [
        n
        for n in dict.fromkeys(n for run in runs.values() for n in run)
        if n not in paper.BENCHMARKS
    ]
    titles = {n: e["title"] for run in runs.values() for n, e in run.items()}
    found: dict = {
        "tables": [],
        "marks": [],
        "figure4": figure_4(runs, with_paper, flops),
        "notes": paper.NOTES if with_paper else {},
    }
    if with_paper:
        found["tables"] += [table_2(runs), table_3(runs), table_4(runs)]
    if others or not with_paper:
        shown = others if with_paper else names + others
        found["tables"].append(side_by_side(runs, shown, [titles[n] for n in shown]))
    used = {mark for table in found["tables"] for row in table["rows"] for mark in row["marks"]}
    used |= {
        mark
        for line in found["figure4"]["lines"]
        for p in line["points"]
        for mark in p.get("marks", "")
    }
    found["notes"] = {mark: text for mark, text in found["notes"].items() if mark in used}
    return found


def table_2(runs) -> dict:
    """Greedy and voted results of every run under the paper's rows."""
    rows = [_printed(row) for row in paper.TABLE_2]
    for name, run in runs.items():
        rows += _ours(f"{name}, greedy", greedy(run, paper.BENCHMARKS))
        rows += _ours(f"{name}{_settings(run)}", cells(run, paper.BENCHMARKS))
    return {"title": "Table 2: overall", "columns": list(paper.COLUMNS), "rows": rows}


def table_3(runs) -> dict:
    """Voting at k = 1, 8, 32 (and every other k that a run has), plain and meta-guided; gain over Voting@1 of the same run."""
    rows = []
    for k in sorted(
        set(KS)
        | {int(k) for run in runs.values() for e in run.values() for k in curves(e).get("sum", {})}
    ):
        rows += [_printed(row) | {"name": f"@{k} {row.name}"} for row in paper.TABLE_3.get(k, ())]
        for name, run in runs.items():
            for kind in KINDS:
                found = cells(run, paper.BENCHMARKS, k, kind)
                rows += _ours(f"@{k} {name}, {kind}", found)
                base = cells(run, paper.BENCHMARKS, 1)
                if (
                    found
                    and base
                    and k > 1
                    and found[-1]["value"] is not None
                    and base[-1]["value"] is not None
                ):
                    rows[-1]["gain"] = found[-1]["value"] - base[-1]["value"]
    return {
        "title": "Table 3: inference-time scaling",
        "columns": list(paper.COLUMNS),
        "rows": rows,
    }


def table_4(runs) -> dict:
    """Ablations: a run named as one of ours stands under the paper's row of the same change; greedy where there is one."""
    rows = []
    for name, row in paper.TABLE_4.items():
        rows.append(_printed(row))
        if name in runs:
            rows += _ours(
                name, greedy(runs[name], paper.BENCHMARKS) or cells(runs[name], paper.BENCHMARKS)
            )
    return {"title": "Table 4: ablations", "columns": list(paper.COLUMNS), "rows": rows}


def side_by_side(runs, names: Sequence[str], titles: Sequence[str]) -> dict:
    """Every run on the benchmarks at hand: greedy, Voting@1, voted, meta-guided."""
    rows = []
    for name, run in runs.items():
        rows += _ours(f"{name}, greedy", greedy(run, names))
        rows += _ours(f"{name}, voting@1", cells(run, names, 1))
        rows += _ours(f"{name}{_settings(run)}", cells(run, names))
    return {"title": "Side by side", "columns": [*titles, "mean"], "rows": rows}


def _settings(run) -> str:
    judge = next(iter(run.values()))["judge"]
    if judge.get("k", 1) in (None, 1):
        return ""
    return f", {'MetaRM' if judge.get('meta_rm') else 'Voting'}@{judge['k']}"


# ---------------------------------------------------------------- figure 4


def figure_4(runs, with_paper: bool, flops: dict[str, float]) -> dict:
    """Lines over k on RewardBench, or on the first benchmark that every run has; measured seconds and FLOPs beside k."""
    common = [n for n in next(iter(runs.values())) if all(n in run for run in runs.values())]
    on = "rewardbench" if "rewardbench" in common else common[0] if common else None
    lines = []
    if with_paper and on in ("rewardbench", None):
        for name, points in paper.FIGURE_4.items():
            lines.append(
                {
                    "name": name,
                    "paper": True,
                    "points": [{"k": k, "value": v / 100, "marks": m} for k, v, m in points],
                }
            )
        for name, points in paper.FIGURE_4_SIZES.items():
            sized = [{"billions": b, "value": v / 100, "marks": m} for b, v, m in points]
            lines.append({"name": f"{name}, greedy by size", "paper": True, "points": sized})
    for name, run in runs.items() if on else ():
        lines += _scaling_lines(name, run[on], flops.get(name))
    return {"benchmark": on, "lines": lines}


def _scaling_lines(name: str, entry: dict, flops_per_token: float | None) -> list[dict]:
    spent, total = entry["cost"], entry["judge"].get("k")
    if flops_per_token is None and spent.get("parameters"):
        flops_per_token = 2.0 * spent["parameters"]
    lines = []
    for kind in ("sum", "meta"):
        points = []
        for k, estimate in curves(entry).get(kind, {}).items():
            share = int(k) / total if total else None
            p = {"k": int(k), **estimate}
            if share and spent.get("seconds"):
                # All K critiques are sampled in one run, so a smaller k is charged its share.
                p["seconds"] = spent["seconds"] * share
            if share and spent.get("tokens") and flops_per_token:
                p["flops"] = spent["tokens"] * flops_per_token * share
            points.append(p)
        if points:
            lines.append(
                {
                    "name": f"{name}, {'voting' if kind == 'sum' else 'meta-guided'}",
                    "paper": False,
                    "points": points,
                }
            )
    return lines


# ---------------------------------------------------------------- Markdown


def cell_text(cell: dict | None) -> str:
    """A value with its interval."""
    if cell is None or cell["value"] is None:
        return "–"
    return tables.percent(cell["value"]) + (
        f" ({tables.span(cell)})" if cell["low"] is not None else ""
    )


def markdown(found: dict) -> str:
    """The tables, figure 4 as a list of points, and the notes."""
    lines = ["# Beside the paper" if found["notes"] else "# Runs side by side", ""]
    lines += [
        "The paper's rows in italics. Ties count 1/t, as the paper's shuffled argmax does in expectation.",
        "",
    ]
    for table in found["tables"]:
        gains = any("gain" in row for row in table["rows"])
        names = [*table["columns"], *(["gain on @1"] if gains else [])]
        lines += [
            f"## {table['title']}",
            "",
            "| | " + " | ".join(names) + " |",
            "|---|" + "---|" * len(names),
        ]
        for row in table["rows"]:
            name = f"*{row['name']}*" if row["paper"] else f"**{row['name']}**"
            mark = f" [{row['marks']}]" if row["marks"] else ""
            extra = [f"{100 * row['gain']:+.1f}" if "gain" in row else ""] if gains else []
            lines.append(
                f"| {name}{mark} | " + " | ".join([*map(cell_text, row["cells"]), *extra]) + " |"
            )
        lines.append("")
    lines += figure_lines(found["figure4"])
    lines += [f"- [{mark}] {text}" for mark, text in found["notes"].items()]
    return "\n".join(lines) + "\n"


def figure_lines(figure: dict) -> list[str]:
    """Figure 4 as a table: inference-time against training-time scaling."""
    if not figure["lines"]:
        return []
    lines = [f"## Figure 4: scaling on {figure['benchmark'] or 'RewardBench'}", ""]
    lines += ["| line | k | size (10^9) | value | seconds | FLOPs |", "|---|---|---|---|---|---|"]
    for line in figure["lines"]:
        for p in line["points"]:
            mark = f" [{p['marks']}]" if p.get("marks") else ""
            name = f"*{line['name']}*{mark}" if line["paper"] else f"**{line['name']}**"
            seconds, flops = p.get("seconds"), p.get("flops")
            text = [str(p.get("k", "")), str(p.get("billions", "")), cell_text({"low": None} | p)]
            text += [f"{seconds:,.1f}" if seconds else "", f"{flops:.2e}" if flops else ""]
            lines.append(f"| {name} | " + " | ".join(text) + " |")
    return [*lines, ""]


if __name__ == "__main__":
    sys.exit(main())
