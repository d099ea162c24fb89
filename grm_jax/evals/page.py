"""The results page: one self-contained HTML file that reads well on a desk and on a phone."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path

from grm_jax.evals import plots, tables
from grm_jax.evals.benchmarks import BENCHMARKS

TEMPLATES = Path(__file__).parent / "templates"
MOST_BARS = 30


def page(entries: Sequence[dict]) -> str:
    """The page of the entries of a results file."""
    return template("page.html").render(
        judge=tables.judge_line(entries[0]),
        columns=_columns(entries),
        cards=[card(entry) for entry in entries],
    )


@functools.cache
def template(name: str):
    """A page of this package's templates."""
    import jinja2

    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return env.get_template(name)


def _columns(entries) -> dict:
    """The overview table without the columns that say nothing for this judge."""
    body = tables.rows(entries)
    kept = [c for c in range(len(tables.COLUMNS)) if any(row[c] != "–" for row in body)]
    return {
        "names": [tables.COLUMNS[c] for c in kept],
        "rows": [[row[c] for c in kept] for row in body],
    }


def card(entry: dict) -> dict:
    """What the template shows of one benchmark."""
    value, reading = tables.headline(entry), entry["parsing"]
    return {
        "entry": entry,
        "judge": tables.judge_line(entry),
        "value": tables.percent(value["value"]),
        "span": tables.span(value),
        "bars": bars(entry),
        "rules": [
            (name, tables.percent(tables.headline(entry, name)["value"]), text)
            for name, text in entry["rules"].items()
        ],
        "content_blind": [
            (name, tables.percent(floor["value"])) for name, floor in entry["content_blind"].items()
        ],
        "gains": [(name, tables.signed(gain)) for name, gain in entry["gains"].items()],
        "against": tables.against_line(entry) if "against" in entry else None,
        "statuses": ", ".join(f"{n} {status}" for status, n in reading["statuses"].items()),
        "parsed": tables.percent(reading["parsed"]),
        "ties": tables.percent(reading["ties"]),
        "longest": [
            tables.percent((entry["length"][key] or {"value": None})["value"])
            for key in ("longest_picked", "longest_right")
        ],
        "published": [
            (p["model"], p["values"][entry["headline"]], p["source"])
            for p in entry["published"]
            if entry["headline"] in p["values"]
        ],
        "cost": cost(entry["cost"]),
        "figures": [
            figure
            for figure in (plots.curve(entry), plots.place(entry), plots.length(entry))
            if figure
        ],
    }


def bars(entry: dict) -> list[dict]:
    """The headline and the benchmark's parts as bars, with interval and position in percent of the width."""
    metrics = entry["metrics"][entry["rule"]]
    prefixes = BENCHMARKS[entry["benchmark"]].bars
    names = [entry["headline"]] + [
        n for n in metrics if n != entry["headline"] and n.startswith(tuple(prefixes))
    ]
    found = []
    for name in names[:MOST_BARS]:
        value = metrics[name]
        if value["value"] is None or math.isnan(value["value"]):
            continue
        low, high = (
            (value["low"], value["high"]) if value["low"] is not None else (value["value"],) * 2
        )
        clip = lambda x: f"{min(100.0, max(0.0, 100 * x)):.2f}"  # noqa: E731
        found.append(
            {
                "name": name.split("/", 1)[-1].replace("_", " "),
                "value": tables.percent(value["value"]),
                "span": tables.span(value),
                "width": clip(value["value"]),
                "low": clip(low),
                "spread": clip(high - low),
                "headline": name == entry["headline"],
            }
        )
    return found


def cost(spent: dict) -> str:
    """What the judging took, in words; empty where it is not known."""
    if not spent.get("seconds"):
        return ""
    text = f"{spent['seconds']:,.0f} s"
    if spent.get("tokens"):
        text += f", {spent['critiques']:,} critiques, {spent['tokens']:,} tokens, {spent['tokens'] / spent['seconds']:,.0f} tokens/s"
    return text
