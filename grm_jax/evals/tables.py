"""Tables of results for the terminal and Markdown, and the formatting of values and intervals."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from grm_jax.judging.pairs import FEW

if TYPE_CHECKING:
    from rich.console import Console

MISSING = "–"
OVERVIEW = ("benchmark", "metric", "value", "95% CI", "n", "paper's rule")
GAINS = ("gain on greedy", "gain on vote@1")
# The second table of results.md: the columns that put the value into context.
CONTEXT = ("benchmark", "chance", "longest", "first", "greedy", "vote@1", *GAINS, "parsed")
TERMINAL = ("benchmark", "metric", "value", "95% CI", "n", "longest")  # fit 80 characters
Rows = list[list[str]]


# ---------------------------------------------------------------- any table


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table; bars and line breaks inside cells are escaped."""
    lines = [
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
        for row in (headings, *rows)
    ]
    return [lines[0], "|" + "---|" * len(headings), *lines[1:]]


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table of aligned columns as plain text, the first `left` columns to the left."""
    widths = [max(map(len, column)) for column in zip(headings, *rows)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        )
        for row in (headings, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


# ---------------------------------------------------------------- values


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent; a dash for None."""
    return MISSING if value is None else f"{100 * value:.{digits}f}"


def span(estimate: Mapping) -> str:
    """The interval of an estimate: "44.8–46.2"."""
    if estimate["low"] is None:
        return MISSING
    return f"{percent(estimate['low'])}–{percent(estimate['high'])}"


def with_span(estimate: Mapping | None) -> str:
    """A value with its interval: "45.5 (44.8–46.2)"."""
    if estimate is None or estimate["value"] is None:
        return MISSING
    value = percent(estimate["value"])
    return value if estimate["low"] is None else f"{value} ({span(estimate)})"


def signed(difference: Mapping | None) -> str:
    """A difference in points with its interval: "+1.2 [-0.3, +2.7]"."""
    if not difference or difference["value"] is None:
        return MISSING
    value, low, high = difference["value"], difference["low"], difference["high"]
    interval = f" [{100 * low:+.1f}, {100 * high:+.1f}]" if low is not None else ""
    return f"{100 * value:+.1f}{interval}"


# ---------------------------------------------------------------- entries of results.json


def headline(entry: Mapping, rule: str | None = None) -> dict:
    """The headline estimate of an entry under a rule, its own by default."""
    return entry["metrics"][rule or entry["rule"]][entry["headline"]]


def shown(entry: Mapping, estimate: Mapping) -> Mapping:
    """An estimate of an entry, without an interval of width 0 where the prompts are few."""
    is_empty = estimate["low"] == estimate["high"] and few_line(entry)
    return {**estimate, "low": None, "high": None} if is_empty else estimate


def row(entry: Mapping) -> dict[str, str]:
    """The texts of one benchmark's row by heading."""
    value, paper = headline(entry), entry["metrics"].get("paper")
    differs = paper and paper[entry["headline"]]["value"] != value["value"]
    subset = f" of {entry['of']}" if entry["comparisons"] < entry["of"] else ""
    single = entry["curves"].get("sum", {})
    single = single.get(1) or single.get("1") or {"value": None}
    return {
        "benchmark": entry["title"],
        "metric": f"{entry['headline']} ({entry['rule']})",
        "value": percent(value["value"]),
        "95% CI": span(shown(entry, value)),
        "n": f"{entry['comparisons']}{subset}",
        "paper's rule": percent(paper[entry["headline"]]["value"])
        if differs
        else "same"
        if paper
        else MISSING,
        "chance": entry["chance"],
        "greedy": percent(entry["greedy"]["value"]) if "greedy" in entry else MISSING,
        "vote@1": percent(single["value"]),
        "gain on greedy": signed(entry["gains"].get("greedy")),
        "gain on vote@1": signed(entry["gains"].get("voting@1")),
        "parsed": percent(entry["parsing"]["parsed"]),
    } | {name: percent(estimate["value"]) for name, estimate in entry["content_blind"].items()}


def overview(
    entries: Sequence[Mapping], columns: Sequence[str] = OVERVIEW
) -> tuple[list[str], Rows]:
    """Headings and rows of one table over benchmarks, without empty columns."""
    texts = [row(entry) for entry in entries]
    names = [name for name in columns if any(text[name] != MISSING for text in texts)]
    return names, [[text[name] for name in names] for text in texts]


