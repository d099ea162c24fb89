"""Results as a table in the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

COLUMNS = (
    "benchmark", "metric", "value", "95% interval", "n", "paper's rule", "chance", "longest", "first",
    "greedy", "vote@1", "gain on greedy", "gain on vote@1", "read",
)  # fmt: skip
# A terminal has no room for the others.
NARROW = (0, 1, 2, 3, 4, 5, 7, 8, 11, 12)


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent; a dash for None."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def signed(entry: dict | None) -> str:
    """A difference in points with its interval."""
    if not entry or entry["value"] is None:
        return "–"
    low, high = entry["low"], entry["high"]
    span = f" [{100 * low:+.1f}, {100 * high:+.1f}]" if low is not None else ""
    return f"{100 * entry['value']:+.1f}{span}"


def span(entry: dict) -> str:
    """The interval of an estimate."""
    return "–" if entry["low"] is None else f"{percent(entry['low'])}–{percent(entry['high'])}"


def headline(entry: dict, rule: str | None = None) -> dict:
    """The headline estimate of an entry under a rule, its own by default."""
    return entry["metrics"][rule or entry["rule"]][entry["headline"]]


def vote_at_1(entry: dict) -> dict | None:
    """The estimate of one sample; None for judges without critiques."""
    return next(
        (points.get(1) or points.get("1") for points in [entry["curves"].get("sum", {})]), None
    )


def rows(entries: Sequence[dict]) -> list[list[str]]:
    """One row per benchmark, in the order of COLUMNS."""
    found = []
    for entry in entries:
        value, paper = headline(entry), entry["metrics"].get("paper")
        differs = paper and paper[entry["headline"]]["value"] != value["value"]
        one = vote_at_1(entry)
        part = f"{entry['comparisons']}" + (
            f" of {entry['of']}" if entry["comparisons"] < entry["of"] else ""
        )
        found.append(
            [
                entry["title"],
                f"{entry['headline']} ({entry['rule']})",
                percent(value["value"]),
                span(value),
                part,
                percent(paper[entry["headline"]]["value"]) if differs else "same" if paper else "–",
                entry["chance"],
                percent(entry["content_blind"]["longest"]["value"]),
                percent(entry["content_blind"]["first"]["value"]),
                percent(entry["greedy"]["value"]) if "greedy" in entry else "–",
                percent(one["value"]) if one else "–",
                signed(entry["gains"].get("greedy")),
                signed(entry["gains"].get("voting@1")),
                percent(entry["parsing"]["parsed"]),
            ]  # fmt: skip
        )
    return found


def judge_line(entry: dict) -> str:
    """One line on who judged, and how."""
    judge = entry["judge"]
    settings = [
        f"{key} {judge[key]}"
        for key in ("k", "temperature", "vote", "orders", "template", "meta_rm", "seed")
        if judge.get(key) is not None
    ]
    return f"{judge['kind']} {judge['name']}" + (f" ({', '.join(settings)})" if settings else "")


def terminal(entries: Sequence[dict]) -> None:
    """Prints the table, and what each benchmark's rules are."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    # Columns that say nothing for this judge are left out: floors have no critiques.
    body = rows(entries)
    kept = [c for c in NARROW if any(row[c] != "–" for row in body)]
    table = Table(title=judge_line(entries[0]), caption="values in percent")
    for c in kept:
        table.add_column(COLUMNS[c], justify="left" if c < 2 else "right", overflow="fold")
    for row in body:
        # Intervals of the gains stand in results.md.
        table.add_row(*(row[c].split(" [")[0] for c in kept))
    console.print(table)
    for entry in entries:
        own = headline(entry)["value"]
        for name, text in entry["rules"].items():
            if headline(entry, name)["value"] != own:
                line = f"  {entry['title']} by rule {name!r}: {percent(headline(entry, name)['value'])} ({text})"
                console.print(line, highlight=False, markup=False)
        if "against" in entry:
            console.print(
                f"  {entry['title']} against {against_line(entry)}", highlight=False, markup=False
            )


def against_line(entry: dict) -> str:
    """The paired test in words."""
    against = entry["against"]
    difference = against["metrics"].get(entry["headline"])
    if difference is None:
        return f"{against['run']}: no common metric"
    text = f"{against['run']}: {signed(difference)} points, p = {difference['p']:.3g} (paired bootstrap)"
    if "mcnemar" in against:
        test = against["mcnemar"]
        text += f"; {test['gained']} gained, {test['lost']} lost, p = {test['p']:.3g} (McNemar)"
    return text


def markdown(entries: Sequence[dict]) -> str:
    """The same table, every metric of every benchmark, and the rules."""
    lines = [
        "# Evaluation",
        "",
        f"Judge: {judge_line(entries[0])}. Values in percent, 95% bootstrap intervals over prompts.",
        "",
    ]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(row) + " |" for row in rows(entries)]
    for entry in entries:
        lines += ["", f"## {entry['title']}", ""]
        if entry["judge"] != entries[0]["judge"]:
            lines += [f"Judge: {judge_line(entry)}.", ""]
        names = list(entry["rules"])
        lines += ["| metric | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
        for metric in entry["metrics"][entry["rule"]]:
            cells = [entry["metrics"][name][metric] for name in names]
            lines.append(
                f"| {metric} | "
                + " | ".join(f"{percent(c['value'])} ({span(c)})" for c in cells)
                + " |"
            )
        lines += [""] + [f"- {name}: {text}." for name, text in entry["rules"].items()]
        if entry["notes"]:
            lines.append(f"- {entry['notes']}")
        if "against" in entry:
            lines.append(f"- Against {against_line(entry)}.")
        for published in entry["published"]:
            value = published["values"].get(entry["headline"])
            if value is not None:
                lines.append(f"- Published: {published['model']} {value} ({published['source']}).")
    return "\n".join(lines) + "\n"