def few_line(entry: Mapping) -> list[str]:
    """One line where the bootstrap cannot vary all prompts or has no interval; else none."""
    n, varies = entry["comparisons"], entry.get("smallest_subset", 2) > 1
    if n < FEW and (headline(entry)["low"] is None or not varies):
        return [f"n = {n}: too few for an interval"]
    if varies:
        return []
    which = "no interval" if headline(entry)["low"] is None else "the interval is too narrow"
    return [f"n = {n}: {which}, because a subset has a single prompt"]


def judge_line(entry: Mapping) -> str:
    """One line on the judge and its settings."""
    judge = entry["judge"]
    keys = ("k", "temperature", "vote", "orders", "template", "meta_rm", "seed")
    settings = [f"{key} {judge[key]}" for key in keys if judge.get(key) is not None]
    return f"{judge['kind']} {judge['name']}" + (f" ({', '.join(settings)})" if settings else "")


def against_line(entry: Mapping) -> str:
    """The paired test against another run in words."""
    against = entry["against"]
    difference = against["metrics"].get(entry["headline"])
    if difference is None:
        return f"{against['run']}: no common metric"
    p = MISSING if difference["p"] is None else f"{difference['p']:.3g}"
    text = f"{against['run']}: {signed(difference)} points, p = {p}"
    text += " (paired bootstrap)"
    if test := against.get("mcnemar"):
        text += f"; {test['gained']} gained, {test['lost']} lost, p = {test['p']:.3g} (McNemar)"
    return text


def terminal(entries: Sequence[Mapping]) -> None:
    """Prints the main columns, the values by other rules, and the paired tests."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    console.print(judge_line(entries[0]))
    headings, rows = overview(entries, TERMINAL)
    print_table(console, headings, rows, left=2)
    console.print("values in percent; results.md has all columns")
    for entry in entries:
        own = headline(entry)["value"]
        lines = [
            f"by rule {name!r}: {percent(headline(entry, name)['value'])} ({text})"
            for name, text in entry["rules"].items()
            if headline(entry, name)["value"] != own
        ]
        gains = {name: gain for name, gain in entry["gains"].items() if gain}
        lines += [f"gain on {name}: {signed(gain)} points" for name, gain in gains.items()]
        lines += [f"against {against_line(entry)}"] if "against" in entry else []
        for line in [*few_line(entry), *lines]:
            console.print(f"{entry['title']} {line}")


def wrapped(heading: str) -> str:
    """A heading in lines of about 12 characters."""
    return textwrap.fill(heading, 12, break_long_words=False)


def print_table(
    console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1
) -> None:
    """Prints a table; the first `left` columns hold texts, which fold to the console's width."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for i, heading in enumerate(headings):
        if i < left:
            table.add_column(heading, overflow="fold")
        else:
            width = max(len(row[i]) for row in rows)
            table.add_column(wrapped(heading), justify="right", min_width=width)
    for cells in rows:
        table.add_row(*cells)
    console.print(table)


def markdown(entries: Sequence[Mapping]) -> str:
    """The overview, every metric of every benchmark, and the rules, as Markdown."""
    lines = [
        "# Evaluation",
        "",
        f"Judge: {judge_line(entries[0])}. Values in percent, 95% bootstrap intervals over "
        "prompts.",
        "",
        *markdown_table(*overview(entries)),
        "",
        *markdown_table(*overview(entries, CONTEXT)),
    ]
    for entry in entries:
        lines += ["", f"## {entry['title']}", ""]
        if entry["judge"] != entries[0]["judge"]:
            lines += [f"Judge: {judge_line(entry)}.", ""]
        rules = list(entry["rules"])
        body = [
            [metric, *(with_span(shown(entry, entry["metrics"][rule][metric])) for rule in rules)]
            for metric in entry["metrics"][entry["rule"]]
        ]
        lines += [*markdown_table(["metric", *rules], body), ""]
        lines += [f"- {name}: {text}." for name, text in entry["rules"].items()]
        lines += [f"- {line}." for line in few_line(entry)]
        if entry["notes"]:
            lines.append(f"- {entry['notes']}")
        if "against" in entry:
            lines.append(f"- Against {against_line(entry)}.")
        lines += [
            f"- Published: {p['model']} {p['values'][entry['headline']]} ({p['source']})."
            for p in entry["published"]
            if entry["headline"] in p["values"]
        ]
    return "\n".join(lines) + "\n"
